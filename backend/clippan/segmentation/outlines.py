"""Outlines of regions: the lines between them, each once, so that neighbours share them whatever is done to them.

A line runs along the edges of pixels, from one junction (a corner of pixels where three or more regions meet, or two
that touch by their corners, or a corner of the map) to the next. Regions are then rings of such lines.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from clippan.core.context import Context
from clippan.segmentation.regions import fast_items

_OUTSIDE = -1  # the region beyond the map
_EAST, _NORTH, _WEST, _SOUTH = range(4)  # where a line heads; a turn to the left adds 1
_CANCEL_EVERY = 200_000  # corners between two looks whether the user has cancelled


@dataclass(frozen=True)
class BoundaryLines:
    """Lines between regions, one after the other. ``x`` and ``y`` (corners,), int32, are where they turn, in pixels.

    Attributes:
        x, y: columns and rows, counted at the corners of pixels, from the map's top left.
        first: index of each line's first corner, and last the number of all (lines + 1,).
        left, right: regions beside each line (lines,), for who goes along it; -1 is beyond the map.
        node: number of its first and last junction (2, lines); those of closed lines without a junction are equal.
        heading: of its first and its last piece (2, lines): 0 east, 1 north, 2 west, 3 south.
    """

    x: np.ndarray
    y: np.ndarray
    first: np.ndarray
    left: np.ndarray
    right: np.ndarray
    node: np.ndarray
    heading: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


class BoundaryTracer:
    """Finds the lines of a map that is handed over strip by strip. Memory holds about 40 bytes a corner of the lines.

    Args:
        width, height: of the map.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._above: np.ndarray = np.full((1, width + 2), _OUTSIDE, np.int32)
        self._count = 0
        self._row = 0
        self._nodes: list[np.ndarray] = []  # (3, n): columns, rows, whether a junction
        self._across: list[np.ndarray] = []  # (2, n): nodes at the ends of horizontal pieces, left and right
        self._down: list[np.ndarray] = []  # (2, n): those of vertical pieces, top and bottom
        self._corners: list[np.ndarray] = []  # (5, n): node and the regions around it
        self._open = np.full(width + 1, -1, np.int32)  # top of the vertical piece that goes on in the next strip

    def add(self, regions: np.ndarray) -> None:
        """Adds the next rows: the region of each pixel, int32 (h, width)."""
        padded = np.pad(regions, ((0, 0), (1, 1)), constant_values=_OUTSIDE)
        last = self._row + len(regions) == self._height
        below = [np.full_like(self._above, _OUTSIDE)] if last else []
        padded = np.concatenate([self._above, padded, *below])
        self._above = padded[-1:].copy()
        flat, upright = padded[1:] != padded[:-1], padded[:, 1:] != padded[:, :-1]
        left, right, up, down = flat[:, :-1], flat[:, 1:], upright[:-1], upright[1:]
        node = (left != right) | (up != down) | (left & up)
        junction = (left & right & (up | down)) | (up & down & (left | right))
        if self._row == 0:
            junction[0, [0, -1]] = True
        if last:
            junction[-1, [0, -1]] = True
        rows, columns = np.nonzero(node)
        number = np.full(node.shape, -1, np.int32)
        number[rows, columns] = np.arange(self._count, self._count + len(rows))
        self._count += len(rows)
        self._nodes.append(np.stack([columns, rows + self._row, junction[rows, columns]]).astype(np.int32))
        # Along a row, pieces begin and end by turns; along a column too, where some go on beyond the strip.
        self._across.append(np.stack([number[node & right], number[node & left]]))
        begins = np.concatenate([self._open[:, None], np.where(node & down, number, -1).T], axis=1)
        going = upright[-1]
        ends = np.concatenate([np.where(node & up, number, -1).T, np.where(going, -2, -1)[:, None]], axis=1)
        top, bottom = begins[begins != -1], ends[ends != -1]
        self._down.append(np.stack([top, bottom])[:, bottom >= 0])
        self._open = np.full(self._width + 1, -1, np.int32)
        self._open[going] = top[bottom == -2]
        # Lines start at junctions; closed ones at their first corner, from which they go right and down.
        rows, columns = np.nonzero(node & (junction | (right & down)))
        around = [padded[rows + dy, columns + dx] for dy in (0, 1) for dx in (0, 1)]
        self._corners.append(np.stack([number[rows, columns], *around]))
        self._row += len(regions)

    def lines(self, context: Context) -> BoundaryLines:
        """All lines, once the last row was added. Their order and direction depend on the map alone."""
        nodes, across, down = (np.concatenate(part, axis=1) for part in (self._nodes, self._across, self._down))
        corners = np.concatenate(self._corners, axis=1)
        self._nodes, self._across, self._down, self._corners = [], [], [], []
        context.raise_if_cancelled()
        x, y = nodes[:2]
        junction = nodes[2].astype(bool)
        order, first = _trace_lines(across, down, junction, context)
        x, y = x[order], y[order]
        start, end = first[:-1], first[1:] - 1
        heading = np.stack([_heading(x, y, start, start + 1), _heading(x, y, end - 1, end)])
        place = np.searchsorted(corners[0], order[start])
        north_west, north_east, south_west, south_east = corners[1:, place]
        left = np.choose(heading[0], [north_east, north_west, south_west, south_east])
        right = np.choose(heading[0], [south_east, north_east, north_west, south_west])
        return BoundaryLines(x, y, first, left, right, order[np.stack([start, end])], heading)


def _heading(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    dx, dy = x[end] - x[start], y[end] - y[start]
    return np.where(dx > 0, _EAST, np.where(dx < 0, _WEST, np.where(dy < 0, _NORTH, _SOUTH)))


def _trace_lines(
    across: np.ndarray, down: np.ndarray, junction: np.ndarray, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Follows pieces from node to node.

    Args:
        across, down: nodes at the ends of the horizontal and the vertical pieces (2, n).
        junction: which nodes are junctions.
        context: may be cancelled.

    Returns:
        The nodes of all lines, and where each line begins.
    """
    partner = []  # of a node that is no junction: the one beside it, the one above or below it
    for pieces in (across, down):
        table = np.full(len(junction), -1, np.int32)
        table[pieces[0]], table[pieces[1]] = pieces[1], pieces[0]
        partner.append(table)
    ways = np.concatenate(
        [
            np.stack([ends[0], ends[1], np.full(len(ends[0]), axis)])
            for axis, pieces in enumerate((across, down))
            for ends in (pieces, pieces[::-1])
        ],
        axis=1,
    )
    ways = ways[:, junction[ways[0]]]
    context.raise_if_cancelled()
    ways = ways[:, np.lexsort((ways[1], ways[0]))]
    context.raise_if_cancelled()
    # From two junctions that one piece joins, it is followed once.
    ways = ways[:, ~junction[ways[1]] | (ways[0] < ways[1])]
    following, ends_here = [fast_items(table) for table in partner], fast_items(junction)
    seen = bytearray(len(junction))
    order, first = array("i"), array("q", [0])
    checked = 0

    def follow(start: int, node: int, axis: int) -> None:
        order.append(start)
        while True:
            order.append(node)
            if ends_here[node]:
                break
            seen[node] = 1
            if node == start:
                break
            axis = 1 - axis
            node = following[axis][node]
        first.append(len(order))

    def starts() -> Iterable[tuple[int, int, int]]:
        yield from zip(*(column.tolist() for column in ways))
        turns = np.flatnonzero(~junction)
        for node in turns[np.frombuffer(seen, np.uint8)[turns] == 0].tolist():
            yield node, following[0][node], 0

    for start, node, axis in starts():
        if not seen[node]:
            follow(start, node, axis)
        if len(order) - checked > _CANCEL_EVERY:
            checked = len(order)
            context.raise_if_cancelled()
    return np.array(order, np.int32), np.array(first, np.int64)


@dataclass(frozen=True)
class Rings:
    """Closed rings of lines, the region on their left with y up.

    Attributes:
        steps: twice the number of a line, plus 1 if it is followed backwards; ring after ring.
        first: index of each ring's first step, and last the number of all (rings + 1,).
        region: of each ring (rings,); rings are sorted by it, and the outer ring of a region comes before its holes.
    """

    steps: np.ndarray
    first: np.ndarray
    region: np.ndarray


def assemble_rings(lines: BoundaryLines, wanted: np.ndarray) -> Rings:
    """Puts lines together.

    Where a region touches itself by corners, rings turn to the right: so none touches itself, and each is simple.

    Args:
        lines: all of them.
        wanted: which regions, bool (regions,).
    """
    count = len(lines)
    line = np.arange(count)
    step = np.concatenate([2 * line, 2 * line + 1])
    region = np.concatenate([lines.left, lines.right])
    leaves, arrives = lines.node.ravel(), lines.node[::-1].ravel()
    out = np.concatenate([lines.heading[0], (lines.heading[1] + 2) % 4])
    into = np.concatenate([lines.heading[1], (lines.heading[0] + 2) % 4])
    keep = (region >= 0) & wanted[region]
    step, region, leaves, arrives, out, into = (part[keep] for part in (step, region, leaves, arrives, out, into))
    leaving = np.lexsort((out, leaves, region))
    arriving = np.lexsort(((into + 3) % 4, arrives, region))  # by where a turn to the right leads
    following = np.empty(len(step), np.int64)
    following[arriving] = leaving
    order, first = _cycles(following)
    x, y = lines.x.astype(np.int64), lines.y.astype(np.int64)
    cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    cross[lines.first[1:] - 1] = 0  # from one line to the next
    area = np.add.reduceat(cross, lines.first[:-1]) if count else cross[:0]
    signed = np.where(step[order] % 2, 1, -1) * area[step[order] // 2]
    inside = np.add.reduceat(signed, first[:-1]) if len(order) else signed
    owner = region[order[first[:-1]]]
    ranked = np.lexsort((inside < 0, owner))  # the outer ring has its region inside
    lengths = np.diff(first)[ranked]
    new = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(first[:-1][ranked] - new[:-1], lengths) + np.arange(len(order))
    return Rings(step[order[source]], new, owner[ranked])


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation, one after the other, and where each begins."""
    table = fast_items(following)
    seen = bytearray(len(following))
    order, first = array("q"), array("q", [0])
    for start in range(len(following)):
        item = start
        while not seen[item]:
            seen[item] = 1
            order.append(item)
            item = table[item]
        if len(order) > first[-1]:
            first.append(len(order))
    return np.array(order, np.int64), np.array(first, np.int64)

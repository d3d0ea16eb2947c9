"""Boundary lines between regions, each stored once, so that neighbours always share them.

A line follows pixel edges between two junctions: pixel corners where at least three regions meet or two touch
diagonally, and corners of the map. The outline of a region consists of rings of lines.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from clippan.core.context import Context
from clippan.segmentation.regions import fast_items

_OUTSIDE = -1  # the region beyond the map
_EAST, _NORTH, _WEST, _SOUTH = range(4)  # headings; a left turn adds 1
_CANCEL_EVERY = 200_000  # corners between checks for cancellation


@dataclass(frozen=True)
class BoundaryLines:
    """Lines between regions, concatenated.

    Attributes:
        x, y: columns and rows of the corners at which lines turn, int32 (corners,), from the map's top left.
        first: index of each line's first corner, and last the number of corners (lines + 1,).
        left, right: the regions to the left and right along each line (lines,); -1 is outside the map.
        node: numbers of its first and last node (2, lines); equal for closed lines without a junction.
        heading: of its first and last segment (2, lines): 0 east, 1 north, 2 west, 3 south.
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
    """Traces the lines of a map strip by strip. Memory holds about 40 bytes per corner of the lines."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._above: np.ndarray = np.full((1, width + 2), _OUTSIDE, np.int32)
        self._count = 0
        self._row = 0
        self._nodes: list[np.ndarray] = []  # (3, n): columns, rows, whether a junction
        self._across: list[np.ndarray] = []  # (2, n): nodes at the left and right ends of horizontal segments
        self._down: list[np.ndarray] = []  # (2, n): nodes at the top and bottom ends of vertical segments
        self._corners: list[np.ndarray] = []  # (5, n): node and the regions around it
        # The top node of the vertical segment that continues in the next strip.
        self._open = np.full(width + 1, -1, np.int32)

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
        # Starts and ends of segments alternate along a row, and along a column, where some extend beyond the strip.
        self._across.append(np.stack([number[node & right], number[node & left]]))
        begins = np.concatenate([self._open[:, None], np.where(node & down, number, -1).T], axis=1)
        going = upright[-1]
        ends = np.concatenate([np.where(node & up, number, -1).T, np.where(going, -2, -1)[:, None]], axis=1)
        top, bottom = begins[begins != -1], ends[ends != -1]
        self._down.append(np.stack([top, bottom])[:, bottom >= 0])
        self._open = np.full(self._width + 1, -1, np.int32)
        self._open[going] = top[bottom == -2]
        # Lines start at junctions; closed lines at their top left corner.
        rows, columns = np.nonzero(node & (junction | (right & down)))
        around = [padded[rows + dy, columns + dx] for dy in (0, 1) for dx in (0, 1)]
        self._corners.append(np.stack([number[rows, columns], *around]))
        self._row += len(regions)

    def lines(self, context: Context) -> BoundaryLines:
        """All lines, after the last row was added. Their order and direction depend only on the map."""
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
    """The nodes of all lines, and the index of each line's first node, from the nodes at the ends of the horizontal and
    the vertical segments (2, n), and which nodes are junctions."""
    neighbours, directed = [], []  # of nodes; segments as start, end and axis
    for axis, segments in enumerate((across, down)):
        neighbour = np.full(len(junction), -1, np.int32)
        neighbour[segments[0]], neighbour[segments[1]] = segments[1], segments[0]
        neighbours.append(fast_items(neighbour))
        directed += [np.stack([*ends, np.full(len(ends[0]), axis)]) for ends in (segments, segments[::-1])]
    outgoing = np.concatenate(directed, axis=1)
    outgoing = outgoing[:, junction[outgoing[0]]]
    context.raise_if_cancelled()
    outgoing = outgoing[:, np.lexsort((outgoing[1], outgoing[0]))]
    context.raise_if_cancelled()
    # A segment that joins two junctions is traced once.
    outgoing = outgoing[:, ~junction[outgoing[1]] | (outgoing[0] < outgoing[1])]
    is_junction = fast_items(junction)
    seen = bytearray(len(junction))
    order, first = array("i"), array("q", [0])
    checked = 0

    def trace(start: int, node: int, axis: int) -> None:
        order.append(start)
        while True:
            order.append(node)
            if is_junction[node]:
                break
            seen[node] = 1
            if node == start:
                break
            axis = 1 - axis
            node = neighbours[axis][node]
        first.append(len(order))

    def starts() -> Iterable[tuple[int, int, int]]:
        yield from zip(*outgoing.tolist())
        turns = np.flatnonzero(~junction)
        for node in turns[np.frombuffer(seen, np.uint8)[turns] == 0].tolist():
            yield node, neighbours[0][node], 0

    for start, node, axis in starts():
        if not seen[node]:
            trace(start, node, axis)
        if len(order) - checked > _CANCEL_EVERY:
            checked = len(order)
            context.raise_if_cancelled()
    return np.array(order, np.int32), np.array(first, np.int64)


@dataclass(frozen=True)
class Rings:
    """Closed rings of lines, counter-clockwise around their region (y up).

    Attributes:
        steps: twice the number of a line, plus 1 if it is traversed backwards, ring after ring.
        first: index of each ring's first step, and last the number of steps (rings + 1,).
        region: of each ring (rings,), sorted; the outer ring of a region precedes its holes.
    """

    steps: np.ndarray
    first: np.ndarray
    region: np.ndarray


def assemble_rings(lines: BoundaryLines, wanted: np.ndarray) -> Rings:
    """Assembles lines into the rings of the wanted regions, bool (regions,). Where a region touches itself diagonally,
    rings turn right, so that every ring is simple."""
    line = np.arange(len(lines))
    step = np.concatenate([2 * line, 2 * line + 1])
    region = np.concatenate([lines.left, lines.right])
    start, end = lines.node.ravel(), lines.node[::-1].ravel()
    heading_at_start = np.concatenate([lines.heading[0], (lines.heading[1] + 2) % 4])
    heading_at_end = np.concatenate([lines.heading[1], (lines.heading[0] + 2) % 4])
    keep = (region >= 0) & wanted[region]
    step, region = step[keep], region[keep]
    leaving = np.lexsort((heading_at_start[keep], start[keep], region))
    arriving = np.lexsort(((heading_at_end[keep] + 3) % 4, end[keep], region))  # by the heading after a right turn
    following = np.empty(len(step), np.int64)
    following[arriving] = leaving
    order, first = _cycles(following)
    x, y = lines.x.astype(np.int64), lines.y.astype(np.int64)
    cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    cross[lines.first[1:] - 1] = 0  # between the end of a line and the start of the next
    area = np.add.reduceat(cross, lines.first[:-1]) if len(lines) else cross[:0]
    signed = np.where(step[order] % 2, 1, -1) * area[step[order] // 2]
    ring_area = np.add.reduceat(signed, first[:-1]) if len(order) else signed
    owner = region[order[first[:-1]]]
    ranked = np.lexsort((ring_area < 0, owner))  # the outer ring has a positive area
    lengths = np.diff(first)[ranked]
    new = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(first[:-1][ranked] - new[:-1], lengths) + np.arange(len(order))
    return Rings(step[order[source]], new, owner[ranked])


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation, concatenated, and the index of each one's first item."""
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

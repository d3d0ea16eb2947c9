"""Simpler lines that cross no other: what lay on one side of a line still does.

Douglas and Peucker 1973, on each line between regions once. What may go wrong then is seen as Saalfeld 1999 shows: a
chord is safe unless a corner of what remains lies between it and the line that it replaces. Chords that are not safe
are split like those that are too far off, until all are; so neither gaps nor overlaps arise, and nothing collapses.
All arithmetic is exact, as corners of pixels have whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clippan.core.context import Context
from clippan.segmentation.outlines import BoundaryLines

_CELL = 16  # pixels: edge of the cells that tell which corners are near a chord
_BATCH = 2**20  # corners, or pairs of a corner and a chord, that are looked at together


def kept_corners(lines: BoundaryLines, tolerance: float, context: Context) -> np.ndarray:
    """Which corners of the lines remain.

    Args:
        lines: all the lines of the map.
        tolerance: how far a line may move, in pixels; 0 keeps all.
        context: told the progress.

    Returns:
        bool (corners,); ends of lines are kept.
    """
    if tolerance == 0 or not len(lines):
        return np.ones(len(lines.x), bool)
    x, y = lines.x.astype(np.int64), lines.y.astype(np.int64)
    found = np.zeros(len(x), bool)
    found[lines.first[:-1]] = found[lines.first[1:] - 1] = True
    start, end = lines.first[:-1], lines.first[1:] - 1
    owner = np.repeat(np.arange(len(lines)), np.diff(lines.first))
    limit = tolerance * tolerance
    done = 0.0
    while len(start):
        while len(start):
            context.progress(done, "Simplifying outlines")
            long = end - start > 1
            start, end = start[long], end[long]
            middle, distance = _farthest(x, y, start, end, context)
            split = distance > limit
            start, middle, end = start[split], middle[split], end[split]
            found[middle] = True
            start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
        left = np.flatnonzero(found)
        same = owner[left[1:]] == owner[left[:-1]]
        start, end = left[:-1][same], left[1:][same]
        unsafe = _unsafe(x, y, start, end, left, context)
        start, end = start[unsafe], end[unsafe]
        middle, _ = _farthest(x, y, start, end, context)
        found[middle] = True
        start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
        done += (100 - done) / 3  # nobody knows how often
    return found


def _members(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For groups of these lengths: the group of each member, and its place in the group."""
    group = np.repeat(np.arange(len(lengths)), lengths)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _batches(lengths: np.ndarray, context: Context) -> Iterator[slice]:
    """Groups whose members are about as many as may be looked at together."""
    total = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        context.raise_if_cancelled()
        before = total[start - 1] if start else 0
        end = max(int(np.searchsorted(total, before + _BATCH)), start + 1)
        yield slice(start, end)
        start = end


def _farthest(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Of the corners between start and end (of which there are some), the first that is farthest from their chord, and
    its squared distance."""
    middle, distance = np.empty(len(start), np.int64), np.empty(len(start))
    inner = end - start - 1
    for part in _batches(inner, context):
        group, place = _members(inner[part])
        one, other = start[part], end[part]
        corner = one[group] + 1 + place
        found = _squared_distance(
            x[corner], y[corner], *(axis[ends][group] for ends in (one, other) for axis in (x, y))
        )
        first = np.cumsum(inner[part]) - inner[part]
        most = np.maximum.reduceat(found, first)
        hits = np.flatnonzero(found == most[group])
        hits = hits[np.unique(group[hits], return_index=True)[1]]
        middle[part], distance[part] = corner[hits], most
    return middle, distance


def _squared_distance(
    px: np.ndarray, py: np.ndarray, ax: np.ndarray, ay: np.ndarray, bx: np.ndarray, by: np.ndarray
) -> np.ndarray:
    """Squared distance of points from pieces a to b, which may be points themselves."""
    dx, dy, ex, ey = bx - ax, by - ay, px - ax, py - ay
    length = dx * dx + dy * dy
    along = dx * ex + dy * ey
    beside = (dx * ey - dy * ex).astype(float) ** 2 / np.maximum(length, 1)
    fx, fy = px - bx, py - by
    return np.where(along <= 0, ex * ex + ey * ey, np.where(along >= length, fx * fx + fy * fy, beside))


def _unsafe(
    x: np.ndarray,
    y: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    corners: np.ndarray,
    context: Context,
) -> np.ndarray:
    """Which chords (start to end, indices of corners) may not stay, as indices; never pieces of the original.

    Those between which and their line one of the corners that remain lies, or that lie on one; those of which two have
    the same ends, and those with one end.
    """
    low, high = np.minimum(_key(x, y, start), _key(x, y, end)), np.maximum(_key(x, y, start), _key(x, y, end))
    order = np.lexsort((high, low))
    twin = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    doubled = low == high  # a ring that is but a point
    doubled[order[1:][twin]] = doubled[order[:-1][twin]] = True
    chord = np.flatnonzero(end - start > 1)
    bad = doubled[chord]
    start, end = start[chord], end[chord]
    # Nothing lies between a chord and its line that is further off than the line.
    reach = _farthest(x, y, start, end, context)[1]
    # Corners by cells, and chords by the cells that they come near.
    wide = int(x.max()) // _CELL + 3
    cell = (y[corners] // _CELL + 1) * wide + x[corners] // _CELL + 1
    order = np.argsort(cell, kind="stable")
    corners, cell = corners[order], cell[order]
    for part in _batches(_extent(x, y, start, end), context):
        which, near = _cells(x, y, start[part], end[part], np.sqrt(reach[part]), wide)
        first, last = np.searchsorted(cell, near), np.searchsorted(cell, near, side="right")
        for piece in _batches(last - first, context):
            pair, place = _members((last - first)[piece])
            group, corner = which[piece][pair] + part.start, corners[first[piece][pair] + place]
            ends = [axis[side][group] for side in (start, end) for axis in (x, y)]
            px, py = x[corner], y[corner]
            close = _squared_distance(px, py, *ends) <= reach[group]
            close &= ((px != ends[0]) | (py != ends[1])) & ((px != ends[2]) | (py != ends[3]))
            group, corner = group[close], corner[close]
            between = _between(x, y, start[group], end[group], corner, context)
            bad[group[between]] = True
    return chord[bad]


def _key(x: np.ndarray, y: np.ndarray, corner: np.ndarray) -> np.ndarray:
    return y[corner] << 32 | x[corner]


def _extent(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """About how many cells a chord comes near, 9 for each of its pieces."""
    return 9 * (np.maximum(np.abs(x[end] - x[start]), np.abs(y[end] - y[start])) // _CELL + 1)


def _cells(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, reach: np.ndarray, wide: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chords, and the cells that lie within the reach of each (a few others too), each pair once."""
    number = _extent(x, y, start, end) // 9
    group, place = _members(number)
    boxes = []
    for axis in (x, y):
        begin, step = axis[start][group], ((axis[end] - axis[start]) / number)[group]
        one, other = begin + step * place, begin + step * (place + 1)
        low, high = np.minimum(one, other) - reach[group], np.maximum(one, other) + reach[group]
        boxes.append((np.floor(low / _CELL).astype(np.int64), np.floor(high / _CELL).astype(np.int64)))
    (left, right), (top, bottom) = boxes
    across, down = right - left + 1, bottom - top + 1
    box, place = _members(across * down)
    columns, rows = left[box] + place % across[box], top[box] + place // across[box]
    inside = (columns >= -1) & (columns < wide - 1) & (rows >= -1)
    keys = group[box] << 40 | (rows + 1) * wide + columns + 1
    keys = np.unique(keys[inside])
    return keys >> 40, keys & (1 << 40) - 1


def _between(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, corner: np.ndarray, context: Context
) -> np.ndarray:
    """Whether each corner lies in what a chord and its line enclose, or on the chord; ends of the chord do not count.

    By the parity of crossings of a ray to the right.
    """
    found = np.empty(len(corner), bool)
    pieces = end - start + 1
    for part in _batches(pieces, context):
        group, place = _members(pieces[part])
        begin, finish = start[part], end[part]
        one = begin[group] + place
        other = np.where(one == finish[group], begin[group], one + 1)  # the last piece is the chord
        px, py = x[corner[part]][group], y[corner[part]][group]
        ax, ay, bx, by = x[one], y[one], x[other], y[other]
        side = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        crosses = ((ay > py) != (by > py)) & ((side > 0) == (by > ay)) & (side != 0)
        odd = np.bincount(group, crosses, len(begin)) % 2 == 1
        chord = one == finish[group]
        on = chord & (side == 0) & (px >= np.minimum(ax, bx)) & (px <= np.maximum(ax, bx))
        on &= (py >= np.minimum(ay, by)) & (py <= np.maximum(ay, by))
        found[part] = odd | np.bincount(group, on, len(begin)).astype(bool)
    return found

"""Topology-preserving simplification: lines never cross.

Each line between regions is simplified once (Douglas and Peucker 1973). Conflicts are detected as by Saalfeld 1999: a
chord is safe unless a remaining corner lies between it and the line that it replaces. Unsafe chords are split like
those beyond the tolerance until all are safe, so that there are neither gaps nor overlaps and nothing collapses. The
arithmetic is exact, since the corners of pixels are integers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clippan.core.context import Context
from clippan.segmentation.outlines import BoundaryLines

_CELL = 16  # pixels: edge of the cells of the spatial index of corners
_BATCH = 2**20  # corners, or pairs of a corner and a chord, that are processed together


def kept_corners(lines: BoundaryLines, tolerance: float, context: Context) -> np.ndarray:
    """The corners that remain after simplification, bool (corners,); the ends of lines always do. The tolerance is how
    far a line may move, in pixels; 0 keeps all corners."""
    if tolerance == 0 or not len(lines):
        return np.ones(len(lines.x), bool)
    x, y = lines.x.astype(np.int64), lines.y.astype(np.int64)
    start, end = lines.first[:-1], lines.first[1:] - 1
    kept = np.zeros(len(x), bool)
    kept[start] = kept[end] = True
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
            kept[middle] = True
            start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
        corners = np.flatnonzero(kept)
        same = owner[corners[1:]] == owner[corners[:-1]]
        start, end = corners[:-1][same], corners[1:][same]
        unsafe = _unsafe(x, y, start, end, corners, context)
        start, end = start[unsafe], end[unsafe]
        middle, _ = _farthest(x, y, start, end, context)
        kept[middle] = True
        start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
        done += (100 - done) / 3  # the number of rounds is unknown
    return kept


def _members(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each member of groups with these lengths, and its position in the group."""
    group = np.repeat(np.arange(len(lengths)), lengths)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _batches(lengths: np.ndarray, context: Context) -> Iterator[slice]:
    """Slices of groups with about ``_BATCH`` members in total."""
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
    """Of the corners between start and end (at least one), the first that is farthest from their chord, and its squared
    distance."""
    middle, distance = np.empty(len(start), np.int64), np.empty(len(start))
    inner = end - start - 1
    for batch in _batches(inner, context):
        group, place = _members(inner[batch])
        one, other = start[batch], end[batch]
        corner = one[group] + 1 + place
        squared = _squared_distance(
            x[corner], y[corner], *(axis[ends][group] for ends in (one, other) for axis in (x, y))
        )
        first = np.cumsum(inner[batch]) - inner[batch]
        farthest = np.maximum.reduceat(squared, first)
        hits = np.flatnonzero(squared == farthest[group])
        hits = hits[np.unique(group[hits], return_index=True)[1]]
        middle[batch], distance[batch] = corner[hits], farthest
    return middle, distance


def _squared_distance(
    px: np.ndarray, py: np.ndarray, ax: np.ndarray, ay: np.ndarray, bx: np.ndarray, by: np.ndarray
) -> np.ndarray:
    """Squared distance of points from segments a to b, which may be points."""
    dx, dy, ex, ey = bx - ax, by - ay, px - ax, py - ay
    length = dx * dx + dy * dy
    along = dx * ex + dy * ey
    beside = (dx * ey - dy * ex).astype(float) ** 2 / np.maximum(length, 1)
    fx, fy = px - bx, py - by
    return np.where(along <= 0, ex * ex + ey * ey, np.where(along >= length, fx * fx + fy * fy, beside))


def _unsafe(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, corners: np.ndarray, context: Context
) -> np.ndarray:
    """Indices of the chords (from start to end, indices of corners) that have to be split; never original segments:
    those with a remaining corner on them or between them and their line, with the same ends as another, or closed."""
    low, high = np.minimum(_key(x, y, start), _key(x, y, end)), np.maximum(_key(x, y, start), _key(x, y, end))
    order = np.lexsort((high, low))
    twin = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    doubled = low == high  # a ring reduced to a point
    doubled[order[1:][twin]] = doubled[order[:-1][twin]] = True
    chord = np.flatnonzero(end - start > 1)
    bad = doubled[chord]
    start, end = start[chord], end[chord]
    # Only corners no farther from the chord than its line can lie between them.
    reach = _farthest(x, y, start, end, context)[1]
    # A spatial index: corners by cells, and chords by the cells near them.
    wide = int(x.max()) // _CELL + 3
    cell = (y[corners] // _CELL + 1) * wide + x[corners] // _CELL + 1
    order = np.argsort(cell, kind="stable")
    corners, cell = corners[order], cell[order]
    for batch in _batches(_cell_count(x, y, start, end), context):
        which, near = _cells(x, y, start[batch], end[batch], np.sqrt(reach[batch]), wide)
        first, last = np.searchsorted(cell, near), np.searchsorted(cell, near, side="right")
        for piece in _batches(last - first, context):
            pair, place = _members((last - first)[piece])
            group, corner = which[piece][pair] + batch.start, corners[first[piece][pair] + place]
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


def _cell_count(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """About how many cells are near a chord: 9 for each of its pieces."""
    return 9 * (np.maximum(np.abs(x[end] - x[start]), np.abs(y[end] - y[start])) // _CELL + 1)


def _cells(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, reach: np.ndarray, wide: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a chord and a cell within its reach, each once, with a few farther cells."""
    number = _cell_count(x, y, start, end) // 9
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
    """Whether each corner lies on a chord (without its ends) or in the area between it and its line, by the even-odd
    rule."""
    between = np.empty(len(corner), bool)
    pieces = end - start + 1
    for batch in _batches(pieces, context):
        group, place = _members(pieces[batch])
        begin, finish = start[batch], end[batch]
        one = begin[group] + place
        other = np.where(one == finish[group], begin[group], one + 1)  # the last piece is the chord
        px, py = x[corner[batch]][group], y[corner[batch]][group]
        ax, ay, bx, by = x[one], y[one], x[other], y[other]
        side = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        crosses = ((ay > py) != (by > py)) & ((side > 0) == (by > ay)) & (side != 0)
        odd = np.bincount(group, crosses, len(begin)) % 2 == 1
        chord = one == finish[group]
        on = chord & (side == 0) & (px >= np.minimum(ax, bx)) & (px <= np.maximum(ax, bx))
        on &= (py >= np.minimum(ay, by)) & (py <= np.maximum(ay, by))
        between[batch] = odd | np.bincount(group, on, len(begin)).astype(bool)
    return between

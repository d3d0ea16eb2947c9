"""What of a raster was ever written: sparse files, and mosaics with gaps, say where they hold nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
from osgeo import gdal

_DATA, _EMPTY = gdal.GDAL_DATA_COVERAGE_STATUS_DATA, gdal.GDAL_DATA_COVERAGE_STATUS_EMPTY
_CELLS = 1024  # along an edge of the map that says where there may be something


class Coverage:
    """Which pixels of some bands were written. What was not has no data, whatever value GDAL reads there.

    Most formats do not say it, and then everything counts as written. A user of the dataset's lock holds it.

    Args:
        bands: of one size; a pixel is written if it is in any of them.

    Attributes:
        whole: whether all of each band is written.
    """

    def __init__(self, bands: Sequence[gdal.Band]) -> None:
        self._bands = [band for band in bands if band is not None]
        self._width, self._height = self._bands[0].XSize, self._bands[0].YSize
        self.whole = any(_status([band], 0, 0, self._width, self._height) == _DATA for band in self._bands)
        self._edge = 0  # of a cell of the map, in pixels
        self._written_before: Optional[np.ndarray] = None  # how many cells above and to the left have something

    def written(self, x: int, y: int, width: int, height: int) -> Optional[np.ndarray]:
        """Which pixels of a window inside the raster are written, bool (height, width); None if all are."""
        if self.whole:
            return None
        status = _status(self._bands, x, y, width, height)
        if not status & _EMPTY:
            return None
        found = np.zeros((height, width), bool)
        if status & _DATA:
            across, down = self._bands[0].GetBlockSize()
            for top, left in itertools.product(_cuts(y, height, down), _cuts(x, width, across)):
                self._mark(found, x, y, left[0], top[0], left[1], top[1])
        return None if found.all() else found

    def _mark(self, found: np.ndarray, x: int, y: int, left: int, top: int, right: int, bottom: int) -> None:
        """Marks what is written of a part of the window at ``x``, ``y``, halving it until each part is uniform."""
        status = _status(self._bands, left, top, right - left, bottom - top)
        if not status & _EMPTY:
            found[top - y : bottom - y, left - x : right - x] = True
        elif status & _DATA and max(right - left, bottom - top) > 1:
            columns = _halves(left, right)
            for (first_row, last_row), (first, last) in itertools.product(_halves(top, bottom), columns):
                self._mark(found, x, y, first, first_row, last, last_row)

    def may_hold(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether anything may be written in a window, which may reach beyond the raster; never wrongly no."""
        if self.whole:
            return True
        if self._written_before is None:
            self._map()
        before, edge = self._written_before, self._edge
        assert before is not None
        rows, columns = before.shape[0] - 1, before.shape[1] - 1
        left, top = min(max(x, 0) // edge, columns), min(max(y, 0) // edge, rows)
        right, bottom = min(-(-max(x + width, 0) // edge), columns), min(-(-max(y + height, 0) // edge), rows)
        inside = before[bottom, right] - before[top, right] - before[bottom, left] + before[top, left]
        return bool(inside > 0)

    def bounds(self) -> tuple[int, int, int, int]:
        """The least window (x, y, width, height) outside which nothing is written, up to the map's cells."""
        if self.whole:
            return 0, 0, self._width, self._height
        if self._written_before is None:
            self._map()
        assert self._written_before is not None
        cells = np.diff(np.diff(self._written_before, axis=0), axis=1) > 0
        rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
        if not len(rows):
            return 0, 0, self._width, self._height
        left, top = int(columns[0]) * self._edge, int(rows[0]) * self._edge
        right = min((int(columns[-1]) + 1) * self._edge, self._width)
        bottom = min((int(rows[-1]) + 1) * self._edge, self._height)
        return left, top, right - left, bottom - top

    def _map(self) -> None:
        across, down = self._bands[0].GetBlockSize()
        block = max(across, down) if max(across, down) < max(self._width, self._height) else 1
        self._edge = max(block * math.ceil(max(self._width, self._height) / block / _CELLS), 1)
        rows, columns = -(-self._height // self._edge), -(-self._width // self._edge)
        cells = np.zeros((rows, columns), np.int64)
        waiting = [(0, 0, columns, rows)]
        while waiting:
            left, top, right, bottom = waiting.pop()
            x, y = left * self._edge, top * self._edge
            size = min(right * self._edge, self._width) - x, min(bottom * self._edge, self._height) - y
            status = _status(self._bands, x, y, *size)
            if not status & _DATA:
                continue
            if not status & _EMPTY or max(right - left, bottom - top) == 1:
                cells[top:bottom, left:right] = 1
                continue
            for (a, b), (c, d) in itertools.product(_halves(top, bottom), _halves(left, right)):
                waiting.append((c, a, d, b))
        self._written_before = np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _status(bands: Sequence[gdal.Band], x: int, y: int, width: int, height: int) -> int:
    """Flags: data if any band has some in the window, empty if no band has all of it."""
    flags = [band.GetDataCoverageStatus(x, y, width, height)[0] for band in bands]
    data = _DATA if any(flag & _DATA for flag in flags) else 0
    return data | (_EMPTY if all(flag & _EMPTY for flag in flags) else 0)


def _cuts(start: int, length: int, block: int) -> list[tuple[int, int]]:
    """Parts of an axis, from and to, between the borders of blocks."""
    borders = range((start // block + 1) * block, start + length, block)
    return list(zip([start, *borders], [*borders, start + length]))


def _halves(start: int, end: int) -> list[tuple[int, int]]:
    middle = (start + end) // 2
    return [(start, end)] if end - start < 2 else [(start, middle), (middle, end)]

"""What of a raster was ever written: sparse files, and mosaics with gaps, say where they hold nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.raster.tiles import Window

_DATA, _EMPTY = gdal.GDAL_DATA_COVERAGE_STATUS_DATA, gdal.GDAL_DATA_COVERAGE_STATUS_EMPTY
_HUGE_PIXELS = 2**30  # pixels
_Range = tuple[int, int]  # from and to, along an axis
_MAX_CELLS = 1024  # along an edge of the map that says where there may be something


@dataclass(frozen=True)
class OccupancyGrid:
    """Where a raster may hold data, on a coarse map of cells.

    Attributes:
        cell_size: edge of a cell in pixels.
        integral_image: non-empty cells above and to the left of each corner, int (rows + 1, columns + 1).
        width, height: of the raster, in pixels.
    """

    cell_size: int
    integral_image: np.ndarray
    width: int
    height: int

    def may_contain_data(self, window: Window) -> bool:
        """Whether a window, which may reach beyond the raster, may hold data; never wrongly False."""
        rows, columns = self.integral_image.shape[0] - 1, self.integral_image.shape[1] - 1
        left, top = min(max(window.x, 0) // self.cell_size, columns), min(max(window.y, 0) // self.cell_size, rows)
        right = min(-(-max(window.x + window.width, 0) // self.cell_size), columns)
        bottom = min(-(-max(window.y + window.height, 0) // self.cell_size), rows)
        corners = self.integral_image[[bottom, top, bottom, top], [right, right, left, left]]
        return bool(corners[0] - corners[1] - corners[2] + corners[3] > 0)

    @property
    def cells(self) -> np.ndarray:
        """Which cells hold something, bool (rows, columns)."""
        return np.diff(np.diff(self.integral_image, axis=0), axis=1) > 0

    @property
    def bounds(self) -> Window:
        """The smallest window of cells that holds all data; one pixel if there is none."""
        cells = self.cells
        rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
        if not len(rows):
            return Window(0, 0, 1, 1)
        left, top = int(columns[0]) * self.cell_size, int(rows[0]) * self.cell_size
        right = min((int(columns[-1]) + 1) * self.cell_size, self.width)
        bottom = min((int(rows[-1]) + 1) * self.cell_size, self.height)
        return Window(left, top, right - left, bottom - top)


class WrittenPixels:
    """Which pixels of some bands of one size were written; unwritten ones are nodata if the file says so.

    Where the format does not tell, or zeros may be meant (GDAL omits blocks of zeros from some files), all counts as
    written. In a huge raster unwritten blocks are nodata in any case, unless all are unwritten. Callers hold the
    dataset's lock.

    Args:
        nodata: whether GDAL reads nodata (a declared value, or 0) from unwritten blocks.

    Attributes:
        occupancy: where data may be; None if all counts as written.
        nodata_assumed: whether blocks are nodata although the file does not say so.
    """

    def __init__(self, bands: Sequence[gdal.Band], nodata: bool) -> None:
        self._bands = list(bands)
        self._all = Window(0, 0, bands[0].XSize, bands[0].YSize)
        self.occupancy: Optional[OccupancyGrid] = None
        self.nodata_assumed = False
        huge = self._all.width * self._all.height > _HUGE_PIXELS
        if not (nodata or huge) or any(_status([b], 0, 0, b.XSize, b.YSize) == _DATA for b in bands):
            return
        occupancy = _occupancy(self._bands)
        if nodata or occupancy.cells.any():
            self.occupancy, self.nodata_assumed = occupancy, not nodata

    def may_contain_data(self, window: Window) -> bool:
        return self.occupancy is None or self.occupancy.may_contain_data(window)

    @property
    def bounds(self) -> Window:
        return self._all if self.occupancy is None else self.occupancy.bounds

    def written_mask(self, window: Window) -> Optional[np.ndarray]:
        """Written pixels of a window inside the raster, bool (height, width); None if all are."""
        if self.occupancy is None:
            return None
        x, y, width, height = window.x, window.y, window.width, window.height
        status = _status(self._bands, x, y, width, height)
        if not status & _EMPTY:
            return None
        found = np.zeros((height, width), bool)
        if status & _DATA:
            across, down = self._bands[0].GetBlockSize()
            blocks = itertools.product(_block_ranges(y, height, down), _block_ranges(x, width, across))
            for left, top, right, bottom in _written_boxes(self._bands, blocks):
                found[top - y : bottom - y, left - x : right - x] = True
        return None if found.all() else found


def _occupancy(bands: Sequence[gdal.Band]) -> OccupancyGrid:
    width, height = bands[0].XSize, bands[0].YSize
    across, down = bands[0].GetBlockSize()
    block = max(across, down) if max(across, down) < max(width, height) else 1
    cell_size = block * math.ceil(max(width, height) / block / _MAX_CELLS)
    rows, columns = -(-height // cell_size), -(-width // cell_size)
    cells = np.zeros((rows, columns), np.int64)
    for left, top, right, bottom in _written_boxes(bands, [((0, rows), (0, columns))], cell_size):
        cells[top:bottom, left:right] = 1
    return OccupancyGrid(cell_size, np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0))), width, height)


def _written_boxes(
    bands: Sequence[gdal.Band], boxes: Iterable[tuple[_Range, _Range]], unit: int = 1
) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of what holds data in boxes of rows and columns of ``unit`` pixels, which are halved
    until they are uniform or one unit."""
    waiting = list(boxes)
    while waiting:
        (top, bottom), (left, right) = waiting.pop()
        x, y = left * unit, top * unit
        status = _status(bands, x, y, min(right * unit, bands[0].XSize) - x, min(bottom * unit, bands[0].YSize) - y)
        if status & _DATA and (not status & _EMPTY or max(right - left, bottom - top) == 1):
            yield left, top, right, bottom
        elif status & _DATA:
            waiting += itertools.product(_halves(top, bottom), _halves(left, right))


def _status(bands: Sequence[gdal.Band], x: int, y: int, width: int, height: int) -> int:
    """Flags: data if any band has some in the window, empty if no band has all of it."""
    flags = [band.GetDataCoverageStatus(x, y, width, height)[0] for band in bands]
    data = _DATA if any(flag & _DATA for flag in flags) else 0
    return data | (_EMPTY if all(flag & _EMPTY for flag in flags) else 0)


def _block_ranges(start: int, length: int, block: int) -> list[_Range]:
    """Parts of an axis, from and to, between the borders of blocks."""
    borders = range((start // block + 1) * block, start + length, block)
    return list(zip([start, *borders], [*borders, start + length]))


def _halves(start: int, end: int) -> list[_Range]:
    middle = (start + end) // 2
    return [(start, end)] if end - start < 2 else [(start, middle), (middle, end)]

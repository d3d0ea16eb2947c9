"""A panchromatic and a multispectral raster of one place, read on PAN's grid."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.threads import in_order
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import MS, PAN, Alignment, AxisTransform, Grid, align
from clippan.raster.nodata import as_pixel_value, is_fill_value
from clippan.raster.products import is_panchromatic, is_quality, panchromatic
from clippan.raster.regrid import reproject_around, resample_to_finest
from clippan.raster.source import Source, band_infos, open_dataset, open_datasets, sensor_texts
from clippan.raster.tiles import Window, tiles

_SAME_SIZE, _COARSER_SIZE = 1.05, 1.5  # of PAN's pixel: the size of one that may be PAN, and of one that is not
_SCAN_WINDOW = 2048  # pixels, edge of the windows in a search for missing pixels


@dataclass(frozen=True)
class Pair:
    """Two aligned sources. PAN's windows are in output pixels, MS's in multispectral pixels.

    Attributes:
        pan: the fine source: one panchromatic band, or several bands that coarse ones are sharpened with.
        ms: the coarse source.
        sensor_texts: file names and metadata that may reveal the sensor.
        notes: sentences for the user about decisions on the files.
        band_shifts: (x, y) of each band from the axes, in output pixels; empty if all are 0.
    """

    pan: Source
    ms: Source
    alignment: Alignment
    sensor_texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    band_shifts: tuple[tuple[float, float], ...] = ()

    @property
    def grid(self) -> Grid:
        return self.alignment.grid

    @property
    def x_axis(self) -> AxisTransform:
        return self.alignment.x_axis

    @property
    def y_axis(self) -> AxisTransform:
        return self.alignment.y_axis

    @property
    def ratio(self) -> float:
        """MS over PAN pixel size, the geometric mean of both axes."""
        return math.sqrt(self.x_axis.ratio * self.y_axis.ratio)

    def shifted(self, x: float, y: float, band_shifts: Sequence[tuple[float, float]] = ()) -> Pair:
        """The pair with MS moved right and down by (x, y) output pixels, and each band by its offset besides. The
        output's grid stays; at borders that MS has moved away from, its last samples repeat."""
        moved = replace(self.alignment, x_axis=self.x_axis.shifted(x), y_axis=self.y_axis.shifted(y))
        own = tuple(band_shifts) if any(shift != (0, 0) for shift in band_shifts) else ()
        return replace(self, alignment=moved, band_shifts=own)

    def ms_overlap(self) -> Window:
        """The window of all samples of MS whose centres lie in the output."""
        spans = []
        axes = (self.x_axis, self.grid.width, self.ms.grid.width), (self.y_axis, self.grid.height, self.ms.grid.height)
        for axis, pixels, limit in axes:
            first = max(0, math.ceil(axis.pan_to_ms(-0.5)))
            spans.append((first, max(min(limit, math.floor(axis.pan_to_ms(pixels - 0.5)) + 1) - first, 1)))
        (x, width), (y, height) = spans
        return Window(x, y, width, height)

    def ms_data_overlap(self) -> Window:
        """The same, cut to where both rasters hold something."""
        pan = self.pan.bounds
        x, y = pan.x - self.alignment.column, pan.y - self.alignment.row
        seen = self._ms_window_covering(Window(x, y, pan.width, pan.height))
        return self.ms_overlap().intersection(self.ms.bounds).intersection(seen)

    def ms_windows(self, size: int) -> list[Window]:
        """Square windows of ``size`` that cover ``ms_overlap``, without those where MS holds no data."""
        return [window for window in self.ms_overlap().tiles(size) if self.ms.may_contain_data(window)]

    @property
    def sparse(self) -> bool:
        """Whether parts of a raster were never written."""
        return not (self.pan.fully_written and self.ms.fully_written)

    def may_contain_data(self, window: Window) -> bool:
        """Whether some pixel of a window, in output pixels, may be valid in both rasters; quick."""
        x, y = window.x + self.alignment.column, window.y + self.alignment.row
        on_pan = Window(x, y, window.width, window.height)
        return self.pan.may_contain_data(on_pan) and self.ms.may_contain_data(self._ms_window_covering(window))

    def _ms_window_covering(self, window: Window) -> Window:
        """The samples of MS whose pixels touch a window in output pixels, and their neighbours."""
        spans = []
        for axis, first, length in ((self.x_axis, window.x, window.width), (self.y_axis, window.y, window.height)):
            start = math.floor((first - axis.origin) / axis.ratio) - 1
            spans.append((start, math.ceil((first + length - axis.origin) / axis.ratio) + 1 - start))
        (x, width), (y, height) = spans
        return Window(x, y, width, height)

    def read_pan(self, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """PAN (height, width) and its validity or None; the window may reach beyond the output's grid."""
        values, valid = self.read_fine(window)
        return values[0], None if valid is None else valid[0]

    def read_fine(self, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """All fine bands (bands, height, width) and their validity or None; the window may reach beyond the output's
        grid."""
        return self.pan.read(
            window.x + self.alignment.column, window.y + self.alignment.row, window.width, window.height
        )

    def read_ms(self, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """MS (bands, height, width) and its validity or None; the window may reach beyond the raster."""
        return self.ms.read(window.x, window.y, window.width, window.height)

    def output_nodata(self, threads: int, context: Context) -> Optional[float]:
        """The nodata value of MS; if it has none but pixels may be invalid, NaN or the smallest integer."""
        ms = self.ms
        if ms.nodata is not None:
            return ms.nodata
        if not ms.may_have_invalid and not (self.pan.may_have_invalid and self._pan_has_holes(threads, context)):
            return None
        if np.issubdtype(ms.dtype, np.floating):
            return float("nan")
        return int(np.iinfo(ms.dtype).min)

    def _pan_has_holes(self, threads: int, context: Context) -> bool:
        """Whether any pixel of PAN is invalid."""
        if not self.pan.fully_written:
            return True
        windows = tiles(self.grid.width, self.grid.height, _SCAN_WINDOW)
        found = in_order(lambda window: self.read_fine(window)[1] is not None, windows, threads)
        with contextlib.closing(found):
            for number, (_, holes) in enumerate(found, 1):
                if holes:
                    return True
                context.progress(100 * number / len(windows), "Looking for missing pixels")
        return False


@contextlib.contextmanager
def open_pair(pan: str, ms: Sequence[str], bands: Sequence[int] = (), nodata: Optional[float] = None) -> Iterator[Pair]:
    """Opens and aligns a pair: MS rasters are reprojected to PAN's CRS (cubic, on the fly), several to the finest grid.
    Raises ClippanError if the two cannot be fused.

    Args:
        pan: data source of one band, maybe with an alpha band as its mask.
        ms: one data source, or several to stack.
        bands: of the stack, from 1; empty for all.
        nodata: overrides declared values where the type can hold it.
    """
    pan = panchromatic(pan)
    pan_dataset, opened = open_dataset(pan, PAN), open_datasets(ms, MS, bands)
    alike = _pan_sized_notes(pan, Grid.of(pan_dataset), ms, opened)
    datasets = reprojected_to(Grid.of(pan_dataset), opened, nodata)
    texts = [text for dataset, path in zip([*opened, pan_dataset], [*ms, pan]) for text in sensor_texts(dataset, path)]
    with (
        Source([pan_dataset], PAN, (), nodata) as pan_source,
        Source(resample_to_finest(datasets, MS, nodata), MS, bands, nodata, band_infos(opened)) as ms_source,
    ):
        if pan_source.available_bands != 1:
            raise ClippanError(
                "The {raster} has {count} bands and should have one; choose the panchromatic band's raster, and check "
                "whether the two were swapped.",
                raster=PAN,
                count=pan_source.available_bands,
            )
        refuse_quality_bands(ms_source)
        both = (pan_source, ms_source)
        refuse_impossible_nodata(nodata, both)
        nodata_notes = [source.nodata_note for source in both if source.nodata_note]
        notes = (*alpha_notes([pan_dataset, *opened]), *alike, *nodata_notes)
        yield Pair(pan_source, ms_source, align(pan_source.grid, ms_source.grid), tuple(texts), notes)


def refuse_quality_bands(source: Source) -> None:
    """Raises ClippanError if a band holds codes, by its name."""
    codes = next((info.description for info in source.infos if is_quality(info.description)), "")
    if codes:
        raise ClippanError(
            "The {raster} has {band}, a quality band or mask, whose codes cannot be sharpened; leave it out, or "
            "choose bands (--bands).",
            raster=source.what,
            band=codes,
        )


def refuse_impossible_nodata(nodata: Optional[float], sources: Sequence[Source]) -> None:
    """Raises ClippanError if no pixel of any source can have a nodata value that was asked for."""
    types = [source.dtype for source in sources]
    if nodata is None or any(as_pixel_value(nodata, own) is not None or is_fill_value(nodata, own) for own in types):
        return
    raise ClippanError(
        "No pixel can have the nodata value {nodata:g}, as the rasters are {dtype}; choose another.",
        nodata=nodata,
        dtype=types[-1],
    )


def _pan_sized_notes(pan: str, grid: Grid, ms: Sequence[str], datasets: Sequence[gdal.Dataset]) -> list[str]:
    """A sentence about each of several multispectral rasters that has PAN's pixels while others are coarser; raises
    ClippanError if the panchromatic band is among them, by its file or its name."""
    sizes = [_relative_pixel_size(Grid.of(dataset), grid) for dataset in datasets]
    pair_notes: list[str] = []
    for path, dataset, size in zip(ms, datasets, sizes) if len(ms) > 1 else ():
        if os.path.realpath(path) == os.path.realpath(pan) or is_panchromatic(path):
            raise ClippanError("{path} is the panchromatic band; leave it out of the multispectral rasters.", path=path)
        if dataset.RasterCount == 1 and size < _SAME_SIZE and max(sizes) > _COARSER_SIZE:
            pair_notes.append(
                Message(
                    "{path} has the pixel size of the panchromatic raster, so all bands are resampled to it before "
                    "they are sharpened; leave it out if it is the panchromatic band.",
                    path=path,
                )
            )
    return pair_notes


def _relative_pixel_size(grid: Grid, pan: Grid) -> float:
    """Pixel size relative to PAN's; by pixel counts where grids have no place or different units."""
    one, other = grid.geotransform, pan.geotransform
    if one and other and grid.shares_crs(pan):
        return math.sqrt(abs(one[1] * one[5] - one[2] * one[4]) / abs(other[1] * other[5] - other[2] * other[4]))
    return math.sqrt(pan.width * pan.height / (grid.width * grid.height))


def reprojected_to(
    pan: Grid, datasets: Sequence[gdal.Dataset], nodata: Optional[float], fine: str = PAN, coarse: str = MS
) -> list[gdal.Dataset]:
    """Datasets in the CRS of a grid, around it (cubic, on the fly); ``fine`` and ``coarse`` are how sentences call grid
    and datasets. Raises ClippanError if only one has a CRS."""
    found: list[gdal.Dataset] = []
    for dataset in datasets:
        grid = Grid.of(dataset)
        if grid.shares_crs(pan):
            found.append(dataset)
            continue
        for crs, what in ((pan.crs, fine), (grid.crs, coarse)):
            if not crs:
                raise ClippanError(
                    "The {what} has no CRS but the other has; assign one (Raster > Projections > Assign projection).",
                    what=what,
                )
        found += reproject_around(dataset, coarse, pan, nodata)
    return found

"""A panchromatic and a multispectral raster of one place, read on PAN's grid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.errors import ClippanError
from clippan.raster.grid import Alignment, Axis, Grid, align
from clippan.raster.source import Source, open_dataset, stack
from clippan.raster.tiles import Window

PAN = "panchromatic raster"
MS = "multispectral raster"


@dataclass(frozen=True)
class Pair:
    """Two aligned sources. Windows of PAN are in output pixels, windows of MS in multispectral pixels.

    Attributes:
        pan, ms: the sources.
        hints: what may tell the sensor: file names and metadata values.
        grid: the output's grid: PAN's pixels whose centres lie inside MS.
        x, y: the multispectral axes on it.
    """

    pan: Source
    ms: Source
    alignment: Alignment
    hints: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The output's grid."""
        return self.alignment.grid

    @property
    def x(self) -> Axis:
        """The multispectral columns on the output's grid."""
        return self.alignment.x

    @property
    def y(self) -> Axis:
        """The multispectral rows on the output's grid."""
        return self.alignment.y

    def read_pan(self, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """PAN (height, width) and its validity or None; the window may reach beyond the output's grid."""
        values, valid = self.pan.read(
            window.x + self.alignment.column, window.y + self.alignment.row, window.width, window.height
        )
        return values[0], None if valid is None else valid[0]

    def read_ms(self, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """MS (bands, height, width) and its validity or None; the window may reach beyond the raster."""
        return self.ms.read(window.x, window.y, window.width, window.height)


@contextlib.contextmanager
def open_pair(pan: str, ms: Sequence[str], bands: Sequence[int] = (), nodata: Optional[float] = None) -> Iterator[Pair]:
    """Opens and aligns a pair.

    An MS raster in another CRS is reprojected on the fly (cubic) to PAN's.

    Args:
        pan: data source of one band (an alpha band besides is its mask).
        ms: one data source, or several to stack.
        bands: which bands of the stack, from 1; empty means all.
        nodata: overrides the declared nodata values of both.

    Raises:
        ClippanError: one sentence for each way in which the two cannot be fused.
    """
    pan_dataset, ms_dataset = open_dataset(pan, PAN), stack(ms, MS)
    hints = (*_hints(ms_dataset, ms), *_hints(pan_dataset, [pan]))
    pan_grid, ms_grid = Grid.of(pan_dataset), Grid.of(ms_dataset)
    if not pan_grid.shares_crs(ms_grid):
        for grid, what in ((pan_grid, PAN), (ms_grid, MS)):
            if not grid.crs:
                raise ClippanError(
                    f"The {what} has no CRS but the other has; assign one (Raster > Projections > Assign projection)."
                )
        ms_dataset = _reproject(ms_dataset, pan_grid, nodata)
    with (
        Source(pan_dataset, PAN, (), nodata) as pan_source,
        Source(ms_dataset, MS, bands, nodata) as ms_source,
    ):
        if pan_source.total != 1:
            raise ClippanError(
                f"The {PAN} has {pan_source.total} bands and should have one; choose the panchromatic band's raster."
            )
        yield Pair(pan_source, ms_source, align(pan_source.grid, ms_source.grid), hints)


def _reproject(dataset: gdal.Dataset, target: Grid, nodata: Optional[float]) -> gdal.Dataset:
    try:
        return gdal.Warp(
            "",
            dataset,
            format="VRT",
            dstSRS=target.crs,
            resampleAlg="cubic",
            srcNodata=nodata,
            # Around the rotated picture there is nothing; without a nodata value only alpha can say so.
            dstAlpha=nodata is None and dataset.GetRasterBand(1).GetNoDataValue() is None,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ClippanError(f"The {MS} cannot be reprojected to the panchromatic one's CRS ({reason}).") from error


def _hints(dataset: gdal.Dataset, paths: Sequence[str]) -> list[str]:
    texts = [path.replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
    for domain in ("", "IMAGERY", "IMD"):
        texts += (dataset.GetMetadata(domain) or {}).values()
    return texts

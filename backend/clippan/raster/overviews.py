"""Overviews of sparse rasters, in the time that what is in them takes: GDAL would go through all that is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Callable

from osgeo import gdal

from clippan.raster.coverage import WrittenPixels
from clippan.raster.tiles import tiles

_BLOCK_EDGE = 4096  # pixels of what is reduced at a time, or the coarsest level where that is more


def build_sparse_overviews(
    dataset: gdal.Dataset,
    levels: Sequence[int],
    resampling: str,
    options: Sequence[str],
    callback: Callable[[float, str, object], int],
) -> None:
    """Builds overviews of the written parts; elsewhere they stay unwritten. Raises RuntimeError if GDAL could not
    write, or the callback stopped it.

    Args:
        dataset: a flushed GeoTIFF open for writing.
        levels: ascending powers of 2.
        resampling: one that reads each pixel once, such as AVERAGE or MODE.
        options, callback: of GDAL's BuildOverviews.
    """
    dataset.BuildOverviews("NONE", list(levels), options=[*options, "SPARSE_OK=TRUE"])
    numbers = range(1, dataset.RasterCount + 1)
    coverage = WrittenPixels([dataset.GetRasterBand(number) for number in numbers], nodata=True)
    edge = max(_BLOCK_EDGE, levels[-1])
    windows = [w for w in tiles(dataset.RasterXSize, dataset.RasterYSize, edge) if coverage.may_contain_data(w)]
    for done, (window, number) in enumerate(itertools.product(windows, numbers), 1):
        place = [window.x, window.y, window.width, window.height]
        reduced = gdal.Translate("", dataset, format="MEM", bandList=[number], srcWin=place)
        reduced.BuildOverviews(resampling, list(levels))
        for position, level in enumerate(levels):
            values = reduced.GetRasterBand(1).GetOverview(position).ReadAsArray()
            overview = dataset.GetRasterBand(number).GetOverview(position)
            overview.WriteArray(values, window.x // level, window.y // level)
        if not callback(done / (len(windows) * len(numbers)), "", None):
            raise RuntimeError("stopped")

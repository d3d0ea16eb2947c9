"""Rasters on different grids, brought to one on the fly.

All warps of the engine are made here, by horizontal coordinate systems: see ``grid.horizontal_crs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from osgeo import gdal, gdal_array

from clippan.core.errors import ClippanError, one_line
from clippan.raster.grid import Grid, centres_inside, horizontal_crs, relative_axes
from clippan.raster.nodata import band_nodata
from clippan.raster.products import is_categorical, is_quality
from clippan.raster.source import image_bands

_MAX_SHIFT = 0.01  # of a pixel: grids that differ by more are resampled
_MARGIN = 8  # pixels read around PAN: more than a cubic kernel reaches


def reproject_around(dataset: gdal.Dataset, what: str, pan: Grid, nodata: Optional[float]) -> list[gdal.Dataset]:
    """A raster in PAN's CRS, cut around PAN (cubic); several rasters where one could not mark invalid pixels."""
    try:
        # The whole raster's pixel size need not be that around PAN: think of a map of the world.
        bounds = _bounds_around(pan, Grid.of(warp("", dataset, pan.crs, "near")))
        where: dict[str, Any] = {"outputBounds": bounds} if bounds else {}
        return [_warp(part, nodata, pan.crs, **where) for part in _split_by_nodata(dataset, nodata)]
    except RuntimeError as error:
        raise ClippanError(
            "The {what} cannot be reprojected to the CRS of the other; check its own CRS ({reason}).",
            what=what,
            reason=one_line(error),
        ) from error


def resample_to_finest(datasets: Sequence[gdal.Dataset], what: str, nodata: Optional[float]) -> list[gdal.Dataset]:
    """Rasters of one CRS on the finest one's grid, cut to their common extent: cropped where pixels match, else cubic.
    Raises ClippanError if they do not overlap, or their grids cannot be matched."""
    grids = [Grid.of(dataset) for dataset in datasets]
    if all(coincide(grids[0], grid) for grid in grids[1:]):
        return list(datasets)
    if all(grid.geotransform is None for grid in grids):
        raise ClippanError(
            "The files of the {what} have no georeference and differ in size; use rasters of one size.", what=what
        )
    if any(grid.geotransform is None for grid in grids):
        raise ClippanError(
            "Only some files of the {what} have a georeference; add it to all of them (gdal_translate).", what=what
        )
    if not all(_is_north_up(grid) for grid in grids):
        raise ClippanError(
            "The files of the {what} have different grids that are not all north up; warp them to one grid first "
            "(gdalwarp).",
            what=what,
        )
    target = _common_grid(grids, what)
    return [part for dataset in datasets for part in _cut_or_warp(dataset, target, nodata)]


def resample_to_grid(dataset: gdal.Dataset, what: str, target: Grid, nodata: Optional[float]) -> list[gdal.Dataset]:
    """A raster of any CRS and resolution on a grid (cubic unless its pixels match), invalid where it does not reach;
    several rasters where a single one could not mark invalid pixels. Raises ClippanError if its CRS cannot be
    transformed, or the grid is not north-up."""
    grid = Grid.of(dataset)
    if coincide(grid, target) and grid.shares_crs(target):
        return [dataset]
    if target.geotransform is None or grid.geotransform is None:
        raise ClippanError(
            "The {what} differs in size from the others and has no georeference to align it by; add one.", what=what
        )
    if not _is_north_up(target):
        raise ClippanError(
            "The {what} has another grid than the first raster, which is not north up; warp both to one grid "
            "(gdalwarp).",
            what=what,
        )
    if grid.shares_crs(target):
        return _cut_or_warp(dataset, target, nodata)
    if not (grid.crs and target.crs):
        raise ClippanError(
            "The {what} or one of the other rasters has no CRS; assign one (gdal_edit -a_srs).", what=what
        )
    try:
        return [_warp(part, nodata, target.crs, **warp_extent(target)) for part in _split_by_nodata(dataset, nodata)]
    except RuntimeError as error:
        raise ClippanError(
            "The {what} cannot be reprojected; check its CRS ({reason}).", what=what, reason=one_line(error)
        ) from error


def _bounds_around(pan: Grid, ms: Grid) -> Optional[list[float]]:
    """Left, bottom, right, top of the part of MS around PAN, with a margin; None if there is none."""
    if pan.geotransform is None:
        return None
    corners = [(0, 0), (pan.width, 0), (0, pan.height), (pan.width, pan.height)]
    xs, ys = zip(*(gdal.ApplyGeoTransform(pan.geotransform, *corner) for corner in corners))
    left, dx, _, top, _, dy = _geotransform(ms)
    margin_x, margin_y = _MARGIN * abs(dx), _MARGIN * abs(dy)
    bounds = [
        max(min(xs) - margin_x, left),
        max(min(ys) - margin_y, top + ms.height * dy),
        min(max(xs) + margin_x, left + ms.width * dx),
        min(max(ys) + margin_y, top),
    ]
    return bounds if bounds[0] < bounds[2] and bounds[1] < bounds[3] else None


def coincide(one: Grid, other: Grid) -> bool:
    """Whether two grids of one CRS have the same pixels."""
    if (one.width, one.height) != (other.width, other.height):
        return False
    if one.geotransform is None or other.geotransform is None:
        return one.geotransform == other.geotransform
    return other.pixel_offset_in(one, _MAX_SHIFT) == (0, 0)


def _common_grid(grids: Sequence[Grid], what: str) -> Grid:
    """The finest grid, cut to its pixels whose centres lie in all the others."""
    target = min(grids, key=lambda grid: abs(_geotransform(grid)[1] * _geotransform(grid)[5]))
    for grid in grids:
        x, y = relative_axes(target, grid, what, what)
        left, right = centres_inside(x, grid.width, target.width)
        top, bottom = centres_inside(y, grid.height, target.height)
        if right <= left or bottom <= top:
            raise ClippanError("The files of the {what} do not overlap; check that all show the same place.", what=what)
        target = target.cropped(left, top, right, bottom)
    return target


def _is_north_up(grid: Grid) -> bool:
    g = _geotransform(grid)
    return not (g[2] or g[4] or g[5] > 0)


def _geotransform(grid: Grid) -> tuple[float, ...]:
    assert grid.geotransform is not None
    return grid.geotransform


def _cut_or_warp(dataset: gdal.Dataset, target: Grid, nodata: Optional[float]) -> list[gdal.Dataset]:
    grid = Grid.of(dataset)
    if coincide(grid, target):
        return [dataset]
    offset = target.pixel_offset_in(grid, _MAX_SHIFT)
    if offset is not None:
        return [gdal.Translate("", dataset, format="VRT", srcWin=[*offset, target.width, target.height])]
    return [_warp(part, nodata, target.crs, **warp_extent(target)) for part in _split_by_nodata(dataset, nodata)]


def warp_extent(grid: Grid) -> dict[str, Any]:
    """The options of a warp whose result has just the pixels of a north-up grid."""
    left, dx, _, top, _, dy = _geotransform(grid)
    bounds = [left, top + grid.height * dy, left + grid.width * dx, top]
    return {"outputBounds": bounds, "width": grid.width, "height": grid.height}


def _split_by_nodata(dataset: gdal.Dataset, nodata: Optional[float]) -> list[gdal.Dataset]:
    """The dataset, or its bands one by one if only some of them have a nodata value, or are amounts."""
    numbers = image_bands(dataset)
    codes = {is_quality(dataset.GetRasterBand(number).GetDescription()) for number in numbers}
    values = [_source_nodata(dataset.GetRasterBand(number), nodata) for number in numbers]
    if len(codes) == 1 and len({value is None for value in values}) == 1:
        return [dataset]
    alpha = sorted(set(range(1, dataset.RasterCount + 1)) - set(numbers))
    return [gdal.Translate("", dataset, format="VRT", bandList=[number, *alpha]) for number in numbers]


def _source_nodata(band: gdal.Band, override: Optional[float]) -> Optional[float]:
    value = band_nodata(band, override)
    floating = np.issubdtype(gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType), np.floating)
    return math.nan if value is None and floating else value


def _warp(dataset: gdal.Dataset, nodata: Optional[float], crs: str, **where: Any) -> gdal.Dataset:
    values = [_source_nodata(dataset.GetRasterBand(number), nodata) for number in image_bands(dataset)]
    none = values[0] is None
    return warp(
        "",
        dataset,
        crs,
        "near" if is_categorical(dataset) else "cubic",
        srcNodata="None" if none else " ".join(str(value) for value in values),
        # Around the warped picture there is nothing; without a nodata value only alpha can say so.
        dstAlpha=none,
        **where,
    )


def warp(target: str, dataset: gdal.Dataset, crs: str, resampling: str, **options: Any) -> gdal.Dataset:
    """A virtual raster of a dataset on another grid; vertical coordinate systems change no value. Raises RuntimeError
    if GDAL fails.

    Args:
        target: the file to write; empty for one in memory.
        crs: of the target; where either CRS is unknown, coordinates are taken as they are.
        resampling: cubic for amounts, near for codes.
        options: more of gdal.WarpOptions.
    """
    own, there = horizontal_crs(Grid.of(dataset).crs), horizontal_crs(crs)
    return gdal.Warp(
        target,
        dataset,
        format="VRT",
        srcSRS=own or there or None,
        dstSRS=there or own or None,
        resampleAlg=resampling,
        warpOptions=["UNIFIED_SRC_NODATA=NO"],  # a pixel may be missing in some bands only
        **options,
    )

"""Pixels of a grid: those that a geometry covers, and windows that hold given ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import numpy as np
from osgeo import gdal, ogr

from clippan.core.errors import ClippanError
from clippan.raster.grid import Grid
from clippan.raster.tiles import Window

_SQUARE = 64  # edge in pixels of the squares for which the presence of pixels is recorded


def envelope_corners(geometry: ogr.Geometry, grid: Grid) -> np.ndarray:
    """Columns and rows (4, 2) of the corners of a geometry's envelope, as real numbers."""
    inverse = gdal.InvGeoTransform(grid.geotransform)
    west, east, south, north = geometry.GetEnvelope()
    return np.array([gdal.ApplyGeoTransform(inverse, x, y) for x in (west, east) for y in (south, north)])


def covered_pixels(geometry: ogr.Geometry, grid: Grid, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels whose centres lie in a polygon, or that contain a point.

    Raises:
        ClippanError: the geometry, from the file ``path``, is neither a polygon nor a point.
    """
    kind = ogr.GT_Flatten(geometry.GetGeometryType())
    if kind in (ogr.wkbPoint, ogr.wkbMultiPoint):
        inverse = gdal.InvGeoTransform(grid.geotransform)
        points = ogr.ForceToMultiPoint(geometry)
        vertices = [points.GetGeometryRef(number).GetPoint_2D() for number in range(points.GetGeometryCount())]
        pixels = np.floor([gdal.ApplyGeoTransform(inverse, *vertex) for vertex in vertices]).astype(int)
        pixels = pixels[((pixels >= 0) & (pixels < (grid.width, grid.height))).all(axis=1)]
        return pixels[:, 1], pixels[:, 0]
    if kind not in (ogr.wkbPolygon, ogr.wkbMultiPolygon):
        raise ClippanError(
            "The samples {path} contain other geometries than points and polygons ({geometry}); remove them.",
            path=path,
            geometry=geometry.GetGeometryName(),
        )
    corners = envelope_corners(geometry, grid)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), (grid.width, grid.height)).tolist()
    if left >= right or top >= bottom:
        return np.empty(0, int), np.empty(0, int)
    target = gdal.GetDriverByName("MEM").Create("", right - left, bottom - top, 1, gdal.GDT_Byte)
    target.SetGeoTransform(grid.cropped(left, top, right, bottom).geotransform)
    holder = ogr.GetDriverByName("Memory").CreateDataSource("")
    layer = holder.CreateLayer("")
    feature = ogr.Feature(layer.GetLayerDefn())
    feature.SetGeometry(geometry)
    layer.CreateFeature(feature)
    gdal.RasterizeLayer(target, [1], layer, burn_values=[1])
    rows, columns = np.nonzero(target.ReadAsArray())
    return rows + top, columns + left


def squares_with_pixels(
    rows: np.ndarray, columns: np.ndarray, grid: Grid, size: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """The squares of ``size`` pixels, cut at the far edges, that hold pixels (n,) of a grid, each with the indices of
    its pixels."""
    squares = rows // size * (grid.width // size + 1) + columns // size
    order = np.argsort(squares, kind="stable")
    for inside in np.split(order, np.flatnonzero(np.diff(squares[order])) + 1):
        x, y = (int(numbers[inside[0]]) // size * size for numbers in (columns, rows))
        yield Window(x, y, min(size, grid.width - x), min(size, grid.height - y)), inside


def proximity_test(rows: np.ndarray, columns: np.ndarray, grid: Grid) -> Callable[[Window], bool]:
    """Whether a window of a grid may lie near one of its pixels (n,): a function of the window."""
    occupied = np.zeros((grid.height // _SQUARE + 1, grid.width // _SQUARE + 1), bool)
    occupied[rows // _SQUARE, columns // _SQUARE] = True

    def near(window: Window) -> bool:
        down = slice(window.y // _SQUARE, (window.y + window.height - 1) // _SQUARE + 1)
        across = slice(window.x // _SQUARE, (window.x + window.width - 1) // _SQUARE + 1)
        return bool(occupied[down, across].any())

    return near

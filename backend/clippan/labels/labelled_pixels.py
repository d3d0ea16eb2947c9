"""Pixels labelled with the classes of a prompt table, from polygons, points or a raster of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from osgeo import gdal, ogr

from clippan.catalogue.prompts import PromptTable
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.labels.layers import LabelledLayer, crs_name
from clippan.raster import source as sources
from clippan.raster.grid import Grid
from clippan.raster.rendering import Renderer
from clippan.raster.tiles import Window, tiles

_MAX_PER_GROUP = 4000  # pixels of a polygon or block; more of them are alike
_BLOCK = 128  # edge of the blocks of a raster of classes, which are its groups
_READ = 512  # edge of the windows in which nodata is read
_SQUARE = 64  # edge of the squares for which the presence of labels is recorded
_IGNORED = 255  # customary value of unlabelled pixels in rasters of classes


@dataclass(frozen=True)
class LabelledPixels:
    """Labelled pixels of a raster.

    Attributes:
        rows, columns: in the raster, (n,).
        classes: 1 to N, in the order of the table, (n,).
        groups: the polygon, point or block of each, from 0, (n,).
        part: their bounding window.
        seen: classes in the file, including those all of whose labels lie outside the raster or on nodata.
        hints: for the user.
    """

    rows: np.ndarray
    columns: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    part: Window
    seen: frozenset[int]
    hints: tuple[str, ...]
    _squares: np.ndarray

    def near(self, window: Window) -> bool:
        """Whether there may be labels in or near a window of the raster."""
        top, left = max(window.y, 0) // _SQUARE, max(window.x, 0) // _SQUARE
        bottom, right = (window.y + window.height - 1) // _SQUARE + 1, (window.x + window.width - 1) // _SQUARE + 1
        return bool(self._squares[top:bottom, left:right].any())


def read_labelled_pixels(
    path: str, layer: str, field: str, table: PromptTable, scene: Renderer, context: Context
) -> LabelledPixels:
    """Reads labels.

    Args:
        path: a vector file with polygons or points, or a raster on the scene's grid with values 1 to N; 0, 255 and its
            nodata value are unlabelled.
        layer: of the vector file; empty for the first with labelled features.
        field: of the vector file, with the name of a class, a synonym of it, or its number.
        table: the classes.
        scene: the raster.
        context: receives the progress.

    Raises:
        ClippanError: the file cannot be read, has another size or an unknown class, or no label lies on the raster.
    """
    hints: list[str] = []
    opened = LabelledLayer(path, layer, field) if _is_vector(path) else None
    if opened:
        parts, seen, outside = _read_features(opened, table, scene, context)
        hints = [*opened.hints, *opened.assumed_crs_hints(scene.grid)]
        if outside:
            hints.append(
                Message(
                    "Labels of {path} outside {raster} were ignored ({count}).",
                    path=path,
                    raster=scene.path,
                    count=outside,
                )
            )
    else:
        parts, seen = _read_class_raster(path, table, scene, context), []
    if not parts and opened and opened.crs and not scene.grid.crs:
        raise ClippanError(
            "No label of {path} lies on the raster {raster}, which has no coordinates, while the labels are in {crs}; "
            "georeference the raster first.",
            path=path,
            raster=scene.path,
            crs=crs_name(opened.crs),
        )
    if not parts:
        raise ClippanError(
            "No label of {path} lies on the raster {raster}; check that both show the same area.",
            path=path,
            raster=scene.path,
        )
    rows, columns, classes = (np.concatenate([part[number] for part in parts]) for number in range(3))
    groups = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    present = {*seen, *classes.tolist()}
    valid = _valid(rows, columns, scene, context)
    if not valid.any():
        raise ClippanError(
            "All labels of {path} lie on nodata of {raster}; label other places.", path=path, raster=scene.path
        )
    rows, columns, classes, groups = (values[valid] for values in (rows, columns, classes, groups))
    squares = np.zeros((scene.grid.height // _SQUARE + 1, scene.grid.width // _SQUARE + 1), bool)
    squares[rows // _SQUARE, columns // _SQUARE] = True
    left, top = int(columns.min()), int(rows.min())
    window = Window(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
    return LabelledPixels(rows, columns, classes, groups, window, frozenset(present), tuple(hints), squares)


def _valid(rows: np.ndarray, columns: np.ndarray, scene: Renderer, context: Context) -> np.ndarray:
    """Which pixels are not nodata, (n,)."""
    valid = np.zeros(len(rows), bool)
    across = -(-scene.grid.width // _READ)
    blocks = rows // _READ * across + columns // _READ
    order = np.argsort(blocks, kind="stable")
    for inside in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
        context.raise_if_cancelled()
        y, x = int(rows[inside[0]]) // _READ * _READ, int(columns[inside[0]]) // _READ * _READ
        window = Window(x, y, min(_READ, scene.grid.width - x), min(_READ, scene.grid.height - y))
        valid[inside] = scene.picture_and_mask(window, window.width, window.height)[1][
            rows[inside] - y, columns[inside] - x
        ]
    return valid


def _is_vector(path: str) -> bool:
    try:
        return bool(gdal.OpenEx(path, gdal.OF_VECTOR).GetLayerCount())
    except RuntimeError:
        return False


_Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns and classes of a group


def _thinned(rows: np.ndarray, columns: np.ndarray, classes: np.ndarray, number: int) -> _Part:
    if len(rows) > _MAX_PER_GROUP:
        kept = np.sort(np.random.default_rng(number).choice(len(rows), _MAX_PER_GROUP, replace=False))
        rows, columns, classes = rows[kept], columns[kept], classes[kept]
    return rows, columns, classes


def _read_class_raster(path: str, table: PromptTable, scene: Renderer, context: Context) -> list[_Part]:
    dataset = sources.open_dataset(path, Message("raster of classes"))
    if (dataset.RasterXSize, dataset.RasterYSize) != (scene.grid.width, scene.grid.height):
        raise ClippanError(
            "The raster of classes {path} has {width} × {height} pixels and {raster} has {raster_width} × "
            "{raster_height}; resample it to the grid of the raster.",
            path=path,
            width=dataset.RasterXSize,
            height=dataset.RasterYSize,
            raster=scene.path,
            raster_width=scene.grid.width,
            raster_height=scene.grid.height,
        )
    band = dataset.GetRasterBand(1)
    ignored = {0, _IGNORED, band.GetNoDataValue()}
    parts = []
    windows = tiles(scene.grid.width, scene.grid.height, _BLOCK)
    for number, window in enumerate(windows):
        context.progress(100 * number / len(windows), "Reading the labels")
        values = band.ReadAsArray(window.x, window.y, window.width, window.height)
        labelled = ~np.isin(values, [value for value in ignored if value is not None]) & np.isfinite(values)
        rows, columns = np.nonzero(labelled)
        if not len(rows):
            continue
        classes = values[rows, columns]
        wrong = classes[(classes < 1) | (classes > len(table.classes)) | (classes != classes.astype(int))]
        if len(wrong):
            raise ClippanError(
                "The raster of classes {path} contains the value {value:g}, but the prompt table has classes 1 to "
                "{count}; correct the raster or the table.",
                path=path,
                value=wrong[0],
                count=len(table.classes),
            )
        parts.append(_thinned(rows + window.y, columns + window.x, classes.astype(int), number))
    return parts


def _read_features(
    layer: LabelledLayer, table: PromptTable, scene: Renderer, context: Context
) -> tuple[list[_Part], list[int], int]:
    known = {" ".join(word.split()).casefold(): n for n, prompt in enumerate(table.classes, 1) for word in prompt.words}
    known.update({str(number): number for number in range(1, len(table.classes) + 1)})
    parts, seen, outside = [], [], 0
    for number, (text, geometry) in enumerate(layer.features(scene.grid, context)):
        label = known.get(text.casefold()) or known.get(
            text[:-2] if text.endswith(".0") else text
        )  # from a floating point field
        if label is None:
            raise ClippanError(
                "The samples {path} have the class “{name}”, which is not in the prompt table; add it there, or give "
                "these samples another class.",
                path=layer.path,
                name=text,
            )
        seen.append(label)
        nothing = np.empty(0, int), np.empty(0, int)
        rows, columns = nothing if geometry is None else covered_pixels(geometry, scene.grid, layer.path)
        if len(rows):
            parts.append(_thinned(rows, columns, np.full(len(rows), label), number))
        else:
            outside += 1
    return parts, seen, outside


def envelope_corners(geometry: ogr.Geometry, grid: Grid) -> np.ndarray:
    """Columns and rows (4, 2) of the corners of a geometry's envelope, as real numbers."""
    inverse = gdal.InvGeoTransform(grid.geotransform)
    west, east, south, north = geometry.GetEnvelope()
    return np.array([gdal.ApplyGeoTransform(inverse, x, y) for x in (west, east) for y in (south, north)])


def covered_pixels(geometry: ogr.Geometry, grid: Grid, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels whose centres lie in a polygon, or that contain a point.

    Raises:
        ClippanError: the geometry is neither a polygon nor a point.
    """
    inverse = gdal.InvGeoTransform(grid.geotransform)
    kind = ogr.GT_Flatten(geometry.GetGeometryType())
    if kind in (ogr.wkbPoint, ogr.wkbMultiPoint):
        points = (
            [geometry]
            if kind == ogr.wkbPoint
            else [geometry.GetGeometryRef(i) for i in range(geometry.GetGeometryCount())]
        )
        pairs = np.array([gdal.ApplyGeoTransform(inverse, point.GetX(), point.GetY()) for point in points])
        pairs = np.floor(pairs).astype(int)
        inside = (pairs >= 0).all(axis=1) & (pairs < (grid.width, grid.height)).all(axis=1)
        return pairs[inside, 1], pairs[inside, 0]
    if kind not in (ogr.wkbPolygon, ogr.wkbMultiPolygon):
        raise ClippanError(
            "The samples {path} contain other geometries than points and polygons ({geometry}); remove them.",
            path=path,
            geometry=geometry.GetGeometryName(),
        )
    corners = envelope_corners(geometry, grid)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), (grid.width, grid.height))
    if left >= right or top >= bottom:
        return np.empty(0, int), np.empty(0, int)
    target = gdal.GetDriverByName("MEM").Create("", int(right - left), int(bottom - top), 1, gdal.GDT_Byte)
    target.SetGeoTransform(grid.cropped(int(left), int(top), int(right), int(bottom)).geotransform)
    holder = ogr.GetDriverByName("Memory").CreateDataSource("")
    layer = holder.CreateLayer("")
    feature = ogr.Feature(layer.GetLayerDefn())
    feature.SetGeometry(geometry)
    layer.CreateFeature(feature)
    gdal.RasterizeLayer(target, [1], layer, burn_values=[1])
    rows, columns = np.nonzero(target.ReadAsArray())
    return rows + top, columns + left

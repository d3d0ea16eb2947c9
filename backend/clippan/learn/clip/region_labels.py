"""Boxes of labelled objects, to train CLIP, from masks and polygons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from osgeo import gdal, gdal_array, ogr

from clippan.core import texts
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.labels.layers import LabelledLayer
from clippan.learn.clip.data import LabelledBox
from clippan.raster import source as sources
from clippan.raster.grid import Grid
from clippan.raster.tiles import Window

_POLYGONS = (ogr.wkbPolygon, ogr.wkbMultiPolygon)


class RegionLabels:
    """Labels of a raster.

    Attributes:
        categories: all categories, if known before the raster is read.
        outside: the categories that lie entirely outside the raster.
        hints: for the user.
    """

    def __init__(self) -> None:
        self.categories: set[str] = set()
        self.outside: set[str] = set()
        self.hints: list[str] = []

    def boxes(self, window: Window, min_size: float, min_fill: float) -> list[LabelledBox]:
        """Bounding boxes of the objects in a window, in its pixels, without those that are small or fill little of
        their box."""
        boxes = []
        for category, geometry, x, y in self._objects_in(window):
            if geometry is None or geometry.IsEmpty():
                continue
            left, right, top, bottom = geometry.GetEnvelope()
            box = (math.floor(left - x), math.floor(top - y), math.ceil(right - x), math.ceil(bottom - y))
            width, height = box[2] - box[0], box[3] - box[1]
            if min(width, height) >= min_size and geometry.GetArea() >= min_fill * width * height:
                boxes.append(LabelledBox(tuple(map(float, box)), category))
        return boxes

    def _objects_in(self, window: Window) -> Iterator[tuple[str, ogr.Geometry, int, int]]:
        """Category and geometry of the objects, and column and row of the window's corner in the geometry."""
        raise NotImplementedError


def open_labels(path: str, grid: Grid, legend: Mapping[str, str], layer: str, field: str) -> RegionLabels:
    """Opens a file of labels, a mask or vectors.

    Args:
        path: the file.
        grid: of the raster.
        legend: categories by value (``3``) or colour (``#3C1098``) of a mask, or by value of the field; if empty, the
            mask or the field holds the categories.
        layer: of vectors; empty for the first with labelled features.
        field: of the layer, with the class.

    Raises:
        ClippanError: the file cannot be read, or does not suit the raster or the legend.
    """
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_VECTOR)
    except RuntimeError:
        dataset = sources.open_dataset(path, "file of labels")  # raises an error with the reason
    if dataset.RasterCount:
        return _MaskLabels(path, dataset, grid, legend)
    return _PolygonLabels(path, grid, legend, layer, field)


class _MaskLabels(RegionLabels):
    """Labels from a mask of values or colours. Each connected part of a category is an object."""

    def __init__(self, path: str, dataset: gdal.Dataset, grid: Grid, legend: Mapping[str, str]) -> None:
        super().__init__()
        if (dataset.RasterXSize, dataset.RasterYSize) != (grid.width, grid.height):
            raise ClippanError(
                "The mask {path} has {width} × {height} pixels and its raster {raster_width} × {raster_height}; "
                "resample the mask to the grid of the raster (gdalwarp).",
                path=path,
                width=dataset.RasterXSize,
                height=dataset.RasterYSize,
                raster_width=grid.width,
                raster_height=grid.height,
            )
        self._path, self._dataset = path, dataset
        band = dataset.GetRasterBand(1)
        if not legend:
            names = band.GetCategoryNames() or []
            legend = {str(value): name for value, name in enumerate(names) if name and value}
        if not legend:
            raise ClippanError(
                "The meaning of the values of the mask {path} is unknown; give a legend (--legend).", path=path
            )
        colours = [bool(texts.COLOUR.fullmatch(value)) for value in legend]
        if any(colours) != all(colours):
            raise ClippanError("The legend mixes colours and numbers; use one kind for all values.")
        self._has_colours = all(colours)
        self._table = band.GetColorTable() if self._has_colours and dataset.RasterCount < 3 else None
        if self._has_colours and self._table is None and dataset.RasterCount < 3:
            raise ClippanError(
                "The legend has colours, but the mask {path} has none; use its values instead.", path=path
            )
        if not self._has_colours and dataset.RasterCount > 1:
            raise ClippanError(
                "The mask {path} has colours; use them in the legend, as in #3C1098=building.", path=path
            )
        self._names = list(dict.fromkeys(legend.values()))
        try:
            self._values = {
                int(value[1:], 16) if self._has_colours else int(value): self._names.index(name) + 1
                for value, name in legend.items()
            }
        except ValueError:
            raise ClippanError(
                "The values of the legend are not whole numbers or colours; correct the legend."
            ) from None

    def _classes(self, window: Window) -> np.ndarray:
        """Numbers of categories from 1, uint8 (height, width); 0 for values not in the legend."""
        bands = (1, 2, 3) if self._has_colours and self._table is None else (1,)
        extent = (window.x, window.y, window.width, window.height)
        try:
            planes = [self._dataset.GetRasterBand(band).ReadAsArray(*extent).astype(np.int64) for band in bands]
        except RuntimeError as error:
            raise ClippanError(
                "The mask {path} cannot be read ({reason}); check the file.", path=self._path, reason=one_line(error)
            ) from error
        values = planes[0] if len(planes) == 1 else planes[0] << 16 | planes[1] << 8 | planes[2]
        if self._table is not None:
            entries = [self._table.GetColorEntry(number) for number in range(self._table.GetCount())]
            lookup = np.array([red << 16 | green << 8 | blue for red, green, blue, _ in entries])
            values = lookup[values.clip(0, len(lookup) - 1)]
        classes = np.zeros(values.shape, np.uint8)
        for value, number in self._values.items():
            classes[values == value] = number
        return classes

    def _objects_in(self, window: Window) -> Iterator[tuple[str, ogr.Geometry, int, int]]:
        classes = self._classes(window)
        if not classes.any():
            return
        dataset = gdal_array.OpenArray(classes)  # without coordinates, so that polygons are in pixels
        band = dataset.GetRasterBand(1)
        memory = ogr.GetDriverByName("Memory").CreateDataSource("")
        layer = memory.CreateLayer("objects", geom_type=ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn("class", ogr.OFTInteger))
        gdal.Polygonize(band, band, layer, 0)
        for feature in layer:
            yield self._names[feature.GetField(0) - 1], feature.GetGeometryRef(), 0, 0


class _PolygonLabels(RegionLabels):
    def __init__(self, path: str, grid: Grid, legend: Mapping[str, str], layer: str, field: str) -> None:
        super().__init__()
        if not grid.crs:
            raise ClippanError(
                "The raster of {path} has no coordinates to place polygons by; georeference it, or use a mask.",
                path=path,
            )
        inverse = gdal.InvGeoTransform(grid.geotransform)
        if inverse is None:
            raise ClippanError("The raster of {path} has an invalid geotransform; georeference it again.", path=path)
        labelled = LabelledLayer(path, layer, field)
        self.hints = [*labelled.hints, *labelled.assumed_crs_hints(grid)]
        self._polygons: list[tuple[str, ogr.Geometry, tuple[float, ...]]] = []
        for value, geometry in labelled.features(grid, Context()):
            category = legend.get(value, "") if legend else value
            if not category or (geometry and ogr.GT_Flatten(geometry.GetGeometryType()) not in _POLYGONS):
                continue
            self.categories.add(category)
            if geometry is not None:
                geometry.FlattenTo2D()
                _transform_to_pixels(geometry, inverse)
            if geometry is None or not _overlap(geometry.GetEnvelope(), (0, grid.width, 0, grid.height)):
                self.outside.add(category)
                continue
            geometry = geometry if geometry.IsValid() else geometry.Buffer(0)
            self._polygons.append((category, geometry, geometry.GetEnvelope()))
        self.outside -= {category for category, _, _ in self._polygons}
        if not self.categories:
            raise ClippanError(
                "The layer of {path} has no polygon whose class in the field {field} is in the legend; choose another "
                "field or legend."
                if legend
                else "The layer of {path} has no polygon with a class in the field {field}; choose another field.",
                path=path,
                field=field,
            )

    def _objects_in(self, window: Window) -> Iterator[tuple[str, ogr.Geometry, int, int]]:
        left, top, right, bottom = window.x, window.y, window.x + window.width, window.y + window.height
        frame = ogr.CreateGeometryFromWkt(
            f"POLYGON(({left} {top},{right} {top},{right} {bottom},{left} {bottom},{left} {top}))"
        )
        for category, geometry, envelope in self._polygons:
            if _overlap(envelope, (left, right, top, bottom)):
                yield category, geometry.Intersection(frame), left, top


def _overlap(some: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, right, top, bottom) share more than an edge."""
    return some[0] < other[1] and other[0] < some[1] and some[2] < other[3] and other[2] < some[3]


def _transform_to_pixels(geometry: ogr.Geometry, inverse: Sequence[float]) -> None:
    """Replaces coordinates by columns and rows."""
    for index in range(geometry.GetPointCount()):
        geometry.SetPoint_2D(index, *gdal.ApplyGeoTransform(inverse, geometry.GetX(index), geometry.GetY(index)))
    for part in geometry:
        _transform_to_pixels(part, inverse)

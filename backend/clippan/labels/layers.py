"""Vector layers whose features have a class in a field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Optional

from osgeo import gdal, ogr, osr

from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.raster.grid import Grid
from clippan.raster.rendering import spatial_reference

# Columns of a table that hold coordinates, as WKT or as x and y.
_WKT_COLUMNS = (("wkt",), ("geometry",), ("geom",), ("the_geom",), ("wkt_geom",))
_XY_COLUMNS = (("x", "y"), ("lon", "lat"), ("long", "lat"), ("longitude", "latitude"), ("easting", "northing"))


class LabelledFeature(NamedTuple):
    """A feature's class as text, whole numbers without a decimal point; and its geometry in the CRS of a grid, without
    curves, None where it cannot be transformed to that CRS."""

    label: str
    geometry: Optional[ogr.Geometry]


class LabelledLayer:
    """A layer of a vector file, by name (empty for the first that has a feature with a geometry and a class), and the
    field that holds the class, by its name in any case.

    Attributes:
        path: the file.
        crs: with x before y; None if unknown.
        hints: for the user: which of several layers was read, and from which columns a table's coordinates.

    Raises:
        ClippanError: the file cannot be read, or has no such layer or field.
    """

    def __init__(self, path: str, name: str, field: str) -> None:
        self.path = path
        self.hints: list[str] = []
        self._columns: tuple[str, ...] = ()
        self._dataset = self._open(field)  # a layer does not keep its dataset alive
        self._layer, self._field = self._choose(name, field)
        self.crs = self._crs()

    def _open(self, field: str) -> gdal.Dataset:
        try:
            dataset = gdal.OpenEx(self.path, gdal.OF_VECTOR)
            if dataset.GetDriver().ShortName == "CSV" and dataset.GetLayer(0).GetGeomType() == ogr.wkbNone:
                self._columns = _geometry_columns(dataset.GetLayer(0), field)
            if self._columns:
                kinds = ["GEOM"] if len(self._columns) == 1 else ["X", "Y"]
                options = [f"{kind}_POSSIBLE_NAMES={column}" for kind, column in zip(kinds, self._columns)]
                dataset = gdal.OpenEx(self.path, gdal.OF_VECTOR, open_options=options)
                self.hints.append(
                    Message(
                        "The coordinates of {path} were read from its columns ({columns}).",
                        path=self.path,
                        columns=", ".join(self._columns),
                    )
                )
        except RuntimeError as error:
            raise ClippanError(
                "The samples {path} cannot be read ({reason}); choose a file with points or polygons.",
                path=self.path,
                reason=one_line(error),
            ) from None
        return dataset

    def _choose(self, name: str, field: str) -> tuple[ogr.Layer, int]:
        layers = [self._dataset.GetLayer(number) for number in range(self._dataset.GetLayerCount())]
        if not layers:
            raise ClippanError("The samples {path} contain no points or polygons; choose another file.", path=self.path)
        if name:
            alike = [layer for layer in layers if layer.GetName().casefold() == name.casefold()]
            if not alike:
                names = join_names([layer.GetName() for layer in layers])
                raise ClippanError(
                    "The samples {path} have no layer {name}; choose one of {names}.",
                    path=self.path,
                    name=name,
                    names=names,
                )
            chosen = min(alike, key=lambda layer: layer.GetName() != name)
            return chosen, self._field_index(chosen, field)
        spatial = [layer for layer in layers if layer.GetGeomType() != ogr.wkbNone] or layers
        with_field = [layer for layer in spatial if _find_field(layer, field) is not None]
        first = (with_field or spatial)[0]  # errors name what is wrong with it if no layer is labelled
        chosen = next((layer for layer in with_field if self._is_labelled(layer, field)), first)
        if len(spatial) > 1:
            names = join_names([layer.GetName() for layer in spatial])
            self.hints.append(
                Message(
                    "{path} has several layers ({names}); {layer} was read.",
                    path=self.path,
                    names=names,
                    layer=chosen.GetName(),
                )
            )
        return chosen, self._field_index(chosen, field)

    def _field_index(self, layer: ogr.Layer, field: str) -> int:
        index = _find_field(layer, field)
        if index is None:
            if not all(_is_utf8(name) for name in _field_names(layer)):
                raise ClippanError("The field names of {path} are not UTF-8; save the file as UTF-8.", path=self.path)
            raise ClippanError(
                "The layer {layer} of the samples {path} has no field {field}; choose one of its fields ({fields}).",
                layer=layer.GetName(),
                path=self.path,
                field=field,
                fields=join_names(_field_names(layer)) or "–",
            )
        return index

    def _is_labelled(self, layer: ogr.Layer, field: str) -> bool:
        index = self._field_index(layer, field)
        return any(_has_geometry(feature) and self._label(feature, index) for feature in self._read(layer))

    def _read(self, layer: ogr.Layer) -> Iterator[ogr.Feature]:
        try:
            layer.ResetReading()
            yield from layer
        except RuntimeError as error:
            raise ClippanError(
                "The samples {path} cannot be read completely ({reason}); correct them, or save them again.",
                path=self.path,
                reason=one_line(error),
            ) from None

    def _crs(self) -> Optional[osr.SpatialReference]:
        """A GeoPackage written without a CRS has an "Undefined Cartesian SRS" or an undefined geographic one."""
        reference = self._layer.GetSpatialRef()
        if reference is None and self._columns and self._columns[0].lower().startswith("lon"):
            return spatial_reference("EPSG:4326")
        if reference is None or reference.IsLocal() or (reference.GetName() or "").lower().startswith("undefined"):
            return None
        reference = reference.Clone()
        reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
        return reference

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Class and geometry (WKB, in the layer's CRS) of every feature; empty where it has none."""
        for feature in self._read(self._layer):
            geometry = feature.GetGeometryRef()
            yield self._label(feature, self._field), b"" if geometry is None else bytes(geometry.ExportToWkb())

    def features(self, grid: Grid, context: Context) -> Iterator[LabelledFeature]:
        """The features that have both a class and a geometry, transformed to the grid's CRS if both CRSs are known.
        Raises ClippanError if they cannot be read, or there is no transformation."""
        transform = self._transform(grid)
        count = max(self._layer.GetFeatureCount(), 1)
        for position, feature in enumerate(self._read(self._layer)):
            context.progress(100 * position / count, "Reading the samples")
            label = self._label(feature, self._field) if _has_geometry(feature) else ""
            if label:
                geometry = feature.GetGeometryRef().GetLinearGeometry()  # a copy, with curves as lines
                yield LabelledFeature(label, geometry if _reproject(geometry, transform) else None)

    def assumed_crs_hints(self, grid: Grid) -> list[str]:
        """A hint if the layer's CRS is unknown and the grid's was assumed."""
        if self.crs or not grid.crs:
            return []
        return [
            Message(
                "The CRS of the samples is unknown; that of the rasters ({crs}) was assumed.",
                crs=crs_name(spatial_reference(grid.crs)),
            )
        ]

    def _label(self, feature: ogr.Feature, number: int) -> str:
        """The class as text, whole numbers without a decimal point; empty if there is none."""
        if not feature.IsFieldSetAndNotNull(number):
            return ""
        if feature.GetFieldType(number) == ogr.OFTReal:
            value = feature.GetFieldAsDouble(number)
            if not math.isfinite(value):
                return ""
            return str(int(value)) if value == int(value) else repr(value)
        text = " ".join(feature.GetFieldAsString(number).split())
        if not _is_utf8(text):
            field = feature.GetFieldDefnRef(number).GetName()
            raise ClippanError(
                "The field {field} of the samples {path} is not UTF-8; save the file as UTF-8.",
                field=field,
                path=self.path,
            )
        return text

    def _transform(self, grid: Grid) -> Optional[osr.CoordinateTransformation]:
        if self.crs is None or not grid.crs:
            return None
        target = spatial_reference(grid.crs)
        try:
            return None if self.crs.IsSame(target) else osr.CoordinateTransformation(self.crs, target)
        except RuntimeError as error:
            raise ClippanError(
                "The CRS of the samples {path} cannot be transformed to that of the raster; reproject them first.",
                path=self.path,
            ) from error


def crs_name(reference: Optional[osr.SpatialReference]) -> str:
    """The name of a CRS for sentences; empty for None."""
    return "" if reference is None else reference.GetName() or Message("a CRS without a name")


def _field_names(layer: ogr.Layer) -> list[str]:
    definition = layer.GetLayerDefn()
    return [definition.GetFieldDefn(number).GetName() for number in range(definition.GetFieldCount())]


def _find_field(layer: ogr.Layer, field: str) -> Optional[int]:
    """The number of the field with this name in any case; an exact match is preferred."""
    names = _field_names(layer)
    alike = [number for number, found in enumerate(names) if found.casefold() == field.casefold()]
    return min(alike, key=lambda number: names[number] != field) if alike else None


def _geometry_columns(table: ogr.Layer, field: str) -> tuple[str, ...]:
    """The columns of a table with coordinates: one with WKT, or x and y; empty if there are none."""
    columns = {column.casefold(): column for column in _field_names(table) if column.casefold() != field.casefold()}
    for names in (*_WKT_COLUMNS, *_XY_COLUMNS):
        if all(name in columns for name in names):
            return tuple(columns[name] for name in names)
    return ()


def _has_geometry(feature: ogr.Feature) -> bool:
    geometry = feature.GetGeometryRef()
    return geometry is not None and not geometry.IsEmpty()


def _is_utf8(text: str) -> bool:
    """Whether a text was read from UTF-8; GDAL passes on other bytes as surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _reproject(geometry: ogr.Geometry, transform: Optional[osr.CoordinateTransformation]) -> bool:
    """Transforms a geometry in place; returns whether that was possible."""
    try:
        if transform is not None:
            geometry.Transform(transform)
    except RuntimeError:
        return False
    return all(math.isfinite(value) for value in geometry.GetEnvelope())  # some transformations return infinity

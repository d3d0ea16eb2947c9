"""Labelled layers: points and polygons of vector files, each with its class in a field."""

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
from clippan.raster.scene import spatial_reference

# Columns of a table that hold places; GDAL itself knows but WKT.
_WKT = ("wkt", "geometry", "geom", "the_geom", "wkt_geom")
_XY = (("x", "y"), ("lon", "lat"), ("long", "lat"), ("longitude", "latitude"), ("easting", "northing"))
_DEGREES = "lon"  # how columns begin that are in WGS 84


class LabelledFeature(NamedTuple):
    """A feature with a class.

    Attributes:
        label: the class as text; whole numbers without a decimal point.
        geometry: in the CRS of a grid, without curves; None if it lies where that CRS does not reach.
    """

    label: str
    geometry: Optional[ogr.Geometry]


class LabelledLayer:
    """A layer of a vector file, and the field that holds the class.

    Args:
        path: the file, or any GDAL data source.
        name: of the layer; empty for the first that has a feature with a place and a class.
        field: which holds the class, in any case.

    Attributes:
        path: the same.
        crs: with x before y; None where it has none that another can be reached from.
        hints: sentences for the user: which layer was read where there are several, where a table has its places.

    Raises:
        ClippanError: it cannot be read, or has no such layer or field.
    """

    def __init__(self, path: str, name: str, field: str) -> None:
        self.path = path
        self.hints: list[str] = []
        self._columns: tuple[str, ...] = ()
        self._dataset = self._open(field)  # a layer does not keep its file
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
                        "The places of {path} were read from the column {_columns}.",
                        path=self.path,
                        _columns=" and ".join(self._columns),
                    )
                )
        except RuntimeError as error:
            raise ClippanError(
                "The samples {path} cannot be read ({reason}); choose a file of points or polygons.",
                path=self.path,
                reason=one_line(error),
            ) from None
        return dataset

    def _choose(self, name: str, field: str) -> tuple[ogr.Layer, int]:
        layers = [self._dataset.GetLayer(number) for number in range(self._dataset.GetLayerCount())]
        if not layers:
            raise ClippanError("The samples {path} hold no points or polygons; choose another file.", path=self.path)
        if name:
            alike = [layer for layer in layers if layer.GetName().casefold() == name.casefold()]
            if not alike:
                names = join_names([layer.GetName() for layer in layers])
                raise ClippanError(
                    "The samples {path} have no layer {name}; choose one of theirs ({names}).",
                    path=self.path,
                    name=name,
                    names=names,
                )
            chosen = min(alike, key=lambda layer: layer.GetName() != name)
            return chosen, self._number(chosen, field)
        spatial_ones = [layer for layer in layers if layer.GetGeomType() != ogr.wkbNone] or layers
        with_field = [layer for layer in spatial_ones if _field_number(layer, field) is not None]
        chosen = next((layer for layer in with_field if self._is_labelled(layer, field)), None)
        if chosen is None:  # of which the user is told what is wrong with it
            chosen = (with_field or spatial_ones)[0]
        if len(spatial_ones) > 1:
            names = join_names([layer.GetName() for layer in spatial_ones])
            self.hints.append(
                Message(
                    "Of the layers of {path} ({names}), {GetName} was read.",
                    path=self.path,
                    names=names,
                    GetName=chosen.GetName(),
                )
            )
        return chosen, self._number(chosen, field)

    def _number(self, layer: ogr.Layer, field: str) -> int:
        found = _field_number(layer, field)
        if found is None:
            if not all(_is_utf8(name) for name in _field_names(layer)):
                raise ClippanError(
                    "The names of the fields of {path} are not UTF-8; save the file in UTF-8.", path=self.path
                )
            where = "" if self._dataset.GetLayerCount() == 1 else f" in their layer {layer.GetName()}"
            raise ClippanError(
                "The samples {path} have no field {field}{where}; choose one of theirs ({fields}).",
                path=self.path,
                field=field,
                where=where,
                fields=join_names(_field_names(layer)) or "none",
            )
        return found

    def _is_labelled(self, layer: ogr.Layer, field: str) -> bool:
        number = self._number(layer, field)
        return any(_has_geometry(feature) and self._label(feature, number) for feature in self._read(layer))

    def _read(self, layer: ogr.Layer) -> Iterator[ogr.Feature]:
        try:
            layer.ResetReading()
            yield from layer
        except RuntimeError as error:
            raise ClippanError(
                "The samples {path} cannot be read to their end ({reason}); correct them, or save them anew.",
                path=self.path,
                reason=one_line(error),
            ) from None

    def _crs(self) -> Optional[osr.SpatialReference]:
        """A GeoPackage cannot do without: one that was written without a CRS has an “Undefined Cartesian SRS”, or a
        geographic one."""
        reference = self._layer.GetSpatialRef()
        if reference is None and self._columns and self._columns[0].lower().startswith(_DEGREES):
            return spatial_reference("EPSG:4326")
        if reference is None or reference.IsLocal() or (reference.GetName() or "").lower().startswith("undefined"):
            return None
        reference = reference.Clone()
        reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
        return reference

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Of every feature the class, empty without one, and the geometry as WKB, in the layer's CRS."""
        for feature in self._read(self._layer):
            geometry = feature.GetGeometryRef()
            yield self._label(feature, self._field), b"" if geometry is None else bytes(geometry.ExportToWkb())

    def features(self, grid: Grid, context: Context) -> Iterator[LabelledFeature]:
        """The features that have both a class and a place.

        Args:
            grid: in whose CRS they are wanted; where it or the layer has none, they are as they are.
            context: hears of progress.

        Raises:
            ClippanError: they cannot be read, or no way leads to the grid's CRS.
        """
        transform = self._transform(grid)
        count = max(self._layer.GetFeatureCount(), 1)
        for position, feature in enumerate(self._read(self._layer)):
            context.progress(100 * position / count, "Reading the samples")
            label = self._label(feature, self._field) if _has_geometry(feature) else ""
            if label:
                geometry = feature.GetGeometryRef().GetLinearGeometry()  # a copy, in which curves are many short lines
                yield LabelledFeature(label, geometry if _reproject(geometry, transform) else None)

    def assumed_crs_hints(self, grid: Grid) -> list[str]:
        """A sentence where the grid's CRS was taken for the layer's."""
        if self.crs or not grid.crs:
            return []
        there = crs_name(spatial_reference(grid.crs))
        return [Message("The CRS of the samples is not known; that of the rasters ({there}) was assumed.", there=there)]

    def _label(self, feature: ogr.Feature, number: int) -> str:
        """The class, as text; whole numbers without a decimal point. Empty where there is none."""
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
                "The field {field} of the samples {path} is not UTF-8; save the file in UTF-8.",
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
    """How sentences call a CRS; empty for none."""
    return "" if reference is None else reference.GetName() or "a CRS without a name"


def _field_names(layer: ogr.Layer) -> list[str]:
    definition = layer.GetLayerDefn()
    return [definition.GetFieldDefn(number).GetName() for number in range(definition.GetFieldCount())]


def _field_number(layer: ogr.Layer, field: str) -> Optional[int]:
    """The number of a field, by its name in any case; of several the one that is written so."""
    names = _field_names(layer)
    alike = [number for number, found in enumerate(names) if found.casefold() == field.casefold()]
    return min(alike, key=lambda number: names[number] != field) if alike else None


def _geometry_columns(table: ogr.Layer, field: str) -> tuple[str, ...]:
    """The columns of a table that hold places: one of WKT, or x and y; none if there are no such."""
    columns = {column.casefold(): column for column in _field_names(table) if column.casefold() != field.casefold()}
    for names in (*((word,) for word in _WKT), *_XY):
        if all(word in columns for word in names):
            return tuple(columns[word] for word in names)
    return ()


def _has_geometry(feature: ogr.Feature) -> bool:
    geometry = feature.GetGeometryRef()
    return geometry is not None and not geometry.IsEmpty()


def _is_utf8(text: str) -> bool:
    """Whether it was read from UTF-8; GDAL hands on other bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reproject(geometry: ogr.Geometry, transform: Optional[osr.CoordinateTransformation]) -> bool:
    """Brings a geometry to another CRS; whether it lies where that and its own reach."""
    try:
        if transform is not None:
            geometry.Transform(transform)
    except RuntimeError:
        return False
    return all(math.isfinite(value) for value in geometry.GetEnvelope())  # some transformations end in infinity

"""Labelled layers: which layer and field of a file is read, in every format, and what is said of it."""

from __future__ import annotations

import pytest
from osgeo import gdal, ogr
from test_samples import GRID, UTM, point, spread

from clippan.core.errors import ClippanError
from clippan.jobs import Context
from clippan.labels import samples
from clippan.labels.layers import LabelledLayer
from clippan.raster.rendering import spatial_reference

DRIVERS = {"gpkg": "GPKG", "shp": "ESRI Shapefile", "geojson": "GeoJSON", "fgb": "FlatGeobuf"}
FIELDS = ("geom", "fid", "ogc_fid", "geometry", "WKT", "Größe", "a b", "Klasse")
FEATURES = spread(["a", "b"])


@pytest.fixture
def write(tmp_path):
    """Writes layers, as {name: [(WKT or None, class or None)]}."""

    def make(layers, field="class", ending="gpkg", kind=ogr.wkbPoint):
        path = str(tmp_path / f"s.{ending}")
        options = ["GEOMETRY_NAME=shape", "FID=number"] if ending == "gpkg" else []
        source = ogr.GetDriverByName(DRIVERS[ending]).CreateDataSource(path)
        for name, features in layers.items():
            layer = source.CreateLayer(name, spatial_reference(UTM), kind, options)
            layer.CreateField(ogr.FieldDefn(field, ogr.OFTString))
            layer.SyncToDisk()  # else what is empty comes last
            for text, value in features:
                feature = ogr.Feature(layer.GetLayerDefn())
                if value is not None:
                    feature.SetField(0, value)
                if text:
                    feature.SetGeometry(ogr.CreateGeometryFromWkt(text))
                layer.CreateFeature(feature)
        feature = layer = None
        del source
        return path

    return make


def labels(layer):
    return sorted(place.label for place in layer.features(GRID, Context()))


@pytest.mark.parametrize("ending", DRIVERS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_class_may_be_in_a_field_of_any_name(write, field, ending) -> None:
    path = write({"s": FEATURES}, field, ending)
    for written in (field, field.upper(), field.lower()):
        found = samples.read_samples(path, "", written, GRID, 0, Context())
        assert (found.names, found.pixels_per_class) == (("a", "b"), (4, 4))


@pytest.mark.parametrize("field", ["class", "geom", "fid", "y"])
@pytest.mark.parametrize("columns", ["WKT", "geometry", "Geometry", "the_geom", "x,Y", "Easting,Northing"])
def test_a_table_has_its_places_in_columns(tmp_path, columns, field) -> None:
    place = "," not in columns
    field = "kind" if field in columns.lower().split(",") else field
    path = tmp_path / "s.csv"
    rows = [f'"{text}",{name}' if place else f"{text[7:-1].replace(' ', ',')},{name}" for text, name in FEATURES]
    path.write_text("\n".join([f"{columns},{field}", *rows]), encoding="utf-8")
    found = samples.read_samples(str(path), "", field, GRID, 0, Context())
    assert found.pixels_per_class == (4, 4)
    assert any("was assumed" in hint for hint in found.hints)
    told = f"The coordinates of {path} were read from its columns ({columns.replace(',', ', ')})."
    assert (told in found.hints) == (columns != "WKT")


def test_longitudes_of_a_table_are_degrees(tmp_path) -> None:
    (tmp_path / "s.csv").write_text("class,lon,lat\na,3.001,45.151\nb,3.002,45.15\n")
    layer = LabelledLayer(str(tmp_path / "s.csv"), "", "class")
    assert layer.crs.GetAuthorityCode(None) == "4326"
    assert not layer.assumed_crs_hints(GRID)


def test_the_first_layer_that_has_labelled_places_is_read(write) -> None:
    empty = {"empty": [], "placeless": [(None, "c")], "classless": [(point(3, 3), None)]}
    path = write({**empty, "good": FEATURES, "other": spread(["x", "y"])})
    found = samples.read_samples(path, "", "class", GRID, 0, Context())
    assert found.names == ("a", "b")
    assert any("good was read" in hint and "(empty, placeless, " in hint for hint in found.hints)
    found = samples.read_samples(path, "other", "class", GRID, 0, Context())
    assert (found.names, found.hints) == (("x", "y"), ())
    assert samples.read_samples(path, "OTHER", "class", GRID, 0, Context()).names == ("x", "y")
    assert samples.samples_sha256(path, "", "class") == samples.samples_sha256(path, "good", "class")
    assert samples.samples_sha256(path, "other", "class") != samples.samples_sha256(path, "good", "class")
    with pytest.raises(ClippanError, match=r"have no layer nowhere; choose one of empty, placeless"):
        LabelledLayer(path, "nowhere", "class")
    with pytest.raises(ClippanError, match=r"has both a geometry and a class"):
        samples.read_samples(path, "empty", "class", GRID, 0, Context())


def test_a_layer_without_the_field_is_passed_by(write) -> None:
    path = write({"outlines": [(point(1, 1), "x")]}, field="name")
    source = gdal.OpenEx(path, gdal.OF_VECTOR | gdal.OF_UPDATE)
    other = gdal.OpenEx(write({"good": FEATURES}, ending="fgb"), gdal.OF_VECTOR)
    source.CopyLayer(other.GetLayer(0), "good")
    del source, other
    assert labels(LabelledLayer(path, "", "class")) == ["a"] * 4 + ["b"] * 4
    with pytest.raises(ClippanError, match=r"layer outlines of .* has no field class; choose one .* \(name\)"):
        LabelledLayer(path, "outlines", "class")


def test_a_table_of_styles_is_no_second_layer(write) -> None:
    path = write({"good": FEATURES})
    source = gdal.OpenEx(path, gdal.OF_VECTOR | gdal.OF_UPDATE)
    source.CreateLayer("layer_styles", None, ogr.wkbNone).CreateField(ogr.FieldDefn("class", ogr.OFTString))
    del source
    assert LabelledLayer(path, "", "class").hints == []


def test_a_class_that_lies_outside_is_named(write) -> None:
    features = [*FEATURES, (point(500, 5), "far"), (point(1, 500), "away"), (point(-3, 5), "a")]
    found = samples.read_samples(write({"s": features}), "", "class", GRID, 0, Context())
    assert found.names == ("a", "b")
    assert any("All samples of away, far lie outside the rasters" in hint for hint in found.hints)
    assert "Samples outside the rasters were ignored (3)." in found.hints


def test_of_one_class_that_is_left_the_others_are_named(write) -> None:
    path = write({"s": [*spread(["a"]), (point(500, 5), "far")]}, ending="fgb")
    with pytest.raises(ClippanError, match=r"have only the class a on the rasters \(all samples of far lie outside\)"):
        samples.read_samples(path, "", "class", GRID, 0, Context())


def test_broken_places_are_said(tmp_path) -> None:
    (tmp_path / "s.csv").write_text('geom,class\n"POINT (1 2)",a\n"POINT (1",b\n')
    with pytest.raises(
        ClippanError, match=r"has both a geometry and a class|cannot be read completely|lies on the raster"
    ):
        samples.read_samples(str(tmp_path / "s.csv"), "", "class", GRID, 0, Context())


def test_a_text_that_is_not_utf_8_is_said(tmp_path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("x,y,class,Größe\n1,2,forêt,1\n2,3,b,2\n", encoding="latin-1")
    for read in (
        lambda: samples.read_samples(str(path), "", "class", GRID, 0, Context()),
        lambda: samples.samples_sha256(str(path), "", "class"),
    ):
        with pytest.raises(ClippanError, match=r"^The field class of the samples .*s.csv is not UTF-8; save the file"):
            read()
    with pytest.raises(ClippanError, match=r"^The field names of .*s.csv are not UTF-8; save the file"):
        LabelledLayer(str(path), "", "Größe")
    path.write_text("x,y,class\n1,2,b\n,,forêt\n", encoding="latin-1")  # it has no place, and is not needed
    assert labels(LabelledLayer(str(path), "", "class")) == ["b"]

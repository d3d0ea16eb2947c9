"""Samples: what of a vector file becomes pixels of known class, and what the user hears of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from osgeo import ogr

from clippan.core.errors import ClippanError
from clippan.jobs import Context
from clippan.labels import samples
from clippan.raster.grid import Grid
from clippan.raster.rendering import spatial_reference

WEST, NORTH, PIXEL, SIZE = 500000, 5000000, 10, 100
UTM = "EPSG:32631"
GRID = Grid(SIZE, SIZE, (WEST, PIXEL, 0, NORTH, 0, -PIXEL), spatial_reference(UTM).ExportToWkt())
LOCAL = 'LOCAL_CS["Undefined Cartesian SRS"]'


@pytest.fixture
def vector(tmp_path):
    """Writes (geometry as WKT, class)."""

    def write(features, crs=UTM, kind=ogr.OFTString, name="samples.gpkg", driver="GPKG"):
        path = tmp_path / name
        source = ogr.GetDriverByName(driver).CreateDataSource(str(path))
        layer = source.CreateLayer("samples", spatial_reference(crs) if crs else None, ogr.wkbUnknown)
        layer.CreateField(ogr.FieldDefn("class", kind))
        for text, value in features:
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["class"] = value
            feature.SetGeometry(ogr.CreateGeometryFromWkt(text))
            layer.CreateFeature(feature)
        return str(path)

    return write


def read(path):
    return samples.read_samples(path, "", "class", GRID, 0, Context())


def point(column, row):
    return f"POINT ({WEST + (column + 0.5) * PIXEL} {NORTH - (row + 0.5) * PIXEL})"


def box(left, top, right, bottom):
    """Corners of a part of a polygon, in pixels."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return "((" + ", ".join(f"{WEST + x * PIXEL} {NORTH - y * PIXEL}" for x, y in corners) + "))"


def spread(names, each=4):
    """Points of classes, far from each other."""
    return [(point(10 + 20 * number, 5 + 22 * row), name) for row in range(each) for number, name in enumerate(names)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_no_class(vector, value) -> None:
    path = vector([*spread([2.0, 1.5]), (point(90, 90), value)], kind=ogr.OFTReal, name="s.fgb", driver="FlatGeobuf")
    assert read(path).names == ("1.5", "2")
    assert len(samples.samples_sha256(path, "", "class")) == 64


def test_names_like_numbers_are_sorted(vector) -> None:
    assert read(vector(spread(["10", "--1", "-2"]))).names == ("--1", "-2", "10")
    assert read(vector(spread(["10", "9", "-2"]), name="numbers.gpkg")).names == ("-2", "9", "10")


def test_equal_numbers_are_sorted_whatever_the_hash() -> None:
    code = "from clippan.labels.samples import _sorted_classes; print(_sorted_classes({'1', '01', '001', '0'}))"
    for seed in "012":
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, check=True
        )
        assert done.stdout.split() == b"['0', '001', '01', '1']".split()


@pytest.mark.parametrize(
    "parts",
    [
        [box(-60, 40, -50, 50), box(150, 40, 160, 50)],  # their middle lies on the rasters
        [box(-5, 40, 0, 50)],  # it shares an edge with them
    ],
)
def test_a_polygon_beside_the_raster_labels_nothing(vector, parts) -> None:
    found = read(vector([*spread(["a", "b"]), (f"MULTIPOLYGON ({', '.join(parts)})", "elsewhere")]))
    assert found.names == ("a", "b")
    assert "Samples outside the rasters were ignored (1)." in found.hints


def test_a_polygon_smaller_than_a_pixel_labels_the_one_that_it_lies_in(vector) -> None:
    parts = ", ".join([box(-60, 40, -50, 50), box(30.1, 40.1, 30.2, 40.2)])
    found = read(vector([*spread(["a", "b"]), (f"MULTIPOLYGON ({parts})", "tiny")]))
    assert found.names == ("a", "b", "tiny")
    (place,) = np.flatnonzero(found.labels == 2)
    assert (found.rows[place], found.columns[place]) == (40, 30)


def test_curved_polygons_are_polygons(vector) -> None:
    x, y, radius = WEST + 500, NORTH - 500, 100
    ends = [(x, y + radius), (x + radius, y), (x, y - radius), (x - radius, y), (x, y + radius)]
    arc = ", ".join(f"{east} {north}" for east, north in ends)
    found = read(vector([*spread(["a", "b"]), (f"CURVEPOLYGON (CIRCULARSTRING ({arc}))", "round")]))
    assert found.pixels_per_class[2] == pytest.approx(np.pi * 100, rel=0.05)


@pytest.mark.parametrize(
    ("crs", "name", "driver"),
    [("", "s.gpkg", "GPKG"), (LOCAL, "s.gpkg", "GPKG"), ("", "s.shp", "ESRI Shapefile")],
)
def test_without_a_crs_that_of_the_rasters_is_assumed(vector, crs, name, driver) -> None:
    found = read(vector(spread(["a", "b"]), crs=crs, name=name, driver=driver))
    assert found.pixels_per_class == (4, 4)
    assert any("CRS of the samples is unknown" in hint and "UTM zone 31N" in hint for hint in found.hints)
    assert not read(vector(spread(["a", "b"]), name="known.gpkg")).hints


def test_a_wrong_crs_is_named(vector) -> None:
    with pytest.raises(ClippanError, match=r"transformed from its CRS \(WGS 84\)"):
        read(vector(spread(["a", "b"]), crs="EPSG:4326"))
    with pytest.raises(ClippanError, match=r"lies on the rasters, whose CRS .* was assumed"):
        read(vector([("POINT (3 45)", "a")], crs="", name="degrees.gpkg"))
    with pytest.raises(ClippanError, match="a class in the field class"):
        read(vector([(point(3, 3), None)], name="blank.gpkg"))


def test_rasters_without_coordinates_are_named(vector) -> None:
    bare = Grid(SIZE, SIZE, (0, 1, 0, 0, 0, 1), "")
    path = vector([("POINT (500 45)", "a")], crs="EPSG:4326")
    with pytest.raises(ClippanError, match=r"which have no coordinates, while the samples are in WGS 84; georeference"):
        samples.read_samples(path, "", "class", bare, 0, Context())


def test_a_class_in_one_place_leaves_the_blocks_of_the_others(vector) -> None:
    features = spread(["a", "b", "c"])
    assert read(vector(features)).group_unit == "block of 32 pixels"
    found = read(vector([*features, (point(70, 70), "rare")], name="rare.gpkg"))
    assert found.group_unit == "block of 32 pixels"
    assert found.groups_per_class[3] == 1
    close = [*features, (point(66, 66), "close"), (point(86, 86), "close")]  # in one block of 32, in two of 16
    assert read(vector(close, name="close.gpkg")).group_unit == "block of 16 pixels"


def test_classes_that_differ_in_case_are_named(vector) -> None:
    found = read(vector(spread(["corn", "Corn", "rye"])))
    assert found.names == ("Corn", "corn", "rye")
    assert any("differ only in case" in hint and "(Corn, corn)" in hint for hint in found.hints)


def test_a_digest_knows_copies_by_order_and_crs(vector) -> None:
    features = spread(["a", "b"])
    digest = samples.samples_sha256(vector(features), "", "class")
    assert samples.samples_sha256(vector(features, name="copy.gpkg"), "", "class") == digest
    assert samples.samples_sha256(vector(features[::-1], name="turned.gpkg"), "", "class") != digest
    assert samples.samples_sha256(vector(features, crs="EPSG:32632", name="moved.gpkg"), "", "class") != digest

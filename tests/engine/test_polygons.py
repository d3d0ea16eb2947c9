"""Polygons of maps: they are the map, share their edges, and are whole or not there at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from conftest import UTM, write_raster
from osgeo import gdal, ogr

from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs.kinds import PolygonFile
from clippan.segmentation import polygons, regions

ogr.UseExceptions()
VECTORS = get_args(PolygonFile)[1].endings
TABLE = parse_prompts("water, river; forest; grass; crops; roofs")


def blobs(height=61, width=67, classes=4, seed=0, smooth=3):
    """A random map of values 1 to ``classes``, in patches of about ``smooth`` pixels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(classes, height, width))
    for axis in (1, 2):
        noise = sum(np.roll(noise, shift, axis) for shift in range(smooth))
    return (noise.argmax(axis=0) + 1).astype(np.uint8)


def save(folder, values, name="map.tif", pixel=1.0, origin=(0.0, 0.0), epsg=UTM):
    return write_raster(folder / name, values, pixel, origin, epsg)


def write(
    folder, values, output="out.fgb", min_area=0, simplify=0.0, table=TABLE, confidence=None, context=None, **place
):
    path = save(folder, values, **place)
    sure = save(folder, confidence, "confidence.tif", **place) if confidence is not None else None
    out = str(folder / output)
    return polygons.write_polygons(path, sure, out, table, min_area, simplify, "starter", context or Context()), out


def features(path):
    """Attributes and geometry of each feature."""
    dataset = ogr.Open(path)
    layer = dataset.GetLayer(0)
    return [(feature.items(), feature.GetGeometryRef().Clone()) for feature in layer]


def groups(values):
    """The region of each pixel, slowly."""
    found = np.full(values.shape, -1)
    count = 0
    for start in np.ndindex(values.shape):
        if found[start] >= 0:
            continue
        waiting = [start]
        found[start] = count
        while waiting:
            y, x = waiting.pop()
            for other in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= other[0] < values.shape[0] and 0 <= other[1] < values.shape[1]
                if inside and found[other] < 0 and values[other] == values[start]:
                    found[other] = count
                    waiting.append(other)
        count += 1
    return found


def burnt(path, shape):
    """The map that the polygons make."""
    source = ogr.Open(path)
    target = gdal.GetDriverByName("MEM").Create("", shape[1], shape[0], 1, gdal.GDT_Byte)
    target.SetGeoTransform((0, 1, 0, 0, 0, -1))
    target.SetProjection(source.GetLayer(0).GetSpatialRef().ExportToWkt())
    gdal.RasterizeLayer(target, [1], source.GetLayer(0), options=["ATTRIBUTE=value"])
    return target.ReadAsArray()


def check_cover(found, area=None):
    """Valid, and neither gaps (of a whole area) nor overlaps."""
    assert all(geometry.IsValid() for _, geometry in found)
    union = ogr.Geometry(ogr.wkbMultiPolygon)
    for _, geometry in found:
        union.AddGeometry(geometry)
    total = sum(geometry.GetArea() for _, geometry in found)
    assert union.UnionCascaded().GetArea() == pytest.approx(total, abs=1e-6)
    if area is not None:
        assert total == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize(("smooth", "lowest"), [(1, 0), (1, 1), (3, 0), (4, 1)])
def test_polygons_are_the_map(tmp_path, smooth, lowest):
    values = blobs(smooth=smooth) - (lowest == 0)
    confidence = np.random.default_rng(1).random(values.shape).astype(np.float32)
    count, path = write(tmp_path, values, confidence=confidence)
    found = features(path)
    region = groups(values)
    assert count == len(found) == len(np.unique(region[values > 0]))
    assert np.array_equal(burnt(path, values.shape), values)
    check_cover(found, (values > 0).sum())
    for row, geometry in found:
        assert geometry.GetArea() == row["area_px"] == pytest.approx(row["hectares"] * 1e4)
        left, _, _, top = geometry.GetEnvelope()
        y = round(-top)
        x = next(
            x
            for x in range(round(left), values.shape[1])
            if geometry.Contains(ogr.CreateGeometryFromWkt(f"POINT ({x + 0.5} {-y - 0.5})"))
        )
        here = region == region[y, x]
        assert (row["value"], row["area_px"]) == (values[y, x], here.sum())
        assert row["confidence"] == pytest.approx(confidence[here].mean(), rel=1e-5)
        assert row["class"] == TABLE.names[row["value"] - 1]
        assert row["prompt"] == ("water, river" if row["value"] == 1 else row["class"])
        assert row["model"] == "starter"


@pytest.mark.parametrize("simplify", [0.5, 1.0, 2.5, 40.0])
@pytest.mark.parametrize(("smooth", "seed"), [(2, 0), (3, 1), (7, 2)])
def test_simplified_neighbours_share_their_edges(tmp_path, simplify, smooth, seed):
    values = blobs(40, 45, seed=seed, smooth=smooth)
    count, path = write(tmp_path, values, "out.gpkg", simplify=simplify)
    found = features(path)
    _, plain = write(tmp_path, values, "plain.gpkg")
    assert count == len(found) == len(features(plain))
    check_cover(found, values.size)
    for (row, geometry), (exact, original) in zip(found, features(plain)):
        assert row == exact
        line, other = geometry.GetBoundary(), original.GetBoundary()
        assert geometry.GetArea() > 0
        for number in range(max(line.GetGeometryCount(), 1)):
            part = line.GetGeometryRef(number) if line.GetGeometryCount() else line
            for point in part.GetPoints():  # corners stay, so only what lies between moves
                assert other.Distance(ogr.CreateGeometryFromWkt(f"POINT ({point[0]} {point[1]})")) == 0
        for x, y in original.GetGeometryRef(0).GetPoints():
            assert line.Distance(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})")) < simplify + 1e-9


def test_simplifying_leaves_out_corners(tmp_path):
    rows, columns = np.mgrid[:80, :80]
    values = np.where(rows * 3 > columns * 2 + 20, 1, 2).astype(np.uint8)
    _, plain = write(tmp_path, values, "plain.fgb")
    _, path = write(tmp_path, values, simplify=1.0)
    points = [
        sum(geometry.GetGeometryRef(0).GetPointCount() for _, geometry in features(name)) for name in (plain, path)
    ]
    assert points[0] > 100
    assert points[1] <= 12


def test_an_island_stays_in_its_bay(tmp_path):
    """A simple line across the bay would leave the island in the other class."""
    values = np.full((40, 60), 1, np.uint8)
    values[20:] = 2
    values[12:20, 20:40] = 2
    values[15:17, 28:31] = 3
    _, path = write(tmp_path, values, simplify=10.0)
    found = features(path)
    check_cover(found, values.size)
    assert [geometry.GetGeometryCount() for row, geometry in found if row["value"] == 2] == [2]


@pytest.mark.parametrize("simplify", [0.0, 2.0])
@pytest.mark.parametrize("strip", [1, 300, 1000])
def test_strips_do_not_show(tmp_path, monkeypatch, strip, simplify):
    values = blobs(smooth=3) - 1
    confidence = np.random.default_rng(1).random(values.shape).astype(np.float32)
    options = {"min_area": 6, "simplify": simplify, "confidence": confidence}
    _, whole = write(tmp_path, values, "whole.geojson", **options)
    monkeypatch.setattr(regions.ClassMap.__init__, "__defaults__", (None, strip))
    _, parts = write(tmp_path, values, "parts.geojson", **options)
    with open(whole, encoding="utf-8") as one, open(parts, encoding="utf-8") as other:  # noqa: PTH123
        ours, theirs = (json.load(file)["features"] for file in (one, other))
    for mine, yours in zip(ours, theirs):
        assert mine["geometry"] == yours["geometry"]
        for name, value in mine["properties"].items():
            assert value == (
                pytest.approx(yours["properties"][name]) if name == "confidence" else yours["properties"][name]
            )
    assert len(ours) == len(theirs)


def test_components_are_numbered_by_their_first_items():
    """scipy does so, but does not promise it, and the order of polygons hangs on it."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 1000, (2, 600))
    group, count = regions.connected_groups(one, other, 1000)
    assert np.array_equal(group[one], group[other])
    found, first = np.unique(group, return_index=True)
    assert np.array_equal(found, np.arange(count))
    assert np.array_equal(first, np.sort(first))
    assert count >= 1000 - len(one)


@pytest.mark.parametrize("min_area", [2, 7, 40])
@pytest.mark.parametrize("smooth", [1, 3])
def test_small_areas_join_their_largest_neighbour(tmp_path, min_area, smooth):
    values = blobs(smooth=smooth)
    _, path = write(tmp_path, values, min_area=min_area)
    found = features(path)
    assert min(row["area_px"] for row, _ in found) >= min_area
    check_cover(found, values.size)
    after = burnt(path, values.shape)
    assert len(np.unique(groups(after))) == len(found)  # what touches after all is one
    before = groups(values)
    large = np.bincount(before.ravel())[before] >= min_area
    assert np.array_equal(after[large], values[large])


def test_which_neighbour_and_what_of_nothing(tmp_path):
    values = np.zeros((12, 20), np.uint8)
    values[:, :8] = 1
    values[4:6, 6:10] = 3  # beside 1 and beside nothing: joins 1
    values[2, 2] = 2  # within 1
    values[9, 2] = 0  # a gap in 1 stays
    values[1, 15] = 2  # alone in nothing: left out
    values[8:11, 13:17] = 2  # alone but large enough
    _, path = write(tmp_path, values, min_area=9)
    wanted = values.copy()
    wanted[4:6, 6:10] = wanted[2, 2] = 1
    wanted[1, 15] = 0
    assert np.array_equal(burnt(path, values.shape), wanted)


@pytest.mark.parametrize("ending", VECTORS)
def test_formats(tmp_path, ending):
    names = ('wäter, "deep"', "森林", "x" * 190 + "é")
    table = PromptTable(
        (ClassPrompt(names[0], ("r'iver",)), ClassPrompt(names[1]), ClassPrompt(names[2], ("é" * 100,)))
    )
    values = blobs(classes=3, smooth=6)
    for _ in range(2):  # the second replaces the first
        count, path = write(tmp_path, values, f"a.b{ending}", table=table, simplify=1.0)
    found = features(path)
    assert count == len(found)
    assert {row["class"] for row, _ in found} == set(names)
    prompts = {row["value"]: row["prompt"] for row, _ in found}
    assert prompts[1] == f"{names[0]}, r'iver"
    assert f"{names[2]}, {'é' * 100}".startswith(prompts[3])
    assert all(row["confidence"] is None for row, _ in found)
    assert list(found[0][0]) == ["value", "class", "confidence", "prompt", "model", "area_px", "hectares"]
    sidecars = {f"a.b{part}" for part in (".shx", ".dbf", ".prj", ".cpg")} if ending == ".shp" else set()
    assert set(os.listdir(tmp_path)) == {"map.tif", f"a.b{ending}"} | sidecars
    dataset = ogr.Open(path)
    assert dataset.GetLayer(0).GetSpatialRef().GetAuthorityCode(None) == ("4326" if ending == ".geojson" else str(UTM))


def test_geojson_is_in_degrees(tmp_path):
    _, path = write(tmp_path, blobs(smooth=6), "out.geojson", pixel=10.0, origin=(500000.0, 5000000.0))
    left, right, bottom, top = features(path)[0][1].GetEnvelope()
    assert 2.99 < left < right < 3.02
    assert 45.1 < bottom < top < 45.2


def test_255_classes(tmp_path):
    table = PromptTable(tuple(ClassPrompt(f"class {number}") for number in range(1, 256)))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    count, path = write(tmp_path, values, table=table, simplify=1.0)
    assert count == 255
    assert {row["value"]: row["class"] for row, _ in features(path)} == {n: f"class {n}" for n in range(1, 256)}


@pytest.mark.parametrize("ending", VECTORS)
def test_nothing_but_nothing(tmp_path, ending):
    count, path = write(tmp_path, np.zeros((30, 20), np.uint8), f"out{ending}", simplify=1.0, min_area=5)
    assert count == 0
    assert features(path) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("simplify", [0.0, 3.0])
def test_tiny_maps(tmp_path, shape, simplify):
    values = np.full(shape, 2, np.uint8)
    count, path = write(tmp_path, values, simplify=simplify)
    assert count == 1
    assert np.array_equal(burnt(path, shape), values)


def test_a_picture_without_coordinates(tmp_path):
    values = np.zeros((10, 20), np.uint8)
    values[2:5, 3:9] = 1
    _, path = write(tmp_path, values, "out.gpkg", origin=None, epsg=None)
    ((row, geometry),) = features(path)
    assert geometry.GetEnvelope() == (3, 9, -5, -2)
    assert row["hectares"] is None
    assert row["area_px"] == 18
    _, path = write(tmp_path, values, "out.geojson", origin=None, epsg=None)
    assert features(path)[0][1].GetEnvelope() == (3, 9, -5, -2)


def test_hectares_in_degrees(tmp_path):
    values = np.zeros((100, 100), np.uint8)
    values[:50], values[50:, :50] = 1, 2
    _, path = write(tmp_path, values, pixel=0.01, origin=(3.0, 60.0), epsg=4326)
    one, two = (row["hectares"] for row, _ in features(path))
    assert one == pytest.approx(313_100, rel=0.001)  # 56.2 km × 55.7 km
    assert two * 2 > one * 1.005  # further south


def test_turned_and_mirrored_grids(tmp_path):
    values = np.zeros((10, 20), np.uint8)
    values[2:5, 3:9] = 1
    for number, transform in enumerate([(100, 3, 4, 200, 4, -3), (100, 1, 0, 200, 0, 1), (100, -2, 0, 200, 0, -2)]):
        path = save(tmp_path, values, f"{number}.tif")
        dataset = gdal.Open(path, gdal.GA_Update)
        dataset.SetGeoTransform(transform)
        dataset = None
        out = str(tmp_path / f"{number}.gpkg")
        assert polygons.write_polygons(path, None, out, TABLE, 0, 0.0, "m", Context()) == 1
        ((row, geometry),) = features(out)
        assert geometry.IsValid()
        assert geometry.GetArea() == pytest.approx(row["hectares"] * 1e4)
        corner = gdal.ApplyGeoTransform(transform, 3, 2)
        assert min(np.hypot(x - corner[0], y - corner[1]) for x, y in geometry.GetGeometryRef(0).GetPoints()) < 1e-9


def test_a_geopackage_keeps_the_tags_of_the_map(tmp_path):
    path = save(tmp_path, blobs())
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.SetMetadataItem("CLIPPAN_MODEL", "starter")
    dataset = None
    out = str(tmp_path / "out.gpkg")
    polygons.write_polygons(path, None, out, TABLE, 0, 1.0, "starter", Context())
    dataset = ogr.Open(out)
    assert dataset.GetLayer(0).GetMetadataItem("CLIPPAN_MODEL") == "starter"


def test_cancelled_anywhere_leaves_what_was_there(tmp_path):
    (tmp_path / "out.gpkg").write_text("old")
    values, looks = blobs(120, 120, smooth=4), []

    def until(number):
        def cancelled():
            looks.append(number)
            return looks.count(number) > number

        return Context(cancelled=cancelled)

    number = stopped = 0
    while True:
        try:
            write(tmp_path, values, "out.gpkg", 5, 1.5, context=until(number))
            break
        except Cancelled:
            assert sorted(os.listdir(tmp_path)) == ["map.tif", "out.gpkg"]
            assert (tmp_path / "out.gpkg").read_text() == "old"
            number, stopped = number + 7, stopped + 1
    assert stopped > 5
    assert len(features(str(tmp_path / "out.gpkg"))) > 50


def test_progress_goes_up(tmp_path):
    seen = []
    write(tmp_path, blobs(), simplify=1.0, min_area=4, context=Context(lambda percent, message: seen.append(percent)))
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 100


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ClippanError, match=r"none.out.gpkg could not be written \(.*choose another folder."):
        write(tmp_path, blobs(), "none/out.gpkg")
    with pytest.raises(ClippanError, match=r"The map .* does not exist"):
        polygons.write_polygons(str(tmp_path / "no.tif"), None, str(tmp_path / "o.gpkg"), TABLE, 0, 1.0, "m", Context())
    path, other = save(tmp_path, blobs()), save(tmp_path, blobs(30, 30), "other.tif")
    with pytest.raises(ClippanError, match="not on the grid of the map"):
        polygons.write_polygons(path, other, str(tmp_path / "o.gpkg"), TABLE, 0, 1.0, "m", Context())
    assert sorted(os.listdir(tmp_path)) == ["map.tif", "other.tif"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from osgeo import gdal
gdal.UseExceptions()
from clippan.core.errors import ClippanError
from clippan.core.context import Context
from clippan.segmentation import polygons
from clippan.catalogue.prompts import parse_prompts
resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
try:
    polygons.write_polygons(sys.argv[1], None, sys.argv[2], parse_prompts("a;b;c;d"), 0, 0.0, "m", Context())
except ClippanError as error:
    print("ONE SENTENCE:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("ending", VECTORS)
def test_a_disk_that_fills_up(tmp_path, ending):
    path = save(tmp_path, blobs(100, 100, smooth=1))
    command = [sys.executable, "-c", LIMITED, path, str(tmp_path / f"out{ending}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "could not be written" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["map.tif"]

"""Areas on the ground, and those of classes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from osgeo import osr

from clippan.catalogue.prompts import parse_prompts
from clippan.core.errors import ClippanError
from clippan.labels import areas
from clippan.labels.areas import ClassAreaCounter, PixelAreas
from clippan.raster.grid import Grid

EARTH = 510_065_621.724  # km², of WGS 84 (Moritz 2000)


def wkt(code: int) -> str:
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(code)
    return reference.ExportToWkt()


def ground(grid: Grid) -> np.ndarray:
    found = PixelAreas(grid).areas_in(0, 0, grid.width, grid.height)
    return np.broadcast_to(found, (grid.height, grid.width))


def test_pixels_of_the_whole_earth_make_the_earth():
    found = ground(Grid(360, 180, (-180, 1, 0, 90, 0, -1), wkt(4326)))
    assert found.sum() / 1e6 == pytest.approx(EARTH, rel=1e-9)
    assert np.allclose(found, found[::-1])  # south as north
    assert (np.diff(found[:90, 0]) > 0).all()


@pytest.mark.parametrize(
    ("code", "geotransform", "metres"),
    [
        (32631, (500000, 10, 0, 5000000, 0, -10), 100.0),
        (32631, (500000, 8, 6, 5000000, 6, -8), 100.0),  # turned
        (2263, (1e6, 30, 0, 2e5, 0, -30), 900 * 0.3048006096012192**2),  # US survey feet
        (6933, (0, 1000, 0, 5000000, 0, -1000), 1e6),  # keeps areas
    ],
)
def test_projected_coordinates_are_believed(code, geotransform, metres):
    found = PixelAreas(Grid(50, 40, geotransform, wkt(code))).areas_in(3, 4, 5, 6)
    assert found.size == 1
    assert found.item() == pytest.approx(metres, rel=1e-9)


def test_web_mercator_is_not():
    """At 60° north, it is twice too long and wide; the same ground in degrees has the same area."""
    x, y = 20037508.342789244 / 18, 8399737.889818361  # 10° east, 60° north
    grid = Grid(100, 100, (x, 10, 0, y, 0, -10), wkt(3857))
    found = ground(grid)
    assert found[0, 0] == pytest.approx(25.08, rel=1e-3)
    degree = 20037508.342789244 / 180
    corner = math.degrees(2 * math.atan(math.exp((y - 1000) / 6378137)) - math.pi / 2)
    same = ground(Grid(1, 1, (10, 1000 / degree, 0, 60, 0, corner - 60), wkt(4326)))
    assert found.sum() == pytest.approx(same.item(), rel=1e-6)


def test_turned_degrees():
    flat = ground(Grid(64, 64, (10, 0.001, 0, 50, 0, -0.001), wkt(4326)))
    turned = ground(Grid(64, 64, (10, 0.0008, 0.0006, 50, 0.0006, -0.0008), wkt(4326)))
    assert turned[0, 0] == pytest.approx(flat[0, 0], rel=1e-4)


def test_across_the_antimeridian():
    found = ground(Grid(40, 3, (179.99, 0.001, 1e-9, 60, 1e-9, -0.001), wkt(4326)))
    assert found.max() / found.min() < 1.001


@pytest.mark.parametrize(
    "grid", [Grid(9, 9, None, ""), Grid(9, 9, (0, 1, 0, 0, 0, -1), ""), Grid(9, 9, None, wkt(4326))]
)
def test_without_coordinates_there_are_no_areas(grid):
    assert not PixelAreas(grid).known
    assert np.isnan(PixelAreas(grid).areas_in(0, 0, 9, 9)).all()


def counted(grid, classes, confidence, valid, size):
    found = ClassAreaCounter(
        parse_prompts('{"classes": [{"name": "water", "colour": "#0000ff"}, {"name": "forest"}]}'), grid
    )
    for y in range(0, grid.height, size):
        for x in range(0, grid.width, size):
            part = (slice(y, y + size), slice(x, x + size))
            found.add(x, y, classes[part], confidence[part], valid[part])
    return found.result()


@pytest.mark.parametrize("code", [4326, 32631])
def test_classes_are_counted(code):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (90, 70)).astype(np.uint8)
    confidence = rng.random((90, 70)).astype(np.float32)
    valid = rng.random((90, 70)) < 0.8
    pixel = 0.1 if code == 4326 else 10
    grid = Grid(70, 90, (3, pixel, 0, 60, 0, -pixel), wkt(code))
    rows = counted(grid, classes, confidence, valid, 32)
    assert [(row.value, row.name, row.colour) for row in rows[:1]] == [(1, "water", "#0000ff")]
    assert [row.value for row in rows] == [1, 2, 0]
    assert rows[-1].name == "unclassified"
    assert sum(row.share for row in rows) == pytest.approx(1)
    for row in rows:
        here = valid & (classes == row.value)
        assert row.pixels == here.sum()
        assert row.share == pytest.approx(here.sum() / valid.sum())
        assert row.confidence == pytest.approx(confidence[here].mean(), rel=1e-5)
        assert row.hectares == pytest.approx(ground(grid)[here].sum() / 1e4)


def test_nothing_but_nodata():
    grid = Grid(8, 8, None, "")
    nothing = np.zeros((8, 8), np.uint8)
    rows = counted(grid, nothing, nothing.astype(np.float32), nothing.astype(bool), 8)
    assert all((row.pixels, row.share, row.hectares, row.confidence) == (0, 0, None, None) for row in rows)
    rows = counted(grid, nothing, nothing.astype(np.float32), np.ones((8, 8), bool), 8)
    assert (rows[-1].pixels, rows[-1].share) == (64, 1)


def test_table_of_areas(tmp_path):
    path = tmp_path / "areas.csv"
    path.write_text("old")
    found = ClassAreaCounter(
        parse_prompts('{"classes": [{"name": "a \\"b\\", c"}, {"name": "wäter"}, {"name": "森林"}]}'),
        Grid(4, 4, None, ""),
    )
    found.add(0, 0, np.full((4, 4), 1, np.uint8), np.full((4, 4), 0.5, np.float32), np.ones((4, 4), bool))
    areas.write_csv(str(path), found.result())
    assert path.read_bytes().startswith(b"\xef\xbb\xbfvalue,class,")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ['a "b", c', "wäter", "森林", "unclassified"]
    assert rows[0] | {"colour": ""} == {
        **{"value": "1", "class": 'a "b", c', "colour": "", "pixels": "16", "percent": "100.0000"},
        **{"hectares": "", "confidence": "0.5000"},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["areas.csv"]


def test_table_that_cannot_be_written(tmp_path, monkeypatch):
    path = str(tmp_path / "none" / "areas.csv")
    with pytest.raises(ClippanError, match=r"areas.csv could not be written \(No such file .*choose another"):
        areas.write_csv(path, ())

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ClippanError, match=r"The disk of .* is full; free some space"):
        areas.write_csv(str(tmp_path / "areas.csv"), ())
    assert not list(tmp_path.iterdir())

"""The tile index: what is cut, how it is shown, what is kept, added and dropped, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from colours import ColourEncoder, use
from conftest import write_raster
from osgeo import gdal, ogr, osr

from clippan.core.errors import Cancelled, ClippanError
from clippan.handlers import index as build
from clippan.handlers import run
from clippan.jobs import AboutIndexRequest, Context, IndexRequest, SearchRequest, Stretch
from clippan.raster.products import find_images
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.search import geopackage
from clippan.search.geopackage import GeoPackageReader
from clippan.search.tile_index import TileFilter

QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def quadrants(size=64, dtype="uint8"):
    """Red, green above, blue, yellow below: (3, size, size)."""
    half = size // 2
    values = np.zeros((3, size, size), dtype)
    for number, colour in enumerate(QUADRANTS):
        row, column = divmod(number, 2)
        area = values[:, row * half : (row + 1) * half, column * half : (column + 1) * half]
        area[:] = np.array(colour, dtype)[:, None, None]
    return values


@pytest.fixture
def model(monkeypatch):
    return use(monkeypatch)


@pytest.fixture
def index(tmp_path):
    """Runs the job on rasters, with tiles of 16 pixels and no overlap."""

    def make(*rasters, output="index.gpkg", context=None, **options):
        settings = {"tile": (16,), "overlap": 0.0, **options}
        return run(IndexRequest(rasters=tuple(map(str, rasters)), output=str(tmp_path / output), **settings), context)

    return make


def rows(path):
    """All tiles as (raster, x, y), with their vectors, sorted."""
    found = GeoPackageReader(str(path))
    ids = found.tile_ids(TileFilter())
    tiles = found.tiles(ids.tolist())
    names = {number: Path(raster.path).name for number, raster in found.rasters.items()}
    listed = [(names[tile.raster_id], tile.window.x, tile.window.y) for tile in tiles]
    order = sorted(range(len(listed)), key=listed.__getitem__)
    return [listed[position] for position in order], found.vectors(ids)[order]


def test_what_is_made_opens_as_a_layer(model, index, raster, tmp_path):
    result = index(raster("a_20210630.tif", quadrants(), pixel=10.0))
    assert (result.tiles, result.rasters, result.added, result.kept, result.dropped) == (16, 1, 16, 0, 0)
    assert result.rate > 0
    dataset = ogr.Open(str(tmp_path / "index.gpkg"))
    layer = dataset.GetLayerByName("tiles")
    assert layer.GetSpatialRef().GetAuthorityCode(None) == "32631"
    assert layer.GetFeatureCount() == 16
    feature = layer.GetFeature(2)
    assert feature.GetGeometryRef().GetEnvelope() == (500160, 500320, 4999840, 5000000)
    assert (feature["raster"], feature["x"], feature["y"], feature["width"], feature["scale"]) == (
        "a_20210630.tif",
        16,
        0,
        16,
        pytest.approx(160, rel=0.01),
    )
    assert feature["date"].startswith("2021")
    # a row of the matrix a tile
    assert (tmp_path / "index.gpkg.vectors").stat().st_size == 16 * 4 * 2
    assert not list(tmp_path.glob(".clippan-*"))


def test_about(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants(), pixel=10.0)
    index(path)
    about = run(AboutIndexRequest(index=str(tmp_path / "index.gpkg")))
    assert (about.model, about.label, about.tiles, about.rasters, about.crs) == (
        "colours",
        "Colours",
        16,
        1,
        "EPSG:32631",
    )
    assert about.extent == pytest.approx((500000, 4999360, 500640, 5000000))
    assert about.files == (path,)
    assert about.complete
    assert "Unknown model" in about.warning


def test_a_second_run_keeps_adds_renews_and_drops(model, index, raster, tmp_path):
    one, two = raster("one.tif", quadrants()), raster("two.tif", quadrants())
    index(one, two)
    model.seen = 0
    result = index(one, two)
    assert (result.added, result.kept, model.seen) == (0, 32, 0)
    three = raster("three.tif", quadrants())
    assert (index(three).added, index(three).tiles) == (16, 48)
    raster("two.tif", 255 - quadrants())
    os.utime(two, ns=(1, 1))
    result = index(one, two, three)
    assert (result.added, result.kept, result.dropped, result.tiles) == (16, 32, 16, 48)
    Path(one).unlink()
    result = index(two)
    assert (result.dropped, result.tiles, result.rasters) == (16, 32, 2)
    # rows that were freed are filled again
    size = (tmp_path / "index.gpkg.vectors").stat().st_size
    assert index(raster("four.tif", quadrants())).tiles == 48
    assert (tmp_path / "index.gpkg.vectors").stat().st_size == size
    listed, vectors = rows(tmp_path / "index.gpkg")
    assert [name for name, _, _ in listed] == ["four.tif"] * 16 + ["three.tif"] * 16 + ["two.tif"] * 16
    assert vectors[0] == pytest.approx([0.98, 0, 0, 0.196], abs=0.01)


def test_another_look_at_a_raster_indexes_it_anew(model, index, raster):
    path = raster("a.tif", quadrants())
    index(path)
    result = index(path, tile=(32,))
    assert (result.added, result.dropped, result.tiles) == (4, 16, 4)


def test_a_raster_that_moved_is_found_again(model, index, raster, tmp_path):
    path = Path(raster("a.tif", quadrants()))
    index(path)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "a.tif")
    lines = []
    result = index(moved, context=Context(log=lines.append))
    assert (result.added, result.kept, result.rasters) == (0, 16, 1)
    assert f"{path} has moved to {moved}." in lines


def test_rasters_of_a_drive_that_is_not_connected_are_kept(model, index, raster, tmp_path):
    drive = tmp_path / "drive"
    drive.mkdir()
    write_raster(drive / "a.tif", quadrants())
    index(drive / "a.tif")
    (drive / "a.tif").rename(tmp_path / "b.tif")
    drive.rmdir()
    assert index(raster("c.tif", quadrants())).rasters == 2


def test_an_index_that_moved_with_its_rasters_finds_them(model, index, tmp_path):
    (tmp_path / "one").mkdir()
    write_raster(tmp_path / "one" / "a.tif", quadrants())
    index(tmp_path / "one" / "a.tif", output="one/index.gpkg")
    (tmp_path / "one").rename(tmp_path / "two")
    result = run(SearchRequest(index=str(tmp_path / "two" / "index.gpkg"), text=("red",)))
    assert result.hits[0].raster == str(tmp_path / "two" / "a.tif")
    assert result.hints == ()


def test_an_interruption_costs_nothing_that_was_committed(model, index, raster, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_COMMIT_TILES", 8)
    paths = [raster(f"{name}.tif", quadrants() // (number + 1)) for number, name in enumerate("abc")]
    index(*paths, output="whole.gpkg")
    reached = []

    def stop():
        return model.seen >= 24 + reached[0] if reached else False

    reached.append(model.seen)
    with pytest.raises(Cancelled):
        index(*paths, context=Context(cancelled=stop))
    about = run(AboutIndexRequest(index=str(tmp_path / "index.gpkg")))
    assert not about.complete
    assert 0 < about.tiles < 48
    before = model.seen
    result = index(*paths)
    assert result.tiles == 48
    assert model.seen - before == 48 - about.tiles
    whole, parts = rows(tmp_path / "whole.gpkg"), rows(tmp_path / "index.gpkg")
    assert whole[0] == parts[0]
    np.testing.assert_array_equal(whole[1], parts[1])


def test_a_job_that_is_cancelled_at_once_leaves_nothing(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants())
    with pytest.raises(Cancelled):
        index(path, context=Context(cancelled=lambda: True))
    assert [item.name for item in tmp_path.iterdir()] == ["a.tif"]


def test_a_full_disk_loses_nothing(model, index, raster, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_COMMIT_TILES", 8)
    paths = [raster(f"{number}.tif", quadrants()) for number in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))  # the matrix reaches that first
    try:
        with pytest.raises(ClippanError) as caught:
            index(*paths, output="other.gpkg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in str(caught.value)
    assert not (tmp_path / "other.gpkg").exists()
    index(paths[0])
    real = geopackage.GeoPackageWriter._write_vectors
    calls = []

    def full(self, ids, vectors):
        calls.append(1)
        if len(calls) > 3:
            raise geopackage._commit_error(self.path, OSError(errno.ENOSPC, "No space left on device"))
        real(self, ids, vectors)

    monkeypatch.setattr(geopackage.GeoPackageWriter, "_write_vectors", full)
    with pytest.raises(ClippanError, match=r"The disk of .* is full; free some space and index again: what"):
        index(*paths)
    kept = run(AboutIndexRequest(index=str(tmp_path / "index.gpkg")))
    assert kept.tiles == 16 + 3 * 8
    monkeypatch.setattr(geopackage.GeoPackageWriter, "_write_vectors", real)
    result = index(*paths)
    assert (result.added, result.tiles) == (320 - kept.tiles, 320)


def test_two_processes_do_not_write_one_index(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants())
    index(path)
    with geopackage.GeoPackageWriter(str(tmp_path / "index.gpkg"), GeoPackageReader(str(tmp_path / "index.gpkg")).info):
        with pytest.raises(ClippanError, match=r"Another process is indexing into .*; wait until it has finished"):
            index(path)
        # reading goes on
        assert run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("red",))).hits
    assert index(path).kept == 16


def test_a_search_sees_what_another_process_has_added(model, index, raster, tmp_path):
    index(raster("a.tif", quadrants()))
    name = str(tmp_path / "index.gpkg")
    assert run(SearchRequest(index=name, text=("red",))).tiles == 16
    index(raster("b.tif", quadrants()))
    assert run(SearchRequest(index=name, text=("red",))).tiles == 32


def test_tiles_without_data_are_left_out(model, index, raster, tmp_path):
    values = quadrants()
    values[:, :, :32] = 7
    values[:, :4, 32:48] = 7
    result = index(raster("a.tif", values, nodata=7))
    assert (result.added, result.empty) == (8, 8)
    # a few missing pixels take the colour of the others
    assert rows(tmp_path / "index.gpkg")[1][0] == pytest.approx([0, 0.98, 0, 0.196], abs=0.01)
    with pytest.raises(ClippanError, match="nothing but nodata"):
        index(raster("b.tif", np.full((3, 32, 32), 7, np.uint8), nodata=7), output="b.gpkg")
    assert not (tmp_path / "b.gpkg").exists()


def test_nodata_that_no_raster_declares(model, index, raster):
    values = quadrants()
    values[:, :32] = 9
    assert index(raster("a.tif", values), nodata=9).empty == 8


@pytest.mark.parametrize("scales", [(16,), (16, 40)])
@pytest.mark.parametrize("size", [(64, 64), (70, 50), (16, 100), (9, 30)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_tiles_cover_every_pixel(raster, size, overlap, scales):
    scene = Renderer(raster("a.tif", np.zeros((3, *size), np.uint8)), RenderOptions(tile=scales, overlap=overlap))
    plan = scene.tile_plan(16)
    windows = [window for _, window, _ in plan.tiles()]
    assert len(windows) == len(plan) == len(set(windows))
    seen = {}
    for window in windows:
        assert min(window.x, window.y) >= 0
        assert window.width == window.height
        part = seen.setdefault(window.width, np.zeros(size, bool))[
            window.y : window.y + window.height, window.x : window.x + window.width
        ]
        assert part.shape == (window.height, window.width)
        part[:] = True
    assert set(seen) == {min(edge, *size) for edge in scales}
    assert all(part.all() for part in seen.values())
    assert [window for _, window, _ in plan.tiles(3)] == windows[3:]


def test_tile_sizes_in_metres(raster):
    metres = Renderer(
        raster("m.tif", np.zeros((3, 100, 100), np.uint8), pixel=2.0), RenderOptions(tile_metres=(40.0, 100.0))
    )
    assert {(window.width, round(scale)) for _, window, scale in metres.tile_plan(16).tiles()} == {(20, 40), (50, 100)}
    # a degree of longitude is half as long at 60° north
    degrees = raster("d.tif", np.zeros((3, 200, 200), np.uint8), pixel=1e-4, origin=(10.0, 60.0), epsg=4326)
    _, window, scale = next(Renderer(degrees, RenderOptions(tile_metres=(111.32,))).tile_plan(16).tiles())
    assert (window.width, window.height) == (20, 10)
    assert scale == pytest.approx(111, abs=2)
    plain = raster("p.tif", np.zeros((3, 50, 50), np.uint8), origin=None, epsg=None)
    with pytest.raises(ClippanError, match="has no coordinates; give the tile size in pixels"):
        Renderer(plain, RenderOptions(tile_metres=(10.0,))).tile_plan(16)
    assert next(Renderer(plain, RenderOptions()).tile_plan(16).tiles())[1].width == 16


@pytest.mark.parametrize(("gsd", "metres"), [(10, 640), (0.3, 78), (30, 1237)])
def test_tiles_suit_the_ground_resolution(raster, gsd, metres):
    scene = Renderer(raster("a.tif", np.zeros((3, 300, 300), np.uint8), pixel=float(gsd)), RenderOptions())
    _, window, scale = next(scene.tile_plan(192).tiles())
    assert scale == pytest.approx(metres, rel=0.02)
    assert window.width == pytest.approx(metres / gsd, abs=1.5)


def test_an_extent(model, index, raster):
    path = raster("a.tif", quadrants(), pixel=10.0)
    assert index(path, extent=(500010.0, 4999990.0, 500170.0, 4999995.0)).added == 2
    # the same in degrees
    box = gdal.Info(path, format="json")["wgs84Extent"]["coordinates"][0]
    west, north = min(x for x, _ in box), max(y for _, y in box)
    extent = (west + 1e-5, north - 2e-4, west + 2e-5, north - 1e-4)
    assert index(path, output="b.gpkg", extent=extent, crs="EPSG:4326").added == 1
    with pytest.raises(ClippanError, match="lies outside the extent"):
        index(path, output="c.gpkg", extent=(0.0, 0.0, 1.0, 1.0))
    with pytest.raises(ClippanError, match="CRS “nowhere” is not known"):
        index(path, output="c.gpkg", extent=(0.0, 0.0, 1.0, 1.0), crs="nowhere")


@pytest.mark.slow
def test_a_web_map_is_too_much_without_an_extent(model, index, tmp_path):
    description = tmp_path / "map.xml"
    description.write_text(
        '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}/${x}/${y}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>-20037508.34</UpperLeftX><UpperLeftY>20037508.34</UpperLeftY>"
        "<LowerRightX>20037508.34</LowerRightX><LowerRightY>-20037508.34</LowerRightY><TileLevel>19</TileLevel>"
        "<TileCountX>1</TileCountX><TileCountY>1</TileCountY><YOrigin>top</YOrigin></DataWindow>"
        "<Projection>EPSG:3857</Projection><BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY>"
        "<BandsCount>3</BandsCount></GDAL_WMS>"
    )
    with pytest.raises(ClippanError, match=r"would have [\d,]+ tiles; choose an extent"):
        index(description)
    # nobody answers: said, and nothing is left
    with pytest.raises(ClippanError, match="could not be read"):
        index(description, extent=(8.0, 50.0, 8.001, 50.001), crs="EPSG:4326", tile=(), tile_metres=(50.0,))
    assert [item.name for item in tmp_path.iterdir()] == ["map.xml"]


def test_rasters_of_several_crs_share_the_index(model, index, raster, tmp_path):
    index(raster("a.tif", quadrants(), pixel=10.0), raster("b.tif", quadrants(), pixel=10.0, epsg=32632))
    hits = run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("red",), rasters=("b.tif",), top=1)).hits
    # zone 32's easting 500000 is 9° east; zone 31 has it some 470 km further
    assert hits[0].bounds[0] == pytest.approx(971_000, abs=3000)


def test_pictures_without_coordinates(model, index, raster, tmp_path):
    plain = raster("a.tif", quadrants(), origin=None, epsg=None)
    index(plain)
    hit = run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("yellow",), top=1)).hits[0]
    assert hit.window[0] >= 32
    x, y, width, height = hit.window
    assert hit.bounds == (x, -y - height, x + width, -y)
    with pytest.raises(
        ClippanError, match="has coordinates, but the index holds pictures without; choose another output"
    ):
        index(raster("b.tif", quadrants()))
    # in an index with coordinates they have no place, and are found all the same
    result = index(plain, raster("c.tif", quadrants() // 2), output="mixed.gpkg")
    assert result.tiles == 32
    hits = run(SearchRequest(index=str(tmp_path / "mixed.gpkg"), text=("red",), rasters=("a.tif",))).hits
    assert hits
    assert all(item.bounds == item.outline == () for item in hits)


def test_broken_rasters_are_told_and_the_others_indexed(model, index, raster, tmp_path):
    good = raster("good.tif", quadrants())
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no raster")
    cut = Path(raster("cut.tif", np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)))
    cut.write_bytes(cut.read_bytes()[:6000])
    result = index(good, bad, cut)
    assert result.rasters == 2
    assert any("bad.tif is not a raster" in sentence for sentence in result.failed)
    assert any("cut.tif could not be read" in sentence for sentence in result.failed)
    assert not run(AboutIndexRequest(index=str(tmp_path / "index.gpkg"))).complete
    # once it is mended, it is indexed to its end
    raster("cut.tif", quadrants())
    assert index(good, cut).tiles == 32
    with pytest.raises(ClippanError, match="is not a raster"):
        index(bad, output="other.gpkg")
    assert not (tmp_path / "other.gpkg").exists()


def test_folders(tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for name in ("b.TIF", "a.jpg", "note.txt", "index.gpkg", "deep/deeper/c.vrt", "x.aux.xml"):
        (tmp_path / name).write_bytes(b"")
    found, failed, left = find_images([str(tmp_path), str(tmp_path / "a.jpg"), "WMS:http://x"])
    assert [Path(name).name for name in found[:3]] == ["a.jpg", "b.TIF", "c.vrt"]
    assert found[3:] == ["WMS:http://x"]
    assert failed == left == []
    (tmp_path / "empty").mkdir()
    assert "contains no rasters" in find_images([str(tmp_path / "empty")])[1][0]


def test_a_raster_is_stretched_as_a_whole(raster):
    values = np.linspace(200, 3000, 3 * 64 * 64).reshape(3, 64, 64).astype(np.uint16)
    path = raster("a.tif", values)
    assert Renderer(path, RenderOptions()).stretch == ((0, pytest.approx(2 * np.percentile(values, 98))),) * 3
    offset = raster("o.tif", values + 5000)
    assert Renderer(offset, RenderOptions()).stretch == (pytest.approx(np.percentile(values + 5000, (1, 99))),) * 3
    scene = Renderer(path, RenderOptions(stretch=Stretch.PERCENTILE))
    low, high = np.percentile(values[1], (1, 99))
    assert scene.stretch[1] == pytest.approx((low, high), abs=1)
    from clippan.raster.tiles import Window

    whole, _ = scene.picture(Window(0, 0, 64, 64), 64)
    part, _ = scene.picture(Window(16, 32, 16, 16), 16)
    np.testing.assert_array_equal(whole[:, 32:48, 16:32], part)
    assert Renderer(path, RenderOptions(stretch=Stretch.REFLECTANCE)).stretch == ((0, 3000),) * 3
    assert Renderer(path, RenderOptions(stretch=Stretch.NONE)).stretch == ()
    floats = raster("f.tif", (values / 10000).astype(np.float32))
    assert Renderer(floats, RenderOptions(stretch=Stretch.REFLECTANCE)).stretch == ((0, 0.3),) * 3


def test_natural_colours(raster, tmp_path):
    assert Renderer(raster("one.tif", np.zeros((1, 8, 8), np.uint8)), RenderOptions()).bands == (1,)
    assert Renderer(raster("sentinel.tif", np.zeros((13, 8, 8), np.uint16)), RenderOptions()).bands == (4, 3, 2)
    assert Renderer(raster("two.tif", np.zeros((4, 8, 8), np.uint16)), RenderOptions(bands=(4, 3, 2))).bands == (
        4,
        3,
        2,
    )
    named = raster("named.tif", np.zeros((3, 8, 8), np.uint16))
    dataset = gdal.Open(named, gdal.GA_Update)
    for number, name in enumerate(("Blue", "Green", "Red"), 1):
        dataset.GetRasterBand(number).SetDescription(name)
    del dataset
    assert Renderer(named, RenderOptions()).bands == (3, 2, 1)
    with pytest.raises(ClippanError, match=r"Band 9 was asked for but the raster .* has 3"):
        Renderer(named, RenderOptions(bands=(9,)))


def test_palettes_and_alpha(raster, tmp_path):
    from clippan.raster.tiles import Window

    path = raster("p.tif", np.array([[0, 1], [1, 0]], np.uint8).repeat(8, 0).repeat(8, 1)[None])
    dataset = gdal.Open(path, gdal.GA_Update)
    table = gdal.ColorTable()
    table.SetColorEntry(0, (10, 20, 30))
    table.SetColorEntry(1, (200, 100, 50))
    dataset.GetRasterBand(1).SetColorTable(table)
    del dataset
    picture, valid = Renderer(path, RenderOptions()).picture(Window(0, 0, 8, 8), 8)
    assert valid == 1
    assert picture[:, 0, 0].tolist() == [10, 20, 30]
    alpha = np.concatenate([quadrants(), np.zeros((1, 64, 64), np.uint8)])
    alpha[3, :32] = 255
    scene = Renderer(raster("alpha.tif", alpha, options=["ALPHA=YES"]), RenderOptions())
    assert scene.picture(Window(0, 0, 64, 64), 16)[1] == 0.5


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("S2A_MSIL2A_20210630T105031.tif", "2021-06-30"),
        ("scene_2019-02-28_rgb.tif", "2019-02-28"),
        ("tile_20211345.tif", ""),
        ("id_1202106301.tif", ""),
        ("plain.tif", ""),
    ],
)
def test_dates(raster, name, date):
    assert Renderer(raster(name, np.zeros((3, 8, 8), np.uint8)), RenderOptions()).date() == date


def test_dates_in_metadata(raster):
    path = raster("20200101.tif", np.zeros((3, 8, 8), np.uint8))
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.SetMetadataItem("ACQUISITIONDATETIME", "2018-05-04T10:11:12", "IMAGERY")
    del dataset
    assert Renderer(path, RenderOptions()).date() == "2018-05-04"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (ColourEncoder(name="shapes"), "holds vectors of Colours, which cannot be compared with those of Shapes"),
        (ColourEncoder(sha256="2" * 64), "holds vectors of another version of Colours"),
    ],
)
def test_another_model_is_refused(model, index, raster, monkeypatch, other, sentence):
    path = raster("a.tif", quadrants())
    index(path)
    use(monkeypatch, other)
    with pytest.raises(ClippanError, match=sentence):
        index(path)


def test_damaged_indices(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants())
    index(path)
    name = tmp_path / "index.gpkg"
    matrix = tmp_path / "index.gpkg.vectors"
    content, vectors = name.read_bytes(), matrix.read_bytes()

    def one_line(sentence):
        for job in (SearchRequest(index=str(name), text=("red",)), IndexRequest(rasters=(path,), output=str(name))):
            with pytest.raises(ClippanError, match=sentence) as caught:
                run(job)
            assert str(caught.value).endswith(".")

    matrix.write_bytes(vectors[:-3])
    one_line(r"matrix .*index.gpkg.vectors of the index was cut short \(bytes: 125, tiles: 16\); delete the index")
    matrix.unlink()
    one_line(r"matrix .*index.gpkg.vectors of the index is missing; put it back beside")
    matrix.write_bytes(vectors)
    name.write_bytes(content[: len(content) // 2])
    one_line("is damaged, cut short or not a CLIPPan index|is not a CLIPPan index")
    name.write_bytes(b"something else")
    one_line("is damaged, cut short or not a CLIPPan index")
    write_layer(name)
    one_line("is not a CLIPPan index; choose one that Build tile index has made")
    name.write_bytes(content)
    with sqlite3.connect(name) as connection:
        connection.execute("UPDATE gpkg_metadata SET metadata = replace(metadata, '\"format\">1<', '\"format\">99<')")
    one_line("in a format that this version cannot read")
    name.write_bytes(content)
    assert run(SearchRequest(index=str(name), text=("red",))).hits
    name.unlink()
    with pytest.raises(ClippanError, match="does not exist; make one with Build tile index"):
        run(SearchRequest(index=str(name), text=("red",)))


def write_layer(path):
    path.unlink()
    dataset = gdal.GetDriverByName("GPKG").Create(str(path), 0, 0, 0, gdal.GDT_Unknown)
    dataset.CreateLayer("roads")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tile": (16,), "tile_metres": (5.0,)}, "in pixels and in metres"),
        ({"tile": (3,)}, "“Tile size in pixels” is 3; it has to be 16 or more"),
        ({"tile_metres": (0.0,)}, "has to be greater than 0"),
        ({"overlap": 1.0}, "“Overlap of tiles” is 1; it has to be between 0 and 0.9"),
        ({"bands": (1, 2)}, "lists 2 bands"),
        ({"bands": (0,)}, "Band numbers start at 1"),
        ({"extent": (1.0, 2.0, 3.0)}, "An extent has four numbers"),
        ({"extent": (1.0, 2.0, 1.0, 3.0)}, "extent is empty"),
        ({"output": "x.shp"}, "let it end in .gpkg"),
        ({"rasters": ()}, "“Rasters” is missing"),
        ({"model": "nothing"}, "Unknown model"),
        ({"output": "/nowhere/x.gpkg"}, "folder /nowhere does not exist"),
    ],
)
def test_bad_requests(options, sentence):
    values = {"rasters": ("a.tif",), "output": "x.gpkg", **options}
    with pytest.raises(ClippanError, match=sentence):
        IndexRequest(**values).validate()


def test_tiles_of_a_web_map(index, tmp_path, monkeypatch):
    """A server on this machine, whose tiles are red, green, blue or yellow by the parity of their column and row."""
    use(monkeypatch, ColourEncoder(image_size=256))  # smaller pictures would be read from a coarser zoom level
    pictures = {}
    for number, colour in enumerate(QUADRANTS):
        picture = gdal.GetDriverByName("MEM").Create("", 256, 256, 3, gdal.GDT_Byte)
        for band, level in enumerate(colour, 1):
            picture.GetRasterBand(band).Fill(level)
        gdal.GetDriverByName("PNG").CreateCopy("/vsimem/tile.png", picture)
        size = gdal.VSIStatL("/vsimem/tile.png").size
        file = gdal.VSIFOpenL("/vsimem/tile.png", "rb")
        pictures[number] = bytes(gdal.VSIFReadL(1, size, file))
        gdal.VSIFCloseL(file)
    asked = []

    class Tiles(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            zoom, x, y = (int(part) for part in self.path.removesuffix(".png").split("/")[1:])
            asked.append((zoom, x, y))
            content = pictures[2 * (y % 2) + x % 2]
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tiles)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    description = tmp_path / "map.xml"
    half = 20037508.342789244
    description.write_text(
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{server.server_port}/${{z}}/${{x}}/${{y}}.png'
        f"</ServerUrl></Service><DataWindow><UpperLeftX>-{half}</UpperLeftX><UpperLeftY>{half}</UpperLeftY>"
        f"<LowerRightX>{half}</LowerRightX><LowerRightY>-{half}</LowerRightY><TileLevel>17</TileLevel>"
        "<TileCountX>1</TileCountX><TileCountY>1</TileCountY><YOrigin>top</YOrigin></DataWindow>"
        "<Projection>EPSG:3857</Projection><BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY>"
        "<BandsCount>3</BandsCount></GDAL_WMS>"
    )
    try:
        tile = 2 * half / 2**17  # metres of the projection
        corner = (68_000 * tile - half, half - 44_000 * tile)  # column and row 68000, 44000, both even
        extent = (corner[0] + 1, corner[1] - 4 * tile + 1, corner[0] + 4 * tile - 1, corner[1] - 1)
        result = index(description, tile=(256,), extent=extent, crs="EPSG:3857")
    finally:
        server.shutdown()
        server.server_close()
    assert result.tiles == 16
    assert {zoom for zoom, _, _ in asked} == {17}
    hits = run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("yellow",), top=4)).hits
    assert {(hit.window[0] // 256 % 2, hit.window[1] // 256 % 2) for hit in hits} == {(1, 1)}
    # a metre of the projection is as much shorter on the ground as a circle of latitude
    latitude = np.degrees(2 * np.arctan(np.exp(corner[1] / 6378137)) - np.pi / 2)
    assert hits[0].scale == pytest.approx(tile * np.cos(np.radians(latitude)), rel=0.01)


KILLED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from pytest import MonkeyPatch
from colours import use
from clippan.jobs import IndexRequest
from clippan.handlers import run, index as build
from clippan.search import geopackage
use(MonkeyPatch())
build._COMMIT_TILES = 8
real, calls = geopackage.GeoPackageWriter._write_raster, []
def write(self, raster):
    written = real(self, raster)
    calls.append(raster)
    if raster.done > 8:
        self._dataset.FlushCache()
        self._dataset.GetLayerByName("tiles").SyncToDisk()
        os.kill(os.getpid(), signal.SIGKILL)
    return written
geopackage.GeoPackageWriter._write_raster = write
run(IndexRequest(rasters=({raster!r},), output={output!r}, tile=(16,), overlap=0.0))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_commits_leaves_an_index_that_goes_on(model, index, raster, tmp_path):
    path, output = raster("a.tif", quadrants()), str(tmp_path / "index.gpkg")
    program = KILLED.format(folder=str(Path(__file__).parent), raster=path, output=output)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    found = run(SearchRequest(index=output, text=("red",)))
    assert 0 < found.tiles < 16
    assert index(path).tiles == 16
    assert rows(output)[0] == [("a.tif", x, y) for x in range(0, 64, 16) for y in range(0, 64, 16)]


def test_an_index_that_is_just_written_is_not_called_damaged(model, index, raster, tmp_path, monkeypatch):
    monkeypatch.setattr(geopackage, "_CONNECT_TIMEOUT", 0.1)
    index(raster("a.tif", quadrants()))
    name = str(tmp_path / "index.gpkg")
    with contextlib.closing(sqlite3.connect(name)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ClippanError, match="is being written; try again in a moment"):
            run(SearchRequest(index=name, text=("red",)))
    assert run(SearchRequest(index=name, text=("red",))).hits


def test_statistics_and_overviews_are_no_change(model, index, raster):
    path = raster("a.tif", quadrants())
    index(path)
    dataset = gdal.Open(path)
    dataset.GetRasterBand(1).ComputeStatistics(False)
    dataset.BuildOverviews("AVERAGE", [2])
    del dataset
    assert Path(f"{path}.aux.xml").exists()
    assert index(path).kept == 16


def test_nodata_that_no_pixel_can_have_takes_nothing_away(model, index, raster):
    assert index(raster("a.tif", quadrants()), nodata=-9999.0).empty == 0


def test_water_without_red_is_not_missing(model, index, raster):
    values = quadrants()
    values[:, :, 48:] = 0
    assert index(raster("a.tif", values, nodata=0)).empty == 4  # where all bands are 0


def test_numbers_of_rasters_are_not_given_again(model, index, raster, tmp_path):
    index(raster("a.tif", quadrants()), raster("b.tif", quadrants()))
    before = set(GeoPackageReader(str(tmp_path / "index.gpkg")).rasters)
    (tmp_path / "b.tif").unlink()
    index(raster("c.tif", quadrants()))
    assert max(GeoPackageReader(str(tmp_path / "index.gpkg")).rasters) > max(before)


@pytest.mark.parametrize("crs", ['LOCAL_CS["here",UNIT["metre",1]]', "EPSG:4326"])
def test_what_has_no_place_in_the_index_is_searched_all_the_same(model, index, raster, tmp_path, crs):
    good = raster("good.tif", quadrants(), pixel=10.0)
    odd = raster("odd.tif", quadrants(), epsg=None, pixel=5.6, origin=(-180.0, 90.0))
    dataset = gdal.Open(odd, gdal.GA_Update)
    reference = osr.SpatialReference()
    reference.SetFromUserInput(crs)
    dataset.SetProjection(reference.ExportToWkt())
    del dataset
    result = index(good, odd)
    assert (result.tiles, result.failed) == (32, ())
    hits = run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("red",), rasters=("odd.tif",), top=4)).hits
    assert len(hits) == 4


def test_across_the_date_line(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants(), pixel=1000.0, origin=(690000.0, 1000000.0), epsg=32660)
    scene = Renderer(path, RenderOptions())
    assert scene.pixel_size_in_metres() == pytest.approx((1000, 1000), rel=0.02)
    start = raster("b.tif", quadrants(), pixel=0.01, origin=(170.0, 10.0), epsg=4326)
    index(start, path)
    hits = run(
        SearchRequest(index=str(tmp_path / "index.gpkg"), text=("red", "blue", "green"), rasters=("a.tif",), top=16)
    ).hits
    assert max(hit.bounds[2] - hit.bounds[0] for hit in hits) < 1


def test_a_raster_that_is_known_to_be_empty(model, index, raster, tmp_path):
    empty = raster("e.tif", np.full((3, 32, 32), 7, np.uint8), nodata=7)
    assert index(raster("a.tif", quadrants()), empty).tiles == 16
    assert index(empty).tiles == 16


def test_one_file_by_several_names_is_indexed_once(model, index, raster, tmp_path, monkeypatch):
    path = raster("a.tif", quadrants())
    (tmp_path / "link.tif").symlink_to(path)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    result = index(path, "../a.tif", tmp_path / "link.tif")
    assert (result.tiles, result.rasters) == (16, 1)
    assert run(SearchRequest(index=str(tmp_path / "index.gpkg"), text=("red",), rasters=("../a.tif",))).hits


def test_another_part_of_a_raster_joins_the_first(model, index, raster, tmp_path):
    path = raster("a.tif", quadrants(), pixel=10.0)
    west, east = (500000.0, 4999360.0, 500310.0, 5000000.0), (500330.0, 4999360.0, 500640.0, 5000000.0)
    assert index(path, extent=west).tiles == 8
    assert index(path, extent=east).tiles == 16
    assert index(path, extent=east).kept == 8
    assert index(path).tiles == 16  # all of it takes their place


def test_cancelled_says_what_is_kept(model, index, raster, monkeypatch):
    monkeypatch.setattr(build, "_COMMIT_TILES", 8)
    path = raster("a.tif", quadrants())
    with pytest.raises(Cancelled, match="the tiles indexed so far are kept"):
        index(path, context=Context(cancelled=lambda: model.seen >= 16))

"""Searching an index: what is found, in which order, what narrows it, and what is written."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from colours import COLOURS, unit, use
from conftest import read_raster, write_raster
from osgeo import gdal, ogr
from test_index import QUADRANTS, quadrants

from clippan import cli
from clippan.core.errors import ClippanError
from clippan.handlers import run
from clippan.handlers import search as query
from clippan.jobs import IndexRequest, SearchRequest, ThumbnailsRequest, to_json
from clippan.search import scoring, similarity


@pytest.fixture
def model(monkeypatch):
    return use(monkeypatch)


@pytest.fixture
def index(model, tmp_path):
    """An index of one raster of four colours, 64 pixels of 10 m, with tiles of 16 pixels."""
    write_raster(tmp_path / "a_20200101.tif", quadrants(), pixel=10.0)
    name = str(tmp_path / "index.gpkg")
    run(IndexRequest(rasters=(str(tmp_path / "a_20200101.tif"),), output=name, tile=(16,), overlap=0.0))
    return name


def colour(hit):
    """Which quadrant a hit lies in."""
    x, y, *_ = hit.window
    return ("red", "green", "blue", "yellow")[2 * (y >= 32) + (x >= 32)]


@pytest.mark.parametrize("name", ["red", "green", "blue", "yellow"])
def test_the_right_place_comes_first(index, name):
    result = run(SearchRequest(index=index, text=(name,), top=6))
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4, 5, 6]
    assert [colour(hit) for hit in result.hits[:4]] == [name] * 4
    assert colour(result.hits[4]) != name
    confidences = [hit.confidence for hit in result.hits]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[3] > 0.9 > confidences[4] >= 0
    assert all(hit.prompt == name for hit in result.hits)
    assert (result.tiles, result.crs, result.model) == (16, "EPSG:32631", "colours")


def test_places_are_told_in_coordinates(index):
    hit = run(SearchRequest(index=index, text=("yellow",), top=1)).hits[0]
    x, y, width, height = hit.window
    left, top = 500000 + 10 * x, 5000000 - 10 * y
    assert hit.bounds == (left, top - 10 * height, left + 10 * width, top)
    assert len(hit.outline) == 8
    assert hit.date == "2020-01-01"
    assert hit.scale == pytest.approx(160, rel=0.01)


def test_of_several_texts_each_hit_bears_the_one_that_fits(index):
    hits = run(SearchRequest(index=index, text=("red", "blue"), top=8)).hits
    assert sorted(colour(hit) for hit in hits) == ["blue"] * 4 + ["red"] * 4
    assert all(hit.prompt == colour(hit) for hit in hits)


def test_what_should_not_be_there(index):
    assert {colour(hit) for hit in run(SearchRequest(index=index, text=("warm",), top=8)).hits} == {"red", "yellow"}
    hits = run(SearchRequest(index=index, text=("warm",), without=("red",), top=4)).hits
    assert {colour(hit) for hit in hits} == {"yellow"}


def test_like_a_place(index):
    result = run(SearchRequest(index=index, at=(500600.0, 4999400.0), top=3))
    assert {colour(hit) for hit in result.hits} == {"yellow"}
    assert result.hits[0].confidence == pytest.approx(1, abs=0.01)
    with pytest.raises(ClippanError, match="No indexed tile lies at 0, 0"):
        run(SearchRequest(index=index, at=(0.0, 0.0)))


def test_a_place_in_another_crs(index):
    result = run(SearchRequest(index=index, at=(3.0076, 45.1482), crs="EPSG:4326", top=1))
    assert colour(result.hits[0]) == "yellow"


def test_like_a_picture(index, tmp_path):
    picture = write_raster(
        tmp_path / "x.tif", np.zeros((3, 40, 90), np.uint8) + np.array([0, 200, 0], np.uint8)[:, None, None], epsg=None
    )
    hits = run(SearchRequest(index=index, image=(picture,), top=4)).hits
    assert {colour(hit) for hit in hits} == {"green"}
    assert hits[0].prompt == "like the example"
    with pytest.raises(ClippanError, match=r"/nowhere.png does not exist"):
        run(SearchRequest(index=index, image=("/nowhere.png",)))


def test_feedback_ranks_anew(index):
    first = run(SearchRequest(index=index, text=("warm",), top=8)).hits
    liked = next(hit for hit in first if colour(hit) == "yellow")
    again = run(SearchRequest(index=index, text=("warm",), like=(liked.tile,), top=8)).hits
    assert [colour(hit) for hit in again[:4]] == ["yellow"] * 4
    assert again[0].tile == liked.tile
    unliked = next(hit for hit in first if colour(hit) == "red")
    again = run(SearchRequest(index=index, text=("warm",), unlike=(unliked.tile,), top=4)).hits
    assert {colour(hit) for hit in again} == {"yellow"}
    with pytest.raises(ClippanError, match="Tile 99 is no longer in the index"):
        run(SearchRequest(index=index, text=("warm",), like=(99,)))


def test_an_extent(index):
    # the right half
    hits = run(SearchRequest(index=index, text=("red",), extent=(500330.0, 4999000.0, 501000.0, 5000000.0), top=16))
    assert hits.tiles == 8
    assert {colour(hit) for hit in hits.hits} <= {"green", "yellow"}
    with pytest.raises(ClippanError, match="No tile of the index matches this extent"):
        run(SearchRequest(index=index, text=("red",), extent=(0.0, 0.0, 1.0, 1.0)))
    hits = run(
        SearchRequest(index=index, text=("red",), extent=(3.0, 45.147, 3.0001, 45.1535), crs="EPSG:4326", top=16)
    )
    assert {hit.window[0] for hit in hits.hits} == {0}


def test_rasters_and_dates(index, tmp_path):
    for name in ("b_20210615.tif", "c.tif"):
        write_raster(tmp_path / name, quadrants(), pixel=10.0)
        run(IndexRequest(rasters=(str(tmp_path / name),), output=index, tile=(16,), overlap=0.0))

    def rasters(**options):
        result = run(SearchRequest(index=index, text=("red",), top=48, **options))
        return {hit.raster.rsplit("/", 1)[-1][0] for hit in result.hits}, result.hints

    assert rasters() == ({"a", "b", "c"}, ())
    assert rasters(rasters=("c.tif",))[0] == {"c"}
    assert rasters(rasters=(str(tmp_path / "a_20200101.tif"), "c.tif"))[0] == {"a", "c"}
    assert rasters(since="2020-06") == ({"b"}, ("Rasters without a date were left out: 1.",))
    assert rasters(until="2020")[0] == {"a"}
    assert rasters(since="2020-01-01", until="2021-06")[0] == {"a", "b"}
    with pytest.raises(ClippanError, match=r"The raster d.tif is not in the index"):
        rasters(rasters=("d.tif",))
    with pytest.raises(ClippanError, match="No tile of the index"):
        rasters(since="2030")


def test_overlapping_places_are_one(model, tmp_path):
    path = write_raster(tmp_path / "a.tif", quadrants(), pixel=10.0)
    name = str(tmp_path / "index.gpkg")
    run(IndexRequest(rasters=(path,), output=name, tile=(16, 32), overlap=0.5))
    hits = run(SearchRequest(index=name, text=("red",), top=100)).hits
    for one in hits:
        for other in hits:
            if one is not other:
                across = min(one.bounds[2], other.bounds[2]) - max(one.bounds[0], other.bounds[0])
                down = min(one.bounds[3], other.bounds[3]) - max(one.bounds[1], other.bounds[1])
                smaller = min(one.window[2], other.window[2])
                assert max(across, 0) * max(down, 0) <= 0.25 * (smaller * 10) ** 2
    every = run(SearchRequest(index=name, text=("red",), top=1000, overlapping=True))
    assert len(every.hits) == every.tiles > len(hits)


def test_what_the_model_does_not_read_is_told(index, model, monkeypatch):
    monkeypatch.setattr(model, "text_warnings", lambda phrases: [f"Not read: {', '.join(phrases)}."])
    result = run(SearchRequest(index=index, text=(" warm ",), without=("red",)))
    assert "Not read: warm, red." in result.hints


@pytest.mark.parametrize(("west", "code"), [(179.9968, 4326), (-180.0032, 4326)])
def test_places_across_the_date_line(model, tmp_path, west, code):
    values = quadrants()  # 64 pixels, of which the meridian is in the middle
    raster = write_raster(tmp_path / "fiji.tif", values, pixel=1e-4, origin=(west, -16.0), epsg=code)
    index, heat = str(tmp_path / "index.gpkg"), str(tmp_path / "heat.tif")
    run(IndexRequest(rasters=(raster,), output=index, tile=(16,), overlap=0.0))
    for extent in ((179.99, -16.1, -179.99, -15.9), (179.99, -16.1, 180.01, -15.9), (-180.01, -16.1, -179.99, -15.9)):
        result = run(SearchRequest(index=index, text=("red",), extent=extent, crs="EPSG:4326", top=4, heatmap=heat))
        assert result.tiles == 16
        assert any("across the 180th meridian" in hint for hint in result.hints) == (extent[0] > extent[2])
        assert {colour(hit) for hit in result.hits} == {"red"}
        assert gdal.Open(heat).RasterXSize == 16
    east = run(SearchRequest(index=index, text=("warm",), extent=(-180.0, -16.1, -179.99, -15.9), crs="EPSG:4326"))
    assert east.tiles == 8
    for longitude in (-179.998, 180.002):
        assert run(SearchRequest(index=index, at=(longitude, -16.001), crs="EPSG:4326", top=1)).hits


def test_least_confidence(index):
    hits = run(SearchRequest(index=index, text=("red",), top=16, least=0.5)).hits
    assert [colour(hit) for hit in hits] == ["red"] * 4


def test_hits_are_written(index, tmp_path):
    output = tmp_path / "hits.gpkg"
    result = run(SearchRequest(index=index, text=("red",), top=3, output=str(output)))
    dataset = ogr.Open(str(output))
    layer = dataset.GetLayerByName("hits")
    assert layer.GetSpatialRef().GetAuthorityCode(None) == "32631"
    features = list(layer)
    assert [feature["rank"] for feature in features] == [1, 2, 3]
    first, hit = features[0], result.hits[0]
    assert first["confidence"] == pytest.approx(hit.confidence)
    assert (first["prompt"], first["raster"], first["model"], first["tile"]) == ("red", hit.raster, "colours", hit.tile)
    assert first["window"] == ",".join(map(str, hit.window))
    assert first["date"] == "2020/01/01"
    left, right, bottom, top = first.GetGeometryRef().GetEnvelope()
    assert (left, bottom, right, top) == hit.bounds
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a_20200101.tif",
        "hits.gpkg",
        "index.gpkg",
        "index.gpkg.vectors",
    ]
    with pytest.raises(ClippanError, match="is one of the inputs"):
        run(SearchRequest(index=index, text=("red",), output=index))


def test_heat_map(index, tmp_path):
    path = tmp_path / "heat.tif"
    run(SearchRequest(index=index, text=("red",), heatmap=str(path)))
    values = read_raster(str(path))[0]
    dataset = gdal.Open(str(path))
    assert dataset.GetGeoTransform() == (500000, 40, 0, 5000000, 0, -40)
    assert values.shape == (16, 16)
    assert values[:8, :8].min() > 0.9
    assert values[:8, 8:].max() < 0.1
    assert values.min() >= 0


def test_heat_map_of_pictures(model, tmp_path):
    paths = [write_raster(tmp_path / f"{name}.tif", quadrants(), origin=None, epsg=None) for name in "ab"]
    name = str(tmp_path / "index.gpkg")
    run(IndexRequest(rasters=tuple(paths), output=name, tile=(16,), overlap=0.0))
    with pytest.raises(ClippanError, match="have no common map; choose one raster"):
        run(SearchRequest(index=name, text=("red",), heatmap=str(tmp_path / "heat.tif")))
    run(SearchRequest(index=name, text=("red",), rasters=("a.tif",), heatmap=str(tmp_path / "heat.tif")))
    assert read_raster(str(tmp_path / "heat.tif"))[0, 0, 0] > 0.9


def test_a_model_that_has_changed_is_refused(index, model):
    model.sha256 = "2" * 64
    with pytest.raises(ClippanError, match=r"has changed since .* was made, .*build the index again"):
        run(SearchRequest(index=index, text=("red",)))


def test_a_raster_that_is_gone_is_said(index, tmp_path):
    (tmp_path / "a_20200101.tif").unlink()
    result = run(SearchRequest(index=index, text=("red",), top=2))
    assert len(result.hits) == 2
    assert result.hints == (f"{tmp_path / 'a_20200101.tif'} no longer exists; index its new place to find it again.",)


def test_thumbnails(index, tmp_path):
    hits = run(SearchRequest(index=index, text=("red", "yellow"), top=8)).hits
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = run(
        ThumbnailsRequest(index=index, tiles=tuple(hit.tile for hit in hits), folder=str(folder), pixels=32)
    ).files
    assert set(files) == {str(hit.tile) for hit in hits}
    for hit in hits:
        picture = read_raster(files[str(hit.tile)])
        assert picture.shape == (3, 32, 32)
        expected = QUADRANTS[("red", "green", "blue", "yellow").index(colour(hit))]
        assert picture.mean(axis=(1, 2)) == pytest.approx(expected, abs=5)  # a border takes part of its neighbour
    (tmp_path / "a_20200101.tif").unlink()
    assert run(
        ThumbnailsRequest(index=index, tiles=(hits[0].tile,), folder=str(folder), pixels=32)
    ).files  # from before
    assert run(ThumbnailsRequest(index=index, tiles=tuple(range(1, 17)), folder=str(tmp_path), pixels=32)).files == {}


def test_the_command(index, tmp_path, capsys):
    assert cli.main(["search", index, "--text", "red", "blue", "--top", "2", "--at", "500600,4999400", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["hits"]) == 2
    assert {"rank", "score", "raster", "window", "bounds"} <= set(result["hits"][0])
    assert cli.main(["search", index, "--text", "red", "--top", "1"]) == 0
    assert "red" in capsys.readouterr().out
    assert cli.main(["about", index]) == 0
    assert "Tiles: 16, rasters: 1, vectors of Colours" in capsys.readouterr().out
    assert cli.main(["search", index]) == 2
    assert capsys.readouterr().err == "Nothing to search for was given; give a text, an example picture or a place.\n"
    assert cli.main(["search", index, "--text", "red", "--at", "-5,7"]) == 2
    assert capsys.readouterr().err == "No indexed tile lies at -5, 7; choose another place.\n"
    assert cli.main(["search", index, "--text", "red", "--extent", "1,b"]) == 2
    assert "not a list of numbers" in capsys.readouterr().err
    path = write_raster(tmp_path / "b.tif", quadrants())
    assert cli.main(["index", path, "--output", index, "--tile-metres", "16,32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] > 4


def test_results_travel(index):
    result = run(SearchRequest(index=index, text=("red",), top=1))
    assert json.loads(json.dumps(to_json(result)))["hits"][0]["window"] == list(result.hits[0].window)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Nothing to search for"),
        ({"text": (" ",)}, "Nothing to search for"),
        ({"text": ("a",), "top": 0}, "“Maximum number of places” is 0"),
        ({"text": ("a",), "least": 2.0}, "“Minimum confidence” is 2"),
        ({"at": (1.0,)}, "A place has two coordinates"),
        ({"text": ("a",), "since": "June"}, "“Taken since”, June, is not understood"),
        ({"text": ("a",), "output": "x.shp"}, "let it end in .gpkg"),
        ({"text": ("a",), "heatmap": "x.png"}, "would be a GeoTIFF"),
        ({"text": ("a",), "index": "x.tif"}, "let it end in .gpkg"),
        ({"text": ("a",), "extent": (1.0,)}, "An extent has four numbers"),
    ],
)
def test_bad_requests(options, sentence):
    with pytest.raises(ClippanError, match=sentence):
        SearchRequest(**{"index": "x.gpkg", **options}).validate()


def test_products_and_the_best_of_them():
    rng = np.random.default_rng(0)
    matrix = unit(rng.normal(size=(200_000, 16))).astype(np.float16)
    directions = unit(rng.normal(size=(3, 16)))
    values = similarity.dot_products(matrix, directions)
    expected = directions @ matrix.astype(np.float32).T
    np.testing.assert_allclose(values, expected, atol=3e-3)
    rows = np.arange(0, len(matrix), 3)
    best = similarity.top_rows(values, rows, 50)
    least = [np.sort(line[rows])[-50] for line in values]  # of equal ones any may be chosen
    assert (values[:, best] >= np.array(least)[:, None]).any(axis=0).all()
    for line, bound in zip(values, least):
        assert set(rows[line[rows] > bound]) <= set(best)
    assert similarity.top_rows(values, rows[:40], 50).tolist() == rows[:40].tolist()


def test_many_tiles_go_through_the_first_step(model, tmp_path, monkeypatch):
    monkeypatch.setattr(query, "_MIN_CANDIDATES", 5)
    monkeypatch.setattr(query, "_CANDIDATES_PER_HIT", 2)
    rng = np.random.default_rng(1)
    values = rng.integers(0, 60, (3, 160, 160), np.uint8)
    values[0, 48:64, 96:112] = 255
    name = str(tmp_path / "index.gpkg")
    run(IndexRequest(rasters=(write_raster(tmp_path / "a.tif", values),), output=name, tile=(16,), overlap=0.0))
    assert run(SearchRequest(index=name, text=("red",), top=2)).hits[0].window[:2] == (96, 48)


def test_confidence_is_a_softmax_over_the_background():
    background = unit([(*COLOURS[name], 0.2) for name in ("green", "blue", "white")])
    text = unit([(*COLOURS["red"], 0.2)])
    empty = np.empty((0, 4), np.float32)
    asked = scoring.SearchVectors(text, ("red",), empty, background, empty, empty, np.zeros(4), 10.0)
    tile = unit([[0.8, 0.3, 0.1, 0.2]])
    logits = 10 * np.concatenate([tile @ text.T, tile @ background.T], axis=1)[0]
    expected = np.exp(logits[0]) / np.exp(logits).sum()
    confidence, score, best = asked.score_tiles(tile)
    assert confidence[0] == pytest.approx(expected, rel=1e-5)
    assert score[0] == pytest.approx(float(tile[0] @ text[0]))
    assert best[0] == 0


def test_what_means_the_same_does_not_speak_against_a_text():
    background = unit([(1, 0.02, 0, 0.2), (0, 1, 0, 0.2), (0, 0, 1, 0.2)])
    text = unit([(1, 0, 0, 0.2)])
    empty = np.empty((0, 4), np.float32)
    asked = scoring.SearchVectors(text, ("red",), empty, background, empty, empty, np.zeros(4), 50.0)
    assert asked.score_tiles(text)[0][0] > 0.99


def test_searches_in_several_threads(index):
    failures = []

    def go():
        try:
            assert colour(run(SearchRequest(index=index, text=("blue",), top=1)).hits[0]) == "blue"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_output_is_nothing_that_the_search_needs(index, tmp_path):
    raster = tmp_path / "a_20200101.tif"
    before = raster.read_bytes()
    other = tmp_path / "other.gpkg"
    run(IndexRequest(rasters=(str(raster),), output=str(other), tile=(16,)))
    for options in (
        {"heatmap": str(raster)},
        {"heatmap": f"{index}.vectors"},
        {"output": str(other)},
    ):
        with pytest.raises(ClippanError, match=r"is one of the inputs|is an index; choose another"):
            run(SearchRequest(index=index, text=("red",), **options))
    assert raster.read_bytes() == before


def test_no_heat_map_no_hits(model, tmp_path):
    paths = [write_raster(tmp_path / f"{name}.tif", quadrants(), origin=None, epsg=None) for name in "ab"]
    name, output = str(tmp_path / "index.gpkg"), tmp_path / "hits.gpkg"
    run(IndexRequest(rasters=tuple(paths), output=name, tile=(16,), overlap=0.0))
    with pytest.raises(ClippanError, match="have no common map"):
        run(SearchRequest(index=name, text=("red",), output=str(output), heatmap=str(tmp_path / "heat.tif")))
    assert not output.exists()


def test_hits_are_written_again_over_hits(index, tmp_path):
    for top in (3, 2):
        run(SearchRequest(index=index, text=("red",), top=top, output=str(tmp_path / "hits.gpkg")))
    dataset = ogr.Open(str(tmp_path / "hits.gpkg"))
    assert dataset.GetLayer().GetFeatureCount() == 2


def test_numbers_that_are_no_tiles(index, tmp_path):
    for request in (
        SearchRequest(index=index, like=(2**70,)),
        SearchRequest(index=index, text=("red",), unlike=(0,)),
        ThumbnailsRequest(index=index, tiles=(-1,), folder=str(tmp_path)),
    ):
        with pytest.raises(ClippanError, match="There is no tile"):
            run(request)


def test_a_tile_that_somebody_edited(index):
    dataset = ogr.Open(index, 1)
    layer = dataset.GetLayerByName("tiles")
    feature = layer.GetFeature(1)
    feature.SetGeometry(feature.GetGeometryRef().Buffer(5))
    layer.SetFeature(feature)
    del feature, layer, dataset
    hits = run(SearchRequest(index=index, text=("red",), top=16)).hits
    assert {len(hit.outline) for hit in hits} == {8}

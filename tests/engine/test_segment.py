"""Maps by text, with a model that sees nothing but colours."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from colours import COLOURS, ColourEncoder, use
from conftest import read_raster
from osgeo import gdal, ogr

from clippan.catalogue.prompts import parse_prompts
from clippan.clip import encoder as encoders
from clippan.clip.class_vectors import ClassVectors
from clippan.clip.sliding import SlidingWindows, similarity_grid
from clippan.core.errors import Cancelled, ClippanError
from clippan.handlers import run, segment
from clippan.jobs import CalibrateRequest, Context, Refinement, SegmentRequest, Stretch
from clippan.raster.rendering import Renderer, RenderOptions, spatial_reference
from clippan.raster.tiles import Window

CLASSES = "red; green; blue"


@pytest.fixture
def model(monkeypatch):
    return use(monkeypatch)


def stripes(height=96, width=120, edge=30, dtype=np.uint8, names=("red", "green", "blue")):
    """Upright stripes of colours, and the class of each pixel."""
    which = (np.arange(width) // edge) % len(names)
    values = np.array([COLOURS[name] for name in names])[which].T
    return (values[:, None, :] * np.full((1, height, 1), 200)).astype(dtype), np.broadcast_to(
        which + 1, (height, width)
    )


@pytest.fixture
def mapped(model, raster, tmp_path):
    """Maps values; the request's other fields as options."""

    def make(values, classes=CLASSES, name="map.tif", context=None, source=None, **options):
        path = source or raster("picture.tif", values)
        where = {key: options.pop(key) for key in ("epsg",) if key in options}
        assert not where
        return run(
            SegmentRequest(
                raster=path,
                classes=classes,
                output=str(tmp_path / name),
                window=options.pop("window", (16,)),
                **options,
            ),
            context,
        )

    return make


def test_a_map_has_the_classes_in_their_order(mapped) -> None:
    values, truth = stripes()
    result = mapped(values)
    found = read_raster(result.output)[0]
    assert found.dtype == np.uint8
    assert (found == truth).mean() > 0.97  # a cell is four pixels wide, and borders lie inside of cells
    dataset = gdal.Open(result.output)
    band = dataset.GetRasterBand(1)
    assert band.GetNoDataValue() == 0
    assert dataset.GetGeoTransform() == (500000.0, 1.0, 0.0, 5000000.0, 0.0, -1.0)
    assert band.GetCategoryNames()[:4] == ["unclassified", "red", "green", "blue"]
    tags = dataset.GetMetadata()
    assert tags["CLIPPAN_MODEL"] == "colours"
    assert json.loads(tags["CLIPPAN_CLASSES"])["classes"][0]["name"] == "red"
    assert [item.value for item in result.classes] == [1, 2, 3, 0]
    assert sum(item.pixels for item in result.classes) == found.size
    assert result.classes[0].hectares == pytest.approx(result.classes[0].pixels / 1e4)


def test_swapped_classes_have_swapped_values(mapped) -> None:
    values, _ = stripes()
    one = read_raster(mapped(values).output)[0]
    other = read_raster(mapped(values, "green; red; blue", "other.tif").output)[0]
    np.testing.assert_array_equal(np.array([0, 2, 1, 3])[one], other)


def test_synonyms_count_as_their_class(mapped) -> None:
    values, truth = stripes(names=("red", "yellow", "blue"))
    found = read_raster(mapped(values, "red, yellow; green; blue").output)[0]
    assert (found[truth == 2] == 1).mean() > 0.95
    assert (found == 2).mean() < 0.05


def test_all_outputs_agree(mapped, tmp_path) -> None:
    values, _ = stripes()
    paths = {name: str(tmp_path / f"{name}.tif") for name in ("confidence", "probabilities")}
    result = mapped(values, polygons=str(tmp_path / "p.gpkg"), areas=str(tmp_path / "a.csv"), simplify=0.0, **paths)
    found = read_raster(result.output)[0]
    shares = read_raster(paths["probabilities"])
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=0) + 1, found)
    np.testing.assert_allclose(read_raster(paths["confidence"])[0], shares.max(axis=0), atol=1e-6)
    vector = gdal.OpenEx(result.polygons)
    layer = vector.GetLayer(0)
    assert result.count == layer.GetFeatureCount() > 2
    assert sum(feature["area_px"] for feature in layer) == found.size
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines()[1].startswith("1,red,")


def test_missing_pixels_are_0_and_do_not_colour_their_neighbours(mapped, raster) -> None:
    values, truth = stripes()
    values[:, :, 40:60] = 7  # a marker in the midst of green
    path = raster("holes.tif", values, nodata=7)
    result = mapped(None, source=path)
    found = read_raster(result.output)[0]
    assert (found[:, 40:60] == 0).all()
    assert (found[:, 30:40] == 2).mean() > 0.9
    assert result.classes[-1].pixels == 0  # missing pixels are not unclassified ones
    assert (found[truth == 1] == 1).mean() > 0.9


def test_the_extent_changes_no_pixel(mapped, raster) -> None:
    values, _ = stripes(160, 200)
    path = raster("big.tif", np.roll(values, 5, axis=2))
    whole = read_raster(mapped(None, source=path).output)[0]
    result = mapped(None, source=path, name="part.tif", extent=(500053.0, 5000000.0 - 120, 500131.0, 5000000.0 - 37))
    part = read_raster(result.output)[0]
    assert part.shape == (83, 78)
    np.testing.assert_array_equal(part, whole[37:120, 53:131])
    assert gdal.Open(result.output).GetGeoTransform()[0] == 500053.0


def test_tiles_change_no_pixel(mapped, monkeypatch) -> None:
    values, _ = stripes(300, 300)
    one = read_raster(mapped(values).output)[0]
    monkeypatch.setattr(segment, "_LARGEST_TILE", 256)
    other = read_raster(mapped(values, name="other.tif", threads=1).output)[0]
    np.testing.assert_array_equal(one, other)


def test_a_tower_of_any_size_sees_larger_pictures_with_the_same_cells(monkeypatch, raster, tmp_path) -> None:
    model = use(monkeypatch)
    model.accepts_any_size = True
    values, truth = stripes()
    result = run(
        SegmentRequest(raster=raster("a.tif", values), classes=CLASSES, output=str(tmp_path / "b.tif"), window=(16,))
    )
    assert result.window == (16,)
    assert model.seen < 2 * 6 * 6  # windows of 32 pixels
    assert (read_raster(result.output)[0] == truth).mean() > 0.97


@pytest.mark.parametrize("part", [Window(0, 0, 500, 300), Window(123, 45, 67, 89), Window(499, 299, 1, 1)])
@pytest.mark.parametrize("cells", [4, 7])
@pytest.mark.parametrize("accepts_any_size", [False, True])
@pytest.mark.parametrize("more", [*range(0, 40, 3)])
def test_windows_cover_every_pixel_of_the_part(part, cells, accepts_any_size, more) -> None:
    model = ColourEncoder(image_size=4 * cells)
    model.accepts_any_size = accepts_any_size
    width, height = 500 + more, 300 + more
    part = Window(part.x + more, part.y + more, part.width, part.height) if part.x else Window(0, 0, width, height)
    layout = SlidingWindows.of(model, width, height, 37, part)
    seen = np.zeros((height, width), bool)
    for row in range(layout.first_row, layout.end_row):
        for _, window in layout.windows(row):
            assert window.x < width
            assert window.y < height
            seen[window.y : window.y + window.height, window.x : window.x + window.width] = True
    assert seen[part.y : part.y + part.height, part.x : part.x + part.width].all()
    assert layout.window_step * layout.cells == layout.window_size * layout.window_step_cells


def test_values_at_places_are_those_of_windows(model, raster, tmp_path) -> None:
    values, _ = stripes()
    scene = Renderer(raster("a.tif", values), RenderOptions())
    layout = SlidingWindows.of(model, 120, 96, 16, Window(0, 0, 120, 96))
    texts = model.encode_texts(["red", "green", "blue"])
    seen = similarity_grid(
        model,
        ClassVectors(texts, np.arange(3), 3),
        layout,
        lambda: scene,
        0.0,
        False,
        1,
        tmp_path,
        Context(),
        lambda window: True,
    )
    whole = seen.at_window(Window(0, 0, 120, 96))
    rows, columns = np.mgrid[0:96:5, 0:120:7].reshape(2, -1)
    np.testing.assert_allclose(seen.at_pixels(rows, columns), whole[:, rows, columns].T, atol=2e-3)
    # What lies in cells is what the model saw there, blended over its windows.
    assert whole[:, 50, 15].argmax() == 0
    assert whole[0, 50, 15] == pytest.approx(
        float(texts[0] @ model.encode_images(np.array([200, 0, 0], np.uint8).reshape(1, 3, 1, 1))[0]), abs=2e-3
    )


def test_flips_do_not_move_anything(mapped) -> None:
    values, _ = stripes()
    values[:, :48] = values[:, :48][:, :, ::-1]
    one = read_raster(mapped(values).output)[0]
    other = read_raster(mapped(values, name="flipped.tif", flips=True).output)[0]
    assert (one == other).mean() > 0.99  # this model is blind to direction


def test_the_bias_takes_the_whole_off_its_cells(mapped, tmp_path) -> None:
    values, _ = stripes()
    paths = [str(tmp_path / f"{number}.tif") for number in range(2)]
    mapped(values, bias=0.0, probabilities=paths[0])
    mapped(values, bias=-0.9, probabilities=paths[1])
    assert np.abs(read_raster(paths[0]) - read_raster(paths[1])).max() > 0.01


def test_several_windows_are_averaged(mapped) -> None:
    values, truth = stripes()
    result = mapped(values, window=(16, 24))
    assert len(result.window) == 2
    assert (read_raster(result.output)[0] == truth).mean() > 0.95


def test_one_class_is_told_from_common_things(mapped) -> None:
    values, truth = stripes()
    result = mapped(values, "green")
    found = read_raster(result.output)[0]
    assert (found[truth == 2] == 1).mean() > 0.95
    assert (found[truth != 2] == 0).mean() > 0.95
    assert result.classes[-1].pixels == (found == 0).sum()


def test_thresholds_and_offsets_of_the_table_count(mapped) -> None:
    values, truth = stripes()
    table = {"classes": [{"name": "red", "offset": -10.0}, {"name": "green"}, {"name": "blue", "threshold": 0.9999}]}
    found = read_raster(mapped(values, json.dumps(table), logit_scale=5.0).output)[0]
    assert (found == 1).mean() < 0.01
    assert (found[truth == 2] == 2).mean() > 0.95
    assert (found[truth == 3] != 3).mean() > 0.9


@pytest.mark.parametrize(
    ("dtype", "bands", "factor"), [(np.uint16, 13, 20), (np.float32, 4, 1e-3), (np.uint8, 1, 1), (np.int16, 3, 10)]
)
def test_any_raster_will_do(mapped, dtype, bands, factor) -> None:
    values, _ = stripes(names=("white", "blue"))
    values = (values.repeat(5, axis=0)[:bands] * factor).astype(dtype)
    result = mapped(values, "white; blue")
    assert read_raster(result.output).shape == (1, 96, 120)


def test_a_part_of_a_picture_without_coordinates_lies_where_it_was(mapped, raster) -> None:
    values, truth = stripes()
    source = raster("plain.tif", values, origin=None, epsg=None)
    result = mapped(None, source=source, extent=(40, -60, 100, -10))  # as QGIS shows it: y down from 0
    assert (read_raster(result.output)[0] == truth[10:60, 40:100]).mean() > 0.95
    assert gdal.Open(result.output).GetGeoTransform() == (40, 1, 0, -10, 0, -1)


def test_a_picture_without_coordinates_stays_one(mapped, raster) -> None:
    values, truth = stripes()
    result = mapped(None, source=raster("plain.tif", values, origin=None, epsg=None))
    assert (read_raster(result.output)[0] == truth).mean() > 0.97
    assert gdal.Open(result.output).GetGeoTransform(can_return_null=True) is None
    assert result.classes[0].hectares is None


def test_two_hundred_classes(mapped, model, monkeypatch) -> None:
    monkeypatch.setattr(
        model, "encode_texts", lambda texts: encoders.np.eye(4, dtype=np.float32)[np.arange(len(texts)) % 4]
    )
    values, _ = stripes()
    result = mapped(values, "; ".join(f"class {number}" for number in range(200)))
    assert len(result.classes) == 201


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "picture.tif")


def test_nothing_but_nodata_is_said_and_leaves_nothing(mapped, raster, tmp_path) -> None:
    path = raster("picture.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    with pytest.raises(ClippanError, match="has only nodata here"):
        mapped(None, source=path, polygons=str(tmp_path / "p.gpkg"), confidence=str(tmp_path / "c.tif"))
    assert left(tmp_path) == []


@pytest.mark.parametrize("stop", [0.02, 0.5, 0.8, 0.93])
def test_cancelling_leaves_nothing_and_keeps_what_was_there(mapped, tmp_path, stop) -> None:
    values, _ = stripes()
    old = tmp_path / "map.tif"
    old.write_bytes(b"old")
    seen = [0.0]
    context = Context(lambda percent, message: seen.append(percent), None, lambda: seen[-1] >= 100 * stop)
    with pytest.raises(Cancelled):
        mapped(values, context=context, polygons=str(tmp_path / "p.gpkg"))
    assert left(tmp_path) == ["map.tif"]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ""}, "“Classes” is missing"),
        ({"classes": "a; a"}, "both named a"),
        ({"raster": "nowhere.tif"}, "does not exist"),
        ({"output": "map.png"}, "would be a GeoTIFF"),
        ({"polygons": "map.xyz"}, "map.xyz does not fit “Polygons”"),
        ({"areas": "map.txt"}, "does not fit “Table of areas”"),
        ({"confidence": "map.tif"}, "Two of the outputs are called map.tif; give each"),
        ({"bands": (1, 2)}, "lists 2 bands"),
        ({"window": (3,)}, "“Window” is 3"),
        ({"logit_scale": 0.0}, "“Sharpness of the confidence” is 0"),
        ({"bias": -3.0}, "“Bias of the whole window” is -3"),
        ({"model": "nothing"}, "Unknown model"),
        ({"extent": (0.0, 0.0, 1.0, 1.0)}, "lies outside the extent"),
        ({"bands": (1, 2, 9)}, "Band 9 was asked for"),
    ],
)
def test_bad_values_are_said_and_leave_nothing(model, raster, tmp_path, monkeypatch, options, says) -> None:
    monkeypatch.chdir(tmp_path)
    path = raster("picture.tif", stripes()[0])
    request = SegmentRequest(**{"raster": path, "classes": CLASSES, "output": "map.tif", **options})
    with pytest.raises(ClippanError, match=says):
        run(request)
    assert left(tmp_path) == []


def test_short_memory_halves_the_batch_and_then_is_said(monkeypatch) -> None:
    model = encoders.load_encoder("starter", encoders.Device.CPU, Context())
    monkeypatch.setattr(model, "batch", 8)
    sizes = []
    real = model._loaded.network.visual.forward

    def short(pictures):
        sizes.append(len(pictures))
        if len(pictures) > limit:
            raise torch.cuda.OutOfMemoryError("simulated")
        return real(pictures)

    monkeypatch.setattr(model._loaded.network.visual, "forward", short)
    pictures, texts = (
        np.random.default_rng(0).integers(0, 255, (5, 3, 64, 64), np.uint8),
        model.encode_texts(["water", "forest"]),
    )
    limit = 8
    whole, _ = model.cell_cosines(pictures, texts)
    limit = 2
    parts, _ = model.cell_cosines(pictures, texts)
    np.testing.assert_allclose(parts, whole, atol=0.02)
    assert sizes == [5, 5, 4, 2, 2, 1]
    limit = 0
    with pytest.raises(ClippanError, match="graphics card's memory is too small"):
        model.cell_cosines(pictures, texts)


def test_the_starter_tells_water_from_fields(tmp_path, raster) -> None:
    rng = np.random.default_rng(0)
    values = np.empty((3, 128, 256), np.uint8)
    values[:, :, :128] = np.array([30, 60, 80])[:, None, None] + rng.integers(0, 4, (3, 128, 128))
    rows = (np.arange(128) // 3 % 2 * 30)[:, None]
    values[:, :, 128:] = np.array([150, 120, 80])[:, None, None] + rows + rng.integers(0, 10, (3, 128, 128))
    result = run(
        SegmentRequest(
            raster=raster("a.tif", values),
            classes="water; farmland, field",
            output=str(tmp_path / "b.tif"),
            window=(64,),
        )
    )
    found = read_raster(result.output)[0]
    assert (found[:, :112] == 1).mean() > 0.8
    assert (found[:, 144:] == 2).mean() > 0.8


# Calibration


def labels(truth, share=None):
    """The truth as a raster of labels, or only in its upper part."""
    values = truth.astype(np.uint8).copy()
    if share:
        values[int(len(values) * share) :] = 0
    return values


@pytest.fixture
def calibrated(model, raster, tmp_path):
    def make(values, samples, classes=CLASSES, **options):
        path = raster("picture.tif", values)
        report = str(tmp_path / "r.html")
        request = CalibrateRequest(
            rasters=(path,),
            samples=(samples,),
            classes=classes,
            output=str(tmp_path / "t.json"),
            report=report,
            window=(16,),
            **options,
        )
        return run(request)

    return make


def test_calibration_finds_what_is_found_too_seldom(calibrated, raster, mapped, tmp_path) -> None:
    # Orange is nearer to yellow than to red: before, red is never found.
    values, truth = stripes(names=("warm", "yellow", "blue"))
    values = values.astype(np.uint8)
    result = calibrated(values, raster("labels.tif", labels(truth, 0.5)), "red; yellow; blue")
    assert result.before.accuracy < 0.75
    assert result.after.accuracy > result.before.accuracy + 0.15
    assert result.offsets[0] > result.offsets[1]
    found = read_raster(mapped(values, result.output).output)[0]
    assert (found == truth).mean() > 0.9
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert sum(result.labelled) == 4000  # of a block; there are more
    assert np.sum(result.before.confusion) == sum(result.labelled)


def test_polygons_and_points_give_the_labels_of_their_pixels(calibrated, raster, tmp_path) -> None:
    values, _ = stripes()
    features = []
    for number, name in enumerate(("red", "GREEN", "3", "red")):
        x, y = 500000 + 30 * number + 5, 5000000 - 20
        ring = [[x, y], [x + 20, y], [x + 20, y - 30], [x, y - 30], [x, y]]
        features.append(
            {"type": "Feature", "properties": {"class": name}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        )
    features.append(
        {
            "type": "Feature",
            "properties": {"class": "blue"},
            "geometry": {"type": "Point", "coordinates": [500070.5, 5000000 - 80.5]},
        }
    )
    path = tmp_path / "s.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    result = calibrated(values, str(path))
    assert result.labelled == (1200, 600, 601)
    assert result.before.accuracy > 0.99


def points(path, features, layers=("s",)):
    """Writes a GeoPackage: in its last layer points (column, row, class), in the others nothing."""
    source = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    for name in layers:
        layer = source.CreateLayer(name, spatial_reference("EPSG:32631"), ogr.wkbPoint)
        layer.CreateField(ogr.FieldDefn("class", ogr.OFTString))
        layer.SyncToDisk()  # else what is empty comes last
        for column, row, value in features if name == layers[-1] else ():
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["class"] = value
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({500000.5 + column} {4999999.5 - row})"))
            layer.CreateFeature(feature)
    return str(path)


@pytest.mark.slow
def test_labels_outside_are_told_and_their_class_is_named(calibrated, tmp_path) -> None:
    values, _ = stripes()
    features = [(10, 10, "red"), (60, 10, "green"), (20, 90, "red"), (700, 5, "blue"), (800, 5, "green")]
    result = calibrated(values, points(tmp_path / "s.gpkg", features, ("empty", "full")))
    assert result.labelled == (2, 1, 0)
    told = "\n".join(result.hints)
    assert "All labels of blue lie outside the rasters or on nodata" in told
    assert "outside" in told
    assert "(empty, full); full was read" in told
    assert "There are no labels of" not in told
    with pytest.raises(ClippanError, match=r"has both a geometry and a class|No label of"):
        calibrated(values, str(tmp_path / "s.gpkg"), layer="empty")
    other = points(tmp_path / "o.gpkg", features[::3])
    with pytest.raises(ClippanError, match=r"fewer than two of the classes, as all labels of blue lie outside"):
        calibrated(values, other)


def test_classes_from_a_file_are_told(mapped, tmp_path) -> None:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n", encoding="utf-8")
    lines: list[str] = []
    result = mapped(stripes()[0], str(tmp_path / "classes.txt"), context=Context(log=lines.append))
    assert [area.name for area in result.classes[:3]] == ["red", "green", "blue"]
    assert any("read from the file" in line and "classes.txt" in line for line in lines)


def test_words_that_are_cut_are_told(mapped, model, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(
        model, "encode_texts", lambda texts: encoders.np.eye(4, dtype=np.float32)[np.arange(len(texts)) % 4]
    )
    monkeypatch.setattr(model, "text_warnings", lambda phrases: [f"Read: {len(phrases)}."])
    values, _ = stripes()
    classes = "red, " + ", ".join(f"a red thing number {number} of many" for number in range(10)) + "; green; blue"
    hints = mapped(values, classes, polygons=str(tmp_path / "p.shp")).hints
    assert "Read: 13." in hints
    assert any("254 bytes" in hint and "the words of red are truncated" in hint for hint in hints)
    assert not any("254" in hint for hint in mapped(values, classes, polygons=str(tmp_path / "p.gpkg")).hints)
    assert not any("254" in hint for hint in mapped(values, "red; green", polygons=str(tmp_path / "p.shp")).hints)


def test_labels_on_nodata_do_not_count(calibrated, raster) -> None:
    values, truth = stripes()
    values = values.astype(np.uint8)
    values[:, :40] = 0
    samples = raster("labels.tif", labels(truth, 0.5))
    result = calibrated(values, samples, nodata=0)
    assert 400 < sum(result.labelled) <= 8 * 120  # of the block's 48 × 120, some are drawn
    values[:, :48] = 0
    with pytest.raises(ClippanError, match=r"lie on nodata of .*; label other places"):
        calibrated(values, samples, nodata=0)


def test_samples_that_cannot_be_meant_are_said(calibrated, raster, tmp_path) -> None:
    values, truth = stripes()
    for samples, says in (
        (raster("wrong.tif", labels(truth) + 5), "contains the value 6, but the prompt table has classes 1 to 3"),
        (raster("small.tif", labels(truth)[:50]), "resample it to the grid of the raster"),
        (raster("none.tif", labels(truth) * 0), "No label of"),
        (raster("one.tif", np.where(truth == 1, 1, 0).astype(np.uint8)), "fewer than two of the classes"),
    ):
        with pytest.raises(ClippanError, match=says):
            calibrated(values, samples)
    point = {"type": "Point", "coordinates": [500010, 4999990]}
    for properties, says in (
        ({"kind": "red"}, "has no field class; choose one of its fields .kind"),
        ({"class": "lava"}, "the class “lava”"),
    ):
        path = tmp_path / "s.geojson"
        path.write_text(
            json.dumps(
                {
                    "type": "FeatureCollection",
                    "features": [{"type": "Feature", "properties": properties, "geometry": point}],
                }
            )
        )
        with pytest.raises(ClippanError, match=says):
            calibrated(values, str(path))
    assert not (tmp_path / "t.json").exists()


@pytest.mark.slow
def test_words_are_moved_where_offsets_do_not_help(calibrated, raster, mapped, model) -> None:
    # Blue and yellow are as near to red as to green.
    values, truth = stripes(names=("blue", "yellow"))
    values = values.astype(np.uint8)
    result = calibrated(values, raster("labels.tif", labels(truth, 0.5)), "red; green")
    assert result.before.accuracy < 0.6
    assert result.after.accuracy > 0.9
    assert any("meaning of the words was adjusted" in hint for hint in result.hints)
    table = parse_prompts(result.output)
    assert [len(prompt.vector) for prompt in table.classes] == [4, 4]
    found = read_raster(mapped(values, result.output).output)[0]
    assert (found == truth).mean() > 0.9
    model.spec.id = "another"
    with pytest.raises(ClippanError, match="calibrated for the model colours, not for another"):
        mapped(values, result.output)


def test_settings_are_words_everywhere() -> None:
    assert SegmentRequest(raster="a", classes="b", output="c").refinement is Refinement.GUIDED
    assert SegmentRequest(raster="a", classes="b", output="c").stretch is Stretch.AUTO

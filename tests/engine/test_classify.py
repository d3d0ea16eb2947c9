"""Maps from samples: whole jobs on small scenes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from colours import ColourEncoder, unit
from conftest import read_raster
from osgeo import gdal, ogr, osr

from clippan.cli import main
from clippan.core.channels import Channels
from clippan.core.errors import Cancelled, ClippanError
from clippan.fewshot import stack
from clippan.handlers import classify as engine
from clippan.handlers import run
from clippan.jobs import Classifier, ClassifyRequest, Context, PretrainSceneRequest
from clippan.raster.rendering import spatial_reference

UTM = 32631
NAMES = ("Øre, wet", "alder", "beech")  # sorted as text: alder, beech, Øre


def fields(height=60, width=96, bands=4, seed=0):
    """Three upright fields in noise (bands, h, w), and the class of each pixel, 1 to 3 in the order of NAMES."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(1, 4), width // 3)[None].repeat(height, axis=0)
    signature = np.random.default_rng(5).uniform(0, 1, (3, bands))
    values = signature[truth - 1].transpose(2, 0, 1) + rng.normal(0, 0.08, (bands, height, width))
    return (1000 * values).astype(np.float32), truth


def vector(path, features, epsg=UTM, field="class", kind=ogr.OFTString):
    """Writes (geometry as WKT, class) to a GeoPackage."""
    path.unlink(missing_ok=True)
    source = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    layer = source.CreateLayer("samples", spatial_reference(f"EPSG:{epsg}") if epsg else None)
    layer.CreateField(ogr.FieldDefn(field, kind))
    for text, name in features:
        feature = ogr.Feature(layer.GetLayerDefn())
        if name is not None:
            feature[field] = name
        feature.SetGeometry(ogr.CreateGeometryFromWkt(text))
        layer.CreateFeature(feature)
    return str(path)


def points(truth, names=NAMES, each=8, seed=1, pixel=10.0):
    rng = np.random.default_rng(seed)
    found = []
    for value, name in enumerate(names, 1):
        rows, columns = np.nonzero(truth == value)
        for place in rng.permutation(len(rows))[:each]:
            x, y = 500000 + (columns[place] + 0.5) * pixel, 5000000 - (rows[place] + 0.5) * pixel
            found.append((f"POINT ({x} {y})", name))
    return found


def square(left, top, right, bottom, pixel=10.0):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    ring = ", ".join(f"{500000 + x * pixel} {5000000 - y * pixel}" for x, y in corners)
    return f"POLYGON (({ring}))"


class Reader(ColourEncoder):
    """Sees colours, and reads anything."""

    def encode_texts(self, texts):
        return unit([[len(text), *(ord(letter) % 7 for letter in text[:3])] for text in texts])


@pytest.fixture
def model(monkeypatch):
    """Takes the place of CLIP."""
    monkeypatch.setattr(engine, "load_encoder", lambda *_: Reader())


@pytest.fixture
def mapped(raster, tmp_path):
    """Maps a scene of three fields; options replace what it is asked."""

    def make(values=None, features=None, context=None, vector_options=None, pixel=10.0, nodata=None, **options):
        own, truth = fields()
        path = raster("scene.tif", own if values is None else values, pixel=pixel, nodata=nodata)
        samples = vector(tmp_path / "samples.gpkg", features or points(truth), **(vector_options or {}))
        request = {
            "rasters": (path,),
            "samples": samples,
            "field": "class",
            "output": str(tmp_path / "map.tif"),
            "method": Classifier.SVM_MEAN,
            "repeats": 1,
            "threads": 1,
        }
        return run(ClassifyRequest(**{**request, **options}), context)

    return make


def wanted(truth):
    """The map that a truth in the order of NAMES should give: values in the sorted order."""
    return np.array([0, 3, 1, 2])[truth]


def test_values_follow_the_sorted_names(mapped, tmp_path) -> None:
    result = mapped(
        confidence=str(tmp_path / "sure.tif"), areas=str(tmp_path / "areas.csv"), report=str(tmp_path / "report.html")
    )
    found = read_raster(result.output)[0]
    assert found.dtype == np.uint8
    assert (found == wanted(fields()[1])).mean() > 0.98
    dataset = gdal.Open(result.output)
    band = dataset.GetRasterBand(1)
    assert band.GetNoDataValue() == 0
    assert band.GetCategoryNames()[1:4] == ["alder", "beech", "Øre, wet"]
    assert [area.name for area in result.classes] == ["alder", "beech", "Øre, wet"]
    assert [area.value for area in result.classes] == [1, 2, 3]
    assert sum(area.pixels for area in result.classes) == found.size
    assert result.classes[0].hectares == pytest.approx(result.classes[0].pixels / 100)
    assert band.GetDefaultRAT().GetValueAsString(3, 1) == "Øre, wet"
    with (tmp_path / "areas.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["alder", "beech", "Øre, wet"]
    sure = read_raster(str(tmp_path / "sure.tif"))[0]
    assert 0.34 < sure.min() <= sure.max() <= 1
    assert sure[:, 32].mean() < sure[:, 16].mean()  # less sure between two fields
    assert result.accuracy is not None
    assert result.accuracy.oa > 0.9
    assert sum(map(sum, result.accuracy.confusion)) == 24
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Øre, wet" in page
    assert page.count("data:image/png") == 3
    assert result.labelled == (8, 8, 8)
    assert not list(tmp_path.glob(".clippan-*"))


def test_the_same_request_gives_the_same_bytes_whatever_the_tiles(mapped, tmp_path, monkeypatch) -> None:
    values, _ = fields(60, 96)
    first = read_raster(mapped(values, repeats=0).output)
    again = read_raster(mapped(values, repeats=0, output=str(tmp_path / "again.tif")).output)
    np.testing.assert_array_equal(first, again)
    monkeypatch.setattr(engine, "BLOCK", 16)
    small = read_raster(mapped(values, repeats=0, output=str(tmp_path / "small.tif")).output)
    np.testing.assert_array_equal(first, small)


@pytest.mark.slow
def test_diffclip_maps_the_same_whatever_the_tiles(mapped, model, raster, tmp_path, monkeypatch) -> None:
    encoder = tmp_path / "scene.safetensors"
    path = raster("scene.tif", fields()[0], pixel=10.0)
    run(PretrainSceneRequest(rasters=(path,), output=str(encoder), steps=2, threads=1))

    def made(name):
        sure = str(tmp_path / name)
        mapped(method=Classifier.DIFFCLIP, encoder=str(encoder), confidence=sure, repeats=0)
        return read_raster(sure)[0]

    first = made("first.tif")
    monkeypatch.setattr(engine, "BLOCK", 32)
    np.testing.assert_allclose(made("tiles.tif"), first, atol=1e-3)
    # Samples are looked at in parts: only the features' moments are of another part of the scene.
    monkeypatch.setattr(stack, "_WHOLE", 0)
    assert np.abs(made("parts.tif") - first).mean() < 0.05


@pytest.mark.slow
def test_an_encoder_of_another_scene_is_told(mapped, model, raster, tmp_path) -> None:
    values, _ = fields()
    encoder = str(tmp_path / "scene.safetensors")
    for scale, said in ((1.0, False), (9.0, True)):
        path = raster("other.tif", values * scale, pixel=10.0)
        run(PretrainSceneRequest(rasters=(path,), output=encoder, steps=2, threads=1))
        result = mapped(method=Classifier.DIFFCLIP, encoder=encoder, repeats=0)
        assert any("differ from those that scene.safetensors was trained on" in hint for hint in result.hints) is said


def test_descriptions_are_prompts_of_their_own(mapped, model, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(
        engine, "DiffClipClassifier", lambda stack, labelled, encoder, prompts, context: given.append(prompts) or stop()
    )

    def stop():
        raise ClippanError("enough")

    with pytest.raises(ClippanError, match="enough"):
        mapped(method=Classifier.DIFFCLIP, steps=1, descriptions="alder: dark; alder: wet ground", repeats=0)
    texts = given[0]
    assert texts.shape == (3, 3, 4)
    np.testing.assert_array_equal(texts[0], Reader().encode_texts(["alder", "dark", "wet ground"]))
    np.testing.assert_array_equal(texts[1], Reader().encode_texts(["beech"] * 3))


def test_what_is_not_saved_is_told(mapped, model, tmp_path) -> None:
    features = [point for place, point in enumerate(points(fields()[1])) if place % 8 == 0]
    result = mapped(features=features, method=Classifier.AUTO, save_encoder=str(tmp_path / "scene.safetensors"))
    assert result.encoder == ""
    assert any("No pre-trained scene was saved" in hint for hint in result.hints)


def test_a_model_of_another_sensor_looks_at_that_sensors_raster(mapped, model, raster, monkeypatch) -> None:
    values, _ = fields()
    looked = []
    sensor = Channels(("VV", "VH"), (0.0, 0.0), (1000.0, 1000.0), (1, 2), 2)
    monkeypatch.setattr(engine, "ClipFeatureExtractor", lambda stack, look, path, *rest: looked.append(path) or stop())
    monkeypatch.setattr(engine, "load_encoder", lambda *_: sensing())

    def sensing():
        reader = Reader()
        reader.channels = sensor
        return reader

    def stop():
        raise ClippanError("enough")

    rasters = (raster("four.tif", values, pixel=10.0), raster("radar.tif", values[:2], pixel=10.0))
    with pytest.raises(ClippanError, match="enough"):
        mapped(rasters=rasters, method=Classifier.TIP, repeats=0)
    assert looked == [rasters[1]]


@pytest.mark.parametrize("method", [Classifier.SVM, Classifier.RF])
def test_a_rival_maps(mapped, method) -> None:
    result = mapped(method=method)
    assert (read_raster(result.output)[0] == wanted(fields()[1])).mean() > 0.9
    assert result.method is method
    assert result.model == ""
    assert result.chosen == ()


@pytest.mark.slow
def test_auto_compares_all_and_says_so(mapped, model, tmp_path) -> None:
    encoder = tmp_path / "scene.safetensors"
    result = mapped(method=Classifier.AUTO, steps=3, save_encoder=str(encoder))
    assert {score.method for score in result.chosen} == set(Classifier) - {Classifier.AUTO}
    assert [score.oa for score in result.chosen] == sorted((score.oa for score in result.chosen), reverse=True)
    assert result.method is result.chosen[0].method
    assert any(result.method.value in hint and "cross-validation" in hint for hint in result.hints)
    assert result.encoder == str(encoder)
    again = mapped(method=Classifier.DIFFCLIP, encoder=str(encoder), repeats=0, output=str(tmp_path / "again.tif"))
    assert (read_raster(again.output)[0] == wanted(fields()[1])).mean() > 0.9
    assert again.model == "colours"


def test_a_scene_is_pretrained(raster, tmp_path) -> None:
    path = raster("scene.tif", fields()[0], pixel=10.0)
    output = tmp_path / "scene.safetensors"
    result = run(PretrainSceneRequest(rasters=(path, path), output=str(output), steps=2, threads=1))
    assert result.modalities == (4, 4)
    assert result.steps == 2
    assert output.is_file()


def test_rasters_of_other_resolution_and_crs_are_laid_on_the_finest(mapped, raster, tmp_path) -> None:
    values, truth = fields()
    fine = raster("fine.tif", values[:1], pixel=10.0)
    coarse = raster("coarse.tif", values[1:].reshape(3, 30, 2, 48, 2).mean((2, 4)), pixel=20.0)
    other = str(tmp_path / "degrees.tif")
    gdal.Warp(other, coarse, dstSRS="EPSG:4326", dstNodata=-1, resampleAlg="bilinear")
    alone = mapped(rasters=(fine,), repeats=0)
    for second in (coarse, other):
        result = mapped(rasters=(second, fine), repeats=0, output=str(tmp_path / "both.tif"))
        grid = gdal.Open(result.output).GetGeoTransform()
        assert grid[1] == 10.0
        found = read_raster(result.output)[0]
        column, row = round((grid[0] - 500000) / 10), round((5000000 - grid[3]) / 10)
        own = wanted(truth)[row : row + found.shape[0], column : column + found.shape[1]]
        known = found > 0
        assert known.mean() > 0.95
        both = (found == own)[known].mean()
        assert both > 0.95
        assert both > (read_raster(alone.output)[0] == wanted(truth)).mean()
    chosen = mapped(rasters=(fine, coarse), grid=2, repeats=0, output=str(tmp_path / "chosen.tif"))
    assert (chosen.width, chosen.height) == (48, 30)


def test_only_the_overlap_is_mapped(mapped, raster, tmp_path) -> None:
    values, truth = fields()
    one = raster("one.tif", values, pixel=10.0)
    other = raster("other.tif", values[:, 10:50, 5:90], pixel=10.0, origin=(500050.0, 4999900.0))
    result = mapped(rasters=(one, other), repeats=0)
    assert (result.width, result.height) == (85, 40)
    assert (read_raster(result.output)[0] == wanted(truth)[10:50, 5:90]).mean() > 0.95
    assert any("outside" in hint for hint in result.hints)


def test_nodata_of_any_raster_and_dead_bands(mapped, raster) -> None:
    values, truth = fields()
    one, other = values[:2].copy(), values[2:].copy()
    one[:, :5] = -9999
    other[:, :, -4:] = np.nan
    dead = np.stack([np.full_like(one[0], np.nan), np.full_like(one[0], 7)])
    result = mapped(
        rasters=(
            raster("one.tif", np.concatenate([one, dead]), pixel=10.0, nodata=-9999.0),
            raster("other.tif", other, pixel=10.0),
        ),
        repeats=0,
    )
    found = read_raster(result.output)[0]
    assert (found[:5] == 0).all()
    assert (found[:, -4:] == 0).all()
    inside = found[5:, :-4]
    assert inside.min() > 0
    assert (inside == wanted(truth)[5:, :-4]).mean() > 0.97
    assert any("are not used (2 of 4): 3; 4." in hint for hint in result.hints)
    assert any("on nodata" in hint for hint in result.hints)


def test_many_bands_and_one_sample_of_a_class(mapped) -> None:
    values, truth = fields(bands=224)
    features = points(truth)
    result = mapped(values, [item for item in features if item[1] != "alder"] + points(truth, each=1)[1:2])
    assert result.labelled == (1, 8, 8)
    assert result.accuracy is not None
    assert result.accuracy.f1[0] is None
    assert result.accuracy.confusion[0] == (0, 0, 0)
    assert any("alder" in hint and "one place" in hint for hint in result.hints)


def test_one_sample_of_each_class_tells_nothing_of_accuracy(mapped, model, tmp_path) -> None:
    result = mapped(features=points(fields()[1], each=1), method=Classifier.AUTO, report=str(tmp_path / "report.html"))
    assert result.accuracy is None
    assert result.method is Classifier.SVM_MEAN
    assert any("Too few places" in hint for hint in result.hints)


def test_polygons_are_capped_and_left_out_whole(mapped) -> None:
    _, truth = fields()
    features = [
        (square(32 * part + left, top, 32 * part + left + 12, top + 25), NAMES[part])
        for part in range(3)
        for left, top in ((2, 2), (18, 2), (2, 32))
    ]
    result = mapped(features=features)
    assert result.labelled == (500, 500, 500)
    assert result.places == (3, 3, 3)
    assert result.accuracy is not None
    assert result.accuracy.split == "polygon"
    assert (read_raster(result.output)[0] == wanted(truth)).mean() > 0.98
    assert any("500" in hint for hint in result.hints)


def test_samples_in_another_crs_and_numbers_as_classes(mapped) -> None:
    _, truth = fields()
    change = osr.CoordinateTransformation(spatial_reference(f"EPSG:{UTM}"), spatial_reference("EPSG:4326"))
    moved = []
    for text, name in points(truth, ("2", "10", "7")):
        geometry = ogr.CreateGeometryFromWkt(text)
        geometry.Transform(change)
        moved.append((geometry.ExportToWkt(), int(name)))
    result = mapped(features=moved, vector_options={"epsg": 4326, "kind": ogr.OFTInteger}, repeats=0)
    assert [area.name for area in result.classes] == ["2", "7", "10"]
    assert (read_raster(result.output)[0] == np.array([0, 1, 3, 2])[truth]).mean() > 0.98


def test_disputed_pixels_are_left_aside(mapped) -> None:
    features = points(fields()[1])
    result = mapped(features=[*features, (features[0][0], "beech")], repeats=0)
    assert result.labelled == (8, 8, 7)
    assert "Pixels labelled with several classes were ignored (1)." in result.hints


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"field": "crop"}, "no field crop; choose one of its fields (class)"),
        ({"layer": "roads"}, "no layer roads; choose one of samples"),
        (
            {"features": [("POINT (500005 4999995)", "alder"), ("POINT (500105 4999995)", "alder")]},
            "only the class alder",
        ),
        ({"features": [("POINT (9 9)", "alder"), ("POINT (500105 4999995)", None)]}, "lies on the rasters"),
        (
            {"features": [("LINESTRING (500005 4999995, 500105 4999995)", "alder")]},
            "other geometries than points and polygons (LINESTRING",
        ),
        ({"values": np.full((2, 60, 96), 3, np.float32)}, "same value everywhere"),
        ({"values": np.full((2, 60, 96), np.nan, np.float32)}, "no data in the common area"),
        ({"descriptions": "pine: dark"}, "description of pine but no sample"),
        ({"grid": 2}, "between 0 and 1"),
        ({"method": Classifier.AUTO, "repeats": 0}, "repeat it once or more"),
        ({"encoder": "none.safetensors"}, "does not exist"),
        ({"report": "map.tif"}, "let it end in .html"),
    ],
)
def test_faults_are_one_sentence(mapped, tmp_path, change, says) -> None:
    with pytest.raises(ClippanError) as caught:
        mapped(**change)
    assert says in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "map.tif").exists()
    assert not list(tmp_path.glob(".clippan-*"))


def test_rasters_apart_and_inputs_as_outputs_are_refused(mapped, raster, tmp_path) -> None:
    values, _ = fields()
    one = raster("one.tif", values, pixel=10.0)
    far = raster("far.tif", values, pixel=10.0, origin=(700000.0, 5000000.0))
    with pytest.raises(ClippanError, match="does not overlap"):
        mapped(rasters=(one, far))
    with pytest.raises(ClippanError, match="one of the inputs"):
        mapped(rasters=(one,), output=one)
    with pytest.raises(ClippanError, match="Two of the outputs are called"):
        mapped(rasters=(one,), confidence=str(tmp_path / "map.tif"))
    gdal.BuildVRT(str(tmp_path / "all.vrt"), [one]).FlushCache()
    with pytest.raises(ClippanError, match="one of the inputs"):  # through a virtual raster
        mapped(rasters=(str(tmp_path / "all.vrt"),), output=one)


def test_a_cancelled_map_leaves_nothing(mapped, tmp_path) -> None:
    seen = []

    def progress(percent, message):
        seen.append(percent)

    with pytest.raises(Cancelled):
        mapped(context=Context(progress, None, lambda: bool(seen) and seen[-1] > 70), report=str(tmp_path / "r.html"))
    assert seen == sorted(seen)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", "samples.gpkg"}


def test_the_command_prints_json(raster, tmp_path, capsys) -> None:
    values, truth = fields()
    path = raster("scene.tif", values, pixel=10.0)
    samples = vector(tmp_path / "samples.gpkg", points(truth))
    output = str(tmp_path / "map.tif")
    words = ["classify", "--rasters", path, path, "--samples", samples, "--field", "class", "--output", output]
    assert main([*words, "--method", "svm", "--repeats", "1", "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "svm"
    assert [area["name"] for area in result["classes"]] == ["alder", "beech", "Øre, wet"]
    assert main([*words, "--method", "svm", "--field", "none"]) == 2
    assert "no field none" in capsys.readouterr().err

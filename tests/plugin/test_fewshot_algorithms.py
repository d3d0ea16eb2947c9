"""Maps from few samples, and models of one's own: what is asked of the engine, and what is made of its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Feedback, write
from osgeo import gdal, ogr
from qgis.core import (
    Qgis,
    QgsFeature,
    QgsGeometry,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)

from clippan.jobs import (
    AlignSensorRequest,
    Classifier,
    ClassifyRequest,
    Device,
    FinetuneClipRequest,
    PretrainSceneRequest,
    Stretch,
    from_json,
)

NAMES = ("classifyfewsamples", "pretrainscene", "finetuneclip", "alignsensor")


@pytest.fixture
def rasters(tmp_path):
    folder = tmp_path / "scène 1"
    folder.mkdir()
    return [
        write(folder / "colours.tif", np.ones((3, 64, 64)), 10.0),
        write(folder / "height.tif", np.ones((1, 32, 32)), 20.0),
    ]


@pytest.fixture
def samples(qgis_new_project):
    layer = QgsVectorLayer("Polygon?crs=EPSG:4326&field=fid:int&field=kind:string", "places", "memory")
    for number, kind in enumerate(("water", "water", "forest")):
        feature = QgsFeature(layer.fields())
        feature.setAttributes([number + 7, kind])
        feature.setGeometry(QgsGeometry.fromWkt(f"POLYGON(({number} 0, {number} 1, {number}.5 1, {number} 0))"))
        layer.dataProvider().addFeatures([feature])
    QgsProject.instance().addMapLayer(layer)
    return layer


@pytest.fixture
def asked(fake, tmp_path):
    """The engine, and the last of what it was asked."""
    log = tmp_path / "jobs.jsonl"
    fake("fine", JOBS=log)

    def last(kind):
        values = json.loads(log.read_text().splitlines()[-1])
        assert values.pop("job") == kind.name
        return from_json(kind, values)

    return last


@pytest.fixture
def inputs(rasters, samples, tmp_path):
    """Of a classification."""
    return {"RASTERS": rasters, "SAMPLES": samples, "FIELD": "kind", "OUTPUT": str(tmp_path / "map.tif")}


@pytest.fixture
def scene(rasters, tmp_path):
    """Of a pre-training."""
    return {"RASTERS": rasters, "OUTPUT": str(tmp_path / "scene.safetensors")}


@pytest.fixture
def tuning(tmp_path):
    """Of a fine-tuning."""
    for name in ("pictures", "control"):
        (tmp_path / name).mkdir()
    return {"PICTURES": str(tmp_path / "pictures"), "OUTPUT": str(tmp_path / "model")}


@pytest.fixture
def pairs(rasters, tmp_path):
    """Of an alignment."""
    return {"TEACHER": rasters[:1], "SENSOR": rasters[1:], "OUTPUT": str(tmp_path / "model")}


def test_the_defaults_of_a_classification_are_the_engines(run, asked, inputs, context):
    run("classifyfewsamples", inputs, context=context)
    found = asked(ClassifyRequest)
    assert found == ClassifyRequest(
        rasters=tuple(inputs["RASTERS"]), samples=found.samples, field="kind", output=inputs["OUTPUT"]
    )
    file = ogr.Open(found.samples)
    layer = file.GetLayer()
    assert [field.name for field in layer.schema] == ["kind"]
    assert (layer.GetFeatureCount(), layer.GetSpatialRef().GetAuthorityCode(None)) == (3, "4326")


@pytest.mark.parametrize("field", ["geom", "geometry", "fid", "ogc_fid", "Straße/№", "clippan"])
def test_a_class_may_be_in_a_field_of_any_name(field, run, asked, inputs, samples):
    samples.dataProvider().renameAttributes({1: field} if field != "fid" else {0: "number", 1: field})
    samples.updateFields()
    run("classifyfewsamples", {**inputs, "FIELD": field})
    file = ogr.Open(asked(ClassifyRequest).samples)
    layer = file.GetLayer()
    assert [item.name for item in layer.schema] == [field]
    assert sorted(feature.GetField(0) for feature in layer) == ["forest", "water", "water"]
    layer.ResetReading()
    assert all(feature.GetGeometryRef().GetArea() > 0 for feature in layer)


@pytest.mark.parametrize("as_text", [False, True])
def test_the_layer_that_was_chosen_is_read_wherever_it_is_in_its_file(as_text, run, asked, inputs, tmp_path):
    path = str(tmp_path / "two.gpkg")
    file = ogr.GetDriverByName("GPKG").CreateDataSource(path)
    for name, kinds in (("first", ()), ("second", ("corn", "rye"))):
        layer = file.CreateLayer(name, None, ogr.wkbPoint)
        layer.CreateField(ogr.FieldDefn("kind", ogr.OFTString))
        for number, kind in enumerate(kinds):
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["kind"] = kind
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({number} 0)"))
            layer.CreateFeature(feature)
    feature = layer = file = None
    source = f"{path}|layername=second"
    chosen = QgsVectorLayer(source, "mine", "ogr")
    QgsProject.instance().addMapLayer(chosen)
    run("classifyfewsamples", {**inputs, "SAMPLES": source if as_text else chosen})
    layer = (file := ogr.Open(asked(ClassifyRequest).samples)).GetLayer()
    assert sorted(feature["kind"] for feature in layer) == ["corn", "rye"]
    del file


def test_the_defaults_of_a_pretraining_are_the_engines(run, asked, scene):
    feedback = Feedback()
    results = run("pretrainscene", scene, feedback)
    assert asked(PretrainSceneRequest) == PretrainSceneRequest(rasters=tuple(scene["RASTERS"]), output=scene["OUTPUT"])
    assert results == {"OUTPUT": scene["OUTPUT"], "STEPS_DONE": 7, "LOSS": 0.25, "DEVICE_USED": "cpu"}
    assert any("bands: 3 + 1, steps: 7" in line for line in feedback.lines)
    assert "A hint." in feedback.lines


def test_the_defaults_of_a_fine_tuning_are_the_engines(run, asked, tuning):
    run("finetuneclip", tuning)
    assert asked(FinetuneClipRequest) == FinetuneClipRequest(data=tuning["PICTURES"], output=tuning["OUTPUT"])


def test_the_defaults_of_an_alignment_are_the_engines(run, asked, pairs):
    run("alignsensor", pairs)
    expected = AlignSensorRequest(
        teacher_rasters=tuple(pairs["TEACHER"]), sensor_rasters=tuple(pairs["SENSOR"]), output=pairs["OUTPUT"]
    )
    assert asked(AlignSensorRequest) == expected


def test_all_that_a_classification_can_be_asked(run, asked, inputs, context, tmp_path):
    files = {
        "CONFIDENCE": "c.tif",
        "REPORT": "r.html",
        "AREAS": "a.csv",
        "OUTPUT_PRETRAINED": "kept.safetensors",
    }
    places = {name: str(tmp_path / file) for name, file in files.items()}
    values = {
        "METHOD": "diffclip",
        "DESCRIPTIONS": "water: dark blue;\n\n forest: dense green canopy ",
        "MODEL": "farslip1-b16",
        "GRID": inputs["RASTERS"][1],
        "SEED": 3,
        "REPEATS": 5,
        "STEPS": 20,
        "BANDS": "3,2,1",
        "NODATA": 0,
        "THREADS": 2,
        "DEVICE": "cpu",
    }
    results = run("classifyfewsamples", {**inputs, **places, **values}, context=context)
    found = asked(ClassifyRequest)
    assert found == ClassifyRequest(
        rasters=tuple(inputs["RASTERS"]),
        samples=found.samples,
        field="kind",
        output=inputs["OUTPUT"],
        method=Classifier.DIFFCLIP,
        confidence=places["CONFIDENCE"],
        report=places["REPORT"],
        areas=places["AREAS"],
        save_encoder=places["OUTPUT_PRETRAINED"],
        descriptions="water: dark blue; forest: dense green canopy",
        model="farslip1-b16",
        grid=2,
        seed=3,
        repeats=5,
        steps=20,
        bands=(3, 2, 1),
        nodata=0.0,
        threads=2,
        device=Device.CPU,
    )
    assert {name: results[name] for name in places} == places
    assert all(Path(path).exists() for path in places.values())
    assert (results["METHOD_USED"], results["MODEL_USED"]) == ("diffclip", "farslip1-b16")
    assert (results["DEVICE_USED"], results["CLASS_COUNT"]) == ("cpu", 1)


def test_a_pretrained_scene_goes_from_one_algorithm_to_the_other(run, asked, inputs, scene, monkeypatch, tmp_path):
    run("pretrainscene", {**scene, "GRID": scene["RASTERS"][0], "STEPS": 9, "SEED": 4, "NODATA": -1, "DEVICE": "cpu"})
    found = asked(PretrainSceneRequest)
    assert (found.grid, found.steps, found.seed, found.nodata, found.device) == (1, 9, 4, -1.0, Device.CPU)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.json").write_text('{"water": "blue"}')
    words = {"DESCRIPTIONS": "words.json", "PRETRAINED": "scene.safetensors"}
    run("classifyfewsamples", {**inputs, **words})
    found = asked(ClassifyRequest)
    assert (found.encoder, found.descriptions) == (scene["OUTPUT"], str(tmp_path / "words.json"))


def test_the_log_compares_methods_and_classes(run, asked, inputs, context):
    feedback = Feedback()
    results = run("classifyfewsamples", inputs, feedback, context)
    rows = [line.split() for line in feedback.lines]
    assert ["Method", "OA", "±", "AA", "Kappa", "Seconds"] in rows
    assert ["svm-mean", "90.0%", "2.0%", "85.0%", "0.800", "3"] in rows
    assert ["1", "forest", "1", "50", "–", "25.0%", "1.50", "0.70"] in rows
    assert ["2", "water", "2", "50", "0.950", "25.0%", "–", "–"] in rows
    assert any(line.startswith("Overall accuracy (OA) 90.0% ± 2.0%") for line in feedback.lines)
    assert "A hint." in feedback.lines
    figures = {name: results[name] for name in ("OA", "OA_STD", "AA", "KAPPA", "METHOD_USED")}
    assert figures == {"OA": 0.9, "OA_STD": 0.02, "AA": 0.85, "KAPPA": 0.8, "METHOD_USED": "svm-mean"}


def test_what_was_not_measured_is_not_told(run, asked, inputs, context):
    feedback = Feedback()
    results = run("classifyfewsamples", {**inputs, "METHOD": "svm", "REPEATS": 0}, feedback, context)
    assert "OA" not in results
    assert not any(line.startswith(("Method", "Overall")) for line in feedback.lines)
    assert results["METHOD_USED"] == "svm"


def test_only_selected_places_are_taken_if_that_is_chosen(run, asked, inputs, samples, rasters, tuning, context):
    samples.selectByExpression("\"kind\" = 'forest'")
    chosen = QgsProcessingFeatureSourceDefinition(samples.id(), selectedFeaturesOnly=True)
    run("classifyfewsamples", {**inputs, "SAMPLES": chosen}, context=context)
    assert QgsVectorLayer(asked(ClassifyRequest).samples, "places").featureCount() == 1
    run("finetuneclip", {"INPUT": rasters[0], "SAMPLES": chosen, "FIELD": "kind", "OUTPUT": tuning["OUTPUT"]})
    assert asked(FinetuneClipRequest).field == "kind"


def test_the_map_opens_styled_everywhere(run, asked, inputs, tmp_path):
    confidence = str(tmp_path / "c.tif")
    run("classifyfewsamples", {**inputs, "CONFIDENCE": confidence})
    layer = QgsRasterLayer(inputs["OUTPUT"], "again")
    assert [(item.value, item.label) for item in layer.renderer().classes()] == [(1, "forest"), (2, "water")]
    layer = QgsRasterLayer(confidence, "again")
    assert layer.renderer().type() == "singlebandpseudocolor"
    assert gdal.Open(inputs["OUTPUT"]).ReadAsArray().max() == 2


def test_layers_are_loaded_styled(run, asked, inputs, context, tmp_path):
    outputs = {
        name: QgsProcessingOutputLayerDefinition(f"{tmp_path}/{name}.tif", context.project())
        for name in ("OUTPUT", "CONFIDENCE")
    }
    results = run("classifyfewsamples", {**inputs, **outputs}, context=context)
    shown = []
    for name in outputs:
        details = context.layerToLoadOnCompletionDetails(results[name])
        layer = QgsRasterLayer(results[name], "x")
        details.postProcessor().postProcessLayer(layer, context, Feedback())
        shown.append((details.name, layer.renderer().type()))
    assert shown == [("Class map (svm-mean)", "paletted"), ("Confidence (svm-mean)", "singlebandpseudocolor")]


def test_values_as_qgis_process_gives_them(run, asked, inputs):
    words = {"STEPS": "", "NODATA": "", "REPEATS": "2", "GRID": "", "SEED": "5", "METHOD": "rf"}
    run("classifyfewsamples", {**inputs, **words, "RASTERS": inputs["RASTERS"][0]})
    found = asked(ClassifyRequest)
    assert (found.steps, found.nodata, found.repeats, found.grid, found.seed) == (None, None, 2, 0, 5)
    assert (found.method, found.rasters) == (Classifier.RF, (inputs["RASTERS"][0],))


def test_a_model_takes_places_and_hands_the_scene_on(run, asked, inputs, context, tmp_path):
    source = QgsProcessingModelChildParameterSource
    model = QgsProcessingModelAlgorithm("m", "g")
    steps = {
        "scene": ("pretrainscene", {"RASTERS": source.fromStaticValue(inputs["RASTERS"])}),
        "map": (
            "classifyfewsamples",
            {
                "RASTERS": source.fromStaticValue(inputs["RASTERS"]),
                "SAMPLES": source.fromStaticValue(inputs["SAMPLES"].id()),
                "FIELD": source.fromStaticValue("kind"),
                "PRETRAINED": source.fromChildOutput("scene", "OUTPUT"),
            },
        ),
    }
    for name, (algorithm, values) in steps.items():
        step = QgsProcessingModelChildAlgorithm(f"clippan:{algorithm}")
        step.setChildId(name)
        for parameter, value in values.items():
            step.addParameterSources(parameter, [value])
        model.addChildAlgorithm(step)
    _, ok = model.run({}, context, Feedback())
    assert ok
    assert Path(asked(ClassifyRequest).encoder).is_file()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"FIELD": "colour"}, "The labelled places have no field colour; choose the one that holds the class"),
        ({"RASTERS": ["/nowhere/a.tif"]}, "“Raster\\(s\\)”, /nowhere/a.tif, does not exist; check the path"),
        ({"GRID": "{0}/other.tif"}, "other is not one of the rasters; choose one of them"),
        ({"DESCRIPTIONS": "just words"}, "The description “just words” is not understood"),
        ({"PRETRAINED": "{0}/none.safetensors"}, "none.safetensors does not exist; check the path"),
        ({"METHOD": "svm", "OUTPUT_PRETRAINED": "{0}/x.safetensors"}, "Only diffclip pre-trains on the scene"),
        ({"REPEATS": 0}, "The method auto compares methods by cross-validation; repeat it once or more"),
        ({"AREAS": "{0}/areas.txt"}, " end in .csv"),
        ({"OUTPUT": "/nowhere/map.tif"}, "The output folder /nowhere does not exist"),
    ],
)
def test_what_cannot_be_classified_is_told_in_a_sentence(run, asked, inputs, tmp_path, change, sentence):
    write(tmp_path / "other.tif", np.ones((1, 8, 8)), 10.0)
    change = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(QgsProcessingException, match=sentence) as caught:
        run("classifyfewsamples", {**inputs, **change})
    assert "\n" not in str(caught.value).replace("Unable to execute algorithm\n", "")


def test_cancelling_leaves_nothing(run, fake, inputs, tmp_path):
    fake("polite")
    with pytest.raises(QgsProcessingException, match=r"^Cancelled; nothing was written\.$"):
        run("classifyfewsamples", inputs, Feedback(cancel_at_progress=True))
    assert not list(tmp_path.glob("map.tif*"))


@pytest.mark.slow
def test_the_real_engine_makes_a_map(run, engine, context, tmp_path):
    """Three kinds of field, in squares of 24 pixels, with a small polygon in each square."""
    random, edge = np.random.default_rng(0), 24
    row, column = np.mgrid[0:96, 0:96] // edge
    truth = (row + column) % 3
    levels = np.array([[100, 200, 900], [600, 500, 300], [300, 700, 800]])
    values = levels[truth].transpose(2, 0, 1) + random.normal(0, 20, (3, 96, 96))
    rasters = [
        write(tmp_path / "colours.tif", values, 10.0),
        write(tmp_path / "height.tif", truth[None, ::2, ::2] * 50 + random.normal(100, 5, (1, 48, 48)), 20.0),
    ]
    layer = QgsVectorLayer("Polygon?crs=EPSG:32631&field=crop:string", "fields", "memory")
    for place in range(16):
        west, north = 500000 + (place % 4 * edge + 8) * 10, 5000000 - (place // 4 * edge + 8) * 10
        feature = QgsFeature(layer.fields())
        feature.setAttributes([("wheat", "corn", "oats")[(place % 4 + place // 4) % 3]])
        feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(west, north - 50, west + 50, north)))
        layer.dataProvider().addFeatures([feature])
    files = {"CONFIDENCE": "c.tif", "REPORT": "r.html", "AREAS": "a.csv", "OUTPUT": "map.tif"}
    places = {name: str(tmp_path / file) for name, file in files.items()}
    values = {"RASTERS": rasters, "SAMPLES": layer, "FIELD": "crop", "METHOD": "svm-mean", "REPEATS": 1}
    results = run("classifyfewsamples", {**values, **places}, context=context)
    assert {name: results[name] for name in places} == places
    assert all(Path(path).exists() for path in places.values())
    assert (results["CLASS_COUNT"], results["METHOD_USED"], results["DEVICE_USED"]) == (3, "svm-mean", "cpu")
    assert results["OA"] > 0.95
    found = gdal.Open(results["OUTPUT"]).ReadAsArray()
    assert (found == np.array([3, 1, 2])[truth]).mean() > 0.9  # in the order of the alphabet


def test_all_that_a_fine_tuning_can_be_asked(run, asked, tuning, tmp_path):
    report = str(tmp_path / "report.html")
    values = {
        "CONTROL": str(tmp_path / "control"),
        "WORDS": "SeaLake=sea\nAnnualCrop=annual crop land",
        "MODEL": "farslip1-b16",
        "ALPHA": 0,
        "KEEP": 0.9,
        "HELD": 0.1,
        "MEASURED": 30,
        "EPOCHS": 2,
        "STEPS": 11,
        "BATCH": 4,
        "RATE": 1e-5,
        "WEIGHT_DECAY": 0.1,
        "PIXELS": 96,
        "SIZE": 64,
        "BANDS": "3,2,1",
        "STRETCH": "none",
        "NODATA": 0,
        "SEED": 3,
        "THREADS": 1,
        "DEVICE": "cpu",
        "REPORT": report,
    }
    feedback = Feedback()
    results = run("finetuneclip", {**tuning, **values}, feedback)
    assert asked(FinetuneClipRequest) == FinetuneClipRequest(
        data=tuning["PICTURES"],
        output=tuning["OUTPUT"],
        control=values["CONTROL"],
        words="SeaLake=sea; AnnualCrop=annual crop land",
        model="farslip1-b16",
        alpha=0.0,
        keep=0.9,
        held=0.1,
        measured=30,
        epochs=2,
        steps=11,
        batch=4,
        rate=1e-5,
        weight_decay=0.1,
        pixels=96,
        size=64,
        bands=(3, 2, 1),
        stretch=Stretch.NONE,
        nodata=0.0,
        report=report,
        seed=3,
        threads=1,
        device=Device.CPU,
    )
    rows = [line.split() for line in feedback.lines]
    assert ["0.50", "65.0%", "67.5%", "←"] in rows
    assert ["sea", "9", "40.0%", "65.0%"] in rows
    assert ["old", "(control)", "0", "–", "–"] in rows
    assert "A hint." in feedback.lines
    figures = {"ALPHA_USED": 0.5, "TASK_BEFORE": 0.4, "TASK_AFTER": 0.65, "CONTROL_BEFORE": 0.8, "CONTROL_AFTER": 0.675}
    assert results == {
        "OUTPUT": tuning["OUTPUT"],
        "REPORT": report,
        **{name: pytest.approx(value) for name, value in figures.items()},
        "CHIPS": 12,
        "DEVICE_USED": "cpu",
    }


def test_a_fine_tuning_learns_from_a_raster_too(run, asked, rasters, samples, tuning, context):
    parameters = {"INPUT": rasters[0], "SAMPLES": samples, "FIELD": "kind", "OUTPUT": tuning["OUTPUT"]}
    results = run("finetuneclip", parameters, context=context)
    found = asked(FinetuneClipRequest)
    expected = FinetuneClipRequest(data=rasters[0], output=tuning["OUTPUT"], samples=found.samples, field="kind")
    assert found == expected
    assert QgsVectorLayer(found.samples, "places").featureCount() == 3
    assert "CONTROL_AFTER" not in results


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"PICTURES": None}, "on a folder of pictures or on a raster, not on both; choose one of the two"),
        ({"INPUT": "raster"}, "on a folder of pictures or on a raster, not on both; choose one of the two"),
        ({"PICTURES": None, "INPUT": "raster"}, "A raster needs labelled places"),
        ({"SAMPLES": "samples"}, "A raster needs labelled places"),
        ({"PICTURES": None, "INPUT": "raster", "SAMPLES": "samples", "FIELD": "x"}, "have no field x"),
        ({"PICTURES": "/nowhere"}, "The folder of pictures /nowhere does not exist"),
        ({"CONTROL": "/nowhere"}, "“Control set”, /nowhere, does not exist"),
    ],
)
def test_what_cannot_be_tuned_is_told_in_a_sentence(run, asked, tuning, rasters, samples, change, sentence):
    places = {"raster": rasters[0], "samples": samples}
    change = {name: places.get(value, value) for name, value in change.items()}
    with pytest.raises(QgsProcessingException, match=sentence) as caught:
        run("finetuneclip", {**tuning, **change})
    assert "\n" not in str(caught.value)


def test_all_that_an_alignment_can_be_asked(run, asked, pairs, rasters, tmp_path):
    report = str(tmp_path / "report.html")
    places = {"TEACHER": rasters, "SENSOR": rasters[::-1], "REPORT": report}
    values = {
        "MODEL": "farslip1-b16",
        "WORDS": "water\nforest",
        "SENSOR_BANDS": "1-2",
        "LOW": "-25, -30",
        "HIGH": "0; 5.5",
        "TEST": "2",
        "HELD": 0.3,
        "SIZE": 64,
        "OVERLAP": 0.5,
        "MSE": 0,
        "COSINE": 2,
        "CONTRAST": 0.3,
        "LABEL": 0.4,
        "EPOCHS": 2,
        "STEPS": 11,
        "BATCH": 4,
        "RATE": 1e-5,
        "WEIGHT_DECAY": 0.1,
        "BANDS": "3,2,1",
        "STRETCH": "none",
        "NODATA": 0,
        "SEED": 3,
        "THREADS": 1,
        "DEVICE": "cpu",
    }
    feedback = Feedback()
    results = run("alignsensor", {**pairs, **places, **values}, feedback)
    assert asked(AlignSensorRequest) == AlignSensorRequest(
        teacher_rasters=tuple(rasters),
        sensor_rasters=tuple(rasters[::-1]),
        output=pairs["OUTPUT"],
        model="farslip1-b16",
        sensor_bands=(1, 2),
        low=(-25.0, -30.0),
        high=(0.0, 5.5),
        test=(2,),
        held=0.3,
        size=64,
        overlap=0.5,
        mse=0.0,
        cosine=2.0,
        contrast=0.3,
        label=0.4,
        words="water; forest",
        epochs=2,
        steps=11,
        batch=4,
        rate=1e-5,
        weight_decay=0.1,
        bands=(3, 2, 1),
        stretch=Stretch.NONE,
        nodata=0.0,
        report=report,
        seed=3,
        threads=1,
        device=Device.CPU,
    )
    rows = [line.split()[-3:] for line in feedback.lines]
    assert (
        rows.index(["R@1", "R@5", "R@10"])
        < rows.index(["1.0%", "5.0%", "10.0%"])
        < rows.index(["2.0%", "10.0%", "20.0%"])
    )
    assert ["8.0%", "40.0%", "80.0%"] in rows
    assert "A hint." in feedback.lines
    assert (results["RECALL_1"], results["RECALL_10_BEFORE"]) == (pytest.approx(0.08), pytest.approx(0.2))
    assert (results["RECALL_5_CHANCE"], results["COSINE_MEAN"]) == (pytest.approx(0.05), 0.75)
    assert (results["AGREEMENT"], results["CHIPS"], results["CHIPS_HELD"]) == (0.6, 12, 4)
    assert (results["OUTPUT"], results["REPORT"], results["DEVICE_USED"]) == (pairs["OUTPUT"], report, "cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"TEACHER": "both"}, r"The numbers of rasters differ \(teacher: 2, sensor: 1\)"),
        ({"LOW": "dark"}, "dark, is not understood; write numbers"),
        ({"LOW": "0"}, "The lowest and the highest values go together"),
        ({"TEST": "7"}, "The pairs to measure with are some of 1 to 1"),
        ({"MSE": 0, "COSINE": 0, "CONTRAST": 0}, "Nothing ties the student to the teacher"),
    ],
)
def test_what_cannot_be_aligned_is_told_in_a_sentence(run, asked, pairs, rasters, change, sentence):
    change = {name: rasters if value == "both" else value for name, value in change.items()}
    with pytest.raises(QgsProcessingException, match=sentence) as caught:
        run("alignsensor", {**pairs, **change})
    assert "\n" not in str(caught.value)


@pytest.fixture
def opened(plugin, qgis_iface, qgis_new_project, monkeypatch):
    """Opens the dialog of an algorithm."""
    import processing
    from qgis.gui import QgsBrowserGuiModel

    browser = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: browser)
    dialogs = []

    def open_dialog(name):
        dialogs.append(processing.createAlgorithmDialog(f"clippan:{name}"))
        return dialogs[-1]

    yield open_dialog
    for dialog in dialogs:
        dialog.close()
        dialog.deleteLater()


@pytest.mark.parametrize(
    ("name", "kind", "given"),
    [
        ("pretrainscene", PretrainSceneRequest, "scene"),
        ("finetuneclip", FinetuneClipRequest, "tuning"),
        ("alignsensor", AlignSensorRequest, "pairs"),
    ],
)
def test_the_dialog_makes_the_same_request(opened, run, asked, request, name, kind, given):
    parameters = request.getfixturevalue(given)
    dialog = opened(name)
    dialog.setParameters({**parameters, "REPORT": None})
    run(name, dialog.createProcessingParameters())
    from_dialog = asked(kind)
    run(name, parameters)
    assert asked(kind) == from_dialog


def test_the_dialog_of_a_classification_makes_the_same_request(opened, run, asked, inputs, context):
    dialog = opened("classifyfewsamples")
    words = {"DESCRIPTIONS": "water: blue\nforest: green", "METHOD": "tip-f", "REPORT": None}
    dialog.setParameters({**inputs, **words, "SAMPLES": inputs["SAMPLES"].id()})
    run("classifyfewsamples", dialog.createProcessingParameters(), context=context)
    found = asked(ClassifyRequest)
    assert found == ClassifyRequest(
        rasters=tuple(inputs["RASTERS"]),
        samples=found.samples,
        field="kind",
        output=inputs["OUTPUT"],
        method=Classifier.TIP_F,
        descriptions="water: blue; forest: green",
    )


@pytest.mark.parametrize("name", NAMES)
def test_they_open_in_the_model_designer_and_in_a_batch(plugin, qgis_app, fake, name):
    from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog
    from processing.modeler.ModelerParametersDialog import ModelerParametersDialog

    fake("good")
    algorithm = qgis_app.processingRegistry().algorithmById(f"clippan:{name}").create({})
    for dialog in (
        ModelerParametersDialog(algorithm, QgsProcessingModelAlgorithm("m", "g")),
        BatchAlgorithmDialog(algorithm, None),
    ):
        dialog.close()


def test_what_few_need_is_advanced(plugin, qgis_app):
    provider = qgis_app.processingRegistry().providerById("clippan")
    advanced = Qgis.ProcessingParameterFlag.Advanced
    shown = {
        name: [item.name() for item in provider.algorithm(name).parameterDefinitions() if not item.flags() & advanced]
        for name in NAMES
    }
    assert shown == {
        "classifyfewsamples": [
            *("RASTERS", "SAMPLES", "FIELD", "METHOD", "PRETRAINED", "DESCRIPTIONS", "MODEL"),
            *("OUTPUT", "CONFIDENCE", "REPORT", "AREAS"),
        ],
        "pretrainscene": ["RASTERS", "OUTPUT"],
        "finetuneclip": [
            *("PICTURES", "INPUT", "SAMPLES", "FIELD", "CONTROL", "WORDS", "ALPHA", "MODEL", "EPOCHS"),
            *("OUTPUT", "REPORT"),
        ],
        "alignsensor": ["TEACHER", "SENSOR", "WORDS", "EPOCHS", "MODEL", "OUTPUT", "REPORT"],
    }


def test_outputs_are_of_the_types_that_models_join(plugin, qgis_app):
    provider = qgis_app.processingRegistry().providerById("clippan")
    kinds = {
        name: {item.name(): item.type() for item in provider.algorithm(name).outputDefinitions()} for name in NAMES
    }
    found = kinds["classifyfewsamples"]
    assert (found["OUTPUT"], found["REPORT"], found["AREAS"]) == ("outputRaster", "outputHtml", "outputFile")
    assert (found["OUTPUT_PRETRAINED"], found["OA"]) == ("outputFile", "outputNumber")
    assert kinds["pretrainscene"]["OUTPUT"] == "outputFile"
    assert kinds["finetuneclip"]["OUTPUT"] == kinds["alignsensor"]["OUTPUT"] == "outputFolder"

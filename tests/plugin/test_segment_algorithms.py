"""Segment by text and Calibrate prompts: what they ask the engine for, and what they make of it."""

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
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterString,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
    QgsWkbTypes,
)

from clippan.jobs import (
    CalibrateRequest,
    Device,
    Refinement,
    RegionsRequest,
    SegmentRequest,
    Stretch,
    TrainClipRequest,
    from_json,
)

CLASSES = "water; forest, trees"


@pytest.fixture
def raster(tmp_path):
    folder = tmp_path / "scène 1"
    folder.mkdir()
    return write(folder / "town.tif", np.ones((3, 64, 64)), 10.0)


@pytest.fixture
def asked(fake, tmp_path):
    """The engine, and what it was asked."""
    log = tmp_path / "jobs.jsonl"
    fake("fine", JOBS=log)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def inputs(raster, tmp_path):
    return {"INPUT": raster, "CLASSES": CLASSES, "OUTPUT": str(tmp_path / "map.tif")}


def request(asked, kind):
    values = asked()[-1]
    assert values.pop("job") == kind.name
    return from_json(kind, values)


def test_the_defaults_are_the_engines(run, asked, inputs):
    run("segmentbytext", inputs)
    assert request(asked, SegmentRequest) == SegmentRequest(
        raster=inputs["INPUT"], classes=CLASSES, output=inputs["OUTPUT"]
    )


def test_all_that_a_map_can_be_asked(run, asked, inputs, raster, tmp_path):
    names = {"CONFIDENCE": "c.tif", "PROBABILITIES": "p.tif", "AREAS": "a.csv"}
    places = {name: str(tmp_path / file) for name, file in names.items()}
    results = run(
        "segmentbytext",
        {
            **inputs,
            **places,
            "MODEL": "farslip1-b16",
            "POLYGONS": str(tmp_path / "polygons.gpkg"),
            "WINDOW": "128, 256",
            "FLIPS": True,
            "BIAS": -0.1,
            "LOGIT_SCALE": 40,
            "BACKGROUND": True,
            "REFINEMENT": "none",
            "STRETCH": "percentile",
            "BANDS": "3,2,1",
            "NODATA": 0,
            "EXTENT": "500000,500100,4999900,5000000 [EPSG:32631]",
            "MIN_AREA": 20,
            "SIMPLIFY": 0,
            "THREADS": 2,
            "DEVICE": "cpu",
        },
    )
    found = request(asked, SegmentRequest)
    assert found == SegmentRequest(
        raster=raster,
        classes=CLASSES,
        output=inputs["OUTPUT"],
        model="farslip1-b16",
        confidence=places["CONFIDENCE"],
        probabilities=places["PROBABILITIES"],
        polygons=found.polygons,
        areas=places["AREAS"],
        min_area=20,
        simplify=0.0,
        window=(128, 256),
        flips=True,
        bias=-0.1,
        logit_scale=40.0,
        background=True,
        refinement=Refinement.NONE,
        bands=(3, 2, 1),
        stretch=Stretch.PERCENTILE,
        nodata=0.0,
        extent=(500000.0, 4999900.0, 500100.0, 5000000.0),
        crs="EPSG:32631",
        threads=2,
        device=Device.CPU,
    )
    assert {name: results[name] for name in places} == places
    assert (results["OUTPUT"], results["MODEL_USED"]) == (inputs["OUTPUT"], "farslip1-b16")
    assert (results["CLASS_COUNT"], results["POLYGON_COUNT"], results["UNCLASSIFIED"]) == (1, 2, 0.25)
    assert all(Path(path).exists() for path in places.values())


def test_the_log_has_a_table(run, asked, inputs):
    feedback = Feedback()
    run("segmentbytext", inputs, feedback)
    start = next(number for number, line in enumerate(feedback.lines) if line.startswith("Value"))
    rows = feedback.lines[start : start + 4]
    assert [row.split()[1] for row in rows] == ["Class", "water", "forest", "unclassified"]
    assert [row.index(word) + len(word) for row, word in zip(rows, ("Share", "25.0%"))] == [26, 26]
    assert rows[1].split() == ["1", "water", "25.0%", "1.50", "0.70"]
    assert rows[2].split() == ["2", "forest", "25.0%", "–", "–"]
    assert feedback.lines.count("A hint.") == 1


@pytest.mark.parametrize("place", ["memory:", "TEMPORARY_OUTPUT", "{0}/polygons.gpkg", "{0}/polygons.shp"])
def test_polygons_go_into_any_kind_of_layer(run, asked, inputs, context, tmp_path, place):
    results = run("segmentbytext", {**inputs, "POLYGONS": place.format(tmp_path)}, context=context)
    layer = results["POLYGONS"]
    layer = layer if isinstance(layer, QgsVectorLayer) else QgsVectorLayer(layer, "polygons", "ogr")
    assert layer.isValid()
    assert layer.crs().authid() == "EPSG:32631"
    assert QgsWkbTypes.flatType(layer.wkbType()) in (Qgis.WkbType.MultiPolygon, Qgis.WkbType.Polygon)
    names = [field.name() for field in layer.fields() if field.name() != "fid"]
    assert names == ["value", "class", "confidence", "prompt", "model", "area_px", "hectares"]
    first, second = layer.getFeatures()
    assert (first["value"], first["class"], second["class"]) == (1, "water", "forest")
    assert (first["area_px"], first["confidence"]) == (288, 0.7)
    assert first.geometry().boundingBox().toString(0) == "500000,4999910 : 500320,5000000"


def test_a_postgis_or_other_place_that_fails_is_told_in_a_sentence(run, asked, inputs):
    with pytest.raises(QgsProcessingException, match=r"^[^\n]+$"):
        run("segmentbytext", {**inputs, "POLYGONS": "/nowhere/polygons.gpkg"})
    assert Path(inputs["OUTPUT"]).exists()  # the map is there all the same


def test_without_polygons_none_are_made(run, asked, inputs):
    for nothing in ({}, {"POLYGONS": None}, {"POLYGONS": ""}, {"POLYGONS": QgsProcessingOutputLayerDefinition("")}):
        assert "POLYGONS" not in run("segmentbytext", {**inputs, **nothing})
        assert asked()[-1]["polygons"] == ""


def test_layers_are_loaded_styled(run, asked, inputs, context, tmp_path):
    kinds = {"OUTPUT": QgsRasterLayer, "CONFIDENCE": QgsRasterLayer, "PROBABILITIES": QgsRasterLayer}
    kinds["POLYGONS"] = QgsVectorLayer
    places = {name: f"{tmp_path}/{name}.{'gpkg' if name == 'POLYGONS' else 'tif'}" for name in kinds}
    outputs = {name: QgsProcessingOutputLayerDefinition(place, context.project()) for name, place in places.items()}
    results = run("segmentbytext", {**inputs, **outputs}, context=context)
    types = {}
    for name, kind in kinds.items():
        details = context.layerToLoadOnCompletionDetails(results[name])
        layer = kind(results[name], "x")
        details.postProcessor().postProcessLayer(layer, context, Feedback())
        types[name] = (details.name, layer.renderer().type())
    assert types == {
        "OUTPUT": ("Class map (starter)", "paletted"),
        "CONFIDENCE": ("Confidence (starter)", "singlebandpseudocolor"),
        "PROBABILITIES": ("Probabilities (starter)", "singlebandpseudocolor"),
        "POLYGONS": ("Polygons (starter)", "categorizedSymbol"),
    }


def test_a_table_in_a_file_and_a_relative_path(run, asked, inputs, tmp_path, monkeypatch):
    table = {"classes": [{"name": "water", "threshold": 0.5}, {"name": "forest"}]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    monkeypatch.chdir(tmp_path)
    run("segmentbytext", {**inputs, "CLASSES": json.dumps(table)})
    assert asked()[-1]["classes"] == json.dumps(table)
    run("segmentbytext", {**inputs, "CLASSES": "classes.json"})
    assert asked()[-1]["classes"] == str(tmp_path / "classes.json")


def test_values_as_qgis_process_gives_them(run, asked, inputs):
    run("segmentbytext", {**inputs, "FLIPS": "true", "BIAS": "-0.2", "MIN_AREA": "9", "LOGIT_SCALE": "", "NODATA": ""})
    found = request(asked, SegmentRequest)
    assert (found.flips, found.bias, found.min_area) == (True, -0.2, 9)
    assert (found.logit_scale, found.nodata) == (None, None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"CLASSES": "water; water"}, "are both named water"),
        ({"CLASSES": '{"classes": []}'}, "No classes were given"),
        ({"CLASSES": "/nowhere/classes.json"}, "cannot be read"),
        ({"WINDOW": "wide"}, "wide, is not understood"),
        ({"BANDS": "1,2"}, "choose three for red, green and blue"),
        ({"OUTPUT": "/nowhere/map.tif"}, "The output folder /nowhere does not exist"),
        ({"INPUT": "/nowhere/a.tif"}, "“Raster”, /nowhere/a.tif, does not exist; check the path"),
    ],
)
def test_bad_values_are_told_in_a_sentence(run, asked, inputs, change, sentence):
    with pytest.raises(QgsProcessingException, match=sentence) as caught:
        run("segmentbytext", {**inputs, **change})
    assert "\n" not in str(caught.value).replace("Unable to execute algorithm\n", "")


@pytest.mark.parametrize(
    ("written", "extent"),
    [
        ("170,-170,-20,-10 [EPSG:4326]", (170.0, -20.0, -170.0, -10.0)),
        (" 170 , -170 , -20.5 , -1e1[EPSG:4326]", (170.0, -20.5, -170.0, -10.0)),
        ("-170,170,-20,-10 [EPSG:4326]", (-170.0, -20.0, 170.0, -10.0)),
        ("500100,500000,4999900,5000000 [EPSG:32631]", (500000.0, 4999900.0, 500100.0, 5000000.0)),
    ],
)
def test_an_extent_may_lie_across_the_date_line(written, extent, run, asked, inputs):
    run("segmentbytext", {**inputs, "EXTENT": written})
    assert request(asked, SegmentRequest).extent == extent


def test_classes_may_be_in_a_text_file(run, asked, inputs, tmp_path, monkeypatch):
    (tmp_path / "classes.txt").write_text("water\nforest, trees\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for written in ("classes.txt", "@classes.txt", str(tmp_path / "classes.txt")):
        run("segmentbytext", {**inputs, "CLASSES": written})
        assert request(asked, SegmentRequest).classes == str(tmp_path / "classes.txt")


def test_a_map_service_needs_an_extent(run, asked, inputs, qgis_new_project):
    layer = QgsRasterLayer("type=xyz&url=https://x.org/{z}/{x}/{y}.png&zmax=17", "map", "wms")
    QgsProject.instance().addMapLayer(layer)
    with pytest.raises(QgsProcessingException, match="A map service is not limited in extent; choose an extent"):
        run("segmentbytext", {**inputs, "INPUT": layer})


def test_cancelling_leaves_nothing(run, fake, inputs, tmp_path):
    fake("polite")
    with pytest.raises(QgsProcessingException, match=r"^Cancelled; nothing was written\.$"):
        run("segmentbytext", {**inputs, "POLYGONS": str(tmp_path / "p.gpkg")}, Feedback(cancel_at_progress=True))
    assert not list(tmp_path.glob("p.gpkg*"))
    assert not list(tmp_path.glob("map.tif*"))


def child(model, name, identifier, values):
    """Adds an algorithm to a model; values are static, or sources."""
    step = QgsProcessingModelChildAlgorithm(identifier)
    step.setChildId(name)
    for parameter, value in values.items():
        source = value
        if not isinstance(value, QgsProcessingModelChildParameterSource):
            source = QgsProcessingModelChildParameterSource.fromStaticValue(value)
        step.addParameterSources(parameter, [source])
    model.addChildAlgorithm(step)
    return step


def test_a_model_takes_the_classes_as_an_input_and_hands_polygons_on(run, asked, inputs, context, tmp_path):
    model = QgsProcessingModelAlgorithm("m", "g")
    text = QgsProcessingParameterString("words", "Classes")
    model.addModelParameter(text, QgsProcessingModelParameter("words"))
    source = QgsProcessingModelChildParameterSource
    child(
        model,
        "map",
        "clippan:segmentbytext",
        {"INPUT": inputs["INPUT"], "CLASSES": source.fromModelParameter("words")},
    )
    step = child(model, "centres", "native:centroids", {"INPUT": source.fromChildOutput("map", "POLYGONS")})
    output = QgsProcessingModelOutput("Centres", "Centres")
    output.setChildId("centres")
    output.setChildOutputName("OUTPUT")
    model.childAlgorithm("centres").setModelOutputs({"Centres": output})
    assert step.childId() == "centres"
    model.updateDestinationParameters()
    destination = next(item.name() for item in model.parameterDefinitions() if item.isDestination())
    place = str(tmp_path / "centres.gpkg")
    _, ok = model.run({"words": CLASSES, destination: place}, context, Feedback())
    assert ok
    assert asked()[-1]["classes"] == CLASSES
    assert QgsVectorLayer(place, "centres").featureCount() == 2


@pytest.fixture
def samples(qgis_new_project):
    layer = QgsVectorLayer(
        "Polygon?crs=EPSG:4326&field=fid:int&field=kind:string&field=note:string", "places", "memory"
    )
    for number, kind in enumerate(("water", "water", "forest")):
        feature = QgsFeature(layer.fields())
        feature.setAttributes([number + 7, kind, "x"])
        feature.setGeometry(QgsGeometry.fromWkt(f"POLYGON(({number} 0, {number} 1, {number}.5 1, {number} 0))"))
        layer.dataProvider().addFeatures([feature])
    QgsProject.instance().addMapLayer(layer)
    return layer


@pytest.fixture
def fitting(raster, samples, tmp_path):
    output = str(tmp_path / "fitted.json")
    return {"INPUT": raster, "SAMPLES": samples, "FIELD": "kind", "CLASSES": CLASSES, "OUTPUT": output}


def test_a_calibration_gets_the_places_of_any_layer(run, asked, fitting, raster, context):
    feedback = Feedback()
    results = run("calibrateprompts", fitting, feedback, context)
    found = request(asked, CalibrateRequest)
    assert found == CalibrateRequest(
        rasters=(raster,), samples=found.samples, classes=CLASSES, output=fitting["OUTPUT"], field="kind"
    )
    file = ogr.Open(found.samples[0])
    layer = file.GetLayer()
    assert layer.GetSpatialRef().GetAuthorityCode(None) == "4326"
    assert [field.name for field in layer.schema] == ["kind"]
    assert layer.GetFeatureCount() == 3
    assert (results["ACCURACY_BEFORE"], results["ACCURACY_AFTER"]) == (0.6, 0.8)
    assert (results["MEAN_IOU_BEFORE"], results["MEAN_IOU_AFTER"]) == (0.4, 0.65)
    rows = [line.split() for line in feedback.lines if line.startswith(("water", "forest", "mean"))]
    assert [row[:4] for row in rows] == [
        ["water", "2", "0.400", "0.650"],
        ["forest", "1", "0.400", "–"],
        ["mean", "3", "0.400", "0.650"],
    ]
    assert "Accuracy: 60.0% before, 80.0% after" in feedback.lines


def test_only_selected_places_are_taken_if_that_is_chosen(run, asked, fitting, samples, context):
    samples.selectByExpression("\"kind\" = 'forest'")
    chosen = QgsProcessingFeatureSourceDefinition(samples.id(), selectedFeaturesOnly=True)
    feedback = Feedback()
    run("calibrateprompts", {**fitting, "SAMPLES": chosen}, feedback, context)
    assert [line.split()[1] for line in feedback.lines if line.startswith(("water", "forest"))] == ["1"]


@pytest.mark.parametrize("field", ["fid", "kind"])
def test_any_field_may_hold_the_class(run, asked, fitting, field, context):
    feedback = Feedback()
    run("calibrateprompts", {**fitting, "FIELD": field}, feedback, context)
    labels = {"fid": ("7", "8", "9"), "kind": ("water", "forest")}[field]
    assert [line.split()[0] for line in feedback.lines if line.startswith(labels)] == list(labels)


def test_all_that_a_calibration_can_be_asked(run, asked, fitting, tmp_path):
    values = {"MODEL": "farslip1-b16", "WINDOW": "64", "FLIPS": True, "BIAS": 0, "BANDS": "1", "STRETCH": "none"}
    report = str(tmp_path / "report.html")
    results = run("calibrateprompts", {**fitting, **values, "NODATA": 3, "THREADS": 1, "REPORT": report})
    found = request(asked, CalibrateRequest)
    assert (found.model, found.window, found.flips, found.bias) == ("farslip1-b16", (64,), True, 0.0)
    assert (found.bands, found.stretch, found.nodata, found.threads) == ((1,), Stretch.NONE, 3.0, 1)
    assert results["REPORT"] == found.report == report


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"FIELD": "colour"}, "The labelled places have no field colour; choose the one that holds the class"),
        ({"CLASSES": "water"}, "give two or more"),
        ({"OUTPUT": "{}/x.txt"}, " end in .json"),
    ],
)
def test_what_cannot_be_calibrated_is_told_in_a_sentence(run, asked, fitting, tmp_path, change, sentence):
    change = {name: value.format(tmp_path) for name, value in change.items()}
    with pytest.raises(QgsProcessingException, match=sentence):
        run("calibrateprompts", {**fitting, **change})


def test_a_training_makes_pictures_first(run, asked, raster, samples, tmp_path, context):
    feedback = Feedback()
    parameters = {"INPUT": raster, "SAMPLES": samples, "FIELD": "kind", "OUTPUT": str(tmp_path / "model")}
    results = run("trainregionalignedclip", parameters, feedback, context)
    first, second = asked()
    assert (first.pop("job"), second.pop("job")) == ("regions", "train clip")
    first, second = from_json(RegionsRequest, first), from_json(TrainClipRequest, second)
    assert first == RegionsRequest(rasters=(raster,), labels=first.labels, output=first.output, field="kind")
    assert second == TrainClipRequest(
        data=(first.output,), output=str(tmp_path / "model"), steps=100, batch=8, least=first.least
    )
    assert Path(first.output) == tmp_path / "model" / "pictures"  # where a run that is gone on with finds them
    assert QgsVectorLayer(first.labels[0], "places").featureCount() == 3
    assert (results["OUTPUT"], results["PICTURES"], results["OBJECTS"]) == (str(tmp_path / "model"), 4, 3)
    assert [line.split() for line in feedback.lines if line.startswith("water")] == [["water", "2"]]
    assert feedback.percents == sorted(feedback.percents)
    assert "A hint." in feedback.lines


def test_all_that_a_training_can_be_asked(run, asked, raster, samples, tmp_path):
    values = {
        "MODEL": "farslip1-b16",
        "STAGE": "second",
        "STEPS": 7,
        "BATCH": 4,
        "RATE": 1e-4,
        "SIZE": 128,
        "LEAST": 20,
    }
    more = {"LEAST": 20, "SEED": 3, "BANDS": "3,2,1", "STRETCH": "none", "NODATA": 0, "THREADS": 1, "DEVICE": "cpu"}
    places = {"INPUT": raster, "SAMPLES": samples, "FIELD": "kind", "OUTPUT": str(tmp_path / "model")}
    run("trainregionalignedclip", {**places, **values, **more})
    first, second = asked()
    assert (first["size"], first["least"], first["bands"], first["stretch"]) == (128, 20, [3, 2, 1], "none")
    assert (second["model"], second["stages"], second["steps"], second["batch"]) == ("farslip1-b16", [2], 7, 4)
    assert (second["rate"], second["least"], second["seed"], second["device"]) == (1e-4, 20, 3, "cpu")


def test_what_few_need_is_advanced(plugin, qgis_app):
    provider = qgis_app.processingRegistry().providerById("clippan")
    advanced = Qgis.ProcessingParameterFlag.Advanced
    shown = {
        name: [item.name() for item in provider.algorithm(name).parameterDefinitions() if not item.flags() & advanced]
        for name in ("segmentbytext", "calibrateprompts", "trainregionalignedclip")
    }
    assert shown == {
        "segmentbytext": [
            *("INPUT", "CLASSES", "MODEL", "EXTENT"),
            *("OUTPUT", "CONFIDENCE", "PROBABILITIES", "POLYGONS", "AREAS"),
        ],
        "calibrateprompts": ["INPUT", "SAMPLES", "CLASSES", "FIELD", "MODEL", "OUTPUT", "REPORT"],
        "trainregionalignedclip": ["INPUT", "SAMPLES", "FIELD", "STEPS", "MODEL", "OUTPUT"],
    }


def test_outputs_are_of_the_types_that_models_join(plugin, qgis_app):
    algorithm = qgis_app.processingRegistry().providerById("clippan").algorithm("segmentbytext")
    assert algorithm.parameterDefinition("POLYGONS").dataType() == Qgis.ProcessingSourceType.VectorPolygon
    kinds = {item.name(): item.type() for item in algorithm.outputDefinitions()}
    assert (kinds["OUTPUT"], kinds["POLYGONS"], kinds["AREAS"]) == ("outputRaster", "outputVector", "outputFile")
    algorithm = qgis_app.processingRegistry().providerById("clippan").algorithm("calibrateprompts")
    assert algorithm.outputDefinition("REPORT").type() == "outputHtml"


def test_the_map_opens_styled_everywhere(run, asked, inputs):
    run("segmentbytext", inputs)
    layer = QgsRasterLayer(inputs["OUTPUT"], "again")
    classes = layer.renderer().classes()
    assert [(item.value, item.label, item.color.name()) for item in classes] == [
        (1, "water", "#2f7d32"),
        (2, "forest", "#d1495b"),
    ]
    assert Path(inputs["OUTPUT"]).with_suffix(".qml").exists()
    assert gdal.Open(inputs["OUTPUT"]).ReadAsArray().max() == 2

"""A model that version 0.1 saved in the modeler still loads, knows all its parameters, and asks for the same jobs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from conftest import Feedback, write
from qgis.core import Qgis, QgsProcessingContext, QgsProcessingModelAlgorithm, QgsProject, QgsVectorLayer

from clippan.core.json import from_json
from clippan.jobs import ClassifyRequest, PansharpenRequest, SegmentRequest

MODEL = Path(__file__).resolve().parents[1] / "data" / "v0_1" / "sharpen_segment_classify.model3"


def loaded(plugin):
    model = QgsProcessingModelAlgorithm()
    assert model.fromFile(str(MODEL))
    return model


def test_every_parameter_of_its_algorithms_is_known(plugin):
    model = loaded(plugin)
    children = model.childAlgorithms()
    assert sorted(children) == ["classify", "segment", "sharpen"]
    for name, child in children.items():
        algorithm = child.algorithm()
        assert algorithm is not None, name
        known = {item.name() for item in algorithm.parameterDefinitions()}
        assert len(child.parameterSources()) >= 10
        assert set(child.parameterSources()) <= known
        for parameter, sources in child.parameterSources().items():
            definition = algorithm.parameterDefinition(parameter)
            for source in sources:
                if source.source() == Qgis.ProcessingModelChildParameterSource.StaticValue:
                    value = source.staticValue()
                    assert definition.checkValueIsAcceptable(value), (name, parameter, value)
        outputs = {item.name() for item in algorithm.outputDefinitions()}
        assert {output.childOutputName() for output in child.modelOutputs().values()} <= outputs
    ok, messages = model.validate()
    assert ok, messages


def test_it_asks_the_engine_for_the_same(plugin, fake, tmp_path):
    log = tmp_path / "jobs.jsonl"
    fake("fine", JOBS=log)
    samples = tmp_path / "samples.geojson"
    rings = [[[500000 + 20 * n, 4999990], [500010 + 20 * n, 4999990], [500010 + 20 * n, 4999980]] for n in range(2)]
    features = [
        {
            "type": "Feature",
            "properties": {"kind": name},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        }
        for name, ring in zip(("water", "roofs"), rings)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    samples.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    layer = QgsVectorLayer(str(samples), "samples", "ogr")
    assert layer.isValid()
    inputs = {
        "pan": write(tmp_path / "pan.tif", np.ones((1, 64, 64)), 1.0),
        "ms": [write(tmp_path / "ms.tif", np.ones((4, 16, 16)), 4.0)],
        "samples": layer,
    }
    model = loaded(plugin)
    places = {
        item.name(): str(tmp_path / f"{n}.tif")
        for n, item in enumerate(model.parameterDefinitions())
        if item.isDestination()
    }
    assert len(places) == 3
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    feedback = Feedback()
    _, ok = model.run({**inputs, **places}, context, feedback)
    assert ok, feedback.failures
    asked = {}
    for line in log.read_text().splitlines():
        values = json.loads(line)
        asked[values.pop("job")] = values
    sharpen = from_json(PansharpenRequest, asked["pansharpen"])
    assert (sharpen.method.value, sharpen.sensor, sharpen.bands) == ("mtf-glp-hpm-r", "ikonos", (3, 2, 1))
    assert (sharpen.registration.value, sharpen.tile_size, sharpen.threads) == ("global", 512, 2)
    assert (sharpen.format.value, sharpen.compression.value, sharpen.overviews) == ("cog", "zstd", False)
    assert (sharpen.device.value, sharpen.nodata) == ("cpu", 0.0)
    segment = from_json(SegmentRequest, asked["segment"])
    assert segment.raster == sharpen.output
    assert segment.classes == "water, lake; roofs; trees"
    assert (segment.window, segment.flips, segment.bias, segment.logit_scale) == ((128, 256), True, -0.2, 40.0)
    assert (segment.background, segment.refinement.value, segment.stretch.value) == (True, "none", "percentile")
    assert (segment.bands, segment.device.value, segment.threads) == ((3, 2, 1), "cpu", 2)
    classify = from_json(ClassifyRequest, asked["classify"])
    assert set(classify.rasters) == {sharpen.output, segment.output}
    assert (classify.field, classify.method.value, classify.repeats) == ("kind", "svm-mean", 2)
    assert (classify.seed, classify.steps, classify.device.value, classify.threads) == (7, 30, "cpu", 2)
    assert classify.descriptions == "water: a lake; roofs: red roofs"

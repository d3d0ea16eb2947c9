"""Adapt fusion model as the toolbox, scripts and the log show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Feedback
from qgis.core import Qgis, QgsProcessingException

from clippan.jobs import ADAPTATION_FIGURES, AdaptFusionRequest, Device, Registration, from_json


@pytest.fixture
def recorded(fake, tmp_path):
    path = tmp_path / "record.json"
    fake("record", RECORD=path)
    return lambda: json.loads(path.read_text())["request"]


@pytest.fixture
def inputs(scene, tmp_path):
    return {"SPECTRAL": [scene[0]], "PANCHROMATIC": scene[1], "OUTPUT": str(tmp_path / "own.safetensors")}


def test_defaults_are_those_of_the_job(run, recorded, inputs, scene):
    run("adaptfusionmodel", inputs)
    assert from_json(AdaptFusionRequest, recorded()) == AdaptFusionRequest(
        pan=scene[1], ms=(scene[0],), output=inputs["OUTPUT"]
    )


def test_every_parameter_reaches_the_engine(run, recorded, inputs, scene, tmp_path):
    model = tmp_path / "start.safetensors"
    model.write_text("")
    values = {
        **{"MODEL": str(model), "SENSOR": "ikonos", "BANDS": "3,1", "NODATA": 0, "REGISTRATION": "off"},
        **{"CLIP": "starter", "SECONDS": 30, "STEPS": 50, "SEED": 7, "THREADS": 1, "DEVICE": "cpu"},
    }
    run("adaptfusionmodel", {**inputs, **values})
    assert from_json(AdaptFusionRequest, recorded()) == AdaptFusionRequest(
        pan=scene[1],
        ms=(scene[0],),
        output=inputs["OUTPUT"],
        model=str(model),
        sensor="ikonos",
        bands=(3, 1),
        nodata=0.0,
        registration=Registration.OFF,
        clip="starter",
        seconds=30.0,
        steps=50,
        seed=7,
        threads=1,
        device=Device.CPU,
    )


def test_the_log_has_a_table_and_the_results_are_numbers(run, fake, inputs):
    fake("good")
    feedback = Feedback()
    results = run("adaptfusionmodel", inputs, feedback)
    assert results["OUTPUT"] == inputs["OUTPUT"]
    assert Path(inputs["OUTPUT"]).exists()
    assert (results["HQNR_BEFORE"], results["HQNR_AFTER"]) == (0.9, 0.95)
    assert {f"{name}_{when}".upper() for name in ADAPTATION_FIGURES for when in ("before", "after")} <= set(results)
    assert results["IMPROVED"] == 1
    assert (results["STEPS_DONE"], results["SENSOR_USED"], results["DEVICE_USED"]) == (60, "generic", "cpu")
    rows = [line for line in feedback.lines if line.startswith(("Figure", *ADAPTATION_FIGURES))]
    assert len(rows) == 1 + len(ADAPTATION_FIGURES)
    assert len({row.index(word) + len(word) for row, word in zip(rows, ("After", "0.9500"))}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"OUTPUT": "/nowhere/x.safetensors"},
            "The output folder /nowhere does not exist; create it or choose another.",
        ),
        ({"BANDS": "1,1"}, "A band is listed twice; list each band once."),
        ({"WEIGHTS": "/nowhere"}, "or a folder with open_clip_config.json and weights."),
    ],
)
def test_bad_input_is_one_sentence(run, fake, inputs, change, words):
    fake("good")
    with pytest.raises(QgsProcessingException) as caught:
        run("adaptfusionmodel", {**inputs, **change})
    text = str(caught.value).replace("Unable to execute algorithm\n", "")
    assert text.endswith(words)
    assert "\n" not in text


def test_what_few_need_is_advanced(plugin, qgis_app):
    algorithm = qgis_app.processingRegistry().providerById("clippan").algorithm("adaptfusionmodel").create({})
    advanced = Qgis.ProcessingParameterFlag.Advanced
    assert {item.name() for item in algorithm.parameterDefinitions() if not item.flags() & advanced} == {
        *("SPECTRAL", "PANCHROMATIC", "SENSOR", "BANDS", "NODATA", "REGISTRATION", "MODEL", "SECONDS", "OUTPUT"),
    }
    assert algorithm.displayName() == "Adapt fusion model"
    assert algorithm.group() == "Pansharpening"

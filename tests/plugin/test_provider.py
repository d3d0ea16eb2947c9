"""What the toolbox, scripts, models and qgis_process see."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Feedback, write
from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingParameterEnum,
    QgsProject,
    QgsRasterLayer,
)

from clippan.catalogue.sensors import SENSORS
from clippan.core.errors import ClippanError
from clippan.jobs import AssessRequest, Method, PansharpenRequest, from_json, parse_bands
from clippan_qgis import paths, sources

NAMES = {
    *("pansharpen", "sharpenbands", "assesspansharpening", "adaptfusionmodel"),
    *("buildtileindex", "searchbytext", "searchbyexample"),
    *("segmentbytext", "calibrateprompts", "trainregionalignedclip"),
    *("classifyfewsamples", "pretrainscene", "finetuneclip", "alignsensor"),
    *("listmodels", "downloadmodel", "checkengine", "setupengine"),
}


@pytest.fixture
def provider(plugin, qgis_app):
    return qgis_app.processingRegistry().providerById("clippan")


@pytest.fixture
def algorithm(provider):
    kept = []  # an algorithm takes its definitions with it

    def create(name):
        kept.append(provider.algorithm(name).create({}))
        return kept[-1]

    return create


@pytest.fixture
def recorded(fake, tmp_path):
    """Runs with an engine that records what it is asked, and returns the requests."""
    path = tmp_path / "record.json"
    fake("record", RECORD=path)
    return lambda: json.loads(path.read_text())["request"]


def test_init_processing_alone_registers_every_algorithm(provider):
    assert provider.name() == "CLIPPan"
    assert {item.name() for item in provider.algorithms()} == NAMES
    assert not provider.icon().isNull()
    assert provider.defaultRasterFileExtension() == "tif"


def test_plugin_goes_as_it_came(qgis_processing, qgis_app, plugin, qgis_iface, monkeypatch):
    pages = []
    monkeypatch.setattr(qgis_iface, "registerOptionsWidgetFactory", pages.append, raising=False)
    monkeypatch.setattr(qgis_iface, "unregisterOptionsWidgetFactory", pages.remove, raising=False)
    plugin.initGui()
    assert [page.title() for page in pages] == ["CLIPPan"]
    plugin.unload()
    assert pages == []
    assert qgis_app.processingRegistry().providerById("clippan") is None
    plugin.initProcessing()
    assert qgis_app.processingRegistry().providerById("clippan") is not None


def test_the_engine_is_our_own_and_leaves_no_trace_on_the_path():
    import clippan

    assert Path(clippan.__file__).is_relative_to(paths.BACKEND)
    before = list(sys.path)
    paths.import_jobs()
    assert sys.path == before
    assert (paths.RESOURCES / "icon.svg").is_file()
    assert "torch" not in sys.modules


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_parameter_has_help(algorithm, name):
    algorithm = algorithm(name)
    assert algorithm.displayName()
    assert algorithm.group()
    assert len(algorithm.shortHelpString()) > 100
    assert not algorithm.icon().isNull()
    for definition in algorithm.parameterDefinitions():
        assert len(definition.help()) > 30, definition.name()
        assert definition.name() == definition.name().upper()
        assert definition.description()


def test_pansharpen_has_the_parameters_that_users_know(algorithm):
    definitions = {item.name(): item for item in algorithm("pansharpen").parameterDefinitions()}
    advanced = {name for name, item in definitions.items() if item.flags() & Qgis.ProcessingParameterFlag.Advanced}
    assert set(definitions) - advanced == {
        *("SPECTRAL", "PANCHROMATIC", "METHOD", "MODEL", "SENSOR", "BANDS", "NODATA", "REGISTRATION", "OUTPUT"),
    }
    assert advanced == {"TILE_SIZE", "MTF", "DEVICE", "FORMAT", "COMPRESSION", "OVERVIEWS", "THREADS"}


def test_choices_are_words(algorithm):
    definitions = algorithm("pansharpen").parameterDefinitions()
    choices = {item.name(): item for item in definitions if isinstance(item, QgsProcessingParameterEnum)}
    assert all(item.usesStaticStrings() for item in choices.values())
    assert choices["METHOD"].options() == [item.value for item in Method]
    assert choices["SENSOR"].options() == ["auto", *SENSORS]


def test_defaults_are_those_of_the_job(run, recorded, parameters):
    results = run("pansharpen", parameters)
    assert (results["SHIFT_X"], results["SHIFT_Y"]) == (-1.2, 0.5)
    request = from_json(PansharpenRequest, recorded())
    assert request == PansharpenRequest(
        pan=parameters["PANCHROMATIC"], ms=tuple(parameters["SPECTRAL"]), output=parameters["OUTPUT"]
    )


def test_values_as_qgis_process_gives_them_and_as_python_gives_them_make_the_same_request(run, recorded, parameters):
    words = {
        "SPECTRAL": parameters["SPECTRAL"][0],
        "METHOD": "bt-h",
        "SENSOR": "ikonos",
        "BANDS": "1-2,4",
        "NODATA": "0",
        "TILE_SIZE": "512",
        "DEVICE": "cpu",
        "FORMAT": "cog",
        "COMPRESSION": "zstd",
        "OVERVIEWS": "false",
        "THREADS": "1",
        "REGISTRATION": "global",
    }
    run("pansharpen", {**parameters, **words})
    from_words = recorded()
    layer = QgsRasterLayer(parameters["SPECTRAL"][0], "ms")
    values = {
        "SPECTRAL": [layer],
        "PANCHROMATIC": QgsRasterLayer(parameters["PANCHROMATIC"], "pan"),
        "BANDS": [1, 2, 4],
        "NODATA": 0.0,
        "TILE_SIZE": 512,
        "OVERVIEWS": False,
        "THREADS": 1,
    }
    run("pansharpen", {**parameters, **words, **values})
    assert recorded() == from_words
    assert from_words["bands"] == [1, 2, 4]
    assert from_words["nodata"] == 0.0
    assert (from_words["method"], from_words["sensor"], from_words["format"]) == ("bt-h", "ikonos", "cog")
    assert (from_words["compression"], from_words["overviews"], from_words["threads"]) == ("zstd", False, 1)
    assert (from_words["device"], from_words["tile_size"]) == ("cpu", 512)
    assert from_words["registration"] == "global"


def test_a_model_makes_the_same_request(run, recorded, parameters, provider):
    model = QgsProcessingModelAlgorithm("m", "g")
    child = QgsProcessingModelChildAlgorithm("clippan:pansharpen")
    child.setChildId("sharpen")
    for name, value in {**parameters, "METHOD": "gsa", "BANDS": "3,2,1"}.items():
        if name != "OUTPUT":
            source = QgsProcessingModelChildParameterSource.fromStaticValue(value)
            child.addParameterSources(name, [source])
    output = QgsProcessingModelOutput("Sharp", "Sharp")
    output.setChildId("sharpen")
    output.setChildOutputName("OUTPUT")
    child.setModelOutputs({"Sharp": output})
    model.addChildAlgorithm(child)
    model.updateDestinationParameters()
    destination = next(item.name() for item in model.parameterDefinitions() if item.isDestination())
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    _, ok = model.run({destination: parameters["OUTPUT"]}, context, Feedback())
    assert ok
    from_model = recorded()
    run("pansharpen", {**parameters, "METHOD": "gsa", "BANDS": "3,2,1"})
    assert recorded() == from_model
    assert from_model["bands"] == [3, 2, 1]


def test_relative_paths_mean_the_same_in_the_engine(run, recorded, parameters, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = {
        "SPECTRAL": [str(Path(parameters["SPECTRAL"][0]).relative_to(tmp_path))],
        "PANCHROMATIC": str(Path(parameters["PANCHROMATIC"]).relative_to(tmp_path)),
        "OUTPUT": "out.tif",
    }
    run("pansharpen", relative)
    request = recorded()
    assert request["ms"] == parameters["SPECTRAL"]
    assert request["pan"] == parameters["PANCHROMATIC"]
    assert request["output"] == parameters["OUTPUT"]
    run("assesspansharpening", {**relative, "FUSED": "out.tif", "OUTPUT_HTML": "report.html"})
    assert recorded()["fused"] == parameters["OUTPUT"]
    assert recorded()["report"] == str(tmp_path / "report.html")


def test_several_rasters_keep_their_order(run, recorded, parameters, tmp_path, scene):
    import numpy as np

    paths = [write(tmp_path / f"x_B{band}.TIF", np.full((1, 8, 8), band), 4.0) for band in (3, 1, 2)]
    run("pansharpen", {**parameters, "SPECTRAL": paths})
    assert recorded()["ms"] == paths


def test_layers_of_the_project_are_known_by_id_and_name(run, recorded, parameters, qgis_new_project):
    layer = QgsRasterLayer(parameters["SPECTRAL"][0], "colours")
    QgsProject.instance().addMapLayer(layer)
    expected = parameters["SPECTRAL"]
    for reference in (layer.id(), "colours"):
        run("pansharpen", {**parameters, "SPECTRAL": [reference]})
        assert recorded()["ms"] == expected


def test_the_device_of_the_options_stands_in_for_auto(run, recorded, parameters):
    from dataclasses import replace

    from clippan_qgis.settings import Settings

    replace(Settings.read(), device="cpu").write()
    run("pansharpen", parameters)
    assert recorded()["device"] == "cpu"
    run("pansharpen", {**parameters, "DEVICE": "cuda"})
    assert recorded()["device"] == "cuda"


def test_assess_makes_its_request_and_returns_numbers(run, recorded, scene, tmp_path, feedback):
    report = str(tmp_path / "report.html")
    parameters = {
        **{"FUSED": scene[1], "SPECTRAL": [scene[0]], "PANCHROMATIC": scene[1], "REFERENCE": scene[1]},
        **{"SENSOR": "ikonos", "BANDS": "1", "NODATA": 7, "OUTPUT_HTML": report},
    }
    results = run("assesspansharpening", parameters, feedback)
    assert from_json(AssessRequest, recorded()) == AssessRequest(
        fused=scene[1],
        pan=scene[1],
        ms=(scene[0],),
        reference=scene[1],
        sensor="ikonos",
        bands=(1,),
        nodata=7.0,
        report=report,
    )
    assert results["HQNR"] == 0.97
    assert results["D_LAMBDA_K"] == 0.01
    assert "Q2N" not in results
    rows = [line for line in feedback.lines if line.startswith(("Figure", "HQNR", "D_s"))]
    assert any("about 1/10,000 of the multispectral" in line for line in feedback.lines)
    assert len(rows) == 3
    assert len({row.index(word) for row, word in zip(rows, ("Meaning", "Spatial", "Hybrid"))}) == 1


def test_assess_without_options(run, recorded, scene):
    run("assesspansharpening", {"FUSED": scene[1], "SPECTRAL": [scene[0]], "PANCHROMATIC": scene[1]})
    assert from_json(AssessRequest, recorded()) == AssessRequest(fused=scene[1], pan=scene[1], ms=(scene[0],))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", ()), ("1,2,3", (1, 2, 3)), (" 4 3;2 ", (4, 3, 2)), ("2-4,1", (2, 3, 4, 1)), ("3-1", (3, 2, 1))],
)
def test_band_lists(text, numbers):
    assert parse_bands(text) == numbers


@pytest.mark.parametrize("text", ["red", "1,b", "1-", "-2", "1.5"])
def test_band_lists_that_are_none(text):
    with pytest.raises(ClippanError, match="write it like 1,2,3 or 2-4"):
        parse_bands(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"SPECTRAL": ["/nowhere/ms.tif"]},
            "“Multispectral raster(s)”, /nowhere/ms.tif, does not exist; check the path.",
        ),
        ({"PANCHROMATIC": "/nowhere/p.tif"}, "“Panchromatic raster”, /nowhere/p.tif, does not exist; check the path."),
        ({"PANCHROMATIC": __file__}, "cannot be opened as a raster; choose a file that GDAL reads."),
        ({"BANDS": "red"}, "The band list “red” is not understood; write it like 1,2,3 or 2-4."),
        ({"BANDS": "1,1"}, "A band is listed twice; list each band once."),
        ({"OUTPUT": "/nowhere/out.tif"}, "The output folder /nowhere does not exist; create it or choose another."),
    ],
)
def test_bad_input_is_one_sentence(run, fake, parameters, change, words):
    fake("good")
    with pytest.raises(QgsProcessingException) as caught:
        run("pansharpen", {**parameters, **change})
    text = str(caught.value).replace("Unable to execute algorithm\n", "")
    assert text.endswith(words)
    assert "\n" not in text


def test_the_output_is_never_an_input(run, fake, parameters):
    fake("good")
    with pytest.raises(QgsProcessingException, match=r"is one of the inputs; choose another name\.$"):
        run("pansharpen", {**parameters, "OUTPUT": parameters["SPECTRAL"][0]})


def test_layers_of_other_providers_are_refused(run, fake, parameters):
    fake("good")
    layer = QgsRasterLayer("type=xyz&url=https://tile.example/{z}/{x}/{y}.png", "Tiles", "wms")
    with pytest.raises(QgsProcessingException) as caught:
        run("pansharpen", {**parameters, "SPECTRAL": [layer]})
    text = "Layer Tiles comes from the provider wms; export it to a GeoTIFF first."
    assert str(caught.value) == text


def test_data_sources_are_what_gdal_opens(scene):
    for path in (scene[0], f"{scene[0]}|option:NUM_THREADS=2"):
        layer = QgsRasterLayer(path, "x", "gdal")
        assert layer.isValid()
        assert sources.data_source(layer) == scene[0]
    with pytest.raises(ClippanError, match="needs a login"):
        sources.data_source(QgsRasterLayer(f"{scene[0]}|authcfg=abc1234", "x", "gdal"))


@pytest.fixture
def dialog(plugin, qgis_iface, qgis_new_project, monkeypatch):
    import processing
    from qgis.gui import QgsBrowserGuiModel

    model = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: model)
    dialogs = []

    def open_dialog(name):
        dialogs.append(processing.createAlgorithmDialog(f"clippan:{name}"))
        return dialogs[-1]

    yield open_dialog
    for item in dialogs:
        item.close()
        item.deleteLater()


def test_the_dialog_shows_what_the_words_mean(dialog, fake, parameters):
    fake("good")
    dialog = dialog("pansharpen")
    wrapper = dialog.mainWidget().wrappers["METHOD"]
    box = wrapper.wrappedWidget()
    assert box.currentText() == Method.CLIPPAN.label
    assert wrapper.parameterValue() == "clippan"
    changes = []
    wrapper.widgetValueHasChanged.connect(changes.append)
    wrapper.setParameterValue("bt-h", QgsProcessingContext())
    assert len(changes) == 1
    assert box.currentText() == Method.BT_H.label
    dialog.setParameters({**parameters, "METHOD": "bt-h"})
    assert dialog.createProcessingParameters()["METHOD"] == "bt-h"


def test_the_dialog_makes_the_same_request(dialog, run, recorded, parameters):
    dialog = dialog("pansharpen")
    dialog.setParameters({**parameters, "SENSOR": "ikonos", "BANDS": "2,1"})
    run("pansharpen", dialog.createProcessingParameters())
    from_dialog = recorded()
    run("pansharpen", {**parameters, "SENSOR": "ikonos", "BANDS": "2,1"})
    assert recorded() == from_dialog
    assert from_dialog["sensor"] == "ikonos"


def test_the_batch_panel_makes_the_same_values(dialog, fake, algorithm):
    from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog

    fake("good")
    dialog = BatchAlgorithmDialog(algorithm("pansharpen"), None)
    wrapper = dialog.mainWidget().wrappers[0][
        next(column for column, item in dialog.mainWidget().column_to_parameter_definition.items() if item == "METHOD")
    ]
    wrapper.setParameterValue("gsa", QgsProcessingContext())
    assert wrapper.parameterValue() == "gsa"
    dialog.close()


def test_the_model_designer_gets_the_widget_that_takes_model_inputs(algorithm, qgis_processing):
    from processing.modeler.ModelerParametersDialog import ModelerParametersDialog
    from qgis.gui import QgsProcessingModelerParameterWidget

    algorithm = algorithm("pansharpen")
    dialog = ModelerParametersDialog(algorithm, QgsProcessingModelAlgorithm("m", "g"))
    assert isinstance(dialog.widget.widget.wrappers["METHOD"], QgsProcessingModelerParameterWidget)
    dialog.close()

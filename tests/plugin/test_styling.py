"""How results look, and what they say about themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for, write
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsContrastEnhancement,
    QgsMultiBandColorRenderer,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsSingleBandGrayRenderer,
)

from clippan.catalogue.band_names import Band, BandOrder, colour_of_file, natural_colours
from clippan_qgis import styling


def stretch(layer, band, lower, upper):
    enhancement = QgsContrastEnhancement(layer.dataProvider().dataType(band))
    enhancement.setMinimumValue(lower)
    enhancement.setMaximumValue(upper)
    enhancement.setContrastEnhancementAlgorithm(
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
    )
    return enhancement


def styled(path, red=4, green=3, blue=2):
    """A layer of the project that its user shows in false colours."""
    layer = QgsRasterLayer(path, "colours")
    renderer = QgsMultiBandColorRenderer(layer.dataProvider(), red, green, blue)
    renderer.setRedContrastEnhancement(stretch(layer, red, 111, 1111))
    renderer.setGreenContrastEnhancement(stretch(layer, green, 55, 555))
    renderer.setBlueContrastEnhancement(stretch(layer, blue, 22, 222))
    layer.setRenderer(renderer)
    QgsProject.instance().addMapLayer(layer)
    return layer


def bands(layer):
    renderer = layer.renderer()
    return renderer.redBand(), renderer.greenBand(), renderer.blueBand()


@pytest.fixture
def load(run, qgis_new_project):
    """Runs in the background and loads the result, as the dialog does; returns the layer of the project."""
    from processing.gui.Postprocessing import handleAlgorithmResults

    def load(parameters, feedback):
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        output = QgsProcessingOutputLayerDefinition(parameters["OUTPUT"], QgsProject.instance())
        algorithm = QgsApplication.processingRegistry().createAlgorithmById("clippan:pansharpen")
        task = QgsProcessingAlgRunnerTask(algorithm, {**parameters, "OUTPUT": output}, context, feedback)
        answers = []
        task.executed.connect(lambda ok, results: answers.append((ok, results)))
        QgsApplication.taskManager().addTask(task)
        wait_for(lambda: answers)
        ((ok, results),) = answers
        assert ok, feedback.failures
        assert handleAlgorithmResults(algorithm, context, feedback, results)
        (layer,) = [
            item for item in QgsProject.instance().mapLayers().values() if item.source() == parameters["OUTPUT"]
        ]
        return layer

    return load


def test_result_takes_over_bands_and_stretch(load, fake, parameters, feedback, qgis_new_project):
    fake("good")
    source = styled(parameters["SPECTRAL"][0])
    layer = load({**parameters, "SPECTRAL": [source]}, feedback)
    assert bands(layer) == (4, 3, 2)
    assert layer.renderer().redContrastEnhancement().maximumValue() == 1111
    assert layer.renderer().blueContrastEnhancement().minimumValue() == 22
    assert layer.name() == "Pansharpened (CLIPPAN)"
    assert any("CLIPPAN_METHOD: clippan" in line for line in layer.metadata().history())
    assert "CLIPPAN_METHOD" in layer.metadata().abstract()
    assert bands(source) == (4, 3, 2)  # the source keeps its renderer


def test_a_selection_of_bands_is_followed(load, fake, parameters, feedback, qgis_new_project):
    fake("good")
    source = styled(parameters["SPECTRAL"][0])
    layer = load({**parameters, "SPECTRAL": [source], "BANDS": "2,3,4"}, feedback)
    assert bands(layer) == (3, 2, 1)
    assert layer.renderer().redContrastEnhancement().maximumValue() == 1111


def test_a_selection_without_a_shown_band_gets_natural_colours(load, fake, parameters, feedback, qgis_new_project):
    fake("good")
    source = styled(parameters["SPECTRAL"][0])
    layer = load({**parameters, "SPECTRAL": [source], "BANDS": "1,2,3"}, feedback)
    assert bands(layer) == (3, 2, 1)  # red, green and blue by their names
    assert layer.renderer().redContrastEnhancement().maximumValue() != 1111


def test_a_file_that_nobody_styled_gets_natural_colours(load, fake, parameters, feedback):
    fake("good")
    layer = load(parameters, feedback)
    assert bands(layer) == (3, 2, 1)
    values = gdal.Open(parameters["OUTPUT"]).ReadAsArray()[2]
    red = layer.renderer().redContrastEnhancement()
    lower, upper = np.percentile(values, (2, 98))
    assert red.minimumValue() == pytest.approx(lower, rel=0.05)
    assert red.maximumValue() == pytest.approx(upper, rel=0.05)


def test_single_band_files_are_composed_by_their_names(load, fake, parameters, feedback, tmp_path):
    fake("good")
    random = np.random.default_rng(2)
    paths = [
        write(tmp_path / f"LC08_L1TP_0420_T1_B{band}.TIF", random.integers(1, 999, (1, 32, 32)), 4.0)
        for band in (1, 2, 3, 4, 5)
    ]
    layer = load({**parameters, "SPECTRAL": paths}, feedback)
    assert bands(layer) == (4, 3, 2)


def test_one_band_is_grey(load, fake, parameters, feedback, tmp_path):
    fake("good")
    layer = load({**parameters, "BANDS": "4"}, feedback)
    assert isinstance(layer.renderer(), QgsSingleBandGrayRenderer)


def test_a_name_that_the_user_gave_stays(load, fake, parameters, feedback):
    fake("good")
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    import processing

    output = QgsProcessingOutputLayerDefinition(parameters["OUTPUT"], QgsProject.instance())
    output.destinationName = "My city"
    processing.run("clippan:pansharpen", {**parameters, "OUTPUT": output}, feedback=feedback, context=context)
    assert context.layerToLoadOnCompletionDetails(parameters["OUTPUT"]).name == "My city"


def test_the_file_opens_styled_everywhere(run, fake, parameters):
    fake("good")
    run("pansharpen", parameters)
    assert Path(parameters["OUTPUT"]).with_suffix(".qml").exists()
    assert bands(QgsRasterLayer(parameters["OUTPUT"], "again")) == (3, 2, 1)
    assert not Path(parameters["OUTPUT"] + ".aux.xml").exists()


def test_missing_pixels_do_not_stretch_the_colours(tmp_path):
    values = np.full((1, 64, 64), 65535)
    values[:, :32] = np.linspace(100, 200, 64)
    layer = QgsRasterLayer(write(tmp_path / "x.tif", values, 1.0, nodata=65535), "x")
    styling.show_bands(layer, (1,))
    stretch = layer.renderer().contrastEnhancement()
    assert 100 <= stretch.minimumValue() < 110
    assert 190 < stretch.maximumValue() <= 200
    assert layer.renderer().minMaxOrigin().limits() == QgsRasterMinMaxOrigin.Limits.CumulativeCut


def test_a_raster_without_any_pixel_is_styled_too(tmp_path):
    layer = QgsRasterLayer(write(tmp_path / "x.tif", np.full((3, 8, 8), 7), 1.0, nodata=7), "x")
    styling.show_bands(layer, (1, 2, 3))
    assert bands(layer) == (1, 2, 3)


@pytest.mark.parametrize(
    ("names", "sensor", "count", "expected"),
    [
        (("blue", "green", "red", "nir"), (), 4, (3, 2, 1)),
        (("red", "green", "blue"), ("blue", "green", "red"), 3, (1, 2, 3)),  # names come before the sensor
        (("", "", "", ""), ("blue", "green", "red", "nir"), 4, (3, 2, 1)),
        (("",) * 8, ("coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir2"), 8, (5, 3, 2)),
        (("",) * 7, ("coastal", "blue", "green", "red", "nir", "swir1", "swir2"), 7, (4, 3, 2)),
        ((), (), 4, (3, 2, 1)),
        ((), (), 3, (1, 2, 3)),
        ((), (), 6, (3, 2, 1)),
        ((), (), 2, (1,)),
        ((), (), 1, (1,)),
    ],
)
def test_natural_colours(names, sensor, count, expected):
    bands = [Band(name) for name in (*names, *[""] * count)[:count]]
    assert natural_colours(bands, BandOrder("a sensor", (sensor,))).bands == expected


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        ("LC08_L1TP_042_B4.TIF", "red"),
        ("LC09_L2SP_042_SR_B2.TIF", "blue"),
        ("LE07_L1TP_042_B3.TIF", "red"),
        ("T31UFU_20240101_B03_10m.jp2", "green"),
        ("LC08_L1TP_042_B10.TIF", "band 10"),
        ("scene_red.tif", "red"),
        ("scene_rededge.tif", None),
        ("LT05_L1TP_042_B3.TIF", "red"),
        ("LE71950242000125EDC00_B3.TIF", "red"),
        ("scene.tif", None),
    ],
)
def test_colours_of_file_names(file, colour):
    assert colour_of_file(file) == colour


def test_names_of_bands_are_words(tmp_path):
    names = ("Red", "Red edge", "band 3: near infrared", "Blue")
    path = write(tmp_path / "x.tif", np.ones((4, 8, 8)), 1.0, names=names)
    found = styling.band_names(QgsRasterLayer(path, "x"), single_band=False)
    assert (found[0], found[3]) == ("red", "blue")
    assert found[1] not in ("red", "green", "blue")


@pytest.mark.parametrize("kind", ["grey", "pseudocolour"])
def test_renderers_of_one_band_are_remapped(kind, tmp_path):
    from qgis.core import QgsSingleBandPseudoColorRenderer

    path = write(tmp_path / "x.tif", np.ones((3, 8, 8)), 1.0)
    layer = QgsRasterLayer(path, "x")
    provider = layer.dataProvider()
    renderer = {
        "grey": lambda: QgsSingleBandGrayRenderer(provider, 3),
        "pseudocolour": lambda: QgsSingleBandPseudoColorRenderer(provider, 3),
    }[kind]()
    assert styling.renderer_for_bands(renderer, (2, 3)).usesBands() == [2]
    assert renderer.usesBands() == [3]
    assert styling.renderer_for_bands(renderer, (1, 2)) is None

"""How a map of classes looks."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write
from osgeo import gdal
from qgis.core import QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtGui import QColor

from clippan.jobs import ClassArea
from clippan_qgis import classmap

CLASSES = [
    ClassArea(1, "water", "#4a90d9", 5, 0.5, None, 0.7),
    ClassArea(2, "Wald & Wiese", "#2f7d32", 3, 0.3, None, 0.7),
    ClassArea(0, "unclassified", "", 2, 0.2, None, None),
]


@pytest.fixture
def raster(tmp_path):
    values = np.array([[[0, 1], [2, 3]]])
    return QgsRasterLayer(write(tmp_path / "map.tif", values, 10.0, dtype=gdal.GDT_Byte), "map")


def painted(layer):
    """The colours of four pixels."""
    picture = layer.renderer().block(1, layer.extent(), 2, 2)
    return [QColor.fromRgba(picture.color(row, column)) for row in range(2) for column in range(2)]


def test_a_map_has_names_and_colours_and_holes(raster):
    classmap.style(raster, CLASSES, {"CLIPPAN_ALGORITHM": "segment"})
    labels = [(item.value, item.label) for item in raster.renderer().classes()]
    assert labels == [(1, "water"), (2, "Wald & Wiese")]
    nothing, first, second, unknown = painted(raster)
    assert (first.name(), second.name()) == ("#4a90d9", "#2f7d32")
    assert nothing.alpha() == unknown.alpha() == 0
    assert any("CLIPPAN_ALGORITHM: segment" in line for line in raster.metadata().history())


def test_a_confidence_is_shown_from_0_to_1(tmp_path):
    values = np.array([[[0.0, 0.5], [0.9, 1.0]]])
    layer = QgsRasterLayer(write(tmp_path / "c.tif", values, 10.0, dtype=gdal.GDT_Float32), "confidence")
    classmap.style_confidence(layer)
    renderer = layer.renderer()
    assert (renderer.classificationMin(), renderer.classificationMax()) == (0, 1)
    lowest, middle, high, highest = painted(layer)
    assert (lowest.name(), highest.name()) == (classmap.COLOURS[0], classmap.COLOURS[-1])
    assert lowest.lightness() < middle.lightness() < high.lightness()


def test_polygons_look_like_the_map():
    layer = QgsVectorLayer("Polygon?crs=EPSG:32631&field=class:string&field=hectares:double", "p", "memory")
    classmap.style_polygons(layer, CLASSES)
    found = [(item.value(), item.label(), item.symbol().color().name()) for item in layer.renderer().categories()]
    assert found == [("water", "water", "#4a90d9"), ("Wald & Wiese", "Wald & Wiese", "#2f7d32")]
    assert layer.renderer().classAttribute() == "class"
    assert layer.attributeDisplayName(1) == "Area (ha)"

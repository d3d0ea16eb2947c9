"""Hits as a layer, and how it looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import write
from fake_index import make_result
from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QDate, QSize
from qgis.PyQt.QtGui import QColor

from clippan_qgis import hits

NAMES = ["rank", "prompt", "score", "confidence", "raster", "window", "scale", "date", "model", "tile"]


def test_a_layer_holds_all_that_is_known_of_the_hits(qgis_app):
    layer = hits.layer(make_result(), "Search: river")
    assert layer.isValid()
    assert layer.name() == "Search: river"
    assert layer.crs().authid() == "EPSG:32631"
    assert QgsWkbTypes.displayString(layer.wkbType()) == "Polygon"
    assert layer.fields().names() == NAMES
    first = next(layer.getFeatures())
    assert first.attributes() == [
        *(1, "river", 0.3, 1.0, "/data/scène.tif", "10,20,30,40", 50.0),
        *(QDate(2021, 6, 30), "starter", 2**33 + 1),
    ]
    assert first.geometry().boundingBox().toString(0) == "500100,4999850 : 500150,4999900"
    assert first.geometry().area() == pytest.approx(2500)


def test_a_raster_without_a_date_and_a_picture_without_coordinates(qgis_app):
    features = hits.features(make_result(date="", outline=(), bounds=()))
    assert [feature["date"] for feature in features] == [NULL] * 3
    assert not any(feature.hasGeometry() for feature in features)


def test_plain_pictures_have_no_crs_and_nobody_is_asked(qgis_app):
    layer = hits.layer(make_result(crs=""), "Search")
    assert not layer.crs().isValid()
    assert layer.featureCount() == 3


def test_a_crs_without_a_number_comes_as_wkt(qgis_app):
    wkt = QgsCoordinateReferenceSystem("PROJ:+proj=laea +lat_0=51 +lon_0=3 +datum=WGS84").toWkt()
    assert hits.layer(make_result(crs=wkt), "Search").crs().toProj().startswith("+proj=laea +lat_0=51")


def test_every_confidence_has_a_symbol_and_the_best_is_drawn_last(qgis_app):
    layer = hits.layer(make_result(), "Search")
    renderer = layer.renderer()
    assert renderer.classAttribute() == "confidence"
    assert all(renderer.symbolForValue(value / 100) is not None for value in range(101))
    assert renderer.orderByEnabled()
    assert renderer.orderBy().dump() == "rank DESC NULLS FIRST"
    fills = [item.symbol().symbolLayer(0).fillColor().alpha() for item in renderer.ranges()]
    assert max(fills) < 64, "the place has to be seen"


def test_colours_go_from_dark_to_light_for_every_kind_of_vision(qgis_app):
    def luminance(name):
        values = [value / 12.92 if value <= 0.04 else ((value + 0.055) / 1.055) ** 2.4
                  for value in QColor(name).getRgbF()[:3]]  # fmt: skip
        return float(np.dot(values, (0.2126, 0.7152, 0.0722)))

    steps = np.diff([luminance(name) for name in hits.COLOURS])
    assert steps.min() > 0.05


def test_labels_names_and_tips(qgis_app):
    layer = hits.layer(make_result(), "Search")
    assert layer.labelsEnabled()
    assert layer.labeling().settings().fieldName == "rank"
    assert layer.attributeAlias(layer.fields().indexOf("prompt")) == "Searched for"
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    context.setFeature(next(layer.getFeatures()))
    assert QgsExpression(layer.displayExpression()).evaluate(context) == "1 river"
    tip = QgsExpression.replaceExpressionText(layer.mapTipTemplate(), context)
    assert "<b>river</b>, 100 %" in tip
    assert "scène.tif, 2021-06-30" in tip


def test_outlines_are_drawn_and_the_place_is_seen_through_them(qgis_app):
    result = make_result()
    layer = hits.layer(replace(result, hits=result.hits[:1]), "Search")
    layer.setLabelsEnabled(False)
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layer.extent().buffered(10))
    settings.setOutputSize(QSize(140, 140))
    settings.setBackgroundColor(QColor("white"))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    middle, border = image.pixelColor(70, 70), [image.pixelColor(x, 70) for x in range(10, 35)]
    assert middle.lightness() > 220
    assert min(colour.lightness() for colour in border) < 130, "a dark casing"
    strong = QColor(hits.COLOURS[-1])
    assert any(abs(colour.hue() - strong.hue()) < 12 and colour.saturation() > 150 for colour in border)


def test_a_heat_map_shows_nothing_where_there_is_nothing(tmp_path, qgis_app):
    values = np.array([[[0.0, 0.5, 1.0, np.nan]]])
    path = write(tmp_path / "heat.tif", values, 10, dtype=6)
    layer = QgsRasterLayer(path, "heat")
    hits.style_heat(layer)
    shader = layer.renderer().shader()
    alphas = [shader.shade(value)[4] for value in (0.0, 0.3, 0.6, 1.0)]
    assert alphas[0] == 0
    assert alphas == sorted(alphas)
    assert alphas[-1] == 255
    assert layer.opacity() < 1

"""What a search has found, as layers: polygons of the places, and the heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgis.core import (
    NULL,
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsFillSymbol,
    QgsGeometry,
    QgsGradientColorRamp,
    QgsGradientStop,
    QgsGraduatedSymbolRenderer,
    QgsPalLayerSettings,
    QgsPointXY,
    QgsRasterLayer,
    QgsRendererRange,
    QgsSimpleFillSymbolLayer,
    QgsSimpleLineSymbolLayer,
    QgsTextBufferSettings,
    QgsTextFormat,
    QgsVectorLayer,
    QgsVectorLayerSimpleLabeling,
)
from qgis.PyQt.QtCore import QDate, Qt
from qgis.PyQt.QtGui import QColor

from . import styling

# Name, type as a memory layer is told it, and what analysts read.
_FIELDS = (
    ("rank", "int", "Rank"),
    ("prompt", "string", "Searched for"),
    ("score", "double", "Score"),
    ("confidence", "double", "Confidence"),
    ("raster", "string", "Raster"),
    ("window", "string", "Window (x, y, width, height)"),
    ("scale", "double", "Edge of the tile"),
    ("date", "date", "Date"),
    ("model", "string", "Model"),
    ("tile", "int8", "Tile"),
)

# From weak to strong: told apart with every kind of colour vision, and the strong ones shine on dark imagery.
COLOURS = ("#5c3a8c", "#3f6fa8", "#26a08a", "#86cf4a", "#fde725")
_CASING = QColor(20, 20, 20, 200)
_FILL = 28  # of 255: the place has to be seen through it

_TIP = """<b>[% "prompt" %]</b>, [% round(100 * "confidence") %] %<br>
[% file_name("raster") %][% coalesce(', ' || format_date("date", 'yyyy-MM-dd'), '') %]"""


def fields() -> QgsFields:
    """The fields of a hits layer."""
    # A layer reads the types' names; QgsField's own differ between QGIS 3.34 and 4.
    names = "&".join(f"field={name}:{kind}" for name, kind, _ in _FIELDS)
    return QgsVectorLayer(f"NoGeometry?{names}", "fields", "memory").fields()


def crs(answer: Mapping[str, Any]) -> QgsCoordinateReferenceSystem:
    """The hits' CRS; an invalid one for pictures without coordinates."""
    reference = QgsCoordinateReferenceSystem()
    if answer["crs"]:
        reference.createFromUserInput(answer["crs"])
    return reference


def outline(hit: Mapping[str, Any]) -> QgsGeometry:
    """A hit's polygon; null if its place on the map is not known."""
    values = hit["outline"]
    corners = [QgsPointXY(x, y) for x, y in zip(values[::2], values[1::2])]
    return QgsGeometry.fromPolygonXY([[*corners, corners[0]]]) if corners else QgsGeometry()


def features(answer: Mapping[str, Any]) -> list[QgsFeature]:
    """The hits of a SearchResult (as JSON values), the best first."""
    kinds = fields()
    found = []
    for hit in answer["hits"]:
        feature = QgsFeature(kinds)
        values = {**hit, "window": ",".join(map(str, hit["window"])), "model": answer["model"]}
        date = QDate.fromString(hit["date"], Qt.DateFormat.ISODate)
        values["date"] = date if date.isValid() else NULL
        feature.setAttributes([values[name] for name, _, _ in _FIELDS])
        feature.setGeometry(outline(hit))
        found.append(feature)
    return found


def layer(answer: Mapping[str, Any], name: str) -> QgsVectorLayer:
    """The hits as a temporary layer, styled."""
    options = QgsVectorLayer.LayerOptions()
    options.skipCrsValidation = True  # nobody is to be asked what CRS a plain picture has
    found = QgsVectorLayer("Polygon?crs=", name, "memory", options)
    found.setCrs(crs(answer), False)
    found.dataProvider().addAttributes(list(fields()))
    found.updateFields()
    found.dataProvider().addFeatures(features(answer))
    found.updateExtents()
    style(found)
    return found


def style(layer: QgsVectorLayer) -> None:
    """Shows hits by their confidence, numbered by rank, with names that analysts read."""
    layer.setRenderer(_renderer())
    layer.setLabeling(_labels())
    layer.setLabelsEnabled(True)
    for name, _, alias in _FIELDS:
        index = layer.fields().indexOf(name)
        if index >= 0:
            layer.setFieldAlias(index, alias)
    layer.setDisplayExpression('"rank" || \' \' || "prompt"')
    layer.setMapTipTemplate(_TIP)
    layer.triggerRepaint()


def style_heat(layer: QgsRasterLayer) -> None:
    """Shows a heat map: nothing where the confidence is low, strong colours where it is high."""
    clear = QColor(COLOURS[0])
    clear.setAlpha(0)
    stops = [
        QgsGradientStop(0.25 * step, _clear(colour, 60 * step)) for step, colour in enumerate(COLOURS[:-1]) if step
    ]
    ramp = QgsGradientColorRamp(clear, QColor(COLOURS[-1]), False, stops)
    styling.shade(layer, ramp, len(COLOURS))
    layer.setOpacity(0.7)  # which is the renderer's


def _clear(colour: str, alpha: int) -> QColor:
    clear = QColor(colour)
    clear.setAlpha(alpha)
    return clear


def _renderer() -> QgsGraduatedSymbolRenderer:
    step = 1 / len(COLOURS)
    ranges = [
        QgsRendererRange(
            number * step,
            (number + 1) * step,
            _symbol(colour),
            f"{100 * number * step:.0f} – {100 * (number + 1) * step:.0f} %",
        )
        for number, colour in enumerate(COLOURS)
    ]
    renderer = QgsGraduatedSymbolRenderer("confidence", ranges)
    renderer.setOrderBy(QgsFeatureRequest.OrderBy([QgsFeatureRequest.OrderByClause("rank", False)]))  # best on top
    renderer.setOrderByEnabled(True)
    return renderer


def _symbol(colour: str) -> QgsFillSymbol:
    fill = QgsSimpleFillSymbolLayer(_clear(colour, _FILL), Qt.BrushStyle.SolidPattern, _CASING, Qt.PenStyle.NoPen)
    # The dark casing keeps a light line legible on snow and clouds.
    casing = QgsSimpleLineSymbolLayer(_CASING, 1.1)
    line = QgsSimpleLineSymbolLayer(QColor(colour), 0.6)
    symbol = QgsFillSymbol()
    symbol.changeSymbolLayer(0, fill)
    symbol.appendSymbolLayer(casing)
    symbol.appendSymbolLayer(line)
    return symbol


def _labels() -> QgsVectorLayerSimpleLabeling:
    buffer = QgsTextBufferSettings()
    buffer.setEnabled(True)
    buffer.setSize(0.8)
    buffer.setColor(_CASING)
    text = QgsTextFormat()
    text.setSize(10)
    text.setColor(QColor("white"))
    text.setForcedBold(True)
    text.setBuffer(buffer)
    labels = QgsPalLayerSettings()
    labels.fieldName = "rank"
    labels.setFormat(text)
    # In the upper left corner, where it covers little of the place.
    labels.geometryGeneratorEnabled = True
    labels.geometryGeneratorType = Qgis.GeometryType.Point
    labels.geometryGenerator = "make_point(x_min($geometry), y_max($geometry))"
    labels.placement = Qgis.LabelPlacement.OverPoint
    labels.xOffset = labels.yOffset = 3  # millimetres
    return QgsVectorLayerSimpleLabeling(labels)

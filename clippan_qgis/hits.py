"""What a search has found, as layers: polygons of the places, and the heat map."""

from __future__ import annotations

from qgis.core import (
    NULL,
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsFillSymbol,
    QgsGeometry,
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

from clippan.core.messages import Message
from clippan.jobs import Hit, SearchResult

from . import styling

# Name, type as a memory layer is told it, and what analysts read.
_FIELDS = (
    ("rank", "int", Message("Rank")),
    ("prompt", "string", Message("Searched for")),
    ("score", "double", Message("Score")),
    ("confidence", "double", Message("Confidence")),
    ("raster", "string", Message("Raster")),
    ("window", "string", Message("Window (x, y, width, height)")),
    ("scale", "double", Message("Tile size")),
    ("date", "date", Message("Date")),
    ("model", "string", Message("Model")),
    ("tile", "int8", Message("Tile")),
)

# From weak to strong: told apart with every kind of colour vision, and the strong ones shine on dark imagery.
COLOURS = ("#5c3a8c", "#3f6fa8", "#26a08a", "#86cf4a", "#fde725")
CASING = QColor(20, 20, 20, 200)
_FILL_ALPHA = 28  # of 255: the place has to be seen through it

_MAP_TIP = """<b>[% "prompt" %]</b>, [% round(100 * "confidence") %] %<br>
[% file_name("raster") %][% coalesce(', ' || format_date("date", 'yyyy-MM-dd'), '') %]"""


def fields() -> QgsFields:
    # A layer reads the types' names; QgsField's own differ between QGIS 3.34 and 4.
    names = "&".join(f"field={name}:{kind}" for name, kind, _ in _FIELDS)
    return QgsVectorLayer(f"NoGeometry?{names}", "fields", "memory").fields()


def crs(result: SearchResult) -> QgsCoordinateReferenceSystem:
    """The hits' CRS; an invalid one for pictures without coordinates."""
    reference = QgsCoordinateReferenceSystem()
    if result.crs:
        reference.createFromUserInput(result.crs)
    return reference


def outline(hit: Hit) -> QgsGeometry:
    """A hit's polygon; null if its place on the map is not known."""
    corners = [QgsPointXY(x, y) for x, y in zip(hit.outline[::2], hit.outline[1::2])]
    return QgsGeometry.fromPolygonXY([[*corners, corners[0]]]) if corners else QgsGeometry()


def features(result: SearchResult) -> list[QgsFeature]:
    kinds = fields()
    found = []
    for hit in result.hits:
        feature = QgsFeature(kinds)
        date = QDate.fromString(hit.date, Qt.DateFormat.ISODate)
        values = {**vars(hit), "window": ",".join(map(str, hit.window)), "model": result.model}
        values["date"] = date if date.isValid() else NULL
        feature.setAttributes([values[name] for name, _, _ in _FIELDS])
        feature.setGeometry(outline(hit))
        found.append(feature)
    return found


def layer(result: SearchResult, name: str) -> QgsVectorLayer:
    options = QgsVectorLayer.LayerOptions()
    options.skipCrsValidation = True  # nobody is to be asked what CRS a plain picture has
    found = QgsVectorLayer("Polygon?crs=", name, "memory", options)
    found.setCrs(crs(result), False)
    found.dataProvider().addAttributes(list(fields()))
    found.updateFields()
    found.dataProvider().addFeatures(features(result))
    found.updateExtents()
    style(found)
    return found


def style(layer: QgsVectorLayer) -> None:
    """Shows hits by their confidence, numbered by rank, with names that analysts read."""
    layer.setRenderer(_renderer())
    layer.setLabeling(_labels())
    layer.setLabelsEnabled(True)
    styling.set_aliases(layer, {name: alias for name, _, alias in _FIELDS})
    layer.setDisplayExpression('"rank" || \' \' || "prompt"')
    layer.setMapTipTemplate(_MAP_TIP)
    layer.triggerRepaint()


def style_heat(layer: QgsRasterLayer) -> None:
    """Shows a heat map: nothing where the confidence is low, strong colours where it is high."""
    opacities = (0, 60, 120, 180, 255)
    styling.show_by_ramp(layer, [styling.with_alpha(colour, opacity) for colour, opacity in zip(COLOURS, opacities)])
    layer.setOpacity(0.7)  # which is the renderer's


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
    fill = QgsSimpleFillSymbolLayer(
        styling.with_alpha(colour, _FILL_ALPHA), Qt.BrushStyle.SolidPattern, CASING, Qt.PenStyle.NoPen
    )
    # The dark casing keeps a light line legible on snow and clouds.
    casing = QgsSimpleLineSymbolLayer(CASING, 1.1)
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
    buffer.setColor(CASING)
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

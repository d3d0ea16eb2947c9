"""How a map of classes looks: the map, its confidence, its polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsFillSymbol,
    QgsPalettedRasterRenderer,
    QgsRasterLayer,
    QgsRendererCategory,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

from clippan.core.messages import Message
from clippan.jobs import ClassArea

from . import styling

# From doubtful to sure: told apart with every kind of colour vision, and in grey.
COLOURS = ("#30123b", "#5c3a8c", "#3f6fa8", "#26a08a", "#86cf4a", "#fde725")
OUTLINE = "35,35,35,160"
_ALIASES = {
    "value": Message("Value on the map"),
    "class": Message("Class"),
    "confidence": Message("Mean confidence"),
    "prompt": Message("Words"),
    "model": Message("Model"),
    "area_px": Message("Area (pixels)"),
    "hectares": Message("Area (ha)"),
}


def style(layer: QgsRasterLayer, classes: Sequence[ClassArea], provenance: Mapping[str, str]) -> None:
    """Shows a map by the names and colours of its classes; what is none is transparent."""
    entries = [
        QgsPalettedRasterRenderer.Class(item.value, QColor(item.colour), item.name) for item in classes if item.value
    ]
    layer.setRenderer(QgsPalettedRasterRenderer(layer.dataProvider(), 1, entries))
    styling.write_metadata(layer, provenance)
    layer.triggerRepaint()


def style_confidence(layer: QgsRasterLayer) -> None:
    """Shows a confidence, or the first of several probabilities, from 0 to 1."""
    styling.show_by_ramp(layer, [QColor(colour) for colour in COLOURS])


def style_polygons(layer: QgsVectorLayer, classes: Sequence[ClassArea]) -> None:
    """Shows polygons as the map shows their classes, with names that analysts read."""
    outline = {"outline_color": OUTLINE, "outline_width": "0.1"}
    categories = [
        QgsRendererCategory(item.name, QgsFillSymbol.createSimple({"color": item.colour, **outline}), item.name)
        for item in classes
        if item.value
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
    styling.set_aliases(layer, _ALIASES)
    layer.setDisplayExpression('"class"')
    layer.triggerRepaint()

"""Shows on the map what was found, and goes there."""

from __future__ import annotations

from pathlib import Path

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsGeometry,
    QgsLayerTreeLayer,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.gui import QgsMapCanvas, QgsRubberBand
from qgis.PyQt import sip
from qgis.PyQt.QtGui import QColor

from clippan.core.errors import ClippanError
from clippan.jobs import Hit, SearchResult

from .. import hits, sources
from ..i18n import tr
from ..styling import Style, with_alpha

VIEW_FACTOR = 2.0  # the view is so many times as wide as the place
FAINT, STRONG = QColor(hits.COLOURS[-1]), QColor("#ff2fa0")  # no land cover is magenta


class HitHighlighter:
    """Marks hits on the canvas, flies to one of them, and loads its raster if the map does not show it."""

    def __init__(self, canvas: QgsMapCanvas):
        self._canvas = canvas
        self._all_hits = self._make_rubber_band(FAINT, 1)
        self._chosen_hit = self._make_rubber_band(STRONG, 3)
        self._loaded: set[str] = set()

    def show(self, result: SearchResult) -> None:
        """Marks all hits, none of them in particular."""
        self.clear()
        crs = hits.crs(result)
        for hit in result.hits:
            place = hits.outline(hit)
            if not place.isNull():
                self._all_hits.addGeometry(place, crs)

    def fly_to(self, hit: Hit, crs: QgsCoordinateReferenceSystem) -> str:
        """Goes to a hit whose coordinates are in this CRS; returns what the user has to know, if anything."""
        place = hits.outline(hit)
        if place.isNull():  # a plain picture among rasters with coordinates
            crs = QgsCoordinateReferenceSystem()
            place = QgsGeometry.fromRect(pixels(hit.window))
        target = self._canvas.mapSettings().destinationCrs()
        view = place.boundingBox()
        try:
            if crs.isValid() and target.isValid():
                transform = QgsCoordinateTransform(crs, target, QgsProject.instance())
                view = transform.transformBoundingBox(view)
        except QgsCsException:
            return tr("This place cannot be shown in the project's CRS; choose another CRS for the project.")
        problem = self._load(hit.raster)
        self._chosen_hit.setToGeometry(place, crs)
        view.scale(VIEW_FACTOR)
        self._canvas.setExtent(view)
        self._canvas.refresh()
        return problem

    def clear(self) -> None:
        for band in (self._all_hits, self._chosen_hit):
            band.reset(Qgis.GeometryType.Polygon)

    def remove(self) -> None:
        """Takes the marks off the canvas for good."""
        for band in (self._all_hits, self._chosen_hit):
            if not sip.isdeleted(band):  # the canvas may have gone first
                self._canvas.scene().removeItem(band)

    def _make_rubber_band(self, colour: QColor, width: int) -> QgsRubberBand:
        band = QgsRubberBand(self._canvas, Qgis.GeometryType.Polygon)
        band.setStrokeColor(colour)
        band.setSecondaryStrokeColor(hits.CASING)
        band.setFillColor(with_alpha(colour, 0))
        band.setWidth(width)
        return band

    def _load(self, raster: str) -> str:
        if raster in self._loaded or is_loaded(raster):  # what the user has removed is not loaded again
            return ""
        plain = not raster.startswith("/vsi") and "*" not in raster  # files of single bands are one scene of that name
        if plain and Path(raster).is_absolute() and not Path(raster).exists():
            return tr(
                "{raster} is no longer at the path where it was indexed; the map may be empty here.",
                raster=Path(raster).name,
            )
        # A picture without coordinates is fine as it is: nobody is to be asked for its CRS.
        options = QgsRasterLayer.LayerOptions()
        options.skipCrsValidation = True
        layer = QgsRasterLayer(raster, Path(raster).stem, "gdal", options)
        if not layer.isValid():
            return tr("{raster} cannot be opened; the map may be empty here.", raster=Path(raster).name)
        self._loaded.add(raster)
        provider = layer.dataProvider()
        if provider.bandCount() > 1 and provider.dataType(1) != Qgis.DataType.Byte:
            Style.of_layers([layer], (), None).apply(layer)
        project = QgsProject.instance()
        project.addMapLayer(layer, False)
        root = project.layerTreeRoot()
        layers = [node.layer() if isinstance(node, QgsLayerTreeLayer) else None for node in root.children()]
        rasters = [position for position, other in enumerate(layers) if isinstance(other, QgsRasterLayer)]
        # Above the first raster, so that no background map hides it, but below vectors.
        root.insertLayer(min(rasters, default=len(layers)), layer)
        return ""


def pixels(window: tuple[int, ...]) -> QgsRectangle:
    """Where QGIS puts a window of a picture without coordinates."""
    column, row, width, height = window
    return QgsRectangle(column, -row - height, column + width, -row)


def is_loaded(raster: str) -> bool:
    for layer in QgsProject.instance().mapLayers().values():
        if isinstance(layer, QgsRasterLayer):
            try:
                if sources.data_source_or_service(layer) == raster:
                    return True
            except ClippanError:  # a layer that could not be indexed is none that was found
                continue
    return False

"""The Processing provider."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import places
from .algorithms import ALGORITHMS


class Provider(QgsProcessingProvider):
    """CLIPPan in the toolbox. It always offers every algorithm: hiding one would break saved models."""

    def id(self):
        """See QgsProcessingProvider."""
        return "clippan"

    def name(self):
        """See QgsProcessingProvider."""
        return "CLIPPan"

    def longName(self):
        """See QgsProcessingProvider."""
        return "CLIPPan for QGIS"

    def icon(self):
        """See QgsProcessingProvider."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self):
        """See QgsProcessingProvider."""
        return str(places.RESOURCES / "icon.svg")

    def supportedOutputRasterLayerExtensions(self):
        """Only GeoTIFF is written."""
        return ["tif", "tiff"]

    def defaultRasterFileExtension(self):
        """See QgsProcessingProvider."""
        return "tif"

    def loadAlgorithms(self):
        """See QgsProcessingProvider."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

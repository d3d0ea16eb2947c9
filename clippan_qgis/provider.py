"""The Processing provider."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import paths
from .algorithms import ALGORITHMS


class Provider(QgsProcessingProvider):
    """CLIPPan in the toolbox. It always offers every algorithm: hiding one would break saved models."""

    def id(self):
        return "clippan"

    def name(self):
        return "CLIPPan"

    def longName(self):
        return "CLIPPan for QGIS"

    def icon(self):
        return QIcon(self.svgIconPath())

    def svgIconPath(self):
        return str(paths.RESOURCES / "icon.svg")

    def supportedOutputRasterLayerExtensions(self):
        """Only GeoTIFF is written."""
        return ["tif", "tiff"]

    def defaultRasterFileExtension(self):
        return "tif"

    def loadAlgorithms(self):
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

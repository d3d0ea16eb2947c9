"""What the algorithms about maps by text share: the raster, the classes, and how the model looks at them."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from clippan.core import texts
from clippan.jobs import SegmentRequest

from .. import sources
from . import base


class PromptAlgorithm(base.JobAlgorithm):
    """An algorithm that looks at a raster with a table of prompts."""

    INPUT = "INPUT"
    CLASSES = "CLASSES"
    WINDOW = "WINDOW"
    FLIPS = "FLIPS"
    BIAS = "BIAS"

    GROUP = "Segmentation"

    def add_input(self, help_text: str) -> None:
        """INPUT, CLASSES and MODEL: what everybody chooses."""
        self.add(QgsProcessingParameterRasterLayer(self.INPUT, "Raster"), help_text)
        classes = QgsProcessingParameterString(self.CLASSES, "Classes")
        classes.setMetadata({"widget_wrapper": {"class": base.PROMPTS_WIDGET}})
        self.add(
            classes,
            "The classes of the map, in English. As text: classes between semicolons, other words for the same class "
            "between commas, as in “water; forest, trees; building, roof”; or the path of a .txt file of them, one a "
            "line. With colours, descriptions and thresholds: JSON, or the path of a .json file, as the table saves "
            "it.",
        )
        self.add_model(
            "Which model looks at the raster. The starter model comes with the plugin and knows words for land cover "
            "and land use; larger ones (Download model) know much more.",
            SegmentRequest.model,
        )

    def add_looking(self) -> None:
        """How the model looks at the raster."""
        self.add(
            QgsProcessingParameterString(self.WINDOW, "Window (pixels), such as 128 or 128, 256", optional=True),
            "How much the model sees at a time, as the edge of a square. Smaller windows show smaller things, larger "
            "ones more of the surroundings; several are averaged. Empty means what suits the model and the pixel size.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterBoolean(self.FLIPS, "Look at mirrored pictures too", SegmentRequest.flips),
            "Averages over four mirrored pictures, which is a little more exact and takes four times as long.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber(
                *(self.BIAS, "Bias of the whole window", Qgis.ProcessingNumberParameterType.Double, None),
                optional=True,
                minValue=-1,
                maxValue=1,
            ),
            "What a window shows as a whole colours each of its places; a negative part of it, such as -0.3, is added "
            "to each of them, so that small things stand out. Empty means what suits the model; 0 leaves it as it is.",
            advanced=True,
        )
        self.add_picture_bands()
        self.add_stretch()
        self.add_nodata(advanced=True)
        self.add_device()
        self.add_threads()

    def classes(self, parameters, context) -> str:
        """The prompt table of CLASSES."""
        text = self.parameterAsString(parameters, self.CLASSES, context).strip()
        path = texts.file_of(text)
        return sources.absolute(path) if path else text

    def looking(self, parameters, context) -> dict[str, Any]:
        """The values that a request for a map and one for a calibration share."""
        window = base.numbers(self.parameterAsString(parameters, self.WINDOW, context), "window")
        return {
            "classes": self.classes(parameters, context),
            "model": self.model(parameters, context),
            "window": tuple(round(edge) for edge in window),
            "flips": self.parameterAsBool(parameters, self.FLIPS, context),
            "bias": self.number(parameters, self.BIAS, context),
            "bands": self.bands(parameters, context),
            "stretch": self.stretch(parameters, context),
            "nodata": self.nodata(parameters, context),
            "threads": self.threads(parameters, context),
            "device": self.device(parameters, context),
        }

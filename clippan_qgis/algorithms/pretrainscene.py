"""clippan:pretrainscene"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import QgsProcessingOutputNumber, QgsProcessingOutputString, QgsProcessingParameterFileDestination

from clippan.jobs import PretrainSceneRequest

from .. import sources
from .scene import SceneAlgorithm

FILES = "Pre-trained scenes (*.safetensors)"


class PretrainScene(SceneAlgorithm):
    """Learns what a scene looks like, for classifications to start from."""

    OUTPUT = "OUTPUT"

    NAME = "pretrainscene"
    TITLE = "Pre-train on a scene"
    TAGS = ("classification", "train", "pre-train", "diffclip", "unsupervised", "hyperspectral", "lidar", "model")
    HELP = (
        "Learns what a scene looks like, without any labelled place: parts of it are hidden, and a network learns to "
        "fill them in from what is around (DiffCLIP). So it gets to know which values occur together. All rasters "
        "teach the same network.\n\n"
        "The outcome is a small file: choose it as the pre-trained scene in “Classify from few samples”, for the same "
        "rasters. That is worth while when you classify a scene several times, with other samples or other classes: "
        "the long part is then done once. For a single map it is not needed, the classification does it by itself.\n\n"
        "It takes minutes on a graphics card, and longer without one."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_rasters()
        self.add_learning()
        self.add(
            QgsProcessingParameterFileDestination(self.OUTPUT, "Pre-trained scene", FILES),
            "The file to write. “Classify from few samples” takes it with the same rasters in the same order.",
        )
        self.addOutput(QgsProcessingOutputNumber("STEPS_DONE", "Steps"))
        self.addOutput(QgsProcessingOutputNumber("LOSS", "Part of what was hidden that is not filled in (0 is best)"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return PretrainSceneRequest(output="", **self.scene(parameters, context))

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        return replace(request, output=sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context)))

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        bands = " + ".join(str(count) for count in answer["modalities"])
        loss = float(answer["loss"])
        feedback.pushInfo(
            f"{bands} bands, {answer['steps']} steps in {answer['seconds']:.0f} s on {answer['device']}; of the "
            f"variance of what is hidden, {1 - loss:.0%} is filled in rightly"
        )
        return {
            self.OUTPUT: answer["output"],
            "STEPS_DONE": answer["steps"],
            "LOSS": loss,
            "DEVICE_USED": answer["device"],
        }

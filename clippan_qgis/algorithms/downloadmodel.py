"""clippan:downloadmodel"""

from __future__ import annotations

from qgis.core import QgsProcessingOutputString, QgsProcessingParameterBoolean

from clippan.catalogue.models import MODELS
from clippan.jobs import DownloadModelRequest

from . import base


class DownloadModel(base.JobAlgorithm):
    """Fetches a model's weights from the Hugging Face Hub."""

    MODEL = "MODEL"
    ACCEPT_LICENCE = "ACCEPT_LICENCE"

    NAME = "downloadmodel"
    TITLE = "Download model"
    GROUP = "Models"
    TAGS = ("clip", "weights", "hub", "hugging face", "farslip", "remoteclip", "offline")
    HELP = (
        "Fetches the weights of a vision-language model from the Hugging Face Hub into the cache folder, unless they "
        "are there already. A download that was cut goes on where it stopped; what arrives is checked (sha256), and "
        "its version is recorded, so that every later download brings the same.\n\n"
        "The list names each model's licence and size. Without network, put the file into the offline folder that the "
        "options name. Hub address, token, cache and offline folder: Settings ▸ Options ▸ CLIPPan."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        models = [model for model in MODELS.values() if model.repository]
        labels = {model.id: f"{model.label} ({model.size / 1e6:.0f} MB, {model.licence})" for model in models}
        about = "\n".join(f"{model.label}: {model.notes}" for model in models)
        self.add(base.choice(self.MODEL, "Model", labels, next(iter(labels))), about)
        self.add(
            QgsProcessingParameterBoolean(self.ACCEPT_LICENCE, "I accept the model's licence", False),
            "Needed only for licences that ask for more than naming the authors; the log names licence and address.",
        )
        self.addOutput(QgsProcessingOutputString("FILE", "Weights"))
        self.addOutput(QgsProcessingOutputString("REVISION", "Version (commit)"))
        self.addOutput(QgsProcessingOutputString("SHA256", "Checksum (sha256)"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return DownloadModelRequest(
            self.parameterAsEnumString(parameters, self.MODEL, context),
            self.parameterAsBoolean(parameters, self.ACCEPT_LICENCE, context),
        )

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        feedback.pushInfo(f"The model is in {answer['path']}.")
        return {"FILE": answer["path"], "REVISION": answer["revision"] or "", "SHA256": answer["sha256"]}

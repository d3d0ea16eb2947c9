"""clippan:listmodels"""

from __future__ import annotations

from qgis.core import QgsProcessingOutputNumber, QgsProcessingOutputString

from clippan.jobs import ListModelsRequest

from . import base


class ListModels(base.JobAlgorithm):
    """Says which models there are, and which are on this machine."""

    NAME = "listmodels"
    TITLE = "List models"
    GROUP = "Models"
    TAGS = ("clip", "weights", "hub", "cache", "licence", "farslip", "remoteclip")
    HELP = (
        "Lists the vision-language models that CLIPPan knows: what each is good for, its licence and size, and whether "
        "it is on this machine (in the cache or in the offline folder). The network is not used.\n\n"
        "“Download model” fetches one; the options (Settings ▸ Options ▸ CLIPPan) remove one."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.addOutput(QgsProcessingOutputString("INSTALLED", "Models on this machine"))
        self.addOutput(QgsProcessingOutputString("FOLDER", "Folder of downloaded models"))
        self.addOutput(QgsProcessingOutputNumber("SIZE", "Size of the folder (bytes)"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return ListModelsRequest()

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        rows = [("Model", "Id", "MB", "Licence", "Here")]
        rows += [
            (row["label"], row["id"], f"{row['size'] / 1e6:.0f}", row["licence"], row["place"] or "no")
            for row in answer["models"]
        ]
        base.tell(feedback, rows)
        for row in answer["models"]:
            feedback.pushInfo(f"{row['label']}: {row['notes']}")
        installed = [row["id"] for row in answer["models"] if row["place"]]
        return {"INSTALLED": ",".join(installed), "FOLDER": answer["folder"], "SIZE": answer["size"]}

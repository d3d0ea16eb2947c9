"""What the algorithms that make a model of one's own share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Union

from qgis.core import QgsProcessingParameterFileDestination, QgsProcessingParameterFolderDestination

from clippan.jobs import AlignSensorRequest, FinetuneClipRequest

from .. import sources
from . import base


class TrainingAlgorithm(base.JobAlgorithm):
    """An algorithm that writes a folder with a model, and a report of how well it went."""

    SIZE = "SIZE"
    HELD = "HELD"
    EPOCHS = "EPOCHS"
    STEPS = "STEPS"
    BATCH = "BATCH"
    RATE = "RATE"
    WEIGHT_DECAY = "WEIGHT_DECAY"
    OUTPUT = "OUTPUT"
    REPORT = "REPORT"

    GROUP = "Models"

    def add_training(self, job: type[Union[AlignSensorRequest, FinetuneClipRequest]], fewest: int) -> None:
        """How it is trained, with a job's defaults; ``fewest``: pictures of a step."""
        self.add_number(
            *(self.EPOCHS, "Rounds", int, job.epochs),
            "How often it looks at every picture. More takes longer, and with few pictures learns them by heart. At "
            "least 40 steps are taken.",
            least=1,
            advanced=False,
        )
        self.add_number(
            *(self.STEPS, "Steps, in place of rounds", int, job.steps),
            "How often the model is corrected in all. Empty means as the rounds say.",
            least=1,
        )
        self.add_number(
            *(self.BATCH, "Pictures of a step", int, job.batch),
            "How many pictures are looked at before each correction; fewer need less memory and time.",
            least=fewest,
        )
        self.add_number(
            *(self.RATE, "Learning rate", float, job.rate),
            "How far each correction goes at most: too little learns nothing, too much unlearns what was known.",
            least=1e-9,
        )
        self.add_number(
            *(self.WEIGHT_DECAY, "Weight decay", float, job.weight_decay),
            "How strongly the numbers in the model are held small, which keeps it from learning pictures by heart.",
            *(0, 100),
        )
        self.add_seed(job.seed)
        self.add_picture_bands()
        self.add_stretch()
        self.add_nodata(advanced=True)
        self.add_device()
        self.add_threads()
        self.add(
            QgsProcessingParameterFolderDestination(self.OUTPUT, "Trained model"),
            "The folder to write: the model in the form of open_clip. Choose it as “Own model” elsewhere.",
        )
        self.add(
            QgsProcessingParameterFileDestination(
                self.REPORT, "Report", "HTML files (*.html)", optional=True, createByDefault=True
            ),
            "A web page that says what was learned and how well, with pictures.",
        )

    def training(self, parameters, context) -> dict[str, Any]:
        """The values of a request that say how it is trained."""
        return {
            "model": self.model(parameters, context),
            "held": self.parameterAsDouble(parameters, self.HELD, context),
            "size": self.parameterAsInt(parameters, self.SIZE, context),
            "epochs": self.parameterAsInt(parameters, self.EPOCHS, context),
            "steps": self.count(parameters, self.STEPS, context),
            "batch": self.parameterAsInt(parameters, self.BATCH, context),
            "rate": self.parameterAsDouble(parameters, self.RATE, context),
            "weight_decay": self.parameterAsDouble(parameters, self.WEIGHT_DECAY, context),
            "seed": self.parameterAsInt(parameters, base.SEED, context),
            "bands": self.bands(parameters, context),
            "stretch": self.stretch(parameters, context),
            "nodata": self.nodata(parameters, context),
            "threads": self.threads(parameters, context),
            "device": self.device(parameters, context),
        }

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        return replace(
            request,
            output=sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context)),
            report=sources.absolute(self.parameterAsFileOutput(parameters, self.REPORT, context)),
        )

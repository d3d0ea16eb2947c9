"""clippan:trainregionalignedclip"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingMultiStepFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)

from clippan.core.errors import ClippanError
from clippan.jobs import RegionsRequest, TrainClipRequest

from .. import sources
from ..engine import worker
from . import base

_BATCH = 8  # the engine's own default takes 14 GB of memory with the starter model, more than laptops have
STAGES = {"both": (1, 2), "first": (1,), "second": (2,)}


class TrainRegionAlignedClip(base.JobAlgorithm):
    """Trains a vision-language model to know the places in a picture."""

    INPUT = "INPUT"
    SAMPLES = "SAMPLES"
    FIELD = "FIELD"
    STAGE = "STAGE"
    STEPS = "STEPS"
    BATCH = "BATCH"
    RATE = "RATE"
    SIZE = "SIZE"
    LEAST = "LEAST"
    SEED = "SEED"
    OUTPUT = "OUTPUT"

    NAME = "trainregionalignedclip"
    TITLE = "Train region-aligned CLIP"
    GROUP = "Models"
    TAGS = ("train", "fine-tune", "clip", "farslip", "model", "segmentation", "classes", "regions")
    HELP = (
        "Makes a model of your own from one of the list and from polygons whose class you know: one that tells the "
        "places in a picture apart better, in your raster and for your classes. It is trained as FarSLIP is: first the "
        "parts of a picture have to look to the model like what they are alone, then each object has to fit the words "
        "of its class better than those of the others.\n\n"
        "The outcome is a folder: choose it as “Own model” in Segment by text, Calibrate prompts and Build tile "
        "index.\n\n"
        "This is for small trainings: some hundred polygons and the starter model, which take minutes to an hour "
        "without a graphics card. Larger ones, with many rasters or pictures with captions, run outside of QGIS: "
        "“clippan train clip”. If the words are known but some classes take too much of the map, Calibrate prompts "
        "is quicker."
    )

    def __init__(self):
        super().__init__()
        self._regions = None

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add(QgsProcessingParameterRasterLayer(self.INPUT, "Raster"), "The raster that the labelled places lie in.")
        self.add(
            QgsProcessingParameterFeatureSource(
                self.SAMPLES, "Labelled polygons", [Qgis.ProcessingSourceType.VectorPolygon]
            ),
            "Objects and their classes, in any coordinate system; at choice only those that are selected. The more, "
            "and the more different, the better.",
        )
        self.add(
            QgsProcessingParameterField(self.FIELD, "Field with the class", "class", self.SAMPLES),
            "Holds the name of the class, in English words such as “solar panels”: the model learns with them.",
        )
        self.add_model("Which model to start from; its licence holds for what is made of it.", TrainClipRequest.model)
        labels = {
            "both": "Both, one after the other",
            "first": "1: parts of pictures alone",
            "second": "2: objects and their classes alone",
        }
        self.add(
            base.choice(self.STAGE, "Stages", labels, "both"),
            "The first stage teaches to see in a part of a picture what it shows alone, the second the classes.",
            advanced=True,
        )
        integer, double = Qgis.ProcessingNumberParameterType.Integer, Qgis.ProcessingNumberParameterType.Double
        for name, label, kind, value, least, help_text, advanced in (
            (
                *(self.STEPS, "Steps of each stage", integer, 100, 1),
                "How often the model is corrected. More takes longer, and with few polygons learns them by heart.",
                False,
            ),
            (
                *(self.BATCH, "Pictures of a step", integer, _BATCH, 2),
                "How many pictures are looked at before each correction; fewer need less memory and time.",
                True,
            ),
            (
                *(self.RATE, "Learning rate", double, TrainClipRequest.rate, 1e-9),
                "How far each correction goes at most; too much makes the model forget what it knew.",
                True,
            ),
            (
                *(self.SIZE, "Edge of the pictures (pixels)", integer, RegionsRequest.size, 16),
                "The raster is cut into pictures of this size, as large as an object with its surroundings.",
                True,
            ),
            (
                *(self.LEAST, "Smallest object (pixels)", integer, RegionsRequest.least, 1),
                "Objects whose shorter edge is less are left out.",
                True,
            ),
            (
                *(self.SEED, "Seed", integer, TrainClipRequest.seed, 0),
                "Decides what is looked at in which order; another number gives a slightly different model.",
                True,
            ),
        ):
            self.add(
                QgsProcessingParameterNumber(name, label, kind, value, minValue=least), help_text, advanced=advanced
            )
        self.add_picture_bands()
        self.add_stretch()
        self.add_nodata(advanced=True)
        self.add_device()
        self.add_threads()
        self.add(
            QgsProcessingParameterFolderDestination(self.OUTPUT, "Trained model"),
            "The folder to write: the model in the form of open_clip, and how the training went.",
        )
        self.addOutput(QgsProcessingOutputNumber("PICTURES", "Pictures"))
        self.addOutput(QgsProcessingOutputNumber("OBJECTS", "Objects"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        least = self.parameterAsInt(parameters, self.LEAST, context)
        self._regions = RegionsRequest(
            rasters=(self.source(parameters, self.INPUT, context),),
            labels=(),
            output="",
            field=self.parameterAsString(parameters, self.FIELD, context),
            size=self.parameterAsInt(parameters, self.SIZE, context),
            least=least,
            bands=self.bands(parameters, context),
            stretch=self.stretch(parameters, context),
            nodata=self.nodata(parameters, context),
        )
        return TrainClipRequest(
            data=(),
            output="",
            model=self.model(parameters, context),
            stages=STAGES[self.parameterAsEnumString(parameters, self.STAGE, context)],
            steps=self.parameterAsInt(parameters, self.STEPS, context),
            batch=self.parameterAsInt(parameters, self.BATCH, context),
            rate=self.parameterAsDouble(parameters, self.RATE, context),
            least=least,
            seed=self.parameterAsInt(parameters, self.SEED, context),
            threads=self.threads(parameters, context),
            device=self.device(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        labels = self.places(parameters, self.SAMPLES, self._regions.field, context)
        output = sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context))
        # In the run's folder, as a run that is gone on with has to find them where they were.
        pictures = Path(output, "pictures")
        self._regions = replace(self._regions, labels=(labels,), output=str(pictures))
        return replace(request, data=(str(pictures),), output=output)

    def work(self, feedback):
        """See JobAlgorithm."""
        steps = QgsProcessingMultiStepFeedback(2, feedback)
        made = self._pictures(steps)
        for sentence in made["hints"]:
            feedback.pushWarning(sentence)
        rows = [("Class", "Objects"), *((name, str(count)) for name, count in made["objects"].items())]
        base.tell(feedback, rows)
        steps.setCurrentStep(1)
        return worker.shared.run(self._launch, self._request, steps)

    def _pictures(self, feedback) -> dict[str, Any]:
        """Makes the pictures to train on anew; leaves no folder behind if there are none."""
        pictures = Path(self._regions.output)
        fresh = not pictures.parent.exists()
        try:
            pictures.parent.mkdir(exist_ok=True)
            if (pictures / "regions.json").exists():
                shutil.rmtree(pictures)
        except OSError as error:
            raise ClippanError(
                f"The folder {pictures.parent} cannot be made ({error.strerror}); choose another."
            ) from None
        try:
            self._regions.validate()
            return worker.shared.run(self._launch, self._regions, feedback)
        except ClippanError:
            if fresh:
                with contextlib.suppress(OSError):
                    pictures.parent.rmdir()
            raise

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        losses = ", ".join(f"{name} {float(value):.4f}" for name, value in answer["losses"].items())
        feedback.pushInfo(
            f"{answer['pictures']} pictures, {answer['objects']} objects, {sum(answer['steps'])} steps in "
            f"{answer['seconds']:.0f} s on {answer['device']}; {losses}"
        )
        return {
            self.OUTPUT: answer["model"],
            "PICTURES": answer["pictures"],
            "OBJECTS": answer["objects"],
            "DEVICE_USED": answer["device"],
        }

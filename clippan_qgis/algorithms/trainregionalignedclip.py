from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

from qgis.core import Qgis, QgsProcessingMultiStepFeedback

from clippan.core.errors import ClippanError
from clippan.jobs import RegionsRequest, RegionsResult, TrainClipRequest

from ..engine import worker
from ..i18n import tr
from . import base
from .parameters import JobParameters, OneRasterAdapter, ParameterAdapter, SamplesAdapter, choice_parameter

_STAGES = {"both": (1, 2), "first": (1,), "second": (2,)}


class _StagesAdapter(ParameterAdapter):
    def definition(self):
        labels = {
            "both": tr("Both stages, one after the other"),
            "first": tr("Stage 1 only: parts of pictures"),
            "second": tr("Stage 2 only: objects and their classes"),
        }
        return choice_parameter(self.name, self.label, labels, "both")

    def value(self, parameters, context):
        return _STAGES[self.algorithm.parameterAsEnumString(parameters, self.name, context)]


class _OutlinesAdapter(SamplesAdapter):
    geometries = (Qgis.ProcessingSourceType.VectorPolygon,)


# The pictures to train on, which the algorithm makes first.
_REGIONS = JobParameters(
    RegionsRequest,
    names={"rasters": "INPUT", "labels": "SAMPLES"},
    hidden={"output", "legend", "layer", "overlap", "fill", "format"},
    adapters={"rasters": OneRasterAdapter, "labels": _OutlinesAdapter},
)


class TrainRegionAlignedClip(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        TrainClipRequest,
        names={"stages": "STAGE"},
        hidden={
            *("data", "method", "epochs", "weight_decay", "warmup", "teacher", "target", "weight", "crops", "least"),
            *("pixels", "train_text", "caption", "precision"),
        },
        adapters={"stages": _StagesAdapter},
        defaults={"steps": 100, "batch": 8},  # the engine's own batch takes 14 GB of memory with the starter model
    )
    RESULT_VALUES = (
        base.ResultValue("PICTURES", "Pictures", lambda result: result.pictures),
        base.ResultValue("OBJECTS", "Objects", lambda result: result.objects),
        base.DEVICE_USED,
    )

    NAME = "trainregionalignedclip"
    GROUP = "Models"
    TAGS = ("train", "fine-tune", "clip", "farslip", "model", "segmentation", "classes", "regions")
    HELP = (
        "Trains a model of the list on polygons whose class you know, so that it better distinguishes the places "
        "within a picture, in your raster and for your classes. The training has two stages, as in FarSLIP. In stage "
        "1, the model learns to describe each part of a picture as it describes that part on its own. In stage 2, it "
        "learns to match each object with the words of its class rather than with those of other classes.\n\n"
        "The result is a folder. Choose it as “Own model” in Segment by text, Calibrate prompts and Build tile "
        "index.\n\n"
        "The algorithm is meant for small trainings. With some hundred polygons and the starter model, a training "
        "takes minutes to an hour without a graphics card. For larger trainings, with many rasters or with captioned "
        "pictures, use “clippan train clip” on the command line. If the model knows the words but some classes take "
        "too much of the map, Calibrate prompts is faster."
    )
    _regions = None  # the request for the pictures

    def initAlgorithm(self, configuration=None):
        _REGIONS.declare(self)
        super().initAlgorithm(configuration)

    def build(self, parameters, context):
        self._regions = _REGIONS.request(self, parameters, context, output="")
        return self.PARAMETERS.request(self, parameters, context, data=(), least=self._regions.least)

    def resolve_outputs(self, request, parameters, context):
        request = super().resolve_outputs(request, parameters, context)
        # In the run's folder, as a run that is resumed has to find them where they were.
        pictures = str(Path(request.output, "pictures"))
        values = _REGIONS.values(self, parameters, context, read_at_run=True)
        self._regions = replace(self._regions, **values, output=pictures)
        return replace(request, data=(pictures,))

    def run_job(self, feedback):
        steps = QgsProcessingMultiStepFeedback(2, feedback)
        made = self._make_pictures(steps)
        base.log_result(feedback, made)
        steps.setCurrentStep(1)
        return worker.shared_worker.run(self._launch, self._request, steps)

    def _make_pictures(self, feedback) -> RegionsResult:
        """Makes the pictures to train on anew; leaves no folder behind if there are none."""
        pictures = Path(self._regions.output)
        fresh = not pictures.parent.exists()
        try:
            pictures.parent.mkdir(exist_ok=True)
            if (pictures / "regions.json").exists():
                shutil.rmtree(pictures)
        except OSError as error:
            raise ClippanError(
                "The folder {folder} cannot be created ({reason}); choose another.",
                folder=pictures.parent,
                reason=error.strerror,
            ) from None
        try:
            self._regions.validate()
            return worker.shared_worker.run(self._launch, self._regions, feedback)
        except ClippanError:
            if fresh:
                with contextlib.suppress(OSError):
                    pictures.parent.rmdir()
            raise

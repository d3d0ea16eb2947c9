from __future__ import annotations

from clippan.core.messages import Message
from clippan.jobs import ADAPTATION_FIGURES, FIGURES, AdaptFusionRequest

from ..i18n import tr
from . import base
from .parameters import JobParameters, ModelAdapter, choice_parameter

_NO_CLIP = "none"


class _SupervisorAdapter(ModelAdapter):
    """The CLIP that supervises, or none."""

    folder_title = Message("Own CLIP")

    def definition(self):
        return choice_parameter(self.name, self.label, self.labels, _NO_CLIP)

    @property
    def labels(self):
        return {**super().labels, _NO_CLIP: tr("None")}

    def value(self, parameters, context):
        chosen = super().value(parameters, context)
        return "" if chosen == _NO_CLIP else chosen


def _figure(name: str, when: str) -> base.ResultValue:
    figure = FIGURES[name][0]
    labels = {"before": Message("{figure}, before", figure=figure), "after": Message("{figure}, after", figure=figure)}
    return base.ResultValue(f"{name}_{when}".upper(), labels[when], lambda result: getattr(result, when)[name])


class AdaptFusionModel(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        AdaptFusionRequest, names={"ms": "SPECTRAL", "pan": "PANCHROMATIC"}, adapters={"clip": _SupervisorAdapter}
    )
    RESULT_VALUES = (
        *(_figure(name, when) for name in ADAPTATION_FIGURES for when in ("before", "after")),
        base.ResultValue(
            "IMPROVED", "Better than the start model (1) or a copy of it (0)", lambda result: int(result.improved)
        ),
        base.ResultValue("STEPS_DONE", "Steps until the model that was kept", lambda result: result.steps),
        base.SENSOR_USED,
        base.DEVICE_USED,
    )

    NAME = "adaptfusionmodel"
    GROUP = "Pansharpening"
    TAGS = ("pan", "sharpen", "fusion", "train", "fine-tune", "adapt", "clip", "unsupervised", "model", "network")
    HELP = (
        "Fine-tunes the network that Pansharpen uses to your scene, for a further gain in quality. No reference is "
        "needed. The network learns from the scene itself: its result, degraded to the resolution of the multispectral "
        "raster, has to match that raster, and its fine detail has to match the panchromatic raster.\n\n"
        "The result is a small file. Choose it as the fusion model in Pansharpen, for this scene or for other scenes "
        "of the same sensor with the same bands.\n\n"
        "The adaptation takes at most a minute by default. In large scenes, only the most informative places are "
        "read. The log shows the quality before and after: HQNR at full resolution (best 1), and Q2n (best 1), SAM and "
        "ERGAS (best 0) at reduced resolution, with the multispectral raster as the reference. A model that makes the "
        "colours worse is never kept. If there is no gain, the output is a copy of the start model, and the result "
        "“Better than the start model” is 0, so that models and batches go on."
    )

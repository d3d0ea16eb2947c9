"""clippan:adaptfusionmodel"""

from __future__ import annotations

from clippan.core.messages import Message
from clippan.jobs import ADAPTED, FIGURES, AdaptFusionRequest

from ..i18n import tr
from . import base
from .parameters import ModelEditor

_NO_CLIP = "none"


class _SupervisorEditor(ModelEditor):
    """The CLIP that supervises, or none."""

    def labels(self, item):
        """With none."""
        return {**super().labels(item), _NO_CLIP: tr("None")}

    def value(self, algorithm, item, name, parameters, context):
        """Empty for none."""
        chosen = super().value(algorithm, item, name, parameters, context)
        return "" if chosen == _NO_CLIP else chosen


def _figure(name: str, when: str) -> base.Output:
    figure = Message(FIGURES[name][0])
    labels = {"before": Message("{figure}, before", figure=figure), "after": Message("{figure}, after", figure=figure)}
    return base.Output(f"{name}_{when}".upper(), labels[when], lambda result: getattr(result, when)[name])


class AdaptFusionModel(base.JobAlgorithm):
    """Tunes the network of Pansharpen to one scene."""

    JOB = AdaptFusionRequest
    NAMES = {"ms": "SPECTRAL", "pan": "PANCHROMATIC"}
    EDITORS = {"clip": _SupervisorEditor("Own CLIP")}
    OUTPUTS = (
        *(_figure(name, when) for name in ADAPTED for when in ("before", "after")),
        base.Output("STEPS_DONE", "Steps up to the model that was kept", lambda result: result.steps),
        base.SENSOR_USED,
        base.DEVICE_USED,
    )

    NAME = "adaptfusionmodel"
    TITLE = "Adapt fusion model"
    GROUP = "Pansharpening"
    TAGS = ("pan", "sharpen", "fusion", "train", "fine-tune", "adapt", "clip", "unsupervised", "model", "network")
    HELP = (
        "Tunes the network that Pansharpen uses to a scene of yours, for the last bit of quality. No reference is "
        "needed: the network learns from the scene itself that the result, made coarse again, has to be the "
        "multispectral raster, and that its fine detail has to be that of the panchromatic one. A vision-language "
        "model (CLIP) watches that the picture moves in the direction of a good fusion.\n\n"
        "The outcome is a small file: choose it as the fusion model in Pansharpen, for this scene and for others of "
        "the same sensor with the same bands.\n\n"
        "It takes up to two minutes, also for a large scene, of which only the places that tell most are read. The log "
        "shows how good the fusion is before and after: HQNR at full resolution (best 1), and Q2n (best 1), SAM and "
        "ERGAS (best 0) one scale down, where the multispectral raster is the truth. A model that makes colours worse "
        "is never written: where nothing better is found, the algorithm says so, and you go on with the model you had."
    )

"""clippan:pretrainscene"""

from __future__ import annotations

from clippan.jobs import PretrainSceneRequest

from . import base
from .parameters import GridEditor


class PretrainScene(base.JobAlgorithm):
    """Learns what a scene looks like, for classifications to start from."""

    JOB = PretrainSceneRequest
    EDITORS = {"grid": GridEditor()}
    OUTPUTS = (
        base.Output("STEPS_DONE", "Steps", lambda result: result.steps),
        base.Output(
            "LOSS", "Part of the hidden variance that is not explained (0 is best)", lambda result: result.loss
        ),
        base.DEVICE_USED,
    )

    NAME = "pretrainscene"
    TITLE = "Pre-train on a scene"
    GROUP = "Classification"
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

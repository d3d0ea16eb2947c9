from __future__ import annotations

from clippan.jobs import PretrainSceneRequest

from . import base
from .parameters import JobParameters, ReferenceRasterAdapter


class PretrainScene(base.JobAlgorithm):
    PARAMETERS = JobParameters(PretrainSceneRequest, adapters={"grid": ReferenceRasterAdapter})
    RESULT_VALUES = (
        base.ResultValue("STEPS_DONE", "Steps", lambda result: result.steps),
        base.ResultValue(
            "LOSS", "Share of the hidden variance that is not explained (best 0)", lambda result: result.loss
        ),
        base.DEVICE_USED,
    )

    NAME = "pretrainscene"
    GROUP = "Classification"
    TAGS = ("classification", "train", "pre-train", "diffclip", "unsupervised", "hyperspectral", "lidar", "model")
    HELP = (
        "Learns the appearance of a scene without labelled places. Parts of the scene are hidden, and a network learns "
        "to reconstruct them from their surroundings (DiffCLIP). It thus learns which values occur together. All "
        "rasters train the same network.\n\n"
        "The result is a small file. Choose it as the pre-trained scene in “Classify from few samples”, with the same "
        "rasters. This saves time if you classify a scene several times, with different labelled places or classes. It "
        "is not needed for a single map, because the classification does the pre-training itself.\n\n"
        "Pre-training takes minutes with a graphics card, and longer without one."
    )

from __future__ import annotations

from operator import attrgetter

from clippan.core.messages import Message
from clippan.jobs import AlignSensorRequest

from . import base
from .parameters import JobParameters


def _recalls(suffix: str, label: str, attribute: str) -> list[base.ResultValue]:
    return [
        base.ResultValue(f"RECALL_{rank}{suffix}", Message(label, rank=rank), attrgetter(f"{attribute}.at_{rank}"))
        for rank in (1, 5, 10)
    ]


class AlignSensor(base.JobAlgorithm):
    PARAMETERS = JobParameters(AlignSensorRequest, names={"teacher_rasters": "TEACHER", "sensor_rasters": "SENSOR"})
    RESULT_VALUES = (
        *_recalls("", Message("Own picture among the first {rank}, after, 0 to 1"), "to_picture"),
        *_recalls("_BEFORE", Message("Own picture among the first {rank}, before"), "before"),
        *_recalls("_CHANCE", Message("Own picture among the first {rank}, by chance"), "chance"),
        base.ResultValue("COSINE_MEAN", "Mean similarity to the teacher, -1 to 1", lambda result: result.cosine),
        base.ResultValue(
            "AGREEMENT", "Share of the places where both choose the same word, 0 to 1", lambda result: result.agreement
        ),
        base.ResultValue("CHIPS", "Training pictures", lambda result: result.chips),
        base.ResultValue("CHIPS_HELD", "Test pictures", lambda result: result.held),
        base.DEVICE_USED,
    )

    NAME = "alignsensor"
    GROUP = "Models"
    TAGS = (
        *("train", "align", "alignment", "clip", "sensor", "sar", "radar", "multispectral", "hyperspectral", "thermal"),
        *("sentinel-1", "sentinel-2", "distillation", "model", "retrieval"),
    )
    HELP = (
        "Trains a model that understands the rasters of a sensor by text: radar, thermal, or all bands of a "
        "multispectral sensor. The models in the list understand natural colours only. If you have both kinds of "
        "raster of the same places, a model for natural colours can act as the teacher: for each part of the sensor's "
        "raster, the new model learns to give the same description as the teacher gives for the picture in natural "
        "colours. No labels are needed.\n\n"
        "Choose pairs of rasters of the same places, in the same order: the first raster in natural colours belongs to "
        "the first raster of the sensor, and so on. The rasters of a pair should have about the same date. A larger "
        "area with more kinds of land cover gives a better model.\n\n"
        "The result is a folder. Choose it as “Own model” in Segment by text and Build tile index, with rasters of "
        "that sensor.\n\n"
        "The log and the report show the quality, measured at places that were not used for training: how often a part "
        "of the sensor's raster finds its own picture among all pictures in first place (R@1), or among the first 5 or "
        "10, before and after the training, and by chance."
    )

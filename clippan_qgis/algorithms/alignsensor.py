"""clippan:alignsensor"""

from __future__ import annotations

from clippan.core.messages import Message
from clippan.jobs import AlignSensorRequest

from . import base


def _recalls(suffix: str, label: str, attribute: str) -> list[base.Output]:
    return [
        base.Output(
            f"RECALL_{rank}{suffix}",
            Message(label, rank=rank),
            lambda result, rank=rank: getattr(getattr(result, attribute), f"at_{rank}"),
        )
        for rank in (1, 5, 10)
    ]


class AlignSensor(base.JobAlgorithm):
    """Makes a model for a sensor that a vision-language model does not know."""

    JOB = AlignSensorRequest
    NAMES = {"teacher_rasters": "TEACHER", "sensor_rasters": "SENSOR"}
    OUTPUTS = (
        *_recalls("", Message("Own picture among the first {rank}, after, 0 to 1"), "to_picture"),
        *_recalls("_BEFORE", Message("Own picture among the first {rank}, before"), "before"),
        *_recalls("_CHANCE", Message("Own picture among the first {rank}, by guessing"), "chance"),
        base.Output("COSINE_MEAN", "Mean similarity to the teacher, -1 to 1", lambda result: result.cosine),
        base.Output(
            "AGREEMENT", "Part of the places where both choose the same word, 0 to 1", lambda result: result.agreement
        ),
        base.Output("CHIPS", "Pictures learned from", lambda result: result.chips),
        base.Output("CHIPS_HELD", "Pictures measured with", lambda result: result.held),
        base.DEVICE_USED,
    )

    NAME = "alignsensor"
    TITLE = "Align a sensor with CLIP"
    GROUP = "Models"
    TAGS = (
        *("train", "align", "alignment", "clip", "sensor", "sar", "radar", "multispectral", "hyperspectral", "thermal"),
        *("sentinel-1", "sentinel-2", "distillation", "model", "retrieval"),
    )
    HELP = (
        "Makes a model that understands the rasters of a sensor by words: radar, thermal, or all bands of a "
        "multispectral one. Models of the list know pictures in natural colours only. Where you have both of the same "
        "place, the model for pictures is the teacher: a new model learns to say of the sensor's raster what the "
        "teacher says of the picture. No labels are needed.\n\n"
        "Give pairs of rasters of the same places: the first picture belongs to the first raster of the sensor, and so "
        "on. They should be of about the same date, and the more area and the more kinds of land, the better.\n\n"
        "The outcome is a folder: choose it as “Own model” in Segment by text and Build tile index, with rasters of "
        "that sensor.\n\n"
        "The log and the report say how well it went, at places that were not learned from: how often a part of the "
        "sensor's raster finds its own picture among all others at the first place (R@1), or under the first 5 or 10, "
        "before and after, and what guessing would give."
    )

from __future__ import annotations

from clippan.jobs import CalibrateRequest

from . import base
from .parameters import JobParameters, OneRasterAdapter


class CalibratePrompts(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        CalibrateRequest, names={"rasters": "INPUT"}, hidden={"layer"}, adapters={"rasters": OneRasterAdapter}
    )
    RESULT_VALUES = (
        base.ResultValue("ACCURACY_BEFORE", "Accuracy, before", lambda result: result.before.accuracy),
        base.ResultValue("ACCURACY_AFTER", "Accuracy, after", lambda result: result.after.accuracy),
        base.ResultValue(
            "MEAN_IOU_BEFORE", "Mean intersection over union, before", lambda result: result.before.mean_iou
        ),
        base.ResultValue("MEAN_IOU_AFTER", "Mean intersection over union, after", lambda result: result.after.mean_iou),
    )

    NAME = "calibrateprompts"
    GROUP = "Segmentation"
    TAGS = ("segmentation", "text", "prompt", "calibration", "threshold", "samples", "accuracy", "clip", "classes")
    HELP = (
        "Adjusts a table of classes to a few places whose class you know. Some words fit almost everywhere, so their "
        "classes take too much of the map and other classes too little. The calibration finds an offset for each class "
        "and a scale for the confidence. If it improves the result at places that were left out, it also adapts the "
        "meaning of the words. The model itself does not change.\n\n"
        "Draw about ten polygons or points per class, spread over the scene, with a field that holds the class: its "
        "name in the table, one of its synonyms, or its number. The result is a prompt table. Open it under “Classes” "
        "in Segment by text, or enter its path.\n\n"
        "The log and the report show the accuracy before and after. The accuracy after is measured by "
        "cross-validation, at places that the calibration did not use. It is therefore what you can expect elsewhere "
        "in the scene."
    )

"""clippan:calibrateprompts"""

from __future__ import annotations

from clippan.jobs import CalibrateRequest

from . import base
from .parameters import FieldEditor, OneRasterEditor


class CalibratePrompts(base.JobAlgorithm):
    """Fits a table of classes to a few labelled places."""

    JOB = CalibrateRequest
    NAMES = {"rasters": "INPUT"}
    HIDDEN = frozenset({"layer"})
    EDITORS = {"rasters": OneRasterEditor(), "field": FieldEditor("class")}
    OUTPUTS = (
        base.Output("ACCURACY_BEFORE", "Accuracy, before", lambda result: result.before.accuracy),
        base.Output("ACCURACY_AFTER", "Accuracy, after", lambda result: result.after.accuracy),
        base.Output("MEAN_IOU_BEFORE", "Mean intersection over union, before", lambda result: result.before.mean_iou),
        base.Output("MEAN_IOU_AFTER", "Mean intersection over union, after", lambda result: result.after.mean_iou),
    )

    NAME = "calibrateprompts"
    TITLE = "Calibrate prompts"
    GROUP = "Segmentation"
    TAGS = ("segmentation", "text", "prompt", "calibration", "threshold", "samples", "accuracy", "clip", "classes")
    HELP = (
        "Fits a table of classes to a few places whose class you know. Some words fit everything a little: they take "
        "too much of the map, and others too little. This finds what to add to each class, and how sure the model may "
        "be of itself; where places left out show that it helps, also what the words mean to this model. The model "
        "stays as it is.\n\n"
        "Draw some ten polygons (or points) a class, spread over the scene, with a field that holds the class: by its "
        "name in the table, another of its words, or its number. The outcome is a prompt table: open it under "
        "“Classes” in Segment by text, or give its path.\n\n"
        "The log and the report say how good the map is before and after. The figures after are of places that the "
        "calibration had not seen (cross-validation), so they are what you may expect elsewhere in the scene."
    )

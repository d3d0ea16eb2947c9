"""clippan:calibrateprompts"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
)

from clippan.jobs import CalibrateRequest

from .. import sources
from . import base
from .segmentation import PromptAlgorithm


class CalibratePrompts(PromptAlgorithm):
    """Fits a prompt table to a few labelled places."""

    SAMPLES = "SAMPLES"
    FIELD = "FIELD"
    REPORT = "REPORT"
    OUTPUT = "OUTPUT"

    NAME = "calibrateprompts"
    TITLE = "Calibrate prompts"
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

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_input("The raster that the labelled places lie in.")
        self.add(
            QgsProcessingParameterFeatureSource(
                self.SAMPLES,
                "Labelled places",
                [Qgis.ProcessingSourceType.VectorPolygon, Qgis.ProcessingSourceType.VectorPoint],
            ),
            "Polygons or points of any layer, in any coordinate system; at choice only those that are selected.",
        )
        self.add(
            QgsProcessingParameterField(self.FIELD, "Field with the class", "class", self.SAMPLES),
            "Holds the name of the class, another of its words, or its number in the table, from 1.",
        )
        self.add_looking()
        self.add(
            QgsProcessingParameterFileDestination(self.OUTPUT, "Calibrated classes", "Prompt tables (*.json)"),
            "The table to write. Segment by text takes it as its classes, with the same model.",
        )
        self.add(
            QgsProcessingParameterFileDestination(
                self.REPORT, "Report", "HTML files (*.html)", optional=True, createByDefault=True
            ),
            "A web page with the accuracy before and after, and what is taken for what.",
        )
        for name, label in (("ACCURACY", "Accuracy"), ("MEAN_IOU", "Mean intersection over union")):
            for when in ("before", "after"):
                self.addOutput(QgsProcessingOutputNumber(f"{name}_{when}".upper(), f"{label}, {when}"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return CalibrateRequest(
            rasters=(self.source(parameters, self.INPUT, context),),
            samples=(),
            output="",
            field=self.parameterAsString(parameters, self.FIELD, context),
            **self.looking(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        return replace(
            request,
            samples=(self.places(parameters, self.SAMPLES, request.field, context),),
            output=sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context)),
            report=sources.absolute(self.parameterAsFileOutput(parameters, self.REPORT, context)),
        )

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        before, after = answer["before"], answer["after"]
        rows = [("Class", "Labelled pixels", "IoU before", "IoU after")]
        columns = (answer["classes"], answer["labelled"], before["iou"], after["iou"])
        rows += [(name, str(count), _figure(old), _figure(new)) for name, count, old, new in zip(*columns)]
        rows.append(("mean", str(sum(answer["labelled"])), _figure(before["mean_iou"]), _figure(after["mean_iou"])))
        base.tell(feedback, rows)
        feedback.pushInfo(f"Accuracy: {before['accuracy']:.1%} before, {after['accuracy']:.1%} after")
        results = {
            self.OUTPUT: answer["output"],
            "ACCURACY_BEFORE": before["accuracy"],
            "ACCURACY_AFTER": after["accuracy"],
            "MEAN_IOU_BEFORE": before["mean_iou"],
            "MEAN_IOU_AFTER": after["mean_iou"],
        }
        return {**results, self.REPORT: answer["report"]} if answer["report"] else results


def _figure(value) -> str:
    return "–" if value is None else f"{float(value):.3f}"

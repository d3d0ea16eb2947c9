from __future__ import annotations

from functools import partial

from clippan.jobs import ClassifyRequest

from .. import classmap
from . import base
from .parameters import JobParameters, ReferenceRasterAdapter


def _accuracy(name: str, label: str, attribute: str) -> base.ResultValue:
    return base.ResultValue(name, label, lambda result: result.accuracy and getattr(result.accuracy, attribute))


class ClassifyFewSamples(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        ClassifyRequest,
        names={"encoder": "PRETRAINED", "save_encoder": "OUTPUT_PRETRAINED"},
        hidden={"layer"},
        adapters={"grid": ReferenceRasterAdapter},
        defaults={"field": "class"},
    )
    RESULT_VALUES = (
        _accuracy("OA", "Overall accuracy, 0 to 1", "oa"),
        _accuracy("OA_STD", "Standard deviation of the overall accuracy", "std"),
        _accuracy("AA", "Average accuracy of the classes, 0 to 1", "aa"),
        _accuracy("KAPPA", "Kappa, -1 to 1", "kappa"),
        base.ResultValue(
            "CLASS_COUNT", "Classes found", lambda result: sum(item.pixels > 0 for item in result.classes)
        ),
        base.ResultValue("METHOD_USED", "Method used", lambda result: result.method.value, number=False),
        base.MODEL_USED,
        base.DEVICE_USED,
    )

    NAME = "classifyfewsamples"
    GROUP = "Classification"
    TAGS = (
        *("classification", "supervised", "few-shot", "samples", "training", "land cover", "map", "accuracy", "kappa"),
        *("svm", "random forest", "diffclip", "clip", "hyperspectral", "lidar", "sar", "crops"),
    )
    HELP = (
        "Maps classes from a few labelled places: about five to thirty points or small polygons per class, spread over "
        "the scene, with a field that holds the class. Any rasters of the same place can be used together, such as "
        "multispectral, hyperspectral, radar and elevation.\n\n"
        "Which method is best depends on the scene. By default, all methods are compared by cross-validation on your "
        "labelled places, and the one with the highest overall accuracy makes the map. The log and the report show the "
        "overall accuracy (OA), the average accuracy of the classes (AA) and kappa of each method. Cross-validation "
        "leaves out whole polygons or blocks, never single pixels next to those used for training. The figures are "
        "therefore what you can expect elsewhere in the scene.\n\n"
        "The map is a raster with one value per class, and is loaded with class names and colours. A confidence raster "
        "and a table of areas are optional. DiffCLIP first learns the appearance of the scene, which takes minutes. If "
        "you make several maps of a scene, “Pre-train on a scene” does this once for all of them.\n\n"
        "“Segment by text” maps classes by their names, without labelled places."
    )

    def postProcessAlgorithm(self, context, feedback):
        style = partial(classmap.style, classes=self._result.classes, provenance=self._result.provenance)
        for name, shown in (("OUTPUT", style), ("CONFIDENCE", classmap.style_confidence)):
            self.style_raster(context, name, shown, self._result.method.value)
        return {}

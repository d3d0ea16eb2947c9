"""clippan:classifyfewsamples"""

from __future__ import annotations

from functools import partial

from clippan.jobs import ClassifyRequest

from .. import classmap
from . import base
from .parameters import FieldEditor, GridEditor


def _accuracy(name: str, label: str, attribute: str) -> base.Output:
    return base.Output(name, label, lambda result: result.accuracy and getattr(result.accuracy, attribute))


class ClassifyFewSamples(base.JobAlgorithm):
    """Makes a map of classes from a few labelled places."""

    JOB = ClassifyRequest
    NAMES = {"encoder": "PRETRAINED", "save_encoder": "OUTPUT_PRETRAINED"}
    HIDDEN = frozenset({"layer"})
    EDITORS = {"field": FieldEditor("class"), "grid": GridEditor()}
    OUTPUTS = (
        _accuracy("OA", "Overall accuracy, 0 to 1", "oa"),
        _accuracy("OA_STD", "Standard deviation of the overall accuracy", "std"),
        _accuracy("AA", "Average accuracy of the classes, 0 to 1", "aa"),
        _accuracy("KAPPA", "Kappa, -1 to 1", "kappa"),
        base.Output(
            "CLASS_COUNT", "Classes that were found", lambda result: sum(item.pixels > 0 for item in result.classes)
        ),
        base.Output("METHOD_USED", "Method used", lambda result: result.method.value, number=False),
        base.MODEL_USED,
        base.DEVICE_USED,
    )

    NAME = "classifyfewsamples"
    TITLE = "Classify from few samples"
    GROUP = "Classification"
    TAGS = (
        *("classification", "supervised", "few-shot", "samples", "training", "land cover", "map", "accuracy", "kappa"),
        *("svm", "random forest", "diffclip", "clip", "hyperspectral", "lidar", "sar", "crops"),
    )
    HELP = (
        "Makes a map of the classes of a few places that you know: some five to thirty points or small polygons a "
        "class, spread over the scene, with a field that holds the class. It takes any rasters of the place together: "
        "multispectral, hyperspectral, radar, elevation.\n\n"
        "Which method is best depends on the scene. Left to choose, it tries them, and takes the one that is right "
        "most often at places that were left out of the training. The log and the report say how each of them did, "
        "and how good the map is: overall accuracy (OA), average accuracy of the classes (AA) and kappa. What is left "
        "out is always a whole polygon or block, never a pixel beside one that was learned from, so the figures are "
        "what you may expect elsewhere in the scene.\n\n"
        "The map is a raster with a value a class and opens with names and colours. Beside it you can have the "
        "confidence, and a table of areas. DiffCLIP first learns what the scene looks like, which takes minutes; "
        "“Pre-train on a scene” does that once for several maps.\n\n"
        "Without any samples, “Segment by text” maps classes by their names."
    )

    def postProcessAlgorithm(self, context, feedback):
        """Writes the styles beside the files, and has the layers styled if they are loaded."""
        style = partial(classmap.style, classes=self._result.classes, provenance=self._result.provenance)
        for name, shown in (("OUTPUT", style), ("CONFIDENCE", classmap.style_confidence)):
            self.style_raster(context, name, shown, self._result.method.value)
        return {}

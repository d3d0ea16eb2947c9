"""clippan:finetuneclip"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from clippan.core.errors import ClippanError
from clippan.jobs import FinetuneClipRequest

from .. import sources
from . import base
from .training import TrainingAlgorithm


class FinetuneClip(TrainingAlgorithm):
    """Teaches a vision-language model new classes, and keeps what it knew."""

    PICTURES = "PICTURES"
    INPUT = "INPUT"
    SAMPLES = "SAMPLES"
    FIELD = "FIELD"
    CONTROL = "CONTROL"
    WORDS = "WORDS"
    ALPHA = "ALPHA"
    KEEP = "KEEP"
    MEASURED = "MEASURED"
    PIXELS = "PIXELS"

    NAME = "finetuneclip"
    TITLE = "Fine-tune CLIP without forgetting"
    TAGS = ("train", "fine-tune", "clip", "patch", "patching", "interpolation", "model", "classes", "scene", "robust")
    HELP = (
        "Teaches a model of the list your classes by pictures whose class you know, and sees to it that it still knows "
        "what it knew. A model that is only trained on new classes forgets others. So the outcome is taken from "
        "between the model before and the trained one: how far to go, α from 0 to 1, is chosen such that almost all of "
        "the old knowledge stays.\n\n"
        "Learn from a folder, in which each class has a folder of pictures that is called by its English name; or from "
        "a raster and polygons or points with a field that holds the class. What the model should not forget is "
        "measured with the control set, a second folder of class folders with other classes. Without one, nothing "
        "says what was lost, and the model goes half the way.\n\n"
        "The log and the report say how much is named right before and after, of your classes and of the control set, "
        "all at pictures that were not learned from. The outcome is a folder: choose it as “Own model” in Segment by "
        "text, Build tile index and the others.\n\n"
        "This names whole pictures. To tell the places in a picture apart, see “Train region-aligned CLIP”."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        folder = Qgis.ProcessingFileParameterBehavior.Folder
        self.add(
            QgsProcessingParameterFile(self.PICTURES, "Folder of pictures", folder, optional=True),
            "A folder with a folder of pictures for each class, named for it. Empty if you learn from a raster.",
        )
        self.add(
            QgsProcessingParameterRasterLayer(self.INPUT, "Or a raster", optional=True),
            "The raster that the labelled places lie in; a picture is cut out around each.",
        )
        self.add(
            QgsProcessingParameterFeatureSource(
                self.SAMPLES,
                "Labelled places in the raster",
                [Qgis.ProcessingSourceType.VectorPolygon, Qgis.ProcessingSourceType.VectorPoint],
                optional=True,
            ),
            "Polygons or points of any layer, in any coordinate system; at choice only those that are selected.",
        )
        self.add(
            QgsProcessingParameterField(
                self.FIELD, "Field with the class", FinetuneClipRequest.field, self.SAMPLES, optional=True
            ),
            "Of the labelled places: holds the class, in English words such as “solar panels”.",
        )
        self.add(
            QgsProcessingParameterFile(self.CONTROL, "Control set", folder, optional=True),
            "A folder like the one above with other classes, which the model knows and should not forget. A dozen "
            "pictures a class are enough.",
        )
        self.add(
            QgsProcessingParameterString(self.WORDS, "Names of the classes in words", multiLine=True, optional=True),
            "Where folders or the field hold codes: what the model should read instead, a line for each, as in "
            "“AnnualCrop=annual crop land”. In one line, put semicolons between them; the path of a .txt or .json file "
            "is taken too.",
        )
        self.add_model(
            "Which model to start from; its licence holds for what is made of it.", FinetuneClipRequest.model
        )
        self.add_number(
            *(self.ALPHA, "How far to go (α)", float, FinetuneClipRequest.alpha),
            "0 is the model as it was, 1 the one that knows your classes best. Empty means that it is chosen: as far "
            "as the control set allows.",
            *(0, 1, False),
        )
        self.add_number(
            *(self.KEEP, "Part of the old accuracy to keep", float, FinetuneClipRequest.keep),
            "Where α is chosen: 0.95 means that of the control set at least 95 % as many pictures are named right as "
            "before, be they the same or others.",
            *(0, 1),
        )
        self.add_number(
            *(self.HELD, "Part to choose α by", float, FinetuneClipRequest.held),
            "Part of the pictures of each class that is not learned from but chooses α. As many again measure the "
            "outcome.",
            *(0.01, 0.4),
        )
        self.add_number(
            *(self.MEASURED, "Pictures to measure on", int, FinetuneClipRequest.measured),
            "How many pictures of your classes, and as many of the control set, are looked at for each α at most.",
            least=1,
        )
        self.add_number(
            *(self.SIZE, "Edge of the pictures (pixels)", int, FinetuneClipRequest.size),
            "How large a part of the raster is cut out around a place; 0 means what suits the pixel size.",
            least=0,
        )
        self.add_number(
            *(self.PIXELS, "Edge of what the model sees (pixels)", int, FinetuneClipRequest.pixels),
            "To what size pictures are brought for the model while it learns; 0 means as it was made for. Smaller is "
            "faster, and only some models can do it.",
            least=0,
        )
        self.add_training(FinetuneClipRequest, fewest=1)
        for name, label in (
            ("ALPHA_USED", "How far it went (α)"),
            ("TASK_BEFORE", "Part of your pictures named right, before"),
            ("TASK_AFTER", "Part of your pictures named right, after"),
            ("CONTROL_BEFORE", "Part of the control set named right, before"),
            ("CONTROL_AFTER", "Part of the control set named right, after"),
            ("CHIPS", "Pictures learned from"),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, label))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        pictures = sources.absolute(self.parameterAsFile(parameters, self.PICTURES, context))
        raster = self.source(parameters, self.INPUT, context)
        if bool(pictures) == bool(raster):
            raise ClippanError("The model learns from a folder of pictures or from a raster; choose one of the two.")
        if bool(raster) != base.is_wanted(parameters.get(self.SAMPLES), context):
            raise ClippanError("A raster and labelled places go together; choose both, or a folder of pictures alone.")
        return FinetuneClipRequest(
            data=pictures or raster,
            output="",
            field=self.parameterAsString(parameters, self.FIELD, context) or FinetuneClipRequest.field,
            control=sources.absolute(self.parameterAsFile(parameters, self.CONTROL, context)),
            words=self.phrases(parameters, self.WORDS, context),
            alpha=self.number(parameters, self.ALPHA, context),
            keep=self.parameterAsDouble(parameters, self.KEEP, context),
            measured=self.parameterAsInt(parameters, self.MEASURED, context),
            pixels=self.parameterAsInt(parameters, self.PIXELS, context),
            **self.training(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        request = super().place(request, parameters, context)
        if not base.is_wanted(parameters.get(self.SAMPLES), context):
            return request
        return replace(request, samples=self.places(parameters, self.SAMPLES, request.field, context))

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        rows = [("α", "Your classes", "Control set")]
        rows += [(base.figure(point["alpha"]), *_named(point, "task", "control")) for point in answer["curve"]]
        base.tell(feedback, rows)
        rows = [("Class", "Pictures", "Before", "After")]
        rows += [
            (
                f"{item['name']} (control)" if item["control"] else item["name"],
                str(item["pictures"]),
                *_named(item, "before", "after"),
            )
            for item in answer["classes"]
        ]
        base.tell(feedback, rows)
        feedback.pushInfo(
            f"α {base.figure(answer['alpha'])}; {answer['chips']} pictures, {answer['steps']} steps in "
            f"{answer['seconds']:.0f} s on {answer['device']}"
        )
        figures = {
            f"{what}_{when}".upper(): float(answer[when][what])
            for what in ("task", "control")
            for when in ("before", "after")
            if answer[when][what] is not None
        }
        return {
            self.OUTPUT: answer["model"],
            **({self.REPORT: answer["report"]} if answer["report"] else {}),
            "ALPHA_USED": float(answer["alpha"]),
            **figures,
            "CHIPS": answer["chips"],
            "DEVICE_USED": answer["device"],
        }


def _named(item, *names) -> tuple[str, ...]:
    return tuple("–" if item[name] is None else f"{float(item[name]):.1%}" for name in names)

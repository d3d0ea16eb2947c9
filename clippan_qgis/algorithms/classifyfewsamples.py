"""clippan:classifyfewsamples"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterString,
    QgsRasterLayer,
)

from clippan.jobs import Classifier, ClassifyRequest

from .. import classmap, sources, styling
from . import base
from .pretrainscene import FILES
from .scene import SceneAlgorithm


class ClassifyFewSamples(SceneAlgorithm):
    """Makes a map of classes from a few labelled places."""

    SAMPLES = "SAMPLES"
    FIELD = "FIELD"
    METHOD = "METHOD"
    DESCRIPTIONS = "DESCRIPTIONS"
    PRETRAINED = "PRETRAINED"
    REPEATS = "REPEATS"
    OUTPUT = "OUTPUT"
    CONFIDENCE = "CONFIDENCE"
    REPORT = "REPORT"
    AREAS = "AREAS"
    OUTPUT_PRETRAINED = "OUTPUT_PRETRAINED"

    NAME = "classifyfewsamples"
    TITLE = "Classify from few samples"
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

    def __init__(self):
        super().__init__()
        self._answer = {}
        self._places = {}  # where each output lies, as QGIS knows it

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_rasters()
        self.add(
            QgsProcessingParameterFeatureSource(
                self.SAMPLES,
                "Labelled places",
                [Qgis.ProcessingSourceType.VectorPolygon, Qgis.ProcessingSourceType.VectorPoint],
            ),
            "Points or polygons of any layer, in any coordinate system; at choice only those that are selected. "
            "Several small polygons a class are better than one large one.",
        )
        self.add(
            QgsProcessingParameterField(self.FIELD, "Field with the class", "class", self.SAMPLES),
            "Holds the class, as a name or a number. English names help DiffCLIP and the methods that work with CLIP; "
            "features without a value are left aside.",
        )
        self.add(
            base.choice(
                *(self.METHOD, "Method", {item.value: item.label for item in Classifier}),
                ClassifyRequest.method.value,
            ),
            "How places are told apart. The SVM and the random forest look at the values of a pixel and around it, and "
            "are fast. DiffCLIP learns the whole scene first. The last three look at a picture in natural colours with "
            "the model below. In scripts and models write the short name, such as svm-mean.",
        )
        self.add(
            QgsProcessingParameterString(
                self.DESCRIPTIONS, "What the classes look like", multiLine=True, optional=True
            ),
            "A line for each class, in English, as in “corn: dark green rows”; several for one class are fine. In one "
            "line, put semicolons between them; the path of a .txt or .json file does too. DiffCLIP and the methods "
            "that work with CLIP read it beside the names, which helps where those are codes or numbers.",
        )
        self.add_model(
            "For DiffCLIP, what reads the words of the classes; for the methods that work with CLIP, also what sees "
            "the picture. The others do not use it.",
            ClassifyRequest.model,
        )
        self.add(
            QgsProcessingParameterFile(self.PRETRAINED, "Pre-trained scene", extension="safetensors", optional=True),
            "For DiffCLIP: what “Pre-train on a scene”, or an earlier run, has learned of these rasters. Empty means "
            "that it is learned now.",
        )
        self.add_number(
            *(self.REPEATS, "Repeats of cross-validation", int, ClassifyRequest.repeats),
            "How often the accuracy is measured, each time with other places left out. More takes longer and makes the "
            "figures surer; 0 measures nothing, and needs a method to be chosen.",
            least=0,
        )
        self.add_picture_bands()
        self.add_learning()
        self.add(
            QgsProcessingParameterRasterDestination(self.OUTPUT, "Class map"),
            "The GeoTIFF to write: 1 for the first class in the order of the alphabet (numbers by their size), 2 for "
            "the second, …, and 0 where the rasters have no data.",
        )
        self.add(
            QgsProcessingParameterRasterDestination(
                self.CONFIDENCE, "Confidence", optional=True, createByDefault=False
            ),
            "A raster of how sure the method is of each pixel's class, from 0 to 1.",
        )
        for name, label, kind, wanted, help_text in (
            (
                *(self.REPORT, "Report", "HTML files (*.html)", True),
                "A web page with the map, its accuracy, and what is taken for what.",
            ),
            (
                *(self.AREAS, "Table of areas", "CSV files (*.csv)", False),
                "A CSV file with the area and the mean confidence of each class; the log shows the same.",
            ),
            (
                *(self.OUTPUT_PRETRAINED, "Save the pre-trained scene", FILES, False),
                "For DiffCLIP: keeps what was learned of the scene, so that the next map of it is made sooner.",
            ),
        ):
            self.add(
                QgsProcessingParameterFileDestination(name, label, kind, optional=True, createByDefault=wanted),
                help_text,
                advanced=name == self.OUTPUT_PRETRAINED,
            )
        for name, label in (
            ("OA", "Overall accuracy, 0 to 1"),
            ("OA_STD", "Standard deviation of the overall accuracy"),
            ("AA", "Average accuracy of the classes, 0 to 1"),
            ("KAPPA", "Kappa, -1 to 1"),
            ("CLASS_COUNT", "Classes that were found"),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, label))
        self.addOutput(QgsProcessingOutputString("METHOD_USED", "Method used"))
        self.addOutput(QgsProcessingOutputString("MODEL_USED", "Model used"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return ClassifyRequest(
            samples="",
            field=self.parameterAsString(parameters, self.FIELD, context),
            output="",
            method=Classifier(self.parameterAsEnumString(parameters, self.METHOD, context)),
            encoder=sources.absolute(self.parameterAsFile(parameters, self.PRETRAINED, context)),
            descriptions=self.phrases(parameters, self.DESCRIPTIONS, context),
            model=self.model(parameters, context),
            repeats=self.parameterAsInt(parameters, self.REPEATS, context),
            bands=self.bands(parameters, context),
            **self.scene(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        rasters = (self.OUTPUT, self.CONFIDENCE)
        self._places = {name: self.parameterAsOutputLayer(parameters, name, context) for name in rasters}
        files = (self.REPORT, self.AREAS, self.OUTPUT_PRETRAINED)
        report, areas, encoder = (
            sources.absolute(self.parameterAsFileOutput(parameters, name, context)) for name in files
        )
        return replace(
            request,
            samples=self.places(parameters, self.SAMPLES, request.field, context),
            output=sources.absolute(self._places[self.OUTPUT]),
            confidence=sources.absolute(self._places[self.CONFIDENCE]),
            report=report,
            areas=areas,
            save_encoder=encoder,
        )

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        self._answer = answer
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        classes, accuracy = answer["classes"], answer["accuracy"]
        if answer["chosen"]:
            base.tell(feedback, [("Method", "OA", "±", "AA", "Kappa", "Seconds"), *map(_compared, answer["chosen"])])
        f1 = accuracy["f1"] if accuracy else [None] * len(classes)
        rows = [("Class", "Places", "Pixels", "F1", "Share", "Hectares", "Mean confidence")]
        columns = (classes, answer["places"], answer["labelled"], f1)
        base.tell(feedback, [*rows, *(_class(*values) for values in zip(*columns))])
        figures = {}
        if accuracy:
            figures = {name.upper(): float(accuracy[name]) for name in ("oa", "aa", "kappa")}
            figures["OA_STD"] = float(accuracy["std"])
            spread = f" ± {figures['OA_STD']:.1%}" if accuracy["repeats"] > 1 else ""
            feedback.pushInfo(
                f"Overall accuracy (OA) {figures['OA']:.1%}{spread}, average accuracy of the classes "
                f"(AA) {figures['AA']:.1%}, kappa {figures['KAPPA']:.3f}: at places that were left out, each "
                f"{accuracy['split']} as a whole; repeats: {accuracy['repeats']}"
            )
        feedback.pushInfo(
            f"{answer['width']} × {answer['height']} pixels in {answer['seconds']:.0f} s by {answer['method']} on "
            f"{answer['device']}"
        )
        files = {
            self.REPORT: answer["report"],
            self.AREAS: answer["areas"],
            self.OUTPUT_PRETRAINED: answer["encoder"],
        }
        return {
            **{name: output for name, output in {**self._places, **files}.items() if output},
            **figures,
            "CLASS_COUNT": sum(1 for item in classes if item["pixels"]),
            "METHOD_USED": answer["method"],
            "MODEL_USED": answer["model"],
            "DEVICE_USED": answer["device"],
        }

    def postProcessAlgorithm(self, context, feedback):
        """Writes the styles beside the files, and has the layers styled if they are loaded."""
        style = partial(classmap.style, classes=self._answer["classes"], provenance=self._answer["provenance"])
        for name, shown in ((self.OUTPUT, style), (self.CONFIDENCE, classmap.style_confidence)):
            if self._places[name]:
                styling.write_sidecar(sources.absolute(self._places[name]), shown)
                self.on_load(context, name, self._places[name], QgsRasterLayer, shown, self._answer["method"])
        return {}


def _compared(score) -> tuple[str, ...]:
    oa, std, aa, kappa, seconds = (float(score[name]) for name in ("oa", "std", "aa", "kappa", "seconds"))
    return score["method"], f"{oa:.1%}", f"{std:.1%}", f"{aa:.1%}", f"{kappa:.3f}", f"{seconds:.0f}"


def _class(item, places, labelled, f1) -> tuple[str, ...]:
    return (
        item["name"],
        str(places),
        str(labelled),
        base.figure(f1),
        f"{item['share']:.1%}",
        base.figure(item["hectares"]),
        base.figure(item["confidence"]),
    )

"""Classify: a map of classes from a few samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core import texts
from clippan.core.choice import Choice
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message, Table, format_number
from clippan.jobs.base import Request, Result, file_lines, job
from clippan.jobs.kinds import (
    AreaTable,
    ClassMapFile,
    FieldName,
    ModelName,
    Phrases,
    PictureBands,
    RasterFile,
    Rasters,
    Report,
    SceneEncoderFile,
    SceneEncoderOutput,
    Vector,
    is_file,
)
from clippan.jobs.options import LayerOption, RasterStackOptions
from clippan.jobs.param import advanced_param, inherited, param
from clippan.jobs.rendering import Rendering
from clippan.jobs.segment import ClassArea


class Classifier(Choice):
    """How pixels are told apart."""

    AUTO = "auto", "Best by cross-validation (recommended)"
    DIFFCLIP = "diffclip", "DiffCLIP: network pre-trained on the scene, guided by the words of the classes"
    SVM = "svm", "SVM on the spectra"
    SVM_MEAN = "svm-mean", "SVM on the spectra and their local means"
    RF = "rf", "Random forest on the spectra and their local means"
    TIP = "tip", "Tip-Adapter on CLIP's features"
    TIP_F = "tip-f", "Tip-Adapter-F on CLIP's features (fine-tuned)"
    LINEAR = "linear", "Linear probe on CLIP's features"

    @property
    def uses_clip_image_features(self) -> bool:
        """Whether it works on what CLIP sees in the picture."""
        return self in (Classifier.TIP, Classifier.TIP_F, Classifier.LINEAR)


@dataclass(frozen=True)
class Score:
    """How well a classifier did where places were left out.

    Attributes:
        method: the classifier.
        oa: overall accuracy, the mean of the repeats, 0 to 1.
        std: its standard deviation over the repeats.
        aa: average accuracy over the classes, 0 to 1.
        kappa: Cohen's, -1 to 1.
        seconds: that the comparison of it took.
    """

    method: Classifier
    oa: float
    std: float
    aa: float
    kappa: float
    seconds: float


@dataclass(frozen=True)
class MapAccuracy:
    """How a map agrees with samples that it was not made from.

    Attributes:
        oa: overall accuracy: part of the samples that are right, 0 to 1.
        std: its standard deviation over the repeats.
        aa: average accuracy: the mean of that of each class.
        kappa: Cohen's, -1 to 1: what is right beyond chance.
        f1: of each class, 0 to 1; None where none of its samples could be left out.
        confusion: pixels by true class (rows) and class found (columns), of all repeats together.
        split: what was left out together: "polygon", "block of 32 pixels", or "polygon or block of 32 pixels".
        repeats: how often, with other splits.
    """

    oa: float
    std: float
    aa: float
    kappa: float
    f1: tuple[Optional[float], ...]
    confusion: tuple[tuple[int, ...], ...]
    split: str
    repeats: int


@dataclass(frozen=True)
class ClassifyResult(Result):
    """What was written.

    Attributes:
        output: the map.
        confidence, report, areas, encoder: the other files; empty where not asked for.
        method: the classifier that made the map.
        chosen: what cross-validation said of each classifier, the best first; empty where there was no choice.
        accuracy: by cross-validation; None where too few places are labelled for it.
        classes: the area of each, in the order of the values.
        labelled: pixels of each class that the classifier learned from.
        places: polygons or blocks of each class that they lie in.
        model: CLIP that read the words or saw the picture; empty where none did.
        picture: which bands CLIP and the report's readers saw, and how they were stretched; None where nobody looked.
    """

    output: str
    width: int
    height: int
    confidence: str
    report: str
    areas: str
    encoder: str
    method: Classifier
    chosen: tuple[Score, ...]
    accuracy: Optional[MapAccuracy]
    classes: tuple[ClassArea, ...]
    labelled: tuple[int, ...]
    places: tuple[int, ...]
    hints: tuple[str, ...]
    model: str
    device: str
    seconds: float
    provenance: Mapping[str, str]
    picture: Optional[Rendering] = None

    def describe(self) -> list[Line]:
        parts: list[Line] = []
        if self.chosen:
            rows = [
                (
                    row.method.value,
                    f"{row.oa:.1%}",
                    f"{row.std:.1%}",
                    f"{row.aa:.1%}",
                    f"{row.kappa:.3f}",
                    f"{row.seconds:.0f}",
                )
                for row in self.chosen
            ]
            parts.append(Table(("Method", "OA", "±", "AA", "Kappa", "Seconds"), rows))
        heading = ("Value", "Class", "Places", "Pixels", "F1", "Share", "Hectares", "Mean confidence")
        f1 = self.accuracy.f1 if self.accuracy else (None,) * len(self.classes)
        columns = zip(self.classes, self.places, self.labelled, f1)
        parts.append(
            Table(
                heading,
                [
                    (
                        *(str(item.value), item.name, str(places), f"{labelled:,}", format_number(score, 3)),
                        *(f"{item.share:.1%}", format_number(item.hectares), format_number(item.confidence)),
                    )
                    for item, places, labelled, score in columns
                ],
            )
        )
        if self.accuracy:
            found = self.accuracy
            parts.append(
                Message(
                    "Overall accuracy (OA) {oa:.1%} ± {std:.1%}, average accuracy of the classes (AA) {aa:.1%}, kappa "
                    "{kappa:.3f}, at places that were left out as a whole ({split}); repeats: {repeats}",
                    **{name: getattr(found, name) for name in ("oa", "std", "aa", "kappa", "split", "repeats")},
                )
            )
        parts.append(
            self.line(
                "{output}: {width} × {height} pixels by {method} on {device}, {seconds:.1f} s", method=self.method.value
            )
        )
        return parts + file_lines(
            ("Confidence", self.confidence),
            ("Report", self.report),
            ("Areas", self.areas),
            ("Pre-trained scene", self.encoder),
        )


@job(
    "classify",
    title="Classify from few samples",
    summary="Makes a map of classes from a few labelled places, and measures how accurate it is.",
    result=ClassifyResult,
    shows_log=True,
)
class ClassifyRequest(RasterStackOptions, LayerOption, Request):
    """A map from samples. Its values are 1 to N in the sorted order of the class names; 0 is nodata."""

    rasters: Rasters = inherited()
    samples: Vector = param(
        title="Labelled places",
        help="Points or polygons whose class is known, in any coordinate system. Several small polygons per class are "
        "better than one large one.",
    )
    field: FieldName = param(
        title="Field with the class",
        help="The field of the labelled places that holds the class, as a name or a number. English names help "
        "DiffCLIP and the methods that work with CLIP; features without a value are left out.",
    )
    layer: str = inherited("")
    output: ClassMapFile = param(
        title="Class map",
        help="The GeoTIFF to write: 1 for the first class in alphabetical order (numbers by size), 2 for the second "
        "and so on; 0 where the rasters have no data.",
    )
    method: Classifier = param(
        Classifier.AUTO,
        title="Method",
        help="How pixels are classified. The SVM and the random forest use the values of a pixel and its neighbours, "
        "and are fast. DiffCLIP first learns the whole scene. Tip-Adapter and the linear probe see a picture in "
        "natural colours through the model. “auto” compares the methods at places that are left out.",
    )
    confidence: RasterFile = param(
        "", title="Confidence", help="A raster with the probability of each pixel's class, from 0 to 1."
    )
    report: Report = param(
        "", title="Report", help="A web page with the map, its accuracy and the confusion of classes.", proposed=True
    )
    areas: AreaTable = param(
        "", title="Table of areas", help="A CSV file with the area and the mean confidence of each class."
    )
    encoder: SceneEncoderFile = param(
        "",
        title="Pre-trained scene",
        help="For DiffCLIP: what “Pre-train on a scene”, or an earlier run, learned from the same rasters. By default, "
        "it is learned now.",
    )
    save_encoder: SceneEncoderOutput = advanced_param(
        "",
        title="Save the pre-trained scene",
        help="For DiffCLIP: keeps what was learned from the scene, so that the next map of it is made sooner.",
    )
    descriptions: Phrases = param(
        "",
        title="What the classes look like",
        help="Descriptions of the classes in English, such as “corn: dark green rows; wheat: pale”, or the path of a "
        ".txt file with one per line, or of a .json file. DiffCLIP and the methods that work with CLIP read them "
        "beside the names, which helps where these are codes or numbers.",
    )
    model: ModelName = param(
        "starter",
        title="Model",
        help="The vision-language model: for DiffCLIP it reads the words of the classes; for the methods that work "
        "with CLIP it also sees the picture. The others do not use it.",
    )
    repeats: int = advanced_param(
        3,
        title="Repeats of cross-validation",
        help="How often the accuracy is measured, each time with other places left out. More repeats take longer and "
        "give more reliable figures; 0 measures nothing, and then a method has to be chosen.",
        low=0,
    )
    bands: PictureBands = advanced_param(
        (),
        title="Bands for red, green and blue",
        example="4,3,2",
        help="Numbers of the three bands that the model and the report show as red, green and blue, counted from 1. By "
        "default, natural colours are found from the names of the bands or the sensor.",
    )

    def check(self) -> None:
        super().check()
        if self.encoder and not is_file(self.encoder):
            raise ClippanError("The pre-trained scene {path} does not exist; check the path.", path=self.encoder)
        if self.encoder and self.save_encoder:
            raise ClippanError(
                "A scene is either pre-trained now and saved, or taken as it was; leave one of the two out."
            )
        if self.method not in (Classifier.AUTO, Classifier.DIFFCLIP) and (self.encoder or self.save_encoder):
            raise ClippanError(
                "Only diffclip pre-trains on the scene, not {method}; leave the encoder out.", method=self.method.value
            )
        parse_descriptions(self.descriptions)
        if self.method is Classifier.AUTO and self.repeats < 1:
            raise ClippanError(
                "The method auto compares methods by cross-validation; repeat it once or more, or choose a method."
            )


def parse_descriptions(text: str) -> dict[str, tuple[str, ...]]:
    """Phrases by class, from ``class: words; class: words``, JSON, or the path of a file of either, where a class may
    have a line of its own.

    JSON is an object with a phrase, or a list of them, for each class.

    Raises:
        ClippanError: it is none of these, or has no words.
    """
    written = texts.resolve_text(text)
    found = _parse_json(written) if texts.is_json(text, written) else _parse_lines(written)
    for name, phrases in found.items():
        if any(texts.is_wordless(phrase) for phrase in phrases):
            raise ClippanError("The description of {name} has no letter or digit; write what it looks like.", name=name)
    return found


def _parse_lines(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for part in texts.split_items(text):
        name, colon, words = (item.strip() for item in part.partition(":"))
        if not (name and colon and words):
            raise ClippanError(
                "The description “{text}” is not understood; write it like corn: dark green rows.", text=part[:40]
            )
        found[name] = (*found.get(name, ()), words)
    return found


def _parse_json(text: str) -> dict[str, tuple[str, ...]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ClippanError(
            "The descriptions are not valid JSON ({error}); write them like corn: dark green rows.", error=error
        ) from None
    if not isinstance(values, dict):
        raise ClippanError('The descriptions are JSON without classes; write them like {"corn": "dark green rows"}.')
    found = {}
    for name, words in values.items():
        phrases = [words] if isinstance(words, str) else words
        if not (isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases)):
            raise ClippanError(
                "The description of {name} is neither a phrase nor a list of phrases; write it like "
                '["dark green rows", "tall plants"].',
                name=name,
            )
        found[name] = tuple(phrases)
    return found

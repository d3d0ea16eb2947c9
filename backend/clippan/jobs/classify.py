"""Classify: a map of classes from a few samples."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core import texts
from clippan.core.device import Device
from clippan.core.errors import ClippanError
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.picture import RasterPicture
from clippan.jobs.segment import ClassArea

ENCODER = ".safetensors"  # ending of a pre-trained scene


class Classifier(enum.Enum):
    """How pixels are told apart."""

    AUTO = "auto"
    DIFFCLIP = "diffclip"
    SVM = "svm"
    SVM_MEAN = "svm-mean"
    RF = "rf"
    TIP = "tip"
    TIP_F = "tip-f"
    LINEAR = "linear"

    @property
    def label(self) -> str:
        """The classifier as a list shows it."""
        return _LABELS[self]

    @property
    def sees_words(self) -> bool:
        """Whether it works on what CLIP sees in the picture."""
        return self in (Classifier.TIP, Classifier.TIP_F, Classifier.LINEAR)


_LABELS = {
    Classifier.AUTO: "Best of all by cross-validation (recommended)",
    Classifier.DIFFCLIP: "DiffCLIP: network pre-trained on the scene, guided by the words of the classes",
    Classifier.SVM: "SVM on the spectra",
    Classifier.SVM_MEAN: "SVM on the spectra and their local means",
    Classifier.RF: "Random forest on the spectra and their local means",
    Classifier.TIP: "Tip-Adapter on CLIP's features",
    Classifier.TIP_F: "Tip-Adapter-F on CLIP's features (fine-tuned)",
    Classifier.LINEAR: "Linear probe on CLIP's features",
}


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
class ClassifyResult:
    """What was written.

    Attributes:
        output: the map.
        width, height: its size.
        confidence, report, areas, encoder: the other files; empty where not asked for.
        method: the classifier that made the map.
        chosen: what cross-validation said of each classifier, the best first; empty where there was no choice.
        accuracy: by cross-validation; None where too few places are labelled for it.
        classes: the area of each, in the order of the values.
        labelled: pixels of each class that the classifier learned from.
        places: polygons or blocks of each class that they lie in.
        hints: sentences for the user.
        model: CLIP that read the words or saw the picture; empty where none did.
        device: where it was computed.
        seconds: wall time.
        provenance: the map's tags.
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
    picture: Optional[RasterPicture] = None


@dataclass(frozen=True)
class ClassifyRequest(Request):
    """Parameters of a map from samples. Its values are 1 to N in the sorted order of the class names; 0 is nodata.

    Attributes:
        rasters: one or several, each a modality with any number of bands; those on other grids are warped.
        samples: vector file with points or polygons.
        field: of it, which holds the class.
        output: GeoTIFF of the map.
        layer: of the samples' file; empty means the first that has such places.
        method: the classifier; auto takes the best by cross-validation.
        confidence: GeoTIFF to write: the probability of each pixel's class, 0 to 1.
        report: HTML file to write: pictures, accuracy, confusion.
        areas: CSV to write: area of each class.
        encoder: a pre-trained scene, for diffclip; empty means that it is pre-trained now.
        save_encoder: where to keep what is pre-trained now, to be used again.
        descriptions: what classes look like, as ``class: words; class: words``, as JSON, or a JSON file.
        model: CLIP for the words of the classes, and for the picture's features; an id of ``resources/models.json``, or
            a folder.
        grid: the raster, from 1, whose pixels the map has; 0 means the finest.
        seed: of everything that is drawn.
        repeats: of cross-validation, each with another split; 0 for none.
        steps: of pre-training; None for 400.
        bands: of the first raster that has them: red, green and blue for CLIP, or one for grey; empty means natural
            colours where they can be told.
        nodata: overrides the nodata values that the rasters declare.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "classify"
    result: ClassVar[type] = ClassifyResult

    rasters: tuple[str, ...]
    samples: str
    field: str
    output: str
    layer: str = ""
    method: Classifier = Classifier.AUTO
    confidence: str = ""
    report: str = ""
    areas: str = ""
    encoder: str = ""
    save_encoder: str = ""
    descriptions: str = ""
    model: str = "starter"
    grid: int = 0
    seed: int = 0
    repeats: int = 3
    steps: Optional[int] = None
    bands: tuple[int, ...] = ()
    nodata: Optional[float] = None
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (*self.rasters, self.samples, *filter(None, (self.encoder, texts.file_of(self.descriptions))))

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return tuple(filter(None, (self.output, self.confidence, self.report, self.areas, self.save_encoder)))

    def validate(self) -> None:
        """See Request."""
        check.sources("raster", self.rasters)
        check.source("file of samples", self.samples)
        if not self.field.strip():
            check.fail("No field was named; name the samples' field that holds the class.")
        check.output(self.output, self.inputs, ".aux.xml")  # which holds the classes
        for path in self.outputs[1:]:
            check.output(path, self.inputs)
        check.apart(self.outputs)
        for path in filter(None, (self.report, self.areas, self.save_encoder)):
            check.on_disk(path)
        for path in filter(None, (self.output, self.confidence)):
            check.geotiff(path)
        if self.report:
            check.html(self.report)
        if self.areas and not self.areas.lower().endswith(".csv"):
            check.fail(f"The table {self.areas} is written as CSV; let its name end in .csv.")
        check_encoder(self.encoder)
        check_encoder(self.save_encoder)
        if self.encoder and not check.is_file(self.encoder):
            check.fail(f"The pre-trained scene {self.encoder} does not exist; check the path.")
        if self.encoder and self.save_encoder:
            check.fail("A scene is either pre-trained now and kept, or taken as it was; leave one of the two out.")
        if self.method not in (Classifier.AUTO, Classifier.DIFFCLIP) and (self.encoder or self.save_encoder):
            check.fail(f"Only diffclip pre-trains on the scene, not {self.method.value}; leave the encoder out.")
        parse_descriptions(self.descriptions)
        check.model(self.model)
        check_grid(self.grid, self.rasters)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of repeats", self.repeats, 0)
        if self.method is Classifier.AUTO:
            check.at_least("number of repeats with which auto compares (other methods do without)", self.repeats, 1)
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        check.picture_bands(self.bands)
        check.at_least("number of threads", self.threads, 0)


def check_encoder(path: str) -> None:
    """A pre-trained scene is called by what it is."""
    if path and not path.lower().endswith(ENCODER):
        check.fail(f"The pre-trained scene {path} is a model; let its name end in {ENCODER}.")


def check_grid(number: int, rasters: tuple[str, ...]) -> None:
    """The grid is that of one of the rasters, or 0."""
    check.between("number of the raster whose grid the map has", number, 0, len(rasters))


def parse_descriptions(text: str) -> dict[str, tuple[str, ...]]:
    """Phrases by class, from ``class: words; class: words``, JSON, or the path of a file of either, where a class may
    have a line of its own.

    JSON is an object with a phrase, or a list of them, for each class.

    Raises:
        ClippanError: it is none of these, or has no words.
    """
    written = texts.content(text, "descriptions file")
    found = _of_json(written) if texts.is_json(text, written) else _of_text(written)
    for name, phrases in found.items():
        if any(texts.is_wordless(phrase) for phrase in phrases):
            check.fail(f"The description of {name} has no letter or digit; write what it looks like.")
    return found


def _of_text(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for part in texts.parts(text):
        name, colon, words = (item.strip() for item in part.partition(":"))
        if not (name and colon and words):
            raise ClippanError(f"The description “{part[:40]}” is not understood; write it like corn: dark green rows.")
        found[name] = (*found.get(name, ()), words)
    return found


def _of_json(text: str) -> dict[str, tuple[str, ...]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ClippanError(f'The descriptions are no JSON like {{"corn": "dark green rows"}} ({error}).') from None
    if not isinstance(values, dict):
        raise ClippanError('The descriptions are JSON without classes; write them like {"corn": "dark green rows"}.')
    found = {}
    for name, words in values.items():
        phrases = [words] if isinstance(words, str) else words
        if not (isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases)):
            raise ClippanError(
                f"The description of {name} is neither a phrase nor a list of phrases; write it like "
                '{"corn": ["dark green rows", "tall plants"]}.'
            )
        found[name] = tuple(phrases)
    return found

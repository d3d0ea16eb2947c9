"""Train clip: teach a CLIP the places in pictures; and what makes pictures of rasters for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core import texts
from clippan.core.choice import Choice
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Table
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import FieldName, Files, OutputFolder, Phrases, Rasters, Vectors, check_start_is_kept
from clippan.jobs.options import PictureOptions, TrainingOptions, loss_weight
from clippan.jobs.param import advanced_param, inherited, param
from clippan.jobs.rendering import Rendering


class ClipMethod(Choice):
    """How a CLIP is trained."""

    FARSLIP = "farslip", "FarSLIP"


class Teacher(Choice):
    """Who encodes the crops in stage 1 of FarSLIP."""

    ACTIVE = "active", "The model itself"
    EMA = "ema", "Its running average"
    FROZEN = "frozen", "The model before the training"


class Target(Choice):
    """What of a crop is compared with the picture's cells."""

    PATCH = "patch", "The mean of its own cells"
    CLS = "cls", "Its pooled vector"


class Precision(Choice):
    """Number format of the towers; losses are always in float32."""

    FLOAT32 = "float32", "32-bit floating point"
    BFLOAT16 = "bfloat16", "bfloat16"


class ImageFormat(Choice):
    """File format of pictures."""

    PNG = "png", "PNG"
    JPEG = "jpeg", "JPEG"


@dataclass(frozen=True)
class TrainClipResult(Result):
    """What was trained.

    Attributes:
        pictures: that it was trained on.
        objects: boxes, or whole pictures with a category, that stage 2 was trained on.
        steps: of the optimiser, in each stage.
    """

    model: str
    base: str
    pictures: int
    objects: int
    steps: tuple[int, ...]
    losses: Mapping[str, float]
    device: str
    seconds: float

    def describe(self) -> list[Line]:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        return [
            self.line(
                "{model}: from {base}; pictures: {pictures}, objects: {objects}, steps: {steps}; {seconds:.0f} s on "
                "{device}",
                steps=" + ".join(map(str, self.steps)),
            ),
            *([losses] if losses else []),  # a run that was complete already took no step
        ]


@job(
    "train clip",
    title="Train region-aligned CLIP",
    summary="Trains a vision-language model on pictures with captions, classes and boxes; with --method patch it "
    "learns classes of your own.",
    result=TrainClipResult,
    shows_log=True,
)
class TrainClipRequest(TrainingOptions, Request):
    """A training as FarSLIP's."""

    data: Files = param(
        title="Training data", help="Folders, tables (.csv, .json) and WebDataset shards (.tar) of pictures."
    )
    method: ClipMethod = param(
        ClipMethod.FARSLIP,
        title="Method",
        help="How the model is trained. The method patch has options of its own: see clippan train clip --method patch "
        "--help.",
    )
    stages: tuple[int, ...] = advanced_param(
        (1, 2), title="Stages", help="1 (places in pictures), 2 (objects with categories), or 1,2 for both."
    )
    warmup: Optional[int] = advanced_param(
        None,
        title="Warm-up steps",
        help="Number of steps in which the learning rate rises to its maximum. By default, a tenth of the steps of the "
        "stage, at most 1000.",
        low=0,
    )
    teacher: Teacher = advanced_param(Teacher.ACTIVE, title="Teacher", help="Which model encodes the crops in stage 1.")
    target: Target = advanced_param(
        Target.PATCH,
        title="Distillation target",
        help="What of a crop the cells of the whole picture are compared with in stage 1.",
    )
    weight: float = loss_weight(
        0.1,
        title="Weight of the distillation",
        help="Weight of the distillation beside the contrastive loss; 0 leaves it out.",
    )
    crops: int = advanced_param(
        4,
        title="Crops per picture",
        help="Number of crops of a picture in stage 1, and largest number of its objects in stage 2.",
        low=1,
    )
    least: int = advanced_param(
        64, title="Smallest object", help="Objects whose shorter edge is smaller are left out.", low=1, unit="pixels"
    )
    pixels: int = advanced_param(
        0,
        title="Edge of the model's input",
        help="Pictures are resized to this edge for the model; 0 keeps the size it was trained with. Only "
        "convolutional models accept another.",
        low=0,
        unit="pixels",
    )
    train_text: bool = advanced_param(
        False,
        title="Train the text tower too",
        help="Also trains the text tower and the logit scale. Use it with many and varied captions only: words that do "
        "not occur in them are forgotten.",
    )
    caption: str = advanced_param("caption", title="Caption column", help="Column or key of the captions in the data.")
    precision: Precision = advanced_param(
        Precision.FLOAT32, title="Precision", help="Number format in which the towers compute."
    )
    epochs: int = inherited(1, help="How often each stage sees every picture.")
    steps: Optional[int] = inherited(
        None, advanced=False, help="Number of training steps of each stage, instead of the epochs."
    )
    batch: int = inherited(
        32, low=2, help="Number of pictures in a training step of each process; fewer need less memory and time."
    )
    rate: float = inherited(1e-5)
    weight_decay: float = inherited(1.0)

    def check(self) -> None:
        check_start_is_kept(self.output, self.model)
        if self.stages not in ((1,), (2,), (1, 2)):
            raise ClippanError("The stages are 1, 2 or 1,2; choose one of these.")


@dataclass(frozen=True)
class RegionsResult(Result):
    """What was made.

    Attributes:
        output: the folder.
        table: its ``regions.json``.
        pictures: that hold objects.
        objects: boxes of each category.
        seen: which bands of each raster are in the pictures, and how they were stretched.
    """

    output: str
    table: str
    pictures: int
    objects: Mapping[str, int]
    hints: tuple[str, ...]
    seconds: float
    seen: tuple[Rendering, ...]

    def describe(self) -> list[Line]:
        rows = [(name, str(count)) for name, count in self.objects.items()]
        return [Table(("Class", "Objects"), rows), self.line("{table}: pictures: {pictures}; {seconds:.1f} s")]


@job(
    "regions",
    title="Pictures with objects",
    summary="Makes pictures with boxes to train on, from rasters and their masks or polygons.",
    result=RegionsResult,
)
class RegionsRequest(PictureOptions, Request):
    """Pictures with boxes, made of rasters and their labels."""

    rasters: Rasters = param(
        title="Rasters", help="Rasters to cut into pictures: files or GDAL data sources.", positional=True
    )
    labels: Vectors = param(
        title="Labels",
        help="For each raster a mask on its pixels (a band of classes, or colours), or a vector file with polygons.",
    )
    output: OutputFolder = param(title="Folder of pictures", help="The folder to make.")
    legend: Phrases = param(
        "",
        title="Legend",
        help="Categories by the values of a mask or of the field, such as “1=water; 2=forest” or “#3C1098=building”, "
        "or the path of a .txt file with one per line, or of a .json file. It may be empty for vector files whose "
        "field holds the categories themselves, and for masks that name their values.",
    )
    field: FieldName = param(
        "class", title="Field with the class", help="The field of the vector files that holds the category."
    )
    layer: str = advanced_param(
        "", title="Layer of the polygons", help="By default, the first layer with polygons that have a category."
    )
    size: int = advanced_param(
        512,
        title="Edge of the pictures",
        help="The raster is cut into pictures of this size, as large as an object with its surroundings.",
        low=16,
        unit="pixels",
    )
    overlap: float = advanced_param(
        0.25,
        title="Overlap of the pictures",
        help="Overlap of neighbouring pictures, as a part of their edge.",
        low=0,
        high=0.9,
    )
    least: int = advanced_param(
        16, title="Smallest object", help="Objects whose shorter edge is smaller are left out.", low=1, unit="pixels"
    )
    fill: float = advanced_param(
        0.3, title="Filled part of a box", help="The part of its box that an object has to fill.", low=0, high=1
    )
    format: ImageFormat = advanced_param(ImageFormat.PNG, title="Picture format", help="File format of the pictures.")

    def check(self) -> None:
        if len(self.rasters) != len(self.labels):
            raise ClippanError(
                "The numbers of rasters ({rasters}) and of their labels ({labels}) differ; give labels for each "
                "raster.",
                rasters=len(self.rasters),
                labels=len(self.labels),
            )
        texts.parse_legend(self.legend)

"""Train clip: a CLIP that knows places in pictures, and what makes pictures of rasters for it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from clippan.core import texts
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Stretch
from clippan.jobs.picture import RasterPicture


class ClipMethod(enum.Enum):
    """How a CLIP is trained."""

    FARSLIP = "farslip"


class Teacher(enum.Enum):
    """Who encodes the crops in stage 1 of FarSLIP: the model itself, its running average, or what it was."""

    ACTIVE = "active"
    EMA = "ema"
    FROZEN = "frozen"


class Target(enum.Enum):
    """What of a crop is compared with the picture's cells: the mean of its own cells, or its pooled vector."""

    PATCH = "patch"
    CLS = "cls"


class Precision(enum.Enum):
    """In which numbers the towers compute; losses are always in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Picture(enum.Enum):
    """File format of pictures."""

    PNG = "png"
    JPEG = "jpeg"


@dataclass(frozen=True)
class TrainClipResult:
    """What was trained.

    Attributes:
        model: the folder, for --model.
        base: the model that it started from.
        pictures: that it was trained on.
        objects: boxes, or whole pictures with a category, that stage 2 was trained on.
        steps: of the optimiser, in each stage.
        losses: the terms, the mean of the last steps.
        device: where it was trained.
        seconds: wall time of this process.
    """

    model: str
    base: str
    pictures: int
    objects: int
    steps: tuple[int, ...]
    losses: Mapping[str, float]
    device: str
    seconds: float


@dataclass(frozen=True)
class TrainClipRequest(Request):
    """Parameters of a training.

    Attributes:
        data: folders, tables (.csv, .json) and WebDataset shards (.tar), see ``clippan.learn.clip.data``.
        output: folder of the run, and in the end of the model; one that holds a run of the same parameters is gone on
            with.
        method: how.
        model: to start from: an id of ``resources/models.json``, or a folder with weights.
        stages: 1 and 2 of FarSLIP, or one of them.
        epochs: how often each stage sees every picture.
        steps: of each stage, instead of the epochs.
        batch: pictures of a step in each process.
        rate: greatest learning rate.
        weight_decay: of AdamW, for matrices and kernels.
        warmup: steps in which the rate is reached; None for a tenth of the stage's, at most 1000.
        teacher, target, weight: of the distillation, and how much it counts beside the contrast; 0 leaves it out.
        crops: of a picture in stage 1; at most so many of its objects in stage 2.
        least: pixels of a box's shorter edge, below which it is left out.
        pixels: edge of what the model sees; 0 for what it was trained with. Only convolutional towers take another.
        train_text: also train the text tower and the logit scale. With few or alike texts the words that do not occur
            are forgotten.
        caption: column or key of the captions.
        precision: of the towers.
        seed: of everything that is drawn.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "train clip"
    result: ClassVar[type] = TrainClipResult

    data: tuple[str, ...]
    output: str
    method: ClipMethod = ClipMethod.FARSLIP
    model: str = "starter"
    stages: tuple[int, ...] = (1, 2)
    epochs: int = 1
    steps: Optional[int] = None
    batch: int = 32
    rate: float = 1e-5
    weight_decay: float = 1.0
    warmup: Optional[int] = None
    teacher: Teacher = Teacher.ACTIVE
    target: Target = Target.PATCH
    weight: float = 0.1
    crops: int = 4
    least: int = 64
    pixels: int = 0
    train_text: bool = False
    caption: str = "caption"
    precision: Precision = Precision.FLOAT32
    seed: int = 0
    threads: int = 0
    device: Device = Device.AUTO

    def validate(self) -> None:
        """See Request."""
        check.sources("data to train on", self.data)
        check.model(self.model)
        check.run_folder(self.output, self.model)
        if self.stages not in ((1,), (2,), (1, 2)):
            check.fail("The stages are 1, 2 or 1,2; choose among these.")
        check.at_least("number of epochs", self.epochs, 1)
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        check.at_least("batch", self.batch, 2)  # a contrast needs two
        check.positive("learning rate", self.rate)
        check.between("weight decay", self.weight_decay, 0, 100)
        if self.warmup is not None:
            check.at_least("warm-up", self.warmup, 0)
        check.between("weight of the distillation", self.weight, 0, 1000)
        check.at_least("number of crops", self.crops, 1)
        check.at_least("smallest box", self.least, 1)
        check.at_least("size of the pictures", self.pixels, 0)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of threads", self.threads, 0)


@dataclass(frozen=True)
class RegionsResult:
    """What was made.

    Attributes:
        output: the folder.
        table: its ``regions.json``.
        pictures: that hold objects.
        objects: boxes of each category.
        hints: sentences for the user.
        seconds: wall time.
        seen: which bands of each raster are in the pictures, and how they were stretched.
    """

    output: str
    table: str
    pictures: int
    objects: Mapping[str, int]
    hints: tuple[str, ...]
    seconds: float
    seen: tuple[RasterPicture, ...]


@dataclass(frozen=True)
class RegionsRequest(Request):
    """Parameters of pictures with boxes, made of rasters and their labels.

    Attributes:
        rasters: files or GDAL data sources.
        labels: for each raster a mask on the same pixels (a band of classes, or colours), or a vector file with
            polygons.
        output: folder to make.
        legend: categories, as ``1=water; 2=forest`` or ``#3C1098=building``, by the values of a mask or of the field;
            or a JSON file of the same. Empty for vector files whose field holds the categories themselves, and for
            masks that name their values.
        field: of the vector files, which holds the category.
        layer: of the vector files; empty means the first that has such polygons.
        size: edge of the pictures in the raster's pixels; smaller rasters are one picture or a few.
        overlap: of neighbouring pictures, as a part of their edge.
        least: pixels of a box's shorter edge, below which it is left out.
        fill: part of its box that an object has to fill.
        bands: for red, green and blue, from 1, or one for grey; empty means natural colours where they can be told.
        stretch: how values become a picture, once for the whole raster.
        nodata: overrides the nodata value that the rasters declare.
        format: of the pictures.
    """

    name: ClassVar[str] = "regions"
    result: ClassVar[type] = RegionsResult

    rasters: tuple[str, ...]
    labels: tuple[str, ...]
    output: str
    legend: str = ""
    field: str = "class"
    layer: str = ""
    size: int = 512
    overlap: float = 0.25
    least: int = 16
    fill: float = 0.3
    bands: tuple[int, ...] = ()
    stretch: Stretch = Stretch.AUTO
    nodata: Optional[float] = None
    format: Picture = Picture.PNG

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (*self.rasters, *self.labels)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.output,)

    def validate(self) -> None:
        """See Request."""
        check.sources("raster", self.rasters)
        check.sources("labels", self.labels)
        if len(self.rasters) != len(self.labels):
            check.fail(f"{len(self.rasters)} rasters and {len(self.labels)} labels were given; give one for each.")
        if not self.output.strip():
            check.fail("No output folder was given; name the folder to make.")
        check.folder("folder", str(Path(self.output).absolute().parent))
        texts.legend(self.legend)
        check.at_least("size of the pictures", self.size, 16)
        check.between("overlap", self.overlap, 0, 0.9)
        check.at_least("smallest box", self.least, 1)
        check.between("part of a box that is filled", self.fill, 0, 1)
        check.picture_bands(self.bands)

"""Finetune clip: teach a CLIP classes by labelled chips, and keep what it knew, by weight interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from clippan.core import texts
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Stretch
from clippan.jobs.picture import RasterPicture


@dataclass(frozen=True)
class AlphaPoint:
    """What the model with the weights (1 − α)·before + α·fine-tuned names right, as parts of pictures, 0 to 1.

    Attributes:
        alpha: 0 is the model that it started from, 1 the fine-tuned one.
        task, control: on the pictures that no choice has seen; control is None without a control set.
        task_validation, control_validation: on those that α is chosen by.
    """

    alpha: float
    task: float
    control: Optional[float]
    task_validation: float
    control_validation: Optional[float]


@dataclass(frozen=True)
class ClassGain:
    """What of a class is named right before and after, on pictures that no choice has seen.

    Attributes:
        name: the words of it.
        control: whether it is of the control set.
        pictures: that were asked.
        before, after: parts that are right, 0 to 1; None where there was no picture to ask.
    """

    name: str
    control: bool
    pictures: int
    before: Optional[float]
    after: Optional[float]


@dataclass(frozen=True)
class FinetuneClipResult:
    """What was tuned.

    Attributes:
        model: the folder, for --model.
        report: the HTML report; empty where not asked for.
        base: the model that it started from.
        alpha: of the model in the folder.
        before, after: the curve at 0 and at alpha.
        curve: all of it, α rising from 0 to 1.
        classes: each class of the task, then each of the control set.
        chips: that it was tuned on.
        steps: of the optimiser.
        loss: the mean of the last steps; None for a run that was complete already.
        hints: sentences for the user.
        device: where it was tuned.
        seconds: wall time of this process.
        picture: which bands of the raster the model saw, and how they were stretched; None for folders of pictures.
    """

    model: str
    report: str
    base: str
    alpha: float
    before: AlphaPoint
    after: AlphaPoint
    curve: tuple[AlphaPoint, ...]
    classes: tuple[ClassGain, ...]
    chips: int
    steps: int
    loss: Optional[float]
    hints: tuple[str, ...]
    device: str
    seconds: float
    picture: Optional[RasterPicture] = None


@dataclass(frozen=True)
class FinetuneClipRequest(Request):
    """Parameters of a robust fine-tuning ("patching"; Zavras et al. 2024, Ilharco et al. 2022).

    Attributes:
        data: a folder with a folder of pictures for each class, named for it; or with ``samples`` a raster.
        output: folder of the run, and in the end of the model; one that holds a run of the same parameters is gone on
            with.
        samples: vector file with polygons (or points) over the raster.
        field: of it, which holds the class.
        layer: of it; empty means the first that has such places.
        control: a folder as ``data``, of other classes, on which is measured what was lost; empty for none.
        words: what classes are called for the model, as ``SeaLake=sea; AnnualCrop=annual crop land`` or a JSON file
            of the same; by default what their folders or the field say.
        model: to start from: an id of ``resources/models.json``, or a folder with weights.
        alpha: how far to go to the fine-tuned weights, 0 to 1; None to choose it on validation (without a control set
            then 0.5).
        keep: part of the old accuracy on the control set that the chosen α keeps.
        held: part of each class that chooses α, and as much again that measures the result.
        measured: pictures of the task, and as many of the control set, that each point of the curve is measured on at
            most.
        epochs: how often it sees every chip; of few chips more often, in 40 steps at least.
        steps: of the optimiser, instead of the epochs.
        batch: chips of a step.
        rate: greatest learning rate.
        weight_decay: of AdamW, for matrices and kernels.
        pixels: edge of what the model sees while it is tuned and measured; 0 for what it was trained with. Only
            convolutional towers take another.
        size: edge of the chips in the raster's pixels; 0 for what suits the ground resolution.
        bands: for red, green and blue, from 1, or one for grey; empty means natural colours. Of the raster.
        stretch, nodata: of the raster, as for clippan segment.
        report: HTML file to write, with a picture of the curve.
        seed: of everything that is drawn.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "finetune clip"
    result: ClassVar[type] = FinetuneClipResult

    data: str
    output: str
    samples: str = ""
    field: str = "class"
    layer: str = ""
    control: str = ""
    words: str = ""
    model: str = "starter"
    alpha: Optional[float] = None
    keep: float = 0.95
    held: float = 0.2
    measured: int = 400
    epochs: int = 5
    steps: Optional[int] = None
    batch: int = 32
    rate: float = 1e-4
    weight_decay: float = 0.5
    pixels: int = 0
    size: int = 0
    bands: tuple[int, ...] = ()
    stretch: Stretch = Stretch.AUTO
    nodata: Optional[float] = None
    report: str = ""
    seed: int = 0
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.data, self.samples)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.report,)

    def validate(self) -> None:
        """See Request."""
        check.source("folder of pictures, or raster,", self.data)
        if not self.samples:
            if check.is_file(self.data):
                check.fail(f"{self.data} is no folder of pictures; for a raster name its labelled places (--samples).")
            check.folder("folder of pictures", self.data)
        if self.control:
            check.folder("control set", self.control)
        check.model(self.model)
        check.run_folder(self.output, self.model)
        check.folder("folder", str(Path(self.output).absolute().parent))
        texts.legend(self.words, "list of words")
        if self.alpha is not None:
            check.between("alpha", self.alpha, 0, 1)
        check.between("part to keep", self.keep, 0, 1)
        check.between("part that is held out", self.held, 0.01, 0.4)
        check.at_least("number of pictures to measure on", self.measured, 1)
        check.at_least("number of epochs", self.epochs, 1)
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        check.at_least("batch", self.batch, 1)
        check.positive("learning rate", self.rate)
        check.between("weight decay", self.weight_decay, 0, 100)
        check.at_least("size of what the model sees", self.pixels, 0)
        check.at_least("size of the chips", self.size, 0)
        check.picture_bands(self.bands)
        if self.report:
            check.html(self.report)
            check.output(self.report, self.inputs)
            check.on_disk(self.report)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of threads", self.threads, 0)

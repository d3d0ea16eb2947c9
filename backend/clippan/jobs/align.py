"""Align: a CLIP for another sensor, from rasters of it that lie where rasters in natural colours do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from clippan.catalogue.prompts import parse
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Stretch
from clippan.jobs.picture import RasterPicture


@dataclass(frozen=True)
class Recall:
    """How often a chip's counterpart is among the first that are found for it, 0 to 1."""

    at_1: float
    at_5: float
    at_10: float


@dataclass(frozen=True)
class AlignSensorResult:
    """What was aligned.

    Attributes:
        model: the folder, for --model; it takes rasters of these bands.
        report: the HTML report; empty where not asked for.
        base: the teacher.
        bands: names of the sensor's bands that it takes, in order.
        low, high: values of each that become 0 and 1.
        chips: that it was trained on.
        held: chips that it was measured on; they lie apart from the others.
        to_picture: recall when a chip of the sensor asks for its picture, among the held-out chips.
        from_picture: recall when a picture asks for its chip of the sensor.
        before: ``to_picture`` of the student before its first step.
        chance: recall of guessing.
        cosine: mean over held-out chips of that between the student's and the teacher's vector.
        agreement: part of the held-out chips for which both name the same of the words; None without words.
        steps: of the optimiser.
        losses: the terms, the mean of the last steps.
        hints: sentences for the user.
        device: where it was trained.
        seconds: wall time of this process.
        pictures: which bands of its rasters the teacher saw, and how they were stretched.
    """

    model: str
    report: str
    base: str
    bands: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    chips: int
    held: int
    to_picture: Recall
    from_picture: Recall
    before: Recall
    chance: Recall
    cosine: float
    agreement: Optional[float]
    steps: int
    losses: Mapping[str, float]
    hints: tuple[str, ...]
    device: str
    seconds: float
    pictures: tuple[RasterPicture, ...] = ()


@dataclass(frozen=True)
class AlignSensorRequest(Request):
    """Parameters of an alignment (Zavras et al. 2024): a student for the sensor learns to say of a place what the
    teacher says of its picture, so that the teacher's words fit.

    Attributes:
        teacher_rasters: rasters whose natural colours the teacher sees.
        sensor_rasters: for each one of the other sensor that lies on the same place, in any CRS and resolution.
        output: folder of the run, and in the end of the model; one that holds a run of the same parameters is gone on
            with.
        model: the teacher: an id of ``resources/models.json``, or a folder with weights.
        sensor_bands: of the sensor's rasters, from 1; empty for all.
        low, high: values of the sensor's bands that become 0 and 1, one for all bands or one for each; empty for what
            the rasters hold (their 1st and 99th percentile). ``low 0, high 10000`` is the whole reflectance of
            Sentinel-2, ``low -25, high 0`` suits decibels of Sentinel-1.
        test: numbers of the pairs, from 1, that are not trained on but measured with; empty for a strip of each.
        held: part of each raster that is that strip.
        size: edge of the chips in the teacher's pixels; 0 for what suits the ground resolution.
        overlap: of neighbouring chips to train on, as a part of their edge. Chips to measure with touch, but do not
            overlap.
        mse, cosine, contrast, label: weights of the losses: mean square difference of the raw vectors, 1 − their
            cosine, symmetric contrast of the batch, and cross-entropy of what both say about the words.
        words: for the label term and the agreement, as ``water; forest; buildings``.
        epochs: how often it sees every chip; of few chips more often, in 40 steps at least.
        steps: of the optimiser, instead of the epochs.
        batch: chips of a step.
        rate: greatest learning rate.
        weight_decay: of AdamW, for matrices and kernels.
        bands: of the teacher's rasters for red, green and blue; empty means natural colours.
        stretch: how the teacher's rasters become pictures.
        nodata: overrides what the rasters declare.
        report: HTML file to write.
        seed: of everything that is drawn.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "align"
    result: ClassVar[type] = AlignSensorResult

    teacher_rasters: tuple[str, ...]
    sensor_rasters: tuple[str, ...]
    output: str
    model: str = "starter"
    sensor_bands: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    test: tuple[int, ...] = ()
    held: float = 0.2
    size: int = 0
    overlap: float = 0.75
    mse: float = 1.0
    cosine: float = 1.0
    contrast: float = 0.1
    label: float = 0.05
    words: str = ""
    epochs: int = 10
    steps: Optional[int] = None
    batch: int = 32
    rate: float = 3e-4
    weight_decay: float = 0.05
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
        return (*self.teacher_rasters, *self.sensor_rasters)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.report,)

    def validate(self) -> None:
        """See Request."""
        check.sources("raster for the teacher", self.teacher_rasters)
        check.sources("raster of the sensor", self.sensor_rasters)
        pairs = len(self.teacher_rasters)
        if pairs != len(self.sensor_rasters):
            check.fail(
                f"The teacher has {pairs} of the rasters and the sensor {len(self.sensor_rasters)}; give both as many, "
                "in the same order."
            )
        check.model(self.model)
        if self.words:
            parse(self.words)
        check.run_folder(self.output, self.model)
        check.folder("folder", str(Path(self.output).absolute().parent))
        check.bands(self.sensor_bands)
        self._check_range()
        if any(not 1 <= number <= pairs for number in self.test) or len(set(self.test)) >= pairs:
            check.fail(f"The pairs to measure with are some of 1 to {pairs}, and not all; choose others.")
        check.between("part that is held out", self.held, 0.05, 0.5)
        check.at_least("size of the chips", self.size, 0)
        check.between("overlap", self.overlap, 0, 0.95)
        for what in ("mse", "cosine", "contrast", "label"):
            check.between(f"weight of the loss {what}", getattr(self, what), 0, 1000)
        if not (self.mse or self.cosine or self.contrast):
            check.fail("Nothing ties the student to the teacher; give mse, cosine or contrast a weight above 0.")
        check.at_least("number of epochs", self.epochs, 1)
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        check.at_least("batch", self.batch, 2)  # a contrast needs two
        check.positive("learning rate", self.rate)
        check.between("weight decay", self.weight_decay, 0, 100)
        check.picture_bands(self.bands)
        if self.report:
            check.html(self.report)
            check.output(self.report, self.inputs)
            check.on_disk(self.report)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of threads", self.threads, 0)

    def _check_range(self) -> None:
        if len(self.low) != len(self.high):
            check.fail("The lowest and the highest values go together; give both, or none.")
        if any(not low < high for low, high in zip(self.low, self.high)):
            check.fail("A lowest value is not below the highest; give a range for each band.")
        if self.sensor_bands and len(self.low) not in (0, 1, len(self.sensor_bands)):
            check.fail(f"{len(self.low)} ranges and {len(self.sensor_bands)} bands were given; give one for each.")

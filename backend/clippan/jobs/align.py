"""Align: a CLIP for another sensor, from rasters of it that lie where rasters in natural colours do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.catalogue.prompts import parse_prompts
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, file_lines, job
from clippan.jobs.kinds import BandNumbers, Phrases, Rasters, check_start_is_kept
from clippan.jobs.options import ChipOptions, loss_weight
from clippan.jobs.param import advanced_param, inherited, param
from clippan.jobs.rendering import Rendering


@dataclass(frozen=True)
class Recall:
    """How often a chip's counterpart is among the first that are found for it, 0 to 1."""

    at_1: float
    at_5: float
    at_10: float


@dataclass(frozen=True)
class AlignSensorResult(Result):
    """What was aligned.

    Attributes:
        model: the folder, for --model; it takes rasters of these bands.
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
    pictures: tuple[Rendering, ...] = ()

    def describe(self) -> list[Line]:
        rows = [
            (label, f"{row.at_1:.1%}", f"{row.at_5:.1%}", f"{row.at_10:.1%}")
            for label, row in (
                (Message("By chance"), self.chance),
                (Message("Sensor finds picture, before"), self.before),
                (Message("Sensor finds picture, after"), self.to_picture),
                (Message("Picture finds sensor, after"), self.from_picture),
            )
        ]
        return [
            Table((Message("At held-out places"), "R@1", "R@5", "R@10"), rows),
            self.line("Mean similarity to the teacher's vectors: {cosine:.2f}"),
            *(
                []
                if self.agreement is None
                else [self.line("Both choose the same word for {agreement:.1%} of the places")]
            ),
            self.line(
                "{model}: from {base}; bands: {bands}, training chips: {chips}, held-out chips: {held}, steps: "
                "{steps}; {seconds:.0f} s on {device}",
                bands=len(self.bands),
            ),
            *file_lines(("Report", self.report)),
        ]


@job(
    "align",
    title="Align a sensor with CLIP",
    summary="Makes a model for another sensor from its rasters and pictures of the same places.",
    result=AlignSensorResult,
    shows_log=True,
)
class AlignSensorRequest(ChipOptions, Request):
    """An alignment (Zavras et al. 2024): a student for the sensor learns to say of a place what the teacher says of its
    picture, so that the teacher's words fit."""

    teacher_rasters: Rasters = param(
        title="Raster(s) in natural colours",
        help="Rasters with red, green and blue bands, which the teacher understands: one for each raster of the "
        "sensor, in the same order.",
    )
    sensor_rasters: Rasters = param(
        title="Raster(s) of the sensor",
        help="The same places as the other sensor sees them, in the same order, in any coordinate system and pixel "
        "size. All have the same bands.",
    )
    sensor_bands: BandNumbers = advanced_param(
        (),
        title="Bands of the sensor",
        example="1,2",
        help="Numbers of the bands of the sensor that the new model sees, counted from 1. By default, all.",
    )
    low: tuple[float, ...] = advanced_param(
        (),
        title="Lowest values of the sensor",
        example="-25",
        help="Values of the bands that become 0: one for all bands, or one for each. By default, what the rasters hold "
        "(1st percentile). Fixed values are right if other rasters will be used later: radar in decibels suits -25 to "
        "0, Sentinel-2 0 to 10000.",
    )
    high: tuple[float, ...] = advanced_param(
        (),
        title="Highest values of the sensor",
        example="0",
        help="Values of the bands that become 1: one for all bands, or one for each. By default, what the rasters hold "
        "(99th percentile).",
    )
    test: tuple[int, ...] = advanced_param(
        (),
        title="Pairs to measure with",
        example="3",
        help="Numbers of the pairs, counted from 1, that are not learned from but measure the result. By default, a "
        "strip of each.",
    )
    held: float = advanced_param(
        0.2,
        title="Part to measure with",
        help="Width of the strip of each raster that is not learned from but measures the result, as a part of it.",
        low=0.05,
        high=0.5,
    )
    overlap: float = advanced_param(
        0.75,
        title="Overlap of the chips",
        help="Overlap of neighbouring chips to learn from, as a part of their edge. A larger one gives more chips.",
        low=0,
        high=0.95,
    )
    mse: float = loss_weight(
        1.0,
        title="Weight of the mean square difference",
        help="Weight of the mean square difference between the vectors of student and teacher; 0 leaves it out.",
    )
    cosine: float = loss_weight(
        1.0,
        title="Weight of the cosine",
        help="Weight of 1 − cosine between the vectors of student and teacher; 0 leaves it out.",
    )
    contrast: float = loss_weight(
        0.1,
        title="Weight of the contrast",
        help="Weight of the symmetric contrastive loss among the chips of a batch; 0 leaves it out.",
    )
    label: float = loss_weight(
        0.05,
        title="Weight of the words",
        help="Weight of the cross-entropy between what student and teacher say about the words; 0 leaves it out.",
    )
    words: Phrases = param(
        "",
        title="Words",
        help="What there is in the rasters, in English, such as “water; forest; buildings”, or a file of it. The new "
        "model learns to distinguish these as the teacher does, and the log says how often both agree. Other words "
        "work afterwards as well.",
    )
    size: int = inherited(
        0,
        help="Edge of the chips that the rasters are cut into, in pixels of the natural colours; 0 means what suits "
        "the pixel size.",
    )
    epochs: int = inherited(10)
    rate: float = inherited(3e-4)
    weight_decay: float = inherited(0.05)
    batch: int = inherited(32, low=2)  # a contrast needs two

    def check(self) -> None:
        pairs = len(self.teacher_rasters)
        if pairs != len(self.sensor_rasters):
            raise ClippanError(
                "The numbers of rasters differ (teacher: {teacher}, sensor: {sensor}); give the same number of both, "
                "in the same order.",
                teacher=pairs,
                sensor=len(self.sensor_rasters),
            )
        if self.words:
            parse_prompts(self.words)
        check_start_is_kept(self.output, self.model)
        self._check_ranges()
        if any(not 1 <= number <= pairs for number in self.test) or len(set(self.test)) >= pairs:
            raise ClippanError(
                "The pairs to measure with are some of 1 to {pairs}, and not all; choose others.", pairs=pairs
            )
        if not (self.mse or self.cosine or self.contrast):
            raise ClippanError(
                "Nothing ties the student to the teacher; give mse, cosine or contrast a weight above 0."
            )

    def _check_ranges(self) -> None:
        if len(self.low) != len(self.high):
            raise ClippanError("The lowest and the highest values go together; give both, or none.")
        if any(not low < high for low, high in zip(self.low, self.high)):
            raise ClippanError("A lowest value is not below the highest; give a range for each band.")
        if self.sensor_bands and len(self.low) not in (0, 1, len(self.sensor_bands)):
            raise ClippanError(
                "The numbers of ranges ({ranges}) and bands ({bands}) differ; give one range for each band.",
                ranges=len(self.low),
                bands=len(self.sensor_bands),
            )

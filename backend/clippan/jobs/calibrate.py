"""Calibrate: what a few labelled places say about a prompt table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from clippan.catalogue.prompts import parse_prompts
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message, Table, format_number
from clippan.jobs.base import Request, Result, file_lines, job
from clippan.jobs.kinds import FieldName, PromptFile, Rasters, Report, Vectors, check_writable
from clippan.jobs.options import LayerOption, PromptOptions, RunOptions
from clippan.jobs.param import inherited, param
from clippan.jobs.rendering import Rendering


@dataclass(frozen=True)
class Accuracy:
    """How a map agrees with labels.

    Attributes:
        accuracy: part of the labelled pixels that are right.
        mean_iou: mean intersection over union, of the classes that occur.
        iou: of each class; None where it does not occur.
        confusion: pixels by true class (rows) and class found (columns).
    """

    accuracy: float
    mean_iou: float
    iou: tuple[Optional[float], ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CalibrateResult(Result):
    """What was found.

    Attributes:
        output: the calibrated table.
        classes: names.
        labelled: labelled pixels a class.
        before, after: the accuracy on the labelled pixels, after by cross-validation over polygons (or points), so
            that it is not flattered.
        logit_scale: that was found.
        offsets: that were found, one a class.
        pictures: which bands of each raster the model saw, and how they were stretched.
    """

    output: str
    report: str
    classes: tuple[str, ...]
    labelled: tuple[int, ...]
    before: Accuracy
    after: Accuracy
    logit_scale: float
    offsets: tuple[float, ...]
    hints: tuple[str, ...]
    seconds: float
    pictures: tuple[Rendering, ...]

    def describe(self) -> list[Line]:
        heading = ("Class", "Labelled pixels", "IoU before", "IoU after", "Offset")
        columns = (self.classes, self.labelled, self.before.iou, self.after.iou, self.offsets)
        rows = [
            (name, f"{count:,}", format_number(before, 3), format_number(after, 3), f"{offset:+.3f}")
            for name, count, before, after, offset in zip(*columns)
        ]
        means = (format_number(self.before.mean_iou, 3), format_number(self.after.mean_iou, 3))
        rows.append((Message("mean"), f"{sum(self.labelled):,}", *means, ""))
        return [
            Table(heading, rows),
            Message(
                "Accuracy: {before:.1%} before, {after:.1%} after",
                before=self.before.accuracy,
                after=self.after.accuracy,
            ),
            self.line("{output}: logit scale {scale:.4g}, {seconds:.1f} s", scale=self.logit_scale),
            *file_lines(("Report", self.report)),
        ]


@job(
    "calibrate",
    title="Calibrate prompts",
    summary="Fits a table of classes to a few labelled places.",
    result=CalibrateResult,
    shows_log=True,
)
class CalibrateRequest(PromptOptions, LayerOption, RunOptions, Request):
    """A calibration."""

    rasters: Rasters = param(title="Rasters", help="The rasters in which the labelled places lie.", positional=True)
    samples: Vectors = param(
        title="Labelled places",
        help="The labels of each raster: polygons or points whose class is known, in any coordinate system; or a "
        "raster on the same grid with values 1 to N in the order of the classes.",
    )
    field: FieldName = param(
        "class",
        title="Field with the class",
        help="The field of the labelled places that holds the name of the class, a synonym of it, or its number.",
    )
    layer: str = inherited("")
    output: PromptFile = param(
        title="Calibrated table", help="The JSON file to write. Choose it as the classes of Segment by text."
    )
    report: Report = param("", title="Report", help="A web page with the accuracy before and after.", proposed=True)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Without the table, which may be calibrated in its place."""
        return (*self.rasters, *self.samples)

    def check(self) -> None:
        if len(self.rasters) != len(self.samples):
            raise ClippanError(
                "The numbers of rasters ({rasters}) and of their labels ({labels}) differ; give labels for each "
                "raster.",
                rasters=len(self.rasters),
                labels=len(self.samples),
            )
        if len(parse_prompts(self.classes).classes) < 2:
            raise ClippanError("Calibration weighs classes against each other; give two or more.")
        if self.report:
            check_writable(self.report, [texts.named_file(self.classes)])

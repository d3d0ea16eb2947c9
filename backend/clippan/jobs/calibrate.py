"""Calibrate: what a few labelled places say about a prompt table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.catalogue.prompts import parse
from clippan.core import texts
from clippan.core.device import Device
from clippan.core.errors import ClippanError
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Stretch
from clippan.jobs.picture import RasterPicture


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
class CalibrateResult:
    """What was found.

    Attributes:
        output: the calibrated table.
        report: the HTML report; empty where not asked for.
        classes: names.
        labelled: labelled pixels a class.
        before, after: the accuracy on the labelled pixels, after by cross-validation over polygons (or points), so
            that it is not flattered.
        logit_scale: that was found.
        offsets: that were found, one a class.
        hints: sentences for the user.
        seconds: wall time.
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
    pictures: tuple[RasterPicture, ...]


@dataclass(frozen=True)
class CalibrateRequest(Request):
    """Parameters of a calibration.

    Attributes:
        rasters: one or several.
        samples: for each raster its labels: a vector file with polygons or points, or a raster on the same grid with
            values 1 to N in the order of the classes (0 is unlabelled).
        classes: the prompt table, as in SegmentRequest.
        output: JSON file of the calibrated table.
        field: of the vector files, which holds the class by its name (or a synonym) or its number.
        layer: of the vector files; empty means the first that has such places.
        report: HTML file to write.
        model, window, flips, bias, bands, stretch, nodata: as in SegmentRequest.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "calibrate"
    result: ClassVar[type] = CalibrateResult

    rasters: tuple[str, ...]
    samples: tuple[str, ...]
    classes: str
    output: str
    field: str = "class"
    layer: str = ""
    report: str = ""
    model: str = "starter"
    window: tuple[int, ...] = ()
    flips: bool = False
    bias: Optional[float] = None
    bands: tuple[int, ...] = ()
    stretch: Stretch = Stretch.AUTO
    nodata: Optional[float] = None
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (*self.rasters, *self.samples)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.output, self.report)

    def validate(self) -> None:
        """See Request."""
        check.sources("raster", self.rasters)
        check.sources("labelled sample", self.samples)
        if len(self.rasters) != len(self.samples):
            check.fail(
                f"{len(self.rasters)} rasters and {len(self.samples)} files of samples were given; give one for each."
            )
        if len(parse(self.classes).classes) < 2:
            raise ClippanError("Calibration weighs classes against each other; give two or more.")
        check.output(self.output, self.inputs)  # a table may be calibrated anew in its place
        check.on_disk(self.output)
        if not self.output.lower().endswith(".json"):
            check.fail(f"The table {self.output} is written as JSON; let its name end in .json.")
        if self.report:
            check.html(self.report)
            check.output(self.report, [*self.inputs, texts.file_of(self.classes)])
            check.apart((self.output, self.report))
            check.on_disk(self.report)
        check.model(self.model)
        for edge in self.window:
            check.at_least("window", edge, 16)
        if self.bias is not None:
            check.between("bias", self.bias, -1, 1)
        check.picture_bands(self.bands)
        check.at_least("number of threads", self.threads, 0)

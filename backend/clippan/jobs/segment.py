"""Segment: a map of classes from prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.messages import Line, Table, format_number
from clippan.jobs.base import Request, Result, file_lines, job
from clippan.jobs.kinds import AreaTable, ClassMapFile, PolygonFile, Raster, RasterFile
from clippan.jobs.options import ExtentOptions, PromptOptions, Refinement, RunOptions
from clippan.jobs.param import advanced_param, param
from clippan.jobs.rendering import Rendering


@dataclass(frozen=True)
class ClassArea:
    """What the map shows of a class.

    Attributes:
        value: in the map; 0 is what stayed unclassified.
        name: of the class.
        colour: as #rrggbb.
        pixels: of it.
        share: of the pixels that are not nodata, 0 to 1.
        hectares: None where the raster has no coordinates.
        confidence: the mean, 0 to 1; None where it has no pixels.
    """

    value: int
    name: str
    colour: str
    pixels: int
    share: float
    hectares: Optional[float]
    confidence: Optional[float]


@dataclass(frozen=True)
class SegmentResult(Result):
    """What was written.

    Attributes:
        output: the map.
        classes: the area of each, in the order of the values, and last what stayed unclassified (value 0).
        model: that made it.
        window: edges, in the raster's pixels, of the pictures that the model saw.
        rate: megapixels of the raster a second, without the start of the model.
        confidence, probabilities, polygons, areas: the other files; empty where not asked for.
        count: of polygons.
        picture: which bands the model saw, and how they were stretched.
    """

    output: str
    width: int
    height: int
    classes: tuple[ClassArea, ...]
    model: str
    device: str
    window: tuple[int, ...]
    seconds: float
    rate: float
    confidence: str
    probabilities: str
    polygons: str
    areas: str
    count: int
    hints: tuple[str, ...]
    provenance: Mapping[str, str]
    picture: Rendering

    def describe(self) -> list[Line]:
        heading = ("Value", "Class", "Share", "Hectares", "Mean confidence")
        rows = [
            (
                str(item.value),
                item.name,
                f"{item.share:.1%}",
                format_number(item.hectares),
                format_number(item.confidence),
            )
            for item in self.classes
        ]
        return [
            Table(heading, rows),
            self.line(
                "{output}: {width} × {height} pixels, windows of {window} pixels, model {model}",
                window=", ".join(map(str, self.window)),
            ),
            *file_lines(
                ("Confidence", self.confidence),
                ("Probabilities", self.probabilities),
                ("Polygons", self.polygons),
                ("Areas", self.areas),
            ),
            self.line("{device}, {seconds:.1f} s, {rate:.3g} megapixels a second"),
        ]


@job(
    "segment",
    title="Segment by text",
    summary="Makes a map of the classes that you name, without training or samples.",
    result=SegmentResult,
)
class SegmentRequest(PromptOptions, ExtentOptions, RunOptions, Request):
    """A map by text. Its values are 1 to N in the order of the classes; 0 is unclassified and nodata."""

    raster: Raster = param(
        title="Raster", help="The raster to map: a satellite or aerial picture of any size.", positional=True
    )
    output: ClassMapFile = param(
        title="Class map",
        help="The GeoTIFF to write: 1 for the first class, 2 for the second and so on; 0 for what is unclassified.",
    )
    confidence: RasterFile = param(
        "", title="Confidence", help="A raster with the confidence of each pixel's class, from 0 to 1."
    )
    probabilities: RasterFile = param(
        "", title="Probabilities", help="A raster with one band for each class: its probability, from 0 to 1."
    )
    polygons: PolygonFile = param(
        "", title="Polygons", help="The map as polygons with their class, mean confidence and area."
    )
    areas: AreaTable = param(
        "", title="Table of areas", help="A CSV file with the area and the mean confidence of each class."
    )
    logit_scale: Optional[float] = advanced_param(
        None,
        title="Sharpness of the confidence",
        help="Similarities are multiplied by this before they become probabilities: a larger number makes the model "
        "more certain. By default, what a calibration found, or 50.",
        above=0,
    )
    background: bool = advanced_param(
        False,
        title="Leave all else unclassified",
        help="Leaves pixels unclassified that fit common words for other land covers better than your classes. With a "
        "single class this is always done.",
    )
    refinement: Refinement = advanced_param(
        Refinement.GUIDED,
        title="Refinement of edges",
        help="The model sees in cells of several pixels. This moves the borders of the classes to the edges in the "
        "raster.",
    )
    min_area: int = advanced_param(
        0, title="Smallest polygon", help="Smaller polygons join their largest neighbour.", low=0, unit="pixels"
    )
    simplify: float = advanced_param(
        1.0,
        title="Smoothing of polygons",
        help="How far an outline may move when it is simplified; 0 keeps the edges of the pixels.",
        low=0,
        high=100,
        unit="pixels",
    )

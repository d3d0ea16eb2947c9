"""Segment: a map of classes from prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.catalogue.prompts import parse
from clippan.core import texts
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Refinement, Stretch
from clippan.jobs.picture import RasterPicture

VECTORS = (".gpkg", ".geojson", ".fgb", ".shp")  # formats of the polygons, by ending


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
class SegmentResult:
    """What was written.

    Attributes:
        output: the map.
        width, height: its size.
        classes: the area of each, in the order of the values, and last what stayed unclassified (value 0).
        model: that made it.
        device: where it was computed.
        window: edges, in the raster's pixels, of the pictures that the model saw.
        seconds: wall time.
        rate: megapixels of the raster a second, without the start of the model.
        confidence, probabilities, polygons, areas: the other files; empty where not asked for.
        count: of polygons.
        hints: sentences for the user.
        provenance: the map's tags.
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
    picture: RasterPicture


@dataclass(frozen=True)
class SegmentRequest(Request):
    """Parameters of a map by text. Its values are 1 to N in the order of the classes; 0 is unclassified and nodata.

    Attributes:
        raster: file or GDAL data source.
        classes: a prompt table: text as ``water; forest, trees; building, roof``, JSON, or a JSON file.
        output: GeoTIFF of the map.
        model: an id of ``resources/models.json``, or a folder with weights.
        confidence: GeoTIFF to write: the confidence of each pixel's class, 0 to 1.
        probabilities: GeoTIFF to write: a band a class, 0 to 1.
        polygons: vector file to write (GeoPackage, GeoJSON, FlatGeobuf, Shapefile, by its ending).
        areas: CSV to write: area of each class.
        min_area: of a polygon, in the raster's pixels; smaller ones join their largest neighbour.
        simplify: how far a polygon's outline may move, in pixels; 0 leaves the pixels' edges.
        window: edge of what the model sees at a time, in the raster's pixels; several are averaged; empty means what
            suits the model and the ground resolution.
        flips: also look at mirrored pictures and average; takes four times as long.
        bias: what of a whole window's likeness to a class is added to that of each of its cells, usually a negative
            part (SegEarth-OV, Li et al. 2025); None means -0.3 for towers that take one size of pictures
            (transformers), whose cells all know something of the whole, and 0 for those that take any (timm's).
        logit_scale: what cosines are multiplied by; None for what the table says, or 50.
        background: leave unclassified what common words for other things fit better; with one class it is always so.
        refinement: how edges follow the picture.
        bands: for red, green and blue, from 1, or one for grey; empty means natural colours where they can be told.
        stretch: how values become a picture, once for the whole raster.
        nodata: overrides the nodata value that the raster declares.
        extent: only this part, xmin, ymin, xmax, ymax; empty for all. In degrees, an xmin above xmax means across the
            180th meridian (RFC 7946).
        crs: of the extent; empty means the raster's.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "segment"
    result: ClassVar[type] = SegmentResult

    raster: str
    classes: str
    output: str
    model: str = "starter"
    confidence: str = ""
    probabilities: str = ""
    polygons: str = ""
    areas: str = ""
    min_area: int = 0
    simplify: float = 1.0
    window: tuple[int, ...] = ()
    flips: bool = False
    bias: Optional[float] = None
    logit_scale: Optional[float] = None
    background: bool = False
    refinement: Refinement = Refinement.GUIDED
    bands: tuple[int, ...] = ()
    stretch: Stretch = Stretch.AUTO
    nodata: Optional[float] = None
    extent: tuple[float, ...] = ()
    crs: str = ""
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.raster, texts.file_of(self.classes))

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return tuple(filter(None, (self.output, self.confidence, self.probabilities, self.polygons, self.areas)))

    def validate(self) -> None:
        """See Request."""
        check.source("raster", self.raster)
        parse(self.classes)
        check.output(self.output, self.inputs, ".aux.xml")  # which holds the classes
        for path in self.outputs[1:]:
            check.output(path, self.inputs)
        check.apart(self.outputs)
        for path in filter(None, (self.output, self.confidence, self.probabilities)):
            check.geotiff(path)
        if self.polygons and not self.polygons.lower().endswith(VECTORS):
            check.fail(f"The format of {self.polygons} is not known; let its name end in {', '.join(VECTORS)}.")
        for path in filter(None, (self.polygons, self.areas)):
            check.on_disk(path)
        if self.areas and not self.areas.lower().endswith(".csv"):
            check.fail(f"The table {self.areas} is written as CSV; let its name end in .csv.")
        check.model(self.model)
        check.at_least("smallest area", self.min_area, 0)
        check.between("simplification", self.simplify, 0, 100)
        for edge in self.window:
            check.at_least("window", edge, 16)
        if self.bias is not None:
            check.between("bias", self.bias, -1, 1)
        if self.logit_scale is not None:
            check.positive("logit scale", self.logit_scale)
        check.picture_bands(self.bands)
        check.extent(self.extent)
        check.at_least("number of threads", self.threads, 0)

"""Search: an index is asked for places that fit a text, a picture, or other places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from clippan.core import texts
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request


@dataclass(frozen=True)
class Hit:
    """A place that was found.

    Attributes:
        tile: its id in the index.
        rank: from 1.
        prompt: which of the texts it fits best, or what else was searched for.
        score: cosine similarity with what was searched, less that with what is to be left out; -1 to 1.
        confidence: how probable it is that the place shows that, 0 to 1.
        raster: the file or data source.
        window: column, row, width and height in pixels of the raster.
        bounds: xmin, ymin, xmax, ymax in the CRS of the result; of a picture without coordinates in pixels, y up
            from its top (so negative); empty if the result has a CRS and the picture has not.
        outline: its four corners x, y, x, y, … in the same coordinates.
        scale: edge of the tile, in metres; in pixels without coordinates.
        date: of the raster, as 2021-06-30; empty if it tells none.
    """

    tile: int
    rank: int
    prompt: str
    score: float
    confidence: float
    raster: str
    window: tuple[int, ...]
    bounds: tuple[float, ...]
    outline: tuple[float, ...]
    scale: float
    date: str


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        hits: the best first.
        index, model: where, and by whose vectors.
        crs: of the hits' coordinates, as ``EPSG:32618`` or WKT; empty for pictures without coordinates.
        tiles: how many were searched.
        output, heatmap: files that were written, empty if none was asked for.
        hints: what the user may want to know, each a sentence.
        seconds: wall time.
    """

    hits: tuple[Hit, ...]
    index: str
    model: str
    crs: str
    tiles: int
    output: str
    heatmap: str
    hints: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class SearchRequest(Request):
    """Parameters of a search. All that is searched for may be mixed; at least one is needed.

    Attributes:
        index: the GeoPackage, or ``postgresql://…``.
        text: what to look for; of several texts each hit bears the one that fits it best.
        without: what the places should not show.
        image: example pictures, or rasters.
        at: a place x, y whose like is searched.
        like, unlike: ids of tiles whose like is searched, or left out.
        top: how many hits at most.
        least: confidence that a hit needs, 0 to 1.
        extent: only tiles that touch xmin, ymin, xmax, ymax; empty means everything. In degrees, an xmin above xmax
            means across the 180th meridian (RFC 7946).
        crs: of the extent and the place, as ``EPSG:4326``; empty means that of the index.
        rasters: only these rasters, by path or file name; empty means all.
        since, until: only rasters of these dates and between, as 2021-06-30 or 2021.
        overlapping: keep hits that overlap a better one in the same raster.
        output: GeoPackage of the hits to write; empty for none.
        heatmap: GeoTIFF of the confidence over the area to write; empty for none.
        device: where to compute.
    """

    name: ClassVar[str] = "search"
    result: ClassVar[type] = SearchResult

    index: str
    text: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    at: tuple[float, ...] = ()
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()
    top: int = 20
    least: float = 0.0
    extent: tuple[float, ...] = ()
    crs: str = ""
    rasters: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    overlapping: bool = False
    output: str = ""
    heatmap: str = ""
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.index, f"{self.index}.vectors", *self.image)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return tuple(filter(None, (self.output, self.heatmap)))

    def validate(self) -> None:
        """See Request."""
        check.index(self.index)
        if not (any(item.strip() for item in self.text) or self.image or self.at or self.like):
            check.fail("Nothing to search for was given; give a text, an example picture or a place.")
        for text in filter(str.strip, (*self.text, *self.without)):
            if texts.is_wordless(text):
                check.fail(f"“{text.strip()}” has no letter or digit; write what to look for in words.")
        for path in self.image:
            check.source("example picture", path)
        if self.at and len(self.at) != 2:
            check.fail("A place has two coordinates; write it as X,Y.")
        check.tiles((*self.like, *self.unlike))
        check.at_least("number of hits", self.top, 1)
        check.between("confidence", self.least, 0, 1)
        check.extent(self.extent)
        for what, date in (("first", self.since), ("last", self.until)):
            check.date(f"{what} date", date)
        if self.until and self.since[: len(self.until)] > self.until:
            check.fail(f"The first date {self.since} is after the last, {self.until}; exchange them.")
        for path in self.outputs:
            check.output(path, self.inputs)
        check.apart(self.outputs)
        if self.output:
            check.geopackage(self.output)
            check.on_disk(self.output)
        if self.heatmap:
            check.geotiff(self.heatmap)


@dataclass(frozen=True)
class ThumbnailsResult:
    """Pictures of tiles: PNG files by the tiles' ids; a tile whose raster cannot be read is missing."""

    files: Mapping[str, str]


@dataclass(frozen=True)
class ThumbnailsRequest(Request):
    """Makes small pictures of tiles, as the model saw them.

    Attributes:
        index: where they are.
        tiles: their ids.
        folder: where to write PNG files; what is there already is kept.
        pixels: edge of the pictures.
    """

    name: ClassVar[str] = "thumbnails"
    result: ClassVar[type] = ThumbnailsResult

    index: str
    tiles: tuple[int, ...]
    folder: str
    pixels: int = 96

    def validate(self) -> None:
        """See Request."""
        check.index(self.index)
        check.tiles(self.tiles)
        check.folder("folder for pictures", self.folder)
        check.at_least("size of the pictures", self.pixels, 16)

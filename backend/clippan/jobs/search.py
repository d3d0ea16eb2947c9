"""Search: an index is asked for places that fit a text, a picture, or other places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import Date, Files, GeoPackage, IndexName, OutputFolder, Point, RasterFile, TileNumbers
from clippan.jobs.options import DeviceOptions, ExtentOptions
from clippan.jobs.param import advanced_param, param


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
class SearchResult(Result):
    """What was found.

    Attributes:
        hits: the best first.
        index, model: where, and by whose vectors.
        crs: of the hits' coordinates, as ``EPSG:32618`` or WKT; empty for pictures without coordinates.
        tiles: how many were searched.
        output, heatmap: files that were written, empty if none was asked for.
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

    def describe(self) -> list[Line]:
        rows = [
            (
                str(hit.rank),
                f"{hit.confidence:.0%}",
                hit.prompt,
                hit.raster,
                ", ".join(f"{value:.10g}" for value in hit.bounds or hit.window),
                str(hit.tile),
            )
            for hit in self.hits
        ]
        heading = ("Rank", "Confidence", "Text", "Raster", "Place", "Tile")
        return [
            *([Table(heading, rows)] if rows else []),
            self.line(
                "Places found: {found}, tiles searched: {tiles}; model {model}, {seconds:.2f} s", found=len(self.hits)
            ),
            *filter(None, (self.output, self.heatmap)),
        ]


@job(
    "search",
    title="Search",
    summary="Searches an index for places that fit a text, a picture or another place.",
    result=SearchResult,
)
class SearchRequest(ExtentOptions, DeviceOptions, Request):
    """A search. Texts, pictures and places may be mixed; at least one is needed."""

    index: IndexName = param(
        title="Index",
        help="The index to search: a GeoPackage that Build tile index made, or a catalogue in PostgreSQL, written as "
        "postgresql://user@host/database?schema=name.",
        positional=True,
    )
    text: tuple[str, ...] = param(
        (),
        title="What to look for",
        help="Words for what a place shows, in English. If there are several texts, each hit names the one that fits "
        "it best.",
    )
    without: tuple[str, ...] = param((), title="Without", help="What the places should not show.")
    image: Files = param(
        (),
        title="Example picture",
        help="A picture or raster of what you look for, seen from above at about the scale of the tiles.",
    )
    at: Point = param(
        (), title="Place on the map", help="A point in the index; places that look like its surroundings are found."
    )
    like: TileNumbers = advanced_param(
        (), title="Tiles like these", help="Numbers of tiles, from an earlier search, whose like is searched."
    )
    unlike: TileNumbers = advanced_param(
        (), title="Tiles unlike these", help="Numbers of tiles, from an earlier search, whose like is left out."
    )
    top: int = param(20, title="Maximum number of places", help="How many places to find, the best first.", low=1)
    least: float = param(
        0.0, title="Minimum confidence", help="Leaves out places with less confidence, from 0 to 1.", low=0, high=1
    )
    rasters: tuple[str, ...] = advanced_param(
        (),
        title="Only these rasters",
        help="Paths or file names of rasters of the index. By default, all are searched.",
    )
    since: Date = advanced_param(
        "",
        title="Taken since",
        help="Only rasters from this day, month or year on, such as 2021-06-30, 2021-06 or 2021. Rasters without a "
        "date are left out.",
    )
    until: Date = advanced_param(
        "", title="Taken until", help="Only rasters up to this day, month or year. Rasters without a date are left out."
    )
    overlapping: bool = advanced_param(
        False,
        title="Keep overlapping places",
        help="Tiles overlap, and so do the best places; usually only the best of them is kept.",
    )
    output: GeoPackage = param(
        "", title="Places found", help="The places as polygons, with rank, confidence, raster and date."
    )
    heatmap: RasterFile = param("", title="Heat map", help="A raster of the confidence everywhere.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """With the vectors of the index."""
        return (self.index, f"{self.index}.vectors", *self.image)

    def check(self) -> None:
        if not (any(item.strip() for item in self.text) or self.image or self.at or self.like):
            raise ClippanError("Nothing to search for was given; give a text, an example picture or a place.")
        for text in filter(str.strip, (*self.text, *self.without)):
            if texts.is_wordless(text):
                raise ClippanError(
                    "“{text}” has no letter or digit; write what to look for in words.", text=text.strip()
                )
        if self.until and self.since[: len(self.until)] > self.until:
            raise ClippanError(
                "The first date {since} is after the last, {until}; exchange them.", since=self.since, until=self.until
            )


@dataclass(frozen=True)
class ThumbnailsResult(Result):
    """Pictures of tiles: PNG files by the tiles' ids; a tile whose raster cannot be read is missing."""

    files: Mapping[str, str]

    def describe(self) -> list[Line]:
        return list(self.files.values()) or [Message("No picture could be made.")]


@job(
    "thumbnails",
    title="Thumbnails",
    summary="Writes small pictures of an index's tiles, as the model saw them.",
    result=ThumbnailsResult,
)
class ThumbnailsRequest(Request):
    """Small pictures of tiles; files that exist are kept."""

    index: IndexName = param(title="Index", help="The index: a GeoPackage, or postgresql://….", positional=True)
    tiles: TileNumbers = param(title="Tiles", help="Numbers of the tiles, from a search.")
    folder: OutputFolder = param(title="Folder for pictures", help="Where to write the PNG files.")
    pixels: int = param(96, title="Size of the pictures", help="Edge of the pictures.", low=16, unit="pixels")

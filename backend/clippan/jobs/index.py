"""Index: rasters are cut into tiles and embedded, so that they can be searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import Extent, IndexName, IndexOutput, ModelName, Rasters
from clippan.jobs.options import ExtentOptions, PictureOptions, RunOptions
from clippan.jobs.param import advanced_param, inherited, param
from clippan.jobs.rendering import Rendering, band_choice_sentences


@dataclass(frozen=True)
class IndexResult(Result):
    """What the index holds now.

    Attributes:
        output: the index.
        model: that embedded the tiles.
        tiles, rasters: how many it holds.
        added, kept, dropped: tiles that this job embedded, found unchanged, and removed.
        empty: tiles of this job that show too few valid pixels, and are not in the index.
        failed: rasters that could not be indexed, each a sentence.
        rate: tiles a second, without the start of the model; 0 if none was added.
        hints: sentences for the user: what in a folder is no picture, and bands that were guessed.
        pictures: which bands of each raster of this job the model saw, and how they were stretched.
    """

    output: str
    model: str
    tiles: int
    rasters: int
    added: int
    kept: int
    dropped: int
    empty: int
    failed: tuple[str, ...]
    device: str
    seconds: float
    rate: float
    hints: tuple[str, ...]
    pictures: tuple[Rendering, ...]

    def describe(self) -> list[Line]:
        return [
            self.line("{output}: tiles: {tiles}, rasters: {rasters}, model {model}"),
            self.line(
                "Tiles added: {added}, kept: {kept}, dropped: {dropped}, without data: {empty}; {seconds:.1f} s on "
                "{device}, {rate:.0f} tiles/s"
            ),
            *self.failed,
        ]


@job(
    "index",
    title="Build tile index",
    summary="Indexes rasters, so that they can be searched by text, by example or by place.",
    result=IndexResult,
    shows_log=True,
)
class IndexRequest(PictureOptions, ExtentOptions, RunOptions, Request):
    """An index. A second run on the same output adds what is new or has changed."""

    rasters: Rasters = param(
        title="Rasters",
        help="The rasters to index: files, scenes, folders with everything below them, archives or GDAL data sources. "
        "A scene of several files is one raster.",
        positional=True,
    )
    output: IndexOutput = param(
        title="Index",
        help="The index to make, or to update if it exists: a GeoPackage, beside which a file of vectors lies, or "
        "postgresql://….",
    )
    model: ModelName = param(
        "starter",
        title="Model",
        help="The vision-language model that describes the tiles: one of the list, or a folder with a model of your "
        "own. An index is searched with the model that made it.",
    )
    tile_metres: tuple[float, ...] = param(
        (),
        title="Tile size in metres",
        example="200,800",
        help="Edge of the tiles on the ground, about as large as what you look for with some of its surroundings. "
        "Several sizes find small and large objects. By default, what suits the pixel size: 640 m at 10 m, 160 m at "
        "1 m.",
        above=0,
    )
    tile: tuple[int, ...] = advanced_param(
        (), title="Tile size in pixels", help="The same in pixels, for pictures without coordinates.", low=16
    )
    overlap: float = advanced_param(
        0.25,
        title="Overlap of tiles",
        help="Overlap of neighbouring tiles, as a part of their edge. A larger one finds more at the borders of tiles, "
        "and takes longer.",
        low=0,
        high=0.9,
    )
    nodata: Optional[float] = inherited(None, advanced=False)
    extent: Extent = inherited(
        (),
        help="Only tiles that touch it are indexed. In degrees, a west above the east means across the 180th meridian.",
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """None: folders among the rasters have to be looked into first; then no raster is replaced either."""
        return ()

    def check(self) -> None:
        if self.tile and self.tile_metres:
            raise ClippanError("The tile size is given in pixels and in metres; give one of them.")


@dataclass(frozen=True)
class AboutIndexResult(Result):
    """What an index is.

    Attributes:
        index: its name.
        model, label: whose vectors it holds.
        tiles, rasters: how many it holds.
        crs: of its places, as ``EPSG:32618`` or WKT; empty for pictures without coordinates.
        extent: xmin, ymin, xmax, ymax in it; empty if it has no places.
        files: the rasters.
        complete: whether no raster waits to be indexed to its end.
        pictures: which bands of each raster are red, green and blue, and how they were stretched.
        warning: what stands against a search, as a sentence; empty if nothing.
    """

    index: str
    model: str
    label: str
    tiles: int
    rasters: int
    crs: str
    extent: tuple[float, ...]
    files: tuple[str, ...]
    complete: bool
    pictures: tuple[Rendering, ...] = ()
    warning: str = ""

    def describe(self) -> list[Line]:
        extent = ", ".join(f"{value:.10g}" for value in self.extent)
        return [
            self.line("Tiles: {tiles}, rasters: {rasters}, vectors of {label} ({model})"),
            Message("CRS {crs}, extent {extent}", crs=self.crs or "–", extent=extent or "–"),
            Message("complete") if self.complete else Message("not complete: index the same rasters again to resume"),
            *([self.warning] if self.warning else []),
            *self.files,
            *band_choice_sentences(self.pictures),
        ]


@job("about", title="About an index", summary="Says what an index holds.", result=AboutIndexResult)
class AboutIndexRequest(Request):
    """Asks what an index holds; neither the model nor the rasters are opened."""

    index: IndexName = param(title="Index", help="The index: a GeoPackage, or postgresql://….", positional=True)

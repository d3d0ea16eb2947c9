"""Index: rasters are cut into tiles and embedded, so that they can be searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Stretch
from clippan.jobs.picture import RasterPicture


@dataclass(frozen=True)
class IndexResult:
    """What the index holds now.

    Attributes:
        output: the index.
        model: that embedded the tiles.
        tiles, rasters: how many it holds.
        added, kept, dropped: tiles that this job embedded, found unchanged, and removed.
        empty: tiles of this job that show too few valid pixels, and are not in the index.
        failed: rasters that could not be indexed, each a sentence.
        device: where it was computed.
        seconds: wall time.
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
    pictures: tuple[RasterPicture, ...]


@dataclass(frozen=True)
class IndexRequest(Request):
    """Parameters of an index. A second run on the same output adds what is new or has changed.

    Attributes:
        rasters: files, folders (with all below them), archives and GDAL data sources. A scene of several files is one.
        output: the GeoPackage (its vectors lie beside it), or ``postgresql://…``.
        model: an id of ``resources/models.json``, or a folder with weights.
        tile_metres: edges of the tiles, in metres; several mean several scales.
        tile: the same in pixels; where both are empty, what suits the ground resolution.
        overlap: of neighbouring tiles, as a part of their edge (0 to 0.9).
        bands: for red, green and blue, from 1; empty means natural colours where they can be told.
        stretch: how values become a picture, once for a whole raster.
        nodata: overrides the nodata value that the rasters declare.
        extent: only tiles that touch xmin, ymin, xmax, ymax; empty means everything. In degrees, an xmin above xmax
            means across the 180th meridian (RFC 7946).
        crs: of the extent, as ``EPSG:4326``; empty means that of each raster.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "index"
    result: ClassVar[type] = IndexResult

    rasters: tuple[str, ...]
    output: str
    model: str = "starter"
    tile_metres: tuple[float, ...] = ()
    tile: tuple[int, ...] = ()
    overlap: float = 0.25
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
        return ()  # folders among the rasters have to be looked into first

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return () if check.is_database(self.output) else (self.output, f"{self.output}.vectors")

    def validate(self) -> None:
        """See Request."""
        check.sources("raster or folder", self.rasters)
        check.index(self.output)
        if not check.is_database(self.output):
            check.on_disk(self.output)
            check.output(self.output, self.rasters, ".vectors")
        check.model(self.model)
        if self.tile and self.tile_metres:
            check.fail("The tile size is given in pixels and in metres; give one of them.")
        for edge in self.tile:
            check.at_least("tile size", edge, 16)
        for metres in self.tile_metres:
            check.positive("tile size in metres", metres)
        check.between("overlap", self.overlap, 0, 0.9)
        check.picture_bands(self.bands)
        check.extent(self.extent)
        check.at_least("number of threads", self.threads, 0)


@dataclass(frozen=True)
class AboutIndexResult:
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
    pictures: tuple[RasterPicture, ...] = ()
    warning: str = ""


@dataclass(frozen=True)
class AboutIndexRequest(Request):
    """Asks what an index holds; neither the model nor the rasters are opened."""

    name: ClassVar[str] = "about"
    result: ClassVar[type] = AboutIndexResult

    index: str

    def validate(self) -> None:
        """See Request."""
        check.index(self.index)

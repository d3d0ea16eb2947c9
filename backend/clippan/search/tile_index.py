"""A tile index, wherever it is kept: its records, and what its readers and writers share.

``geopackage`` and ``postgis`` add how theirs is opened, asked and written.
"""

from __future__ import annotations

import contextlib
import json
import operator
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Optional

import numpy as np
from osgeo import ogr

from clippan.core.errors import ClippanError
from clippan.raster.rendering import RenderOptions
from clippan.raster.tiles import Window

FORMAT = "1"
_INFO_COLUMNS = ("model", "label", "sha256", "width", "pixels", "crs")
_RASTER_COLUMNS = ("path", "look", "fingerprint", "stretch", "date", "done", "planned")


@dataclass(frozen=True)
class IndexInfo:
    """The model whose vectors an index holds.

    Attributes:
        model, label: id and name.
        sha256: of its weights; empty if unknown.
        embedding_dim: numbers in a vector.
        image_size: edge of the embedded pictures, in pixels.
        crs: of the outlines (WKT), empty for pictures without coordinates.
    """

    model: str
    label: str
    sha256: str
    embedding_dim: int
    image_size: int
    crs: str

    def row(self) -> dict[str, Any]:
        """The values by the names under which they are stored."""
        return dict(zip(_INFO_COLUMNS, astuple(self)))


@dataclass(frozen=True)
class IndexedRaster:
    """A raster in the index.

    Attributes:
        id: from 1; 0 before it is written.
        path: file or data source.
        options: JSON of its ``RenderOptions``.
        fingerprint: of its files.
        stretch: values that became black and white.
        date: of acquisition, empty if unknown.
        done, planned: tiles processed, and in all.
    """

    id: int
    path: str
    options: str
    fingerprint: str
    stretch: tuple[tuple[float, float], ...]
    date: str
    done: int
    planned: int

    @classmethod
    def from_row(cls, values: Sequence[Any]) -> IndexedRaster:
        """From the id and the stored values; raises ClippanError, TypeError or ValueError for what is damaged."""
        number, path, options, fingerprint, stretch, date, done, planned = values
        RenderOptions.from_json(options)
        if not all(isinstance(text or "", str) for text in (path, fingerprint, date)):
            raise TypeError("a path is no text")
        pairs = tuple((float(low), float(high)) for low, high in json.loads(stretch))
        return cls(
            number, path, options, fingerprint or "", pairs, date or "", operator.index(done), operator.index(planned)
        )

    def row(self) -> dict[str, Any]:
        """The values, but the id, by the names under which they are stored."""
        values = (*astuple(self)[1:4], json.dumps(self.stretch), self.date, self.done, self.planned)
        return dict(zip(_RASTER_COLUMNS, values))


@dataclass(frozen=True)
class IndexedTile:
    """A tile of a raster, its edge length (metres, or pixels), and its corners x, y, … in the index's CRS, if it has a
    place there."""

    id: int
    raster_id: int
    window: Window
    edge_length: float
    outline: tuple[float, ...]

    @classmethod
    def from_row(cls, values: Sequence[Any], wkb: Optional[bytes]) -> IndexedTile:
        """From id, raster_id, x, y, width, height and scale, and the geometry."""
        window = Window(*map(operator.index, values[2:6]))
        return cls(values[0], values[1], window, float(values[6]), _corners(wkb))

    @property
    def bounds(self) -> tuple[float, ...]:
        """xmin, ymin, xmax, ymax; empty without a place."""
        xs, ys = self.outline[::2], self.outline[1::2]
        return (min(xs), min(ys), max(xs), max(ys)) if self.outline else ()


@dataclass(frozen=True)
class TileFilter:
    """Restricts a search to rasters (None for all), and to tiles that touch a box xmin, ymin, xmax, ymax in the index's
    CRS (none for all)."""

    raster_ids: Optional[frozenset[int]] = None
    boxes: tuple[tuple[float, ...], ...] = ()


class IndexReader:
    """An index open for reading, safe in several threads while another process writes. Raises ClippanError if there is
    none, or it is damaged or incomplete.

    Attributes:
        path: its name, without secrets.
        rasters: by their ids.
        tile_counts: tiles of each raster, by its id.
    """

    path: str
    info: IndexInfo
    rasters: dict[int, IndexedRaster]
    tile_counts: Mapping[int, int]

    @property
    def count(self) -> int:
        return sum(self.tile_counts.values())

    @property
    def complete(self) -> bool:
        return all(raster.done >= raster.planned for raster in self.rasters.values())

    def tiles(self, ids: Iterable[int]) -> list[IndexedTile]:
        """Tiles in the order of ``ids``, without those that no longer exist."""
        wanted = [int(number) for number in ids]
        found = {tile.id: tile for tile in self._read_tiles(wanted)}
        return [found[number] for number in wanted if number in found]

    def _read_tiles(self, ids: list[int]) -> list[IndexedTile]:
        raise NotImplementedError


class IndexWriter:
    """An index open for writing, a context manager that one process at a time holds. ``create`` makes it, so a job that
    fails before leaves nothing.

    Args:
        info: the model; an existing index must hold vectors of the same.

    Attributes:
        rasters: by their ids.
        tile_counts: tiles of each raster, by its id.

    Raises:
        ClippanError: another process writes it, it is damaged, or another model's.
    """

    def __init__(self, path: str, info: IndexInfo) -> None:
        self.path = path
        self.info = info
        self.rasters: dict[int, IndexedRaster] = {}
        self.tile_counts: Counter[int] = Counter()

    def _resume(self, index: IndexReader, title: str) -> None:
        """Goes on with an index, ``title`` in a sentence."""
        found, wanted = index.info, self.info
        differs = (found.model, found.embedding_dim, found.image_size) != (
            wanted.model,
            wanted.embedding_dim,
            wanted.image_size,
        )
        if differs or (found.sha256 and wanted.sha256 and found.sha256 != wanted.sha256):
            raise ClippanError(
                "The {what} holds vectors of another version of {label}; choose another index, or restore the old "
                "weights."
                if found.model == wanted.model
                else "The {what} holds vectors of {label}, which cannot be compared with those of {model}; choose "
                "another index, or that model.",
                what=title,
                label=found.label,
                model=wanted.label,
            )
        self.info, self.rasters, self.tile_counts = found, dict(index.rasters), Counter(index.tile_counts)

    @property
    def exists(self) -> bool:
        raise NotImplementedError

    def create(self, crs: str) -> None:
        """Makes the index unless it exists; outlines are in this CRS (WKT, or empty)."""
        if not self.exists:
            self.info = replace(self.info, crs=crs)
            self._create()

    def _create(self) -> None:
        raise NotImplementedError

    def put_rasters(self, rasters: Sequence[IndexedRaster]) -> list[IndexedRaster]:
        """Adds rasters (with id 0) or updates them; returns them with their ids."""
        if not rasters:
            return []
        with self._transaction():
            written = [self._write_raster(raster) for raster in rasters]
        self.rasters.update({raster.id: raster for raster in written})
        return written

    def commit_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray, done: Mapping[int, int]) -> None:
        """Adds tiles with vectors (n, embedding_dim) and notes the progress of their rasters, all or nothing; raises
        ClippanError if they cannot be written."""
        with self._transaction():
            self._write_tiles(tiles, vectors)
            rasters = [self._write_raster(replace(self.rasters[number], done=count)) for number, count in done.items()]
        self.rasters.update({raster.id: raster for raster in rasters})
        self.tile_counts.update(tile.raster_id for tile in tiles)

    def drop_raster(self, number: int) -> int:
        """Removes a raster with its tiles; returns the number of tiles."""
        self._delete_raster(number)
        del self.rasters[number]
        return self.tile_counts.pop(number, 0)

    def _transaction(self) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError

    def _write_raster(self, raster: IndexedRaster) -> IndexedRaster:
        raise NotImplementedError

    def _write_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray) -> None:
        raise NotImplementedError

    def _delete_raster(self, number: int) -> None:
        raise NotImplementedError


def polygon_wkb(outline: Sequence[float], srid: int = 0) -> bytes:
    """The polygon with these corners x, y, …; with an SRID in PostGIS's extended form."""
    ring = (*outline, *outline[:2])
    head = struct.pack("<BII", 1, 0x20000003, srid) if srid else struct.pack("<BI", 1, ogr.wkbPolygon)
    return head + struct.pack(f"<II{len(ring)}d", 1, len(ring) // 2, *ring)


def _corners(wkb: Optional[bytes]) -> tuple[float, ...]:
    if wkb is None:
        return ()
    polygon = ogr.CreateGeometryFromWkb(wkb)  # a ring does not keep its polygon
    ring = polygon.GetGeometryRef(0)
    if ring is None or ring.GetPointCount() != 5:  # somebody has edited it
        left, right, bottom, top = polygon.GetEnvelope()
        return (left, top, right, top, right, bottom, left, bottom)
    return tuple(value for point in ring.GetPoints()[:-1] for value in point[:2])

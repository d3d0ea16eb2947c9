"""The index on disk: a GeoPackage of tiles, and beside it the matrix of their vectors.

``INDEX.gpkg`` holds the layer ``tiles`` (outline, raster, window, scale, date), the table ``rasters`` (path, look,
fingerprint, how far it is indexed) and, as metadata, which model made the vectors. ``INDEX.gpkg.vectors`` holds one
row of float16 a tile, without a header: the tile with the id n has row n - 1. Vectors are written before the tiles
that mean them, and tiles are committed in transactions, so whatever stops a job leaves an index that is whole;
rows that no tile means are free, and filled again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import numpy as np
from osgeo import gdal, ogr, osr

from clippan import __version__
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, exclusive_lock, is_disk_full, write_error
from clippan.raster.products import exists
from clippan.raster.rendering import RenderOptions, spatial_reference
from clippan.raster.tiles import Window
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.search import similarity

FORMAT = "1"
_DOMAIN = "CLIPPAN"
_CONNECT_TIMEOUT = 10  # to wait for another process that is committing
_DELETE_BATCH = 5000  # tiles that are removed at a time
_MAX_SIZE = 2**16  # vectors and pictures; no model's are
_BUSY_TIMEOUT = "busy_timeout=60000"  # milliseconds that a commit waits for a reader
_DAMAGE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, OverflowError)  # of values that are none of ours
_MAX_SQL_IDS = 900  # ids in one question: SQLite's limit is 999

ogr.UseExceptions()


@dataclass(frozen=True)
class IndexInfo:
    """The model whose vectors an index holds.

    Attributes:
        model, label: id and name.
        sha256: of its weights; empty if unknown.
        width: numbers in a vector.
        pixels: edge of the embedded pictures.
        crs: of the outlines (WKT), empty for pictures without coordinates.
    """

    model: str
    label: str
    sha256: str
    width: int
    pixels: int
    crs: str


@dataclass(frozen=True)
class IndexedRaster:
    """A raster in the index.

    Attributes:
        path: file or data source.
        look: JSON of its ``RenderOptions``, as the column is called.
        fingerprint: of its files.
        stretch: values that became black and white.
        date: of acquisition, empty if unknown.
        done, planned: tiles processed, and in all.
    """

    id: int
    path: str
    look: str
    fingerprint: str
    stretch: tuple[tuple[float, float], ...]
    date: str
    done: int
    planned: int


@dataclass(frozen=True)
class IndexedTile:
    """A tile with the id of its raster, its edge ``scale`` (metres, or pixels), and its corners x, y, … in the index's
    CRS (empty without a place there)."""

    id: int
    raster: int
    window: Window
    scale: float
    outline: tuple[float, ...]

    @property
    def bounds(self) -> tuple[float, ...]:
        """xmin, ymin, xmax, ymax; empty without a place."""
        xs, ys = self.outline[::2], self.outline[1::2]
        return (min(xs), min(ys), max(xs), max(ys)) if self.outline else ()


@dataclass(frozen=True)
class TileFilter:
    """Restricts a search to rasters (ids; None for all), and to tiles that touch a box xmin, ymin, xmax, ymax in the
    index's CRS (none for all)."""

    rasters: Optional[frozenset[int]] = None
    boxes: tuple[tuple[float, ...], ...] = ()


class GeoPackageReader:
    """An index open for reading, safe in several threads while another process writes. Raises ClippanError if there is
    none, or it is damaged or incomplete."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise ClippanError(
                "The index {path} does not exist; make one with Build tile index (clippan index).", path=path
            )
        _roll_back_killed(path)
        self._known = _file_state(path)
        self.about = _read_info(path)
        with self._reading() as cursor:
            cursor.execute("BEGIN")  # both tables as they are at one moment
            rows = cursor.execute(
                "SELECT id, path, relative, look, fingerprint, stretch, date, done, planned FROM rasters"
            ).fetchall()
            self.rasters = {row[0]: _raster_from_row(path, row) for row in rows}
            # One pass over two columns; a million tiles take about a second.
            pairs = np.array(
                cursor.execute("SELECT fid, raster_id FROM tiles ORDER BY fid").fetchall(), np.int64
            ).reshape(-1, 2)
            self._ids, self._of_raster = pairs[:, 0], pairs[:, 1]
            if (self._ids < 1).any() or not np.isin(self._of_raster, list(self.rasters)).all():
                raise ValueError("it has tiles of no raster")
        self._matrix = self._open_matrix()

    def _open_matrix(self) -> np.ndarray:
        file, width = vectors_path(self.path), self.about.width
        needed = int(self._ids.max()) if len(self._ids) else 0
        size = file.stat().st_size if file.is_file() else -1
        if not needed:
            return np.empty((0, width), np.float16)
        if size < 0:
            raise ClippanError(
                "The matrix {file} of the index is missing; put it back beside {path}, or build the index again.",
                file=file,
                path=self.path,
            )
        if size < needed * width * 2:
            raise ClippanError(
                "The matrix {file} of the index was cut short (bytes: {size}, tiles: {count}); delete the index and "
                "build it again, or restore both files from a backup.",
                file=file,
                size=size,
                count=needed,
            )
        # Copy on write: torch asks for memory that it might write to.
        return np.memmap(file, np.float16, "c", shape=(size // (width * 2), width))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Cursor]:
        """A cursor for queries and the conversion of their answers; any failure means a damaged index."""
        try:
            with contextlib.closing(_connect_sqlite(self.path, "ro")) as connection:
                yield connection.cursor()
        except (sqlite3.Error, ClippanError, *_DAMAGE_ERRORS) as error:
            raise read_error(self.path, error) from error

    @property
    def current(self) -> bool:
        """Whether nobody has written since this was read."""
        return _file_state(self.path) == self._known

    @property
    def count(self) -> int:
        return len(self._ids)

    def tile_ids(self, tile_filter: TileFilter) -> np.ndarray:
        """The ids of the tiles of these rasters that touch one of these boxes, int64, ascending."""
        if tile_filter == TileFilter():
            return self._ids
        keep: np.ndarray = np.ones(len(self._ids), bool)
        if tile_filter.rasters is not None:
            keep = np.isin(self._of_raster, list(tile_filter.rasters))
        if tile_filter.boxes:
            found: list[tuple[int]] = []
            with self._reading() as cursor:
                for left, bottom, right, top in tile_filter.boxes:
                    found += cursor.execute(
                        "SELECT id FROM rtree_tiles_geom WHERE maxx > ? AND minx < ? AND maxy > ? AND miny < ?",
                        (left, right, bottom, top),
                    ).fetchall()
            keep &= np.isin(self._ids, np.array(found, np.int64).ravel())
        return self._ids[keep]

    def candidates(self, directions: np.ndarray, tile_filter: TileFilter, count: int) -> tuple[np.ndarray, int]:
        """Ids of tiles among the ``count`` largest dot products with any direction (n, width), and the number of tiles
        compared."""
        ids = self.tile_ids(tile_filter)
        rows = similarity.top_rows(similarity.dot_products(self._matrix, directions), ids - 1, count)
        return rows + 1, len(ids)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of tiles, float32 (n, width)."""
        return self._matrix[ids - 1].astype(np.float32)

    def sample(self, count: int) -> np.ndarray:
        """Vectors of about ``count`` tiles across the index, float32 (n, width)."""
        return self.vectors(self._ids[:: max(len(self._ids) // count, 1)])

    def tiles(self, ids: Sequence[int]) -> list[IndexedTile]:
        """Tiles in the order of ``ids``, without those that no longer exist."""
        found: dict[int, IndexedTile] = {}
        with self._reading() as cursor:
            for start in range(0, len(ids), _MAX_SQL_IDS):
                part = [int(number) for number in ids[start : start + _MAX_SQL_IDS]]
                marks = ",".join("?" * len(part))
                # Only question marks are put into the text.
                question = f"SELECT fid, raster_id, x, y, width, height, scale, geom FROM tiles WHERE fid IN ({marks})"  # nosec B608
                for row in cursor.execute(question, part):
                    window = Window(*map(operator.index, row[2:6]))
                    found[row[0]] = IndexedTile(row[0], row[1], window, float(row[6]), _corners(row[7]))
        return [found[int(number)] for number in ids if int(number) in found]

    def tile_at(self, x: float, y: float) -> Optional[IndexedTile]:
        """The smallest tile at a place in the index's CRS, of several the best centred; None without one."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT id FROM rtree_tiles_geom WHERE minx <= ? AND maxx >= ? AND miny <= ? AND maxy >= ?",
                (x, x, y, y),
            ).fetchall()

        def distance(tile: IndexedTile) -> tuple[float, float]:
            places = np.array(tile.outline).reshape(-1, 2).mean(axis=0)
            return tile.scale, float(np.hypot(places[0] - x, places[1] - y))

        return min(self.tiles([row[0] for row in found]), key=distance, default=None)

    @property
    def extent(self) -> tuple[float, ...]:
        """xmin, ymin, xmax, ymax of all tiles; empty without any."""
        with self._reading() as cursor:
            row = cursor.execute("SELECT min(minx), min(miny), max(maxx), max(maxy) FROM rtree_tiles_geom").fetchone()
        return tuple(row) if row[0] is not None else ()

    @property
    def complete(self) -> bool:
        return all(raster.done >= raster.planned for raster in self.rasters.values())


_open: dict[str, GeoPackageReader] = {}
_opening = threading.Lock()


def open_reader(path: str) -> GeoPackageReader:
    """The index, read anew only if its files have changed."""
    with _opening:
        known = _open.get(path)
        if known is None or not known.current:
            _open.clear()  # one at a time: a large one takes memory
            known = _open[path] = GeoPackageReader(path)
        return known


def _file_state(path: str) -> tuple[Any, ...]:
    state: list[Any] = []
    for name in (path, f"{path}-wal", str(vectors_path(path))):
        with contextlib.suppress(OSError, ValueError):
            found = Path(name).stat()
            state.append((name, found.st_size, found.st_mtime_ns, found.st_ino))
    return tuple(state)


class GeoPackageWriter:
    """An index open for writing, a context manager that one process at a time holds. ``create`` makes the file, so a
    job that fails before leaves nothing.

    Args:
        about: the model; an existing index must hold vectors of the same.

    Raises:
        ClippanError: another process writes it, it is damaged, or another model's.
    """

    def __init__(self, path: str, about: IndexInfo) -> None:
        self.path = path
        self.about = about
        self._dataset: Any = None
        self._free: list[int] = []  # ids without a tile, the last one first
        self._next = 1
        self._last_raster = 0
        self.rasters: dict[int, IndexedRaster] = {}
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> GeoPackageWriter:
        place = Path(self.path)
        sentence = Message(
            "Another process is indexing into {path}; wait until it has finished, or cancel it there.", path=self.path
        )
        self._lock.enter_context(exclusive_lock(place.with_name(f".{place.name}.lock"), sentence))
        try:
            if Path(self.path).exists():
                self._resume()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *failure: Any) -> None:
        dataset, self._dataset = self._dataset, None
        try:
            if failure[0] is not None:
                close_after_failure(dataset)
            elif dataset is not None:
                close_dataset(dataset)
        except RuntimeError as error:
            raise _commit_error(self.path, error) from error
        finally:
            self._lock.close()

    def _resume(self) -> None:
        index = GeoPackageReader(self.path)
        found = index.about
        refuse_other_model(f"index {self.path}", found, self.about)
        self.about = found
        self.rasters = dict(index.rasters)
        with index._reading() as cursor:
            row = cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rasters'").fetchone()
        self._last_raster = max([row[0] if row else 0, *self.rasters])  # a number that was given is not given again
        used = {int(number) for number in index.tile_ids(TileFilter())}
        self._next = max(used, default=0) + 1
        self._free = [number for number in range(self._next - 1, 0, -1) if number not in used]
        vectors_path(self.path).touch()
        self._dataset = _create_guarded(self.path, self._opened)

    def _opened(self) -> gdal.Dataset:
        return _with_busy_timeout(gdal.OpenEx, self.path, gdal.OF_VECTOR | gdal.OF_UPDATE)

    @property
    def exists(self) -> bool:
        return self._dataset is not None

    def create(self, crs: str) -> None:
        """Makes the file unless it exists; outlines are in this CRS (WKT, or empty)."""
        if self._dataset is None:
            self.about = dataclasses.replace(self.about, crs=crs)
            try:
                _create_guarded(self.path, self._create)
            except ClippanError:
                self.discard()
                raise

    def _create(self) -> None:
        with Outputs() as outputs:
            self._create_layers(outputs.temporary_path(self.path))
            Path(outputs.temporary_path(str(vectors_path(self.path)))).write_bytes(b"")
        self._dataset = self._opened()

    def _create_layers(self, path: str) -> None:
        dataset = _with_busy_timeout(gdal.GetDriverByName("GPKG").Create, path, 0, 0, 0, gdal.GDT_Unknown)
        tiles = rasters = None
        try:
            reference = spatial_reference(self.about.crs) if self.about.crs else None
            if reference is None:
                reference = osr.SpatialReference()
                reference.SetLocalCS("Pictures without coordinates")
            tiles = dataset.CreateLayer("tiles", reference, ogr.wkbPolygon, ["GEOMETRY_NAME=geom", "FID=fid"])
            for name, kind in (
                ("raster", ogr.OFTString),
                ("x", ogr.OFTInteger),
                ("y", ogr.OFTInteger),
                ("width", ogr.OFTInteger),
                ("height", ogr.OFTInteger),
                ("scale", ogr.OFTReal),
                ("date", ogr.OFTDate),
                ("raster_id", ogr.OFTInteger),
            ):
                tiles.CreateField(ogr.FieldDefn(name, kind))
            rasters = dataset.CreateLayer("rasters", None, ogr.wkbNone, ["FID=id", "ASPATIAL_VARIANT=GPKG_ATTRIBUTES"])
            for name in ("path", "relative", "look", "fingerprint", "stretch", "date"):
                rasters.CreateField(ogr.FieldDefn(name, ogr.OFTString))
            for name in ("done", "planned"):
                rasters.CreateField(ogr.FieldDefn(name, ogr.OFTInteger64))
            about = {name: str(value) for name, value in dataclasses.asdict(self.about).items()}
            dataset.SetMetadata({"format": FORMAT, "engine": __version__, **about}, _DOMAIN)
            dataset.ExecuteSQL("CREATE INDEX tiles_raster_id ON tiles (raster_id)")
        except BaseException:
            close_after_failure(dataset)
            raise
        tiles = rasters = None
        close_dataset(dataset)

    def discard(self) -> None:
        """Removes the files of an empty index."""
        close_after_failure(self._dataset)
        self._dataset = None
        for name in (Path(self.path), vectors_path(self.path), Path(f"{self.path}-journal")):
            with contextlib.suppress(OSError):
                name.unlink()

    def put_rasters(self, rasters: Sequence[IndexedRaster]) -> list[IndexedRaster]:
        """Adds rasters (with id 0) or updates them; returns them with their ids."""
        rasters = [
            raster if raster.id else dataclasses.replace(raster, id=self._next_raster_id()) for raster in rasters
        ]
        if rasters:
            with self._transaction():
                for raster in rasters:
                    self._write_raster(raster)
        return rasters

    def _next_raster_id(self) -> int:
        self._last_raster += 1
        return self._last_raster

    def commit_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray, done: Mapping[int, int]) -> None:
        """Adds tiles with vectors (n, width) and notes the progress of their rasters, all or nothing; raises
        ClippanError if they cannot be written."""
        ids = [self._next_tile_id() for _ in tiles]
        try:
            self._write_vectors(ids, vectors)
            with self._transaction():
                layer = self._dataset.GetLayerByName("tiles")
                definition = layer.GetLayerDefn()
                for number, tile in zip(ids, tiles):
                    layer.CreateFeature(self._feature(definition, number, tile))
                for raster, count in done.items():
                    self._write_raster(dataclasses.replace(self.rasters[raster], done=count))
        except ClippanError:
            self._free += reversed(ids)
            raise

    def _next_tile_id(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def _feature(self, definition: Any, number: int, tile: IndexedTile) -> Any:
        feature = ogr.Feature(definition)
        feature.SetFID(number)
        raster = self.rasters[tile.raster]
        feature.SetField("raster", Path(raster.path).name if len(raster.path) < 300 else raster.path[:80])
        for name in ("x", "y", "width", "height"):
            feature.SetField(name, getattr(tile.window, name))
        feature.SetField("scale", tile.scale)
        if raster.date:
            feature.SetField("date", raster.date)
        feature.SetField("raster_id", tile.raster)
        if tile.outline:
            feature.SetGeometryDirectly(outline_polygon(tile.outline))
        return feature

    def _write_vectors(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        data = np.ascontiguousarray(vectors, np.float16)
        try:
            with open(vectors_path(self.path), "r+b") as file:  # noqa: PTH123
                for position, number in enumerate(ids):
                    offset = (number - 1) * data.shape[1] * 2
                    if file.tell() != offset:
                        file.seek(offset)
                    file.write(data[position].tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _commit_error(self.path, error) from error

    def drop_raster(self, raster: int) -> int:
        """Removes a raster with its tiles, in several transactions so that readers get their turn; returns the number
        of tiles."""
        layer = self._dataset.GetLayerByName("tiles")
        layer.SetAttributeFilter(f"raster_id = {int(raster)}")
        ids = [feature.GetFID() for feature in layer]
        layer.SetAttributeFilter(None)
        with self._transaction():
            self._write_raster(dataclasses.replace(self.rasters[raster], fingerprint="", done=0))
        for start in range(0, len(ids), _DELETE_BATCH):
            with self._transaction():
                for number in ids[start : start + _DELETE_BATCH]:
                    layer.DeleteFeature(number)
        with self._transaction():
            self._dataset.GetLayerByName("rasters").DeleteFeature(raster)
        del self.rasters[raster]
        self._free += sorted(ids, reverse=True)
        return len(ids)

    def count_tiles(self, raster: int) -> int:
        result = self._dataset.ExecuteSQL(f"SELECT count(*) FROM tiles WHERE raster_id = {int(raster)}")  # nosec B608
        count = result.GetNextFeature().GetField(0)
        self._dataset.ReleaseResultSet(result)
        return int(count)

    def _write_raster(self, raster: IndexedRaster) -> None:
        layer = self._dataset.GetLayerByName("rasters")
        feature = ogr.Feature(layer.GetLayerDefn())
        feature.SetFID(raster.id)
        values = dataclasses.asdict(raster)
        del values["id"]
        values["stretch"] = json.dumps(raster.stretch)
        values["relative"] = _relative_path(raster.path, self.path)
        for name, value in values.items():
            feature.SetField(name, value)
        (layer.SetFeature if raster.id in self.rasters else layer.CreateFeature)(feature)
        self.rasters[raster.id] = raster

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        known = dict(self.rasters)
        try:
            self._dataset.StartTransaction()
            try:
                yield
                self._dataset.CommitTransaction()
            except BaseException:
                self.rasters = known
                with contextlib.suppress(RuntimeError):
                    self._dataset.RollbackTransaction()
                raise
        except RuntimeError as error:
            raise _commit_error(self.path, error) from error


def refuse_other_model(what: str, found: IndexInfo, wanted: IndexInfo) -> None:
    """Raises ClippanError if an index (what it is called in a sentence) holds vectors of another model."""
    same = (found.model, found.width, found.pixels) == (wanted.model, wanted.width, wanted.pixels)
    if not same or (found.sha256 and wanted.sha256 and found.sha256 != wanted.sha256):
        raise ClippanError(
            "The {what} holds vectors of another version of {label}; choose another index, or restore the old weights."
            if found.model == wanted.model
            else "The {what} holds vectors of {label}, which cannot be compared with those of {model}; choose another "
            "index, or that model.",
            what=what,
            label=found.label,
            model=wanted.label,
        )


def vectors_path(path: str) -> Path:
    """The matrix that belongs to a GeoPackage."""
    return Path(f"{path}.vectors")


def _connect_sqlite(path: str, mode: str) -> sqlite3.Connection:
    place = Path(path).absolute().as_posix()
    # file:///home/…, file:///C:/…, and file:////server/share/… for a network drive of Windows
    uri = f"file://{quote(place if place.startswith('/') else f'/{place}')}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_CONNECT_TIMEOUT)


def _roll_back_killed(path: str) -> None:
    """Rolls back what a killed process left half committed, if this one may write."""
    if Path(f"{path}-journal").exists():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect_sqlite(path, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _with_busy_timeout(function: Any, *arguments: Any) -> Any:
    """Opens a GeoPackage that waits for readers when it commits, and keeps all that is in it within its file."""
    options = {"OGR_SQLITE_PRAGMA": _BUSY_TIMEOUT, "GDAL_PAM_ENABLED": "NO"}
    before = {name: gdal.GetThreadLocalConfigOption(name) for name in options}
    try:
        for name, value in options.items():
            gdal.SetThreadLocalConfigOption(name, value)
        return function(*arguments)
    finally:
        for name, known in before.items():
            gdal.SetThreadLocalConfigOption(name, known)


def read_error(path: str, error: Exception) -> ClippanError:
    """The sentence for an index that cannot be read."""
    reason = one_line(error)
    if "locked" in reason or "busy" in reason:
        return ClippanError(
            "The index {path} is being written; try again in a moment ({reason}).", path=path, reason=reason
        )
    if "unable to open" in reason or "readonly" in reason or "permission" in reason.lower():
        return ClippanError(
            "The index {path} cannot be opened ({reason}); check the permissions of the file and its folder, or copy "
            "both of its files to a folder of yours.",
            path=path,
            reason=reason,
        )
    return ClippanError(
        "The index {path} is damaged, cut short or not a CLIPPan index ({reason}); delete it and build it again.",
        path=path,
        reason=reason,
    )


def _commit_error(path: str, error: Exception) -> ClippanError:
    if is_disk_full(path, error):
        sentence = "The disk of {path} is full; free some space and index again: what was indexed so far is kept."
        return ClippanError(sentence, path=path)
    return ClippanError(
        "The index {path} could not be written ({reason}); close programs that have it open, check the disk and index "
        "again: what was indexed so far is kept.",
        path=path,
        reason=one_line(error),
    )


def _create_guarded(path: str, function: Any) -> Any:
    try:
        return function()
    except (RuntimeError, OSError) as error:
        raise write_error(path, error) from error


def _read_info(path: str) -> IndexInfo:
    try:
        dataset = gdal.OpenEx(path, gdal.OF_VECTOR | gdal.OF_READONLY)
        values = dataset.GetMetadata(_DOMAIN) or {}
        layers = {dataset.GetLayer(number).GetName() for number in range(dataset.GetLayerCount())}
    except RuntimeError as error:
        raise read_error(path, error) from error
    if values.get("format") != FORMAT or not {"tiles", "rasters"} <= layers:
        if "format" in values:
            raise ClippanError(
                "The index {path} was made by version {version} of CLIPPan, in a format that this version cannot read; "
                "build it again.",
                path=path,
                version=values.get("engine"),
            )
        raise ClippanError("{path} is not a CLIPPan index; choose one that Build tile index has made.", path=path)
    names = ("model", "label", "sha256", "crs")
    texts = {name: values.get(name, "") for name in names}
    try:
        width, pixels = int(values["width"]), int(values["pixels"])
        if not (0 < width < _MAX_SIZE and 0 < pixels < _MAX_SIZE):
            raise ValueError(f"vectors of {width} numbers, pictures of {pixels} pixels")
    except _DAMAGE_ERRORS as error:
        raise read_error(path, error) from error
    return IndexInfo(**texts, width=width, pixels=pixels)


def _raster_from_row(index: str, row: Sequence[Any]) -> IndexedRaster:
    number, path, relative, look, fingerprint, stretch, date, done, planned = row
    RenderOptions.of(look)  # raises for what is none
    if not all(isinstance(text or "", str) for text in (path, relative, fingerprint, date)):
        raise TypeError("a path is no text")
    if relative and not exists(path):
        moved = Path(index).absolute().parent / relative  # moved together with the index
        if exists(str(moved)):
            path = os.path.normpath(moved)
    pairs = tuple((float(low), float(high)) for low, high in json.loads(stretch))
    return IndexedRaster(
        number, path, look, fingerprint or "", pairs, date or "", *map(operator.index, (done, planned))
    )


def _relative_path(path: str, index: str) -> str:
    try:
        return os.path.relpath(path, Path(index).absolute().parent) if exists(path) else ""
    except (OSError, ValueError):  # another drive; a text that is no path
        return ""


def outline_polygon(outline: Sequence[float]) -> ogr.Geometry:
    """The geometry with these corners x, y, …"""
    ring = ogr.Geometry(ogr.wkbLinearRing)
    for x, y in [*zip(outline[::2], outline[1::2]), tuple(outline[:2])]:
        ring.AddPoint_2D(x, y)
    polygon = ogr.Geometry(ogr.wkbPolygon)
    polygon.AddGeometryDirectly(ring)
    return polygon


def _corners(blob: Optional[bytes]) -> tuple[float, ...]:
    """The corners in a GeoPackage geometry, whose flags give the length of its header."""
    if blob is None:
        return ()
    header = 8 + (0, 32, 48, 48, 64)[(blob[3] >> 1) & 7]
    polygon = ogr.CreateGeometryFromWkb(bytes(blob[header:]))  # a ring does not keep its polygon
    ring = polygon.GetGeometryRef(0)
    if ring is None or ring.GetPointCount() != 5:  # somebody has edited it
        left, right, bottom, top = polygon.GetEnvelope()
        return (left, top, right, top, right, bottom, left, bottom)
    return tuple(value for point in ring.GetPoints()[:-1] for value in point[:2])


def is_index(path: str) -> bool:
    try:
        return bool(gdal.OpenEx(path, gdal.OF_VECTOR | gdal.OF_READONLY).GetMetadata(_DOMAIN))
    except RuntimeError:
        return False

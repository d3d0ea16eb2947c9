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
import itertools
import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import numpy as np
from osgeo import gdal, ogr, osr

from clippan import __version__
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, exclusive_lock, is_disk_full, write_error, write_output
from clippan.raster.products import exists
from clippan.raster.rendering import spatial_reference
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.search import similarity
from clippan.search.tile_index import (
    FORMAT,
    IndexedRaster,
    IndexedTile,
    IndexInfo,
    IndexReader,
    IndexWriter,
    TileFilter,
    polygon_wkb,
)

_DOMAIN = "CLIPPAN"
_CONNECT_TIMEOUT = 10  # to wait for another process that is committing
_DELETE_BATCH = 5000  # tiles that are removed at a time
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)  # between the header of a geometry and its WKB, by three bits of the header
_MAX_SIZE = 2**16  # vectors and pictures; no model's are
_BUSY_TIMEOUT = "busy_timeout=60000"  # milliseconds that a commit waits for a reader
_DAMAGE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, OverflowError)  # of values that are none of ours

_TILE_FIELDS = {
    "raster": ogr.OFTString,
    **dict.fromkeys(("x", "y", "width", "height"), ogr.OFTInteger),
    "scale": ogr.OFTReal,
    "date": ogr.OFTDate,
    "raster_id": ogr.OFTInteger,
}
_RASTER_FIELDS = {
    **dict.fromkeys(("path", "relative", "look", "fingerprint", "stretch", "date"), ogr.OFTString),
    **dict.fromkeys(("done", "planned"), ogr.OFTInteger64),
}

ogr.UseExceptions()


class GeoPackageReader(IndexReader):
    """An index on disk, open for reading."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise ClippanError(
                "The index {path} does not exist; make one with Build tile index (clippan index).", path=path
            )
        _roll_back_killed(path)
        self._state_when_read = _file_state(path)
        self.info = _read_info(path)
        with self._reading() as cursor:
            cursor.execute("BEGIN")  # both tables as they are at one moment
            rows = cursor.execute(
                "SELECT relative, id, path, look, fingerprint, stretch, date, done, planned FROM rasters"
            ).fetchall()
            self.rasters = {row[1]: _find_moved(IndexedRaster.from_row(row[1:]), row[0], path) for row in rows}
            # One pass over two columns; a million tiles take about a second.
            pairs = np.array(
                cursor.execute("SELECT fid, raster_id FROM tiles ORDER BY fid").fetchall(), np.int64
            ).reshape(-1, 2)
            self._ids, self._raster_ids = pairs[:, 0], pairs[:, 1]
            self.tile_counts = Counter(map(int, self._raster_ids))
            if (self._ids < 1).any() or not self.tile_counts.keys() <= self.rasters.keys():
                raise ValueError("it has tiles of no raster")
        self._matrix = self._open_matrix()

    def _open_matrix(self) -> np.ndarray:
        file, width = vectors_path(self.path), self.info.embedding_dim
        needed = int(self._ids.max(initial=0))
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
        return _file_state(self.path) == self._state_when_read

    def tile_ids(self, tile_filter: TileFilter) -> np.ndarray:
        """The ids of the tiles that the filter lets through, int64, ascending."""
        if tile_filter == TileFilter():
            return self._ids
        keep: np.ndarray = np.ones(len(self._ids), bool)
        if tile_filter.raster_ids is not None:
            keep = np.isin(self._raster_ids, list(tile_filter.raster_ids))
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

    def _read_tiles(self, ids: list[int]) -> list[IndexedTile]:
        question = (
            "SELECT fid, raster_id, x, y, width, height, scale, geom FROM tiles "
            "WHERE fid IN (SELECT value FROM json_each(?))"
        )
        with self._reading() as cursor:
            return [
                IndexedTile.from_row(row, blob and blob[8 + _ENVELOPE_BYTES[(blob[3] >> 1) & 7] :])
                for *row, blob in cursor.execute(question, [json.dumps(ids)])
            ]

    def tile_at(self, x: float, y: float) -> Optional[IndexedTile]:
        """The smallest tile at a place in the index's CRS, of several the best centred; None without one."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT id FROM rtree_tiles_geom WHERE minx <= ? AND maxx >= ? AND miny <= ? AND maxy >= ?",
                (x, x, y, y),
            ).fetchall()

        def size_and_distance(tile: IndexedTile) -> tuple[float, float]:
            centre = np.array(tile.outline).reshape(-1, 2).mean(axis=0)
            return tile.edge_length, float(np.hypot(*(centre - (x, y))))

        return min(self.tiles([row[0] for row in found]), key=size_and_distance, default=None)

    @property
    def extent(self) -> tuple[float, ...]:
        """xmin, ymin, xmax, ymax of all tiles; empty without any."""
        with self._reading() as cursor:
            row = cursor.execute("SELECT min(minx), min(miny), max(maxx), max(maxy) FROM rtree_tiles_geom").fetchone()
        return tuple(row) if row[0] is not None else ()


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


class GeoPackageWriter(IndexWriter):
    """An index on disk, open for writing."""

    def __init__(self, path: str, info: IndexInfo) -> None:
        super().__init__(path, info)
        self._dataset: Any = None
        self._free_ids: list[int] = []  # of tiles, below the largest, the last one first
        self._new_ids = itertools.count(1)
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> GeoPackageWriter:
        place = Path(self.path)
        sentence = Message(
            "Another process is indexing into {path}; wait until it has finished, or cancel it there.", path=self.path
        )
        self._lock.enter_context(exclusive_lock(place.with_name(f".{place.name}.lock"), sentence))
        try:
            if place.exists():
                index = GeoPackageReader(self.path)
                self._resume(index, Message("index {path}", path=self.path))
                used = index.tile_ids(TileFilter())
                last = int(used.max(initial=0))
                self._free_ids = list(map(int, np.setdiff1d(np.arange(1, last), used)[::-1]))
                self._new_ids = itertools.count(last + 1)
                vectors_path(self.path).touch()
                self._open()
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

    def _open(self) -> None:
        try:
            self._dataset = _with_busy_timeout(gdal.OpenEx, self.path, gdal.OF_VECTOR | gdal.OF_UPDATE)
        except RuntimeError as error:
            raise write_error(self.path, error) from error

    @property
    def exists(self) -> bool:
        return self._dataset is not None

    def _create(self) -> None:
        try:
            with Outputs() as outputs, write_output(self.path, outputs) as part:
                self._create_layers(str(part))
                Path(outputs.temporary_path(str(vectors_path(self.path)))).write_bytes(b"")
            self._open()
        except ClippanError:
            self.discard()
            raise

    def _create_layers(self, path: str) -> None:
        dataset = _with_busy_timeout(gdal.GetDriverByName("GPKG").Create, path, 0, 0, 0, gdal.GDT_Unknown)
        try:
            if self.info.crs:
                reference = spatial_reference(self.info.crs)
            else:
                reference = osr.SpatialReference()
                reference.SetLocalCS("Pictures without coordinates")
            tiles = dataset.CreateLayer("tiles", reference, ogr.wkbPolygon, ["GEOMETRY_NAME=geom", "FID=fid"])
            for name, kind in _TILE_FIELDS.items():
                tiles.CreateField(ogr.FieldDefn(name, kind))
            rasters = dataset.CreateLayer("rasters", None, ogr.wkbNone, ["FID=id", "ASPATIAL_VARIANT=GPKG_ATTRIBUTES"])
            for name, kind in _RASTER_FIELDS.items():
                rasters.CreateField(ogr.FieldDefn(name, kind))
            info = {name: str(value) for name, value in self.info.row().items()}
            dataset.SetMetadata({"format": FORMAT, "engine": __version__, **info}, _DOMAIN)
            dataset.ExecuteSQL("CREATE INDEX tiles_raster_id ON tiles (raster_id)")
        except BaseException:
            close_after_failure(dataset)
            raise
        close_dataset(dataset)

    def discard(self) -> None:
        """Removes the files of an empty index."""
        close_after_failure(self._dataset)
        self._dataset = None
        for name in (Path(self.path), vectors_path(self.path), Path(f"{self.path}-journal")):
            with contextlib.suppress(OSError):
                name.unlink()

    def _write_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray) -> None:
        ids = [self._free_ids.pop() if self._free_ids else next(self._new_ids) for _ in tiles]
        self._write_vectors(ids, vectors)
        layer = self._dataset.GetLayerByName("tiles")
        for number, tile in zip(ids, tiles):
            raster = self.rasters[tile.raster_id]
            values = {
                "raster": Path(raster.path).name if len(raster.path) < 300 else raster.path[:80],
                **vars(tile.window),
                "scale": tile.edge_length,
                "raster_id": tile.raster_id,
                **({"date": raster.date} if raster.date else {}),
            }
            feature = ogr.Feature(layer.GetLayerDefn())
            feature.SetFID(number)
            for name, value in values.items():
                feature.SetField(name, value)
            if tile.outline:
                feature.SetGeometry(ogr.CreateGeometryFromWkb(polygon_wkb(tile.outline)))
            layer.CreateFeature(feature)

    def _write_vectors(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        data = np.ascontiguousarray(vectors, np.float16)
        with open(vectors_path(self.path), "r+b") as file:  # noqa: PTH123
            for number, vector in zip(ids, data):
                offset = (number - 1) * vector.nbytes
                if file.tell() != offset:
                    file.seek(offset)
                file.write(vector.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _delete_raster(self, number: int) -> None:
        """In several transactions, so that readers get their turn."""
        layer = self._dataset.GetLayerByName("tiles")
        layer.SetAttributeFilter(f"raster_id = {int(number)}")
        ids = [feature.GetFID() for feature in layer]
        layer.SetAttributeFilter(None)
        with self._transaction():
            self._write_raster(dataclasses.replace(self.rasters[number], fingerprint="", done=0))
        for start in range(0, len(ids), _DELETE_BATCH):
            with self._transaction():
                for tile in ids[start : start + _DELETE_BATCH]:
                    layer.DeleteFeature(tile)
        with self._transaction():
            self._dataset.GetLayerByName("rasters").DeleteFeature(number)
        self._free_ids += sorted(ids, reverse=True)

    def _write_raster(self, raster: IndexedRaster) -> IndexedRaster:
        layer = self._dataset.GetLayerByName("rasters")
        feature = ogr.Feature(layer.GetLayerDefn())
        for name, value in {**raster.row(), "relative": _relative_path(raster.path, self.path)}.items():
            feature.SetField(name, value)
        if raster.id:
            feature.SetFID(raster.id)
            layer.SetFeature(feature)
        else:
            layer.CreateFeature(feature)  # a number that was given is not given again
        return dataclasses.replace(raster, id=feature.GetFID())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._dataset.StartTransaction()
            try:
                yield
                self._dataset.CommitTransaction()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    self._dataset.RollbackTransaction()
                raise
        except (RuntimeError, OSError) as error:
            raise _commit_error(self.path, error) from error


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
        sentence = Message("The index {path} is being written; try again in a moment ({reason}).")
    elif "unable to open" in reason or "readonly" in reason or "permission" in reason.lower():
        sentence = Message(
            "The index {path} cannot be opened ({reason}); check the permissions of the file and its folder, or copy "
            "both of its files to a folder of yours."
        )
    else:
        sentence = Message(
            "The index {path} is damaged, cut short or not a CLIPPan index ({reason}); delete it and build it again."
        )
    return ClippanError(sentence, path=path, reason=reason)


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
    try:
        width, pixels = int(values["width"]), int(values["pixels"])
        if not (0 < width < _MAX_SIZE and 0 < pixels < _MAX_SIZE):
            raise ValueError(f"vectors of {width} numbers, pictures of {pixels} pixels")
    except _DAMAGE_ERRORS as error:
        raise read_error(path, error) from error
    model, label, sha256, crs = (values.get(name, "") for name in ("model", "label", "sha256", "crs"))
    return IndexInfo(model, label, sha256, width, pixels, crs)


def _find_moved(raster: IndexedRaster, relative: Optional[str], index: str) -> IndexedRaster:
    """The raster, with its new path if it was moved together with the index."""
    if relative and not exists(raster.path):
        moved = Path(index).absolute().parent / relative
        if exists(str(moved)):
            return dataclasses.replace(raster, path=os.path.normpath(moved))
    return raster


def _relative_path(path: str, index: str) -> str:
    try:
        return os.path.relpath(path, Path(index).absolute().parent) if exists(path) else ""
    except (OSError, ValueError):  # another drive; a text that is no path
        return ""


def is_index(path: str) -> bool:
    try:
        return bool(gdal.OpenEx(path, gdal.OF_VECTOR | gdal.OF_READONLY).GetMetadata(_DOMAIN))
    except RuntimeError:
        return False

"""Builds a tile index: rasters to tiles to vectors to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from osgeo import gdal, osr

from clippan.clip.encoder import Encoder, encoder
from clippan.errors import Cancelled, ClippanError
from clippan.jobs import check
from clippan.jobs.base import Context
from clippan.jobs.index import IndexRequest, IndexResult
from clippan.raster import source as sources
from clippan.raster.grid import Grid
from clippan.raster.tiles import Window, count_threads, in_order
from clippan.search.catalogue import builder
from clippan.search.scene import LEAST_VALID, Look, Plan, Scene, expand, spatial
from clippan.search.store import About, Raster, Tile

_COMMIT_TILES = 4096
_COMMIT_SECONDS = 15.0  # what an interruption can cost


@dataclass(frozen=True)
class _Work:
    """A raster that has tiles to be made: how it is read, and where they lie."""

    raster: Raster
    look: Look
    plan: Plan
    corners: _Corners


@dataclass
class _Count:
    """What happened so far."""

    added: int = 0
    kept: int = 0
    dropped: int = 0
    empty: int = 0
    planned: int = 0
    failed: list[str] = field(default_factory=list)


def build(request: IndexRequest, context: Context) -> IndexResult:
    """See IndexRequest.

    Raises:
        ClippanError: nothing could be indexed, or not any further; what was committed is kept.
        Cancelled: the user cancelled; what was done until then is kept, and the next run goes on from there.
    """
    started = time.monotonic()
    paths, failed = expand(request.rasters)
    if not paths:
        raise ClippanError(failed[0])
    model = encoder(request.model, request.device, context.part(0, 3))
    set_threads(request.threads)
    look = Look(
        request.tile,
        request.tile_metres,
        request.overlap,
        request.bands,
        request.stretch,
        request.nodata,
        request.extent,
        request.crs,
    )
    about = About(model.model.id, model.model.label, model.sha256, model.width, model.pixels, "")
    count = _Count(failed=failed)
    with builder(request.output, about) as index:
        work = _prepare(request, paths, look, model, index, count, context.part(3, 10))
        if not (work or count.kept):
            raise ClippanError(count.failed[0])
        begun = time.monotonic()
        try:
            _embed(work, model, index, count, request.threads, context.part(10, 100))
        except BaseException:
            if not count.added and not any(raster.done for raster in index.rasters.values()):
                index.discard()
            raise
        seconds = time.monotonic() - begun
        tiles = sum(index.count(raster) for raster in index.rasters)
        if not tiles and not count.kept:
            index.discard()
            raise ClippanError(
                count.failed[0]
                if count.failed
                else "The rasters show nothing but nodata; choose others, or another extent."
            )
        for sentence in count.failed:
            context.log(sentence)
        return IndexResult(
            index.path,
            about.model,
            tiles,
            len(index.rasters),
            count.added,
            count.kept,
            count.dropped,
            count.empty,
            tuple(count.failed),
            str(model.device),
            time.monotonic() - started,
            count.added / seconds if count.added else 0.0,
        )


def set_threads(wanted: int) -> None:
    """Gives torch as many CPU threads as the user wants."""
    import torch

    torch.set_num_threads(count_threads(wanted))


def _prepare(
    request: IndexRequest, paths: Sequence[str], look: Look, model: Encoder, index: Any, count: _Count, context: Context
) -> list[_Work]:
    """Compares the rasters with what the index holds, drops what is gone, and lists what is to do."""
    known = {raster.path: raster for raster in index.rasters.values()}
    shared = check.is_database(request.output)
    found: list[tuple[Raster, Grid, Plan]] = []
    stale = []
    for position, path in enumerate(paths):
        context.progress(100 * position / len(paths), f"Looking at {Path(path).name[:80]}")
        try:
            scene = Scene(path, look, ())
            fingerprint = scene.fingerprint()
            before = known.get(path) or (None if shared else _moved(known.values(), fingerprint, look.text()))
            same = before is not None and (before.fingerprint, before.look) == (fingerprint, look.text())
            if before is not None and same and before.path != path:
                context.log(f"{before.path} has moved to {path}.")
                (before,) = index.put([replace(before, path=path)])
            if before is not None and same and before.done >= before.planned:
                count.kept += index.count(before.id)
                continue
            plan = scene.windows(model.pixels)
            if index.exists and scene.grid.crs and not index.about.crs:
                raise ClippanError(
                    f"The raster {path} has coordinates, but the index holds pictures without; use another output."
                )
            if before is not None and same:
                found.append((before, scene.grid, plan))
                continue
            stretch = Scene(path, look).stretch
            found.append(
                (Raster(0, path, look.text(), fingerprint, stretch, scene.date(), 0, len(plan)), scene.grid, plan)
            )
            if before is not None:
                stale.append(before)
        except ClippanError as error:
            count.failed.append(str(error))
    if found:
        index.start(next((grid.crs for _, grid, _ in found if grid.crs), ""))
    for raster in list(index.rasters.values()):
        # What is missing on this machine may be there on a colleague's, but for folders that this job is about.
        gone = raster.path not in paths and _gone(raster.path) and (not shared or _inside(raster.path, request.rasters))
        if gone:
            context.log(f"{raster.path} does not exist any more; its tiles are dropped.")
        if gone or raster in stale:
            count.dropped += index.drop(raster.id)
    rasters = index.put([raster for raster, _, _ in found])
    count.planned = sum(raster.planned - raster.done for raster in rasters)
    return [
        _Work(raster, look, plan, _Corners(grid, index.about.crs)) for raster, (_, grid, plan) in zip(rasters, found)
    ]


def _moved(rasters: Any, fingerprint: str, look: str) -> Optional[Raster]:
    """A raster of the index with the same files, which are no longer where they were."""
    for raster in rasters:
        if fingerprint and (raster.fingerprint, raster.look) == (fingerprint, look) and _missing(raster.path):
            return raster
    return None


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(Path(folder).absolute() in Path(path).parents for folder in folders if sources.exists(folder))


def _missing(path: str) -> bool:
    return Path(path).is_absolute() and not path.startswith("/vsi") and not sources.exists(path)


def _gone(path: str) -> bool:
    """Whether a file is missing though its folder is there: a drive that is not connected has lost nothing."""
    return _missing(path) and Path(path).parent.is_dir()


class _Corners:
    """Outlines of a raster's windows in the index's CRS."""

    def __init__(self, grid: Grid, crs: str) -> None:
        self._geotransform = grid.geotransform
        self._transform = None
        self._nowhere = bool(crs) and not grid.crs
        if crs and grid.crs:
            one, other = spatial(grid.crs), spatial(crs)
            if not one.IsSame(other):
                self._transform = osr.CoordinateTransformation(one, other)

    def of(self, window: Window) -> tuple[float, ...]:
        """Corners x, y, …; empty if the index has coordinates and the picture none."""
        if self._nowhere:
            return ()
        x, y, right, bottom = window.x, window.y, window.x + window.width, window.y + window.height
        corners = ((x, y), (right, y), (right, bottom), (x, bottom))
        points = [gdal.ApplyGeoTransform(self._geotransform, *corner) for corner in corners]
        if self._transform is not None:
            points = [self._transform.TransformPoint(*point)[:2] for point in points]
        return tuple(value for point in points for value in point)


def _embed(work: Sequence[_Work], model: Encoder, index: Any, count: _Count, threads: int, context: Context) -> None:
    """Reads, embeds and stores the tiles, a batch after the other; reading goes on while the model computes."""
    begun = time.monotonic()
    tiles: list[Tile] = []
    vectors: list[np.ndarray] = []
    done: dict[int, int] = {}
    committed, seen = time.monotonic(), 0
    reader = _Reader(model.pixels)

    def commit() -> None:
        if done:
            index.commit(tiles, np.concatenate(vectors) if tiles else np.empty((0, model.width)), done)
            count.added += len(tiles)
            tiles.clear()
            vectors.clear()
            done.clear()

    broken: set[int] = set()
    try:
        for batch, (pictures, valid, problems) in in_order(
            reader.read, _batches(work, model.batch), max(1, count_threads(threads) // 2)
        ):
            # What cannot be read to its end is left where it was: the next run tries again from there.
            broken |= set(problems)
            count.failed += [sentence for sentence in problems.values() if sentence not in count.failed]
            whole = np.array([item.raster.id not in broken for item, *_ in batch])
            keep = whole & (valid >= LEAST_VALID)
            if keep.any():
                vectors.append(model.images(pictures[keep]))
            for (item, window, scale, position), sound, kept in zip(batch, whole, keep):
                if kept:
                    tiles.append(Tile(0, item.raster.id, window, scale, item.corners.of(window)))
                if sound:
                    done[item.raster.id] = position + 1
            count.empty += int(whole.sum() - keep.sum())
            seen += len(batch)
            if len(tiles) >= _COMMIT_TILES or time.monotonic() - committed > _COMMIT_SECONDS:
                commit()
                committed = time.monotonic()
            rate = seen / max(time.monotonic() - begun, 1e-3)
            context.progress(100 * seen / max(count.planned, 1), f"{seen:,} of {count.planned:,} tiles, {rate:.0f}/s")
    except Cancelled:
        commit()
        raise
    commit()


def _batches(work: Sequence[_Work], size: int) -> Iterator[list[tuple[_Work, Window, float, int]]]:
    """Tiles of all rasters, ``size`` at a time, each with its position in its raster's plan."""
    batch: list[tuple[_Work, Window, float, int]] = []
    for item in work:
        start = item.raster.done
        for position, (window, scale) in enumerate(item.plan.tiles(start), start):
            batch.append((item, window, scale, position))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


class _Reader:
    """Reads batches of pictures, in several threads: each has the scene that it is reading open."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._local = threading.local()

    def read(self, batch: Sequence[tuple[_Work, Window, float, int]]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Pictures uint8 (n, 3, pixels, pixels), the valid part of each, and what went wrong, by raster."""
        pictures = np.empty((len(batch), 3, self._pixels, self._pixels), np.uint8)
        valid = np.zeros(len(batch))
        problems: dict[int, str] = {}
        for position, (item, window, _, _) in enumerate(batch):
            if item.raster.id in problems:
                continue
            try:
                pictures[position], valid[position] = self._scene(item).picture(window, self._pixels)
            except ClippanError as error:
                problems[item.raster.id] = str(error)
        return pictures, valid, problems

    def _scene(self, item: _Work) -> Scene:
        known = getattr(self._local, "scene", None)
        if known is None or known[0] != item.raster.id:
            known = (item.raster.id, Scene(item.raster.path, item.look, item.raster.stretch))
            self._local.scene = known
        return known[1]

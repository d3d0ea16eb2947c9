"""Builds a tile index: rasters to tiles to vectors to the store."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from osgeo import gdal, osr

from clippan.clip.encoder import ClipEncoder, load_encoder
from clippan.core.context import Context
from clippan.core.device import set_threads
from clippan.core.errors import Cancelled, ClippanError
from clippan.core.messages import Message
from clippan.core.threads import count_threads, in_order
from clippan.jobs.index import IndexRequest, IndexResult
from clippan.jobs.kinds import is_database
from clippan.jobs.rendering import Rendering, band_choice_sentences, rendering_hints
from clippan.raster import source as sources
from clippan.raster.files import refuse_overwriting
from clippan.raster.grid import Grid
from clippan.raster.products import find_images
from clippan.raster.rendering import (
    MIN_VALID_SHARE,
    Renderer,
    RenderOptions,
    TilePlan,
    antimeridian_notes,
    empty_images,
    is_missing,
    longitude_period,
    spatial_reference,
)
from clippan.raster.tiles import Window
from clippan.search.backends import open_writer
from clippan.search.tile_index import IndexedRaster, IndexedTile, IndexInfo

_COMMIT_TILES = 4096
_POINTS_PER_EDGE = 16  # points along an edge by which it is seen which way round the world it leads
_COMMIT_SECONDS = 15.0  # what an interruption can cost


@dataclass(frozen=True)
class _RasterTask:
    """A raster that has tiles to be made, and where they lie."""

    raster: IndexedRaster
    plan: TilePlan
    outlines: _TileOutlines


@dataclass
class _Counts:
    """What happened so far."""

    added: int = 0
    kept: int = 0
    dropped: int = 0
    empty: int = 0
    planned: int = 0
    failed: list[str] = field(default_factory=list)
    renderings: list[Rendering] = field(default_factory=list)


def run(request: IndexRequest, context: Context) -> IndexResult:
    """Builds or updates a tile index.

    Raises:
        ClippanError: nothing could be indexed, or not any further; what was committed is kept.
        Cancelled: the user cancelled; what was done until then is kept, and the next run goes on from there.
    """
    started = time.monotonic()
    paths, failed, left = find_images(request.rasters)
    if not paths:
        raise ClippanError(failed[0])
    refuse_overwriting(request.outputs, paths)
    model = load_encoder(request.model, request.device, context.subrange(0, 3))
    set_threads(request.threads)
    options = RenderOptions(**{item.name: getattr(request, item.name) for item in fields(RenderOptions)})
    info = IndexInfo(model.spec.id, model.spec.label, model.sha256, model.embedding_dim, model.image_size, "")
    counts = _Counts(failed=failed)
    for sentence in antimeridian_notes(request.extent):
        context.log(sentence)
    with open_writer(request.output, info) as index:
        existed = index.exists
        try:
            work, unchanged = _plan_rasters(request, paths, options, model, index, counts, context.subrange(3, 10))
            if not (work or unchanged):
                raise ClippanError(counts.failed[0])
            begun = time.monotonic()
            _embed(work, model, index, counts, request.threads, context.subrange(10, 100))
            seconds = time.monotonic() - begun
            tiles = sum(index.tile_counts.values())
            if not tiles:
                nothing = "The rasters show nothing but nodata; choose others, or another extent."
                raise ClippanError(counts.failed[0] if counts.failed else nothing)
        except BaseException as error:
            kept = existed or counts.added
            if not kept and index.exists:
                index.discard()
            if kept and isinstance(error, Cancelled):
                raise Cancelled(
                    "Cancelled; the tiles indexed so far are kept, and the next run continues from there."
                ) from None
            raise
        return IndexResult(
            index.path,
            info.model,
            tiles,
            len(index.rasters),
            counts.added,
            counts.kept,
            counts.dropped,
            counts.empty,
            tuple(counts.failed),
            str(model.device),
            time.monotonic() - started,
            counts.added / seconds if counts.added else 0.0,
            (*left, *rendering_hints(counts.renderings)),
            tuple(counts.renderings),
        )


def _plan_rasters(
    request: IndexRequest,
    paths: Sequence[str],
    options: RenderOptions,
    model: ClipEncoder,
    index: Any,
    counts: _Counts,
    context: Context,
) -> tuple[list[_RasterTask], int]:
    """Compares the rasters with the index, drops what is gone, and returns what is to do, and how many rasters are
    unchanged."""
    shared = is_database(request.output)
    # A raster may be there several times, for several extents.
    known = {
        (raster.path, RenderOptions.from_json(raster.options).extent_and_crs): raster
        for raster in index.rasters.values()
    }
    by_files = {(raster.options, raster.fingerprint): raster for raster in index.rasters.values() if raster.fingerprint}
    found: list[tuple[IndexedRaster, Grid, TilePlan]] = []
    stale: set[int] = set()
    unchanged = 0
    for position, path in enumerate(paths):
        context.progress(100 * position / len(paths), Message("Examining {name}", name=Path(path).name[:80]))
        try:
            scene = Renderer(path, options)
            # For people it stays in natural colours. Of a model with channels this tells which bands are not there.
            model_scene = Renderer(path, options, channels=model.channels) if model.channels else scene
            identity = (replace(options, bands=scene.bands).to_json(), scene.fingerprint())
            before = known.get((path, options.extent_and_crs))
            if before is None and not shared:  # on a colleague's machine it may be where it was
                moved = by_files.pop(identity, None)
                before = moved if moved and is_missing(moved.path) else None
            same = before if before and (before.options, before.fingerprint) == identity else None
            # Only what is new is sampled for its stretch.
            stretch = same.stretch if same and not model.channels else model_scene.stretch
            counts.renderings.append(Rendering(path, model_scene.band_choice, stretch, tuple(model_scene.notes)))
            if not options.extent:  # all of it takes the place of its parts
                stale |= {raster.id for (name, area), raster in known.items() if name == path and area}
            if same and same.path != path:
                context.log(Message("{old_path} has moved to {path}.", old_path=same.path, path=path))
                (same,) = index.put_rasters([replace(same, path=path)])
            if same and same.done >= same.planned:
                counts.kept += index.tile_counts[same.id]
                unchanged += 1
                continue
            plan = scene.tile_plan(model.image_size)
            if index.exists and scene.grid.crs and not index.info.crs:
                raise ClippanError(
                    "The raster {path} has coordinates, but the index holds pictures without; choose another output.",
                    path=path,
                )
            raster = same or IndexedRaster(0, path, *identity, scene.stretch, scene.date(), 0, len(plan))
            found.append((raster, scene.grid, plan))
            if before and not same:
                stale.add(before.id)
        except ClippanError as error:
            counts.failed.append(error.message)
    for sentence in band_choice_sentences(counts.renderings):
        context.log(sentence)
    if found:
        index.create(next((grid.crs for _, grid, _ in found if grid.crs), ""))
    listed = set(paths)
    for raster in list(index.rasters.values()):
        # What is missing on this machine may be there on a colleague's, but for folders that this job is about.
        gone = (
            raster.path not in listed
            and _was_deleted(raster.path)
            and (not shared or _is_inside(raster.path, request.rasters))
        )
        if gone:
            context.log(Message("{path} no longer exists; its tiles are removed.", path=raster.path))
        if gone or raster.id in stale:
            counts.dropped += index.drop_raster(raster.id)
    rasters = index.put_rasters([raster for raster, _, _ in found])
    counts.planned = sum(raster.planned - raster.done for raster in rasters)
    work = [
        _RasterTask(raster, plan, _TileOutlines(grid, index.info.crs))
        for raster, (_, grid, plan) in zip(rasters, found)
    ]
    return work, unchanged


def _is_inside(path: str, folders: Sequence[str]) -> bool:
    return any(Path(folder).absolute() in Path(path).parents for folder in folders if sources.exists(folder))


def _was_deleted(path: str) -> bool:
    """Whether a file is missing though its folder is there, with other files: a drive that is not connected has lost
    nothing, and where it was mounted an empty folder may be left."""
    folder = Path(path).parent
    return is_missing(path) and folder.is_dir() and any(folder.iterdir())


class _TileOutlines:
    """Outlines of a raster's windows in the index's CRS."""

    def __init__(self, grid: Grid, crs: str) -> None:
        self._geotransform = grid.geotransform
        self._transform = None
        self._has_no_place = bool(crs) and not grid.crs
        self._period = longitude_period(crs)
        if crs and grid.crs:
            one, other = spatial_reference(grid.crs), spatial_reference(crs)
            if not one.IsSame(other):
                try:
                    self._transform = osr.CoordinateTransformation(one, other)
                except RuntimeError:  # another planet, a local CRS
                    self._has_no_place = True

    def outline(self, window: Window) -> tuple[float, ...]:
        """Corners x, y, …; empty for what has no place in the index's CRS."""
        if self._has_no_place:
            return ()
        x, y, right, bottom = window.x, window.y, window.x + window.width, window.y + window.height
        corners = ((x, y), (right, y), (right, bottom), (x, bottom))
        points = self._to_index_crs(corners)
        longitudes = [point[0] for point in points] or [0.0]
        if self._transform is not None and self._period and max(longitudes) - min(longitudes) > self._period / 2:
            points = self._across_antimeridian(corners)
        values = tuple(value for point in points for value in point)
        return values if values and all(np.isfinite(values)) else ()

    def _to_index_crs(self, places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Columns and rows in the index's CRS; none where one lies beyond its reach."""
        points = [gdal.ApplyGeoTransform(self._geotransform, *place) for place in places]
        if self._transform is None:
            return points
        try:
            return [self._transform.TransformPoint(*point)[:2] for point in points]
        except RuntimeError:
            return []

    def _across_antimeridian(self, corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Corners whose longitudes go on across the 180th meridian, if the outline does; from -180 on."""
        along = np.linspace(0, 1, _POINTS_PER_EDGE, endpoint=False)[:, None]
        ends = np.array([*corners, corners[0]], float)
        outline = np.concatenate([start + along * (end - start) for start, end in zip(ends, ends[1:])])
        points = np.array(self._to_index_crs([tuple(place) for place in outline.tolist()]))
        if not len(points) or not np.isfinite(points).all():
            return []
        turns = np.cumsum(np.round(np.diff(points[:, 0], prepend=points[0, 0]) / self._period))
        points[:, 0] -= turns * self._period
        points[:, 0] += self._period * (points[:, 0].min() < -self._period / 2)
        return [tuple(point) for point in points[::_POINTS_PER_EDGE].tolist()]


def _embed(
    work: Sequence[_RasterTask], model: ClipEncoder, index: Any, counts: _Counts, threads: int, context: Context
) -> None:
    """Reads, embeds and stores the tiles, a batch after the other; reading goes on while the model computes."""
    begun = time.monotonic()
    tiles: list[IndexedTile] = []
    vectors: list[np.ndarray] = []
    done: dict[int, int] = {}
    reached: dict[int, int] = {}
    committed, seen = time.monotonic(), 0
    reader = _TileReader(model)

    def commit() -> None:
        if done:
            index.commit_tiles(tiles, np.concatenate(vectors) if tiles else np.empty((0, model.embedding_dim)), done)
            counts.added += len(tiles)
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
            counts.failed += [sentence for sentence in problems.values() if sentence not in counts.failed]
            whole = np.array([task.raster.id not in broken for task, *_ in batch])
            keep = whole & (valid >= MIN_VALID_SHARE)
            if keep.any():
                vectors.append(model.encode_images(pictures[keep]))
            for (task, window, edge_length, position), sound, kept in zip(batch, whole, keep):
                raster = task.raster
                if kept:
                    tiles.append(IndexedTile(0, raster.id, window, edge_length, task.outlines.outline(window)))
                passed = position + 1 - reached.get(raster.id, raster.done)  # also those that hold nothing
                reached[raster.id] = position + 1
                seen += passed
                if sound:
                    done[raster.id] = position + 1
                    counts.empty += passed - bool(kept)
            if len(tiles) >= _COMMIT_TILES or time.monotonic() - committed > _COMMIT_SECONDS:
                commit()
                committed = time.monotonic()
            rate = seen / max(time.monotonic() - begun, 1e-3)
            context.progress(
                100 * seen / max(counts.planned, 1),
                Message(
                    "Tiles: {done:,} of {total:,}, {rate:.0f} per second", done=seen, total=counts.planned, rate=rate
                ),
            )
    except Cancelled:
        commit()
        raise
    commit()


def _batches(work: Sequence[_RasterTask], size: int) -> Iterator[list[tuple[_RasterTask, Window, float, int]]]:
    """Tiles of all rasters, ``size`` at a time, each with its position in its raster's plan."""
    tiles = (
        (task, window, edge_length, position)
        for task in work
        for position, window, edge_length in task.plan.tiles(task.raster.done)
    )
    while batch := list(itertools.islice(tiles, size)):
        yield batch


class _TileReader:
    """Reads batches of pictures, in several threads: each has the scene that it is reading open."""

    def __init__(self, model: ClipEncoder) -> None:
        self._pixels, self._channels = model.image_size, model.channels
        self._local = threading.local()

    def read(
        self, batch: Sequence[tuple[_RasterTask, Window, float, int]]
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Pictures (n, bands, pixels, pixels), the valid part of each, and what went wrong, by raster."""
        pictures = empty_images(len(batch), (self._pixels, self._pixels), self._channels)
        valid = np.zeros(len(batch))
        problems: dict[int, str] = {}
        for position, (task, window, _, _) in enumerate(batch):
            if task.raster.id in problems:
                continue
            try:
                pictures[position], valid[position] = self._scene(task.raster).picture(window, self._pixels)
            except ClippanError as error:
                problems[task.raster.id] = error.message
        return pictures, valid, problems

    def _scene(self, raster: IndexedRaster) -> Renderer:
        if getattr(self._local, "raster_id", 0) != raster.id:
            options = RenderOptions.from_json(raster.options)
            self._local.scene = Renderer(raster.path, options, raster.stretch, self._channels)
            self._local.raster_id = raster.id
        return self._local.scene

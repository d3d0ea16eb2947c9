"""Asks an index: what fits a text, a picture, a place, or a mix of them, and what should not be there.

Two steps: the vectors of all tiles are compared with each text, picture or place of the search, and the best few
thousand get a confidence (``clippan.search.scoring``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from clippan.clip.encoder import ClipEncoder, background_phrases, load_encoder
from clippan.core.context import Context
from clippan.core.device import set_threads
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.jobs.search import Hit, SearchRequest, SearchResult
from clippan.raster.files import refuse_overwriting
from clippan.raster.rendering import (
    Renderer,
    RenderOptions,
    antimeridian_notes,
    extent_boxes,
    is_missing,
    longitude_period,
    short_crs,
    transform_extent,
)
from clippan.raster.tiles import Window
from clippan.search import heatmap, layer
from clippan.search.backends import model_changed, open_reader
from clippan.search.geopackage import is_index
from clippan.search.scoring import SearchVectors, vector_batches
from clippan.search.tile_index import IndexedRaster, IndexedTile, TileFilter

_MIN_CANDIDATES = 1000  # go on to the second step, at least
_CANDIDATES_PER_HIT = 50  # candidates for each hit that is wanted: their neighbours are merged
_MAX_OVERLAP = 0.25  # of the smaller tile; then two hits are one place
_MEAN_SAMPLE = 20_000  # tiles, from which the index's mean is estimated


def run(request: SearchRequest, context: Context) -> SearchResult:
    """Searches an index by texts, pictures and places.

    Raises:
        ClippanError: one sentence with the cause and the remedy.
    """
    started = time.monotonic()
    context.progress(0, "Opening the index")
    model = _load_model(open_reader(request.index), request, context)
    set_threads(0)
    while True:
        index = open_reader(request.index)  # once more: a model takes seconds to load
        _check_outputs(index, request)
        try:
            hits, hints, searched, query, tile_filter = _search_index(index, model, request, context)
        except KeyError:  # a raster that was added meanwhile has taken a tile's number
            if index.current:
                raise
            continue
        if index.current:
            break
    with Outputs() as outputs:
        if request.heatmap:
            heatmap.write(request.heatmap, index, tile_filter, query, outputs, context.subrange(50, 95))
        if request.output:
            context.progress(95, "Writing the hits")
            layer.write(request.output, hits, index.info, outputs)
    return SearchResult(
        tuple(hits),
        index.path,
        index.info.model,
        short_crs(index.info.crs),
        searched,
        request.output,
        request.heatmap,
        tuple(hints),
        time.monotonic() - started,
    )


def _search_index(
    index: Any, model: ClipEncoder, request: SearchRequest, context: Context
) -> tuple[list[Hit], list[str], int, SearchVectors, TileFilter]:
    """The hits, what to tell about them, of how many tiles they are the best, and what was asked."""
    if not index.count:
        raise ClippanError("The index {path} holds no tiles; run Build tile index on it again.", path=index.path)
    tile_filter, hints = _tile_filter(index, request)
    hints += antimeridian_notes(request.extent)
    hints += model.text_warnings(_stripped((*request.text, *request.without)))
    query = _search_vectors(index, model, request)
    context.progress(40, "Searching")
    chosen, searched = index.candidates(
        query.directions(), tile_filter, max(_MIN_CANDIDATES, _CANDIDATES_PER_HIT * request.top)
    )
    if not searched:
        raise ClippanError("No tile of the index matches this extent, these rasters and dates; widen the search.")
    chosen = np.setdiff1d(chosen, np.array(request.unlike, np.int64))  # what was put aside does not come back
    parts = [query.score_tiles(vectors) for _, vectors in vector_batches(index, chosen, context)]
    confidence, score, best = (np.concatenate(part) for part in zip(*parts)) if parts else (np.empty(0),) * 3
    order = np.lexsort((-score, -confidence))
    order = order[confidence[order] >= request.least]
    kept = _without_overlaps(index, chosen[order], request, context)
    positions = {number: position for position, number in enumerate(chosen.tolist())}
    prompts = query.prompts or ("like the example",)
    hits = []
    for rank, tile in enumerate(kept, 1):
        position = positions[tile.id]
        raster = index.rasters[tile.raster_id]
        hits.append(
            Hit(
                tile.id,
                rank,
                prompts[int(best[position])],
                float(score[position]),
                float(confidence[position]),
                raster.path,
                astuple(tile.window),
                tile.bounds,
                tile.outline,
                tile.edge_length,
                raster.date,
            )
        )
    hints += [
        Message("{path} no longer exists; index its new place to find it again.", path=path)
        for path in dict.fromkeys(hit.raster for hit in hits)
        if is_missing(path)
    ]
    return hits, hints, searched, query, tile_filter


def _check_outputs(index: Any, request: SearchRequest) -> None:
    """An output is no raster of the index, nothing that these read, and no other index."""
    refuse_overwriting(request.outputs, [raster.path for raster in index.rasters.values()])
    for path in request.outputs:
        if Path(path).is_file() and is_index(path):
            raise ClippanError("The output {path} is an index; choose another name.", path=path)


def _load_model(index: Any, request: SearchRequest, context: Context) -> ClipEncoder:
    model = load_encoder(index.info.model, request.device, context.subrange(0, 40))
    if (index.info.sha256 and model.sha256 != index.info.sha256) or model.embedding_dim != index.info.embedding_dim:
        raise ClippanError(model_changed(index))
    return model


def _tile_filter(index: Any, request: SearchRequest) -> tuple[TileFilter, list[str]]:
    """What the search is restricted to, and what to tell about it."""
    hints: list[str] = []
    rasters = index.rasters.values()
    is_dated = bool(request.since or request.until)
    undated = sum(not raster.date for raster in rasters)
    if undated and is_dated:
        hints.append(Message("Rasters without a date were left out: {count}.", count=undated))
    for name in request.rasters:
        if not any(_is_named(raster, name) for raster in rasters):
            raise ClippanError(
                "The raster {name} is not in the index {path}; index it first.", name=name, path=index.path
            )
    chosen = None
    if request.rasters or is_dated:
        chosen = frozenset(
            raster.id
            for raster in rasters
            if (not is_dated or _is_in_period(raster.date, request.since, request.until))
            and (not request.rasters or any(_is_named(raster, name) for name in request.rasters))
        )
    boxes = extent_boxes(request.extent, request.crs, index.info.crs) if request.extent else ()
    return TileFilter(chosen, tuple(boxes)), hints


def _is_named(raster: IndexedRaster, name: str) -> bool:
    return name in (raster.path, Path(raster.path).name) or os.path.abspath(name) == raster.path  # noqa: PTH100


def _is_in_period(date: str, since: str, until: str) -> bool:
    # Dates of any length compare as text; an end stands for all that begins with it.
    return bool(date) and date >= since and (not until or date[: len(until)] <= until)


def _stripped(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _search_vectors(index: Any, model: ClipEncoder, request: SearchRequest) -> SearchVectors:
    texts, without = tuple(_stripped(request.text)), _stripped(request.without)
    like = [model.encode_images(_read_example(path, model)[None])[0] for path in request.image]
    ids = list(request.like)
    if request.at:
        x, y = request.at
        if request.crs and index.info.crs:
            x, y, _, _ = transform_extent((x, y, x, y), request.crs, index.info.crs)
        turn = longitude_period(index.info.crs)  # tiles across the 180th meridian go on beyond it
        tile = index.tile_at(x, y) or (index.tile_at(x + turn, y) or index.tile_at(x - turn, y) if turn else None)
        if tile is None:
            raise ClippanError(
                "No indexed tile lies at {x:g}, {y:g}; choose another place.", x=request.at[0], y=request.at[1]
            )
        ids.append(tile.id)
    present = {tile.id for tile in index.tiles([*ids, *request.unlike])}
    lost = [number for number in (*ids, *request.unlike) if number not in present]
    if lost:
        raise ClippanError("Tile {tile} is no longer in the index; search again without it.", tile=lost[0])
    pictures = np.array(like, np.float32).reshape(-1, model.embedding_dim)
    examples = np.concatenate([pictures, index.vectors(np.array(ids, np.int64))])
    empty = np.empty((0, model.embedding_dim), np.float32)
    return SearchVectors(
        model.encode_texts(texts) if texts else empty,
        texts,
        model.encode_texts(without) if without else empty,
        model.encode_texts(background_phrases()),
        examples,
        index.vectors(np.array(request.unlike, np.int64)),
        index.sample(_MEAN_SAMPLE).mean(axis=0)
        if len(examples) or request.unlike
        else np.zeros(model.embedding_dim, np.float32),
        model.logit_scale,
    )


def _read_example(path: str, model: ClipEncoder) -> np.ndarray:
    """The middle of a picture, as a square, (bands, pixels, pixels)."""
    scene = Renderer(path, RenderOptions(), channels=model.channels)
    edge = min(scene.grid.width, scene.grid.height)
    window = Window((scene.grid.width - edge) // 2, (scene.grid.height - edge) // 2, edge, edge)
    picture, valid = scene.picture(window, model.image_size)
    if valid == 0:
        raise ClippanError("The example picture {path} shows nothing but nodata; choose another.", path=path)
    return picture


def _without_overlaps(index: Any, ids: np.ndarray, request: SearchRequest, context: Context) -> list[IndexedTile]:
    """The first ``top`` tiles of these, without those that show a place that is there already."""
    kept: list[IndexedTile] = []
    taken: dict[int, np.ndarray] = {}  # by raster: left, top, right, bottom
    step = 3 * request.top  # usually enough, and tiles take longer to read than to judge
    for start in range(0, len(ids), step):
        context.raise_if_cancelled()
        for tile in index.tiles(ids[start : start + step].tolist()):
            window = tile.window
            box = np.array([[window.x, window.y, window.x + window.width, window.y + window.height]])
            others = taken.get(tile.raster_id, np.empty((0, 4), np.int64))
            if not request.overlapping and _overlaps(box, others).any():
                continue
            taken[tile.raster_id] = np.concatenate([others, box])
            kept.append(tile)
            if len(kept) == request.top:
                return kept
    return kept


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the other boxes (n, 4) are largely the same place as this one (1, 4)."""
    sides = (np.minimum(box[:, 2:], others[:, 2:]) - np.maximum(box[:, :2], others[:, :2])).clip(0)
    smaller = np.minimum((box[:, 2:] - box[:, :2]).prod(axis=1), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return sides.prod(axis=1) > _MAX_OVERLAP * smaller

"""Asks an index: what fits a text, a picture, a place, or a mix of them, and what should not be there.

Two steps: the vectors of all tiles are compared with each text, picture or place of the search, and the best few
thousand get a confidence (``clippan.search.scoring``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

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
from clippan.search.geopackage import IndexedRaster, IndexedTile, TileFilter, is_index
from clippan.search.scoring import SearchVectors, vector_batches

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
            layer.write(request.output, hits, index.about, outputs)
    return SearchResult(
        tuple(hits),
        index.path,
        index.about.model,
        short_crs(index.about.crs),
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
    hints += antimeridian_notes(request.extent) + model.text_warnings(
        [text.strip() for text in (*request.text, *request.without) if text.strip()]
    )
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
    places = {number: position for position, number in enumerate(chosen.tolist())}
    prompts = query.prompts or ("like the example",)
    hits = []
    for rank, tile in enumerate(kept, 1):
        position = places[tile.id]
        raster = index.rasters[tile.raster]
        prompt = prompts[int(best[position])]
        hits.append(_make_hit(rank, tile, raster, prompt, float(score[position]), float(confidence[position])))
    return (
        hits,
        hints + _missing_file_notes([index.rasters[tile.raster] for tile in kept]),
        searched,
        query,
        tile_filter,
    )


def _check_outputs(index: Any, request: SearchRequest) -> None:
    """An output is no raster of the index, nothing that these read, and no other index."""
    refuse_overwriting(request.outputs, [raster.path for raster in index.rasters.values()])
    for path in request.outputs:
        if Path(path).is_file() and is_index(path):
            raise ClippanError("The output {path} is an index; choose another name.", path=path)


def _load_model(index: Any, request: SearchRequest, context: Context) -> ClipEncoder:
    model = load_encoder(index.about.model, request.device, context.subrange(0, 40))
    if (index.about.sha256 and model.sha256 != index.about.sha256) or model.width != index.about.width:
        raise ClippanError(model_changed(index.path, index.about.label))
    return model


def _tile_filter(index: Any, request: SearchRequest) -> tuple[TileFilter, list[str]]:
    """What the search is restricted to, and what to tell about it."""
    hints: list[str] = []
    chosen: Optional[set[int]] = None
    if request.rasters or request.since or request.until:
        chosen = {raster.id for raster in index.rasters.values() if _is_in_period(raster, request.since, request.until)}
        undated = sum(not raster.date for raster in index.rasters.values())
        if undated and (request.since or request.until):
            hints.append(Message("Rasters without a date were left out: {count}.", count=undated))
    if request.rasters:
        for name in request.rasters:
            if not any(_is_named(raster, name) for raster in index.rasters.values()):
                raise ClippanError(
                    "The raster {name} is not in the index {path}; index it first.", name=name, path=index.path
                )
        chosen = {
            number for number in chosen or () if any(_is_named(index.rasters[number], name) for name in request.rasters)
        }
    boxes = extent_boxes(request.extent, request.crs, index.about.crs) if request.extent else ()
    return TileFilter(None if chosen is None else frozenset(chosen), tuple(boxes)), hints


def _is_named(raster: IndexedRaster, name: str) -> bool:
    return name in (raster.path, Path(raster.path).name) or os.path.abspath(name) == raster.path  # noqa: PTH100


def _is_in_period(raster: IndexedRaster, since: str, until: str) -> bool:
    if not (since or until):
        return True
    # Dates of any length compare as text; an end stands for all that begins with it.
    return bool(raster.date) and raster.date >= since and (not until or raster.date[: len(until)] <= until)


def _search_vectors(index: Any, model: ClipEncoder, request: SearchRequest) -> SearchVectors:
    texts = tuple(text.strip() for text in request.text if text.strip())
    without = [text.strip() for text in request.without if text.strip()]
    like = [model.encode_images(_read_example(path, model)[None])[0] for path in request.image]
    ids = list(request.like)
    if request.at:
        x, y = request.at
        if request.crs and index.about.crs:
            x, y, _, _ = transform_extent((x, y, x, y), request.crs, index.about.crs)
        turn = longitude_period(index.about.crs)  # tiles across the 180th meridian go on beyond it
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
    pictures = np.array(like, np.float32).reshape(-1, model.width)
    examples = np.concatenate([pictures, index.vectors(np.array(ids, np.int64))])
    empty = np.empty((0, model.width), np.float32)
    return SearchVectors(
        model.encode_texts(texts) if texts else empty,
        texts,
        model.encode_texts(without) if without else empty,
        model.encode_texts(background_phrases()),
        examples,
        index.vectors(np.array(request.unlike, np.int64)),
        index.sample(_MEAN_SAMPLE).mean(axis=0)
        if len(examples) or request.unlike
        else np.zeros(model.width, np.float32),
        model.scale,
    )


def _read_example(path: str, model: ClipEncoder) -> np.ndarray:
    """The middle of a picture, as a square, (bands, pixels, pixels)."""
    scene = Renderer(path, RenderOptions(), channels=model.channels)
    edge = min(scene.grid.width, scene.grid.height)
    window = Window((scene.grid.width - edge) // 2, (scene.grid.height - edge) // 2, edge, edge)
    picture, valid = scene.picture(window, model.pixels)
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
            others = taken.get(tile.raster, np.empty((0, 4), np.int64))
            if not request.overlapping and _overlaps(box, others).any():
                continue
            taken[tile.raster] = np.concatenate([others, box])
            kept.append(tile)
            if len(kept) == request.top:
                return kept
    return kept


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the other boxes (n, 4) are largely the same place as this one (1, 4)."""
    sides = (np.minimum(box[:, 2:], others[:, 2:]) - np.maximum(box[:, :2], others[:, :2])).clip(0)
    smaller = np.minimum((box[:, 2:] - box[:, :2]).prod(axis=1), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return sides.prod(axis=1) > _MAX_OVERLAP * smaller


def _make_hit(rank: int, tile: IndexedTile, raster: IndexedRaster, prompt: str, score: float, confidence: float) -> Hit:
    window = tile.window
    return Hit(
        tile.id,
        rank,
        prompt,
        score,
        confidence,
        raster.path,
        (window.x, window.y, window.width, window.height),
        tile.bounds,
        tile.outline,
        tile.scale,
        raster.date,
    )


def _missing_file_notes(rasters: Sequence[IndexedRaster]) -> list[str]:
    paths = dict.fromkeys(raster.path for raster in rasters)
    return [
        Message("{path} no longer exists; index its new place to find it again.", path=path)
        for path in paths
        if is_missing(path)
    ]

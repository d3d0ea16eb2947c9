"""Asks an index: what fits a text, a picture, a place, or a mix of them, and what should not be there.

Two steps. The vectors of all tiles are compared with each thing that is searched for, one product a tile, and the
best some thousands go on. For those it is said how probable it is that they show it: for a text, by the softmax over
that text and a background of common land covers and uses, as in zero-shot classification; for an example, by the
cosine of the vectors less the index's mean. Several things are mixed by multiplying.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from clippan.clip.encoder import Encoder, background, encoder
from clippan.errors import ClippanError
from clippan.jobs.base import Context
from clippan.jobs.search import Hit, SearchRequest, SearchResult
from clippan.raster.tiles import Window
from clippan.search import heatmap, layer
from clippan.search.about import changed
from clippan.search.catalogue import reader
from clippan.search.scene import Look, Scene, name_of, transformed
from clippan.search.store import Filter, Raster, Tile

_CANDIDATES = 1000  # go on to the second step, at least
_PER_HIT = 50  # candidates for each hit that is wanted: their neighbours are merged
_SHARED = 0.25  # of the smaller tile; then two hits are one place
_SAMPLE = 20_000  # tiles, from which the index's mean is estimated


@dataclass(frozen=True)
class Query:
    """What is searched for, as vectors of length 1.

    Attributes:
        texts: (n, width), and ``prompts``, their words.
        without: texts that should not fit (n, width).
        background: what places show in general (n, width).
        like, unlike: example pictures or tiles (n, width).
        mean: of the index's vectors (width,).
        scale: from cosines to logits.
    """

    texts: np.ndarray
    prompts: tuple[str, ...]
    without: np.ndarray
    background: np.ndarray
    like: np.ndarray
    unlike: np.ndarray
    mean: np.ndarray
    scale: float

    def directions(self) -> np.ndarray:
        """With what all tiles are compared, (n, width): the larger the product, the better the fit."""
        return np.concatenate([self.texts - self.background.mean(axis=0), self.like - self.mean])

    def judge(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Confidence, score and best text (its number) of tiles, from their vectors float32 (n, width)."""
        confidence = np.ones(len(vectors))
        score = np.full(len(vectors), -np.inf)
        best = np.zeros(len(vectors), np.int64)
        if len(self.texts):
            fits = self._probability(vectors, self.texts)
            best = fits.argmax(axis=1)
            confidence *= fits.max(axis=1)
            score = (vectors @ self.texts.T).max(axis=1)
        if len(self.like):
            alike = self._likeness(vectors, self.like).max(axis=1)
            # The geometric mean of the two, so that a mix is no stricter than its parts.
            confidence = np.sqrt(confidence * alike) if len(self.texts) else alike
            score = np.maximum(score, (vectors @ self.like.T).max(axis=1))
        if len(self.without):
            confidence *= (1 - self._probability(vectors, self.without)).min(axis=1)
            score = score - (vectors @ self.without.T).max(axis=1).clip(0)
        if len(self.unlike):
            confidence *= 1 - self._likeness(vectors, self.unlike).max(axis=1)
        return confidence, score, best

    def _probability(self, vectors: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Softmax of each text against the background, (n, texts)."""
        logits = self.scale * (vectors @ self.background.T)
        own = self.scale * (vectors @ texts.T)
        result = np.empty(own.shape)
        for column, text in enumerate(texts):
            # What means nearly the same does not speak against it.
            similar = self.background @ text
            others = logits[:, similar < (1 + similar.mean()) / 2]
            top = np.maximum(own[:, column], others.max(axis=1, initial=-np.inf))
            mine = np.exp(own[:, column] - top)
            result[:, column] = mine / (mine + np.exp(others - top[:, None]).sum(axis=1))
        return result

    def _likeness(self, vectors: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Cosines of the vectors less the mean, not below 0, (n, examples)."""
        return (_unit(vectors - self.mean) @ _unit(examples - self.mean).T).clip(0, 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def search(request: SearchRequest, context: Context) -> SearchResult:
    """See SearchRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy.
    """
    started = time.monotonic()
    context.progress(0, "Opening the index")
    index = reader(request.index)
    if not index.count:
        raise ClippanError(f"The index {index.path} holds no tiles; run Build tile index on it again.")
    model = _model(index, request, context)
    wanted, hints = _filter(index, request)
    query = _query(index, model, request)
    context.progress(40, "Searching")
    count = max(_CANDIDATES, _PER_HIT * request.top)
    chosen, searched = index.candidates(query.directions(), wanted, count)
    if not searched:
        raise ClippanError("No tile of the index lies in this extent, these rasters and dates; widen the search.")
    # An example is not its own hit, and what was put aside does not come back.
    chosen = np.setdiff1d(chosen, np.array([*request.like, *request.unlike], np.int64))
    confidence, score, best = query.judge(index.vectors(chosen))
    order = np.lexsort((-score, -confidence))
    order = order[confidence[order] >= request.least]
    kept = _distinct(index, chosen[order], request)
    places = {number: position for position, number in enumerate(chosen.tolist())}
    prompts = query.prompts or ("like the example",)
    hits = []
    for rank, tile in enumerate(kept, 1):
        position = places[tile.id]
        raster = index.rasters[tile.raster]
        hits.append(
            _hit(rank, tile, raster, prompts[best[position]], float(score[position]), float(confidence[position]))
        )
    hints += _missing([index.rasters[tile.raster] for tile in kept])
    crs = name_of(index.about.crs)
    if request.output:
        context.progress(80, "Writing the hits")
        layer.write(request.output, hits, index.about)
    if request.heatmap:
        heatmap.write(request.heatmap, index, wanted, query, context.part(80, 100))
    return SearchResult(
        tuple(hits),
        index.path,
        index.about.model,
        crs,
        searched,
        request.output,
        request.heatmap,
        tuple(hints),
        time.monotonic() - started,
    )


def _model(index: Any, request: SearchRequest, context: Context) -> Encoder:
    model = encoder(index.about.model, request.device, context.part(0, 40))
    if (index.about.sha256 and model.sha256 != index.about.sha256) or model.width != index.about.width:
        raise ClippanError(changed(index.path, index.about.label))
    return model


def _filter(index: Any, request: SearchRequest) -> tuple[Filter, list[str]]:
    """What the search is restricted to, and what to tell about it."""
    hints = []
    chosen: Optional[set[int]] = None
    if request.rasters or request.since or request.until:
        chosen = {raster.id for raster in index.rasters.values() if _dated(raster, request.since, request.until)}
        undated = sum(not raster.date for raster in index.rasters.values())
        if undated and (request.since or request.until):
            hints.append(f"Rasters without a date were left out: {undated}.")
    if request.rasters:
        for name in request.rasters:
            if not any(_is(raster, name) for raster in index.rasters.values()):
                raise ClippanError(f"The raster {name} is not in the index {index.path}; index it first.")
        chosen = {
            number for number in chosen or () if any(_is(index.rasters[number], name) for name in request.rasters)
        }
    extent = request.extent
    if extent and request.crs and index.about.crs:
        extent = transformed(extent, request.crs, index.about.crs)
    return Filter(None if chosen is None else frozenset(chosen), tuple(extent)), hints


def _is(raster: Raster, name: str) -> bool:
    return name in (raster.path, Path(raster.path).name) or str(Path(name).absolute()) == raster.path


def _dated(raster: Raster, since: str, until: str) -> bool:
    if not (since or until):
        return True
    # Dates of any length compare as text; an end stands for all that begins with it.
    return bool(raster.date) and raster.date >= since and (not until or raster.date[: len(until)] <= until)


def _query(index: Any, model: Encoder, request: SearchRequest) -> Query:
    texts = tuple(text.strip() for text in request.text if text.strip())
    without = [text.strip() for text in request.without if text.strip()]
    like = [model.images(_example(path, model.pixels)[None])[0] for path in request.image]
    ids = list(request.like)
    if request.at:
        x, y = request.at
        if request.crs and index.about.crs:
            x, y, _, _ = transformed((x, y, x, y), request.crs, index.about.crs)
        tile = index.at(x, y)
        if tile is None:
            raise ClippanError(f"No indexed tile lies at {request.at[0]:g}, {request.at[1]:g}; choose another place.")
        ids.append(tile.id)
    present = {tile.id for tile in index.tiles([*ids, *request.unlike])}
    lost = [number for number in (*ids, *request.unlike) if number not in present]
    if lost:
        raise ClippanError(f"Tile {lost[0]} is not in the index any more; search again without it.")
    pictures = np.array(like, np.float32).reshape(-1, model.width)
    examples = np.concatenate([pictures, index.vectors(np.array(ids, np.int64))])
    empty = np.empty((0, model.width), np.float32)
    return Query(
        model.texts(texts) if texts else empty,
        texts,
        model.texts(without) if without else empty,
        model.texts(background()),
        examples,
        index.vectors(np.array(request.unlike, np.int64)),
        index.sample(_SAMPLE).mean(axis=0) if len(examples) or request.unlike else np.zeros(model.width, np.float32),
        model.scale,
    )


def _example(path: str, pixels: int) -> np.ndarray:
    """The middle of a picture, as a square, uint8 (3, pixels, pixels)."""
    scene = Scene(path, Look())
    edge = min(scene.grid.width, scene.grid.height)
    window = Window((scene.grid.width - edge) // 2, (scene.grid.height - edge) // 2, edge, edge)
    picture, valid = scene.picture(window, pixels)
    if valid == 0:
        raise ClippanError(f"The example picture {path} shows nothing but nodata; choose another.")
    return picture


def _distinct(index: Any, ids: np.ndarray, request: SearchRequest) -> list[Tile]:
    """The first ``top`` tiles of these, without those that show a place that is there already."""
    kept: list[Tile] = []
    step = 3 * request.top  # usually enough, and tiles take longer to read than to judge
    for start in range(0, len(ids), step):
        for tile in index.tiles(ids[start : start + step].tolist()):
            if request.overlapping or not any(_same_place(tile, other) for other in kept):
                kept.append(tile)
                if len(kept) == request.top:
                    return kept
    return kept


def _same_place(one: Tile, other: Tile) -> bool:
    if one.raster != other.raster:
        return False
    a, b = one.window, other.window
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 0 and down > 0 and across * down > _SHARED * min(a.width * a.height, b.width * b.height)


def _hit(rank: int, tile: Tile, raster: Raster, prompt: str, score: float, confidence: float) -> Hit:
    window = tile.window
    xs, ys = tile.outline[::2], tile.outline[1::2]
    return Hit(
        tile.id,
        rank,
        prompt,
        score,
        confidence,
        raster.path,
        (window.x, window.y, window.width, window.height),
        (min(xs), min(ys), max(xs), max(ys)) if tile.outline else (),
        tile.outline,
        tile.scale,
        raster.date,
    )


def _missing(rasters: Sequence[Raster]) -> list[str]:
    paths = dict.fromkeys(raster.path for raster in rasters)
    return [
        f"{path} is not there any more; index its new place to have it found again."
        for path in paths
        if Path(path).is_absolute() and not path.startswith("/vsi") and not Path(path).exists()
    ]

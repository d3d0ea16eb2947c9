"""How probable it is that a tile shows what is searched for.

For a text, by the softmax over that text and a background of common land covers and uses, as in zero-shot
classification (Radford et al. 2021); for an example, by the cosine of the vectors less the index's mean. A text and
examples are mixed by the geometric mean; what should not be there is multiplied in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clippan.core.context import Context

_BATCH = 8192  # tiles at a time


class TileScores(NamedTuple):
    """How well tiles fit a search: confidence from 0 to 1, score from -1 to 1, and the number of the best text."""

    confidence: np.ndarray
    score: np.ndarray
    best_text: np.ndarray


@dataclass(frozen=True)
class SearchVectors:
    """A search as vectors of length 1.

    Attributes:
        text_features, prompts: (n, width), and their words.
        without: texts that should not fit (n, width).
        background: common land covers and uses (n, width).
        like, unlike: example pictures or tiles (n, width).
        mean: of the index's vectors (width,).
        logit_scale: from cosines to logits.
    """

    text_features: np.ndarray
    prompts: tuple[str, ...]
    without: np.ndarray
    background: np.ndarray
    like: np.ndarray
    unlike: np.ndarray
    mean: np.ndarray
    logit_scale: float

    def directions(self) -> np.ndarray:
        """With what all tiles are compared, (n, width): the larger the product, the better the fit."""
        return np.concatenate([self.text_features - self.background.mean(axis=0), self.like - self.mean])

    def score_tiles(self, vectors: np.ndarray) -> TileScores:
        """Scores of tiles, from their vectors float32 (n, width)."""
        confidence = np.ones(len(vectors))
        score = np.full(len(vectors), -np.inf)
        best = np.zeros(len(vectors), np.int64)
        if len(self.text_features):
            fits = self._probability(vectors, self.text_features)
            best = fits.argmax(axis=1)
            confidence *= fits.max(axis=1)
            score = (vectors @ self.text_features.T).max(axis=1)
        if len(self.like):
            alike = self._similarity(vectors, self.like).max(axis=1)
            # The geometric mean of the two, so that a mix is no stricter than its parts.
            confidence = np.sqrt(confidence * alike) if len(self.text_features) else alike
            score = np.maximum(score, (vectors @ self.like.T).max(axis=1))
        if len(self.without):
            confidence *= (1 - self._probability(vectors, self.without)).min(axis=1)
            score = score - (vectors @ self.without.T).max(axis=1).clip(0)
        if len(self.unlike):
            confidence *= 1 - self._similarity(vectors, self.unlike).max(axis=1)
        return TileScores(confidence, score, best)

    def _probability(self, vectors: np.ndarray, text_features: np.ndarray) -> np.ndarray:
        """Softmax of each text against the background, (n, texts)."""
        logits = self.logit_scale * (vectors @ self.background.T)
        own = self.logit_scale * (vectors @ text_features.T)
        result = np.empty(own.shape)
        for column, text in enumerate(text_features):
            # What means nearly the same does not speak against it.
            similar = self.background @ text
            others = logits[:, similar < (1 + similar.mean()) / 2]
            top = np.maximum(own[:, column], others.max(axis=1, initial=-np.inf))
            mine = np.exp(own[:, column] - top)
            result[:, column] = mine / (mine + np.exp(others - top[:, None]).sum(axis=1))
        return result

    def _similarity(self, vectors: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Cosines of the vectors less the mean, not below 0, (n, examples)."""
        return (_normalized(vectors - self.mean) @ _normalized(examples - self.mean).T).clip(0, 1)


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def vector_batches(index: Any, ids: np.ndarray, context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and vectors of tiles, some thousands at a time."""
    for start in range(0, len(ids), _BATCH):
        context.progress(100 * start / len(ids), "Scoring the tiles")
        part = ids[start : start + _BATCH]
        yield part, index.vectors(part)

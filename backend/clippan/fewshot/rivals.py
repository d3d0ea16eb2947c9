"""The rivals: classifiers of single pixels by what is known of each, honest baselines for few samples.

On spectra: support vector machines (Cortes and Vapnik 1995; on hyperspectral pixels Melgani and Bruzzone 2004), with
the local mean beside each band as the plainest of spatial features, and random forests (Breiman 2001). On CLIP's
features: a linear probe (Radford et al. 2021), Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022). All work on arrays;
none knows of files.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional, Protocol

import numpy as np
import torch
from torch.nn import functional

from clippan.errors import ClippanError, told
from clippan.jobs.classify import Classifier

MEAN = 9  # edge of the window of a local mean, in pixels
_PENALTY = 100.0  # of the SVM, as in the baselines of few-shot papers
_FIRM = 4.0  # a decision at the margin, 1, is a vote of 98 %
_TREES = 100
_PROBE = 100.0  # inverse weight of the linear probe's regularisation
_ALPHA, _BETA = 1.0, 5.5  # of Tip-Adapter: weight and sharpness of the cache, as published
_SCALE = 100.0  # of the text's cosines, as CLIP was trained
_SHOTS = 16  # of a class that count in full in the cache; more of them share that weight
_RATE, _EPOCHS, _BATCH = 1e-3, 20, 256  # of Tip-Adapter-F, as published
_ROWS = 8192  # pixels that are compared with all support vectors or keys at a time


class Fitted(Protocol):
    """A classifier that has learned."""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Of each class (n, classes), float32, which sum up to 1, for features (n, width)."""


def fit(
    method: Classifier,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    texts: Optional[np.ndarray] = None,
    seed: int = 0,
) -> Fitted:
    """Learns from samples.

    Args:
        method: any but auto and diffclip.
        features: float32 (n, width): for svm, svm-mean and rf standardised bands, for the others CLIP's.
        labels: 0 to ``classes`` - 1, (n,); two of them or more.
        classes: how many there are.
        texts: for tip and tip-f the classes' words, vectors of length 1, float32 (classes, width).
        seed: of what is drawn.

    Raises:
        ClippanError: scikit-learn is not there.
    """
    if method in (Classifier.TIP, Classifier.TIP_F):
        assert texts is not None
        return _Tip.of(features, labels, texts, method is Classifier.TIP_F, seed)
    if method is Classifier.LINEAR:
        probe = _sklearn("linear_model").LogisticRegression(C=_PROBE, max_iter=500)
        return _Estimator(probe.fit(_unit(features), labels), classes, True)
    if method is Classifier.RF:
        forest = _sklearn("ensemble").RandomForestClassifier(_TREES, random_state=seed)
        return _Estimator(forest.fit(features, labels), classes, False)
    return _Svm.of(features, labels, classes)


def spectra(modalities: Sequence[np.ndarray]) -> np.ndarray:
    """The bands of all modalities (bands, height, width) as features (height × width, bands), float32."""
    return np.concatenate([values.reshape(len(values), -1) for values in modalities]).T


def means(modalities: Sequence[np.ndarray], valid: np.ndarray, size: int = MEAN) -> list[np.ndarray]:
    """Local means of the valid pixels, in squares of ``size``: arrays of the same shapes. 0 where there is none.

    Shifted sums rather than running ones, so that a pixel's mean does not depend on the window that it is read in.
    """
    weights = _boxed(valid.astype(np.float32)[None], size)
    return [_boxed(values * valid, size) / np.maximum(weights, 1) for values in modalities]


def _boxed(values: np.ndarray, size: int) -> np.ndarray:
    for axis in (1, 2):
        around = [(0, 0)] * 3
        around[axis] = (size // 2, size // 2)
        padded, length = np.pad(values, around), values.shape[axis]
        shifted = (padded.take(range(start, start + length), axis) for start in range(size))
        values = sum(shifted, np.zeros_like(values))
    return values


def _sklearn(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ClippanError(
            f"The engine's Python has no scikit-learn that works ({told(error)}); run Set up engine, or choose a "
            "method that does without (diffclip, tip, tip-f)."
        ) from None


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class _Estimator:
    """One of scikit-learn's with probabilities of its own."""

    estimator: Any
    classes: int
    unit: bool

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See Fitted."""
        found = np.zeros((len(features), self.classes), np.float32)
        found[:, self.estimator.classes_] = self.estimator.predict_proba(_unit(features) if self.unit else features)
        return found


@dataclass(frozen=True)
class _Svm:
    """A support vector machine with a radial basis function, one class against another, which vote.

    Its kernel is one matrix product for many pixels, some ten times faster than libsvm's own prediction.
    """

    middle: np.ndarray
    spread: np.ndarray
    vectors: np.ndarray
    gamma: float
    weights: np.ndarray
    offsets: np.ndarray
    known: np.ndarray
    classes: int

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> _Svm:
        """Fitted to features that are standardised once more over the samples: means vary less than pixels."""
        middle, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 0, spread, 1).astype(np.float32)
        ready = (features - middle) / spread
        gamma = 1 / max(ready.shape[1] * float(ready.var()), 1e-9)  # what scikit-learn calls "scale"
        machine = _sklearn("svm").SVC(C=_PENALTY, gamma=gamma, cache_size=500).fit(ready, labels)
        known = machine.classes_
        starts = np.concatenate([[0], np.cumsum(machine.n_support_)])
        pairs = list(zip(*np.triu_indices(len(known), 1)))
        weights = np.zeros((len(machine.support_vectors_), len(pairs)), np.float32)
        for pair, (one, other) in enumerate(pairs):
            for own, against in ((one, other), (other, one)):
                at = slice(starts[own], starts[own + 1])
                weights[at, pair] = machine.dual_coef_[against - (against > own), at]
        sign = -1 if len(known) == 2 else 1  # scikit-learn turns the only pair round
        offsets = np.asarray(sign * machine.intercept_, np.float32)
        vectors = machine.support_vectors_.astype(np.float32)
        return cls(middle, spread, vectors, gamma, sign * weights, offsets, known, classes)

    def decisions(self, features: np.ndarray) -> np.ndarray:
        """Of each pair (n, pairs); above 0 for the first of the two."""
        features = (features - self.middle) / self.spread
        near = features @ self.vectors.T
        squares = (features**2).sum(axis=1)[:, None] + (self.vectors**2).sum(axis=1) - 2 * near
        return np.exp(-self.gamma * np.maximum(squares, 0)) @ self.weights + self.offsets

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See Fitted: a softmax of the votes, each of them a share by how clear the decision is."""
        count = len(self.known)
        ones, others = np.triu_indices(count, 1)
        found = np.zeros((len(features), self.classes), np.float32)
        for start in range(0, len(features), _ROWS):
            shares = 1 / (1 + np.exp(-_FIRM * self.decisions(features[start : start + _ROWS])))
            votes = np.zeros((len(shares), count), np.float32)
            for pair, (one, other) in enumerate(zip(ones, others)):
                votes[:, one] += shares[:, pair]
                votes[:, other] += 1 - shares[:, pair]
            found[start : start + _ROWS, self.known] = _softmax(votes)
        return found


@dataclass(frozen=True)
class _Tip:
    """A cache of the samples beside the words: logits = 100 f·Wᵀ + α exp(−β (1 − f·Keysᵀ)) · Labels."""

    keys: torch.Tensor
    values: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray, texts: np.ndarray, tuned: bool, seed: int) -> _Tip:
        """The cache, whose keys are tuned for Tip-Adapter-F."""
        keys, known = torch.from_numpy(_unit(features).astype(np.float32)), torch.from_numpy(labels).long()
        counts = torch.bincount(known, minlength=len(texts)).clamp(min=1)
        values = functional.one_hot(known, len(texts)) * (_SHOTS / counts).clamp(max=1)
        tip = cls(keys, values.float(), torch.from_numpy(texts))
        return tip._tuned(keys, known, seed) if tuned else tip

    def _tuned(self, features: torch.Tensor, labels: torch.Tensor, seed: int) -> _Tip:
        tip = _Tip(self.keys.clone().requires_grad_(), self.values, self.texts)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW([tip.keys], _RATE, eps=1e-4)
        steps = _EPOCHS * -(-len(labels) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
                loss = functional.cross_entropy(tip.logits(features[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return _Tip(tip.keys.detach(), self.values, self.texts)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(n, classes), for features of length 1."""
        near = torch.exp(_BETA * (features @ self.keys.T - 1))
        return _SCALE * features @ self.texts.T + _ALPHA * near @ self.values

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See Fitted."""
        parts = torch.from_numpy(_unit(features).astype(np.float32)).split(_ROWS)
        return torch.cat([self.logits(part).softmax(1) for part in parts]).numpy()

"""The rivals: classifiers of single pixels by what is known of each, honest baselines for few samples.

On spectra: support vector machines (Cortes and Vapnik 1995; on hyperspectral pixels Melgani and Bruzzone 2004), with
the local mean beside each band as the plainest of spatial features, and random forests (Breiman 2001). On CLIP's
features: a linear probe (Radford et al. 2021), Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022). All work on arrays;
none knows of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol

import numpy as np
import torch
from scipy.special import softmax  # scikit-learn brings it
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch.nn import functional

from clippan.core.cancellable import run_cancellable
from clippan.core.context import Context
from clippan.jobs.classify import Classifier

LOCAL_MEAN_SIZE = 9  # edge of the window of a local mean, in pixels
_PENALTY = 100.0  # of the SVM, as in the baselines of few-shot papers
_FIRM = 4.0  # a decision at the margin, 1, is a vote of 98 %
_TREES = 100
_PROBE = 100.0  # inverse weight of the linear probe's regularisation
_ALPHA, _BETA = 1.0, 5.5  # of Tip-Adapter: weight and sharpness of the cache, as published
_SCALE = 100.0  # of the text's cosines, as CLIP was trained
_SHOTS = 16  # of a class that count in full in the cache; more of them share that weight
_RATE, _EPOCHS, _BATCH = 1e-3, 20, 256  # of Tip-Adapter-F, as published
_ROWS = 8192  # pixels that are looked at between two questions whether the user cancels
_MEMORY = 2**27  # bytes that a thread needs for them, about
_SILENT = Context()  # tells nobody, and is never cancelled


class PixelClassifier(Protocol):
    """A classifier that has learned."""

    def probabilities(self, features: np.ndarray, context: Context = _SILENT) -> np.ndarray:
        """Of each class (n, classes), float32, which sum up to 1, for features (n, width).

        Raises:
            Cancelled: the user has cancelled, which is noticed within some thousands of rows.
        """


def fit(
    method: Classifier,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    texts: Optional[np.ndarray] = None,
    seed: int = 0,
    context: Context = _SILENT,
) -> PixelClassifier:
    """Learns from samples.

    Args:
        method: any but auto and diffclip.
        features: float32 (n, width): for svm, svm-mean and rf standardised bands, for the others CLIP's.
        labels: 0 to ``classes`` - 1, (n,); two of them or more.
        classes: how many there are.
        texts: for tip and tip-f the classes' words, vectors of length 1, float32 (classes, width).
        seed: of what is drawn.
        context: may cancel, which is noticed within a second.

    Raises:
        Cancelled: the user has cancelled.
    """
    if method in (Classifier.TIP, Classifier.TIP_F):
        assert texts is not None
        return _TipAdapter.of(features, labels, texts, method is Classifier.TIP_F, seed, context)
    if method is Classifier.LINEAR:
        probe = LogisticRegression(C=_PROBE, max_iter=500)
        return _SklearnClassifier(
            run_cancellable(lambda: probe.fit(_unit_length(features), labels), context), classes, True
        )
    if method is Classifier.RF:
        forest = RandomForestClassifier(_TREES, random_state=seed)
        return _SklearnClassifier(run_cancellable(lambda: forest.fit(features, labels), context), classes, False)
    return _Svm.of(features, labels, classes, context)


def flatten_bands(modalities: Sequence[np.ndarray]) -> np.ndarray:
    """The bands of all modalities (bands, height, width) as features (height × width, bands), float32."""
    return np.concatenate([values.reshape(len(values), -1) for values in modalities]).T


def local_means(modalities: Sequence[np.ndarray], valid: np.ndarray, size: int = LOCAL_MEAN_SIZE) -> list[np.ndarray]:
    """Local means of the valid pixels, in squares of ``size``: arrays of the same shapes. 0 where there is none.

    Shifted sums rather than running ones, so that a pixel's mean does not depend on the window that it is read in.
    """
    weights = _box_sum(valid.astype(np.float32)[None], size)
    return [_box_sum(values * valid, size) / np.maximum(weights, 1) for values in modalities]


def _box_sum(values: np.ndarray, size: int) -> np.ndarray:
    for axis in (1, 2):
        around = [(0, 0)] * 3
        around[axis] = (size // 2, size // 2)
        padded, length = np.pad(values, around), values.shape[axis]
        shifted = (padded.take(range(start, start + length), axis) for start in range(size))
        values = sum(shifted, np.zeros_like(values))
    return values


def _in_row_batches(
    work: Callable[[np.ndarray], np.ndarray], features: np.ndarray, numbers: int, context: Context
) -> np.ndarray:
    """What ``work`` makes of features (n, width), of some rows at a time, for each of which it needs the memory of so
    many ``numbers`` of 4 bytes."""
    rows = min(max(_MEMORY // (4 * numbers), 1), _ROWS)
    parts = []
    for start in range(0, max(len(features), 1), rows):
        context.check()
        parts.append(work(features[start : start + rows]))
    return np.concatenate(parts)


def _unit_length(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class _SklearnClassifier:
    """One of scikit-learn's with probabilities of its own."""

    estimator: Any
    classes: int
    unit: bool

    def probabilities(self, features: np.ndarray, context: Context = _SILENT) -> np.ndarray:
        return _in_row_batches(self._rows_probabilities, features, 2 * features.shape[1] + 8 * self.classes, context)

    def _rows_probabilities(self, features: np.ndarray) -> np.ndarray:
        found = np.zeros((len(features), self.classes), np.float32)
        found[:, self.estimator.classes_] = self.estimator.predict_proba(
            _unit_length(features) if self.unit else features
        )
        return found


@dataclass(frozen=True)
class _Svm:
    """A support vector machine with a radial basis function, one class against another, which vote.

    Its kernel is one matrix product for many pixels, some ten times faster than libsvm's own prediction.

    Attributes:
        mean, std: of the features, (width,).
        vectors: the support vectors, those of one class after those of another, (vectors, width).
        class_ends: where those of each class end, (known,).
        gamma: of the radial basis function.
        weights: of each vector where its class is against another, (known, vectors); 0 against its own.
        offsets: of each pair of classes, (pairs,).
        known: the classes that there were samples of, (known,).
        classes: how many there are.
    """

    mean: np.ndarray
    std: np.ndarray
    vectors: np.ndarray
    class_ends: np.ndarray
    gamma: float
    weights: np.ndarray
    offsets: np.ndarray
    known: np.ndarray
    classes: int

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray, classes: int, context: Context) -> _Svm:
        """Fitted to features that are standardised once more over the samples: means vary less than pixels."""
        mean, std = features.mean(axis=0), features.std(axis=0)
        std = np.where(std > 0, std, 1).astype(np.float32)
        ready = (features - mean) / std
        gamma = 1 / max(ready.shape[1] * float(ready.var()), 1e-9)  # what scikit-learn calls "scale"
        svc = SVC(C=_PENALTY, gamma=gamma, cache_size=500)
        machine = run_cancellable(lambda: svc.fit(ready, labels), context)
        known, class_ends = machine.classes_, np.cumsum(machine.n_support_)
        vectors = machine.support_vectors_.astype(np.float32)
        weights = np.zeros((len(known), len(vectors)), np.float32)
        for own, at in enumerate(_slices(class_ends)):
            weights[np.arange(len(known)) != own, at] = machine.dual_coef_[:, at]
        sign = -1 if len(known) == 2 else 1  # scikit-learn turns the only pair round
        offsets = np.asarray(sign * machine.intercept_, np.float32)
        return cls(mean, std, vectors, class_ends, gamma, sign * weights, offsets, known, classes)

    def decisions(self, features: np.ndarray) -> np.ndarray:
        """Of each pair (n, pairs); above 0 for the first of the two."""
        features = ((features - self.mean) / self.std).astype(np.float32, copy=False)
        near = 2 * features @ self.vectors.T  # becomes the kernel in place, for it is large
        near -= (features**2).sum(axis=1)[:, None]
        near -= (self.vectors**2).sum(axis=1)
        np.minimum(near, 0, out=near)
        near *= self.gamma
        np.exp(near, out=near)
        # What a class's own vectors say against each other class: most vectors say nothing of most pairs.
        count = len(self.known)
        sides = np.empty((count, count, len(features)), np.float32)
        for own, at in enumerate(_slices(self.class_ends)):
            np.dot(self.weights[:, at], near[:, at].T, out=sides[own])
        found = np.empty((len(self.offsets), len(features)), np.float32)
        for one, at in enumerate(_pairs(count)):
            np.add(sides[one, one + 1 :], sides[one + 1 :, one], out=found[at])
        found += self.offsets[:, None]
        return found.T

    def probabilities(self, features: np.ndarray, context: Context = _SILENT) -> np.ndarray:
        """See Fitted: a softmax of the votes, each of them a share by how clear the decision is."""
        numbers = 2 * (len(self.vectors) + len(self.known) ** 2 + features.shape[1])
        return _in_row_batches(self._rows_probabilities, features, numbers, context)

    def _rows_probabilities(self, features: np.ndarray) -> np.ndarray:
        count, clear = len(self.known), self.decisions(features).T
        clear *= _FIRM / 2
        np.tanh(clear, out=clear)  # a share is (1 + this) / 2
        votes = np.zeros((count, len(features)), np.float32)
        for one, at in enumerate(_pairs(count)):
            votes[one] += clear[at].sum(axis=0)
            votes[one + 1 :] -= clear[at]
        found = np.zeros((len(features), self.classes), np.float32)
        found[:, self.known] = softmax(
            votes.T / 2, axis=1
        )  # what all have got besides, half a vote a pair, is no matter
        return found


def _slices(class_ends: np.ndarray) -> list[slice]:
    """Of things in a row, by where each ends."""
    return [slice(start, end) for start, end in zip([0, *class_ends[:-1]], class_ends)]


def _pairs(count: int) -> list[slice]:
    """Where among all pairs, (0, 1), (0, 2) to (count - 2, count - 1), those lie whose first is 0, 1, ..."""
    return _slices(np.cumsum(np.arange(count)[::-1]))


@dataclass(frozen=True)
class _TipAdapter:
    """A cache of the samples beside the words: logits = 100 f·Wᵀ + α exp(−β (1 − f·Keysᵀ)) · Labels."""

    keys: torch.Tensor
    values: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def of(
        cls, features: np.ndarray, labels: np.ndarray, texts: np.ndarray, tuned: bool, seed: int, context: Context
    ) -> _TipAdapter:
        """The cache, whose keys are tuned for Tip-Adapter-F."""
        keys, known = torch.from_numpy(_unit_length(features).astype(np.float32)), torch.from_numpy(labels).long()
        counts = torch.bincount(known, minlength=len(texts)).clamp(min=1)
        values = functional.one_hot(known, len(texts)) * (_SHOTS / counts).clamp(max=1)
        tip = cls(keys, values.float(), torch.from_numpy(texts))
        return tip._tuned(keys, known, seed, context) if tuned else tip

    def _tuned(self, features: torch.Tensor, labels: torch.Tensor, seed: int, context: Context) -> _TipAdapter:
        tip = _TipAdapter(self.keys.clone().requires_grad_(), self.values, self.texts)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW([tip.keys], _RATE, eps=1e-4)
        steps = _EPOCHS * -(-len(labels) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
                context.check()
                loss = functional.cross_entropy(tip.logits(features[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return _TipAdapter(tip.keys.detach(), self.values, self.texts)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(n, classes), for features of length 1."""
        near = torch.exp(_BETA * (features @ self.keys.T - 1))
        return _SCALE * features @ self.texts.T + _ALPHA * near @ self.values

    def probabilities(self, features: np.ndarray, context: Context = _SILENT) -> np.ndarray:
        return _in_row_batches(self._rows_probabilities, features, 3 * (len(self.keys) + features.shape[1]), context)

    def _rows_probabilities(self, features: np.ndarray) -> np.ndarray:
        return self.logits(torch.from_numpy(_unit_length(features).astype(np.float32))).softmax(1).numpy()

"""Baselines for DiffCLIP: classifiers of single pixels.

On spectra: support vector machines (Cortes and Vapnik 1995; on hyperspectral pixels Melgani and Bruzzone 2004), also
with the local mean of each band as the simplest spatial feature, and random forests (Breiman 2001). On CLIP's features:
a linear probe (Radford et al. 2021), Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

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

LOCAL_MEAN_SIZE = 9  # edge in pixels of the window of a local mean
_SVM_C = 100.0  # as in the baselines of few-shot papers
_VOTE_SLOPE = 4.0  # a decision at the margin, 1, is a vote of 98 %
_TREES = 100
_PROBE_C = 100.0  # inverse strength of the linear probe's regularisation
_ALPHA, _BETA = 1.0, 5.5  # of Tip-Adapter: weight and sharpness of the cache, as published
_LOGIT_SCALE = 100.0  # factor of the cosines with texts, as CLIP was trained
_SHOTS = 16  # samples of a class with full weight in the cache; more samples share that weight
_LEARNING_RATE, _EPOCHS, _BATCH = 1e-3, 20, 256  # of Tip-Adapter-F, as published
_CHUNK = 8192  # pixels classified between two checks for cancellation, at most
_CHUNK_MEMORY = 2**27  # bytes that a thread needs for a chunk, about
_SILENT = Context()  # neither reports nor cancels


class PixelClassifier(ABC):
    """A fitted classifier of pixels."""

    def probabilities(self, features: np.ndarray, context: Context = _SILENT) -> np.ndarray:
        """Class probabilities, float32 (n, classes), of features (n, width). The context may cancel."""
        rows = min(max(_CHUNK_MEMORY // (4 * self._values_per_row(features.shape[1])), 1), _CHUNK)
        parts = []
        for start in range(0, max(len(features), 1), rows):
            context.raise_if_cancelled()
            parts.append(self._predict(features[start : start + rows]))
        return np.concatenate(parts)

    @abstractmethod
    def _predict(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities of a chunk of features."""

    @abstractmethod
    def _values_per_row(self, width: int) -> int:
        """Float32 values that the prediction of one pixel needs memory for, about."""


def fit(
    method: Classifier,
    features: np.ndarray,
    labels: np.ndarray,
    class_count: int,
    *,
    text_features: Optional[np.ndarray] = None,
    seed: int = 0,
    context: Context = _SILENT,
) -> PixelClassifier:
    """Fits a classifier to samples; cancelling is noticed within a second.

    Args:
        method: any but auto and diffclip.
        features: float32 (n, width): standardised bands for svm, svm-mean and rf, CLIP features for the others.
        labels: 0 to ``class_count`` - 1, (n,); at least two different ones.
        class_count: number of classes.
        text_features: for tip and tip-f, unit vectors of the classes' texts, float32 (classes, width).
        seed: of the random forest and of Tip-Adapter-F.
        context: may cancel.
    """
    if method in (Classifier.TIP, Classifier.TIP_F):
        assert text_features is not None
        return _TipAdapter.fit(features, labels, text_features, method is Classifier.TIP_F, seed, context)
    if method is Classifier.LINEAR:
        inputs, estimator = _unit_length(features), LogisticRegression(C=_PROBE_C, max_iter=500)
    elif method is Classifier.RF:
        inputs, estimator = features, RandomForestClassifier(_TREES, random_state=seed)
    else:
        return _Svm.fit(features, labels, class_count, context)
    run_cancellable(lambda: estimator.fit(inputs, labels), context)
    return _SklearnClassifier(estimator, class_count, method is Classifier.LINEAR)


def flatten_bands(modalities: Sequence[np.ndarray]) -> np.ndarray:
    """The bands of all modalities (bands, height, width) as features (height × width, bands), float32."""
    return np.concatenate([values.reshape(len(values), -1) for values in modalities]).T


def local_means(modalities: Sequence[np.ndarray], valid: np.ndarray, size: int = LOCAL_MEAN_SIZE) -> list[np.ndarray]:
    """Local means of the valid pixels in squares of ``size``, arrays of the same shapes; 0 where there are none. They
    are sums of shifted arrays, not running sums, so that the mean of a pixel does not depend on the window read."""
    weights = _box_sum(valid.astype(np.float32)[None], size)
    return [_box_sum(values * valid, size) / np.maximum(weights, 1) for values in modalities]


def _box_sum(values: np.ndarray, size: int) -> np.ndarray:
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (size // 2, size // 2)
        padded, length = np.pad(values, padding), values.shape[axis]
        shifted = (padded.take(range(start, start + length), axis) for start in range(size))
        values = sum(shifted, np.zeros_like(values))
    return values


def _unit_length(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class _SklearnClassifier(PixelClassifier):
    """A classifier of scikit-learn that predicts probabilities."""

    estimator: Any
    class_count: int
    to_unit_length: bool

    def _values_per_row(self, width: int) -> int:
        return 2 * width + 8 * self.class_count

    def _predict(self, features: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(features), self.class_count), np.float32)
        inputs = _unit_length(features) if self.to_unit_length else features
        probabilities[:, self.estimator.classes_] = self.estimator.predict_proba(inputs)
        return probabilities


@dataclass(frozen=True)
class _Svm(PixelClassifier):
    """A support vector machine with a radial basis function and one-against-one voting. Its kernel is one matrix
    product for many pixels, about ten times faster than libsvm's own prediction.

    Attributes:
        mean, std: of the features, (width,).
        vectors: the support vectors, class after class, (vectors, width).
        class_ends: where the support vectors of each class end, (known,).
        gamma: of the radial basis function.
        weights: of each vector against each class, (known, vectors); 0 against its own.
        offsets: of each pair of classes, (pairs,).
        known: the classes with samples, (known,).
        class_count: number of all classes.
    """

    mean: np.ndarray
    std: np.ndarray
    vectors: np.ndarray
    class_ends: np.ndarray
    gamma: float
    weights: np.ndarray
    offsets: np.ndarray
    known: np.ndarray
    class_count: int

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, class_count: int, context: Context) -> _Svm:
        """Fits to features standardised over the samples, as local means vary less than pixels."""
        mean, std = features.mean(axis=0), features.std(axis=0)
        std = np.where(std > 0, std, 1).astype(np.float32)
        standardised = (features - mean) / std
        gamma = 1 / max(standardised.shape[1] * float(standardised.var()), 1e-9)  # "scale" in scikit-learn
        svc = SVC(C=_SVM_C, gamma=gamma, cache_size=500)
        machine = run_cancellable(lambda: svc.fit(standardised, labels), context)
        known, class_ends = machine.classes_, np.cumsum(machine.n_support_)
        vectors = machine.support_vectors_.astype(np.float32)
        weights = np.zeros((len(known), len(vectors)), np.float32)
        for label, own in enumerate(_slices(class_ends)):
            weights[np.arange(len(known)) != label, own] = machine.dual_coef_[:, own]
        sign = -1 if len(known) == 2 else 1  # scikit-learn swaps the classes of the only pair
        offsets = np.asarray(sign * machine.intercept_, np.float32)
        return cls(mean, std, vectors, class_ends, gamma, sign * weights, offsets, known, class_count)

    def decisions(self, features: np.ndarray) -> np.ndarray:
        """Decisions for each pair of classes, (n, pairs); positive for the first class of the pair."""
        features = ((features - self.mean) / self.std).astype(np.float32, copy=False)
        kernel = 2 * features @ self.vectors.T  # computed in place, as it is large
        kernel -= (features**2).sum(axis=1)[:, None]
        kernel -= (self.vectors**2).sum(axis=1)
        np.minimum(kernel, 0, out=kernel)
        kernel *= self.gamma
        np.exp(kernel, out=kernel)
        # Sums over the vectors of each class against each other class, as most vectors count in few pairs.
        count = len(self.known)
        sums = np.empty((count, count, len(features)), np.float32)
        for label, own in enumerate(_slices(self.class_ends)):
            np.dot(self.weights[:, own], kernel[:, own].T, out=sums[label])
        decisions = np.empty((len(self.offsets), len(features)), np.float32)
        for first, pairs in enumerate(_pairs(count)):
            np.add(sums[first, first + 1 :], sums[first + 1 :, first], out=decisions[pairs])
        decisions += self.offsets[:, None]
        return decisions.T

    def _values_per_row(self, width: int) -> int:
        return 2 * (len(self.vectors) + len(self.known) ** 2 + width)

    def _predict(self, features: np.ndarray) -> np.ndarray:
        # A softmax of the votes; each is split between the two classes of its pair by how clear the decision is.
        count, decisions = len(self.known), self.decisions(features).T
        decisions *= _VOTE_SLOPE / 2
        np.tanh(decisions, out=decisions)  # a vote is (1 + this) / 2; softmax needs no constant half
        votes = np.zeros((count, len(features)), np.float32)
        for first, pairs in enumerate(_pairs(count)):
            votes[first] += decisions[pairs].sum(axis=0)
            votes[first + 1 :] -= decisions[pairs]
        probabilities = np.zeros((len(features), self.class_count), np.float32)
        probabilities[:, self.known] = softmax(votes.T / 2, axis=1)
        return probabilities


def _slices(class_ends: np.ndarray) -> list[slice]:
    """Consecutive slices that end at ``class_ends``."""
    return [slice(start, end) for start, end in zip([0, *class_ends[:-1]], class_ends)]


def _pairs(count: int) -> list[slice]:
    """For each class, the slice of the pairs (0, 1), (0, 2), …, (count - 2, count - 1) in which it is the first."""
    return _slices(np.cumsum(np.arange(count)[::-1]))


@dataclass(frozen=True)
class _TipAdapter(PixelClassifier):
    """A cache of samples beside the texts: logits = 100 f·Textsᵀ + α exp(−β (1 − f·Keysᵀ)) · Values."""

    keys: torch.Tensor
    values: torch.Tensor
    text_features: torch.Tensor

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        text_features: np.ndarray,
        tuned: bool,
        seed: int,
        context: Context,
    ) -> _TipAdapter:
        """Builds the cache; tunes its keys for Tip-Adapter-F."""
        keys, targets = torch.from_numpy(_unit_length(features).astype(np.float32)), torch.from_numpy(labels).long()
        counts = torch.bincount(targets, minlength=len(text_features)).clamp(min=1)
        values = functional.one_hot(targets, len(text_features)) * (_SHOTS / counts).clamp(max=1)
        tip = cls(keys, values.float(), torch.from_numpy(text_features))
        return tip._tuned(targets, seed, context) if tuned else tip

    def _tuned(self, labels: torch.Tensor, seed: int, context: Context) -> _TipAdapter:
        features, tip = self.keys, replace(self, keys=self.keys.clone().requires_grad_())
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW([tip.keys], _LEARNING_RATE, eps=1e-4)
        steps = _EPOCHS * -(-len(labels) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
                context.raise_if_cancelled()
                loss = functional.cross_entropy(tip.logits(features[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return replace(tip, keys=tip.keys.detach())

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of unit features (n, width)."""
        affinity = torch.exp(_BETA * (features @ self.keys.T - 1))
        return _LOGIT_SCALE * features @ self.text_features.T + _ALPHA * affinity @ self.values

    def _values_per_row(self, width: int) -> int:
        return 3 * (len(self.keys) + width)

    def _predict(self, features: np.ndarray) -> np.ndarray:
        return self.logits(torch.from_numpy(_unit_length(features).astype(np.float32))).softmax(1).numpy()

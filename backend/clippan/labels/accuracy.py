"""How good a map is: figures of one comparison with the truth, and of several repeats of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, recall_score

from clippan.jobs.classify import Classifier, MapAccuracy, Score

Pair = tuple[np.ndarray, np.ndarray]

_MIN_PROBABILITY = 1e-4  # probability of what seems impossible


def oa_aa_kappa(truth: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Overall accuracy and average accuracy (the mean recall of the classes that occur), 0 to 1, and Cohen's kappa
    (1960), -1 to 1, which is 0 where there is one class only.

    Args:
        truth, found: true classes and those found, whole numbers (n,).
    """
    classes = np.unique(truth)
    aa = recall_score(truth, found, labels=classes, average="macro", zero_division=0)
    kappa = cohen_kappa_score(truth, found) if len(np.union1d(classes, found)) > 1 else 0.0
    return float(accuracy_score(truth, found)), float(aa), float(kappa)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The power that makes probabilities of left-out samples likeliest, 0.2 to 5: a temperature (Guo et al. 2017), so
    that about four in five pixels with a confidence of 0.8 are right.

    Args:
        probabilities: (n, classes).
        labels: from 0, (n,).
    """
    powers = np.geomspace(0.2, 5, 41)
    losses = [-np.log(sharpen(probabilities, power)[np.arange(len(labels)), labels]).mean() for power in powers]
    return float(powers[int(np.argmin(losses))])


def sharpen(probabilities: np.ndarray, power: float) -> np.ndarray:
    """Probabilities (n, classes) to a power, which sum up to 1 again."""
    raised = np.maximum(probabilities, _MIN_PROBABILITY) ** power
    return raised / raised.sum(axis=1, keepdims=True)


def classifier_score(method: Classifier, repeats: Sequence[Pair], seconds: float) -> Score:
    """What repeats of a cross-validation say of a classifier.

    Args:
        method: the classifier.
        repeats: true classes and those found, from 0, (n,) each.
        seconds: that they took.
    """
    oa, aa, kappa = np.array([oa_aa_kappa(truth, found) for truth, found in repeats]).T
    return Score(method, float(oa.mean()), float(oa.std()), float(aa.mean()), float(kappa.mean()), round(seconds, 3))


def map_accuracy(repeats: Sequence[Pair], classes: int, split: str) -> MapAccuracy:
    """The figures of a map: means over the repeats, F1 and confusion of all of them together.

    Args:
        repeats: true classes and those found, from 0, (n,) each.
        classes: how many there are.
        split: what was left out together, in words.
    """
    row = classifier_score(Classifier.AUTO, repeats, 0)
    truth, found = (np.concatenate(parts) for parts in zip(*repeats))
    labels = np.arange(classes)
    f1 = f1_score(truth, found, labels=labels, average=None, zero_division=0)
    each = tuple(float(value) if label in truth else None for label, value in zip(labels, f1))
    counts = tuple(tuple(line) for line in confusion_matrix(truth, found, labels=labels).tolist())
    return MapAccuracy(row.oa, row.std, row.aa, row.kappa, each, counts, split, len(repeats))

"""How good a map is: figures of a confusion matrix, and of several repeats of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from clippan.jobs.classify import Classifier, MapAccuracy, Score

_LEAST = 1e-4  # probability of what seems impossible


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes) by true class (rows) and class found (columns), both from 0."""
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


def overall(table: np.ndarray) -> float:
    """Overall accuracy, 0 to 1: the part that is right."""
    return float(np.trace(table) / table.sum())


def average(table: np.ndarray) -> float:
    """Average accuracy, 0 to 1: the mean of the parts of each class that are right, of those that occur."""
    totals = table.sum(axis=1)
    return float(np.mean(np.diag(table)[totals > 0] / totals[totals > 0]))


def kappa(table: np.ndarray) -> float:
    """Cohen's (1960), -1 to 1: what is right beyond what chance makes right; 0 where chance makes all right."""
    total = table.sum()
    chance = float((table.sum(axis=0) * table.sum(axis=1)).sum() / total**2)
    return (overall(table) - chance) / (1 - chance) if chance < 1 else 0.0


def f1(table: np.ndarray) -> tuple[Optional[float], ...]:
    """Of each class, 0 to 1: the harmonic mean of what is found of it and what is right of the found. None where it
    does not occur."""
    both = table.sum(axis=0) + table.sum(axis=1)
    occurs = table.sum(axis=1) > 0
    return tuple(float(2 * hits / total) if there else None for hits, total, there in zip(np.diag(table), both, occurs))


def sharpness(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The power that makes probabilities of left-out samples likeliest, 0.2 to 5: a temperature (Guo et al. 2017), so
    that about four in five pixels with a confidence of 0.8 are right.

    Args:
        probabilities: (n, classes).
        labels: from 0, (n,).
    """
    powers = np.geomspace(0.2, 5, 41)
    losses = [-np.log(sharpened(probabilities, power)[np.arange(len(labels)), labels]).mean() for power in powers]
    return float(powers[int(np.argmin(losses))])


def sharpened(probabilities: np.ndarray, power: float) -> np.ndarray:
    """Probabilities (n, classes) to a power, which sum up to 1 again."""
    raised = np.maximum(probabilities, _LEAST) ** power
    return raised / raised.sum(axis=1, keepdims=True)


def score(method: Classifier, tables: Sequence[np.ndarray], seconds: float) -> Score:
    """What the confusion matrices of repeats say of a classifier."""
    each = [overall(table) for table in tables]
    aa, kappas = (float(np.mean([figure(table) for table in tables])) for figure in (average, kappa))
    return Score(method, float(np.mean(each)), float(np.std(each)), aa, kappas, round(seconds, 3))


def assessed(tables: Sequence[np.ndarray], split: str) -> MapAccuracy:
    """The figures of a map: means over the repeats, F1 and confusion of all of them together."""
    row = score(Classifier.AUTO, tables, 0)
    total = np.sum(tables, axis=0)
    counts = tuple(tuple(int(count) for count in line) for line in total)
    return MapAccuracy(row.oa, row.std, row.aa, row.kappa, f1(total), counts, split, len(tables))

"""Accuracy of maps and classifiers, and calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, recall_score

from clippan.jobs.classify import Classifier, MapAccuracy, Score

TruthAndPrediction = tuple[np.ndarray, np.ndarray]  # classes from 0, (n,) each

_MIN_PROBABILITY = 1e-4  # probability of what seems impossible


def oa_aa_kappa(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Overall accuracy and average accuracy (the mean recall of the classes that occur), 0 to 1, and Cohen's kappa
    (1960), -1 to 1, of true and predicted classes (n,). Kappa is 0 where there is one class only."""
    classes = np.unique(truth)
    aa = recall_score(truth, predicted, labels=classes, average="macro", zero_division=0)
    kappa = cohen_kappa_score(truth, predicted) if len(np.union1d(classes, predicted)) > 1 else 0.0
    return float(accuracy_score(truth, predicted)), float(aa), float(kappa)


def fit_inverse_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The inverse temperature (Guo et al. 2017), 0.2 to 5, with which the probabilities (n, classes) of held-out
    samples explain their labels (n,) best: about four in five pixels with a confidence of 0.8 are right then."""
    candidates = np.geomspace(0.2, 5, 41)
    calibrated = (apply_temperature(probabilities, candidate) for candidate in candidates)
    losses = [-np.log(each[np.arange(len(labels)), labels]).mean() for each in calibrated]
    return float(candidates[int(np.argmin(losses))])


def apply_temperature(probabilities: np.ndarray, inverse_temperature: float) -> np.ndarray:
    """Probabilities (n, classes) to the power of an inverse temperature; they sum up to 1 again."""
    raised = np.maximum(probabilities, _MIN_PROBABILITY) ** inverse_temperature
    return raised / raised.sum(axis=1, keepdims=True)


def classifier_score(method: Classifier, repeats: Sequence[TruthAndPrediction], seconds: float) -> Score:
    """Means and deviation over the repeats of a cross-validation, which took some seconds."""
    oa, aa, kappa = np.array([oa_aa_kappa(truth, predicted) for truth, predicted in repeats]).T
    return Score(method, float(oa.mean()), float(oa.std()), float(aa.mean()), float(kappa.mean()), round(seconds, 3))


def map_accuracy(repeats: Sequence[TruthAndPrediction], class_count: int, group_unit: str) -> MapAccuracy:
    """The accuracy of a map: means over the repeats, F1 and confusion of all of them together; ``group_unit`` says in
    words what was held out together."""
    row = classifier_score(Classifier.AUTO, repeats, 0)
    truth, predicted = (np.concatenate(parts) for parts in zip(*repeats))
    labels = np.arange(class_count)
    f1 = f1_score(truth, predicted, labels=labels, average=None, zero_division=0)
    each = tuple(float(value) if label in truth else None for label, value in zip(labels, f1))
    counts = tuple(tuple(line) for line in confusion_matrix(truth, predicted, labels=labels).tolist())
    return MapAccuracy(row.oa, row.std, row.aa, row.kappa, each, counts, group_unit, len(repeats))

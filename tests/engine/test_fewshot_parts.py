"""What maps from samples are made of: folds, figures, rivals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import SVC

from clippan.fewshot import accuracy, rivals
from clippan.fewshot.folds import ALWAYS, folds
from clippan.jobs import Classifier


def clusters(each=30, classes=3, width=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    middles = np.random.default_rng(9).normal(0, 2, (classes, width))
    return (middles[labels] + rng.normal(0, 0.7, (len(labels), width))).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_disjoint_and_leave_every_class(seed) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 25, 200)
    labels = rng.integers(0, 4, 200)
    labels[groups == 3] = 4  # a class in one place
    labels[(groups == 5) | (groups == 6)] = 5  # and one in two
    found = folds(labels, groups, seed)
    for group in np.unique(groups):
        assert len(np.unique(found[groups == group])) == 1
    for fold in set(found.tolist()) - {ALWAYS}:
        assert set(labels[found != fold]) == set(labels)
    assert (found[labels == 4] == ALWAYS).all()
    for label in (0, 1, 2, 3, 5):
        assert (found[labels == label] != ALWAYS).any()
    assert not np.array_equal(found, folds(labels, groups, seed + 1))
    np.testing.assert_array_equal(found, folds(labels, groups, seed))


def test_figures_of_a_known_matrix() -> None:
    table = accuracy.confusion(np.array([0] * 10 + [1] * 10), np.array([0] * 8 + [1] * 5 + [0] * 7), 3)
    assert table.tolist() == [[8, 2, 0], [7, 3, 0], [0, 0, 0]]
    assert accuracy.overall(table) == pytest.approx(0.55)
    assert accuracy.average(table) == pytest.approx(0.55)
    assert accuracy.kappa(table) == pytest.approx(0.1)
    assert accuracy.f1(table) == (pytest.approx(16 / 25), pytest.approx(6 / 15), None)
    found = accuracy.assessed([table, np.diag([10, 10, 0])], "polygon")
    assert found.oa == pytest.approx(0.775)
    assert found.std == pytest.approx(0.225)
    assert found.repeats == 2


def test_sharpness_undoes_what_was_blunted() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet([0.5] * 4, 4000)
    labels = np.array([rng.choice(4, p=shares) for shares in true])
    assert accuracy.sharpness(accuracy.sharpened(true, 0.5), labels) == pytest.approx(2, rel=0.15)
    assert accuracy.sharpness(np.full((5, 4), 0.25), labels[:5]) > 0


@pytest.mark.parametrize("classes", [2, 5])
def test_the_svm_decides_as_libsvm(classes) -> None:
    features, labels = clusters(classes=classes)
    other, _ = clusters(classes=classes, seed=1)
    middle, spread = features.mean(axis=0), features.std(axis=0)
    machine = SVC(C=100, decision_function_shape="ovo").fit((features - middle) / spread, labels)
    own = rivals.fit(Classifier.SVM, features, labels, classes)
    sign = -1 if classes == 2 else 1
    known = machine.decision_function((other - middle) / spread).reshape(len(other), -1)
    np.testing.assert_allclose(own.decisions(other), sign * known, atol=1e-3)
    found = own.probabilities(other)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == machine.predict((other - middle) / spread)).mean() > 0.97


@pytest.mark.parametrize("method", [Classifier.RF, Classifier.LINEAR, Classifier.TIP, Classifier.TIP_F])
def test_a_rival_learns(method) -> None:
    features, labels = clusters()
    other, truth = clusters(seed=1)
    texts = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    one, again = (rivals.fit(method, features, labels, 3, texts=texts, seed=4).probabilities(other) for _ in range(2))
    assert (one.argmax(axis=1) == truth).mean() > 0.9
    np.testing.assert_array_equal(one, again)


def test_the_cache_corrects_the_words() -> None:
    features, labels = clusters()
    wrong = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32) * 0.01  # words that say hardly anything
    alone = rivals.fit(Classifier.TIP, features, labels, 3, texts=wrong)
    assert (alone.probabilities(features).argmax(axis=1) == labels).mean() > 0.9


def test_means_count_valid_pixels_only_and_no_window() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30, 40)).astype(np.float32)
    valid = np.ones((30, 40), bool)
    valid[:, 20:] = False
    (means,) = rivals.means([values], valid, 5)
    assert means[1, 10, 10] == pytest.approx(values[1, 8:13, 8:13].mean(), abs=1e-5)
    assert means[0, 10, 19] == pytest.approx(values[0, 8:13, 17:20].mean(), abs=1e-5)
    assert means[0, 0, 0] == pytest.approx(values[0, :3, :3].mean(), abs=1e-5)
    (part,) = rivals.means([values[:, 5:25, 5:30]], valid[5:25, 5:30], 5)
    np.testing.assert_array_equal(part[:, 2:-2, 2:-2], means[:, 7:23, 7:28])

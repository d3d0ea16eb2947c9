"""What maps from samples are made of: folds, figures, baselines."""

from __future__ import annotations

import threading
import time
import tracemalloc

import numpy as np
import pytest
from sklearn.svm import SVC

from clippan.core.errors import Cancelled, ClippanError
from clippan.fewshot import baselines
from clippan.jobs import Classifier, Context
from clippan.jobs.classify import parse_descriptions
from clippan.labels import accuracy
from clippan.labels.folds import NEVER_HELD_OUT, spatial_folds


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
    found = spatial_folds(labels, groups, seed)
    for group in np.unique(groups):
        assert len(np.unique(found[groups == group])) == 1
    for fold in set(found.tolist()) - {NEVER_HELD_OUT}:
        assert set(labels[found != fold]) == set(labels)
    assert (found[labels == 4] == NEVER_HELD_OUT).all()
    for label in (0, 1, 2, 3, 5):
        assert (found[labels == label] != NEVER_HELD_OUT).any()
    assert not np.array_equal(found, spatial_folds(labels, groups, seed + 1))
    np.testing.assert_array_equal(found, spatial_folds(labels, groups, seed))


def test_figures_of_a_known_matrix() -> None:
    truth, found = np.array([0] * 10 + [1] * 10), np.array([0] * 8 + [1] * 5 + [0] * 7)
    assert accuracy.oa_aa_kappa(truth, found) == (pytest.approx(0.55), pytest.approx(0.55), pytest.approx(0.1))
    one = accuracy.map_accuracy([(truth, found)], 3, "polygon")
    assert one.confusion == ((8, 2, 0), (7, 3, 0), (0, 0, 0))
    assert one.f1 == (pytest.approx(16 / 25), pytest.approx(6 / 15), None)
    both = accuracy.map_accuracy([(truth, found), (truth, truth)], 3, "polygon")
    assert both.oa == pytest.approx(0.775)
    assert both.std == pytest.approx(0.225)
    assert both.repeats == 2


@pytest.mark.filterwarnings("error")
def test_classes_that_do_not_occur_count_for_nothing() -> None:
    truth = np.array([0, 0, 0, 1])
    assert accuracy.oa_aa_kappa(truth, np.array([0, 0, 2, 1])) == (0.75, pytest.approx(5 / 6), pytest.approx(5 / 9))
    assert accuracy.oa_aa_kappa(truth[:3], truth[:3]) == (1, 1, 0)
    assert accuracy.map_accuracy([(truth[:3], truth[:3])], 2, "polygon").f1 == (1, None)


def test_sharpness_undoes_what_was_blunted() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet([0.5] * 4, 4000)
    labels = np.array([rng.choice(4, p=shares) for shares in true])
    assert accuracy.fit_inverse_temperature(accuracy.apply_temperature(true, 0.5), labels) == pytest.approx(2, rel=0.15)
    assert accuracy.fit_inverse_temperature(np.full((5, 4), 0.25), labels[:5]) > 0


@pytest.mark.parametrize("classes", [2, 5])
def test_the_svm_decides_as_libsvm(classes) -> None:
    features, labels = clusters(classes=classes)
    other, _ = clusters(classes=classes, seed=1)
    middle, spread = features.mean(axis=0), features.std(axis=0)
    machine = SVC(C=100, decision_function_shape="ovo").fit((features - middle) / spread, labels)
    own = baselines.fit(Classifier.SVM, features, labels, classes)
    sign = -1 if classes == 2 else 1
    known = machine.decision_function((other - middle) / spread).reshape(len(other), -1)
    np.testing.assert_allclose(own.decisions(other), sign * known, atol=1e-3)
    found = own.probabilities(other)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == machine.predict((other - middle) / spread)).mean() > 0.97


def test_the_votes_of_the_svm_are_those_of_its_pairs() -> None:
    features, labels = clusters(classes=5)
    other, _ = clusters(classes=5, seed=1)
    own = baselines.fit(Classifier.SVM, features, labels, 6)
    shares = 1 / (1 + np.exp(-4 * own.decisions(other)))
    votes = np.zeros((len(other), 5))
    for pair, (one, against) in enumerate(zip(*np.triu_indices(5, 1))):
        votes[:, one] += shares[:, pair]
        votes[:, against] += 1 - shares[:, pair]
    wanted = np.exp(votes) / np.exp(votes).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(own.probabilities(other)[:, :5], wanted, atol=1e-5)
    assert not own.probabilities(other)[:, 5].any()


def test_the_svm_needs_little_memory_for_many_classes_or_vectors(monkeypatch) -> None:
    monkeypatch.setattr(baselines, "_CHUNK_MEMORY", 2**22)
    for classes, each in ((120, 3), (2, 1000)):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(classes), each)
        fitted = baselines.fit(Classifier.SVM, rng.normal(size=(len(labels), 4)).astype(np.float32), labels, classes)
        many = rng.normal(size=(2000, 4)).astype(np.float32)
        tracemalloc.start()
        found = fitted.probabilities(many)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 2 * found.nbytes + 2**22


@pytest.mark.parametrize("method", [Classifier.SVM, Classifier.RF, Classifier.LINEAR, Classifier.TIP, Classifier.TIP_F])
def test_a_rival_hears_that_the_user_cancels(method, monkeypatch) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", 16)
    features, labels = clusters()
    texts = np.eye(3, 6, dtype=np.float32)
    asked = []
    fitted = baselines.fit(method, features, labels, 3, text_features=texts)
    whole = fitted.probabilities(features)
    with pytest.raises(Cancelled):
        fitted.probabilities(features, Context(cancelled=lambda: bool(asked.append(1) or len(asked) > 3)))
    assert len(asked) == 4
    np.testing.assert_allclose(fitted.probabilities(features[:5]), whole[:5], atol=1e-5)


def test_a_fit_is_left_to_itself_when_the_user_cancels(monkeypatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(SVC, "fit", lambda *_: done.wait(20))
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        baselines.fit(Classifier.SVM, *clusters(), 3, context=Context(cancelled=lambda: time.monotonic() - begun > 0.3))
    assert time.monotonic() - begun < 2
    done.set()
    with pytest.raises(Cancelled):
        baselines.fit(
            Classifier.TIP_F, *clusters(), 3, text_features=np.eye(3, 6), context=Context(cancelled=lambda: True)
        )


def test_descriptions_are_phrases_or_lists_of_them() -> None:
    assert parse_descriptions('{"corn": "rows", "rye": ["a", "b"]}') == {"corn": ("rows",), "rye": ("a", "b")}
    for wrong in ("5", "null", '{"a": "b"}', '["rows", 5]'):
        with pytest.raises(ClippanError, match="description of corn is neither a phrase nor a list of phrases; write"):
            parse_descriptions(f'{{"corn": {wrong}}}')


def test_descriptions_in_a_file_are_by_class(tmp_path) -> None:
    path = tmp_path / "words.json"
    path.write_text('["rows"]')
    with pytest.raises(ClippanError, match="JSON without classes; write"):
        parse_descriptions(str(path))


@pytest.mark.parametrize("method", [Classifier.RF, Classifier.LINEAR, Classifier.TIP, Classifier.TIP_F])
def test_a_rival_learns(method) -> None:
    features, labels = clusters()
    other, truth = clusters(seed=1)
    texts = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    one, again = (
        baselines.fit(method, features, labels, 3, text_features=texts, seed=4).probabilities(other) for _ in range(2)
    )
    assert (one.argmax(axis=1) == truth).mean() > 0.9
    np.testing.assert_array_equal(one, again)


def test_the_cache_corrects_the_words() -> None:
    features, labels = clusters()
    wrong = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32) * 0.01  # words that say hardly anything
    alone = baselines.fit(Classifier.TIP, features, labels, 3, text_features=wrong)
    assert (alone.probabilities(features).argmax(axis=1) == labels).mean() > 0.9


def test_means_count_valid_pixels_only_and_no_window() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30, 40)).astype(np.float32)
    valid = np.ones((30, 40), bool)
    valid[:, 20:] = False
    (means,) = baselines.local_means([values], valid, 5)
    assert means[1, 10, 10] == pytest.approx(values[1, 8:13, 8:13].mean(), abs=1e-5)
    assert means[0, 10, 19] == pytest.approx(values[0, 8:13, 17:20].mean(), abs=1e-5)
    assert means[0, 0, 0] == pytest.approx(values[0, :3, :3].mean(), abs=1e-5)
    (part,) = baselines.local_means([values[:, 5:25, 5:30]], valid[5:25, 5:30], 5)
    np.testing.assert_array_equal(part[:, 2:-2, 2:-2], means[:, 7:23, 7:28])

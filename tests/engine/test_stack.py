"""What is read of scenes that are larger than the memory, and where what is left out touches what is learned."""

from __future__ import annotations

import numpy as np
import pytest

from clippan.core.errors import ClippanError
from clippan.fewshot import stack
from clippan.fewshot.stack import open_stack
from clippan.jobs import Context
from clippan.labels.folds import training_mask
from clippan.raster.tiles import Window


def test_little_data_between_the_windows_is_found(raster) -> None:
    values = np.full((2, 1300, 1300), -1, np.float32)
    values[:, 70:76, 1210:1216] = np.random.default_rng(0).normal(5, 1, (2, 6, 6))
    found = open_stack((raster("a.tif", values, nodata=-1.0),), 0, None, Context())
    np.testing.assert_allclose(found.means[0], values[:, 70:76, 1210:1216].mean((1, 2)), rtol=1e-5)
    modalities, valid = found.read(Window(0, 0, 1300, 1300))
    assert valid.sum() == 36
    assert modalities[0][:, valid].std() == pytest.approx(1, abs=0.01)
    with pytest.raises(ClippanError, match="has no data in the common area"):
        open_stack((raster("b.tif", np.full_like(values, -1), nodata=-1.0),), 0, None, Context())


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_drawn_from_what_shows_something(raster, monkeypatch, seed) -> None:
    monkeypatch.setattr(stack, "_TRAINING_MEMORY", 4 * 2 * 256**2)  # one block of two bands
    values = np.full((2, 1100, 1100), -1, np.float32)
    values[:, :, 300:330] = np.random.default_rng(0).normal(5, 1, (2, 1100, 30))
    found = open_stack((raster("a.tif", values, nodata=-1.0),), 0, None, Context())
    modalities, valid = found.read_training_mosaic(seed, Context())
    assert modalities[0].shape == (2, 256, 256)
    assert valid.sum() in (246 * 30, (1100 - 4 * 256 - 5) * 30)  # without the block's edges
    assert (modalities[0][:, valid] != 0).all()


def test_parts_are_of_the_size_that_is_least(raster, monkeypatch) -> None:
    monkeypatch.setattr(stack, "_WHOLE", 0)
    values = np.random.default_rng(0).normal(5, 1, (1, 300, 300)).astype(np.float32)
    found = open_stack((raster("a.tif", values),), 0, None, Context())
    lone = found.cheapest_windows_at(np.array([3, 299]), np.array([3, 299]), 16)
    assert [(window.x, window.y, window.width, window.height) for window, _ in lone] == [
        (0, 0, 16, 16),
        (288, 288, 12, 12),
    ]
    everywhere = np.arange(0, 300, 4)
    rows, columns = (axis.ravel() for axis in np.meshgrid(everywhere, everywhere))
    many = found.cheapest_windows_at(rows, columns, 16)
    assert {window.width for window, _ in many} == {256, 44}
    assert sorted(np.concatenate([inside for _, inside in many])) == list(range(len(rows)))


def test_nothing_near_to_what_is_left_out_is_learned() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    rows, columns = np.array([0, 14, 15, 0, 5, 40]), np.zeros(6, int)
    out = np.array([True, False, False, False, False, False])
    assert training_mask(labels, rows, columns, out).tolist() == [False, False, True, False, False, True]
    # a class that would be lost stays
    assert training_mask(labels[:5], rows[:5], columns[:5], out[:5]).tolist() == [False, False, True, True, True]
    many = np.random.default_rng(0).integers(0, 200, (2, 2000))
    left = np.arange(2000) < 600
    kept = training_mask(np.zeros(2000, int), *many, left, 3)
    distance = np.abs(many[:, :, None] - many[:, None, left]).max(axis=0).min(axis=1)
    assert (kept == (distance > 3)).all()

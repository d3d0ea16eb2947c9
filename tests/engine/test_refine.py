"""The guided filter: what the papers say it does, wherever a tile begins."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clippan.segmentation.guided import filter_margin, guided_filter  # noqa: E402


def inputs(height=40, width=52, classes=3, seed=0, holes=True):
    rng = np.random.default_rng(seed)
    picture = rng.random((3, height, width)).astype(np.float32)
    picture[:, :, width // 2 :] = picture[:, :, width // 2 :] / 4 + 0.6
    values = rng.random((classes, height, width)).astype(np.float32)
    values /= values.sum(axis=0)
    valid = np.ones((height, width), bool)
    if holes:
        valid[5:14, 8:21] = False
        valid[rng.random(valid.shape) < 0.1] = False
        valid[:, -3:] = False
    return values, picture, valid


def run(values, picture, valid, *arguments):
    return guided_filter(
        *(torch.from_numpy(np.ascontiguousarray(part)) for part in (values, picture, valid)), *arguments
    ).numpy()


def reference(values, picture, valid, radius, eps):
    """He, Sun and Tang 2013, equations 19 to 21, window by window in float64."""
    height, width = valid.shape
    guide = picture.astype(float)
    slopes, offsets = np.zeros((len(values), 3, height, width)), np.zeros(values.shape)

    def window(y, x):
        rows = slice(max(y - radius, 0), y + radius + 1)
        return rows, slice(max(x - radius, 0), x + radius + 1)

    for y, x in zip(*np.nonzero(valid)):
        inside = window(y, x)
        keep = valid[inside]
        colours = guide[:, inside[0], inside[1]][:, keep]
        inputs = values[:, inside[0], inside[1]][:, keep].astype(float)
        mu, mean = colours.mean(axis=1), inputs.mean(axis=1)
        sigma = (colours - mu[:, None]) @ (colours - mu[:, None]).T / colours.shape[1] + eps * np.eye(3)
        covariance = inputs @ colours.T / colours.shape[1] - np.outer(mean, mu)
        slopes[:, :, y, x] = np.linalg.solve(sigma, covariance.T).T
        offsets[:, y, x] = mean - slopes[:, :, y, x] @ mu
    found = np.zeros(values.shape)
    for y, x in zip(*np.nonzero(valid)):
        inside = window(y, x)
        keep = valid[inside]
        a = slopes[:, :, inside[0], inside[1]][:, :, keep].mean(axis=2)
        found[:, y, x] = a @ guide[:, y, x] + offsets[:, inside[0], inside[1]][:, keep].mean(axis=1)
    return found


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-2), (4, 1e-3), (7, 1e-4), (60, 1e-2)])
def test_is_the_filter_of_the_paper(radius, eps):
    values, picture, valid = inputs()
    found = run(values, picture, valid, radius, eps)
    assert np.abs(found - reference(values, picture, valid, radius, eps)).max() < 2e-4


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_a_step_moves_to_the_edge_of_the_picture(cell):
    """A blurred guess of where a field ends becomes as sharp as the field."""
    width, edge = 96, 45
    picture = np.full((3, 64, width), 0.2, np.float32)
    picture[:, :, edge:] = np.array([0.3, 0.6, 0.2], np.float32)[:, None, None]
    guess = np.clip((np.arange(width, dtype=np.float32) - edge + 6) / 12, 0, 1)
    values = np.broadcast_to(guess, (64, width))[None]
    found = run(values, picture, np.ones((64, width), bool), 12, 1e-4, cell)[0, 32]
    assert (np.abs(np.diff(values[0, 32])) < 0.1).all()
    step = np.abs(np.diff(found))
    assert step.argmax() == edge - 1
    assert step[edge - 1] > 0.5


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_sums_and_constants_are_kept(cell):
    values, picture, valid = inputs(61, 47)
    found = run(values, picture, valid, 8, 1e-3, cell)
    assert found.shape == values.shape
    assert np.abs(found.sum(axis=0)[valid] - 1).max() < 1e-3
    assert (found[:, ~valid] == 0).all()


@pytest.mark.parametrize("cell", [1, 4])
def test_invalid_pixels_take_no_part(cell):
    values, picture, valid = inputs()
    once = run(values, picture, valid, 8, 1e-3, cell)
    values[:, ~valid], picture[:, ~valid] = np.nan, 1e9
    assert np.array_equal(run(values, picture, valid, 8, 1e-3, cell), once)
    nothing = np.zeros_like(valid)
    assert (run(values, picture, nothing, 8, 1e-3, cell) == 0).all()


@pytest.mark.parametrize(("radius", "cell"), [(5, 1), (8, 2), (10, 4), (9, 8)])
def test_tiles_do_not_show(radius, cell):
    values, picture, valid = inputs(150, 170, seed=3)
    whole = run(values, picture, valid, radius, 1e-3, cell)
    reach = filter_margin(radius, cell)
    assert reach % cell == 0
    step = 12 * cell
    for size in (step, 2 * step):
        for y in range(0, 150, size):
            for x in range(0, 170, size):
                top, left = max(y - reach, 0), max(x - reach, 0)
                part = (slice(None), slice(top, y + size + reach), slice(left, x + size + reach))
                tile = run(values[part], picture[part], valid[part[1:]], radius, 1e-3, cell)
                tile = tile[:, y - top : y - top + size, x - left : x - left + size]
                # Vector instructions round the ends of rows otherwise than their middles.
                np.testing.assert_allclose(tile, whole[:, y : y + size, x : x + size], rtol=0, atol=1e-6)


def test_margin_is_needed():
    """One pixel less than the margin changes something: the test above sees what it should."""
    values, picture, valid = inputs(60, 60, holes=False)
    whole = run(values, picture, valid, 5, 1e-3)
    left = 30 - filter_margin(5) + 1
    part = run(values[:, :, left:], picture[:, :, left:], valid[:, left:], 5, 1e-3)
    assert np.abs(part[:, :, 30 - left :] - whole[:, :, 30:]).max() > 1e-4


def test_many_classes_are_filtered_as_few():
    values, picture, valid = inputs(classes=19)
    found = run(values, picture, valid, 4, 1e-3)
    assert np.array_equal(found[9:10], run(values[9:10], picture, valid, 4, 1e-3))


def test_a_flat_picture_blurs():
    values, picture, valid = inputs(holes=False)
    picture[:] = 0.7
    found = run(values, picture, valid, 2, 1e-3)
    box = np.lib.stride_tricks.sliding_window_view(values, (9, 9), axis=(1, 2))
    tent = np.convolve(np.ones(5), np.ones(5))
    wanted = (box * np.outer(tent, tent)).sum(axis=(3, 4)) / tent.sum() ** 2
    assert np.abs(found[:, 4:-4, 4:-4] - wanted).max() < 1e-5

"""DiffCLIP on arrays: what the network sees, what it learns without labels, and with few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clippan.core.errors import Cancelled, ClippanError
from clippan.fewshot import prompt_heads, scene_encoder, windows
from clippan.fewshot.network import MaskDiffusion, NetworkSize
from clippan.jobs import Context
from clippan.learn.scene_pretraining import pretrain

CPU = torch.device("cpu")
SMALL = NetworkSize(window=5, width=16, depth=1, heads=2, components=4)
PUBLISHED_SIZE = NetworkSize(width=128, depth=4, heads=8, decoder=3)
RANDOM_TEXTS = torch.randn(4, 1, 256, generator=torch.Generator().manual_seed(0))
QUICK = prompt_heads.Options(head_count=2, steps=40)


def scene(height: int = 40, width: int = 48, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Two modalities of four fields with much noise, and the truth: nine bands that repeat two, and one."""
    chance = np.random.default_rng(seed)
    truth = (np.arange(height)[:, None] >= height // 2) * 2 + (np.arange(width) >= width // 2)
    clean = np.stack([truth // 2, truth % 2]).astype(np.float64)
    mixed = np.einsum("bc,chw->bhw", chance.normal(size=(9, 2)), clean + 0.3 * chance.normal(size=clean.shape))
    modalities = [mixed + 0.1 * chance.normal(size=mixed.shape), clean[:1] + chance.normal(size=(1, height, width))]
    return [
        ((values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)).astype(np.float32)
        for values in modalities
    ], truth


def everywhere(truth: np.ndarray) -> np.ndarray:
    return np.ones(truth.shape, bool)


class Learned(NamedTuple):
    encoder: scene_encoder.SceneEncoder
    fitted: prompt_heads.HeadEnsemble
    map: Callable[..., np.ndarray]
    modalities: list[np.ndarray]
    truth: np.ndarray


def learned(seed: int = 0, options: prompt_heads.Options = QUICK, texts: torch.Tensor = RANDOM_TEXTS):
    modalities, truth = scene()
    encoder = pretrain(
        modalities, everywhere(truth), steps=8, batch=8, seed=seed, device=CPU, context=Context(), size=SMALL
    )
    rows, columns = np.array([5, 9, 5, 9, 30, 33, 30, 33]), np.array([5, 11, 30, 40, 5, 11, 30, 40])
    labels, valid, moments = truth[rows, columns], everywhere(truth), prompt_heads.FeatureMoments()
    sight = prompt_heads.pixel_features(encoder, modalities, valid, options, Context())
    moments.add(sight.features, sight.valid)
    spots = prompt_heads.SampleFeatures.at_pixels(sight, rows, columns, options)
    fitted = prompt_heads.fit_heads(
        spots, labels, texts, moments.mean_and_inverse_std(CPU), seed=seed, context=Context(), options=options
    )

    def mapped(modalities: Sequence[np.ndarray], valid: np.ndarray = valid) -> np.ndarray:
        return fitted.predict_pixels(
            prompt_heads.pixel_features(encoder, modalities, valid, options, Context()), Context()
        )

    return Learned(encoder, fitted, mapped, modalities, truth)


def test_components_have_less_noise_the_earlier_they_come() -> None:
    modalities, truth = scene()
    found = scene_encoder.mnf_projection(modalities[0], everywhere(truth), 32)
    shown = np.einsum("cb,bhw->chw", found, modalities[0])
    rough = [sum(np.mean(np.diff(band, axis=axis) ** 2) for axis in (0, 1)) / band.var() for band in shown]
    assert 2 <= len(found) < 9
    assert rough == sorted(rough)


def test_components_do_not_know_of_invalid_pixels() -> None:
    modalities, truth = scene()
    valid = everywhere(truth)
    valid[:4] = False
    spoiled = modalities[0].copy()
    spoiled[:, :4] = 1e6
    np.testing.assert_allclose(
        scene_encoder.mnf_projection(spoiled, valid, 4),
        scene_encoder.mnf_projection(modalities[0], valid, 4),
        rtol=1e-4,
        atol=1e-5,
    )


def test_windows_laid_back_give_the_scene() -> None:
    values = torch.randn(3, 21, 18)
    rows, columns = windows.centres(21, 18, 11)
    canvas = windows.OverlapMean(3, 21, 18, 11, CPU)
    canvas.add(windows.extract(windows.mirror_padded(values, 10), rows + 5, columns + 5, 11), rows, columns)
    torch.testing.assert_close(canvas.mean(), values)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_windows_of_what_is_on_a_gpu(device: str) -> None:
    """Where pixels are is known on the CPU; that devices go together is told without a GPU."""
    with FakeTensorMode():
        rows = torch.arange(4)
        values = torch.zeros(3, 30, 30, device=device)
        cut = windows.extract(values, rows, rows, 11)
        canvas = windows.OverlapMean(3, 20, 20, 11, torch.device(device))
        canvas.add(cut, rows, rows)
        assert canvas.mean().device.type == device


@pytest.mark.gpu
def test_a_gpu_tells_the_same() -> None:
    modalities, truth = scene()
    maps = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        encoder = pretrain(
            modalities, everywhere(truth), steps=2, batch=8, device=device, context=Context(), size=SMALL
        )
        sight, moments = (
            prompt_heads.pixel_features(encoder, modalities, everywhere(truth), QUICK, Context()),
            prompt_heads.FeatureMoments(),
        )
        moments.add(sight.features, sight.valid)
        rows, columns = np.array([5, 9, 30, 33]), np.array([5, 30, 5, 40])
        spots = prompt_heads.SampleFeatures.at_pixels(sight, rows, columns, QUICK)
        standard = moments.mean_and_inverse_std(device)
        fitted = prompt_heads.fit_heads(
            spots, truth[rows, columns], RANDOM_TEXTS, standard, context=Context(), options=QUICK
        )
        maps.append(fitted.predict_pixels(sight, Context()))
        np.testing.assert_allclose(fitted.predict_samples(spots, Context()), maps[-1][:, rows, columns].T, atol=1e-4)
    assert (maps[0].argmax(axis=0) == maps[1].argmax(axis=0)).mean() > 0.95


def test_padding_mirrors_scenes_smaller_than_the_window() -> None:
    values = torch.arange(3.0).reshape(1, 1, 3)
    assert windows.mirror_padded(values, 4)[0, 4].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_the_encoder_is_shared_and_the_rest_is_not() -> None:
    projections = [torch.eye(3), torch.eye(2)]
    shared, own = MaskDiffusion(SMALL, projections), MaskDiffusion(replace(SMALL, shared=False), projections)
    assert len(shared.encoders) == 1
    assert len(own.encoders) == 2
    shared.encode(1, torch.randn(2, 25, 2), torch.zeros(2)).sum().backward()
    assert shared.owns[0].summary.grad is None
    assert all(weight.grad is not None for weight in shared.encoders.parameters())


def test_the_published_network_takes_a_step() -> None:
    modalities, truth = scene(16, 16)
    found = pretrain(
        modalities, everywhere(truth), steps=1, batch=2, device=CPU, context=Context(), size=PUBLISHED_SIZE
    )
    assert len(found.network.encoders[0]) == PUBLISHED_SIZE.depth + 1


@pytest.mark.slow
def test_pre_training_lowers_the_loss_and_repeats() -> None:
    modalities, truth = scene()
    first, again, longer = (
        pretrain(
            modalities, everywhere(truth), steps=steps, batch=16, seed=3, device=CPU, context=Context(), size=SMALL
        )
        for steps in (5, 5, 80)
    )
    assert longer.loss < first.loss
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_a_saved_encoder_is_the_same(tmp_path: Path) -> None:
    known = learned()
    modalities = known.modalities
    path = tmp_path / "scene.safetensors"
    known.encoder.save(path)
    found = scene_encoder.load(path, CPU)
    assert (found.bands, found.steps, found.loss) == ((9, 1), 8, known.encoder.loss)
    torch.testing.assert_close(
        scene_encoder.encoder_features(found, modalities, Context()),
        scene_encoder.encoder_features(known.encoder, modalities, Context()),
    )
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_is_no_encoder_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ClippanError, match="cannot be read as a scene encoder") as error:
        scene_encoder.load(path, CPU)
    assert "\n" not in str(error.value)


def test_other_rasters_than_the_encoders_are_refused() -> None:
    known = learned()
    with pytest.raises(ClippanError, match=r"training: 9 \+ 1, rasters given: 1 \+ 9"):
        known.map(known.modalities[::-1])


def test_a_scene_without_valid_pixels_is_refused() -> None:
    modalities, truth = scene()
    with pytest.raises(ClippanError, match="No pixel is valid"):
        pretrain(modalities, ~everywhere(truth), steps=1, device=CPU, context=Context())


@pytest.mark.parametrize("words", [False, True])
def test_few_samples_make_a_map_that_repeats(words: bool) -> None:
    texts = torch.nn.functional.normalize(torch.randn(4, 3, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    maps = []
    for _ in range(2):
        known = learned(texts=texts if words else RANDOM_TEXTS)
        maps.append(known.map(known.modalities))
    assert maps[0].dtype == np.float32
    assert (maps[0].argmax(axis=0) == known.truth).mean() > 0.9
    np.testing.assert_allclose(maps[0].sum(axis=0), 1, rtol=1e-4)
    np.testing.assert_array_equal(*maps)


def test_prompts_of_one_class_are_no_rivals() -> None:
    """Two prompts of a class that mean the same take nothing from each other."""
    one = torch.nn.functional.normalize(torch.randn(4, 1, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    known = learned(texts=one.expand(-1, 2, -1))
    assert (known.map(known.modalities).argmax(axis=0) == known.truth).mean() > 0.9


def test_more_samples_than_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_heads, "_BATCH", 3)
    known = learned()
    assert (known.map(known.modalities).argmax(axis=0) == known.truth).mean() > 0.9


def test_invalid_pixels_change_no_other() -> None:
    known = learned(options=replace(QUICK, use_encoder=False))
    valid = everywhere(known.truth)
    valid[10:14, 10:14] = False
    spoiled = [values.copy() for values in known.modalities]
    for values in spoiled:
        values[:, ~valid] = 1e6
    expected = known.map([values * valid for values in known.modalities], valid)
    np.testing.assert_allclose(known.map(spoiled, valid)[:, valid], expected[:, valid], atol=1e-4)


def test_single_places_are_told_apart_as_on_the_map() -> None:
    """At the scene's edges and beside invalid pixels too; places of two parts are in the samples' order."""
    known, options = learned(), QUICK
    valid = everywhere(known.truth)
    valid[10:14, 10:14] = False
    sight = prompt_heads.pixel_features(known.encoder, known.modalities, valid, options, Context())
    rows, columns = np.array([0, 9, 39, 14, 20]), np.array([0, 12, 47, 9, 21])
    whole = known.fitted.predict_pixels(sight, Context())
    parts = [np.array([3, 0]), np.array([1, 4, 2])]
    spots = prompt_heads.SampleFeatures.concatenated(
        [prompt_heads.SampleFeatures.at_pixels(sight, rows[part], columns[part], options) for part in parts], parts
    )
    np.testing.assert_allclose(known.fitted.predict_samples(spots, Context()), whole[:, rows, columns].T, atol=1e-5)
    some = np.array([4, 1])
    np.testing.assert_allclose(
        known.fitted.predict_samples(spots.subset(some), Context()), whole[:, rows, columns].T[some], atol=1e-5
    )


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = torch.randn(70, 8, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    moments, left = prompt_heads.FeatureMoments(), torch.zeros(8, 6, dtype=torch.bool)
    left[:, :2] = True
    moments.add(values, left)
    moments.add(values, ~left)
    mean, scale = moments.mean_and_inverse_std(CPU)
    torch.testing.assert_close(mean, values.flatten(1).mean(dim=1))
    torch.testing.assert_close(scale, 1 / values.flatten(1).std(dim=1, correction=0))


def test_cancelling_ends_both_steps() -> None:
    known = learned()
    stopped = Context(cancelled=lambda: True)
    with pytest.raises(Cancelled):
        pretrain(known.modalities, everywhere(known.truth), steps=5, device=CPU, context=stopped, size=SMALL)
    sight = prompt_heads.pixel_features(known.encoder, known.modalities, everywhere(known.truth), QUICK, Context())
    with pytest.raises(Cancelled):
        known.fitted.predict_pixels(sight, stopped)

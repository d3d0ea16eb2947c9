"""Random training batches. The generator passed in decides all of a batch, so that a run can be resumed at any step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import numpy as np
import torch

from clippan.catalogue.sensors import SENSORS
from clippan.core.errors import ClippanError
from clippan.fusion.methods import BDSD
from clippan.fusion.mtf_estimation import shrunk_to_table
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.degradation import Blur
from clippan.learn.fusion.patches import BandMixture, ReferenceScene, ScenePair, collate
from clippan.learn.fusion.recipe import Augmentation, Recipe
from clippan.learn.fusion.stand_in import bdsd_fused, fit_bdsd

_PAN_MTF_GAINS = (0.11, 0.15, 0.2)  # MTF gains with which PAN is brought to reduced resolution
_MAX_ATTEMPTS = 200  # attempts to find a scene that is large enough
_MTF_GAIN_RANGE = (0.06, 0.9)  # range of the simulated MTF gain
_ANY_MTF_GAIN = (0.08, 0.75)  # range of the gain of a blur of kind ``any``
_UNEVENNESS = 0.25  # standard deviation of half the logarithm of the gains' ratio along both axes
_ESTIMATION_ERROR = 0.5  # mean error of an estimate, in −4·ln(gain)


class BatchSampler:
    """Batches of patches, as a recipe asks for them.

    Args:
        pairs: scenes at full resolution.
        pictures: sampling weight and scenes of each source of pictures.
        bands: number of bands of the network; None for any.

    Where CLIP supervises, or PAN is predicted by learned weights, patches at full resolution have the recipe's number
    of bands also for networks that take any.

    Raises:
        ClippanError: no pair has enough bands.
    """

    def __init__(
        self,
        recipe: Recipe,
        pairs: Sequence[ScenePair],
        pictures: Sequence[tuple[float, Sequence[ReferenceScene]]],
        bands: Optional[int],
    ) -> None:
        self._recipe, self._bands = recipe, bands
        self._scene_bands = bands or recipe.scene_bands
        self._pairs: dict[str, list[ScenePair]] = defaultdict(list)
        self._references: dict[str, list[ReferenceScene]] = defaultdict(list)
        for pair in pairs:
            if len(pair.ms) >= (self._scene_bands or 1):
                self._pairs[pair.sensor].append(pair)
            if recipe.truth.used and len(pair.ms) >= (bands or 1):
                self._references[pair.sensor] += [pair.reduced_reference(gain) for gain in _PAN_MTF_GAINS]
        self._pictures = [(share, list(references)) for share, references in pictures if references]
        self._bdsd: dict[int, BDSD] = {}  # by the number of the pair
        if not self._pairs and (recipe.scene.used or recipe.needs_stage_one or not self._pictures):
            raise ClippanError(
                "The recipe has no pair with as many multispectral bands as the network; add such pairs."
            )

    def reduced_batches(self, rng: np.random.Generator) -> list[PatchBatch]:
        """The patches with a reference of one step, as a batch for each number of bands."""
        augment, patches = self._recipe.augment, self._recipe.batch
        choices = [self._bands] if self._bands else augment.bands
        drawn = rng.choice(choices, patches) if augment.bands_per_patch else np.repeat(rng.choice(choices), patches)
        groups = zip(*np.unique(drawn, return_counts=True))
        return [self.reduced_batch(rng, int(bands), int(count)) for bands, count in groups]

    def reduced_batch(self, rng: np.random.Generator, bands: int, count: int) -> PatchBatch:
        """``count`` patches with a reference, of several scenes and one ratio."""
        recipe, augment = self._recipe, self._recipe.augment
        ratio = float(rng.choice(augment.ratios))
        table = _random_mtf_gains(rng, bands)
        phases = rng.integers(0, max(1, int(4 * ratio)), 2) / 4  # of few values, whose filters are cached
        patches = []
        for _ in range(_MAX_ATTEMPTS):
            reference = self._random_reference(rng)
            shifts: np.ndarray = np.zeros((bands, 2))
            if augment.shift and rng.random() < 0.7:
                shifts = rng.normal(0, augment.shift, (1, 2)) + rng.normal(0, augment.shift / 2, (bands, 2))
            mixture = _random_mixture(rng, reference, bands, augment)
            blurs = _random_blurs(rng, table, augment)
            gains = table if rng.random() < augment.table_only else _as_estimated(rng, table, blurs)
            patch = reference.patch(rng, recipe.size, ratio, phases, gains, blurs, shifts, mixture)
            if patch is not None:
                patches.append(patch.transformed(int(rng.integers(8))))
            if len(patches) == count:
                return collate(patches, range(len(patches)), ratio)
        raise ClippanError("The scenes are too small for the patches of the recipe; lower its size.")

    def full_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Patches of one pair at full resolution."""
        recipe = self._recipe
        names = list(self._pairs)
        for _ in range(_MAX_ATTEMPTS):
            group = self._pairs[names[rng.integers(len(names))]]
            pair = group[rng.integers(len(group))]
            count = self._scene_bands or min(len(pair.ms), max(recipe.augment.bands))
            # Patches cover about the same area on the ground, whatever the ratio.
            size = round(recipe.scene_size * min(pair.x_axis.ratio / 4, 1)) // 8 * 8
            size = min(size, min(pair.pan.shape) // 8 * 8)
            order = range(count) if self._scene_bands else rng.permutation(len(pair.ms))[:count]
            patches = pair.patches(rng, recipe.scene_batch, size, [int(band) for band in order])
            if patches:
                transformed = [patch.transformed(int(rng.integers(8))) for patch in patches]
                return collate(transformed, [0] * len(patches), pair.x_axis.ratio)
        raise ClippanError("The scenes are too small for the patches of the recipe; lower its scene_size.")

    def adapter_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Full-resolution patches of several scenes of about one ratio, one patch each, for stage I."""
        plan, bands = self._recipe.language, self._recipe.bands
        pairs = [pair for group in self._pairs.values() for pair in group]
        first = pairs[rng.integers(len(pairs))]
        candidates = [
            (number, pair) for number, pair in enumerate(pairs) if abs(pair.x_axis.ratio - first.x_axis.ratio) < 0.01
        ]
        size = min(self._recipe.scene_size, *(min(pair.pan.shape) // 8 * 8 for _, pair in candidates))
        patches, scenes = [], []
        for choice in rng.integers(len(candidates), size=_MAX_ATTEMPTS):
            number, pair = candidates[choice]
            cut = pair.patches(rng, 1, size, range(bands))
            patches += cut
            scenes += [number] * len(cut)
            if len(patches) == plan.batch:
                batch = collate(patches, scenes, first.x_axis.ratio)
                if plan.stand_in != "bdsd":
                    return batch
                for number in set(scenes) - self._bdsd.keys():
                    self._bdsd[number] = fit_bdsd(pairs[number], bands)
                fused = [bdsd_fused(self._bdsd[number], batch, index) for index, number in enumerate(scenes)]
                return replace(batch, stand_in=torch.stack(fused))
        raise ClippanError("The scenes are too small for the patches of the recipe; lower its scene_size.")

    def _random_reference(self, rng: np.random.Generator) -> ReferenceScene:
        simulated = self._recipe.augment.simulated if self._references else 1.0
        if self._pictures and rng.random() < simulated:
            shares = np.array([share for share, _ in self._pictures])
            references = self._pictures[rng.choice(len(shares), p=shares / shares.sum())][1]
        else:
            names = list(self._references)
            references = self._references[names[rng.integers(len(names))]]
        return references[rng.integers(len(references))]


def _random_mtf_gains(rng: np.random.Generator, bands: int) -> list[float]:
    """The MTF gains of a random sensor, in random order."""
    sensors = list(SENSORS.values())
    return [float(gain) for gain in rng.permutation(np.resize(sensors[rng.integers(len(sensors))].mtf_ms, bands))]


def _random_blurs(rng: np.random.Generator, table: Sequence[float], augment: Augmentation) -> list[Blur]:
    """What made the bands, of one kind."""
    kinds = list(augment.blurs)
    shares = np.array([augment.blurs[kind] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    if kind not in ("table", "any"):
        return [Blur(kind)] * len(table)
    common = float(np.exp(rng.uniform(*np.log(_ANY_MTF_GAIN))))
    stretch = rng.normal(0, _UNEVENNESS) if rng.random() < augment.uneven else 0.0
    blurs = []
    for expected in table:
        gain = (expected if kind == "table" else common) * np.exp(rng.normal(0, augment.gain))
        x, y = (float(np.clip(gain * np.exp(part), *_MTF_GAIN_RANGE)) for part in (stretch, -stretch))
        blurs.append(Blur("gaussian", _rounded(x), _rounded(y)))
    return blurs


def _as_estimated(rng: np.random.Generator, table: Sequence[float], blurs: Sequence[Blur]) -> list[float]:
    """The MTF gains that ``auto`` would work with: estimates have errors, and are shrunk to the table's."""
    errors = np.full(len(table), rng.exponential(_ESTIMATION_ERROR))
    blur = -4 * np.log([blur.gain for blur in blurs]) + rng.normal(0, errors)
    gains = shrunk_to_table(blur, errors / 3, table)
    return [_rounded(gain) for gain in gains.clip(max=0.95)]


def _rounded(gain: float) -> float:
    """An MTF gain on a lattice, so that filters are used more than once."""
    return round(round(float(gain) / 0.02) * 0.02, 2)


def _random_mixture(
    rng: np.random.Generator, reference: ReferenceScene, bands: int, augment: Augmentation
) -> BandMixture:
    count, moments = len(reference.bands), reference.moments(4.0)
    if count >= bands and rng.random() >= augment.mixed:
        weights = np.eye(count)[rng.permutation(count)[:bands]]
    else:
        weights = rng.dirichlet(np.full(count, 0.3), size=bands)
    offset: np.ndarray = np.zeros(bands)
    pan_offset = 0.0
    if rng.random() < augment.haze:
        haze = rng.uniform(-0.3, 1.0)
        offset, pan_offset = haze * (weights @ moments.mean) * rng.uniform(0.7, 1.3, bands), haze * moments.pan_mean
    pan_weight = 1.0
    pan_band_weights: np.ndarray = np.zeros(count)
    if reference.simulated_pan and rng.random() < 0.7:
        pan_weight, pan_band_weights = 0.0, rng.dirichlet(np.ones(count))
    elif not reference.simulated_pan and rng.random() < 0.3:
        pan_weight = rng.uniform(0.5, 1)
        scale = np.sqrt(moments.pan_variance / max(np.trace(moments.covariance) / count, 1e-9))
        pan_band_weights = (1 - pan_weight) * scale * rng.dirichlet(np.full(count, 0.5))
    noise, pan_noise = (
        float(rng.exponential(augment.noise)) if rng.random() < augment.noisy else 0.0 for _ in range(2)
    )
    saturated, pan_saturated = (
        float(rng.uniform(0.001, 0.05)) if rng.random() < augment.saturated / 2 else 0.0 for _ in range(2)
    )
    jpeg, pan_jpeg = (int(rng.integers(60, 96)) if rng.random() < augment.jpeg / 2 else 0 for _ in range(2))
    return BandMixture(
        weights,
        offset,
        pan_weight,
        pan_band_weights,
        pan_offset,
        noise,
        pan_noise,
        saturated,
        pan_saturated,
        jpeg,
        pan_jpeg,
    )

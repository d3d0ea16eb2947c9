"""What is read of a scene to adapt to it: patches to learn from at two scales, and windows to measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from clippan.catalogue.sensors import Sensor
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.threads import count_threads
from clippan.fusion import filters
from clippan.fusion.neural import trust
from clippan.fusion.registration import register
from clippan.fusion.statistics import TINY, SceneStatistics, measure_scene
from clippan.jobs.adapt import AdaptFusionRequest
from clippan.learn.fusion import reading
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.patches import (
    BandMixture,
    BandMoments,
    Patch,
    ReferenceScene,
    ScenePair,
    collate,
    valid_corners,
)
from clippan.learn.fusion.validation import ValidationWindow
from clippan.raster.pair import Pair

_WHOLE = 12_000_000  # PAN pixels times bands: so much is one window, and is measured where it is learned from
_WINDOWS, _HELD = 6, 3  # windows of a larger scene; every third is for measuring alone
_EDGE = 1024  # of these, PAN pixels
_SIZES = (192, 128, 96, 64)  # edges of patches in PAN pixels, the first that fits
_REDUCED_SIZES = (128, 96, 64, 48, 32)  # the same one scale down
_PATCHES = 4


@dataclass(frozen=True)
class TrainingScene:
    """What is learned from and measured on.

    Attributes:
        patch_sources: windows at full resolution to draw patches from.
        truths: the same one scale down.
        size, reduced_size: edges of patches in pixels.
        ratio: MS over PAN pixel size.
        gains: MTF gain of each band.
        validation: what is measured at full resolution, and ``reduced_validation`` one scale down.
        pixels: of PAN in all windows.
    """

    patch_sources: Sequence[PatchSource]
    truths: Sequence[ReferenceScene]
    size: int
    reduced_size: int
    ratio: float
    gains: tuple[float, ...]
    validation: Sequence[ValidationWindow]
    reduced_validation: Sequence[ValidationWindow]
    pixels: int

    @classmethod
    def read(
        cls, pair: Pair, sensor: Sensor, request: AdaptFusionRequest, device: torch.device, context: Context
    ) -> TrainingScene:
        """Registers the pair, measures all of it and reads some windows.

        Raises:
            ClippanError: too little of the scene is valid.
        """
        threads = count_threads(request.threads)
        positions = [number - 1 for number in request.bands] or range(pair.ms.total)
        gains = sensor.gains(positions, pair.ms.total)
        pair, _ = register(pair, request.registration, gains, threads, context.subrange(0, 30))
        responses = filters.band_responses(gains, pair.offsets)
        distinct = sorted(set(responses))
        statistics = measure_scene(pair, distinct, sensor.pan, threads, context.subrange(30, 60))
        if statistics.flat:
            raise ClippanError(
                "The panchromatic raster has one value everywhere and so nothing to learn from; check whether it is "
                "the right file, and its nodata value."
            )
        response_of = [distinct.index(response) for response in responses]
        moments, believed = _moments(statistics, response_of), trust(statistics, response_of)
        edge = min(_EDGE, math.isqrt(_WHOLE // (3 * len(gains))))  # many bands take as much memory as few
        windows, whole = reading.informative_windows(pair, _WINDOWS, edge, _WHOLE)
        parts = []
        for number, window in enumerate(windows, 1):
            context.progress(60 + 40 * number / len(windows), "Reading the scene")
            found = reading.read_window(pair, window, "scene", gains, sensor.pan)
            found.moments = moments  # the whole scene's, as in Pansharpen
            parts.append(found)
        held = [] if whole or len(parts) < _HELD else parts[_HELD - 1 :: _HELD]
        learned = [found for found in parts if not any(found is other for other in held)]
        ratio = math.sqrt(pair.x.ratio * pair.y.ratio)
        truths = [found.reduced_reference(sensor.pan) for found in learned]
        size, patch_sources = _patch_sources(learned)
        reduced_size = next((size for size in _REDUCED_SIZES if any(truth.fits(size) for truth in truths)), 0)
        if not size or not reduced_size:
            raise ClippanError(
                "No place of {_SIZES} × {_SIZES} panchromatic pixels, or of {_REDUCED_SIZES} × {_REDUCED_SIZES} "
                "multispectral ones, is valid throughout, so there is too little to learn from; choose a larger area, "
                "or pansharpen with the start model.",
                _SIZES=_SIZES[-1],
                _REDUCED_SIZES=_REDUCED_SIZES[-1],
            )
        validation = [ValidationWindow.of(found, device, believed) for found in held or learned]
        lower = [found.reduced_reference(sensor.pan) for found in held] or truths
        reduced_validation = [
            ValidationWindow.of(truth.reduced_pair(ratio, sensor.pan), device, believed, truth) for truth in lower
        ]
        context.log(
            f"Learning from {len(learned)} window{'s' * (len(learned) > 1)} of the scene"
            + (f", measuring on {len(held)} others." if held else ", all of it." if whole else ".")
        )
        pixels = sum(found.pan.size for found in parts)
        return cls(
            patch_sources, truths, size, reduced_size, ratio, tuple(gains), validation, reduced_validation, pixels
        )

    def full_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Patches at full resolution."""
        patches = [
            self.patch_sources[int(rng.integers(len(self.patch_sources)))].patch(rng, self.size)
            for _ in range(_PATCHES)
        ]
        return collate(patches, [0] * len(patches), self.ratio)

    def reduced_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Patches one scale down, with the true MS."""
        count = len(self.truths[0].bands)
        mixture, gains = BandMixture.selection(range(count), count), self.truths[0].gains
        phases = np.floor(rng.uniform(0, self.ratio, 2))
        usable = [truth for truth in self.truths if min(truth.pan.shape) >= self.reduced_size]
        patches: list[Patch] = []
        while len(patches) < _PATCHES:
            truth = usable[rng.integers(len(usable))]
            patch = truth.patch(rng, self.reduced_size, self.ratio, phases, gains, gains, np.zeros((count, 2)), mixture)
            patches += [patch] if patch is not None else []
        return collate(patches, range(len(patches)), self.ratio)


@dataclass(frozen=True)
class PatchSource:
    """A window whose inputs are computed once, to be cut into patches.

    Attributes:
        whole: the window as one patch.
        corners: of patches that are valid (n, 2), row and column.
        spans: the first pixel that each sample of MS is made of, and the last, for rows (samples, 2) and columns.
    """

    whole: Patch
    corners: np.ndarray
    spans: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, pair: ScenePair, size: int) -> Optional[PatchSource]:
        """The window for patches of a size; None if none of it is valid throughout."""
        corners = valid_corners(pair.valid_pixels(), size)
        if not len(corners):
            return None
        whole = pair.whole_patch()
        return cls(whole, corners, (_spans(whole.rows), _spans(whole.columns)))

    def patch(self, rng: np.random.Generator, size: int) -> Patch:
        """One of the patches."""
        row, column = (int(start) for start in self.corners[rng.integers(len(self.corners))])
        down, right = slice(row, row + size), slice(column, column + size)
        rows, columns = _within(self.spans[0], down), _within(self.spans[1], right)
        whole = self.whole
        up, pan, low = (image[:, down, right] for image in (whole.up, whole.pan, whole.low))
        ms, pan_low = (image[:, rows, columns] for image in (whole.ms, whole.pan_low))
        return Patch(
            up, pan, low, ms, pan_low, whole.rows[:, rows, down], whole.columns[:, columns, right], whole.moments, None
        )


def _spans(matrices: Tensor) -> np.ndarray:
    used = (matrices != 0).any(dim=0).numpy()
    return np.stack([used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)], axis=1)


def _within(spans: np.ndarray, pixels: slice) -> slice:
    """Samples that are made of these pixels only, at least one."""
    chosen = np.flatnonzero((spans[:, 0] >= pixels.start) & (spans[:, 1] < pixels.stop))
    if len(chosen):
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    nearest = int(np.abs(spans.mean(axis=1) - (pixels.start + pixels.stop - 1) / 2).argmin())
    return slice(nearest, nearest + 1)


def _patch_sources(pairs: Sequence[ScenePair]) -> tuple[int, list[PatchSource]]:
    """The greatest edge of patches that lie somewhere, 0 if none does, and the windows that have some."""
    for size in _SIZES:
        found = [PatchSource.of(pair, size) for pair in pairs]
        patch_sources = [source for source in found if source is not None]
        if patch_sources:
            return size, patch_sources
    return 0, []


def _moments(statistics: SceneStatistics, response_of: Sequence[int]) -> BandMoments:
    """The scene's, so that patches are standardised and modulated as ``neural.NetworkFusion`` does it."""
    ms = statistics.ms
    lows = [statistics.low(index) for index in response_of]
    variance = statistics.covariance.diagonal().clamp(min=TINY)
    gains = statistics.covariance[ms, lows] / variance[lows]
    pan = statistics.low(0)
    return BandMoments(
        statistics.mean[ms].numpy(),
        statistics.covariance[ms][:, ms].numpy(),
        float(statistics.mean[pan]),
        float(variance[pan]),
        (gains * variance[pan]).numpy(),
    )

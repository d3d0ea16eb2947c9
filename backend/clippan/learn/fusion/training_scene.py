"""The parts of a scene that adaptation reads: training patches at full and reduced resolution, validation windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from clippan.catalogue.sensors import Sensor
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.threads import count_threads
from clippan.fusion import filters
from clippan.fusion.mtf_estimation import choose_mtf
from clippan.fusion.neural import NO_CORRECTION, network_trust
from clippan.fusion.registration import register
from clippan.fusion.statistics import TINY, SceneStatistics, measure_scene
from clippan.jobs.adapt import AdaptFusionRequest
from clippan.learn.fusion import reading
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.degradation import Blur
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

_MAX_WHOLE_SCENE = 12_000_000  # PAN pixels times bands up to which the whole scene is one window
_MAX_WINDOWS, _VALIDATION_EVERY = 6, 3  # number of windows of a larger scene; every third is for validation only
_WINDOW_SIZE = 1024  # PAN pixels, of these windows
_PATCH_SIZES = (192, 128, 96, 64)  # edges of full-resolution patches in PAN pixels; the first that fits is taken
_REDUCED_PATCH_SIZES = (128, 96, 64, 48, 32)  # the same at reduced resolution, in MS pixels
_BATCH_SIZE = 2  # patches


@dataclass(frozen=True)
class TrainingScene:
    """Training and validation data of one scene.

    Attributes:
        windows: training windows at full resolution.
        references: training windows at reduced resolution.
        size, reduced_size: edges of their patches in pixels.
        ratio: MS over PAN pixel size.
        mtf_gains: MTF gain of each band, as Pansharpen takes it.
        sensor_gains: the same by the sensor's table, as Assess takes it.
        validation, reduced_validation: validation windows at full and at reduced resolution.
        pixels: number of PAN pixels in all windows.
    """

    windows: Sequence[CachedWindow]
    references: Sequence[ReferenceScene]
    size: int
    reduced_size: int
    ratio: float
    mtf_gains: tuple[float, ...]
    sensor_gains: tuple[float, ...]
    validation: Sequence[ValidationWindow]
    reduced_validation: Sequence[ValidationWindow]
    pixels: int

    @classmethod
    def read(
        cls, pair: Pair, sensor: Sensor, request: AdaptFusionRequest, device: torch.device, context: Context
    ) -> TrainingScene:
        """Registers the pair, measures the whole scene and reads some windows.

        Raises:
            ClippanError: too little of the scene is valid.
        """
        threads = count_threads(request.threads)
        positions = [number - 1 for number in request.bands] or range(pair.ms.available_bands)
        sensor_gains = sensor.mtf_gains(positions, pair.ms.available_bands)
        pair, _ = register(pair, request.registration, sensor_gains, threads, context.subrange(0, 30))
        gains = choose_mtf(pair, request.mtf, sensor_gains, threads, context.subrange(30, 40)).gains
        mtfs, mtf_index_of_band = filters.distinct_mtfs(gains, pair.band_shifts)
        statistics = measure_scene(pair, mtfs, sensor.mtf_pan, threads, context.subrange(40, 60))
        if statistics.pan_is_constant:
            raise ClippanError(
                "The panchromatic raster has the same value everywhere, so there is nothing to learn from; check the "
                "file and its nodata value."
            )
        moments = _moments(statistics, mtf_index_of_band)
        trust = network_trust(statistics, mtf_index_of_band, gains)
        if trust is not None and not trust.any():
            context.log(NO_CORRECTION)
        edge = min(
            _WINDOW_SIZE, math.isqrt(_MAX_WHOLE_SCENE // (3 * len(gains)))
        )  # many bands take as much memory as few
        windows, whole = reading.informative_windows(pair, _MAX_WINDOWS, edge, _MAX_WHOLE_SCENE)
        pairs = []
        for number, window in enumerate(windows, 1):
            context.progress(60 + 40 * number / len(windows), "Reading the scene")
            pairs.append(reading.read_window(pair, window, gains, sensor.mtf_pan))
            pairs[-1].moments = moments  # of the whole scene, as in Pansharpen
        last = _VALIDATION_EVERY - 1
        held_out = [] if whole else pairs[last::_VALIDATION_EVERY]
        training = [item for number, item in enumerate(pairs) if whole or number % _VALIDATION_EVERY != last]
        ratio = math.sqrt(pair.x_axis.ratio * pair.y_axis.ratio)
        references = [item.reduced_reference(sensor.mtf_pan) for item in training]
        for size in _PATCH_SIZES:
            if cached := [source for item in training if (source := CachedWindow.of(item, size))]:
                break
        reduced_size = next(
            (size for size in _REDUCED_PATCH_SIZES if any(reference.fits(size) for reference in references)), 0
        )
        if not cached or not reduced_size:
            raise ClippanError(
                "No block of {size} × {size} panchromatic pixels, or of {reduced_size} × {reduced_size} multispectral "
                "ones, is completely valid, so there is too little to learn from; choose a larger area, or pansharpen "
                "with the start model.",
                size=_PATCH_SIZES[-1],
                reduced_size=_REDUCED_PATCH_SIZES[-1],
            )
        validation = [ValidationWindow.of(item, device, trust, sensor_gains) for item in held_out or training]
        reduced_validation = [
            ValidationWindow.of(reference.reduced_pair(ratio, sensor.mtf_pan), device, trust, sensor_gains, reference)
            for reference in [item.reduced_reference(sensor.mtf_pan) for item in held_out] or references
        ]
        context.log(
            "Training and validation use the whole scene."
            if whole
            else Message(
                "Windows of the scene for training: {training}; for validation only: {held_out}.",
                training=len(training),
                held_out=len(held_out),
            )
        )
        pixels = sum(item.pan.size for item in pairs)
        return cls(
            cached,
            references,
            size,
            reduced_size,
            ratio,
            tuple(gains),
            tuple(sensor_gains),
            validation,
            reduced_validation,
            pixels,
        )

    def full_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Patches at full resolution."""
        windows = self.windows
        patches = [windows[int(rng.integers(len(windows)))].patch(rng, self.size) for _ in range(_BATCH_SIZE)]
        return collate(patches, [0] * len(patches), self.ratio)

    def reduced_batch(self, rng: np.random.Generator) -> PatchBatch:
        """Patches at reduced resolution, with their reference."""
        gains, count = self.mtf_gains, len(self.mtf_gains)
        mixture, shifts = BandMixture.selection(range(count), count), np.zeros((count, 2))
        blurs = [Blur("gaussian", gain, gain) for gain in gains]
        phases = np.floor(rng.uniform(0, self.ratio, 2))
        usable = [reference for reference in self.references if min(reference.pan.shape) >= self.reduced_size]
        patches: list[Patch] = []
        while len(patches) < _BATCH_SIZE:
            reference = usable[rng.integers(len(usable))]
            patch = reference.patch(rng, self.reduced_size, self.ratio, phases, gains, blurs, shifts, mixture)
            patches += [patch] if patch is not None else []
        return collate(patches, range(len(patches)), self.ratio)


@dataclass(frozen=True)
class CachedWindow:
    """A window whose network inputs are computed once, to be cut into patches.

    Attributes:
        whole: the window as one patch.
        corners: upper left corners of valid patches (n, 2), row and column.
        supports: first and last PAN pixel under the filter of each MS sample, of rows (samples, 2) and of columns.
    """

    whole: Patch
    corners: np.ndarray
    supports: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, pair: ScenePair, size: int) -> Optional[CachedWindow]:
        """The window for patches of a size; None if it has no valid patch."""
        corners = valid_corners(pair.valid_pixels(), size)
        if not len(corners):
            return None
        whole = pair.whole_patch()
        return cls(whole, corners, (_filter_supports(whole.row_filters), _filter_supports(whole.column_filters)))

    def patch(self, rng: np.random.Generator, size: int) -> Patch:
        """A random patch."""
        row, column = (int(start) for start in self.corners[rng.integers(len(self.corners))])
        pixel_rows, pixel_columns = slice(row, row + size), slice(column, column + size)
        rows, columns = _samples_within(self.supports[0], pixel_rows), _samples_within(self.supports[1], pixel_columns)
        whole = self.whole
        return replace(
            whole,
            up=whole.up[:, pixel_rows, pixel_columns],
            pan=whole.pan[:, pixel_rows, pixel_columns],
            pan_lowpass=whole.pan_lowpass[:, pixel_rows, pixel_columns],
            ms=whole.ms[:, rows, columns],
            degraded_pan=whole.degraded_pan[:, rows, columns],
            row_filters=whole.row_filters[:, rows, pixel_rows],
            column_filters=whole.column_filters[:, columns, pixel_columns],
        )


def _filter_supports(matrices: Tensor) -> np.ndarray:
    used = (matrices != 0).any(dim=0).numpy()
    return np.stack([used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)], axis=1)


def _samples_within(supports: np.ndarray, pixels: slice) -> slice:
    """Samples whose filters lie within these pixels; at least one."""
    chosen = np.flatnonzero((supports[:, 0] >= pixels.start) & (supports[:, 1] < pixels.stop))
    if len(chosen):
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    nearest = int(np.abs(supports.mean(axis=1) - (pixels.start + pixels.stop - 1) / 2).argmin())
    return slice(nearest, nearest + 1)


def _moments(statistics: SceneStatistics, mtf_index_of_band: Sequence[int]) -> BandMoments:
    """Moments of the whole scene, so that patches are standardised as in ``neural.NetworkFusion``."""
    ms = statistics.ms_indices
    pan_lowpass_indices = [statistics.pan_lowpass_index(index) for index in mtf_index_of_band]
    variance = statistics.covariance.diagonal().clamp(min=TINY)
    gains = statistics.covariance[ms, pan_lowpass_indices] / variance[pan_lowpass_indices]
    pan = statistics.pan_index
    return BandMoments(
        statistics.mean[ms].numpy(),
        statistics.covariance[ms][:, ms].numpy(),
        float(statistics.mean[pan]),
        float(variance[pan]),
        (gains * variance[pan]).numpy(),
    )

"""Statistics of the whole scene for fusion: means, covariances and dark levels at multispectral resolution.

They are measured on all of a small scene and on random windows of a large one, so that they do not depend on tiles and
cost hardly more for a larger scene.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.device import use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.threads import in_order
from clippan.fusion import filters
from clippan.fusion.filters import BandMtf
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

_WINDOW = 64  # multispectral samples, edge of a window
_MAX_WINDOWS = 256  # which together have a million samples
_DARK = 0.1  # percentile of the darkest surface; the minimum is often a dead pixel
_SEED = 0
_TARGET_SAMPLES = _WINDOW * _WINDOW * _MAX_WINDOWS // 4  # enough if the windows have gaps
_SCAN_WINDOW = 512  # multispectral samples, edge of the windows in a search for empty bands
_MAX_NAMES = 5  # bands that a sentence lists
_MIN_SAMPLES = 1000  # samples to fit a method to; with fewer, lower weights are accepted
_SUBSAMPLE = 8  # every eighth sample is used for the percentile
# Least weight of valid pixels under a filter, lower for scenes with many gaps.
_MIN_WEIGHTS = (0.999, 0.9, 0.5, 0.1)
TINY = 1e-30  # below any variance in the units of a raster; keeps divisions defined


@dataclass(frozen=True)
class SceneStatistics:
    """First and second moments over jointly valid samples, float64.

    The variables are, in order: the MS bands, PAN filtered with each distinct MTF of the MS bands, PAN filtered with
    its own MTF and, on request, the MS bands filtered once more with their own MTF.

    Attributes:
        band_count: number of MS bands.
        mtf_count: number of distinct MTFs of the MS bands.
        mean: (variables,).
        covariance: (variables, variables).
        dark: 0.1 % percentile of each band (bands,).
        sample_count: number of samples.
        zero_share: share of samples, 0 to 1, that are 0 in all bands.
    """

    band_count: int
    mtf_count: int
    mean: torch.Tensor
    covariance: torch.Tensor
    dark: torch.Tensor
    sample_count: int
    zero_share: float

    @property
    def ms_indices(self) -> list[int]:
        """Variables: the MS bands."""
        return list(range(self.band_count))

    @property
    def pan_index(self) -> int:
        """Variable: PAN filtered with its own MTF."""
        return self.band_count + self.mtf_count

    def pan_lowpass_index(self, index: int) -> int:
        """Variable: PAN filtered with the MTF of this index."""
        return self.band_count + index

    @property
    def pan_is_constant(self) -> bool:
        """Whether PAN has the same value everywhere, up to float32 rounding."""
        return bool(self.covariance[self.pan_index, self.pan_index] <= TINY + (1e-6 * self.mean[self.pan_index]) ** 2)

    @property
    def filtered_ms_indices(self) -> list[int]:
        """Variables: the MS bands filtered once more."""
        return [self.pan_index + 1 + band for band in range(self.band_count)]

    def selected(self, bands: Sequence[int], mtfs: Sequence[int]) -> SceneStatistics:
        """The statistics of some bands and MTFs, in this order."""
        chosen = [*bands, *(self.pan_lowpass_index(index) for index in mtfs), self.pan_index]
        if len(self.mean) > self.pan_index + 1:
            chosen += [self.filtered_ms_indices[band] for band in bands]
        return replace(
            self,
            band_count=len(bands),
            mtf_count=len(mtfs),
            mean=self.mean[chosen],
            covariance=self.covariance[chosen][:, chosen],
            dark=self.dark[list(bands)],
        )

    def regress(self, target: int, on: Sequence[int]) -> torch.Tensor:
        """Least-squares coefficients of one variable on others, with an intercept that is left out."""
        inputs = list(on)
        covariance = self.covariance[inputs][:, inputs]
        # A constant band makes the system singular; a billionth of its scale keeps it solvable.
        ridge = (1e-9 * covariance.diagonal().mean()).clamp(min=TINY)
        identity = torch.eye(len(inputs), dtype=covariance.dtype)
        return torch.linalg.solve(covariance + ridge * identity, self.covariance[inputs, target])


def measure_scene(
    pair: Pair,
    mtfs: Sequence[BandMtf],
    pan_mtf_gain: float,
    threads: int,
    context: Context,
    ms_mtf_gains: Optional[Sequence[float]] = None,
) -> SceneStatistics:
    """Measures a scene; pixels that are 0 in all bands affect ``zero_share`` only.

    Args:
        mtfs: the distinct MTFs of the MS bands.
        ms_mtf_gains: MTF gain of each MS band, to include the bands filtered once more.

    Raises:
        ClippanError: no pixel is valid in PAN and all MS bands.
    """
    for weight in _MIN_WEIGHTS:
        sampler = _WindowSampler(pair, tuple(mtfs), pan_mtf_gain, ms_mtf_gains, weight)
        moments, subsample = _sample_windows(sampler, threads, context)
        if subsample is None or (moments and moments.count >= _MIN_SAMPLES):
            break
    if moments is None or subsample is None:
        raise _nothing_valid(pair)
    return SceneStatistics(
        pair.ms.count,
        len(mtfs),
        moments.mean,
        moments.scatter / moments.count,
        torch.from_numpy(np.asarray(np.percentile(subsample, _DARK, axis=1), np.float64)),
        moments.count,
        float((subsample == 0).all(axis=0).mean()),
    )


def _nothing_valid(pair: Pair) -> ClippanError:
    """The error that no pixel is valid, which names the bands without any data."""
    empty = pair.ms.empty_bands(pair.ms_windows(_SCAN_WINDOW))
    if 0 < len(empty) < pair.ms.count:
        listed = [pair.ms.band_name(band) for band in empty[:_MAX_NAMES]] + ["…"] * (len(empty) > _MAX_NAMES)
        return ClippanError(
            "The multispectral raster has no data here in these bands: {bands}; choose the other bands (--bands).",
            bands="; ".join(listed),
        )
    return ClippanError(
        "No pixel is valid in both the panchromatic and the multispectral raster; "
        "check their nodata values (nodata, NaN and alpha count as invalid)."
    )


@dataclass(frozen=True)
class _Moments:
    """Number of samples, their mean (variables,) and scatter matrix about it (variables, variables), float64."""

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, values: np.ndarray) -> _Moments:
        samples = torch.from_numpy(values).double()
        mean = samples.mean(dim=1)
        samples -= mean[:, None]
        return cls(samples.shape[1], mean, samples @ samples.T)

    def __add__(self, other: _Moments) -> _Moments:
        """Moments of both sets of samples (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / count)
        return _Moments(count, self.mean + step * (other.count / count), scatter)


# Moments of jointly valid samples, None if no sample has enough valid neighbours, and every eighth sample of the MS
# bands, None if there is none.
_Samples = tuple[Optional[_Moments], Optional[np.ndarray]]


def _sample_windows(sampler: _WindowSampler, threads: int, context: Context) -> _Samples:
    """Measures windows in random order until there are enough samples."""
    windows = sampler.pair.ms_windows(_WINDOW)
    if len(windows) > _MAX_WINDOWS:
        order = np.random.default_rng(_SEED).permutation(len(windows))
        windows = [windows[index] for index in order]
    moments: Optional[_Moments] = None
    subsamples: list[np.ndarray] = []
    windows_used = 0
    with contextlib.closing(in_order(sampler.measure, windows, threads, use_one_thread)) as batches:
        for number, (_, (found, subsample)) in enumerate(batches, 1):
            if subsample is not None:
                subsamples.append(subsample)
            if found:
                moments = moments + found if moments else found
                windows_used += 1
            share = min(windows_used / _MAX_WINDOWS, moments.count / _TARGET_SAMPLES) if moments else 0
            if share >= 1:
                break
            context.progress(100 * max(share, number / len(windows)), "Measuring the scene")
    return moments, np.concatenate(subsamples, axis=1) if subsamples else None


@dataclass(frozen=True)
class _WindowSampler:
    pair: Pair
    mtfs: tuple[BandMtf, ...]
    pan_mtf_gain: float
    ms_mtf_gains: Optional[Sequence[float]]
    least_weight: float

    def measure(self, window: Window) -> _Samples:
        """The jointly valid samples of a window of MS."""
        values, valid = self.pair.read_ms(window)
        ms = values.astype(np.float32)
        joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
        filtered = self._filter_pan(window) if joint.any() else None
        if filtered is None:
            return None, None
        pan_lowpass, covered = filtered
        planes = [ms, pan_lowpass]
        joint &= covered
        if self.ms_mtf_gains:
            filtered_ms, covered = self._filter_ms(window)
            planes.append(filtered_ms)
            joint &= covered
        variables = np.concatenate(planes)
        samples = variables.reshape(len(variables), -1) if joint.all() else variables[:, joint]
        subsample = samples[: len(ms), ::_SUBSAMPLE].copy()
        # Zeros are missing pixels in files that declare no nodata value.
        nonzero = (samples[: len(ms)] != 0).any(axis=0)
        if not nonzero.all():
            samples = samples[:, nonzero]
        return _Moments.of(samples) if samples.shape[1] else None, subsample

    def _filter_pan(self, window: Window) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """PAN filtered with each band's MTF and with its own (MTFs + 1, height, width), and where enough of it
        is valid; None if nothing is."""
        mtfs = (*self.mtfs, BandMtf(self.pan_mtf_gain))
        mtf_gains = [mtf.gain for mtf in mtfs]
        x, width, columns = filters.mtf_bank(
            self.pair.x_axis, window.x, window.width, mtf_gains, [mtf.shift_x for mtf in mtfs]
        )
        y, height, rows = filters.mtf_bank(
            self.pair.y_axis, window.y, window.height, mtf_gains, [mtf.shift_y for mtf in mtfs]
        )
        values, valid = self.pair.read_pan(Window(x, y, width, height))
        pan = torch.from_numpy(values.astype(np.float32))
        covered = np.ones((window.height, window.width), bool)
        if valid is None:
            return filters.apply_separable(rows, pan, columns).numpy(), covered
        if not valid.any():
            return None
        mask = torch.from_numpy(valid)
        weight = filters.apply_separable(rows, mask.float(), columns)
        pan_lowpass = filters.apply_separable(rows, torch.where(mask, pan, 0.0), columns) / weight.clamp(min=1e-6)
        return pan_lowpass.numpy(), (weight > self.least_weight).all(dim=0).numpy()

    def _filter_ms(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """MS filtered with the MTF of each band (bands, height, width), and where enough of all bands is valid."""
        kernels_x, kernels_y = (
            [torch.from_numpy(filters.mtf_kernel(gain, axis.ratio)).float() for gain in self.ms_mtf_gains or ()]
            for axis in (self.pair.x_axis, self.pair.y_axis)
        )
        reach_x, reach_y = (max(len(kernel) // 2 for kernel in kernels) for kernels in (kernels_x, kernels_y))
        wide = Window(window.x - reach_x, window.y - reach_y, window.width + 2 * reach_x, window.height + 2 * reach_y)
        values, valid = self.pair.read_ms(wide)
        mask = np.ones(values.shape[1:], bool) if valid is None else np.all(valid, axis=0)
        stacked = torch.from_numpy(np.concatenate([np.where(mask, values, 0), mask[None]]).astype(np.float32))
        planes, weights = [], []
        for band, (row, column) in enumerate(zip(kernels_y, kernels_x)):
            both = stacked[[band, -1]][:, None]
            both = torch.nn.functional.conv2d(both, row.view(1, 1, -1, 1))
            both = torch.nn.functional.conv2d(both, column.view(1, 1, 1, -1))[:, 0]
            dy, dx = reach_y - len(row) // 2, reach_x - len(column) // 2
            both = both[:, dy : dy + window.height, dx : dx + window.width]
            planes.append(both[0] / both[1].clamp(min=1e-6))
            weights.append(both[1])
        return torch.stack(planes).numpy(), (torch.stack(weights).min(dim=0).values > self.least_weight).numpy()

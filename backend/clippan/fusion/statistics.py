"""What classical fusion has to know of the whole scene: means, covariances and dark levels at the multispectral scale.

They are measured at full multispectral resolution on all of a small scene, and on evenly drawn windows of a large
one, so that they do not depend on tiles and hardly cost more for a larger scene (but for one that is mostly empty).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.device import use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.threads import in_order
from clippan.fusion import filters
from clippan.fusion.filters import BandResponse
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

_WINDOW = 64  # multispectral samples
_WINDOWS = 256  # a million samples, from all over the scene
_DARK = 0.1  # percentile that stands for the darkest surface; the minimum itself is often a dead pixel
_SEED = 0
_SAMPLES = _WINDOW * _WINDOW * _WINDOWS // 4  # enough, where the windows have gaps
_READ = 512  # multispectral samples along an edge of what is looked through for empty bands at a time
_NAMED = 5  # bands that a sentence lists
_MANY = 1000  # samples to fit a method to; where there are fewer, gaps count less
_THIN = 8  # every eighth sample is enough for the percentile
# Least weight of valid pixels under a filter whose result counts; lower ones for scenes that are riddled with gaps.
_COVERED = (0.999, 0.9, 0.5, 0.1)
TINY = 1e-30  # below any variance in the units of a raster; keeps divisions defined


@dataclass(frozen=True)
class SceneStatistics:
    """First and second moments over jointly valid samples, float64.

    The variables are, in order: the MS bands, PAN as each of the MS responses sees it, PAN filtered with its own gain
    and, if asked for, the MS bands filtered once more with their own MTF.

    Attributes:
        bands: number of MS bands.
        filtered: number of distinct MS responses.
        mean: (variables,).
        covariance: (variables, variables).
        dark: (bands,), the 0.1 % percentile of each band.
        count: samples measured.
        black: part of them, 0 to 1, that are 0 in all bands.
    """

    bands: int
    filtered: int
    mean: torch.Tensor
    covariance: torch.Tensor
    dark: torch.Tensor
    count: int
    black: float

    @property
    def ms(self) -> list[int]:
        """Variables: the MS bands."""
        return list(range(self.bands))

    @property
    def pan(self) -> int:
        """Variable: PAN filtered with its own gain."""
        return self.bands + self.filtered

    def low(self, index: int) -> int:
        """Variable: PAN as the MS response ``index`` sees it."""
        return self.bands + index

    @property
    def flat(self) -> bool:
        """Whether PAN has one value everywhere, up to the rounding of float32."""
        return bool(self.covariance[self.pan, self.pan] <= TINY + (1e-6 * self.mean[self.pan]) ** 2)

    @property
    def ms_filtered(self) -> list[int]:
        """Variables: the MS bands filtered once more."""
        return [self.pan + 1 + band for band in range(self.bands)]

    def regress(self, target: int, on: Sequence[int]) -> torch.Tensor:
        """Least-squares coefficients, without the intercept, of one variable on others."""
        inputs = list(on)
        covariance = self.covariance[inputs][:, inputs]
        # A constant band makes the system singular; a billionth of its scale keeps it solvable.
        ridge = (1e-9 * covariance.diagonal().mean()).clamp(min=TINY)
        eye = torch.eye(len(inputs), dtype=covariance.dtype)
        return torch.linalg.solve(covariance + ridge * eye, self.covariance[inputs, target])


def measure_scene(
    pair: Pair,
    responses: Sequence[BandResponse],
    pan_gain: float,
    threads: int,
    context: Context,
    filter_ms: Optional[Sequence[float]] = None,
) -> SceneStatistics:
    """Measures a scene. Pixels that are 0 in all bands count in ``black`` alone.

    Args:
        pair: the scene.
        responses: the distinct ones of the MS bands.
        pan_gain: MTF gain of PAN.
        threads: CPU threads.
        context: hears of progress.
        filter_ms: MTF gain of each MS band, if the bands filtered once more are wanted too.

    Raises:
        ClippanError: no pixel is valid in PAN and all MS bands.
    """
    found: Optional[_Found] = None
    for covered in _COVERED:
        found = _collect(_Sampler(pair, tuple(responses), pan_gain, filter_ms, covered), threads, context)
        if found is None or found.count >= _MANY:
            break
    if found is None or not found.moments:
        raise _nothing_valid(pair)
    dark = np.percentile(found.thin, _DARK, axis=1)
    mean, scatter, count = found.moments.mean, found.moments.scatter, found.count
    return SceneStatistics(
        pair.ms.count,
        len(responses),
        mean,
        scatter / count,
        torch.from_numpy(np.asarray(dark, np.float64)),
        count,
        float((found.thin == 0).all(axis=0).mean()),
    )


def _nothing_valid(pair: Pair) -> ClippanError:
    """Why no pixel is valid in PAN and all MS bands: a band without any data, above all."""
    empty = pair.ms.empty_bands(pair.ms_windows(_READ))
    if 0 < len(empty) < pair.ms.count:
        listed = "; ".join(pair.ms.band_name(band) for band in empty[:_NAMED]) + ("; …" if len(empty) > _NAMED else "")
        several = len(empty) > 1
        return ClippanError(
            "{value} {listed} of the multispectral raster {value_2} no data here; choose the other bands (--bands).",
            value="Bands" if several else "Band",
            listed=listed,
            value_2="have" if several else "has",
        )
    return ClippanError(
        "No pixel is valid in both the panchromatic and the multispectral raster; "
        "check their nodata values (nodata, NaN and alpha count as invalid)."
    )


@dataclass(frozen=True)
class _Moments:
    """Number of samples, their mean (variables,) and their scatter about it (variables, variables), float64."""

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
        """Both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / count)
        return _Moments(count, self.mean + step * (other.count / count), scatter)


@dataclass(frozen=True)
class _Found:
    """What windows hold in which pixels of both rasters are valid: the moments of all samples, None if none has enough
    of them around it, and every eighth sample of the MS bands."""

    moments: Optional[_Moments]
    thin: np.ndarray

    @property
    def count(self) -> int:
        return self.moments.count if self.moments else 0


def _collect(sampler: _Sampler, threads: int, context: Context) -> Optional[_Found]:
    """Measures windows, evenly drawn, until enough of them are; None if in none pixels of both rasters are valid."""
    windows = sampler.pair.ms_windows(_WINDOW)
    if len(windows) > _WINDOWS:
        order = np.random.default_rng(_SEED).permutation(len(windows))
        windows = [windows[index] for index in order]
    moments: Optional[_Moments] = None
    thin: list[np.ndarray] = []
    full = 0
    with contextlib.closing(in_order(sampler.measure, windows, threads, use_one_thread)) as batches:
        for number, (_, found) in enumerate(batches, 1):
            if found:
                thin.append(found.thin)
            if found and found.moments:
                moments = moments + found.moments if moments else found.moments
                full += 1
            part = min(full / _WINDOWS, moments.count / _SAMPLES) if moments else 0
            if part >= 1:
                break
            context.progress(100 * max(part, number / len(windows)), "Measuring the scene")
    return _Found(moments, np.concatenate(thin, axis=1)) if thin else None


@dataclass(frozen=True)
class _Sampler:
    pair: Pair
    responses: tuple[BandResponse, ...]
    pan_gain: float
    filter_ms: Optional[Sequence[float]]
    covered: float

    def measure(self, window: Window) -> Optional[_Found]:
        """The jointly valid samples of a window of MS; None if MS or PAN has no valid pixel in it."""
        ms, valid = self._read_ms(window)
        joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
        filtered = self._filter_pan(window) if joint.any() else None
        if filtered is None:
            return None
        lows, covered = filtered
        planes = [ms.numpy(), lows]
        joint &= covered
        if self.filter_ms:
            again, covered = self._filter_ms(window)
            planes.append(again)
            joint &= covered
        variables = np.concatenate(planes)
        samples = variables.reshape(len(variables), -1) if joint.all() else variables[:, joint]
        thin = samples[: len(ms), ::_THIN].copy()
        # Files that declare no nodata value mark what was not seen by zeros, which say nothing of the scene.
        seen = (samples[: len(ms)] != 0).any(axis=0)
        if not seen.all():
            samples = samples[:, seen]
        return _Found(_Moments.of(samples) if samples.shape[1] else None, thin)

    def _read_ms(self, window: Window) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        values, valid = self.pair.read_ms(window)
        return torch.from_numpy(values.astype(np.float32)), valid

    def _filter_pan(self, window: Window) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """PAN as each response sees it and with its own gain (responses + 1, height, width), and where enough of it is
        valid; None if nothing is."""
        wanted = (*self.responses, BandResponse(self.pan_gain))
        gains = [response.gain for response in wanted]
        x, width, columns = filters.downsampling_matrices(
            self.pair.x, window.x, window.width, gains, [response.x for response in wanted]
        )
        y, height, rows = filters.downsampling_matrices(
            self.pair.y, window.y, window.height, gains, [response.y for response in wanted]
        )
        values, valid = self.pair.read_pan(Window(x, y, width, height))
        pan = torch.from_numpy(values.astype(np.float32))
        covered = np.ones((window.height, window.width), bool)
        if valid is None:
            lows = [filters.apply_separable(row, pan, column) for row, column in zip(rows, columns)]
            return torch.stack(lows).numpy(), covered
        if not valid.any():
            return None
        mask = torch.from_numpy(valid)
        clean = torch.stack([torch.where(mask, pan, torch.zeros_like(pan)), mask.float()])
        lows = []
        for row, column in zip(rows, columns):
            low, weight = filters.apply_separable(row, clean, column)
            lows.append(low / weight.clamp(min=1e-6))
            covered &= (weight > self.covered).numpy()
        return torch.stack(lows).numpy(), covered

    def _filter_ms(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        assert self.filter_ms is not None
        kernels_x = [torch.from_numpy(filters.mtf_kernel(g, self.pair.x.ratio)).float() for g in self.filter_ms]
        kernels_y = [torch.from_numpy(filters.mtf_kernel(g, self.pair.y.ratio)).float() for g in self.filter_ms]
        reach_x = max(len(kernel) // 2 for kernel in kernels_x)
        reach_y = max(len(kernel) // 2 for kernel in kernels_y)
        wide = Window(window.x - reach_x, window.y - reach_y, window.width + 2 * reach_x, window.height + 2 * reach_y)
        values, valid = self._read_ms(wide)
        mask = np.ones(values.shape[1:], bool) if valid is None else valid.all(axis=0)
        stacked = torch.cat([torch.where(torch.from_numpy(mask), values, 0.0), torch.from_numpy(mask)[None].float()])
        planes, weights = [], []
        for band, (row, column) in enumerate(zip(kernels_y, kernels_x)):
            both = stacked[[band, -1]][:, None]
            both = torch.nn.functional.conv2d(both, row.view(1, 1, -1, 1))
            both = torch.nn.functional.conv2d(both, column.view(1, 1, 1, -1))[:, 0]
            dy, dx = reach_y - len(row) // 2, reach_x - len(column) // 2
            both = both[:, dy : dy + window.height, dx : dx + window.width]
            planes.append(both[0] / both[1].clamp(min=1e-6))
            weights.append(both[1])
        return torch.stack(planes).numpy(), (torch.stack(weights).min(dim=0).values > self.covered).numpy()

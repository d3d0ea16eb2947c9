"""How coarse bands follow from fine ones, measured at the coarse scale.

The fine bands are filtered with the MTF of the coarse ones and sampled at their pixels. There a coarse band is
regressed on them, on what both hold beyond a running mean: the relation of small detail is what sharpening needs, and
not that of land cover. Regressions around every coarse pixel follow the place; they are drawn towards that of the whole
scene where there is little to learn from. On the development scenes this measured better than one regression for the
scene, than weights that may not be negative, and than the ratio of high-pass modulation.
"""

from __future__ import annotations

import contextlib
import math
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
from clippan.fusion.statistics import TINY
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

HIGH_PASS_SIGMA = 1.0  # coarse pixels, of the running mean that is taken off before a regression
REGRESSION_SIGMA = 2.0  # coarse pixels, of the weights of a regression around a pixel
_REACH = 2.5  # standard deviations, after which Gaussian weights are cut off
_RIDGE = 0.01  # of the scene's covariance, by which a local regression is drawn towards that of the scene
_SOLVABLE = 1e-6  # of the mean variance, added to the scene's covariance
DEFAULT_GAIN = 0.3  # MTF gain where the scene cannot tell
_GAINS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
# Shares of the variance of a coarse band's detail that the fine bands have to explain for the gain that explains most
# to count at all, and to be believed wholly: with less, it is too low, as large detail is more alike than small.
_SOME_EXPLAINED, _MUCH_EXPLAINED = 0.5, 0.9
# Optics leave a gain of at most 0.35 or so at Nyquist. A band with more was made from finer pixels by averaging, and
# these were not as sharp as the fine bands are: half of the excess is held back.
_OPTICAL_GAIN, _HELD_BACK = 0.35, 0.5
_MIN_INJECTION = 0.5
_WINDOW = 64  # coarse pixels, edge of a window
_MAX_WINDOWS = 24  # which together have a hundred thousand pixels
_MAX_VALUES = 24_000_000  # fine values that are held while a scene is measured
_MIN_WINDOWS = 4
MIN_WEIGHT = 0.999  # of valid fine pixels under the filter, for a regression
_MIN_WEIGHTS = (MIN_WEIGHT, 0.9)  # the same while a scene is measured, lower for scenes with many gaps
_MIN_SAMPLES = 100  # for each fine band
_SATURATED = 0.5  # share of pixels with the greatest value, of each fine band
_SHIFT_STEPS = 4
_MAX_SHIFT = 1.5  # coarse pixels; a larger one is not small detail that has moved
_MIN_SHIFT = 0.05  # coarse pixels
_MIN_SHIFT_GAIN = 0.05  # of what is not explained, by which a shift has to lessen it
_SCAN_WINDOW = 512  # pixels, edge of the windows in a search for empty bands
_MAX_NAMES = 5  # bands that a sentence lists
_SEED = 0


@dataclass(frozen=True)
class Guide:
    """What fine bands tell about coarse ones in a scene.

    Attributes:
        mtf_gain: MTF gain of the coarse bands at their Nyquist frequency, 0 to 1, relative to the fine bands: that of
            the sharpest band.
        band_gains: that of each band.
        explained: share of the variance of each band's detail, 0 to 1, that the fine bands explain.
        shift: (x, y) of the coarse bands to the right and down onto the fine ones, in output pixels.
        covariance: of the details of the fine bands (fine bands, fine bands), float64.
        coefficients: of the regression in the whole scene (fine bands, bands), float64.
        fine_mean: mean of each fine band, float64.
        coarse_mean: mean of each coarse band, float64.
    """

    mtf_gain: float
    band_gains: tuple[float, ...]
    explained: tuple[float, ...]
    shift: tuple[float, float]
    covariance: torch.Tensor
    coefficients: torch.Tensor
    fine_mean: torch.Tensor
    coarse_mean: torch.Tensor

    @property
    def injection(self) -> torch.Tensor:
        """What part of the detail each band gets (bands,), 0.5 to 1: less the more it is blurred than the sharpest."""
        relative = torch.tensor(self.band_gains, dtype=torch.float64) / self.mtf_gain
        averaged = 1 - _HELD_BACK * max(0.0, self.mtf_gain - _OPTICAL_GAIN)
        return (relative * averaged).clamp(_MIN_INJECTION, 1)

    def of_bands(self, bands: slice) -> Guide:
        """The same of some of the coarse bands."""
        return replace(
            self,
            band_gains=self.band_gains[bands],
            explained=self.explained[bands],
            coefficients=self.coefficients[:, bands],
            coarse_mean=self.coarse_mean[bands],
        )

    def local_coefficients(self, fine: torch.Tensor, coarse: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Coefficients around every coarse pixel (bands, fine bands, height, width).

        Args:
            fine: fine bands at the coarse scale (fine bands, height, width).
            coarse: coarse bands (bands, height, width).
            valid: which pixels of a band the regression may use (bands, height, width), bool.
        """
        if len(coarse) > 1 and not bool((valid == valid[:1]).all()):
            alone = [slice(band, band + 1) for band in range(len(coarse))]
            return torch.cat([self.of_bands(own).local_coefficients(fine, coarse[own], valid[own]) for own in alone])
        weight = valid[:1].to(fine.dtype)
        count, bands = len(fine), len(coarse)
        detail, target = high_pass(fine, weight), high_pass(coarse, weight)
        pairs = [(i, j) for i in range(count) for j in range(i, count)]
        products = [detail[i] * detail[j] for i, j in pairs]
        products += [detail[i] * target[band] for i in range(count) for band in range(bands)]
        moments = running_mean(torch.cat([detail, target, torch.stack(products)]), weight, REGRESSION_SIGMA)
        moments = moments.permute(1, 2, 0).double()
        means, target_means = moments[..., :count], moments[..., count : count + bands]
        products_of = moments[..., count + bands :]
        upper = products_of[..., : len(pairs)]
        covariance = upper.new_zeros(*upper.shape[:2], count, count)
        for number, (i, j) in enumerate(pairs):
            covariance[..., i, j] = covariance[..., j, i] = upper[..., number] - means[..., i] * means[..., j]
        cross = products_of[..., len(pairs) :].reshape(*upper.shape[:2], count, bands)
        cross = cross - means[..., :, None] * target_means[..., None, :]
        prior = self.covariance.to(covariance.device)
        prior = prior + _SOLVABLE * prior.diagonal().mean().clamp(min=TINY) * torch.eye(count).to(prior)
        ridge = _RIDGE * prior
        solved = torch.linalg.solve(covariance + ridge, cross + ridge @ self.coefficients.to(prior))
        return solved.permute(3, 2, 0, 1).to(fine.dtype)


def running_mean(values: torch.Tensor, weight: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian means of planes (planes, height, width) under a weight (1, height, width), of ``sigma`` pixels; beyond
    the border the planes repeat their last pixels."""
    reach = gaussian_reach(sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / sigma) ** 2)
    taps = (taps / taps.sum()).to(values)

    def smooth(planes: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(planes[:, None], (reach,) * 4, mode="replicate")
        rows = torch.nn.functional.conv2d(padded, taps.view(1, 1, -1, 1))
        return torch.nn.functional.conv2d(rows, taps.view(1, 1, 1, -1))[:, 0]

    if bool((weight == 1).all()):
        return smooth(values)
    return smooth(values * weight) / smooth(weight).clamp(min=1e-6)


def gaussian_reach(sigma: float) -> int:
    """Half width of the weights of ``running_mean``, in pixels."""
    return int(np.ceil(_REACH * sigma))


def high_pass(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Planes (planes, height, width) without their running mean, and 0 where the weight (1, height, width) is."""
    return (values - running_mean(values, weight, HIGH_PASS_SIGMA)) * weight


def filter_fine(
    fine: torch.Tensor, valid: Optional[torch.Tensor], rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fine bands at the coarse scale (fine bands, h, w), and the share of valid pixels under the filter (h, w).

    Args:
        fine: (fine bands, height, width), 0 where invalid.
        valid: (height, width) bool; None if all are.
        rows, columns: MTF filter and decimation along each axis.
    """
    filtered = filters.apply_separable(rows, fine, columns)
    if valid is None:
        return filtered, torch.ones_like(filtered[0])
    weight = filters.apply_separable(rows, valid.to(fine.dtype), columns)
    return filtered / weight.clamp(min=1e-6), weight


@dataclass(frozen=True)
class _Sample:
    """A window of a scene: coarse bands with which pixels are valid in all of them, and fine bands around it.

    Attributes:
        window: in coarse pixels.
        coarse: (bands, height, width) float32; ``coarse_valid``: (height, width) bool.
        around: the same in output pixels, with what filters need.
        fine: (fine bands, height, width) float32; ``fine_valid``: (height, width) bool.
    """

    window: Window
    coarse: torch.Tensor
    coarse_valid: torch.Tensor
    around: Window
    fine: torch.Tensor
    fine_valid: torch.Tensor


def measure_guide(pair: Pair, names: Sequence[str], register: bool, threads: int, context: Context) -> Guide:
    """Measures a scene in windows all over it.

    Args:
        pair: the fine bands as ``pan``, the coarse ones as ``ms``.
        names: how sentences call the coarse bands.
        register: look for a shift between the two.

    Raises:
        ClippanError: too few pixels are valid, or the fine bands are constant or saturated.
    """
    samples = _read_samples(pair, threads, context)
    count = pair.pan.count
    shift = (0.0, 0.0)
    for least_weight in _MIN_WEIGHTS:
        usable = sum(int(mask.sum()) for mask in _usable(pair, samples, shift, least_weight))
        if usable >= _MIN_SAMPLES * count:
            break
    else:
        raise _too_few_valid(pair, names, usable)
    _check_fine(samples)
    unexplained = _unexplained_by_gain(pair, samples, shift, least_weight)
    if register:
        gain = _GAINS[int(unexplained.mean(dim=1).argmin())]
        moved = _find_shift(pair, samples, gain, least_weight)
        after = _unexplained_by_gain(pair, samples, moved, least_weight) if moved != shift else unexplained
        # A wrong blur can look like a shift; what counts is what remains with the best blur of each.
        if after.mean(dim=1).min() < (1 - _MIN_SHIFT_GAIN) * unexplained.mean(dim=1).min():
            shift, unexplained = moved, after
    explained = 1 - unexplained.min(dim=0).values
    belief = ((explained - _SOME_EXPLAINED) / (_MUCH_EXPLAINED - _SOME_EXPLAINED)).clamp(0, 1).tolist()
    measured = [_least_position(column) for column in unexplained.T]
    gains = [DEFAULT_GAIN + share * (own - DEFAULT_GAIN) for own, share in zip(measured, belief)]
    gain = max(gains)
    scatter = _scatter(pair, samples, _usable(pair, samples, shift, least_weight), gain, shift)
    return Guide(
        gain,
        tuple(gains),
        tuple(explained.tolist()),
        shift,
        scatter[:count, :count],
        _regress(scatter[:count, :count], scatter[:count, count:]),
        _mean([(sample.fine, sample.fine_valid) for sample in samples]),
        _mean([(sample.coarse, sample.coarse_valid) for sample in samples]),
    )


def _too_few_valid(pair: Pair, names: Sequence[str], count: int) -> ClippanError:
    """The error that too few coarse pixels are valid, which names the bands without any data."""
    empty = pair.ms.empty_bands(pair.ms_windows(_SCAN_WINDOW))
    if 0 < len(empty) < pair.ms.count:
        return ClippanError(
            "The coarse raster has no data here in these bands: {bands}; choose the other bands (--bands).",
            bands=_listed([names[band] for band in empty]),
        )
    on_fine = Window(pair.alignment.column, pair.alignment.row, pair.grid.width, pair.grid.height)
    empty = pair.pan.empty_bands(on_fine.tiles(_SCAN_WINDOW))
    if 0 < len(empty) < pair.pan.count:
        return ClippanError(
            "The fine raster has no data here in these bands: {bands}; choose the other bands (--fine-bands).",
            bands=_listed([pair.pan.band_name(band) for band in empty]),
        )
    return ClippanError(
        "Too few coarse pixels ({count}) are valid together with fine ones; choose a larger area, or check the "
        "nodata values.",
        count=count,
    )


def _listed(names: Sequence[str]) -> str:
    return "; ".join([*names[:_MAX_NAMES], *["…"] * (len(names) > _MAX_NAMES)])


def _read_samples(pair: Pair, threads: int, context: Context) -> list[_Sample]:
    """Windows all over the scene in which some pixels are valid; all of a small scene."""
    windows = pair.ms_windows(_WINDOW)
    around = [_fine_window(pair, window) for window in windows]
    largest = max((window.width * window.height for window in around), default=1) * pair.pan.count
    limit = min(max(_MAX_VALUES // largest, _MIN_WINDOWS), _MAX_WINDOWS)
    order = range(len(windows))
    if len(windows) > limit:
        order = np.random.default_rng(_SEED).permutation(len(windows)).tolist()
    found: list[_Sample] = []

    def read(index: int) -> Optional[_Sample]:
        return _read_sample(pair, windows[index], around[index])

    with contextlib.closing(in_order(read, order, threads, use_one_thread)) as read_samples:
        for number, (_, sample) in enumerate(read_samples, 1):
            context.raise_if_cancelled()
            if sample is not None:
                found.append(sample)
            context.progress(100 * max(len(found) / limit, number / len(order)), "Measuring the scene")
            if len(found) == limit:
                break
    return found


def _fine_window(pair: Pair, window: Window) -> Window:
    """The output pixels that the widest filter needs for a window of coarse pixels, wherever a shift moves them."""
    spans = []
    for axis, first, length in ((pair.x_axis, window.x, window.width), (pair.y_axis, window.y, window.height)):
        start, count = filters.pan_support(axis, first, length, _GAINS[0])
        reach = math.ceil(_MAX_SHIFT * axis.ratio) + 1
        spans.append((start - reach, count + 2 * reach))
    (x, width), (y, height) = spans
    return Window(x, y, width, height)


def _read_sample(pair: Pair, window: Window, around: Window) -> Optional[_Sample]:
    coarse, coarse_valid = pair.read_ms(window)
    fine, fine_valid = pair.read_fine(around)
    joint = np.ones(coarse.shape[1:], bool) if coarse_valid is None else coarse_valid.all(axis=0)
    mask = np.ones(fine.shape[1:], bool) if fine_valid is None else fine_valid.all(axis=0)
    if not joint.any() or not mask.any():
        return None
    return _Sample(
        window,
        torch.from_numpy(np.where(joint, coarse, 0).astype(np.float32)),
        torch.from_numpy(joint),
        around,
        torch.from_numpy(np.where(mask, fine, 0).astype(np.float32)),
        torch.from_numpy(mask),
    )


def _mean(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Mean of each band over valid pixels (bands,), float64, of (values, valid)."""
    total = sum(values.double().flatten(1).sum(dim=1) for values, _ in parts)  # invalid ones are 0
    return torch.as_tensor(total) / max(sum(int(valid.sum()) for _, valid in parts), 1)


def _check_fine(samples: Sequence[_Sample]) -> None:
    """Raises ClippanError if no fine band has detail."""
    values = [sample.fine[:, sample.fine_valid] for sample in samples]
    greatest = torch.stack([part.max(dim=1).values for part in values]).max(dim=0).values
    least = torch.stack([part.min(dim=1).values for part in values]).min(dim=0).values
    if bool((greatest <= least + 1e-6 * greatest.abs()).all()):
        raise ClippanError(
            "The fine raster has the same value everywhere, so it has no detail; check the file and its nodata value."
        )
    count = sum(part.shape[1] for part in values)
    saturated = sum((part == greatest[:, None]).sum(dim=1) for part in values)
    if bool((torch.as_tensor(saturated) > _SATURATED * count).all()):
        raise ClippanError(
            "Most pixels of the fine raster have its greatest value ({value:g}), so it is saturated and has no detail "
            "there; choose other fine bands (--fine-bands) or another raster.",
            value=float(greatest.max()),
        )


def _usable(
    pair: Pair, samples: Sequence[_Sample], shift: tuple[float, float], least_weight: float
) -> list[torch.Tensor]:
    """Which coarse pixels of each sample count (height, width): valid ones, with valid fine ones under the widest and
    under the narrowest filter. The same ones count for all gains, so that no gain is better for having fewer."""
    found = []
    for sample in samples:
        usable = sample.coarse_valid
        if not bool(sample.fine_valid.all()):
            for gain in (_GAINS[0], _GAINS[-1]):
                rows, columns = _filters(pair, sample, gain, shift)
                usable = usable & (filters.apply_separable(rows, sample.fine_valid.float(), columns) > least_weight)
        found.append(usable)
    return found


def _scatter(
    pair: Pair,
    samples: Sequence[_Sample],
    usable: Sequence[torch.Tensor],
    gain: float,
    shift: tuple[float, float],
    gradients: bool = False,
) -> torch.Tensor:
    """Mean products of details at the coarse scale (variables, variables), float64, over ``usable`` pixels: of the fine
    bands, of their slopes along x and y if there are to be ``gradients``, and of the coarse bands."""
    total: torch.Tensor = torch.zeros(())
    count = 0
    for sample, mask in zip(samples, usable):
        fine, _ = filter_fine(sample.fine, sample.fine_valid, *_filters(pair, sample, gain, shift))
        planes = [fine]
        if gradients:
            padded = torch.nn.functional.pad(fine[:, None], (1,) * 4, mode="replicate")[:, 0]
            planes += [
                (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2,
                (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2,
            ]
        detail = high_pass(torch.cat([*planes, sample.coarse]), mask[None].float())
        details = detail[:, mask].double()
        total = total + details @ details.T
        count += details.shape[1]
    return total / max(count, 1)


def _filters(pair: Pair, sample: _Sample, gain: float, shift: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """MTF filter and decimation of a sample's fine pixels along y and x."""
    window, around = sample.window, sample.around
    return (
        _down(pair.y_axis.shifted(shift[1]), window.y, window.height, gain, around.y, around.height),
        _down(pair.x_axis.shifted(shift[0]), window.x, window.width, gain, around.x, around.width),
    )


def _down(axis: AxisTransform, first: int, count: int, gain: float, start: int, length: int) -> torch.Tensor:
    """MTF filter and decimation to ``count`` coarse samples (count, length), from the fine pixels from ``start`` on."""
    begin, number = filters.pan_support(axis, first, count, gain)
    matrix = filters.downsampling_matrix(axis, first, count, gain)
    return torch.nn.functional.pad(matrix, (begin - start, start + length - begin - number))


def _regress(covariance: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """Coefficients (fine bands, bands) of a regression on fine bands; constant ones get 0."""
    ridge = _SOLVABLE * covariance.diagonal().mean().clamp(min=TINY)
    return torch.linalg.solve(covariance + ridge * torch.eye(len(covariance)).to(covariance), cross)


def _unexplained(scatter: torch.Tensor, count: int) -> torch.Tensor:
    """Share of the variance of each band's detail that ``count`` fine bands do not explain (bands,), 0 to 1."""
    cross = scatter[:count, count:]
    coefficients = _regress(scatter[:count, :count], cross)
    variance = scatter.diagonal()[count:].clamp(min=TINY)
    return (1 - (coefficients * cross).sum(dim=0) / variance).clamp(0, 1)


def _least_position(column: torch.Tensor) -> float:
    """The gain at which a column over ``_GAINS`` is least, by a parabola through the neighbours."""
    index = int(column.argmin())
    if not 2 < index < len(_GAINS) - 1:  # the first are not equidistant
        return _GAINS[index]
    before, least, after = column[index - 1 : index + 2].tolist()
    curvature = before - 2 * least + after
    step = _GAINS[index] - _GAINS[index - 1]
    return _GAINS[index] + (0.5 * step * (before - after) / curvature if curvature > 0 else 0.0)


def _unexplained_by_gain(
    pair: Pair, samples: Sequence[_Sample], shift: tuple[float, float], least_weight: float
) -> torch.Tensor:
    """What the fine bands do not explain of each band's detail, for each of ``_GAINS`` (gains, bands), 0 to 1."""
    usable = _usable(pair, samples, shift, least_weight)
    scatters = (_scatter(pair, samples, usable, gain, shift) for gain in _GAINS)
    return torch.stack([_unexplained(scatter, pair.pan.count) for scatter in scatters])


def _find_shift(pair: Pair, samples: Sequence[_Sample], gain: float, least_weight: float) -> tuple[float, float]:
    """The shift (x, y) of the coarse bands, in output pixels, that lets the fine ones explain them best; zero if it is
    no more than a small part of a pixel. Gauss-Newton steps: what the fine bands do not explain is regressed on their
    slopes."""
    count, bands = pair.pan.count, pair.ms.count
    ratios = (pair.x_axis.ratio, pair.y_axis.ratio)
    x = y = 0.0
    for _ in range(_SHIFT_STEPS):
        shift = (x * ratios[0], y * ratios[1])
        usable = _usable(pair, samples, shift, least_weight)
        if sum(int(mask.sum()) for mask in usable) < _MIN_SAMPLES * count:
            return 0.0, 0.0
        scatter = _scatter(pair, samples, usable, gain, shift, gradients=True)
        coefficients = _regress(scatter[:count, :count], scatter[:count, 3 * count :])
        normal, right = torch.zeros(2, 2).double(), torch.zeros(2).double()
        for band in range(bands):
            # Combinations of the variables: the two slopes of the band's guide, and what is not explained.
            slopes = torch.zeros(2, len(scatter)).double()
            slopes[0, count : 2 * count] = slopes[1, 2 * count : 3 * count] = coefficients[:, band]
            rest = torch.zeros(len(scatter)).double()
            rest[:count], rest[3 * count + band] = -coefficients[:, band], 1
            variance = (rest @ scatter @ rest).clamp(min=TINY)
            normal += slopes @ scatter @ slopes.T / variance
            right += slopes @ scatter @ rest / variance
        step = torch.linalg.solve(normal + TINY * torch.eye(2).double(), right)
        x, y = x + float(step[0]), y + float(step[1])
        if max(abs(x), abs(y)) > _MAX_SHIFT:
            return 0.0, 0.0
        if float(step.abs().max()) < _MIN_SHIFT / 5:
            break
    if math.hypot(x, y) < _MIN_SHIFT:
        return 0.0, 0.0
    return round(x * ratios[0], 2), round(y * ratios[1], 2)

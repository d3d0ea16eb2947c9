"""The MTF of the multispectral bands relative to PAN, estimated from the images themselves.

Tables know a sensor as it was built. A product may have been resampled, restored or degraded since, and the MTF of some
sensors is not published. PAN is filtered with the MTF filters of several gains and sampled where MS has its samples,
aliasing included; the gain whose filtered PAN correlates best with a band is that of the band (after Vivone et al.
2015, doi:10.1109/TIP.2014.2385035). Both images are filtered by a Laplacian first, which gives all frequencies about
the same weight and removes haze, and each window has its own relation between band and PAN, so that windows without
common detail (clouds, glint) count little.

Displacements, noise, and details that a band does not share with PAN make a band look more blurred than it is; nothing
makes it look sharper. So ``auto`` follows evidence of less blur than the table's, and goes only part of the way towards
more.
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
from clippan.core.messages import Message
from clippan.core.threads import in_order
from clippan.fusion import filters
from clippan.jobs.options import MtfSource
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

_GAINS = (0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.37, 0.3, 0.24, 0.18, 0.13, 0.09, 0.06, 0.04)  # that are tried
_WINDOW, _MIN_WINDOW = 48, 12  # multispectral samples, edge of a window, and of one of a small scene
_MIN_SCENE = 36  # windows that a small scene is cut into
_MAX_WINDOWS, _MIN_WINDOWS = 64, 4
_MIN_SAMPLES = 36  # of a window
_MARGIN = 1  # multispectral samples around a window, for the Laplacian
_MIN_WEIGHTS = (0.999, 0.9)  # least weight of valid PAN pixels under a filter, lower for scenes with many gaps
_PLATEAU = 0.002  # share of a window's pixels, and at least 4, that have its largest value if they are saturated
_RESAMPLES = 32  # of the windows, for standard errors
_MAX_SQUARED = 0.9999  # squared correlation, which limits the weight of a window
_MAX_EVIDENCE = 20.0  # r² / (1 − r²) of a band
_MIN_EVIDENCE = 0.5  # of all bands together
_PLAUSIBLE = 0.055  # gains below are of no sensor

# Blur is compared as −4·ln(gain), four times the exponent of a Gaussian MTF at the Nyquist frequency.
_SPREAD = 1.2  # differences of blur from the table's that are in doubt; larger ones are followed
_STANDARD_ERRORS = 3.0
_ALIKE = 0.4  # differences of bands from the table's that are taken as one
_SHARE_OF_MORE_BLUR = 0.25  # of the way towards more blur than the table's


@dataclass(frozen=True)
class Mtf:
    """MTF gains of the bands.

    Attributes:
        gains: MTF gain at the multispectral Nyquist frequency of each band, for the fusion.
        measured: the estimates from the images, with their standard errors; empty if there are none.
        hint: a sentence for the user if the images gave no usable estimate; else empty.
    """

    gains: tuple[float, ...]
    measured: tuple[tuple[float, float], ...] = ()
    hint: str = ""

    def selected(self, bands: Sequence[int]) -> Mtf:
        """The gains of some bands, in this order."""
        measured = tuple(self.measured[band] for band in bands) if self.measured else ()
        return replace(self, gains=tuple(self.gains[band] for band in bands), measured=measured)

    @staticmethod
    def gains_from_tag(text: str) -> tuple[float, ...]:
        """The gains in a raster's tag; empty if there are none."""
        try:
            return tuple(float(gain) for gain in text.split())
        except ValueError:
            return ()

    def to_tag(self) -> str:
        """The gains for a raster's tag."""
        return " ".join(f"{gain:g}" for gain in self.gains)


def choose_mtf(pair: Pair, source: MtfSource, table: Sequence[float], threads: int, context: Context) -> Mtf:
    """The MTF gains of a registered pair's bands, with a line in the log.

    Args:
        table: MTF gains of the bands by the sensor's table.
    """
    table = tuple(table)
    if source is MtfSource.TABLE:
        return Mtf(table)
    estimate = _estimate(pair, threads, context)
    if estimate is None:
        hint = Message(
            "The MTF was not measured, as the images have too little detail in common; the sensor's is used."
        )
        context.log(hint)
        return Mtf(table, hint=hint if source is MtfSource.DATA else "")
    gains = tuple(round(float(gain), 3) for gain in np.exp(-estimate.blur / 4))
    errors = (round(float(error), 3) for error in np.exp(-estimate.blur / 4) * estimate.errors / 4)
    measured = tuple(zip(gains, errors))
    listed = ", ".join(f"{gain:.2f} ± {error:.2f}" for gain, error in measured)
    context.log(Message("MTF gain measured in the images, by band: {gains}.", gains=listed))
    if min(gains) < _PLAUSIBLE and estimate.pooled_gain < _PLAUSIBLE:
        hint = Message(
            "The images suggest an MTF gain of {gain:.2f}, which no sensor has, so the sensor's is used; check the "
            "co-registration, and whether the multispectral raster was resampled before.",
            gain=estimate.pooled_gain,
        )
        return Mtf(table, measured, hint)
    if source is MtfSource.DATA:
        return Mtf(gains, measured)
    used = tuple(round(float(gain), 3) for gain in shrunk_to_table(estimate.blur, estimate.errors, table))
    context.log(Message("MTF gain used, by band: {gains}.", gains=", ".join(f"{gain:.2f}" for gain in used)))
    return Mtf(used, measured)


def shrunk_to_table(blur: np.ndarray, errors: np.ndarray, table: Sequence[float]) -> np.ndarray:
    """The MTF gains (bands,) between the table's and those of measured ``blur``, −4·ln(gain), that its distance from
    the table and its standard errors warrant. Bands that differ alike from the table's keep their differences."""
    expected = -4 * np.log(np.asarray(table))
    difference = blur - expected
    doubt = _SPREAD**2 + (_STANDARD_ERRORS * errors) ** 2
    difference = difference**3 / (difference**2 + doubt) * np.where(difference > 0, _SHARE_OF_MORE_BLUR, 1.0)
    if np.ptp(difference) < _ALIKE:  # fewer filters
        difference = np.full_like(difference, difference.mean())
    return np.exp(-(expected + difference) / 4)


@dataclass(frozen=True)
class _Estimate:
    """Blur of each band, −4·ln(MTF gain), with its standard error (bands,), and the gain of all bands together."""

    blur: np.ndarray
    errors: np.ndarray
    pooled_gain: float


def _estimate(pair: Pair, threads: int, context: Context) -> Optional[_Estimate]:
    """The blur of the bands; None if too few windows have detail in common with PAN."""
    edge = math.isqrt(pair.ms.grid.width * pair.ms.grid.height // _MIN_SCENE)
    windows = pair.ms_windows(min(max(edge, _MIN_WINDOW), _WINDOW))
    order = np.random.default_rng(0).permutation(len(windows))
    for weight in _MIN_WEIGHTS:
        comparison = _WindowComparison(pair, weight)
        information, correlations = [], []
        with contextlib.closing(
            in_order(comparison.correlate, [windows[index] for index in order], threads, use_one_thread)
        ) as batches:
            for number, (_, found) in enumerate(batches, 1):
                if found is not None:
                    count, squared = found
                    information.append(-count / 2 * np.log1p(-np.minimum(squared, _MAX_SQUARED)))
                    correlations.append(squared)
                if len(information) >= _MAX_WINDOWS:
                    break
                context.progress(100 * max(len(information) / _MAX_WINDOWS, number / len(windows)), "Measuring the MTF")
        if len(information) >= _MIN_WINDOWS:
            break
    else:
        return None
    likelihood = np.stack(information)  # windows, bands, gains
    total = likelihood.sum(axis=0)
    blur = _peak(total)
    rng = np.random.default_rng(0)
    resampled = [
        _peak(likelihood[rng.integers(len(likelihood), size=len(likelihood))].sum(axis=0)) for _ in range(_RESAMPLES)
    ]
    squared = np.stack(correlations).mean(axis=0)[np.arange(len(total)), total.argmax(axis=1)]
    evidence = np.minimum(squared / (1 - np.minimum(squared, _MAX_SQUARED)), _MAX_EVIDENCE)
    if evidence.sum() < _MIN_EVIDENCE:
        return None
    # Bands that share little detail with PAN take more of their blur from the others.
    pooled = float(evidence @ blur / evidence.sum())
    share = evidence / (evidence + 1)
    return _Estimate(pooled + share * (blur - pooled), share * np.std(resampled, axis=0), math.exp(-pooled / 4))


_BLUR = -4 * np.log(np.array(_GAINS))


def _peak(likelihood: np.ndarray) -> np.ndarray:
    """Blur (bands,) of the largest likelihood (bands, gains), by the parabola through it and its neighbours."""
    best = likelihood.argmax(axis=1)
    inner = best.clip(1, len(_BLUR) - 2)
    bands = np.arange(len(likelihood))
    left, middle, right = (likelihood[bands, inner + step] for step in (-1, 0, 1))
    before, after = _BLUR[inner] - _BLUR[inner - 1], _BLUR[inner + 1] - _BLUR[inner]
    rise, fall = (middle - left) / before, (middle - right) / after
    curvature = np.maximum(rise + fall, 1e-12)
    vertex = _BLUR[inner] + (rise * after - fall * before) / (2 * curvature)
    return np.where(best == inner, vertex, _BLUR[best])


@dataclass(frozen=True)
class _WindowComparison:
    pair: Pair
    least_weight: float

    def correlate(self, window: Window) -> Optional[tuple[int, np.ndarray]]:
        """Number of samples, and squared correlation of each band's Laplacian with that of filtered PAN for each gain
        (bands, gains); None for a window with too few samples or without detail."""
        wide = window.padded(_MARGIN)
        values, valid = self.pair.read_ms(wide)
        usable = filters.inside(wide, Window(0, 0, self.pair.ms.grid.width, self.pair.ms.grid.height))
        usable = usable & torch.from_numpy(values.any(axis=0))
        if valid is not None:
            usable = usable & torch.from_numpy(valid.all(axis=0))
        mask = usable.numpy()
        usable = usable & ~torch.from_numpy(np.stack([_saturated(band, mask) for band in values]).any(axis=0))
        if int(usable.sum()) < _MIN_SAMPLES:
            return None
        ms = torch.from_numpy(values.astype(np.float64))
        details = _laplacian(ms)
        band_shifts = self.pair.band_shifts or [(0.0, 0.0)] * len(ms)
        pan_details = {}
        for shift in set(band_shifts):
            pan_details[shift], covered = self._filtered_pan(wide, shift)
            usable = usable & covered
        inner = _without_holes(usable)
        count = int(inner.sum())
        if count < _MIN_SAMPLES:
            return None
        squared = np.zeros((len(ms), len(_GAINS)))
        for band, shift in enumerate(band_shifts):
            own, pan = details[band][inner], pan_details[shift][:, inner]
            own, pan = own - own.mean(), pan - pan.mean(dim=1, keepdim=True)
            energy = own.square().sum() * pan.square().sum(dim=1)
            correlation = (pan @ own) / energy.clamp(min=1e-30).sqrt()
            squared[band] = correlation.square().numpy()
        return (count, squared) if squared.any() else None

    def _filtered_pan(self, wide: Window, shift: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Laplacian of PAN filtered with each gain at the samples of a window (gains, height, width) of a band with
        this shift, and the window's samples where enough of PAN is valid."""
        count = len(_GAINS)
        x, width, columns = filters.mtf_bank(self.pair.x_axis, wide.x, wide.width, _GAINS, [shift[0]] * count)
        y, height, rows = filters.mtf_bank(self.pair.y_axis, wide.y, wide.height, _GAINS, [shift[1]] * count)
        area = Window(x, y, width, height)
        values, valid = self.pair.read_pan(area)
        usable = filters.inside(area, Window(0, 0, self.pair.grid.width, self.pair.grid.height))
        usable = usable & torch.from_numpy(values != 0)
        if valid is not None:
            usable = usable & torch.from_numpy(valid)
        usable = usable & ~torch.from_numpy(_saturated(values, usable.numpy()))
        pan = torch.from_numpy(values.astype(np.float32))
        pan = torch.where(usable, pan - pan[usable].mean() if bool(usable.any()) else 0.0, 0.0)
        filtered = filters.apply_separable(rows, pan, columns)
        covered = torch.ones(wide.height, wide.width, dtype=torch.bool)
        if not bool(usable.all()):
            weight = filters.apply_separable(rows, usable.float(), columns)
            filtered = filtered / weight.clamp(min=1e-6)
            covered = (weight > self.least_weight).all(dim=0)
        return _laplacian(filtered.double()), covered


def _laplacian(planes: torch.Tensor) -> torch.Tensor:
    """Mean of the four neighbours minus the value (…, height − 2, width − 2)."""
    inner = planes[..., 1:-1, 1:-1]
    around = planes[..., :-2, 1:-1] + planes[..., 2:, 1:-1] + planes[..., 1:-1, :-2] + planes[..., 1:-1, 2:]
    return around / 4 - inner


def _without_holes(usable: torch.Tensor) -> torch.Tensor:
    """Inner samples (height − 2, width − 2) that are usable, as are their four neighbours."""
    inner = usable[1:-1, 1:-1] & usable[:-2, 1:-1] & usable[2:, 1:-1]
    return inner & usable[1:-1, :-2] & usable[1:-1, 2:]


def _saturated(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Pixels at the upper end of the sensor's range: those of the largest usable value, where several have it, but not
    all."""
    if not usable.any():
        return ~usable
    at_top = usable & (values == values[usable].max())
    count = np.count_nonzero(at_top)
    return np.asarray(at_top & (max(4, _PLATEAU * values.size) <= count < np.count_nonzero(usable)))

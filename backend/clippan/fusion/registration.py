"""Registration of MS to PAN, and of single bands, from the images themselves.

Georeferences of PAN and MS often differ by a PAN pixel or more, and so do the bands of sensors that image a place one
band after the other. PAN is filtered with the MTF and sampled on a lattice finer than MS, and correlated with the bands
for all shifts up to some multispectral pixels, in windows all over the scene. Images are high-pass filtered and each
window has its own relation between PAN and band, of either sign, so that edges decide, not brightness or land cover.
The windows are grouped by brightness, and the groups have to agree before anything is moved: clouds, being high, have a
parallax that differs between bands. If clouds disagree with the ground, the darker half of the windows decides.
"""

from __future__ import annotations

import contextlib
import json
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
from clippan.fusion.metrics import crop
from clippan.jobs.options import Registration
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

_WINDOW = 64  # multispectral samples, edge of a window
_MIN_WINDOW = 16  # the same for a small scene
_MAX_WINDOWS = 64
_GROUPS = 4  # of windows by brightness, which have to agree
_STEPS = 3  # shifts tried per multispectral pixel; the maximum is interpolated between them
_REACH = 10  # such steps to each side
_BLUR_SIGMA = 1.5  # multispectral samples, of the low pass that is subtracted
_BLUR_REACH = 4  # multispectral samples
_MAX_SQUARED = 1 - 1e-4  # squared correlation, which limits the weight of a window
_MIN_WEIGHT = 0.9  # of valid PAN pixels under the filter
_MIN_WINDOW_SAMPLES = 64  # least number in a window
_ROUNDING = 1e-6  # contrast relative to the mean that is only float32 rounding

_MIN_SHIFT = 0.1  # PAN pixels
_MIN_BAND_SHIFT = 0.25  # PAN pixels, of a single band against the others
_MIN_GAIN = 0.002  # of the correlation
_STANDARD_ERRORS = 3.0  # that a shift has to exceed
_SPREAD = (0.1, 0.75)  # multispectral pixels by which a group may differ: half the shift, within these limits
_DECIMALS = 2  # of a shift
_MIN_CORRELATION = 0.5  # of a band with PAN, for a shift of its own


@dataclass(frozen=True)
class Shifts:
    """Shift to the right and down that registers MS to PAN, in PAN pixels.

    Attributes:
        x, y: shift of MS as a whole.
        bands: shift (x, y) of each band if some bands differ, else empty.
        correlation_before, correlation_after: mean correlation with PAN over windows and bands; NaN if unknown.
        reason: a sentence for the log.
    """

    x: float = 0.0
    y: float = 0.0
    bands: tuple[tuple[float, float], ...] = ()
    correlation_before: float = math.nan
    correlation_after: float = math.nan
    reason: str = ""

    def apply(self, pair: Pair) -> Pair:
        """The pair with MS and its bands shifted."""
        band_shifts = [(round(x - self.x, _DECIMALS), round(y - self.y, _DECIMALS)) for x, y in self.bands]
        return pair.shifted(self.x, self.y, band_shifts)

    def selected(self, bands: Sequence[int]) -> Shifts:
        """The shifts of some bands, in this order."""
        return replace(self, bands=tuple(self.bands[band] for band in bands) if self.bands else ())

    def to_tag(self) -> str:
        """The value of a file's tag, for ``from_tag``."""
        values: dict[str, object] = {"x": self.x, "y": self.y}
        if self.bands:
            values["bands"] = self.bands
        return json.dumps(values)

    @classmethod
    def from_tag(cls, text: str, bands: int) -> Optional[Shifts]:
        """The shifts in the tag of a raster with this number of bands; None if the tag cannot be used."""
        try:
            values = json.loads(text)
            band_shifts = tuple((float(x), float(y)) for x, y in values.get("bands", ()))
            x, y = float(values["x"]), float(values["y"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        numbers = [x, y, *(number for shift in band_shifts for number in shift)]
        if len(band_shifts) not in (0, bands) or not all(map(math.isfinite, numbers)):
            return None
        shifts = _described((x, y), band_shifts)
        reason = Message("MS shifted by {shifts}, according to the tags of the raster.", shifts=shifts)
        return cls(x, y, band_shifts, reason=reason)


def register(
    pair: Pair,
    choice: Registration,
    mtf_gains: Sequence[float],
    threads: int,
    context: Context,
    recorded: Optional[Shifts] = None,
) -> tuple[Pair, Shifts]:
    """Estimates the shifts of a pair and applies them, with a line in the log; ``mtf_gains`` are those of the bands,
    and ``recorded`` shifts replace estimated ones if single bands are registered as well."""
    if choice is Registration.OFF:
        return pair, Shifts()
    per_band = choice is Registration.AUTO
    shifts = recorded if recorded and per_band else estimate(pair, mtf_gains, threads, context, per_band)
    context.log(Message("Registration: {result}", result=shifts.reason))
    return shifts.apply(pair), shifts


def estimate(pair: Pair, mtf_gains: Sequence[float], threads: int, context: Context, per_band: bool = True) -> Shifts:
    """Estimates the shifts between MS and PAN; zero, with the reason, if none is distinct or parts of the scene
    contradict each other. ``per_band``: whether bands may have a shift of their own."""
    correlations = _correlate_windows(_WindowCorrelator(pair, sum(mtf_gains) / len(mtf_gains)), threads, context)
    if correlations is None or len(correlations.counts) < _GROUPS:
        return Shifts(
            reason=Message("MS was not shifted, as too few pixels are valid in both rasters to compare them.")
        )
    all_bands = range(pair.ms.count)
    whole = _locate(correlations, all_bands, pair, (0.0, 0.0))
    if whole is None:
        correlations = correlations.groups(2)[0]  # the darker half
        whole = _locate(correlations, all_bands, pair, (0.0, 0.0))
    before = _correlation_from_mi(correlations.mutual_information(all_bands, (0.0, 0.0)))
    if whole is None:
        reason = Message("MS was not shifted, as no shift is distinctly better for the whole scene.")
        return Shifts(correlation_before=before, correlation_after=before, reason=reason)
    common = whole.shift if whole.is_significant(_MIN_SHIFT) else (0.0, 0.0)
    bands = [common] * len(all_bands)
    for band in all_bands if per_band else ():
        found = _locate(correlations, [band], pair, common)
        if found is not None and found.is_significant(_MIN_BAND_SHIFT) and found.correlation_after >= _MIN_CORRELATION:
            bands[band] = found.shift
    information = [correlations.mutual_information([band], _in_ms(shift, pair)) for band, shift in enumerate(bands)]
    after = _correlation_from_mi(sum(information) / len(information))
    band_shifts = tuple(bands) if any(shift != common for shift in bands) else ()
    if common == (0, 0) and not band_shifts:
        reason = Message("MS lies on PAN and was not shifted (correlation {correlation:.3f}).", correlation=before)
    else:
        reason = Message(
            "MS shifted by {shifts}; correlation {before:.3f} → {after:.3f}.",
            shifts=_described(common, band_shifts),
            before=before,
            after=after,
        )
    return Shifts(*common, band_shifts, before, after, reason)


def _described(common: tuple[float, float], bands: Sequence[tuple[float, float]]) -> Message:
    """Shifts for readers: "(−1.20, 0.60) PAN pixels (x, y); single bands: 4 (−1.50, 0.70)"."""
    differing = [f"{number} {_numbers(*shift)}" for number, shift in enumerate(bands, 1) if shift != common]
    if not differing:
        return Message("{shift} PAN pixels (x, y)", shift=_numbers(*common))
    return Message(
        "{shift} PAN pixels (x, y), single bands: {bands}", shift=_numbers(*common), bands=", ".join(differing)
    )


def _numbers(x: float, y: float) -> str:
    return f"({x:.2f}, {y:.2f})".replace("-", "−")


@dataclass(frozen=True)
class _Correlations:
    """Correlation of each band with PAN for every shift.

    Attributes:
        counts: number of samples of each window (windows,), the darkest window first.
        correlations: correlations (windows, bands, shifts down, shifts to the right).
    """

    counts: np.ndarray
    correlations: np.ndarray

    def groups(self, count: int = _GROUPS) -> list[_Correlations]:
        """Groups of windows, from dark to bright, with about the same total information."""
        information = _mi_from_correlation(self.correlations).mean(axis=1).max(axis=(1, 2)) * self.counts
        middle = (np.cumsum(information) - information / 2) / max(information.sum(), 1e-30)
        number = np.minimum(middle * count, count - 1).astype(int)
        return [
            _Correlations(self.counts[number == group], self.correlations[number == group])
            for group in range(count)
            if (number == group).any()
        ]

    def mutual_information_surface(self, bands: Sequence[int], correlations: Optional[np.ndarray] = None) -> np.ndarray:
        """−log(1 − r²) of the bands and PAN for each shift, the mean over samples and bands.

        That is twice the mutual information of Gaussian variables and, up to a constant, the log-likelihood of the
        shift if each window has its own regression and noise. ``correlations`` replace those measured.
        """
        correlations = self.correlations if correlations is None else correlations
        total: np.ndarray = np.zeros(())
        for band in bands:
            total = total + np.tensordot(self.counts, _mi_from_correlation(correlations[:, band]), 1)
        return total / (len(bands) * self.counts.sum())

    def mutual_information(self, bands: Sequence[int], shift: tuple[float, float]) -> float:
        """``mutual_information_surface`` at one shift (x, y) in multispectral pixels."""
        (columns, column), (rows, row) = (_interpolation(value * _STEPS) for value in shift)
        near = self.correlations[:, :, row : row + len(rows.T), column : column + len(columns.T)]
        return float(self.mutual_information_surface(bands, rows @ near @ columns.T)[0, 0])

    def peak(self, bands: Sequence[int]) -> Optional[tuple[float, float]]:
        """The best shift (x, y) in multispectral pixels; None if it may lie beyond those tried."""
        surface = self.mutual_information_surface(bands)
        row, column = (int(index) for index in np.unravel_index(surface.argmax(), surface.shape))
        if not all(_NODES <= index <= 2 * _REACH - _NODES for index in (row, column)):
            return None
        near = self.correlations[:, :, row - _NODES : row + _NODES + 1, column - _NODES : column + _NODES + 1]
        fine = self.mutual_information_surface(bands, _FINE @ near @ _FINE.T)
        fine_row, fine_column = (int(index) for index in np.unravel_index(fine.argmax(), fine.shape))
        x = column - _REACH + _vertex(fine[fine_row], fine_column)
        y = row - _REACH + _vertex(fine[:, fine_column], fine_row)
        return x / _STEPS, y / _STEPS


def _mi_from_correlation(correlation: np.ndarray) -> np.ndarray:
    return -np.log1p(-np.minimum(correlation**2, _MAX_SQUARED))


def _correlation_from_mi(information: float) -> float:
    return math.sqrt(max(0.0, 1 - math.exp(-information)))


_NODES = 2  # values on each side that the interpolating polynomials pass through
_SUBSTEPS = 20


def _lagrange(positions: np.ndarray) -> np.ndarray:
    """Matrix (positions, 5) that interpolates between values at −2 … 2."""
    nodes = np.arange(-_NODES, _NODES + 1)
    others = [nodes[nodes != node] for node in nodes]
    factors = [(positions[:, None] - other) / (node - other) for node, other in zip(nodes, others)]
    return np.stack([np.prod(factor, axis=1) for factor in factors], axis=1)


_FINE = _lagrange(np.arange(-_SUBSTEPS, _SUBSTEPS + 1) / _SUBSTEPS)


def _interpolation(steps: float) -> tuple[np.ndarray, int]:
    """Weights (1, 5) that interpolate a table at a shift, and the index of the first value."""
    centre = min(max(round(steps) + _REACH, _NODES), 2 * _REACH - _NODES)
    return _lagrange(np.array([steps + _REACH - centre])), centre - _NODES


def _vertex(values: np.ndarray, index: int) -> float:
    """Position of the maximum of the parabola through a value and its neighbours, in steps from the centre."""
    if 0 < index < len(values) - 1:
        left, top, right = values[index - 1 : index + 2]
        curvature = left - 2 * top + right
        if curvature < 0:
            return float((index + 0.5 * (left - right) / curvature) / _SUBSTEPS - 1)
    return index / _SUBSTEPS - 1


@dataclass(frozen=True)
class _Location:
    """Estimated shift of one or more bands.

    Attributes:
        shift: (x, y) in PAN pixels.
        distance: from the assumed shift.
        error: standard error of the distance.
        correlation_before, correlation_after: correlation with PAN at the assumed and at the estimated shift.
    """

    shift: tuple[float, float]
    distance: float
    error: float
    correlation_before: float
    correlation_after: float

    def is_significant(self, min_distance: float) -> bool:
        """Whether the distance is at least ``min_distance``, beyond its error, and raises the correlation."""
        is_distinct = self.distance >= max(min_distance, _STANDARD_ERRORS * self.error)
        return is_distinct and self.correlation_after >= self.correlation_before + _MIN_GAIN


def _locate(
    correlations: _Correlations, bands: Sequence[int], pair: Pair, origin: tuple[float, float]
) -> Optional[_Location]:
    """Estimates the shift of bands that are assumed to be at ``origin``; None if groups of windows do not agree."""
    peak = correlations.peak(bands)
    peaks = np.array([found for found in (group.peak(bands) for group in correlations.groups()) if found is not None])
    if peak is None or len(peaks) < _GROUPS:
        return None
    shift = np.hypot(*np.subtract(peak, _in_ms(origin, pair)))
    if np.abs(peaks - peak).max() > np.clip(shift / 2, *_SPREAD):
        return None
    ratios = np.array([pair.x_axis.ratio, pair.y_axis.ratio])
    x, y = (float(value) + 0.0 for value in np.round(peak * ratios, _DECIMALS))
    step = np.array([x, y]) - origin
    distance = float(np.linalg.norm(step))
    errors = peaks.std(axis=0, ddof=1) * ratios / math.sqrt(_GROUPS)
    error = float(np.linalg.norm(errors * step)) / max(distance, 1e-9)
    before, after = (
        _correlation_from_mi(correlations.mutual_information(bands, _in_ms(at, pair))) for at in (origin, (x, y))
    )
    return _Location((x, y), distance, error, before, after)


def _in_ms(shift: tuple[float, float], pair: Pair) -> tuple[float, float]:
    """Converts a shift from PAN to multispectral pixels."""
    return shift[0] / pair.x_axis.ratio, shift[1] / pair.y_axis.ratio


def _correlate_windows(correlator: _WindowCorrelator, threads: int, context: Context) -> Optional[_Correlations]:
    """Correlates windows in random order until enough of them have detail; None if none has."""
    ms = correlator.pair.ms.grid
    windows = correlator.pair.ms_windows(min(max(math.isqrt(ms.width * ms.height // 16), _MIN_WINDOW), _WINDOW))
    order = np.random.default_rng(0).permutation(len(windows))
    found = []
    with contextlib.closing(
        in_order(correlator.compare, [windows[i] for i in order], threads, use_one_thread)
    ) as batches:
        for number, (_, window) in enumerate(batches, 1):
            if window is not None:
                found.append(window)
            if len(found) >= _MAX_WINDOWS:
                break
            context.progress(100 * max(len(found) / _MAX_WINDOWS, number / len(windows)), "Registering MS to PAN")
    if not found:
        return None
    found.sort(key=lambda window: window[0])
    return _Correlations(np.array([count for _, count, _ in found], float), np.stack([table for *_, table in found]))


@dataclass(frozen=True)
class _WindowCorrelator:
    """Correlates windows of a pair; ``mtf_gain`` is assumed for all bands."""

    pair: Pair
    mtf_gain: float

    def compare(self, window: Window) -> Optional[tuple[float, int, np.ndarray]]:
        """Mean of PAN, number of samples, and correlation of each band with PAN for every shift (bands, shifts,
        shifts); None for a window without detail."""
        ms_details = self._ms_details(window)
        pan_details = self._pan_details(window) if ms_details else None
        if ms_details is None or pan_details is None:
            return None
        bands, usable = ms_details
        mean, pan, pan_valid = pan_details
        usable &= pan_valid
        count = int(usable.sum())
        if count < _MIN_WINDOW_SAMPLES:
            return None
        shifts = _shifted(pan, window)
        width = len(shifts)
        ms, shifted_pan = bands.flatten(1), shifts.reshape(width * width, -1)
        if count < usable.numel():
            chosen = usable.flatten().nonzero()[:, 0]
            ms, shifted_pan = ms.index_select(1, chosen), shifted_pan.index_select(1, chosen)
        ms = ms - ms.mean(dim=1, keepdim=True)
        norm = ms.norm(dim=1).double()
        # The mean of high-pass details is almost zero, so that it need not be subtracted first.
        pan_norm = shifted_pan.norm(dim=1).double() ** 2 - count * shifted_pan.mean(dim=1).double() ** 2
        pan_norm = pan_norm.clamp(min=0).sqrt()
        if not bool((pan_norm > 0).all()):
            return None
        tables = (ms @ shifted_pan.T).double() / norm.clamp(min=1e-30)[:, None] / pan_norm
        return mean, count, tables.clamp(-1, 1).view(-1, width, width).numpy()

    def _ms_details(self, window: Window) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """High-pass bands (bands, height, width), and where all are valid; None if nowhere."""
        wide = window.padded(_BLUR_REACH)
        values, valid = self.pair.read_ms(wide)
        bands = torch.from_numpy(values.astype(np.float32))
        inside = filters.inside(wide, Window(0, 0, self.pair.ms.grid.width, self.pair.ms.grid.height))
        # Undeclared black borders have edges too.
        mask = torch.from_numpy(values.any(axis=0)).expand(bands.shape)
        if valid is not None:
            mask = mask & torch.from_numpy(valid)
        if not bool(mask.all()):
            inside = inside & mask.all(dim=0)
            if not bool(inside.any()):
                return None
            bands = torch.where(mask, bands, 0.0)
            bands = filters.fill_invalid(bands, mask, bands.sum(dim=(1, 2)) / mask.sum(dim=(1, 2)))
        mean = bands.mean(dim=(1, 2), keepdim=True)
        details = _high_pass(bands - mean, 1)
        details[details.std(dim=(1, 2), correction=0) <= _ROUNDING * mean.abs().flatten()] = 0
        return details, crop(inside, _BLUR_REACH)

    def _pan_details(self, window: Window) -> Optional[tuple[float, torch.Tensor, torch.Tensor]]:
        """Mean of PAN, high-pass PAN on the lattice of shifts, and the MS samples for which it is valid under all
        shifts; None without detail."""
        margin = _REACH / _STEPS + _BLUR_REACH
        rows_start, rows = self._matrix(self.pair.y_axis, window.y, window.height, margin)
        columns_start, columns = self._matrix(self.pair.x_axis, window.x, window.width, margin)
        area = Window(columns_start, rows_start, columns.shape[1], rows.shape[1])
        values, valid = self.pair.read_pan(area)
        pan = torch.from_numpy(values.astype(np.float32))
        column, row, raster = self.pair.alignment.column, self.pair.alignment.row, self.pair.pan.grid
        inside = filters.inside(area, Window(-column, -row, raster.width, raster.height))
        mask = torch.from_numpy(values != 0)
        if valid is not None:
            mask = mask & torch.from_numpy(valid)
        if not bool((mask & inside).any()):
            return None
        mean = float(pan[mask].mean())
        low = filters.apply_separable(rows, torch.where(mask, pan - mean, 0.0), columns)
        if not bool(mask.all()):
            low = low / filters.apply_separable(rows, mask.float(), columns).clamp(min=1e-6)
        details = _high_pass(low, _STEPS)
        if float(details.std(correction=0)) <= _ROUNDING * abs(mean):
            return None
        inside = inside & mask
        if bool(inside.all()):
            return mean, details, torch.ones(window.height, window.width, dtype=torch.bool)
        weight = crop(filters.apply_separable(rows, inside.float(), columns), _BLUR_REACH * _STEPS)
        return mean, details, (_shifted(weight, window) > _MIN_WEIGHT).flatten(0, 1).all(dim=0)

    def _matrix(self, axis: AxisTransform, first: float, samples: int, margin: float) -> tuple[int, filters.BandMatrix]:
        count = round((samples - 1 + 2 * margin) * _STEPS) + 1
        return filters.oversampled_matrix(axis, first - margin, count, _STEPS, self.mtf_gain)


def _high_pass(image: torch.Tensor, step: int) -> torch.Tensor:
    """An image (..., height, width) minus its Gaussian mean over samples ``step`` pixels apart, without the margin."""
    kernel = torch.exp(-0.5 * (torch.arange(-_BLUR_REACH, _BLUR_REACH + 1) / _BLUR_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    planes = image.reshape(-1, 1, *image.shape[-2:])
    blurred = torch.nn.functional.conv2d(planes, kernel.view(1, 1, -1, 1), dilation=(step, 1))
    blurred = torch.nn.functional.conv2d(blurred, kernel.view(1, 1, 1, -1), dilation=(1, step))
    return crop(image, _BLUR_REACH * step) - blurred.view(*image.shape[:-2], *blurred.shape[-2:])


def _shifted(image: torch.Tensor, window: Window) -> torch.Tensor:
    """View of an image on the lattice at the MS samples for every shift: (shifts down, shifts right, height, width)."""
    down, right = image.contiguous().stride()
    size = (2 * _REACH + 1, 2 * _REACH + 1, window.height, window.width)
    return image.contiguous().as_strided(size, (down, right, _STEPS * down, _STEPS * right))

"""Training patches, cut from scenes held in memory.

A ``ScenePair`` is a scene as the sensor saw it, PAN and MS at their own resolutions, without a reference. A
``ReferenceScene`` has PAN and bands on one grid: a pair at reduced resolution (Wald's protocol), or a picture whose PAN
is simulated from its bands. MS is simulated from it with the MTF, at any ratio and phase.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from clippan.fusion import filters
from clippan.fusion.methods import high_pass_modulation
from clippan.fusion.neural import conditions
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.degradation import Blur, through_jpeg
from clippan.raster.grid import AxisTransform

_PHASE_DIGITS = 9  # decimals of a phase in pixels
MIN_VALID_SHARE = 0.999  # least valid share of a patch, or of the pixels under a filter


@dataclass(frozen=True)
class BandMoments:
    """First and second moments at MS resolution.

    Attributes:
        mean, covariance: of the bands, (c,) and (c, c).
        pan_mean, pan_variance: of PAN filtered to MS resolution.
        with_pan: covariance of each band with that PAN (c,).
    """

    mean: np.ndarray
    covariance: np.ndarray
    pan_mean: float
    pan_variance: float
    with_pan: np.ndarray

    @classmethod
    def of(cls, bands: np.ndarray, pan: np.ndarray, valid: np.ndarray) -> BandMoments:
        """Moments of bands (c, h, w) and PAN (h, w) where ``valid`` (h, w), or everywhere if it is nowhere."""
        chosen = valid if valid.any() else np.ones(pan.shape, bool)
        values, pan_values = bands[:, chosen].astype(np.float64), pan[chosen].astype(np.float64)
        mean, pan_mean, count = values.mean(axis=1), float(pan_values.mean()), len(pan_values)
        values -= mean[:, None]
        pan_values -= pan_mean
        pan_variance = float(pan_values @ pan_values) / count
        return cls(mean, values @ values.T / count, pan_mean, pan_variance, values @ pan_values / count)

    def of_mixture(self, mixture: BandMixture) -> BandMoments:
        """Moments after a mixture was applied to the bands and PAN."""
        weights, of_pan, of_bands = mixture.weights, mixture.pan_weight, mixture.pan_band_weights
        return BandMoments(
            weights @ self.mean + mixture.offset,
            weights @ self.covariance @ weights.T,
            of_pan * self.pan_mean + float(of_bands @ self.mean) + mixture.pan_offset,
            of_pan**2 * self.pan_variance
            + float(2 * of_pan * of_bands @ self.with_pan + of_bands @ self.covariance @ of_bands),
            weights @ (of_pan * self.with_pan + self.covariance @ of_bands),
        )


@dataclass(frozen=True)
class BandMixture:
    """Radiometric augmentation of a patch, from c bands of the scene to k bands.

    Bands become ``weights`` (k, c) @ bands + ``offset`` (k,); PAN becomes ``pan_weight`` · PAN + ``pan_band_weights``
    (c,) @ bands + ``pan_offset``. ``noise`` and ``pan_noise`` are in standard deviations of the scene; ``saturated``
    and ``pan_saturated`` are shares of the brightest pixels that are cut off; ``jpeg`` and ``pan_jpeg`` are qualities
    of JPEG compression, 0 for none.
    """

    weights: np.ndarray
    offset: np.ndarray
    pan_weight: float
    pan_band_weights: np.ndarray
    pan_offset: float
    noise: float = 0.0
    pan_noise: float = 0.0
    saturated: float = 0.0
    pan_saturated: float = 0.0
    jpeg: int = 0
    pan_jpeg: int = 0

    @classmethod
    def selection(cls, chosen: Sequence[int], count: int) -> BandMixture:
        """Some of ``count`` bands, unchanged."""
        return cls(np.eye(count)[list(chosen)], np.zeros(len(chosen)), 1.0, np.zeros(count), 0.0)


@dataclass(frozen=True)
class Patch:
    """One patch, with the arrays of ``PatchBatch`` in the units of the file, and the assumed MTF gain of each band."""

    up: Tensor
    pan: Tensor
    pan_lowpass: Tensor
    ms: Tensor
    degraded_pan: Tensor
    row_filters: Tensor
    column_filters: Tensor
    moments: BandMoments
    mtf_gains: tuple[float, ...]
    target: Optional[Tensor]

    def transformed(self, number: int) -> Patch:
        """One of the eight mirrored and transposed versions (0 to 7), with the filters adapted."""

        def transform(image: Tensor) -> Tensor:
            if number & 1:
                image = image.flip(-2)
            if number & 2:
                image = image.flip(-1)
            return image.mT.contiguous() if number & 4 else image

        rows = self.row_filters.flip(-2, -1) if number & 1 else self.row_filters
        columns = self.column_filters.flip(-2, -1) if number & 2 else self.column_filters
        if number & 4:
            rows, columns = columns, rows
        up, pan, pan_lowpass, ms, degraded_pan = map(
            transform, (self.up, self.pan, self.pan_lowpass, self.ms, self.degraded_pan)
        )
        target = None if self.target is None else transform(self.target)
        return Patch(up, pan, pan_lowpass, ms, degraded_pan, rows, columns, self.moments, self.mtf_gains, target)


@dataclass
class ScenePair:
    """PAN and registered MS at their own resolutions.

    Attributes:
        pan, ms: (H, W) and (c, h, w), float32.
        x_axis, y_axis: the MS axes on PAN's grid.
        valid: MS samples that are valid in both (h, w).
        mtf_gains, pan_mtf_gain: of the bands and of PAN.
        sensor: name of the sensor.
        moments: at MS resolution.
    """

    pan: np.ndarray
    ms: np.ndarray
    x_axis: AxisTransform
    y_axis: AxisTransform
    valid: np.ndarray
    mtf_gains: tuple[float, ...]
    pan_mtf_gain: float
    sensor: str = ""
    moments: BandMoments = field(init=False)
    _corners: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moments = BandMoments.of(self.ms, self.degraded_pan(float(np.mean(self.mtf_gains))), self.valid)

    def degraded_pan(self, gain: float) -> np.ndarray:
        """PAN filtered with an MTF gain, at the MS samples (h, w)."""
        return _mtf_degraded(self.pan[None], self.x_axis, self.y_axis, self.ms.shape[1:], gain)[0]

    def reduced_reference(self, pan_gain: float) -> ReferenceScene:
        """The reference at reduced resolution: MS itself, with PAN degraded to its grid."""
        return ReferenceScene(self.degraded_pan(pan_gain), self.ms, self.valid, self.mtf_gains, simulated_pan=False)

    def valid_pixels(self) -> np.ndarray:
        """PAN pixels that lie in a valid MS sample, bool (H, W)."""
        indices = []
        for axis, pixels, samples in zip((self.y_axis, self.x_axis), self.pan.shape, self.valid.shape):
            index = np.floor((np.arange(pixels) + 0.5 - axis.origin) / axis.ratio).astype(int)
            indices.append((index.clip(0, samples - 1), (index >= 0) & (index < samples)))
        (rows, rows_inside), (columns, columns_inside) = indices
        return np.asarray(self.valid[rows][:, columns] & rows_inside[:, None] & columns_inside)

    def patches(self, rng: np.random.Generator, count: int, size: int, bands: Sequence[int]) -> list[Patch]:
        """Random valid patches of ``size`` PAN pixels; empty if the scene has none."""
        size_ms = math.ceil(size / self.x_axis.ratio)
        if size_ms not in self._corners:
            self._corners[size_ms] = valid_corners(self.valid, size_ms)
        corners = self._corners[size_ms]
        if not len(corners):
            return []
        patches = []
        for row, column in corners[rng.integers(len(corners), size=count)]:
            start_y = round(self.y_axis.ms_to_pan(float(row)) - self.y_axis.ratio / 2 + 0.5)
            start_x = round(self.x_axis.ms_to_pan(float(column)) - self.x_axis.ratio / 2 + 0.5)
            patches.append(self._patch(start_x, start_y, (size, size), bands))
        return patches

    def whole_patch(self) -> Patch:
        """The whole scene as one patch, invalid pixels included."""
        height, width = self.pan.shape
        return self._patch(0, 0, (height, width), range(len(self.ms)))

    def _patch(self, x: int, y: int, size: tuple[int, int], bands: Sequence[int]) -> Patch:
        gains = (*(self.mtf_gains[band] for band in bands), self.pan_mtf_gain)
        rows, columns = _PatchAxis.of(self.y_axis, y, size[0], gains), _PatchAxis.of(self.x_axis, x, size[1], gains)
        ms = torch.from_numpy(
            _cut(self.ms[list(bands)], columns.ms_first, rows.ms_first, columns.ms_count, rows.ms_count)
        )
        wide = torch.from_numpy(
            _cut(self.pan[None], columns.pan_first, rows.pan_first, columns.pan_count, rows.pan_count)
        )
        inside = np.s_[
            :,
            y - rows.pan_first : y - rows.pan_first + size[0],
            x - columns.pan_first : x - columns.pan_first + size[1],
        ]
        moments = self.moments.of_mixture(BandMixture.selection(bands, len(self.ms)))
        return _patch(rows, columns, ms, wide, inside, -1, moments, gains[:-1], None)


@dataclass
class ReferenceScene:
    """PAN and reference bands on one grid.

    Attributes:
        pan, bands: (H, W) and (c, H, W), float32.
        valid: pixels that are valid in both (H, W).
        mtf_gains: of the bands.
        simulated_pan: whether PAN was made from the bands.
    """

    pan: np.ndarray
    bands: np.ndarray
    valid: np.ndarray
    mtf_gains: tuple[float, ...]
    simulated_pan: bool = True
    _moments: dict[float, BandMoments] = field(default_factory=dict)
    _corners: dict[int, np.ndarray] = field(default_factory=dict)

    def moments(self, ratio: float) -> BandMoments:
        """Moments at a resolution ``ratio`` times coarser."""
        if ratio not in self._moments:
            axis, gain = AxisTransform(ratio, 0.0), float(np.mean(self.mtf_gains))
            shape = (int(self.pan.shape[0] / ratio), int(self.pan.shape[1] / ratio))
            degraded = _mtf_degraded(
                np.concatenate([self.bands, self.pan[None], self.valid[None]]), axis, axis, shape, gain
            )
            self._moments[ratio] = BandMoments.of(degraded[:-2], degraded[-2], degraded[-1] > MIN_VALID_SHARE)
        return self._moments[ratio]

    def reduced_pair(self, ratio: float, pan_gain: float) -> ScenePair:
        """The pair that a sensor with these MTF gains would see, at a resolution ``ratio`` times coarser."""
        axis = AxisTransform(ratio, 0.0)
        shape = tuple(int(length / ratio) for length in self.pan.shape)
        bands = zip(self.bands, self.mtf_gains)
        ms = np.concatenate([_mtf_degraded(band[None], axis, axis, shape, gain) for band, gain in bands])
        mean_gain = float(np.mean(self.mtf_gains))
        valid = _mtf_degraded(self.valid[None].astype(np.float32), axis, axis, shape, mean_gain)[0]
        return ScenePair(self.pan, ms, axis, axis, valid > MIN_VALID_SHARE, self.mtf_gains, pan_gain)

    def fits(self, size: int) -> bool:
        """Whether the scene has a valid patch of ``size`` pixels."""
        return min(self.pan.shape) >= size and len(self._valid_corners(size)) > 0

    def _valid_corners(self, size: int) -> np.ndarray:
        if size not in self._corners:
            self._corners[size] = valid_corners(self.valid, min(size, *self.pan.shape), 8)
        return self._corners[size]

    def patch(
        self,
        rng: np.random.Generator,
        size: int,
        ratio: float,
        phases: np.ndarray,
        gains: Sequence[float],
        blurs: Sequence[Blur],
        shifts: np.ndarray,
        mixture: BandMixture,
    ) -> Optional[Patch]:
        """A random patch with simulated MS; None if the scene has no valid patch of this size.

        Args:
            ratio: MS over PAN pixel size.
            phases: offsets of the MS rows and columns in the patch, in pixels.
            gains: assumed MTF gain of each resulting band.
            blurs: what each band is simulated with.
            shifts: misregistration of each band (bands, 2), rows and columns, in pixels.
        """
        corners = self._valid_corners(size)
        if not len(corners):
            return None
        row, column = corners[rng.integers(len(corners))]
        widest = max(0.05, min(*gains, *(min(blur.gain_x, blur.gain_y) for blur in blurs)))  # of the window to read
        rows, columns = (
            _PatchAxis.of(AxisTransform(ratio, start + phase), int(start), size, (*gains, widest))
            for start, phase in zip((row, column), phases)
        )
        wide_bands = _cut(self.bands, columns.pan_first, rows.pan_first, columns.pan_count, rows.pan_count)
        wide_pan = _cut(self.pan[None], columns.pan_first, rows.pan_first, columns.pan_count, rows.pan_count)
        mixed_pan = (
            mixture.pan_weight * wide_pan[0]
            + np.tensordot(mixture.pan_band_weights.astype(np.float32), wide_bands, 1)
            + mixture.pan_offset
        )
        wide = torch.from_numpy(mixed_pan.astype(np.float32))[None]
        bands = np.tensordot(mixture.weights.astype(np.float32), wide_bands, 1) + mixture.offset[:, None, None]
        source = torch.from_numpy(bands.astype(np.float32))
        if mixture.saturated:
            source = torch.minimum(source, _quantile(source, 1 - mixture.saturated))
        if mixture.pan_saturated:
            wide = torch.minimum(wide, _quantile(wide, 1 - mixture.pan_saturated))
        shifted = _shifted(source, shifts) if shifts.any() else source
        down, right = (
            torch.stack(
                [
                    blur.matrix(
                        AxisTransform(ratio, phase),
                        item.ms_first,
                        item.ms_count,
                        item.pan_first - int(start),
                        item.pan_count,
                        gain,
                    )
                    for blur, gain in zip(blurs, blur_gains)
                ]
            )
            for item, start, phase, blur_gains in (
                (rows, row, phases[0], [blur.gain_y for blur in blurs]),
                (columns, column, phases[1], [blur.gain_x for blur in blurs]),
            )
        )
        ms = filters.apply_separable(down, shifted, right)
        moments = self.moments(ratio).of_mixture(mixture)
        if mixture.noise:
            std = torch.from_numpy(np.sqrt(moments.covariance.diagonal())).float()[:, None, None]
            ms = ms + mixture.noise * std * torch.from_numpy(rng.standard_normal(ms.shape, np.float32))
        if mixture.pan_noise:
            noise = torch.from_numpy(rng.standard_normal(wide.shape, np.float32))
            wide = wide + mixture.pan_noise * math.sqrt(moments.pan_variance) * noise
        if mixture.jpeg:
            ms = through_jpeg(ms, mixture.jpeg)
        if mixture.pan_jpeg:
            wide = through_jpeg(wide, mixture.pan_jpeg)
        top, left = int(row) - rows.pan_first, int(column) - columns.pan_first
        inside = np.s_[:, top : top + size, left : left + size]
        return _patch(rows, columns, ms, wide, inside, 0, moments, tuple(gains), source[inside])


def collate(patches: Sequence[Patch], scenes: Sequence[int], ratio: float) -> PatchBatch:
    """A batch of patches of one size, ratio and number of bands.

    Wider MTF filters leave fewer MS samples inside a patch; the batch holds the number that all patches have.
    """
    height, width = (min(patch.ms.shape[axis] for patch in patches) for axis in (1, 2))
    moments = [patch.moments for patch in patches]
    mean = _column(np.stack([m.mean for m in moments]))
    std = _column(np.sqrt(np.stack([np.maximum(m.covariance.diagonal(), 1e-12) for m in moments])))
    pan_mean = _column(np.array([[m.pan_mean] for m in moments]))
    pan_std = _column(np.sqrt(np.array([[max(m.pan_variance, 1e-12)] for m in moments])))
    injection_gains = _column(np.stack([m.with_pan / max(m.pan_variance, 1e-12) for m in moments]))
    up, pan, pan_lowpass = (
        torch.stack([getattr(patch, name) for patch in patches]) for name in ("up", "pan", "pan_lowpass")
    )
    classical = high_pass_modulation(up, pan, pan_lowpass, injection_gains, mean - injection_gains * pan_mean, mean)
    targets = [patch.target for patch in patches if patch.target is not None]
    return PatchBatch(
        (up - mean) / std,
        (pan - pan_mean) / pan_std,
        (pan_lowpass - pan_mean) / pan_std,
        (classical - mean) / std,
        (torch.stack([patch.ms[:, :height, :width] for patch in patches]) - mean) / std,
        (torch.stack([patch.degraded_pan[:, :height, :width] for patch in patches]) - pan_mean) / pan_std,
        torch.stack([patch.row_filters[:, :height] for patch in patches]),
        torch.stack([patch.column_filters[:, :width] for patch in patches]),
        mean,
        std,
        pan_mean,
        pan_std,
        torch.stack([conditions(patch.mtf_gains, ratio) for patch in patches]),
        ratio,
        torch.tensor(list(scenes)),
        (torch.stack(targets) - mean) / std if targets else None,
    )


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[..., None, None]


@dataclass(frozen=True)
class _PatchAxis:
    """One axis of a patch: the MS samples and PAN pixels it needs, and its filters.

    Attributes:
        ms_first, ms_count: first and number of MS samples for the interpolation.
        pan_first, pan_count: first and number of PAN pixels under the filters of these samples.
        upsampling: interpolation (size, ms_count).
        mtf_filters: MTF filter for each gain (ms_count, pan_count).
        inner_mtf_filters: MTF filter for each gain, of samples whose filters lie within the patch (samples, size).
        first: the first of these samples.
    """

    ms_first: int
    ms_count: int
    pan_first: int
    pan_count: int
    upsampling: Tensor
    mtf_filters: tuple[Tensor, ...]
    inner_mtf_filters: tuple[Tensor, ...]
    first: int

    @classmethod
    def of(cls, axis: AxisTransform, start: int, size: int, gains: Sequence[float]) -> _PatchAxis:
        """The axis of ``size`` pixels from ``start`` on."""
        patch_axis = _patch_axis(axis.ratio, round(axis.origin - start, _PHASE_DIGITS), size, tuple(gains))
        return replace(patch_axis, pan_first=patch_axis.pan_first + start)


@functools.lru_cache(maxsize=512)
def _patch_axis(ratio: float, offset: float, size: int, gains: tuple[float, ...]) -> _PatchAxis:
    axis = AxisTransform(ratio, offset)
    ms_first, ms_count = filters.ms_support(axis, 0, size)
    pan_first, pan_count, mtf_filters = filters.downsampling_matrices(axis, ms_first, ms_count, gains)
    reach = max(filters.mtf_reach(gain, ratio) for gain in gains) + 2
    number = max(int((size - 2 * reach) / ratio), 1)
    first = math.ceil(axis.pan_to_ms(reach))
    inner_mtf_filters = []
    for gain in gains:
        begin, count = filters.pan_support(axis, first, number, gain)
        matrix = filters.downsampling_matrix(axis, first, number, gain)
        inner_mtf_filters.append(torch.nn.functional.pad(matrix, (begin, size - begin - count)))
    return _PatchAxis(
        ms_first,
        ms_count,
        pan_first,
        pan_count,
        filters.upsampling_matrix(axis, 0, size),
        mtf_filters,
        tuple(inner_mtf_filters),
        first,
    )


def _patch(
    rows: _PatchAxis,
    columns: _PatchAxis,
    ms: Tensor,
    pan: Tensor,
    inside: tuple[slice, ...],
    pan_filter: int,
    moments: BandMoments,
    mtf_gains: tuple[float, ...],
    target: Optional[Tensor],
) -> Patch:
    """The patch that lies ``inside`` a larger PAN; ``pan_filter`` is the number of PAN's own filter among the axes'."""
    bands = len(ms)
    pan_lowpass = filters.apply_separable(
        torch.stack(rows.mtf_filters[:bands]), pan, torch.stack(columns.mtf_filters[:bands])
    )
    first_row, first_column = rows.first - rows.ms_first, columns.first - columns.ms_first
    return Patch(
        filters.apply_separable(rows.upsampling, ms, columns.upsampling),
        pan[inside],
        filters.apply_separable(rows.upsampling, pan_lowpass, columns.upsampling),
        ms[:, first_row:, first_column:][:, : len(rows.inner_mtf_filters[0]), : len(columns.inner_mtf_filters[0])],
        filters.apply_separable(rows.inner_mtf_filters[pan_filter], pan[inside], columns.inner_mtf_filters[pan_filter]),
        torch.stack(list(rows.inner_mtf_filters[:bands])),
        torch.stack(list(columns.inner_mtf_filters[:bands])),
        moments,
        mtf_gains,
        target,
    )


def _quantile(planes: Tensor, share: float) -> Tensor:
    """Value below which this share of each plane's pixels lies (n, 1, 1)."""
    return planes.flatten(1).quantile(share, dim=1)[:, None, None]


def _mtf_degraded(
    planes: np.ndarray, x: AxisTransform, y: AxisTransform, shape: tuple[int, ...], gain: float
) -> np.ndarray:
    """Planes (n, H, W) filtered with an MTF gain, at the samples (n, h, w) of the axes; mirrored beyond the border."""
    left, width = filters.pan_support(x, 0, shape[1], gain)
    top, height = filters.pan_support(y, 0, shape[0], gain)
    wide = torch.from_numpy(_cut(planes, left, top, width, height))
    rows, columns = filters.downsampling_matrix(y, 0, shape[0], gain), filters.downsampling_matrix(x, 0, shape[1], gain)
    return filters.apply_separable(rows, wide, columns).numpy()


def _cut(planes: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """A window (n, height, width) of planes, float32; mirrored beyond the border."""
    rows, columns = _mirrored(y, height, planes.shape[1]), _mirrored(x, width, planes.shape[2])
    return np.ascontiguousarray(planes[:, rows][:, :, columns], np.float32)


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    index = np.arange(start, start + count) % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def _shifted(bands: Tensor, shifts: np.ndarray) -> Tensor:
    """Bands (c, h, w) shifted by fractions of a pixel (c, 2), with a Fourier transform."""
    height, width = bands.shape[1:]
    frequency_y = torch.fft.fftfreq(height)[:, None]
    frequency_x = torch.fft.rfftfreq(width)[None]
    moves = torch.from_numpy(shifts).float()
    phase = torch.exp(-2j * math.pi * (moves[:, 0, None, None] * frequency_y + moves[:, 1, None, None] * frequency_x))
    return torch.fft.irfft2(torch.fft.rfft2(bands) * phase, s=(height, width))


def valid_corners(valid: np.ndarray, size: int, step: int = 4) -> np.ndarray:
    """Upper left corners (n, 2), row and column, of valid windows of ``size`` pixels, on a lattice of ``step``."""
    height, width = valid.shape
    if height < size or width < size:
        return np.empty((0, 2), int)
    sums = np.pad(valid.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    rows, columns = np.nonzero(inside[::step, ::step] >= MIN_VALID_SHARE * size * size)
    return np.stack([rows * step, columns * step], axis=1)

"""Patches to train on, cut from scenes that are held in memory.

A ``Pairing`` is a scene as the sensor saw it, PAN and MS at their own scales: it has no truth, and is what the
network will work on. A ``Truth`` has PAN and bands on one grid: a pair one scale down (Wald's protocol), or a picture
whose PAN is a mixture of its bands. From it MS is made by the MTF, of any ratio and phase.
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
from clippan.fusion.methods import modulation
from clippan.learn.fusion.batch import Batch
from clippan.raster.grid import Axis

_DIGITS = 9  # of a phase in pixels
WHOLE = 0.999  # part of a patch, or of what a filter sees, that has to be valid


@dataclass(frozen=True)
class Moments:
    """First and second moments at the MS scale: bands (c,), their scatter with PAN filtered to that scale."""

    mean: np.ndarray
    covariance: np.ndarray
    pan_mean: float
    pan_variance: float
    with_pan: np.ndarray

    @classmethod
    def of(cls, bands: np.ndarray, pan: np.ndarray, valid: Optional[np.ndarray] = None) -> Moments:
        """Of bands (c, h, w) and PAN (h, w) where ``valid`` (h, w)."""
        chosen = np.ones(pan.shape, bool) if valid is None or not valid.any() else valid
        values = bands[:, chosen].astype(np.float64)
        mean, light = values.mean(axis=1), pan[chosen].astype(np.float64)
        pan_mean = float(light.mean())
        values -= mean[:, None]
        light = light - pan_mean
        count = len(light)
        return cls(mean, values @ values.T / count, pan_mean, float(light @ light) / count, values @ light / count)

    def mixed(self, mixture: Mixture) -> Moments:
        """Of what a mixture makes of the bands and PAN."""
        bands, part, share = mixture.bands, mixture.pan_part, mixture.pan_bands
        across = bands @ (part * self.with_pan + self.covariance @ share)
        return Moments(
            bands @ self.mean + mixture.offset,
            bands @ self.covariance @ bands.T,
            part * self.pan_mean + float(share @ self.mean) + mixture.pan_offset,
            part**2 * self.pan_variance + float(2 * part * share @ self.with_pan + share @ self.covariance @ share),
            across,
        )


@dataclass(frozen=True)
class Mixture:
    """How a patch is changed: its bands are ``bands`` (k, c) @ those of the scene + ``offset`` (k,), its PAN is
    ``pan_part`` of the scene's + ``pan_bands`` (c,) @ bands + ``pan_offset``; noise is in standard deviations."""

    bands: np.ndarray
    offset: np.ndarray
    pan_part: float
    pan_bands: np.ndarray
    pan_offset: float
    noise: float = 0.0
    pan_noise: float = 0.0

    @classmethod
    def choice(cls, chosen: Sequence[int], count: int) -> Mixture:
        """Some of ``count`` bands as they are."""
        return cls(np.eye(count)[list(chosen)], np.zeros(len(chosen)), 1.0, np.zeros(count), 0.0)


@dataclass(frozen=True)
class Patch:
    """One patch before it becomes part of a batch: arrays as in ``Batch``, in the units of the file."""

    up: Tensor
    pan: Tensor
    low: Tensor
    ms: Tensor
    pan_low: Tensor
    rows: Tensor
    columns: Tensor
    moments: Moments
    target: Optional[Tensor]

    def turned(self, number: int) -> Patch:
        """One of the eight views that mirroring and transposing make (0 to 7); the filters turn along."""

        def turn(image: Tensor) -> Tensor:
            if number & 1:
                image = image.flip(-2)
            if number & 2:
                image = image.flip(-1)
            return image.mT.contiguous() if number & 4 else image

        rows = self.rows.flip(-2, -1) if number & 1 else self.rows
        columns = self.columns.flip(-2, -1) if number & 2 else self.columns
        if number & 4:
            rows, columns = columns, rows
        up, pan, low, ms, pan_low = map(turn, (self.up, self.pan, self.low, self.ms, self.pan_low))
        target = None if self.target is None else turn(self.target)
        return Patch(up, pan, low, ms, pan_low, rows, columns, self.moments, target)


@dataclass
class Pairing:
    """PAN (H, W) and MS (c, h, w), float32, with the MS axes on PAN's grid (registered), where both are valid (h, w),
    and the sensor's gains."""

    name: str
    group: str
    pan: np.ndarray
    ms: np.ndarray
    x: Axis
    y: Axis
    valid: np.ndarray
    gains: tuple[float, ...]
    pan_gain: float
    moments: Moments = field(init=False)
    _corners: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moments = Moments.of(self.ms, self.pan_low(float(np.mean(self.gains))), self.valid)

    def pan_low(self, gain: float) -> np.ndarray:
        """PAN filtered with a gain, at the MS samples (h, w)."""
        return _degraded(self.pan[None], self.x, self.y, self.ms.shape[1:], gain)[0]

    def truth(self, pan_gain: float) -> Truth:
        """One scale down: MS is the truth, and PAN is brought to its grid."""
        return Truth(self.name, self.group, self.pan_low(pan_gain), self.ms, self.valid, self.gains, made=False)

    def inside(self) -> np.ndarray:
        """Which pixels of PAN lie in a valid sample of MS (H, W)."""
        found = []
        for axis, pixels, samples in zip((self.y, self.x), self.pan.shape, self.valid.shape):
            index = np.floor((np.arange(pixels) + 0.5 - axis.offset) / axis.ratio).astype(int)
            found.append((index.clip(0, samples - 1), (index >= 0) & (index < samples)))
        (rows, down), (columns, across) = found
        return np.asarray(self.valid[rows][:, columns] & down[:, None] & across)

    def patches(self, rng: np.random.Generator, count: int, size: int, bands: Sequence[int]) -> list[Patch]:
        """Patches of ``size`` PAN pixels at valid places; empty if the scene is too small."""
        size_ms = math.ceil(size / self.x.ratio)
        if size_ms not in self._corners:
            self._corners[size_ms] = places(self.valid, size_ms)
        corners = self._corners[size_ms]
        if not len(corners):
            return []
        found = []
        for row, column in corners[rng.integers(len(corners), size=count)]:
            start_y = round(self.y.to_output(float(row)) - self.y.ratio / 2 + 0.5)
            start_x = round(self.x.to_output(float(column)) - self.x.ratio / 2 + 0.5)
            found.append(self._patch(start_x, start_y, (size, size), bands))
        return found

    def all(self) -> Patch:
        """Everything as one patch, invalid places too."""
        height, width = self.pan.shape
        return self._patch(0, 0, (height, width), range(len(self.ms)))

    def _patch(self, x: int, y: int, size: tuple[int, int], bands: Sequence[int]) -> Patch:
        gains = [self.gains[band] for band in bands]
        sides = [
            _Side.of(axis, start, length, (*gains, self.pan_gain))
            for axis, start, length in ((self.y, y, size[0]), (self.x, x, size[1]))
        ]
        rows, columns = sides
        ms = torch.from_numpy(_cut(self.ms[list(bands)], columns.ms, rows.ms, columns.ms_count, rows.ms_count))
        wide = torch.from_numpy(_cut(self.pan[None], columns.pan, rows.pan, columns.pan_count, rows.pan_count))
        inner = _inner(sides)
        pan = wide[:, y - rows.pan :, x - columns.pan :][:, : size[0], : size[1]]
        return Patch(
            filters.separable(rows.up, ms, columns.up),
            pan,
            _low(sides, wide, len(gains)),
            ms[:, inner[0], :][:, :, inner[1]],
            filters.separable(rows.inner[-1], pan, columns.inner[-1]),
            torch.stack(list(rows.inner[:-1])),
            torch.stack(list(columns.inner[:-1])),
            self.moments.mixed(Mixture.choice(bands, len(self.ms))),
            None,
        )


@dataclass
class Truth:
    """PAN (H, W) and bands (c, H, W) on one grid, float32, where both are valid, and the bands' gains; ``made`` if PAN
    is nothing but a mixture of the bands."""

    name: str
    group: str
    pan: np.ndarray
    bands: np.ndarray
    valid: np.ndarray
    gains: tuple[float, ...]
    made: bool = True
    _moments: dict[float, Moments] = field(default_factory=dict)
    _corners: dict[int, np.ndarray] = field(default_factory=dict)

    def moments(self, ratio: float) -> Moments:
        """Moments at the scale that is ``ratio`` coarser."""
        if ratio not in self._moments:
            axis, gain = Axis(ratio, 0.0), float(np.mean(self.gains))
            shape = (int(self.pan.shape[0] / ratio), int(self.pan.shape[1] / ratio))
            low = _degraded(np.concatenate([self.bands, self.pan[None], self.valid[None]]), axis, axis, shape, gain)
            self._moments[ratio] = Moments.of(low[:-2], low[-2], low[-1] > WHOLE)
        return self._moments[ratio]

    def reduced(self, ratio: float, pan_gain: float) -> Pairing:
        """The pair that the MTF makes of it."""
        axis = Axis(ratio, 0.0)
        shape = tuple(int(length / ratio) for length in self.pan.shape)
        bands = [_degraded(band[None], axis, axis, shape, gain)[0] for band, gain in zip(self.bands, self.gains)]
        valid = _degraded(self.valid[None].astype(np.float32), axis, axis, shape, float(np.mean(self.gains)))[0]
        ms = np.stack(bands)
        return Pairing(self.name, self.group, self.pan, ms, axis, axis, valid > WHOLE, self.gains, pan_gain)

    def fits(self, size: int) -> bool:
        """Whether a patch of ``size`` pixels lies somewhere."""
        return min(self.pan.shape) >= size and len(self._places(size)) > 0

    def _places(self, size: int) -> np.ndarray:
        if size not in self._corners:
            self._corners[size] = places(self.valid, min(size, *self.pan.shape), 8)
        return self._corners[size]

    def patch(
        self,
        rng: np.random.Generator,
        size: int,
        ratio: float,
        phases: np.ndarray,
        gains: Sequence[float],
        true_gains: Sequence[float],
        shifts: np.ndarray,
        mixture: Mixture,
    ) -> Optional[Patch]:
        """A patch with MS made from the truth; None if the scene is too small.

        Args:
            rng: chooses place and noise.
            size: pixels.
            ratio: to make MS by.
            phases: of MS's rows and columns in the patch, in pixels.
            gains: what the MTF is taken for, by band of the result.
            true_gains: the MTF that made MS.
            shifts: by which the bands of MS are off (bands, 2), rows and columns, in pixels.
            mixture: which bands.
        """
        corners = self._places(size)
        if not len(corners):
            return None
        row, column = corners[rng.integers(len(corners))]
        count = len(gains)
        sides = [
            _Side.of(Axis(ratio, start + at), int(start), size, (*gains, *true_gains))
            for start, at in zip((row, column), phases)
        ]
        rows, columns = sides
        wide_bands = _cut(self.bands, columns.pan, rows.pan, columns.pan_count, rows.pan_count)
        wide_pan = _cut(self.pan[None], columns.pan, rows.pan, columns.pan_count, rows.pan_count)
        light = (
            mixture.pan_part * wide_pan[0]
            + np.tensordot(mixture.pan_bands.astype(np.float32), wide_bands, 1)
            + mixture.pan_offset
        )
        wide = torch.from_numpy(light.astype(np.float32))[None]
        bands = np.tensordot(mixture.bands.astype(np.float32), wide_bands, 1) + mixture.offset[:, None, None]
        source = torch.from_numpy(bands.astype(np.float32))
        seen = _shifted(source, shifts) if shifts.any() else source
        ms = filters.separable(torch.stack(rows.downs[count:]), seen, torch.stack(columns.downs[count:]))
        moments = self.moments(ratio).mixed(mixture)
        if mixture.noise:
            spread = torch.from_numpy(np.sqrt(moments.covariance.diagonal())).float()[:, None, None]
            ms = ms + mixture.noise * spread * torch.from_numpy(rng.standard_normal(ms.shape, np.float32))
        if mixture.pan_noise:
            noise = torch.from_numpy(rng.standard_normal(wide.shape, np.float32))
            wide = wide + mixture.pan_noise * math.sqrt(moments.pan_variance) * noise
        top, left = int(row) - rows.pan, int(column) - columns.pan
        inside = (slice(None), slice(top, top + size), slice(left, left + size))
        inner = _inner(sides)
        pan = wide[inside]
        return Patch(
            filters.separable(rows.up, ms, columns.up),
            pan,
            _low(sides, wide, count),
            ms[:, inner[0], :][:, :, inner[1]],
            filters.separable(rows.inner[0], pan, columns.inner[0]),
            torch.stack(list(rows.inner[:count])),
            torch.stack(list(columns.inner[:count])),
            moments,
            source[inside],
        )


def collate(patches: Sequence[Patch], scenes: Sequence[int], ratio: float) -> Batch:
    """Patches of one size, ratio and number of bands as a batch.

    Sensors whose MTFs reach further have fewer samples inside a patch; the batch holds as many as all of them have.
    """
    height, width = (min(patch.ms.shape[axis] for patch in patches) for axis in (1, 2))
    moments = [patch.moments for patch in patches]
    mean = _column(np.stack([m.mean for m in moments]))
    std = _column(np.sqrt(np.stack([np.maximum(m.covariance.diagonal(), 1e-12) for m in moments])))
    pan_mean = _column(np.array([[m.pan_mean] for m in moments]))
    pan_std = _column(np.sqrt(np.array([[max(m.pan_variance, 1e-12)] for m in moments])))
    gains = _column(np.stack([m.with_pan / max(m.pan_variance, 1e-12) for m in moments]))
    up, pan, low = (torch.stack([getattr(patch, name) for patch in patches]) for name in ("up", "pan", "low"))
    classical = modulation(up, pan, low, gains, mean - gains * pan_mean, mean)
    targets = [patch.target for patch in patches if patch.target is not None]
    return Batch(
        (up - mean) / std,
        (pan - pan_mean) / pan_std,
        (low - pan_mean) / pan_std,
        (classical - mean) / std,
        (torch.stack([patch.ms[:, :height, :width] for patch in patches]) - mean) / std,
        (torch.stack([patch.pan_low[:, :height, :width] for patch in patches]) - pan_mean) / pan_std,
        torch.stack([patch.rows[:, :height] for patch in patches]),
        torch.stack([patch.columns[:, :width] for patch in patches]),
        mean,
        std,
        pan_mean,
        pan_std,
        ratio,
        torch.tensor(list(scenes)),
        (torch.stack(targets) - mean) / std if targets else None,
    )


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[..., None, None]


@dataclass(frozen=True)
class _Side:
    """One axis of a patch: the MS samples and PAN pixels it needs, and its filters.

    Attributes:
        ms, ms_count: samples for the interpolation.
        pan, pan_count: pixels for these samples.
        up: interpolation (size, ms_count).
        downs: for each gain (ms_count, pan_count).
        inner: for each gain, from the patch's own pixels (samples, size).
        first: the first of these samples.
    """

    ms: int
    ms_count: int
    pan: int
    pan_count: int
    up: Tensor
    downs: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]
    first: int

    @classmethod
    def of(cls, axis: Axis, start: int, size: int, gains: Sequence[float]) -> _Side:
        """Of the pixels from ``start`` on."""
        side = _side(axis.ratio, round(axis.offset - start, _DIGITS), size, tuple(gains))
        return replace(side, pan=side.pan + start)


@functools.lru_cache(maxsize=512)
def _side(ratio: float, offset: float, size: int, gains: tuple[float, ...]) -> _Side:
    axis = Axis(ratio, offset)
    ms, ms_count = filters.ms_support(axis, 0, size)
    pan, pan_count, downs = filters.down_matrices(axis, ms, ms_count, gains)
    reach = max(filters.mtf_reach(gain, ratio) for gain in gains) + 2
    number = max(int((size - 2 * reach) / ratio), 1)
    first = math.ceil(axis.to_ms(reach))
    inner = []
    for gain in gains:
        begin, count = filters.pan_support(axis, first, number, gain)
        matrix = filters.down_matrix(axis, first, number, gain)
        inner.append(torch.nn.functional.pad(matrix, (begin, size - begin - count)))
    return _Side(ms, ms_count, pan, pan_count, filters.up_matrix(axis, 0, size), downs, tuple(inner), first)


def _inner(sides: Sequence[_Side]) -> tuple[slice, slice]:
    """Which samples, of those for the interpolation, the patch's own pixels make."""
    rows, columns = (slice(side.first - side.ms, side.first - side.ms + len(side.inner[0])) for side in sides)
    return rows, columns


def _low(sides: Sequence[_Side], pan: Tensor, bands: int) -> Tensor:
    rows, columns = sides
    down = filters.separable(torch.stack(rows.downs[:bands]), pan, torch.stack(columns.downs[:bands]))
    return filters.separable(rows.up, down, columns.up)


def _degraded(planes: np.ndarray, x: Axis, y: Axis, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Planes (n, H, W) filtered with a gain, at the samples (n, h, w) of the axes; beyond the border they are
    mirrored."""
    left, width = filters.pan_support(x, 0, shape[1], gain)
    top, height = filters.pan_support(y, 0, shape[0], gain)
    wide = torch.from_numpy(_cut(planes, left, top, width, height))
    rows, columns = filters.down_matrix(y, 0, shape[0], gain), filters.down_matrix(x, 0, shape[1], gain)
    return filters.separable(rows, wide, columns).numpy()


def _cut(planes: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """A window (n, height, width), float32; beyond the border the planes are mirrored."""
    rows, columns = _mirrored(y, height, planes.shape[1]), _mirrored(x, width, planes.shape[2])
    return np.ascontiguousarray(planes[:, rows][:, :, columns], np.float32)


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    index = np.arange(start, start + count) % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def _shifted(bands: Tensor, shifts: np.ndarray) -> Tensor:
    """Bands (c, h, w) moved by sub-pixel shifts (c, 2), by their spectrum."""
    height, width = bands.shape[1:]
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.rfftfreq(width)[None]
    moves = torch.from_numpy(shifts).float()
    turn = torch.exp(-2j * math.pi * (moves[:, 0, None, None] * down + moves[:, 1, None, None] * across))
    return torch.fft.irfft2(torch.fft.rfft2(bands) * turn, s=(height, width))


def places(valid: np.ndarray, size: int, step: int = 4) -> np.ndarray:
    """Corners (n, 2), row and column, of windows that are valid."""
    height, width = valid.shape
    if height < size or width < size:
        return np.empty((0, 2), int)
    sums = np.pad(valid.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    rows, columns = np.nonzero(inside[::step, ::step] >= WHOLE * size * size)
    return np.stack([rows * step, columns * step], axis=1)

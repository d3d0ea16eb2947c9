"""Cubic interpolation to PAN's grid and MTF filtering to the multispectral grid, as matrices.

Both are separable, so a block is filtered by one matrix from the left and one from the right. The matrices hold the
exact position of every sample, for any ratio and offset of the grids, and products of one fixed shape give the same
numbers wherever a block lies. Only what lies near their diagonals is multiplied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np
import torch

from clippan.raster.grid import AxisTransform
from clippan.raster.tiles import Window

MARGIN = 4  # multispectral samples read beyond a block: 2 for the cubic kernel, 2 for filling invalid samples
_KAISER_BETA = 0.5
_LONG = 400  # rows from which a matrix is worth being cut into parts for one product
_WIDENING_ROWS, _NARROWING_ROWS = 16, 8  # of a part of a matrix with more rows than columns, or fewer
_PHASE_DIGITS = 9  # decimals of a phase in pixels; float64 has noise beyond


@dataclass(frozen=True, order=True)
class BandMtf:
    """MTF gain and position of a multispectral band.

    Attributes:
        gain: MTF gain at the multispectral Nyquist frequency, 0 to 1.
        shift_x, shift_y: shift of its samples to the right and down from the multispectral axes, in output pixels.
    """

    gain: float
    shift_x: float = 0.0
    shift_y: float = 0.0


def distinct_mtfs(
    mtf_gains: Sequence[float], band_shifts: Sequence[tuple[float, float]]
) -> tuple[list[BandMtf], list[int]]:
    """The distinct MTFs of the bands, and the index among them of each band's.

    Args:
        mtf_gains: MTF gain of each band.
        band_shifts: shift (x, y) of each band in output pixels; empty if there are none.
    """
    mtfs = [
        BandMtf(mtf_gain, x, y) for mtf_gain, (x, y) in zip(mtf_gains, band_shifts or [(0.0, 0.0)] * len(mtf_gains))
    ]
    distinct = sorted(set(mtfs))
    return distinct, [distinct.index(mtf) for mtf in mtfs]


def mtf_sigma(mtf_gain: float, ratio: float) -> float:
    """Standard deviation, in output pixels, of the Gaussian whose frequency response is ``mtf_gain`` (0 to 1) at the
    Nyquist frequency of a grid ``ratio`` times coarser (Aiazzi et al. 2006: MTF-tailored filters)."""
    return ratio * math.sqrt(-2 * math.log(mtf_gain)) / math.pi


def mtf_reach(mtf_gain: float, ratio: float) -> int:
    """Half width of the MTF filter in output pixels: 20 (41 taps) up to ratio 4, in proportion beyond, and at most five
    standard deviations, where the Gaussian has fallen to 4e-6."""
    return min(math.ceil(5 * mtf_sigma(mtf_gain, ratio)), math.ceil(20 * max(1.0, ratio / 4)))


def mtf_kernel(mtf_gain: float, ratio: float) -> np.ndarray:
    """Taps of the separable MTF filter centred on a pixel; sum 1 (Gaussian under a Kaiser window, β 0.5)."""
    reach = mtf_reach(mtf_gain, ratio)
    return mtf_weights(np.arange(-reach, reach + 1.0), mtf_gain, ratio)


@functools.lru_cache(maxsize=64)
def mtf_matrix(mtf_gain: float, ratio: float, count: int, reach: int) -> torch.Tensor:
    """The MTF filter as a matrix (count, count + 2 reach), float32; taps beyond ``reach`` are cut off."""
    kernel = mtf_kernel(mtf_gain, ratio)
    offsets = np.arange(count + 2 * reach) - np.arange(reach, reach + count)[:, None] + len(kernel) // 2
    inside = (offsets >= 0) & (offsets < len(kernel))
    matrix = np.where(inside, kernel[offsets.clip(0, len(kernel) - 1)], 0.0)
    return torch.from_numpy(matrix / matrix.sum(axis=1, keepdims=True)).float()


def mtf_weights(distance: np.ndarray, mtf_gain: float, ratio: float) -> np.ndarray:
    """Weights of the MTF filter at distances in output pixels from its centre; sum 1 along the last axis."""
    reach = mtf_reach(mtf_gain, ratio) + 0.5
    sigma = mtf_sigma(mtf_gain, ratio)
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / reach) ** 2, 0, None))) / np.i0(_KAISER_BETA)
    weights = np.where(np.abs(distance) <= reach, window * np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def cubic_kernel(distance: np.ndarray) -> np.ndarray:
    """Weights at distances in samples by cubic convolution (Keys 1981) with a = -3/4, which on the development pairs
    has better Q2n, SAM, ERGAS and HQNR than -1/2."""
    d = np.abs(distance)
    inner = (1.25 * d - 2.25) * d * d + 1
    outer = ((-0.75 * d + 3.75) * d - 6) * d + 3
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))


def ms_support(axis: AxisTransform, start: int, count: int, max_shift: float = 0.0) -> tuple[int, int]:
    """First and number of the multispectral samples that a block of ``count`` output pixels needs.

    The number depends on ``count`` only, so that all blocks have matrices of the same shape. ``max_shift`` is the
    largest shift of a band in output pixels.
    """
    margin = MARGIN + math.ceil(max_shift / axis.ratio)
    ms_first = math.floor(axis.pan_to_ms(start)) - margin + 1
    return ms_first, math.ceil(count / axis.ratio) + 2 * margin


def pan_support(axis: AxisTransform, ms_first: int, ms_count: int, mtf_gain: float) -> tuple[int, int]:
    """First and number of the output pixels that the MTF filter needs for these multispectral samples."""
    reach = mtf_reach(mtf_gain, axis.ratio) + 1
    start = math.floor(axis.ms_to_pan(ms_first)) - reach
    return start, math.ceil(ms_count * axis.ratio) + 2 * reach


def upsampling_matrix(axis: AxisTransform, start: int, count: int) -> torch.Tensor:
    """Interpolation matrix (count, number of ``ms_support``), float32, from multispectral samples to output pixels."""
    ms_first, ms_count = ms_support(axis, start, count)
    return _cubic_matrix(axis.ratio, round(axis.pan_to_ms(start) - ms_first, _PHASE_DIGITS), count, ms_count)


def upsampling_bank(
    axis: AxisTransform, start: int, count: int, shifts: Sequence[float] = (), max_shift: float = 0.0, cell: int = 1
) -> BandMatrix:
    """``upsampling_matrix`` for bands that are shifted by ``shifts`` output pixels, a stack if there is more than one,
    where ``max_shift`` is the largest shift of any band; with ``cell``, the means of that many output pixels."""
    ms_first, ms_count = ms_support(axis, start, count, max_shift)
    phases = [round(axis.shifted(shift).pan_to_ms(start) - ms_first, _PHASE_DIGITS) for shift in shifts or [0.0]]
    return _cubic_bands(axis.ratio, tuple(phases), count, ms_count, cell)


@dataclass(frozen=True)
class BandMatrix:
    """A matrix, or a stack of matrices, whose rows are 0 but near the diagonal, multiplied without most of its zeros.

    Consecutive rows make a part, with the columns in which one of them is not 0. Parts have one shape, so that one
    call multiplies all.

    Attributes:
        parts: (parts, rows, columns), or (matrices, parts, rows, columns) for a stack.
        columns: index of each column of each part in the whole matrix (parts * columns,), the same for a whole stack.
        shape: of the matrix (rows, columns).
    """

    parts: torch.Tensor
    columns: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, dense: torch.Tensor) -> BandMatrix:
        """Of a matrix (rows, columns) or a stack (matrices, rows, columns)."""
        count, width = dense.shape[-2:]
        rows = _WIDENING_ROWS if count > width else _NARROWING_ROWS
        dense = torch.nn.functional.pad(dense, (0, 0, 0, -count % rows)).unflatten(-2, (-1, rows))
        used = (dense != 0).any(dim=-2).view(-1, dense.shape[-3], width).any(dim=0).int()  # (parts, columns)
        first, last = used.argmax(dim=1), width - 1 - used.flip(1).argmax(dim=1)
        length = int((last - first).max()) + 1
        columns = first.clamp(max=width - length)[:, None] + torch.arange(length, device=dense.device)
        index = columns[:, None].expand(*dense.shape[:-1], length)
        return cls(dense.gather(-1, index), columns.flatten(), (count, width))

    def to(self, device: torch.device) -> BandMatrix:
        """With its tensors on a device."""
        if self.parts.device == device:
            return self
        return BandMatrix(self.parts.to(device), self.columns.to(device), self.shape)

    def strips(self, rows: int) -> Iterator[tuple[int, BandMatrix]]:
        """The matrix in strips of consecutive rows, with the first row of each: whole parts of about ``rows`` rows."""
        count, part_rows, length = self.parts.shape[-3:]
        step = max(rows // part_rows, 1)
        for part in range(0, count, step):
            first = part * part_rows
            parts = self.parts[..., part : part + step, :, :]
            shape = min(step * part_rows, self.shape[0] - first), self.shape[1]
            yield first, BandMatrix(parts, self.columns[part * length : (part + step) * length], shape)

    @functools.cached_property
    def _joint_parts(self) -> torch.Tensor:
        """Parts of all matrices of a stack one below the other (parts, matrices * rows, columns)."""
        return self.parts.transpose(0, 1).flatten(1, 2)

    def filter_rows(self, values: torch.Tensor) -> torch.Tensor:
        """The product with values (..., columns, n): (..., rows, n). Of a stack, with values (columns, n) or
        (matrices, columns, n): (matrices, rows, n)."""
        count, rows, length = self.parts.shape[-3:]
        pieces = values.index_select(-2, self.columns)
        pieces = pieces.view(*pieces.shape[:-2], count, length, pieces.shape[-1])
        if self.parts.dim() == 4 and values.dim() == 2:
            # One product for all matrices of the stack.
            product = torch.bmm(self._joint_parts, pieces).view(count, -1, rows, pieces.shape[-1]).transpose(0, 1)
        else:
            product = torch.matmul(self.parts, pieces)
        return product.flatten(-3, -2)[..., : self.shape[0], :]

    def filter_columns(self, values: torch.Tensor) -> torch.Tensor:
        """The same along the last axis: values (..., n, columns) to (..., n, rows)."""
        if self.parts.dim() == 4:
            return self.filter_rows(values.mT).mT
        count, _, length = self.parts.shape
        pieces = values.reshape(-1, values.shape[-1]).index_select(-1, self.columns).view(-1, count, length)
        product = torch.bmm(pieces.transpose(0, 1), self.parts.mT).transpose(0, 1).flatten(1)
        return product[:, : self.shape[0]].unflatten(0, values.shape[:-1])


@dataclass(frozen=True)
class Upsampling:
    """Interpolation of multispectral bands to a block of output pixels, along one axis.

    Attributes:
        ms_first, ms_count: the multispectral samples that it needs.
        matrix: interpolation (count, ms_count), or one for each band if they have shifts.
        nearest: index among the samples of the one that each pixel lies in, (count,) or (bands, count).
    """

    ms_first: int
    ms_count: int
    matrix: BandMatrix
    nearest: torch.Tensor

    @classmethod
    def of(cls, axis: AxisTransform, start: int, count: int, shifts: Sequence[float] = ()) -> Upsampling:
        """For ``count`` output pixels from ``start`` on; ``shifts`` of the bands in output pixels, if there are any."""
        max_shift = largest_shift(shifts)
        ms_first, ms_count = ms_support(axis, start, count, max_shift)
        pixels = np.arange(start, start + count) + 0.5
        nearest = [
            torch.from_numpy(np.floor((pixels - axis.shifted(shift).origin) / axis.ratio).astype(np.int64) - ms_first)
            for shift in shifts or [0.0]
        ]
        matrix = upsampling_bank(axis, start, count, shifts, max_shift)
        return cls(ms_first, ms_count, matrix, torch.stack(nearest) if len(nearest) > 1 else nearest[0])

    def to(self, device: torch.device) -> Upsampling:
        """With its tensors on a device."""
        return Upsampling(self.ms_first, self.ms_count, self.matrix.to(device), self.nearest.to(device))


def largest_shift(shifts: Sequence[float]) -> float:
    """The largest absolute shift; 0 without any."""
    return max((abs(shift) for shift in shifts), default=0.0)


def downsampling_matrix(axis: AxisTransform, ms_first: int, ms_count: int, mtf_gain: float) -> torch.Tensor:
    """MTF filter and decimation matrix (ms_count, count of ``pan_support``), float32, from output pixels to
    multispectral samples at their exact centres."""
    start, count = pan_support(axis, ms_first, ms_count, mtf_gain)
    return _mtf_decimation(
        axis.ratio, round(axis.ms_to_pan(ms_first) - start, _PHASE_DIGITS), ms_count, count, mtf_gain
    )


def area_matrix(axis: AxisTransform, ms_first: int, ms_count: int, start: int, count: int) -> torch.Tensor:
    """Shares (ms_count, count), 0 to 1, float32, of each of ``count`` output pixels from ``start`` on that lie in each
    multispectral pixel."""
    pixels = np.arange(start, start + count)
    left = (np.arange(ms_first, ms_first + ms_count) * axis.ratio + axis.origin)[:, None]
    overlap = np.minimum(left + axis.ratio, pixels + 1) - np.maximum(left, pixels)
    return torch.from_numpy(np.round(overlap.clip(0, 1), _PHASE_DIGITS).astype(np.float32))


def downsampling_matrices(
    axis: AxisTransform, ms_first: int, ms_count: int, mtf_gains: Sequence[float], shifts: Sequence[float] = ()
) -> tuple[int, int, tuple[torch.Tensor, ...]]:
    """``downsampling_matrix`` for several gains on the window of the widest filter.

    Args:
        axis, ms_first, ms_count: as of ``downsampling_matrix``.
        mtf_gains: MTF gain of each filter.
        shifts: shift of each filter's samples in output pixels; by default none.

    Returns:
        First and number of the window's output pixels, and a matrix (ms_count, count) for each gain.
    """
    shifted = [(axis.shifted(shift), mtf_gain) for mtf_gain, shift in zip(mtf_gains, shifts or [0.0] * len(mtf_gains))]
    spans = [pan_support(own_axis, ms_first, ms_count, mtf_gain) for own_axis, mtf_gain in shifted]
    start = min(begin for begin, _ in spans)
    count = max(begin + length for begin, length in spans) - start
    matrices = tuple(
        torch.nn.functional.pad(
            downsampling_matrix(own_axis, ms_first, ms_count, mtf_gain), (begin - start, start + count - begin - length)
        )
        for (own_axis, mtf_gain), (begin, length) in zip(shifted, spans)
    )
    return start, count, matrices


def mtf_bank(
    axis: AxisTransform, ms_first: int, ms_count: int, mtf_gains: Sequence[float], shifts: Sequence[float] = ()
) -> tuple[int, int, BandMatrix]:
    """``downsampling_matrices`` as one stack, to use many times.

    Returns:
        First and number of the window's output pixels, and the stack of (ms_count, count) for each gain.
    """
    position = round(axis.ms_to_pan(ms_first), _PHASE_DIGITS)
    pixel = math.floor(position)
    phase = round(position - pixel, _PHASE_DIGITS)
    start, count, bank = _mtf_bank(axis.ratio, phase, ms_count, tuple(mtf_gains), tuple(shifts))
    return pixel + start, count, bank


def oversampled_matrix(
    axis: AxisTransform, first: float, number: int, steps: int, mtf_gain: float
) -> tuple[int, BandMatrix]:
    """MTF filter and decimation to a lattice denser than MS.

    Args:
        axis: the axis of MS.
        first: the first position, a fractional multispectral index.
        number, steps: number of positions, in total and per multispectral sample.
        mtf_gain: at the multispectral Nyquist frequency, 0 to 1.

    Returns:
        The first output pixel needed, and the matrix (number, output pixels), float32.
    """
    reach = mtf_reach(mtf_gain, axis.ratio) + 1
    begin, end = (round(axis.ms_to_pan(index), _PHASE_DIGITS) for index in (first, first + (number - 1) / steps))
    start = math.floor(begin) - reach
    count = math.ceil(end) + reach + 1 - start
    return start, _oversampled(axis.ratio, round(begin - start, _PHASE_DIGITS), number, count, mtf_gain, steps)


# Cached by the phase of the first sample: blocks of a grid with an integer ratio share one matrix.
@functools.lru_cache(maxsize=256)
def _cubic_matrix(ratio: float, phase: float, count: int, number: int) -> torch.Tensor:
    positions = phase + np.arange(count) / ratio
    return torch.from_numpy(cubic_kernel(positions[:, None] - np.arange(number)).astype(np.float32))


@functools.lru_cache(maxsize=256)
def _cubic_bands(ratio: float, phases: tuple[float, ...], count: int, number: int, cell: int) -> BandMatrix:
    matrices = [_cubic_matrix(ratio, phase, count, number).unflatten(0, (-1, cell)).mean(dim=1) for phase in phases]
    return BandMatrix.of(torch.stack(matrices) if len(matrices) > 1 else matrices[0])


@functools.lru_cache(maxsize=256)
def _mtf_bank(
    ratio: float, phase: float, ms_count: int, mtf_gains: tuple[float, ...], shifts: tuple[float, ...]
) -> tuple[int, int, BandMatrix]:
    axis = AxisTransform(ratio, phase + 0.5 - 0.5 * ratio)  # whose first sample lies at the phase
    start, count, matrices = downsampling_matrices(axis, 0, ms_count, mtf_gains, shifts)
    return start, count, BandMatrix.of(torch.stack(matrices))


@functools.lru_cache(maxsize=256)
def _oversampled(ratio: float, phase: float, number: int, count: int, mtf_gain: float, steps: int) -> BandMatrix:
    return BandMatrix.of(_mtf_decimation(ratio, phase, number, count, mtf_gain, steps))


@functools.lru_cache(maxsize=2048)
def _mtf_decimation(
    ratio: float, phase: float, number: int, count: int, mtf_gain: float, steps: int = 1
) -> torch.Tensor:
    centres = phase + np.arange(number) * (ratio / steps)
    return torch.from_numpy(mtf_weights(np.arange(count) - centres[:, None], mtf_gain, ratio).astype(np.float32))


def inside(window: Window, area: Window) -> torch.Tensor:
    """Pixels of a window that lie in an area, (height, width) bool."""
    rows = torch.arange(window.y - area.y, window.y - area.y + window.height)
    columns = torch.arange(window.x - area.x, window.x - area.x + window.width)
    return ((rows >= 0) & (rows < area.height))[:, None] & (columns >= 0) & (columns < area.width)


def gather(planes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Values (bands, m, n) of planes (bands, h, w) at rows (m,) and columns (n,), or at those of each band, (bands, m)
    and (bands, n)."""
    if rows.dim() == 1:
        return planes[:, rows][:, :, columns]
    band = torch.arange(len(planes), device=planes.device)
    return planes[band[:, None, None], rows[:, :, None], columns[:, None, :]]


def apply_separable(
    rows: Union[torch.Tensor, BandMatrix], values: torch.Tensor, columns: Union[torch.Tensor, BandMatrix]
) -> torch.Tensor:
    """Values (..., h, w) multiplied by ``rows`` (m, h) and ``columns`` (n, w), or by one pair per plane (..., m, h) and
    (..., n, w); gives (..., m, n)."""
    if isinstance(rows, torch.Tensor) or isinstance(columns, torch.Tensor):
        return _product(rows, _product(columns, values.mT).mT)
    if rows.shape[0] < rows.shape[1]:  # what makes the values fewer comes first
        return columns.filter_columns(rows.filter_rows(values))
    return rows.filter_rows(columns.filter_columns(values))


def _product(matrix: Union[torch.Tensor, BandMatrix], values: torch.Tensor) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor):
        if matrix.shape[-2] < _LONG or matrix.dim() > 3:
            return torch.matmul(matrix, values)
        matrix = BandMatrix.of(matrix)
    return matrix.filter_rows(values)


def fill_invalid(values: torch.Tensor, valid: torch.Tensor, default: torch.Tensor) -> torch.Tensor:
    """Replaces invalid samples by the Gaussian mean of valid ones at most two samples away, or else by the default.

    Samples further away do not affect valid output pixels.

    Args:
        values, valid: (bands, height, width), the latter bool.
        default: (bands,).
    """
    kernel = torch.from_numpy(np.exp(-0.5 * np.arange(-2.0, 3.0) ** 2).astype(np.float32)).to(values)

    def smooth(plane: torch.Tensor) -> torch.Tensor:
        plane = torch.nn.functional.conv2d(plane[:, None], kernel.view(1, 1, 5, 1), padding=(2, 0))
        return torch.nn.functional.conv2d(plane, kernel.view(1, 1, 1, 5), padding=(0, 2))[:, 0]

    clean = torch.where(valid, values, torch.zeros_like(values))
    weight = smooth(valid.to(values.dtype))
    local = torch.where(weight > 1e-6, smooth(clean) / weight.clamp(min=1e-6), default[:, None, None])
    return torch.where(valid, values, local)

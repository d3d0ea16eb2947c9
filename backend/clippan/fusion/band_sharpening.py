"""Coarse bands sharpened with fine ones.

Around every coarse pixel the fine bands explain a coarse band by a regression (``guide``). With its coefficients,
interpolated, the band takes what the fine bands hold beyond their low-pass version: generalised Laplacian pyramid with
MTF-matched filters (Aiazzi et al. 2006), with several bands in place of PAN. Then the radiometry is restored by
back-projection (Irani and Peleg 1991): the result, seen as the coarse band's sensor sees it, is the coarse band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.fusion import filters
from clippan.fusion.fuse import integer_range, nearest_other_value
from clippan.fusion.guide import (
    HIGH_PASS_SIGMA,
    MIN_WEIGHT,
    REGRESSION_SIGMA,
    Guide,
    filter_fine,
    gaussian_reach,
)
from clippan.jobs.options import Radiometry
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

# Edge of the blocks in output pixels, a multiple of that of the file's. Blocks lie on a lattice that starts at the
# output's first pixel, so that a pixel is computed by the same operations however the work is shared.
BLOCK, _BLOCK_OF_LARGE_RATIOS, _LEAST_BLOCK = 512, 1024, 256
_LARGE_RATIO = 4
_BLOCK_BYTES = 128 * 2**20  # of a block's output; blocks of hundreds of bands are smaller
_PART_BYTES = 256 * 2**20  # of what is held while bands of a block are sharpened, which are taken a part at a time
# Bytes for each band that are held at a time: for a fine pixel, and for a coarse pixel and a fine band.
_FINE_BYTES, _COARSE_BYTES = 16, 48
_BACK_PROJECTIONS = 1  # which bring nearly all that more would, and less of the noise
_EXACT_STEPS = 3  # that make the mean over each pixel's area exact


@dataclass
class BandSharpener:
    """Sharpens blocks of coarse bands of one pixel size.

    Attributes:
        pair: the fine bands as ``pan``, the coarse ones as ``ms``.
        guide: of the whole scene.
        radiometry: what of the coarse bands the result keeps.
        device: where to compute.
    """

    pair: Pair
    guide: Guide
    radiometry: Radiometry
    device: torch.device

    def __post_init__(self) -> None:
        self._pair = self.pair.shifted(*self.guide.shift)
        self._integer_range = integer_range(self.pair.ms)
        self._coarse_area = Window(0, 0, self.pair.ms.grid.width, self.pair.ms.grid.height)

    def sharpen(self, window: Window) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Sharpens a window in output pixels, some bands at a time: which they are; their values (bands, height,
        width), float32 or, of a whole-number type, rounded; and which of these are valid, bool."""
        x, y = (
            _BlockAxis.of(axis, start, length, self.guide.mtf_gain, self.radiometry, self.device)
            for axis, start, length in (
                (self._pair.x_axis, window.x, window.width),
                (self._pair.y_axis, window.y, window.height),
            )
        )
        coarse_window = Window(x.coarse_first, y.coarse_first, x.coarse_count, y.coarse_count)
        coarse_values, coarse_mask = self._pair.read_ms(coarse_window)
        fine_values, fine_mask = self._pair.read_fine(Window(x.fine_first, y.fine_first, x.fine_count, y.fine_count))
        fine, fine_valid = self._to_device(fine_values, fine_mask)
        whole = None if fine_valid is None else fine_valid.all(dim=0)
        if whole is not None:
            fine = torch.where(whole, fine, torch.zeros_like(fine))
        smooth, share = filter_fine(fine, whole, y.fine_to_coarse, x.fine_to_coarse)
        inside = filters.inside(coarse_window, self._coarse_area).to(self.device)  # beyond, the last pixels repeat
        trusted = inside & (share > MIN_WEIGHT)
        if whole is not None:
            smooth = torch.where(share > 0.01, smooth, self.guide.fine_mean.to(smooth)[:, None, None])
        detail = fine[:, y.inner, x.inner] - filters.apply_separable(y.up, smooth, x.up)
        if whole is not None:  # no detail instead of an edge
            whole = whole[y.inner, x.inner]
            detail = torch.where(whole, detail, torch.zeros_like(detail))
            whole = whole[y.core, x.core]
        for bands in self._parts(smooth, detail):
            mask = None if coarse_mask is None else coarse_mask[bands]
            coarse, coarse_valid = self._to_device(coarse_values[bands], mask)
            values = self._sharpen_bands(
                self.guide.of_bands(bands), coarse, coarse_valid, trusted, smooth, detail, x, y
            )
            valid = torch.ones_like(values, dtype=torch.bool)
            if coarse_valid is not None:
                valid &= coarse_valid[:, y.nearest][:, :, x.nearest]
            if whole is not None:
                valid &= whole
            yield bands, values.cpu().numpy(), valid.cpu().numpy()

    def _parts(self, smooth: torch.Tensor, detail: torch.Tensor) -> Iterator[slice]:
        """Bands that are sharpened at a time."""
        each = _FINE_BYTES * detail[0].numel() + _COARSE_BYTES * smooth.numel()
        size = max(_PART_BYTES // each, 1)
        return (slice(first, first + size) for first in range(0, self.pair.ms.count, size))

    def _sharpen_bands(
        self,
        guide: Guide,
        coarse: torch.Tensor,
        valid: Optional[torch.Tensor],
        trusted: torch.Tensor,
        smooth: torch.Tensor,
        detail: torch.Tensor,
        x: _BlockAxis,
        y: _BlockAxis,
    ) -> torch.Tensor:
        """Sharpened bands (bands, height, width) of a block.

        Args:
            guide: of these bands.
            coarse, valid: the bands and their validity (bands, h, w); the latter None if all are valid.
            trusted: which coarse pixels of valid bands count (h, w), bool.
            smooth: fine bands at the coarse scale (fine bands, h, w).
            detail: what the fine bands hold beyond these, of the block with its margin.
        """
        usable = trusted.expand(coarse.shape)
        if valid is not None:
            usable = usable & valid
            coarse = filters.fill_invalid(coarse, valid, guide.coarse_mean.to(coarse))
        coefficients = guide.local_coefficients(smooth, coarse, usable)
        result = filters.apply_separable(y.up, coarse, x.up)
        injection = guide.injection.to(result)
        for band, weights in enumerate(coefficients):
            result[band] += injection[band] * (filters.apply_separable(y.up, weights, x.up) * detail).sum(dim=0)
        values = self._keep_radiometry(result, coarse, usable, x, y)[:, y.core, x.core]
        return values if self._integer_range is None else values.round().clamp_(*self._integer_range)

    def _to_device(
        self, values: np.ndarray, valid: Optional[np.ndarray]
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.device)
        if valid is None or valid.all():
            return tensor, None
        mask = torch.from_numpy(valid).to(self.device)
        return torch.where(mask, tensor, torch.zeros_like(tensor)), mask

    def _keep_radiometry(
        self, result: torch.Tensor, coarse: torch.Tensor, trusted: torch.Tensor, x: _BlockAxis, y: _BlockAxis
    ) -> torch.Tensor:
        """Moves the result (bands, height, width) so that it gives the coarse bands where these are trusted."""
        for _ in range(_BACK_PROJECTIONS):
            missing = (coarse - filters.apply_separable(y.seen, result, x.seen)) * trusted
            result = result + filters.apply_separable(y.up, missing, x.up)
        for _ in range(_EXACT_STEPS if self.radiometry is Radiometry.AREA else 0):
            missing = (coarse - filters.apply_separable(y.seen, result, x.seen)) * trusted
            result = result + filters.apply_separable(y.spread, missing, x.spread)
        return result


def block_size(pairs: list[Pair], dtype: np.dtype) -> int:
    """The edge of the blocks in output pixels, a multiple of that of a file's blocks, for output of this type."""
    ratio = max(max(pair.x_axis.ratio, pair.y_axis.ratio) for pair in pairs)
    size = BLOCK if ratio <= _LARGE_RATIO else _BLOCK_OF_LARGE_RATIOS
    pixel_bytes = sum(pair.ms.count for pair in pairs) * dtype.itemsize
    while size > _LEAST_BLOCK and size**2 * pixel_bytes > _BLOCK_BYTES:
        size //= 2
    return size


def to_pixels(values: np.ndarray, valid: np.ndarray, dtype: np.dtype, nodata: Optional[float]) -> np.ndarray:
    """Sharpened bands in the data type of the file, invalid pixels as ``nodata``; no valid pixel has that value."""
    pixels = values.astype(dtype)
    if nodata is None:
        return pixels
    if not math.isnan(nodata):
        pixels[pixels == nodata] = nearest_other_value(nodata, pixels.dtype)
    pixels[~valid] = nodata
    return pixels


@dataclass(frozen=True)
class _BlockAxis:
    """One axis of a block: what it needs, and its filters as matrices.

    The block is computed with a margin, from which its result does not depend on what lies beyond.

    Attributes:
        coarse_first, coarse_count: coarse pixels needed.
        fine_first, fine_count: fine pixels needed.
        inner: the block with its margin, among the fine pixels.
        core: the block, in the block with its margin.
        nearest: index among the coarse pixels of the one that each pixel of the block lies in.
        fine_to_coarse: MTF filter and decimation of the fine pixels.
        up: interpolation of coarse pixels to the block with its margin.
        seen: how the coarse pixels see the block with its margin; rows sum to 1.
        spread: a coarse pixel's correction, to all pixels that it covers.
    """

    coarse_first: int
    coarse_count: int
    fine_first: int
    fine_count: int
    inner: slice
    core: slice
    nearest: torch.Tensor
    fine_to_coarse: torch.Tensor
    up: torch.Tensor
    seen: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(
        cls, axis: AxisTransform, start: int, length: int, gain: float, radiometry: Radiometry, device: torch.device
    ) -> _BlockAxis:
        margin = math.ceil(_coarse_margin(axis, gain) * axis.ratio)
        begin, count = start - margin, length + 2 * margin
        coarse_first, coarse_count = filters.ms_support(axis, begin, count)
        fine_first, fine_count = filters.pan_support(axis, coarse_first, coarse_count, gain)
        last = max(fine_first + fine_count, begin + count)
        fine_first, before = min(fine_first, begin), max(fine_first - begin, 0)
        after = last - fine_first - before - fine_count
        down = torch.nn.functional.pad(
            filters.downsampling_matrix(axis, coarse_first, coarse_count, gain), (before, after)
        )
        inner = slice(begin - fine_first, begin - fine_first + count)
        seen = down[:, inner]
        area = filters.area_matrix(axis, coarse_first, coarse_count, begin, count)
        if radiometry is Radiometry.AREA:
            seen = area
        nearest = np.floor((np.arange(start, start + length) + 0.5 - axis.origin) / axis.ratio).astype(np.int64)
        return cls(
            coarse_first,
            coarse_count,
            fine_first,
            last - fine_first,
            inner,
            slice(margin, margin + length),
            torch.from_numpy(nearest - coarse_first).to(device),
            down.to(device),
            filters.upsampling_matrix(axis, begin, count).to(device),
            _rows_to_one(seen).to(device),
            _rows_to_one(area.T).to(device),
        )


def _rows_to_one(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows sum to 1, but for rows without anything."""
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _coarse_margin(axis: AxisTransform, gain: float) -> int:
    """Coarse pixels around a block from which its result does not depend on what lies beyond."""
    filtered = math.ceil(filters.mtf_reach(gain, axis.ratio) / axis.ratio) + 1
    regression = gaussian_reach(HIGH_PASS_SIGMA) + gaussian_reach(REGRESSION_SIGMA)
    return regression + (_BACK_PROJECTIONS + 1) * (filtered + filters.MARGIN // 2) + _EXACT_STEPS

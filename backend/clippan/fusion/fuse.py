"""Tiled fusion of a pair of rasters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.device import gpu_memory_error
from clippan.core.messages import Message
from clippan.fusion import filters
from clippan.fusion.filters import BandMtf
from clippan.fusion.methods import FusionMethod
from clippan.fusion.statistics import SceneStatistics
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair
from clippan.raster.source import Source
from clippan.raster.tiles import Window
from clippan.raster.writer import BLOCK

# Edges of the blocks in pixels. Blocks lie on a lattice that starts at the output's first pixel and have one shape, so
# that a pixel is computed by the same operations for every tile size, unless a GPU runs out of memory.
_CPU_BLOCK = 256  # fits into the cache of a CPU core
_NETWORK_BLOCK = 512  # the margin of a network would cost too much around smaller blocks
_GPU_BLOCKS = (1024, 512)
_TILE_BYTES = 96 * 2**20  # of output


def max_tile_size(pair: Pair) -> int:
    """Edge of the largest tile that takes no more than ``_TILE_BYTES``."""
    return int((_TILE_BYTES / (pair.ms.count * pair.ms.dtype.itemsize)) ** 0.5)


@dataclass
class TileFuser:
    """Fuses tiles of a pair.

    Attributes:
        pair: the pair.
        fusion: the fitted method.
        low_pass_mtfs: MTFs that PAN is filtered with for the method; empty if it needs none.
        statistics: statistics of the scene.
        device: where to compute.
        nodata: value of invalid output pixels, None if all are valid.
        block: edge of the blocks in pixels.
    """

    pair: Pair
    fusion: FusionMethod
    low_pass_mtfs: Sequence[BandMtf]
    statistics: SceneStatistics
    device: torch.device
    nodata: Optional[float]
    block: int = field(init=False)

    def __post_init__(self) -> None:
        self._margin = getattr(self.fusion, "margin", 0)
        self.block = _CPU_BLOCK if not self._margin else _NETWORK_BLOCK
        if self.device.type != "cpu":
            self.block = next((b for b in _GPU_BLOCKS if b <= max_tile_size(self.pair)), BLOCK)
        self._min_value, self._max_value = _integer_range(self.pair.ms)
        self._default_ms = self.statistics.mean[self.statistics.ms_indices].float().to(self.device)
        self._default_pan = float(self.statistics.mean[self.statistics.pan_index])

    def fuse(self, window: Window, context: Context) -> np.ndarray:
        """The fused pixels (bands, height, width) of a window, in the data type of the file.

        Blocks that reach beyond the window are computed whole, so its corner should be that of a block.

        Raises:
            ClippanError: the GPU's memory is too small even for the smallest blocks.
        """
        while True:
            block = self.block
            try:
                return self._fuse_blocks(window, block, context)
            except torch.cuda.OutOfMemoryError:
                if block <= BLOCK:
                    raise gpu_memory_error() from None
            torch.cuda.empty_cache()
            # Another thread may have halved the blocks already.
            self.block = min(self.block, block // 2)
            context.log(Message("The GPU ran out of memory; the block size is now {pixels} pixels.", pixels=self.block))

    def _fuse_blocks(self, window: Window, block: int, context: Context) -> np.ndarray:
        starts_x = _block_starts(window.x, window.width, block)
        starts_y = _block_starts(window.y, window.height, block)
        lows_x, lows_y = (
            [(low.gain, low.x) for low in self.low_pass_mtfs],
            [(low.gain, low.y) for low in self.low_pass_mtfs],
        )
        shifts_x, shifts_y = [x for x, _ in self.pair.band_shifts], [y for _, y in self.pair.band_shifts]
        margin, wide = self._margin, block + 2 * self._margin
        xs = [_BlockAxis.of(self.pair.x, start - margin, wide, shifts_x, lows_x) for start in starts_x]
        ys = [_BlockAxis.of(self.pair.y, start - margin, wide, shifts_y, lows_y) for start in starts_y]
        ms_window = _bounding_window([(a.ms.first, a.ms.number) for a in xs], [(a.ms.first, a.ms.number) for a in ys])
        pan_window = _bounding_window([(a.pan, a.pan_count) for a in xs], [(a.pan, a.pan_count) for a in ys])
        ms, ms_valid = self.pair.read_ms(ms_window)
        pan, pan_valid = self.pair.read_pan(pan_window)
        out = np.empty((len(ms), window.height, window.width), self.pair.ms.dtype)
        for y in ys:
            for x in xs:
                context.raise_if_cancelled()
                values, invalid = self._fuse_block(
                    x,
                    y,
                    *(
                        _cut(array, x.ms.first - ms_window.x, y.ms.first - ms_window.y, x.ms.number, y.ms.number)
                        for array in (ms, ms_valid)
                    ),
                    *(
                        _cut(array, x.pan - pan_window.x, y.pan - pan_window.y, x.pan_count, y.pan_count)
                        for array in (pan, pan_valid)
                    ),
                )
                self._copy_into_tile(values, invalid, x.start + margin, y.start + margin, window, out)
        return out

    def _fuse_block(
        self,
        x: _BlockAxis,
        y: _BlockAxis,
        ms: np.ndarray,
        ms_valid: Optional[np.ndarray],
        pan: np.ndarray,
        pan_valid: Optional[np.ndarray],
    ) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """Fuses one block: values (bands, block, block), and the mask of invalid ones or None."""
        coarse, coarse_valid = self._to_device(ms, ms_valid)
        if coarse_valid is not None:
            coarse = filters.fill_invalid(coarse, coarse_valid, self._default_ms)
        wide, wide_valid = self._to_device(pan, pan_valid)
        interpolated = filters.apply_separable(y.ms.matrix.to(self.device), coarse, x.ms.matrix.to(self.device))
        low = None
        if self.low_pass_mtfs:
            low = torch.stack(
                [self._low_pass(x, y, index, wide, wide_valid) for index in range(len(self.low_pass_mtfs))]
            )
        dy, dx = y.start - y.pan, x.start - x.pan
        sharp = wide[dy : dy + y.count, dx : dx + x.count]
        sharp_valid = None if wide_valid is None else wide_valid[dy : dy + y.count, dx : dx + x.count]
        if sharp_valid is not None and low is not None and self._margin:
            sharp = torch.where(sharp_valid, sharp, low[0])  # no detail instead of an edge that affects neighbours
        fused = self.fusion(interpolated, sharp, low)
        if self._min_value is not None:
            fused = fused.round_().clamp_(self._min_value, self._max_value)
        invalid = None
        if coarse_valid is not None:
            invalid = ~filters.gather(coarse_valid, y.ms.nearest.to(self.device), x.ms.nearest.to(self.device))
        if sharp_valid is not None:
            invalid = ~sharp_valid if invalid is None else invalid | ~sharp_valid
        holes = None if invalid is None else self._without_margin(invalid.expand_as(fused)).cpu().numpy()
        return self._without_margin(fused).cpu().numpy(), holes

    def _without_margin(self, values: torch.Tensor) -> torch.Tensor:
        """A block without its margin."""
        margin = self._margin
        return values[:, margin:-margin, margin:-margin] if margin else values

    def _to_device(
        self, values: np.ndarray, valid: Optional[np.ndarray]
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.device)
        if valid is None or valid.all():
            return tensor, None
        mask = torch.from_numpy(valid).to(self.device)
        return torch.where(mask, tensor, torch.zeros_like(tensor)), mask

    def _low_pass(
        self, x: _BlockAxis, y: _BlockAxis, index: int, pan: torch.Tensor, valid: Optional[torch.Tensor]
    ) -> torch.Tensor:
        down_y, down_x = y.low_pass_filters[index].to(self.device), x.low_pass_filters[index].to(self.device)
        coarse = filters.apply_separable(down_y, pan, down_x)
        if valid is not None:
            weight = filters.apply_separable(down_y, valid.float(), down_x)
            coarse = torch.where(weight > 1e-3, coarse / weight.clamp(min=1e-3), self._default_pan)
        return filters.apply_separable(
            y.low_pass_upsampling[index].to(self.device), coarse, x.low_pass_upsampling[index].to(self.device)
        )

    def _copy_into_tile(
        self,
        values: np.ndarray,
        invalid: Optional[np.ndarray],
        x: int,
        y: int,
        window: Window,
        out: np.ndarray,
    ) -> None:
        """Copies the part of a block that lies in the window into the tile."""
        left, top = max(x, window.x), max(y, window.y)
        right = min(x + values.shape[2], window.x + window.width)
        bottom = min(y + values.shape[1], window.y + window.height)
        inside = (slice(None), slice(top - y, bottom - y), slice(left - x, right - x))
        target = out[:, top - window.y : bottom - window.y, left - window.x : right - window.x]
        np.copyto(target, values[inside], casting="unsafe")
        if self.nodata is None:
            return
        # A valid pixel must not become invalid because its value happens to equal the nodata value.
        if not np.isnan(self.nodata):
            target[target == self.nodata] = _nearest_other_value(self.nodata, target.dtype)
        if invalid is not None:
            target[invalid[inside]] = self.nodata


@dataclass(frozen=True)
class _BlockAxis:
    """One axis of a block: its extent, the MS samples and PAN pixels that it needs, and its filters.

    Attributes:
        start, count: output pixels.
        ms: interpolation of the bands.
        pan, pan_count: first and number of the PAN pixels needed.
        low_pass_filters, low_pass_upsampling: filter of each low pass of PAN, and interpolation of its samples.
    """

    start: int
    count: int
    ms: filters.Upsampling
    pan: int
    pan_count: int
    low_pass_filters: tuple[torch.Tensor, ...]
    low_pass_upsampling: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, axis: AxisTransform, start: int, count: int, shifts: Sequence[float], lows: Sequence[tuple[float, float]]
    ) -> _BlockAxis:
        """An axis of a block.

        Args:
            axis: the axis of MS.
            start, count: first output pixel, and number of pixels.
            shifts: shift of each band in output pixels; empty if there are none.
            lows: gain and shift of each low pass of PAN.
        """
        ms = filters.Upsampling.of(axis, start, count, shifts)
        pan, pan_count = start, count
        low_pass_filters: tuple[torch.Tensor, ...] = ()
        if lows:
            gains, low_shifts = zip(*lows)
            pan, pan_count, low_pass_filters = filters.downsampling_matrices(
                axis, ms.first, ms.number, gains, low_shifts
            )
        largest = filters.largest_shift(shifts)
        low_pass_upsampling = tuple(filters.upsampling_matrix(axis, start, count, shift, largest) for _, shift in lows)
        return cls(start, count, ms, pan, pan_count, low_pass_filters, low_pass_upsampling)


def _block_starts(start: int, length: int, block: int) -> list[int]:
    return list(range(start // block * block, start + length, block))


def _bounding_window(xs: Sequence[tuple[int, int]], ys: Sequence[tuple[int, int]]) -> Window:
    left, top = min(start for start, _ in xs), min(start for start, _ in ys)
    right, bottom = max(start + count for start, count in xs), max(start + count for start, count in ys)
    return Window(left, top, right - left, bottom - top)


def _cut(array: Any, x: int, y: int, width: int, height: int) -> Any:
    return None if array is None else array[..., y : y + height, x : x + width]


def _integer_range(source: Source) -> tuple[Optional[float], Optional[float]]:
    """Smallest and largest float32 value of the file's integer type; None for floating point."""
    if not np.issubdtype(source.dtype, np.integer):
        return None, None
    info = np.iinfo(source.dtype)
    greatest = np.float32(2**source.bits - 1 if source.bits else info.max)
    if float(greatest) > info.max:  # float32 rounds 2³¹ − 1 up
        greatest = np.nextafter(greatest, np.float32(0))
    return float(info.min), float(greatest)


def _nearest_other_value(nodata: float, dtype: np.dtype) -> float:
    if np.issubdtype(dtype, np.floating):
        return float(np.nextafter(np.float32(nodata), np.float32(0 if nodata else 1)))
    return nodata - 1 if nodata >= np.iinfo(dtype).max else nodata + 1

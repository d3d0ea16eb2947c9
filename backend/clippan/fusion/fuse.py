"""Tiled fusion of a pair of rasters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.device import gpu_memory_error
from clippan.core.messages import Message
from clippan.fusion import filters
from clippan.fusion.filters import BandMatrix, BandMtf
from clippan.fusion.methods import BandwiseMethod, FusionMethod
from clippan.fusion.networks.cells import FOLD
from clippan.fusion.neural import CellwiseFusion
from clippan.fusion.statistics import SceneStatistics
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair
from clippan.raster.source import Source
from clippan.raster.tiles import Window
from clippan.raster.writer import BLOCK

# Edges of the blocks in pixels. Blocks lie on a lattice that starts at the output's first pixel and have one shape, so
# that a pixel is computed by the same operations for every tile size, unless a GPU runs out of memory.
_CPU_BLOCK = 512  # around smaller ones, the low pass would cost too much; where there are hundreds of bands, BLOCK
# Rows of a block that are sharpened at a time on a CPU, to fit into the cache of a core; networks need more of it.
_STRIP, _NETWORK_STRIP = 128, 64
_NETWORK_BLOCK = 512  # the margin of a network would cost too much around smaller blocks
_GPU_BLOCKS = (1024, 512)
_TILE_BYTES = 96 * 2**20  # of output


@dataclass
class TileFuser:
    """Fuses tiles of a pair.

    Attributes:
        fusion: the fitted method.
        low_pass_mtfs: MTFs that PAN is filtered with for the method; empty if it needs none.
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
        self._cell = FOLD if isinstance(self.fusion, CellwiseFusion) else 0
        ms = self.pair.ms
        self._max_tile_size = int((_TILE_BYTES / (ms.count * ms.dtype.itemsize)) ** 0.5)
        self.block = _CPU_BLOCK if self._max_tile_size >= _CPU_BLOCK else BLOCK
        if self._margin:
            self.block = _NETWORK_BLOCK
        if self.device.type != "cpu":
            self.block = next((block for block in _GPU_BLOCKS if block <= self._max_tile_size), BLOCK)
        self._integer_range = integer_range(ms)
        self._default_ms = self.statistics.mean[self.statistics.ms_indices].float().to(self.device)
        self._default_pan = float(self.statistics.mean[self.statistics.pan_index])

    def tile_size(self, wanted: int) -> int:
        """The edge of tiles in pixels: at most ``wanted``, a multiple of the block, so that no block is computed twice,
        and at least one block."""
        size = min(wanted, self._max_tile_size)
        return max(self.block, size // self.block * self.block)

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
        margin, mtfs, band_shifts = self._margin, self.low_pass_mtfs, self.pair.band_shifts
        xs, ys = (
            [
                _BlockAxis.of(axis, corner - margin, block + 2 * margin, shifts, low_pass_mtfs, self._cell)
                for corner in range(start // block * block, start + length, block)
            ]
            for axis, start, length, shifts, low_pass_mtfs in (
                (
                    self.pair.x_axis,
                    window.x,
                    window.width,
                    [x for x, _ in band_shifts],
                    [(mtf.gain, mtf.shift_x) for mtf in mtfs],
                ),
                (
                    self.pair.y_axis,
                    window.y,
                    window.height,
                    [y for _, y in band_shifts],
                    [(mtf.gain, mtf.shift_y) for mtf in mtfs],
                ),
            )
        )
        blocks = [(x, y) for y in ys for x in xs]
        ms_windows = [
            Window(
                x.ms_upsampling.ms_first, y.ms_upsampling.ms_first, x.ms_upsampling.ms_count, y.ms_upsampling.ms_count
            )
            for x, y in blocks
        ]
        pan_windows = [Window(x.pan_first, y.pan_first, x.pan_count, y.pan_count) for x, y in blocks]
        ms_area, pan_area = functools.reduce(Window.union, ms_windows), functools.reduce(Window.union, pan_windows)
        ms, ms_valid = self.pair.read_ms(ms_area)
        pan, pan_valid = self.pair.read_pan(pan_area)
        out = np.empty((len(ms), window.height, window.width), self.pair.ms.dtype)
        for (x, y), ms_window, pan_window in zip(blocks, ms_windows, pan_windows):
            context.raise_if_cancelled()
            needed = [_cut(array, ms_window, ms_area) for array in (ms, ms_valid)]
            needed += [_cut(array, pan_window, pan_area) for array in (pan, pan_valid)]
            for row, values, invalid in self._fuse_block(x, y, *needed):
                self._copy_into_tile(values, invalid, x.start + margin, row, window, out)
        return out

    def _fuse_block(
        self,
        x: _BlockAxis,
        y: _BlockAxis,
        ms: np.ndarray,
        ms_valid: Optional[np.ndarray],
        pan: np.ndarray,
        pan_valid: Optional[np.ndarray],
    ) -> Iterator[tuple[int, np.ndarray, Optional[np.ndarray]]]:
        """Fuses one block, in strips: their first row, values (bands, rows, block), and the mask of invalid ones or
        None."""
        coarse, coarse_valid = self._to_device(ms, ms_valid)
        if coarse_valid is not None:
            coarse = filters.fill_invalid(coarse, coarse_valid, self._default_ms)
        wide, wide_valid = self._to_device(pan, pan_valid)
        pan_lowpass = None if x.low_pass is None else self._low_pass(y, x, wide, wide_valid)
        dy, dx = y.start - y.pan_first, x.start - x.pan_first
        sharp = wide[dy : dy + y.count, dx : dx + x.count]
        sharp_valid = None if wide_valid is None else wide_valid[dy : dy + y.count, dx : dx + x.count]
        invalid = None if sharp_valid is None else ~sharp_valid
        if coarse_valid is not None:
            missing = ~filters.gather(
                coarse_valid, y.ms_upsampling.nearest.to(self.device), x.ms_upsampling.nearest.to(self.device)
            )
            invalid = missing if invalid is None else missing | invalid
        margin = self._margin
        for first, fused in self._sharpen(x, y, coarse, sharp, sharp_valid, pan_lowpass):
            top, bottom = max(first, margin), min(first + fused.shape[1], y.count - margin)
            if bottom <= top:
                continue
            fused = fused[:, top - first : bottom - first, margin : x.count - margin]
            if self._integer_range is not None:
                fused = fused.round_().clamp_(*self._integer_range)
            holes = None
            if invalid is not None:
                holes = invalid[..., top:bottom, margin : x.count - margin].expand_as(fused).cpu().numpy()
            yield y.start + top, fused.cpu().numpy(), holes

    def _sharpen(
        self,
        x: _BlockAxis,
        y: _BlockAxis,
        ms: torch.Tensor,
        pan: torch.Tensor,
        pan_valid: Optional[torch.Tensor],
        pan_lowpass: Optional[torch.Tensor],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Strips of a fused block with their first rows; MS and filtered PAN are at multispectral scale."""
        if self._cell:
            assert pan_lowpass is not None
            yield from self._sharpen_by_cells(x, y, ms, pan, pan_valid, pan_lowpass)
            return
        rows, columns = y.ms_upsampling.matrix.to(self.device), x.ms_upsampling.matrix.to(self.device)
        fusion = self.fusion
        if isinstance(fusion, BandwiseMethod):
            ms, pan_lowpass = fusion.ms_terms(ms, pan_lowpass), None
        ms = columns.filter_columns(ms)
        if pan_lowpass is None:
            for first, strip in rows.strips(_STRIP if self.device.type == "cpu" else y.count):
                planes, sharp = strip.filter_rows(ms), pan[first : first + strip.shape[0]]
                if isinstance(fusion, BandwiseMethod):
                    yield first, fusion.inject(planes, sharp)
                else:
                    yield first, fusion(planes, sharp, None)
            return
        pan_lowpass = filters.apply_separable(
            y.low_pass_upsampling.to(self.device), pan_lowpass, x.low_pass_upsampling.to(self.device)
        )
        if pan_valid is not None:
            # No detail instead of an edge that affects neighbours.
            pan = torch.where(pan_valid, pan, pan_lowpass[0])
        yield 0, fusion(rows.filter_rows(ms), pan, pan_lowpass)

    def _sharpen_by_cells(
        self,
        x: _BlockAxis,
        y: _BlockAxis,
        ms: torch.Tensor,
        pan: torch.Tensor,
        pan_valid: Optional[torch.Tensor],
        pan_lowpass: torch.Tensor,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """As ``_sharpen``, by a network that works on cells."""
        fusion, device = self.fusion, self.device
        assert isinstance(fusion, CellwiseFusion)
        assert x.cells is not None
        assert y.cells is not None
        low_rows, low_columns = y.low_pass_upsampling.to(device), x.low_pass_upsampling.to(device)
        low_cell_rows, cell_rows = (matrix.to(device) for matrix in y.cells)
        low_cell_columns, cell_columns = (matrix.to(device) for matrix in x.cells)
        if pan_valid is not None:
            # No detail instead of an edge that affects neighbours.
            pan = torch.where(pan_valid, pan, filters.apply_separable(low_rows, pan_lowpass, low_columns)[0])
        features, weight = fusion.features(
            pan,
            filters.apply_separable(cell_rows, ms, cell_columns),
            filters.apply_separable(low_cell_rows, pan_lowpass, low_cell_columns),
        )
        columns = x.ms_upsampling.matrix.to(device)
        terms = columns.filter_columns(fusion.classical.ms_terms(ms, pan_lowpass))
        ms, pan_lowpass = columns.filter_columns(ms), low_columns.filter_columns(pan_lowpass)
        size = _NETWORK_STRIP if device.type == "cpu" else y.count
        strips, low_strips = y.ms_upsampling.matrix.to(device).strips(size), low_rows.strips(size)
        for (first, strip), (_, low_strip) in zip(strips, low_strips):
            last = first + strip.shape[0]
            sharp, cells = pan[first:last], slice(first // FOLD, last // FOLD)
            yield (
                first,
                fusion.correct(
                    fusion.classical.inject(strip.filter_rows(terms), sharp),
                    strip.filter_rows(ms),
                    sharp,
                    low_strip.filter_rows(pan_lowpass),
                    (features[:, :, cells], weight[:, :, cells]),
                ),
            )

    def _to_device(
        self, values: np.ndarray, valid: Optional[np.ndarray]
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.device)
        if valid is None or valid.all():
            return tensor, None
        mask = torch.from_numpy(valid).to(self.device)
        return torch.where(mask, tensor, torch.zeros_like(tensor)), mask

    def _low_pass(self, y: _BlockAxis, x: _BlockAxis, pan: torch.Tensor, valid: Optional[torch.Tensor]) -> torch.Tensor:
        """PAN filtered with each MTF, at the samples of MS (MTFs, height, width)."""
        assert y.low_pass is not None
        assert x.low_pass is not None
        rows, columns = y.low_pass.to(self.device), x.low_pass.to(self.device)
        coarse = filters.apply_separable(rows, pan, columns)
        if valid is None:
            return coarse
        weight = filters.apply_separable(rows, valid.float(), columns)
        return torch.where(weight > 1e-3, coarse / weight.clamp(min=1e-3), self._default_pan)

    def _copy_into_tile(
        self, values: np.ndarray, invalid: Optional[np.ndarray], x: int, y: int, window: Window, out: np.ndarray
    ) -> None:
        """Copies the part of a block that lies in the window into the tile."""
        left, top = max(x, window.x), max(y, window.y)
        right = min(x + values.shape[2], window.x + window.width)
        bottom = min(y + values.shape[1], window.y + window.height)
        if bottom <= top:  # a strip that lies beyond
            return
        inside = (slice(None), slice(top - y, bottom - y), slice(left - x, right - x))
        target = out[:, top - window.y : bottom - window.y, left - window.x : right - window.x]
        np.copyto(target, values[inside], casting="unsafe")
        if self.nodata is None:
            return
        # A valid pixel must not become invalid because its value happens to equal the nodata value.
        if not np.isnan(self.nodata):
            target[target == self.nodata] = nearest_other_value(self.nodata, target.dtype)
        if invalid is not None:
            target[invalid[inside]] = self.nodata


@dataclass(frozen=True)
class _BlockAxis:
    """One axis of a block: its extent, the MS samples and PAN pixels that it needs, and its filters.

    Attributes:
        start, count: output pixels.
        ms_upsampling: interpolation of the bands.
        pan_first, pan_count: first and number of the PAN pixels needed.
        low_pass: MTF filters and decimation of PAN, a stack; None without.
        low_pass_upsampling: interpolation of filtered PAN.
        cells: means of cells of interpolated filtered PAN and of the interpolated bands; None without cells.
    """

    start: int
    count: int
    ms_upsampling: filters.Upsampling
    pan_first: int
    pan_count: int
    low_pass: Optional[BandMatrix]
    low_pass_upsampling: BandMatrix
    cells: Optional[tuple[BandMatrix, BandMatrix]] = None

    @classmethod
    def of(
        cls,
        axis: AxisTransform,
        start: int,
        count: int,
        shifts: Sequence[float],
        low_pass_mtfs: Sequence[tuple[float, float]],
        cell: int,
    ) -> _BlockAxis:
        """``count`` output pixels from ``start`` on; ``shifts`` of the bands are empty if there are none,
        ``low_pass_mtfs`` are MTF gain and shift of each low pass of PAN, and ``cell`` is the edge of cells, or 0."""
        ms_upsampling = filters.Upsampling.of(axis, start, count, shifts)
        if not low_pass_mtfs:
            return cls(start, count, ms_upsampling, start, count, None, ms_upsampling.matrix)
        mtf_gains, low_shifts = zip(*low_pass_mtfs)
        ms_first, ms_count = ms_upsampling.ms_first, ms_upsampling.ms_count
        pan_first, pan_count, low_pass = filters.mtf_bank(axis, ms_first, ms_count, mtf_gains, low_shifts)
        upsampling, cells, largest = ms_upsampling.matrix, None, filters.largest_shift(shifts)
        if shifts:
            upsampling = filters.upsampling_bank(axis, start, count, low_shifts, largest)
        if cell:
            of_ms, of_pan = (
                filters.upsampling_bank(axis, start, count, chosen, largest, cell)
                for chosen in (shifts, low_shifts if shifts else ())
            )
            cells = of_pan, of_ms
        return cls(start, count, ms_upsampling, pan_first, pan_count, low_pass, upsampling, cells)


def _cut(array: Any, window: Window, area: Window) -> Any:
    """A window of an array that holds an area; None of None."""
    if array is None:
        return None
    y, x = window.y - area.y, window.x - area.x
    return array[..., y : y + window.height, x : x + window.width]


def integer_range(source: Source) -> Optional[tuple[float, float]]:
    """Smallest and largest float32 value of the file's integer type; None for floating point."""
    if not np.issubdtype(source.dtype, np.integer):
        return None
    info = np.iinfo(source.dtype)
    greatest = np.float32(2**source.nbits - 1 if source.nbits else info.max)
    if float(greatest) > info.max:  # float32 rounds 2³¹ − 1 up
        greatest = np.nextafter(greatest, np.float32(0))
    return float(info.min), float(greatest)


def nearest_other_value(nodata: float, dtype: np.dtype) -> float:
    """The value next to a nodata value that valid pixels of this type get in its place."""
    if np.issubdtype(dtype, np.floating):
        return float(np.nextafter(np.float32(nodata), np.float32(0 if nodata else 1)))
    return nodata - 1 if nodata >= np.iinfo(dtype).max else nodata + 1

"""Quality figures of a pansharpened raster, measured tile by tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.catalogue.sensors import Sensor
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.threads import in_order
from clippan.fusion import filters
from clippan.fusion.metrics import BLOCK, FullResolutionMetrics, ReferenceMetrics, crop
from clippan.fusion.units import UnitComparison
from clippan.raster.grid import AxisTransform, Grid
from clippan.raster.pair import Pair
from clippan.raster.source import Source
from clippan.raster.tiles import Window

_TILE = 16 * BLOCK  # fused pixels; about 200 MB of intermediate images for eight bands
_MIN_WEIGHT = 0.999  # of valid pixels under a filter
_GRID_TOLERANCE = 0.1  # pixels between the grids of two rasters
_NO_BLOCK = Message(
    "No block of {block} × {block} pixels is completely valid, and the figures are measured on such blocks; choose a "
    "scene with fewer gaps.",
    block=BLOCK,
)


@dataclass(frozen=True)
class AssessedScene:
    """A fused raster and the pair it was made from.

    Windows are in pixels of the pair's grid, those of MS in multispectral pixels.

    Attributes:
        pair, fused: the sources.
        column, row: first pixel of the fused raster on the pair's grid.
        area: overlap of the fused raster and the pair; blocks start at its corner.
        sensor: sensor whose MTF is used.
        positions: the sharpened bands of MS, from 0.
        device: where to compute.
    """

    pair: Pair
    fused: Source
    column: int
    row: int
    area: Window
    sensor: Sensor
    positions: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, pair: Pair, fused: Source, sensor: Sensor, bands: Sequence[int], device: torch.device) -> AssessedScene:
        """Aligns the fused raster with the pair.

        Raises:
            ClippanError: bands or pixels do not match, or the overlap is smaller than a block.
        """
        if fused.count != pair.ms.count:
            raise ClippanError(
                "The pansharpened raster and the multispectral raster have different numbers of bands ({fused_bands} "
                "and {ms_bands}); choose the bands that were sharpened.",
                fused_bands=fused.count,
                ms_bands=pair.ms.count,
            )
        column, row = _fused_origin(pair, fused.grid)
        left, top = max(column, 0), max(row, 0)
        right = min(column + fused.grid.width, pair.grid.width)
        bottom = min(row + fused.grid.height, pair.grid.height)
        if right <= left or bottom <= top:
            raise ClippanError(
                "The pansharpened raster does not overlap the rasters that it was made from; check the files."
            )
        area = Window(left, top, right - left, bottom - top)
        if min(area.width, area.height) < BLOCK:
            raise ClippanError(
                "The rasters overlap by {width} × {height} pixels only; the figures need at least one block of {block} "
                "× {block} pixels.",
                width=area.width,
                height=area.height,
                block=BLOCK,
            )
        positions = tuple(number - 1 for number in bands) or tuple(range(pair.ms.available_bands))
        return cls(pair, fused, column, row, area, sensor, positions, device)

    def check_reference(self, reference: Source) -> None:
        """Raises ClippanError if a reference has other bands or another grid than the fused raster."""
        if reference.count != self.fused.count:
            raise ClippanError(
                "The bands of the reference raster ({reference_bands}) and of the pansharpened raster ({fused_bands}) "
                "differ; choose a reference with the same bands.",
                reference_bands=reference.count,
                fused_bands=self.fused.count,
            )
        grid, fused = reference.grid, self.fused.grid
        if (grid.width, grid.height) != (fused.width, fused.height):
            raise ClippanError(
                "The sizes of the reference raster ({reference_size} pixels) and of the pansharpened raster "
                "({fused_size} pixels) differ; choose a reference on the same grid.",
                reference_size=_size_text(grid),
                fused_size=_size_text(fused),
            )
        if grid.geotransform and fused.geotransform and _pixel_offset(grid, fused) != (0, 0):
            raise ClippanError(
                "The reference raster does not lie on the grid of the pansharpened raster; choose a reference on the "
                "same grid."
            )

    @property
    def mtf_gains(self) -> tuple[float, ...]:
        """MTF gain of each band."""
        return self.sensor.mtf_gains(self.positions, self.pair.ms.available_bands)

    @property
    def ratio(self) -> float:
        """MS over PAN pixel size, the mean of both axes."""
        return math.sqrt(self.pair.x_axis.ratio * self.pair.y_axis.ratio)

    def windows(self) -> list[Window]:
        """Tiles of the area."""
        windows = self.area.tiles(_TILE)
        return [window for window in windows if self.pair.may_contain_data(window)] or windows[:1]

    def ms_windows(self, block: int) -> list[Window]:
        """Tiles of the MS pixels whose centres lie in the area, of whole blocks of ``block`` MS pixels."""
        area, x, y, ms = self.area, self.pair.x_axis, self.pair.y_axis, self.pair.ms
        left, right = _samples(x.pan_to_ms(area.x - 0.5), x.pan_to_ms(area.x + area.width - 0.5), ms.grid.width)
        top, bottom = _samples(y.pan_to_ms(area.y - 0.5), y.pan_to_ms(area.y + area.height - 0.5), ms.grid.height)
        windows = Window(left, top, right - left, bottom - top).tiles(block * (_TILE // BLOCK))
        return [window for window in windows if ms.may_contain_data(window)] or windows[:1]

    def read(self, source: Source, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of the fused raster, or of one on its grid, and where all its bands are valid.

        The border of the area is replicated, as what other programs write beyond it need not be image.
        """
        inner = window.intersection(self.area)
        values, valid = source.read(inner.x - self.column, inner.y - self.row, inner.width, inner.height)
        left, top = inner.x - window.x, inner.y - window.y
        edges = ((0, 0), (top, window.height - inner.height - top), (left, window.width - inner.width - left))
        return self._tensors(np.pad(values, edges, "edge"), None if valid is None else np.pad(valid, edges, "edge"))

    def read_pan(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of PAN (1, height, width) and its validity."""
        values, valid = self.pair.read_pan(window)
        return self._tensors(values[None], None if valid is None else valid[None])

    def _tensors(self, values: np.ndarray, valid: Optional[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.device)
        if valid is None:
            return tensor, torch.ones(tensor.shape[1:], dtype=torch.bool, device=self.device)
        mask = torch.from_numpy(valid).to(self.device)
        return torch.where(mask, tensor, torch.zeros_like(tensor)), mask.all(dim=0)

    def upsampled(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """MS interpolated to the pixels of a window, and where the nearest samples of all bands are valid."""
        return self._resampled_ms(self.pair.x_axis, self.pair.y_axis, window, self.pair.band_shifts)

    def read_ms(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of MS, with all bands at the samples of the common axes, and where all bands are valid."""
        if not self.pair.band_shifts:
            return self._tensors(*self.pair.read_ms(window))
        x, y, own_grid = self.pair.x_axis, self.pair.y_axis, AxisTransform(1.0, 0.0)  # one sample per pixel
        band_shifts = [(shift_x / x.ratio, shift_y / y.ratio) for shift_x, shift_y in self.pair.band_shifts]
        return self._resampled_ms(own_grid, own_grid, window, band_shifts)

    def _resampled_ms(
        self, x: AxisTransform, y: AxisTransform, window: Window, band_shifts: Sequence[tuple[float, float]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = filters.Upsampling.of(x, window.x, window.width, [shift for shift, _ in band_shifts]).to(self.device)
        rows = filters.Upsampling.of(y, window.y, window.height, [shift for _, shift in band_shifts]).to(self.device)
        needed = Window(columns.ms_first, rows.ms_first, columns.ms_count, rows.ms_count)
        ms, valid = self._tensors(*self.pair.read_ms(needed))
        if not bool(valid.all()):
            mean = ms[:, valid].mean(dim=1) if bool(valid.any()) else ms.new_zeros(len(ms))
            ms = filters.fill_invalid(ms, valid.expand_as(ms), mean)
        nearest = filters.gather(valid.expand_as(ms), rows.nearest, columns.nearest).all(dim=0)
        return filters.apply_separable(rows.matrix, ms, columns.matrix), nearest

    def inside(self, window: Window) -> torch.Tensor:
        """Pixels of a window that lie in the area."""
        return filters.inside(window, self.area).to(self.device)

    def measure(self, context: Context) -> tuple[dict[str, float], int, list[str]]:
        """The figures without a reference, the number of pixels compared, and hints.

        Raises:
            ClippanError: too few pixels are valid.
        """
        figures = FullResolutionMetrics(self.ratio)
        margin = figures.MARGIN
        units = UnitComparison(with_reference=False)
        pixels = 0
        windows, ms_windows = self.windows(), self.ms_windows(figures.ms_block_size)
        steps = len(windows) + len(ms_windows)
        ratios = (self.pair.x_axis.ratio, self.pair.y_axis.ratio)
        reach = max(margin, *(filters.mtf_reach(gain, ratio) for gain in self.mtf_gains for ratio in ratios))

        def read(window: Window) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
            fused = self.read(self.fused, window.padded(reach))
            return fused, self.read_pan(window.padded(margin)), self.upsampled(window)

        # One thread reads ahead while this one computes.
        for number, (window, tile) in enumerate(in_order(read, windows, 1), 1):
            (fused, fused_valid), (pan, pan_valid), (upsampled, ms_valid) = tile
            valid = crop(fused_valid, reach - margin) & pan_valid & self.inside(window.padded(margin))
            figures.add_pan_scale(crop(fused, reach - margin), pan, valid)
            valid = crop(valid, margin) & ms_valid
            pixels += int(valid.sum())
            filtered, covered = self._filter_bands(fused, fused_valid, reach)
            figures.add_mtf_filtered(filtered, upsampled, covered & valid)
            units.add(filtered, upsampled, covered & valid)
            context.progress(100 * number / steps, "Comparing with PAN and MS")
        if not pixels:
            raise ClippanError(
                "No pixel is valid in the pansharpened raster and in both rasters that it was made from; check their "
                "nodata values (nodata, NaN and alpha count as invalid)."
            )
        for number, (_, ms_scale) in enumerate(in_order(self._read_ms_scale, ms_windows, 1), 1):
            figures.add_ms_scale(*ms_scale)
            context.progress(100 * (len(windows) + number) / steps, "Comparing with PAN and MS")
        if not figures.complete:
            raise ClippanError(_NO_BLOCK)
        return figures.values, pixels, units.hints(self.fused.infos, self.pair.ms.infos)

    def compare(self, reference: Source, context: Context) -> tuple[dict[str, float], list[str]]:
        """The figures against a reference on the grid of the fused raster, and hints.

        Raises:
            ClippanError: too few pixels are valid, or the reference has no value above zero.
        """
        windows = self.windows()
        units = UnitComparison(with_reference=True)
        peak = -math.inf
        for number, (_, (values, valid)) in enumerate(in_order(lambda w: self.read(reference, w), windows, 1), 1):
            if bool(valid.any()):
                peak = max(peak, float(values[:, valid].max()))
            context.progress(20 * number / len(windows), "Measuring the reference")
        if peak == -math.inf:
            raise ClippanError("No pixel of the reference raster is valid; check its nodata value.")
        if peak <= 0:
            raise ClippanError(
                "The reference raster has no value above zero, which PSNR and SSIM need as their data range; check the "
                "file."
            )
        figures = ReferenceMetrics(self.ratio, peak)

        def read(window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            padded = window.padded(figures.MARGIN)
            (image, image_valid), (truth, truth_valid) = self.read(self.fused, padded), self.read(reference, padded)
            return image, truth, image_valid & truth_valid & self.inside(padded)

        for number, (_, (image, truth, valid)) in enumerate(in_order(read, windows, 1), 1):
            figures.add(image, truth, valid)
            units.add(image, truth, valid)
            context.progress(20 + 80 * number / len(windows), "Comparing with the reference")
        if not figures.complete:
            raise ClippanError(_NO_BLOCK)
        return figures.values, units.hints(self.fused.infos, reference.infos)

    def _filter_bands(self, fused: torch.Tensor, valid: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The fused bands filtered with the MTF, and where only valid pixels contribute."""
        height, width = (size - 2 * reach for size in valid.shape)
        planes, covered = [], []
        for band, gain in zip(fused, self.mtf_gains):
            rows = filters.mtf_matrix(gain, self.pair.y_axis.ratio, height, reach).to(self.device)
            columns = filters.mtf_matrix(gain, self.pair.x_axis.ratio, width, reach).to(self.device)
            plane, whole = _filter_valid(rows, band, columns, valid)
            planes.append(plane)
            covered.append(whole)
        return torch.stack(planes), torch.stack(covered).all(dim=0)

    def _read_ms_scale(self, window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """MS, PAN filtered with its MTF and brought to MS's grid, and where both and the fused raster are valid."""
        x, y, gain = self.pair.x_axis, self.pair.y_axis, self.sensor.mtf_pan
        left, width = filters.pan_support(x, window.x, window.width, gain)
        top, height = filters.pan_support(y, window.y, window.height, gain)
        pan, pan_valid = self.read_pan(Window(left, top, width, height))
        rows = filters.downsampling_matrix(y, window.y, window.height, gain).to(self.device)
        columns = filters.downsampling_matrix(x, window.x, window.width, gain).to(self.device)
        degraded_pan, covered = _filter_valid(rows, pan, columns, pan_valid)
        ms, valid = self.read_ms(window)
        return ms, degraded_pan, valid & covered & self._fused_valid(window)

    def _fused_valid(self, window: Window) -> torch.Tensor:
        """Where the fused raster is valid at the centres of a window's MS pixels."""
        columns = [round(self.pair.x_axis.ms_to_pan(window.x + column)) for column in range(window.width)]
        rows = [round(self.pair.y_axis.ms_to_pan(window.y + row)) for row in range(window.height)]
        pixels = Window(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        _, valid = self.read(self.fused, pixels)
        row_index = torch.tensor(rows, device=self.device) - rows[0]
        return valid[row_index][:, torch.tensor(columns, device=self.device) - columns[0]]


def _pixel_offset(grid: Grid, base: Grid) -> Optional[tuple[int, int]]:
    """First pixel (column, row) of a grid in the pixels of another; None if it does not lie on them."""
    if grid.crs and base.crs and not grid.shares_crs(base):
        return None
    return grid.pixel_offset_in(base, _GRID_TOLERANCE)


def _size_text(grid: Grid) -> str:
    return f"{grid.width} × {grid.height}"


def _fused_origin(pair: Pair, fused: Grid) -> tuple[int, int]:
    if fused.geotransform and pair.grid.geotransform:
        offset = _pixel_offset(fused, pair.grid)
        if offset is not None:
            return offset
    # Without a georeference the size has to match.
    elif (fused.width, fused.height) == (pair.grid.width, pair.grid.height):
        return 0, 0
    elif (fused.width, fused.height) == (pair.pan.grid.width, pair.pan.grid.height):
        return -pair.alignment.column, -pair.alignment.row
    raise ClippanError(
        "The pansharpened raster ({size} pixels) does not lie on the pixels of the panchromatic raster ({pan_size} "
        "pixels); choose the pansharpened raster that was made from these two.",
        size=_size_text(fused),
        pan_size=_size_text(pair.pan.grid),
    )


def _samples(start: float, end: float, limit: int) -> tuple[int, int]:
    first, last = max(math.ceil(start), 0), min(math.floor(end) + 1, limit)
    return first, max(last, first)


def _filter_valid(
    rows: torch.Tensor, values: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values filtered with the weights of valid pixels, and where only valid pixels contribute."""
    filtered = filters.apply_separable(rows, values, columns)
    if bool(valid.all()):
        return filtered, torch.ones(filtered.shape[-2:], dtype=torch.bool, device=filtered.device)
    weight = filters.apply_separable(rows, valid.float(), columns)
    return filtered / weight.clamp(min=1e-6), weight > _MIN_WEIGHT

"""Assess: quality figures of a pansharpened raster, tile by tile, and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from osgeo import gdal

from clippan.catalogue.sensors import Sensor, find_sensor, resolve_sensor
from clippan.core.context import Context
from clippan.core.device import choose_device
from clippan.core.errors import ClippanError
from clippan.core.json import from_json
from clippan.core.messages import Message
from clippan.core.threads import count_threads, in_order
from clippan.fusion import filters
from clippan.fusion.metrics import BLOCK, FullResolutionMetrics, ReferenceMetrics
from clippan.fusion.registration import Shifts, register
from clippan.fusion.units import UnitComparison
from clippan.jobs.assess import AssessRequest, AssessResult
from clippan.jobs.options import Registration
from clippan.jobs.pansharpen import PansharpenRequest
from clippan.raster.grid import AxisTransform, Grid
from clippan.raster.pair import Pair, open_pair
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window, tiles
from clippan.report import page
from clippan.report.pictures import percentile_limits, stretched_png

_TILE = 16 * BLOCK  # fused pixels; about 200 MB of intermediate images for eight bands
_MIN_WEIGHT = 0.999  # of valid pixels under a filter
_GRID_TOLERANCE = 0.1  # pixels between the grids of two rasters
_PICTURE = 320  # pixels, edge of the crops in the report

FUSED = Message("pansharpened raster")
REFERENCE = Message("reference raster")


def run(request: AssessRequest, context: Context) -> AssessResult:
    started = time.monotonic()
    request, recorded = _with_recorded_settings(request, context)
    choice = choose_device(request.device, needs_float64=True)
    choice.log(context)
    device = choice.device
    with contextlib.ExitStack() as files:
        pair = files.enter_context(open_pair(request.pan, request.ms, request.bands, request.nodata))
        fused = files.enter_context(_open(request.fused, FUSED, (), request.nodata))
        sensor = resolve_sensor(request.sensor, pair.sensor_texts, context)
        scene = AssessedScene.of(pair, fused, sensor, request.bands, device)
        reference = None
        if request.reference is not None:
            reference = files.enter_context(_open_reference(request.reference, request, scene))
        scene, shifts = _registered(scene, request.registration, recorded, context.subrange(0, 5))
        full, pixels, hints = _assess_full(scene, context.subrange(5, 95 if reference is None else 45))
        against: dict[str, float] = {}
        if reference is not None:
            against, more = _assess_reference(scene, reference, context.subrange(45, 95))
            hints += more
        seconds = round(time.monotonic() - started, 3)
        result = AssessResult(
            full,
            against,
            sensor.name,
            pixels,
            request.report,
            seconds,
            (shifts.x, shifts.y),
            shifts.bands,
            (*pair.notes, *hints),
        )
        if request.report is not None:
            context.progress(95, "Writing the report")
            page.write(
                request.report,
                "assessment",
                request=request,
                result=result,
                sensor=sensor.label,
                ratio=scene.ratio,
                pictures=_pictures(scene, reference),
            )
    context.progress(100, "Done")
    return result


def _with_recorded_settings(request: AssessRequest, context: Context) -> tuple[AssessRequest, Optional[Shifts]]:
    """The request, completed from the tags of the pansharpened raster, and the shifts that the tags hold."""
    dataset = open_dataset(request.fused, FUSED)
    tags = dataset.GetMetadata() or {}
    try:
        made = from_json(PansharpenRequest, json.loads(tags["CLIPPAN_PARAMETERS"]))
    except (KeyError, ValueError, ClippanError):  # made by another program, or by another version
        return request, None
    changes: dict[str, object] = {}
    if request.sensor == "auto" and find_sensor(tags.get("CLIPPAN_SENSOR", "")):
        changes["sensor"] = tags["CLIPPAN_SENSOR"]
    if not request.bands and len(made.bands) == dataset.RasterCount:
        changes["bands"] = made.bands
    if request.nodata is None and made.nodata is not None:
        changes["nodata"] = made.nodata
    if changes:
        settings = ", ".join(f"{name} {value}" for name, value in changes.items())
        context.log(Message("Settings from the tags of the raster: {settings}.", settings=settings))
    if request.bands and made.bands and request.bands != made.bands:
        context.log(
            Message(
                "The raster was made from the bands {made_bands} and is compared with the requested bands {bands}.",
                made_bands=made.bands,
                bands=request.bands,
            )
        )
    request = dataclasses.replace(request, **changes)  # type: ignore[arg-type]
    # A raster made without full registration is assessed with it, like those of other programs.
    if made.registration is not Registration.AUTO or request.bands != made.bands:
        return request, None
    return request, Shifts.from_tag(tags.get("CLIPPAN_SHIFT", ""), dataset.RasterCount)


def _registered(
    scene: AssessedScene, choice: Registration, recorded: Optional[Shifts], context: Context
) -> tuple[AssessedScene, Shifts]:
    """The scene with registered MS, by the shifts in the raster's tags or else by estimated ones, and the shifts."""
    if recorded is None or choice is not Registration.AUTO:
        pair, shifts = register(scene.pair, choice, scene.gains, count_threads(0), context)
    else:
        pair, shifts = recorded.apply(scene.pair), recorded
        context.log(Message("Registration: {result}", result=shifts.reason))
    return dataclasses.replace(scene, pair=pair), shifts


def _open(path: str, what: str, bands: Sequence[int], nodata: Optional[float]) -> Source:
    dataset = open_dataset(path, what)
    # The requested nodata value is for PAN and MS; a raster made from them may declare its own.
    declared = dataset.GetRasterBand(1).GetNoDataValue()
    return Source([dataset], what, bands, nodata if declared is None else None)


def _open_reference(path: str, request: AssessRequest, scene: AssessedScene) -> Source:
    fused = scene.fused
    reference = _open(path, REFERENCE, (), request.nodata)
    if reference.total == scene.pair.ms.total != fused.count:
        reference = _open(path, REFERENCE, request.bands, request.nodata)
    if reference.count != fused.count:
        raise ClippanError(
            "The bands of the reference raster ({reference_bands}) and of the pansharpened raster ({fused_bands}) "
            "differ; choose a reference with the same bands.",
            reference_bands=reference.count,
            fused_bands=fused.count,
        )
    one, other = reference.grid, fused.grid
    if (one.width, one.height) != (other.width, other.height):
        raise ClippanError(
            "The sizes of the reference raster ({reference_size} pixels) and of the pansharpened raster ({fused_size} "
            "pixels) differ; choose a reference on the same grid.",
            reference_size=_size(one),
            fused_size=_size(other),
        )
    if one.geotransform and other.geotransform and _offset(one, other) != (0, 0):
        raise ClippanError(
            "The reference raster does not lie on the grid of the pansharpened raster; choose a reference on the same "
            "grid."
        )
    return reference


def _size(grid: Grid) -> str:
    return f"{grid.width} × {grid.height}"


def _offset(grid: Grid, base: Grid) -> Optional[tuple[int, int]]:
    if grid.crs and base.crs and not grid.shares_crs(base):
        return None
    return grid.pixel_offset_in(base, _GRID_TOLERANCE)


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
                "The pansharpened raster and the {what} have different numbers of bands ({fused_bands} and "
                "{ms_bands}); choose the bands that were sharpened.",
                fused_bands=fused.count,
                ms_bands=pair.ms.count,
                what=pair.ms.what,
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
        positions = tuple(number - 1 for number in bands) or tuple(range(pair.ms.total))
        return cls(pair, fused, column, row, area, sensor, positions, device)

    @property
    def gains(self) -> tuple[float, ...]:
        """MTF gain of each band."""
        return self.sensor.mtf_gains(self.positions, self.pair.ms.total)

    @property
    def ratio(self) -> float:
        """MS over PAN pixel size, the mean of both axes."""
        return math.sqrt(self.pair.x.ratio * self.pair.y.ratio)

    def windows(self) -> list[Window]:
        """Tiles of the area."""
        windows = [
            Window(self.area.x + tile.x, self.area.y + tile.y, tile.width, tile.height)
            for tile in tiles(self.area.width, self.area.height, _TILE)
        ]
        return [window for window in windows if self.pair.may_contain_data(window)] or windows[:1]

    def read(self, source: Source, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of the fused raster, or of one on its grid, and where all its bands are valid.

        The border of the area is replicated, as what other programs write beyond it need not be image.
        """
        area = self.area
        left, top = max(window.x, area.x), max(window.y, area.y)
        right = min(window.x + window.width, area.x + area.width)
        bottom = min(window.y + window.height, area.y + area.height)
        values, valid = source.read(left - self.column, top - self.row, right - left, bottom - top)
        edges = (
            (0, 0),
            (top - window.y, window.y + window.height - bottom),
            (left - window.x, window.x + window.width - right),
        )
        return self._tensors(np.pad(values, edges, "edge"), None if valid is None else np.pad(valid, edges, "edge"))

    def read_pan(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of PAN (1, height, width) and its validity."""
        values, valid = self.pair.read_pan(window)
        return self._tensors(values[None], None if valid is None else valid[None])

    def read_ms(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """A window of MS and where all its bands are valid."""
        return self._tensors(*self.pair.read_ms(window))

    def _tensors(self, values: np.ndarray, valid: Optional[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.device)
        if valid is None:
            return tensor, torch.ones(tensor.shape[1:], dtype=torch.bool, device=self.device)
        mask = torch.from_numpy(valid).to(self.device)
        return torch.where(mask, tensor, torch.zeros_like(tensor)), mask.all(dim=0)

    def upsampled(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """MS interpolated to the pixels of a window, and where the nearest samples of all bands are valid."""
        columns = filters.Upsampling.of(self.pair.x, window.x, window.width, [x for x, _ in self.pair.band_shifts])
        rows = filters.Upsampling.of(self.pair.y, window.y, window.height, [y for _, y in self.pair.band_shifts])
        return self.resample_ms(rows.to(self.device), columns.to(self.device))

    def resample_ms(self, rows: filters.Upsampling, columns: filters.Upsampling) -> tuple[torch.Tensor, torch.Tensor]:
        """MS interpolated along both axes, and where the nearest samples of all bands are valid."""
        ms, valid = self.read_ms(Window(columns.first, rows.first, columns.number, rows.number))
        if not bool(valid.all()):
            mean = ms[:, valid].mean(dim=1) if bool(valid.any()) else ms.new_zeros(len(ms))
            ms = filters.fill_invalid(ms, valid.expand_as(ms), mean)
        nearest = filters.gather(valid.expand_as(ms), rows.nearest, columns.nearest).all(dim=0)
        return filters.apply_separable(rows.matrix, ms, columns.matrix), nearest

    def inside(self, window: Window) -> torch.Tensor:
        """Pixels of a window that lie in the area."""
        rows = torch.arange(window.y, window.y + window.height, device=self.device)
        columns = torch.arange(window.x, window.x + window.width, device=self.device)
        rows = (rows >= self.area.y) & (rows < self.area.y + self.area.height)
        columns = (columns >= self.area.x) & (columns < self.area.x + self.area.width)
        return rows[:, None] & columns


def _fused_origin(pair: Pair, fused: Grid) -> tuple[int, int]:
    if fused.geotransform and pair.grid.geotransform:
        offset = _offset(fused, pair.grid)
        if offset is not None:
            return offset
    # Without a georeference the size has to match.
    elif (fused.width, fused.height) == (pair.grid.width, pair.grid.height):
        return 0, 0
    elif (fused.width, fused.height) == (pair.pan.grid.width, pair.pan.grid.height):
        return -pair.alignment.column, -pair.alignment.row
    raise ClippanError(
        "The pansharpened raster ({size} pixels) does not lie on the pixels of the {what} ({pan_size} pixels); choose "
        "the pansharpened raster that was made from these two.",
        size=_size(fused),
        what=pair.pan.what,
        pan_size=_size(pair.pan.grid),
    )


def _grow(window: Window, margin: int) -> Window:
    return Window(window.x - margin, window.y - margin, window.width + 2 * margin, window.height + 2 * margin)


def _crop(image: torch.Tensor, margin: int) -> torch.Tensor:
    return image[..., margin : image.shape[-2] - margin, margin : image.shape[-1] - margin]


# Without a reference


def _assess_full(scene: AssessedScene, context: Context) -> tuple[dict[str, float], int, tuple[str, ...]]:
    """The figures, the number of pixels compared, and hints."""
    figures = FullResolutionMetrics(scene.ratio)
    units = UnitComparison(FUSED, scene.pair.ms.what, "D_λ,K, D_s, HQNR and QNR")
    pixels = 0
    windows, low_windows = scene.windows(), _low_windows(scene, figures.ms_block_size)
    steps = len(windows) + len(low_windows)
    reach = _reach(scene)

    def read(window: Window) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        near = _grow(window, figures.MARGIN)
        return scene.read(scene.fused, _grow(window, reach)), scene.read_pan(near), scene.upsampled(window)

    # One thread reads ahead while this one computes.
    for number, (window, tile) in enumerate(in_order(read, windows, 1), 1):
        (fused, fused_valid), (pan, pan_valid), (upsampled, ms_valid) = tile
        margin = figures.MARGIN
        inside = scene.inside(_grow(window, margin))
        near = _crop(fused_valid, reach - margin) & pan_valid & inside
        figures.add_high(_crop(fused, reach - margin), pan, near)
        filtered, covered = _filter(scene, fused, fused_valid, reach)
        both = covered & ms_valid & _crop(near, margin)
        figures.add_khan(filtered, upsampled, both)
        units.add(filtered, upsampled, both)
        pixels += int((_crop(near, margin) & ms_valid).sum())
        context.progress(100 * number / steps, "Comparing with PAN and MS")
    if not pixels:
        raise ClippanError(
            "No pixel is valid in the pansharpened raster and in both rasters that it was made from; check their "
            "nodata values (nodata, NaN and alpha count as invalid)."
        )
    for number, (_, low) in enumerate(in_order(lambda window: _read_low(scene, window), low_windows, 1), 1):
        figures.add_low(*low)
        context.progress(100 * (len(windows) + number) / steps, "Comparing with PAN and MS")
    if not figures.complete:
        raise ClippanError(_NO_BLOCK)
    hint = units.hint(scene.fused.infos, scene.pair.ms.infos)
    return figures.values, pixels, (hint,) if hint else ()


_NO_BLOCK = Message(
    "No block of {block} × {block} pixels is completely valid, and the figures are measured on such blocks; choose a "
    "scene with fewer gaps.",
    block=BLOCK,
)


def _reach(scene: AssessedScene) -> int:
    ratios = (scene.pair.x.ratio, scene.pair.y.ratio)
    reach = max(filters.mtf_reach(gain, ratio) for gain in scene.gains for ratio in ratios)
    return max(reach, FullResolutionMetrics.MARGIN)


def _filter(
    scene: AssessedScene, fused: torch.Tensor, valid: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fused bands filtered with the MTF, and where only valid pixels contribute."""
    height, width = (size - 2 * reach for size in valid.shape)
    planes, covered = [], torch.ones((height, width), dtype=torch.bool, device=scene.device)
    whole = bool(valid.all())
    for band, gain in zip(fused, scene.gains):
        rows = filters.mtf_matrix(gain, scene.pair.y.ratio, height, reach).to(scene.device)
        columns = filters.mtf_matrix(gain, scene.pair.x.ratio, width, reach).to(scene.device)
        plane = filters.apply_separable(rows, band, columns)
        if not whole:
            weight = filters.apply_separable(rows, valid.float(), columns)
            plane = plane / weight.clamp(min=1e-6)
            covered &= weight > _MIN_WEIGHT
        planes.append(plane)
    return torch.stack(planes), covered


def _low_windows(scene: AssessedScene, block: int) -> list[Window]:
    """Tiles, in MS pixels, of the MS pixels whose centres lie in the area."""
    area, x, y = scene.area, scene.pair.x, scene.pair.y
    left, right = _samples(x.pan_to_ms(area.x - 0.5), x.pan_to_ms(area.x + area.width - 0.5), scene.pair.ms.grid.width)
    top, bottom = _samples(
        y.pan_to_ms(area.y - 0.5), y.pan_to_ms(area.y + area.height - 0.5), scene.pair.ms.grid.height
    )
    windows = [
        Window(left + tile.x, top + tile.y, tile.width, tile.height)
        for tile in tiles(right - left, bottom - top, block * (_TILE // BLOCK))
    ]
    return [window for window in windows if scene.pair.ms.may_contain_data(window)] or windows[:1]


def _samples(start: float, end: float, limit: int) -> tuple[int, int]:
    first, last = max(math.ceil(start), 0), min(math.floor(end) + 1, limit)
    return first, max(last, first)


def _read_low(scene: AssessedScene, window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MS, PAN filtered with its MTF and brought to MS's grid, and where both are valid."""
    x, y, gain = scene.pair.x, scene.pair.y, scene.sensor.mtf_pan
    left, width = filters.pan_support(x, window.x, window.width, gain)
    top, height = filters.pan_support(y, window.y, window.height, gain)
    pan, pan_valid = scene.read_pan(Window(left, top, width, height))
    rows = filters.downsampling_matrix(y, window.y, window.height, gain).to(scene.device)
    columns = filters.downsampling_matrix(x, window.x, window.width, gain).to(scene.device)
    low = filters.apply_separable(rows, pan, columns)
    ms, valid = _read_coregistered_ms(scene, window)
    if not bool(pan_valid.all()):
        weight = filters.apply_separable(rows, pan_valid.float(), columns)
        low = low / weight.clamp(min=1e-6)
        valid = valid & (weight > _MIN_WEIGHT)
    return ms, low, valid & _fused_valid(scene, window)


def _read_coregistered_ms(scene: AssessedScene, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """MS and its validity, with all bands at the samples of the common axes."""
    offsets = scene.pair.band_shifts
    if not offsets:
        return scene.read_ms(window)
    x, y, grid = scene.pair.x, scene.pair.y, AxisTransform(1.0, 0.0)  # of MS itself: one sample per pixel
    columns = filters.Upsampling.of(grid, window.x, window.width, [shift / x.ratio for shift, _ in offsets])
    rows = filters.Upsampling.of(grid, window.y, window.height, [shift / y.ratio for _, shift in offsets])
    return scene.resample_ms(rows.to(scene.device), columns.to(scene.device))


def _fused_valid(scene: AssessedScene, window: Window) -> torch.Tensor:
    """Where the fused raster is valid at the centres of a window's MS pixels."""
    columns = [round(scene.pair.x.ms_to_pan(window.x + column)) for column in range(window.width)]
    rows = [round(scene.pair.y.ms_to_pan(window.y + row)) for row in range(window.height)]
    _, valid = scene.read(
        scene.fused, Window(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    )
    return valid[torch.tensor(rows, device=scene.device) - rows[0]][
        :, torch.tensor(columns, device=scene.device) - columns[0]
    ]


# With a reference


def _assess_reference(
    scene: AssessedScene, reference: Source, context: Context
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The figures, and hints."""
    windows = scene.windows()
    units = UnitComparison(FUSED, REFERENCE, "Q2n, ERGAS, PSNR and SSIM")
    peak = -math.inf
    for number, (_, (values, valid)) in enumerate(in_order(lambda w: scene.read(reference, w), windows, 1), 1):
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
    figures = ReferenceMetrics(scene.ratio, peak)
    for number, (_, (image, truth, valid)) in enumerate(_compared(scene, reference, windows), 1):
        figures.add(image, truth, valid)
        units.add(image, truth, valid)
        context.progress(20 + 80 * number / len(windows), "Comparing with the reference")
    if not figures.complete:
        raise ClippanError(_NO_BLOCK)
    hint = units.hint(scene.fused.infos, reference.infos)
    return figures.values, (hint,) if hint else ()


def _compared(
    scene: AssessedScene, reference: Source, windows: Sequence[Window]
) -> Iterator[tuple[Window, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    def read(window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = _grow(window, ReferenceMetrics.MARGIN)
        (image, image_valid), (truth, truth_valid) = scene.read(scene.fused, wide), scene.read(reference, wide)
        return image, truth, image_valid & truth_valid & scene.inside(wide)

    return in_order(read, windows, 1)


# The report's pictures


def _pictures(scene: AssessedScene, reference: Optional[Source]) -> dict[str, bytes]:
    """The same crop of all images, with the same stretch for those of one unit."""
    window = _detailed_window(scene)
    bands = _rgb(scene)
    fused, valid = scene.read(scene.fused, window)
    pan, pan_valid = scene.read_pan(window)
    upsampled, ms_valid = scene.upsampled(window)
    limits = percentile_limits(upsampled[bands].cpu().numpy(), ms_valid.cpu().numpy())
    pictures = {
        "pan": stretched_png(pan.cpu().numpy(), pan_valid.cpu().numpy()),
        "ms": stretched_png(upsampled[bands].cpu().numpy(), ms_valid.cpu().numpy(), limits),
        "fused": stretched_png(fused[bands].cpu().numpy(), valid.cpu().numpy(), limits),
    }
    if reference is not None:
        truth, truth_valid = scene.read(reference, window)
        pictures["reference"] = stretched_png(truth[bands].cpu().numpy(), truth_valid.cpu().numpy(), limits)
    return pictures


def _detailed_window(scene: AssessedScene) -> Window:
    """The window, of nine in the area, with the most valid pixels and then the most contrast in PAN."""
    width, height = min(_PICTURE, scene.area.width), min(_PICTURE, scene.area.height)
    best, best_score = Window(scene.area.x, scene.area.y, width, height), (-1.0, -1.0)
    for row in range(3):
        for column in range(3):
            x = scene.area.x + (scene.area.width - width) * column // 2
            y = scene.area.y + (scene.area.height - height) * row // 2
            window = Window(x, y, width, height)
            pan, valid = scene.read_pan(window)
            valid = valid & scene.read(scene.fused, window)[1]
            contrast = float(pan[:, valid].std()) if int(valid.sum()) > 1 else 0.0
            score = (round(float(valid.float().mean()), 2), contrast)
            if score > best_score:
                best, best_score = window, score
    return best


def _rgb(scene: AssessedScene) -> list[int]:
    """The bands to show as red, green and blue; a single one is shown as grey."""
    codes = [info.interpretation for info in scene.pair.ms.infos]
    wanted = [gdal.GCI_RedBand, gdal.GCI_GreenBand, gdal.GCI_BlueBand]
    if set(wanted) <= set(codes):
        return [codes.index(code) for code in wanted]
    if len(scene.sensor.bands) == scene.pair.ms.total:
        names = [scene.sensor.bands[position] for position in scene.positions]
        if {"red", "green", "blue"} <= set(names):
            return [names.index(name) for name in ("red", "green", "blue")]
    if len(codes) < 3:
        return [0]
    # Four bands usually are blue, green, red, near infrared; three are red, green, blue.
    return [0, 1, 2] if len(codes) == 3 else [2, 1, 0]

"""Pairs of rasters of one place, of the teacher and of the sensor, cut into chips."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.core.channels import Channels
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.threads import once_per_thread
from clippan.jobs.align import AlignSensorRequest
from clippan.learn.clip.chips import boxes_overlap, window_boxes
from clippan.raster import source as sources
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import Grid
from clippan.raster.nodata import as_pixel_value
from clippan.raster.products import is_categorical, is_quality
from clippan.raster.regrid import warp, warp_extent
from clippan.raster.rendering import Renderer, RenderOptions, transform_extent
from clippan.raster.tiles import Window

_MAX_TRAIN, _MAX_HELD_OUT = 20_000, 2_000  # chips drawn at most
_MIN_VALID_SHARE = 0.9  # share of a chip's pixels, in both rasters
_PERCENTILES = (1.0, 99.0)
_SENSOR = Message("raster of the sensor")
_NEGLIGIBLE_OVERLAP = 0.01  # share of a raster's area that adjacent rasters have in common at their border


@dataclass(frozen=True)
class PairedChip:
    """A window of a pair of rasters, whose number counts from 0."""

    pair: int
    window: Window


def overlaps(chips: Sequence[PairedChip]) -> np.ndarray:
    """Whether chips share pixels with other chips, bool (n, n); False for a chip and itself."""
    pairs = np.array([chip.pair for chip in chips])
    boxes = window_boxes([chip.window for chip in chips])
    return (pairs[:, None] == pairs) & boxes_overlap(boxes, boxes) & ~np.eye(len(chips), dtype=bool)


class RasterPairs:
    """The pairs of rasters of a request on the grids of the teacher's rasters, opened once in each thread.

    ``folder`` is for the VRTs of the sensor's rasters.

    Attributes:
        channels: bands of the student.
        rgb_bands: indices of red, green and blue among the channels; empty unless all three are there.
        hints: sentences for the user.
        renderings: bands and stretch of the teacher's rasters.

    Raises:
        ClippanError: rasters do not overlap, lack a requested band, or have a band that is constant or empty.
    """

    def __init__(self, request: AlignSensorRequest, folder: Path, context: Context) -> None:
        self._teachers = request.teacher_rasters
        self._options = RenderOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
        numbers, names, total, self.rgb_bands = _sensor_bands(request)
        self._warped: list[str] = []
        self.hints: list[str] = []
        pairs = list(zip(request.teacher_rasters, request.sensor_rasters))
        for number, (teacher, sensor) in enumerate(pairs):
            context.progress(
                100 * number / len(pairs), Message("Warping {name} to the teacher's grid", name=Path(sensor).name[:80])
            )
            target = str(folder / f"{number}.vrt")
            grid = Renderer(teacher, self._options).declared_grid
            self.hints += _warp_to_grid(sensor, numbers, grid, request.nodata, target)
            self._warped.append(target)
        training = [path for number, path in enumerate(self._warped, 1) if number not in request.test]
        low, high = _ranges(request, training, names)
        self.channels = Channels(names, low, high, numbers, total)
        self.hints += _shared_land_hints(request)
        self.renderings = tuple(Renderer(path, self._options).rendering for path in self._teachers)
        self._scenes = [once_per_thread(functools.partial(self._open, pair)) for pair in range(len(pairs))]

    def chips(
        self, request: AlignSensorRequest, pixels: int, context: Context
    ) -> tuple[list[PairedChip], list[PairedChip]]:
        """Training chips, which overlap each other, and held-out chips, which overlap no chip.

        ``pixels``, the edge of the model's pictures, is also that of the chips if the resolution is unknown.

        Raises:
            ClippanError: the rasters are too small, or have no data in common.
        """
        train: list[PairedChip] = []
        held_out: list[PairedChip] = []
        for pair, path in enumerate(self._teachers):
            scene, _ = self._scenes[pair]()
            width, height = scene.grid.width, scene.grid.height
            across, down = (request.size,) * 2 if request.size else scene.tile_plan(pixels).layouts[0].size
            border = height  # training chips lie above it, held-out chips below
            if pair + 1 in request.test:
                border = 0
            elif not request.test:
                border = height - max(round(request.held * height), down)
            if across > width or down > (height - border if border < height else height) or 0 < border < down:
                raise ClippanError(
                    "The raster {path} is too small for training and held-out chips of {width} × {height} pixels; "
                    "choose smaller chips (--size), or a pair for the test (--test).",
                    path=path,
                    width=across,
                    height=down,
                )
            step_x, step_y = (max(round(edge * (1 - request.overlap)), 1) for edge in (across, down))
            for chips, rows, columns in (
                (train, range(0, border - down + 1, step_y), range(0, width - across + 1, step_x)),
                (held_out, range(border, height - down + 1, down), range(0, width - across + 1, across)),
            ):
                chips += [PairedChip(pair, Window(x, y, across, down)) for y in rows for x in columns]
        rng = np.random.default_rng([request.seed, 5])
        found = []
        for number, (chips, max_count) in enumerate(((train, _MAX_TRAIN), (held_out, _MAX_HELD_OUT))):
            drawn = np.sort(rng.permutation(len(chips))[:max_count])
            part = context.subrange(50 * number, 50 * (number + 1))
            found.append([chips[index] for index in drawn if self._has_data(chips[index], part)])
        if not all(found):
            raise ClippanError(
                "The rasters of sensor and teacher have no data in the same places; check that both cover one area."
            )
        return found[0], found[1]

    def _has_data(self, chip: PairedChip, context: Context) -> bool:
        context.raise_if_cancelled()
        return all(
            scene.picture_and_mask(chip.window, chip.window.width, chip.window.height)[1].mean() >= _MIN_VALID_SHARE
            for scene in self._scenes[chip.pair]()
        )

    def teacher_chip(self, chip: PairedChip, edge: int) -> np.ndarray:
        """A chip of the teacher's raster, uint8 (3, edge, edge)."""
        return self._scenes[chip.pair]()[0].picture(chip.window, edge)[0]

    def sensor_chip(self, chip: PairedChip, edge: int) -> np.ndarray:
        """A chip of the sensor's raster, float32 (bands, edge, edge), 0 to 1."""
        return self._scenes[chip.pair]()[1].picture(chip.window, edge)[0]

    def _open(self, pair: int) -> tuple[Renderer, Renderer]:
        teacher = Renderer(self._teachers[pair], self._options, self.renderings[pair].stretch)
        count = len(self.channels.names)
        # The VRT has only these bands.
        channels = replace(self.channels, numbers=tuple(range(1, count + 1)), total=count)
        return teacher, Renderer(self._warped[pair], RenderOptions(), channels=channels)


def _sensor_bands(request: AlignSensorRequest) -> tuple[tuple[int, ...], tuple[str, ...], int, tuple[int, ...]]:
    """Numbers of the sensor's bands to use, from 1 and without alpha, their names, the number of all bands, and the
    indices of red, green and blue among those used."""
    first = request.sensor_rasters[0]
    (dataset,) = sources.open_datasets([first], _SENSOR, request.sensor_bands)
    spectral = sources.image_bands(dataset)
    for path in request.sensor_rasters[1:]:
        (other,) = sources.open_datasets([path], _SENSOR, request.sensor_bands)
        count = len(sources.image_bands(other))
        if count != len(spectral):
            raise ClippanError(
                "The rasters {path} and {other} differ in their number of bands ({bands} and {other_bands}); give "
                "rasters of one sensor.",
                path=path,
                bands=count,
                other=first,
                other_bands=len(spectral),
            )
    numbers = request.sensor_bands or tuple(range(1, len(spectral) + 1))
    wrong = [number for number in numbers if number > len(spectral)]
    if wrong:
        raise ClippanError(
            "Band {band} was requested, but the last band of the raster {path} is {count}; choose others.",
            band=wrong[0],
            path=first,
            count=len(spectral),
        )
    described = [(dataset.GetRasterBand(spectral[number - 1]).GetDescription() or "").strip() for number in numbers]
    folded = [name.casefold() for name in described]
    names = tuple(
        name if name and folded.count(name.casefold()) == 1 else f"band {number}"
        for name, number in zip(described, numbers)
    )
    shown = [spectral.index(band) + 1 for band in Renderer(first, RenderOptions()).bands if band in spectral]
    rgb_bands = tuple(numbers.index(band) for band in shown) if len(shown) == 3 and set(shown) <= set(numbers) else ()
    return tuple(numbers), names, len(spectral), rgb_bands


def _ranges(
    request: AlignSensorRequest, warped: Sequence[str], names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values of each band that become 0 and 1: as requested, or percentiles of the training rasters."""
    count = len(names)
    if request.low and len(request.low) not in (1, count):
        raise ClippanError(
            "The numbers of ranges ({ranges}) and bands ({bands}) differ; give one range for all, or one for each "
            "band.",
            ranges=len(request.low),
            bands=count,
        )
    low, high = [], []
    for number, name in enumerate(names, 1):
        samples = [Renderer(path, RenderOptions(bands=(number,))).sample_values()[0] for path in warped]
        values = np.concatenate(samples).astype(np.float64)
        if not len(values):
            raise ClippanError(
                "The band {name} of the sensor's rasters has no data inside the teacher's; leave it out "
                "(--sensor-bands).",
                name=name,
            )
        if np.ptp(values) == 0:
            raise ClippanError(
                "The band {name} of the sensor's rasters is constant inside the teacher's; leave it out "
                "(--sensor-bands).",
                name=name,
            )
        bottom, top = np.percentile(values, _PERCENTILES)
        low.append(float(bottom if bottom < top else values.min()))
        high.append(float(top if bottom < top else values.max()))
    if request.low:
        repeat = count if len(request.low) == 1 else 1
        return request.low * repeat, request.high * repeat
    return tuple(low), tuple(high)


def _shared_land_hints(request: AlignSensorRequest) -> list[str]:
    hints: list[str] = []
    training = [pair for pair in range(len(request.teacher_rasters)) if pair + 1 not in request.test]
    for pair, other in itertools.product(sorted({number - 1 for number in request.test}), training):
        share = _overlap_share(request.teacher_rasters[pair], request.teacher_rasters[other])
        if share > _NEGLIGIBLE_OVERLAP:
            hints.append(
                Message(
                    "Test pair {pair} shares {share:.0%} of its area with training pair {other}; expect less on other "
                    "land, and use a pair from elsewhere for the test (--test).",
                    pair=pair + 1,
                    share=share,
                    other=other + 1,
                )
            )
    return hints


def _overlap_share(one: str, other: str) -> float:
    """Share of a raster's area that another covers, 0 to 1; without a CRS, 1 for the same file and else 0."""
    grids = [Grid.of(sources.open_dataset(path, Message("raster"))) for path in (one, other)]
    if not all(grid.crs and grid.geotransform for grid in grids):
        return float(os.path.realpath(one) == os.path.realpath(other))
    try:
        west, south, east, north = _extent(grids[0])
        left, bottom, right, top = transform_extent(_extent(grids[1]), grids[1].crs, grids[0].crs)
    except ClippanError:  # outside the area of the other's CRS
        return 0.0
    across, along = min(east, right) - max(west, left), min(north, top) - max(south, bottom)
    return max(across, 0.0) * max(along, 0.0) / ((east - west) * (north - south))


def _extent(grid: Grid) -> tuple[float, float, float, float]:
    """xmin, ymin, xmax, ymax of a grid with a geotransform."""
    corners = [gdal.ApplyGeoTransform(grid.geotransform, x, y) for x in (0, grid.width) for y in (0, grid.height)]
    x, y = zip(*corners)
    return min(x), min(y), max(x), max(y)


def _warp_to_grid(path: str, numbers: Sequence[int], grid: Grid, nodata: Optional[float], target: str) -> list[str]:
    """Writes a VRT of bands of a raster on another grid, with cubic resampling, or nearest for codes; NaN outside.

    An alpha band is kept. An undeclared value that marks gaps is used as nodata. Returns sentences on both.
    """
    (dataset,) = sources.open_datasets([path], _SENSOR, numbers)
    own = Grid.of(dataset)
    bands = target if _same_pixels(own, grid) else f"{target}.bands.vrt"
    spectral = sources.image_bands(dataset)
    chosen = [spectral[number - 1] for number in numbers]
    alpha = [number for number in range(1, dataset.RasterCount + 1) if number not in spectral][:1]
    source = sources.Source([dataset], f"raster {path}", numbers, nodata)
    hints = [*alpha_notes([dataset]), *([source.nodata_note] if source.nodata_note else [])]
    codes = [info.description for info in source.infos if is_quality(info.description)]
    if codes and len(codes) < len(numbers):
        raise ClippanError(
            "The band {band} of the raster {path} is a quality band or mask with codes, not quantities; leave it out "
            "(--sensor-bands).",
            path=path,
            band=codes[0],
        )
    missing = source.nodata if source.nodata_note else as_pixel_value(nodata, source.dtype)
    extra = {} if missing is None else {"noData": missing}
    try:
        gdal.Translate(bands, dataset, format="VRT", bandList=[*chosen, *alpha], **extra).FlushCache()
        if bands == target:
            return hints
        if grid.geotransform is None or own.geotransform is None:
            raise ClippanError(
                "The raster {path} differs in size from the teacher's, and not both are georeferenced; georeference "
                "both.",
                path=path,
            )
        if not (own.crs and grid.crs) and own.crs != grid.crs:
            raise ClippanError(
                "Either {path} or the teacher's raster has no CRS; assign it (gdal_edit -a_srs).", path=path
            )
        _, _, turn, _, skew, dy = grid.geotransform
        if turn or skew or dy > 0:
            raise ClippanError("The teacher's raster is rotated or not north up; warp it first (gdalwarp).")
        opened = gdal.Open(bands)
        resampling = "near" if is_categorical(dataset) else "cubic"
        outside = {"outputType": gdal.GDT_Float32, "dstNodata": math.nan}
        warp(target, opened, grid.crs, resampling, **outside, **warp_extent(grid)).FlushCache()
        return hints
    except RuntimeError as error:
        raise ClippanError(
            "The raster {path} cannot be warped to the teacher's grid ({reason}); check its CRS.",
            path=path,
            reason=one_line(error),
        ) from error


def _same_pixels(one: Grid, other: Grid) -> bool:
    if (one.width, one.height) != (other.width, other.height):
        return False
    if one.geotransform is None or other.geotransform is None:
        return True  # without coordinates, the size decides
    return one.shares_crs(other) and one.pixel_offset_in(other, 0.01) == (0, 0)

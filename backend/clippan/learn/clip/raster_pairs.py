"""Pairs of rasters of one place, of the teacher and of the sensor, cut into chips."""

from __future__ import annotations

import itertools
import math
import os
import threading
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
from clippan.jobs.align import AlignSensorRequest
from clippan.learn.clip.chips import boxes_overlap, window_boxes
from clippan.raster import source as sources
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import Grid
from clippan.raster.nodata import as_pixel_value
from clippan.raster.products import is_categorical, is_quality
from clippan.raster.regrid import warp, warp_extent
from clippan.raster.scene import Scene, SceneOptions, transform_extent
from clippan.raster.tiles import Window

_MAX_TRAIN, _MAX_HELD_OUT = 20_000, 2_000  # chips drawn at most
_MIN_VALID = 0.9  # share of a chip's pixels, in both rasters
_PERCENTILES = (1.0, 99.0)
_SENSOR = "raster of the sensor"
_NEGLIGIBLE_OVERLAP = 0.01  # share of a raster's area that adjacent rasters have in common at their border


@dataclass(frozen=True)
class Chip:
    """A window of a pair of rasters, whose number counts from 0."""

    pair: int
    window: Window


def overlaps(chips: Sequence[Chip]) -> np.ndarray:
    """Whether chips share pixels with other chips, bool (n, n); False for a chip and itself."""
    pairs = np.array([chip.pair for chip in chips])
    boxes = window_boxes([chip.window for chip in chips])
    return (pairs[:, None] == pairs) & boxes_overlap(boxes, boxes) & ~np.eye(len(chips), dtype=bool)


@dataclass
class RasterPairs:
    """Pairs of rasters on the grids of the teacher's rasters, opened once in each thread.

    Attributes:
        teachers: rasters of the teacher.
        sensors: VRTs of the sensor's rasters on the same grids.
        options: bands, stretch and nodata of the teacher's rasters.
        channels: bands of the student.
        colours: indices of red, green and blue among the channels; empty unless all three are there.
        hints: sentences for the user.
        pictures: bands and stretch of the teacher's rasters.
    """

    teachers: Sequence[str]
    sensors: Sequence[str]
    options: SceneOptions
    channels: Channels
    colours: tuple[int, ...]
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._local = threading.local()
        self.pictures = tuple(Scene(path, self.options).raster_picture for path in self.teachers)

    @classmethod
    def open(cls, request: AlignSensorRequest, folder: Path, context: Context) -> RasterPairs:
        """Opens the rasters of a request.

        Args:
            request: the job.
            folder: for the VRTs.
            context: receives progress.

        Raises:
            ClippanError: rasters do not overlap, lack a requested band, or have a band that is constant or empty.
        """
        options = SceneOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
        numbers, names, total, colours = _sensor_bands(request)
        warped: list[str] = []
        hints: list[str] = []
        pairs = list(zip(request.teacher_rasters, request.sensor_rasters))
        for number, (teacher, sensor) in enumerate(pairs):
            context.progress(
                100 * number / len(pairs), Message("Warping {name} to the teacher's grid", name=Path(sensor).name[:80])
            )
            target = str(folder / f"{number}.vrt")
            hints.extend(warp_to_grid(sensor, numbers, Scene(teacher, options).own_grid, request.nodata, target))
            warped.append(target)
        training = [path for number, path in enumerate(warped, 1) if number not in request.test]
        low, high = _ranges(request, training, names)
        channels = Channels(names, low, high, numbers, total)
        hints.extend(_shared_land_hints(request))
        return cls(request.teacher_rasters, warped, options, channels, colours, tuple(hints))

    def chips(self, request: AlignSensorRequest, pixels: int, context: Context) -> tuple[list[Chip], list[Chip]]:
        """Training chips, which overlap each other, and held-out chips, which overlap no chip.

        Args:
            request: the job.
            pixels: edge of the model's pictures, which is also that of the chips if the resolution is unknown.
            context: receives progress.

        Raises:
            ClippanError: the rasters are too small, or have no data in common.
        """
        train: list[Chip] = []
        held: list[Chip] = []
        for pair in range(len(self.teachers)):
            scene, _ = self._open(pair)
            width, height = scene.grid.width, scene.grid.height
            across, down = (request.size,) * 2 if request.size else scene.tile_plan(pixels).scales[0][0]
            border = height  # training chips lie above it, held-out chips below
            if pair + 1 in request.test:
                border = 0
            elif not request.test:
                border = height - max(round(request.held * height), down)
            if across > width or down > (height - border if border < height else height) or 0 < border < down:
                raise ClippanError(
                    "The raster {path} is too small for training and held-out chips of {width} × {height} pixels; "
                    "choose smaller chips (--size), or a pair for the test (--test).",
                    path=self.teachers[pair],
                    width=across,
                    height=down,
                )
            step = [max(round(edge * (1 - request.overlap)), 1) for edge in (across, down)]
            train += _chips_between(pair, across, down, 0, border, width, step)
            held += _chips_between(pair, across, down, border, height, width, [across, down])
        rng = np.random.default_rng([request.seed, 5])
        found = []
        for number, (chips, most) in enumerate(((train, _MAX_TRAIN), (held, _MAX_HELD_OUT))):
            kept = np.sort(rng.permutation(len(chips))[:most])
            part = context.subrange(50 * number, 50 * (number + 1))
            found.append([chips[index] for index in kept if self._has_data(chips[index], part)])
        if not all(found):
            raise ClippanError(
                "The rasters of sensor and teacher have no data in the same places; check that both cover one area."
            )
        return found[0], found[1]

    def _has_data(self, chip: Chip, context: Context) -> bool:
        context.raise_if_cancelled()
        return all(
            scene.picture_and_mask(chip.window, chip.window.width, chip.window.height)[1].mean() >= _MIN_VALID
            for scene in self._open(chip.pair)
        )

    def teacher_chip(self, chip: Chip, edge: int) -> np.ndarray:
        """A chip of the teacher's raster, uint8 (3, edge, edge)."""
        return self._open(chip.pair)[0].picture(chip.window, edge)[0]

    def sensor_chip(self, chip: Chip, edge: int) -> np.ndarray:
        """A chip of the sensor's raster, float32 (bands, edge, edge), 0 to 1."""
        return self._open(chip.pair)[1].picture(chip.window, edge)[0]

    def _open(self, pair: int) -> tuple[Scene, Scene]:
        known = self._local.__dict__.setdefault("scenes", {})
        if pair not in known:
            teacher = Scene(self.teachers[pair], self.options, self.pictures[pair].stretch)
            count = len(self.channels.names)
            # The VRT has only these bands.
            channels = replace(self.channels, numbers=tuple(range(1, count + 1)), total=count)
            known[pair] = (teacher, Scene(self.sensors[pair], SceneOptions(), channels=channels))
        return known[pair]


def _sensor_bands(request: AlignSensorRequest) -> tuple[tuple[int, ...], tuple[str, ...], int, tuple[int, ...]]:
    """Numbers of the sensor's bands to use, from 1 and without alpha, their names, the number of all bands, and the
    indices of red, green and blue among those used."""
    first = request.sensor_rasters[0]
    totals = []
    for path in request.sensor_rasters:
        (dataset,) = sources.open_datasets([path], _SENSOR, request.sensor_bands)
        totals.append(len(sources.image_bands(dataset)))
        if totals[-1] != totals[0]:
            raise ClippanError(
                "The raster {path} has {bands} bands and {other} has {other_bands}; give rasters of one sensor.",
                path=path,
                bands=totals[-1],
                other=first,
                other_bands=totals[0],
            )
    (dataset,) = sources.open_datasets([first], _SENSOR, request.sensor_bands)
    spectral = sources.image_bands(dataset)
    numbers = request.sensor_bands or tuple(range(1, len(spectral) + 1))
    wrong = [number for number in numbers if number > len(spectral)]
    if wrong:
        raise ClippanError(
            "Band {band} was requested, but the raster {path} has {count} bands; choose others.",
            band=wrong[0],
            path=first,
            count=totals[0],
        )
    described = [(dataset.GetRasterBand(spectral[number - 1]).GetDescription() or "").strip() for number in numbers]
    folded = [name.casefold() for name in described]
    names = tuple(
        name if name and folded.count(name.casefold()) == 1 else f"band {number}"
        for name, number in zip(described, numbers)
    )
    shown = [spectral.index(band) + 1 for band in Scene(first, SceneOptions()).bands if band in spectral]
    colours = tuple(numbers.index(band) for band in shown) if len(shown) == 3 and set(shown) <= set(numbers) else ()
    return tuple(numbers), names, totals[0], colours


def _ranges(
    request: AlignSensorRequest, warped: Sequence[str], names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values of each band that become 0 and 1: as requested, or percentiles of the training rasters."""
    count = len(names)
    if request.low and len(request.low) not in (1, count):
        raise ClippanError(
            "{ranges} ranges were given for {bands} bands; give one range for all, or one for each band.",
            ranges=len(request.low),
            bands=count,
        )
    low, high = [], []
    for number, name in enumerate(names, 1):
        samples = [Scene(path, SceneOptions(bands=(number,))).sample()[0] for path in warped]
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
        least, most = np.percentile(values, _PERCENTILES)
        low.append(float(least if least < most else values.min()))
        high.append(float(most if least < most else values.max()))
    if request.low:
        repeat = count if len(request.low) == 1 else 1
        return request.low * repeat, request.high * repeat
    return tuple(low), tuple(high)


def _shared_land_hints(request: AlignSensorRequest) -> list[str]:
    """A hint for each test pair that covers the land of a training pair."""
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
    grids = [Grid.of(sources.open_dataset(path, "raster")) for path in (one, other)]
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


def warp_to_grid(path: str, numbers: Sequence[int], grid: Grid, nodata: Optional[float], target: str) -> list[str]:
    """Writes a VRT of bands of a raster on another grid, with cubic resampling, or nearest for codes; NaN outside.

    An alpha band is kept. An undeclared value that marks gaps is used as nodata.

    Args:
        path: the raster.
        numbers: of the bands, from 1 and without alpha.
        grid: of the VRT.
        nodata: overrides what the raster declares.
        target: path of the VRT.

    Returns:
        Sentences on the alpha band and the nodata value.

    Raises:
        ClippanError: the raster cannot be warped to the grid.
    """
    (dataset,) = sources.open_datasets([path], _SENSOR, numbers)
    own = Grid.of(dataset)
    bands = target if _same_pixels(own, grid) else f"{target}.bands.vrt"
    spectral = sources.image_bands(dataset)
    chosen = [spectral[number - 1] for number in numbers]
    alpha = [number for number in range(1, dataset.RasterCount + 1) if number not in spectral][:1]
    source = sources.Source([dataset], f"raster {path}", numbers, nodata)
    hints = [*alpha_notes([dataset]), *([source.assumption] if source.assumption else [])]
    codes = [info.description for info in source.infos if is_quality(info.description)]
    if codes and len(codes) < len(numbers):
        raise ClippanError(
            "The band {band} of the raster {path} is a quality band or mask with codes, not quantities; leave it out "
            "(--sensor-bands).",
            path=path,
            band=codes[0],
        )
    missing = source.nodata if source.assumption else as_pixel_value(nodata, source.dtype)
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
    """Whether both grids have the same pixels."""
    if (one.width, one.height) != (other.width, other.height):
        return False
    if one.geotransform is None or other.geotransform is None:
        return True  # without coordinates, the size decides
    return one.shares_crs(other) and one.pixel_offset_in(other, 0.01) == (0, 0)


def _chips_between(
    pair: int, across: int, down: int, first: int, last: int, width: int, step: Sequence[int]
) -> list[Chip]:
    """Chips between two rows of a pair."""
    return [
        Chip(pair, Window(x, y, across, down))
        for y in range(first, last - down + 1, step[1])
        for x in range(0, width - across + 1, step[0])
    ]

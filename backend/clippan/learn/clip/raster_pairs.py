"""Pairs of rasters of one place, one of which a teacher sees and the other a student, cut into chips."""

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

_MAX_TRAIN = 20_000  # chips to train on; of more, so many are drawn
_MAX_HELD_OUT = 2_000
_MIN_VALID = 0.9  # of a chip's pixels, in both rasters
_PERCENTILES = (1.0, 99.0)
_SENSOR = "raster of the sensor"
_NEGLIGIBLE_OVERLAP = 0.01  # of a raster's land: neighbours share so much of a border


@dataclass(frozen=True)
class Chip:
    """A window of a pair, by its number from 0."""

    pair: int
    window: Window


def overlaps(chips: Sequence[Chip]) -> np.ndarray:
    """Which chips share pixels with which others, bool (n, n); none with itself."""
    pairs = np.array([chip.pair for chip in chips])
    boxes = window_boxes([chip.window for chip in chips])
    return (pairs[:, None] == pairs) & boxes_overlap(boxes, boxes) & ~np.eye(len(chips), dtype=bool)


@dataclass
class RasterPairs:
    """Rasters in pairs on the teacher's pixels, open once in each thread.

    Attributes:
        teachers: rasters that the teacher sees.
        sensors: VRTs of the sensor's on the same pixels.
        look: how the teacher's become pictures.
        channels: what the student takes.
        colours: which of these are red, green and blue, from 0; empty where they are not all there.
        hints: sentences for the user.
        pictures: how the teacher's rasters are seen.
    """

    teachers: Sequence[str]
    sensors: Sequence[str]
    look: SceneOptions
    channels: Channels
    colours: tuple[int, ...]
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._local = threading.local()
        self.pictures = tuple(Scene(path, self.look).raster_picture for path in self.teachers)

    @classmethod
    def open(cls, request: AlignSensorRequest, folder: Path, context: Context) -> RasterPairs:
        """Those of a request.

        Args:
            request: names them.
            folder: for the VRTs.
            context: hears of progress.

        Raises:
            ClippanError: they do not lie on each other, have other bands than asked for, or a band says nothing.
        """
        look = SceneOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
        numbers, names, total, colours = _sensor_bands(request)
        warped: list[str] = []
        hints: list[str] = []
        pairs = list(zip(request.teacher_rasters, request.sensor_rasters))
        for number, (teacher, sensor) in enumerate(pairs):
            context.progress(
                100 * number / len(pairs), Message("Laying {name} on the teacher's raster", name=Path(sensor).name[:80])
            )
            target = str(folder / f"{number}.vrt")
            hints.extend(warp_to_grid(sensor, numbers, Scene(teacher, look).own_grid, request.nodata, target))
            warped.append(target)
        learned = [path for number, path in enumerate(warped, 1) if number not in request.test]
        low, high = _ranges(request, learned, names)
        channels = Channels(names, low, high, numbers, total)
        told_of = (*hints, *_shared_land_hints(request))
        return cls(request.teacher_rasters, warped, look, channels, colours, told_of)

    def chips(self, request: AlignSensorRequest, pixels: int, context: Context) -> tuple[list[Chip], list[Chip]]:
        """To train on, which overlap, and to measure with, which touch each other and nothing of the others.

        Args:
            request: says how.
            pixels: edge of the model's pictures: the chip where nothing else is known.
            context: hears of progress.

        Raises:
            ClippanError: the rasters are too small, or do not overlap.
        """
        train: list[Chip] = []
        held: list[Chip] = []
        for pair in range(len(self.teachers)):
            scene, _ = self._open(pair)
            width, height = scene.grid.width, scene.grid.height
            across, down = (request.size,) * 2 if request.size else scene.tile_plan(pixels).scales[0][0]
            border = height  # above it chips to train on, below it those to measure with
            if pair + 1 in request.test:
                border = 0
            elif not request.test:
                border = height - max(round(request.held * height), down)
            if across > width or down > (height - border if border < height else height) or 0 < border < down:
                raise ClippanError(
                    "The raster {teacher} is too small for chips of {across} × {down} pixels to train on and others "
                    "to measure with; choose smaller ones (--size), or a pair to measure with (--test).",
                    teacher=self.teachers[pair],
                    across=across,
                    down=down,
                )
            step = [max(round(edge * (1 - request.overlap)), 1) for edge in (across, down)]
            train += _chips_between(pair, across, down, 0, border, width, step)
            held += _chips_between(pair, across, down, border, height, width, [across, down])
        rng = np.random.default_rng([request.seed, 5])
        found = []
        for number, (chips, most) in enumerate(((train, _MAX_TRAIN), (held, _MAX_HELD_OUT))):
            kept = np.sort(rng.permutation(len(chips))[:most])
            part = context.subrange(50 * number, 50 * (number + 1))
            found.append([chips[place] for place in kept if self._has_data(chips[place], part)])
        if not all(found):
            raise ClippanError(
                "The rasters of the sensor show nothing where the teacher's do; check that both show the same place."
            )
        return found[0], found[1]

    def _has_data(self, chip: Chip, context: Context) -> bool:
        context.raise_if_cancelled()
        return all(
            scene.picture_and_mask(chip.window, chip.window.width, chip.window.height)[1].mean() >= _MIN_VALID
            for scene in self._open(chip.pair)
        )

    def teacher_chip(self, chip: Chip, edge: int) -> np.ndarray:
        """What the teacher sees, uint8 (3, edge, edge)."""
        return self._open(chip.pair)[0].picture(chip.window, edge)[0]

    def sensor_chip(self, chip: Chip, edge: int) -> np.ndarray:
        """What the student sees, float32 (bands, edge, edge), 0 to 1."""
        return self._open(chip.pair)[1].picture(chip.window, edge)[0]

    def _open(self, pair: int) -> tuple[Scene, Scene]:
        known = self._local.__dict__.setdefault("scenes", {})
        if pair not in known:
            teacher = Scene(self.teachers[pair], self.look, self.pictures[pair].stretch)
            count = len(self.channels.names)
            # The VRT has these bands alone.
            channels = replace(self.channels, numbers=tuple(range(1, count + 1)), total=count)
            known[pair] = (teacher, Scene(self.sensors[pair], SceneOptions(), channels=channels))
        return known[pair]


def _sensor_bands(request: AlignSensorRequest) -> tuple[tuple[int, ...], tuple[str, ...], int, tuple[int, ...]]:
    """Which bands of the sensor's rasters are taken, from 1 and without alpha, what they are called, how many there are
    in all, and which of those taken are red, green and blue."""
    first = request.sensor_rasters[0]
    totals = []
    for path in request.sensor_rasters:
        (dataset,) = sources.open_datasets([path], _SENSOR, request.sensor_bands)
        totals.append(len(sources.image_bands(dataset)))
        if totals[-1] != totals[0]:
            raise ClippanError(
                "The raster {path} has {total} bands and {first} has {total_2}; give rasters of one sensor.",
                path=path,
                total=totals[-1],
                first=first,
                total_2=totals[0],
            )
    (dataset,) = sources.open_datasets([first], _SENSOR, request.sensor_bands)
    spectral = sources.image_bands(dataset)
    numbers = request.sensor_bands or tuple(range(1, len(spectral) + 1))
    wrong = [number for number in numbers if number > len(spectral)]
    if wrong:
        raise ClippanError(
            "Band {wrong} was asked for but the raster {first} has {total}; choose others.",
            wrong=wrong[0],
            first=first,
            total=totals[0],
        )
    described = [(dataset.GetRasterBand(spectral[number - 1]).GetDescription() or "").strip() for number in numbers]
    plain = [name.casefold() for name in described]
    names = tuple(
        name if name and plain.count(name.casefold()) == 1 else f"band {number}"
        for name, number in zip(described, numbers)
    )
    shown = [spectral.index(band) + 1 for band in Scene(first, SceneOptions()).bands if band in spectral]
    colours = tuple(numbers.index(band) for band in shown) if len(shown) == 3 and set(shown) <= set(numbers) else ()
    return tuple(numbers), names, totals[0], colours


def _ranges(
    request: AlignSensorRequest, warped: Sequence[str], names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values of each band that become 0 and 1: as asked for, or as the rasters to train on have them."""
    count = len(names)
    if request.low and len(request.low) not in (1, count):
        raise ClippanError(
            "{count} ranges and {count_2} bands were given; give one for all, or one for each.",
            count=len(request.low),
            count_2=count,
        )
    low, high = [], []
    for number, name in enumerate(names, 1):
        samples = [Scene(path, SceneOptions(bands=(number,))).sample()[0] for path in warped]
        values = np.concatenate(samples).astype(np.float64)
        problem = "has no data" if not len(values) else "is the same everywhere" if np.ptp(values) == 0 else ""
        if problem:
            raise ClippanError(
                "The band {name} of the sensor's rasters {problem} where the teacher's are; leave it out "
                "(--sensor-bands).",
                name=name,
                problem=problem,
            )
        least, most = np.percentile(values, _PERCENTILES)
        low.append(float(least if least < most else values.min()))
        high.append(float(most if least < most else values.max()))
    if request.low:
        repeat = count if len(request.low) == 1 else 1
        return request.low * repeat, request.high * repeat
    return tuple(low), tuple(high)


def _shared_land_hints(request: AlignSensorRequest) -> list[str]:
    """A sentence for each pair to measure with that shows land which is trained on."""
    hints: list[str] = []
    learned = [pair for pair in range(len(request.teacher_rasters)) if pair + 1 not in request.test]
    for pair, other in itertools.product(sorted({number - 1 for number in request.test}), learned):
        part = _overlap_share(request.teacher_rasters[pair], request.teacher_rasters[other])
        if part > _NEGLIGIBLE_OVERLAP:
            hints.append(
                Message(
                    "Pair {pair} measures, but {part:.0%} of its land is also in pair {other}, which is trained on; "
                    "on other land expect less, and measure with a pair from elsewhere (--test).",
                    pair=pair + 1,
                    part=part,
                    other=other + 1,
                )
            )
    return hints


def _overlap_share(one: str, other: str) -> float:
    """The part of a raster's land that another shows, 0 to 1; without a CRS only the same file shows the same land."""
    grids = [Grid.of(sources.open_dataset(path, "raster")) for path in (one, other)]
    if not all(grid.crs and grid.geotransform for grid in grids):
        return float(os.path.realpath(one) == os.path.realpath(other))
    try:
        west, south, east, north = _extent(grids[0])
        left, bottom, right, top = transform_extent(_extent(grids[1]), grids[1].crs, grids[0].crs)
    except ClippanError:  # they lie where the other's CRS does not reach
        return 0.0
    across, along = min(east, right) - max(west, left), min(north, top) - max(south, bottom)
    return max(across, 0.0) * max(along, 0.0) / ((east - west) * (north - south))


def _extent(grid: Grid) -> tuple[float, float, float, float]:
    """xmin, ymin, xmax, ymax of a grid with a geotransform."""
    places = [gdal.ApplyGeoTransform(grid.geotransform, x, y) for x in (0, grid.width) for y in (0, grid.height)]
    x, y = zip(*places)
    return min(x), min(y), max(x), max(y)


def warp_to_grid(path: str, numbers: Sequence[int], grid: Grid, nodata: Optional[float], target: str) -> list[str]:
    """Writes a VRT of some bands of a raster on other pixels, by cubic resampling, or codes as they are; NaN beyond it.

    An alpha band goes with them. A value that marks gaps though nobody declared it is taken for nodata.

    Args:
        path: the raster.
        numbers: of the bands, from 1 and without alpha.
        grid: the pixels.
        nodata: overrides what it declares.
        target: the VRT, beside which nothing is written.

    Returns:
        What was decided of the raster's alpha band and its nodata value, as sentences.

    Raises:
        ClippanError: there is no way from one grid to the other.
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
            "The raster {path} has {code}, a quality band or mask, whose codes are no amounts; leave it out "
            "(--sensor-bands).",
            path=path,
            code=codes[0],
        )
    missing = source.nodata if source.assumption else as_pixel_value(nodata, source.dtype)
    extra = {} if missing is None else {"noData": missing}
    try:
        gdal.Translate(bands, dataset, format="VRT", bandList=[*chosen, *alpha], **extra).FlushCache()
        if bands == target:
            return hints
        if grid.geotransform is None or own.geotransform is None:
            raise ClippanError(
                "The raster {path} has another size than the teacher's, and not both a place; give both one.", path=path
            )
        if not (own.crs and grid.crs) and own.crs != grid.crs:
            raise ClippanError(
                "Of {path} and the teacher's raster one has no CRS; assign it (gdal_edit -a_srs).", path=path
            )
        _, _, turn, _, skew, dy = grid.geotransform
        if turn or skew or dy > 0:
            raise ClippanError("The teacher's raster is turned or upside down; warp it first (gdalwarp).")
        opened = gdal.Open(bands)
        resampling = "near" if is_categorical(dataset) else "cubic"
        beyond = {"outputType": gdal.GDT_Float32, "dstNodata": math.nan}
        warp(target, opened, grid.crs, resampling, **beyond, **warp_extent(grid)).FlushCache()
        return hints
    except RuntimeError as error:
        raise ClippanError(
            "The raster {path} cannot be warped on the teacher's ({reason}); check its CRS.",
            path=path,
            reason=one_line(error),
        ) from error


def _same_pixels(one: Grid, other: Grid) -> bool:
    """Whether both have the same pixels."""
    if (one.width, one.height) != (other.width, other.height):
        return False
    if one.geotransform is None or other.geotransform is None:
        return True  # pictures without a place, of one size
    return one.shares_crs(other) and one.pixel_offset_in(other, 0.01) == (0, 0)


def _chips_between(
    pair: int, across: int, down: int, first: int, last: int, width: int, step: Sequence[int]
) -> list[Chip]:
    """Chips between two rows."""
    return [
        Chip(pair, Window(x, y, across, down))
        for y in range(first, last - down + 1, step[1])
        for x in range(0, width - across + 1, step[0])
    ]

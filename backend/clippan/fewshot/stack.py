"""Stacks: any number of rasters of one place, each a modality with any number of bands, on one grid.

Bands are standardised by the mean and standard deviation of the whole scene, so that the values of a pixel do not
depend on the window read. Constant and empty bands are 0 everywhere and are otherwise ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.labels.areas import PixelAreas
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import Grid
from clippan.raster.products import is_categorical
from clippan.raster.regrid import resample_to_grid
from clippan.raster.rendering import PIXEL_GEOTRANSFORM, transform_extent
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window, tiles

_WINDOWS, _SIZE = 16, 64  # statistics of large rasters come from 16 × 16 windows of 64 × 64 pixels
_TRAINING_MEMORY = 2**29  # bytes of the scene to pre-train on, at most
_BLOCK, _SEAM = 256, 5  # edge of the blocks drawn from a larger scene, and width of their borders that is not valid
_MAX_TRIES = 8  # blocks read for each block kept, at most, where many hold no data
_WHOLE = 2**18  # pixels up to which samples are read with the whole scene
_SQUARES = (16, 64, 256)  # edges of the squares in which samples of larger scenes are read
_TOLERANCE = 1e-3  # of a pixel; geotransforms are rounded
_CONSTANT = 1e-6  # deviation, as a share of the largest value, up to which a band is constant but for rounding

# Modalities, float32 (bands, h, w), and the mask of valid pixels, bool (h, w).
StackValues = tuple[list[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Stack:
    """Aligned rasters. Reading is safe from several threads.

    Attributes:
        paths: of the rasters.
        sources: the bands of each raster on the grid.
        grid: the part of the chosen raster's grid that all rasters cover.
        means, scales: that standardise the bands of each raster, (value - mean) * scale; the scale of a constant or
            empty band is 0.
        notes: sentences on alpha bands and on rasters of codes.
    """

    paths: tuple[str, ...]
    sources: tuple[Source, ...]
    grid: Grid
    means: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()

    @property
    def georeferenced_grid(self) -> Grid:
        """The grid; without coordinates, with those that QGIS gives to such a raster."""
        return self.grid if self.grid.geotransform else Grid(self.grid.width, self.grid.height, PIXEL_GEOTRANSFORM, "")

    @property
    def bands(self) -> tuple[int, ...]:
        """Number of bands of each raster."""
        return tuple(source.count for source in self.sources)

    @property
    def sparse(self) -> bool:
        """Whether a raster has parts that were never written."""
        return not all(source.fully_written for source in self.sources)

    def tiles(self, size: int) -> list[Window]:
        """Squares of ``size`` over the grid, without those in which a raster holds no data."""
        windows = tiles(self.grid.width, self.grid.height, size)
        return [w for w in windows if all(s.may_contain_data(w) for s in self.sources)]

    def hints(self) -> list[str]:
        """Sentences for the user."""
        hints = list(self.notes) + [source.assumption for source in self.sources if source.assumption]
        for path, source, scales in zip(self.paths, self.sources, self.scales):
            idle = [source.band_name(int(band)) for band in np.flatnonzero(scales == 0)]
            if idle:
                hints.append(
                    Message(
                        "Constant or empty bands of {path} are not used ({count} of {total}): {bands}.",
                        path=path,
                        count=len(idle),
                        total=len(scales),
                        bands="; ".join(idle[:10]) + ("; …" if len(idle) > 10 else ""),
                    )
                )
        return hints

    def with_statistics(self, means: Sequence[np.ndarray], scales: Sequence[np.ndarray]) -> Stack:
        """The stack with other means and scales."""
        return replace(self, means=tuple(means), scales=tuple(scales))

    def statistics_differ(self, other: Stack) -> bool:
        """Whether in most bands the mean differs by more than a standard deviation, or the scale by a factor of 3."""
        (mean, scale), (other_mean, other_scale) = (
            (np.concatenate(each.means), np.concatenate(each.scales)) for each in (self, other)
        )
        used = (scale > 0) & (other_scale > 0)
        shifted = np.abs(mean - other_mean) * scale > 1
        ratio = other_scale[used] / scale[used]
        return bool(np.mean(shifted[used] | (ratio > 3) | (ratio < 1 / 3)) > 0.5) if used.any() else True

    def with_margin(self, window: Window, margin: int) -> Window:
        """A window enlarged by a margin, within the grid."""
        left, top = max(window.x - margin, 0), max(window.y - margin, 0)
        right = min(window.x + window.width + margin, self.grid.width)
        bottom = min(window.y + window.height + margin, self.grid.height)
        return Window(left, top, right - left, bottom - top)

    def read(self, window: Window) -> StackValues:
        """Standardised values of a window of the grid.

        Returns:
            For each raster float32 (bands, height, width), 0 where a value is missing, and the mask of valid pixels,
            which have a value in at least one band of every raster.

        Raises:
            ClippanError: GDAL cannot read the raster.
        """
        parts, valid = [], np.ones((window.height, window.width), bool)
        for source, mean, scale in zip(self.sources, self.means, self.scales):
            values, known = source.read(window.x, window.y, window.width, window.height)
            with np.errstate(invalid="ignore", over="ignore"):
                standardised = (values.astype(np.float32) - mean[:, None, None]) * scale[:, None, None]
            if known is not None:
                valid &= known[scale > 0].any(axis=0)
                standardised[~known] = 0
            standardised[scale == 0] = 0
            parts.append(standardised)
        for part in parts:
            part[:, ~valid] = 0
        return parts, valid

    def sample_windows(self, rows: np.ndarray, columns: np.ndarray, margin: int) -> list[tuple[Window, np.ndarray]]:
        """Windows that hold the pixels, each with the indices of its pixels: the whole of a small scene, or squares of
        the size with the fewest pixels to read.

        Args:
            rows, columns: of the pixels, (n,).
            margin: pixels read around each window.
        """
        if self.grid.width * self.grid.height <= _WHOLE:
            return [(Window(0, 0, self.grid.width, self.grid.height), np.arange(len(rows)))]
        choices = [list(self.windows_at(rows, columns, size)) for size in _SQUARES]
        return min(choices, key=lambda each: sum((w.width + 2 * margin) * (w.height + 2 * margin) for w, _ in each))

    def read_training_mosaic(self, seed: int, context: Context) -> StackValues:
        """The scene; of one larger than half a gibibyte, as many random blocks with data side by side. Pixels at the
        borders of blocks are not valid.

        Raises:
            ClippanError: GDAL cannot read the raster.
        """
        most = _TRAINING_MEMORY // (4 * sum(self.bands))
        if self.grid.width * self.grid.height <= most:
            return self.read(Window(0, 0, self.grid.width, self.grid.height))
        blocks = self.tiles(_BLOCK)
        count = max(most // _BLOCK**2, 1)
        shape = (_BLOCK, count * _BLOCK)
        parts, valid = [np.zeros((bands, *shape), np.float32) for bands in self.bands], np.zeros(shape, bool)
        inside = slice(_SEAM, _BLOCK - _SEAM)
        held = 0
        for tried, number in enumerate(np.random.default_rng(seed).permutation(len(blocks))):
            if held == count or (held and tried > _MAX_TRIES * count):
                break
            context.progress(100 * held / count, "Reading the rasters")
            values, known = self.read(blocks[number])
            if not known[inside, inside].any():
                continue
            (height, width), start = known.shape, held * _BLOCK
            mask = np.zeros((_BLOCK, _BLOCK), bool)
            mask[:height, :width] = known
            valid[inside, start + _SEAM : start + _BLOCK - _SEAM] = mask[inside, inside]
            for part, read in zip(parts, values):
                part[:, :height, start : start + width] = read
            held += 1
        wide = max(held, 1) * _BLOCK
        return [part[:, :, :wide] for part in parts], valid[:, :wide]

    def windows_at(
        self, rows: np.ndarray, columns: np.ndarray, size: int = _SIZE
    ) -> Iterator[tuple[Window, np.ndarray]]:
        """Squares of the grid that hold the pixels, each with the indices of its pixels."""
        squares = rows // size * (self.grid.width // size + 1) + columns // size
        order = np.argsort(squares, kind="stable")
        for inside in np.split(order, np.flatnonzero(np.diff(squares[order])) + 1):
            x, y = (int(numbers[inside[0]]) // size * size for numbers in (columns, rows))
            yield Window(x, y, min(size, self.grid.width - x), min(size, self.grid.height - y)), inside


def open_stack(paths: Sequence[str], grid: int, nodata: Optional[float], context: Context) -> Stack:
    """Opens rasters on one grid.

    Args:
        paths: of the rasters; those on other grids are warped (cubic) while they are read.
        grid: number of the raster whose grid is used, from 1; 0 for the finest.
        nodata: overrides what the rasters declare.
        context: receives progress.

    Raises:
        ClippanError: a raster cannot be used, or does not overlap the others.
    """
    datasets = [open_dataset(path, Message("raster")) for path in paths]
    grids = [Grid.of(dataset) for dataset in datasets]
    target = _common_grid(paths, grids, grid - 1 if grid else _finest_grid(grids))
    sources = tuple(
        Source(resample_to_grid(dataset, f"raster {path}", target, nodata), f"raster {path}", (), nodata)
        for path, dataset in zip(paths, datasets)
    )
    found = [_statistics(source, path, context) for source, path in zip(sources, paths)]
    means, scales = tuple(mean for mean, _ in found), tuple(scale for _, scale in found)
    codes = [
        Message(
            "{path} holds codes, not quantities, and was not interpolated; leave it out unless the order of its codes "
            "has a meaning.",
            path=path,
        )
        for path, dataset in zip(paths, datasets)
        if is_categorical(dataset)
    ]
    return Stack(tuple(paths), sources, target, means, scales, (*alpha_notes(datasets), *codes))


def _finest_grid(grids: Sequence[Grid]) -> int:
    """Index of the grid with the smallest pixels on the ground, or in units of the CRS."""
    sizes = []
    for grid in grids:
        area = float(PixelAreas(grid).window(grid.width // 2, grid.height // 2, 1, 1).item())
        g = grid.geotransform or PIXEL_GEOTRANSFORM
        sizes.append(area if math.isfinite(area) else abs(g[1] * g[5] - g[2] * g[4]))
    return int(np.argmin(sizes))


def _common_grid(paths: Sequence[str], grids: Sequence[Grid], chosen: int) -> Grid:
    """The chosen grid, cropped to the area that all rasters cover."""
    target = grids[chosen]
    left, top, right, bottom = 0.0, 0.0, float(target.width), float(target.height)
    for path, grid in zip(paths, grids):
        if grid.geotransform is None or target.geotransform is None:
            continue  # rasters without coordinates are used if they have the same size
        corners = [(x, y) for x in (0, grid.width) for y in (0, grid.height)]
        points = [gdal.ApplyGeoTransform(grid.geotransform, x, y) for x, y in corners]
        if not grid.shares_crs(target) and grid.crs and target.crs:
            xs, ys = zip(*points)
            west, south, east, north = transform_extent((min(xs), min(ys), max(xs), max(ys)), grid.crs, target.crs)
            points = [(x, y) for x in (west, east) for y in (south, north)]
        inverse = gdal.InvGeoTransform(target.geotransform)
        if inverse is None:
            raise ClippanError(
                "The pixels of the raster {path} have no size; correct its georeferencing.", path=paths[chosen]
            )
        columns, rows = zip(*(gdal.ApplyGeoTransform(inverse, x, y) for x, y in points))
        left, right = max(left, min(columns)), min(right, max(columns))
        top, bottom = max(top, min(rows)), min(bottom, max(rows))
        if right - left < 0.5 or bottom - top < 0.5:
            raise ClippanError(
                "The raster {path} does not overlap the others; check that all cover the same area and have the "
                "correct CRS.",
                path=path,
            )
    return target.cropped(
        math.floor(left + _TOLERANCE),
        math.floor(top + _TOLERANCE),
        math.ceil(right - _TOLERANCE),
        math.ceil(bottom - _TOLERANCE),
    )


def _starts(first: int, length: int, count: int) -> list[int]:
    if length <= count * _SIZE:
        return list(range(first, first + length, _SIZE))
    return [first + int(start) for start in np.linspace(0, length - _SIZE, count)]


def _statistics(source: Source, path: str, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each band, float32 (bands,), from windows all over the raster.

    Raises:
        ClippanError: the raster has no data, or only one value.
    """
    windows = _WINDOWS
    count, mean, squares, largest = _moments(source, path, windows, context)
    # Data may lie between the windows.
    while count.max() < _SIZE**2 and windows * _SIZE < max(source.bounds.width, source.bounds.height):
        windows *= 4
        count, mean, squares, largest = _moments(source, path, windows, context)
    if not count.any():
        raise ClippanError(
            "The raster {path} has no data in the common area; leave it out or choose another.", path=path
        )
    deviation = np.sqrt(squares / np.maximum(count, 1))
    varying = deviation > _CONSTANT * largest
    if not varying.any():
        raise ClippanError(
            "The raster {path} has the same value everywhere, which separates no classes; leave it out.", path=path
        )
    scale = np.where(varying, 1 / np.where(varying, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _moments(
    source: Source, path: str, windows: int, context: Context
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each band the number of values, their mean, the sum of their squared differences from it, and the largest
    absolute value, from this number of windows along each edge."""
    count = np.zeros(source.count)
    mean, squares, largest = np.zeros(source.count), np.zeros(source.count), np.zeros(source.count)
    bounds = source.bounds
    rows, columns = _starts(bounds.y, bounds.height, windows), _starts(bounds.x, bounds.width, windows)
    for number, y in enumerate(rows):
        context.progress(100 * number / len(rows), Message("Reading {path}", path=path))
        for x in columns:
            width, height = min(_SIZE, bounds.x + bounds.width - x), min(_SIZE, bounds.y + bounds.height - y)
            if not source.may_contain_data(Window(x, y, width, height)):
                continue
            read, known = source.read(x, y, width, height)
            values: np.ndarray = read.reshape(source.count, -1).astype(np.float64)
            inside = np.ones(values.shape, bool) if known is None else known.reshape(values.shape)
            added = inside.sum(axis=1)
            if not added.any():
                continue
            values = np.where(inside, values, 0)
            window_mean = values.sum(axis=1) / np.maximum(added, 1)
            differences = np.where(inside, values - window_mean[:, None], 0)
            # Combines the moments of two parts (Chan, Golub and LeVeque 1983).
            total = np.maximum(count + added, 1)
            squares += (differences**2).sum(axis=1) + (window_mean - mean) ** 2 * count * added / total
            mean += (window_mean - mean) * added / total
            count += added
            largest = np.maximum(largest, np.abs(values).max(axis=1))
    return count, mean, squares, largest

"""Stacks: any number of rasters of one place, each a modality with any number of bands, on one grid.

Bands are standardised by the mean and standard deviation of the whole scene, so that the values of a pixel do not
depend on the window read. Constant and empty bands are 0 everywhere and are otherwise ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from osgeo import gdal

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.labels.areas import PixelAreas
from clippan.labels.pixels import squares_with_pixels
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import Grid
from clippan.raster.products import is_categorical
from clippan.raster.regrid import resample_to_grid
from clippan.raster.rendering import PIXEL_GEOTRANSFORM, transform_extent
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window, tiles

READ_SIZE = 64  # edge in pixels of the windows in which single pixels are read
_WINDOWS_PER_AXIS = 16  # statistics of large rasters come from 16 × 16 windows of 64 × 64 pixels
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
        means, inverse_stds: that standardise the bands of each raster; the latter is 0 for a constant or empty band.
        notes: sentences on alpha bands and on rasters of codes.
    """

    paths: tuple[str, ...]
    sources: tuple[Source, ...]
    grid: Grid
    means: tuple[np.ndarray, ...]
    inverse_stds: tuple[np.ndarray, ...]
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
    def has_unwritten_blocks(self) -> bool:
        """Whether a raster has parts that were never written."""
        return not all(source.fully_written for source in self.sources)

    def tiles(self, size: int) -> list[Window]:
        """Squares of ``size`` over the grid, without those in which a raster holds no data."""
        windows = tiles(self.grid.width, self.grid.height, size)
        return [w for w in windows if all(s.may_contain_data(w) for s in self.sources)]

    def hints(self) -> list[str]:
        """Sentences for the user."""
        hints = list(self.notes) + [source.nodata_note for source in self.sources if source.nodata_note]
        for path, source, inverse_stds in zip(self.paths, self.sources, self.inverse_stds):
            unused = [source.band_name(int(band)) for band in np.flatnonzero(inverse_stds == 0)]
            if unused:
                hints.append(
                    Message(
                        "Constant or empty bands of {path} are not used ({count} of {total}): {bands}.",
                        path=path,
                        count=len(unused),
                        total=len(inverse_stds),
                        bands="; ".join(unused[:10]) + ("; …" if len(unused) > 10 else ""),
                    )
                )
        return hints

    def statistics_differ(self, other: Stack) -> bool:
        """Whether in most bands the mean differs by more than a standard deviation, or its inverse by a factor of 3."""
        (mean, inverse_std), (other_mean, other_inverse_std) = (
            (np.concatenate(each.means), np.concatenate(each.inverse_stds)) for each in (self, other)
        )
        used = (inverse_std > 0) & (other_inverse_std > 0)
        shifted = np.abs(mean - other_mean) * inverse_std > 1
        ratio = other_inverse_std[used] / inverse_std[used]
        return bool(np.mean(shifted[used] | (ratio > 3) | (ratio < 1 / 3)) > 0.5) if used.any() else True

    def with_margin(self, window: Window, margin: int) -> Window:
        """A window enlarged by a margin, within the grid."""
        left, top = max(window.x - margin, 0), max(window.y - margin, 0)
        right = min(window.x + window.width + margin, self.grid.width)
        bottom = min(window.y + window.height + margin, self.grid.height)
        return Window(left, top, right - left, bottom - top)

    def read(self, window: Window) -> StackValues:
        """Standardised values of a window of the grid: for each raster float32 (bands, h, w), 0 where a value is
        missing, and the mask of valid pixels, which have a value in at least one band of every raster. Raises
        ClippanError if GDAL cannot read the raster."""
        parts, valid = [], np.ones((window.height, window.width), bool)
        for source, mean, inverse_std in zip(self.sources, self.means, self.inverse_stds):
            values, known = source.read(window.x, window.y, window.width, window.height)
            with np.errstate(invalid="ignore", over="ignore"):
                standardised = (values.astype(np.float32) - mean[:, None, None]) * inverse_std[:, None, None]
            if known is not None:
                valid &= known[inverse_std > 0].any(axis=0)
                standardised[~known] = 0
            standardised[inverse_std == 0] = 0
            parts.append(standardised)
        for part in parts:
            part[:, ~valid] = 0
        return parts, valid

    def cheapest_windows_at(
        self, rows: np.ndarray, columns: np.ndarray, margin: int
    ) -> list[tuple[Window, np.ndarray]]:
        """Windows that hold the pixels (n,), each with the indices of its pixels: the whole of a small scene, or
        squares of the size with the fewest pixels to read with a margin around them."""
        if self.grid.width * self.grid.height <= _WHOLE:
            return [(Window(0, 0, self.grid.width, self.grid.height), np.arange(len(rows)))]
        choices = [list(squares_with_pixels(rows, columns, self.grid, size)) for size in _SQUARES]
        return min(choices, key=lambda each: sum((w.width + 2 * margin) * (w.height + 2 * margin) for w, _ in each))

    def read_training_mosaic(self, seed: int, context: Context) -> StackValues:
        """The scene; of one larger than half a gibibyte, as many random blocks with data side by side. Pixels at the
        borders of blocks are not valid. Raises ClippanError if GDAL cannot read the raster."""
        max_pixels = _TRAINING_MEMORY // (4 * sum(self.bands))
        if self.grid.width * self.grid.height <= max_pixels:
            return self.read(Window(0, 0, self.grid.width, self.grid.height))
        blocks = self.tiles(_BLOCK)
        count = max(max_pixels // _BLOCK**2, 1)
        shape = (_BLOCK, count * _BLOCK)
        parts, valid = [np.zeros((bands, *shape), np.float32) for bands in self.bands], np.zeros(shape, bool)
        inside = slice(_SEAM, _BLOCK - _SEAM)
        kept = 0
        for tried, number in enumerate(np.random.default_rng(seed).permutation(len(blocks))):
            if kept == count or (kept and tried > _MAX_TRIES * count):
                break
            context.progress(100 * kept / count, "Reading the rasters")
            values, known = self.read(blocks[number])
            if not known[inside, inside].any():
                continue
            (height, width), start = known.shape, kept * _BLOCK
            valid[inside, start + _SEAM : start + min(width, _BLOCK - _SEAM)][: height - _SEAM] = known[inside, inside]
            for part, read in zip(parts, values):
                part[:, :height, start : start + width] = read
            kept += 1
        width = max(kept, 1) * _BLOCK
        return [part[:, :, :width] for part in parts], valid[:, :width]


def open_stack(paths: Sequence[str], reference: int, nodata: Optional[float], context: Context) -> Stack:
    """Opens rasters on one grid; those on other grids are warped (cubic) while they are read.

    Args:
        paths: of the rasters.
        reference: number of the raster whose grid is used, from 1; 0 for the finest.
        nodata: overrides what the rasters declare.
        context: receives progress.

    Raises:
        ClippanError: a raster cannot be used, or does not overlap the others.
    """
    datasets = [open_dataset(path, Message("raster")) for path in paths]
    grids = [Grid.of(dataset) for dataset in datasets]
    target = _common_grid(paths, grids, reference - 1 if reference else _finest_grid(grids))
    sources = tuple(
        Source(resample_to_grid(dataset, f"raster {path}", target, nodata), f"raster {path}", (), nodata)
        for path, dataset in zip(paths, datasets)
    )
    means, inverse_stds = zip(*(_statistics(source, path, context) for source, path in zip(sources, paths)))
    codes = [
        Message(
            "{path} holds codes, not quantities, and was not interpolated; leave it out unless the order of its codes "
            "has a meaning.",
            path=path,
        )
        for path, dataset in zip(paths, datasets)
        if is_categorical(dataset)
    ]
    return Stack(tuple(paths), sources, target, means, inverse_stds, (*alpha_notes(datasets), *codes))


def _finest_grid(grids: Sequence[Grid]) -> int:
    """Index of the grid with the smallest pixels on the ground, or in units of the CRS."""
    sizes = []
    for grid in grids:
        area = float(PixelAreas(grid).areas_in(grid.width // 2, grid.height // 2, 1, 1).item())
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
        points = [gdal.ApplyGeoTransform(grid.geotransform, x, y) for x in (0, grid.width) for y in (0, grid.height)]
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


def _statistics(source: Source, path: str, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse standard deviation of each band, float32 (bands,), from windows all over the raster."""
    windows = _WINDOWS_PER_AXIS
    count, mean, squares, largest = _moments(source, path, windows, context)
    # Data may lie between the windows.
    while count.max() < READ_SIZE**2 and windows * READ_SIZE < max(source.bounds.width, source.bounds.height):
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
    inverse_std = np.where(varying, 1 / np.where(varying, deviation, 1), 0)
    return mean.astype(np.float32), inverse_std.astype(np.float32)


def _window_starts(first: int, length: int, count: int) -> list[int]:
    if length <= count * READ_SIZE:
        return list(range(first, first + length, READ_SIZE))
    return [first + int(start) for start in np.linspace(0, length - READ_SIZE, count)]


def _moments(source: Source, path: str, windows: int, context: Context) -> np.ndarray:
    """For each band the number of values, their mean, the sum of their squared differences from it, and the largest
    absolute value, from this number of windows along each edge, (4, bands)."""
    moments = np.zeros((4, source.count))
    count, mean, squares, largest = moments
    bounds = source.bounds
    right, bottom = bounds.x + bounds.width, bounds.y + bounds.height
    rows = _window_starts(bounds.y, bounds.height, windows)
    for number, y in enumerate(rows):
        context.progress(100 * number / len(rows), Message("Reading {path}", path=path))
        for x in _window_starts(bounds.x, bounds.width, windows):
            window = Window(x, y, min(READ_SIZE, right - x), min(READ_SIZE, bottom - y))
            if not source.may_contain_data(window):
                continue
            read, known = source.read(x, y, window.width, window.height)
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
            np.maximum(largest, np.abs(values).max(axis=1), out=largest)
    return moments

"""Rasters of one place on one grid, each a modality: any number of them, of any number of bands.

Bands are standardised by the mean and the deviation of the whole scene, so that a pixel's values do not depend on the
window that it is read in. Those that say nothing (constant, or empty) are 0 everywhere and count for nothing else.
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
from clippan.raster.scene import PIXEL_GEOTRANSFORM, transform_extent
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window, tiles

_WINDOWS, _SIZE = 16, 64  # statistics of larger rasters are those of 16 × 16 windows of 64 × 64 pixels
_MEMORY = 2**29  # bytes that are learned from at a time
_BLOCK, _SEAM = 256, 5  # edge of the blocks that a larger scene is learned from, and how far their edges reach
_TRIED = 8  # times as many blocks are looked at as are kept, if many show nothing
_WHOLE = 2**18  # pixels of a scene that is looked at as a whole
_SQUARES = (16, 64, 256)  # edges of the parts of larger ones that are looked at
_NEAR = 1e-3  # of a pixel; geotransforms are rounded
_FLAT = 1e-6  # deviation, as a part of the largest value, up to which a band is constant but for rounding

Patch = tuple[list[np.ndarray], np.ndarray]  # modalities float32 (bands, h, w), and which pixels are valid, bool (h, w)


@dataclass(frozen=True)
class Stack:
    """Aligned rasters. Reading is safe from several threads.

    Attributes:
        paths: of the rasters.
        sources: their bands on the grid.
        grid: the part of the chosen raster's grid that all rasters cover.
        means, scales: of the bands of each raster; a band's values less its mean, times its scale, have deviation 1. A
            band that says nothing has the scale 0.
        notes: sentences about how rasters were taken.
    """

    paths: tuple[str, ...]
    sources: tuple[Source, ...]
    grid: Grid
    means: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()

    @property
    def georeferenced_grid(self) -> Grid:
        """The grid, with the coordinates that QGIS gives to a picture without any."""
        return self.grid if self.grid.geotransform else Grid(self.grid.width, self.grid.height, PIXEL_GEOTRANSFORM, "")

    @property
    def bands(self) -> tuple[int, ...]:
        """Of each raster."""
        return tuple(source.count for source in self.sources)

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, self.grid.width, self.grid.height)

    @property
    def sparse(self) -> bool:
        """Whether parts of a raster were never written."""
        return not all(source.fully_written for source in self.sources)

    def tiles(self, size: int) -> list[Window]:
        """Squares of ``size`` over all of it, but for those in which a raster holds nothing."""
        windows = tiles(self.grid.width, self.grid.height, size)
        return [w for w in windows if all(s.may_contain_data(w) for s in self.sources)]

    def hints(self) -> list[str]:
        """Sentences for the user."""
        hints = list(self.notes) + [source.assumption for source in self.sources if source.assumption]
        for path, source, scales in zip(self.paths, self.sources, self.scales):
            idle = [source.band_name(int(band)) for band in np.flatnonzero(scales == 0)]
            if idle:
                listed = "; ".join(idle[:10]) + ("; …" if len(idle) > 10 else "")
                which = f"{len(idle)} of {len(scales)} bands are constant or empty"
                hints.append(
                    Message("Of {path}, {which} and were left aside ({listed}).", path=path, which=which, listed=listed)
                )
        return hints

    def with_statistics(self, means: Sequence[np.ndarray], scales: Sequence[np.ndarray]) -> Stack:
        """With other means and scales."""
        return replace(self, means=tuple(means), scales=tuple(scales))

    def statistics_differ(self, other: Stack) -> bool:
        """Whether another stack's values are not these: by a deviation, or threefold, in half of the bands."""
        own, others = (np.stack([np.concatenate(each.means), np.concatenate(each.scales)]) for each in (self, other))
        live = (own[1] > 0) & (others[1] > 0)
        off = np.abs(own[0] - others[0]) * own[1] > 1
        ratio = others[1][live] / own[1][live]
        return bool(np.mean(off[live] | (ratio > 3) | (ratio < 1 / 3)) > 0.5) if live.any() else True

    def with_margin(self, window: Window, margin: int) -> Window:
        """A window with a margin, as far as the grid reaches."""
        left, top = max(window.x - margin, 0), max(window.y - margin, 0)
        right = min(window.x + window.width + margin, self.grid.width)
        bottom = min(window.y + window.height + margin, self.grid.height)
        return Window(left, top, right - left, bottom - top)

    def read(self, window: Window) -> Patch:
        """Standardised values of a window inside the grid.

        Returns:
            For each raster float32 (bands, height, width), with 0 where a value is missing, and which pixels are valid:
            those that have a value in some band of every raster.

        Raises:
            ClippanError: GDAL could not read.
        """
        parts, valid = [], np.ones((window.height, window.width), bool)
        for source, mean, scale in zip(self.sources, self.means, self.scales):
            values, known = source.read(window.x, window.y, window.width, window.height)
            with np.errstate(invalid="ignore", over="ignore"):
                ready = (values.astype(np.float32) - mean[:, None, None]) * scale[:, None, None]
            if known is not None:
                valid &= known[scale > 0].any(axis=0)
                ready[~known] = 0
            ready[scale == 0] = 0
            parts.append(ready)
        for part in parts:
            part[:, ~valid] = 0
        return parts, valid

    def sample_windows(self, rows: np.ndarray, columns: np.ndarray, margin: int) -> list[tuple[Window, np.ndarray]]:
        """Windows that hold pixels, each with the numbers of those in it: all of the scene, where that is little, else
        squares of the size that leaves the least to be looked at.

        Args:
            rows, columns: of the pixels, (n,).
            margin: pixels that are looked at about each window.
        """
        if self.grid.width * self.grid.height <= _WHOLE:
            return [(self.window, np.arange(len(rows)))]
        found = [list(self.windows_at(rows, columns, size)) for size in _SQUARES]
        return min(found, key=lambda pieces: sum((w.width + 2 * margin) * (w.height + 2 * margin) for w, _ in pieces))

    def training_patch(self, seed: int, context: Context) -> Patch:
        """The scene, or where it is larger than half a gibibyte as many blocks of it that show something, drawn evenly
        and laid side by side. Pixels whose neighbours are another block's are not valid.

        Raises:
            ClippanError: GDAL could not read.
        """
        most = _MEMORY // (4 * sum(self.bands))
        if self.grid.width * self.grid.height <= most:
            return self.read(self.window)
        blocks = self.tiles(_BLOCK)
        count = max(most // _BLOCK**2, 1)
        shape = (_BLOCK, count * _BLOCK)
        parts, valid = [np.zeros((bands, *shape), np.float32) for bands in self.bands], np.zeros(shape, bool)
        inside = slice(_SEAM, _BLOCK - _SEAM)
        held = 0
        for tried, number in enumerate(np.random.default_rng(seed).permutation(len(blocks))):
            if held == count or (held and tried > _TRIED * count):
                break
            context.progress(100 * held / count, "Reading the rasters")
            values, known = self.read(blocks[number])
            if not known[inside, inside].any():
                continue
            (height, width), start = known.shape, held * _BLOCK
            own = np.zeros((_BLOCK, _BLOCK), bool)
            own[:height, :width] = known
            valid[inside, start + _SEAM : start + _BLOCK - _SEAM] = own[inside, inside]
            for part, read in zip(parts, values):
                part[:, :height, start : start + width] = read
            held += 1
        wide = max(held, 1) * _BLOCK
        return [part[:, :, :wide] for part in parts], valid[:, :wide]

    def windows_at(
        self, rows: np.ndarray, columns: np.ndarray, size: int = _SIZE
    ) -> Iterator[tuple[Window, np.ndarray]]:
        """Windows that hold pixels, each with the numbers of those in it."""
        squares = rows // size * (self.grid.width // size + 1) + columns // size
        order = np.argsort(squares, kind="stable")
        for inside in np.split(order, np.flatnonzero(np.diff(squares[order])) + 1):
            x, y = (int(numbers[inside[0]]) // size * size for numbers in (columns, rows))
            yield Window(x, y, min(size, self.grid.width - x), min(size, self.grid.height - y)), inside


def open_stack(paths: Sequence[str], grid: int, nodata: Optional[float], context: Context) -> Stack:
    """Opens rasters and lays them on one grid.

    Args:
        paths: of the rasters; those with other pixels are warped (cubic) while they are read.
        grid: the raster whose pixels are taken, from 1; 0 for the finest.
        nodata: overrides what the rasters declare.
        context: hears of progress.

    Raises:
        ClippanError: one sentence for each way in which they do not go together.
    """
    datasets = [open_dataset(path, "raster") for path in paths]
    grids = [Grid.of(dataset) for dataset in datasets]
    target = _common(paths, grids, grid - 1 if grid else _finest(grids))
    sources = tuple(
        Source(resample_to_grid(dataset, f"raster {path}", target, nodata), f"raster {path}", (), nodata)
        for path, dataset in zip(paths, datasets)
    )
    found = [_statistics(source, path, context) for source, path in zip(sources, paths)]
    means, scales = tuple(mean for mean, _ in found), tuple(scale for _, scale in found)
    codes = [
        f"{path} holds codes, not quantities, and was not interpolated; leave it out unless their order says something."
        for path, dataset in zip(paths, datasets)
        if is_categorical(dataset)
    ]
    return Stack(tuple(paths), sources, target, means, scales, (*alpha_notes(datasets), *codes))


def _finest(grids: Sequence[Grid]) -> int:
    """By the size on the ground, where it is known of all."""
    sizes = []
    for grid in grids:
        middle = float(PixelAreas(grid).window(grid.width // 2, grid.height // 2, 1, 1).item())
        g = grid.geotransform or PIXEL_GEOTRANSFORM
        sizes.append(middle if math.isfinite(middle) else abs(g[1] * g[5] - g[2] * g[4]))
    return int(np.argmin(sizes))


def _common(paths: Sequence[str], grids: Sequence[Grid], chosen: int) -> Grid:
    """The chosen grid, cut to what all rasters cover."""
    target = grids[chosen]
    left, top, right, bottom = 0.0, 0.0, float(target.width), float(target.height)
    for path, grid in zip(paths, grids):
        if grid.geotransform is None or target.geotransform is None:
            continue  # pictures without coordinates lie on each other if they are of one size
        corners = [(x, y) for x in (0, grid.width) for y in (0, grid.height)]
        places = [gdal.ApplyGeoTransform(grid.geotransform, x, y) for x, y in corners]
        if not grid.shares_crs(target) and grid.crs and target.crs:
            xs, ys = zip(*places)
            west, south, east, north = transform_extent((min(xs), min(ys), max(xs), max(ys)), grid.crs, target.crs)
            places = [(x, y) for x in (west, east) for y in (south, north)]
        inverse = _inverse(target.geotransform, paths[chosen])
        columns, rows = zip(*(gdal.ApplyGeoTransform(inverse, x, y) for x, y in places))
        left, right = max(left, min(columns)), min(right, max(columns))
        top, bottom = max(top, min(rows)), min(bottom, max(rows))
        if right - left < 0.5 or bottom - top < 0.5:
            raise ClippanError(
                "The raster {path} does not overlap the others; check that all show the same place and that their CRS "
                "are right.",
                path=path,
            )
    return target.cropped(
        math.floor(left + _NEAR), math.floor(top + _NEAR), math.ceil(right - _NEAR), math.ceil(bottom - _NEAR)
    )


def _inverse(geotransform: Sequence[float], path: str) -> tuple[float, ...]:
    inverse = gdal.InvGeoTransform(geotransform)
    if inverse is None:
        raise ClippanError("The raster {path} has pixels without a size; georeference it anew.", path=path)
    return tuple(inverse)


def _starts(first: int, length: int, count: int) -> list[int]:
    if length <= count * _SIZE:
        return list(range(first, first + length, _SIZE))
    return [first + int(start) for start in np.linspace(0, length - _SIZE, count)]


def _statistics(source: Source, path: str, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each band, float32 (bands,), from windows all over the raster.

    Raises:
        ClippanError: it shows nothing.
    """
    windows = _WINDOWS
    count, mean, squares, largest = _moments(source, path, windows, context)
    # What is shown may lie between the windows.
    while count.max() < _SIZE**2 and windows * _SIZE < max(source.bounds.width, source.bounds.height):
        windows *= 4
        count, mean, squares, largest = _moments(source, path, windows, context)
    if not count.any():
        raise ClippanError(
            "The raster {path} shows nothing but nodata here; leave it out or choose another.", path=path
        )
    deviation = np.sqrt(squares / np.maximum(count, 1))
    live = deviation > _FLAT * largest
    if not live.any():
        raise ClippanError(
            "The raster {path} has one value everywhere, which tells nothing apart; leave it out.", path=path
        )
    scale = np.where(live, 1 / np.where(live, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _moments(
    source: Source, path: str, windows: int, context: Context
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each band how many values were read, their mean, the sum of their squared differences from it, and the largest
    of their sizes, from so many windows along each edge."""
    count = np.zeros(source.count)
    mean, squares, largest = np.zeros(source.count), np.zeros(source.count), np.zeros(source.count)
    bounds = source.bounds
    rows, columns = _starts(bounds.y, bounds.height, windows), _starts(bounds.x, bounds.width, windows)
    for number, y in enumerate(rows):
        context.progress(100 * number / len(rows), Message("Looking at {path}", path=path))
        for x in columns:
            width, height = min(_SIZE, bounds.x + bounds.width - x), min(_SIZE, bounds.y + bounds.height - y)
            if not source.may_contain_data(Window(x, y, width, height)):
                continue
            read, known = source.read(x, y, width, height)
            values: np.ndarray = read.reshape(source.count, -1).astype(np.float64)
            inside = np.ones(values.shape, bool) if known is None else known.reshape(values.shape)
            own = inside.sum(axis=1)
            if not own.any():
                continue
            values = np.where(inside, values, 0)
            here = values.sum(axis=1) / np.maximum(own, 1)
            spread = np.where(inside, values - here[:, None], 0)
            # Means and squares of two parts make those of both (Chan, Golub and LeVeque 1983).
            total = np.maximum(count + own, 1)
            squares += (spread**2).sum(axis=1) + (here - mean) ** 2 * count * own / total
            mean += (here - mean) * own / total
            count += own
            largest = np.maximum(largest, np.abs(values).max(axis=1))
    return count, mean, squares, largest

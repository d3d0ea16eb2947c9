"""Sliding windows: the similarity of a raster with classes, on a grid of cells.

A window is a square of the raster that the model sees as one picture. The cells of all windows lie on one grid, which
starts at the raster's first pixel whatever the extent. Windows overlap; a cell's value is the mean over its windows,
weighted by a Hann window. Rows of windows are processed from top to bottom, so that only the cells of one row are being
summed at a time; a large grid is kept in a file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import ClipEncoder
from clippan.core.context import Context
from clippan.core.messages import Message
from clippan.core.threads import in_order, once_per_thread
from clippan.raster.rendering import Renderer, empty_images
from clippan.raster.tiles import Window

_MAX_BYTES_IN_MEMORY = 2**28  # of a grid; larger ones are kept in a file
INPUT_SCALE = 2  # for towers that take any size: larger pictures have fewer borders, whose padding the tower sees
_MIN_VALID_SHARE = 1e-6  # share of valid pixels below which a window is skipped


@dataclass(frozen=True)
class SlidingWindows:
    """The layout of windows and cells over a raster.

    Attributes:
        window_size: edge of a window, in pixels of the raster.
        pixels: edge of the model's input picture.
        cells: along the edge of a window.
        input_scale: edge of the input picture relative to the model's own.
        window_step_cells: between windows: about half a window; for convolutional towers three quarters.
        first_column, first_row, end_column, end_row: of the windows, counted from the raster's first pixel; the ends
            are exclusive.
    """

    window_size: int
    pixels: int
    cells: int
    input_scale: int
    window_step_cells: int
    first_column: int
    first_row: int
    end_column: int
    end_row: int

    @classmethod
    def of(
        cls,
        encoder: ClipEncoder,
        width: int,
        height: int,
        base_window_size: int,
        aoi: Window,
        window_step_cells: Optional[int] = None,
    ) -> SlidingWindows:
        """The windows that cover a part of a raster of ``width`` × ``height`` pixels.

        ``base_window_size`` is that of the window that fills an input picture of the model's own size, in pixels of the
        raster. By default the step depends on the model.
        """
        input_scale = INPUT_SCALE if encoder.accepts_any_size else 1
        pixels = encoder.image_size * input_scale
        cells = pixels // encoder.output_stride
        # Cells of a convolutional tower have a small receptive field; only those at the border are poor.
        step_cells = window_step_cells or max(cells * 3 // 4 if encoder.accepts_any_size else cells // 2, 1)
        multiple = cells // math.gcd(cells, step_cells)  # of which the size is one, so that windows start at a pixel
        size = max(1, round(base_window_size * input_scale / multiple)) * multiple
        step = size * step_cells // cells
        before = -(-size // step) - 1  # windows that start before the part and overlap it
        first_column, first_row = max(aoi.x // step - before, 0), max(aoi.y // step - before, 0)
        end_column, end_row = (
            max(min(math.ceil(end / step), math.ceil((extent - size) / step) + 1), first + 1)
            for end, extent, first in (
                (aoi.x + aoi.width, width, first_column),
                (aoi.y + aoi.height, height, first_row),
            )
        )
        return cls(size, pixels, cells, input_scale, step_cells, first_column, first_row, end_column, end_row)

    @property
    def window_step(self) -> int:
        """Between windows, in pixels of the raster."""
        return self.window_size * self.window_step_cells // self.cells

    @property
    def cell_size(self) -> float:
        """Edge of a cell in pixels of the raster."""
        return self.window_size / self.cells

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = self.end_row - self.first_row, self.end_column - self.first_column
        return (rows - 1) * self.window_step_cells + self.cells, (columns - 1) * self.window_step_cells + self.cells

    @property
    def count(self) -> int:
        """Number of windows."""
        return (self.end_row - self.first_row) * (self.end_column - self.first_column)

    def strip(self, row: int) -> Window:
        """The union of all windows of a row."""
        width = (self.end_column - self.first_column - 1) * self.window_step + self.window_size
        return Window(self.first_column * self.window_step, row * self.window_step, width, self.window_size)

    def windows(self, row: int) -> list[tuple[int, Window]]:
        """The windows of a row with their column numbers; they may extend beyond the raster."""
        step, size = self.window_step, self.window_size
        return [
            (column, Window(column * step, row * step, size, size))
            for column in range(self.first_column, self.end_column)
        ]


@dataclass(frozen=True)
class SimilarityGrid:
    """Cosine similarity with classes on the cells of sliding windows.

    Attributes:
        layout: the windows.
        values: float16 (classes, rows, columns); NaN where the model saw nothing.
    """

    layout: SlidingWindows
    values: np.ndarray

    def at_window(self, window: Window) -> np.ndarray:
        """Bilinear interpolation to the pixels of a window, float32 (classes, height, width)."""
        rows, across = _interpolation(*self._positions(np.arange(window.y, window.y + window.height), 0))
        columns, along = _interpolation(*self._positions(np.arange(window.x, window.x + window.width), 1))
        cosines = self.values[:, rows, columns].astype(np.float32)
        known = np.isfinite(cosines[0])
        if not known.all():
            cosines = _fill_with_mean(cosines, known)
        return np.matmul(np.matmul(across, cosines), along.T)

    def at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Bilinear interpolation to single pixels of the raster, float32 (n, classes); NaN where nothing is known."""
        corners = []
        for axis, pixels in enumerate((rows, columns)):
            positions, cells = self._positions(pixels, axis)
            lower = np.floor(positions).astype(int)
            upper = np.minimum(lower + 1, cells - 1)
            corners.append(((lower, 1 - (positions - lower)), (upper, positions - lower)))
        total = np.zeros((self.values.shape[0], len(rows)), np.float32)
        weights = np.zeros(len(rows), np.float32)
        for row, across in corners[0]:
            for column, along in corners[1]:
                cosines = self.values[:, row, column].astype(np.float32)
                weight = np.where(np.isfinite(cosines[0]), across * along, 0)
                total += np.nan_to_num(cosines) * weight
                weights += weight
        with np.errstate(invalid="ignore"):
            return (total / np.where(weights > 0, weights, np.nan)).T

    def _positions(self, pixels: np.ndarray, axis: int) -> tuple[np.ndarray, int]:
        """Positions among the cells of an axis (0: rows) of the centres of pixels, and the number of cells."""
        layout, cells = self.layout, self.values.shape[axis + 1]
        origin = (layout.first_row, layout.first_column)[axis] * layout.window_step
        return np.clip((pixels + 0.5 - origin) / layout.cell_size - 0.5, 0, cells - 1), cells


def similarity_grid(
    encoder: ClipEncoder,
    classes: ClassVectors,
    layout: SlidingWindows,
    open_scene: Callable[[], Renderer],
    global_weight: float,
    flips: bool,
    threads: int,
    folder: Path,
    context: Context,
    is_needed: Callable[[Window], bool],
) -> SimilarityGrid:
    """Computes the similarity of a raster with classes; a class's is that of its most similar vector.

    Args:
        open_scene: opens the raster, once in each thread.
        global_weight: of the whole window's cosine, which is added to that of each cell.
        flips: also average over mirrored pictures.
        threads: number of threads that read.
        folder: for a grid too large for memory.
        is_needed: whether a window, of any size, is needed.

    Raises:
        ClippanError: the raster cannot be read, or the model has no dense features.
    """
    count, step_cells = int(classes.class_of.max()) + 1, layout.window_step_cells
    grid = _empty_grid((count, *layout.shape), folder)
    hann = np.sin(np.pi * (np.arange(layout.cells) + 0.5) / layout.cells) ** 2  # above 0 everywhere
    taper = (hann[:, None] * hann).astype(np.float32)
    sums = np.zeros((count, layout.cells, layout.shape[1]), np.float32)
    weights = np.zeros((layout.cells, layout.shape[1]), np.float32)
    scene = once_per_thread(open_scene)
    starts = np.flatnonzero(np.diff(classes.class_of, prepend=-1))
    done, row, begun = 0, layout.first_row, time.monotonic()

    def finish(rows: int) -> None:
        """Stores the topmost rows of cells, which no later window covers."""
        top = (row - layout.first_row) * step_cells
        with np.errstate(invalid="ignore", divide="ignore"):
            grid[:, top : top + rows] = np.where(weights[:rows] > 0, sums[:, :rows] / weights[:rows], np.nan)

    def advance(to: int) -> None:
        nonlocal row
        while row < to:
            finish(step_cells)
            sums[:, :-step_cells], weights[:-step_cells] = sums[:, step_cells:].copy(), weights[step_cells:].copy()
            sums[:, -step_cells:], weights[-step_cells:] = 0, 0
            row += 1

    for batch, (pictures, valid) in in_order(
        lambda batch: _read_windows(scene(), layout.pixels, batch), _batches(layout, encoder.batch, is_needed), threads
    ):
        advance(batch[0][0])
        keep = np.flatnonzero(valid)
        if len(keep):
            cosines, whole = _cosines(encoder, pictures[keep], classes.vectors, flips)
            cosines = cosines + global_weight * whole[:, :, None, None]
            best = np.maximum.reduceat(cosines, starts, axis=1)
            for position, values in zip(keep, best):
                begin = (batch[position][1] - layout.first_column) * step_cells
                sums[:, :, begin : begin + layout.cells] += taper * values
                weights[:, begin : begin + layout.cells] += taper
        done += len(batch)
        rate = done / max(time.monotonic() - begun, 1e-3)
        context.progress(
            100 * done / layout.count,
            Message("{done:,} of {count:,} windows, {rate:.0f}/s", done=done, count=layout.count, rate=rate),
        )
    advance(layout.end_row - 1)
    finish(layout.cells)
    return SimilarityGrid(layout, grid)


def _cosines(
    encoder: ClipEncoder, pictures: np.ndarray, text_features: np.ndarray, flips: bool
) -> tuple[np.ndarray, np.ndarray]:
    if not flips:
        return encoder.cell_cosines(pictures, text_features)
    cells, wholes = [], []
    for axes in ((), (2,), (3,), (2, 3)):
        cosines, whole = encoder.cell_cosines(np.ascontiguousarray(np.flip(pictures, axes)), text_features)
        cells.append(np.flip(cosines, axes))
        wholes.append(whole)
    return np.mean(cells, axis=0), np.mean(wholes, axis=0)


def _batches(
    layout: SlidingWindows, size: int, is_needed: Callable[[Window], bool]
) -> Iterator[list[tuple[int, int, Window]]]:
    """Batches of at most ``size`` windows of a row, each with its row and column."""
    for row in range(layout.first_row, layout.end_row):
        if not is_needed(layout.strip(row)):
            continue
        windows = [(row, column, window) for column, window in layout.windows(row) if is_needed(window)]
        for start in range(0, len(windows), size):
            yield windows[start : start + size]


def _read_windows(
    scene: Renderer, pixels: int, batch: Sequence[tuple[int, int, Window]]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, bands, pixels, pixels), mirrored beyond the raster's right and bottom edges, and which have valid
    pixels (n,)."""
    pictures = empty_images(len(batch), (pixels, pixels), scene.channels)
    valid = np.zeros(len(batch), bool)
    for position, (_, _, window) in enumerate(batch):
        inside = window.intersection(Window(0, 0, scene.grid.width, scene.grid.height))
        columns, rows = (max(round(pixels * edge / window.width), 1) for edge in (inside.width, inside.height))
        picture, valid_share = scene.picture(inside, columns, rows)
        pictures[position] = np.pad(picture, ((0, 0), (0, pixels - rows), (0, pixels - columns)), "symmetric")
        valid[position] = valid_share > _MIN_VALID_SHARE
    return pictures, valid


def _empty_grid(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    if math.prod(shape) * 2 <= _MAX_BYTES_IN_MEMORY:
        return np.empty(shape, np.float16)
    return np.memmap(folder / f"cells_{'_'.join(map(str, shape))}", np.float16, "w+", shape=shape)


def _interpolation(positions: np.ndarray, cells: int) -> tuple[slice, np.ndarray]:
    """The cells around successive pixels along an axis, and the interpolation weights (pixels, cells)."""
    lower = np.minimum(positions.astype(int), max(cells - 2, 0))
    begin, end = int(lower[0]), min(int(lower[-1]) + 2, cells)
    weights = np.zeros((len(positions), end - begin), np.float32)
    share = (positions - lower).astype(np.float32)
    pixels = np.arange(len(positions))
    weights[pixels, lower - begin] = 1 - share
    weights[pixels, np.minimum(lower + 1, cells - 1) - begin] += share
    return slice(begin, end), weights


def _fill_with_mean(cosines: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown cells, which lie in nodata, with the mean of the others; they affect only interpolation nearby."""
    mean = cosines[:, known].mean(axis=1) if known.any() else np.zeros(len(cosines), np.float32)
    return np.where(known, cosines, mean[:, None, None])

"""Sliding windows: the similarity of a raster with classes, on a grid of cells.

A window is a square of the raster that the model sees as one picture. The cells of all windows lie on one grid, which
starts at the raster's first pixel whatever the extent. Windows overlap; a cell's value is the mean over its windows,
weighted by a Hann window. Rows of windows are processed from top to bottom, so that only the cells of one row are being
summed at a time; a large grid is kept in a file.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import Encoder
from clippan.core.context import Context
from clippan.core.messages import Message
from clippan.core.threads import in_order
from clippan.raster.scene import Scene, empty_images
from clippan.raster.tiles import Window

_MAX_BYTES_IN_MEMORY = 2**28  # of a grid; larger ones are kept in a file
ENLARGEMENT = 2  # for towers that take any size: larger pictures have fewer borders, whose padding the tower sees
_MIN_VALID = 1e-6  # share of valid pixels below which a window is skipped


@dataclass(frozen=True)
class SlidingWindows:
    """The layout of windows and cells over a raster.

    Attributes:
        width, height: of the raster.
        edge: of a window, in pixels of the raster.
        pixels: edge of the model's input picture.
        cells: along the edge of a window.
        enlargement: edge of the input picture relative to the model's own.
        cell_stride: between windows, in cells: about half a window; for convolutional towers three quarters.
        left, top, right, bottom: columns and rows of the windows, counted from the raster's first pixel; right and
            bottom are exclusive.
    """

    width: int
    height: int
    edge: int
    pixels: int
    cells: int
    enlargement: int
    cell_stride: int
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(
        cls, model: Encoder, width: int, height: int, edge: int, part: Window, cell_stride: Optional[int] = None
    ) -> SlidingWindows:
        """The windows that cover a part of a raster.

        Args:
            model: the encoder.
            width, height: of the raster.
            edge: of the window that fills an input picture of the model's own size, in pixels of the raster.
            part: the part of the raster.
            cell_stride: between windows, in cells; by default it depends on the model.
        """
        enlargement = ENLARGEMENT if model.any_size else 1
        pixels = model.pixels * enlargement
        cells = pixels // model.stride
        # Cells of a convolutional tower have a small receptive field; only those at the border are poor.
        cell_stride = cell_stride or max(cells * 3 // 4 if model.any_size else cells // 2, 1)
        whole = cells // math.gcd(
            cells, cell_stride
        )  # the edge is a multiple of this, so that windows start at a pixel
        edge = max(1, round(edge * enlargement / whole)) * whole
        step = edge * cell_stride // cells
        before = -(-edge // step) - 1  # windows that start before the part and overlap it
        left, top = max(part.x // step - before, 0), max(part.y // step - before, 0)
        right, bottom = (
            max(min(math.ceil(end / step), math.ceil((size - edge) / step) + 1), first + 1)
            for end, size, first in (
                (part.x + part.width, width, left),
                (part.y + part.height, height, top),
            )
        )
        return cls(width, height, edge, pixels, cells, enlargement, cell_stride, left, top, right, bottom)

    @property
    def stride(self) -> int:
        """Between windows, in pixels of the raster."""
        return self.edge * self.cell_stride // self.cells

    @property
    def cell(self) -> float:
        """Edge of a cell in pixels of the raster."""
        return self.edge / self.cells

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = (
            (count - 1) * self.cell_stride + self.cells for count in (self.bottom - self.top, self.right - self.left)
        )
        return rows, columns

    @property
    def count(self) -> int:
        """Number of windows."""
        return (self.bottom - self.top) * (self.right - self.left)

    def strip(self, row: int) -> Window:
        """The union of all windows of a row."""
        width = (self.right - self.left - 1) * self.stride + self.edge
        return Window(self.left * self.stride, row * self.stride, width, self.edge)

    def windows(self, row: int) -> list[tuple[int, Window]]:
        """The windows of a row with their column numbers; they may extend beyond the raster."""
        return [
            (column, Window(column * self.stride, row * self.stride, self.edge, self.edge))
            for column in range(self.left, self.right)
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
        layout = self.layout
        rows, across = _interpolation(
            window.y, window.height, layout.top * layout.stride, layout.cell, self.values.shape[1]
        )
        columns, along = _interpolation(
            window.x, window.width, layout.left * layout.stride, layout.cell, self.values.shape[2]
        )
        part = self.values[:, rows, columns].astype(np.float32)
        known = np.isfinite(part[0])
        if not known.all():
            part = _fill_unknown(part, known)
        return np.matmul(np.matmul(across, part), along.T)

    def at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Bilinear interpolation to single pixels of the raster, float32 (n, classes); NaN where nothing is known."""
        layout = self.layout
        ends = []
        for numbers, first, cells in (
            (rows, layout.top, self.values.shape[1]),
            (columns, layout.left, self.values.shape[2]),
        ):
            place = np.clip((numbers + 0.5 - first * layout.stride) / layout.cell - 0.5, 0, cells - 1)
            lower = np.floor(place).astype(int)
            ends.append(((lower, 1 - (place - lower)), (np.minimum(lower + 1, cells - 1), place - lower)))
        total = np.zeros((self.values.shape[0], len(rows)), np.float32)
        weights = np.zeros(len(rows), np.float32)
        for row, across in ends[0]:
            for column, along in ends[1]:
                cells_there = self.values[:, row, column].astype(np.float32)
                weight = np.where(np.isfinite(cells_there[0]), across * along, 0)
                total += np.nan_to_num(cells_there) * weight
                weights += weight
        with np.errstate(invalid="ignore"):
            return (total / np.where(weights > 0, weights, np.nan)).T


def similarity_grid(
    model: Encoder,
    classes: ClassVectors,
    layout: SlidingWindows,
    scene: Callable[[], Scene],
    bias: float,
    flips: bool,
    threads: int,
    folder: Path,
    context: Context,
    wanted: Callable[[Window], bool] = lambda window: True,
) -> SimilarityGrid:
    """Computes the similarity of a raster with classes.

    Args:
        model: the encoder.
        classes: text vectors; a class's similarity is that of its most similar vector.
        layout: the windows.
        scene: opens the raster, once in each thread.
        bias: weight of the whole window's cosine, which is added to that of each cell.
        flips: also average over mirrored pictures.
        threads: number of threads that read.
        folder: for a grid too large for memory.
        context: receives the progress.
        wanted: whether a window, of any size, is needed; by default all are.

    Raises:
        ClippanError: the raster cannot be read, or the model has no dense features.
    """
    count, cell_stride = int(classes.class_of.max()) + 1, layout.cell_stride
    grid = _empty_grid((count, *layout.shape), folder)
    taper = _hann_window(layout.cells)
    sums = np.zeros((count, layout.cells, layout.shape[1]), np.float32)
    weights = np.zeros((layout.cells, layout.shape[1]), np.float32)
    readers = _WindowReader(scene, layout.pixels)
    starts = np.flatnonzero(np.diff(classes.class_of, prepend=-1))
    done, row, begun = 0, layout.top, time.monotonic()

    def finish(rows: int) -> None:
        """Stores the topmost rows of cells, which no later window covers."""
        top = (row - layout.top) * cell_stride
        with np.errstate(invalid="ignore", divide="ignore"):
            grid[:, top : top + rows] = np.where(weights[:rows] > 0, sums[:, :rows] / weights[:rows], np.nan)

    def advance(to: int) -> None:
        nonlocal row
        while row < to:
            finish(cell_stride)
            sums[:, :-cell_stride], weights[:-cell_stride] = sums[:, cell_stride:].copy(), weights[cell_stride:].copy()
            sums[:, -cell_stride:], weights[-cell_stride:] = 0, 0
            row += 1

    for batch, (pictures, valid) in in_order(readers.read, _batches(layout, model.batch, wanted), threads):
        advance(batch[0][0])
        keep = np.flatnonzero(valid)
        if len(keep):
            cosines, whole = _cosines(model, pictures[keep], classes.vectors, flips)
            cosines = cosines + bias * whole[:, :, None, None]
            best = np.maximum.reduceat(cosines, starts, axis=1)
            for position, values in zip(keep, best):
                begin = (batch[position][1] - layout.left) * cell_stride
                sums[:, :, begin : begin + layout.cells] += taper * values
                weights[:, begin : begin + layout.cells] += taper
        done += len(batch)
        rate = done / max(time.monotonic() - begun, 1e-3)
        context.progress(
            100 * done / layout.count,
            Message("{done:,} of {count:,} windows, {rate:.0f}/s", done=done, count=layout.count, rate=rate),
        )
    advance(layout.bottom - 1)
    finish(layout.cells)
    return SimilarityGrid(layout, grid)


def _cosines(model: Encoder, pictures: np.ndarray, texts: np.ndarray, flips: bool) -> tuple[np.ndarray, np.ndarray]:
    if not flips:
        return model.cell_cosines(pictures, texts)
    cells, wholes = [], []
    for axes in ((), (2,), (3,), (2, 3)):
        cosines, whole = model.cell_cosines(np.ascontiguousarray(np.flip(pictures, axes)), texts)
        cells.append(np.flip(cosines, axes))
        wholes.append(whole)
    return np.mean(cells, axis=0), np.mean(wholes, axis=0)


def _batches(
    layout: SlidingWindows, size: int, wanted: Callable[[Window], bool]
) -> Iterator[list[tuple[int, int, Window]]]:
    """Batches of at most ``size`` windows of a row, each with its row and column."""
    for row in range(layout.top, layout.bottom):
        if not wanted(layout.strip(row)):
            continue
        windows = [(row, column, window) for column, window in layout.windows(row) if wanted(window)]
        for start in range(0, len(windows), size):
            yield windows[start : start + size]


class _WindowReader:
    """Reads windows as pictures; each thread opens the raster once."""

    def __init__(self, scene: Callable[[], Scene], pixels: int) -> None:
        self._scene, self._pixels = scene, pixels
        self._local = threading.local()

    def read(self, batch: list[tuple[int, int, Window]]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (n, bands, pixels, pixels), and which have valid pixels (n,)."""
        if not hasattr(self._local, "scene"):
            self._local.scene = self._scene()
        pictures = empty_images(len(batch), (self._pixels, self._pixels), self._local.scene.channels)
        valid = np.zeros(len(batch), bool)
        for position, (_, _, window) in enumerate(batch):
            pictures[position], part = self._padded(window)
            valid[position] = part > _MIN_VALID
        return pictures, valid

    def _padded(self, window: Window) -> tuple[np.ndarray, float]:
        """A window as a picture, mirrored beyond the raster's right and bottom edges, and its share of valid pixels."""
        scene: Scene = self._local.scene
        width, height = min(window.width, scene.grid.width - window.x), min(window.height, scene.grid.height - window.y)
        inside = Window(window.x, window.y, width, height)
        columns, rows = (max(round(self._pixels * edge / window.width), 1) for edge in (width, height))
        picture, part = scene.picture(inside, columns, rows)
        beyond = ((0, 0), (0, self._pixels - rows), (0, self._pixels - columns))
        return np.pad(picture, beyond, "symmetric"), part


def _empty_grid(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    if math.prod(shape) * 2 <= _MAX_BYTES_IN_MEMORY:
        return np.empty(shape, np.float16)
    return np.memmap(folder / f"cells_{'_'.join(map(str, shape))}", np.float16, "w+", shape=shape)


def _hann_window(cells: int) -> np.ndarray:
    """Weights of a window's cells (cells, cells), all above 0."""
    axis = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    return (axis[:, None] * axis).astype(np.float32)


def _interpolation(first: int, count: int, origin: float, cell: float, cells: int) -> tuple[slice, np.ndarray]:
    """The cells around pixels along an axis, and the interpolation weights (pixels, cells)."""
    places = np.clip((np.arange(first, first + count) + 0.5 - origin) / cell - 0.5, 0, cells - 1)
    lower = np.minimum(places.astype(int), max(cells - 2, 0))
    begin, end = int(lower[0]), min(int(lower[-1]) + 2, cells)
    weights = np.zeros((count, end - begin), np.float32)
    share = (places - lower).astype(np.float32)
    pixels = np.arange(count)
    weights[pixels, lower - begin] = 1 - share
    weights[pixels, np.minimum(lower + 1, cells - 1) - begin] += share
    return slice(begin, end), weights


def _fill_unknown(part: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown cells, which lie in nodata, with the mean of the others; they affect only interpolation nearby."""
    mean = part[:, known].mean(axis=1) if known.any() else np.zeros(len(part), np.float32)
    return np.where(known, part, mean[:, None, None])

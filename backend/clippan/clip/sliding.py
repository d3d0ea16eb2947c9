"""How well each class fits each place, on a coarse grid: windows over the raster go through the model once.

A window is a square of the raster that the model sees as one picture; its cells lie on one lattice, which begins at the
raster's first pixel whatever the extent. Windows overlap, and a cell's value is the mean over those that it lies in,
each weighted by a Hann window. Rows of windows are worked off from top to bottom, so that only the cells of one row are
summed at a time, and what is finished goes into a file if it is large.
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

from clippan.clip.encoder import Encoder
from clippan.core.context import Context
from clippan.core.threads import in_order
from clippan.raster.scene import Scene, empty_images
from clippan.raster.tiles import Window

_MAX_BYTES_IN_MEMORY = 2**28  # bytes of a grid; larger ones lie in a file
ENLARGEMENT = 2  # a tower that takes any size sees pictures so much enlargement: fewer borders, whose padding it sees
_MIN_VALID = 1e-6  # a window without any valid pixel is not looked at


@dataclass(frozen=True)
class SlidingWindows:
    """Windows and cells along both axes of a raster.

    Attributes:
        width, height: of the raster.
        edge: of a window, in the raster's pixels.
        pixels: edge of the picture that the model sees.
        cells: of a window, along its edge.
        enlargement: how much larger than the model's own its pictures are.
        cell_stride: from window to window, in cells: about a half; for convolutional towers three quarters.
        left, top, right, bottom: the windows, counted from the raster's first pixel; the last of each is left out.
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
        """The lattice for a part of a raster.

        Args:
            model: that looks.
            width, height: of the raster.
            edge: of what the model sees as a picture of its own size, in the raster's pixels.
            part: of the raster.
            cell_stride: from window to window, in cells; by default what suits the model.
        """
        larger = ENLARGEMENT if model.any_size else 1
        pixels = model.pixels * larger
        cells = pixels // model.stride
        # The cells of a convolutional tower see little further than themselves; only those by the border are poor.
        cell_stride = cell_stride or max(cells * 3 // 4 if model.any_size else cells // 2, 1)
        whole = cells // math.gcd(
            cells, cell_stride
        )  # of which an edge is a multiple, so that windows begin at a pixel
        edge = max(1, round(edge * larger / whole)) * whole
        step = edge * cell_stride // cells
        before = -(-edge // step) - 1  # windows that begin before the part and reach into it
        left, top = max(part.x // step - before, 0), max(part.y // step - before, 0)
        right, bottom = (
            max(min(math.ceil(end / step), math.ceil((size - edge) / step) + 1), first + 1)
            for end, size, first in (
                (part.x + part.width, width, left),
                (part.y + part.height, height, top),
            )
        )
        return cls(width, height, edge, pixels, cells, larger, cell_stride, left, top, right, bottom)

    @property
    def stride(self) -> int:
        """From window to window, in the raster's pixels."""
        return self.edge * self.cell_stride // self.cells

    @property
    def cell(self) -> float:
        """Edge of a cell, in the raster's pixels."""
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
        """Of windows."""
        return (self.bottom - self.top) * (self.right - self.left)

    def strip(self, row: int) -> Window:
        """The window that holds all windows of a row."""
        width = (self.right - self.left - 1) * self.stride + self.edge
        return Window(self.left * self.stride, row * self.stride, width, self.edge)

    def windows(self, row: int) -> list[tuple[int, Window]]:
        """The windows of a row with their columns; they may reach beyond the raster."""
        return [
            (column, Window(column * self.stride, row * self.stride, self.edge, self.edge))
            for column in range(self.left, self.right)
        ]


@dataclass(frozen=True)
class SimilarityGrid:
    """Cosines of classes on a lattice's cells, float16 (classes, rows, columns); NaN where nothing was looked at."""

    lattice: SlidingWindows
    values: np.ndarray

    def at(self, window: Window) -> np.ndarray:
        """Interpolated linearly to the pixels of a window: float32 (classes, height, width)."""
        lattice = self.lattice
        rows, across = _interpolation(
            window.y, window.height, lattice.top * lattice.stride, lattice.cell, self.values.shape[1]
        )
        columns, along = _interpolation(
            window.x, window.width, lattice.left * lattice.stride, lattice.cell, self.values.shape[2]
        )
        part = self.values[:, rows, columns].astype(np.float32)
        known = np.isfinite(part[0])
        if not known.all():
            part = _fill_unknown(part, known)
        return np.matmul(np.matmul(across, part), along.T)

    def at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As ``at``, at single pixels of the raster: float32 (n, classes); NaN where nothing was looked at."""
        lattice = self.lattice
        ends = []
        for numbers, first, cells in (
            (rows, lattice.top, self.values.shape[1]),
            (columns, lattice.left, self.values.shape[2]),
        ):
            place = np.clip((numbers + 0.5 - first * lattice.stride) / lattice.cell - 0.5, 0, cells - 1)
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
    texts: np.ndarray,
    owners: np.ndarray,
    lattice: SlidingWindows,
    scene: Callable[[], Scene],
    bias: float,
    flips: bool,
    threads: int,
    folder: Path,
    context: Context,
    wanted: Callable[[Window], bool] = lambda window: True,
) -> SimilarityGrid:
    """Looks at windows.

    Args:
        model: that looks.
        texts: vectors of all words, (n, width).
        owners: the class of each word, (n,), from 0 without gaps; a class is as likely as its likeliest word.
        lattice: the windows.
        scene: opens the raster; once in each thread.
        bias: of the whole window's cosine, which is added to each cell's.
        flips: also look at mirrored pictures.
        threads: that read.
        folder: for a grid that is too large for the memory.
        context: hears of progress.
        wanted: which windows, of any size; by default all.

    Raises:
        ClippanError: the raster cannot be read, or the model has no dense features.
    """
    classes, cell_stride = int(owners.max()) + 1, lattice.cell_stride
    grid = _empty_grid((classes, *lattice.shape), folder)
    taper = _hann_window(lattice.cells)
    sums = np.zeros((classes, lattice.cells, lattice.shape[1]), np.float32)
    weights = np.zeros((lattice.cells, lattice.shape[1]), np.float32)
    readers = _WindowReader(scene, lattice.pixels)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    done, row, begun = 0, lattice.top, time.monotonic()

    def finish(rows: int) -> None:
        """Hands over the uppermost rows of cells, which no further window sees."""
        top = (row - lattice.top) * cell_stride
        with np.errstate(invalid="ignore", divide="ignore"):
            grid[:, top : top + rows] = np.where(weights[:rows] > 0, sums[:, :rows] / weights[:rows], np.nan)

    def advance(to: int) -> None:
        nonlocal row
        while row < to:
            finish(cell_stride)
            sums[:, :-cell_stride], weights[:-cell_stride] = sums[:, cell_stride:].copy(), weights[cell_stride:].copy()
            sums[:, -cell_stride:], weights[-cell_stride:] = 0, 0
            row += 1

    for batch, (pictures, valid) in in_order(readers.read, _batches(lattice, model.batch, wanted), threads):
        advance(batch[0][0])
        keep = np.flatnonzero(valid)
        if len(keep):
            cosines, whole = _cosines(model, pictures[keep], texts, flips)
            cosines = cosines + bias * whole[:, :, None, None]
            likest = np.maximum.reduceat(cosines, starts, axis=1)
            for position, values in zip(keep, likest):
                begin = (batch[position][1] - lattice.left) * cell_stride
                sums[:, :, begin : begin + lattice.cells] += taper * values
                weights[:, begin : begin + lattice.cells] += taper
        done += len(batch)
        rate = done / max(time.monotonic() - begun, 1e-3)
        context.progress(100 * done / lattice.count, f"{done:,} of {lattice.count:,} windows, {rate:.0f}/s")
    advance(lattice.bottom - 1)
    finish(lattice.cells)
    return SimilarityGrid(lattice, grid)


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
    lattice: SlidingWindows, size: int, wanted: Callable[[Window], bool]
) -> Iterator[list[tuple[int, int, Window]]]:
    """Windows of a row, with row and column, at most ``size`` at a time."""
    for row in range(lattice.top, lattice.bottom):
        if not wanted(lattice.strip(row)):
            continue
        windows = [(row, column, window) for column, window in lattice.windows(row) if wanted(window)]
        for start in range(0, len(windows), size):
            yield windows[start : start + size]


class _WindowReader:
    """Reads windows in several threads, each of which has the raster open."""

    def __init__(self, scene: Callable[[], Scene], pixels: int) -> None:
        self._scene, self._pixels = scene, pixels
        self._local = threading.local()

    def read(self, batch: list[tuple[int, int, Window]]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (n, bands, pixels, pixels), and which show anything (n,)."""
        if not hasattr(self._local, "scene"):
            self._local.scene = self._scene()
        pictures = empty_images(len(batch), (self._pixels, self._pixels), self._local.scene.channels)
        valid = np.zeros(len(batch), bool)
        for position, (_, _, window) in enumerate(batch):
            pictures[position], part = self._padded(window)
            valid[position] = part > _MIN_VALID
        return pictures, valid

    def _padded(self, window: Window) -> tuple[np.ndarray, float]:
        """A window as a picture, mirrored at the raster's far borders."""
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
    """Weights of a window's cells (cells, cells), above zero everywhere."""
    axis = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    return (axis[:, None] * axis).astype(np.float32)


def _interpolation(first: int, count: int, origin: float, cell: float, cells: int) -> tuple[slice, np.ndarray]:
    """Which cells lie about pixels along an axis, and the weights (pixels, cells) to interpolate between them."""
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
    """Cells that nothing is known of get the mean of the others: they lie among nodata, and only their neighbours'
    interpolation sees them."""
    mean = part[:, known].mean(axis=1) if known.any() else np.zeros(len(part), np.float32)
    return np.where(known, part, mean[:, None, None])

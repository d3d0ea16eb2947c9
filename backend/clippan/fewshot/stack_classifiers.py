"""Classifiers over a stack of rasters: each learns from some of the samples, tells of the others, and maps tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Protocol

import numpy as np
import torch
from osgeo import gdal, osr

from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import Encoder
from clippan.clip.similarity import SimilarityMaps
from clippan.core.context import Context
from clippan.fewshot import baselines, prompt_heads, scene_encoder
from clippan.fewshot.stack import Stack
from clippan.jobs.classify import Classifier
from clippan.jobs.segment import SegmentRequest
from clippan.labels.samples import Samples
from clippan.raster.grid import Grid
from clippan.raster.scene import Scene, SceneOptions, spatial_reference
from clippan.raster.tiles import Window

_SQUARE = 64  # edge of the squares in which it is remembered that there are samples

TileProbabilities = tuple[
    np.ndarray, np.ndarray
]  # probabilities float32 (classes, h, w), and which pixels are valid, bool (h, w)


class FittedStackClassifier(Protocol):
    """A classifier that knows samples."""

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """Probabilities of samples, by their numbers: float32 (n, classes)."""

    def tile(self, window: Window) -> TileProbabilities:
        """Of a window of the grid."""


class StackClassifier(Protocol):
    """Makes classifiers."""

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        """One that knows some of the samples, by their numbers."""


@dataclass(frozen=True)
class StackFeatures:
    """What is known of pixels, as vectors: at the samples, and of tiles.

    Attributes:
        samples: float32 (n, width).
        tile: of a window, (pixels, width), and which pixels are valid, (h, w).
    """

    samples: np.ndarray
    tile: Callable[[Window], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class BaselineClassifier:
    """One of the rivals, on vectors of single pixels. The context may cancel."""

    method: Classifier
    features: StackFeatures
    samples: Samples
    context: Context
    texts: Optional[np.ndarray] = None

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        """See StackClassifier."""
        known, labels = self.features.samples[numbers], self.samples.labels[numbers]
        count = len(self.samples.names)
        fitted = baselines.fit(self.method, known, labels, count, texts=self.texts, seed=seed, context=self.context)
        return _FittedBaseline(fitted, self.features, count, self.context)


@dataclass(frozen=True)
class _FittedBaseline:
    fitted: baselines.PixelClassifier
    features: StackFeatures
    classes: int
    context: Context

    def at(self, numbers: np.ndarray) -> np.ndarray:
        return self.fitted.probabilities(self.features.samples[numbers], self.context)

    def tile(self, window: Window) -> TileProbabilities:
        known, valid = self.features.tile(window)
        inside = valid.ravel()
        found = np.zeros((inside.size, self.classes), np.float32)
        if inside.any():
            found[inside] = self.fitted.probabilities(known[inside], self.context)
        return found.T.reshape(-1, *valid.shape), valid


def spectral_features(stack: Stack, samples: Samples, with_means: bool, context: Context) -> StackFeatures:
    """The bands of all rasters, if asked for with their local means behind them."""
    margin = baselines.LOCAL_MEAN_SIZE // 2 if with_means else 0

    def tile(window: Window) -> tuple[np.ndarray, np.ndarray]:
        wide = stack.with_margin(window, margin)
        values, valid = stack.read(wide)
        down, across = _slices_in(window, wide)
        parts = [baselines.flatten_bands([part[:, down, across] for part in values])]
        if with_means:
            around = baselines.local_means(values, valid)
            parts.append(baselines.flatten_bands([part[:, down, across] for part in around]))
        return np.concatenate(parts, axis=1), valid[down, across]

    return StackFeatures(_sample_features(stack, samples, tile, context), tile)


def _sample_features(
    stack: Stack, samples: Samples, tile: Callable[[Window], tuple[np.ndarray, np.ndarray]], context: Context
) -> np.ndarray:
    """What tiles say of the samples, (n, width)."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for window, numbers in stack.windows_at(samples.rows, samples.columns):
        context.raise_if_cancelled()
        values, _ = tile(window)
        places = (samples.rows[numbers] - window.y) * window.width + samples.columns[numbers] - window.x
        found.append((numbers, values[places]))
    order = np.concatenate([numbers for numbers, _ in found])
    return np.concatenate([values for _, values in found])[np.argsort(order)]


def _slices_in(window: Window, wide: Window) -> tuple[slice, slice]:
    """Where a window lies in a wider one."""
    top, left = window.y - wide.y, window.x - wide.x
    return slice(top, top + window.height), slice(left, left + window.width)


class ClipFeatureExtractor:
    """What CLIP sees at the pixels of a stack, in the picture of one of its rasters, which it sees with its own pixels.

    Args:
        stack: the rasters.
        look: how the raster becomes a picture.
        path: the raster.
        model: CLIP.
        threads: CPU threads, 0 for all.
        folder: for what is too large for the memory.
    """

    def __init__(self, stack: Stack, look: SceneOptions, path: str, model: Encoder, threads: int, folder: Path) -> None:
        self._stack, self._model, self._folder = stack, model, folder
        self._scene = Scene(path, look)
        self._request = SegmentRequest(raster=path, classes="", output="", threads=threads)
        self._words = ClassVectors.identity(model.width)
        self._places = _PixelTransform(stack.georeferenced_grid, self._scene.grid)
        self._view: Optional[SimilarityMaps] = None

    def look(self, samples: Optional[Samples], context: Context) -> None:
        """Looks at what lies about the samples, or at everything."""
        grid, whole = self._scene.grid, self._stack.grid
        rows, columns = self._places.of(
            np.array([0, 0, whole.height, whole.height]) - 0.5, np.array([0, whole.width, 0, whole.width]) - 0.5
        )
        part = _bounding_window(rows, columns, grid)
        squares = np.ones((grid.height // _SQUARE + 1, grid.width // _SQUARE + 1), bool)
        if samples is not None:
            rows, columns = self._places.of(samples.rows, samples.columns)
            squares[:] = False
            squares[_square(rows, grid.height), _square(columns, grid.width)] = True

        def wanted(window: Window) -> bool:
            down = slice(window.y // _SQUARE, (window.y + window.height - 1) // _SQUARE + 1)
            across = slice(window.x // _SQUARE, (window.x + window.width - 1) // _SQUARE + 1)
            return bool(squares[down, across].any())

        folder = self._folder / ("all" if samples is None else "some")
        folder.mkdir()
        self._view = SimilarityMaps.of(
            self._request, self._model, self._words, self._scene, part, folder, context, wanted
        )

    def features(self, samples: Samples) -> StackFeatures:
        """What was seen, at the samples and of tiles."""
        return StackFeatures(self._at_pixels(samples.rows, samples.columns), self._tile)

    def _tile(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        _, valid = self._stack.read(window)
        rows, columns = np.mgrid[window.y : window.y + window.height, window.x : window.x + window.width].reshape(2, -1)
        return self._at_pixels(rows, columns), valid

    def _at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        assert self._view is not None
        return np.nan_to_num(self._view.at_pixels(*self._places.of(rows, columns)))


def _bounding_window(rows: np.ndarray, columns: np.ndarray, grid: Grid) -> Window:
    """The window of a grid that holds places, as far as they are in it."""
    top, left = (int(np.clip(axis.min(), 0, size - 1)) for axis, size in ((rows, grid.height), (columns, grid.width)))
    bottom, right = min(int(rows.max()) + 2, grid.height), min(int(columns.max()) + 2, grid.width)
    return Window(left, top, max(right - left, 1), max(bottom - top, 1))


def _square(places: np.ndarray, size: int) -> np.ndarray:
    return np.clip(places, 0, size - 1).astype(int) // _SQUARE


class _PixelTransform:
    """From pixels of one grid to those of another, both with a geotransform; a whole number is a pixel's centre."""

    def __init__(self, here: Grid, there: Grid) -> None:
        assert here.geotransform
        self._here, self._back = here.geotransform, gdal.InvGeoTransform(there.geotransform)
        same = here.shares_crs(there) or not (here.crs and there.crs)
        self._crs = (
            None if same else osr.CoordinateTransformation(spatial_reference(here.crs), spatial_reference(there.crs))
        )

    def of(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, fractions of pixels too."""
        x, y = _applied(self._here, columns + 0.5, rows + 0.5)
        if self._crs is not None:
            points = np.array(self._crs.TransformPoints(np.stack([x, y], axis=1).tolist()))
            x, y = points[:, 0], points[:, 1]
        columns, rows = _applied(self._back, x, y)
        return rows - 0.5, columns - 0.5


def _applied(g: Sequence[float], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return g[0] + x * g[1] + y * g[2], g[3] + x * g[4] + y * g[5]


def overview_picture(stack: Stack, scene: Scene, step: int) -> np.ndarray:
    """A raster's picture at every ``step``-th pixel of a stack's rows and columns, uint8 (h, w, 3)."""
    down, across = (np.arange(0, size, step) for size in (stack.grid.height, stack.grid.width))
    pixels = (axis.ravel() for axis in np.meshgrid(down, across, indexing="ij"))
    rows, columns = _PixelTransform(stack.georeferenced_grid, scene.grid).of(*pixels)
    part = _bounding_window(rows, columns, scene.grid)
    shrink = max(1.0, part.height / len(down), part.width / len(across))
    height, width = max(round(part.height / shrink), 1), max(round(part.width / shrink), 1)
    small, _ = scene.picture(part, width, height)
    rows, columns = (
        np.clip((axis + 0.5 - first) / shrink, 0, size - 1).astype(int)
        for axis, first, size in ((rows, part.y, height), (columns, part.x, width))
    )
    return small[:, rows, columns].T.reshape(len(down), len(across), 3)


class DiffClipClassifier:
    """DiffCLIP over a stack: an encoder that knows the scene, and what it learns from samples.

    Args:
        stack: the rasters.
        samples: all of them.
        encoder: pre-trained on the scene.
        texts: vectors of the classes' prompts, (classes, prompts, width).
        context: hears of progress, and may cancel.
    """

    def __init__(
        self, stack: Stack, samples: Samples, encoder: scene_encoder.SceneEncoder, texts: np.ndarray, context: Context
    ) -> None:
        self.encoder = encoder
        self._stack, self._labels, self._options = stack, samples.labels, prompt_heads.Options()
        self.classes, self.quiet = len(samples.names), context.without_progress
        self._margin = encoder.margin
        self._texts = torch.from_numpy(texts).to(encoder.device)
        pieces = stack.sample_windows(samples.rows, samples.columns, self._margin)
        moments, spots = prompt_heads.FeatureMoments(), []
        for number, (window, inside) in enumerate(pieces):
            context.progress(100 * number / len(pieces), "Looking at the samples")
            wide, sight = self.look(window)
            own, (down, across) = torch.zeros_like(sight.valid), _slices_in(window, wide)
            own[down, across] = sight.valid[down, across]
            moments.add(sight.features, own)
            rows, columns = samples.rows[inside] - wide.y, samples.columns[inside] - wide.x
            spots.append(prompt_heads.SampleFeatures.at_pixels(sight, rows, columns, self._options))
        self.spots = prompt_heads.SampleFeatures.concatenated(spots, [inside for _, inside in pieces])
        self._standard = moments.mean_and_scale(encoder.device)

    def look(self, window: Window) -> tuple[Window, prompt_heads.PixelFeatures]:
        """What is known of the pixels of a window before anything is known of classes, with a margin: it, and that."""
        wide = self._stack.with_margin(window, self._margin)
        return wide, prompt_heads.pixel_features(self.encoder, *self._stack.read(wide), self._options, self.quiet)

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        """See StackClassifier."""
        spots, labels = self.spots.subset(numbers), self._labels[numbers]
        found = prompt_heads.fit_heads(
            spots, labels, self._texts, self._standard, seed=seed, context=self.quiet, options=self._options
        )
        return _FittedDiffClip(self, found)


@dataclass(frozen=True)
class _FittedDiffClip:
    learner: DiffClipClassifier
    found: prompt_heads.HeadEnsemble

    def at(self, numbers: np.ndarray) -> np.ndarray:
        return self.found.at_samples(self.learner.spots.subset(numbers), self.learner.quiet)

    def tile(self, window: Window) -> TileProbabilities:
        wide, sight = self.learner.look(window)
        down, across = _slices_in(window, wide)
        valid = sight.valid[down, across].cpu().numpy()
        if not valid.any():
            return np.zeros((self.learner.classes, *valid.shape), np.float32), valid
        return self.found.map(sight, self.learner.quiet)[:, down, across], valid

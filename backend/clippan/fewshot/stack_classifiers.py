"""Classifiers over a stack of rasters: fitted to some samples, they classify other samples and map tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Protocol

import numpy as np
import torch
from osgeo import gdal, osr

from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import ClipEncoder
from clippan.clip.similarity import SimilarityMaps
from clippan.core.context import Context
from clippan.fewshot import baselines, prompt_heads, scene_encoder
from clippan.fewshot.stack import Stack
from clippan.jobs.classify import Classifier
from clippan.jobs.segment import SegmentRequest
from clippan.labels.samples import Samples
from clippan.raster.grid import Grid
from clippan.raster.rendering import Renderer, RenderOptions, spatial_reference
from clippan.raster.tiles import Window

_SQUARE = 64  # edge in pixels of the squares that are marked where they hold samples

# Probabilities, float32 (classes, h, w), and the mask of valid pixels, bool (h, w).
TileProbabilities = tuple[np.ndarray, np.ndarray]


class FittedStackClassifier(Protocol):
    """A classifier fitted to samples."""

    def at_samples(self, numbers: np.ndarray) -> np.ndarray:
        """Probabilities of the samples with these numbers, float32 (n, classes)."""

    def tile(self, window: Window) -> TileProbabilities:
        """Probabilities in a window of the grid."""


class StackClassifier(Protocol):
    """A classifier that can be fitted."""

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        """Fits to the samples with these numbers."""


@dataclass(frozen=True)
class StackFeatures:
    """Features of the samples and of tiles.

    Attributes:
        samples: float32 (n, width).
        tile: returns the features (pixels, width) and valid pixels (h, w) of a window.
    """

    samples: np.ndarray
    tile: Callable[[Window], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class BaselineClassifier:
    """A baseline on features of single pixels. The context may cancel."""

    method: Classifier
    features: StackFeatures
    samples: Samples
    context: Context
    texts: Optional[np.ndarray] = None

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        inputs, labels = self.features.samples[numbers], self.samples.labels[numbers]
        count = len(self.samples.names)
        fitted = baselines.fit(self.method, inputs, labels, count, texts=self.texts, seed=seed, context=self.context)
        return _FittedBaseline(fitted, self.features, count, self.context)


@dataclass(frozen=True)
class _FittedBaseline:
    fitted: baselines.PixelClassifier
    features: StackFeatures
    classes: int
    context: Context

    def at_samples(self, numbers: np.ndarray) -> np.ndarray:
        return self.fitted.probabilities(self.features.samples[numbers], self.context)

    def tile(self, window: Window) -> TileProbabilities:
        features, valid = self.features.tile(window)
        inside = valid.ravel()
        probabilities = np.zeros((inside.size, self.classes), np.float32)
        if inside.any():
            probabilities[inside] = self.fitted.probabilities(features[inside], self.context)
        return probabilities.T.reshape(-1, *valid.shape), valid


def spectral_features(stack: Stack, samples: Samples, with_means: bool, context: Context) -> StackFeatures:
    """The bands of all rasters, and with ``with_means`` their local means."""
    margin = baselines.LOCAL_MEAN_SIZE // 2 if with_means else 0

    def tile(window: Window) -> tuple[np.ndarray, np.ndarray]:
        wide = stack.with_margin(window, margin)
        values, valid = stack.read(wide)
        down, across = _slices_in(window, wide)
        parts = [baselines.flatten_bands([part[:, down, across] for part in values])]
        if with_means:
            means = baselines.local_means(values, valid)
            parts.append(baselines.flatten_bands([part[:, down, across] for part in means]))
        return np.concatenate(parts, axis=1), valid[down, across]

    return StackFeatures(_sample_features(stack, samples, tile, context), tile)


def _sample_features(
    stack: Stack, samples: Samples, tile: Callable[[Window], tuple[np.ndarray, np.ndarray]], context: Context
) -> np.ndarray:
    """Features of the samples, taken from tiles, (n, width)."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for window, numbers in stack.windows_at(samples.rows, samples.columns):
        context.raise_if_cancelled()
        values, _ = tile(window)
        pixels = (samples.rows[numbers] - window.y) * window.width + samples.columns[numbers] - window.x
        found.append((numbers, values[pixels]))
    order = np.concatenate([numbers for numbers, _ in found])
    return np.concatenate([values for _, values in found])[np.argsort(order)]


def _slices_in(window: Window, wide: Window) -> tuple[slice, slice]:
    """Rows and columns of a window within a wider one."""
    top, left = window.y - wide.y, window.x - wide.x
    return slice(top, top + window.height), slice(left, left + window.width)


class ClipFeatureExtractor:
    """CLIP's features at the pixels of a stack, from the picture of one of its rasters in that raster's own pixels.

    Args:
        stack: the rasters.
        options: bands and nodata of the picture.
        path: the raster.
        model: CLIP.
        threads: CPU threads, 0 for all.
        folder: for arrays that are too large for the memory.
    """

    def __init__(
        self, stack: Stack, options: RenderOptions, path: str, model: ClipEncoder, threads: int, folder: Path
    ) -> None:
        self._stack, self._model, self._folder = stack, model, folder
        self._scene = Renderer(path, options)
        self._request = SegmentRequest(raster=path, classes="", output="", threads=threads)
        self._axes = ClassVectors.identity(model.width)
        self._to_scene = _PixelTransform(stack.georeferenced_grid, self._scene.grid)
        self._maps: Optional[SimilarityMaps] = None

    def extract(self, samples: Optional[Samples], context: Context) -> None:
        """Computes the features around the samples, or everywhere."""
        grid, stack_grid = self._scene.grid, self._stack.grid
        rows, columns = self._to_scene.pixels(
            np.array([0, 0, stack_grid.height, stack_grid.height]) - 0.5,
            np.array([0, stack_grid.width, 0, stack_grid.width]) - 0.5,
        )
        part = _bounding_window(rows, columns, grid)
        squares = np.ones((grid.height // _SQUARE + 1, grid.width // _SQUARE + 1), bool)
        if samples is not None:
            rows, columns = self._to_scene.pixels(samples.rows, samples.columns)
            squares[:] = False
            squares[_square(rows, grid.height), _square(columns, grid.width)] = True

        def wanted(window: Window) -> bool:
            down = slice(window.y // _SQUARE, (window.y + window.height - 1) // _SQUARE + 1)
            across = slice(window.x // _SQUARE, (window.x + window.width - 1) // _SQUARE + 1)
            return bool(squares[down, across].any())

        folder = self._folder / ("all" if samples is None else "some")
        folder.mkdir()
        self._maps = SimilarityMaps.of(
            self._request, self._model, self._axes, self._scene, part, folder, context, wanted
        )

    def features(self, samples: Samples) -> StackFeatures:
        """The extracted features of the samples and of tiles."""
        return StackFeatures(self._at_pixels(samples.rows, samples.columns), self._tile)

    def _tile(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        _, valid = self._stack.read(window)
        rows, columns = np.mgrid[window.y : window.y + window.height, window.x : window.x + window.width].reshape(2, -1)
        return self._at_pixels(rows, columns), valid

    def _at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        assert self._maps is not None
        return np.nan_to_num(self._maps.at_pixels(*self._to_scene.pixels(rows, columns)))


def _bounding_window(rows: np.ndarray, columns: np.ndarray, grid: Grid) -> Window:
    """The window of a grid that holds pixels, as far as they are inside it."""
    top, left = (int(np.clip(axis.min(), 0, size - 1)) for axis, size in ((rows, grid.height), (columns, grid.width)))
    bottom, right = min(int(rows.max()) + 2, grid.height), min(int(columns.max()) + 2, grid.width)
    return Window(left, top, max(right - left, 1), max(bottom - top, 1))


def _square(positions: np.ndarray, size: int) -> np.ndarray:
    return np.clip(positions, 0, size - 1).astype(int) // _SQUARE


class _PixelTransform:
    """From pixels of one grid to those of another, both with a geotransform; whole numbers are pixel centres."""

    def __init__(self, source: Grid, target: Grid) -> None:
        assert source.geotransform
        self._geotransform, self._inverse = source.geotransform, gdal.InvGeoTransform(target.geotransform)
        self._crs: Optional[osr.CoordinateTransformation] = None
        if source.crs and target.crs and not source.shares_crs(target):
            self._crs = osr.CoordinateTransformation(spatial_reference(source.crs), spatial_reference(target.crs))

    def pixels(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns in the target grid, with fractions."""
        x, y = _apply_geotransform(self._geotransform, columns + 0.5, rows + 0.5)
        if self._crs is not None:
            points = np.array(self._crs.TransformPoints(np.stack([x, y], axis=1).tolist()))
            x, y = points[:, 0], points[:, 1]
        columns, rows = _apply_geotransform(self._inverse, x, y)
        return rows - 0.5, columns - 0.5


def _apply_geotransform(g: Sequence[float], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return g[0] + x * g[1] + y * g[2], g[3] + x * g[4] + y * g[5]


def overview_picture(stack: Stack, scene: Renderer, step: int) -> np.ndarray:
    """A raster's picture at every ``step``-th row and column of a stack, uint8 (h, w, 3)."""
    down, across = (np.arange(0, size, step) for size in (stack.grid.height, stack.grid.width))
    pixels = (axis.ravel() for axis in np.meshgrid(down, across, indexing="ij"))
    rows, columns = _PixelTransform(stack.georeferenced_grid, scene.grid).pixels(*pixels)
    part = _bounding_window(rows, columns, scene.grid)
    reduction = max(1.0, part.height / len(down), part.width / len(across))
    height, width = max(round(part.height / reduction), 1), max(round(part.width / reduction), 1)
    reduced, _ = scene.picture(part, width, height)
    rows, columns = (
        np.clip((axis + 0.5 - first) / reduction, 0, size - 1).astype(int)
        for axis, first, size in ((rows, part.y, height), (columns, part.x, width))
    )
    return reduced[:, rows, columns].T.reshape(len(down), len(across), 3)


class DiffClipClassifier:
    """DiffCLIP over a stack.

    Args:
        stack: the rasters.
        samples: all samples.
        encoder: pre-trained on the scene.
        texts: vectors of the prompts of the classes, (classes, prompts, width).
        context: receives progress; may cancel.
    """

    def __init__(
        self, stack: Stack, samples: Samples, encoder: scene_encoder.SceneEncoder, texts: np.ndarray, context: Context
    ) -> None:
        self.encoder = encoder
        self._stack, self._labels, self._options = stack, samples.labels, prompt_heads.Options()
        self.classes, self.context = len(samples.names), context.cancellation_only
        self._texts = torch.from_numpy(texts).to(encoder.device)
        windows = stack.sample_windows(samples.rows, samples.columns, encoder.margin)
        moments, parts = prompt_heads.FeatureMoments(), []
        for number, (window, inside) in enumerate(windows):
            context.progress(100 * number / len(windows), "Reading the samples")
            wide, pixels = self.pixel_features(window)
            valid, (down, across) = torch.zeros_like(pixels.valid), _slices_in(window, wide)
            valid[down, across] = pixels.valid[down, across]
            moments.add(pixels.features, valid)
            rows, columns = samples.rows[inside] - wide.y, samples.columns[inside] - wide.x
            parts.append(prompt_heads.SampleFeatures.at_pixels(pixels, rows, columns, self._options))
        self.samples = prompt_heads.SampleFeatures.concatenated(parts, [inside for _, inside in windows])
        self._standard = moments.mean_and_scale(encoder.device)

    def pixel_features(self, window: Window) -> tuple[Window, prompt_heads.PixelFeatures]:
        """A window enlarged by the margin of the encoder, and the features of its pixels."""
        wide = self._stack.with_margin(window, self.encoder.margin)
        return wide, prompt_heads.pixel_features(self.encoder, *self._stack.read(wide), self._options, self.context)

    def fit(self, numbers: np.ndarray, seed: int) -> FittedStackClassifier:
        heads = prompt_heads.fit_heads(
            self.samples.subset(numbers),
            self._labels[numbers],
            self._texts,
            self._standard,
            seed=seed,
            context=self.context,
            options=self._options,
        )
        return _FittedDiffClip(self, heads)


@dataclass(frozen=True)
class _FittedDiffClip:
    classifier: DiffClipClassifier
    heads: prompt_heads.HeadEnsemble

    def at_samples(self, numbers: np.ndarray) -> np.ndarray:
        return self.heads.at_samples(self.classifier.samples.subset(numbers), self.classifier.context)

    def tile(self, window: Window) -> TileProbabilities:
        wide, pixels = self.classifier.pixel_features(window)
        down, across = _slices_in(window, wide)
        valid = pixels.valid[down, across].cpu().numpy()
        if not valid.any():
            return np.zeros((self.classifier.classes, *valid.shape), np.float32), valid
        return self.heads.map(pixels, self.classifier.context)[:, down, across], valid

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
from clippan.fewshot.stack import READ_SIZE, Stack
from clippan.jobs.classify import Classifier
from clippan.jobs.segment import SegmentRequest
from clippan.labels.pixels import proximity_test, squares_with_pixels
from clippan.labels.samples import Samples
from clippan.raster.grid import Grid
from clippan.raster.rendering import Renderer, RenderOptions, spatial_reference
from clippan.raster.tiles import Window

# Probabilities, float32 (classes, h, w), and the mask of valid pixels, bool (h, w).
TileProbabilities = tuple[np.ndarray, np.ndarray]


class FittedStackClassifier(Protocol):
    """A classifier fitted to samples."""

    def predict_samples(self, indices: np.ndarray) -> np.ndarray:
        """Probabilities of the samples with these indices, float32 (n, classes)."""

    def predict_tile(self, window: Window) -> TileProbabilities:
        """Probabilities in a window of the grid."""


class StackClassifier(Protocol):
    """A classifier that can be fitted."""

    def fit(self, indices: np.ndarray, seed: int) -> FittedStackClassifier:
        """Fits to the samples with these indices."""


@dataclass(frozen=True)
class StackFeatures:
    """Features of the samples, float32 (n, width), and a function that returns those of a window (pixels, width) and
    its valid pixels (h, w)."""

    sample_features: np.ndarray
    features_in: Callable[[Window], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class BaselineClassifier:
    """A baseline on features of single pixels. The context may cancel."""

    method: Classifier
    features: StackFeatures
    samples: Samples
    context: Context
    text_features: Optional[np.ndarray] = None

    def fit(self, indices: np.ndarray, seed: int) -> FittedStackClassifier:
        inputs, labels = self.features.sample_features[indices], self.samples.labels[indices]
        count = len(self.samples.names)
        fitted = baselines.fit(
            self.method, inputs, labels, count, text_features=self.text_features, seed=seed, context=self.context
        )
        return _FittedBaseline(self, fitted)


@dataclass(frozen=True)
class _FittedBaseline:
    classifier: BaselineClassifier
    fitted: baselines.PixelClassifier

    def predict_samples(self, indices: np.ndarray) -> np.ndarray:
        return self.fitted.probabilities(self.classifier.features.sample_features[indices], self.classifier.context)

    def predict_tile(self, window: Window) -> TileProbabilities:
        features, valid = self.classifier.features.features_in(window)
        inside = valid.ravel()
        probabilities = np.zeros((inside.size, len(self.classifier.samples.names)), np.float32)
        if inside.any():
            probabilities[inside] = self.fitted.probabilities(features[inside], self.classifier.context)
        return probabilities.T.reshape(-1, *valid.shape), valid


def spectral_features(stack: Stack, samples: Samples, with_means: bool, context: Context) -> StackFeatures:
    """The bands of all rasters, and with ``with_means`` their local means."""
    margin = baselines.LOCAL_MEAN_SIZE // 2 if with_means else 0

    def features_in(window: Window) -> tuple[np.ndarray, np.ndarray]:
        padded = stack.with_margin(window, margin)
        values, valid = stack.read(padded)
        down, across = _slices_in(window, padded)
        parts = [baselines.flatten_bands([part[:, down, across] for part in values])]
        if with_means:
            means = baselines.local_means(values, valid)
            parts.append(baselines.flatten_bands([part[:, down, across] for part in means]))
        return np.concatenate(parts, axis=1), valid[down, across]

    return StackFeatures(_sample_features(stack, samples, features_in, context), features_in)


def _sample_features(
    stack: Stack, samples: Samples, features_in: Callable[[Window], tuple[np.ndarray, np.ndarray]], context: Context
) -> np.ndarray:
    """Features of the samples, taken from windows, (n, width)."""
    parts, order = [], []
    for window, indices in squares_with_pixels(samples.rows, samples.columns, stack.grid, READ_SIZE):
        context.raise_if_cancelled()
        features, _ = features_in(window)
        pixels = (samples.rows[indices] - window.y) * window.width + samples.columns[indices] - window.x
        parts.append(features[pixels])
        order.append(indices)
    return np.concatenate(parts)[np.argsort(np.concatenate(order))]


def _slices_in(window: Window, padded: Window) -> tuple[slice, slice]:
    """Rows and columns of a window within a padded one."""
    top, left = window.y - padded.y, window.x - padded.x
    return slice(top, top + window.height), slice(left, left + window.width)


class ClipFeatureExtractor:
    """CLIP's features at the pixels of a stack, from the picture of one of its rasters in that raster's own pixels. The
    folder is for arrays that are too large for the memory."""

    def __init__(
        self, stack: Stack, options: RenderOptions, path: str, model: ClipEncoder, threads: int, folder: Path
    ) -> None:
        self._stack, self._model, self._folder = stack, model, folder
        self._scene = Renderer(path, options)
        self._request = SegmentRequest(raster=path, classes="", output="", threads=threads)
        self._to_scene = _PixelTransform(stack.georeferenced_grid, self._scene.grid)
        self._maps: Optional[SimilarityMaps] = None
        self._everywhere = False

    def features(self, samples: Samples, everywhere: bool, context: Context) -> StackFeatures:
        """The features of the samples, and ``everywhere`` those of tiles too; computed only once."""
        if self._maps is None or everywhere > self._everywhere:
            self._everywhere = everywhere
            self._maps = self._similarity_maps(samples, context)
        return StackFeatures(self._at_pixels(samples.rows, samples.columns), self._features_in)

    def _similarity_maps(self, samples: Samples, context: Context) -> SimilarityMaps:
        grid, (height, width) = self._scene.grid, (self._stack.grid.height, self._stack.grid.width)
        extent = _bounding_window(
            *self._to_scene.pixels(np.array([0, 0, height, height]) - 0.5, np.array([0, width, 0, width]) - 0.5), grid
        )
        rows, columns = self._to_scene.pixels(samples.rows, samples.columns)
        rows, columns = np.clip(rows, 0, grid.height - 1), np.clip(columns, 0, grid.width - 1)
        near_samples = proximity_test(rows.astype(int), columns.astype(int), grid)
        folder = self._folder / ("all" if self._everywhere else "some")
        folder.mkdir()
        model, axes = self._model, ClassVectors.embedding_axes(self._model.embedding_dim)

        def wanted(window: Window) -> bool:
            return self._everywhere or near_samples(window)

        return SimilarityMaps.compute(self._request, model, axes, self._scene, extent, folder, context, wanted)

    def _features_in(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
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
            x, y, _ = np.array(self._crs.TransformPoints(np.stack([x, y], axis=1).tolist())).T
        columns, rows = _apply_geotransform(self._inverse, x, y)
        return rows - 0.5, columns - 0.5


def _apply_geotransform(g: Sequence[float], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return g[0] + x * g[1] + y * g[2], g[3] + x * g[4] + y * g[5]


def overview_picture(stack: Stack, scene: Renderer, step: int) -> np.ndarray:
    """A raster's picture at every ``step``-th row and column of a stack, uint8 (h, w, 3)."""
    down, across = (np.arange(0, size, step) for size in (stack.grid.height, stack.grid.width))
    pixels = (axis.ravel() for axis in np.meshgrid(down, across, indexing="ij"))
    rows, columns = _PixelTransform(stack.georeferenced_grid, scene.grid).pixels(*pixels)
    window = _bounding_window(rows, columns, scene.grid)
    reduction = max(1.0, window.height / len(down), window.width / len(across))
    height, width = max(round(window.height / reduction), 1), max(round(window.width / reduction), 1)
    reduced, _ = scene.picture(window, width, height)
    rows, columns = (
        np.clip((axis + 0.5 - first) / reduction, 0, size - 1).astype(int)
        for axis, first, size in ((rows, window.y, height), (columns, window.x, width))
    )
    return reduced[:, rows, columns].T.reshape(len(down), len(across), 3)


class DiffClipClassifier:
    """DiffCLIP over a stack, by all samples, an encoder pre-trained on the scene, and vectors of the prompts of the
    classes (classes, prompts, width)."""

    def __init__(
        self,
        stack: Stack,
        samples: Samples,
        encoder: scene_encoder.SceneEncoder,
        text_features: np.ndarray,
        context: Context,
    ) -> None:
        self.encoder, self.class_count, self.context = encoder, len(samples.names), context.cancellation_only
        self._stack, self._labels, self._options = stack, samples.labels, prompt_heads.Options()
        self._text_features = torch.from_numpy(text_features).to(encoder.device)
        windows = stack.cheapest_windows_at(samples.rows, samples.columns, encoder.margin)
        moments, parts = prompt_heads.FeatureMoments(), []
        for number, (window, inside) in enumerate(windows):
            context.progress(100 * number / len(windows), "Reading the samples")
            padded, pixels = self.pixel_features(window)
            valid, (down, across) = torch.zeros_like(pixels.valid), _slices_in(window, padded)
            valid[down, across] = pixels.valid[down, across]
            moments.add(pixels.features, valid)
            rows, columns = samples.rows[inside] - padded.y, samples.columns[inside] - padded.x
            parts.append(prompt_heads.SampleFeatures.at_pixels(pixels, rows, columns, self._options))
        self.sample_features = prompt_heads.SampleFeatures.concatenated(parts, [inside for _, inside in windows])
        self._standardisation = moments.mean_and_inverse_std(encoder.device)

    def pixel_features(self, window: Window) -> tuple[Window, prompt_heads.PixelFeatures]:
        """A window padded by the margin of the encoder, and the features of its pixels."""
        padded = self._stack.with_margin(window, self.encoder.margin)
        return padded, prompt_heads.pixel_features(self.encoder, *self._stack.read(padded), self._options, self.context)

    def fit(self, indices: np.ndarray, seed: int) -> FittedStackClassifier:
        samples, labels, text_features, options = (
            self.sample_features.subset(indices),
            self._labels[indices],
            self._text_features,
            self._options,
        )
        heads = prompt_heads.fit_heads(
            samples, labels, text_features, self._standardisation, seed=seed, context=self.context, options=options
        )
        return _FittedDiffClip(self, heads)


@dataclass(frozen=True)
class _FittedDiffClip:
    classifier: DiffClipClassifier
    heads: prompt_heads.HeadEnsemble

    def predict_samples(self, indices: np.ndarray) -> np.ndarray:
        return self.heads.predict_samples(self.classifier.sample_features.subset(indices), self.classifier.context)

    def predict_tile(self, window: Window) -> TileProbabilities:
        padded, pixels = self.classifier.pixel_features(window)
        down, across = _slices_in(window, padded)
        valid = pixels.valid[down, across].cpu().numpy()
        if not valid.any():
            return np.zeros((self.classifier.class_count, *valid.shape), np.float32), valid
        return self.heads.predict_pixels(pixels, self.classifier.context)[:, down, across], valid

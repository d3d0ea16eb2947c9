"""Fits a prompt table to a few labelled places.

The most cautious fit changes the logit scale and an offset for each class (bias-corrected temperature scaling,
Alexandari et al. 2020). Bolder fits also move the text vectors of the classes towards the labelled image vectors
(logistic regression around the text vectors, as in "LP++", Huang et al. 2024). Cross-validation selects the fit.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch.nn import functional

from clippan.catalogue.prompts import ClassPrompt, PromptTable, save_prompts
from clippan.clip.class_vectors import ClassVectors, class_vectors, prompt_texts
from clippan.clip.similarity import SimilarityMaps, load_prompts_and_encoder
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.jobs.calibrate import Accuracy, CalibrateRequest, CalibrateResult
from clippan.jobs.rendering import band_choice_sentences, rendering_hints
from clippan.labels.legend import colours
from clippan.labels.pixels import proximity_test
from clippan.labels.prompt_samples import read_prompt_samples
from clippan.labels.samples import Samples
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.report import page
from clippan.report.pictures import class_overlay_png
from clippan.segmentation.tile_classifier import LOGIT_SCALE

_FOLDS = 5
_FREQUENCY_POWER = 0.5  # labels are weighted by the frequency of their class to the power of minus this
# Penalties on changes of scale and offsets, and on changes of the text vectors (None: fixed), the most cautious first.
_CANDIDATES: tuple[tuple[float, Optional[float]], ...] = (
    *((penalty, None) for penalty in (10.0, 0.1, 0.01, 0.001)),
    *((0.001, penalty) for penalty in (10.0, 1.0, 0.1)),
)
_MAX_SCALE_EXPONENT = 2.5  # the scale differs from the default by at most a factor of e to this power
_TOLERANCE = 0.02  # of accuracy plus mean IoU, within which the more cautious fit is selected
_MAX_LABELS = 40_000  # that are fitted; neighbours are alike
_MIN_GROUPS = 3  # polygons or points of a class below which the fit is uncertain
_PICTURE = 700  # pixels along the longer edge of a picture in the report
_CHUNK = 16_384  # pixels whose vectors are in memory at a time


@dataclass(frozen=True)
class _Fit:
    """A linear classifier of image vectors.

    Attributes:
        vectors, class_of: text vectors (m, width), and the class of each.
        scale, offsets: of the logits.
        vectors_fitted: whether the text vectors were fitted; there is one for each class then.
    """

    vectors: np.ndarray
    class_of: np.ndarray
    scale: float
    offsets: np.ndarray
    vectors_fitted: bool = False

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of image vectors (n, width)."""
        starts = np.flatnonzero(np.diff(self.class_of, prepend=-1))
        return np.maximum.reduceat(features @ self.vectors.T, starts, axis=1) * self.scale + self.offsets


@dataclass(frozen=True)
class _LabelledRaster:
    """A raster, its samples and the model's image vectors."""

    scene: Renderer
    samples: Samples
    maps: SimilarityMaps

    def report_overlays(self, before: _Fit, after: _Fit, legend: np.ndarray) -> dict[str, Any]:
        """The raster's name, and overlays of the maps before and after and of the samples."""
        samples, window = self.samples, self.samples.window
        zoom = min(1.0, _PICTURE / max(window.width, window.height))
        width, height = max(round(window.width * zoom), 1), max(round(window.height * zoom), 1)
        picture, _ = self.scene.picture(window, width, height)
        rows = window.y + ((np.arange(height) + 0.5) * window.height / height).astype(int)
        columns = window.x + ((np.arange(width) + 0.5) * window.width / width).astype(int)
        rows, columns = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
        maps = np.zeros((2, height * width), np.int64)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            features = self.maps.at_pixels(rows[chunk], columns[chunk])
            seen = np.isfinite(features).all(axis=1)
            for fit, classes in zip((before, after), maps):
                classes[chunk] = np.where(seen, np.nan_to_num(fit.logits(features)).argmax(axis=1) + 1, 0)
        labelled = np.zeros((height, width), np.uint8)
        down = (samples.rows - window.y) * height // window.height
        across = (samples.columns - window.x) * width // window.width
        labelled[down, across] = samples.labels + 1
        overlays = zip(("before", "after", "labels"), (*maps.reshape(2, height, width), labelled))
        image = np.ascontiguousarray(picture.transpose(1, 2, 0))
        pictures = {name: class_overlay_png(image, values, legend) for name, values in overlays}
        return {"name": Path(self.scene.path).name, **pictures}


def run(request: CalibrateRequest, context: Context) -> CalibrateResult:
    started = time.monotonic()
    table, model = load_prompts_and_encoder(request, context)
    classes = class_vectors(model, table, False)
    offsets = np.array([prompt.offset for prompt in table.classes])
    initial = _Fit(classes.vectors, classes.class_of, table.logit_scale or LOGIT_SCALE, offsets)
    options = RenderOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
    count = len(request.rasters)
    with Outputs() as outputs:
        rasters = []
        for number, (path, samples_path) in enumerate(zip(request.rasters, request.samples)):
            raster_context = context.subrange(5 + 75 * number / count, 5 + 75 * (number + 1) / count)
            folder = outputs.temporary_folder(request.output) / str(number)
            folder.mkdir()
            scene = Renderer(path, options)
            samples = read_prompt_samples(
                samples_path, request.layer, request.field, table, scene, raster_context.subrange(0, 10)
            )
            near = proximity_test(samples.rows, samples.columns, scene.grid)
            axes = ClassVectors.embedding_axes(model.embedding_dim)
            maps = SimilarityMaps.compute(
                request, model, axes, scene, samples.window, folder, raster_context.subrange(10, 100), near
            )
            rasters.append(_LabelledRaster(scene, samples, maps))
        renderings = tuple(raster.scene.rendering_for(model.channels) for raster in rasters)
        for sentence in band_choice_sentences(renderings):
            context.log(sentence)
        labelled = _LabelledVectors.of(rasters, table)
        before = _accuracy(initial.logits(labelled.features), labelled.labels)
        fit, after = _select_fit(labelled, initial, context.subrange(80, 95))
        calibrated = _calibrated_table(table, fit, model.spec.id, labelled)
        hints = [*model.text_warnings(prompt_texts(table)), *(hint for each in rasters for hint in each.samples.hints)]
        hints += _hints(table, labelled, fit, before, after)
        result = CalibrateResult(
            request.output,
            request.report,
            table.names,
            tuple(map(int, labelled.counts)),
            before,
            after,
            float(calibrated.logit_scale or 0),
            tuple(prompt.offset for prompt in calibrated.classes),
            tuple([*hints, *rendering_hints(renderings)]),
            round(time.monotonic() - started, 3),
            renderings,
        )
        if request.report:
            context.progress(95, "Writing the report")
            palette = colours(calibrated)
            panels = [each.report_overlays(initial, fit, np.array(palette, np.float32)) for each in rasters]
            page.write(
                request.report, "calibration", outputs, request=request, result=result, colours=palette, panels=panels
            )
        save_prompts(calibrated, request.output, outputs)
        del rasters, maps  # memory-mapped files cannot be removed on Windows
    return result


@dataclass(frozen=True)
class _LabelledVectors:
    """Image vectors of labelled pixels.

    Attributes:
        features: image vectors (n, width).
        labels: classes from 0, (n,).
        groups: the polygon or block of each, (n,).
        folds: for cross-validation, (n,).
        counts: number of samples of each class, before thinning to n.
        lost_names: classes all of whose samples lie outside the rasters or on nodata.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    counts: np.ndarray
    lost_names: tuple[str, ...]

    @classmethod
    def of(cls, rasters: list[_LabelledRaster], table: PromptTable) -> _LabelledVectors:
        """Collects the samples of all rasters."""
        parts = []
        group_count = 0
        for number, raster in enumerate(rasters):
            samples = raster.samples
            kept = np.random.default_rng(number).permutation(len(samples.rows))[: _MAX_LABELS // len(rasters)]
            used = samples.subset(kept)
            features = raster.maps.at_pixels(used.rows, used.columns)
            valid = np.isfinite(features).all(axis=1)
            used = used.subset(valid)
            parts.append((features[valid], used.labels, used.groups + group_count, np.full(len(used.labels), number)))
            group_count += int(samples.groups.max()) + 1
        features, labels, groups, raster_numbers = (np.concatenate(arrays) for arrays in zip(*parts))
        counts = np.sum([raster.samples.pixels_per_class for raster in rasters], axis=0)
        lost = {name for raster in rasters for name in raster.samples.lost_names}
        lost_names = tuple(name for name, count in zip(table.names, counts) if name in lost and not count)
        if len(np.unique(labels)) < 2:
            if lost_names:
                raise ClippanError(
                    "The samples hold fewer than two of the classes, as all labels of {classes} lie outside the "
                    "rasters or on nodata; label places of at least two classes.",
                    classes=", ".join(lost_names),
                )
            raise ClippanError("The samples hold fewer than two of the classes; label places of at least two classes.")
        folds = _fold_of_each(labels, groups if len(rasters) == 1 else raster_numbers)
        return cls(features, labels, groups, folds, counts, lost_names)


def _fold_of_each(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Labels of a group (a raster; of a single raster, a polygon or block) share a fold, as neighbours are alike."""
    _, first, group_numbers = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(labels[first], kind="stable")  # by class, so that each is in as many folds as possible
    folds = np.empty(len(order), int)
    folds[order] = np.arange(len(order)) % _FOLDS
    return folds[group_numbers]


def _select_fit(labelled: _LabelledVectors, initial: _Fit, context: Context) -> tuple[_Fit, Accuracy]:
    """The most cautious fit whose cross-validated accuracy is about that of the best, and this accuracy."""
    tried = []
    for number, (penalty, vector_penalty) in enumerate(_CANDIDATES):
        logits = np.empty((len(labelled.labels), len(initial.offsets)))
        for fold in np.unique(labelled.folds):
            context.progress(100 * number / len(_CANDIDATES), "Fitting")
            inside = labelled.folds == fold
            rest = ~inside if (~inside).any() else inside  # a single polygon cannot be left out
            fit = _fit(labelled.features[rest], labelled.labels[rest], initial, penalty, vector_penalty)
            logits[inside] = fit.logits(labelled.features[inside])
        tried.append((_accuracy(logits, labelled.labels), penalty, vector_penalty))
    sums = [accuracy.accuracy + accuracy.mean_iou for accuracy, _, _ in tried]
    after, penalty, vector_penalty = next(fit for fit, total in zip(tried, sums) if total >= max(sums) - _TOLERANCE)
    return _fit(labelled.features, labelled.labels, initial, penalty, vector_penalty), after


def _fit(
    features: np.ndarray, labels: np.ndarray, initial: _Fit, penalty: float, vector_penalty: Optional[float]
) -> _Fit:
    """Maximises the likelihood of labels, with a penalty on offsets and changes of the scale, and one on changes of the
    text vectors; None keeps them."""
    classes = len(initial.offsets)
    counts = np.bincount(labels, minlength=classes)
    weight = np.where(counts > 0, np.maximum(counts, 1) ** -_FREQUENCY_POWER, 0)[labels]
    weights = torch.from_numpy((weight / weight.sum()).astype(np.float32))
    targets = torch.from_numpy(labels).long()
    exponent, offsets = torch.zeros((), requires_grad=True), torch.zeros(classes, requires_grad=True)
    learned = [exponent, offsets]
    if vector_penalty is None:
        fixed = dataclasses.replace(initial, scale=1.0, offsets=np.zeros(classes)).logits(features)
        cosines = torch.from_numpy(fixed.astype(np.float32))
    else:
        inputs = torch.from_numpy(features)
        means = [initial.vectors[initial.class_of == label].mean(axis=0) for label in range(classes)]
        start = torch.from_numpy(np.stack(means))
        change = torch.zeros(start.shape, requires_grad=True)
        learned.append(change)
    optimiser = torch.optim.LBFGS(learned, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        similarity = cosines if vector_penalty is None else inputs @ (start + change).T
        logits = similarity * _scale(exponent) + offsets
        entropy = (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
        total = entropy + penalty * (offsets.square().sum() + exponent.square())
        if vector_penalty is not None:
            total = total + vector_penalty * change.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    scale = float(_scale(exponent.detach()))
    # Softmax depends on differences only; centred offsets neither favour nor disfavour a class without labels.
    added = (offsets.detach() - offsets.detach().mean()).numpy().astype(float)
    if vector_penalty is None:
        return _Fit(initial.vectors, initial.class_of, scale, added)
    return _Fit((start + change.detach()).numpy(), np.arange(classes), scale, added, True)


def _scale(exponent: torch.Tensor) -> torch.Tensor:
    """The logit scale; bounded, since for linearly separable labels the likelihood grows with it."""
    return LOGIT_SCALE * (_MAX_SCALE_EXPONENT * exponent.tanh()).exp()


def _calibrated_table(table: PromptTable, fit: _Fit, model: str, labelled: _LabelledVectors) -> PromptTable:
    """The table with the fitted vectors, offsets and scale."""
    classes: list[ClassPrompt] = []
    for number, prompt in enumerate(table.classes):
        vector = tuple(round(float(value), 5) for value in fit.vectors[number]) if fit.vectors_fitted else prompt.vector
        classes.append(dataclasses.replace(prompt, offset=round(float(fit.offsets[number]), 4), vector=vector))
    about = Message("Calibrated on {count} labelled pixels.", count=int(labelled.counts.sum()))
    return PromptTable(tuple(classes), round(fit.scale, 4), model, about)


def _accuracy(logits: np.ndarray, truth: np.ndarray) -> Accuracy:
    labels, predicted = np.arange(logits.shape[1]), logits.argmax(axis=1)
    iou = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    each = tuple(float(value) if label in truth else None for label, value in zip(labels, iou))
    mean = float(np.mean([value for value in each if value is not None]))
    counts = tuple(tuple(line) for line in confusion_matrix(truth, predicted, labels=labels).tolist())
    return Accuracy(float(accuracy_score(truth, predicted)), mean, each, counts)


def _hints(table: PromptTable, labelled: _LabelledVectors, fit: _Fit, before: Accuracy, after: Accuracy) -> list[str]:
    hints: list[str] = []
    groups = [len(np.unique(labelled.groups[labelled.labels == label])) for label in range(len(table.classes))]
    lost = labelled.lost_names
    absent = [name for name, count in zip(table.names, groups) if not count and name not in lost]
    few = [name for name, count in zip(table.names, groups) if 0 < count < _MIN_GROUPS]
    if lost:
        hints.append(
            Message(
                "All labels of {classes} lie outside the rasters or on nodata; label other places to calibrate these "
                "classes.",
                classes=", ".join(lost),
            )
        )
    if absent:
        hints.append(
            Message(
                "There are no labels of {classes}; label some places to calibrate these classes.",
                classes=", ".join(absent),
            )
        )
    if few:
        hints.append(
            Message(
                "Labels of {classes} lie in fewer than {count} places; label more places for a reliable fit.",
                classes=", ".join(few),
                count=_MIN_GROUPS,
            )
        )
    if fit.vectors_fitted:
        hints.append(
            "The meaning of the words was adjusted to the labelled places; the table can be used only with this model."
        )
    if after.mean_iou < before.mean_iou:
        hints.append(
            "Calibration did not improve the map in cross-validation; label more places, or keep the previous table."
        )
    return hints

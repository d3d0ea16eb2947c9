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
from clippan.labels.labelled_pixels import LabelledPixels, read_labelled_pixels
from clippan.labels.legend import colours
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.report import page
from clippan.report.pictures import class_overlay_png
from clippan.segmentation.mapping import LOGIT_SCALE

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
    """A linear classifier of image vectors: text vectors (m, width) with the class of each, logit scale and offsets.

    ``moved`` says whether the text vectors were fitted; there is one for each class then.
    """

    vectors: np.ndarray
    class_of: np.ndarray
    scale: float
    offsets: np.ndarray
    moved: bool = False

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of image vectors (n, width)."""
        starts = np.flatnonzero(np.diff(self.class_of, prepend=-1))
        return np.maximum.reduceat(features @ self.vectors.T, starts, axis=1) * self.scale + self.offsets


@dataclass(frozen=True)
class _LabelledRaster:
    """A raster, its labels and the model's image vectors."""

    scene: Renderer
    labels: LabelledPixels
    maps: SimilarityMaps

    def panel(self, before: _Fit, after: _Fit, legend: np.ndarray) -> dict[str, Any]:
        """For the report: the raster's name, and overlays of the maps before and after and of the labels."""
        part, labels = self.labels.part, self.labels
        zoom = min(1.0, _PICTURE / max(part.width, part.height))
        width, height = max(round(part.width * zoom), 1), max(round(part.height * zoom), 1)
        picture, _ = self.scene.picture(part, width, height)
        rows = part.y + ((np.arange(height) + 0.5) * part.height / height).astype(int)
        columns = part.x + ((np.arange(width) + 0.5) * part.width / width).astype(int)
        grid = [values.ravel() for values in np.meshgrid(rows, columns, indexing="ij")]
        maps: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for start in range(0, len(grid[0]), _CHUNK):
            features = self.maps.at_pixels(grid[0][start : start + _CHUNK], grid[1][start : start + _CHUNK])
            seen = np.isfinite(features).all(axis=1)
            for fit, chunks in zip((before, after), maps):
                chunks.append(np.where(seen, np.nan_to_num(fit.logits(features)).argmax(axis=1) + 1, 0))
        map_before, map_after = (np.concatenate(chunks).reshape(height, width) for chunks in maps)
        labelled = np.zeros((height, width), np.uint8)
        down, across = (labels.rows - part.y) * height // part.height, (labels.columns - part.x) * width // part.width
        labelled[down, across] = labels.classes
        shown = {"before": map_before, "after": map_after, "labels": labelled}
        image = np.ascontiguousarray(picture.transpose(1, 2, 0))
        pictures = {name: class_overlay_png(image, values, legend) for name, values in shown.items()}
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
        for number, (path, samples) in enumerate(zip(request.rasters, request.samples)):
            mine = context.subrange(5 + 75 * number / count, 5 + 75 * (number + 1) / count)
            folder = outputs.temporary_folder(request.output) / str(number)
            folder.mkdir()
            scene = Renderer(path, options)
            labels = read_labelled_pixels(samples, request.layer, request.field, table, scene, mine.subrange(0, 10))
            maps = SimilarityMaps.of(
                request,
                model,
                ClassVectors.identity(model.width),
                scene,
                labels.part,
                folder,
                mine.subrange(10, 100),
                labels.near,
            )
            rasters.append(_LabelledRaster(scene, labels, maps))
        pictures = tuple(raster.scene.rendering_for(model.channels) for raster in rasters)
        for sentence in band_choice_sentences(pictures):
            context.log(sentence)
        known = _LabelledVectors.of(rasters, table)
        before = _accuracy(initial.logits(known.features), known.classes)
        fit, after = _select_fit(known, initial, context.subrange(80, 95))
        found = _calibrated_table(table, fit, model.spec.id, known)
        hints = [
            *model.text_warnings(prompt_texts(table)),
            *(hint for raster in rasters for hint in raster.labels.hints),
        ]
        hints += _hints(table, known, fit, before, after)
        result = CalibrateResult(
            request.output,
            request.report,
            table.names,
            tuple(int(number) for number in known.labelled),
            before,
            after,
            float(found.logit_scale or 0),
            tuple(prompt.offset for prompt in found.classes),
            tuple([*hints, *rendering_hints(pictures)]),
            round(time.monotonic() - started, 3),
            pictures,
        )
        if request.report:
            context.progress(95, "Writing the report")
            palette = colours(found)
            panels = [raster.panel(initial, fit, np.array(palette, np.float32)) for raster in rasters]
            page.write(
                request.report, "calibration", outputs, request=request, result=result, colours=palette, panels=panels
            )
        save_prompts(found, request.output, outputs)
        del rasters, maps  # memory-mapped files cannot be removed on Windows
    return result


@dataclass(frozen=True)
class _LabelledVectors:
    """Labelled pixels with the model's image vectors.

    Attributes:
        features: image vectors (n, width).
        classes: from 0, (n,).
        groups: the polygon or block of each, (n,).
        folds: for cross-validation, (n,).
        labelled: number of labels of each class, before thinning to n.
        outside: names of the classes all of whose labels lie outside the rasters or on nodata.
    """

    features: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    labelled: np.ndarray
    outside: tuple[str, ...]

    @classmethod
    def of(cls, rasters: list[_LabelledRaster], table: PromptTable) -> _LabelledVectors:
        """Collects the labels of all rasters.

        Raises:
            ClippanError: fewer than two classes are labelled.
        """
        features, known, groups, raster_of = [], [], [], []
        classes = len(table.classes)
        labelled = np.zeros(classes, int)
        for number, raster in enumerate(rasters):
            labels = raster.labels
            labelled += np.bincount(labels.classes - 1, minlength=classes)
            kept = np.random.default_rng(number).permutation(len(labels.rows))[: _MAX_LABELS // len(rasters)]
            values = raster.maps.at_pixels(labels.rows[kept], labels.columns[kept])
            valid = np.isfinite(values).all(axis=1)
            features.append(values[valid])
            known.append(labels.classes[kept][valid] - 1)
            groups.append(
                labels.groups[kept][valid] + sum(int(part.labels.groups.max()) + 1 for part in rasters[:number])
            )
            raster_of.append(np.full(int(valid.sum()), number))
        label_classes, units, raster_numbers = (np.concatenate(parts) for parts in (known, groups, raster_of))
        seen = set().union(*(raster.labels.seen for raster in rasters))
        outside = tuple(table.names[number] for number in range(classes) if number + 1 in seen and not labelled[number])
        if len(np.unique(label_classes)) < 2:
            if outside:
                raise ClippanError(
                    "The samples hold fewer than two of the classes, as all labels of {classes} lie outside the "
                    "rasters or on nodata; label places of at least two classes.",
                    classes=", ".join(outside),
                )
            raise ClippanError("The samples hold fewer than two of the classes; label places of at least two classes.")
        folds = _folds(label_classes, units if len(rasters) == 1 else raster_numbers)
        return cls(np.concatenate(features), label_classes, units, folds, labelled, outside)


def _folds(classes: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The fold of each label. Labels of a unit (a raster; of a single raster, a polygon or block) share a fold, since
    neighbours are alike."""
    found, first = np.unique(units, return_index=True)
    order = found[np.lexsort((found, classes[first]))]  # by class, so that each is in as many folds as possible
    fold_of = dict(zip(order.tolist(), (np.arange(len(order)) % _FOLDS).tolist()))
    return np.array([fold_of[unit] for unit in units.tolist()])


def _select_fit(known: _LabelledVectors, initial: _Fit, context: Context) -> tuple[_Fit, Accuracy]:
    """The most cautious fit whose cross-validated accuracy is about that of the best, and this accuracy."""
    tried = []
    for number, (penalty, vector_penalty) in enumerate(_CANDIDATES):
        logits = np.empty((len(known.classes), len(initial.offsets)))
        for fold in np.unique(known.folds):
            context.progress(100 * number / len(_CANDIDATES), "Fitting")
            inside = known.folds == fold
            rest = ~inside if (~inside).any() else inside  # a single polygon cannot be left out
            logits[inside] = _fit(known.features[rest], known.classes[rest], initial, penalty, vector_penalty).logits(
                known.features[inside]
            )
        tried.append((_accuracy(logits, known.classes), penalty, vector_penalty))
    best = max(found.accuracy + found.mean_iou for found, _, _ in tried)
    after, penalty, vector_penalty = next(
        item for item in tried if item[0].accuracy + item[0].mean_iou >= best - _TOLERANCE
    )
    return _fit(known.features, known.classes, initial, penalty, vector_penalty), after


def _fit(
    features: np.ndarray, known: np.ndarray, initial: _Fit, penalty: float, vector_penalty: Optional[float]
) -> _Fit:
    """Maximises the likelihood of labels.

    Args:
        features: image vectors of labels (n, width).
        known: their classes (n,).
        initial: the text vectors.
        penalty: on offsets and changes of the scale.
        vector_penalty: on changes of the text vectors; None keeps them.
    """
    classes = len(initial.offsets)
    counts = np.bincount(known, minlength=classes)
    weight = np.where(counts > 0, np.maximum(counts, 1) ** -_FREQUENCY_POWER, 0)[known]
    weights = torch.from_numpy((weight / weight.sum()).astype(np.float32))
    truth = torch.from_numpy(known).long()
    exponent, offsets = torch.zeros((), requires_grad=True), torch.zeros(classes, requires_grad=True)
    learned = [exponent, offsets]
    if vector_penalty is None:
        fixed = _Fit(initial.vectors, initial.class_of, 1.0, np.zeros(classes)).logits(features)
        cosines = torch.from_numpy(fixed.astype(np.float32))
    else:
        vectors = torch.from_numpy(features)
        start = np.stack([initial.vectors[initial.class_of == number].mean(axis=0) for number in range(classes)])
        moved = torch.zeros(start.shape, requires_grad=True)
        learned.append(moved)
        middle = torch.from_numpy(start)
    optimiser = torch.optim.LBFGS(learned, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        similarity = cosines if vector_penalty is None else vectors @ (middle + moved).T
        logits = similarity * _scale(exponent) + offsets
        entropy = (functional.cross_entropy(logits, truth, reduction="none") * weights).sum()
        total = entropy + penalty * (offsets.square().sum() + exponent.square())
        if vector_penalty is not None:
            total = total + vector_penalty * moved.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    scale = float(_scale(exponent.detach()))
    # Softmax depends on differences only; centred offsets neither favour nor disfavour a class without labels.
    added = (offsets.detach() - offsets.detach().mean()).numpy().astype(float)
    if vector_penalty is None:
        return _Fit(initial.vectors, initial.class_of, scale, added)
    return _Fit((middle + moved.detach()).numpy(), np.arange(classes), scale, added, True)


def _scale(exponent: torch.Tensor) -> torch.Tensor:
    """The logit scale; bounded, since for linearly separable labels the likelihood grows with it."""
    return LOGIT_SCALE * (_MAX_SCALE_EXPONENT * exponent.tanh()).exp()


def _calibrated_table(table: PromptTable, fit: _Fit, model: str, known: _LabelledVectors) -> PromptTable:
    """The table with the fitted vectors, offsets and scale."""
    classes: list[ClassPrompt] = []
    for number, prompt in enumerate(table.classes):
        vector = tuple(round(float(value), 5) for value in fit.vectors[number]) if fit.moved else prompt.vector
        classes.append(dataclasses.replace(prompt, offset=round(float(fit.offsets[number]), 4), vector=vector))
    about = Message("Calibrated on {count} labelled pixels.", count=int(known.labelled.sum()))
    return PromptTable(tuple(classes), round(fit.scale, 4), model, about)


def _accuracy(logits: np.ndarray, known: np.ndarray) -> Accuracy:
    labels, found = np.arange(logits.shape[1]), logits.argmax(axis=1)
    iou = jaccard_score(known, found, labels=labels, average=None, zero_division=0)
    each = tuple(float(value) if label in known else None for label, value in zip(labels, iou))
    mean = float(np.mean([value for value in each if value is not None]))
    counts = tuple(tuple(line) for line in confusion_matrix(known, found, labels=labels).tolist())
    return Accuracy(float(accuracy_score(known, found)), mean, each, counts)


def _hints(table: PromptTable, known: _LabelledVectors, fit: _Fit, before: Accuracy, after: Accuracy) -> list[str]:
    hints: list[str] = []
    groups = [len(np.unique(known.groups[known.classes == number])) for number in range(len(table.classes))]
    absent = [name for name, count in zip(table.names, groups) if not count and name not in known.outside]
    few = [name for name, count in zip(table.names, groups) if 0 < count < _MIN_GROUPS]
    if known.outside:
        hints.append(
            Message(
                "All labels of {classes} lie outside the rasters or on nodata; label other places to calibrate these "
                "classes.",
                classes=", ".join(known.outside),
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
    if fit.moved:
        hints.append(
            "The meaning of the words was adjusted to the labelled places; the table can be used only with this model."
        )
    if after.mean_iou < before.mean_iou:
        hints.append(
            "Calibration did not improve the map in cross-validation; label more places, or keep the previous table."
        )
    return hints

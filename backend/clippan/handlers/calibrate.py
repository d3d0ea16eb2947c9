"""Fits a prompt table to a few labelled places.

Cautiously first: the logit scale, and for each class what is added to its logits (bias-corrected temperature scaling,
Alexandari et al. 2020). Then more boldly: what the words of a class mean to the model, as a vector, is moved to where
labelled cells lie, as little as explains them (logistic regression about the text, as in few-shot CLIP, Huang et al.
2024, "LP++"). How far it goes is decided by places that were left out.
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

from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts, save_prompts
from clippan.clip.class_vectors import ClassVectors, class_vectors, prompt_texts
from clippan.clip.encoder import load_encoder
from clippan.clip.similarity import SimilarityMaps
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import set_threads
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.jobs.calibrate import Accuracy, CalibrateRequest, CalibrateResult
from clippan.jobs.picture import choices, remarks
from clippan.labels.labelled_pixels import LabelledPixels, read_labelled_pixels
from clippan.labels.legend import colours
from clippan.raster.scene import Scene, SceneOptions
from clippan.report import page
from clippan.report.pictures import class_overlay_png
from clippan.segmentation.mapping import LOGIT_SCALE

_FOLDS = 5
_FREQUENCY_POWER = (
    0.5  # power of a class's frequency by which its labels count less, so that rare classes are found too
)
# What is tried, the most cautious first: weights of keeping the usual scale and no offsets, and of keeping the words'
# vectors (None: they are kept).
_CANDIDATES: tuple[tuple[float, Optional[float]], ...] = (
    *((stay, None) for stay in (10.0, 0.1, 0.01, 0.001)),
    *((0.001, pull) for pull in (10.0, 1.0, 0.1)),
)
_MAX_SCALE_EXPONENT = 2.5  # the scale is at most e to this power larger, or smaller, than the usual one
_TOLERANCE = 0.02  # of accuracy and mean IoU together: so much is chance, and the more cautious fit is taken
_MAX_LABELS = 40_000  # that are fitted; neighbours say the same
_MIN_GROUPS = 3  # polygons or points of a class, below which the fit is uncertain
_PICTURE = 700  # pixels along the longer edge of a picture in the report
_OUTSIDE = "All labels of {} lie outside the rasters or on nodata"
_CHUNK = 16_384  # places whose vectors are held at a time


@dataclass(frozen=True)
class _Fit:
    """From vectors of places (n, width) to logits: words (m, width) of the classes ``owners``, scale and offsets, and
    whether the words were moved (then there is one a class)."""

    words: np.ndarray
    class_of: np.ndarray
    scale: float
    offsets: np.ndarray
    moved: bool = False

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, classes)."""
        starts = np.flatnonzero(np.diff(self.class_of, prepend=-1))
        return np.maximum.reduceat(features @ self.words.T, starts, axis=1) * self.scale + self.offsets


@dataclass(frozen=True)
class _LabelledRaster:
    """A labelled raster, and what the model saw of it."""

    scene: Scene
    labels: LabelledPixels
    view: SimilarityMaps

    def panel(self, before: _Fit, after: _Fit, legend: np.ndarray) -> dict[str, Any]:
        """The raster's name, and its maps and its labels over it, for the report."""
        part, labels = self.labels.part, self.labels
        zoom = min(1.0, _PICTURE / max(part.width, part.height))
        width, height = max(round(part.width * zoom), 1), max(round(part.height * zoom), 1)
        picture, _ = self.scene.picture(part, width, height)
        rows = part.y + ((np.arange(height) + 0.5) * part.height / height).astype(int)
        columns = part.x + ((np.arange(width) + 0.5) * part.width / width).astype(int)
        grid = [values.ravel() for values in np.meshgrid(rows, columns, indexing="ij")]
        maps: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for start in range(0, len(grid[0]), _CHUNK):
            features = self.view.at_pixels(grid[0][start : start + _CHUNK], grid[1][start : start + _CHUNK])
            seen = np.isfinite(features).all(axis=1)
            for fit, found in zip((before, after), maps):
                found.append(np.where(seen, np.nan_to_num(fit.logits(features)).argmax(axis=1) + 1, 0))
        one, other = (np.concatenate(found).reshape(height, width) for found in maps)
        small = np.zeros((height, width), np.uint8)
        down, across = (labels.rows - part.y) * height // part.height, (labels.columns - part.x) * width // part.width
        small[down, across] = labels.classes
        shown = {"before": one, "after": other, "labels": small}
        image = np.ascontiguousarray(picture.transpose(1, 2, 0))
        pictures = {name: class_overlay_png(image, values, legend) for name, values in shown.items()}
        return {"name": Path(self.scene.path).name, **pictures}


def run(request: CalibrateRequest, context: Context) -> CalibrateResult:
    """See CalibrateRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    table = parse_prompts(request.classes).with_colours()
    if origin := texts.origin_note(request.classes, "classes"):
        context.log(origin)
    model = load_encoder(request.model, request.device, context.subrange(0, 5))
    set_threads(request.threads)
    sought = class_vectors(model, table, False)
    offsets = np.array([prompt.offset for prompt in table.classes])
    first = _Fit(sought.vectors, sought.class_of, table.logit_scale or LOGIT_SCALE, offsets)
    # Not only how alike places are to the words, but their vectors themselves.
    whole = ClassVectors(np.eye(model.width, dtype=np.float32), np.arange(model.width), model.width)
    look = SceneOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
    count = len(request.rasters)
    with Outputs() as outputs:
        rasters = []
        for number, (path, samples) in enumerate(zip(request.rasters, request.samples)):
            mine = context.subrange(5 + 75 * number / count, 5 + 75 * (number + 1) / count)
            folder = outputs.temporary_folder(request.output) / str(number)
            folder.mkdir()
            scene = Scene(path, look)
            labels = read_labelled_pixels(samples, request.layer, request.field, table, scene, mine.subrange(0, 10))
            view = SimilarityMaps.of(
                request, model, whole, scene, labels.part, folder, mine.subrange(10, 100), labels.near
            )
            rasters.append(_LabelledRaster(scene, labels, view))
        pictures = tuple(raster.scene.raster_picture_for(model.channels) for raster in rasters)
        for sentence in choices(pictures):
            context.log(sentence)
        known = _LabelledVectors.of(rasters, table)
        before = _accuracy(first.logits(known.features), known.classes)
        fit, after = _select_fit(known, first, context.subrange(80, 95))
        found = _calibrated_table(table, fit, model.model.id, known)
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
            tuple([*hints, *remarks(pictures)]),
            round(time.monotonic() - started, 3),
            pictures,
        )
        if request.report:
            context.progress(95, "Writing the report")
            palette = colours(found)
            panels = [raster.panel(first, fit, np.array(palette, np.float32)) for raster in rasters]
            page.write(
                request.report, "calibration", outputs, request=request, result=result, colours=palette, panels=panels
            )
        save_prompts(found, request.output, outputs)
        del rasters, view  # files that are mapped into memory cannot be removed on Windows
    return result


@dataclass(frozen=True)
class _LabelledVectors:
    """Labels with what the model saw there.

    Attributes:
        features: (n, width).
        classes: from 0, (n,).
        groups: the polygon or block of each, (n,).
        folds: for cross-validation, (n,).
        labelled: labels of each class, also those that are not among the n.
        outside: names of the classes all of whose labels lie outside the rasters, or on nodata.
    """

    features: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    labelled: np.ndarray
    outside: tuple[str, ...]

    @classmethod
    def of(cls, rasters: list[_LabelledRaster], table: PromptTable) -> _LabelledVectors:
        """Of all rasters.

        Raises:
            ClippanError: fewer than two classes are labelled.
        """
        features, known, groups, owners = [], [], [], []
        classes = len(table.classes)
        labelled = np.zeros(classes, int)
        for number, raster in enumerate(rasters):
            labels = raster.labels
            labelled += np.bincount(labels.classes - 1, minlength=classes)
            kept = np.random.default_rng(number).permutation(len(labels.rows))[: _MAX_LABELS // len(rasters)]
            values = raster.view.at_pixels(labels.rows[kept], labels.columns[kept])
            valid = np.isfinite(values).all(axis=1)
            features.append(values[valid])
            known.append(labels.classes[kept][valid] - 1)
            groups.append(
                labels.groups[kept][valid] + sum(int(part.labels.groups.max()) + 1 for part in rasters[:number])
            )
            owners.append(np.full(int(valid.sum()), number))
        own, units, pictures = np.concatenate(known), np.concatenate(groups), np.concatenate(owners)
        seen = set().union(*(raster.labels.seen for raster in rasters))
        outside = tuple(table.names[number] for number in range(classes) if number + 1 in seen and not labelled[number])
        if len(np.unique(own)) < 2:
            besides = f" ({_OUTSIDE.format(', '.join(outside))})" if outside else ""
            raise ClippanError(
                "The samples hold fewer than two of the classes{besides}; label places of at least two.",
                besides=besides,
            )
        folds = _folds(own, units if len(rasters) == 1 else pictures)
        return cls(np.concatenate(features), own, units, folds, labelled, outside)


def _folds(classes: np.ndarray, units: np.ndarray) -> np.ndarray:
    """In which fold each label is: by rasters, or if there is one by polygons (or blocks), since what lies near a label
    is like it."""
    found, first = np.unique(units, return_index=True)
    order = found[np.lexsort((found, classes[first]))]  # class by class, so that each is in as many folds as can be
    fold_of = dict(zip(order.tolist(), (np.arange(len(order)) % _FOLDS).tolist()))
    return np.array([fold_of[unit] for unit in units.tolist()])


def _select_fit(known: _LabelledVectors, first: _Fit, context: Context) -> tuple[_Fit, Accuracy]:
    """The most cautious fit that is about as good as the best, on folds that it has not seen."""
    tried = []
    for number, (stay, pull) in enumerate(_CANDIDATES):
        logits = np.empty((len(known.classes), len(first.offsets)))
        for fold in np.unique(known.folds):
            context.progress(100 * number / len(_CANDIDATES), "Fitting")
            inside = known.folds == fold
            rest = ~inside if (~inside).any() else inside  # with one polygon there is nothing to leave out
            logits[inside] = _fit(known.features[rest], known.classes[rest], first, stay, pull).logits(
                known.features[inside]
            )
        tried.append((_accuracy(logits, known.classes), stay, pull))
    best = max(found.accuracy + found.mean_iou for found, _, _ in tried)
    after, stay, pull = next(item for item in tried if item[0].accuracy + item[0].mean_iou >= best - _TOLERANCE)
    return _fit(known.features, known.classes, first, stay, pull), after


def _fit(features: np.ndarray, known: np.ndarray, first: _Fit, stay: float, pull: Optional[float]) -> _Fit:
    """The fit that makes labels likeliest.

    Args:
        features: of labels (n, width).
        known: their classes (n,).
        first: the words.
        stay: weight of no offsets and the usual scale.
        pull: weight of the words' vectors; None keeps them.
    """
    classes = len(first.offsets)
    counts = np.bincount(known, minlength=classes)
    weight = np.where(counts > 0, np.maximum(counts, 1) ** -_FREQUENCY_POWER, 0)[known]
    weights = torch.from_numpy((weight / weight.sum()).astype(np.float32))
    truth = torch.from_numpy(known).long()
    exponent, offsets = torch.zeros((), requires_grad=True), torch.zeros(classes, requires_grad=True)
    learned = [exponent, offsets]
    if pull is None:
        fixed = _Fit(first.words, first.class_of, 1.0, np.zeros(classes)).logits(features)
        cosines = torch.from_numpy(fixed.astype(np.float32))
    else:
        places = torch.from_numpy(features)
        start = np.stack([first.words[first.class_of == number].mean(axis=0) for number in range(classes)])
        moved = torch.zeros(start.shape, requires_grad=True)
        learned.append(moved)
        middle = torch.from_numpy(start)
    optimiser = torch.optim.LBFGS(learned, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        near = cosines if pull is None else places @ (middle + moved).T
        logits = near * _scale(exponent) + offsets
        likely = (functional.cross_entropy(logits, truth, reduction="none") * weights).sum()
        total = likely + stay * (offsets.square().sum() + exponent.square())
        if pull is not None:
            total = total + pull * moved.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    scale = float(_scale(exponent.detach()))
    # A class without labels is neither favoured nor put aside; softmax knows differences only.
    added = (offsets.detach() - offsets.detach().mean()).numpy().astype(float)
    if pull is None:
        return _Fit(first.words, first.class_of, scale, added)
    return _Fit((middle + moved.detach()).numpy(), np.arange(classes), scale, added, True)


def _scale(exponent: torch.Tensor) -> torch.Tensor:
    """Bounded, since labels that a line divides are the likelier the larger it is."""
    return LOGIT_SCALE * (_MAX_SCALE_EXPONENT * exponent.tanh()).exp()


def _calibrated_table(table: PromptTable, fit: _Fit, model: str, known: _LabelledVectors) -> PromptTable:
    """The table with what was found."""
    classes: list[ClassPrompt] = []
    for number, prompt in enumerate(table.classes):
        vector = tuple(round(float(value), 5) for value in fit.words[number]) if fit.moved else prompt.vector
        classes.append(dataclasses.replace(prompt, offset=round(float(fit.offsets[number]), 4), vector=vector))
    about = Message("Calibrated on {sum} labelled pixels.", sum=int(known.labelled.sum()))
    return PromptTable(tuple(classes), round(fit.scale, 4), model, about)


def _accuracy(logits: np.ndarray, known: np.ndarray) -> Accuracy:
    labels, found = np.arange(logits.shape[1]), logits.argmax(axis=1)
    iou = jaccard_score(known, found, labels=labels, average=None, zero_division=0)
    each = tuple(float(value) if label in known else None for label, value in zip(labels, iou))
    mean = float(np.mean([value for value in each if value is not None]))
    counts = tuple(tuple(line) for line in confusion_matrix(known, found, labels=labels).tolist())
    return Accuracy(float(accuracy_score(known, found)), mean, each, counts)


def _hints(table: PromptTable, known: _LabelledVectors, fit: _Fit, before: Accuracy, after: Accuracy) -> list[str]:
    hints = []
    places = [len(np.unique(known.groups[known.classes == number])) for number in range(len(table.classes))]
    absent = [name for name, found in zip(table.names, places) if not found and name not in known.outside]
    few = [name for name, found in zip(table.names, places) if 0 < found < _MIN_GROUPS]
    if known.outside:
        hints.append(f"{_OUTSIDE.format(', '.join(known.outside))}; label others to learn about them.")
    if absent:
        hints.append(
            Message(
                "No labels of {absent}: nothing was learned about them; label some places.", absent=", ".join(absent)
            )
        )
    if few:
        hints.append(
            Message(
                "Labels of {few} are in fewer than {_FEW} places; label more for a fit to rely on.",
                few=", ".join(few),
                _FEW=_MIN_GROUPS,
            )
        )
    if fit.moved:
        hints.append("What the words mean was moved to the labelled places; the table is for this model only.")
    if after.mean_iou < before.mean_iou:
        hints.append(
            "On places that were left out, calibration does not help; label more places, or keep the old table."
        )
    return hints

"""Fits a prompt table to a few labelled places: the logit scale, and for each class what is added to its logits.

The words stay what they are. Where a class is found too often, its offset is negative, and where too seldom, positive;
with the scale this is the bias-corrected temperature scaling of Alexandari et al. 2020, on the cosines of the places.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from clippan.clip.encoder import encoder
from clippan.device import set_threads
from clippan.errors import ClippanError
from clippan.jobs.base import Context
from clippan.jobs.calibrate import Accuracy, CalibrateRequest, CalibrateResult
from clippan.search.scene import Look, Scene
from clippan.segmentation import report
from clippan.segmentation.labels import Labels, read
from clippan.segmentation.prompts import Table, parse, save
from clippan.segmentation.segment import LOGIT_SCALE, View
from clippan.segmentation.words import words

_FOLDS = 5
_RARE = 0.5  # power of a class's frequency by which its labels count less, so that rare classes are found too
_STAYS = (1e-3, 1e-2, 1e-1, 1e1)  # weights of staying with no offsets and the usual scale; the last all but keeps them
_SLACK = 0.02  # of accuracy and mean IoU together: so much is chance, and the more cautious fit is taken
_FEW = 3  # polygons or points of a class, below which the fit is uncertain
_PICTURE = 700  # pixels along the longer edge of a picture in the report


def calibrate(request: CalibrateRequest, context: Context) -> CalibrateResult:
    """See CalibrateRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    table = parse(request.classes).coloured()
    model = encoder(request.model, request.device, context.part(0, 5))
    set_threads(request.threads)
    sought = words(model, table, False)
    look = Look(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
    cosines: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    seen: list[_Seen] = []
    count = len(request.rasters)
    folder = Path(request.output).absolute().parent
    with tempfile.TemporaryDirectory(prefix=".clippan-", dir=folder) as temporary:
        for number, (path, samples) in enumerate(zip(request.rasters, request.samples)):
            mine = context.part(5 + 85 * number / count, 5 + 85 * (number + 1) / count)
            scene = Scene(path, look)
            labels = read(samples, request.field, table, scene, mine.part(0, 10))
            view = View.of(request, model, sought, scene, labels.part, Path(temporary), mine.part(10, 100), labels.near)
            cosines.append(view.places(labels.rows, labels.columns))
            truth.append(labels.classes - 1)
            groups.append(labels.groups + (groups[-1].max() + 1 if groups else 0))
            owners.append(np.full(len(labels.groups), number))
            if request.report:
                seen.append(_look(scene, view, labels))
            del view  # a file that is mapped into memory cannot be removed on Windows
    values = np.concatenate(cosines)
    valid = np.isfinite(values).all(axis=1)
    values = values[valid]
    known, places, pictures = (np.concatenate(parts)[valid] for parts in (truth, groups, owners))
    labelled = np.bincount(known, minlength=len(table.classes))
    if (labelled > 0).sum() < 2:
        raise ClippanError("The samples hold fewer than two of the classes; label places of at least two.")
    context.progress(92, "Fitting")
    old = np.array([prompt.offset for prompt in table.classes])
    before = _accuracy(values * (table.logit_scale or LOGIT_SCALE) + old, known)
    folds = _folds(known, places, pictures)
    tried = [(_accuracy(_crossed(values, known, folds, len(old), stay), known), stay) for stay in _STAYS]
    best = max(found.accuracy + found.mean_iou for found, _ in tried)
    after, stay = next(item for item in reversed(tried) if item[0].accuracy + item[0].mean_iou >= best - _SLACK)
    scale, offsets = _fit(values, known, len(old), stay)
    classes = tuple(
        dataclasses.replace(prompt, offset=round(float(offset), 4)) for prompt, offset in zip(table.classes, offsets)
    )
    found = Table(classes, round(float(scale), 4), model.model.id, f"Calibrated on {len(known)} labelled pixels.")
    result = CalibrateResult(
        request.output,
        request.report,
        table.names,
        tuple(int(item) for item in labelled),
        before,
        after,
        float(found.logit_scale or 0),
        tuple(prompt.offset for prompt in classes),
        tuple(_hints(table, known, places, before, after)),
        round(time.monotonic() - started, 3),
    )
    if request.report:
        report.write(request.report, request, result, found, [item.panel(table, found) for item in seen])
    save(found, request.output)
    return result


@dataclass(frozen=True)
class _Seen:
    """What the report shows of a raster: a picture (h, w, 3), cosines (h, w, classes), labels (h, w)."""

    caption: str
    picture: np.ndarray
    cosines: np.ndarray
    labels: np.ndarray

    def panel(self, before: Table, after: Table) -> report.Panel:
        """With the maps by both tables."""
        return report.Panel(self.caption, self.picture, self._map(before), self._map(after), self.labels)

    def _map(self, table: Table) -> np.ndarray:
        logits = self.cosines * (table.logit_scale or LOGIT_SCALE) + [prompt.offset for prompt in table.classes]
        found = np.nan_to_num(logits, nan=-np.inf).argmax(axis=-1) + 1
        return np.where(np.isfinite(logits).all(axis=-1), found, 0).astype(np.uint8)


def _look(scene: Scene, view: View, labels: Labels) -> _Seen:
    part = labels.part
    zoom = min(1.0, _PICTURE / max(part.width, part.height))
    width, height = max(round(part.width * zoom), 1), max(round(part.height * zoom), 1)
    picture, _ = scene.picture(part, width, height)
    rows = part.y + ((np.arange(height) + 0.5) * part.height / height).astype(int)
    columns = part.x + ((np.arange(width) + 0.5) * part.width / width).astype(int)
    grid = np.meshgrid(rows, columns, indexing="ij")
    cosines = view.places(grid[0].ravel(), grid[1].ravel()).reshape(height, width, -1)
    small = np.zeros((height, width), np.uint8)
    small[((labels.rows - part.y) * height) // part.height, ((labels.columns - part.x) * width) // part.width] = (
        labels.classes
    )
    return _Seen(Path(scene.path).name, np.ascontiguousarray(picture.transpose(1, 2, 0)), cosines, small)


def _fit(values: np.ndarray, known: np.ndarray, classes: int, stay: float) -> tuple[float, np.ndarray]:
    """The scale and the offsets (classes,) that make labels likeliest, from cosines (n, classes) and classes (n,);
    ``stay`` is the weight of the usual ones."""
    counts = np.bincount(known, minlength=classes)
    weight = np.where(counts > 0, np.maximum(counts, 1) ** -_RARE, 0)[known]
    weights = torch.from_numpy(weight / weight.sum())
    cosines, truth = torch.from_numpy(values).double(), torch.from_numpy(known).long()
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([exponent, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = cosines * (LOGIT_SCALE * exponent.exp()) + offsets
        likely = (functional.cross_entropy(logits, truth, reduction="none") * weights).sum()
        total = likely + stay * (offsets.square().sum() + exponent.square())
        total.backward()
        return total

    optimiser.step(loss)
    # A class without labels is neither favoured nor put aside; softmax knows differences only.
    shift = offsets.detach().mean()
    return float(LOGIT_SCALE * exponent.detach().exp()), (offsets.detach() - shift).numpy()


def _folds(known: np.ndarray, groups: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """In which fold each label is: by rasters, or if there is one by polygons (or blocks), since what lies near a label
    is like it."""
    units = pictures if pictures.max() > 0 else groups
    found, first = np.unique(units, return_index=True)
    order = found[np.lexsort((found, known[first]))]  # class by class, so that each is in as many folds as can be
    fold_of = dict(zip(order.tolist(), (np.arange(len(order)) % _FOLDS).tolist()))
    return np.array([fold_of[unit] for unit in units.tolist()])


def _crossed(values: np.ndarray, known: np.ndarray, folds: np.ndarray, classes: int, stay: float) -> np.ndarray:
    """Logits (n, classes) of labels, by fits that have not seen their fold."""
    logits = np.empty_like(values)
    for fold in np.unique(folds):
        inside = folds == fold
        rest = ~inside if (~inside).any() else inside  # with one polygon there is nothing to cross
        scale, offsets = _fit(values[rest], known[rest], classes, stay)
        logits[inside] = values[inside] * scale + offsets
    return logits


def _accuracy(logits: np.ndarray, known: np.ndarray) -> Accuracy:
    classes = logits.shape[1]
    table = np.bincount(known * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
    hits, union = np.diag(table), table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
    there = table.sum(axis=1) > 0
    each = tuple(float(hit / all_) if seen else None for hit, all_, seen in zip(hits, union, there))
    mean = float(np.mean([value for value in each if value is not None]))
    return Accuracy(float(hits.sum() / table.sum()), mean, each, tuple(tuple(int(n) for n in row) for row in table))


def _hints(table: Table, known: np.ndarray, groups: np.ndarray, before: Accuracy, after: Accuracy) -> list[str]:
    hints = []
    few = [name for number, name in enumerate(table.names) if 0 < len(np.unique(groups[known == number])) < _FEW]
    absent = [name for number, name in enumerate(table.names) if not (known == number).any()]
    if absent:
        hints.append(f"No labels of {', '.join(absent)}: nothing was learned about them; label some places.")
    if few:
        hints.append(f"Labels of {', '.join(few)} are in fewer than {_FEW} places; label more for a fit to rely on.")
    if after.mean_iou < before.mean_iou:
        hints.append(
            "On places that were left out, calibration does not help; label more places, or keep the old table."
        )
    return hints

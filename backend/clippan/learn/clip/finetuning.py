"""Robust fine-tuning: CLIP learns classes without forgetting others.

After Zavras et al. 2024 ("Mind the Modality Gap", stage 1) and Ilharco et al. 2022 ("Patching open-vocabulary models
by interpolating weights"): the text vectors of the classes are a frozen classifier, only the image tower is tuned, and
the result interpolates the weights before and after, θ = (1 − α)·θ₀ + α·θ₁. α is chosen on validation chips of the
classes and of a control set, and the result is measured on test chips of both.

The folder of a run (``clippan.learn.loop``) becomes the folder of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clippan.catalogue.models import find_model
from clippan.clip.encoder import zero_shot_weights
from clippan.clip.load import LoadedModel
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.jobs.finetune_clip import AlphaPoint, ClassGain, FinetuneClipRequest
from clippan.learn.clip import chips
from clippan.learn.clip.chips import LabelledChips, Split
from clippan.learn.clip.image_tower import MAX_ENCODE_BATCH, ImageTowerTraining

_LABEL_SMOOTHING = 0.1  # keeps logits small when there are few chips
_ALPHA_STEP = 0.1  # of alpha, along the curve
_DEFAULT_ALPHA = 0.5  # without a control set; the best in the paper


@dataclass(frozen=True)
class ClassificationTask:
    """Chips to classify among their own classes.

    Attributes:
        chips: all chips.
        split: training, validation and test chips.
        zero_shot_weights: unit vectors of the class names, (classes, width).
    """

    chips: LabelledChips
    split: Split
    zero_shot_weights: Tensor


def read_tasks(
    request: FinetuneClipRequest, loaded: LoadedModel, pixels: int, context: Context
) -> tuple[ClassificationTask, Optional[ClassificationTask]]:
    """The task and the control set."""
    base = find_model(request.model)
    if base.channels and (not request.samples or request.control):
        raise ClippanError(
            "The model {model} needs the bands {bands}, which folders of pictures lack; give a raster with samples, "
            "and no control set.",
            model=base.label,
            bands=base.channels.joined_names,
        )
    if request.samples:
        labelled = chips.chips_from_samples(request, base.channels, pixels, context)
    else:
        labelled = chips.chips_from_folders(request.data, context)
    control = chips.chips_from_folders(request.control, context) if request.control else None
    words = _words(request.words, [labelled, *([control] if control else [])])
    labelled, control = labelled.renamed(words), control.renamed(words) if control else None
    parts = chips.split_without_overlap(labelled, request.held, request.measured, request.seed)
    if not len(parts.test):
        raise ClippanError(
            "No class has three or more separate places (a polygon or points close together count as one), so none can "
            "be held out for the test; label more places."
        )
    task = ClassificationTask(labelled, parts, zero_shot_weights(loaded, labelled.names))
    if control is None:
        return task, None
    halves = chips.split(control, 0.5, request.measured, request.seed, with_training=False)
    if not len(halves.test):
        raise ClippanError(
            "The control set {control} has only one picture of each class; add more.", control=request.control
        )
    return task, ClassificationTask(control, halves, zero_shot_weights(loaded, control.names))


def _words(text: str, tasks: Sequence[LabelledChips]) -> dict[str, str]:
    """New names of classes by their names in folders or samples; case and punctuation of these are ignored."""
    if not text:
        return {}
    given = texts.parse_legend(text)
    names = [name for each in tasks for name in each.names]
    by_key = {_normalised(name): name for name in names}
    unknown = [name for name in given if _normalised(name) not in by_key]
    if unknown:
        raise ClippanError(
            "Words are given for {unknown}, which is not a class; the classes are {classes}.",
            unknown=join_names(unknown),
            classes=join_names(names),
        )
    return {by_key[_normalised(name)]: word for name, word in given.items()}


def _normalised(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


class FineTuning(ImageTowerTraining):
    """Tunes the image tower on the training chips of a task, in the size ``pixels``."""

    def __init__(
        self, request: FinetuneClipRequest, loaded: LoadedModel, task: ClassificationTask, pixels: int, context: Context
    ) -> None:
        super().__init__(request, loaded, len(task.split.train), context)
        self._task, self._pixels = task, pixels
        context.log(
            Message(
                "Training chips: {count}, classes: {classes}, steps: {steps}.",
                count=len(task.split.train),
                classes=len(task.chips.names),
                steps=self.steps,
            )
        )

    def read_chip(self, index: int) -> np.ndarray:
        return self._task.chips.read(int(self._task.split.train[index]), self._pixels)

    def loss(self, vectors: Tensor, indices: np.ndarray) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits = self._scale * functional.normalize(vectors, dim=-1) @ self._task.zero_shot_weights.T
        truth = torch.from_numpy(self._task.chips.labels[self._task.split.train[indices]]).long().to(vectors.device)
        loss = functional.cross_entropy(logits, truth, label_smoothing=_LABEL_SMOOTHING)
        return loss, {"loss": loss}


@torch.no_grad()
def interpolate_weights(
    visual: torch.nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], alpha: float
) -> None:
    """Sets a tower's weights to (1 − α)·before + α·after; integers, which are counters, stay as before."""
    mixed = {
        name: (1 - alpha) * value + alpha * after[name] if value.is_floating_point() else value
        for name, value in before.items()
    }
    visual.load_state_dict(mixed)


def alpha_curve(
    request: FinetuneClipRequest,
    loaded: LoadedModel,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    task: ClassificationTask,
    control: Optional[ClassificationTask],
    pixels: int,
    context: Context,
) -> tuple[list[AlphaPoint], dict[float, list[np.ndarray]]]:
    """The points of the curve, and by alpha whether each test chip of each task is classified correctly."""
    alphas = {round(_ALPHA_STEP * number, 6) for number in range(round(1 / _ALPHA_STEP) + 1)}
    alphas |= {request.alpha} if request.alpha is not None else set()
    points, test_hits = [], {}
    for number, alpha in enumerate(sorted(alphas)):
        step = context.subrange(100 * number / len(alphas), 100 * (number + 1) / len(alphas))
        interpolate_weights(loaded.network.visual, before, after, alpha)
        validation: list[np.ndarray] = []
        test: list[np.ndarray] = []
        for each in filter(None, (task, control)):
            for indices, hits in ((each.split.validation, validation), (each.split.test, test)):
                hits.append(_correct_predictions(loaded, each, indices, pixels, request.batch, step))
        step.progress(100, Message("Measured accuracy at α = {alpha:g}", alpha=alpha))
        test_hits[alpha] = test
        accuracies = [[float(hits.mean()) if len(hits) else 0.0 for hits in part] for part in (test, validation)]
        pairs = [(part[0], part[1] if control else None) for part in accuracies]
        points.append(AlphaPoint(alpha, *pairs[0], *pairs[1]))
    return points, test_hits


@torch.inference_mode()
def _correct_predictions(
    loaded: LoadedModel, task: ClassificationTask, indices: np.ndarray, pixels: int, batch: int, context: Context
) -> np.ndarray:
    """Whether chips are classified correctly, bool (n,)."""
    hits, size = [np.empty(0, bool)], min(batch, MAX_ENCODE_BATCH)
    for start in range(0, len(indices), size):
        context.raise_if_cancelled()
        part = indices[start : start + size]
        pictures = np.stack([task.chips.read(int(index), pixels) for index in part])
        vectors = loaded.network.encode_image(loaded.normalised(pictures)).float()
        hits.append((vectors @ task.zero_shot_weights.T).argmax(1).cpu().numpy() == task.chips.labels[part])
    return np.concatenate(hits)


def choose_alpha(points: Sequence[AlphaPoint], min_retained: float) -> float:
    """The alpha of the highest validation accuracy on the task among those that retain this share of the accuracy on
    the control set; the smallest of equals. 0.5 without a control set."""
    initial = points[0].control_validation
    if initial is None:
        return _DEFAULT_ALPHA
    allowed = [point for point in points if (point.control_validation or 0.0) >= min_retained * initial]
    return max(allowed, key=lambda point: (point.task_validation, -point.alpha)).alpha  # the first is always allowed


def class_gains(task: ClassificationTask, is_control: bool, before: np.ndarray, after: np.ndarray) -> list[ClassGain]:
    """The accuracy of each class from whether test chips were and are classified correctly, bool (n,)."""
    labels = task.chips.labels[task.split.test]
    gains = []
    for label, name in enumerate(task.chips.names):
        own = labels == label
        accuracies = [float(hits[own].mean()) if own.any() else None for hits in (before, after)]
        gains.append(ClassGain(name, is_control, int(own.sum()), *accuracies))
    return gains

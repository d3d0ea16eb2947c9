"""Robust fine-tuning: CLIP learns classes without forgetting others.

After Zavras et al. 2024 ("Mind the Modality Gap", stage 1) and Ilharco et al. 2022 ("Patching open-vocabulary models
by interpolating weights"): the text vectors of the classes are a frozen classifier, only the image tower is tuned, and
the result interpolates the weights before and after, θ = (1 − α)·θ₀ + α·θ₁. α is chosen on validation chips of the
classes and of a control set, and the result is measured on test chips of both.

The folder of a run (``clippan.learn.loop``) becomes the folder of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clippan.catalogue.models import find_model
from clippan.clip.encoder import TEMPLATES
from clippan.clip.load import LoadedModel
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.jobs.finetune_clip import AlphaPoint, ClassGain, FinetuneClipRequest
from clippan.learn.clip import chips
from clippan.learn.clip.chips import Chips, Split
from clippan.learn.clip.farslip import MIN_STEPS, adamw
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, warmup_cosine
from clippan.raster.scene import SceneOptions

_LOG_EVERY, _CHECKPOINT_EVERY = 10, 50  # steps averaged in a row of the curves, and between checkpoints
_WARMUP = 0.1  # share of the steps
_LABEL_SMOOTHING = 0.1  # keeps logits small when there are few chips
_ALPHA_STEP = 0.1  # of alpha, along the curve
_DEFAULT_ALPHA = 0.5  # without a control set; the best in the paper
_ENCODE_BATCH = 32  # chips encoded at a time, at most


@dataclass(frozen=True)
class ClassificationTask:
    """Chips to classify among their own classes.

    Attributes:
        chips: all chips.
        split: training, validation and test chips.
        zero_shot_weights: unit vectors of the class names, (classes, width).
    """

    chips: Chips
    split: Split
    zero_shot_weights: Tensor


@contextlib.contextmanager
def explain_memory_errors(batch: int) -> Iterator[None]:
    """Raises ClippanError if the GPU has too little memory for a batch of this size."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        # A smaller batch is another recipe, which needs another folder; the CPU can resume this run.
        raise ClippanError(
            "The GPU has too little memory for batches of {batch} chips; resume with --device cpu, or start in an "
            "empty folder with a smaller --batch.",
            batch=batch,
        ) from error


@contextlib.contextmanager
def resumable(steps: int) -> Iterator[None]:
    """Adds to a cancellation after the last of the steps that the run can be resumed."""
    try:
        yield
    except Cancelled:
        raise Cancelled(Message("Cancelled after step {steps}; run the same command to resume.", steps=steps)) from None


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
        look = SceneOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
        labelled = chips.chips_from_samples(
            request.data,
            look,
            base.channels,
            request.samples,
            request.layer,
            request.field,
            request.size,
            pixels,
            request.seed,
            context,
        )
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
    halves = chips.split(control, 0.5, request.measured, request.seed, trains=False)
    if not len(halves.test):
        raise ClippanError(
            "The control set {control} has only one picture of each class; add more.", control=request.control
        )
    return task, ClassificationTask(control, halves, zero_shot_weights(loaded, control.names))


def _words(text: str, tasks: Sequence[Chips]) -> dict[str, str]:
    """New names of classes by their names in folders or samples; case and punctuation of these are ignored."""
    if not text:
        return {}
    given = texts.parse_legend(text, "list of words")
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


@torch.no_grad()
def zero_shot_weights(loaded: LoadedModel, names: Sequence[str]) -> Tensor:
    """Unit vectors (classes, width) of class names, averaged over the templates: a zero-shot classifier."""
    sentences = [template.format(name) for name in names for template in TEMPLATES]
    device = next(loaded.model.parameters()).device
    found = functional.normalize(loaded.model.encode_text(loaded.tokenizer(sentences).to(device)).float(), dim=-1)
    return functional.normalize(found.view(len(names), len(TEMPLATES), -1).mean(1), dim=-1)


def preprocessed(loaded: LoadedModel, pictures: np.ndarray, device: torch.device) -> Tensor:
    """Pictures (n, bands, edge, edge), uint8 or 0 to 1, normalised for the image tower."""
    values = torch.from_numpy(pictures).to(device)
    values = values.float().div_(255) if pictures.dtype == np.uint8 else values.clone()
    mean, std = (
        values.new_tensor(bands)[:, None, None] for bands in (loaded.preprocessing.mean, loaded.preprocessing.std)
    )
    return values.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


class FineTuning(TrainingLoop):
    """Tunes the image tower.

    Args:
        request: the job.
        loaded: the model to tune.
        task: the classes and their chips.
        pixels: edge of the model's pictures.
        device: of the model.
        context: receives progress; may cancel.

    Attributes:
        steps: number of steps of the whole run.
    """

    def __init__(
        self,
        request: FinetuneClipRequest,
        loaded: LoadedModel,
        task: ClassificationTask,
        pixels: int,
        device: torch.device,
        context: Context,
    ) -> None:
        self._request, self._loaded, self._task, self._pixels, self._device = request, loaded, task, pixels, device
        count = len(task.split.train)
        self.steps = request.steps or max(count * request.epochs // request.batch, MIN_STEPS)
        super().__init__(Path(request.output), self.steps, 0, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        classes = len(task.chips.names)
        context.log(
            Message(
                "Training on {count} chips of {classes} classes, {steps} steps.",
                count=count,
                classes=classes,
                steps=self.steps,
            )
        )
        for name, value in loaded.model.named_parameters():
            value.requires_grad_(name.startswith("visual."))
        loaded.model.visual.to(memory_format=torch.channels_last)
        self._scale = loaded.model.logit_scale.detach().exp()
        self._optimiser = adamw(loaded.model.visual, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, self.steps, int(_WARMUP * self.steps))

    def sample_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Augmented chips, (batch, bands, edge, edge), and their classes."""
        train, batch = self._task.split.train, self._request.batch
        rng = np.random.default_rng([self._request.seed, 1, step])
        numbers = train[epoch_indices(len(train), batch, step, self._request.seed)]
        chips = [augmented(self._task.chips.read(int(number), self._pixels), rng) for number in numbers]
        return np.stack(chips), self._task.chips.labels[numbers]

    def train_step(self, step: int, batch: tuple[np.ndarray, np.ndarray]) -> Mapping[str, Tensor]:
        pictures, labels = batch
        vectors = self._loaded.model.encode_image(preprocessed(self._loaded, pictures, self._device)).float()
        logits = self._scale * functional.normalize(vectors, dim=-1) @ self._task.zero_shot_weights.T
        truth = torch.from_numpy(labels).long().to(self._device)
        loss = functional.cross_entropy(logits, truth, label_smoothing=_LABEL_SMOOTHING)
        optimiser_step(self._loaded.model.visual, self._optimiser, self._scheduler, loss)
        return {"loss": loss.detach()}

    def state(self) -> dict[str, Any]:
        return {
            "visual": self._loaded.model.visual.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._loaded.model.visual.load_state_dict(state["visual"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scheduler.load_state_dict(state["scheduler"])


def epoch_indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices (batch,) of the chips of a step, out of ``count``; each epoch has every chip once in its own order."""
    epochs, positions = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    orders = {epoch: np.random.default_rng([seed, 0, epoch]).permutation(count) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position] for epoch, position in zip(epochs, positions)])


def augmented(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (bands, edge, edge), randomly rotated by multiples of 90° and mirrored."""
    picture = np.rot90(picture, int(rng.integers(4)), (1, 2))
    return np.ascontiguousarray(picture[:, :, ::-1] if rng.random() < 0.5 else picture)


def copied_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loaded.model.visual.state_dict().items()}


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
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    task: ClassificationTask,
    control: Optional[ClassificationTask],
    pixels: int,
    context: Context,
) -> tuple[list[AlphaPoint], dict[float, list[np.ndarray]]]:
    """The points of the curve, and by alpha whether each test chip of each task is classified correctly."""
    alphas = {round(_ALPHA_STEP * number, 6) for number in range(round(1 / _ALPHA_STEP) + 1)}
    alphas |= {request.alpha} if request.alpha is not None else set()
    points, kept = [], {}
    for number, alpha in enumerate(sorted(alphas)):
        part = context.subrange(100 * number / len(alphas), 100 * (number + 1) / len(alphas))
        interpolate_weights(loaded.model.visual, *ends, alpha)
        validation: list[np.ndarray] = []
        test: list[np.ndarray] = []
        for each in filter(None, (task, control)):
            for numbers, hits in ((each.split.validation, validation), (each.split.test, test)):
                hits.append(correct_predictions(loaded, each, numbers, pixels, request.batch, part))
        part.progress(100, Message("Measured accuracy at α = {alpha:g}", alpha=alpha))
        kept[alpha] = test
        accuracies = [[float(hits.mean()) if len(hits) else 0.0 for hits in part] for part in (test, validation)]
        pairs = [(part[0], part[1] if control else None) for part in accuracies]
        points.append(AlphaPoint(alpha, *pairs[0], *pairs[1]))
    return points, kept


@torch.inference_mode()
def correct_predictions(
    loaded: LoadedModel, task: ClassificationTask, numbers: np.ndarray, pixels: int, batch: int, context: Context
) -> np.ndarray:
    """Whether chips are classified correctly, bool (n,)."""
    found, device, size = [], task.zero_shot_weights.device, min(batch, _ENCODE_BATCH)
    for start in range(0, len(numbers), size):
        context.raise_if_cancelled()
        part = numbers[start : start + size]
        pictures = np.stack([task.chips.read(int(number), pixels) for number in part])
        vectors = loaded.model.encode_image(preprocessed(loaded, pictures, device)).float()
        found.append((vectors @ task.zero_shot_weights.T).argmax(1).cpu().numpy() == task.chips.labels[part])
    return np.concatenate(found) if found else np.empty(0, bool)


def choose_alpha(points: Sequence[AlphaPoint], keep: float) -> float:
    """The alpha of the highest validation accuracy on the task among those that keep this share of the accuracy on the
    control set; the smallest of equals. 0.5 without a control set."""
    initial = points[0].control_validation
    if initial is None:
        return _DEFAULT_ALPHA
    allowed = [point for point in points if (point.control_validation or 0.0) >= keep * initial]  # the first always
    return max(allowed, key=lambda point: (point.task_validation, -point.alpha)).alpha


def class_gains(
    task: ClassificationTask, number: int, before: list[np.ndarray], after: list[np.ndarray]
) -> list[ClassGain]:
    labels = task.chips.labels[task.split.test]
    gains = []
    for label, name in enumerate(task.chips.names):
        own = labels == label
        accuracies = [float(hits[number][own].mean()) if own.any() else None for hits in (before, after)]
        gains.append(ClassGain(name, bool(number), int(own.sum()), *accuracies))
    return gains

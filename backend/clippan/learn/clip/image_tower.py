"""Training of the image tower of a CLIP model on chips, for fine-tuning and for alignment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor, nn

from clippan.clip.load import LoadedModel
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError
from clippan.core.messages import Message
from clippan.jobs.align import AlignSensorRequest
from clippan.jobs.finetune_clip import FinetuneClipRequest
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, warmup_cosine

MAX_ENCODE_BATCH = 32  # chips encoded at a time, at most
_LOG_EVERY, _CHECKPOINT_EVERY = 10, 50  # steps averaged in a row of the curves, and between checkpoints
_MIN_STEPS = 40  # for few chips, as fewer steps change a model hardly at all
_WARMUP = 0.1  # share of the steps
_BETAS, _EPSILON = (0.9, 0.98), 1e-6  # of AdamW, as CLIP was trained


@contextlib.contextmanager
def explain_memory_errors(batch: int) -> Iterator[None]:
    """Raises ClippanError if the GPU has too little memory for a batch of this size."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        # A smaller batch is another recipe, which needs another folder; the CPU can resume this run.
        raise ClippanError(
            "The GPU has too little memory for the batch size {batch}; resume with --device cpu, or start in an empty "
            "folder with a smaller --batch.",
            batch=batch,
        ) from error


@contextlib.contextmanager
def explain_cancellation(step: int) -> Iterator[None]:
    """Adds to a cancellation after the last step that the run can be resumed."""
    try:
        yield
    except Cancelled:
        raise Cancelled(Message("Cancelled after step {step}; run the same command to resume.", step=step)) from None


class ImageTowerTraining(TrainingLoop):
    """Trains the image tower of a model on ``chip_count`` chips. Subclasses say which chips, and the loss.

    Attributes:
        steps: number of steps of the whole run.
    """

    def __init__(
        self,
        request: Union[AlignSensorRequest, FinetuneClipRequest],
        loaded: LoadedModel,
        chip_count: int,
        context: Context,
    ) -> None:
        self._seed, self._batch, self._chip_count, self._loaded = request.seed, request.batch, chip_count, loaded
        self.steps = request.steps or max(chip_count * request.epochs // request.batch, _MIN_STEPS)
        super().__init__(Path(request.output), self.steps, 0, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        freeze_text_tower(loaded.network)
        self._visual = loaded.network.visual.to(memory_format=torch.channels_last)
        self._scale = loaded.network.logit_scale.detach().exp()
        self._optimiser = adamw(self._visual, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, self.steps, int(_WARMUP * self.steps))

    def read_chip(self, index: int) -> np.ndarray:
        """A training chip in the size of the model's input, (bands, edge, edge)."""
        raise NotImplementedError

    def loss(self, vectors: Tensor, indices: np.ndarray) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of raw vectors (batch, width) of training chips with these indices, and its terms."""
        raise NotImplementedError

    def sample_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Augmented chips, (batch, bands, edge, edge), and their indices."""
        rng = np.random.default_rng([self._seed, 1, step])
        indices = epoch_indices(self._chip_count, self._batch, step, self._seed)
        return np.stack([_augmented(self.read_chip(int(index)), rng) for index in indices]), indices

    def train_step(self, step: int, batch: tuple[np.ndarray, np.ndarray]) -> Mapping[str, Tensor]:
        pictures, indices = batch
        vectors = self._loaded.network.encode_image(self._loaded.normalised(pictures)).float()
        total, terms = self.loss(vectors, indices)
        optimiser_step(self._visual, self._optimiser, self._scheduler, total)
        return {name: value.detach() for name, value in terms.items()}

    def checkpointed(self) -> Mapping[str, Any]:
        return {"visual": self._visual, "optimiser": self._optimiser, "scheduler": self._scheduler}


def freeze_text_tower(network: nn.Module) -> None:
    """Makes only the image tower of a model trainable."""
    for name, value in network.named_parameters():
        value.requires_grad_(name.startswith("visual."))


def adamw(network: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW for the trainable parameters of a network, without weight decay of biases and gains."""
    trainable = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trainable if value.ndim > 1], "weight_decay": decay},
        {"params": [value for value in trainable if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPSILON)


def epoch_indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices (batch,) of the chips of a step, out of ``count``; each epoch has every chip once in its own order."""
    epochs, positions = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    orders = {epoch: np.random.default_rng([seed, 0, epoch]).permutation(count) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position] for epoch, position in zip(epochs, positions)])


def _augmented(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (bands, edge, edge), randomly rotated by multiples of 90° and mirrored."""
    picture = np.rot90(picture, int(rng.integers(4)), (1, 2))
    return np.ascontiguousarray(picture[:, :, ::-1] if rng.random() < 0.5 else picture)

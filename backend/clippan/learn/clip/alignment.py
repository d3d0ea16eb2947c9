"""Cross-modal alignment: adapts CLIP to a sensor for which it was not trained.

After Zavras et al. 2024 ("Mind the Modality Gap", stage 2): the teacher encodes a chip in natural colours, the student
encodes the same chip of another sensor and learns the teacher's vector. The teacher's text tower serves both.

The paper's student is a separate encoder, trained on a large collection. Here it starts as the teacher's image tower,
with its first convolution inflated to the bands of the sensor (as Carreira and Zisserman 2017 did along time). Red,
green and blue bands keep their kernels and other bands start at zero, so that the student starts equal to the teacher;
a sensor without these three starts each band with the mean kernel of the colours, times 3 / number of bands, equal to
the teacher on a grey picture. As the tower keeps its knowledge of edges, textures and shapes, few data suffice.

The folder of a run (``clippan.learn.loop``) becomes the folder of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clippan.clip.load import LoadedModel, Preprocessing, replace_input_convolution
from clippan.core.context import Context
from clippan.core.messages import Message
from clippan.jobs.align import AlignSensorRequest
from clippan.learn.clip import losses
from clippan.learn.clip.farslip import MIN_STEPS, adamw
from clippan.learn.clip.patching import augmented, epoch_indices, preprocessed
from clippan.learn.clip.raster_pairs import Chip, RasterPairs, overlaps
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, warmup_cosine

_LOG_EVERY, _CHECKPOINT_EVERY = 10, 50  # steps averaged in a row of the curves, and between checkpoints
_WARMUP = 0.1  # share of the steps
ENCODE_BATCH = 32  # chips encoded at a time, at most


@dataclass(frozen=True)
class AlignmentData:
    """Training data of the student.

    Attributes:
        pairs: the rasters.
        chips: training chips.
        targets: raw vectors of the chips from the teacher, (n, width).
        words: unit vectors of the words, (k, width), if there are any.
        scale: factor of the cosines in logits.
    """

    pairs: RasterPairs
    chips: Sequence[Chip]
    targets: Tensor
    words: Optional[Tensor]
    scale: Tensor


def inflate_input(loaded: LoadedModel, pairs: RasterPairs) -> LoadedModel:
    """Replaces the first convolution of a model by one for the bands of the sensor."""
    bands = len(pairs.channels.names)
    before, after = replace_input_convolution(loaded.model.visual, bands)
    mean, std = (np.array(values) for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
    band_mean, band_std = np.full(bands, mean.mean()), np.full(bands, std.mean())
    with torch.no_grad():
        if pairs.colours:
            colours = list(pairs.colours)
            after.weight.zero_()
            after.weight[:, colours] = before.weight
            band_mean[colours], band_std[colours] = mean, std
        else:
            after.weight.copy_(before.weight.mean(1, keepdim=True).expand_as(after.weight) * 3 / bands)
    preprocessing = Preprocessing(tuple(band_mean.tolist()), tuple(band_std.tolist()), loaded.preprocessing.pixels)
    return loaded._replace(preprocessing=preprocessing)


@torch.no_grad()
def encode_chips(
    loaded: LoadedModel,
    pairs: RasterPairs,
    chips: Sequence[Chip],
    device: torch.device,
    batch: int,
    context: Context,
    from_sensor: bool = False,
) -> Tensor:
    """Raw vectors (n, width) of chips, from the teacher's raster or from the sensor's, encoded in batches."""
    read, edge = pairs.sensor_chip if from_sensor else pairs.teacher_chip, loaded.preprocessing.pixels
    loaded.model.visual.to(memory_format=torch.channels_last)
    found = []
    for start in range(0, len(chips), batch):
        context.progress(
            100 * start / len(chips), Message("Encoded {done:,} of {count:,} chips", done=start, count=len(chips))
        )
        pictures = np.stack([read(chip, edge) for chip in chips[start : start + batch]])
        found.append(loaded.model.encode_image(preprocessed(loaded, pictures, device)).float())
    return torch.cat(found)


class AlignmentTraining(TrainingLoop):
    """Trains the student.

    Args:
        request: the job.
        student: the model to train.
        data: chips and targets.
        device: the device of the student.
        context: receives progress; may cancel.

    Attributes:
        steps: number of steps of the whole run.
    """

    def __init__(
        self,
        request: AlignSensorRequest,
        student: LoadedModel,
        data: AlignmentData,
        device: torch.device,
        context: Context,
    ) -> None:
        self._request, self._student, self._data, self._device = request, student, data, device
        count = len(data.chips)
        self.steps = request.steps or max(count * request.epochs // request.batch, MIN_STEPS)
        super().__init__(Path(request.output), self.steps, 0, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        context.log(Message("Training on {count} chips, {steps} steps.", count=count, steps=self.steps))
        for name, value in student.model.named_parameters():
            value.requires_grad_(name.startswith("visual."))
        student.model.visual.to(memory_format=torch.channels_last)
        self._norm = data.targets.square().sum(1).mean()
        self._optimiser = adamw(student.model.visual, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, self.steps, int(_WARMUP * self.steps))

    def sample_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Augmented chips of the sensor, (batch, bands, edge, edge), and their indices."""
        request, data = self._request, self._data
        rng = np.random.default_rng([request.seed, 1, step])
        numbers = epoch_indices(len(data.chips), request.batch, step, request.seed)
        edge = self._student.preprocessing.pixels
        chips = [augmented(data.pairs.sensor_chip(data.chips[number], edge), rng) for number in numbers]
        return np.stack(chips), numbers

    def train_step(self, step: int, batch: tuple[np.ndarray, np.ndarray]) -> Mapping[str, Tensor]:
        request, data = self._request, self._data
        pictures, numbers = batch
        vectors = self._student.model.encode_image(preprocessed(self._student, pictures, self._device)).float()
        targets = data.targets[torch.from_numpy(numbers).to(self._device)]
        overlapping = torch.from_numpy(overlaps([data.chips[number] for number in numbers])).to(self._device)
        terms = alignment_losses(vectors, targets, self._norm, data.scale, overlapping, data.words)
        weights = {"mse": request.mse, "cosine": request.cosine, "contrast": request.contrast, "label": request.label}
        total = sum((weights[name] * value for name, value in terms.items()), torch.zeros((), device=self._device))
        optimiser_step(self._student.model.visual, self._optimiser, self._scheduler, total)
        return {name: value.detach() for name, value in terms.items()}

    def state(self) -> dict[str, Any]:
        return {
            "visual": self._student.model.visual.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._student.model.visual.load_state_dict(state["visual"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scheduler.load_state_dict(state["scheduler"])


def alignment_losses(
    vectors: Tensor, targets: Tensor, norm: Tensor, scale: Tensor, overlapping: Tensor, words: Optional[Tensor]
) -> dict[str, Tensor]:
    """The loss terms.

    Args:
        vectors: raw vectors of the student, (n, width).
        targets: raw vectors of the teacher, (n, width).
        norm: mean squared length of the teacher's vectors.
        scale: factor of the cosines in logits.
        overlapping: pairs of chips that overlap and so are no negatives of each other, bool (n, n).
        words: unit vectors of the words, (k, width), if there are any.

    Returns:
        ``mse``, the mean squared distance of the raw vectors divided by the norm, so that models with long and short
        vectors are comparable; ``cosine``, the mean of 1 − cos; ``contrast``, symmetric over the batch; and with words
        ``label``, the cross-entropy of the student's word probabilities to the teacher's.
    """
    terms = {
        "mse": (vectors - targets).square().sum(1).mean() / norm,
        "cosine": (1 - functional.cosine_similarity(vectors, targets, dim=-1)).mean(),
        "contrast": losses.contrast(vectors, targets, scale, range(len(vectors)), overlapping),
    }
    if words is not None:
        logits, target_logits = (scale * functional.normalize(each, dim=-1) @ words.T for each in (vectors, targets))
        terms["label"] = functional.cross_entropy(logits, target_logits.softmax(1))
    return terms

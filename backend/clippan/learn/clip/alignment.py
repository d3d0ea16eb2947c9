"""Cross-modal alignment: a CLIP for a sensor that it was not made for.

After Zavras et al. 2024 ("Mind the Modality Gap", stage 2): the teacher sees a place in natural colours, the student
sees the same place by another sensor, and learns to give the vector that the teacher gives. The teacher's text tower
then reads for both.

The paper's student is an encoder of its own, trained on a large collection. Here it starts as the teacher's image
tower, whose first convolution is inflated to the sensor's bands (as Carreira and Zisserman 2017 did along time): where
red, green and blue are among them, these keep their kernels and all others begin at zero, so that the student begins as
the teacher; elsewhere each band gets the mean kernel of the three colours, times three over the number of bands, so
that it begins as the teacher of a grey picture. What the tower knows of edges, textures and shapes is kept, so little
data does.

The folder of a run (``clippan.learn.loop``) is a model's folder in the end.
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

_LOG_EVERY, _CHECKPOINT_EVERY = 10, 50  # steps that a row of the curves is the mean of, and between checkpoints
_WARMUP = 0.1  # part of the steps
ENCODE_BATCH = 32  # chips at a time, at most


@dataclass(frozen=True)
class AlignmentData:
    """What the student learns from.

    Attributes:
        pairs: the rasters.
        chips: to train on.
        targets: the teacher's raw vectors of these, (n, width).
        words: unit vectors of the words, (k, width); none without words.
        scale: what cosines are multiplied by.
    """

    pairs: RasterPairs
    chips: Sequence[Chip]
    targets: Tensor
    words: Optional[Tensor]
    scale: Tensor


def inflate_input(loaded: LoadedModel, pairs: RasterPairs) -> LoadedModel:
    """A copy of the teacher that takes the sensor's bands; see the top of this file."""
    bands = len(pairs.channels.names)
    before, after = replace_input_convolution(loaded.model.visual, bands)
    mean, std = (np.array(values) for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
    own_mean, own_std = np.full(bands, mean.mean()), np.full(bands, std.mean())
    with torch.no_grad():
        if pairs.colours:
            places = list(pairs.colours)
            after.weight.zero_()
            after.weight[:, places] = before.weight
            own_mean[places], own_std[places] = mean, std
        else:
            after.weight.copy_(before.weight.mean(1, keepdim=True).expand_as(after.weight) * 3 / bands)
    preprocessing = Preprocessing(tuple(own_mean.tolist()), tuple(own_std.tolist()), loaded.preprocessing.pixels)
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
    """Raw vectors (n, width) of chips, so many at a time: of their pictures, or of what the sensor saw."""
    read, edge = pairs.sensor_chip if from_sensor else pairs.teacher_chip, loaded.preprocessing.pixels
    loaded.model.visual.to(memory_format=torch.channels_last)
    found = []
    for start in range(0, len(chips), batch):
        context.progress(
            100 * start / len(chips), Message("Looked at {start:,} of {count:,} chips", start=start, count=len(chips))
        )
        pictures = np.stack([read(chip, edge) for chip in chips[start : start + batch]])
        found.append(loaded.model.encode_image(preprocessed(loaded, pictures, device)).float())
    return torch.cat(found)


class AlignmentTraining(TrainingLoop):
    """The student's training.

    Args:
        request: what is asked for.
        student: the model that learns.
        data: what from.
        device: where to compute.
        context: hears of progress, and may cancel.

    Attributes:
        steps: of the whole run.
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
        context.log(f"{count} chips, {self.steps} steps.")
        for name, value in student.model.named_parameters():
            value.requires_grad_(name.startswith("visual."))
        student.model.visual.to(memory_format=torch.channels_last)
        self._norm = data.targets.square().sum(1).mean()
        self._optimiser = adamw(student.model.visual, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, self.steps, int(_WARMUP * self.steps))

    def sample_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """What the sensor saw of chips, turned over by chance, and their numbers."""
        request, data = self._request, self._data
        rng = np.random.default_rng([request.seed, 1, step])
        numbers = epoch_indices(len(data.chips), request.batch, step, request.seed)
        edge = self._student.preprocessing.pixels
        seen = [augmented(data.pairs.sensor_chip(data.chips[number], edge), rng) for number in numbers]
        return np.stack(seen), numbers

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
    """The losses.

    Args:
        vectors: the student's, raw, (n, width).
        targets: the teacher's, raw, (n, width).
        norm: mean square length of the teacher's vectors.
        scale: what cosines are multiplied by.
        overlapping: which chips overlap others, so that they are no negatives of each other, bool (n, n).
        words: unit vectors (k, width), if there are any.

    Returns:
        ``mse``, the mean square distance of raw vectors as a part of the norm, so that models with long vectors and
        with short ones learn alike; ``cosine``, the mean of 1 − cos; ``contrast``, symmetric over the batch; and, with
        words, ``label``, the cross-entropy of what the student says about them to what the teacher says.
    """
    terms = {
        "mse": (vectors - targets).square().sum(1).mean() / norm,
        "cosine": (1 - functional.cosine_similarity(vectors, targets, dim=-1)).mean(),
        "contrast": losses.contrast(vectors, targets, scale, range(len(vectors)), overlapping),
    }
    if words is not None:
        said, meant = (scale * functional.normalize(values, dim=-1) @ words.T for values in (vectors, targets))
        terms["label"] = functional.cross_entropy(said, meant.softmax(1))
    return terms

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
from typing import Callable, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clippan.clip.load import LoadedModel, Preprocessing, replace_input_convolution
from clippan.core.context import Context
from clippan.core.messages import Message
from clippan.jobs.align import AlignSensorRequest, Recall
from clippan.learn.clip import losses
from clippan.learn.clip.image_tower import ImageTowerTraining
from clippan.learn.clip.raster_pairs import PairedChip, RasterPairs, overlaps

_RECALL_RANKS = (1, 5, 10)


def inflate_input(loaded: LoadedModel, pairs: RasterPairs) -> LoadedModel:
    """Replaces the first convolution of a model by one for the bands of the sensor."""
    bands = len(pairs.channels.names)
    before, after = replace_input_convolution(loaded.network.visual, bands)
    mean, std = (np.array(values) for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
    band_mean, band_std = np.full(bands, mean.mean()), np.full(bands, std.mean())
    with torch.no_grad():
        if pairs.rgb_bands:
            colours = list(pairs.rgb_bands)
            after.weight.zero_()
            after.weight[:, colours] = before.weight
            band_mean[colours], band_std[colours] = mean, std
        else:
            after.weight.copy_(before.weight.mean(1, keepdim=True).expand_as(after.weight) * 3 / bands)
    preprocessing = Preprocessing(tuple(band_mean.tolist()), tuple(band_std.tolist()), loaded.preprocessing.image_size)
    return loaded._replace(preprocessing=preprocessing)


@torch.no_grad()
def encode_chips(
    loaded: LoadedModel,
    read: Callable[[PairedChip, int], np.ndarray],
    chips: Sequence[PairedChip],
    batch: int,
    context: Context,
) -> Tensor:
    """Raw vectors (n, width) of chips, encoded in batches; ``read`` returns a chip in a size, in pixels."""
    loaded.network.visual.to(memory_format=torch.channels_last)
    vectors = []
    for start in range(0, len(chips), batch):
        context.progress(
            100 * start / len(chips), Message("Chips encoded: {done:,} of {count:,}", done=start, count=len(chips))
        )
        pictures = np.stack([read(chip, loaded.preprocessing.image_size) for chip in chips[start : start + batch]])
        vectors.append(loaded.network.encode_image(loaded.normalised(pictures)).float())
    return torch.cat(vectors)


class AlignmentTraining(ImageTowerTraining):
    """Trains the student.

    Args:
        request: the job.
        student: the model to train.
        pairs: the rasters.
        chips: training chips.
        targets: raw vectors of the chips from the teacher, (n, width).
        word_vectors: unit vectors of the words, (k, width), if there are any.
        context: receives progress; may cancel.
    """

    def __init__(
        self,
        request: AlignSensorRequest,
        student: LoadedModel,
        pairs: RasterPairs,
        chips: Sequence[PairedChip],
        targets: Tensor,
        word_vectors: Optional[Tensor],
        context: Context,
    ) -> None:
        super().__init__(request, student, len(chips), context)
        self._pairs, self._chips, self._targets, self._word_vectors = pairs, chips, targets, word_vectors
        self._weights = {term: getattr(request, term) for term in ("mse", "cosine", "contrast", "label")}
        self._target_power = targets.square().sum(1).mean()
        context.log(Message("Training chips: {count}, steps: {steps}.", count=len(chips), steps=self.steps))

    def read_chip(self, index: int) -> np.ndarray:
        return self._pairs.sensor_chip(self._chips[index], self._loaded.preprocessing.image_size)

    def loss(self, vectors: Tensor, indices: np.ndarray) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = vectors.device
        targets = self._targets[torch.from_numpy(indices).to(device)]
        overlapping = torch.from_numpy(overlaps([self._chips[index] for index in indices])).to(device)
        terms = alignment_losses(vectors, targets, self._target_power, self._scale, overlapping, self._word_vectors)
        weighted = (self._weights[name] * value for name, value in terms.items())
        return sum(weighted, torch.zeros((), device=device)), terms


def alignment_losses(
    vectors: Tensor,
    targets: Tensor,
    target_power: Tensor,
    scale: Tensor,
    overlapping: Tensor,
    word_vectors: Optional[Tensor],
) -> dict[str, Tensor]:
    """The loss terms.

    Args:
        vectors: raw vectors of the student, (n, width).
        targets: raw vectors of the teacher, (n, width).
        target_power: mean squared length of the teacher's vectors.
        scale: factor of the cosines in logits.
        overlapping: pairs of chips that overlap and so are no negatives of each other, bool (n, n).
        word_vectors: unit vectors of the words, (k, width), if there are any.

    Returns:
        ``mse``, the mean squared distance of the raw vectors divided by the power, so that models with long and short
        vectors are comparable; ``cosine``, the mean of 1 − cos; ``contrast``, symmetric over the batch; and with words
        ``label``, the cross-entropy of the student's word probabilities to the teacher's.
    """
    terms = {
        "mse": (vectors - targets).square().sum(1).mean() / target_power,
        "cosine": (1 - functional.cosine_similarity(vectors, targets, dim=-1)).mean(),
        "contrast": losses.contrast(vectors, targets, scale, range(len(vectors)), overlapping),
    }
    if word_vectors is not None:
        logits, target_logits = (
            scale * functional.normalize(each, dim=-1) @ word_vectors.T for each in (vectors, targets)
        )
        terms["label"] = functional.cross_entropy(logits, target_logits.softmax(1))
    return terms


def recall(queries: Tensor, answers: Tensor) -> Recall:
    """How often the answer in a query's own row is among the first by cosine; ties get the mean of their ranks.

    Args:
        queries, answers: vectors (n, width), of any length; rows belong together.
    """
    cosines = functional.normalize(queries, dim=-1) @ functional.normalize(answers, dim=-1).T
    own = cosines.diag()[:, None]
    ranks = (cosines > own).sum(1) + ((cosines == own).sum(1) - 1) / 2
    return Recall(*(float((ranks < rank).float().mean()) for rank in _RECALL_RANKS))


def chance_recall(count: int) -> Recall:
    """Recall of random guesses among ``count`` answers."""
    return Recall(*(min(rank / count, 1.0) for rank in _RECALL_RANKS))

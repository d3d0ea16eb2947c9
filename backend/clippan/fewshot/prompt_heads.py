"""The few-shot step of DiffCLIP: features of a pre-trained scene encoder are aligned with the words of the classes.

The features of a pixel are the encoder's at the diffusion's time 0, and local means of its components. Small heads map
them into the space of the class prompts. Their loss is a cross-entropy over all prompts, in which every prompt of a
sample's class is correct; the in-batch contrast of the authors treats two samples of one class as negatives of each
other. Several heads vote, and the probabilities of a pixel are averaged with those of similar neighbours; both are
additions of this implementation. The seed fixes the result, and only the given samples are used for any choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.context import Context
from clippan.fewshot import scene_encoder, windows
from clippan.fewshot.scene_encoder import SceneEncoder

_LEARNING_RATE, _WEIGHT_DECAY = 3e-3, 1e-2
_GUIDE_VARIANCE = 0.2  # mean squared difference of components at which the weight of a neighbour falls to 1/e
_CHUNK = 16384  # pixels classified at a time
_BATCH = 1024  # samples of a training step, at most
_FEATURE_CHUNK = 64  # features whose moments are summed at a time
_MIN_DEVIATION = 1e-6  # of a feature


@dataclass(frozen=True)
class Options:
    """Options of the few-shot step.

    Attributes:
        use_encoder: whether to use the features of the encoder.
        window_sizes: edges in pixels, odd, of the squares over which components are averaged.
        head_count: number of heads that vote.
        steps: training steps of each head.
        logit_scale: factor of the cosines in the logits.
        noise_std: standard deviation of the noise added to standardised features in training.
        smoothing_radius: radius in pixels of the neighbourhood over which probabilities are averaged; 0 for none.
    """

    use_encoder: bool = True
    window_sizes: tuple[int, ...] = (5, 13)
    head_count: int = 3
    steps: int = 150
    logit_scale: float = 10.0
    noise_std: float = 0.3
    smoothing_radius: int = 3


class PromptHead(nn.Module):
    """Maps features to cosines with the class prompts, unit vectors (classes, prompts, width)."""

    def __init__(self, feature_count: int, text_features: Tensor) -> None:
        super().__init__()
        width = text_features.shape[-1]
        self.projection = nn.Sequential(nn.Linear(feature_count, width), nn.GELU(), nn.Linear(width, width))
        self.prompts: Tensor
        self.register_buffer("prompts", text_features)
        self.prompt_shift = nn.Parameter(torch.zeros(text_features.shape[0], 1, width))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines of features (n, features) with the prompts, (n, classes, prompts)."""
        prompts = functional.normalize(self.prompts + self.prompt_shift, dim=-1)
        return torch.einsum("nw,kpw->nkp", functional.normalize(self.projection(features), dim=-1), prompts)


@dataclass(frozen=True)
class PixelFeatures:
    """Features of every pixel of a window (features, h, w), which do not depend on the classes; the components by which
    neighbours are compared (components, h, w); and which pixels are valid (h, w)."""

    features: Tensor
    guide: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SampleFeatures:
    """Features of samples and of the pixels around them.

    Attributes:
        features, guide: as in ``PixelFeatures``, of single pixels, (pixels, features) and (pixels, components).
        neighbour_indices: of the pixels in the square around each sample, row by row, (n, edge²); -1 for invalid ones.
    """

    features: Tensor
    guide: Tensor
    neighbour_indices: Tensor

    @classmethod
    def at_pixels(
        cls, pixels: PixelFeatures, rows: np.ndarray, columns: np.ndarray, options: Options
    ) -> SampleFeatures:
        """Features of the valid pixels at rows and columns (n,) of a window."""
        height, width = pixels.valid.shape
        steps = np.arange(-options.smoothing_radius, options.smoothing_radius + 1)
        down, across = rows[:, None, None] + steps[:, None], columns[:, None, None] + steps
        indices = torch.from_numpy(down.clip(0, height - 1) * width + across.clip(0, width - 1))
        inside = torch.from_numpy((down >= 0) & (down < height) & (across >= 0) & (across < width))
        indices = indices.flatten(1).to(pixels.valid.device)
        valid = inside.flatten(1).to(indices.device) & pixels.valid.flatten()[indices]
        used, neighbours = indices.unique(return_inverse=True)
        return cls(
            pixels.features.flatten(1)[:, used].T.contiguous(),
            pixels.guide.flatten(1)[:, used].T.contiguous(),
            torch.where(valid, neighbours, -1),
        )

    @classmethod
    def concatenated(cls, parts: Sequence[SampleFeatures], indices: Sequence[np.ndarray]) -> SampleFeatures:
        """Features from several windows in the order of the samples, of which each part has those of some indices."""
        neighbours, count = [], 0
        for part in parts:
            neighbours.append(torch.where(part.neighbour_indices < 0, -1, part.neighbour_indices + count))
            count += len(part.features)
        order = torch.from_numpy(np.argsort(np.concatenate(indices))).to(neighbours[0].device)
        features, guide = torch.cat([part.features for part in parts]), torch.cat([part.guide for part in parts])
        return cls(features, guide, torch.cat(neighbours)[order])

    def subset(self, indices: np.ndarray) -> SampleFeatures:
        """The samples with these indices."""
        neighbours = self.neighbour_indices
        return replace(self, neighbour_indices=neighbours[torch.from_numpy(indices).to(neighbours.device)])

    @property
    def centres(self) -> Tensor:
        """Indices of the pixels of the samples, (n,)."""
        return self.neighbour_indices[:, self.neighbour_indices.shape[1] // 2]


class FeatureMoments:
    """Means and deviations of features over a scene that is read in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._sums = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor, inside: Tensor) -> None:
        """Adds the pixels of features (features, height, width) where ``inside`` (height, width) is true."""
        parts = [part[:, inside] for part in features.split(_FEATURE_CHUNK)]
        sums = [torch.stack([part.sum(dim=1), part.square().sum(dim=1)]) for part in parts]
        self._count += int(inside.sum())
        self._sums = self._sums + torch.cat(sums, dim=1).cpu().double()

    def mean_and_inverse_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mean of each feature, and 1 / its standard deviation, (features,)."""
        mean, square = self._sums / max(self._count, 1)
        deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=_MIN_DEVIATION)
        return mean.float().to(device), (1 / deviation).float().to(device)


@dataclass
class HeadEnsemble:
    """Heads that vote, fitted to a few samples, and what standardises the features over the scene."""

    heads: list[PromptHead]
    mean: Tensor
    inverse_std: Tensor
    options: Options

    @torch.inference_mode()
    def predict_pixels(self, pixels: PixelFeatures, context: Context) -> np.ndarray:
        """Probabilities of the classes, float32 (classes, h, w). A part of a scene that begins at a multiple of
        ``windows.STRIDE`` pixels gives the same as the whole scene, except within ``encoder.margin`` of its edges."""
        probabilities = self._probabilities(pixels.features.flatten(1).T, context).T.reshape(-1, *pixels.valid.shape)
        return bilateral_mean(probabilities, pixels, self.options.smoothing_radius, context).cpu().numpy()

    @torch.inference_mode()
    def predict_samples(self, samples: SampleFeatures, context: Context) -> np.ndarray:
        """Probabilities as in ``predict_pixels``, of samples only, float32 (n, classes)."""
        inside = samples.neighbour_indices >= 0
        pixels, indices = samples.neighbour_indices.clamp(min=0).unique(return_inverse=True)
        probabilities = self._probabilities(samples.features[pixels], context)[indices]
        guide = samples.guide[pixels]
        difference = (guide[indices] - samples.guide[samples.centres][:, None]).square().mean(dim=2) / _GUIDE_VARIANCE
        distance = _square_distances(self.options.smoothing_radius).flatten().to(difference.device)
        weights = torch.exp(-difference - distance) * inside
        total = torch.einsum("nl,nlk->nk", weights, probabilities)
        return (total / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)).cpu().numpy()

    def _probabilities(self, features: Tensor, context: Context) -> Tensor:
        """Probabilities (n, classes) of pixels (n, features) without smoothing, the mean of the heads."""
        parts = []
        for part in features.split(_CHUNK):
            context.raise_if_cancelled()
            standardised = (part - self.mean) * self.inverse_std
            logits = (self.options.logit_scale * head(standardised) for head in self.heads)
            # The probability of a class is the sum over its prompts.
            votes = [each.flatten(1).softmax(dim=1).reshape(each.shape).sum(dim=2) for each in logits]
            parts.append(torch.stack(votes).mean(dim=0))
        return torch.cat(parts)


def fit_heads(
    samples: SampleFeatures,
    labels: np.ndarray,
    text_features: Tensor,
    standardisation: tuple[Tensor, Tensor],
    *,
    seed: int = 0,
    context: Context,
    options: Options = Options(),
) -> HeadEnsemble:
    """Fits heads to features of a few samples with the same options.

    Args:
        samples, labels: their features, and their classes from 0, (n,); each class has a sample.
        text_features: unit vectors of the prompts of the classes, (classes, prompts, width).
        standardisation: mean and inverse standard deviation of the features, from ``FeatureMoments``.
        seed: of weights, batches and noise.
        context: receives progress; may cancel.
        options: of the fit.
    """
    mean, inverse_std = standardisation
    features = (samples.features[samples.centres] - mean) * inverse_std
    targets = torch.from_numpy(labels).long().to(features.device)
    heads = []
    for member in range(options.head_count):
        head_context = context.subrange(100 * member / options.head_count, 100 * (member + 1) / options.head_count)
        heads.append(_train_head(features, targets, text_features, options, seed * 1000 + member, head_context))
    return HeadEnsemble(heads, mean, inverse_std, options)


def pixel_features(
    encoder: SceneEncoder, modalities: Sequence[np.ndarray], valid: np.ndarray, options: Options, context: Context
) -> PixelFeatures:
    """Features of every pixel of modalities, standardised as in the encoder's training, without NaN, float32
    (bands, height, width), where ``valid`` (height, width). Raises ClippanError if they are not those of the encoder.
    """
    encoder.check_band_count(tuple(map(len, modalities)))
    mask = torch.from_numpy(valid).to(encoder.device)
    components = torch.cat([scene_encoder.project(encoder.network, *each) for each in enumerate(modalities)]) * mask
    features = [windows.masked_mean(components, mask, size // 2) for size in options.window_sizes]
    if options.use_encoder:
        features.append(scene_encoder.encoder_features(encoder, modalities, context))
    return PixelFeatures(torch.cat(features), windows.masked_mean(components, mask, 1), mask)


def bilateral_mean(probabilities: Tensor, pixels: PixelFeatures, radius: int, context: Context) -> Tensor:
    """Probabilities (classes, height, width), averaged over the valid neighbours of each pixel with weights that fall
    with the distance and with the difference of components (a bilateral filter, Tomasi and Manduchi 1998)."""
    if not radius:
        return probabilities
    valid, guide = pixels.valid.float(), pixels.guide
    padded, padded_guide, padded_valid = (functional.pad(each, [radius] * 4) for each in (probabilities, guide, valid))
    height, width = valid.shape
    total, weights, distance = torch.zeros_like(probabilities), torch.zeros_like(valid), _square_distances(radius)
    for down in range(2 * radius + 1):
        context.raise_if_cancelled()
        for across in range(2 * radius + 1):
            shifted = (..., slice(down, down + height), slice(across, across + width))
            difference = (padded_guide[shifted] - guide).square().mean(dim=0) / _GUIDE_VARIANCE
            weight = torch.exp(-difference - distance[down, across]) * padded_valid[shifted]
            total += weight * padded[shifted]
            weights += weight
    return total / weights.clamp(min=1e-9)


def _square_distances(radius: int) -> Tensor:
    """Squared distances in a square of ``2 radius + 1`` from its centre, as a share of ``(radius + 1)²``."""
    steps = torch.arange(-radius, radius + 1.0).square()
    return (steps[:, None] + steps) / (radius + 1) ** 2


def _train_head(
    features: Tensor, targets: Tensor, text_features: Tensor, options: Options, seed: int, context: Context
) -> PromptHead:
    """A head trained on samples, with the same total weight for each class."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    text_features = functional.normalize(text_features.float(), dim=-1).to(features.device)
    head = PromptHead(features.shape[1], text_features).to(features.device)
    optimiser = torch.optim.AdamW(head.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    weights = 1 / torch.bincount(targets, minlength=len(text_features))[targets]
    for step in range(options.steps):
        context.progress(100 * step / options.steps, "Training on the samples")
        batch: Union[slice, Tensor] = slice(None)
        if len(features) > _BATCH:
            batch = torch.randperm(len(features), generator=generator)[:_BATCH].to(features.device)
        inputs, labels, weight = features[batch], targets[batch], weights[batch]
        noise = torch.randn(inputs.shape, generator=generator).to(inputs.device)
        logits = options.logit_scale * head(inputs + options.noise_std * noise)
        # Every prompt of the class is correct: the mean of their log-probabilities among the prompts of all classes.
        log_probabilities = functional.log_softmax(logits.flatten(1), dim=1).reshape(logits.shape).mean(dim=2)
        loss = -(weight * log_probabilities.gather(1, labels[:, None])[:, 0]).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.eval()

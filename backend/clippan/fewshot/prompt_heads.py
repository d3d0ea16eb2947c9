"""The few-shot step of DiffCLIP: pixels, as a pre-trained encoder sees them, are aligned with the words of the classes.

What is known of a pixel is what the encoder says of it at the diffusion's time 0, and the local means of its
components. Small heads bring that into the space of the class prompts. Their loss is a cross-entropy over all prompts,
in which every prompt of a sample's class is right; the authors' in-batch contrast takes two samples of a class for
negatives of each other. Several heads vote, and a pixel's probabilities are averaged with those of similar neighbours;
both are our own. All is fixed by the seed, and no sample beyond the shots is used to choose anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.context import Context
from clippan.fewshot import scene_encoder, windows
from clippan.fewshot.scene_encoder import SceneEncoder

_WIDTH = 256  # of class vectors that are learned because there are no words
_RATE, _DECAY = 3e-3, 1e-2
_GUIDE_VARIANCE = 0.2  # mean squared difference of components from which a neighbour counts less
_ROWS = 16384  # pixels that a head sees at a time
_BATCH = 1024  # samples of a step; where there are more, so many are drawn
_PART = 64  # features whose moments are summed at a time
_FLAT = 1e-6  # deviation of a feature that says nothing


@dataclass(frozen=True)
class Options:
    """What the few-shot step does.

    Attributes:
        encoded: use what the encoder says.
        scales: edges of the squares whose means of the components are used, odd.
        members: heads that vote.
        steps: of each head's training.
        sharpness: what cosines are multiplied by.
        jitter: deviation of the noise on the features in training, in their own deviations.
        smooth: radius of the neighbourhood over which probabilities are averaged, in pixels; 0 for none.
    """

    encoded: bool = True
    scales: tuple[int, ...] = (5, 13)
    members: int = 3
    steps: int = 150
    sharpness: float = 10.0
    jitter: float = 0.3
    smooth: int = 3


class PromptHead(nn.Module):
    """From features to cosines with class prompts.

    Args:
        features: how many.
        texts: prompts of the classes, of length 1, (classes, prompts, width).
    """

    def __init__(self, features: int, texts: Tensor) -> None:
        super().__init__()
        width = texts.shape[-1]
        self.projection = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.prompts: Tensor
        self.register_buffer("prompts", texts)
        self.prompt_shift = nn.Parameter(torch.zeros(texts.shape[0], 1, width))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines of features (n, features) with the prompts, (n, classes, prompts)."""
        prompts = functional.normalize(self.prompts + self.prompt_shift, dim=-1)
        return torch.einsum("nw,kpw->nkp", functional.normalize(self.projection(features), dim=-1), prompts)


@dataclass(frozen=True)
class PixelFeatures:
    """What is known of every pixel of a picture, before anything is known of classes.

    Attributes:
        features: (features, height, width).
        guide: the components, by which neighbours are compared, (components, height, width).
        valid: which pixels show something, bool (height, width).
    """

    features: Tensor
    guide: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SampleFeatures:
    """What is known of samples and of the pixels about them.

    Attributes:
        features, guide: as of a ``PixelFeatures``, of single pixels, (pixels, features) and (pixels, components).
        about: which of these pixels lie in the square about each sample, row by row; -1 where nothing is valid, (n,
            edge²).
    """

    features: Tensor
    guide: Tensor
    neighbours: Tensor

    @classmethod
    def at_pixels(
        cls, pixels: PixelFeatures, rows: np.ndarray, columns: np.ndarray, options: Options
    ) -> SampleFeatures:
        """Those of a picture.

        Args:
            pixels: it.
            rows, columns: of valid pixels, (n,).
            options: as fitted.
        """
        height, width = pixels.valid.shape
        steps = np.arange(-options.smooth, options.smooth + 1)
        down = np.asarray(rows)[:, None, None] + steps[:, None]
        across = np.asarray(columns)[:, None, None] + steps
        places = torch.from_numpy(down.clip(0, height - 1) * width + across.clip(0, width - 1))
        inside = torch.from_numpy((down >= 0) & (down < height) & (across >= 0) & (across < width))
        places = places.flatten(1).to(pixels.valid.device)
        there = inside.flatten(1).to(places.device) & pixels.valid.flatten()[places]
        used, neighbours = places.unique(return_inverse=True)
        return cls(
            pixels.features.flatten(1)[:, used].T.contiguous(),
            pixels.guide.flatten(1)[:, used].T.contiguous(),
            torch.where(there, neighbours, -1),
        )

    @classmethod
    def concatenated(cls, parts: Sequence[SampleFeatures], numbers: Sequence[np.ndarray]) -> SampleFeatures:
        """Those of several pictures, in the order of the samples' numbers, of which each part has some."""
        about, before = [], 0
        for part in parts:
            about.append(torch.where(part.neighbours < 0, -1, part.neighbours + before))
            before += len(part.features)
        order = torch.from_numpy(np.argsort(np.concatenate(numbers))).to(about[0].device)
        features, guide = torch.cat([part.features for part in parts]), torch.cat([part.guide for part in parts])
        return cls(features, guide, torch.cat(about)[order])

    def subset(self, numbers: np.ndarray) -> SampleFeatures:
        """Some of the samples."""
        return replace(self, neighbours=self.neighbours[torch.from_numpy(numbers).to(self.neighbours.device)])

    @property
    def centres(self) -> Tensor:
        """Which pixels the samples are, (n,)."""
        return self.neighbours[:, self.neighbours.shape[1] // 2]


class FeatureMoments:
    """Means and deviations of features over a scene that comes in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Optional[Tensor] = None

    def add(self, features: Tensor, inside: Tensor) -> None:
        """Adds the pixels (height, width) of features (features, height, width) that are inside."""
        parts = [part[:, inside] for part in features.split(_PART)]
        sums = [torch.stack([part.sum(dim=1), part.square().sum(dim=1)]) for part in parts]
        total = torch.cat(sums, dim=1).cpu().double()
        self._count += int(inside.sum())
        self._sums = total if self._sums is None else self._sums + total

    def mean_and_scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mean of each feature, and 1 over its deviation, (features,)."""
        assert self._sums is not None
        mean, square = self._sums / max(self._count, 1)
        deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=_FLAT)
        return mean.float().to(device), (1 / deviation).float().to(device)


@dataclass
class HeadEnsemble:
    """A map maker that has learned a few samples.

    Attributes:
        heads: that vote.
        mean, scale: of the features over the scene.
        options: as fitted.
    """

    heads: list[PromptHead]
    mean: Tensor
    scale: Tensor
    options: Options

    @torch.inference_mode()
    def map(self, pixels: PixelFeatures, context: Context) -> np.ndarray:
        """Probabilities of the classes, float32 (classes, height, width).

        A part of a scene gives the same as the whole, ``encoder.margin`` away from the part's edges, if it begins at a
        multiple of ``windows.STRIDE`` pixels.

        Raises:
            Cancelled: the user wants no more of it.
        """
        found = self._probabilities(pixels.features.flatten(1).T, context)
        shares = found.T.reshape(-1, *pixels.valid.shape)
        return bilateral_mean(shares, pixels, self.options.smooth, context).cpu().numpy()

    @torch.inference_mode()
    def at_samples(self, samples: SampleFeatures, context: Context) -> np.ndarray:
        """What ``map`` says of samples alone, float32 (n, classes).

        Raises:
            Cancelled: the user wants no more of it.
        """
        inside = samples.neighbours >= 0
        pixels, places = samples.neighbours.clamp(min=0).unique(return_inverse=True)
        shares, guide = self._probabilities(samples.features[pixels], context)[places], samples.guide[pixels]
        unlike = (guide[places] - samples.guide[samples.centres][:, None]).square().mean(dim=2) / _GUIDE_VARIANCE
        weights = torch.exp(-unlike - _square_distances(self.options.smooth).flatten().to(unlike.device)) * inside
        found = torch.einsum("nl,nlk->nk", weights, shares) / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return found.cpu().numpy()

    def _probabilities(self, features: Tensor, context: Context) -> Tensor:
        """Probabilities (n, classes) of pixels (n, features), before they are smoothed."""
        parts = []
        for part in features.split(_ROWS):
            context.check()
            ready = (part - self.mean) * self.scale
            votes = [_head_probabilities(head, ready, self.options.sharpness) for head in self.heads]
            parts.append(torch.stack(votes).mean(dim=0))
        return torch.cat(parts)


def fit_heads(
    samples: SampleFeatures,
    labels: np.ndarray,
    texts: Optional[Tensor],
    standard: tuple[Tensor, Tensor],
    *,
    seed: int = 0,
    context: Context,
    options: Options = Options(),
) -> HeadEnsemble:
    """Learns from a few samples.

    Args:
        samples: the samples, looked at with the same options.
        labels: their classes from 0, (n,); each class has a sample.
        texts: prompts of the classes, of length 1, (classes, prompts, width); None learns vectors of classes.
        standard: mean and scale of the features, see ``FeatureMoments``.
        seed: of what is drawn.
        context: hears of progress, and may cancel.
        options: what is done.

    Raises:
        Cancelled: the user wants no more of it.
    """
    mean, scale = standard
    features = (samples.features[samples.centres] - mean) * scale
    truth = torch.from_numpy(np.asarray(labels)).long().to(features.device)
    heads = []
    for member in range(options.members):
        inner = context.part(100 * member / options.members, 100 * (member + 1) / options.members)
        heads.append(_train_head(features, truth, texts, options, seed * 1000 + member, inner))
    return HeadEnsemble(heads, mean, scale, options)


def pixel_features(
    encoder: SceneEncoder, modalities: Sequence[np.ndarray], valid: np.ndarray, options: Options, context: Context
) -> PixelFeatures:
    """What is known of every pixel.

    Args:
        encoder: pre-trained on the scene.
        modalities: standardised as the encoder's scene was, without NaN, float32 (bands, height, width).
        valid: which pixels show something, bool (height, width).
        options: what is done.
        context: may cancel.

    Raises:
        ClippanError: the modalities are not the encoder's.
        Cancelled: the user wants no more of it.
    """
    encoder.check_modalities(modalities)
    there = torch.from_numpy(valid).to(encoder.device)
    guide = torch.cat([scene_encoder.project(encoder.network, *each) for each in enumerate(modalities)]) * there
    found = [windows.masked_mean(guide, there, size // 2) for size in options.scales]
    if options.encoded:
        found.append(scene_encoder.encoder_features(encoder, modalities, context))
    return PixelFeatures(torch.cat(found), windows.masked_mean(guide, there, 1), there)


def bilateral_mean(shares: Tensor, pixels: PixelFeatures, radius: int, context: Context) -> Tensor:
    """Probabilities (classes, height, width), averaged over a pixel's valid neighbours, those of similar components
    counting most (a bilateral filter, Tomasi and Manduchi 1998)."""
    if not radius:
        return shares
    there, guide = pixels.valid.float(), pixels.guide
    wide, around, counted = (functional.pad(each, [radius] * 4) for each in (shares, guide, there))
    height, width = there.shape
    total, weight, away = torch.zeros_like(shares), torch.zeros_like(there), _square_distances(radius)
    for down in range(2 * radius + 1):
        context.check()
        for across in range(2 * radius + 1):
            at = (..., slice(down, down + height), slice(across, across + width))
            unlike = (around[at] - guide).square().mean(dim=0) / _GUIDE_VARIANCE
            share = torch.exp(-unlike - away[down, across]) * counted[at]
            total += share * wide[at]
            weight += share
    return total / weight.clamp(min=1e-9)


def _square_distances(radius: int) -> Tensor:
    """Square distances in a neighbourhood of ``2 radius + 1``, as a part of the nearest that is outside."""
    steps = torch.arange(-radius, radius + 1.0).square()
    return (steps[:, None] + steps) / (radius + 1) ** 2


def _train_head(
    features: Tensor, truth: Tensor, texts: Optional[Tensor], options: Options, seed: int, context: Context
) -> PromptHead:
    """A head that has learned samples, each class counting the same."""
    chance = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    if texts is None:
        texts = torch.randn(int(truth.max()) + 1, 1, _WIDTH, generator=chance)
    texts = functional.normalize(texts.float(), dim=-1).to(features.device)
    head = PromptHead(features.shape[1], texts).to(features.device)
    optimiser = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=_DECAY)
    weights = 1 / torch.bincount(truth, minlength=len(texts))[truth]
    for step in range(options.steps):
        context.progress(100 * step / options.steps, "Learning the samples")
        few = len(features) <= _BATCH
        drawn = slice(None) if few else torch.randperm(len(features), generator=chance)[:_BATCH].to(features.device)
        seen, own, weight = features[drawn], truth[drawn], weights[drawn]
        noise = torch.randn(seen.shape, generator=chance).to(seen.device)
        logits = options.sharpness * head(seen + options.jitter * noise)
        # Every prompt of the class is right: the mean of their log-probabilities among the prompts of all classes.
        right = functional.log_softmax(logits.flatten(1), dim=1).reshape(logits.shape).mean(dim=2)
        total = -(weight * right.gather(1, own[:, None])[:, 0]).sum() / weight.sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return head.eval()


def _head_probabilities(head: PromptHead, features: Tensor, sharpness: float) -> Tensor:
    """Probabilities (n, classes): those of a class's prompts together."""
    logits = sharpness * head(features)
    return logits.flatten(1).softmax(dim=1).reshape(logits.shape).sum(dim=2)

"""The few-shot step of DiffCLIP: pixels, as a pre-trained encoder sees them, are aligned with the words of the classes.

What is known of a pixel is what the encoder says of it at the diffusion's time 0, and the local means of its
components. Small heads bring that into the space of the class prompts. Their loss is a cross-entropy over all prompts,
in which every prompt of a sample's class is right; the authors' in-batch contrast takes two samples of a class for
negatives of each other. Several heads vote, and a pixel's probabilities are averaged with those of similar neighbours;
both are our own. (Labels passed on to similar pixels over a graph, from which heads learned as well, cost up to four
points, and were left out again.) All is fixed by the seed, and no sample beyond the shots is used to choose anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fewshot import diffusion, windows
from clippan.fewshot.diffusion import Encoder
from clippan.jobs.base import Context
from clippan.raster.tiles import tiles

_TILE = 256  # a multiple of the windows' stride
_WIDTH = 256  # of class vectors that are learned because there are no words
_RATE, _DECAY = 3e-3, 1e-2
_UNLIKE = 0.2  # mean squared difference of components from which a neighbour counts less
_ROWS = 16384  # pixels that a head sees at a time
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


class Head(nn.Module):
    """From features to cosines with class prompts.

    Args:
        features: how many.
        texts: prompts of the classes, of length 1, (classes, prompts, width).
    """

    def __init__(self, features: int, texts: Tensor) -> None:
        super().__init__()
        width = texts.shape[-1]
        self.map = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.prompts: Tensor
        self.register_buffer("prompts", texts)
        self.moved = nn.Parameter(torch.zeros(texts.shape[0], 1, width))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines of features (n, features) with the prompts, (n, classes, prompts)."""
        prompts = functional.normalize(self.prompts + self.moved, dim=-1)
        return torch.einsum("nw,kpw->nkp", functional.normalize(self.map(features), dim=-1), prompts)


@dataclass(frozen=True)
class Sight:
    """What is known of every pixel of a picture, before anything is known of classes.

    Attributes:
        features: (features, height, width).
        guide: the components, by which neighbours are compared, (components, height, width).
        valid: which pixels show something, bool (height, width).
    """

    features: Tensor
    guide: Tensor
    valid: Tensor


@dataclass
class Classifier:
    """A map maker that has learned a few samples.

    Attributes:
        encoder: that sees the pixels.
        heads: that vote.
        mean, scale: of the features over the scene.
        options: as fitted.
    """

    encoder: Encoder
    heads: list[Head]
    mean: Tensor
    scale: Tensor
    options: Options

    def predict(self, modalities: Sequence[np.ndarray], valid: np.ndarray, context: Context) -> np.ndarray:
        """Probabilities of the classes, float32 (classes, height, width), NaN where a pixel is not valid.

        A part of a scene gives the same as the whole, ``encoder.margin`` away from the part's edges, if it begins at a
        multiple of ``windows.STRIDE`` pixels.

        Args:
            modalities: standardised as the encoder's scene was, float32 (bands, height, width).
            valid: which pixels show something, bool (height, width).
            context: hears of progress, and may cancel.

        Raises:
            ClippanError: the modalities are not the encoder's.
            Cancelled: the user wants no more of it.
        """
        self.encoder.fits(modalities)
        height, width = valid.shape
        margin = self.encoder.margin
        out = np.full((len(self.heads[0].prompts), height, width), np.nan, np.float32)
        found = tiles(width, height, _TILE)
        for number, tile in enumerate(found):
            context.progress(100 * number / len(found), "Telling pixels apart")
            top, left = max(tile.y - margin, 0), max(tile.x - margin, 0)
            down = slice(top, tile.y + tile.height + margin)
            across = slice(left, tile.x + tile.width + margin)
            near = [values[:, down, across] for values in modalities]
            sight = look(self.encoder, near, valid[down, across], self.options, context)
            shares = self.judge(sight, context)[:, tile.y - top :, tile.x - left :]
            own = np.s_[:, tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
            out[own] = shares[:, : tile.height, : tile.width]
        out[:, ~valid] = np.nan
        return out

    @torch.inference_mode()
    def judge(self, sight: Sight, context: Context) -> np.ndarray:
        """The same of what has been looked at, without NaN."""
        ready = (sight.features.flatten(1).T - self.mean) * self.scale
        shares = torch.zeros(len(ready), len(self.heads[0].prompts), device=ready.device)
        for head in self.heads:
            context.check()
            shares += _shares(head, ready, self.options.sharpness)
        found = (shares / len(self.heads)).T.reshape(-1, *sight.valid.shape)
        return smoothed(found, sight, self.options.smooth, context).cpu().numpy()


def fit(
    encoder: Encoder,
    modalities: Sequence[np.ndarray],
    valid: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    labels: np.ndarray,
    texts: Optional[Tensor],
    *,
    seed: int = 0,
    device: Optional[torch.device] = None,
    context: Context,
    options: Options = Options(),
) -> Classifier:
    """Learns from a few samples.

    Args:
        encoder: pre-trained on the scene.
        modalities: standardised as the encoder's scene was, without NaN, float32 (bands, height, width).
        valid: which pixels show something, bool (height, width).
        rows, columns: of the samples, (n,).
        labels: their classes from 0, (n,); each class has a sample.
        texts: prompts of the classes, of length 1, (classes, prompts, width); None learns vectors of classes.
        seed: of what is drawn.
        device: where the encoder is, and is not otherwise used.
        context: hears of progress, and may cancel.
        options: what is done.

    Raises:
        ClippanError: the modalities are not the encoder's.
        Cancelled: the user wants no more of it.
    """
    context.progress(0, "Looking at the scene")
    sight = look(encoder, modalities, valid, options, context.part(0, 40))
    after = context.part(40, 100)
    return learn(encoder, sight, rows, columns, labels, texts, seed=seed, context=after, options=options)


def learn(
    encoder: Encoder,
    sight: Sight,
    rows: np.ndarray,
    columns: np.ndarray,
    labels: np.ndarray,
    texts: Optional[Tensor],
    *,
    seed: int = 0,
    context: Context,
    options: Options = Options(),
) -> Classifier:
    """``fit`` on what has been looked at with the same options, for those who learn several times from one picture."""
    wide = sight.valid.shape[1]
    known = sight.features.flatten(1).T
    seen = known[sight.valid.flatten()]
    mean, scale = seen.mean(dim=0), 1 / seen.std(dim=0).clamp(min=_FLAT)
    places = torch.from_numpy(np.asarray(rows) * wide + np.asarray(columns)).to(known.device)
    features = (known[places] - mean) * scale
    truth = torch.from_numpy(np.asarray(labels)).long().to(known.device)
    heads = []
    for member in range(options.members):
        inner = context.part(100 * member / options.members, 100 * (member + 1) / options.members)
        heads.append(_trained(features, truth, texts, options, seed * 1000 + member, inner))
    return Classifier(encoder, heads, mean, scale, options)


def look(
    encoder: Encoder, modalities: Sequence[np.ndarray], valid: np.ndarray, options: Options, context: Context
) -> Sight:
    """What is known of every pixel; see ``fit``.

    Raises:
        ClippanError: the modalities are not the encoder's.
        Cancelled: the user wants no more of it.
    """
    encoder.fits(modalities)
    there = torch.from_numpy(valid).to(encoder.device)
    guide = torch.cat([diffusion.projected(encoder.network, *each) for each in enumerate(modalities)]) * there
    found = [windows.smoothed(guide, there, size // 2) for size in options.scales]
    if options.encoded:
        found.append(diffusion.features(encoder, modalities, context))
    return Sight(torch.cat(found), windows.smoothed(guide, there, 1), there)


def smoothed(shares: Tensor, sight: Sight, radius: int, context: Context) -> Tensor:
    """Probabilities (classes, height, width), averaged over a pixel's valid neighbours, those of similar components
    counting most (a bilateral filter, Tomasi and Manduchi 1998)."""
    if not radius:
        return shares
    there, guide = sight.valid.float(), sight.guide
    wide, around, counted = (functional.pad(each, [radius] * 4) for each in (shares, guide, there))
    height, width = there.shape
    total, weight = torch.zeros_like(shares), torch.zeros_like(there)
    for down in range(2 * radius + 1):
        context.check()
        for across in range(2 * radius + 1):
            at = (..., slice(down, down + height), slice(across, across + width))
            unlike = (around[at] - guide).square().mean(dim=0) / _UNLIKE
            away = ((down - radius) ** 2 + (across - radius) ** 2) / (radius + 1) ** 2
            share = torch.exp(-unlike - away) * counted[at]
            total += share * wide[at]
            weight += share
    return total / weight.clamp(min=1e-9)


def _trained(
    features: Tensor, truth: Tensor, texts: Optional[Tensor], options: Options, seed: int, context: Context
) -> Head:
    """A head that has learned samples, each class counting the same."""
    chance = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    if texts is None:
        texts = torch.randn(int(truth.max()) + 1, 1, _WIDTH, generator=chance)
    texts = functional.normalize(texts.float(), dim=-1).to(features.device)
    head = Head(features.shape[1], texts).to(features.device)
    optimiser = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=_DECAY)
    weights = 1 / torch.bincount(truth, minlength=len(texts))[truth]
    for step in range(options.steps):
        context.progress(100 * step / options.steps, "Learning the samples")
        noise = torch.randn(features.shape, generator=chance).to(features.device)
        logits = options.sharpness * head(features + options.jitter * noise)
        # Every prompt of the class is right: the mean of their log-probabilities among the prompts of all classes.
        right = functional.log_softmax(logits.flatten(1), dim=1).reshape(logits.shape).mean(dim=2)
        total = -(weights * right.gather(1, truth[:, None])[:, 0]).sum() / weights.sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return head.eval()


def _shares(head: Head, features: Tensor, sharpness: float) -> Tensor:
    """Probabilities (n, classes): those of a class's prompts together."""
    parts = []
    for part in features.split(_ROWS):
        logits = sharpness * head(part)
        parts.append(logits.flatten(1).softmax(dim=1).reshape(logits.shape).sum(dim=2))
    return torch.cat(parts)

"""Pre-training of the few-shot encoder on a scene, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.fewshot import scene_encoder, windows
from clippan.fewshot.network import DIFFUSION_STEPS, NetworkSize
from clippan.fewshot.scene_encoder import project, untrained_encoder
from clippan.fewshot.stack import Stack
from clippan.learn.optimisation import optimiser_step, warmup_cosine

_TINY = 1e-6  # of the largest variance: less is none

STEPS, BATCH = 400, 64
_MASKED = 0.7  # of a window's pixels are hidden
_HIDDEN, _SEEN = 0.1, 1.0  # what their errors count
_RATE, _WARMUP, _DECAY = 1e-3, 50, 1e-4


def pretrain(
    modalities: Sequence[np.ndarray],
    valid: np.ndarray,
    *,
    steps: Optional[int] = None,
    batch: int = BATCH,
    seed: int = 0,
    device: torch.device,
    context: Context,
    size: NetworkSize = NetworkSize(),  # noqa: B008
) -> scene_encoder.SceneEncoder:
    """Trains an encoder on a scene, without labels.

    Args:
        modalities: standardised over the scene, without NaN, float32 (bands, height, width), on one grid.
        valid: which pixels show something, bool (height, width).
        steps: of the training, 400 by default.
        batch: windows in a step, those of all modalities counted.
        seed: of the weights, the windows, the noise and the masks.
        device: to compute on.
        context: hears of progress, and may cancel.
        size: of the network.

    Raises:
        ClippanError: no pixel is valid.
        Cancelled: the user wants no more of it.
    """
    steps = STEPS if steps is None else steps
    if not valid.any():
        raise ClippanError("No pixel is valid in all rasters; check their nodata values and that they overlap.")
    encoder = untrained_encoder(modalities, valid, size, seed, device)
    network = encoder.network.train()
    chance = torch.Generator().manual_seed(seed)
    half, length = size.window // 2, size.window**2
    scene = [windows.mirror_padded(project(network, number, values), half) for number, values in enumerate(modalities)]
    rows, columns = (torch.from_numpy(places) for places in np.nonzero(valid))
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, DIFFUSION_STEPS), dim=0).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    scheduler = warmup_cosine(optimiser, steps, _WARMUP)
    count = max(1, batch // len(scene))
    visible = max(1, round((1 - _MASKED) * length))
    losses = []
    for step in range(steps):
        if step % 5 == 0:
            context.progress(
                100 * step / steps, Message("Learning the scene, step {step} of {steps}", step=step + 1, steps=steps)
            )
        at = torch.randint(len(rows), (count,), generator=chance)
        time = torch.randint(DIFFUSION_STEPS, (count,), generator=chance).to(device)
        total, unknown = torch.zeros((), device=device), torch.zeros((), device=device)
        for number, values in enumerate(scene):
            clean = windows.extract(values, rows[at], columns[at], size.window)
            noise = torch.randn(clean.shape, generator=chance).to(device)
            share = kept[time][:, None, None]
            order = torch.rand(count, length, generator=chance).argsort(dim=1).to(device)
            tokens = network.encode(number, share.sqrt() * clean + (1 - share).sqrt() * noise, time, order[:, :visible])
            errors = (network.decode(number, tokens, order[:, :visible]) - clean).square().mean(dim=2)
            seen, hidden = (errors.gather(1, places).mean() for places in (order[:, :visible], order[:, visible:]))
            total = total + _SEEN * seen + _HIDDEN * hidden
            unknown = unknown + hidden.detach() / clean.square().mean().clamp(min=_TINY) / len(scene)
        optimiser_step(network, optimiser, scheduler, total)
        losses.append(unknown.item())
    network.eval()
    encoder.steps, encoder.loss = steps, float(np.mean(losses[-max(1, steps // 10) :])) if losses else math.nan
    return encoder


def pretrain_on(
    stack: Stack, steps: Optional[int], seed: int, device: torch.device, context: Context
) -> scene_encoder.SceneEncoder:
    modalities, valid = stack.training_patch(seed, context.subrange(0, 5))
    found = pretrain(modalities, valid, steps=steps, seed=seed, device=device, context=context.subrange(5, 100))
    found.means, found.scales = stack.means, stack.scales
    return found

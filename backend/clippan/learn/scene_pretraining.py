"""Pre-training of a scene encoder without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.fewshot import windows
from clippan.fewshot.network import DIFFUSION_STEPS, MaskDiffusion, NetworkSize
from clippan.fewshot.scene_encoder import SceneEncoder, mnf_projection, project
from clippan.fewshot.stack import Stack
from clippan.learn.optimisation import optimiser_step, warmup_cosine

_MIN_VARIANCE = 1e-6  # so that a window without contrast divides by no zero
_STEPS, _BATCH = 400, 64
_HIDDEN_SHARE = 0.7  # of the pixels of a window
_HIDDEN_WEIGHT, _VISIBLE_WEIGHT = 0.1, 1.0  # of the errors at hidden and visible pixels
_LEARNING_RATE, _WARMUP_STEPS, _WEIGHT_DECAY = 1e-3, 50, 1e-4


def pretrain(
    modalities: Sequence[np.ndarray],
    valid: np.ndarray,
    *,
    steps: Optional[int] = None,
    batch: int = _BATCH,
    seed: int = 0,
    device: torch.device,
    context: Context,
    size: NetworkSize = NetworkSize(),  # noqa: B008
) -> SceneEncoder:
    """Trains an encoder on a scene without labels. Raises ClippanError if no pixel is valid.

    Args:
        modalities: standardised over the scene, without NaN, float32 (bands, height, width), on one grid.
        valid: bool (height, width).
        steps: number of training steps, 400 by default.
        batch: windows of a step, over all modalities.
        seed: of the weights, windows, noise and masks.
        device: to compute on.
        context: receives progress; may cancel.
        size: of the network.
    """
    steps = _STEPS if steps is None else steps
    if not valid.any():
        raise ClippanError("No pixel is valid in all rasters; check their nodata values and that they overlap.")
    torch.manual_seed(seed)
    projections = [torch.from_numpy(mnf_projection(values, valid, size.components)) for values in modalities]
    network = MaskDiffusion(size, projections).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    half, length = size.window // 2, size.window**2
    scene = [windows.mirror_padded(project(network, number, values), half) for number, values in enumerate(modalities)]
    rows, columns = (torch.from_numpy(indices) for indices in np.nonzero(valid))
    signal_shares = torch.cumprod(1 - torch.linspace(1e-4, 0.02, DIFFUSION_STEPS), dim=0).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    scheduler = warmup_cosine(optimiser, steps, _WARMUP_STEPS)
    count = max(1, batch // len(scene))
    visible = max(1, round((1 - _HIDDEN_SHARE) * length))
    losses = []
    for step in range(steps):
        if step % 5 == 0:
            context.progress(
                100 * step / steps, Message("Pre-training, step {step} of {steps}", step=step + 1, steps=steps)
            )
        chosen = torch.randint(len(rows), (count,), generator=generator)
        time = torch.randint(DIFFUSION_STEPS, (count,), generator=generator).to(device)
        total, unexplained = torch.zeros((), device=device), torch.zeros((), device=device)
        for number, values in enumerate(scene):
            clean = windows.extract(values, rows[chosen], columns[chosen], size.window)
            noise = torch.randn(clean.shape, generator=generator).to(device)
            signal = signal_shares[time][:, None, None]
            order = torch.rand(count, length, generator=generator).argsort(dim=1).to(device)
            noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
            tokens = network.encode(number, noisy, time, order[:, :visible])
            errors = (network.decode(number, tokens, order[:, :visible]) - clean).square().mean(dim=2)
            at_visible = errors.gather(1, order[:, :visible]).mean()
            at_hidden = errors.gather(1, order[:, visible:]).mean()
            total = total + _VISIBLE_WEIGHT * at_visible + _HIDDEN_WEIGHT * at_hidden
            unexplained = unexplained + at_hidden.detach() / clean.square().mean().clamp(min=_MIN_VARIANCE) / len(scene)
        optimiser_step(network, optimiser, scheduler, total)
        losses.append(unexplained.item())
    loss = float(np.mean(losses[-max(1, steps // 10) :])) if losses else math.nan
    return SceneEncoder(network.eval(), device, steps, loss)


def pretrain_on_stack(
    stack: Stack, steps: Optional[int], seed: int, device: torch.device, context: Context
) -> SceneEncoder:
    """Trains an encoder on a stack, whose means and standard deviations it remembers."""
    modalities, valid = stack.read_training_mosaic(seed, context.subrange(0, 5))
    encoder = pretrain(modalities, valid, steps=steps, seed=seed, device=device, context=context.subrange(5, 100))
    return replace(encoder, means=stack.means, inverse_stds=stack.inverse_stds)

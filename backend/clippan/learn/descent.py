"""A step of an optimiser, as all trainings here take it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_CLIP = 1.0  # greatest norm of a gradient


def rate(step: int, steps: int, greatest: float, warmup: int) -> float:
    """The learning rate of a step: it rises to the greatest in the steps of the warm-up, and falls to 0 as a cosine."""
    return greatest * min(1, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def descend(network: nn.Module, optimiser: torch.optim.Optimizer, total: Tensor, rate: float) -> None:
    """Goes a step down the gradient of a loss."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    total.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
    if torch.isfinite(norm):  # a patch without contrast must not spoil the network
        optimiser.step()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, past: float) -> None:
    """Brings the running average of a network's weights nearer to it; ``past`` is its share in what comes out."""
    for kept, new in zip(average.parameters(), network.parameters()):
        kept.lerp_(new, 1 - past)

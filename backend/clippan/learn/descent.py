"""A step of an optimiser, its learning rate and the running average of weights, as all trainings here have them."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

_CLIP = 1.0  # greatest norm of a gradient


def warmup_cosine(optimiser: torch.optim.Optimizer, steps: int, warmup: int) -> LambdaLR:
    """A learning rate that rises to the optimiser's own in the steps of the warm-up, and falls to 0 as a cosine."""

    def factor(step: int) -> float:
        return min(1, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))

    return LambdaLR(optimiser, factor)


def descend(network: nn.Module, optimiser: torch.optim.Optimizer, scheduler: LambdaLR, total: Tensor) -> None:
    """Goes a step down the gradient of a loss."""
    optimiser.zero_grad()
    total.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
    if torch.isfinite(norm):  # a patch without contrast must not spoil the network
        optimiser.step()
    scheduler.step()


def running_average(network: nn.Module, decay: float, early: int = 0) -> AveragedModel:
    """An exponential moving average of a network's weights that begins with what they are now.

    Args:
        network: that will be trained.
        decay: share of the past in each update.
        early: with n updates so far the share is n / (n + early) at most, so that the start is soon forgotten.
    """

    def update(averages: PARAM_LIST, weights: PARAM_LIST, count: Union[Tensor, int]) -> None:
        share = min(decay, int(count) / (int(count) + early))
        get_ema_multi_avg_fn(share)(averages, weights, count)

    average = AveragedModel(network, multi_avg_fn=update).requires_grad_(False)
    average.update_parameters(network)  # the first of those that are averaged
    return average

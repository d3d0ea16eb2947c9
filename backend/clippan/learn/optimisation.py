"""What all training runs share: learning-rate schedule, optimiser step, running average of the weights."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

_MAX_GRADIENT_NORM = 1.0


def warmup_cosine(optimiser: torch.optim.Optimizer, steps: int, warmup: int) -> LambdaLR:
    """A learning rate that rises linearly to the optimiser's own during the warm-up, and falls to 0 as a cosine."""

    def factor(step: int) -> float:
        return min(1, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))

    return LambdaLR(optimiser, factor)


def optimiser_step(network: nn.Module, optimiser: torch.optim.Optimizer, scheduler: LambdaLR, loss: Tensor) -> None:
    """Takes one step on a loss, with the gradient clipped; skips it if the gradient is not finite."""
    optimiser.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
    if torch.isfinite(norm):  # a patch without contrast must not corrupt the network
        optimiser.step()
    scheduler.step()


def running_average(network: nn.Module, decay: float, warmup: int = 0) -> AveragedModel:
    """An exponential moving average of a network's weights, starting from the current ones.

    The share of the past in the n-th update is ``decay``, but at most n / (n + ``warmup``), so that the initial weights
    soon fade.
    """

    def update(averages: PARAM_LIST, weights: PARAM_LIST, count: Union[Tensor, int]) -> None:
        share = min(decay, int(count) / (int(count) + warmup))
        get_ema_multi_avg_fn(share)(averages, weights, count)

    average = AveragedModel(network, multi_avg_fn=update).requires_grad_(False)
    average.update_parameters(network)
    return average

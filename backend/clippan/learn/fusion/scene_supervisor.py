"""CLIP as the supervisor of an adaptation, with adapters trained on the scene itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.jobs.adapt import AdaptFusionRequest
from clippan.learn.fusion.adaptation import TimeBudget
from clippan.learn.fusion.clip_supervision import ClipSupervisor, load_frozen_clip
from clippan.learn.fusion.training_scene import TrainingScene

_ADAPTER_STEPS, _ADAPTER_LEARNING_RATE = 12, 1e-3  # steps and learning rate of CLIP's adapters
_ADAPTER_TIME_SHARE = 0.2  # of the time budget at most


def adapt_supervisor(
    request: AdaptFusionRequest,
    rgb_bands: Optional[Sequence[int]],
    scene: TrainingScene,
    device: torch.device,
    clock: TimeBudget,
    context: Context,
) -> ClipSupervisor:
    """The request's CLIP with adapters trained on patches of the scene (stage I)."""
    context.progress(0, "Loading CLIP")
    clip = load_frozen_clip(request.clip, device, context)
    torch.manual_seed(request.seed)
    supervisor = ClipSupervisor(clip, len(scene.mtf_gains), rgb_bands)
    optimiser = torch.optim.Adam(supervisor.trainable_parameters(), lr=_ADAPTER_LEARNING_RATE)
    for step in range(_ADAPTER_STEPS):
        if clock.elapsed > _ADAPTER_TIME_SHARE * clock.seconds:
            break
        context.progress(100 * (step + 1) / _ADAPTER_STEPS, "Adapting CLIP to the bands of the scene")
        batch = scene.full_batch(np.random.default_rng([request.seed, 1, step])).to(device)
        supervisor.adapter_step(batch, optimiser)
    return supervisor.requires_grad_(False)

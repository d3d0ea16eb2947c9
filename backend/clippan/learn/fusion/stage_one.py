"""Stage I of CLIPPan as a training run: a frozen CLIP gets adapters, which stage II needs as a supervisor.

Its folder holds the files of ``learn.loop`` and in the end ``stage_one.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clippan.core.context import Context
from clippan.learn.fusion import clip_supervision
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.clip_supervision import ClipSupervisor, FrozenCLIP
from clippan.learn.fusion.recipe import Recipe
from clippan.learn.fusion.sampler import BatchSampler
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import warmup_cosine

STAGE_ONE = "stage_one.safetensors"
STAGE_ONE_FOLDER = "stage_one"  # of its curves and checkpoint, below the folder of a run that also has stage II

_LOG_EVERY, _CHECKPOINT_EVERY = 50, 500  # steps


class AdapterRun(TrainingLoop):
    """Training of the adapters from a recipe by one process; resumes from a checkpoint.

    Attributes:
        supervisor: CLIP with the adapters.
    """

    def __init__(
        self,
        recipe: Recipe,
        sampler: BatchSampler,
        clip: FrozenCLIP,
        device: torch.device,
        folder: Path,
        context: Context,
    ) -> None:
        plan = recipe.language
        super().__init__(folder, plan.steps, 0, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        self._recipe, self._sampler, self._device = recipe, sampler, device
        torch.manual_seed(recipe.seed)
        prompts = clip_supervision.KHAN if plan.protocol == "khan" else clip_supervision.WALD
        self.supervisor = ClipSupervisor(clip, recipe.bands, prompts=prompts)
        self._optimiser = torch.optim.Adam(self.supervisor.trainable_parameters(), lr=plan.rate)
        self._scheduler = warmup_cosine(self._optimiser, plan.steps, warmup=0)
        self.resume(device)

    def sample_batch(self, step: int) -> PatchBatch:
        return self._sampler.adapter_batch(np.random.default_rng([self._recipe.seed, 1, step]))

    def train_step(self, step: int, batch: PatchBatch) -> Mapping[str, Tensor]:
        terms = self.supervisor.adapter_step(batch.to(self._device), self._optimiser, self._recipe.language.fusion_norm)
        self._scheduler.step()
        return terms

    def checkpointed(self) -> Mapping[str, Any]:
        return {
            "reducer": self.supervisor.reducer,
            "adapters": self.supervisor.adapters,
            "optimiser": self._optimiser,
            "scheduler": self._scheduler,
        }

    def save(self, path: Path) -> None:
        """Writes the adapters, with how they were trained."""
        plan = self._recipe.language
        about = {
            "stand_in": plan.stand_in,
            "fusion_norm": plan.fusion_norm,
            "steps": str(plan.steps),
            "seed": str(self._recipe.seed),
        }
        self.supervisor.save(path, about)


def trained_supervisor(
    recipe: Recipe,
    sampler: BatchSampler,
    device: torch.device,
    folder: Path,
    rank: int,
    world_size: int,
    context: Context,
) -> ClipSupervisor:
    """CLIP with its adapters, from the recipe's file, from the folder of this run, or trained now by the first process.

    Raises:
        ClippanError: CLIP cannot be loaded, or the adapters are for another CLIP or number of bands.
    """
    clip = clip_supervision.load_frozen_clip(recipe.language.clip, device, context)
    path = Path(recipe.language.adapters) if recipe.language.adapters else folder / STAGE_ONE
    if recipe.needs_stage_one:
        if rank == 0 and not path.exists():
            context.log("Stage I: adapting CLIP to the bands")
            (folder / STAGE_ONE_FOLDER).mkdir(exist_ok=True)
            stage_one = AdapterRun(recipe, sampler, clip, device, folder / STAGE_ONE_FOLDER, context)
            stage_one.train()
            stage_one.save(path)
            context.log("Stage II: training the network")
        if world_size > 1:  # the others load what the first has trained
            torch.distributed.barrier()
    return ClipSupervisor.load(path, clip, recipe.bands)

"""Training of fusion networks: supervised at reduced resolution, unsupervised at full resolution, or both at once.

With ``torchrun`` gradients are averaged over the processes. Besides the files of ``learn.loop``, the folder of a run
holds ``model.safetensors`` in the end, and ``stage_one.safetensors`` if CLIP supervises.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clippan import __version__
from clippan.core.context import Context
from clippan.core.messages import Message
from clippan.fusion import model, networks
from clippan.fusion.model import FusionModel
from clippan.learn.fusion import clip_supervision, losses
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.objective import Objective, Term
from clippan.learn.fusion.recipe import Recipe
from clippan.learn.fusion.sampler import BatchSampler
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

_LOG_EVERY, _CHECKPOINT_EVERY = 50, 500  # steps

MODEL, STAGE_ONE = "model.safetensors", "stage_one.safetensors"


class StepLoss(nn.Module):
    """The loss of a step as a module, so that DistributedDataParallel sees a single forward pass."""

    def __init__(self, network: nn.Module, objectives: Mapping[str, Objective], bfloat16: bool) -> None:
        super().__init__()
        self.network, self._objectives, self._bfloat16 = network, objectives, bfloat16

    def forward(self, batches: Mapping[str, PatchBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of the batches ``truth`` and ``scene``, and each term by name."""
        total, terms = None, {}
        for kind, batch in batches.items():
            with torch.autocast(batch.up.device.type, torch.bfloat16, enabled=self._bfloat16):
                fused = self.network(*batch.inputs)
            loss, parts = self._objectives[kind](batch, fused)
            total = loss if total is None else total + loss
            terms.update({f"{kind}.{name}": value for name, value in parts.items()})
        assert total is not None
        return total, terms


class FusionTraining(TrainingLoop):
    """Training of a network from a recipe by the process ``rank`` of ``world_size``; resumes from a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        sampler: BatchSampler,
        device: torch.device,
        folder: Path,
        rank: int,
        world_size: int,
        context: Context,
    ) -> None:
        super().__init__(folder, recipe.steps, rank, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        self._recipe, self._sampler, self._device, self._world_size = recipe, sampler, device, world_size
        torch.manual_seed(recipe.seed)
        self.network = networks.build(recipe.network, recipe.bands, **recipe.options).to(device)
        self._average = running_average(self.network, recipe.average, warmup=19)
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.rate, weight_decay=1e-4)
        self._scheduler = warmup_cosine(self._optimiser, recipe.steps, recipe.warmup)
        self._kinds = [kind for kind in ("truth", "scene") if getattr(recipe, kind).used]
        terms: dict[str, Term] = {}
        if recipe.teacher:
            terms["pseudo"] = partial(losses.pseudo_label_loss, teacher=model.load(recipe.teacher, device).network)
        if recipe.scene.language:
            terms["language"] = self._supervisor().direction_loss
        objectives = {kind: Objective(getattr(recipe, kind), **terms) for kind in self._kinds}
        self._step: nn.Module = StepLoss(self.network, objectives, recipe.precision == "bfloat16")
        if world_size > 1:
            self._step = nn.parallel.DistributedDataParallel(self._step)
        self.resume(device)

    def result(self) -> FusionModel:
        """The network with averaged weights."""
        recipe = self._recipe
        bands = 0 if networks.NETWORKS[recipe.network].any_bands else recipe.bands
        about = {
            "about": recipe.about,
            "trained": datetime.date.today().isoformat(),
            "steps": self._done,
            "seed": recipe.seed,
            "without": list(recipe.without),
            "version": __version__,
        }
        return FusionModel(self._average.module.eval(), recipe.network, recipe.options, bands, about)

    def sample_batch(self, step: int) -> dict[str, PatchBatch]:
        rng = np.random.default_rng([self._recipe.seed, self._rank, step])
        samplers = {"truth": self._sampler.reduced_batch, "scene": self._sampler.full_batch}
        return {kind: samplers[kind](rng) for kind in self._kinds}

    def train_step(self, step: int, batch: Mapping[str, PatchBatch]) -> dict[str, Tensor]:
        total, terms = self._step({kind: part.to(self._device) for kind, part in batch.items()})
        optimiser_step(self.network, self._optimiser, self._scheduler, total)
        self._average.update_parameters(self.network)
        return terms

    def checkpointed(self) -> Mapping[str, Any]:
        return {
            "network": self.network,
            "average": self._average,
            "optimiser": self._optimiser,
            "scheduler": self._scheduler,
        }

    def _supervisor(self) -> clip_supervision.ClipSupervisor:
        """CLIP with its adapters, from a file, from this run's folder, or trained now (stage I)."""
        plan, bands = self._recipe.language, self._recipe.bands
        clip = clip_supervision.load_frozen_clip(plan.clip, self._device, self._context)
        path = Path(plan.adapted) if plan.adapted else self._folder / STAGE_ONE
        if not plan.adapted:
            if self._rank == 0 and not path.exists():
                self._train_adapters(clip, path)
            if self._world_size > 1:  # the others load what the first has trained
                torch.distributed.barrier()
        return clip_supervision.ClipSupervisor.load(path, clip, bands)

    def _train_adapters(self, clip: clip_supervision.FrozenCLIP, path: Path) -> None:
        """Stage I; writes the adapters to a file."""
        plan = self._recipe.language
        prompts = clip_supervision.KHAN if plan.protocol == "khan" else clip_supervision.WALD
        supervisor = clip_supervision.ClipSupervisor(clip, self._recipe.bands, prompts=prompts)
        optimiser = torch.optim.Adam(supervisor.trainable_parameters(), lr=plan.rate)
        for step in range(plan.steps):
            rng = np.random.default_rng([self._recipe.seed, self._world_size, step])
            terms = supervisor.adapter_step(self._sampler.adapter_batch(rng, plan.batch).to(self._device), optimiser)
            self._context.raise_if_cancelled()
            if step % _LOG_EVERY == 0 or step == plan.steps - 1:
                losses = ", ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
                self._context.log(Message("Stage I, step {step}: {losses}", step=step + 1, losses=losses))
        supervisor.save(path)

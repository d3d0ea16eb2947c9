"""Training of fusion networks: supervised at reduced resolution, unsupervised at full resolution, or both at once.

With ``torchrun`` gradients are averaged over the processes. Besides the files of ``learn.loop``, the folder of a run
holds ``model.safetensors`` in the end.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from clippan import __version__
from clippan.core.context import Context
from clippan.fusion import model, networks
from clippan.fusion.model import FusionModel
from clippan.learn.fusion import losses
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.clip_supervision import ClipSupervisor
from clippan.learn.fusion.objective import Objective, Term
from clippan.learn.fusion.recipe import Recipe
from clippan.learn.fusion.sampler import BatchSampler
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

_LOG_EVERY, _CHECKPOINT_EVERY = 50, 500  # steps

MODEL = "model.safetensors"
SHIPPED = "shipped"  # how recipes call the model that comes with CLIPPan


class StepLoss(nn.Module):
    """The loss of a step as a module, so that DistributedDataParallel sees a single forward pass.

    Its parameters are all that is trained: those of the network, and of a learned φ if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        phi: Optional[losses.LearnedPanLoss],
        bfloat16: bool,
    ) -> None:
        super().__init__()
        self.network, self.phi, self._objectives, self._bfloat16 = network, phi, objectives, bfloat16

    def forward(self, batches: Mapping[str, Sequence[PatchBatch]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of the batches of ``truth`` and ``scene``, and each term by name.

        Batches of one kind, of different numbers of bands, count by how many bands they have in all patches, so that
        ``supervised`` is the mean over all bands.
        """
        total: Any = 0
        terms: dict[str, Any] = {}
        for kind, parts in batches.items():
            bands = [part.up.shape[:2].numel() for part in parts]
            for part, count in zip(parts, bands):
                with torch.autocast(part.up.device.type, torch.bfloat16, enabled=self._bfloat16):
                    fused = self.network(*part.inputs)
                loss, values = self._objectives[kind](part, fused)
                share = count / sum(bands)
                total = total + share * loss
                for name, value in values.items():
                    key = f"{kind}.{name}"
                    terms[key] = terms.get(key, 0) + share * value
        return total, terms


class FusionTraining(TrainingLoop):
    """Training of a network from a recipe by the process ``rank`` of ``world_size``; resumes from a checkpoint.

    Args:
        supervisor: CLIP with its adapters, for the loss ``language``.
    """

    def __init__(
        self,
        recipe: Recipe,
        sampler: BatchSampler,
        supervisor: Optional[ClipSupervisor],
        device: torch.device,
        folder: Path,
        rank: int,
        world_size: int,
        context: Context,
    ) -> None:
        super().__init__(folder, recipe.steps, rank, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        self._recipe, self._sampler, self._device = recipe, sampler, device
        torch.manual_seed(recipe.seed)
        self._start, self._supervisor = start_model(recipe, device), supervisor
        self._teacher = _named_model(recipe.teacher, device) if recipe.teacher else None
        self.network = self._start.network.requires_grad_(True).train()
        phi = losses.LearnedPanLoss(recipe.bands).to(device) if recipe.learns_phi else None
        terms: dict[str, Term] = {}
        scene_terms: dict[str, Term] = {}
        if self._teacher:
            terms["pseudo"] = partial(losses.pseudo_label_loss, teacher=self._teacher.network)
        if supervisor:
            scene_terms["language"] = supervisor.direction_loss
        if phi:
            scene_terms["spatial"] = phi
        self._kinds = [kind for kind in ("truth", "scene") if getattr(recipe, kind).used]
        objectives = {
            kind: Objective(getattr(recipe, kind), **terms, **(scene_terms if kind == "scene" else {}))
            for kind in self._kinds
        }
        self._trained = StepLoss(self.network, objectives, phi, recipe.precision == "bfloat16")
        self._average = running_average(self.network, recipe.average, warmup=19)
        self._optimiser = torch.optim.AdamW(self._trained.parameters(), lr=recipe.rate, weight_decay=1e-4)
        self._scheduler = warmup_cosine(self._optimiser, recipe.steps, recipe.warmup)
        self._step: nn.Module = self._trained
        if world_size > 1:
            self._step = nn.parallel.DistributedDataParallel(self._trained)
        self.resume(device)

    def result(self) -> FusionModel:
        """The network with averaged weights."""
        recipe, start = self._recipe, self._start
        about: dict[str, Any] = {
            "about": recipe.about,
            "trained": datetime.date.today().isoformat(),
            "steps": self._done,
            "seed": recipe.seed,
            "without": list(recipe.without),
            "version": __version__,
        }
        if start.sha256:
            about |= {"start": start.sha256, "start_about": dict(start.provenance)}
        if self._teacher:
            about["teacher"] = self._teacher.sha256
        if self._supervisor:
            about |= {"clip": self._supervisor.clip.name, "clip_sha256": self._supervisor.clip.sha256}
        return FusionModel(self._average.module.eval(), start.architecture, start.options, start.bands, about)

    def sample_batch(self, step: int) -> dict[str, list[PatchBatch]]:
        rng = np.random.default_rng([self._recipe.seed, self._rank, step])
        batches: dict[str, list[PatchBatch]] = {}
        for kind in self._kinds:
            batches[kind] = self._sampler.reduced_batches(rng) if kind == "truth" else [self._sampler.full_batch(rng)]
        return batches

    def train_step(self, step: int, batch: Mapping[str, Sequence[PatchBatch]]) -> dict[str, Tensor]:
        # What a network drops at random follows from the step, too, so that a resumed run is the same.
        torch.manual_seed(int(np.random.SeedSequence([self._recipe.seed, self._rank, step]).generate_state(1)[0]))
        total, terms = self._step({kind: [part.to(self._device) for part in parts] for kind, parts in batch.items()})
        optimiser_step(self._trained, self._optimiser, self._scheduler, total)
        self._average.update_parameters(self.network)
        return terms

    def checkpointed(self) -> Mapping[str, Any]:
        return {
            "trained": self._trained,
            "average": self._average,
            "optimiser": self._optimiser,
            "scheduler": self._scheduler,
        }


def start_model(recipe: Recipe, device: torch.device) -> FusionModel:
    """What a training starts from: the recipe's model, or its network with fresh weights.

    Raises:
        ClippanError: the model cannot be read, is for another number of bands, or there is no such network.
    """
    if recipe.start:
        start = _named_model(recipe.start, device)
        start.check_band_count(recipe.bands)
        return start
    network = networks.build(recipe.network, recipe.bands, **recipe.options).to(device)
    bands = 0 if networks.NETWORKS[recipe.network].any_bands else recipe.bands
    return FusionModel(network, recipe.network, recipe.options, bands)


def _named_model(name: str, device: torch.device) -> FusionModel:
    """The model in a file, or the one that comes with CLIPPan."""
    return model.load("" if name == SHIPPED else name, device)

"""The training of fusion networks: with a truth one scale down, and without one at full resolution.

Both may be used at once. ``torchrun`` starts one process a device, and gradients are averaged over them. A folder
holds a run: ``recipe.yaml``, ``curves.csv`` (the terms of the loss), ``checkpoint.pt``, and in the end
``model.safetensors``; the same command goes on with it.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from clippan import __version__, resources
from clippan.device import choose_device
from clippan.errors import Cancelled, ClippanError, told
from clippan.fusion import model, networks
from clippan.fusion.model import FusionModel
from clippan.fusion.training import language, sources
from clippan.fusion.training.batch import Batch
from clippan.fusion.training.descent import descend, follow, rate
from clippan.fusion.training.objective import Objective
from clippan.fusion.training.recipe import Recipe, read
from clippan.fusion.training.sampler import Sampler
from clippan.jobs.base import Context, to_json
from clippan.jobs.train import TrainFusionRequest, TrainFusionResult

_LOGGED = 50  # steps that a row of the curves is the mean of
_KEPT = 500  # steps between checkpoints

CHECKPOINT, CURVES, MODEL, RECIPE, STAGE_ONE = (
    "checkpoint.pt",
    "curves.csv",
    "model.safetensors",
    "recipe.json",
    "stage_one.safetensors",
)


def train(request: TrainFusionRequest, context: Context) -> TrainFusionResult:
    """Runs the job; see TrainFusionRequest.

    Raises:
        ClippanError: one sentence; what was trained so far stays in the folder.
    """
    started = time.monotonic()
    recipe = read(Path(request.recipe) if request.recipe else resources() / "fusion" / "recipe.yaml").changed(
        request.steps, request.seed, request.without
    )
    folder = Path(request.output)
    device, reason = choose_device(request.device)
    with _processes(device) as (device, rank, count):
        made: list[Path] = []
        if rank == 0:
            context.log(reason)
            made = _prepare(folder, recipe)
        else:  # one of them tells
            context = Context(cancelled=context.is_cancelled)
        try:
            sampler = _sampler(recipe, Path(request.data), context.part(0, 2))
            run = Run(recipe, sampler, device, folder, rank, count, context.part(2, 100))
            losses = run.go()
        except Exception:
            _tidy(folder, made)
            raise
        path = folder / MODEL
        if rank == 0:
            run.result().save(path)
    return TrainFusionResult(
        str(path),
        networks.parameters(run.network),
        recipe.steps,
        losses,
        device.type,
        round(time.monotonic() - started, 3),
    )


@contextlib.contextmanager
def _processes(device: torch.device) -> Iterator[tuple[torch.device, int, int]]:
    """This process's device, its number and how many there are; joins those that ``torchrun`` started."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield device, 0, 1
        return
    if device.type == "cuda":
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise ClippanError(
                f"There are more processes than GPUs ({there}); start one for each, or add --device cpu."
            )
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, torch.distributed.get_rank(), count
    finally:
        torch.distributed.destroy_process_group()


def _prepare(folder: Path, recipe: Recipe) -> list[Path]:
    """Makes the folder, or finds that it holds a run of the same recipe; what it made."""
    wanted = to_json(recipe)
    known = folder / RECIPE
    made = [path for path in (known, folder) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if known.exists() and json.loads(known.read_text(encoding="utf-8")) != wanted:
            raise ClippanError(f"{folder} holds a run of another recipe; choose an empty folder.")
        known.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ClippanError(f"The folder {folder} cannot be used ({told(error)}); choose an empty one.") from error
    return made


def _tidy(folder: Path, made: list[Path]) -> None:
    """Removes what was made for a run that could not begin, as its recipe or its data are wrong."""
    with contextlib.suppress(OSError):
        if any((folder / name).exists() for name in (CHECKPOINT, CURVES, MODEL, STAGE_ONE)):
            return
        for path in made:
            if path == folder:
                path.rmdir()  # if it is empty
            else:
                path.unlink()


def _sampler(recipe: Recipe, root: Path, context: Context) -> Sampler:
    context.progress(0, "Reading the scenes")
    context = Context(log=context.log, cancelled=context.is_cancelled)  # each pair would begin at 0 % again
    pairings = [pairing for source in recipe.pairs for pairing in sources.pairs(root, source, recipe.without, context)]
    pictures = [(source.share, list(sources.pictures(root, source))) for source in recipe.pictures]
    any_bands = networks.NETWORKS[recipe.network].any_bands if recipe.network in networks.NETWORKS else True
    only = set(recipe.augment.bands) == {recipe.bands}
    bound = None if any_bands and not recipe.scene.language and not only else recipe.bands
    return Sampler(recipe, pairings, pictures, bound)


class Step(nn.Module):
    """One step's loss as a module, so that torch's data parallel sees a single forward pass."""

    def __init__(self, network: nn.Module, truth: Optional[Objective], scene: Optional[Objective], half: bool) -> None:
        super().__init__()
        self.network = network
        self._objectives = {"truth": truth, "scene": scene}
        self._half = half

    def forward(self, batches: Mapping[str, Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over both kinds of batches, and each term by name."""
        total, terms = None, {}
        for kind, batch in batches.items():
            objective = self._objectives[kind]
            assert objective is not None
            with torch.autocast(batch.up.device.type, torch.bfloat16, enabled=self._half):
                fused = self.network(*batch.inputs)
            loss, parts = objective(batch, fused)
            total = loss if total is None else total + loss
            terms.update({f"{kind}.{name}": value for name, value in parts.items()})
        assert total is not None
        return total, terms


class Run:
    """A training under way.

    Args:
        recipe: what is asked for.
        sampler: where batches come from.
        device: where to compute.
        folder: of the run.
        rank, count: this process's number, and how many there are.
        context: hears of progress, and may cancel.
    """

    def __init__(
        self,
        recipe: Recipe,
        sampler: Sampler,
        device: torch.device,
        folder: Path,
        rank: int,
        count: int,
        context: Context,
    ) -> None:
        self._recipe, self._sampler, self._device, self._folder = recipe, sampler, device, folder
        self._rank, self._count, self._context = rank, count, context
        torch.manual_seed(recipe.seed)
        self.network = networks.build(recipe.network, recipe.bands, **recipe.options).to(device)
        self._average = copy.deepcopy(self.network).requires_grad_(False)
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.rate, weight_decay=1e-4)
        teacher = model.load(recipe.teacher, device).network if recipe.teacher else None
        self._kinds = [kind for kind in ("truth", "scene") if getattr(recipe, kind).used]
        supervisor = self._supervisor() if recipe.scene.language else None
        truth, scene = (
            Objective(weights, teacher=teacher, supervisor=supervisor, pooled=True) if weights.used else None
            for weights in (recipe.truth, recipe.scene)
        )
        self._step: nn.Module = Step(self.network, truth, scene, recipe.precision == "bfloat16")
        if count > 1:
            self._step = nn.parallel.DistributedDataParallel(self._step)
        self._done = 0
        self._sums: dict[str, float] = {}  # of the terms since the last row of the curves
        self._resume()

    def go(self) -> dict[str, float]:
        """Trains to the last step; the terms of the last steps.

        Raises:
            Cancelled: the run can be resumed from where it stopped.
        """
        recipe = self._recipe
        last: dict[str, float] = {}
        with ThreadPoolExecutor(1) as pool:
            # The next batch is drawn while this one is worked on.
            coming = pool.submit(self._draw, self._done)
            for step in range(self._done, recipe.steps):
                batches = coming.result()
                coming = pool.submit(self._draw, step + 1)
                terms = self._learn(step, batches)
                self._done = step + 1
                for name, value in terms.items():
                    self._sums[name] = self._sums.get(name, 0.0) + float(value)
                if self._done % _LOGGED == 0 or self._done == recipe.steps:
                    number = (self._done - 1) % _LOGGED + 1
                    last = {name: value / number for name, value in self._sums.items()}
                    self._sums = {}
                    self._record(last)
                if self._done % _KEPT == 0 or self._done == recipe.steps:
                    self._keep()
                try:
                    self._context.progress(100 * self._done / recipe.steps, f"Step {self._done} of {recipe.steps}")
                except Cancelled:
                    self._keep()
                    sentence = f"Cancelled after step {self._done}; the same command goes on from there."
                    raise Cancelled(sentence) from None
        return last

    def result(self) -> FusionModel:
        """The averaged network."""
        recipe = self._recipe
        bound = 0 if networks.NETWORKS[recipe.network].any_bands else recipe.bands
        about = {
            "about": recipe.about,
            "trained": datetime.date.today().isoformat(),
            "steps": self._done,
            "seed": recipe.seed,
            "without": list(recipe.without),
            "version": __version__,
        }
        return FusionModel(self._average.eval(), recipe.network, recipe.options, bound, about)

    def _draw(self, step: int) -> dict[str, Batch]:
        rng = np.random.default_rng([self._recipe.seed, self._rank, step])
        return {kind: getattr(self._sampler, kind)(rng) for kind in self._kinds}

    def _learn(self, step: int, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        recipe = self._recipe
        total, terms = self._step({kind: batch.to(self._device) for kind, batch in batches.items()})
        descend(self.network, self._optimiser, total, rate(step, recipe.steps, recipe.rate, recipe.warmup))
        # Early on the average is of few steps, as what was before the training means nothing.
        follow(self._average, self.network, min(recipe.average, (step + 1) / (step + 20)))
        return terms

    def _record(self, terms: Mapping[str, float]) -> None:
        if self._rank:
            return
        path = self._folder / CURVES
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *terms])
            writer.writerow([self._done, *(f"{value:.6g}" for value in terms.values())])
        words = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self._context.log(f"Step {self._done}: {words}")

    def _keep(self) -> None:
        if self._rank:
            return
        part = self._folder / f"{CHECKPOINT}.part"
        state = {
            "done": self._done,
            "sums": self._sums,
            "network": self.network.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        try:
            torch.save(state, part)
            part.replace(self._folder / CHECKPOINT)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise ClippanError(
                f"The checkpoint cannot be written to {self._folder} ({told(error)}); make room there."
            ) from error

    def _resume(self) -> None:
        path = self._folder / CHECKPOINT
        if not path.exists():
            if self._rank == 0:
                self._drop_rows()
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
            self._done, self._sums = state["done"], state.get("sums", {})
            self.network.load_state_dict(state["network"])
            self._average.load_state_dict(state["average"])
            self._optimiser.load_state_dict(state["optimiser"])
        except Exception as error:
            raise ClippanError(
                f"The checkpoint {path} cannot be read ({told(error)}); remove it to start from the first step."
            ) from error
        if self._rank == 0:
            self._drop_rows()
            self._context.log(f"Going on after step {self._done}.")

    def _drop_rows(self) -> None:
        """Rows of the curves after the checkpoint, which will come again."""
        path = self._folder / CURVES
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        # A kill may have cut the last row, or the first.
        kept = [row for row in rows if len(row) == len(head) and row[0].isdigit() and int(row[0]) <= self._done]
        if not kept:
            path.unlink()
            return
        part = path.with_name(f"{CURVES}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *kept])
        part.replace(path)

    def _supervisor(self) -> language.Supervisor:
        """CLIP with its adapters: those of a file, of this run's folder, or taught now (stage I)."""
        plan, bands = self._recipe.language, self._recipe.bands
        clip = language.frozen_clip(plan.clip, self._device, self._context)
        path = Path(plan.adapted) if plan.adapted else self._folder / STAGE_ONE
        if not plan.adapted:
            if self._rank == 0 and not path.exists():
                self._teach(clip, path)
            if self._count > 1:  # the others take what the first has taught
                torch.distributed.barrier()
        return language.Supervisor.load(path, clip, bands)

    def _teach(self, clip: language.FrozenCLIP, path: Path) -> None:
        """Stage I."""
        plan = self._recipe.language
        prompts = language.KHAN if plan.protocol == "khan" else language.WALD
        supervisor = language.Supervisor(clip, self._recipe.bands, prompts=prompts)
        optimiser = torch.optim.Adam(supervisor.learned(), lr=plan.rate)
        for step in range(plan.steps):
            rng = np.random.default_rng([self._recipe.seed, self._count, step])
            terms = supervisor.teach(self._sampler.scenes(rng, plan.batch).to(self._device), optimiser)
            self._context.check()
            if step % _LOGGED == 0 or step == plan.steps - 1:
                words = ", ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
                self._context.log(f"Stage I, step {step + 1}: {words}")
        supervisor.save(path)

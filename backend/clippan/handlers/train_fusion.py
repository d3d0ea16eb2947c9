"""Train a fusion network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

import torch

from clippan.catalogue.recipes import find_recipe
from clippan.core.context import Context
from clippan.core.device import choose_device
from clippan.core.json import to_json
from clippan.fusion import networks
from clippan.jobs.train_fusion import TrainFusionRequest, TrainFusionResult
from clippan.learn.fusion import reading
from clippan.learn.fusion.clip_supervision import load_frozen_clip
from clippan.learn.fusion.recipe import Recipe, read_recipe
from clippan.learn.fusion.sampler import BatchSampler
from clippan.learn.fusion.stage_one import STAGE_ONE, STAGE_ONE_FOLDER, AdapterRun, trained_supervisor
from clippan.learn.fusion.training import MODEL, FusionTraining, start_model
from clippan.learn.loop import distributed, run_folder


def run(request: TrainFusionRequest, context: Context) -> TrainFusionResult:
    started = time.monotonic()
    recipe = read_recipe(find_recipe(request.recipe)).overridden(request)
    folder, data = Path(request.output), Path(request.data)
    choice = choose_device(request.device)
    with distributed(choice.device) as (device, rank, world_size):
        if rank == 0:
            choice.log(context)
        else:  # the first process reports
            context = context.cancellation_only
        with run_folder(folder, to_json(recipe), (MODEL, STAGE_ONE, STAGE_ONE_FOLDER), rank):
            if recipe.trains == "adapters":
                path, parameters, losses = _train_adapters(recipe, data, device, folder, rank, context)
            else:
                path, parameters, losses = _train_network(recipe, data, device, folder, rank, world_size, context)
    return TrainFusionResult(
        str(path),
        parameters,
        recipe.language.steps if recipe.trains == "adapters" else recipe.steps,
        losses,
        device.type,
        round(time.monotonic() - started, 3),
    )


def _train_adapters(
    recipe: Recipe, data: Path, device: torch.device, folder: Path, rank: int, context: Context
) -> tuple[Path, int, dict[str, float]]:
    """Stage I alone, by the first process: the file of the adapters, their number of parameters and the last losses."""
    path = folder / STAGE_ONE
    if rank:
        return path, 0, {}
    clip = load_frozen_clip(recipe.language.clip, device, context.subrange(0, 1))
    sampler = _sampler(recipe, None, data, context.subrange(1, 3))
    stage_one = AdapterRun(recipe, sampler, clip, device, folder, context.subrange(3, 100))
    losses = stage_one.train()
    stage_one.save(path)
    parameters = sum(parameter.numel() for parameter in stage_one.supervisor.trainable_parameters())
    return path, parameters, losses


def _train_network(
    recipe: Recipe, data: Path, device: torch.device, folder: Path, rank: int, world_size: int, context: Context
) -> tuple[Path, int, dict[str, float]]:
    """The file of the network, its number of parameters and the last losses."""
    start = start_model(recipe, device)
    sampler = _sampler(recipe, start.bands or None, data, context.subrange(0, 2))
    supervisor, done = None, 2
    if recipe.scene.language:
        done = 30 if recipe.needs_stage_one else 3
        supervisor = trained_supervisor(recipe, sampler, device, folder, rank, world_size, context.subrange(2, done))
    run = FusionTraining(recipe, sampler, supervisor, device, folder, rank, world_size, context.subrange(done, 100))
    losses = run.train()
    path = folder / MODEL
    if rank == 0:
        run.result().save(path)
    return path, networks.parameter_count(run.network), losses


def _sampler(recipe: Recipe, bands: Optional[int], root: Path, context: Context) -> BatchSampler:
    """What draws patches, for a network of a fixed number of bands or, without one, for any."""
    context.progress(0, "Reading the scenes")
    context = Context(log=context.log, cancelled=context.is_cancelled)  # each pair would start at 0 %
    pairs = [pair for source in recipe.pairs for pair in reading.read_pairs(root, source, recipe.without, context)]
    pictures = [(source.share, list(reading.read_pictures(root, source))) for source in recipe.pictures]
    if set(recipe.augment.bands) == {recipe.bands}:
        bands = recipe.bands
    return BatchSampler(recipe, pairs, pictures, bands)

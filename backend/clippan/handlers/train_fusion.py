"""Train a fusion network."""

from __future__ import annotations

import time
from pathlib import Path

from clippan import resources
from clippan.core.context import Context
from clippan.core.device import choose_device
from clippan.core.json import to_json
from clippan.fusion import networks
from clippan.jobs.train_fusion import TrainFusionRequest, TrainFusionResult
from clippan.learn.fusion import reading
from clippan.learn.fusion.recipe import Recipe, read_recipe
from clippan.learn.fusion.sampler import BatchSampler
from clippan.learn.fusion.training import MODEL, STAGE_ONE, FusionTraining
from clippan.learn.loop import distributed, run_folder


def run(request: TrainFusionRequest, context: Context) -> TrainFusionResult:
    started = time.monotonic()
    recipe = read_recipe(Path(request.recipe) if request.recipe else resources() / "fusion" / "recipe.yaml").overridden(
        request.steps, request.seed, request.without
    )
    folder = Path(request.output)
    choice = choose_device(request.device)
    with distributed(choice.device) as (device, rank, world_size):
        if rank == 0:
            choice.log(context)
        else:  # the first process reports
            context = context.cancellation_only
        with run_folder(folder, to_json(recipe), (MODEL, STAGE_ONE), rank):
            sampler = _sampler(recipe, Path(request.data), context.subrange(0, 2))
            run = FusionTraining(recipe, sampler, device, folder, rank, world_size, context.subrange(2, 100))
            losses = run.train()
        path = folder / MODEL
        if rank == 0:
            run.result().save(path)
    return TrainFusionResult(
        str(path),
        networks.parameter_count(run.network),
        recipe.steps,
        losses,
        device.type,
        round(time.monotonic() - started, 3),
    )


def _sampler(recipe: Recipe, root: Path, context: Context) -> BatchSampler:
    context.progress(0, "Reading the scenes")
    context = Context(log=context.log, cancelled=context.is_cancelled)  # each pair would start at 0 %
    pairs = [pair for source in recipe.pairs for pair in reading.read_pairs(root, source, recipe.without, context)]
    pictures = [(source.share, list(reading.read_pictures(root, source))) for source in recipe.pictures]
    any_bands = networks.NETWORKS[recipe.network].any_bands if recipe.network in networks.NETWORKS else True
    only = set(recipe.augment.bands) == {recipe.bands}
    bands = None if any_bands and not recipe.scene.language and not only else recipe.bands
    return BatchSampler(recipe, pairs, pictures, bands)

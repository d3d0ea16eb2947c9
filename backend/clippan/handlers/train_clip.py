"""Train region-aligned CLIP."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from clippan.catalogue.models import find_model, require_rgb
from clippan.clip import hub
from clippan.clip.encoder import weights_sha256
from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads
from clippan.core.json import to_json
from clippan.jobs.train_clip import TrainClipRequest, TrainClipResult
from clippan.learn.clip.data import read_images
from clippan.learn.clip.farslip import WEIGHTS, FarslipTraining, save_model
from clippan.learn.loop import distributed, run_folder

_RESUMABLE_WITH = ("output", "threads", "device")  # parameters that may change when a run is resumed


def run(request: TrainClipRequest, context: Context) -> TrainClipResult:
    """Runs the job; a failed run keeps its checkpoints in the folder."""
    started = time.monotonic()
    folder, base = Path(request.output), find_model(request.model)
    require_rgb(base)
    choice = choose_device(request.device)
    with distributed(choice.device) as (device, rank, world_size):
        set_threads(request.threads)
        if rank == 0:
            choice.log(context)
        else:  # only the first process reports
            context = context.cancellation_only
        recipe = {name: value for name, value in to_json(request).items() if name not in _RESUMABLE_WITH}
        with run_folder(folder, recipe, (WEIGHTS,), rank):
            if rank == 0:  # one process downloads
                hub.fetch(base, context.subrange(0, 2))
            if world_size > 1:
                torch.distributed.barrier()
            path = hub.fetch(base, context.subrange(0, 2))
            context.progress(2, "Reading the data")
            samples = read_images(request.data, request.caption, context)
            run = FarslipTraining(request, base, path, samples, device, rank, world_size, context.subrange(3, 100))
            terms = run.train()
        if rank == 0:
            about = {
                "method": request.method.value,
                "stages": list(request.stages),
                "steps": list(run.steps),
                "seed": request.seed,
            }
            save_model(folder, run.loaded, base, path, weights_sha256(base, path, context), about)
    return TrainClipResult(
        str(folder),
        base.id,
        len(samples),
        run.objects,
        run.steps,
        terms,
        device.type,
        round(time.monotonic() - started, 3),
    )

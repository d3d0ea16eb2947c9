"""Pre-train on a scene."""

from __future__ import annotations

import time
from pathlib import Path

from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads, translate_out_of_memory
from clippan.fewshot.stack import open_stack
from clippan.jobs.pretrain_scene import PretrainSceneRequest, PretrainSceneResult
from clippan.learn.scene_pretraining import pretrain_on_stack


def run(request: PretrainSceneRequest, context: Context) -> PretrainSceneResult:
    started = time.monotonic()
    set_threads(request.threads)
    choice = choose_device(request.device)
    choice.log(context)
    stack = open_stack(request.rasters, request.grid, request.nodata, context.subrange(0, 5))
    with translate_out_of_memory():
        encoder = pretrain_on_stack(stack, request.steps, request.seed, choice.device, context.subrange(5, 99))
    encoder.save(Path(request.output))
    seconds = round(time.monotonic() - started, 3)
    return PretrainSceneResult(
        request.output, stack.bands, encoder.steps, encoder.loss, tuple(stack.hints()), choice.device.type, seconds
    )

"""Pre-train on a scene."""

from __future__ import annotations

import time
from pathlib import Path

from clippan.core.context import Context
from clippan.core.device import choose_device, gpu_memory_errors, set_threads
from clippan.fewshot.stack import open_stack
from clippan.jobs.pretrain import PretrainSceneRequest, PretrainSceneResult
from clippan.learn.fewshot import pretrain_on


def run(request: PretrainSceneRequest, context: Context) -> PretrainSceneResult:
    """See PretrainSceneRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    set_threads(request.threads)
    choice = choose_device(request.device)
    choice.log(context)
    device = choice.device
    stack = open_stack(request.rasters, request.grid, request.nodata, context.subrange(0, 5))
    with gpu_memory_errors():
        found = pretrain_on(stack, request.steps, request.seed, device, context.subrange(5, 99))
    found.save(Path(request.output))
    seconds = round(time.monotonic() - started, 3)
    return PretrainSceneResult(
        request.output, stack.bands, found.steps, found.loss, tuple(stack.hints()), device.type, seconds
    )

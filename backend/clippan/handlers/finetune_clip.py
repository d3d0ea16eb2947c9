"""Fine-tune CLIP without forgetting."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Optional

from clippan.catalogue.models import find_model
from clippan.clip import hub
from clippan.clip.encoder import text_warnings, weights_sha256
from clippan.clip.load import load_model
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.jobs.finetune_clip import AlphaPoint, FinetuneClipRequest, FinetuneClipResult
from clippan.labels.samples import samples_sha256
from clippan.learn.clip.farslip import WEIGHTS, check_image_size, save_model
from clippan.learn.clip.finetuning import (
    ClassificationTask,
    FineTuning,
    alpha_curve,
    choose_alpha,
    class_gains,
    interpolate_weights,
    read_tasks,
)
from clippan.learn.clip.image_tower import explain_cancellation, explain_memory_errors
from clippan.learn.loop import run_folder
from clippan.report import page

_FEW_CHIPS = 20  # test chips, below which accuracies are uncertain
# Parameters that may change when a run is resumed; the hash of the samples covers their layer.
_RESUMABLE_WITH = ("output", "report", "alpha", "keep", "layer", "threads", "device")


def run(request: FinetuneClipRequest, context: Context) -> FinetuneClipResult:
    """Runs the job; a failed run keeps its checkpoints in the folder."""
    started = time.monotonic()
    folder, base = Path(request.output), find_model(request.model)
    choice = choose_device(request.device)
    choice.log(context)
    device = choice.device
    if origin := texts.origin_note(request.words):
        context.log(origin)
    set_threads(request.threads)
    recipe = {name: value for name, value in to_json(request).items() if name not in _RESUMABLE_WITH}
    if request.samples:  # QGIS passes a new copy of its layer each time
        recipe["samples"] = samples_sha256(request.samples, request.layer, request.field)
    with run_folder(folder, recipe, (WEIGHTS,)), explain_memory_errors(request.batch):
        path = hub.fetch(base, context.subrange(0, 2))
        loaded = load_model(path, base, device)
        pixels = request.pixels or loaded.preprocessing.image_size
        check_image_size(loaded, pixels)
        task, control = read_tasks(request, loaded, pixels, context.subrange(2, 5))
        run = FineTuning(request, loaded, task, pixels, context.subrange(5, 50))
        before = copy.deepcopy(loaded.network.visual.state_dict())
        run.resume(device)
        terms = run.train()
        with explain_cancellation(run.steps):
            after = copy.deepcopy(loaded.network.visual.state_dict())
            points, hits = alpha_curve(request, loaded, before, after, task, control, pixels, context.subrange(50, 98))
            sha256 = weights_sha256(base, path, context.subrange(98, 99))
            context.progress(99, "Writing the model")
    alpha = request.alpha if request.alpha is not None else choose_alpha(points, request.keep)
    interpolate_weights(loaded.network.visual, before, after, alpha)
    tasks = [each for each in (task, control) if each]
    gains = [
        gain
        for each, *hits_of_task in zip(tasks, hits[0.0], hits[alpha])
        for gain in class_gains(each, each is control, *hits_of_task)
    ]
    about = {
        "method": "patch",
        "alpha": alpha,
        "classes": list(task.chips.names),
        "steps": run.steps,
        "seed": request.seed,
    }
    save_model(folder, loaded, base, path, sha256, about)
    start, end = points[0], next(point for point in points if point.alpha == alpha)
    hints = _hints(request, task, control, start, end)
    result = FinetuneClipResult(
        str(folder),
        request.report,
        base.id,
        alpha,
        start,
        end,
        tuple(points),
        tuple(gains),
        len(task.split.train),
        run.steps,
        terms.get("loss"),
        (*text_warnings(base, loaded, [name for each in tasks for name in each.chips.names]), *hints),
        device.type,
        round(time.monotonic() - started, 3),
        task.chips.rendering,
    )
    if request.report:
        page.write(request.report, "finetuning", request=request, result=result)
    return result


def _hints(
    request: FinetuneClipRequest,
    task: ClassificationTask,
    control: Optional[ClassificationTask],
    before: AlphaPoint,
    after: AlphaPoint,
) -> list[str]:
    hints = [*task.chips.hints, *task.split.hints]
    labels = task.chips.labels
    untested = [name for number, name in enumerate(task.chips.names) if not (labels[task.split.test] == number).any()]
    if untested:
        hints.append(
            Message(
                "The accuracy of {classes} was not measured, as there are too few chips; add more.",
                classes=join_names(untested),
            )
        )
    if len(task.split.test) < _FEW_CHIPS:
        hints.append(
            Message("The result was measured on few chips ({count}) and is uncertain.", count=len(task.split.test))
        )
    if control is None:
        hints.append("The loss on other classes was not measured; give a control set (--control) to measure it.")
    elif (after.control or 0.0) < request.keep * (before.control or 0.0):
        hints.append(
            Message(
                "On the test pictures, the control set keeps {control:.0%} of its accuracy, less than the requested "
                "{keep:.0%}; use a smaller alpha or fewer steps.",
                control=(after.control or 0.0) / max(before.control or 0.0, 1e-09),
                keep=request.keep,
            )
        )
    if after.task <= before.task:
        hints.append("Fine-tuning did not improve this task; use more chips or steps, or keep the original model.")
    return hints

"""Align a sensor with CLIP."""

from __future__ import annotations

import time
from pathlib import Path

from torch.nn import functional

from clippan.catalogue.models import find_model, require_rgb
from clippan.catalogue.prompts import parse_prompts
from clippan.clip import hub
from clippan.clip.encoder import text_warnings, weights_sha256, zero_shot_weights
from clippan.clip.load import load_model
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.jobs.align import AlignSensorRequest, AlignSensorResult
from clippan.jobs.rendering import band_choice_sentences, rendering_hints
from clippan.learn.clip.alignment import AlignmentTraining, chance_recall, encode_chips, inflate_input, recall
from clippan.learn.clip.farslip import WEIGHTS, save_model
from clippan.learn.clip.image_tower import MAX_ENCODE_BATCH, explain_cancellation, explain_memory_errors
from clippan.learn.clip.raster_pairs import RasterPairs
from clippan.learn.loop import run_folder
from clippan.report import page

_FEW_CHIPS = 20  # held-out chips, below which recalls are uncertain
_RESUMABLE_WITH = ("output", "report", "threads", "device")  # parameters that may change when a run is resumed


def run(request: AlignSensorRequest, context: Context) -> AlignSensorResult:
    """Runs the job; a failed run keeps its checkpoints in the folder."""
    started = time.monotonic()
    folder, base = Path(request.output), require_rgb(find_model(request.model))
    names = parse_prompts(request.words).names if request.words else ()
    choice = choose_device(request.device)
    choice.log(context)
    device = choice.device
    if origin := texts.origin_note(request.words):
        context.log(origin)
    set_threads(request.threads)
    recipe = {name: value for name, value in to_json(request).items() if name not in _RESUMABLE_WITH}
    batch = min(request.batch, MAX_ENCODE_BATCH)
    with run_folder(folder, recipe, (WEIGHTS,)), explain_memory_errors(request.batch), Outputs() as outputs:
        path = hub.fetch(base, context.subrange(0, 1))
        teacher = load_model(path, base, device)
        pairs = RasterPairs(request, outputs.temporary_folder(str(folder / WEIGHTS)), context.subrange(1, 3))
        for sentence in band_choice_sentences(pairs.renderings):
            context.log(sentence)
        edge = teacher.preprocessing.image_size
        train, held_out = pairs.chips(request, edge, context.subrange(3, 6))
        context.log(Message("Training chips: {train}; held-out chips: {held}.", train=len(train), held=len(held_out)))
        targets = encode_chips(teacher, pairs.teacher_chip, train, batch, context.subrange(6, 20))
        pictures = encode_chips(teacher, pairs.teacher_chip, held_out, batch, context.subrange(20, 21))
        words, warnings = (
            (zero_shot_weights(teacher, names), text_warnings(base, teacher, names)) if names else (None, [])
        )
        student = inflate_input(load_model(path, base, device), pairs)
        before = encode_chips(student, pairs.sensor_chip, held_out, batch, context.subrange(21, 22))
        run = AlignmentTraining(request, student, pairs, train, targets, words, context.subrange(22, 96))
        run.resume(device)
        terms = run.train()
        with explain_cancellation(run.steps):
            after = encode_chips(student, pairs.sensor_chip, held_out, batch, context.subrange(96, 98))
            sha256 = weights_sha256(base, path, context.subrange(98, 99))
            context.progress(99, "Writing the model")
    about = {"method": "align", "channels": to_json(pairs.channels), "steps": run.steps, "seed": request.seed}
    save_model(folder, student, base, path, sha256, about)
    to_picture = recall(after, pictures)
    agreement = None
    if words is not None:
        student_words, teacher_words = ((vectors @ words.T).argmax(1) for vectors in (after, pictures))
        agreement = float((student_words == teacher_words).float().mean())
    result = AlignSensorResult(
        str(folder),
        request.report,
        base.id,
        pairs.channels.names,
        pairs.channels.low,
        pairs.channels.high,
        len(train),
        len(held_out),
        to_picture,
        recall(pictures, after),
        recall(before, pictures),
        chance_recall(len(held_out)),
        float(functional.cosine_similarity(after, pictures).mean()),
        agreement,
        run.steps,
        terms,
        (*pairs.hints, *warnings, *_hints(request, len(held_out), to_picture.at_1), *rendering_hints(pairs.renderings)),
        device.type,
        round(time.monotonic() - started, 3),
        pairs.renderings,
    )
    if request.report:
        page.write(request.report, "alignment", request=request, result=result)
    return result


def _hints(request: AlignSensorRequest, test_chips: int, recall_at_1: float) -> list[str]:
    hints: list[str] = []
    if test_chips < _FEW_CHIPS:
        hints.append(
            Message(
                "Too few chips ({count}) were held out to measure the student; hold out more (--held).",
                count=test_chips,
            )
        )
    if not request.test:
        hints.append(
            "The result was measured on a strip of the training rasters; expect less on other land, and use a pair "
            "from elsewhere for the test (--test)."
        )
    if recall_at_1 < 2 * (1 / test_chips):
        hints.append(
            "On the held-out chips, the student is hardly better than guessing; train on more rasters with more kinds "
            "of land."
        )
    return hints

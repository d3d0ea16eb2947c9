"""Adapt a fusion model to a scene."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from clippan import __version__
from clippan.catalogue.band_names import COLOURS, Band, band_order, natural_colours
from clippan.catalogue.sensors import Sensor, resolve_sensor
from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads
from clippan.core.messages import Message
from clippan.core.outputs import write_output
from clippan.fusion import model
from clippan.fusion.model import FusionModel
from clippan.jobs.adapt import AdaptFusionRequest, AdaptFusionResult
from clippan.learn.fusion.adaptation import Adaptation, TimeBudget
from clippan.learn.fusion.training_scene import TrainingScene
from clippan.raster.pair import Pair, open_pair


def run(request: AdaptFusionRequest, context: Context) -> AdaptFusionResult:
    clock = TimeBudget(request.seconds)
    choice = choose_device(request.device, needs_float64=True)
    choice.log(context)
    device = choice.device
    if device.type == "cpu":
        set_threads(request.threads)
    start = model.load(request.model, device)
    context.log(Message("Start: {model}.", model=start.title))
    with open_pair(request.pan, request.ms, request.bands, request.nodata) as pair:
        start.check_band_count(pair.ms.count)
        for note in pair.notes:
            context.log(note)
        sensor = resolve_sensor(request.sensor, pair.sensor_texts, context.log, context.log)
        scene = TrainingScene.read(pair, sensor, request, device, context.subrange(0, 10))
        rgb_bands = _rgb_bands(sensor, [number - 1 for number in request.bands] or range(pair.ms.count), pair)
    bands = pair.ms.count
    supervisor = None
    if request.clip:
        from clippan.learn.fusion.scene_supervisor import adapt_supervisor

        supervisor = adapt_supervisor(request, rgb_bands, scene, device, clock, context.subrange(10, 25))
    adaptation = Adaptation(start, scene, supervisor, request, device, clock, context.subrange(25, 98))
    network, before, after = adaptation.run()
    clip_name = supervisor.clip.name if supervisor else ""
    if network is None:
        with write_output(request.output) as part:
            shutil.copyfile(start.path, part)
    else:
        about = {
            "title": f"{start.provenance.get('title') or start.architecture}, adapted to {Path(request.pan).name}",
            "adapted": datetime.date.today().isoformat(),
            "pan": Path(request.pan).name,
            "ms": [Path(path).name for path in request.ms],
            "bands": list(request.bands) or list(range(1, bands + 1)),
            "sensor": sensor.name,
            "mtf": list(scene.mtf_gains),
            "start": start.sha256,
            "start_about": dict(start.provenance),
            "clip": clip_name,
            "clip_sha256": supervisor.clip.sha256 if supervisor else "",
            "before": before,
            "after": after,
            "steps": adaptation.best_step,
            "seed": request.seed,
            "version": __version__,
        }
        FusionModel(network, start.architecture, start.options, bands, about).save(Path(request.output))
    context.progress(100, "Done")
    return AdaptFusionResult(
        request.output,
        network is not None,
        before,
        after,
        adaptation.best_step,
        adaptation.losses,
        clip_name,
        sensor.name,
        device.type,
        bands,
        round(scene.pixels / 1e6, 3),
        round(clock.elapsed, 3),
    )


def _rgb_bands(sensor: Sensor, positions: Sequence[int], pair: Pair) -> Optional[list[int]]:
    """The red, green and blue bands by their descriptions or the sensor; None if unknown."""
    order = band_order(pair.sensor_texts)
    own = natural_colours([Band(info.description) for info in pair.ms.infos], order and replace(order, orders=()))
    if len(own.bands) == len(COLOURS) and not own.guessed:
        return [band - 1 for band in own.bands]
    names = [sensor.bands[position] if position < len(sensor.bands) else "" for position in positions]
    return [names.index(name) for name in COLOURS] if set(COLOURS) <= set(names) else None

"""Assess: quality figures of a pansharpened raster, tile by tile, and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Optional

from osgeo import gdal

from clippan.catalogue.sensors import find_sensor, resolve_sensor
from clippan.core.context import Context
from clippan.core.device import choose_device
from clippan.core.errors import ClippanError
from clippan.core.json import from_json
from clippan.core.messages import Message
from clippan.core.threads import count_threads
from clippan.fusion.assessment import AssessedScene
from clippan.fusion.mtf_estimation import Mtf
from clippan.fusion.registration import Shifts, register
from clippan.jobs.assess import AssessRequest, AssessResult
from clippan.jobs.options import Registration
from clippan.jobs.pansharpen import PansharpenRequest
from clippan.raster.pair import open_pair
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window
from clippan.report import page
from clippan.report.pictures import percentile_limits, stretched_png

_PICTURE = 320  # pixels, edge of the crops in the report

FUSED = Message("pansharpened raster")
REFERENCE = Message("reference raster")


def run(request: AssessRequest, context: Context) -> AssessResult:
    started = time.monotonic()
    request, recorded = _with_recorded_settings(request, context)
    choice = choose_device(request.device, needs_float64=True)
    choice.log(context)
    with contextlib.ExitStack() as files:
        pair = files.enter_context(open_pair(request.pan, request.ms, request.bands, request.nodata))
        fused = files.enter_context(_open(request.fused, FUSED, (), request.nodata))
        sensor = resolve_sensor(request.sensor, pair.sensor_texts, context.log, context.log)
        scene = AssessedScene.of(pair, fused, sensor, request.bands, choice.device)
        reference = None
        if request.reference is not None:
            reference = files.enter_context(_open_reference(request.reference, request, scene))
        pair, shifts = register(
            pair, request.registration, scene.mtf_gains, count_threads(0), context.subrange(0, 5), recorded
        )
        scene = dataclasses.replace(scene, pair=pair)
        full, pixels, hints = scene.measure(context.subrange(5, 95 if reference is None else 45))
        against: dict[str, float] = {}
        if reference is not None:
            against, reference_hints = scene.compare(reference, context.subrange(45, 95))
            hints += reference_hints
        seconds = round(time.monotonic() - started, 3)
        result = AssessResult(
            full,
            against,
            sensor.name,
            pixels,
            request.report,
            seconds,
            (shifts.x, shifts.y),
            shifts.bands,
            (*pair.notes, *hints),
            Mtf.gains_from_tag(_tags(request.fused).get("CLIPPAN_MTF", "")),
        )
        if request.report is not None:
            context.progress(95, "Writing the report")
            page.write(
                request.report,
                "assessment",
                request=request,
                result=result,
                sensor=sensor.label,
                ratio=scene.ratio,
                pictures=_pictures(scene, reference),
            )
    context.progress(100, "Done")
    return result


def _with_recorded_settings(request: AssessRequest, context: Context) -> tuple[AssessRequest, Optional[Shifts]]:
    """The request, completed from the tags of the pansharpened raster, and the shifts that the tags hold."""
    tags, band_count = _tags(request.fused), open_dataset(request.fused, FUSED).RasterCount
    try:
        made = from_json(PansharpenRequest, json.loads(tags["CLIPPAN_PARAMETERS"]))
    except (KeyError, ValueError, ClippanError):  # made by another program, or by another version
        return request, None
    changes: dict[str, object] = {}
    if request.sensor == "auto" and find_sensor(tags.get("CLIPPAN_SENSOR", "")):
        changes["sensor"] = tags["CLIPPAN_SENSOR"]
    if not request.bands and len(made.bands) == band_count:
        changes["bands"] = made.bands
    if request.nodata is None and made.nodata is not None:
        changes["nodata"] = made.nodata
    if changes:
        settings = ", ".join(f"{name} {value}" for name, value in changes.items())
        context.log(Message("Settings from the tags of the raster: {settings}.", settings=settings))
    if request.bands and made.bands and request.bands != made.bands:
        context.log(
            Message(
                "The raster was made from the bands {made_bands} and is compared with the requested bands {bands}.",
                made_bands=made.bands,
                bands=request.bands,
            )
        )
    request = dataclasses.replace(request, **changes)  # type: ignore[arg-type]
    # A raster made without full registration is assessed with it, like those of other programs.
    if made.registration is not Registration.AUTO or request.bands != made.bands:
        return request, None
    return request, Shifts.from_tag(tags.get("CLIPPAN_SHIFT", ""), band_count)


def _tags(path: str) -> dict[str, str]:
    return open_dataset(path, FUSED).GetMetadata() or {}


def _open(path: str, what: str, bands: Sequence[int], nodata: Optional[float]) -> Source:
    dataset = open_dataset(path, what)
    # The requested nodata value is for PAN and MS; a raster made from them may declare its own.
    declared = dataset.GetRasterBand(1).GetNoDataValue()
    return Source([dataset], what, bands, nodata if declared is None else None)


def _open_reference(path: str, request: AssessRequest, scene: AssessedScene) -> Source:
    reference = _open(path, REFERENCE, (), request.nodata)
    if reference.available_bands == scene.pair.ms.available_bands != scene.fused.count:
        reference = _open(path, REFERENCE, request.bands, request.nodata)
    scene.check_reference(reference)
    return reference


def _pictures(scene: AssessedScene, reference: Optional[Source]) -> dict[str, bytes]:
    """The same crop of all images, with the same stretch for those of one unit."""
    window = _detailed_window(scene)
    bands = _rgb(scene)
    fused, valid = scene.read(scene.fused, window)
    pan, pan_valid = scene.read_pan(window)
    upsampled, ms_valid = scene.upsampled(window)
    limits = percentile_limits(upsampled[bands].cpu().numpy(), ms_valid.cpu().numpy())
    pictures = {
        "pan": stretched_png(pan.cpu().numpy(), pan_valid.cpu().numpy()),
        "ms": stretched_png(upsampled[bands].cpu().numpy(), ms_valid.cpu().numpy(), limits),
        "fused": stretched_png(fused[bands].cpu().numpy(), valid.cpu().numpy(), limits),
    }
    if reference is not None:
        truth, truth_valid = scene.read(reference, window)
        pictures["reference"] = stretched_png(truth[bands].cpu().numpy(), truth_valid.cpu().numpy(), limits)
    return pictures


def _detailed_window(scene: AssessedScene) -> Window:
    """The window, of nine in the area, with the most valid pixels and then the most contrast in PAN."""

    def score(window: Window) -> tuple[float, float]:
        pan, valid = scene.read_pan(window)
        valid = valid & scene.read(scene.fused, window)[1]
        contrast = float(pan[:, valid].std()) if int(valid.sum()) > 1 else 0.0
        return round(float(valid.float().mean()), 2), contrast

    area = scene.area
    width, height = min(_PICTURE, area.width), min(_PICTURE, area.height)
    xs = [area.x + (area.width - width) * column // 2 for column in range(3)]
    ys = [area.y + (area.height - height) * row // 2 for row in range(3)]
    return max((Window(x, y, width, height) for y in ys for x in xs), key=score)


def _rgb(scene: AssessedScene) -> list[int]:
    """The bands to show as red, green and blue; a single one is shown as grey."""
    codes = [info.interpretation for info in scene.pair.ms.infos]
    wanted = [gdal.GCI_RedBand, gdal.GCI_GreenBand, gdal.GCI_BlueBand]
    if set(wanted) <= set(codes):
        return [codes.index(code) for code in wanted]
    if len(scene.sensor.bands) == scene.pair.ms.available_bands:
        names = [scene.sensor.bands[position] for position in scene.positions]
        if {"red", "green", "blue"} <= set(names):
            return [names.index(name) for name in ("red", "green", "blue")]
    if len(codes) < 3:
        return [0]
    # Four bands usually are blue, green, red, near infrared; three are red, green, blue.
    return [0, 1, 2] if len(codes) == 3 else [2, 1, 0]

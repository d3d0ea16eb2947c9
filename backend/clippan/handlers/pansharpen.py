"""Pansharpen a pair of rasters."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

import numpy as np
import torch

from clippan import __version__
from clippan.catalogue.sensors import Sensor, resolve_sensor
from clippan.core.context import Context
from clippan.core.device import choose_device, use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.threads import count_threads, in_order
from clippan.fusion.fuse import TileFuser
from clippan.fusion.methods import FusionMethod, fit_method
from clippan.fusion.model import load
from clippan.fusion.mtf_estimation import Mtf
from clippan.fusion.neural import NO_CORRECTION, fusion_kind
from clippan.fusion.registration import Shifts
from clippan.fusion.scene import FusionScene
from clippan.fusion.statistics import SceneStatistics
from clippan.jobs.options import Method, Registration
from clippan.jobs.pansharpen import PansharpenRequest, PansharpenResult
from clippan.raster.pair import Pair, open_pair
from clippan.raster.tiles import tiles
from clippan.raster.writer import Writer

_MIN_SAMPLES_PER_COEFFICIENT = 10  # for each coefficient of a regression
_SCAN_WINDOW, _SCAN_WINDOWS = (
    256,
    64,
)  # edge in multispectral samples, and number, of windows that bands are compared in
_COMPARABLE_SHARE = 0.98  # of the chosen bands' pixels, which another band must have to be measured along with them
_MAX_MEASURED_BANDS = 32
_ZERO_SHARE = 0.005  # of the scene; less is shadow and dead pixels


def run(request: PansharpenRequest, context: Context) -> PansharpenResult:
    started = time.monotonic()
    choice = choose_device(request.device)
    choice.log(context)
    device = choice.device
    threads = count_threads(request.threads)
    with contextlib.ExitStack() as files:
        pair = files.enter_context(open_pair(request.pan, request.ms, request.bands, request.nodata))
        hints: list[str] = []
        sensor = resolve_sensor(request.sensor, pair.sensor_texts, context.log, hints.append)
        positions = [number - 1 for number in request.bands] or range(pair.ms.available_bands)
        context.log(
            Message(
                "Grid: {width} × {height} pixels, bands: {bands}, ratio {ratio_x:.4g} × {ratio_y:.4g}.",
                width=pair.grid.width,
                height=pair.grid.height,
                bands=pair.ms.count,
                ratio_x=pair.x_axis.ratio,
                ratio_y=pair.y_axis.ratio,
            )
        )
        model = None
        if request.method is Method.CLIPPAN:
            model = load(request.model, device)
            model.check_band_count(pair.ms.count)
            context.log(Message("Model: {model}.", model=model.title))
        # Measured on all bands, so that a band's result does not depend on which others are chosen.
        whole, measured = _with_all_bands(request, pair, files, context)
        places = range(pair.ms.count) if whole is pair else [measured.index(position) for position in positions]
        scene = FusionScene.measure(
            pair,
            whole,
            places,
            sensor.mtf_gains(measured, pair.ms.available_bands),
            sensor.mtf_pan,
            request.method,
            request.registration,
            request.mtf,
            threads,
            context.subrange(0, 5),
        )
        pair, statistics = scene.pair, scene.statistics
        _check_fit(request.method, statistics)
        hints += [scene.mtf.hint] if scene.mtf.hint else []
        hints += pair.notes
        if pair.ms.nodata is None and statistics.zero_share >= _ZERO_SHARE:
            share = 100 * statistics.zero_share
            hints.append(
                Message(
                    "{percent} % of the multispectral pixels are 0 in all bands; if they are missing pixels, set 0 as "
                    "the nodata value.",
                    percent=f"{share:.{0 if share >= 1 else 1}f}",
                )
            )
        fusion: FusionMethod
        provenance = _provenance(request, sensor, device, scene.shifts, scene.mtf)
        if model is None:
            fusion = fit_method(request.method, statistics, scene.mtf_index_of_band)
        else:
            fusion = network = fusion_kind(model)(
                statistics, scene.mtf_index_of_band, scene.mtf.gains, pair.ratio, model, scene.trust, device
            )
            if scene.trust is not None and not scene.trust.any():
                hints.append(NO_CORRECTION)
            if network.bfloat16:
                context.log("Precision: bfloat16, which is faster on this processor.")
            provenance["CLIPPAN_MODEL"] = model.title
            provenance["CLIPPAN_MODEL_SHA256"] = model.sha256
            provenance["CLIPPAN_PRECISION"] = "bfloat16" if network.bfloat16 else "float32"
        nodata = pair.output_nodata(threads, context.subrange(5, 10))
        fuser = TileFuser(pair, fusion, scene.low_pass_mtfs, statistics, device, nodata)
        writer = Writer(
            request.output,
            pair.grid,
            pair.ms.dtype,
            pair.ms.infos,
            nodata,
            provenance,
            request.format,
            request.compression,
            request.overviews,
            lambda percent: context.progress(90 + percent / 10, "Finishing the file"),
            sparse=pair.sparse,
        )
        windows = tiles(pair.grid.width, pair.grid.height, fuser.tile_size(request.tile_size))
        # Elsewhere the file stays unwritten, which reads as nodata.
        windows = [window for window in windows if pair.may_contain_data(window)]
        # A GPU has one queue; a second thread reads ahead while it computes.
        workers = threads if device.type == "cpu" else 2
        compute = in_order(lambda window: fuser.fuse(window, context), windows, workers, use_one_thread)
        # The tiles under way are waited for before the writer closes its file.
        with writer, contextlib.closing(compute):
            for number, (window, values) in enumerate(compute, 1):
                writer.write(window.x, window.y, values)
                context.progress(10 + 80 * number / len(windows), "Pansharpening")
    seconds = time.monotonic() - started
    megapixels = pair.grid.width * pair.grid.height / 1e6
    context.log(
        Message(
            "Done: {megapixels:.1f} megapixels in {seconds:.1f} s ({rate:.1f} MPix/s).",
            megapixels=megapixels,
            seconds=seconds,
            rate=megapixels / seconds,
        )
    )
    return PansharpenResult(
        request.output,
        pair.grid.width,
        pair.grid.height,
        pair.ms.count,
        np.dtype(pair.ms.dtype).name,
        nodata,
        request.method.value,
        sensor.name,
        device.type,
        (pair.x_axis.ratio, pair.y_axis.ratio),
        round(seconds, 3),
        provenance,
        tuple(hints),
        (scene.shifts.x, scene.shifts.y),
        scene.shifts.bands,
        scene.mtf.gains,
        scene.mtf.measured,
    )


def _with_all_bands(
    request: PansharpenRequest, pair: Pair, files: contextlib.ExitStack, context: Context
) -> tuple[Pair, Sequence[int]]:
    """The rasters with all bands that can be measured along with the chosen ones, and their positions in the files; the
    pair itself where there are no others, or very many."""
    available = pair.ms.available_bands
    chosen = [number - 1 for number in request.bands] or range(available)
    if len(set(chosen)) == available or available > _MAX_MEASURED_BANDS:
        return pair, chosen
    try:
        whole = files.enter_context(open_pair(request.pan, request.ms, (), request.nodata))
        if whole.ms.available_bands != available:  # a band that is a mask unless it is chosen
            return pair, chosen
        usable = _comparable_bands(whole, sorted(set(chosen)), context)
        if len(usable) < available:
            numbers = [position + 1 for position in usable]
            whole = files.enter_context(open_pair(request.pan, request.ms, numbers, request.nodata))
    except ClippanError:  # such as a quality band
        return pair, chosen
    return (whole, usable) if len(usable) > len(set(chosen)) else (pair, chosen)


def _comparable_bands(whole: Pair, chosen: Sequence[int], context: Context) -> list[int]:
    """Positions of the chosen bands, and of others that hold an image where these do: no masks, angles or strips."""
    windows = whole.ms_windows(_SCAN_WINDOW)
    order = np.random.default_rng(0).permutation(len(windows))[:_SCAN_WINDOWS]
    count = whole.ms.count
    covered, alike, total = np.zeros(count), np.zeros(count), 0
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    for index in order:
        context.raise_if_cancelled()
        values, valid = whole.read_ms(windows[index])
        valid = np.ones(values.shape, bool) if valid is None else np.broadcast_to(valid, values.shape)
        image = valid[chosen].all(axis=0)
        missing = image & ~values[chosen].any(axis=0)  # 0 in files that declare no nodata value
        total += int(image.sum())
        for band in range(count):
            here = values[band][image & valid[band]]
            covered[band] += len(here)
            alike[band] += len(here) - np.count_nonzero(values[band][missing & valid[band]])
            if len(here):
                low[band], high[band] = min(low[band], here.min()), max(high[band], here.max())
    others = (np.minimum(covered, alike) >= _COMPARABLE_SHARE * total) & (low < high)
    return [band for band in range(count) if others[band] or band in chosen]


def _check_fit(method: Method, statistics: SceneStatistics) -> None:
    if method is Method.CUBIC:
        return
    if statistics.sample_count < _MIN_SAMPLES_PER_COEFFICIENT * (statistics.band_count + 1):
        raise ClippanError(
            "Too few multispectral pixels ({count}) are valid in both rasters to fit {method} to {bands} bands; choose "
            "a larger area or the method {cubic}.",
            count=statistics.sample_count,
            method=method.value,
            bands=statistics.band_count,
            cubic=Method.CUBIC.value,
        )
    if statistics.pan_is_constant:
        raise ClippanError(
            "The panchromatic raster has the same value everywhere, so it has no detail; check the file and its nodata "
            "value."
        )


def _provenance(
    request: PansharpenRequest, sensor: Sensor, device: torch.device, shifts: Shifts, mtf: Mtf
) -> dict[str, str]:
    tags = {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_METHOD": request.method.value,
        "CLIPPAN_SENSOR": sensor.name,
        "CLIPPAN_DEVICE": device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }
    # Without the tag, an assessment estimates the shifts itself.
    if request.registration is not Registration.OFF:
        tags["CLIPPAN_SHIFT"] = shifts.to_tag()
    if mtf.gains:
        tags["CLIPPAN_MTF"] = mtf.to_tag()
    return tags

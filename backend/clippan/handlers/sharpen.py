"""Sharpen coarse bands with fine ones."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from clippan import __version__
from clippan.core.context import Context
from clippan.core.device import choose_device, translate_out_of_memory, use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.threads import count_threads, in_order
from clippan.fusion.band_sharpening import BandSharpener, block_size, to_pixels
from clippan.fusion.guide import Guide, measure_guide
from clippan.jobs.sharpen import SharpenedBand, SharpenRequest, SharpenResult
from clippan.raster.coarse import CoarseBands, open_coarse_and_fine
from clippan.raster.nodata import as_pixel_value
from clippan.raster.tiles import Window, tiles
from clippan.raster.writer import Writer

_MAX_FINE_BANDS = 16  # more make regressions on few pixels meaningless
_LITTLE_EXPLAINED = 0.2  # of a band's detail


def run(request: SharpenRequest, context: Context) -> SharpenResult:
    started = time.monotonic()
    choice = choose_device(request.device, needs_float64=True)
    choice.log(context)
    device = choice.device
    threads = count_threads(request.threads)
    rasters = open_coarse_and_fine(request.coarse, request.fine, request.bands, request.fine_bands, request.nodata)
    with translate_out_of_memory(), rasters as groups:
        pairs = [group.pair for group in groups]
        fine, grid = pairs[0].pan, pairs[0].grid
        if fine.count > _MAX_FINE_BANDS:
            raise ClippanError(
                "The fine raster has {count} bands, which is too many to learn from; choose at most {most} "
                "(--fine-bands).",
                count=fine.count,
                most=_MAX_FINE_BANDS,
            )
        hints: list[str] = list(pairs[0].notes)
        guides = []
        for number, (group, pair) in enumerate(zip(groups, pairs)):
            part = context.subrange(8 * number / len(pairs), 8 * (number + 1) / len(pairs))
            guide = measure_guide(pair, group.names, request.register, threads, part)
            context.log(
                Message(
                    "Coarse bands: {bands}, ratio {ratio_x:.4g} × {ratio_y:.4g}, MTF gain {gain:.2f}, moved by "
                    "{right:.2f}, {down:.2f} fine pixels.",
                    bands=pair.ms.count,
                    ratio_x=pair.x_axis.ratio,
                    ratio_y=pair.y_axis.ratio,
                    gain=guide.mtf_gain,
                    right=guide.shift[0],
                    down=guide.shift[1],
                )
            )
            guides.append(guide)
        bands = _sharpened_bands(groups, guides)
        names = {position: name for group in groups for position, name in zip(group.positions, group.names)}
        weak = [names[position] for position, band in enumerate(bands) if band.explained < _LITTLE_EXPLAINED]
        if weak:
            hints.append(
                Message(
                    "The fine bands explain little of the detail of: {bands}. They stay nearly as they are.",
                    bands="; ".join(weak),
                )
            )
        dtype = np.dtype(np.result_type(*(pair.ms.dtype for pair in pairs)))
        nodata = _output_nodata(groups, dtype, threads, context.subrange(8, 10))
        infos = {position: info for group in groups for position, info in zip(group.positions, group.pair.ms.infos)}
        provenance = _provenance(request, device, bands, guides)
        sharpeners = [BandSharpener(pair, guide, request.radiometry, device) for pair, guide in zip(pairs, guides)]

        def sharpen(window: Window) -> np.ndarray:
            pixels = np.empty((len(bands), window.height, window.width), dtype)
            for group, sharpener in zip(groups, sharpeners):
                context.raise_if_cancelled()
                for own, values, valid in sharpener.sharpen(window):
                    pixels[list(group.positions[own])] = to_pixels(values, valid, dtype, nodata)
            return pixels

        writer = Writer(
            request.output,
            grid,
            dtype,
            [infos[position] for position in range(len(bands))],
            nodata,
            provenance,
            request.format,
            request.compression,
            request.overviews,
            lambda percent: context.progress(90 + percent / 10, "Finishing the file"),
            sparse=any(pair.sparse for pair in pairs),
        )
        windows = tiles(grid.width, grid.height, block_size(pairs, dtype))
        # Elsewhere the file stays unwritten, which reads as nodata.
        windows = [window for window in windows if any(pair.may_contain_data(window) for pair in pairs)]
        workers = threads if device.type == "cpu" else 2
        compute = in_order(sharpen, windows, workers, use_one_thread)
        with writer, contextlib.closing(compute):
            for number, (window, values) in enumerate(compute, 1):
                writer.write(window.x, window.y, values)
                context.progress(10 + 80 * number / len(windows), "Sharpening")
    return SharpenResult(
        request.output,
        grid.width,
        grid.height,
        bands,
        dtype.name,
        nodata,
        device.type,
        round(time.monotonic() - started, 3),
        provenance,
        tuple(guide.shift for guide in guides),
        tuple(hints),
    )


def _sharpened_bands(groups: Sequence[CoarseBands], guides: Sequence[Guide]) -> tuple[SharpenedBand, ...]:
    found: dict[int, SharpenedBand] = {}
    for group, guide in zip(groups, guides):
        ratio = (group.pair.x_axis.ratio, group.pair.y_axis.ratio)
        for position, info, gain, share in zip(group.positions, group.pair.ms.infos, guide.band_gains, guide.explained):
            found[position] = SharpenedBand(info.description, ratio, round(gain, 3), round(share, 3))
    return tuple(found[position] for position in sorted(found))


def _provenance(
    request: SharpenRequest, device: torch.device, bands: Sequence[SharpenedBand], guides: Sequence[Guide]
) -> dict[str, str]:
    return {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_DEVICE": device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_MTF": " ".join(f"{band.mtf_gain:g}" for band in bands),
        "CLIPPAN_SHIFTS": "; ".join("{:.2f}, {:.2f}".format(*guide.shift) for guide in guides),
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }


def _output_nodata(groups: Sequence[CoarseBands], dtype: np.dtype, threads: int, context: Context) -> Optional[float]:
    """The nodata value of the first coarse bands that have one and whose value the output can hold, or else what the
    first bands with missing pixels get."""
    values = [group.pair.output_nodata(threads, context) for group in groups]
    return next((value for value in values if as_pixel_value(value, dtype) is not None), None)

"""A map of classes from prompts: the model looks at windows once, then tiles are mapped from what it saw."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clippan import __version__
from clippan.catalogue.prompts import PromptTable, parse_prompts, shapefile_hints
from clippan.clip.class_vectors import class_vectors, prompt_texts
from clippan.clip.encoder import Encoder, load_encoder
from clippan.clip.similarity import SimilarityMaps
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import set_threads, use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.core.threads import count_threads, in_order
from clippan.jobs.picture import RasterPicture, choices, remarks
from clippan.jobs.segment import ClassArea, SegmentRequest, SegmentResult
from clippan.labels import areas
from clippan.labels.legend import palette
from clippan.raster.scene import Scene, SceneOptions, antimeridian_notes
from clippan.raster.source import BandInfo
from clippan.raster.tiles import tiles
from clippan.raster.writer import BLOCK, Writer
from clippan.segmentation import polygons
from clippan.segmentation.mapping import mapper

_TILE_BYTES = 2**26  # of a tile's probabilities
_LARGEST_TILE = 1024


def run(request: SegmentRequest, context: Context) -> SegmentResult:
    """See SegmentRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    table = parse_prompts(request.classes).with_colours()
    if origin := texts.origin_note(request.classes, "classes"):
        context.log(origin)
    model = load_encoder(request.model, request.device, context.subrange(0, 5))
    set_threads(request.threads)
    look_at = SceneOptions(
        bands=request.bands, stretch=request.stretch, nodata=request.nodata, extent=request.extent, crs=request.crs
    )
    scene = Scene(request.raster, look_at)
    part = scene.extent_window()
    begun = time.monotonic()
    with Outputs() as outputs:
        view = SimilarityMaps.of(
            request,
            model,
            class_vectors(model, table, _has_background(request, table)),
            scene,
            part,
            outputs.temporary_folder(request.output),
            context.subrange(5, 75),
        )
        picture = scene.raster_picture_for(model.channels)
        context.log(choices([picture])[0])
        provenance = _provenance(request, table, model, view, picture)
        shown, count = _write(request, table, model, view, outputs, provenance, context.subrange(75, 100))
        edges = view.edges
        del view  # a file that is mapped into memory cannot be removed on Windows
    seconds = time.monotonic() - begun
    megapixels = part.width * part.height / 1e6
    context.log(
        Message(
            "Done: {megapixels:.1f} megapixels in {seconds:.1f} s ({megapixels_2:.2f} MPix/s).",
            megapixels=megapixels,
            seconds=seconds,
            megapixels_2=megapixels / seconds,
        )
    )
    return SegmentResult(
        request.output,
        part.width,
        part.height,
        shown,
        model.model.id,
        model.device.type,
        edges,
        round(time.monotonic() - started, 3),
        megapixels / seconds,
        request.confidence,
        request.probabilities,
        request.polygons,
        request.areas,
        count,
        tuple([*_hints(request, table, model, shown), *remarks([picture])]),
        provenance,
        picture,
    )


def _has_background(request: SegmentRequest, table: PromptTable) -> bool:
    return request.background or len(table.classes) == 1


def _write(
    request: SegmentRequest,
    table: PromptTable,
    model: Encoder,
    view: SimilarityMaps,
    outputs: Outputs,
    tags: dict[str, str],
    context: Context,
) -> tuple[tuple[ClassArea, ...], int]:
    """Makes all files; what each class covers, and the number of polygons."""
    part = view.part
    scene = view.open()
    whole = (part.width, part.height) == (scene.grid.width, scene.grid.height)
    # Of a picture without coordinates a part needs some, or it would lie at the picture's corner.
    grid = (scene.own_grid if whole else scene.grid).cropped(part.x, part.y, part.x + part.width, part.y + part.height)
    work = mapper(view, table, request.logit_scale, request.refinement)
    counted = areas.ClassAreaCounter(table, grid)
    edge = int((_TILE_BYTES / 4 / len(work.offsets)) ** 0.5) // BLOCK * BLOCK
    windows = tiles(part.width, part.height, min(max(edge, BLOCK), _LARGEST_TILE))
    # Elsewhere the files stay unwritten: nodata.
    windows = [tile for tile in windows if scene.may_contain_data(replace(tile, x=part.x + tile.x, y=part.y + tile.y))]
    mapping = context.subrange(0, 70 if request.polygons else 95)
    nan, count, seen = float("nan"), 0, 0
    with contextlib.ExitStack() as stack:

        def start(path: str, names: Sequence[str], kept: bool = True) -> Writer:
            bands, together = [BandInfo(name) for name in names], outputs if kept else None
            return stack.enter_context(
                Writer(
                    path,
                    grid,
                    np.dtype(np.float32),
                    bands,
                    nodata=nan,
                    tags=tags,
                    progress=finishing,
                    sparse=scene.sparse,
                    outputs=together,
                )
            )

        def finishing(percent: float) -> None:
            context.progress(95 + percent / 20, "Finishing the files")

        output = stack.enter_context(
            Writer(
                request.output,
                grid,
                np.dtype(np.uint8),
                [BandInfo("class")],
                nodata=0,
                tags=tags,
                palette=palette(table),
                progress=finishing,
                sparse=scene.sparse,
                outputs=outputs,
            )
        )
        wanted = request.confidence
        if request.polygons and not wanted:
            wanted = str(outputs.temporary_folder(request.output) / "confidence.tif")
        confidence = start(wanted, ["confidence"], bool(request.confidence)) if wanted else None
        probabilities = start(request.probabilities, table.names) if request.probabilities else None
        mapped = in_order(work.classes, windows, count_threads(request.threads), use_one_thread)
        stack.enter_context(contextlib.closing(mapped))
        for number, (tile, (found, sure, values, valid)) in enumerate(mapped, 1):
            output.write(tile.x, tile.y, found[None])
            if confidence:
                confidence.write(tile.x, tile.y, sure[None])
            if probabilities:
                probabilities.write(tile.x, tile.y, np.where(valid, values[: len(table.classes)], np.float32(nan)))
            counted.add(tile.x, tile.y, found, sure, valid)
            seen += int(valid.sum())
            mapping.progress(100 * number / len(windows), "Mapping")
        if not seen:
            raise ClippanError(
                "The raster {raster} shows nothing but nodata here; choose another place.", raster=request.raster
            )
        if request.polygons and confidence:
            count = polygons.write_polygons(
                output.finish(),
                confidence.finish(),
                request.polygons,
                table,
                request.min_area,
                request.simplify,
                model.model.id,
                context.subrange(70, 95),
                outputs,
            )
        shown = counted.result()
        if request.areas:
            areas.write_csv(request.areas, shown, outputs)
    return shown, count


def _provenance(
    request: SegmentRequest, table: PromptTable, model: Encoder, view: SimilarityMaps, picture: RasterPicture
) -> dict[str, str]:
    return {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_CLASSES": table.json(),
        "CLIPPAN_MODEL": model.model.id,
        "CLIPPAN_MODEL_SHA256": model.sha256,
        "CLIPPAN_WINDOW": ",".join(str(edge) for edge in view.edges),
        "CLIPPAN_PICTURE_BANDS": ",".join(map(str, picture.choice.bands)),
        "CLIPPAN_DEVICE": model.device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }


def _hints(request: SegmentRequest, table: PromptTable, model: Encoder, shown: Sequence[ClassArea]) -> list[str]:
    hints = [*antimeridian_notes(request.extent), *model.text_warnings(prompt_texts(table))]
    if table.model and table.model != model.model.id:
        hints.append(
            Message(
                "The prompt table was calibrated for {model}, not for {id}; calibrate it again for better results.",
                model=table.model,
                id=model.model.id,
            )
        )
    absent = [item.name for item in shown if item.value and not item.pixels]
    if absent:
        hints.append(Message("Found nowhere: {absent}.", absent=", ".join(absent)))
    return hints + (shapefile_hints(table) if request.polygons.lower().endswith(".shp") else [])

"""A map of classes from text: similarities are computed once over windows, then tiles are mapped from them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clippan import __version__
from clippan.catalogue.prompts import PromptTable, shapefile_hints
from clippan.clip.class_vectors import class_vectors, prompt_texts
from clippan.clip.encoder import ClipEncoder
from clippan.clip.similarity import SimilarityMaps, load_prompts_and_encoder
from clippan.core.context import Context
from clippan.core.device import use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.core.threads import count_threads, in_order
from clippan.jobs.rendering import Rendering, band_choice_sentences, rendering_hints
from clippan.jobs.segment import ClassArea, SegmentRequest, SegmentResult
from clippan.labels import areas
from clippan.labels.legend import palette
from clippan.raster.rendering import Renderer, RenderOptions, antimeridian_notes
from clippan.raster.source import BandInfo
from clippan.raster.tiles import tiles
from clippan.raster.writer import BLOCK, Writer
from clippan.segmentation import polygons
from clippan.segmentation.tile_classifier import TileClassifier

_TILE_BYTES = 2**26  # of a tile's probabilities
_LARGEST_TILE = 1024


def run(request: SegmentRequest, context: Context) -> SegmentResult:
    started = time.monotonic()
    table, model = load_prompts_and_encoder(request, context)
    options = RenderOptions(
        bands=request.bands, stretch=request.stretch, nodata=request.nodata, extent=request.extent, crs=request.crs
    )
    scene = Renderer(request.raster, options)
    part = scene.extent_window()
    begun = time.monotonic()
    with Outputs() as outputs:
        classes = class_vectors(model, table, request.background or len(table.classes) == 1)
        folder = outputs.temporary_folder(request.output)
        maps = SimilarityMaps.compute(request, model, classes, scene, part, folder, context.subrange(5, 75))
        rendering = scene.rendering_for(model.channels)
        context.log(band_choice_sentences([rendering])[0])
        provenance = _provenance(request, table, model, maps, rendering)
        class_areas, count = _write(request, table, model, maps, outputs, provenance, context.subrange(75, 100))
        edges = maps.window_sizes
        del maps  # a memory-mapped file cannot be removed on Windows
    seconds = time.monotonic() - begun
    megapixels = part.width * part.height / 1e6
    context.log(
        Message(
            "Done: {megapixels:.1f} megapixels in {seconds:.1f} s ({rate:.2f} MPix/s).",
            megapixels=megapixels,
            seconds=seconds,
            rate=megapixels / seconds,
        )
    )
    return SegmentResult(
        request.output,
        part.width,
        part.height,
        class_areas,
        model.spec.id,
        model.device.type,
        edges,
        round(time.monotonic() - started, 3),
        megapixels / seconds,
        request.confidence,
        request.probabilities,
        request.polygons,
        request.areas,
        count,
        tuple([*_hints(request, table, model, class_areas), *rendering_hints([rendering])]),
        provenance,
        rendering,
    )


def _write(
    request: SegmentRequest,
    table: PromptTable,
    model: ClipEncoder,
    maps: SimilarityMaps,
    outputs: Outputs,
    tags: dict[str, str],
    context: Context,
) -> tuple[tuple[ClassArea, ...], int]:
    """Writes all files; returns the area of each class and the number of polygons."""
    part = maps.aoi
    scene = maps.open()
    whole = (part.width, part.height) == (scene.grid.width, scene.grid.height)
    # Without coordinates, a part gets those of its pixels, so that it does not lie in the corner of the picture.
    grid = (scene.declared_grid if whole else scene.grid).cropped(
        part.x, part.y, part.x + part.width, part.y + part.height
    )
    classifier = TileClassifier(maps, table, request.logit_scale, request.refinement)
    counter = areas.ClassAreaCounter(table, grid)
    edge = int((_TILE_BYTES / 4 / len(classifier.offsets)) ** 0.5) // BLOCK * BLOCK
    windows = tiles(part.width, part.height, min(max(edge, BLOCK), _LARGEST_TILE))
    # Files stay sparse (nodata) where the raster holds no data.
    windows = [
        tile for tile in windows if scene.written.may_contain_data(replace(tile, x=part.x + tile.x, y=part.y + tile.y))
    ]
    mapping = context.subrange(0, 70 if request.polygons else 95)
    nan, count, any_valid = float("nan"), 0, False
    with contextlib.ExitStack() as stack:

        def writer(path: str, dtype: type, names: Sequence[str], nodata: float, **options: Any) -> Writer:
            options.update(progress=lambda percent: context.progress(95 + percent / 20, "Finishing the files"))
            bands = [BandInfo(name) for name in names]
            return stack.enter_context(
                Writer(
                    path,
                    grid,
                    np.dtype(dtype),
                    bands,
                    nodata,
                    tags,
                    sparse=scene.written.occupancy is not None,
                    **options,
                )
            )

        output = writer(request.output, np.uint8, ["class"], 0, palette=palette(table), outputs=outputs)
        path, kept = request.confidence, outputs if request.confidence else None
        if request.polygons and not path:
            path = str(outputs.temporary_folder(request.output) / "confidence.tif")
        confidence = writer(path, np.float32, ["confidence"], nan, outputs=kept) if path else None
        path = request.probabilities
        probabilities = writer(path, np.float32, table.names, nan, outputs=outputs) if path else None
        mapped = in_order(classifier.classify, windows, count_threads(request.threads), use_one_thread)
        stack.enter_context(contextlib.closing(mapped))
        for number, (tile, found) in enumerate(mapped, 1):
            output.write(tile.x, tile.y, found.classes[None])
            if confidence:
                confidence.write(tile.x, tile.y, found.confidence[None])
            if probabilities:
                values = np.where(found.valid, found.probabilities[: len(table.classes)], np.float32(nan))
                probabilities.write(tile.x, tile.y, values)
            counter.add(tile.x, tile.y, found.classes, found.confidence, found.valid)
            any_valid |= bool(found.valid.any())
            mapping.progress(100 * number / len(windows), "Mapping")
        if not any_valid:
            raise ClippanError(
                "The raster {raster} has only nodata here; choose another extent.", raster=request.raster
            )
        if request.polygons and confidence:
            count = polygons.write_polygons(
                output.finish(),
                confidence.finish(),
                request.polygons,
                table,
                request.min_area,
                request.simplify,
                model.spec.id,
                context.subrange(70, 95),
                outputs,
            )
        class_areas = counter.result()
        if request.areas:
            areas.write_csv(request.areas, class_areas, outputs)
    return class_areas, count


def _provenance(
    request: SegmentRequest, table: PromptTable, model: ClipEncoder, maps: SimilarityMaps, rendering: Rendering
) -> dict[str, str]:
    return {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_CLASSES": table.json(),
        "CLIPPAN_MODEL": model.spec.id,
        "CLIPPAN_MODEL_SHA256": model.sha256,
        "CLIPPAN_WINDOW": ",".join(str(edge) for edge in maps.window_sizes),
        "CLIPPAN_PICTURE_BANDS": ",".join(map(str, rendering.choice.bands)),
        "CLIPPAN_DEVICE": model.device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }


def _hints(
    request: SegmentRequest, table: PromptTable, model: ClipEncoder, class_areas: Sequence[ClassArea]
) -> list[str]:
    hints = [*antimeridian_notes(request.extent), *model.text_warnings(prompt_texts(table))]
    if table.model and table.model != model.spec.id:
        hints.append(
            Message(
                "The prompt table was calibrated for the model {calibrated}, not for {model}; calibrate it again for "
                "better results.",
                calibrated=table.model,
                model=model.spec.id,
            )
        )
    absent = [item.name for item in class_areas if item.value and not item.pixels]
    if absent:
        hints.append(Message("These classes were found nowhere: {classes}.", classes=", ".join(absent)))
    return hints + (shapefile_hints(table) if request.polygons.lower().endswith(".shp") else [])

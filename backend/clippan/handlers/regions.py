"""Pictures with labelled boxes, from rasters and their labels: masks, or polygons of a vector layer."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from osgeo import gdal
from PIL import Image

from clippan.core import texts
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, write_error
from clippan.jobs.rendering import band_choice_sentences, rendering_hints
from clippan.jobs.train_clip import ImageFormat, RegionsRequest, RegionsResult
from clippan.learn.clip.region_labels import RegionLabels, open_labels
from clippan.raster.rendering import MIN_VALID_SHARE, Renderer, RenderOptions

TABLE = "regions.json"
_QUALITY = 95  # of JPEG


def run(request: RegionsRequest, context: Context) -> RegionsResult:
    started = time.monotonic()
    gdal.UseExceptions()
    output = Path(request.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ClippanError("The folder {path} is not empty; choose a new or an empty folder.", path=output)
    legend = texts.parse_legend(request.legend)
    options = RenderOptions((request.size,), (), request.overlap, request.bands, request.stretch, request.nodata)
    entries: list[dict] = []
    hints: list[str] = []
    categories: set[str] = set()
    inside: set[str] = set()
    renderings = []
    try:
        with Outputs() as outputs:
            folder = outputs.temporary_folder(str(output)) / "regions"
            (folder / "pictures").mkdir(parents=True)
            count = len(request.rasters)
            for number, (raster, path) in enumerate(zip(request.rasters, request.labels), 1):
                scene = Renderer(raster, options)
                renderings.append(scene.rendering)
                labels = open_labels(path, scene.grid, legend, request.layer, request.field)
                categories |= labels.categories
                inside |= labels.categories - labels.outside
                step = context.subrange(100 * (number - 1) / count, 100 * number / count)
                found = _write_pictures(request, number, scene, labels, folder, step)
                entries += found
                hints += labels.hints
                if not found:
                    hints.append(Message("Nothing was found in {raster}.", raster=raster))
            for sentence in band_choice_sentences(renderings):
                context.log(sentence)
            outside = categories - inside
            objects = Counter(box["category"] for entry in entries for box in entry["boxes"])
            if not entries and categories and not inside:
                raise ClippanError("No label lies on the rasters; check that both show the same area.")
            if not entries:
                raise ClippanError(
                    "No object is large enough or fills enough of its box; lower --least or --fill, or check the "
                    "legend and the labels."
                )
            if outside:
                hints.append(
                    Message("All polygons of {classes} lie outside the rasters.", classes=", ".join(sorted(outside)))
                )
            if unused := sorted(inside - set(objects)):
                hints.append(
                    Message(
                        "No polygon of {classes} was used; they are too small, fill too little of their boxes, or lie "
                        "on nodata.",
                        classes=", ".join(unused),
                    )
                )
            if missing := [name for name in dict.fromkeys(legend.values()) if name not in {*objects, *categories}]:
                hints.append(
                    Message("These classes of the legend were not found: {classes}.", classes=", ".join(missing))
                )
            (folder / TABLE).write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
            if output.exists():
                output.rmdir()
            folder.replace(output)
    except OSError as error:
        raise write_error(output, error) from error
    return RegionsResult(
        str(output),
        str(output / TABLE),
        len(entries),
        dict(sorted(objects.items())),
        (*hints, *rendering_hints(renderings)),
        round(time.monotonic() - started, 3),
        tuple(renderings),
    )


def _write_pictures(
    request: RegionsRequest, number: int, scene: Renderer, labels: RegionLabels, folder: Path, context: Context
) -> list[dict]:
    """Writes the tiles of a raster that hold objects; returns their entries of the table."""
    stem = re.sub(r"[^\w-]+", "_", Path(scene.path).stem) or "raster"
    plan, entries = scene.tile_plan(request.size), []
    progress = Message("Raster {number} of {count}", number=number, count=len(request.rasters))
    options: dict[str, Any] = {"quality": _QUALITY} if request.format is ImageFormat.JPEG else {}
    for position, window, _ in plan.tiles():
        context.progress(100 * position / len(plan), progress)
        boxes = labels.boxes(window, request.least, request.fill)
        if not boxes:
            continue
        picture, valid_share = scene.picture(window, window.width)
        if valid_share < MIN_VALID_SHARE:
            continue
        name = f"pictures/{number}_{stem}_{window.x}_{window.y}.{request.format.value}"
        Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(folder / name, **options)
        entries.append({"file": name, "boxes": [{"box": box.box, "category": box.category} for box in boxes]})
    return entries

#!/usr/bin/env python3
"""Measures Segment by text on the Dubai pictures that the starter CLIP was not trained on, and writes tables.

    python benchmarks/segmentation.py --write docs/segmentation_quality.md

Every row is the job itself, run on GeoTIFFs, with one setting changed. Held out is a fifth of the pictures, by the hash
of their names (``scripts/starter/pictures.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from osgeo import gdal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "backend"), str(ROOT / "scripts")]

from starter import pictures  # noqa: E402

from clippan import __version__  # noqa: E402
from clippan.catalogue.prompts import parse_prompts  # noqa: E402
from clippan.clip import similarity, sliding  # noqa: E402
from clippan.clip.class_vectors import class_vectors  # noqa: E402
from clippan.clip.encoder import load_encoder  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import CalibrateRequest, Context, Device, Refinement, SegmentRequest  # noqa: E402
from clippan.raster.rendering import Renderer, RenderOptions  # noqa: E402
from clippan.raster.tiles import Window, tiles  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
NAMES = list(pictures.MASKS.values())
PROMPTS = "building, roof, house; land, bare soil, sand; road, street; vegetation, trees; water"
PLAIN = "building; land; road; vegetation; water"
CALIBRATED_ON = ("Tile 3/images/image_part_002", "Tile 4/images/image_part_003", "Tile 5/images/image_part_004")
# TerraMesh's land cover in our classes' order; flooded vegetation, snow and cloud do not occur, or hardly.
COVER = {1: "water", 2: "forest, trees", 4: "cropland, farmland", 5: "buildings, houses", 9: "grassland, shrubland"}


@dataclass(frozen=True)
class Place:
    """A raster with its truth: 1 to N, 0 where unknown."""

    name: str
    path: str
    labels: str
    truth: np.ndarray


def written(path: Path, values: np.ndarray) -> str:
    bands, height, width = values.shape
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), width, height, bands, gdal.GDT_Byte)
    for number in range(bands):
        dataset.GetRasterBand(number + 1).WriteArray(values[number])
    return str(path)


def places(data: Path, folder: Path) -> list[Place]:
    """The held-out pictures of Dubai, as files."""
    found = []
    for item in [*pictures.masked(data, pictures.HELD_OUT), *pictures.masked(data, pictures.VALIDATION)]:
        name = item.file.removesuffix(".jpg").split("/", item.file.count("/") - 2)[-1]
        truth = np.where(item.classes == 255, 0, item.classes + 1).astype(np.uint8)
        stem = name.replace("/", "_").replace(" ", "")
        path = written(folder / f"{stem}.tif", item.pixels.transpose(2, 0, 1))
        found.append(Place(name, path, written(folder / f"{stem}_labels.tif", truth[None]), truth))
    return found


def terramesh(data: Path, folder: Path) -> list[Place]:
    """TerraMesh's three sites: twelve bands of Sentinel-2, with land cover."""
    found = []
    for file in sorted((data / "terramesh" / "S2L2A").glob("*.tif")):
        dataset = gdal.Open(str(data / "terramesh" / "LULC" / file.name))
        cover = dataset.ReadAsArray()
        truth = np.zeros(cover.shape, np.uint8)
        for number, key in enumerate(COVER, 1):
            truth[cover == key] = number
        found.append(Place(file.stem, str(file), written(folder / f"{file.stem}_labels.tif", truth[None]), truth))
    return found


def measure(found: Sequence[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, Any]:
    """Pixel accuracy, mean IoU over the classes that occur, and the IoU of each; unclassified pixels count as wrong."""
    table = np.zeros((classes + 1, classes + 1))
    for shown, truth in found:
        known = truth > 0
        table += np.bincount(truth[known].astype(int) * (classes + 1) + shown[known], minlength=table.size).reshape(
            table.shape
        )
    hits = np.diag(table)[1:]
    union = table.sum(axis=0)[1:] + table.sum(axis=1)[1:] - hits
    there = table.sum(axis=1)[1:] > 0
    each = hits / np.maximum(union, 1)
    return {"accuracy": hits.sum() / table.sum(), "miou": each[there].mean(), "iou": each, "there": there}


def job(where: Sequence[Place], folder: Path, classes: str, **options: Any) -> dict[str, Any]:
    """The measures of the job's maps."""
    shown = []
    for place in where:
        result = run(SegmentRequest(raster=place.path, classes=classes, output=str(folder / "map.tif"), **options))
        shown.append((gdal.Open(result.output).ReadAsArray(), place.truth))
    return measure(shown, len(parse_prompts(classes).classes))


def without_dense(where: Sequence[Place], classes: str, edge: int, model: str) -> dict[str, Any]:
    """Each window by the vector of the whole, side by side: what a tile classifier does."""
    eye = load_encoder(model, Device.CPU, Context())
    sought = class_vectors(eye, parse_prompts(classes), False)
    shown = []
    for place in where:
        scene = Renderer(place.path, RenderOptions())
        found = np.zeros(place.truth.shape, np.uint8)
        for window in tiles(scene.grid.width, scene.grid.height, edge):
            picture, _ = scene.picture(window, eye.image_size)
            likeness = eye.encode_images(picture[None]) @ sought.vectors.T
            found[window.y : window.y + window.height, window.x : window.x + window.width] = (
                sought.class_of[likeness.argmax()] + 1
            )
        shown.append((found, place.truth))
    return measure(shown, sought.classes)


@contextlib.contextmanager
def side_by_side() -> Iterator[None]:
    """Windows without overlap, and so without blending."""
    real = sliding.SlidingWindows.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, model: Any, width: int, height: int, edge: int, part: Window) -> sliding.SlidingWindows:
        cells = model.image_size * (sliding.INPUT_SCALE if model.accepts_any_size else 1) // model.output_stride
        return real(cls, model, width, height, edge, part, cells)

    with mock.patch.object(similarity.SlidingWindows, "of", classmethod(of)):
        yield


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def row(label: str, found: dict[str, Any]) -> list[str]:
    each = [f"{value:.2f}" if there else "–" for value, there in zip(found["iou"], found["there"])]
    return [label, f"{found['accuracy']:.3f}", f"{found['miou']:.3f}", *each]


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = places(options.data, folder)
        header = ["", "pixels right", "mean IoU", *NAMES]
        some = where[::3]
        edge = _edge(where[0], options.model)
        rows = []
        for label, classes in (("as it is", PROMPTS), ("names only, no synonyms", PLAIN)):
            found = job(where, folder, classes, model=options.model)
            rows.append(row(label, found))
            print(rows[-1], flush=True)
        found = without_dense(where, PROMPTS, edge, options.model)
        rows.append(row("without dense features: one vector per window", found))
        print(rows[-1], flush=True)
        changes: list[tuple[str, dict[str, Any]]] = [
            ("as it is", {}),
            ("without refinement", {"refinement": Refinement.NONE}),
            ("with a bias of −0.3", {"bias": -0.3}),
            ("with mirrored pictures", {"flips": True}),
            (f"windows of {edge} only", {"window": (edge,)}),
            (f"windows of {edge * 2} only", {"window": (edge * 2,)}),
        ]
        tricks = []
        for label, settings in changes:
            found = job(some, folder, PROMPTS, model=options.model, **settings)
            tricks.append(row(label, found))
            print(tricks[-1], flush=True)
        with side_by_side():
            found = job(some, folder, PROMPTS, model=options.model)
        tricks.append(row("without overlap and blending", found))
        few = [place for place in where if place.name in CALIBRATED_ON]
        rest = [place for place in where if place.name not in CALIBRATED_ON]
        table = folder / "table.json"
        calibrated = run(
            CalibrateRequest(
                rasters=tuple(place.path for place in few),
                samples=tuple(place.labels for place in few),
                classes=PROMPTS,
                output=str(table),
                model=options.model,
            )
        )
        before = job(rest, folder, PROMPTS, model=options.model)
        after = job(rest, folder, str(table), model=options.model)
        learned = [row("before", before), row(f"after, from {len(few)} pictures", after)]
        print(learned, flush=True)
        sites = terramesh(options.data, folder)
        land = job(sites, folder, "; ".join(COVER.values()), model=options.model)
        cover = [row("as it is", land)]
        print(cover, flush=True)
    text = "\n\n".join(
        [
            "# Measured: Segment by text",
            f"Measured on {datetime.date.today()} with CLIPPan {__version__} and the model {options.model} by "
            f"`python benchmarks/segmentation.py`, in {time.monotonic() - began:.0f} s on the CPU of this computer.",
            f"## Dubai, {len(where)} pictures with masks",
            "The starter model was not trained on these pictures, but on others of the same six places. For places "
            "that it has not seen, see `resources/starter-clip/README.md`; it is less good there. The pictures have "
            "no coordinates. Prompts: `{PROMPTS}`. Windows of {edge} and {edge * 2} pixels are averaged. Two sizes "
            "became the default after looking at the rows below, so these figures are slightly optimistic.",
            markdown(header, rows),
            f"## What each setting contributes, on {len(some)} of the pictures",
            "One setting is changed at a time. For transformers, the bias of the whole window is −0.3 by default "
            "(SegEarth-OV); this model is convolutional, and its cells contain little of the whole window.",
            markdown(header, tricks),
            "## Calibrated on three of the pictures",
            f"The other {len(rest)} pictures, before and after. On the three, left out in turn, the calibration "
            f"expected {calibrated.after.accuracy:.3f} and {calibrated.after.mean_iou:.3f} instead of "
            f"{calibrated.before.accuracy:.3f} and {calibrated.before.mean_iou:.3f}. " + " ".join(calibrated.hints),
            markdown(header, learned),
            "## TerraMesh: Sentinel-2 at 10 m, three sites",
            "Twelve bands, unchanged; no training used any of this data. Read the figures with care: the land cover "
            "is itself a derived product and not a survey, one site is covered with snow, and in another its "
            "borders can hardly be seen in the picture.",
            markdown(["", "pixels right", "mean IoU", *(text.split(",")[0] for text in COVER.values())], cover),
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


def _edge(place: Place, model: str) -> int:
    """The window that the job chooses."""
    scene = Renderer(place.path, RenderOptions())
    return similarity.default_window_sizes(scene, load_encoder(model, Device.CPU, Context()), scene.extent_window())[0]


if __name__ == "__main__":
    main()

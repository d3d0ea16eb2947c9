#!/usr/bin/env python3
"""Measures cross-modal alignment: students for Sentinel-2 (12 bands) and Sentinel-1 learn from the starter CLIP.

    python benchmarks/alignment.py --write docs/alignment.md

Three sites of TerraMesh; a student learns on two of them and is measured on the third, which it never saw: how well
its chips and the teacher's pictures find each other, how often it says of a place what the teacher says, and, with land
cover as the truth, how often both are right. Then the student's folder is used as a model: an index of the Sentinel-1
raster is searched by text.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from osgeo import gdal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "backend")]

from clippan import __version__  # noqa: E402
from clippan.clip.encoder import load_encoder  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import AlignSensorRequest, AlignSensorResult, Context, Device, IndexRequest, Recall, SearchRequest  # noqa: E402
from clippan.raster.rendering import Renderer, RenderOptions  # noqa: E402
from clippan.raster.tiles import Window  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
SITES = {"38D_378R_2_3": "rangeland", "433D_629L_3_1": "fields by the sea", "609U_541L_3_0": "snow"}
SENSORS = {"Sentinel-2, 12 bands": "S2L2A", "Sentinel-1, VV and VH": "S1RTC"}
# TerraMesh's land cover, and the words for it.
COVER = {1: "water", 2: "forest", 4: "annual crop land", 5: "buildings", 6: "bare land", 7: "snow", 9: "grassland"}
SIZE = 32  # pixels of a chip
STRIP = 0.3  # of two sites, which measures where none is left out


def cover(path: Path) -> tuple[list[Window], list[str]]:
    """Chips of a site of which one class covers half or more, and its word."""
    values = gdal.Open(str(path)).ReadAsArray()
    windows, names = [], []
    for y in range(0, values.shape[0] - SIZE + 1, SIZE):
        for x in range(0, values.shape[1] - SIZE + 1, SIZE):
            found, counts = np.unique(values[y : y + SIZE, x : x + SIZE], return_counts=True)
            if int(found[counts.argmax()]) in COVER and counts.max() >= SIZE**2 / 2:
                windows.append(Window(x, y, SIZE, SIZE))
                names.append(COVER[int(found[counts.argmax()])])
    return windows, names


def named(model: str, raster: Path, windows: Sequence[Window]) -> list[str]:
    """What a model calls chips of a raster."""
    clip = load_encoder(model, Device.CPU, Context())
    scene = Renderer(str(raster), RenderOptions(), channels=clip.channels)
    pictures = np.stack([scene.picture(window, clip.image_size)[0] for window in windows])
    words = list(COVER.values())
    return [words[place] for place in (clip.encode_images(pictures) @ clip.encode_texts(words).T).argmax(1)]


def searched(model: str, raster: Path, truth: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Cells of a table: for each class that covers some of the raster, how much of it is in the places that its word
    finds first, beside how much is in all of it."""
    index = str(folder / "index.gpkg")
    run(
        IndexRequest(
            rasters=(str(raster),), output=index, model=model, tile=(SIZE,), overlap=0.5, threads=1, device=Device.CPU
        )
    )
    values = gdal.Open(str(truth)).ReadAsArray()
    rows = []
    for value, word in COVER.items():
        everywhere = float((values == value).mean())
        if not 0.02 <= everywhere <= 0.95:
            continue
        hits = run(SearchRequest(index=index, text=(word,), top=5, device=Device.CPU)).hits
        parts = [values[y : y + h, x : x + w] == value for x, y, w, h in (hit.window for hit in hits)]
        there = float(np.mean([part.mean() for part in parts]))
        rows.append((f"“{word}”", percent(there), percent(everywhere)))
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def recalls(found: Recall) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in (found.at_1, found.at_5, found.at_10))


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], texts: int, rows: Sequence[str]) -> str:
    """As Markdown; the first ``texts`` columns hold words."""
    return "\n".join([row(*head), "|" + "---|" * texts + "---:|" * (len(head) - texts), *rows])


def aligned(options: argparse.Namespace, left: str, folder: str, output: str) -> AlignSensorResult:
    """A student for a sensor, which has not seen one of the sites; where none is left out, not the lower part of the
    first two."""
    sites = list(SITES) if left else list(SITES)[:2]
    teachers, sensors = (
        tuple(str(options.data / "terramesh" / kind / f"{site}.tif") for site in sites) for kind in ("S2RGB", folder)
    )
    request = AlignSensorRequest(
        teacher_rasters=teachers,
        sensor_rasters=sensors,
        output=output,
        test=(sites.index(left) + 1,) if left else (),
        held=STRIP,
        size=SIZE,
        overlap=options.overlap,
        words="; ".join(COVER.values()),
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        threads=1,
    )
    return run(request, Context(log=lambda line: print(line, flush=True)))


def report(
    options: argparse.Namespace,
    done: AlignSensorResult,
    strips: AlignSensorResult,
    spent: float,
    rows: Sequence[str],
    covers: Sequence[str],
    searches: Sequence[str],
) -> str:
    """The page."""
    command = f"python benchmarks/alignment.py --sites {' '.join(options.sites)} --write docs/alignment.md"
    found = [
        "left out", "student", "sensor finds its picture", "picture finds its sensor chip", "before the first step",
        "by chance", "cosine to the teacher", "same word as the teacher",
    ]  # fmt: skip
    parts = [
        "# Measured: alignment of other sensors",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__} with one thread "
        f"on {platform.machine()} ({platform.system()}), by `{command}`; all alignments together took {spent:.0f} s.",
        "The teacher is the starter CLIP, which sees the pictures of the sites in natural colours (TerraMesh "
        "`S2RGB`). The students see `S2L2A` (12 bands) or `S1RTC` (VV and VH in dB). Two of the three sites of 224 "
        "× 224 pixels are used for training, in overlapping chips of {SIZE} × {SIZE} pixels ({done.chips}). The "
        "third is used to measure, in {done.held} chips that do not overlap; nothing from it was used in the "
        "training or for the value ranges of the bands. {options.steps} steps of {options.batch} chips; weights: "
        "mse 1, cosine 1, contrast 0.1, label "
        "0.05.",
        "## Retrieval",
        "Recall at 1 / 5 / 10 in percent, among the chips of the site that was left out.",
        table(found, 2, rows),
        "In the last two rows no site is left out, but a strip at the bottom of the first two, the lower "
        f"{STRIP:.0%}: {strips.held} chips next to the land used for training ({strips.chips} chips).",
        "The student for Sentinel-2 starts as the teacher, because red, green and blue are among its bands; the "
        "column “before the first step” shows how much of its recall comes from that. The student for Sentinel-1 "
        "starts as the teacher of a grey picture.",
        "## Land cover",
        f"Classified by words alone ({', '.join(COVER.values())}), for the chips in which one class covers half or "
        "more. The last column is the accuracy of always choosing the most common class.",
        table(["left out", "student", "chips", "teacher right", "student right", "most common class"], 2, covers),
        "## Text search over Sentinel-1",
        "`clippan index` of the Sentinel-1 raster of the site that was left out, with the student as `--model`, and "
        "`clippan search` by a word: the share of the class in the first five places, and in the whole site. "
        "(No class of the site in snow covers between 2 and 95 % of it.)",
        table(["left out", "text", "in the first five places", "everywhere"], 2, searches),
        "Two small sites are far too few for a student that is good elsewhere. The figures show that the method "
        "works, and how much two sites help on a third that is different.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sites", nargs="+", default=list(SITES), choices=list(SITES), help="to be left out in turn")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gdal.UseExceptions()
    rows, covers, searches, spent = [], [], [], 0.0
    last: dict[bool, AlignSensorResult] = {}
    for left in [*options.sites, ""]:
        for name, folder in SENSORS.items():
            with tempfile.TemporaryDirectory() as temporary:
                done = aligned(options, left, folder, str(Path(temporary) / "student"))
                spent += done.seconds
                last[bool(left)] = done
                figures = (done.to_picture, done.from_picture, done.before, done.chance)
                cells = [*map(recalls, figures), f"{done.cosine:.2f}", percent(done.agreement or 0)]
                rows.append(row(SITES[left] if left else "strips", name, *cells))
                print(rows[-1], flush=True)
                if not left:
                    continue
                site = f"{left}.tif"
                truth = options.data / "terramesh" / "LULC" / site
                windows, names = cover(truth)
                said = (
                    named("starter", options.data / "terramesh" / "S2RGB" / site, windows),
                    named(done.model, options.data / "terramesh" / folder / site, windows),
                )
                right = [float(np.mean([a == b for a, b in zip(words, names)])) for words in said]
                most = max(names.count(word) for word in set(names)) / len(names)
                covers.append(row(SITES[left], name, str(len(names)), *map(percent, (*right, most))))
                print(covers[-1], flush=True)
                if folder == "S1RTC":
                    raster = options.data / "terramesh" / folder / site
                    found = searched(done.model, raster, truth, Path(temporary))
                    searches += [row(SITES[left], *cells) for cells in found]
    text = report(options, last[True], last[False], spent, rows, covers, searches)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

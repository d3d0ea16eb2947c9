#!/usr/bin/env python3
"""Times Segment by text with a FarSLIP-shaped ViT-B/16 against its bare encoder on the same windows.

    python benchmarks/segmentation_speed.py --write docs/segmentation_speed.md

The checkpoint has the published shape (a state_dict under ``module.``) and random weights: speed does not depend on
them. The bare encoder gets the windows' pictures from memory, in the same precision; half is timed before the job, half
after it, since a shared machine changes its pace. The starter model is timed beside it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from osgeo import gdal, osr
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))

from clippan import __version__  # noqa: E402
from clippan.clip.encoder import ClipEncoder, load_encoder  # noqa: E402
from clippan.clip.similarity import default_window_sizes  # noqa: E402
from clippan.clip.sliding import SlidingWindows  # noqa: E402
from clippan.core.device import set_threads, supports_bfloat16  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import Context, Device, SegmentRequest  # noqa: E402
from clippan.raster.rendering import Renderer, RenderOptions  # noqa: E402
from clippan.raster.tiles import Window  # noqa: E402

CLASSES = "water; forest, trees; cropland, field; building, roof, house; road, street"


def checkpoint(folder: Path) -> Path:
    """A FarSLIP ViT-B/16 with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu")
    path = folder / "FarSLIP1_ViT-B-16.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def raster(path: Path, size: int) -> Path:
    """Three bands of bytes with structure at every scale, at half a metre."""
    rng = np.random.default_rng(0)
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), size, size, 3, gdal.GDT_Byte, ["TILED=YES"])
    dataset.SetGeoTransform((500000, 0.5, 0, 5000000, 0, -0.5))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    for number in range(3):
        values = np.zeros((size, size), np.float32)
        for level in (8, 64, 512):
            noise = rng.uniform(0, 85, (size // level + 1, size // level + 1)).astype(np.float32)
            values += np.kron(noise, np.ones((level, level), np.float32))[:size, :size]
        dataset.GetRasterBand(number + 1).WriteArray(values.astype(np.uint8))
    dataset.FlushCache()
    return path


def windows(model: ClipEncoder, path: Path, edge: int) -> np.ndarray:
    """The pictures that the job looks at."""
    scene = Renderer(str(path), RenderOptions())
    width, height = scene.grid.width, scene.grid.height
    layout = SlidingWindows.of(model, width, height, edge, Window(0, 0, width, height))
    found = []
    for row in range(layout.first_row, layout.end_row):
        for _, window in layout.windows(row):
            inside = Window(
                window.x, window.y, min(window.width, width - window.x), min(window.height, height - window.y)
            )
            found.append(scene.picture(inside, layout.pixels)[0])
    return np.stack(found)


def bare(model: ClipEncoder, pictures: np.ndarray) -> float:
    """Seconds that the encoder alone takes, in the precision of the dense path."""

    def encode(values: Tensor) -> tuple[Tensor]:
        return (functional.normalize(model._loaded.network.encode_image(values).float(), dim=-1),)

    start = time.perf_counter()
    model._batched(pictures, encode, torch.bfloat16 if supports_bfloat16() else None)
    return time.perf_counter() - start


def main() -> None:
    """Prints the table, and writes it into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--device", default="auto", choices=[device.value for device in Device])
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    set_threads(0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = raster(folder / "scene.tif", options.size)
        for label, which in (("FarSLIP-shaped ViT-B/16", str(checkpoint(folder))), ("starter", "starter")):
            model = load_encoder(which, Device(options.device), Context())
            request = SegmentRequest(
                raster=str(path),
                classes=CLASSES,
                output=str(folder / "map.tif"),
                model=which,
                device=Device(options.device),
            )
            small = raster(folder / "warm.tif", 512)
            run(
                SegmentRequest(
                    raster=str(small),
                    classes=CLASSES,
                    output=str(folder / "warm_map.tif"),
                    model=which,
                    device=request.device,
                )
            )
            first = Renderer(str(path), RenderOptions())
            sizes = default_window_sizes(first, model, first.extent_window())
            pictures = np.concatenate([windows(model, path, edge) for edge in sizes])
            half = len(pictures) // 2
            before = bare(model, pictures[:half])
            result = run(request)
            after = bare(model, pictures[half:])
            alone = before + after
            whole = result.width * result.height / 1e6 / result.rate
            rows.append(
                f"| {label} | {len(pictures)} of {', '.join(map(str, result.window))} | {len(pictures) / alone:.1f} | "
                f"{len(pictures) / whole:.1f} | {100 * (whole / alone - 1):+.0f} % | {result.rate:.3f} |"
            )
            print(rows[-1], flush=True)
            device = result.device
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    precision = "float16" if device == "cuda" else "bfloat16" if supports_bfloat16() else "float32"
    text = "\n\n".join(
        [
            "# Speed of Segment by text",
            f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__} on "
            f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, {device}, {precision}, by "
            f"`python benchmarks/segmentation_speed.py --size {options.size}`: a raster of {options.size}² pixels at "
            "half a metre and five classes. The time of the job includes reading, dense features, blending, "
            "refinement and writing.",
            "| model | windows | bare encoder, windows/s | job, windows/s | job takes | MPix/s |\n"
            "|---|---:|---:|---:|---:|---:|\n" + "\n".join(rows),
            f"Peak memory of the process, including the benchmark's own pictures: {peak:,.0f} MiB.",
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

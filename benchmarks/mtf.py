"""How well the MTF of the bands is measured, and what it is worth, on pairs that are degraded here in known ways.

    .venv/bin/python benchmarks/mtf.py [--pairs FOLDER] [--raw FOLDER] [--runs FOLDER] [--write docs/mtf.md]

The multispectral raster of each pair is the truth. It is made coarser by means of pixels, by cubic resampling with and
without a low pass, and by Gaussians of several MTF gains at the Nyquist frequency, also of unequal ones along both axes
and by band, and displaced by half a pixel; PAN is brought to its grid. MTF-GLP-HPM-R then works with the MTF of the
sensor table (generic), with the measured one, and with what ``auto`` makes of both. With --runs, trainings that left
out sensors (see ``quality``), the network that never saw the sensor is compared with it.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import quality
import torch
from osgeo import gdal

from clippan import __version__
from clippan.fusion import filters
from clippan.fusion.mtf_estimation import choose_mtf
from clippan.fusion.registration import register
from clippan.handlers import run
from clippan.jobs import AssessRequest, Compression, Context, Method, PansharpenRequest, Registration
from clippan.jobs.options import MtfSource
from clippan.learn.fusion.degradation import Blur
from clippan.raster.grid import AxisTransform, Grid
from clippan.raster.pair import open_pair
from clippan.raster.tiles import Window

_EDGE = 320  # multispectral pixels of a pair, at most
_PAN_GAIN = 0.15


@dataclass(frozen=True)
class Degradation:
    """How MS is made coarser: one blur, or one for each band in turn, and a displacement in pixels of the truth."""

    label: str
    blurs: tuple[Blur, ...]
    shift: float = 0.0


def _gaussian(x: float, y: float | None = None) -> Blur:
    return Blur("gaussian", x, x if y is None else y)


DEGRADATIONS = [
    *(Degradation(f"Gaussian {gain}", (_gaussian(gain),)) for gain in (0.1, 0.2, 0.3, 0.45, 0.6)),
    Degradation("Gaussian, 0.2 and 0.4 along the axes (0.28)", (_gaussian(0.4, 0.2),)),
    Degradation("Gaussian, by band 0.2, 0.3, 0.4, 0.5 (0.35)", tuple(map(_gaussian, (0.2, 0.3, 0.4, 0.5)))),
    Degradation("Gaussian 0.3, displaced by half a pixel", (_gaussian(0.3),), 0.5),
    Degradation("mean of pixels (0.64)", (Blur("box"),)),
    Degradation("cubic, antialiased (0.47)", (Blur("cubic"),)),
    Degradation("cubic, without a low pass (none)", (Blur("sampling"),)),
]


def degrade(case: quality.Case, how: Degradation, folder: Path) -> None:
    """Writes ``pan.tif``, ``ms.tif`` and ``gt.tif``."""
    with open_pair(str(case.pan), [str(path) for path in case.ms]) as pair:
        gains = case.sensor.mtf_gains(range(pair.ms.available_bands), pair.ms.available_bands)
        pair, _ = register(pair, Registration.GLOBAL, gains, 2, Context())
        ratio = round(pair.x_axis.ratio)
        width, height = (min(size, _EDGE) // ratio * ratio for size in (pair.ms.grid.width, pair.ms.grid.height))
        window = Window(0, 0, width, height)
        truth = pair.read_ms(window)[0].astype(np.float32)
        pan = quality.degraded_pan(pair, window, _PAN_GAIN)
    coarse = []
    for number, band in enumerate(truth):
        blur = how.blurs[number % len(how.blurs)]
        matrices = []
        for length, gain in ((height, blur.gain_y), (width, blur.gain_x)):
            axis = AxisTransform(ratio, how.shift)
            margin = filters.mtf_reach(min(gain, 0.1), ratio) + 2 * ratio
            matrix = blur.matrix(axis, 0, length // ratio, -margin, length + 2 * margin, gain)
            matrices.append((matrix, margin))
        (rows, top), (columns, left) = matrices
        wide = np.pad(band, ((top, top), (left, left)), "symmetric")
        coarse.append(filters.apply_separable(rows, torch.from_numpy(wide), columns).numpy())
    fine = Grid(width, height, (0, 1, 0, 0, 0, -1), "")
    dtype = np.dtype("float32")
    quality.write(folder / "pan.tif", fine, pan[None], dtype)
    quality.write(folder / "gt.tif", fine, truth, dtype)
    grid = Grid(width // ratio, height // ratio, (0, ratio, 0, 0, 0, -ratio), "")
    quality.write(folder / "ms.tif", grid, np.stack(coarse), dtype)


def measured(pan: Path, ms: list[Path], table: tuple[float, ...]) -> tuple[float, ...]:
    """MTF gain of each band by the images alone."""
    with open_pair(str(pan), [str(path) for path in ms]) as pair:
        pair, _ = register(pair, Registration.AUTO, table, 2, Context())
        found = choose_mtf(pair, MtfSource.DATA, table, 2, Context())
        return tuple(gain for gain, _ in found.measured)


def q2n(folder: Path, source: MtfSource, model: str = "") -> float:
    """Q2n of MTF-GLP-HPM-R, or of a network, against the truth."""
    pan, ms, output = (str(folder / name) for name in ("pan.tif", "ms.tif", "out.tif"))
    run(
        PansharpenRequest(
            pan=pan,
            ms=(ms,),
            output=output,
            method=Method.CLIPPAN if model else Method.MTF_GLP_HPM_R,
            model=model,
            sensor="generic",
            mtf=source,
            compression=Compression.NONE,
            overviews=False,
        )
    )
    result = run(AssessRequest(fused=output, pan=pan, ms=(ms,), reference=str(folder / "gt.tif"), sensor="generic"))
    return result.reference["Q2n"]


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser()
    data = quality.ROOT.parent / "shared" / "data"
    parser.add_argument("--pairs", type=Path, default=data / "pan")
    parser.add_argument(
        "--raw", type=Path, default=data / "pan_raw", help="pairs as delivered, which are only measured"
    )
    parser.add_argument("--runs", type=Path, help="trainings that left out sensors")
    parser.add_argument("--only", default="", help="pairs whose name contains this")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    gains: dict[str, list[float]] = defaultdict(list)
    scores: dict[str, list[list[float]]] = defaultdict(list)
    models = quality.left_out(options.runs) if options.runs else {}
    of_network: dict[str, list[tuple[float, str]]] = defaultdict(list)
    whole = [case for case in quality.cases(options.pairs) if case.reference is None and options.only in case.name]
    first = {case.group: case for case in reversed(whole)}  # one pair of each sensor
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in first.values():
            print(case.name, file=sys.stderr)
            for how in DEGRADATIONS:
                degrade(case, how, folder)
                found = measured(folder / "pan.tif", [folder / "ms.tif"], (0.3,) * 64)
                gains[how.label] += found
                scores[how.label].append(
                    [q2n(folder, source) for source in (MtfSource.TABLE, MtfSource.DATA, MtfSource.AUTO)]
                )
                if case.group in models:
                    difference = q2n(folder, MtfSource.AUTO, str(models[case.group])) - scores[how.label][-1][-1]
                    of_network[how.label].append((difference, case.group))
    rows = [
        [
            label,
            f"{np.median(found):.2f}",
            f"{np.percentile(found, 10):.2f} to {np.percentile(found, 90):.2f}",
            *(f"{value:.3f}" for value in np.mean(scores[label], axis=0)),
        ]
        for label, found in gains.items()
    ]
    raw = []
    for case in [*first.values(), *(quality.cases(options.raw)[1:] if options.raw.exists() else [])]:
        with open_pair(str(case.pan), [str(path) for path in case.ms]) as pair:
            table = case.sensor.mtf_gains(range(pair.ms.count), pair.ms.available_bands)
        found = measured(case.pan, list(case.ms), table)
        raw.append([case.name, *(", ".join(f"{gain:.2f}" for gain in part[:6]) for part in (table, found))])
    network = []
    if of_network:
        rows_of_network = [
            [
                label,
                f"{np.mean([value for value, _ in found]):+.3f}",
                f"{min(found)[0]:+.3f} ({min(found)[1]})",
                f"{max(found)[0]:+.3f} ({max(found)[1]})",
            ]
            for label, found in of_network.items()
        ]
        network = [
            "## The network on them",
            "Q2n of the network minus that of MTF-GLP-HPM-R, both with what `auto` takes; the network is one whose "
            "training never saw the sensor of the pair. Where bands are sharper than the optics of a sensor make them, "
            "it holds back, and the result is that of MTF-GLP-HPM-R.",
            quality.markdown(["degraded by", "mean", "least", "most"], rows_of_network),
        ]
    command = shlex.join(["python", "benchmarks/mtf.py", *sys.argv[1:]])
    text = "\n\n".join(
        [
            "# The measured MTF",
            f"Measured on {datetime.date.today()} with CLIPPan {__version__} by `{command}`: one pair of each of "
            f"{len(first)} sensors, made coarser here in a known way. The gain in brackets is the true one. Measured "
            "gains are over all bands of all pairs; Q2n is that of MTF-GLP-HPM-R with the MTF of the table (0.3), with "
            "the measured one, and with what `auto` takes.",
            "PAN is brought to the grid of MS with an MTF gain of 0.15, so that it is itself a little blurred there. "
            "What is measured is the blur of MS relative to PAN, which is what fusion needs; at ratio 2 it is "
            "noticeably less than that of MS alone.",
            quality.markdown(
                ["degraded by", "measured, median", "10 to 90 %", "Q2n, table", "Q2n, data", "Q2n, auto"], rows
            ),
            *network,
            "## Pairs as delivered",
            "The first six bands. Where a panchromatic band was restored (sharpened) by its provider, MS looks more "
            "blurred against it than any sensor is; then the table is used.",
            quality.markdown(["pair", "sensor table", "measured"], raw),
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

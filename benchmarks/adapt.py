"""What adapting the fusion model to a scene brings, on real pairs.

    .venv/bin/python benchmarks/adapt.py [--all] [--pairs FOLDER] [--runs FOLDER] [--write docs/adaptation.md]

Each pair is adapted to, and fused by the start model and by the adapted one. Both results are assessed as
``benchmarks/quality.py`` does it: at full resolution without a reference, and one scale down (Wald's protocol), where
the original MS is the reference. The figures are those of the jobs Pansharpen and Assess, not those that the adaptation
itself goes by.

One pair a sensor by default, the first; --all takes them all. The model that ships was trained on these sensors; --runs
names a folder of trainings that each left out some sensors, and each pair starts from the one that never saw its own.
Where no better model is found, the start model is kept: such a scene counts as not improved.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from osgeo import gdal

from clippan import __version__
from clippan.core.threads import count_threads
from clippan.fusion.model import shipped
from clippan.handlers import run
from clippan.jobs import (
    AdaptFusionRequest,
    AssessRequest,
    Compression,
    Context,
    Method,
    PansharpenRequest,
    Registration,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import quality  # noqa: E402

FULL = ["HQNR", "D_lambda_K", "D_s", "HP_correlation"]
REDUCED = ["Q2n", "SAM", "ERGAS"]
SHARE, WORST = 0.75, 2.0  # what is aimed at: scenes improved, and loss of SAM in percent


@dataclass(frozen=True)
class Row:
    """One pair: figures before and after, seconds, and steps, which are 0 where the start model was kept."""

    name: str
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    steps: int

    @property
    def angle(self) -> float:
        """Change of SAM in percent; below zero is better."""
        return 100 * (self.after["SAM"] / self.before["SAM"] - 1)


def measured(model: Path, case: quality.Case, reduced: quality.Case, folder: Path) -> dict[str, float]:
    """Figures of a model on a pair at both scales."""
    found: dict[str, float] = {}
    for item, names in ((case, FULL), (reduced, REDUCED)):
        fused, ms = str(folder / "fused.tif"), tuple(str(path) for path in item.ms)
        run(
            PansharpenRequest(
                pan=str(item.pan),
                ms=ms,
                output=fused,
                method=Method.CLIPPAN,
                model=str(model),
                sensor=item.sensor.name,
                compression=Compression.NONE,
                overviews=False,
            )
        )
        reference = str(item.reference) if item.reference else None
        result = run(AssessRequest(fused=fused, pan=str(item.pan), ms=ms, reference=reference, sensor=item.sensor.name))
        values = {**result.full, **result.reference}
        found.update({name: values[name] for name in names})
    return found


def adapted(case: quality.Case, start: Path, clip: str, seconds: float, threads: int, folder: Path) -> Row:
    """Adapts to a pair and measures it."""
    reduced = quality.degrade(case, folder, Registration.AUTO)
    before = measured(start, case, reduced, folder)
    output = folder / "adapted.safetensors"
    request = AdaptFusionRequest(
        pan=str(case.pan),
        ms=tuple(str(path) for path in case.ms),
        output=str(output),
        model=str(start),
        sensor=case.sensor.name,
        clip=clip,
        seconds=seconds,
        threads=threads,
    )
    result = run(request, Context(log=lambda line: print(f"  {line}", file=sys.stderr)))
    after = measured(output, case, reduced, folder) if result.improved else before
    return Row(case.name, before, after, result.seconds, result.steps)


def table(rows: list[Row]) -> str:
    """Before → after, a line a pair."""
    lines = []
    for row in rows:
        cells = [row.name]
        for name in (*FULL, *REDUCED):
            digits = 2 if name in ("SAM", "ERGAS") else 3
            cells.append(f"{row.before[name]:.{digits}f} → {row.after[name]:.{digits}f}")
        lines.append(
            [*cells, f"{row.angle:+.1f} %", str(row.steps) if row.steps else "start kept", f"{row.seconds:.0f}"]
        )
    return quality.markdown(["pair", *FULL, *REDUCED, "SAM changes by", "steps", "seconds"], lines)


def summary(rows: list[Row]) -> str:
    """What is aimed at, and what was reached."""
    better = sum(row.after["HQNR"] > row.before["HQNR"] for row in rows)
    mean = sum(row.after["HQNR"] - row.before["HQNR"] for row in rows) / len(rows)
    worst = max(rows, key=lambda row: row.angle)
    return (
        f"HQNR improves on {better} of {len(rows)} pairs ({100 * better / len(rows):.0f} %; aim: {100 * SHARE:.0f} %), "
        f"by {mean:+.4f} on average. The worst change of SAM one scale down is {worst.angle:+.1f} % ({worst.name}; "
        f"aim: at most +{WORST:g} %). The longest adaptation took {max(row.seconds for row in rows):.0f} s."
    )


def main() -> None:
    """Prints the table, and writes it into the docs if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=Path, default=ROOT.parent / "shared" / "data" / "pan")
    parser.add_argument("--only", default="", help="pairs whose name contains this")
    parser.add_argument("--all", action="store_true", help="all pairs of each sensor")
    parser.add_argument("--model", type=Path, default=shipped(), help="the model to start from")
    parser.add_argument("--runs", type=Path, help="trainings that left out sensors")
    parser.add_argument("--clip", default=AdaptFusionRequest.clip)
    parser.add_argument("--seconds", type=float, default=AdaptFusionRequest.seconds)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    found = [case for case in quality.cases(options.pairs) if case.reference is None and options.only in case.name]
    if not options.all:
        found = list({case.group: case for case in reversed(found)}.values())[::-1]
    models = quality.left_out(options.runs) if options.runs else {}
    rows = []
    for case in found:
        print(case.name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as temporary:
            start = models.get(case.group, options.model)
            rows.append(adapted(case, start, options.clip, options.seconds, options.threads, Path(temporary)))
    command = shlex.join(["python", "benchmarks/adapt.py", *sys.argv[1:]])
    text = "\n\n".join(
        [
            "# What adapting the fusion model to a scene gains",
            "How to adapt: [adapting.md](adapting.md).",
            f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__} on "
            f"{count_threads(options.threads)} cores ({platform.machine()}), by `{command}`. "
            f"CLIP: {options.clip or 'none'}.",
            "Each cell shows the figure before → after the adaptation. HQNR, D_lambda_K, D_s and HP_correlation at "
            "full resolution, without a "
            "reference; Q2n, SAM (degrees) and ERGAS one scale down, against the original MS. Higher is better for "
            "HQNR, HP_correlation and Q2n.",
            table(rows),
            summary(rows),
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

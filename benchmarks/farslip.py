#!/usr/bin/env python3
"""Is it better to compare a picture's cells with a crop's cells (FarSLIP) than with its pooled vector?

    python benchmarks/farslip.py --work FOLDER [--base vit] [--steps 80] [--write docs/farslip.md]

By the job that ``clippan train clip`` is, with three seeds each: the contrast alone, patch to patch distillation (stage
1), patch to CLS distillation (what the paper argues against), and stages 1 and 2. All see the same pictures in the same
order for as many steps; stage 2 has as many on top. Trained on the TRAIN part of EuroSAT and UC Merced with the names
of their classes, and of the Dubai pictures with boxes that ``clippan regions`` makes of their masks; never on the
captions of UC Merced. Measured on parts that no training saw, by prompts alone.

Two models are trained. The starter CLIP pools by the mean and projects linearly, so that the mean of its cells is its
pooled vector: there both distillations are one. A small vision transformer has a CLS token: it is made here, from
nothing, with the starter's text tower and its image vectors as a teacher.

What was trained or measured is kept in FOLDER and not done again, so that a run can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import io
import json
import math
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save as as_bytes
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "backend"), str(ROOT / "scripts")]

from starter import pictures, words  # noqa: E402

from clippan import __version__  # noqa: E402
from clippan.catalogue.models import CONFIG, find_model  # noqa: E402
from clippan.catalogue.models import read_config as config_of  # noqa: E402
from clippan.clip import dense  # noqa: E402
from clippan.clip.load import load_model  # noqa: E402
from clippan.core.device import set_threads  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import Context, Device, RegionsRequest, Target, TrainClipRequest  # noqa: E402
from clippan.learn.clip.batch import crop_boxes  # noqa: E402
from clippan.learn.clip.farslip import WEIGHTS  # noqa: E402
from clippan.learn.clip.losses import contrast  # noqa: E402
from clippan.learn.optimisation import optimiser_step, warmup_cosine  # noqa: E402

STARTER = ROOT / "resources" / "starter-clip"
DATA = ROOT.parent / "shared" / "data"
SEEDS = (0, 1, 2)
EACH = 120  # pictures of a class of EuroSAT and of UC Merced at most, so that Dubai's are no rarity among them
SIZE, OVERLAP = 256, 0.25  # pixels of the Dubai pictures that are cut, and how they overlap
MEASURES = {
    "mean IoU": "Dubai mean IoU",
    "pixels": "Dubai pixels right",
    "EuroSAT": "EuroSAT",
    "UC Merced": "UC Merced",
}
STUDENT = 4.303  # t at p = 0.05 on both sides, of three pairs


@dataclass(frozen=True)
class Plan:
    """How all runs are trained. Short runs on two cores: what differs from the published is said in the report."""

    steps: int = 80
    batch: int = 16
    crops: int = 2
    rate: float = 1e-4
    weight: float = 1.0
    base_steps: int = 800  # of the transformer's own making


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, what is changed of the plan, and the row that it goes on from."""

    name: str
    folder: str
    options: Mapping[str, Any]
    after: str = ""


NOTHING = Row("nothing", "", {})
CONTRAST = Row("contrast alone", "contrast", {"stages": (1,), "weight": 0.0})
PATCH = Row("stage 1: patch to patch", "patch", {"stages": (1,), "target": Target.PATCH})
CLS = Row("patch to CLS instead", "cls", {"stages": (1,), "target": Target.CLS})
BOTH = Row("stages 1 and 2", "both", {"stages": (2,)}, after="patch")


@dataclass(frozen=True)
class Base:
    """A model to start from: its title, its rows, and the pixels that it sees in training (0: its own)."""

    title: str
    rows: tuple[Row, ...]
    pixels: int


BASES = {
    "vit": Base("A small vision transformer", (NOTHING, CONTRAST, PATCH, CLS, BOTH), 0),
    "starter": Base("The starter CLIP", (NOTHING, CONTRAST, PATCH, BOTH), 128),
}
# The transformer: 8 × 8 cells, and what it is made with.
VISION = {"image_size": 96, "patch_size": 12, "width": 192, "layers": 4, "head_width": 64}
VIEWS, SEEN = 2, 128  # of each picture, which the starter CLIP sees in so many pixels
MADE_BATCH, MADE_RATE, MADE_SCALE = 64, 1e-3, 20.0
STRIDE = 48  # of the transformer's windows of DENSE_EDGE pixels


def measures() -> ModuleType:
    """``benchmarks/starter.py``, whose name the scripts' package has too."""
    spec = importlib.util.spec_from_file_location("measures", ROOT / "benchmarks" / "starter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """Prepares, trains and measures, unless that was done before.

    Args:
        data: the archives.
        work: keeps everything.
        plan: see there.
        threads: of the CPU, 0 for all.
    """

    def __init__(self, data: Path, work: Path, plan: Plan, threads: int) -> None:
        self._data, self._work, self._plan, self._threads = data, work, plan, threads
        set_threads(threads)
        self._measures = measures()
        self._items = {name: pictures.scenes(data, name, pictures.HELD_OUT) for name in words.CLASSES}
        self._masked = [
            *pictures.masked(data, pictures.HELD_OUT),
            *pictures.masked(data, pictures.VALIDATION),
        ]

    def base(self, name: str, folders: Sequence[str]) -> Path:
        """The folder of the model to start from."""
        if name == "starter":
            return STARTER
        folder = self._work / f"vit-{self._plan.base_steps}"
        if not (folder / WEIGHTS).exists():
            folder.mkdir(exist_ok=True)
            make(
                folder, [path for part in folders for path in sorted(Path(part).rglob("*.png"))], self._plan.base_steps
            )
        return folder

    def prepare(self) -> tuple[str, ...]:
        """What is trained on, as folders."""
        folders = []
        for name, classes in words.CLASSES.items():
            folder = self._work / name
            folders.append(str(folder))
            if folder.exists():
                continue
            part = self._work / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            seen: dict[str, int] = {}
            for item in pictures.scenes(self._data, name, pictures.TRAIN):
                seen[item.label] = seen.get(item.label, 0) + 1
                if seen[item.label] <= EACH:
                    (part / classes[item.label]).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(item.pixels).save(part / classes[item.label] / f"{Path(item.file).stem}.png")
            part.replace(folder)
        folder = self._work / "dubai"
        if not folder.exists():
            self._regions(folder)
        return (*folders, str(folder))

    def _regions(self, folder: Path) -> None:
        """Pictures with boxes of the Dubai pictures."""
        source = self._work / "dubai-source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        rasters, masks = [], []
        with zipfile.ZipFile(self._data / pictures.ARCHIVES["dubai"]) as archive:
            for number, item in enumerate(pictures.masked(self._data, pictures.TRAIN)):
                rasters.append(source / f"{number}.png")
                Image.fromarray(item.pixels).save(rasters[-1])
                name = item.file.replace("/images/", "/masks/").replace(".jpg", ".png")
                masks.append(source / f"{number}_mask.png")
                Image.open(io.BytesIO(archive.read(name))).convert("RGB").save(masks[-1])
        legend = "; ".join(
            "#{:02X}{:02X}{:02X}={}".format(*colour, self._measures.DUBAI[name])
            for colour, name in pictures.MASKS.items()
        )
        files = (tuple(map(str, rasters)), tuple(map(str, masks)))
        made = run(RegionsRequest(*files, str(folder), legend, size=SIZE, overlap=OVERLAP, least=64))
        shutil.rmtree(source)
        print(f"Dubai: {made.pictures} pictures, {made.objects}", flush=True)

    def figures(self, name: str, row: Row, seed: int, data: tuple[str, ...]) -> dict[str, float]:
        """The measures of a row with a seed, in percent, and seconds of training."""
        plan, base = self._plan, BASES[name]
        start = self.base(name, data)
        values = {key: value for key, value in dataclasses.asdict(plan).items() if key != "base_steps"}
        runs = self._work / "-".join([start.name, *(f"{key}{value:g}" for key, value in values.items())])
        folder = runs / f"{row.folder}-{seed}"
        known = folder.with_suffix(".json") if row.folder else self._work / f"{start.name}.json"
        if known.exists():
            return dict(json.loads(known.read_text(encoding="utf-8")))
        seconds = 0.0
        if row.folder:
            runs.mkdir(parents=True, exist_ok=True)
            print(f"{base.title}, {row.name}, seed {seed}", flush=True)
            model = runs / f"{row.after}-{seed}" if row.after else start
            where = {"threads": self._threads, "device": Device.CPU}
            more = {**values, **where, "seed": seed, "model": str(model), "pixels": base.pixels, **row.options}
            request = TrainClipRequest(data=data, output=str(folder), **more)
            seconds = run(request, Context(log=print)).seconds
        found = {**self.measure(folder if row.folder else start), "seconds": seconds}
        known.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print({key: round(value, 1) for key, value in found.items()}, flush=True)
        return found

    def measure(self, folder: Path) -> dict[str, float]:
        """Segmentation of Dubai pictures and classes of scenes by prompts alone, in percent."""
        measures, order = self._measures, list(pictures.MASKS.values())
        bench = measures.Bench(folder)
        texts = bench.read([measures.DUBAI[name] for name in order])
        table = np.zeros((len(order), len(order)))
        for item in self._masked:
            maps = (
                bench.dense(item.pixels, texts, measures.DENSE_EDGE)
                if dense.accepts_any_size(bench.loaded.network)
                else windows(bench, item.pixels, texts, measures.DENSE_EDGE)
            )
            table += measures.confusion(maps, item.classes, item.classes != 255)
        union = table.sum(0) + table.sum(1) - np.diag(table)
        found = {
            "mean IoU": float((np.diag(table) / union).mean()) * 100,
            "pixels": float(np.diag(table).sum() / table.sum()) * 100,
        }
        for name, items in self._items.items():
            features = bench.look([item.pixels for item in items])
            hits = measures.classes(bench, name, features, [item.label for item in items])["names"]
            found[measures.NAMES[name]] = float(hits.float().mean()) * 100
        return found


@torch.inference_mode()
def windows(bench: Any, pixels: np.ndarray, texts: torch.Tensor, edge: int) -> torch.Tensor:
    """Cosines (texts, h, w) at every pixel, the mean of overlapping windows of ``edge`` pixels."""
    height, width = pixels.shape[:2]
    total, count = torch.zeros(len(texts), height, width), torch.zeros(height, width)
    rows, columns = ([*range(0, size - edge, STRIDE), size - edge] for size in (height, width))
    for y in rows:
        batch = torch.cat([bench.ready(pixels[y : y + edge, x : x + edge]) for x in columns])
        cells, _ = dense.dense_features(bench.loaded.network, batch)
        cosines = torch.einsum("nchw,tc->nthw", functional.normalize(cells, dim=1), texts)
        maps = functional.interpolate(cosines, (edge, edge), mode="bilinear", align_corners=False)
        for x, part in zip(columns, maps):
            total[:, y : y + edge, x : x + edge] += part
            count[y : y + edge, x : x + edge] += 1
    return total / count


def make(folder: Path, files: Sequence[Path], steps: int) -> None:
    """A small transformer with the starter's text tower, whose image vectors it learns from nothing.

    As in CLIP only the pooled vector is taught; what the cells are like comes of itself.
    """
    known = find_model(str(STARTER))
    assert known.path is not None
    teacher = load_model(known.path, known)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    config = {**config_of(known.path), "clippan": {"about": "made by benchmarks/farslip.py"}}
    config["model_cfg"] = {**config["model_cfg"], "vision_cfg": VISION}
    student = open_clip.CLIP(**config["model_cfg"])
    student.load_state_dict(
        {key: value for key, value in teacher.network.state_dict().items() if not key.startswith("visual.")},
        strict=False,
    )
    print(f"Making a transformer from {len(files)} pictures", flush=True)
    views, vectors = [], []
    for file in files:
        picture = Image.open(file).convert("RGB")
        for _ in range(VIEWS):
            part = (crop_boxes(rng, 1)[0] if rng.random() < 0.7 else np.array([0, 0, 1, 1])) * np.tile(picture.size, 2)
            views.append(np.asarray(picture.resize((SEEN, SEEN), Image.Resampling.BICUBIC, tuple(part))))
    ready = teacher.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (ready.mean, ready.std))
    whole = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    with torch.no_grad():
        for start in range(0, len(whole), 64):
            values = (whole[start : start + 64] / 255 - mean) / std
            vectors.append(functional.normalize(teacher.network.encode_image(values), dim=-1))
    target = torch.cat(vectors)
    learned = list(student.visual.parameters())
    optimiser = torch.optim.AdamW(learned, lr=MADE_RATE, weight_decay=0.05)
    scheduler = warmup_cosine(optimiser, steps, steps // 10)
    scale, edge = torch.tensor(MADE_SCALE), VISION["image_size"]
    for step in range(steps):
        chosen = torch.from_numpy(rng.choice(len(whole), MADE_BATCH, replace=False))
        values = functional.interpolate(
            (whole[chosen] / 255 - mean) / std, (edge, edge), mode="bilinear", antialias=True
        )
        values = values.flip(3) if rng.random() < 0.5 else values
        found = student.encode_image(torch.rot90(values, int(rng.integers(4)), (2, 3)))
        loss = contrast(found, target[chosen], scale, [str(number) for number in range(len(chosen))])
        loss = loss + 1 - functional.cosine_similarity(found, target[chosen]).mean()
        optimiser_step(student.visual, optimiser, scheduler, loss)
        if step % 50 == 0:
            print(f"Step {step}: {float(loss.detach()):.3f}", flush=True)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(as_bytes(student.state_dict()))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, bool]:
    """Mean and standard deviation of the differences by seeds, and whether three seeds can tell it from 0."""
    gaps = np.array(one) - np.array(other)
    mean, deviation = spread(list(gaps))
    return mean, deviation, len(gaps) > 1 and abs(mean) > STUDENT * deviation / math.sqrt(len(gaps))


def told(label: str, mean: float, certain: bool) -> str:
    """A difference in words."""
    return f"{label} **{mean:+.1f}**" if certain else f"{label} {mean:+.1f} (not significant)"


def verdict(base: str, results: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Plain words from the figures of a base."""

    def of(row: Row, measure: str) -> list[float]:
        found = [values[measure] for values in results[row.name]]
        return found * len(results[PATCH.name]) if row is NOTHING else found

    def lowered(row: Row) -> list[str]:
        """The measures that are lower than by the contrast alone, as far as the seeds can tell."""
        gaps = {label: difference(of(row, measure), of(CONTRAST, measure)) for measure, label in MEASURES.items()}
        return [label for label, (mean, _, certain) in gaps.items() if certain and mean < 0]

    lines = []
    for title, one, other in (
        ("Patch to patch compared with patch to CLS", PATCH, CLS),
        ("Patch to patch compared with the contrastive loss alone", PATCH, CONTRAST),
        ("Patch to patch compared with no training", PATCH, NOTHING),
        ("Patch to CLS compared with the contrastive loss alone", CLS, CONTRAST),
        ("Stage 2 after stage 1, compared with stage 1", BOTH, PATCH),
    ):
        if {one.name, other.name} <= set(results):
            parts = []
            for measure, label in MEASURES.items():
                mean, _, certain = difference(of(one, measure), of(other, measure))
                parts.append(told(label, mean, certain))
            lines.append(f"- {title}: {'; '.join(parts)}.")
    if CLS.name not in results:
        lines.append(
            "- There is no row for patch to CLS: this model pools by the mean and projects linearly, so the mean of "
            "a crop's cells *is* its pooled vector, and both distillations are the same."
        )
        return ["\n".join(lines)]
    apart = [difference(of(PATCH, measure), of(CLS, measure)) for measure in ("mean IoU", "pixels")]
    better = any(certain and mean > 0 for mean, _, certain in apart)
    worse = any(certain and mean < 0 for mean, _, certain in apart)
    claims = []
    for name, row in (("patch to patch", PATCH), ("patch to CLS", CLS)):
        lost = " and ".join(lowered(row))
        claims.append(f"{name} costs {lost or 'nothing significant over three seeds'}")
    beside = {
        (True, False): "better than",
        (False, True): "worse than",
        (True, True): "better by one figure and worse by the other than",
        (False, False): "not significantly different from",
    }[better, worse]
    end = (
        "That agrees with the paper."
        if better and not worse and not lowered(PATCH)
        else "This does not confirm the paper's claim in this small setting (a transformer of two million "
        "parameters made in minutes, and a short training), and says little about a ViT-B and millions of pictures."
    )
    lines.append(
        "- **The claim.** The paper says that patch to CLS distillation costs semantic coherence and patch to patch "
        f"does not. Here, compared with the contrastive loss alone, {claims[0]}, and {claims[1]}; in segmentation "
        "patch to patch is "
        f"{beside} patch to CLS. {end}"
    )
    return ["\n".join(lines)]


def section(base: str, results: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """The table of a base, and what it says."""
    lines = ["| training | " + " | ".join(MEASURES.values()) + " | seconds |", "|---|" + "---:|" * (len(MEASURES) + 1)]
    for row in BASES[base].rows:
        found = results[row.name]
        cells = []
        for measure in MEASURES:
            mean, deviation = spread([values[measure] for values in found])
            cells.append(f"{mean:.1f} ± {deviation:.1f}" if len(found) > 1 else f"{mean:.1f}")
        cells.append(f"{spread([values['seconds'] for values in found])[0]:.0f}" if row.folder else "–")
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return [f"## {BASES[base].title}", "\n".join(lines), *verdict(base, results)]


def report(sections: Sequence[str], plan: Plan, seeds: Sequence[int], counts: str, command: str) -> str:
    """The page."""
    parts = [
        "# FarSLIP: what patch-to-patch distillation contributes here",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__} on "
        f"{platform.machine()}, by `{command}`. Figures are in percent, as mean ± standard deviation over seeds "
        f"{', '.join(map(str, seeds))}.",
        f"All runs take {plan.steps} steps per stage, each of {plan.batch} pictures, with {plan.crops} crops of each "
        f"(in stage 2, at most {plan.crops} objects), rate {plan.rate:g}; the weight of the distillation is "
        f"{plan.weight:g} "
        "(0.1 in the paper, for some thousand times as many steps); the text tower is frozen. The models are "
        "trained on {counts}. They are measured on the held-out tenth of EuroSAT and UC Merced, by the names of the "
        "classes, and on ten Dubai pictures that no training saw, by five prompts, with 64 of their pixels enlarged "
        "to the network's input. The seconds in the last row are those of stage 2 alone.",
        "Differences are in percentage points and paired by seed; those in bold are significant at 95 % (Student's t).",
        *sections,
        "How to train: [training_clip.md](training_clip.md).",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, required=True, help="keeps pictures, models and figures")
    parser.add_argument("--base", nargs="+", choices=list(BASES), default=list(BASES), help="what to train")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="of each stage")
    parser.add_argument("--base-steps", type=int, default=Plan.base_steps, help="of making the transformer")
    parser.add_argument("--weight", type=float, default=Plan.weight, help="of the distillation")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, to try it")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 1 where others use it too")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    asked = {name: getattr(options, name) for name in ("steps", "base_steps", "weight")}
    plan = Plan(**asked)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.data, options.work, plan, options.threads)
    data = bench.prepare()
    sections: list[str] = []
    seeds = SEEDS[: options.seeds]
    for name in options.base:
        results = {
            row.name: [bench.figures(name, row, seed, data) for seed in (seeds if row.folder else (0,))]
            for row in BASES[name].rows
        }
        sections += section(name, results)
    found = [len([*Path(folder).rglob("*.png")]) for folder in data]
    counts = f"{found[0]} pictures of EuroSAT, {found[1]} of UC Merced and {found[2]} parts of Dubai pictures"
    changed = "".join(
        f" --{name.replace('_', '-')} {value:g}" for name, value in asked.items() if value != getattr(Plan, name)
    )
    only = "" if options.base == list(BASES) else f" --base {' '.join(options.base)}"
    text = report(sections, plan, seeds, counts, f"python benchmarks/farslip.py --work FOLDER{only}{changed}")
    print(text)
    print(f"{time.monotonic() - started:.0f} s")
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What each term of CLIPPan's loss is worth, language among them, on sensors that no training saw.

    python benchmarks/ablation.py --data DATA --work FOLDER [--only pnn] [--write docs/ablation.md]
    python benchmarks/ablation.py --data DATA --work FOLDER --trial
    python benchmarks/ablation.py --data DATA --work FOLDER --stage-two [--start MODEL] [--write docs/stage_two.md]

Two published networks are trained without a truth, by the job that ``clippan train fusion`` is, with one term of the
loss more each time, and with three seeds. All else is equal: a seed gives the same first weights and the same patches
in the same order to all configurations, and teacher and stage I are the same for all. Every model is then used by the
job Pansharpen, and measured by Assess: at full resolution, and one scale down (Wald's protocol) against the true MS.

Scenes are folders ``SENSOR__SCENE`` in DATA/pan, as in ``quality.py``. What was trained or measured is kept in FOLDER
and not done again, so that a run can be stopped and gone on with. ``--trial`` chooses the weight of L_d, on a sensor
that is left out of the trial's training and is none of the test's.

``--stage-two`` trains the network that comes with CLIPPan, or MODEL, on as the recipe stage2 does, with L_d and without
it, with seeds, and compares both with the start: what language is worth to the default network. It takes about ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import quality
import torch
import yaml
from osgeo import gdal
from quality import Case

from clippan import __version__
from clippan.catalogue.models import find_model
from clippan.catalogue.recipes import find_recipe
from clippan.catalogue.sensors import SENSORS, recognise_sensor
from clippan.clip.encoder import weights_sha256
from clippan.fusion import model, networks
from clippan.fusion.model import FusionModel
from clippan.handlers import run
from clippan.jobs import (
    AssessRequest,
    Compression,
    Context,
    Method,
    PansharpenRequest,
    Registration,
    TrainFusionRequest,
)
from clippan.learn.fusion import clip_supervision, reading

CLIP = "starter"
BACKBONES: Mapping[str, Mapping[str, int]] = {"pnn": {}, "arbrpn": {"width": 8, "depth": 2, "blocks": 1}}
SEEDS = (0, 1, 2)
SHARED = 0  # seed of the teacher and of stage I, which are made once, as one has them given in practice

# No training sees the sensors of the test, nor that of the trial. Landsat has another ratio and other first bands.
TEST = ("quickbird__decri", "ikonos__grip_imgIK", "spot6__liqilei_vegetation")
VALIDATION = "unlabelled_0.5m__pancolorgan_dg"
# Nor does stage II see those of its own, which a start can have left out together (docs/quality.md).
TEST_OF_STAGE_TWO = ("ikonos__grip_imgIK", "spot6__liqilei_vegetation", "unlabelled_0.5m__pancolorgan_dg")
LEFT_OUT = ("ikonos", "landsat8", "quickbird", "spot6", "unlabelled_0.5m")
TRAINED = ("gaofen2", "worldview2")
EDGE = 640  # PAN pixels of the middle of a scene that are fused and measured: all of it would take most of the time

# The published weights are not known; a plain sum is what notes on the paper show. That of L_d was set
# beforehand, where its gradient is a few times that of L_spec; --trial shows others.
LANGUAGE = 0.03
TRIALS = (0.01, 0.1)
BASE = {"spectral": 1.0, "spatial": 1.0}
QNR = {**BASE, "qnr": 1.0}
PSEUDO = {**QNR, "pseudo": 1.0}
WHOLE = {**PSEUDO, "language": LANGUAGE}
ALONE = {**BASE, "language": LANGUAGE}
PUBLISHED = 32.37 - 32.19  # dB that L_d adds in the paper's own table
# A golf course is nothing that a fused image has to become.
OTHER = "an aerial photograph of a golf course with sand bunkers and small ponds"


@dataclass(frozen=True)
class Configuration:
    """One row: its name, the weights of the terms, whether the sentence for the fused image is an unrelated one."""

    name: str
    weights: Mapping[str, float]
    unrelated: bool = False


SPEC, WITH_QNR, WITH_PSEUDO, WITH_LANGUAGE, ONLY_LANGUAGE, UNRELATED = (
    Configuration("spec + spat", BASE),
    Configuration("spec + spat + QNR", QNR),
    Configuration("spec + spat + QNR + pseudo", PSEUDO),
    Configuration("spec + spat + QNR + pseudo + L_d", WHOLE),
    Configuration("spec + spat + L_d", ALONE),
    Configuration("spec + spat + L_d, unrelated sentence", ALONE, unrelated=True),
)
CONFIGURATIONS = (SPEC, WITH_QNR, WITH_PSEUDO, WITH_LANGUAGE, ONLY_LANGUAGE, UNRELATED)
# What is compared: the term, with it, without it.
STEPS = (
    ("L_QNR, added to spec + spat", WITH_QNR, SPEC),
    ("pseudo-supervision, added to these", WITH_PSEUDO, WITH_QNR),
    ("L_QNR and pseudo-supervision together, added to spec + spat", WITH_PSEUDO, SPEC),
    ("L_d, added to all others", WITH_LANGUAGE, WITH_PSEUDO),
    ("L_d, added to spec + spat alone", ONLY_LANGUAGE, SPEC),
    ("the right sentence in L_d instead of an unrelated one", ONLY_LANGUAGE, UNRELATED),
)
FULL = ("HQNR", "QNR", "D_lambda_K", "D_lambda", "D_s", "HP_correlation")
REDUCED = ("Q2n", "SAM", "ERGAS", "PSNR")
LOWER = ("D_lambda_K", "D_lambda", "D_s", "SAM", "ERGAS")  # is better
DIGITS = {"SAM": 2, "ERGAS": 2, "PSNR": 2}
REFERENCES = (Method.MTF_GLP_HPM_R, Method.CUBIC)
TRIAL = "trial.md"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # t at p = 0.05 on both sides, by the number of seeds


@dataclass(frozen=True)
class Plan:
    """How long everything is trained.

    Attributes:
        steps, batch, size: of the runs: patches a step and their edge in PAN pixels.
        teacher_steps, teacher_batch, teacher_size: of the network that ``pseudo`` looks up to.
        stage_steps, stage_batch: of stage I.
        tuning_steps, tuning_batch, tuning_size: of stage II from a trained network; the rate is that of its recipe.
        rate: greatest learning rate of all but stage I, which has the recipe's.
    """

    steps: int = 150
    batch: int = 2
    size: int = 96
    teacher_steps: int = 300
    teacher_batch: int = 4
    teacher_size: int = 64
    stage_steps: int = 60
    stage_batch: int = 4
    rate: float = 2e-3
    tuning_steps: int = 150
    tuning_batch: int = 2
    tuning_size: int = 128


class Bench:
    """Trains and measures, unless that was done before.

    Args:
        data: folder with ``pan`` inside.
        work: keeps models and figures.
        plan: see there.
        known: train nothing; what was not trained is an empty result.
    """

    def __init__(self, data: Path, work: Path, plan: Plan, known: bool = False) -> None:
        self._data, self._work, self._plan, self._known = data, work, plan, known
        self._folder = work / ("full" if plan == Plan() else hashlib.sha256(repr(plan).encode()).hexdigest()[:8])
        self._folder.mkdir(parents=True, exist_ok=True)

    def train(self, network: str, configuration: Configuration, seed: int) -> dict[str, Any]:
        """A run of a configuration: the model's file, its number of parameters, seconds and losses."""
        plan = self._plan
        needs: dict[str, Any] = {}
        if "pseudo" in configuration.weights:
            needs["teacher"] = self.teacher().get("model", "")
        if "language" in configuration.weights:
            needs["language"] = self._language(configuration.unrelated)
        return self._trained(
            seed,
            f"{network}, {configuration.name}",
            network=network,
            options=dict(BACKBONES[network]),
            steps=plan.steps,
            scene=dict(configuration.weights),
            scene_batch=plan.batch,
            scene_size=plan.size,
            **needs,
        )

    def teacher(self) -> dict[str, Any]:
        """The network of ``pseudo``: a PNN, trained with a truth one scale down."""
        plan = self._plan
        return self._trained(
            SHARED,
            "teacher",
            network="pnn",
            steps=plan.teacher_steps,
            truth={"supervised": 1.0},
            batch=plan.teacher_batch,
            size=plan.teacher_size,
        )

    def fine_tune(self, start: FusionModel, language: bool, seed: int) -> dict[str, Any]:
        """Stage II from a trained network, by the recipe stage2 with L_d or without it."""
        plan, recipe = self._plan, yaml.safe_load(find_recipe("stage2").read_text(encoding="utf-8"))
        weights = {name: value for name, value in recipe["scene"].items() if language or name != "language"}
        return self._trained(
            seed,
            f"stage II {'with' if language else 'without'} L_d from {start.sha256[:8]}",
            start=start.path,
            teacher=start.path,
            steps=plan.tuning_steps,
            rate=recipe["rate"],
            phi=recipe["phi"],
            scene=weights,
            scene_batch=plan.tuning_batch,
            scene_size=plan.tuning_size,
            **({"language": self._language(unrelated=False)} if language else {}),
        )

    def _language(self, unrelated: bool) -> dict[str, Any]:
        """How a recipe names the CLIP that stage I has taught."""
        return {"clip": CLIP, "adapters": self.stage_one(unrelated).get("model", "")}

    def stage_one(self, unrelated: bool) -> dict[str, Any]:
        """Stage I alone; ``unrelated`` puts another sentence in the place of the fused image's throughout."""
        plan = self._plan
        prompts = clip_supervision.WALD._replace(fused=OTHER) if unrelated else clip_supervision.WALD
        with mock.patch.object(clip_supervision, "WALD", prompts):
            return self._trained(
                SHARED,
                "stage I, unrelated sentence" if unrelated else "stage I",
                trains="adapters",
                steps=plan.stage_steps,
                scene_size=plan.size,
                language={"clip": CLIP, "steps": plan.stage_steps, "batch": plan.stage_batch},
            )

    def _trained(self, seed: int, name: str, **recipe: Any) -> dict[str, Any]:
        # Patches keep the order of their bands also for networks that take any number, so that all see the same ones.
        recipe = {
            "bands": 4,
            "pairs": [{"folder": "pan"}],
            "without": list(LEFT_OUT),
            "rate": self._plan.rate,
            "warmup": max(1, recipe["steps"] // 10),
            "augment": {"ratios": [4], "bands": [4]},
            "seed": seed,
            "about": name,
            **recipe,
        }
        folder = self._folder / _slug(f"{name}-{seed}", recipe)
        known = folder / "trained.json"
        if known.exists():
            return dict(json.loads(known.read_text()))
        if self._known:
            return {}
        print(f"{_now()} {name}, seed {seed}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as temporary, _scenes_kept():
            path = Path(temporary) / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            started, processed = time.monotonic(), time.process_time()
            result = run(TrainFusionRequest(data=str(self._data), output=str(folder), recipe=str(path)), Context())
        done = {
            **asdict(result),
            "wall": time.monotonic() - started,
            "cpu": time.process_time() - processed,
        }
        known.write_text(json.dumps(done, indent=1))
        return done

    def measure(
        self, name: str, method: Method, model: str = "", scenes: Sequence[str] = TEST
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Figures of a method, for the model of which ``name`` stands: by scale, then by scene."""
        known = self._folder / "figures" / f"{name}.json"
        found: dict[str, dict[str, dict[str, float]]] = json.loads(known.read_text()) if known.exists() else {}
        known.parent.mkdir(exist_ok=True)
        if self._known and any(scene not in found.get("reduced", {}) for scene in scenes):
            return {}
        for scene in scenes:
            if scene not in found.get("reduced", {}):
                for scale, case in self._cases(scene).items():
                    found.setdefault(scale, {})[scene] = _figures(case, method, model)
                known.write_text(json.dumps(found, indent=1))
        return {scale: {scene: values[scene] for scene in scenes} for scale, values in found.items()}

    def _cases(self, name: str) -> dict[str, Case]:
        """The middle of a scene as it is, and one scale down; made once."""
        group = name.split("__")[0]
        folder = self._work / "scenes" / name
        paths = [folder / file for file in ("pan.tif", "ms.tif")]
        full = Case(name, recognise_sensor([group]) or SENSORS["generic"], group, paths[0], (paths[1],))
        low = [folder / "reduced" / file for file in ("pan.tif", "ms.tif", "gt.tif")]
        if not low[-1].exists():
            low[-1].parent.mkdir(parents=True, exist_ok=True)
            for path in paths:
                _middle(self._data / "pan" / name / path.name, path, EDGE if path.stem == "pan" else EDGE // 4)
            quality.degrade(full, low[-1].parent, Registration.AUTO)
        return {"full": full, "reduced": replace(full, pan=low[0], ms=(low[1],), reference=low[2])}


def _middle(source: Path, path: Path, edge: int) -> None:
    """A square from the middle of a raster; with PAN's four times as wide as that of MS, both show one ground."""
    raster = gdal.Open(str(source))
    # Whole samples of MS, so that the grids' corners still meet.
    x, y = ((size * EDGE // edge - EDGE) // 8 * 4 * edge // EDGE for size in (raster.RasterXSize, raster.RasterYSize))
    gdal.Translate(str(path), raster, srcWin=[x, y, edge, edge])


def _figures(case: Case, method: Method, model: str) -> dict[str, float]:
    """Of one result: against the reference if there is one, else at full resolution."""
    with tempfile.TemporaryDirectory() as temporary:
        return _assessed(case, str(Path(temporary) / "fused.tif"), method, model)


def _assessed(case: Case, output: str, method: Method, model: str) -> dict[str, float]:
    pan, ms = str(case.pan), tuple(str(path) for path in case.ms)
    run(
        PansharpenRequest(
            pan=pan,
            ms=ms,
            output=output,
            method=method,
            model=model,
            sensor=case.sensor.name,
            threads=1,
            compression=Compression.NONE,
            overviews=False,
        )
    )
    reference = str(case.reference) if case.reference else None
    result = run(AssessRequest(fused=output, pan=pan, ms=ms, reference=reference, sensor=case.sensor.name))
    return dict(result.reference if case.reference else result.full)


@contextmanager
def _scenes_kept() -> Iterator[None]:
    """The training's scenes stay in memory between runs: reading and registering them takes as long as a short run."""
    with mock.patch.object(reading, "read_pairs", _kept):
        yield


def _kept(root: Path, source: Any, without: Sequence[str], context: Context) -> Iterator[Any]:
    yield from _read_pairs(root, source, tuple(without))


@functools.lru_cache(maxsize=2)
def _read_pairs(root: Path, source: Any, without: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(_PAIRS(root, source, without, Context()))


_PAIRS = reading.read_pairs


def _slug(name: str, recipe: Mapping[str, Any]) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return f"{words}-{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%H:%M:%S")


# Tables


def by_sensor(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Each figure's mean over sensors, of both scales."""
    means: dict[str, float] = {}
    for scale, names in (("full", FULL), ("reduced", REDUCED)):
        for name in names:
            groups: dict[str, list[float]] = {}
            for scene, values in figures[scale].items():
                groups.setdefault(scene.split("__")[0], []).append(values[name])
            means[name] = float(np.mean([np.mean(values) for values in groups.values()]))
    return means


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (n − 1)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def shown(name: str, values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation, with the figure's digits."""
    digits = DIGITS.get(name, 4)
    mean, deviation = spread(values)
    return f"{mean:{sign}.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def verdict(name: str, differences: Sequence[float]) -> str:
    """What differences between runs of the same seed say, in words."""
    mean, deviation = spread(differences)
    if not abs(mean) >= deviation:
        return "within the noise"
    better = (mean > 0) != (name in LOWER)
    clear = abs(mean) * math.sqrt(len(differences)) > STUDENT[len(differences)] * deviation
    return ("better" if better else "worse") + ("" if clear else ", not certain")


Results = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]


def table(names: Sequence[str], rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Rows by name, each with the figures of its seeds."""
    lines = [[label, *(shown(name, [one[name] for one in runs]) for name in names)] for label, runs in rows.items()]
    return quality.markdown(["trained by", *(f"{name} {'↓' if name in LOWER else '↑'}" for name in names)], lines)


def differences(results: Results, network: str) -> str:
    """What each term changes, seed by seed."""
    names = ("HQNR", "HP_correlation", "Q2n", "SAM", "ERGAS", "PSNR")
    lines = []
    for label, more, less in STEPS:
        apart = paired(results, network, more, less)
        if apart:
            cells = [f"{shown(name, values, '+')} ({verdict(name, values)})" for name, values in apart.items()]
            lines.append([label, *(cells[list(apart).index(name)] for name in names)])
    return quality.markdown(["what is added", *names], lines)


def paired(results: Results, network: str, more: Configuration, less: Configuration) -> dict[str, list[float]]:
    """Differences by figure between two configurations, of the seeds that both were trained with."""
    one, other = (results.get((network, configuration.name), {}) for configuration in (more, less))
    seeds = sorted({*one} & {*other})
    if len(seeds) < 2:
        return {}  # nothing says how much of a single difference is chance
    return {name: [one[seed][name] - other[seed][name] for seed in seeds] for name in (*FULL, *REDUCED)}


def sentences(results: Results) -> list[str]:
    """What the numbers say of each term, one paragraph each."""
    said = []
    for label, more, less in STEPS:
        parts = []
        for network in BACKBONES:
            apart = paired(results, network, more, less)
            if not apart:
                continue
            told = ", ".join(
                f"{name} {shown(name, apart[name], '+')} ({verdict(name, apart[name])})"
                for name in ("HQNR", "Q2n", "PSNR")
            )
            count = {"better": 0, "worse": 0, "within": 0}
            for name, values in apart.items():
                count[verdict(name, values).split(",")[0].split(" ")[0]] += 1
            parts.append(
                f"{networks.NETWORKS[network].label}: {told}; of {len(apart)} figures {count['better']} better, "
                f"{count['worse']} worse (certain or not), {count['within']} within the noise"
            )
        if parts:
            said.append(f"- **{label[0].upper()}{label[1:]}.** " + ". ".join(parts) + ".")
    return said


def of_language(results: Results) -> str:
    """Language's own worth, in plain words."""
    words, matters, certain, least = [], [], [], []
    for network in BACKBONES:
        label = networks.NETWORKS[network].label
        apart = paired(results, network, WITH_LANGUAGE, WITH_PSEUDO)
        for name, values in apart.items():
            word, (mean, _) = verdict(name, values), spread(values)
            words.append(word)
            if word in ("better", "worse"):
                certain.append(f"{label}'s {name} {mean:+.2g} ({word})")
                # Runs of one seed differ in nothing else, so that effects show which are far too small to matter.
                if abs(mean) > spread([one[name] for one in results[network, WITH_PSEUDO.name].values()])[1]:
                    matters.append(word)
        if apart:
            count, deviation = len(apart["PSNR"]), spread(apart["PSNR"])[1]
            mean = spread(apart["PSNR"])[0]
            reach = STUDENT[count] / math.sqrt(count) * deviation
            least.append(f"{mean:+.3f} ± {reach:.3f} dB with {label}")
    if not words:
        return "L_d beside all other terms was not measured yet."
    better, worse, noise = (words.count(word) for word in ("better", "worse", "within the noise"))
    text = (
        f"**Language, beside all other terms:** of {len(words)} differences ({len(FULL) + len(REDUCED)} figures "
        f"of each network) {better} are significantly better over the seeds (Student's t, p < 0.05), {worse} are "
        "worse, "
        f"{len(words) - better - worse - noise} tend to one side and {noise} are within the noise. With so many "
        f"differences {len(words) * 0.05:.0f} would pass this test by chance, and related figures (HQNR and QNR are "
        "computed from the distortions) pass it together."
    )
    if certain:
        text += f" Significant: {', '.join(certain)}; {len(certain) - len(matters)} of these {len(certain)} are "
        text += "smaller than the difference between seeds (the standard deviation in the tables)."
    good, bad = matters.count("better"), matters.count("worse")
    if good > bad:
        text += " So language adds something here; the tables say how much."
    elif bad > good:
        text += " **So language does more harm than good here.**"
    else:
        text += " **So language adds nothing that matters in this setting.**"
    return text + (
        f" Its effect on PSNR, with the 95 % interval: {', '.join(least)}; the paper's is {PUBLISHED:+.2f} dB "
        "(according to notes on it: ArbRPN, WorldView-3, one scale down)."
    )


def of_sentence(results: Results) -> str:
    """Whether the words matter."""
    found = {network: paired(results, network, ONLY_LANGUAGE, UNRELATED) for network in BACKBONES}
    cells = [verdict(name, values) for apart in found.values() for name, values in apart.items()]
    if not cells:
        return ""
    better, worse = cells.count("better"), cells.count("worse")
    text = (
        f"**Do the words matter?** The last row was taught (stage I) and trained with “{OTHER}” where the others have "
        f"“{clip_supervision.WALD.fused}”. Of {len(cells)} figures the right words are better in {better} and worse in "
        f"{worse} beyond doubt of the seeds."
    )
    if better <= max(1, len(cells) * 0.1) or better <= worse:
        text += " What L_d does here is therefore not shown to come from what the sentence says."
    return text


def beside(results: Results, references: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """How the trained networks stand beside the best classical method, one scale down."""
    classical = references.get(f"*{REFERENCES[0].value}*")
    if not classical:
        return ""
    rows = {row: list(seeds.values()) for row, seeds in results.items()}
    behind = [row for row, runs in rows.items() if np.mean([one["Q2n"] for one in runs]) < classical[0]["Q2n"]]
    return (
        f"Of the {len(rows)} rows of trained networks below, {len(behind)} have a lower Q2n one scale down than "
        f"{REFERENCES[0].value}, which needs no training. Such a short training does not give a good network; the "
        "tables compare terms, not methods."
    )


def document(results: Results, details: Mapping[str, Any], trial: str) -> str:
    """The page."""
    clip = find_model(CLIP)
    sha256 = weights_sha256(clip, clip.path, Context())
    parts = [
        "# What each term of the loss contributes",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__}, "
        f"GDAL {gdal.__version__} on {platform.machine()}, by `python benchmarks/ablation.py --data DATA --work FOLDER "
        "--write docs/ablation.md`. The script prints both the figures and the text about them.",
        f"**The CLIP is not the paper's.** It is `{CLIP}` ({clip.label}, sha256 `{sha256}`), the small one that "
        "comes with CLIPPan. It was trained on land cover and land use only, and has hardly seen the words of the "
        "published sentences. The paper used OpenAI's ViT-B/32, which was not available for these measurements. So "
        "these tables show what language adds with the CLIP that users have without a download; they neither "
        "confirm nor refute the paper.",
    ]
    parts += ["## What the numbers say", of_language(results)]
    words = of_sentence(results)
    if words:
        parts.append(words)
    parts.append(beside(results, details["references"]))
    parts += ["Differences are between runs of the same seed, mean ± standard deviation over the seeds:"]
    parts += ["\n".join(sentences(results))]
    parts += [
        "“Within the noise” means that the mean difference is smaller than its standard deviation. “Not certain” "
        "means that it is larger, but Student's t over the seeds gives p > 0.05. Seeds are not scenes: there are "
        "three test scenes, one per sensor, and the results hold for them. D_s, QNR and HQNR are closest to what "
        "L_QNR optimises, so they cannot judge it; the figures one scale down are against a truth that no run saw.",
    ]
    for network in BACKBONES:
        label = networks.NETWORKS[network].label
        rows = {
            configuration.name: list(results[network, configuration.name].values())
            for configuration in CONFIGURATIONS
            if (network, configuration.name) in results
        }
        if not rows:
            parts.append(f"## {label}\n\nNot measured yet; the same command goes on with what is missing.")
            continue
        count = details["parameters"][network]
        options = ", ".join(f"{name} {value}" for name, value in BACKBONES[network].items()) or "as published"
        fewer = [f"{name} with {len(runs)}" for name, runs in rows.items() if len(runs) < len(SEEDS)]
        own = f" Fewer seeds: {', '.join(fewer)}." if fewer else ""
        references = details["references"]
        published = networks.parameter_count(networks.build(network, 4))
        parts += [
            f"## {label} ({options}; {count:,} parameters)",
            f"The published {label} has {published:,} parameters; these figures are no verdict on it."
            if count != published
            else "",
            f"At full resolution, mean ± standard deviation over {len(SEEDS)} seeds of the means over the "
            f"sensors.{own}",
            table(FULL, {**rows, **references}),
            "One scale down, against the true MS:",
            table(REDUCED, {**rows, **references}),
            "What each term changes:",
            differences(results, network),
        ]
    parts += ["## How it was done", details["how"]]
    if trial:
        parts += [trial]
    return "\n\n".join(part for part in parts if part) + "\n"


def how(plan: Plan, seconds: Mapping[str, float], stage: Mapping[str, float], teacher: int) -> str:
    """What was trained, on what, and how long."""
    trained, tested = (", ".join(f"`{name}`" for name in names) for names in (TRAINED, TEST))
    lines = [
        f"- Trained on the scenes of {trained}: first a sensor is drawn, then one of its scenes. Tested on the central "
        f"{EDGE} × {EDGE} PAN pixels of {tested}, whose sensors no training saw. The scenes are crops from public "
        "repositories, mostly without a licence, and are therefore not published here. MS is registered to PAN, as "
        "CLIPPan does by default.",
        f"- {plan.steps} steps of {plan.batch} patches of {plan.size} × {plan.size} PAN pixels (4 bands, ratio 4), "
        f"AdamW, rate up to {plan.rate:g}, falling to 0, gradients clipped to norm 1, with a running average of the "
        "weights. This is far from a converged training on a GPU; the paper trains for about 1000 iterations. "
        f"Seeds {', '.join(map(str, SEEDS))}.",
        "- Weights: "
        + "; ".join(f"{key} {value:g}" for key, value in WHOLE.items())
        + ". Those of the paper are not known; 1 gives a plain sum. The φ of L_spat is fitted to each scene, not "
        "learned.",
        f"- The teacher of the pseudo-supervision is a PNN ({teacher:,} parameters) trained by the same command at "
        f"reduced resolution (L1 to the true MS, {plan.teacher_steps} steps of {plan.teacher_batch} patches of "
        f"{plan.teacher_size} pixels), once for all runs. It has seen truths one scale down, like the teacher in the "
        "paper.",
        f"- Stage I: {plan.stage_steps} steps of {plan.stage_batch} scenes, once for all runs. Last losses: "
        f"{losses_of(stage)} (guessing gives inter a loss of ln 3 = 1.099). So the ± over seeds reflects only initial "
        "weights and patches.",
        "- Seconds of processor time per run (one thread of a shared computer): "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        + ".",
    ]
    return "\n".join(lines)


def losses_of(done: Mapping[str, float]) -> str:
    """Losses by name, in a line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in done.items())


def stage_two(bench: Bench, plan: Plan, start: FusionModel, seeds: Sequence[int]) -> str:
    """What stage II is worth to a trained network, and what L_d is worth in it: the page."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    measured = bench.measure(f"start-{start.sha256[:8]}", Method.CLIPPAN, start.path, scenes=TEST_OF_STAGE_TWO)
    if measured:
        rows["the start, without stage II"] = [by_sensor(measured)]
    tuned: dict[bool, dict[int, dict[str, float]]] = {False: {}, True: {}}
    for seed in seeds:
        for language in (False, True):
            done = bench.fine_tune(start, language, seed)
            name = Path(done["model"]).parent.name if done else ""
            figures = bench.measure(name, Method.CLIPPAN, done["model"], scenes=TEST_OF_STAGE_TWO) if done else {}
            if figures:
                tuned[language][seed] = by_sensor(figures)
    for language, name in ((False, "stage II without L_d"), (True, "stage II with L_d")):
        if tuned[language]:
            rows[name] = list(tuned[language].values())
    for method in REFERENCES:
        if figures := bench.measure(method.value, method, scenes=TEST_OF_STAGE_TWO):
            rows[f"*{method.value}*"] = [by_sensor(figures)]
    recipe = yaml.safe_load(find_recipe("stage2").read_text(encoding="utf-8"))
    names = (*FULL, *REDUCED)
    compared = {"L_d, added to stage II without it": (tuned[True], tuned[False])}
    if measured:
        base = dict.fromkeys(seeds, by_sensor(measured))
        compared["stage II without L_d, against the start"] = (tuned[False], base)
        compared["stage II with L_d, against the start"] = (tuned[True], base)
    lines = []
    for label, (one, other) in compared.items():
        common = sorted({*one} & {*other})
        if len(common) > 1:
            apart = {name: [one[seed][name] - other[seed][name] for seed in common] for name in names}
            cells = [f"{shown(name, values, '+')} ({verdict(name, values)})" for name, values in apart.items()]
            lines.append([label, *cells])
    unseen = {scene.split("__")[0] for scene in TEST_OF_STAGE_TWO} <= set(start.provenance.get("without", ()))
    losses = losses_of(bench.stage_one(False).get("losses", {}))
    parts = [
        "# What language is worth to the default network",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__}, "
        f"GDAL {gdal.__version__} on {platform.machine()}, by `python benchmarks/ablation.py --data DATA --work FOLDER "
        f"--stage-two{' --start MODEL' if unseen else ''} --seeds {' '.join(map(str, seeds))} "
        "--write docs/stage_two.md`.",
        f"The network of {start.title.replace(start.path, Path(start.path).name)}, sha256 `{start.sha256}`, is trained "
        f"on for {plan.tuning_steps} steps of {plan.tuning_batch} patches of {plan.tuning_size} × {plan.tuning_size} "
        f"panchromatic pixels by the recipe `stage2`, with L_d (weight {recipe['scene']['language']:g}, CLIP `{CLIP}`, "
        f"stage I with the last losses {losses}) and without it; all else is equal. It is also the teacher. Mean ± "
        f"standard deviation over the seeds {', '.join(map(str, seeds))} of the means over the sensors of "
        f"{', '.join(f'`{name}`' for name in TEST_OF_STAGE_TWO)}, the central {EDGE} × {EDGE} panchromatic pixels. "
        "Stage I and stage II did not see these sensors; the start "
        + ("did not see them either." if unseen else "did, so that its own figures are those of seen scenes."),
        "At full resolution:",
        table(FULL, rows),
        "One scale down, against the true MS:",
        table(REDUCED, rows),
        "Differences of the same seed (p < 0.05 by Student's t, or else “not certain”):",
        quality.markdown(["what is added", *names], lines),
    ]
    return "\n\n".join(parts) + "\n"


def trial(data: Path, work: Path, plan: Plan) -> str:
    """Weights of L_d tried on a sensor of its own: a table, kept as a file."""
    known = work / TRIAL
    if known.exists():
        return known.read_text()
    bench = Bench(data, work, plan)
    tried = {0.0: SPEC, LANGUAGE: ONLY_LANGUAGE}
    tried.update({w: Configuration(f"spec + spat + {w:g} L_d", {**BASE, "language": w}) for w in TRIALS})
    rows = {}
    for weight, configuration in sorted(tried.items()):
        done = bench.train("pnn", configuration, 0)
        name = f"{Path(done['model']).parent.name}-trial"
        figures = bench.measure(name, Method.CLIPPAN, done["model"], [VALIDATION])
        rows[f"L_d × {weight:g}"] = [by_sensor(figures)]
    best = max(rows, key=lambda row: rows[row][0]["Q2n"])
    text = (
        f"Other weights of L_d, tested on `{VALIDATION}`, whose sensor no training has seen: PNN, seed 0, spec + "
        "spat + L_d. "
        f"The weight of the runs above, {LANGUAGE:g}, was set beforehand; none was chosen on the test scenes. The "
        f"best Q2n is reached with {best}; one seed cannot show differences as small as these.\n\n"
        + table(("HQNR", "D_lambda_K", "D_s", "HP_correlation", *REDUCED), rows)
    )
    known.write_text(text)
    return text


def page(bench: Bench, plan: Plan, wanted: Sequence[str], seeds: Sequence[int], work: Path) -> str:
    """Trains and measures everything, and says what came out."""
    results: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    parameters: dict[str, int] = {}
    # What the table cannot do without comes first: a run may be stopped at any time.
    order = [(network, configuration) for network in wanted for configuration in CONFIGURATIONS[:4]]
    order += [(network, configuration) for network in wanted for configuration in CONFIGURATIONS[4:]]
    for network, configuration in order:
        for seed in seeds:
            done = bench.train(network, configuration, seed)
            if not done:
                continue
            figures = bench.measure(Path(done["model"]).parent.name, Method.CLIPPAN, done["model"])
            if not figures:
                continue
            results.setdefault((network, configuration.name), {})[seed] = by_sensor(figures)
            seconds.setdefault(f"{network} {configuration.name}", []).append(done["cpu"])
            parameters[network] = done["parameters"]
    teacher, stage = bench.teacher(), bench.stage_one(False)
    seconds.update({name: [done["cpu"]] for name, done in (("teacher", teacher), ("stage I", stage)) if done})
    measured = {f"*{method.value}*": bench.measure(method.value, method) for method in REFERENCES}
    if teacher:
        name = Path(teacher["model"]).parent.name
        measured["*the teacher*"] = bench.measure(name, Method.CLIPPAN, teacher["model"])
    references = {name: [by_sensor(figures)] for name, figures in measured.items() if figures}
    details = {
        "parameters": parameters,
        "references": references,
        "how": how(
            plan,
            {name: float(np.mean(values)) for name, values in seconds.items() if values},
            stage.get("losses", {}),
            teacher.get("parameters", 0),
        ),
    }
    known = work / TRIAL
    return document(results, details, known.read_text(encoding="utf-8") if known.exists() else "")


def main() -> None:
    """Trains, measures, prints the page, and writes it into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pan/SENSOR__SCENE inside")
    parser.add_argument("--work", type=Path, required=True, help="keeps what was trained and measured")
    parser.add_argument("--only", nargs="*", default=list(BACKBONES), help="networks")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--tiny", action="store_true", help="four steps of everything, to see that it runs")
    parser.add_argument("--trial", action="store_true", help="try weights of L_d, and stop")
    parser.add_argument("--stage-two", action="store_true", help="train a trained network on, and stop")
    parser.add_argument("--start", default="", help="what --stage-two starts from, by default what comes with CLIPPan")
    parser.add_argument("--known", action="store_true", help="train nothing, show what there is")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan = Plan(steps=options.steps)
    if options.tiny:
        plan = Plan(4, 1, 96, 4, 2, 64, 2, 2, tuning_steps=2, tuning_batch=1)
    if options.trial:
        print(trial(options.data, options.work, plan))
        return
    bench = Bench(options.data, options.work, plan, options.known)
    if options.stage_two:
        text = stage_two(bench, plan, model.load(options.start, torch.device("cpu")), options.seeds)
    else:
        text = page(bench, plan, options.only, options.seeds, options.work)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

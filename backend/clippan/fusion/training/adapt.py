"""Adapts a fusion network to one scene, which has no truth at full resolution.

The network learns from patches of the scene itself, at two scales at once. At full resolution the fused image has to
agree with MS once it is degraded and with PAN in its details, and CLIP says whether it moves away from both in the
direction of a good fusion. One scale down MS is the truth (Wald's protocol): that keeps the colours where they were.
Every so often the exact figures are measured. What is kept is the best state that got better at full resolution and
not worse one scale down; where there is none, nothing is handed out.
"""

from __future__ import annotations

import copy
import datetime
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan import __version__
from clippan.device import choose_device, set_threads
from clippan.errors import ClippanError
from clippan.fusion import filters, model
from clippan.fusion.fuse import resolve_sensor
from clippan.fusion.metrics import SAM, Errors, FullFigures, Q2n, _correlate
from clippan.fusion.model import FusionModel
from clippan.fusion.registration import register
from clippan.fusion.sensors import Sensor
from clippan.fusion.statistics import TINY, Statistics, measure
from clippan.fusion.training import language, sources
from clippan.fusion.training.batch import Batch
from clippan.fusion.training.objective import Objective, Weights
from clippan.fusion.training.scenes import Mixture, Moments, Pairing, Truth, collate
from clippan.jobs import check
from clippan.jobs.adapt import AdaptFusionRequest, AdaptFusionResult
from clippan.jobs.base import Context
from clippan.raster.grid import Axis
from clippan.raster.pair import Pair, open_pair
from clippan.raster.tiles import count_threads

# What is read.
_WHOLE = 12_000_000  # PAN pixels times bands: so much is one window, and is measured where it is learned from
_WINDOWS, _HELD = 6, 3  # windows of a larger scene; every third is for measuring alone
_EDGE = 1024  # of these, PAN pixels
_SIZES = (192, 128, 96, 64)  # edges of patches in PAN pixels, the first that fits
_TRUE_SIZES = (128, 96, 64, 48, 32)  # the same one scale down

# How it is learned.
_PATCHES = 4
_RATE = 5e-4
_WARMUP = 10
_CLIP = 1.0  # greatest norm of a gradient
_AVERAGE = 0.9  # share of the past in the running average of the weights, which is what is measured and kept
_FULL = Weights(khan=1.0, distortion=1.0, detail=0.5)
_REDUCED = Weights(supervised=1.0, quality=0.5, angle=1.0)
_LANGUAGE = 0.1  # weight of CLIP's direction
_SEEN, _EVERY_SEEN = 2, 4  # patches that CLIP looks at, every so many steps: it costs more than all else
_STAGE_ONE, _STAGE_RATE = 12, 1e-3  # steps in which CLIP's adapters are taught, and their rate
_STAGE_SHARE = 0.2  # of the time budget at most

# What is kept.
_EVERY = 30  # steps between measurements
_PATIENCE = 3  # measurements without a better state
_GAIN = 0.001  # of HQNR: less is noise
_SAM = 1.01  # times the start's at most
_DETAIL = 0.01  # of the correlation of details, that may be lost
_LOST = 0.005  # of Q2n, that may be lost


def adapt(request: AdaptFusionRequest, context: Context) -> AdaptFusionResult:
    """Runs the job; see AdaptFusionRequest.

    Raises:
        ClippanError: one sentence; nothing is left behind.
    """
    clock = _Clock(request.seconds)
    device, reason = choose_device(request.device)
    context.log(f"Device: {device.type}. {reason}")
    if device.type == "cpu":
        set_threads(request.threads)
    start = model.load(request.model, device)
    context.log(f"Start: {start.title}.")
    with open_pair(request.pan, request.ms, request.bands, request.nodata) as pair:
        start.fits(pair.ms.count)
        for path in (request.output, f"{request.output}.part"):
            check.output(path, pair.files)
        sensor = resolve_sensor(request.sensor, pair, context)
        ground = _Ground.read(pair, sensor, request, device, context.part(0, 10))
    bands = pair.ms.count
    supervisor = _supervisor(request, bands, ground, device, clock, context.part(10, 25))
    adaption = _Adaption(start, ground, supervisor, request, device, clock, context.part(25, 98))
    network, before, after = adaption.go()
    about = {
        "about": f"Adapted to {Path(request.pan).name}",
        "adapted": datetime.date.today().isoformat(),
        "pan": Path(request.pan).name,
        "ms": [Path(path).name for path in request.ms],
        "bands": list(request.bands) or list(range(1, bands + 1)),
        "sensor": sensor.name,
        "start": start.sha256,
        "start_about": dict(start.about),
        "clip": supervisor.clip.name if supervisor else "",
        "clip_sha256": supervisor.clip.sha256 if supervisor else "",
        "before": before,
        "after": after,
        "steps": adaption.kept,
        "seed": request.seed,
        "version": __version__,
    }
    FusionModel(network, start.name, start.options, bands, about).save(Path(request.output))
    context.progress(100, "Done")
    return AdaptFusionResult(
        request.output,
        before,
        after,
        adaption.kept,
        adaption.losses,
        supervisor.clip.name if supervisor else "",
        sensor.name,
        device.type,
        bands,
        round(ground.pixels / 1e6, 3),
        round(clock.gone, 3),
    )


class _Clock:
    """The time budget, from now on."""

    def __init__(self, seconds: float) -> None:
        self._start, self.seconds = time.monotonic(), seconds

    @property
    def gone(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        return self.seconds - self.gone


# The scene


@dataclass(frozen=True)
class _Ground:
    """What is learned from and measured on.

    Attributes:
        pairings: windows at full resolution to draw patches from.
        truths: the same one scale down.
        size, true_size: edges of patches in pixels.
        ratio: MS over PAN pixel size.
        checks: what is measured at full resolution, and ``true_checks`` one scale down.
        pixels: of PAN in all windows.
    """

    pairings: Sequence[Pairing]
    truths: Sequence[Truth]
    size: int
    true_size: int
    ratio: float
    checks: Sequence[_Check]
    true_checks: Sequence[_Check]
    pixels: int

    @classmethod
    def read(
        cls, pair: Pair, sensor: Sensor, request: AdaptFusionRequest, device: torch.device, context: Context
    ) -> _Ground:
        """Registers the pair, measures all of it and reads some windows.

        Raises:
            ClippanError: too little of the scene is valid.
        """
        threads = count_threads(request.threads)
        positions = [number - 1 for number in request.bands] or range(pair.ms.total)
        gains = sensor.gains(positions, pair.ms.total)
        pair, _ = register(pair, request.registration, gains, threads, context.part(0, 30))
        responses = filters.responses(gains, pair.offsets)
        distinct = sorted(set(responses))
        statistics = measure(pair, distinct, sensor.pan, threads, context.part(30, 60))
        if statistics.flat:
            raise ClippanError(
                "The panchromatic raster has one value everywhere and so nothing to learn from; check whether it is "
                "the right file, and its nodata value."
            )
        moments = _moments(statistics, [distinct.index(response) for response in responses])
        windows, whole = sources.informative(pair, _WINDOWS, _EDGE, _WHOLE)
        parts = []
        for number, window in enumerate(windows, 1):
            context.progress(60 + 40 * number / len(windows), "Reading the scene")
            found = sources.part(pair, window, "scene", gains, sensor.pan)
            found.moments = moments  # the whole scene's, as in Pansharpen
            parts.append(found)
        held = [] if whole or len(parts) < _HELD else parts[_HELD - 1 :: _HELD]
        learned = [found for found in parts if not any(found is other for other in held)]
        ratio = math.sqrt(pair.x.ratio * pair.y.ratio)
        truths = [found.truth(sensor.pan) for found in learned]
        size = _fitting(learned, _SIZES)
        true_size = _fitting_truth(truths, _TRUE_SIZES)
        if not size or not true_size:
            raise ClippanError(
                f"No place of {_SIZES[-1]} × {_SIZES[-1]} panchromatic pixels, or of {_TRUE_SIZES[-1]} × "
                f"{_TRUE_SIZES[-1]} multispectral ones, is valid throughout, so there is too little to learn from; "
                "choose a larger area, or pansharpen with the start model."
            )
        measured = held or learned
        checks = [_Check.of(found, device) for found in measured]
        lower = [_reduced(found.truth(sensor.pan), ratio, sensor.pan) for found in measured]
        true_checks = [_Check.of(found, device, truth) for found, truth in lower]
        if not all(any(item.usable for item in items) for items in (checks, true_checks)):
            raise ClippanError(
                "The scene has no block of 32 × 32 valid pixels at both scales, and figures are measured on such "
                "blocks; choose a larger area, or pansharpen with the start model."
            )
        context.log(
            f"Learning from {len(learned)} window{'s' * (len(learned) > 1)} of the scene"
            + (f", measuring on {len(held)} others." if held else ", all of it." if whole else ".")
        )
        pixels = sum(found.pan.size for found in parts)
        return cls(learned, truths, size, true_size, ratio, checks, true_checks, pixels)

    def full(self, rng: np.random.Generator) -> Batch:
        """Patches at full resolution."""
        patches = []
        bands = range(len(self.pairings[0].ms))
        usable = [pairing for pairing in self.pairings if min(pairing.pan.shape) >= self.size]
        while len(patches) < _PATCHES:
            patches += usable[rng.integers(len(usable))].patches(rng, 1, self.size, bands)
        return collate(patches, [0] * len(patches), self.ratio)

    def reduced(self, rng: np.random.Generator) -> Batch:
        """Patches one scale down, with the true MS."""
        count = len(self.truths[0].bands)
        mixture, gains = Mixture.choice(range(count), count), self.truths[0].gains
        phases = np.floor(rng.uniform(0, self.ratio, 2))
        patches: list = []
        while len(patches) < _PATCHES:
            truth = self.truths[rng.integers(len(self.truths))]
            patch = truth.patch(
                rng, self.true_size, self.ratio, phases, gains, gains, np.zeros((count, 2)), mixture
            )
            patches += [patch] if patch is not None and patch.pan.shape[-1] == self.true_size else []
        return collate(patches, range(len(patches)), self.ratio)


def _moments(statistics: Statistics, response_of: Sequence[int]) -> Moments:
    """The scene's, so that patches are standardised and modulated as ``neural.Neural`` does it."""
    ms = statistics.ms
    lows = [statistics.low(index) for index in response_of]
    variance = statistics.covariance.diagonal().clamp(min=TINY)
    gains = statistics.covariance[ms, lows] / variance[lows]
    pan = statistics.low(0)
    return Moments(
        statistics.mean[ms].numpy(),
        statistics.covariance[ms][:, ms].numpy(),
        float(statistics.mean[pan]),
        float(variance[pan]),
        (gains * variance[pan]).numpy(),
    )

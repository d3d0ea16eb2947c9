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
import functools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan import __version__
from clippan.device import choose_device, one_thread, set_threads
from clippan.errors import ClippanError
from clippan.fusion import filters, model
from clippan.fusion.fuse import resolve_sensor
from clippan.fusion.metrics import SAM, Errors, FullFigures, Q2n, correlate, low_block
from clippan.fusion.model import FusionModel
from clippan.fusion.registration import register
from clippan.fusion.sensors import Sensor
from clippan.fusion.statistics import TINY, Statistics, measure
from clippan.fusion.training import language, losses, sources
from clippan.fusion.training.batch import Batch
from clippan.fusion.training.objective import Objective, Weights
from clippan.fusion.training.scenes import Mixture, Moments, Pairing, Patch, Truth, _corners, _degraded, collate
from clippan.jobs import check
from clippan.jobs.adapt import ADAPTED, AdaptFusionRequest, AdaptFusionResult
from clippan.jobs.base import Context
from clippan.jobs.options import Device
from clippan.raster.grid import Axis
from clippan.raster.pair import Pair, open_pair
from clippan.raster.tiles import count_threads

# What is read.
_WHOLE = 12_000_000  # PAN pixels times bands: so much is one window, and is measured where it is learned from
_WINDOWS, _HELD = 6, 3  # windows of a larger scene; every third is for measuring alone
_EDGE = 1024  # of these, PAN pixels
_SIZES = (192, 128, 96, 64)  # edges of patches in PAN pixels, the first that fits
_COVERED = 0.999  # least weight of valid pixels under a filter whose result counts
_STEP = 8  # a window's edge is a multiple of it for networks that fold pixels
_TRUE_SIZES = (128, 96, 64, 48, 32)  # the same one scale down

# How it is learned.
_PATCHES = 4
_RATE = 3e-4
_WARMUP = 10
_CLIP = 1.0  # greatest norm of a gradient
_AVERAGE = 0.9  # share of the past in the running average of the weights, which is what is measured and kept
_KHAN, _SPATIAL = 1.0, 1.0  # weights of D_λ,K and of D_s
_SHARP = 2.0  # of the correlation of details that is less than the start's: more costs D_s, and colours
_REMEMBERED = 0.9  # share of the past in what is known of D_s: one batch alone has too few blocks
_SMALL = 0.005  # difference of UQI below which a band is let go
_REDUCED = Weights(supervised=1.0, quality=0.5, angle=5.0)  # angles are small numbers
_LANGUAGE = 0.1  # weight of CLIP's direction
_SEEN, _EVERY_SEEN = 2, 4  # patches that CLIP looks at, every so many steps: it costs more than all else
_STAGE_ONE, _STAGE_RATE = 12, 1e-3  # steps in which CLIP's adapters are taught, and their rate
_STAGE_SHARE = 0.2  # of the time budget at most

# Where a figure comes near to what may be lost, what guards it counts more from then on.
_NEAR = 0.4  # part of what may be lost
_MORE, _LESS = 2.0, 0.8  # times a guard's weight after each measurement
_MOST = 16.0

# What is kept.
_EVERY = 30  # steps between measurements
_PATIENCE = 4  # measurements without a better state
_GAIN = 0.0005  # of HQNR: less is not worth a file
_SAM = 1.01  # times the start's at most
_DETAIL = 0.01  # of the correlation of details, that may be lost
_BETWEEN = (0.5, 0.25)  # of the way from the start, where all of it loses too much
_SPARE = 1.0  # seconds for all that comes after the last step
_LOST = 0.005  # of Q2n, that may be lost


def adapt(request: AdaptFusionRequest, context: Context) -> AdaptFusionResult:
    """Runs the job; see AdaptFusionRequest.

    Raises:
        ClippanError: one sentence; nothing is left behind.
    """
    clock = _Clock(request.seconds)
    device, reason = choose_device(request.device)
    if device.type == "mps":
        device, reason = choose_device(Device.CPU)[0], "MPS has no float64, in which figures are summed."
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
    colours = _colours(sensor, [number - 1 for number in request.bands] or range(bands))
    supervisor = _supervisor(request, bands, colours, ground, device, clock, context.part(10, 25))
    adaption = _Adaption(start, ground, supervisor, request, device, clock, context.part(25, 98))
    network, before, after = adaption.go()
    about = {
        "title": f"{start.about.get('title') or start.name}, adapted to {Path(request.pan).name}",
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
        pieces: windows at full resolution to draw patches from.
        truths: the same one scale down.
        size, true_size: edges of patches in pixels.
        ratio: MS over PAN pixel size.
        gains: MTF gain of each band.
        checks: what is measured at full resolution, and ``true_checks`` one scale down.
        pixels: of PAN in all windows.
    """

    pieces: Sequence[_Piece]
    truths: Sequence[Truth]
    size: int
    true_size: int
    ratio: float
    gains: tuple[float, ...]
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
        edge = min(_EDGE, math.isqrt(_WHOLE // (3 * len(gains))))  # many bands take as much memory as few
        windows, whole = sources.informative(pair, _WINDOWS, edge, _WHOLE)
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
        size, pieces = _pieces(learned)
        true_size = _fitting_truth(truths, ratio) if truths else 0
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
        context.log(
            f"Learning from {len(learned)} window{'s' * (len(learned) > 1)} of the scene"
            + (f", measuring on {len(held)} others." if held else ", all of it." if whole else ".")
        )
        pixels = sum(found.pan.size for found in parts)
        return cls(pieces, truths, size, true_size, ratio, tuple(gains), checks, true_checks, pixels)

    def full(self, rng: np.random.Generator) -> Batch:
        """Patches at full resolution."""
        patches = [self.pieces[rng.integers(len(self.pieces))].patch(rng, self.size) for _ in range(_PATCHES)]
        return collate(patches, [0] * len(patches), self.ratio)

    def reduced(self, rng: np.random.Generator) -> Batch:
        """Patches one scale down, with the true MS."""
        count = len(self.truths[0].bands)
        mixture, gains = Mixture.choice(range(count), count), self.truths[0].gains
        phases = np.floor(rng.uniform(0, self.ratio, 2))
        usable = [truth for truth in self.truths if min(truth.pan.shape) >= self.true_size]
        patches: list[Patch] = []
        while len(patches) < _PATCHES:
            truth = usable[rng.integers(len(usable))]
            patch = truth.patch(rng, self.true_size, self.ratio, phases, gains, gains, np.zeros((count, 2)), mixture)
            patches += [patch] if patch is not None else []
        return collate(patches, range(len(patches)), self.ratio)


@dataclass(frozen=True)
class _Piece:
    """A window whose inputs are computed once, to be cut into patches.

    Attributes:
        whole: the window as one patch.
        corners: of patches that are valid (n, 2), row and column.
        spans: the first pixel that each sample of MS is made of, and the last, for rows (samples, 2) and columns.
    """

    whole: Patch
    corners: np.ndarray
    spans: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, pairing: Pairing, size: int) -> Optional[_Piece]:
        """The window for patches of a size; None if none of it is valid throughout."""
        corners = _corners(_inside(pairing), size)
        if not len(corners):
            return None
        whole = pairing.all()
        return cls(whole, corners, (_spans(whole.rows), _spans(whole.columns)))

    def patch(self, rng: np.random.Generator, size: int) -> Patch:
        """One of the patches."""
        row, column = (int(start) for start in self.corners[rng.integers(len(self.corners))])
        down, right = slice(row, row + size), slice(column, column + size)
        rows, columns = _within(self.spans[0], down), _within(self.spans[1], right)
        whole = self.whole
        up, pan, low = (image[:, down, right] for image in (whole.up, whole.pan, whole.low))
        ms, pan_low = (image[:, rows, columns] for image in (whole.ms, whole.pan_low))
        return Patch(
            up, pan, low, ms, pan_low, whole.rows[:, rows, down], whole.columns[:, columns, right], whole.moments, None
        )


def _spans(matrices: Tensor) -> np.ndarray:
    used = (matrices != 0).any(dim=0).numpy()
    return np.stack([used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)], axis=1)


def _within(spans: np.ndarray, pixels: slice) -> slice:
    """Samples that are made of these pixels only, at least one."""
    chosen = np.flatnonzero((spans[:, 0] >= pixels.start) & (spans[:, 1] < pixels.stop))
    if len(chosen):
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    nearest = int(np.abs(spans.mean(axis=1) - (pixels.start + pixels.stop - 1) / 2).argmin())
    return slice(nearest, nearest + 1)


def _pieces(pairings: Sequence[Pairing]) -> tuple[int, list[_Piece]]:
    """The greatest edge of patches that lie somewhere, 0 if none does, and the windows that have some."""
    for size in _SIZES:
        found = [_Piece.of(pairing, size) for pairing in pairings]
        pieces = [piece for piece in found if piece is not None]
        if pieces:
            return size, pieces
    return 0, []


def _fitting_truth(truths: Sequence[Truth], ratio: float) -> int:
    """The same one scale down."""
    rng, mixture = np.random.default_rng(0), Mixture.choice([0], len(truths[0].bands))
    nothing = np.zeros((1, 2))
    for size in _TRUE_SIZES:
        for truth in truths:
            gains = truth.gains[:1]
            if min(truth.pan.shape) >= size and truth.patch(
                rng, size, ratio, nothing[0], gains, gains, nothing, mixture
            ):
                return size
    return 0


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


def _reduced(truth: Truth, ratio: float, pan_gain: float) -> tuple[Pairing, Truth]:
    """The pair that the MTF makes of a truth, and that truth."""
    axis = Axis(ratio, 0.0)
    shape = tuple(int(length / ratio) for length in truth.pan.shape)
    bands = [_degraded(band[None], axis, axis, shape, gain)[0] for band, gain in zip(truth.bands, truth.gains)]
    valid = _degraded(truth.valid[None].astype(np.float32), axis, axis, shape, float(np.mean(truth.gains)))[0]
    pair = Pairing("scene", "scene", truth.pan, np.stack(bands), axis, axis, valid > _COVERED, truth.gains, pan_gain)
    return pair, truth


# Exact figures


@dataclass(frozen=True)
class _Check:
    """A window that is fused as a whole and measured.

    Attributes:
        pairing: the window.
        batch: the same as a network is given it.
        valid: which of its pixels count (H, W), and ``covered`` which of them once the fused bands are filtered.
        truth: the true bands (c, H, W), if there are some.
    """

    pairing: Pairing
    batch: Batch
    valid: Tensor
    covered: Tensor
    truth: Optional[Tensor] = None

    @classmethod
    def of(cls, pairing: Pairing, device: torch.device, truth: Optional[Truth] = None) -> _Check:
        """Of a window, and of the truth where it is one scale down."""
        valid = torch.from_numpy(_inside(pairing))
        if truth is not None:
            valid &= torch.from_numpy(truth.valid)
        covered = valid
        if not bool(valid.all()):
            weight = _seen(valid.float()[None].expand(len(pairing.ms), -1, -1), pairing)
            covered = valid & (weight > _COVERED).all(dim=0)
        batch = collate([pairing.all()], [0], pairing.x.ratio).to(device)
        true = None if truth is None else torch.from_numpy(truth.bands).float().to(device)
        return cls(pairing, batch, valid.to(device), covered.to(device), true)

    @torch.no_grad()
    def fuse(self, network: nn.Module) -> Tensor:
        """The fused bands (c, H, W) in the units of the file."""
        height, width = self.valid.shape
        padding = (0, -width % _STEP, 0, -height % _STEP)
        inputs = self.batch.inputs
        if any(padding):
            inputs = tuple(functional.pad(item, padding, mode="replicate") for item in inputs)  # type: ignore[assignment]
        return self.batch.units(network(*inputs)[..., :height, :width])[0]

    def add(self, figures: FullFigures, network: nn.Module) -> None:
        """Adds what the network makes of the window, at full resolution."""
        fused, pan = self.fuse(network), self.batch.pan_units(self.batch.pan)[0]
        edge = [FullFigures.MARGIN] * 4
        figures.add_high(*(functional.pad(item, edge) for item in (fused, pan, self.valid)))
        figures.add_khan(_seen(fused, self.pairing), self.batch.units(self.batch.up)[0], self.covered)
        low = torch.from_numpy(self.pairing.pan_low(self.pairing.pan_gain)[None])
        figures.add_low(torch.from_numpy(self.pairing.ms), low, torch.from_numpy(self.pairing.valid))


def _inside(pairing: Pairing) -> np.ndarray:
    """Which pixels of PAN lie in a valid sample of MS (H, W)."""
    found = []
    for axis, pixels, samples in zip((pairing.y, pairing.x), pairing.pan.shape, pairing.valid.shape):
        index = np.floor((np.arange(pixels) + 0.5 - axis.offset) / axis.ratio).astype(int)
        found.append((index.clip(0, samples - 1), (index >= 0) & (index < samples)))
    (rows, down), (columns, across) = found
    return np.asarray(pairing.valid[rows][:, columns] & down[:, None] & across)


def _seen(bands: Tensor, pairing: Pairing) -> Tensor:
    """Bands (c, H, W) after each one's MTF filter, on the same grid; beyond the border they repeat."""
    planes = []
    for band, gain in zip(bands, pairing.gains):
        rows, columns = (filters.mtf_kernel(gain, axis.ratio).tolist() for axis in (pairing.y, pairing.x))
        edge = (len(columns) // 2, len(columns) // 2, len(rows) // 2, len(rows) // 2)
        wide = functional.pad(band[None, None], edge, mode="replicate")[0]
        planes.append(correlate(correlate(wide, columns, -1), rows, -2))
    return torch.cat(planes)


# Learning


def _colours(sensor: Sensor, positions: Sequence[int]) -> Optional[list[int]]:
    """Which of the bands are red, green and blue, if the sensor tells."""
    names = [sensor.bands[position] if position < len(sensor.bands) else "" for position in positions]
    wanted = ("red", "green", "blue")
    return [names.index(name) for name in wanted] if set(wanted) <= set(names) else None


def _supervisor(
    request: AdaptFusionRequest,
    bands: int,
    colours: Optional[Sequence[int]],
    ground: _Ground,
    device: torch.device,
    clock: _Clock,
    context: Context,
) -> Optional[language.Supervisor]:
    """CLIP, taught on patches of the scene what MS, PAN and a fused image are (stage I); None if none is asked for."""
    if not request.clip:
        return None
    context.progress(0, "Loading CLIP")
    clip = language.frozen_clip(request.clip, device, context)
    torch.manual_seed(request.seed)
    supervisor = language.Supervisor(clip, bands, colours)
    optimiser = torch.optim.Adam(supervisor.learned(), lr=_STAGE_RATE)
    for step in range(_STAGE_ONE):
        if clock.gone > _STAGE_SHARE * clock.seconds:
            break
        context.progress(100 * (step + 1) / _STAGE_ONE, "Teaching CLIP the scene's bands")
        batch = ground.full(np.random.default_rng([request.seed, 1, step])).to(device)
        total = torch.stack(list(supervisor.stage_one(batch).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return supervisor.freeze()


class _Adaption:
    """A network that learns from the scene.

    Attributes:
        kept: steps up to the state that is kept.
        losses: the terms, the mean of the last steps.
    """

    def __init__(
        self,
        start: FusionModel,
        ground: _Ground,
        supervisor: Optional[language.Supervisor],
        request: AdaptFusionRequest,
        device: torch.device,
        clock: _Clock,
        context: Context,
    ) -> None:
        self._start, self._ground, self._supervisor = start, ground, supervisor
        self._request, self._device, self._clock, self._context = request, device, clock, context
        self._network = copy.deepcopy(start.network).requires_grad_(True)
        self._average = copy.deepcopy(start.network)
        self._optimiser = torch.optim.Adam(self._network.parameters(), lr=_RATE)
        self._reduced = Objective(_REDUCED)
        self._apart: Optional[Tensor] = None  # how far each band's UQI with PAN is from where it should be
        self._colour = self._detail = 1.0  # how much the guards of colours and of detail count
        self.kept = 0
        self.losses: dict[str, float] = {}

    def go(self) -> tuple[nn.Module, dict[str, float], dict[str, float]]:
        """The best network, and the figures before and after.

        Raises:
            ClippanError: none is better than the start.
        """
        begun = self._clock.gone
        self._context.progress(0, "Measuring the start model")
        before = self._measure(self._start.network)
        measuring = self._clock.gone - begun
        if any(math.isnan(value) for value in before.values()):
            raise ClippanError(
                "The scene has no block of 32 × 32 valid pixels at both scales, and figures are measured on such "
                "blocks; choose a larger area, or pansharpen with the start model."
            )
        self._context.log(f"Start: {_words(before)}")
        steps, stale = self._request.steps, 0
        best: Optional[nn.Module] = None
        after, last = before, before
        done = measured = 0
        with ThreadPoolExecutor(1, initializer=one_thread) as pool:
            # The next patches are cut while these are worked on.
            coming = pool.submit(self._draw, 0)
            while done < steps and stale < _PATIENCE and self._clock.left > 3.5 * measuring + _SPARE:
                batches = coming.result()
                coming = pool.submit(self._draw, done + 1)
                self._learn(done, batches)
                done += 1
                self._context.progress(
                    100 * done / steps, f"Step {done} of {steps}: {_words(self.losses)}, HQNR {last['HQNR']:.4f}"
                )
                if done % _EVERY and done < steps:
                    continue
                candidate, last = self._candidate(before, after)
                measured = done
                better = _acceptable(before, last) and last["HQNR"] > after["HQNR"]
                stale = 0 if better else stale + 1
                if better:
                    best, after, self.kept = candidate, last, done
                self._steer(before, last)
                self._context.log(f"Step {done}: {_words(last)}{'' if better else ' (not kept)'}")
        if measured < done:  # the time was up in between
            candidate, last = self._candidate(before, after)
            if _acceptable(before, last) and last["HQNR"] > after["HQNR"]:
                best, after, self.kept = candidate, last, done
        if not done:
            raise ClippanError(
                f"The time budget of {self._clock.seconds:g} s was spent before the first step; allow more time."
            )
        if best is None or after["HQNR"] < before["HQNR"] + _GAIN:
            raise ClippanError(
                f"No better model for this scene was found in {done} steps (HQNR {before['HQNR']:.4f} before, "
                f"{last['HQNR']:.4f} after; SAM {before['SAM']:.3f} and {last['SAM']:.3f}), so none was written; "
                "pansharpen with the start model."
            )
        return best, before, after

    def _draw(self, step: int) -> tuple[Batch, Batch]:
        """Patches at both scales, which the seed and the step decide."""
        rng = np.random.default_rng([self._request.seed, 0, step])
        return self._ground.full(rng), self._ground.reduced(rng)

    def _learn(self, step: int, batches: tuple[Batch, Batch]) -> None:
        rate = _RATE * min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / self._request.steps))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        full, reduced = (batch.to(self._device) for batch in batches)
        fused = self._network(*full.inputs)
        with torch.no_grad():
            wanted = losses.detail_correlation(self._start.network(*full.inputs), full.pan, full.scenes)
        khan = _khan(full, fused, self._ground.gains)
        correlation = losses.detail_correlation(fused, full.pan, full.scenes)
        apart = _apart(full, fused)
        now = apart.detach()
        self._apart = now if self._apart is None else _REMEMBERED * self._apart + (1 - _REMEMBERED) * now
        spatial = (apart * (self._apart / _SMALL).clamp(-1, 1)).mean()
        total = _KHAN * khan + _SPATIAL * spatial + self._detail * _SHARP * functional.relu(wanted - correlation)
        terms = {"D_lambda_K": khan.detach(), "D_s": self._apart.abs().mean(), "detail": 1 - correlation.detach()}
        loss, more = self._reduced(reduced, self._network(*reduced.inputs))
        total = total + self._colour * loss
        terms.update(more)
        if self._supervisor is not None and step % _EVERY_SEEN == 0:
            direction = self._supervisor.direction(_some(full, _SEEN), fused[:_SEEN])
            total = total + _LANGUAGE * _EVERY_SEEN * direction
            terms["language"] = direction.detach()
        self._optimiser.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), _CLIP)
        if torch.isfinite(norm):  # a patch without contrast must not spoil the network
            self._optimiser.step()
        share = 1 - min(_AVERAGE, (step + 1) / (step + 2))
        with torch.no_grad():
            for kept, new in zip(self._average.parameters(), self._network.parameters()):
                kept.lerp_(new, share)
        for name, term in terms.items():
            value = float(term)
            self.losses[name] = 0.9 * self.losses.get(name, value) + 0.1 * value

    def _steer(self, before: Mapping[str, float], now: Mapping[str, float]) -> None:
        """Lets the guards count more or less, as the figures have it."""
        colours = max((now["SAM"] / before["SAM"] - 1) / (_SAM - 1), (before["Q2n"] - now["Q2n"]) / _LOST)
        detail = (before["HP_correlation"] - now["HP_correlation"]) / _DETAIL
        self._colour, self._detail = (
            min(max(weight * (_MORE if lost > _NEAR else _LESS), 1.0), _MOST)
            for weight, lost in ((self._colour, colours), (self._detail, detail))
        )

    def _candidate(self, before: Mapping[str, float], best: Mapping[str, float]) -> tuple[nn.Module, dict[str, float]]:
        """The averaged network as it would be saved, and its figures; or, where it is better at full resolution but
        lost too much elsewhere, what lies between it and the start and did not.

        Where the start is at an optimum of what may not be lost, half of the way costs a quarter of the loss.
        """
        whole = self._mixed(1.0)
        first = whole, self._measure(whole)
        for share in _BETWEEN:
            if _acceptable(before, first[1]) or first[1]["HQNR"] <= best["HQNR"]:
                break
            if self._clock.left < _SPARE:
                break
            between = self._mixed(share)
            figures = self._measure(between)
            if _acceptable(before, figures) and figures["HQNR"] > best["HQNR"]:
                return between, figures
        return first

    def _mixed(self, share: float) -> nn.Module:
        """A share of the averaged network and the rest of the start, in the precision of a file."""
        candidate = copy.deepcopy(self._average)
        with torch.no_grad():
            for parameter, start in zip(candidate.parameters(), self._start.network.parameters()):
                parameter.copy_(torch.lerp(start, parameter, share).half().float())
        return candidate

    def _measure(self, network: nn.Module) -> dict[str, float]:
        ratio = self._ground.ratio
        figures = FullFigures(ratio)
        for item in self._ground.checks:
            self._context.check()
            item.add(figures, network)
        q2n, sam, errors = Q2n(), SAM(), Errors()
        for item in self._ground.true_checks:
            assert item.truth is not None
            fused = item.fuse(network)
            for figure in (q2n, sam, errors):
                figure.add(fused, item.truth, item.valid)
        values = {**figures.values, "Q2n": q2n.value, "SAM": sam.value, "ERGAS": errors.ergas(ratio)}
        return {name: values[name] for name in ADAPTED}


def _khan(batch: Batch, fused: Tensor, gains: Sequence[float]) -> Tensor:
    """D_λ,K as it is measured: on PAN's grid, of the fused bands after each one's MTF filter, against interpolated MS.

    The filters are matrices that leave out the patch's border.
    """
    size = fused.shape[-1]
    reach = min(max(filters.mtf_reach(gain, batch.ratio) for gain in gains), size // 2 - 4)
    matrices = torch.stack([_band_matrix(gain, batch.ratio, size, reach) for gain in gains]).to(fused.device)
    seen = filters.separable(matrices, fused, matrices)
    inside = slice(reach, size - reach)
    return 1 - losses.block_q2n(batch.units(seen), batch.units(batch.up[..., inside, inside])).mean()


@functools.lru_cache(maxsize=64)
def _band_matrix(gain: float, ratio: float, size: int, reach: int) -> Tensor:
    """The MTF filter (size − 2 reach, size) of what lies so far from the border."""
    kernel = filters.mtf_kernel(gain, ratio)
    offsets = np.arange(size)[None] - np.arange(reach, size - reach)[:, None] + len(kernel) // 2
    inside = (offsets >= 0) & (offsets < len(kernel))
    matrix = np.where(inside, kernel[offsets.clip(0, len(kernel) - 1)], 0.0)
    return torch.from_numpy(matrix / matrix.sum(axis=1, keepdims=True)).float()


def _apart(batch: Batch, fused: Tensor) -> Tensor:
    """UQI of each fused band with PAN less that of MS with PAN one scale down (c,), the mean over the patches: what D_s
    takes the magnitude of."""
    high = losses.block_uqi(batch.units(fused), batch.pan_units(batch.pan))
    low = losses.block_uqi(batch.units(batch.ms), batch.pan_units(batch.pan_low), low_block(batch.ratio))
    return (high - low).mean(dim=0)


def _acceptable(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether nothing got worse that must not."""
    return (
        after["SAM"] <= _SAM * before["SAM"]
        and after["HP_correlation"] >= before["HP_correlation"] - _DETAIL
        and after["Q2n"] >= before["Q2n"] - _LOST
    )


def _some(batch: Batch, count: int) -> Batch:
    """The first patches of a batch, as far as CLIP looks at them."""
    return replace(batch, up=batch.up[:count], pan=batch.pan[:count])


def _words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())

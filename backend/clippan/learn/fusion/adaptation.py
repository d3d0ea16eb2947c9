"""Adapts a fusion network to one scene, which has no truth at full resolution.

The network learns from patches of the scene itself, at two scales at once. At full resolution the fused image has to
agree with MS once it is degraded and with PAN in its details, and CLIP says whether it moves away from both in the
direction of a good fusion. One scale down MS is the truth (Wald's protocol): that keeps the colours where they were.
Every so often the exact figures are measured. What is kept is the best state that got better at full resolution and
not worse one scale down; where there is none, nothing is handed out.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.context import Context
from clippan.core.device import use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.fusion.model import FusionModel
from clippan.jobs.adapt import AdaptFusionRequest
from clippan.learn.fusion import clip_supervision, losses
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.objective import LossWeights, Objective
from clippan.learn.fusion.training_scene import TrainingScene
from clippan.learn.fusion.validation import validate
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

# How it is learned.
_RATE = 3e-4
_WARMUP = 10
_AVERAGE = 0.9  # share of the past in the running average of the weights, which is what is measured and kept
_KHAN, _SPATIAL = 1.0, 1.0  # weights of D_λ,K and of D_s
_SHARP = 2.0  # of the correlation of details that is less than the start's: more costs D_s, and colours
_REMEMBERED = 0.9  # share of the past in what is known of D_s: one batch alone has too few blocks
_SMALL = 0.005  # difference of UQI below which a band is let go
_REDUCED = LossWeights(supervised=1.0, quality=0.5, angle=5.0)  # angles are small numbers
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


class TimeBudget:
    """The time budget, from now on."""

    def __init__(self, seconds: float) -> None:
        self._start, self.seconds = time.monotonic(), seconds

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def remaining(self) -> float:
        return self.seconds - self.elapsed


def adapt_supervisor(
    request: AdaptFusionRequest,
    bands: int,
    colours: Optional[Sequence[int]],
    scene: TrainingScene,
    device: torch.device,
    clock: TimeBudget,
    context: Context,
) -> Optional[clip_supervision.ClipSupervisor]:
    """CLIP, taught on patches of the scene what MS, PAN and a fused image are (stage I); None if none is asked for."""
    if not request.clip:
        return None
    context.progress(0, "Loading CLIP")
    clip = clip_supervision.load_frozen_clip(request.clip, device, context)
    torch.manual_seed(request.seed)
    supervisor = clip_supervision.ClipSupervisor(clip, bands, colours)
    optimiser = torch.optim.Adam(supervisor.trainable_parameters(), lr=_STAGE_RATE)
    for step in range(_STAGE_ONE):
        if clock.elapsed > _STAGE_SHARE * clock.seconds:
            break
        context.progress(100 * (step + 1) / _STAGE_ONE, "Teaching CLIP the scene's bands")
        batch = scene.full_batch(np.random.default_rng([request.seed, 1, step])).to(device)
        supervisor.adapter_step(batch, optimiser)
    return supervisor.freeze()


class Adaptation:
    """A network that learns from the scene.

    Attributes:
        kept: steps up to the state that is kept.
        losses: the terms, the mean of the last steps.
    """

    def __init__(
        self,
        start: FusionModel,
        scene: TrainingScene,
        supervisor: Optional[clip_supervision.ClipSupervisor],
        request: AdaptFusionRequest,
        device: torch.device,
        clock: TimeBudget,
        context: Context,
    ) -> None:
        self._start, self._scene, self._supervisor = start, scene, supervisor
        self._request, self._device, self._clock, self._context = request, device, clock, context
        self._network = copy.deepcopy(start.network).requires_grad_(True)
        self._average = running_average(self._network, _AVERAGE, early=1)
        self._optimiser = torch.optim.Adam(self._network.parameters(), lr=_RATE)
        self._scheduler = warmup_cosine(self._optimiser, request.steps, _WARMUP)
        self._reduced = Objective(_REDUCED)
        self._apart: Optional[Tensor] = None  # how far each band's UQI with PAN is from where it should be
        self._colour = self._detail = 1.0  # how much the guards of colours and of detail count
        self.best_step = 0
        self.losses: dict[str, float] = {}

    def run(self) -> tuple[nn.Module, dict[str, float], dict[str, float]]:
        """The best network, and the figures before and after.

        Raises:
            ClippanError: none is better than the start.
        """
        begun = self._clock.elapsed
        self._context.progress(0, "Measuring the start model")
        before = self._measure(self._start.network)
        measuring = self._clock.elapsed - begun
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
        with ThreadPoolExecutor(1, initializer=use_one_thread) as pool:
            # The next patches are cut while these are worked on.
            coming = pool.submit(self._draw, 0)
            while done < steps and stale < _PATIENCE and self._clock.remaining > 3.5 * measuring + _SPARE:
                batches = coming.result()
                coming = pool.submit(self._draw, done + 1)
                self._learn(done, batches)
                done += 1
                self._context.progress(
                    100 * done / steps,
                    Message(
                        "Step {done} of {steps}: {words}, HQNR {last:.4f}",
                        done=done,
                        steps=steps,
                        words=_words(self.losses),
                        last=last["HQNR"],
                    ),
                )
                if done % _EVERY and done < steps:
                    continue
                candidate, last = self._candidate(before, after)
                measured = done
                better = _acceptable(before, last) and last["HQNR"] > after["HQNR"]
                stale = 0 if better else stale + 1
                if better:
                    best, after, self.best_step = candidate, last, done
                self._steer(before, last)
                self._context.log(
                    Message(
                        "Step {done}: {words}{value}",
                        done=done,
                        words=_words(last),
                        value="" if better else " (not kept)",
                    )
                )
        if measured < done:  # the time was up in between
            candidate, last = self._candidate(before, after)
            if _acceptable(before, last) and last["HQNR"] > after["HQNR"]:
                best, after, self.best_step = candidate, last, done
        if not done:
            raise ClippanError(
                "The time budget of {seconds:g} s was spent before the first step; allow more time.",
                seconds=self._clock.seconds,
            )
        if best is None or after["HQNR"] < before["HQNR"] + _GAIN:
            raise ClippanError(
                "No better model for this scene was found in {done} steps (HQNR {before:.4f} before, {last:.4f} "
                "after; SAM {before_2:.3f} and {last_2:.3f}), so none was written; pansharpen with the start model.",
                done=done,
                before=before["HQNR"],
                last=last["HQNR"],
                before_2=before["SAM"],
                last_2=last["SAM"],
            )
        return best, before, after

    def _draw(self, step: int) -> tuple[PatchBatch, PatchBatch]:
        """Patches at both scales, which the seed and the step decide."""
        rng = np.random.default_rng([self._request.seed, 0, step])
        return self._scene.full_batch(rng), self._scene.reduced_batch(rng)

    def _learn(self, step: int, batches: tuple[PatchBatch, PatchBatch]) -> None:
        full, reduced = (batch.to(self._device) for batch in batches)
        fused = self._network(*full.inputs)
        with torch.no_grad():
            wanted = losses.detail_correlation(self._start.network(*full.inputs), full.pan, full.scenes)
        khan = losses.spectral_distortion_on_pan(full, fused, self._scene.gains)
        correlation = losses.detail_correlation(fused, full.pan, full.scenes)
        apart = losses.uqi_difference(full, fused).mean(dim=0)
        now = apart.detach()
        self._apart = now if self._apart is None else _REMEMBERED * self._apart + (1 - _REMEMBERED) * now
        spatial = (apart * (self._apart / _SMALL).clamp(-1, 1)).mean()
        total = _KHAN * khan + _SPATIAL * spatial + self._detail * _SHARP * functional.relu(wanted - correlation)
        terms = {"D_lambda_K": khan.detach(), "D_s": self._apart.abs().mean(), "detail": 1 - correlation.detach()}
        loss, more = self._reduced(reduced, self._network(*reduced.inputs))
        total = total + self._colour * loss
        terms.update(more)
        if self._supervisor is not None and step % _EVERY_SEEN == 0:
            direction = self._supervisor.direction_loss(_some(full, _SEEN), fused[:_SEEN])
            total = total + _LANGUAGE * _EVERY_SEEN * direction
            terms["language"] = direction.detach()
        optimiser_step(self._network, self._optimiser, self._scheduler, total)
        self._average.update_parameters(self._network)
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
            if self._clock.remaining < _SPARE:
                break
            between = self._mixed(share)
            figures = self._measure(between)
            if _acceptable(before, figures) and figures["HQNR"] > best["HQNR"]:
                return between, figures
        return first

    def _mixed(self, share: float) -> nn.Module:
        """A share of the averaged network and the rest of the start, in the precision of a file."""
        candidate = copy.deepcopy(self._average.module)
        with torch.no_grad():
            for parameter, start in zip(candidate.parameters(), self._start.network.parameters()):
                parameter.copy_(torch.lerp(start, parameter, share).half().float())
        return candidate

    def _measure(self, network: nn.Module) -> dict[str, float]:
        scene = self._scene
        return validate(network, scene.validation, scene.reduced_validation, scene.ratio, self._context)


def _acceptable(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether nothing got worse that must not."""
    return (
        after["SAM"] <= _SAM * before["SAM"]
        and after["HP_correlation"] >= before["HP_correlation"] - _DETAIL
        and after["Q2n"] >= before["Q2n"] - _LOST
    )


def _some(batch: PatchBatch, count: int) -> PatchBatch:
    """The first patches of a batch, as far as CLIP looks at them."""
    return replace(batch, up=batch.up[:count], pan=batch.pan[:count])


def _words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())

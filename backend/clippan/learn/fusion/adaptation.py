"""Adaptation of a fusion network to one scene that has no reference at full resolution.

The network is trained on patches of the scene itself, at two resolutions at once. At full resolution the fused image,
once degraded, has to agree with MS, and its details with those of PAN; CLIP tells whether it moves away from both in
the direction of a good fusion. At reduced resolution MS is the reference (Wald's protocol), which preserves the
colours. The exact figures are measured at intervals, on MS that was registered to PAN, as Assess does. The best state
that improved at full resolution without getting worse at reduced resolution is kept; without such a state, it is the
start model.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Optional

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
from clippan.learn.fusion import losses
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.objective import LossWeights, Objective
from clippan.learn.fusion.training_scene import TrainingScene
from clippan.learn.fusion.validation import validate
from clippan.learn.loop import format_figures
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

if TYPE_CHECKING:  # imports open_clip, which takes seconds
    from clippan.learn.fusion.clip_supervision import ClipSupervisor

# Training
_LEARNING_RATE = 1e-3
_WARMUP = 10
_EMA_DECAY = 0.9  # share of the past in the running average of the weights, which is what is measured and kept
_KHAN_WEIGHT, _D_S_WEIGHT = 1.0, 1.0  # loss weights of D_λ,K and of D_s
_DETAIL_WEIGHT = 2.0  # loss weight of a detail correlation below the start's; a larger one costs D_s and colours
_D_S_SMOOTHING = 0.9  # share of the past in the estimate of D_s: one batch alone has too few blocks
_SMALL_UQI_DIFFERENCE = 0.005  # difference of UQI below which a band's weight falls
_REDUCED_WEIGHTS = LossWeights(supervised=1.0, quality=0.5, angle=5.0)  # angles are small numbers
_CLIP_WEIGHT = 0.1  # loss weight of CLIP's direction
_CLIP_PATCHES, _CLIP_EVERY = 2, 4  # patches that CLIP sees, and steps between: it costs more than all else

# Penalties of what may not get worse grow when a figure comes close to its limit.
_PENALTY_THRESHOLD = 0.4  # of the permitted loss
_PENALTY_INCREASE, _PENALTY_DECREASE = 2.0, 0.8  # factors of a penalty after each measurement
_MAX_PENALTY = 16.0

# Selection of the best state
_VALIDATE_EVERY = 30  # steps between measurements
_PATIENCE = 4  # measurements without a better state
_MIN_GAIN = 0.0005  # least gain that is worth another model
_MAX_SAM_RATIO = 1.01  # greatest SAM, relative to the start's
_MAX_DETAIL_LOSS = 0.01  # permitted loss of detail correlation
_MAX_Q2N_LOSS = 0.005  # permitted loss of Q2n
_INTERPOLATION_SHARES = (0.5, 0.25)  # shares of the way from the start that are tried where all of it loses too much
_RESERVED_SECONDS = 1.0  # seconds for all that comes after the last measurement
_MEASURING_MARGIN = 1.3  # a measurement is expected to take at most this multiple of the first one's time


class TimeBudget:
    """A time budget in seconds, from now on."""

    def __init__(self, seconds: float) -> None:
        self._start, self.seconds = time.monotonic(), seconds

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def remaining(self) -> float:
        return self.seconds - self.elapsed


class Adaptation:
    """Training of a network on a scene.

    Attributes:
        best_step: step of the state that is kept.
        losses: loss terms, averaged over the last steps.
    """

    def __init__(
        self,
        start: FusionModel,
        scene: TrainingScene,
        supervisor: Optional[ClipSupervisor],
        request: AdaptFusionRequest,
        device: torch.device,
        clock: TimeBudget,
        context: Context,
    ) -> None:
        self._start, self._scene, self._supervisor = start, scene, supervisor
        self._request, self._device, self._clock, self._context = request, device, clock, context
        self._network = copy.deepcopy(start.network).requires_grad_(True)
        self._average = running_average(self._network, _EMA_DECAY, warmup=1)
        self._optimiser = torch.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE)
        self._scheduler = warmup_cosine(self._optimiser, request.steps, _WARMUP)
        self._reduced = Objective(_REDUCED_WEIGHTS)
        self._uqi_difference: Optional[Tensor] = None  # of each band, averaged over steps
        self._colour_penalty = self._detail_penalty = 1.0
        self._measuring = 0.0  # seconds that a measurement is expected to take at most
        self.best_step = 0
        self.losses: dict[str, float] = {}

    def run(self) -> tuple[Optional[nn.Module], dict[str, float], dict[str, float]]:
        """The best network, or None if none is better than the start; the figures of the start and of what is kept.

        Raises:
            ClippanError: the scene has too few valid pixels to measure the figures on.
        """
        begin = self._clock.elapsed
        self._context.progress(0, "Measuring the start model")
        before = self._measure(self._start.network)
        self._measuring = _MEASURING_MARGIN * (self._clock.elapsed - begin)
        if any(math.isnan(value) for value in before.values()):
            raise ClippanError(
                "The scene has no block of 32 × 32 valid pixels at both resolutions, which the figures are measured "
                "on; choose a larger area, or pansharpen with the start model."
            )
        self._context.log(Message("Start: {figures}", figures=format_figures(before)))
        steps, stale = self._request.steps, 0
        best: Optional[nn.Module] = None
        after, last = before, before
        done = measured = 0
        with ThreadPoolExecutor(1, initializer=use_one_thread) as pool:
            # The next patches are cut during the current step.
            upcoming = pool.submit(self._sample_batches, 0)
            while done < steps and stale < _PATIENCE and self._can_measure():
                batches = upcoming.result()
                upcoming = pool.submit(self._sample_batches, done + 1)
                self._train_step(done, batches)
                done += 1
                self._context.progress(
                    100 * done / steps,
                    Message(
                        "Step {step} of {steps}: {losses}, HQNR {hqnr:.4f}",
                        step=done,
                        steps=steps,
                        losses=format_figures(self.losses),
                        hqnr=last["HQNR"],
                    ),
                )
                if done % _VALIDATE_EVERY and done < steps:
                    continue
                candidate, last = self._candidate(before, after)
                measured = done
                better = _acceptable(before, last) and _gain(before, last) > _gain(before, after)
                stale = 0 if better else stale + 1
                if better:
                    best, after, self.best_step = candidate, last, done
                self._update_penalties(before, last)
                sentence = "Step {step}: {figures}" if better else "Step {step}: {figures} (not kept)"
                self._context.log(Message(sentence, step=done, figures=format_figures(last)))
        if measured < done:  # the time ran out between two measurements
            candidate, last = self._candidate(before, after)
            if _acceptable(before, last) and _gain(before, last) > _gain(before, after):
                best, after, self.best_step = candidate, last, done
        if not done:
            self._context.log(
                Message(
                    "The time budget of {seconds:g} s was spent before the first step; allow more time.",
                    seconds=self._clock.seconds,
                )
            )
        if best is None or _gain(before, after) < _MIN_GAIN:
            self._context.log(Message("No gain on this scene in {steps} steps: the start model is kept.", steps=done))
            self.best_step = 0
            return None, before, before
        self._context.log(
            Message(
                "HQNR rises by {hqnr:.4f}, Q2n changes by {q2n:+.4f}: the adapted model is kept.",
                hqnr=after["HQNR"] - before["HQNR"],
                q2n=after["Q2n"] - before["Q2n"],
            )
        )
        return best, before, after

    def _sample_batches(self, step: int) -> tuple[PatchBatch, PatchBatch]:
        """Patches at both resolutions, determined by the seed and the step."""
        rng = np.random.default_rng([self._request.seed, 0, step])
        return self._scene.full_batch(rng), self._scene.reduced_batch(rng)

    def _train_step(self, step: int, batches: tuple[PatchBatch, PatchBatch]) -> None:
        full, reduced = (batch.to(self._device) for batch in batches)
        fused = self._network(*full.inputs)
        with torch.no_grad():
            start_correlation = losses.detail_correlation(self._start.network(*full.inputs), full.pan, full.scenes)
        khan = losses.khan_d_lambda_pan_grid(full, fused, self._scene.sensor_gains)
        correlation = losses.detail_correlation(fused, full.pan, full.scenes)
        difference = losses.uqi_difference(full, fused).mean(dim=0)
        mean = difference.detach()
        if self._uqi_difference is not None:
            mean = _D_S_SMOOTHING * self._uqi_difference + (1 - _D_S_SMOOTHING) * mean
        self._uqi_difference = mean
        spatial = (difference * (mean / _SMALL_UQI_DIFFERENCE).clamp(-1, 1)).mean()
        blur = functional.relu(start_correlation - correlation)
        total = _KHAN_WEIGHT * khan + _D_S_WEIGHT * spatial + self._detail_penalty * _DETAIL_WEIGHT * blur
        terms = {"D_lambda_K": khan.detach(), "D_s": mean.abs().mean(), "detail": 1 - correlation.detach()}
        reduced_loss, reduced_terms = self._reduced(reduced, self._network(*reduced.inputs))
        total = total + self._colour_penalty * reduced_loss
        terms.update(reduced_terms)
        if self._supervisor is not None and step % _CLIP_EVERY == 0:
            # CLIP looks at the first patches only.
            few = replace(full, up=full.up[:_CLIP_PATCHES], pan=full.pan[:_CLIP_PATCHES])
            direction = self._supervisor.direction_loss(few, fused[:_CLIP_PATCHES])
            total = total + _CLIP_WEIGHT * _CLIP_EVERY * direction
            terms["language"] = direction.detach()
        optimiser_step(self._network, self._optimiser, self._scheduler, total)
        self._average.update_parameters(self._network)
        for name, term in terms.items():
            value = float(term)
            self.losses[name] = 0.9 * self.losses.get(name, value) + 0.1 * value

    def _update_penalties(self, before: Mapping[str, float], now: Mapping[str, float]) -> None:
        """Raises the penalty of a figure that comes close to its limit, lowers that of others."""
        colours = max(
            (now["SAM"] / before["SAM"] - 1) / (_MAX_SAM_RATIO - 1), (before["Q2n"] - now["Q2n"]) / _MAX_Q2N_LOSS
        )
        detail = (before["HP_correlation"] - now["HP_correlation"]) / _MAX_DETAIL_LOSS
        self._colour_penalty, self._detail_penalty = (
            min(
                max(weight * (_PENALTY_INCREASE if lost > _PENALTY_THRESHOLD else _PENALTY_DECREASE), 1.0), _MAX_PENALTY
            )
            for weight, lost in ((self._colour_penalty, colours), (self._detail_penalty, detail))
        )

    def _candidate(self, before: Mapping[str, float], best: Mapping[str, float]) -> tuple[nn.Module, dict[str, float]]:
        """The averaged network in the precision of a file, and its figures. Where it is better at full resolution but
        loses too much elsewhere, a network interpolated between it and the start, if that does not.

        Near an optimum of what may not get worse, half of the way costs a quarter of the loss.
        """
        network = self._interpolated(1.0)
        figures = self._measure(network)
        if not (_acceptable(before, figures) or _gain(before, figures) <= _gain(before, best)):
            for share in _INTERPOLATION_SHARES:
                if not self._can_measure():
                    break
                between = self._interpolated(share)
                figures_between = self._measure(between)
                if _acceptable(before, figures_between) and _gain(before, figures_between) > _gain(before, best):
                    return between, figures_between
        return network, figures

    def _can_measure(self) -> bool:
        """Whether the time is enough for another measurement."""
        return self._clock.remaining > self._measuring + _RESERVED_SECONDS

    def _interpolated(self, share: float) -> nn.Module:
        """Weights interpolated from the start (share 0) to the averaged network (1), in the precision of a file."""
        candidate = copy.deepcopy(self._average.module)
        with torch.no_grad():
            for parameter, start in zip(candidate.parameters(), self._start.network.parameters()):
                parameter.copy_(torch.lerp(start, parameter, share).half().float())
        return candidate

    def _measure(self, network: nn.Module) -> dict[str, float]:
        scene = self._scene
        return validate(network, scene.validation, scene.reduced_validation, scene.ratio, self._context)


def _acceptable(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether SAM, detail correlation and Q2n stay within what may be lost."""
    return (
        after["SAM"] <= _MAX_SAM_RATIO * before["SAM"]
        and after["HP_correlation"] >= before["HP_correlation"] - _MAX_DETAIL_LOSS
        and after["Q2n"] >= before["Q2n"] - _MAX_Q2N_LOSS
    )


def _gain(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """How much HQNR rises, less what Q2n loses: a gain at full resolution must not be paid for one scale down."""
    return after["HQNR"] - before["HQNR"] + min(after["Q2n"] - before["Q2n"], 0.0)

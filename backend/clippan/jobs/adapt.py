"""Adapt: a fusion model learns from one scene, without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clippan import resources
from clippan.core.messages import Line, Message, Table
from clippan.jobs.assess import FIGURES
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import FusionModelFile, FusionModelOutput, OptionalModelName
from clippan.jobs.options import SHIPPED_FUSION_MODEL, MtfOption, PairOptions, RunOptions, SeedOption
from clippan.jobs.param import advanced_param, param

# What is measured before and after: at full resolution, and one scale down, where MS is the reference.
ADAPTATION_FIGURES = ("HQNR", "D_lambda_K", "D_s", "HP_correlation", "Q2n", "SAM", "ERGAS")


@dataclass(frozen=True)
class AdaptFusionResult(Result):
    """What was adapted.

    Attributes:
        output: the model's file, for Pansharpen.
        improved: whether it is an adapted model; if none was better than the start, it is a copy of that.
        before, after: ``ADAPTATION_FIGURES`` of the start model and of that in the output on this scene, by name.
        steps: of the optimiser, up to the model that is kept; 0 for the start model.
        clip: the model that supervised, empty for none.
        sensor, device: what was used, once "auto" was resolved.
        bands: the number of bands that the model is for now.
        megapixels: of PAN that were learned from and measured.
    """

    output: str
    improved: bool
    before: Mapping[str, float]
    after: Mapping[str, float]
    steps: int
    losses: Mapping[str, float]
    clip: str
    sensor: str
    device: str
    bands: int
    megapixels: float
    seconds: float

    def describe(self) -> list[Line]:
        heading = ("Figure", "Before", "After", "Best", "Meaning")
        rows = [
            (name, f"{self.before[name]:.4f}", f"{self.after[name]:.4f}", FIGURES[name][1], FIGURES[name][0])
            for name in ADAPTATION_FIGURES
        ]
        return [
            Table(heading, rows),
            self.line("{output}: bands: {bands}, steps: {steps}, megapixels: {megapixels:.1f}")
            if self.improved
            else self.line("No gain on this scene: the start model is kept, and {output} is a copy of it."),
            self.line("Supervised by {clip}") if self.clip else Message("Without supervision by CLIP"),
            self.line("Sensor {sensor}, {device}, {seconds:.1f} s"),
        ]


@job(
    "adapt",
    title="Adapt fusion model",
    summary="Adapts the network that Pansharpen uses to a scene, without a reference.",
    result=AdaptFusionResult,
    shows_log=True,
)
class AdaptFusionRequest(PairOptions, MtfOption, SeedOption, RunOptions, Request):
    """An adaptation."""

    model: FusionModelFile = param(
        "",
        title="Start from fusion model",
        help="The model to start from, such as one that was adapted to another scene. By default, the one that comes "
        "with CLIPPan.",
    )
    output: FusionModelOutput = param(
        title="Adapted model", help="The file to write, less than a megabyte. Pansharpen takes it as its fusion model."
    )
    clip: OptionalModelName = advanced_param(
        "",
        title="Supervising CLIP",
        help="A vision-language model that tells whether the result moves in the direction of a good fusion. By "
        "default there is none, because the one that comes with CLIPPan has brought no gain here and takes time.",
    )
    seconds: float = param(
        60.0,
        title="Time budget",
        help="How long the whole job may take. Less time means fewer steps; it ends earlier if nothing improves.",
        above=0,
        unit="seconds",
    )
    steps: int = advanced_param(240, title="Steps", help="The largest number of training steps.", low=1)

    @property
    def inputs(self) -> tuple[str, ...]:
        """With the model that comes with CLIPPan, where it is the start."""
        return (*super().inputs, self.model or str(resources() / SHIPPED_FUSION_MODEL))

"""Train fusion: a fusion network from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.messages import Line
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import File, Folder, RunFolder
from clippan.jobs.options import DeviceOptions
from clippan.jobs.param import param


@dataclass(frozen=True)
class TrainFusionResult(Result):
    """What was trained.

    Attributes:
        model: the file for Pansharpen.
        parameters: how many numbers it learned.
        steps: of the optimiser.
    """

    model: str
    parameters: int
    steps: int
    losses: Mapping[str, float]
    device: str
    seconds: float

    def describe(self) -> list[Line]:
        return [
            self.line("{model}: parameters: {parameters}, steps: {steps}; {seconds:.0f} s"),
            ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items()),
        ]


@job(
    "train fusion",
    title="Train fusion network",
    summary="Trains a fusion network for Pansharpen from a recipe.",
    result=TrainFusionResult,
    shows_log=True,
)
class TrainFusionRequest(DeviceOptions, Request):
    """A training."""

    data: Folder = param(title="Training data", help="The folder that the paths of the recipe start from.")
    output: RunFolder = param(
        title="Folder of the run", help="The folder of the run. An interrupted run of the same recipe is resumed."
    )
    recipe: File = param(
        "", title="Recipe", help="A YAML file. By default, the recipe of the model that comes with CLIPPan."
    )
    steps: Optional[int] = param(None, title="Steps", help="Number of steps, instead of the recipe's.", low=1)
    seed: Optional[int] = param(None, title="Seed", help="Seed of the random numbers, instead of the recipe's.", low=0)
    without: tuple[str, ...] = param(
        (), title="Sensors to leave out", help="Sensors that are not trained on, as the folders of pairs are named."
    )

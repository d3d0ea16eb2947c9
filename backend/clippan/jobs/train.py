"""Train fusion: a fusion network from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request


@dataclass(frozen=True)
class TrainFusionResult:
    """What was trained.

    Attributes:
        model: the file for Pansharpen.
        parameters: how many numbers it learned.
        steps: of the optimiser.
        losses: the terms, the mean of the last steps.
        device: where it was trained.
        seconds: wall time of this process.
    """

    model: str
    parameters: int
    steps: int
    losses: Mapping[str, float]
    device: str
    seconds: float


@dataclass(frozen=True)
class TrainFusionRequest(Request):
    """Parameters of a training.

    Attributes:
        recipe: YAML file, see ``clippan.learn.fusion.recipe``; empty for that of the shipped model.
        data: folder that the recipe's paths start from.
        output: folder of the run; one that holds a run of the same recipe is gone on with.
        steps, seed: override the recipe's.
        without: sensors to leave out besides.
        device: where to compute.
    """

    name: ClassVar[str] = "train fusion"
    result: ClassVar[type] = TrainFusionResult

    data: str
    output: str
    recipe: str = ""
    steps: Optional[int] = None
    seed: Optional[int] = None
    without: tuple[str, ...] = ()
    device: Device = Device.AUTO

    def validate(self) -> None:
        """See Request."""
        check.folder("data folder", self.data)
        if not self.output.strip():
            check.fail("No output folder was given; name the folder of the run.")
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        if self.seed is not None:
            check.at_least("seed", self.seed, 0)

"""Train fusion: a fusion network from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.errors import ClippanError
from clippan.core.messages import Line
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import AdapterFile, Folder, FusionModelFile, OptionalModelName, RecipeName, RunFolder
from clippan.jobs.options import DeviceOptions
from clippan.jobs.param import param


@dataclass(frozen=True)
class TrainFusionResult(Result):
    """What was trained.

    Attributes:
        model: the file for Pansharpen, or with the adapters of stage I for the training of stage II.
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
    recipe: RecipeName = param(
        "default",
        title="Recipe",
        help="The name of a recipe that comes with CLIPPan, or a YAML file. “default” makes a network for any sensor; "
        "“stage1” teaches CLIP what a fused picture is; “stage2” trains a network on with its help; the model that "
        "comes with CLIPPan went through all three. “paper” is the experiment that was published.",
    )
    model: FusionModelFile = param(
        "",
        title="Start from fusion model",
        help="The model to train on, instead of what the recipe starts from; also as the teacher, if that is the same.",
    )
    adapters: AdapterFile = param(
        "",
        title="Adapters of stage I",
        help="The stage_one.safetensors of an earlier run. With it, stage I is not run again.",
    )
    clip: OptionalModelName = param(
        "", title="Supervising CLIP", help="The vision-language model that supervises, instead of the recipe's."
    )
    network: str = param(
        "",
        title="Network",
        help="The network to train, with its default options, instead of the recipe's, such as lformer or panmamba.",
    )
    steps: Optional[int] = param(
        None,
        title="Steps",
        help="Number of steps, instead of the recipe's; stage I takes no more steps than that.",
        low=1,
    )
    seed: Optional[int] = param(None, title="Seed", help="Seed of the random numbers, instead of the recipe's.", low=0)
    without: tuple[str, ...] = param(
        (), title="Sensors to leave out", help="Sensors that are not trained on, as the folders of pairs are named."
    )

    def check(self) -> None:
        if self.model and self.network:
            raise ClippanError("“Start from fusion model” brings a network along; leave out “Network”.")

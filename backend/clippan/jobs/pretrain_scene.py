"""Pretrain scene: what rasters look like, learned without labels, for classifications to start from."""

from __future__ import annotations

from dataclasses import dataclass

from clippan.core.messages import Line
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import SceneEncoderOutput
from clippan.jobs.options import RasterStackOptions
from clippan.jobs.param import param


@dataclass(frozen=True)
class PretrainSceneResult(Result):
    """What was learned.

    Attributes:
        output: the encoder.
        modalities: bands of each raster.
        steps: of training.
        loss: at its end: the part of the variance of hidden pixels that the network does not fill in, 0 to about 1.
    """

    output: str
    modalities: tuple[int, ...]
    steps: int
    loss: float
    hints: tuple[str, ...]
    device: str
    seconds: float

    def describe(self) -> list[Line]:
        return [
            self.line(
                "{output}: bands: {bands}, steps: {steps}; {seconds:.1f} s on {device}; explained variance of hidden "
                "pixels: {explained:.0%}",
                bands=" + ".join(map(str, self.modalities)),
                explained=1 - self.loss,
            )
        ]


@job(
    "pretrain scene",
    title="Pre-train on a scene",
    summary="Learns what a scene looks like without labels, for classifications to start from.",
    result=PretrainSceneResult,
)
class PretrainSceneRequest(RasterStackOptions, Request):
    """A pre-training."""

    output: SceneEncoderOutput = param(
        title="Pre-trained scene",
        help="The file to write. Classify from few samples takes it with the same rasters in the same order.",
    )

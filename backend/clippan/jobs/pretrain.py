"""Pretrain scene: what rasters look like, learned without labels, for classifications to start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.classify import check_encoder, check_grid


@dataclass(frozen=True)
class PretrainSceneResult:
    """What was learned.

    Attributes:
        output: the encoder.
        modalities: bands of each raster.
        steps: of training.
        loss: at its end: the part of the variance of hidden pixels that the network does not fill in, 0 to about 1.
        hints: sentences for the user.
        device: where it was computed.
        seconds: wall time.
    """

    output: str
    modalities: tuple[int, ...]
    steps: int
    loss: float
    hints: tuple[str, ...]
    device: str
    seconds: float


@dataclass(frozen=True)
class PretrainSceneRequest(Request):
    """Parameters of a pre-training.

    Attributes:
        rasters: one or several, each a modality with any number of bands; those on other grids are warped.
        output: the encoder to write, a name that ends in .safetensors.
        grid: the raster, from 1, on whose pixels all are laid; 0 means the finest.
        steps: of training; None for 400.
        seed: of everything that is drawn.
        nodata: overrides the nodata values that the rasters declare.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "pretrain scene"
    result: ClassVar[type] = PretrainSceneResult

    rasters: tuple[str, ...]
    output: str
    grid: int = 0
    steps: Optional[int] = None
    seed: int = 0
    nodata: Optional[float] = None
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return self.rasters

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.output,)

    def validate(self) -> None:
        """See Request."""
        check.sources("raster", self.rasters)
        check.output(self.output, self.inputs)
        check.on_disk(self.output)
        check_encoder(self.output)
        check_grid(self.grid, self.rasters)
        if self.steps is not None:
            check.at_least("number of steps", self.steps, 1)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of threads", self.threads, 0)

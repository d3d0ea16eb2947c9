"""Adapt: a fusion model learns from one scene, without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan import resources
from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import SHIPPED, Registration

# What is measured before and after: at full resolution, and one scale down, where MS is the reference.
ADAPTED = ("HQNR", "D_lambda_K", "D_s", "HP_correlation", "Q2n", "SAM", "ERGAS")
ENDING = ".safetensors"


@dataclass(frozen=True)
class AdaptFusionResult:
    """What was adapted.

    Attributes:
        output: the model's file, for Pansharpen.
        before, after: figures of the start and of the adapted model on this scene, by the names in ``ADAPTED``.
        steps: of the optimiser, up to the model that is kept.
        losses: the terms, the mean of the last steps.
        clip: the model that supervised, empty for none.
        sensor, device: what was used, once "auto" was resolved.
        bands: the number of bands that the model is for now.
        megapixels: of PAN that were learned from and measured.
        seconds: wall time.
    """

    output: str
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


@dataclass(frozen=True)
class AdaptFusionRequest(Request):
    """Parameters of an adaptation.

    Attributes:
        pan: the panchromatic raster, one band (any GDAL data source).
        ms: one multi-band raster, or several that are stacked in this order.
        output: the file to write, ending in ``.safetensors``.
        model: the model to start from; empty means the one that ships with CLIPPan.
        sensor: an id of ``resources/sensors.json``, "auto" or "generic".
        bands: which bands of the stack, from 1; empty means all.
        nodata: overrides the nodata value that the inputs declare.
        registration: whether MS is moved onto PAN where they do not lie on each other.
        clip: id or path of the vision-language model that supervises; empty means none.
        seconds: time budget of the whole job.
        steps: of the optimiser at most.
        seed: of everything that is drawn.
        threads: CPU threads, 0 means all.
        device: where to compute.
    """

    name: ClassVar[str] = "adapt"
    result: ClassVar[type] = AdaptFusionResult

    pan: str
    ms: tuple[str, ...]
    output: str
    model: str = ""
    sensor: str = "auto"
    bands: tuple[int, ...] = ()
    nodata: Optional[float] = None
    registration: Registration = Registration.AUTO
    clip: str = "starter"
    seconds: float = 120.0
    steps: int = 240
    seed: int = 0
    threads: int = 0
    device: Device = Device.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.pan, *self.ms, self.model or str(resources() / SHIPPED))

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.output,)

    def validate(self) -> None:
        """See Request."""
        check.source("panchromatic raster", self.pan)
        check.sources("multispectral raster", self.ms)
        check.output(self.output, self.inputs)
        if not self.output.lower().endswith(ENDING):
            check.fail(f"The output {self.output} would be a fusion model; choose a name that ends in {ENDING}.")
        check.on_disk(self.output)
        check.bands(self.bands)
        check.sensor(self.sensor)
        if self.clip:
            check.model(self.clip)
        check.positive("time budget", self.seconds)
        check.at_least("number of steps", self.steps, 1)
        check.at_least("seed", self.seed, 0)
        check.at_least("number of threads", self.threads, 0)

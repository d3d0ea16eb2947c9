"""Assess: how good is a pansharpened raster, with and without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Registration

# What each figure is, in a line, and its best value; the first six need no reference.
FIGURES = {
    "D_lambda_K": ("Spectral distortion D_λ,K (Khan)", "0"),
    "D_s": ("Spatial distortion D_s", "0"),
    "HQNR": ("Hybrid quality without reference HQNR", "1"),
    "D_lambda": ("Spectral distortion D_λ", "0"),
    "QNR": ("Quality without reference QNR", "1"),
    "HP_correlation": ("Correlation of fine detail with PAN", "1"),
    "Q2n": ("Quality of all bands together Q2n", "1"),
    "SAM": ("Spectral angle SAM (degrees)", "0"),
    "ERGAS": ("Relative global error ERGAS", "0"),
    "SCC": ("Spatial correlation SCC", "1"),
    "PSNR": ("Peak signal to noise PSNR (dB)", "high"),
    "SSIM": ("Structural similarity SSIM", "1"),
}


@dataclass(frozen=True)
class AssessResult:
    """Quality figures.

    Attributes:
        full: figures without a reference; see FIGURES.
        reference: figures against the reference; empty without one.
        sensor: whose MTF was used.
        pixels: how many valid pixels were compared.
        report: the HTML report, None if none was asked for.
        seconds: wall time.
        shift: how far off PAN MS was taken to lie, in PAN pixels (x, y); adding it puts MS on PAN.
        band_shifts: the same for each band, where they differ; else empty.
        hints: sentences for the user.
    """

    full: Mapping[str, float]
    reference: Mapping[str, float]
    sensor: str
    pixels: int
    report: Optional[str]
    seconds: float
    shift: tuple[float, ...] = (0.0, 0.0)
    band_shifts: tuple[tuple[float, ...], ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class AssessRequest(Request):
    """Parameters of an assessment.

    Attributes:
        fused: the pansharpened raster.
        pan, ms: what it was made from.
        reference: the true raster at the fused one's grid, if there is one.
        sensor: an id of ``resources/sensors.json``, "auto" or "generic".
        bands: which bands of the stack were sharpened, from 1; empty means all.
        nodata: overrides the nodata value that the inputs declare.
        report: an HTML file to write, with a picture.
        device: where to compute.
        registration: whether figures allow for MS not lying on PAN. The pansharpened raster has no say in where it
            lies, so results of all programs are measured alike.

    Of sensor, bands and nodata, what is left open is taken from the tags of a raster that CLIPPan made, and so is the
    shift between PAN and MS.
    """

    name: ClassVar[str] = "assess"
    result: ClassVar[type] = AssessResult

    fused: str
    pan: str
    ms: tuple[str, ...]
    reference: Optional[str] = None
    sensor: str = "auto"
    bands: tuple[int, ...] = ()
    nodata: Optional[float] = None
    report: Optional[str] = None
    device: Device = Device.AUTO
    registration: Registration = Registration.AUTO

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.fused, self.pan, *self.ms, self.reference or "")

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.report or "",)

    def validate(self) -> None:
        """See Request."""
        check.source("pansharpened raster", self.fused)
        check.source("panchromatic raster", self.pan)
        check.sources("multispectral raster", self.ms)
        check.bands(self.bands)
        check.sensor(self.sensor)
        if self.reference is not None:
            check.source("reference raster", self.reference)
        if self.report is not None:
            check.output(self.report, self.inputs)
            check.html(self.report)
            check.on_disk(self.report)

"""Assess: how good a pansharpened raster is, with and without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, file_lines, job, shift_lines
from clippan.jobs.kinds import Raster, Report
from clippan.jobs.options import DeviceOptions, PairOptions
from clippan.jobs.param import param

# What each figure is, in a line, and its best value; the first six need no reference.
FIGURES = {
    "D_lambda_K": (Message("Spectral distortion D_λ,K (Khan)"), "0"),
    "D_s": (Message("Spatial distortion D_s"), "0"),
    "HQNR": (Message("Hybrid quality without reference HQNR"), "1"),
    "D_lambda": (Message("Spectral distortion D_λ"), "0"),
    "QNR": (Message("Quality without reference QNR"), "1"),
    "HP_correlation": (Message("Correlation of fine detail with PAN"), "1"),
    "Q2n": (Message("Quality of all bands together Q2n"), "1"),
    "SAM": (Message("Spectral angle SAM (degrees)"), "0"),
    "ERGAS": (Message("Relative global error ERGAS"), "0"),
    "SCC": (Message("Spatial correlation SCC"), "1"),
    "PSNR": (Message("Peak signal to noise PSNR (dB)"), "high"),
    "SSIM": (Message("Structural similarity SSIM"), "1"),
}


@dataclass(frozen=True)
class AssessResult(Result):
    """Quality figures.

    Attributes:
        full: figures without a reference; see FIGURES.
        reference: figures against the reference; empty without one.
        sensor: whose MTF was used.
        pixels: how many valid pixels were compared.
        report: the HTML report, None if none was asked for.
        shift: how far off PAN MS was taken to lie, in PAN pixels (x, y); adding it puts MS on PAN.
        band_shifts: the same for each band, where they differ; else empty.
        fused_with_mtf: MTF gain of each band that the pansharpened raster was made with, by its tags; empty if unknown.
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
    fused_with_mtf: tuple[float, ...] = ()

    def describe(self) -> list[Line]:
        figures = {**self.full, **self.reference}
        rows = [
            (name, f"{figures[name]:.4f}", best, label) for name, (label, best) in FIGURES.items() if name in figures
        ]
        return [
            Table(("Figure", "Value", "Best", "Meaning"), rows),
            self.line("Valid pixels compared: {pixels}; sensor {sensor}, {seconds:.1f} s"),
            *shift_lines(self.shift, self.band_shifts),
            *file_lines(("Report", self.report)),
        ]


@job(
    "assess",
    title="Assess pansharpening",
    summary="Measures how good a pansharpened raster is, whichever program made it.",
    result=AssessResult,
)
class AssessRequest(PairOptions, DeviceOptions, Request):
    """An assessment.

    Of sensor, bands and nodata, what is left open is taken from the tags of a raster that CLIPPan made, and so is the
    shift between PAN and MS. The pansharpened raster has no say in where it lies, so that the results of all programs
    are measured alike.
    """

    fused: Raster = param(title="Pansharpened raster", help="The raster to measure. It may come from any program.")
    reference: Optional[Raster] = param(
        None,
        title="Reference raster",
        help="The true raster at the pixel size of the pansharpened one, if there is one.",
    )
    report: Optional[Report] = param(
        None,
        title="Report",
        help="A web page with the figures, their meaning, and pictures before and after.",
        proposed=True,
    )

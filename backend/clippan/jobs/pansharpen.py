"""Pansharpen: a multispectral raster takes the detail of a panchromatic one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.errors import ClippanError
from clippan.core.messages import Line
from clippan.jobs.base import Request, Result, job, mtf_lines, shift_lines
from clippan.jobs.kinds import FusionModelFile, RasterFile
from clippan.jobs.options import Method, MtfOption, PairOptions, RasterFileOptions, RunOptions
from clippan.jobs.param import advanced_param, param


@dataclass(frozen=True)
class PansharpenResult(Result):
    """What was made.

    Attributes:
        output: the written file.
        width, height, bands: its size in pixels and bands.
        dtype: its GDAL data type, that of the multispectral input.
        nodata: its nodata value, None if every pixel is valid.
        method, sensor, device: what was used, once "auto" was resolved.
        ratio: multispectral over panchromatic pixel size (x, y).
        shift: how far MS was moved to the right and down, in PAN pixels (x, y).
        band_shifts: the same for each band, where they differ; else empty.
        mtf: MTF gain of each band that the method worked with, 0 to 1; empty for methods without one.
        mtf_measured: MTF gain of each band by the images and its standard error; empty where they were not measured.
    """

    output: str
    width: int
    height: int
    bands: int
    dtype: str
    nodata: Optional[float]
    method: str
    sensor: str
    device: str
    ratio: tuple[float, ...]
    seconds: float
    provenance: Mapping[str, str]
    hints: tuple[str, ...] = ()
    shift: tuple[float, ...] = (0.0, 0.0)
    band_shifts: tuple[tuple[float, ...], ...] = ()
    mtf: tuple[float, ...] = ()
    mtf_measured: tuple[tuple[float, ...], ...] = ()

    def describe(self) -> list[Line]:
        return [
            self.line("{output}: {width} × {height} pixels, bands: {bands}, {dtype}"),
            self.line("Method {method}, sensor {sensor}, {device}, {seconds:.1f} s"),
            *shift_lines(self.shift, self.band_shifts),
            *mtf_lines(self.mtf, self.mtf_measured),
        ]


@job(
    "pansharpen",
    title="Pansharpen",
    summary="Sharpens a multispectral raster with the panchromatic band of the same scene.",
    result=PansharpenResult,
)
class PansharpenRequest(RasterFileOptions, PairOptions, MtfOption, RunOptions, Request):
    """A pansharpening; the output has the grid of the panchromatic raster, and its extent is their overlap."""

    output: RasterFile = param(
        title="Pansharpened", help="The GeoTIFF to write. It keeps the data type of the multispectral raster."
    )
    method: Method = param(Method.CLIPPAN, title="Method", help="How the detail is added, the best method first.")
    model: FusionModelFile = param(
        "",
        title="Fusion model",
        help="For the method CLIPPan: a model that “Adapt fusion model” or “clippan train fusion” wrote. By default, "
        "the one that comes with CLIPPan.",
    )
    tile_size: int = advanced_param(
        2048,
        title="Tile size",
        help="Edge of the square of panchromatic pixels that is worked on at a time. It never changes the result; "
        "smaller tiles need less memory.",
        low=256,
        unit="pixels",
    )

    def check(self) -> None:
        if self.model and self.method is not Method.CLIPPAN:
            raise ClippanError(
                "A model is for the method clippan, not for {method}; leave one of them out.", method=self.method.value
            )

"""Sharpen bands: coarse bands take the detail of fine ones, without a panchromatic band."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import BandNumbers, RasterFile, Rasters
from clippan.jobs.options import NodataOption, Radiometry, RasterFileOptions, RunOptions
from clippan.jobs.param import advanced_param, inherited, param


@dataclass(frozen=True)
class SharpenedBand:
    """A band of the result.

    Attributes:
        name: as the coarse raster has it; may be empty.
        ratio: coarse over fine pixel size (x, y).
        mtf_gain: measured MTF gain at the Nyquist frequency of the coarse pixels, relative to the fine bands.
        explained: share, 0 to 1, of its detail at the coarse scale that the fine bands explain.
    """

    name: str
    ratio: tuple[float, ...]
    mtf_gain: float
    explained: float


@dataclass(frozen=True)
class SharpenResult(Result):
    """What was made.

    Attributes:
        dtype: its GDAL data type, that of the coarse bands.
        nodata: its nodata value, None if every pixel is valid.
        bands: in order.
        shifts: of the bands of each pixel size, how far they were moved to the right and down, in fine pixels (x, y).
    """

    output: str
    width: int
    height: int
    bands: tuple[SharpenedBand, ...]
    dtype: str
    nodata: Optional[float]
    device: str
    seconds: float
    provenance: Mapping[str, str]
    shifts: tuple[tuple[float, ...], ...] = ()
    hints: tuple[str, ...] = ()

    def describe(self) -> list[Line]:
        rows = [
            (
                band.name or str(number),
                " × ".join(f"{ratio:.3g}" for ratio in band.ratio),
                f"{band.mtf_gain:.2f}",
                f"{100 * band.explained:.0f} %",
            )
            for number, band in enumerate(self.bands, 1)
        ]
        moved = [
            Message(
                "Coarse bands were moved by {right:.2f}, {down:.2f} fine pixels (right, down).", right=right, down=down
            )
            for right, down in self.shifts
            if right or down
        ]
        return [
            self.line("{output}: {width} × {height} pixels, bands: {bands}, {dtype}", bands=len(self.bands)),
            Table(("Band", "Ratio", "MTF", "Explained"), rows),
            *moved,
            self.line("{device}, {seconds:.1f} s"),
        ]


@job(
    "sharpen",
    title="Sharpen bands",
    summary="Sharpens coarse bands with finer bands of the same place, without a panchromatic one.",
    result=SharpenResult,
)
class SharpenRequest(RasterFileOptions, NodataOption, RunOptions, Request):
    """A sharpening; the output has the grid of the fine raster, and its extent is what all rasters share."""

    nodata: Optional[float] = inherited(None, advanced=False)

    coarse: Rasters = param(
        title="Coarse raster(s)",
        help="The bands to sharpen: one raster or several, also of different pixel sizes. Of a Sentinel-2 scene (.SAFE "
        "or its .zip), these are its bands of 20 m and 60 m; of a Landsat folder with a panchromatic band, all others.",
    )
    fine: Rasters = param(
        (),
        title="Fine raster(s)",
        help="The bands with the detail: one raster or several, on the finest one's grid. Of a Sentinel-2 scene, these "
        "are its bands of 10 m; of a Landsat folder, the panchromatic band, or else those of 30 m. By default, they "
        "are taken from the scene with the coarse bands.",
    )
    output: RasterFile = param(
        title="Sharpened bands", help="The GeoTIFF to write. It keeps the data type and the names of the coarse bands."
    )
    bands: BandNumbers = param(
        (),
        title="Coarse bands",
        example="1,2,5-7",
        help="Numbers of the bands to sharpen, counted from 1 through all coarse rasters. The result has them in this "
        "order. By default, all.",
    )
    fine_bands: BandNumbers = param(
        (),
        title="Fine bands",
        example="1-4",
        help="Numbers of the fine bands to use, counted from 1 through all fine rasters. By default, all.",
    )
    register: bool = param(
        True,
        title="Co-registration",
        help="Measures how far the coarse bands are displaced from the fine ones, and corrects it where that helps.",
    )
    radiometry: Radiometry = advanced_param(
        Radiometry.SENSOR,
        title="Radiometry",
        help="What the result keeps of the coarse bands. A sensor sees more than the area of a pixel: with “sensor”, "
        "the result, blurred as measured in the scene, gives the coarse bands. With “area”, the plain mean of the "
        "result over each coarse pixel is the coarse pixel, at the cost of some sharpness.",
    )

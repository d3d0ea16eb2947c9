"""The report of an assessment: one HTML file that needs no other, with pictures and a plain word on each figure."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from clippan import report as page
from clippan.fusion.registration import words
from clippan.jobs.assess import AssessRequest, AssessResult
from clippan.report import file_name, png


@dataclass(frozen=True)
class Figure:
    """How a figure is shown: its name for readers, unit, best value, and one plain sentence."""

    label: str
    unit: str
    best: str
    sentence: str
    decimals: int = 4


FIGURES = {
    "HQNR": Figure(
        "HQNR",
        "",
        "1",
        "Overall quality without a reference, (1 − Dλ,K)(1 − Ds). Differences below 0.005 mean nothing, and plain "
        "interpolation can score high, so read it beside the high-pass correlation.",
    ),
    "HP_correlation": Figure(
        "High-pass correlation",
        "",
        "1",
        "Sharpness: how closely the fine detail of the bands follows that of PAN. A low value means a blurred "
        "result; interpolation alone stays far below a sharpened image.",
    ),
    "D_lambda_K": Figure(
        "Dλ,K (Khan)",
        "",
        "0",
        "Colour error: how much the result, seen with the sensor's blur, differs from the multispectral original. "
        "A high value means false colours.",
    ),
    "D_s": Figure(
        "Ds",
        "",
        "0",
        "Detail error: how much the bands' likeness to PAN changed between the two resolutions. A high value "
        "means too much or too little detail was put in.",
    ),
    "QNR": Figure(
        "QNR",
        "",
        "1",
        "The older overall figure, (1 − Dλ)(1 − Ds). Prefer HQNR, and use this one to compare with older papers.",
    ),
    "D_lambda": Figure(
        "Dλ (Alparone)",
        "",
        "0",
        "Change in how the bands resemble each other between the two resolutions. A high value means that the "
        "relations between colours changed.",
    ),
    "Q2n": Figure(
        "Q2n",
        "",
        "1",
        "Overall likeness to the reference over all bands at once: correlation, brightness and contrast. "
        "The figure to rank methods by.",
    ),
    "SAM": Figure(
        "SAM",
        "°",
        "0",
        "Mean angle between the spectra of result and reference. Small means true colours, whatever the brightness.",
        3,
    ),
    "ERGAS": Figure(
        "ERGAS",
        "",
        "0",
        "Error relative to each band's mean, scaled by the resolution ratio. Lower is better; it compares only "
        "scenes of one ratio.",
        3,
    ),
    "SCC": Figure(
        "SCC",
        "",
        "1",
        "Correlation of fine detail with that of the reference. A low value means blurred or invented detail.",
    ),
    "PSNR": Figure(
        "PSNR",
        "dB",
        "∞",
        "Error of all bands against the reference's largest value, on a logarithmic scale. Higher is better; "
        "3 dB more means half the squared error.",
        2,
    ),
    "SSIM": Figure(
        "SSIM",
        "",
        "1",
        "Likeness of local structure to the reference's, averaged over bands. A low value means visible "
        "differences in texture and edges.",
    ),
}


@dataclass(frozen=True)
class Stretch:
    """Value range a band that becomes black to white, one pair a band."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, image: np.ndarray, valid: np.ndarray) -> Stretch:
        """The 2 and 98 % percentiles of the valid pixels (bands, height, width)."""
        if not valid.any():
            return cls((0.0,) * len(image), (1.0,) * len(image))
        low, high = np.percentile(image[:, valid], [2, 98], axis=1)
        return cls(tuple(map(float, low)), tuple(map(float, high)))


@dataclass(frozen=True)
class Picture:
    """A picture with its caption, as the bytes of a PNG file."""

    caption: str
    png: bytes

    @classmethod
    def of(cls, caption: str, image: np.ndarray, valid: np.ndarray, stretch: Optional[Stretch] = None) -> Picture:
        """Makes a picture of (1 or 3, height, width) values; invalid pixels are transparent."""
        stretch = stretch or Stretch.of(image, valid)
        low = np.array(stretch.low, np.float32)[:, None, None]
        span = np.maximum(np.array(stretch.high, np.float32)[:, None, None] - low, 1e-12)
        scaled = np.clip((image - low) / span, 0, 1) * 255
        grey = np.where(valid, scaled, 0).round().astype(np.uint8)
        return cls(caption, png(np.concatenate([grey, np.where(valid, 255, 0).astype(np.uint8)[None]])))


def write(
    path: str,
    request: AssessRequest,
    result: AssessResult,
    sensor: str,
    ratio: float,
    pictures: Sequence[Picture],
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        request, result: what was asked and found.
        sensor: name of the sensor for readers.
        ratio: MS over PAN pixel size.
        pictures: shown side by side.

    Raises:
        ClippanError: the file cannot be written.
    """
    headline = ["HQNR", "HP_correlation", *(["Q2n"] if result.reference else [])]
    values = {**result.full, **result.reference}
    parts = [
        page.headline([_tile(key, values[key]) for key in headline]),
        page.pictures([page.figure(picture.caption, picture.png) for picture in pictures]),
        '<p class="note">One part of the scene at full resolution. Colours of all but PAN share one stretch '
        "(2 to 98 % of the interpolated multispectral image).</p>",
        "<h2>Without a reference</h2>",
        _table(result.full),
    ]
    if result.reference:
        parts += ["<h2>Against the reference</h2>", _table(result.reference)]
    parts += [*page.hints(result.hints), "<h2>Origin</h2>", _origin(request, result, sensor, ratio)]
    page.write(path, "Quality of", file_name(request.fused), parts)


def _tile(key: str, value: float) -> str:
    figure = FIGURES[key]
    return page.tile(_number(value, 3), figure.label, f"best {figure.best}")


def _table(values: Mapping[str, float]) -> str:
    rows = []
    for key, figure in FIGURES.items():
        if key in values:
            unit = f" {figure.unit}" if figure.unit else ""
            rows.append(
                f"<tr><th>{html.escape(figure.label)}</th>"
                f'<td class="number">{_number(values[key], figure.decimals)}{html.escape(unit)}</td>'
                f'<td class="best">{figure.best}</td><td>{html.escape(figure.sentence)}</td></tr>'
            )
    head = '<tr><th>Figure</th><th class="number">Value</th><th class="best">Best</th><th>What it says</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _number(value: float, decimals: int) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{decimals}f}"


def _origin(request: AssessRequest, result: AssessResult, sensor: str, ratio: float) -> str:
    lines = [
        ("Pansharpened", request.fused),
        ("Panchromatic", request.pan),
        *(("Multispectral", path) for path in request.ms),
    ]
    if request.reference:
        lines.append(("Reference", request.reference))
    if request.bands:
        lines.append(("Bands", ", ".join(map(str, request.bands))))
    lines += [
        ("Sensor (MTF)", sensor),
        ("Ratio of pixel sizes", f"{ratio:.4g}"),
        ("Registration", _registration(result)),
        ("Valid pixels compared", f"{result.pixels:,}"),
    ]
    return page.origin(lines, result.seconds)


def _registration(result: AssessResult) -> str:
    if not (any(result.shift) or result.band_shifts):
        return "multispectral taken as it lies"
    return f"multispectral taken as shifted by {words(result.shift, result.band_shifts)}"

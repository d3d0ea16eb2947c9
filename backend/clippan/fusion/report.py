"""The report of an assessment: one HTML file that needs no other, with pictures and a plain word on each figure."""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from osgeo import gdal, gdal_array

from clippan import __version__
from clippan.errors import ClippanError
from clippan.fusion.registration import words
from clippan.jobs.assess import AssessRequest, AssessResult


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
        return cls(caption, _png(np.concatenate([grey, np.where(valid, 255, 0).astype(np.uint8)[None]])))


def _png(planes: np.ndarray) -> bytes:
    name = f"/vsimem/{uuid.uuid4().hex}.png"
    gdal.GetDriverByName("PNG").CreateCopy(name, gdal_array.OpenArray(np.ascontiguousarray(planes)))
    try:
        file = gdal.VSIFOpenL(name, "rb")
        try:
            return bytes(gdal.VSIFReadL(1, gdal.VSIStatL(name).size, file))
        finally:
            gdal.VSIFCloseL(file)
    finally:
        gdal.Unlink(name)


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
    part = Path(f"{path}.part")
    try:
        part.write_text(_page(request, result, sensor, ratio, pictures), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = error.strerror or str(error)
        raise ClippanError(f"The report {path} could not be written ({reason}); choose another place.") from error


def _page(request: AssessRequest, result: AssessResult, sensor: str, ratio: float, pictures: Sequence[Picture]) -> str:
    name = _file_name(request.fused)
    headline = ["HQNR", "HP_correlation", *(["Q2n"] if result.reference else [])]
    values = {**result.full, **result.reference}
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Quality of {html.escape(name)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>Quality of <span>{html.escape(name)}</span></h1>",
        '<div class="headline">',
        *(_tile(key, values[key]) for key in headline),
        "</div>",
        '<div class="pictures">',
        *(_figure(picture) for picture in pictures),
        "</div>",
        '<p class="note">One part of the scene at full resolution. Colours of all but PAN share one stretch '
        "(2 to 98 % of the interpolated multispectral image).</p>",
        "<h2>Without a reference</h2>",
        _table(result.full),
    ]
    if result.reference:
        parts += ["<h2>Against the reference</h2>", _table(result.reference)]
    parts += ["<h2>Origin</h2>", _origin(request, result, sensor, ratio), "</main></body></html>"]
    return "\n".join(parts) + "\n"


def _tile(key: str, value: float) -> str:
    figure = FIGURES[key]
    return (
        f"<div><strong>{_number(value, 3)}</strong>{html.escape(figure.label)}<small>best {figure.best}</small></div>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


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
        ("Made", f"{datetime.datetime.now():%Y-%m-%d %H:%M} in {result.seconds:.1f} s"),
        (
            "With",
            f"clippan {__version__}, PyTorch {torch.__version__}, GDAL {gdal.__version__}, NumPy {np.__version__}",
        ),
    ]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in lines)
    return f'<table class="origin"><tbody>{rows}</tbody></table>'


def _registration(result: AssessResult) -> str:
    if not (any(result.shift) or result.band_shifts):
        return "multispectral taken as it lies"
    return f"multispectral taken as shifted by {words(result.shift, result.band_shifts)}"


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #1d2733; font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 26px; font-weight: 600; margin: 0 0 20px; overflow-wrap: anywhere; }
h1 span { color: #0b6b8a; }
h2 { font-size: 18px; font-weight: 600; margin: 36px 0 10px; }
.headline { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 20px; }
.headline div { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 12px 20px; min-width: 150px; }
.headline strong { display: block; font-size: 28px; font-weight: 600; font-variant-numeric: tabular-nums; }
.headline small { color: #66717d; margin-left: 8px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
figure { margin: 0; }
img { width: 100%; display: block; border-radius: 6px; background: #d9dde2; image-rendering: pixelated; }
figcaption { padding-top: 4px; color: #3d4a57; font-size: 14px; }
.note { color: #66717d; font-size: 13px; margin: 8px 0 0; }
table { width: 100%; border-collapse: collapse; background: #fff; border: 1px solid #dfe3e8; }
th, td { text-align: left; vertical-align: top; padding: 8px 14px; border-top: 1px solid #e9ecf0; }
thead th { background: #eef1f4; font-size: 13px; color: #3d4a57; border-top: 0; }
tbody th { font-weight: 600; white-space: nowrap; width: 170px; }
.number { width: 80px; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead .best, .best { width: 40px; text-align: center; color: #66717d; }
.origin td { overflow-wrap: anywhere; }
@media print { body { background: #fff; } main { padding: 0; } }
"""

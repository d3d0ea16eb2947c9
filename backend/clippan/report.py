"""What the reports share: one HTML file that needs no other, with pictures inside."""

from __future__ import annotations

import base64
import datetime
import html
import uuid
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from osgeo import gdal, gdal_array

from clippan import __version__
from clippan.core.outputs import Outputs, making


def write(path: str, title: str, name: str, parts: Sequence[str], outputs: Optional[Outputs] = None) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: the HTML file.
        title, name: the heading, of which the name is set off.
        parts: HTML, one after the other.
        outputs: of the run, with which it is put in place; None where it is alone.

    Raises:
        ClippanError: the file cannot be written.
    """
    name = html.escape(name)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title} {name}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title} <span>{name}</span></h1>",
        *parts,
        "</main></body></html>",
    ]
    with making(path, "report", outputs) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def headline(tiles: Sequence[str]) -> str:
    """A row of tiles."""
    return "\n".join(['<div class="headline">', *tiles, "</div>"])


def tile(value: str, label: str, note: str) -> str:
    """A figure in large."""
    return f"<div><strong>{value}</strong>{html.escape(label)}<small>{html.escape(note)}</small></div>"


def pictures(figures: Sequence[str]) -> str:
    """Pictures side by side."""
    return "\n".join(['<div class="pictures">', *figures, "</div>"])


def figure(caption: str, picture: bytes) -> str:
    """A picture, the bytes of a PNG file, over its caption."""
    data = base64.b64encode(picture).decode("ascii")
    caption = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def hints(sentences: Sequence[str]) -> list[str]:
    """What the user may want to know, under a heading of its own; nothing without it."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return [f"<h2>Hints</h2><ul>{items}</ul>"] if items else []


def origin(lines: Sequence[tuple[str, str]], seconds: float) -> str:
    """The table of where a report is from, with the time and the versions at its end."""
    lines = [
        *lines,
        ("Made", f"{datetime.datetime.now():%Y-%m-%d %H:%M} in {seconds:.1f} s"),
        (
            "With",
            f"clippan {__version__}, PyTorch {torch.__version__}, GDAL {gdal.__version__}, NumPy {np.__version__}",
        ),
    ]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in lines)
    return f'<table class="origin"><tbody>{rows}</tbody></table>'


def file_name(path: str) -> str:
    """The last part of a path, of whichever system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def png(planes: np.ndarray) -> bytes:
    """A PNG file of uint8 values (1 to 4, height, width)."""
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

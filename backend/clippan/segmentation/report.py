"""The report of a calibration: what it changed, in figures, pictures and plain words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from clippan import report as page
from clippan.catalogue.prompts import Table
from clippan.core.outputs import Outputs
from clippan.jobs.calibrate import CalibrateRequest, CalibrateResult
from clippan.labels.legend import UNCLASSIFIED, colours

_COVER = 0.55  # of a picture by the colours of classes
MATRIX = """<style>
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
.wide { overflow-x: auto; }
.matrix { width: auto; }
.matrix th, .matrix td { padding: 6px 10px; width: auto; white-space: nowrap; }
.matrix td { text-align: right; font-variant-numeric: tabular-nums; min-width: 52px; }
.matrix small { display: block; color: inherit; opacity: .7; }
tr.chosen > * { background: #e7f3f7; }
.text { color: #3d4a57; max-width: 76ch; }
</style>"""


@dataclass(frozen=True)
class Panel:
    """A labelled place, as three pictures.

    Attributes:
        caption: which raster it is from.
        image: the raster, red, green and blue, uint8 (h, w, 3).
        before, after: the maps there, uint8 (h, w); 0 is unclassified.
        labels: what it is in truth, uint8 (h, w); 0 is unlabelled.
    """

    caption: str
    image: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray


def write(
    path: str,
    request: CalibrateRequest,
    result: CalibrateResult,
    table: Table,
    panels: Sequence[Panel] = (),
    outputs: Optional[Outputs] = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        request, result: what was asked and found.
        table: the calibrated table.
        panels: labelled places to show, of any size.
        outputs: of the run, with which it is put in place; None where it is alone.

    Raises:
        ClippanError: the file cannot be written.
    """
    before, after = result.before, result.after
    parts = [
        MATRIX,
        page.headline(
            [
                page.tile(percent(after.accuracy), "right after", f"before {percent(before.accuracy)}"),
                page.tile(f"{after.mean_iou:.3f}", "mean IoU after", f"before {before.mean_iou:.3f}"),
                page.tile(f"{sum(result.labelled):,}", "labelled pixels", f"{len(result.classes)} classes"),
            ]
        ),
        f'<p class="text">{html.escape(_verdict(result))}</p>',
        *_pictures(panels, table),
        "<h2>Classes</h2>",
        _classes(result, table),
        '<p class="note">IoU, intersection over union, is the part of all pixels that are of a class or were mapped as '
        "it on which both agree: 1 is perfect, and below 0.5 more of it is wrong than right. The offset is added to a "
        "class's logits: a class with a positive one was found too rarely before, one with a negative one too often. "
        "A dash stands where a class has no labelled pixels.</p>",
        "<h2>Confusion before</h2>",
        confusion(before.confusion, result.classes),
        "<h2>Confusion after</h2>",
        confusion(after.confusion, result.classes),
        '<p class="note">A row is a class in truth, and a column what it was mapped as: percent of the row, and '
        "labelled pixels below. Read along a row to see what a class is taken for; if two classes are taken for each "
        "other, give them words that tell them apart, or make them one.</p>",
        *page.hints(result.hints),
        "<h2>Origin</h2>",
        page.origin(_origin(request, result), result.seconds),
    ]
    page.write(path, "Calibration of", page.file_name(result.output), parts, outputs)


def _verdict(result: CalibrateResult) -> str:
    gain = result.after.accuracy - result.before.accuracy
    if gain >= 0.005:
        says = f"Calibration makes {percent(gain)} more of the labelled pixels right."
    elif gain > -0.005:
        says = "Calibration hardly changes how much is right: the words already fit, or the labels are too few."
    else:
        says = f"Calibration makes {percent(-gain)} more of the labelled pixels wrong: use the table without it."
    return (
        f"{says} The figures after it are by cross-validation: each place is mapped with what the others taught, so "
        "they say what to expect where nothing is labelled, as far as it looks like the labelled places. Logits are "
        f"multiplied by {result.logit_scale:.4g}, which makes the confidence of the labelled places as true as it can."
    )


def _pictures(panels: Sequence[Panel], table: Table) -> list[str]:
    legend = np.array(colours(table), np.float32)
    parts = []
    for panel in panels:
        shown = (("Before", panel.before), ("After", panel.after), ("Labels", panel.labels))
        figures = [
            page.figure(f"{name}: {panel.caption}", _over(panel.image, values, legend)) for name, values in shown
        ]
        parts.append(page.pictures(figures))
    if panels:
        parts.append('<p class="note">Colours as in the table below; without colour: unclassified, or unlabelled.</p>')
    return parts


def _over(image: np.ndarray, values: np.ndarray, legend: np.ndarray) -> bytes:
    """Colours over a picture, which stays grey where there are none, as a PNG file."""
    grey = np.broadcast_to(image.mean(axis=2, dtype=np.float32)[..., None], image.shape)
    covered = (1 - _COVER) * grey + _COVER * legend[values]
    mixed = np.where(values[..., None] > 0, covered, grey)
    return page.png(mixed.round().astype(np.uint8).transpose(2, 0, 1))


def _classes(result: CalibrateResult, table: Table) -> str:
    head = "".join(
        f'<th class="number">{name}</th>' for name in ("Value", "Labelled", "IoU before", "IoU after", "Offset")
    )
    rows = []
    shown = zip(
        result.classes, colours(table)[1:], result.labelled, result.before.iou, result.after.iou, result.offsets
    )
    for value, (name, colour, labelled, before, after, offset) in enumerate(shown, 1):
        cells = (str(value), f"{labelled:,}", _figure(before), _figure(after), f"{offset:+.3f}")
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><th>{swatch(colour)}{html.escape(name)}</th>{numbers}</tr>")
    return f"<table><thead><tr><th>Class</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def swatch(colour: tuple[int, int, int]) -> str:
    """A patch of a class's colour."""
    return f'<span class="swatch" style="background: rgb{colour}"></span>'


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A confusion matrix as a table; columns beyond the classes are what stayed unclassified."""
    width = max((len(row) for row in counts), default=0)
    columns = [*classes, UNCLASSIFIED][: max(width, len(classes))]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = []
    for number, (name, row) in enumerate(zip(classes, counts)):
        total = max(sum(row), 1)
        cells = "".join(_cell(count, count / total, number == column) for column, count in enumerate(row))
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table class="matrix"><thead><tr><th>true ↓ mapped as →</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, right: bool) -> str:
    """Green on the diagonal, red beside it, the stronger the larger the share of the row."""
    red, green, blue = (46, 125, 50) if right else (198, 40, 40)
    ink = "#fff" if share > 0.6 else "#1d2733"
    style = f"background: rgba({red}, {green}, {blue}, {share:.2f}); color: {ink}"
    return f'<td style="{style}">{percent(share)}<small>{count:,}</small></td>'


def _origin(request: CalibrateRequest, result: CalibrateResult) -> list[tuple[str, str]]:
    pairs = zip(request.rasters, request.samples)
    return [
        *(("Raster and labels", f"{raster}, {samples}") for raster, samples in pairs),
        ("Prompt table", request.classes),
        ("Calibrated table", result.output),
        ("Model", request.model),
        ("Logit scale", f"{result.logit_scale:.6g}"),
    ]


def percent(share: float) -> str:
    """A share of 0 to 1, to read."""
    return f"{100 * share:.1f} %"


def _figure(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.3f}"

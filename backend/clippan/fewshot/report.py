"""The report of a map from samples: pictures, accuracy, confusion, and what was compared, in plain words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from clippan import report as page
from clippan.catalogue.prompts import Table
from clippan.core.outputs import Outputs
from clippan.jobs.classify import ClassifyRequest, ClassifyResult, MapAccuracy, Score
from clippan.labels.folds import REACH
from clippan.labels.legend import colours
from clippan.labels.samples import Samples
from clippan.segmentation.report import MATRIX, confusion, percent, swatch

_LONGEST = 640  # pixels along the longer edge of a picture
# From unsure to sure, even to the eye and to the colour-blind (after Nuñez, Anderton and Renslow 2018, "cividis").
_RAMP = np.array([(0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56)], np.float32)
_BLANK = (236, 238, 241)  # nodata
_DOT = 0.008  # radius of a sample in the picture, as a part of its longer edge


@dataclass
class Overview:
    """A map made small: every ``step``-th of its pixels.

    Attributes:
        step: in pixels.
        classes: values, uint8 (h, w); 0 is nodata.
        confidence: 0 to 1, float32 (h, w); NaN where there is none.
        picture: of a raster, uint8 (h, w, 3).
    """

    step: int
    classes: np.ndarray
    confidence: np.ndarray
    picture: np.ndarray

    @classmethod
    def of(cls, width: int, height: int) -> Overview:
        """Of a map of this size, with nothing in it yet."""
        step = -(-max(width, height) // _LONGEST)
        shape = (-(-height // step), -(-width // step))
        return cls(step, np.zeros(shape, np.uint8), np.full(shape, np.nan, np.float32), np.zeros((*shape, 3), np.uint8))

    def add(self, x: int, y: int, classes: np.ndarray, confidence: np.ndarray) -> None:
        """Adds a window of the map (h, w), with its first pixel at column x and row y."""
        some = (slice(-y % self.step, None, self.step), slice(-x % self.step, None, self.step))
        for small, values in ((self.classes, classes[some]), (self.confidence, confidence[some])):
            top, left = -(-y // self.step), -(-x // self.step)
            small[top : top + values.shape[0], left : left + values.shape[1]] = values


def write(
    path: str,
    request: ClassifyRequest,
    result: ClassifyResult,
    known: Samples,
    table: Table,
    overview: Overview,
    outputs: Outputs,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        request, result: what was asked and found.
        known: the samples.
        table: the classes with their colours.
        overview: the map.

    Raises:
        ClippanError: the file cannot be written.
    """
    found = result.accuracy
    parts = [
        MATRIX,
        page.headline(_tiles(result, known)),
        f'<p class="text">{html.escape(_verdict(result, request.repeats))}</p>',
        page.pictures(_pictures(known, table, overview)),
        '<p class="note">Colours as in the table of classes; the dots are the samples. Confidence is dark where the '
        "classifier is unsure and yellow where it is sure.</p>",
        *page.hints(result.hints),
        "<h2>Classes</h2>",
        _classes(result, table),
        *_comparison(result.chosen, result),
        *(_confusion(found, known.names) if found else []),
        "<h2>Origin</h2>",
        page.origin(_origin(request, result), result.seconds),
    ]
    page.write(path, "Map of classes", page.file_name(result.output), parts, outputs)


def _tiles(result: ClassifyResult, known: Samples) -> list[str]:
    count = page.tile(f"{len(known.labels):,}", "samples", f"{len(known.names)} classes")
    found = result.accuracy
    if not found:
        return [count]
    return [
        page.tile(percent(found.oa), "overall accuracy", f"± {percent(found.std)}" if found.repeats > 1 else ""),
        page.tile(percent(found.aa), "average accuracy", "mean of the classes"),
        page.tile(f"{found.kappa:.3f}", "kappa", "beyond chance"),
        count,
    ]


def _verdict(result: ClassifyResult, repeats: int) -> str:
    says = f"The map was made by {result.method.value} ({result.method.label})."
    found = result.accuracy
    if not found:
        reason = (
            "too few places are labelled for any of them to be left out" if repeats else "no repeats were asked for"
        )
        return f"{says} How good it is cannot be told: {reason}."
    times = "once" if found.repeats == 1 else f"{found.repeats} times, each with another split"
    beyond = "; but CLIP looks further, which flatters a little" if result.method.sees_words else ""
    return (
        f"{says} Accuracy is by cross-validation: each {found.split} is left out in turn, with what lies within "
        f"{REACH} pixels of it, and mapped by what the others taught, {times}, so that no sample is judged by its own "
        f"neighbours{beyond}. It tells what to expect where the land looks like the labelled places, in the "
        "proportions in which they were labelled."
    )


def _pictures(known: Samples, table: Table, overview: Overview) -> list[str]:
    legend = np.array([_BLANK, *colours(table)[1:]], np.uint8)
    scene = overview.picture.copy()
    height, width = scene.shape[:2]
    radius = max(1, round(_DOT * max(height, width)))
    for border, size in ((True, radius + 1), (False, radius)):
        down, across = np.mgrid[-size : size + 1, -size : size + 1]
        disc = down**2 + across**2 <= (size + 0.3) ** 2
        for y, x in zip(down[disc], across[disc]):
            rows = np.clip(known.rows // overview.step + y, 0, height - 1)
            columns = np.clip(known.columns // overview.step + x, 0, width - 1)
            scene[rows, columns] = 255 if border else legend[known.labels + 1]
    sure = np.nan_to_num(overview.confidence) * (len(_RAMP) - 1)
    lower = np.minimum(sure.astype(int), len(_RAMP) - 2)
    share = (sure - lower)[..., None]
    ramp = ((1 - share) * _RAMP[lower] + share * _RAMP[lower + 1]).round().astype(np.uint8)
    ramp[np.isnan(overview.confidence)] = _BLANK
    shown = (("Samples", scene), ("Map", legend[overview.classes]), ("Confidence", ramp))
    return [page.figure(caption, page.png(image.transpose(2, 0, 1))) for caption, image in shown]


def _classes(result: ClassifyResult, table: Table) -> str:
    names = ("Value", "Samples", "Places", "F1", "Share", "Hectares", "Confidence")
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    f1: Sequence[Optional[float]] = result.accuracy.f1 if result.accuracy else (None,) * len(result.classes)
    rows = []
    for area, colour, labelled, places, figure in zip(
        result.classes, colours(table)[1:], result.labelled, result.places, f1
    ):
        cells = (
            str(area.value),
            f"{labelled:,}",
            f"{places:,}",
            _number(figure, ".3f"),
            percent(area.share),
            _number(area.hectares, ",.2f"),
            _number(area.confidence, ".2f"),
        )
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><th>{swatch(colour)}{html.escape(area.name)}</th>{numbers}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>Class</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '</div><p class="note">F1 is the harmonic mean of how much of a class is found, and how much of what is mapped '
        "as it is right: 1 is perfect. A dash stands where none of its samples could be left out.</p>"
    )


def _comparison(scores: Sequence[Score], result: ClassifyResult) -> list[str]:
    if not scores:
        return []
    head = "".join(f'<th class="number">{name}</th>' for name in ("OA", "±", "AA", "Kappa", "Seconds"))
    rows = []
    for row in scores:
        cells = (percent(row.oa), percent(row.std), percent(row.aa), f"{row.kappa:.3f}", f"{row.seconds:.1f}")
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        mark = ' class="chosen"' if row.method is result.method else ""
        rows.append(f"<tr{mark}><th>{row.method.value}</th><td>{html.escape(row.method.label)}</td>{numbers}</tr>")
    return [
        "<h2>Methods compared</h2>",
        '<div class="wide"><table><thead><tr><th>Method</th><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>",
        '<p class="note">All by the same cross-validation. The best of several is flattered a little by having been '
        "chosen; methods that are nearer to each other than the deviation over the repeats are equally good.</p>",
    ]


def _confusion(found: MapAccuracy, names: Sequence[str]) -> list[str]:
    return [
        "<h2>Confusion</h2>",
        confusion(found.confusion, names),
        '<p class="note">A row is a class in truth, and a column what it was mapped as when it was left out: percent '
        "of the row, and samples of all repeats below. Read along a row to see what a class is taken for; where two "
        "are taken for each other, label more of both.</p>",
    ]


def _origin(request: ClassifyRequest, result: ClassifyResult) -> list[tuple[str, str]]:
    return [
        *(("Raster", raster) for raster in request.rasters),
        ("Samples", f"{page.file_name(request.samples)}, field {request.field}"),
        ("Map", result.output),
        ("Method", result.method.value),
        *([("Model", result.model)] if result.model else []),
        ("Seed", str(request.seed)),
    ]


def _number(value: Optional[float], form: str) -> str:
    return "–" if value is None else format(value, form)

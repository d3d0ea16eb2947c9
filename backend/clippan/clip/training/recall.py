"""How well chips of a sensor and their pictures find each other, and the report of that."""

from __future__ import annotations

import html
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from clippan import report as page
from clippan.jobs.align import AlignSensorRequest, AlignSensorResult, Recall
from clippan.segmentation.report import percent

_FIRST = (1, 5, 10)


def recall(queries: Tensor, answers: Tensor) -> Recall:
    """How often the answer of a query's own row is among the first by cosine; equals count half.

    Args:
        queries, answers: vectors (n, width), of any length; rows belong together.
    """
    cosines = functional.normalize(queries, dim=-1) @ functional.normalize(answers, dim=-1).T
    own = cosines.diag()[:, None]
    # Equally alike answers come in any order: the middle of their ranks.
    ranks = (cosines > own).sum(1) + ((cosines == own).sum(1) - 1) / 2
    return Recall(*(float((ranks < first).float().mean()) for first in _FIRST))


def chance(count: int) -> Recall:
    """What guessing among so many reaches."""
    return Recall(*(min(first / count, 1.0) for first in _FIRST))


def write(path: str, request: AlignSensorRequest, result: AlignSensorResult) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        request, result: what was asked and found.

    Raises:
        ClippanError: the file cannot be written.
    """
    found, guess = result.to_picture, result.chance
    tiles = [
        page.tile(percent(getattr(found, name)), f"recall at {first}", f"by chance {percent(getattr(guess, name))}")
        for first, name in zip(_FIRST, ("at_1", "at_5", "at_10"))
    ]
    if result.agreement is not None:
        tiles.append(page.tile(percent(result.agreement), "the same word as the teacher", ""))
    rows = (
        ("The sensor asks for its picture", result.to_picture),
        ("A picture asks for the sensor's", result.from_picture),
        ("Before the first step", result.before),
        ("By chance", result.chance),
    )
    recalls = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f'<td class="number">{percent(v)}</td>' for v in (row.at_1, row.at_5, row.at_10))
        + "</tr>"
        for name, row in rows
    )
    bands = "".join(
        f'<tr><th>{html.escape(name)}</th><td class="number">{low:.6g}</td><td class="number">{high:.6g}</td></tr>'
        for name, low, high in zip(result.bands, result.low, result.high)
    )
    pairs = zip(request.teacher_rasters, request.sensor_rasters)
    heads = "".join(f'<th class="number">at {first}</th>' for first in _FIRST)
    parts = [
        page.headline(tiles),
        f"<h2>Finding each other among {result.held} chips that were held out</h2>",
        f"<table><thead><tr><th>Recall</th>{heads}</tr></thead><tbody>{recalls}</tbody></table>",
        '<p class="note">The cosine between the vectors of the student and the teacher is '
        f"{result.cosine:.3f} in the mean.</p>",
        "<h2>Bands</h2>",
        '<table><thead><tr><th>Band</th><th class="number">0 is</th><th class="number">1 is</th></tr></thead>'
        f"<tbody>{bands}</tbody></table>",
        *page.hints(result.hints),
        "<h2>Origin</h2>",
        page.origin(
            [
                *(("Teacher's raster and sensor's", f"{one}, {other}") for one, other in pairs),
                ("Teacher", result.base),
                ("Chips", f"{result.chips} to train on, {result.steps} steps"),
                ("Seed", str(request.seed)),
            ],
            result.seconds,
        ),
    ]
    page.write(path, "Alignment of", Path(result.model).name, parts)

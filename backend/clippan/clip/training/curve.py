"""The report of a robust fine-tuning: what was learned, what was lost, and the curve between."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Optional

from clippan import report as page
from clippan.jobs.finetune import AlphaPoint, ClassGain, FinetuneClipRequest, FinetuneClipResult
from clippan.segmentation.report import percent

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 320, 52, 16  # of the picture and its margins, in pixels
_TASK, _CONTROL = "#0b6b8a", "#c2571a"
_STYLE = """<style>
.text { color: #3d4a57; max-width: 76ch; }
svg { width: 100%; max-width: 900px; background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; }
svg text { font: 13px system-ui, "Segoe UI", sans-serif; fill: #3d4a57; }
</style>"""


def write(path: str, request: FinetuneClipRequest, result: FinetuneClipResult) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        request, result: what was asked and found.

    Raises:
        ClippanError: the file cannot be written.
    """
    before, after = result.before, result.after
    tiles = [page.tile(_percent(after.task), "of your classes right", f"before {_percent(before.task)}")]
    if after.control is not None:
        tiles.append(page.tile(_percent(after.control), "of the control set", f"before {_percent(before.control)}"))
    tiles.append(page.tile(f"{result.alpha:g}", "alpha", f"{result.chips} chips, {result.steps} steps"))
    parts = [
        _STYLE,
        page.headline(tiles),
        f'<p class="text">{html.escape(_verdict(request, result))}</p>',
        "<h2>From what it was to what it became</h2>",
        svg(result.curve, result.alpha, request.keep),
        '<p class="note">α is the part of the way from the old weights (0) to the fine-tuned ones (1). Lines: pictures '
        "that neither the tuning nor the choice of α has seen. Points: the pictures that α is chosen by, where a "
        "control set says how far to go.</p>",
        "<h2>Classes</h2>",
        _classes(result.classes),
        *page.hints(result.hints),
        "<h2>Origin</h2>",
        page.origin(_origin(request, result), result.seconds),
    ]
    page.write(path, "Fine-tuning of", page.file_name(result.base), parts)


def _verdict(request: FinetuneClipRequest, result: FinetuneClipResult) -> str:
    before, after = result.before, result.after
    says = f"On its own classes the model is right on {_percent(after.task)}, before on {_percent(before.task)}."
    if before.control is None or after.control is None:
        return (
            f"{says} There was no control set, so nothing says what it lost elsewhere, and alpha was not chosen but "
            f"{'given' if request.alpha is not None else 'is half of the way'}."
        )
    kept = after.control / before.control if before.control else 1.0
    lost = f"On the control set it keeps {_percent(kept)} of the old accuracy"
    if request.alpha is not None:
        return f"{says} {lost}. Alpha was given."
    return f"{says} {lost}. Alpha is the best for the task that keeps {_percent(request.keep)} of it on validation."


def svg(points: Sequence[AlphaPoint], alpha: float, keep: float) -> str:
    """The curve as a picture.

    Args:
        points: of the curve, alpha rising from 0 to 1.
        alpha: what was chosen.
        keep: part of the old accuracy on the control set that was asked for.
    """
    right, bottom = _WIDTH - 20, _HEIGHT - 40

    def x(value: float) -> float:
        return _LEFT + value * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - value * (bottom - _TOP)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Accuracy by alpha">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{_LEFT} {y(share):.1f}H{right}" stroke="#e9ecf0"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
        parts.append(f'<text x="{x(share):.1f}" y="{bottom + 18}" text-anchor="middle">{share:g}</text>')
    parts.append(f'<text x="{(x(0) + x(1)) / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">α</text>')
    parts.append(f'<path d="M{x(alpha):.1f} {_TOP}V{bottom}" stroke="#1d2733" stroke-dasharray="2 3"/>')
    old = points[0].control
    if old is not None:
        parts.append(f'<path d="M{_LEFT} {y(keep * old):.1f}H{right}" stroke="{_CONTROL}" stroke-dasharray="6 4"/>')
    for colour, label, name in ((_TASK, "task", "task"), (_CONTROL, "control set", "control")):
        found = [(point.alpha, getattr(point, name), getattr(point, f"{name}_validation")) for point in points]
        if found[0][1] is None:
            continue
        line = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value, _ in found)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(v):.1f}" r="3" fill="{colour}"/>' for a, _, v in found]
        height = y(found[-1][1]) + (-8 if y(found[-1][1]) > _TOP + 20 else 18)
        parts.append(f'<text x="{right}" y="{height:.1f}" text-anchor="end" style="fill: {colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"])


def _classes(classes: Sequence[ClassGain]) -> str:
    head = "".join(f'<th class="number">{name}</th>' for name in ("Pictures", "Before", "After"))
    rows = []
    for gain in classes:
        name = html.escape(gain.name) + (" <small>(control)</small>" if gain.control else "")
        cells = (str(gain.pictures), _percent(gain.before), _percent(gain.after))
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><th>{name}</th>{numbers}</tr>")
    return f"<table><thead><tr><th>Class</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _origin(request: FinetuneClipRequest, result: FinetuneClipResult) -> list[tuple[str, str]]:
    samples = f", {page.file_name(request.samples)}" if request.samples else ""
    return [
        ("Chips", f"{request.data}{samples}"),
        ("Control set", request.control or "none"),
        ("From", result.base),
        ("Model", result.model),
        ("Seed", str(request.seed)),
    ]


def _percent(share: Optional[float]) -> str:
    return "–" if share is None else percent(share)

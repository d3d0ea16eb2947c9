#!/usr/bin/env python3
"""How far the confidence of a search can be believed, with the starter model, on pictures that it was not trained on.

Each held-out picture of EuroSAT and UC Merced (scripts/starter/pictures.py) is a tile, each class's prompt a search in
its collection. Of all pairs whose confidence lies in a band, the table gives the part in which the picture is of that
class: the two should agree. ``--choose`` shows, on the validation tenth instead, what other scales of the cosines would
give; that is how the scale that the weights bear was chosen.

    .venv/bin/python benchmarks/confidence.py --write docs/confidence.md
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from starter import pictures, words  # noqa: E402

from clippan.clip.encoder import Encoder, background, encoder  # noqa: E402
from clippan.jobs import Context, Device  # noqa: E402
from clippan.search.judge import Query  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
BANDS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


def pairs(model: Encoder, collection: str, part: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of every picture with every class's prompt, and whether that is its class: (pictures, classes)."""
    from PIL import Image

    found = pictures.scenes(DATA, collection, part)
    labels = sorted({item.label for item in found})
    prompts = [words.CLASSES[collection][label] for label in labels]
    edge = model.pixels
    tiles = np.stack(
        [
            np.asarray(Image.fromarray(item.pixels).resize((edge, edge), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            for item in found
        ]
    )
    texts, empty = model.texts(prompts), np.empty((0, model.width), np.float32)
    asked = Query(texts, tuple(prompts), empty, model.texts(background()), empty, empty, np.zeros(model.width), scale)
    truth = np.array([[item.label == label for label in labels] for item in found])
    return asked._probability(model.images(tiles), texts), truth


def error(confidence: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error over ten bands of equal width, 0 to 1 (Guo et al. 2017)."""
    band = np.minimum((10 * confidence).astype(int), 9)
    parts = [
        (band == number).mean() * abs(confidence[band == number].mean() - truth[band == number].mean())
        for number in range(10)
        if (band == number).any()
    ]
    return float(sum(parts))


def main() -> None:
    """Prints the tables, and writes them if asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--choose", action="store_true", help="compare scales on the validation tenth")
    options.add_argument("--write", type=Path, help="also write the tables there")
    chosen = options.parse_args()
    model = encoder("starter", Device.CPU, Context())
    if chosen.choose:
        for factor in (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25):
            scale = factor * model.scale
            found = [pairs(model, name, pictures.VALIDATION, scale) for name in ("eurosat", "ucmerced")]
            losses = [
                -np.where(truth, np.log(confidence.clip(1e-6)), np.log((1 - confidence).clip(1e-6))).mean()
                for confidence, truth in found
            ]
            print(f"scale {scale:5.1f}  log loss", *(f"{loss:.4f}" for loss in losses), f"mean {np.mean(losses):.4f}")
        return
    command = f".venv/bin/python benchmarks/confidence.py {' '.join(sys.argv[1:])}".strip()
    lines = [
        "# How far the confidence can be believed",
        "",
        f"Measured on {datetime.date.today()} with the starter model on the held-out tenth, by `{command}`. All pairs of a "
        "picture and a class's prompt; a pair is right if the picture is of that class.",
        "",
        "| confidence | EuroSAT: pairs | mean confidence | right | UC Merced: pairs | mean confidence | right |",
        "|---|---|---|---|---|---|---|",
    ]
    found = [pairs(model, name, pictures.HELD_OUT, model.scale) for name in ("eurosat", "ucmerced")]
    for low, high in zip(BANDS, BANDS[1:]):
        cells = []
        for confidence, truth in found:
            inside = (confidence >= low) & ((confidence < high) | (high == 1))
            figures = (confidence[inside].mean(), truth[inside].mean()) if inside.any() else (np.nan, np.nan)
            cells += [f"{inside.sum():,}", *("–" if np.isnan(value) else f"{value:.0%}" for value in figures)]
        lines.append(f"| {low:.0%} to {high:.0%} | {' | '.join(cells)} |")
    errors = [error(*item) for item in found]
    lines += ["", f"Expected calibration error: EuroSAT {errors[0]:.3f}, UC Merced {errors[1]:.3f}.", ""]
    text = "\n".join(lines)
    print(text)
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

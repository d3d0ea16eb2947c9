#!/usr/bin/env python3
"""How far the confidence of a search can be believed, with the starter model, on pictures that it was not trained on.

Each held-out picture of EuroSAT and UC Merced (scripts/starter/pictures.py) is a tile, each class's prompt a search in
its collection. Of all pairs whose confidence lies in a band, the table gives the part in which the picture is of that
class: the two should agree. ``--choose`` shows, on the validation tenth instead, what other scales of the cosines would
give; the scale of 30 that the weights bear is about the best.

    .venv/bin/python benchmarks/confidence.py --write docs/confidence.md
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from starter import pictures, words  # noqa: E402

from clippan.clip.encoder import ClipEncoder, background_phrases, load_encoder  # noqa: E402
from clippan.jobs import Context, Device  # noqa: E402
from clippan.search.scoring import SearchVectors  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
BANDS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


class Collection:
    """The pictures of one part of a collection as tiles, and its classes' prompts as searches."""

    def __init__(self, model: ClipEncoder, name: str, part: str) -> None:
        found = pictures.scenes(DATA, name, part)
        labels = sorted({item.label for item in found})
        self.prompts = tuple(words.CLASSES[name][label] for label in labels)
        edge = (model.image_size, model.image_size)
        resized = [np.asarray(Image.fromarray(item.pixels).resize(edge, Image.Resampling.BICUBIC)) for item in found]
        self.vectors = model.encode_images(np.stack(resized).transpose(0, 3, 1, 2))
        self.texts, self.background = model.encode_texts(self.prompts), model.encode_texts(background_phrases())
        self.truth = np.array([[item.label == label for label in labels] for item in found])

    def confidence(self, scale: float) -> np.ndarray:
        """Of every picture with every prompt, (pictures, prompts)."""
        empty = np.empty((0, self.texts.shape[1]), np.float32)
        mean = np.zeros(self.texts.shape[1])
        asked = [
            SearchVectors(self.texts[[number]], (prompt,), empty, self.background, empty, empty, mean, scale)
            for number, prompt in enumerate(self.prompts)
        ]
        return np.stack([query.score_tiles(self.vectors)[0] for query in asked], axis=1)


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
    model = load_encoder("starter", Device.CPU, Context())
    part = pictures.VALIDATION if chosen.choose else pictures.HELD_OUT
    collections = [Collection(model, name, part) for name in ("eurosat", "ucmerced")]
    if chosen.choose:
        for scale in (10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 25.0, 30.0):
            losses = []
            for item in collections:
                sure = item.confidence(scale).clip(1e-6, 1 - 1e-6)
                losses.append(-np.where(item.truth, np.log(sure), np.log(1 - sure)).mean())
            print(f"scale {scale:5.1f}  log loss", *(f"{loss:.4f}" for loss in losses), f"mean {np.mean(losses):.4f}")
        return
    command = f".venv/bin/python benchmarks/confidence.py {' '.join(sys.argv[1:])}".strip()
    lines = [
        "# How reliable the confidence is",
        "",
        f"Measured on {datetime.date.today()} with the starter model on the held-out tenth, by `{command}`. All "
        "pairs of a picture and the prompt of a class are counted; a pair is right if the picture shows that class.",
        "",
        "| confidence | EuroSAT: pairs | mean confidence | right | UC Merced: pairs | mean confidence | right |",
        "|---|---|---|---|---|---|---|",
    ]
    found = [(item.confidence(model.logit_scale), item.truth) for item in collections]
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

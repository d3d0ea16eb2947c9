#!/usr/bin/env python3
"""Measures the starter CLIP as it ships, by prompts alone, on pictures that it was not trained on, and writes tables.

    python benchmarks/starter.py --write docs/starter_clip.md

Held out is a tenth of each collection by the hash of its files' names (``scripts/starter/pictures.py``). Every text
goes through the engine's templates, whose features are averaged. With ``--transfer`` also the tables of training runs
that left classes or a collection out; ``scripts/train_starter.py --transfer`` makes those runs and writes the figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "backend"), str(ROOT / "scripts")]

from starter import pictures, words  # noqa: E402

from clippan import __version__  # noqa: E402
from clippan.catalogue import models  # noqa: E402
from clippan.clip.encoder import TEMPLATES  # noqa: E402
from clippan.clip.load import LoadedModel, load_model  # noqa: E402

FOLDER = ROOT / "resources" / "starter-clip"
DATA = ROOT.parent / "shared" / "data"
TRANSFER = FOLDER / "transfer.json"
DUBAI = {"Building": "buildings", "Land": "bare land", "Road": "road", "Vegetation": "vegetation", "Water": "water"}
DENSE_EDGE = 64  # pixels of a Dubai picture that are enlarged to the network's input: 6 positions of the last map
COVER = {  # of TerraMesh's land cover; flooded vegetation, snow and cloud do not occur, or hardly
    1: "water", 2: "forest", 4: "annual crop land", 5: "buildings", 6: "bare land", 9: "natural grassland",
}  # fmt: skip
CARD = ("<!-- figures: written by benchmarks/starter.py -->", "<!-- end of figures -->")
NAMES = {"eurosat": "EuroSAT", "ucmerced": "UC Merced"}


class Bench:
    """The model with what is done to pictures and texts."""

    def __init__(self, folder: Path) -> None:
        model = models.find_model(str(folder))
        if model.path is None:
            raise SystemExit(f"{folder} holds no weights")
        self.loaded: LoadedModel = load_model(model.path, model)

    def ready(self, pixels: np.ndarray, edge: Optional[int] = None) -> torch.Tensor:
        """A picture (h, w, 3), uint8, to input (1, 3, edge, edge)."""
        preparation = self.loaded.preprocessing
        edge = edge or preparation.image_size
        picture = Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (preparation.mean, preparation.std))
        return (values - mean) / std

    @torch.inference_mode()
    def look(self, found: Sequence[np.ndarray], edge: Optional[int] = None) -> torch.Tensor:
        """Unit vectors (n, width) of pictures."""
        parts = [
            self.loaded.network.encode_image(
                torch.cat([self.ready(pixels, edge) for pixels in found[start : start + 32]])
            )
            for start in range(0, len(found), 32)
        ]
        return functional.normalize(torch.cat(parts), dim=-1)

    @torch.inference_mode()
    def read(self, texts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> torch.Tensor:
        """Unit vectors (n, width) of texts, averaged over the templates."""
        total: Any = 0
        for template in templates:
            out = self.loaded.network.encode_text(self.loaded.tokenizer([template.format(text) for text in texts]))
            total = total + functional.normalize(out, dim=-1)
        return functional.normalize(total, dim=-1)

    @torch.inference_mode()
    def dense(self, pixels: np.ndarray, texts: torch.Tensor, window: int) -> torch.Tensor:
        """Cosines (texts, h, w) at every pixel of a picture of which ``window`` pixels become the network's input.

        Each position of the last map goes through the projection of the pooled features.
        """
        height, width = pixels.shape[:2]
        zoom = self.loaded.preprocessing.image_size / window
        size = [round(edge * zoom / 32) * 32 for edge in (height, width)]
        picture = np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        preparation = self.loaded.preprocessing
        mean, std = (torch.tensor(values)[:, None, None] for values in (preparation.mean, preparation.std))
        values = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std
        visual = self.loaded.network.visual
        maps = visual.head(visual.trunk.forward_features(values[None]).permute(0, 2, 3, 1))
        cosines = (functional.normalize(maps, dim=-1) @ texts.T).permute(0, 3, 1, 2)
        return functional.interpolate(cosines, (height, width), mode="bilinear", align_corners=False)[0]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(hits: torch.Tensor) -> str:
    return f"{hits.float().mean().item() * 100:.1f} %"


def classes(bench: Bench, name: str, features: torch.Tensor, labels: Sequence[str]) -> dict[str, torch.Tensor]:
    """Hits (n,) by class names, and by words that were never taught."""
    keys = list(words.CLASSES[name])
    truth = torch.tensor([keys.index(label) for label in labels])
    named = [words.CLASSES[name][key] for key in keys]
    aside = [words.ASIDE[name].get(key, words.CLASSES[name][key]) for key in keys]
    return {
        kind: (features @ bench.read(texts).T).argmax(1) == truth
        for kind, texts in (("names", named), ("aside", aside))
    }


def captions(bench: Bench, data: Path, features: torch.Tensor, items: Sequence[pictures.Item]) -> tuple[float, int]:
    """Mean precision among the first ten pictures for each caption of a held-out picture, and how many captions.

    Captions are UCM-captions'. Some non-farm pictures have captions of farmland there; they ask nothing.
    """
    with zipfile.ZipFile(data / pictures.ARCHIVES["ucmerced"]) as archive:
        entries = {Path(entry["file"]).name: entry for entry in json.loads(archive.read("captions.json"))}
    texts, truth = [], []
    for item in items:
        found = entries[item.file]["captions"]
        farm = sum(bool(re.search(r"farmland", text)) for text in found)
        if not (farm >= 3 and item.label != "agricultural"):
            texts += found
            truth += [item.label] * len(found)
    labels = np.array([item.label for item in items])
    order = (bench.read(texts, ("{}",)) @ features.T).argsort(1, descending=True)[:, :10].numpy()
    # A class with fewer than ten pictures can fill no ten places: then as many as it has.
    hits = []
    for row, label in zip(order, truth):
        places = min(10, int((labels == label).sum()))
        hits.append(float((labels[row[:places]] == label).mean()))
    return float(np.mean(hits)), len(texts)


def confusion(maps: torch.Tensor, truth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels by true class and by class found, (classes, classes)."""
    count = len(maps)
    found = maps.argmax(0).numpy()
    return np.bincount(truth[known].astype(int) * count + found[known], minlength=count**2).reshape(count, count)


def overlap(table: np.ndarray, names: Sequence[str]) -> list[str]:
    """Pixel accuracy, mean IoU, and the IoU of each class, in percent; of classes that occur."""
    union = table.sum(0) + table.sum(1) - np.diag(table)
    present = table.sum(1) > 0
    each = np.diag(table) / np.maximum(union, 1) * 100
    accuracy = np.diag(table).sum() / table.sum() * 100
    row = [f"{accuracy:.1f}", f"{each[present].mean():.1f}"]
    return [*row, *(f"{value:.1f}" if there else "–" for value, there, _ in zip(each, present, names))]


def dubai(bench: Bench, data: Path) -> tuple[str, int]:
    """A table of segmentation by five prompts, and the number of pictures."""
    found = [*pictures.masked(data, pictures.HELD_OUT), *pictures.masked(data, pictures.VALIDATION)]
    texts, table = bench.read(list(DUBAI.values())), np.zeros((len(DUBAI), len(DUBAI)))
    order = list(pictures.MASKS.values())
    for item in found:
        maps = bench.dense(item.pixels, texts[[list(DUBAI).index(name) for name in order]], DENSE_EDGE)
        table += confusion(maps, item.classes, item.classes != 255)
    return markdown(["Dubai", "pixels right, %", "mean IoU, %", *order], [["IoU", *overlap(table, order)]]), len(found)


def terramesh(bench: Bench, data: Path) -> str:
    """A table of segmentation of three scenes of Sentinel-2 by six prompts."""
    from osgeo import gdal

    gdal.UseExceptions()
    texts, keys = bench.read(list(COVER.values())), np.array(list(COVER))
    table = np.zeros((len(keys), len(keys)))
    for file in sorted((data / "terramesh" / "S2RGB").glob("*.tif")):
        pixels = gdal.Open(str(file)).ReadAsArray()[:3].transpose(1, 2, 0).astype(np.uint8)
        cover = gdal.Open(str(data / "terramesh" / "LULC" / file.name)).ReadAsArray()
        known = np.isin(cover, keys)
        truth = np.searchsorted(keys, cover).clip(max=len(keys) - 1)
        table += confusion(bench.dense(np.ascontiguousarray(pixels), texts, 32), truth, known)
    return markdown(["TerraMesh", "pixels right, %", "mean IoU, %", *COVER.values()], [["IoU", *overlap(table, texts)]])


def speed(bench: Bench) -> str:
    """A table of tiles a second on two threads, beside the next larger network's."""
    import timm

    torch.set_num_threads(2)
    rows = []
    edge = bench.loaded.preprocessing.image_size
    towers = {
        "tf_efficientnet_lite0 (ships)": bench.loaded.network.visual,
        "tf_efficientnet_lite2": timm.create_model("tf_efficientnet_lite2", num_classes=384).eval(),
    }
    batch = torch.rand(16, 3, edge, edge)
    for name, network in towers.items():
        with torch.inference_mode():
            network(batch)
            best = min(_timed(network, batch) for _ in range(4))
        rows.append([name, f"{len(batch) / best:.0f}"])
    return markdown([f"image tower, {edge} × {edge}", "tiles/s"], rows)


def _timed(network: Any, batch: torch.Tensor) -> float:
    start = time.perf_counter()
    network(batch)
    return time.perf_counter() - start


def transfer() -> list[str]:
    """Tables of the runs that left something out, as the training command measured them."""
    runs = json.loads(TRANSFER.read_text(encoding="utf-8"))
    rows = [[run["run"], run["asked"], str(run["pictures"]), f"{run['accuracy']:.1f} %"] for run in runs["results"]]
    return [
        "## Classes and collections that were left out",
        f"Shorter runs of the same recipe ({runs['steps']} steps of the image tower), measured on {runs['date']} by "
        f"`{runs['command']}` on the validation tenth at 192 pixels, with the text embeddings that the text tower is "
        "distilled from. "
        "If classes are left out, so are all pictures of their concepts, including composed ones; their words then "
        "lie among those of similar-looking concepts. If a collection is left out, composed pictures are kept, and "
        "their textures come from both collections, so those two figures are slightly optimistic.",
        markdown(["left out of training", "asked", "pictures", "right"], rows),
    ]


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the model")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--part", default=pictures.HELD_OUT, choices=[pictures.HELD_OUT, pictures.VALIDATION])
    parser.add_argument("--transfer", action="store_true", help="add the runs that left something out")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    bench = Bench(options.folder)
    items = {name: pictures.scenes(options.data, name, options.part) for name in words.CLASSES}
    features = {name: bench.look([item.pixels for item in found]) for name, found in items.items()}
    rows, sides, worst = [], [], []
    for name, found in items.items():
        labels = [item.label for item in found]
        hits = classes(bench, name, features[name], labels)
        rows.append([f"{NAMES[name]}, {len(words.CLASSES[name])} classes", str(len(found)), percent(hits["names"])])
        sides.append([NAMES[name], f"{len(words.ASIDE[name])} of {len(words.CLASSES[name])}", percent(hits["aside"])])
        for kind in ("names", "aside"):
            for label in sorted(set(labels)):
                mine = torch.tensor([other == label for other in labels])
                share = hits[kind][mine].float().mean().item()
                if share < 0.8:
                    text = (
                        words.CLASSES[name][label]
                        if kind == "names"
                        else words.ASIDE[name].get(label, words.CLASSES[name][label])
                    )
                    worst.append(f"{NAMES[name]} {label} by “{text}” {share * 100:.0f} % of {int(mine.sum())}")
    precision, asked = captions(bench, options.data, features["ucmerced"], items["ucmerced"])
    table, count = dubai(bench, options.data)
    size = (options.folder / "open_clip_model.safetensors").stat().st_size
    command = "python benchmarks/starter.py" + (" --transfer" if options.transfer else "")
    parts = [
        "# Measured: the starter CLIP",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__} on "
        f"{platform.machine()}, by `{command}`, on the shipped file ({size / 1e6:.1f} MB), through "
        "`clippan.clip.load`.",
        f"The pictures are the {options.part} tenth of each collection, which was used for no training and no "
        "choice. What the model is good for: `resources/starter-clip/README.md`.",
        "## Classes by prompts alone",
        markdown(["collection", "pictures", "right"], rows),
        f"Captions of UC Merced as queries ({asked}), among its {len(items['ucmerced'])} pictures of this part: "
        f"precision at 10 by class is **{precision:.3f}**. (For a class with fewer than ten pictures, it is the "
        "precision at that number.)",
        "## Words that were never taught",
        "These words replace the name of the class. They were set aside before the training: no phrase of ours and "
        "no WordNet lemma used for training contains them, but WordNet's definitions may. Classes without such a "
        "word keep their name.",
        markdown(["collection", "classes with another word", "right"], sides),
        "The words: " + "; ".join(
            f"{key} “{text}”" for name in words.ASIDE for key, text in words.ASIDE[name].items()
        ) + ".",
        "Classes found in under 80 % of their pictures: " + ("; ".join(worst) or "none") + ".",
        "## Dense features",
        "Each position of the last feature map goes through the projection of the pooled features. Measured on "
        f"{count} Dubai pictures that were not used for training, with {DENSE_EDGE} of their pixels enlarged to the "
        "network's input, and with five prompts.",
        table,
        "The three scenes of TerraMesh (Sentinel-2; no training used them), with 32 pixels enlarged to the input:",
        terramesh(bench, options.data),
        *(transfer() if options.transfer else []),
        "## Speed",
        "With two threads on this computer, in float32:",
        speed(bench),
    ]  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
        summary = [[row[0], row[2], side[2]] for row, side in zip(rows, sides)]
        figures = [
            f"On {datetime.date.today()}, on the {options.part} tenth of each collection, by prompts alone:",
            markdown(["collection", "right by class names", "by words never taught"], summary),
            f"Captions to pictures of the class, precision at 10: {precision:.3f}. Dense, on Dubai pictures:",
            table,
        ]
        if options.transfer:
            figures += ["What was left out of training, by a shorter run of the same recipe:", transfer()[-1]]
        _card(options.folder / "README.md", "\n\n".join(figures))


def _card(file: Path, figures: str) -> None:
    """Puts the figures between the two comments of the model card."""
    card = file.read_text(encoding="utf-8")
    head, rest = card.split(CARD[0])
    file.write_text(f"{head}{CARD[0]}\n\n{figures}\n\n{CARD[1]}{rest.split(CARD[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Training runs: the one that ships, and those that leave something out to measure transfer."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from torch.nn import functional

from starter import export, image, pictures, text, words
from starter.teacher import Encoder, Space

ALL = frozenset(image.KINDS)


@dataclass(frozen=True)
class Left:
    """What a run leaves out.

    Attributes:
        name: in the table.
        concepts: left out with all their views.
        kinds: of views that are taken.
        asked: for each collection, the classes of which pictures are asked.
    """

    name: str
    concepts: frozenset[str]
    kinds: frozenset[str]
    asked: dict[str, Sequence[str]]


TRANSFERS = (
    Left(
        "a third of the classes",
        frozenset({"river", "industrial", "pasture", "harbor", "golf", "parking", "overpass", "chaparral", "baseball"}),
        ALL,
        {
            "eurosat": ("River", "Industrial", "Pasture"),
            "ucmerced": ("river", "harbor", "golfcourse", "parkinglot", "overpass", "chaparral", "baseballdiamond"),
        },
    ),
    Left("UC Merced", frozenset(), ALL - {"ucmerced", "together"}, {"ucmerced": tuple(words.CLASSES["ucmerced"])}),
    Left("EuroSAT", frozenset(), ALL - {"eurosat", "together"}, {"eurosat": tuple(words.CLASSES["eurosat"])}),
)


@dataclass(frozen=True)
class Workshop:
    """Where a training works and what it works with."""

    work: Path
    data: Path
    encode: Encoder
    weights: Path  # ImageNet's

    def pool(self, count: int, size: int) -> None:
        """Computes the shards that are missing."""
        folder = self.work / "pool"
        folder.mkdir(exist_ok=True)
        trunk = image.imagenet(self.weights).to(memory_format=torch.channels_last)
        for seed in range(count):
            if not (folder / f"{seed}.npz").is_file():
                image.make(folder, self.data, trunk, seed, size)
                print(f"shard {seed + 1} of {count}", flush=True)

    def text(self, wordnet: Path, steps: int) -> text.Student:
        """The text tower, trained or taken up where it stopped."""
        cache, checkpoint = self.work / "wordnet_raw.pt", self.work / "text.pt"
        texts = text.wordnet(wordnet)
        raw = torch.load(cache, weights_only=True) if cache.is_file() else torch.empty(0)
        if len(raw) != len(texts):  # none, or of a list of texts that has changed since
            raw = self.encode(texts, say=True).half()
            torch.save(raw, cache)
        space = Space(self.encode)
        corpus = text.Corpus(texts, raw.float(), space, self.encode)
        model = text.towers(export.CONFIG["model_cfg"]["embed_dim"], dict(text.SHAPE), dict(export.VISION))
        student = text.Student(model, corpus.vocabulary())
        if not checkpoint.is_file():
            student.begin(space, self.encode)
        text.train(student, corpus, checkpoint, steps)
        return student.eval()

    def image(self, steps: int, left: Optional[Left] = None) -> tuple[image.Tower, Space]:
        """The image tower, trained or taken up where it stopped, and the space that it was trained for."""
        network = image.imagenet(self.weights).to(memory_format=torch.channels_last)
        pool = image.Pool(self.work / "pool", left.concepts if left else None, left.kinds if left else None)
        trained = pool.shares.sum(0) > 0
        space = Space(self.encode, {name for name, there in zip(words.CONCEPTS, trained) if not there})
        goal = image.Goal(space, self.encode, trained)
        names = space.place(self.encode(image.imagenet_names()))
        tower = image.Tower(network)
        name = "image" if left is None else f"image_{TRANSFERS.index(left)}"
        checkpoint = self.work / f"{name}.pt"
        if not checkpoint.is_file():
            tower.proj = image.fit(pool, goal, network.classifier.weight.detach(), names, 300)
        image.train(tower, pool, goal, names, checkpoint, steps)
        return tower.eval(), space

    def transfer(self, steps: int, command: str, output: Path) -> None:
        """Makes the runs that leave something out, measures them on the validation tenth, and writes the figures."""
        results = []
        for left in TRANSFERS:
            tower, space = self.image(steps, left)
            for name, asked in left.asked.items():
                items = [item for item in pictures.scenes(self.data, name, pictures.VALIDATION) if item.label in asked]
                pooled = image.features(tower.trunk, items, export.PIXELS)
                with torch.inference_mode():
                    out = functional.normalize(tower.proj(pooled), dim=-1)
                every = tuple(words.CLASSES[name])
                for among in (asked, every) if len(asked) < len(every) else (every,):
                    places = space.place(self.encode([words.CLASSES[name][label] for label in among]))
                    truth = torch.tensor([among.index(item.label) for item in items])
                    hits = (out @ places.T).argmax(1) == truth
                    question = f"{name}: its {len(asked)} classes among {len(among)}"
                    results.append(
                        {
                            "run": left.name,
                            "asked": question,
                            "pictures": len(items),
                            "accuracy": round(hits.float().mean().item() * 100, 1),
                        }
                    )
                    print(results[-1], flush=True)
        values = {"date": str(datetime.date.today()), "command": command, "steps": steps, "results": results}
        output.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

"""The last stage of the image tower: the cells of its map are taught what lies there.

FarSLIP's second stage aligns regions with the words for their category; a convolutional tower has a vector for every
cell, so a region here is a cell. What lies there is known from the masks of the Dubai pictures, and in mosaics of
EuroSAT's, which show one class each. The text tower stays as it is. Views of all collections, and composed ones, hold
the rest in place: there the model has to stay near what it was.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from clippan.clip import dense
from starter import image, pictures, words

SHARE = 0.4  # of what this stage changed that is kept; see ``between``
EDGE = 224  # of the pictures that go in
_CLOSEST, _FARTHEST = 36, 230  # pixels of a Dubai picture that become one, at least and at most
_NEAREST, _CANVAS = 28, 128  # the same for mosaics
_SCALE = 30.0  # of cosines
_STAY = 6.0  # weight of staying near what the model was
_TEMPLATES = ("a satellite photo of {}.", "a satellite image of {}.", "{}")


class Views:
    """Altered views of the Dubai pictures with their maps, and of all others without.

    Args:
        data: the archives.
        seed: of what is drawn.
        without: tiles of Dubai that are left out, as "Tile 4".
    """

    def __init__(self, data: Path, seed: int, without: Sequence[str] = ()) -> None:
        self.source = pictures.Source(data, seed)
        self.chance = self.source.chance
        found = self.source.items["eurosat"]
        self.by_class = {name: [row for row, item in enumerate(found) if item.label == name] for name in _FILLING}
        self.masked = [
            item for item in self.source.masked if not any(f"/{tile}/" in f"/{item.file}" for tile in without)
        ]

    def labelled(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Views uint8 (n, EDGE, EDGE, 3) with the class of each pixel, uint8 (n, EDGE, EDGE), 255 where unknown."""
        found = [self._labelled() for _ in range(count)]
        return np.stack([view for view, _ in found]), np.stack([classes for _, classes in found])

    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        chance = self.chance
        item = self.masked[chance.integers(len(self.masked))]
        height, width = item.classes.shape
        edge = int(np.exp(chance.uniform(np.log(_CLOSEST), np.log(_FARTHEST))))
        # A rare class is looked for.
        wanted = chance.integers(len(pictures.MASKS)) if chance.random() < 0.6 else None
        for _ in range(12):
            top, left = chance.integers(0, height - edge + 1), chance.integers(0, width - edge + 1)
            classes = item.classes[top : top + edge, left : left + edge]
            if wanted is None or (classes == wanted).mean() > 0.1:
                break
        turns, mirrored = chance.integers(4), chance.random() < 0.5

        def turn(values: np.ndarray) -> np.ndarray:
            values = np.rot90(values, turns)
            return np.ascontiguousarray(values[:, ::-1] if mirrored else values)

        picture = Image.fromarray(turn(item.pixels[top : top + edge, left : left + edge]))
        if chance.random() < 0.2 and edge > 100:  # a coarser sensor
            small = int(edge * chance.uniform(0.4, 0.9))
            picture = picture.resize((small, small), Image.Resampling.BOX)
        picture = picture.resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        classes = np.asarray(Image.fromarray(turn(classes)).resize((EDGE, EDGE), Image.Resampling.NEAREST))
        return self.source.recolour(picture), classes

    def mosaics(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``labelled``, of EuroSAT's pictures; the classes are places in ``CLASSES``."""
        found = [self._mosaic() for _ in range(count)]
        return np.stack([view for view, _ in found]), np.stack([classes for _, classes in found])

    def _mosaic(self) -> tuple[np.ndarray, np.ndarray]:
        chance = self.chance
        names = chance.choice(_FILLING, chance.integers(1, 4), replace=False)
        layers = []
        for name in names:
            rows = chance.choice(self.by_class[name], 4)
            turned = [np.rot90(self.source.items["eurosat"][row].pixels, chance.integers(4)) for row in rows]
            layers.append(np.concatenate([np.concatenate(turned[:2], 1), np.concatenate(turned[2:], 1)], 0))
        # Each class where its own smooth noise is the highest.
        heights = np.stack([_smooth(chance) for _ in names])
        which = heights.argmax(0)
        canvas = np.take_along_axis(np.stack(layers), which[None, ..., None], 0)[0]
        classes = np.array([list(CLASSES).index(name) for name in names], np.uint8)[which]
        edge = int(np.exp(chance.uniform(np.log(_NEAREST), np.log(_CANVAS))))
        top, left = chance.integers(0, _CANVAS - edge + 1, 2)
        window = (slice(top, top + edge), slice(left, left + edge))
        picture = Image.fromarray(canvas[window]).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        classes = np.asarray(Image.fromarray(classes[window]).resize((EDGE, EDGE), Image.Resampling.NEAREST))
        return self.source.recolour(picture), classes

    def others(self, count: int) -> np.ndarray:
        """Views uint8 (n, EDGE, EDGE, 3) of EuroSAT, UC Merced and composed scenes."""
        views = []
        for _ in range(count):
            draw = self.chance.random()
            number = int(self.chance.integers(1 << 30))
            if draw < 0.35:
                view = self.source.composed(number)[0]
            else:
                view = self.source.collection("eurosat" if draw < 0.65 else "ucmerced", number)[0]
            views.append(np.asarray(Image.fromarray(view).resize((EDGE, EDGE), Image.Resampling.BICUBIC)))
        return np.stack(views)


def phrases(loaded: Any) -> list[Tensor]:
    """For each of ``CLASSES`` the unit vectors of the words for it, (words, 384), by the model's own text tower."""
    found = []
    for texts in CLASSES.values():
        rows = []
        for text in texts:
            tokens = loaded.tokenizer([form.format(text) for form in _TEMPLATES])
            rows.append(functional.normalize(loaded.network.encode_text(tokens), dim=-1).mean(0))
        found.append(functional.normalize(torch.stack(rows), dim=-1))
    return found


def _named(name: str, *more: str) -> tuple[str, ...]:
    """The words for a class of the masks."""
    own = [text for concept in words.SHOWS["dubai"][name] for text in words.CONCEPTS[concept].names]
    return tuple(dict.fromkeys([*own, name.lower(), *more]))


# The classes of cells: those of the masks in their order, then EuroSAT's that fill a picture. No word that the
# benchmark keeps aside is among them.
CLASSES = {
    "Building": _named("Building", "houses", "roofs"),
    "Land": _named("Land", "desert", "unpaved area", "dirt ground"),
    "Road": _named("Road", "highway", "asphalt road"),
    "Vegetation": _named("Vegetation", "forest", "grass"),
    "Water": _named("Water", "sea", "river", "swimming pool"),
    "AnnualCrop": (
        "cropland",
        "farmland",
        "annual crop land",
        "crop field",
        "field",
        "agricultural land",
        "ploughed field",
    ),
    "Forest": ("forest", "trees", "woodland", "dense forest", "tree cover"),
    "HerbaceousVegetation": ("herbaceous vegetation", "shrubland", "scrub", "low vegetation", "rangeland"),
    "Industrial": ("industrial area", "industrial buildings", "warehouses", "industry"),
    "Pasture": ("pasture", "grassland", "meadow", "grass"),
    "PermanentCrop": ("permanent crop land", "orchard", "plantation", "permanent crops"),
    "Residential": ("residential area", "houses", "buildings", "town", "village", "built-up area", "settlement"),
    "SeaLake": ("water", "sea", "open water", "ocean", "water body"),
}
_MASKED = list(pictures.MASKS.values())
_FILLING = [name for name in CLASSES if name not in _MASKED]
# What a cell is told from: the classes of its collection, and those of the other that it never shows.
_MASKED_AMONG = [*_MASKED, "AnnualCrop", "Pasture", "PermanentCrop"]


def _smooth(chance: np.random.Generator) -> np.ndarray:
    """Noise of a random coarseness, (_CANVAS, _CANVAS)."""
    cells = int(chance.integers(2, 7))
    noise = Image.fromarray(chance.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC))


class Teacher:
    """What the model was before, kept."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return dense.dense_features(self.model, inputs)


def loss_of_cells(cells: Tensor, classes: Tensor, texts: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of cells against the shares of classes in them.

    Args:
        cells: (n, width, rows, columns).
        classes: of pixels, (n, height, width); those without a text are unknown.
        texts: a unit vector a class, (classes, width).
        weights: of the classes, (classes,).
    """
    known = classes < len(texts)
    ones = functional.one_hot(torch.where(known, classes, 0).long(), len(texts)).float() * known[..., None]
    shares = functional.adaptive_avg_pool2d(ones.permute(0, 3, 1, 2), cells.shape[2:]) * weights[:, None, None]
    logits = _SCALE * torch.einsum("nchw,kc->nkhw", functional.normalize(cells, dim=1), texts)
    return -(shares * torch.log_softmax(logits, 1)).sum() / shares.sum().clamp(min=1)


def train(loaded: Any, views: Views, checkpoint: Path, steps: int, batch: int = 6, rate: float = 2e-4) -> None:
    """Teaches the upper stages and the projection, resuming from and writing the checkpoint.

    A step sees ``batch`` views with masks, as many mosaics, and as many others.
    """
    model = loaded.network
    visual = model.visual
    teacher = Teacher(model)
    model.requires_grad_(False)
    trunk = visual.trunk
    learned = [
        parameter
        for part in (trunk.blocks[image.CUT :], trunk.conv_head, trunk.bn2, visual.head)
        for parameter in part.parameters()
    ]
    for parameter in learned:
        parameter.requires_grad_(True)
    with torch.no_grad():
        bank = phrases(loaded)
    names = list(CLASSES)
    masked, filling = ([names.index(name) for name in some] for some in (_MASKED_AMONG, _FILLING))
    counts = np.bincount(np.concatenate([item.classes[::8, ::8].ravel() for item in views.masked]), minlength=256)
    shares = counts[: len(_MASKED)] / counts[: len(_MASKED)].sum()
    rare = torch.ones(len(masked))
    rare[: len(_MASKED)] = torch.from_numpy(shares**-0.35).float()
    optimizer = torch.optim.AdamW(learned, rate, weight_decay=0.02)
    start = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        visual.load_state_dict(state["visual"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, means = time.time(), np.zeros(3)
    model.eval()  # the statistics of the normalisations stay
    for step in range(start, steps):
        views.source.chance = views.chance = chance = np.random.default_rng([5, step])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        shown, classes = views.labelled(batch)
        mosaics, parts = views.mosaics(batch)
        inputs = image.ready(np.concatenate([shown, mosaics, views.others(batch)]))
        old_cells, old_pooled = (values.clone() for values in teacher(inputs[2 * batch :]))
        cells, pooled = dense.dense_features(model, inputs)
        texts = torch.stack(
            [functional.normalize(rows[chance.integers(len(rows), size=2)].mean(0), dim=-1) for rows in bank]
        )
        real = loss_of_cells(cells[:batch], torch.from_numpy(classes), texts[masked], rare)
        first = torch.from_numpy(parts) - filling[0]
        mixed = loss_of_cells(cells[batch : 2 * batch], first, texts[filling], torch.ones(len(filling)))
        stay = (1 - functional.cosine_similarity(pooled[2 * batch :], old_pooled)).mean()
        stay = stay + 0.5 * (1 - functional.cosine_similarity(cells[2 * batch :], old_cells, dim=1)).mean()
        optimizer.zero_grad()
        (real + mixed + _STAY * stay).backward()
        nn.utils.clip_grad_norm_(learned, 2.0)
        optimizer.step()
        means += (real.item(), mixed.item(), stay.item())
        if step % 25 == 24 or step == steps - 1:
            terms = "masks {:.3f} mosaics {:.3f} stay {:.4f}".format(*(means / 25))
            print(f"dense {step + 1}/{steps} {terms} {time.time() - began:.0f} s", flush=True)
            means[:] = 0
            state = {"visual": visual.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower on the way from what it was to what this stage made of it (Ilharco et al. 2022, "Patching
    open-vocabulary models by interpolating weights").

    It does better so on places that this stage has not seen than at the end of the way, and forgets less:
    resources/starter-clip/README.md.

    Args:
        before, after: weights under open_clip's names.
    """
    mixed = {}
    for name, value in before.items():
        other = after[name]
        mixed[name] = (1 - SHARE) * value.float() + SHARE * other.float() if value.is_floating_point() else value
    return mixed

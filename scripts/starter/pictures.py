"""The pictures: three collections, a fixed split of each, and endless altered views of them.

Split by the hash of a file's name: a tenth is held out for the benchmark, a tenth serves to choose, the rest trains.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageFilter

from starter import words
from starter.scenes import CONCEPTS as COMPOSED
from starter.scenes import SIZE, Scenes

HELD_OUT, VALIDATION, TRAIN = "held-out", "validation", "train"
ARCHIVES = {
    "eurosat": "eurosat_rgb_train.zip",
    "ucmerced": "ucmerced_train.zip",
    "dubai": "dubai_segmentation_train.zip",
}
MASKS = {
    (0x3C, 0x10, 0x98): "Building",
    (0x84, 0x29, 0xF6): "Land",
    (0x6E, 0xC1, 0xE4): "Road",
    (0xFE, 0xDD, 0x3A): "Vegetation",
    (0xE2, 0xA9, 0x29): "Water",
}  # colours of the Dubai masks; all others are unlabelled


@dataclass(frozen=True)
class Item:
    """A picture: its file's name, its class, and its pixels (height, width, 3), uint8."""

    file: str
    label: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Masked:
    """A picture with a map of classes: (height, width), uint8, places in ``MASKS``, 255 where unlabelled."""

    file: str
    pixels: np.ndarray
    classes: np.ndarray


def split(file: str) -> str:
    """The part that a file belongs to, always the same."""
    number = int(hashlib.sha1(file.encode(), usedforsecurity=False).hexdigest(), 16) % 10
    return {0: HELD_OUT, 1: VALIDATION}.get(number, TRAIN)


def scenes(data: Path, name: str, part: str) -> list[Item]:
    """The pictures of EuroSAT or UC Merced in one part of the split."""
    found = []
    with zipfile.ZipFile(data / ARCHIVES[name]) as archive:
        for file in sorted(archive.namelist()):
            if file.endswith(".jpg") and split(Path(file).name) == part:
                picture = Image.open(io.BytesIO(archive.read(file))).convert("RGB")
                found.append(Item(Path(file).name, file.split("/")[0], np.asarray(picture)))
    return found


def masked(data: Path, part: str) -> list[Masked]:
    """The Dubai pictures in one part of the split."""
    found = []
    with zipfile.ZipFile(data / ARCHIVES["dubai"]) as archive:
        for file in sorted(archive.namelist()):
            if not file.endswith(".jpg") or split(file) != part:
                continue
            picture = Image.open(io.BytesIO(archive.read(file))).convert("RGB")
            mask = file.replace("/images/", "/masks/").replace(".jpg", ".png")
            colours = np.asarray(Image.open(io.BytesIO(archive.read(mask))).convert("RGB"))
            classes = np.full(colours.shape[:2], 255, np.uint8)
            for number, colour in enumerate(MASKS):
                classes[(colours == colour).all(-1)] = number
            found.append(Masked(file, np.asarray(picture), classes))
    return found


class Source:
    """Altered views of the training pictures, of single ones, of parts, of several together, and composed ones.

    Ground resolution, sensor and haze are varied so widely that they do not tell the class.
    """

    def __init__(self, data: Path, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.items = {
            name: [replace(item, pixels=_square(item.pixels)) for item in scenes(data, name, TRAIN)]
            for name in ("eurosat", "ucmerced")
        }
        self.masked = masked(data, TRAIN)
        textures: dict[str, list[np.ndarray]] = {}
        for found in self.items.values():
            for item in found:
                textures.setdefault(item.label, []).append(item.pixels)
        for number, name in enumerate(MASKS.values()):
            textures[name] = self._patches(number)
        self.scenes = Scenes(textures, self.chance)

    def _patches(self, number: int) -> list[np.ndarray]:
        """Squares of 96 pixels of the Dubai pictures that one class fills."""
        found = []
        for item in self.masked:
            height, width = item.classes.shape
            for top in range(0, height - 95, 96):
                for left in range(0, width - 95, 96):
                    window = (slice(top, top + 96), slice(left, left + 96))
                    if (item.classes[window] == number).mean() > 0.9:
                        found.append(item.pixels[window])
        return found

    def collection(self, name: str, number: int) -> tuple[np.ndarray, dict[str, float]]:
        """A view of a picture of EuroSAT or UC Merced: (SIZE, SIZE, 3), uint8, and the shares of what it shows."""
        item = self.items[name][number % len(self.items[name])]
        picture, edge = item.pixels, item.pixels.shape[0]
        draw = self.chance.random()
        if draw < (0.3 if name == "ucmerced" else 0.2):  # from farther away: mirrored round its edges
            reach = int(edge * self.chance.uniform(0.1, 0.5))
            picture = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), "symmetric")
            size = picture.shape[0]
        elif draw < 0.4:
            size = edge
        else:
            size = int(edge * self.chance.uniform(0.5 if name == "ucmerced" else 0.65, 1))
        top, left = self.chance.integers(0, picture.shape[0] - size + 1, 2)
        part = picture[top : top + size, left : left + size]
        return self._alter(part), words.SHOWS[name][item.label]

    def quarter(self) -> tuple[np.ndarray, dict[str, float]]:
        """A view of a part of a Dubai picture, with the shares that its mask tells."""
        while True:
            item = self.masked[self.chance.integers(len(self.masked))]
            height, width = item.classes.shape
            size = int(min(height, width) * self.chance.uniform(0.1, 0.6))
            top, left = self.chance.integers(0, height - size + 1), self.chance.integers(0, width - size + 1)
            classes = item.classes[top : top + size, left : left + size]
            counts = np.bincount(classes.ravel(), minlength=256)[: len(MASKS)] / classes.size
            if counts.sum() < 0.7:
                continue
            shares: dict[str, float] = {}
            for share, name in zip(counts / counts.sum(), MASKS.values()):
                if share > 0.08:
                    for concept, part in words.SHOWS["dubai"][name].items():
                        shares[concept] = shares.get(concept, 0) + float(share) * part
            return self._alter(item.pixels[top : top + size, left : left + size]), words.normalised(shares)

    def rough(self) -> tuple[np.ndarray, dict[str, float]]:
        """A view of open water with waves, which calm pictures do not show, and which look like furrows."""
        items = [item for item in self.items["eurosat"] if item.label == "SeaLake"]
        item = items[self.chance.integers(len(items))]
        return self._alter(_waves(item.pixels, self.chance)), {"sea": 0.8, "water": 0.2}

    def composed(self, number: int) -> tuple[np.ndarray, dict[str, float]]:
        picture, shares = self.scenes(number)
        picture = picture.astype(np.uint8)
        if self.chance.random() < 0.5:
            size = int(SIZE * self.chance.uniform(0.65, 1))
            top, left = self.chance.integers(0, SIZE - size + 1, 2)
            picture = picture[top : top + size, left : left + size]
        return self._alter(picture), shares

    def together(self) -> tuple[np.ndarray, dict[str, float]]:
        """Two pictures side by side, divided at random."""
        name = ("eurosat", "ucmerced")[self.chance.integers(2)]
        (one, first), (other, second) = (self.collection(name, int(self.chance.integers(1 << 30))) for _ in range(2))
        at = int(SIZE * self.chance.uniform(0.3, 0.7))
        out = one.copy()
        out[:, at:] = other[:, at:]
        share, shares = at / SIZE, {}
        for part, weight in ((first, share), (second, 1 - share)):
            for concept, value in part.items():
                shares[concept] = shares.get(concept, 0) + value * weight
        return np.rot90(out, self.chance.integers(4)).copy(), shares

    def _alter(self, pixels: np.ndarray) -> np.ndarray:
        """Turned, resampled, recoloured, blurred, compressed: (SIZE, SIZE, 3), uint8."""
        chance = self.chance
        pixels = np.rot90(pixels, chance.integers(4))
        if chance.random() < 0.5:
            pixels = pixels[:, ::-1]
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        edge = picture.size[0]
        if chance.random() < 0.25:
            angle = chance.uniform(-40, 40)
            picture = picture.rotate(angle, Image.Resampling.BILINEAR)
            lost = int(edge * 0.5 * (1 - 1 / (abs(np.sin(np.radians(angle))) + np.cos(np.radians(angle))))) + 1
            picture = picture.crop((lost, lost, edge - lost, edge - lost))
        if chance.random() < 0.35:  # a coarser sensor
            small = int(np.exp(chance.uniform(np.log(44), np.log(140))))
            if small < picture.size[0]:
                picture = picture.resize((small, small), Image.Resampling.BOX)
        resampling = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[chance.integers(2)]
        picture = picture.resize((SIZE, SIZE), resampling)
        if chance.random() < 0.12:
            picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 1.6)))
        if chance.random() < 0.12:
            picture = picture.filter(ImageFilter.UnsharpMask(2, int(chance.uniform(60, 200)), 0))
        if chance.random() < 0.2:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=int(chance.integers(25, 80)))
            picture = Image.open(buffer)
        return self.recolour(picture)

    def recolour(self, picture: Image.Image) -> np.ndarray:
        """The picture in other light, through other air and by another sensor: (height, width, 3), uint8."""
        chance = self.chance
        values = np.asarray(picture, np.float32) / 255
        if chance.random() < 0.06:
            values = values.mean(-1, keepdims=True).repeat(3, -1)
        values = values ** np.exp(chance.normal(0, 0.25))
        middle = values.mean()
        values = (values - middle) * np.exp(chance.normal(0, 0.22)) + middle * np.exp(chance.normal(0, 0.12))
        values = values * np.exp(chance.normal(0, 0.07, 3))
        grey = values.mean(-1, keepdims=True)
        values = grey + (values - grey) * chance.uniform(0.45, 1.5)
        if chance.random() < 0.25:  # haze
            veil = chance.uniform(0.05, 0.35)
            values = values * (1 - veil) + veil * np.array([0.72, 0.76, 0.82])
        if chance.random() < 0.2:
            values = values + chance.normal(0, chance.uniform(0.01, 0.04), values.shape)
        return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _waves(pixels: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Calm water (height, width, 3), uint8, with ridges of about one direction and length, and some glints."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width] / height
    heading, count = chance.uniform(0, np.pi), chance.uniform(6, 40)
    surface = chance.normal(0, 0.15, (height, width))
    for _ in range(8):
        angle = heading + chance.normal(0, 0.25)
        waves = count * np.exp(chance.normal(0, 0.25))
        along = rows * np.cos(angle) + columns * np.sin(angle)
        surface += np.sin(2 * np.pi * (waves * along + chance.random())) / 8
    glints = (chance.random(surface.shape) < chance.uniform(0, 0.003)) * chance.uniform(2, 8)
    tint = np.array([0.9, 1.0, 1.1]) * np.exp(chance.normal(0, 0.1, 3))
    calm = pixels.astype(np.float32)
    calm *= min(np.exp(chance.normal(0.2, 0.3)), 130 / calm.mean())
    values = calm + 255 * chance.uniform(0.01, 0.06) * (surface + glints)[..., None] * tint
    return np.clip(values, 0, 255).astype(np.uint8)


def _square(pixels: np.ndarray) -> np.ndarray:
    """The largest square from the corner; some pictures of UC Merced lack a few rows or columns."""
    edge = min(pixels.shape[:2])
    return pixels[:edge, :edge]


def shares(values: Mapping[str, float], names: Optional[list[str]] = None) -> np.ndarray:
    """Shares as a row over the concepts, float32."""
    names = names or list(words.CONCEPTS)
    row = np.zeros(len(names), np.float32)
    for name, share in values.items():
        row[names.index(name)] += share
    return row


if unknown := {name for found in COMPOSED for name in found} - set(words.CONCEPTS):
    raise ValueError(f"scenes.py shows {unknown}, which are no concepts")

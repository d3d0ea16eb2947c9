"""Labelled chips: pictures in a folder for each class, or windows of a raster about labelled places."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional

import numpy as np
from PIL import Image

from clippan.channels import Channels
from clippan.clip.training.data import Sample
from clippan.clip.training.data import read as read_pictures
from clippan.errors import ClippanError
from clippan.fewshot.samples import read as read_samples
from clippan.jobs.base import Context
from clippan.raster.scene import LEAST_VALID, Look, Scene
from clippan.raster.tiles import Window

_NAMED = 8  # classes that a sentence lists
_APART = 2  # chips of one place are half an edge from each other


@dataclass(frozen=True)
class Chips:
    """Labelled chips, read when they are asked for.

    Attributes:
        names: what the classes are called, sorted.
        labels: the class of each chip, from 0, (n,).
        groups: what lies together, and goes into one part of a split, (n,).
        read: a chip, by its number, as a picture of so many pixels: uint8 (3, edge, edge), or float32 (bands, edge,
            edge) for a model with channels. May be called in any thread.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    read: Callable[[int, int], np.ndarray]

    def called(self, words: Mapping[str, str]) -> Chips:
        """With other words for some classes; those that are called the same are one."""
        texts = [words.get(name, name) for name in self.names]
        names = tuple(dict.fromkeys(texts))
        return replace(self, names=names, labels=np.array([names.index(text) for text in texts])[self.labels])


def pictures(folder: str, context: Context) -> Chips:
    """Those of a folder that holds a folder for each class.

    Raises:
        ClippanError: there are none, of one class only, or something in it has no class.
    """
    samples = read_pictures([folder], "caption", context)
    plain = next((sample for sample in samples if not sample.category), None)
    if plain:
        raise ClippanError(f"Nothing says which class {plain.name} shows; put it in a folder with the class's name.")
    names = tuple(sorted({sample.category for sample in samples}))
    if len(names) < 2:
        raise ClippanError(f"The folder {folder} holds one class only ({names[0]}); add a folder of another.")
    labels = np.array([names.index(sample.category) for sample in samples])
    return Chips(names, labels, np.arange(len(samples)), lambda number, edge: _resized(samples[number], edge))


def _resized(sample: Sample, edge: int) -> np.ndarray:
    picture = sample.picture().resize((edge, edge), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def places(
    raster: str,
    look: Look,
    channels: Optional[Channels],
    samples: str,
    field: str,
    size: int,
    pixels: int,
    seed: int,
    context: Context,
) -> Chips:
    """Windows of a raster about labelled places; of a large polygon several, half an edge from each other.

    Args:
        raster: file or GDAL data source.
        look: how it becomes pictures.
        channels: of a model that takes other bands.
        samples: vector file with polygons or points.
        field: of it, which holds the class.
        size: edge of the windows in the raster's pixels; 0 for what suits the ground resolution.
        pixels: edge of the model's pictures: the window where nothing else is known.
        seed: of what is drawn where a class has too many pixels.
        context: hears of progress.

    Raises:
        ClippanError: the raster or the samples cannot be read, or do not lie on each other.
    """
    scene = Scene(raster, look, channels=channels)
    found = read_samples(samples, "", field, scene.grid, seed, context)
    across, down = (size, size) if size else scene.windows(pixels).scales[0][0]
    across, down = min(across, scene.grid.width), min(down, scene.grid.height)
    # One chip for each cell of a lattice that a place has pixels in.
    keys = np.stack([found.groups, found.rows // max(down // _APART, 1), found.columns // max(across // _APART, 1)], 1)
    _, kept = np.unique(keys, axis=0, return_index=True)
    windows = [
        Window(
            int(np.clip(found.columns[place] - across // 2, 0, scene.grid.width - across)),
            int(np.clip(found.rows[place] - down // 2, 0, scene.grid.height - down)),
            across,
            down,
        )
        for place in kept
    ]
    stretch, local = scene.stretch, threading.local()

    def read(number: int, edge: int) -> np.ndarray:
        if not hasattr(local, "scene"):
            local.scene = Scene(raster, look, stretch, channels)
        picture, valid = local.scene.picture(windows[number], edge)
        if valid < LEAST_VALID:
            window = windows[number]
            raise ClippanError(
                f"The raster {raster} has no data about the sample at column {window.x + across // 2}, row "
                f"{window.y + down // 2}; remove that sample."
            )
        return picture

    return Chips(found.names, found.labels[kept], found.groups[kept], read)


@dataclass(frozen=True)
class Split:
    """Numbers of chips: to train on, to choose with, and to measure with, each (n,)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(chips: Chips, held: float, most: int, seed: int, trains: bool = True) -> Split:
    """Divides chips, class by class and by what lies together.

    Of a class with three groups or more one at least goes into each part; of one with two, none is measured with; a
    single one is trained on.

    Args:
        chips: to divide.
        held: part of each class that chooses, and as much again that measures; where nothing trains, they are halves.
        most: chips that choose, and that measure, at most; as many of each class as can be.
        seed: of the order.
        trains: whether there is a part to train on.
    """
    rng = np.random.default_rng([seed, 7])
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label in range(len(chips.names)):
        own = np.flatnonzero(chips.labels == label)
        groups = rng.permutation(np.unique(chips.groups[own]))
        count = len(groups)
        aside = max(round(held * count), 1) if trains else count // 2
        measure, choose = (aside if count >= 2 + trains else 0), (aside if count >= 1 + trains else 0)
        ends = (measure, measure + choose) if trains else (measure, count)
        for part, chosen in zip(parts, (groups[ends[1] :], groups[ends[0] : ends[1]], groups[: ends[0]])):
            part.append(rng.permutation(own[np.isin(chips.groups[own], chosen)]))
    train, validation, test = parts
    return Split(np.sort(np.concatenate(train)), _even(validation, most), _even(test, most))


def _even(parts: Sequence[np.ndarray], most: int) -> np.ndarray:
    """At most so many numbers, as evenly from all parts as can be; sorted."""
    taken = [min(len(part), most) for part in parts]
    while sum(taken) > most:
        taken[int(np.argmax(taken))] -= 1
    return np.sort(np.concatenate([part[:count] for part, count in zip(parts, taken)])).astype(int)


def listed(names: Sequence[str]) -> str:
    """Names, as a sentence lists them."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

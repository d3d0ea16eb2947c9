"""Labelled chips: pictures in a folder for each class, or windows of a raster about labelled places."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional

import numpy as np
from PIL import Image

from clippan.core.channels import Channels
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.jobs.picture import RasterPicture, choices, remarks
from clippan.labels.samples import read_samples
from clippan.learn.clip.data import TrainingImage, read_images
from clippan.raster.scene import MIN_VALID_SHARE, Scene, SceneOptions
from clippan.raster.tiles import Window

_CHIPS_PER_EDGE = 2  # chips of one place are half an edge from each other
_BLOCKS = (2, 4, 8)  # edges of a chip, along a block in which places are held out together


@dataclass(frozen=True)
class Chips:
    """Labelled chips, read when they are asked for.

    Attributes:
        names: what the classes are called, sorted.
        labels: the class of each chip, from 0, (n,).
        groups: what lies together, and goes into one part of a split, (n,).
        read: a chip, by its number, as a picture of so many pixels: uint8 (3, edge, edge), or float32 (bands, edge,
            edge) for a model with channels. May be called in any thread.
        windows: of a raster, as x, y, width and height of each chip, (n, 4); None for pictures.
        hints: sentences for the user.
        picture: how the raster is seen; None for pictures.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    read: Callable[[int, int], np.ndarray]
    windows: Optional[np.ndarray] = None
    hints: tuple[str, ...] = ()
    picture: Optional[RasterPicture] = None

    def renamed(self, words: Mapping[str, str]) -> Chips:
        """With other words for some classes; those that are called the same are one."""
        texts = [words.get(name, name) for name in self.names]
        names = tuple(dict.fromkeys(texts))
        return replace(self, names=names, labels=np.array([names.index(text) for text in texts])[self.labels])


def chips_from_folders(folder: str, context: Context) -> Chips:
    """Those of a folder that holds a folder for each class.

    Raises:
        ClippanError: there are none, of one class only, or something in it has no class.
    """
    samples = read_images([folder], "caption", context)
    plain = next((sample for sample in samples if not sample.category), None)
    if plain:
        raise ClippanError(
            "Nothing says which class {name} shows; put it in a folder with the class's name.", name=plain.name
        )
    names = tuple(sorted({sample.category for sample in samples}))
    if len(names) < 2:
        raise ClippanError(
            "The folder {folder} holds one class only ({name}); add a folder of another.", folder=folder, name=names[0]
        )
    labels = np.array([names.index(sample.category) for sample in samples])
    return Chips(names, labels, np.arange(len(samples)), lambda number, edge: _resized(samples[number], edge))


def _resized(sample: TrainingImage, edge: int) -> np.ndarray:
    picture = sample.picture().resize((edge, edge), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def chips_from_samples(
    raster: str,
    look: SceneOptions,
    channels: Optional[Channels],
    samples: str,
    layer: str,
    field: str,
    size: int,
    pixels: int,
    seed: int,
    context: Context,
) -> Chips:
    """Windows of a raster about labelled places; of a large polygon several, half an edge from each other. Those about
    which there is no data are left aside.

    Args:
        raster: file or GDAL data source.
        look: how it becomes pictures.
        channels: of a model that takes other bands.
        samples: vector file with polygons or points.
        layer: of it; empty for the first that has such places.
        field: of it, which holds the class.
        size: edge of the windows in the raster's pixels; 0 for what suits the ground resolution.
        pixels: edge of the model's pictures: the window where nothing else is known.
        seed: of what is drawn where a class has too many pixels.
        context: hears of progress.

    Raises:
        ClippanError: the raster or the samples cannot be read, do not lie on each other, or a class lies where there is
            no data.
    """
    scene = Scene(raster, look, channels=channels)
    found = read_samples(samples, layer, field, scene.grid, seed, context.subrange(0, 50))
    across, down = (size, size) if size else scene.tile_plan(pixels).scales[0][0]
    across, down = min(across, scene.grid.width), min(down, scene.grid.height)
    # One chip of a class for each cell of a lattice that a place has pixels in.
    cells = found.rows // max(down // _CHIPS_PER_EDGE, 1), found.columns // max(across // _CHIPS_PER_EDGE, 1)
    _, kept = np.unique(np.stack([found.labels, found.groups, *cells], 1), axis=0, return_index=True)
    windows = [
        Window(
            int(np.clip(found.columns[place] - across // 2, 0, scene.grid.width - across)),
            int(np.clip(found.rows[place] - down // 2, 0, scene.grid.height - down)),
            across,
            down,
        )
        for place in kept
    ]
    shown = np.zeros(len(kept), bool)
    for number, window in enumerate(windows):
        context.progress(50 + 50 * number / len(windows), "Looking where the raster has data")
        shown[number] = scene.picture(window, pixels)[1] >= MIN_VALID_SHARE
    labels, groups = found.labels[kept[shown]], found.groups[kept[shown]]
    lost = [name for label, name in enumerate(found.names) if label not in labels]
    if lost:
        raise ClippanError(
            "The raster {raster} has no data about any of the samples of {lost}; label others, or remove them.",
            raster=raster,
            lost=join_names(lost),
        )
    hints = found.hints
    if not shown.all():
        hints += (
            Message(
                "About {sum} of the labelled places the raster has no data; they were left aside.", sum=(~shown).sum()
            ),
        )
    windows = [window for window, valid in zip(windows, shown) if valid]
    stretch, local = scene.stretch, threading.local()

    def read(number: int, edge: int) -> np.ndarray:
        if not hasattr(local, "scene"):
            local.scene = Scene(raster, look, stretch, channels)
        picture: np.ndarray = local.scene.picture(windows[number], edge)[0]
        return picture

    for sentence in choices([scene.raster_picture]):
        context.log(sentence)
    hints += tuple(remarks([scene.raster_picture]))
    return Chips(found.names, labels, groups, read, window_boxes(windows), hints, scene.raster_picture)


def window_boxes(windows: Sequence[Window]) -> np.ndarray:
    """Windows as x, y, width and height, (n, 4)."""
    return np.array([(window.x, window.y, window.width, window.height) for window in windows]).reshape(-1, 4)


def boxes_overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which windows share pixels with which others, bool (n, m); both as ``corners`` gives them."""
    near = [
        (some[:, None, axis] < others[:, axis] + others[:, axis + 2])
        & (others[:, axis] < some[:, None, axis] + some[:, None, axis + 2])
        for axis in (0, 1)
    ]
    return near[0] & near[1]


@dataclass(frozen=True)
class Split:
    """Numbers of chips: to train on, to choose with, and to measure with, each (n,); and sentences for the user."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    hints: tuple[str, ...] = ()


def split(chips: Chips, held: float, most: int, seed: int, trains: bool = True) -> Split:
    """Divides chips, class by class and by what lies together.

    Of a class with three groups or more one at least goes into each part; of one with two, none is measured with; a
    single one is trained on. A part is full when it has its share of the chips.

    Args:
        chips: to divide.
        held: part of each class that chooses, and as much again that measures; where nothing trains, they are halves.
        most: chips that choose, and that measure, at most; as many of each class as can be.
        seed: of the order.
        trains: whether there is a part to train on.
    """
    rng = np.random.default_rng([seed, 7])
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    turns = rng.permutation(int(chips.groups.max()) + 1)  # of all classes, so that what lies together stays so
    for label in range(len(chips.names)):
        own = np.flatnonzero(chips.labels == label)
        groups, sizes = np.unique(chips.groups[own], return_counts=True)
        # What holds most of a class comes last, and so is trained on.
        order = np.lexsort((turns[groups], 2 * sizes > len(own)))
        groups, sizes = groups[order], sizes[order]
        first, second = _held_out_groups(sizes, held) if trains else (len(groups) // 2, len(groups))
        for part, chosen in zip(parts, (groups[second:], groups[first:second], groups[:first])):
            part.append(rng.permutation(own[np.isin(chips.groups[own], chosen)]))
    train, validation, test = parts
    return Split(np.sort(np.concatenate(train)), _balanced(validation, most), _balanced(test, most))


def _held_out_groups(sizes: np.ndarray, part: float) -> tuple[int, int]:
    """How many of a class's groups measure, and how many measure or choose: until they hold so many of its chips."""
    count = len(sizes)
    wanted = max(round(part * int(sizes.sum())), 1)

    def enough(start: int) -> int:
        return start + int(np.searchsorted(np.cumsum(sizes[start:]), wanted)) + 1

    first = min(enough(0), count - 2) if count > 2 else 0
    return first, min(enough(first), count - 1)


def split_without_overlap(chips: Chips, held: float, most: int, seed: int) -> Split:
    """As ``split``, but chips that overlap one that measures, or chooses, are not trained on.

    A class all of whose chips would go keeps them, and a hint says so. Where places lie close to each other, few chips
    would be left between those that are held out; so places of larger and larger blocks are held out together as well,
    and the division that leaves most is taken.

    Args:
        chips: to divide.
        held, most, seed: as for ``split``.
    """
    windows = chips.windows
    if windows is None:
        return split(chips, held, most, seed)
    choice = (chips, *(_grouped_in_blocks(chips, windows, edges) for edges in _BLOCKS))
    found = [_without_overlaps(chips, windows, split(one, held, most, seed)) for one in choice]

    def worth(parts: Split) -> tuple[int, float]:
        """Classes that are measured; then chips that teach and overlap none, of which the first of a class count
        most."""
        free = ~_overlap_any(windows, parts.train, np.concatenate([parts.test, parts.validation]))
        counts = np.bincount(chips.labels[parts.train[free]], minlength=len(chips.names))
        return len(np.unique(chips.labels[parts.test])), float(np.log1p(counts).sum())

    return max(found, key=worth)


def _grouped_in_blocks(chips: Chips, windows: np.ndarray, edges: int) -> Chips:
    """Chips, of which those lie together whose groups have their middles in one block of so many edges of a chip."""
    sizes = np.maximum(np.bincount(chips.groups), 1)
    column, row = (
        (np.bincount(chips.groups, windows[:, axis]) / sizes // (edges * windows[0, axis + 2])).astype(int)
        for axis in (0, 1)
    )
    return replace(chips, groups=(row * (column.max() + 1) + column)[chips.groups])


def _without_overlaps(chips: Chips, windows: np.ndarray, parts: Split) -> Split:
    validation = parts.validation[_trainable(chips, windows, parts.validation, parts.test)]
    held = np.concatenate([parts.test, validation])
    train = parts.train[_trainable(chips, windows, parts.train, held)]
    hints: list[str] = []
    if len(train) < len(parts.train):
        count = len(parts.train) - len(train)
        hints.append(
            Message("Chips that were not learned from, as they overlap some that were held out: {count}.", count=count)
        )
    shared = _overlap_any(windows, held, train).sum()
    if shared:
        hints.append(
            f"{shared} of {len(held)} chips that were held out overlap some that were learned from, so expect less "
            "elsewhere than was measured; label places farther apart, or take smaller chips (--size)."
        )
    return Split(train, validation, parts.test, tuple(hints))


def _trainable(chips: Chips, windows: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which chips overlap none of the others, or are of a class of which nothing else would be left, bool (n,)."""
    free, labels = ~_overlap_any(windows, own, others), chips.labels[own]
    return free | ~np.isin(labels, labels[free])


def _overlap_any(windows: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which chips overlap any of the others, bool (n,)."""
    found = np.zeros(len(own), bool)
    for number in others:  # one at a time: there may be a hundred thousand chips
        found |= boxes_overlap(windows[own], windows[number : number + 1])[:, 0]
    return found


def _balanced(parts: Sequence[np.ndarray], most: int) -> np.ndarray:
    """At most so many numbers, as evenly from all parts as can be; sorted."""
    taken = [min(len(part), most) for part in parts]
    while sum(taken) > most:
        taken[int(np.argmax(taken))] -= 1
    return np.sort(np.concatenate([part[:count] for part, count in zip(parts, taken)])).astype(int)

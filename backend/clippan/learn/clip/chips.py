"""Labelled chips: pictures in a folder for each class, or windows of a raster around samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional

import numpy as np

from clippan.core.channels import Channels
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.core.threads import once_per_thread
from clippan.jobs.finetune_clip import FinetuneClipRequest
from clippan.jobs.rendering import Rendering, band_choice_sentences, rendering_hints
from clippan.labels.samples import read_samples
from clippan.learn.clip.data import read_images, resized
from clippan.raster.rendering import MIN_VALID_SHARE, Renderer, RenderOptions
from clippan.raster.tiles import Window

_CHIPS_PER_EDGE = 2  # chips of one polygon are half an edge apart
_BLOCKS = (2, 4, 8)  # edges, in chips, of blocks that are held out as a whole


@dataclass(frozen=True)
class LabelledChips:
    """Labelled chips, read on demand.

    Attributes:
        names: of the classes, sorted.
        labels: class of each chip, from 0, (n,).
        groups: group of each chip; a group is not divided by a split, (n,).
        read: returns a chip by its number and edge in pixels: uint8 (3, edge, edge), or float32 (bands, edge, edge) for
            a model with channels. Safe in any thread.
        windows: x, y, width and height of each chip in a raster, (n, 4); None for pictures.
        hints: sentences for the user.
        rendering: bands and stretch of the raster; None for pictures.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    read: Callable[[int, int], np.ndarray]
    windows: Optional[np.ndarray] = None
    hints: tuple[str, ...] = ()
    rendering: Optional[Rendering] = None

    def renamed(self, words: Mapping[str, str]) -> LabelledChips:
        """The chips with other names of classes; classes with the same name are merged."""
        texts = [words.get(name, name) for name in self.names]
        names = tuple(dict.fromkeys(texts))
        return replace(self, names=names, labels=np.array([names.index(text) for text in texts])[self.labels])


def chips_from_folders(folder: str, context: Context) -> LabelledChips:
    """Chips from a folder that holds a folder for each class.

    Raises:
        ClippanError: there are no pictures, only one class, or a picture without a class.
    """
    samples = read_images([folder], "caption", context)
    plain = next((sample for sample in samples if not sample.category), None)
    if plain:
        raise ClippanError(
            "The picture {name} has no class; put it in a folder with the name of its class.", name=plain.name
        )
    names = tuple(sorted({sample.category for sample in samples}))
    if len(names) < 2:
        raise ClippanError(
            "The folder {folder} holds only one class ({name}); add a folder for another class.",
            folder=folder,
            name=names[0],
        )
    labels = np.array([names.index(sample.category) for sample in samples])
    return LabelledChips(
        names, labels, np.arange(len(samples)), lambda number, edge: resized(samples[number].picture(), edge)
    )


def chips_from_samples(
    request: FinetuneClipRequest, channels: Optional[Channels], pixels: int, context: Context
) -> LabelledChips:
    """Windows of a raster around samples; a large polygon gets several, half an edge apart. Windows without enough data
    are left out.

    If the request has no size, it follows from the ground resolution; ``pixels``, the edge of the model's pictures, is
    the size if the resolution is unknown.

    Raises:
        ClippanError: the raster or the samples cannot be read or do not overlap, or a class has no data.
    """
    options = RenderOptions(bands=request.bands, stretch=request.stretch, nodata=request.nodata)
    scene = Renderer(request.data, options, channels=channels)
    samples = read_samples(
        request.samples, request.layer, request.field, scene.grid, request.seed, context.subrange(0, 50)
    )
    across, down = (request.size, request.size) if request.size else scene.tile_plan(pixels).layouts[0].size
    across, down = min(across, scene.grid.width), min(down, scene.grid.height)
    # One chip for each class, group and cell of a grid that holds labelled pixels.
    cells = samples.rows // max(down // _CHIPS_PER_EDGE, 1), samples.columns // max(across // _CHIPS_PER_EDGE, 1)
    _, drawn = np.unique(np.stack([samples.labels, samples.groups, *cells], 1), axis=0, return_index=True)
    indices, windows = [], []
    for number, index in enumerate(drawn):
        context.progress(50 + 50 * number / len(drawn), "Checking the raster for data")
        x = int(np.clip(samples.columns[index] - across // 2, 0, scene.grid.width - across))
        y = int(np.clip(samples.rows[index] - down // 2, 0, scene.grid.height - down))
        window = Window(x, y, across, down)
        if scene.picture(window, pixels)[1] >= MIN_VALID_SHARE:
            indices.append(index)
            windows.append(window)
    labels = samples.labels[indices]
    lost = [name for label, name in enumerate(samples.names) if label not in labels]
    if lost:
        raise ClippanError(
            "The raster {raster} has no data around any sample of {lost}; label other places, or remove the class.",
            raster=request.data,
            lost=join_names(lost),
        )
    hints = list(samples.hints)
    if len(indices) < len(drawn):
        hints.append(
            Message(
                "Chips that are not used, as the raster has no data around their samples: {count}.",
                count=len(drawn) - len(indices),
            )
        )
    stretch = scene.stretch
    open_scene = once_per_thread(lambda: Renderer(request.data, options, stretch, channels))
    for sentence in band_choice_sentences([scene.rendering]):
        context.log(sentence)
    hints += rendering_hints([scene.rendering])
    return LabelledChips(
        samples.names,
        labels,
        samples.groups[indices],
        lambda number, edge: open_scene().picture(windows[number], edge)[0],
        window_boxes(windows),
        tuple(hints),
        scene.rendering,
    )


def window_boxes(windows: Sequence[Window]) -> np.ndarray:
    """Windows as x, y, width and height, (n, 4)."""
    return np.array([(window.x, window.y, window.width, window.height) for window in windows]).reshape(-1, 4)


def boxes_overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which windows share pixels with which others, bool (n, m); both as from ``window_boxes``."""
    along_axes = [
        (some[:, None, axis] < others[:, axis] + others[:, axis + 2])
        & (others[:, axis] < some[:, None, axis] + some[:, None, axis + 2])
        for axis in (0, 1)
    ]
    return along_axes[0] & along_axes[1]


@dataclass(frozen=True)
class Split:
    """Indices of the chips of each part, (n,), and sentences for the user."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    hints: tuple[str, ...] = ()


def split(
    chips: LabelledChips, held_out_share: float, max_held_out: int, seed: int, with_training: bool = True
) -> Split:
    """Splits chips into training, validation and test, class by class, without dividing groups.

    A class with three or more groups has at least one in each part; one with two groups has none in the test part; a
    single group is for training. Groups are added to a part until it has its share of the chips.

    Args:
        chips: to split.
        held_out_share: of each class for validation, and the same for test; without training, each has half.
        max_held_out: largest number of chips for validation and for test, balanced over the classes.
        seed: of the order.
        with_training: whether there is a training part.
    """
    rng = np.random.default_rng([seed, 7])
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    positions = rng.permutation(int(chips.groups.max()) + 1)  # one order for all classes, as classes share groups
    for label in range(len(chips.names)):
        own = np.flatnonzero(chips.labels == label)
        groups, sizes = np.unique(chips.groups[own], return_counts=True)
        # A group with more than half of a class comes last, which makes it training.
        order = np.lexsort((positions[groups], 2 * sizes > len(own)))
        groups, sizes = groups[order], sizes[order]
        first, second = _held_out_groups(sizes, held_out_share) if with_training else (len(groups) // 2, len(groups))
        for part, chosen in zip(parts, (groups[second:], groups[first:second], groups[:first])):
            part.append(rng.permutation(own[np.isin(chips.groups[own], chosen)]))
    train, validation, test = parts
    return Split(np.sort(np.concatenate(train)), _balanced(validation, max_held_out), _balanced(test, max_held_out))


def _held_out_groups(sizes: np.ndarray, share: float) -> tuple[int, int]:
    """Number of a class's groups for test, and for test and validation together, by their share of the chips."""
    count = len(sizes)
    wanted = max(round(share * int(sizes.sum())), 1)

    def enough(start: int) -> int:
        return start + int(np.searchsorted(np.cumsum(sizes[start:]), wanted)) + 1

    first = min(enough(0), count - 2) if count > 2 else 0
    return first, min(enough(first), count - 1)


def split_without_overlap(chips: LabelledChips, held_out_share: float, max_held_out: int, seed: int) -> Split:
    """As ``split``, but without training chips that overlap held-out ones.

    A class that would lose all its training chips keeps them, which a hint tells. Where samples lie close together, few
    training chips would remain between held-out ones; therefore splits by larger and larger blocks are tried too, and
    the one that leaves the most is used.
    """
    windows = chips.windows
    if windows is None:
        return split(chips, held_out_share, max_held_out, seed)

    def worth(parts: Split) -> tuple[int, float]:
        """Number of classes in the test part; then training chips without overlap, the first of a class weighted
        most."""
        free = ~_overlap_any(windows, parts.train, np.concatenate([parts.test, parts.validation]))
        counts = np.bincount(chips.labels[parts.train[free]], minlength=len(chips.names))
        return len(np.unique(chips.labels[parts.test])), float(np.log1p(counts).sum())

    grouped = (chips, *(_grouped_in_blocks(chips, windows, edges) for edges in _BLOCKS))
    splits = (split(one, held_out_share, max_held_out, seed) for one in grouped)
    return max((_without_overlaps(chips, windows, parts) for parts in splits), key=worth)


def _grouped_in_blocks(chips: LabelledChips, windows: np.ndarray, edges: int) -> LabelledChips:
    """The chips with groups merged whose centres lie in one block of ``edges`` chips."""
    sizes = np.maximum(np.bincount(chips.groups), 1)
    column, row = (
        (np.bincount(chips.groups, windows[:, axis]) / sizes // (edges * windows[0, axis + 2])).astype(int)
        for axis in (0, 1)
    )
    return replace(chips, groups=(row * (column.max() + 1) + column)[chips.groups])


def _without_overlaps(chips: LabelledChips, windows: np.ndarray, parts: Split) -> Split:
    validation = parts.validation[_overlap_free_mask(chips, windows, parts.validation, parts.test)]
    held_out = np.concatenate([parts.test, validation])
    train = parts.train[_overlap_free_mask(chips, windows, parts.train, held_out)]
    hints: list[str] = []
    if len(train) < len(parts.train):
        count = len(parts.train) - len(train)
        hints.append(Message("Chips that are not trained on, as they overlap held-out chips: {count}.", count=count))
    shared = _overlap_any(windows, held_out, train).sum()
    if shared:
        hints.append(
            Message(
                "Held-out chips that overlap training chips: {shared} of {count}. Expect a lower accuracy elsewhere "
                "than was measured; label places farther apart, or use smaller chips (--size).",
                shared=int(shared),
                count=len(held_out),
            )
        )
    return Split(train, validation, parts.test, tuple(hints))


def _overlap_free_mask(chips: LabelledChips, windows: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether chips overlap none of the others, or are of a class that would otherwise have none left, bool (n,)."""
    free, labels = ~_overlap_any(windows, own, others), chips.labels[own]
    return free | ~np.isin(labels, labels[free])


def _overlap_any(windows: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    overlapping = np.zeros(len(own), bool)
    for index in others:  # one at a time: there may be a hundred thousand chips
        overlapping |= boxes_overlap(windows[own], windows[index : index + 1])[:, 0]
    return overlapping


def _balanced(parts: Sequence[np.ndarray], max_count: int) -> np.ndarray:
    """At most ``max_count`` indices in total, taken as evenly as possible from the parts; sorted."""
    counts = [min(len(part), max_count) for part in parts]
    while sum(counts) > max_count:
        counts[int(np.argmax(counts))] -= 1
    return np.sort(np.concatenate([part[:count] for part, count in zip(parts, counts)])).astype(int)

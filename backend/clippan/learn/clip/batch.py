"""Batches of pictures, with random crops of them or the objects in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clippan.learn.clip.data import TrainingImage

_AREA, _RATIO = (0.3, 0.7), 4 / 3  # of crops: their part of the picture, and width to height or height to width


@dataclass(frozen=True)
class ImageBatch:
    """What a step sees.

    Attributes:
        pictures: uint8 (n, 3, pixels, pixels), red, green, blue.
        texts: one a picture.
        crops: uint8 (m, 3, pixels, pixels). In stage 1 as many of each picture, picture by picture; in stage 2 objects.
        boxes: where the crops lie, in parts of the picture, left, top, right, bottom: (n, m/n, 4); empty in stage 2.
        categories: of the objects; empty in stage 1.
    """

    pictures: Tensor
    texts: tuple[str, ...]
    crops: Tensor
    boxes: Tensor
    categories: tuple[str, ...]

    def to(self, device: torch.device) -> ImageBatch:
        """The batch on a device."""
        return replace(
            self, pictures=self.pictures.to(device), crops=self.crops.to(device), boxes=self.boxes.to(device)
        )


class BatchLoader:
    """Gives the batches of a stage: every picture once an epoch, in an order of its own.

    A picture's number in that endless row decides its crops and its text, so that how many processes share the work
    changes nothing.

    Args:
        samples: to draw from; in stage 2 each has objects.
        stage: 1 or 2.
        crops: of each picture in stage 1; at most so many objects of it in stage 2.
        least: pixels of a box's shorter edge.
        pixels: edge of what the model sees.
        batch: pictures of one process.
        seed: of everything that is drawn.
        rank, count: this process's number, and how many there are.
        threads: that decode pictures.
    """

    def __init__(
        self,
        samples: Sequence[TrainingImage],
        stage: int,
        crops: int,
        least: float,
        pixels: int,
        batch: int,
        seed: int,
        rank: int = 0,
        count: int = 1,
        threads: int = 1,
    ) -> None:
        self._samples, self._stage, self._crops, self._least = samples, stage, crops, least
        self._pixels, self._batch, self._seed, self._rank, self._count = pixels, batch, seed, rank, count
        self._pool = ThreadPoolExecutor(threads)
        self._order = functools.lru_cache(2)(self._shuffled)  # a batch may reach into the next epoch

    def __call__(self, step: int) -> ImageBatch:
        """The batch of a step of this stage.

        Raises:
            ClippanError: a picture cannot be read.
        """
        start = (step * self._count + self._rank) * self._batch
        drawn = list(self._pool.map(self._draw, range(start, start + self._batch)))
        pictures, texts, crops, boxes, categories = zip(*drawn)
        found = [crop for part in crops for crop in part]
        return ImageBatch(
            torch.from_numpy(np.stack(pictures)),
            texts,
            torch.from_numpy(np.stack(found) if found else np.empty((0, *pictures[0].shape), np.uint8)),
            torch.from_numpy(np.stack(boxes)),
            tuple(category for part in categories for category in part),
        )

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, self._stage, epoch]).permutation(len(self._samples))

    def _draw(self, number: int) -> tuple[np.ndarray, str, list[np.ndarray], np.ndarray, tuple[str, ...]]:
        epoch, place = divmod(number, len(self._samples))
        sample = self._samples[self._order(epoch)[place]]
        rng = np.random.default_rng([self._seed, self._stage, number, 1])
        text = sample.texts[rng.integers(len(sample.texts))]
        picture = sample.picture()
        whole = self._resized(picture, (0, 0, *picture.size))
        if self._stage == 1:
            boxes = crop_boxes(rng, self._crops)
            places = boxes * np.tile(picture.size, 2)
            return whole, text, [self._resized(picture, place) for place in places], boxes.astype(np.float32), ()
        objects = sample.objects(self._least)
        chosen = [objects[place] for place in rng.permutation(len(objects))[: self._crops]]
        crops = [self._resized(picture, region.box) if region.box else whole for region in chosen]
        return whole, text, crops, np.empty((0, 4), np.float32), tuple(region.category for region in chosen)

    def _resized(self, picture: Image.Image, box: Sequence[float]) -> np.ndarray:
        edge = (self._pixels, self._pixels)
        left, top, right, bottom = (float(value) for value in box)
        part = picture.resize(edge, Image.Resampling.BICUBIC, (left, top, right, bottom))
        return np.asarray(part).transpose(2, 0, 1)


def crop_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random boxes in parts of a picture: left, top, right, bottom, (count, 4), 0.3 to 0.7 of its area."""
    area = rng.uniform(*_AREA, count)
    ratio = np.exp(rng.uniform(-math.log(_RATIO), math.log(_RATIO), count))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return np.stack([left, top, left + width, top + height], axis=1)

"""Batches of pictures with random crops of them or the objects in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clippan.core.threads import count_threads
from clippan.jobs.train_clip import TrainClipRequest
from clippan.learn.clip.data import TrainingImage, resized

_AREA, _RATIO = (0.3, 0.7), 4 / 3  # of crops: share of the picture's area, and largest aspect ratio


@dataclass(frozen=True)
class ImageBatch:
    """The input of a training step.

    Attributes:
        pictures: uint8 (n, 3, pixels, pixels), red, green, blue.
        texts: one for each picture.
        crops: uint8 (m, 3, pixels, pixels); in stage 1 m / n random crops of each picture in turn, in stage 2 objects.
        boxes: left, top, right and bottom of the crops as shares of the picture, (n, m / n, 4); empty in stage 2.
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
    """Loads the batches of a stage (1 or 2) in pictures of ``pixels`` × ``pixels``; each epoch has every picture once.

    The position of a picture in the sequence of all epochs determines its crops and its text, so that the result does
    not depend on the number of processes. In stage 2, each of the samples has objects.
    """

    def __init__(
        self,
        samples: Sequence[TrainingImage],
        stage: int,
        request: TrainClipRequest,
        pixels: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._samples, self._stage, self._request, self._pixels = samples, stage, request, pixels
        self._rank, self._world_size = rank, world_size
        self._pool = ThreadPoolExecutor(count_threads(request.threads))
        self._epoch_order = functools.lru_cache(2)(self._shuffled)  # a batch may reach into the next epoch

    def __call__(self, step: int) -> ImageBatch:
        """The batch of a step of this stage; raises ClippanError if a picture cannot be read."""
        batch = self._request.batch
        start = (step * self._world_size + self._rank) * batch
        pictures, texts, crops, boxes, categories = zip(*self._pool.map(self._load_sample, range(start, start + batch)))
        all_crops = [crop for part in crops for crop in part]
        return ImageBatch(
            torch.from_numpy(np.stack(pictures)),
            texts,
            torch.from_numpy(np.stack(all_crops) if all_crops else np.empty((0, *pictures[0].shape), np.uint8)),
            torch.from_numpy(np.stack(boxes)),
            tuple(category for part in categories for category in part),
        )

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._request.seed, self._stage, epoch]).permutation(len(self._samples))

    def _load_sample(self, number: int) -> tuple[np.ndarray, str, list[np.ndarray], np.ndarray, tuple[str, ...]]:
        request = self._request
        epoch, position = divmod(number, len(self._samples))
        sample = self._samples[self._epoch_order(epoch)[position]]
        rng = np.random.default_rng([request.seed, self._stage, number, 1])
        text = sample.texts[rng.integers(len(sample.texts))]
        picture = sample.picture()
        whole = resized(picture, self._pixels)
        if self._stage == 1:
            boxes = crop_boxes(rng, request.crops if request.weight else 0)
            crops = [resized(picture, self._pixels, tuple(box)) for box in (boxes * np.tile(picture.size, 2)).tolist()]
            return whole, text, crops, boxes.astype(np.float32), ()
        objects = sample.objects(request.least)
        chosen = [objects[index] for index in rng.permutation(len(objects))[: request.crops]]
        crops = [resized(picture, self._pixels, region.box) if region.box else whole for region in chosen]
        return whole, text, crops, np.empty((0, 4), np.float32), tuple(region.category for region in chosen)


def crop_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random boxes of 0.3 to 0.7 of a picture's area: left, top, right and bottom as shares of it, (count, 4)."""
    area = rng.uniform(*_AREA, count)
    ratio = np.exp(rng.uniform(-math.log(_RATIO), math.log(_RATIO), count))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return np.stack([left, top, left + width, top + height], axis=1)

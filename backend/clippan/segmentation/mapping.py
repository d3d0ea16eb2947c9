"""Tiles of a view become probabilities and classes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.catalogue.prompts import PromptTable
from clippan.clip.similarity import SimilarityMaps
from clippan.jobs.options import Refinement
from clippan.raster.scene import Scene
from clippan.raster.tiles import Window
from clippan.segmentation.guided import filter_margin, guided_filter

LOGIT_SCALE = 50.0
_RADIUS_CELLS = 1.0  # radius of the refinement, in cells
_EPS = 1e-3  # variance of the picture's colours, 0 to 1, below which there is no edge


@dataclass
class TileMapper:
    """Maps tiles of a view. To be used in several threads.

    Attributes:
        view: what the model saw.
        scale: from cosines to logits.
        offsets, thresholds: of the classes.
        refinement: how edges follow the picture.
    """

    view: SimilarityMaps
    scale: float
    offsets: np.ndarray
    thresholds: np.ndarray
    refinement: Refinement

    def __post_init__(self) -> None:
        self._local = threading.local()
        cell = min(grid.lattice.cell for grid in self.view.grids)
        self._radius = max(2, round(_RADIUS_CELLS * cell))
        self._coarser = 4 if self._radius >= 12 else 2 if self._radius >= 6 else 1

    def probabilities(self, tile: Window) -> tuple[np.ndarray, np.ndarray]:
        """Of the classes, and last of the background if there is one.

        Args:
            tile: in the part's pixels.

        Returns:
            float32 (classes, height, width), 0 to 1, and which pixels are valid, (height, width).

        Raises:
            ClippanError: the raster cannot be read.
        """
        if not hasattr(self._local, "scene"):
            self._local.scene = self.view.open()
        scene: Scene = self._local.scene
        refined = self.refinement is Refinement.GUIDED
        reach = filter_margin(self._radius, self._coarser) if refined else 0
        x, y = self.view.part.x + tile.x, self.view.part.y + tile.y
        # On the raster's own lattice, whatever the extent.
        left, top = (max(start - reach, 0) // self._coarser * self._coarser for start in (x, y))
        right, bottom = min(x + tile.width + reach, scene.grid.width), min(y + tile.height + reach, scene.grid.height)
        wide = Window(left, top, right - left, bottom - top)
        picture, valid = scene.picture_and_mask(wide, wide.width, wide.height)
        inside = (slice(y - top, y - top + tile.height), slice(x - left, x - left + tile.width))
        if not valid[inside].any():
            return np.zeros((len(self.offsets), tile.height, tile.width), np.float32), valid[inside]
        logits = torch.from_numpy(self.view.cosines(wide)).mul_(self.scale)
        logits += torch.from_numpy(self.offsets)[:, None, None]
        shares = torch.softmax(logits, 0)
        if refined:
            guide = torch.from_numpy(picture).float().div_(255)
            shares = guided_filter(shares, guide, torch.from_numpy(valid), self._radius, _EPS, self._coarser).clamp_(
                min=0
            )
        values = shares[:, inside[0], inside[1]]
        values = values / values.sum(0).clamp(min=1e-6)
        return values.numpy(), valid[inside]

    def classes(self, tile: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A tile's classes uint8 (height, width), their confidence float32, the probabilities, and what is valid."""
        values, valid = self.probabilities(tile)
        best = values.argmax(axis=0)
        confidence = np.take_along_axis(values, best[None], axis=0)[0]
        found = np.where(best < self.view.classes, best + 1, 0).astype(np.uint8)
        found[~valid | (confidence < self.thresholds[best])] = 0
        return found, np.where(valid, confidence, np.nan).astype(np.float32), values, valid


def mapper(view: SimilarityMaps, table: PromptTable, scale: Optional[float], refinement: Refinement) -> TileMapper:
    """What maps a view by a table: its offsets and thresholds, and its logit scale unless there is another."""
    beyond = view.grids[0].values.shape[0] - len(table.classes)  # the background
    offsets = np.array([prompt.offset for prompt in table.classes] + [0.0] * beyond, np.float32)
    thresholds = np.array([prompt.threshold for prompt in table.classes] + [0.0] * beyond, np.float32)
    return TileMapper(view, scale or table.logit_scale or LOGIT_SCALE, offsets, thresholds, refinement)

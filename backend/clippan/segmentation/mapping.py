"""Class probabilities and classes of tiles, from similarity maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.catalogue.prompts import PromptTable
from clippan.clip.similarity import SimilarityMaps
from clippan.core.threads import once_per_thread
from clippan.jobs.options import Refinement
from clippan.raster.tiles import Window
from clippan.segmentation.guided import filter_margin, guided_filter

LOGIT_SCALE = 50.0
_RADIUS_CELLS = 1.0  # radius of the guided filter, in cells
_EPS = 1e-3  # variance of the picture's colours, 0 to 1, below which there is no edge


@dataclass
class TileMapper:
    """Maps tiles. Can be used by several threads.

    Attributes:
        maps: similarity with the classes.
        scale: logits per cosine.
        offsets, thresholds: added to the logits, and smallest confidences, of the classes.
        refinement: whether borders of classes follow edges in the picture.
    """

    maps: SimilarityMaps
    scale: float
    offsets: np.ndarray
    thresholds: np.ndarray
    refinement: Refinement

    @classmethod
    def of(cls, maps: SimilarityMaps, table: PromptTable, scale: Optional[float], refinement: Refinement) -> TileMapper:
        """With the offsets and thresholds of a table, and its logit scale unless ``scale`` is given."""
        background = [0.0] * (maps.grids[0].values.shape[0] - len(table.classes))
        offsets = np.array([prompt.offset for prompt in table.classes] + background, np.float32)
        thresholds = np.array([prompt.threshold for prompt in table.classes] + background, np.float32)
        return cls(maps, scale or table.logit_scale or LOGIT_SCALE, offsets, thresholds, refinement)

    def __post_init__(self) -> None:
        self._scene = once_per_thread(self.maps.open)
        cell = min(grid.layout.cell_size for grid in self.maps.grids)
        self._radius = max(2, round(_RADIUS_CELLS * cell))
        self._filter_cell = 4 if self._radius >= 12 else 2 if self._radius >= 6 else 1

    def probabilities(self, tile: Window) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the classes and last of the background if there is one.

        Args:
            tile: in pixels of the mapped part.

        Returns:
            float32 (classes, height, width), 0 to 1, and which pixels are valid, bool (height, width).

        Raises:
            ClippanError: the raster cannot be read.
        """
        scene = self._scene()
        refined = self.refinement is Refinement.GUIDED
        cell = self._filter_cell
        margin = filter_margin(self._radius, cell) if refined else 0
        x, y = self.maps.aoi.x + tile.x, self.maps.aoi.y + tile.y
        # Cells of the filter start at the raster's first pixel, whatever the extent.
        left, top = (max(start - margin, 0) // cell * cell for start in (x, y))
        right, bottom = min(x + tile.width + margin, scene.grid.width), min(y + tile.height + margin, scene.grid.height)
        wide = Window(left, top, right - left, bottom - top)
        picture, valid = scene.picture_and_mask(wide, wide.width, wide.height)
        inside = (slice(y - top, y - top + tile.height), slice(x - left, x - left + tile.width))
        if not valid[inside].any():
            return np.zeros((len(self.offsets), tile.height, tile.width), np.float32), valid[inside]
        logits = torch.from_numpy(self.maps.at_window(wide)).mul_(self.scale)
        logits += torch.from_numpy(self.offsets)[:, None, None]
        shares = torch.softmax(logits, 0)
        if refined:
            guide = torch.from_numpy(picture).float().div_(255)
            shares = guided_filter(shares, guide, torch.from_numpy(valid), self._radius, _EPS, cell).clamp_(min=0)
        values = shares[:, inside[0], inside[1]]
        values = values / values.sum(0).clamp(min=1e-6)
        return values.numpy(), valid[inside]

    def classes(self, tile: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A tile's classes uint8 (height, width), their confidence float32, the probabilities, and the valid pixels."""
        values, valid = self.probabilities(tile)
        best = values.argmax(axis=0)
        confidence = np.take_along_axis(values, best[None], axis=0)[0]
        found = np.where(best < self.maps.classes, best + 1, 0).astype(np.uint8)
        found[~valid | (confidence < self.thresholds[best])] = 0
        return found, np.where(valid, confidence, np.nan).astype(np.float32), values, valid

"""Class probabilities and classes of tiles, from similarity maps."""

from __future__ import annotations

from typing import NamedTuple, Optional

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


class ClassifiedTile(NamedTuple):
    """Classes of a tile uint8 (h, w), 0 where unclassified; their confidence float32 (h, w), NaN where invalid; the
    probabilities of all classes (classes, h, w); and which pixels are valid (h, w)."""

    classes: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray
    valid: np.ndarray


class TileClassifier:
    """Maps tiles by their similarity with the classes of a table, whose logit scale is used unless one is given. Can be
    used by several threads."""

    def __init__(
        self, maps: SimilarityMaps, table: PromptTable, logit_scale: Optional[float], refinement: Refinement
    ) -> None:
        background = [0.0] * (maps.grids[0].values.shape[0] - len(table.classes))
        self.offsets = np.array([prompt.offset for prompt in table.classes] + background, np.float32)
        self._thresholds = np.array([prompt.threshold for prompt in table.classes] + background, np.float32)
        self._logit_scale = logit_scale or table.logit_scale or LOGIT_SCALE
        self._maps, self._refined = maps, refinement is Refinement.GUIDED
        self._scene = once_per_thread(maps.open)
        cell = min(grid.layout.cell_size for grid in maps.grids)
        self._radius = max(2, round(_RADIUS_CELLS * cell))
        self._filter_cell = 4 if self._radius >= 12 else 2 if self._radius >= 6 else 1

    def probabilities(self, tile: Window) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the classes and last of the background if there is one, float32 (classes, h, w), and which
        pixels of the tile are valid, bool (h, w)."""
        scene = self._scene()
        cell = self._filter_cell
        margin = filter_margin(self._radius, cell) if self._refined else 0
        x, y = self._maps.aoi.x + tile.x, self._maps.aoi.y + tile.y
        # Cells of the filter start at the raster's first pixel, whatever the extent.
        left, top = (max(start - margin, 0) // cell * cell for start in (x, y))
        right, bottom = min(x + tile.width + margin, scene.grid.width), min(y + tile.height + margin, scene.grid.height)
        enlarged = Window(left, top, right - left, bottom - top)
        picture, valid = scene.picture_and_mask(enlarged, enlarged.width, enlarged.height)
        inside = (..., slice(y - top, y - top + tile.height), slice(x - left, x - left + tile.width))
        if not valid[inside].any():
            return np.zeros((len(self.offsets), tile.height, tile.width), np.float32), valid[inside]
        logits = torch.from_numpy(self._maps.at_window(enlarged)).mul_(self._logit_scale)
        logits += torch.from_numpy(self.offsets)[:, None, None]
        probabilities = torch.softmax(logits, 0)
        if self._refined:
            guide = torch.from_numpy(picture).float().div_(255)
            mask = torch.from_numpy(valid)
            probabilities = guided_filter(probabilities, guide, mask, self._radius, _EPS, cell).clamp_(min=0)
        probabilities = probabilities[inside]
        return (probabilities / probabilities.sum(0).clamp(min=1e-6)).numpy(), valid[inside]

    def classify(self, tile: Window) -> ClassifiedTile:
        """Classifies a tile, in pixels of the mapped part."""
        probabilities, valid = self.probabilities(tile)
        best = probabilities.argmax(axis=0)
        confidence = np.take_along_axis(probabilities, best[None], axis=0)[0]
        classes = np.where(best < self._maps.class_count, best + 1, 0).astype(np.uint8)
        classes[~valid | (confidence < self._thresholds[best])] = 0
        return ClassifiedTile(classes, np.where(valid, confidence, np.nan).astype(np.float32), probabilities, valid)

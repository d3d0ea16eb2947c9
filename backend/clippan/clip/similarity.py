"""What a model saw of a part of a raster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

import numpy as np

from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import Encoder
from clippan.clip.sliding import SimilarityGrid, SlidingWindows, similarity_grid
from clippan.core.context import Context
from clippan.core.threads import count_threads
from clippan.jobs.calibrate import CalibrateRequest
from clippan.jobs.segment import SegmentRequest
from clippan.raster.scene import Scene, SceneOptions
from clippan.raster.tiles import Window

_BIAS = -0.3  # for transformers; see SegmentRequest
_STARTER_EDGE, _MIN_METRES = 64, 32.0  # of a window for a tower with cells of 32 pixels; see ``edges``
_GSD_CHANGE = 0.9  # of the raster's ground resolution in its middle, below which a part's own counts


@dataclass(frozen=True)
class SimilarityMaps:
    """What the model saw of a part of a raster.

    Attributes:
        path, look, stretch: the raster, and how it becomes a picture.
        part: of it.
        grids: for each size of windows.
        classes: how many, without the background.
    """

    path: str
    options: SceneOptions
    stretch: tuple[tuple[float, float], ...]
    part: Window
    grids: tuple[SimilarityGrid, ...]
    classes: int

    @classmethod
    def of(
        cls,
        request: Union[SegmentRequest, CalibrateRequest],
        model: Encoder,
        sought: ClassVectors,
        scene: Scene,
        part: Window,
        folder: Path,
        context: Context,
        wanted: Callable[[Window], bool] = lambda window: True,
    ) -> SimilarityMaps:
        """Looks at a part of a raster.

        Args:
            request: says how.
            model: that looks.
            sought: the classes' words.
            scene: the raster.
            part: of it.
            folder: for what is too large for the memory.
            context: hears of progress.
            wanted: which windows; by default all.

        Raises:
            ClippanError: the raster cannot be read, or the model has no dense features.
        """
        stretch = scene.stretch
        threads = max(1, count_threads(request.threads) // 2)
        seen = part.intersection(scene.bounds)
        bias = request.bias if request.bias is not None else 0.0 if model.any_size else _BIAS
        lattices = [
            SlidingWindows.of(model, scene.grid.width, scene.grid.height, edge, seen)
            for edge in request.window or default_window_edges(scene, model, part)
        ]
        total, done, found = sum(lattice.count for lattice in lattices), 0, []
        for lattice in lattices:
            share = context.subrange(100 * done / total, 100 * (done + lattice.count) / total)
            found.append(
                similarity_grid(
                    model,
                    sought.vectors,
                    sought.class_of,
                    lattice,
                    lambda: Scene(scene.path, scene.options, stretch, model.channels),
                    bias,
                    request.flips,
                    threads,
                    folder,
                    share,
                    lambda window: scene.may_contain_data(window) and wanted(window),
                )
            )
            done += lattice.count
        return cls(scene.path, scene.options, stretch, part, tuple(found), sought.classes)

    @property
    def edges(self) -> tuple[int, ...]:
        """Of the windows, in the raster's pixels."""
        return tuple(grid.lattice.edge // grid.lattice.enlargement for grid in self.grids)

    def open(self) -> Scene:
        """The raster, anew."""
        return Scene(self.path, self.options, self.stretch)

    def cosines(self, window: Window) -> np.ndarray:
        """The mean over all sizes, float32 (classes, height, width), at the pixels of a window of the raster."""
        return np.mean([grid.at(window) for grid in self.grids], axis=0)

    def at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The same at single pixels, float32 (n, classes); NaN where the model did not look."""
        return np.mean([grid.at_pixels(rows, columns) for grid in self.grids], axis=0)


def default_window_edges(scene: Scene, model: Encoder, part: Window) -> tuple[int, ...]:
    """Of the windows that suit a model and the ground resolution, in the raster's pixels.

    The starter model sees best 64 pixels at a time, of Sentinel-2 as of pictures with half a metre; of sharper ones as
    much ground. Beside them twice as much costs little, and corrects them. Models with smaller cells see more, and as
    they take longer, once.
    """
    grounds = (
        scene.pixel_size_in_metres(),
        scene.pixel_size_in_metres((part.x + part.width / 2, part.y + part.height / 2)),
    )
    whole, here = ((ground[0] * ground[1]) ** 0.5 if ground else math.inf for ground in grounds)
    # The part's extent should not matter; but the middle of a map service is on the equator.
    gsd = here if here < _GSD_CHANGE * whole else whole
    edge = round(max(_STARTER_EDGE, _MIN_METRES / gsd) * 32 / model.stride)
    return (edge, 2 * edge) if model.any_size else (edge,)

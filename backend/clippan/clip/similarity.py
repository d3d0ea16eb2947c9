"""Similarity of a part of a raster with classes, over windows of several sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

import numpy as np

from clippan.catalogue.prompts import PromptTable, parse_prompts
from clippan.clip.class_vectors import ClassVectors
from clippan.clip.encoder import ClipEncoder, load_encoder
from clippan.clip.sliding import SimilarityGrid, SlidingWindows, similarity_grid
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import set_threads
from clippan.core.threads import count_threads
from clippan.jobs.calibrate import CalibrateRequest
from clippan.jobs.segment import SegmentRequest
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.tiles import Window

_TRANSFORMER_GLOBAL_WEIGHT = -0.3  # default weight of the whole window's cosine; for convolutional towers it is 0
_STARTER_WINDOW, _MIN_METRES = 64, 32.0  # of a window for a tower with cells of 32 pixels
_GSD_CHANGE = 0.9  # ratio to the ground resolution at the raster's centre below which that of the part is used


@dataclass(frozen=True)
class SimilarityMaps:
    """Cosine similarity of a part of a raster with classes, for windows of several sizes.

    Attributes:
        path, options, stretch: the raster, and how it becomes pictures.
        aoi: the part of the raster.
        grids: one for each size of windows.
        class_count: number of classes without the background.
    """

    path: str
    options: RenderOptions
    stretch: tuple[tuple[float, float], ...]
    aoi: Window
    grids: tuple[SimilarityGrid, ...]
    class_count: int

    @classmethod
    def compute(
        cls,
        request: Union[SegmentRequest, CalibrateRequest],
        encoder: ClipEncoder,
        classes: ClassVectors,
        scene: Renderer,
        aoi: Window,
        folder: Path,
        context: Context,
        is_needed: Callable[[Window], bool] = lambda window: True,
    ) -> SimilarityMaps:
        """Runs a model over a part of a raster, for the windows that are needed.

        ``folder`` is for grids too large for memory.

        Raises:
            ClippanError: the raster cannot be read, or the model has no dense features.
        """
        stretch = scene.stretch
        default = 0.0 if encoder.accepts_any_size else _TRANSFORMER_GLOBAL_WEIGHT
        global_weight = default if request.bias is None else request.bias
        sizes = request.window or default_window_sizes(scene, encoder, aoi)
        inside = aoi.intersection(scene.written.bounds)
        layouts = [SlidingWindows.of(encoder, scene.grid.width, scene.grid.height, size, inside) for size in sizes]
        total, done, grids = sum(layout.count for layout in layouts), 0, []
        for layout in layouts:
            grids.append(
                similarity_grid(
                    encoder,
                    classes,
                    layout,
                    lambda: Renderer(scene.path, scene.options, stretch, encoder.channels),
                    global_weight,
                    request.flips,
                    max(1, count_threads(request.threads) // 2),
                    folder,
                    context.subrange(100 * done / total, 100 * (done + layout.count) / total),
                    lambda window: scene.written.may_contain_data(window) and is_needed(window),
                )
            )
            done += layout.count
        return cls(scene.path, scene.options, stretch, aoi, tuple(grids), classes.class_count)

    @property
    def window_sizes(self) -> tuple[int, ...]:
        """Window sizes in pixels of the raster, for an input picture of the model's own size."""
        return tuple(grid.layout.window_size // grid.layout.input_scale for grid in self.grids)

    def open(self) -> Renderer:
        """Opens the raster again."""
        return Renderer(self.path, self.options, self.stretch)

    def at_window(self, window: Window) -> np.ndarray:
        """Cosines at the pixels of a window of the raster: the mean of all sizes, float32 (classes, height, width)."""
        return np.mean([grid.at_window(window) for grid in self.grids], axis=0)

    def at_pixels(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Cosines at single pixels of the raster, float32 (n, classes); NaN where the model saw nothing."""
        return np.mean([grid.at_pixels(rows, columns) for grid in self.grids], axis=0)


def load_prompts_and_encoder(
    request: Union[SegmentRequest, CalibrateRequest], context: Context
) -> tuple[PromptTable, ClipEncoder]:
    """The prompt table of a request, with a colour for each class, and its model.

    Raises:
        ClippanError: the table or the model cannot be read.
    """
    table = parse_prompts(request.classes).with_colours()
    if origin := texts.origin_note(request.classes):
        context.log(origin)
    encoder = load_encoder(request.model, request.device, context.subrange(0, 5))
    set_threads(request.threads)
    return table, encoder


def default_window_sizes(scene: Renderer, encoder: ClipEncoder, aoi: Window) -> tuple[int, ...]:
    """Window sizes that suit a model and the ground resolution, in pixels of the raster.

    The starter model works best with windows of 64 pixels, for Sentinel-2 as well as for images of 0.5 m; for finer
    ones, with windows of as many metres. Windows twice as large are added, which cost little and correct these. Models
    with smaller cells see more at a time and are slower, and use one size.
    """
    grounds = (
        scene.pixel_size_in_metres(),
        scene.pixel_size_in_metres((aoi.x + aoi.width / 2, aoi.y + aoi.height / 2)),
    )
    whole, local = ((ground[0] * ground[1]) ** 0.5 if ground else math.inf for ground in grounds)
    # The extent of the part should not matter, but the centre of a global map service lies on the equator.
    gsd = local if local < _GSD_CHANGE * whole else whole
    size = round(max(_STARTER_WINDOW, _MIN_METRES / gsd) * 32 / encoder.output_stride)
    return (size, 2 * size) if encoder.accepts_any_size else (size,)

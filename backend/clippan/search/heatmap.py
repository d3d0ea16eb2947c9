"""A raster of how well each place fits what was searched for."""

from __future__ import annotations

from typing import Any

import numpy as np

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.outputs import Outputs
from clippan.raster.grid import Grid
from clippan.raster.rendering import longitude_period
from clippan.raster.source import BandInfo
from clippan.raster.writer import Writer
from clippan.search.scoring import SearchVectors, vector_batches
from clippan.search.tile_index import TileFilter

NODATA = -1.0
_MAX_CELLS = 4000  # along an edge
_CELLS_PER_TILE = 4  # cells along a tile's edge, so that overlaps show


def write(
    path: str, index: Any, tile_filter: TileFilter, query: SearchVectors, outputs: Outputs, context: Context
) -> None:
    """Writes the confidence of the tiles (0 to 1, the mean where they overlap) as a float32 GeoTIFF in the index's CRS.

    Raises:
        ClippanError: the tiles have no common place, or the file cannot be written.
    """
    bounds, values, rasters = [], [], set()
    ids = index.tile_ids(tile_filter)
    for part, vectors in vector_batches(index, ids, context.subrange(0, 90)):
        known = dict(zip(part.tolist(), query.score_tiles(vectors).confidence))
        for tile in index.tiles(part.tolist()):
            if tile.outline:
                bounds.append(tile.bounds)
                values.append(known[tile.id])
                rasters.add(tile.raster_id)
    if not bounds or (not index.info.crs and len(rasters) > 1):
        raise ClippanError("Pictures without coordinates have no common map; choose one raster for the heat map.")
    boxes = _unwrapped(np.array(bounds), longitude_period(index.info.crs))
    left, bottom = boxes[:, :2].min(axis=0).tolist()
    right, top = boxes[:, 2:].max(axis=0).tolist()
    cell = float(np.min(boxes[:, 2:] - boxes[:, :2])) / _CELLS_PER_TILE
    cell = max(cell, (right - left) / _MAX_CELLS, (top - bottom) / _MAX_CELLS)
    width, height = (max(int(np.ceil(size / cell - 1e-6)), 1) for size in (right - left, top - bottom))
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    first_column, last_column = _covered_cells(boxes[:, 0] - left, boxes[:, 2] - left, cell)
    first_row, last_row = _covered_cells(top - boxes[:, 3], top - boxes[:, 1], cell)
    for x, right_, y, bottom_, value in zip(first_column, last_column, first_row, last_row, values):
        total[y:bottom_, x:right_] += value
        weight[y:bottom_, x:right_] += 1
    mean = np.where(weight > 0, total / np.maximum(weight, 1), NODATA).astype(np.float32)
    grid = Grid(width, height, (left, cell, 0.0, top, 0.0, -cell), index.info.crs)
    tags = {"CLIPPAN_MODEL": index.info.model, "CLIPPAN_PROMPT": "; ".join(query.prompts)}
    info = BandInfo("Confidence")
    with Writer(path, grid, np.dtype(np.float32), [info], NODATA, tags, outputs=outputs) as writer:
        writer.write(0, 0, mean[None])


def _unwrapped(boxes: np.ndarray, period: float) -> np.ndarray:
    """Boxes (n, 4), moved by whole turns round the world where they span less of it so; not outside of degrees."""
    if not period:
        return boxes
    starts = boxes[:, 0] % period
    order = np.sort(starts)
    gaps = np.diff(order, append=order[0] + period)
    first = order[(int(gaps.argmax()) + 1) % len(order)]  # after the widest gap
    unwrapped = boxes.copy()
    unwrapped[:, [0, 2]] += ((starts - first) % period + first - boxes[:, 0])[:, None]
    unwrapped[:, [0, 2]] -= period * np.floor(unwrapped[:, 0].min() / period + 0.5)  # it begins between -180 and 180
    widths = [float(candidate[:, 2].max() - candidate[:, 0].min()) for candidate in (boxes, unwrapped)]
    return unwrapped if widths[1] < widths[0] - 1e-9 * period else boxes


def _covered_cells(start: np.ndarray, end: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells whose centres lie between two distances, at least one."""
    first = np.ceil(start / cell - 0.5 - 1e-6).astype(int).clip(0)
    return first, np.maximum(np.floor(end / cell - 0.5 + 1e-6).astype(int) + 1, first + 1)

"""Regions of a map of classes: what hangs together by edges, and which small ones join their neighbours.

The map is read by strips, twice: once to know the regions, and once more to draw them. Memory holds a strip and what is
known of each region, never the map.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass
from typing import Optional, cast

import numpy as np
from osgeo import gdal
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.labels.areas import PixelAreas
from clippan.raster.coverage import Coverage
from clippan.raster.grid import Grid
from clippan.raster.scene import PIXEL_GEOTRANSFORM
from clippan.raster.source import open_dataset

STRIP = 2**19  # pixels of a strip


@dataclass(frozen=True)
class Regions:
    """The regions of a map, in the order of their first pixels.

    Attributes:
        of: the region of each patch; patches are what ``patches`` finds in the strips, numbered through.
        classes: the value of each region, uint8 (regions,); 0 is no class, though each part of it is a region too.
        pixels: int64 (regions,).
        metres: ground area in m² (regions,); NaN where the raster has no coordinates.
        confidence: mean of each region (regions,), 0 to 1; NaN without a raster of it.
    """

    of: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    metres: np.ndarray
    confidence: np.ndarray


class ClassMap:
    """A map of classes, and maybe its confidence, read by strips. A context manager.

    Args:
        path: raster of the classes, whose first band counts.
        confidence: raster of the confidence on the same grid; None for none.
        strip: pixels of a strip; it never changes what is found.

    Raises:
        ClippanError: a raster cannot be read, or their sizes differ.
    """

    def __init__(self, path: str, confidence: Optional[str] = None, strip: int = STRIP) -> None:
        self._dataset = open_dataset(path, "map")
        self._confidence = open_dataset(confidence, "confidence") if confidence else None
        grid = Grid.of(self._dataset)
        # Of a sparse map only what was written holds classes.
        part = self._part = Coverage([self._dataset.GetRasterBand(1)], nodata=True).bounds
        if (part.width, part.height) != (grid.width, grid.height):
            placed = grid if grid.geotransform else Grid(grid.width, grid.height, PIXEL_GEOTRANSFORM, "")
            grid = placed.cropped(part.x, part.y, part.x + part.width, part.y + part.height)
        self.grid = grid
        self.tags: dict[str, str] = self._dataset.GetMetadata() or {}
        self.rows = max(strip // self.grid.width, 1)
        size = (self._dataset.RasterXSize, self._dataset.RasterYSize)
        if self._confidence and (self._confidence.RasterXSize, self._confidence.RasterYSize) != size:
            raise ClippanError(
                "The confidence {confidence} is not on the grid of the map {path}; choose its own.",
                confidence=confidence,
                path=path,
            )

    def __enter__(self) -> ClassMap:
        return self

    def __exit__(self, *_: object) -> None:
        self._dataset = self._confidence = None

    def strips(self, context: Context) -> Iterator[tuple[int, np.ndarray]]:
        """First row and classes (rows, width), uint8, from top to bottom."""
        for y in range(0, self.grid.height, self.rows):
            context.progress(100 * y / self.grid.height, "Drawing polygons")
            yield y, self._read(self._dataset, y).astype(np.uint8, copy=False)

    def confidence(self, y: int) -> Optional[np.ndarray]:
        """The confidence (rows, width) of the strip that begins with row y."""
        return None if self._confidence is None else self._read(self._confidence, y)

    def _read(self, dataset: gdal.Dataset, y: int) -> np.ndarray:
        rows = min(self.rows, self.grid.height - y)
        try:
            part = self._part
            return dataset.GetRasterBand(1).ReadAsArray(part.x, part.y + y, part.width, rows)
        except RuntimeError as error:
            name = dataset.GetDescription()
            raise ClippanError(
                "The map {name} could not be read again ({reason}); check its disk.", name=name, reason=one_line(error)
            ) from error


def label_patches(classes: np.ndarray) -> tuple[np.ndarray, int]:
    """What hangs together by edges within a strip.

    Args:
        classes: uint8 (h, w).

    Returns:
        The patch of each pixel, int32 (h, w), from 0 in the order of their first pixels, and how many there are.
    """
    begins = np.ones(classes.shape, bool)  # runs of one class in a row
    np.not_equal(classes[:, 1:], classes[:, :-1], out=begins[:, 1:])
    run = (np.cumsum(begins, dtype=np.int32) - 1).reshape(classes.shape)
    # Runs that touch begin to do so where one of them begins.
    touch = (classes[1:] == classes[:-1]) & (begins[1:] | begins[:-1])
    patch, count = connected_groups(run[:-1][touch], run[1:][touch], int(run[-1, -1]) + 1)
    return patch[run], count


def connected_groups(one: np.ndarray, other: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The group of each of ``count`` items, where ``one[i]`` and ``other[i]`` belong together.

    Returns:
        The groups, int32 (count,), from 0 in the order of their first items, and how many there are.
    """
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), (count, count))
    number, group = connected_components(graph, directed=False)
    return group, number


def fast_items(values: np.ndarray) -> MutableSequence[int]:
    """The same memory, of which single numbers are read and written much faster than of an array."""
    return cast("MutableSequence[int]", memoryview(values))  # type: ignore[arg-type] # Buffer is of Python 3.12


def find_regions(source: ClassMap, min_area: int, context: Context) -> Regions:
    """The regions of a map, of which none has fewer pixels than ``min_area``.

    The smallest goes first, and joins the largest of its neighbours that have a class; regions that touch thereby
    become one. What has no class (value 0) never changes, as nobody knows whether it is nodata; a small region that
    lies alone in it, with no classified neighbour, joins it, and is left out.

    Args:
        source: the map.
        min_area: in pixels.
        context: told the progress.
    """
    ground = PixelAreas(source.grid)
    count = 0
    classes, pixels, metres, sums = [], [], [], []
    links: list[np.ndarray] = []  # (2, n): patches of two strips that belong together
    borders: list[np.ndarray] = []  # (2, n): patches that lie side by side
    above: Optional[tuple[np.ndarray, np.ndarray]] = None  # last row of the strip before: its classes and patches
    for y, values in source.strips(context.subrange(0, 90)):
        patch, number = label_patches(values)
        flat = patch.ravel()
        own = np.zeros(number, np.uint8)
        own[flat] = values.ravel()
        classes.append(own)
        pixels.append(np.bincount(flat, minlength=number))
        area = ground.window(0, y, values.shape[1], len(values))
        weights = np.broadcast_to(area, values.shape).ravel() if area.size > 1 else None
        metres.append(pixels[-1] * area.item() if weights is None else np.bincount(flat, weights, number))
        confidence = source.confidence(y)
        sums.append(np.full(number, np.nan) if confidence is None else np.bincount(flat, confidence.ravel(), number))
        patch = patch + np.int32(count)
        count += number
        if above is not None:
            same = above[0] == values[0]
            links.append(_adjacent_pairs(above[1][same], patch[0][same]))
        if min_area > 1:
            borders += [_adjacent_pairs(patch[:, :-1], patch[:, 1:]), _adjacent_pairs(patch[:-1], patch[1:])]
            if above is not None:
                borders.append(_adjacent_pairs(above[1], patch[0]))
        above = values[-1].copy(), patch[-1].copy()
    one, other = _concatenated(links)
    of, regions = connected_groups(one, other, count)
    first = np.concatenate(classes)
    values = np.zeros(regions, np.uint8)
    values[of] = first
    size = np.bincount(of, np.concatenate(pixels), regions).astype(np.int64)
    if min_area > 1:
        values, into = _merge_small(values, size, of[_concatenated(borders)], min_area, context.subrange(90, 100))
        of, regions = into[of], len(values)
        size = np.bincount(into, size, regions).astype(np.int64)
    total = np.bincount(of, np.concatenate(metres), regions)
    return Regions(of, values, size, total, np.bincount(of, np.concatenate(sums), regions) / size)


def _adjacent_pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Different patches that meet, each two once, the smaller first: (2, n)."""
    apart = one != other
    one, other = one[apart], other[apart]
    low, high = np.minimum(one, other).astype(np.int64), np.maximum(one, other).astype(np.int64)
    keys = np.unique(low << 32 | high)
    return np.stack([keys >> 32, keys & 0xFFFFFFFF])


def _concatenated(pairs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)


def _merge_small(
    values: np.ndarray, pixels: np.ndarray, borders: np.ndarray, min_area: int, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Joins small regions to neighbours.

    Args:
        values, pixels: classes and sizes of the regions.
        borders: regions that lie side by side (2, n), maybe several times and maybe a region with itself.
        min_area: pixels that a region needs.
        context: told the progress.

    Returns:
        The classes of what they become, 0 for what is left out, and which of these each region becomes.
    """
    ends = np.concatenate([borders, borders[::-1]], axis=1)
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    starts = np.searchsorted(ends[0], np.arange(len(values) + 1))
    small = [int(region) for region in np.flatnonzero((values > 0) & (pixels < min_area))]
    group = np.arange(len(values))
    changed = values.copy()
    classes, size, root, first, beside = map(fast_items, (changed, pixels.copy(), group, starts, ends[1]))
    members: dict[int, list[int]] = {region: [region] for region in small}  # of groups that are small
    waiting = [(size[region], region) for region in small]
    heapq.heapify(waiting)

    def top(region: int) -> int:
        while root[region] != region:
            root[region] = root[root[region]]
            region = root[region]
        return region

    def join(one: int, other: int) -> int:
        low, high = min(one, other), max(one, other)
        root[high] = low
        size[low] += size[high]
        parts = members.pop(one, None), members.pop(other, None)
        if size[low] < min_area and classes[low] and parts[0] and parts[1]:
            members[low] = parts[0] + parts[1]
            heapq.heappush(waiting, (size[low], low))
        return low

    done = 0
    while waiting:
        before, region = heapq.heappop(waiting)
        done += 1
        if done % 1000 == 0:
            context.progress(100 * done / (done + len(waiting)), "Joining small areas")
        if root[region] != region or size[region] != before or not classes[region]:
            continue  # it has grown or gone since
        around = {top(other) for part in members[region] for other in beside[first[part] : first[part + 1]]} - {region}
        classified = [neighbour for neighbour in around if classes[neighbour]]
        goal = min(classified, key=lambda item: (-size[item], item)) if classified else None
        value = classes[goal] if goal is not None else 0
        classes[region] = value
        for neighbour in sorted(around):
            if classes[neighbour] == value:
                region = join(region, neighbour)
                classes[region] = value
    own = np.arange(len(group))
    return changed[group == own], connected_groups(own, group, len(group))[0]

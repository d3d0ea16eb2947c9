"""Connected regions of a map of classes, with small ones merged into their neighbours.

Regions are 4-connected. The map is read twice in strips: once to find the regions, once to trace them. Memory holds a
strip and the attributes of the regions, never the map.
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
from clippan.raster.coverage import WrittenPixels
from clippan.raster.grid import Grid
from clippan.raster.rendering import PIXEL_GEOTRANSFORM
from clippan.raster.source import open_dataset

STRIP = 2**19  # pixels of a strip


@dataclass(frozen=True)
class Regions:
    """The regions of a map, in the order of their first pixels.

    Attributes:
        region_of_component: the region of each component of the strips (see ``label_components``), which are numbered
            consecutively.
        classes: the value of each region, uint8 (regions,); 0 is unclassified.
        pixels: their number in each region, int64 (regions,).
        square_metres: ground area of each region (regions,); NaN if unknown.
        confidence: mean of each region (regions,), 0 to 1; NaN without a raster of it.
    """

    region_of_component: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    square_metres: np.ndarray
    confidence: np.ndarray


class ClassMap:
    """A map of classes, optionally with the raster of its confidence, read in strips. A context manager.

    Raises:
        ClippanError: a raster cannot be read, or their sizes differ.
    """

    def __init__(self, path: str, confidence: Optional[str] = None, strip: int = STRIP) -> None:
        self._dataset = open_dataset(path, "map")
        self._confidence = open_dataset(confidence, "confidence") if confidence else None
        grid = Grid.of(self._dataset)
        # Only the written part of a sparse map has classes.
        written = self._written = WrittenPixels([self._dataset.GetRasterBand(1)], nodata=True).bounds
        if (written.width, written.height) != (grid.width, grid.height):
            placed = grid if grid.geotransform else Grid(grid.width, grid.height, PIXEL_GEOTRANSFORM, "")
            grid = placed.cropped(written.x, written.y, written.x + written.width, written.y + written.height)
        self.grid = grid
        self.tags: dict[str, str] = self._dataset.GetMetadata() or {}
        self.rows = max(strip // self.grid.width, 1)
        size = (self._dataset.RasterXSize, self._dataset.RasterYSize)
        if self._confidence and (self._confidence.RasterXSize, self._confidence.RasterYSize) != size:
            raise ClippanError(
                "The confidence {confidence} is not on the grid of the map {path}; choose the one that belongs to the "
                "map.",
                confidence=confidence,
                path=path,
            )

    def __enter__(self) -> ClassMap:
        return self

    def __exit__(self, *_: object) -> None:
        self._dataset = self._confidence = None

    def strips(self, context: Context) -> Iterator[tuple[int, np.ndarray]]:
        """The first row and the classes uint8 (rows, width) of each strip, from top to bottom."""
        for y in range(0, self.grid.height, self.rows):
            context.progress(100 * y / self.grid.height, "Drawing polygons")
            yield y, self._read(self._dataset, y).astype(np.uint8, copy=False)

    def confidence(self, y: int) -> Optional[np.ndarray]:
        """The confidence (rows, width) of the strip that starts at row y."""
        return None if self._confidence is None else self._read(self._confidence, y)

    def _read(self, dataset: gdal.Dataset, y: int) -> np.ndarray:
        rows = min(self.rows, self.grid.height - y)
        try:
            written = self._written
            return dataset.GetRasterBand(1).ReadAsArray(written.x, written.y + y, written.width, rows)
        except RuntimeError as error:
            name = dataset.GetDescription()
            raise ClippanError(
                "The map {name} could not be read again ({reason}); check the disk.", name=name, reason=one_line(error)
            ) from error


def label_components(classes: np.ndarray) -> tuple[np.ndarray, int]:
    """The 4-connected component of each pixel of a strip of classes (h, w), int32 (h, w), from 0 in the order of first
    pixels, and the number of components."""
    begins = np.ones(classes.shape, bool)  # runs of one class in a row
    np.not_equal(classes[:, 1:], classes[:, :-1], out=begins[:, 1:])
    run = (np.cumsum(begins, dtype=np.int32) - 1).reshape(classes.shape)
    # Two runs first touch where one of them begins.
    touch = (classes[1:] == classes[:-1]) & (begins[1:] | begins[:-1])
    component, count = connected_groups(run[:-1][touch], run[1:][touch], int(run[-1, -1]) + 1)
    return component[run], count


def connected_groups(one: np.ndarray, other: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The group of each of ``count`` items, int32 (count,), from 0 in the order of first items, and the number of
    groups, where ``one[i]`` and ``other[i]`` are in one group."""
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), (count, count))
    number, group = connected_components(graph, directed=False)
    return group, number


def fast_items(values: np.ndarray) -> MutableSequence[int]:
    """A view of an array whose single items are read and written much faster."""
    return cast("MutableSequence[int]", memoryview(values))  # type: ignore[arg-type] # Buffer is of Python 3.12


def find_regions(source: ClassMap, min_area: int, context: Context) -> Regions:
    """The regions of a map after merging those with fewer than ``min_area`` pixels.

    The smallest region is merged first, into its largest classified neighbour; regions of one class that then touch
    become one. Unclassified pixels (value 0) never get a class, since they may be nodata; a small region without a
    classified neighbour becomes unclassified.
    """
    pixel_areas = PixelAreas(source.grid)
    count = 0
    classes, pixels, metres, confidences = [], [], [], []  # of the components; confidences are sums
    links: list[np.ndarray] = [np.zeros((2, 0), np.int64)]  # (2, n): components of consecutive strips in one region
    borders = links.copy()  # (2, n): adjacent components
    above: Optional[tuple[np.ndarray, np.ndarray]] = None  # classes and components of the last row before the strip
    for y, values in source.strips(context.subrange(0, 90)):
        component, number = label_components(values)
        flat = component.ravel()
        component_classes = np.zeros(number, np.uint8)
        component_classes[flat] = values.ravel()
        classes.append(component_classes)
        pixels.append(np.bincount(flat, minlength=number))
        area = pixel_areas.areas_in(0, y, values.shape[1], len(values))
        weights = np.broadcast_to(area, values.shape).ravel() if area.size > 1 else None
        metres.append(pixels[-1] * area.item() if weights is None else np.bincount(flat, weights, number))
        confidence = source.confidence(y)
        confidences.append(
            np.full(number, np.nan) if confidence is None else np.bincount(flat, confidence.ravel(), number)
        )
        component = component + np.int32(count)
        count += number
        if min_area > 1:
            borders.append(_adjacent_pairs(component[:, :-1], component[:, 1:]))
            borders.append(_adjacent_pairs(component[:-1], component[1:]))
        if above is not None:
            same = above[0] == values[0]
            links.append(_adjacent_pairs(above[1][same], component[0][same]))
            if min_area > 1:
                borders.append(_adjacent_pairs(above[1], component[0]))
        above = values[-1].copy(), component[-1].copy()
    one, other = np.concatenate(links, axis=1)
    region_of, region_count = connected_groups(one, other, count)
    values = np.zeros(region_count, np.uint8)
    values[region_of] = np.concatenate(classes)
    size = np.bincount(region_of, np.concatenate(pixels), region_count).astype(np.int64)
    if min_area > 1:
        adjacent = region_of[np.concatenate(borders, axis=1)]
        values, merged = _merge_small(values, size, adjacent, min_area, context.subrange(90, 100))
        region_of, region_count = merged[region_of], len(values)
        size = np.bincount(merged, size, region_count).astype(np.int64)
    area = np.bincount(region_of, np.concatenate(metres), region_count)
    confidence = np.bincount(region_of, np.concatenate(confidences), region_count) / size
    return Regions(region_of, values, size, area, confidence)


def _adjacent_pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pairs of different adjacent components, each once with the smaller number first, (2, n)."""
    different = one != other
    one, other = one[different], other[different]
    low, high = np.minimum(one, other).astype(np.int64), np.maximum(one, other).astype(np.int64)
    keys = np.unique(low << 32 | high)
    return np.stack([keys >> 32, keys & 0xFFFFFFFF])


def _merge_small(
    values: np.ndarray, pixels: np.ndarray, borders: np.ndarray, min_area: int, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the merged regions, 0 for unclassified ones, and the merged region of each region, from their
    classes, their sizes and pairs of adjacent ones (2, n), possibly repeated or of a region with itself."""
    ends = np.concatenate([borders, borders[::-1]], axis=1)
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    starts = np.searchsorted(ends[0], np.arange(len(values) + 1))
    small = [int(region) for region in np.flatnonzero((values > 0) & (pixels < min_area))]
    group = np.arange(len(values))
    changed = values.copy()
    classes, size, root, first, beside = map(fast_items, (changed, pixels.copy(), group, starts, ends[1]))
    members: dict[int, list[int]] = {region: [region] for region in small}  # regions of each small group
    waiting = [(size[region], region) for region in small]
    heapq.heapify(waiting)

    def find_root(region: int) -> int:
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
            context.progress(100 * done / (done + len(waiting)), "Merging small areas")
        if root[region] != region or size[region] != before or not classes[region]:
            continue  # it has been merged or has grown
        around = {find_root(other) for member in members[region] for other in beside[first[member] : first[member + 1]]}
        around.discard(region)
        classified = [neighbour for neighbour in around if classes[neighbour]]
        target = min(classified, key=lambda item: (-size[item], item), default=None)
        value = 0 if target is None else classes[target]
        classes[region] = value
        for neighbour in sorted(around):
            if classes[neighbour] == value:
                region = join(region, neighbour)
                classes[region] = value
    numbers = np.arange(len(group))
    return changed[group == numbers], connected_groups(numbers, group, len(group))[0]

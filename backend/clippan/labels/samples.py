"""Samples: pixels of known class, from points or polygons, and what of them lies together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from osgeo import gdal, ogr

from clippan.catalogue.prompts import MAX_CLASSES
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.labels.labelled_pixels import covered_pixels
from clippan.labels.layers import LabelledLayer, crs_name
from clippan.raster.grid import Grid
from clippan.raster.scene import short_crs, spatial_reference
from clippan.raster.tiles import Window, tiles

MAX_PIXELS_PER_CLASS = 500  # of a class that are learned from; more of the same take long and say little
_MAX_PER_TILE = 2000  # of a tile of a polygon that may be drawn from
_TILE = 1024  # edge of the tiles in which polygons become pixels
_BLOCKS = (32, 16, 8)  # edges of blocks, in pixels; nearer to each other, places share their neighbours


@dataclass(frozen=True)
class Samples:
    """Pixels of known class.

    Attributes:
        names: of the classes, sorted; whole numbers by their size.
        rows, columns: in the grid, (n,).
        labels: the class of each, from 0, (n,).
        groups: what lies together and is left out together, from 0, (n,): a polygon or a block.
        split: what the groups are: "polygon", "block of 32 pixels", or "polygon or block of 32 pixels".
        hints: sentences for the user.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    columns: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    split: str
    hints: tuple[str, ...]

    @property
    def pixels_per_class(self) -> tuple[int, ...]:
        """Pixels of each class."""
        return tuple(int(count) for count in np.bincount(self.labels, minlength=len(self.names)))

    @property
    def groups_per_class(self) -> tuple[int, ...]:
        """Groups of each class."""
        return tuple(len(np.unique(self.groups[self.labels == number])) for number in range(len(self.names)))

    def subset(self, kept: np.ndarray) -> Samples:
        """Those of a mask (n,)."""
        rows, columns, labels, groups = (values[kept] for values in (self.rows, self.columns, self.labels, self.groups))
        return replace(self, rows=rows, columns=columns, labels=labels, groups=groups)


def read_samples(path: str, layer: str, field: str, grid: Grid, seed: int, context: Context) -> Samples:
    """Reads samples.

    Args:
        path: a vector file.
        layer: of it; empty for the first that has such places.
        field: which holds the class; features without a value are left aside.
        grid: the pixels, with a geotransform.
        seed: of what is drawn where there are too many.
        context: hears of progress.

    Raises:
        ClippanError: it cannot be read, has no such field or layer, lies elsewhere, is not in the CRS that it names, or
            tells of fewer than two classes.
    """
    rng = np.random.default_rng(seed)
    layer_read = LabelledLayer(path, layer, field)
    features, words = [], []
    beyond: list[str] = []  # classes of what lies outside the rasters
    lost: list[str] = []  # and of what cannot be brought to their CRS
    for word, geometry in layer_read.features(grid, context):
        if geometry is None:
            lost.append(word)
            continue
        flat, is_point = _pixel_numbers(geometry, grid, path, rng, context)
        if len(flat):
            features.append((flat, is_point))
            words.append(word)
        else:
            beyond.append(word)
    own, there = crs_name(layer_read.crs), crs_name(spatial_reference(grid.crs) if grid.crs else None)
    if not features:
        raise ClippanError(_no_samples_reason(path, field, len(beyond), len(lost), own, there))
    names = _sorted_classes(set(words))
    outside = _sorted_classes({*beyond, *lost} - set(words))
    if len(names) < 2:
        besides = f"; all samples of {join_names(outside)} lie outside" if outside else ""
        raise ClippanError(
            "The samples {path} hold one class only on the rasters ({name}{besides}); label places of another as well.",
            path=path,
            name=names[0],
            besides=besides,
        )
    if len(names) > MAX_CLASSES:
        raise ClippanError(
            "The field {field} has {count} different values, too many for a map of {MOST}; choose the field that "
            "holds the class.",
            field=field,
            count=len(names),
            MOST=MAX_CLASSES,
        )
    hints = [*layer_read.hints, *_similar_name_hints(names), *layer_read.assumed_crs_hints(grid)]
    if beyond or lost:
        hints.append(f"{len(beyond) + len(lost)} of the samples lie outside the rasters, and were left aside.")
    if outside:
        hints.append(
            Message(
                "All samples of {outside} lie outside the rasters, so nothing is made of these classes.",
                outside=join_names(outside),
            )
        )
    of = {name: value for value, name in enumerate(names)}
    sizes = [len(flat) for flat, _ in features]
    everything = np.concatenate([flat for flat, _ in features])
    labels = np.repeat([of[word] for word in words], sizes)
    owners = np.repeat(np.arange(len(features)), sizes)
    points = np.repeat([is_point for _, is_point in features], sizes)
    kept, conflicts = _unambiguous(everything, labels)
    if conflicts:
        hints.append(f"{conflicts} pixels are labelled with two classes, and were left aside.")
    gone = sorted(set(range(len(names))) - set(labels[kept].tolist()))
    if gone:
        raise ClippanError(
            "All samples of {name} are labelled with another class too; correct them in {path}.",
            name=names[gone[0]],
            path=path,
        )
    flat, labels, owners, points = (values[kept] for values in (everything, labels, owners, points))
    rows, columns = flat // grid.width, flat % grid.width
    groups, split = _groups(rows, columns, labels, owners, points)
    drawn = _draw(labels, groups, rng)
    if len(drawn) < len(labels):
        hints.append(
            Message(
                "Of each class {PIXELS} labelled pixels at most were drawn, evenly from its places.",
                PIXELS=MAX_PIXELS_PER_CLASS,
            )
        )
    return Samples(tuple(names), rows[drawn], columns[drawn], labels[drawn], groups[drawn], split, tuple(hints))


def samples_sha256(path: str, layer: str, field: str) -> str:
    """A checksum of a file's layer by which copies of it are known: of its CRS, and of its places and their classes in
    their order, which the split follows.

    Raises:
        ClippanError: it cannot be read, or has no such layer or field.
    """
    labelled = LabelledLayer(path, layer, field)
    found = hashlib.sha256(b"" if labelled.crs is None else short_crs(labelled.crs.ExportToWkt()).encode())
    for word, geometry in labelled.records():
        found.update(b"\n" + word.encode() + b"\n" + geometry)
    return found.hexdigest()


def _no_samples_reason(path: str, field: str, beyond: int, lost: int, own: str, there: str) -> str:
    """Why there is no sample at all.

    Args:
        path, field: which were read.
        beyond: how many lie outside the rasters.
        lost: how many could not be brought to the rasters' CRS.
        own, there: names of the samples' CRS and the rasters'; empty where it is not known.
    """
    if lost and not beyond and own and there:
        return Message(
            "None of the samples {path} can be brought from their CRS ({own}) to that of the rasters ({there}); give "
            "them the CRS that their coordinates are in.",
            path=path,
            own=own,
            there=there,
        )
    if beyond and own and not there:
        return Message(
            "None of the samples {path} lie on the rasters, which have no coordinates, while the samples are in "
            "{own}; georeference the rasters first.",
            path=path,
            own=own,
        )
    if beyond and there and not own:
        return Message(
            "None of the samples {path} lie on the rasters, whose CRS ({there}) was assumed since theirs is not "
            "known; give them the CRS that their coordinates are in.",
            path=path,
            there=there,
        )
    if beyond:
        return Message("None of the samples {path} lie on the rasters; check that both show the same place.", path=path)
    return Message(
        "None of the samples {path} has both a place and a class in the field {field}; choose the field that holds "
        "the class.",
        path=path,
        field=field,
    )


def _sorted_classes(words: set[str]) -> list[str]:
    if all(re.fullmatch(r"-?\d+", word) for word in words):
        return sorted(words, key=lambda word: (int(word), word))  # 1 and 01 are two
    return sorted(words)


def _similar_name_hints(names: Sequence[str]) -> list[str]:
    """A sentence about classes that may be meant to be one."""
    folded = [name.casefold() for name in names]
    same = [name for name, word in zip(names, folded) if folded.count(word) > 1]
    if not same:
        return []
    alike = join_names(sorted(same, key=lambda name: (name.casefold(), name)))
    return [
        Message(
            "Classes that differ in case only were kept apart ({alike}); give those that are one the same name.",
            alike=alike,
        )
    ]


def _pixel_numbers(
    geometry: ogr.Geometry, grid: Grid, path: str, rng: np.random.Generator, context: Context
) -> tuple[np.ndarray, bool]:
    """Pixels of a geometry as row × width + column, and whether it is made of points."""
    if ogr.GT_Flatten(geometry.GetGeometryType()) in (ogr.wkbPoint, ogr.wkbMultiPoint):
        rows, columns = covered_pixels(geometry, grid, path)
        return rows * grid.width + columns, True
    parts = [np.empty(0, int)]
    for window in _touched_tiles(geometry, grid):
        context.raise_if_cancelled()
        right, bottom = window.x + window.width, window.y + window.height
        rows, columns = covered_pixels(geometry, grid.cropped(window.x, window.y, right, bottom), path)
        if len(rows) > _MAX_PER_TILE:
            some = np.sort(rng.choice(len(rows), _MAX_PER_TILE, replace=False))
            rows, columns = rows[some], columns[some]
        parts.append((rows + window.y) * grid.width + columns + window.x)
    found = np.concatenate(parts)
    if not len(found):
        rows, columns = _pixel_of_small_polygon(geometry, grid, path)
        found = rows * grid.width + columns
    return found, False


def _pixel_of_small_polygon(geometry: ogr.Geometry, grid: Grid, path: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixel that a polygon without any pixel's centre lies in, if it reaches into the grid."""
    size = ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height), (0, 0))
    corners = [gdal.ApplyGeoTransform(grid.geotransform, *corner) for corner in size]
    ring = ", ".join(f"{x!r} {y!r}" for x, y in corners)
    nothing = np.empty(0, int), np.empty(0, int)
    try:
        geometry = geometry.MakeValid()
        inside = geometry.Intersection(ogr.CreateGeometryFromWkt(f"POLYGON (({ring}))"))
    except RuntimeError:  # its coordinates are no numbers
        return nothing
    # What has an area does not reach into the grid if it only touches its edge.
    outside = inside.IsEmpty() or inside.GetDimension() < geometry.GetDimension()
    return nothing if outside else covered_pixels(inside.PointOnSurface(), grid, path)


def _touched_tiles(geometry: ogr.Geometry, grid: Grid) -> Iterator[Window]:
    """Those of the grid that a geometry's envelope touches."""
    west, east, south, north = geometry.GetEnvelope()
    inverse = gdal.InvGeoTransform(grid.geotransform)
    places = [gdal.ApplyGeoTransform(inverse, x, y) for x in (west, east) for y in (south, north)]
    columns, rows = zip(*places)
    for window in tiles(grid.width, grid.height, _TILE):
        across = max(columns) > window.x and min(columns) < window.x + window.width
        if across and max(rows) > window.y and min(rows) < window.y + window.height:
            yield window


def _unambiguous(flat: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Which to keep so that each pixel has one label, and how many pixels had several."""
    pairs = np.unique(np.stack([flat, labels]), axis=1)
    places, counts = np.unique(pairs[0], return_counts=True)
    disputed = places[counts > 1]
    first = np.unique(flat, return_index=True)[1]
    return np.sort(first[~np.isin(flat[first], disputed)]), len(disputed)


def _groups(
    rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, owners: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, str]:
    """What lies together: a polygon, unless it is the only one of its class; all else by blocks, which are made smaller
    until each class has two, unless it has not even two of the smallest."""
    alone = points.copy()
    for label in np.unique(labels):
        mine = labels == label
        if len(np.unique(owners[mine & ~points])) == 1:
            alone |= mine & ~points
    if not alone.any():
        return np.unique(owners, return_inverse=True)[1], "polygon"

    def blocked(edge: int) -> tuple[np.ndarray, set[int]]:
        """The groups, and the classes that have two or more."""
        blocks = rows // edge * (int(columns.max()) // edge + 1) + columns // edge
        groups = np.unique(np.where(alone, blocks + owners.max() + 1, owners), return_inverse=True)[1]
        split = {int(label) for label in np.unique(labels) if len(np.unique(groups[labels == label])) > 1}
        return groups, split

    _, most = blocked(_BLOCKS[-1])
    for edge in _BLOCKS:
        groups, split = blocked(edge)
        if split == most:
            break
    key = "block of {edge} pixels" if alone.all() else "polygon or block of {edge} pixels"
    return groups, Message(key, edge=edge)


def _draw(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most ``PIXELS`` of each class, one of each of its groups in turn."""
    drawn = []
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))
        mine = mine[np.argsort(groups[mine], kind="stable")]
        starts = np.flatnonzero(np.diff(groups[mine], prepend=-1))
        turn = np.arange(len(mine)) - np.repeat(starts, np.diff([*starts, len(mine)]))
        drawn.append(mine[np.argsort(turn, kind="stable")][:MAX_PIXELS_PER_CLASS])
    return np.sort(np.concatenate(drawn))

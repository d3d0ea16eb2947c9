"""Samples: labelled pixels from points or polygons, in spatial groups for cross-validation."""

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
from clippan.labels.labelled_pixels import covered_pixels, envelope_corners
from clippan.labels.layers import LabelledLayer, crs_name
from clippan.raster.grid import Grid
from clippan.raster.rendering import short_crs, spatial_reference
from clippan.raster.tiles import Window, tiles

MAX_PIXELS_PER_CLASS = 500  # for training; more are slow and improve little
_MAX_PER_TILE = 2000  # pixels of a polygon in a tile
_TILE = 1024  # edge of the tiles in which polygons are rasterised
_BLOCKS = (32, 16, 8)  # edges of the blocks that group samples, in pixels


@dataclass(frozen=True)
class Samples:
    """Labelled pixels.

    Attributes:
        names: of the classes, sorted; whole numbers by value.
        rows, columns: in the grid, (n,).
        labels: the class of each, from 0, (n,).
        groups: the polygon or block of each, which cross-validation leaves out together, from 0, (n,).
        split: what the groups are: "polygon", "block of 32 pixels", or "polygon or block of 32 pixels".
        hints: for the user.
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
        """Number of pixels of each class."""
        return tuple(int(count) for count in np.bincount(self.labels, minlength=len(self.names)))

    @property
    def groups_per_class(self) -> tuple[int, ...]:
        """Number of groups of each class."""
        return tuple(len(np.unique(self.groups[self.labels == number])) for number in range(len(self.names)))

    def subset(self, kept: np.ndarray) -> Samples:
        """The samples selected by a mask (n,)."""
        rows, columns, labels, groups = (values[kept] for values in (self.rows, self.columns, self.labels, self.groups))
        return replace(self, rows=rows, columns=columns, labels=labels, groups=groups)


def read_samples(path: str, layer: str, field: str, grid: Grid, seed: int, context: Context) -> Samples:
    """Reads samples.

    Args:
        path: a vector file.
        layer: its layer; empty for the first with labelled features.
        field: with the class; features without a value are ignored.
        grid: the pixels, with a geotransform.
        seed: of the random selection where there are too many.
        context: receives the progress.

    Raises:
        ClippanError: the file cannot be read, has no such field or layer or fewer than two classes, or does not overlap
            the grid.
    """
    rng = np.random.default_rng(seed)
    labelled = LabelledLayer(path, layer, field)
    features, feature_names = [], []
    outside_names: list[str] = []  # classes of features outside the rasters
    untransformed: list[str] = []  # classes of features that cannot be transformed to their CRS
    for name, geometry in labelled.features(grid, context):
        if geometry is None:
            untransformed.append(name)
            continue
        flat, is_point = _pixel_numbers(geometry, grid, path, rng, context)
        if len(flat):
            features.append((flat, is_point))
            feature_names.append(name)
        else:
            outside_names.append(name)
    samples_crs, grid_crs = crs_name(labelled.crs), crs_name(spatial_reference(grid.crs) if grid.crs else None)
    if not features:
        raise ClippanError(
            _no_samples_reason(path, field, len(outside_names), len(untransformed), samples_crs, grid_crs)
        )
    names = _sorted_classes(set(feature_names))
    outside = _sorted_classes({*outside_names, *untransformed} - set(feature_names))
    if len(names) < 2:
        if outside:
            raise ClippanError(
                "The samples {path} have only the class {name} on the rasters (all samples of {outside} lie outside); "
                "add samples of another class.",
                path=path,
                name=names[0],
                outside=join_names(outside),
            )
        raise ClippanError(
            "The samples {path} have only the class {name}; add samples of another class.", path=path, name=names[0]
        )
    if len(names) > MAX_CLASSES:
        raise ClippanError(
            "The field {field} has {count} different values, but a map can have at most {most} classes; choose the "
            "field that holds the class.",
            field=field,
            count=len(names),
            most=MAX_CLASSES,
        )
    hints = [*labelled.hints, *_similar_name_hints(names), *labelled.assumed_crs_hints(grid)]
    if outside_names or untransformed:
        count = len(outside_names) + len(untransformed)
        hints.append(Message("Samples outside the rasters were ignored ({count}).", count=count))
    if outside:
        hints.append(
            Message(
                "All samples of {classes} lie outside the rasters; the map will not have these classes.",
                classes=join_names(outside),
            )
        )
    label_of = {name: value for value, name in enumerate(names)}
    sizes = [len(flat) for flat, _ in features]
    everything = np.concatenate([flat for flat, _ in features])
    labels = np.repeat([label_of[name] for name in feature_names], sizes)
    owners = np.repeat(np.arange(len(features)), sizes)
    points = np.repeat([is_point for _, is_point in features], sizes)
    kept, conflicts = _unambiguous(everything, labels)
    if conflicts:
        hints.append(Message("Pixels labelled with several classes were ignored ({count}).", count=conflicts))
    gone = sorted(set(range(len(names))) - set(labels[kept].tolist()))
    if gone:
        raise ClippanError(
            "All pixels of {name} are also labelled with another class; correct the samples {path}.",
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
                "At most {count} labelled pixels of each class were used, drawn evenly from its places.",
                count=MAX_PIXELS_PER_CLASS,
            )
        )
    return Samples(tuple(names), rows[drawn], columns[drawn], labels[drawn], groups[drawn], split, tuple(hints))


def samples_sha256(path: str, layer: str, field: str) -> str:
    """The sha256 of a layer's CRS and of its geometries and classes in their order, which identifies copies of it.

    Raises:
        ClippanError: the file cannot be read, or has no such layer or field.
    """
    labelled = LabelledLayer(path, layer, field)
    found = hashlib.sha256(b"" if labelled.crs is None else short_crs(labelled.crs.ExportToWkt()).encode())
    for word, geometry in labelled.records():
        found.update(b"\n" + word.encode() + b"\n" + geometry)
    return found.hexdigest()


def _no_samples_reason(path: str, field: str, outside: int, untransformed: int, samples_crs: str, grid_crs: str) -> str:
    """Why there are no samples.

    Args:
        path, field: the file and its field.
        outside: number of features outside the rasters.
        untransformed: number of features that could not be transformed to the rasters' CRS.
        samples_crs, grid_crs: names of the CRSs; empty if unknown.
    """
    if untransformed and not outside and samples_crs and grid_crs:
        return Message(
            "No sample of {path} can be transformed from its CRS ({samples_crs}) to that of the rasters "
            "({raster_crs}); assign the CRS of the coordinates to the samples.",
            path=path,
            samples_crs=samples_crs,
            raster_crs=grid_crs,
        )
    if outside and samples_crs and not grid_crs:
        return Message(
            "No sample of {path} lies on the rasters, which have no coordinates, while the samples are in {crs}; "
            "georeference the rasters first.",
            path=path,
            crs=samples_crs,
        )
    if outside and grid_crs and not samples_crs:
        return Message(
            "No sample of {path} lies on the rasters, whose CRS ({crs}) was assumed because that of the samples is "
            "unknown; assign the CRS of the coordinates to the samples.",
            path=path,
            crs=grid_crs,
        )
    if outside:
        return Message("No sample of {path} lies on the rasters; check that both show the same area.", path=path)
    return Message(
        "No sample of {path} has both a geometry and a class in the field {field}; choose the field that holds the "
        "class.",
        path=path,
        field=field,
    )


def _sorted_classes(names: set[str]) -> list[str]:
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # 1 and 01 are different
    return sorted(names)


def _similar_name_hints(names: Sequence[str]) -> list[str]:
    """A hint about classes whose names differ only in case."""
    folded = [name.casefold() for name in names]
    same = [name for name, word in zip(names, folded) if folded.count(word) > 1]
    if not same:
        return []
    alike = join_names(sorted(same, key=lambda name: (name.casefold(), name)))
    return [
        Message(
            "Classes whose names differ only in case are different classes ({names}); give them the same name if they "
            "are one.",
            names=alike,
        )
    ]


def _pixel_numbers(
    geometry: ogr.Geometry, grid: Grid, path: str, rng: np.random.Generator, context: Context
) -> tuple[np.ndarray, bool]:
    """Pixels of a geometry as row × width + column, and whether it consists of points."""
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
    """The pixel of a polygon that contains no pixel centre, if it overlaps the grid."""
    size = ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height), (0, 0))
    corners = [gdal.ApplyGeoTransform(grid.geotransform, *corner) for corner in size]
    ring = ", ".join(f"{x!r} {y!r}" for x, y in corners)
    nothing = np.empty(0, int), np.empty(0, int)
    try:
        geometry = geometry.MakeValid()
        inside = geometry.Intersection(ogr.CreateGeometryFromWkt(f"POLYGON (({ring}))"))
    except RuntimeError:  # its coordinates are not finite
        return nothing
    # A polygon that only touches the grid's edge lies outside.
    outside = inside.IsEmpty() or inside.GetDimension() < geometry.GetDimension()
    return nothing if outside else covered_pixels(inside.PointOnSurface(), grid, path)


def _touched_tiles(geometry: ogr.Geometry, grid: Grid) -> Iterator[Window]:
    """The tiles of the grid that a geometry's envelope overlaps."""
    columns, rows = envelope_corners(geometry, grid).T.tolist()
    for window in tiles(grid.width, grid.height, _TILE):
        across = max(columns) > window.x and min(columns) < window.x + window.width
        if across and max(rows) > window.y and min(rows) < window.y + window.height:
            yield window


def _unambiguous(flat: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Indices of one sample for each pixel with a single label, and the number of pixels with several."""
    pairs = np.unique(np.stack([flat, labels]), axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    disputed = numbers[counts > 1]
    first = np.unique(flat, return_index=True)[1]
    return np.sort(first[~np.isin(flat[first], disputed)]), len(disputed)


def _groups(
    rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, owners: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, str]:
    """Spatial groups: polygons, except a class's only one, and blocks of all other samples.

    The largest block size is used with which as many classes have at least two groups as with the smallest.
    """
    alone = points.copy()
    for label in np.unique(labels):
        mine = labels == label
        if len(np.unique(owners[mine & ~points])) == 1:
            alone |= mine & ~points
    if not alone.any():
        return np.unique(owners, return_inverse=True)[1], "polygon"

    def blocked(edge: int) -> tuple[np.ndarray, set[int]]:
        """The groups, and the classes with at least two."""
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
    """Indices of at most ``MAX_PIXELS_PER_CLASS`` samples of each class, drawn from its groups in turn."""
    drawn = []
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))
        mine = mine[np.argsort(groups[mine], kind="stable")]
        starts = np.flatnonzero(np.diff(groups[mine], prepend=-1))
        turn = np.arange(len(mine)) - np.repeat(starts, np.diff([*starts, len(mine)]))
        drawn.append(mine[np.argsort(turn, kind="stable")][:MAX_PIXELS_PER_CLASS])
    return np.sort(np.concatenate(drawn))

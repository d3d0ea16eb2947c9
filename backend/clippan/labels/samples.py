"""Samples: labelled pixels from points or polygons, in spatial groups for cross-validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
from osgeo import gdal, ogr

from clippan.catalogue.prompts import MAX_CLASSES
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.labels.layers import LabelledLayer, crs_name
from clippan.labels.pixels import covered_pixels, envelope_corners, squares_with_pixels
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
        names: of the classes.
        rows, columns: in the grid, (n,).
        labels: the class of each, from 0, (n,).
        groups: the polygon, point or block of each, which cross-validation leaves out together, from 0, (n,).
        group_unit: what the groups are: "polygon", "block of 32 pixels", or "polygon or block of 32 pixels".
        hints: for the user.
        lost_names: classes of the file without a sample on the raster's valid pixels.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    columns: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    group_unit: str
    hints: tuple[str, ...]
    lost_names: tuple[str, ...] = ()

    @property
    def pixels_per_class(self) -> tuple[int, ...]:
        """Number of pixels of each class."""
        return tuple(map(int, np.bincount(self.labels, minlength=len(self.names))))

    @property
    def groups_per_class(self) -> tuple[int, ...]:
        """Number of groups of each class."""
        return tuple(len(np.unique(self.groups[self.labels == label])) for label in range(len(self.names)))

    @property
    def window(self) -> Window:
        """The bounding window of all pixels."""
        left, top = int(self.columns.min()), int(self.rows.min())
        return Window(left, top, int(self.columns.max()) - left + 1, int(self.rows.max()) - top + 1)

    def valid_mask(
        self, grid: Grid, size: int, read_mask: Callable[[Window], np.ndarray], context: Context
    ) -> np.ndarray:
        """Which lie on valid pixels of a grid, by the masks of squares of ``size`` pixels; bool (n,)."""
        valid = np.zeros(len(self.rows), bool)
        for window, inside in squares_with_pixels(self.rows, self.columns, grid, size):
            context.raise_if_cancelled()
            valid[inside] = read_mask(window)[self.rows[inside] - window.y, self.columns[inside] - window.x]
        return valid

    def subset(self, kept: np.ndarray) -> Samples:
        """The samples selected by a mask (n,) or by their indices."""
        rows, columns, labels, groups = (values[kept] for values in (self.rows, self.columns, self.labels, self.groups))
        return replace(self, rows=rows, columns=columns, labels=labels, groups=groups)


def read_samples(path: str, layer: str, field: str, grid: Grid, seed: int, context: Context) -> Samples:
    """Reads samples on a grid with a geotransform. Their classes are the values of a field, sorted, whole numbers by
    value; features without a value are ignored.

    Args:
        path, layer: a vector file and its layer; empty for the first with labelled features.
        field: with the class.
        grid: the pixels.
        seed: of the random selection where there are too many.
        context: receives the progress.

    Raises:
        ClippanError: the file cannot be read, has no such field or layer or fewer than two classes, or does not overlap
            the grid.
    """
    rng = np.random.default_rng(seed)
    labelled = LabelledLayer(path, layer, field)
    features: list[tuple[str, np.ndarray, bool]] = []  # class, pixels as row × width + column, and whether points
    outside_names: list[str] = []  # classes of features outside the rasters
    untransformed: list[str] = []  # classes of features that cannot be transformed to their CRS
    for name, geometry in labelled.features(grid, context):
        if geometry is None:
            untransformed.append(name)
            continue
        is_point = ogr.GT_Flatten(geometry.GetGeometryType()) in (ogr.wkbPoint, ogr.wkbMultiPoint)
        if is_point:
            rows, columns = covered_pixels(geometry, grid, path)
            pixels = rows * grid.width + columns
        else:
            pixels = _polygon_pixels(geometry, grid, path, rng, context)
        if len(pixels):
            features.append((name, pixels, is_point))
        else:
            outside_names.append(name)
    if not features:
        raise _no_samples_error(labelled, field, grid, len(outside_names), len(untransformed))
    known = {name for name, _, _ in features}
    names = _sorted_classes(known)
    outside = _sorted_classes({*outside_names, *untransformed} - known)
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
    sizes = [len(pixels) for _, pixels, _ in features]
    flat = np.concatenate([pixels for _, pixels, _ in features])
    labels = np.repeat([names.index(name) for name, _, _ in features], sizes)
    owners = np.repeat(np.arange(len(features)), sizes)
    points = np.repeat([is_point for _, _, is_point in features], sizes)
    kept, conflicts = _unambiguous(flat, labels)
    if conflicts:
        hints.append(Message("Pixels labelled with several classes were ignored ({count}).", count=conflicts))
    conflicting = np.setdiff1d(np.arange(len(names)), labels[kept])
    if len(conflicting):
        raise ClippanError(
            "All pixels of {name} are also labelled with another class; correct the samples {path}.",
            name=names[conflicting[0]],
            path=path,
        )
    flat, labels, owners, points = (values[kept] for values in (flat, labels, owners, points))
    rows, columns = np.divmod(flat, grid.width)
    groups, group_unit = _groups(rows, columns, labels, owners, points)
    drawn = _balanced_subset(labels, groups, rng)
    if len(drawn) < len(labels):
        hints.append(
            Message(
                "At most {count} labelled pixels of each class were used, drawn evenly from its places.",
                count=MAX_PIXELS_PER_CLASS,
            )
        )
    return Samples(tuple(names), rows, columns, labels, groups, group_unit, tuple(hints)).subset(drawn)


def samples_sha256(path: str, layer: str, field: str) -> str:
    """The sha256 of a layer's CRS and of its geometries and classes in their order, which identifies copies of it.
    Raises ClippanError if the file cannot be read, or has no such layer or field."""
    labelled = LabelledLayer(path, layer, field)
    digest = hashlib.sha256(b"" if labelled.crs is None else short_crs(labelled.crs.ExportToWkt()).encode())
    for name, geometry in labelled.records():
        digest.update(b"\n" + name.encode() + b"\n" + geometry)
    return digest.hexdigest()


def _no_samples_error(layer: LabelledLayer, field: str, grid: Grid, outside: int, untransformed: int) -> ClippanError:
    """Why no feature lies on the rasters, by how many lie outside and how many cannot be transformed to their CRS."""
    path, samples_crs = layer.path, crs_name(layer.crs)
    grid_crs = crs_name(spatial_reference(grid.crs) if grid.crs else None)
    if untransformed and not outside and samples_crs and grid_crs:
        return ClippanError(
            "No sample of {path} can be transformed from its CRS ({samples_crs}) to that of the rasters "
            "({raster_crs}); assign the CRS of the coordinates to the samples.",
            path=path,
            samples_crs=samples_crs,
            raster_crs=grid_crs,
        )
    if outside and samples_crs and not grid_crs:
        return ClippanError(
            "No sample of {path} lies on the rasters, which have no coordinates, while the samples are in {crs}; "
            "georeference the rasters first.",
            path=path,
            crs=samples_crs,
        )
    if outside and grid_crs and not samples_crs:
        return ClippanError(
            "No sample of {path} lies on the rasters, whose CRS ({crs}) was assumed because that of the samples is "
            "unknown; assign the CRS of the coordinates to the samples.",
            path=path,
            crs=grid_crs,
        )
    if outside:
        return ClippanError("No sample of {path} lies on the rasters; check that both show the same area.", path=path)
    return ClippanError(
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
    alike = [name for name, word in zip(names, folded) if folded.count(word) > 1]
    if not alike:
        return []
    return [
        Message(
            "Classes whose names differ only in case are different classes ({names}); give them the same name if they "
            "are one.",
            names=join_names(sorted(alike, key=lambda name: (name.casefold(), name))),
        )
    ]


def _polygon_pixels(
    geometry: ogr.Geometry, grid: Grid, path: str, rng: np.random.Generator, context: Context
) -> np.ndarray:
    """Pixels of a polygon as row × width + column, of each tile at most ``_MAX_PER_TILE``."""
    parts = [np.empty(0, int)]
    corners = envelope_corners(geometry, grid)
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    for tile in tiles(grid.width, grid.height, _TILE):
        end_column, end_row = tile.x + tile.width, tile.y + tile.height
        if not (right > tile.x and left < end_column and bottom > tile.y and top < end_row):
            continue
        context.raise_if_cancelled()
        rows, columns = covered_pixels(geometry, grid.cropped(tile.x, tile.y, end_column, end_row), path)
        if len(rows) > _MAX_PER_TILE:
            chosen = np.sort(rng.choice(len(rows), _MAX_PER_TILE, replace=False))
            rows, columns = rows[chosen], columns[chosen]
        parts.append((rows + tile.y) * grid.width + columns + tile.x)
    pixels = np.concatenate(parts)
    if not len(pixels):
        rows, columns = _pixel_of_small_polygon(geometry, grid, path)
        pixels = rows * grid.width + columns
    return pixels


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


def _unambiguous(flat: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Indices of one sample for each pixel with a single label, and the number of pixels with several."""
    pairs = np.unique(np.stack([flat, labels]), axis=1)
    pixels, counts = np.unique(pairs[0], return_counts=True)
    disputed = pixels[counts > 1]
    first = np.unique(flat, return_index=True)[1]
    return np.sort(first[~np.isin(flat[first], disputed)]), len(disputed)


def _groups(
    rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, owners: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, str]:
    """Spatial groups: polygons, except a class's only one, and blocks of all other samples, of the largest size with
    which as many classes have at least two groups as with the smallest."""
    in_blocks = points.copy()
    for label in np.unique(labels):
        in_polygons = (labels == label) & ~points
        if len(np.unique(owners[in_polygons])) == 1:
            in_blocks |= in_polygons
    if not in_blocks.any():
        return np.unique(owners, return_inverse=True)[1], "polygon"

    def blocked(edge: int) -> tuple[np.ndarray, set[int]]:
        """The groups, and the classes with at least two."""
        blocks = rows // edge * (int(columns.max()) // edge + 1) + columns // edge
        groups = np.unique(np.where(in_blocks, blocks + owners.max() + 1, owners), return_inverse=True)[1]
        split = {int(label) for label in np.unique(labels) if len(np.unique(groups[labels == label])) > 1}
        return groups, split

    _, separable = blocked(_BLOCKS[-1])
    for edge in _BLOCKS:
        groups, split = blocked(edge)
        if split == separable:
            break
    key = "block of {edge} pixels" if in_blocks.all() else "polygon or block of {edge} pixels"
    return groups, Message(key, edge=edge)


def _balanced_subset(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most ``MAX_PIXELS_PER_CLASS`` samples of each class, drawn from its groups in turn."""
    drawn = []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        indices = indices[np.argsort(groups[indices], kind="stable")]
        starts = np.flatnonzero(np.diff(groups[indices], prepend=-1))
        rank_in_group = np.arange(len(indices)) - np.repeat(starts, np.diff([*starts, len(indices)]))
        drawn.append(indices[np.argsort(rank_in_group, kind="stable")][:MAX_PIXELS_PER_CLASS])
    return np.sort(np.concatenate(drawn))

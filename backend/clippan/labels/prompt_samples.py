"""Samples of the classes of a prompt table, from polygons, points or a raster of classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from osgeo import gdal

from clippan.catalogue.prompts import PromptTable
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.labels.layers import LabelledLayer, crs_name
from clippan.labels.pixels import covered_pixels
from clippan.labels.samples import Samples
from clippan.raster import source as sources
from clippan.raster.rendering import Renderer
from clippan.raster.tiles import Window, tiles

_MAX_PER_GROUP = 4000  # pixels of a polygon or block; more of them are alike
_BLOCK = 128  # edge of the blocks of a raster of classes, which are its groups
_MASK_WINDOW = 512  # edge of the windows in which nodata is read
_UNLABELLED = 255  # customary value of unlabelled pixels in rasters of classes

_Group = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns and labels of its pixels


def read_prompt_samples(
    path: str, layer: str, field: str, table: PromptTable, scene: Renderer, context: Context
) -> Samples:
    """Reads samples of a table's classes, those on nodata left out. Their groups are polygons, points or blocks.

    Args:
        path: a vector file with polygons or points, or a raster on the scene's grid with values 1 to N; 0, 255 and its
            nodata value are unlabelled.
        layer: of the vector file; empty for the first with labelled features.
        field: of the vector file, with the name of a class, a synonym of it, or its number.
        table: the classes.
        scene: the raster.
        context: receives the progress.

    Raises:
        ClippanError: the file cannot be read, has another size or an unknown class, or no sample lies on the raster.
    """
    hints: list[str] = []
    opened = LabelledLayer(path, layer, field) if _is_vector(path) else None
    if opened:
        groups, seen, outside = _read_features(opened, table, scene, context)
        hints = [*opened.hints, *opened.assumed_crs_hints(scene.grid)]
        if outside:
            hints.append(
                Message(
                    "Labels of {path} outside {raster} were ignored ({count}).",
                    path=path,
                    raster=scene.path,
                    count=outside,
                )
            )
    else:
        groups, seen = _read_class_raster(path, table, scene, context), set()
    if not groups and opened and opened.crs and not scene.grid.crs:
        raise ClippanError(
            "No label of {path} lies on the raster {raster}, which has no coordinates, while the labels are in {crs}; "
            "georeference the raster first.",
            path=path,
            raster=scene.path,
            crs=crs_name(opened.crs),
        )
    if not groups:
        raise ClippanError(
            "No label of {path} lies on the raster {raster}; check that both show the same area.",
            path=path,
            raster=scene.path,
        )
    rows, columns, labels = (np.concatenate(parts) for parts in zip(*groups))
    group_numbers = np.repeat(np.arange(len(groups)), [len(group[0]) for group in groups])
    samples = Samples(table.names, rows, columns, labels, group_numbers, "", tuple(hints))

    def read_mask(window: Window) -> np.ndarray:
        return scene.picture_and_mask(window, window.width, window.height)[1]

    valid = samples.valid_mask(scene.grid, _MASK_WINDOW, read_mask, context)
    if not valid.any():
        raise ClippanError(
            "All labels of {path} lie on nodata of {raster}; label other places.", path=path, raster=scene.path
        )
    lost = {*seen, *labels.tolist()} - set(labels[valid].tolist())
    return replace(samples.subset(valid), lost_names=tuple(table.names[label] for label in lost))


def _is_vector(path: str) -> bool:
    try:
        return bool(gdal.OpenEx(path, gdal.OF_VECTOR).GetLayerCount())
    except RuntimeError:
        return False


def _thinned(rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, seed: int) -> _Group:
    if len(rows) > _MAX_PER_GROUP:
        kept = np.sort(np.random.default_rng(seed).choice(len(rows), _MAX_PER_GROUP, replace=False))
        rows, columns, labels = rows[kept], columns[kept], labels[kept]
    return rows, columns, labels


def _read_class_raster(path: str, table: PromptTable, scene: Renderer, context: Context) -> list[_Group]:
    dataset = sources.open_dataset(path, Message("raster of classes"))
    if (dataset.RasterXSize, dataset.RasterYSize) != (scene.grid.width, scene.grid.height):
        raise ClippanError(
            "The raster of classes {path} has {width} × {height} pixels and {raster} has {raster_width} × "
            "{raster_height}; resample it to the grid of the raster.",
            path=path,
            width=dataset.RasterXSize,
            height=dataset.RasterYSize,
            raster=scene.path,
            raster_width=scene.grid.width,
            raster_height=scene.grid.height,
        )
    band = dataset.GetRasterBand(1)
    ignored = {0, _UNLABELLED, band.GetNoDataValue()}
    groups = []
    windows = tiles(scene.grid.width, scene.grid.height, _BLOCK)
    for number, window in enumerate(windows):
        context.progress(100 * number / len(windows), "Reading the labels")
        values = band.ReadAsArray(window.x, window.y, window.width, window.height)
        labelled = ~np.isin(values, [value for value in ignored if value is not None]) & np.isfinite(values)
        rows, columns = np.nonzero(labelled)
        if not len(rows):
            continue
        classes = values[rows, columns]
        wrong = classes[(classes < 1) | (classes > len(table.classes)) | (classes != classes.astype(int))]
        if len(wrong):
            raise ClippanError(
                "The raster of classes {path} contains the value {value:g}, but the prompt table has classes 1 to "
                "{count}; correct the raster or the table.",
                path=path,
                value=wrong[0],
                count=len(table.classes),
            )
        groups.append(_thinned(rows + window.y, columns + window.x, classes.astype(int) - 1, number))
    return groups


def _read_features(
    layer: LabelledLayer, table: PromptTable, scene: Renderer, context: Context
) -> tuple[list[_Group], set[int], int]:
    """The groups on the raster, all labels of the layer, and the number of features outside the raster."""
    label_of = {" ".join(word.split()).casefold(): n for n, prompt in enumerate(table.classes) for word in prompt.words}
    label_of.update({str(label + 1): label for label in range(len(table.classes))})
    groups, seen, outside = [], set(), 0
    for number, (text, geometry) in enumerate(layer.features(scene.grid, context)):
        # A number from a floating point field ends in .0.
        label = label_of.get(text.casefold(), label_of.get(text[:-2] if text.endswith(".0") else text))
        if label is None:
            raise ClippanError(
                "The samples {path} have the class “{name}”, which is not in the prompt table; add it there, or give "
                "these samples another class.",
                path=layer.path,
                name=text,
            )
        seen.add(label)
        nothing = np.empty(0, int), np.empty(0, int)
        rows, columns = nothing if geometry is None else covered_pixels(geometry, scene.grid, layer.path)
        if len(rows):
            groups.append(_thinned(rows, columns, np.full(len(rows), label), number))
        else:
            outside += 1
    return groups, seen, outside

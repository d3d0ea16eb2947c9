"""Pictures with labelled boxes, from rasters and their labels: masks, or polygons of a vector layer."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
from osgeo import gdal, gdal_array, ogr
from PIL import Image

from clippan.core import texts
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, write_error
from clippan.jobs.rendering import Rendering, band_choice_sentences, rendering_hints
from clippan.jobs.train_clip import ImageFormat, RegionsRequest, RegionsResult
from clippan.labels.layers import LabelledLayer
from clippan.learn.clip.data import LabelledBox
from clippan.raster import source as sources
from clippan.raster.grid import Grid
from clippan.raster.scene import MIN_VALID_SHARE, Scene, SceneOptions
from clippan.raster.tiles import Window

TABLE = "regions.json"
_POLYGONS = (ogr.wkbPolygon, ogr.wkbMultiPolygon, ogr.wkbCurvePolygon, ogr.wkbMultiSurface)
_QUALITY = 95  # of JPEG


class LabelSource(Protocol):
    """Labels of a raster.

    Attributes:
        categories: all categories, if known before the raster is read; ``outside``: those entirely outside the raster.
        hints: for the user.
    """

    categories: set[str]
    outside: set[str]
    hints: list[str]

    def inside(self, window: Window, least: float, fill: float) -> list[LabelledBox]:
        """Boxes of the objects in a window, in its pixels."""


def run(request: RegionsRequest, context: Context) -> RegionsResult:
    started = time.monotonic()
    gdal.UseExceptions()
    output = Path(request.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ClippanError("The folder {path} is not empty; choose a new or an empty folder.", path=output)
    legend = texts.parse_legend(request.legend)
    try:
        with Outputs() as outputs:
            part = outputs.temporary_folder(str(output)) / "regions"
            (part / "pictures").mkdir(parents=True)
            entries, hints, categories, outside, seen = _write(request, legend, part, context)
            objects: dict[str, int] = {}
            for entry in entries:
                for box in entry["boxes"]:
                    objects[box["category"]] = objects.get(box["category"], 0) + 1
            if not entries and categories and categories == outside:
                raise ClippanError("No label lies on the rasters; check that both show the same area.")
            if not entries:
                raise ClippanError(
                    "No object is large enough or fills enough of its box; lower --least or --fill, or check the "
                    "legend and the labels."
                )
            small = sorted(categories - outside - set(objects))
            if outside:
                hints.append(
                    Message("All polygons of {classes} lie outside the rasters.", classes=", ".join(sorted(outside)))
                )
            if small:
                hints.append(
                    Message(
                        "No polygon of {classes} was used; they are too small, fill too little of their boxes, or lie "
                        "on nodata.",
                        classes=", ".join(small),
                    )
                )
            unseen = [name for name in dict.fromkeys(legend.values()) if name not in {*objects, *categories}]
            if unseen:
                hints.append(
                    Message("These classes of the legend were not found: {classes}.", classes=", ".join(unseen))
                )
            (part / TABLE).write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
            if output.exists():
                output.rmdir()
            part.replace(output)
    except OSError as error:
        raise write_error("folder", output, error) from error
    return RegionsResult(
        str(output),
        str(output / TABLE),
        len(entries),
        dict(sorted(objects.items())),
        (*hints, *rendering_hints(seen)),
        round(time.monotonic() - started, 3),
        tuple(seen),
    )


def _write(
    request: RegionsRequest, legend: Mapping[str, str], folder: Path, context: Context
) -> tuple[list[dict], list[str], set[str], set[str], list[Rendering]]:
    """Writes the pictures; returns the entries of the table, hints, all categories of vector files, those outside all
    rasters, and how the rasters were displayed."""
    look = SceneOptions((request.size,), (), request.overlap, request.bands, request.stretch, request.nodata)
    entries: list[dict] = []
    hints: list[str] = []
    categories: set[str] = set()
    inside: set[str] = set()
    seen: list[Rendering] = []
    count = len(request.rasters)
    for number, (raster, labels) in enumerate(zip(request.rasters, request.labels)):
        scene = Scene(raster, look)
        seen.append(scene.raster_picture)
        found = _open_labels(labels, scene, legend, request.layer, request.field)
        hints += found.hints
        categories |= found.categories
        inside |= found.categories - found.outside
        stem = re.sub(r"[^\w-]+", "_", Path(raster).stem) or "raster"
        plan, before = scene.tile_plan(request.size), len(entries)
        for place, window, _ in plan.tiles():
            context.progress(
                100 * (number + place / len(plan)) / count,
                Message("Raster {number} of {count}", number=number + 1, count=count),
            )
            boxes = found.inside(window, request.least, request.fill)
            if not boxes:
                continue
            picture, valid = scene.picture(window, window.width)
            if valid < MIN_VALID_SHARE:
                continue
            name = f"pictures/{number + 1}_{stem}_{window.x}_{window.y}.{request.format.value}"
            options: dict[str, Any] = {"quality": _QUALITY} if request.format is ImageFormat.JPEG else {}
            Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(folder / name, **options)
            entries.append({"file": name, "boxes": [{"box": box.box, "category": box.category} for box in boxes]})
        if len(entries) == before:
            hints.append(Message("Nothing was found in {raster}.", raster=raster))
    for sentence in band_choice_sentences(seen):
        context.log(sentence)
    return entries, hints, categories, categories - inside, seen


def _open_labels(path: str, scene: Scene, legend: Mapping[str, str], layer: str, field: str) -> LabelSource:
    """Opens a file of labels as a raster or as vectors."""
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_VECTOR)
    except RuntimeError:
        dataset = sources.open_dataset(path, "file of labels")  # raises an error with the reason
    if dataset.RasterCount:
        return MaskLabels(path, dataset, scene.grid, legend)
    return PolygonLabels(path, scene.grid, legend, layer, field)


class MaskLabels:
    """Labels from a mask of values or colours. Each connected part of a category is an object.

    Args:
        path: of the mask, for messages.
        dataset: the mask.
        grid: of the raster, which has as many pixels.
        legend: categories by value (``3``) or colour (``#3C1098``); empty for the category names of the band.
    """

    def __init__(self, path: str, dataset: gdal.Dataset, grid: Grid, legend: Mapping[str, str]) -> None:
        if (dataset.RasterXSize, dataset.RasterYSize) != (grid.width, grid.height):
            raise ClippanError(
                "The mask {path} has {width} × {height} pixels and its raster {raster_width} × {raster_height}; "
                "resample the mask to the grid of the raster (gdalwarp).",
                path=path,
                width=dataset.RasterXSize,
                height=dataset.RasterYSize,
                raster_width=grid.width,
                raster_height=grid.height,
            )
        self._path, self._dataset = path, dataset
        self.categories: set[str] = set()  # unknown until the mask is read
        self.outside: set[str] = set()
        self.hints: list[str] = []
        band = dataset.GetRasterBand(1)
        if not legend:
            names = band.GetCategoryNames() or []
            legend = {str(value): name for value, name in enumerate(names) if name and value}
        if not legend:
            raise ClippanError(
                "The meaning of the values of the mask {path} is unknown; give a legend (--legend).", path=path
            )
        colours = [bool(texts.COLOUR.fullmatch(value)) for value in legend]
        if any(colours) != all(colours):
            raise ClippanError("The legend mixes colours and numbers; use one kind for all values.")
        self._table = band.GetColorTable() if all(colours) and dataset.RasterCount < 3 else None
        if all(colours) and self._table is None and dataset.RasterCount < 3:
            raise ClippanError(
                "The legend has colours, but the mask {path} has none; use its values instead.", path=path
            )
        if not all(colours) and dataset.RasterCount > 1:
            raise ClippanError(
                "The mask {path} has colours; use them in the legend, as in #3C1098=building.", path=path
            )
        self._colours = all(colours)
        self._names = list(dict.fromkeys(legend.values()))
        try:
            self._values = {
                int(value[1:], 16) if self._colours else int(value): self._names.index(name) + 1
                for value, name in legend.items()
            }
        except ValueError:
            raise ClippanError(
                "The values of the legend are not whole numbers or colours; correct the legend."
            ) from None

    def _classes(self, window: Window) -> np.ndarray:
        """Numbers of categories from 1, uint8 (height, width); 0 for values not in the legend."""
        place = (window.x, window.y, window.width, window.height)
        try:
            if self._colours and self._table is None:
                red, green, blue = (self._dataset.GetRasterBand(band).ReadAsArray(*place) for band in (1, 2, 3))
                values = red.astype(np.int64) << 16 | green.astype(np.int64) << 8 | blue.astype(np.int64)
            else:
                values = self._dataset.GetRasterBand(1).ReadAsArray(*place).astype(np.int64)
        except RuntimeError as error:
            raise ClippanError(
                "The mask {path} cannot be read ({reason}); check the file.", path=self._path, reason=one_line(error)
            ) from error
        if self._table is not None:
            entries = [self._table.GetColorEntry(number) for number in range(self._table.GetCount())]
            lookup = np.array([red << 16 | green << 8 | blue for red, green, blue, _ in entries])
            values = lookup[values.clip(0, len(lookup) - 1)]
        classes = np.zeros(values.shape, np.uint8)
        for value, number in self._values.items():
            classes[values == value] = number
        return classes

    def inside(self, window: Window, least: float, fill: float) -> list[LabelledBox]:
        classes = self._classes(window)
        if not classes.any():
            return []
        dataset = gdal_array.OpenArray(classes)  # without coordinates, so that polygons are in pixels
        band = dataset.GetRasterBand(1)
        memory = ogr.GetDriverByName("Memory").CreateDataSource("")
        layer = memory.CreateLayer("parts", geom_type=ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn("class", ogr.OFTInteger))
        gdal.Polygonize(band, band, layer, 0)
        found = []
        for feature in layer:
            geometry = feature.GetGeometryRef()
            region = _region(self._names[feature.GetField(0) - 1], geometry, least, fill)
            if region:
                found.append(region)
        return found


class PolygonLabels:
    """Labels from the polygons of a vector layer, each of which is an object.

    Args:
        path: the file.
        grid: of the raster.
        legend: categories by the values of the field; empty if the field holds the categories.
        layer: its name; empty for the first with labelled features.
        field: its name.
    """

    def __init__(self, path: str, grid: Grid, legend: Mapping[str, str], layer: str, field: str) -> None:
        if not grid.crs:
            raise ClippanError(
                "The raster of {path} has no coordinates to place polygons by; georeference it, or use a mask.",
                path=path,
            )
        inverse = gdal.InvGeoTransform(grid.geotransform)
        if inverse is None:
            raise ClippanError("The raster of {path} has an invalid geotransform; georeference it again.", path=path)
        labelled = LabelledLayer(path, layer, field)
        self.hints = [*labelled.hints, *labelled.assumed_crs_hints(grid)]
        self.categories: set[str] = set()
        self.outside: set[str] = set()
        self._objects: list[tuple[str, ogr.Geometry, tuple[float, ...]]] = []
        frame = (0, grid.width, 0, grid.height)
        for value, geometry in labelled.features(grid, Context()):
            category = legend.get(value, "") if legend else value
            if not category or (geometry and ogr.GT_Flatten(geometry.GetGeometryType()) not in _POLYGONS):
                continue
            self.categories.add(category)
            pixels = None if geometry is None else _in_pixels(geometry, inverse)
            if pixels is None or not _overlap(pixels.GetEnvelope(), frame):
                self.outside.add(category)
                continue
            pixels = pixels if pixels.IsValid() else pixels.Buffer(0)
            self._objects.append((category, pixels, pixels.GetEnvelope()))
        self.outside -= {category for category, _, _ in self._objects}
        if not self.categories:
            raise ClippanError(
                "The layer of {path} has no polygon whose class in the field {field} is in the legend; choose another "
                "field or legend."
                if legend
                else "The layer of {path} has no polygon with a class in the field {field}; choose another field.",
                path=path,
                field=field,
            )

    def inside(self, window: Window, least: float, fill: float) -> list[LabelledBox]:
        right, bottom = window.x + window.width, window.y + window.height
        frame = _rectangle(window.x, window.y, right, bottom)
        found = []
        for category, geometry, envelope in self._objects:
            if not _overlap(envelope, (window.x, right, window.y, bottom)):
                continue
            region = _region(category, geometry.Intersection(frame), least, fill, window)
            if region:
                found.append(region)
        return found


def _overlap(some: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, right, top, bottom) share more than an edge."""
    return some[0] < other[1] and other[0] < some[1] and some[2] < other[3] and other[2] < some[3]


def _region(
    category: str, geometry: ogr.Geometry, least: float, fill: float, window: Optional[Window] = None
) -> Optional[LabelledBox]:
    """The bounding box of a geometry in pixels from the window's corner; None if too small or too little filled."""
    if geometry is None or geometry.IsEmpty():
        return None
    x, y = (window.x, window.y) if window else (0, 0)
    left, right, top, bottom = geometry.GetEnvelope()
    box = (math.floor(left - x), math.floor(top - y), math.ceil(right - x), math.ceil(bottom - y))
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) < least or geometry.GetArea() < fill * width * height:
        return None
    return LabelledBox(tuple(map(float, box)), category)


def _in_pixels(geometry: ogr.Geometry, inverse: Sequence[float]) -> ogr.Geometry:
    """A polygon or multipolygon in columns and rows."""
    if ogr.GT_Flatten(geometry.GetGeometryType()) != ogr.wkbPolygon:
        out = ogr.Geometry(ogr.wkbMultiPolygon)
        for number in range(geometry.GetGeometryCount()):
            out.AddGeometry(_in_pixels(geometry.GetGeometryRef(number), inverse))
        return out
    out = ogr.Geometry(ogr.wkbPolygon)
    for number in range(geometry.GetGeometryCount()):
        ring = ogr.Geometry(ogr.wkbLinearRing)
        for point in geometry.GetGeometryRef(number).GetPoints() or ():
            ring.AddPoint_2D(*gdal.ApplyGeoTransform(inverse, point[0], point[1]))
        out.AddGeometry(ring)
    return out


def _rectangle(left: float, top: float, right: float, bottom: float) -> ogr.Geometry:
    return ogr.CreateGeometryFromWkt(
        f"POLYGON(({left} {top},{right} {top},{right} {bottom},{left} {bottom},{left} {top}))"
    )

"""Polygons of a map of classes, as a vector file."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, cast

import numpy as np
from osgeo import gdal, ogr

from clippan.catalogue.prompts import SHAPEFILE_BYTES, PromptTable
from clippan.core.context import Context
from clippan.core.outputs import Outputs, write_output
from clippan.labels.areas import SQUARE_METRES_PER_HECTARE
from clippan.raster.rendering import PIXEL_GEOTRANSFORM, spatial_reference
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.segmentation import regions
from clippan.segmentation.outlines import BoundaryTracer, Rings, assemble_rings
from clippan.segmentation.simplify import kept_corners

_LAYER = "classes"
_FIELDS = {
    "value": ogr.OFTInteger,
    "class": ogr.OFTString,
    "confidence": ogr.OFTReal,
    "prompt": ogr.OFTString,
    "model": ogr.OFTString,
    "area_px": ogr.OFTInteger64,
    "hectares": ogr.OFTReal,
}
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile"}
_BATCH = 500  # polygons between checks for cancellation


def write_polygons(
    map_path: str,
    confidence_path: Optional[str],
    output: str,
    table: PromptTable,
    min_area: int,
    simplify: float,
    model: str,
    context: Context,
    outputs: Optional[Outputs] = None,
) -> int:
    """Writes the polygons of a map, completely or not at all, without unclassified pixels (value 0).

    Neighbours share their edges, simplified or not: there are neither gaps nor overlaps. Areas and confidences are
    those of a polygon's pixels, so that they add up to those of the map. Images without coordinates are placed as in
    QGIS, with y upwards from their top. Memory holds a strip of the map and its outlines (about 60 bytes per corner).

    Args:
        map_path, confidence_path: raster of the classes, uint8, and of their confidence, 0 to 1, on the same grid.
        output: the file, whose extension determines its format. GeoJSON is in WGS 84 (RFC 7946) if the raster has a
            CRS.
        table: the classes.
        min_area: of a polygon, in pixels; smaller ones are merged into their largest neighbour.
        simplify: how far outlines may move, in pixels.
        model: id of the model that made the map.
        context: receives the progress.
        outputs: the other outputs of the run, if any.

    Returns:
        The number of polygons.

    Raises:
        ClippanError: the map cannot be read, or the file cannot be written.
    """
    with regions.ClassMap(map_path, confidence_path) as source:
        found = regions.find_regions(source, min_area, context.subrange(0, 35))
        grid, tags = source.grid, source.tags
        tracer = BoundaryTracer(grid.width, grid.height)
        count = 0
        for _, classes in source.strips(context.subrange(35, 55)):
            component, number = regions.label_components(classes)
            tracer.add(found.region_of_component[count : count + number][component])
            count += number
    lines = tracer.lines(context)
    remaining = kept_corners(lines, simplify, context.subrange(55, 75))
    rings = assemble_rings(lines, found.classes > 0)
    context.raise_if_cancelled()
    x, y = lines.x[remaining].astype(float), lines.y[remaining].astype(float)
    g = grid.geotransform or PIXEL_GEOTRANSFORM
    points = np.stack([g[0] + x * g[1] + y * g[2], g[3] + x * g[4] + y * g[5]], axis=1)
    first = np.concatenate([[0], np.cumsum(remaining)])[lines.first]
    del tracer, lines, remaining, x, y
    crs = grid.crs if grid.geotransform else ""
    with write_output(output, outputs) as part:
        return _write(part, found, _outlines(points, first, rings), crs, table, model, tags, context.subrange(75, 100))


def _outlines(points: np.ndarray, first: np.ndarray, rings: Rings) -> Iterator[tuple[int, bytes]]:
    """Each region with its polygon as WKB, from the corners of all lines (n, 2), the index of each line's first corner
    (lines + 1,), and the rings of lines."""
    arrays = rings.steps, rings.first, rings.region, first
    steps, ends, owners, starts = (cast("list[int]", array.tolist()) for array in arrays)

    def ring(number: int) -> bytes:
        parts = []
        for step in steps[ends[number] : ends[number + 1]]:
            corners = points[starts[step // 2] : starts[step // 2 + 1]]
            parts.append((corners[::-1] if step % 2 else corners)[:-1])
        corners = np.concatenate([*parts, parts[0][:1]])
        return struct.pack("<I", len(corners)) + corners.astype("<f8").tobytes()

    for region, numbers in itertools.groupby(range(len(owners)), owners.__getitem__):
        parts = [ring(number) for number in numbers]
        yield region, struct.pack("<BII", 1, ogr.wkbPolygon, len(parts)) + b"".join(parts)


def _write(
    path: Path,
    found: regions.Regions,
    outlines: Iterator[tuple[int, bytes]],
    crs: str,
    table: PromptTable,
    model: str,
    tags: dict[str, str],
    context: Context,
) -> int:
    """Writes the file; returns the number of polygons. Raises OSError or RuntimeError if it cannot be written."""
    texts: list[tuple[str, ...]] = [(prompt.name, ", ".join(prompt.words), model) for prompt in table.classes]
    if path.suffix == ".shp":
        texts = [tuple(text.encode()[:SHAPEFILE_BYTES].decode(errors="ignore") for text in row) for row in texts]
    dataset = gdal.GetDriverByName(_DRIVERS[path.suffix]).Create(str(path), 0, 0, 0, gdal.GDT_Unknown)
    layer = feature = None
    try:
        layer = _create_layer(dataset, path, crs, tags)
        definition = layer.GetLayerDefn()
        total = max(int((found.classes > 0).sum()), 1)
        transaction = dataset.TestCapability(ogr.ODsCTransactions)
        if transaction:
            dataset.StartTransaction()
        count = 0
        for region, outline in outlines:
            if count % _BATCH == 0:
                context.progress(100 * count / total, "Writing polygons")
            count += 1
            value = int(found.classes[region])
            name, prompt, model = texts[value - 1]
            confidence, metres = float(found.confidence[region]), float(found.square_metres[region])
            hectares = metres / SQUARE_METRES_PER_HECTARE
            values = (value, name, confidence, prompt, model, int(found.pixels[region]), hectares)
            feature = ogr.Feature(definition)
            for index, item in enumerate(values):
                feature.SetField(index, None if isinstance(item, float) and math.isnan(item) else item)
            feature.SetGeometryDirectly(ogr.CreateGeometryFromWkb(outline))
            layer.CreateFeature(feature)
        if transaction:
            dataset.CommitTransaction()
        feature = layer = None
        dataset, closing = None, dataset
        close_dataset(closing)
        if path.suffix == ".geojson":  # GDAL does not report a full disk
            with path.open("rb") as file:
                file.seek(max(path.stat().st_size - 16, 0))
                if not file.read().endswith(b"]\n}\n"):
                    raise RuntimeError("the file is incomplete")
        return count
    finally:
        feature = layer = None
        close_after_failure(dataset)  # so that the folder can be removed in any case


def _create_layer(dataset: gdal.Dataset, path: Path, crs: str, tags: dict[str, str]) -> ogr.Layer:
    options = {
        ".geojson": ["RFC7946=YES"] if crs else [],
        ".fgb": [f"TEMPORARY_DIR={path.parent}"],
        ".shp": ["ENCODING=UTF-8"],
    }
    reference = spatial_reference(crs) if crs else None
    layer = dataset.CreateLayer(_LAYER, reference, ogr.wkbPolygon, options.get(path.suffix, []))
    for name, kind in _FIELDS.items():
        field = ogr.FieldDefn(name, kind)
        if path.suffix == ".shp" and kind == ogr.OFTString:
            field.SetWidth(SHAPEFILE_BYTES)
        layer.CreateField(field)
    if path.suffix == ".gpkg":
        layer.SetMetadata(tags)
    return layer

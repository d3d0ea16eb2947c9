"""Polygons of a map of classes, as a vector file."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, cast

import numpy as np
from osgeo import gdal, ogr

from clippan.catalogue.prompts import SHAPEFILE_BYTES, PromptTable
from clippan.core.context import Context
from clippan.core.outputs import Outputs, write_output
from clippan.labels.areas import SQUARE_METRES_PER_HECTARE
from clippan.raster.grid import Grid
from clippan.raster.rendering import PIXEL_GEOTRANSFORM, spatial_reference
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.segmentation import regions
from clippan.segmentation.outlines import BoundaryLines, BoundaryTracer, Rings, assemble_rings
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
        map_path: raster of the classes, uint8.
        confidence_path: raster of the confidence, 0 to 1, on the same grid, or None.
        output: the file, whose extension determines its format; it is replaced if it exists. GeoJSON is in WGS 84
            (RFC 7946) if the raster has a CRS.
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
        tracer = BoundaryTracer(source.grid.width, source.grid.height)
        count = 0
        for _, classes in source.strips(context.subrange(35, 55)):
            patch, number = regions.label_components(classes)
            tracer.add(found.region_of_component[count : count + number][patch])
            count += number
        grid, tags = source.grid, source.tags
    outlines = RegionOutlines.of(tracer.lines(context), found.classes > 0, simplify, grid, context.subrange(55, 75))
    writer = _Writer(grid.crs if grid.geotransform else "", table, model, tags)
    with write_output(output, outputs) as part:
        return writer.write(part, found, outlines, context.subrange(75, 100))


@dataclass(frozen=True)
class RegionOutlines:
    """Outlines of regions in the coordinates of the raster.

    Attributes:
        points: corners of all lines (n, 2).
        first: index of each line's first corner, and last the number of corners (lines + 1,).
        rings: the rings that the lines form.
    """

    points: np.ndarray
    first: np.ndarray
    rings: Rings

    @classmethod
    def of(
        cls, lines: BoundaryLines, wanted: np.ndarray, tolerance: float, grid: Grid, context: Context
    ) -> RegionOutlines:
        """Simplifies the lines and assembles the rings of the wanted regions."""
        remaining = kept_corners(lines, tolerance, context)
        together = assemble_rings(lines, wanted)
        context.raise_if_cancelled()
        x, y = lines.x[remaining].astype(float), lines.y[remaining].astype(float)
        g = grid.geotransform or PIXEL_GEOTRANSFORM
        points = np.stack([g[0] + x * g[1] + y * g[2], g[3] + x * g[4] + y * g[5]], axis=1)
        first = np.concatenate([[0], np.cumsum(remaining)])[lines.first]
        return cls(points, first, together)

    def polygons(self) -> Iterator[tuple[int, bytes]]:
        """Each region with its polygon as WKB."""
        arrays = self.rings.steps, self.rings.first, self.rings.region, self.first
        steps, ends, owners, first = (cast("list[int]", array.tolist()) for array in arrays)
        ring = 0
        while ring < len(owners):
            region, parts = owners[ring], []
            while ring < len(owners) and owners[ring] == region:
                parts.append(self._ring([(step // 2, step % 2) for step in steps[ends[ring] : ends[ring + 1]]], first))
                ring += 1
            yield region, struct.pack("<BII", 1, ogr.wkbPolygon, len(parts)) + b"".join(parts)

    def _ring(self, steps: list[tuple[int, int]], first: list[int]) -> bytes:
        parts = []
        for line, backwards in steps:
            corners = self.points[first[line] : first[line + 1]]
            parts.append((corners[::-1] if backwards else corners)[:-1])
        parts.append(parts[0][:1])
        corners = np.concatenate(parts)
        return struct.pack("<I", len(corners)) + corners.astype("<f8").tobytes()


class _Writer:
    def __init__(self, crs: str, table: PromptTable, model: str, tags: dict[str, str]) -> None:
        self._crs, self._model, self._tags = crs, model, tags
        self._texts = [(prompt.name, ", ".join(prompt.words)) for prompt in table.classes]

    def write(self, path: Path, found: regions.Regions, outlines: RegionOutlines, context: Context) -> int:
        """Writes the file; returns the number of polygons.

        Raises:
            OSError, RuntimeError: the file cannot be written.
        """
        self._ending = path.suffix
        dataset = gdal.GetDriverByName(_DRIVERS[self._ending]).Create(str(path), 0, 0, 0, gdal.GDT_Unknown)
        layer = feature = None
        try:
            layer = self._layer(dataset, str(path.parent))
            definition = layer.GetLayerDefn()
            total = max(int((found.classes > 0).sum()), 1)
            transaction = dataset.TestCapability(ogr.ODsCTransactions)
            if transaction:
                dataset.StartTransaction()
            count = 0
            for region, outline in outlines.polygons():
                if count % _BATCH == 0:
                    context.progress(100 * count / total, "Writing polygons")
                count += 1
                feature = ogr.Feature(definition)
                for index, value in enumerate(self._values(found, region)):
                    if value is None:
                        feature.SetFieldNull(index)
                    else:
                        feature.SetField(index, value)
                feature.SetGeometryDirectly(ogr.CreateGeometryFromWkb(outline))
                layer.CreateFeature(feature)
            if transaction:
                dataset.CommitTransaction()
            feature = layer = None
            dataset, closing = None, dataset
            close_dataset(closing)
            self._check(path)
            return count
        finally:
            feature = layer = None
            close_after_failure(dataset)  # so that the folder can be removed in any case

    def _check(self, path: Path) -> None:
        """Raises RuntimeError if a GeoJSON file is incomplete; GDAL does not report a full disk."""
        if self._ending != ".geojson":
            return
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 16, 0))
            if not file.read().endswith(b"]\n}\n"):
                raise RuntimeError("the file is incomplete")

    def _layer(self, dataset: gdal.Dataset, folder: str) -> ogr.Layer:
        options = {
            ".geojson": ["RFC7946=YES"] if self._crs else [],
            ".fgb": [f"TEMPORARY_DIR={folder}"],
            ".shp": ["ENCODING=UTF-8"],
        }
        crs = spatial_reference(self._crs) if self._crs else None
        layer = dataset.CreateLayer(_LAYER, crs, ogr.wkbPolygon, options.get(self._ending, []))
        for name, kind in _FIELDS.items():
            field = ogr.FieldDefn(name, kind)
            if self._ending == ".shp" and kind == ogr.OFTString:
                field.SetWidth(SHAPEFILE_BYTES)
            layer.CreateField(field)
        if self._ending == ".gpkg":
            layer.SetMetadata(self._tags)
        return layer

    def _values(self, found: regions.Regions, region: int) -> tuple[Any, ...]:
        value = int(found.classes[region])
        texts = [*self._texts[value - 1], self._model]
        if self._ending == ".shp":
            texts = [text.encode()[:SHAPEFILE_BYTES].decode(errors="ignore") for text in texts]
        name, prompt, model = texts
        confidence, metres = float(found.confidence[region]), float(found.square_metres[region])
        return (
            value,
            name,
            None if math.isnan(confidence) else confidence,
            prompt,
            model,
            int(found.pixels[region]),
            None if math.isnan(metres) else metres / SQUARE_METRES_PER_HECTARE,
        )

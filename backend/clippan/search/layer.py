"""Writes what was found as a layer of polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from osgeo import gdal, ogr

from clippan.core.outputs import Outputs, write_output
from clippan.jobs.search import Hit
from clippan.raster.rendering import spatial_reference
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.search.geopackage import IndexInfo, outline_polygon

_FIELDS = {
    "rank": ogr.OFTInteger,
    "prompt": ogr.OFTString,
    "score": ogr.OFTReal,
    "confidence": ogr.OFTReal,
    "raster": ogr.OFTString,
    "window": ogr.OFTString,
    "scale": ogr.OFTReal,
    "date": ogr.OFTDate,
    "model": ogr.OFTString,
    "tile": ogr.OFTInteger64,
}


def write(path: str, hits: Sequence[Hit], about: IndexInfo, outputs: Outputs) -> None:
    """Writes a GeoPackage with the layer ``hits``, whole or not at all; raises ClippanError."""
    with write_output(path, outputs) as part:
        _write(str(part), hits, about)


def _write(path: str, hits: Sequence[Hit], about: IndexInfo) -> None:
    dataset = gdal.GetDriverByName("GPKG").Create(path, 0, 0, 0, gdal.GDT_Unknown)
    layer = dataset.CreateLayer("hits", spatial_reference(about.crs) if about.crs else None, ogr.wkbPolygon)
    for name, kind in _FIELDS.items():
        layer.CreateField(ogr.FieldDefn(name, kind))
    feature = None
    try:
        dataset.StartTransaction()
        for hit in hits:
            feature = ogr.Feature(layer.GetLayerDefn())
            for name, value in _values(hit, about.model).items():
                if value != "":
                    feature.SetField(name, value)
            if hit.outline:
                feature.SetGeometryDirectly(outline_polygon(hit.outline))
            layer.CreateFeature(feature)
        dataset.CommitTransaction()
        feature = layer = None
        dataset, closing = None, dataset
        close_dataset(closing)
    finally:
        feature = layer = None
        close_after_failure(dataset)  # so that whatever happened the file can be removed


def _values(hit: Hit, model: str) -> dict[str, Any]:
    values = {name: getattr(hit, name) for name in _FIELDS if name != "model"}
    return {**values, "window": ",".join(str(value) for value in hit.window), "model": model}

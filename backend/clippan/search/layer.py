"""Writes what was found as a layer of polygons."""

from __future__ import annotations

from collections.abc import Sequence

from osgeo import gdal, ogr

from clippan.core.outputs import Outputs, write_output
from clippan.jobs.search import Hit
from clippan.raster.rendering import spatial_reference
from clippan.raster.writer import close_after_failure, close_dataset
from clippan.search.tile_index import IndexInfo, polygon_wkb

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


def write(path: str, hits: Sequence[Hit], info: IndexInfo, outputs: Outputs) -> None:
    """Writes a GeoPackage with the layer ``hits``, whole or not at all; raises ClippanError."""
    with write_output(path, outputs) as part:
        dataset = gdal.GetDriverByName("GPKG").Create(str(part), 0, 0, 0, gdal.GDT_Unknown)
        try:
            _write_hits(dataset, hits, info)
        except BaseException:
            close_after_failure(dataset)  # so that the file can be removed
            raise
        close_dataset(dataset)


def _write_hits(dataset: gdal.Dataset, hits: Sequence[Hit], info: IndexInfo) -> None:
    layer = dataset.CreateLayer("hits", spatial_reference(info.crs) if info.crs else None, ogr.wkbPolygon)
    for name, kind in _FIELDS.items():
        layer.CreateField(ogr.FieldDefn(name, kind))
    dataset.StartTransaction()
    for hit in hits:
        feature = ogr.Feature(layer.GetLayerDefn())
        values = {**vars(hit), "window": ",".join(map(str, hit.window)), "model": info.model}
        for name in _FIELDS:
            if values[name] != "":
                feature.SetField(name, values[name])
        if hit.outline:
            feature.SetGeometry(ogr.CreateGeometryFromWkb(polygon_wkb(hit.outline)))
        layer.CreateFeature(feature)
    dataset.CommitTransaction()

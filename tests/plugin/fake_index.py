"""Indexes and results as the fake engine makes them."""

from __future__ import annotations

import json
from pathlib import Path

from osgeo import gdal, osr

from clippan.jobs import Hit, SearchResult


def write_index(path, raster):
    """What stands for an index of this raster: 16 tiles, 4 by 4."""
    dataset = gdal.Open(raster)
    projection = dataset.GetProjection()
    code = osr.SpatialReference(projection).GetAuthorityCode(None) if projection else ""
    values = {
        "raster": raster,
        "crs": f"EPSG:{code}" if code else "",
        "geotransform": dataset.GetGeoTransform(),
        "across": 4,
        "edge": dataset.RasterXSize // 4,
    }
    Path(path).write_text(json.dumps(values))
    return str(path)


def asked(log, job):
    """The requests for a job that the engine was sent, the last one last."""
    if not log.exists():
        return []
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line["job"] == job]


def make_result(crs="EPSG:32631", **changes):
    """Three hits."""
    hits = []
    for rank, confidence in enumerate((1.0, 0.5, 0.0), 1):
        x, y = 500000 + 100 * rank, 5000000 - 100 * rank
        hit = {
            "tile": 2**33 + rank,
            "rank": rank,
            "prompt": "river",
            "score": 0.3,
            "confidence": confidence,
            "raster": "/data/scène.tif",
            "window": (10 * rank, 20, 30, 40),
            "bounds": (x, y - 50, x + 50, y),
            "outline": (x, y, x + 50, y, x + 50, y - 50, x, y - 50),
            "scale": 50.0,
            "date": "2021-06-30",
            **changes,
        }
        hits.append(Hit(**hit))
    return SearchResult(tuple(hits), "a.gpkg", "starter", crs, 16, "", "", (), 0.1)

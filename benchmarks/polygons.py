#!/usr/bin/env python3
"""Compares our polygons of a map of classes with those of GDAL's sieve and polygonize and GEOS's coverage_simplify.

    pip install --target build/shapely --no-deps 'shapely>=2.1'
    PYTHONPATH=build/shapely python benchmarks/polygons.py

Two maps: smoothed noise of eight classes with single-pixel specks and nodata, slanted and straight; and aerial pictures
segmented by the starter model, mirrored until they fill the map. Each way runs in a process of its own, whose time and
peak memory count on maps of ``--size``²; what it wrote of maps of ``--small``² is judged by the same code. shapely is
no dependency of the engine, only of this comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
from osgeo import gdal, ogr, osr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))

gdal.UseExceptions()
ogr.UseExceptions()
CLASSES = 8
CLASS_WORDS = "water; sand, beach; grass; trees; road, street; building, roof; marsh; wet mud"
QUALITY = {  # of polygons, by what `judged` calls it: heading, format
    "polygons": ("polygons", ",d"),
    "corners": ("corners", ",d"),
    "invalid": ("invalid", ",d"),
    "unmatched": ("with unmatched edges", ",d"),
    "gaps": ("gaps, px", ",.1f"),
    "overlaps": ("overlaps, px", ",.1f"),
    "distance": ("outlines move up to, px", ".2f"),
    "classes": ("areas of classes change, ‰", ".2f"),
    "frame": ("frame kept, %", ".1f"),
    "hole": ("straight nodata kept, %", ".1f"),
    "small": ("too small", ",d"),
}


def save(path: Path, values: np.ndarray) -> None:
    """A GeoTIFF of classes at one metre; 0 is nodata."""
    height, width = values.shape
    options = ["TILED=YES", "COMPRESS=DEFLATE"]
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), width, height, 1, gdal.GDT_Byte, options)
    dataset.SetGeoTransform((0, 1, 0, 0, 0, -1))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    dataset.GetRasterBand(1).WriteArray(values)
    dataset.FlushCache()


def hole(size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the straight nodata within the noise."""
    return size // 4, size // 3, size // 2, size // 2


def noise(size: int) -> np.ndarray:
    """Classes where one of eight smoothed noises is highest, specks, and nodata in slanted and in straight edges."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    best = np.full((size, size), -np.inf, np.float32)
    values = np.zeros((size, size), np.uint8)
    for number in range(1, CLASSES + 1):
        field = ndimage.gaussian_filter(rng.standard_normal((size, size), np.float32), 10, truncate=3)
        higher = field > best
        values[higher] = number
        best[higher] = field[higher]
    specks = rng.integers(0, size, (2, size * size // 500))
    values[specks[0], specks[1]] = rng.integers(1, CLASSES + 1, specks.shape[1])
    rows, columns = np.mgrid[:size, :size]
    values[3 * columns + rows < size // 2] = 0
    left, top, right, bottom = hole(size)
    values[top:bottom, left:right] = 0
    return values


def segmented(size: int, data: Path, folder: Path) -> np.ndarray:
    """A mosaic of aerial pictures, segmented and mirrored."""
    from PIL import Image

    from clippan.handlers import run
    from clippan.jobs import Context, SegmentRequest

    pictures = sorted((data / "usgs_outer_banks_aerial").glob("*.jpg"))[:2]
    first = np.asarray(Image.open(pictures[0]))
    height, width = first.shape[:2]
    mosaic = np.zeros((height, 2 * width, 3), np.uint8)
    for number, path in enumerate(pictures):
        y, x = 0, number * width
        mosaic[y : y + height, x : x + width] = np.asarray(Image.open(path))[:height, :width]
    source, output = folder / "mosaic.tif", folder / "mosaic_map.tif"
    Image.fromarray(mosaic).save(source)
    run(SegmentRequest(raster=str(source), classes=CLASS_WORDS, output=str(output)), Context())
    values = gdal.Open(str(output)).ReadAsArray()
    rows, columns = values.shape
    return np.pad(values, ((0, max(size - rows, 0)), (0, max(size - columns, 0))), mode="symmetric")[:size, :size]


def ours(path: str, output: str, min_area: int, simplify: float) -> None:
    """As Segment by text writes them."""
    from clippan.catalogue.prompts import parse_prompts
    from clippan.core.context import Context
    from clippan.segmentation import polygons

    table = parse_prompts(";".join(f"class {number}" for number in range(1, CLASSES + 1)))
    polygons.write_polygons(path, None, output, table, min_area, simplify, "starter", Context())


def libraries(path: str, output: str, min_area: int, simplify: float, noded: bool = True) -> None:
    """Sieve, polygonize, coverage_simplify: what is unclassified takes part, so that the frame alone is the boundary.

    Args:
        noded: whether a corner is put at each pixel first, as GDAL leaves corners out where a third region meets a
            straight edge, and GEOS wants neighbours to have the same corners.
    """
    import shapely

    source: Optional[gdal.Dataset] = gdal.Open(path)
    assert source is not None
    band, target = source.GetRasterBand(1), None
    if min_area > 1:
        target = gdal.GetDriverByName("GTiff").Create(
            output + ".tif", source.RasterXSize, source.RasterYSize, 1, gdal.GDT_Byte, ["COMPRESS=DEFLATE"]
        )
        gdal.SieveFilter(band, None, target.GetRasterBand(1), min_area, 4)
        target.FlushCache()
        band = target.GetRasterBand(1)
    memory = ogr.GetDriverByName("Memory").CreateDataSource("")
    layer = memory.CreateLayer("classes", None, ogr.wkbPolygon)
    layer.CreateField(ogr.FieldDefn("value", ogr.OFTInteger))
    options = ["DATASET_FOR_GEOREF=" + path] if target else []
    gdal.Polygonize(band, None, layer, 0, options)
    count = layer.GetFeatureCount()
    values, geometries = np.zeros(count, np.uint8), np.empty(count, object)
    for number, feature in enumerate(layer):
        values[number] = feature.GetField(0)
        geometry = shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb()))
        geometries[number] = shapely.segmentize(geometry, 1) if noded else geometry
    layer = memory = feature = None
    if simplify:
        geometries = shapely.coverage_simplify(geometries, simplify, simplify_boundary=False)
    dataset = ogr.GetDriverByName("GPKG").CreateDataSource(output)
    dataset.StartTransaction()
    written = dataset.CreateLayer("classes", source.GetSpatialRef(), ogr.wkbPolygon)
    for name in ("value", "area_px"):
        written.CreateField(ogr.FieldDefn(name, ogr.OFTInteger64))
    areas = shapely.area(geometries)
    for value, area, geometry in zip(values.tolist(), areas.tolist(), geometries):
        if value:
            feature = ogr.Feature(written.GetLayerDefn())
            feature.SetField(0, value)
            feature.SetField(1, int(area))
            feature.SetGeometryDirectly(ogr.CreateGeometryFromWkb(shapely.to_wkb(geometry)))
            written.CreateFeature(feature)
    dataset.CommitTransaction()


def bare(path: str, output: str, min_area: int, simplify: float) -> None:
    """As ``libraries``, but with the corners that GDAL left."""
    libraries(path, output, min_area, simplify, noded=False)


WAYS = {"ours": ours, "libraries": libraries, "bare": bare}
JUDGED = (
    ("ours", 0, (1,)),
    ("libraries", 0, (0.7, 0.9, 1, 2)),
    ("bare", 0, (1,)),
    ("ours", 50, (1,)),
    ("libraries", 50, (1,)),
)
TIMED = (("ours", 0), ("libraries", 0))


def measured(way: str, path: Path, output: Path, min_area: int, simplify: float) -> dict[str, Any]:
    """Runs a way in a process of its own: CPU seconds, and MiB."""
    output.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--way", way, str(path), str(output), str(min_area), str(simplify)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def along(x: np.ndarray, y: np.ndarray, line: float, low: float, high: float) -> float:
    """Length of those pieces (2, n: both ends) that lie on x = line with y from low to high."""
    on = (x == line).all(axis=0)
    ends = np.clip(y[:, on], low, high)
    return float(np.abs(ends[1] - ends[0]).sum())


def judged(path: Path, output: Path, plain: Path, min_area: int, straight: bool) -> dict[str, float]:
    """What polygons are worth.

    Args:
        path: the map.
        output: the polygons.
        plain: those of the same way, not simplified.
        min_area: that was asked for, in pixels.
        straight: whether the map has the straight nodata of the noise.
    """
    import shapely

    def read(name: Path) -> tuple[np.ndarray, np.ndarray]:
        dataset = ogr.Open(str(name))
        rows = [
            (feature.GetField("value"), shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb())))
            for feature in dataset.GetLayer(0)
        ]
        found = np.empty(len(rows), object)
        found[:] = [geometry for _, geometry in rows]
        return np.array([value for value, _ in rows]), found

    values, polygons = read(output)
    pixels = shapely.area(read(plain)[1])
    classes = gdal.Open(str(path)).ReadAsArray()
    size = len(classes)
    found: dict[str, float] = {
        "polygons": len(polygons),
        "small": int((pixels < min_area).sum()),
        "corners": int(shapely.get_num_coordinates(polygons).sum()),
        "invalid": int((~shapely.is_valid(polygons)).sum()),
    }
    # Pieces of all outlines, twice where two polygons share one.
    points, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    same = ring[1:] == ring[:-1]
    x, y = (np.stack([axis[:-1][same], axis[1:][same]]) for axis in points.T)
    frame = sum(along(x, y, line, -size, 0) for line in (0, size)) + sum(
        along(y, x, line, 0, size) for line in (0, -size)
    )
    edge = [classes[0], classes[-1], classes[:, 0], classes[:, -1]]
    found["frame"] = 100 * frame / max(sum(np.count_nonzero(part) for part in edge), 1)
    if straight:
        left, top, right, bottom = hole(size)
        kept = sum(along(x, y, line, -bottom, -top) for line in (left, right))
        kept += sum(along(y, x, line, left, right) for line in (-top, -bottom))
        found["hole"] = 100 * kept / (2 * (right - left + bottom - top))
    found["unmatched"] = int((~shapely.is_empty(shapely.coverage_invalid_edges(polygons))).sum())
    areas = shapely.area(polygons)
    before = np.bincount(classes.ravel(), minlength=CLASSES + 1)[1:].astype(float)
    after = np.bincount(values, areas, CLASSES + 1)[1:]
    found["classes"] = 1000 * np.abs(after - before).sum() / before.sum()
    # Gaps and overlaps in tiles of the map, as a union of the whole needs too much memory.
    tree, step = shapely.STRtree(polygons), min(size // 8, 500)
    starts = np.random.default_rng(0).integers(0, size - step, (100, 2)).tolist()
    whole = [(y, x) for y, x in starts if classes[y : y + step, x : x + step].all()][:20]
    found["overlaps"] = found["gaps"] = 0.0
    for y, x in whole:
        tile = shapely.box(x, -y - step, x + step, -y)
        cut = shapely.intersection(shapely.make_valid(polygons[tree.query(tile)]), tile)
        covered = shapely.area(shapely.union_all(cut))
        found["overlaps"] += max(shapely.area(cut).sum() - covered, 0)
        found["gaps"] += max(step * step - covered, 0)
    found["distance"] = farthest(plain, polygons, values, read)
    return found


def farthest(plain: Path, polygons: np.ndarray, values: np.ndarray, read: Any) -> float:
    """How far corners of unsimplified polygons lie from the simplified ones; of 3,000 polygons by chance."""
    import shapely

    wanted, originals = read(plain)
    if len(originals) != len(polygons) or (wanted != values).any():
        return float("nan")
    numbers = np.flatnonzero(shapely.get_num_coordinates(originals) < 3000)
    numbers = np.random.default_rng(0).permutation(numbers)[:3000]
    lines = shapely.boundary(polygons[numbers])
    points, index = shapely.get_coordinates(originals[numbers], return_index=True)
    return float(shapely.distance(shapely.points(points), lines[index]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=10_000, help="edge of maps that are timed (default %(default)s)")
    parser.add_argument("--small", type=int, default=2000, help="edge of maps that are judged (default %(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="aerial pictures")
    parser.add_argument("--work", type=Path, help="folder to keep the maps in")
    parser.add_argument("--maps", default="noise,segmented", help="which, between commas (default %(default)s)")
    options = parser.parse_args()
    if options.way:
        way, path, output, min_area, simplify = options.way
        start = time.process_time()
        WAYS[way](path, output, int(min_area), float(simplify))
        seconds = time.process_time() - start
        status = Path("/proc/self/status").read_text()  # getrusage would tell the peak of who started this
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work, folder = options.work or Path(temporary), Path(temporary)
        work.mkdir(parents=True, exist_ok=True)

        def map_of(name: str, size: int) -> Path:
            path = work / f"{name}_{size}.tif"
            if not path.exists():
                save(path, noise(size) if name == "noise" else segmented(size, options.data, work))
            return path

        print(f"| {options.small}² | smallest, px | tolerance | {' | '.join(title for title, _ in QUALITY.values())} |")
        print("|---|---:|---:|" + "---:|" * len(QUALITY))
        for name in options.maps.split(","):
            path = map_of(name, options.small)
            for way, min_area, tolerances in JUDGED:
                plain, output = folder / "plain.gpkg", folder / "output.gpkg"
                measured(way, path, plain, min_area, 0)
                for tolerance in tolerances:
                    measured(way, path, output, min_area, tolerance)
                    found = judged(path, output, plain, min_area, name == "noise")
                    cells = [format(found[key], form) if key in found else "" for key, (_, form) in QUALITY.items()]
                    print(f"| {name}, {way} | {min_area} | {tolerance} | {' | '.join(cells)} |", flush=True)
        print(f"\n| {options.size}² | smallest, px | CPU seconds | peak memory, MiB |\n|---|---:|---:|---:|")
        for name in options.maps.split(","):
            path = map_of(name, options.size)
            for way, min_area in TIMED:
                found = measured(way, path, folder / "output.gpkg", min_area, 1)
                print(f"| {name}, {way} | {min_area} | {found['seconds']:.0f} | {found['peak']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()

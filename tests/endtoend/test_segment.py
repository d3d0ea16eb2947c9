"""The installed plugin maps real land by words, by ``qgis_process``, as a user without a window would."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal, ogr
from qgis_profile import Profile
from sample import Scene, sentinel

gdal.UseExceptions()
MODEL = Path(__file__).with_name("sharpen_and_map.model3")  # as the model designer saves one
CLASSES = "sea, water; beach, sand; forest; farmland"


def shore(path: Path, west: float = 446500, north: float = 4170000, edge: float = 2560) -> Path:
    """A piece of the barrier island: marsh in its west, a beach, and the open sea in its east."""
    options = gdal.BuildVRTOptions(separate=True, outputBounds=(west, north - edge, west + edge, north))
    gdal.BuildVRT(str(path), [str(band) for band in sentinel()], options=options).FlushCache()
    return path


def read(path: Path) -> np.ndarray:
    """The values of a raster's first band."""
    values: np.ndarray = gdal.Open(str(path)).ReadAsArray()
    return values


def test_words_become_a_map(profile: Profile, folder: Path, tmp_path: Path) -> None:
    scene = shore(tmp_path / "shore.vrt")
    files = {"OUTPUT": "map.tif", "CONFIDENCE": "sure.tif", "POLYGONS": "polygons.gpkg", "AREAS": "areas.csv"}
    asked = [f"{name}={folder / file}" for name, file in files.items()]
    run = profile.process("run", "clippan:segmentbytext", "--", f"INPUT={scene}", f"CLASSES={CLASSES}", *asked)
    assert run.code == 0, run.errors
    assert {path.name for path in folder.iterdir() if not path.name.endswith(".aux.xml")} == {
        *files.values(),
        *("map.qml", "sure.qml"),
    }
    dataset, source = gdal.Open(str(folder / "map.tif")), gdal.Open(str(scene))
    assert dataset.GetGeoTransform() == source.GetGeoTransform()
    assert dataset.GetMetadata()["CLIPPAN_MODEL"] == "starter"
    values = dataset.ReadAsArray()
    pixels = np.bincount(values.ravel(), minlength=5)
    assert pixels[5:].sum() == 0
    style = (folder / "map.qml").read_text(encoding="utf-8")
    assert all(f'label="{name}"' in style for name in ("sea", "beach", "forest", "farmland"))
    with (folder / "areas.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert [int(rows[name]["pixels"]) for name in ("sea", "beach", "forest", "farmland")] == pixels[1:5].tolist()
    assert float(rows["sea"]["hectares"]) == pytest.approx(pixels[1] / 100)  # pixels of 10 m
    sure = read(folder / "sure.tif")
    assert float(sure[values == 1].mean()) == pytest.approx(float(rows["sea"]["confidence"]), abs=0.01)

    polygons = ogr.Open(str(folder / "polygons.gpkg"))
    layer = polygons.GetLayer()
    assert layer.GetSpatialRef().GetAuthorityCode(None) == "32618"
    found = np.zeros(5, int)
    for feature in layer:
        found[feature["value"]] += feature["area_px"]
        assert feature["class"] == ("", "sea", "beach", "forest", "farmland")[feature["value"]]
        assert 0 <= feature["confidence"] <= 1
        assert feature.GetGeometryRef().GetGeometryName() == "MULTIPOLYGON"
    assert found[1:].tolist() == pixels[1:5].tolist()

    assert (values[:, -40:] == 1).mean() > 0.9


def test_a_saved_model_sharpens_maps_and_hands_polygons_on(profile: Profile, scene: Scene, tmp_path: Path) -> None:
    pieces = []
    for path in (scene.pan, *scene.ms[1:4]):
        piece = tmp_path / f"{path.stem}.tif"
        gdal.Translate(str(piece), str(path), projWin=(466770, 3392920, 469650, 3390040))
        pieces.append(piece)
    outputs = {"class_map": tmp_path / "map.tif", "polygons": tmp_path / "polygons.gpkg"}
    inputs = {
        "pan": str(pieces[0]),
        "ms": [str(piece) for piece in pieces[1:]],
        "classes": "water; forest, trees; cropland; bare land",
        **{name: str(path) for name, path in outputs.items()},
    }
    run = profile.process("run", str(MODEL), "-", stdin=json.dumps({"inputs": inputs}))
    assert run.code == 0, run.errors
    pan, values = gdal.Open(str(pieces[0])), read(outputs["class_map"])
    assert values.shape == (pan.RasterYSize, pan.RasterXSize)
    assert set(np.unique(values)) <= {0, 1, 2, 3, 4}
    polygons = ogr.Open(str(outputs["polygons"]))
    layer = polygons.GetLayer()
    assert {feature["value"] for feature in layer} == set(np.unique(values)) - {0}
    assert 'label="cropland"' in outputs["class_map"].with_suffix(".qml").read_text(encoding="utf-8")


def test_a_calibrated_table_is_a_table(profile: Profile, tmp_path: Path) -> None:
    scene = shore(tmp_path / "shore.vrt", west=446900, north=4169000, edge=1280)
    driver = ogr.GetDriverByName("GeoJSON")
    file = driver.CreateDataSource(str(tmp_path / "places.geojson"))
    layer = file.CreateLayer("places", gdal.Open(str(scene)).GetSpatialRef(), ogr.wkbPoint)
    layer.CreateField(ogr.FieldDefn("kind", ogr.OFTString))
    for number in range(12):
        feature = ogr.Feature(layer.GetLayerDefn())
        feature["kind"] = "sea" if number % 2 else "marsh"
        x = 448100 if number % 2 else 447000
        feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {4168950 - 100 * number})"))
        layer.CreateFeature(feature)
    del feature, layer, file
    table, report = tmp_path / "table.json", tmp_path / "report.html"
    asked = [f"INPUT={scene}", f"SAMPLES={tmp_path / 'places.geojson'}", "FIELD=kind", "CLASSES=sea; marsh"]
    made = profile.process(
        "run", "clippan:calibrateprompts", "--", *asked, f"OUTPUT={table}", f"REPORT={report}", "--json"
    )
    assert made.code == 0, made.errors
    assert [item["name"] for item in json.loads(table.read_text(encoding="utf-8"))["classes"]] == ["sea", "marsh"]
    assert report.stat().st_size > 500
    asked = [f"INPUT={scene}", f"CLASSES={table}", f"OUTPUT={tmp_path / 'map.tif'}"]
    run = profile.process("run", "clippan:segmentbytext", "--", *asked)
    assert run.code == 0, run.errors
    assert set(np.unique(read(tmp_path / "map.tif"))) <= {0, 1, 2}


def test_what_is_wrong_is_told_in_a_sentence(profile: Profile, tmp_path: Path) -> None:
    scene = shore(tmp_path / "shore.vrt")
    for classes, sentence in (("water; water", "are both named water"), ("water.json", "cannot be read")):
        asked = [f"INPUT={scene}", f"CLASSES={classes}", f"OUTPUT={tmp_path / 'map.tif'}"]
        run = profile.process("run", "clippan:segmentbytext", "--", *asked)
        assert run.code != 0
        assert sentence in run.output + run.errors
        assert "Traceback" not in run.output + run.errors
    assert {path.name for path in tmp_path.iterdir()} == {"shore.vrt"}

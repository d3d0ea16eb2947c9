"""Build tile index, Search by text and Search by example: what they ask the engine for, and what they make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Feedback, write
from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

from clippan.catalogue.models import MODELS
from clippan.core.errors import ClippanError
from clippan_qgis import sources


@pytest.fixture
def raster(tmp_path):
    return write(tmp_path / "town.tif", np.ones((3, 64, 64)), 10.0)


@pytest.fixture
def asked(fake, tmp_path):
    """The engine, and what it was asked: a list of the last requests."""
    log = tmp_path / "jobs.jsonl"
    fake("fine", JOBS=log)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def index(run, asked, raster, tmp_path):
    output = str(tmp_path / "town.gpkg")
    run("buildtileindex", {"RASTERS": [raster], "OUTPUT": output})
    return output


def test_the_defaults_are_the_engines(index, asked, raster):
    from clippan.jobs import IndexRequest, to_json

    assert asked()[-1] == {"job": "index", **to_json(IndexRequest(rasters=(raster,), output=index))}


def test_all_that_an_index_can_be_asked(run, asked, raster, tmp_path):
    feedback = Feedback()
    output = str(tmp_path / "x.gpkg")
    results = run(
        "buildtileindex",
        {
            "RASTERS": [raster],
            "FOLDER": str(tmp_path),
            "MODEL": "openai-b32",
            "TILE_METRES": "200; 800",
            "OVERLAP": 0.5,
            "BANDS": "3,2,1",
            "STRETCH": "reflectance",
            "NODATA": 0,
            "EXTENT": "500000,500100,4999900,5000000 [EPSG:32631]",
            "DEVICE": "cpu",
            "THREADS": 2,
            "OUTPUT": output,
        },
        feedback,
    )
    assert asked()[-1] == {
        "job": "index",
        "rasters": [raster, str(tmp_path)],
        "output": output,
        "model": "openai-b32",
        "tile_metres": [200, 800],
        "tile": [],
        "overlap": 0.5,
        "bands": [3, 2, 1],
        "stretch": "reflectance",
        "nodata": 0,
        "extent": [500000, 4999900, 500100, 5000000],
        "crs": "EPSG:32631",
        "threads": 2,
        "device": "cpu",
    }
    assert (results["OUTPUT"], results["TILES"], results["ADDED"]) == (output, 16, 16)
    assert any("tiles: 16, rasters: 1" in line for line in feedback.lines)
    assert any(line.startswith("Tiles added: 16, kept: 0") for line in feedback.lines)


def test_a_folder_of_the_users_own_model(run, asked, raster, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(QgsProcessingException, match=r"contains no weights; choose a file"):
        run(
            "buildtileindex",
            {"RASTERS": [raster], "WEIGHTS": str(tmp_path / "model"), "OUTPUT": str(tmp_path / "x.gpkg")},
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"TILE_METRES": "wide"}, "wide, is not understood"),
        ({"RASTERS": []}, "“Rasters” is missing; name a file or a GDAL data source"),
        ({"TILE_METRES": "5", "TILE": "16"}, "in pixels and in metres"),
        ({"OUTPUT": "/nowhere/x.gpkg"}, "/nowhere does not exist"),
    ],
)
def test_bad_values_are_told_in_a_sentence(run, asked, raster, tmp_path, options, sentence):
    with pytest.raises(QgsProcessingException, match=sentence):
        run("buildtileindex", {"RASTERS": [raster], "OUTPUT": str(tmp_path / "x.gpkg"), **options})


def test_the_tiles_can_be_shown(run, asked, raster, tmp_path):
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    output = str(tmp_path / "x.gpkg")
    run("buildtileindex", {"RASTERS": [raster], "LOAD": True, "OUTPUT": output}, context=context)
    assert context.willLoadLayerOnCompletion(f"{output}|layername=tiles")


def test_search_by_text(run, asked, index, raster):
    feedback = Feedback()
    parameters = {"INDEX": index, "TEXT": "beach; river", "WITHOUT": "ships", "TOP": 3, "OUTPUT": "memory:"}
    results = run("searchbytext", parameters, feedback)
    request = asked()[-1]
    assert (request["text"], request["without"], request["top"]) == (["beach", "river"], ["ships"], 3)
    assert (request["index"], request["extent"], request["crs"], request["at"]) == (index, [], "", [])
    layer = results["OUTPUT"]
    assert layer.crs().authid() == "EPSG:32631"
    assert [feature["rank"] for feature in layer.getFeatures()] == [1, 2, 3]
    first = next(layer.getFeatures())
    assert (first["raster"], first["window"], first["model"]) == (raster, "0,0,16,16", "starter")
    assert first.geometry().boundingBox().toString(0) == "500000,4999840 : 500160,5000000"
    assert results["FOUND"] == 3
    assert ["1", "95%", "beach"] in [line.split()[:3] for line in feedback.lines]


def test_hits_and_heat_map_are_loaded_styled(run, asked, index, tmp_path):
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    hits, heat = str(tmp_path / "hits.gpkg"), str(tmp_path / "heat.tif")
    for output, name in ((hits, "OUTPUT"), (heat, "HEATMAP")):
        details = QgsProcessingContext.LayerDetails(name, QgsProject.instance(), name)
        context.addLayerToLoadOnCompletion(output, details)
    results = run("searchbytext", {"INDEX": index, "TEXT": "beach", "OUTPUT": hits, "HEATMAP": heat}, context=context)
    assert results["HEATMAP"] == heat
    assert asked()[-1]["heatmap"] == heat
    for output, kind, renderer in (
        (results["OUTPUT"], QgsVectorLayer, "graduatedSymbol"),
        (heat, QgsRasterLayer, "singlebandpseudocolor"),
    ):
        layer = kind(output, "x")
        assert layer.isValid()
        context.layerToLoadOnCompletionDetails(output).postProcessor().postProcessLayer(layer, context, Feedback())
        assert layer.renderer().type() == renderer


def test_what_narrows_a_search(run, asked, index):
    run(
        "searchbytext",
        {
            "INDEX": index,
            "TEXT": "beach",
            "LEAST": 0.3,
            "EXTENT": "3,3.1,45,45.1 [EPSG:4326]",
            "ONLY": "a.tif;b.tif",
            "SINCE": "2020",
            "UNTIL": "2021-06",
            "OVERLAPPING": True,
            "OUTPUT": "memory:",
        },
    )
    request = asked()[-1]
    assert (request["least"], request["extent"], request["crs"]) == (0.3, [3, 45, 3.1, 45.1], "EPSG:4326")
    assert (request["rasters"], request["since"], request["until"]) == (["a.tif", "b.tif"], "2020", "2021-06")
    assert request["overlapping"] is True


def test_search_by_example(run, asked, index, raster):
    run("searchbyexample", {"INDEX": index, "IMAGE": raster, "TEXT": "beach", "OUTPUT": "memory:"})
    assert (asked()[-1]["image"], asked()[-1]["text"], asked()[-1]["at"]) == ([raster], ["beach"], [])
    run("searchbyexample", {"INDEX": index, "PLACE": "500100,4999900 [EPSG:32631]", "OUTPUT": "memory:"})
    assert (asked()[-1]["at"], asked()[-1]["crs"]) == ([500100, 4999900], "EPSG:32631")
    run(
        "searchbyexample",
        {
            "INDEX": index,
            "PLACE": "500100,4999900 [EPSG:32631]",
            "EXTENT": "2.9,3.1,45,45.2 [EPSG:4326]",
            "OUTPUT": "memory:",
        },
    )
    assert asked()[-1]["crs"] == "EPSG:4326"  # one CRS for both
    assert asked()[-1]["at"] == pytest.approx([3.00127, 45.1526], abs=1e-3)
    with pytest.raises(QgsProcessingException, match="Nothing to search for was given"):
        run("searchbyexample", {"INDEX": index, "OUTPUT": "memory:"})


def test_a_catalogue_can_be_named(run, asked, tmp_path):
    with pytest.raises(QgsProcessingException):  # the engine that is asked here knows files only
        run("searchbytext", {"INDEX": "postgresql://me@host/db", "TEXT": "beach", "OUTPUT": "memory:"})
    assert asked()[-1]["index"] == "postgresql://me@host/db"


@pytest.mark.slow
def test_the_real_engine(run, engine, tmp_path):
    if not MODELS["starter"].path.is_file():
        pytest.skip("the starter model is not there")
    values = np.zeros((3, 128, 128))
    values[:] = np.array([20, 60, 20])[:, None, None]
    path = write(tmp_path / "green.tif", values, 10.0, dtype=gdal.GDT_Byte)
    output = str(tmp_path / "real.gpkg")
    assert run("buildtileindex", {"RASTERS": [path], "TILE": "64", "OVERLAP": 0, "OUTPUT": output})["TILES"] == 4
    results = run("searchbytext", {"INDEX": output, "TEXT": "forest", "OUTPUT": "memory:"})
    assert results["OUTPUT"].featureCount() == 4
    tiles = QgsVectorLayer(f"{output}|layername=tiles", "tiles", "ogr")
    assert tiles.isValid()
    assert tiles.crs().authid() == "EPSG:32631"
    assert tiles.featureCount() == 4


def test_map_services_become_what_gdal_reads(tmp_path):
    url = "https://tiles.example.org/a%20b/{z}/{x}/{y}.png?key=1"
    source = "type=xyz&url=" + url.replace("?", "%3F").replace("=1", "%3D1") + "&zmax=17&zmin=0"
    layer = QgsRasterLayer(source, "My map: tiles", "wms")
    assert sources.is_service(layer)
    file = Path(sources.data_source_or_service(layer))
    assert file.parent == tmp_path / "cache" / "services"
    dataset = gdal.Open(str(file))
    assert dataset.RasterXSize == 256 * 2**17
    assert dataset.GetGeoTransform()[0] == pytest.approx(-20037508.34, abs=1)
    assert dataset.GetSpatialRef().GetAuthorityCode(None) == "3857"
    assert "${z}/${x}/${y}.png?key=1" in file.read_text()
    time = file.stat().st_mtime_ns
    assert sources.data_source_or_service(layer) == str(file)
    assert file.stat().st_mtime_ns == time  # unchanged, so the index keeps its tiles


def test_services_that_cannot_be_read(tmp_path):
    for source, sentence in (
        ("type=xyz&url=https://x.org/{q}.png", "does not have the form"),
        ("type=xyz&authcfg=abc1234&url=https://x.org/{z}/{x}/{y}.png", "needs a login"),
        (
            "tileMatrixSet=a&crs=EPSG:3857&layers=b&styles=&format=image/png&url=https://x.org",
            "uses a tiling that GDAL does not read",
        ),
    ):
        with pytest.raises(ClippanError, match=sentence):
            sources.data_source_or_service(QgsRasterLayer(source, "map", "wms"))


def test_a_map_service_needs_an_extent(run, asked, tmp_path, qgis_new_project):
    layer = QgsRasterLayer("type=xyz&url=https://x.org/{z}/{x}/{y}.png&zmax=17", "map", "wms")
    QgsProject.instance().addMapLayer(layer)
    parameters = {"RASTERS": [layer], "OUTPUT": str(tmp_path / "x.gpkg")}
    with pytest.raises(QgsProcessingException, match="A map service is not limited in extent; choose an extent"):
        run("buildtileindex", parameters)


def test_parameters_are_of_the_types_that_models_join(plugin, qgis_app):
    provider = qgis_app.processingRegistry().providerById("clippan")
    output = provider.algorithm("searchbytext").parameterDefinition("OUTPUT")
    assert output.dataType() == Qgis.ProcessingSourceType.VectorPolygon
    assert provider.algorithm("buildtileindex").outputDefinition("OUTPUT").type() == "outputFile"

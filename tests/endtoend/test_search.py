"""The installed plugin makes real land searchable, by ``qgis_process``, as a user without a window would."""

from __future__ import annotations

from pathlib import Path

import pytest
from osgeo import gdal, ogr
from qgis_profile import Profile
from sample import sentinel

gdal.UseExceptions()


@pytest.mark.slow
def test_an_index_is_made_and_searched(profile: Profile, tmp_path: Path) -> None:
    scene = tmp_path / "shore.vrt"
    # The southern end of the barrier island: beach, sea, a bay and marsh.
    options = gdal.BuildVRTOptions(separate=True, outputBounds=(443720, 4160000, 448720, 4166000))
    gdal.BuildVRT(str(scene), [str(band) for band in sentinel()], options=options).FlushCache()
    index, places = tmp_path / "shore.gpkg", tmp_path / "places.gpkg"
    made = profile.process(
        "run", "clippan:buildtileindex", "--", f"RASTERS={scene}", "TILE=64", "OVERLAP=0", f"OUTPUT={index}"
    )
    assert made.code == 0, made.errors
    tiles = ogr.Open(str(index))
    assert tiles.GetLayerByName("tiles").GetFeatureCount() == 80
    del tiles
    asked = ["run", "clippan:searchbytext", "--", f"INDEX={index}", "TEXT=beach; sea", "TOP=8", f"OUTPUT={places}"]
    found = profile.process(*asked)
    assert found.code == 0, found.errors
    dataset = ogr.Open(str(places))
    layer = dataset.GetLayer()
    assert layer.GetSpatialRef().GetAuthorityCode(None) == "32618"
    features = [layer.GetFeature(number + 1) for number in range(layer.GetFeatureCount())]
    assert len(features) == 8
    assert {feature["prompt"] for feature in features} <= {"beach", "sea"}
    assert [feature["rank"] for feature in features] == list(range(1, 9))
    assert {path.name for path in tmp_path.iterdir()} == {
        "shore.vrt",
        "shore.gpkg",
        "shore.gpkg.vectors",
        "places.gpkg",
    }


def test_a_wrong_index_is_told_in_a_sentence(profile: Profile, tmp_path: Path) -> None:
    asked = ["run", "clippan:searchbytext", "--", f"INDEX={tmp_path / 'x.gpkg'}", "TEXT=beach"]
    found = profile.process(*asked, f"OUTPUT={tmp_path / 'places.gpkg'}")
    assert found.code != 0
    assert "does not exist; make one with Build tile index" in found.output + found.errors
    assert list(tmp_path.iterdir()) == []

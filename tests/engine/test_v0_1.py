"""What version 0.1 wrote still loads and works; ``tests/data/v0_1/`` holds it, as that version left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import read_raster
from osgeo import gdal

pytest.importorskip("open_clip")
pytest.importorskip("sklearn")

from golden_jobs import COLOURS, TRAINED, Bench

OLD = Path(__file__).resolve().parents[1] / "data" / "v0_1"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CLIPPAN_CACHE", "CLIPPAN_OFFLINE"):
            patch.setenv(name, "")  # so that it is restored
        yield Bench(tmp_path_factory.mktemp("old"))


@pytest.fixture
def index(tmp_path: Path) -> str:
    for name in ("index.gpkg", "index.gpkg.vectors"):
        shutil.copy(OLD / name, tmp_path)
    return str(tmp_path / "index.gpkg")


@pytest.mark.slow
def test_an_index_is_searched_and_grows(bench: Bench, index: str) -> None:
    about = bench.ask("about", index=index)
    assert (about["tiles"], about["rasters"], about["model"], about["crs"]) == (20, 1, "starter", "EPSG:32631")
    assert about["complete"]
    found = bench.ask("search", index=index, text=["water"], top=20, overlapping=True, device="cpu")
    fresh = bench.ask("search", index=bench.index, text=["water"], top=20, overlapping=True, device="cpu")
    assert [hit["tile"] for hit in found["hits"]][:3] == [hit["tile"] for hit in fresh["hits"]][:3]
    scores = [{hit["tile"]: hit["score"] for hit in result["hits"]} for result in (found, fresh)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)
    assert found["hits"][0]["date"] == "2021-06-30"
    assert len(bench.ask("search", index=index, like=[1], top=3, device="cpu")["hits"]) == 3
    more = {"rasters": [bench.reflectance], "tile": [32], "threads": 1, "device": "cpu"}
    grown = bench.ask("index", output=index, **more)
    assert (grown["rasters"], grown["added"]) == (2, grown["tiles"] - 20)
    assert grown["added"] > 0


def test_an_adapted_fusion_model_pansharpens(bench: Bench, tmp_path: Path) -> None:
    model = str(OLD / "adapted.safetensors")
    asked = {**bench.pair, "sensor": "generic", "threads": 1, "device": "cpu"}
    result = bench.ask("pansharpen", output=str(tmp_path / "a.tif"), model=model, **asked)
    assert model in result["provenance"]["CLIPPAN_MODEL"]
    found = read_raster(str(tmp_path / "a.tif"))
    bench.ask("pansharpen", output=str(tmp_path / "b.tif"), **asked)
    shipped = read_raster(str(tmp_path / "b.tif"))
    assert found.shape == shipped.shape == (4, 192, 192)
    assert (found != shipped).mean() > 0.1
    assert np.corrcoef(found.ravel(), shipped.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_a_pretrained_scene_classifies(bench: Bench, tmp_path: Path) -> None:
    asked = {"rasters": bench.small, "samples": bench.places, "field": "class", "repeats": 0}
    files = {"output": str(tmp_path / "map.tif"), "encoder": str(OLD / "scene.safetensors")}
    result = bench.ask("classify", method="diffclip", **asked, **files, **TRAINED)
    assert [area["name"] for area in result["classes"]] == ["RedSoil", "green_field"]  # those that lie there
    found = read_raster(result["output"])[0]
    assert found.shape == (48, 48)
    assert set(np.unique(found)) == {1, 2}


def test_calibrated_prompts_map(bench: Bench, tmp_path: Path) -> None:
    table = OLD / "prompts.json"
    offsets = [item["offset"] for item in json.loads(table.read_text(encoding="utf-8"))["classes"]]
    assert any(offsets)
    asked = {"raster": bench.fields[0], "threads": 1, "device": "cpu"}
    bench.ask("segment", classes=str(table), output=str(tmp_path / "map.tif"), **asked)
    bench.ask("segment", classes=bench.table, output=str(tmp_path / "plain.tif"), **asked)
    found, plain = (read_raster(str(tmp_path / name))[0] for name in ("map.tif", "plain.tif"))
    dataset = gdal.Open(str(tmp_path / "map.tif"))
    classes = json.loads(dataset.GetMetadataItem("CLIPPAN_CLASSES"))["classes"]
    assert [item["name"] for item in classes] == list(COLOURS)
    truth = bench.fields[1]
    assert (found == truth).mean() > (plain == truth).mean() + 0.1

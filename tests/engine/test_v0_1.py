"""What version 0.1 wrote still loads and works; ``tests/data/v0_1/`` holds it, as that version left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_raster
from osgeo import gdal
from safetensors.torch import save_file

pytest.importorskip("open_clip")
pytest.importorskip("sklearn")

from golden_jobs import COLOURS, TRAINED, Bench

from clippan.core.errors import ClippanError
from clippan.fusion import model, networks

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


# What version 0.1 made of ``waves``: the mean of the detail, its standard deviation, one pixel of the first band and
# one of the second; computed with its code.
DETAIL_OF_0_1 = {
    "arbrpn": ({"width": 8, "depth": 1, "blocks": 1}, (-0.0599033886, 0.0305334598, -0.0437750117, -0.118976075)),
    "lformer": ({"width": 8, "depth": 2, "heads": 2}, (0.0466358521, 0.064394337, -0.0232461438, 0.146832743)),
    "panmamba": (
        {"width": 8, "depth": 1, "swaps": 1, "crosses": 2, "states": 4},
        (0.0473970959, 0.126020255, -0.0244581649, 0.122326462),
    ),
}


def old_fusion_model(path: Path, name: str, kind: str) -> str:
    """A model with a network of version 0.1 for 2 bands, as that version wrote it but for the kind."""
    options, _ = DETAIL_OF_0_1[name]
    weights = networks.VERSION_0_1[f"{name}-0.1"].build(2, **options).state_dict()
    for key, value in weights.items():
        weights[key] = torch.arange(value.numel()).double().mul(1.7).sin().mul(0.1).view_as(value).half()
    bands = "0" if name == "arbrpn" else "2"
    header = {
        "kind": kind,
        "network": name,
        "options": json.dumps(options),
        "bands": bands,
        "about": '{"title": "Mine"}',
    }
    save_file(weights, str(path), header)
    return str(path)


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two bands and PAN."""
    number = torch.arange(180).double()
    return number.mul(0.37).sin().view(1, 2, 9, 10), number[:90].mul(0.61).cos().view(1, 1, 9, 10)


@pytest.mark.parametrize("name", DETAIL_OF_0_1)
def test_a_fusion_model_with_a_network_of_0_1_is_used_and_says_so(tmp_path: Path, name: str) -> None:
    path = old_fusion_model(tmp_path / "m.safetensors", name, "CLIPPan fusion network, version 1")
    found = model.load(path, torch.device("cpu"))
    label = networks.NETWORKS[name].label
    assert found.title == f"Mine, {label} (form of version 0.1, not as published) ({path})"
    up, pan = waves()
    detail = found.network.double()(up, pan) - up
    figures = [float(value) for value in (detail.mean(), detail.std(), detail[0, 0, 4, 5], detail[0, 1, 0, 0])]
    assert figures == pytest.approx(DETAIL_OF_0_1[name][1], rel=1e-6)
    # What is made from it is a new file, and keeps its form and says so.
    again = tmp_path / "again.safetensors"
    found.save(again)
    assert b"CLIPPan fusion network, version 2" in again.read_bytes()
    copy = model.load(str(again), torch.device("cpu"))
    assert (copy.architecture, copy.title) == (f"{name}-0.1", found.title.replace(path, str(again)))


@pytest.mark.parametrize("name", DETAIL_OF_0_1)
def test_a_new_fusion_model_with_weights_of_0_1_is_refused(tmp_path: Path, name: str) -> None:
    path = old_fusion_model(tmp_path / "m.safetensors", name, "CLIPPan fusion network, version 2")
    if name == "arbrpn":  # its weights have the same shapes, and only the version tells them apart
        assert model.load(path, torch.device("cpu")).title == f"Mine ({path})"
        return
    with pytest.raises(ClippanError, match=f"are not those of the network {name}; train it again"):
        model.load(path, torch.device("cpu"))


def test_a_fusion_model_of_a_later_version_asks_for_an_update(tmp_path: Path) -> None:
    path = old_fusion_model(tmp_path / "m.safetensors", "arbrpn", "CLIPPan fusion network, version 3")
    with pytest.raises(ClippanError) as caught:
        model.load(path, torch.device("cpu"))
    assert str(caught.value) == (
        f"The fusion model {path} was written by a newer version of CLIPPan; update CLIPPan, or choose another model."
    )

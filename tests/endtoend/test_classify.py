"""The installed plugin maps real land from a few labelled places, and teaches CLIP, by ``qgis_process``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from osgeo import gdal
from qgis_profile import Profile
from sample import LABELS, sentinel, sentinel_bands

gdal.UseExceptions()
NAMES = ["beach", "forest", "green field", "marsh", "pale field", "water"]  # other labels lie elsewhere
BOUNDS = (440000, 4162000, 450000, 4172000)  # land, marsh, beach and sea


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """A piece of the scene: four bands of 10 m and six of 20 m, and its natural colours."""
    folder = tmp_path_factory.mktemp("shore")
    paths = []
    for name, bands in zip(("fine", "coarse", "colours"), (*sentinel_bands(), sentinel())):
        options = gdal.BuildVRTOptions(separate=True, outputBounds=BOUNDS)
        paths.append(folder / f"{name}.vrt")
        gdal.BuildVRT(str(paths[-1]), [str(band) for band in bands], options=options).FlushCache()
    return tuple(paths)


def run(profile: Profile, name: str, **parameters: object) -> dict:
    """The results of an algorithm."""
    asked = [
        f"{key}={item}"
        for key, value in parameters.items()
        for item in (value if isinstance(value, tuple) else [value])
    ]
    done = profile.process("--json", "run", f"clippan:{name}", "--", *asked)
    assert done.code == 0, done.errors
    results: dict = done.json()["results"]
    return results


def test_a_few_places_become_a_map(profile: Profile, folder: Path, rasters: tuple[Path, ...]) -> None:
    files = {"OUTPUT": "map.tif", "CONFIDENCE": "sure.tif", "REPORT": "report.html", "AREAS": "areas.csv"}
    results = run(
        *(profile, "classifyfewsamples"),
        RASTERS=rasters[:2],
        SAMPLES=LABELS,
        FIELD="class",
        METHOD="svm-mean",
        **{name: folder / file for name, file in files.items()},
    )
    assert results["OA"] > 0.75
    assert results["METHOD_USED"] == "svm-mean"
    assert {path.name for path in folder.iterdir()} - {"map.tif.aux.xml"} == {*files.values(), "map.qml", "sure.qml"}
    dataset, source = gdal.Open(str(folder / "map.tif")), gdal.Open(str(rasters[0]))
    assert dataset.GetGeoTransform() == source.GetGeoTransform()
    values = dataset.ReadAsArray()
    assert (values[:200, -100:] == NAMES.index("water") + 1).mean() > 0.95
    style = (folder / "map.qml").read_text(encoding="utf-8")
    assert all(f'label="{name}"' in style for name in NAMES)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "shore.geojson" in page or "shore.gpkg" in page


@pytest.mark.slow
def test_a_scene_is_learned_and_used_again(profile: Profile, folder: Path, rasters: tuple[Path, ...]) -> None:
    small = tuple(folder / f"{path.stem}.vrt" for path in rasters[:2])
    for path, part in zip(rasters, small):  # all of it would take a CPU minutes
        gdal.Translate(str(part), str(path), format="VRT", projWin=(447000, 4169600, 448600, 4168000))
    encoder = folder / "scene.safetensors"
    learned = run(profile, "pretrainscene", RASTERS=small, STEPS=5, OUTPUT=encoder)
    assert learned["STEPS_DONE"] == 5
    asked = {"RASTERS": small, "SAMPLES": LABELS, "FIELD": "class", "METHOD": "diffclip", "REPEATS": 1}
    results = run(profile, "classifyfewsamples", **asked, PRETRAINED=encoder, OUTPUT=folder / "map.tif")
    assert results["METHOD_USED"] == "diffclip"
    assert results["MODEL_USED"] == "starter"
    assert gdal.Open(str(folder / "map.tif")).GetMetadata()["CLIPPAN_METHOD"] == "diffclip"


@pytest.mark.slow
def test_clip_learns_places_and_a_sensor(profile: Profile, folder: Path, rasters: tuple[Path, ...]) -> None:
    tuned = folder / "tuned"
    results = run(
        *(profile, "finetuneclip"),
        INPUT=rasters[2],
        SAMPLES=LABELS,
        FIELD="class",
        STEPS=2,
        BATCH=4,
        MEASURED=12,
        OUTPUT=tuned,
        REPORT=folder / "tuned.html",
    )
    assert 0 <= results["TASK_AFTER"] <= 1
    assert "α" in (folder / "tuned.html").read_text(encoding="utf-8")
    student = folder / "student"
    asked = {"TEACHER": rasters[2], "SENSOR": rasters[1], "SIZE": 128, "OVERLAP": 0, "STEPS": 2, "BATCH": 4}
    results = run(profile, "alignsensor", **asked, WORDS="water; forest", OUTPUT=student)
    assert results["RECALL_10"] >= 0
    config = json.loads((student / "open_clip_config.json").read_text(encoding="utf-8"))
    assert len(config["clippan"]["channels"]["names"]) == 6
    for model, raster in ((tuned, rasters[2]), (student, rasters[1])):
        index = folder / f"{model.name}.gpkg"
        results = run(profile, "buildtileindex", RASTERS=raster, WEIGHTS=model, TILE=256, OUTPUT=index)
        assert results["TILES"] > 4
        found = run(profile, "searchbytext", INDEX=index, TEXT="open sea", OUTPUT=folder / f"{model.name}_hits.gpkg")
        assert found

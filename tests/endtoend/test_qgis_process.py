"""The installed plugin, run by ``qgis_process`` as a user without a window would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal
from qgis_profile import Profile, Run
from sample import Scene

gdal.UseExceptions()


def pansharpen(profile: Profile, pan: object, ms: object, output: Path, *more: str) -> Run:
    """Runs clippan:pansharpen with parameters on the command line."""
    sources = ms if isinstance(ms, (list, tuple)) else [ms]
    spectral = [f"SPECTRAL={source}" for source in sources]
    places = [f"PANCHROMATIC={pan}", f"OUTPUT={output}"]
    return profile.process("run", "clippan:pansharpen", "--", *spectral, *places, *more)


def bounds(dataset: gdal.Dataset) -> np.ndarray:
    """West, south, east, north."""
    west, width, _, north, _, height = dataset.GetGeoTransform()
    return np.array([west, north + height * dataset.RasterYSize, west + width * dataset.RasterXSize, north])


def files(folder: Path) -> set[str]:
    """Names of the files in a folder, less the statistics that QGIS leaves beside every raster it styles."""
    return {item.name for item in folder.iterdir() if not item.name.endswith(".aux.xml")}


def check_grid(fused: gdal.Dataset, pan: gdal.Dataset, ms: gdal.Dataset) -> None:
    """The output holds the PAN pixels whose centre MS covers, and all of them."""
    step = fused.GetGeoTransform()
    wanted = pan.GetGeoTransform()
    assert (step[1], step[5]) == (wanted[1], wanted[5])
    offset = np.array([(step[0] - wanted[0]) / step[1], (step[3] - wanted[3]) / step[5]])
    assert np.allclose(offset, offset.round(), atol=1e-6)
    assert fused.GetSpatialRef().IsSame(pan.GetSpatialRef())
    pixel = abs(step[1])
    inward = np.array([1, 1, -1, -1])
    outermost = (bounds(fused) + inward * pixel / 2) * inward
    covered = np.maximum(bounds(ms) * inward, bounds(pan) * inward)
    assert (outermost >= covered - 1e-6 * pixel).all()
    assert (outermost - pixel <= covered + 1e-6 * pixel).all(), "a row or column is missing"


def detail(values: np.ndarray) -> float:
    """How much neighbours differ."""
    return float(np.abs(np.diff(values.astype("float64"), axis=-1)).mean())


def check_result(path: Path, pan_path: object, ms_paths: list[object], method: str = "clippan") -> None:
    """Grid, bands, type, tags and style of an output, and that it is MS with the detail of PAN."""
    assert files(path.parent) == {path.name, path.with_suffix(".qml").name}
    fused, pan = gdal.Open(str(path)), gdal.Open(str(pan_path))
    stack = [gdal.Open(str(item)) for item in ms_paths]
    bands = [dataset.GetRasterBand(number + 1) for dataset in stack for number in range(dataset.RasterCount)]
    check_grid(fused, pan, stack[0])
    assert fused.RasterCount == len(bands)
    assert {fused.GetRasterBand(n + 1).DataType for n in range(len(bands))} == {bands[0].DataType}

    tags = fused.GetMetadata()
    assert tags["CLIPPAN_ALGORITHM"] == "pansharpen"
    assert tags["CLIPPAN_METHOD"] == method
    assert json.loads(tags["CLIPPAN_PARAMETERS"])["pan"] == str(pan_path)
    style = path.with_suffix(".qml").read_text(encoding="utf-8")
    assert "<rasterrenderer" in style

    # What is left of the detail once pixels have been averaged to the size of MS and enlarged again.
    grid = stack[0].GetGeoTransform()
    coarse = gdal.Warp("", fused, format="VRT", xRes=grid[1], yRes=grid[5], resampleAlg="average")
    size = {"width": fused.RasterXSize, "height": fused.RasterYSize}
    smooth = gdal.Warp("", coarse, format="VRT", resampleAlg="cubic", outputBounds=bounds(fused).tolist(), **size)
    for number, band in enumerate(bands, 1):
        values, low = fused.GetRasterBand(number).ReadAsArray(), band.ReadAsArray()
        # Modulation lifts the mean of dark bands a little, that of the classical methods too.
        assert values.mean() == pytest.approx(low.mean(), rel=0.04)
        assert detail(values) > 1.15 * detail(smooth.GetRasterBand(number).ReadAsArray())


def test_toolbox_holds_the_algorithms(profile: Profile) -> None:
    run = profile.process("--json", "list")
    assert run.code == 0, run.errors
    found = run.json()["providers"]["clippan"]["algorithms"]
    assert {
        "clippan:pansharpen",
        "clippan:assesspansharpening",
        "clippan:checkengine",
        "clippan:setupengine",
    } <= set(found)


def test_every_parameter_has_help(profile: Profile) -> None:
    run = profile.process("--json", "help", "clippan:pansharpen")
    assert run.code == 0, run.errors
    parameters = run.json()["parameters"]
    assert {"SPECTRAL", "PANCHROMATIC", "METHOD", "SENSOR", "BANDS", "NODATA", "OUTPUT"} <= set(parameters)
    assert not [name for name, parameter in parameters.items() if len(parameter.get("help", "")) < 20]


def test_landsat(profile: Profile, scene: Scene, folder: Path) -> None:
    output = folder / "scharf & klar.tif"
    run = pansharpen(profile, scene.pan, scene.ms, output)
    assert run.code == 0, run.errors
    check_result(output, scene.pan, list(scene.ms))


def test_landsat_with_parameters_as_json(profile: Profile, scene: Scene, folder: Path) -> None:
    output = folder / "fused.tif"
    inputs = {
        "SPECTRAL": [str(path) for path in scene.ms],
        "PANCHROMATIC": str(scene.pan),
        "METHOD": "bt-h",
        "SENSOR": "landsat",
        "BANDS": "4,3,2",
        "OUTPUT": str(output),
    }
    run = profile.process("run", "clippan:pansharpen", "-", stdin=json.dumps({"inputs": inputs}))
    assert run.code == 0, run.errors
    assert run.json()["results"]["OUTPUT"] == str(output)
    check_result(output, scene.pan, [scene.ms[3], scene.ms[2], scene.ms[1]], "bt-h")


@pytest.mark.parametrize(
    "name", ["ikonos__grip_imgIK", "worldview2__spacenet6_1", "gaofen2__ucgan_fr_test0", "landsat8__gppnn_5"]
)
def test_pairs_of_other_sensors(profile: Profile, pairs: Path, name: str, folder: Path) -> None:
    output = folder / f"{name}.tif"
    pan, ms = pairs / name / "pan.tif", pairs / name / "ms.tif"
    run = pansharpen(profile, pan, ms, output)
    assert run.code == 0, run.errors
    check_result(output, pan, [ms])


def test_input_in_a_folder_with_a_difficult_name(profile: Profile, scene: Scene, folder: Path) -> None:
    source, target = folder / "Été 2024", folder / "out"
    source.mkdir()
    target.mkdir()
    ms = [Path(shutil.copy(path, source / f"bänd {path.name}")) for path in scene.ms[1:4]]
    pan = Path(shutil.copy(scene.pan, source / "pän 8.tif"))
    run = pansharpen(profile, pan, ms, target / "ñ.tif", "METHOD=gsa")
    assert run.code == 0, run.errors
    check_result(target / "ñ.tif", pan, list(ms), "gsa")


def check_refusal(run: Run, output: Path, *words: str) -> None:
    """One sentence with these words, no traceback, nothing on disk."""
    assert run.code != 0
    assert "Traceback" not in run.output + run.errors
    sentences = [line for line in run.errors.splitlines() if all(word in line for word in words)]
    assert any(line.rstrip().endswith(".") for line in sentences), run.errors
    assert files(output.parent) == set()


def test_refuses_a_missing_file(profile: Profile, scene: Scene, folder: Path) -> None:
    output = folder / "o.tif"
    run = pansharpen(profile, folder / "no such.tif", scene.ms, output)
    check_refusal(run, output, "no such.tif")


def test_refuses_what_is_no_raster(profile: Profile, scene: Scene, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.tif"
    text.write_text("no raster", encoding="utf-8")
    output = folder / "o.tif"
    check_refusal(pansharpen(profile, scene.pan, text, output), output, "notes.tif")


def test_refuses_pan_with_three_bands(profile: Profile, scene: Scene, folder: Path, tmp_path: Path) -> None:
    pan = tmp_path / "rgb.tif"
    gdal.Translate(str(pan), str(scene.pan), bandList=[1, 1, 1])
    output = folder / "o.tif"
    check_refusal(pansharpen(profile, pan, scene.ms, output), output, "panchromatic", "3 bands")


def test_refuses_ms_finer_than_pan(profile: Profile, scene: Scene, folder: Path) -> None:
    output = folder / "o.tif"
    check_refusal(pansharpen(profile, scene.ms[0], scene.pan, output), output, "multispectral", "panchromatic")


def test_refuses_to_overwrite_an_input(profile: Profile, scene: Scene, tmp_path: Path) -> None:
    pan = Path(shutil.copy(scene.pan, tmp_path / "pan.tif"))
    before = pan.read_bytes()
    run = pansharpen(profile, pan, scene.ms, pan)
    assert run.code != 0
    assert "one of the inputs" in run.output + run.errors
    assert pan.read_bytes() == before
    assert files(tmp_path) == {"pan.tif"}


def test_says_how_to_get_an_engine(profile: Profile, scene: Scene, folder: Path) -> None:
    output = folder / "o.tif"
    inputs = {
        "SPECTRAL": [str(scene.ms[0])],
        "PANCHROMATIC": str(scene.pan),
        "OUTPUT": str(output),
    }
    run = profile.process(
        *("run", "clippan:pansharpen", "-"),
        stdin=json.dumps({"inputs": inputs}),
        CLIPPAN_PYTHON=str(folder / "no python"),
    )
    check_refusal(run, output, "no python", "CLIPPAN_PYTHON")


def test_check_engine_reports_what_it_found(profile: Profile) -> None:
    run = profile.process("run", "clippan:checkengine", "--")
    assert run.code == 0, run.errors
    for word in ("torch", "GDAL", "numpy", "cpu"):
        assert word.lower() in run.output.lower(), run.output


def test_assess_writes_figures_and_a_report(profile: Profile, scene: Scene, folder: Path) -> None:
    fused, report = folder / "fused.tif", folder / "Bericht 1.html"
    made = pansharpen(profile, scene.pan, scene.ms[1:4], fused, "METHOD=brovey")
    assert made.code == 0, made.errors
    inputs = {
        "FUSED": str(fused),
        "SPECTRAL": [str(path) for path in scene.ms[1:4]],
        "PANCHROMATIC": str(scene.pan),
        "OUTPUT_HTML": str(report),
    }
    call = ("run", "clippan:assesspansharpening", "-")
    run = profile.process(*call, stdin=json.dumps({"inputs": inputs}))
    assert run.code == 0, run.errors
    assert 0 < run.json()["results"]["HQNR"] <= 1
    assert "<img" in report.read_text(encoding="utf-8")

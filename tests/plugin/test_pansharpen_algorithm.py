"""The whole path inside QGIS, with the real engine: parameters in, pixels and a styled layer out."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Feedback, write
from osgeo import gdal
from qgis.core import QgsProcessingException, QgsRasterLayer

from clippan_qgis.engine import worker
from clippan_qgis.settings import Settings


def read(path):
    return gdal.Open(str(path)).ReadAsArray().astype(float)


@pytest.fixture(autouse=True)
def _real(engine):
    """All of these use the real engine."""


@pytest.mark.slow
def test_the_result_has_the_colours_of_one_and_the_detail_of_the_other(run, parameters, feedback):
    results = run("pansharpen", {**parameters, "METHOD": "bt-h", "SENSOR": "generic"}, feedback)
    fused = gdal.Open(parameters["OUTPUT"])
    pan = gdal.Open(parameters["PANCHROMATIC"])
    ms = gdal.Open(parameters["SPECTRAL"][0])
    assert (fused.RasterXSize, fused.RasterYSize, fused.RasterCount) == (128, 128, 4)
    assert fused.GetGeoTransform() == pan.GetGeoTransform()
    assert fused.GetRasterBand(1).DataType == ms.GetRasterBand(1).DataType
    values = read(parameters["OUTPUT"])
    means = values.reshape(4, 32, 4, 32, 4).mean((2, 4))
    for band, coarse in zip(means, read(parameters["SPECTRAL"][0])):
        assert np.corrcoef(band.ravel(), coarse.ravel())[0, 1] > 0.95
    # Detail: what PAN has within a pixel of MS is now in the mean of the bands.
    detail = read(parameters["PANCHROMATIC"])[0] if values.ndim < 3 else read(parameters["PANCHROMATIC"])
    detail = detail - detail.reshape(32, 4, 32, 4).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    mean = values.mean(0)
    mean = mean - mean.reshape(32, 4, 32, 4).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    assert np.corrcoef(detail.ravel(), mean.ravel())[0, 1] > 0.8
    assert results["METHOD_USED"] == "bt-h"
    assert results["SENSOR_USED"] == "generic"
    assert results["DEVICE_USED"] == "cpu"
    assert feedback.percents == sorted(feedback.percents)
    assert feedback.percents[-1] >= 90
    assert any("Device: cpu" in line for line in feedback.lines)
    assert fused.GetMetadata()["CLIPPAN_METHOD"] == "bt-h"
    assert not list(Path(parameters["OUTPUT"]).parent.glob(".clippan-*"))


@pytest.mark.slow
def test_bands_and_single_band_files_are_one_and_the_same(run, parameters, tmp_path):
    run("pansharpen", {**parameters, "BANDS": "3,1"})
    together = read(parameters["OUTPUT"])
    bands = read(parameters["SPECTRAL"][0])
    paths = [write(tmp_path / f"b{number}.tif", band[None], 4.0) for number, band in enumerate(bands)]
    run("pansharpen", {**parameters, "SPECTRAL": paths, "BANDS": "3,1", "OUTPUT": str(tmp_path / "apart.tif")})
    assert np.array_equal(together, read(tmp_path / "apart.tif"))


@pytest.mark.slow
def test_nodata_stays(run, parameters, tmp_path):
    values = read(parameters["SPECTRAL"][0])
    values[:, :8, :8] = 0
    path = write(tmp_path / "holes.tif", values, 4.0)
    run("pansharpen", {**parameters, "SPECTRAL": [path], "NODATA": 0})
    fused = gdal.Open(parameters["OUTPUT"])
    nodata = fused.GetRasterBand(1).GetNoDataValue()
    assert nodata is not None
    assert (fused.ReadAsArray()[:, :24, :24] == nodata).all()
    assert not (fused.ReadAsArray()[:, 48:, 48:] == nodata).any()


@pytest.mark.slow
def test_the_layer_is_styled_in_natural_colours(run, parameters):
    run("pansharpen", parameters)
    renderer = QgsRasterLayer(parameters["OUTPUT"], "result").renderer()
    assert (renderer.redBand(), renderer.greenBand(), renderer.blueBand()) == (3, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {"PANCHROMATIC": p["SPECTRAL"][0]}, "band"),
        (lambda p: {"BANDS": "9"}, "9"),
        (lambda p: {"SPECTRAL": [p["PANCHROMATIC"]], "PANCHROMATIC": p["OUTPUT"].replace("out", "coarse")}, "finer"),
    ],
)
def test_what_the_engine_refuses_is_one_sentence(run, parameters, tmp_path, change, words):
    write(tmp_path / "coarse.tif", np.full((1, 16, 16), 5), 8.0)
    with pytest.raises(QgsProcessingException) as caught:
        run("pansharpen", {**parameters, **change(parameters)})
    text = str(caught.value)
    assert words in text
    assert text.endswith(".")
    assert "\n" not in text
    assert not list(tmp_path.glob("out.tif*"))


@pytest.fixture
def large(parameters, tmp_path):
    """A pair that takes long enough to be interrupted."""
    random = np.random.default_rng(3)
    ms = write(tmp_path / "large_ms.tif", random.integers(1, 900, (4, 1024, 1024)), 4.0)
    pan = write(tmp_path / "large_pan.tif", random.integers(1, 900, (1, 4096, 4096)), 1.0)
    return {**parameters, "SPECTRAL": [ms], "PANCHROMATIC": pan}


class Interrupting(Feedback):
    """Does something in mid-run, once."""

    def __init__(self, interrupt):
        super().__init__()
        self._interrupt = interrupt

    def setProgress(self, percent):
        super().setProgress(percent)
        if percent > 5 and self._interrupt:
            interrupt, self._interrupt = self._interrupt, None
            interrupt(self)


@pytest.mark.slow
def test_cancel_in_mid_run(run, large, quiet_seconds):
    feedback = Interrupting(Feedback.cancel_now)
    with pytest.raises(QgsProcessingException, match=r"^Cancelled; nothing was written\.$"):
        run("pansharpen", large, feedback)
    assert quiet_seconds(feedback.cancelled_at) < 1
    assert not list(Path(large["OUTPUT"]).parent.glob("out.tif*"))


@pytest.mark.slow
def test_an_engine_killed_in_mid_run(run, large, parameters):
    feedback = Interrupting(lambda _: os.kill(worker.shared_worker._process._popen.pid, signal.SIGKILL))
    with pytest.raises(QgsProcessingException, match=r"ended during the run \(signal 9\)"):
        run("pansharpen", large, feedback)
    assert not list(Path(large["OUTPUT"]).parent.glob("out.tif*"))
    assert Path(run("pansharpen", parameters)["OUTPUT"]).exists()


def test_an_engine_without_torch(run, parameters, tmp_path):
    """The engine's own words, from a Python that has everything else."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\nPYTHONPATH='{tmp_path}':$PYTHONPATH exec '{sys.executable}' \"$@\"\n")
    path.chmod(0o755)
    replace(Settings.read(), python=str(path)).write()
    with pytest.raises(QgsProcessingException, match=r"has no PyTorch; run .*Set up engine.*\.$"):
        run("pansharpen", parameters)
    results = run("checkengine", {})
    assert results["OK"] is False
    assert "has no PyTorch" in results["REPORT"]


@pytest.mark.slow
def test_assess(run, parameters, tmp_path, feedback):
    run("pansharpen", parameters)
    report = tmp_path / "report.html"
    results = run(
        "assesspansharpening",
        {
            **{"FUSED": parameters["OUTPUT"], "SPECTRAL": parameters["SPECTRAL"]},
            **{"PANCHROMATIC": parameters["PANCHROMATIC"], "REFERENCE": parameters["OUTPUT"]},
            "OUTPUT_HTML": str(report),
        },
        feedback,
    )
    assert results["Q2N"] == pytest.approx(1)  # against itself
    assert results["SAM"] == pytest.approx(0, abs=1e-3)
    for name in ("D_LAMBDA_K", "D_S", "HQNR", "D_LAMBDA", "QNR", "HP_CORRELATION"):
        assert -1 <= results[name] <= 1, name
    assert results["OUTPUT_HTML"] == str(report)
    assert "HQNR" in report.read_text(encoding="utf-8")

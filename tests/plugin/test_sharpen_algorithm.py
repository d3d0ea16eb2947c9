"""Sharpen bands inside QGIS: its parameters, and with the real engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write
from osgeo import gdal
from qgis.core import QgsProcessingException

from clippan.jobs import Radiometry, SharpenRequest, from_json


@pytest.fixture
def bands(tmp_path):
    """Three fine bands and one coarse one of the same place, ratio 4, and the truth of this."""
    rng = np.random.default_rng(0)
    fields = rng.uniform(300, 900, (4, 16, 16)).repeat(8, 1).repeat(8, 2)
    fields[3] = 0.5 * fields[0] + 0.5 * fields[2]
    texture = rng.normal(1, 0.1, (128, 128))
    values = fields * texture
    coarse = values[3:].reshape(1, 32, 4, 32, 4).mean((2, 4))
    names = write(tmp_path / "fine.tif", values[:3], 1.0), write(tmp_path / "coarse.tif", coarse, 4.0, names=["NIR"])
    return {"FINE": [names[0]], "COARSE": [names[1]], "OUTPUT": str(tmp_path / "out.tif")}, values[3]


def test_the_request_is_what_the_dialog_says(run, bands, fake, tmp_path):
    fake("record", RECORD=tmp_path / "record.json")
    parameters, _ = bands
    with pytest.raises(QgsProcessingException):  # the fake engine has no result of this job
        run("sharpenbands", {**parameters, "BANDS": "1", "FINE_BANDS": "1-2", "RADIOMETRY": "area", "REGISTER": False})
    request = from_json(SharpenRequest, json.loads((tmp_path / "record.json").read_text())["request"])
    assert (request.coarse, request.fine) == (tuple(parameters["COARSE"]), tuple(parameters["FINE"]))
    assert (request.bands, request.fine_bands) == ((1,), (1, 2))
    assert (request.radiometry, request.register) == (Radiometry.AREA, False)


@pytest.mark.slow
def test_the_result_is_near_the_truth_and_called_as_the_coarse_band(run, bands, engine):
    parameters, truth = bands
    results = run("sharpenbands", parameters)
    sharp = gdal.Open(parameters["OUTPUT"])
    assert (sharp.RasterXSize, sharp.RasterYSize, sharp.RasterCount) == (128, 128, 1)
    assert sharp.GetRasterBand(1).GetDescription() == "NIR"
    assert np.corrcoef(sharp.ReadAsArray().ravel(), truth.ravel())[0, 1] > 0.95
    assert results["DEVICE_USED"] == "cpu"

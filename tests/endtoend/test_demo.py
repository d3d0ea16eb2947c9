"""The real QGIS, with its window, on the installed zip: what ``make demo`` does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes, and more where other tests run beside it
@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="Xvfb is not installed (the set-up leaves it to displays)")
def test_demo_sharpens_the_scene_on_the_canvas(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--close", "--no-figures", "--folder", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "did not close" not in run.stdout

    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    fused = gdal.Open(answer["results"]["OUTPUT"])
    assert fused.GetMetadata()["CLIPPAN_METHOD"] == "clippan"

    # The same bands and stretch, so the halves differ in detail alone: about as bright, but sharper.
    picture = gdal.Open(str(tmp_path / "demo.png")).ReadAsArray()[:3, 60:-20].astype(float)
    middle = picture.shape[2] // 2
    before, after = picture[:, :, 20 : middle - 20], picture[:, :, middle + 20 : -20]
    assert before.std() > 20
    assert after.mean() == pytest.approx(before.mean(), rel=0.1)
    assert np.abs(np.diff(after)).mean() > 1.2 * np.abs(np.diff(before)).mean()

    with zipfile.ZipFile(tmp_path / "clippan.qgz") as project:
        (name,) = (item for item in project.namelist() if item.endswith(".qgs"))
        text = project.read(name).decode("utf-8")
    assert "pansharpened.tif" in text
    assert text.count('type="multibandcolor"') == 2

"""A QGIS with the plugin in it, engines that misbehave, and small rasters made on the spot."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal, osr
from qgis.core import (
    QgsApplication,
    QgsLayerTreeModel,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsSettings,
)
from qgis.gui import QgsLayerTreeView
from qgis.PyQt import sip

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import clippan_qgis  # noqa: E402
from clippan_qgis.engine import python, worker  # noqa: E402
from clippan_qgis.settings import GROUP, Settings  # noqa: E402

gdal.UseExceptions()
FAKE = Path(__file__).with_name("fake_engine.py")


class Feedback(QgsProcessingFeedback):
    """Keeps what it is told; can cancel itself at the first progress."""

    def __init__(self, cancel_at_progress=False):
        super().__init__(False)
        self.lines, self.debug, self.failures, self.percents, self.texts = [], [], [], [], []
        self._cancel = cancel_at_progress
        self.cancelled_at = None

    def cancel_now(self):
        self.cancelled_at = time.monotonic()
        self.cancel()

    def setProgress(self, percent):
        self.percents.append(percent)
        if self._cancel:
            self.cancel_now()

    def setProgressText(self, text):
        self.texts.append(text)

    def pushInfo(self, text):
        self.lines.append(text)

    def pushConsoleInfo(self, text):
        self.lines.append(text)

    def pushWarning(self, text):
        self.lines.append(text)

    def pushFormattedMessage(self, html, text):
        self.lines.append(text)

    def pushDebugInfo(self, text):
        self.debug.append(text)

    def reportError(self, text, fatal=False):
        self.failures.append(text)


@pytest.fixture(scope="session", autouse=True)
def tidy(qgis_app):
    """Layers in reference cycles go before QGIS does: after it, their files cannot be closed without a crash."""
    yield
    gc.collect()


@pytest.fixture
def feedback():
    return Feedback()


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """Default settings with a cache folder of the test's own; no engine at all."""
    monkeypatch.delenv(python.VARIABLE, raising=False)
    QgsSettings().remove(GROUP)
    settings = Settings(cache=str(tmp_path / "cache"))
    settings.write()
    yield settings
    worker.shared_worker.stop()
    QgsSettings().remove(GROUP)


@pytest.fixture(scope="session")
def qgis_iface(qgis_iface):
    """The fake interface with a layer panel: pytest-qgis has a mock for it."""
    view = QgsLayerTreeView()
    view.setModel(QgsLayerTreeModel(QgsProject.instance().layerTreeRoot(), view))
    qgis_iface.layerTreeView = lambda: view
    yield qgis_iface
    sip.delete(view)  # now, not after QGIS has ended


@pytest.fixture(scope="session")
def plugin(qgis_processing, qgis_iface):
    """The plugin as qgis_process starts it."""
    plugin = clippan_qgis.classFactory(qgis_iface)
    plugin.initProcessing()
    yield plugin
    plugin.unload()


@pytest.fixture
def context(qgis_app):
    """A context that outlives a run, to look at what was loaded; pytest keeps it until QGIS has gone."""
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    yield context
    context.temporaryLayerStore().removeAllMapLayers()


@pytest.fixture
def run(plugin):
    """processing.run, with a context of its own."""
    import processing

    def run(name, parameters, feedback=None, context=None):
        if context is None:
            context = QgsProcessingContext()
            context.setProject(QgsProject.instance())
        return processing.run(f"clippan:{name}", parameters, feedback=feedback or Feedback(), context=context)

    return run


@pytest.fixture
def fake(tmp_path, settings):
    """Makes an engine Python that behaves as it is told, and chooses it in the settings."""

    def make(mode, **variables):
        path = tmp_path / f"python-{mode}"
        exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
        path.write_text(f"#!/bin/sh\n{exports}exec '{sys.executable}' '{FAKE}' {mode} \"$@\"\n")
        path.chmod(0o755)
        replace(Settings.read(), python=str(path)).write()
        return path

    return make


@pytest.fixture
def engine(settings):
    """The real engine, on the Python of these tests."""
    chosen = replace(Settings.read(), python=sys.executable, device="cpu")
    chosen.write()
    return chosen


def write(path, values, pixel, nodata=None, names=(), dtype=gdal.GDT_UInt16, interpretation=None):
    """Writes (bands, height, width) as a GeoTIFF and returns its path."""
    bands, height, width = values.shape
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), width, height, bands, dtype)
    dataset.SetGeoTransform((500000, pixel, 0, 5000000, 0, -pixel))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    for number in range(bands):
        band = dataset.GetRasterBand(number + 1)
        if nodata is not None:
            band.SetNoDataValue(nodata)
        if names:
            band.SetDescription(names[number])
        if interpretation:
            band.SetColorInterpretation(interpretation[number])
        band.WriteArray(values[number])
    dataset = None
    return str(path)


@pytest.fixture
def scene(tmp_path):
    """A pair with four bands (blue, green, red, near infrared) and a ratio of 4: paths of MS and PAN."""
    random = np.random.default_rng(1)
    waves = random.uniform(0.1, 0.5, (4, 2, 1, 1)), random.uniform(0, 6, (4, 1, 1))
    folder = tmp_path / "scène 1"  # spaces and accents, as in real life
    folder.mkdir()
    y, x = np.mgrid[0:128, 0:128] / 4.0
    smooth = 0.5 + 0.4 * np.sin(waves[0][:, 0] * x + waves[1]) * np.cos(waves[0][:, 1] * y)
    fine = smooth + random.normal(0, 0.05, (1, 128, 128))
    coarse = fine.reshape(4, 32, 4, 32, 4).mean((2, 4))
    levels = np.array([300, 500, 700, 1500]).reshape(4, 1, 1)
    pan = np.clip(fine.mean(0, keepdims=True) * 900 + 100, 1, 60000)
    ms = coarse * levels + 100
    return (
        write(
            folder / "ms.tif", ms, 4.0, names=("blue", "green", "red", "nir"), interpretation=[gdal.GCI_GrayIndex] * 4
        ),
        write(folder / "pan.tif", pan, 1.0),
    )


@pytest.fixture
def parameters(scene, tmp_path):
    """Parameters of a pansharpening."""
    return {"SPECTRAL": [scene[0]], "PANCHROMATIC": scene[1], "OUTPUT": str(tmp_path / "out.tif")}


def wait_for(condition, seconds=10.0):
    """Waits in a test, with Qt's events, until a condition holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        QgsApplication.processEvents()
        time.sleep(0.02)


def later(seconds, call):
    """Calls something from another thread."""
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def is_running(pid):
    """Whether a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()

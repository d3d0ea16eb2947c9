"""Search from the locator bar, through QGIS's own locator."""

from __future__ import annotations

import time

import pytest
from conftest import wait_for
from fake_index import asked, write_index
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsLocator,
    QgsLocatorContext,
    QgsLocatorResult,
    QgsRectangle,
)
from qgis.PyQt import sip

from clippan_qgis.engine import worker
from clippan_qgis.gui import locator
from clippan_qgis.gui.highlighter import HitHighlighter
from clippan_qgis.gui.locator import Locator
from clippan_qgis.settings import Recent


@pytest.fixture
def log(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def index(fake, scene, tmp_path, log):
    fake("good", JOBS=log)
    file = write_index(tmp_path / "coast.gpkg", scene[1])
    Recent().with_index(file, True).write()
    return file


@pytest.fixture
def highlighter(qgis_new_project, qgis_canvas):
    qgis_canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:32631"))
    highlighter = HitHighlighter(qgis_canvas)
    yield highlighter
    highlighter.remove()


@pytest.fixture
def bar(highlighter, settings, qgis_app):
    """A locator bar that knows nothing but our filter; results end up in its list."""
    bar = QgsLocator()
    bar.found = []
    bar.foundResult.connect(lambda item: bar.found.append(QgsLocatorResult(item)))  # it lives as long as the signal
    bar.registerFilter(Locator(highlighter))
    yield bar
    bar.cancelWithoutBlocking()
    wait_for(lambda: not bar.isRunning())
    sip.delete(bar)  # now, not after QGIS has ended


def ask(bar, text):
    del bar.found[:]
    bar.fetchResults(text, QgsLocatorContext())
    wait_for(lambda: not bar.isRunning())


def test_the_prefix_is_free_and_long_enough(bar):
    (item,) = bar.filters()
    assert item.activePrefix() == "find"
    assert not item.useWithoutPrefix()


def test_the_best_places_come_and_choosing_one_flies_there(bar, index, log, qgis_canvas):
    qgis_canvas.setExtent(QgsRectangle(0, 0, 1000, 1000))
    ask(bar, "find river mouth without ships")
    assert len(bar.found) == 8
    first = bar.found[0]
    assert (first.displayString, first.description) == ("1  river mouth, 95 %", "pan.tif")
    assert sorted(bar.found, key=lambda item: -item.score)[0].displayString == first.displayString
    assert sorted(item.displayString for item in bar.found) == [item.displayString for item in bar.found]
    (request,) = asked(log, "search")
    assert (request["text"], request["without"], request["top"]) == (["river mouth"], ["ships"], 8)
    bar.filters()[0].triggerResult(first)
    bounds = QgsRectangle(500000, 4999968, 500032, 5000000)
    assert qgis_canvas.extent().contains(bounds)
    assert qgis_canvas.extent().width() < 10 * bounds.width()


@pytest.mark.parametrize("text", ["river mouth", "find ri", "find ", "find -ships", "l river"])
def test_it_is_silent_without_its_prefix_or_with_few_letters(bar, index, log, text):
    ask(bar, text)
    assert bar.found == []
    assert not log.exists()
    assert worker.shared_worker._process is None, "no engine is started for other people's words"


def test_even_if_the_user_switches_it_on_without_prefix_it_waits_for_it(bar, index, log):
    bar.filters()[0].setUseWithoutPrefix(True)
    ask(bar, "river mouth")
    assert not log.exists()


def type_over(bar, log, text):
    """Asks, and cancels as QGIS does when the user types on."""
    bar.fetchResults(text, QgsLocatorContext())
    wait_for(lambda: asked(log, "search"))
    start = time.monotonic()
    bar.cancelWithoutBlocking()
    wait_for(lambda: not bar.isRunning())
    assert time.monotonic() - start < 0.5
    assert bar.found == []


def test_who_types_on_waits_for_nothing_and_keeps_the_warm_engine(bar, index, log):
    type_over(bar, log, "find long")
    process = worker.shared_worker._process
    ask(bar, "find river")
    assert len(bar.found) == 8
    assert bar.found[0].displayString.startswith("1  river")
    assert worker.shared_worker._process is process


def test_a_search_that_takes_too_long_is_cancelled_in_the_end(bar, index, log, monkeypatch):
    monkeypatch.setattr(locator, "CANCEL_GRACE_SECONDS", 1.0)
    type_over(bar, log, "find slow")
    ask(bar, "find river")
    assert len(bar.found) == 8


def test_the_end_of_the_plugin_ends_searches_that_nobody_waits_for(bar, index, log):
    type_over(bar, log, "find slow")
    bar.fetchResults("find river", QgsLocatorContext())
    bar.cancelWithoutBlocking()
    wait_for(lambda: not bar.isRunning())
    locator.stop()
    wait_for(lambda: not locator._searches, seconds=3)
    assert [request["text"] for request in asked(log, "search")] == [["slow"]]


def test_what_is_missing_is_said(bar, fake, settings):
    ask(bar, "find river")
    assert [item.description for item in bar.found] == ["No index is chosen; choose one in the CLIPPan search panel."]
    bar.filters()[0].triggerResult(bar.found[0])  # a sentence is no place
    Recent().with_index("/data/a.gpkg", True).write()
    ask(bar, "find river")
    assert "Set up engine" in bar.found[0].description
    fake("fails")
    ask(bar, "find river")
    assert bar.found[0].description.startswith("The engine failed unexpectedly")

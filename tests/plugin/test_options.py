"""The options page."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import wait_for
from qgis.core import QgsApplication, QgsAuthMethodConfig
from qgis.PyQt.QtWidgets import QApplication

from clippan_qgis.engine import variables
from clippan_qgis.gui.options import OptionsFactory, OptionsPage
from clippan_qgis.settings import Settings


@pytest.fixture
def page(settings, qgis_parent):
    page = OptionsFactory().createWidget(qgis_parent)
    yield page
    page.deleteLater()


def test_page_shows_saves_and_restores(qgis_parent, tmp_path):
    saved = Settings("/my/python", "cpu", str(tmp_path), "/models", "https://mirror.example", "")
    saved.write()
    page = OptionsPage(qgis_parent)
    assert page.settings() == saved
    changed = replace(saved, python="", device="cuda", endpoint="")
    page.show_settings(changed)
    page.apply()
    assert Settings.read() == changed
    assert OptionsPage(qgis_parent).settings() == changed


def test_what_is_not_applied_is_not_saved(page, settings):
    page.endpoint.setText("https://mirror.example")
    assert Settings.read() == settings


def test_check_shows_the_doctors_text(page, fake):
    page.python.setFilePath(str(fake("good")))
    page.check.click()
    assert not page.check.isEnabled()
    wait_for(page.check.isEnabled)
    assert "the doctor's text" in page.report.toPlainText()
    page.copy.click()
    assert QApplication.clipboard().text() == page.report.toPlainText()


def test_check_looks_at_what_is_typed_and_says_what_is_wrong(page, fake):
    fake("good")
    page.python.setFilePath("/nowhere/python")
    page.check.click()
    assert "does not exist" in page.report.toPlainText()
    page.python.setFilePath(str(fake("junk")))
    page.check.click()
    wait_for(page.check.isEnabled)
    assert "ended before it answered" in page.report.toPlainText()


def test_set_up_opens_the_algorithm(page, plugin, monkeypatch):
    import processing

    shown = []

    class Dialog:
        def show(self):
            shown.append(self)

    monkeypatch.setattr(processing, "createAlgorithmDialog", lambda name: shown.append(name) or Dialog())
    page.setup.click()
    assert shown[0] == "clippan:setupengine"
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("method", "entries"),
    [("Basic", {"username": "me", "password": "hf_secret"}), ("APIHeader", {"Authorization": "Bearer hf_secret"})],
)
def test_the_hub_token_comes_from_the_authentication_manager(settings, method, entries, tmp_path):
    manager = QgsApplication.authManager()
    if not manager.masterPasswordIsSet():
        assert manager.setMasterPassword("test", True)
    config = QgsAuthMethodConfig(method)
    config.setName("hub")
    config.setConfigMap(entries)
    stored = manager.storeAuthenticationConfig(config)
    config = stored[1] if isinstance(stored, tuple) else config
    assert config.id()
    found = variables.for_worker(replace(settings, authcfg=config.id()), own_gdal=True)
    assert found["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(Settings.read())
    manager.removeAuthenticationConfig(config.id())

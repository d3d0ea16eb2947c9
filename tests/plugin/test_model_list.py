"""Listing, downloading and removing models, from the toolbox and on the options page."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import wait_for
from qgis.core import QgsProcessingException
from qgis.PyQt.QtWidgets import QMessageBox

from clippan.catalogue.models import MODELS
from clippan_qgis.gui.options import OptionsPage
from clippan_qgis.settings import Settings

MODEL = MODELS["farslip2-b16"]
FOLDER = MODEL.repository.replace("/", "--")


@pytest.fixture
def page(engine, qgis_parent):
    page = OptionsPage(qgis_parent, engine)
    yield page
    page.deleteLater()


def put(folder: Path, content: bytes = b"weights") -> Path:
    """Puts a file where a model's weights belong."""
    path = folder / FOLDER / MODEL.file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def put_in_cache(settings: Settings) -> Path:
    """Puts weights into the cache, with the record that a download leaves."""
    path = put(settings.cache_folder / "models")
    record = {"repository": MODEL.repository, "file": MODEL.file, "revision": "c0ffee", "sha256": "0" * 64, "size": 7}
    (settings.cache_folder / "models.lock.json").write_text(json.dumps({MODEL.id: record}))
    return path


def select(models):
    item = next(
        models.tree.topLevelItem(row)
        for row in range(models.tree.topLevelItemCount())
        if models.tree.topLevelItem(row).text(0) == MODEL.label
    )
    models.tree.setCurrentItem(item)
    return item


def test_list_names_all_models_and_those_that_are_here(run, engine, feedback):
    put_in_cache(engine)
    results = run("listmodels", {}, feedback)
    assert results["INSTALLED"] == f"starter,{MODEL.id}"
    assert results["SIZE"] == 7
    assert results["FOLDER"] == str(engine.cache_folder / "models")
    text = "\n".join(feedback.lines)
    assert all(model.label in text and model.licence in text for model in MODELS.values())


def test_download_from_the_offline_folder(run, engine, feedback, tmp_path):
    path = put(tmp_path / "offline")
    replace(engine, offline=str(tmp_path / "offline")).write()
    results = run("downloadmodel", {"MODEL": MODEL.id}, feedback)
    assert results["FILE"] == str(path)
    assert len(results["SHA256"]) == 64


def test_a_hub_that_refuses_is_one_sentence(run, engine, feedback, tmp_path):
    class Gate(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        replace(engine, endpoint=f"http://127.0.0.1:{server.server_port}").write()
        with pytest.raises(QgsProcessingException, match=r"accept it at .* then enter your token in the options"):
            run("downloadmodel", {"MODEL": MODEL.id}, feedback)
    finally:
        server.shutdown()
        server.server_close()
    assert any(MODEL.licence in line for line in feedback.lines), "the licence is shown first"
    assert not list((engine.cache_folder / "models").rglob("*.p*"))


def test_the_page_lists_all_models_at_once_and_what_is_here_when_it_knows(page, engine):
    put_in_cache(engine)
    models = page.models
    assert models.tree.topLevelItemCount() == len(MODELS)
    item = select(models)
    assert models.download.isEnabled()
    models.refresh()
    assert not models.reload.isEnabled()
    wait_for(models.reload.isEnabled)
    assert item.text(3) == "downloaded"
    assert models.remove.isEnabled()
    assert not models.download.isEnabled()
    assert "models" in models.state.text()


def test_a_model_is_removed_once_the_user_agrees(page, engine, monkeypatch):
    path = put_in_cache(engine)
    models = page.models
    item = select(models)
    models.refresh()
    wait_for(models.reload.isEnabled)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.No)
    models.remove.click()
    assert path.exists()
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    models.remove.click()
    wait_for(lambda: models.reload.isEnabled() and not item.text(3))
    assert not path.exists()
    assert models.download.isEnabled()


def test_download_opens_the_algorithm_with_the_model(page, plugin, monkeypatch):
    import processing

    shown = []

    class Dialog:
        class finished:
            connect = staticmethod(shown.append)

        def show(self):
            shown.append("shown")

    monkeypatch.setattr(processing, "createAlgorithmDialog", lambda *arguments: shown.append(arguments) or Dialog())
    select(page.models)
    page.endpoint.setText("https://mirror.example")
    page.models.download.click()
    assert shown[0] == ("clippan:downloadmodel", {"MODEL": MODEL.id})
    assert shown[-1] == "shown"
    assert Settings.read().endpoint == "https://mirror.example"


def test_without_an_engine_the_page_says_how_to_get_one(settings, qgis_parent):
    page = OptionsPage(qgis_parent)
    page.models.refresh()
    assert "Set up engine" in page.models.state.text()
    assert page.models.reload.isEnabled()
    page.deleteLater()


def test_the_registry_is_read_without_heavy_modules():
    assert "huggingface_hub" not in sys.modules
    assert "open_clip" not in sys.modules

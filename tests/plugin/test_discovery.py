"""Which Python runs the engine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from qgis.core import QgsProcessingException

from clippan.core.errors import ClippanError
from clippan_qgis.engine import environment, python
from clippan_qgis.settings import Settings


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def managed(settings, steps=environment.STEPS):
    folder = environment.environment_folder(settings.cache_folder)
    path = program(environment.python_in(folder))
    (folder / "clippan.json").write_text(json.dumps(dict.fromkeys(steps, "key")))
    return path


def test_the_setting_comes_first_then_the_variable_then_the_managed_environment(settings, tmp_path, monkeypatch):
    made = managed(settings)
    found = python.find_interpreter(settings)
    assert (found.path, found.origin) == (made, "“Set up engine”")
    variable = program(tmp_path / "variable")
    monkeypatch.setenv("CLIPPAN_PYTHON", variable)
    found = python.find_interpreter(settings)
    assert (found.path, found.origin) == (variable, "the variable CLIPPAN_PYTHON")
    chosen = program(tmp_path / "chosen")
    assert python.find_interpreter(replace(settings, python=chosen)).path == chosen


def test_the_folder_of_an_environment_will_do(settings, tmp_path):
    path = program(tmp_path / "venv" / "bin" / "python")
    assert python.find_interpreter(replace(settings, python=str(tmp_path / "venv"))).path == path


def test_a_named_python_that_is_missing_is_no_reason_to_take_another(settings, tmp_path, monkeypatch):
    managed(settings)
    with pytest.raises(ClippanError, match=r"Engine Python.*does not exist; correct it under Settings"):
        python.find_interpreter(replace(settings, python="/nowhere/python"))
    monkeypatch.setenv("CLIPPAN_PYTHON", "/nowhere/python")
    with pytest.raises(ClippanError, match=r"CLIPPAN_PYTHON\) does not exist; correct it or remove it"):
        python.find_interpreter(settings)


def test_a_file_that_cannot_be_executed(settings, tmp_path):
    path = tmp_path / "python.txt"
    path.write_text("")
    with pytest.raises(ClippanError, match="cannot be executed"):
        python.find_interpreter(replace(settings, python=str(path)))


def test_no_python_at_all(settings):
    with pytest.raises(ClippanError, match=r"no Python yet; run “Set up engine”.*Settings ▸ Options ▸ CLIPPan\.$"):
        python.find_interpreter(settings)


def test_a_half_made_environment(settings):
    managed(settings, environment.STEPS[:2])
    with pytest.raises(ClippanError, match="incomplete; run “Set up engine” again"):
        python.find_interpreter(settings)


def test_without_an_engine_the_algorithms_say_how_to_get_one(plugin, run, parameters, qgis_app):
    algorithm = qgis_app.processingRegistry().createAlgorithmById("clippan:pansharpen")
    possible, message = algorithm.canExecute()
    assert not possible
    assert "Set up engine" in message
    with pytest.raises(QgsProcessingException) as caught:
        run("pansharpen", parameters)
    assert str(caught.value) == message


def test_check_engine_works_without_an_engine(run, feedback):
    results = run("checkengine", {}, feedback)
    assert results["OK"] is False
    assert "Set up engine" in results["REPORT"]
    assert feedback.failures == [results["REPORT"]]


def test_check_engine_shows_the_doctors_text(run, fake, feedback):
    path = fake("good")
    results = run("checkengine", {"DEVICE": "cpu"}, feedback)
    assert results["OK"] is True
    assert "the doctor's text" in feedback.lines
    assert str(path) in results["REPORT"]


@pytest.mark.slow
def test_check_engine_with_the_real_engine(run, engine, feedback):
    results = run("checkengine", {}, feedback)
    assert results["OK"] is True, results
    assert sys.executable in results["REPORT"]
    assert "torch" in results["REPORT"].lower()


def test_settings_are_read_as_they_were_written():
    written = Settings("/a", "cpu", "/b", "/c", "https://d", "abc1234")
    written.write()
    assert Settings.read() == written
    Settings().write()
    assert Settings.read() == Settings()

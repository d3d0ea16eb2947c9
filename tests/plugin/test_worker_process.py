"""The engine's process: warm, shared, and every way in which it can fail, each in one sentence."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Feedback, is_running, later, wait_for
from qgis.core import QgsProcessingException

from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs import DoctorRequest
from clippan_qgis.engine import variables, worker
from clippan_qgis.settings import Settings


def ask(feedback):
    return worker.shared_worker.run(worker.launch_for(Settings.read()), DoctorRequest(), feedback)


def pid():
    return worker.shared_worker._process._popen.pid


def is_one_sentence(text):
    return text.endswith(".") and "\n" not in text and "Traceback" not in text and ". " not in text


def test_a_job_reports_progress_and_log(fake, feedback):
    fake("good")
    assert ask(feedback).text == "the doctor's text"
    assert feedback.percents == [10]
    assert feedback.texts == ["Working"]
    assert "a line of the log" in feedback.lines


def test_the_process_stays_warm_and_ends_with_the_plugin(fake, feedback):
    fake("good")
    ask(feedback)
    first = pid()
    ask(feedback)
    assert pid() == first
    worker.shared_worker.stop()
    wait_for(lambda: not is_running(first))


def test_another_interpreter_or_other_settings_start_another_process(fake, feedback, tmp_path):
    fake("good")
    ask(feedback)
    first = pid()
    replace(Settings.read(), endpoint="https://mirror.example").write()
    ask(feedback)
    second = pid()
    assert second != first
    fake("polite-good")
    ask(feedback)
    assert pid() != second
    assert not is_running(first)
    assert not is_running(second)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("refuses", ("protocol 3", "update both")),
        ("other-protocol", ("protocol 99", "protocol", "update both")),
        ("junk", ("ended before it answered (I am no engine)", "choose another")),
        ("silent-end", ("ended before it answered (exit code 0); choose another under",)),
        ("fails-early", ("ended before it answered (ModuleNotFoundError: No module named 'json')", "choose another")),
        ("silent", ("did not answer within 1 seconds", "choose another")),
        ("without-torch", ("PyTorch is missing", "Set up engine")),
        ("fails", ("failed unexpectedly", "KeyError")),
        ("dies", ("ended during the run (signal 9)", "run the job again")),
    ],
)
def test_every_failure_is_one_sentence(fake, run, parameters, feedback, monkeypatch, mode, words):
    monkeypatch.setattr(worker, "HANDSHAKE_SECONDS", 1)
    fake(mode)
    with pytest.raises(QgsProcessingException) as caught:
        run("pansharpen", parameters, feedback)
    text = str(caught.value)
    assert is_one_sentence(text)
    for word in words:
        assert word in text
    folder = Path(parameters["OUTPUT"]).parent
    assert not list(folder.glob("out.tif*"))
    assert not list(folder.glob(".clippan-*"))


def test_the_traceback_goes_to_the_log(fake, feedback):
    fake("fails")
    with pytest.raises(ClippanError):
        ask(feedback)
    assert any("Traceback: x" in text for text in feedback.debug)


def test_last_words_go_to_the_log(fake, feedback):
    fake("dies")
    with pytest.raises(ClippanError):
        ask(feedback)
    assert any("out of memory, said the kernel" in text for text in feedback.debug)


def test_something_that_cannot_be_started(tmp_path, settings, feedback):
    path = tmp_path / "python"
    path.write_bytes(b"\x00\x01 no program")
    path.chmod(0o755)
    replace(settings, python=str(path)).write()
    with pytest.raises(ClippanError, match="cannot be started") as caught:
        ask(feedback)
    assert is_one_sentence(str(caught.value))


def test_after_a_death_in_mid_run_the_next_run_works(fake, run, parameters, tmp_path):
    fake("dies-once", MARKER=tmp_path / "marker")
    with pytest.raises(QgsProcessingException, match="during the run"):
        run("pansharpen", parameters)
    assert not list(tmp_path.glob("*out.tif*"))
    assert not list(tmp_path.glob(".clippan-*"))
    assert Path(run("pansharpen", parameters)["OUTPUT"]).exists()


def test_after_a_death_between_two_runs_the_next_run_works(fake, feedback):
    fake("good")
    ask(feedback)
    os.kill(pid(), signal.SIGKILL)
    wait_for(lambda: not worker.shared_worker._process.is_alive())
    assert ask(feedback).ok


def test_a_killed_worker_says_so_and_the_next_run_works(fake, feedback):
    fake("hangs")
    later(0.5, lambda: os.kill(pid(), signal.SIGKILL))
    with pytest.raises(ClippanError, match="during the run"):
        ask(feedback)
    fake("good")
    assert ask(feedback).ok


@pytest.mark.parametrize("mode", ["polite", "hangs"])
def test_cancel_is_answered_within_a_second(fake, run, parameters, mode, quiet_seconds):
    fake(mode)
    feedback = Feedback(cancel_at_progress=True)
    with pytest.raises(QgsProcessingException, match=r"^Cancelled; nothing was written\.$"):
        run("pansharpen", parameters, feedback)
    assert quiet_seconds(feedback.cancelled_at) < 1
    folder = Path(parameters["OUTPUT"]).parent
    assert not list(folder.glob("out.tif*"))
    assert not list(folder.glob(".clippan-*"))
    # A worker that answers keeps its models in memory; one that does not is ended.
    assert (worker.shared_worker._process is not None) == (mode == "polite")


def test_cancel_while_the_engine_starts(fake, feedback, quiet_seconds):
    fake("silent")
    later(0.3, feedback.cancel_now)
    with pytest.raises(Cancelled):
        ask(feedback)
    assert quiet_seconds(feedback.cancelled_at) < 1
    assert worker.shared_worker._process is None


def test_a_second_job_waits_for_its_turn_and_can_be_cancelled(fake, quiet_seconds):
    fake("hangs")
    first, second = Feedback(), Feedback()
    failures = []

    def hang():
        try:
            ask(first)
        except Cancelled:
            failures.append("first")

    thread = threading.Thread(target=hang)
    thread.start()
    wait_for(lambda: first.percents)
    later(0.2, second.cancel_now)
    with pytest.raises(Cancelled):
        ask(second)
    assert second.percents == []
    assert quiet_seconds(second.cancelled_at) < 1
    first.cancel_now()
    thread.join(3)
    assert failures == ["first"]


def test_the_environment_is_scrubbed(fake, run, feedback, monkeypatch, tmp_path):
    for name in ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "PIP_TARGET", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.setenv("SSL_CERT_FILE", "/opt/company/ca.pem")
    record = tmp_path / "record.json"
    fake("record", RECORD=record)
    replace(Settings.read(), endpoint="https://mirror.example", offline="/models").write()
    run("checkengine", {}, feedback)
    seen = json.loads(record.read_text())["environment"]
    for name in ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "PIP_TARGET", "PIP_INDEX_URL"):
        assert name not in seen
    assert Path(seen["PYTHONPATH"], "clippan", "worker.py").exists()
    assert seen["PYTHONSAFEPATH"] == "1"
    assert seen["PYTHONUNBUFFERED"] == "1"
    assert seen["PYTHONIOENCODING"] == "utf-8"
    assert seen["HF_ENDPOINT"] == "https://mirror.example"
    assert seen["HF_HOME"] == str(tmp_path / "cache" / "huggingface")
    assert seen["CLIPPAN_OFFLINE"] == "/models"
    assert seen["SSL_CERT_FILE"] == "/opt/company/ca.pem"  # the user's own stays


def test_what_belongs_to_a_qgis_bundle_does_not_reach_another_python(monkeypatch):
    monkeypatch.setattr(variables.QgsApplication, "prefixPath", lambda: "/Applications/QGIS.app/Contents/MacOS")
    inside = "/Applications/QGIS.app/Contents/Resources/"
    given = {
        "SSL_CERT_FILE": f"{inside}cacert.pem",
        "PROJ_DATA": f"{inside}proj",
        "GDAL_DATA": "/opt/mine",
        "CURL_CA_BUNDLE": "/etc/ca.pem",
    }
    other = variables.clean_variables(own_gdal=True, variables=given)
    assert "SSL_CERT_FILE" not in other
    assert "PROJ_DATA" not in other
    assert other["GDAL_DATA"] == "/opt/mine"
    assert other["CURL_CA_BUNDLE"] == "/etc/ca.pem"
    own = variables.clean_variables(own_gdal=False, variables=given)
    assert own["PROJ_DATA"] == f"{inside}proj"


def test_whose_gdal_a_python_uses(monkeypatch, tmp_path):
    monkeypatch.setattr(variables.QgsApplication, "prefixPath", lambda: "/Applications/QGIS.app/Contents/MacOS")
    inside = "/Applications/QGIS.app/Contents/MacOS/bin"
    assert not variables.has_own_gdal(f"{inside}/python3")
    assert variables.has_own_gdal("/opt/conda/bin/python")
    config = tmp_path / "pyvenv.cfg"
    for home, shares, expected in ((inside, "true", False), (inside, "false", True), ("/opt/conda/bin", "true", True)):
        config.write_text(f"home = {home}\ninclude-system-site-packages = {shares}\n")
        assert variables.has_own_gdal(str(tmp_path / "bin" / "python")) is expected

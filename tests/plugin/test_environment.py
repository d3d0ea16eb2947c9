"""Set up engine, on a folder of tiny wheels; the code that runs is the one that installs PyTorch."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from conftest import Feedback
from qgis.core import QgsProcessingException, QgsSettings
from qgis.PyQt.QtCore import QLockFile

from clippan_qgis.engine import environment, pip_settings, python, variables
from clippan_qgis.engine.pip_settings import config_files as pip_files

MODULES = {
    "torch": ("torch", "9.0"),
    "torchvision": ("torchvision", "9.0"),
    "open_clip_torch": ("open_clip", "9.0"),
    "huggingface_hub": ("huggingface_hub", "9.0"),
    "safetensors": ("safetensors", "9.0"),
    "scikit_learn": ("sklearn", "9.0"),
    "psycopg": ("psycopg", "9.0"),
    "psycopg_binary": ("psycopg_binary", "9.0"),
}


def wheel(folder, name, module, version, requires=(), code=""):
    """Writes a wheel that holds one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{module}.py": f"__version__ = {version!r}\n{code}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {item}\n" for item in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}\n")
    files[f"{info}/RECORD"] = "".join(lines) + f"{info}/RECORD,,\n"
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return target


@pytest.fixture(autouse=True)
def pip_conf(monkeypatch, tmp_path):
    """Cuts these tests off from the machine's pip settings; writes a configuration file that is the only one."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    path = tmp_path / "pip.conf"
    monkeypatch.setattr(
        pip_settings, "config_files", lambda lines: [file for file in pip_files(lines) if file == str(path)]
    )

    def make(text):
        path.write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(path))
        return path

    return make


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with all that is needed; a newer torch and numpy lie there as bait."""
    folder = tmp_path_factory.mktemp("wheels with spaces")
    for name, (module, version) in MODULES.items():
        wheel(folder, name, module, version, ["torch", "numpy"] if name == "open_clip_torch" else ())
    wheel(folder, "numpy", "numpy", "99.0")
    return folder


def package_index(folder, wheels, names=tuple(MODULES)):
    """A package index of these wheels, as a folder."""
    for name in names:
        page = folder / name.replace("_", "-")
        page.mkdir(parents=True)
        files = list(wheels.glob(f"{name}-*.whl"))
        for file in files:
            (page / file.name).write_bytes(file.read_bytes())
        links = (f'<a href="{file.name.replace("+", "%2B")}">{file.name}</a>' for file in files)
        (page / "index.html").write_text("\n".join(links))
    return folder


@pytest.fixture
def indexes(monkeypatch, tmp_path, wheels):
    """PyPI and PyTorch's own index, with torch in two releases; returns the folder of the latter's wheels."""
    folder = tmp_path / "torch wheels"
    folder.mkdir()
    for release in ("2.5", "9.0"):
        wheel(folder, "torch", "torch", f"{release}+cpu")
        wheel(folder, "torchvision", "torchvision", f"{release}+cpu", [f"torch=={release}"])
    package_index(tmp_path / "whl" / "cpu", folder, environment.TORCH_PACKAGES)
    monkeypatch.setattr(environment, "WHEELS_URL", (tmp_path / "whl").as_uri())
    monkeypatch.setenv("PIP_INDEX_URL", package_index(tmp_path / "simple", wheels).as_uri())
    return folder


def folder_of(settings):
    return environment.environment_folder(settings.cache_folder)


@pytest.mark.slow
def test_set_up_from_a_folder_of_wheels(run, wheels, settings, feedback):
    results = run("setupengine", {"WHEELS": str(wheels)}, feedback)
    path = Path(results["PYTHON"])
    assert path == environment.python_in(folder_of(settings))
    assert python.find_interpreter(settings).path == str(path)
    # QGIS's GDAL and numpy are seen, torch is the environment's own, and numpy was held.
    code = "import torch, numpy; from osgeo import gdal; print(torch.__version__, numpy.__version__)"
    said = subprocess.run([path, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    import numpy

    assert said == ["9.0", numpy.__version__]
    installed = (folder_of(settings) / "installed.txt").read_text()
    assert "torch @" in installed or "torch==9.0" in installed
    assert feedback.percents[-1] == 100
    log = folder_of(settings).with_name(f"{folder_of(settings).name}.log").read_text()
    assert "pip install torch>=" in log

    # A second run has nothing to do, and takes no time.
    again = Feedback()
    started = time.monotonic()
    run("setupengine", {"WHEELS": str(wheels)}, again)
    assert sum("already done" in line for line in again.lines) == len(environment.STEPS)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_failed_run_names_the_cause_and_the_next_one_goes_on(run, wheels, settings, tmp_path):
    poor = tmp_path / "poor"
    poor.mkdir()
    for name in ("torch", "torchvision"):
        (poor / f"{name}-9.0-py3-none-any.whl").write_bytes((wheels / f"{name}-9.0-py3-none-any.whl").read_bytes())
    with pytest.raises(QgsProcessingException) as caught:
        run("setupengine", {"WHEELS": str(poor)})
    text = str(caught.value)
    assert "could not be installed (No matching distribution found for open_clip_torch" in text
    assert text.endswith("; add the missing wheels to the folder.")
    assert "\n" not in text
    assert not environment.is_complete(folder_of(settings))

    feedback = Feedback()
    run("setupengine", {"WHEELS": str(wheels)}, feedback)
    assert sum("already done" in line for line in feedback.lines) == 2  # environment and torch
    assert environment.is_complete(folder_of(settings))

    # A broken installation is found, and “Start afresh” mends it.
    mark = folder_of(settings) / "left-over"
    mark.write_text("")
    run("setupengine", {"WHEELS": str(wheels), "RESET": True})
    assert not mark.exists()
    assert environment.is_complete(folder_of(settings))


@pytest.mark.slow
def test_what_does_not_work_is_not_called_ready(run, wheels, settings, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for item in wheels.iterdir():
        (broken / item.name).write_bytes(item.read_bytes())
    wheel(broken, "torch", "torch", "9.0", code="raise ImportError('DLL load failed while importing _C')")
    with pytest.raises(QgsProcessingException, match=r"do not work \(ImportError: DLL load failed.*Visual C\+\+"):
        run("setupengine", {"WHEELS": str(broken)})
    assert not environment.is_complete(folder_of(settings))


@pytest.mark.slow
def test_cancel_stops_at_once_and_the_next_run_goes_on(run, wheels, settings, quiet_seconds):
    feedback = Feedback()
    push = feedback.pushInfo

    def cancel_in_the_first_step(text):
        push(text)
        if "virtual environment" in text:
            feedback.cancel_now()

    feedback.pushInfo = cancel_in_the_first_step
    with pytest.raises(QgsProcessingException, match=r"^Cancelled"):
        run("setupengine", {"WHEELS": str(wheels)}, feedback)
    assert quiet_seconds(feedback.cancelled_at) < 1
    assert not environment.is_complete(folder_of(settings))
    run("setupengine", {"WHEELS": str(wheels)})
    assert environment.is_complete(folder_of(settings))


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_no_dead_end(run, wheels, settings, feedback, monkeypatch, tmp_path):
    """torch from PyPI instead, and the log says so; the mirror that the user's pip knows stands in for PyPI."""
    monkeypatch.setenv("PIP_INDEX_URL", package_index(tmp_path / "simple", wheels).as_uri())
    monkeypatch.setattr(environment, "WHEELS_URL", "http://127.0.0.1:9/whl")
    run("setupengine", {"TORCH": "cpu"}, feedback)
    assert any(
        "could not be downloaded from http://127.0.0.1:9/whl/cpu; downloading it from PyPI" in line
        for line in feedback.lines
    )
    assert environment.is_complete(folder_of(settings))


def installed_torch(settings):
    lines = (folder_of(settings) / "installed.txt").read_text().splitlines()
    return [line.rsplit("/")[-1] for line in lines if line.startswith("torch")]


@pytest.mark.slow
def test_torch_comes_from_its_index_alone(run, indexes, settings, feedback, pip_conf, tmp_path):
    """A newer torch in another place of the user's pip would not fit the index's torchvision."""
    bait = tmp_path / "bait"
    bait.mkdir()
    wheel(bait, "torch", "torch", "10.0")
    wheel(bait, "torchvision", "torchvision", "10.0")
    package_index(tmp_path / "more", bait, environment.TORCH_PACKAGES)
    pip_conf(f"[global]\nfind-links = {bait}\nextra-index-url = {(tmp_path / 'more').as_uri()}\n")
    run("setupengine", {"TORCH": "cpu"}, feedback)
    assert len(installed_torch(settings)) == 2
    assert all("9.0" in line for line in installed_torch(settings)), installed_torch(settings)
    assert not any("could not be downloaded" in line for line in feedback.lines)


@pytest.mark.slow
def test_a_site_says_which_release_but_not_where_it_goes(
    run, indexes, settings, feedback, pip_conf, tmp_path, monkeypatch
):
    """A release that the cap allows is taken; other settings would lead pip out of the environment."""
    cap = tmp_path / "cap.txt"
    cap.write_text("# tried with these\nTorch<=2.14.1\n")
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "own"))
    lines = [f"{name} = {tmp_path / 'elsewhere'}" for name in ("target", "prefix", "root")]
    pip_conf("\n".join(["[global]", f"constraint = {cap}", *lines, "no-deps = true", "[install]", "user = true"]))
    run("setupengine", {"TORCH": "cpu"}, feedback)
    assert len(installed_torch(settings)) == 2
    assert all("2.5" in line for line in installed_torch(settings)), installed_torch(settings)
    assert not any("could not be downloaded" in line for line in feedback.lines)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "own").exists()


SETTINGS = {
    "constraint = CAP": "(CAP allows only torch<2.5); change that file, which “constraint” in CONF names, or",
    "require-hashes = true": "In --require-hashes mode, all requirements must have their versions pinned with ==. "
    "These do not); correct “require-hashes” in CONF, or",
    "no-index = yes": "); remove “no-index” in CONF, which hides releases, or",
    "no_binary = :all:": "); remove “no-binary” in CONF, which hides releases, or",
    "constraint = /nowhere/cap.txt": "'/nowhere/cap.txt'); correct “constraint” in CONF, or",
    "timeout = soon": "option timeout: invalid floating-point value: 'soon'); correct its settings (pip.conf or",
}


@pytest.mark.slow
def test_a_setting_that_stands_in_the_way_is_named(run, indexes, pip_conf, tmp_path, monkeypatch):
    """The environment is made once; each next run goes on from there, and fails in its own way."""
    cap = tmp_path / "cap.txt"
    cap.write_text("scipy<2\ntorch<2.5\n")

    def sentence():
        with pytest.raises(QgsProcessingException) as caught:
            run("setupengine", {"TORCH": "cpu"})
        said = str(caught.value)
        assert "network" not in said
        assert "\n" not in said
        return said

    for setting, expected in SETTINGS.items():
        path = pip_conf(f"[global]\n{setting.replace('CAP', str(cap))}\n")
        assert expected.replace("CAP", str(cap)).replace("CONF", str(path)) in sentence()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CONSTRAINT", str(cap))
    assert sentence() == (
        f"torch, torchvision could not be installed ({cap} allows only torch<2.5); change that file, which the "
        "variable PIP_CONSTRAINT names, or give a folder of wheels, and run this again."
    )


def test_which_of_pips_files_overrules_which():
    said = """env_var:
  PIP_CONFIG_FILE='/e.conf'
env:
  /e.conf, exists: True
    global.constraint: /etc/cap, exists: True
global:
  /etc/xdg/pip/pip.conf, exists: True
  /etc/pip.conf, exists: False
site:
  C:\\venv\\pip.ini, exists: True
user:
  /home/a b/pip.conf, exists: True
"""
    expected = ["/etc/xdg/pip/pip.conf", "/home/a b/pip.conf", "C:\\venv\\pip.ini", "/e.conf"]
    assert pip_files(said.splitlines()) == expected


def test_the_network_is_blamed_where_it_is_the_cause():
    hiding = pip_settings.Setting("only-binary", ":all:", "/pip.conf")
    said = [
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/torch/",
        "ERROR: Could not find a version that satisfies the requirement torch>=2.4 (from versions: none)",
        "ERROR: No matching distribution found for torch>=2.4",
    ]
    assert pip_settings.find_faulty_setting(said, [hiding], []) is None
    assert pip_settings.find_faulty_setting(said[1:], [hiding], []) is not None
    # A constraint of our own is nobody's setting.
    cap = pip_settings.Setting("constraint", "/cap.txt", "PIP_CONSTRAINT")
    assert (
        pip_settings.find_faulty_setting(
            ["    The user requested (constraint) numpy==1.24.2"], [cap], ["numpy==1.24.2"]
        )
        is None
    )


def test_two_set_ups_at_once_do_not_meet(run, wheels, settings):
    settings.cache_folder.mkdir(parents=True)
    lock = QLockFile(str(settings.cache_folder / "engine.lock"))
    assert lock.tryLock(0)
    with pytest.raises(
        QgsProcessingException, match=r"Another set-up is running.*wait until the other set-up has ended\.$"
    ):
        run("setupengine", {"WHEELS": str(wheels)})
    lock.unlock()


def test_start_afresh_removes_only_an_environment(run, wheels, settings):
    folder = folder_of(settings)
    folder.mkdir(parents=True)
    (folder / "thesis.doc").write_text("years of work")
    with pytest.raises(QgsProcessingException, match="is not a virtual environment"):
        run("setupengine", {"WHEELS": str(wheels), "RESET": True})
    assert (folder / "thesis.doc").exists()


def test_a_missing_folder_of_wheels(run):
    with pytest.raises(QgsProcessingException, match="does not exist; correct it or leave it empty"):
        run("setupengine", {"WHEELS": "/nowhere/wheels"})


@pytest.mark.parametrize(
    ("choice", "platform", "driver", "expected"),
    [
        ("auto", "linux", None, "cpu"),
        ("auto", "win32", None, "cpu"),
        ("auto", "linux", (12, 4), "cu118"),
        ("auto", "win32", (12, 9), "cu128"),
        ("auto", "linux", (13, 1), "cu130"),
        ("cpu", "linux", (13, 1), "cpu"),
        ("cuda", "linux", None, "cu130"),
        ("pypi", "linux", (13, 1), None),
        ("auto", "darwin", None, None),
    ],
)
def test_the_index_fits_the_machine(choice, platform, driver, expected):
    index = environment.torch_index(choice, platform, driver)
    assert index == (None if expected is None else f"https://download.pytorch.org/whl/{expected}")


@pytest.mark.parametrize(
    ("platform", "prefix", "executable", "expected"),
    [
        ("linux", "/usr", "/usr/bin/qgis", "/usr/bin/python3.11"),
        ("win32", "/osgeo/apps/Python311", "/osgeo/bin/qgis-bin.exe", "/osgeo/apps/Python311/python.exe"),
        (
            "darwin",
            "/nowhere",
            "/Applications/QGIS.app/Contents/MacOS/QGIS",
            "/Applications/QGIS.app/Contents/MacOS/bin/python3.11",
        ),
    ],
)
def test_qgis_itself_is_never_taken_for_a_python(platform, prefix, executable, expected):
    found = environment.base_candidates(platform, prefix, executable, (3, 11))
    assert Path(expected) in found
    assert Path(executable) not in found


def test_pip_gets_the_users_sources_and_qgis_proxy(monkeypatch, settings):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_CONSTRAINT", "/site/cap.txt")
    monkeypatch.setenv("PIP_TARGET", "/somewhere")
    monkeypatch.setenv("PIP_USER", "1")
    store = QgsSettings()
    store.setValue("proxy/proxyEnabled", True)
    store.setValue("proxy/proxyType", "HttpProxy")
    store.setValue("proxy/proxyHost", "proxy.example")
    store.setValue("proxy/proxyPort", "3128")
    store.setValue("proxy/proxyUser", "me@work")
    store.setValue("proxy/proxyPassword", "a:b")
    store.setValue("proxy/noProxyUrls", ["https://intranet.example/x"])
    try:
        found = variables.for_pip(settings)
    finally:
        store.remove("proxy")
    assert found["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert found["PIP_CONSTRAINT"] == "/site/cap.txt"
    assert "PIP_TARGET" not in found
    assert "PIP_USER" not in found
    assert found["HTTPS_PROXY"] == "http://me%40work:a%3Ab@proxy.example:3128"
    assert found["NO_PROXY"] == "intranet.example"
    assert variables.network_variables(settings.cache_folder) == {}  # without a proxy in QGIS

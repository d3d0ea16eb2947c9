"""Guards of the house: who may import whom, what the release holds, what no file may hold."""

from __future__ import annotations

import ast
import configparser
import graphlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from clippan.jobs import JOBS

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "clippan_qgis"
ENGINE = ROOT / "backend" / "clippan"
JOBS_FOLDER = ENGINE / "jobs"
HEAVY = {"torch", "torchvision", "open_clip", "huggingface_hub", "osgeo", "qgis"}

# Rules on which the plugin portal's scanner refuses an upload.
PORTAL_RULES = "B102,B105,B106,B107,B202,B301,B307,B501,B602,B604,B605,B615"
# What functions may import: packages that are heavy, or not there in every Python that runs the engine …
LATE = HEAVY | {"filelock", "psycopg"}
# … and what would be too early otherwise.
LATE_MODULES = {
    # It imports open_clip, which takes seconds of the time that an adaptation has.
    "backend/clippan/handlers/adapt.py": {"clippan.learn.fusion.scene_supervisor"},
    "backend/clippan/handlers/doctor.py": {"ctypes"},  # a Python without it has to hear what is wrong
    "clippan_qgis/__init__.py": {".plugin"},  # QGIS wants the package to be light
    "clippan_qgis/paths.py": {"clippan.jobs"},  # once the engine's folder is in sys.path
    "clippan_qgis/plugin.py": {
        ".gui",
        ".gui.highlighter",
        ".gui.locator",
        ".gui.options",
        ".gui.search",
    },  # needs a window
    "clippan_qgis/gui/models.py": {"processing"},  # a plugin that comes after ours
    "clippan_qgis/gui/options.py": {"processing"},
}
PORTAL_KEYS = (
    *("name", "description", "about", "version", "qgisMinimumVersion", "author", "email", "tracker"),
    *("repository", "hasProcessingProvider", "changelog", "tags", "icon", "category"),
)


def imports(source: str, only_at_import: bool = False) -> set[str]:
    """Top-level packages that a source imports; with ``only_at_import``, those it imports when it is imported."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        for child in ast.iter_child_nodes(node):
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if not (only_at_import and function):
                yield from visit(child)

    return {name.split(".")[0] for name in visit(ast.parse(source))}


def python_files(folder: Path) -> list[Path]:
    """The folder's Python files; a guard over none of them would guard nothing."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"there is no Python in {folder}"
    return files


def tracked() -> list[Path]:
    """What git holds; without git, all that a clone would hold."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if run.returncode == 0:
        paths = [ROOT / name for name in run.stdout.decode().split("\0") if name]
    else:
        left_out = {".git", ".venv", "build", "dist", ".demo", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not left_out & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's zip."""
    folder = tmp_path_factory.mktemp("release")
    subprocess.run([sys.executable, ROOT / "scripts" / "package.py", folder], check=True)
    (path,) = folder.iterdir()
    return path


def test_import_reader_tells_import_time_from_run_time() -> None:
    source = "import a.b\nclass C:\n    import c\n    def f(self):\n        from d.e import f\nif a:\n    import g"
    assert imports(source) == {"a", "c", "d", "g"}
    assert imports(source, only_at_import=True) == {"a", "c", "g"}


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        (PLUGIN, {"torch", "torchvision", "open_clip", "safetensors", "PyQt5", "PyQt6", "PySide2", "PySide6"}),
        (ENGINE, {"qgis", "PyQt5", "PyQt6", "PySide2", "PySide6", "clippan_qgis"}),
    ],
    ids=["plugin", "engine"],
)
def test_nobody_imports_what_belongs_to_the_other_process(folder: Path, banned: set[str]) -> None:
    found = {path: imports(path.read_text(encoding="utf-8")) & banned for path in python_files(folder)}
    assert not {path: names for path, names in found.items() if names}


def late_imports(source: str) -> set[str]:
    """Modules that functions of a source import, but for heavy packages; relative ones with their dots."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found |= {item.name for item in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add("." * node.level + (node.module or ""))
    return {name for name in found if name.split(".")[0] not in LATE}


def test_late_imports_are_seen() -> None:
    source = "import a\ndef f():\n    import torch.nn, b.c\n    def g():\n        from .d import e\n"
    assert late_imports(source) == {"b.c", ".d"}


def test_imports_stand_at_the_top() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): late_imports(path.read_text(encoding="utf-8"))
        for folder in (ENGINE, PLUGIN)
        for path in python_files(folder)
    }
    assert {path: names for path, names in found.items() if names} == LATE_MODULES


def test_no_modules_import_each_other_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    graph = grimp.build_graph("clippan", "clippan_qgis", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert imported["clippan.worker"] >= {"clippan.core.errors", "clippan.handlers"}
    assert "clippan.jobs" in imported["clippan_qgis.gui.search"]
    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError, which names the modules


def test_jobs_import_nothing_heavy() -> None:
    for path in python_files(JOBS_FOLDER):
        assert not imports(path.read_text(encoding="utf-8"), only_at_import=True) & HEAVY, path


@pytest.mark.parametrize("module", ["clippan.jobs", "clippan.worker", "clippan.cli"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    # In a process of its own: here torch may be loaded already.
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "backend", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_job_values_can_be_built_without_anything_heavy() -> None:
    code = (
        "import sys; from clippan.jobs import PansharpenRequest, from_json; "
        "from_json(PansharpenRequest, {'pan': 'p.tif', 'ms': ['m.tif'], 'output': 'o.tif'}).validate(); "
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "backend", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.mark.parametrize("name", JOBS)
def test_every_job_has_a_handler(name: str) -> None:
    path = ENGINE / "handlers" / f"{name.replace(' ', '_')}.py"
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    (run,) = [function for function in functions if function.name == "run"]
    assert [argument.arg for argument in run.args.args] == ["request", "context"]


def test_every_handler_is_that_of_a_job() -> None:
    handlers = {path.stem for path in python_files(ENGINE / "handlers")} - {"__init__"}
    assert handlers == {name.replace(" ", "_") for name in JOBS}


def scoped_enums(path: Path) -> list[str]:
    """Findings of the checker, without the file's name. It imports QGIS, which stays out of this process."""
    command = [sys.executable, ROOT / "scripts" / "scoped_enums.py", path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    return [line.replace(f"{path}:", "") for line in run.stdout.splitlines()]


def test_plugin_uses_qt_as_qt_6_wants_it() -> None:
    python_files(PLUGIN)
    assert scoped_enums(PLUGIN) == []


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("from qgis.PyQt.QtCore import Qt\nQt.AlignLeft", "2: write Qt.AlignmentFlag.AlignLeft"),
        ("from qgis.PyQt.QtCore import Qt\nQt.AlignmentFlag.AlignLeft", None),
        ("from qgis.PyQt import QtWidgets as W\nW.QMessageBox.Yes", "2: write QMessageBox.StandardButton.Yes"),
        ("from qgis.PyQt import QtWidgets as W\nW.QMessageBox.StandardButton.Yes", None),
        ("def f():\n  from qgis.core import Qgis\n  Qgis.Warning", "3: write Qgis.MessageLevel.Warning"),
        ("from qgis.core import QgsProcessing as P\nP.TypeRaster", "ProcessingSourceType.TypeRaster"),
        ("from qgis.core import QgsProcessingParameterDefinition as P\nP.FlagAdvanced", "FlagAdvanced"),
        ("from qgis.core import QgsProcessingParameterDefinition as P\nP.Flag.FlagAdvanced", None),
        ("import qgis.core\nqgis.core.QgsMapLayer.RasterLayer", "RasterLayer"),
        ("def f(self):\n  return self.FlagNoThreading", "2: self.FlagNoThreading"),
        ("def f(self):\n  return self.OUTPUT", None),
        ("from PyQt5.QtCore import Qt", "1: import PyQt5.QtCore through qgis.PyQt"),
        ("from qgis.PyQt.QtCore import Qt\nQt.Nonsense", "2: Qt has no Nonsense"),
    ],
)
def test_enum_checker_sees(code: str, finding: str, tmp_path: Path) -> None:
    path = tmp_path / "snippet.py"
    path.write_text(code, encoding="utf-8")
    found = scoped_enums(path)
    assert len(found) == (finding is not None), found
    assert finding is None or finding in found[0]


def test_release_is_what_the_portal_takes(release: Path) -> None:
    assert release.stat().st_size < 25e6
    with zipfile.ZipFile(release) as archive:
        names = archive.namelist()
        heads = {name: archive.read(name)[:4] for name in names}
        metadata = configparser.ConfigParser()
        metadata.read_string(archive.read("clippan_qgis/metadata.txt").decode())
    assert {name.split("/")[0] for name in names} == {"clippan_qgis"}
    for wanted in ("LICENSE", "__init__.py", "backend/clippan/worker.py", "resources/sensors.json"):
        assert f"clippan_qgis/{wanted}" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".sh", ".bat"))]
    programs = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!/b")
    assert not [name for name, head in heads.items() if head.startswith(programs)]

    general = metadata["general"]
    assert not [key for key in PORTAL_KEYS if not general.get(key, "").strip()]
    assert f"clippan_qgis/{general['icon']}" in names
    assert release.name == f"clippan_qgis-{general['version']}.zip"
    assert general["qgisMinimumVersion"] == "3.40"


def test_release_is_the_same_twice(release: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "package.py", tmp_path], check=True)
    assert (tmp_path / release.name).read_bytes() == release.read_bytes()


@pytest.mark.slow
def test_release_passes_the_portals_security_rules(release: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(release) as archive:
        archive.extractall(tmp_path)
    assert bandit(tmp_path) == []


def test_security_scan_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import pickle, subprocess\nfrom huggingface_hub import hf_hub_download\n"
        "pickle.loads(b'')\nsubprocess.run('ls', shell=True)\nexec('1')\nhf_hub_download('a/b', 'c')\n"
        "password = 'hunter2'\n",
        encoding="utf-8",
    )
    assert {rule for rule, _ in bandit(tmp_path)} == {"B102", "B105", "B301", "B602", "B615"}


def bandit(folder: Path) -> list[tuple[str, str]]:
    """Findings of the portal's rules, whatever a '# nosec' in the code says."""
    options = ["-q", "-r", str(folder), "-t", PORTAL_RULES, "-f", "json", "--ignore-nosec"]
    run = subprocess.run([sys.executable, "-m", "bandit", *options], capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert not report["errors"]
    assert report["metrics"]["_totals"]["loc"] > 0
    return [(item["test_id"], f"{item['filename']}:{item['line_number']}") for item in report["results"]]


def test_the_version_is_one() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import package
    finally:
        sys.path.pop(0)
    import clippan

    assert package.version() == clippan.__version__  # package.version() compares the other places


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not hold them.
    private = ["/" + "work/", "/" + "root/", "deb." + "debian.org", "pypi." + "org", "python" + "hosted"]
    # A mirror that this machine uses is nobody else's business either.
    sources = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    )
    private += {match.group(1) for match in re.finditer(r"^\w+://([^/\s]+)", sources.stdout, re.MULTILINE)}
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in private if word in text]
    assert found == []


def test_sensors_are_well_formed() -> None:
    entries = json.loads((ROOT / "resources" / "sensors.json").read_text(encoding="utf-8"))
    assert "generic" in entries
    for name, entry in entries.items():
        assert re.fullmatch(r"[a-z0-9_]+", name), name
        assert entry["label"].strip(), name
        if "ms" in entry:  # of others only the order of the bands is known
            assert all(0 < gain < 1 for gain in [*entry["ms"], entry["pan"]]), name
            # One gain for all bands, or one for each of them.
            assert len(entry["ms"]) in {1, len(entry["bands"])}, name
        orders = [entry["bands"], *entry.get("other_bands", [])]
        assert all(len(set(order)) == len(order) for order in orders), name
        assert len({len(order) for order in orders}) == len(orders), name
        for pattern in [*entry["recognise"], *entry.get("other_names", [])]:
            re.compile(pattern)
            assert not re.search(pattern, "scene", re.IGNORECASE), f"{name} is seen everywhere"
    labels = [entry["label"] for entry in entries.values()]
    assert len(set(labels)) == len(labels)

"""A parameter that is declared in one line is on all fronts: tried in a copy of the code, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

FILE = "backend/clippan/jobs/pansharpen.py"
LINE = '    probe: int = param(7, title="Probe size", help="A probe.", low=1, high=9)\n'
ALGORITHM = """
import json, sys
from qgis.core import QgsApplication, QgsProcessingContext
application = QgsApplication([], False)
application.initQgis()
sys.path.insert(0, sys.argv[1])
from clippan_qgis.algorithms import Pansharpen
from clippan.jobs import to_json
algorithm = Pansharpen().create({})
probe = algorithm.parameterDefinition("PROBE")
built = algorithm.build({"PANCHROMATIC": "pan.tif", "PROBE": 8}, QgsProcessingContext())
print(json.dumps({
    "title": probe.description(), "help": probe.help(), "type": probe.type(), "flags": int(probe.flags()),
    "default": probe.defaultValue(), "low": probe.minimum(), "high": probe.maximum(), "asked": to_json(built)["probe"],
}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The code with the line."""
    tree = tmp_path_factory.mktemp("tree")
    unwanted = shutil.ignore_patterns("__pycache__", ".git", "*.npz")
    for folder in ("backend", "clippan_qgis", "scripts"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=unwanted)
    (tree / "resources").symlink_to(ROOT / "resources")
    text = (tree / FILE).read_text(encoding="utf-8")
    head, mark, tail = text.partition("    method: Method = param(")
    assert mark
    (tree / FILE).write_text(f"{head}{LINE}{mark}{tail}", encoding="utf-8")
    return tree


@pytest.fixture
def python(tree):
    def call(*arguments, code=0):
        variables = {**os.environ, "PYTHONPATH": str(tree / "backend"), "QT_QPA_PLATFORM": "offscreen"}
        command = [sys.executable, *map(str, arguments)]
        run = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
        assert run.returncode == code, run.stderr
        return run.stdout if code == 0 else run.stderr

    return call


def test_the_command_line_has_it_and_checks_it(python, tmp_path):
    text = " ".join(python("-m", "clippan.cli", "pansharpen", "--help").split())
    assert "--probe" in text
    assert "A probe." in text
    pair = ("--pan", "pan.tif", "--ms", "ms.tif", "--output", tmp_path / "out.tif")
    sentence = python("-m", "clippan.cli", "pansharpen", *pair, "--probe", "99", code=2)
    assert sentence.count("\n") == 1
    assert "“Probe size” is 99; it has to be between 1 and 9." in sentence


def test_json_has_it(python):
    code = (
        "import json; from clippan.jobs import PansharpenRequest as R, from_json, to_json; "
        "r = from_json(R, {'pan': 'p', 'ms': ['m'], 'output': 'o', 'probe': 3}); print(json.dumps(to_json(r)))"
    )
    assert json.loads(python("-c", code))["probe"] == 3


def test_the_reference_page_has_it_and_no_other_page_changes(python, tree, tmp_path):
    python(tree / "scripts" / "reference.py", tmp_path / "pages")
    pages = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "pages").iterdir()}
    before = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").iterdir()}
    assert pages.keys() == before.keys()
    assert [name for name in pages if pages[name] != before[name]] == ["pansharpen.md"]
    assert "| Probe size | `--probe` | between 1 and 9; default 7 | A probe. |" in pages["pansharpen.md"]


def test_the_dialog_has_it_and_it_reaches_the_request(python, tree):
    found = json.loads(python("-c", ALGORITHM, tree).splitlines()[-1])
    assert found == {
        "title": "Probe size", "help": "A probe.", "type": "number", "flags": 0,
        "default": 7, "low": 1, "high": 9, "asked": 8,
    }  # fmt: skip

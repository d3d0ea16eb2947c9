"""A fresh QGIS profile with the built plugin in it, as a user has it after "Install from ZIP".

Used by the demo and the end-to-end tests. QGIS itself is not imported: it is started, as ``qgis_process`` or with
its window.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))
import package


@dataclass(frozen=True)
class Run:
    """How a program ended, and what it printed."""

    code: int
    output: str
    errors: str

    def json(self) -> dict[str, Any]:
        """The printed JSON object; what QGIS prints before it is left out."""
        answer: dict[str, Any] = json.loads(self.output[self.output.index("{") :])
        return answer


class Profile:
    """A QGIS profile of its own in a folder.

    Args:
        folder: where it lies; may hold an older profile of ours.
        python: the engine's Python.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.home = folder / "profiles" / "default"
        self.environment = {
            **os.environ,
            "QGIS_CUSTOM_CONFIG_PATH": str(folder),
            "CLIPPAN_PYTHON": str(python),
            # Without a locale Qt takes names beyond ASCII apart.
            "LC_ALL": "C.UTF-8",
            # Whatever else QGIS writes (caches) belongs to the profile too.
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def install(self) -> Path:
        """Builds the zip, unpacks it where QGIS looks for plugins, switches it on, and returns the zip."""
        plugins = self.home / "python" / "plugins"
        archive_path = package.build(self.folder)
        with zipfile.ZipFile(archive_path) as archive:
            archive.extractall(plugins)
        run = self.process("plugins", "enable", package.NAME)
        if run.code:
            raise RuntimeError(f"qgis_process could not switch on the plugin:\n{run.output}\n{run.errors}")
        return archive_path

    def process(self, *arguments: str, stdin: Optional[str] = None, **variables: str) -> Run:
        """Runs ``qgis_process`` with these arguments, input and environment variables."""
        run = subprocess.run(
            ["qgis_process", *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**self.environment, "QT_QPA_PLATFORM": "offscreen", **variables},
            check=False,
        )
        return Run(run.returncode, run.stdout, run.stderr)

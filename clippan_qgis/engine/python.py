"""Which Python runs the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clippan.core.errors import ClippanError

from ..settings import Settings
from . import environment

VARIABLE = "CLIPPAN_PYTHON"
OPTIONS = "Settings ▸ Options ▸ CLIPPan"
REMEDY = f"run “Set up engine” in the Processing toolbox, or choose a Python under {OPTIONS}"


@dataclass(frozen=True)
class Interpreter:
    """A Python for the engine: its path, and who named it."""

    path: str
    origin: str


def find(settings: Settings) -> Interpreter:
    """The engine's Python: that of the settings, else that of CLIPPAN_PYTHON, else the managed environment's.

    A Python that was named but is not there is an error, never a reason to take another one in silence.

    Raises:
        ClippanError: there is none; the sentence says what to do.
    """
    if settings.python:
        return _named(settings.python, "the option “Engine Python”", f"correct it under {OPTIONS}")
    variable = os.environ.get(VARIABLE, "").strip()
    if variable:
        return _named(variable, f"the variable {VARIABLE}", "correct it or remove it")
    folder = environment.folder(settings.cache_folder)
    path = environment.python_in(folder)
    if not path.exists():
        raise ClippanError(f"The engine has no Python yet; {REMEDY}.")
    if not environment.is_complete(folder):
        raise ClippanError(
            "The engine's environment is not finished; run “Set up engine” again, it goes on where it stopped."
        )
    return Interpreter(str(path), "“Set up engine”")


def _named(text: str, origin: str, remedy: str) -> Interpreter:
    path = Path(text).expanduser()
    if path.is_dir():
        path = environment.python_in(path)
    if not path.exists():
        raise ClippanError(f"The engine Python {text} ({origin}) does not exist; {remedy}.")
    if not os.access(path, os.X_OK):
        raise ClippanError(f"The engine Python {text} ({origin}) cannot be executed; {remedy}.")
    return Interpreter(str(path), origin)

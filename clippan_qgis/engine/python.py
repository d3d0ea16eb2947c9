"""Which Python runs the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clippan.core.errors import ClippanError
from clippan.core.messages import Message

from ..i18n import tr
from ..settings import OPTIONS, Settings
from . import environment

VARIABLE = "CLIPPAN_PYTHON"


@dataclass(frozen=True)
class Interpreter:
    """A Python for the engine: its path, and who named it."""

    path: str
    origin: str

    def __str__(self) -> str:
        return tr("Engine Python: {path} (from {origin})", path=self.path, origin=self.origin)


def find_interpreter(settings: Settings) -> Interpreter:
    """The engine's Python: that of the settings, else that of CLIPPAN_PYTHON, else the managed environment's.

    A Python that was named but is not there is an error, never a reason to take another one in silence.

    Raises:
        ClippanError: there is none; the sentence says what to do.
    """
    if settings.python:
        remedy = Message("correct it under {options}", options=OPTIONS)
        return _named_interpreter(settings.python, Message("the option “Engine Python”"), remedy)
    variable = os.environ.get(VARIABLE, "").strip()
    if variable:
        origin = Message("the variable {variable}", variable=VARIABLE)
        return _named_interpreter(variable, origin, Message("correct it or remove it"))
    folder = environment.environment_folder(settings.cache_folder)
    path = environment.python_in(folder)
    if not path.exists():
        raise ClippanError(
            "The engine has no Python yet; run “Set up engine” in the Processing toolbox, or choose a Python under "
            "{options}.",
            options=OPTIONS,
        )
    if not environment.is_complete(folder):
        raise ClippanError(
            "The engine's environment is incomplete; run “Set up engine” again to resume the installation."
        )
    return Interpreter(str(path), Message("“Set up engine”"))


def _named_interpreter(text: str, origin: str, remedy: str) -> Interpreter:
    path = Path(text).expanduser()
    if path.is_dir():
        path = environment.python_in(path)
    if not path.exists():
        raise ClippanError(
            "The engine Python {path} ({origin}) does not exist; {remedy}.", path=text, origin=origin, remedy=remedy
        )
    if not os.access(path, os.X_OK):
        raise ClippanError(
            "The engine Python {path} ({origin}) cannot be executed; {remedy}.", path=text, origin=origin, remedy=remedy
        )
    return Interpreter(str(path), origin)

"""Where the plugin's companions lie: beside its folder in the repository, inside it in the installed zip."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _companion(name: str) -> Path:
    inside = _HERE / name
    return inside if inside.exists() else _HERE.parent / name


BACKEND = _companion("backend")  # the folder that holds the package ``clippan``
RESOURCES = _companion("resources")


def import_jobs() -> None:
    """Imports ``clippan.jobs`` from our own engine.

    The folder leaves ``sys.path`` again at once, so that the engine never shadows another plugin's modules;
    what the package imports later it finds through its own ``__path__``.
    """
    sys.path.insert(0, str(BACKEND))
    try:
        import clippan.jobs  # noqa: F401
    finally:
        sys.path.remove(str(BACKEND))

"""CLIPPan's engine: everything that touches pixels or models. It never imports QGIS."""

from pathlib import Path

__version__ = "0.1.0"


def resources() -> Path:
    """The folder of sensors.json and its like.

    It lies beside ``backend/`` in the repository and in the plugin zip, and inside the package in a wheel.
    """
    here = Path(__file__).resolve().parent
    inside = here / "resources"
    return inside if inside.is_dir() else here.parents[1] / "resources"

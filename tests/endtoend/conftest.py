"""The built zip in a fresh QGIS profile, and data to run it on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from qgis_profile import Profile  # noqa: E402
from sample import Scene, landsat  # noqa: E402


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A profile that has nothing but our plugin; its path has a space and letters beyond ASCII."""
    profile = Profile(tmp_path_factory.mktemp("QGIS Prófil"), Path(sys.executable))
    profile.install()
    return profile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An output folder whose name has spaces and letters beyond ASCII."""
    path = tmp_path / "Ergebnisse für São Tomé 岛"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def scene() -> Scene:
    """The Landsat 8 scene."""
    return landsat()


@pytest.fixture(scope="session")
def pairs() -> Path:
    """The folder of the development pairs, which are not ours to publish and so not everywhere."""
    shared = Path(os.environ.get("CLIPPAN_SHARED", ROOT.parent / "shared"))
    path = shared / "data" / "pan"
    if not path.is_dir():
        pytest.skip(f"the development pairs are not at {path} (CLIPPAN_SHARED names the folder above data/)")
    return path

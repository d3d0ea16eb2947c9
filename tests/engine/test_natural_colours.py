"""Which bands are red, green and blue."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_raster
from osgeo import gdal

from clippan.catalogue.band_names import Band, band_order, colour_of_file, natural_colours
from clippan.raster.rendering import Renderer, RenderOptions

SUPERDOVE = "20220315_103021_12_2421_3B_AnalyticMS_SR_8b.tif"


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        ("coastal_blue blue green_i green yellow red rededge nir", (6, 4, 2)),
        ("Near-Infra-Red Red Green Blue", (2, 3, 4)),
        ("nearInfrared Red-Edge sr_red_1 band_green blue_mean", (3, 4, 5)),
        ("N R G B", (2, 3, 4)),
        ("B2 B3 B4 B5 B6 B7 B8", (3, 2, 1)),  # Sentinel-2, as Earth Engine exports it
        ("B8 B04 B3 B2 B8A", (2, 3, 4)),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7 ST_B10", (4, 3, 2)),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B7 ST_B6", (3, 2, 1)),  # Landsat 5 and 7
        ("B1 B2 B3 B4 B5 B6_VCID_1 B6_VCID_2 B7 B8", (3, 2, 1)),
        ("842nm 490nm 560nm 740nm 665nm", (5, 3, 2)),
        ("0.842um 0.49µm 0.53-0.59µm 0.665um", (4, 3, 2)),
    ],
)
def test_by_what_bands_are_called(names, bands):
    choice = natural_colours([Band(name) for name in names.split()])
    assert (choice.bands, choice.guessed) == (bands, False)


@pytest.mark.parametrize(
    ("count", "bands"), [(3, (1, 2, 3)), (4, (3, 2, 1)), (7, (4, 3, 2)), (8, (5, 3, 2)), (9, (3, 2, 1))]
)
@pytest.mark.parametrize("name", ["", "b{}", "Band {}"])
def test_a_guess_says_so(count, bands, name):
    choice = natural_colours([Band(name.format(number + 1)) for number in range(count)])
    assert (choice.bands, choice.guessed) == (bands, True)
    assert "guess" in choice.sentence
    assert "--bands" in choice.sentence


@pytest.mark.parametrize(
    ("file", "count", "bands"),
    [
        (SUPERDOVE, 8, (6, 4, 2)),
        ("20220315_103021_1003_3B_AnalyticMS_SR_clip.tif", 4, (3, 2, 1)),
        ("1057114_2012-05-25_RE3_3A_Analytic.tif", 5, (3, 2, 1)),
        ("m_3411861_ne_11_060_20180722.tif", 4, (1, 2, 3)),
        ("LT05_L2SP_195024_19870315.tif", 7, (3, 2, 1)),
        ("LC09_L2SP_195024_20220315.tif", 7, (4, 3, 2)),
        ("LC08_stack.tif", 6, (3, 2, 1)),
        ("S2B_MSIL1C_20220315.tif", 13, (4, 3, 2)),
        ("S2A_10bands.tif", 10, (3, 2, 1)),
        ("MOD09GA.A2020001.tif", 7, (1, 4, 3)),
    ],
)
def test_by_the_sensor(file, count, bands):
    choice = natural_colours([Band()] * count, band_order([file]))
    assert (choice.bands, choice.guessed) == (bands, False)


def test_numbers_are_the_sensors_own():
    bands = [Band(f"B{number}") for number in range(1, 8)]
    assert natural_colours(bands, band_order(["LE07_L1TP.tif"])).bands == (3, 2, 1)
    assert natural_colours(bands, band_order(["LC08_L1TP.tif"])).bands == (4, 3, 2)


@pytest.mark.parametrize("names", [["VV", "VH"], ["VV", "VH", "angle"], ["sigma0_vh"], ["a", "b"]])
def test_no_natural_colours(names):
    choice = natural_colours([Band(name) for name in names])
    assert choice.bands == (1,)
    assert "grey" in choice.sentence
    assert not choice.guessed


def test_names_come_before_tags_and_tags_before_the_sensor():
    tagged = [Band("", colour) for colour in ("red", "green", "blue", "")]
    assert natural_colours(tagged, band_order([SUPERDOVE])).bands == (1, 2, 3)
    named = [Band(name, colour) for name, colour in zip(("NIR", "Red", "Green", "Blue"), ("red", "green", "blue", ""))]
    assert natural_colours(named).bands == (2, 3, 4)


@pytest.mark.parametrize(
    "text", ["scene", "photo_4.tif", "areas2.tif", "DJI_0042.JPG", "tile_12_7.png", "plots2_2021.tif"]
)
def test_other_names_tell_no_sensor(text):
    assert band_order([text]) is None


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        ("LE07_B3.TIF", "red"),
        ("T31UFU_20240101_B03_10m.jp2", "green"),
        ("a_rededge.tif", None),
        ("LC08_B8.TIF", "band 8"),
    ],
)
def test_files_of_single_bands(file, colour):
    assert colour_of_file(file) == colour


def raster(path, count, change):
    write_raster(path, np.zeros((count, 8, 8), np.uint16))
    dataset = gdal.Open(str(path), gdal.GA_Update)
    change(dataset)
    del dataset
    return Renderer(str(path), RenderOptions()).band_choice


def test_wavelengths_of_metadata(tmp_path):
    def units(dataset):
        for number, value in enumerate((842, 490, 560, 665), 1):
            dataset.GetRasterBand(number).SetMetadata({"wavelength": str(value), "wavelength_units": "Nanometers"})

    def imagery(dataset):
        for number, value in enumerate((0.49, 0.56, 0.665, 0.842), 1):
            dataset.GetRasterBand(number).SetMetadataItem("CENTRAL_WAVELENGTH_UM", str(value), "IMAGERY")

    assert raster(tmp_path / "a.tif", 4, units).bands == (4, 3, 2)
    assert raster(tmp_path / "b.tif", 4, imagery).bands == (3, 2, 1)
    named = raster(tmp_path / "c.tif", 3, lambda dataset: dataset.SetMetadata({f"Band_{n}": t for n, t in NAMED}))
    assert named.bands == (3, 2, 1)


NAMED = ((1, "Blue (492)"), (2, "Green"), (3, "Red"))


def test_a_hyperspectral_cube_is_seen_by_wavelength(tmp_path):
    path = tmp_path / "cube.img"
    values = np.zeros((120, 4, 4), np.uint16)
    dataset = gdal.GetDriverByName("ENVI").Create(str(path), 4, 4, 120, gdal.GDT_UInt16)
    dataset.WriteArray(values)
    del dataset
    with path.with_suffix(".hdr").open("a") as header:
        header.write("wavelength units = Nanometers\n")
        header.write(f"wavelength = {{{', '.join(str(400 + 5 * number) for number in range(120))}}}\n")
    choice = Renderer(str(path), RenderOptions()).band_choice
    assert choice.bands == (54, 33, 19)
    assert "wavelength" in choice.reason


def test_files_of_a_virtual_raster_tell_its_bands(tmp_path):
    names = [str(tmp_path / f"T32UMC_20220315T103021_{band}_10m.tif") for band in ("B02", "B03", "B04")]
    for name in names:
        write_raster(name, np.zeros((1, 8, 8), np.uint16))
    gdal.BuildVRT(str(tmp_path / "stack.vrt"), names, separate=True).FlushCache()
    assert Renderer(str(tmp_path / "stack.vrt"), RenderOptions()).band_choice.bands == (3, 2, 1)


def test_what_was_asked_for_wins(tmp_path):
    write_raster(tmp_path / SUPERDOVE, np.zeros((8, 8, 8), np.uint16))
    assert Renderer(str(tmp_path / SUPERDOVE), RenderOptions()).rendering.choice.bands == (6, 4, 2)
    assert Renderer(str(tmp_path / SUPERDOVE), RenderOptions(bands=(8, 6, 4))).band_choice.bands == (8, 6, 4)

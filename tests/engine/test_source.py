"""Reading rasters as people have them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_raster
from osgeo import gdal

from clippan.errors import ClippanError
from clippan.raster.source import Source, open_dataset, stack


def read(path, **options):
    with Source(open_dataset(path, "raster"), "raster", **options) as source:
        return source.read(0, 0, source.grid.width, source.grid.height)


def test_window_beyond_the_border_repeats_it(raster):
    path = raster("a.tif", np.arange(12, dtype="uint8").reshape(3, 4))
    with Source(open_dataset(path, "raster"), "raster") as source:
        values, valid = source.read(-2, -1, 8, 5)
        assert values[0].tolist()[0] == [0, 0, 0, 1, 2, 3, 3, 3]
        assert values[0].tolist()[-1] == [8, 8, 8, 9, 10, 11, 11, 11]
        assert valid is None
        far, _ = source.read(100, 100, 2, 2)
        assert far[0].tolist() == [[11, 11], [11, 11]]


def test_nodata_is_kept_by_band(raster):
    values = np.array([[[0, 1]], [[2, 2]]], "uint16")
    _, valid = read(raster("a.tif", values, nodata=0))
    assert valid.tolist() == [[[False, True]], [[True, True]]]


def test_nodata_can_be_overridden(raster):
    values = np.array([[-9999, 0, 5]], "int16")
    _, valid = read(raster("a.tif", values, nodata=0), nodata=-9999)
    assert valid[0, 0].tolist() == [False, True, True]


def test_nan_and_infinity_are_invalid_without_being_declared(raster):
    _, valid = read(raster("a.tif", np.array([[np.nan, np.inf, 1.0]], "float32")))
    assert valid[0, 0].tolist() == [False, False, True]


def test_float_nodata_that_float32_rounds(raster):
    values = np.array([[-3.4028234663852886e38, 1.0]], "float32")
    _, valid = read(raster("a.tif", values, nodata=-3.4028234663852886e38))
    assert valid[0, 0].tolist() == [False, True]


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_alpha_is_a_mask_and_no_band(raster, bands):
    planes = np.concatenate([np.full((bands, 1, 2), 9), [[[255, 0]]]]).astype("uint8")
    path = raster("a.tif", planes, options=["PHOTOMETRIC=MINISBLACK"])
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.GetRasterBand(bands + 1).SetColorInterpretation(gdal.GCI_AlphaBand)
    dataset = None
    values, valid = read(path)
    assert values.shape == (bands, 1, 2)
    assert valid[:, 0].tolist() == [[True, False]] * bands


def test_mask_of_the_dataset(raster):
    path = raster("a.tif", np.array([[5, 6]], "uint8"))
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
    dataset.GetRasterBand(1).GetMaskBand().WriteArray(np.array([[255, 0]], "uint8"))
    dataset = None
    _, valid = read(path)
    assert valid[0, 0].tolist() == [True, False]


def test_cmyk_is_read_as_numbers(raster):
    values = np.arange(16, dtype="uint8").reshape(4, 2, 2) * 10
    path = raster("a.tif", values, options=["PHOTOMETRIC=CMYK"])
    assert not np.array_equal(gdal.Open(path).ReadAsArray(), values), "GDAL shows it as RGBA"
    assert np.array_equal(read(path)[0], values)


def test_bands_are_chosen_in_order(raster):
    path = raster("a.tif", np.arange(3, dtype="uint8")[:, None, None])
    assert read(path, bands=(3, 1))[0].ravel().tolist() == [2, 0]
    with pytest.raises(ClippanError, match="Band 4 was asked for"):
        read(path, bands=(4,))


def test_doubles_are_read_as_floats(raster):
    assert read(raster("a.tif", np.ones((2, 2), "float64")))[0].dtype == np.float32


def test_several_rasters_are_stacked(raster):
    one = raster("one.tif", np.array([[1, 2]], "uint16"), nodata=0)
    two = raster("two.tif", np.array([[[3, 0]], [[5, 6]]], "uint16"), nodata=0)
    with Source(stack([one, two], "raster"), "raster") as source:
        values, valid = source.read(0, 0, 2, 1)
    assert values.reshape(3, 2).tolist() == [[1, 2], [3, 0], [5, 6]]
    assert valid.reshape(3, 2).tolist() == [[True, True], [True, False], [True, True]]


def test_stack_takes_the_finest_grid(raster):
    coarse = raster("coarse.tif", np.full((2, 2), 7, "uint8"), pixel=2)
    fine = raster("fine.tif", np.full((4, 4), 9, "uint8"), pixel=1)
    with Source(stack([coarse, fine], "raster"), "raster") as source:
        assert (source.grid.width, source.grid.height) == (4, 4)
        assert source.read(0, 0, 4, 4)[0].mean(axis=(1, 2)).tolist() == [7, 9]


def test_a_palette_is_refused(tmp_path):
    path = str(tmp_path / "palette.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, 2, 2, 1, gdal.GDT_Byte)
    colours = gdal.ColorTable()
    colours.SetColorEntry(1, (255, 0, 0))
    dataset.GetRasterBand(1).SetColorTable(colours)
    dataset = None
    with pytest.raises(ClippanError, match="palette"):
        read(path)


def test_complex_numbers_are_refused(raster):
    with pytest.raises(ClippanError, match="complex"):
        read(raster("a.tif", np.ones((2, 2), "complex64")))


def test_stack_without_georeference_needs_one_size(tmp_path):
    paths = [
        write_raster(tmp_path / f"{size}.tif", np.ones((size, size), "uint8"), origin=None, epsg=None)
        for size in (2, 3)
    ]
    with pytest.raises(ClippanError, match="differ in size"):
        stack(paths, "raster")

"""Reading rasters as people have them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_raster
from osgeo import gdal

from clippan.core.errors import ClippanError
from clippan.raster.regrid import resample_to_finest
from clippan.raster.source import Source, band_infos, open_dataset


def stack(paths):
    datasets = [open_dataset(path, "raster") for path in paths]
    return Source(resample_to_finest(datasets, "raster", None), "raster", infos=band_infos(datasets))


def read(path, **options):
    with Source([open_dataset(path, "raster")], "raster", **options) as source:
        return source.read(0, 0, source.grid.width, source.grid.height)


def test_window_beyond_the_border_repeats_it(raster):
    path = raster("a.tif", np.arange(12, dtype="uint8").reshape(3, 4))
    with Source([open_dataset(path, "raster")], "raster") as source:
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
    with stack([one, two]) as source:
        values, valid = source.read(0, 0, 2, 1)
    assert values.reshape(3, 2).tolist() == [[1, 2], [3, 0], [5, 6]]
    assert valid.reshape(3, 2).tolist() == [[True, True], [True, False], [True, True]]


def test_stack_takes_the_finest_grid(raster):
    coarse = raster("coarse.tif", np.full((2, 2), 7, "uint8"), pixel=2)
    fine = raster("fine.tif", np.full((4, 4), 9, "uint8"), pixel=1)
    with stack([coarse, fine]) as source:
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
        stack(paths)


def test_nodata_values_of_the_whole_raster(tmp_path):
    # All bands have to be 0 for a pixel to be missing.
    inner = write_raster(tmp_path / "inner.tif", np.array([[[0, 0, 5]], [[0, 3, 6]]], "uint8"))
    outer = gdal.Translate(str(tmp_path / "outer.vrt"), inner)
    outer.SetMetadataItem("NODATA_VALUES", "0 0")
    outer = None
    _, valid = read(str(tmp_path / "outer.vrt"))
    assert valid[:, 0].tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", -9999), ("uint8", 256), ("uint16", float("nan")), ("uint16", 0.5), ("int16", 1e20), ("int16", -1e9)],
)
def test_a_nodata_value_that_no_pixel_can_have(raster, dtype, nodata):
    with Source([open_dataset(raster("a.tif", np.ones((2, 2), dtype)), "raster")], "raster", nodata=nodata) as source:
        assert source.nodata is None
        assert not source.may_have_invalid
        assert source.read(0, 0, 2, 2)[1] is None


def test_an_override_that_does_not_fit_leaves_what_is_declared(raster):
    with Source(
        [open_dataset(raster("a.tif", np.zeros((2, 2), "uint8"), nodata=0), "raster")], "raster", nodata=-1
    ) as s:
        assert s.nodata == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_bit_depth_is_that_of_all_bands(raster, order):
    paths = [
        raster("a.tif", np.full((2, 2), 9, "uint16"), options=["NBITS=12"]),
        raster("b.tif", np.full((2, 2), 60000, "uint16")),
        raster("c.tif", np.full((2, 2), 9, "uint16"), options=["NBITS=10"]),
    ]
    assert stack([paths[index] for index in order]).nbits is None
    assert stack([paths[2 * index] for index in order]).nbits == 12


@pytest.mark.skipif(int(gdal.VersionInfo()) >= 3070000, reason="GDAL 3.7 has a type for them")
def test_signed_bytes_are_refused(raster):
    path = raster("a.tif", np.ones((2, 2), "uint8"), options=["PIXELTYPE=SIGNEDBYTE"])
    with pytest.raises(ClippanError, match="signed bytes; convert it to Int16"):
        read(path)


def test_doubles_beyond_float32_are_invalid(raster):
    lowest = -1.7976931348623157e308
    _, valid = read(raster("a.tif", np.array([[lowest, 1.0]], "float64"), nodata=lowest))
    assert valid[0, 0].tolist() == [False, True]


def test_control_points_at_the_corners_are_a_grid(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((4, 6), "uint8"), origin=None, epsg=None)
    corners = [gdal.GCP(100 + 2 * x, 50 - 2 * y, 0, x, y) for x in (0, 6) for y in (0, 4)]
    gdal.Translate(str(tmp_path / "b.tif"), path, GCPs=corners, outputSRS="EPSG:32631")
    with Source([open_dataset(str(tmp_path / "b.tif"), "raster")], "raster") as source:
        assert np.allclose(source.grid.geotransform, (100, 2, 0, 50, 0, -2))
        assert "UTM" in source.grid.crs


def test_control_points_that_no_grid_fits(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((40, 60), "uint8"), origin=None, epsg=None)
    bent = [gdal.GCP(100 + 2 * x, 50 - 2 * y + x * y / 30, 0, x, y) for x in (0, 30, 60) for y in (0, 20, 40)]
    gdal.Translate(str(tmp_path / "b.tif"), path, GCPs=bent, outputSRS="EPSG:32631")
    with pytest.raises(ClippanError, match="ground control points and no pixel grid; warp it"):
        read(str(tmp_path / "b.tif"))


def test_a_cmyk_jpeg_is_read_as_gdal_shows_it(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(np.full((8, 8, 4), 90, "uint8"), "CMYK").save(tmp_path / "a.jpg")
    assert read(str(tmp_path / "a.jpg"))[0].shape[1:] == (8, 8)

"""Several multispectral rasters taken as one, whatever grid, CRS or mask each of them has."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import read_raster, write_raster
from osgeo import gdal

from clippan.errors import ClippanError
from clippan.jobs import Method, PansharpenRequest, run

UTM_ZONE_EAST = 32632


def fuse(pan, ms, output, **options):
    return run(PansharpenRequest(pan, tuple(ms), str(output), **options))


def invalid(path):
    """Number of invalid pixels of each band."""
    dataset = gdal.Open(str(path))
    return [
        int((dataset.GetRasterBand(number + 1).GetMaskBand().ReadAsArray() == 0).sum())
        for number in range(dataset.RasterCount)
    ]


def with_mask(path, values, kind, rows):
    """A raster whose first rows are masked by an alpha band or by a mask band."""
    mask = np.full(values.shape[1:], 255, values.dtype)
    mask[:rows] = 0
    if kind == "alpha":
        write_raster(path, np.concatenate([values, mask[None]]), 4.0, options=["PHOTOMETRIC=MINISBLACK"])
        dataset = gdal.Open(str(path), gdal.GA_Update)
        dataset.GetRasterBand(dataset.RasterCount).SetColorInterpretation(gdal.GCI_AlphaBand)
    else:
        write_raster(path, values, 4.0)
        dataset = gdal.Open(str(path), gdal.GA_Update)
        dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
        dataset.GetRasterBand(1).GetMaskBand().WriteArray(mask.astype("uint8"))
    dataset = None
    return str(path)


@pytest.mark.parametrize("kind", ["alpha", "mask"])
def test_each_raster_keeps_its_own_mask(scene, tmp_path, kind):
    pair = scene()
    values = read_raster(pair.ms)
    one = with_mask(tmp_path / "one.tif", values[:2], kind, 5)
    two = with_mask(tmp_path / "two.tif", values[2:], kind, 8)
    result = fuse(pair.pan, [one, two], tmp_path / "out.tif")
    assert result.bands == 4
    assert invalid(tmp_path / "out.tif") == [5 * 4 * 256] * 2 + [8 * 4 * 256] * 2


def test_the_common_extent_is_sharpened(scene, tmp_path):
    pair = scene()
    values = read_raster(pair.ms)
    left = write_raster(tmp_path / "left.tif", values[0], 4.0)
    right = write_raster(tmp_path / "right.tif", values[1][:, 32:], 4.0, origin=(500128, 5000000))
    result = fuse(pair.pan, [left, right], tmp_path / "out.tif", method=Method.CUBIC)
    assert (result.width, result.height, result.nodata) == (128, 256, None)
    fuse(pair.pan, [pair.ms], tmp_path / "whole.tif", method=Method.CUBIC)
    # Pixels are taken as they are; at the seam the interpolation sees the border instead of what was cut off.
    found, whole = read_raster(str(tmp_path / "out.tif")), read_raster(str(tmp_path / "whole.tif"))
    assert np.array_equal(found[:, :, 12:], whole[:2, :, 140:])


def test_a_coarser_raster_comes_to_the_finest_grid(scene, tmp_path):
    pair = scene(size=512)
    values = read_raster(pair.ms).astype("float32")
    fine = write_raster(tmp_path / "fine.tif", values[:2], 4.0)
    coarse = values[2:].reshape(2, 64, 2, 64, 2).mean((2, 4))
    coarse = write_raster(tmp_path / "coarse.tif", coarse, 8.0)
    result = fuse(pair.pan, [coarse, fine], tmp_path / "out.tif")
    assert result.ratio == (4.0, 4.0)
    found, wanted = read_raster(result.output), read_raster(pair.truth)[[2, 3, 0, 1]]
    for band in range(4):
        assert np.corrcoef(found[band].ravel(), wanted[band].ravel())[0, 1] > 0.85


def test_rasters_that_do_not_overlap(scene, tmp_path):
    pair = scene()
    far = write_raster(tmp_path / "far.tif", read_raster(pair.ms)[0], 4.0, origin=(600000, 5000000))
    with pytest.raises(ClippanError, match="multispectral rasters do not overlap; check"):
        fuse(pair.pan, [pair.ms, far], tmp_path / "out.tif")


def test_only_some_have_a_georeference(scene, tmp_path):
    pair = scene()
    bare = write_raster(tmp_path / "bare.tif", read_raster(pair.ms)[0], origin=None)
    with pytest.raises(ClippanError, match="Only some of the multispectral rasters have a georeference; give"):
        fuse(pair.pan, [pair.ms, bare], tmp_path / "out.tif")


@pytest.mark.parametrize("transform", [(500000, 4, 0, 4999744, 0, 4), (500000, 3.8, 1.2, 5000000, 1.2, -3.8)])
def test_south_up_and_rotated_rasters_are_stacked(scene, tmp_path, transform):
    pair = scene()
    values = read_raster(pair.ms)
    paths = [write_raster(tmp_path / f"{n}.tif", values[n], 4.0) for n in range(4)]
    for path, factor in [(pair.pan, 4), (pair.ms, 1), *((path, 1) for path in paths)]:
        step = [value / factor for value in transform]
        dataset = gdal.Open(path, gdal.GA_Update)
        dataset.SetGeoTransform((transform[0], *step[1:3], transform[3], *step[4:]))
        dataset = None
    fuse(pair.pan, paths, tmp_path / "out.tif")
    fuse(pair.pan, [pair.ms], tmp_path / "one.tif")
    assert np.array_equal(read_raster(str(tmp_path / "out.tif")), read_raster(str(tmp_path / "one.tif")))


def test_rotated_grids_that_differ_are_refused(scene, tmp_path):
    pair = scene()
    paths = [write_raster(tmp_path / f"{n}.tif", read_raster(pair.ms)[0], 4.0) for n in range(2)]
    for number, path in enumerate(paths):
        dataset = gdal.Open(path, gdal.GA_Update)
        dataset.SetGeoTransform((500000 + number, 3.8, 1.2, 5000000, 1.2, -3.8))
        dataset = None
    with pytest.raises(ClippanError, match="not all of them north-up; warp"):
        fuse(pair.pan, paths, tmp_path / "out.tif")


@pytest.mark.parametrize("nodata", [(None, None), (0, None), (None, 0), (0, 65535)])
def test_around_a_reprojected_raster_there_is_nothing(scene, tmp_path, nodata):
    # Near the border of two zones the grids are rotated by some degrees: PAN's corners lie outside of MS.
    values = read_raster(scene(size=512).ms)[:2]
    paths = [
        write_raster(tmp_path / f"{n}.tif", values[n], 4.0, (967400, 5010400), 32631, value)
        for n, value in enumerate(nodata)
    ]
    turned = str(tmp_path / "turned.tif")
    gdal.Warp(turned, paths[0], dstSRS=f"EPSG:{UTM_ZONE_EAST}", xRes=1, yRes=1, resampleAlg="cubic", dstNodata=0)
    pan = read_raster(turned)[0]
    corners = pan == 0
    assert 0.05 < corners.mean() < 0.5
    pan[corners] = pan[~corners].mean()
    dataset = gdal.Open(turned, gdal.GA_Update)
    dataset.GetRasterBand(1).DeleteNoDataValue()
    dataset.GetRasterBand(1).WriteArray(pan)
    dataset = None
    result = fuse(turned, paths, tmp_path / "out.tif")
    assert result.nodata == next((value for value in nodata if value is not None), 0)
    for count in invalid(tmp_path / "out.tif"):
        assert abs(count - corners.sum()) < 0.02 * corners.size


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_hole_in_one_band_stays_in_it_when_warped(scene, tmp_path, dtype):
    pair = scene(size=512, dtype=dtype, bands=3)  # the fourth of four bytes would be alpha
    nodata = {"uint8": 0, "int16": -9999, "float32": -9999}[dtype]
    values = read_raster(pair.ms)
    values[0, 40:70, 40:70] = nodata
    holed = write_raster(tmp_path / "holed.tif", values, 4.0, nodata=nodata)
    turned = str(tmp_path / "turned.tif")
    gdal.Warp(turned, holed, dstSRS="EPSG:3857", dstNodata=nodata, warpOptions=["UNIFIED_SRC_NODATA=NO"])
    fuse(pair.pan, [turned], tmp_path / "out.tif", method=Method.CUBIC)
    counts = invalid(tmp_path / "out.tif")
    assert abs(counts[0] - 120 * 120) < 0.12 * 120 * 120
    assert max(counts[1:]) < 0.02 * 512 * 512
    found = read_raster(str(tmp_path / "out.tif"))
    assert found[found != nodata].min() > 20
    coarse = values.astype(float).reshape(3, 64, 2, 64, 2).mean((2, 4)).astype(dtype)
    coarse = write_raster(tmp_path / "coarse.tif", coarse, 8.0, nodata=nodata)
    fuse(pair.pan, [holed, coarse], tmp_path / "out.tif", method=Method.CUBIC)
    counts = invalid(tmp_path / "out.tif")
    assert 0.8 * 120 * 120 < counts[3] <= 120 * 120  # half a coarse pixel is interpolated all around
    assert counts[0] == 120 * 120
    assert max(counts[1:3] + counts[4:]) == 0


def test_floats_without_a_nodata_value_are_warped(scene, tmp_path):
    pair = scene(size=512, dtype="float32")
    values = read_raster(pair.ms)
    values[0, 40:70, 40:70] = np.nan
    ms = write_raster(tmp_path / "nan.tif", values[:2], 8.0, (499744.0, 5000256.0))
    fuse(pair.pan, [pair.ms, ms], tmp_path / "out.tif", method=Method.CUBIC)
    counts = invalid(tmp_path / "out.tif")
    assert counts[:4] + counts[5:] == [0] * 5
    # The hole lies at 64 to 304 output pixels, of which half a coarse pixel all around may be interpolated.
    assert 0.8 * 240 * 240 < counts[4] < 1.2 * 240 * 240


def test_mixed_nodata_and_alpha_are_warped(scene, tmp_path):
    pair = scene(size=512)
    values = read_raster(pair.ms)[:2]
    values[0, :30] = 9
    path = with_mask(tmp_path / "alpha.tif", values, "alpha", 10)
    mixed = gdal.Translate(str(tmp_path / "mixed.vrt"), path)
    mixed.GetRasterBand(1).SetNoDataValue(9)
    mixed = None
    gdal.Warp(str(tmp_path / "pan.vrt"), pair.pan, dstSRS="EPSG:3857", resampleAlg="cubic", dstNodata=0)
    fuse(str(tmp_path / "pan.vrt"), [str(tmp_path / "mixed.vrt")], tmp_path / "out.tif", method=Method.CUBIC)
    fuse(str(tmp_path / "pan.vrt"), [pair.ms], tmp_path / "whole.tif", method=Method.CUBIC)
    one, two = invalid(tmp_path / "out.tif")
    whole = invalid(tmp_path / "whole.tif")[0]
    assert one > two > whole
    assert abs((one - whole) / (two - whole) - 3) < 0.4  # 30 rows against 10


def test_a_map_of_the_world_keeps_its_detail_around_pan(scene, tmp_path):
    # In a projection's grid the pixel size of a whole continent is not that of the place that PAN shows.
    pan = write_raster(tmp_path / "pan.tif", read_raster(scene(size=400).truth)[0], 1000.0, (300000.0, 5600000.0))
    world = np.random.default_rng(0).integers(100, 1000, (1, 1000, 2000)).astype("uint16")
    path = write_raster(tmp_path / "world.tif", world, 0.04, (-40.0, 70.0), 4326)
    x, y = fuse(pan, [path], tmp_path / "out.tif", method=Method.CUBIC).ratio
    assert 2.5 < x < 4.6
    assert 2.5 < y < 4.6


def test_rasters_of_different_crs(scene, tmp_path):
    pair = scene(size=512)
    other = str(tmp_path / "other.tif")
    gdal.Warp(other, pair.ms, dstSRS="EPSG:3857", resampleAlg="cubic", dstNodata=0)
    result = fuse(pair.pan, [pair.ms, other], tmp_path / "out.tif")
    assert result.bands == 8
    found = read_raster(result.output).astype(float)
    inside = found[:, 40:-40, 40:-40]
    assert np.corrcoef(inside[0].ravel(), inside[4].ravel())[0, 1] > 0.97


def test_bands_are_called_by_their_files(scene, tmp_path):
    pair = scene()
    values = read_raster(pair.ms)
    one = write_raster(tmp_path / "scene_B4.tif", values[0], 4.0)
    two = write_raster(tmp_path / "rest.tif", values[1:], 4.0)
    dataset = gdal.Open(two, gdal.GA_Update)
    dataset.GetRasterBand(3).SetDescription("NIR")
    dataset.GetRasterBand(3).SetUnitType("K")
    dataset = None
    fuse(pair.pan, [one, two], tmp_path / "out.tif")
    dataset = gdal.Open(str(tmp_path / "out.tif"))
    bands = [dataset.GetRasterBand(number) for number in range(1, 5)]
    assert [band.GetDescription() for band in bands] == ["scene_B4", "rest 1", "rest 2", "NIR"]
    assert bands[3].GetUnitType() == "K"

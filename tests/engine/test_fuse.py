"""Pansharpening, from files to a file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_raster, write_raster
from osgeo import gdal

from clippan.core.errors import Cancelled, ClippanError
from clippan.fusion import fuse, neural, statistics
from clippan.handlers import pansharpen, run
from clippan.jobs import Compression, Context, Device, Method, PansharpenRequest

METHODS = list(Method)
# BDSD learns from one scale further down, where these small pictures have little left to learn from.
SHARPENING = [method for method in METHODS if method not in (Method.CUBIC, Method.BDSD)]


def sharpen(scene, output, **options):
    return run(PansharpenRequest(pan=scene.pan, ms=(scene.ms,), output=str(output), **options))


def error(scene, output):
    wanted = read_raster(scene.truth).astype(float)
    return float(np.sqrt(((read_raster(str(output)).astype(float) - wanted) ** 2).mean()))


@pytest.mark.parametrize("method", SHARPENING)
@pytest.mark.parametrize(("ratio", "bands"), [(4, 4), (2, 7), (3, 1)])
def test_every_method_is_closer_to_the_truth_than_interpolation(scene, tmp_path, method, ratio, bands):
    pair = scene(ratio=ratio, bands=bands, size=240)
    sharpen(pair, tmp_path / "cubic.tif", method=Method.CUBIC)
    result = sharpen(pair, tmp_path / "fused.tif", method=method)
    assert (result.width, result.height, result.bands, result.dtype) == (240, 240, bands, "uint16")
    assert error(pair, tmp_path / "fused.tif") < 0.8 * error(pair, tmp_path / "cubic.tif")


def test_bdsd_is_closer_to_the_truth_than_interpolation(scene, tmp_path):
    pair = scene(size=512)
    sharpen(pair, tmp_path / "cubic.tif", method=Method.CUBIC)
    sharpen(pair, tmp_path / "fused.tif", method=Method.BDSD)
    assert error(pair, tmp_path / "fused.tif") < 0.95 * error(pair, tmp_path / "cubic.tif")


# Every method filters with a gain for each band; those of generic are all the same.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sensor"), [*((method, "quickbird") for method in METHODS), (Method.CLIPPAN, "generic")]
)
def test_tiles_and_threads_do_not_show(scene, tmp_path, method, sensor):
    pair = scene(size=612, dtype="float32")
    sharpen(pair, tmp_path / "whole.tif", method=method, sensor=sensor, tile_size=4096, threads=1)
    sharpen(pair, tmp_path / "tiles.tif", method=method, sensor=sensor, tile_size=256, threads=3)
    assert np.array_equal(read_raster(str(tmp_path / "whole.tif")), read_raster(str(tmp_path / "tiles.tif")))


@pytest.mark.slow
def test_tiles_do_not_show_on_odd_grids_with_holes(tmp_path):
    rng = np.random.default_rng(1)
    ms = rng.uniform(100, 900, (5, 210, 190)).astype("float32")
    ms[:, 40:90, 60:140] = np.nan
    ms[2, 100:, :30] = np.nan
    pan = rng.uniform(100, 900, (640, 700)).astype("float32")
    pan[300:310] = -1
    write_raster(tmp_path / "ms.tif", ms, 3.37, (500003.1, 4999996.2))
    write_raster(tmp_path / "pan.tif", pan, 1.0, nodata=-1)
    for size in (256, 512, 2048):
        run(
            PansharpenRequest(
                pan=str(tmp_path / "pan.tif"),
                ms=(str(tmp_path / "ms.tif"),),
                output=str(tmp_path / f"{size}.tif"),
                tile_size=size,
            )
        )
    first, *others = (read_raster(str(tmp_path / f"{size}.tif")) for size in (256, 512, 2048))
    assert np.isnan(first).any()
    assert np.isfinite(first).any()
    for other in others:
        assert np.array_equal(first, other, equal_nan=True)


def test_gpu_blocks_are_cut_out_right(scene, tmp_path, monkeypatch):
    # A GPU has blocks larger than the smallest tile; the same code path on the CPU.
    pair = scene(size=700)
    monkeypatch.setattr(fuse, "_CPU_BLOCK", 1024)
    sharpen(pair, tmp_path / "small.tif", tile_size=256)
    sharpen(pair, tmp_path / "large.tif", tile_size=2048)
    assert np.array_equal(read_raster(str(tmp_path / "small.tif")), read_raster(str(tmp_path / "large.tif")))


@pytest.mark.slow
def test_a_gpu_without_enough_memory_gets_smaller_blocks(scene, tmp_path, monkeypatch):
    pair = scene(size=1200)
    monkeypatch.setattr(neural, "supports_bfloat16", lambda: False)  # nor does a GPU
    sharpen(pair, tmp_path / "whole.tif")
    monkeypatch.setattr(fuse, "_NETWORK_BLOCK", 1024)  # as on a GPU
    compute, least = fuse.TileFuser._fuse_block, 256 + 2 * 64  # with room for the network's margin

    def short(self, x, y, *arrays):
        if x.count > least:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return compute(self, x, y, *arrays)

    monkeypatch.setattr(fuse.TileFuser, "_fuse_block", short)
    lines = []
    request = PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "short.tif"), threads=2)
    run(request, Context(log=lines.append))
    # Products of other shapes round differently.
    whole, small = (read_raster(str(tmp_path / name)).astype(int) for name in ("whole.tif", "short.tif"))
    assert np.abs(whole - small).max() <= 1
    assert any("block size is now 256 pixels" in line for line in lines)
    least = 0
    with pytest.raises(ClippanError, match="memory is too small; close other programs"):
        run(request)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_gpu_agrees_with_cpu(scene, tmp_path, method):
    pair = scene(size=1024)
    for device in ("cpu", "cuda"):
        sharpen(pair, tmp_path / f"{device}.tif", method=method, device=Device(device))
    one, other = (read_raster(str(tmp_path / f"{device}.tif")).astype(int) for device in ("cpu", "cuda"))
    assert np.abs(one - other).max() <= 1


def test_bytes_are_the_same_each_time(scene, tmp_path):
    pair = scene(size=600)
    written = []
    for _ in range(2):
        sharpen(pair, tmp_path / "out.tif", tile_size=256, threads=3)
        written.append((tmp_path / "out.tif").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_every_type_stays_itself(scene, tmp_path, dtype):
    pair = scene(dtype=dtype)
    result = sharpen(pair, tmp_path / "out.tif")
    assert result.dtype == dtype
    assert read_raster(str(tmp_path / "out.tif")).dtype == np.dtype(dtype)


def test_negative_values_are_modulated_too(tmp_path):
    # Scaled surface reflectance has small negative numbers over water.
    rng = np.random.default_rng(0)
    low = rng.normal(0, 40, (3, 64, 64)).astype("int16")
    pan = np.kron(low.mean(axis=0), np.ones((4, 4))).astype("int16")
    write_raster(tmp_path / "ms.tif", low, 4.0)
    write_raster(tmp_path / "pan.tif", pan, 1.0)
    run(
        PansharpenRequest(
            pan=str(tmp_path / "pan.tif"), ms=(str(tmp_path / "ms.tif"),), output=str(tmp_path / "out.tif")
        )
    )
    found = read_raster(str(tmp_path / "out.tif"))
    assert np.abs(found).max() < 600


@pytest.mark.parametrize("method", ["brovey", "bt-h", "mtf-glp-hpm", "mtf-glp-hpm-r"])
def test_modulations_do_not_mind_where_zero_is(scene, tmp_path, method):
    # Degrees Celsius below zero, say: what a modulation takes for black is the darkest surface.
    pair = scene(dtype="float32")
    sharpen(pair, tmp_path / "out.tif", method=Method(method))
    shifted = write_raster(tmp_path / "shifted.tif", read_raster(pair.ms) - 1600, 4.0)
    run(PansharpenRequest(pan=pair.pan, ms=(shifted,), output=str(tmp_path / "low.tif"), method=Method(method)))
    wanted = read_raster(pair.truth) - 1600
    low = read_raster(str(tmp_path / "low.tif"))
    assert np.isfinite(low).all()
    off = np.sqrt(((low - wanted) ** 2).mean())
    assert off < 1.25 * np.sqrt(((read_raster(str(tmp_path / "out.tif")) - read_raster(pair.truth)) ** 2).mean())


@pytest.mark.parametrize("method", ["brovey", "bt-h", "mtf-glp-hpm", "mtf-glp-hpm-r"])
def test_dark_surfaces_do_not_turn_black_or_bright(scene, tmp_path, method):
    pair = scene()
    for path, factor in ((pair.pan, 4), (pair.ms, 1)):
        dataset = gdal.Open(path, gdal.GA_Update)
        values = dataset.ReadAsArray().astype(float)
        values[..., 20 * factor : 40 * factor, 20 * factor : 40 * factor] *= 0.02  # a lake
        if factor == 4:
            values[80:160, 80:160] *= np.random.default_rng(0).uniform(0, 2, (80, 80))  # and its noise
        dataset.WriteArray(values)
        dataset = None
    sharpen(pair, tmp_path / "out.tif", method=Method(method))
    lake = read_raster(str(tmp_path / "out.tif"))[:, 96:144, 96:144]
    source = read_raster(pair.ms)[:, 24:36, 24:36]
    assert lake.min() > 0
    assert lake.max() < 3 * source.max()


@pytest.mark.parametrize("method", METHODS)
def test_scattered_gaps_leave_enough_to_measure(scene, tmp_path, method):
    pair = scene(size=512)
    gaps = np.random.default_rng(0).random((512, 512)) < 0.05
    values = read_raster(pair.pan)[0]
    values[gaps] = 0
    pan = write_raster(tmp_path / "holed.tif", values, nodata=0)
    run(PansharpenRequest(pan=pan, ms=(pair.ms,), output=str(tmp_path / "out.tif"), method=method))
    found = read_raster(str(tmp_path / "out.tif"))
    assert np.array_equal(found[0] == 0, gaps)
    fine = ~np.broadcast_to(gaps, found.shape)
    wanted = read_raster(pair.truth)
    off = np.sqrt(((found.astype(float) - wanted)[fine] ** 2).mean())
    sharpen(pair, tmp_path / "whole.tif", method=method)
    whole = read_raster(str(tmp_path / "whole.tif"))
    assert off < 1.3 * np.sqrt(((whole.astype(float) - wanted)[fine] ** 2).mean())


@pytest.mark.slow
def test_nodata_is_kept_out_and_restored(scene, tmp_path):
    plain, holed = tmp_path / "plain", tmp_path / "holed"
    plain.mkdir()
    holed.mkdir()
    pair = scene(dtype="int16", folder=plain)
    values = read_raster(pair.ms)
    values[:, 10:30, 20:50] = -9999
    ms = write_raster(holed / "ms.tif", values, 4.0, nodata=-9999)
    for method in METHODS:
        sharpen(pair, plain / "out.tif", method=method)
        result = run(PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(holed / "out.tif"), method=method))
        assert result.nodata == -9999
        whole, found = read_raster(str(plain / "out.tif")), read_raster(str(holed / "out.tif"))
        hole = np.zeros(found.shape, bool)
        hole[:, 40:120, 80:200] = True
        assert (found[hole] == -9999).all(), method
        assert (found[~hole] != -9999).all(), method
        # Away from the hole only the scene's statistics can differ, and by little.
        far = np.ones(found.shape, bool)
        far[:, 20:140, 60:220] = False
        assert np.abs(found[far].astype(float) - whole[far]).mean() < 12, method
        ring = ~far & ~hole
        assert np.abs(found[ring].astype(float) - whole[ring]).mean() < 60, method


def test_a_valid_value_does_not_turn_into_nodata(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.integers(1, 4, (1, 64, 64)).astype("uint8")
    low[0, :8] = 0
    write_raster(tmp_path / "ms.tif", low, 4.0, nodata=0)
    write_raster(tmp_path / "pan.tif", rng.integers(0, 255, (256, 256)).astype("uint8"), 1.0)
    run(
        PansharpenRequest(
            pan=str(tmp_path / "pan.tif"), ms=(str(tmp_path / "ms.tif"),), output=str(tmp_path / "out.tif")
        )
    )
    found = read_raster(str(tmp_path / "out.tif"))
    assert (found[0, :32] == 0).all()
    assert (found[0, 32:] > 0).all()


@pytest.mark.parametrize(
    ("dtype", "mark"), [("int16", -9999), ("float32", -9999), ("int16", -32768), ("float32", np.finfo(np.float32).min)]
)
@pytest.mark.parametrize("method", [Method.CLIPPAN, Method.BDSD])
def test_gaps_that_are_marked_but_not_declared_are_gaps(scene, tmp_path, dtype, mark, method):
    pair = scene(dtype=dtype, size=320)
    pan, ms = np.squeeze(read_raster(pair.pan)), read_raster(pair.ms)
    pan[:100, 220:] = pan[200:260, 100:180] = mark
    ms[:, :25, 55:] = ms[:, 50:65, 25:45] = mark
    found = []
    for name, nodata in (("told", float(mark)), ("silent", None)):
        paths = [
            write_raster(tmp_path / f"{name}_pan.tif", pan, nodata=nodata),
            write_raster(tmp_path / f"{name}_ms.tif", ms, 4.0, nodata=nodata),
        ]
        output = tmp_path / f"{name}.tif"
        result = run(
            PansharpenRequest(pan=paths[0], ms=(paths[1],), output=str(output), method=method, sensor="generic")
        )
        found.append((read_raster(str(output)), result))
    (told, first), (silent, second) = found
    assert np.array_equal(told, silent)
    assert (silent[:, :100, 220:] == np.asarray(mark, dtype)).all()
    assert first.nodata == second.nodata == mark
    assert first.shift == second.shift
    assert first.hints == ()
    assert len(second.hints) == 2
    for hint, what in zip(second.hints, ("panchromatic", "multispectral")):
        assert hint.startswith(f"The {what} raster declares no nodata value; {float(mark):.9g} is taken as nodata")


def test_black_borders_that_nobody_declared_are_pointed_out(scene, tmp_path):
    pair = scene()
    values = read_raster(pair.ms)
    values[:, :8] = 0
    ms = write_raster(tmp_path / "border.tif", values, 4.0)
    lines = []
    request = PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif"))
    result = run(request, Context(log=lines.append))
    assert result.hints[1:] == (
        "12 % of the multispectral pixels are 0 in all bands; if they are missing pixels, set 0 as the nodata value.",
    )
    assert "choose one if you know it" in result.hints[0]
    assert not set(lines) & set(result.hints)  # whoever shows the result shows them
    assert (
        run(
            PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif"), nodata=0, sensor="generic")
        ).hints
        == ()
    )
    assert sharpen(pair, tmp_path / "out.tif", sensor="landsat").hints == ()


def test_a_hole_does_not_darken_its_surroundings(scene, tmp_path):
    pair = scene(dtype="int16")
    values = np.full_like(read_raster(pair.ms), 900)
    values[:, 10:30, 20:50] = -9999
    ms = write_raster(tmp_path / "flat.tif", values, 4.0, nodata=-9999)
    run(PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif"), method=Method.CUBIC))
    assert set(np.unique(read_raster(str(tmp_path / "out.tif")))) == {-9999, 900}


@pytest.mark.parametrize(
    ("dtype", "declared", "written"),
    [
        ("uint8", -9999, 0),
        ("uint16", float("nan"), 0),
        ("int16", -99999, -32768),
        ("uint16", 65535, 65535),
        ("int64", None, np.iinfo("int64").min),
        ("float64", -1.7976931348623157e308, float("nan")),
    ],
)
def test_holes_are_written_with_a_value_that_fits(scene, tmp_path, dtype, declared, written):
    pair = scene(dtype=dtype, nodata=declared)
    values = read_raster(pair.pan)[0].astype("float32")
    values[50:80, 50:80] = -1
    pan = write_raster(tmp_path / "holed.tif", values, nodata=-1)
    result = run(PansharpenRequest(pan=pan, ms=(pair.ms,), output=str(tmp_path / "out.tif")))
    assert np.array_equal(result.nodata, written, equal_nan=dtype == "float64")
    dataset = gdal.Open(result.output)
    band = dataset.GetRasterBand(1)
    assert np.array_equal(band.GetNoDataValue(), written, equal_nan=dtype == "float64")
    holes = band.GetMaskBand().ReadAsArray() == 0
    assert holes[50:80, 50:80].all()
    assert holes.sum() == 900


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_value_beside_the_largest_nodata(tmp_path, dtype):
    greatest = np.iinfo(dtype).max
    low = np.full((1, 64, 64), greatest - 1, dtype)
    low[0, :8] = greatest
    low[0, 20:40] = greatest // 2
    write_raster(tmp_path / "ms.tif", low, 4.0, nodata=greatest)
    pan = np.random.default_rng(0).integers(greatest // 2, greatest, (256, 256)).astype(dtype)
    write_raster(tmp_path / "pan.tif", pan)
    run(
        PansharpenRequest(
            pan=str(tmp_path / "pan.tif"), ms=(str(tmp_path / "ms.tif"),), output=str(tmp_path / "out.tif")
        )
    )
    found = read_raster(str(tmp_path / "out.tif"))
    assert (found[0, :32] == greatest).all()
    assert (found[0, 32:] < greatest).all()
    assert (found[0, 32:] == greatest - 1).any()


def test_bit_depth_bounds_the_result(scene, tmp_path):
    pair = scene()
    low = read_raster(pair.ms)
    low = np.minimum(low * 4, 4095)
    ms = write_raster(tmp_path / "twelve.tif", low, 4.0, options=["NBITS=12"])
    run(PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif")))
    assert read_raster(str(tmp_path / "out.tif")).max() == 4095


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_saturated_integers_do_not_turn_over(tmp_path, dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    ms = write_raster(tmp_path / "ms.tif", rng.integers(0, info.max, (2, 32, 32), dtype, endpoint=True), 4.0)
    pan = write_raster(tmp_path / "pan.tif", rng.integers(0, info.max, (128, 128), dtype, endpoint=True))
    run(PansharpenRequest(pan=pan, ms=(ms,), output=str(tmp_path / "out.tif"), method=Method.CUBIC))
    up = np.kron(read_raster(ms).astype(float), np.ones((1, 4, 4)))
    found = read_raster(str(tmp_path / "out.tif")).astype(float)
    assert found.max() > 0.99 * info.max
    assert found[up > 0.98 * info.max].min() > 0.3 * info.max


@pytest.mark.parametrize("hole", [False, True])
def test_a_pan_of_floats_costs_no_value_unless_it_has_holes(scene, tmp_path, hole):
    pair = scene()
    low = read_raster(pair.ms)
    low[:, 10:20, 10:20] = 0
    ms = write_raster(tmp_path / "dark.tif", low, 4.0)
    values = read_raster(pair.pan)[0].astype("float32")
    if hole:
        values[200, 200] = np.nan
    pan = write_raster(tmp_path / "float.tif", values)
    result = run(PansharpenRequest(pan=pan, ms=(ms,), output=str(tmp_path / "out.tif"), method=Method.CUBIC))
    assert result.nodata == (0 if hole else None)
    assert (read_raster(result.output)[:, 50:70, 50:70] == (1 if hole else 0)).all()


@pytest.mark.slow
def test_a_scene_of_more_windows_than_are_measured(scene, tmp_path, monkeypatch):
    pair = scene(size=1536)
    sharpen(pair, tmp_path / "all.tif")
    seen = []
    monkeypatch.setattr(statistics, "_MAX_WINDOWS", 16)
    monkeypatch.setattr(statistics, "_TARGET_SAMPLES", 16 * 1024)
    measure = statistics._WindowSampler.measure

    def counted(self, window):
        seen.append(window)
        return measure(self, window)

    monkeypatch.setattr(statistics._WindowSampler, "measure", counted)
    sharpen(pair, tmp_path / "some.tif", threads=1)
    assert 16 <= len(seen) < 24
    assert len({window.x for window in seen}) > 4  # drawn from all over, not the first rows
    assert len({window.y for window in seen}) > 4
    one, other = (read_raster(str(tmp_path / f"{name}.tif")).astype(float) for name in ("all", "some"))
    assert np.abs(one - other).mean() < 5


def test_a_band_given_twice(scene, tmp_path):
    pair = scene()
    for method in METHODS:
        run(PansharpenRequest(pan=pair.pan, ms=(pair.ms, pair.ms), output=str(tmp_path / "out.tif"), method=method))
        found = read_raster(str(tmp_path / "out.tif")).astype(int)
        assert np.abs(found[:4] - found[4:]).max() <= 2, method
        assert found.max() < 4000, method


def test_many_bands_get_smaller_tiles(scene, tmp_path, monkeypatch):
    pair = scene(size=700)
    monkeypatch.setattr(fuse, "_TILE_BYTES", 4 * 2 * 300 * 300)
    seen = []
    monkeypatch.setattr(
        pansharpen,
        "in_order",
        lambda f, windows, *rest, order=pansharpen.in_order: seen.extend(windows) or order(f, windows, *rest),
    )
    sharpen(pair, tmp_path / "small.tif", method=Method.BT_H)
    assert max(window.width for window in seen) == 256


def test_ms_in_another_crs_is_reprojected(scene, tmp_path):
    pair = scene(size=512)
    warped = str(tmp_path / "warped.tif")
    gdal.Warp(warped, pair.ms, dstSRS="EPSG:4326", resampleAlg="cubic")
    one = sharpen(pair, tmp_path / "one.tif", method=Method.MTF_GLP_HPM_R)
    two = run(
        PansharpenRequest(pan=pair.pan, ms=(warped,), output=str(tmp_path / "two.tif"), method=Method.MTF_GLP_HPM_R)
    )
    assert one.width - two.width < 12
    assert gdal.Open(two.output).GetGeoTransform()[1] == 1
    window = (100, 100, 300, 300)
    first, second = (gdal.Open(result.output) for result in (one, two))
    x = round(first.GetGeoTransform()[0] - second.GetGeoTransform()[0])
    y = round(second.GetGeoTransform()[3] - first.GetGeoTransform()[3])
    a = first.ReadAsArray(*window).astype(float)
    b = second.ReadAsArray(window[0] + x, window[1] + y, *window[2:]).astype(float)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_pictures_without_georeference(scene, tmp_path):
    sharpen(scene(), tmp_path / "placed.tif")
    pair = scene(origin=None, epsg=None)
    sharpen(pair, tmp_path / "out.tif")
    assert np.array_equal(read_raster(str(tmp_path / "out.tif")), read_raster(str(tmp_path / "placed.tif")))
    assert gdal.Open(str(tmp_path / "out.tif")).GetGeoTransform(can_return_null=True) is None


def test_single_bands_and_one_raster_give_the_same(scene, tmp_path):
    pair = scene()
    values = read_raster(pair.ms)
    singles = tuple(write_raster(tmp_path / f"B{n}.tif", values[n], 4.0) for n in range(4))
    sharpen(pair, tmp_path / "one.tif")
    run(PansharpenRequest(pan=pair.pan, ms=singles, output=str(tmp_path / "two.tif")))
    assert np.array_equal(read_raster(str(tmp_path / "one.tif")), read_raster(str(tmp_path / "two.tif")))


def test_chosen_bands_are_sharpened_in_their_order(scene, tmp_path):
    pair = scene()
    result = sharpen(pair, tmp_path / "out.tif", bands=(3, 1))
    assert result.bands == 2
    found, wanted = read_raster(str(tmp_path / "out.tif")), read_raster(pair.truth)
    assert np.corrcoef(found[0].ravel(), wanted[2].ravel())[0, 1] > 0.9


def test_output_carries_its_provenance(scene, tmp_path):
    pair = scene()
    result = sharpen(pair, tmp_path / "out.tif", sensor="quickbird", compression=Compression.LZW)
    tags = gdal.Open(str(tmp_path / "out.tif")).GetMetadata()
    assert tags["CLIPPAN_METHOD"] == "clippan"
    assert tags["CLIPPAN_SENSOR"] == "quickbird"
    assert json.loads(tags["CLIPPAN_PARAMETERS"])["pan"] == pair.pan
    assert result.provenance["CLIPPAN_VERSION"] == tags["CLIPPAN_VERSION"]


def test_bands_keep_their_description(scene, tmp_path):
    pair = scene()
    dataset = gdal.Open(pair.ms, gdal.GA_Update)
    dataset.GetRasterBand(1).SetDescription("Blue")
    dataset.GetRasterBand(1).SetColorInterpretation(gdal.GCI_BlueBand)
    dataset.GetRasterBand(1).SetScale(0.0001)
    dataset = None
    sharpen(pair, tmp_path / "out.tif")
    dataset = gdal.Open(str(tmp_path / "out.tif"))
    band = dataset.GetRasterBand(1)
    assert (band.GetDescription(), band.GetColorInterpretation()) == ("Blue", gdal.GCI_BlueBand)
    assert band.GetScale() == 0.0001


def test_sensor_is_recognised_by_the_file_name(scene, tmp_path):
    pair = scene()
    named = tmp_path / "LC08_L1TP_MS.tif"
    Path(pair.ms).rename(named)
    lines = []
    request = PansharpenRequest(pan=pair.pan, ms=(str(named),), output=str(tmp_path / "out.tif"))
    assert run(request, Context(log=lines.append)).sensor == "landsat"
    assert any("recognised" in line for line in lines)


def test_spaces_and_letters_of_any_alphabet(scene, tmp_path):
    folder = tmp_path / "наши снимки – Übersicht 影像"
    folder.mkdir()
    pair = scene(folder=folder)
    sharpen(pair, folder / "geschärft ✓.tif")
    assert sorted(os.listdir(folder)) == ["geschärft ✓.tif", "ms.tif", "pan.tif", "truth.tif"]


def test_an_existing_output_is_replaced(scene, tmp_path):
    pair = scene()
    (tmp_path / "out.tif").write_text("old")
    sharpen(pair, tmp_path / "out.tif")
    assert read_raster(str(tmp_path / "out.tif")).shape == (4, 256, 256)


@pytest.mark.parametrize("stop_at", [1, 30, 93])
def test_cancel_leaves_nothing(scene, tmp_path, stop_at):
    pair = scene(size=1024)
    cancelled = threading.Event()

    def progress(percent, message):
        if percent >= stop_at:
            cancelled.set()

    before = sorted(os.listdir(tmp_path))
    request = PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "out.tif"), tile_size=256)
    with pytest.raises(Cancelled):
        run(request, Context(progress, cancelled=cancelled.is_set))
    assert sorted(os.listdir(tmp_path)) == before


def test_progress_rises_to_the_end(scene, tmp_path):
    seen = []
    pair = scene(size=600)
    request = PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "out.tif"), tile_size=256)
    run(request, Context(lambda percent, message: seen.append(percent)))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(100)

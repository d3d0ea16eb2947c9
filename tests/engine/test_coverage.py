"""Sparse rasters: what was never written has no data, and takes no time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from conftest import truth, write_raster
from osgeo import gdal

from clippan.handlers import run
from clippan.jobs import Context, Device, Method, PansharpenRequest
from clippan.raster.coverage import WrittenPixels
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.source import BandInfo, Source
from clippan.raster.tiles import Window
from clippan.raster.writer import Writer

EDGE = (500000.0, 5000000.0)


def sparse(
    path: Path, size: int, values: np.ndarray, at: tuple[int, int], stored: bool = True, **options: float
) -> str:
    """A raster of ``size`` with values (bands, h, w) at column and row; the rest is left out if ``stored`` is False."""
    creation = ["TILED=YES", "BLOCKXSIZE=64", "BLOCKYSIZE=64", f"SPARSE_OK={'FALSE' if stored else 'TRUE'}"]
    kind = {"uint16": gdal.GDT_UInt16, "float32": gdal.GDT_Float32}[values.dtype.name]
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), size, size, len(values), kind, creation)
    pixel = options.get("pixel", 1.0)
    dataset.SetGeoTransform((EDGE[0], pixel, 0, EDGE[1], 0, -pixel))
    for number in range(len(values)):
        if "nodata" in options:
            dataset.GetRasterBand(number + 1).SetNoDataValue(options["nodata"])
    if stored:
        dataset.WriteArray(np.zeros((len(values), size, size), values.dtype))
    dataset.WriteArray(values, *at)
    return str(path)


def coverage(path: str) -> tuple[WrittenPixels, gdal.Dataset]:
    dataset = gdal.Open(path)
    return WrittenPixels([dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)], True), dataset


def test_written_is_what_lies_in_stored_blocks(tmp_path) -> None:
    found, _dataset = coverage(sparse(tmp_path / "a.tif", 256, np.ones((1, 10, 10), np.uint16), (100, 70), False))
    expected = np.zeros((256, 256), bool)
    expected[64:128, 64:128] = True
    np.testing.assert_array_equal(found.written_mask(Window(0, 0, 256, 256)), expected)
    np.testing.assert_array_equal(found.written_mask(Window(50, 60, 90, 31)), expected[60:91, 50:140])
    assert found.written_mask(Window(64, 64, 64, 64)) is None
    assert not found.written_mask(Window(0, 0, 64, 256)).any()
    assert found.bounds == Window(64, 64, 64, 64)
    assert found.may_contain_data(Window(127, 127, 500, 500))
    assert not found.may_contain_data(Window(128, 0, 128, 256))
    assert not found.may_contain_data(Window(-100, -100, 50, 50))


def test_gaps_of_a_mosaic_are_exact_to_the_pixel(tmp_path) -> None:
    """What no source of a virtual raster covers, though its own blocks are larger."""
    parts = [
        write_raster(tmp_path / f"{x}.tif", np.full((1, 20, 20), 5, np.uint16), 1.0, (EDGE[0] + x, EDGE[1]))
        for x in (0, 57)
    ]
    gdal.BuildVRT(str(tmp_path / "m.vrt"), parts).FlushCache()
    found, _dataset = coverage(str(tmp_path / "m.vrt"))
    expected = np.zeros((20, 77), bool)
    expected[:, :20] = expected[:, 57:] = True
    np.testing.assert_array_equal(found.written_mask(Window(0, 0, 77, 20)), expected)


def test_a_plain_raster_is_whole(tmp_path) -> None:
    found, _dataset = coverage(write_raster(tmp_path / "a.tif", np.zeros((1, 70, 70), np.uint16)))
    assert found.occupancy is None
    assert found.written_mask(Window(0, 0, 70, 70)) is None
    assert found.bounds == Window(0, 0, 70, 70)


def test_zeros_that_may_be_meant_stay_zeros(tmp_path, monkeypatch) -> None:
    """GDAL leaves blocks of zeros out of files that nobody meant to be sparse."""
    values = np.zeros((1, 256, 256), np.uint16)
    values[:, :100] = 7
    dataset = gdal.Open(write_raster(tmp_path / "a.tif", values))
    assert dataset.GetRasterBand(1).GetDataCoverageStatus(0, 200, 256, 9)[0] == gdal.GDAL_DATA_COVERAGE_STATUS_EMPTY
    source = Source([dataset], "raster")
    assert source.read(0, 50, 256, 100)[1] is None
    assert source.nodata_note == ""
    # Only of a huge raster they are taken for nodata, and that is said.
    monkeypatch.setattr("clippan.raster.coverage._HUGE_PIXELS", 1000)
    huge = Source([dataset], "raster")
    band, data = dataset.GetRasterBand(1), gdal.GDAL_DATA_COVERAGE_STATUS_DATA
    stored = [band.GetDataCoverageStatus(0, row, 256, 1)[0] == data for row in range(50, 250)]
    assert 50 <= sum(stored) < 200
    np.testing.assert_array_equal(huge.read(0, 50, 256, 200)[1][0, :, 0], stored)
    assert "never written" in huge.nodata_note
    # But one that is empty throughout is as it was written.
    gdal.GetDriverByName("GTiff").Create(str(tmp_path / "b.tif"), 256, 256, 1, gdal.GDT_Byte, ["SPARSE_OK=TRUE"])
    assert Source([gdal.Open(str(tmp_path / "b.tif"))], "raster").read(0, 0, 256, 256)[1] is None


def test_a_source_and_a_scene_take_what_is_not_stored_for_nodata(tmp_path) -> None:
    path = sparse(tmp_path / "a.tif", 256, np.full((3, 64, 64), 9, np.uint16), (64, 0), False, nodata=0)
    source = Source([gdal.Open(path)], "raster")
    values, valid = source.read(32, 0, 64, 64)
    assert valid is not None
    np.testing.assert_array_equal(valid[0], np.broadcast_to(np.arange(64) >= 32, (64, 64)))
    assert (values[:, valid[0]] == 9).all()
    assert source.bounds == Window(64, 0, 64, 64)
    _, shown = Renderer(path, RenderOptions()).picture_and_mask(Window(32, 0, 64, 64), 64, 64)
    np.testing.assert_array_equal(shown, valid[0])


@pytest.mark.parametrize("method", [Method.BT_H, Method.CUBIC])
def test_pansharpening_a_sparse_scene_is_that_of_a_dense_one(tmp_path, method) -> None:
    high = truth(192, 3)
    low = high.reshape(3, 96, 2, 96, 2).mean((2, 4)).astype(np.uint16)
    pan = high.mean(axis=0, keepdims=True).astype(np.uint16)
    results = []
    for stored in (True, False):
        folder = tmp_path / str(stored)
        folder.mkdir()
        paths = (
            sparse(folder / "pan.tif", 1024, pan, (330, 410), stored, nodata=0),
            sparse(folder / "ms.tif", 512, low, (165, 205), stored, nodata=0, pixel=2.0),
        )
        request = PansharpenRequest(
            pan=paths[0],
            ms=(paths[1],),
            output=str(folder / "o.tif"),
            method=method,
            device=Device.CPU,
            threads=1,
            tile_size=256,
        )
        results.append(gdal.Open(run(request, Context()).output))
    np.testing.assert_array_equal(results[0].ReadAsArray(), results[1].ReadAsArray())
    assert results[1].ReadAsArray()[:, 420:500, 340:420].min() > 0
    small = [result.GetRasterBand(1).GetOverview(0).ReadAsArray() for result in results]
    np.testing.assert_array_equal(*small)
    stored_blocks = results[1].GetRasterBand(1).GetDataCoverageStatus(0, 0, 256, 256)[0]
    assert stored_blocks == gdal.GDAL_DATA_COVERAGE_STATUS_EMPTY


@pytest.mark.slow
def test_a_huge_sparse_raster_is_planned_and_written_in_seconds(tmp_path) -> None:
    size, at = 200_000, 130_000
    begun = time.monotonic()
    path = sparse(tmp_path / "a.tif", size, np.full((3, 100, 100), 700, np.uint16), (at, at), False, nodata=0)
    scene = Renderer(path, RenderOptions(tile=(64,)))
    tiles = list(scene.tile_plan(64).tiles())
    assert 4 <= len(tiles) <= 200  # of seventeen million
    assert all(scene.picture(window, 64)[1] >= 0 for _, window, _ in tiles)
    assert sum(scene.picture(window, 64)[1] > 0.5 for _, window, _ in tiles) >= 1
    with Writer(
        str(tmp_path / "o.tif"), scene.grid, np.dtype(np.uint8), [BandInfo("class")], nodata=0, sparse=True
    ) as out:
        out.write(at // 256 * 256, at // 256 * 256, np.full((1, 256, 256), 3, np.uint8))
    assert (tmp_path / "o.tif").stat().st_size < 2**25
    dataset = gdal.Open(str(tmp_path / "o.tif"))
    band = dataset.GetRasterBand(1)
    assert band.GetOverviewCount() == 9
    place = at // 256 * 256 // 2
    np.testing.assert_array_equal(band.GetOverview(0).ReadAsArray(place, place, 128, 128), 3)
    assert time.monotonic() - begun < 60


def test_an_extent_where_nothing_was_written_has_no_tiles(tmp_path) -> None:
    path = sparse(tmp_path / "a.tif", 512, np.full((3, 64, 64), 9, np.uint16), (448, 0), False, nodata=0)
    extent = (EDGE[0], EDGE[1] - 500, EDGE[0] + 100, EDGE[1] - 10)
    assert all(
        window.width == 32
        for _, window, _ in Renderer(path, RenderOptions(tile=(32,), extent=extent)).tile_plan(32).tiles()
    )

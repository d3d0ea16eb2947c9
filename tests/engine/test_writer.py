"""Whole files or none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from osgeo import gdal

from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs.options import Compression, Format
from clippan.raster.grid import Grid
from clippan.raster.source import BandInfo
from clippan.raster.writer import Writer

GRID = Grid(1200, 700, (500000, 2, 0, 5000000, 0, -2), "")


def write(path, values, **options):
    options = {"grid": GRID, "bands": [BandInfo(f"band {n}") for n in range(len(values))], **options}
    with Writer(str(path), dtype=values.dtype, **options) as writer:
        writer.write(0, 0, values)


def picture(dtype="uint16", bands=2):
    return np.random.default_rng(0).integers(0, 200, (bands, GRID.height, GRID.width)).astype(dtype)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_what_is_written_is_read_again(tmp_path, compression, format, dtype):
    values = picture(dtype)
    path = tmp_path / "out.tif"
    write(path, values, compression=compression, format=format, nodata=3, tags={"CLIPPAN_METHOD": "x"})
    dataset = gdal.Open(str(path))
    assert np.array_equal(dataset.ReadAsArray(), values)
    assert dataset.GetMetadataItem("CLIPPAN_METHOD") == "x"
    assert dataset.GetGeoTransform() == GRID.geotransform
    band = dataset.GetRasterBand(2)
    assert (band.GetDescription(), band.GetNoDataValue()) == ("band 1", 3)
    assert band.GetOverviewCount() > 0
    assert band.GetBlockSize()[0] in (256, 512)
    ghost = b"LAYOUT=IFDS_BEFORE_DATA" in path.read_bytes()[:1000]
    assert ghost == (format is Format.COG)
    wanted = None if compression is Compression.NONE else compression.name
    assert dataset.GetMetadataItem("COMPRESSION", "IMAGE_STRUCTURE") == wanted
    assert os.listdir(tmp_path) == ["out.tif"]


def test_without_overviews(tmp_path):
    write(tmp_path / "out.tif", picture(), overviews=False)
    assert gdal.Open(str(tmp_path / "out.tif")).GetRasterBand(1).GetOverviewCount() == 0


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.tif"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), Writer(str(path), GRID, np.dtype("uint8"), [BandInfo()]):
        _ = 1 / 0
    assert os.listdir(tmp_path) == ["out.tif"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("format", list(Format))
def test_cancelled_while_the_file_is_finished(tmp_path, format):
    def stop(percent):
        raise Cancelled

    with pytest.raises(Cancelled):
        write(tmp_path / "out.tif", picture(), format=format, progress=stop)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", list(Format))
def test_the_disk_space_asked_for_is_what_is_needed(tmp_path, monkeypatch, format):
    size = GRID.width * GRID.height * 2 * 2
    short = {Format.GTIFF: size - 1, Format.COG: 2 * size - 1}[format]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10 * size, 0, short))
    with pytest.raises(ClippanError, match="free some space"):
        write(tmp_path / "out.tif", picture(), format=format, compression=Compression.NONE)
    assert os.listdir(tmp_path) == []


def test_too_little_space_is_seen_before_writing(tmp_path):
    huge = Grid(4_000_000, 4_000_000, None, "")
    with (
        pytest.raises(ClippanError, match="free some space"),
        Writer(str(tmp_path / "out.tif"), huge, np.dtype("uint16"), [BandInfo()]),
    ):
        pass
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import numpy as np
from clippan.core.errors import ClippanError
from clippan.jobs.options import Compression
from clippan.raster.grid import Grid
from clippan.raster.source import BandInfo
from clippan.raster.writer import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
grid = Grid(1024, 1024, None, "")
values = np.random.default_rng(0).integers(0, 60000, (1, 1024, 1024)).astype("uint16")
try:
    with Writer(sys.argv[1], grid, np.dtype("uint16"), [BandInfo()], compression=Compression[sys.argv[2]]) as writer:
        writer.write(0, 0, values)
except ClippanError as error:
    print("ONE SENTENCE:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("compression", ["NONE", "DEFLATE"])
def test_a_write_that_fails_half_way(tmp_path, compression):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "out.tif"), compression],
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search("ONE SENTENCE: .* could not be written: the file system", done.stdout), done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


def test_sidecars_of_an_older_file_go(tmp_path):
    path = tmp_path / "out.tif"
    write(path, picture("uint8", 1), overviews=False)
    dataset = gdal.Open(str(path))
    dataset.BuildOverviews("NEAREST", [2])
    dataset.GetRasterBand(1).ComputeStatistics(False)
    dataset = None
    (tmp_path / "out.tif.msk").write_bytes(path.read_bytes())
    assert sorted(os.listdir(tmp_path)) == ["out.tif", "out.tif.aux.xml", "out.tif.msk", "out.tif.ovr"]
    write(path, picture("uint8", 1), overviews=False)
    assert os.listdir(tmp_path) == ["out.tif"]


@pytest.mark.parametrize("format", list(Format))
def test_what_the_format_cannot_hold_stands_beside_it(tmp_path, format):
    values = picture(bands=3)
    bands = [BandInfo(f"b{n}", gdal.GCI_HueBand + n, "K", 0.5, 3.0) for n in range(3)]
    write(tmp_path / "out.tif", values, bands=bands, format=format)
    assert all(name in ("out.tif", "out.tif.aux.xml") for name in os.listdir(tmp_path))
    dataset = gdal.Open(str(tmp_path / "out.tif"))
    assert [dataset.GetRasterBand(n).GetColorInterpretation() for n in (1, 2, 3)] == [
        gdal.GCI_HueBand,
        gdal.GCI_HueBand + 1,
        gdal.GCI_HueBand + 2,
    ]


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("format", list(Format))
def test_nodata_of_long_integers(tmp_path, dtype, format):
    nodata = int(np.iinfo(dtype).min)
    write(tmp_path / "out.tif", picture(dtype, 1), nodata=nodata, format=format)
    dataset = gdal.Open(str(tmp_path / "out.tif"))
    assert dataset.GetRasterBand(1).GetNoDataValue() == nodata

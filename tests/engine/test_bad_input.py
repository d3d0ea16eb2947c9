"""Bad input: one clear sentence that names the cause and the remedy, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import read_raster, write_raster
from osgeo import gdal

from clippan.core.errors import ClippanError
from clippan.handlers import run
from clippan.jobs import AssessRequest, Compression, Method, PansharpenRequest

REMEDY = re.compile(
    r"(; |, and |, or )(check|choose|assign|use|name|free|list|create|convert|give|remove|warp|let|lay)\b"
)


def everything(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(folder: Path, sentence: str, pan: str, ms: object, output: object = None, **options: object) -> None:
    """The job must fail with this sentence, and leave the folder as it was."""
    before = everything(folder)
    sources = (ms,) if isinstance(ms, str) else tuple(ms)  # type: ignore[arg-type]
    with pytest.raises(ClippanError, match=sentence) as caught:
        run(PansharpenRequest(pan=pan, ms=sources, output=str(output or folder / "out.tif"), **options))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert REMEDY.search(text), f"no remedy in: {text}"
    assert everything(folder) == before


def test_missing_file(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "panchromatic raster .*gone.tif does not exist", str(tmp_path / "gone.tif"), pair.ms)
    refused(tmp_path, "multispectral raster .*gone.tif does not exist", pair.pan, str(tmp_path / "gone.tif"))


def test_not_a_raster(scene, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a raster")
    refused(tmp_path, "not a raster that GDAL can read", str(text), scene().ms)


def test_a_damaged_raster(scene, tmp_path):
    pair = scene(size=1024)
    whole = Path(pair.ms).read_bytes()
    Path(pair.ms).write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "multispectral raster could not be read", pair.pan, pair.ms)


def test_pan_with_three_bands(scene, tmp_path):
    pair = scene(bands=3)
    refused(tmp_path, "panchromatic raster has 3 bands and should have one", pair.ms, pair.ms)


def test_ms_finer_than_pan(scene, tmp_path):
    pair = scene(bands=1)
    refused(tmp_path, "finer", pair.ms, pair.pan)


def test_no_overlap(scene, tmp_path):
    pair = scene()
    far = write_raster(tmp_path / "far.tif", read_raster(pair.ms), 4.0, (900000.0, 1000000.0))
    refused(tmp_path, "do not overlap", pair.pan, far)


@pytest.mark.parametrize("which", ["panchromatic", "multispectral"])
def test_no_crs_on_one(scene, tmp_path, which):
    pair = scene()
    source = pair.pan if which == "panchromatic" else pair.ms
    bare = write_raster(tmp_path / "bare.tif", read_raster(source), 1.0 if source == pair.pan else 4.0, epsg=None)
    pan, ms = (bare, pair.ms) if which == "panchromatic" else (pair.pan, bare)
    refused(tmp_path, f"The {which} raster has no CRS", pan, ms)


@pytest.mark.parametrize("which", ["pan", "ms"])
def test_all_nodata(scene, tmp_path, which):
    pair = scene()
    source = getattr(pair, which)
    empty = write_raster(
        tmp_path / "empty.tif", np.zeros_like(read_raster(source)), 1.0 if which == "pan" else 4.0, nodata=0
    )
    refused(tmp_path, "No pixel is valid", *((empty, pair.ms) if which == "pan" else (pair.pan, empty)))


def test_all_nan(scene, tmp_path):
    pair = scene()
    empty = write_raster(tmp_path / "nan.tif", np.full((4, 64, 64), np.nan, "float32"), 4.0)
    refused(tmp_path, "No pixel is valid", pair.pan, empty)


def test_disk_full(scene, tmp_path):
    disk = tmp_path / "small disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root; test_writer limits the file size instead")
    try:
        pair = scene(size=512, folder=tmp_path)
        for compression in (Compression.NONE, Compression.DEFLATE):
            refused(tmp_path, "free some space", pair.pan, pair.ms, disk / "out.tif", compression=compression)
        # The check before writing trusts in compression; noise cannot be compressed.
        noise = np.random.default_rng(0).integers(0, 65535, (4, 128, 128)).astype("uint16")
        ms = write_raster(tmp_path / "noise.tif", noise, 4.0)
        (disk / "ballast").write_bytes(bytes(400_000))
        refused(tmp_path, "full|free some space", pair.pan, ms, disk / "out.tif")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_output_folder_not_writable(scene, tmp_path):
    pair = scene()
    locked = tmp_path / "locked"
    locked.mkdir()
    if os.geteuid() == 0:  # permissions do not stop root; a read-only mount does
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(locked)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("neither permissions nor mounts can be tried here")
    else:
        locked.chmod(0o500)
    try:
        refused(tmp_path, "not writable", pair.pan, pair.ms, locked / "out.tif")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(locked)], check=True)
        locked.chmod(0o700)


def test_output_folder_missing(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "does not exist; create it", pair.pan, pair.ms, tmp_path / "nowhere" / "out.tif")


@pytest.mark.parametrize("which", ["pan", "ms"])
def test_output_equal_to_an_input(scene, tmp_path, which):
    pair = scene()
    refused(tmp_path, "is one of the inputs", pair.pan, pair.ms, getattr(pair, which))


def test_output_equal_to_an_input_in_a_folder_with_braces(scene, tmp_path):
    folder = tmp_path / "{2026}"
    folder.mkdir()
    pair = scene(folder=folder)
    link = tmp_path / "link.tif"
    link.symlink_to(pair.ms)
    refused(tmp_path, "is one of the inputs", pair.pan, pair.ms, link)


def test_output_equal_to_an_input_by_a_link(scene, tmp_path):
    pair = scene()
    link = tmp_path / "link.tif"
    link.symlink_to(pair.pan)
    refused(tmp_path, "is one of the inputs", pair.pan, pair.ms, link)


@pytest.mark.parametrize("kind", ["vrt", "nested vrt", "zip", "zip in braces", "part of a file", "xml", "link"])
def test_output_equal_to_what_an_input_reads(scene, tmp_path, kind):
    pair = scene()
    target, source = pair.ms, str(tmp_path / "ms.vrt")
    if kind.startswith("zip"):
        target = str(tmp_path / "ms.zip")
        with zipfile.ZipFile(target, "w") as archive:
            archive.write(pair.ms, "ms.tif")
        source = f"/vsizip/{target}/ms.tif" if kind == "zip" else f"/vsizip/{{{target}}}/ms.tif"
    elif kind == "part of a file":
        source = f"/vsisubfile/0_{Path(target).stat().st_size},{target}"
    elif kind == "xml":
        source = gdal.Translate("", pair.ms, format="VRT").GetMetadata("xml:VRT")[0]
    else:
        gdal.Translate(source, pair.ms)
    if kind == "nested vrt":
        gdal.Translate(str(tmp_path / "outer.vrt"), source)
        source = str(tmp_path / "outer.vrt")
    if kind == "link":
        (tmp_path / "link.tif").symlink_to(pair.ms)
        target = str(tmp_path / "link.tif")
    refused(tmp_path, "is one of the inputs", pair.pan, source, target)


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".msk.ovr", ".aux.xml"])
def test_what_is_written_beside_the_output_is_an_input(scene, tmp_path, ending):
    pair = scene()
    beside = Path(pair.ms).rename(tmp_path / f"result.tif{ending}")
    refused(tmp_path, "is one of the inputs", pair.pan, str(beside), tmp_path / "result.tif")


def test_output_equal_to_an_input_in_memory(scene, tmp_path):
    pair = scene()
    gdal.FileFromMemBuffer("/vsimem/p.tif", Path(pair.pan).read_bytes())
    refused(tmp_path, "is one of the inputs", "/vsimem/p.tif", pair.ms, "/vsimem/p.tif")
    gdal.Unlink("/vsimem/p.tif")


def test_names_that_are_too_long(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "does not exist; check", str(tmp_path / ("b" * 300)), pair.ms)
    refused(tmp_path, "not a raster that GDAL can read", pair.pan, "<VRTDataset>" + "x" * 9000)
    refused(
        tmp_path, r"too long \(bytes too many: 45\); choose a shorter one", pair.pan, pair.ms, tmp_path / ("a" * 300)
    )
    refused(tmp_path, "contains a NUL character", "a\0b", pair.ms)


def test_a_flat_pan(scene, tmp_path):
    pair = scene()
    flat = write_raster(tmp_path / "flat.tif", np.full((256, 256), 1000.3, "float32"))
    for method in Method:
        if method is Method.CUBIC:
            run(PansharpenRequest(pan=flat, ms=(pair.ms,), output=str(tmp_path / "out.tif"), method=method))
        else:
            refused(tmp_path, "the same value everywhere.*check", flat, pair.ms, tmp_path / "no.tif", method=method)


def test_too_few_pixels(tmp_path):
    pan = write_raster(tmp_path / "pan.tif", np.arange(64, dtype="uint16").reshape(8, 8))
    ms = write_raster(tmp_path / "ms.tif", np.arange(12, dtype="uint16").reshape(3, 2, 2), 4.0)
    refused(tmp_path, r"Too few multispectral pixels \(4\).*choose a larger area", pan, ms)
    run(PansharpenRequest(pan=pan, ms=(ms,), output=str(tmp_path / "out.tif"), method=Method.CUBIC))


def test_wrong_band(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "Band 5 was asked for", pair.pan, pair.ms, bands=(5,))
    refused(tmp_path, "listed twice", pair.pan, pair.ms, bands=(2, 2))


def test_nodata_that_no_pixel_can_have(scene, tmp_path):
    pair = scene()
    refused(
        tmp_path, "No pixel can have the nodata value -9999, as the rasters are uint16", pair.pan, pair.ms, nodata=-9999
    )


def test_swapped(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "has 4 bands and should have one.*check whether the two were swapped", pair.ms, pair.pan)


def test_no_overlap_over_continents(scene, tmp_path):
    pair = scene()
    far = write_raster(tmp_path / "far.tif", read_raster(pair.ms), 0.5, (500000.0, 5000000.0), 32750)
    refused(tmp_path, "do not overlap; check", pair.pan, far)


def test_names_of_other_formats(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "would be a GeoTIFF; let its name end in .tif", pair.pan, pair.ms, tmp_path / "out.PNG")
    with pytest.raises(ClippanError, match=r"does not fit “Report”; let it end in \.html"):
        run(AssessRequest(fused=pair.truth, pan=pair.pan, ms=(pair.ms,), report=str(tmp_path / "truth2.tif")))


def test_unknown_sensor(scene, tmp_path):
    pair = scene()
    refused(tmp_path, "Unknown sensor 'sputnik'", pair.pan, pair.ms, sensor="sputnik")


def test_cuda_where_there_is_none(scene, tmp_path):
    import torch

    from clippan.jobs import Device

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    pair = scene()
    refused(tmp_path, "CUDA was asked for", pair.pan, pair.ms, device=Device.CUDA)


def test_some_nan_is_fine(scene, tmp_path):
    pair = scene(dtype="float32")
    values = read_raster(pair.ms)
    values[:, 5, 5] = np.nan
    ms = write_raster(tmp_path / "nan.tif", values, 4.0)
    run(PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif")))
    found = gdal.Open(str(tmp_path / "out.tif")).ReadAsArray()
    assert np.isnan(found).sum() == 4 * 16

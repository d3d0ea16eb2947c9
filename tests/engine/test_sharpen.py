"""Sharpen bands, from files to a file."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import read_raster, truth, write_raster
from osgeo import gdal

from clippan.core.device import Device
from clippan.core.errors import ClippanError
from clippan.fusion import band_sharpening, guide
from clippan.fusion.mtf_estimation import Mtf
from clippan.handlers import run
from clippan.jobs import Method, PansharpenRequest, Radiometry, SharpenRequest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import sample

SAFE = "S2A_MSIL2A_20220315T103021_N0400_R108_T32UMC_20220315T134155.SAFE"
EDGE = (500000.0, 5000000.0)


def mean_pixels(values: np.ndarray, ratio: int) -> np.ndarray:
    bands, height, width = values.shape
    return values.reshape(bands, height // ratio, ratio, width // ratio, ratio).mean((2, 4))


def place(folder: Path, ratio: int = 2, size: int = 256, dtype: str = "float32") -> tuple[str, str, np.ndarray]:
    """Three fine bands, two coarse ones, and the truth of these."""
    values = truth(size, 5)
    fine = write_raster(folder / "fine.tif", values[:3].astype(dtype), 10.0)
    coarse = write_raster(folder / "coarse.tif", mean_pixels(values[3:], ratio).astype(dtype), 10.0 * ratio)
    return fine, coarse, values[3:]


def sharpen(coarse, fine, output, **options):
    paths = [(path,) if isinstance(path, (str, Path)) else path for path in (coarse, fine)]
    coarse, fine = (tuple(map(str, group)) for group in paths)
    return run(SharpenRequest(coarse=coarse, fine=fine, output=str(output), threads=1, **options))


def rmse(path, wanted: np.ndarray) -> np.ndarray:
    return np.sqrt(((read_raster(str(path)) - wanted) ** 2).mean((1, 2)))


@pytest.mark.parametrize("ratio", [2, 4])
def test_is_closer_to_the_truth_than_interpolation_and_than_the_mean_as_pan(tmp_path, ratio) -> None:
    fine, coarse, wanted = place(tmp_path, ratio)
    result = sharpen(coarse, fine, tmp_path / "out.tif")
    assert (result.width, result.height, len(result.bands), result.dtype) == (256, 256, 2, "float32")
    pan = write_raster(tmp_path / "pan.tif", read_raster(fine).mean(axis=0), 10.0)
    for method in (Method.CUBIC, Method.MTF_GLP_HPM_R):
        run(PansharpenRequest(pan=pan, ms=(coarse,), output=str(tmp_path / f"{method.value}.tif"), method=method))
    error = rmse(tmp_path / "out.tif", wanted)
    assert (error < 0.65 * rmse(tmp_path / "cubic.tif", wanted)).all()
    assert (error < rmse(tmp_path / "mtf-glp-hpm-r.tif", wanted)).all()


@pytest.mark.parametrize(("ratio", "origin"), [(2, 0.0), (4, 0.0), (3.5, 0.0), (20 / 3, 4.0)])
def test_the_mean_over_each_coarse_pixel_is_the_coarse_pixel(tmp_path, ratio, origin) -> None:
    size = 48
    fine = write_raster(tmp_path / "fine.tif", truth(int(size * ratio) + 20, 3).astype("float32"), 1.0)
    low = truth(size, 1, 3).astype("float32")
    coarse = write_raster(tmp_path / "coarse.tif", low, ratio, (EDGE[0] + origin, EDGE[1] - origin))
    sharpen(coarse, fine, tmp_path / "out.tif", radiometry=Radiometry.AREA, register=False)
    found = read_raster(str(tmp_path / "out.tif"))[0].astype(float)
    # By warping: GDAL's average weighs pixels by the area in each coarse one.
    mean = gdal.Warp("", str(tmp_path / "out.tif"), format="MEM", resampleAlg="average", xRes=ratio, yRes=ratio,
                     outputBounds=(EDGE[0] + origin, EDGE[1] - origin - size * ratio, EDGE[0] + origin + size * ratio,
                                   EDGE[1] - origin)).ReadAsArray()  # fmt: skip
    inside = (slice(2, -2), slice(2, -2))
    # GDAL's own weights are exact for whole ratios only.
    tolerance = 1e-3 if ratio == int(ratio) else 0.02
    assert np.abs(mean - low[0])[inside].max() < tolerance * low.mean()
    assert found.std() > low.std()  # and it has been sharpened


def test_whole_numbers_keep_the_mean_within_rounding(tmp_path) -> None:
    fine, coarse, _ = place(tmp_path, 2, 128, "uint16")
    sharpen(coarse, fine, tmp_path / "out.tif", radiometry=Radiometry.AREA)
    found = read_raster(str(tmp_path / "out.tif"))
    assert found.dtype == np.uint16
    assert np.abs(mean_pixels(found.astype(float), 2) - read_raster(coarse)).max() <= 0.5


def test_blocks_and_threads_do_not_show(tmp_path, monkeypatch) -> None:
    fine, coarse, _ = place(tmp_path, 2, 288)
    sharpen(coarse, fine, tmp_path / "large.tif")
    monkeypatch.setattr(band_sharpening, "BLOCK", 256)
    sharpen(coarse, fine, tmp_path / "small.tif")
    large, small = (read_raster(str(tmp_path / f"{name}.tif")) for name in ("large", "small"))
    assert np.abs(large - small).max() < 1e-3 * large.mean()  # float32; a margin that is too small gives tenths
    request = SharpenRequest(coarse=(coarse,), fine=(fine,), output=str(tmp_path / "threads.tif"), threads=3)
    run(request)
    assert np.array_equal(read_raster(str(tmp_path / "threads.tif")), small)


def test_bands_sharpened_one_at_a_time_are_those_sharpened_together(tmp_path, monkeypatch) -> None:
    fine, coarse, _ = place(tmp_path, 2, 160)
    sharpen(coarse, fine, tmp_path / "together.tif")
    parts = []
    compute = band_sharpening.BandSharpener._sharpen_bands

    def counted(self, own, *rest):
        parts.append(len(own.band_gains))
        return compute(self, own, *rest)

    monkeypatch.setattr(band_sharpening.BandSharpener, "_sharpen_bands", counted)
    monkeypatch.setattr(band_sharpening, "_PART_BYTES", 0)
    sharpen(coarse, fine, tmp_path / "alone.tif")
    assert parts == [1, 1]  # two bands in the one block
    together, alone = (read_raster(str(tmp_path / f"{name}.tif")) for name in ("together", "alone"))
    assert np.abs(together - alone).max() < 1e-4 * together.mean()  # float32


def test_blocks_of_hundreds_of_bands_are_smaller() -> None:
    def block(bands: int, ratio: float, dtype: str) -> int:
        axis = SimpleNamespace(ratio=ratio)
        pair = SimpleNamespace(x_axis=axis, y_axis=axis, ms=SimpleNamespace(count=bands))
        return band_sharpening.block_size([pair], np.dtype(dtype))

    assert [block(6, 2, "uint16"), block(6, 6, "float32")] == [512, 1024]
    # 224 bands of 4 bytes on 512² pixels are 224 MiB; on 256², 56 MiB.
    assert [block(224, 2, "float32"), block(224, 20, "float32")] == [256, 256]


def test_missing_pixels_stay_missing_and_touch_no_other(tmp_path) -> None:
    values = truth(192, 5).astype("float32")
    low = mean_pixels(values[3:], 3)
    fine = write_raster(tmp_path / "fine.tif", values[:3], 10.0, nodata=-1)
    coarse = write_raster(tmp_path / "coarse.tif", low, 30.0, nodata=-1)
    sharpen(coarse, fine, tmp_path / "whole.tif")
    low[1, 20:25, 30:40] = -1
    values[0, 100:110, 20:40] = -1
    holed = write_raster(tmp_path / "holed.tif", low, 30.0, nodata=-1)
    fine = write_raster(tmp_path / "holed_fine.tif", values[:3], 10.0, nodata=-1)
    result = sharpen(holed, fine, tmp_path / "out.tif")
    assert result.nodata == -1
    found = read_raster(str(tmp_path / "out.tif"))
    missing = np.zeros(found.shape, bool)
    missing[1, 60:75, 90:120] = True  # of the band alone
    missing[:, 100:110, 20:40] = True  # of a fine band: of all
    assert np.array_equal(found == -1, missing)
    near = np.zeros(found.shape[1:], bool)
    near[40:135, :145] = True
    whole = read_raster(str(tmp_path / "whole.tif"))
    # Far from the holes only the whole scene's regression has changed, a little.
    assert np.abs(found - whole)[:, ~near].max() < 0.02 * whole.mean()
    assert np.abs(found - whole)[~missing].max() < 0.5 * whole.mean()


def test_gaps_all_over_the_fine_raster_change_what_is_measured_little(tmp_path) -> None:
    values = truth(320, 5).astype("float32")
    # The coarse bands are seen with a Gaussian MTF of 0.3 at Nyquist: sigma² = −2 ln(0.3) · (ratio / π)².
    distance = np.arange(320) - (2 * np.arange(160) + 0.5)[:, None]
    seen = 0.3 ** ((np.pi * distance / 2 / (-2 * np.log(0.3))) ** 2)
    seen /= seen.sum(axis=1, keepdims=True)
    coarse = write_raster(tmp_path / "coarse.tif", (seen @ values[3:] @ seen.T).astype("float32"), 20.0)
    values = values[:3]
    fine = write_raster(tmp_path / "fine.tif", values, 10.0)
    whole = sharpen(coarse, fine, tmp_path / "whole.tif", register=False)
    # A column of each eight: with a gain of 0.3, nowhere are 0.999 of the weights on valid pixels, with 0.8 they are.
    values[:, :, ::8] = -1
    striped = write_raster(tmp_path / "striped.tif", values, 10.0, nodata=-1)
    result = sharpen(coarse, striped, tmp_path / "out.tif", register=False)
    for own, other in zip(result.bands, whole.bands):
        assert own.mtf_gain == pytest.approx(other.mtf_gain, abs=0.05)
        assert own.explained == pytest.approx(other.explained, abs=0.02)


def test_the_same_pixels_count_for_every_gain(tmp_path, monkeypatch) -> None:
    fine, coarse, _ = place(tmp_path, 2, 128)
    values = read_raster(fine)
    values[0, 40:60, ::9] = -1
    fine = write_raster(tmp_path / "holed.tif", values, 10.0, nodata=-1)
    counts: dict[float, int] = {}
    compute = guide._scatter

    def counted(pair, samples, usable, gain, *rest, **more):
        counts[gain] = sum(int(mask.sum()) for mask in usable)
        return compute(pair, samples, usable, gain, *rest, **more)

    monkeypatch.setattr(guide, "_scatter", counted)
    sharpen(coarse, fine, tmp_path / "out.tif", register=False)
    assert len(counts) >= len(guide._GAINS)
    assert len(set(counts.values())) == 1
    assert 0 < counts[guide._GAINS[0]] < 64 * 64


def test_fine_files_of_several_crs_are_brought_to_the_first_one(tmp_path) -> None:
    fine, coarse, _ = place(tmp_path, 2, 128)
    values = read_raster(fine)
    first = write_raster(tmp_path / "first.tif", values[:1], 10.0)
    second = write_raster(tmp_path / "second.tif", values[1:], 10.0)
    away = write_raster(tmp_path / "away.tif", values[1:], 10.0, epsg=32632)  # the same numbers, 6° further east
    with pytest.raises(ClippanError, match="do not overlap"):
        sharpen(coarse, (first, away), tmp_path / "no.tif")
    gdal.Warp(str(tmp_path / "moved.tif"), second, dstSRS="EPSG:32632", resampleAlg="cubic", dstNodata=-1)
    sharpen(coarse, (first, second), tmp_path / "one.tif", register=False)
    sharpen(coarse, (first, tmp_path / "moved.tif"), tmp_path / "two.tif", register=False)
    dataset = gdal.Open(str(tmp_path / "two.tif"))
    one, two = (read_raster(str(tmp_path / f"{name}.tif")) for name in ("one", "two"))
    valid = two != dataset.GetRasterBand(1).GetNoDataValue()
    assert "31N" in dataset.GetProjection()
    assert valid.mean() > 0.5
    assert np.corrcoef(one[valid], two[valid])[0, 1] > 0.99


def test_tags_have_the_mtf_gain_of_each_band_as_those_of_pansharpening(tmp_path) -> None:
    fine, coarse, _ = place(tmp_path, 2, 128)
    result = sharpen(coarse, fine, tmp_path / "out.tif")
    assert Mtf.gains_from_tag(result.provenance["CLIPPAN_MTF"]) == tuple(band.mtf_gain for band in result.bands)


def test_mps_which_lacks_float64_is_replaced_by_the_cpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    fine, coarse, _ = place(tmp_path, 2, 96)
    assert sharpen(coarse, fine, tmp_path / "out.tif", device=Device.MPS).device == "cpu"


def test_a_gpu_without_enough_memory_is_one_sentence(tmp_path, monkeypatch) -> None:
    def short(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(band_sharpening.BandSharpener, "_sharpen_bands", short)
    fine, coarse, _ = place(tmp_path, 2, 96)
    with pytest.raises(ClippanError, match="memory is too small; close other programs"):
        sharpen(coarse, fine, tmp_path / "out.tif")


def test_bands_of_two_pixel_sizes_keep_their_order_and_names(tmp_path) -> None:
    values = truth(180, 5)
    fine = write_raster(tmp_path / "fine.tif", values[:3].astype("uint16"), 10.0)
    first = write_raster(tmp_path / "B9.tif", mean_pixels(values[3:4], 6).astype("uint16"), 60.0)
    second = write_raster(tmp_path / "B5.tif", mean_pixels(values[4:], 2).astype("uint16"), 20.0)
    result = sharpen((first, second), fine, tmp_path / "out.tif")
    assert [(band.name, band.ratio) for band in result.bands] == [("B9", (6.0, 6.0)), ("B5", (2.0, 2.0))]
    one = sharpen((first, second), fine, tmp_path / "one.tif", bands=(2,))
    assert [band.name for band in one.bands] == ["B5"]
    found = read_raster(str(tmp_path / "out.tif"))
    assert np.array_equal(read_raster(str(tmp_path / "one.tif"))[0], found[1])
    assert (np.corrcoef(found[0].ravel(), values[3].ravel())[0, 1]) > 0.9
    dataset = gdal.Open(str(tmp_path / "out.tif"))
    assert dataset.GetMetadata()["CLIPPAN_ALGORITHM"] == "sharpen"
    assert dataset.GetRasterBand(1).GetDescription() == "B9"


@pytest.mark.parametrize("moved", [(0.0, 0.0), (1.0, -1.0)])
def test_displaced_bands_are_put_back(tmp_path, moved) -> None:
    values = truth(320, 5)
    low = mean_pixels(values[3:], 2).astype("float32")
    fine = write_raster(tmp_path / "fine.tif", values[:3].astype("float32"), 10.0)
    # The coordinates say that the coarse bands lie further right and up than they do.
    place_of = (EDGE[0] + 10 * moved[0], EDGE[1] - 10 * moved[1])
    coarse = write_raster(tmp_path / "coarse.tif", low, 20.0, place_of)
    result = sharpen(coarse, fine, tmp_path / "out.tif")
    assert result.shifts[0] == pytest.approx((-moved[0], -moved[1]), abs=0.2)  # fine pixels
    if moved != (0.0, 0.0):
        assert sharpen(coarse, fine, tmp_path / "off.tif", register=False).shifts == ((0.0, 0.0),)


def test_one_fine_band_is_pansharpening(tmp_path) -> None:
    _, coarse, wanted = place(tmp_path, 2)
    pan = write_raster(tmp_path / "pan.tif", wanted.mean(axis=0).astype("float32"), 10.0)
    sharpen(coarse, pan, tmp_path / "out.tif")
    run(PansharpenRequest(pan=pan, ms=(coarse,), output=str(tmp_path / "cubic.tif"), method=Method.CUBIC))
    assert (rmse(tmp_path / "out.tif", wanted) < 0.5 * rmse(tmp_path / "cubic.tif", wanted)).all()


# Scenes of many files


def sentinel(folder: Path) -> Path:
    """A crop of the sample scene in the layout of a Sentinel-2 product of level 2."""
    fine, coarse = sample.sentinel_bands()
    home = folder / SAFE / "GRANULE" / "L2A_T32UMC_A035152_20220315T103024" / "IMG_DATA"
    for paths, pixel, names in ((fine, 10, "02 03 04 08"), (coarse, 20, "05 06 07 8A 11 12")):
        (home / f"R{pixel}m").mkdir(parents=True)
        edge = 1800 // pixel
        for path, name in zip(paths, names.split()):
            # From the second column: the first 20 m pixel lies a 10 m pixel further to the left than the first of 10 m.
            values = gdal.Open(str(path)).ReadAsArray(1, 0, edge, edge)
            write_raster(home / f"R{pixel}m" / f"T32UMC_20220315T103021_B{name}_{pixel}m.jp2", values, float(pixel))
            if name == "05":
                sixty = mean_pixels(values[None].astype(float), 3).astype("uint16")
                (home / "R60m").mkdir()
                write_raster(home / "R60m" / "T32UMC_20220315T103021_B01_60m.jp2", sixty, 60.0)
                write_raster(home / "R20m" / "T32UMC_20220315T103021_B01_20m.jp2", values, 20.0)
    (folder / SAFE / "MTD_MSIL2A.xml").write_text(
        "<a><BOA_QUANTIFICATION_VALUE unit='none'>10000</BOA_QUANTIFICATION_VALUE></a>"
    )
    return folder / SAFE


def test_a_sentinel_2_product_brings_coarse_and_fine_bands(tmp_path) -> None:
    safe = sentinel(tmp_path)
    result = sharpen(safe, (), tmp_path / "folder.tif")
    ratios = {band.name: band.ratio[0] for band in result.bands}
    # Band 1, of which level 2 has a resampled version at 20 m, is taken at the 60 m at which it is seen.
    assert ratios == {"B5": 2, "B6": 2, "B7": 2, "B8A": 2, "B11": 2, "B12": 2, "B1": 6}
    assert (result.width, result.height) == (180, 180)
    assert gdal.Open(str(tmp_path / "folder.tif")).GetRasterBand(1).GetScale() == pytest.approx(1e-4)
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        for path in safe.rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    sharpen(tmp_path / "scene.zip", tmp_path / "scene.zip", tmp_path / "zip.tif")
    assert np.array_equal(read_raster(str(tmp_path / "zip.tif")), read_raster(str(tmp_path / "folder.tif")))


def landsat(folder: Path, pan: bool) -> Path:
    name = "LC08_L1TP_195024_20220315_20220322_02_T1" if pan else "LC08_L2SP_195024_20220315_20220322_02_T1"
    values = truth(180, 9)
    folder.mkdir()
    for number in range(1, 8):
        called = f"{name}_B{number}.TIF" if pan else f"{name}_SR_B{number}.TIF"
        write_raster(folder / called, mean_pixels(values[[number]], 2).astype("uint16"), 30.0)
    thermal = np.repeat(np.repeat(mean_pixels(values[[8]], 6), 3, axis=1), 3, axis=2).astype("uint16")
    write_raster(folder / (f"{name}_B10.TIF" if pan else f"{name}_ST_B10.TIF"), thermal, 30.0)
    if pan:
        write_raster(folder / f"{name}_B8.TIF", values[:6].mean(axis=0).astype("uint16"), 15.0)
    return folder


def test_a_landsat_folder_brings_pan_or_thermal_bands(tmp_path) -> None:
    level1 = sharpen(landsat(tmp_path / "level1", True), (), tmp_path / "level1.tif")
    assert [band.name for band in level1.bands] == [*(f"B{number}" for number in range(1, 8)), "B10"]
    assert [round(band.ratio[0]) for band in level1.bands] == [2] * 7 + [6]  # thermal ones are seen at 100 m
    level2 = sharpen(landsat(tmp_path / "level2", False), (), tmp_path / "level2.tif")
    assert [(band.name, round(band.ratio[0])) for band in level2.bands] == [("B10", 3)]
    assert (level2.width, level2.height) == (90, 90)


# What cannot be done


def test_the_thermal_band_of_a_folder_is_not_overwritten(tmp_path) -> None:
    folder = landsat(tmp_path / "level2", False)
    (thermal,) = folder.glob("*_ST_B10.TIF")
    before = thermal.read_bytes()
    with pytest.raises(ClippanError, match="one of the inputs"):
        sharpen(folder, (), thermal)
    assert thermal.read_bytes() == before


def bad(tmp_path: Path, kind: str) -> dict:
    fine, coarse, _ = place(tmp_path, 2, 96)
    values = read_raster(fine)
    if kind == "elsewhere":
        coarse = write_raster(tmp_path / "away.tif", read_raster(coarse), 20.0, (700000.0, 5000000.0))
    if kind == "alike":
        coarse = write_raster(tmp_path / "alike.tif", values, 11.0)
    if kind == "coarsest":
        coarse = write_raster(tmp_path / "coarsest.tif", values[:, :8, :8], 300.0)
    if kind == "swapped":
        fine, coarse = coarse, fine
    if kind == "constant":
        fine = write_raster(tmp_path / "constant.tif", np.full_like(values, 7), 10.0)
    if kind == "saturated":
        fine = write_raster(tmp_path / "saturated.tif", np.minimum(values, np.percentile(values, 30)), 10.0)
    if kind == "few":
        coarse = write_raster(tmp_path / "few.tif", np.full((1, 48, 48), -9999, "float32"), 20.0, nodata=-9999)
    if kind == "gaps":  # every coarse pixel holds one
        values[:, ::2, ::2] = -9999
        fine = write_raster(tmp_path / "gaps.tif", values, 10.0, nodata=-9999)
    if kind == "empty band":
        values[1] = -9999
        fine = write_raster(tmp_path / "empty_fine.tif", values, 10.0, nodata=-9999)
    if kind == "empty coarse band":
        both = np.full((2, 48, 48), -9999, "float32")
        both[0] = read_raster(coarse)[0]
        empty = write_raster(tmp_path / "empty.tif", both, 20.0, nodata=-9999)
        forty = write_raster(tmp_path / "forty.tif", mean_pixels(values[:1], 4).astype("float32"), 40.0)
        return {"coarse": (forty, empty), "fine": (fine,)}
    if kind == "nodata":
        paths = [write_raster(tmp_path / f"whole{index}.tif", read_raster(path).astype("uint8"), 10.0 * (index + 1))
                 for index, path in enumerate((fine, coarse))]  # fmt: skip
        return {"coarse": (paths[1],), "fine": (paths[0],), "nodata": -9999.0}
    if kind == "many":
        fine = write_raster(tmp_path / "many.tif", truth(96, 17).astype("float32"), 10.0)
    if kind == "no fine":
        return {"coarse": (coarse,), "fine": ()}
    if kind == "no band":
        return {"coarse": (coarse,), "fine": (fine,), "bands": (9,)}
    return {"coarse": (coarse,), "fine": (fine,)}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("elsewhere", "The fine raster and the coarse raster do not overlap; check that both show the same place"),
        ("alike", "only 1.1 times as large as those of the fine raster; choose bands that differ by 1.2 times or more"),
        ("coarsest", "The pixels of the coarse raster are 30 times as large"),
        ("swapped", "The coarse raster has finer pixels than the fine raster"),
        ("constant", "The fine raster has the same value everywhere, so it has no detail"),
        ("saturated", "so it is saturated and has no detail there; choose other fine bands"),
        ("few", "Too few coarse pixels"),
        ("gaps", "Too few coarse pixels (0) are valid together with fine ones"),
        ("empty band", "The fine raster has no data here in these bands: 2; choose the other bands (--fine-bands)."),
        ("empty coarse band", "The coarse raster has no data here in these bands: 3, empty 2; choose the other bands"),
        ("nodata", "No pixel can have the nodata value -9999, as the rasters are uint8; choose another."),
        ("many", "The fine raster has 17 bands, which is too many to learn from"),
        ("no fine", "has bands of one pixel size only; choose the coarse and the fine bands separately"),
        ("no band", "Band 9 was asked for but the coarse raster has 2; choose others"),
    ],
)
def test_what_cannot_be_sharpened_is_one_sentence(tmp_path, kind, sentence) -> None:
    request = SharpenRequest(**bad(tmp_path, kind), output=str(tmp_path / "out" / "out.tif"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ClippanError) as error:
        run(request)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_bands_that_the_fine_ones_do_not_explain_stay_as_they_are_and_are_named(tmp_path) -> None:
    fine, _, _ = place(tmp_path, 4)
    rng = np.random.default_rng(0)
    noise = write_raster(tmp_path / "noise.tif", rng.uniform(1, 9, (1, 64, 64)).astype("float32"), 40.0)
    result = sharpen(noise, fine, tmp_path / "out.tif")
    assert any("explain little of the detail of: 1. They" in hint for hint in result.hints)
    assert result.bands[0].explained < 0.1  # three bands and 4096 pixels explain a thousandth by chance

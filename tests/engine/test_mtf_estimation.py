"""The MTF that is measured in images is the one that made them, and doubtful measurements leave the table's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_raster, write_raster
from osgeo import gdal

from clippan.fusion import filters, networks
from clippan.fusion.model import FusionModel
from clippan.fusion.mtf_estimation import Mtf, choose_mtf, shrunk_to_table
from clippan.handlers import run
from clippan.jobs import AssessRequest, Context, Method, PansharpenRequest
from clippan.jobs.options import MtfSource
from clippan.raster.pair import open_pair

SAMPLES = 96
TABLE = (0.3, 0.3, 0.3)


def field(size: int, seed: int) -> np.ndarray:
    """A random field with the spectrum of land."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    values = np.fft.irfft2(spectrum / frequency**1.3, s=(size, size))
    return (values - values.mean()) / values.std()


def low_pass(size: int, ratio: float, kind: str, gain: float) -> np.ndarray:
    """Filter and decimation (samples, size) that begins ``ratio`` · 8 pixels from the left."""
    centres = (np.arange(SAMPLES) + 8.5) * ratio - 0.5
    distance = np.arange(size) - centres[:, None]
    if kind == "box":
        weights = (np.abs(distance) < ratio / 2).astype(float)
    elif kind == "cubic":
        weights = filters.cubic_kernel(distance / ratio)
    else:
        weights = np.exp(-0.5 * (distance / filters.mtf_sigma(gain, ratio)) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture
def pair(tmp_path):
    """Makes a pair: ``pair(gains, kind, ratio, noise, gain_y)``, one band for each MTF gain."""

    def make(gains=TABLE, kind="gaussian", ratio=4, noise=0.02, gain_y=None, common=0.9) -> tuple[Path, Path]:
        size = (SAMPLES + 16) * ratio
        ground, rng = field(size, 1), np.random.default_rng(2)
        bands = []
        for number, gain in enumerate(gains):
            # The last band is the other way round, as near infrared over vegetation.
            seen = (-common if number == 2 else common) * ground + 0.4 * field(size, 10 + number)
            rows, columns = (low_pass(size, ratio, kind, value) for value in (gain_y or gain, gain))
            bands.append(rows @ seen @ columns.T + noise * rng.normal(size=(SAMPLES, SAMPLES)))
        inside = slice(8 * ratio, (8 + SAMPLES) * ratio)
        pan, ms = (1000 + 150 * values for values in (ground[inside, inside], np.stack(bands)))
        return (
            Path(write_raster(tmp_path / "pan.tif", pan.astype(np.float32))),
            Path(write_raster(tmp_path / "ms.tif", ms.astype(np.float32), ratio)),
        )

    return make


def chosen(files: tuple[Path, Path], source: MtfSource, table=TABLE, x: float = 0.0) -> Mtf:
    with open_pair(str(files[0]), [str(files[1])]) as opened:
        return choose_mtf(opened.shifted(x, 0), source, table, 1, Context())


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("gain", [0.1, 0.2, 0.3, 0.45, 0.6])
def test_the_gain_of_a_gaussian_is_found(pair, gain, ratio):
    found = chosen(pair([gain] * 3, ratio=ratio), MtfSource.DATA).gains
    assert found == pytest.approx([gain] * 3, abs=0.04)


def test_bands_may_differ(pair):
    found = chosen(pair([0.2, 0.5, 0.3]), MtfSource.DATA).gains
    assert found == pytest.approx([0.2, 0.5, 0.3], abs=0.06)


def test_unequal_axes_give_the_gain_between_them(pair):
    found = chosen(pair([0.4] * 3, gain_y=0.2), MtfSource.DATA).gains
    assert found == pytest.approx([math.sqrt(0.4 * 0.2)] * 3, abs=0.05)


@pytest.mark.parametrize(("kind", "gain"), [("box", 0.637), ("cubic", 0.47)])
def test_resampled_bands_are_less_blurred_than_the_table_says(pair, kind, gain):
    files = pair(kind=kind)
    assert chosen(files, MtfSource.DATA).gains == pytest.approx([gain] * 3, abs=0.06)
    used = chosen(files, MtfSource.AUTO).gains
    assert all(0.3 + 0.45 * (gain - 0.3) < value <= gain + 0.02 for value in used)


def test_half_a_pixel_of_displacement_changes_little(pair):
    assert chosen(pair(), MtfSource.DATA, x=0.5).gains == pytest.approx(TABLE, abs=0.05)


def test_what_agrees_with_the_table_leaves_it(pair):
    assert chosen(pair(), MtfSource.AUTO).gains == pytest.approx(TABLE, abs=0.005)


def test_more_blur_is_followed_less_than_less_blur():
    errors = np.zeros(1)
    sharper = shrunk_to_table(-4 * np.log([0.6]), errors, [0.3])[0]
    softer = shrunk_to_table(-4 * np.log([0.15]), errors, [0.3])[0]
    assert math.log(sharper / 0.3) > 3 * math.log(0.3 / softer) > 0


def test_doubt_leaves_the_table():
    doubtful = shrunk_to_table(-4 * np.log([0.6]), np.full(1, 2.0), [0.3])[0]
    assert 0.3 < doubtful < 0.4


def test_bands_without_pans_detail_follow_the_others(pair):
    files = pair([0.6] * 3, common=0.0)
    log: list[str] = []
    with open_pair(str(files[0]), [str(files[1])]) as opened:
        found = choose_mtf(opened, MtfSource.DATA, TABLE, 1, Context(log=log.append))
    assert found.gains == TABLE
    assert "too little detail in common" in str(found.hint)


def test_an_impossible_blur_leaves_the_table_and_says_so(pair):
    found = chosen(pair([0.02] * 3, noise=0.0), MtfSource.DATA)
    assert found.gains == TABLE
    assert "which no sensor has" in str(found.hint)


def test_saturated_and_missing_pixels_change_little(pair, tmp_path):
    files = pair([0.45] * 3)
    with open_pair(str(files[0]), [str(files[1])]) as opened:
        ms = opened.read_ms(opened.ms_overlap())[0]
        pan = opened.read_pan(dataclasses.replace(opened.ms_overlap(), width=384, height=384))[0]
    ms, pan = np.minimum(ms, np.percentile(ms, 98)), np.minimum(pan, np.percentile(pan, 97))
    ms[:, 20:40, 30:50] = 0
    cut = (
        Path(write_raster(tmp_path / "pan2.tif", pan)),
        Path(write_raster(tmp_path / "ms2.tif", ms, 4, nodata=0)),
    )
    assert chosen(cut, MtfSource.DATA).gains == pytest.approx([0.45] * 3, abs=0.06)


def test_the_result_and_the_tags_say_what_was_used(pair, tmp_path):
    pan, ms = pair(kind="box")
    output = str(tmp_path / "sharp.tif")
    result = run(
        PansharpenRequest(pan=str(pan), ms=(str(ms),), output=output, method=Method.MTF_GLP_HPM_R, sensor="generic")
    )
    assert result.provenance["CLIPPAN_MTF"] == " ".join(f"{gain:g}" for gain in result.mtf)
    assert min(result.mtf) > 0.5
    assert len(result.mtf_measured) == 3
    report = tmp_path / "report.html"
    assessed = run(AssessRequest(fused=output, pan=str(pan), ms=(str(ms),), report=str(report)))
    assert assessed.fused_with_mtf == result.mtf
    assert f"{result.mtf[0]:g}" in report.read_text(encoding="utf-8")
    table = run(
        PansharpenRequest(
            pan=str(pan),
            ms=(str(ms),),
            output=output,
            method=Method.MTF_GLP_HPM_R,
            sensor="generic",
            mtf=MtfSource.TABLE,
        )
    )
    assert (table.mtf, table.mtf_measured) == (TABLE, ())


def test_methods_without_an_mtf_measure_none(pair, tmp_path):
    pan, ms = pair()
    result = run(
        PansharpenRequest(pan=str(pan), ms=(str(ms),), output=str(tmp_path / "sharp.tif"), method=Method.BROVEY)
    )
    assert result.mtf == ()
    assert "CLIPPAN_MTF" not in result.provenance


@pytest.mark.parametrize("method", [Method.MTF_GLP_HPM_R, Method.CLIPPAN])
def test_bands_do_not_depend_on_which_others_are_chosen(pair, tmp_path, method):
    pan, ms = pair([0.2, 0.5, 0.3], kind="gaussian")
    model = ""
    if method is Method.CLIPPAN:
        torch.manual_seed(0)
        network = networks.build("modulation", 3)
        torch.nn.init.normal_(network.last.weight, std=0.1)
        model = str(tmp_path / "model.safetensors")
        FusionModel(network, "modulation", {}, 0, {}).save(Path(model))

    def fused(bands: tuple[int, ...]) -> np.ndarray:
        output = str(tmp_path / "sharp.tif")
        run(
            PansharpenRequest(
                pan=str(pan), ms=(str(ms),), bands=bands, output=output, method=method, model=model, sensor="generic"
            )
        )
        return read_raster(output)

    everything = fused(())
    assert np.array_equal(fused((3, 1)), everything[[2, 0]])


@pytest.mark.parametrize("other", ["a mask", "elsewhere", "constant", "a few"])
def test_a_band_that_shows_something_else_is_not_measured_along(pair, tmp_path, other):
    pan, ms = pair()
    values = read_raster(str(ms))
    values[:, :, :8] = 0  # missing, without a nodata value
    last = values[:1].copy()
    if other == "a mask":
        last[:] = 200
        last[:, :, :8] = 100
    elif other == "elsewhere":
        last[:, :, 8:] = np.nan
    elif other == "a few":
        last[:, 3:] = np.nan
    else:
        last[:] = 7
    write_raster(tmp_path / "alone.tif", values, 4)
    write_raster(tmp_path / "more.tif", np.concatenate([values, last]), 4)

    def result(name: str):
        return run(
            PansharpenRequest(
                pan=str(pan),
                ms=(str(tmp_path / name),),
                bands=(1, 2, 3),
                output=str(tmp_path / f"sharp_{name}"),
                method=Method.MTF_GLP_HPM_R,
                sensor="generic",
            )
        )

    alone, more = result("alone.tif"), result("more.tif")
    assert (more.mtf, more.mtf_measured, more.hints) == (alone.mtf, alone.mtf_measured, alone.hints)
    assert any("are 0 in all bands" in hint for hint in more.hints)
    assert np.array_equal(read_raster(str(tmp_path / "sharp_more.tif")), read_raster(str(tmp_path / "sharp_alone.tif")))


def test_a_band_that_is_a_mask_unless_it_is_chosen(pair, tmp_path):
    pan, ms = pair((0.3, 0.3, 0.3, 0.3))
    values = np.clip(read_raster(str(ms)), 1, 65535).astype(np.uint16)
    path = write_raster(tmp_path / "rgba.tif", values, 4)
    dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_UPDATE)
    dataset.GetRasterBand(4).SetColorInterpretation(gdal.GCI_AlphaBand)
    dataset = None
    output = str(tmp_path / "sharp.tif")
    for method in (Method.GSA, Method.MTF_GLP_HPM_R):
        request = PansharpenRequest(
            pan=str(pan), ms=(path,), bands=(4, 1, 2), output=output, method=method, sensor="generic"
        )
        run(request)
        assert len(read_raster(output)) == 3


def test_a_constant_band_does_not_keep_others_from_being_measured(pair, tmp_path):
    pan, ms = pair(kind="box")
    values = read_raster(str(ms))
    values[2] = 0
    write_raster(tmp_path / "constant.tif", values, 4)
    found = chosen((pan, tmp_path / "constant.tif"), MtfSource.DATA)
    assert found.gains[:2] == pytest.approx(chosen((pan, ms), MtfSource.DATA).gains[:2], abs=0.03)

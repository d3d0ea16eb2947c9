"""Assess on small rasters: what it reads, what it refuses, and what it reports."""

from __future__ import annotations

import base64
import html
import math
import re
from pathlib import Path

import image_metrics
import numpy as np
import pytest
import torch
from conftest import read_raster, truth, write_raster
from osgeo import gdal

from clippan.core.errors import Cancelled, ClippanError
from clippan.fusion import assessment as module
from clippan.fusion import filters
from clippan.handlers import run
from clippan.jobs import AssessRequest, Context, Method, PansharpenRequest
from clippan.raster.grid import AxisTransform

FULL = ["D_lambda_K", "D_s", "HQNR", "D_lambda", "QNR", "HP_correlation"]
REFERENCE = ["Q2n", "SAM", "ERGAS", "SCC", "PSNR", "SSIM"]


@pytest.fixture
def fused(scene, tmp_path):
    """A scene and the path of its fusion."""
    pair = scene(size=256)
    output = str(tmp_path / "fused.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=output))
    return pair, output


def assess(pair, fused, **options):
    return run(AssessRequest(fused=fused, pan=pair.pan, ms=(pair.ms,), **options))


def test_all_figures(fused):
    pair, output = fused
    result = assess(pair, output, reference=pair.truth)
    assert list(result.full) == FULL
    assert list(result.reference) == REFERENCE
    assert result.pixels == 256 * 256
    assert result.sensor == "generic"
    assert result.report is None
    assert 0.5 < result.full["HQNR"] < 1
    assert result.full["HP_correlation"] > 0.8
    assert result.reference["Q2n"] > 0.8


def test_without_a_reference(fused):
    pair, output = fused
    assert assess(pair, output).reference == {}


def test_sharpening_shows(fused, tmp_path):
    pair, output = fused
    plain = str(tmp_path / "cubic.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=plain, method=Method.CUBIC))
    sharp = assess(pair, output, reference=pair.truth)
    blurred = assess(pair, plain, reference=pair.truth)
    assert sharp.full["HP_correlation"] > blurred.full["HP_correlation"] + 0.3
    for name in ("Q2n", "SCC", "PSNR", "SSIM"):
        assert sharp.reference[name] > blurred.reference[name]
    assert sharp.reference["ERGAS"] < blurred.reference["ERGAS"]
    assert blurred.full["D_lambda_K"] < 0.2


def test_the_truth_is_perfect_against_itself(scene):
    pair = scene()
    result = assess(pair, pair.truth, reference=pair.truth)
    perfect = {"Q2n": 1, "SAM": 0, "ERGAS": 0, "SCC": 1, "PSNR": math.inf, "SSIM": 1}
    assert result.reference == pytest.approx(perfect, abs=1e-6)


def test_figures_are_those_of_whole_arrays(fused):
    """Tiles, margins and positions against the same figures computed at once."""
    pair, output = fused
    result = assess(pair, output, reference=pair.truth)
    image, pan, ms, high = (
        torch.from_numpy(read_raster(path).astype(np.float32)) for path in (output, pair.pan, pair.ms, pair.truth)
    )
    axis = AxisTransform(4.0, 0.0)
    first, number = filters.ms_support(axis, 0, 256)
    low = torch.nn.functional.pad(ms, (-first, first + number - 64, -first, first + number - 64), mode="replicate")
    up = filters.upsampling_matrix(axis, 0, 256)
    upsampled = filters.apply_separable(up, low, up)
    kernel = torch.from_numpy(filters.mtf_kernel(0.3, 4)).float()
    reach = len(kernel) // 2
    filtered = torch.nn.functional.pad(image, (reach,) * 4, mode="replicate")[:, None]
    filtered = torch.nn.functional.conv2d(filtered, kernel.view(1, 1, -1, 1))
    filtered = torch.nn.functional.conv2d(filtered, kernel.view(1, 1, 1, -1))[:, 0]
    start, count = filters.pan_support(axis, 0, 64, 0.15)
    wide = torch.nn.functional.pad(pan, (-start, start + count - 256) * 2, mode="replicate")
    down = filters.downsampling_matrix(axis, 0, 64, 0.15)
    degraded_pan = filters.apply_separable(down, wide, down)
    assert result.full["D_lambda_K"] == pytest.approx(image_metrics.d_lambda_k(filtered, upsampled), abs=1e-5)
    assert result.full["D_s"] == pytest.approx(image_metrics.d_s(image, pan, ms, degraded_pan, 4), abs=1e-5)
    assert result.full["D_lambda"] == pytest.approx(image_metrics.d_lambda(image, ms, 4), abs=1e-5)
    assert result.full["HP_correlation"] == pytest.approx(image_metrics.scc(image, pan), abs=1e-5)
    assert result.reference["Q2n"] == pytest.approx(image_metrics.q2n(image, high), abs=1e-5)
    assert result.reference["SSIM"] == pytest.approx(image_metrics.ssim(image, high, float(high.max())), abs=1e-5)
    assert result.reference["PSNR"] == pytest.approx(image_metrics.psnr(image, high), abs=1e-4)


@pytest.mark.parametrize("tile", [32, 96])
def test_tiles_do_not_change_figures(fused, monkeypatch, tile):
    pair, output = fused
    whole = assess(pair, output, reference=pair.truth)
    monkeypatch.setattr(module, "_TILE", tile)
    tiled = assess(pair, output, reference=pair.truth)
    assert tiled.full == pytest.approx(whole.full, abs=1e-5)
    assert tiled.reference == pytest.approx(whole.reference, rel=1e-5)
    assert tiled.pixels == whole.pixels


def test_invalid_pixels_stay_out(raster):
    """What lies under nodata or NaN changes no figure."""
    high = truth(192, 3).astype(np.float32)
    results = []
    for number, (junk, nodata) in enumerate([(-9999.0, -9999.0), (np.nan, None), (1e6, 1e6)]):
        image, low, pan = high + 5, high.reshape(3, 48, 4, 48, 4).mean((2, 4)), high.mean(axis=0)
        image[:, 40:60, 10:100] = junk
        low[:, :10, 40:] = junk
        pan[150:, 180:] = junk
        reference = high.copy()
        reference[:, 180:, :20] = junk
        paths = [
            raster(f"{name}{number}.tif", values, pixel=pixel, nodata=nodata)
            for name, values, pixel in [("f", image, 1), ("p", pan, 1), ("m", low, 4), ("r", reference, 1)]
        ]
        results.append(run(AssessRequest(fused=paths[0], pan=paths[1], ms=(paths[2],), reference=paths[3])))
    assert results[0].pixels < 192 * 192 - 20 * 90
    for result in results[1:]:
        assert result.pixels == results[0].pixels
        assert result.full == pytest.approx(results[0].full, abs=1e-6)
        assert result.reference == pytest.approx(results[0].reference, rel=1e-6)
    assert results[0].reference["PSNR"] == pytest.approx(20 * math.log10(high.max() / 5), abs=0.5)


def test_alpha_is_no_band_but_a_mask(scene, tmp_path):
    pair = scene(bands=3)
    values = read_raster(pair.truth)
    alpha = np.full((1, 256, 256), 255, values.dtype)
    alpha[:, :, :64] = 0
    path = write_raster(tmp_path / "alpha.tif", np.concatenate([values, alpha]))
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.GetRasterBand(4).SetColorInterpretation(gdal.GCI_AlphaBand)
    dataset = None
    assert assess(pair, path).pixels == 256 * 192


def test_nodata_override(fused):
    pair, output = fused
    dataset = gdal.Open(pair.pan, gdal.GA_Update)
    dataset.WriteRaster(100, 100, 40, 30, np.full((30, 40), 9, "uint16"))
    dataset = None
    assert assess(pair, output).pixels == 256 * 256
    assert assess(pair, output, nodata=9.0).pixels == 256 * 256 - 40 * 30


def test_gaps_count_alike_at_both_scales(scene, tmp_path):
    # A nodata value that only the fused raster declares: what is missing there takes no part in any figure.
    pair = scene(size=512)
    values = read_raster(pair.ms)
    values[:, :40, 20:90] = 0
    declared = write_raster(tmp_path / "declared.tif", values, 4.0, nodata=0)
    silent = write_raster(tmp_path / "silent.tif", values, 4.0)
    out = str(tmp_path / "out.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(declared,), output=out))
    gdal.Translate(str(tmp_path / "bare.tif"), out, noData=0).SetMetadata({})
    one = run(AssessRequest(fused=str(tmp_path / "bare.tif"), pan=pair.pan, ms=(declared,)))
    other = run(AssessRequest(fused=str(tmp_path / "bare.tif"), pan=pair.pan, ms=(silent,)))
    for name in ("D_s", "D_lambda"):
        assert abs(one.full[name] - other.full[name]) < 0.01, name


def test_what_is_left_open_is_taken_from_the_tags(scene, tmp_path):
    pair = scene(size=256)
    values = read_raster(pair.ms)
    values[:, :10] = 7
    ms = write_raster(tmp_path / "gaps.tif", values, 4.0)
    out = str(tmp_path / "out.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(ms,), output=out, sensor="ikonos", bands=(3, 1), nodata=7))
    lines = []
    found = run(AssessRequest(fused=out, pan=pair.pan, ms=(ms,)), Context(log=lines.append))
    wanted = run(AssessRequest(fused=out, pan=pair.pan, ms=(ms,), sensor="ikonos", bands=(3, 1), nodata=7))
    assert found.full == wanted.full
    assert (found.sensor, found.pixels) == ("ikonos", wanted.pixels)
    assert "Settings from the tags of the raster: sensor ikonos, bands (3, 1), nodata 7.0." in lines
    other = run(
        AssessRequest(fused=out, pan=pair.pan, ms=(ms,), sensor="landsat", bands=(1, 3)), Context(log=lines.append)
    )
    assert other.sensor == "landsat"
    assert any("compared with the requested bands (1, 3)" in line for line in lines)


def test_tags_of_others_are_no_matter(fused):
    pair, out = fused
    before = assess(pair, out)
    dataset = gdal.Open(out, gdal.GA_Update)
    dataset.SetMetadataItem("CLIPPAN_PARAMETERS", "{}")
    dataset = None
    assert assess(pair, out).full == before.full


def test_some_bands(fused, tmp_path):
    pair, _ = fused
    output = str(tmp_path / "some.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=output, bands=(3, 1)))
    result = assess(pair, output, bands=(3, 1), reference=pair.truth)  # the truth has all four
    assert result.reference["Q2n"] > 0.8
    wrong = assess(pair, output, bands=(1, 3), reference=pair.truth)
    assert wrong.reference["SAM"] > result.reference["SAM"]


def test_one_band(scene, tmp_path):
    pair = scene(bands=1)
    output = str(tmp_path / "one.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=output))
    result = assess(pair, output, reference=pair.truth, report=str(tmp_path / "r.html"))
    assert result.full["D_lambda"] == 0
    assert all(math.isfinite(value) for value in result.full.values())


def test_single_band_inputs(fused, tmp_path):
    pair, output = fused
    paths = tuple(
        write_raster(tmp_path / f"b{number}.tif", band, pixel=4.0) for number, band in enumerate(read_raster(pair.ms))
    )
    stacked = run(AssessRequest(fused=output, pan=pair.pan, ms=paths))
    assert stacked.full == pytest.approx(assess(pair, output).full)


def test_fused_on_the_whole_pan(raster, tmp_path):
    """Other tools write PAN's whole extent; ours writes the overlap. Both mean the same pixels."""
    high = truth(256, 3).astype(np.uint16)
    pan = raster("pan.tif", high.mean(axis=0).astype(np.uint16))
    low = high.reshape(3, 64, 4, 64, 4).mean((2, 4)).astype(np.uint16)
    # MS leaves out 32 PAN pixels at the left and 16 at the top.
    ms = raster("ms.tif", low[:, 4:, 8:], pixel=4.0, origin=(500032.0, 4999984.0))
    inner = str(tmp_path / "inner.tif")
    run(PansharpenRequest(pan=pan, ms=(ms,), output=inner))
    values = read_raster(inner)
    assert values.shape == (3, 240, 224)
    whole = np.zeros((3, 256, 256), np.uint16)
    whole[:, 16:, 32:] = values
    outer = raster("outer.tif", whole)
    truth_path = raster("truth.tif", high)
    inner_truth = raster("inner_truth.tif", high[:, 16:, 32:], origin=(500032.0, 4999984.0))
    one = run(AssessRequest(fused=inner, pan=pan, ms=(ms,), reference=inner_truth))
    other = run(AssessRequest(fused=outer, pan=pan, ms=(ms,), reference=truth_path))
    assert one.pixels == other.pixels == 240 * 224
    assert one.full == pytest.approx(other.full, abs=1e-6)
    assert one.reference == pytest.approx(other.reference, rel=1e-5)


def test_rasters_without_georeference(scene, tmp_path):
    pair = scene(origin=None, epsg=None)
    output = str(tmp_path / "plain.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=output))
    assert assess(pair, output, reference=pair.truth).pixels == 256 * 256


def test_ratio_that_is_no_integer(raster, tmp_path):
    high = truth(250, 3)
    pan = raster("pan.tif", high.mean(axis=0).astype(np.uint16))
    ms = raster("ms.tif", high.reshape(3, 50, 5, 50, 5).mean((2, 4)).astype(np.uint16), pixel=5.0)
    shifted = raster("ms2.tif", read_raster(ms), pixel=4.9, origin=(500001.3, 4999998.2))
    for path in (ms, shifted):
        output = str(tmp_path / "out.tif")
        run(PansharpenRequest(pan=pan, ms=(path,), output=output))
        values = run(AssessRequest(fused=output, pan=pan, ms=(path,))).full
        assert all(math.isfinite(value) for value in values.values())


# Units


def scaled(path, values, scale=None, offset=None, **options):
    path = write_raster(path, values, **options)
    dataset = gdal.Open(path, gdal.GA_Update)
    for number in range(1, dataset.RasterCount + 1) if scale else ():
        dataset.GetRasterBand(number).SetScale(scale)
        dataset.GetRasterBand(number).SetOffset(offset)
    return path


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        (lambda dn: dn * 1e-4, "(F ≈ M / 10,000), so D_λ,K, D_s, HQNR and QNR"),
        (lambda dn: dn * 16, "(F ≈ 16 × M)"),
        (lambda dn: dn * 2.75e-5 + 0.2, "e-05 × M + 0.2)"),
        (lambda dn: dn - 200, "(F ≈ M − 200)"),
    ],
)
def test_another_unit_is_told(fused, tmp_path, unit, says):
    pair, output = fused
    values = read_raster(output).astype(np.float32)
    other = write_raster(tmp_path / "other.tif", unit(values).astype(np.float32))
    report = tmp_path / "r.html"
    result = assess(pair, other, reference=pair.truth, report=str(report))
    hint, against = result.hints
    assert says in hint
    assert hint.endswith(
        "; convert both to one unit, for instance with the raster calculator of QGIS, and assess again."
    )
    assert "the reference raster R have different units (F ≈ " in against
    assert hint.split(",")[0] in html.unescape(report.read_text(encoding="utf-8"))
    # A reference in the unit of the result, of which only MS is not.
    own = write_raster(tmp_path / "own.tif", unit(read_raster(pair.truth)).astype(np.float32) + 1e-3)
    assert assess(pair, other, reference=own).hints == (hint,)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (2.75e-5, -0.2)])
def test_a_declared_scale_is_the_remedy(fused, tmp_path, scale, offset):
    pair, output = fused
    values = read_raster(output).astype(np.float32)
    reflectance = write_raster(tmp_path / "reflectance.tif", (values * scale + offset).astype(np.float32))
    ms = scaled(tmp_path / "scaled_ms.tif", read_raster(pair.ms), scale, offset, pixel=4.0)
    (hint,) = run(AssessRequest(fused=reflectance, pan=pair.pan, ms=(ms,))).hints
    assert "apply the scale and offset that M declares (gdal_translate -unscale" in hint
    low = write_raster(tmp_path / "low.tif", (read_raster(pair.ms) * scale + offset).astype(np.float32), 4.0)
    sharp = scaled(tmp_path / "scaled.tif", values, scale, offset)
    (hint,) = run(AssessRequest(fused=sharp, pan=pair.pan, ms=(low,))).hints
    assert "apply the scale and offset that F declares" in hint
    assert run(AssessRequest(fused=sharp, pan=pair.pan, ms=(ms,))).hints == ()  # both declare it: the same unit


@pytest.mark.parametrize("method", [method for method in Method if method.value not in ("auto", "neural")])
def test_no_hint_in_one_unit(scene, tmp_path, method):
    pair = scene()
    output = str(tmp_path / "out.tif")
    run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=output, method=method))
    assert assess(pair, output, reference=pair.truth).hints == ()


def test_gain_and_haze_are_no_unit(fused, tmp_path):
    pair, output = fused
    values = read_raster(output).astype(np.float32)
    haze = np.array([250, 150, 80, 10], np.float32)[:, None, None]
    for number, other in enumerate((values * 1.07, values - haze, values * 0, values + 40)):
        path = write_raster(tmp_path / f"{number}.tif", other)
        assert assess(pair, path).hints == ()


# What it refuses


def refuse(match, fused, pan, ms, **options):
    with pytest.raises(ClippanError, match=match) as caught:
        run(AssessRequest(fused=fused, pan=pan, ms=ms, **options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_missing_file(scene):
    pair = scene()
    refuse("The pansharpened raster /no/f.tif does not exist", "/no/f.tif", pair.pan, (pair.ms,))
    refuse("The reference raster /no/r.tif does not exist", pair.truth, pair.pan, (pair.ms,), reference="/no/r.tif")


def test_band_counts_differ(scene, raster):
    pair = scene()
    three = raster("three.tif", read_raster(pair.truth)[:3])
    refuse(r"have different numbers of bands \(3 and 4\)", three, pair.pan, (pair.ms,))
    refuse(r"The bands of the reference raster \(3\) and of the", pair.truth, pair.pan, (pair.ms,), reference=three)


@pytest.mark.parametrize(
    "options",
    [
        {"pixel": 2.0},
        {"origin": (500000.5, 5000000.0)},
        {"epsg": 32632},
        {"origin": None, "epsg": None, "crop": 200},
    ],
)
def test_fused_on_another_grid(scene, raster, options):
    pair = scene()
    crop = options.pop("crop", 256)
    other = raster("other.tif", read_raster(pair.truth)[:, :crop], **options)
    refuse("does not lie on the pixels of the panchromatic raster", other, pair.pan, (pair.ms,))


def test_fused_elsewhere(scene, raster):
    pair = scene()
    other = raster("other.tif", read_raster(pair.truth), origin=(600000.0, 5000000.0))
    refuse("does not overlap the rasters that it was made from", other, pair.pan, (pair.ms,))


def test_reference_on_another_grid(scene, raster):
    pair = scene()
    smaller = raster("smaller.tif", read_raster(pair.truth)[:, :100])
    refuse(
        r"The sizes of the reference raster \(256 × 100 pixels\) and .* \(256 × 256 pixels\)",
        pair.truth,
        pair.pan,
        (pair.ms,),
        reference=smaller,
    )
    moved = raster("moved.tif", read_raster(pair.truth), origin=(500002.0, 5000000.0))
    refuse("does not lie on the grid of", pair.truth, pair.pan, (pair.ms,), reference=moved)


def test_too_small(scene):
    pair = scene(size=28)
    refuse("28 × 28 pixels only; the figures need at least one block", pair.truth, pair.pan, (pair.ms,))


def test_nothing_valid(scene, raster):
    pair = scene()
    empty = raster("empty.tif", np.zeros((4, 256, 256), np.uint16), nodata=0)
    refuse("No pixel is valid in the pansharpened raster", empty, pair.pan, (pair.ms,))
    refuse("No pixel of the reference raster is valid", pair.truth, pair.pan, (pair.ms,), reference=empty)


def test_no_whole_block(scene, raster):
    pair = scene()
    values = read_raster(pair.truth)
    values[:, ::16] = 0
    holed = raster("holed.tif", values, nodata=0)
    refuse("No block of 32 × 32 pixels is completely valid", holed, pair.pan, (pair.ms,))


def test_a_reference_of_zeros(scene, raster):
    pair = scene()
    zeros = raster("zeros.tif", np.zeros((4, 256, 256), np.int16))
    refuse("has no value above zero", pair.truth, pair.pan, (pair.ms,), reference=zeros)


def test_cancel(fused, tmp_path):
    pair, output = fused
    page = tmp_path / "r.html"
    request = AssessRequest(fused=output, pan=pair.pan, ms=(pair.ms,), report=str(page))
    calls = iter(range(100))
    with pytest.raises(Cancelled):
        run(request, Context(cancelled=lambda: next(calls) > 2))
    assert not list(tmp_path.glob("r.html*"))


# The report


def test_report(fused, tmp_path):
    pair, output = fused
    page = tmp_path / "a <b> & é.html"
    result = assess(pair, output, reference=pair.truth, report=str(page))
    assert result.report == str(page)
    text = page.read_text(encoding="utf-8")
    for label in ("HQNR", "High-pass correlation", "Dλ,K (Khan)", "Q2n", "SAM", "ERGAS", "SCC", "PSNR", "SSIM"):
        assert label in text
    assert f"{result.full['HQNR']:.4f}" in text
    pictures = re.findall(r'data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 4
    for number, picture in enumerate(pictures):
        name = f"/vsimem/report{number}.png"
        gdal.FileFromMemBuffer(name, base64.b64decode(picture))
        dataset = gdal.Open(name)
        assert (dataset.RasterXSize, dataset.RasterYSize) == (256, 256)
        assert dataset.RasterCount == (2 if number == 0 else 4)
        assert dataset.GetRasterBand(1).ReadAsArray().std() > 10
        dataset = None
        gdal.Unlink(name)
    assert not list(tmp_path.glob(".clippan-*"))


def test_report_that_cannot_be_written(fused, tmp_path, monkeypatch):
    pair, output = fused

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    page = str(tmp_path / "r.html")
    refuse(
        r"The disk of .* is full; free some space or choose another folder.",
        output,
        pair.pan,
        (pair.ms,),
        report=page,
    )
    assert not list(tmp_path.glob("r.html*"))

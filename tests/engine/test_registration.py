"""Registration: known shifts are found, none is made up, and what is moved lands where it belongs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import read_raster, write_raster
from osgeo import gdal

from clippan.fusion import filters, registration
from clippan.fusion.registration import Shifts, estimate
from clippan.handlers import run
from clippan.jobs import AssessRequest, Context, Method, PansharpenRequest, Registration
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import open_pair

GAIN = 0.3
OWN = ((0.0, 0.0), (0.0, 0.0), (0.6, -0.3), (-0.5, 0.3))  # how far each band lies off MS


@dataclass(frozen=True)
class Shifted:
    """A pair whose MS lies ``(-x, -y)`` PAN pixels beside its coordinates, and the bands at PAN's resolution."""

    pan: str
    ms: str
    truth: np.ndarray


def field(size: int, seed: int) -> np.ndarray:
    """A random field with the spectrum of land, mean 0 and variance 1."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    values = np.fft.irfft2(spectrum / frequency**1.3, s=(size, size))
    return (values - values.mean()) / values.std()


@pytest.fixture
def shifted(tmp_path):
    """Makes pairs: ``shifted(x, y, ratio=4, samples=96, own=(), dtype="float32")``."""

    def make(x, y, ratio=4.0, samples=96, own=(), dtype="float32", name="") -> Shifted:
        margin = int(12 * ratio)
        size = int(samples * ratio)
        ground = field(size + 2 * margin, 1)
        inside = slice(margin, margin + size)
        rng = np.random.default_rng(5)
        bands, truth = [], []
        for band, (own_x, own_y) in enumerate(own or [(0.0, 0.0)] * 4):
            # The last band is the other way round, as near infrared over vegetation.
            seen = (-0.9 if band == 3 else 0.9) * ground + 0.4 * field(len(ground), 10 + band)
            rows, columns = (see(seen.shape[0], ratio, samples, margin + step) for step in (y + own_y, x + own_x))
            bands.append(rows @ seen @ columns.T + 0.02 * rng.normal(size=(samples, samples)))
            truth.append(seen[inside, inside])
        pan, ms, truth = (1000 + 150 * values for values in (ground[inside, inside], np.stack(bands), np.stack(truth)))
        return Shifted(
            write_raster(tmp_path / f"pan{name}.tif", pan.astype(dtype)),
            write_raster(tmp_path / f"ms{name}.tif", ms.astype(dtype), ratio),
            truth,
        )

    return make


def see(size: int, ratio: float, samples: int, offset: float) -> np.ndarray:
    """Filter and decimation (samples, size), the first sample's edge ``offset`` pixels from the left."""
    axis = AxisTransform(ratio, offset)
    start, count = filters.pan_support(axis, 0, samples, GAIN)
    matrix = np.zeros((samples, size))
    matrix[:, start : start + count] = filters.downsampling_matrix(axis, 0, samples, GAIN).numpy()
    return matrix


def measure(pan: str, ms: str, **options) -> Shifts:
    with open_pair(pan, [ms]) as pair:
        return estimate(pair, [GAIN] * pair.ms.count, 2, Context(), **options)


def distance(found, wanted) -> float:
    return max(abs(one - other) for one, other in zip(found, wanted))


@pytest.mark.parametrize(("ratio", "samples"), [(4.0, 96), (2.0, 160), (3.37, 100)])
@pytest.mark.parametrize("shift", [(0.7, -0.4), (-1.23, 2.1)])
def test_a_shift_is_found(shifted, ratio, samples, shift):
    pair = shifted(*shift, ratio, samples)
    found = measure(pair.pan, pair.ms)
    assert distance((found.x, found.y), shift) < 0.1
    assert found.bands == ()
    assert found.correlation_after > found.correlation_before + 0.01
    assert "MS shifted by (" in found.reason


@pytest.mark.parametrize(("ratio", "samples"), [(4.0, 96), (2.0, 160), (3.37, 100)])
def test_bands_that_lie_apart_are_found(shifted, ratio, samples):
    pair = shifted(1.0, 0.3, ratio, samples, OWN)
    found = measure(pair.pan, pair.ms)
    for band, own in zip(found.bands, OWN):
        assert distance(band, (1.0 + own[0], 0.3 + own[1])) < 0.15
    assert "single bands: " in found.reason
    assert " 4 (" in found.reason
    together = measure(pair.pan, pair.ms, per_band=False)
    assert together.bands == ()
    assert together.correlation_after < found.correlation_after


def test_far_shifts_are_found(shifted):
    pair = shifted(5.2, -8.4)
    found = measure(pair.pan, pair.ms)
    assert distance((found.x, found.y), (5.2, -8.4)) < 0.1


def test_beyond_reach_nothing_is_done(shifted):
    pair = shifted(20.0, 0.0)
    found = measure(pair.pan, pair.ms)
    assert (found.x, found.y, found.bands) == (0, 0, ())


def test_what_lies_right_stays(shifted):
    pair = shifted(0.0, 0.0)
    found = measure(pair.pan, pair.ms)
    assert (found.x, found.y, found.bands) == (0, 0, ())
    assert found.correlation_before == pytest.approx(found.correlation_after)
    assert found.reason.startswith("MS lies on PAN and was not shifted")


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_not_moved(tmp_path, seed):
    rng = np.random.default_rng(seed)
    pan = write_raster(tmp_path / "pan.tif", field(400, seed).astype("float32"))
    ms = write_raster(tmp_path / "ms.tif", rng.normal(size=(4, 100, 100)).astype("float32"), 4.0)
    found = measure(pan, ms)
    assert (found.x, found.y, found.bands) == (0, 0, ())


@pytest.mark.parametrize("level", [0, 1e4])
@pytest.mark.parametrize("flat", ["pan", "ms", "both"])
def test_flat_pictures_are_not_moved(shifted, tmp_path, flat, level):
    pair = shifted(1.0, 1.0)
    pan, ms = pair.pan, pair.ms
    if flat != "ms":
        pan = write_raster(tmp_path / "flat_pan.tif", np.full((384, 384), level, "float32"))
    if flat != "pan":
        ms = write_raster(tmp_path / "flat_ms.tif", np.full((2, 96, 96), level, "float32"), 4.0)
    found = measure(pan, ms)
    assert (found.x, found.y, found.bands) == (0, 0, ())
    assert found.reason.startswith("MS was not shifted")


@pytest.mark.parametrize("samples", [1, 3, 9, 20])
def test_tiny_scenes_do_no_harm(shifted, samples):
    pair = shifted(0.0, 0.0, samples=samples)
    found = measure(pair.pan, pair.ms)
    assert (found.x, found.y, found.bands) == (0, 0, ())


def test_a_band_that_shows_something_else_goes_with_the_others(shifted, tmp_path):
    pair = shifted(1.0, -0.6)
    values = read_raster(pair.ms)
    values[2] = np.random.default_rng(0).normal(1000, 100, values[2].shape)
    ms = write_raster(tmp_path / "thermal.tif", values, 4.0)
    found = measure(pair.pan, ms)
    assert found.bands == ()
    assert distance((found.x, found.y), (1.0, -0.6)) < 0.1


def test_holes_and_clouds_do_not_lead_astray(shifted, tmp_path):
    pair = shifted(0.7, -0.4, samples=128)
    pan, ms = read_raster(pair.pan)[0], read_raster(pair.ms)
    ms[:, 20:45, 30:60] = -9999
    ms[1, 90:100] = np.nan
    pan[300:340, :200] = np.nan
    # A cloud that has moved between the two.
    pan[380:480, 100:220] += 3000
    ms[:, 98:123, 25:55] += 3000
    found = measure(
        write_raster(tmp_path / "holed_pan.tif", pan),
        write_raster(tmp_path / "holed_ms.tif", ms, 4.0, nodata=-9999),
    )
    assert distance((found.x, found.y), (0.7, -0.4)) < 0.15


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.2, 0.7)])
def test_the_ground_decides_where_clouds_lie_elsewhere(shifted, tmp_path, shift):
    # Clouds are high: seen from elsewhere, they lie elsewhere. Here they cover the lower half.
    ground, clouds = shifted(*shift, samples=160, name="g"), shifted(2.5, -3.0, samples=160, name="c")
    pan, ms, high = read_raster(ground.pan)[0], read_raster(ground.ms), read_raster(clouds.ms)
    ms[:, 80:] = high[:, 80:]
    # Bright, by and by: an edge of theirs would be a third thing to be seen.
    pan += 2000 / (1 + np.exp(-(np.arange(640) - 340) / 60))[:, None]
    ms += 2000 / (1 + np.exp(-(np.arange(160) * 4 - 340) / 60))[:, None]
    found = measure(
        write_raster(tmp_path / "cloudy_pan.tif", pan),
        write_raster(tmp_path / "cloudy_ms.tif", ms, 4.0),
        per_band=False,
    )
    assert distance((found.x, found.y), shift) < 0.15


def test_black_borders_that_nobody_declared_do_not_hold_the_picture(shifted, tmp_path):
    pair = shifted(1.2, 0.7, samples=128)
    pan, ms = read_raster(pair.pan)[0], read_raster(pair.ms)
    rows, columns = np.mgrid[:128, :128]
    border = rows + columns < 100
    ms[:, border] = 0
    pan[np.kron(border, np.ones((4, 4), bool))] = 0
    found = measure(write_raster(tmp_path / "black_pan.tif", pan), write_raster(tmp_path / "black_ms.tif", ms, 4.0))
    assert distance((found.x, found.y), (1.2, 0.7)) < 0.1


def test_gaps_all_over_leave_enough(shifted, tmp_path):
    pair = shifted(0.7, -0.4, samples=128)
    pan = read_raster(pair.pan)[0]
    pan[np.random.default_rng(0).random(pan.shape) < 0.03] = np.nan
    found = measure(write_raster(tmp_path / "gaps.tif", pan), pair.ms)
    assert distance((found.x, found.y), (0.7, -0.4)) < 0.15


def test_it_does_not_depend_on_threads(shifted):
    pair = shifted(0.7, -0.4, own=OWN)
    with open_pair(pair.pan, [pair.ms]) as opened:
        one, other = (estimate(opened, [GAIN] * 4, threads, Context()) for threads in (1, 3))
    assert one == other


def test_a_large_scene_is_measured_in_part(shifted, monkeypatch):
    pair = shifted(0.7, -0.4, samples=160)
    seen = []
    compare = registration._WindowCorrelator.compare
    monkeypatch.setattr(registration, "_MAX_WINDOWS", 6)
    monkeypatch.setattr(registration._WindowCorrelator, "compare", lambda self, w: seen.append(w) or compare(self, w))
    found = measure(pair.pan, pair.ms)
    assert 6 <= len(seen) < 12
    assert distance((found.x, found.y), (0.7, -0.4)) < 0.2


def test_tags_hold_shifts():
    shifts = Shifts(-1.2, 0.5, ((-1.2, 0.5), (0.25, 0.0)))
    found = Shifts.from_tag(shifts.to_tag(), 2)
    assert (found.x, found.y, found.bands) == (shifts.x, shifts.y, shifts.bands)
    assert found.reason == (
        "MS shifted by (−1.20, 0.50) PAN pixels (x, y), single bands: 2 (0.25, 0.00), "
        "according to the tags of the raster."
    )
    assert Shifts.from_tag(Shifts(1.0, 2.0).to_tag(), 7).bands == ()


@pytest.mark.parametrize(
    "tag",
    [
        *("", "{}", "[1, 2]", "7", '{"x": 1}', '{"x": "a", "y": 0}', '{"x": NaN, "y": 0}'),
        *('{"x": 1, "y": 0, "bands": [3]}', '{"x": 1, "y": 0, "bands": 3}'),
        '{"x": 1, "y": 0, "bands": [[1, 2], [3, 4], [5, 6]]}',
    ],
)
def test_tags_of_others_say_nothing(tag):
    assert Shifts.from_tag(tag, 2) is None


# Pansharpening


def sharpen(pair, output: Path, lines=None, method=Method.MTF_GLP_HPM_R, **options):
    request = PansharpenRequest(
        pan=pair.pan, ms=(pair.ms,), output=str(output), method=method, sensor="generic", **options
    )
    return run(request, Context(log=lines.append if lines is not None else None))


def inner(values: np.ndarray) -> np.ndarray:
    return values[..., 24:-24, 24:-24].astype(float)


def rmse(output: Path, truth: np.ndarray) -> float:
    return float(np.sqrt(((inner(read_raster(str(output))) - inner(truth)) ** 2).mean()))


@pytest.mark.parametrize("method", [Method.MTF_GLP_HPM_R, Method.MTF_GLP_CBD, Method.BT_H, Method.GSA, Method.CUBIC])
def test_a_shifted_scene_comes_out_as_one_that_lies_right(shifted, tmp_path, method):
    right, moved, apart = shifted(0, 0, name="r"), shifted(1.6, -1.1, name="m"), shifted(1.6, -1.1, own=OWN, name="a")
    sharpen(right, tmp_path / "right.tif", method=method)
    lines = []
    result = sharpen(moved, tmp_path / "moved.tif", lines, method=method)
    assert any(line.startswith("Registration: MS shifted by (1.6") for line in lines)
    assert distance(result.shift, (1.6, -1.1)) < 0.1
    assert result.band_shifts == ()
    assert json.loads(result.provenance["CLIPPAN_SHIFT"]) == {"x": result.shift[0], "y": result.shift[1]}
    best = rmse(tmp_path / "right.tif", right.truth)
    assert rmse(tmp_path / "moved.tif", moved.truth) < 1.05 * best
    off = sharpen(moved, tmp_path / "off.tif", method=method, registration=Registration.OFF)
    assert off.shift == (0, 0)
    assert "CLIPPAN_SHIFT" not in off.provenance
    assert rmse(tmp_path / "off.tif", moved.truth) > 1.03 * best
    result = sharpen(apart, tmp_path / "apart.tif", method=method)
    assert len(result.band_shifts) == 4
    each = rmse(tmp_path / "apart.tif", apart.truth)
    together = sharpen(apart, tmp_path / "together.tif", method=method, registration=Registration.GLOBAL)
    assert together.band_shifts == ()
    assert each < 1.08 * best
    assert each < rmse(tmp_path / "together.tif", apart.truth)


def test_the_grid_is_that_of_the_coordinates(shifted, tmp_path):
    pair = shifted(3.4, -5.2)
    results = [
        sharpen(pair, tmp_path / f"{choice.value}.tif", registration=choice)
        for choice in (Registration.AUTO, Registration.OFF)
    ]
    assert {(result.width, result.height) for result in results} == {(384, 384)}
    one, other = (gdal.Open(result.output) for result in results)
    assert one.GetGeoTransform() == other.GetGeoTransform()


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.MTF_GLP_HPM_R, Method.BDSD, Method.BT_H])
@pytest.mark.parametrize("ratio", [4.0, 3.37])
def test_tiles_do_not_show_where_bands_lie_apart(shifted, tmp_path, method, ratio):
    pair = shifted(1.6, -1.1, ratio, 170, OWN)
    values = read_raster(pair.ms)
    values[:, 30:60, 40:70] = np.nan
    values[2, 100:, :20] = np.nan
    ms = write_raster(tmp_path / "holed.tif", values, ratio)
    written = []
    for size in (256, 512, 2048):
        request = PansharpenRequest(
            pan=pair.pan, ms=(ms,), output=str(tmp_path / f"{size}.tif"), method=method, tile_size=size
        )
        assert run(request).band_shifts
        written.append(read_raster(request.output))
    assert np.isnan(written[0]).any()
    for other in written[1:]:
        assert np.array_equal(written[0], other, equal_nan=True)


def test_holes_move_with_their_band(shifted, tmp_path):
    pair = shifted(1.0, 0.0, own=((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (2.0, 0.0)))
    values = read_raster(pair.ms)
    values[:, 40:50, 40:50] = np.nan
    ms = write_raster(tmp_path / "holed.tif", values, 4.0)
    result = run(
        PansharpenRequest(pan=pair.pan, ms=(ms,), output=str(tmp_path / "out.tif"), method=Method.MTF_GLP_HPM_R)
    )
    assert len(result.band_shifts) == 4
    holes = np.isnan(read_raster(result.output))
    for band, (x, _) in enumerate(result.band_shifts):
        columns = np.flatnonzero(holes[band].any(axis=0))
        assert abs(columns[0] - (160 + x)) <= 1
        assert abs(columns[-1] - (199 + x)) <= 1
        assert holes[band].sum() == 40 * 40


# Assessment


def assess(pair, fused: Path, lines=None, **options):
    request = AssessRequest(fused=str(fused), pan=pair.pan, ms=(pair.ms,), sensor="generic", **options)
    return run(request, Context(log=lines.append if lines is not None else None))


@pytest.mark.parametrize("own", [(), OWN])
def test_an_assessment_knows_the_shift_with_and_without_tags(shifted, tmp_path, own):
    pair = shifted(1.6, -1.1, own=own, dtype="uint16")
    result = sharpen(pair, tmp_path / "fused.tif")
    lines = []
    told = assess(pair, tmp_path / "fused.tif", lines)
    assert (told.shift, told.band_shifts) == (result.shift, result.band_shifts)
    assert any(line.endswith("according to the tags of the raster.") for line in lines)
    gdal.Translate(str(tmp_path / "bare.tif"), str(tmp_path / "fused.tif")).SetMetadata({})
    report = str(tmp_path / "report.html")
    found = assess(pair, tmp_path / "bare.tif", lines, report=report)
    assert "correlation" in lines[-1]
    assert found.full == told.full
    assert "multispectral raster assumed to be shifted by (1.6" in Path(report).read_text(encoding="utf-8")
    off = assess(pair, tmp_path / "fused.tif", registration=Registration.OFF)
    assert (off.shift, off.band_shifts) == ((0, 0), ())
    assert found.full["D_lambda_K"] < off.full["D_lambda_K"] - 0.02
    # One that trusts the coordinates is measured in PAN's geometry as well.
    sharpen(pair, tmp_path / "blind.tif", registration=Registration.OFF)
    blind = assess(pair, tmp_path / "blind.tif")
    assert (blind.shift, blind.band_shifts) == (told.shift, told.band_shifts)
    assert blind.full["HQNR"] < told.full["HQNR"]


def test_a_scene_that_lies_right_has_the_figures_of_old(shifted, tmp_path):
    pair = shifted(0, 0)
    sharpen(pair, tmp_path / "fused.tif")
    lines = []
    one = assess(pair, tmp_path / "fused.tif", lines)
    other = assess(pair, tmp_path / "fused.tif", registration=Registration.OFF)
    assert one.full == other.full
    assert all(math.isfinite(value) for value in one.full.values())


def test_against_a_reference_nothing_is_shifted(shifted, tmp_path):
    pair = shifted(1.6, -1.1)
    sharpen(pair, tmp_path / "fused.tif")
    truth = write_raster(tmp_path / "truth.tif", pair.truth.astype("float32"))
    figures = [
        assess(pair, tmp_path / "fused.tif", reference=truth, registration=choice).reference for choice in Registration
    ]
    assert figures[0] == figures[1] == figures[2]

"""Adapt: what it makes of a scene, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import truth, write_raster
from osgeo import gdal

from clippan import cli
from clippan.core.errors import Cancelled, ClippanError
from clippan.fusion import model, networks
from clippan.fusion.model import FusionModel
from clippan.handlers import run
from clippan.jobs import (
    ADAPTATION_FIGURES,
    AdaptFusionRequest,
    AssessRequest,
    Context,
    Method,
    PansharpenRequest,
    Registration,
)
from clippan.jobs.options import MtfSource
from clippan.learn.fusion import adaptation as module
from clippan.learn.fusion import reading, scene_supervisor, training_scene
from clippan.raster.pair import open_pair
from clippan.raster.tiles import Window

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pan"
OPTIONS = {"width": 12, "head": 8, "depth": 2}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path):
    """Makes an untrained model: it gives the classical result."""

    def make(bands=0, **options):
        torch.manual_seed(0)
        path = tmp_path / f"start{bands}.safetensors"
        chosen = {**OPTIONS, **options}
        FusionModel(networks.build("detail", bands or 1, **chosen), "detail", chosen, bands).save(path)
        return str(path)

    return make


@pytest.fixture
def pair(scene):
    """A pair that networks can do better on than the classical method: PAN sees some bands only."""

    def make(size=256, **options):
        made = scene(size=size, **options)
        high = truth(size, options.get("bands", 4))
        pan = (0.2 * high[0] + 0.8 * high[1]).astype(options.get("dtype", "uint16"))
        write_raster(Path(made.pan), pan, 1.0)
        return made

    return make


@pytest.fixture
def request_for(tmp_path, start):
    def make(pair, **options):
        # The scene's MS is a mean of pixels, which is no sensor's MTF: with the sensor's, a network has more to learn.
        values = {"model": start(), "sensor": "generic", "mtf": MtfSource.TABLE, "threads": 1, "steps": 12, **options}
        return AdaptFusionRequest(
            pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "out" / "own.safetensors"), **values
        )

    (tmp_path / "out").mkdir()
    return make


@pytest.fixture
def quick(monkeypatch):
    """Measures often, so that few steps are enough, and takes any gain."""
    monkeypatch.setattr(module, "_VALIDATE_EVERY", 6)
    monkeypatch.setattr(module, "_MIN_GAIN", 1e-6)
    monkeypatch.setattr(module, "_gain", lambda before, after: after["HQNR"] - before["HQNR"])
    monkeypatch.setattr(training_scene, "_PATCH_SIZES", (64,))
    monkeypatch.setattr(module, "_acceptable", lambda before, after: True)


def nothing_left(tmp_path):
    return not list((tmp_path / "out").iterdir())


def test_the_result_is_a_model_for_pansharpen_that_is_better_here(pair, request_for, quick, tmp_path):
    made = pair()
    request = request_for(made)
    lines, percents = [], []
    result = run(request, Context(lambda percent, message: percents.append((percent, message)), lines.append))
    assert list(result.before) == list(result.after) == list(ADAPTATION_FIGURES)
    assert result.improved
    assert result.after["HQNR"] > result.before["HQNR"]
    assert any(line.startswith("HQNR rises by ") and line.endswith("the adapted model is kept.") for line in lines)
    assert (result.bands, result.clip, result.sensor, result.device) == (4, "", "generic", "cpu")
    assert 0 < result.steps <= 12
    assert {"D_lambda_K", "D_s", "detail", "supervised", "quality", "angle"} == set(result.losses)
    numbers = [percent for percent, _ in percents]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 100
    assert any("D_lambda_K" in message and "HQNR" in message for _, message in percents)
    assert any(line.startswith("Start: HQNR") for line in lines)

    adapted = model.load(request.output, CPU)
    assert adapted.bands == 4
    assert adapted.provenance["start"] == model.load(request.model, CPU).sha256
    assert adapted.provenance["after"] == dict(result.after)
    assert "pan.tif" in adapted.title
    with pytest.raises(ClippanError, match=r"MS has 3 bands but the model .* was made for 4"):
        adapted.check_band_count(3)

    # What was measured is what Pansharpen and Assess find.
    found = {}
    for name, path in (("before", request.model), ("after", request.output)):
        fused = str(tmp_path / f"{name}.tif")
        run(
            PansharpenRequest(
                pan=made.pan,
                ms=(made.ms,),
                output=fused,
                method=Method.CLIPPAN,
                model=path,
                sensor="generic",
                mtf=MtfSource.TABLE,
            )
        )
        found[name] = run(AssessRequest(fused=fused, pan=made.pan, ms=(made.ms,))).full
    for name, values in (("before", result.before), ("after", result.after)):
        for figure in ("HQNR", "D_s", "D_lambda_K", "HP_correlation"):
            assert found[name][figure] == pytest.approx(values[figure], abs=0.01), (name, figure)
    assert found["after"]["HQNR"] > found["before"]["HQNR"]


def test_the_same_seed_makes_the_same_model(pair, request_for, quick):
    made = pair(size=192)
    weights, request = [], request_for(made, steps=6, seed=3)
    for _ in range(2):
        run(request)
        weights.append(model.load(request.output, CPU).network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_without_a_gain_the_start_model_is_kept(pair, request_for, monkeypatch):
    monkeypatch.setattr(training_scene, "_PATCH_SIZES", (64,))
    monkeypatch.setattr(module, "_VALIDATE_EVERY", 2)
    monkeypatch.setattr(module, "_acceptable", lambda before, after: False)
    lines = []
    request = request_for(pair(size=192), steps=40)
    result = run(request, Context(log=lines.append))
    assert sum("not kept" in line for line in lines) == module._PATIENCE  # and it stopped early
    assert lines[-1] == "No gain on this scene in 8 steps: the start model is kept."
    assert not result.improved
    assert (result.steps, result.after) == (0, result.before)
    assert Path(request.output).read_bytes() == Path(request.model).read_bytes()
    kept = f"No gain on this scene: the start model is kept, and {request.output} is a copy of it."
    assert kept in [str(line) for line in result.describe()]


def test_a_gain_at_full_resolution_is_not_paid_for_at_reduced_resolution():
    before = {"HQNR": 0.9, "Q2n": 0.9}
    assert module._gain(before, {"HQNR": 0.92, "Q2n": 0.95}) == pytest.approx(0.02)
    assert module._gain(before, {"HQNR": 0.92, "Q2n": 0.897}) == pytest.approx(0.017)
    assert module._gain(before, {"HQNR": 0.902, "Q2n": 0.896}) < 0 < module._MIN_GAIN


def test_what_must_not_get_worse():
    before = {"HQNR": 0.9, "SAM": 2.0, "HP_correlation": 0.95, "Q2n": 0.9}
    assert module._acceptable(before, before)
    for change in ({"SAM": 2.03}, {"HP_correlation": 0.93}, {"Q2n": 0.89}):
        assert not module._acceptable(before, {**before, "HQNR": 0.99, **change})
    assert module._acceptable(before, {**before, "SAM": 1.9, "HP_correlation": 0.945})


@pytest.mark.slow
def test_the_time_budget_holds(pair, request_for, quick, monkeypatch, tmp_path):
    made = pair(size=192)
    started = time.monotonic()
    lines = []
    assert not run(request_for(made, seconds=0.1), Context(log=lines.append)).improved
    assert "The time budget of 0.1 s was spent before the first step; allow more time." in lines
    monkeypatch.setattr(module, "_RESERVED_SECONDS", 0.2)
    result = run(request_for(made, seconds=6, steps=100_000, model=str(tmp_path / "start0.safetensors")))
    assert result.steps > 0
    assert time.monotonic() - started < 20  # with room for a busy machine


def test_a_cancel_leaves_nothing(pair, request_for, quick, tmp_path):
    cancelled = []

    def progress(percent, message):
        if message.startswith("Step 3"):
            cancelled.append(percent)

    with pytest.raises(Cancelled):
        run(request_for(pair(size=192)), Context(progress, cancelled=lambda: bool(cancelled)))
    assert cancelled
    assert nothing_left(tmp_path)


def test_missing_pixels_are_kept_out(pair, request_for, quick):
    made = pair(nodata=0)
    dataset = gdal.Open(made.ms, gdal.GA_Update)
    values = dataset.ReadAsArray()
    values[:, :24, :30] = 0
    values[2, 50, 50] = 0
    dataset.WriteArray(values)
    del dataset
    result = run(request_for(made))
    assert all(np.isfinite(value) for value in (*result.before.values(), *result.after.values()))


def test_too_little_to_learn_from(pair, request_for, tmp_path):
    made = pair(size=128, nodata=0)
    dataset = gdal.Open(made.ms, gdal.GA_Update)
    values = dataset.ReadAsArray()
    values[:, ::4] = 0
    dataset.WriteArray(values)
    del dataset
    with pytest.raises(ClippanError, match=r"too little to learn from; choose a larger area, or pansharpen with"):
        run(request_for(made))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output": "x.tif"}, "does not fit “Adapted model”; let it end in .safetensors."),
        ({"output": "/nowhere/x.safetensors"}, "The output folder /nowhere does not exist"),
        ({"seconds": 0.0}, "“Time budget” is 0;"),
        ({"steps": 0}, "“Steps” is 0;"),
        ({"clip": "nonsense"}, "Unknown model 'nonsense'"),
        ({"sensor": "nonsense"}, "Unknown sensor 'nonsense'"),
        ({"bands": (1, 1)}, "A band is listed twice"),
    ],
)
def test_wrong_values_are_one_sentence(change, words, tmp_path):
    values = {"pan": "p.tif", "ms": ("m.tif",), "output": str(tmp_path / "o.safetensors"), **change}
    with pytest.raises(ClippanError) as caught:
        AdaptFusionRequest(**values).validate()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_for_other_bands_is_refused(pair, request_for, start, tmp_path):
    with pytest.raises(ClippanError, match=r"MS has 4 bands but the model .* was made for 3; choose those bands"):
        run(request_for(pair(size=128), model=start(3)))
    assert nothing_left(tmp_path)


def test_the_start_model_is_no_output(pair, start):
    made, path = pair(size=128), start()
    with pytest.raises(ClippanError, match="is one of the inputs; choose another name"):
        run(AdaptFusionRequest(pan=made.pan, ms=(made.ms,), output=path, model=path))


class Counting:
    """A pair that counts the samples it reads."""

    def __init__(self, pair):
        self._pair, self.read = pair, 0

    def __getattr__(self, name):
        return getattr(self._pair, name)

    def read_ms(self, window):
        self.read += window.width * window.height
        return self._pair.read_ms(window)


def test_of_a_large_scene_few_windows_are_read(tmp_path):
    ms = str(tmp_path / "ms.tif")
    size = 10_000  # a PAN of 40,000²
    dataset = gdal.GetDriverByName("GTiff").Create(ms, size, size, 4, gdal.GDT_UInt16, ["SPARSE_OK=YES", "TILED=YES"])
    dataset.SetGeoTransform((500000, 4, 0, 5000000, 0, -4))
    rng = np.random.default_rng(0)
    for x, y in ((1000, 2000), (7000, 7000), (8000, 1000)):  # land in a sea of nothing
        for band in range(4):
            dataset.GetRasterBand(band + 1).WriteArray(rng.integers(100, 900, (1500, 1500), np.uint16), x, y)
    del dataset
    pan = str(tmp_path / "pan.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(pan, 40_000, 40_000, 1, gdal.GDT_UInt16, ["SPARSE_OK=YES"])
    dataset.SetGeoTransform((500000, 1, 0, 5000000, 0, -1))
    del dataset
    with open_pair(pan, [ms]) as opened:
        pair = Counting(opened)
        windows, whole = reading.informative_windows(pair, 6, 1024, training_scene._MAX_WHOLE_SCENE)
    assert not whole
    assert 1 <= len(windows) <= 6
    assert pair.read <= reading._CANDIDATES_PER_AXIS**2 * 256**2
    for window in windows:
        assert (window.width, window.height) == (256, 256)
        assert any(x - 256 < window.x < x + 1500 and y - 256 < window.y < y + 1500 for x, y in
                   ((1000, 2000), (7000, 7000), (8000, 1000)))  # fmt: skip
    places = {(window.x, window.y) for window in windows}
    assert len(places) == len(windows)


def test_a_large_scene_is_measured_where_it_was_not_learned_from(pair, request_for, quick, monkeypatch):
    monkeypatch.setattr(training_scene, "_MAX_WHOLE_SCENE", 1000)
    monkeypatch.setattr(training_scene, "_WINDOW_SIZE", 128)
    monkeypatch.setattr(reading, "_MIN_WINDOW_SIZE", 32)
    monkeypatch.setattr(training_scene, "_REDUCED_PATCH_SIZES", (32,))
    lines = []
    result = run(request_for(pair(size=512)), Context(log=lines.append))
    assert "Windows of the scene for training: 4; for validation only: 2." in lines
    assert result.megapixels == pytest.approx(6 * 0.128**2, rel=0.01)


def test_a_window_holds_what_the_scene_holds(pair):
    made = pair(size=512)
    with open_pair(made.pan, [made.ms]) as opened:
        moved = opened.shifted(1.25, -0.5)
        part = reading.read_window(moved, Window(20, 30, 40, 50), (0.3,) * 4, 0.15)
        whole = reading.read_pair(moved, (0.3,) * 4, 0.15)
    assert part.ms.shape == (4, 50, 40)
    np.testing.assert_array_equal(part.ms, whole.ms[:, 30:80, 20:60])
    left = round(part.x_axis.ms_to_pan(0) - whole.x_axis.ms_to_pan(20))
    assert part.x_axis.ms_to_pan(0) - whole.x_axis.ms_to_pan(20) == pytest.approx(left)
    top = round(part.y_axis.ms_to_pan(0) - whole.y_axis.ms_to_pan(30))
    height, width = part.pan.shape
    np.testing.assert_array_equal(part.pan, whole.pan[-top : height - top, -left : width - left])
    assert part.pan.shape == pytest.approx((200, 160), abs=1)


def test_bands_that_lie_beside_the_others_are_brought_to_one_grid(pair):
    made = pair(size=256)
    with open_pair(made.pan, [made.ms]) as opened:
        apart = opened.shifted(0, 0, [(0.0, 0.0), (4.0, 0.0), (0.0, 0.0), (0.0, 0.0)])
        part = reading.read_window(apart, Window(8, 8, 32, 32), (0.3,) * 4, 0.15)
        values, _ = opened.read_ms(Window(0, 0, 64, 64))
    np.testing.assert_allclose(part.ms[0], values[0, 8:40, 8:40], rtol=1e-5)
    np.testing.assert_allclose(part.ms[1], values[1, 8:40, 7:39], rtol=1e-5)  # one sample of MS to the right


def test_patches_are_cut_from_the_window_as_it_is(pair):
    made = pair(size=256)
    with open_pair(made.pan, [made.ms]) as opened:
        whole = reading.read_pair(opened, (0.3,) * 4, 0.15)
    source = training_scene.CachedWindow.of(whole, 96)
    patch = source.patch(np.random.default_rng(1), 96)
    assert patch.up.shape == (4, 96, 96)
    # What the patch's own pixels make of PAN is what the window's do.
    low = patch.row_filters[0] @ patch.pan[0] @ patch.column_filters[0].T
    place = np.argwhere(np.isclose(whole.ms[0], patch.ms[0, 0, 0]))
    assert low.shape == patch.ms.shape[1:]
    assert len(place) >= 1
    assert torch.allclose(patch.row_filters.sum(dim=2), torch.ones(()), atol=1e-5)
    assert training_scene.CachedWindow.of(whole, 300) is None


@pytest.mark.slow
def test_clip_supervises(pair, request_for, quick, monkeypatch):
    monkeypatch.setattr(scene_supervisor, "_ADAPTER_STEPS", 1)
    request = request_for(pair(size=128), clip="starter", steps=8)
    result = run(request)
    assert result.clip == "starter"
    assert 0 < result.losses["language"] < 2
    assert model.load(request.output, CPU).provenance["clip"] == "starter"


def test_the_command_prints_a_table(pair, start, quick, tmp_path, capsys):
    made, output = pair(size=192), str(tmp_path / "own.safetensors")
    line = ["adapt", "--pan", made.pan, "--ms", made.ms, "--output", output, "--model", start(), "--mtf", "table"]
    assert cli.main([*line, "--steps", "6", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    rows = out.splitlines()
    assert rows[0].split() == ["Figure", "Before", "After", "Best", "Meaning"]
    assert [row.split()[0] for row in rows[1:8]] == list(ADAPTATION_FIGURES)
    assert "Step 6: HQNR" in err


@pytest.mark.skipif(not PAIRS.is_dir(), reason="the development pairs are not here")
def test_a_real_scene_gets_better(request_for, tmp_path):
    folder = PAIRS / "gaofen2__ucgan_fr_test0"
    request = AdaptFusionRequest(
        pan=str(folder / "pan.tif"),
        ms=(str(folder / "ms.tif"),),
        output=str(tmp_path / "own.safetensors"),
        model=request_for(type("Pair", (), {"pan": "", "ms": ""})).model,
        clip="",
        steps=30,
        threads=1,
        registration=Registration.AUTO,
    )
    result = run(request)
    assert result.after["HQNR"] > result.before["HQNR"] + module._MIN_GAIN
    assert result.after["SAM"] <= 1.01 * result.before["SAM"]

"""Pansharpening by a network: from a model's file to pixels that no tile, thread or missing neighbour changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from conftest import read_raster, truth, write_raster
from osgeo import gdal

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from clippan import cli  # noqa: E402
from clippan.core.errors import ClippanError  # noqa: E402
from clippan.fusion import fuse, model, networks, neural  # noqa: E402
from clippan.fusion.model import FusionModel  # noqa: E402
from clippan.fusion.networks.cells import cell_means, pixel_shuffle  # noqa: E402
from clippan.fusion.registration import Shifts  # noqa: E402
from clippan.fusion.statistics import SceneStatistics  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import AdaptFusionRequest, Context, Device, Method, PansharpenRequest, Registration  # noqa: E402

SMALL = {"width": 8, "head": 8, "depth": 1}


def make(path: Path, restless: bool = True, name: str = "modulation", bands: int = 0, **options: int) -> str:
    """Writes a model: untrained, or with a last layer that shows whatever the network sees."""
    options = options or SMALL
    torch.manual_seed(0)
    network = networks.build(name, bands or 4, **options)
    if restless:
        torch.nn.init.normal_(network.last.weight, std=0.2)
    FusionModel(network, name, options, bands, {"title": "Test"}).save(path)
    return str(path)


def sharpen(pan: str, ms: str, output: Path, trained: str, **options: Any) -> np.ndarray:
    """The pixels of the network's result; MS stays where it is."""
    values: dict[str, Any] = {"registration": Registration.OFF, "device": Device.CPU, "threads": 1, **options}
    run(PansharpenRequest(pan=pan, ms=(ms,), output=str(output), model=trained, **values))
    return read_raster(str(output))


# What comes out


@pytest.mark.parametrize("name", ["modulation", "detail"])
@pytest.mark.parametrize(("ratio", "bands", "sensor"), [(4, 4, "quickbird"), (2, 8, "generic"), (3, 1, "generic")])
def test_an_untrained_network_gives_the_classical_result(scene, tmp_path, monkeypatch, ratio, bands, sensor, name):
    if name == "detail":  # it takes the formula at PAN's scale, where its other inputs are
        monkeypatch.setattr(fuse, "BandwiseMethod", ())
    pair = scene(ratio=ratio, bands=bands, size=240)
    trained = make(tmp_path / "m.safetensors", False, name)
    found = sharpen(pair.pan, pair.ms, tmp_path / "a.tif", trained, sensor=sensor)
    wanted = sharpen(pair.pan, pair.ms, tmp_path / "b.tif", "", sensor=sensor, method=Method.MTF_GLP_HPM_R)
    assert found.shape == (bands, 240, 240)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_bfloat16_changes_less_than_a_hundredth_of_the_contrast(scene, tmp_path, monkeypatch):
    pair = scene(size=512)
    monkeypatch.setattr(neural, "supports_bfloat16", lambda: False)
    exact = sharpen(pair.pan, pair.ms, tmp_path / "exact.tif", "").astype(float)
    monkeypatch.setattr(neural, "supports_bfloat16", lambda: True)
    quick = sharpen(pair.pan, pair.ms, tmp_path / "quick.tif", "").astype(float)
    assert (quick != exact).any()
    assert np.abs(quick - exact).mean() < 0.005 * exact.std()
    assert np.percentile(np.abs(quick - exact), 99) < 0.01 * exact.std()


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_one_model_serves_any_number_of_bands(scene, tmp_path, bands):
    pair = scene(bands=bands, size=128, dtype="float32")
    trained = make(tmp_path / "m.safetensors")
    found = sharpen(pair.pan, pair.ms, tmp_path / "a.tif", trained)
    assert np.isfinite(found).all()
    classical = sharpen(pair.pan, pair.ms, tmp_path / "b.tif", "", method=Method.MTF_GLP_HPM_R)
    assert np.abs(found - classical).mean() > 1  # the network is seen


def test_cells_are_a_shorter_way_to_the_same_result():
    gains, limit, bands, generator = (0.3, 0.25, 0.3), 3.0, 3, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = networks.build("modulation", bands, **SMALL)
    torch.nn.init.normal_(network.last.weight, std=0.5)
    covariance = torch.eye(6, dtype=torch.float64) * 400 + 200
    mean = torch.full((6,), 500.0, dtype=torch.float64)
    statistics = SceneStatistics(bands, 2, mean, covariance, torch.zeros(bands, dtype=torch.float64), 1000, 0.0)
    trained = FusionModel(network, "modulation", SMALL, 0, {})
    fusion = neural.fusion_kind(trained)(statistics, [0, 1, 0], gains, 4.0, trained, None, torch.device("cpu"))
    assert isinstance(fusion, neural.CellwiseFusion)
    ms, pan, pan_lowpass = (torch.randn(count, 48, 64, generator=generator) * 30 + 500 for count in (bands, 1, 2))
    ms[:, :4, :4] = 0  # missing, without a nodata value
    wanted = fusion(ms, pan[0], pan_lowpass)
    features = fusion.features(pan[0], cell_means(ms), cell_means(pan_lowpass))
    classical = fusion.classical(ms, pan[0], pan_lowpass)
    assert (wanted - classical).abs().max() > limit * 24  # some corrections are limited
    found = fusion.correct(classical, ms, pan[0], pan_lowpass, features)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)
    assert not found[:, :4, :4].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_shuffled_as_torch_does(dtype):
    cells = torch.randn(2, 5, 7, 48).to(dtype).permute(0, 3, 1, 2)
    assert torch.equal(pixel_shuffle(cells), torch.nn.functional.pixel_shuffle(cells, 4))


@pytest.mark.parametrize("gain", [0.3, 0.45, 0.55, 0.65, 0.9])
def test_a_network_holds_back_where_bands_are_sharper_than_optics_make_them(gain):
    covariance = torch.full((4, 4), 1.0, dtype=torch.float64) + 0.1 * torch.eye(4, dtype=torch.float64)
    nothing = torch.zeros(4, dtype=torch.float64)
    statistics = SceneStatistics(2, 1, nothing, covariance, nothing[:2], 1000, 0.0)
    weight = neural.network_trust(statistics, [0, 0], [0.3, gain])
    if gain <= 0.45:
        assert weight is None
    else:
        assert weight is not None
        assert weight.flatten().tolist() == pytest.approx([1, max(0.65 - gain, 0) / 0.2], abs=1e-6)


OWN = ((0.4, -0.3), (0.4, -0.3), (1.0, -0.7), (-0.2, 0.1))  # places of four bands


def pair_of(folder: Path, ratio: float, bands: int, holes: bool) -> tuple[str, str]:
    """A pair of 330 × 300 PAN pixels whose grids do not begin together; texture everywhere."""
    rng = np.random.default_rng(1)
    rows, columns = int(300 / ratio) + 3, int(330 / ratio) + 3
    ms = rng.uniform(100, 900, (bands, rows, columns)).astype("float32")
    pan = rng.uniform(100, 900, (300, 330)).astype("float32")
    if holes:
        ms[:, 20:40, 30:50] = np.nan
        ms[bands - 1, 50:, :6] = np.nan
        pan[100:110] = -1
        pan[200:260, 280:] = np.nan
    origin = (500000.0 - 1.3, 5000000.0 + 0.8)
    return write_raster(folder / "pan.tif", pan, nodata=-1), write_raster(folder / "ms.tif", ms, ratio, origin)


@pytest.mark.parametrize(
    ("ratio", "bands", "holes", "own"),
    [(4.0, 4, True, ()), (2.0, 3, False, ()), (3.0, 1, True, ()), (3.37, 5, True, ()), (4.0, 4, True, OWN)],
    ids=["4", "2", "3", "3.37", "bands apart"],
)
@pytest.mark.parametrize("name", ["modulation", "detail"])
def test_tiles_blocks_and_threads_do_not_show(tmp_path, monkeypatch, ratio, bands, holes, own, name):
    pan, ms = pair_of(tmp_path, ratio, bands, holes)
    trained = make(tmp_path / "m.safetensors", name=name)
    if own:
        shifts = Shifts(0.4, -0.3, own)
        monkeypatch.setattr("clippan.fusion.scene.register", lambda pair, *rest: (shifts.apply(pair), shifts))
    whole = sharpen(pan, ms, tmp_path / "whole.tif", trained)  # one block
    monkeypatch.setattr(fuse, "_NETWORK_BLOCK", 64)
    one = sharpen(pan, ms, tmp_path / "one.tif", trained, tile_size=512)
    tiles = sharpen(pan, ms, tmp_path / "tiles.tif", trained, tile_size=256, threads=3)
    assert np.array_equal(one, tiles, equal_nan=True)
    # Blocks of another shape round differently, and that is all: the margin is wide enough.
    np.testing.assert_allclose(one, whole, rtol=1e-4, atol=0.02)
    assert np.isnan(whole).any() == holes
    valid = np.isfinite(whole)
    assert valid.mean() > 0.7
    # Nothing that is missing spreads: the holes are those of interpolation alone.
    cubic = sharpen(pan, ms, tmp_path / "cubic.tif", "", method=Method.CUBIC)
    assert np.array_equal(np.isfinite(cubic), valid)


@pytest.mark.parametrize("which", ["pan", "ms"])
def test_what_stands_for_missing_does_not_count(scene, tmp_path, which):
    pair = scene(size=192, dtype="float32")
    trained = make(tmp_path / "m.safetensors")
    found = []
    for number, missing in enumerate((-9999.0, 1e9)):
        paths = {"pan": pair.pan, "ms": pair.ms}
        values, ratio = read_raster(paths[which]), 4 if which == "ms" else 1
        size = values.shape[-1]
        values[:, size // 4 : size // 2, size // 3 : size // 2] = missing
        paths[which] = write_raster(tmp_path / f"{number}.tif", values, float(ratio), nodata=missing)
        result = sharpen(paths["pan"], paths["ms"], tmp_path / f"out{number}.tif", trained)
        dataset = gdal.Open(str(tmp_path / f"out{number}.tif"))
        nodata = dataset.GetRasterBand(1).GetNoDataValue()
        found.append(np.where(np.isnan(result) | (result == nodata), np.nan, result))
    first, second = found
    assert np.array_equal(first, second, equal_nan=True)
    hole = np.zeros((192, 192), bool)
    hole[48:96, 64:96] = True
    assert np.array_equal(np.isnan(first[0]), hole)
    assert first[~np.isnan(first)].min() > 0
    assert first[~np.isnan(first)].max() < 3000


def test_what_was_not_seen_stays_black_where_no_nodata_value_is_declared(scene, tmp_path):
    pair = scene(size=256)
    ms, pan = read_raster(pair.ms), np.squeeze(read_raster(pair.pan))
    trained = make(tmp_path / "m.safetensors")
    whole = sharpen(pair.pan, pair.ms, tmp_path / "whole.tif", trained)
    ms[:, :, 40:], pan[:, 160:] = 0, 0
    light, bands = write_raster(tmp_path / "p.tif", pan), write_raster(tmp_path / "m.tif", ms, 4.0)
    cut = sharpen(light, bands, tmp_path / "cut.tif", trained)
    assert (cut[:, :, 180:] == 0).all()
    # And the border does not enter the scene's statistics: what is far from it hardly changes.
    change = np.abs(cut[:, :, :100].astype(float) - whole[:, :, :100]).mean()
    assert change < 0.1 * whole[:, :, :100].std()


def test_neighbours_of_a_hole_see_no_edge(scene, tmp_path):
    pair = scene(size=192, dtype="float32")
    trained = make(tmp_path / "m.safetensors")
    # Far from zero, which stands for what is missing on the way.
    ms = write_raster(tmp_path / "bright.tif", read_raster(pair.ms) + 20000, 4.0)
    values = read_raster(pair.pan) + 20000
    pan = write_raster(tmp_path / "whole.tif", values)
    values[:, 60:100, 60:100] = -1
    holed = write_raster(tmp_path / "holed.tif", values, nodata=-1)
    ring = np.zeros((192, 192), bool)
    ring[56:104, 56:104] = True
    ring[60:100, 60:100] = False
    whole, found = (sharpen(path, ms, tmp_path / "o.tif", trained)[:, ring] for path in (pan, holed))
    cubic = sharpen(pan, ms, tmp_path / "c.tif", "", method=Method.CUBIC)[:, ring]
    assert np.abs(found - whole).mean() < 0.5 * np.abs(whole - cubic).mean()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", ["modulation", "detail"])
def test_a_result_depends_on_nothing_beyond_the_margin(name, depth):
    torch.manual_seed(0)
    network = networks.build(name, 4, width=8, head=8, depth=depth).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    margin, start, end = network.margin, 48, 80
    assert margin % 4 == 0
    given = [torch.randn(1, bands, 128, 128, dtype=torch.float64) for bands in (3, 1, 3, 3)]

    def core(values: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return network(*values)[..., start:end, start:end]

    def beyond(far: int) -> list[torch.Tensor]:
        """Other values everywhere but in the core and ``far`` pixels around it."""
        inside = slice(start - far, end + far)
        changed = [torch.randn_like(value) for value in given]
        for new, old in zip(changed, given):
            new[..., inside, inside] = old[..., inside, inside]
        return changed

    before = core(given)
    assert torch.allclose(core(beyond(margin)), before, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(core(beyond(margin - 4)), before, rtol=1e-6, atol=1e-6)  # and it is no wider than needed
    cut = slice(start - margin, end + margin)
    alone = network(*(value[..., cut, cut] for value in given))[..., margin:-margin, margin:-margin]
    assert torch.allclose(alone, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pnn", {"width": 8}),
        pytest.param(
            "lformer", {"width": 8, "high_width": 8, "depth": 2, "heads": 2}, marks=pytest.mark.slow
        ),  # windows of 8 pixels have to lie alike in all blocks
    ],
)
def test_a_network_for_one_number_of_bands_sharpens_them(scene, tmp_path, monkeypatch, name, options):
    pair = scene(size=160, dtype="float32")
    torch.manual_seed(0)
    FusionModel(networks.build(name, 4, **options), name, options, 4).save(tmp_path / "m.safetensors")
    trained = str(tmp_path / "m.safetensors")
    whole = sharpen(pair.pan, pair.ms, tmp_path / "whole.tif", trained)
    monkeypatch.setattr(fuse, "_NETWORK_BLOCK", 64)
    np.testing.assert_allclose(sharpen(pair.pan, pair.ms, tmp_path / "b.tif", trained), whole, rtol=1e-4, atol=0.02)
    cubic = sharpen(pair.pan, pair.ms, tmp_path / "cubic.tif", "", method=Method.CUBIC)
    assert 0.01 < np.abs(whole - cubic).mean() < 100  # a fresh one starts close to it


def shipped_and_classical(pan: str, ms: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the shipped model makes of a pair, and what comes without a network."""
    return (
        sharpen(pan, ms, folder / "a.tif", "").astype(float),
        sharpen(pan, ms, folder / "b.tif", "", method=Method.MTF_GLP_HPM_R).astype(float),
    )


def test_a_hot_pixel_stays_what_it_is(scene, tmp_path):
    pair = scene(size=192, dtype="float32")
    values = read_raster(pair.pan)
    values[:, 96, 96] = 65535
    hot = write_raster(tmp_path / "hot.tif", values)
    found, classical = shipped_and_classical(hot, pair.ms, tmp_path)
    added = np.abs(classical - sharpen(hot, pair.ms, tmp_path / "c.tif", "", method=Method.CUBIC))
    std = read_raster(pair.ms).std(axis=(1, 2))[:, None, None]
    assert (np.abs(found - classical) <= added + 3.3 * std).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_where_no_band_looks_like_pan_a_network_adds_nothing(scene, tmp_path, dtype):
    pair = scene(size=192, dtype=dtype)
    noise = np.random.default_rng(0).normal(500, 100, (192, 192)).astype(dtype)
    found, classical = shipped_and_classical(write_raster(tmp_path / "noise.tif", noise), pair.ms, tmp_path)
    assert np.abs(found - classical).max() <= 1


def test_a_band_against_pan_gets_no_overshoot(scene, tmp_path):
    pair = scene(size=192, dtype="float32")
    values = read_raster(pair.ms)
    values[2] = 2000 - values[2]
    found, classical = shipped_and_classical(pair.pan, write_raster(tmp_path / "m.tif", values, 4.0), tmp_path)
    assert np.abs(found[2] - classical[2]).mean() < 0.2 * values[2].std()


@pytest.mark.parametrize("value", [0.0, 0.3, 1234.567])
def test_a_band_of_one_value_keeps_it_and_spoils_no_other(scene, tmp_path, value):
    pair = scene(size=192, dtype="float32")
    values = read_raster(pair.ms)
    values[1] = value
    found, classical = shipped_and_classical(pair.pan, write_raster(tmp_path / "m.tif", values, 4.0), tmp_path)
    np.testing.assert_allclose(found[1], value, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - classical[0]).mean() < 0.5 * values[0].std()


# Files


def test_a_model_is_not_overwritten_by_what_it_makes(scene, tmp_path):
    pair = scene(size=64)
    trained = make(tmp_path / "m.safetensors")
    with pytest.raises(ClippanError, match="is one of the inputs; choose another name"):
        PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=trained, model=trained).validate()
    with pytest.raises(ClippanError, match="would be a GeoTIFF"):
        PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(model.shipped())).validate()
    with pytest.raises(ClippanError, match="is one of the inputs; choose another name"):
        AdaptFusionRequest(pan=pair.pan, ms=(pair.ms,), output=str(model.shipped())).validate()


def test_a_file_holds_the_model(tmp_path):
    torch.manual_seed(0)
    network = networks.build("detail", 4, **SMALL)
    torch.nn.init.normal_(network.last.weight)
    about = {"title": "Мой – 影像", "steps": 5, "bands": [1, 2]}
    FusionModel(network, "detail", SMALL, 4, about).save(tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["m.safetensors"]
    found = model.load(str(tmp_path / "m.safetensors"), torch.device("cpu"))
    assert (found.architecture, found.options, found.bands, found.provenance) == ("detail", SMALL, 4, about)
    assert found.sha256 == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert found.title == f"Мой – 影像 ({tmp_path / 'm.safetensors'})"
    assert not found.network.training
    loaded = found.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value.half().float()), name
    # What is read and written again has the same bytes, whatever came in between.
    FusionModel(found.network, "detail", SMALL, 4, about).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert load_file(str(tmp_path / "m.safetensors")).keys() == loaded.keys()


def test_a_model_s_metadata_has_one_order(tmp_path):
    # The library's own is another in each process.
    make(tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    places = [content.index(f'"{name}":"'.encode()) for name in ("about", "bands", "kind", "network", "options")]
    assert places == sorted(places)
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_a_model_that_cannot_be_written_is_told(tmp_path):
    network = FusionModel(networks.build("detail", 4, **SMALL), "detail", SMALL)
    with pytest.raises(ClippanError, match=r"could not be written .*; choose another folder"):
        network.save(tmp_path / "none" / "m.safetensors")
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(ClippanError, match="could not be put in place"):
        network.save(tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["m.safetensors"]


def spoil(path: Path, how: str) -> None:
    """Makes a model's file one that cannot be used."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-100])
    elif how == "text":
        path.write_text("weights", encoding="utf-8")
    elif how == "kind":
        save_file({"a": torch.zeros(1)}, str(path), {"kind": "something else"})
    elif how == "bare":
        save_file({"a": torch.zeros(1)}, str(path))
    elif how == "weights":
        path.write_bytes(content.replace(b'\\"width\\": 8', b'\\"width\\": 9'))
    elif how == "options":
        path.write_bytes(content.replace(b'{\\"width\\": 8', b'[\\"width\\": 8'))
    elif how == "infinite":
        network = networks.build("detail", 4, **SMALL)
        torch.nn.init.constant_(network.last.bias, torch.inf)
        FusionModel(network, "detail", SMALL).save(path)
    elif how == "network":
        path.write_bytes(content.replace(b'"network":"modulation"', b'"network":"modulator_"'))
    assert not path.exists() or path.read_bytes() != content


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "cannot be read"),
        ("cut", "cannot be read"),
        ("text", "cannot be read"),
        ("kind", "is not a fusion model; choose"),
        ("bare", "is not a fusion model; choose"),
        ("weights", "are not those of the network modulation"),
        ("network", "There is no fusion network 'modulator_'"),
        ("options", "is damaged"),
        ("infinite", "are not finite"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(scene, tmp_path, how, told):
    pair = scene(size=64)
    trained = make(tmp_path / "m.safetensors")
    spoil(Path(trained), how)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ClippanError) as caught:
        sharpen(pair.pan, pair.ms, tmp_path / "out.tif", trained)
    assert told in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_other_bands_than_a_model_s_are_refused(scene, tmp_path):
    pair = scene(size=64, bands=3)
    trained = make(tmp_path / "m.safetensors", bands=4)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ClippanError, match=r"MS has 3 bands but the model .* was made for 4; choose those bands"):
        sharpen(pair.pan, pair.ms, tmp_path / "out.tif", trained)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_model_with_another_method_is_refused(tmp_path, capsys):
    request = PansharpenRequest(
        pan="p.tif", ms=("m.tif",), output=str(tmp_path / "o.tif"), method=Method.GSA, model="m.safetensors"
    )
    sentence = "A model is for the method clippan, not for gsa; leave one of them out."
    with pytest.raises(ClippanError) as caught:
        request.validate()
    assert str(caught.value) == sentence
    line = f"pansharpen --pan p.tif --ms m.tif --output {tmp_path}/o.tif --method gsa --model m.safetensors"
    assert cli.main(line.split()) == 2
    assert capsys.readouterr().err.strip() == sentence
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("title", ["Test", None])
def test_the_result_says_which_model_made_it(scene, tmp_path, title: Optional[str]):
    pair = scene(size=64)
    path = tmp_path / "m.safetensors"
    FusionModel(networks.build("detail", 4, **SMALL), "detail", SMALL, 0, {"title": title} if title else {}).save(path)
    lines: list[str] = []
    request = PansharpenRequest(
        pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "out.tif"), model=str(path), device=Device.CPU
    )
    result = run(request, Context(log=lines.append))
    tags = gdal.Open(str(tmp_path / "out.tif")).GetMetadata()
    wanted = f"{title or 'detail'} ({path})"
    assert tags["CLIPPAN_METHOD"] == result.method == "clippan"
    assert tags["CLIPPAN_MODEL"] == result.provenance["CLIPPAN_MODEL"] == wanted
    assert tags["CLIPPAN_MODEL_SHA256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"Model: {wanted}." in lines
    plain = run(PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "gsa.tif"), method=Method.GSA))
    assert "CLIPPAN_MODEL" not in plain.provenance


def test_the_same_bytes_each_time(scene, tmp_path, monkeypatch):
    pair = scene(size=200)
    trained = make(tmp_path / "m.safetensors")
    monkeypatch.setattr(fuse, "_NETWORK_BLOCK", 64)
    written = []
    for _ in range(2):
        sharpen(pair.pan, pair.ms, tmp_path / "out.tif", trained, threads=3)
        written.append((tmp_path / "out.tif").read_bytes())
    assert written[0] == written[1]


def test_values_stay_those_of_the_type(tmp_path):
    # However wrong a network is, bytes do not turn over.
    high = truth(128, 2) / 6
    write_raster(tmp_path / "ms.tif", high.reshape(2, 32, 4, 32, 4).mean((2, 4)).astype("uint8"), 4.0)
    write_raster(tmp_path / "pan.tif", high.mean(axis=0).astype("uint8"))
    torch.manual_seed(0)
    network = networks.build("detail", 4, **SMALL)
    torch.nn.init.constant_(network.last.bias[32:], 3.0)  # standard deviations on top of everything
    FusionModel(network, "detail", SMALL).save(tmp_path / "m.safetensors")
    found = sharpen(
        str(tmp_path / "pan.tif"), str(tmp_path / "ms.tif"), tmp_path / "o.tif", str(tmp_path / "m.safetensors")
    )
    low = read_raster(str(tmp_path / "ms.tif"))
    bright = low >= np.percentile(low, 99)
    assert np.kron(bright, np.ones((1, 4, 4), bool)).shape == found.shape
    assert found[np.kron(bright, np.ones((1, 4, 4), bool))].min() > low.mean()
    assert found.max() == 255

"""The training of fusion networks: recipes, sources, patches, batches, and runs that can be stopped and resumed."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import os
import re
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from conftest import read_raster, truth, write_raster
from processes import in_two

small_clip = pytest.importorskip("small_clip")
torch = pytest.importorskip("torch")
pytest.importorskip("yaml")

from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from clippan import resources  # noqa: E402
from clippan.catalogue.models import MODELS  # noqa: E402
from clippan.catalogue.recipes import RECIPES, find_recipe  # noqa: E402
from clippan.core.errors import Cancelled, ClippanError  # noqa: E402
from clippan.fusion import filters, model, networks  # noqa: E402
from clippan.fusion.methods import MtfGlp  # noqa: E402
from clippan.fusion.statistics import SceneStatistics  # noqa: E402
from clippan.handlers import run, train_fusion  # noqa: E402
from clippan.jobs import Context, Device, Method, PansharpenRequest, Registration, TrainFusionRequest  # noqa: E402
from clippan.learn.fusion import reading  # noqa: E402
from clippan.learn.fusion import training as train  # noqa: E402
from clippan.learn.fusion.batch import PatchBatch  # noqa: E402
from clippan.learn.fusion.degradation import Blur, through_jpeg  # noqa: E402
from clippan.learn.fusion.objective import LossWeights, Objective  # noqa: E402
from clippan.learn.fusion.patches import BandMixture, BandMoments, ReferenceScene, ScenePair, collate  # noqa: E402
from clippan.learn.fusion.recipe import AdapterTraining, Augmentation, PairSource, PictureSource, Recipe, read_recipe  # noqa: E402
from clippan.learn.fusion.sampler import BatchSampler  # noqa: E402
from clippan.learn.fusion.stand_in import bdsd_fused, fit_bdsd  # noqa: E402
from clippan.learn.loop import CURVES  # noqa: E402
from clippan.raster.grid import AxisTransform  # noqa: E402

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"

# As small as its parts allow.
TINY = """
network: detail
options: {width: 8, head: 8, depth: 1}
pairs: [{folder: pan}]
steps: 10
warmup: 2
batch: 2
size: 64
scene_batch: 1
scene_size: 64
truth: {supervised: 1}
scene: {khan: 1, detail: 0.5}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: three pairs of two sensors, one that is reduced already, and a zip of pictures."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("quickbird__a", "quickbird__b", "landsat__c", "ikonos__reduced")):
        folder = root / "pan" / name
        folder.mkdir(parents=True)
        high = truth(192, 4, seed)
        low = high.reshape(4, 48, 4, 48, 4).mean((2, 4))
        write_raster(folder / "pan.tif", high.mean(axis=0).astype("uint16"), 1.0)
        write_raster(folder / "ms.tif", low.astype("uint16"), 4.0)
    (root / "pan" / "ikonos__reduced" / "gt.tif").touch()
    with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
        for seed in range(3):
            picture, file = (truth(160, 3, seed) / 8).astype("uint8"), io.BytesIO()
            Image.fromarray(picture.transpose(1, 2, 0)).save(file, "TIFF")
            archive.writestr(f"some/{seed}.tif", file.getvalue())
        archive.writestr("readme.txt", "no picture")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Writes a recipe: ``recipe(text)``; gives its path."""

    def make(text: str = TINY, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return make


def learn(data: Path, folder: Path, recipe: str, context: Optional[Context] = None, **options: Any) -> Any:
    request = TrainFusionRequest(data=str(data), output=str(folder), recipe=recipe, device=Device.CPU, **options)
    return run(request, context or Context())


def curves(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names and rows of a run's curves."""
    with (folder / CURVES).open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return head, np.array(rows, float)


# Recipes


def test_what_a_recipe_leaves_out_has_its_default(recipe):
    assert read_recipe(Path(recipe("truth: {supervised: 1}"))) == Recipe(truth=LossWeights(supervised=1.0))


def test_every_part_of_a_recipe_is_read(recipe):
    found = read_recipe(
        Path(
            recipe(
                """
                network: pnn
                options: {width: 12}
                bands: 8
                pairs: [{folder: one}, {folder: two, without: [a__b]}]
                pictures:
                  - {path: p.zip, factor: 3, limit: 5, share: 2}
                  - {path: s2, bands: [B02.tif, B03.tif]}
                scene: {spectral: 1, language: 0.01}
                augment: {ratios: [2, 2.5], bands: [3], mixed: 0}
                language: {clip: starter, protocol: khan, steps: 3}
                precision: bfloat16
                without: [ikonos]
                """
            )
        )
    )
    assert found == Recipe(
        network="pnn",
        options={"width": 12},
        bands=8,
        pairs=(PairSource("one"), PairSource("two", ("a__b",))),
        pictures=(PictureSource("p.zip", (), 3, 5, 2.0), PictureSource("s2", ("B02.tif", "B03.tif"))),
        scene=LossWeights(spectral=1.0, language=0.01),
        augment=Augmentation(ratios=(2.0, 2.5), bands=(3,), mixed=0.0),
        language=AdapterTraining(protocol="khan", steps=3),
        precision="bfloat16",
        without=("ikonos",),
    )


def asked(**options: Any) -> TrainFusionRequest:
    return TrainFusionRequest(data="d", output="o", **options)


def test_a_request_overrides_what_the_recipe_says():
    kept = Recipe(steps=7, seed=3, without=("a",), options={"width": 8}, start="shipped")
    changed = functools.partial(dataclasses.replace, kept)
    assert kept.overridden(asked()) == kept
    few = changed(steps=5, seed=0, without=("a", "b"), language=AdapterTraining(steps=5))
    assert kept.overridden(asked(steps=5, seed=0, without=("b",))) == few
    assert kept.overridden(asked(steps=5000)).language.steps == AdapterTraining.steps  # no more than the recipe has
    assert kept.overridden(asked(model="m")) == changed(start="m")
    assert kept.overridden(asked(network="pnn")) == changed(network="pnn", options={}, start="")
    assert kept.overridden(asked(clip="c", adapters="a")) == changed(language=AdapterTraining(clip="c", adapters="a"))
    alone = Recipe(trains="adapters")
    assert alone.overridden(asked(steps=5000)).language.steps == 5000


def test_a_start_that_brings_a_network_leaves_no_choice_of_one():
    with pytest.raises(ClippanError, match="“Start from fusion model” brings a network along; leave out “Network”"):
        asked(model="m.safetensors", network="pnn").check()


def test_the_recipes_that_ship_are_known_by_name():
    assert list(RECIPES) == ["default", "paper", "stage1", "stage2"]
    assert find_recipe("stage1") == resources() / "recipes" / "stage1.yaml"
    assert find_recipe(str(DOCUMENT)) == DOCUMENT
    with pytest.raises(ClippanError, match=r"no recipe stage3; choose one of default, paper, .* or a YAML file"):
        find_recipe("stage3")


def test_the_recipe_of_the_shipped_model_is_one_that_can_be_built():
    found = read_recipe(find_recipe("default"))
    assert found.truth.used
    assert found.scene.used
    assert found.pairs
    assert networks.parameter_count(networks.build(found.network, found.bands, **found.options)) < 100_000


def test_the_paper_s_recipe_has_the_paper_s_parts():
    found = read_recipe(find_recipe("paper"))
    assert (found.language.clip, MODELS[found.language.clip].architecture) == ("openai-b32", "ViT-B-32-quickgelu")
    assert (found.language.stand_in, found.phi, found.language.rate, found.steps >= 1000) == (
        "bdsd",
        "learned",
        1e-4,
        True,
    )
    assert found.scene.used == dict.fromkeys(("spectral", "spatial", "qnr", "pseudo", "language"), 1.0)
    assert networks.parameter_count(networks.build(found.network, found.bands, **found.options)) == 2_341_057


def test_the_document_shows_every_entry_and_recipes_that_can_be_read(recipe):
    document = DOCUMENT.read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in document.splitlines() if line.startswith("| `")]
    shown = {name: default for names, default in reversed(rows) for name in re.findall(r"`(\w+)`", names)}
    for kind in (Recipe, PairSource, PictureSource, Augmentation, AdapterTraining, LossWeights):
        assert {field.name for field in dataclasses.fields(kind)} <= set(shown), kind
    recipes = [block for block in re.findall(r"(?:^    .*\n)+", document, re.MULTILINE) if "network:" in block]
    (full,) = (read_recipe(Path(recipe(textwrap.dedent(block)))) for block in recipes)
    assert (full.network, full.truth.quality, full.augment.ratios) == ("modulation", 0.5, (4, 4, 2))
    for name in ("steps", "rate", "warmup", "average", "seed", "simulated", "gain", "shift", "haze", "limit", "share"):
        kind = next(kind for kind in (Recipe, Augmentation, PictureSource) if hasattr(kind, name))
        assert float(shown[name]) == getattr(kind, name), name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("truth: {supervised: 1}\nstep: 5", "Unknown parameter step for Recipe; known are trains,"),
        ("truth: {supervised: 1, beauty: 1}", "Unknown parameter beauty for LossWeights"),
        ("truth: {supervised: 1}\naugment: {rain: 1}", "Unknown parameter rain for Augmentation"),
        ("truth: {supervised: 1}\npairs: [{without: [a]}]", "Missing parameter folder for PairSource"),
        ("truth: {supervised: 1}\nsteps: many", "Parameter steps should be int, not 'many'"),
        ("truth: {supervised: 1}\nprecision: half", "cannot have half as precision; write one of float32, bfloat16."),
        ("truth: {supervised: 1}\nsteps: 0", "at least one step"),
        ("truth: {supervised: 1}\nscene_batch: 0", "one patch per batch; raise steps and batch"),
        ("truth: {supervised: 1}\nsize: 8", "an edge of at least 32 pixels; raise size"),
        ("truth: {supervised: 1}\naverage: 1", "from 0 to below 1; correct average"),
        ("truth: {supervised: 1}\nrate: 0", "The learning rate must be above 0"),
        ("truth: {supervised: 1}\nrate: .inf", "The learning rate must be above 0"),
        ("truth: {supervised: 1}\nwarmup: -1", "the warm-up must not be negative"),
        ("scene: {khan: -1}", "The loss khan has the weight -1"),
        ("truth: {supervised: 1}\naugment: {ratios: []}", "correct ratios and bands under augment"),
        ("truth: {supervised: 1}\naugment: {bands: [4, 0]}", "correct ratios and bands under augment"),
        ("truth: {supervised: 1}\naugment: {blurs: {table: 2, box: -1}}", "need shares of: table, any, box"),
        ("truth: {supervised: 1}\naugment: {jpeg: 1.5, haze: -0.1}", "from 0 to 1; correct haze, jpeg."),
        ("truth: {supervised: 1}\npictures: [{path: p, factor: 0}]", "factor of at least 1"),
        (
            "truth: {supervised: 1}\nlanguage: {protocol: wild}",
            "cannot have wild as protocol; write one of wald, khan.",
        ),
        ("truth: {supervised: 1}\nlanguage: {stand_in: gsa}", "gsa as stand_in; write one of mtf-glp-hpm-r, bdsd."),
        ("truth: {supervised: 1}\nlanguage: {fusion_norm: max}", "max as fusion_norm; write one of sum, mean."),
        ("truth: {supervised: 1}\nlanguage: {steps: 0}", "at least one step"),
        ("truth: {supervised: 1}\ntrains: clip", "clip as trains; write one of network, adapters."),
        ("truth: {supervised: 1}\nphi: fixed", "fixed as phi; write one of least-squares, learned."),
        ("truth: {spatial: 1}\nphi: learned", "cannot be used under truth with a learned phi"),
        ("truth: {language: 1}", "set it under scene"),
        ("", "gives no loss a weight"),
        ("- a\n- b", "named values"),
        ("truth: {supervised: 1", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_in_one_sentence(recipe, text, told):
    with pytest.raises(ClippanError) as caught:
        read_recipe(Path(recipe(text)))
    assert told in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ClippanError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


# Sources


def test_pairs_of_a_folder(data):
    found = list(reading.read_pairs(data, PairSource("pan"), (), Context()))
    assert [pair.sensor for pair in found] == ["landsat", "quickbird", "quickbird"]
    pair = found[1]
    assert np.array_equal(pair.pan, read_raster(str(data / "pan" / "quickbird__a" / "pan.tif"))[0])
    assert np.array_equal(pair.ms, read_raster(str(data / "pan" / "quickbird__a" / "ms.tif")))
    assert (pair.x_axis.ratio, pair.y_axis.ratio) == (4, 4)
    assert pair.valid.all()
    assert len(pair.mtf_gains) == 4
    assert min(pair.mtf_gains) >= 0.22  # measured in the images, or QuickBird's own
    assert pair.mtf_gains != found[0].mtf_gains


def test_sensors_and_scenes_are_left_out(data):
    lines: list[str] = []
    context = Context(log=lines.append)
    (left,) = reading.read_pairs(data, PairSource("pan", ("quickbird__b",)), ("landsat",), context)
    assert left.sensor == "quickbird"
    assert lines[0] == "quickbird__a"


def test_a_folder_without_pairs_is_told(data):
    with pytest.raises(ClippanError, match=r"The folder .*elsewhere has no pairs; a pair is a folder SENSOR__SCENE"):
        list(reading.read_pairs(data, PairSource("elsewhere"), (), Context()))


def test_pictures_of_a_zip_have_a_pan_of_their_bands(data):
    found = list(reading.read_pictures(data, PictureSource("pictures.zip", factor=2)))
    assert len(found) == 3
    for seed, picture in enumerate(found):
        shown = (truth(160, 3, seed) / 8).astype("uint8")
        means = shown.reshape(3, 80, 2, 80, 2).mean((2, 4)) + 1
        assert np.abs(picture.bands - means).max() <= 0.5  # PIL rounds
        assert picture.simulated_pan
        assert picture.valid.all()
        like = [np.corrcoef(picture.pan.ravel(), band.ravel())[0, 1] for band in picture.bands]
        assert max(like) > 0.9
    again = list(reading.read_pictures(data, PictureSource("pictures.zip", factor=2)))
    assert all(np.array_equal(one.pan, other.pan) for one, other in zip(found, again))
    assert len(list(reading.read_pictures(data, PictureSource("pictures.zip", limit=2)))) == 2


def test_bands_of_one_scene_as_files(tmp_path):
    (tmp_path / "s2").mkdir()
    bands = truth(65, 2)[:, :64].astype("uint16")
    for number, band in enumerate(bands):
        write_raster(tmp_path / "s2" / f"B{number}.tif", band)
    (found,) = reading.read_pictures(tmp_path, PictureSource("s2", ("B1.tif", "B0.tif"), factor=2))
    means = bands[::-1, :64, :64].reshape(2, 32, 2, 32, 2).mean((2, 4))
    assert np.allclose(found.bands, means)


def test_pictures_that_are_not_there_are_told(data):
    with pytest.raises(ClippanError, match=r"The pictures .*none.zip do not exist; correct the recipe"):
        list(reading.read_pictures(data, PictureSource("none.zip")))


def test_pictures_that_cannot_be_read_are_told(data, tmp_path):
    whole = (data / "pictures.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    start = whole.index(b"some/0.tif") + 2000
    (tmp_path / "hurt.zip").write_bytes(whole[:start] + bytes(2000) + whole[start + 2000 :])
    with zipfile.ZipFile(tmp_path / "words.zip", "w") as archive:
        archive.writestr("a.tif", "no picture")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no picture")
    (tmp_path / "s2").mkdir()
    for name, words in (
        ("cut.zip", "cannot be read (File is not a zip file); give an intact ZIP file."),
        ("hurt.zip", "cannot be read (Bad CRC-32 for file 'some/0.tif'); give an intact ZIP file."),
        ("words.zip", "cannot be read ("),
        ("empty.zip", " has no pictures; it needs files that end in .jpg, .jpeg, .tif."),
        ("s2", "s2 are a folder; list its rasters as bands in the recipe, or give a ZIP file."),
    ):
        with pytest.raises(ClippanError) as caught:
            list(reading.read_pictures(tmp_path, PictureSource(name)))
        assert words in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert str(caught.value).endswith(".")


# Patches


GAINS = (0.3, 0.22, 0.35)


def ground(size: int = 192, bands: int = 3, place: Optional[tuple[int, int]] = None, edge: int = 64) -> ReferenceScene:
    """A truth whose patch of ``edge`` pixels can lie at one ``place`` only."""
    values = truth(size, bands).astype(np.float32)
    valid = np.ones((size, size), bool)
    if place:
        valid[:] = False
        valid[place[0] : place[0] + edge, place[1] : place[1] + edge] = True
    return ReferenceScene(values.mean(axis=0) * 1.1 + 20, values, valid, GAINS[:bands], simulated_pan=False)


def gaussian(gains: Sequence[float]) -> list[Blur]:
    return [Blur("gaussian", gain, gain) for gain in gains]


def plain(
    made: ReferenceScene, ratio: float, phases: tuple[float, float], chosen: tuple[int, ...], edge: int = 64
) -> Any:
    """A patch of some bands without anything that varies it."""
    gains = [GAINS[band] for band in chosen]
    mixture = BandMixture.selection(chosen, len(made.bands))
    shifts = np.zeros((len(chosen), 2))
    return made.patch(np.random.default_rng(0), edge, ratio, np.array(phases), gains, gaussian(gains), shifts, mixture)


def seen(
    values: np.ndarray, axis_y: AxisTransform, axis_x: AxisTransform, gain: float
) -> tuple[torch.Tensor, int, int]:
    """What a sensor sees of a plane around its middle: samples and the number of the first row and column."""
    firsts, matrices = [], []
    for axis, length in ((axis_y, values.shape[0]), (axis_x, values.shape[1])):
        first = math.ceil(axis.pan_to_ms(24))
        number = math.floor(axis.pan_to_ms(length - 25)) - first
        start, count = filters.pan_support(axis, first, number, gain)
        assert start >= 0
        assert start + count <= length
        matrix = torch.zeros(number, length)
        matrix[:, start : start + count] = filters.downsampling_matrix(axis, first, number, gain)
        firsts.append(first)
        matrices.append(matrix)
    return filters.apply_separable(matrices[0], torch.from_numpy(values).float(), matrices[1]), firsts[0], firsts[1]


@pytest.mark.parametrize(("ratio", "phases"), [(4.0, (0.0, 0.0)), (4.0, (1.3, 2.9)), (2.0, (0.5, 0.0)), (2.7, (0, 2))])
def test_a_patch_without_variation_is_what_the_filters_give(ratio, phases):
    place, chosen = (64, 72), (2, 0)
    made = ground(place=place)
    patch = plain(made, ratio, phases, chosen)
    axes = [AxisTransform(ratio, start + phase) for start, phase in zip(place, phases)]
    inside = np.s_[place[0] : place[0] + 64, place[1] : place[1] + 64]
    assert np.array_equal(patch.pan[0], made.pan[inside])
    for number, band in enumerate(chosen):
        assert np.array_equal(patch.target[number], made.bands[band][inside])
        for values, up in ((made.bands[band], patch.up[number]), (made.pan, patch.pan_lowpass[number])):
            samples, row, column = seen(values, *axes, GAINS[band])
            parts = []
            for axis, start, first, length in zip(axes, place, (row, column), samples.shape):
                support, count = filters.ms_support(axis, start, 64)
                matrix = filters.upsampling_matrix(axis, start, 64)
                # The support has samples to spare: those that weigh nothing need not be there.
                weights = torch.zeros(64, length)
                here = slice(max(first - support, 0), min(first + length - support, count))
                assert float(matrix[:, here].abs().sum()) == pytest.approx(float(matrix.abs().sum()))
                weights[:, support + here.start - first : support + here.stop - first] = matrix[:, here]
                parts.append(weights)
            assert torch.allclose(filters.apply_separable(parts[0], samples, parts[1]), up, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "phases"), [(4.0, (0.0, 0.0)), (4.0, (1.3, 2.9)), (3.0, (2.0, 1.0)), (2.7, (0, 2))])
def test_what_a_batch_degrades_is_what_was_seen(ratio, phases):
    batch = collate([plain(ground(), ratio, phases, (0, 1, 2))], [0], ratio)
    assert batch.ms.shape[-1] >= 5
    assert torch.allclose(batch.degrade(batch.target), batch.ms, atol=1e-4)
    assert float((batch.degrade(batch.up) - batch.ms).abs().mean()) > 0.02  # and the blurred ones are not


def test_the_classical_result_is_that_of_pansharpen():
    patch = plain(ground(), 4.0, (1.0, 3.0), (0, 1, 2))
    moments = patch.moments
    mean = np.concatenate([moments.mean, [moments.pan_mean] * 2])
    covariance = np.zeros((5, 5))
    covariance[:3, :3] = moments.covariance
    covariance[:3, 3] = covariance[3, :3] = moments.with_pan
    covariance[3, 3] = covariance[4, 4] = moments.pan_variance
    statistics = SceneStatistics(3, 1, torch.from_numpy(mean), torch.from_numpy(covariance), torch.zeros(3), 100, 0.0)
    wanted = MtfGlp(statistics, [0, 0, 0], modulation=True, regression=True)(patch.up, patch.pan[0], patch.pan_lowpass)
    batch = collate([patch], [0], 4.0)
    assert torch.allclose(batch.destandardise(batch.classical)[0], wanted, rtol=1e-5)
    assert float((wanted - patch.up).abs().mean()) > 10


def test_a_pair_s_patch_is_a_part_of_the_whole_pair():
    made = ground()
    axis = AxisTransform(4.0, 0.0)
    ms = np.stack([seen(band, axis, axis, gain)[0].numpy() for band, gain in zip(made.bands, GAINS)])
    offset = AxisTransform(4.0, 4.0 * seen(made.pan, axis, axis, 0.3)[1])
    valid = np.zeros(ms.shape[1:], bool)
    valid[8:24, 12:28] = True
    pair = ScenePair(made.pan, ms, offset, offset, valid, GAINS, 0.15)
    whole = pair.whole_patch()
    (patch,) = pair.patches(np.random.default_rng(0), 1, 64, [1, 2])
    top, left = (int(offset.origin) + 4 * sample for sample in (8, 12))
    inside = np.s_[:, top : top + 64, left : left + 64]
    assert torch.equal(patch.pan, whole.pan[inside])
    assert torch.allclose(patch.up, whole.up[1:][inside], rtol=1e-6)
    assert torch.allclose(patch.pan_lowpass, whole.pan_lowpass[1:][inside], rtol=1e-6)
    batch = collate([patch], [0], 4.0)
    true = torch.from_numpy(made.bands[1:][inside])[None]
    assert torch.allclose(batch.degrade((true - batch.mean) / batch.std), batch.ms, atol=1e-4)
    own = seen(made.pan, axis, axis, 0.15)[0]
    row, column = (int(index) for index in np.argwhere(ms[1] == patch.ms[0, 0, 0].item())[0])
    here = own[row : row + patch.ms.shape[1], column : column + patch.ms.shape[2]]
    assert torch.equal(patch.ms[1], torch.from_numpy(ms[2])[row:, column:][: here.shape[0], : here.shape[1]])
    assert torch.allclose(patch.degraded_pan[0], here, rtol=1e-5)


def test_sensors_of_unlike_optics_share_a_batch():
    made = ground()
    one, other = (
        made.patch(
            np.random.default_rng(0),
            64,
            2.0,
            np.zeros(2),
            gains,
            gaussian(gains),
            np.zeros((1, 2)),
            BandMixture.selection([0], 3),
        )
        for gains in ([0.15], [0.5])
    )
    batch = collate([one, other], [0, 1], 2.0)
    assert torch.allclose(batch.degrade(batch.target), batch.ms, atol=1e-4)


@pytest.mark.parametrize("ratio", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("kind", ["gaussian", "box", "cubic", "sampling"])
def test_every_blur_keeps_a_ramp(kind, ratio):
    # A symmetric filter of sum 1 gives a sample the ramp's value at the sample's centre.
    axis = AxisTransform(ratio, 0.3)
    matrix = Blur(kind, 0.3, 0.3).matrix(axis, 8, 5, 0, 200, 0.3)
    centres = torch.tensor([axis.ms_to_pan(8 + number) for number in range(5)])
    assert torch.allclose(matrix.sum(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(matrix @ torch.arange(200.0), centres, atol=2e-3 if kind == "gaussian" else 0.08)


def test_a_box_is_the_mean_of_the_pixels():
    matrix = Blur("box").matrix(AxisTransform(4.0, 0.0), 1, 1, 0, 12, 0.0)
    assert matrix[0].tolist() == [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]


def test_jpeg_changes_little_and_keeps_the_range():
    plane = torch.linspace(500, 900, 64)[None, :, None].expand(2, 64, 64).contiguous()
    restored = through_jpeg(plane, 90)
    assert 0 < float((restored - plane).abs().max()) < 8
    assert restored.shape == plane.shape


@pytest.mark.parametrize("number", range(8))
def test_a_view_of_a_patch_is_a_patch(number):
    patch = plain(ground(), 2.7, (0.0, 2.0), (0, 1))
    view = patch.transformed(number)
    wanted = patch.target.numpy()
    wanted = wanted[:, ::-1] if number & 1 else wanted
    wanted = wanted[:, :, ::-1] if number & 2 else wanted
    assert np.array_equal(view.target.numpy(), wanted.transpose(0, 2, 1) if number & 4 else wanted)
    assert [torch.equal(view.pan, patch.transformed(other).pan) for other in range(8)].count(True) == 1
    batch, whole = collate([view], [0], 2.7), collate([patch], [0], 2.7)
    assert torch.allclose(batch.degrade(batch.target), batch.ms, atol=1e-4)
    for one, other in zip(batch.inputs, whole.inputs):
        assert float(one.sum()) == pytest.approx(float(other.sum()), abs=0.05)
    both = collate([patch, view], [0, 1], 2.7)
    assert torch.allclose(both.degrade(both.target), both.ms, atol=1e-4)


def test_moments_of_a_mixture_are_those_of_the_mixed_bands():
    rng = np.random.default_rng(0)
    bands = rng.normal(0, 30, (3, 40, 50)) + rng.normal(500, 90, (1, 40, 50))
    pan = bands.mean(axis=0) + rng.normal(0, 20, (40, 50))
    mixture = BandMixture(rng.random((4, 3)), rng.normal(0, 50, 4), 0.7, rng.random(3), 33.0)
    mixed = np.tensordot(mixture.weights, bands, 1) + mixture.offset[:, None, None]
    light = 0.7 * pan + np.tensordot(mixture.pan_band_weights, bands, 1) + 33.0
    valid = rng.random((40, 50)) < 0.8
    found, wanted = BandMoments.of(bands, pan, valid).of_mixture(mixture), BandMoments.of(mixed, light, valid)
    for field in dataclasses.fields(BandMoments):
        np.testing.assert_allclose(getattr(found, field.name), getattr(wanted, field.name), rtol=1e-9)


def test_missing_pixels_are_kept_out(tmp_path):
    folder = tmp_path / "pan" / "quickbird__a"
    folder.mkdir(parents=True)
    high = truth(192, 4)
    low = high.reshape(4, 48, 4, 48, 4).mean((2, 4)).astype("uint16")
    hole = np.zeros((48, 48), bool)
    hole[4:8, 30:40] = True
    low[0][hole] = 60000  # one band is enough
    pan = high.mean(axis=0).astype("float32")
    pan[100:140, :40] = np.nan
    hole[25:35, :10] = True
    write_raster(folder / "pan.tif", pan, 1.0)
    write_raster(folder / "ms.tif", low, 4.0, nodata=60000)
    (pair,) = reading.read_pairs(tmp_path, PairSource("pan"), (), Context())
    assert np.array_equal(pair.valid, ~hole)
    np.testing.assert_allclose(pair.moments.mean, low[:, ~hole].mean(axis=1), rtol=1e-6)
    assert pair.pan.max() < 2000
    assert pair.ms.max() < 2000
    rng = np.random.default_rng(0)
    clean = set(low[1][~hole].tolist())
    for _ in range(20):
        (patch,) = pair.patches(rng, 1, 64, [0, 1, 2, 3])
        assert bool(patch.up.isfinite().all())
        # The filled pixels have the mean of the band, which no sample has.
        assert set(patch.ms[1].flatten().tolist()) <= clean
        made = pair.reduced_reference(0.15).patch(
            rng, 32, 2.0, np.zeros(2), [0.3], gaussian([0.3]), np.zeros((1, 2)), BandMixture.selection([1], 4)
        )
        assert set(made.target.flatten().tolist()) <= clean


# Batches


@functools.cache
def pairs(data: Path) -> list[ScenePair]:
    """The pairs of the data folder, read once."""
    return list(reading.read_pairs(data, PairSource("pan"), (), Context()))


def sampler(data: Path, bands: Optional[int] = None, pictures: bool = False, **options: Any) -> BatchSampler:
    values: dict[str, Any] = {
        **{"truth": LossWeights(supervised=1.0), "scene": LossWeights(khan=1.0), "batch": 2, "size": 64},
        **{"scene_batch": 2, "scene_size": 64, **options},
    }
    shown = [(1.0, list(reading.read_pictures(data, PictureSource("pictures.zip"))))] if pictures else []
    return BatchSampler(Recipe(**values), pairs(data), shown, bands)


def same(one: PatchBatch, other: PatchBatch) -> bool:
    values = ((value, getattr(other, name)) for name, value in vars(one).items() if isinstance(value, torch.Tensor))
    return one.ratio == other.ratio and all(torch.equal(first, second) for first, second in values)


@pytest.mark.parametrize("kind", ["reduced_batches", "full_batch"])
def test_a_seed_and_a_step_decide_a_batch(data, kind):
    one, other = sampler(data, 4, True), sampler(data, 4, True)
    getattr(one, kind)(np.random.default_rng(99))  # what was drawn before does not count
    first, again, next_ = (
        getattr(drawer, kind)(np.random.default_rng([0, 0, step]))
        for drawer, step in ((one, 5), (other, 5), (other, 6))
    )
    if kind == "reduced_batches":
        (first,), (again,), (next_,) = first, again, next_
    assert same(first, again)
    assert not torch.equal(first.pan, next_.pan)


def test_batches_vary_in_ratio_and_bands_as_the_recipe_says(data):
    drawer = sampler(data, pictures=True, augment=Augmentation(ratios=(2, 3.5), bands=(1, 5)))
    batches = [drawer.reduced_batches(np.random.default_rng(step))[0] for step in range(12)]
    assert {(batch.ratio, batch.up.shape[1]) for batch in batches} == {(2, 1), (2, 5), (3.5, 1), (3.5, 5)}
    for batch in batches:
        assert batch.target.shape == batch.up.shape == batch.classical.shape == (2, batch.up.shape[1], 64, 64)
        assert all(bool(value.isfinite().all()) for value in batch.inputs)


def test_patches_of_one_step_may_differ_in_their_number_of_bands(data):
    each = Augmentation(bands=(3, 4), bands_per_patch=True)
    steps = [sampler(data, batch=5, augment=each).reduced_batches(np.random.default_rng(step)) for step in range(4)]
    for parts in steps:
        assert sum(len(part.up) for part in parts) == 5
        assert len({part.up.shape[1] for part in parts}) == len(parts)
    assert {part.up.shape[1] for parts in steps for part in parts} == {3, 4}
    assert max(map(len, steps)) == 2
    (fixed,) = sampler(data, 4, batch=5, augment=each).reduced_batches(np.random.default_rng(0))
    assert fixed.up.shape[:2] == (5, 4)


def test_the_loss_of_patches_with_different_numbers_of_bands_counts_each_band_once(data):
    """One patch of 3 bands and one of 4: the loss is the mean over the 7 bands that they give alone."""
    torch.manual_seed(0)
    network = networks.build("arbrpn", 4, width=8, depth=1, blocks=1)
    drawer = sampler(data)
    parts = [drawer.reduced_batch(np.random.default_rng(bands), bands, 1) for bands in (3, 4)]
    step = train.StepLoss(network, {"truth": Objective(LossWeights(supervised=1.0))}, None, False)
    loss, terms = step({"truth": parts})
    bands = [band for part in parts for band in (network(*part.inputs) - part.target).abs().mean((0, 2, 3))]
    assert len(bands) == 7
    torch.testing.assert_close(loss, sum(bands) / 7)
    torch.testing.assert_close(terms["truth.supervised"], loss.detach())
    # No patch changes what another gives: the gradient is the weighted sum of those of each alone.
    (slope,) = torch.autograd.grad(loss, network.tail.weight)
    alone = [torch.autograd.grad(step({"truth": [part]})[0], network.tail.weight)[0] for part in parts]
    torch.testing.assert_close(slope, (3 * alone[0] + 4 * alone[1]) / 7)


def test_scenes_are_of_one_pair_and_standardised(data):
    batch = sampler(data).full_batch(np.random.default_rng(0))
    assert batch.target is None
    assert batch.scenes.tolist() == [0, 0]
    assert torch.equal(batch.mean[0], batch.mean[1])
    assert float(batch.ms.mean().abs()) < 1
    assert 0.3 < float(batch.ms.std()) < 2


def test_networks_of_a_fixed_number_of_bands_get_them_in_order(data):
    drawer = sampler(data, 3)
    means = {tuple(drawer.full_batch(np.random.default_rng(step)).mean[0].flatten().tolist()) for step in range(12)}
    files = [read_raster(str(folder / "ms.tif"))[:3] for folder in (data / "pan").iterdir()]
    assert len(means) == 3
    for mean in means:
        assert any(np.allclose(mean, values.mean((1, 2)), rtol=1e-5) for values in files)


def test_clip_fixes_the_number_of_bands_at_full_resolution_only(data):
    augment = Augmentation(ratios=(4,), bands=(2, 3))
    drawer = sampler(data, scene=LossWeights(language=1.0), augment=augment)
    steps = range(6)
    assert {drawer.full_batch(np.random.default_rng(step)).up.shape[1] for step in steps} == {4}
    assert {drawer.reduced_batches(np.random.default_rng(step))[0].up.shape[1] for step in steps} == {2, 3}


def test_scenes_that_are_too_small_are_told():
    made = ground(128)
    made.valid[::16] = False
    valid = np.ones((32, 32), bool)
    valid[::8] = False
    axis = AxisTransform(4.0, 0.0)
    pair = ScenePair(made.pan, made.bands[:, :32, :32], axis, axis, valid, GAINS, 0.15)
    recipe = Recipe(truth=LossWeights(supervised=1.0), scene=LossWeights(khan=1.0), size=96, scene_size=64)
    drawer = BatchSampler(recipe, [pair], [(1.0, [made])], None)
    with pytest.raises(ClippanError, match=r"too small for the patches of the recipe; lower its size\."):
        drawer.reduced_batches(np.random.default_rng(0))
    with pytest.raises(ClippanError, match=r"too small for the patches of the recipe; lower its scene_size\."):
        drawer.full_batch(np.random.default_rng(0))


def test_pairs_of_too_few_bands_are_told(data):
    with pytest.raises(ClippanError, match="no pair with as many multispectral bands as the network; add such pairs"):
        sampler(data, 5)


# Runs


@pytest.mark.slow
def test_a_training_learns_and_its_model_pansharpens(data, recipe, tmp_path):
    text = TINY.replace("steps: 10", "steps: 40\nrate: 0.005\naverage: 0.5") + "pictures: [{path: pictures.zip}]\n"
    lines: list[str] = []
    seen: list[float] = []
    context = Context(lambda percent, message: seen.append(percent), lines.append)
    result = learn(data, tmp_path / "run", recipe(text), context)
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint.pt", "curves.csv", "model.safetensors", "recipe.json"]
    assert result.model == str(tmp_path / "run" / "model.safetensors")
    assert (result.steps, result.device) == (40, "cpu")
    assert seen == sorted(seen)
    assert seen[-1] == 100
    head, rows = curves(tmp_path / "run")
    assert head == ["step", "truth.supervised", "scene.khan", "scene.detail"]
    assert rows[:, 0].tolist() == [40]
    assert rows[0, 1:] == pytest.approx(list(result.losses.values()), rel=1e-4)
    assert lines[-1].startswith("Step 40: truth.supervised 0.")

    trained = model.load(result.model, torch.device("cpu"))
    assert (trained.architecture, trained.bands, trained.provenance["steps"]) == ("detail", 0, 40)
    assert result.parameters == networks.parameter_count(trained.network)
    batches = [sampler(data).reduced_batches(np.random.default_rng(step))[0] for step in range(3)]
    fresh = networks.build("detail", 4, width=8, head=8, depth=1)
    before, after = (
        sum(float((network(*batch.inputs) - batch.target).detach().abs().mean()) for batch in batches)
        for network in (fresh, trained.network)
    )
    assert after < 0.97 * before

    pair = data / "pan" / "quickbird__a"
    sharp = run(
        PansharpenRequest(
            pan=str(pair / "pan.tif"),
            ms=(str(pair / "ms.tif"),),
            output=str(tmp_path / "out.tif"),
            method=Method.CLIPPAN,
            model=result.model,
        )
    )
    assert sharp.provenance["CLIPPAN_MODEL_SHA256"] == trained.sha256
    assert 100 < read_raster(sharp.output).mean() < 2000


class Killed(Exception):
    """The power went out."""


# A network that drops numbers at random in training.
DROPPING = TINY.replace("detail\n", "lformer\n").replace("head: 8, depth: 1", "high_width: 8, depth: 2, heads: 2")


@pytest.mark.parametrize(
    ("end", "text"), [(Cancelled, TINY), (Killed, TINY), pytest.param(Killed, DROPPING, marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(data, recipe, tmp_path, monkeypatch, end, text):
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(train, "_LOG_EVERY", 3)
    path = recipe(text)
    learn(data, tmp_path / "whole", path)

    def stop(percent: float, message: str) -> None:
        if message == "Step 7 of 10":
            raise end()

    with pytest.raises(end) as caught:
        learn(data, tmp_path / "parts", path, Context(stop))
    if end is Cancelled:
        assert str(caught.value) == "Cancelled after step 7; run the same command to resume."
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    lines: list[str] = []
    learn(data, tmp_path / "parts", path, Context(log=lines.append))
    assert f"Resuming after step {7 if end is Cancelled else 4}." in lines
    for name in ("model.safetensors", "curves.csv", "recipe.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert curves(tmp_path / "parts")[1][:, 0].tolist() == [3, 6, 9, 10]


def test_the_same_seed_gives_the_same_bytes(data, recipe, tmp_path):
    path = recipe()
    for name, seed in (("one", None), ("two", 0), ("other", 1)):
        learn(data, tmp_path / name, path, steps=3, seed=seed)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other


def test_a_folder_keeps_one_recipe_s_run(data, recipe, tmp_path):
    folder = tmp_path / "run"
    learn(data, folder, recipe(), steps=2)
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(ClippanError, match=r"holds a run of another recipe; choose an empty folder\."):
        learn(data, folder, recipe(), steps=3)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    learn(data, folder, recipe(), steps=2)  # done already
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_a_training_that_cannot_begin_leaves_nothing_and_may_be_corrected(data, recipe, tmp_path):
    for right, wrong, told in (
        ("folder: pan", "folder: elsewhere", "has no pairs"),
        ("network: detail", "network: unet", "There is no fusion network 'unet'"),
        ("width: 8", "width: 8, tail: 1", "has no option 'tail'"),
        ("supervised: 1", "supervised: -1", "has the weight -1"),
        ("khan: 1", "khan: 1, pseudo: 1", "needs a trained network; set teacher"),
    ):
        assert right in TINY
        with pytest.raises(ClippanError, match=told) as caught:
            learn(data, tmp_path / "run", recipe(TINY.replace(right, wrong)))
        assert str(caught.value).endswith(".")
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    notes = tmp_path / "run" / "recipe.json"
    notes.write_text('{"my": "own"}', encoding="utf-8")
    with pytest.raises(ClippanError, match="holds a run of another recipe"):
        learn(data, tmp_path / "run", recipe(TINY), steps=1)
    assert notes.read_text(encoding="utf-8") == '{"my": "own"}'
    notes.unlink()
    assert learn(data, tmp_path / "run", recipe(TINY), steps=1).steps == 1


def test_curves_of_a_run_that_was_killed_before_its_first_checkpoint_begin_anew(data, recipe, tmp_path):
    folder = tmp_path / "run"
    learn(data, folder, recipe(), steps=3)
    whole = (folder / "curves.csv").read_bytes()
    for name in ("checkpoint.pt", "model.safetensors"):
        (folder / name).unlink()
    with (folder / "curves.csv").open("ab") as file:
        file.write(b"6,0.1")  # cut by the kill
    learn(data, folder, recipe(), steps=3)
    assert (folder / "curves.csv").read_bytes() == whole


def test_a_checkpoint_that_is_damaged_is_told(data, recipe, tmp_path):
    folder = tmp_path / "run"
    learn(data, folder, recipe(), steps=1)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:500])
    with pytest.raises(ClippanError, match=r"checkpoint.pt cannot be read .*; remove it to start from the first step"):
        learn(data, folder, recipe(), steps=1)
    (folder / "checkpoint.pt").unlink()
    assert learn(data, folder, recipe(), steps=1).losses


def test_a_checkpoint_of_an_older_version_is_told(data, recipe, tmp_path):
    learn(data, tmp_path / "run", recipe(), steps=1)
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "scheduler"}, path)
    with pytest.raises(ClippanError, match=r"cannot be read \(an older version .* wrote it\); remove it to start from"):
        learn(data, tmp_path / "run", recipe(), steps=1)


def test_half_precision_learns_much_the_same(data, recipe, tmp_path):
    text = TINY + "average: 0\n"
    full = learn(data, tmp_path / "full", recipe(text), steps=3)
    half = learn(data, tmp_path / "half", recipe(text + "precision: bfloat16\n"), steps=3)
    assert list(half.losses.values()) == pytest.approx(list(full.losses.values()), rel=0.1)
    one, other = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("full", "half"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(bool(value.isfinite().all()) for value in other.values())


def test_a_network_of_a_fixed_number_of_bands_is_bound_to_it(data, recipe, tmp_path):
    text = TINY.replace("network: detail", "network: pnn").replace("{width: 8, head: 8, depth: 1}", "{width: 8}")
    result = learn(data, tmp_path / "run", recipe(text), steps=1)
    trained = model.load(result.model, torch.device("cpu"))
    assert trained.bands == 4
    with pytest.raises(ClippanError, match="MS has 3 bands but the model"):
        trained.check_band_count(3)


FIVE = ["spectral", "spatial", "qnr", "pseudo", "language"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP."""
    return small_clip.make(tmp_path_factory.mktemp("clips") / "tiny", "transformer")


def header(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


@pytest.fixture
def small_patches(monkeypatch):
    """Recipes with the patches that fit into the scenes here."""

    def read(path: Path) -> Recipe:
        found = read_recipe(path)
        language = dataclasses.replace(found.language, batch=2)
        return dataclasses.replace(found, scene_batch=1, scene_size=64, language=language)

    monkeypatch.setattr(train_fusion, "read_recipe", read)


def test_stage_one_and_stage_two_run_one_after_the_other(data, clip, tmp_path, small_patches):
    first = learn(data, tmp_path / "one", "stage1", clip=clip, steps=2)
    assert first.model == str(tmp_path / "one" / "stage_one.safetensors")
    assert (first.steps, list(first.losses)) == (2, ["inter", "intra", "fusion"])
    assert curves(tmp_path / "one")[0] == ["step", "inter", "intra", "fusion"]
    assert not (tmp_path / "one" / "model.safetensors").exists()
    about = header(Path(first.model))
    assert about["clip"].startswith(clip)
    assert (about["stand_in"], about["fusion_norm"]) == ("mtf-glp-hpm-r", "mean")

    lines: list[str] = []
    context = Context(log=lines.append)
    second = learn(data, tmp_path / "two", "stage2", context, clip=clip, adapters=first.model, steps=2)
    assert not [line for line in lines if "Stage I" in line]
    assert curves(tmp_path / "two")[0] == ["step", *(f"scene.{name}" for name in FIVE)]
    shipped = model.load("", torch.device("cpu"))
    trained = model.load(second.model, torch.device("cpu"))
    assert (trained.architecture, trained.options, trained.bands) == (shipped.architecture, shipped.options, 0)
    assert trained.provenance["start"] == trained.provenance["teacher"] == shipped.sha256
    assert trained.provenance["clip"].startswith(clip)
    # Two steps from the shipped model on are close to it, and not on it.
    pairs_of_weights = zip(shipped.network.parameters(), trained.network.parameters())
    furthest = max(float((one - other).detach().abs().max()) for one, other in pairs_of_weights)
    assert 0 < furthest < 0.01


def test_adapters_of_another_clip_are_refused(data, clip, tmp_path, small_patches):
    first = learn(data, tmp_path / "one", "stage1", clip=clip, steps=1)
    other = small_clip.make(tmp_path / "other", "convolutions")
    with pytest.raises(ClippanError, match=r"adapted with the CLIP .*tiny/.* but .*other/.* has other weights"):
        learn(data, tmp_path / "two", "stage2", clip=other, adapters=first.model, steps=1)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("network", ["", "pnn"])
def test_the_paper_s_experiment_runs(data, clip, tmp_path, small_patches, network):
    result = learn(data, tmp_path / "run", "paper", clip=clip, steps=2, network=network)
    head, rows = curves(tmp_path / "run")
    assert head == ["step", *(f"scene.{name}" for name in FIVE)]
    assert np.isfinite(rows).all()
    trained = model.load(result.model, torch.device("cpu"))
    assert trained.architecture == (network or "arbrpn")
    assert trained.provenance["clip"].startswith(clip)
    assert header(tmp_path / "run" / "stage_one.safetensors")["stand_in"] == "bdsd"
    assert (tmp_path / "run" / "stage_one" / "curves.csv").is_file()


def test_a_learned_phi_learns(data, recipe, tmp_path):
    text = TINY.replace("scene: {khan: 1, detail: 0.5}", "scene: {spatial: 1}\nphi: learned").replace(
        "warmup: 2", "warmup: 0"
    )
    learn(data, tmp_path / "run", recipe(text), steps=1)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trained"]
    weights = state["phi.phi.weight"].flatten()
    assert weights.shape == (4,)
    # From 1/C, each weight takes a step of about the learning rate.
    assert (weights - 0.25).abs().min() > 1e-4
    assert (weights - 0.25).abs().max() < 0.01


def test_bdsd_as_the_stand_in_is_that_of_pansharpen(data, tmp_path):
    folder = data / "pan" / "quickbird__a"
    pair = next(pair for pair in pairs(data) if pair.sensor == "quickbird")
    out = str(tmp_path / "bdsd.tif")
    options: dict[str, Any] = {"method": Method.BDSD, "sensor": "quickbird", "registration": Registration.OFF}
    run(PansharpenRequest(pan=str(folder / "pan.tif"), ms=(str(folder / "ms.tif"),), output=out, **options))
    whole = collate([pair.whole_patch()], [0], 4.0)
    fused = whole.destandardise(bdsd_fused(fit_bdsd(pair, 4), whole, 0))[0].numpy()
    inside = np.s_[:, 32:-32, 32:-32]
    np.testing.assert_allclose(fused[inside], read_raster(out)[inside], rtol=0.02)


def test_stage_one_sees_the_stand_in_of_the_recipe(data):
    (usual, other) = (
        sampler(data, language=AdapterTraining(stand_in=name, batch=2)).adapter_batch(np.random.default_rng(1))
        for name in ("mtf-glp-hpm-r", "bdsd")
    )
    assert usual.stand_in is None
    assert other.stand_in.shape == other.classical.shape
    assert torch.equal(usual.classical, other.classical)
    difference = (other.stand_in - other.classical).abs().mean()
    assert 0.001 < float(difference) < float((other.up - other.classical).abs().mean())


@pytest.mark.slow
def test_a_run_that_was_stopped_in_stage_one_is_resumed_there(data, clip, recipe, tmp_path, monkeypatch):
    path = recipe(
        f"""
        network: pnn
        options: {{width: 8}}
        pairs: [{{folder: pan}}]
        steps: 2
        scene_batch: 1
        scene_size: 64
        scene: {{spectral: 1, language: 0.01}}
        language: {{clip: {clip}, steps: 6, batch: 2}}
        """
    )
    learn(data, tmp_path / "whole", path)
    begun = []

    def stop(percent: float, message: str) -> None:
        if message == "Step 3 of 6":
            begun.append(percent)

    with pytest.raises(Cancelled):
        learn(data, tmp_path / "parts", path, Context(stop, cancelled=lambda: bool(begun)))
    assert not (tmp_path / "parts" / "stage_one.safetensors").exists()
    lines: list[str] = []
    learn(data, tmp_path / "parts", path, Context(log=lines.append))
    assert [line for line in lines if line.startswith("Resuming after step ")]
    for name in ("stage_one.safetensors", "model.safetensors", "stage_one/curves.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@pytest.mark.slow
def test_the_starter_supervises_stage_two(data, tmp_path, small_patches):
    if not MODELS["starter"].path.is_file():
        pytest.skip("the starter CLIP is not in this checkout")
    result = learn(data, tmp_path / "run", "stage2", steps=2)
    assert 0 < result.losses["scene.language"] < 2
    assert model.load(result.model, torch.device("cpu")).provenance["clip"] == "starter"


@pytest.mark.slow
def test_several_processes_learn_one_network(data, recipe, tmp_path):
    command = ["train", "fusion", "--data", str(data), "--recipe", recipe(), "--steps", "3", "--device", "cpu"]
    state = "[self.network.state_dict(), self._average.module.state_dict()]"
    done, (first, second) = in_two(tmp_path, state, command)
    assert done.stderr.count("Step 3: truth.supervised") == 1  # one of them tells
    assert done.stdout.count("model.safetensors") == 1
    for one, other in zip(first, second):
        assert all(torch.equal(one[name], other[name]) for name in one)
    trained = load_file(str(tmp_path / "run" / "model.safetensors"))
    assert all(torch.equal(trained[name], first[1][name].half()) for name in trained)
    # The second process had patches of its own: the network is not what one process makes.
    learn(data, tmp_path / "alone", recipe(), steps=3)
    alone = load_file(str(tmp_path / "alone" / "model.safetensors"))
    assert any(not torch.equal(trained[name], alone[name]) for name in trained)

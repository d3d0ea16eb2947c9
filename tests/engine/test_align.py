"""Alignment: pairs of rasters, the student's start, its losses, and the model that comes out at work."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import read_raster, truth, write_raster
from osgeo import gdal

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.torch import load_file  # noqa: E402
from small_clip import make  # noqa: E402

from clippan.catalogue.models import CONFIG, find_model  # noqa: E402
from clippan.clip.encoder import load_encoder  # noqa: E402
from clippan.clip.load import load_model  # noqa: E402
from clippan.core.channels import Channels  # noqa: E402
from clippan.core.errors import Cancelled, ClippanError  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import (  # noqa: E402
    AlignSensorRequest,
    Context,
    Device,
    FinetuneClipRequest,
    IndexRequest,
    SearchRequest,
    SegmentRequest,
    TrainClipRequest,
)
from clippan.learn.clip import alignment as align  # noqa: E402
from clippan.learn.clip import image_tower  # noqa: E402
from clippan.learn.clip.raster_pairs import PairedChip, RasterPairs, overlaps  # noqa: E402
from clippan.raster.rendering import Renderer, RenderOptions  # noqa: E402
from clippan.raster.tiles import Window  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {tower: make(root / tower, tower) for tower in ("convolutions", "transformer")}


def land(size: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colours uint8 (3, size, size), and what a sensor of four other bands sees there, in decibels."""
    picture = truth(size, 3, seed)
    colours = np.clip(picture / 6, 0, 255).astype(np.uint8)
    mixed = np.einsum("sb,bhw->shw", [[0.5, 0.3, 0.2], [-1, 1, 0.2], [0.1, -0.4, 1], [0.3, 0.3, -1]], picture / 1500)
    return colours, (mixed * 10 - 15).astype(np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    colours, sensed = land()
    return write_raster(tmp_path / "rgb.tif", colours, pixel=10.0), write_raster(
        tmp_path / "sar.tif", sensed, pixel=10.0
    )


def asked(tmp_path: Path, pair: tuple[str, str], model: str, **options: Any) -> AlignSensorRequest:
    values = {"output": str(tmp_path / "run"), "size": 16, "steps": 10, "batch": 16, "overlap": 0.5, **options}
    teachers, sensors = ((path,) if isinstance(path, str) else path for path in pair)
    return AlignSensorRequest(
        teacher_rasters=teachers, sensor_rasters=sensors, model=model, threads=1, device=Device.CPU, **values
    )


@pytest.mark.slow
def test_the_student_comes_nearer_to_the_teacher_and_goes_to_work(tmp_path, pair, models):
    words = "water; forest; road"
    request = asked(
        tmp_path, pair, models["convolutions"], steps=30, rate=3e-3, words=words, report=str(tmp_path / "report.html")
    )
    done = run(request)
    assert done.bands == ("band 1", "band 2", "band 3", "band 4")
    assert done.held == 20
    assert done.chips == 15 * 19
    assert done.to_picture.at_5 > 1.5 * done.chance.at_5
    assert done.cosine > 0.8
    curves = list(csv.DictReader((tmp_path / "run" / "curves.csv").open(encoding="utf-8")))
    assert all(float(curves[-1][name]) < 0.8 * float(curves[0][name]) for name in ("mse", "cosine"))
    assert done.chance.at_10 == 0.5
    assert done.agreement is not None
    assert set(done.losses) == {"mse", "cosine", "contrast", "label"}
    assert "recall at 5" in (tmp_path / "report.html").read_text(encoding="utf-8")
    about = json.loads((Path(done.model) / CONFIG).read_text(encoding="utf-8"))["clippan"]
    assert about["channels"]["total"] == 4
    assert len(about["channels"]["low"]) == 4
    before, after = (
        load_file(Path(path) / "open_clip_model.safetensors") for path in (models["convolutions"], done.model)
    )
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("visual."))

    model = load_encoder(done.model, Device.CPU, Context())
    scene = Renderer(pair[1], RenderOptions(), channels=model.channels)
    picture, valid = scene.picture(Window(0, 0, 16, 16), 32)
    assert picture.dtype == np.float32
    assert picture.shape == (4, 32, 32)
    assert valid == 1
    assert 0 <= picture.min() < picture.max() <= 1
    # The same network as it was measured with, though its normalisations are merged now.
    student = load_model(find_model(done.model).path, find_model(done.model))
    with torch.no_grad():
        values = student.normalised(picture[None])
        expected = torch.nn.functional.normalize(student.network.encode_image(values), dim=-1).numpy()
    np.testing.assert_allclose(model.encode_images(picture[None]), expected, atol=1e-3)

    index = str(tmp_path / "index.gpkg")
    indexed = run(
        IndexRequest(rasters=(pair[1],), output=index, model=done.model, tile=(32,), threads=1, device=Device.CPU)
    )
    assert indexed.tiles > 16
    assert not indexed.failed
    hits = run(SearchRequest(index=index, text=("water",), top=3, device=Device.CPU)).hits
    assert len(hits) == 3
    assert run(SearchRequest(index=index, image=(pair[1],), top=1, device=Device.CPU)).hits
    with pytest.raises(ClippanError, match=r"bands differ \(model: 4, raster: 3\); choose a raster with the bands"):
        run(SearchRequest(index=index, image=(pair[0],), top=1, device=Device.CPU))

    output = str(tmp_path / "map.tif")
    segmented = run(
        SegmentRequest(raster=pair[1], classes=words, output=output, model=done.model, threads=1, device=Device.CPU)
    )
    assert segmented.width == 160
    assert set(np.unique(read_raster(output))) <= {1, 2, 3}
    with pytest.raises(
        ClippanError, match=r"raster: 3\); choose a raster with the bands band 1, band 2, band 3, band 4"
    ):
        run(
            SegmentRequest(
                raster=pair[0], classes=words, output=str(tmp_path / "no.tif"), model=done.model, device=Device.CPU
            )
        )
    wrong = IndexRequest(rasters=(pair[0],), output=str(tmp_path / "no.gpkg"), model=done.model, device=Device.CPU)
    with pytest.raises(ClippanError, match="model: 4"):
        run(wrong)
    bands = "the bands band 1, band 2, band 3, band 4,"
    for refused, told in (
        (
            TrainClipRequest(data=(str(tmp_path),), output=str(tmp_path / "far"), model=done.model),
            f"takes {bands} but red, green and blue are needed here",
        ),
        (
            asked(tmp_path, pair, done.model, output=str(tmp_path / "again")),
            f"takes {bands} but red, green and blue are needed here",
        ),
        (
            FinetuneClipRequest(
                data=str(tmp_path), output=str(tmp_path / "tuned"), model=done.model, device=Device.CPU
            ),
            f"needs {bands} which folders of pictures lack",
        ),
    ):
        with pytest.raises(ClippanError, match=told):
            run(refused)


@pytest.mark.parametrize("tower", ["convolutions", "transformer"])
def test_a_student_begins_as_the_teacher(tmp_path, models, tower):
    teacher = load_model(find_model(models[tower]).path, find_model(models[tower]))
    picture = torch.rand(2, 3, 32, 32)

    def vector(loaded: Any, values: torch.Tensor) -> torch.Tensor:
        preparation = loaded.preprocessing
        mean, std = (torch.tensor(part)[:, None, None] for part in (preparation.mean, preparation.std))
        with torch.no_grad():
            return loaded.network.encode_image((values.double() - mean).div(std).float())

    def student(count: int, colours: tuple[int, ...]) -> Any:
        pairs: Any = type("Pairs", (), {})()
        pairs.rgb_bands = colours
        pairs.channels = Channels(("x",) * count, (0.0,) * count, (1.0,) * count, tuple(range(count)), count)
        return align.inflate_input(load_model(find_model(models[tower]).path, find_model(models[tower])), pairs)

    # With red, green and blue at 3, 1 and 0, whatever the two other bands hold.
    bands = torch.rand(2, 5, 32, 32)
    bands[:, [3, 1, 0]] = picture
    torch.testing.assert_close(vector(student(5, (3, 1, 0)), bands), vector(teacher, picture), rtol=1e-4, atol=1e-4)
    # Without, as the teacher that normalises all colours alike sees a grey picture.
    grey = torch.rand(2, 1, 32, 32)
    own = student(2, ())
    mean, std = np.mean(teacher.preprocessing.mean), np.mean(teacher.preprocessing.std)
    with torch.no_grad():
        expected = teacher.network.encode_image(((grey - mean) / std).expand(-1, 3, -1, -1))
    torch.testing.assert_close(vector(own, grey.expand(-1, 2, -1, -1)), expected, rtol=1e-3, atol=1e-3)


def test_the_losses_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    own, teacher = (torch.randn(6, 5, generator=generator) * 3 for _ in range(2))
    words = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    alone = torch.zeros(6, 6, dtype=torch.bool)
    norm, scale = (teacher**2).sum(1).mean(), torch.tensor(10.0)
    found = align.alignment_losses(own, teacher, norm, scale, alone, words)
    a, b, w = own.numpy(), teacher.numpy(), words.numpy()
    assert float(found["mse"]) == pytest.approx(((a - b) ** 2).sum() / (b**2).sum(), rel=1e-5)
    ua, ub = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    assert float(found["cosine"]) == pytest.approx(1 - (ua * ub).sum(1).mean(), rel=1e-5)

    def soft(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum(1, keepdims=True)

    assert float(found["label"]) == pytest.approx(
        -(soft(10 * ub @ w.T) * np.log(soft(10 * ua @ w.T))).sum(1).mean(), rel=1e-4
    )
    logits = 10 * ua @ ub.T
    crossed = -(np.diag(np.log(soft(logits))).mean() + np.diag(np.log(soft(logits.T))).mean()) / 2
    assert float(found["contrast"]) == pytest.approx(crossed, rel=1e-4)
    # Chips that overlap are no counterexamples: the first three as if the others were all.
    alike = torch.ones(6, 6, dtype=torch.bool).fill_diagonal_(False)
    alike[:3, 3:] = alike[3:, :3] = False
    found = align.alignment_losses(own, teacher, norm, scale, alike, None)
    shown = np.where(alike, -np.inf, logits)
    crossed = -(np.log(np.diag(soft(shown))).mean() + np.log(np.diag(soft(shown.T))).mean()) / 2
    assert float(found["contrast"]) == pytest.approx(crossed, rel=1e-4)
    same = align.alignment_losses(teacher, teacher, norm, scale, alone, None)
    assert float(same["mse"]) == 0
    assert float(same["cosine"]) == pytest.approx(0, abs=1e-6)
    assert "label" not in same


def test_recall_counts_ranks():
    answers = torch.eye(12)
    queries = torch.eye(12)
    queries[0] = torch.tensor([1.0] + [2.0] * 3 + [0.0] * 8)  # its own is the fourth
    found = align.recall(queries, answers)
    assert (found.at_1, found.at_5, found.at_10) == pytest.approx((11 / 12, 1, 1))
    level = align.recall(torch.ones(12, 3), torch.ones(12, 3))  # nothing tells them apart
    assert (level.at_1, level.at_5) == (0, 0)
    assert align.chance_recall(12).at_5 == pytest.approx(5 / 12)


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, pair, models):
    whole = run(asked(tmp_path, pair, models["convolutions"], output=str(tmp_path / "whole")))
    seen: list[str] = []
    stopped = Context(
        lambda percent, text: seen.append(text), cancelled=lambda: any(text.startswith("Step 4 ") for text in seen)
    )
    request = asked(tmp_path, pair, models["convolutions"])
    with pytest.raises(Cancelled):
        run(request, stopped)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["checkpoint.pt", "recipe.json"]
    resumed = run(request)
    one, other = (load_file(Path(done.model) / "open_clip_model.safetensors") for done in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.to_picture == resumed.to_picture


def test_a_sensor_in_another_crs_and_resolution_is_laid_on_the_teacher(tmp_path, pair, models):
    warped = str(tmp_path / "far.tif")
    gdal.Warp(warped, pair[1], dstSRS="EPSG:4326", resampleAlg="cubic", dstNodata=-99, xRes=1.2e-4, yRes=9e-5)
    chip = PairedChip(0, Window(64, 64, 32, 32))
    seen = []
    for number, sensor in enumerate((pair[1], warped)):
        (tmp_path / str(number)).mkdir()
        request = asked(tmp_path, (pair[0], sensor), models["convolutions"], low=(-20.0,), high=(0.0,))
        pairs = RasterPairs(request, tmp_path / str(number), Context())
        seen.append(pairs.sensor_chip(chip, 32))
        train, held = pairs.chips(request, 32, Context())
        assert len(train) > 100
        assert len(held) >= 10
        assert not any(one.window.y + 16 > other.window.y for one in train for other in held)
    assert np.abs(seen[0] - seen[1]).mean() < 0.03
    assert np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1] > 0.97


@pytest.mark.slow
def test_what_cannot_be_aligned_is_told(tmp_path, pair, models):
    _, sensed = land()
    model = models["convolutions"]

    def sentence(sensor: Any, **options: Any) -> str:
        with pytest.raises(ClippanError) as told:
            run(asked(tmp_path, (pair[0], sensor), model, **options))
        assert not (tmp_path / "run").exists()
        return str(told.value)

    far = write_raster(tmp_path / "elsewhere.tif", sensed, pixel=10.0, origin=(700000.0, 5500000.0))
    assert "has no data inside the teacher's" in sentence(far)
    half = write_raster(tmp_path / "beside.tif", sensed, pixel=10.0, origin=(500000.0, 5000000.0 - 1300))
    assert "have no data in the same places" in sentence(half, test=(), held=0.2)
    flat = sensed.copy()
    flat[2] = -7
    name = write_raster(tmp_path / "flat.tif", flat, pixel=10.0)
    assert "band band 3 of the sensor's rasters is constant inside" in sentence(name)
    assert run(asked(tmp_path, (pair[0], name), model, sensor_bands=(1, 2, 4), steps=1)).bands == (
        "band 1", "band 2", "band 4"
    )  # fmt: skip
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    flat[2] = np.nan
    assert "band 3 of the sensor's rasters has no data" in sentence(
        write_raster(tmp_path / "nan.tif", flat, pixel=10.0)
    )
    assert "Band 9 was requested" in sentence(pair[1], sensor_bands=(1, 9))
    assert "ranges (3) and bands (4) differ" in sentence(pair[1], low=(0.0,) * 3, high=(1.0,) * 3)
    assert "too small for training and held-out chips of 150" in sentence(pair[1], size=150)
    bare = write_raster(tmp_path / "bare.tif", sensed[:, :100], origin=None, epsg=None)
    assert "differs in size from the teacher's" in sentence(bare)
    with pytest.raises(ClippanError, match=r"The numbers of rasters differ \(teacher: 1, sensor: 2\)"):
        run(asked(tmp_path, ((pair[0],), (pair[1], far)), model))
    with pytest.raises(ClippanError, match="and not all"):
        run(asked(tmp_path, pair, model, test=(1,)))


def test_bands_are_found_by_name_then_by_number():
    named = Channels(("VV", "VH"), (0.0, 0.0), (1.0, 1.0), (2, 5), 6)
    assert named.band_numbers(["vh", "", "vv"]) == (3, 1)
    assert named.band_numbers([""] * 6) == (2, 5)
    assert named.band_numbers(["a", "b"]) == (1, 2)
    with pytest.raises(ClippanError, match=r"model: 2, raster: 4\); choose a raster with the bands VV, VH"):
        named.band_numbers(["vh", "vh", "vv", ""])


def test_a_description_that_is_damaged_is_told(tmp_path, models):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in Path(models["convolutions"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    values["clippan"] = {"channels": {"names": ["VV"], "low": [0.0, 1.0], "high": [1.0], "numbers": [1], "total": 1}}
    (folder / CONFIG).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ClippanError, match="does not describe the bands of the model"):
        find_model(str(folder))


def test_chips_overlap_where_their_windows_do():
    chips = [PairedChip(0, Window(x, y, 16, 16)) for x, y in ((0, 0), (15, 15), (16, 0), (28, 4))]
    found = overlaps([*chips, PairedChip(1, Window(0, 0, 16, 16))])
    assert found.astype(int).tolist() == [
        [0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def shifted(path: Path, values: np.ndarray, aside: bool, alpha: bool = False) -> str:
    """A raster on the teacher's pixels, or a third of one aside of them; its last band may be alpha."""
    name = write_raster(path, values, pixel=10.0, origin=(500000.0 + 3 * aside, 5000000.0))
    if alpha:
        dataset = gdal.Open(name, gdal.GA_Update)
        dataset.GetRasterBand(len(values)).SetColorInterpretation(gdal.GCI_AlphaBand)
    return name


@pytest.mark.parametrize("aside", [False, True])
def test_pixels_that_alpha_masks_count_for_nothing(tmp_path, pair, models, aside):
    values = np.random.default_rng(0).integers(50, 200, (3, 160, 160)).astype(np.uint8)
    values[2] = 255
    values[:, :, :80] = 0
    done = run(
        asked(tmp_path, (pair[0], shifted(tmp_path / "masked.tif", values, aside, True)), models["convolutions"])
    )
    assert done.bands == ("band 1", "band 2")
    assert min(done.low) > 45
    whole = 15 * 19
    assert done.chips < 0.6 * whole


@pytest.mark.parametrize("mark", [-9999.0, -32768.0, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("aside", [False, True])
def test_a_mark_that_nobody_declared_is_no_value(tmp_path, pair, models, mark, aside):
    _, sensed = land()
    sensed[:, :, :80] = mark
    name = shifted(tmp_path / "marked.tif", sensed, aside)
    done = run(asked(tmp_path, (pair[0], name), models["convolutions"], steps=1))
    assert min(done.low) > -100
    assert f"The raster {name} declares no nodata value; {mark:.9g} is taken as nodata" in " ".join(done.hints)
    assert done.chips < 0.6 * 15 * 19


@pytest.mark.slow
def test_land_that_is_also_trained_on_is_told(tmp_path, pair, models):
    colours, sensed = land()
    model = models["convolutions"]

    def hints(name: str, east: float, epsg: Any = 32631, **options: Any) -> str:
        place: dict[str, Any] = {"pixel": 10.0, "origin": (500000.0 + east, 5000000.0) if epsg else None, "epsg": epsg}
        other = [
            write_raster(tmp_path / f"{name}{kind}.tif", values, **place)
            for kind, values in (("rgb", colours), ("sar", sensed))
        ]
        both = tuple(zip(pair, other))
        return " ".join(
            run(asked(tmp_path, both, model, steps=1, test=(2,), output=str(tmp_path / name), **options)).hints
        )

    assert "Test pair 2 shares 100% of its area with training pair 1" in hints("same", 0)
    assert "shares 50% of its area" in hints("half", 800)
    assert "of its area" not in hints("neighbour", 1600)
    assert "of its area" not in hints("bare", 0, None)
    again = run(asked(tmp_path, tuple((one, one) for one in pair), model, steps=1, test=(2,)))
    assert "100% of its area" in " ".join(again.hints)


def test_the_teacher_is_not_replaced(tmp_path, pair, models):
    start = Path(shutil.copytree(models["convolutions"], tmp_path / "start"))
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    with pytest.raises(ClippanError, match="holds the model to start from; choose another"):
        run(asked(tmp_path, pair, str(start), output=str(start)))
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before


def test_a_cancel_after_the_last_step_says_what_is_left(tmp_path, pair, models):
    seen: list[str] = []
    stopped = Context(
        lambda percent, text: seen.append(text),
        cancelled=lambda: any(text.startswith("Step 10 ") for text in seen[:-1]),
    )
    with pytest.raises(Cancelled, match=r"^Cancelled after step 10; run the same command to resume\.$"):
        run(asked(tmp_path, pair, models["convolutions"]), stopped)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_too_little_memory_is_told(tmp_path, pair, models, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(image_tower, "optimiser_step", full)
    with pytest.raises(ClippanError, match="too little memory for the batch size 16; resume with --device cpu"):
        run(asked(tmp_path, pair, models["convolutions"]))
    assert not (tmp_path / "run").exists()


def test_every_chip_is_seen_once_an_epoch(tmp_path, pair, models, monkeypatch):
    seen: list[int] = []
    learn = align.AlignmentTraining.train_step

    def noted(self: Any, step: int, batch: Any) -> Any:
        seen.extend(batch[1].tolist())
        return learn(self, step, batch)

    monkeypatch.setattr(align.AlignmentTraining, "train_step", noted)
    done = run(asked(tmp_path, pair, models["convolutions"], overlap=0.0, steps=None, epochs=5, batch=10))
    assert done.chips == 80
    assert all(sorted(seen[80 * epoch : 80 * (epoch + 1)]) == list(range(80)) for epoch in range(5))

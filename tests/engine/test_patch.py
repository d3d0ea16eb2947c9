"""Robust fine-tuning: chips and their split, the way between two models, and what is chosen on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_raster
from osgeo import gdal, ogr, osr

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_clip import make  # noqa: E402

from clippan.catalogue.models import CONFIG, find_model  # noqa: E402
from clippan.clip.load import load_model  # noqa: E402
from clippan.core.errors import Cancelled, ClippanError  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import AlphaPoint, Context, Device, FinetuneClipRequest  # noqa: E402
from clippan.learn.clip import chips, finetuning, image_tower  # noqa: E402
from clippan.learn.clip.chips import LabelledChips  # noqa: E402

COLOURS = {"RedSoil": (200, 60, 40), "green_field": (60, 180, 60), "open-water": (30, 60, 190)}
OTHERS = {"snow": (240, 240, 250), "asphalt": (90, 90, 90)}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("models") / "small", "convolutions")


def folder(root: Path, colours: dict[str, tuple[int, int, int]], count: int = 10) -> str:
    """A folder of noisy pictures of about one colour for each class."""
    for number, (name, colour) in enumerate(colours.items()):
        (root / name).mkdir(parents=True)
        for seed in range(count):
            noise = np.random.default_rng([number, seed]).normal(0, 20, (24, 24, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{seed}.png")
    return str(root)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    return folder(tmp_path / "new", COLOURS), folder(tmp_path / "old", OTHERS)


def asked(tmp_path: Path, data: str, model: str, **options: Any) -> FinetuneClipRequest:
    values = {"output": str(tmp_path / "run"), "steps": 12, "batch": 8, "rate": 5e-3, "device": Device.CPU, **options}
    return FinetuneClipRequest(data=data, model=model, threads=1, **values)


def cut(raster: str, samples: str, size: int) -> LabelledChips:
    """The chips of a raster around samples."""
    request = FinetuneClipRequest(data=raster, output="unused", samples=samples, size=size)
    return chips.chips_from_samples(request, None, 32, Context())


def weights(path: str) -> dict[str, Any]:
    return load_file(Path(path) / "open_clip_model.safetensors")


def test_it_learns_and_lies_where_alpha_says(tmp_path, sets, model):
    done = run(asked(tmp_path, sets[0], model, control=sets[1], alpha=0.3, report=str(tmp_path / "report.html")))
    assert [point.alpha for point in done.curve] == pytest.approx([number / 10 for number in range(11)])
    assert done.curve[-1].task > done.curve[0].task
    assert done.curve[-1].task >= 0.8
    assert done.chips == 18
    assert done.alpha == 0.3
    assert done.after.alpha == 0.3
    before, after = weights(model), weights(done.model)
    tuned = torch.load(Path(done.model) / "checkpoint.pt", weights_only=True)["visual"]
    moved = 0
    for name, value in before.items():
        if name.startswith("visual.") and value.is_floating_point():
            expected = 0.7 * value + 0.3 * tuned[name[len("visual.") :]]
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)
            moved += int(not torch.equal(after[name], value))
        else:  # the words stay as they were
            assert torch.equal(after[name], value), name
    assert moved > 10
    about = json.loads((Path(done.model) / CONFIG).read_text(encoding="utf-8"))["clippan"]
    assert about["method"] == "patch"
    assert about["alpha"] == 0.3
    assert about["classes"] == ["green field", "open water", "red soil"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<polyline") == 2
    assert "asphalt" in page
    assert "NaN" not in page
    gains = {gain.name: gain for gain in done.classes}
    assert set(gains) == {"red soil", "green field", "open water", "snow", "asphalt"}
    assert gains["snow"].control
    assert gains["snow"].pictures == 5
    assert gains["red soil"].pictures == 2


def test_the_ends_of_the_way_are_the_two_models(model):
    before = {name[7:]: value for name, value in weights(model).items() if name.startswith("visual.")}
    after = {name: value + 1 if value.is_floating_point() else value for name, value in before.items()}
    visual = load_model(find_model(model).path, find_model(model)).network.visual
    for alpha, wanted in ((0.0, before), (1.0, after)):
        finetuning.interpolate_weights(visual, before, after, alpha)
        for name, value in visual.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)


def point(alpha: float, task: float, control: Any) -> AlphaPoint:
    return AlphaPoint(alpha, 0.0, None if control is None else 0.0, task, control)


def test_alpha_is_the_best_that_keeps_enough():
    points = [
        point(0, 0.1, 0.8),
        point(0.25, 0.6, 0.79),
        point(0.5, 0.9, 0.76),
        point(0.75, 0.95, 0.7),
        point(1, 1, 0.2),
    ]
    assert finetuning.choose_alpha(points, 0.95) == 0.5
    assert finetuning.choose_alpha(points, 0.8) == 0.75
    assert finetuning.choose_alpha(points, 1.0) == 0
    assert finetuning.choose_alpha(points, 0.0) == 1
    level = [point(0, 0.1, 0.8), point(0.5, 0.9, 0.8), point(1, 0.9, 0.8)]
    assert finetuning.choose_alpha(level, 0.95) == 0.5  # of equals the nearest to what it was
    assert finetuning.choose_alpha([point(0, 0.1, None), point(1, 1, None)], 0.95) == 0.5


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, sets, model):
    whole = run(asked(tmp_path, sets[0], model, output=str(tmp_path / "whole")))
    seen: list[str] = []

    def stop() -> bool:
        return any(text.startswith("Step 5 ") for text in seen)

    request = asked(tmp_path, sets[0], model)
    with pytest.raises(Cancelled):
        run(request, Context(lambda percent, text: seen.append(text), cancelled=stop))
    assert not (tmp_path / "run" / "open_clip_model.safetensors").exists()
    resumed = run(request)
    assert resumed.alpha == whole.alpha == 0.5
    assert "The loss on other classes was not measured" in " ".join(resumed.hints)
    one, other = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_split_holds_places_together_and_tells_few_ones():
    labels = np.repeat([0, 1, 2, 3], [60, 2, 1, 6])
    groups = np.concatenate([np.arange(60) // 3, [100, 101], [200], [300, 300, 300, 301, 301, 302]])
    whole = LabelledChips(("a", "b", "c", "d"), labels, groups, lambda number, edge: np.empty(0))
    parts = chips.split(whole, 0.2, 100, 3)
    own = [set(part.tolist()) for part in (parts.train, parts.validation, parts.test)]
    assert sorted(set.union(*own)) == list(range(69))
    assert sum(map(len, own)) == 69
    for one in range(3):
        for other in range(one):
            assert not {groups[number] for number in own[one]} & {groups[number] for number in own[other]}
    assert [(labels[list(part)] == 0).sum() for part in own] == [36, 12, 12]
    assert 62 in own[0]  # a class with one picture is learned
    assert [len({60, 61} & part) for part in own] == [1, 1, 0]
    limited = chips.split(whole, 0.2, 5, 3)
    assert len(limited.test) == len(limited.validation) == 5
    assert (labels[limited.test] == 3).any()


def test_few_pictures_and_wrong_words_are_told(tmp_path, sets, model):
    lone = folder(tmp_path / "lone", {"a": (1, 2, 3), "b": (200, 20, 30)}, 1)
    with pytest.raises(ClippanError, match="No class has three or more separate places"):
        run(asked(tmp_path, lone, model))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ClippanError, match="for marsh, which is not a class; the classes are green field, open water"):
        run(asked(tmp_path, sets[0], model, words="marsh=swamp; RedSoil=bare earth"))
    one = folder(tmp_path / "one", {"a": (1, 2, 3)})
    with pytest.raises(ClippanError, match=r"holds only one class \(a\)"):
        run(asked(tmp_path, one, model))
    (tmp_path / "new" / "green_field" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ClippanError, match="cannot be read"):
        run(asked(tmp_path, sets[0], model, steps=40))
    few = folder(tmp_path / "few", {"rare": (250, 250, 20)}, 1)
    for number in range(6):
        for name, colour in (("common", (20, 20, 250)), ("usual", (20, 250, 20))):
            (tmp_path / "few" / name).mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), colour).save(tmp_path / "few" / name / f"{number}.png")
    done = run(asked(tmp_path, few, model, steps=2, output=str(tmp_path / "other")))
    assert any(hint.startswith("The accuracy of rare was not measured") for hint in done.hints)
    assert next(gain for gain in done.classes if gain.name == "rare").after is None


def test_words_rename_classes(tmp_path, sets, model):
    done = run(asked(tmp_path, sets[0], model, steps=1, words="RedSoil=bare earth; open-water=lake"))
    assert {gain.name for gain in done.classes} == {"bare earth", "green field", "lake"}


def test_polygons_over_a_raster_become_chips(tmp_path, model):
    values = np.zeros((3, 200, 240), np.uint8)
    values[:, :, :120], values[:, :, 120:] = np.array([[[200]], [[60]], [[40]]]), np.array([[[30]], [[60]], [[190]]])
    raster = write_raster(tmp_path / "scene.tif", values, pixel=1.0)
    samples = polygons(tmp_path / "samples.gpkg", [("soil", 5 + 40 * n, 10) for n in range(2)] + [("soil", 45, 150)]
                       + [("water", 140, 20), ("water", 190, 20), ("water", 140, 160)])  # fmt: skip
    found = cut(raster, samples, 32)
    assert found.names == ("soil", "water")
    assert len(np.unique(found.groups)) == 6
    for number, label in enumerate(found.labels):
        middle = found.read(number, 8)[:, 4, 4]
        assert middle.tolist() == ([200, 60, 40], [30, 60, 190])[label]
    done = run(asked(tmp_path, raster, model, samples=samples, size=32))
    assert done.chips >= 2
    assert done.after.task >= done.before.task
    again = run(asked(tmp_path, raster, model, samples=str(shutil.copy(samples, tmp_path / "copy.gpkg")), size=32))
    assert again.curve == done.curve  # the run is known, and was at its end
    other = polygons(tmp_path / "other.gpkg", [("soil", 5, 10), ("water", 190, 20)])
    with pytest.raises(ClippanError, match="a run of another recipe"):
        run(asked(tmp_path, raster, model, samples=other, size=32))
    elsewhere = polygons(tmp_path / "far.gpkg", [("soil", 5000, 5000), ("water", 5100, 5000)])
    with pytest.raises(ClippanError, match=r"No sample of .* lies on the raster"):
        run(asked(tmp_path, raster, model, samples=elsewhere, output=str(tmp_path / "far")))


def polygons(path: Path, squares: list[tuple[str, int, int]]) -> str:
    """Squares of 24 pixels of the raster above, by class, column and row."""
    places = []
    for name, column, row in squares:
        x, y = 500000 + column, 5000000 - row
        ring = f"{x} {y},{x + 24} {y},{x + 24} {y - 24},{x} {y - 24},{x} {y}"
        places.append((name, f"POLYGON(({ring}))"))
    return vector(path, places)


def points(path: Path, places: list[tuple[str, float, float]]) -> str:
    """Points in the middle of pixels, by class, column and row."""
    return vector(path, [(name, f"POINT({500000.5 + column} {4999999.5 - row})") for name, column, row in places])


def vector(path: Path, places: list[tuple[str, str]]) -> str:
    """A file of classes and geometries as WKT."""
    dataset = gdal.GetDriverByName("GPKG").Create(str(path), 0, 0, 0, gdal.GDT_Unknown)
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    layer = dataset.CreateLayer("samples", reference, ogr.wkbUnknown)
    layer.CreateField(ogr.FieldDefn("class", ogr.OFTString))
    for name, text in places:
        feature = ogr.Feature(layer.GetLayerDefn())
        feature.SetField("class", name)
        feature.SetGeometry(ogr.CreateGeometryFromWkt(text))
        layer.CreateFeature(feature)
    return str(path)


def noise(path: Path, size: int = 600, **options: Any) -> str:
    return write_raster(path, np.random.default_rng(0).integers(1, 255, (3, size, size)).astype(np.uint8), **options)


@pytest.mark.parametrize(("size", "shared"), [(32, False), (64, False), (300, True)])
@pytest.mark.parametrize("apart", [True, False])
def test_what_is_held_out_shares_no_pixel_with_what_is_learned(tmp_path, size, shared, apart):
    rng = np.random.default_rng(1)
    # Three classes side by side, or one among the other.
    places = [
        (
            f"c{number % 3}",
            rng.uniform(20, 180) + (number % 3 if apart else rng.integers(3)) * 200,
            rng.uniform(20, 580),
        )
        for number in range(120)
    ]
    raster, samples = noise(tmp_path / "scene.tif"), points(tmp_path / "points.gpkg", places)
    found = cut(raster, samples, size)
    parts = chips.split_without_overlap(found, 0.2, 400, 0)
    held = np.concatenate([parts.test, parts.validation])
    for part in (parts.train, parts.validation, parts.test):
        assert set(found.labels[part]) == {0, 1, 2}
    assert len(parts.train) >= (0.1 if shared else 0.2) * len(found.labels)
    touching = chips.boxes_overlap(found.windows[held], found.windows[parts.train]).any(1)
    told = [hint for hint in parts.hints if "Held-out chips that overlap training chips" in hint]
    assert touching.any() == shared == bool(told)
    if shared:
        assert told[0].startswith(f"Held-out chips that overlap training chips: {touching.sum()} of {len(held)}.")
    else:
        assert not chips.boxes_overlap(found.windows[parts.test], found.windows[parts.validation]).any()
        assert any(hint.startswith("Chips that are not trained on, as they overlap") for hint in parts.hints)


def test_what_holds_most_of_a_class_is_learned():
    labels, groups = np.zeros(100, int), np.repeat([0, 1, 2, 3], [90, 4, 3, 3])
    for seed in range(5):
        whole = LabelledChips(("a",), labels, groups, lambda number, edge: np.empty(0))
        assert len(chips.split(whole, 0.2, 100, seed).train) >= 90


def test_near_places_of_two_classes_are_chips_of_both(tmp_path):
    rng = np.random.default_rng(0)
    places = []
    for x, y in rng.permutation([(x, y) for x in range(1, 17) for y in range(1, 17)])[:30] * 32 + 8:
        places += [("aa", x, y), ("bb", x + 6, y + 6)]
    raster, samples = noise(tmp_path / "scene.tif"), points(tmp_path / "points.gpkg", places)
    found = cut(raster, samples, 64)
    assert np.bincount(found.labels).tolist() == [30, 30]


def test_places_without_data_are_left_aside_and_told(tmp_path, model):
    values = np.random.default_rng(0).integers(1, 255, (3, 200, 200)).astype(np.uint8)
    values[:, :, 140:] = 0
    raster = write_raster(tmp_path / "scene.tif", values, nodata=0)
    places = [("ab"[number % 2], 10 + 20 * (number % 6), 10 + 30 * (number // 6)) for number in range(36)]
    beside = [("a", 180, 50), ("b", 180, 150), ("b", 90000, 50)]
    done = run(
        asked(tmp_path, raster, model, samples=points(tmp_path / "some.gpkg", places + beside), size=16, steps=1)
    )
    hints = " ".join(done.hints)
    assert "Chips that are not used, as the raster has no data around their samples: 2." in hints
    assert "Samples outside the rasters were ignored (1)" in hints
    lost = points(tmp_path / "lost.gpkg", [*places, ("c", 180, 100)])
    with pytest.raises(ClippanError, match="has no data around any sample of c; label other places, or remove"):
        run(asked(tmp_path, raster, model, samples=lost, size=16, output=str(tmp_path / "lost")))


def test_the_model_to_start_from_is_not_replaced(tmp_path, sets, model):
    start = Path(shutil.copytree(model, tmp_path / "start"))
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    for given in (start, start / "open_clip_model.safetensors"):
        with pytest.raises(ClippanError, match="holds the model to start from; choose another"):
            run(asked(tmp_path, sets[0], str(given), output=str(start)))
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before


def test_a_cancel_after_the_last_step_says_what_is_left(tmp_path, sets, model):
    seen: list[str] = []
    stopped = Context(
        lambda percent, text: seen.append(text), cancelled=lambda: any(text.startswith("Measured") for text in seen)
    )
    request = asked(tmp_path, sets[0], model)
    with pytest.raises(Cancelled, match=r"^Cancelled after step 12; run the same command to resume\.$"):
        run(request, stopped)
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert run(request).loss is None  # it had been learned


def test_too_little_memory_is_told(tmp_path, sets, model, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(image_tower, "optimiser_step", full)
    with pytest.raises(ClippanError, match=r"too little memory for the batch size 8; resume with --device cpu"):
        run(asked(tmp_path, sets[0], model))
    assert not (tmp_path / "run").exists()


def test_every_chip_has_its_turn_once_an_epoch():
    seen = np.concatenate([image_tower.epoch_indices(10, 4, step, 3) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert sorted(image_tower.epoch_indices(3, 9, 0, 0)) == sorted([0, 1, 2] * 3)

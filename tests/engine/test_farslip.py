"""FarSLIP: its losses against slow references, data from folders and shards, boxes from labels, and runs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from conftest import UTM, write_raster
from osgeo import gdal, ogr, osr
from processes import in_two

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from clippan.catalogue.models import CONFIG, MODELS, find_model  # noqa: E402
from clippan.clip import dense  # noqa: E402
from clippan.clip.encoder import load_encoder  # noqa: E402
from clippan.clip.load import LoadedModel, Preprocessing, load_model  # noqa: E402
from clippan.core.errors import Cancelled, ClippanError  # noqa: E402
from clippan.handlers import run  # noqa: E402
from clippan.jobs import Context, Device, ImageFormat, Precision, RegionsRequest, Target, Teacher, TrainClipRequest  # noqa: E402
from clippan.learn.clip import farslip as train  # noqa: E402
from clippan.learn.clip import losses  # noqa: E402
from clippan.learn.clip.batch import BatchLoader, ImageBatch, crop_boxes  # noqa: E402
from clippan.learn.clip.data import LabelledBox, TrainingImage, read_images  # noqa: E402

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "transformer": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "convolutions": {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": TEXT,
    },
}
COLOURS = {"RedSoil": (190, 70, 40), "green_field": (60, 170, 60), "open-water": (30, 60, 180)}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with a tiny model for each kind of tower."""
    root = tmp_path_factory.mktemp("models")
    for name, description in TOWERS.items():
        torch.manual_seed(1)
        (root / name).mkdir()
        config = {"model_cfg": description, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        (root / name / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        network = open_clip.CLIP(**description)
        save_file(network.state_dict(), root / name / train.WEIGHTS)
    return {name: str(root / name) for name in TOWERS}


def coloured(colour: tuple[int, int, int], seed: int, edge: int = 48) -> np.ndarray:
    """A noisy picture (edge, edge, 3) of about one colour."""
    noise = np.random.default_rng(seed).normal(0, 25, (edge, edge, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures for each class."""
    root = tmp_path_factory.mktemp("classes")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for seed in range(4):
            (root / name / f"{seed}.png").write_bytes(png(coloured(colour, seed)))
    return root


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of two halves, and a table of captions and boxes."""
    root = tmp_path_factory.mktemp("boxed")
    names = list(COLOURS)
    entries = []
    for seed in range(6):
        left, right = names[seed % 3], names[(seed + 1) % 3]
        pixels = coloured(COLOURS[left], seed, 96)
        pixels[:, 48:] = coloured(COLOURS[right], seed + 50, 96)[:, 48:]
        (root / f"{seed}.png").write_bytes(png(pixels))
        boxes = [{"box": [0, 0, 48, 96], "category": left}, {"box": [48, 0, 96, 96], "category": right}]
        boxes.append({"box": [0, 0, 10, 96], "category": right})  # narrow
        entries.append({"file": f"{seed}.png", "caption": f"{left} beside {right}, number {seed}", "boxes": boxes})
    (root / "pictures.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def learn(data: Any, output: Path, model: str, context: Optional[Context] = None, **options: Any) -> Any:
    values = {"steps": 2, "batch": 4, "least": 20, "rate": 1e-3, "threads": 1, "device": Device.CPU, **options}
    paths = tuple(map(str, data)) if isinstance(data, (tuple, list)) else (str(data),)
    return run(TrainClipRequest(data=paths, output=str(output), model=model, **values), context or Context())


def weights(folder: Path) -> dict[str, Any]:
    return load_file(str(folder / train.WEIGHTS))


# Losses


def bilinear(cells: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value of (width, rows, columns) between the centres of its cells; the border's reach outwards."""
    _, rows, columns = cells.shape
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    down, across = y - top, x - left
    upper = cells[:, top, left] * (1 - across) + cells[:, top, right] * across
    lower = cells[:, bottom, left] * (1 - across) + cells[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def box_vector(cells: np.ndarray, box: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The mean of RoIAlign's cells, sample by sample."""
    _, rows, columns = cells.shape
    left, top, right, bottom = box * [columns, rows, columns, rows] - 0.5
    high, wide = (bottom - top) / grid[0], (right - left) / grid[1]
    down, across = math.ceil(high), math.ceil(wide)  # samples of a cell
    total = np.zeros(len(cells))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(down):
                for j in range(across):
                    y, x = top + (row + (i + 0.5) / down) * high, left + (column + (j + 0.5) / across) * wide
                    total += bilinear(cells, y, x) / (down * across)
    return total / (grid[0] * grid[1])


@pytest.mark.parametrize("grid", [(7, 7), (2, 3)])
def test_distillation_is_one_minus_the_cosine_of_what_lies_in_the_box(grid):
    rng = np.random.default_rng(0)
    cells, target = rng.normal(size=(2, 5, 7, 6)), rng.normal(size=(2, 3, 5))
    boxes = np.stack([crop_boxes(rng, 3), crop_boxes(rng, 3)])
    expected = []
    for picture in range(2):
        for crop in range(3):
            seen = box_vector(cells[picture], boxes[picture, crop], grid)
            other = target[picture, crop]
            expected.append(1 - seen @ other / np.linalg.norm(seen) / np.linalg.norm(other))
    found = losses.distillation(torch.tensor(cells), torch.tensor(boxes), torch.tensor(target), grid)
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_crop_that_is_all_of_a_picture_is_no_loss():
    cells = torch.randn(2, 4, 6, 6)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 1, 4)
    assert float(losses.distillation(cells, whole, 3 * cells.mean((2, 3))[:, None], (6, 6))) == pytest.approx(
        0, abs=1e-6
    )


def reference(pictures: np.ndarray, texts: np.ndarray, scale: float, groups: list[str]) -> float:
    """The symmetric cross-entropy, number by number."""
    count, total = len(groups), 0.0
    for one, other in ((pictures, texts), (texts, pictures)):
        for i in range(count):
            logits = [
                scale * float(one[i] @ other[j]) / np.linalg.norm(one[i]) / np.linalg.norm(other[j])
                for j in range(count)
            ]
            most = max(logits)
            whole = most + math.log(sum(math.exp(value - most) for value in logits))
            friends = [j for j in range(count) if groups[j] == groups[i]]
            total -= sum(logits[j] - whole for j in friends) / len(friends) / count / 2
    return total


@pytest.mark.parametrize("groups", [list("abcde"), list("abaab"), list("aaaaa")])
def test_contrast_shares_its_targets_among_a_group(groups):
    rng = np.random.default_rng(1)
    pictures, texts = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    found = losses.contrast(torch.tensor(pictures), torch.tensor(texts), torch.tensor(7.0), groups)
    assert float(found) == pytest.approx(reference(pictures, texts, 7.0, groups), abs=1e-6)


def test_contrast_of_different_texts_is_clips():
    pictures, texts = torch.randn(6, 8), torch.randn(6, 8)
    own = open_clip.loss.ClipLoss()(
        torch.nn.functional.normalize(pictures, dim=-1), torch.nn.functional.normalize(texts, dim=-1), torch.tensor(9.0)
    )
    assert float(losses.contrast(pictures, texts, torch.tensor(9.0), list("abcdef"))) == pytest.approx(
        float(own), abs=1e-6
    )


def loader(samples: Any, stage: int, pixels: int, rank: int = 0, world_size: int = 1, **options: Any) -> BatchLoader:
    request = TrainClipRequest(data=("x",), output="y", threads=1, **options)
    return BatchLoader(samples, stage, request, pixels, rank, world_size)


def step(model: str, batch: ImageBatch, **options: Any) -> tuple[Any, dict[str, Any], train.FarslipLoss]:
    """What a step of a fresh model makes of a batch."""
    known = find_model(model)
    loaded = load_model(known.path, known)
    values = {"steps": 1, "batch": 2, **options}
    made = train.FarslipLoss(loaded, TrainClipRequest(data=("x",), output="y", model=model, **values), 1)
    total, terms = made(batch)
    return total, terms, made


@pytest.mark.parametrize("tower", list(TOWERS))
@pytest.mark.parametrize("target", list(Target))
def test_a_step_of_stage_one_is_the_sum_that_was_published(models, tower, target):
    edge = find_model(models[tower]).pixels
    rng = np.random.default_rng(2)
    pictures = torch.from_numpy(rng.integers(0, 256, (2, 3, edge, edge), np.uint8))
    crops = torch.from_numpy(rng.integers(0, 256, (6, 3, edge, edge), np.uint8))
    boxes = torch.from_numpy(np.stack([crop_boxes(rng, 3), crop_boxes(rng, 3)]).astype(np.float32))
    batch = ImageBatch(pictures, ("a road", "a river"), crops, boxes, ())
    total, terms, made = step(models[tower], batch, target=target, weight=0.3)
    assert list(terms) == ["contrast", "distillation"]
    assert float(total.detach()) == pytest.approx(float(terms["contrast"] + 0.3 * terms["distillation"]), rel=1e-5)

    with torch.no_grad():
        cells, _ = dense.dense_features(made.model, (pictures / 255 - 0.5) / 0.25)
        own, own_pooled = dense.dense_features(made.model, (crops / 255 - 0.5) / 0.25)
    wanted = own.mean((2, 3)) if target is Target.PATCH else own_pooled
    expected = []
    for crop in range(6):
        seen = box_vector(cells[crop // 3].double().numpy(), boxes[crop // 3, crop % 3].double().numpy(), own.shape[2:])
        other = wanted[crop].double().numpy()
        expected.append(1 - seen @ other / np.linalg.norm(seen) / np.linalg.norm(other))
    assert float(terms["distillation"]) == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize(("teacher", "flows"), [(None, True), ("other", False)])
def test_without_a_teacher_the_gradient_flows_through_both_sides(models, teacher, flows):
    rng = np.random.default_rng(3)
    crops = torch.from_numpy(rng.integers(0, 256, (2, 3, 32, 32), np.uint8))
    batch = ImageBatch(crops, ("a", "b"), crops, torch.tensor([[[0.0, 0.0, 0.8, 0.8]]] * 2), ())
    known = find_model(models["transformer"])
    made = train.FarslipLoss(load_model(known.path, known), TrainClipRequest(data=("x",), output="y", weight=1.0), 1)
    seen: list[bool] = []
    features = dense.dense_features

    def watched(model: Any, pictures: Any) -> Any:
        cells, pooled = features(model, pictures)
        seen.append(cells.requires_grad)
        return cells, pooled

    if teacher:
        made.teacher = made.model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "dense_features", watched)
        made(batch)
    assert seen == [True, flows]


# Data


def shard(path: Path, files: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def test_classes_are_read_from_the_names_of_folders(classes):
    samples = read_images([str(classes)], "caption", Context())
    assert len(samples) == 12
    assert list(dict.fromkeys(sample.category for sample in samples)) == ["red soil", "green field", "open water"]
    assert samples[0].texts == ("a satellite image of red soil",)
    assert samples[0].objects(64) == (LabelledBox((), "red soil"),)


def test_shards_a_table_and_json_hold_the_same_samples(boxed, tmp_path):
    entries = json.loads((boxed / "pictures.json").read_text(encoding="utf-8"))
    files: dict[str, bytes] = {}
    for entry in entries:
        stem = entry["file"].partition(".")[0]
        files[f"part/{stem}.txt"] = f"{entry['caption']}\n".encode()
        files[f"part/{stem}.png"] = (boxed / entry["file"]).read_bytes()
        files[f"part/{stem}.json"] = json.dumps({"boxes": entry["boxes"], "caption": entry["caption"]}).encode()
    (tmp_path / "shards").mkdir()
    names = sorted(files)
    shard(tmp_path / "shards" / "0000.tar", {name: files[name] for name in names[:9]})
    shard(tmp_path / "shards" / "0001.tar", {name: files[name] for name in names[9:]})

    (tmp_path / "table").mkdir()
    with (tmp_path / "table" / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption", "xmin", "ymin", "xmax", "ymax", "category"])
        for entry in entries:
            (tmp_path / "table" / entry["file"]).write_bytes((boxed / entry["file"]).read_bytes())
            writer.writerow([entry["file"], entry["caption"]])
            writer.writerows([entry["file"], "", *box["box"], box["category"]] for box in entry["boxes"])

    found = [
        read_images([str(path)], "caption", Context()) for path in (boxed, tmp_path / "shards", tmp_path / "table")
    ]
    for stage in (1, 2):
        batches = [loader(samples, stage, 32, crops=2, least=20, batch=4)(1) for samples in found]
        for other in batches[1:]:
            assert other.texts == batches[0].texts
            assert other.categories == batches[0].categories
            assert torch.equal(other.pictures, batches[0].pictures)
            assert torch.equal(other.crops, batches[0].crops)
            assert torch.equal(other.boxes, batches[0].boxes)
    assert [sample.captions for sample in found[1]] == [(entry["caption"],) for entry in entries]
    one = read_images([str(tmp_path / "shards" / "0001.tar"), str(boxed)], "caption", Context())
    assert len(one) == 9


def test_a_crop_shows_what_its_box_says(tmp_path):
    rows, columns = np.mgrid[:64, :64]
    (tmp_path / "ramp").mkdir()
    (tmp_path / "ramp" / "0.png").write_bytes(png(np.stack([columns * 4, rows * 4, 0 * rows], -1).astype(np.uint8)))
    batch = loader(read_images([str(tmp_path)], "caption", Context()), 1, 64, crops=8, batch=2)(0)
    assert batch.pictures.shape == (2, 3, 64, 64)
    assert batch.boxes.shape == (2, 8, 4)
    for crop, (left, top, right, bottom) in zip(batch.crops.float(), batch.boxes.reshape(-1, 4)):
        assert float(crop[0].mean()) == pytest.approx(255 * float(left + right) / 2, abs=3)
        assert float(crop[1].mean()) == pytest.approx(255 * float(top + bottom) / 2, abs=3)


def test_crops_are_as_large_as_published():
    boxes = crop_boxes(np.random.default_rng(0), 4000)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (width * height).min() == pytest.approx(0.3, abs=0.01)
    assert (width * height).max() == pytest.approx(0.7, abs=0.01)
    assert (width / height).min() == pytest.approx(3 / 4, abs=0.01)
    assert (width / height).max() == pytest.approx(4 / 3, abs=0.01)


def test_every_picture_comes_once_an_epoch_and_processes_share_the_row(classes):
    samples = read_images([str(classes)], "caption", Context())
    alone = loader(samples, 1, 16, crops=1, batch=6, seed=5)
    drawn = torch.cat([alone(number).pictures for number in range(2)])
    assert len({picture.numpy().tobytes() for picture in drawn}) == len(samples)
    shared = [loader(samples, 1, 16, rank, 2, crops=1, batch=3, seed=5)(1) for rank in range(2)]
    assert torch.equal(torch.cat([batch.crops for batch in shared]), alone(1).crops)
    assert shared[0].texts + shared[1].texts == alone(1).texts


def test_small_boxes_are_left_out(boxed):
    samples = read_images([str(boxed)], "caption", Context())
    assert [len(sample.objects(20)) for sample in samples] == [2] * 6
    assert [len(sample.objects(5)) for sample in samples] == [3] * 6
    assert set(loader(samples, 2, 16, crops=4, least=20, batch=6)(0).categories) == set(COLOURS)
    assert len(loader(samples, 2, 16, crops=1, least=20, batch=6)(0).categories) == 6


def test_several_categories_make_a_sentence():
    regions = tuple(LabelledBox((0, 0, 9, 9), name) for name in ("road", "water", "road", "trees"))
    assert TrainingImage("x", "x", regions=regions).texts == ("a satellite image of road, water and trees",)
    assert TrainingImage("x", "x", regions=regions[:2]).texts == ("a satellite image of road and water",)
    assert TrainingImage("x", "x", ("Words.",), "road", regions).texts == ("Words.",)


def entries(*boxes: Any, **more: Any) -> str:
    return json.dumps([{"file": "a.png", "boxes": list(boxes), **more}])


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("t.csv", "file,words\na.png,x\n", "has neither a column caption nor a column category; add one"),
        ("t.csv", "picture,caption\na.png,x\n", "has no column file; add it"),
        ("t.csv", "file,caption\nb.png,x\n", "b.png, which t.csv lists, does not exist"),
        ("t.csv", "file,caption\na.png,\n", "has neither a caption nor a category"),
        ("t.csv", "file,caption,xmin,ymin,xmax,ymax,category\na.png,,1,1,5,,water\n", "is invalid"),
        ("t.csv", "file,caption,xmin,ymin,xmax,ymax,category\na.png,,1,1,5,5,\n", "is invalid"),
        ("t.csv", "file,caption\n", "holds no pictures"),
        ("t.json", "{", "is not valid JSON"),
        ("t.json", "{}", "is not a list of entries with a file each"),
        (
            "t.json",
            entries({"box": [0, 0, 5, 49], "category": "water"}),
            "The box 0, 0, 5, 49 lies outside the picture",
        ),
        ("t.json", entries({"box": [5, 0, 5, 9], "category": "water"}), "write it as left, top, right, bottom"),
        ("t.json", entries({"box": [5, 0, 5], "category": "water"}), "write it as left, top, right, bottom"),
        ("t.json", entries({"box": [0, 0, 5, 9]}), "is invalid"),
        ("t.json", entries({"box": [0, 0, 5, 9], "category": ""}), "is invalid"),
        ("t.json", entries(caption=3), "is invalid"),
        ("t.tar", "no archive", "is not a plain .tar"),
        ("t.xml", "", "is not a format of training data"),
    ],
)
def test_data_that_cannot_be_meant_are_told_and_nothing_is_left(models, tmp_path, file, content, told):
    (tmp_path / "a.png").write_bytes(png(coloured((9, 9, 9), 0)))
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(ClippanError, match=told) as caught:
        learn(tmp_path / file, tmp_path / "run", models["transformer"])
    assert str(caught.value).endswith(".")
    assert not (tmp_path / "run").exists()


def test_other_data_that_cannot_be_meant(classes, boxed, models, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(coloured((9, 9, 9), 0)))
    (tmp_path / "two").mkdir()
    for name in ("a.csv", "b.json"):
        (tmp_path / "two" / name).touch()
    small = [boxed]
    for data, told, options in (
        (tmp_path / "nowhere", "nowhere do not exist", {}),
        (tmp_path / "empty", "holds no pictures", {}),
        (tmp_path / "flat", "put it in a folder with the name of its class", {}),
        (tmp_path / "two", "holds several tables; give one", {}),
        (small, "No picture has a category or a box of at least 200 pixels", {"least": 200}),
        (classes, "only takes pictures of 32 pixels", {"pixels": 64}),
    ):
        with pytest.raises(ClippanError, match=told):
            learn(data, tmp_path / "run", models["transformer"], **options)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ClippanError, match="choose a multiple of 32"):
        learn(classes, tmp_path / "run", models["convolutions"], pixels=50)
    assert not (tmp_path / "run").exists()
    for name, value, told in (
        ("stages", (2, 1), "The stages are 1, 2 or 1,2"),
        ("batch", 1, "“Batch size” is 1; it has to be 2 or more"),
        ("rate", 0.0, "“Learning rate” is 0"),
        ("model", "nothing", "Unknown model 'nothing'"),
    ):
        with pytest.raises(ClippanError, match=told):
            run(TrainClipRequest(**{"data": (str(classes),), "output": "x", "model": models["resnet"], name: value}))


def test_a_picture_that_is_none_is_told(models, tmp_path):
    (tmp_path / "d" / "water").mkdir(parents=True)
    (tmp_path / "d" / "water" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ClippanError, match=r"a.jpg cannot be read \(.*\); repair or remove it"):
        learn(tmp_path / "d", tmp_path / "run", models["transformer"])
    assert not (tmp_path / "run").exists()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "d" / "water" / "a.png")
    (tmp_path / "d" / "water" / "a.jpg").unlink()
    with pytest.raises(ClippanError, match="has more than eight bits; convert it with clippan regions"):
        learn(tmp_path / "d", tmp_path / "run", models["transformer"])


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["transformer", "convolutions"])
def test_a_training_learns_and_its_folder_is_a_model(classes, boxed, models, tower, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_LOG_EVERY", 5)
    base = load_model(find_model(models[tower]).path, find_model(models[tower])).network.state_dict()
    lines: list[str] = []
    seen: list[float] = []
    context = Context(lambda percent, message: seen.append(percent), lines.append)
    result = learn((classes, boxed), tmp_path / "run", models[tower], context, steps=15, batch=6, weight_decay=0.1)
    files = ["checkpoint.pt", "curves.csv", "open_clip_config.json", "open_clip_model.safetensors", "recipe.json"]
    assert sorted(os.listdir(tmp_path / "run")) == files
    assert (result.pictures, result.objects, result.steps) == (18, 24, (15, 15))
    assert seen == sorted(seen)
    assert lines[1] == "Training pictures: 18, objects for stage 2: 24, steps: 30."
    with (tmp_path / "run" / "curves.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["step", "contrast", "distillation", "regions"]
    assert [row[0] for row in rows] == ["5", "10", "15", "20", "25", "30"]
    assert [bool(row[2]) for row in rows] == [True] * 3 + [False] * 3
    assert float(rows[2][1]) < float(rows[0][1])
    assert float(rows[5][3]) < float(rows[3][3])
    assert result.losses["regions"] == pytest.approx(float(rows[5][3]), rel=1e-4)

    trained = weights(tmp_path / "run")
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)
    assert not [name for name in changed if "running" in name or "num_batches" in name]
    monkeypatch.chdir(tmp_path)
    used = load_encoder("run", Device.CPU, Context())
    assert used.spec.label == "run"
    pictures = np.stack([coloured(colour, 99, used.image_size).transpose(2, 0, 1) for colour in COLOURS.values()])
    cosines = used.encode_images(pictures) @ used.encode_texts(["red soil", "green field", "open water"]).T
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    about = json.loads((tmp_path / "run" / CONFIG).read_text(encoding="utf-8"))["clippan"]
    assert (about["base"], about["method"], about["stages"], about["steps"]) == (
        find_model(models[tower]).id, "farslip", [1, 2], [15, 15]
    )  # fmt: skip


@pytest.mark.parametrize("teacher", list(Teacher))
def test_teachers(classes, models, teacher, tmp_path):
    result = learn(classes, tmp_path / "run", models["transformer"], stages=(1,), teacher=teacher)
    assert set(result.losses) == {"contrast", "distillation"}
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    start = load_model(find_model(models["transformer"]).path, find_model(models["transformer"])).network.visual
    if teacher is Teacher.ACTIVE:
        assert kept["teacher"] == {}
        return
    near = max(float((kept["teacher"][name] - value).abs().max()) for name, value in start.state_dict().items())
    assert near == 0 if teacher is Teacher.FROZEN else 0 < near < 1e-4


class Killed(Exception):
    """The power went out."""


@pytest.mark.parametrize(
    ("end", "after", "teacher"), [(Cancelled, 2, Teacher.EMA), (Cancelled, 5, Teacher.ACTIVE), (Killed, 5, Teacher.EMA)]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(boxed, models, end, after, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "_LOG_EVERY", 2)
    options = {"steps": 3, "teacher": teacher}
    learn(boxed, tmp_path / "whole", models["transformer"], **options)

    def stop(percent: float, message: str) -> None:
        if message == f"Step {after} of 6":
            raise end()

    with pytest.raises(end) as caught:
        learn(boxed, tmp_path / "parts", models["transformer"], Context(stop), **options)
    if end is Cancelled:
        assert str(caught.value) == f"Cancelled after step {after}; run the same command to resume."
    assert not (tmp_path / "parts" / train.WEIGHTS).exists()
    lines: list[str] = []
    learn(boxed, tmp_path / "parts", models["transformer"], Context(log=lines.append), **options)
    assert f"Resuming after step {after if end is Cancelled else 4}." in lines
    for name in (train.WEIGHTS, "curves.csv", "recipe.json", CONFIG):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    with pytest.raises(ClippanError, match="holds the model to start from; choose another"):
        learn(boxed, tmp_path / "whole", str(tmp_path / "whole"), **options)
    with pytest.raises(ClippanError, match="holds a run of another recipe; choose an empty folder"):
        learn(boxed, tmp_path / "parts", models["transformer"], **{**options, "steps": 4})


def test_epochs_count_the_pictures(classes, boxed, models, tmp_path):
    result = learn((classes, boxed), tmp_path / "run", models["transformer"], steps=None, epochs=2, batch=8, least=200)
    assert result.steps == (5, 3)  # 18 pictures and 12 that are objects as a whole, twice, 8 at a time


def test_options_of_a_run(classes, models, tmp_path):
    base = load_model(find_model(models["transformer"]).path, find_model(models["transformer"])).network.state_dict()
    learn(classes, tmp_path / "text", models["transformer"], stages=(2,), train_text=True)
    trained = weights(tmp_path / "text")
    assert not torch.equal(trained["token_embedding.weight"], base["token_embedding.weight"])
    assert float(trained["logit_scale"]) != float(base["logit_scale"])
    half = learn(classes, tmp_path / "half", models["transformer"], stages=(1,), precision=Precision.BFLOAT16)
    full = learn(classes, tmp_path / "full", models["transformer"], stages=(1,))
    assert list(half.losses.values()) == pytest.approx(list(full.losses.values()), rel=0.05)
    assert half.losses != full.losses
    plain = learn(classes, tmp_path / "plain", models["transformer"], stages=(1,), weight=0.0)
    assert set(plain.losses) == {"contrast"}
    smaller = learn(classes, tmp_path / "smaller", models["convolutions"], stages=(1,), pixels=32)
    assert set(smaller.losses) == {"contrast", "distillation"}


def test_a_saved_architecture_says_how_it_was_trained(tmp_path):
    """open_clip's name of an architecture is not enough: activation and length of texts come with the weights."""
    description = {**TOWERS["transformer"], "text_cfg": {**TEXT, "context_length": 77}}
    (tmp_path / "tiny-farslip.json").write_text(json.dumps(description), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    known = MODELS["farslip2-b16"]
    base = type(known)(**{**vars(known), "architecture": "tiny-farslip", "pixels": 32})
    torch.manual_seed(4)
    long = {**description, "quick_gelu": True, "text_cfg": {**TEXT, "context_length": 248}}
    loaded = LoadedModel(open_clip.CLIP(**long).eval(), lambda texts: None, Preprocessing(base.mean, base.std, 32))
    (tmp_path / "out").mkdir()
    train.save_model(tmp_path / "out", loaded, base, tmp_path / "x.pt", "", {})
    found = find_model(str(tmp_path / "out"))
    assert (found.activation, found.pixels, found.mean) == ("quickgelu", 32, base.mean)
    again = load_model(found.path, found)
    assert again.tokenizer(["a road"]).shape == (1, 248)
    picture = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.network.encode_image(picture), loaded.network.encode_image(picture))


def test_the_files_of_a_tokenizer_come_along(models, tmp_path):
    (tmp_path / "base").mkdir()
    config = {"model_cfg": {**TOWERS["transformer"], "text_cfg": {**TEXT, "hf_tokenizer_name": "some/tokenizer"}}}
    for name, text in ((CONFIG, json.dumps(config)), ("tokenizer.json", "{}"), ("notes.txt", "mine")):
        (tmp_path / "base" / name).write_text(text, encoding="utf-8")
    (tmp_path / "base" / train.WEIGHTS).write_bytes((Path(models["transformer"]) / train.WEIGHTS).read_bytes())
    base = find_model(str(tmp_path / "base"))
    plain = load_model(find_model(models["transformer"]).path, find_model(models["transformer"]))
    (tmp_path / "out").mkdir()
    train.save_model(tmp_path / "out", plain, base, base.path, "", {})
    assert sorted(os.listdir(tmp_path / "out")) == [CONFIG, train.WEIGHTS, "tokenizer.json"]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_double_batch(boxed, models, tmp_path):
    options = {"steps": 3, "least": 20, "rate": 1e-3, "threads": 1, "model": models["transformer"], "device": "cpu"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["train", "clip", "--data", str(boxed), "--batch", "3", "--train-text", "--warmup", "0", *words]
    done, (first, second) = in_two(tmp_path, "self.loaded.network.state_dict()", command)
    assert done.stderr.count("Step 6: contrast") == 1  # one of them tells
    assert done.stdout.count("pictures: 6, objects: 12, steps: 3 + 3") == 1
    assert all(torch.equal(first[name], second[name]) for name in first)
    learn(boxed, tmp_path / "alone", models["transformer"], steps=3, batch=6, train_text=True, warmup=0)
    alone, start = (
        weights(tmp_path / "alone"),
        load_model(find_model(models["transformer"]).path, find_model(models["transformer"])),
    )
    moved = {name: (alone[name] - value).abs().max() for name, value in start.network.state_dict().items()}
    apart = {name: float((first[name] - value).abs().max()) for name, value in alone.items()}
    assert float(moved["visual.conv1.weight"]) > 1e-3
    assert max(apart.values()) < 0.05 * float(moved["visual.conv1.weight"]), apart


# Boxes from labels


def found(folder: Path) -> dict[str, list[tuple[tuple[float, ...], str]]]:
    """What a table of regions says: for each picture its boxes."""
    table = json.loads((folder / "regions.json").read_text(encoding="utf-8"))
    return {entry["file"]: [(tuple(box["box"]), box["category"]) for box in entry["boxes"]] for entry in table}


@pytest.fixture
def land(tmp_path):
    """A raster of 100 × 80 pixels, and its classes: 1 in two places, 2 in one, and a thin diagonal of 3."""
    classes = np.zeros((80, 100), np.uint8)
    classes[10:30, 5:45] = 1
    classes[50:80, 60:100] = 1
    classes[40:70, 10:40] = 2
    for place in range(45, 75):
        classes[place - 45, place] = 3
    pixels = np.random.default_rng(0).integers(0, 256, (3, 80, 100), np.uint8)
    return write_raster(tmp_path / "land.tif", pixels), classes


def request(raster: str, labels: str, output: Path, **options: Any) -> RegionsRequest:
    values = {"legend": "1=forest; 2=open water; 3=road", "size": 100, "overlap": 0.0, **options}
    return RegionsRequest(rasters=(raster,), labels=(labels,), output=str(output), **values)


def test_boxes_of_a_mask(land, tmp_path):
    raster, classes = land
    mask = write_raster(tmp_path / "mask.tif", classes, epsg=None, origin=None)
    lines: list[float] = []
    result = run(
        request(raster, mask, tmp_path / "out", size=80), Context(lambda percent, message: lines.append(percent))
    )
    boxes = found(tmp_path / "out")
    # two pictures of 80 pixels cover 100
    expected = {
        "pictures/1_land_0_0.png": {
            ((5, 10, 45, 30), "forest"),
            ((60, 50, 80, 80), "forest"),
            ((10, 40, 40, 70), "open water"),
        },
        "pictures/1_land_20_0.png": {
            ((0, 10, 25, 30), "forest"),
            ((40, 50, 80, 80), "forest"),
            ((0, 40, 20, 70), "open water"),
        },
    }
    assert {name: set(places) for name, places in boxes.items()} == expected
    assert (result.pictures, result.objects) == (2, {"forest": 4, "open water": 2})
    assert result.hints == ("These classes of the legend were not found: road.",)
    assert lines == sorted(lines)
    picture = np.asarray(Image.open(tmp_path / "out" / "pictures" / "1_land_20_0.png"))
    assert np.array_equal(picture.transpose(2, 0, 1), gdal.Open(raster).ReadAsArray()[:, :, 20:])
    samples = read_images([str(tmp_path / "out")], "caption", Context())
    assert samples[0].texts[0].startswith("a satellite image of ")
    with pytest.raises(ClippanError, match="is not empty; choose a new or an empty folder"):
        run(request(raster, mask, tmp_path / "out"))


@pytest.mark.parametrize("palette", [False, True])
def test_boxes_of_a_mask_of_colours(land, tmp_path, palette):
    raster, classes = land
    colours = np.array([[0, 0, 0], [0x3C, 0x10, 0x98], [0xE2, 0xA9, 0x29], [9, 9, 9]], np.uint8)
    picture = Image.fromarray(classes, "P") if palette else Image.fromarray(colours[classes])
    if palette:
        picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "mask.png")
    legend = {"#3c1098": "building", "#E2A929": "water"}
    (tmp_path / "legend.json").write_text(json.dumps(legend), encoding="utf-8")
    result = run(
        request(
            raster,
            str(tmp_path / "mask.png"),
            tmp_path / "out",
            legend=str(tmp_path / "legend.json"),
            format=ImageFormat.JPEG,
        )
    )
    assert result.objects == {"building": 4, "water": 2}
    assert all(name.endswith(".jpeg") for name in found(tmp_path / "out"))


def layer(path: Path, shapes: list[tuple[str, str]], epsg: Optional[int] = UTM) -> str:
    """A GeoJSON or GeoPackage with a field ``kind``: (category, WKT) each."""
    driver = ogr.GetDriverByName("GPKG")
    source = driver.CreateDataSource(str(path))
    reference = None
    if epsg:
        reference = osr.SpatialReference()
        reference.ImportFromEPSG(epsg)
        reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    made = source.CreateLayer("shapes", reference, ogr.wkbUnknown)
    made.CreateField(ogr.FieldDefn("kind", ogr.OFTString))
    for kind, text in shapes:
        feature = ogr.Feature(made.GetLayerDefn())
        feature.SetField("kind", kind)
        feature.SetGeometry(ogr.CreateGeometryFromWkt(text))
        made.CreateFeature(feature)
    return str(path)


def rectangle(left: float, top: float, right: float, bottom: float) -> str:
    """In the coordinates of the raster, whose pixels of a metre begin at 500000, 5000000."""
    x, y = (500000 + left, 500000 + right), (5000000 - top, 5000000 - bottom)
    return f"POLYGON(({x[0]} {y[0]},{x[1]} {y[0]},{x[1]} {y[1]},{x[0]} {y[1]},{x[0]} {y[0]}))"


SHAPES = [
    ("house", rectangle(10, 20, 40.5, 50)),
    ("house", rectangle(40.5, 20, 60, 50)),  # touches the first
    ("pool", rectangle(70, 60, 120, 90)),  # reaches outside
    ("shed", rectangle(0, 0, 5, 5)),  # small
    ("well", "POINT(500050 4999950)"),
    ("", rectangle(0, 0, 50, 50)),
]


def test_boxes_of_polygons(land, tmp_path):
    raster, _ = land
    labels = layer(tmp_path / "shapes.gpkg", SHAPES)
    run(request(raster, labels, tmp_path / "out", legend="", field="kind", size=80))
    boxes = {name: set(places) for name, places in found(tmp_path / "out").items()}
    assert boxes["pictures/1_land_20_0.png"] == {
        ((0, 20, 21, 50), "house"), ((20, 20, 40, 50), "house"), ((50, 60, 80, 80), "pool")
    }  # fmt: skip
    result = run(request(raster, labels, tmp_path / "named", legend="house=building", field="kind", least=25))
    assert result.objects == {"building": 1}


def test_boxes_of_polygons_in_another_crs(land, tmp_path):
    raster, _ = land
    there, here = osr.SpatialReference(), osr.SpatialReference()
    for reference, code in ((there, 4326), (here, UTM)):
        reference.ImportFromEPSG(code)
        reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    transform = osr.CoordinateTransformation(here, there)
    moved = []
    for kind, text in SHAPES:
        geometry = ogr.CreateGeometryFromWkt(text)
        geometry.Transform(transform)
        moved.append((kind, geometry.ExportToWkt()))
    labels = layer(tmp_path / "shapes.gpkg", moved, 4326)
    run(request(raster, labels, tmp_path / "out", legend="", field="kind", size=80, overlap=0.0))
    near = sorted(box for places in found(tmp_path / "out").values() for box, _ in places)
    straight = layer(tmp_path / "straight.gpkg", SHAPES)
    run(request(raster, straight, tmp_path / "straight", legend="", field="kind", size=80))
    exact = sorted(box for places in found(tmp_path / "straight").values() for box, _ in places)
    assert np.abs(np.array(near) - np.array(exact)).max() <= 1  # a pixel more, where an edge lies on one


def test_categories_that_come_to_nothing_are_named(land, tmp_path):
    raster, _ = land
    shapes = [*SHAPES, ("mill", rectangle(900, 20, 960, 50)), ("shed", rectangle(900, 0, 950, 50))]
    labels = layer(tmp_path / "shapes.gpkg", shapes)
    result = run(request(raster, labels, tmp_path / "out", legend="", field="kind", size=80))
    assert set(result.objects) == {"house", "pool"}
    assert "All polygons of mill lie outside the rasters." in result.hints
    assert any(hint.startswith("No polygon of shed was used") for hint in result.hints)
    alone = layer(tmp_path / "alone.gpkg", shapes[-2:])
    with pytest.raises(ClippanError, match="No label lies on the rasters"):
        run(request(raster, alone, tmp_path / "none", legend="", field="kind", size=80))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"legend": ""}, "The meaning of the values of the mask"),
        ({"legend": "1:forest"}, "is not understood; write it like 1=water; 2=forest"),
        ({"legend": "1=forest; #112233=water"}, "mixes colours and numbers"),
        ({"legend": "#112233=water"}, "has colours, but the mask"),
        ({"legend": "trees=forest"}, "whole numbers or colours"),
        ({"legend": "7=forest"}, "No object is large enough or fills enough of its box"),
        ({"legend": "nowhere.json"}, "The file nowhere.json cannot be read"),
        ({"labels": "small"}, "has 50 × 40 pixels and its raster 100 × 80"),
        ({"labels": "shapes"}, "has no field class; choose one of its fields"),
        ({"labels": "shapes", "field": "kind", "legend": "barn=building"}, "no polygon whose class in the field kind"),
        ({"labels": "nothing"}, "does not exist"),
        ({"size": 5}, "“Edge of the pictures” is 5"),
    ],
)
def test_labels_that_cannot_be_meant_are_told_and_nothing_is_left(land, tmp_path, options, told):
    raster, classes = land
    files = {
        "mask": write_raster(tmp_path / "mask.tif", classes),
        "small": write_raster(tmp_path / "small.tif", classes[::2, ::2]),
        "shapes": layer(tmp_path / "shapes.gpkg", SHAPES),
        "nothing": str(tmp_path / "nothing.tif"),
    }
    labels = files[options.pop("labels", "mask")]
    with pytest.raises(ClippanError, match=told) as caught:
        run(request(raster, labels, tmp_path / "out", **options))
    assert str(caught.value).endswith(".")
    assert not list(tmp_path.glob("out*"))


def test_polygons_need_a_raster_with_a_place(tmp_path):
    raster = write_raster(tmp_path / "r.tif", np.zeros((3, 80, 100), np.uint8), origin=None, epsg=None)
    with pytest.raises(ClippanError, match="has no coordinates to place polygons by; georeference it, or use a mask"):
        run(request(raster, layer(tmp_path / "s.gpkg", SHAPES), tmp_path / "out", legend="", field="kind"))


def test_a_cancelled_conversion_leaves_nothing(land, tmp_path):
    raster, classes = land
    mask = write_raster(tmp_path / "mask.tif", classes)
    context = Context(cancelled=lambda: True)
    with pytest.raises(Cancelled):
        run(request(raster, mask, tmp_path / "out"), context)
    assert not list(tmp_path.glob("out*"))

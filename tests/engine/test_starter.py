"""The starter CLIP that ships: loads as open_clip loads it, knows its words, and finds held-out pictures by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clippan.catalogue.models import find_model
from clippan.clip.load import load_model

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "resources" / "starter-clip"
DATA = ROOT.parent / "shared" / "data"
WEIGHTS = FOLDER / "open_clip_model.safetensors"

if not WEIGHTS.is_file():
    pytest.skip("the starter CLIP is not in this checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def ours():
    model = find_model(str(FOLDER))
    return load_model(model.path, model)


@pytest.fixture(scope="module")
def theirs():
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1)


@torch.inference_mode()
def read(model, texts):
    return unit(model.network.encode_text(model.tokenizer(texts)))


def test_small_enough_for_the_plugin():
    assert WEIGHTS.stat().st_size <= 25.5e6


def test_plain_open_clip_and_ours_agree(ours, theirs):
    model, preprocess, tokenizer = theirs
    texts = ["a satellite photo of a river.", "", "car park next to a forest " * 12]
    pictures = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(tokenizer(texts), ours.tokenizer(texts))
        assert torch.equal(model.encode_text(tokenizer(texts)), ours.network.encode_text(ours.tokenizer(texts)))
        assert torch.equal(model.encode_image(pictures), ours.network.encode_image(pictures))
    normalize = preprocess.transforms[-1]
    assert tuple(normalize.mean) == ours.preprocessing.mean
    assert tuple(normalize.std) == ours.preprocessing.std


def test_description_holds_what_the_loader_must_not_guess():
    values = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    assert values["model_cfg"]["vision_cfg"]["timm_model_pretrained"] is False, "loading must not ask the network"
    assert values["preprocess_cfg"]["mean"] == values["preprocess_cfg"]["std"] == [0.5, 0.5, 0.5]
    assert "hf_tokenizer_name" not in values["model_cfg"]["text_cfg"], "that needs a package that is not installed"


def test_numbers_are_finite_in_half_precision():
    from safetensors.torch import load_file

    weights = load_file(str(WEIGHTS))
    assert all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point())
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("asked", "near", "far"),
    [
        ("a satellite photo of woodland", "forest", "parking lot"),
        ("many ships in the harbour", "harbor", "tennis court"),
        ("houses with gardens", "residential area", "river"),
        ("RIVER", "a winding river", "airport"),
        ("a road bridge across the river", "bridge", "golf course"),
        ("sand dunes without any plants", "desert", "forest"),
        ("planes beside the terminal", "airport", "wetland"),
    ],
)
def test_texts_of_one_meaning_are_near(ours, asked, near, far):
    question, good, bad = read(ours, [asked, near, far])
    assert question @ good > question @ bad + 0.2


def test_words_outside_its_vocabulary_are_not_land_cover(ours):
    land = read(ours, ["forest", "river", "residential area", "harbor", "highway", "beach"])
    assert (read(ours, ["a trumpet concerto", "tax law"]) @ land.T).max() < 0.5


@torch.inference_mode()
def test_plain_pictures_are_ranked(ours):
    """Drawn here: of dark blue and bright green, the blue is more of a sea, and the green more of a meadow."""
    edge = ours.preprocessing.image_size
    noise = np.random.default_rng(0).normal(0, 3, (2, edge, edge, 3))
    pixels = np.array([[22, 50, 78], [105, 145, 75]])[:, None, None] + noise
    pictures = torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).float()
    texts = read(ours, [f"a satellite photo of {name}" for name in ("sea", "meadow")])
    alike = unit(ours.network.encode_image(pictures)) @ texts.T
    assert alike[0, 0] > alike[0, 1]
    assert alike[0, 0] > alike[1, 0]
    assert alike[1, 1] > alike[0, 1]


@torch.inference_mode()
def test_pictures_of_other_sizes_give_like_features(ours):
    """At multiples of 32, as the model card asks; the dense map's mean goes where the pooled features go."""
    draw = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, 3, 7, 7, generator=draw) * 1.4 - 0.7
    visual = ours.network.visual
    features = []
    for edge in (224, 192, 256):
        picture = torch.nn.functional.interpolate(coarse, (edge, edge), mode="bicubic", align_corners=False)
        features.append(unit(ours.network.encode_image(picture)))
        dense = visual.head(visual.trunk.forward_features(picture).permute(0, 2, 3, 1))
        assert torch.allclose(unit(dense.mean((1, 2))), features[-1], atol=1e-4)
    assert all((features[0] * other).sum() > 0.9 for other in features[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "floor"), [("eurosat", 0.9), ("ucmerced", 0.87)])
@torch.inference_mode()
def test_held_out_pictures_are_found_by_name(ours, name, floor, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from PIL import Image
    from starter import pictures, words

    if not (DATA / pictures.ARCHIVES[name]).is_file():
        pytest.skip(f"{DATA / pictures.ARCHIVES[name]} is not here; it is no part of the project")
    items = pictures.scenes(DATA, name, pictures.HELD_OUT)
    items = items[:: max(1, len(items) // 140)]
    edge = ours.preprocessing.image_size
    pixels = [np.array(Image.fromarray(item.pixels).resize((edge, edge), Image.Resampling.BICUBIC)) for item in items]
    inputs = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    features = torch.cat([unit(ours.network.encode_image(part)) for part in inputs.split(32)])
    keys = list(words.CLASSES[name])
    texts = read(ours, [f"a satellite photo of {words.CLASSES[name][key]}." for key in keys])
    found = (features @ texts.T).argmax(1)
    truth = torch.tensor([keys.index(item.label) for item in items])
    assert (found == truth).float().mean() >= floor

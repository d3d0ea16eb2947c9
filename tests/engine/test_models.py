"""The registry says of each model what it takes to get it and to load it rightly, and finds the user's own."""

from __future__ import annotations

import json
import re

import pytest

from clippan import resources
from clippan.catalogue.models import CONFIG, MODELS, find_model
from clippan.core.errors import ClippanError

DESCRIPTION = {
    "model_cfg": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": {"image_size": 96}, "text_cfg": {}},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}


PUBLISHED = {name: model for name, model in MODELS.items() if model.repository}


def test_the_starter_comes_with_the_engine_and_is_the_first():
    assert [name for name in MODELS if name not in PUBLISHED] == ["starter"]
    starter = next(iter(MODELS.values()))
    assert starter.path == resources() / starter.file
    described = json.loads((starter.path.parent / CONFIG).read_text())
    assert described["model_cfg"]["vision_cfg"]["image_size"] == starter.pixels
    assert described["preprocess_cfg"]["mean"] == list(starter.mean)
    assert described["preprocess_cfg"]["std"] == list(starter.std)
    assert starter.path.stat().st_size == pytest.approx(starter.size, rel=0.05)


@pytest.mark.parametrize("model", PUBLISHED.values(), ids=PUBLISHED)
def test_entries_are_whole(model):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", model.id)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repository)
    assert model.file.endswith((".pt", ".safetensors"))
    assert model.revision is None or re.fullmatch("[0-9a-f]{40}", model.revision)
    assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)
    assert model.licence in {"MIT", "Apache-2.0", "CC-BY-4.0"}
    assert model.licence_url.startswith("https://")
    assert 1e8 < model.size < 1e10
    assert len(model.mean) == len(model.std) == 3
    assert all(0 < value < 1 for value in (*model.mean, *model.std))
    assert model.notes.endswith(".")
    assert model.path is None


@pytest.mark.parametrize("model", PUBLISHED.values(), ids=PUBLISHED)
def test_architectures_are_open_clips_and_of_the_activation(model):
    import open_clip
    import torch

    description = open_clip.get_model_config(model.architecture)
    assert description is not None
    assert bool(description.get("quick_gelu")) == (model.activation == "quickgelu")
    assert description["vision_cfg"]["image_size"] == model.pixels
    with torch.device("meta"):
        network = open_clip.CLIP(**description)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert model.size == pytest.approx(weights, rel=0.01)


def test_labels_and_files_are_one_models():
    assert len({model.label for model in MODELS.values()}) == len(MODELS)
    assert len({(model.repository, model.file) for model in MODELS.values()}) == len(MODELS)


def test_hub_names_are_those_that_open_clip_names():
    from open_clip import pretrained

    for name, architecture, tag in (
        ("openai-b32", "ViT-B-32", "openai"),
        ("openai-b16", "ViT-B-16", "openai"),
        ("laion-b32", "ViT-B-32", "laion2b_s34b_b79k"),
    ):
        entry = pretrained.get_pretrained_cfg(architecture, tag)
        assert entry["hf_hub"].rstrip("/") in {MODELS[name].repository, ""}, name
        assert tuple(entry["mean"]) == MODELS[name].mean
        assert tuple(entry["std"]) == MODELS[name].std


def folder(path, description=DESCRIPTION, weights=("open_clip_model.safetensors",)):
    path.mkdir()
    if description is not None:
        (path / CONFIG).write_text(description if isinstance(description, str) else json.dumps(description))
    for name in weights:
        (path / name).write_bytes(b"1234")
    return path


def test_a_folder_in_open_clips_layout(tmp_path):
    path = folder(tmp_path / "starter", weights=("open_clip_model.safetensors", "other.pt"))
    for name in (path, path / "open_clip_model.safetensors"):
        model = find_model(str(name))
        assert (model.id, model.label) == (str(path / "open_clip_model.safetensors"), "starter")
        assert (model.architecture, model.activation, model.pixels, model.size) == ("", "quickgelu", 96, 4)
        assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert find_model(str(path / "other.pt")).label == "other"


def test_a_description_without_details_means_open_clips_own(tmp_path):
    path = folder(tmp_path / "plain", {"model_cfg": {"vision_cfg": {"image_size": [64, 64]}, "text_cfg": {}}})
    model = find_model(str(path))
    assert (model.activation, model.pixels, model.mean) == ("gelu", 64, MODELS["openai-b32"].mean)


def test_a_known_file_in_a_place_of_ones_own(tmp_path):
    path = tmp_path / "RS5M_ViT-L-14.pt"
    path.write_bytes(b"123")
    model = find_model(str(path))
    assert (model.architecture, model.path, model.size) == ("ViT-L-14-quickgelu", path, 3)
    assert model.licence == "CC-BY-4.0"


def test_what_is_no_model(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"123")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"123")
    for name, sentence in (
        ("farslip", "Unknown model 'farslip'; choose one of starter, farslip2-b16, .*, or a folder with"),
        ("", "Unknown model ''"),
        ("a\0b", "Unknown model"),
        (tmp_path / "weights.pt", "The model of the weights .*weights.pt is unknown; copy their"),
        (tmp_path / "open_clip_model.safetensors", "The model of the weights"),
        (folder(tmp_path / "bare", None), "has no open_clip_config.json, which describes the model"),
        (folder(tmp_path / "empty", weights=()), "contains no weights; choose a file"),
        (folder(tmp_path / "two", weights=("a.pt", "b.pt")), "contains several files with weights; choose one file"),
        (folder(tmp_path / "broken", "{"), "is not a model configuration of open_clip"),
        (folder(tmp_path / "list", "[]"), "is not a model configuration of open_clip"),
        (folder(tmp_path / "other", {"model_cfg": {"vision_cfg": 3}}), "is not a model configuration"),
    ):
        with pytest.raises(ClippanError, match=sentence) as caught:
            find_model(str(name))
        assert str(caught.value).endswith(".")

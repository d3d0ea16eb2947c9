"""Checkpoints of every shape that is published load to the same model, and what does not fit is refused."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json

import pytest

from clippan.catalogue.models import CONFIG, MODELS, find_model
from clippan.clip import load as module
from clippan.clip.load import load_model
from clippan.core.errors import ClippanError

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
LONG = 248
# The last one is longer than what a long tower keeps of the short one.
PROMPTS = ["a satellite image of a river mouth with sandbanks", "", "houses", "fields and hedges beside a road " * 6]


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory):
    """Tiny architectures that open_clip knows by name, as it knows ViT-B-32 and ViT-B-32-quickgelu."""
    folder = tmp_path_factory.mktemp("configs")
    for name, more in (("tiny", {}), ("tiny-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps({**TINY, **more}))
    open_clip.add_model_config(folder)


def entry(architecture="tiny-quickgelu"):
    activation = "quickgelu" if architecture.endswith("quickgelu") else "gelu"
    return dataclasses.replace(
        MODELS["farslip2-b16"], id="tiny", architecture=architecture, activation=activation, pixels=32
    )


def network(architecture="tiny-quickgelu", length=77):
    """A model with weights that no other has; their spread is large enough to tell activations apart."""
    torch.manual_seed(3)
    description = open_clip.get_model_config(architecture)
    description["text_cfg"] = {**description["text_cfg"], "context_length": length}
    made = open_clip.CLIP(**description)
    with torch.no_grad():
        for value in made.parameters():
            if value.ndim:
                value.copy_(torch.randn(value.shape) * 0.3)
    return made.eval()


def outputs(made, length=77):
    """Features of a picture and of the prompts."""
    picture = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        return made.encode_image(picture), made.encode_text(open_clip.tokenize(PROMPTS, context_length=length))


def same(one, other, tolerance=0.0):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(one, other))


def nested(weights):
    return {"epoch": 3, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}


def prefixed(weights):
    return {f"module.{name}": value for name, value in weights.items()}


SHAPES = {
    "plain": lambda weights: weights,
    "module.": prefixed,
    "state_dict": nested,
    "state_dict and module.": lambda weights: nested(prefixed(weights)),
    "model": lambda weights: {"model": weights},
    "model in state_dict": lambda weights: {"state_dict": {"model": prefixed(weights)}},
    "numbers of OpenAI's": lambda weights: {**weights, "input_resolution": 32, "context_length": 77, "vocab_size": 9},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_nesting(shape, tmp_path):
    made, path = network(), tmp_path / "weights.pt"
    torch.save(SHAPES[shape](made.state_dict()), path)
    loaded = load_model(path, entry())
    assert same(outputs(loaded.network), outputs(made))
    assert not loaded.network.training
    assert loaded.preprocessing == module.Preprocessing(MODELS["farslip2-b16"].mean, MODELS["farslip2-b16"].std, 32)
    assert torch.equal(loaded.tokenizer(PROMPTS), open_clip.tokenize(PROMPTS))


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    made, path = network(), tmp_path / "weights.safetensors"
    save_file(made.state_dict(), path)
    assert same(outputs(load_model(path, entry()).network), outputs(made))


def test_float16_becomes_float32(tmp_path):
    made, path = network(), tmp_path / "weights.pt"
    torch.save({name: value.half() for name, value in made.state_dict().items()}, path)
    loaded = load_model(path, entry()).network
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert same(outputs(loaded), outputs(made.half().float()))


@pytest.mark.parametrize("architecture", ["tiny", "tiny-quickgelu"])
def test_the_activation_is_the_one_it_was_trained_with(architecture, tmp_path):
    made, path = network(architecture), tmp_path / "weights.pt"
    torch.save(made.state_dict(), path)
    other = {"tiny": "tiny-quickgelu", "tiny-quickgelu": "tiny"}[architecture]
    assert same(outputs(load_model(path, entry(architecture)).network), outputs(made))
    # The same weights with the other activation load as well, and are another model.
    wrong = outputs(load_model(path, entry(other)).network)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(wrong, outputs(made)))
    # The activation counts, should the architecture's name forget its ending.
    bare = dataclasses.replace(entry(architecture), architecture="tiny")
    assert same(outputs(load_model(path, bare).network), outputs(made))


def long(masks, half=False):
    """A checkpoint as LongCLIP saves it, and the features that its own sum of two embeddings gives."""
    made = network(length=LONG)
    weights = copy.deepcopy(made.state_dict())
    first, second = weights["positional_embedding"], torch.randn(LONG, 64) * 0.3
    if half:
        first, second = first.half(), second.half()
        weights["positional_embedding"] = first
    one = torch.zeros(LONG, 1)
    one[:20] = 1
    weights["positional_embedding_res"] = second
    if masks:
        weights["mask1"], weights["mask2"] = one, 1 - one
    with torch.no_grad():
        made.positional_embedding.copy_(first.float() * one + second.float() * (1 - one))
    return weights, outputs(made, LONG)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("masks", [True, False], ids=["FarSLIP", "LRSCLIP"])
@pytest.mark.parametrize("shape", ["plain", "state_dict and module."])
def test_long_text_towers(masks, half, shape, tmp_path):
    path = tmp_path / "named_like_any_other.pt"
    weights, expected = long(masks, half)
    torch.save(SHAPES[shape](weights), path)
    loaded = load_model(path, entry())
    assert loaded.network.context_length == LONG
    tokens = loaded.tokenizer(["a word " * 150])
    assert tokens.shape == (1, LONG)
    assert (tokens != 0).all()
    assert same(outputs(loaded.network, LONG), expected)


def test_short_prompts_are_the_same_to_a_long_tower_cut_short(tmp_path):
    path = tmp_path / "weights.pt"
    weights, expected = long(masks=True)
    torch.save(weights, path)
    merged = load_model(path, entry()).network.state_dict()
    merged["positional_embedding"] = merged["positional_embedding"][:77].clone()
    torch.save(merged, path)
    loaded = load_model(path, entry())
    assert loaded.network.context_length == 77
    assert same(outputs(loaded.network), expected, 1e-5)


def in_folder(path, description=TINY, weights=None, name="open_clip_model.safetensors"):
    from safetensors.torch import save_file

    path.mkdir()
    preparation = {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}
    (path / CONFIG).write_text(json.dumps({"model_cfg": description, "preprocess_cfg": preparation}))
    save_file(weights if weights is not None else network().state_dict(), path / name)
    return path / name


@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_in_open_clips_layout(quick, tmp_path):
    architecture = "tiny-quickgelu" if quick else "tiny"
    made = network(architecture)
    path = in_folder(tmp_path / "mine", {**TINY, "quick_gelu": quick}, made.state_dict())
    loaded = load_model(path, find_model(str(tmp_path / "mine")))
    assert same(outputs(loaded.network), outputs(made))
    assert loaded.preprocessing == module.Preprocessing((0.4, 0.4, 0.4), (0.3, 0.3, 0.3), 32)


def test_a_folder_with_a_text_tower_of_its_own(tmp_path):
    description = {**copy.deepcopy(TINY), "custom_text": True}
    torch.manual_seed(4)
    plain = {key: value for key, value in description.items() if key != "custom_text"}
    made = open_clip.CustomTextCLIP(**copy.deepcopy(plain)).eval()
    path = in_folder(tmp_path / "mine", description, made.state_dict())
    assert same(outputs(load_model(path, find_model(str(path))).network), outputs(made))


def test_the_registrys_layouts_are_those_of_open_clip(tmp_path):
    """open_clip itself loads what we load from a folder, and gives the same."""
    made = network()
    path = in_folder(tmp_path / "mine", {**TINY, "quick_gelu": True}, made.state_dict())
    theirs = open_clip.create_model("tiny-quickgelu", pretrained=str(path))
    assert same(outputs(load_model(path, find_model(str(path))).network), outputs(theirs.eval()))


def refused(path, sentence, model=None):
    with pytest.raises(ClippanError, match=sentence) as caught:
        load_model(path, model or entry())
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text


def without(weights):
    del weights["visual.conv1.weight"], weights["ln_final.bias"]
    return weights


def wider(weights):
    weights["text_projection"] = torch.zeros(64, 48)
    return weights


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            without,
            r"do not fit the architecture tiny-quickgelu \(missing: visual.conv1.weight, ln_final.bias\); choose",
        ),
        (lambda weights: {**weights, "extra": torch.zeros(1)}, r"\(unexpected: extra\)"),
        (wider, r"\(of another size: text_projection is 64×48 instead of 64×32\)"),
        (
            lambda weights: {f"visual.{name}": value for name, value in weights.items()},
            r"missing: .* and \d+ more; unexpected: visual\..* and \d+ more",
        ),
        (
            lambda weights: {**weights, "positional_embedding_res": torch.zeros(9, 64)},
            "long text tower in .* is incomplete",
        ),
        (lambda weights: {}, "contains no weights"),
        (lambda weights: [1, 2], "contains no weights"),
        (lambda weights: {"epoch": 3, "weights": [1, 2]}, "contains no weights"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(change(network().state_dict()), path)
    refused(path, sentence)


def test_what_could_run_programs_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "weights.pt"
    for content in (Trap(), {"args": argparse.Namespace(lr=1), "state_dict": network().state_dict()}):
        torch.save(content, path)
        refused(path, "could run code and (is|are) not opened")
    assert not (tmp_path / "sprung").exists()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    refused(path, "is a TorchScript archive")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files(suffix, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(network().state_dict(), path)
    else:
        save_file(network().state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"<html>Log in</html>", b"version https://git-lfs"):
        path.write_bytes(content)
        refused(path, "(are damaged or incomplete|is not a file of weights)")
    path.unlink()
    refused(path, "cannot be read")


def test_architectures_that_open_clip_does_not_have(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    refused(
        path, r"open_clip \S+ does not know the architecture huge of", dataclasses.replace(entry(), architecture="huge")
    )
    path = in_folder(tmp_path / "mine", {**TINY, "vision_cfg": {"layers": "many"}})
    refused(path, r"cannot build the architecture that of .*open_clip_config.json \(\w+: .+\)", find_model(str(path)))


def test_a_tokenizer_that_is_not_beside_the_weights(tmp_path):
    description = copy.deepcopy(TINY)
    description["text_cfg"]["hf_tokenizer_name"] = "someone/theirs"
    path = in_folder(tmp_path / "mine", description)
    refused(path, r"The tokenizer of .* cannot be read \(.+\); put its files", find_model(str(path)))


@pytest.mark.gpu
def test_on_the_gpu(tmp_path):
    made, path = network(), tmp_path / "weights.pt"
    torch.save(made.state_dict(), path)
    loaded = load_model(path, entry(), torch.device("cuda")).network
    assert next(loaded.parameters()).is_cuda

"""CLIP as a supervisor: gradients flow through it and leave it as it is, and stage I's weights load in stage II."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("timm")

from clippan.catalogue.models import MODELS  # noqa: E402
from clippan.clip.load import LoadedModel, Preprocessing  # noqa: E402
from clippan.core.context import Context  # noqa: E402
from clippan.core.errors import ClippanError  # noqa: E402
from clippan.learn.fusion import clip_supervision  # noqa: E402
from clippan.learn.fusion.batch import PatchBatch  # noqa: E402
from clippan.learn.fusion.clip_supervision import ClipSupervisor, FrozenCLIP, load_frozen_clip  # noqa: E402
from clippan.learn.fusion.objective import LossWeights, Objective  # noqa: E402

WIDTH = 16


class Tiny(torch.nn.Module):
    """A CLIP of two layers, with a normalisation that training mode would change."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tower = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 7, stride=4), torch.nn.BatchNorm2d(32), torch.nn.GELU(), torch.nn.Conv2d(32, 32, 3)
        )
        self.head = torch.nn.Linear(64, WIDTH)
        self.words = torch.nn.Embedding(256, WIDTH)

    def encode_image(self, pictures: torch.Tensor) -> torch.Tensor:
        values = self.tower(pictures)
        return self.head(torch.cat([values.mean((2, 3)), values.std((2, 3))], dim=1))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.words(tokens).mean(1)


def tokens(texts: list[str]) -> torch.Tensor:
    return torch.tensor([list(text.encode().ljust(120))[:120] for text in texts])


def tiny(sha256: str = "1" * 64) -> FrozenCLIP:
    return FrozenCLIP(LoadedModel(Tiny(), tokens, Preprocessing((0.5,) * 3, (0.25,) * 3, 48)), "tiny", sha256)


@pytest.fixture(scope="module")
def starter() -> FrozenCLIP:
    if not MODELS["starter"].path.is_file():
        pytest.skip("the starter CLIP is not in this checkout")
    return load_frozen_clip("starter", torch.device("cpu"), Context())


def make(n: int = 2, bands: int = 4, edge: int = 64, seed: int = 0) -> PatchBatch:
    """Sharp bands and PAN, blurred MS; only what CLIP is shown."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, bands, edge // step, edge // step, generator=generator) for step in (1, 8, 32)]
    truth = sum(torch.nn.functional.interpolate(part, (edge, edge), mode="nearest") for part in parts) / 2
    pan = truth.mean(1, keepdim=True) * 2
    ms = torch.nn.functional.avg_pool2d(truth, 4)
    up = torch.nn.functional.interpolate(ms, (edge, edge), mode="bicubic")
    ones, none = torch.ones(n, 1, 1, 1), torch.empty(0)
    return PatchBatch(
        **{"up": up, "pan": pan, "pan_lowpass": up, "classical": truth, "ms": ms, "degraded_pan": ms[:, :1]},
        **{"row_filters": none, "column_filters": none, "conditions": none, "ratio": 4.0, "scenes": torch.arange(n)},
        **dict.fromkeys(("mean", "std", "pan_mean", "pan_std"), ones),
    )


def network(bands: int = 4) -> torch.nn.Sequential:
    """Two layers that are given MS and PAN."""
    torch.manual_seed(3)
    layers = torch.nn.Conv2d(bands + 1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, bands, 3, padding=1)
    return torch.nn.Sequential(*layers)


def fuse(layers: torch.nn.Module, batch: PatchBatch) -> torch.Tensor:
    return batch.up + layers(torch.cat([batch.up, batch.pan], dim=1))


def test_direction_teaches_the_first_layer_through_a_real_clip(starter: FrozenCLIP) -> None:
    batch, layers = make(), network()
    supervisor = ClipSupervisor(starter, 4)
    before = {name: value.clone() for name, value in starter.state_dict().items()}
    # All that may learn does, with CLIP's own parameters among what the optimiser is handed.
    optimiser = torch.optim.SGD([*layers.parameters(), *supervisor.parameters()], 1e-3)
    supervisor.train()
    loss = supervisor.direction_loss(batch, fuse(layers, batch))
    assert 0 <= loss <= 2
    loss.backward()
    for parameter in (layers[0].weight, *supervisor.reducer.parameters(), *supervisor.adapters.image._ms.parameters()):
        assert parameter.grad.isfinite().all()
    first = layers[0].weight.grad
    assert first.abs().max() > 1e-6
    assert supervisor.reducer.colours.weight.grad.abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in starter.parameters())
    optimiser.step()
    after = starter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_direction_is_the_formula_and_falls_along_its_gradient(starter: FrozenCLIP) -> None:
    batch, supervisor = make(), ClipSupervisor(starter, 4).requires_grad_(False)
    fused = batch.classical.clone().requires_grad_()
    loss = supervisor.direction_loss(batch, fused)
    with torch.no_grad():
        out, ms = (
            supervisor.adapters.image.ms(starter.encode_images(supervisor._to_rgb(x))) for x in (fused, batch.up)
        )
        pan = supervisor.adapters.image.pan(
            starter.encode_images(clip_supervision.to_display_range(batch.pan).expand(-1, 3, -1, -1))
        )
        text_ms, text_pan, text_fused = supervisor.text_embeddings()
        cosine = torch.nn.functional.cosine_similarity
        one = cosine(out - ms, (text_fused - text_ms)[None])
        other = cosine(out - pan, (text_fused - text_pan)[None])
    assert torch.allclose(loss, 1 - (one + other).mean() / 2, atol=1e-2)
    loss.backward()
    step = fused.grad / fused.grad.abs().max()
    with torch.no_grad():
        assert supervisor.direction_loss(batch, fused - 0.05 * step) < loss


def test_an_output_that_equals_ms_has_a_finite_gradient(starter: FrozenCLIP) -> None:
    batch, supervisor = make(), ClipSupervisor(starter, 4).requires_grad_(False)
    fused = batch.up.clone().requires_grad_()
    supervisor.direction_loss(batch, fused).backward()
    assert fused.grad.isfinite().all()
    assert 0 < fused.grad.norm() < 100


@pytest.mark.slow
def test_constant_and_far_off_patches_have_finite_gradients(starter: FrozenCLIP) -> None:
    batch, supervisor = make(), ClipSupervisor(starter, 4)
    for values in (torch.zeros_like(batch.up), torch.full_like(batch.up, 50.0)):
        flat = dataclasses.replace(batch, up=values, pan=values[:, :1], classical=values)
        fused = values.clone().requires_grad_()
        loss = supervisor.direction_loss(flat, fused) + sum(supervisor.adapter_losses(flat).values())
        loss.backward()
        assert loss.isfinite()
        assert fused.grad.isfinite().all()
        assert all(
            parameter.grad.isfinite().all()
            for parameter in supervisor.trainable_parameters()
            if parameter.grad is not None
        )


def test_pictures_enter_as_the_model_wants_them(starter: FrozenCLIP) -> None:
    """Size, mean and standard deviation as open_clip's own preparation has them."""
    open_clip = pytest.importorskip("open_clip")
    pytest.importorskip("torchvision")
    from torchvision.transforms.functional import to_pil_image

    folder = MODELS["starter"].path.parent
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40), (300, 300), mode="bicubic").clamp(0, 1)
    picture = (picture * 255).round() / 255
    with torch.no_grad():
        theirs = model.eval().encode_image(prepare(to_pil_image(picture[0]))[None])
    assert torch.nn.functional.cosine_similarity(theirs, starter.encode_images(picture)) > 0.999


@pytest.mark.parametrize("prompts", [clip_supervision.WALD, clip_supervision.KHAN])
def test_prompts_fit_the_shortest_text_tower(prompts: clip_supervision.Prompts, starter: FrozenCLIP) -> None:
    numbers = starter._loaded.tokenizer([prompts.ms, prompts.pan, prompts.fused])
    assert (numbers[:, -1] == 0).all()  # what is left after the end of the text


def test_adapters_are_as_large_as_published() -> None:
    count = sum(parameter.numel() for parameter in clip_supervision.ClipAdapters(512).parameters())
    assert count == 4 * (2 * 512 * 128) + 2 * (1024 * 256 + 256 * 512)
    assert count == pytest.approx(1.3e6, rel=0.02)
    assert not any("bias" in name for name, _ in clip_supervision.ClipAdapters(512).named_parameters())


def test_the_stretch_is_fixed_and_keeps_gradients_of_what_it_cuts() -> None:
    values = torch.tensor([-5.0, -2.0, 0.0, 1.0, 9.0], requires_grad=True)
    pictures = clip_supervision.to_display_range(values)
    assert pictures.tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    pictures.sum().backward()
    assert values.grad.tolist() == [0.25] * 5


@pytest.mark.parametrize(
    ("bands", "colours", "shown"), [(4, None, (2, 1, 0)), (8, None, (4, 2, 1)), (1, None, (0,) * 3)]
)
def test_a_reducer_starts_as_three_bands(bands: int, colours: tuple[int, ...] | None, shown: tuple[int, ...]) -> None:
    values = torch.rand(2, bands, 9, 9)
    assert torch.equal(clip_supervision.BandReducer(bands, colours)(values), values[:, list(shown)])


def stage_one(supervisor: ClipSupervisor, batch: PatchBatch, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Trains; the losses before and after."""
    optimiser = torch.optim.Adam(supervisor.trainable_parameters(), 1e-3)
    history = []
    for _ in range(steps):
        losses = supervisor.adapter_losses(batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    return history[0], history[-1]


@pytest.mark.slow
def test_stage_one_makes_a_supervisor_of_a_real_clip(starter: FrozenCLIP) -> None:
    torch.manual_seed(0)
    supervisor, other = ClipSupervisor(starter, 4), make(seed=1)
    first, last = stage_one(supervisor, make(), 24)
    assert set(first) == {"inter", "intra", "fusion"}
    assert all(last[name] < first[name] for name in first), (first, last)
    with torch.no_grad():  # on patches that it has not seen
        kinds = [
            (embeddings @ supervisor.text_embeddings().T).argmax(1).tolist() for embeddings in seen(supervisor, other)
        ]
        half = (other.up + other.classical) / 2
        ms, better, best = (
            float(supervisor.direction_loss(other, fused)) for fused in (other.up, half, other.classical)
        )
    assert kinds == [[0, 0], [2, 2], [1, 1]]
    assert max(best, better) < ms - 0.05


def seen(supervisor: ClipSupervisor, batch: PatchBatch) -> tuple[torch.Tensor, ...]:
    """Embeddings of MS, the fused image and PAN."""
    return supervisor._image_embeddings([batch.up, batch.classical], batch.pan)


def test_each_image_is_held_against_its_own_text() -> None:
    """The order of images and texts is the same: whoever looks like its text has no loss."""
    supervisor, batch = ClipSupervisor(tiny(), 4), make()
    ms, fused, pan = seen(supervisor, batch)
    own = torch.stack([ms[0], pan[0], fused[0]])
    supervisor.text_embeddings = lambda: own  # type: ignore[method-assign]
    right = supervisor.adapter_losses(batch)["inter"]
    supervisor.text_embeddings = lambda: own[[0, 2, 1]]  # type: ignore[method-assign]
    assert right < supervisor.adapter_losses(batch)["inter"]


def test_intra_brings_patches_of_a_scene_together() -> None:
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]), dim=1)
    fitting, wrong = (
        clip_supervision._contrastive_loss(near, torch.tensor(groups)) for groups in ([5, 5, 9, 9], [5, 9, 5, 9])
    )
    assert fitting < 1e-3 < 1 < wrong
    supervisor, batch = ClipSupervisor(tiny(), 4), make(3)
    same = supervisor.adapter_losses(dataclasses.replace(batch, scenes=torch.full((3,), 8)))
    assert torch.equal(same["intra"], supervisor.adapter_losses(batch)["intra"])


def test_the_scale_of_each_loss_of_stage_one() -> None:
    one, other = torch.eye(512)[:1], torch.eye(512)[1:2]
    assert float(clip_supervision._l1(one, other, "sum")) == 2
    assert float(clip_supervision._l1(one, other, "mean")) == pytest.approx(2 / 512)
    texts = torch.eye(3)
    same = torch.ones(6, 3) / 3**0.5  # as near to each text
    assert float(clip_supervision._classification_loss(same, texts)) == pytest.approx(math.log(3))


@pytest.mark.parametrize(("move", "loss"), [((1.0, 0.0), 0.0), ((0.0, 1.0), 1.0), ((-1.0, 0.0), 2.0)])
def test_direction_is_measured_by_the_angle_of_moves(move: tuple[float, float], loss: float) -> None:
    moves = 10 * torch.tensor([move])  # much longer than the length below which directions count less
    cosine = float(clip_supervision._damped_cosine(moves, torch.tensor([3.0, 0.0])))
    assert 1 - cosine == pytest.approx(loss, abs=1e-4)


def test_the_mean_is_the_sum_over_the_width() -> None:
    supervisor, batch = ClipSupervisor(tiny(), 4), make()
    total, mean = (supervisor.adapter_losses(batch, norm) for norm in ("sum", "mean"))
    assert total["fusion"].item() == pytest.approx(WIDTH * mean["fusion"].item(), rel=1e-5)
    assert torch.equal(total["inter"], mean["inter"])


def test_another_stand_in_changes_what_stage_one_learns() -> None:
    supervisor, batch = ClipSupervisor(tiny(), 4), make()
    usual = supervisor.adapter_losses(batch)
    other = supervisor.adapter_losses(dataclasses.replace(batch, stand_in=(batch.up + batch.classical) / 2))
    assert usual["fusion"] != other["fusion"]
    assert usual["inter"] != other["inter"]
    same = supervisor.adapter_losses(dataclasses.replace(batch, stand_in=batch.classical))
    assert all(torch.equal(usual[name], same[name]) for name in usual)


def test_stage_one_s_weights_load_in_stage_two(tmp_path: Path) -> None:
    clip, batch, path = tiny(), make(), tmp_path / "stage-one.safetensors"
    taught = ClipSupervisor(clip, 4, prompts=clip_supervision.KHAN)
    stage_one(taught, batch, 3)
    taught.save(path, {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = ClipSupervisor.load(path, clip, 4)
    assert loaded.prompts == clip_supervision.KHAN
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.direction_loss(batch, batch.classical), taught.direction_loss(batch, batch.classical))
    assert not torch.equal(
        loaded.direction_loss(batch, batch.classical), ClipSupervisor(clip, 4).direction_loss(batch, batch.classical)
    )
    layers = network()
    total, terms = Objective(LossWeights(language=0.5), language=loaded.direction_loss)(batch, fuse(layers, batch))
    total.backward()
    assert torch.allclose(total, 0.5 * terms["language"])
    assert layers[0].weight.grad.abs().max() > 0


def test_weights_for_other_bands_or_another_clip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage-one.safetensors"
    ClipSupervisor(tiny(), 4).save(path, {})
    with pytest.raises(ClippanError, match="adapted for 4 bands but MS has 8; choose"):
        ClipSupervisor.load(path, tiny(), 8)
    with pytest.raises(ClippanError, match="with the CLIP tiny"):
        ClipSupervisor.load(path, tiny("2" * 64), 4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(ClippanError, match="not an adapted CLIP"):
        ClipSupervisor.load(other, tiny(), 4)
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    for name in ("text.safetensors", "missing.safetensors"):
        with pytest.raises(ClippanError, match="cannot be read"):
            ClipSupervisor.load(tmp_path / name, tiny(), 4)
    saved = tmp_path / "stage-one.safetensors"
    supervisor = ClipSupervisor(tiny(), 4)
    supervisor.save(saved, {})
    weights = load_file(saved)
    assert not any("clip" in name for name in weights)
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    weights.popitem()
    save_file(weights, other, metadata)
    with pytest.raises(ClippanError, match="run stage I again"):
        ClipSupervisor.load(other, tiny(), 4)
    with pytest.raises(ClippanError, match="could not be written"):
        supervisor.save(tmp_path / "no" / "such" / "folder.safetensors", {})

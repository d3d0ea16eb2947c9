"""The fusion networks: what they take, what they learn, what their results depend on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clippan.core.errors import ClippanError
from clippan.fusion.networks import NETWORKS, build, panmamba, parameter_count, table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"

# The published networks, each as small as its parts allow: two of what there may be several of.
SMALL: dict[str, dict[str, Any]] = {
    "pnn": {"width": 12},
    "lambda-pnn": {"width": 8, "depth": 2},
    "arbrpn": {"width": 8, "depth": 1, "blocks": 1},
    "lformer": {"width": 8, "depth": 2, "heads": 2},
    "panmamba": {"width": 8, "depth": 1, "swaps": 1, "crosses": 2, "states": 4},
}

backbones = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(bands: int, height: int = 16, width: int = 16, count: int = 1) -> list[torch.Tensor]:
    """Standardised noise: up, pan, pan_lowpass, classical."""
    shape = (count, bands, height, width)
    return [torch.randn(shape), torch.randn(count, 1, height, width), torch.randn(shape), torch.randn(shape)]


def exact(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """In double precision, for comparisons."""
    return [value.double() for value in values]


def restless(name: str, bands: int) -> torch.nn.Module:
    """A small network in double precision, all weights far from their start: every part shows in its result."""
    network = build(name, bands, **SMALL.get(name, {})).eval().double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@backbones
@pytest.mark.parametrize("bands", [1, 3, 4, 8, 10])
def test_any_size_and_the_bands_it_was_built_for(name: str, bands: int) -> None:
    network = build(name, bands, **SMALL[name])
    for height, width in ((1, 1), (5, 18), (17, 7)):
        given = inputs(bands, height, width, count=2)
        with torch.inference_mode():
            fused = network(*given)
        assert fused.shape == given[0].shape
        assert bool(fused.isfinite().all())


@backbones
def test_starts_close_to_the_interpolated_bands(name: str) -> None:
    network, given = build(name, 4, **SMALL[name]), inputs(4)
    added = network(*given) - given[0]
    assert 0 < float(added.detach().std()) < 0.2


@backbones
def test_gradient_reaches_every_weight_from_the_start(name: str) -> None:
    network, given = build(name, 4, **SMALL[name]), inputs(4)
    (network(*given) - torch.randn(1, 4, 16, 16)).square().mean().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None, part
        assert bool(parameter.grad.isfinite().all()), part
        assert float(parameter.grad.abs().sum()) > 0, part


@pytest.mark.slow
@backbones
def test_over_fits_one_patch(name: str) -> None:
    up, pan, pan_lowpass, classical = inputs(3)
    target = up + torch.tensor([0.3, -0.2, 0.5]).view(1, 3, 1, 1) * pan
    network = build(name, 3, **SMALL[name])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (network(up, pan, pan_lowpass, classical) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


@backbones
def test_the_same_again_in_training_and_beside_another_patch(name: str) -> None:
    network, given = restless(name, 3), exact(inputs(3, count=2))
    with torch.inference_mode():
        fused = network(*given)
        assert torch.equal(fused, network(*given))
        assert torch.equal(fused, network.train()(*given))
        alone = network(*(value[:1] for value in given))
    torch.testing.assert_close(fused[:1], alone)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.tile_alignment])
def test_result_does_not_depend_on_the_tile(name: str) -> None:
    step = NETWORKS[name].tile_alignment
    assert step is not None
    network, given = restless(name, 2), exact(inputs(2, 104, 104))
    far = 32  # pixels that a result depends on, and more
    with torch.inference_mode():
        whole = network(*given)[..., step + far : 96 + step - far, step + far : 96 + step - far]
        tile = network(*(value[..., step : 96 + step, step : 96 + step] for value in given))[..., far:-far, far:-far]
    torch.testing.assert_close(tile, whole)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if not network.tile_alignment])
def test_result_depends_on_the_tile_where_the_table_says_so(name: str) -> None:
    network, (up, pan, pan_lowpass, classical) = build(name, 2, **SMALL[name]).double(), exact(inputs(2, 32, 32))
    with torch.inference_mode():
        before = network(up, pan, pan_lowpass, classical)
        pan[..., 0, 0] += 30
        after = network(up, pan, pan_lowpass, classical)
    assert not torch.equal(before[..., -1, -1], after[..., -1, -1])


def test_sizes_are_as_published() -> None:
    published = {
        ("pnn", 4): 61_124,  # its arithmetic: "61 to 80 thousand" for 4 and 8 bands
        ("pnn", 8): 79_880,
        ("lambda-pnn", 4): 198_000,
        ("lambda-pnn", 8): 207_000,
        ("arbrpn", 4): 2_341_057,
        ("lformer", 4): 1_800_000,
        ("panmamba", 4): 488_800,
    }
    sizes = {key: parameter_count(build(*key)) for key in published}
    assert sizes == pytest.approx(published, rel=0.1)
    exact = [key for key in published if key[0] in {"pnn", "arbrpn"}]
    assert [sizes[key] for key in exact] == [published[key] for key in exact]


def test_arbrpn_is_one_network_for_any_bands() -> None:
    network = build("arbrpn", 4, **SMALL["arbrpn"])
    for bands in (1, 3, 10):
        up, pan, _, _ = inputs(bands)
        assert network(up, pan).shape == up.shape
    assert parameter_count(network) == parameter_count(build("arbrpn", 8, **SMALL["arbrpn"]))


def test_arbrpn_knows_the_bands_on_both_sides() -> None:
    network, (up, pan, _, _) = restless("arbrpn", 3), exact(inputs(3))
    up.requires_grad_()
    fused = network(up, pan)
    for band in range(3):
        (slope,) = torch.autograd.grad(fused[:, band].sum(), up, retain_graph=True)
        assert bool((slope.abs().sum((0, 2, 3)) > 0).all())


def test_lformer_evolves_its_attention() -> None:
    """Later stages' maps start equal to the first, and then change with their convolutions."""
    network = build("lformer", 2, **SMALL["lformer"])
    weights = torch.softmax(torch.randn(3, 2, 64, 64), -1)
    torch.testing.assert_close(network._evolve_attention(weights, network.evolve[0]), weights)
    up, pan, _, _ = inputs(2)
    before = network(up, pan)
    torch.nn.init.normal_(network.evolve[0].weight)
    assert not torch.equal(network(up, pan), before)
    torch.testing.assert_close(
        network._from_tokens(network._tokens(before.repeat(1, 4, 1, 1)), up.repeat(1, 4, 1, 1)),
        before.repeat(1, 4, 1, 1),
    )


def sequential(
    x: torch.Tensor, steps: torch.Tensor, decay: torch.Tensor, enter: torch.Tensor, leave: torch.Tensor
) -> torch.Tensor:
    """The selective scan as its definition reads, a pixel at a time."""
    state = x.new_zeros(x.shape[0], *decay.shape)
    out = []
    for t in range(x.shape[1]):
        state = (steps[:, t, :, None] * decay).exp() * state + (steps[:, t] * x[:, t])[..., None] * enter[:, t, None]
        out.append((state * leave[:, t, None]).sum(-1))
    return torch.stack(out, 1)


def sequences(length: int) -> list[torch.Tensor]:
    """What a scan is given, in double precision: 2 sequences, 3 channels, 4 states."""
    shapes = [(2, length, 3), (2, length, 3), (3, 4), (2, length, 4), (2, length, 4)]
    made = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    made[1] = torch.nn.functional.softplus(made[1])
    made[2] = -made[2].exp()
    return [value.requires_grad_() for value in made]


@pytest.mark.parametrize("length", [1, 2, 3, 9, 50, 101])
@pytest.mark.parametrize("chunk_states", [24 * 7, 2**20])
def test_scan_equals_the_sequential_one(length: int, chunk_states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panmamba, "_CHUNK_STATES", chunk_states)
    given = sequences(length)
    slope = torch.randn(2, length, 3, dtype=torch.float64)
    ours, plain = panmamba.selective_scan(*given), sequential(*given)
    torch.testing.assert_close(ours, plain)
    for mine, its in zip(torch.autograd.grad(ours, given, slope), torch.autograd.grad(plain, given, slope)):
        torch.testing.assert_close(mine, its)


def test_scan_passes_the_numerical_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panmamba, "_CHUNK_STATES", 24 * 4)
    assert torch.autograd.gradcheck(panmamba.selective_scan, sequences(11))


def test_scan_of_states_that_are_forgotten_at_once_stays_finite() -> None:
    x, steps, decay, enter, leave = (value.detach().float().requires_grad_() for value in sequences(400))
    scanned = panmamba.selective_scan(x, steps * 1000, decay, enter, leave)
    slopes = torch.autograd.grad(scanned.sum(), (x, steps, decay, enter, leave))
    assert all(bool(value.isfinite().all()) for value in (scanned, *slopes))


def test_scan_gathers_in_full_precision_under_autocast() -> None:
    given = [value.detach().float() for value in sequences(300)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scanned = panmamba.selective_scan(*given)
        network, patch = build("panmamba", 2, **SMALL["panmamba"]), inputs(2)
        loss = network(*patch).float().square().mean()
    loss.backward()
    torch.testing.assert_close(scanned, sequential(*given))
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


def test_fused_kernel_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fused(*given: torch.Tensor) -> torch.Tensor:
        """As ``mamba_ssm`` takes them: sequences last."""
        asked.append([value.is_contiguous() for value in given])
        x, steps, decay, enter, leave = given
        turned = (value.transpose(1, 2) for value in (x, steps, enter, leave))
        x, steps, enter, leave = turned
        return sequential(x, steps, decay, enter, leave).transpose(1, 2)

    assert panmamba._fused_scan("cpu") is None
    given = sequences(20)
    plain = panmamba.selective_scan(*given)
    monkeypatch.setattr(panmamba, "_fused_scan", lambda device: fused)
    torch.testing.assert_close(panmamba.selective_scan(*given), plain)
    assert asked == [[True] * 5]


@pytest.mark.gpu
def test_scan_on_the_gpu_equals_the_sequential_one() -> None:
    given = [value.detach().float() for value in sequences(5000)]
    on_gpu = panmamba.selective_scan(*(value.cuda() for value in given)).cpu()
    torch.testing.assert_close(on_gpu, sequential(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "bands", "options", "told"),
    [
        ("unet", 4, {}, "There is no fusion network 'unet'; choose one of detail, pnn"),
        ("pnn", 0, {}, "cannot be built for 0 bands; give"),
        ("pnn", 4, {"depth": 3}, "The network PNN has no option 'depth'; choose among width."),
        ("arbrpn", 4, {"width": 0}, "The network ArbRPN cannot have width 0; give a whole number from 1."),
        ("arbrpn", 4, {"width": True}, "cannot have width True"),
        ("lformer", 4, {"width": 30, "heads": 4}, "a width of 30 among 4 heads; give a multiple of 4."),
    ],
)
def test_what_cannot_be_built_is_told(name: str, bands: int, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ClippanError) as caught:
        build(name, bands, **options)
    assert told in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if not network.any_bands])
def test_other_bands_than_it_was_built_for_are_refused(name: str) -> None:
    network = build(name, 4, **SMALL[name])
    with pytest.raises(ClippanError, match=r"MS has 3 bands but this .* network was built for 4; choose"):
        network(*inputs(3))


def test_listing_the_networks_imports_none() -> None:
    code = (
        "import sys; from clippan.fusion.networks import NETWORKS; "
        "print([name for name in sys.modules if name == 'torch' or name.startswith('clippan.fusion.networks.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_document_shows_the_table() -> None:
    ours = "| `detail`"  # its size is not a publication's
    document = DOCUMENT.read_text(encoding="utf-8")
    for line in table().splitlines():
        assert line in document or line.startswith(ours)

"""The fusion networks: what they take, what they learn, what their results depend on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clippan.core.errors import ClippanError
from clippan.fusion.networks import NETWORKS, VERSION_0_1, build, panmamba, parameter_count, table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"

# The published networks, each as small as its parts allow: two of what there may be several of.
SMALL: dict[str, dict[str, Any]] = {
    "pnn": {"width": 12},
    "lambda-pnn": {"width": 8, "depth": 2},
    "arbrpn": {"width": 8, "depth": 1, "blocks": 1},
    "lformer": {"width": 8, "high_width": 8, "depth": 2, "heads": 2},
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
def test_the_same_again_beside_another_patch_and_in_training(name: str) -> None:
    network, given = restless(name, 3), exact(inputs(3, count=2))
    with torch.inference_mode():
        fused = network(*given)
        assert torch.equal(fused, network(*given))
        alone = network(*(value[:1] for value in given))
        # LFormer's logits are dropped at random in training.
        assert torch.equal(fused, network.train()(*given)) == (name != "lformer")
    torch.testing.assert_close(fused[:1], alone)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.tile_alignment])
def test_result_does_not_depend_on_the_tile(name: str) -> None:
    step = NETWORKS[name].tile_alignment
    assert step is not None
    network = restless(name, 2)
    far = getattr(network, "margin", 32)  # pixels that a result depends on, and more
    size = 2 * far + 32
    given = exact(inputs(2, size + step, size + step))
    with torch.inference_mode():
        whole = network(*given)[..., step + far : step + size - far, step + far : step + size - far]
        tile = network(*(value[..., step:, step:] for value in given))[..., far:-far, far:-far]
    torch.testing.assert_close(tile, whole)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if not network.tile_alignment])
def test_result_depends_on_the_tile_where_the_table_says_so(name: str) -> None:
    network, (up, pan, pan_lowpass, classical) = build(name, 2, **SMALL[name]).double(), exact(inputs(2, 32, 32))
    with torch.inference_mode():
        before = network(up, pan, pan_lowpass, classical)
        pan[..., 0, 0] += 30
        after = network(up, pan, pan_lowpass, classical)
    assert not torch.equal(before[..., -1, -1], after[..., -1, -1])


@pytest.mark.parametrize(
    ("name", "bands", "options", "published"),
    [
        ("pnn", 4, {}, 61_124),  # A-PNN of DLPan-Toolbox
        ("pnn", 8, {}, 79_880),
        ("pnn", 4, {"width": 64, "second_width": 32}, 80_420),  # its PNN
        ("pnn", 8, {"width": 64, "second_width": 32, "repeated_border": True}, 104_360),
        ("arbrpn", 4, {}, 2_341_057),
        ("arbrpn", 8, {}, 2_341_057),
        ("lformer", 4, {}, 2_273_307),
        ("lformer", 8, {}, 2_274_635),
        ("lformer", 4, {"norm_pan": True}, 2_273_307),
        ("lformer", 4, {"width": 32, "high_width": 48}, 1_068_539),  # the authors' setting for QuickBird
        ("lformer", 4, {"depth": 3}, 1_787_019),  # CLIPPan's copy, without its φ
        ("lformer", 8, {"depth": 3}, 1_788_347),
        ("panmamba", 4, {}, 478_444 - 6_400),  # 6,400 of the released class take no part in its result
        ("panmamba", 8, {}, 480_752 - 6_400),
    ],
)
def test_size_is_that_of_the_released_class(name: str, bands: int, options: dict[str, Any], published: int) -> None:
    assert parameter_count(build(name, bands, **options)) == published


@pytest.mark.parametrize(("bands", "notes"), [(4, 198_000), (8, 207_000)])
def test_size_of_lambda_pnn_is_near_the_published(bands: int, notes: int) -> None:
    assert parameter_count(build("lambda-pnn", bands)) == pytest.approx(notes, rel=0.02)


def test_pnn_with_a_repeated_border_sees_what_lies_there_and_zeros_otherwise() -> None:
    """A constant picture stays constant up to the border only if the border is repeated; far inside, both agree."""
    up, pan = torch.full((1, 2, 40, 40), 3.0), torch.full((1, 1, 40, 40), 2.0)
    zeros, repeated = (build("pnn", 2, width=12, repeated_border=value) for value in (False, True))
    repeated.load_state_dict(zeros.state_dict())
    with torch.inference_mode():
        framed, even = zeros(up, pan), repeated(up, pan)
    inside = (..., slice(8, -8), slice(8, -8))  # 8 = 4 + 2 + 2, half of each kernel
    torch.testing.assert_close(even, even[..., :1, :1].expand_as(even))
    torch.testing.assert_close(framed[inside], even[inside])
    assert float((framed - even)[..., 0, 0].abs().max()) > 1e-4


def test_arbrpn_starts_its_state_as_the_features_of_pan() -> None:
    """Cells that hand the state on: all that comes out is the start, PAN, added to each band."""
    network, (up, pan, _, _) = build("arbrpn", 3, **SMALL["arbrpn"]), inputs(3)
    width = 8
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.pan.weight.data[0, 0, 1, 1] = 1
    for cell in network.passes:
        cell[0].weight.data[:, :width, 0, 0] = torch.eye(width)
    network.tail.weight.data[0, 0, 1, 1] = 1
    assert torch.equal(network(up, pan), up + pan)
    old = VERSION_0_1["arbrpn-0.1"].build(3, **SMALL["arbrpn"])
    old.load_state_dict(network.state_dict())
    assert torch.equal(old(up, pan), up)


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


def test_lformer_evolves_a_uniform_map_as_by_hand() -> None:
    """Inside, 8 heads × 8 × 3 keys × 1/64 × 1/9 = 1/3; for the first and last key, which have 2 keys, 2/9."""
    evolution = build("lformer", 4).evolutions[0]
    with torch.inference_mode():
        rows = evolution(torch.full((1, 8, 64, 64), 1 / 64))[0, 0]
    assert rows[:, [0, 63]].numpy() == pytest.approx(0.014028, abs=5e-7)
    assert rows[:, 1:63].numpy() == pytest.approx(0.015677, abs=5e-7)
    assert rows.sum(-1).numpy() == pytest.approx(1, abs=1e-6)


def test_lformer_s_maps_sum_to_one_in_every_stage() -> None:
    network = build("lformer", 3, **{**SMALL["lformer"], "depth": 4}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    maps: list[torch.Tensor] = []
    for evolution in network.evolutions:
        evolution.register_forward_hook(lambda module, given, made: maps.extend((*given, made)))
    with torch.inference_mode():
        network(*inputs(3))
    assert len(maps) == 6
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not torch.allclose(maps[-1], maps[0], atol=0.01)


@pytest.mark.parametrize("norm_pan", [False, True])
def test_lformer_s_map_depends_on_pan_unless_pan_is_normalised(norm_pan: bool) -> None:
    network, (up, pan, _, _) = build("lformer", 4, **SMALL["lformer"], norm_pan=norm_pan).eval(), inputs(4)
    with torch.inference_mode():
        one, other, of_ms = (
            network._attention(*both)[0] for both in ((up, pan), (up, 1 - pan), (up[..., ::2].repeat(1, 1, 1, 2), pan))
        )
    assert float((one - other).abs().max()) == 0 if norm_pan else float((one - other).abs().max()) > 1e-4
    assert float((one - of_ms).abs().max()) > 1e-4  # keys come from MS


def test_lformer_reads_windows_in_place() -> None:
    network, x = build("lformer", 2, **SMALL["lformer"]), torch.randn(2, 8, 16, 24)
    tokens = network._tokens(x)
    assert tokens.shape == (2 * 2 * 3, 2, 64, 4)
    assert torch.equal(tokens[1, 0, :, 0], x[0, 0, :8, 8:16].flatten())
    assert torch.equal(network._from_tokens(tokens, x.shape), x)


def test_lformer_s_high_frequencies_start_as_a_laplacian_of_both_images() -> None:
    network = build("lformer", 2, **SMALL["lformer"])
    rows = torch.arange(12.0)
    ramp, peak = rows[:, None].expand(12, 12).repeat(1, 2, 1, 1), torch.zeros(1, 2, 12, 12)
    peak[..., 5, 5] = 1
    with torch.inference_mode():
        for layer, bands in ((network.high_start.filter_ms, 2), (network.high_start.filter_pan, 1)):
            assert not bool(layer(ramp[:, :bands])[..., 1:-1, :].any())
            assert layer(peak[:, :bands])[0, 0, 4:7, 4:7].tolist() == [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]


def test_a_stage_of_lformer_multiplies() -> None:
    stage, x = build("lformer", 2, **SMALL["lformer"]).stages[0], torch.randn(1, 8, 8, 8)
    torch.nn.init.zeros_(stage.join.weight)
    torch.nn.init.constant_(stage.join.bias, 2)
    assert torch.equal(stage(x, torch.randn(1, 8, 8, 8)), 2 * x)


def test_hin_block_of_panmamba() -> None:
    block, x = panmamba._HinBlock(8), torch.randn(2, 8, 12, 12) * 3 + 1
    with torch.inference_mode():
        half = block.half_normalised(x)
        assert half[:, :4].mean((2, 3)).numpy() == pytest.approx(0, abs=1e-5)
        assert half[:, :4].var((2, 3), correction=0).numpy() == pytest.approx(1, abs=1e-4)
        assert torch.equal(half[:, 4:], x[:, 4:])
        torch.nn.init.zeros_(block.second.weight)
        torch.nn.init.constant_(block.second.bias, -1)
        torch.testing.assert_close(block(x), x - 0.2)  # LeakyReLU's slope, before the sum


def test_refine_of_panmamba_adds_half_of_a_constant_where_its_squeeze_is_zero() -> None:
    refine = panmamba._Refine(4, 4)
    for parameter in refine.parameters():
        torch.nn.init.zeros_(parameter)
    for layer in (refine.enter, refine.first, refine.second, refine.leave):
        torch.nn.init.dirac_(layer.weight)
    with torch.inference_mode():
        torch.testing.assert_close(refine(torch.full((1, 4, 5, 5), 2.0)), torch.full((1, 4, 5, 5), 3.0))


def test_panmamba_drops_the_sums_between_its_blocks() -> None:
    """Where no Mamba gives anything, nothing of the images is left in the detail."""
    network = build("panmamba", 3, **SMALL["panmamba"]).double()
    for module in network.modules():
        if isinstance(module, (panmamba.Mamba, panmamba._CrossModal)):
            torch.nn.init.zeros_(module.leave.weight)
    with torch.inference_mode():
        one, other = (network.detail(up, pan) for up, pan, _, _ in (exact(inputs(3)), exact(inputs(3))))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert bool(one.any())


def test_panmamba_exchanges_the_first_half_of_the_normalised_channels() -> None:
    swap = panmamba._ChannelSwap(6, 4)
    swap.ms = swap.pan = torch.nn.Identity()
    ms, pan = torch.randn(1, 9, 6) * 5, torch.randn(1, 9, 6) - 2
    with torch.inference_mode():
        new_ms, new_pan = swap(ms, pan)
        normalised_ms, normalised_pan = (torch.nn.functional.layer_norm(x, (6,)) for x in (ms, pan))
    torch.testing.assert_close(new_ms, torch.cat((normalised_pan[..., :3], normalised_ms[..., 3:]), -1))
    torch.testing.assert_close(new_pan, torch.cat((normalised_ms[..., :3], normalised_pan[..., 3:]), -1))


def test_panmamba_s_cross_block_has_a_gate_for_each_image() -> None:
    """A gate that is shut lets nothing of its own image pass, and all of the other."""
    block = panmamba._CrossModal(4, 4)
    ms, other, pan, sharp = torch.randn(4, 1, 4, 3, 3)
    pan, sharp = panmamba.sequence(pan), panmamba.sequence(sharp)
    start = torch.zeros_like(pan)
    with torch.inference_mode():
        for enter, given in ((block.enter_ms, ((ms, pan), (other, pan))), (block.enter_pan, ((ms, pan), (ms, sharp)))):
            kept = enter.weight.clone()
            before = [block(image, start, seen)[0] for image, seen in given]
            enter.weight[8:] = 0  # silu(0) = 0
            shut = [block(image, start, seen)[0] for image, seen in given]
            enter.weight.copy_(kept)
            assert not torch.allclose(*before, atol=1e-4)
            torch.testing.assert_close(*shut)
            assert float(shut[0].sub(block.around.bias.view(-1, 1, 1)).abs().max()) > 1e-4


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
        ("unet", 4, {}, "There is no fusion network 'unet'; choose one of detail, modulation, pnn"),
        ("pnn", 0, {}, "cannot be built for 0 bands; give"),
        ("pnn", 4, {"depth": 3}, "The network PNN has no option 'depth'; choose among width, second_width, r"),
        ("pnn", 4, {"second_width": 0}, "The network PNN cannot have second_width 0; give a whole number from 1."),
        ("pnn", 4, {"repeated_border": 1}, "cannot have repeated_border 1; give true or false."),
        ("lformer-0.1", 4, {}, "There is no fusion network 'lformer-0.1'; choose"),
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
    assert table() in DOCUMENT.read_text(encoding="utf-8")

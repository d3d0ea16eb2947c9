"""Differentiable terms: as the exact figures are, zero where nothing is wrong, and with finite gradients."""

from __future__ import annotations

import dataclasses

import image_metrics
import pytest

torch = pytest.importorskip("torch")

from clippan.core.errors import ClippanError  # noqa: E402
from clippan.fusion import metrics  # noqa: E402
from clippan.learn.fusion import losses  # noqa: E402
from clippan.learn.fusion.batch import PatchBatch  # noqa: E402
from clippan.learn.fusion.objective import LossWeights, Objective  # noqa: E402

RATIO = 4


def ground(n: int, bands: int, edge: int) -> torch.Tensor:
    """Patches of bands that look alike, with shapes of several sizes, in counts around 500."""
    generator = torch.Generator().manual_seed(0)

    def noise(channels: int) -> torch.Tensor:
        parts = [torch.rand(n, channels, edge // step, edge // step, generator=generator) for step in (1, 4, 16)]
        return sum(torch.nn.functional.interpolate(part, (edge, edge), mode="nearest") for part in parts)

    return 200 + 150 * (0.8 * noise(1) + 0.4 * noise(bands))


def make(n: int = 3, bands: int = 4, edge: int = 128, truth: torch.Tensor | None = None) -> PatchBatch:
    """A batch whose sensor averages RATIO² pixels, and whose PAN is a sum of the bands.

    MS covers the whole patch here, so that figures of whole images can be compared.
    """
    truth = ground(n, bands, edge) if truth is None else truth
    n, bands, edge = truth.shape[:3]
    small = edge // RATIO
    down = torch.repeat_interleave(torch.eye(small), RATIO, dim=1) / RATIO
    pan = (truth * torch.linspace(0.5, 1.0, bands)[:, None, None]).mean(dim=1, keepdim=True)
    ms, degraded_pan = down @ truth @ down.T, down @ pan @ down.T
    mean, std = ms.mean((2, 3), keepdim=True), ms.std((2, 3), keepdim=True) + 1e-3
    pan_mean, pan_std = degraded_pan.mean((2, 3), keepdim=True), degraded_pan.std((2, 3), keepdim=True) + 1e-3

    def up(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(values, (edge, edge), mode="bicubic", align_corners=False)

    ms, pan, degraded_pan = (ms - mean) / std, (pan - pan_mean) / pan_std, (degraded_pan - pan_mean) / pan_std
    return PatchBatch(
        up=up(ms),
        pan=pan,
        pan_lowpass=up(degraded_pan).expand(-1, bands, -1, -1),
        classical=up(ms) + 0.9 * (pan - up(degraded_pan)),
        ms=ms,
        degraded_pan=degraded_pan,
        row_filters=down.expand(n, bands, -1, -1),
        column_filters=down.expand(n, bands, -1, -1),
        mean=mean,
        std=std,
        pan_mean=pan_mean,
        pan_std=pan_std,
        conditions=torch.zeros(n, bands, 2),
        ratio=float(RATIO),
        scenes=torch.arange(n),
        target=(truth - mean) / std,
    )


TERMS = {
    "spectral": losses.spectral_loss,
    "spatial": losses.spatial_loss,
    "khan": losses.khan_d_lambda,
    "alparone": losses.alparone_d_lambda,
    "spatial distortion": losses.d_s,
    "qnr": losses.qnr_loss,
    "detail": lambda batch, fused: 1 - losses.detail_correlation(fused, batch.pan, batch.scenes),
    "pseudo": lambda batch, fused: losses.pseudo_label_loss(batch, fused, lambda *inputs: batch.classical),
    "supervised": losses.supervised_loss,
    "quality": losses.q2n_loss,
    "angle": losses.spectral_angle_loss,
}


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_figures_of_blocks_are_the_exact_ones(bands: int) -> None:
    batch = make(bands=bands)
    fused, pan = batch.destandardise(batch.classical), batch.destandardise_pan(batch.pan)
    ms, degraded_pan = batch.destandardise(batch.ms), batch.destandardise_pan(batch.degraded_pan)
    uqi, matrix = losses.block_uqi(fused, pan), losses.uqi_matrix(torch.cat([fused, pan], dim=1))
    q2n = losses.block_q2n(fused, batch.destandardise(batch.up))
    spatial, alparone = [], []
    for number in range(len(fused)):
        exact = metrics.BlockUQI()
        exact.add(torch.cat([fused[number], pan[number]]))
        assert torch.allclose(matrix[number].double(), exact.value, atol=1e-5)
        assert torch.allclose(uqi[number].double(), exact.value[:-1, -1], atol=1e-5)
        assert float(q2n[number]) == pytest.approx(
            image_metrics.q2n(fused[number], batch.destandardise(batch.up)[number]), abs=2e-4
        )
        spatial.append(image_metrics.d_s(fused[number], pan[number], ms[number], degraded_pan[number], RATIO))
        alparone.append(image_metrics.d_lambda(fused[number], ms[number], RATIO))
    spatial, alparone = torch.tensor(spatial), torch.tensor(alparone)
    assert torch.allclose(losses.d_s(batch, batch.classical), spatial.mean(), atol=1e-5)
    assert torch.allclose(losses.alparone_d_lambda(batch, batch.classical), alparone.mean(), atol=1e-5)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    one = dataclasses.replace(batch, **{name: value[:1] for name, value in tensors.items()})
    qnr = 1 - (1 - alparone[0]) * (1 - spatial[0])
    assert torch.allclose(losses.qnr_loss(one, one.classical), qnr, atol=1e-5)


def test_figures_of_pixels_are_the_exact_ones() -> None:
    batch = make()
    a, b = batch.destandardise(batch.classical), batch.destandardise(batch.target)
    exact = [image_metrics.ssim(one, other, 1000.0) for one, other in zip(a, b)]
    assert losses.ssim(a, b, 1000.0).mean(dim=1).tolist() == pytest.approx(exact, abs=1e-5)
    exact = [image_metrics.scc(one, other) for one, other in zip(a, batch.pan)]
    assert float(losses.detail_correlation(a, batch.pan, batch.scenes)) == pytest.approx(
        sum(exact) / len(exact), abs=1e-5
    )
    exact = [image_metrics.sam(one, other) for one, other in zip(a, b)]
    angle = losses.spectral_angle_loss(batch, batch.classical)
    assert float(torch.rad2deg(angle)) == pytest.approx(sum(exact) / len(exact), abs=1e-3)


def test_a_scene_s_patches_are_averaged_before_they_are_compared() -> None:
    batch = make(4)
    batch = dataclasses.replace(batch, scenes=torch.tensor([7, 7, 7, 7]))
    high = losses.block_uqi(batch.destandardise(batch.classical), batch.destandardise_pan(batch.pan))
    low = losses.block_uqi(batch.destandardise(batch.ms), batch.destandardise_pan(batch.degraded_pan), 8)
    pooled = losses.d_s(batch, batch.classical)
    assert torch.allclose(pooled, (high.mean(0) - low.mean(0)).abs().mean())
    own = losses.d_s(dataclasses.replace(batch, scenes=torch.arange(4)), batch.classical)
    assert torch.allclose(own, (high - low).abs().mean())
    assert pooled <= own


def test_nothing_is_wrong_with_a_perfect_input() -> None:
    batch = make()
    truth = batch.target
    assert losses.spectral_loss(batch, truth).abs() < 1e-5
    assert losses.khan_d_lambda(batch, truth).abs() < 1e-5
    assert losses.supervised_loss(batch, truth) == 0
    assert losses.q2n_loss(batch, truth) < 1e-5
    assert losses.spectral_angle_loss(batch, truth) < 1e-4
    assert losses.pseudo_label_loss(batch, truth, lambda *inputs: truth) == 0
    assert losses.detail_correlation(batch.pan.expand_as(truth), batch.pan, batch.scenes) > 1 - 1e-5
    # Bands that are PAN itself in all scales have no distortion whatever its index is.
    grey = make(truth=ground(3, 1, 128).expand(-1, 4, -1, -1))
    for term in ("alparone", "spatial"):
        assert TERMS[term](grey, grey.target) < 1e-3, term


@pytest.mark.parametrize("term", TERMS)
def test_terms_are_less_for_a_better_image(term: str) -> None:
    batch = make()
    noise = torch.randn(batch.up.shape, generator=torch.Generator().manual_seed(1))
    better = batch.classical if term == "pseudo" else batch.target
    assert TERMS[term](batch, better) < TERMS[term](batch, batch.up + 2 * noise)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("content", ["land", "constant", "zero", "flat beside land", "tiny"])
@pytest.mark.parametrize("fused", ["up", "constant", "noise"])
def test_gradients_are_finite(term: str, content: str, fused: str) -> None:
    truth = ground(2, 4, 64)
    if content == "constant":
        truth = torch.full_like(truth, 700.0)
    elif content == "zero":
        truth = torch.zeros_like(truth)
    elif content == "flat beside land":
        truth[..., :32] = 300.0
    elif content == "tiny":
        truth = truth * 1e-6  # reflectance of a night, in its own unit
    batch = make(truth=truth)
    start = batch.up if fused == "up" else torch.zeros_like(batch.up)
    if fused == "noise":
        start = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    values = start.clone().requires_grad_()
    loss = TERMS[term](batch, values)
    loss.backward()
    assert loss.dim() == 0
    assert loss.isfinite()
    assert values.grad.isfinite().all()
    assert values.grad.norm() < 1e3


def test_patches_may_be_smaller_than_windows_and_blocks() -> None:
    batch = make(edge=16)
    for name, term in TERMS.items():
        assert term(batch, batch.classical).isfinite(), name


def test_bands_that_make_pan_are_found() -> None:
    batch = make()
    assert losses.spatial_loss(batch, batch.target) < 0.01
    assert losses.spatial_loss(batch, batch.up) > 0.1


def test_a_learned_phi_starts_as_the_mean_of_the_bands_and_learns() -> None:
    loss = losses.LearnedPanLoss(4)
    batch = make()
    mean = dataclasses.replace(batch, pan=batch.target.mean(dim=1, keepdim=True))
    assert loss(mean, batch.target).item() == pytest.approx(0, abs=1e-5)
    assert loss(batch, batch.up) > 0.01
    optimiser = torch.optim.SGD(loss.parameters(), 0.1)
    before = loss(batch, batch.target).item()
    loss(batch, batch.target).backward()
    optimiser.step()
    assert (loss.phi.weight - 0.25).abs().min() > 1e-4
    assert loss(batch, batch.target).item() < before


def test_an_objective_sums_only_what_has_a_weight() -> None:
    batch = make()
    weights = LossWeights(spectral=2.0, detail=0.5, supervised=1.0)
    total, terms = Objective(weights)(batch, batch.classical)
    assert set(terms) == {"spectral", "detail", "supervised"}
    assert torch.allclose(total, 2 * terms["spectral"] + 0.5 * terms["detail"] + terms["supervised"])
    assert not any(term.requires_grad for term in terms.values())


def test_an_objective_has_every_term() -> None:
    batch = make()
    names = [field.name for field in dataclasses.fields(LossWeights)]

    objective = Objective(
        LossWeights(**dict.fromkeys(names, 1.0)),
        pseudo=lambda batch, fused: losses.pseudo_label_loss(batch, fused, lambda up, *others: up),
        language=lambda batch, fused: fused.mean(),
    )
    fused = batch.classical.clone().requires_grad_()
    total, terms = objective(batch, fused)
    assert set(terms) == set(names)
    assert torch.allclose(total, sum(terms.values()))
    total.backward()
    assert fused.grad.isfinite().all()


def test_an_objective_computes_in_full_precision() -> None:
    batch = make()
    objective = Objective(LossWeights(spectral=1.0, khan=1.0))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = objective(batch, batch.classical)
    assert torch.equal(total, objective(batch, batch.classical)[0])


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"pseudo": 1.0}, "needs a trained network"),
        ({"qnr": -1.0}, "qnr"),
        ({"qnr": float("nan")}, "qnr"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(weights: dict[str, float], sentence: str) -> None:
    with pytest.raises(ClippanError, match=sentence):
        Objective(LossWeights(**weights))

"""Figures against slow references written from the definitions, hand-computed cases, masks and tilings."""

from __future__ import annotations

import math

import image_metrics
import numpy as np
import pytest
import torch

from clippan.fusion import metrics

RNG = np.random.default_rng(7)


def scene(bands: int, height: int = 64, width: int = 96, base: float = 400) -> torch.Tensor:
    """Smooth structure with noise, in the range of 11-bit data."""
    y, x = np.mgrid[:height, :width]
    planes = [
        base + 60 * b + 90 * np.sin(x / (5 + b)) * np.cos(y / 7) + RNG.normal(0, 20, (height, width))
        for b in range(bands)
    ]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def worse(image: torch.Tensor, noise: float = 15) -> torch.Tensor:
    return image * 1.03 + 5 + torch.from_numpy(RNG.normal(0, noise, image.shape).astype(np.float32))


def blocks_of(image: torch.Tensor, size: int = 32) -> list[np.ndarray]:
    array = image.double().numpy()
    _, height, width = array.shape
    return [
        array[:, y : y + size, x : x + size]
        for y in range(0, height - size + 1, size)
        for x in range(0, width - size + 1, size)
    ]


# Slow references: hypercomplex numbers as nested pairs


def multiply(p, q):
    """Cayley-Dickson: (a, b)(c, d) = (ac − d*b, da + bc*)."""
    if len(p) == 1:
        return [p[0] * q[0]]
    half = len(p) // 2
    a, b, c, d = p[:half], p[half:], q[:half], q[half:]
    first = [x - y for x, y in zip(multiply(a, c), multiply(conjugate(d), b))]
    second = [x + y for x, y in zip(multiply(d, a), multiply(b, conjugate(c)))]
    return first + second


def conjugate(p):
    return [p[0], *(-x for x in p[1:])]


def length(p):
    return math.sqrt(sum(x * x for x in p))


def slow_q2n(image: torch.Tensor, reference: torch.Tensor, normalise: bool) -> float:
    parts = 1
    while parts < image.shape[0]:
        parts *= 2
    values = []
    for block, other in zip(blocks_of(image), blocks_of(reference)):
        if normalise:
            mean, spread = other.mean(axis=(1, 2), keepdims=True), other.std(axis=(1, 2), keepdims=True)
            block, other = (block - mean) / spread + 1, (other - mean) / spread + 1
        zero = np.zeros((parts - len(block), *block.shape[1:]))
        z = list(np.concatenate([other, zero]))
        w = list(np.concatenate([block, zero]))
        mean_z, mean_w = [x.mean() for x in z], [x.mean() for x in w]
        products = [x.mean() for x in multiply(z, conjugate(w))]
        covariance = [x - y for x, y in zip(products, multiply(mean_z, conjugate(mean_w)))]
        var_z = sum((x * x).mean() for x in z) - length(mean_z) ** 2
        var_w = sum((x * x).mean() for x in w) - length(mean_w) ** 2
        values.append(
            4
            * length(covariance)
            * length(mean_z)
            * length(mean_w)
            / ((var_z + var_w) * (length(mean_z) ** 2 + length(mean_w) ** 2))
        )
    return float(np.mean(values))


def slow_uqi(one: np.ndarray, other: np.ndarray) -> float:
    covariance = (one * other).mean() - one.mean() * other.mean()
    return (
        4 * covariance * one.mean() * other.mean() / ((one.var() + other.var()) * (one.mean() ** 2 + other.mean() ** 2))
    )


# UQI and Q2n


def test_uqi_by_hand():
    # Rows 1 2 3 4 against 2 4 6 8: means 2.5 and 5, variances 1.25 and 5, covariance 2.5.
    one = torch.tensor([[1.0, 2], [3, 4]])[None]
    by_hand = 4 * 2.5 * 2.5 * 5 / ((1.25 + 5) * (2.5**2 + 5**2))
    assert by_hand == pytest.approx(0.64)
    assert image_metrics.uqi(one, 2 * one, size=2) == pytest.approx(by_hand)
    assert image_metrics.q2n(one, 2 * one, size=2, normalise=False) == pytest.approx(by_hand)


def test_quaternion_products_follow_hamilton():
    table = metrics._products(4)
    for i, j, k, sign in [(1, 2, 3, 1), (2, 3, 1, 1), (3, 1, 2, 1), (2, 1, 3, -1), (1, 1, 0, -1)]:
        assert table[k, i, j] == sign


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_product_tables_against_nested_pairs(size):
    p, q = RNG.normal(size=size), RNG.normal(size=size)
    fast = np.einsum("kij,i,j->k", metrics.conjugate_products(size).numpy(), p, q)
    np.testing.assert_allclose(fast, multiply(list(p), conjugate(list(q))), atol=1e-12)
    if size <= 8:  # up to the octonions, the modulus of a product is the product of the moduli
        assert length(fast) == pytest.approx(length(p) * length(q))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("normalise", [True, False])
def test_q2n_against_slow_reference(bands, normalise):
    reference = scene(bands)
    image = worse(reference)
    fast = image_metrics.q2n(image, reference, normalise=normalise)
    assert fast == pytest.approx(slow_q2n(image, reference, normalise), abs=1e-6)


def test_normalised_q2n_by_hand():
    # Reference 1 2 3 4, image twice it. In units of the reference's deviation s = sqrt(1.25), with its mean at 1:
    # variances 1 and 4, covariance 2, means 1 and 1 + 2.5 / s.
    one = torch.tensor([[1.0, 2], [3, 4]])[None]
    mean = 1 + 2.5 / math.sqrt(1.25)
    by_hand = 4 * 2 * mean / ((1 + 4) * (1 + mean**2))
    assert image_metrics.q2n(2 * one, one, size=2) == pytest.approx(by_hand)


def test_q2n_of_one_band_is_uqi():
    reference = scene(1)
    image = worse(reference)
    mean = np.mean([slow_uqi(a[0], b[0]) for a, b in zip(blocks_of(image), blocks_of(reference))])
    assert image_metrics.q2n(image, reference, normalise=False) == pytest.approx(mean, abs=1e-6)
    assert image_metrics.uqi(image, reference) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_q2n_is_one_for_equal_images_only(bands):
    reference = scene(bands)
    image = worse(reference)
    assert image_metrics.q2n(reference, reference) == pytest.approx(1)
    assert image_metrics.q2n(image, reference) < 1
    forth = image_metrics.q2n(image, reference, normalise=False)
    back = image_metrics.q2n(reference, image, normalise=False)
    assert forth == pytest.approx(back, abs=1e-6)


def test_every_band_counts_alike_when_normalised():
    reference = scene(4)
    image = worse(reference)
    gains = torch.tensor([1, 0.01, 5, 100]).view(-1, 1, 1)
    assert image_metrics.q2n(gains * image, gains * reference) == pytest.approx(
        image_metrics.q2n(image, reference), abs=1e-5
    )


def test_q2n_does_not_change_with_the_unit():
    reference = scene(4)
    image = worse(reference)
    assert image_metrics.q2n(image / 1e4, reference / 1e4) == pytest.approx(
        image_metrics.q2n(image, reference), abs=1e-5
    )


def test_blocks_without_variance_are_judged_by_their_mean():
    one = torch.full((1, 32, 32), 3.0)
    for normalise in (True, False):
        assert image_metrics.q2n(one, one, normalise=normalise) == 1
        assert image_metrics.q2n(3 * one, one, normalise=normalise) == pytest.approx(2 * 3 / (1 + 9))
        assert image_metrics.q2n(0 * one, 0 * one, normalise=normalise) == 1
    noisy = one + torch.rand(one.shape)
    assert 0 <= image_metrics.q2n(noisy, one) < 0.1


def test_small_variance_on_a_large_mean():
    noise = torch.from_numpy(RNG.normal(0, 1, (2, 32, 32)))
    image = (10000 + noise).float()
    assert image_metrics.q2n(image, image) == pytest.approx(1, abs=1e-6)
    other = image.flip(1)
    for normalise in (True, False):
        fast = image_metrics.q2n(image, other, normalise=normalise)
        assert fast == pytest.approx(slow_q2n(image, other, normalise), abs=1e-4)


def test_integer_images():
    reference = scene(4).to(torch.int32)
    assert image_metrics.q2n(reference, reference) == pytest.approx(1)
    assert image_metrics.sam(reference.to(torch.uint8), reference.to(torch.uint8)) == pytest.approx(0, abs=1e-6)


# SAM, ERGAS, PSNR


def test_sam_of_known_angles():
    reference = torch.zeros(2, 1, 3)
    image = torch.zeros(2, 1, 3)
    reference[0] = 5
    image[:, 0, 0] = torch.tensor([1.0, 1.0])  # 45 degrees
    image[:, 0, 1] = torch.tensor([0.0, 2.0])  # 90 degrees
    image[:, 0, 2] = torch.tensor([7.0, 0.0])  # 0 degrees
    assert image_metrics.sam(image, reference) == pytest.approx(45, abs=1e-5)


def test_sam_of_a_tiny_angle_is_exact():
    reference = torch.tensor([[[1000.0]], [[0.0]]])
    image = torch.tensor([[[1000.0]], [[0.1]]])
    assert image_metrics.sam(image, reference) == pytest.approx(math.degrees(1e-4), rel=1e-3)
    assert image_metrics.sam(3 * reference, reference) == pytest.approx(0, abs=1e-6)


def test_sam_leaves_zero_spectra_out():
    reference, image = scene(3), scene(3)
    whole = image_metrics.sam(image[:, 1:], reference[:, 1:])
    image[:, 0] = 0
    assert image_metrics.sam(image, reference) == pytest.approx(whole, rel=1e-6)


def test_ergas_by_hand():
    reference = torch.tensor([[[10.0, 10], [10, 10]], [[20.0, 20], [20, 20]]])
    image = reference + torch.tensor([[[1.0, -1], [1, -1]], [[4.0, -4], [4, -4]]])
    # RMSE 1 and 4, relative 0.1 and 0.2.
    by_hand = 100 / 4 * math.sqrt((0.1**2 + 0.2**2) / 2)
    assert image_metrics.ergas(image, reference, ratio=4) == pytest.approx(by_hand)
    assert image_metrics.ergas(reference, reference, ratio=4) == 0


def test_psnr_by_hand():
    reference = torch.tensor([[[100.0, 0]], [[50.0, 0]]])
    image = reference + torch.tensor([[[2.0, 0]], [[4.0, 0]]])
    assert image_metrics.psnr(image, reference) == pytest.approx(10 * math.log10(100**2 / 5))
    assert image_metrics.psnr(reference, reference) == math.inf


# SCC, SSIM, high-pass correlation


def laplacian(plane: np.ndarray) -> np.ndarray:
    height, width = plane.shape
    out = np.zeros((height - 2, width - 2))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            out[y - 1, x - 1] = 9 * plane[y, x] - plane[y - 1 : y + 2, x - 1 : x + 2].sum()
    return out


def test_scc_against_slow_reference():
    reference = scene(3, 20, 24)
    image = worse(reference)
    expected = np.mean(
        [
            np.corrcoef(laplacian(a).ravel(), laplacian(b).ravel())[0, 1]
            for a, b in zip(image.double().numpy(), reference.double().numpy())
        ]
    )
    assert image_metrics.scc(image, reference) == pytest.approx(expected, abs=1e-5)
    assert image_metrics.scc(reference, reference) == pytest.approx(1)
    assert image_metrics.scc(-reference, reference) == pytest.approx(-1)


def test_hp_correlation_does_not_see_gain_and_offset():
    pan = scene(1)
    fused = torch.cat([0.2 * pan + 30, 2 * pan - 7])
    assert image_metrics.scc(fused, pan) == pytest.approx(1, abs=1e-5)
    assert image_metrics.scc(fused + 50 * torch.rand(fused.shape), pan) < 0.95


def test_ssim_against_slow_reference():
    reference = scene(2, 16, 18)
    image = worse(reference)
    span = float(reference.max())
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for one, other in zip(image.double().numpy(), reference.double().numpy()):
        for y in range(5, one.shape[0] - 5):
            for x in range(5, one.shape[1] - 5):
                a, b = one[y - 5 : y + 6, x - 5 : x + 6], other[y - 5 : y + 6, x - 5 : x + 6]
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert image_metrics.ssim(image, reference, span) == pytest.approx(np.mean(values), abs=1e-5)
    assert image_metrics.ssim(reference, reference, span) == pytest.approx(1)


# Without a reference


def test_d_s_and_d_lambda_against_slow_reference():
    ms, degraded_pan = scene(3, 16, 24), scene(1, 16, 24)
    fused, pan = scene(3, 64, 96), scene(1, 64, 96)

    def mean_uqi(one, other, size):
        pairs = zip(blocks_of(one[None], size), blocks_of(other[None], size))
        return np.mean([slow_uqi(a[0], b[0]) for a, b in pairs])

    spatial = np.mean([abs(mean_uqi(fused[b], pan[0], 32) - mean_uqi(ms[b], degraded_pan[0], 8)) for b in range(3)])
    spectral = np.mean(
        [abs(mean_uqi(fused[i], fused[j], 32) - mean_uqi(ms[i], ms[j], 8)) for i, j in [(0, 1), (0, 2), (1, 2)]]
    )
    assert image_metrics.d_s(fused, pan, ms, degraded_pan, 4) == pytest.approx(spatial, abs=1e-5)
    assert image_metrics.d_lambda(fused, ms, 4) == pytest.approx(spectral, abs=1e-5)


def test_one_band_has_no_spectral_distortion_between_bands():
    assert image_metrics.d_lambda(scene(1), scene(1, 16, 24), 4) == 0


def test_d_lambda_k():
    upsampled = scene(4)
    assert image_metrics.d_lambda_k(upsampled, upsampled) == pytest.approx(0, abs=1e-6)
    assert 0 < image_metrics.d_lambda_k(worse(upsampled), upsampled) < 1


def test_full_figures_belong_together():
    fused, pan, ms, degraded_pan = scene(4), scene(1), scene(4, 16, 24), scene(1, 16, 24)
    filtered, upsampled = worse(fused), fused
    figures = metrics.FullResolutionMetrics(4)
    figures.add_pan_scale(margin(fused, 1), margin(pan, 1), margin(truth(fused), 1))
    figures.add_mtf_filtered(filtered, upsampled, truth(fused))
    figures.add_ms_scale(ms, degraded_pan, truth(ms))
    values = figures.values
    assert values["D_lambda_K"] == pytest.approx(image_metrics.d_lambda_k(filtered, upsampled))
    assert values["D_s"] == pytest.approx(image_metrics.d_s(fused, pan, ms, degraded_pan, 4))
    assert values["D_lambda"] == pytest.approx(image_metrics.d_lambda(fused, ms, 4))
    assert values["HQNR"] == pytest.approx((1 - values["D_lambda_K"]) * (1 - values["D_s"]))
    assert values["QNR"] == pytest.approx((1 - values["D_lambda"]) * (1 - values["D_s"]))
    assert values["HP_correlation"] == pytest.approx(image_metrics.scc(fused, pan))


# Tiles and masks


def truth(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(image.shape[-2:], dtype=torch.bool)


def margin(image: torch.Tensor, size: int) -> torch.Tensor:
    """Room around the scene: NaN in images, False in masks."""
    fill = False if image.dtype == torch.bool else float("nan")
    return torch.nn.functional.pad(image, (size,) * 4, value=fill)


def cut(image: torch.Tensor, y: int, x: int, size: int, edge: int) -> torch.Tensor:
    return margin(image, edge)[..., y : y + size + 2 * edge, x : x + size + 2 * edge]


@pytest.mark.parametrize("size", [32, 64])
def test_reference_figures_do_not_depend_on_the_tiling(size):
    reference = scene(4, 100, 130)
    image = worse(reference)
    valid = truth(image)
    valid[40:43, 70] = False
    reference[:, 40:43, 70] = float("nan")
    edge = metrics.ReferenceMetrics.MARGIN
    whole = metrics.ReferenceMetrics(4, 800)
    whole.add(*(margin(item, edge) for item in (image, reference, valid)))
    tiled = metrics.ReferenceMetrics(4, 800)
    for y in range(0, 100, size):
        for x in range(0, 130, size):
            tiled.add(*(cut(item, y, x, size, edge) for item in (image, reference, valid)))
    assert whole.values == pytest.approx(tiled.values, rel=1e-6)
    assert all(math.isfinite(value) for value in whole.values.values())
    # The same figures from whole images.
    assert whole.values == pytest.approx(
        {
            "Q2n": image_metrics.q2n(image, reference, valid),
            "SAM": image_metrics.sam(image, reference, valid),
            "ERGAS": image_metrics.ergas(image, reference, 4, valid),
            "SCC": image_metrics.scc(image, reference, valid),
            "PSNR": image_metrics.psnr(image, reference, valid, 800),
            "SSIM": image_metrics.ssim(image, reference, 800, valid),
        },
        rel=1e-6,
    )


def test_invalid_pixels_do_not_matter_whatever_they_hold():
    reference = scene(3)
    image = worse(reference)
    valid = truth(image)
    valid[:10, :50] = False
    figures = []
    for junk in (0.0, -9999.0, 1e30, float("nan"), float("inf")):
        spoilt = torch.where(valid, image, torch.tensor(junk))
        values = metrics.ReferenceMetrics(4, 800)
        values.add(*(margin(item, 5) for item in (spoilt, reference, valid)))
        figures.append(values.values)
    assert all(item == figures[0] for item in figures)


def test_a_block_with_one_invalid_pixel_is_left_out():
    reference = scene(2, 32, 64)
    image = worse(reference)
    valid = truth(image)
    valid[5, 5] = False
    expected = image_metrics.q2n(image[..., 32:], reference[..., 32:])
    assert image_metrics.q2n(image, reference, valid) == pytest.approx(expected)
    assert image_metrics.uqi(image, reference, valid) == pytest.approx(
        image_metrics.uqi(image[..., 32:], reference[..., 32:])
    )


def test_windows_with_one_invalid_pixel_are_left_out():
    image, reference = scene(1, 20, 20), scene(1, 20, 20)
    valid = truth(image)
    valid[:, 9] = False
    figure = metrics.SSIM(800)
    figure.add(image, reference, valid)
    assert figure.count == 0
    figure = metrics.DetailCorrelation()
    figure.add(image, reference, valid)
    assert figure.count == 18 * (18 - 3)


def test_nothing_valid_is_no_number():
    image = scene(3)
    nothing = torch.zeros(image.shape[-2:], dtype=torch.bool)
    assert math.isnan(image_metrics.q2n(image, image, nothing))
    assert math.isnan(image_metrics.uqi(image, image, nothing))
    assert math.isnan(image_metrics.sam(image, image, nothing))
    assert math.isnan(image_metrics.ergas(image, image, 4, nothing))
    assert math.isnan(image_metrics.psnr(image, image, nothing))
    assert math.isnan(image_metrics.scc(image, image, nothing))
    assert math.isnan(image_metrics.ssim(image, image, 800, nothing))

"""Our figures against torchmetrics' and scikit-learn's, on random inputs, where these define them alike.

D_lambda, D_s and QNR are not: torchmetrics takes UQI in Gaussian windows of 11 pixels, the literature and this project
in blocks of 32. Q2n of several bands it does not have."""

from __future__ import annotations

import math

import image_metrics
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch.nn.functional import interpolate
from torchmetrics.functional import image as oracle

from clippan.fusion import metrics


def pair(bands: int, seed: int, height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and its reference (bands, height, width), of values around 100 to 1000."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, bands, height // 8, width // 8, generator=chance)
    reference = 100 + 900 * interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    noise = torch.randn(reference.shape, generator=chance)
    return (reference * (1 + 0.1 * noise) + 20).clamp(min=1), reference


CASES = [(bands, seed) for bands in (1, 3, 4, 8) for seed in range(2)]


@pytest.mark.parametrize(("bands", "seed"), CASES)
def test_sam(bands, seed):
    image, reference = pair(max(bands, 2), seed)  # one band has no angle
    expected = oracle.spectral_angle_mapper(image[None].double(), reference[None].double())
    assert image_metrics.sam(image, reference) == pytest.approx(math.degrees(float(expected)), rel=1e-5)


@pytest.mark.parametrize(("bands", "seed"), CASES)
@pytest.mark.parametrize("ratio", [2, 3.5])
def test_ergas(bands, seed, ratio):
    image, reference = pair(bands, seed)
    expected = oracle.error_relative_global_dimensionless_synthesis(image[None], reference[None], ratio)
    assert image_metrics.ergas(image, reference, ratio) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("bands", "seed"), CASES)
@pytest.mark.parametrize("peak", [255.0, 2047.0])
def test_psnr(bands, seed, peak):
    image, reference = pair(bands, seed)
    expected = oracle.peak_signal_noise_ratio(image[None], reference[None], data_range=peak)
    assert image_metrics.psnr(image, reference, peak=peak) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("bands", "seed"), CASES)
def test_ssim(bands, seed):
    image, reference = pair(bands, seed)
    span = float(reference.max())
    _, whole = oracle.structural_similarity_index_measure(
        image[None].double(), reference[None].double(), data_range=span, return_full_image=True
    )
    # Theirs goes on beyond the border, by mirrored pixels; ours leaves out windows that are not whole.
    expected = float(whole[0, :, 5:-5, 5:-5].mean())
    assert image_metrics.ssim(image, reference, span) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("bands", "seed"), CASES)
def test_scc_of_details(bands, seed):
    # Pearson's coefficient is a figure of scikit-learn's too: the root of the share that a line explains.
    image, reference = pair(bands, seed)
    found = []
    for one, other in zip(metrics.laplacian(image).flatten(1).numpy(), metrics.laplacian(reference).flatten(1).numpy()):
        slope, offset = np.polyfit(one.astype(float), other.astype(float), 1)
        found.append(math.copysign(math.sqrt(sklearn.r2_score(other, slope * one + offset)), slope))
    assert image_metrics.scc(image, reference) == pytest.approx(np.mean(found), abs=1e-4)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [7, 31])
def test_uqi_of_a_block(seed, size):
    # A block of 2 size - 1 pixels has one window of theirs whose place they keep; they need an odd edge.
    image, reference = (part[:, : 2 * size - 1, : 2 * size - 1] for part in pair(3, seed, 64, 64))
    theirs = oracle.universal_image_quality_index(
        image[None].double(), reference[None].double(), (size, size), (1e6, 1e6), reduction="none"
    )[0]
    half = size // 2
    assert theirs.shape[1:] == (size, size)
    inside = slice(half, half + size)
    ours = image_metrics.uqi(image[:, inside, inside], reference[:, inside, inside], size=size)
    assert ours == pytest.approx(float(theirs[:, half, half].mean()), rel=1e-5)
    # For one band, Q2n is the amount of UQI.
    for band in range(3):
        one, other = (part[band : band + 1, inside, inside] for part in (image, reference))
        q = image_metrics.q2n(one, other, size=size, normalise=False)
        assert q == pytest.approx(abs(float(theirs[band, half, half])), rel=1e-4)

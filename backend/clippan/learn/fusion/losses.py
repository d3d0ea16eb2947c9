"""Differentiable losses for batches of fused patches.

Counterparts of the exact figures in ``clippan.fusion.metrics``, and the terms of CLIPPan (Liu et al. 2025, arXiv
2511.10896) that need no language. Losses on standardised values do not depend on the unit; those of the universal
quality index, which also compares means, use the units of the file.

To keep float32 exact and gradients finite, means are subtracted before squaring, and denominators have a floor far
below the value of any real block. Half precision is too coarse: call these outside autocast, as ``Objective`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from clippan.fusion import filters
from clippan.fusion.metrics import BLOCK, GAUSSIAN, conjugate_products, correlate, laplacian, ms_block_size
from clippan.learn.fusion.batch import PatchBatch

DATA_RANGE = 8.0  # standard deviations taken as the data range of standardised values: the mean ± 4
_VARIANCE_FLOOR = 1e-8  # negligible variance relative to the squared mean: 0.1 of 1000 counts
_REFERENCE_VARIANCE_FLOOR = (
    1e-6  # the same where a block is divided by its reference's standard deviation: 1 of 1000 counts
)
_DETAIL_VARIANCE_FLOOR = 1e-6  # negligible variance of the details of standardised values
_TEXTURE_BLOCK = 16  # pixels
_MIN_DETAIL_SLOPE = 0.8  # least share of the classical result's details that should remain everywhere
_RIDGE = 1e-3  # on the variance 1 of standardised bands, which are strongly correlated
_TINY = 1e-20  # keeps 0 / 0 away where a block is zero throughout


def ssim(a: Tensor, b: Tensor, data_range: float = DATA_RANGE) -> Tensor:
    """Structural similarity (Wang et al. 2004), −1 to 1 (equal), averaged over pixels: (n, c).

    (2 μ_a μ_b + C1)(2 σ_ab + C2) / ((μ_a² + μ_b² + C1)(σ_a² + σ_b² + C2)) with C1 = (0.01 L)², C2 = (0.03 L)² under a
    Gaussian window of 11×11, σ 1.5, where it lies inside the patch; smaller patches get a smaller window.

    Args:
        a, b: (n, c, h, w), values from 0 to ``data_range``.
        data_range: the data range L.
    """
    shortened = max(0, 6 - (min(a.shape[-2:]) + 1) // 2)
    taps = GAUSSIAN[shortened : len(GAUSSIAN) - shortened]
    taps = [weight / sum(taps) for weight in taps]
    centres = [image.detach().mean(dim=(-2, -1), keepdim=True) for image in (a, b)]
    one, other = ((image - centre) / data_range for image, centre in zip((a, b), centres))
    maps = torch.stack([one, other, one * one, other * other, one * other])
    x, y, xx, yy, xy = correlate(correlate(maps, taps, -1), taps, -2)
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - x * y) + c2) / ((xx - x * x).clamp(min=0) + (yy - y * y).clamp(min=0) + c2)
    x, y = (mean + centre / data_range for mean, centre in zip((x, y), centres))
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    return (luminance * structure).mean(dim=(-2, -1))


def mse_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """MSE + (1 − SSIM) of standardised values, as in CLIPPan's L_spec and L_spat; a scalar from 0 (equal) up.

    SSIM needs positive values: the mean ± 4 standard deviations become 0 to ``DATA_RANGE``.
    """
    return nn.functional.mse_loss(a, b) + 1 - ssim(a + DATA_RANGE / 2, b + DATA_RANGE / 2).mean()


def _blocks(stack: Tensor, size: int) -> Tensor:
    """Whole blocks (n, blocks, c, size²) from the upper left corner on; a smaller patch is one block."""
    size = min(size, *stack.shape[-2:])
    n, c, height, width = stack.shape
    rows, columns = height // size, width // size
    cut = stack[..., : rows * size, : columns * size].reshape(n, c, rows, size, columns, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c, size * size)


def _means_and_deviations(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n, blocks, c) and the deviations from it (n, blocks, c, size²)."""
    # Two steps: first near the mean, so that float32 is exact enough for values far from zero.
    rough = blocks.mean(dim=-1, keepdim=True)
    deviations = blocks - rough
    rest = deviations.mean(dim=-1, keepdim=True)
    return (rough + rest).squeeze(-1), deviations - rest


def _quality(cross: Tensor, power: Tensor, means: Tensor, mean_power: Tensor) -> Tensor:
    """Contrast and correlation, 2 cross / power, times luminance, 2 means / mean_power."""
    power_floor = _VARIANCE_FLOOR * mean_power.detach() + _TINY
    mean_floor = 1e-6 * power.detach() + _TINY
    return (2 * cross + power_floor) / (power + power_floor) * ((2 * means + mean_floor) / (mean_power + mean_floor))


def block_uqi(a: Tensor, b: Tensor, size: int = BLOCK) -> Tensor:
    """Universal quality index of each band (Wang & Bovik 2002), averaged over distinct blocks: (n, c), −1 to 1 (equal).

    Q = 4 cov(a, b) mean(a) mean(b) / ((var(a) + var(b)) (mean(a)² + mean(b)²))

    Args:
        a, b: (n, c, h, w) in the units of the file; one of them may have a single band for all.
        size: edge of a block in pixels.
    """
    (mean_a, a), (mean_b, b) = _means_and_deviations(_blocks(a, size)), _means_and_deviations(_blocks(b, size))
    cross, power = (a * b).mean(dim=-1), (a * a).mean(dim=-1) + (b * b).mean(dim=-1)
    return _quality(cross, power, mean_a * mean_b, mean_a**2 + mean_b**2).mean(dim=1)


def uqi_matrix(stack: Tensor, size: int = BLOCK) -> Tensor:
    """``block_uqi`` between all pairs of bands of (n, c, h, w), in the units of the file: (n, c, c)."""
    means, deviations = _means_and_deviations(_blocks(stack, size))
    covariance = deviations @ deviations.transpose(-1, -2) / deviations.shape[-1]
    variance, square = covariance.diagonal(dim1=-2, dim2=-1), means**2
    quality = _quality(
        covariance,
        variance[..., :, None] + variance[..., None, :],
        means[..., :, None] * means[..., None, :],
        square[..., :, None] + square[..., None, :],
    )
    return quality.mean(dim=1)


def block_q2n(image: Tensor, reference: Tensor, size: int = BLOCK) -> Tensor:
    """Hypercomplex quality index (Garzelli & Nencini 2009), averaged over distinct blocks: (n,), 0 to 1 (equal).

    The bands are the parts of one hypercomplex number, each brought to the reference's mean 1 and standard deviation
    1 in its block: Q2n = 4 |cov(z, w*)| |mean(z)| |mean(w)| / ((var(z) + var(w)) (|mean(z)|² + |mean(w)|²)).

    Args:
        image, reference: (n, c, h, w) in the units of the file; gradients flow to the image only.
        size: edge of a block in pixels.
    """
    reference = reference.detach()
    (mean, image), (true, reference) = (
        _means_and_deviations(_blocks(image, size)),
        _means_and_deviations(_blocks(reference, size)),
    )
    scale = (reference.square().mean(dim=-1) + _REFERENCE_VARIANCE_FLOOR * true**2 + _TINY).sqrt()
    first, second = reference / scale[..., None], image / scale[..., None]
    bands = mean.shape[-1]
    table = conjugate_products(1 << (bands - 1).bit_length())[:, :bands, :bands].to(first)
    covariance = first @ second.transpose(-1, -2) / first.shape[-1]
    parts = torch.einsum("kij,nbij->nbk", table, covariance)
    power = (first.square().sum(dim=-2) + second.square().sum(dim=-2)).mean(dim=-1)
    ones, means = torch.ones_like(mean), (mean - true) / scale + 1
    lengths = _smooth_norm(ones) * _smooth_norm(means)
    return _quality(_smooth_norm(parts), power, lengths, (ones + means**2).sum(dim=-1)).mean(dim=1)


def _smooth_norm(vectors: Tensor) -> Tensor:
    """Euclidean length over the last dimension, with a finite gradient at zero."""
    return (vectors.square().sum(dim=-1) + 1e-12).sqrt()


def _scene_means(values: Tensor, scenes: Tensor) -> Tensor:
    """Means over the patches of each scene (scenes, …)."""
    _, index, counts = torch.unique(scenes, return_inverse=True, return_counts=True)
    total = values.new_zeros(len(counts), *values.shape[1:]).index_add(0, index, values)
    return total / counts.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def d_s(batch: PatchBatch, fused: Tensor) -> Tensor:
    """D_s: mean over bands of |UQI(fused, PAN) − UQI(MS, PAN on MS's grid)|, a scalar, 0 (best) to 2.

    Alparone et al. 2008, on blocks of 32 pixels and of at least 4 MS samples that cover the same ground. ``batch.ms``
    ends before the patch does, so both UQI are averaged before they are compared; over all patches of a scene, as in
    the exact figure, because a single patch has a difference even where the scene has none.
    """
    return _scene_means(uqi_difference(batch, fused), batch.scenes).abs().mean()


def uqi_difference(batch: PatchBatch, fused: Tensor) -> Tensor:
    """UQI of each fused band with PAN minus that of MS with PAN on MS's grid (n, c); D_s is its mean magnitude."""
    high = block_uqi(batch.destandardise(fused), batch.destandardise_pan(batch.pan))
    low = block_uqi(
        batch.destandardise(batch.ms), batch.destandardise_pan(batch.degraded_pan), ms_block_size(batch.ratio)
    )
    return high - low


def khan_d_lambda(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Khan's D_λ (Khan et al. 2009): 1 − Q2n of the degraded fused bands against MS, 0 (best) to 1.

    Compares at the MS samples, which is cheaper than interpolating MS to PAN's grid as the exact figure does, and free
    of interpolation errors.
    """
    quality = block_q2n(
        batch.destandardise(batch.degrade(fused)), batch.destandardise(batch.ms), ms_block_size(batch.ratio)
    )
    return 1 - quality.mean()


def khan_d_lambda_pan_grid(batch: PatchBatch, fused: Tensor, gains: Sequence[float]) -> Tensor:
    """Khan's D_λ on PAN's grid, as the exact figure: MTF-filtered fused bands against interpolated MS.

    The border of the patch, where the filters reach beyond, is left out.

    Args:
        gains: MTF gain of each band.
    """
    size = fused.shape[-1]
    reach = min(max(filters.mtf_reach(gain, batch.ratio) for gain in gains), size // 2 - 4)
    count = size - 2 * reach
    matrices = torch.stack([filters.mtf_matrix(gain, batch.ratio, count, reach) for gain in gains]).to(fused.device)
    filtered = filters.apply_separable(matrices, fused, matrices)
    inside = slice(reach, size - reach)
    return 1 - block_q2n(batch.destandardise(filtered), batch.destandardise(batch.up[..., inside, inside])).mean()


def alparone_d_lambda(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Alparone's D_λ: mean over pairs of bands of |UQI in fused − UQI in MS|, a scalar, 0 (best) to 2."""
    return _qnr_distortions(batch, fused)[0]


def qnr_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """L_QNR of CLIPPan: 1 − (1 − D_λ)(1 − D_s) with Alparone's D_λ; 0 is best."""
    spectral, spatial = _qnr_distortions(batch, fused)
    return 1 - (1 - spectral) * (1 - spatial)


def _qnr_distortions(batch: PatchBatch, fused: Tensor) -> tuple[Tensor, Tensor]:
    """D_λ and D_s."""
    high = uqi_matrix(torch.cat([batch.destandardise(fused), batch.destandardise_pan(batch.pan)], dim=1))
    low_stack = torch.cat([batch.destandardise(batch.ms), batch.destandardise_pan(batch.degraded_pan)], dim=1)
    low = uqi_matrix(low_stack, ms_block_size(batch.ratio))
    difference = _scene_means(high - low, batch.scenes).abs()
    bands = fused.shape[1]
    row, column = torch.triu_indices(bands, bands, offset=1, device=fused.device)
    # One band has no spectrum to distort.
    spectral = difference[:, row, column].mean() if bands > 1 else difference.new_zeros(())
    return spectral, difference[:, :-1, -1].mean()


def detail_correlation(fused: Tensor, pan: Tensor, scenes: Tensor) -> Tensor:
    """Mean Pearson correlation of the bands' 3×3 Laplacian with that of PAN (Zhou et al. 1998), −1 to 1 (best).

    Args:
        fused, pan: standardised (n, c, H, W) and (n, 1, H, W).
        scenes: scene of each patch (n,), all of whose patches have one coefficient, as in the exact figure, so that the
            noise of flat patches counts less.
    """
    one, other = laplacian(fused), laplacian(pan)
    one, other = (details - details.mean(dim=(-2, -1), keepdim=True) for details in (one, other))
    cross, power, reference = (
        _scene_means(product.mean(dim=(-2, -1)), scenes) for product in (one * other, one * one, other * other)
    )
    return (cross / ((power + _DETAIL_VARIANCE_FLOOR) * (reference + _DETAIL_VARIANCE_FLOOR)).sqrt()).mean()


def texture_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Local lack of the classical result's details, 0 (none) to about 2, a scalar.

    In blocks of 16 pixels, with details d by the 3×3 Laplacian: 1 − corr(d_fused, d_classical), plus how far the slope
    cov(d_fused, d_classical) / var(d_classical) falls below 0.8. All blocks have the same weight, so that a meadow
    counts as much as a town. Own formula: D_s and the detail correlation of a scene do not change if faint textures
    are smoothed away or covered by speckle that differs between bands.
    """
    one, other = (_blocks(laplacian(values), _TEXTURE_BLOCK) for values in (fused, batch.classical))
    one, other = (details - details.mean(dim=-1, keepdim=True) for details in (one, other))
    cross, power, reference = ((a * b).mean(dim=-1) for a, b in ((one, other), (one, one), (other, other)))
    reference = reference + _DETAIL_VARIANCE_FLOOR
    correlation = cross / ((power + _DETAIL_VARIANCE_FLOOR) * reference).sqrt()
    return (1 - correlation + (_MIN_DETAIL_SLOPE - cross / reference).clamp(min=0)).mean()


def spectral_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """L_spec of CLIPPan: MSE + (1 − SSIM) between the degraded fused bands and MS; 0 is best."""
    return mse_ssim_loss(batch.degrade(fused), batch.ms)


def spatial_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """L_spat of CLIPPan: MSE + (1 − SSIM) between φ(fused) and PAN, where φ is a weighted sum of the bands; 0 is best.

    φ is fitted to MS and PAN at the MS samples of each scene by least squares, for any sensor and number of bands.
    """
    weights = _pan_regression(batch)
    return mse_ssim_loss((fused * weights[:, :-1]).sum(dim=1, keepdim=True) + weights[:, -1:], batch.pan)


class LearnedPanLoss(nn.Module):
    """L_spat of CLIPPan with a learned φ: one 1×1 convolution for all scenes, which starts as the mean of the bands.

    Its parameters belong in the optimiser of the fusion network.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.phi = nn.Conv2d(bands, 1, 1)
        nn.init.constant_(self.phi.weight, 1 / bands)
        nn.init.zeros_(self.phi.bias)  # type: ignore[arg-type]

    def forward(self, batch: PatchBatch, fused: Tensor) -> Tensor:
        """MSE + (1 − SSIM) between φ(fused) and PAN, a scalar; 0 is best."""
        return mse_ssim_loss(self.phi(fused), batch.pan)


@torch.no_grad()
def _pan_regression(batch: PatchBatch) -> Tensor:
    """Regression of PAN on the MS bands, with an intercept, for the scene of each patch (n, c + 1, 1, 1)."""
    ms = batch.ms.flatten(2)
    ms = torch.cat([ms, torch.ones_like(ms[:, :1])], dim=1)
    products = torch.cat([ms, batch.degraded_pan.flatten(2)], dim=1) @ ms.transpose(1, 2) / ms.shape[2]
    _, index = torch.unique(batch.scenes, return_inverse=True)
    products = _scene_means(products, batch.scenes)
    ridge = _RIDGE * torch.eye(ms.shape[1], dtype=ms.dtype, device=ms.device)
    return torch.linalg.solve(products[:, :-1] + ridge, products[:, -1])[index][:, :, None, None]


def pseudo_label_loss(batch: PatchBatch, fused: Tensor, teacher: Callable[..., Tensor]) -> Tensor:
    """L_ship of CLIPPan: mean |fused − output of a frozen network for the same patches|; 0 is best."""
    with torch.no_grad():
        label = teacher(*batch.inputs)
    return nn.functional.l1_loss(fused, label)


def supervised_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Mean |fused − reference MS| of standardised values; 0 is best."""
    return nn.functional.l1_loss(fused, _require_target(batch))


def q2n_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """1 − Q2n of the fused bands against the reference MS, in blocks of 32 pixels; 0 (best) to 1."""
    return 1 - block_q2n(batch.destandardise(fused), batch.destandardise(_require_target(batch))).mean()


def spectral_angle_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Mean angle between the fused and the reference spectra in radians (Yuhas et al. 1992), 0 (best) to π."""
    pair = batch.destandardise(fused), batch.destandardise(_require_target(batch))
    one, other = (values / _smooth_norm(values.movedim(1, -1))[:, None] for values in pair)
    # The arc tangent is exact for small angles too, where the arc cosine has no gradient.
    difference, total = (_smooth_norm(vectors.movedim(1, -1)) for vectors in (one - other, one + other))
    return 2 * torch.atan2(difference, total).mean()


def _require_target(batch: PatchBatch) -> Tensor:
    if batch.target is None:
        raise ValueError("the batch has no target: it is of full resolution")
    return batch.target

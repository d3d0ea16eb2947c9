"""What is wrong with fused patches, as numbers that can be differentiated.

The exact figures are in ``clippan.fusion.metrics``; these are their counterparts for batches of patches, and the
terms of CLIPPan (Liu et al. 2025, arXiv 2511.10896) that need no language. Terms on standardised values depend on
no unit; those of the universal quality index, which compares means as well, work in the units of the file.

Two rules keep float32 exact and gradients finite: means are subtracted before anything is squared, and a fraction
has a floor in its denominator, far below what a real block has, so that flat blocks divide zero by the floor. Half
precision is not enough for differences of squares: call these outside autocast, as ``Objective`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from clippan.fusion import filters
from clippan.fusion.metrics import BLOCK, GAUSSIAN, conjugate_products, correlate, laplacian, ms_block_size
from clippan.learn.fusion.batch import PatchBatch

SPAN = 8.0  # standard deviations that are taken for the range of standardised values: the mean ± 4
_QUIET = 1e-8  # variance, over the squared mean, that counts as none: 0.1 of 1000 counts
_SPREAD = 1e-6  # the same where a block is divided by its own spread: 1 of 1000 counts
_FAINT = 1e-6  # variance of details of standardised values that counts as none
_TEXTURE = 16  # pixels, edge of the blocks whose texture is compared
_SLOPE = 0.8  # of the classical result's details, that should be left everywhere
_RIDGE = 1e-3  # on the variance 1 of a standardised band; bands look too much alike without
_TINY = 1e-20  # keeps 0 / 0 away where a block is zero throughout


# Structural similarity


def ssim(a: Tensor, b: Tensor, span: float = SPAN) -> Tensor:
    """Structural similarity (Wang et al. 2004), −1 to 1 (equal), averaged over pixels: (n, c).

    (2 μ_a μ_b + C1)(2 σ_ab + C2) / ((μ_a² + μ_b² + C1)(σ_a² + σ_b² + C2)) with C1 = (0.01 L)², C2 = (0.03 L)² under a
    Gaussian window of 11×11, σ 1.5, where it lies inside the patch; smaller patches get a smaller window.

    Args:
        a, b: (n, c, h, w), values from 0 to ``span``.
        span: the data range L.
    """
    cut = max(0, 6 - (min(a.shape[-2:]) + 1) // 2)
    taps = GAUSSIAN[cut : len(GAUSSIAN) - cut]
    taps = [weight / sum(taps) for weight in taps]
    centres = [image.detach().mean(dim=(-2, -1), keepdim=True) for image in (a, b)]
    one, other = ((image - centre) / span for image, centre in zip((a, b), centres))
    maps = torch.stack([one, other, one * one, other * other, one * other])
    x, y, xx, yy, xy = correlate(correlate(maps, taps, -1), taps, -2)
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - x * y) + c2) / ((xx - x * x).clamp(min=0) + (yy - y * y).clamp(min=0) + c2)
    x, y = (mean + centre / span for mean, centre in zip((x, y), centres))
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    return (luminance * structure).mean(dim=(-2, -1))


def mse_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """MSE + (1 − SSIM) of standardised values, CLIPPan's measure in both its terms; 0 (equal) and up, one number.

    SSIM's luminance compares ratios of positive values: it sees the mean ± 4 standard deviations as 0 to ``SPAN``.
    """
    return nn.functional.mse_loss(a, b) + 1 - ssim(a + SPAN / 2, b + SPAN / 2).mean()


# Blocks: UQI and Q2n


def _blocks(stack: Tensor, size: int) -> Tensor:
    """Whole blocks (n, blocks, c, size²) from the first corner on; one smaller block where the patch is smaller."""
    size = min(size, *stack.shape[-2:])
    n, c, height, width = stack.shape
    rows, columns = height // size, width // size
    cut = stack[..., : rows * size, : columns * size].reshape(n, c, rows, size, columns, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c, size * size)


def _moments(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n, blocks, c) and the deviations from it (n, blocks, c, size²)."""
    # Two steps: first near the mean, so that float32 is exact enough for values far from zero.
    rough = blocks.mean(dim=-1, keepdim=True)
    deviations = blocks - rough
    rest = deviations.mean(dim=-1, keepdim=True)
    return (rough + rest).squeeze(-1), deviations - rest


def _quality(cross: Tensor, power: Tensor, means: Tensor, mean_power: Tensor) -> Tensor:
    """2 cross / power, contrast with correlation, times 2 means / mean_power, luminance."""
    quiet = _QUIET * mean_power.detach() + _TINY
    dark = 1e-6 * power.detach() + _TINY
    return (2 * cross + quiet) / (power + quiet) * ((2 * means + dark) / (mean_power + dark))


def block_uqi(a: Tensor, b: Tensor, size: int = BLOCK) -> Tensor:
    """Universal quality index of each band (Wang & Bovik 2002), averaged over distinct blocks: (n, c), −1 to 1 (equal).

    Q = 4 cov(a, b) mean(a) mean(b) / ((var(a) + var(b)) (mean(a)² + mean(b)²))

    Args:
        a, b: (n, c, h, w) in the units of the file; one of them may have a single band for all.
        size: edge of a block in pixels.
    """
    (mean_a, a), (mean_b, b) = _moments(_blocks(a, size)), _moments(_blocks(b, size))
    cross, power = (a * b).mean(dim=-1), (a * a).mean(dim=-1) + (b * b).mean(dim=-1)
    return _quality(cross, power, mean_a * mean_b, mean_a**2 + mean_b**2).mean(dim=1)


def uqi_matrix(stack: Tensor, size: int = BLOCK) -> Tensor:
    """``block_uqi`` between all pairs of bands of (n, c, h, w), in the units of the file: (n, c, c)."""
    means, deviations = _moments(_blocks(stack, size))
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
    (mean, image), (true, reference) = _moments(_blocks(image, size)), _moments(_blocks(reference, size))
    scale = (reference.square().mean(dim=-1) + _SPREAD * true**2 + _TINY).sqrt()
    first, second = reference / scale[..., None], image / scale[..., None]
    bands = mean.shape[-1]
    table = conjugate_products(1 << (bands - 1).bit_length())[:, :bands, :bands].to(first)
    covariance = first @ second.transpose(-1, -2) / first.shape[-1]
    parts = torch.einsum("kij,nbij->nbk", table, covariance)
    power = (first.square().sum(dim=-2) + second.square().sum(dim=-2)).mean(dim=-1)
    ones, means = torch.ones_like(mean), (mean - true) / scale + 1
    lengths = _length(ones) * _length(means)
    return _quality(_length(parts), power, lengths, (ones + means**2).sum(dim=-1)).mean(dim=1)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length over the last dimension, with a gradient at zero, where the true one has none."""
    return (vectors.square().sum(dim=-1) + 1e-12).sqrt()


def _pooled(values: Tensor, scenes: Optional[Tensor]) -> Tensor:
    """Means over the patches of each scene (scenes, …); without ``scenes`` the patches' own values."""
    if scenes is None:
        return values
    _, index, counts = torch.unique(scenes, return_inverse=True, return_counts=True)
    total = values.new_zeros(len(counts), *values.shape[1:]).index_add(0, index, values)
    return total / counts.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


# Distortions


def spatial_distortion(batch: PatchBatch, fused: Tensor, pooled: bool = False) -> Tensor:
    """D_s: mean over bands of |UQI(fused, PAN) − UQI(MS, PAN at MS's grid)|, 0 (best) to 2, one number.

    Alparone et al. 2008, on blocks of 32 pixels and of the samples that cover their scene, at least 4. ``batch.ms``
    ends before the patch does; so both figures are averaged before they are compared.

    Args:
        pooled: average over all patches of a scene first, as the exact figure does; the greater the batch, the
            nearer. A single patch has a difference even where the scene has none.
    """
    return _pooled(uqi_difference(batch, fused), batch.scenes if pooled else None).abs().mean()


def uqi_difference(batch: PatchBatch, fused: Tensor) -> Tensor:
    """UQI of each fused band with PAN less that of MS with PAN one scale down (n, c), of which D_s is the magnitude."""
    high = block_uqi(batch.units(fused), batch.pan_units(batch.pan))
    low = block_uqi(batch.units(batch.ms), batch.pan_units(batch.pan_low), ms_block_size(batch.ratio))
    return high - low


def spectral_distortion(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Khan's D_λ (Khan et al. 2009), 1 − Q2n of the fused bands as the sensor would see them against MS: 0 (best) to 1.

    The exact figure compares on PAN's grid, with MS interpolated; here both are at MS's samples, in blocks of the
    same scene, which is cheaper and leaves the interpolation's own errors out.
    """
    quality = block_q2n(batch.units(batch.degrade(fused)), batch.units(batch.ms), ms_block_size(batch.ratio))
    return 1 - quality.mean()


def spectral_distortion_on_pan(batch: PatchBatch, fused: Tensor, gains: Sequence[float]) -> Tensor:
    """The same as the exact figure has it: on PAN's grid, of the fused bands after each one's MTF filter, against
    interpolated MS. The patch's border is left out, as far as the filters reach beyond.

    Args:
        gains: of the bands' MTF.
    """
    size = fused.shape[-1]
    reach = min(max(filters.mtf_reach(gain, batch.ratio) for gain in gains), size // 2 - 4)
    count = size - 2 * reach
    matrices = torch.stack([filters.mtf_matrix(gain, batch.ratio, count, reach) for gain in gains]).to(fused.device)
    seen = filters.apply_separable(matrices, fused, matrices)
    inside = slice(reach, size - reach)
    return 1 - block_q2n(batch.units(seen), batch.units(batch.up[..., inside, inside])).mean()


def band_distortion(batch: PatchBatch, fused: Tensor, pooled: bool = False) -> Tensor:
    """Alparone's D_λ: mean over pairs of bands of |UQI in fused − UQI in MS|, 0 (best) to 2, on the same blocks."""
    return _qnr_distortions(batch, fused, pooled)[0]


def qnr_loss(batch: PatchBatch, fused: Tensor, pooled: bool = False) -> Tensor:
    """L_QNR of CLIPPan: 1 − (1 − D_λ)(1 − D_s) with Alparone's D_λ, 0 is best; see ``spatial_distortion``."""
    spectral, spatial = _qnr_distortions(batch, fused, pooled)
    return 1 - (1 - spectral) * (1 - spatial)


def _qnr_distortions(batch: PatchBatch, fused: Tensor, pooled: bool) -> tuple[Tensor, Tensor]:
    """D_λ and D_s."""
    high = uqi_matrix(torch.cat([batch.units(fused), batch.pan_units(batch.pan)], dim=1))
    low_stack = torch.cat([batch.units(batch.ms), batch.pan_units(batch.pan_low)], dim=1)
    low = uqi_matrix(low_stack, ms_block_size(batch.ratio))
    difference = _pooled(high - low, batch.scenes if pooled else None).abs()
    bands = fused.shape[1]
    row, column = torch.triu_indices(bands, bands, offset=1, device=fused.device)
    # One band has no spectrum to distort.
    spectral = difference[:, row, column].mean() if bands > 1 else difference.new_zeros(())
    return spectral, difference[:, :-1, -1].mean()


def detail_correlation(fused: Tensor, pan: Tensor, scenes: Optional[Tensor] = None) -> Tensor:
    """Correlation of the 3×3 Laplacian's details with those of PAN (Zhou et al. 1998), −1 to 1 (best), one number.

    Pearson's coefficient per band and patch, then the mean.

    Args:
        fused, pan: standardised (n, c, H, W) and (n, 1, H, W).
        scenes: of each patch (n,): takes one coefficient over all patches of a scene, so that details decide more
            than the noise of flat patches, as in the exact figure.
    """
    one, other = laplacian(fused), laplacian(pan)
    one, other = (details - details.mean(dim=(-2, -1), keepdim=True) for details in (one, other))
    cross, power, reference = (
        _pooled(product.mean(dim=(-2, -1)), scenes) for product in (one * other, one * one, other * other)
    )
    return (cross / ((power + _FAINT) * (reference + _FAINT)).sqrt()).mean()


def texture_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """What fused patches lack of the classical result's details, place by place: 0 (nothing) to about 2, one number.

    In blocks of 16 pixels, with details d by the 3×3 Laplacian: 1 − corr(d_fused, d_classical), and how far the slope
    cov(d_fused, d_classical) / var(d_classical) falls below ``_SLOPE``. All blocks weigh alike, so a meadow counts as
    much as a town. Own formula: figures of whole scenes (D_s, correlation of details) do not mind if faint textures are
    wiped out, or drowned in speckle that differs from band to band; readers of the picture do.
    """
    one, other = (_blocks(laplacian(values), _TEXTURE) for values in (fused, batch.classical))
    one, other = (details - details.mean(dim=-1, keepdim=True) for details in (one, other))
    cross, power, reference = ((a * b).mean(dim=-1) for a, b in ((one, other), (one, one), (other, other)))
    reference = reference + _FAINT
    correlation = cross / ((power + _FAINT) * reference).sqrt()
    return (1 - correlation + (_SLOPE - cross / reference).clamp(min=0)).mean()


# CLIPPan's terms without language


def spectral_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """L_spec of CLIPPan: MSE + (1 − SSIM) between the fused bands as the sensor would see them and MS; 0 is best."""
    return mse_ssim_loss(batch.degrade(fused), batch.ms)


class LearnedSpatialLoss(nn.Module):
    """L_spat of CLIPPan: MSE + (1 − SSIM) between φ(fused) and PAN, 0 is best; φ is a weighted sum of the bands.

    φ's weights are learned beside the network's: hand ``parameters()`` to the optimiser. They hold for one sensor.

    Args:
        bands: number of them.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(bands, 1, 1)
        nn.init.constant_(self.mix.weight, 1 / bands)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, batch: PatchBatch, fused: Tensor) -> Tensor:
        return mse_ssim_loss(self.mix(fused), batch.pan)


def spatial_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """L_spat with φ fitted by least squares between MS and PAN at the MS samples, for any sensor and number of bands.

    Each scene of the batch has its own φ.
    """
    weights = _band_weights(batch)
    return mse_ssim_loss((fused * weights[:, :-1]).sum(dim=1, keepdim=True) + weights[:, -1:], batch.pan)


@torch.no_grad()
def _band_weights(batch: PatchBatch) -> Tensor:
    """Regression of PAN on the MS bands, with an intercept, for the scene of each patch (n, c + 1, 1, 1)."""
    ms = batch.ms.flatten(2)
    ms = torch.cat([ms, torch.ones_like(ms[:, :1])], dim=1)
    products = torch.cat([ms, batch.pan_low.flatten(2)], dim=1) @ ms.transpose(1, 2) / ms.shape[2]
    _, index = torch.unique(batch.scenes, return_inverse=True)
    products = _pooled(products, batch.scenes)
    ridge = _RIDGE * torch.eye(ms.shape[1], dtype=ms.dtype, device=ms.device)
    return torch.linalg.solve(products[:, :-1] + ridge, products[:, -1])[index][:, :, None, None]


def pseudo_label_loss(fused: Tensor, teacher: Tensor) -> Tensor:
    """L_ship of CLIPPan: mean |fused − what a frozen network made of the same patches|; 0 is best."""
    return nn.functional.l1_loss(fused, teacher)


# With a reference


def supervised_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Mean |fused − the true MS| of standardised values; 0 is best."""
    return nn.functional.l1_loss(fused, _target(batch))


def q2n_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """1 − Q2n of the fused bands against the true MS, in blocks of 32 pixels; 0 (best) to 1."""
    return 1 - block_q2n(batch.units(fused), batch.units(_target(batch))).mean()


def spectral_angle_loss(batch: PatchBatch, fused: Tensor) -> Tensor:
    """Mean angle between the fused and the true spectra in radians (Yuhas et al. 1992), 0 (best) to π."""
    pair = batch.units(fused), batch.units(_target(batch))
    one, other = (values / _length(values.movedim(1, -1))[:, None] for values in pair)
    # Twice the arc tangent is exact for small angles too, where the arc cosine has no gradient.
    apart, along = (_length(vectors.movedim(1, -1)) for vectors in (one - other, one + other))
    return 2 * torch.atan2(apart, along).mean()


def _target(batch: PatchBatch) -> Tensor:
    if batch.target is None:
        raise ValueError("the batch has no target: it is of full resolution")
    return batch.target

"""Quality metrics of pansharpened images, with and without a reference.

Images are tensors (bands, height, width) of any numeric type, both in the same unit; validity masks are bool tensors
(height, width), None where every pixel is valid. Invalid pixels, and every block or window that holds one, are left
out.

Each metric accumulates over tiles: ``add`` takes a tile, ``value`` is the result so far. Block metrics need tiles that
start at multiples of the block; window metrics need tiles with a margin that is invalid beyond the scene (see
``WindowMetric``). Then the result does not depend on the tiling.

Sources of the definitions: Wang & Bovik 2002 (UQI), Garzelli & Nencini 2009 (Q2n), Yuhas et al. 1992 (SAM),
Wald 2002 (ERGAS), Zhou et al. 1998 (SCC and the correlation of high-pass details), Wang et al. 2004 (SSIM),
Alparone et al. 2008 (D_lambda, D_s, QNR), Khan et al. 2009 (D_lambda_K), Aiazzi et al. 2014 (HQNR).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Optional

import torch
from torch import Tensor

BLOCK = 32  # pixels, edge of a block; the standard for UQI and Q2n of pansharpening
NAN = float("nan")


class _Mean:
    """A metric that is a mean over blocks or pixels, of which ``count`` were added so far."""

    def __init__(self) -> None:
        self._sum = 0.0
        self.count = 0

    @property
    def value(self) -> float:
        """The mean; NaN if nothing valid was added."""
        return self._sum / self.count if self.count else NAN


# Blocks: UQI and Q2n


def _blocks(image: Tensor, valid: Optional[Tensor], size: int) -> Tensor:
    """Whole valid blocks as (blocks, bands, size²), float32; the rest at the far edges is dropped."""
    height, width = image.shape[-2:]
    rows, columns = height // size, width // size

    def cut(plane: Tensor) -> Tensor:
        plane = plane[:, : rows * size, : columns * size]
        plane = plane.reshape(len(plane), rows, size, columns, size).permute(1, 3, 0, 2, 4)
        return plane.reshape(rows * columns, plane.shape[2], size * size)

    blocks = cut(image)
    if valid is not None:
        blocks = blocks[cut(valid[None]).flatten(1).all(dim=1)]
    return blocks.float()


def _means_and_deviations(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each band (blocks, bands), in float64, and the deviations from it, in float32."""
    # Two steps: first near the mean, so that float32 is exact enough for values far from zero.
    rough = blocks.mean(dim=2, keepdim=True)
    deviations = blocks - rough
    rest = deviations.mean(dim=2, keepdim=True)
    return (rough.double() + rest.double()).squeeze(2), deviations - rest


def _quality(cross: Tensor, power: Tensor, means: Tensor, mean_power: Tensor) -> Tensor:
    """Contrast and correlation times luminance; a factor with denominator zero is 1."""
    contrast = torch.where(power > 0, 2 * cross / power, 1.0)
    luminance = torch.where(mean_power > 0, 2 * means / mean_power, 1.0)
    return contrast * luminance


class BlockUQI:
    """Universal quality index Q between all pairs of channels, averaged over blocks (Wang & Bovik 2002).

    Q = 4 cov(x, y) mean(x) mean(y) / ((var(x) + var(y)) (mean(x)² + mean(y)²)), from −1 to 1 (equal).

    Args:
        size: edge of a block in pixels.
    """

    def __init__(self, size: int = BLOCK) -> None:
        self._size = size
        self._sum: Optional[Tensor] = None
        self.count = 0

    def add(self, image: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile (channels, height, width) that starts at a multiple of the block."""
        blocks = _blocks(image, valid, self._size)
        if not len(blocks):
            return
        means, deviations = _means_and_deviations(blocks)
        covariance = (deviations @ deviations.transpose(1, 2)).double() / self._size**2
        variance = covariance.diagonal(dim1=1, dim2=2)
        square = means**2
        quality = _quality(
            covariance,
            variance[:, :, None] + variance[:, None, :],
            means[:, :, None] * means[:, None, :],
            square[:, :, None] + square[:, None, :],
        )
        total = quality.sum(dim=0).cpu()
        self._sum = total if self._sum is None else self._sum + total
        self.count += len(blocks)

    @property
    def value(self) -> Tensor:
        """Symmetric matrix (channels, channels), float64, with ones on the diagonal."""
        return torch.full((1, 1), NAN) if self._sum is None else self._sum / self.count


@cache
def conjugate_products(size: int) -> Tensor:
    """Table T of the Cayley-Dickson algebra of ``size`` units: e_i · conj(e_j) = sum of T[k, i, j] e_k.

    Sizes 1, 2, 4 and 8 are the reals, complex numbers, quaternions and octonions.
    """
    conjugate = torch.ones(size, dtype=torch.float64)
    conjugate[1:] = -1
    return _products(size) * conjugate


@cache
def _products(size: int) -> Tensor:
    """Table T with e_i · e_j = sum over k of T[k, i, j] e_k, by (a, b)(c, d) = (ac − d*b, da + bc*)."""
    if size == 1:
        return torch.ones(1, 1, 1, dtype=torch.float64)
    half = size // 2
    inner = _products(half)
    swapped = inner.transpose(1, 2)  # the product of the second factor with the first
    conjugate = torch.ones(half, dtype=torch.float64)
    conjugate[1:] = -1
    table = torch.zeros(size, size, size, dtype=torch.float64)
    table[:half, :half, :half] = inner
    table[:half, half:, half:] = -swapped * conjugate
    table[half:, :half, half:] = swapped
    table[half:, half:, :half] = inner * conjugate
    return table


class Q2n(_Mean):
    """Hypercomplex quality index, averaged over blocks (Garzelli & Nencini 2009).

    The bands of a pixel are the parts of one hypercomplex number z with 2ⁿ parts (missing ones are zero), and
    Q2n = 4 |cov(z, w*)| |mean(z)| |mean(w)| / ((var(z) + var(w)) (|mean(z)|² + |mean(w)|²)), from 0 to 1 (equal).
    Without normalisation it is |UQI| for one band, Q4 for four, and Q8 for eight.

    Args:
        size: edge of a block in pixels.
        normalise: whether to scale each band of a block to the reference's mean 1 and standard deviation 1 first, as
            all published figures of pansharpening do; otherwise bright bands with high contrast dominate.
    """

    def __init__(self, size: int = BLOCK, normalise: bool = True) -> None:
        super().__init__()
        self._size = size
        self._normalise = normalise

    def add(self, image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile that starts at a multiple of the block."""
        bands = image.shape[0]
        both = _blocks(torch.cat([reference, image]), valid, self._size)
        if not len(both):
            return
        means, deviations = _means_and_deviations(both)
        if self._normalise:
            scale = _scale(means, deviations, bands)
            means = (means - means[:, :bands].repeat(1, 2)) / scale + 1
            deviations = deviations / scale[:, :, None].float()
        table = conjugate_products(1 << (bands - 1).bit_length())[:, :bands, :bands].to(means)
        first, second = deviations[:, :bands], deviations[:, bands:]
        covariance = (first @ second.transpose(1, 2)).double() / self._size**2
        cross = torch.einsum("kij,nij->nk", table, covariance).norm(dim=1)
        power = deviations.double().square().sum(dim=(1, 2)) / self._size**2
        lengths = means[:, :bands].norm(dim=1) * means[:, bands:].norm(dim=1)
        quality = _quality(cross, power, lengths, means.square().sum(dim=1))
        self._sum += float(quality.sum())
        self.count += len(both)


def _scale(means: Tensor, deviations: Tensor, bands: int) -> Tensor:
    """Divisor of each band of a block (blocks, 2 bands): the reference's standard deviation; where it is zero, the
    image's; where both are zero, the reference's mean. So the result does not depend on the unit."""
    std = deviations.double().square().mean(dim=2).sqrt()
    scale = means[:, :bands].abs()
    for candidate in (std[:, bands:], std[:, :bands]):
        scale = torch.where(candidate > 0, candidate, scale)
    return torch.where(scale > 0, scale, 1.0).repeat(1, 2)


# Pixels: SAM, ERGAS, PSNR


class SAM(_Mean):
    """Spectral angle in degrees, averaged over pixels (Yuhas et al. 1992); 0 is best.

    Pixels whose spectrum is zero in either image are left out.
    """

    def add(self, image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile."""
        one, other = _pixels(image, valid), _pixels(reference, valid)
        lengths = one.norm(dim=0), other.norm(dim=0)
        defined = (lengths[0] > 0) & (lengths[1] > 0)
        one, other = one[:, defined] / lengths[0][defined], other[:, defined] / lengths[1][defined]
        # Exact for small angles too, where the arc cosine loses half the digits.
        angles = 2 * torch.atan2((one - other).norm(dim=0), (one + other).norm(dim=0))
        self._sum += float(angles.double().sum())
        self.count += one.shape[1]

    @property
    def value(self) -> float:
        """The mean; NaN without any pixel."""
        return math.degrees(super().value)


class SquaredErrors:
    """Squared differences from a reference: ERGAS and PSNR."""

    def __init__(self) -> None:
        self.count = 0
        self.peak = -math.inf
        self._squares = torch.zeros(1, dtype=torch.float64)
        self._reference = torch.zeros(1, dtype=torch.float64)

    def add(self, image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile."""
        one, other = _pixels(image, valid), _pixels(reference, valid)
        if not one.shape[1]:
            return
        self._squares = self._squares + (one - other).double().square().sum(dim=1).cpu()
        self._reference = self._reference + other.double().sum(dim=1).cpu()
        self.peak = max(self.peak, float(other.max()))
        self.count += one.shape[1]

    def ergas(self, ratio: float) -> float:
        """100 / ratio · sqrt(mean over bands of (RMSE / mean of the reference)²), 0 is best (Wald 2002)."""
        if not self.count:
            return NAN
        relative = self._squares / self.count / (self._reference / self.count) ** 2
        return 100 / ratio * math.sqrt(float(relative.mean()))

    def psnr(self, peak: Optional[float] = None) -> float:
        """10 log10(peak² / MSE) in dB with one MSE over all bands; infinite for equal images.

        Args:
            peak: the data range; by default the largest value of the reference.
        """
        if not self.count:
            return NAN
        mse = float(self._squares.mean()) / self.count
        peak = self.peak if peak is None else peak
        if peak <= 0:
            return NAN
        return 10 * math.log10(peak**2 / mse) if mse else math.inf


def crop(image: Tensor, margin: int) -> Tensor:
    """An image (…, height, width) without its margin."""
    return image[..., margin : image.shape[-2] - margin, margin : image.shape[-1] - margin]


def _pixels(image: Tensor, valid: Optional[Tensor]) -> Tensor:
    if valid is None or bool(valid.all()):
        return image.flatten(1).float()
    return image[:, valid].float()


# Windows: SCC and SSIM


class WindowMetric:
    """A metric of windows around pixels.

    ``add`` takes a tile with ``MARGIN`` more pixels on each side, which are invalid beyond the scene, so that each
    window belongs to exactly one tile.
    """

    MARGIN = 0

    def _zero_invalid(self, image: Tensor, valid: Optional[Tensor]) -> Tensor:
        # Invalid values may be NaN, which would spread; their windows are dropped afterwards.
        image = image.float()
        return image if valid is None else torch.where(valid, image, torch.zeros_like(image))

    def _whole(self, valid: Optional[Tensor]) -> Optional[Tensor]:
        """Pixels whose window is completely valid."""
        if valid is None:
            return None
        edge = 2 * self.MARGIN + 1
        counts = correlate(correlate(valid.float(), [1.0] * edge, -1), [1.0] * edge, -2)
        return counts > edge**2 - 0.5


class DetailCorrelation(WindowMetric):
    """Correlation of the high-pass details of two images (Zhou et al. 1998), from −1 to 1 (best).

    Pearson's coefficient of the 3×3 Laplacians (8 in the middle, −1 around) over all pixels of a band, averaged over
    bands. Against a reference this is SCC, against PAN the high-pass correlation.
    """

    MARGIN = 1

    def __init__(self) -> None:
        self.count = 0
        self._sums = torch.zeros(5, 1, dtype=torch.float64)

    def add(self, image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile with its margin; ``reference`` has as many bands, or one for all."""
        whole = self._whole(valid)
        one = _pixels(laplacian(self._zero_invalid(image, valid)), whole).double()
        other = _pixels(laplacian(self._zero_invalid(reference, valid)), whole).double().expand_as(one)
        sums = [one, other, one * one, other * other, one * other]
        self._sums = self._sums + torch.stack([values.sum(dim=1) for values in sums]).cpu()
        self.count += one.shape[1]

    @property
    def value(self) -> float:
        """The mean, with 0 for a band without details; NaN without any valid window."""
        if not self.count:
            return NAN
        x, y, xx, yy, xy = self._sums / self.count
        covariance, power = xy - x * y, (xx - x * x) * (yy - y * y)
        return float(torch.where(power > 0, covariance / torch.sqrt(power), 0.0).mean())


def laplacian(image: Tensor) -> Tensor:
    box = correlate(correlate(image, [1.0] * 3, -1), [1.0] * 3, -2)
    return 9 * image[..., 1:-1, 1:-1] - box


def correlate(image: Tensor, taps: list[float], dim: int) -> Tensor:
    """Correlation with taps along a dimension, without padding.

    Sums shifted images, which on a CPU is several times as fast as a convolution of single channels.
    """
    length = image.shape[dim] - len(taps) + 1
    result = image.narrow(dim, 0, length) * taps[0]
    for start, weight in enumerate(taps[1:], 1):
        result.add_(image.narrow(dim, start, length), alpha=weight)
    return result


GAUSSIAN = [math.exp(-(step**2) / (2 * 1.5**2)) for step in range(-5, 6)]
GAUSSIAN = [weight / sum(GAUSSIAN) for weight in GAUSSIAN]


class SSIM(WindowMetric, _Mean):
    """Structural similarity (Wang et al. 2004) with a Gaussian window of 11×11, σ 1.5; from −1 to 1 (equal).

    Averaged over the pixels of a band, then over bands; C1 = (0.01 L)², C2 = (0.03 L)².

    Args:
        data_range: the data range L.
    """

    MARGIN = 5

    def __init__(self, data_range: float) -> None:
        super().__init__()
        self._data_range = data_range

    def add(self, image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> None:
        """Adds a tile with its margin."""
        whole = self._whole(valid)
        one, other = (
            self._zero_invalid(image, valid) / self._data_range,
            self._zero_invalid(reference, valid) / self._data_range,
        )
        maps = torch.stack([one, other, one * one, other * other, one * other])
        x, y, xx, yy, xy = correlate(correlate(maps, GAUSSIAN, -1), GAUSSIAN, -2)
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * x * y + c1) / (x * x + y * y + c1)
        structure = (2 * (xy - x * y) + c2) / (xx - x * x + yy - y * y + c2)
        values = _pixels(luminance * structure, whole)
        self._sum += float(values.double().mean(dim=0).sum())
        self.count += values.shape[1]


# All metrics of a scene


class ReferenceMetrics:
    """Metrics with a reference: Q2n, SAM, ERGAS, SCC, PSNR, SSIM.

    Args:
        ratio: MS over PAN pixel size.
        peak: the reference's largest valid value, the data range of PSNR and SSIM.
    """

    MARGIN = SSIM.MARGIN

    def __init__(self, ratio: float, peak: float) -> None:
        self._ratio, self._peak = ratio, peak
        self._q2n, self._sam, self._errors = Q2n(), SAM(), SquaredErrors()
        self._scc, self._ssim = DetailCorrelation(), SSIM(peak)

    def add(self, image: Tensor, reference: Tensor, valid: Tensor) -> None:
        """Adds a tile that starts at a multiple of ``BLOCK`` and has ``MARGIN`` more pixels on each side."""
        self._ssim.add(image, reference, valid)
        self._scc.add(*(crop(item, self.MARGIN - DetailCorrelation.MARGIN) for item in (image, reference, valid)))
        core = [crop(item, self.MARGIN) for item in (image, reference, valid)]
        for metric in (self._q2n, self._sam, self._errors):
            metric.add(*core)

    @property
    def complete(self) -> bool:
        """Whether every metric has at least one valid block or window."""
        return self._q2n.count > 0 and not math.isnan(self._ssim.value)

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name."""
        return {
            "Q2n": self._q2n.value,
            "SAM": self._sam.value,
            "ERGAS": self._errors.ergas(self._ratio),
            "SCC": self._scc.value,
            "PSNR": self._errors.psnr(self._peak),
            "SSIM": self._ssim.value,
        }


class FullResolutionMetrics:
    """Metrics without a reference: D_lambda_K, D_s, HQNR, D_lambda, QNR, HP_correlation.

    Args:
        ratio: MS over PAN pixel size.
    """

    MARGIN = DetailCorrelation.MARGIN

    def __init__(self, ratio: float) -> None:
        self.ms_block_size = ms_block_size(ratio)
        self._high, self._low = BlockUQI(), BlockUQI(self.ms_block_size)
        self._khan, self._detail = Q2n(), DetailCorrelation()

    def add_pan_scale(self, fused: Tensor, pan: Tensor, valid: Tensor) -> None:
        """Adds a tile of the fused image and of PAN, with ``MARGIN`` more pixels on each side."""
        self._detail.add(fused, pan, valid)
        core = crop(torch.cat([fused.float(), pan.float()]), self.MARGIN)
        self._high.add(core, crop(valid, self.MARGIN))

    def add_mtf_filtered(self, filtered: Tensor, upsampled: Tensor, valid: Tensor) -> None:
        """Adds a tile of the fused image filtered with MS's MTF, and of MS interpolated to PAN's grid."""
        self._khan.add(filtered, upsampled, valid)

    def add_ms_scale(self, ms: Tensor, pan: Tensor, valid: Tensor) -> None:
        """Adds a tile of MS, and of PAN degraded to its grid, that starts at a multiple of ``ms_block_size``."""
        self._low.add(torch.cat([ms.float(), pan.float()]), valid)

    @property
    def complete(self) -> bool:
        """Whether every metric has at least one valid block."""
        return min(self._high.count, self._low.count, self._khan.count) > 0

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name."""
        high, low = self._high.value, self._low.value
        khan, spatial, spectral = 1 - self._khan.value, alparone_d_s(high, low), alparone_d_lambda(high, low)
        return {
            "D_lambda_K": khan,
            "D_s": spatial,
            "HQNR": (1 - khan) * (1 - spatial),
            "D_lambda": spectral,
            "QNR": (1 - spectral) * (1 - spatial),
            "HP_correlation": self._detail.value,
        }


def ms_block_size(ratio: float) -> int:
    """Edge in MS pixels, at least 4, of the block that covers the ground of a ``BLOCK`` of PAN pixels."""
    return max(round(BLOCK / ratio), 4)


def alparone_d_s(high: Tensor, low: Tensor) -> float:
    """D_s from the UQI matrices, with PAN last, of the fused image and of MS: 0 (best) to 2."""
    return float((high[:-1, -1] - low[:-1, -1]).abs().mean())


def alparone_d_lambda(high: Tensor, low: Tensor) -> float:
    """D_λ from the UQI matrices, with PAN last, of the fused image and of MS: 0 (best) to 2."""
    bands = len(high) - 1
    if bands < 2:
        return 0.0  # one band has no spectrum to distort
    row, column = torch.triu_indices(bands, bands, offset=1)
    return float((high[row, column] - low[row, column]).abs().mean())

"""The guided filter, which moves the edges of a map to those of the picture.

He, Sun and Tang 2013, "Guided image filtering", with a colour picture as the guide: within a window, the values of a
class are a linear function of red, green and blue. Fitted to means of cells of several pixels, it is the fast guided
filter (He and Sun 2015), whose result is as sharp as the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_CLASSES_AT_A_TIME = 8  # so that memory does not grow with the number of classes
_MIDDLE = 0.5  # of the picture's range; subtracted for the precision of variances in float32


def filter_margin(radius: int, cell: int = 1) -> int:
    """The distance in pixels within which a pixel's result depends on others; a multiple of ``cell``."""
    reach = radius // cell
    return (2 * reach + (cell > 1)) * cell


def guided_filter(values: Tensor, picture: Tensor, valid: Tensor, radius: int, eps: float, cell: int = 1) -> Tensor:
    """Filters the values of classes (K, h, w) so that their edges follow those of the picture; 0 where invalid.

    The filter is linear and preserves constants: probabilities that sum to 1 still do, but may lie slightly outside
    0 to 1 at an edge. The border of a tile counts as the border of the picture; farther inside than ``filter_margin``,
    results do not depend on the tile if tiles begin at multiples of ``cell`` and this is a power of two.

    Args:
        values: of the classes, float32 (K, h, w).
        picture: red, green and blue from 0 to 1, float32 (3, h, w).
        valid: which pixels are used, bool (h, w).
        radius: of the windows, which are 2 radius + 1 pixels wide; at least ``cell``.
        eps: variance of the picture below which edges are smoothed; above 0.
        cell: edge in pixels of the cells that the filter is fitted to; 1 is the filter of 2013. The radius is rounded
            down to a multiple.
    """
    height, width = valid.shape
    reach = radius // cell
    weight = valid.to(values.dtype)[None]
    guide = torch.where(valid, picture - _MIDDLE, torch.zeros_like(picture))
    share = _cells(weight, cell)  # of valid pixels in a cell
    small = _cells(guide, cell) / share.clamp(min=1e-6)
    count = _box(share, reach).clamp(min=1e-6)

    def mean(planes: Tensor) -> Tensor:
        return _box(planes * share, reach) / count

    mu = mean(small)
    inverse = _inverse(mean(_products(small)) - _products(mu), eps)
    filtered = []
    for part in values.split(_CLASSES_AT_A_TIME):
        fitted = _cells(torch.where(valid, part, torch.zeros_like(part)), cell) / share.clamp(min=1e-6)
        average = mean(fitted)
        covariance = [mean(fitted * small[channel]) - average * mu[channel] for channel in range(3)]
        slopes = [row[0] * covariance[0] + row[1] * covariance[1] + row[2] * covariance[2] for row in inverse]
        offset = average - slopes[0] * mu[0] - slopes[1] * mu[1] - slopes[2] * mu[2]
        smooth = [_upsampled(mean(planes), cell, height, width) for planes in (*slopes, offset)]
        filtered.append((smooth[0] * guide[0] + smooth[1] * guide[1] + smooth[2] * guide[2] + smooth[3]) * weight)
    return torch.cat(filtered)


def _cells(planes: Tensor, cell: int) -> Tensor:
    """Means over cells (c, h, w) → (c, ⌈h / cell⌉, ⌈w / cell⌉), with zeros beyond the border."""
    if cell == 1:
        return planes
    height, width = planes.shape[1:]
    padded = functional.pad(planes, (0, -width % cell, 0, -height % cell))
    return functional.avg_pool2d(padded[None], cell)[0]


def _upsampled(planes: Tensor, cell: int, height: int, width: int) -> Tensor:
    """Bilinear interpolation from cells to pixels."""
    if cell == 1:
        return planes
    grown = functional.interpolate(planes[None], scale_factor=cell, mode="bilinear", align_corners=False)[0]
    return grown[:, :height, :width]


def _box(planes: Tensor, radius: int) -> Tensor:
    """Sums over windows of 2 radius + 1, with zeros beyond the border. Sums of 1, 2, 4, … neighbours are doubled:
    unlike running totals, they add the same numbers in the same order wherever the window lies in a tile."""
    edge = 2 * radius + 1
    for dim, padding in ((-1, (radius, radius)), (-2, (0, 0, radius, radius))):
        size = planes.shape[dim]
        sums = functional.pad(planes, padding)  # of ``length`` neighbours
        planes, done, length = sums.narrow(dim, 0, size), 1, 1  # the edge is odd
        while 2 * length <= edge:
            rest = sums.shape[dim] - length
            sums = sums.narrow(dim, 0, rest) + sums.narrow(dim, length, rest)
            length *= 2
            if edge & length:
                planes = planes + sums.narrow(dim, done, size)
                done += length
    return planes


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _products(planes: Tensor) -> Tensor:
    """The six different products of three planes (3, h, w) → (6, h, w)."""
    return torch.stack([planes[one] * planes[other] for one, other in _PAIRS])


def _inverse(covariance: Tensor, eps: float) -> list[list[Tensor]]:
    """(Σ + eps I)⁻¹ of symmetric 3 × 3 matrices, in the order of ``_products``, from their cofactors."""
    rr, rg, rb, gg, gb, bb = covariance.unbind()
    rr, gg, bb = (variance.clamp(min=0) + eps for variance in (rr, gg, bb))  # rounding may make it negative
    one, two, three = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    four, five, six = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1 / (rr * one + rg * two + rb * three)
    cofactors = [[one, two, three], [two, four, five], [three, five, six]]
    return [[item * scale for item in row] for row in cofactors]

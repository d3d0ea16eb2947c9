"""Images as cells of 4 × 4 pixels with a channel for each pixel (space to depth), for networks that work on cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

FOLD = 4  # PAN pixels along a cell's edge
AROUND = 5  # cells over which local statistics are taken
_PHASES = FOLD * FOLD
_ROW_OF_CELL = {torch.float32: torch.complex128, torch.bfloat16: torch.int64}  # types as long as FOLD numbers
_STEADY = 0.05  # variance, of the scene's, below which a place is too flat for a gain of its own


def pointwise(values: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution of 1 × 1 as the matrix product that it is; with one thread torch's own takes a slow path."""
    return functional.linear(values.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def repeat_per_band(values: Tensor, bands: int) -> Tensor:
    """Maps (n, k, h, w) for each band of each patch (n · bands, k, h, w)."""
    return values.repeat_interleave(bands, dim=0) if len(values) > 1 else values.expand(bands, -1, -1, -1)


def pixel_unshuffle(values: Tensor, more: Sequence[Tensor], level: Optional[Tensor] = None) -> Tensor:
    """The pixels of each cell, row by row, and then more maps of cells, as channels (n, 16 + k, h, w).

    Args:
        values: (n, 1, H, W).
        more: k of (n, 1, h, w).
        level: subtracted from a cell's pixels (n, 1, h, w).
    """
    height, width = values.shape[-2] // FOLD, values.shape[-1] // FOLD
    # Channels last, in which convolutions of few channels are faster; written there at once, as copies cost more here
    # than sums do.
    cells = values.new_empty(len(values), height, width, _PHASES + len(more))
    phases = cells[..., :_PHASES].unflatten(-1, (FOLD, FOLD))
    pixels = values.view(-1, height, FOLD, width, FOLD).transpose(2, 3)
    if level is None:
        phases.copy_(pixels)
    else:
        torch.sub(pixels, level[:, 0, :, :, None, None], out=phases)
    for place, maps in enumerate(more, _PHASES):
        cells[..., place] = maps[:, 0]
    return cells.permute(0, 3, 1, 2)


def pixel_shuffle(cells: Tensor) -> Tensor:
    """Pixels (n, k, H, W) of cells (n, k · 16, h, w), as ``torch.nn.functional.pixel_shuffle``."""
    rows = cells.permute(0, 2, 3, 1)
    quick = cells.device.type == "cpu" and not cells.requires_grad and cells.dtype in _ROW_OF_CELL
    if not quick or not rows.is_contiguous():
        return functional.pixel_shuffle(cells, FOLD)
    # On a CPU eight times as fast: a row of a cell is copied as one number.
    n, height, width, channels = rows.shape
    quads = rows.view(_ROW_OF_CELL[cells.dtype]).view(n, height, width, channels // _PHASES, FOLD)
    pixels = quads.permute(0, 3, 1, 4, 2).contiguous().view(cells.dtype)
    return pixels.view(n, -1, height * FOLD, width * FOLD)


def add_pixel_shuffled(cells: Tensor, base: Tensor) -> Tensor:
    """The sum of pixels (n, c, H, W) and what cells (n · c, 16, h, w) have for them."""
    phases = cells.permute(0, 2, 3, 1).unflatten(-1, (FOLD, FOLD)).transpose(2, 3)
    height, width = base.shape[-2:]
    rows = base.view(-1, height // FOLD, FOLD, width // FOLD, FOLD)
    return (rows + phases).view_as(base)


def cell_means(values: Tensor) -> Tensor:
    """Means of cells (…, h, w)."""
    first, second, third, fourth = values.unflatten(-2, (-1, FOLD)).unbind(-2)
    rows = (first + second).add_(third).add_(fourth)
    first, second, third, fourth = rows.unflatten(-1, (-1, FOLD)).unbind(-1)
    return (first + second).add_(third).add_(fourth).mul_(1 / _PHASES)


def local_statistics(coarse: Tensor, smooth: Tensor) -> tuple[Tensor, ...]:
    """What a band and PAN have in common around each cell: the gain of PAN's detail, a quarter of the logarithms of
    both variances, and their correlation, each (n, c, h, w)."""

    maps = torch.stack([coarse, smooth.expand_as(coarse), coarse.square(), smooth.square(), coarse * smooth])
    middle, light, own, variance, together = _neighbourhood_mean(_neighbourhood_mean(maps, -1), -2)
    own, variance = (own - middle.square()).clamp(min=0), (variance - light.square()).clamp(min=0)
    together = together - middle * light
    gain = together / (variance + _STEADY)
    correlation = together / ((own + 1e-4) * (variance + 1e-4)).sqrt()
    return gain, (own + 1e-3).log() / 4, (variance + 1e-3).log() / 4, correlation


def _neighbourhood_mean(maps: Tensor, dim: int) -> Tensor:
    """Means over neighbours along a dimension; beyond the border its values repeat.

    Sums of shifted maps: on a CPU several times as fast as pooling single channels.
    """
    reach, length = AROUND // 2, maps.shape[dim]
    index = torch.arange(-reach, length + reach, device=maps.device).clamp(0, length - 1)
    wide = maps.index_select(dim, index)
    total = wide.narrow(dim, 0, length).clone()
    for start in range(1, AROUND):
        total += wide.narrow(dim, start, length)
    return total / AROUND

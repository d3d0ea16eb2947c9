"""Windows cut from a scene for a network, and the weighted mean of what it returns for them.

Windows are ``STRIDE`` pixels apart and overlap; one window for each pixel would cost a hundred times as much. The value
of a pixel is the mean over the windows that cover it, weighted by how near the pixel is to the window's centre. The
lattice of windows starts at the first pixel of the scene: a part of a scene that begins at multiples of ``STRIDE``
gives the same values as the whole scene, except near its edges.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

STRIDE = 4


def mirror_padded(values: Tensor, margin: int) -> Tensor:
    """Values (bands, height, width) mirrored at the edges, repeatedly if the margin is wider than the scene."""
    for axis in (1, 2):
        size = values.shape[axis]
        period = max(2 * size - 2, 1)
        indices = torch.arange(-margin, size + margin, device=values.device).remainder(period)
        values = values.index_select(axis, torch.where(indices < size, indices, period - indices))
    return values


def extract(values: Tensor, rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Windows (n, window², bands) centred on the pixels (n,) of a scene padded by half a window, (bands, h, w)."""
    steps = torch.arange(window, device=values.device)
    down = (rows.to(values.device)[:, None] + steps)[:, :, None]
    across = (columns.to(values.device)[:, None] + steps)[:, None, :]
    return values[:, down, across].permute(1, 2, 3, 0).reshape(len(rows), window * window, len(values))


def centres(height: int, width: int, window: int) -> tuple[Tensor, Tensor]:
    """Rows and columns (n,) of the centres of windows that cover a scene; some lie outside by less than half a
    window."""
    half = window // 2
    rows, columns = (torch.arange(-(half // STRIDE) * STRIDE, size + half, STRIDE) for size in (height, width))
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return down.flatten(), across.flatten()


class OverlapMean:
    """A mean (channels, height, width) of overlapping windows of an edge in pixels, weighted by a Hann window."""

    def __init__(self, channels: int, height: int, width: int, window: int, device: torch.device) -> None:
        self.window, self.margin = window, 2 * (window // 2)
        shape = (height + 2 * self.margin, width + 2 * self.margin)
        self.sum = torch.zeros(channels, *shape, device=device)
        self.weight = torch.zeros(shape, device=device)
        ramp = torch.hann_window(window + 2, periodic=False)[1:-1]
        self.window_weights = (ramp[:, None] * ramp).flatten().to(device)

    def add(self, values: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Adds windows (n, window², channels) centred on pixels (n,)."""
        steps = torch.arange(self.window, device=values.device) - self.window // 2 + self.margin
        row_length = self.sum.shape[-1]
        down, across = (indices.to(values.device)[:, None] + steps for indices in (rows, columns))
        pixels = (down[:, :, None] * row_length + across[:, None, :]).flatten()
        weights = self.window_weights.expand(len(rows), -1)
        self.sum.flatten(1).index_add_(1, pixels, (values * weights[..., None]).flatten(0, 1).T)
        self.weight.flatten().index_add_(0, pixels, weights.flatten())

    def mean(self) -> Tensor:
        """The mean so far."""
        inside = slice(self.margin, -self.margin)
        return self.sum[:, inside, inside] / self.weight[inside, inside]


def masked_mean(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Means of (channels, height, width) over the valid pixels in squares of ``2 radius + 1``; 0 where there are
    none."""
    if not radius:
        return values * valid
    size = 2 * radius + 1
    padded = (functional.pad(planes, [radius] * 4) for planes in (values * valid, valid.float()[None]))
    sums, counts = (functional.avg_pool2d(planes[None], size, stride=1)[0] for planes in padded)
    return sums / counts.clamp(min=1 / size**2)

"""Windows of a scene, as what a network sees, and what it says of them laid back over the scene.

Windows that every pixel has for itself would be computed a hundred times over. So windows stand ``stride`` pixels apart
and overlap; a pixel has the mean of what the windows that cover it say of it, those in whose middle it lies counting
most. The lattice begins at the scene's first pixel: parts of a scene give the same as the whole, away from their edges,
if they begin at multiples of ``stride``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

STRIDE = 4


def mirror_padded(values: Tensor, margin: int) -> Tensor:
    """Values (bands, height, width) mirrored at the edges, as often as the margin asks for."""
    for axis in (1, 2):
        size = values.shape[axis]
        places = torch.arange(-margin, size + margin, device=values.device)
        period = max(2 * size - 2, 1)
        places = places.remainder(period)
        values = values.index_select(axis, torch.where(places < size, places, period - places))
    return values


def extract(values: Tensor, rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Windows about the pixels (n,) of a scene, as (n, window², bands).

    Args:
        values: the scene, padded by half a window, (bands, height + window - 1, width + window - 1).
    """
    steps = torch.arange(window, device=values.device)
    down = (rows.to(values.device)[:, None] + steps)[:, :, None]
    across = (columns.to(values.device)[:, None] + steps)[:, None, :]
    return values[:, down, across].permute(1, 2, 3, 0).reshape(len(rows), window * window, len(values))


def centres(height: int, width: int, window: int, stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """Middles of the windows that cover a scene, (n,) each; some lie outside by less than half a window."""
    half = window // 2
    first = -(half // stride) * stride
    rows = torch.arange(first, height + half, stride)
    columns = torch.arange(first, width + half, stride)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return down.flatten(), across.flatten()


def hann_weights(window: int) -> Tensor:
    """How much a window's pixels count, (window²,): most in the middle, a little at the edge."""
    ramp = torch.hann_window(window + 2, periodic=False)[1:-1]
    return (ramp[:, None] * ramp).flatten()


class OverlapMean:
    """A mean of overlapping windows.

    Args:
        channels, height, width: of the picture.
        window: edge of the windows.
    """

    def __init__(self, channels: int, height: int, width: int, window: int, device: torch.device) -> None:
        self.window, self.margin = window, 2 * (window // 2)
        shape = (height + 2 * self.margin, width + 2 * self.margin)
        self.sum = torch.zeros(channels, *shape, device=device)
        self.weight = torch.zeros(shape, device=device)
        self.pixel_weights = hann_weights(window).to(device)

    def add(self, values: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Lays down windows (n, window², channels) about pixels (n,)."""
        steps = torch.arange(self.window, device=values.device) - self.window // 2 + self.margin
        wide = self.sum.shape[-1]
        down, across = (places.to(values.device)[:, None] + steps for places in (rows, columns))
        at = (down[:, :, None] * wide + across[:, None, :]).flatten()
        share = self.pixel_weights.expand(len(rows), -1)
        self.sum.flatten(1).index_add_(1, at, (values * share[..., None]).flatten(0, 1).T)
        self.weight.flatten().index_add_(0, at, share.flatten())

    def mean(self) -> Tensor:
        """The picture, (channels, height, width)."""
        inside = slice(self.margin, -self.margin)
        return self.sum[:, inside, inside] / self.weight[inside, inside]


def batches(rows: Tensor, columns: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the windows at a time."""
    yield from zip(rows.split(size), columns.split(size))


def masked_mean(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Means of the valid pixels in squares of ``2 radius + 1``, of (channels, height, width); 0 where there is none."""
    if not radius:
        return values * valid
    around = [radius] * 4
    shown, counted = functional.pad(values * valid, around)[None], functional.pad(valid.float(), around)[None, None]
    size = 2 * radius + 1
    sums, counts = functional.avg_pool2d(shown, size, stride=1)[0], functional.avg_pool2d(counted, size, stride=1)[0]
    return sums / counts.clamp(min=1 / size**2)

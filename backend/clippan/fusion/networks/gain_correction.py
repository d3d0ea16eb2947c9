"""Our own fusion network, for any sensor: it corrects the classical result where local statistics say so.

PAN's detail is folded to cells of 4 × 4 pixels (space to depth), so that a convolution costs a sixteenth. A trunk looks
at PAN and the mean of the bands once; a head, the same for every band, looks at the trunk's features and at what the
band has in common with PAN around each cell, and gives two gains and a remainder:

    F_b = C_b + a ⊙ (C_b − M_b) + b ⊙ (P − P_L) + r

with M the interpolated MS, C the classical result, P and P_L PAN and its low-pass (the mean of the bands'). The last
layer starts at zero, so that training starts at the classical result. Own design.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FOLD = 4  # PAN pixels along a cell's edge
_AROUND = 5  # cells over which local statistics are taken
_PHASES = FOLD * FOLD
_STEADY = 0.05  # variance, of the scene's, below which a place is too flat for a gain of its own


class GainCorrectionNet(nn.Module):
    """See the module.

    Args:
        width: channels of the trunk.
        head: channels of the bands' head.
        depth: convolutions of the trunk.
    """

    tolerates_bfloat16 = True  # it corrects the classical result, which is not rounded

    def __init__(self, width: int = 40, head: int = 24, depth: int = 3) -> None:
        super().__init__()
        channels = [_PHASES + 3] + [width] * depth
        self.trunk = nn.Sequential(
            *(
                layer
                for before, after in zip(channels, channels[1:])
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True))
            )
        )
        self.shared = nn.Conv2d(width, head, 1)
        self.band = nn.Conv2d(_PHASES + 6, head, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(head, head, 3, padding=1)
        self.last = nn.Conv2d(head, 3 * _PHASES, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    @property
    def margin(self) -> int:
        """PAN pixels around a place that its result depends on."""
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in self.trunk) + 1
        return FOLD * max(convolutions, 2 + _AROUND // 2)

    def forward(self, up: Tensor, pan: Tensor, pan_lowpass: Tensor, classical: Tensor) -> Tensor:
        """See ``networks``."""
        height, width = pan.shape[-2:]
        padding = (0, -width % FOLD, 0, -height % FOLD)
        if any(padding):
            up, pan, pan_lowpass, classical = (
                functional.pad(item, padding, mode="replicate") for item in (up, pan, pan_lowpass, classical)
            )
        bands = up.shape[1]
        coarse, smooth = _cell_means(up), _cell_means(pan_lowpass)
        middle = coarse.mean(dim=1, keepdim=True)
        spread = (coarse - middle).square().mean(dim=1, keepdim=True)
        common = _pixel_unshuffle(
            pan - pan_lowpass.mean(dim=1, keepdim=True), [smooth.mean(dim=1, keepdim=True), middle, spread]
        )
        own = _pixel_unshuffle(
            (classical - up).flatten(0, 1)[:, None],
            [maps.flatten(0, 1)[:, None] for maps in (coarse, smooth, *_local_statistics(coarse, smooth))],
        )
        features = self.band(own)
        features += _repeat_per_band(_pointwise(self.trunk(common), self.shared), bands)
        features = functional.relu(self.mix(functional.relu(features, inplace=True)), inplace=True)
        more, other, rest = _pointwise(features, self.last).chunk(3, dim=1)
        # Under autocast in half precision, as what they are multiplied with; what they correct is not.
        gain, detail = (maps[:, :_PHASES].to(rest.dtype) for maps in (own, common))
        change = torch.addcmul(rest, more, gain).addcmul_(other, _repeat_per_band(detail, bands))
        return _add_pixel_shuffled(change, classical)[..., :height, :width]


def _pointwise(values: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution of 1 × 1 as the matrix product that it is; with one thread torch's own takes a slow path."""
    return functional.linear(values.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def _repeat_per_band(values: Tensor, bands: int) -> Tensor:
    """Maps (n, k, h, w) for each band of each patch (n · bands, k, h, w)."""
    return values.repeat_interleave(bands, dim=0) if len(values) > 1 else values.expand(bands, -1, -1, -1)


def _pixel_unshuffle(values: Tensor, more: Sequence[Tensor]) -> Tensor:
    """The pixels of each cell, row by row, and then more maps of cells, as channels (n, 16 + k, h, w).

    Args:
        values: (n, 1, H, W).
        more: k of (n, 1, h, w).
    """
    height, width = values.shape[-2] // FOLD, values.shape[-1] // FOLD
    # Channels last, in which convolutions of few channels are faster; written there at once, as copies cost more here
    # than sums do.
    cells = values.new_empty(len(values), height, width, _PHASES + len(more))
    phases = cells[..., :_PHASES].unflatten(-1, (FOLD, FOLD))
    phases.copy_(values.view(-1, height, FOLD, width, FOLD).transpose(2, 3))
    for place, maps in enumerate(more, _PHASES):
        cells[..., place] = maps[:, 0]
    return cells.permute(0, 3, 1, 2)


def _add_pixel_shuffled(cells: Tensor, base: Tensor) -> Tensor:
    """The sum of pixels (n, c, H, W) and what cells (n · c, 16, h, w) have for them."""
    phases = cells.permute(0, 2, 3, 1).unflatten(-1, (FOLD, FOLD)).transpose(2, 3)
    height, width = base.shape[-2:]
    rows = base.view(-1, height // FOLD, FOLD, width // FOLD, FOLD)
    return (rows + phases).view_as(base)


def _cell_means(values: Tensor) -> Tensor:
    """Means of cells (…, h, w)."""
    first, second, third, fourth = values.unflatten(-2, (-1, FOLD)).unbind(-2)
    rows = (first + second).add_(third).add_(fourth)
    first, second, third, fourth = rows.unflatten(-1, (-1, FOLD)).unbind(-1)
    return (first + second).add_(third).add_(fourth).mul_(1 / _PHASES)


def _local_statistics(coarse: Tensor, smooth: Tensor) -> tuple[Tensor, ...]:
    """What a band and PAN have in common around each cell: the gain of PAN's detail, the logarithms of both variances,
    and their correlation, each (n, c, h, w)."""

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
    reach, length = _AROUND // 2, maps.shape[dim]
    index = torch.arange(-reach, length + reach, device=maps.device).clamp(0, length - 1)
    wide = maps.index_select(dim, index)
    total = wide.narrow(dim, 0, length).clone()
    for start in range(1, _AROUND):
        total += wide.narrow(dim, start, length)
    return total / _AROUND

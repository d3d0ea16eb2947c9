"""Our own fusion network, for any sensor: it corrects the classical result where local statistics say so.

PAN's detail is folded to cells of 4 × 4 pixels (space to depth), so that a convolution costs a sixteenth. A trunk looks
at PAN and the mean of the bands once; a head, the same for every band, looks at the trunk's features and at what the
band has in common with PAN around each cell, and gives two gains and a remainder:

    F_b = M_b + (1 + a) ⊙ (C_b − M_b) + b ⊙ (P − P_L) + r

with M the interpolated MS, C the classical result, P and P_L PAN and its low-pass (the mean of the bands'). The last
layer starts at zero, so that training starts at the classical result. Own design.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FOLD = 4  # PAN pixels along a cell's edge
_AROUND = 5  # cells over which local statistics are taken
_PHASES = FOLD * FOLD
_STEADY = 0.05  # variance, of the scene's, below which a place is too flat for a gain of its own


class Detail(nn.Module):
    """See the module.

    Args:
        width: channels of the trunk.
        head: channels of the bands' head.
        depth: convolutions of the trunk.
    """

    def __init__(self, width: int = 40, head: int = 28, depth: int = 3) -> None:
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

    def forward(self, up: Tensor, pan: Tensor, low: Tensor, classical: Tensor) -> Tensor:
        """See ``networks``."""
        height, width = pan.shape[-2:]
        padding = (0, -width % FOLD, 0, -height % FOLD)
        if any(padding):
            up, pan, low, classical = (
                functional.pad(item, padding, mode="replicate") for item in (up, pan, low, classical)
            )
        bands = up.shape[1]
        detail = functional.pixel_unshuffle(pan - low.mean(dim=1, keepdim=True), FOLD)
        gain = functional.pixel_unshuffle((classical - up).flatten(0, 1)[:, None], FOLD)
        coarse, smooth = _cells(up), _cells(low)
        statistics = _local(coarse, smooth)
        middle = coarse.mean(dim=1, keepdim=True)
        common = [
            detail,
            smooth.mean(dim=1, keepdim=True),
            middle,
            (coarse - middle).square().mean(dim=1, keepdim=True),
        ]
        shared = self.shared(self.trunk(_last(torch.cat(common, dim=1))))
        own = [gain, coarse.flatten(0, 1)[:, None], smooth.flatten(0, 1)[:, None], statistics.flatten(0, 1)]
        features = self.band(_last(torch.cat(own, dim=1)))
        features += shared.repeat_interleave(bands, dim=0)
        features = functional.relu(self.mix(functional.relu(features, inplace=True)), inplace=True)
        more, other, rest = self.last(features).chunk(3, dim=1)
        change = torch.addcmul(rest, 1 + more, gain)
        change = torch.addcmul(change, other, detail.repeat_interleave(bands, dim=0))
        fused = up + functional.pixel_shuffle(change, FOLD).view_as(up)
        return fused[..., :height, :width]


def _last(values: Tensor) -> Tensor:
    """Channels last, in which convolutions of few channels are faster."""
    return values.contiguous(memory_format=torch.channels_last)


def _cells(values: Tensor) -> Tensor:
    """Means of cells."""
    *rest, height, width = values.shape
    return values.view(*rest, height // FOLD, FOLD, width // FOLD, FOLD).mean(dim=(-3, -1))


def _local(coarse: Tensor, smooth: Tensor) -> Tensor:
    """What a band and PAN have in common around each cell: (n, c, 4, h, w) the gain of PAN's detail, the logarithms
    of both variances, and their correlation."""

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, _AROUND, 1, _AROUND // 2, count_include_pad=False)

    middle, light = mean(coarse), mean(smooth)
    own = (mean((coarse - middle).square())).clamp(min=0)
    variance = mean((smooth - light).square()).clamp(min=0)
    together = mean((coarse - middle) * (smooth - light))
    gain = together / (variance + _STEADY)
    correlation = together / ((own + 1e-4) * (variance + 1e-4)).sqrt()
    return torch.stack([gain, (own + 1e-3).log() / 4, (variance + 1e-3).log() / 4, correlation], dim=2)

"""Our own fusion network, for any sensor: it corrects the classical result where local statistics say so.

PAN's detail is folded to cells of 4 × 4 pixels (space to depth), so that a convolution costs a sixteenth. A trunk looks
at PAN and the mean of the bands once; a head, the same for every band, looks at the trunk's features and at what the
band has in common with PAN around each cell, and gives two gains and a remainder:

    F_b = C_b + a ⊙ (C_b − M_b) + b ⊙ (P − P_L) + r

with M the interpolated MS, C the classical result, P and P_L PAN and its low-pass (the mean of the bands'). The last
layer starts at zero, so that training starts at the classical result. Own design.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks.cells import (
    AROUND,
    FOLD,
    add_pixel_shuffled,
    cell_means,
    local_statistics,
    pixel_unshuffle,
    pointwise,
    repeat_per_band,
)

_PHASES = FOLD * FOLD


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
        return FOLD * max(convolutions, 2 + AROUND // 2)

    def forward(
        self, up: Tensor, pan: Tensor, pan_lowpass: Tensor, classical: Tensor, conditions: Optional[Tensor] = None
    ) -> Tensor:
        """See ``networks``."""
        height, width = pan.shape[-2:]
        padding = (0, -width % FOLD, 0, -height % FOLD)
        if any(padding):
            up, pan, pan_lowpass, classical = (
                functional.pad(item, padding, mode="replicate") for item in (up, pan, pan_lowpass, classical)
            )
        bands = up.shape[1]
        coarse, smooth = cell_means(up), cell_means(pan_lowpass)
        middle = coarse.mean(dim=1, keepdim=True)
        spread = (coarse - middle).square().mean(dim=1, keepdim=True)
        common = pixel_unshuffle(
            pan - pan_lowpass.mean(dim=1, keepdim=True), [smooth.mean(dim=1, keepdim=True), middle, spread]
        )
        own = pixel_unshuffle(
            (classical - up).flatten(0, 1)[:, None],
            [maps.flatten(0, 1)[:, None] for maps in (coarse, smooth, *local_statistics(coarse, smooth))],
        )
        features = self.band(own)
        features += repeat_per_band(pointwise(self.trunk(common), self.shared), bands)
        features = functional.relu(self.mix(functional.relu(features, inplace=True)), inplace=True)
        more, other, rest = pointwise(features, self.last).chunk(3, dim=1)
        # Under autocast in half precision, as what they are multiplied with; what they correct is not.
        gain, detail = (maps[:, :_PHASES].to(rest.dtype) for maps in (own, common))
        change = torch.addcmul(rest, more, gain).addcmul_(other, repeat_per_band(detail, bands))
        return add_pixel_shuffled(change, classical)[..., :height, :width]

"""Our fusion network for any sensor: it raises, lowers or adds detail to the result of MTF-GLP-HPM-R, place by place.

    F_b = C_b + a_b ⊙ (C_b − M_b) + b_b ⊙ (P − P_L,b) + e · r_b

with M the interpolated MS, C the result of MTF-GLP-HPM-R, P and P_L PAN and PAN filtered with the band's MTF. A trunk
looks at PAN alone, folded to cells of 4 × 4 pixels (space to depth), so that a convolution costs a sixteenth. A head,
the same for every band, looks at the trunk's features, at the classical detail, at the band and filtered PAN at the
scale of cells, at what the two have in common around each cell, and at the assumed blur and ratio; it gives gains a, b
and a remainder r for each pixel. e is small where PAN is flat, as are the other terms. No band sees another, so that a
result does not depend on which others are fused. The last layer starts at zero: training starts at MTF-GLP-HPM-R. Own
design.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks.cells import (
    FOLD,
    cell_means,
    local_statistics,
    pixel_shuffle,
    pixel_unshuffle,
    pointwise,
    repeat_per_band,
)

_PHASES = FOLD * FOLD
_CONDITIONS = 2  # blur and ratio: see ``PatchBatch``
_FLAT = 0.1  # standard deviations of PAN's cells around a cell, below which the remainder fades


class DetailModulationNet(nn.Module):
    """See the module.

    Args:
        width: channels of the trunk.
        head: channels of the bands' head.
        depth: convolutions of the trunk.
    """

    tolerates_bfloat16 = True  # it corrects the classical result, which is not rounded

    def __init__(self, width: int = 24, head: int = 16, depth: int = 2) -> None:
        super().__init__()
        channels = [_PHASES + 1] + [width] * depth
        self.trunk = nn.Sequential(
            *(
                layer
                for before, after in zip(channels, channels[1:])
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True))
            )
        )
        self.shared = nn.Conv2d(width, head, 1)
        self.conditions = nn.Linear(_CONDITIONS, head, bias=False)
        self.band = nn.Conv2d(6, head, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(head, head, 3, padding=1)
        self.last = nn.Conv2d(head, 3 * _PHASES, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    @property
    def margin(self) -> int:
        """PAN pixels around a place that its result depends on."""
        trunk = sum(isinstance(layer, nn.Conv2d) for layer in self.trunk)
        return FOLD * max(trunk + 1, 2 + 2)

    def forward(
        self, up: Tensor, pan: Tensor, pan_lowpass: Tensor, classical: Tensor, conditions: Optional[Tensor] = None
    ) -> Tensor:
        """See ``networks``; without ``conditions`` blur and ratio are taken as usual ones."""
        height, width = pan.shape[-2:]
        padding = (0, -width % FOLD, 0, -height % FOLD)
        if any(padding):
            up, pan, pan_lowpass, classical = (
                functional.pad(item, padding, mode="replicate") for item in (up, pan, pan_lowpass, classical)
            )
        features, weight = self.features(pan, cell_means(up), cell_means(pan_lowpass), conditions)
        gain, added, remainder = (maps.view_as(classical) for maps in self.gains(features, weight))
        change = torch.addcmul(remainder, gain, classical - up)
        change = torch.addcmul(change, added, pan - pan_lowpass)
        return (classical + change)[..., :height, :width]

    def features(
        self, pan: Tensor, coarse: Tensor, smooth: Tensor, conditions: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor]:
        """What the last layer looks at (n · c, head, h, w), and the weight e of the remainder (n · c, 1, h, w), both by
        cells.

        Args:
            pan: (n, 1, H, W), of whole cells.
            coarse, smooth: means of cells of ``up`` and ``pan_lowpass`` (n, c, h, w).
            conditions: see ``networks``.
        """
        level = cell_means(pan)
        common = local_statistics(coarse, smooth)
        bands = torch.stack([maps.flatten(0, 1) for maps in (coarse, smooth, *common)], dim=-1).permute(0, 3, 1, 2)
        features = self.band(bands)
        shared = pointwise(self.trunk(pixel_unshuffle(pan, [level], level)), self.shared)
        features += repeat_per_band(shared, coarse.shape[1])
        if conditions is not None:
            features += self.conditions(conditions.to(features.dtype)).flatten(0, 1)[:, :, None, None]
        features = functional.relu(self.mix(functional.relu(features, inplace=True)), inplace=True)
        deviation = (4 * common[2]).exp().sqrt().flatten(0, 1)[:, None]
        return features, deviation / (deviation + _FLAT)

    def gains(self, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """a, b and e · r of what ``features`` gave, or of some rows of it, each (n · c, H, W)."""
        cells = pointwise(features, self.last)
        # Under autocast the layers compute in half precision; what they correct is not.
        cells[:, 2 * _PHASES :] *= weight.to(cells.dtype)
        return pixel_shuffle(cells).to(weight.dtype).unbind(dim=1)

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
    add_pixel_shuffled,
    cell_means,
    local_statistics,
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

    def __init__(self, width: int = 24, head: int = 20, depth: int = 2) -> None:
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
        bands = up.shape[1]
        coarse, smooth, level = cell_means(up), cell_means(pan_lowpass), cell_means(pan)
        features = self.trunk(pixel_unshuffle(pan, [level], level))
        common = local_statistics(coarse, smooth)
        head = self.band(torch.stack([maps.flatten(0, 1) for maps in (coarse, smooth, *common)], dim=1))
        head += repeat_per_band(pointwise(features, self.shared), bands)
        if conditions is not None:
            head += self.conditions(conditions.to(head.dtype)).flatten(0, 1)[:, :, None, None]
        head = functional.relu(self.mix(functional.relu(head, inplace=True)), inplace=True)
        gain, added, remainder = pointwise(head, self.last).chunk(3, dim=1)
        deviation = (4 * common[2]).exp().sqrt().flatten(0, 1)[:, None]
        own, detail = (pixel_unshuffle(maps.flatten(0, 1)[:, None], []) for maps in (classical - up, pan - pan_lowpass))
        # Under autocast in half precision, as what they are multiplied with; what they correct is not.
        change = remainder * (deviation / (deviation + _FLAT)).to(remainder.dtype)
        change = torch.addcmul(change, gain, own.to(gain.dtype))
        change = torch.addcmul(change, added, detail.to(added.dtype))
        return add_pixel_shuffled(change, classical)[..., :height, :width]

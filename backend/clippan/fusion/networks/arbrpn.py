"""ArbRPN: one recurrent network for any number of bands.

Chen, Lai, Vivone, Jeon, Chanussot and Yang, "ArbRPN: A Bidirectional Recurrent Pansharpening Network for Multispectral
Images With Arbitrary Numbers of Bands", TGRS 2022. The recurrence runs over the bands instead of over time: a cell is
given the state that the bands before left, the band itself and PAN, and makes the next state, once from the first band
to the last and once back, five times over, each time with cells of its own. All bands share all weights, so that their
number is free at run time, and each band's detail knows the bands on both sides.

2,341,057 parameters at any number of bands, equal to the published layer-by-layer count of a version after the authors'
(readme of VisionVoyagerX/ArbRPN). Layer sizes are from that count; that the state starts at nought and is handed from
one direction to the next is our reading. Left out is mask-training, the paper's way to mix numbers of bands
in one batch: here a batch has one number, and the next batch may have another.

Time and memory grow with the number of bands, and are the largest of all the networks here.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks import scale_down_weights
from clippan.fusion.networks.block import Block


class ArbRPN(nn.Module):
    """Recurrence over the bands, ``depth`` times there and back; ``blocks`` residual blocks a cell."""

    def __init__(self, width: int = 64, depth: int = 5, blocks: int = 3) -> None:
        super().__init__()
        self.band = nn.Conv2d(1, width, 3, padding=1)
        self.pan = nn.Conv2d(1, width, 3, padding=1)
        self.passes = nn.ModuleList(_cell(width, blocks) for _ in range(2 * depth))
        self.tail = scale_down_weights(nn.Conv2d(width, 1, 3, padding=1))

    def forward(
        self, up: Tensor, pan: Tensor, low: Optional[Tensor] = None, classical: Optional[Tensor] = None
    ) -> Tensor:
        """See the package."""
        n, bands, height, width = up.shape
        features = list(self.band(up.reshape(n * bands, 1, height, width)).unflatten(0, (n, bands)).unbind(1))
        sharp = self.pan(pan)
        state = torch.zeros_like(sharp)
        for number, cell in enumerate(self.passes):
            order = range(bands) if number % 2 == 0 else range(bands - 1, -1, -1)
            for band in order:
                state = cell(torch.cat((state, features[band], sharp), 1))
                features[band] = state
        detail = self.tail(torch.stack(features, 1).flatten(0, 1)).view_as(up)
        return up + detail


def _cell(width: int, blocks: int) -> nn.Sequential:
    """State, band and PAN to the next state."""
    return nn.Sequential(nn.Conv2d(3 * width, width, 1), *(Block(width, functional.relu) for _ in range(blocks)))

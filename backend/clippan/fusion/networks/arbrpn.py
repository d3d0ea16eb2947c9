"""ArbRPN: one recurrent network for any number of bands.

Chen, Lai, Vivone, Jeon, Chanussot and Yang, "ArbRPN: A Bidirectional Recurrent Pansharpening Network for Multispectral
Images With Arbitrary Numbers of Bands", TGRS 2022. The recurrence runs over the bands instead of over time: a cell is
given the state that the bands before left, the band itself and PAN, and makes the next state, once from the first band
to the last and once back, five times over, each time with cells of its own. All bands share all weights, so that their
number is free at run time, and each band's detail knows the bands on both sides.

The state starts as PAN's features and is handed from one direction to the next. 2,341,057 parameters at any number of
bands, as in the class that the authors released. Chosen by us: the last layer starts at a twentieth of its usual size,
as that of all networks here.

The paper mixes numbers of bands in one step of training, and masks the bands that a patch lacks. A recipe with
``bands_per_patch`` does the same for any network that takes any number of bands, without masks: patches are grouped.

Time and memory grow with the number of bands, and are the largest of all the networks here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks.backbone import Backbone, ResidualBlock, last_convolution


class ArbRPN(Backbone):
    """Recurrence over the bands, ``depth`` times there and back; ``blocks`` residual blocks a cell."""

    label = "ArbRPN"

    def __init__(self, width: int = 64, depth: int = 5, blocks: int = 3) -> None:
        super().__init__()
        self.band = nn.Conv2d(1, width, 3, padding=1)
        self.pan = nn.Conv2d(1, width, 3, padding=1)
        self.passes = nn.ModuleList(_cell(width, blocks) for _ in range(2 * depth))
        self.tail = last_convolution(width, 1, 3)

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        n, bands, height, width = up.shape
        features = list(self.band(up.reshape(n * bands, 1, height, width)).unflatten(0, (n, bands)).unbind(1))
        sharp = self.pan(pan)
        state = self.first_state(sharp)
        for number, cell in enumerate(self.passes):
            order = range(bands) if number % 2 == 0 else range(bands - 1, -1, -1)
            for band in order:
                state = cell(torch.cat((state, features[band], sharp), 1))
                features[band] = state
        detail: Tensor = self.tail(torch.stack(features, 1).flatten(0, 1))
        return detail.view_as(up)

    def first_state(self, sharp: Tensor) -> Tensor:
        """The state before the first band: PAN's features (n, width, H, W)."""
        return sharp


def _cell(width: int, blocks: int) -> nn.Sequential:
    """State, band and PAN to the next state."""
    return nn.Sequential(
        nn.Conv2d(3 * width, width, 1), *(ResidualBlock(width, functional.relu) for _ in range(blocks))
    )

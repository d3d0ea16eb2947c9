"""Small convolutional networks: PNN and λ-PNN.

PNN (Masi, Cozzolino, Verdoliva and Scarpa, "Pansharpening by Convolutional Neural Networks", Remote Sensing 2016):
three convolutions, 9×9 to 48, 5×5 to 32 and 5×5 to the bands, over MS and PAN stacked. As in its successors for
adaptation to a target (A-PNN, Scarpa et al. 2018; Z-PNN, Ciotola et al. 2022) it predicts what is to be added to the
interpolated MS. 61,124 parameters at 4 bands and 79,880 at 8, as in A-PNN of DLPan-Toolbox; its PNN, which has 64
channels after the first layer and gives the bands themselves, has 80,420 and 104,360 (``width`` 64, ``second_width``
32). Differences, all chosen: convolutions see zeros around the picture, the mean of standardised bands, where the
published ones cut the border off and repeat it for a test (``repeated_border`` does so); and the paper's radiometric
indices as further inputs are left out, as its successors do: they need to know which band is which.

λ-PNN (Ciotola, Poggi and Scarpa, "Unsupervised Deep Learning-Based Pansharpening With Jointly Enhanced Spectral and
Spatial Fidelity", TGRS 2023): deeper, with residual blocks that weigh channels and places by attention (CBAM, Woo et
al. 2018). 196,232 parameters at 4 bands and 204,940 at 8; the publication's has 198 to 207 thousand. We know the parts
and the size, not every kernel: the layout (5×5 to 64, two residual blocks, 3×3, 3×3 to the bands) is ours, and so are
the zeros around the picture.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks.backbone import Backbone, last_convolution

# CBAM: the channels' weights come from this many times squeezed numbers, though not from so few that all may be nought
# at a time, and the places' weights from this neighbourhood.
_REDUCTION = 16
_MIN_CHANNELS = 4
_NEIGHBOURHOOD = 7


class _Stacked(Backbone):
    """Layers that see MS and PAN stacked."""

    layers: nn.Sequential

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        detail: Tensor = self.layers(torch.cat((up, pan), 1))
        return detail


class PNN(_Stacked):
    """Three convolutions.

    Args:
        bands: number of MS bands.
        width: channels after the first convolution.
        second_width: channels after the second one; by default two thirds of ``width``.
        repeated_border: whether convolutions see the picture's border repeated around it; zeros otherwise.
    """

    label = "PNN"

    def __init__(
        self, bands: int, width: int = 48, second_width: Optional[int] = None, repeated_border: bool = False
    ) -> None:
        super().__init__()
        self.bands = bands
        second = second_width or max(1, width * 2 // 3)
        self.layers = nn.Sequential(
            nn.Conv2d(bands + 1, width, 9, padding=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, second, 5, padding=2),
            nn.ReLU(inplace=True),
            last_convolution(second, bands, 5),
        )
        self._border = 0
        if repeated_border:  # added once, before all layers, which then cut it off
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    self._border += layer.kernel_size[0] // 2
                    layer.padding = (0, 0)

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        frame = [self._border] * 4
        return super().detail(*(functional.pad(x, frame, mode="replicate") for x in (up, pan)))


class LambdaPNN(_Stacked):
    """Convolutions around ``depth`` residual blocks with attention, ``width`` channels.

    The channels' weights come from means and maxima over all that the network is given: whole tiles, so that a pixel's
    result depends on the tile it is in.
    """

    label = "λ-PNN"

    def __init__(self, bands: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.bands = bands
        self.layers = nn.Sequential(
            nn.Conv2d(bands + 1, width, 5, padding=2),
            nn.ReLU(inplace=True),
            *(_CbamBlock(width) for _ in range(depth)),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            last_convolution(width, bands, 3),
        )


class _CbamBlock(nn.Module):
    """Two convolutions, weighed by attention, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        squeezed = max(_MIN_CHANNELS, width // _REDUCTION)
        self.channels = nn.Sequential(
            nn.Conv2d(width, squeezed, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(squeezed, width, 1, bias=False)
        )
        self.places = nn.Conv2d(2, 1, _NEIGHBOURHOOD, padding=_NEIGHBOURHOOD // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.second(functional.relu(self.first(x)))
        weights = self.channels(new.mean((2, 3), keepdim=True)) + self.channels(new.amax((2, 3), keepdim=True))
        new = new * torch.sigmoid(weights)
        seen = torch.cat((new.mean(1, keepdim=True), new.amax(1, keepdim=True)), 1)
        return x + new * torch.sigmoid(self.places(seen))

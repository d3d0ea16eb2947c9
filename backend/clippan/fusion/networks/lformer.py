"""LFormer: attention computed once, then evolved by convolutions.

Hou, Cao, Zheng, Li, Chen, Liu, Cong, Hong and Zhou, "Linearly-evolved Transformer for Pan-sharpening", ACM Multimedia
2024 (arXiv:2404.12804). Stacked transformers compute attention anew in each block, though their maps hardly differ.
Here it is computed once, within windows of 8×8 pixels, with queries from PAN, keys and values from the interpolated MS;
each later stage makes its map from the one before by a convolution along the keys and another softmax. A stage
multiplies what attention gives by what a convolution makes of it and of the high frequencies of PAN and MS.

2,273,307 parameters at 4 bands and 2,274,635 at 8, as in the class that the authors released (their setting for
WorldView-3; ``width`` 32 with ``high_width`` 48 is the one for QuickBird). Differences from it, all chosen:

- The authors normalise PAN over its channels, of which it has one: what is left is zero, and the map does not depend on
  PAN. Here PAN is only scaled unless ``norm_pan`` is set, and MS of one band likewise.
- The released class takes sides that are multiples of the window. Here the last windows are filled by repeating the
  border, and cut off again.
- The last layer starts at a twentieth of its usual size, as that of all networks here.

Not settled by what is known of the release, and our reading: residual blocks have ReLU between their convolutions, and
the high frequencies of a stage are made with the features that attention has just given.

Windows are laid from the corner of what the network is given, so that a pixel's result depends on where that corner is,
modulo eight pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.errors import ClippanError
from clippan.fusion.networks.backbone import Backbone, ResidualBlock, last_convolution

_REACH = 3  # keys that the evolving convolution takes together
_DROPOUT = 0.2  # share of the logits that are zero in training
_START_BLOCKS, _BRANCH_BLOCKS, _HEAD_BLOCKS = 4, 2, 2  # residual blocks


class LFormer(Backbone):
    """See the module.

    Args:
        bands: number of MS bands.
        width: channels of attention and of the features.
        high_width: channels of the high frequencies.
        depth: stages.
        heads: heads of the attention.
        window: edge of its windows, in pixels.
        norm_pan: whether PAN is normalised to nothing, as in the released class.

    Raises:
        ClippanError: the heads cannot share the width.
    """

    label = "LFormer"

    def __init__(
        self,
        bands: int,
        width: int = 64,
        high_width: int = 64,
        depth: int = 5,
        heads: int = 8,
        window: int = 8,
        norm_pan: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ClippanError(
                "The network LFormer cannot share a width of {width} among {heads} heads; give a multiple of {heads}.",
                width=width,
                heads=heads,
            )
        self.bands, self.heads, self.window = bands, heads, window
        self.norm_ms, self.norm_pan = _ChannelNorm(bands, bands > 1), _ChannelNorm(1, norm_pan)
        self.query = _pointwise_depthwise(1, width)
        self.key = _pointwise_depthwise(bands, width)
        self.value = _pointwise_depthwise(bands, width)
        self.leave = nn.Conv2d(width, width, 1)
        self.evolutions = nn.ModuleList(_Evolution(heads) for _ in range(depth - 1))
        self.values = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth - 1))
        self.high_start = _HighFrequencies(bands, high_width)
        self.high_branches = nn.ModuleList(_HighBranch(width, high_width) for _ in range(depth + 1))
        self.stages = nn.ModuleList(_Stage(width, high_width) for _ in range(depth))
        self.head = nn.Sequential(
            *(ResidualBlock(width + high_width, functional.relu) for _ in range(_HEAD_BLOCKS)),
            last_convolution(width + high_width, bands, 1),
        )

    @property
    def margin(self) -> int:
        """PAN pixels around a place that its result depends on, as a multiple of the window."""
        branch = 2 * _BRANCH_BLOCKS + 1  # with the stage's convolution
        start = 1 + 2 * _START_BLOCKS
        pixels = start + branch + (len(self.stages) - 1) * (self.window - 1 + branch) + branch - 1 + 2 * _HEAD_BLOCKS
        return -(-pixels // self.window) * self.window

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        height, width = up.shape[-2:]
        frame = (0, -width % self.window, 0, -height % self.window)
        up, pan = (functional.pad(x, frame, mode="replicate") for x in (up, pan))
        high_start = self.high_start(up, pan)
        weights, x = self._attention(up, pan)
        for number, stage in enumerate(self.stages):
            if number:
                weights = self.evolutions[number - 1](weights)
                x = self._attend(weights, self.values[number - 1](x))
            x = stage(x, self.high_branches[number](high_start, x))
        detail: Tensor = self.head(torch.cat((self.high_branches[-1](high_start, x), x), 1))
        return detail[..., :height, :width]

    def _attention(self, up: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        """The first map (windows, heads, queries, keys), whose rows sum to one, and what it makes of MS."""
        ms = self.norm_ms(up)
        queries, keys = self._tokens(self.query(self.norm_pan(pan))), self._tokens(self.key(ms))
        logits = functional.dropout(queries @ keys.transpose(-1, -2), _DROPOUT, self.training)
        weights = torch.softmax(logits, -1)
        return weights, self.leave(self._attend(weights, self.value(ms)))

    def _attend(self, weights: Tensor, values: Tensor) -> Tensor:
        """An image (n, c, H, W) whose pixels are sums of those of a window, weighted by the map."""
        return self._from_tokens(weights @ self._tokens(values), values.shape)

    def _tokens(self, x: Tensor) -> Tensor:
        """Images (n, c, H, W) as (windows, heads, pixels of a window, channels of a head)."""
        n, channels, height, width = x.shape
        size = self.window
        x = x.view(n, self.heads, channels // self.heads, height // size, size, width // size, size)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, self.heads, size * size, channels // self.heads)

    def _from_tokens(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``_tokens``, of the shape of an image."""
        n, channels, height, width = shape
        size = self.window
        x = tokens.view(n, height // size, width // size, self.heads, size, size, channels // self.heads)
        return x.permute(0, 3, 6, 1, 4, 2, 5).reshape(n, channels, height, width)


class _ChannelNorm(nn.Module):
    """Each pixel's channels with mean 0 and variance 1, if asked for, and a learned scale of each channel."""

    def __init__(self, channels: int, normalised: bool) -> None:
        super().__init__()
        self._normalised = normalised
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self._normalised:
            return functional.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight).movedim(-1, 1)
        return x * self.weight.view(-1, 1, 1)


class _Evolution(nn.Module):
    """The next stage's map: every row convolved along the keys, the heads mixed, and softmax again.

    All its weights are equal at the start, so that it first averages over the heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.along = nn.Conv2d(heads, heads, (1, _REACH), padding=(0, _REACH // 2), bias=False)
        self.across = nn.Conv2d(heads, heads, 1)
        nn.init.constant_(self.along.weight, 1 / _REACH**2)
        nn.init.ones_(self.across.weight)
        nn.init.zeros_(self.across.bias)  # type: ignore[arg-type]

    def forward(self, weights: Tensor) -> Tensor:
        return torch.softmax(functional.relu(self.across(self.along(weights))), -1)


class _HighFrequencies(nn.Module):
    """The high frequencies of PAN and MS, by filters that start as a Laplacian."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.filter_ms, self.filter_pan = _laplacian(bands), _laplacian(1)
        self.enter_ms, self.enter_pan = nn.Conv2d(bands, width, 1), nn.Conv2d(1, width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, functional.relu) for _ in range(_START_BLOCKS)))

    def forward(self, up: Tensor, pan: Tensor) -> Tensor:
        both = self.enter_pan(self.filter_pan(pan)), self.enter_ms(self.filter_ms(up))
        high: Tensor = self.blocks(self.join(torch.cat(both, 1)))
        return high


class _HighBranch(nn.Module):
    """The first high frequencies as a stage needs them, from its features."""

    def __init__(self, width: int, high_width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, high_width, 1)
        self.join = nn.Conv2d(2 * high_width, high_width, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(high_width, functional.relu) for _ in range(_BRANCH_BLOCKS)))

    def forward(self, high_start: Tensor, x: Tensor) -> Tensor:
        high: Tensor = self.blocks(self.join(torch.cat((high_start, self.enter(x)), 1)))
        return high


class _Stage(nn.Module):
    """Features times what a convolution makes of them, of their surroundings and of the high frequencies."""

    def __init__(self, width: int, high_width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, width, 1)
        self.join = nn.Conv2d(width + high_width, width, 3, padding=1)

    def forward(self, x: Tensor, high: Tensor) -> Tensor:
        seen = x + self.mix(functional.relu(self.around(x)))
        factor: Tensor = self.join(torch.cat((seen, high), 1))
        return x * factor


def _pointwise_depthwise(channels: int, width: int) -> nn.Sequential:
    """A 1×1 convolution to the width, then a 3×3 one of each channel alone."""
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 3, padding=1, groups=width))


def _laplacian(channels: int) -> nn.Conv2d:
    """A learned filter of each channel that starts as the Laplacian of a pixel and its eight neighbours."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, padding_mode="replicate")
    nn.init.constant_(layer.weight, -1)
    layer.weight.data[..., 1, 1] = 8
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer

"""LFormer: attention computed once, then evolved by convolutions.

Hou, Cao, Zheng, Li, Chen, Liu, Cong, Hong and Zhou, "Linearly-evolved Transformer for Pan-sharpening", ACM Multimedia
2024 (arXiv:2404.12804). Stacked transformers compute attention anew in each block, though their maps hardly differ.
Here the first of five stages computes it, with queries from MS, keys and values from PAN, and each later stage makes
its map from the one before by a 1-D convolution along the keys. MS and PAN have a branch each, and a third one brings
the high frequencies that Sobel filters find in PAN into every stage.

1,754,692 parameters at 4 bands and 1,759,304 at 8, of about 1.8 million for the original in the CLIPPan authors' list
of backbones (a figure we could not confirm in the paper). From the paper's summaries and the authors' settings:
attention once, its 1-D evolution, the branches, Sobel, five stages of 64 channels. Ours, as we know no more: attention
within windows of 8×8 pixels (the cost stays linear in the pixels), four heads, where the feed-forward and injecting
convolutions stand and their sizes, and that the evolving convolutions start as the identity, so that the maps start
equal. MS comes interpolated to PAN's grid, as to all networks here.

Windows are laid from the corner of what the network is given, so that a pixel's result depends on where that corner is,
modulo eight pixels; what does not fill the last windows is filled by repeating the border, and cut off again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.errors import ClippanError
from clippan.fusion.networks.backbone import Backbone, ResidualBlock, last_convolution

# The evolving convolutions' reach along the keys.
_REACH = 3


class LFormer(Backbone):
    """``depth`` stages of ``width`` channels, attention with ``heads`` heads in windows of ``window`` pixels."""

    label = "LFormer"
    sobel: Tensor

    def __init__(self, bands: int, width: int = 64, depth: int = 5, heads: int = 4, window: int = 8) -> None:
        super().__init__()
        if width % heads:
            raise ClippanError(
                "The network LFormer cannot share a width of {width} among {heads} heads; give a multiple of {heads}.",
                width=width,
                heads=heads,
            )
        self.bands, self.heads, self.window = bands, heads, window
        self.ms = _branch_encoder(bands, width)
        self.pan = _branch_encoder(1, width)
        self.high = _branch_encoder(2, width)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.values = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.stages = nn.ModuleList(_Stage(width) for _ in range(depth))
        self.evolve = nn.ModuleList(_identity_conv1d(heads) for _ in range(depth - 1))
        self.tail = last_convolution(width, bands, 3)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("sobel", torch.stack((across, across.T))[:, None], persistent=False)

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        height, width = up.shape[-2:]
        frame = (0, -width % self.window, 0, -height % self.window)
        filled, pan = (functional.pad(x, frame, mode="replicate") for x in (up, pan))
        x, sharp = self.ms(filled), self.pan(pan)
        gradients = functional.conv2d(functional.pad(pan, (1, 1, 1, 1), mode="replicate"), self.sobel.to(pan.dtype))
        edge_features = self.high(gradients)

        queries, keys = self._tokens(self.query(x)), self._tokens(self.key(sharp))
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, -1)
        for number, stage in enumerate(self.stages):
            if number:
                weights = self._evolve_attention(weights, self.evolve[number - 1])
            values = self.values[number](x if number else sharp)
            attended = self._from_tokens(weights @ self._tokens(values), x)
            x, edge_features = stage(x, attended, edge_features)
        detail: Tensor = self.tail(x)
        return detail[..., :height, :width]

    def _evolve_attention(self, weights: Tensor, convolution: nn.Module) -> Tensor:
        """The next stage's map: each query's row convolved along the keys, the heads mixed."""
        windows, heads, queries, keys = weights.shape
        rows = weights.transpose(1, 2).reshape(windows * queries, heads, keys)
        new: Tensor = convolution(rows)
        return new.view(windows, queries, heads, keys).transpose(1, 2)

    def _tokens(self, x: Tensor) -> Tensor:
        """Images (n, c, H, W) as (windows, heads, pixels of a window, channels of a head)."""
        n, channels, height, width = x.shape
        size = self.window
        x = x.view(n, self.heads, channels // self.heads, height // size, size, width // size, size)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, self.heads, size * size, channels // self.heads)

    def _from_tokens(self, tokens: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``_tokens``, of the shape of an image."""
        n, channels, height, width = like.shape
        size = self.window
        x = tokens.view(n, height // size, width // size, self.heads, size, size, channels // self.heads)
        return x.permute(0, 3, 6, 1, 4, 2, 5).reshape(n, channels, height, width)


class _Stage(nn.Module):
    """What attention saw, the high frequencies and a feed-forward step, each added to the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(width, width, 1)
        self.high = ResidualBlock(width, functional.gelu)
        self.inject = nn.Conv2d(2 * width, width, 3, padding=1)
        self.forth = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.back = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor, attended: Tensor, edge_features: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.merge(attended)
        edge_features = self.high(edge_features)
        x = x + self.inject(torch.cat((x, edge_features), 1))
        x = x + self.back(functional.gelu(self.forth(x)))
        return x, edge_features


def _branch_encoder(channels: int, width: int) -> nn.Sequential:
    """A branch's first features."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), ResidualBlock(width, functional.gelu))


def _identity_conv1d(heads: int) -> nn.Conv1d:
    """A convolution along the keys that changes nothing yet."""
    layer = nn.Conv1d(heads, heads, _REACH, padding=_REACH // 2, bias=False)
    nn.init.dirac_(layer.weight)
    return layer

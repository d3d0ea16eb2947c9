"""ArbRPN, LFormer and Pan-Mamba as version 0.1 of CLIPPan had them, so that its models can still be used.

None is as published; ``arbrpn``, ``lformer`` and ``panmamba`` are, and their modules describe the networks. ArbRPN's
state starts at zero instead of PAN's features. LFormer takes queries from MS, keys and values from PAN, evolves its map
without a softmax, finds high frequencies by Sobel filters of PAN and adds in a stage where the authors multiply.
Pan-Mamba has neither instance norms nor Refine, adds each block's result to its input, exchanges the other half of the
channels before the norm, and gates both scans of a cross-modal block with one gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.fusion.networks import arbrpn
from clippan.fusion.networks.backbone import Backbone, ResidualBlock, last_convolution
from clippan.fusion.networks.panmamba import EXPANSION, Mamba, SelectiveStateSpace, from_sequence, leaky, sequence

_REACH = 3  # keys that LFormer's evolving convolutions take together
_ENCODER_BLOCKS = 3  # residual blocks before each sequence of Pan-Mamba


class ArbRPN(arbrpn.ArbRPN):
    """ArbRPN whose state starts at zero."""

    def first_state(self, sharp: Tensor) -> Tensor:
        return torch.zeros_like(sharp)


class LFormer(Backbone):
    """``depth`` stages of ``width`` channels, attention with ``heads`` heads in windows of ``window`` pixels."""

    label = "LFormer"
    sobel: Tensor

    def __init__(self, bands: int, width: int = 64, depth: int = 5, heads: int = 4, window: int = 8) -> None:
        super().__init__()
        self.bands, self.heads, self.window = bands, heads, window
        self.ms = _encoder(bands, width)
        self.pan = _encoder(1, width)
        self.high = _encoder(2, width)
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


def _encoder(channels: int, width: int) -> nn.Sequential:
    """A branch's first features."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), ResidualBlock(width, functional.gelu))


def _identity_conv1d(heads: int) -> nn.Conv1d:
    """A convolution along the keys that changes nothing yet."""
    layer = nn.Conv1d(heads, heads, _REACH, padding=_REACH // 2, bias=False)
    nn.init.dirac_(layer.weight)
    return layer


class PanMamba(Backbone):
    """``depth`` Mamba blocks an image, ``swaps`` that exchange channels, ``crosses`` that let PAN into MS."""

    label = "Pan-Mamba"

    def __init__(
        self, bands: int, width: int = 32, depth: int = 8, swaps: int = 2, crosses: int = 5, states: int = 16
    ) -> None:
        super().__init__()
        self.bands = bands
        self.ms = _sequence_encoder(bands, width)
        self.pan = _sequence_encoder(1, width)
        self.ms_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.pan_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.swaps = nn.ModuleList(_ChannelSwap(width, states) for _ in range(swaps))
        self.join_ms = nn.Conv2d(2 * width, width, 3, padding=1)
        self.join_pan = nn.Conv2d(2 * width, width, 3, padding=1)
        self.crosses = nn.ModuleList(_CrossModal(width, states) for _ in range(crosses))
        self.tail = nn.Sequential(ResidualBlock(width, leaky), last_convolution(width, bands, 3))

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        size = up.shape[-2:]
        ms, sharp = self.ms_blocks(sequence(self.ms(up))), self.pan_blocks(sequence(self.pan(pan)))
        for swap in self.swaps:
            ms, sharp = swap(ms, sharp)
        ms, sharp = from_sequence(ms, size), from_sequence(sharp, size)
        ms, sharp = ms + self.join_ms(torch.cat((ms, sharp), 1)), sharp + self.join_pan(torch.cat((sharp, ms), 1))
        for cross in self.crosses:
            ms = cross(ms, sharp)
        detail: Tensor = self.tail(ms)
        return detail


class _Residual(nn.Module):
    """A Mamba over a normalised sequence (n, length, channels), added to it."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, states)

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.mamba(self.norm(x))
        return x + new


class _ChannelSwap(nn.Module):
    """Half of the channels exchanged between MS and PAN, then a Mamba each."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.ms, self.pan = _Residual(width, states), _Residual(width, states)

    def forward(self, ms: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        kept = ms.shape[-1] // 2
        mixed = torch.cat((ms[..., :kept], pan[..., kept:]), -1), torch.cat((pan[..., :kept], ms[..., kept:]), -1)
        return self.ms(mixed[0]), self.pan(mixed[1])


class _CrossModal(nn.Module):
    """PAN's sequence let into that of MS, both through the gate of MS; then a look at each pixel's neighbours."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.norm_ms, self.norm_pan = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter_ms = nn.Linear(width, 2 * inner, bias=False)
        self.enter_pan = nn.Linear(width, inner, bias=False)
        self.scan_ms, self.scan_pan = (
            SelectiveStateSpace(inner, width, states),
            SelectiveStateSpace(inner, width, states),
        )
        self.leave = nn.Linear(inner, width, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        x, gate = self.enter_ms(self.norm_ms(sequence(ms))).chunk(2, -1)
        sharp = self.enter_pan(self.norm_pan(sequence(pan)))
        merged = (self.scan_ms(x) + self.scan_pan(sharp)) * functional.silu(gate)
        ms = ms + from_sequence(self.leave(merged), ms.shape[-2:])
        return ms + self.around(ms)


def _sequence_encoder(channels: int, width: int) -> nn.Sequential:
    """An image's first features."""
    blocks = (ResidualBlock(width, leaky) for _ in range(_ENCODER_BLOCKS))
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), *blocks)

"""The network of DiffCLIP: an encoder that all modalities share, and what each modality has for itself.

A modality is a raster of any number of bands. Its own are the stem (bands to tokens of 1 × 1 pixel), the class token,
the positions, the embedding of the diffusion's time, and the decoder; the Transformer between is shared, so that one
space holds all modalities (Zhang et al., DiffCLIP, 2024; the mask diffusion is that of LDS2AE, Qu et al. 2024). The
stem begins with a fixed projection on the components of least noise (``scene_encoder.mnf_projection``), which is
our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

DIFFUSION_STEPS = 1000  # steps of the diffusion


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is. The default is made for a CPU.

    Attributes:
        window: edge of the squares of pixels that it sees, odd.
        width: of a token.
        depth, heads, ratio: blocks of the shared encoder, their heads, and how much wider their inner layer is.
        decoder: blocks of each modality's decoder.
        components: the most of them that a modality's bands are reduced to.
        shared: whether the modalities share the encoder; the ablation gives each its own.
    """

    window: int = 11
    width: int = 96
    depth: int = 3
    heads: int = 4
    ratio: int = 2
    decoder: int = 1
    components: int = 32
    shared: bool = True


PUBLISHED_SIZE = NetworkSize(width=128, depth=4, heads=8, decoder=3)


class TransformerBlock(nn.Module):
    """A block of a Transformer, normalised first."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length, width) to tokens."""
        n, length, width = tokens.shape
        parts = self.mix(self.before(tokens)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0))
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return tokens + self.think(tokens)


class ModalityLayers(nn.Module):
    """What a modality has for itself.

    Args:
        size: of the network.
        projection: its bands' components, (components, bands); kept as it is.
    """

    def __init__(self, size: NetworkSize, projection: Tensor) -> None:
        super().__init__()
        width, length = size.width, size.window**2
        self.projection: Tensor
        self.register_buffer("projection", projection)
        self.stem = nn.Sequential(nn.Linear(len(projection), width), nn.GELU(), nn.Linear(width, width))
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.spots = nn.Parameter(0.02 * torch.randn(length, width))
        self.decoder = nn.ModuleList(TransformerBlock(width, size.heads, size.ratio) for _ in range(size.decoder))
        self.back = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(projection)))


class MaskDiffusion(nn.Module):
    """Encoder and decoders.

    Args:
        size: of it.
        projections: for each modality the components of its bands, (components, bands).
    """

    def __init__(self, size: NetworkSize, projections: Sequence[Tensor]) -> None:
        super().__init__()
        self.size = size
        self.owns = nn.ModuleList(ModalityLayers(size, projection) for projection in projections)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(TransformerBlock(size.width, size.heads, size.ratio) for _ in range(size.depth)),
                nn.LayerNorm(size.width),
            )
            for _ in (range(1) if size.shared else projections)
        )

    def layers(self, modality: int) -> ModalityLayers:
        """What a modality has for itself."""
        return cast(ModalityLayers, self.owns[modality])

    def encode(self, modality: int, values: Tensor, time: Tensor, seen: Tensor | None = None) -> Tensor:
        """Tokens of windows.

        Args:
            modality: which.
            values: components, (n, window², components).
            time: of the diffusion, from 0 to 999, (n,).
            seen: places of the tokens that go in, (n, visible); all by default.

        Returns:
            The class token, and those that went in, (n, 1 + visible, width).
        """
        layers = self.layers(modality)
        places = layers.places.expand(len(values), -1, -1)
        if seen is not None:
            values, places = gather_tokens(values, seen), gather_tokens(places, seen)
        summary = layers.summary + layers.time(sinusoidal_embedding(time, self.size.width))
        tokens = torch.cat([summary[:, None], layers.stem(values) + places], dim=1)
        found: Tensor = self.encoders[modality if len(self.encoders) > 1 else 0](tokens)
        return found

    def decode(self, modality: int, tokens: Tensor, seen: Tensor) -> Tensor:
        """What a window's components are without noise and mask, (n, window², components), from ``encode``'s tokens."""
        layers = self.layers(modality)
        length = len(layers.spots)
        full = layers.hidden.expand(len(tokens), length, -1)
        full = full.scatter(1, seen[..., None].expand(-1, -1, tokens.shape[-1]), tokens[:, 1:])
        full = torch.cat([tokens[:, :1], full + layers.spots], dim=1)
        for block in layers.decoder:
            full = block(full)
        restored: Tensor = layers.back(full[:, 1:])
        return restored


def gather_tokens(values: Tensor, places: Tensor) -> Tensor:
    """The tokens (n, length, width) at places (n, some)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def sinusoidal_embedding(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of times (n,) as (n, width)."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = time[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)

"""The network of DiffCLIP: a Transformer encoder shared by all modalities, and layers of each modality.

A modality is a raster of any number of bands. Each modality has its own stem (bands to tokens of 1 × 1 pixel), class
token, positions, embedding of the diffusion's time, and decoder; the Transformer between them is shared, so that all
modalities lie in one feature space (Zhang et al., DiffCLIP, 2024; the mask diffusion is that of LDS2AE, Qu et al.
2024). The fixed projection on the components of least noise (``scene_encoder.mnf_projection``), with which the stem
starts, is an addition of this implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

DIFFUSION_STEPS = 1000


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network. The default is made for a CPU.

    Attributes:
        window: edge of the input windows in pixels, odd.
        width: of a token.
        depth, heads, ratio: blocks of the shared encoder, their attention heads, and the width of their inner layer as
            a multiple of ``width``.
        decoder: blocks of each modality's decoder.
        components: largest number of components to which the bands of a modality are reduced.
        shared: whether the modalities share the encoder; False gives each its own, for the ablation.
    """

    window: int = 11
    width: int = 96
    depth: int = 3
    heads: int = 4
    ratio: int = 2
    decoder: int = 1
    components: int = 32
    shared: bool = True


# The names of layers and parameters in these classes are keys of saved scene encoders.
class TransformerBlock(nn.Module):
    """A Transformer block with normalisation before attention and before the inner layer."""

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
        queries_keys_values = self.mix(self.before(tokens)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*queries_keys_values.unbind(0))
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(n, length, width))
        return tokens + self.think(tokens)


class ModalityLayers(nn.Module):
    """The layers of one modality; the projection (components, bands) of its bands is not trained."""

    def __init__(self, size: NetworkSize, projection: Tensor) -> None:
        super().__init__()
        width, length = size.width, size.window**2
        self.projection: Tensor
        self.register_buffer("projection", projection)
        self.stem = nn.Sequential(nn.Linear(len(projection), width), nn.GELU(), nn.Linear(width, width))
        self.summary = nn.Parameter(0.02 * torch.randn(width))  # class token
        self.places = nn.Parameter(0.02 * torch.randn(length, width))  # positions in the encoder
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.hidden = nn.Parameter(0.02 * torch.randn(width))  # mask token
        self.spots = nn.Parameter(0.02 * torch.randn(length, width))  # positions in the decoder
        self.decoder = nn.ModuleList(TransformerBlock(width, size.heads, size.ratio) for _ in range(size.decoder))
        self.back = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(projection)))


class MaskDiffusion(nn.Module):
    """The encoder and the layers of each modality, by the projections (components, bands) of their bands."""

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
        """The layers of a modality, by its number."""
        return cast(ModalityLayers, self.owns[modality])

    def encode(self, modality: int, values: Tensor, time: Tensor, visible: Tensor | None = None) -> Tensor:
        """The class token and the tokens of the visible pixels of windows, (n, 1 + visible, width).

        Args:
            modality: number of the modality.
            values: components, (n, window², components).
            time: of the diffusion, 0 to 999, (n,).
            visible: indices of the pixels that the encoder gets, (n, visible); all by default.
        """
        layers = self.layers(modality)
        positions = layers.places.expand(len(values), -1, -1)
        if visible is not None:
            values, positions = _gather_tokens(values, visible), _gather_tokens(positions, visible)
        class_token = layers.summary + layers.time(_sinusoidal_embedding(time, self.size.width))
        tokens = torch.cat([class_token[:, None], layers.stem(values) + positions], dim=1)
        encoded: Tensor = self.encoders[modality if len(self.encoders) > 1 else 0](tokens)
        return encoded

    def decode(self, modality: int, tokens: Tensor, visible: Tensor) -> Tensor:
        """Components of whole windows without noise, (n, window², components), from the tokens of ``encode``."""
        layers = self.layers(modality)
        full = layers.hidden.expand(len(tokens), len(layers.spots), -1)
        full = full.scatter(1, visible[..., None].expand(-1, -1, tokens.shape[-1]), tokens[:, 1:])
        full = torch.cat([tokens[:, :1], full + layers.spots], dim=1)
        for block in layers.decoder:
            full = block(full)
        restored: Tensor = layers.back(full[:, 1:])
        return restored


def _gather_tokens(values: Tensor, indices: Tensor) -> Tensor:
    """Tokens (n, some, width) at indices (n, some) of tokens (n, length, width)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def _sinusoidal_embedding(time: Tensor, width: int) -> Tensor:
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = time[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)

"""Dense features: a vector for every patch ("cell") of a picture, comparable with the model's text vectors.

Vision transformers follow FarSLIP (Li et al. 2025): the last block uses self-correlation attention,
softmax(qqᵀ/√d) + softmax(kkᵀ/√d) + softmax(vvᵀ/√d) in place of softmax(qkᵀ/√d), and its output skips the residual and
the MLP. Convolutional towers have a feature map already; each of its cells passes through the layers after the pooling,
for attention pooling through its value projection (MaskCLIP, Zhou et al. 2022).

The models are open_clip's own, read with hooks.
"""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.errors import ClippanError


def dense_features(network: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of the cells of pictures, and of the whole pictures; differentiable.

    Args:
        network: an open_clip model.
        pictures: normalised, (n, 3, height, width); sides are multiples of ``output_stride``, for a transformer those
            that it was trained with.

    Returns:
        Cells (n, width, rows, columns) and pooled vectors (n, width), not normalised.

    Raises:
        ClippanError: the image tower has no dense features.
    """
    visual = network.visual
    layer = _hooked_layer(visual)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        pooled = visual(pictures)
    finally:
        handle.remove()
    if isinstance(visual, VisionTransformer):
        rows, columns = (edge // output_stride(network) for edge in pictures.shape[2:])
        return _patch_vectors(visual, seen[0]).unflatten(1, (rows, columns)).permute(0, 3, 1, 2), pooled
    cells = seen[0].permute(0, 2, 3, 1)
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.c_proj(visual.attnpool.v_proj(cells)).permute(0, 3, 1, 2), pooled
    count, rows, columns, depth = cells.shape
    alone = cells.reshape(-1, depth, 1, 1)  # pooling one cell leaves it as it is
    return visual.head(visual.trunk.forward_head(alone)).view(count, rows, columns, -1).permute(0, 3, 1, 2), pooled


def output_stride(network: Any) -> int:
    """Edge of a cell in pixels of the input picture; raises ClippanError if the tower has no dense features."""
    visual = network.visual
    if isinstance(visual, VisionTransformer):
        return int(visual.patch_size[0])
    _hooked_layer(visual)
    if isinstance(visual, TimmModel):
        return int(visual.trunk.feature_info[-1]["reduction"])
    return 32


def accepts_any_size(network: Any) -> bool:
    """Whether pictures may have another size than in training."""
    return isinstance(network.visual, TimmModel)


def _hooked_layer(visual: nn.Module) -> nn.Module:
    """The layer whose input the dense features are computed from."""
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return visual.transformer.resblocks[-1]
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool
    pool = getattr(getattr(visual, "trunk", None), "global_pool", None)
    if isinstance(visual, TimmModel) and isinstance(pool, nn.Module):
        return pool
    raise ClippanError(
        "The image tower of this model ({tower}) has no dense features; choose a CLIP model with a vision transformer "
        "of open_clip, or a convolutional one.",
        tower=type(getattr(visual, "trunk", visual)).__name__,
    )


def _patch_vectors(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """Vectors (n, cells, width) from the input of the last block (n, 1 + cells, depth)."""
    block: Any = visual.transformer.resblocks[-1]
    attention = block.attn
    if not attention.batch_first:
        tokens = tokens.transpose(0, 1)
    count, length, depth = tokens.shape
    parts = functional.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    parts = parts.view(count, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    value = parts[2]
    # The three attentions share their values, so that no attention map has to be kept.
    mixed = sum(functional.scaled_dot_product_attention(part, part, value) for part in parts)
    assert isinstance(mixed, Tensor)
    out = attention.out_proj(mixed.transpose(1, 2).reshape(count, length, depth))[:, 1:]
    out = visual.ln_post(out)
    return out if visual.proj is None else out @ visual.proj

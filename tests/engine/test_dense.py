"""Dense features, held against a slow reference written apart."""

from __future__ import annotations

import math

import numpy as np
import open_clip
import pytest
import torch

from clippan import resources
from clippan.catalogue import models
from clippan.clip import dense, load
from clippan.core.errors import ClippanError

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def vit(**options):
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8, **options}
    model = open_clip.CLIP(16, vision, TEXT, quick_gelu=True).eval()
    with torch.no_grad():  # as initialised, biases are 0 and would hide that one is left out
        for parameter in model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def softmax(scores):
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def layer_norm(values, layer):
    mean, variance = values.mean(-1, keepdims=True), values.var(-1, keepdims=True)
    return (values - mean) / np.sqrt(variance + layer.eps) * layer.weight.numpy() + layer.bias.numpy()


def slow(model, picture):
    """FarSLIP's cells of one picture, (cells, width), in float64: token by token, head by head."""
    visual = model.visual
    tokens = visual._embeds(picture[None])
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    values = layer_norm(tokens[0].double().numpy(), last.ln_1)
    weight, bias = last.attn.in_proj_weight.numpy(), last.attn.in_proj_bias.numpy()
    depth = values.shape[1]
    query, key, value = (values @ weight[part * depth :][:depth].T + bias[part * depth :][:depth] for part in range(3))
    size = depth // last.attn.num_heads
    mixed = np.zeros_like(values)
    for head in range(last.attn.num_heads):
        own = slice(head * size, (head + 1) * size)
        total = sum(softmax(part[:, own] @ part[:, own].T / math.sqrt(size)) for part in (query, key, value))
        mixed[:, own] = total @ value[:, own]
    out = mixed @ last.attn.out_proj.weight.numpy().T + last.attn.out_proj.bias.numpy()
    return layer_norm(out[1:], visual.ln_post) @ visual.proj.numpy()


@torch.no_grad()
def test_cells_of_a_transformer_are_those_of_the_reference() -> None:
    model = vit()
    pictures = torch.randn(2, 3, 32, 32)
    cells, pooled = dense.dense_features(model, pictures)
    assert cells.shape == (2, 16, 4, 4)
    for number in range(2):
        expected = slow(model, pictures[number]).reshape(4, 4, 16).transpose(2, 0, 1)
        np.testing.assert_allclose(cells[number].numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, model.encode_image(pictures), rtol=0, atol=0)
    assert not torch.allclose(cells.mean((2, 3)), pooled, atol=1e-3)

    load.disable_batch_first(model)  # as loaded models compute
    assert not model.visual.transformer.resblocks[0].attn.batch_first
    again, whole = dense.dense_features(model, pictures)
    torch.testing.assert_close(again, cells, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, pooled, rtol=1e-4, atol=1e-5)


def test_nothing_stays_hooked_and_gradients_flow() -> None:
    model = vit()
    cells, _ = dense.dense_features(model, torch.randn(1, 3, 32, 32))
    cells.sum().backward()
    assert model.visual.conv1.weight.grad.abs().sum() > 0
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_the_mean_of_a_convolutional_towers_cells_is_its_vector() -> None:
    found = models.find_model(str(resources() / "starter-clip"))
    model = load.load_model(found.path, found).network
    assert (dense.output_stride(model), dense.accepts_any_size(model)) == (32, True)
    for edge in (224, 320):
        cells, pooled = dense.dense_features(model, torch.randn(1, 3, edge, edge))
        assert cells.shape[2:] == (edge // 32, edge // 32)
        torch.testing.assert_close(cells.mean((2, 3)), pooled, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cells_of_attention_pooling_are_its_values() -> None:
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = open_clip.CLIP(16, vision, TEXT, quick_gelu=True).eval()
    cells, pooled = dense.dense_features(model, torch.randn(2, 3, 64, 64))
    assert cells.shape == (2, 16, 2, 2)
    assert pooled.shape == (2, 16)
    assert not dense.accepts_any_size(model)
    seen = []
    handle = model.visual.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    dense.dense_features(model, torch.randn(1, 3, 64, 64))
    handle.remove()
    pool = model.visual.attnpool
    one = pool.c_proj(pool.v_proj(seen[0][0, :, 1, 0]))
    again, _ = dense.dense_features(model, torch.zeros(1, 3, 64, 64))
    assert one.shape == again[0, :, 1, 0].shape


def test_a_tower_without_a_way_is_refused_in_a_sentence() -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 224}
    model = open_clip.CustomTextCLIP(16, vision, TEXT)
    with pytest.raises(ClippanError, match="has no dense features; choose"):
        dense.dense_features(model, torch.zeros(1, 3, 224, 224))

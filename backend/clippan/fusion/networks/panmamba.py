"""Pan-Mamba: state space models over the pixels of MS and PAN.

He, Cao, Zhang, Yan, Wang, Li, Xie, Hong and Zhou, "Pan-Mamba: Effective pan-sharpening with State Space Model",
Information Fusion 2025 (arXiv:2402.12192), over Mamba (Gu and Dao 2023). Each image is encoded by convolutions whose
first half of channels is normalised over the picture (HIN blocks), and read as one sequence of pixels, row by row.
Eight Mamba blocks for each image and two that exchange half of their channels make its own features; MS and PAN are
then mixed by convolutions, and five cross-modal blocks let PAN's sequence into that of MS. A block reads the sum of
what the blocks before it made, but hands on only what its own Mamba makes of that; the sum is dropped at the end of
each half. A residual block that weighs channels (Refine) gives what is added to the interpolated MS.

472,044 parameters at 4 bands and 474,352 at 8. The class that the authors released has 478,444 and 480,752; 6,400 of
them, six 1×1 convolutions and two norms, take no part in its result and are left out. Other differences, all chosen:

- The authors enlarge MS by repeating pixels. Here it comes interpolated, as to all networks.
- The released class computes at one size and for 4 bands only; this one at any.
- The last layer starts at a twentieth of its usual size, as that of all networks here.

A pixel's result depends on the whole tile, by the norms over the picture and by all pixels before it.

The scan at Mamba's heart is ``mamba_ssm``'s fused kernel where that is installed and the tensors are on a CUDA device,
and otherwise ours in plain PyTorch (``_SelectiveScan``).
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from clippan.fusion.networks.backbone import Backbone, last_convolution

# As in Mamba: how much wider its inside is, how far its convolution looks back, and the range of the first steps.
EXPANSION = 2
_CONV_WIDTH = 4
_DELTA_RANGE = (1e-3, 1e-1)

_ENCODER_BLOCKS = 3  # convolution blocks before each sequence
_TINY = 1e-5  # added to the variance of a picture's features

# Refine's weights come from this many times fewer numbers, though not from so few that all may be zero at a time.
_REDUCTION = 4
_MIN_SQUEEZED = 4

# States that the plain scan has in memory at a time: few enough to stay near the processor, enough to keep a GPU busy.
_CHUNK_STATES = 2**18
_CHUNK_STATES_ON_GPU = 2**25


class PanMamba(Backbone):
    """``depth`` Mamba blocks an image, ``swaps`` that exchange channels, ``crosses`` that let PAN into MS."""

    label = "Pan-Mamba"

    def __init__(
        self, bands: int, width: int = 32, depth: int = 8, swaps: int = 2, crosses: int = 5, states: int = 16
    ) -> None:
        super().__init__()
        self.bands = bands
        self.ms, self.pan = _encoder(bands, width), _encoder(1, width)
        # Both halves of the network read images through the same two layers.
        self.embed_ms, self.embed_pan = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.ms_blocks = nn.ModuleList(_MambaBlock(width, states) for _ in range(depth))
        self.pan_blocks = nn.ModuleList(_MambaBlock(width, states) for _ in range(depth))
        self.swaps = nn.ModuleList(_ChannelSwap(width, states) for _ in range(swaps))
        self.join_ms = nn.Conv2d(2 * width, width, 3, padding=1)
        self.join_pan = nn.Conv2d(2 * width, width, 3, padding=1)
        self.crosses = nn.ModuleList(_CrossModal(width, states) for _ in range(crosses))
        self.refine = _Refine(width, bands)

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        ms, sharp = self._shallow(self.embed_ms(self.ms(up)), self.embed_pan(self.pan(pan)))
        ms = ms + self.join_ms(torch.cat((ms, sharp), 1))
        sharp = sharp + self.join_pan(torch.cat((sharp, ms), 1))
        ms, sharp = self.embed_ms(ms), sequence(self.embed_pan(sharp))
        stream = torch.zeros_like(sharp)
        for cross in self.crosses:
            ms, stream = cross(ms, stream, sharp)
        detail: Tensor = self.refine(ms)
        return detail

    def _shallow(self, ms: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """The features (n, c, H, W) that each image makes nearly on its own."""
        size = ms.shape[-2:]
        ms, sharp = sequence(ms), sequence(sharp)
        ms_stream, pan_stream = torch.zeros_like(ms), torch.zeros_like(sharp)
        for ms_block, pan_block in zip(self.ms_blocks, self.pan_blocks):
            ms, ms_stream = ms_block(ms, ms_stream)
            sharp, pan_stream = pan_block(sharp, pan_stream)
        for swap in self.swaps:
            ms_stream, pan_stream = ms_stream + ms, pan_stream + sharp
            ms, sharp = swap(ms_stream, pan_stream)
        return from_sequence(ms, size), from_sequence(sharp, size)


class _HinBlock(nn.Module):
    """A half instance normalisation block: the first half of the channels normalised over the picture.

    Chen et al., "HINet: Half Instance Normalization Network for Image Restoration", CVPR Workshops 2021.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(width // 2, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width // 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + leaky(self.second(self.half_normalised(leaky(self.first(x)))))

    def half_normalised(self, x: Tensor) -> Tensor:
        """Features with mean 0 and variance 1 in the first half of their channels, but for the learned change."""
        kept = len(self.scale)
        # Not by ``instance_norm``, which refuses a picture of one pixel.
        variance, mean = torch.var_mean(x[:, :kept].float(), (2, 3), correction=0, keepdim=True)
        first = (x[:, :kept] - mean) * (variance + _TINY).rsqrt() * self.scale + self.shift
        return torch.cat((first.to(x.dtype), x[:, kept:]), 1)


class _MambaBlock(nn.Module):
    """A Mamba over the normalised sum of the sequences (n, length, channels) that came before it, and that sum."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, states)

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        stream = stream + x
        return self.mamba(self.norm(stream)), stream


class _ChannelSwap(nn.Module):
    """The first half of the normalised channels exchanged between MS and PAN, then a Mamba each."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm_ms, self.norm_pan = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ms, self.pan = Mamba(width, states), Mamba(width, states)

    def forward(self, ms: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        half = ms.shape[-1] // 2
        ms, pan = self.norm_ms(ms), self.norm_pan(pan)
        return (
            self.ms(torch.cat((pan[..., :half], ms[..., half:]), -1)),
            self.pan(torch.cat((ms[..., :half], pan[..., half:]), -1)),
        )


class _CrossModal(nn.Module):
    """PAN's sequence let into that of MS, each through a gate of its own; then a look at each pixel's neighbours.

    Both are normalised twice by the same norm, as in the released class.
    """

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.norm_ms, self.norm_pan = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter_ms = nn.Linear(width, 2 * inner, bias=False)
        self.enter_pan = nn.Linear(width, 2 * inner, bias=False)
        self.scan_ms = SelectiveStateSpace(inner, width, states)
        self.scan_pan = SelectiveStateSpace(inner, width, states)
        self.leave = nn.Linear(inner, width, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, ms: Tensor, stream: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, c, H, W) of MS; sequences (n, H·W, c) of what came before and of PAN."""
        stream = stream + sequence(ms)
        x, ms_gate = self.enter_ms(self.norm_ms(self.norm_ms(stream))).chunk(2, -1)
        sharp, pan_gate = self.enter_pan(self.norm_pan(self.norm_pan(pan))).chunk(2, -1)
        merged = self.scan_ms(x) * functional.silu(ms_gate) + self.scan_pan(sharp) * functional.silu(pan_gate)
        new = from_sequence(self.leave(merged), ms.shape[-2:])
        return new + self.around(new), stream


class _Refine(nn.Module):
    """The last features as detail, after a residual block whose channels are weighed by their means."""

    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        squeezed = max(_MIN_SQUEEZED, width // _REDUCTION)
        self.enter = nn.Conv2d(width, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1))
        self.leave = last_convolution(width, bands, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        new = self.second(functional.relu(self.first(x)))
        weights = torch.sigmoid(self.squeeze(new.mean((2, 3), keepdim=True)))
        detail: Tensor = self.leave(x + weights * new)
        return detail


class Mamba(nn.Module):
    """Mamba: a selective scan and a gate between two projections."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.scan = SelectiveStateSpace(inner, width, states)
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.enter(x).chunk(2, -1)
        new: Tensor = self.leave(self.scan(x) * functional.silu(gate))
        return new


class SelectiveStateSpace(nn.Module):
    """A state space model whose steps, input and output weights follow from the sequence (n, length, inner) itself."""

    def __init__(self, inner: int, width: int, states: int) -> None:
        super().__init__()
        rank = math.ceil(width / 16)
        self.split = rank, states, states
        self.before = nn.Conv1d(inner, inner, _CONV_WIDTH, padding=_CONV_WIDTH - 1, groups=inner)
        self.choose = nn.Linear(inner, sum(self.split), bias=False)
        self.step = nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        # Steps start spread over the range, each channel with a memory of its own length.
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.empty(inner).uniform_(*map(math.log, _DELTA_RANGE)).exp()
        self.step.bias.data.copy_(steps.expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = functional.silu(self.before(x.transpose(1, 2))[..., :length].transpose(1, 2))
        delta, b, c = self.choose(x).split(self.split, -1)
        delta = functional.softplus(self.step(delta))
        return selective_scan(x, delta, -self.decay.exp(), b, c) + self.skip * x


def leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)


def _encoder(channels: int, width: int) -> nn.Sequential:
    """An image's first features."""
    blocks = (_HinBlock(width) for _ in range(_ENCODER_BLOCKS))
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), *blocks)


def sequence(x: Tensor) -> Tensor:
    """An image (n, c, H, W) as the sequence of its pixels (n, H·W, c)."""
    return x.flatten(2).transpose(1, 2)


def from_sequence(x: Tensor, size: torch.Size) -> Tensor:
    """The inverse of ``sequence``."""
    return x.transpose(1, 2).unflatten(2, tuple(size))


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y(t) = c(t) · h(t), where h(t) = exp(delta(t) · a) · h(t − 1) + delta(t) · b(t) · x(t), h(−1) = 0.

    Args:
        x, delta: (n, length, channels).
        a: negative (channels, states).
        b, c: (n, length, states).
    """
    # The state gathers over thousands of pixels: half precision would lose it.
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, delta, a, b, c = (value.to(dtype) for value in (x, delta, a, b, c))
        fused = _fused_scan(x.device.type)
        if fused is None:
            scanned: Tensor = _SelectiveScan.apply(x, delta, a, b, c)
            return scanned
        x, delta, b, c = (value.transpose(1, 2).contiguous() for value in (x, delta, b, c))
        return fused(x, delta, a, b, c).transpose(1, 2)


@cache
def _fused_scan(device: str) -> Optional[Callable[..., Tensor]]:
    """``mamba_ssm``'s scan, for a CUDA device where it is installed and loads."""
    if device != "cuda":
        return None
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError):
        return None
    scan: Callable[..., Tensor] = module.selective_scan_fn
    return scan


class _SelectiveScan(torch.autograd.Function):
    """The selective scan in plain PyTorch, exact and without a step of Python for every pixel.

    All states of a sequence, (length, channels, states), are far larger than its inputs and outputs. They are computed
    for a chunk of the sequence at a time; only each chunk's first state is kept, and ``backward`` computes the others
    again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """See ``selective_scan``."""
        state = x.new_zeros(x.shape[0], *a.shape)
        starts, out = [], []
        for chunk in _chunks(x, a):
            starts.append(state)
            _, states = _states(x[:, chunk], delta[:, chunk], a, b[:, chunk], state)
            state = states[:, -1].clone()
            out.append(torch.matmul(states, c[:, chunk, :, None]).squeeze(-1))
        ctx.save_for_backward(x, delta, a, b, c, torch.stack(starts))
        return torch.cat(out, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the states, g(t) = c(t) · grad_output(t) + retained(t + 1) · g(t + 1), by a scan from the
        end, and from them those of the inputs."""
        x, delta, a, b, c, starts = ctx.saved_tensors
        grad_x, grad_delta, grad_a = torch.empty_like(x), torch.empty_like(delta), torch.zeros_like(a)
        grad_b, grad_c = torch.empty_like(b), torch.empty_like(c)
        grad_carried = torch.zeros_like(starts[0])
        for number, chunk in reversed(list(enumerate(_chunks(x, a)))):
            retained, states = _states(x[:, chunk], delta[:, chunk], a, b[:, chunk], starts[number])
            grad_y = grad_output[:, chunk]
            grad_c[:, chunk] = torch.matmul(grad_y[:, :, None], states).squeeze(2)

            grad_states = grad_y[..., None] * c[:, chunk, None]
            # What the last state receives through the next chunk is in ``grad_carried`` already.
            retained_after = torch.cat((retained[:, 1:], torch.ones_like(retained[:, :1])), 1)
            grad_states = _recurrence(retained_after.flip(1), grad_states.flip(1), grad_carried).flip(1)
            grad_carried = retained[:, 0] * grad_states[:, 0]

            by_input = torch.matmul(grad_states, b[:, chunk, :, None]).squeeze(-1)
            grad_x[:, chunk] = by_input * delta[:, chunk]
            grad_b[:, chunk] = torch.matmul((delta[:, chunk] * x[:, chunk])[:, :, None], grad_states).squeeze(2)
            before = torch.cat((starts[number][:, None], states[:, :-1]), 1)
            by_exponent = grad_states.mul_(before).mul_(retained)
            grad_delta[:, chunk] = by_input * x[:, chunk] + (by_exponent * a).sum(-1)
            grad_a += (by_exponent * delta[:, chunk, :, None]).sum((0, 1))
        return grad_x, grad_delta, grad_a, grad_b, grad_c


def _chunks(x: Tensor, a: Tensor) -> list[slice]:
    """The parts of a sequence whose states are in memory at a time."""
    length = x.shape[1]
    states = _CHUNK_STATES if x.device.type == "cpu" else _CHUNK_STATES_ON_GPU
    size = max(1, states // (x.shape[0] * a.numel()))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _states(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """How much each pixel keeps of the state before it, and the states, both (n, length, channels, states)."""
    retained = (delta[..., None] * a).exp_()
    return retained, _recurrence(retained, (delta * x)[..., None] * b[:, :, None], start)


def _recurrence(retained: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """h(t) = retained(t) · h(t − 1) + new(t) along the second axis, from h(−1) = start; written over ``new``.

    The sequence is laid out as about as many blocks as a block has elements. All blocks are run at once as if from
    nought, with what each element keeps of its block's start; then the starts are handed from block to block. That
    takes twice the root of the length in steps of Python, and only ever multiplies by numbers up to one: nothing
    overflows.
    """
    length = new.shape[1]
    size = max(1, math.isqrt(length))
    blocks = length // size
    whole = blocks * size
    states = new[:, :whole].unflatten(1, (blocks, size))
    passed = retained[:, :whole].clone().unflatten(1, (blocks, size))
    for k in range(1, size):
        states[:, :, k].addcmul_(passed[:, :, k], states[:, :, k - 1])
        passed[:, :, k].mul_(passed[:, :, k - 1])
    starts = []
    for block in range(blocks):
        starts.append(start)
        start = torch.addcmul(states[:, block, -1], passed[:, block, -1], start)
    states.addcmul_(passed, torch.stack(starts, 1)[:, :, None])
    for k in range(whole, length):
        start = new[:, k].addcmul_(retained[:, k], start)
    return new

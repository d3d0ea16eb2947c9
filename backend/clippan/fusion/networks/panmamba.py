"""Pan-Mamba: state space models over the pixels of MS and PAN.

He, Cao, Zhang, Yan, Wang, Li, Xie, Hong and Zhou, "Pan-Mamba: Effective pan-sharpening with State Space Model",
Information Fusion 2025 (arXiv:2402.12192), over Mamba (Gu and Dao 2023). Pixels are read as one sequence, row by row.
Both images pass through eight Mamba blocks each; two channel-swapping blocks then exchange half of their channels
before a Mamba each; five cross-modal blocks last let PAN's sequence into that of MS, both through a gate that MS sets.
What comes out is added to the interpolated MS.

449,700 parameters at 4 bands and 452,008 at 8. Tables print 0.1827 million for the original, but count 488.8 thousand
when it is built anew (PanTiny's tables of reproductions): the first most likely leaves out what is inside the fused
Mamba. From the paper: the three kinds of blocks and their order; Mamba's own sizes are its defaults (states of 16,
expansion by 2). 32 channels and the numbers of blocks are the original's to our knowledge, not confirmed. Ours: three
residual convolution blocks before each sequence and the sizes of the convolutions around, chosen to come near that size
(8 % below); and layer normalisation before every Mamba. Sequences run one way only.

A pixel's result depends on all pixels before it in the tile.

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

from clippan.fusion.networks.backbone import Backbone, ResidualBlock, last_convolution

# As in Mamba: how much wider its inside is, how far its convolution looks back, and the range of the first steps.
_EXPANSION = 2
_CONV_WIDTH = 4
_DELTA_RANGE = (1e-3, 1e-1)

# Residual convolution blocks before each sequence.
_ENCODER_BLOCKS = 3

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
        self.ms = _branch_encoder(bands, width)
        self.pan = _branch_encoder(1, width)
        self.ms_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.pan_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.swaps = nn.ModuleList(_ChannelSwap(width, states) for _ in range(swaps))
        self.join_ms = nn.Conv2d(2 * width, width, 3, padding=1)
        self.join_pan = nn.Conv2d(2 * width, width, 3, padding=1)
        self.crosses = nn.ModuleList(_CrossModal(width, states) for _ in range(crosses))
        self.tail = nn.Sequential(ResidualBlock(width, _leaky), last_convolution(width, bands, 3))

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        size = up.shape[-2:]
        ms, sharp = self.ms_blocks(_sequence(self.ms(up))), self.pan_blocks(_sequence(self.pan(pan)))
        for swap in self.swaps:
            ms, sharp = swap(ms, sharp)
        ms, sharp = _from_sequence(ms, size), _from_sequence(sharp, size)
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
        self.mamba = _Mamba(width, states)

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
        inner = _EXPANSION * width
        self.norm_ms, self.norm_pan = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter_ms = nn.Linear(width, 2 * inner, bias=False)
        self.enter_pan = nn.Linear(width, inner, bias=False)
        self.scan_ms, self.scan_pan = (
            _SelectiveStateSpace(inner, width, states),
            _SelectiveStateSpace(inner, width, states),
        )
        self.leave = nn.Linear(inner, width, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        x, gate = self.enter_ms(self.norm_ms(_sequence(ms))).chunk(2, -1)
        sharp = self.enter_pan(self.norm_pan(_sequence(pan)))
        merged = (self.scan_ms(x) + self.scan_pan(sharp)) * functional.silu(gate)
        ms = ms + _from_sequence(self.leave(merged), ms.shape[-2:])
        return ms + self.around(ms)


class _Mamba(nn.Module):
    """Mamba: a selective scan and a gate between two projections."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = _EXPANSION * width
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.scan = _SelectiveStateSpace(inner, width, states)
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.enter(x).chunk(2, -1)
        new: Tensor = self.leave(self.scan(x) * functional.silu(gate))
        return new


class _SelectiveStateSpace(nn.Module):
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


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)


def _branch_encoder(channels: int, width: int) -> nn.Sequential:
    """An image's first features."""
    blocks = (ResidualBlock(width, _leaky) for _ in range(_ENCODER_BLOCKS))
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), *blocks)


def _sequence(x: Tensor) -> Tensor:
    """An image (n, c, H, W) as the sequence of its pixels (n, H·W, c)."""
    return x.flatten(2).transpose(1, 2)


def _from_sequence(x: Tensor, size: torch.Size) -> Tensor:
    """The inverse of ``_sequence``."""
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

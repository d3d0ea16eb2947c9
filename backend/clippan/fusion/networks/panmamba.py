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
and otherwise ours in plain PyTorch (``_Scan``).
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

from clippan.fusion.networks import check_bands, scale_down_weights
from clippan.fusion.networks.block import Block

# As in Mamba: how much wider its inside is, how far its convolution looks back, and the range of the first steps.
_EXPANSION = 2
_LOOK_BACK = 4
_STEPS = (1e-3, 1e-1)

# Residual convolution blocks before each sequence.
_CONVOLUTIONS = 3

# States that the plain scan holds at a time: few enough to stay near the processor, enough to keep a GPU busy.
_HELD = 2**18
_HELD_ON_GPU = 2**25


class PanMamba(nn.Module):
    """``depth`` Mamba blocks an image, ``swaps`` that exchange channels, ``crosses`` that let PAN into MS."""

    def __init__(
        self, bands: int, width: int = 32, depth: int = 8, swaps: int = 2, crosses: int = 5, states: int = 16
    ) -> None:
        super().__init__()
        self.bands = bands
        self.ms = _encoder(bands, width)
        self.pan = _encoder(1, width)
        self.ms_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.pan_blocks = nn.Sequential(*(_Residual(width, states) for _ in range(depth)))
        self.swaps = nn.ModuleList(_Swap(width, states) for _ in range(swaps))
        self.join_ms = nn.Conv2d(2 * width, width, 3, padding=1)
        self.join_pan = nn.Conv2d(2 * width, width, 3, padding=1)
        self.crosses = nn.ModuleList(_Cross(width, states) for _ in range(crosses))
        self.tail = nn.Sequential(Block(width, _leaky), scale_down_weights(nn.Conv2d(width, bands, 3, padding=1)))

    def forward(
        self, up: Tensor, pan: Tensor, low: Optional[Tensor] = None, classical: Optional[Tensor] = None
    ) -> Tensor:
        """See the package."""
        check_bands("Pan-Mamba", self.bands, up)
        size = up.shape[-2:]
        ms, sharp = self.ms_blocks(_sequence(self.ms(up))), self.pan_blocks(_sequence(self.pan(pan)))
        for swap in self.swaps:
            ms, sharp = swap(ms, sharp)
        ms, sharp = _image(ms, size), _image(sharp, size)
        ms, sharp = ms + self.join_ms(torch.cat((ms, sharp), 1)), sharp + self.join_pan(torch.cat((sharp, ms), 1))
        for cross in self.crosses:
            ms = cross(ms, sharp)
        detail: Tensor = self.tail(ms)
        return up + detail


class _Residual(nn.Module):
    """A Mamba over a normalised sequence (n, length, channels), added to it."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = _Mamba(width, states)

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.mamba(self.norm(x))
        return x + new


class _Swap(nn.Module):
    """Half of the channels exchanged between MS and PAN, then a Mamba each."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.ms, self.pan = _Residual(width, states), _Residual(width, states)

    def forward(self, ms: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        kept = ms.shape[-1] // 2
        mixed = torch.cat((ms[..., :kept], pan[..., kept:]), -1), torch.cat((pan[..., :kept], ms[..., kept:]), -1)
        return self.ms(mixed[0]), self.pan(mixed[1])


class _Cross(nn.Module):
    """PAN's sequence let into that of MS, both through the gate of MS; then a look at each pixel's neighbours."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = _EXPANSION * width
        self.norm_ms, self.norm_pan = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter_ms = nn.Linear(width, 2 * inner, bias=False)
        self.enter_pan = nn.Linear(width, inner, bias=False)
        self.scan_ms, self.scan_pan = _Selective(inner, width, states), _Selective(inner, width, states)
        self.leave = nn.Linear(inner, width, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        x, gate = self.enter_ms(self.norm_ms(_sequence(ms))).chunk(2, -1)
        sharp = self.enter_pan(self.norm_pan(_sequence(pan)))
        merged = (self.scan_ms(x) + self.scan_pan(sharp)) * functional.silu(gate)
        ms = ms + _image(self.leave(merged), ms.shape[-2:])
        return ms + self.around(ms)


class _Mamba(nn.Module):
    """Mamba: a selective scan and a gate between two projections."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = _EXPANSION * width
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.scan = _Selective(inner, width, states)
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.enter(x).chunk(2, -1)
        new: Tensor = self.leave(self.scan(x) * functional.silu(gate))
        return new


class _Selective(nn.Module):
    """A state space model whose steps, input and output weights follow from the sequence (n, length, inner) itself."""

    def __init__(self, inner: int, width: int, states: int) -> None:
        super().__init__()
        rank = math.ceil(width / 16)
        self.split = rank, states, states
        self.before = nn.Conv1d(inner, inner, _LOOK_BACK, padding=_LOOK_BACK - 1, groups=inner)
        self.choose = nn.Linear(inner, sum(self.split), bias=False)
        self.step = nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        # Steps start spread over the range, each channel with a memory of its own length.
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.empty(inner).uniform_(*map(math.log, _STEPS)).exp()
        self.step.bias.data.copy_(steps.expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = functional.silu(self.before(x.transpose(1, 2))[..., :length].transpose(1, 2))
        steps, enter, leave = self.choose(x).split(self.split, -1)
        steps = functional.softplus(self.step(steps))
        return selective_scan(x, steps, -self.decay.exp(), enter, leave) + self.skip * x


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)


def _encoder(channels: int, width: int) -> nn.Sequential:
    """An image's first features."""
    blocks = (Block(width, _leaky) for _ in range(_CONVOLUTIONS))
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), *blocks)


def _sequence(x: Tensor) -> Tensor:
    """An image (n, c, H, W) as the sequence of its pixels (n, H·W, c)."""
    return x.flatten(2).transpose(1, 2)


def _image(x: Tensor, size: torch.Size) -> Tensor:
    """The inverse of ``_sequence``."""
    return x.transpose(1, 2).unflatten(2, tuple(size))


def selective_scan(x: Tensor, steps: Tensor, decay: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """y(t) = leave(t) · h(t), where h(t) = exp(steps(t) · decay) · h(t − 1) + steps(t) · enter(t) · x(t), h(−1) = 0.

    Args:
        x, steps: (n, length, channels).
        decay: negative (channels, states).
        enter, leave: (n, length, states).
    """
    # The state gathers over thousands of pixels: half precision would lose it.
    with torch.autocast(x.device.type, enabled=False):
        kind = torch.promote_types(x.dtype, torch.float32)
        inputs = [value.to(kind) for value in (x, steps, decay, enter, leave)]
        kernel = _kernel(x.device.type)
        if kernel is None:
            scanned: Tensor = _Scan.apply(*inputs)
        else:
            x, steps, decay, enter, leave = inputs
            turned = (value.transpose(1, 2).contiguous() for value in (x, steps, enter, leave))
            x, steps, enter, leave = turned
            scanned = kernel(x, steps, decay, enter, leave).transpose(1, 2)
    return scanned


@cache
def _kernel(device: str) -> Optional[Callable[..., Tensor]]:
    """``mamba_ssm``'s scan, for a CUDA device where it is installed and loads."""
    if device != "cuda":
        return None
    try:
        kernel: Callable[..., Tensor] = importlib.import_module(
            "mamba_ssm.ops.selective_scan_interface"
        ).selective_scan_fn
    except (ImportError, OSError):
        return None
    return kernel


class _Scan(torch.autograd.Function):
    """The selective scan in plain PyTorch, exact and without a step of Python for every pixel.

    All states of a sequence, (length, channels, states), are far larger than what goes in and comes out. They are made
    for a stretch of the sequence at a time; only each stretch's first state is kept, and the way back makes the others
    again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Tensor, decay: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
        """See ``selective_scan``."""
        state = x.new_zeros(x.shape[0], *decay.shape)
        starts, out = [], []
        for part in _stretches(x, decay):
            starts.append(state)
            _, states = _states(x[:, part], steps[:, part], decay, enter[:, part], state)
            state = states[:, -1].clone()
            out.append(torch.matmul(states, leave[:, part, :, None]).squeeze(-1))
        ctx.save_for_backward(x, steps, decay, enter, leave, torch.stack(starts))
        return torch.cat(out, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        """The states' slopes g(t) = leave(t) · slope(t) + kept(t + 1) · g(t + 1), a scan from the end; from them the
        inputs' slopes."""
        x, steps, decay, enter, leave, starts = ctx.saved_tensors
        of_x, of_steps, of_decay = torch.empty_like(x), torch.empty_like(steps), torch.zeros_like(decay)
        of_enter, of_leave = torch.empty_like(enter), torch.empty_like(leave)
        later = torch.zeros_like(starts[0])
        for number, part in reversed(list(enumerate(_stretches(x, decay)))):
            kept, states = _states(x[:, part], steps[:, part], decay, enter[:, part], starts[number])
            after = slope[:, part]
            of_leave[:, part] = torch.matmul(after[:, :, None], states).squeeze(2)

            g = after[..., None] * leave[:, part, None]
            # The last state passes on to the next stretch, whose part in its slope is in ``later`` already.
            onward = torch.cat((kept[:, 1:], torch.ones_like(kept[:, :1])), 1)
            g = _recur(onward.flip(1), g.flip(1), later).flip(1)
            later = kept[:, 0] * g[:, 0]

            by_input = torch.matmul(g, enter[:, part, :, None]).squeeze(-1)
            of_x[:, part] = by_input * steps[:, part]
            of_enter[:, part] = torch.matmul((steps[:, part] * x[:, part])[:, :, None], g).squeeze(2)
            before = torch.cat((starts[number][:, None], states[:, :-1]), 1)
            by_exponent = g.mul_(before).mul_(kept)
            of_steps[:, part] = by_input * x[:, part] + (by_exponent * decay).sum(-1)
            of_decay += (by_exponent * steps[:, part, :, None]).sum((0, 1))
        return of_x, of_steps, of_decay, of_enter, of_leave


def _stretches(x: Tensor, decay: Tensor) -> list[slice]:
    """The parts of a sequence whose states are held at a time."""
    length = x.shape[1]
    held = _HELD if x.device.type == "cpu" else _HELD_ON_GPU
    size = max(1, held // (x.shape[0] * decay.numel()))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _states(x: Tensor, steps: Tensor, decay: Tensor, enter: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """How much each pixel keeps of the state before it, and the states, both (n, length, channels, states)."""
    kept = (steps[..., None] * decay).exp_()
    return kept, _recur(kept, (steps * x)[..., None] * enter[:, :, None], start)


def _recur(kept: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """h(t) = kept(t) · h(t − 1) + new(t) along the second axis, from h(−1) = start; written over ``new``.

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
    passed = kept[:, :whole].clone().unflatten(1, (blocks, size))
    for k in range(1, size):
        states[:, :, k].addcmul_(passed[:, :, k], states[:, :, k - 1])
        passed[:, :, k].mul_(passed[:, :, k - 1])
    starts = []
    for block in range(blocks):
        starts.append(start)
        start = torch.addcmul(states[:, block, -1], passed[:, block, -1], start)
    states.addcmul_(passed, torch.stack(starts, 1)[:, :, None])
    for k in range(whole, length):
        start = new[:, k].addcmul_(kept[:, k], start)
    return new

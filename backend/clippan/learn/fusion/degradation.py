"""How multispectral images come to be coarser than PAN, and what goes wrong on the way: for training patches."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clippan.fusion import filters
from clippan.raster.grid import AxisTransform

_PHASE_DIGITS = 9  # decimals of a phase in pixels


@dataclass(frozen=True)
class Blur:
    """A low pass and decimation.

    Attributes:
        kind: ``gaussian`` (the MTF of optics), ``box`` (mean of the pixels), ``cubic`` (antialiased cubic resampling)
            or ``sampling`` (cubic interpolation without a low pass).
        gain_x, gain_y: MTF gain of the Gaussian at the multispectral Nyquist frequency along each axis.
    """

    kind: str = "gaussian"
    gain_x: float = 0.3
    gain_y: float = 0.3

    @property
    def gain(self) -> float:
        """MTF gain at the multispectral Nyquist frequency, the mean of both axes."""
        fixed = {"box": 0.637, "cubic": 0.47, "sampling": 0.95}  # box: sinc(1/2); the others: of their kernels
        return fixed.get(self.kind, float(np.sqrt(self.gain_x * self.gain_y)))

    def matrix(
        self, axis: AxisTransform, first: int, count: int, pan_first: int, pan_count: int, gain: float
    ) -> Tensor:
        """The filter along one axis as a matrix (count, pan_count), from PAN pixels to multispectral samples; ``gain``
        is that of a Gaussian along it."""
        phase = round(axis.ms_to_pan(first) - pan_first, _PHASE_DIGITS)
        return _matrix(self.kind, axis.ratio, phase, count, pan_count, gain)


@functools.lru_cache(maxsize=512)
def _matrix(kind: str, ratio: float, phase: float, count: int, pan_count: int, gain: float) -> Tensor:
    distance = np.arange(pan_count) - (phase + np.arange(count) * ratio)[:, None]
    if kind == "box":  # the part of each pixel that lies in the sample
        weights = (np.minimum(distance + 0.5, ratio / 2) - np.maximum(distance - 0.5, -ratio / 2)).clip(0, 1)
    elif kind == "cubic":
        weights = filters.cubic_kernel(distance / ratio)
    elif kind == "sampling":
        weights = filters.cubic_kernel(distance)
    else:
        weights = filters.mtf_weights(distance, gain, ratio)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


def through_jpeg(planes: Tensor, quality: int) -> Tensor:
    """Planes (n, h, w) after JPEG compression of each in 8 bits between its extremes."""
    restored = []
    for plane in planes.numpy():
        low, step = float(plane.min()), max(float(plane.max() - plane.min()) / 255, 1e-12)
        buffer = io.BytesIO()
        Image.fromarray(np.rint((plane - low) / step).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        restored.append(np.asarray(Image.open(buffer), np.float32) * np.float32(step) + np.float32(low))
    return torch.from_numpy(np.stack(restored))

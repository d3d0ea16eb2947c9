"""What classical fusion has to know of the whole scene: means, covariances and dark levels at the multispectral scale.

They are measured at full multispectral resolution on all of a small scene, and on evenly drawn windows of a large
one, so that they do not depend on tiles and cost the same for any size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.device import one_thread
from clippan.errors import ClippanError
from clippan.fusion import filters
from clippan.jobs.base import Context
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window, in_order, tiles

_WINDOW = 64  # multispectral samples
_WINDOWS = 256  # a million samples, from all over the scene
_DARK = 0.1  # percentile that stands for the darkest surface; the minimum itself is often a dead pixel
_SEED = 0
_COVERED = 0.999  # least weight of valid pixels under a filter whose result counts


@dataclass(frozen=True)
class Statistics:
    """First and second moments over jointly valid samples, float64.

    The variables are, in order: the MS bands, PAN filtered with each of the MS gains, PAN filtered with its own gain
    and, if asked for, the MS bands filtered once more with their own MTF.

    Attributes:
        bands: number of MS bands.
        filtered: number of distinct MS gains.
        mean: (variables,).
        covariance: (variables, variables).
        dark: (bands,), the 0.1 % percentile of each band.
        count: samples measured.
    """

    bands: int
    filtered: int
    mean: torch.Tensor
    covariance: torch.Tensor
    dark: torch.Tensor
    count: int

    @property
    def ms(self) -> list[int]:
        """Variables: the MS bands."""
        return list(range(self.bands))

    @property
    def pan(self) -> int:
        """Variable: PAN filtered with its own gain."""
        return self.bands + self.filtered

    def low(self, index: int) -> int:
        """Variable: PAN filtered with the MS gain ``index``."""
        return self.bands + index

    @property
    def ms_filtered(self) -> list[int]:
        """Variables: the MS bands filtered once more."""
        return [self.pan + 1 + band for band in range(self.bands)]

    def regress(self, target: int, on: Sequence[int]) -> torch.Tensor:
        """Least-squares coefficients, without the intercept, of one variable on others."""
        inputs = list(on)
        covariance = self.covariance[inputs][:, inputs]
        # A constant band makes the system singular; a millionth of its scale keeps it solvable.
        ridge = 1e-9 * covariance.diagonal().mean().clamp(min=1e-12)
        eye = torch.eye(len(inputs), dtype=covariance.dtype)
        return torch.linalg.solve(covariance + ridge * eye, self.covariance[inputs, target])


def measure(
    pair: Pair,
    gains: Sequence[float],
    pan_gain: float,
    threads: int,
    context: Context,
    filter_ms: Optional[Sequence[float]] = None,
) -> Statistics:
    """Measures a scene.

    Args:
        pair: the scene.
        gains: distinct MTF gains of the MS bands.
        pan_gain: MTF gain of PAN.
        threads: CPU threads.
        context: hears of progress.
        filter_ms: MTF gain of each MS band, if the bands filtered once more are wanted too.

    Raises:
        ClippanError: no pixel is valid in PAN and all MS bands.
    """
    sampler = _Sampler(pair, tuple(gains), pan_gain, filter_ms)
    first_x, first_y, end_x, end_y = sampler.extent()
    windows = [
        Window(window.x + first_x, window.y + first_y, window.width, window.height)
        for window in tiles(end_x - first_x, end_y - first_y, _WINDOW)
    ]
    if len(windows) > _WINDOWS:
        order = np.random.default_rng(_SEED).permutation(len(windows))
        windows = [windows[index] for index in order]
    samples: list[np.ndarray] = []
    filled = 0
    with contextlib.closing(in_order(sampler.read, windows, threads, one_thread)) as batches:
        for number, (_, values) in enumerate(batches):
            if values.shape[1]:
                samples.append(values)
                filled += values.shape[1] >= _WINDOW * _WINDOW // 4
            if filled >= _WINDOWS:
                break
            context.progress(100 * max(filled / _WINDOWS, number / len(windows)), "Measuring the scene")
    if sum(values.shape[1] for values in samples) < 2:
        raise ClippanError(
            "No pixel is valid in both the panchromatic and the multispectral raster; "
            "check their nodata values (nodata, NaN and alpha count as invalid)."
        )
    joined = torch.from_numpy(np.concatenate(samples, axis=1)).double()
    mean = joined.mean(dim=1)
    centred = joined - mean[:, None]
    dark = np.percentile(np.concatenate([values[: sampler.bands] for values in samples], axis=1), _DARK, axis=1)
    return Statistics(
        sampler.bands,
        len(gains),
        mean,
        centred @ centred.T / joined.shape[1],
        torch.from_numpy(np.asarray(dark, np.float64)),
        joined.shape[1],
    )


@dataclass(frozen=True)
class _Sampler:
    pair: Pair
    gains: tuple[float, ...]
    pan_gain: float
    filter_ms: Optional[Sequence[float]]

    @property
    def bands(self) -> int:
        return len(self.pair.ms.numbers)

    def extent(self) -> tuple[int, int, int, int]:
        """Multispectral samples whose centres lie in the output: first column and row, end column and row."""
        grid, x, y = self.pair.grid, self.pair.x, self.pair.y
        first_x = max(0, int(np.ceil(x.to_ms(-0.5))))
        first_y = max(0, int(np.ceil(y.to_ms(-0.5))))
        end_x = min(self.pair.ms.grid.width, int(np.floor(x.to_ms(grid.width - 0.5))) + 1)
        end_y = min(self.pair.ms.grid.height, int(np.floor(y.to_ms(grid.height - 0.5))) + 1)
        return first_x, first_y, max(end_x, first_x + 1), max(end_y, first_y + 1)

    def read(self, window: Window) -> np.ndarray:
        """The variables at the jointly valid samples of a window of MS: (variables, samples), float32."""
        ms, valid = self._read_ms(window)
        joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
        lows, covered = self._filter_pan(window)
        planes = [ms.numpy(), lows]
        joint &= covered
        if self.filter_ms:
            again, covered = self._filter_ms(window)
            planes.append(again)
            joint &= covered
        variables = np.concatenate(planes)
        return variables.reshape(len(variables), -1) if joint.all() else variables[:, joint]

    def _read_ms(self, window: Window) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        values, valid = self.pair.read_ms(window)
        return torch.from_numpy(values.astype(np.float32)), valid

    def _filter_pan(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """PAN filtered with each gain and its own (gains + 1, height, width), and where its window is valid."""
        gains = (*self.gains, self.pan_gain)
        x, width, columns = filters.down_matrices(self.pair.x, window.x, window.width, gains)
        y, height, rows = filters.down_matrices(self.pair.y, window.y, window.height, gains)
        values, valid = self.pair.read_pan(Window(x, y, width, height))
        pan = torch.from_numpy(values.astype(np.float32))
        covered = np.ones((window.height, window.width), bool)
        if valid is None:
            lows = [filters.separable(row, pan, column) for row, column in zip(rows, columns)]
            return torch.stack(lows).numpy(), covered
        mask = torch.from_numpy(valid)
        clean = torch.stack([torch.where(mask, pan, torch.zeros_like(pan)), mask.float()])
        lows = []
        for row, column in zip(rows, columns):
            low, weight = filters.separable(row, clean, column)
            lows.append(low / weight.clamp(min=1e-6))
            covered &= (weight > _COVERED).numpy()
        return torch.stack(lows).numpy(), covered

    def _filter_ms(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        assert self.filter_ms is not None
        kernels_x = [torch.from_numpy(filters.mtf_kernel(g, self.pair.x.ratio)).float() for g in self.filter_ms]
        kernels_y = [torch.from_numpy(filters.mtf_kernel(g, self.pair.y.ratio)).float() for g in self.filter_ms]
        reach_x = max(len(kernel) // 2 for kernel in kernels_x)
        reach_y = max(len(kernel) // 2 for kernel in kernels_y)
        wide = Window(window.x - reach_x, window.y - reach_y, window.width + 2 * reach_x, window.height + 2 * reach_y)
        values, valid = self._read_ms(wide)
        mask = np.ones(values.shape[1:], bool) if valid is None else valid.all(axis=0)
        stacked = torch.cat([torch.where(torch.from_numpy(mask), values, 0.0), torch.from_numpy(mask)[None].float()])
        planes, weights = [], []
        for band, (row, column) in enumerate(zip(kernels_y, kernels_x)):
            both = stacked[[band, -1]][:, None]
            both = torch.nn.functional.conv2d(both, row.view(1, 1, -1, 1))
            both = torch.nn.functional.conv2d(both, column.view(1, 1, 1, -1))[:, 0]
            dy, dx = reach_y - len(row) // 2, reach_x - len(column) // 2
            both = both[:, dy : dy + window.height, dx : dx + window.width]
            planes.append(both[0] / both[1].clamp(min=1e-6))
            weights.append(both[1])
        return torch.stack(planes).numpy(), (torch.stack(weights).min(dim=0).values > _COVERED).numpy()

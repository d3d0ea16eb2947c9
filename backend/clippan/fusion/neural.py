"""A trained network as a fusion method: blocks in the units of the file go in and come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch

from clippan.fusion.methods import MtfGlp
from clippan.fusion.model import FusionModel
from clippan.fusion.statistics import TINY, Statistics

_MARGIN = 32  # PAN pixels around a block for networks that do not say how far they look


class Neural:
    """A network with the scene's statistics; called like the methods in ``methods``.

    The block has ``margin`` more pixels on each side than count in the result. A block's corner has to lie on a
    multiple of the network's cells.

    Args:
        statistics: of the whole scene.
        response_of: for each band, which of the distinct responses is its own.
        model: the network.
    """

    def __init__(self, statistics: Statistics, response_of: Sequence[int], model: FusionModel) -> None:
        self._network = model.network
        self.margin = int(getattr(model.network, "margin", _MARGIN))
        self._classical = MtfGlp(statistics, response_of, modulation=True, regression=True)
        self._response_of = list(response_of)
        bands, pan = statistics.ms, statistics.low(0)
        variance = statistics.covariance.diagonal().clamp(min=TINY)
        self._mean = statistics.mean[bands].float().view(-1, 1, 1)
        self._std = variance[bands].sqrt().float().view(-1, 1, 1)
        self._pan_mean, self._pan_std = float(statistics.mean[pan]), float(variance[pan].sqrt())

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, low: Optional[torch.Tensor]) -> torch.Tensor:
        """See ``methods``."""
        assert low is not None
        mean, std = self._mean.to(ms.device), self._std.to(ms.device)
        classical = self._classical(ms, pan, low).sub_(mean).div_(std)
        if len(low) > 1:
            low = low[self._response_of]
        up = (ms - mean).div_(std)
        light = (pan - self._pan_mean).div_(self._pan_std)[None]
        dark = (low - self._pan_mean).div_(self._pan_std)
        with torch.inference_mode():
            fused = self._network(up[None], light[None], dark.expand_as(up)[None], classical[None])[0]
        return fused.mul(std).add_(mean)

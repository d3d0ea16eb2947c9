"""A trained network as a fusion method: blocks in the units of the file go in and come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch

from clippan.core.device import supports_bfloat16
from clippan.fusion.methods import MtfGlp
from clippan.fusion.model import FusionModel
from clippan.fusion.statistics import TINY, SceneStatistics

_MARGIN = 32  # PAN pixels around a block for networks that do not say how far they look
# Standard deviations by which a network may correct the classical result, besides as much as that adds to MS. Only dead
# and hot pixels, glint and the like make it want more: it has not seen such values.
_LEASH = 3.0
# Correlations with PAN: a network is not believed where no band reaches the first, nor for bands below the first of the
# second; from the other ones on it is wholly.
_ALIKE, _OPPOSITE = (0.1, 0.3), (-0.9, -0.6)
_LEAST = 1e-6  # standard deviation, as a part of the mean, below which a band is but the rounding of float32


class NetworkFusion:
    """A network with the scene's statistics; called like the methods in ``methods``.

    The block has ``margin`` more pixels on each side than count in the result. A block's corner has to lie on a
    multiple of the network's cells.

    Args:
        statistics: of the whole scene.
        response_of: for each band, which of the distinct responses is its own.
        model: the network.
        device: where it computes.

    Attributes:
        half: whether the network computes in bfloat16.
    """

    def __init__(
        self, statistics: SceneStatistics, response_of: Sequence[int], model: FusionModel, device: torch.device
    ) -> None:
        self._network = model.network
        self.half = device.type == "cpu" and getattr(model.network, "tolerant", False) and supports_bfloat16()
        self.margin = int(getattr(model.network, "margin", _MARGIN))
        self._classical = MtfGlp(statistics, response_of, modulation=True, regression=True)
        self._response_of = list(response_of)
        bands, pan = statistics.ms, statistics.low(0)
        variance = torch.maximum(statistics.covariance.diagonal(), (_LEAST * statistics.mean).square()).clamp(min=TINY)
        self._mean = statistics.mean[bands].float().view(-1, 1, 1)
        self._std = variance[bands].sqrt().float().view(-1, 1, 1)
        self._trust = network_trust(statistics, response_of)
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
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.half):
            fused = self._network(up[None], light[None], dark.expand_as(up)[None], classical[None])[0]
            fused = limit_correction(fused, up, classical, self._trust).mul_(std).add_(mean)
        # What was not seen, in files that declare no nodata value, is 0 and stays so.
        if float(ms.min()) > 0:  # as nearly always; the rest takes time
            return fused
        return torch.where((ms == 0).all(dim=0), ms, fused)


def limit_correction(
    fused: torch.Tensor, up: torch.Tensor, classical: torch.Tensor, trust: Optional[torch.Tensor]
) -> torch.Tensor:
    """What counts of a network's result, in standardised values (…, bands, height, width); see ``_LEASH``."""
    leash = (classical - up).abs_().add_(_LEASH)
    correction = (fused - classical).clamp_(-leash, leash)
    if trust is not None:
        correction.mul_(trust.to(correction.device))
    return correction.add_(classical)


def network_trust(statistics: SceneStatistics, response_of: Sequence[int]) -> Optional[torch.Tensor]:
    """How far a network is believed for each band (bands, 1, 1), 0 to 1; None if wholly.

    Networks have learned that bands look like PAN. Where none does (PAN is noise, as over water, or shows another
    place), they would give the bands all the same what they do not have; the classical result knows better.
    """
    bands, variance = statistics.ms, statistics.covariance.diagonal().clamp(min=TINY)
    lows = [statistics.low(index) for index in response_of]
    alike = statistics.covariance[bands, lows] / (variance[bands] * variance[lows]).sqrt()
    scene = _ramp(alike.max(), *_ALIKE)
    found = (scene * _ramp(alike, *_OPPOSITE)).float()
    return None if bool((found == 1).all()) else found.view(-1, 1, 1)


def _ramp(value: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """0 up to the start, 1 from the end on, and a line between them."""
    return ((value - start) / (end - start)).clamp(0, 1)

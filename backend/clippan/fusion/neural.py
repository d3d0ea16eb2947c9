"""A trained network as a fusion method, for blocks in the units of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch

from clippan.core.device import supports_bfloat16
from clippan.fusion.methods import MtfGlp
from clippan.fusion.model import FusionModel
from clippan.fusion.statistics import TINY, SceneStatistics

_MARGIN = 32  # PAN pixels around a block, for networks that do not declare their receptive field
# Standard deviations by which a network may correct the classical result, in addition to what that adds to MS. Only
# values unknown from training, such as dead and hot pixels or glint, lead to larger corrections.
_MAX_CORRECTION = 3.0
# Correlations with PAN between which the weight of a network's correction rises from 0 to 1: of the best band of the
# scene, and of each band.
_SCENE_RANGE, _BAND_RANGE = (0.1, 0.3), (-0.9, -0.6)
_MIN_STD = 1e-6  # relative to the mean; less is rounding of float32


class NetworkFusion:
    """A network with the statistics of a scene, called like the methods in ``methods``.

    Blocks need ``margin`` more pixels on each side than are valid in the result, and their corners at multiples of the
    network's cells.

    Args:
        statistics: statistics of the whole scene.
        mtf_index_of_band: index of each band's MTF among the distinct ones.
        mtf_gains: MTF gain of each band.
        ratio: MS over PAN pixel size.
        model: the network.
        trust: weight of its correction for each band, from ``network_trust``; None if all are 1.
        device: where to compute.

    Attributes:
        margin: in PAN pixels.
        bfloat16: whether the network computes in bfloat16.
    """

    def __init__(
        self,
        statistics: SceneStatistics,
        mtf_index_of_band: Sequence[int],
        mtf_gains: Sequence[float],
        ratio: float,
        model: FusionModel,
        trust: Optional[torch.Tensor],
        device: torch.device,
    ) -> None:
        self._network = model.network
        self.bfloat16 = (
            device.type == "cpu" and getattr(model.network, "tolerates_bfloat16", False) and supports_bfloat16()
        )
        self.margin = int(getattr(model.network, "margin", _MARGIN))
        self._classical = MtfGlp(statistics, mtf_index_of_band, modulation=True, regression=True)
        self._mtf_index_of_band = list(mtf_index_of_band)
        bands, pan = statistics.ms_indices, statistics.pan_index
        variance = torch.maximum(statistics.covariance.diagonal(), (_MIN_STD * statistics.mean).square()).clamp(
            min=TINY
        )
        self._conditions = conditions(mtf_gains, ratio)[None].to(device)
        self._mean = statistics.mean[bands].float().view(-1, 1, 1)
        self._std = variance[bands].sqrt().float().view(-1, 1, 1)
        self._trust = trust
        self._pan_mean, self._pan_std = float(statistics.mean[pan]), float(variance[pan].sqrt())

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        assert pan_lowpass is not None
        mean, std = self._mean.to(ms.device), self._std.to(ms.device)
        classical = self._classical(ms, pan, pan_lowpass).sub_(mean).div_(std)
        if len(pan_lowpass) > 1:
            pan_lowpass = pan_lowpass[self._mtf_index_of_band]
        up = (ms - mean).div_(std)
        standardised_pan = (pan - self._pan_mean).div_(self._pan_std)[None]
        pan_lowpass = (pan_lowpass - self._pan_mean).div_(self._pan_std)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            pan_lowpass = pan_lowpass.expand_as(up)
            inputs = (up[None], standardised_pan[None], pan_lowpass[None], classical[None], self._conditions)
            fused = self._network(*inputs)[0]
            fused = limit_correction(fused, up, classical, self._trust).mul_(std).add_(mean)
        # Missing pixels of files that declare no nodata value stay 0.
        if float(ms.min()) > 0:  # the usual, fast case
            return fused
        return torch.where((ms == 0).all(dim=0), ms, fused)


def conditions(mtf_gains: Sequence[float], ratio: float) -> torch.Tensor:
    """What a network is told of each band besides the images (bands, 2): the assumed blur and the ratio of the grids,
    as logarithms around usual values (an MTF gain of 0.3, ratio 4)."""
    scale = math.log(ratio / 4)
    return torch.tensor([[-math.log(gain) - 1.2, scale] for gain in mtf_gains])


def limit_correction(
    fused: torch.Tensor, up: torch.Tensor, classical: torch.Tensor, trust: Optional[torch.Tensor]
) -> torch.Tensor:
    """A network's result with its correction of the classical result limited, and weighted by ``trust`` (bands, 1, 1).

    All in standardised values (…, bands, height, width).
    """
    limit = (classical - up).abs_().add_(_MAX_CORRECTION)
    correction = (fused - classical).clamp_(-limit, limit)
    if trust is not None:
        correction.mul_(trust.to(correction.device))
    return correction.add_(classical)


def network_trust(statistics: SceneStatistics, mtf_index_of_band: Sequence[int]) -> Optional[torch.Tensor]:
    """Weight of a network's correction for each band (bands, 1, 1), 0 to 1; None if all are 1.

    Networks have learned that bands look like PAN. Where none does, as PAN is noise (over water) or shows another
    area, they would add details that the bands do not have, and the classical result is better.
    """
    bands, variance = statistics.ms_indices, statistics.covariance.diagonal().clamp(min=TINY)
    pan_lowpass_indices = [statistics.pan_lowpass_index(index) for index in mtf_index_of_band]
    correlation = (
        statistics.covariance[bands, pan_lowpass_indices] / (variance[bands] * variance[pan_lowpass_indices]).sqrt()
    )
    weight = (_ramp(correlation.max(), *_SCENE_RANGE) * _ramp(correlation, *_BAND_RANGE)).float()
    return None if bool((weight == 1).all()) else weight.view(-1, 1, 1)


def _ramp(value: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """0 up to the start, 1 from the end on, linear between them."""
    return ((value - start) / (end - start)).clamp(0, 1)

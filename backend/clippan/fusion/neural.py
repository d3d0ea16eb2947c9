"""A trained network as a fusion method, for blocks in the units of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch

from clippan.core.device import supports_bfloat16
from clippan.core.messages import Message
from clippan.fusion.methods import MtfGlp
from clippan.fusion.model import FusionModel
from clippan.fusion.networks.detail_modulation import DetailModulationNet
from clippan.fusion.statistics import TINY, SceneStatistics

_MARGIN = 32  # PAN pixels around a block, for networks that do not declare their receptive field
# Standard deviations by which a network may correct the classical result, in addition to what that adds to MS. Only
# values unknown from training, such as dead and hot pixels or glint, lead to larger corrections.
_MAX_CORRECTION = 3.0
# Correlations with PAN between which the weight of a network's correction rises from 0 to 1: of the best band of the
# scene, and of each band.
_SCENE_RANGE, _BAND_RANGE = (0.1, 0.3), (-0.9, -0.6)
# MTF gains between which it falls from 1 to 0. Optics and their motion leave 0.1 to 0.4 at the Nyquist frequency; bands
# with more were resampled in some unknown way, of which the result of training says nothing.
_GAIN_RANGE = (0.65, 0.45)
NO_CORRECTION = Message(
    "The network changes nothing here, so the result is that of MTF-GLP-HPM-R: no band looks like the panchromatic "
    "raster, or all are sharper than the optics of a sensor make them."
)
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
        classical: what the network corrects.
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
        self.classical = MtfGlp(statistics, mtf_index_of_band, modulation=True, regression=True)
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
        classical = self.classical(ms, pan, pan_lowpass).sub_(mean).div_(std)
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


class CellwiseFusion(NetworkFusion):
    """The same with a network that works on cells of PAN's pixels: only its last step needs bands at PAN's scale.

    Nothing is standardised but what the network looks at; its gains belong to the units of the file.
    """

    def features(
        self, pan: torch.Tensor, coarse: torch.Tensor, smooth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``correct`` needs, for each cell (bands, k, h, w).

        Args:
            pan: (H, W), of whole cells.
            coarse, smooth: MS and filtered PAN as means of cells (bands or MTFs, h, w).
        """
        mean, std = self._mean.to(pan.device), self._std.to(pan.device)
        smooth = (smooth - self._pan_mean).div_(self._pan_std)
        smooth = smooth[self._mtf_index_of_band] if len(smooth) > 1 else smooth.expand(len(coarse), -1, -1)
        pan = (pan - self._pan_mean).div_(self._pan_std)
        network = self._network
        assert isinstance(network, DetailModulationNet)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            return network.features(pan[None, None], (coarse - mean).div_(std)[None], smooth[None], self._conditions)

    def correct(
        self,
        classical: torch.Tensor,
        ms: torch.Tensor,
        pan: torch.Tensor,
        pan_lowpass: torch.Tensor,
        features: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """The classical result with the network's correction, in its memory (bands, height, width).

        Args:
            ms, pan, pan_lowpass: at PAN's scale, as of ``__call__``.
            features: of their cells.
        """
        network, std = self._network, self._std.to(ms.device)
        assert isinstance(network, DetailModulationNet)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.bfloat16):
            gain, added, change = network.gains(*features)
        detail = (pan - pan_lowpass).div_(self._pan_std)
        if len(detail) > 1:
            detail = detail[self._mtf_index_of_band]
        own = classical - ms
        change.addcmul_(added, detail).mul_(std).addcmul_(gain, own)
        if bool((change.abs().amax(dim=(1, 2), keepdim=True) > _MAX_CORRECTION * std).any()):
            limit = own.abs_().add_(_MAX_CORRECTION * std)
            change = torch.minimum(torch.maximum(change, -limit), limit)
        if self._trust is not None:
            change.mul_(self._trust.to(change.device))
        if float(ms.min()) <= 0:  # missing pixels of files that declare no nodata value stay 0
            change[:, (ms == 0).all(dim=0)] = 0
            classical[:, (ms == 0).all(dim=0)] = 0
        return classical.add_(change)


def fusion_kind(model: FusionModel) -> type[NetworkFusion]:
    """What fuses by a model's network."""
    return CellwiseFusion if isinstance(model.network, DetailModulationNet) else NetworkFusion


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


def network_trust(
    statistics: SceneStatistics, mtf_index_of_band: Sequence[int], mtf_gains: Sequence[float]
) -> Optional[torch.Tensor]:
    """Weight of a network's correction for each band (bands, 1, 1), 0 to 1; None if all are 1.

    Networks have learned that bands look like PAN, as optics blur it. Where none does, as PAN is noise (over water) or
    shows another area, or where bands are sharper than optics make them, they would add details that the bands do not
    have, and the classical result is better.
    """
    bands, variance = statistics.ms_indices, statistics.covariance.diagonal().clamp(min=TINY)
    pan_lowpass_indices = [statistics.pan_lowpass_index(index) for index in mtf_index_of_band]
    correlation = (
        statistics.covariance[bands, pan_lowpass_indices] / (variance[bands] * variance[pan_lowpass_indices]).sqrt()
    )
    weight = _ramp(correlation.max(), *_SCENE_RANGE) * _ramp(correlation, *_BAND_RANGE)
    weight = (weight * _ramp(torch.tensor(mtf_gains).to(weight), *_GAIN_RANGE)).float()
    return None if bool((weight == 1).all()) else weight.view(-1, 1, 1)


def _ramp(value: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """0 on the far side of the start, 1 on that of the end, linear between them."""
    return ((value - start) / (end - start)).clamp(0, 1)

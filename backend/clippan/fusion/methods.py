"""Classical pansharpening methods.

Each method is fitted to the statistics of the whole scene once, and then called with blocks: the interpolated MS
``ms`` (bands, height, width), PAN ``pan`` (height, width) and, if the method needs it, ``pan_lowpass``, PAN filtered
with each distinct MTF of the MS bands and interpolated back (MTFs, height, width). All are float32 in the units of the
files. A method keeps no state between blocks. One that treats every band on its own can also do most of its work at
multispectral scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Callable, Optional

import torch

from clippan.fusion.statistics import TINY, SceneStatistics
from clippan.jobs.options import Method

# Least numerator and denominator of a modulation, relative to the mean above the dark level. With a floor on the
# denominator alone, dark surfaces would turn black.
_FLOOR = 0.2

FusionMethod = Callable[[torch.Tensor, torch.Tensor, Optional[torch.Tensor]], torch.Tensor]


class BandwiseMethod(ABC):
    """A method whose bands do not depend on each other, in two steps: the terms of its formula without PAN of full
    resolution, and the rest.

    The first is done at multispectral scale, and its result is interpolated. For additive methods this is the same as
    a formula of interpolated MS and filtered PAN. Of modulations, the ratio of the two is interpolated, which is
    smoother than either. Methods that combine bands cannot: the samples of bands with shifts lie in different places.
    """

    @abstractmethod
    def ms_terms(self, ms: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        """The terms without PAN (bands, height, width), of MS and filtered PAN at one scale, to interpolate."""

    @abstractmethod
    def inject(self, terms: torch.Tensor, pan: torch.Tensor) -> torch.Tensor:
        """The fused bands of interpolated terms, whose memory is used, and PAN."""

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        """Both steps with MS and filtered PAN that are interpolated already."""
        return self.inject(self.ms_terms(ms, pan_lowpass), pan)


class Cubic(BandwiseMethod):
    """The interpolated MS: the baseline of any sharpening."""

    def ms_terms(self, ms: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        return ms

    def inject(self, terms: torch.Tensor, pan: torch.Tensor) -> torch.Tensor:
        return terms


class Brovey:
    """Brovey transform with an intensity fitted to PAN (Gillespie et al. 1987), and with haze correction
    (Lolli et al. 2017) if ``haze`` is set: the dark level h of each band, its path radiance, is left out of the ratio.

    F = (MS − h) · (P − c − Σ w·h) / (Σ w·(MS − h)) + h, where Σ w·MS + c fits filtered PAN with non-negative weights:
    with negative ones the denominator could vanish over surfaces that are dark in some bands only.
    """

    def __init__(self, statistics: SceneStatistics, haze: bool) -> None:
        weights = _nonnegative_weights(statistics)
        bands = statistics.mean[statistics.ms_indices]
        # Data with negative values, such as scaled integers, is modulated above its dark level.
        dark = statistics.dark if haze else statistics.dark.clamp(max=0)
        self._weights = weights.float().view(1, -1)
        self._dark = dark.float().view(-1, 1, 1)
        self._dark_intensity = float(weights @ dark)
        self._dark_pan = float(statistics.mean[statistics.pan_index] - weights @ (bands - dark))
        self._floor = max(_FLOOR * float(weights @ (bands - dark)), TINY)

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        intensity = _weighted_sum(self._weights, ms).sub_(self._dark_intensity).clamp_(min=self._floor)
        gain = (pan - self._dark_pan).clamp_(min=self._floor).div_(intensity)
        dark = self._dark.to(ms.device)
        return (ms - dark).mul_(gain).add_(dark)


class GSA:
    """Gram-Schmidt adaptive (Aiazzi, Baronti and Selva 2007): F = MS + g·(P − I), I regressed on the bands,
    g = cov(MS, I) / var(I)."""

    def __init__(self, statistics: SceneStatistics) -> None:
        bands = statistics.ms_indices
        weights = statistics.regress(statistics.pan_index, bands)
        covariance = statistics.covariance[bands][:, bands]
        gains = covariance @ weights / (weights @ covariance @ weights).clamp(min=TINY)
        self._weights = weights.float().view(1, -1)
        self._offset = float(statistics.mean[statistics.pan_index] - weights @ statistics.mean[bands])
        self._gains = gains.float().view(-1, 1, 1)

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        detail = pan - _weighted_sum(self._weights, ms) - self._offset
        return (self._gains.to(ms.device) * detail).add_(ms)


class BDSD:
    """Band-dependent spatial detail (Garzelli, Nencini and Capobianco 2008), global: the detail of each band is the
    linear combination of all bands and PAN that restores it best one scale further down."""

    def __init__(self, statistics: SceneStatistics) -> None:
        inputs = [*statistics.filtered_ms_indices, statistics.pan_index]
        rows, offsets = [], []
        for band in statistics.ms_indices:
            smooth = statistics.filtered_ms_indices[band]
            gains = statistics.regress(band, inputs) - statistics.regress(smooth, inputs)
            rows.append(gains)
            offsets.append(
                gains[:-1] @ statistics.mean[statistics.ms_indices] + gains[-1] * statistics.mean[statistics.pan_index]
            )
        coefficients = torch.stack(rows).float()
        self._bands = coefficients[:, :-1]
        self._pan = coefficients[:, -1].reshape(-1, 1, 1)
        self._offset = torch.stack(offsets).float().view(-1, 1, 1)

    def __call__(self, ms: torch.Tensor, pan: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        detail = torch.matmul(self._bands.to(ms.device), ms.flatten(1)).view_as(ms)
        return detail.add_(self._pan.to(ms.device) * pan).sub_(self._offset.to(ms.device)).add_(ms)


class MtfGlp(BandwiseMethod):
    """Generalised Laplacian pyramid with MTF-matched filters (Aiazzi et al. 2006).

    Additive (CBD): F = MS + g·(P − P_L), with g = cov(MS, P_L) / var(P_L).
    Modulated (HPM): F = MS · M(P) / M(P_L), where M(x) = mean(MS) + g·(x − mean(P_L)) is PAN in the units of the band;
    g is the ratio of standard deviations, or with ``regression`` (HPM-R: Vivone, Restaino and Chanussot 2018) that of
    the additive form.
    """

    def __init__(
        self, statistics: SceneStatistics, mtf_index_of_band: Sequence[int], modulation: bool, regression: bool
    ) -> None:
        pan_lowpass_indices = [statistics.pan_lowpass_index(index) for index in mtf_index_of_band]
        bands = statistics.ms_indices
        variance = statistics.covariance[pan_lowpass_indices, pan_lowpass_indices].clamp(min=TINY)
        if regression:
            gains = statistics.covariance[bands, pan_lowpass_indices] / variance
        else:
            gains = (statistics.covariance[bands, bands] / variance).sqrt()
        self._modulation = modulation
        self._mtf_index_of_band = list(mtf_index_of_band)
        self._single = len(set(mtf_index_of_band)) == 1
        self._gains = gains.float().view(-1, 1, 1)
        # Data with negative values, such as scaled integers, is modulated above its dark level.
        base = statistics.dark.clamp(max=0)
        self._base = base.float().view(-1, 1, 1)
        above = statistics.mean[bands] - base
        self._offset = (above - gains * statistics.mean[pan_lowpass_indices]).float().view(-1, 1, 1)
        self._floor = modulation_floor(above.float().view(-1, 1, 1))

    def ms_terms(self, ms: torch.Tensor, pan_lowpass: Optional[torch.Tensor]) -> torch.Tensor:
        assert pan_lowpass is not None
        if not self._single:
            pan_lowpass = pan_lowpass[self._mtf_index_of_band]
        if not self._modulation:
            return ms - self._gains.to(ms.device) * pan_lowpass
        return (ms - self._base.to(ms.device)).div_(self._in_units_of_bands(pan_lowpass))

    def inject(self, terms: torch.Tensor, pan: torch.Tensor) -> torch.Tensor:
        if not self._modulation:
            return terms.add_(self._gains.to(terms.device) * pan)
        return terms.mul_(self._in_units_of_bands(pan)).add_(self._base.to(terms.device))

    def _in_units_of_bands(self, pan: torch.Tensor) -> torch.Tensor:
        return modulator(pan, *(tensor.to(pan.device) for tensor in (self._gains, self._offset, self._floor)))


def high_pass_modulation(
    ms: torch.Tensor,
    pan: torch.Tensor,
    pan_lowpass: torch.Tensor,
    injection_gains: torch.Tensor,
    offset: torch.Tensor,
    mean: torch.Tensor,
) -> torch.Tensor:
    """High-pass modulation MS · M(P) / M(P_L), all at one scale.

    Args:
        ms, pan, pan_lowpass: (…, bands, height, width), PAN with one band.
        injection_gains, offset: as of ``modulator``.
        mean: of MS above its dark level (…, bands, 1, 1).
    """
    floor = modulation_floor(mean)
    return ms / modulator(pan_lowpass, injection_gains, offset, floor) * modulator(pan, injection_gains, offset, floor)


def modulator(
    pan: torch.Tensor, injection_gains: torch.Tensor, offset: torch.Tensor, floor: torch.Tensor
) -> torch.Tensor:
    """PAN in the units of each band, M(x) = offset + injection_gains · x, but at least ``floor``.

    Args:
        pan: (height, width) or (…, bands or 1, height, width).
        injection_gains, offset, floor: (…, bands, 1, 1).
    """
    return (injection_gains * pan).add_(offset).clamp_(min=floor)


def modulation_floor(mean: torch.Tensor) -> torch.Tensor:
    """Least numerator and denominator of a modulation for means above the dark level."""
    return (_FLOOR * mean).clamp(min=TINY)


def needs_low_pass(method: Method) -> bool:
    """Whether a method needs ``pan_lowpass``."""
    return method in (Method.CLIPPAN, Method.MTF_GLP_CBD, Method.MTF_GLP_HPM, Method.MTF_GLP_HPM_R)


def needs_mtf(method: Method) -> bool:
    """Whether a method depends on the MTF of the bands."""
    return needs_low_pass(method) or method is Method.BDSD


def fit_method(method: Method, statistics: SceneStatistics, mtf_index_of_band: Sequence[int]) -> FusionMethod:
    """A classical method, fitted to a scene.

    Args:
        method: the method.
        statistics: statistics of the whole scene, with filtered MS bands for BDSD.
        mtf_index_of_band: index of each band's MTF among the distinct ones.
    """
    if method is Method.CUBIC:
        return Cubic()
    if method in (Method.BROVEY, Method.BT_H):
        return Brovey(statistics, haze=method is Method.BT_H)
    if method is Method.GSA:
        return GSA(statistics)
    if method is Method.BDSD:
        return BDSD(statistics)
    modulation = method is not Method.MTF_GLP_CBD
    return MtfGlp(statistics, mtf_index_of_band, modulation, regression=method is not Method.MTF_GLP_HPM)


def _weighted_sum(weights: torch.Tensor, ms: torch.Tensor) -> torch.Tensor:
    """Weighted sum over bands: weights (1, bands), ms (bands, height, width) to (height, width)."""
    return torch.matmul(weights.to(ms.device), ms.flatten(1)).view(ms.shape[1:])


def _nonnegative_weights(statistics: SceneStatistics) -> torch.Tensor:
    """Non-negative weights of the bands (bands,) that, with an intercept, fit filtered PAN.

    Bands with a negative weight are removed from the active set, the most negative first.
    """
    active = statistics.ms_indices
    weights = torch.zeros(statistics.band_count, dtype=statistics.mean.dtype)
    while active:
        fitted = statistics.regress(statistics.pan_index, active)
        if bool((fitted > 0).all()):
            weights[active] = fitted
            return weights
        active = [band for band, weight in zip(active, fitted) if weight > fitted.min()]
    return torch.full_like(weights, 1 / statistics.band_count)

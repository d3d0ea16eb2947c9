"""The metrics of ``clippan.fusion.metrics`` for two whole images at once."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from clippan.fusion.metrics import (
    BLOCK,
    NAN,
    SAM,
    SSIM,
    BlockUQI,
    DetailCorrelation,
    Q2n,
    SquaredErrors,
    alparone_d_lambda,
    alparone_d_s,
    ms_block_size,
)


def added(metric: Any, image: Tensor, reference: Tensor, valid: Optional[Tensor]) -> Any:
    metric.add(image, reference, valid)
    return metric


def uqi(image: Tensor, reference: Tensor, valid: Optional[Tensor] = None, size: int = BLOCK) -> float:
    """Averaged over blocks and bands."""
    metric, bands = BlockUQI(size), len(image)
    metric.add(torch.cat([image, reference]), valid)
    return float(metric.value[:bands, bands:].diagonal().mean()) if metric.count else NAN


def q2n(
    image: Tensor, reference: Tensor, valid: Optional[Tensor] = None, size: int = BLOCK, normalise: bool = True
) -> float:
    return added(Q2n(size, normalise), image, reference, valid).value


def sam(image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> float:
    return added(SAM(), image, reference, valid).value


def ergas(image: Tensor, reference: Tensor, ratio: float, valid: Optional[Tensor] = None) -> float:
    return added(SquaredErrors(), image, reference, valid).ergas(ratio)


def psnr(image: Tensor, reference: Tensor, valid: Optional[Tensor] = None, peak: Optional[float] = None) -> float:
    return added(SquaredErrors(), image, reference, valid).psnr(peak)


def scc(image: Tensor, reference: Tensor, valid: Optional[Tensor] = None) -> float:
    """Against a reference, or against PAN the correlation of high-pass details."""
    return added(DetailCorrelation(), image, reference, valid).value


def ssim(image: Tensor, reference: Tensor, data_range: float, valid: Optional[Tensor] = None) -> float:
    return added(SSIM(data_range), image, reference, valid).value


def d_lambda_k(filtered: Tensor, upsampled: Tensor, valid: Optional[Tensor] = None) -> float:
    """Of the fused image after MS's MTF filter against MS on the same grid."""
    return 1 - q2n(filtered, upsampled, valid)


def d_s(fused: Tensor, pan: Tensor, ms: Tensor, degraded_pan: Tensor, ratio: float) -> float:
    return alparone_d_s(*_uqi_pair(fused, pan, ms, degraded_pan, ratio))


def d_lambda(fused: Tensor, ms: Tensor, ratio: float) -> float:
    return alparone_d_lambda(*_uqi_pair(fused, fused[:1], ms, ms[:1], ratio))


def _uqi_pair(fused: Tensor, pan: Tensor, ms: Tensor, degraded_pan: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    high, low = BlockUQI(), BlockUQI(ms_block_size(ratio))
    high.add(torch.cat([fused.float(), pan.float()]))
    low.add(torch.cat([ms.float(), degraded_pan.float()]))
    return high.value, low.value

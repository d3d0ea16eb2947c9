"""Batches of patches for training fusion networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from torch import Tensor

from clippan.fusion import filters


@dataclass(frozen=True)
class PatchBatch:
    """``n`` patches of PAN and MS with one ratio and ``c`` bands; (H, W) PAN pixels, (h, w) MS samples.

    Values are standardised per scene: each MS band by its own mean and standard deviation, PAN by those of PAN
    filtered to MS resolution.

    Attributes:
        up: MS interpolated to PAN's grid (n, c, H, W).
        pan: (n, 1, H, W).
        pan_lowpass: PAN filtered with each band's MTF, decimated and interpolated like MS (n, c, H, W).
        classical: the result of MTF-GLP-HPM-R (n, c, H, W), standardised like ``up``.
        ms: the MS samples whose MTF filters lie within the patch (n, c, h, w).
        degraded_pan: PAN filtered with its own MTF, at these samples (n, 1, h, w).
        row_filters, column_filters: MTF filters of the bands, from PAN's grid to these samples: (n, c, h, H) and
            (n, c, w, W), or (c, …) for all patches.
        mean, std: of the bands (n, c, 1, 1), in the units of the file.
        pan_mean, pan_std: of PAN (n, 1, 1, 1), in the units of the file.
        conditions: of each band (n, c, 2), see ``fusion.neural.conditions``.
        ratio: MS over PAN pixel size.
        scenes: number of the scene of each patch (n,).
        target: the reference MS on PAN's grid (n, c, H, W); None at full resolution.
        stand_in: what stands for the unknown fused image in stage I (n, c, H, W); None for ``classical``.
    """

    up: Tensor
    pan: Tensor
    pan_lowpass: Tensor
    classical: Tensor
    ms: Tensor
    degraded_pan: Tensor
    row_filters: Tensor
    column_filters: Tensor
    mean: Tensor
    std: Tensor
    pan_mean: Tensor
    pan_std: Tensor
    conditions: Tensor
    ratio: float
    scenes: Tensor
    target: Optional[Tensor] = None
    stand_in: Optional[Tensor] = None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The inputs of a network: up, pan, pan_lowpass, classical, conditions."""
        return self.up, self.pan, self.pan_lowpass, self.classical, self.conditions

    def degrade(self, fused: Tensor) -> Tensor:
        """Fused bands (n, c, H, W) degraded with the MTF to the samples of ``ms``."""
        return filters.apply_separable(self.row_filters, fused, self.column_filters)

    def destandardise(self, bands: Tensor) -> Tensor:
        """Standardised bands (n, c, …) in the units of the file."""
        return bands * self.std + self.mean

    def destandardise_pan(self, pan: Tensor) -> Tensor:
        """Standardised PAN (n, 1, …) in the units of the file."""
        return pan * self.pan_std + self.pan_mean

    def to(self, device: torch.device) -> PatchBatch:
        """The batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

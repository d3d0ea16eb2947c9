"""What a training step works on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from torch import Tensor

from clippan.fusion import filters


@dataclass(frozen=True)
class PatchBatch:
    """Patches of one ratio and number of bands, of PAN and of what can be seen in MS there.

    Values are standardised per scene: each band of MS by its own mean and standard deviation, PAN by those of PAN
    filtered to the MS scale. ``n`` patches, ``c`` bands, (H, W) pixels of PAN, (h, w) samples of MS.

    Attributes:
        up: MS interpolated to PAN's grid (n, c, H, W), what a network is given.
        pan: (n, 1, H, W), what a network is given.
        low: PAN filtered with each band's MTF, decimated and interpolated as MS was (n, c, H, W).
        classical: MTF-GLP-HPM-R on these, in the units of ``up``.
        ms: the MS samples whose MTF reaches no further than the patch (n, c, h, w).
        pan_low: PAN filtered with its own gain at these samples (n, 1, h, w).
        rows, columns: the bands' MTF filters (n, c, h, H) and (n, c, w, W), or (c, …), PAN's grid to these samples.
        mean, std: of the bands (n, c, 1, 1), in the units of the file.
        pan_mean, pan_std: of PAN (n, 1, 1, 1), in the units of the file.
        ratio: MS over PAN pixel size.
        scenes: number of the scene that each patch is from (n,).
        target: the true MS on PAN's grid (n, c, H, W), where there is one.
    """

    up: Tensor
    pan: Tensor
    low: Tensor
    classical: Tensor
    ms: Tensor
    pan_low: Tensor
    rows: Tensor
    columns: Tensor
    mean: Tensor
    std: Tensor
    pan_mean: Tensor
    pan_std: Tensor
    ratio: float
    scenes: Tensor
    target: Optional[Tensor] = None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a network is called with: up, pan, low, classical."""
        return self.up, self.pan, self.low, self.classical

    def degrade(self, fused: Tensor) -> Tensor:
        """Fused bands (n, c, H, W) as the sensor would see them: the samples that ``ms`` holds."""
        return filters.apply_separable(self.rows, fused, self.columns)

    def units(self, bands: Tensor) -> Tensor:
        """Standardised bands (n, c, …) in the units of the file, where ratios and means have their meaning."""
        return bands * self.std + self.mean

    def pan_units(self, pan: Tensor) -> Tensor:
        """Standardised PAN (n, 1, …) in the units of the file."""
        return pan * self.pan_std + self.pan_mean

    def to(self, device: torch.device) -> PatchBatch:
        """The batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

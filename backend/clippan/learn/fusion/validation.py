"""The exact quality figures of a network on windows of a scene, at both resolutions, as Assess computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from clippan.core.context import Context
from clippan.fusion import filters
from clippan.fusion.metrics import SAM, FullResolutionMetrics, Q2n, SquaredErrors, correlate
from clippan.fusion.neural import limit_correction
from clippan.jobs.adapt import ADAPTATION_FIGURES
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.patches import MIN_VALID_SHARE, ReferenceScene, ScenePair, collate

_SIZE_DIVISOR = 8  # of which a window's edge is made, for networks that fold pixels


def validate(
    network: nn.Module,
    full: Sequence[ValidationWindow],
    reduced: Sequence[ValidationWindow],
    ratio: float,
    context: Context,
) -> dict[str, float]:
    """The figures in ``ADAPTATION_FIGURES`` by name, on windows at full and at reduced resolution."""
    figures = FullResolutionMetrics(ratio)
    for window in full:
        context.raise_if_cancelled()
        window.add(figures, network)
    q2n, sam, errors = Q2n(), SAM(), SquaredErrors()
    for window in reduced:
        assert window.reference is not None
        fused = window.fuse(network)
        for metric in (q2n, sam, errors):
            metric.add(fused, window.reference, window.valid)
    values = {**figures.values, "Q2n": q2n.value, "SAM": sam.value, "ERGAS": errors.ergas(ratio)}
    return {name: values[name] for name in ADAPTATION_FIGURES}


@dataclass(frozen=True)
class ValidationWindow:
    """A window that is fused as a whole and assessed.

    Attributes:
        pair: the window.
        batch: the network's inputs.
        valid: pixels that count, bool (H, W).
        covered: pixels that count after the fused bands were MTF-filtered, bool (H, W).
        trust: weight of the network's correction, from ``neural.network_trust``.
        sensor_gains: MTF gain of each band by the sensor's table, with which Assess degrades the fused bands.
        reference: reference bands (c, H, W), at reduced resolution only.
    """

    pair: ScenePair
    batch: PatchBatch
    valid: Tensor
    covered: Tensor
    trust: Optional[Tensor]
    sensor_gains: Sequence[float]
    reference: Optional[Tensor] = None

    @classmethod
    def of(
        cls,
        pair: ScenePair,
        device: torch.device,
        trust: Optional[Tensor],
        sensor_gains: Sequence[float],
        reference: Optional[ReferenceScene] = None,
    ) -> ValidationWindow:
        """The window of a pair, with the reference if it is at reduced resolution."""
        valid = torch.from_numpy(pair.valid_pixels())
        if reference is not None:
            valid &= torch.from_numpy(reference.valid)
        covered = valid
        if not bool(valid.all()):
            weight = mtf_filtered(valid.float()[None].expand(len(pair.ms), -1, -1), pair, sensor_gains)
            covered = valid & (weight > MIN_VALID_SHARE).all(dim=0)
        batch = collate([pair.whole_patch()], [0], pair.x_axis.ratio).to(device)
        bands = None if reference is None else torch.from_numpy(reference.bands).float().to(device)
        return cls(pair, batch, valid.to(device), covered.to(device), trust, sensor_gains, bands)

    @torch.no_grad()
    def fuse(self, network: nn.Module) -> Tensor:
        """The fused bands (c, H, W) in the units of the file, as Pansharpen computes them."""
        height, width = self.valid.shape
        padding = (0, -width % _SIZE_DIVISOR, 0, -height % _SIZE_DIVISOR)
        inputs = self.batch.inputs
        if any(padding):
            *images, conditions = inputs
            inputs = (*(functional.pad(item, padding, mode="replicate") for item in images), conditions)  # type: ignore[assignment]
        fused = network(*inputs)[..., :height, :width]
        return self.batch.destandardise(limit_correction(fused, self.batch.up, self.batch.classical, self.trust))[0]

    def add(self, figures: FullResolutionMetrics, network: nn.Module) -> None:
        """Adds the network's fusion of the window at full resolution."""
        fused, pan = self.fuse(network), self.batch.destandardise_pan(self.batch.pan)[0]
        margin = [FullResolutionMetrics.MARGIN] * 4
        figures.add_pan_scale(*(functional.pad(item, margin) for item in (fused, pan, self.valid)))
        figures.add_mtf_filtered(
            mtf_filtered(fused, self.pair, self.sensor_gains), self.batch.destandardise(self.batch.up)[0], self.covered
        )
        degraded_pan = torch.from_numpy(self.pair.degraded_pan(self.pair.pan_mtf_gain)[None])
        figures.add_ms_scale(torch.from_numpy(self.pair.ms), degraded_pan, torch.from_numpy(self.pair.valid))


def mtf_filtered(bands: Tensor, pair: ScenePair, gains: Sequence[float]) -> Tensor:
    """Bands (c, H, W) filtered with their MTF on the same grid; the border is replicated."""
    planes = []
    for band, gain in zip(bands, gains):
        rows, columns = ([*map(float, filters.mtf_kernel(gain, axis.ratio))] for axis in (pair.y_axis, pair.x_axis))
        padding = (len(columns) // 2, len(columns) // 2, len(rows) // 2, len(rows) // 2)
        wide = functional.pad(band[None, None], padding, mode="replicate")[0]
        planes.append(correlate(correlate(wide, columns, -1), rows, -2))
    return torch.cat(planes)

"""The exact figures of a network on windows of a scene, at both scales, as Assess finds them."""

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
from clippan.jobs.adapt import ADAPTED
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.patches import VALID_SHARE, ReferenceScene, ScenePair, collate

_STEP = 8  # a window's edge is a multiple of it for networks that fold pixels


def validate(
    network: nn.Module,
    full: Sequence[ValidationWindow],
    reduced: Sequence[ValidationWindow],
    ratio: float,
    context: Context,
) -> dict[str, float]:
    """The figures in ``ADAPTED``.

    Args:
        network: called as in ``networks``.
        full: windows at full resolution.
        reduced: windows one scale down, with their truth.
        ratio: MS over PAN pixel size.
        context: may cancel.
    """
    figures = FullResolutionMetrics(ratio)
    for item in full:
        context.raise_if_cancelled()
        item.add(figures, network)
    q2n, sam, errors = Q2n(), SAM(), SquaredErrors()
    for item in reduced:
        assert item.truth is not None
        fused = item.fuse(network)
        for figure in (q2n, sam, errors):
            figure.add(fused, item.truth, item.valid)
    values = {**figures.values, "Q2n": q2n.value, "SAM": sam.value, "ERGAS": errors.ergas(ratio)}
    return {name: values[name] for name in ADAPTED}


@dataclass(frozen=True)
class ValidationWindow:
    """A window that is fused as a whole and measured.

    Attributes:
        pair: the window.
        batch: the same as a network is given it.
        valid: which of its pixels count (H, W), and ``covered`` which of them once the fused bands are filtered.
        trust: how far a network is believed, as in ``neural``.
        truth: the true bands (c, H, W), if there are some.
    """

    pair: ScenePair
    batch: PatchBatch
    valid: Tensor
    covered: Tensor
    trust: Optional[Tensor]
    truth: Optional[Tensor] = None

    @classmethod
    def of(
        cls, pair: ScenePair, device: torch.device, trust: Optional[Tensor], truth: Optional[ReferenceScene] = None
    ) -> ValidationWindow:
        """Of a window, and of the truth where it is one scale down."""
        valid = torch.from_numpy(pair.valid_pixels())
        if truth is not None:
            valid &= torch.from_numpy(truth.valid)
        covered = valid
        if not bool(valid.all()):
            weight = _seen(valid.float()[None].expand(len(pair.ms), -1, -1), pair)
            covered = valid & (weight > VALID_SHARE).all(dim=0)
        batch = collate([pair.whole_patch()], [0], pair.x.ratio).to(device)
        true = None if truth is None else torch.from_numpy(truth.bands).float().to(device)
        return cls(pair, batch, valid.to(device), covered.to(device), trust, true)

    @torch.no_grad()
    def fuse(self, network: nn.Module) -> Tensor:
        """The fused bands (c, H, W) in the units of the file, as Pansharpen makes them."""
        height, width = self.valid.shape
        padding = (0, -width % _STEP, 0, -height % _STEP)
        inputs = self.batch.inputs
        if any(padding):
            inputs = tuple(functional.pad(item, padding, mode="replicate") for item in inputs)  # type: ignore[assignment]
        fused = network(*inputs)[..., :height, :width]
        return self.batch.units(limit_correction(fused, self.batch.up, self.batch.classical, self.trust))[0]

    def add(self, figures: FullResolutionMetrics, network: nn.Module) -> None:
        """Adds what the network makes of the window, at full resolution."""
        fused, pan = self.fuse(network), self.batch.pan_units(self.batch.pan)[0]
        edge = [FullResolutionMetrics.MARGIN] * 4
        figures.add_high(*(functional.pad(item, edge) for item in (fused, pan, self.valid)))
        figures.add_khan(_seen(fused, self.pair), self.batch.units(self.batch.up)[0], self.covered)
        low = torch.from_numpy(self.pair.pan_low(self.pair.pan_gain)[None])
        figures.add_low(torch.from_numpy(self.pair.ms), low, torch.from_numpy(self.pair.valid))


def _seen(bands: Tensor, pair: ScenePair) -> Tensor:
    """Bands (c, H, W) after each one's MTF filter, on the same grid; beyond the border they repeat."""
    planes = []
    for band, gain in zip(bands, pair.gains):
        rows, columns = ([*map(float, filters.mtf_kernel(gain, axis.ratio))] for axis in (pair.y, pair.x))
        edge = (len(columns) // 2, len(columns) // 2, len(rows) // 2, len(rows) // 2)
        wide = functional.pad(band[None, None], edge, mode="replicate")[0]
        planes.append(correlate(correlate(wide, columns, -1), rows, -2))
    return torch.cat(planes)

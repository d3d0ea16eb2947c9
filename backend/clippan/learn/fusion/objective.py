"""The loss terms of a training run, weighted and summed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from clippan.core.errors import ClippanError
from clippan.learn.fusion import losses
from clippan.learn.fusion.batch import PatchBatch

Term = Callable[[PatchBatch, Tensor], Tensor]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, which ``losses`` defines; a term of weight 0 is not computed.

    Block figures and details are averaged over the patches of a scene before they are compared.

    Attributes:
        spectral: L_spec, the degraded fused bands against MS.
        spatial: L_spat, a weighted sum of the fused bands against PAN.
        qnr: L_QNR = 1 − QNR.
        pseudo: L_ship, against a frozen network.
        language: L_d, the direction of CLIP's embeddings. Its gradient is about 100 times that of ``spectral``, and
            CLIP also rewards invisible patterns: use weights around 0.01 beside other terms.
        supervised: L1 against the reference MS, at reduced resolution.
        quality: 1 − Q2n against the reference MS.
        angle: spectral angle against the reference MS, in radians.
        khan: Khan's spectral distortion.
        alparone: Alparone's spectral distortion.
        distortion: spatial distortion D_s.
        detail: 1 − correlation of details with those of PAN.
        texture: local lack of the classical result's details.
    """

    spectral: float = 0.0
    spatial: float = 0.0
    qnr: float = 0.0
    pseudo: float = 0.0
    language: float = 0.0
    supervised: float = 0.0
    quality: float = 0.0
    angle: float = 0.0
    khan: float = 0.0
    alparone: float = 0.0
    distortion: float = 0.0
    detail: float = 0.0
    texture: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < math.inf:
                raise ClippanError(
                    "The loss {name} has the weight {weight}; a weight must be a finite number from 0 up.",
                    name=name,
                    weight=weight,
                )

    @property
    def used(self) -> Mapping[str, float]:
        """The weights that are not zero."""
        return {name: weight for name, weight in dataclasses.asdict(self).items() if weight}


_TERMS: Mapping[str, Term] = {
    "spectral": losses.spectral_loss,
    "spatial": losses.spatial_loss,
    "qnr": losses.qnr_loss,
    "supervised": losses.supervised_loss,
    "quality": losses.q2n_loss,
    "angle": losses.spectral_angle_loss,
    "khan": losses.khan_d_lambda,
    "alparone": losses.alparone_d_lambda,
    "distortion": losses.d_s,
    "detail": lambda batch, fused: 1 - losses.detail_correlation(fused, batch.pan, batch.scenes),
    "texture": losses.texture_loss,
}


class Objective:
    """The function that a training run minimises.

    Args:
        weights: weights of the terms.
        terms: the terms ``pseudo`` and ``language``, which need a network of their own, and others to take the place of
            those in ``losses``.

    Raises:
        ClippanError: ``pseudo`` has a weight but no network.
    """

    def __init__(self, weights: LossWeights, **terms: Term) -> None:
        self._weights, self._terms = weights.used, {**_TERMS, **terms}
        if "pseudo" in self._weights and "pseudo" not in terms:
            raise ClippanError("The loss pseudo needs a trained network; set teacher, or set its weight to 0.")

    def __call__(self, batch: PatchBatch, fused: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term without its weight and gradient."""
        # Half precision is too coarse for differences of nearly equal numbers.
        with torch.autocast(fused.device.type, enabled=False):
            terms = {name: self._terms[name](batch, fused.float()) for name in self._weights}
            total: Any = sum(weight * terms[name] for name, weight in self._weights.items())
        return total, {name: term.detach() for name, term in terms.items()}

"""The loss terms of a training run, weighted and summed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol

import torch
from torch import Tensor

from clippan.core.errors import ClippanError
from clippan.learn.fusion import losses
from clippan.learn.fusion.batch import PatchBatch

Term = Callable[[PatchBatch, Tensor], Tensor]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, which ``losses`` defines; a term of weight 0 is not computed.

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

    @property
    def used(self) -> Mapping[str, float]:
        """The weights that are not zero."""
        return {name: weight for name, weight in dataclasses.asdict(self).items() if weight}


class DirectionLoss(Protocol):
    """What the term ``language`` needs of a ``ClipSupervisor``."""

    def direction_loss(self, batch: PatchBatch, fused: Tensor) -> Tensor: ...


class Objective:
    """The function that a training run minimises.

    Args:
        weights: weights of the terms.
        spatial: L_spat; the parameters of a ``losses.LearnedSpatialLoss`` have to be given to the optimiser.
        teacher: frozen network for ``pseudo``.
        supervisor: supervisor from stage I for ``language``.
        pooled: whether block figures and details are averaged over the patches of a scene before they are compared.

    Raises:
        ClippanError: no term has a weight, a weight is not finite and positive, or a term lacks what it needs.
    """

    def __init__(
        self,
        weights: LossWeights,
        spatial: Term = losses.spatial_loss,
        teacher: Optional[Callable[..., Tensor]] = None,
        supervisor: Optional[DirectionLoss] = None,
        pooled: bool = False,
    ) -> None:
        self._used = weights.used
        if not self._used:
            raise ClippanError("No loss has a weight; give at least one loss a weight above 0.")
        for name, weight in self._used.items():
            if not 0 < weight < float("inf"):
                raise ClippanError(
                    "The loss {name} has the weight {weight}; a weight must be a finite number from 0 up.",
                    name=name,
                    weight=weight,
                )
        if "pseudo" in self._used and teacher is None:
            raise ClippanError("The loss pseudo needs a trained network; set teacher, or set its weight to 0.")
        if "language" in self._used and supervisor is None:
            raise ClippanError("The loss language needs a CLIP adapted by stage I; give one, or set its weight to 0.")

        def pseudo(batch: PatchBatch, fused: Tensor) -> Tensor:
            assert teacher is not None
            with torch.no_grad():
                label = teacher(*batch.inputs)
            return losses.pseudo_label_loss(fused, label)

        def language(batch: PatchBatch, fused: Tensor) -> Tensor:
            assert supervisor is not None
            return supervisor.direction_loss(batch, fused)

        def detail(batch: PatchBatch, fused: Tensor) -> Tensor:
            return 1 - losses.detail_correlation(fused, batch.pan, batch.scenes if pooled else None)

        self._terms: dict[str, Term] = {
            "spectral": losses.spectral_loss,
            "spatial": spatial,
            "qnr": lambda batch, fused: losses.qnr_loss(batch, fused, pooled),
            "pseudo": pseudo,
            "language": language,
            "supervised": losses.supervised_loss,
            "quality": losses.q2n_loss,
            "angle": losses.spectral_angle_loss,
            "khan": losses.khan_d_lambda,
            "alparone": lambda batch, fused: losses.alparone_d_lambda(batch, fused, pooled),
            "distortion": lambda batch, fused: losses.d_s(batch, fused, pooled),
            "detail": detail,
            "texture": losses.texture_loss,
        }

    def __call__(self, batch: PatchBatch, fused: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term without its weight and gradient."""
        # Half precision is too coarse for differences of nearly equal numbers.
        with torch.autocast(fused.device.type, enabled=False):
            terms = {name: self._terms[name](batch, fused.float()) for name in self._used}
            total: Any = sum(weight * terms[name] for name, weight in self._used.items())
        return total, {name: term.detach() for name, term in terms.items()}

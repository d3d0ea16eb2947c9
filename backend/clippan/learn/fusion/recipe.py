"""Recipes: all settings of a training run, in one YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import yaml

from clippan.core.errors import ClippanError
from clippan.core.json import from_json
from clippan.jobs.train_fusion import TrainFusionRequest
from clippan.learn.fusion.objective import LossWeights

_SHARES = ("simulated", "uneven", "table_only", "mixed", "haze", "noisy", "saturated", "jpeg")  # of Augmentation
BLURS = ("table", "any", "box", "cubic", "sampling")  # kinds that MS is simulated with
_SMALLEST = 32  # pixels, edge of a patch


@dataclass(frozen=True)
class PairSource:
    """Pairs of PAN and MS: a folder with a folder ``SENSOR__SCENE`` per scene, which holds ``pan.tif`` and ``ms.tif``.

    Attributes:
        folder: the folder, below the data folder.
        without: names of scenes to leave out.
    """

    folder: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureSource:
    """Colour pictures in a ZIP file, or bands of one scene as files; PAN is simulated from their bands.

    Attributes:
        path: the ZIP file, or a folder with rasters of one band each, below the data folder.
        bands: file names of these rasters; empty for a ZIP file.
        factor: factor of an initial reduction, which removes JPEG artefacts and blur.
        limit: largest number of pictures from a ZIP file.
        share: sampling weight among all sources of pictures.
    """

    path: str
    bands: tuple[str, ...] = ()
    factor: int = 2
    limit: int = 300
    share: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of patches with a reference.

    Attributes:
        simulated: share of pictures; the rest are pairs at reduced resolution.
        ratios: ratios of MS to PAN pixel size, sampled evenly.
        bands: numbers of bands, sampled evenly; ignored by networks of a fixed number. If it holds only the recipe's
            ``bands``, scenes keep the order of their bands, as they do for networks of a fixed number.
        bands_per_patch: whether a number is drawn for each patch of a step, not one for all of them (the mask training
            of ArbRPN, Chen et al. 2022).
        blurs: shares of the kinds of blur that make MS: ``table`` (the MTF of a random sensor), ``any`` (a Gaussian of
            any MTF gain), ``box`` (mean), ``cubic`` (antialiased cubic) and ``sampling`` (no low pass).
        gain: standard deviation of the logarithm of the simulated MTF gain about the one of ``table``.
        uneven: share of patches whose Gaussian blur differs between rows and columns.
        table_only: share of patches for which the network is told the table's MTF gain; for the others it is told what
            an estimate from the images would give.
        shift: standard deviation of the shift between MS and PAN in pixels, and twice that of each band's own.
        mixed: share of patches whose bands are mixtures of the scene's bands.
        haze: share of patches with another dark level.
        noisy: share of patches with noise; ``noise`` is its mean level in standard deviations.
        saturated: share of patches whose brightest pixels are cut off, in MS or in PAN.
        jpeg: share of patches that went through JPEG compression, MS or PAN.
    """

    simulated: float = 0.25
    ratios: tuple[float, ...] = (4, 4, 4, 4, 2, 2, 3, 5)
    bands: tuple[int, ...] = (4, 4, 4, 3, 6, 2)
    bands_per_patch: bool = False
    blurs: Mapping[str, float] = field(default_factory=lambda: {"table": 1.0})
    gain: float = 0.12
    uneven: float = 0.0
    table_only: float = 1.0
    shift: float = 0.15
    mixed: float = 0.4
    haze: float = 0.4
    noisy: float = 0.5
    noise: float = 0.01
    saturated: float = 0.0
    jpeg: float = 0.0


@dataclass(frozen=True)
class AdapterTraining:
    """Stage I: the CLIP that supervises, and the training of its adapters.

    Attributes:
        clip: id or path of a CLIP model.
        protocol: protocol whose wording describes the fused image, ``wald`` or ``khan``.
        stand_in: method whose result stands for the unknown fused image, ``mtf-glp-hpm-r`` or ``bdsd``.
        fusion_norm: whether L_fusion is the ``sum`` over an embedding's elements, or their ``mean``.
        steps, batch, rate: training steps, batch size and learning rate of Adam; the paper has 200 epochs at 1e-4.
        adapters: file with trained adapters, instead of training.
    """

    clip: str = "starter"
    protocol: str = "wald"
    stand_in: str = "mtf-glp-hpm-r"
    fusion_norm: str = "sum"
    steps: int = 200
    batch: int = 8
    rate: float = 1e-3
    adapters: str = ""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        trains: ``network``, or ``adapters`` for stage I alone, which needs no loss weights.
        start: the model whose network is trained on, a path or ``shipped``; empty for fresh weights.
        network: a key of ``networks.NETWORKS``; ``options`` are those of the network. Both are those of ``start``, if
            there is one.
        bands: number of bands of networks for a fixed number, of ``language`` and of a learned ``phi``.
        pairs, pictures: sources of scenes at full resolution, and of pictures.
        steps: number of steps; the learning rate rises to ``rate`` during ``warmup`` steps, then falls to 0.
        truth: loss weights on patches with a reference, ``batch`` patches of ``size`` pixels per step.
        scene: loss weights at full resolution, ``scene_batch`` patches of ``scene_size`` pixels per step.
        phi: what makes PAN of the fused bands in the loss ``spatial``: ``least-squares`` weights of each scene, or
            ``learned`` ones for all scenes.
        average: share of the past in the running average of the weights, which is what is kept.
        precision: ``float32``, or ``bfloat16`` for autocast.
        without: sensors to leave out.
        teacher: the model for the loss ``pseudo``, a path or ``shipped``.
        seed: seed of all random numbers.
        about: description of the resulting model.
    """

    trains: str = "network"
    start: str = ""
    network: str = "modulation"
    options: Mapping[str, Any] = field(default_factory=dict)
    bands: int = 4
    pairs: tuple[PairSource, ...] = ()
    pictures: tuple[PictureSource, ...] = ()
    without: tuple[str, ...] = ()
    steps: int = 4000
    rate: float = 2e-3
    warmup: int = 100
    batch: int = 8
    size: int = 128
    scene_batch: int = 2
    scene_size: int = 192
    truth: LossWeights = field(default_factory=LossWeights)
    scene: LossWeights = field(default_factory=LossWeights)
    phi: str = "least-squares"
    augment: Augmentation = field(default_factory=Augmentation)
    language: AdapterTraining = field(default_factory=AdapterTraining)
    average: float = 0.998
    precision: str = "float32"
    teacher: str = ""
    seed: int = 0
    about: str = ""

    def overridden(self, request: TrainFusionRequest) -> Recipe:
        """The recipe with the settings that a request overrides."""
        language, options = self.language, {} if request.network else self.options
        if request.steps:
            # A few steps are to try a recipe out: stage I is not to take its thousands before.
            most = request.steps if self.trains == "adapters" else min(language.steps, request.steps)
            language = replace(language, steps=most)
        language = replace(language, clip=request.clip or language.clip, adapters=request.adapters or language.adapters)
        # A network is its own teacher also where another one is trained on.
        teacher = request.model if request.model and self.teacher == self.start else self.teacher
        return replace(
            self,
            start=request.model or ("" if request.network else self.start),
            teacher=teacher,
            network=request.network or self.network,
            options=options,
            without=(*self.without, *request.without),
            steps=request.steps or self.steps,
            seed=self.seed if request.seed is None else request.seed,
            language=language,
        )

    @property
    def needs_stage_one(self) -> bool:
        """Whether CLIP's adapters are trained."""
        return self.trains == "adapters" or bool(self.scene.language and not self.language.adapters)

    @property
    def learns_phi(self) -> bool:
        """Whether the loss ``spatial`` has learned weights of the bands."""
        return bool(self.scene.spatial) and self.phi == "learned"

    @property
    def scene_bands(self) -> Optional[int]:
        """Number of bands at full resolution where something is built for it; None for any."""
        return self.bands if self.needs_stage_one or self.scene.language or self.learns_phi else None


def read_recipe(path: Path) -> Recipe:
    """Reads the recipe in a YAML file.

    Raises:
        ClippanError: the file cannot be read, or has an unknown setting or an invalid value.
    """
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ClippanError(
            "The recipe {path} cannot be read ({reason}); choose a YAML file.", path=path, reason=reason
        ) from error
    recipe = from_json(Recipe, values or {})
    if min(recipe.steps, recipe.batch, recipe.scene_batch, recipe.language.steps, recipe.language.batch) < 1:
        raise ClippanError("A recipe needs at least one step and one patch per batch; raise steps and batch.")
    if min(recipe.size, recipe.scene_size) < _SMALLEST:
        raise ClippanError(
            "Patches need an edge of at least {pixels} pixels; raise size and scene_size.", pixels=_SMALLEST
        )
    if not 0 < recipe.rate < math.inf or recipe.warmup < 0:
        raise ClippanError(
            "The learning rate must be above 0, and the warm-up must not be negative; correct rate and warmup."
        )
    if not 0 <= recipe.average < 1:
        raise ClippanError("The running average must keep a share of the past from 0 to below 1; correct average.")
    if min(recipe.augment.ratios, default=0) < 1 or min(recipe.augment.bands, default=0) < 1:
        raise ClippanError(
            "Patches need ratios and numbers of bands of at least 1; correct ratios and bands under augment."
        )
    blurs = recipe.augment.blurs
    if not set(blurs) <= set(BLURS) or min(blurs.values(), default=0) < 0 or not 0 < sum(blurs.values()) < math.inf:
        raise ClippanError("The blurs under augment need shares of: {blurs}; correct them.", blurs=", ".join(BLURS))
    wrong = [name for name in _SHARES if not 0 <= getattr(recipe.augment, name) <= 1]
    if wrong:
        raise ClippanError("Shares under augment must be from 0 to 1; correct {names}.", names=", ".join(wrong))
    if any(source.factor < 1 or source.share <= 0 for source in recipe.pictures):
        raise ClippanError("Pictures need a factor of at least 1 and a share above 0; correct them under pictures.")
    for name, value, known in (
        ("trains", recipe.trains, ("network", "adapters")),
        ("precision", recipe.precision, ("float32", "bfloat16")),
        ("phi", recipe.phi, ("least-squares", "learned")),
        ("protocol", recipe.language.protocol, ("wald", "khan")),
        ("stand_in", recipe.language.stand_in, ("mtf-glp-hpm-r", "bdsd")),
        ("fusion_norm", recipe.language.fusion_norm, ("sum", "mean")),
    ):
        if value not in known:
            raise ClippanError(
                "The recipe cannot have {value} as {name}; write one of {known}.",
                value=value,
                name=name,
                known=", ".join(known),
            )
    if recipe.trains == "network" and not (recipe.truth.used or recipe.scene.used):
        raise ClippanError("The recipe gives no loss a weight; set one under truth, scene or both.")
    if recipe.truth.language:
        raise ClippanError(
            "The loss language cannot be used under truth, whose bands are mixtures; set it under scene."
        )
    if recipe.truth.spatial and recipe.phi == "learned":
        raise ClippanError(
            "The loss spatial cannot be used under truth with a learned phi, as the bands there are mixtures; set it "
            "under scene, or let phi be least-squares."
        )
    return recipe

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
from clippan.learn.fusion.objective import LossWeights

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
        gain: standard deviation of the logarithm of the simulated MTF gain about the one that the network assumes.
        shift: standard deviation of the shift between MS and PAN in pixels, and twice that of each band's own.
        mixed: share of patches whose bands are mixtures of the scene's bands.
        haze: share of patches with another dark level.
        noisy: share of patches with noise; ``noise`` is its mean level in standard deviations.
    """

    simulated: float = 0.25
    ratios: tuple[float, ...] = (4, 4, 4, 4, 2, 2, 3, 5)
    bands: tuple[int, ...] = (4, 4, 4, 3, 6, 2)
    gain: float = 0.12
    shift: float = 0.15
    mixed: float = 0.4
    haze: float = 0.4
    noisy: float = 0.5
    noise: float = 0.01


@dataclass(frozen=True)
class AdapterTraining:
    """Stage I: the CLIP that supervises, and the training of its adapters.

    Attributes:
        clip: id or path of a CLIP model.
        protocol: protocol whose wording describes the fused image, ``wald`` or ``khan``.
        steps, batch, rate: training steps, batch size and learning rate of Adam; the paper has 200 epochs at 1e-4.
        adapted: file with trained adapters, instead of training.
    """

    clip: str = "starter"
    protocol: str = "wald"
    steps: int = 200
    batch: int = 8
    rate: float = 1e-3
    adapted: str = ""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        network: a key of ``networks.NETWORKS``; ``options`` are those of the network.
        bands: number of bands of networks for a fixed number, and of ``language``.
        pairs, pictures: sources of scenes at full resolution, and of pictures.
        steps: number of steps; the learning rate rises to ``rate`` during ``warmup`` steps, then falls to 0.
        truth: loss weights on patches with a reference, ``batch`` patches of ``size`` pixels per step.
        scene: loss weights at full resolution, ``scene_batch`` patches of ``scene_size`` pixels per step.
        average: share of the past in the running average of the weights, which is what is kept.
        precision: ``float32``, or ``bfloat16`` for autocast.
        without: sensors to leave out.
        teacher: path of a trained model, for the loss ``pseudo``.
        seed: seed of all random numbers.
        about: description of the resulting model.
    """

    network: str = "detail"
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
    augment: Augmentation = field(default_factory=Augmentation)
    language: AdapterTraining = field(default_factory=AdapterTraining)
    average: float = 0.998
    precision: str = "float32"
    teacher: str = ""
    seed: int = 0
    about: str = ""

    def overridden(self, steps: Optional[int], seed: Optional[int], without: tuple[str, ...]) -> Recipe:
        """The recipe with the settings that a request overrides."""
        return replace(
            self,
            without=(*self.without, *without),
            steps=steps or self.steps,
            seed=self.seed if seed is None else seed,
        )


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
    if recipe.precision not in ("float32", "bfloat16"):
        raise ClippanError(
            "The precision {precision} is unknown; write float32 or bfloat16.", precision=recipe.precision
        )
    if recipe.steps < 1 or recipe.batch < 1 or recipe.scene_batch < 1:
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
    if any(source.factor < 1 or source.share <= 0 for source in recipe.pictures):
        raise ClippanError("Pictures need a factor of at least 1 and a share above 0; correct them under pictures.")
    if not (recipe.truth.used or recipe.scene.used):
        raise ClippanError("The recipe gives no loss a weight; set one under truth, scene or both.")
    if recipe.truth.language:
        raise ClippanError(
            "The loss language cannot be used under truth, whose bands are mixtures; set it under scene."
        )
    if recipe.language.protocol not in ("wald", "khan"):
        raise ClippanError("The protocol {protocol} is unknown; write wald or khan.", protocol=recipe.language.protocol)
    return recipe

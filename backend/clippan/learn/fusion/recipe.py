"""Recipes: everything that decides what a training makes, in one YAML file."""

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

_SMALLEST = 32  # pixels


@dataclass(frozen=True)
class PairSource:
    """Pairs of PAN and MS: a folder with one folder ``SENSOR__SCENE`` each, that holds ``pan.tif`` and ``ms.tif``.

    Attributes:
        folder: below the data folder.
        without: scenes to leave out, by name.
    """

    folder: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureSource:
    """Colour pictures in a zip, or bands of one scene as files; PAN is made of their bands.

    Attributes:
        path: the zip, or a folder with rasters of one band each, below the data folder.
        bands: the rasters' file names; empty for a zip.
        factor: by how much they are shrunk first: JPEG artefacts and soft pixels are no truth.
        limit: how many of a zip's pictures at most.
        share: how often one is drawn, beside the other pictures' shares.
    """

    path: str
    bands: tuple[str, ...] = ()
    factor: int = 2
    limit: int = 300
    share: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """How patches with a truth are varied.

    Attributes:
        simulated: share of pictures, the rest are pairs one scale down.
        ratios: of MS to PAN, drawn evenly.
        bands: numbers of bands, drawn evenly; networks of a fixed number get theirs. Where the recipe's own ``bands``
            is the only number, scenes keep the order of their bands, as for these networks: for a teacher of a fixed
            number, and so that networks of both kinds see the same patches.
        gain: standard deviation of the logarithm of the true MTF gain about that which the network is told.
        shift: standard deviation of MS's shift against PAN in pixels; each band's own is half of it.
        mixed: share of patches whose bands are mixtures of the scene's.
        haze: share of patches with another dark level.
        noisy: share of patches with noise, and ``noise`` its mean in standard deviations.
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
    """Stage I: which CLIP supervises, and how it is adapted first.

    Attributes:
        clip: id or path of a model of the registry.
        protocol: whose words describe the fused image, ``wald`` or ``khan``.
        steps, batch, rate: of the adaptation. Published are Adam with 1e-4 and 200 epochs; this is for fewer steps.
        adapted: a file that stage I wrote, instead of adapting anew.
    """

    clip: str = "starter"
    protocol: str = "wald"
    steps: int = 200
    batch: int = 8
    rate: float = 1e-3
    adapted: str = ""


@dataclass(frozen=True)
class Recipe:
    """See the module.

    Attributes:
        network: a key of ``networks.NETWORKS``, and ``options`` its own.
        bands: of networks for a fixed number, and of ``language``.
        steps: of the optimiser; ``rate`` its greatest learning rate, reached after ``warmup`` and falling to 0.
        truth: losses on patches with a truth, ``batch`` of ``size`` pixels a step.
        scene: losses on patches at full resolution, ``scene_batch`` of ``scene_size`` pixels a step.
        average: share of the past in the running average of the weights, which is what is kept.
        precision: ``float32``, or ``bfloat16`` for autocast.
        without: sensors to leave out.
        teacher: a trained model, for the loss ``pseudo``.
        seed: of everything that is drawn.
        about: what the model card says of the result.
    """

    network: str = "detail"
    options: Mapping[str, int] = field(default_factory=dict)
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
        """The recipe with what a request overrides."""
        recipe = replace(self, without=(*self.without, *without))
        if steps:
            recipe = replace(recipe, steps=steps)
        return recipe if seed is None else replace(recipe, seed=seed)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        ClippanError: it cannot be read, or holds a name or value that no recipe has.
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
            "The precision {precision} is not known; write float32 or bfloat16.", precision=recipe.precision
        )
    if recipe.steps < 1 or recipe.batch < 1 or recipe.scene_batch < 1:
        raise ClippanError("A recipe needs at least one step, and one patch in a batch; raise steps and batch.")
    if min(recipe.size, recipe.scene_size) < _SMALLEST:
        raise ClippanError(
            "Patches of less than {_SMALLEST} pixels teach nothing; raise size and scene_size.", _SMALLEST=_SMALLEST
        )
    if not 0 < recipe.rate < math.inf or recipe.warmup < 0:
        raise ClippanError("The learning rate has to be a number above 0 and the warm-up from 0 up; correct them.")
    for kind in (recipe.truth, recipe.scene):
        for name, weight in kind.used.items():
            if not 0 < weight < math.inf:
                raise ClippanError(
                    "The loss {name} has the weight {weight}; choose a number from 0 up.", name=name, weight=weight
                )
    if not 0 <= recipe.average < 1:
        raise ClippanError(
            "The running average keeps a share of the past; write average as a number from 0 to below 1."
        )
    if min(recipe.augment.ratios, default=0) < 1 or min(recipe.augment.bands, default=0) < 1:
        raise ClippanError("Patches need a ratio and a number of bands of at least 1; name some under augment.")
    if any(source.factor < 1 or source.share <= 0 for source in recipe.pictures):
        raise ClippanError("Pictures need a factor of at least 1 and a share above 0; correct them under pictures.")
    if not (recipe.truth.used or recipe.scene.used):
        raise ClippanError("The recipe gives no loss a weight; name some under truth, scene or both.")
    if recipe.truth.language:
        raise ClippanError("The loss language judges scenes; name it under scene, as truth has mixtures of bands.")
    if recipe.language.protocol not in ("wald", "khan"):
        raise ClippanError(
            "The protocol {protocol} is not known; write wald or khan.", protocol=recipe.language.protocol
        )
    return recipe

"""The vocabulary: concepts of land cover and land use, the words for them, and what they look like from above.

A concept that pictures show has ``seen`` true: by a collection's class, by a mask, or by a picture composed in
``scenes.py``. All concepts say in ``like`` which others they look like from above; for one that no picture shows, this
places its words among those that have pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

# Words kept out of every phrase below and out of WordNet's lemmas, so that the benchmark can ask how words that were
# never taught are understood. WordNet's definitions hold them: a tower that learns from nothing cannot know a word that
# it never met. One for a class; classes without one keep their name.
ASIDE = {
    "eurosat": {
        "Forest": "woods",
        "Industrial": "factories",
        "Pasture": "grazing land",
        "Residential": "housing",
        "River": "stream",
        "SeaLake": "lake",
    },
    "ucmerced": {
        "airplane": "jet",
        "beach": "seashore",
        "buildings": "offices",
        "forest": "woods",
        "mobilehomepark": "trailer park",
        "parkinglot": "car park",
        "river": "stream",
        "storagetanks": "fuel tanks",
    },
}
_ASIDE = re.compile(
    r"\b(woods|factory|factories|grazing|housing|streams?|lakes?|jets?|seashores?|offices?|trailers?|car[ _]parks?"
    r"|fuel)\b",
    re.IGNORECASE,
)

# What the benchmark asks for: the class's plain name in words.
CLASSES = {
    "eurosat": {
        "AnnualCrop": "annual crop land",
        "Forest": "forest",
        "HerbaceousVegetation": "herbaceous vegetation",
        "Highway": "highway",
        "Industrial": "industrial area",
        "Pasture": "pasture",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential area",
        "River": "river",
        "SeaLake": "sea",
    },
    "ucmerced": {
        "agricultural": "agricultural field",
        "airplane": "airplane",
        "baseballdiamond": "baseball diamond",
        "beach": "beach",
        "buildings": "buildings",
        "chaparral": "chaparral",
        "denseresidential": "dense residential area",
        "forest": "forest",
        "freeway": "freeway",
        "golfcourse": "golf course",
        "harbor": "harbor",
        "intersection": "intersection",
        "mediumresidential": "medium density residential area",
        "mobilehomepark": "mobile home park",
        "overpass": "overpass",
        "parkinglot": "parking lot",
        "river": "river",
        "runway": "runway",
        "sparseresidential": "sparse residential area",
        "storagetanks": "storage tanks",
        "tenniscourt": "tennis court",
    },
}

# What a picture of a class shows: shares of concepts, summing to 1.
SHOWS: dict[str, dict[str, dict[str, float]]] = {
    "eurosat": {
        "AnnualCrop": {"annual crop": 0.6, "farmland": 0.4},
        "Forest": {"forest": 0.9, "trees": 0.1},
        "HerbaceousVegetation": {"herbaceous": 0.75, "meadow": 0.15, "bushes": 0.1},
        "Highway": {"highway": 0.65, "road": 0.2, "freeway": 0.15},
        "Industrial": {"industrial": 0.8, "commercial": 0.2},
        "Pasture": {"pasture": 0.65, "meadow": 0.35},
        "PermanentCrop": {"permanent crop": 0.7, "orchard": 0.15, "farmland": 0.15},
        "Residential": {"residential": 0.85, "city": 0.15},
        "River": {"river": 0.85, "water": 0.15},
        "SeaLake": {"sea": 0.6, "water": 0.2, "inland water": 0.2},
    },
    "ucmerced": {
        "agricultural": {"farmland": 0.75, "annual crop": 0.25},
        "airplane": {"airplane": 0.7, "airport": 0.3},
        "baseballdiamond": {"baseball": 0.85, "sports field": 0.15},
        "beach": {"beach": 0.75, "coast": 0.1, "sea": 0.08, "sand": 0.07},
        "buildings": {"buildings": 0.7, "commercial": 0.2, "city": 0.1},
        "chaparral": {"chaparral": 0.8, "bushes": 0.2},
        "denseresidential": {"dense residential": 0.75, "residential": 0.2, "city": 0.05},
        "forest": {"forest": 0.85, "trees": 0.15},
        "freeway": {"freeway": 0.7, "highway": 0.3},
        "golfcourse": {"golf": 0.85, "park": 0.15},
        "harbor": {"harbor": 0.75, "boats": 0.25},
        "intersection": {"intersection": 0.85, "road": 0.15},
        "mediumresidential": {"medium residential": 0.75, "residential": 0.25},
        "mobilehomepark": {"mobile homes": 0.85, "residential": 0.15},
        "overpass": {"overpass": 0.8, "bridge": 0.1, "freeway": 0.1},
        "parkinglot": {"parking": 0.8, "cars": 0.2},
        "river": {"river": 0.85, "water": 0.15},
        "runway": {"runway": 0.75, "airport": 0.25},
        "sparseresidential": {"sparse residential": 0.75, "residential": 0.15, "village": 0.1},
        "storagetanks": {"tanks": 0.9, "industrial": 0.1},
        "tenniscourt": {"tennis": 0.85, "sports field": 0.15},
    },
    "dubai": {
        "Building": {"buildings": 0.6, "residential": 0.4},
        "Land": {"bare ground": 0.7, "sand": 0.3},
        "Road": {"road": 1.0},
        "Vegetation": {"trees": 0.5, "park": 0.3, "bushes": 0.2},
        "Water": {"water": 0.7, "inland water": 0.3},
    },
}

TEMPLATES = (
    "a satellite photo of {}", "a satellite image of {}", "an aerial photo of {}", "an aerial image of {}",
    "a photo of {} from above", "a satellite photo of {}.", "a satellite image of {}.", "an overhead view of {}",
    "a high resolution satellite image of {}", "remote sensing image of {}", "a photo of {}.", "there is {}",
    "this is {}", "an area of {}", "{} seen from the air", "aerial view of {}", "a low resolution image of {}",
    "a centered satellite photo of {}.", "satellite imagery showing {}", "{} in the picture", "the scene shows {}",
)  # fmt: skip
SENTENCES = (
    "there is a {} here", "this is a {} in the picture", "a piece of {}", "the {} can be seen clearly", "many {}",
    "it is a {} with some shadows", "a part of a {}", "two {}", "lots of {} arranged neatly", "the {} is very big",
    "a large {}", "a small {}", "some {} and a lawn", "the {}", "a {}", "several {} side by side",
)  # fmt: skip
PAIRS = (
    "{} next to {}", "{} beside {}", "{} and {}", "{} with {}", "{} near {}", "{} surrounded by {}", "{} by {}",
    "{} between {}", "{} along {}", "a satellite photo of {} and {}", "there is {} beside {}", "{}, with {} around",
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One thing that can be seen from above.

    Attributes:
        name: its key.
        names: words for it, the plainest first.
        looks: descriptions of what it looks like from above.
        like: other concepts that it resembles, with weights.
        seen: whether any picture shows it.
    """

    name: str
    names: tuple[str, ...]
    looks: tuple[str, ...]
    like: Mapping[str, float]
    seen: bool


def _read() -> Iterator[Concept]:
    """The concepts of ``concepts.txt``, which tells their form."""
    seen = True
    for line in (Path(__file__).parent / "concepts.txt").read_text(encoding="utf-8").splitlines():
        seen = seen and not line.startswith("# Shown by no picture")
        if not line or line.startswith("#"):
            continue
        key, rest = line.split(" = ")
        names, looks, like = (part.strip() for part in rest.split("|"))
        weights = (item.rsplit(":", 1) for item in like.split(";") if item.strip())
        yield Concept(
            key.strip(),
            tuple(name.strip() for name in names.split(",")),
            tuple(look.strip() for look in looks.split(";") if look.strip()),
            {name.strip(): float(weight) for name, weight in weights},
            seen,
        )


CONCEPTS = {concept.name: concept for concept in _read()}


def phrases() -> list[str]:
    """All names and descriptions, in the order of the concepts."""
    return [text for concept in CONCEPTS.values() for text in (*concept.names, *concept.looks)]


def aside(text: str) -> bool:
    """Whether a phrase holds a word that is kept for the benchmark."""
    return _ASIDE.search(text) is not None


def _article(phrase: str, chance: np.random.Generator) -> str:
    return phrase if chance.random() < 0.5 else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def phrase(concept: Concept, chance: np.random.Generator, looks: float = 0.25) -> str:
    """One of a concept's names, or, with the probability ``looks``, one of its descriptions."""
    if concept.looks and chance.random() < looks:
        return concept.looks[chance.integers(len(concept.looks))]
    return concept.names[chance.integers(len(concept.names))]


def worded(text: str, chance: np.random.Generator) -> str:
    """The phrase in a template, a sentence, with an article, or as it is."""
    draw = chance.random()
    if draw < 0.45:
        return TEMPLATES[chance.integers(len(TEMPLATES))].format(_article(text, chance))
    if draw < 0.7:
        return SENTENCES[chance.integers(len(SENTENCES))].format(text)
    return _article(text, chance)


def pair(one: str, other: str, chance: np.random.Generator) -> str:
    """A phrase of two things."""
    return PAIRS[chance.integers(len(PAIRS))].format(_article(one, chance), _article(other, chance))


def normalised(weights: Mapping[str, float], without: Optional[set[str]] = None) -> dict[str, float]:
    """The weights less those left out, summing to 1; empty where none is left."""
    kept = {name: weight for name, weight in weights.items() if name not in (without or set())}
    total = sum(kept.values())
    return {name: weight / total for name, weight in kept.items()} if total else {}


for _concept in CONCEPTS.values():
    for _text in (*_concept.names, *_concept.looks):
        if aside(_text):
            raise ValueError(f"'{_text}' of {_concept.name} holds a word that is kept for the benchmark")
    if unknown := [name for name in _concept.like if name not in CONCEPTS]:
        raise ValueError(f"{_concept.name} is like {unknown}, which are no concepts")

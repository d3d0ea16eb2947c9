"""What results tell of how rasters were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clippan.catalogue.band_names import BandChoice
from clippan.core.messages import Message
from clippan.core.texts import join_names


@dataclass(frozen=True)
class Rendering:
    """How a raster became a picture.

    Attributes:
        raster: file or data source.
        choice: which bands, and why these.
        stretch: values that became black and white, (low, high) a band; empty where bytes are shown as they are.
        notes: what was decided of the file, of its alpha band and its nodata value above all, as sentences.
    """

    raster: str
    choice: BandChoice
    stretch: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()


def band_choice_sentences(renderings: Sequence[Rendering]) -> list[str]:
    """A sentence for each way in which the bands were chosen, with the rasters that it was for."""
    rasters: dict[BandChoice, list[str]] = {}
    for rendering in renderings:
        rasters.setdefault(rendering.choice, []).append(_name(rendering.raster))
    return [
        Message("{rasters}: {choice}", rasters=join_names(names, 1), choice=choice.sentence)
        for choice, names in rasters.items()
    ]


def rendering_hints(renderings: Sequence[Rendering]) -> list[str]:
    """What the user should check: the notes, and those of the sentences about bands that tell of a guess."""
    notes = dict.fromkeys(note for rendering in renderings for note in rendering.notes)
    return [*notes, *band_choice_sentences([rendering for rendering in renderings if rendering.choice.guessed])]


def _name(raster: str) -> str:
    return raster.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1][:80] or raster[:80]

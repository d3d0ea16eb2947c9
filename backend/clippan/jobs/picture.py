"""What results tell of how rasters were seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clippan.colours import Choice


@dataclass(frozen=True)
class RasterPicture:
    """How a raster became a picture.

    Attributes:
        raster: file or data source.
        choice: which bands, and why these.
        stretch: values that became black and white, (low, high) a band; empty where bytes are shown as they are.
    """

    raster: str
    choice: Choice
    stretch: tuple[tuple[float, float], ...]


def choices(pictures: Sequence[RasterPicture]) -> list[str]:
    """A sentence for each way in which the bands were chosen, with the rasters that it was for."""
    rasters: dict[Choice, list[str]] = {}
    for picture in pictures:
        rasters.setdefault(picture.choice, []).append(_name(picture.raster))
    return [f"{_listed(names)}: {choice.sentence}" for choice, names in rasters.items()]


def guesses(pictures: Iterable[RasterPicture]) -> list[str]:
    """Those of the sentences that tell of a guess."""
    return choices([picture for picture in pictures if picture.choice.guessed])


def _name(raster: str) -> str:
    return raster.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1][:80] or raster[:80]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] if not more else f"{names[0]} and {more:,} other{'s' * (more > 1)}"

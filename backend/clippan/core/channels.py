"""What a model of another sensor takes in place of red, green and blue. No GDAL here: the plugin reads it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clippan.core.errors import ClippanError

_MAX_NAMES = 12  # bands that a sentence lists


@dataclass(frozen=True)
class Channels:
    """The bands that go into a model, and how their values become 0 to 1.

    Attributes:
        names: of the bands, in order.
        low, high: the value of each band that becomes 0, and the one that becomes 1; what lies beyond is cut.
        numbers: which bands, from 1, of a raster with ``total`` they are.
        total: see there.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    numbers: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        """Raises ValueError if these describe no bands."""
        if not len(self.names) == len(self.low) == len(self.high) == len(self.numbers) > 0:
            raise ValueError("a name, a number, a lowest and a highest value go together")
        if not all(low < high for low, high in zip(self.low, self.high)):
            raise ValueError("a lowest value is not below the highest")

    @property
    def stretch(self) -> tuple[tuple[float, float], ...]:
        """Pairs (low, high), one a band."""
        return tuple(zip(self.low, self.high))

    @property
    def joined_names(self) -> str:
        """The names, as a sentence lists them."""
        return ", ".join(self.names[:_MAX_NAMES]) + (" …" if len(self.names) > _MAX_NAMES else "")

    def band_numbers(self, described: Sequence[str]) -> tuple[int, ...]:
        """Which of a raster's bands these are, counted from 1: by their names, else by their numbers if there are as
        many bands in all, else all if there are as many as go in.

        Args:
            described: what the raster calls its bands; empty where it does not.

        Raises:
            ClippanError: the raster has other bands.
        """
        known = [name.strip().casefold() for name in described]
        wanted = [name.casefold() for name in self.names]
        if len(set(wanted)) == len(wanted) and all(known.count(name) == 1 for name in wanted):
            return tuple(known.index(name) + 1 for name in wanted)
        if len(described) == self.total:
            return self.numbers
        if len(described) == len(self.names):
            return tuple(range(1, len(self.names) + 1))
        raise ClippanError(
            "The model takes {expected} bands ({names}), but the raster has {found}; choose a raster of that sensor, "
            "or another model.",
            expected=len(self.names),
            names=self.joined_names,
            found=len(described),
        )

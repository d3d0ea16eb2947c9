"""What a model of another sensor takes in place of red, green and blue. No GDAL here: the plugin reads it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clippan.core.errors import ClippanError

_MAX_NAMES = 12  # bands that a sentence lists


@dataclass(frozen=True)
class Channels:
    """The bands of a raster that go into a model, and how their values are scaled to 0–1.

    Attributes:
        names: of the bands, in order.
        low, high: values of each band that become 0 and 1; values beyond are clipped.
        numbers: the bands, from 1, in a raster with ``total`` bands.
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
        return ", ".join(self.names[:_MAX_NAMES]) + (" …" if len(self.names) > _MAX_NAMES else "")

    def band_numbers(self, described: Sequence[str]) -> tuple[int, ...]:
        """The raster's bands, from 1, that go into the model: by name, else by number if the raster has ``total``
        bands, else all if the count fits. ``described`` are the raster's band names, empty where a band has none.
        Raises ClippanError for other rasters."""
        known = [name.strip().casefold() for name in described]
        wanted = [name.casefold() for name in self.names]
        if len(set(wanted)) == len(wanted) and all(known.count(name) == 1 for name in wanted):
            return tuple(known.index(name) + 1 for name in wanted)
        if len(described) == self.total:
            return self.numbers
        if len(described) == len(self.names):
            return tuple(range(1, len(self.names) + 1))
        raise ClippanError(
            "The numbers of bands differ (model: {expected}, raster: {found}); choose a raster with the bands {names}, "
            "or another model.",
            expected=len(self.names),
            names=self.joined_names,
            found=len(described),
        )

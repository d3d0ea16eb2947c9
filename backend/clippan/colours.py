"""Which bands show a raster in natural colours. No GDAL here: the plugin reads it too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Optional

COLOURS = ("red", "green", "blue")
# Without any name: the band order that products with so many bands have.
_BY_COUNT = {3: (1, 2, 3), 4: (3, 2, 1), 7: (4, 3, 2), 8: (5, 3, 2), 12: (4, 3, 2), 13: (4, 3, 2)}


def colour(text: str) -> Optional[str]:
    """The one colour that a band's description names, None if it names none or several."""
    found = [name for name in COLOURS if re.search(rf"\b{name}\b(?!\s*-?edge)", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def natural_colours(names: Sequence[Optional[str]], sensor: Sequence[str], count: int) -> tuple[int, ...]:
    """The bands for red, green and blue (from 1), or the one band to show in grey.

    By the bands' own names, else by the sensor's band order, else by what is usual for the number of bands.
    """
    for known in (names, sensor):
        positions = [list(known).index(name) + 1 for name in COLOURS if name in known]
        if len(positions) == 3 and max(positions) <= count:
            return tuple(positions)
    if count < 3:
        return (1,)
    return _BY_COUNT.get(count, (3, 2, 1))

"""Which bands show a raster in natural colours. No GDAL here: the plugin reads it too.

Bands are known by what they are called (“coastal_blue”, “B04”, “842 nm”), else by how they are tagged, else by the
order in which the sensor's products hold them, else by what is usual for so many bands, which is a guess and said to
be one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from clippan import resources
from clippan.core.messages import Message

COLOURS = ("red", "green", "blue")
# Without any name: the band order that products with so many bands have.
_BY_COUNT = {3: (1, 2, 3), 4: (3, 2, 1), 7: (4, 3, 2), 8: (5, 3, 2), 12: (4, 3, 2), 13: (4, 3, 2)}
_BY_NUMBER = {"2": "blue", "3": "green", "4": "red"}  # of Sentinel-2, Landsat 8 and 9
_BY_OLD_NUMBER = {"1": "blue", "2": "green", "3": "red"}  # of Landsat 4, 5 and 7
_RADAR = ("vv", "vh", "hh", "hv")
# Words that tell that a band is none of the three colours, though it may be called “coastal blue” as well.
_OTHER_BANDS = frozenset(
    "coastal nir infrared swir lwir mwir tir thermal rededge yellow orange violet purple ultraviolet cirrus".split()  # noqa: SIM905
)
_SPELLINGS = (
    (r"near infra ?red", "nir"),
    (r"infra red", "infrared"),
    (r"red edge", "rededge"),
    (r"green i\b", "greenish"),  # PlanetScope: 531 nm, beside the green that others have
)
_NUMBERED = re.compile(r"(?:^|[_\W])(?:(B)|BAND)[ _]?0?(\d{1,2}A?)(?:[_\W]|$)", re.IGNORECASE)
_NANOMETRES = {"nm": 1, "nanomet": 1, "um": 1000, "µm": 1000, "μm": 1000, "micromet": 1000, "micron": 1000}
_WAVELENGTH = re.compile(
    r"(?<![\w.])(?:(\d+(?:\.\d+)?)\s*[-–]\s*)?(\d+(?:\.\d+)?)\s*(nm|nanomet|um|µm|μm|micromet|micron)", re.IGNORECASE
)
# Where Sentinel-2 sees a colour, and from where to where others do (nm).
_WAVELENGTHS = {
    "red": (665.0, 620.0, 700.0),
    "green": (560.0, 515.0, 600.0),
    "blue": (490.0, 440.0, 515.0),
}


@dataclass(frozen=True)
class Band:
    """What a raster says of a band.

    Attributes:
        name: its description; empty without one.
        shown: the colour that it is tagged to be shown in; empty for others.
        wavelength: its centre in nanometres; None where its name may tell.
    """

    name: str = ""
    shown: str = ""
    wavelength: Optional[float] = None


@dataclass(frozen=True)
class BandOrder:
    """How a sensor's products hold their bands.

    Attributes:
        label: the sensor's name.
        orders: common names of the bands in order, for products with one or another number of bands.
        numbers: common names by the sensor's own numbers (“4”, “8A”).
    """

    label: str
    orders: tuple[tuple[str, ...], ...]
    numbers: Mapping[str, str] = field(default_factory=dict)

    def of(self, count: int) -> tuple[str, ...]:
        """The order of a product with so many bands; empty where it is not known."""
        return next((order for order in self.orders if len(order) == count), ())


@dataclass(frozen=True)
class BandChoice:
    """The bands of a picture.

    Attributes:
        bands: for red, green and blue, or the one that is shown in grey, from 1.
        reason: why these, as the end of a sentence.
        guessed: whether nothing but the number of bands tells.
    """

    bands: tuple[int, ...]
    reason: str
    guessed: bool = False

    @property
    def sentence(self) -> str:
        """What was taken, and how to have it otherwise if it is a guess."""
        if len(self.bands) == 1:
            return Message("Band {band} is shown in grey, {reason}.", band=self.bands[0], reason=self.reason)
        listed = f"bands {self.bands[0]}, {self.bands[1]} and {self.bands[2]}"
        if not self.guessed:
            return Message("Red, green and blue are {listed}, {reason}.", listed=listed, reason=self.reason)
        return Message(
            "Red, green and blue are taken to be {listed}, {reason}; if that is wrong, name them (--bands).",
            listed=listed,
            reason=self.reason,
        )


def any_match(patterns: Iterable[str], texts: Sequence[str]) -> bool:
    """Whether one of the regular expressions matches in one of the texts, whatever the case."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns for text in texts)


def _read_orders() -> tuple[tuple[tuple[str, ...], BandOrder], ...]:
    entries = json.loads((resources() / "sensors.json").read_text(encoding="utf-8"))
    return tuple(
        (
            (*entry["recognise"], *entry.get("other_names", ())),
            BandOrder(
                entry["label"],
                tuple(tuple(order) for order in (entry["bands"], *entry.get("other_bands", ())) if order),
                entry.get("numbers", {}),
            ),
        )
        for entry in entries.values()
    )


_ORDERS = _read_orders()


def band_order(texts: Iterable[str]) -> Optional[BandOrder]:
    """The band order of the sensor that one of the texts (metadata values, file names) names, or None."""
    texts = list(texts)
    return next((order for patterns, order in _ORDERS if any_match(patterns, texts)), None)


def colour_of_band(text: str) -> Optional[str]:
    """The one colour that a band's description names, None if it names none, several or another band."""
    return _named_colour(text) if _named_colour(text) in COLOURS else None


def _named_colour(text: str) -> Optional[str]:
    """The colour that a description names, “other” for another band, None if it tells nothing."""
    if text.strip().lower() in ("r", "g", "b"):
        return COLOURS["rgb".index(text.strip().lower())]
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # RedEdge
    text = " ".join(re.split(r"[\W_\d]+", text.lower())).strip()
    for pattern, word in _SPELLINGS:
        text = re.sub(rf"\b{pattern}", word, text)
    words = set(text.split())
    found = [name for name in COLOURS if name in words]
    if words & _OTHER_BANDS or "greenish" in words or len(found) > 1:
        return "other"
    return found[0] if found else None


def band_number(name: str) -> Optional[str]:
    """The sensor's number in the name of a band or of a single-band file (“4” in B04, SR_B4 and band 4), or None."""
    match = _NUMBERED.search(name)
    return match.group(2).upper() if match else None


def colour_of_file(name: str) -> Optional[str]:
    """The colour of a single-band file by its name; “band 10” where that is numbered but none of the three."""
    stem = re.sub(r"\.\w{1,5}$", "", name)
    number = band_number(stem)
    if number is None:
        return colour_of_band(stem)
    order = band_order([name])
    found = (order.numbers if order and order.numbers else _BY_NUMBER).get(number)
    return found if found in COLOURS else f"band {number}"


def parse_wavelength(text: str, unit: str = "") -> Optional[float]:
    """A wavelength in nanometres, of a description (“red (650-680 nm)”), or of a number with its unit; None without."""
    match = _WAVELENGTH.search(f"{text} {unit}")
    if match is None:
        return None
    low, high = float(match.group(1) or match.group(2)), float(match.group(2))
    return (low + high) / 2 * _NANOMETRES[match.group(3).lower()]


def natural_colours(bands: Sequence[Band], order: Optional[BandOrder] = None) -> BandChoice:
    """The bands for red, green and blue (from 1), or the one band to show in grey.

    Args:
        bands: in the raster's order.
        order: of the sensor, where that is known.
    """
    count = len(bands)
    names = [_named_colour(band.name) for band in bands]
    if count == 1:
        return BandChoice((1,), "as there is no other")
    polarised = [bool(set(re.split(r"[\W_]+", band.name.lower())) & set(_RADAR)) for band in bands]
    if any(polarised):
        return BandChoice((polarised.index(True) + 1,), "as radar has no natural colours")
    if count < 3:
        return BandChoice((1,), f"as {count} bands make no natural colours")
    sensor = order.of(count) if order else ()
    for known, reason in (
        (names, "by the bands' names"),
        (_names_by_number(bands, order), "by the bands' numbers"),
        (_names_by_wavelength(bands), "by the bands' wavelengths"),
        ([name or band.shown for name, band in zip(names, bands)], "as the raster is tagged"),
        (sensor, f"by the band order of {order.label}" if order else ""),
    ):
        if all(name in known for name in COLOURS):
            return BandChoice(tuple(list(known).index(name) + 1 for name in COLOURS), reason)
    if sensor and sensor[0] in _RADAR:
        return BandChoice((1,), "as radar has no natural colours")
    return BandChoice(_BY_COUNT.get(count, (3, 2, 1)), f"a guess by the number of bands ({count})", True)


def _names_by_number(bands: Sequence[Band], order: Optional[BandOrder]) -> list[str]:
    """Common names by numbers such as those of Sentinel-2 and Landsat; empty where the numbers only count."""
    found = [_NUMBERED.search(band.name) for band in bands]
    numbers = [match.group(2).upper() if match else "" for match in found]
    counted = all(number == str(place) for place, number in enumerate(numbers, 1))
    # b1, b2 … and band 1, band 2 … are what programs call bands without a name; B1 … B8 somebody has written.
    written = len(bands) > 4 and all(match and match.group(1) == "B" for match in found)
    if counted and not written and not (order and order.numbers):
        return []
    table = dict(order.numbers) if order and order.numbers else _BY_NUMBER
    if table is _BY_NUMBER and _is_landsat_4_to_7(bands, numbers):
        table = _BY_OLD_NUMBER
    return [table.get(number, "") for number in numbers]


def _is_landsat_4_to_7(bands: Sequence[Band], numbers: Sequence[str]) -> bool:
    """Whether the numbers are those of Landsat 4 to 7, whose band 6 is another product or left out."""
    six = any(re.search(r"ST_B6|B6_VCID", band.name, re.IGNORECASE) for band in bands)
    return six or ({"1", "3", "4", "7"} <= set(numbers) <= set("123457"))


def _names_by_wavelength(bands: Sequence[Band]) -> list[str]:
    """Common names by wavelengths: for each colour the band that is nearest to where Sentinel-2 sees it."""
    centres = [band.wavelength or parse_wavelength(band.name) for band in bands]
    found = [""] * len(bands)
    for name, (middle, low, high) in _WAVELENGTHS.items():
        inside = [(abs(at - middle), place) for place, at in enumerate(centres) if at is not None and low <= at <= high]
        if inside:
            found[min(inside)[1]] = name
    return found

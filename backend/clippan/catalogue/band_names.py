"""Which bands show a raster in natural colours. Free of GDAL, since the plugin imports it too.

Bands are identified by their names ("coastal_blue", "B04", "842 nm"), by their colour tags, by the band order of the
sensor's products, or else by a guess from the number of bands.
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
# Usual band orders for numbers of bands.
_BY_COUNT = {3: (1, 2, 3), 4: (3, 2, 1), 7: (4, 3, 2), 8: (5, 3, 2), 12: (4, 3, 2), 13: (4, 3, 2)}
_BY_NUMBER = {"2": "blue", "3": "green", "4": "red"}  # of Sentinel-2, Landsat 8 and 9
_BY_OLD_NUMBER = {"1": "blue", "2": "green", "3": "red"}  # of Landsat 4, 5 and 7
_RADAR = ("vv", "vh", "hh", "hv")
_RADAR_REASON = Message("because radar has no natural colours")
# Words of bands other than the three colours, even in names such as "coastal blue".
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
# Wavelengths in nm: centre for Sentinel-2, and the range for any sensor.
_WAVELENGTHS = {"red": (665.0, 620.0, 700.0), "green": (560.0, 515.0, 600.0), "blue": (490.0, 440.0, 515.0)}


@dataclass(frozen=True)
class Band:
    """Metadata of a band.

    Attributes:
        name: its description; empty without one.
        colour_interpretation: its colour interpretation if red, green or blue, else empty.
        wavelength: its centre in nanometres; None if only its name may contain it.
    """

    name: str = ""
    colour_interpretation: str = ""
    wavelength: Optional[float] = None


@dataclass(frozen=True)
class BandOrder:
    """The band order of a sensor's products.

    Attributes:
        label: the sensor's name.
        orders: common names of the bands in order, for products with different numbers of bands.
        numbers: common names by the sensor's band numbers ("4", "8A").
    """

    label: str
    orders: tuple[tuple[str, ...], ...]
    numbers: Mapping[str, str] = field(default_factory=dict)

    def for_count(self, count: int) -> tuple[str, ...]:
        """The order of a product with ``count`` bands; empty if unknown."""
        return next((order for order in self.orders if len(order) == count), ())


@dataclass(frozen=True)
class BandChoice:
    """The bands that are displayed.

    Attributes:
        bands: for red, green and blue, or the one shown in grey, from 1.
        reason: why these, as the end of a sentence.
        guessed: whether they were guessed from the number of bands.
    """

    bands: tuple[int, ...]
    reason: str
    guessed: bool = False

    @property
    def sentence(self) -> str:
        """The choice as a sentence; if it is a guess, with how to change it."""
        if len(self.bands) == 1:
            return Message("Band {band} is shown in grey, {reason}.", band=self.bands[0], reason=self.reason)
        bands = "{}, {}, {}".format(*self.bands)
        if not self.guessed:
            return Message("Red, green and blue are bands {bands}, {reason}.", bands=bands, reason=self.reason)
        return Message(
            "Red, green and blue are assumed to be bands {bands}, {reason}; if that is wrong, choose them (--bands).",
            bands=bands,
            reason=self.reason,
        )


def any_match(patterns: Iterable[str], texts: Sequence[str]) -> bool:
    """Whether one of the regular expressions matches in one of the texts, ignoring case."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns for text in texts)


def _read_orders() -> tuple[tuple[tuple[str, ...], BandOrder], ...]:
    entries = json.loads((resources() / "sensors.json").read_text(encoding="utf-8"))
    orders = []
    for entry in entries.values():
        known = tuple(tuple(order) for order in (entry["bands"], *entry.get("other_bands", ())) if order)
        patterns = (*entry["recognise"], *entry.get("other_names", ()))
        orders.append((patterns, BandOrder(entry["label"], known, entry.get("numbers", {}))))
    return tuple(orders)


_ORDERS = _read_orders()


def band_order(texts: Iterable[str]) -> Optional[BandOrder]:
    """The band order of the sensor named in one of the texts (metadata values, file names), or None."""
    texts = list(texts)
    return next((order for patterns, order in _ORDERS if any_match(patterns, texts)), None)


def colour_of_band(text: str) -> Optional[str]:
    """The colour named in a band's description; None if it names none, several or another band."""
    found = _named_colour(text)
    return found if found in COLOURS else None


def _named_colour(text: str) -> Optional[str]:
    """The colour named in a description, "other" for another band, None if it names no band."""
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
    """The sensor's band number in the name of a band or file ("4" in B04, SR_B4 and band 4), or None."""
    match = _NUMBERED.search(name)
    return match.group(2).upper() if match else None


def colours_by_number(order: Optional[BandOrder]) -> Mapping[str, str]:
    """Common names by band number: the sensor's, else those of Sentinel-2, Landsat 8 and 9."""
    return order.numbers if order and order.numbers else _BY_NUMBER


def colour_of_file(name: str) -> Optional[str]:
    """The colour of a single-band file by its name; for example "band 10" for the number of another band."""
    stem = re.sub(r"\.\w{1,5}$", "", name)
    number = band_number(stem)
    if number is None:
        return colour_of_band(stem)
    found = colours_by_number(band_order([name])).get(number)
    return found if found in COLOURS else f"band {number}"


def parse_wavelength(text: str, unit: str = "") -> Optional[float]:
    """The wavelength in nanometres in a description ("red (650-680 nm)") or of a number with its unit, or None."""
    match = _WAVELENGTH.search(f"{text} {unit}")
    if match is None:
        return None
    low, high = float(match.group(1) or match.group(2)), float(match.group(2))
    return (low + high) / 2 * _NANOMETRES[match.group(3).lower()]


def natural_colours(bands: Sequence[Band], order: Optional[BandOrder] = None) -> BandChoice:
    """The bands for red, green and blue, or the one to show in grey; ``order`` is the sensor's, if known."""
    count = len(bands)
    names = [_named_colour(band.name) for band in bands]
    if count == 1:
        return BandChoice((1,), Message("because it is the only band"))
    polarised = [bool(set(re.split(r"[\W_]+", band.name.lower())) & set(_RADAR)) for band in bands]
    if any(polarised):
        return BandChoice((polarised.index(True) + 1,), _RADAR_REASON)
    if count < 3:
        return BandChoice((1,), Message("because {count} bands have no natural colours", count=count))
    sensor = order.for_count(count) if order else ()
    tagged = [name or band.colour_interpretation for name, band in zip(names, bands)]
    for known, reason in (
        (names, Message("according to the band names")),
        (_names_by_number(bands, order), Message("according to the band numbers")),
        (_names_by_wavelength(bands), Message("according to the wavelengths")),
        (tagged, Message("according to the colour interpretation")),
        (sensor, Message("according to the band order of {sensor}", sensor=order.label) if order else ""),
    ):
        if all(name in known for name in COLOURS):
            return BandChoice(tuple(list(known).index(name) + 1 for name in COLOURS), reason)
    if sensor and sensor[0] in _RADAR:
        return BandChoice((1,), _RADAR_REASON)
    return BandChoice(
        _BY_COUNT.get(count, (3, 2, 1)), Message("a guess from the number of bands ({count})", count=count), True
    )


def _names_by_number(bands: Sequence[Band], order: Optional[BandOrder]) -> list[str]:
    """Common names by the band numbers of Sentinel-2 and Landsat; empty if the numbers only count the bands."""
    found = [_NUMBERED.search(band.name) for band in bands]
    numbers = [match.group(2).upper() if match else "" for match in found]
    counted = all(number == str(place) for place, number in enumerate(numbers, 1))
    # Programs name unnamed bands b1, b2 … or band 1, band 2 …; B1 … B8 are a sensor's.
    written = len(bands) > 4 and all(match and match.group(1) == "B" for match in found)
    if counted and not written and not (order and order.numbers):
        return []
    table = colours_by_number(order)
    if table is _BY_NUMBER and _is_landsat_4_to_7(bands, numbers):
        table = _BY_OLD_NUMBER
    return [table.get(number, "") for number in numbers]


def _is_landsat_4_to_7(bands: Sequence[Band], numbers: Sequence[str]) -> bool:
    """Whether the numbers are those of Landsat 4 to 7, whose thermal band 6 has another name or is left out."""
    six = any(re.search(r"ST_B6|B6_VCID", band.name, re.IGNORECASE) for band in bands)
    return six or ({"1", "3", "4", "7"} <= set(numbers) <= set("123457"))


def _names_by_wavelength(bands: Sequence[Band]) -> list[str]:
    """Common names by wavelength: for each colour the band nearest to that of Sentinel-2."""
    centres = [band.wavelength or parse_wavelength(band.name) for band in bands]
    found = [""] * len(bands)
    for name, (middle, low, high) in _WAVELENGTHS.items():
        inside = [(abs(at - middle), place) for place, at in enumerate(centres) if at is not None and low <= at <= high]
        if inside:
            found[min(inside)[1]] = name
    return found

"""Sensors: the modulation transfer function (MTF) of their bands, and how to recognise them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable, Optional

from clippan import resources
from clippan.catalogue.band_names import any_match
from clippan.core.messages import Message


@dataclass(frozen=True)
class Sensor:
    """A sensor, as fusion needs it.

    Attributes:
        name: its id.
        label: its name in lists.
        mtf_ms: MTF gains of the multispectral bands at their Nyquist frequency (0 to 1), in band order; one value
            stands for all bands.
        mtf_pan: MTF gain of the panchromatic band at the multispectral Nyquist frequency.
        bands: common names of the bands in the order in which the sensor's products hold them.
        recognise: regular expressions that match its names in metadata and file names.
    """

    name: str
    label: str
    mtf_ms: tuple[float, ...]
    mtf_pan: float
    bands: tuple[str, ...]
    recognise: tuple[str, ...]

    def mtf_gains(self, bands: Iterable[int], count: int) -> tuple[float, ...]:
        """MTF gains of the bands at these positions (from 0) of a raster with ``count`` bands; if it does not have the
        sensor's number of bands, which are which is unknown, and all take the mean gain."""
        if len(self.mtf_ms) == count:
            return tuple(self.mtf_ms[band] for band in bands)
        mean = sum(self.mtf_ms) / len(self.mtf_ms)
        return tuple(mean for _ in bands)


def _read_sensors() -> dict[str, Sensor]:
    entries = json.loads((resources() / "sensors.json").read_text(encoding="utf-8"))
    return {
        name: Sensor(
            name, entry["label"], tuple(entry["ms"]), entry["pan"], tuple(entry["bands"]), tuple(entry["recognise"])
        )
        for name, entry in entries.items()
        if "ms" in entry  # of others only the order of the bands is known: see clippan.catalogue.band_names
    }


SENSORS = _read_sensors()


def recognise_sensor(texts: Iterable[str]) -> Optional[Sensor]:
    """The sensor that one of the texts (metadata values, file names) names, or None."""
    texts = list(texts)
    return next((sensor for sensor in SENSORS.values() if any_match(sensor.recognise, texts)), None)


def find_sensor(name: str) -> Optional[Sensor]:
    """The sensor with this id or with such a name ("WorldView-3", "landsat8"), or None."""
    return SENSORS.get(name) or recognise_sensor([name])


def resolve_sensor(name: str, texts: Iterable[str], log: Callable[[str], None], warn: Callable[[str], None]) -> Sensor:
    """The sensor with this name; for "auto", the one that a text (metadata value, file name) names, or the generic one.

    Calls ``log`` with what was recognised, and ``warn`` with a sentence for the user if nothing was.
    """
    if name != "auto":
        return find_sensor(name) or SENSORS["generic"]
    found = recognise_sensor(texts)
    if found:
        log(Message("Sensor: {label}, recognised from the files.", label=found.label))
        return found
    warn("Sensor: generic, because the files name no known sensor; choose one if you know it.")
    return SENSORS["generic"]

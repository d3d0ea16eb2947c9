"""Colours and palettes of the classes of a prompt table."""

from __future__ import annotations

from clippan.catalogue.prompts import PromptTable
from clippan.raster.writer import Palette

UNCLASSIFIED = "unclassified"  # value 0
_GREY = (160, 160, 160)  # in reports; in the map it is transparent


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of #rrggbb."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def colours(table: PromptTable) -> list[tuple[int, int, int]]:
    """Colours of the values 0, 1, …: unclassified pixels, then the classes."""
    return [_GREY, *(rgb(prompt.colour) for prompt in table.with_colours().classes)]


def palette(table: PromptTable) -> Palette:
    """The palette of a map: value 0 is unclassified and transparent."""
    opaque = ((*colour, 255) for colour in colours(table)[1:])
    return Palette((UNCLASSIFIED, *table.names), ((0, 0, 0, 0), *opaque))

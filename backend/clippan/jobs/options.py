"""The choices that several jobs share, with the words the user sees."""

from __future__ import annotations

import enum

from clippan.core.errors import ClippanError

SHIPPED = "fusion/clippan.safetensors"  # the fusion model that comes with CLIPPan, below the resources


class Method(enum.Enum):
    """Pansharpening methods, the best first."""

    CLIPPAN = "clippan"
    MTF_GLP_HPM_R = "mtf-glp-hpm-r"
    MTF_GLP_HPM = "mtf-glp-hpm"
    MTF_GLP_CBD = "mtf-glp-cbd"
    BT_H = "bt-h"
    BDSD = "bdsd"
    GSA = "gsa"
    BROVEY = "brovey"
    CUBIC = "cubic"

    @property
    def label(self) -> str:
        """The method as a list shows it."""
        return _METHOD_LABELS[self]


_METHOD_LABELS = {
    Method.CLIPPAN: "CLIPPan: neural network for every sensor (recommended)",
    Method.MTF_GLP_HPM_R: "MTF-GLP-HPM-R: modulation with regression (best without a network)",
    Method.MTF_GLP_HPM: "MTF-GLP-HPM: high-pass modulation",
    Method.MTF_GLP_CBD: "MTF-GLP-CBD: regression-based injection",
    Method.BT_H: "BT-H: Brovey with haze correction (fast)",
    Method.BDSD: "BDSD: band-dependent spatial detail",
    Method.GSA: "GSA: adaptive Gram-Schmidt",
    Method.BROVEY: "Weighted Brovey (as in GDAL)",
    Method.CUBIC: "Cubic interpolation (no sharpening, for comparison)",
}


class Registration(enum.Enum):
    """What is done where MS does not lie on PAN."""

    AUTO = "auto"
    GLOBAL = "global"
    OFF = "off"


class Format(enum.Enum):
    """File format of a raster output."""

    GTIFF = "gtiff"
    COG = "cog"


class Compression(enum.Enum):
    """Lossless compression of a raster output."""

    DEFLATE = "deflate"
    ZSTD = "zstd"
    LZW = "lzw"
    NONE = "none"


class Stretch(enum.Enum):
    """How a raster's values become a picture, the same way for the whole raster."""

    AUTO = "auto"
    PERCENTILE = "percentile"
    REFLECTANCE = "reflectance"
    NONE = "none"


class Refinement(enum.Enum):
    """How the edges of a map follow those of the picture."""

    GUIDED = "guided"
    NONE = "none"


_LONGEST = 100_000  # numbers that a range like 2-4 may stand for
_DIGITS = 18  # of a number; Python refuses to read those of some thousand digits


def parse_bands(text: str) -> tuple[int, ...]:
    """Band numbers from a text such as ``1,2,3``, ``4 3 2`` or ``2-4``.

    Raises:
        ClippanError: it is no such list.
    """
    numbers: list[int] = []
    for item in text.replace(",", " ").replace(";", " ").split():
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > _DIGITS:
            raise ClippanError(f"The band list “{text}” is not understood; write it like 1,2,3 or 2-4.")
        start, end = int(first), int(last) if dash else int(first)
        if abs(end - start) > _LONGEST:
            raise ClippanError(f"The list “{text}” is too long; write fewer numbers.")
        numbers.extend(range(start, end + 1) if start <= end else range(start, end - 1, -1))
    return tuple(numbers)

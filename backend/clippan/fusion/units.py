"""Whether two rasters of one place have their values in one unit: reflectance, radiance and digital numbers differ by a
factor, and some by an offset, and figures that compare values then mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from clippan.core.messages import Message
from clippan.raster.source import BandInfo

_LIKE = 0.5  # least correlation of bands that show one place
_FACTOR = 1.8  # from here on values have another unit; no pansharpening spreads them so far
_LARGE = 0.1  # part of the values that an offset is told from
_ALIKE = 0.1  # how far the offsets of bands may be apart to be one
_NEAR = 0.25  # how far factors may be from each other, or from 1, where the contrast of details has its share in them
_CLOSE = 0.1  # how near a unit is to the one that a file declares


class UnitComparison:
    """The factor and the offset between two images, from tiles of both.

    Args:
        what: how to call the first in a sentence, as in "pansharpened raster".
        other: how to call the second.
        figures: which figures compare the two.
    """

    def __init__(self, what: str, other: str, figures: str) -> None:
        self._what, self._other, self._figures = what, other, figures
        self._count = 0
        self._sums: np.ndarray = np.zeros(())

    def add(self, values: torch.Tensor, others: torch.Tensor, valid: torch.Tensor) -> None:
        """Adds a tile of both, each (bands, height, width), where ``valid`` (height, width)."""
        x, y = values[:, valid].double(), others[:, valid].double()
        moments = torch.stack([x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])
        self._count += x.shape[1]
        self._sums = self._sums + moments.cpu().numpy()

    def hint(self, infos: Sequence[BandInfo], others: Sequence[BandInfo]) -> Optional[str]:
        """A sentence for the user if the units differ, else None.

        Args:
            infos, others: what the files of both say of their bands.
        """
        found = self._measured()
        if found is None:
            return None
        factor, offset, mean = found
        if factor == 1:
            relation = f"{_rounded(abs(offset))} {'lower' if offset < 0 else 'higher'} than the {self._other}'s"
        elif offset == 0:
            relation = _times(factor, self._other)
        else:
            sign = "minus" if offset < 0 else "plus"
            relation = f"{_rounded(factor)} times the {self._other}'s, {sign} {_rounded(abs(offset))}"
        scaled = next(
            (
                name
                for name, bands, gain, shift, size in (
                    (self._other, others, factor, offset, factor * mean),
                    (self._what, infos, 1 / factor, -offset / factor, mean),
                )
                if _declares(bands, gain, shift, size)
            ),
            None,
        )
        remedy = (
            f"apply the scale and offset that the {scaled} declares (gdal_translate -unscale -ot Float32), and assess "
            "again"
            if scaled
            else "bring both to one unit, as with QGIS's raster calculator, and assess again"
        )
        return Message(
            "The {_what}'s values are about {relation}, so {_figures} do not tell its quality; {remedy}.",
            _what=self._what,
            relation=relation,
            _figures=self._figures,
            remedy=remedy,
        )

    def _measured(self) -> Optional[tuple[float, float, float]]:
        """The factor and the offset that make the second image's values the first's, and how large the second's are in
        the mean; None where the unit is the same or cannot be told."""
        if self._count < 2:
            return None
        mean, other, square, other_square, product = self._sums / self._count
        spread, other_spread = square - mean**2, other_square - other**2
        covariance = product - mean * other
        told = (spread > 1e-9 * mean**2) & (other_spread > 1e-9 * other**2)
        told &= covariance > _LIKE * np.sqrt(np.where(told, spread * other_spread, 1))
        if not told.any():
            return None
        mean, other = mean[told], other[told]
        size = float(np.median(np.abs(other)))
        factors = covariance[told] / other_spread[told]
        factor = float(np.exp(np.median(np.log(factors))))
        if not 1 / _FACTOR < factor < _FACTOR:
            plain = float(np.median(mean) / np.median(other)) if np.median(other) else 0.0
            if abs(plain / factor - 1) < _NEAR:
                return plain, 0.0, size
            return factor, float(np.median(mean - factor * other)), size
        # Haze that one of the two had taken off is another offset in each band; a unit's is the same in all.
        offsets = mean - other
        offset = float(np.median(offsets))
        alike = len(offsets) > 1 and np.ptp(offsets) < _ALIKE * abs(offset) and np.abs(factors - 1).max() < _NEAR
        return (1.0, offset, size) if alike and abs(offset) > _LARGE * size else None


def _declares(bands: Sequence[BandInfo], factor: float, offset: float, size: float) -> bool:
    """Whether a file's bands declare the scale and the offset that lead to the other's values, large as ``size``."""
    return any(
        abs(band.scale / factor - 1) < _CLOSE and abs(band.offset - offset) < _CLOSE * size
        for band in bands
        if (band.scale, band.offset) != (1, 0)
    )


def _times(factor: float, other: str) -> str:
    if factor < 1:
        return f"1/{_rounded(1 / factor)} of the {other}'s"
    return f"{_rounded(factor)} times the {other}'s"


def _rounded(value: float) -> str:
    """To two digits, written out."""
    return f"{float(f'{value:.2g}'):,.10g}"

"""Whether two rasters of one area have the same unit. Reflectance, radiance and digital numbers differ by a factor, and
some by an offset; figures that compare values are then meaningless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from clippan.core.messages import Message
from clippan.raster.source import BandInfo

_MIN_CORRELATION = 0.5  # of bands that show the same area
_FACTOR = 1.8  # from which the unit differs: no pansharpening changes values so much
_MIN_OFFSET = 0.1  # relative to the values
_OFFSET_SPREAD = 0.1  # greatest relative difference between the offsets of bands of one unit
_FACTOR_TOLERANCE = 0.25  # of a factor, which the contrast of details affects as well
_DECLARED_TOLERANCE = 0.1  # relative, of a scale and offset that a file declares


class UnitComparison:
    """The factor and the offset between two images, from tiles of both.

    Args:
        what: name of the first in a sentence, such as "pansharpened raster".
        other: name of the second.
        figures: names of the figures that compare the two.
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
            infos, others: band metadata of both files.
        """
        found = self._measured()
        if found is None:
            return None
        factor, offset, size = found
        values = {"other": self._other, "factor": _rounded(factor), "offset": _rounded(abs(offset))}
        if factor == 1 and offset < 0:
            relation = Message("{offset} lower than those of the {other}", **values)
        elif factor == 1:
            relation = Message("{offset} higher than those of the {other}", **values)
        elif offset == 0 and factor < 1:
            relation = Message("1/{divisor} of those of the {other}", divisor=_rounded(1 / factor), **values)
        elif offset == 0:
            relation = Message("{factor} times those of the {other}", **values)
        elif offset < 0:
            relation = Message("{factor} times those of the {other}, minus {offset}", **values)
        else:
            relation = Message("{factor} times those of the {other}, plus {offset}", **values)
        subject = {"what": self._what, "relation": relation, "figures": self._figures}
        if _declares(others, factor, offset, factor * size):
            declaring = self._other
        elif _declares(infos, 1 / factor, -offset / factor, size):
            declaring = self._what
        else:
            return Message(
                "The values of the {what} are about {relation}, so {figures} do not measure its quality; convert both "
                "to one unit, for instance with the raster calculator of QGIS, and assess again.",
                **subject,
            )
        return Message(
            "The values of the {what} are about {relation}, so {figures} do not measure its quality; apply the scale "
            "and offset that the {declaring} declares (gdal_translate -unscale -ot Float32), and assess again.",
            declaring=declaring,
            **subject,
        )

    def _measured(self) -> Optional[tuple[float, float, float]]:
        """Factor and offset from the second image's values to the first's, and the typical size of the second's values;
        None if the unit is the same or cannot be determined."""
        if self._count < 2:
            return None
        mean, other, square, other_square, product = self._sums / self._count
        variance, other_variance = square - mean**2, other_square - other**2
        covariance = product - mean * other
        usable = (variance > 1e-9 * mean**2) & (other_variance > 1e-9 * other**2)
        usable &= covariance > _MIN_CORRELATION * np.sqrt(np.where(usable, variance * other_variance, 1))
        if not usable.any():
            return None
        mean, other = mean[usable], other[usable]
        size = float(np.median(np.abs(other)))
        factors = covariance[usable] / other_variance[usable]
        factor = float(np.exp(np.median(np.log(factors))))
        if not 1 / _FACTOR < factor < _FACTOR:
            plain = float(np.median(mean) / np.median(other)) if np.median(other) else 0.0
            if abs(plain / factor - 1) < _FACTOR_TOLERANCE:
                return plain, 0.0, size
            return factor, float(np.median(mean - factor * other)), size
        # Haze correction changes the offset of each band differently; a unit has the same offset in all bands.
        offsets = mean - other
        offset = float(np.median(offsets))
        is_unit = (
            len(offsets) > 1
            and np.ptp(offsets) < _OFFSET_SPREAD * abs(offset)
            and np.abs(factors - 1).max() < _FACTOR_TOLERANCE
        )
        return (1.0, offset, size) if is_unit and abs(offset) > _MIN_OFFSET * size else None


def _declares(bands: Sequence[BandInfo], factor: float, offset: float, size: float) -> bool:
    """Whether a band declares about this factor and offset, for values of a typical size."""
    return any(
        abs(band.scale / factor - 1) < _DECLARED_TOLERANCE and abs(band.offset - offset) < _DECLARED_TOLERANCE * size
        for band in bands
        if (band.scale, band.offset) != (1, 0)
    )


def _rounded(value: float) -> str:
    """Two significant digits, without an exponent where possible."""
    return f"{float(f'{value:.2g}'):,.10g}"

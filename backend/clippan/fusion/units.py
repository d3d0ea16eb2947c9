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


# By whether the pansharpened raster is compared with the reference, and whether a file declares the unit.
_SENTENCES = {
    (False, False): "The pansharpened raster F and the multispectral raster M have different units (F ≈ {relation}), "
    "so D_λ,K, D_s, HQNR and QNR do not measure the quality of F; convert both to one unit, for instance with the "
    "raster calculator of QGIS, and assess again.",
    (False, True): "The pansharpened raster F and the multispectral raster M have different units (F ≈ {relation}), "
    "so D_λ,K, D_s, HQNR and QNR do not measure the quality of F; apply the scale and offset that {declaring} declares "
    "(gdal_translate -unscale -ot Float32), and assess again.",
    (True, False): "The pansharpened raster F and the reference raster R have different units (F ≈ {relation}), so "
    "Q2n, ERGAS, PSNR and SSIM do not measure the quality of F; convert both to one unit, for instance with the raster "
    "calculator of QGIS, and assess again.",
    (True, True): "The pansharpened raster F and the reference raster R have different units (F ≈ {relation}), so "
    "Q2n, ERGAS, PSNR and SSIM do not measure the quality of F; apply the scale and offset that {declaring} declares "
    "(gdal_translate -unscale -ot Float32), and assess again.",
}


class UnitComparison:
    """The factor and the offset from MS, or from the reference, to the pansharpened raster, from tiles of both.

    Args:
        with_reference: whether it is compared with the reference.
    """

    def __init__(self, with_reference: bool) -> None:
        self._with_reference = with_reference
        self._count = 0
        self._sums: np.ndarray = np.zeros(())

    def add(self, values: torch.Tensor, others: torch.Tensor, valid: torch.Tensor) -> None:
        """Adds a tile of both, each (bands, height, width), where ``valid`` (height, width)."""
        x, y = values[:, valid].double(), others[:, valid].double()
        moments = torch.stack([x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])
        self._count += x.shape[1]
        self._sums = self._sums + moments.cpu().numpy()

    def hints(self, infos: Sequence[BandInfo], others: Sequence[BandInfo]) -> list[str]:
        """A sentence for the user if the units differ, else nothing.

        Args:
            infos, others: band metadata of both files.
        """
        found = self._measure()
        if found is None:
            return []
        factor, offset, magnitude = found
        symbol = "R" if self._with_reference else "M"
        declaring = ""
        if _declares(others, factor, offset, factor * magnitude):
            declaring = symbol
        elif _declares(infos, 1 / factor, -offset / factor, magnitude):
            declaring = "F"
        sentence = _SENTENCES[self._with_reference, bool(declaring)]
        return [Message(sentence, relation=_formula(symbol, factor, offset), declaring=declaring)]

    def _measure(self) -> Optional[tuple[float, float, float]]:
        """Factor and offset from the second image's values to the first's, and the typical magnitude of the second's;
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
        magnitude = float(np.median(np.abs(other)))
        factors = covariance[usable] / other_variance[usable]
        factor = float(np.exp(np.median(np.log(factors))))
        if not 1 / _FACTOR < factor < _FACTOR:
            plain = float(np.median(mean) / np.median(other)) if np.median(other) else 0.0
            if abs(plain / factor - 1) < _FACTOR_TOLERANCE:
                return plain, 0.0, magnitude
            return factor, float(np.median(mean - factor * other)), magnitude
        # Haze correction changes the offset of each band differently; a unit has the same offset in all bands.
        offsets = mean - other
        offset = float(np.median(offsets))
        is_unit = (
            len(offsets) > 1
            and np.ptp(offsets) < _OFFSET_SPREAD * abs(offset)
            and np.abs(factors - 1).max() < _FACTOR_TOLERANCE
        )
        return (1.0, offset, magnitude) if is_unit and abs(offset) > _MIN_OFFSET * magnitude else None


def _declares(bands: Sequence[BandInfo], factor: float, offset: float, magnitude: float) -> bool:
    """Whether a band declares about this factor and offset, for values of this magnitude."""
    return any(
        abs(band.scale / factor - 1) < _DECLARED_TOLERANCE
        and abs(band.offset - offset) < _DECLARED_TOLERANCE * magnitude
        for band in bands
        if (band.scale, band.offset) != (1, 0)
    )


def _formula(symbol: str, factor: float, offset: float) -> str:
    """A linear function of the symbol."""
    if factor == 1:
        scaled = symbol
    elif offset == 0 and factor < 1:
        scaled = f"{symbol} / {_rounded(1 / factor)}"
    else:
        scaled = f"{_rounded(factor)} × {symbol}"
    if offset == 0:
        return scaled
    return f"{scaled} {'+' if offset > 0 else '−'} {_rounded(abs(offset))}"


def _rounded(value: float) -> str:
    """Two significant digits, without an exponent where possible."""
    return f"{float(f'{value:.2g}'):,.10g}"

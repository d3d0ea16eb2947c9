"""Which values mark missing pixels: declared ones, and numbers that no surface has."""

from __future__ import annotations

import math
from typing import Optional

import numpy as np
from osgeo import gdal, gdal_array

# Floating-point values of this size are fill values, whoever declares them (−FLT_MAX in all its spellings, −3.4e38,
# netCDF's 9.97e36), or what resampling made of one; no quantity that a raster holds is as large.
FILL_MAGNITUDE = 1e30
_ROUNDING = 1e-6  # part by which a decimal spelling such as -3.4028235e+38 may exceed the greatest float32


def as_pixel_value(nodata: Optional[float], dtype: np.dtype) -> Optional[float]:
    """A nodata value as pixels of this type hold it, None if they cannot. Decimal spellings just beyond float32's range
    (-3.4028235e+38) become its limit."""
    if nodata is None:
        return None
    if np.issubdtype(dtype, np.floating):
        most = float(np.finfo(dtype).max)
        if not math.isfinite(nodata) or abs(nodata) <= most:
            return nodata
        return math.copysign(most, nodata) if abs(nodata) <= most * (1 + _ROUNDING) else None
    info = np.iinfo(dtype)
    whole = math.isfinite(nodata) and nodata == int(nodata) and info.min <= nodata <= info.max
    return int(nodata) if whole else None


def band_nodata(band: gdal.Band, override: Optional[float]) -> Optional[float]:
    """The nodata value of a band, as its pixels hold it: the override if they can have it, else what it declares."""
    dtype = np.dtype(gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType) or np.float32)
    value = as_pixel_value(override, dtype)
    return as_pixel_value(band.GetNoDataValue(), dtype) if value is None else value


def unwritten_is_nodata(band: gdal.Band, nodata: Optional[float]) -> bool:
    """Whether GDAL reads ``nodata`` (None for none) from unwritten blocks, where it reads the declared value or 0."""
    declared = band.GetNoDataValue()
    return is_same_value(0.0 if declared is None else declared, nodata)


def is_same_value(one: Optional[float], other: Optional[float]) -> bool:
    """Whether two nodata values are the same, as two NaN are."""
    return one == other or (one != one and other != other)


def is_fill_value(value: Optional[float], dtype: np.dtype) -> bool:
    """Whether pixels of a floating-point type are invalid with this value anyway, as with the least float64."""
    return value is not None and bool(np.issubdtype(dtype, np.floating)) and not abs(value) < FILL_MAGNITUDE


def is_valid_value(values: np.ndarray) -> np.ndarray:
    """Which floating-point values (any shape) can have been measured: neither NaN, nor infinite, nor a fill value."""
    with np.errstate(invalid="ignore"):
        return np.abs(values) < FILL_MAGNITUDE

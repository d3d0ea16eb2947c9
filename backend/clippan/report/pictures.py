"""Pictures in reports, as the bytes of PNG files."""

from __future__ import annotations

import uuid
from typing import Optional

import numpy as np
from osgeo import gdal, gdal_array

_OPACITY = 0.55  # of the colours of classes over a picture
# From unsure to sure, even to the eye and to the colour-blind (after Nuñez, Anderton and Renslow 2018, "cividis").
_CIVIDIS = np.array([(0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56)], np.float32)
NODATA_COLOUR = (236, 238, 241)

Limits = tuple[np.ndarray, np.ndarray]  # values that become black and white, (bands,) each


def png(planes: np.ndarray) -> bytes:
    """A PNG file of uint8 values (1 to 4, height, width)."""
    name = f"/vsimem/{uuid.uuid4().hex}.png"
    gdal.GetDriverByName("PNG").CreateCopy(name, gdal_array.OpenArray(np.ascontiguousarray(planes)))
    try:
        file = gdal.VSIFOpenL(name, "rb")
        try:
            return bytes(gdal.VSIFReadL(1, gdal.VSIStatL(name).size, file))
        finally:
            gdal.VSIFCloseL(file)
    finally:
        gdal.Unlink(name)


def percentile_limits(image: np.ndarray, valid: np.ndarray) -> Limits:
    """The 2nd and 98th percentiles of the valid pixels of each band (bands, height, width)."""
    if not valid.any():
        return np.zeros(len(image)), np.ones(len(image))
    low, high = np.percentile(image[:, valid], [2, 98], axis=1)
    return low, high


def stretched_png(image: np.ndarray, valid: np.ndarray, limits: Optional[Limits] = None) -> bytes:
    """A picture of values (1 or 3, height, width), by default from their percentiles; invalid pixels (height, width)
    are transparent."""
    low, high = (edge.astype(np.float32)[:, None, None] for edge in limits or percentile_limits(image, valid))
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-12), 0, 1) * 255
    grey = np.where(valid, scaled, 0).round().astype(np.uint8)
    return png(np.concatenate([grey, np.where(valid, 255, 0).astype(np.uint8)[None]]))


def class_overlay_png(image: np.ndarray, values: np.ndarray, colours: np.ndarray) -> bytes:
    """Colours of classes (classes, 3) over an image (height, width, 3), which is grey where the class is 0."""
    grey = np.broadcast_to(image.mean(axis=2, dtype=np.float32)[..., None], image.shape)
    mixed = np.where(values[..., None] > 0, (1 - _OPACITY) * grey + _OPACITY * colours[values], grey)
    return png(mixed.round().astype(np.uint8).transpose(2, 0, 1))


def confidence_png(values: np.ndarray) -> bytes:
    """Confidence, 0 to 1 (height, width), from dark blue to yellow; NaN is nodata."""
    position = np.nan_to_num(values) * (len(_CIVIDIS) - 1)
    lower = np.minimum(position.astype(int), len(_CIVIDIS) - 2)
    share = (position - lower)[..., None]
    shown = ((1 - share) * _CIVIDIS[lower] + share * _CIVIDIS[lower + 1]).round().astype(np.uint8)
    shown[np.isnan(values)] = NODATA_COLOUR
    return png(shown.transpose(2, 0, 1))

"""Telling masks from image bands that are only tagged as alpha.

Many programs write four-band imagery (NAIP, drones) as RGBA: the near infrared is tagged as alpha. Taken for a mask, it
would be lost as a band, and water, which is dark in it, would be nodata.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import numpy as np
from osgeo import gdal

from clippan.core.messages import Message

METADATA_DOMAIN = "CLIPPAN"  # metadata domain of datasets that were opened in another way than GDAL would
_NOTE, _PATH = "NOTE", "PATH"
_SAMPLE_WINDOWS, _SAMPLE_EDGE = 8, 16  # along each axis: windows that are looked at, and their edge in pixels
_MAX_OVERVIEW_EDGE = 1024  # greatest edge of an overview that is looked at instead
_MIN_PIXELS = 64  # pixels, below which nothing is decided
_MAX_OTHER_BANDS = 8  # bands, at most, that an alpha band is compared with
_RINGING = 0.04  # part of the greatest value by which lossy compression changes what is clear or opaque
_MAX_MASK_VALUES = 16  # a mask has fewer between clear and opaque
_MASK_SHARE, _IMAGE_SHARE = 0.05, 0.5  # part of the pixels there: below it is a mask, above an image, whatever it shows
_MIN_R_SQUARED = 0.1  # R² there of a regression on the other bands, with which a feathered edge has nothing to do
_MASK_NAME = re.compile(r"alpha|mask|transparen|opacity|valid", re.IGNORECASE)
_NO_NAME = re.compile(r"\s*(band|layer|b)?[\s_]*\d*\s*", re.IGNORECASE)


def alpha_bands(dataset: gdal.Dataset) -> list[int]:
    """Numbers of the bands that are tagged as alpha."""
    tags = [dataset.GetRasterBand(number + 1).GetColorInterpretation() for number in range(dataset.RasterCount)]
    return [number for number, tag in enumerate(tags, 1) if tag == gdal.GCI_AlphaBand]


def without_false_alpha(dataset: gdal.Dataset, path: str, always: bool) -> gdal.Dataset:
    """The dataset with the alpha tag removed from bands that hold an image; ``path`` is what it was opened by,
    ``always`` removes the tag from all."""
    tagged = alpha_bands(dataset)
    images = [number for number in tagged if always or _holds_image(dataset, number)]
    if not images:
        return dataset
    options = [part for number in images for part in (f"-colorinterp_{number}", "undefined")]
    retagged = gdal.Translate("", dataset, format="VRT", options=options)
    for domain in ("IMAGERY", "IMD", "RPC", "GEOLOCATION"):
        values = dataset.GetMetadata(domain)
        if values:
            retagged.SetMetadata(values, domain)
    notes = {_PATH: path}
    if not always:
        others = ",".join(str(number) for number in range(1, dataset.RasterCount + 1) if number not in images)
        notes[_NOTE] = Message(
            "Band {images} of {path} is tagged as alpha (transparency) but holds an image, such as near infrared, and "
            "is used as an image band; to leave it out, choose the bands {others}.",
            path=path,
            images=", ".join(map(str, images)),
            others=others,
        )
    retagged.SetMetadata(notes, METADATA_DOMAIN)
    return retagged


def alpha_notes(datasets: Iterable[gdal.Dataset]) -> list[str]:
    """Sentences about bands whose alpha tag was removed."""
    return [note for note in (dataset.GetMetadataItem(_NOTE, METADATA_DOMAIN) for dataset in datasets) if note]


def is_retagged(dataset: gdal.Dataset) -> bool:
    """Whether alpha tags were removed. The file keeps them: GDAL's resampling still leaves out zeros of such a band."""
    return dataset.GetMetadataItem(_PATH, METADATA_DOMAIN) is not None


def source_name(dataset: gdal.Dataset) -> str:
    """The path or data source that a dataset was opened by."""
    return dataset.GetMetadataItem(_PATH, METADATA_DOMAIN) or dataset.GetDescription()


def _holds_image(dataset: gdal.Dataset, number: int) -> bool:
    """Whether a band that is tagged as alpha holds an image: by its name, else by its values."""
    name = dataset.GetRasterBand(number).GetDescription() or ""
    if _MASK_NAME.search(name) or dataset.RasterCount == 1:
        return False
    if not _NO_NAME.fullmatch(name):
        return True
    try:
        alpha, others = _samples(dataset, number)
    except RuntimeError:  # who reads it for good tells that it is damaged
        return False
    seen = (others != 0).any(axis=0) & np.isfinite(others).all(axis=0) & np.isfinite(alpha)
    alpha, others = alpha[seen], others[:, seen]
    if len(alpha) < _MIN_PIXELS:
        return False
    # Clear and opaque are what most pixels of a mask are, whatever compression has made of them.
    between = np.abs(alpha) > _RINGING * alpha.max()
    between &= alpha < (1 - _RINGING) * alpha.max()
    if between.mean() < _MASK_SHARE or len(np.unique(alpha[between])) <= _MAX_MASK_VALUES:
        return False
    return bool(between.mean() > _IMAGE_SHARE) or _r_squared(alpha[between], others[:, between]) > _MIN_R_SQUARED


def _r_squared(values: np.ndarray, by: np.ndarray) -> float:
    """R² of the linear regression of values (n,) on others (k, n)."""
    design = np.column_stack([by.T, np.ones(len(values))])
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return 1 - float(residual.var()) / max(float(values.var()), 1e-30)


def _samples(dataset: gdal.Dataset, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Values from all over the raster, float64: of a band (n,) and of some others (bands, n), with little to read."""
    others = [band + 1 for band in range(dataset.RasterCount) if band + 1 != number][:_MAX_OTHER_BANDS]
    bands = [dataset.GetRasterBand(band) for band in (number, *others)]
    overviews = [bands[0].GetOverview(number) for number in range(bands[0].GetOverviewCount())]
    edges = [max(overview.XSize, overview.YSize) for overview in overviews]
    small = next((number for number, edge in enumerate(edges) if _MIN_PIXELS <= edge <= _MAX_OVERVIEW_EDGE), None)
    if small is not None:
        parts = [np.stack([band.GetOverview(small).ReadAsArray().ravel() for band in bands])]
    else:
        width, height = dataset.RasterXSize, dataset.RasterYSize
        rows, columns = (window_starts(length, _SAMPLE_WINDOWS, _SAMPLE_EDGE) for length in (height, width))
        parts = []
        for y, x in itertools.product(rows, columns):
            size = min(_SAMPLE_EDGE, width - x), min(_SAMPLE_EDGE, height - y)
            parts.append(np.stack([band.ReadAsArray(x, y, *size).ravel() for band in bands]))
    values = np.concatenate(parts, axis=1).astype(np.float64)
    return values[0], values[1:]


def window_starts(length: int, count: int, edge: int) -> list[int]:
    """Where ``count`` windows of an edge begin, spread evenly along an axis, from its first pixel to its last."""
    return sorted({round(start) for start in np.linspace(0, max(length - edge, 0), count)})

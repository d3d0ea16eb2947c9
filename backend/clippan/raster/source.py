"""Reading windows of rasters, with the validity of every pixel."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Optional

import numpy as np
from osgeo import gdal, gdal_array

from clippan.errors import ClippanError
from clippan.raster.grid import Grid

_MAPPED = {gdal.GDT_Float64: np.float32}  # processing is in float32; reading so halves the memory


def open_dataset(path: str, what: str) -> gdal.Dataset:
    """Opens a GDAL data source read-only.

    Args:
        path: file or data source.
        what: how to call it in a sentence, as in "panchromatic raster".

    Raises:
        ClippanError: it does not exist, is not a raster, or only holds other rasters.
    """
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_VERBOSE_ERROR)
    except RuntimeError as error:
        if ":" not in path and not path.startswith("/vsi") and not Path(path).exists():
            raise ClippanError(f"The {what} {path} does not exist; check the path.") from None
        reason = " ".join(str(error).split())
        raise ClippanError(
            f"The {what} {path} is not a raster that GDAL can read; choose another file or convert it ({reason})."
        ) from None
    if dataset.RasterCount == 0:
        first = next((name for name, _ in dataset.GetSubDatasets()), None)
        hint = f", for instance {first}" if first else ""
        raise ClippanError(f"The {what} {path} holds no bands itself; name one of its subdatasets{hint}.")
    # GDAL shows CMYK pictures as RGBA; satellite tools write four bands under that tag, and mean the numbers.
    if dataset.GetMetadataItem("SOURCE_COLOR_SPACE", "IMAGE_STRUCTURE") == "CMYK":
        dataset = gdal.OpenEx(f"GTIFF_RAW:{path}", gdal.OF_RASTER)
    return dataset


def stack(paths: Sequence[str], what: str) -> gdal.Dataset:
    """Opens one raster, or several as one with all their bands in order.

    Rasters on different grids of one CRS are brought to the finest one.

    Raises:
        ClippanError: as ``open_dataset``, or their CRS differ.
    """
    datasets = [open_dataset(path, what) for path in paths]
    if len(datasets) == 1:
        return datasets[0]
    grids = [Grid.of(dataset) for dataset in datasets]
    for path, grid in zip(paths[1:], grids[1:]):
        if not grids[0].shares_crs(grid) or (grid.geotransform is None) != (grids[0].geotransform is None):
            raise ClippanError(f"The {what}s {paths[0]} and {path} lie in different CRS; reproject them to one first.")
        if grid.geotransform is None and (grid.width, grid.height) != (grids[0].width, grids[0].height):
            raise ClippanError(
                f"The {what}s {paths[0]} and {path} have no georeference and differ in size; use rasters of one size."
            )
    singles = [
        gdal.Translate("", dataset, format="VRT", bandList=[band])
        for dataset in datasets
        for band in _spectral(dataset)
    ]
    return gdal.BuildVRT("", singles, separate=True, resolution="highest", resampleAlg="cubic")


def _spectral(dataset: gdal.Dataset) -> list[int]:
    """Band numbers without the alpha band."""
    return [
        number
        for number in range(1, dataset.RasterCount + 1)
        if dataset.GetRasterBand(number).GetColorInterpretation() != gdal.GCI_AlphaBand
    ]


class Source:
    """Bands of a raster, read by window. A context manager; reading is safe from several threads.

    Args:
        dataset: an open dataset.
        what: how to call it in a sentence.
        bands: which of its bands other than alpha, from 1; empty means all.
        nodata: overrides the nodata value that the bands declare.

    Attributes:
        grid: where it lies.
        dtype: numpy type of what ``read`` returns.
        nodata: the nodata value of the first band (or the override), None without one.
        masked: whether any pixel may be invalid.
        bits: bit depth that the file states, None if it states none.
    """

    def __init__(
        self,
        dataset: gdal.Dataset,
        what: str,
        bands: Sequence[int] = (),
        nodata: Optional[float] = None,
    ) -> None:
        spectral = _spectral(dataset)
        wrong = [band for band in bands if band > len(spectral)]
        if wrong:
            raise ClippanError(f"Band {wrong[0]} was asked for but the {what} has {len(spectral)}; choose fewer.")
        self.numbers = [spectral[band - 1] for band in bands] if bands else spectral
        if not self.numbers:
            raise ClippanError(f"The {what} has only an alpha band; choose a raster with image bands.")
        self.total = len(spectral)
        self._dataset = dataset
        self._lock = threading.Lock()
        self.bands = [dataset.GetRasterBand(number) for number in self.numbers]
        self.what = what
        self.grid = Grid.of(dataset)
        codes = {band.DataType for band in self.bands}
        if any(gdal.DataTypeIsComplex(code) for code in codes):
            raise ClippanError(f"The {what} has complex numbers; convert it to amplitude first.")
        if any(band.GetColorTable() is not None for band in self.bands):
            raise ClippanError(f"The {what} has a colour palette; convert it to RGB first (gdal_translate -expand).")
        code = codes.pop() if len(codes) == 1 else _union(codes)
        self.dtype = np.dtype(_MAPPED.get(code) or gdal_array.GDALTypeCodeToNumericTypeCode(code))
        declared = [band.GetNoDataValue() for band in self.bands]
        self._nodata = [nodata] * len(self.bands) if nodata is not None else declared
        self.nodata = next((value for value in self._nodata if value is not None), None)
        self._mask = self._mask_band(dataset)
        self.masked = self._mask is not None or self.nodata is not None or np.issubdtype(self.dtype, np.floating)
        bits = self.bands[0].GetMetadataItem("NBITS", "IMAGE_STRUCTURE")
        self.bits = int(bits) if bits and np.issubdtype(self.dtype, np.unsignedinteger) else None

    def _mask_band(self, dataset: gdal.Dataset) -> Optional[gdal.Band]:
        # GDAL takes alpha for a mask in rasters of two or four bands only.
        for number in range(1, dataset.RasterCount + 1):
            band = dataset.GetRasterBand(number)
            if band.GetColorInterpretation() == gdal.GCI_AlphaBand:
                return band
        flags = self.bands[0].GetMaskFlags()
        return self.bands[0].GetMaskBand() if flags & gdal.GMF_PER_DATASET and not flags & gdal.GMF_NODATA else None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.bands.clear()
        self._mask = None
        self._dataset = None

    def read(self, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """Reads a window, which may reach beyond the raster: there the border's pixels repeat.

        Returns:
            Values (bands, height, width), and which of them are valid (bool, same shape), None if all are.

        Raises:
            ClippanError: GDAL could not read.
        """
        grid = self.grid
        left, right = _clip(x, x + width, grid.width)
        top, bottom = _clip(y, y + height, grid.height)
        inside = (left, top, right - left, bottom - top)
        with self._lock:
            try:
                values = self._dataset.ReadAsArray(
                    *inside,
                    band_list=self.numbers,
                    buf_obj=np.empty((len(self.numbers), *inside[:1:-1]), self.dtype),
                )
                mask = self._mask.ReadAsArray(*inside) if self._mask is not None else None
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ClippanError(
                    f"The {self.what} could not be read; check whether its file is complete ({reason})."
                ) from error
        valid = self._valid(values, mask)
        if (left, top, right, bottom) != (x, y, x + width, y + height):
            rows = np.clip(np.arange(y, y + height), top, bottom - 1)[:, None] - top
            columns = np.clip(np.arange(x, x + width), left, right - 1) - left
            values = values[:, rows, columns]
            valid = None if valid is None else valid[:, rows, columns]
        return values, valid

    def _valid(self, values: np.ndarray, mask: Optional[np.ndarray]) -> Optional[np.ndarray]:
        if not self.masked:
            return None
        valid = np.ones(values.shape, bool)
        if np.issubdtype(self.dtype, np.floating):
            np.isfinite(values, out=valid)
        for plane, value, out in zip(values, self._nodata, valid):
            if value is not None and not math.isnan(value):
                # The declared value is a double; a float32 band holds it rounded.
                out &= plane != _as(self.dtype, value)
        if mask is not None:
            valid &= mask > 0
        return None if valid.all() else valid


def _as(dtype: np.dtype, value: float) -> float:
    return float(np.float32(value)) if dtype == np.float32 else value


def _union(codes: set[int]) -> int:
    code = codes.pop()
    while codes:
        code = gdal.DataTypeUnion(code, codes.pop())
    return code


def _clip(start: int, end: int, limit: int) -> tuple[int, int]:
    """The part of start..end inside 0..limit, at least the pixel nearest to it."""
    start = min(max(start, 0), limit - 1)
    return start, max(min(end, limit), start + 1)

"""Reading windows of rasters, with the validity of every pixel."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from osgeo import gdal, gdal_array

from clippan.core import utf8
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.raster import products
from clippan.raster.alpha import alpha_bands, source_name, window_starts, without_false_alpha
from clippan.raster.coverage import WrittenPixels
from clippan.raster.grid import Grid
from clippan.raster.nodata import as_pixel_value, is_valid_value, unwritten_is_nodata
from clippan.raster.products import exists
from clippan.raster.tiles import Window

_READ_TYPES = {gdal.GDT_Float64: np.float32}  # processing is in float32; reading so halves the memory
_MAX_PATH_LENGTH = 200  # letters of a path in a sentence
# What marks gaps in files that declare no nodata value. No surface has such a value in all bands; 0 it may have.
_CUSTOMARY_NODATA = (-9999.0, -32768.0, float(np.finfo(np.float32).min))
_SAMPLE_WINDOWS, _SAMPLE_EDGE = 8, 16  # windows along each axis that are looked at for them, and their edge in pixels


def open_dataset(path: str, what: str, all_bands: bool = False) -> gdal.Dataset:
    """Opens a GDAL data source read-only; a band tagged as alpha that holds an image loses the tag. Raises ClippanError
    if it does not exist, is no raster, or only lists other rasters.

    Args:
        what: how a sentence calls it, as in "panchromatic raster".
        all_bands: take every band tagged as alpha as an image band.
    """
    utf8.check_encodable(path)  # in a folder that was named there may be others
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_VERBOSE_ERROR)
    except RuntimeError as error:
        product = products.open_product(path, what)
        if product is not None:
            return product
        name = path if len(path) <= _MAX_PATH_LENGTH else f"{path[:_MAX_PATH_LENGTH]}…"  # it may be a whole XML
        if not any(mark in path for mark in ":<") and not path.startswith("/vsi") and not exists(path):
            raise ClippanError("The {what} {name} does not exist; check the path.", what=what, name=name) from None
        reason = " ".join(str(error).replace(path, name).split())
        raise ClippanError(
            "The {what} {name} is not a raster that GDAL can read; choose another file or convert it ({reason}).",
            what=what,
            name=name,
            reason=reason,
        ) from None
    if dataset.RasterCount == 0:
        product = products.open_product(path, what)  # of Sentinel-2, GDAL only lists parts
        if product is not None:
            return product
        subdatasets = [name for name, _ in dataset.GetSubDatasets()]
        raise ClippanError(
            "The {what} {path} has no bands itself; choose one of its subdatasets ({names}).",
            what=what,
            path=path,
            names=join_names(subdatasets, 1) or "–",
        )
    # GDAL shows CMYK pictures as RGBA; satellite tools write four bands under that tag, and mean the numbers.
    cmyk = dataset.GetMetadataItem("SOURCE_COLOR_SPACE", "IMAGE_STRUCTURE") == "CMYK"
    if cmyk and dataset.GetDriver().ShortName == "GTiff" and exists(path):
        dataset = gdal.OpenEx(f"GTIFF_RAW:{path}", gdal.OF_RASTER)
    return without_false_alpha(dataset, path, all_bands)


def open_datasets(paths: Sequence[str], what: str, bands: Sequence[int]) -> list[gdal.Dataset]:
    """Opens data sources whose bands count through; if ``bands`` (from 1) exceed the image bands, alpha bands count
    too."""
    datasets = [open_dataset(path, what) for path in paths]
    if max(bands, default=0) > sum(len(image_bands(dataset)) for dataset in datasets):
        datasets = [open_dataset(path, what, all_bands=True) for path in paths]
    return datasets


def image_bands(dataset: gdal.Dataset) -> list[int]:
    """Band numbers without the alpha band."""
    alpha = alpha_bands(dataset)
    return [number for number in range(1, dataset.RasterCount + 1) if number not in alpha]


def alpha_band(dataset: gdal.Dataset) -> Optional[gdal.Band]:
    """The band that marks valid pixels; GDAL takes it as a mask in two- and four-band rasters only."""
    numbers = alpha_bands(dataset)
    return dataset.GetRasterBand(numbers[0]) if numbers else None


def written_pixels(dataset: gdal.Dataset, numbers: Sequence[int], nodata: Iterable[Optional[float]]) -> WrittenPixels:
    """What was written of these bands, one nodata value a band, or of the alpha band."""
    alpha = alpha_band(dataset)
    if alpha is not None:
        return WrittenPixels([alpha], nodata=True)  # it reads as 0: clear
    bands = [dataset.GetRasterBand(number) for number in numbers]
    return WrittenPixels(bands, all(map(unwritten_is_nodata, bands, nodata)))


def sensor_texts(dataset: gdal.Dataset, path: str) -> list[str]:
    """What may tell a raster's sensor: its file name and its metadata values."""
    texts = [path.replace("\\", "/").rsplit("/", 1)[-1]]
    for domain in ("", "IMAGERY", "IMD"):
        texts += (dataset.GetMetadata(domain) or {}).values()
    return texts


@dataclass(frozen=True)
class BandInfo:
    """A band's name, GDAL colour interpretation and unit; a quantity is value × ``scale`` + ``offset``."""

    description: str = ""
    interpretation: int = gdal.GCI_Undefined
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, band: gdal.Band, name: str = "") -> BandInfo:
        return cls(
            band.GetDescription() or name,
            band.GetColorInterpretation(),
            band.GetUnitType() or "",
            band.GetScale() or 1.0,  # a file may state one of the two; a scale of 0 says nothing
            band.GetOffset() or 0.0,
        )


def band_infos(datasets: Sequence[gdal.Dataset]) -> list[BandInfo]:
    """Bands other than alpha; those of several rasters without a name are called by their files."""
    infos = []
    for dataset in datasets:
        numbers = image_bands(dataset)
        name = source_name(dataset)
        stem = Path(name).stem if name and len(datasets) > 1 and exists(name) else ""
        for number in numbers:
            called = f"{stem} {number}" if stem and len(numbers) > 1 else stem
            infos.append(BandInfo.of(dataset.GetRasterBand(number), called))
    return infos


@dataclass(frozen=True)
class _BandRun:
    """Consecutive bands of one dataset, at the positions ``start`` to ``end`` of the source."""

    dataset: gdal.Dataset
    numbers: list[int]
    mask: Optional[gdal.Band]
    start: int
    end: int


class Source:
    """Bands of one or several rasters on one grid, read by window. A context manager; safe in several threads.

    Args:
        datasets: open, on one grid; their bands count through.
        what: how a sentence calls them.
        bands: of those other than alpha, from 1; empty for all.
        nodata: overrides declared values, if a pixel can have it.
        infos: of all bands other than alpha, where the datasets do not describe them.

    Attributes:
        dtype: numpy type of what ``read`` returns.
        count, numbers: of the bands read, from 1.
        available_bands: number of bands other than alpha.
        infos: one a band read.
        nodata: of the first band that has one (or the override), else None.
        nodata_note: a sentence about an undeclared nodata value that gaps have, else empty.
        may_have_invalid: whether any pixel may be invalid.
        nbits: the largest bit depth stated, None if a band states none.
    """

    def __init__(
        self,
        datasets: Sequence[gdal.Dataset],
        what: str,
        bands: Sequence[int] = (),
        nodata: Optional[float] = None,
        infos: Sequence[BandInfo] = (),
    ) -> None:
        everything = [(index, number) for index, dataset in enumerate(datasets) for number in image_bands(dataset)]
        self.available_bands = len(everything)
        if not everything:
            raise ClippanError("The {what} has only an alpha band; choose a raster with image bands.", what=what)
        wrong = [band for band in bands if band > self.available_bands]
        if wrong:
            raise ClippanError(
                "Band {band} was asked for but the {what} has {total}; choose others.",
                band=wrong[0],
                what=what,
                total=self.available_bands,
            )
        self.numbers = tuple(bands) or tuple(range(1, self.available_bands + 1))
        self.count = len(self.numbers)
        described = infos or band_infos(datasets)
        self.infos = [described[number - 1] for number in self.numbers]
        self._runs = _band_runs(datasets, [everything[number - 1] for number in self.numbers])
        self._lock = threading.Lock()
        self.what = what
        self.grid = Grid.of(datasets[0])
        opened = [run.dataset.GetRasterBand(number) for run in self._runs for number in run.numbers]
        codes = {band.DataType for band in opened}
        if any(gdal.DataTypeIsComplex(code) for code in codes):
            raise ClippanError("The {what} has complex numbers; convert it to amplitude first.", what=what)
        if any(band.GetColorTable() is not None for band in opened):
            raise ClippanError(
                "The {what} has a colour palette; convert it to RGB first (gdal_translate -expand).", what=what
            )
        if any(band.GetMetadataItem("PIXELTYPE", "IMAGE_STRUCTURE") == "SIGNEDBYTE" for band in opened):
            # GDAL before 3.7 hands their pixels over as unsigned bytes.
            raise ClippanError(
                "The {what} has signed bytes; convert it to Int16 first (gdal_translate -ot Int16).", what=what
            )
        code = functools.reduce(gdal.DataTypeUnion, codes)
        self.dtype = np.dtype(_READ_TYPES.get(code) or gdal_array.GDALTypeCodeToNumericTypeCode(code))
        override = as_pixel_value(nodata, self.dtype)
        self._nodata = [
            as_pixel_value(band.GetNoDataValue(), self.dtype) if override is None else override for band in opened
        ]
        self.nodata = next((value for value in self._nodata if value is not None), None)
        self.nodata_note = ""
        # One for each dataset: a pixel of a band that is not written has no data.
        self._written = [
            written_pixels(run.dataset, run.numbers, self._nodata[run.start : run.end]) for run in self._runs
        ]
        if self.nodata is None and all(run.mask is None for run in self._runs):
            self._detect_nodata()
        if any(written.nodata_assumed for written in self._written):
            self.nodata_note = Message(
                "Blocks of the {what} that were never written are taken as nodata.", what=self.what
            )
        self.may_have_invalid = (
            any(run.mask is not None for run in self._runs)
            or not self.fully_written
            or self.nodata is not None
            or np.issubdtype(self.dtype, np.floating)
        )
        stated = [band.GetMetadataItem("NBITS", "IMAGE_STRUCTURE") for band in opened]
        whole = np.issubdtype(self.dtype, np.unsignedinteger) and None not in stated
        self.nbits = max(int(bits) for bits in stated) if whole else None

    def _detect_nodata(self) -> None:
        """Takes a customary value as nodata if a pixel of windows all over the raster has it in all bands."""
        marks = [mark for mark in _CUSTOMARY_NODATA if as_pixel_value(mark, self.dtype) is not None]
        self.may_have_invalid = False
        rows, columns = (
            window_starts(length, _SAMPLE_WINDOWS, _SAMPLE_EDGE) for length in (self.grid.height, self.grid.width)
        )
        for y, x in itertools.product(rows, columns) if marks else ():
            values, _ = self.read(x, y, _SAMPLE_EDGE, _SAMPLE_EDGE)
            if values.min() > max(marks):
                continue
            mark = next((mark for mark in marks if (values == self.dtype.type(mark)).all(axis=0).any()), None)
            if mark is not None:
                self.nodata = as_pixel_value(mark, self.dtype)
                self._nodata = [self.nodata] * self.count
                self.nodata_note = Message(
                    "The {what} declares no nodata value; {value:.9g} is taken as nodata, because pixels have it in "
                    "all bands.",
                    what=self.what,
                    value=mark,
                )
                return

    def band_name(self, position: int) -> str:
        """A band in a sentence, by its position from 0."""
        return ", ".join(filter(None, (str(self.numbers[position]), self.infos[position].description)))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Any, trace: Any) -> None:
        self._runs = []

    def read(self, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """Values (bands, height, width) of a window and their validity (bool, same shape), None if all are valid.
        Beyond the raster its border pixels repeat. Raises ClippanError if GDAL could not read."""
        grid = self.grid
        left, right = _clamp(x, x + width, grid.width)
        top, bottom = _clamp(y, y + height, grid.height)
        inside = (left, top, right - left, bottom - top)
        values: np.ndarray = np.empty((self.count, bottom - top, right - left), self.dtype)
        masks: list[Optional[np.ndarray]] = []
        with self._lock:
            try:
                for run, pixels in zip(self._runs, self._written):
                    part = values[run.start : run.end]
                    written = pixels.written_mask(Window(*inside))
                    if written is not None and not written.any():
                        part[:] = 0
                        masks.append(written)
                        continue
                    run.dataset.ReadAsArray(*inside, band_list=run.numbers, buf_obj=part)
                    mask = run.mask.ReadAsArray(*inside) > 0 if run.mask is not None else None
                    masks.append(written if mask is None else mask if written is None else mask & written)
            except RuntimeError as error:
                raise ClippanError(
                    "The {what} could not be read; check whether its file is complete ({reason}).",
                    what=self.what,
                    reason=one_line(error),
                ) from error
        valid = self._valid(values, masks)
        if (left, top, right, bottom) != (x, y, x + width, y + height):
            border = ((0, 0), _missing(y, height, top, bottom), _missing(x, width, left, right))
            values = np.pad(values, border, "edge")
            valid = None if valid is None else np.pad(valid, border, "edge")
        return values, valid

    @property
    def fully_written(self) -> bool:
        """Whether all pixels were written, as far as formats tell."""
        return all(written.occupancy is None for written in self._written)

    def may_contain_data(self, window: Window) -> bool:
        """Whether a window, which may reach beyond the raster, may hold valid pixels; never wrongly False."""
        return any(written.may_contain_data(window) for written in self._written)

    @property
    def bounds(self) -> Window:
        """A window outside which no pixel is valid."""
        return functools.reduce(Window.union, (written.bounds for written in self._written))

    def empty_bands(self, windows: Iterable[Window]) -> list[int]:
        """Positions, from 0, of bands without a valid pixel in these windows."""
        empty = np.ones(self.count, bool)
        for window in windows:
            _, valid = self.read(window.x, window.y, window.width, window.height)
            empty &= False if valid is None else ~valid.any(axis=(1, 2))
            if not empty.any():
                break
        return [int(position) for position in np.flatnonzero(empty)]

    def _valid(self, values: np.ndarray, masks: Sequence[Optional[np.ndarray]]) -> Optional[np.ndarray]:
        if not self.may_have_invalid:
            return None
        floating = np.issubdtype(self.dtype, np.floating)
        valid = is_valid_value(values) if floating else np.ones(values.shape, bool)
        for plane, value, out in zip(values, self._nodata, valid):
            if value is not None and not math.isnan(value):
                out &= plane != self.dtype.type(
                    value
                )  # the declared value is a double, a float32 band holds it rounded
        for run, mask in zip(self._runs, masks):
            if mask is not None:
                valid[run.start : run.end] &= mask
        return None if valid.all() else valid


def _band_runs(datasets: Sequence[gdal.Dataset], chosen: Sequence[tuple[int, int]]) -> list[_BandRun]:
    runs: list[_BandRun] = []
    for index, group in itertools.groupby(chosen, lambda item: item[0]):
        dataset, numbers = datasets[index], [number for _, number in group]
        first = dataset.GetRasterBand(numbers[0])
        mask = alpha_band(dataset) or (first.GetMaskBand() if first.GetMaskFlags() & gdal.GMF_PER_DATASET else None)
        start = runs[-1].end if runs else 0
        runs.append(_BandRun(dataset, numbers, mask, start, start + len(numbers)))
    return runs


def _clamp(start: int, end: int, limit: int) -> tuple[int, int]:
    """The part of start..end inside 0..limit, at least the pixel nearest to it."""
    start = min(max(start, 0), limit - 1)
    return start, max(min(end, limit), start + 1)


def _missing(start: int, length: int, first: int, end: int) -> tuple[int, int]:
    """How many of ``length`` pixels from ``start`` on lie before and behind those from ``first`` to ``end``."""
    missing = length - (end - first)
    before = min(max(first - start, 0), missing)
    return before, missing - before

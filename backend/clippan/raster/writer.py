"""Writing rasters so that a file is whole or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar, cast

import numpy as np
from osgeo import gdal, gdal_array

from clippan.errors import Cancelled, ClippanError
from clippan.jobs.options import Compression, Format
from clippan.raster.grid import Grid
from clippan.raster.source import BandInfo

T = TypeVar("T")

BLOCK = 256  # tiles of the pipeline are multiples of it, so each block of the file is written once
_PAM = ".aux.xml"  # GDAL's own sidecar
_SIDECARS = (_PAM, ".ovr", ".msk", ".msk.ovr")
_OVERVIEW_SIZE = 512  # the coarsest overview is no larger

# DEFLATE level 1 writes three times as fast as 6 and the files are 3 % larger on the Landsat scene.
_COMPRESSION = {
    Compression.DEFLATE: ["COMPRESS=DEFLATE", "ZLEVEL=1"],
    Compression.ZSTD: ["COMPRESS=ZSTD", "ZSTD_LEVEL=3"],
    Compression.LZW: ["COMPRESS=LZW"],
    Compression.NONE: [],
}
_COG_COMPRESSION = {
    Compression.DEFLATE: ["COMPRESS=DEFLATE", "LEVEL=1"],
    Compression.ZSTD: ["COMPRESS=ZSTD", "LEVEL=3"],
    Compression.LZW: ["COMPRESS=LZW"],
    Compression.NONE: ["COMPRESS=NONE"],
}


def partial(path: str) -> str:
    """Where a file is written until it is whole."""
    return f"{path}.part"


def touched(path: str) -> list[str]:
    """All files that writing a raster creates, replaces or removes."""
    return [path, *(f"{path}{ending}" for ending in _SIDECARS), partial(path), _cog(partial(path))]


def _cog(part: str) -> str:
    return f"{part}.cog"


@dataclass
class Writer:
    """A GeoTIFF under construction. A context manager: left normally, the file is finished and renamed; left by an
    exception, nothing stays behind.

    Attributes:
        path: the file to write.
        grid: its grid.
        dtype: its numpy type.
        bands: one description a band.
        nodata: its nodata value, None for none.
        tags: GDAL metadata of the file.
        format, compression, overviews: how it is stored.
        progress: called with percent while the file is finished; raises to stop.

    Raises:
        ClippanError: the file could not be written (a full disk above all).
    """

    path: str
    grid: Grid
    dtype: np.dtype
    bands: Sequence[BandInfo]
    nodata: Optional[float] = None
    tags: Mapping[str, str] = field(default_factory=dict)
    format: Format = Format.GTIFF
    compression: Compression = Compression.DEFLATE
    overviews: bool = True
    progress: Callable[[float], None] = lambda percent: None

    def __enter__(self) -> Writer:
        self._check_space()
        # A COG is made from a finished GeoTIFF, which is not worth compressing for the seconds that it lives.
        compression = Compression.NONE if self.format is Format.COG else self.compression
        options = [
            "TILED=YES",
            f"BLOCKXSIZE={BLOCK}",
            f"BLOCKYSIZE={BLOCK}",
            f"INTERLEAVE={'PIXEL' if self.format is Format.COG else 'BAND'}",  # a COG is interleaved by pixel
            "BIGTIFF=IF_SAFER",
            *self._options(compression, _COMPRESSION),
        ]
        code = gdal_array.NumericTypeCodeToGDALTypeCode(self.dtype)
        size = (self.grid.width, self.grid.height, len(self.bands))
        self._part = partial(self.path)
        self._dataset: Any = None  # until it could be created
        driver = gdal.GetDriverByName("GTiff")
        try:
            self._dataset = self._guard(lambda: driver.Create(self._part, *size, code, options))
            self._guard(self._describe)
        except ClippanError:
            self._discard()
            raise
        return self

    def _options(self, compression: Compression, table: Mapping[Compression, list[str]]) -> list[str]:
        options = list(table[compression])
        if compression is not Compression.NONE:
            if table is _COMPRESSION:
                options.append(f"PREDICTOR={self._predictor}")
            else:
                options.append("PREDICTOR=YES")
            options.append("NUM_THREADS=ALL_CPUS")
        return options

    @property
    def _predictor(self) -> int:
        return 3 if np.issubdtype(self.dtype, np.floating) else 2

    def _describe(self) -> None:
        if self.grid.geotransform:
            self._dataset.SetGeoTransform(self.grid.geotransform)
        if self.grid.crs:
            self._dataset.SetProjection(self.grid.crs)
        self._dataset.SetMetadata(dict(self.tags))
        for number, info in enumerate(self.bands, 1):
            band = self._dataset.GetRasterBand(number)
            band.SetDescription(info.description)
            band.SetColorInterpretation(info.interpretation)
            if info.unit:
                band.SetUnitType(info.unit)
            if info.scale is not None and info.offset is not None and (info.scale, info.offset) != (1.0, 0.0):
                band.SetScale(info.scale)
                band.SetOffset(info.offset)
            if self.nodata is not None:
                whole = np.issubdtype(self.dtype, np.integer)  # 64-bit integers are not taken as floats
                band.SetNoDataValue(int(self.nodata) if whole else self.nodata)

    def write(self, x: int, y: int, values: np.ndarray) -> None:
        """Writes values (bands, height, width) with their first pixel at column x and row y."""
        height, width = values.shape[1:]
        code = gdal_array.NumericTypeCodeToGDALTypeCode(values.dtype)
        pixels = np.ascontiguousarray(values)
        self._guard(lambda: self._dataset.WriteRaster(x, y, width, height, pixels, buf_type=code))

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            if error is None:
                self._replace(self._guard(self._finish))
        finally:
            self._discard()

    def _finish(self) -> str:
        whole = self._part
        self._dataset.FlushCache()
        if self.format is Format.COG:
            whole = self._make_cog()
        elif self.overviews and self.dtype.itemsize < 8:  # of 64-bit integers with nodata, GDAL 3.6 fails or hangs
            self._build_overviews()
        self._close()
        return whole

    def _close(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is None:
            return
        # Left to the destructor, an error while the last bytes are written could only be printed. GDAL before 3.8 has
        # no Close; what SWIG calls in the destructor does the same and hands the error over.
        if hasattr(dataset, "Close"):
            try:
                dataset.Close()
            except RuntimeError:
                if dataset.this is not None:
                    dataset.thisown = False  # it is closed all the same; GDAL 3.10 would free it a second time
                raise
        else:
            gdal.Dataset.__swig_destroy__(dataset)

    def _replace(self, whole: str) -> None:
        try:
            _rename(whole, self.path)
            # What stood beside an older file of this name (statistics, overviews, a mask) would be taken for ours.
            for ending in _SIDECARS:
                _remove(f"{self.path}{ending}")
            if _is_file(f"{whole}{_PAM}"):  # what the format itself cannot hold
                _rename(f"{whole}{_PAM}", f"{self.path}{_PAM}")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ClippanError(
                f"The output {self.path} could not be put in place ({reason}); close it in other programs."
            ) from error

    def _discard(self) -> None:
        """Closes the dataset, and removes what is not whole."""
        with contextlib.suppress(ClippanError):
            self._guard(self._close)
        for leftover in (self._part, _cog(self._part)):
            # What cannot be removed (a folder of this name, say) is not ours; the error that led here is told.
            with contextlib.suppress(OSError, RuntimeError):
                _remove(leftover)
                _remove(f"{leftover}{_PAM}")

    def _build_overviews(self) -> None:
        levels: list[int] = []
        longest = max(self.grid.width, self.grid.height)
        while longest / 2 ** len(levels) > _OVERVIEW_SIZE:
            levels.append(2 ** (len(levels) + 1))
        if levels:
            options = ["NUM_THREADS=ALL_CPUS", *self._overview_options()]
            self._dataset.BuildOverviews("AVERAGE", levels, callback=self._callback, options=options)

    def _overview_options(self) -> list[str]:
        if self.compression is Compression.NONE:
            return []
        return [
            f"COMPRESS_OVERVIEW={self.compression.name}",
            f"PREDICTOR_OVERVIEW={self._predictor}",
            *(["ZLEVEL_OVERVIEW=1"] if self.compression is Compression.DEFLATE else []),
        ]

    def _make_cog(self) -> str:
        path = _cog(self._part)
        options = [
            *self._options(self.compression, _COG_COMPRESSION),
            "BIGTIFF=IF_SAFER",
            f"OVERVIEWS={'AUTO' if self.overviews else 'NONE'}",
            "OVERVIEW_RESAMPLING=AVERAGE",
        ]
        driver = gdal.GetDriverByName("COG")
        driver.CreateCopy(path, self._dataset, options=options, callback=self._callback)
        return path

    def _callback(self, fraction: float, message: str, data: object) -> int:
        try:
            self.progress(100 * fraction)
        except Cancelled:
            self._stopped = True
            return 0
        return 1

    def _check_space(self) -> None:
        if self.path.startswith("/vsi"):
            return
        folder = Path(self.path).absolute().parent
        pixels = self.grid.width * self.grid.height * len(self.bands)
        size = pixels * self.dtype.itemsize
        free = shutil.disk_usage(folder).free
        # Satellite pictures hardly ever compress below a quarter.
        needed = size if self.compression is Compression.NONE else size // 4
        if self.format is Format.COG:  # made from an uncompressed file beside it
            needed += size
        if needed > free:
            raise ClippanError(
                f"The output needs about {_megabytes(needed)} and {folder} has {_megabytes(free)} free; "
                "free some space or choose another folder."
            )

    def _guard(self, action: Callable[[], T]) -> T:
        """Does something with GDAL, and turns failures into one sentence; also those that GDAL only reports, as when
        a file is closed.

        The sentence is raised outside of any handler: a traceback would keep the dataset open, and its disk full.
        """
        self._stopped = False
        reported: list[str] = []
        result: Optional[T] = None

        def handle(level: int, code: int, message: str) -> None:
            if level >= gdal.CE_Failure:
                reported.append(message)

        gdal.PushErrorHandler(handle)
        try:
            result = action()
        except RuntimeError as error:
            reported.append(str(error))
        finally:
            gdal.PopErrorHandler()
        if self._stopped:
            raise Cancelled
        if reported:
            raise ClippanError(self._sentence(" ".join(reported[0].split())))
        return cast(T, result)

    def _sentence(self, reason: str) -> str:
        folder = Path(self.path).absolute().parent
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        if "No space" in reason or (folder.is_dir() and free < 2**20):
            return f"The disk of {folder} is full; free some space or choose another folder."
        if folder.is_dir() and not os.access(folder, os.W_OK):
            return f"The output folder {folder} is not writable; choose another."
        return f"The output {self.path} could not be written ({reason}); choose another folder or file system."


def _is_file(path: str) -> bool:
    return gdal.VSIStatL(path) is not None


def _rename(path: str, target: str) -> None:
    if path.startswith("/vsi"):
        gdal.Rename(path, target)
    else:
        Path(path).replace(target)


def _remove(path: str) -> None:
    if not path.startswith("/vsi"):
        Path(path).unlink(missing_ok=True)
    elif _is_file(path):
        gdal.Unlink(path)


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

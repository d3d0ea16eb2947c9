"""Writing rasters so that a file is whole or not there at all."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, cast

import numpy as np
from osgeo import gdal, gdal_array

from clippan.core.errors import Cancelled, ClippanError
from clippan.core.outputs import Outputs, affected_files, write_error
from clippan.jobs.options import Compression, Format
from clippan.raster.grid import Grid
from clippan.raster.overviews import build_sparse_overviews
from clippan.raster.source import BandInfo

T = TypeVar("T")

BLOCK = 256  # tiles of the pipeline are multiples of it, so each block of the file is written once
_COARSEST_OVERVIEW = 512  # the coarsest overview is no larger
# Of a raster attribute table. Pixels are counted as real numbers: there may be more than GDAL's integers reach.
_ATTRIBUTE_COLUMNS = {
    "Value": gdal.GFU_MinMax,
    "Class": gdal.GFU_Name,
    "Red": gdal.GFU_Red,
    "Green": gdal.GFU_Green,
    "Blue": gdal.GFU_Blue,
    "Alpha": gdal.GFU_Alpha,
    "Count": gdal.GFU_PixelCount,
}

# DEFLATE level 1 writes three times as fast as 6 and the files are 3 % larger on the Landsat scene.
_LEVELS = {Compression.DEFLATE: ("ZLEVEL", 1), Compression.ZSTD: ("ZSTD_LEVEL", 3)}  # by GeoTIFF's names of the option


def close_dataset(dataset: gdal.Dataset) -> None:
    """Closes a written dataset, which is then unusable; raises RuntimeError if it could not be written.

    The destructor could only print errors of the last bytes. GDAL before 3.8 has no Close; SWIG's destroy raises.
    """
    if hasattr(dataset, "Close"):
        try:
            dataset.Close()
        except RuntimeError:
            if dataset.this is not None:
                dataset.thisown = False  # it is closed all the same; GDAL 3.10 would free it a second time
            raise
    else:
        gdal.Dataset.__swig_destroy__(dataset)


def close_after_failure(dataset: Optional[gdal.Dataset]) -> None:
    """Closes a dataset after a failure, which is reported already."""
    if dataset is not None:
        with contextlib.suppress(RuntimeError):
            close_dataset(dataset)


@dataclass(frozen=True)
class Palette:
    """Classes of a map: the value i is ``names[i]``, shown in ``colours[i]``.

    Attributes:
        names: at most 256, that of value 0 first.
        colours: (red, green, blue, alpha), 0 to 255; GeoTIFF keeps no alpha, but nodata is transparent.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int, int], ...]

    def table(self) -> gdal.ColorTable:
        table = gdal.ColorTable()
        for value, colour in enumerate(self.colours):
            table.SetColorEntry(value, colour)
        return table

    def attributes(self, counts: np.ndarray) -> gdal.RasterAttributeTable:
        """As GDAL's raster attribute table, with pixel counts."""
        table = gdal.RasterAttributeTable()
        for name, usage in _ATTRIBUTE_COLUMNS.items():
            kind = gdal.GFT_String if name == "Class" else gdal.GFT_Real if name == "Count" else gdal.GFT_Integer
            table.CreateColumn(name, kind, usage)
        table.SetRowCount(len(self.names))
        for value, (name, colour) in enumerate(zip(self.names, self.colours)):
            table.SetValueAsInt(value, 0, value)
            table.SetValueAsString(value, 1, name)
            for column, part in enumerate(colour, 2):
                table.SetValueAsInt(value, column, part)
            table.SetValueAsDouble(value, 6, float(counts[value]))
        return table


@dataclass
class Writer:
    """A GeoTIFF being written. A context manager: put in place on normal exit, removed after an exception.

    Attributes:
        bands: one description a band.
        nodata: None for none.
        tags: GDAL metadata of the file.
        progress: called with percent while the file is finished; raises to stop.
        palette: of a class map, one uint8 band. Overviews show the most frequent class, unclassified pixels counted.
            The .aux.xml sidecar keeps GDAL's categories and attribute table; the names are also band metadata CLASS_1,
            ….
        sparse: omit blocks that are never written, which read as nodata; other programs than GDAL may not read such
            files.
        outputs: of the run, with which the file is put in place; None if it is alone.

    Raises:
        ClippanError: the file could not be written.
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
    palette: Optional[Palette] = None
    sparse: bool = False
    outputs: Optional[Outputs] = None

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
            *(["SPARSE_OK=TRUE"] if self.sparse else []),
            *self._compression_options(compression),
        ]
        code = gdal_array.NumericTypeCodeToGDALTypeCode(self.dtype)
        size = (self.grid.width, self.grid.height, len(self.bands))
        self._outputs = self.outputs or Outputs()
        self._temporary = self._outputs.temporary_path(self.path)
        self._raw = f"{self._temporary}.raw" if self.format is Format.COG else self._temporary
        self._dataset: Any = None  # until it could be created
        self._finished = False
        self._counts = np.zeros(256, np.int64)  # pixels a value, for the palette
        driver = gdal.GetDriverByName("GTiff")
        try:
            self._dataset = self._call_gdal(lambda: driver.Create(self._raw, *size, code, options))
            self._call_gdal(self._describe)
        except BaseException:
            self._close_and_discard(*sys.exc_info())
            raise
        return self

    def _compression_options(self, compression: Compression, cog: bool = False) -> list[str]:
        options = [f"COMPRESS={compression.name}"]
        if compression in _LEVELS:
            name, level = _LEVELS[compression]
            options.append(f"{'LEVEL' if cog else name}={level}")
        if compression is not Compression.NONE:
            predictor = ("NO" if self.palette else "YES") if cog else self._predictor
            options += [f"PREDICTOR={predictor}", "NUM_THREADS=ALL_CPUS"]
        return options

    @property
    def _predictor(self) -> int:
        if self.palette:
            return 1  # runs of one class are shorter than runs of differences
        return 3 if np.issubdtype(self.dtype, np.floating) else 2

    def _describe(self) -> None:
        if self.grid.geotransform:
            self._dataset.SetGeoTransform(self.grid.geotransform)
        if self.grid.crs:
            self._dataset.SetProjection(self.grid.crs)
        if self.grid.rpc:
            self._dataset.SetMetadata(dict(self.grid.rpc), "RPC")
        self._dataset.SetMetadata(dict(self.tags))
        for number, info in enumerate(self.bands, 1):
            band = self._dataset.GetRasterBand(number)
            band.SetDescription(info.description)
            band.SetColorInterpretation(info.interpretation)
            if info.unit:
                band.SetUnitType(info.unit)
            if (info.scale, info.offset) != (1.0, 0.0):
                band.SetScale(info.scale)
                band.SetOffset(info.offset)
        if self.palette:
            band = self._dataset.GetRasterBand(1)
            band.SetColorTable(self.palette.table())
            band.SetMetadata({f"CLASS_{value}": name for value, name in enumerate(self.palette.names)})
        else:
            self._declare_nodata()

    def _declare_nodata(self) -> None:
        if self.nodata is None:
            return
        whole = np.issubdtype(self.dtype, np.integer)  # 64-bit integers are not taken as floats
        for number in range(len(self.bands)):
            self._dataset.GetRasterBand(number + 1).SetNoDataValue(int(self.nodata) if whole else self.nodata)

    def write(self, x: int, y: int, values: np.ndarray) -> None:
        """Writes values (bands, height, width) at column x and row y."""
        height, width = values.shape[1:]
        code = gdal_array.NumericTypeCodeToGDALTypeCode(values.dtype)
        pixels = np.ascontiguousarray(values)
        if self.palette:
            self._counts += np.bincount(pixels.ravel(), minlength=256)
        self._call_gdal(lambda: self._dataset.WriteRaster(x, y, width, height, pixels, buf_type=code))

    def finish(self) -> str:
        """Completes the file before it is put in place; returns its present name."""
        if not self._finished:
            self._call_gdal(self._finish)
            self._finished = True
        return self._temporary

    def __exit__(self, kind: Optional[type[BaseException]], error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.finish()
        except BaseException:
            self._close_and_discard(*sys.exc_info())
            raise
        self._close_and_discard(kind, error, trace)

    def _close_and_discard(self, kind: Optional[type[BaseException]], error: Any, trace: Any) -> None:
        """Closes the dataset and removes an incomplete file."""
        with contextlib.suppress(ClippanError):
            self._call_gdal(self._close)
        if self._raw != self._temporary:
            for name in affected_files(self._raw):
                with contextlib.suppress(RuntimeError):
                    gdal.Unlink(name)
        if self.outputs is None:
            self._outputs.__exit__(kind, error, trace)

    def _finish(self) -> None:
        self._dataset.FlushCache()
        cog = self.format is Format.COG
        # A COG has its own, unless nodata is to come after them; of 64-bit integers, GDAL 3.6 fails or hangs.
        if self.overviews and self.dtype.itemsize < 8 and (self.palette or not cog):
            self._build_overviews()
        if self.palette:
            # Overviews must not skip nodata, or a sparse class would fill the unclassified pixels around it.
            self._declare_nodata()
            band = self._dataset.GetRasterBand(1)
            band.SetCategoryNames(list(self.palette.names))
            band.SetDefaultRAT(self.palette.attributes(self._counts))
        if cog:
            self._make_cog()
        self._close()

    def _close(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is not None:
            close_dataset(dataset)

    def _build_overviews(self) -> None:
        levels: list[int] = []
        longest = max(self.grid.width, self.grid.height)
        while longest / 2 ** len(levels) > _COARSEST_OVERVIEW:
            levels.append(2 ** (len(levels) + 1))
        if not levels:
            return
        options = ["NUM_THREADS=ALL_CPUS"]
        if self.compression is not Compression.NONE and self.format is not Format.COG:
            options += [f"COMPRESS_OVERVIEW={self.compression.name}", f"PREDICTOR_OVERVIEW={self._predictor}"]
            options += ["ZLEVEL_OVERVIEW=1"] if self.compression is Compression.DEFLATE else []
        if self.sparse:
            build_sparse_overviews(self._dataset, levels, self._resampling, options, self._callback)
        else:
            self._dataset.BuildOverviews(self._resampling, levels, callback=self._callback, options=options)

    @property
    def _resampling(self) -> str:
        return "MODE" if self.palette else "AVERAGE"

    def _make_cog(self) -> None:
        options = [
            *self._compression_options(self.compression, cog=True),
            "BIGTIFF=IF_SAFER",
            f"OVERVIEWS={'AUTO' if self.overviews else 'NONE'}",
            f"OVERVIEW_RESAMPLING={self._resampling}",
        ]
        gdal.GetDriverByName("COG").CreateCopy(self._temporary, self._dataset, options=options, callback=self._callback)

    def _callback(self, fraction: float, message: str, data: object) -> int:
        try:
            self.progress(100 * fraction)
        except Cancelled:
            self._cancelled = True
            return 0
        return 1

    def _check_space(self) -> None:
        if self.path.startswith("/vsi") or self.sparse:
            return
        folder = Path(self.path).absolute().parent
        pixels = self.grid.width * self.grid.height * len(self.bands)
        size = pixels * self.dtype.itemsize
        free = shutil.disk_usage(folder).free
        # Satellite pictures hardly ever compress below a quarter, maps of classes hardly below a hundredth.
        needed = size if self.compression is Compression.NONE else size // (100 if self.palette else 4)
        if self.format is Format.COG:  # made from an uncompressed file beside it
            needed += size
        if needed > free:
            raise ClippanError(
                "The output needs about {needed} and {folder} has {free} free; free some space or choose another "
                "folder.",
                needed=_megabytes(needed),
                folder=folder,
                free=_megabytes(free),
            )

    def _call_gdal(self, action: Callable[[], T]) -> T:
        """Calls GDAL and turns failures, also those that it only reports (when closing a file), into a ClippanError. It
        is raised outside of any handler: a traceback would keep the dataset open, and its disk full."""
        self._cancelled = False
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
        if self._cancelled:
            raise Cancelled
        if reported:
            raise write_error(self.path, reported[0])
        return cast(T, result)


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

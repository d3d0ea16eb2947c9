"""A raster as models see it: which bands make the picture, how they are stretched, where its tiles lie."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from osgeo import gdal, gdal_array, osr

from clippan.catalogue.band_names import BandChoice
from clippan.core.channels import Channels
from clippan.core.errors import ClippanError, one_line
from clippan.core.json import from_json
from clippan.core.messages import Message
from clippan.jobs.options import Stretch
from clippan.jobs.rendering import Rendering
from clippan.raster import bands as raster_bands
from clippan.raster import source as sources
from clippan.raster.alpha import alpha_bands, alpha_notes, is_retagged
from clippan.raster.coverage import OccupancyGrid, WrittenPixels
from clippan.raster.files import source_files
from clippan.raster.grid import Grid, horizontal_crs
from clippan.raster.nodata import band_nodata, is_same_value, is_valid_value
from clippan.raster.tiles import Window

PIXEL_GEOTRANSFORM = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # where QGIS shows a picture without coordinates
MIN_VALID_SHARE = 0.5  # of a tile's pixels, below which it says nothing about the place

_METRES_PER_DEGREE = 111_320.0
_SAMPLE_WINDOWS, _SAMPLE_SIZE = 16, 64  # a stretch is estimated from 16 × 16 windows of 64 × 64 pixels
_PERCENTILES = (1.0, 99.0)
_COMMON_PERCENTILE, _HEADROOM = 98.0, 2.0  # the percentile that is common, and white as a multiple of it
_WHITE_REFLECTANCE = 0.3  # what is shown as white
_REFLECTANCE_SCALE = 10_000.0  # of whole numbers; the usual one
_MAX_TILES = 20_000_000
_MAX_PIXELS_IN_MEMORY = 2**26  # pixels of a window that are resampled in memory, where GDAL cannot while it reads
_MAX_RESAMPLED_PIXELS = 2**28  # pixels of a sparse raster that are read for one picture; of more, some are
_ROUNDING = 1e-3  # of a pixel: an extent that reaches so little further has been rounded
_MIN_TILE_EDGE = 8.0  # pixels; less than that says nothing
# EuroSAT shows 64 pixels at 10 m, UC Merced 256 at 0.3 m; between and beyond them the same power law.
_EDGE_AT_10_M, _EDGE_POWER = 640.0, 0.6
_DATE_KEYS = (
    ("IMAGERY", "ACQUISITIONDATETIME"),
    ("", "DATE_ACQUIRED"),
    ("", "ACQUISITION_DATE"),
    ("", "SENSING_TIME"),
    ("", "PRODUCT_START_TIME"),
    ("", "EXIF_DateTimeOriginal"),
    ("", "EXIF_DateTime"),
    ("", "TIFFTAG_DATETIME"),
)
_DATE_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_DATE_IN_METADATA = re.compile(r"^(\d{4})[-:/]?(\d\d)[-:/]?(\d\d)")


@dataclass(frozen=True)
class RenderOptions:
    """How a scene is cut into tiles and rendered as pictures.

    Attributes:
        tile: edges in pixels.
        tile_metres: edges in metres; if both are empty, the edge follows from the ground resolution.
        overlap: of neighbours, as a fraction of their edge.
        bands: for red, green and blue, or one for grey; empty for natural colours.
        stretch: how values become brightness.
        nodata: overrides the declared value.
        extent: xmin, ymin, xmax, ymax that tiles must touch; empty for all. See ``extent_boxes``.
        crs: of the extent; empty for the raster's.
    """

    tile: tuple[int, ...] = ()
    tile_metres: tuple[float, ...] = ()
    overlap: float = 0.25
    bands: tuple[int, ...] = ()
    stretch: Stretch = Stretch.AUTO
    nodata: Optional[float] = None
    extent: tuple[float, ...] = ()
    crs: str = ""

    @property
    def extent_and_crs(self) -> tuple[Any, ...]:
        """Empty for the whole raster."""
        return (*self.extent, self.crs) if self.extent else ()

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({**asdict(self), "stretch": self.stretch.value}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RenderOptions:
        """From JSON; raises ClippanError or ValueError for other texts."""
        return from_json(cls, json.loads(text))


def empty_images(count: int, shape: tuple[int, int], channels: Optional[Channels]) -> np.ndarray:
    """Zeros for ``count`` pictures: uint8 (count, 3, h, w), or of ``channels`` float32 (count, n, h, w)."""
    bands, kind = (len(channels.names), np.float32) if channels else (3, np.uint8)
    return np.zeros((count, bands, *shape), kind)


def is_missing(path: str) -> bool:
    """Whether this names a file that does not exist; False for other data sources."""
    return Path(path).is_absolute() and not path.startswith("/vsi") and not sources.exists(path)


class Renderer:
    """An open raster that renders its windows as pictures. For one thread.

    Args:
        path: file or GDAL data source.
        stretch: (low, high) a band, the values that become black and white; None to estimate them.
        channels: of a model for other bands: pictures are then these bands, float32 from 0 to 1, whatever the options'
            bands and stretch.

    Attributes:
        grid: its pixels; without coordinates placed as in QGIS, y upwards from the top.
        declared_grid: as declared.
        band_choice: the bands shown, and why.
        notes: sentences for the user about alpha bands and nodata values.
        written: which pixels were written; nothing is shown of others.

    Raises:
        ClippanError: it cannot be read, or lacks these bands.
    """

    def __init__(
        self,
        path: str,
        options: RenderOptions,
        stretch: Optional[tuple[tuple[float, float], ...]] = None,
        channels: Optional[Channels] = None,
    ) -> None:
        self.path = path
        self.options = options
        self.channels = channels
        self._stretch = channels.stretch if channels else stretch
        self._original = sources.open_dataset(path, Message("raster"))
        if set(options.bands) & set(alpha_bands(self._original)):
            self._original = sources.open_dataset(path, Message("raster"), all_bands=True)
        self.notes = alpha_notes([self._original])
        self._dataset = _with_nodata_and_colours(self._original, options.nodata)
        self.declared_grid = Grid.of(self._dataset)
        placed = Grid(self.declared_grid.width, self.declared_grid.height, PIXEL_GEOTRANSFORM, "")
        self.grid = self.declared_grid if self.declared_grid.geotransform else placed
        self.band_choice = self._choose_bands()
        bands = [self._dataset.GetRasterBand(number) for number in self.bands]
        if any(gdal.DataTypeIsComplex(band.DataType) for band in bands):
            raise ClippanError("The raster {path} has complex numbers; convert it to amplitude first.", path=path)
        self._is_uint8 = all(band.DataType == gdal.GDT_Byte for band in bands)
        self._detect_nodata()
        self._masks = _mask_bands(self._dataset, self.bands)
        self.written = self._find_written_pixels()
        if self.written.nodata_assumed:
            self.notes.append(
                Message("Blocks of the raster {path} that were never written are taken as nodata.", path=path)
            )

    @property
    def bands(self) -> tuple[int, ...]:
        return self.band_choice.bands

    @property
    def stretch(self) -> tuple[tuple[float, float], ...]:
        """(low, high) a band, the values that become black and white; empty where bytes are shown unchanged."""
        if self._stretch is None:  # only who asks pays for reading samples
            self._stretch = self._find_stretch()
        return self._stretch

    @property
    def rendering(self) -> Rendering:
        """Bands, stretch and notes for a job's result."""
        stretch = self.stretch  # which looks for more to note
        return Rendering(self.path, self.band_choice, stretch, tuple(self.notes))

    def rendering_for(self, channels: Optional[Channels]) -> Rendering:
        """The same for a model with these channels; None for natural colours."""
        return Renderer(self.path, self.options, channels=channels).rendering if channels else self.rendering

    def _choose_bands(self) -> BandChoice:
        dataset = self._dataset
        numbers = sources.image_bands(dataset)
        if not numbers:
            raise ClippanError(
                "The raster {path} has only an alpha band; choose a raster with image bands.", path=self.path
            )
        if self.channels:
            described = [dataset.GetRasterBand(number).GetDescription() or "" for number in numbers]
            taken = tuple(numbers[position - 1] for position in self.channels.band_numbers(described))
            return BandChoice(taken, "as the model takes them")
        wrong = [band for band in self.options.bands if band > dataset.RasterCount]
        if wrong:
            raise ClippanError(
                "Band {band} was asked for but the raster {path} has {count}; choose others.",
                band=wrong[0],
                path=self.path,
                count=dataset.RasterCount,
            )
        if self.options.bands:
            return BandChoice(self.options.bands, "as asked for")
        return raster_bands.natural_colour_bands(dataset, self._original, self.path, numbers)

    def _find_written_pixels(self) -> WrittenPixels:
        expanded = self._dataset.RasterCount > self._original.RasterCount  # a palette, whose bands are one
        stored = (1,) if expanded else self.bands
        values = [band_nodata(self._original.GetRasterBand(number), self.options.nodata) for number in stored]
        return sources.written_pixels(self._original, stored, values)

    def _detect_nodata(self) -> None:
        """Takes a customary value as nodata where the raster declares none and has no mask, as for other jobs."""
        numbers = sources.image_bands(self._dataset)
        positions = [numbers.index(number) + 1 for number in self.bands if number in numbers]
        if self._is_uint8 or not positions or _mask_bands(self._dataset, self.bands):
            return
        with contextlib.suppress(ClippanError):  # of what a Source does not take, nothing is assumed
            source = sources.Source([self._dataset], f"raster {self.path}", positions)
            if source.nodata_note:
                self.notes.append(source.nodata_note)
                self.options = replace(self.options, nodata=source.nodata)  # who opens it again need not look again
                self._dataset = _with_nodata_and_colours(self._original, source.nodata)

    def _find_stretch(self) -> tuple[tuple[float, float], ...]:
        wanted = self.options.stretch
        if wanted is Stretch.NONE or (wanted is Stretch.AUTO and self._is_uint8):
            self.check_bands_have_data()
            return ()
        bands = [self._dataset.GetRasterBand(number) for number in self.bands]
        quantities = [sources.BandInfo.of(band) for band in bands]
        if wanted is Stretch.REFLECTANCE:
            self.check_bands_have_data()
            return tuple(_reflectance_range(band, quantity) for band, quantity in zip(bands, quantities))
        samples = self.sample_values().astype(np.float64)
        if not samples.shape[1]:
            return ((0.0, 1.0),) * len(self.bands)
        if wanted is Stretch.PERCENTILE:
            low, high = np.percentile(samples, _PERCENTILES, axis=1)
        else:
            # Where the file says which value stands for no light, this is where light begins.
            dark = np.array([-quantity.offset / quantity.scale for quantity in quantities])
            low, high = (dark + value for value in _brightness_range(samples - dark[:, None]))
        return tuple((float(a), float(b if b > a else np.nextafter(a, np.inf))) for a, b in zip(low, high))

    def check_bands_have_data(self) -> None:
        """Raises ClippanError, as ``sample_values`` does, if one of several bands has no data at all."""
        if len(self._masks) > 1 or not self._is_uint8:
            self.sample_values()

    def sample_values(self) -> np.ndarray:
        """Valid values (bands, n) from windows across the raster, as reading all of it could take an hour. Raises
        ClippanError if it cannot be read, or some bands have no data where others have."""
        size = _SAMPLE_SIZE
        columns = sorted({int(x) for x in np.linspace(0, max(self.grid.width - size, 0), _SAMPLE_WINDOWS)})
        rows = sorted({int(y) for y in np.linspace(0, max(self.grid.height - size, 0), _SAMPLE_WINDOWS)})
        parts = []
        alive = np.zeros(len(self.bands), bool)
        for y, x in itertools.product(rows, columns):
            window = Window(x, y, min(size, self.grid.width - x), min(size, self.grid.height - y))
            values, masks = self._read(window, window.width, window.height, gdal.GRIORA_NearestNeighbour)
            alive |= (masks & is_valid_value(values)).any(axis=(1, 2))
            parts.append(values[:, self._shown_pixels(values, masks)])
        samples = np.concatenate(parts, axis=1)
        if alive.any() and not alive.all():
            self._tell_of_empty_band(self.bands[int(np.argmin(alive))], shown=samples.shape[1] > 0)
        return samples

    def _tell_of_empty_band(self, number: int, shown: bool) -> None:
        name = self._dataset.GetRasterBand(number).GetDescription()
        band = f"{number} ({name})" if name else str(number)
        if not shown:
            raise ClippanError(
                "Band {band} of the raster {path} has no data; choose other bands.", band=band, path=self.path
            )
        note = Message(
            "Band {band} of the raster {path} has no data and is dark in the picture; choose other bands if that is "
            "not meant.",
            band=band,
            path=self.path,
        )
        if note not in self.notes:
            self.notes.append(note)

    def _read(self, window: Window, width: int, height: int, resampling: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (bands, h, w), float32 or uint8, and validity by masks and written blocks, bool (bands or 1, h, w)."""
        inside = (window.x, window.y, window.width, window.height)
        values = np.zeros((len(self.bands), height, width), np.uint8 if self._is_uint8 else np.float32)
        written = self._written_mask(window, width, height)
        if written is not None:
            if not written.any():
                return values, np.zeros((1, height, width), bool)
            if window.width * window.height > _MAX_RESAMPLED_PIXELS:
                resampling = gdal.GRIORA_NearestNeighbour
        try:
            self._resampled(window, values, resampling)
            masks = [mask.ReadAsArray(*inside, buf_xsize=width, buf_ysize=height) > 0 for mask in self._masks]
        except RuntimeError as error:
            raise ClippanError(
                "The raster {path} could not be read; check whether its file is complete ({reason}).",
                path=self.path,
                reason=one_line(error),
            ) from error
        valid = np.stack(masks) if masks else np.ones((1, height, width), bool)
        return values, valid if written is None else valid & written

    def _resampled(self, window: Window, values: np.ndarray, resampling: int) -> None:
        """Reads the bands of a window into an array (bands, height, width)."""
        inside, bands = (window.x, window.y, window.width, window.height), list(self.bands)
        retagged = is_retagged(self._original)
        if retagged and window.width * window.height > _MAX_PIXELS_IN_MEMORY:
            retagged, resampling = False, gdal.GRIORA_NearestNeighbour
        if not retagged or values.shape[1:] == (window.height, window.width):
            self._dataset.ReadAsArray(*inside, band_list=bands, buf_obj=values, resample_alg=resampling)
            return
        whole = np.empty((len(bands), window.height, window.width), values.dtype)
        self._dataset.ReadAsArray(*inside, band_list=bands, buf_obj=whole)
        gdal_array.OpenArray(whole).ReadAsArray(buf_obj=values, resample_alg=resampling)

    def _written_mask(self, window: Window, width: int, height: int) -> Optional[np.ndarray]:
        """Which pixels of a picture (height, width) of a window were written; None if all are."""
        occupancy = self.written.occupancy
        if occupancy is None:
            return None
        rows, columns = (
            first + (np.arange(count) + 0.5) * size / count
            for first, size, count in ((window.y, window.height, height), (window.x, window.width, width))
        )
        if window.width * window.height > _MAX_RESAMPLED_PIXELS:  # a window of the whole raster, for a report
            return occupancy.cells[
                np.ix_(rows.astype(int) // occupancy.cell_size, columns.astype(int) // occupancy.cell_size)
            ]
        written = self.written.written_mask(window)
        return None if written is None else written[np.ix_(rows.astype(int) - window.y, columns.astype(int) - window.x)]

    def _shown_pixels(self, values: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Which pixels (height, width) show something, of what ``_read`` returns."""
        valid: np.ndarray = np.any(masks, axis=0)
        return valid if self._is_uint8 else valid & is_valid_value(values).all(axis=0)

    def picture(self, window: Window, width: int, height: Optional[int] = None) -> tuple[np.ndarray, float]:
        """A window inside the raster as a picture; a square without ``height``. Raises ClippanError if GDAL fails.

        Returns:
            uint8 (3, height, width) in red, green and blue, or the channels, float32 (n, height, width), with invalid
                pixels in the mean colour; and the fraction of valid pixels.
        """
        picture, valid = self.picture_and_mask(window, width, height or width)
        valid_fraction = float(valid.mean())
        if 0 < valid_fraction < 1:
            picture[:, ~valid] = picture[:, valid].mean(axis=1, keepdims=True).astype(picture.dtype)
        return picture, valid_fraction

    def picture_and_mask(self, window: Window, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``picture``, with the valid pixels, bool (height, width); others hold any colour."""
        values, masks = self._read(window, width, height, gdal.GRIORA_Cubic)
        valid = self._shown_pixels(values, masks)
        if not valid.any():
            return empty_images(1, (height, width), self.channels)[0], valid
        if self.stretch:
            # A byte in float32 is exact enough, but not the difference of two values of a thousand million.
            low, high = np.array(self.stretch).T[:, :, None, None]
            scaled = np.clip(np.nan_to_num((values - low) / (high - low)), 0, 1)
            if self.channels:
                return scaled.astype(np.float32), valid
            values = (255 * scaled).astype(np.uint8)
        elif values.dtype != np.uint8:
            values = np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)
        return (values if len(values) == 3 else np.repeat(values, 3, axis=0)), valid

    def pixel_size_in_metres(self, pixel: Optional[tuple[float, float]] = None) -> Optional[tuple[float, float]]:
        """Width and height of a pixel on the ground at a pixel (the middle one by default), in metres; None without
        coordinates."""
        if not self.grid.crs:
            return None
        column, row = pixel or (self.grid.width / 2, self.grid.height / 2)
        try:
            transform = osr.CoordinateTransformation(spatial_reference(self.grid.crs), spatial_reference("EPSG:4326"))
            corners = [
                transform.TransformPoint(*gdal.ApplyGeoTransform(self.grid.geotransform, column + dx, row + dy))[:2]
                for dx, dy in ((0, 0), (1, 0), (0, 1))
            ]
        except RuntimeError:  # a local CRS, another planet
            return None
        longitude, latitude = corners[0]
        shrink = math.cos(math.radians(latitude))
        edges = [
            # the short way, also across the date line
            math.hypot(((x - longitude + 180) % 360 - 180) * shrink, y - latitude) * _METRES_PER_DEGREE
            for x, y in corners[1:]
        ]
        return (edges[0], edges[1]) if all(math.isfinite(edge) and edge > 0 for edge in edges) else None

    def _extent_boxes(self) -> list[tuple[float, float, float, float]]:
        """Left, top, right and bottom in pixels, from left to right: several at both edges of a raster of the world."""
        whole = (0.0, 0.0, float(self.grid.width), float(self.grid.height))
        if not self.options.extent:
            return [whole]
        inverse = gdal.InvGeoTransform(self.grid.geotransform)
        if inverse is None:
            raise ClippanError("The pixels of the raster {path} have no size; georeference it again.", path=self.path)
        found = []
        for box in extent_boxes(self.options.extent, self.options.crs, self.grid.crs):
            columns, rows = zip(*(gdal.ApplyGeoTransform(inverse, x, y) for x in box[::2] for y in box[1::2]))
            left, right = max(min(columns), 0.0), min(max(columns), whole[2])
            top, bottom = max(min(rows), 0.0), min(max(rows), whole[3])
            if left < right and top < bottom:
                found.append((left, top, right, bottom))
        if not found:
            raise ClippanError("The raster {path} lies outside the extent; choose another.", path=self.path)
        # Of boxes that are one place told in several ways, all but one may touch an edge by a rounding error.
        areas = [area for area in found if min(area[2] - area[0], area[3] - area[1]) > _ROUNDING] or found
        merged: list[tuple[float, float, float, float]] = []
        for left, top, right, bottom in sorted(areas):
            last = merged[-1] if merged else None
            if last and left <= last[2] + 1 and top <= last[3] + 1 and last[1] <= bottom + 1:
                merged[-1] = (last[0], min(last[1], top), max(last[2], right), max(last[3], bottom))
            else:
                merged.append((left, top, right, bottom))
        return merged

    def extent_window(self) -> Window:
        """The pixels that the extent touches; all without one. Raises ClippanError if it lies outside, or touches two
        edges."""
        (left, top, right, bottom), *others = self._extent_boxes()
        if others:
            raise ClippanError(
                "The extent touches the raster {path} at its left and its right edge, across the 180th meridian; give "
                "an extent for each side.",
                path=self.path,
            )
        x, y = math.floor(left + _ROUNDING), math.floor(top + _ROUNDING)
        return Window(x, y, max(math.ceil(right - _ROUNDING) - x, 1), max(math.ceil(bottom - _ROUNDING) - y, 1))

    def tile_plan(self, pixels: int) -> TilePlan:
        """The tiles of the scene; ``pixels`` is the edge of the model's pictures, the tile where nothing else is known.
        Raises ClippanError if it lies outside the extent, lacks coordinates for metres, or has too many tiles."""
        width, height = self.grid.width, self.grid.height
        areas = self._extent_boxes()
        left, top, right, bottom = areas[0]
        ground = self.pixel_size_in_metres(((left + right) / 2, (top + bottom) / 2))
        if self.options.tile_metres and ground is None:
            raise ClippanError(
                "The raster {path} has no coordinates; give the tile size in pixels (--tile).", path=self.path
            )
        if self.options.tile:
            edges = [(float(edge), float(edge)) for edge in self.options.tile]
        elif ground is None:
            edges = [(float(pixels), float(pixels))]
        else:
            gsd = math.sqrt(ground[0] * ground[1])
            metres = self.options.tile_metres or (_EDGE_AT_10_M * (gsd / 10) ** _EDGE_POWER,)
            edges = [(edge / ground[0], edge / ground[1]) for edge in metres]
        held = self.written.bounds
        areas = [
            (max(x, held.x), max(y, held.y), min(end, held.x + held.width), min(low, held.y + held.height))
            for x, y, end, low in areas
        ]
        layouts: list[TileLayout] = []
        for across, down in edges:
            # As a whole smaller where the raster is smaller, so that shapes keep their proportions.
            shrink = min(1.0, width / across, height / down)
            tile = (max(round(across * shrink), 1), max(round(down * shrink), 1))
            if any(tile == layout.size for layout in layouts):
                continue
            if min(across, down) < _MIN_TILE_EDGE:
                raise ClippanError(
                    "Tiles of {size:.2g} pixels are too small for the raster {path}; choose larger tiles.",
                    size=min(across, down),
                    path=self.path,
                )
            edge_length = tile[0] * ground[0] if ground else float(tile[0])
            columns = {
                x for area in areas for x in _tile_starts(width, tile[0], self.options.overlap, area[0], area[2])
            }
            rows = {y for area in areas for y in _tile_starts(height, tile[1], self.options.overlap, area[1], area[3])}
            layouts.append(TileLayout(tile, edge_length, tuple(sorted(columns)), tuple(sorted(rows))))
        plan = TilePlan(tuple(layouts), self.written.occupancy)
        if len(plan) > _MAX_TILES:
            raise ClippanError(
                "The raster {path} would have {count:,} tiles; choose an extent (--extent) or larger tiles.",
                path=self.path,
                count=len(plan),
            )
        return plan

    def date(self) -> str:
        """Acquisition date (2021-06-30) from metadata or file name; else empty."""
        texts = [self._original.GetMetadataItem(key, domain) or "" for domain, key in _DATE_KEYS]
        *stated, written = map(_DATE_IN_METADATA.match, texts)  # the last says when the file was written
        return next(filter(None, map(_iso_date, (*stated, _DATE_IN_NAME.search(Path(self.path).name), written))), "")

    def fingerprint(self) -> str:
        """A hash that changes with pixels, bands or place, but not when files move; empty for what is not in files.
        Overviews and .aux.xml files, which QGIS writes, are left out."""
        marks = []
        for name in sorted(source_files(self._original)):
            if not name.lower().endswith((".aux.xml", ".ovr")):
                state = gdal.VSIStatL(name)
                exact = Path(name).stat().st_mtime_ns if sources.exists(name) else state and state.mtime
                if state is not None:
                    marks.append(f"{Path(name).name}|{state.size}|{exact}")
        if not marks:
            return ""
        bands = [self._original.GetRasterBand(number + 1) for number in range(self._original.RasterCount)]
        marks += [f"{band.DataType}|{band.GetNoDataValue()}|{band.GetColorInterpretation()}" for band in bands]
        marks.append(f"{self.grid.width}|{self.grid.height}|{self.grid.geotransform}|{self.grid.crs}")
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()


class TileLayout(NamedTuple):
    """Where tiles of one size (width, height) in pixels lie: their edge in metres (pixels without coordinates), and the
    first columns and rows."""

    size: tuple[int, int]
    edge_length: float
    columns: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a scene, in a fixed order.

    Attributes:
        layouts: one for each size.
        occupancy: where the scene may hold data; None for everywhere.
    """

    layouts: tuple[TileLayout, ...]
    occupancy: Optional[OccupancyGrid] = field(default=None, compare=False)

    def __len__(self) -> int:
        return sum(len(columns) * len(rows) for _, _, columns, rows in self.layouts)

    def tiles(self, start: int = 0) -> Iterator[tuple[int, Window, float]]:
        """Number (from 0), window and edge of the tiles from the ``start``-th on, without those that hold no data, but
        for the last."""
        before, last = 0, len(self) - 1
        for (width, height), edge_length, columns, rows in self.layouts:
            for y in rows if columns else ():
                end = before + len(columns)
                strip = Window(columns[0], y, columns[-1] + width - columns[0], height)
                if end > start and (end > last or self._may_contain_data(strip)):
                    first = max(start - before, 0)
                    for number, x in enumerate(columns[first:], before + first):
                        window = Window(x, y, width, height)
                        if number == last or self._may_contain_data(window):
                            yield number, window, edge_length
                before = end

    def _may_contain_data(self, window: Window) -> bool:
        return self.occupancy is None or self.occupancy.may_contain_data(window)


def _tile_starts(size: int, tile: int, overlap: float, first: float, last: float) -> tuple[int, ...]:
    """Where tiles begin along an axis: evenly, the last one flush with the border, those only that touch a part."""
    step = max(round(tile * (1 - overlap)), 1)
    starts = range(0, max(size - tile, 0) + step, step)
    # Arithmetic instead of a list: a web map has a hundred million columns.
    begin = max(math.floor((first - tile) / step), 0)
    end = min(math.ceil(last / step) + 1, len(starts))
    kept = (min(starts[position], size - tile) for position in range(begin, end))
    return tuple(sorted({start for start in kept if start < last and start + tile > first}))


def _brightness_range(samples: np.ndarray) -> tuple[float, float]:
    """Values that become black and white, the same for all bands (bands, n), so that colours stay.

    From zero to twice the 98th percentile, which leaves the headroom for sand, roofs and clouds that training pictures
    have: Sentinel-2 reflectance comes out about as EuroSAT shows it. Without a zero in reach (counts with an offset,
    decibels) between the percentiles.
    """
    low, common, high = np.percentile(samples, (_PERCENTILES[0], _COMMON_PERCENTILE, _PERCENTILES[1]))
    return (0.0, _HEADROOM * common) if 0 <= low < common / 3 else (low, high)


def _reflectance_range(band: gdal.Band, quantity: sources.BandInfo) -> tuple[float, float]:
    """Values of reflectance 0 and of white by the stated scale and offset, else integers are 10,000 × reflectance."""
    scale, offset = quantity.scale, quantity.offset
    if (scale, offset) != (1.0, 0.0):
        return -offset / scale, (_WHITE_REFLECTANCE - offset) / scale
    whole = np.issubdtype(gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType), np.integer)
    return 0.0, _WHITE_REFLECTANCE * (_REFLECTANCE_SCALE if whole else 1.0)


def _with_nodata_and_colours(dataset: gdal.Dataset, nodata: Optional[float]) -> gdal.Dataset:
    """The dataset with nodata as its pixels hold it (``nodata`` overrides), and its palette expanded to colours."""
    first = dataset.GetRasterBand(1)
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    values = [band_nodata(band, nodata) for band in bands]
    if any(value is not None and not is_same_value(value, band.GetNoDataValue()) for value, band in zip(values, bands)):
        dataset = gdal.Translate("", dataset, format="VRT")
        for number, value in enumerate(values, 1):
            if value is not None:
                dataset.GetRasterBand(number).SetNoDataValue(value)
    if dataset.RasterCount == 1 and first.GetColorTable() is not None:
        dataset = gdal.Translate("", dataset, format="VRT", rgbExpand="rgba")
    return dataset


def _mask_bands(dataset: gdal.Dataset, numbers: Sequence[int]) -> list[gdal.Band]:
    """Bands that mark valid pixels; empty if all are valid. With nodata values, a pixel is missing if it is in every
    band: water has no red, and 0 there."""
    alpha = sources.alpha_band(dataset)
    if alpha is not None:
        return [alpha]
    bands = [dataset.GetRasterBand(number) for number in numbers]
    if any(band.GetMaskFlags() & gdal.GMF_ALL_VALID for band in bands):
        return []
    whole = bands[0].GetMaskFlags() & gdal.GMF_PER_DATASET
    return [band.GetMaskBand() for band in (bands[:1] if whole else bands)]


def _iso_date(match: Optional[re.Match[str]]) -> str:
    try:
        return datetime.date(*(int(part) for part in match.groups())).isoformat() if match else ""
    except ValueError:
        return ""


def spatial_reference(text: str) -> osr.SpatialReference:
    """The horizontal part of a CRS from WKT or ``EPSG:4326``, with x before y; raises ClippanError for other texts."""
    reference = osr.SpatialReference()
    try:
        reference.SetFromUserInput(text)
    except RuntimeError:
        raise ClippanError("The CRS “{text}” is not known; write it like EPSG:4326.", text=text[:80]) from None
    reference = osr.SpatialReference(wkt=horizontal_crs(reference.ExportToWkt()))
    reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    return reference


def short_crs(crs: str) -> str:
    """A CRS as ``EPSG:32618`` where it has such a name, else as WKT; empty stays empty."""
    if not crs:
        return ""
    reference = spatial_reference(crs)
    authority, code = reference.GetAuthorityName(None), reference.GetAuthorityCode(None)
    return f"{authority}:{code}" if authority and code else crs


def transform_extent(extent: Sequence[float], source: str, target: str) -> tuple[float, ...]:
    """xmin, ymin, xmax, ymax in another CRS; raises ClippanError if a CRS is unknown or does not reach there."""
    one, other = spatial_reference(source), spatial_reference(target)
    if one.IsSame(other):
        return tuple(extent)
    with contextlib.suppress(RuntimeError):
        box = osr.CoordinateTransformation(one, other).TransformBounds(*extent, 21)
        if all(np.isfinite(box)):
            return tuple(box)
    raise ClippanError("The extent cannot be transformed to {crs}; choose another.", crs=other.GetName())


def longitude_period(crs: str) -> float:
    """Units of a CRS around the world: 360 for degrees, 0 where coordinates are not angles."""
    reference = spatial_reference(crs) if crs else None
    return round(2 * math.pi / reference.GetAngularUnits(), 6) if reference and reference.IsGeographic() else 0.0


def extent_boxes(extent: Sequence[float], source: str, target: str) -> list[tuple[float, ...]]:
    """An extent as boxes xmin, ymin, xmax, ymax in another CRS.

    In a geographic CRS an xmin above xmax crosses the 180th meridian (RFC 7946), and longitudes may start at -180 or 0,
    or go on beyond. So each side of that meridian has a box, in a geographic target also one full circle farther east
    and west. Raises ClippanError if a CRS is unknown or does not reach there, or xmin is above xmax and no longitude.

    Args:
        source: CRS of the extent; empty for the target's.
        target: empty where nothing has coordinates.
    """
    source = source if source and target else target
    round_source, round_target = longitude_period(source), longitude_period(target)
    if extent[0] >= extent[2] and not round_source:
        raise ClippanError("The extent is empty; write it as XMIN,YMIN,XMAX,YMAX.")
    pieces = _split_at_antimeridian(extent, round_source) if round_source else [tuple(extent)]
    if target:
        transformed, failures = [], []
        for piece in pieces:  # of which one may lie where the target does not reach
            try:
                transformed.append(transform_extent(piece, source, target))
            except ClippanError as error:
                failures.append(error)
        if failures and not transformed:
            raise failures[-1]
        pieces = transformed
    if not round_target:
        return pieces
    # What crosses the meridian comes out of a transformation with its xmin above its xmax.
    pieces = [half for piece in pieces for half in _split_at_antimeridian(piece, round_target)]
    return [(x0 + turn, y0, x1 + turn, y1) for turn in (0, round_target, -round_target) for x0, y0, x1, y1 in pieces]


def antimeridian_notes(extent: Sequence[float]) -> list[str]:
    """A sentence about an extent taken across the 180th meridian, which may be a typing error."""
    if not extent or extent[0] < extent[2]:
        return []
    return [
        Message(
            "The extent was taken across the 180th meridian, from {west:g} eastwards to {east:g}.",
            west=extent[0],
            east=extent[2],
        )
    ]


def _split_at_antimeridian(extent: Sequence[float], circle: float) -> list[tuple[float, ...]]:
    """An extent in a geographic CRS, cut at the 180th meridian, with longitudes from -180 to 180."""
    west, south, east, north = extent
    if west >= east:
        east = west + (east - west) % circle
    east = min(east, west + circle)
    parts: list[tuple[float, ...]] = []
    while west < east:
        turns = math.floor(west / circle + 0.5)  # from -180 on, how many whole ones
        edge = min(east, (turns + 0.5) * circle)
        parts.append((west - turns * circle, south, edge - turns * circle, north))
        west = edge
    return parts

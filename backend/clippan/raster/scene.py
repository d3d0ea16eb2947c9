"""A raster as models see it: which bands make the picture, how they are stretched, where its tiles lie."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from osgeo import gdal, gdal_array, osr

from clippan.channels import Channels
from clippan.colours import colour, natural_colours
from clippan.errors import ClippanError
from clippan.fusion import sensors
from clippan.jobs.options import Stretch
from clippan.raster import source as sources
from clippan.raster.files import files
from clippan.raster.grid import Grid
from clippan.raster.tiles import Window

PLACED = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # where QGIS shows a picture without coordinates
LEAST_VALID = 0.5  # of a tile's pixels, below which it says nothing about the place

_GEOGRAPHIC = 4326
_METRES_PER_DEGREE = 111_320.0
_SAMPLE_WINDOWS, _SAMPLE_SIZE = 16, 64  # a stretch is estimated from 16 × 16 windows of 64 × 64 pixels
_PERCENTILES = (1.0, 99.0)
_COMMON, _HEADROOM = 98.0, 2.0  # the percentile that is common, and white as a multiple of it
_REFLECTANCE = 0.3  # what is shown as white
_REFLECTANCE_SCALE = 10_000.0  # of whole numbers; the usual one
_MOST_TILES = 20_000_000
_NEAR = 1e-3  # of a pixel: an extent that reaches so little further has been rounded
_LEAST_TILE = 8.0  # pixels; less than that says nothing
# EuroSAT shows 64 pixels at 10 m, UC Merced 256 at 0.3 m; between and beyond them the same power law.
_EDGE_AT_10_M, _EDGE_POWER = 640.0, 0.6
_EXTENSIONS = tuple(
    ".tif .tiff .vrt .jp2 .png .jpg .jpeg .img .bmp .webp .nc .ecw .sid .bil .bsq .ers .kea".split()  # noqa: SIM905
)
_ACQUIRED = (
    ("IMAGERY", "ACQUISITIONDATETIME"),
    ("", "DATE_ACQUIRED"),
    ("", "ACQUISITION_DATE"),
    ("", "SENSING_TIME"),
    ("", "PRODUCT_START_TIME"),
    ("", "EXIF_DateTimeOriginal"),
    ("", "EXIF_DateTime"),
)
_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_WRITTEN = re.compile(r"^(\d{4})[-:/]?(\d\d)[-:/]?(\d\d)")


@dataclass(frozen=True)
class Look:
    """How tiles are cut, and how they become pictures: what the user asked for.

    Attributes:
        tile: edges in pixels.
        tile_metres: edges in metres; where both are empty, what suits the ground resolution.
        overlap: of neighbours, as a part of their edge.
        bands: for red, green and blue, or one for grey; empty means natural colours.
        stretch: how values become brightness.
        nodata: overrides what the raster declares.
        extent: only tiles that touch it, xmin, ymin, xmax, ymax; empty for all.
        crs: of the extent; empty means the raster's.
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
    def area(self) -> tuple[Any, ...]:
        """Which part of a raster: the extent with its CRS; empty for all."""
        return (*self.extent, self.crs) if self.extent else ()

    def text(self) -> str:
        """As JSON, to compare and to keep."""
        return json.dumps({**asdict(self), "stretch": self.stretch.value}, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Look:
        """From JSON."""
        values: dict[str, Any] = json.loads(text)
        lists = {name: tuple(values[name]) for name in ("tile", "tile_metres", "bands", "extent")}
        return cls(**{**values, **lists, "stretch": Stretch(values["stretch"])})


def room(count: int, shape: tuple[int, int], channels: Optional[Channels]) -> np.ndarray:
    """Room for so many pictures of this height and width: uint8 (count, 3, …), or of channels float32 (count, n, …)."""
    bands, kind = (len(channels.names), np.float32) if channels else (3, np.uint8)
    return np.zeros((count, bands, *shape), kind)


def expand(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rasters that files, folders (with all below them) and data sources stand for, each once.

    Returns:
        The rasters, as absolute paths where they are files, and a sentence for each folder without any.
    """
    found: dict[str, str] = {}  # by the file itself: a link to it is no other raster
    failed = []

    def add(path: str) -> None:
        found.setdefault(os.path.realpath(path), os.path.abspath(path))  # noqa: PTH100 (resolve follows links)

    for name in names:
        folder = Path(name)
        if not (name.strip() and sources.exists(name) and folder.is_dir()):
            if sources.exists(name):
                add(name)
            else:
                found[name] = name
            continue
        inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS and path.is_file())
        if not inside:
            failed.append(f"The folder {name} holds no rasters; choose another.")
        for path in inside:
            add(str(path))
    return list(found.values()), failed


def is_missing(path: str) -> bool:
    """Whether this names a file that is not there; of other data sources nobody knows."""
    return Path(path).is_absolute() and not path.startswith("/vsi") and not sources.exists(path)


class Scene:
    """An open raster that gives pictures of its windows. To be used in one thread.

    Args:
        path: file or GDAL data source.
        look: how it becomes pictures.
        stretch: the values that become black and white, one pair a band; None to find them.
        channels: of a model that takes other bands: then pictures have these, as float32 from 0 to 1, and neither the
            look's bands nor its stretch count.

    Attributes:
        grid: its pixels; a picture without coordinates is placed as QGIS places it, y up from its top.
        own_grid: the same, but of a picture without coordinates as it is.
        bands: which bands are red, green and blue, or the one that is grey, or those of the channels.

    Raises:
        ClippanError: it cannot be read, or has not these bands.
    """

    def __init__(
        self,
        path: str,
        look: Look,
        stretch: Optional[tuple[tuple[float, float], ...]] = None,
        channels: Optional[Channels] = None,
    ) -> None:
        self.path = path
        self.look = look
        self.channels = channels
        self._stretch = channels.stretch if channels else stretch
        # Opened twice, so that what it is called does not depend on how it is prepared.
        self._original = sources.open_dataset(path, "raster")
        self._dataset = _prepared(self._original, look.nodata)
        self.own_grid = Grid.of(self._dataset)
        placed = Grid(self.own_grid.width, self.own_grid.height, PLACED, "")
        self.grid = self.own_grid if self.own_grid.geotransform else placed
        self.bands = self._choose()
        bands = [self._dataset.GetRasterBand(number) for number in self.bands]
        if any(gdal.DataTypeIsComplex(band.DataType) for band in bands):
            raise ClippanError(f"The raster {path} has complex numbers; convert it to amplitude first.")
        self._bytes = all(band.DataType == gdal.GDT_Byte for band in bands)
        self._masks = _masks(self._dataset, self.bands)

    @property
    def stretch(self) -> tuple[tuple[float, float], ...]:
        """Values that become black and white, (low, high) a band; empty where the bytes are shown as they are."""
        if self._stretch is None:  # only who asks pays for reading samples
            self._stretch = self._find_stretch()
        return self._stretch

    def _choose(self) -> tuple[int, ...]:
        dataset = self._dataset
        numbers = sources.spectral(dataset)
        if not numbers:
            raise ClippanError(f"The raster {self.path} has only an alpha band; choose a raster with image bands.")
        if self.channels:
            described = [dataset.GetRasterBand(number).GetDescription() or "" for number in numbers]
            return tuple(numbers[position - 1] for position in self.channels.choose(described))
        wrong = [band for band in self.look.bands if band > dataset.RasterCount]
        if wrong:
            raise ClippanError(
                f"Band {wrong[0]} was asked for but the raster {self.path} has {dataset.RasterCount}; choose others."
            )
        if self.look.bands:
            return self.look.bands
        interpreted = {gdal.GCI_RedBand: "red", gdal.GCI_GreenBand: "green", gdal.GCI_BlueBand: "blue"}
        names = []
        for number in numbers:
            band = dataset.GetRasterBand(number)
            names.append(colour(band.GetDescription() or "") or interpreted.get(band.GetColorInterpretation()))
        sensor = sensors.recognise(sources.sensor_hints(self._original, self.path))
        order = sensor.bands if sensor is not None and len(sensor.bands) == len(numbers) else ()
        return tuple(numbers[position - 1] for position in natural_colours(names, order, len(numbers)))

    def _find_stretch(self) -> tuple[tuple[float, float], ...]:
        wanted = self.look.stretch
        if wanted is Stretch.NONE or (wanted is Stretch.AUTO and self._bytes):
            return ()
        if wanted is Stretch.REFLECTANCE:
            types = [self._dataset.GetRasterBand(number).DataType for number in self.bands]
            whole = all(np.issubdtype(gdal_array.GDALTypeCodeToNumericTypeCode(code), np.integer) for code in types)
            return ((0.0, _REFLECTANCE * (_REFLECTANCE_SCALE if whole else 1.0)),) * len(self.bands)
        samples = self.sample().astype(np.float64)
        if not samples.shape[1]:
            return ((0.0, 1.0),) * len(self.bands)
        if wanted is Stretch.PERCENTILE:
            low, high = np.percentile(samples, _PERCENTILES, axis=1)
        else:
            low, high = (np.full(len(self.bands), value) for value in _exposure(samples))
        return tuple((float(a), float(b if b > a else np.nextafter(a, np.inf))) for a, b in zip(low, high))

    def sample(self) -> np.ndarray:
        """Valid values (bands, n) from windows all over the raster: reading all of it could take an hour."""
        size = _SAMPLE_SIZE
        columns = sorted({int(x) for x in np.linspace(0, max(self.grid.width - size, 0), _SAMPLE_WINDOWS)})
        rows = sorted({int(y) for y in np.linspace(0, max(self.grid.height - size, 0), _SAMPLE_WINDOWS)})
        parts = []
        for y in rows:
            for x in columns:
                window = Window(x, y, min(size, self.grid.width - x), min(size, self.grid.height - y))
                values, valid = self._read(window, window.width, window.height, gdal.GRIORA_NearestNeighbour)
                parts.append(values[:, valid])
        return np.concatenate(parts, axis=1)

    def _read(self, window: Window, width: int, height: int, resampling: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (bands, height, width), float32 or bytes, and which pixels are valid (height, width)."""
        inside = (window.x, window.y, window.width, window.height)
        kind = np.uint8 if self._bytes else np.float32
        values = np.empty((len(self.bands), height, width), kind)
        try:
            self._dataset.ReadAsArray(*inside, band_list=list(self.bands), buf_obj=values, resample_alg=resampling)
            valid = np.full((height, width), not self._masks)
            for mask in self._masks:
                valid |= mask.ReadAsArray(*inside, buf_xsize=width, buf_ysize=height) > 0
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ClippanError(
                f"The raster {self.path} could not be read; check whether its file is complete ({reason})."
            ) from error
        if not self._bytes:
            valid &= np.isfinite(values).all(axis=0)
        return values, valid

    def picture(self, window: Window, width: int, height: Optional[int] = None) -> tuple[np.ndarray, float]:
        """A window as a picture.

        Args:
            window: inside the raster.
            width, height: of the picture; without a height it is a square.

        Returns:
            Red, green and blue, uint8 (3, height, width), or the channels, float32 (n, height, width), and the valid
            part of its pixels, 0 to 1. Invalid pixels have the mean colour of the others.

        Raises:
            ClippanError: GDAL could not read.
        """
        picture, valid = self.pixels(window, width, height or width)
        part = float(valid.mean())
        if 0 < part < 1:
            picture[:, ~valid] = picture[:, valid].mean(axis=1, keepdims=True).astype(picture.dtype)
        return picture, part

    def pixels(self, window: Window, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``picture``, with which pixels are valid, (height, width); what the others show means nothing."""
        values, valid = self._read(window, width, height, gdal.GRIORA_Cubic)
        if not valid.any():
            return room(1, (height, width), self.channels)[0], valid
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

    def ground(self, place: Optional[tuple[float, float]] = None) -> Optional[tuple[float, float]]:
        """Width and height of a pixel on the ground, in metres, at a pixel (the middle one by default).

        None for a picture without coordinates.
        """
        if not self.grid.crs:
            return None
        column, row = place or (self.grid.width / 2, self.grid.height / 2)
        try:
            transform = osr.CoordinateTransformation(spatial(self.grid.crs), spatial(f"EPSG:{_GEOGRAPHIC}"))
            places = [
                transform.TransformPoint(*gdal.ApplyGeoTransform(self.grid.geotransform, column + dx, row + dy))[:2]
                for dx, dy in ((0, 0), (1, 0), (0, 1))
            ]
        except RuntimeError:  # a local CRS, another planet
            return None
        longitude, latitude = places[0]
        shrink = math.cos(math.radians(latitude))
        edges = [
            # the short way, also across the date line
            math.hypot(((x - longitude + 180) % 360 - 180) * shrink, y - latitude) * _METRES_PER_DEGREE
            for x, y in places[1:]
        ]
        return (edges[0], edges[1]) if all(math.isfinite(edge) and edge > 0 for edge in edges) else None

    def _area(self) -> tuple[float, float, float, float]:
        """What is to be covered, in columns and rows: left, top, right, bottom."""
        whole = (0.0, 0.0, float(self.grid.width), float(self.grid.height))
        box = self.look.extent
        if not box:
            return whole
        if self.look.crs and self.grid.crs:
            box = transformed(box, self.look.crs, self.grid.crs)
        inverse = gdal.InvGeoTransform(self.grid.geotransform)
        if inverse is None:
            raise ClippanError(f"The raster {self.path} has pixels without a size; georeference it anew.")
        corners = [gdal.ApplyGeoTransform(inverse, x, y) for x in box[::2] for y in box[1::2]]
        columns, rows = [corner[0] for corner in corners], [corner[1] for corner in corners]
        left, right = max(min(columns), 0.0), min(max(columns), whole[2])
        top, bottom = max(min(rows), 0.0), min(max(rows), whole[3])
        if left >= right or top >= bottom:
            raise ClippanError(f"The raster {self.path} lies outside the extent; choose another.")
        return left, top, right, bottom

    def part(self) -> Window:
        """The pixels that the extent touches; all without one.

        Raises:
            ClippanError: it lies outside the extent.
        """
        left, top, right, bottom = self._area()
        x, y = math.floor(left + _NEAR), math.floor(top + _NEAR)
        return Window(x, y, max(math.ceil(right - _NEAR) - x, 1), max(math.ceil(bottom - _NEAR) - y, 1))

    def windows(self, pixels: int) -> Plan:
        """Where its tiles lie.

        Args:
            pixels: edge of the model's pictures: the tile where nothing else is known.

        Raises:
            ClippanError: it lies outside the extent, has no coordinates to measure metres, or too many tiles.
        """
        width, height = self.grid.width, self.grid.height
        left, top, right, bottom = self._area()
        ground = self.ground(((left + right) / 2, (top + bottom) / 2))
        if self.look.tile_metres and ground is None:
            raise ClippanError(f"The raster {self.path} has no coordinates; give the tile size in pixels (--tile).")
        if self.look.tile:
            edges = [(float(edge), float(edge)) for edge in self.look.tile]
        elif ground is None:
            edges = [(float(pixels), float(pixels))]
        else:
            gsd = math.sqrt(ground[0] * ground[1])
            metres = self.look.tile_metres or (_EDGE_AT_10_M * (gsd / 10) ** _EDGE_POWER,)
            edges = [(edge / ground[0], edge / ground[1]) for edge in metres]
        scales: list[tuple[tuple[int, int], float, tuple[int, ...], tuple[int, ...]]] = []
        for across, down in edges:
            # As a whole smaller where the raster is smaller, so that shapes keep their proportions.
            shrink = min(1.0, width / across, height / down)
            tile = (max(round(across * shrink), 1), max(round(down * shrink), 1))
            if any(tile == known for known, *_ in scales):
                continue
            if min(across, down) < _LEAST_TILE:
                raise ClippanError(
                    f"Tiles of {min(across, down):.2g} pixels show nothing of the raster {self.path}; choose larger."
                )
            scale = tile[0] * ground[0] if ground else float(tile[0])
            columns = _starts(width, tile[0], self.look.overlap, left, right)
            rows = _starts(height, tile[1], self.look.overlap, top, bottom)
            scales.append((tile, scale, columns, rows))
        plan = Plan(tuple(scales))
        if len(plan) > _MOST_TILES:
            raise ClippanError(
                f"The raster {self.path} would have {len(plan):,} tiles; choose an extent (--extent) or larger tiles."
            )
        return plan

    def date(self) -> str:
        """When it was taken, as 2021-06-30, as far as metadata or the file's name tell; else empty."""
        for domain, key in _ACQUIRED:
            match = _WRITTEN.match(self._original.GetMetadataItem(key, domain) or "")
            day = _day(match)
            if day:
                return day
        return _day(_IN_NAME.search(Path(self.path).name)) or _day(
            _WRITTEN.match(self._original.GetMetadataItem("TIFFTAG_DATETIME") or "")
        )

    def fingerprint(self) -> str:
        """Changes when its pixels or their place do, but not when it is moved; empty for what is not in files.

        Overviews and side files, where QGIS keeps statistics, do not count, but what they may say of the raster does.
        """
        marks = []
        for name in sorted(files(self._original)):
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


@dataclass(frozen=True)
class Plan:
    """The tiles of a scene, in a fixed order: for each scale its size in pixels, its edge in metres (in pixels
    without coordinates), and the first columns and rows."""

    scales: tuple[tuple[tuple[int, int], float, tuple[int, ...], tuple[int, ...]], ...]

    def __len__(self) -> int:
        return sum(len(columns) * len(rows) for _, _, columns, rows in self.scales)

    def tiles(self, start: int = 0) -> Iterator[tuple[Window, float]]:
        """Windows and their edges, from the ``start``-th on."""
        for (width, height), scale, columns, rows in self.scales:
            count = len(columns) * len(rows)
            for position in range(min(start, count), count):
                y, x = divmod(position, len(columns))
                yield Window(columns[x], rows[y], width, height), scale
            start = max(start - count, 0)


def _starts(size: int, tile: int, overlap: float, first: float, last: float) -> tuple[int, ...]:
    """Where tiles begin along an axis: evenly, the last one flush with the border, those only that touch a part."""
    step = max(round(tile * (1 - overlap)), 1)
    starts = range(0, max(size - tile, 0) + step, step)
    # Arithmetic instead of a list: a web map has a hundred million columns.
    begin = max(math.floor((first - tile) / step), 0)
    end = min(math.ceil(last / step) + 1, len(starts))
    kept = (min(starts[position], size - tile) for position in range(begin, end))
    return tuple(sorted({start for start in kept if start < last and start + tile > first}))


def _exposure(samples: np.ndarray) -> tuple[float, float]:
    """Values (bands, n) that become black and white, the same for all bands, so that colours stay.

    Light has a zero, and the pictures that models learn from leave room above what is common, for sand, roofs and
    clouds: Sentinel-2 reflectance comes out about as EuroSAT shows it. What has no zero in reach (counts with an
    offset, decibels) is shown between its percentiles.
    """
    low, common, high = np.percentile(samples, (_PERCENTILES[0], _COMMON, _PERCENTILES[1]))
    return (0.0, _HEADROOM * common) if 0 <= low < common / 3 else (low, high)


def _prepared(dataset: gdal.Dataset, nodata: Optional[float]) -> gdal.Dataset:
    """The dataset with another nodata value, if its pixels can have it, and with its palette as colours."""
    first = dataset.GetRasterBand(1)
    kind = np.dtype(gdal_array.GDALTypeCodeToNumericTypeCode(first.DataType) or np.float32)
    value = sources.fitting(nodata, kind)
    if value is not None:
        dataset = gdal.Translate("", dataset, format="VRT", noData=value)
    if dataset.RasterCount == 1 and first.GetColorTable() is not None:
        dataset = gdal.Translate("", dataset, format="VRT", rgbExpand="rgba")
    return dataset


def _masks(dataset: gdal.Dataset, numbers: Sequence[int]) -> list[gdal.Band]:
    """Bands that say which pixels are valid, where any of them says so; empty if all are.

    Where bands have nodata values, a pixel is missing if it is in each: water has no red, and a value of 0 there.
    """
    alpha = sources.alpha_band(dataset)
    if alpha is not None:
        return [alpha]
    bands = [dataset.GetRasterBand(number) for number in numbers]
    if any(band.GetMaskFlags() & gdal.GMF_ALL_VALID for band in bands):
        return []
    whole = bands[0].GetMaskFlags() & gdal.GMF_PER_DATASET
    return [band.GetMaskBand() for band in (bands[:1] if whole else bands)]


def _day(match: Optional[re.Match[str]]) -> str:
    try:
        return datetime.date(*(int(part) for part in match.groups())).isoformat() if match else ""
    except ValueError:
        return ""


def spatial(text: str) -> osr.SpatialReference:
    """A CRS from WKT or ``EPSG:4326``, with x before y.

    Raises:
        ClippanError: it is none.
    """
    reference = osr.SpatialReference()
    try:
        reference.SetFromUserInput(text)
    except RuntimeError:
        raise ClippanError(f"The CRS “{text[:80]}” is not known; write it like EPSG:4326.") from None
    reference.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    return reference


def name_of(crs: str) -> str:
    """A CRS as ``EPSG:32618`` where it has such a name, else as WKT; empty stays empty."""
    if not crs:
        return ""
    reference = spatial(crs)
    authority, code = reference.GetAuthorityName(None), reference.GetAuthorityCode(None)
    return f"{authority}:{code}" if authority and code else crs


def transformed(extent: Sequence[float], source: str, target: str) -> tuple[float, ...]:
    """An extent xmin, ymin, xmax, ymax in another CRS.

    Raises:
        ClippanError: a CRS is unknown, or does not reach there.
    """
    one, other = spatial(source), spatial(target)
    if one.IsSame(other):
        return tuple(extent)
    try:
        box = osr.CoordinateTransformation(one, other).TransformBounds(*extent, 21)
    except RuntimeError as error:
        raise ClippanError(f"The extent cannot be transformed to {other.GetName()}; choose another.") from error
    if not all(np.isfinite(box)):
        raise ClippanError(f"The extent cannot be transformed to {other.GetName()}; choose another.")
    return tuple(box)

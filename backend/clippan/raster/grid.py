"""Where a raster's pixels lie, and how two rasters lie to each other."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Optional

from osgeo import gdal, osr

from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.raster.alpha import source_name

PAN = Message("panchromatic raster")
MS = Message("multispectral raster")
IDENTITY = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TOLERANCE = 1e-3  # of a PAN pixel; geotransforms are rounded in many files
_RPC_AXES = {"SAMP": 0, "LINE": 1}  # prefixes of the RPC keywords that count pixels, by axis (columns, rows)

Rpc = tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=64)
def horizontal_crs(crs: str) -> str:
    """The horizontal part of a CRS, as WKT; empty stays empty.

    A vertical part does not say where a pixel lies. Left in a warp, GDAL takes pixel values for heights and converts
    them (feet to metres, a geoid added), whatever they are.
    """
    if not crs:
        return ""
    reference = osr.SpatialReference(wkt=crs)
    if reference.GetAxesCount() < 3:
        return crs
    reference.DemoteTo2D()
    return reference.ExportToWkt()


@dataclass(frozen=True)
class Grid:
    """Where pixels lie.

    Attributes:
        width, height: in pixels.
        geotransform: GDAL's; None for a picture without one.
        crs: WKT as declared; empty if unknown.
        rpc: rational polynomial coefficients (keyword, value) of a raster without a geotransform, GDAL's keywords.
    """

    width: int
    height: int
    geotransform: Optional[tuple[float, ...]]
    crs: str
    rpc: Rpc = field(default=(), compare=False)

    @classmethod
    def of(cls, dataset: gdal.Dataset) -> Grid:
        """The grid of an open dataset; raises ClippanError for control points that fit no grid, and for geolocation
        arrays."""
        geotransform = dataset.GetGeoTransform(can_return_null=True)
        crs = dataset.GetProjection() or ""
        rpc: Rpc = ()
        if geotransform is not None and tuple(geotransform) == IDENTITY:
            geotransform = None
        if geotransform is None and dataset.GetGCPCount():
            geotransform = gdal.GCPsToGeoTransform(dataset.GetGCPs(), False)
            crs = dataset.GetGCPProjection() or ""
            if geotransform is None:
                raise ClippanError(
                    "The raster {path} has ground control points and no pixel grid; warp it first (Raster > "
                    "Projections > Warp).",
                    path=source_name(dataset),
                )
        if geotransform is None:
            if dataset.GetMetadata("GEOLOCATION"):
                raise ClippanError(
                    "The raster {path} has no geotransform: it is a swath with "
                    "geolocation arrays; warp it first (gdalwarp -geoloc).",
                    path=source_name(dataset),
                )
            rpc = _read_rpc(dataset)
        return cls(dataset.RasterXSize, dataset.RasterYSize, geotransform, crs, rpc)

    def shares_crs(self, other: Grid) -> bool:
        """Whether both lie in the same horizontal coordinate reference system."""
        own, there = horizontal_crs(self.crs), horizontal_crs(other.crs)
        if own == there or not (own and there):
            return own == there
        return bool(osr.SpatialReference(wkt=own).IsSame(osr.SpatialReference(wkt=there)))

    def cropped(self, left: int, top: int, right: int, bottom: int) -> Grid:
        """The grid of the columns left:right and rows top:bottom."""
        geotransform = None
        if self.geotransform:
            g = self.geotransform
            geotransform = (g[0] + left * g[1] + top * g[2], *g[1:3], g[3] + left * g[4] + top * g[5], *g[4:])
        rpc = _moved_rpc(self.rpc, (1.0, 1.0), (-float(left), -float(top)))
        return Grid(right - left, bottom - top, geotransform, self.crs, rpc)

    def pixel_offset_in(self, base: Grid, tolerance: float) -> Optional[tuple[int, int]]:
        """First pixel (column, row) in another grid's pixels; None if pixels differ by more than ``tolerance`` pixels.
        Both have a geotransform."""
        inverse = gdal.InvGeoTransform(base.geotransform)
        if inverse is None:
            return None
        # Corners, so that a difference in pixel size shows as what it adds up to.
        corners = [(0, 0), (self.width, 0), (0, self.height)]
        ground = [gdal.ApplyGeoTransform(self.geotransform, *corner) for corner in corners]
        pixels = [gdal.ApplyGeoTransform(inverse, *point) for point in ground]
        column, row = (round(position) for position in pixels[0])
        errors = [max(abs(x - column - dx), abs(y - row - dy)) for (x, y), (dx, dy) in zip(pixels, corners)]
        return (column, row) if max(errors) <= tolerance else None


def _read_rpc(dataset: gdal.Dataset) -> Rpc:
    """RPCs of a dataset; none if what they count in pixels is not written as numbers."""
    found = {key.upper(): value for key, value in (dataset.GetMetadata("RPC") or {}).items()}
    try:
        for keyword in ("SAMP_OFF", "SAMP_SCALE", "LINE_OFF", "LINE_SCALE"):
            float(found[keyword].split()[0])  # some write the unit after it
    except (KeyError, IndexError, ValueError):
        return ()
    return tuple(sorted(found.items()))


def _moved_rpc(rpc: Rpc, ratios: tuple[float, float], origins: tuple[float, float]) -> Rpc:
    """RPCs counted in other pixels: of the first ones, whose edges are ``ratios`` of the others', the first has its
    corner at ``origins``. RPCs count from the centre of the first pixel."""

    def moved(keyword: str, value: str) -> str:
        prefix, _, kind = keyword.upper().partition("_")
        if prefix not in _RPC_AXES or kind not in ("OFF", "SCALE"):
            return value
        ratio, origin = ratios[_RPC_AXES[prefix]], origins[_RPC_AXES[prefix]]
        number = float(value.split()[0])
        return repr(number * ratio if kind == "SCALE" else (number + 0.5) * ratio + origin - 0.5)

    if ratios == (1.0, 1.0) and origins == (0.0, 0.0):
        return rpc
    return tuple((keyword, moved(keyword, value)) for keyword, value in rpc)


@dataclass(frozen=True)
class AxisTransform:
    """One axis of the multispectral grid, measured on the output's (which is PAN's).

    The multispectral sample ``k`` has its centre at ``(k + 0.5) * ratio + origin`` output pixels, where the output
    pixel ``x`` has its own at ``x + 0.5``.

    Attributes:
        ratio: size of a multispectral pixel in output pixels, at least 1.
        origin: left (top) edge of the first multispectral pixel in output pixels.
    """

    ratio: float
    origin: float

    def shifted(self, distance: float) -> AxisTransform:
        return AxisTransform(self.ratio, self.origin + distance) if distance else self

    def pan_to_ms(self, position: float) -> float:
        """Multispectral index (fractional, at pixel centres) of an output pixel index."""
        return (position + 0.5 - self.origin) / self.ratio - 0.5

    def ms_to_pan(self, index: float) -> float:
        """Output pixel index (fractional, at pixel centres) of a multispectral index."""
        return (index + 0.5) * self.ratio + self.origin - 0.5


@dataclass(frozen=True)
class Alignment:
    """The overlap of a PAN and an MS grid, on PAN's pixels.

    Attributes:
        grid: the overlap: the output's grid.
        column, row: its first pixel in PAN.
        x_axis, y_axis: the multispectral axes on it.
    """

    grid: Grid
    column: int
    row: int
    x_axis: AxisTransform
    y_axis: AxisTransform


def align(pan: Grid, ms: Grid, fine: str = PAN, coarse: str = MS) -> Alignment:
    """Aligns the multispectral grid with the panchromatic one, both in one CRS.

    The output holds every PAN pixel whose centre lies inside MS; without georeference the two are aligned at their
    corners. ``fine`` and ``coarse`` are how sentences call the two. Raises ClippanError if they do not overlap, MS is
    finer, or they are rotated against each other.
    """
    x, y = relative_axes(pan, ms, fine, coarse)
    left, right = centres_inside(x, ms.width, pan.width)
    top, bottom = centres_inside(y, ms.height, pan.height)
    if right <= left or bottom <= top:
        raise ClippanError(
            "The {fine} and the {coarse} do not overlap; check that both show the same place and that their CRS are "
            "right.",
            fine=fine,
            coarse=coarse,
        )
    if min(x.ratio, y.ratio) < 1 - TOLERANCE:
        raise ClippanError(
            "The {coarse} has finer pixels than the {fine} (pixel size ratio {ratio:.3g}); check whether the two were "
            "swapped.",
            coarse=coarse,
            fine=fine,
            ratio=min(x.ratio, y.ratio),
        )
    x, y = x.shifted(-left), y.shifted(-top)
    overlap = pan.cropped(left, top, right, bottom)
    if not (overlap.rpc or overlap.geotransform):
        overlap = replace(overlap, rpc=_moved_rpc(ms.rpc, (x.ratio, y.ratio), (x.origin, y.origin)))
    return Alignment(overlap, left, top, x, y)


def relative_axes(pan: Grid, ms: Grid, fine: str = PAN, coarse: str = MS) -> tuple[AxisTransform, AxisTransform]:
    """Columns and rows of one grid on the pixels of the other, in one CRS; raises ClippanError, in which they are
    called ``fine`` and ``coarse``, if they are rotated or mirrored against each other, or only one has a
    georeference."""
    if pan.geotransform is None or ms.geotransform is None:
        if pan.geotransform or ms.geotransform:
            without, other = (fine, coarse) if pan.geotransform is None else (coarse, fine)
            raise ClippanError(
                "The {raster} has no georeference but the {other} has; give it one (gdal_translate -a_ullr) or remove "
                "the other's.",
                raster=without,
                other=other,
            )
        return AxisTransform(pan.width / ms.width, 0.0), AxisTransform(pan.height / ms.height, 0.0)
    inverse = gdal.InvGeoTransform(pan.geotransform)
    if inverse is None:
        raise ClippanError("The geotransform of the {raster} cannot be inverted; georeference it anew.", raster=fine)
    g = ms.geotransform
    column, row = gdal.ApplyGeoTransform(inverse, g[0], g[3])
    x_ratio, y_ratio = inverse[1] * g[1] + inverse[2] * g[4], inverse[4] * g[2] + inverse[5] * g[5]
    x_skew, y_skew = inverse[4] * g[1] + inverse[5] * g[4], inverse[1] * g[2] + inverse[2] * g[5]
    # Over the whole raster the skew may add up to a small part of a PAN pixel.
    if abs(x_skew) * ms.width > 0.1 or abs(y_skew) * ms.height > 0.1 or x_ratio <= 0 or y_ratio <= 0:
        raise ClippanError(
            "The {fine} and the {coarse} are rotated or mirrored against each other; warp both to north-up grids first "
            "(gdalwarp).",
            fine=fine,
            coarse=coarse,
        )
    return AxisTransform(x_ratio, column), AxisTransform(y_ratio, row)


def centres_inside(axis: AxisTransform, samples: int, limit: int) -> tuple[int, int]:
    """First and end pixel, of ``limit``, whose centres lie in the ``samples`` of an axis; none if end <= first."""
    first = math.ceil(axis.origin - 0.5 - TOLERANCE)
    last = math.floor(axis.origin + samples * axis.ratio - 0.5 + TOLERANCE)
    return max(first, 0), min(last + 1, limit)

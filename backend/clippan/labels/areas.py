"""Ground areas of pixels and of the classes of a map."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
from osgeo import osr

from clippan.catalogue.prompts import PromptTable
from clippan.core.outputs import Outputs, write_output
from clippan.jobs.segment import ClassArea
from clippan.labels.legend import UNCLASSIFIED
from clippan.raster.grid import Grid, horizontal_crs

SQUARE_METRES_PER_HECTARE = 10_000.0
_TOLERANCE = 0.01  # relative error of areas above which those of a projected CRS are corrected
_STEP = 32  # pixels between which areas are interpolated
_PROBES = 17  # points along each axis of a raster at which the error is measured


class PixelAreas:
    """Ground area of a raster's pixels.

    In a geographic CRS, areas are those on the ellipsoid (Snyder 1987, "Map projections: a working manual", eq. 3-12).
    In a projected CRS, they are those of its coordinates, which UTM preserves to about 0.1 %; if they differ by more
    than 1 % somewhere in the raster, as in Web Mercator, the areas on the ellipsoid are used.

    Attributes:
        known: whether areas are known; not without coordinates, or in an unknown CRS.
    """

    def __init__(self, grid: Grid) -> None:
        self._geotransform = grid.geotransform or ()
        self._planar_area: Optional[float] = None  # square metres of every pixel
        self._ellipsoid: Optional[tuple[float, float]] = None  # semi-major axis and squared eccentricity
        self._to_degrees: Optional[osr.CoordinateTransformation] = None
        self._radians = 0.0  # per unit of longitude and latitude
        if grid.geotransform and grid.crs:
            with contextlib.suppress(RuntimeError):  # a CRS that PROJ does not support
                self._prepare(grid)
        self.known = self._planar_area is not None or self._ellipsoid is not None

    def _prepare(self, grid: Grid) -> None:
        crs = osr.SpatialReference(wkt=horizontal_crs(grid.crs))
        crs.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
        g = self._geotransform
        if crs.IsProjected() or crs.IsLocal():
            self._planar_area = abs(g[1] * g[5] - g[2] * g[4]) * crs.GetLinearUnits() ** 2
        if not (crs.IsGeographic() or crs.IsProjected()):
            return
        degrees = crs if crs.IsGeographic() else crs.CloneGeogCS()
        degrees.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
        self._radians = degrees.GetAngularUnits()
        flattening = 1 / crs.GetInvFlattening() if crs.GetInvFlattening() else 0.0
        if crs.IsProjected():  # raises if PROJ does not know the projection
            self._to_degrees = osr.CoordinateTransformation(crs, degrees)
        self._ellipsoid = (crs.GetSemiMajor(), flattening * (2 - flattening))
        if self._planar_area is not None:
            columns, rows = (np.linspace(0.5, size - 0.5, _PROBES) for size in (grid.width, grid.height))
            ratios = self._ellipsoidal_areas(columns[None, :], rows[:, None]) / self._planar_area
            if not (np.abs(ratios - 1) > _TOLERANCE).any():
                self._ellipsoid = None

    def areas_in(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Areas in m² of the pixels of a window, in a shape that broadcasts to (height, width); NaN if unknown."""
        if self._ellipsoid is None:
            return np.full((1, 1), math.nan if self._planar_area is None else self._planar_area)
        rows = np.arange(y, y + height) + 0.5
        if self._to_degrees is None and self._geotransform[2] == self._geotransform[4] == 0:
            return self._ellipsoidal_areas(np.array([[x + 0.5]]), rows[:, None])
        columns = np.arange(x, x + width) + 0.5
        across, down = (np.linspace(axis[0], axis[-1], 2 + (len(axis) - 1) // _STEP) for axis in (columns, rows))
        coarse = self._ellipsoidal_areas(across[None, :], down[:, None])
        in_rows = np.stack([np.interp(columns, across, line) for line in coarse])
        return np.stack([np.interp(rows, down, line) for line in in_rows.T], axis=1)

    def _ellipsoidal_areas(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Areas on the ellipsoid of pixels with these centres, which are broadcast against each other."""
        assert self._ellipsoid is not None
        g = self._geotransform
        columns, rows = np.broadcast_arrays(columns, rows)
        corners = []
        for right, down in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
            x = g[0] + (columns + right) * g[1] + (rows + down) * g[2]
            y = g[3] + (columns + right) * g[4] + (rows + down) * g[5]
            if self._to_degrees is not None:
                points = self._to_degrees.TransformPoints(np.stack([x.ravel(), y.ravel()], axis=1).tolist())
                x, y = (np.array([point[axis] for point in points]).reshape(x.shape) for axis in (0, 1))
                x, y = np.where(np.isfinite(x), x, np.nan), np.where(np.isfinite(y), y, np.nan)
            corners.append((x * self._radians, _authalic_q(y * self._radians, self._ellipsoid[1])))
        # Longitude and authalic coordinate form an equal-area projection.
        (x1, y1), (x2, y2), (x3, y3), (x4, y4) = corners
        turn = 2 * math.pi
        one, other = ((a - b + math.pi) % turn - math.pi for a, b in ((x3, x1), (x4, x2)))  # across the antimeridian
        areas = self._ellipsoid[0] ** 2 / 2 * np.abs(one * (y4 - y2) - other * (y3 - y1)) / 2
        return areas if self._planar_area is None else np.where(np.isfinite(areas), areas, self._planar_area)


def _authalic_q(latitude: np.ndarray, squared_eccentricity: float) -> np.ndarray:
    """Snyder's q of a latitude in radians: the area of a zone is its range of longitude × a² / 2 × that of q."""
    sine = np.sin(np.clip(latitude, -math.pi / 2, math.pi / 2))
    if squared_eccentricity == 0:
        return 2 * sine
    e = math.sqrt(squared_eccentricity)
    return (1 - squared_eccentricity) * (sine / (1 - squared_eccentricity * sine**2) + np.arctanh(e * sine) / e)


class ClassAreaCounter:
    """Sums the area and confidence of a map's classes, window by window."""

    def __init__(self, table: PromptTable, grid: Grid) -> None:
        self._table = table.with_colours()
        self._pixel_areas = PixelAreas(grid)
        self._pixels = np.zeros(256, np.int64)
        self._metres = np.zeros(256)
        self._confidence = np.zeros(256)

    def add(self, x: int, y: int, classes: np.ndarray, confidence: np.ndarray, valid: np.ndarray) -> None:
        """Adds a window by the column and row of its first pixel, its classes uint8 (h, w), their confidence, 0 to 1,
        and which pixels are not nodata, bool (h, w). No pixel of the map may be added twice."""
        values = classes[valid]
        pixels = np.bincount(values, minlength=256)
        self._pixels += pixels
        self._confidence += np.bincount(values, confidence[valid], 256)
        height, width = classes.shape
        pixel_areas = self._pixel_areas.areas_in(x, y, width, height)
        if pixel_areas.size == 1:
            self._metres += np.where(pixels, pixels * pixel_areas.item(), 0)
        else:
            self._metres += np.bincount(values, np.broadcast_to(pixel_areas, classes.shape)[valid], 256)

    def result(self) -> tuple[ClassArea, ...]:
        """The classes in the order of their values, and last the unclassified pixels."""
        total = max(int(self._pixels.sum()), 1)
        classes = [
            *enumerate(((prompt.name, prompt.colour) for prompt in self._table.classes), 1),
            (0, (UNCLASSIFIED, "")),
        ]
        areas = []
        for value, (name, colour) in classes:
            pixels = int(self._pixels[value])
            hectares = float(self._metres[value]) / SQUARE_METRES_PER_HECTARE if self._pixel_areas.known else None
            mean = float(self._confidence[value]) / pixels if pixels else None
            areas.append(ClassArea(value, name, colour, pixels, pixels / total, hectares, mean))
        return tuple(areas)


def write_csv(path: str, areas: Sequence[ClassArea], outputs: Optional[Outputs] = None) -> None:
    """Writes the table as CSV, completely or not at all: with a byte order mark for Excel, and empty unknown numbers.
    Raises ClippanError if it cannot be written."""
    with write_output(path, outputs) as part, part.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["value", "class", "colour", "pixels", "percent", "hectares", "confidence"])
        for area in areas:
            numbers = (100 * area.share, area.hectares, area.confidence)
            texts = ("" if number is None else f"{number:.4f}" for number in numbers)
            writer.writerow([area.value, area.name, area.colour, area.pixels, *texts])

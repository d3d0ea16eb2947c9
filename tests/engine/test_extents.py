"""Extents across the 180th meridian, in whatever way rasters and users count longitudes."""

from __future__ import annotations

import numpy as np
import pytest

from clippan.core.errors import ClippanError
from clippan.handlers.index import _TileOutlines
from clippan.jobs import IndexRequest, SearchRequest, SegmentRequest
from clippan.raster.grid import Grid
from clippan.raster.rendering import Renderer, RenderOptions, extent_boxes, spatial_reference, transform_extent
from clippan.raster.tiles import Window
from clippan.search.heatmap import _unwrapped

WGS = "EPSG:4326"
ACROSS = (179.0, -18.0, -179.0, -16.0)  # two degrees of Fiji
# By CRS: a place on each side of the meridian lies in rasters of these, whose middle is on it.
KINDS = ["EPSG:32660", "EPSG:32601", "EPSG:3832", "0..360", "175..185"]


@pytest.fixture
def fiji(raster):
    """A raster of 400 × 400 pixels about 180°, -17°, in a CRS; its path."""

    def make(kind, size=400):
        values = np.random.default_rng(0).integers(0, 255, (3, size, size)).astype(np.uint8)
        if ".." in kind:
            west = 0.0 if kind == "0..360" else 175.0
            if west == 0:
                values = np.zeros((3, 90, 720), np.uint8) + 7  # half a degree
                return raster("world.tif", values, pixel=0.5, origin=(0.0, 5.0), epsg=4326)
            return raster("beyond.tif", values, pixel=10 / size, origin=(175.0, -12.0), epsg=4326)
        x0, y0, x1, y1 = (
            value
            for place in ((178.0, -20.0), (-178.0, -14.0))
            for value in transform_extent((*place, *place), WGS, kind)[:2]
        )
        pixel = max(x1 - x0, y1 - y0) / size
        return raster("metres.tif", values, pixel=pixel, origin=(x0, y1), epsg=int(kind[5:]))

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extent", [ACROSS, (179.0, -18.0, 181.0, -16.0), (-181.0, -18.0, -179.0, -16.0)])
def test_what_lies_across_the_meridian_is_found(fiji, kind, extent) -> None:
    scene = Renderer(fiji(kind), RenderOptions(extent=extent, crs=WGS))
    part = scene.extent_window()
    ground = scene.pixel_size_in_metres()
    assert part.width * ground[0] == pytest.approx(2 * 111_320 * np.cos(np.radians(17)), rel=0.06)
    middle = (part.x + part.width / 2, part.y + part.height / 2)
    assert part.height * ground[1] == pytest.approx(2 * 111_320, rel=0.06)
    assert 0 < part.x < middle[0] < part.x + part.width < scene.grid.width


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_alone_is_found(fiji, kind) -> None:
    path = fiji(kind)
    both = Renderer(path, RenderOptions(extent=ACROSS, crs=WGS)).extent_window()
    sides = [
        Renderer(path, RenderOptions(extent=box, crs=WGS)).extent_window()
        for box in ((179, -18, 180, -16), (-180, -18, -179, -16))
    ]
    assert sides[0].x == both.x
    assert abs(sides[1].x + sides[1].width - both.x - both.width) <= 1
    assert abs(sides[0].width + sides[1].width - both.width) <= 0.04 * both.width + 1


def test_a_raster_of_the_world_is_touched_at_both_edges(raster) -> None:
    path = raster("world.tif", np.zeros((3, 180, 360), np.uint8), pixel=1.0, origin=(-180.0, 90.0), epsg=4326)
    look = RenderOptions(extent=ACROSS, crs=WGS, tile=(10,), overlap=0.0)
    ((_, _, columns, rows),) = Renderer(path, look).tile_plan(10).layouts
    assert (columns, rows) == ((0, 350), (100,))
    with pytest.raises(ClippanError, match="at its left and its right edge"):
        Renderer(path, look).extent_window()
    whole = Renderer(path, RenderOptions(extent=(-180.0, -90.0, 180.0, 90.0), crs=WGS)).extent_window()
    assert whole == Window(0, 0, 360, 180)
    assert Renderer(path, RenderOptions(extent=(10.0, -20.0, 30.0, 40.0), crs=WGS)).extent_window() == Window(
        190, 50, 20, 60
    )
    # Greenwich, as those write it who count from 0
    assert Renderer(path, RenderOptions(extent=(350.0, -20.0, 10.0, 40.0))).extent_window() == Window(170, 50, 20, 60)


def test_an_extent_in_metres_is_never_turned_round() -> None:
    with pytest.raises(ClippanError, match="The extent is empty"):
        extent_boxes((100.0, 0.0, 50.0, 10.0), "EPSG:32660", WGS)
    with pytest.raises(ClippanError, match="The extent is empty"):
        extent_boxes((100.0, 0.0, 50.0, 10.0), "", "")
    assert extent_boxes((1.0, 2.0, 3.0, 4.0), "", "") == [(1.0, 2.0, 3.0, 4.0)]


@pytest.mark.parametrize(
    "request_",
    [
        lambda extent: SegmentRequest(raster="r.tif", classes="a; b", output="m.tif", extent=extent),
        lambda extent: IndexRequest(rasters=("r.tif",), output="i.gpkg", extent=extent),
        lambda extent: SearchRequest(index="i.gpkg", text=("a",), extent=extent),
    ],
)
def test_requests_take_extents_across_the_meridian(request_, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    request_(ACROSS).validate()
    for extent in ((170.0, 5.0, -170.0, 1.0), (170.0, 1.0, 170.0, 5.0), (500_000.0, 0.0, 400_000.0, 9.0)):
        with pytest.raises(ClippanError, match="The extent is empty"):
            request_(extent).validate()


def test_an_extent_in_metres_across_the_meridian_comes_out_as_two_sides() -> None:
    box = transform_extent(ACROSS, WGS, "EPSG:3832")
    found = extent_boxes(box, "EPSG:3832", WGS)
    for longitude in (179.5, -179.5, 180.5, -180.5):
        assert any(west < longitude < east for west, _, east, _ in found)
    assert not any(west < longitude < east for longitude in (0, 178, -178) for west, _, east, _ in found)


def grid(crs, place, pixel, width=100, height=100):
    return Grid(width, height, (place[0], pixel, 0, place[1], 0, -pixel), spatial_reference(crs).ExportToWkt())


def test_outlines_go_on_across_the_meridian_but_not_round_the_world() -> None:
    wkt = spatial_reference(WGS).ExportToWkt()
    x, y = transform_extent((179.5, -16.0, 179.5, -16.0), WGS, "EPSG:3832")[:2]
    outline = _TileOutlines(grid("EPSG:3832", (x, y), 1113.2), wkt).outline(Window(0, 0, 100, 100))
    assert outline[::2] == pytest.approx((179.5, 180.5, 180.5, 179.5), abs=0.01)
    world = _TileOutlines(grid("EPSG:3857", (-20037508.34, 20037508.34), 400750.1668), wkt)
    assert world.outline(Window(0, 0, 100, 100))[::2] == pytest.approx((-180, 180, 180, -180), abs=1e-3)
    plain = _TileOutlines(grid(WGS, (-180.0, 90.0), 3.6), wkt).outline(Window(0, 0, 100, 50))
    assert plain[::2] == (-180.0, 180.0, 180.0, -180.0)


def test_a_heat_map_across_the_meridian_is_small() -> None:
    places = np.array([[178.0, 0, 179, 1], [-179.0, 0, -178, 1], [179.5, 0, 180.5, 1]])
    found = _unwrapped(places, 360.0)
    assert (found[:, 0].min(), found[:, 2].max()) == (178.0, 182.0)
    assert (_unwrapped(places[:1], 360.0) == places[:1]).all()
    assert (_unwrapped(places, 0.0) == places).all()
    spread = np.array([[-100.0, 0, -90, 1], [100.0, 0, 110, 1], [0.0, 0, 10, 1]])
    assert (_unwrapped(spread, 360.0) == spread).all()

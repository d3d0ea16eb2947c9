"""What holds for every input: laws of grids, windows, band lists, nodata and JSON, tried on generated ones."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from osgeo import gdal, gdal_array
from strategies import of_type

from clippan.core.errors import ClippanError
from clippan.jobs import JOBS, from_json, parse_bands, to_json
from clippan.raster.grid import TOLERANCE, AxisTransform, Grid, align, centres_inside
from clippan.raster.nodata import FILL_MAGNITUDE, as_pixel_value, band_nodata, is_fill_value, is_valid_value
from clippan.raster.source import Source
from clippan.raster.tiles import Window, tiles

# Grids

sizes = st.integers(1, 5000)
coordinates = st.floats(-1e7, 1e7)
pixels = st.floats(1e-3, 1e3)
angles = st.sampled_from([0.0, 0.0, 0.1, 0.7, -1.2, math.pi])


@st.composite
def geotransforms(draw):
    pixel, angle = draw(pixels), draw(angles)
    across, down = pixel * math.cos(angle), pixel * math.sin(angle)
    return (draw(coordinates), across, down, draw(coordinates), down, -across)


@given(geotransforms(), sizes, sizes, st.data())
def test_a_cropped_grid_lies_where_it_was_cut_out(geotransform, width, height, data):
    grid = Grid(width, height, geotransform, "")
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    part = grid.cropped(left, top, right, bottom)
    assert (part.width, part.height) == (right - left, bottom - top)
    assert part.pixel_offset_in(grid, 0.01) == (left, top)
    for x, y in ((0, 0), (part.width, part.height)):
        found = gdal.ApplyGeoTransform(part.geotransform, x, y)
        assert found == pytest.approx(gdal.ApplyGeoTransform(geotransform, left + x, top + y), rel=1e-12, abs=1e-6)
    whole = part.cropped(-left, -top, width - left, height - top)
    assert whole.geotransform == pytest.approx(geotransform, rel=1e-12, abs=1e-6)


@given(
    geotransforms(),
    st.integers(2, 300),
    st.integers(2, 300),
    st.floats(1, 12),
    st.floats(-40, 40),
    st.floats(-40, 40),
    sizes,
    sizes,
)
def test_alignment_holds_the_pan_pixels_with_their_centre_inside_ms(
    geotransform, width, height, ratio, column, row, ms_width, ms_height
):
    g = geotransform
    corner = gdal.ApplyGeoTransform(g, column, row)
    pan = Grid(width, height, g, "")
    ms = Grid(ms_width, ms_height, (corner[0], g[1] * ratio, g[2] * ratio, corner[1], g[4] * ratio, g[5] * ratio), "")
    inside = [
        [n for n in range(size) if start <= n + 0.5 <= start + count * ratio]
        for size, start, count in ((width, column, ms_width), (height, row, ms_height))
    ]
    edges = [start + end for start, size in ((column, ms_width), (row, ms_height)) for end in (0, size * ratio)]
    assume(all(abs(edge - math.floor(edge) - 0.5) > 2 * TOLERANCE for edge in edges))  # else both are right
    if not all(inside):
        with pytest.raises(ClippanError, match="do not overlap"):
            align(pan, ms)
        return
    found = align(pan, ms)
    assert (found.column, found.row) == (inside[0][0], inside[1][0])
    assert (found.grid.width, found.grid.height) == (len(inside[0]), len(inside[1]))
    assert (found.x_axis.ratio, found.y_axis.ratio) == pytest.approx((ratio, ratio))
    # The centre of a pixel lies at the same place, whichever of the grids tells it.
    for k, m in ((0, 0), (ms_width - 1, ms_height - 1)):
        there = gdal.ApplyGeoTransform(ms.geotransform, k + 0.5, m + 0.5)
        here = found.grid.geotransform, found.x_axis.ms_to_pan(k) + 0.5, found.y_axis.ms_to_pan(m) + 0.5
        assert gdal.ApplyGeoTransform(*here) == pytest.approx(there, rel=1e-9, abs=1e-3 * abs(g[1] or g[2]))


@given(st.floats(1, 100), st.floats(-1e4, 1e4), st.floats(-1e5, 1e5), st.floats(-100, 100))
def test_positions_go_to_ms_and_back(ratio, offset, position, distance):
    axis = AxisTransform(ratio, offset)
    assert axis.ms_to_pan(axis.pan_to_ms(position)) == pytest.approx(position, abs=1e-6)
    assert axis.shifted(distance).ms_to_pan(0) == pytest.approx(axis.ms_to_pan(0) + distance, abs=1e-6)


@given(st.floats(0.1, 20), st.floats(-100, 100), st.integers(1, 200), st.integers(1, 300))
def test_pixels_with_their_centre_inside(ratio, offset, samples, limit):
    first, end = centres_inside(AxisTransform(ratio, offset), samples, limit)
    for pixel in range(limit):
        centre = pixel + 0.5
        if offset + TOLERANCE < centre < offset + samples * ratio - TOLERANCE:
            assert first <= pixel < end
        elif not offset - 2 * TOLERANCE <= centre <= offset + samples * ratio + 2 * TOLERANCE:
            assert not first <= pixel < end


# Windows

windows = st.builds(Window, st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 400), st.integers(1, 400))


def holds(window, other):
    return (
        window.x <= other.x
        and window.y <= other.y
        and window.x + window.width >= other.x + other.width
        and window.y + window.height >= other.y + other.height
    )


@given(windows, windows, windows)
def test_union_of_windows(one, other, third):
    both = one.union(other)
    assert both == other.union(one)
    assert holds(both, one)
    assert holds(both, other)
    assert one.union(one) == one
    assert both.union(third) == one.union(other.union(third))
    # No smaller one: each side is that of one of the two.
    assert both.x in (one.x, other.x)
    assert both.y + both.height in (one.y + one.height, other.y + other.height)


@given(windows, windows)
def test_intersection_of_windows(one, other):
    shared = one.intersection(other)
    assert holds(one, shared)
    assert shared.width >= 1
    assert shared.height >= 1
    columns = set(range(one.x, one.x + one.width)) & set(range(other.x, other.x + other.width))
    rows = set(range(one.y, one.y + one.height)) & set(range(other.y, other.y + other.height))
    if columns and rows:
        assert shared == Window(min(columns), min(rows), len(columns), len(rows)) == other.intersection(one)
    assert one.intersection(one.union(other)) == one


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_tiles_cover_each_pixel_once(width, height, size):
    seen = np.zeros((height, width), int)
    for tile in tiles(width, height, size):
        assert 0 < tile.width <= size
        assert 0 < tile.height <= size
        seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] += 1
    assert (seen == 1).all()


# Band lists

bands = st.integers(1, 500)
spans = st.tuples(bands, bands)


@given(st.lists(st.one_of(bands, spans), max_size=8), st.sampled_from([",", " ", ", ", ";", " ; ", "\t"]))
def test_band_lists(items, separator):
    text = separator.join("-".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in items)
    expected = []
    for item in items:
        first, last = item if isinstance(item, tuple) else (item, item)
        step = 1 if first <= last else -1
        expected += list(range(first, last + step, step))
    assert list(parse_bands(text)) == expected
    assert parse_bands(",".join(map(str, expected))) == tuple(expected)


@given(st.text(st.sampled_from("0123456789-,; ٣²x.+"), max_size=20) | st.text(max_size=10))
@example("²")
@example("٣-٥")
@example("9" * 5000)
def test_any_text_is_a_band_list_or_refused(text):
    found = ()
    with contextlib.suppress(ClippanError):
        found = parse_bands(text)
    assert all(isinstance(number, int) and number >= 0 for number in found)


# Nodata

INTEGERS = [np.dtype(name) for name in ("uint8", "int16", "uint16", "int32", "uint32")]
FLOATS = [np.dtype(name) for name in ("float32", "float64")]
numbers = st.one_of(
    st.floats(),
    st.integers(-(2**33), 2**33).map(float),
    st.sampled_from(
        [-9999.0, -32768.0, 65535.0, -3.4028235e38, -3.4028234663852886e38, -3.4e38, -1.7976931348623157e308]
    ),
)


@given(numbers, st.sampled_from(INTEGERS + FLOATS))
def test_a_fitting_nodata_value_is_one_that_a_pixel_can_have(value, dtype):
    found = as_pixel_value(value, dtype)
    if found is None:
        info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        fraction = dtype.kind != "f" and (not math.isfinite(value) or value != int(value))
        assert fraction or not float(info.min) <= value <= float(info.max)
        return
    assert as_pixel_value(found, dtype) == pytest.approx(found, nan_ok=True)
    with np.errstate(over="raise"):
        stored = dtype.type(found)
    assert stored == pytest.approx(value, rel=1e-6, nan_ok=True)
    if dtype.kind != "f":
        assert stored == value


@given(st.sampled_from(["-3.4028235e+38", "-3.40282346638528860e+38", "-3.402823466e+38", "-3.40282347e+38"]))
def test_all_spellings_of_the_least_float32_are_that(text):
    dtype = np.dtype("float32")
    found = as_pixel_value(float(text), dtype)
    assert np.float32(found) == np.finfo(np.float32).min
    assert is_fill_value(found, dtype)


@given(st.floats(width=32))
def test_measured_values(value):
    found = bool(is_valid_value(np.array(value, np.float32)))
    assert found == (math.isfinite(value) and abs(value) < FILL_MAGNITUDE)
    assert is_fill_value(value, np.dtype("float32")) == (not found)
    assert not is_fill_value(value, np.dtype("int32"))


def in_memory(values, nodata=None):
    """A raster in memory: values (bands, height, width)."""
    dataset = gdal.GetDriverByName("MEM").Create(
        "",
        values.shape[2],
        values.shape[1],
        len(values),
        gdal_array.NumericTypeCodeToGDALTypeCode(values.dtype),
    )
    dataset.WriteArray(values)
    if nodata is not None:
        for number in range(len(values)):
            dataset.GetRasterBand(number + 1).SetNoDataValue(nodata)
    return dataset


@given(
    st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    st.sampled_from([0.0, 1.0, 255.0, -9999.0, 0.5, -3.4028235e38, math.nan]),
    st.sampled_from([None, 0.0, 7.0, -9999.0, 300.0]),
    st.integers(0, 2**32),
)
def test_pixels_with_the_nodata_value_are_invalid_and_no_others(name, declared, override, seed):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(name)
    values = rng.integers(1, 100, (2, 9, 11)).astype(dtype)
    missing = rng.random(values.shape) < 0.3
    dataset = in_memory(values, declared)
    expected = band_nodata(dataset.GetRasterBand(1), override)
    if expected is not None:
        values[missing] = expected
        values[~missing & (values == expected)] += 1
        dataset.WriteArray(values)
    with Source([dataset], "raster", nodata=override) as source:
        found, valid = source.read(0, 0, 11, 9)
    valid = np.ones(values.shape, bool) if valid is None else valid
    assert np.array_equal(valid, ~missing if expected is not None else np.ones(values.shape, bool))
    assert np.array_equal(found[valid], values[valid].astype(found.dtype))


# JSON

KINDS = list(dict.fromkeys(kind for request in JOBS.values() for kind in (request, request.result)))


def plain(value):
    """Whether JSON has it, with no word of Python's own."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (str, bool, int, float)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_requests_and_results_survive_json(kind):
    @settings(max_examples=8)  # of each kind; there are many
    @given(of_type(kind))
    def survives(value):
        values = to_json(value)
        assert plain(values)
        text = json.dumps(values, allow_nan=False)
        again = from_json(kind, json.loads(text))
        assert type(again) is kind
        assert json.dumps(to_json(again), allow_nan=False) == text
        assert repr(again) == repr(value)  # NaN is no equal of itself

    survives()

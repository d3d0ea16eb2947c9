"""Whatever the tiles are, the result is the same: tried on generated sizes, and rasters with holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import read_raster, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from osgeo import osr

from clippan.catalogue.prompts import ClassPrompt, PromptTable
from clippan.core.context import Context
from clippan.fewshot.prompt_heads import PixelFeatures, bilateral_mean
from clippan.fewshot.windows import masked_mean
from clippan.fusion.metrics import BLOCK, FullResolutionMetrics, ReferenceMetrics
from clippan.handlers import run
from clippan.jobs import Method, PansharpenRequest, Registration
from clippan.labels.areas import ClassAreaCounter
from clippan.raster.grid import Grid
from clippan.raster.tiles import Window, tiles
from clippan.segmentation.guided import filter_margin, guided_filter

DEGREES = osr.GetUserInputAsWKT("EPSG:4326")
seeds = st.integers(0, 2**32 - 1)


def around(window: Window, reach: int, width: int, height: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of a window with a margin, as far as the raster reaches, and those of the window in it."""
    top, left = max(window.y - reach, 0), max(window.x - reach, 0)
    bottom, right = min(window.y + window.height + reach, height), min(window.x + window.width + reach, width)
    rows = slice(window.y - top, window.y - top + window.height)
    columns = slice(window.x - left, window.x - left + window.width)
    return slice(top, bottom), slice(left, right), rows, columns


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """PAN and MS of odd grids, with holes."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(3)
    ms = rng.integers(100, 900, (3, 90, 110)).astype("uint16")
    ms[:, 20:40, 30:60] = 0
    ms[1, 70:, :10] = 0
    pan = rng.integers(100, 900, (300, 340)).astype("uint16")
    pan[150:155] = 0
    return (
        write_raster(folder / "pan.tif", pan, 1.0, nodata=0),
        write_raster(folder / "ms.tif", ms, 3.37, (500003.1, 4999996.2), nodata=0),
    )


@pytest.mark.parametrize("method", [Method.BT_H, Method.MTF_GLP_HPM_R, Method.MTF_GLP_CBD, Method.CLIPPAN])
def test_pansharpening(pair, tmp_path, method):
    def fused(size: int, threads: int) -> np.ndarray:
        output = str(tmp_path / "out.tif")
        options = {"tile_size": size, "threads": threads, "overviews": False, "registration": Registration.OFF}
        run(PansharpenRequest(pan=pair[0], ms=(pair[1],), output=output, method=method, **options))
        return read_raster(output)

    whole = fused(2048, 1)
    assert (whole == 0).any()

    @settings(max_examples=3)
    @given(st.integers(256, 400), st.integers(1, 3))
    def same(size, threads):
        assert np.array_equal(fused(size, threads), whole)

    same()


@pytest.mark.slow
@given(
    seeds, st.integers(20, 70), st.integers(20, 70), st.integers(3, 12), st.sampled_from([1, 2, 4]), st.integers(2, 9)
)
@settings(max_examples=20)
def test_edges_that_follow_the_picture(seed, height, width, radius, cell, parts):
    radius = max(radius, cell)
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.random((3, height, width)).astype(np.float32))
    picture = torch.from_numpy(rng.random((3, height, width)).astype(np.float32))
    valid = torch.from_numpy(rng.random((height, width)) < 0.9)
    whole = guided_filter(values, picture, valid, radius, 1e-3, cell)
    reach = filter_margin(radius, cell)
    for window in tiles(width, height, parts * 4):
        rows, columns, own_rows, own_columns = around(window, reach, width, height)
        part = guided_filter(
            values[:, rows, columns], picture[:, rows, columns], valid[rows, columns], radius, 1e-3, cell
        )
        expected = whole[:, window.y : window.y + window.height, window.x : window.x + window.width]
        assert torch.equal(part[:, own_rows, own_columns], expected)


@pytest.mark.slow
@given(seeds, st.integers(5, 50), st.integers(5, 50), st.integers(1, 5), st.integers(4, 40))
@settings(max_examples=20)
def test_smoothing_of_a_map_of_classes(seed, height, width, radius, size):
    chance = torch.Generator().manual_seed(seed)
    shares = torch.rand(4, height, width, generator=chance).softmax(dim=0)
    guide = torch.randn(3, height, width, generator=chance)
    valid = torch.rand(height, width, generator=chance) < 0.8

    def smooth(rows, columns):
        sight = PixelFeatures(guide[:, rows, columns], guide[:, rows, columns], valid[rows, columns])
        return bilateral_mean(shares[:, rows, columns] * valid[rows, columns], sight, radius, Context())

    everything = slice(None)
    whole, whole_means = smooth(everything, everything), masked_mean(guide, valid, radius)
    for window in tiles(width, height, size):
        rows, columns, own_rows, own_columns = around(window, radius, width, height)
        expected = (slice(None), slice(window.y, window.y + window.height), slice(window.x, window.x + window.width))
        torch.testing.assert_close(
            smooth(rows, columns)[:, own_rows, own_columns], whole[expected], rtol=1e-5, atol=1e-6
        )
        part = masked_mean(guide[:, rows, columns], valid[rows, columns], radius)
        torch.testing.assert_close(part[:, own_rows, own_columns], whole_means[expected], rtol=1e-5, atol=1e-6)


def padded(image: torch.Tensor, window: Window, reach: int) -> torch.Tensor:
    """A window with a margin, beyond the scene NaN, or False in a mask."""
    fill = False if image.dtype == torch.bool else float("nan")
    wide = torch.nn.functional.pad(image, (reach,) * 4, value=fill)
    return wide[..., window.y : window.y + window.height + 2 * reach, window.x : window.x + window.width + 2 * reach]


@pytest.mark.slow
@given(seeds, st.integers(BLOCK, 130), st.integers(BLOCK, 130), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=15)
def test_figures_of_a_scene(seed, height, width, bands, blocks):
    chance = torch.Generator().manual_seed(seed)
    reference = 500 + 100 * torch.randn(bands, height, width, generator=chance)
    image = reference + 20 * torch.randn(bands, height, width, generator=chance)
    valid = torch.ones(height, width, dtype=torch.bool)
    valid[height // 2 : height // 2 + 3, width // 3] = False
    reference[:, ~valid] = float("nan")
    pan = image.mean(dim=0, keepdim=True)

    def figures(size: int) -> dict[str, float]:
        found, full = ReferenceMetrics(4, 900), FullResolutionMetrics(1)
        for window in tiles(width, height, size):
            found.add(*(padded(item, window, found.MARGIN) for item in (image, reference, valid)))
            full.add_pan_scale(*(padded(item, window, full.MARGIN) for item in (image, pan, valid)))
            full.add_mtf_filtered(*(padded(item, window, 0) for item in (image, reference, valid)))
            full.add_ms_scale(*(padded(item, window, 0) for item in (image, pan, valid)))
        return {**found.values, **full.values}

    assert figures(blocks * BLOCK) == pytest.approx(figures(4096), rel=1e-5, abs=1e-9, nan_ok=True)


@given(seeds, st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.sampled_from(["", DEGREES]))
def test_areas_of_classes(seed, height, width, size, crs):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, (height, width)).astype(np.uint8)
    confidence = rng.random((height, width)).astype(np.float32)
    valid = rng.random((height, width)) < 0.9
    table = PromptTable((ClassPrompt("water"), ClassPrompt("forest"), ClassPrompt("roofs")))
    grid = Grid(width, height, (10.0, 0.01, 0.0, 50.0, 0.0, -0.01), crs)

    def areas(edge: int) -> list[tuple]:
        found = ClassAreaCounter(table, grid)
        for tile in tiles(width, height, edge):
            at = (slice(tile.y, tile.y + tile.height), slice(tile.x, tile.x + tile.width))
            found.add(tile.x, tile.y, classes[at], confidence[at], valid[at])
        return found.result()

    for one, other in zip(areas(size), areas(100)):
        assert (one.value, one.name, one.pixels, one.share) == (other.value, other.name, other.pixels, other.share)
        for found, expected in ((one.hectares, other.hectares), (one.confidence, other.confidence)):
            assert found is expected is None or found == pytest.approx(expected, rel=1e-9)
        assert (one.hectares is None) == (not crs)
        assert one.pixels == ((classes == one.value) & valid).sum()

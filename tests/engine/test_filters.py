"""The two filters: what they keep, and where they put it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clippan.fusion import filters
from clippan.raster.grid import AxisTransform

AXES = [
    AxisTransform(4, 0),
    AxisTransform(2, -0.5),
    AxisTransform(3, 1.25),
    AxisTransform(1.9946, 0.3),
    AxisTransform(15, -7),
]


def interpolate(axis: AxisTransform, function, start: int, count: int) -> np.ndarray:
    """Samples a function of the output coordinate at MS centres, and interpolates it to output pixels."""
    first, number = filters.ms_support(axis, start, count)
    samples = function((np.arange(first, first + number) + 0.5) * axis.ratio + axis.origin)
    return filters.upsampling_matrix(axis, start, count).double().numpy() @ samples


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("start", [0, 256, 7 * 256])
def test_interpolation_keeps_ramps_in_place(axis, start):
    found = interpolate(axis, lambda x: x - start, start, 256)
    # The sharper cubic moves a ramp by at most 0.05 of a multispectral pixel, to and fro.
    difference = found - (np.arange(256) + 0.5)
    assert np.abs(difference).max() < 0.05 * axis.ratio
    assert abs(difference.mean()) < 0.005 * axis.ratio


@pytest.mark.parametrize("axis", AXES[:3])
def test_interpolation_passes_through_samples(axis):
    """Where an output pixel's centre is a sample's centre, it takes the sample."""
    first, number = filters.ms_support(axis, 0, 256)
    samples = np.random.default_rng(0).normal(size=number)
    found = filters.upsampling_matrix(axis, 0, 256).double().numpy() @ samples
    centres = (np.arange(first, first + number) + 0.5) * axis.ratio + axis.origin - 0.5
    hits = [(index, round(centre)) for index, centre in enumerate(centres) if centre % 1 == 0 and 0 <= centre < 256]
    for index, pixel in hits:
        assert found[pixel] == pytest.approx(samples[index], abs=1e-5)
    assert hits or axis.ratio % 2 == 0 or axis.origin % 1


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("gain", [0.15, 0.3])
def test_low_pass_keeps_ramps_in_place(axis, gain):
    first, number = filters.ms_support(axis, 512, 256)
    start, count = filters.pan_support(axis, first, number, gain)
    ramp = np.arange(start, start + count) + 0.5
    found = filters.downsampling_matrix(axis, first, number, gain).double().numpy() @ ramp
    wanted = (np.arange(first, first + number) + 0.5) * axis.ratio + axis.origin
    # A sampled narrow Gaussian is not quite symmetric about a centre between pixels.
    assert np.abs(found - wanted).max() < 0.01


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
@pytest.mark.parametrize("gain", [0.15, 0.22, 0.36])
def test_kernel_has_the_gain_at_nyquist(ratio, gain):
    kernel = filters.mtf_kernel(gain, ratio)
    taps = np.arange(len(kernel)) - len(kernel) // 2
    response = (kernel * np.cos(2 * np.pi * taps * 0.5 / ratio)).sum()
    assert response == pytest.approx(gain, abs=0.005)
    assert kernel.sum() == pytest.approx(1)


def test_the_kernel_as_a_matrix():
    kernel = filters.mtf_kernel(0.3, 4.0)
    reach = len(kernel) // 2
    values = np.random.default_rng(0).normal(size=50 + 2 * reach + 4)
    found = filters.mtf_matrix(0.3, 4.0, 50, reach + 2).double().numpy() @ values
    np.testing.assert_allclose(found, np.convolve(values[2:-2], kernel, "valid"), rtol=1e-5, atol=1e-6)
    cut = filters.mtf_matrix(0.3, 4.0, 50, 3)
    assert cut.shape == (50, 56)
    assert torch.allclose(cut.sum(dim=1), torch.ones(50))  # a plane keeps its value


@pytest.mark.parametrize("axis", AXES)
def test_matrices_of_all_blocks_have_one_shape(axis):
    shapes = set()
    for start in range(0, 256 * 40, 256):
        first, number = filters.ms_support(axis, start, 256)
        up = filters.upsampling_matrix(axis, start, 256)
        down = filters.downsampling_matrix(axis, first, number, 0.3)
        shapes.add((up.shape, down.shape))
        assert torch.allclose(up.sum(1), torch.ones(256), atol=1e-5), "the block's window misses samples"
    assert len(shapes) == 1


def test_nearest_is_the_sample_that_a_pixel_lies_in():
    axis = AxisTransform(4, 0)
    upsampling = filters.Upsampling.of(axis, 256, 8)
    assert (upsampling.nearest + upsampling.ms_first).tolist() == [64] * 4 + [65] * 4


def test_fill_takes_the_mean_of_close_neighbours_and_the_default_far_away():
    values = torch.full((1, 9, 9), 5.0)
    values[0, :, 4:] = -9999
    valid = values > 0
    filled = filters.fill_invalid(values, valid, torch.tensor([7.0]))
    assert torch.allclose(filled[0, :, 4:6], torch.tensor(5.0))
    assert torch.allclose(filled[0, :, 6:], torch.tensor(7.0))


@pytest.mark.parametrize("axis", AXES)
def test_parts_multiply_as_the_whole_matrix(axis):
    gains, shifts = [0.15, 0.3], [0.0, 0.7]
    first, number = filters.ms_support(axis, 512, 250)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(3, number, 40)).astype(np.float32))
    dense = filters.upsampling_matrix(axis, 512, 250)
    up = filters.upsampling_bank(axis, 512, 250)
    torch.testing.assert_close(up.filter_rows(values), dense @ values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(up.filter_columns(values.mT), (dense @ values).mT, rtol=1e-5, atol=1e-5)
    strips = list(up.strips(64))
    assert [row for row, _ in strips] == [0, 64, 128, 192]
    assert torch.equal(torch.cat([strip.filter_rows(values) for _, strip in strips], dim=-2), up.filter_rows(values))
    start, count, matrices = filters.downsampling_matrices(axis, first, number, gains, shifts)
    bank_start, bank_count, bank = filters.mtf_bank(axis, first, number, gains, shifts)
    assert (bank_start, bank_count) == (start, count)
    pan = torch.from_numpy(np.random.default_rng(1).normal(size=(count, 30)).astype(np.float32))
    wanted = torch.stack([matrix @ pan for matrix in matrices])
    torch.testing.assert_close(bank.filter_rows(pan), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.filter_rows(pan.expand(2, -1, -1)), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.filter_columns(pan.T), wanted.mT, rtol=1e-4, atol=1e-5)
    assert up.parts.numel() < 0.5 * dense.numel(), "zeros are left out"

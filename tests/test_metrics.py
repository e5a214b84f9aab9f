import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.metrics import endpoint_error, mean_endpoint_error


def pair(seed=0, batch=2, height=4, width=5):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(2, batch, 2, height, width, generator=generator)).unbind()


def test_the_endpoint_error_is_the_length_of_the_difference():
    flow, target = pair()
    error = endpoint_error(flow, target)
    assert error.shape == (2, 4, 5)
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        u, v = (flow - target)[b, :, y, x].tolist()
        assert float(error[b, y, x]) == pytest.approx(math.hypot(u, v), rel=1e-6)
    three_four = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1)
    assert endpoint_error(three_four, 0 * three_four).tolist() == [[[5.0]]]


def test_without_a_mask_the_mean_runs_over_all_pixels():
    flow, target = pair()
    torch.testing.assert_close(mean_endpoint_error(flow, target), endpoint_error(flow, target).mean((1, 2)))


@given(seed=st.integers(0, 999), height=st.integers(1, 6), width=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_mean_runs_over_the_valid_pixels_of_each_sample(seed, height, width):
    flow, target = pair(seed, 3, height, width)
    valid = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    valid[:, seed % height, seed % width] = True
    got = mean_endpoint_error(flow, target, valid)
    assert got.shape == (3,)
    for b in range(3):
        torch.testing.assert_close(got[b], endpoint_error(flow, target)[b][valid[b]].mean())


def test_invalid_pixels_do_not_count_as_zero_error():
    target = torch.zeros(1, 2, 4, 4)
    flow = target + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[0, 0, :3] = True
    assert mean_endpoint_error(flow, target, valid).tolist() == [5.0]  # not 5 * 3 / 16


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, 1e30])
def test_what_stands_at_invalid_pixels_does_not_matter(unknown):
    flow, target = pair()
    valid = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = mean_endpoint_error(flow, target, valid)
    assert torch.equal(mean_endpoint_error(flow, torch.where(valid[:, None], target, unknown), valid), expected)
    assert torch.equal(mean_endpoint_error(torch.where(valid[:, None], flow, unknown), target, valid), expected)


def test_what_is_not_finite_at_a_valid_pixel_shows_in_its_sample_alone():
    flow, target = pair()
    flow[1, 0, 2, 2] = torch.nan
    assert torch.isnan(mean_endpoint_error(flow, target)).tolist() == [False, True]


def test_a_sample_without_a_valid_pixel_is_refused():
    flow, target = pair()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[1] = False
    with pytest.raises(ValueError, match="at least one valid pixel in each sample, got none in one"):
        mean_endpoint_error(flow, target, valid)

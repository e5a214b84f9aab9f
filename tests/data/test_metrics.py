import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqflow.data.metrics import FlowErrors, endpoint_error, mean_endpoint_error


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


def masks(batch=2, height=4, width=5):
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(2, batch, height, width, generator=generator) < 0.6).unbind()


def test_errors_of_all_pixels_and_of_pairs_are_different_means():
    target = torch.zeros(2, 2, 2, 2)
    flow = target.clone()
    flow[0, 0], flow[1, 0] = 1.0, 4.0
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[1, 0] = valid[1, 1, 0] = False  # one pixel of the second pair remains
    errors = FlowErrors()
    errors.add(flow, target, valid)
    summary = errors.summary()
    assert (summary["pairs"], summary["pixels"]) == (2, 5)
    assert summary["epe_px"] == pytest.approx((4 * 1 + 4) / 5)
    assert summary["pair_epe_px"] == pytest.approx((1 + 4) / 2)
    assert summary["f1_all"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("length", "error", "outlier"),
    [(10.0, 2.9, False), (10.0, 3.1, True), (100.0, 4.9, False), (100.0, 5.1, True), (1.0, 2.9, False)],
)
def test_an_outlier_is_wrong_by_3_px_and_by_5_percent(length, error, outlier):
    target = torch.tensor([length, 0.0]).view(1, 2, 1, 1)
    errors = FlowErrors()
    errors.add(target + torch.tensor([0.0, error]).view(1, 2, 1, 1), target, torch.ones(1, 1, 1, dtype=torch.bool))
    assert errors.summary()["f1_all"] == float(outlier)


def test_shares_of_pixels_within_1_3_and_5_px():
    target = torch.zeros(1, 2, 1, 8)
    flow = target.clone()
    flow[0, 0, 0] = torch.tensor([0.0, 1.0, 1.01, 3.0, 3.01, 5.0, 5.01, torch.nan])
    valid = torch.ones(1, 1, 8, dtype=torch.bool)
    errors = FlowErrors()
    errors.add(flow, target, valid)
    summary = errors.summary()
    assert summary["within"] == pytest.approx({"1": 2 / 8, "3": 4 / 8, "5": 6 / 8})
    assert summary["outliers_1px"] == pytest.approx(6 / 8)


def test_errors_are_told_apart_by_displacement_and_by_occlusion():
    target = torch.zeros(1, 2, 1, 4)
    target[0, 0, 0] = torch.tensor([9.99, 10.0, 40.0, 200.0])
    flow = target.clone()
    flow[0, 1, 0] = torch.tensor([1.0, 2.0, 3.0, 5.0])
    occluded = torch.tensor([[[False, True, False, True]]])
    errors = FlowErrors()
    errors.add(flow, target, torch.ones(1, 1, 4, dtype=torch.bool), occluded)
    summary = errors.summary()
    assert summary["by_speed_px"] == pytest.approx({"s0-10": 1.0, "s10-40": 2.0, "s40+": 4.0})
    assert summary["speed_share"] == pytest.approx({"s0-10": 0.25, "s10-40": 0.25, "s40+": 0.5})
    assert summary["matched_px"] == pytest.approx(2.0)
    assert summary["unmatched_px"] == pytest.approx(3.5)
    assert summary["unmatched_share"] == pytest.approx(0.5)


def test_pairs_added_one_by_one_or_together_give_the_same():
    flow, target = pair()
    valid, occluded = masks()
    together, single = FlowErrors(), FlowErrors()
    together.add(flow, target, valid, occluded)
    for b in (1, 0):
        single.add(flow[b : b + 1], target[b : b + 1], valid[b : b + 1], occluded[b : b + 1])
    first, second = together.summary(), single.summary()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value), name
    assert first["pair_epe_px"] == pytest.approx(float(mean_endpoint_error(flow, target, valid).mean()))


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, 1e30])
def test_invalid_pixels_add_nothing_to_any_figure(unknown):
    flow, target = pair()
    valid, occluded = masks()
    clean, spoilt = FlowErrors(), FlowErrors()
    clean.add(flow, target, valid, occluded)
    spoilt.add(flow, torch.where(valid[:, None], target, unknown), valid, occluded)
    assert spoilt.summary() == clean.summary()
    assert clean.summary()["pixels"] == int(valid.sum())


def test_a_flow_that_is_not_finite_is_an_outlier_and_shows():
    flow, target = pair(batch=1)
    flow[0, :, 0, 0] = torch.nan
    errors = FlowErrors()
    errors.add(flow, target, torch.ones(1, 4, 5, dtype=torch.bool))
    assert math.isnan(errors.summary()["epe_px"])
    clean = FlowErrors()
    clean.add(torch.where(torch.isnan(flow), target, flow), target, torch.ones(1, 4, 5, dtype=torch.bool))
    assert errors.summary()["f1_all"] == pytest.approx(clean.summary()["f1_all"] + 1 / 20)


def test_a_mean_over_nothing_is_none():
    errors = FlowErrors()
    errors.add(*pair(), torch.zeros(2, 4, 5, dtype=torch.bool))
    summary = errors.summary()
    assert (summary["pairs"], summary["pixels"]) == (0, 0)
    assert summary["epe_px"] is summary["pair_epe_px"] is summary["f1_all"] is summary["unmatched_px"] is None
    assert summary["outliers_1px"] is None
    assert set(summary["within"].values()) == {None}
    assert set(summary["by_speed_px"].values()) == set(summary["speed_share"].values()) == {None}


def test_shapes_that_do_not_fit_are_refused():
    flow, target = pair()
    with pytest.raises(ValueError, match=r"valid \(B, H, W\), got \(2, 2, 4, 5\), \(2, 2, 4, 5\) and \(2, 5, 4\)"):
        FlowErrors().add(flow, target, torch.ones(2, 5, 4, dtype=torch.bool))

import pytest
import torch
from torch.nn import functional as F

import deqflow
from deqflow.data.metrics import mean_endpoint_error
from deqflow.data.synthetic import SceneConfig
from deqflow.evidence.evaluation import procedural_pairs
from deqflow.model.scales import carry_to_scale, estimate_at_scales, resize_flow, resize_images, stop_at_scale
from deqflow.model.state import FlowState, flow_residual
from deqflow.solvers import Status, Stop, rms

SMALL = SceneConfig(height=90, width=121, camera=3.0, motion=3.0, largest=12.0)  # neither side divides by 8
SIX = Stop(max_evals=6, atol=0.0)


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture(scope="module")
def pairs():
    samples = [*procedural_pairs(3, SMALL)]
    return tuple(torch.stack([getattr(s, name) for s in samples]) for name in ("image1", "image2", "flow", "valid"))


def test_at_one_scale_it_is_the_estimator(estimator, pairs):
    with torch.no_grad():
        expected = estimator(*pairs[:2], stop=SIX)
        got = estimate_at_scales(estimator, *pairs[:2], (1.0,), stop=SIX)
    assert torch.equal(got.flow, expected.flow)
    assert len(got.outputs) == 1
    assert torch.equal(got.outputs[0].solve.residual, expected.solve.residual)


@pytest.mark.claims
def test_the_second_scale_is_finer_and_begins_near_its_end(estimator, pairs):
    image1, image2, truth, valid = pairs
    with torch.no_grad():
        plain = estimator(image1, image2).flow
        both = estimate_at_scales(estimator, image1, image2, (1.0, 2.0))
        alone = estimate_at_scales(estimator, image1, image2, (2.0,))
    assert both.flow.shape == truth.shape
    assert both.outputs[1].flow.shape == (3, 2, 180, 242)
    error, before = (mean_endpoint_error(flow, truth, valid).mean() for flow in (both.flow, plain))
    assert error < 0.9 * before
    warm, cold = (output.solve.trace[0].mean() for output in (both.outputs[1], alone.outputs[0]))
    assert warm < 0.8 * cold, "the first evaluation has less to move"


@pytest.mark.claims
def test_a_coarse_scale_finds_what_is_too_far_for_the_fine_one(estimator):
    generator = torch.Generator().manual_seed(0)
    canvas = F.interpolate(255 * torch.rand(1, 3, 30, 40, generator=generator), size=[240, 320], mode="bicubic")
    shift = 24
    image1, image2 = canvas[..., :192, shift:280].clamp(0, 255), canvas[..., :192, : 280 - shift].clamp(0, 255)
    with torch.no_grad():
        flow = estimate_at_scales(estimator, image1, image2, (0.5, 1.0, 2.0)).flow
    inner = flow[..., 24:-24, 24 : -24 - shift]
    assert (inner - torch.tensor([shift, 0.0]).view(1, 2, 1, 1)).norm(dim=1).median() < 0.2


def test_vectors_are_resized_with_their_field():
    field = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
    larger = resize_flow(field, 40, 45)
    torch.testing.assert_close(larger, torch.tensor([4.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 40, 45))
    torch.testing.assert_close(resize_flow(larger, 20, 30), field)
    assert resize_flow(field, 20, 30) is field


def test_a_ramp_of_flow_stays_where_it_is():
    """Motion that grows with x is as large at the same place of the resized field."""
    x = torch.arange(64.0) + 0.5
    field = torch.stack([x, torch.zeros(64)])[None, :, None].expand(1, 2, 8, 64).contiguous()
    larger = resize_flow(field, 16, 128)
    torch.testing.assert_close(larger[0, 0, 0, 1:-1], torch.arange(128.0)[1:-1] + 0.5)
    smaller = resize_flow(field, 4, 32)
    torch.testing.assert_close(smaller[0, 0, 0, 1:-1], torch.arange(32.0)[1:-1] + 0.5)


def test_images_keep_their_brightness_and_half_precision_becomes_single():
    image = torch.full((1, 3, 33, 47), 200.0, dtype=torch.bfloat16)
    for scale, size in ((0.5, (16, 24)), (2, (66, 94))):
        resized = resize_images(image, scale)
        assert resized.shape[-2:] == size
        assert resized.dtype == torch.float32
        torch.testing.assert_close(resized, torch.full_like(resized, 200.0))
    assert resize_images(image.double(), 1.5).dtype == torch.float64
    assert resize_images(image, 1) is image


def test_a_state_that_is_not_finite_is_no_start():
    state = FlowState(torch.full((1, 4, 6, 8), torch.nan), torch.full((1, 2, 6, 8), torch.inf))
    carried = carry_to_scale(state, torch.zeros(1, 3, 90, 121), 8)
    assert carried.hidden.shape == (1, 4, 12, 16)
    assert not carried.hidden.any()
    assert not carried.flow.any()


def test_tolerances_stay_in_pixels_of_the_given_pictures():
    difference = torch.ones(1, 5, 4, 4)
    for norm in (None, flow_residual):
        assert stop_at_scale(Stop(norm=norm), 2.0, 8).norm(difference) == flow_residual(difference) / 2
    assert stop_at_scale(Stop(), 2.0, 4).norm(difference) == flow_residual(difference) / 4
    for norm in (rms, lambda values: values.amax((1, 2, 3))):
        own = Stop(norm=norm)
        assert stop_at_scale(own, 2.0, 8) is own
    assert stop_at_scale(Stop(), 1, 8) == Stop()


def test_a_sample_that_is_not_finite_fails_alone(estimator, pairs):
    image1 = pairs[0].clone()
    image1[1, 0, 5, 5] = torch.nan
    with torch.no_grad(), pytest.warns(UserWarning, match="sample 1"):
        got = estimate_at_scales(estimator, image1, pairs[1], (1.0, 1.5), stop=SIX)
    with torch.no_grad():
        expected = estimate_at_scales(estimator, *pairs[:2], (1.0, 1.5), stop=SIX)
    assert got.flow[1].isnan().all()
    torch.testing.assert_close(got.flow[[0, 2]], expected.flow[[0, 2]], atol=1e-3, rtol=0)
    assert got.outputs[-1].solve.status.tolist()[1] == Status.NON_FINITE


@pytest.mark.parametrize("scales", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_scales_must_ascend(estimator, pairs, scales):
    with pytest.raises(ValueError, match="one or more positive factors in ascending order"):
        estimate_at_scales(estimator, *pairs[:2], scales)


def test_pictures_must_not_become_too_small(estimator, pairs):
    with pytest.raises(ValueError, match=r"got 0.1 times 121x90 \(width x height\)"):
        estimate_at_scales(estimator, *pairs[:2], (0.1, 1.0))


def test_what_the_estimator_refuses_is_refused(estimator, pairs):
    with pytest.raises(ValueError, match="one size"):
        estimate_at_scales(estimator, pairs[0], pairs[1][..., :-1])

"""Warped features in place of correlation, and states finer than an eighth of the image."""

import dataclasses

import pytest
import torch
from pairs import problem_of
from torch.autograd import gradcheck, gradgradcheck

import deqflow
from deqflow.evidence.confidence import estimate_both_ways
from deqflow.model.correlation import WarpedFeatures, correlate
from deqflow.model.correlation.warped import fetch, fetch_exactly
from deqflow.model.export import export, parity
from deqflow.model.geometry import warp
from deqflow.model.sizes import SIZES
from deqflow.solvers import Picard, Stop
from deqflow.training.losses import jacobian_penalty
from deqflow.video import VideoFlow

FETCHES = pytest.mark.parametrize("method", [fetch, fetch_exactly])


def features(generator, batch=2, channels=3, height=5, width=7, dtype=torch.float64):
    return [torch.randn(batch, channels, height, width, generator=generator, dtype=dtype) for _ in range(2)]


def flow_of(generator, batch=2, height=5, width=7, length=3.0):
    return length * torch.randn(batch, 2, height, width, generator=generator, dtype=torch.float64)


def pair(height=32, width=40, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image1 = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return image1, image1.roll((1, 2), (2, 3))


def made(size="mini-warp", **options):
    torch.manual_seed(0)
    return deqflow.build(size, **options)


@FETCHES
def test_features_are_fetched_at_the_end_of_the_flow(generator, method):
    (_, second), flow = features(generator), flow_of(generator)
    torch.testing.assert_close(method(second, flow), warp(second, flow))
    shift = torch.zeros(2, 2, 5, 7, dtype=torch.float64)
    shift[:, 0], shift[:, 1] = 2.0, -1.0
    expected = torch.zeros_like(second)
    expected[:, :, 1:, :5] = second[:, :, :4, 2:]
    torch.testing.assert_close(method(second, shift), expected)


def test_a_lookup_has_both_images_features(generator):
    (first, second), flow = features(generator), flow_of(generator)
    found = correlate(first, second, kind="warped")
    assert isinstance(found, WarpedFeatures)
    assert found.channels == 6
    torch.testing.assert_close(found.lookup(flow), torch.cat([first, warp(second, flow)], 1))
    rows = torch.tensor([1, 1, 0])
    torch.testing.assert_close(found.subset(rows).lookup(flow[rows]), found.lookup(flow)[rows])


@FETCHES
@pytest.mark.parametrize("distance", [50.0, 1e18, 1e300, torch.inf])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_flow_far_out_of_the_image_sees_zeros(generator, method, distance, sign):
    (_, second), flow = features(generator), torch.zeros(2, 2, 5, 7, dtype=torch.float64)
    flow[0, 1, 2, 3] = sign * distance
    found = method(second, flow)
    assert found[0, :, 2, 3].abs().max() == 0
    flow[0, 1, 2, 3] = 0
    found[0, :, 2, 3] = second[0, :, 2, 3]
    torch.testing.assert_close(found, second)


@FETCHES
def test_nan_in_the_flow_shows_where_it_is_and_nowhere_else(generator, method):
    (_, second), flow = features(generator), torch.zeros(2, 2, 5, 7, dtype=torch.float64)
    flow[1, 0, 2, 3] = torch.nan
    found = method(second, flow)
    assert torch.isnan(found[1, :, 2, 3]).all()
    assert int(torch.isnan(found).sum()) == 3


def test_gradients_reach_features_and_flow_twice(generator):
    first, second = (tensor.requires_grad_() for tensor in features(generator, 1, 2, 3, 4))
    flow = flow_of(generator, 1, 3, 4).requires_grad_()

    def lookup(first, second, flow):
        return WarpedFeatures(first, second).lookup(flow)

    assert gradcheck(lookup, (first, second, flow))
    assert gradgradcheck(lookup, (first, second, flow))
    assert gradcheck(lambda second: WarpedFeatures(first, second).lookup(flow.detach()), (second,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_places_keep_their_fractions(generator, dtype):
    second = torch.arange(400.0).expand(1, 1, 2, 400)
    flow = torch.full((1, 2, 2, 400), 0.5)
    flow[:, 1] = 0
    found = WarpedFeatures(second.to(dtype), second.to(dtype)).lookup(flow)
    assert found.dtype == dtype
    places = torch.arange(100, 110)
    assert torch.equal(found[0, 1, 0, places], (places + 0.5).to(dtype))


def test_the_state_has_a_quarter_of_the_images_size_and_memory_grows_with_the_pixels():
    estimator = made().eval()
    kept = []
    for height, width in ((64, 96), (128, 192)):
        with torch.no_grad():
            problem = problem_of(estimator, *pair(height, width))
        assert problem.z0.shape == (1, 66, height // 4, width // 4)
        found = problem.f.correlation
        kept.append(found.features1.numel() + found.features2.numel())
    assert kept[1] == 4 * kept[0] == 2 * 96 * (128 // 4) * (192 // 4)


@pytest.mark.parametrize("size", ["tiny", "small", "mini", "sea-s"])
def test_any_size_can_have_warped_features_and_its_checkpoint_says_so(tmp_path, size):
    estimator = made(size, correlation="warped").eval()
    assert estimator.config.correlation == "warped"
    loaded = deqflow.load(deqflow.save(estimator, tmp_path / "model.safetensors"))
    assert loaded.correlation == "warped"
    with torch.no_grad():
        options = {"stop": Stop(max_evals=2, atol=0.0)}
        assert torch.equal(loaded(*pair(), **options).flow, estimator(*pair(), **options).flow)


def test_the_warped_size_can_have_a_correlation(tmp_path):
    estimator = made(correlation="sampled").eval()
    assert (estimator.correlation, estimator.config.correlation, estimator.stride) == ("sampled", "auto", 4)
    loaded = deqflow.load(deqflow.save(estimator, tmp_path / "model.safetensors"))
    assert loaded.correlation == "auto"  # how it is computed is not stored
    with torch.no_grad():
        torch.testing.assert_close(loaded(*pair()).flow, estimator(*pair()).flow, rtol=0, atol=1e-3)
    assert made(correlation="warped").config == made().config


@pytest.mark.parametrize(("size", "other"), [("mini-warp", "volume"), ("mini", "warped")])
def test_a_model_keeps_what_its_update_was_made_for(size, other):
    estimator = made(size)
    with pytest.raises(ValueError, match=rf"build a model .* correlation='{other}'\)"):
        estimator.correlation = other


def test_dropout_hides_channels_of_what_is_found():
    estimator = made(dropout=0.3, train_evals=2)
    problem = problem_of(estimator, *pair(), generator=torch.Generator().manual_seed(0))
    assert problem.f.mask.shape == (1, 192, 1, 1)


def test_residuals_and_tolerances_are_in_full_size_pixels():
    estimator = made().eval()
    with torch.no_grad():
        output = estimator(*pair(), stop=Stop(max_evals=3, atol=0.0))
    moved = (output.solve.fz - output.solve.z)[:, -2:]
    torch.testing.assert_close(output.solve.residual, 4 * moved.square().mean((1, 2, 3)).sqrt())
    assert output.residual_map.shape == (1, 32, 40)


@pytest.mark.parametrize("all_gradients", [False, True])
def test_gradients_and_the_jacobian_penalty_reach_the_features(all_gradients):
    estimator = made(all_gradients=all_gradients, train_evals=3)
    problem = problem_of(estimator, *pair())
    output = problem.solve()
    penalty = jacobian_penalty(problem.f, output.solve.z, torch.Generator().manual_seed(0))
    (output.flow.abs().sum() + penalty).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in estimator.parameters())


def test_scales_carry_the_state():
    estimator = made(max_evals=3, atol=0.0).eval()
    with torch.no_grad():
        scaled = deqflow.estimate_at_scales(estimator, *pair(64, 72), (0.5, 1.0))
    assert [output.state.flow.shape[-2:] for output in scaled.outputs] == [(8, 9), (16, 18)]
    assert torch.isfinite(scaled.flow).all()
    assert scaled.flow.shape == (1, 2, 64, 72)


@pytest.mark.parametrize("policy", ["warp", "reuse", "reset"])
def test_video_carries_the_state(policy):
    estimator = made(max_evals=3, atol=0.0).eval()
    image1, image2 = pair(40, 52)
    video = VideoFlow(estimator, policy=policy, cut=None)
    steps = [step for _, step in video.run([image1, image2, image1])]
    assert [step.reset for step in steps] == [True, policy == "reset"]
    with torch.no_grad():
        torch.testing.assert_close(steps[0].flow, estimator(image1, image2).flow)
    assert all(step.output.state.flow.shape == (1, 2, 10, 13) for step in steps)


def test_both_ways_share_the_features():
    estimator = made(max_evals=2, atol=0.0).eval()
    image1, image2 = pair(40, 52)
    with torch.no_grad():
        forward, backward = estimate_both_ways(estimator, image1, image2)
        torch.testing.assert_close(forward.flow, estimator(image1, image2).flow)
        torch.testing.assert_close(backward.flow, estimator(image2, image1).flow)


@pytest.mark.parametrize("size", [None, (36, 44)])
def test_a_graph_gives_the_models_flow(tmp_path, monkeypatch, size):
    speck = dataclasses.replace(SIZES["mini-warp"], depths=(1, 1, 1), encoder=(8, 8, 12, 16), hidden=16, context=16)
    monkeypatch.setitem(SIZES, "speck-warp", speck)
    estimator = made("speck-warp").eval()
    assert estimator.equilibrium.rule == Picard()
    path = export(estimator, tmp_path / "model.pt2", evals=2, size=size)
    pairs = [pair(*shape) for shape in ([size] if size else [(16, 20), (33, 47)])]
    assert max(parity(estimator, path, evals=2, pairs=pairs).values()) < 1e-3

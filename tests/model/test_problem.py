"""One pair, prepared once: encode, problem, start, solve and flow, and what the three steps promise."""

import dataclasses
import time
from itertools import pairwise

import pytest
import torch
from pairs import problem_of
from training_runs import SCENES

import deqflow
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.evidence.confidence import estimate_both_ways
from deqflow.model.correlation import correlate
from deqflow.model.sizes import SIZES
from deqflow.model.state import FlowState
from deqflow.solvers import Anderson, Picard, Status, Stop, rescue, scipy_solver, solve
from deqflow.training.validation import measure_pairs, summarise
from deqflow.video import VideoFlow

THREE = Stop(max_evals=3, atol=0.0)


@pytest.fixture
def images(generator):
    return [255 * torch.rand(2, 3, 30, 44, generator=generator) for _ in range(2)]


def make(*args, seed=0, **options):
    torch.manual_seed(seed)
    return deqflow.build(*args, **options).eval()


def same_bits(one, other):
    assert torch.equal(one.flow, other.flow)
    assert torch.equal(one.state.pack(), other.state.pack())
    assert torch.equal(one.solve.z, other.solve.z)
    assert torch.equal(one.solve.trace, other.solve.trace)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, when it switches oneDNN off
@pytest.mark.parametrize("correlation", ["volume", "sampled"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("size", "update"), [("tiny", "raft"), ("tiny", "gma"), ("small", None), ("mini", None)])
def test_the_three_steps_are_the_estimator(images, size, update, recurrent, correlation):
    estimator = make(size, update, recurrent=recurrent, correlation=correlation)
    # Without oneDNN, which rounds otherwise for two images at once, one pass through the encoder or two are the same.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        expected = estimator(*images, stop=THREE)
        problem = problem_of(estimator, *images)
        output = problem.solve(stop=THREE)
        same_bits(output, expected)
        assert torch.equal(problem.flow(expected.solve.fz), expected.flow)
        assert torch.equal(problem.f(expected.solve.z), expected.solve.fz)
        goes_on = estimator(*images, start=expected.state, stop=THREE)
        same_bits(problem.solve(start=expected.state, stop=THREE), goes_on)
        same_bits(problem.solve(start=problem.start(expected.state), stop=THREE), goes_on)
    both = estimator.encode(torch.cat(images))  # with oneDNN: one pass, as the estimator does it
    with torch.no_grad():
        same_bits(estimator.problem(both[:2], both[2:]).solve(stop=THREE), estimator(*images, stop=THREE))


@pytest.mark.parametrize("size", SIZES)
def test_a_problem_of_every_size_is_solved_from_its_own_start(size):
    estimator = make(size)
    images = 255 * torch.rand(2, 1, 3, 17, 25, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        problem = problem_of(estimator, *images)
        state = FlowState.unpack(problem.z0)
        coarse = (-(-17 // estimator.stride), -(-25 // estimator.stride))
        assert state.hidden.shape == (1, SIZES[size].hidden, *coarse)
        assert torch.equal(FlowState.unpack(state.pack()).flow, state.flow)
        assert problem.flow(problem.z0).shape == (1, 2, 17, 25)
        output = problem.solve(stop=Stop(max_evals=2, atol=0.0))
    assert torch.equal(output.solve.residual, problem.residual(output.solve.fz - output.solve.z))


def test_a_start_of_another_shape_is_refused(images):
    problem = problem_of(make("mini"), *images)
    with pytest.raises(ValueError, match=r"start expects hidden \(2, 64, 4, 6\) and flow \(2, 2, 4, 6\)"):
        problem.start(FlowState(torch.zeros(1, 64, 4, 6), torch.zeros(1, 2, 4, 6)))


def counted(estimator):
    """Notes for each call of an encoder how many images it was given."""
    calls = {"feature": [], "context": []}
    for name, encoder in (("feature", estimator.feature_encoder), ("context", estimator.context_encoder)):
        if encoder is not None:
            encoder.register_forward_hook(lambda _, args, out, name=name: calls[name].append(len(args[0])))
    return calls


@pytest.mark.parametrize(("size", "contexts"), [("mini", 0), ("tiny", 5)])
def test_a_frame_of_a_video_is_encoded_once(generator, size, contexts):
    estimator = make(size)
    frames = [255 * torch.rand(1, 3, 32, 40, generator=generator) for _ in range(6)]
    calls = counted(estimator)
    steps = [step for _, step in VideoFlow(estimator, stop=THREE).run(frames)]
    assert len(steps) == 5
    assert calls["feature"] == [1] * 6
    assert calls["context"] == [1] * contexts  # of first images alone


def test_both_ways_encode_each_image_once(generator):
    estimator = make("tiny")
    pair = [255 * torch.rand(1, 3, 32, 40, generator=generator) for _ in range(2)]
    calls = counted(estimator)
    estimate_both_ways(estimator, *pair, stop=THREE)
    assert calls == {"feature": [1, 1], "context": [1, 1]}


@pytest.mark.parametrize("name", ["deqflow-small", "raft-small-twin"])
def test_a_video_that_resets_is_a_fresh_solve_of_each_pair(generator, name):
    estimator = deqflow.load(name)
    frames = [255 * torch.rand(1, 3, 32, 40, generator=generator) for _ in range(4)]
    steps = [step for _, step in VideoFlow(estimator, policy="reset", stop=THREE).run(frames)]
    with torch.no_grad():
        for (first, second), step in zip(pairwise(frames), steps, strict=True):
            same_bits(step.output, problem_of(estimator, first, second).solve(stop=THREE))


@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.byte, torch.Tensor.half])
def test_a_video_takes_frames_of_any_precision_as_the_estimator_does(generator, convert):
    estimator = make("mini")
    frames = [(255 * torch.rand(1, 3, 32, 40, generator=generator)).round() for _ in range(3)]
    plain = [step.flow for _, step in VideoFlow(estimator, stop=THREE).run(frames)]
    other = [step.flow for _, step in VideoFlow(estimator, stop=THREE).run(map(convert, frames))]
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    with torch.no_grad():
        expected = estimator(*frames[:2], stop=THREE).flow
        assert torch.equal(estimator(convert(frames[0]), convert(frames[1]), stop=THREE).flow, expected)


# Graphs


def test_in_evaluation_no_graph_is_recorded_unless_it_is_asked_for(images):
    estimator = make("mini")
    output = estimator(*images, stop=THREE)
    assert not output.flow.requires_grad
    assert output.flow.numpy().shape == (2, 2, 30, 44)
    assert not output.state.hidden.requires_grad
    asked = estimator(*images, stop=THREE, record_graph=True)
    asked.flow.sum().backward()
    assert all(p.grad is not None for p in estimator.update.parameters())
    with torch.no_grad():
        assert not estimator(*images, stop=THREE, record_graph=True).flow.requires_grad
    assert not estimator.train()(*images, stop=THREE, record_graph=False).flow.requires_grad
    assert estimator(*images, stop=THREE).flow.requires_grad


@pytest.mark.parametrize("which", ["image1", "image2", "hidden", "flow"])
def test_a_graph_is_recorded_where_an_input_requires_gradients(images, which):
    estimator = make("mini", recurrent=True, all_gradients=True)  # unrolled: gradients reach the start
    state = estimator(*images, stop=THREE).state
    given = {"image1": images[0], "image2": images[1], "hidden": state.hidden, "flow": state.flow}
    given[which].requires_grad_()
    output = estimator(*images, start=FlowState(state.hidden, state.flow), stop=THREE)
    (gradient,) = torch.autograd.grad(output.flow.sum(), given[which])
    assert gradient.abs().max() > 0


class Away:
    """f(z) = -1.5 z + c: plain iteration runs away from a fixed point that damped iteration reaches."""

    def __init__(self, constant):
        self.constant, self.calls = constant, 0

    def __call__(self, z):
        self.calls += 1
        return self.constant - 1.5 * z


def running_away(estimator, images):
    problem = problem_of(estimator, *images)
    return dataclasses.replace(problem, f=Away(torch.ones_like(problem.z0)))


def test_a_solve_that_diverges_is_tried_again_without_no_grad_too(images):
    estimator = make("mini")
    plain = estimator.problem
    estimator.problem = lambda *a, **k: dataclasses.replace(plain(*a, **k), f=Away(torch.ones_like(plain(*a, **k).z0)))
    with pytest.warns(UserWarning, match="A solve diverged and was tried again with damping"):
        output = estimator(*images, max_evals=30)
    assert output.solve.retry_evals.min() > 0
    assert output.solve.converged.all()
    assert not output.flow.requires_grad


def test_the_second_try_says_what_it_took_and_ends_where_it_is_told(images):
    with torch.no_grad():
        problem = running_away(make("mini"), images)
        seen = []
        with pytest.warns(UserWarning, match=r"at most, \d+ of them in a damped second try"):
            whole = problem.solve(stop=Stop(max_evals=20, atol=1e-3), on_eval=lambda e: seen.append(e.number))
        assert torch.equal(whole.solve.evals, 20 + whole.solve.retry_evals)
        assert seen == list(range(1, int(whole.solve.evals.max()) + 1))
        told = []
        with pytest.warns(UserWarning, match="tried again"):
            ended = problem.solve(
                stop=Stop(max_evals=20, atol=1e-3), on_eval=lambda e: told.append(e.number) or e.number == 23
            )
        assert told[-1] == 23
        assert ended.solve.status.tolist() == [Status.INTERRUPTED] * 2
        assert ended.solve.retry_evals.tolist() == [3, 3]
        # A solve that the user has stopped is not tried again.
        problem.f.calls = 0
        stopped = problem.solve(stop=Stop(max_evals=20, atol=1e-3), on_eval=lambda e: e.number == 15)
        assert problem.f.calls == 15
        assert stopped.solve.retry_evals is None


@pytest.mark.parametrize("answer", [torch.tensor(True), torch.tensor([1]).numpy() > 0])
def test_a_tensors_or_numpys_truth_ends_a_solve(images, answer):
    with torch.no_grad():
        output = make("mini")(*images, on_eval=lambda e: answer if e.number == 2 else None)
    assert output.solve.evals.tolist() == [2, 2]
    assert output.solve.status.tolist() == [Status.INTERRUPTED] * 2


def test_the_second_try_has_what_is_left_of_the_time_budget():
    f, z0 = Away(torch.ones(1, 4)), torch.zeros(1, 4)
    first = solve(f, z0, Picard(), Stop(max_evals=20, atol=1e-6))
    assert rescue(f, z0, first, max_seconds=0.0) is first

    def slow(z):
        time.sleep(0.02)
        return f(z)

    late = rescue(slow, z0, first, max_seconds=0.05)
    assert late.status.tolist() == [Status.INTERRUPTED]
    assert 1 <= int(late.retry_evals) <= 4


def test_scipys_time_budget_is_the_batchs():
    z0 = torch.zeros(5, 3)

    def slow(z):
        time.sleep(0.1)
        return 0.9 * z.cos()

    started = time.monotonic()
    with torch.no_grad():
        result = solve(slow, z0, scipy_solver("anderson"), Stop(max_evals=500, atol=0.0, max_seconds=0.5))
    assert time.monotonic() - started < 2.0  # five rows of 0.5 s would take 2.5 s
    assert result.status.tolist() == [Status.INTERRUPTED] * 5


# Stopping


@pytest.mark.parametrize("rule", [Picard(), Anderson()])
def test_without_a_tolerance_a_flow_that_stands_still_spends_the_budget(images, rule):
    """A flow head at zero: the norm, which sees the flow alone, is 0 from the first evaluation on."""
    estimator = make("mini", train_evals=5, weight_norm=False)
    torch.nn.init.zeros_(estimator.update.head.conv2.weight)
    torch.nn.init.zeros_(estimator.update.head.conv2.bias)
    output = estimator(*images, rule=rule, stop=Stop(max_evals=5, atol=0.0))
    assert output.solve.evals.tolist() == [5, 5]
    assert output.solve.trace.max() == 0
    assert output.hidden_residual.min() > 0
    assert estimator.train()(*images).solve.evals.tolist() == [5, 5]
    assert estimator.eval()(*images, stop=Stop(max_evals=5, atol=0.1)).solve.evals.tolist() == [1, 1]


def test_validation_of_a_flow_head_at_zero_works():

    estimator = make("mini", weight_norm=False)
    torch.nn.init.zeros_(estimator.update.head.conv2.weight)
    torch.nn.init.zeros_(estimator.update.head.conv2.bias)
    pairs = SyntheticPairs(2, config=SCENES)
    errors = summarise(measure_pairs(estimator, pairs, (1, 4)).sum(0), 2, (1, 4)).errors
    length = sum(float(pair.flow.norm(dim=0).mean()) for pair in pairs) / 2
    assert list(errors) == [1, 4]
    assert errors[4] == pytest.approx(length, rel=0.01)


def test_budget_and_tolerance_of_a_call_replace_the_models_own(images):
    estimator = make("mini", max_evals=9, atol=0.0)
    assert estimator(*images, max_evals=4).solve.evals.tolist() == [4, 4]
    assert estimator(*images, atol=1e6).solve.evals.tolist() == [1, 1]
    output = estimator(*images, stop=Stop(max_evals=7, atol=1e6), atol=0.0)
    assert output.solve.evals.tolist() == [7, 7]
    assert estimator(*images).solve.stop.max_evals == 9


# Precision


@pytest.mark.parametrize("correlation", ["volume", "sampled"])
@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives_exist_with_frozen_features(images, correlation, frozen):
    estimator = make("tiny", correlation=correlation, all_gradients=True).double()
    estimator.feature_encoder.requires_grad_(not frozen)
    problem = problem_of(estimator, *images)
    z = (problem.z0 + 0.3).requires_grad_()
    (first,) = torch.autograd.grad(problem.f(z).square().sum(), z, create_graph=True)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    (second,) = torch.autograd.grad((first * direction).sum(), z)
    step, moved = 1e-6, []
    for sign in (1, -1):
        there = (z.detach() + sign * step * direction).requires_grad_()
        moved += torch.autograd.grad(problem.f(there).square().sum(), there)
    torch.testing.assert_close(second, (moved[0] - moved[1]) / (2 * step), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("correlation", ["volume", "sampled"])
@pytest.mark.parametrize("name", ["deqflow-small", "raft-small-twin"])
def test_a_model_in_bfloat16_keeps_its_state_in_float32(name, correlation):
    estimator = deqflow.load(name)
    sample = SyntheticPairs(1, config=SceneConfig(height=32, width=48))[0]
    pair = sample.image1[None], sample.image2[None]
    exact = estimator(*pair, stop=THREE).flow
    estimator.to(torch.bfloat16).correlation = correlation
    output = estimator(*pair, stop=THREE)
    assert output.state.hidden.dtype == output.state.flow.dtype == output.flow.dtype == torch.float32
    assert output.solve.residual.dtype == torch.float32
    assert (output.flow - exact).norm(dim=1).mean() < 0.1 * exact.norm(dim=1).mean()
    output = estimator.train()(*pair, stop=THREE)
    output.flow.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.bfloat16 for p in estimator.parameters())


@pytest.mark.parametrize("kind", ["volume", "sampled"])
def test_in_bfloat16_places_beyond_column_128_are_found(generator, kind):
    """In a flow of bfloat16, 150.5 would be 150: half a pixel off."""
    features = torch.randn(1, 16, 4, 200, generator=generator).bfloat16()
    estimator = make("mini").bfloat16()
    flow = torch.full((1, 2, 4, 200), 0.5)
    exact = correlate(features.float(), features.float(), radius=3, kind=kind).lookup(flow)
    seen = []
    estimator.update.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    encoded = dataclasses.replace(estimator.encode(torch.full((1, 3, 32, 1600), 128.0)), matching=features)
    estimator.correlation = kind
    problem = estimator.problem(encoded, encoded)
    problem.f(FlowState(FlowState.unpack(problem.z0).hidden, flow).pack())
    off = (seen[0].float() - exact).abs().mean((0, 1, 2))
    assert off[130:].mean() < 2 * off[:100].mean() + 1e-3
    assert off.max() < 0.05

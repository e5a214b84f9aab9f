import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import map_of, problem_of
from torch import nn

import deqflow
from deqflow.equilibrium import Equilibrium, Implicit, Phantom, Unrolled
from deqflow.model.encoders import Encoder
from deqflow.model.estimator import FlowEstimator
from deqflow.model.sizes import SIZES, EstimatorConfig
from deqflow.model.state import FlowState, flow_residual
from deqflow.model.upsampling import BilinearUpsampler
from deqflow.solvers import Anderson, Broyden, Picard, Status, Stop, rms

# Parameters of the published models; the checkpoints list one norm of the residual blocks twice, which counts once.
PARAMETERS = {
    ("tiny", False): 2_490_976,
    ("base", False): 5_242_816,
    ("large", False): 8_673_664,
    ("huge", False): 13_394_752,
    ("gigantic", False): 23_248_960,
    ("base", True): 5_257_536,
    ("small", True): 990_162,
    ("sea-s", True): 8_883_460,
    ("sea-m", True): 19_663_876,
}
MODES = {
    "phantom": Phantom(),
    "three damped steps": Phantom(steps=3, damping=0.5),
    "implicit": Implicit(stop=Stop(max_evals=4, atol=0.0)),
    "implicit by Broyden": Implicit(rule=Broyden(), stop=Stop(max_evals=4, atol=0.0)),
    "unrolled": Unrolled(),
}


def make(size="tiny", seed=0, **options):
    torch.manual_seed(seed)
    return deqflow.build(size, **options)


def contracting(size="tiny", **options):
    """A model whose flow is pulled back towards zero in each evaluation, so that every solve converges."""
    estimator = make(size, **options)
    estimator.update.register_forward_hook(lambda _, args, out: (out[0], out[1] - 0.3 * args[1]))
    return estimator.eval()


def pair(height=32, width=40, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image1 = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return image1, image1.roll((1, 2), (2, 3))


def exactly(evals):
    return Stop(max_evals=evals, atol=0.0)


def estimate(estimator, images, **options):
    with torch.no_grad():
        return estimator(*images, **options)


def count_evaluations(estimator):
    calls = []
    estimator.update.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_contract_holds_for_every_size_in_training_and_evaluation(size, recurrent):
    estimator = make(size, recurrent=recurrent, train_evals=3)
    image1, image2 = pair(30, 44, batch=2)
    kept = image1.clone(), image2.clone()
    channels = SIZES[size].hidden
    for training in (True, False):
        output = estimator.train(training)(image1, image2, stop=exactly(3))
        assert type(output) is deqflow.FlowOutput
        assert output.flow.shape == (2, 2, 30, 44)
        assert output.flow.dtype == torch.float32
        assert output.flow is output.flows[-1]
        assert len(output.flows) == (3 if recurrent and training else 1)
        coarse = tuple(math.ceil(side / SIZES[size].stride) for side in (30, 44))
        assert output.state.hidden.shape == (2, channels, *coarse)
        assert output.state.flow.shape == (2, 2, *coarse)
        assert output.solve.evals.tolist() == [3, 3]
        assert output.solve.residual.shape == output.hidden_residual.shape == (2,)
        assert all(torch.isfinite(flow).all() for flow in output.flows)
        assert output.flow.abs().max() > 0
    assert torch.equal(image1, kept[0])
    assert torch.equal(image2, kept[1])


@pytest.mark.parametrize(("size", "recurrent"), PARAMETERS)
def test_parameters_are_as_many_as_published(size, recurrent):
    with torch.device("meta"):
        estimator = deqflow.build(size, recurrent=recurrent)
    assert sum(parameter.numel() for parameter in estimator.parameters()) == PARAMETERS[size, recurrent]


@pytest.fixture(scope="module")
def mini():
    return make("mini").eval()


@given(height=st.integers(16, 70), width=st.integers(16, 70))
@settings(max_examples=25, deadline=None)
def test_images_of_any_size_from_16_pixels_give_finite_flow(mini, height, width):
    output = estimate(mini, pair(height, width), stop=exactly(2))
    assert output.flow.shape == (1, 2, height, width)
    assert output.state.flow.shape == (1, 2, math.ceil(height / 8), math.ceil(width / 8))
    assert torch.isfinite(output.flow).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (16, 127), (121, 23)])
@pytest.mark.parametrize("size", ["tiny", "small", "mini-warp"])
def test_small_and_odd_images_give_finite_flow_and_gradients(size, height, width):
    estimator = make(size, train_evals=2)
    output = estimator(*pair(height, width))
    output.flow.square().mean().backward()
    assert output.flow.shape == (1, 2, height, width)
    assert torch.isfinite(output.flow).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in estimator.parameters())


@pytest.mark.parametrize("recurrent", [False, True])
def test_twelve_evaluations_without_tolerance_are_twelve_calls(recurrent):
    estimator = make(recurrent=recurrent, max_evals=12, atol=0.0).eval()
    calls = count_evaluations(estimator)
    output = estimate(estimator, pair())
    assert len(calls) == 12
    assert output.solve.evals.tolist() == [12]
    assert output.solve.trace.shape == (12, 1)
    assert output.solve.status.tolist() == [Status.MAX_EVALS]


def test_budgets_are_the_documented_ones():
    equilibrium, recurrent = make(), make(recurrent=True)
    assert (equilibrium.equilibrium.stop.max_evals, equilibrium.equilibrium.eval_stop.max_evals) == (24, 40)
    assert (recurrent.equilibrium.stop.max_evals, recurrent.equilibrium.eval_stop.max_evals) == (12, 12)
    assert (equilibrium.equilibrium.stop.atol, equilibrium.equilibrium.eval_stop.atol) == (0.0, 0.02)
    assert recurrent.equilibrium.eval_stop.atol == 0.0
    assert (equilibrium.equilibrium.gradient, recurrent.equilibrium.gradient) == (Phantom(steps=1), Unrolled())
    assert equilibrium.config == EstimatorConfig(size="tiny", weight_norm=True, max_evals=40, atol=0.02)
    assert recurrent.config == EstimatorConfig(size="tiny", recurrent=True, weight_norm=False, max_evals=12, atol=0.0)


@pytest.mark.parametrize("rule", [Picard(), Anderson(), Broyden()])
def test_flow_and_state_come_from_the_evaluation_at_the_reported_state(rule):
    estimator, images = make().eval(), pair(30, 44)
    output = estimate(estimator, images, rule=rule, stop=exactly(5))
    with torch.no_grad():
        both = estimator.encode(torch.cat(images))  # one pass, as the estimator does it: the same bits
        problem = estimator.problem(both[:1], both[1:])
        assert torch.equal(problem.f(output.solve.z), output.solve.fz)
        assert torch.equal(problem.flow(output.solve.fz), output.flow)
    assert torch.equal(output.state.pack(), output.solve.fz)
    assert not torch.equal(output.solve.z, output.solve.fz)


def test_the_residual_is_the_flows_change_in_full_size_pixels():
    output = estimate(make().eval(), pair(40, 48, batch=2), stop=exactly(3))
    change = FlowState.unpack((output.solve.fz - output.solve.z).double())
    expected = 8 * (change.flow**2).mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(output.solve.residual, expected.float())
    assert torch.equal(output.solve.trace[-1], output.solve.residual)
    torch.testing.assert_close(output.hidden_residual, (change.hidden**2).mean((1, 2, 3)).sqrt().float())


def test_a_solve_stops_once_the_flow_moves_less_than_the_tolerance():
    estimator, images = contracting(), pair()
    output = estimate(estimator, images, stop=Stop(max_evals=40, atol=0.01))
    evals = int(output.solve.evals)
    assert 1 < evals < 40
    assert output.solve.status.tolist() == [Status.CONVERGED]
    assert output.solve.trace[-1] <= 0.01 < output.solve.trace[-2]
    assert torch.equal(output.flow, estimate(estimator, images, stop=exactly(evals)).flow)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (40, 60)])
def test_the_residual_of_a_flow_does_not_depend_on_the_pictures_size_or_the_hidden_state(height, width):
    change = torch.full((2, 34, height, width), 1e6)
    # A quarter of a coarse pixel is two full-size ones.
    FlowState.unpack(change).flow[:] = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(flow_residual(change), torch.tensor([2.0, 8.0]))


def test_a_stop_with_a_norm_of_its_own_keeps_it_and_none_is_changed():
    plain, own = Stop(max_evals=4, atol=0.0), Stop(max_evals=4, atol=1e-9, norm=lambda change: 0 * rms(change))
    estimator = make().eval()
    assert estimate(estimator, pair(), stop=own).solve.evals.tolist() == [1]
    output = estimate(estimator, pair(), stop=plain)
    assert output.solve.stop == dataclasses.replace(plain, norm=flow_residual)
    assert plain.norm is None


@pytest.mark.parametrize("recurrent", [False, True])
def test_starting_from_a_state_continues_exactly(recurrent):
    estimator, images = make(recurrent=recurrent).eval(), pair(30, 44, batch=2)
    whole = estimate(estimator, images, stop=exactly(12))
    half = estimate(estimator, images, stop=exactly(6))
    rest = estimate(estimator, images, stop=exactly(6), start=half.state)
    assert not torch.equal(half.flow, whole.flow)
    assert torch.equal(rest.flow, whole.flow)
    assert torch.equal(rest.solve.fz, whole.solve.fz)
    assert torch.equal(rest.solve.trace, whole.solve.trace[6:])


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_hidden_state_starts_at_zero_or_at_tanh_of_the_context(recurrent):
    estimator = make("mini", recurrent=recurrent).eval()
    image1, image2 = pair()
    with torch.no_grad():
        start = FlowState.unpack(problem_of(estimator, image1, image2).z0)
        encoded = estimator.feature_encoder(image1 * (2 / 255) - 1)
    hidden = encoded[:, 96:160].tanh() if recurrent else torch.zeros(1, 64, 4, 5)
    torch.testing.assert_close(start.hidden, hidden, rtol=1e-4, atol=1e-5)
    assert torch.equal(start.flow, torch.zeros(1, 2, 4, 5))


def test_a_shared_encoder_gives_features_first_and_context_last():
    estimator = make("mini").eval()
    image1, image2 = pair()
    with torch.no_grad():
        features1, features2 = estimator.encode(image1), estimator.encode(image2)
        f = estimator.problem(features1, features2).f
        encoded = estimator.feature_encoder(torch.cat([image1, image2]) * (2 / 255) - 1)
    assert estimator.context_encoder is None
    torch.testing.assert_close(f.context, encoded[:1, 96:].relu())
    torch.testing.assert_close(features1.context, encoded[:1, 96:])
    torch.testing.assert_close(features2.matching, encoded[1:, :96])
    inner = encoded[:1, :96].flatten(2).mT @ encoded[1:, :96].flatten(2) / math.sqrt(96)
    torch.testing.assert_close(f.correlation.volumes[0].flatten(2), inner, rtol=1e-4, atol=1e-4)


def test_the_encoders_see_black_as_minus_one_and_white_as_one():
    estimator, seen = make().eval(), []
    for encoder in (estimator.feature_encoder, estimator.context_encoder):
        encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    black, white = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 255.0)
    estimate(estimator, (black, white), stop=exactly(1))
    torch.testing.assert_close(seen[0], torch.cat([black - 1, torch.ones_like(white)]))
    assert torch.equal(seen[1], black - 1)  # the context is the first image's


@pytest.mark.parametrize("size", ["tiny", "small", "mini"])
def test_a_sample_does_not_depend_on_what_its_neighbours_are(size):
    estimator = contracting(size)
    stop = Stop(max_evals=30, atol=0.02)
    ours, others = pair(32, 40, batch=3), pair(32, 40, batch=3, seed=1)
    mixed = [torch.cat([0.2 * other[:1], our[1:2], other[2:]]) for our, other in zip(ours, others, strict=True)]
    output, other = estimate(estimator, ours, stop=stop), estimate(estimator, mixed, stop=stop)
    assert not torch.equal(output.flow[0], other.flow[0])
    assert torch.equal(output.flow[1], other.flow[1])
    assert torch.equal(output.solve.fz[1], other.solve.fz[1])
    assert output.solve.evals[1] == other.solve.evals[1]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, when it switches oneDNN off
@pytest.mark.parametrize("rule", [Picard(), Anderson(), Broyden()])
def test_alone_or_in_a_batch_a_sample_has_the_same_bits(rule):
    estimator = contracting()
    image1, image2 = pair(32, 40, batch=3)
    image1[0], image2[0] = 128.0, 128.0  # an easy one, frozen before the others
    stop = Stop(max_evals=30, atol=0.005)
    # oneDNN is left out: torch takes it for a batch of several images, but not for a small one.
    with torch.backends.mkldnn.flags(enabled=False):
        together = estimate(estimator, (image1, image2), rule=rule, stop=stop)
        for i in range(3):
            alone = estimate(estimator, (image1[i : i + 1], image2[i : i + 1]), rule=rule, stop=stop)
            assert torch.equal(together.flow[i], alone.flow[0])
            assert torch.equal(together.solve.fz[i], alone.solve.fz[0])
            assert together.solve.evals[i] == alone.solve.evals[0]
    assert len(set(together.solve.evals.tolist())) > 1
    torch.testing.assert_close(
        estimate(estimator, (image1, image2), rule=rule, stop=exactly(4)).flow[2:],
        estimate(estimator, (image1[2:], image2[2:]), rule=rule, stop=exactly(4)).flow,
        rtol=0,
        atol=1e-3,
    )  # with it: the same up to rounding


def test_a_sample_that_is_not_finite_fails_alone():
    estimator, images = make().eval(), pair(batch=3)
    state = estimate(estimator, images, stop=exactly(2)).state
    spoilt = deqflow.FlowState(state.hidden.clone(), state.flow.clone())
    spoilt.flow[1, 0, 2, 2] = torch.nan
    expected = estimate(estimator, images, stop=exactly(3), start=state)
    with pytest.warns(UserWarning, match="diverged and was tried again"):
        output = estimate(estimator, images, stop=exactly(3), start=spoilt)
    assert output.solve.status.tolist() == [Status.MAX_EVALS, Status.NON_FINITE, Status.MAX_EVALS]
    assert torch.equal(output.flow[[0, 2]], expected.flow[[0, 2]])
    with pytest.raises(deqflow.solvers.SolverError, match="NaN or infinity"):
        output.solve.check()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_gradient_mode_reaches_all_parameters(mode, recurrent):
    estimator = make(recurrent=recurrent, gradient=MODES[mode], train_evals=3, corrections=1)
    output = estimator(*pair(batch=2))
    output.flow.square().mean().backward()
    for name, parameter in estimator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for part in ("feature_encoder.stem.weight", "context_encoder.stem.weight", "upsampler.mask.0.weight"):
        assert estimator.get_parameter(part).grad.abs().max() > 0, part
    assert all(parameter.grad.abs().max() > 0 for parameter in estimator.update.parameters())


def test_the_recurrent_model_supervises_every_step():
    estimator = make("small", recurrent=True, train_evals=5)
    calls = count_evaluations(estimator)
    output = estimator(*pair(batch=2))
    assert len(calls) == len(output.flows) == 5
    assert isinstance(output.solve.evals, torch.Tensor)
    assert output.solve.evals.tolist() == [5, 5]
    assert all(flow.requires_grad for flow in output.flows)
    for k, flow in enumerate(output.flows, start=1):
        assert torch.equal(flow, estimate(estimator.eval(), pair(batch=2), stop=exactly(k)).flow)


def test_corrections_are_the_flow_along_the_way():
    estimator = make("small", train_evals=6, corrections=3)
    output = estimator(*pair(batch=2))
    assert len(output.flows) == 3
    for k, flow in zip((2, 4, 6), output.flows, strict=True):
        assert flow.requires_grad
        assert torch.equal(flow, estimate(estimator.eval(), pair(batch=2), stop=exactly(k)).flow)


def test_all_gradients_changes_the_gradient_and_nothing_else():
    flows, gradients = [], []
    for all_gradients in (False, True):
        estimator = make(all_gradients=all_gradients, gradient=Unrolled(), train_evals=3)
        flow = estimator(*pair()).flow
        flow.square().mean().backward()
        flows.append(flow.detach())
        gradients.append(estimator.get_parameter("update.head.conv2.bias").grad)
        assert estimator.config.all_gradients is all_gradients
    assert torch.equal(*flows)
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[0].norm()


def test_without_all_gradients_the_state_passes_no_gradient_through_its_flow():
    for all_gradients in (False, True):
        f, z0 = map_of(make(all_gradients=all_gradients), *pair())
        z = z0.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(FlowState.unpack(f(z)).flow.sum(), z)
        assert FlowState.unpack(gradient).hidden.abs().max() > 0
        assert bool((FlowState.unpack(gradient).flow == 0).all()) is not all_gradients


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_bfloat16_keeps_the_state_in_float32_and_reaches_all_parameters(size, recurrent):
    estimator = make(size, recurrent=recurrent, train_evals=3)
    exact = estimate(estimator, pair(batch=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = estimator(*pair(batch=2))
    assert output.solve.fz.dtype == output.state.hidden.dtype == output.state.flow.dtype == torch.float32
    assert output.flow.dtype == torch.float32
    assert not torch.equal(output.flow, exact.flow)
    assert (output.flow - exact.flow).norm() < 0.1 * exact.flow.norm()
    output.flow.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in estimator.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in estimator.update.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_the_map_is_pure_in_training_too(training):
    estimator = make("base" if training else "tiny").train(training)
    with torch.no_grad():
        f, z0 = map_of(estimator, *pair(batch=2))
        z = z0 + 0.1
        before, kept = [buffer.clone() for buffer in estimator.buffers()], z.clone()
        first = f(z)
        f(first)
        assert torch.equal(first, f(z))
    assert torch.equal(z, kept)
    assert all(torch.equal(a, b) for a, b in zip(before, estimator.buffers(), strict=True))


def test_the_same_seed_gives_the_same_bits():
    outputs = [make(seed=3, train_evals=3)(*pair()) for _ in range(2)]
    for output in outputs:
        output.flow.sum().backward()
    assert torch.equal(outputs[0].flow, outputs[1].flow)
    estimator = make(seed=3).eval()
    assert torch.equal(estimate(estimator, pair()).flow, estimate(estimator, pair()).flow)
    assert not torch.equal(estimate(make(seed=4), pair()).flow, outputs[0].flow)


@pytest.mark.parametrize(
    ("bad", "error", "sentence"),
    [
        (
            torch.zeros(1, 3, 32, 40, dtype=torch.int64),
            TypeError,
            r"image\d expects a .*uint8 tensor .*int64: conv",
        ),
        (
            [[0.0]],
            TypeError,
            r"image\d expects a tensor .* got builtins.list: deqflow.flow\(image1, image2\) takes",
        ),
        (torch.zeros(3, 32, 40), ValueError, r"image\d expects shape \(B, 3, H, W\).* got \(3, 32, 40\): add a batch"),
        (torch.zeros(1, 1, 32, 40), ValueError, r"image\d expects shape .* got \(1, 1, 32, 40\)"),
        (torch.zeros(1, 3, 32, 48), ValueError, r"one size, got .*48x32.*crop or resize"),
        (torch.zeros(2, 3, 32, 40), ValueError, r"one number of images, at least 1, got"),
        (torch.full((1, 3, 32, 40), torch.nan), ValueError, r"must be finite, .* in sample 0: replace them"),
        (torch.full((1, 3, 32, 40), -torch.inf), ValueError, r"must be finite, .* in sample 0: replace them"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_wrong_images_are_refused_with_advice(bad, error, sentence, first):
    good = pair()[0]
    with pytest.raises(error, match=sentence) as caught:
        make("mini")(*((bad, good) if first else (good, bad)))
    if "image" in sentence.split()[0]:
        assert str(caught.value).startswith("image1" if first else "image2")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_sample_whose_image_is_not_finite_fails_alone_and_says_so(value, which):
    estimator, images = make("mini").eval(), pair(batch=3)
    images[which][2, 1, 5, 5] = value
    seen = []
    with pytest.warns(UserWarning, match="NaN or infinity in the images of sample 2: its flow is NaN") as caught:
        output = estimate(estimator, images, on_eval=seen.append)
    assert caught[0].filename == __file__
    assert torch.isnan(output.flow[2]).all()
    assert torch.isnan(output.state.flow[2]).all()
    assert output.solve.status[2] == Status.NON_FINITE
    with pytest.raises(deqflow.solvers.SolverError, match="NaN or infinity"):
        output.solve.check()
    alone = estimate(estimator, [image[:2] for image in images])
    torch.testing.assert_close(output.flow[:2], alone.flow, rtol=1e-4, atol=1e-4)
    assert seen
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in sample 2"):
        estimator.train()(*images)


def test_a_solve_can_be_watched_and_ended():
    estimator, seen = make("mini").eval(), []

    def after_three(evaluation):
        seen.append(evaluation.number)
        return evaluation.number == 3

    output = estimate(estimator, pair(), on_eval=after_three)
    assert seen == [1, 2, 3]
    assert output.solve.status.tolist() == [Status.INTERRUPTED]
    assert torch.equal(output.flow, estimate(estimator, pair(), stop=Stop(max_evals=3, atol=0.0)).flow)
    with pytest.raises(ValueError, match="on_eval expects a solve without a graph: call the model"):
        estimator.train()(*pair(), on_eval=seen.append)


@pytest.mark.parametrize(("height", "width"), [(15, 40), (40, 15), (1, 1)])
def test_images_under_16_pixels_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"at least 16 px a side, got {width}x{height}"):
        make("mini")(*pair(height, width))


@pytest.mark.parametrize(
    ("hidden", "flow"),
    [
        ((1, 32, 4, 5), (1, 2, 4, 6)),
        ((1, 32, 5, 5), (1, 2, 5, 5)),
        ((2, 32, 4, 5), (2, 2, 4, 5)),
        ((1, 33, 4, 5), (1, 1, 4, 5)),
        ((1, 34, 4, 5), (2, 4, 5)),
        ((32, 4, 5), (2, 4, 5)),
    ],
)
def test_a_start_of_another_shape_is_refused(hidden, flow):
    start = deqflow.FlowState(torch.zeros(hidden), torch.zeros(flow))
    with pytest.raises(ValueError, match=r"start expects hidden \(1, 32, 4, 5\) and flow \(1, 2, 4, 5\)") as caught:
        make()(*pair(), start=start)
    assert f"got {hidden} and {flow}: use the state of an output" in str(caught.value)


def test_images_between_zero_and_one_are_warned_of_at_the_callers_line():
    estimator, images = make().eval(), [image / 255 for image in pair()]
    with pytest.warns(UserWarning, match="largest value is .*: multiply by 255") as caught:
        estimate(estimator, images, stop=exactly(1))
    assert [warning.filename for warning in caught] == [__file__]


def test_black_images_and_a_single_bright_pixel_are_not_warned_of(recwarn):
    estimator = make().eval()
    image1, image2 = (image / 255 for image in pair())
    image2[0, 0, 0, 0] = 2.0
    estimate(estimator, (image1, image2), stop=exactly(1))
    estimate(estimator, (0 * image1, 0 * image2), stop=exactly(1))
    assert not recwarn.list


def test_an_unknown_size_is_refused_with_the_known_ones():
    known = "tiny, base, large, huge, gigantic, small, sea-s, sea-m, mini, mini-warp"
    assert ", ".join(SIZES) == known
    with pytest.raises(ValueError, match=f"Unknown size 'medium': expected one of {known}"):
        deqflow.build("medium")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"max_evals": 0}, "max_evals"),
        ({"train_evals": 0}, "max_evals"),
        ({"atol": -1.0}, "tolerances of 0 or more"),
        ({"corrections": 0}, "corrections of at least 1"),
        ({"corrections": 0, "recurrent": True}, "corrections of at least 1"),
    ],
)
def test_zero_is_refused_and_not_taken_for_the_default(option, sentence):
    with pytest.raises(ValueError, match=sentence):
        deqflow.build("tiny", **option)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="weightnorm"):
        deqflow.build("tiny", weightnorm=True)
    with pytest.raises(TypeError, match="stopp"):
        make()(*pair(), stopp=exactly(1))


class Follower(nn.Module):
    """An update of one's own: the context pulls a hidden state of three channels, two of which are the flow."""

    hidden_channels = 3

    def prepare(self, context):
        return context

    def forward(self, hidden, flow, correlation, prepared):
        assert correlation.shape[1] == 2 * 9
        return 0.5 * hidden + prepared, 0.25 * prepared[:, :2] - 0.5 * flow


def test_an_update_operator_of_ones_own_fits_in():
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    estimator = FlowEstimator(
        feature_encoder=Encoder(widths=widths, outputs=6, norm="instance"),
        context_encoder=Encoder(widths=widths, outputs=3, norm="none"),
        update=Follower(),
        upsampler=BilinearUpsampler(),
        equilibrium=Equilibrium(rule=Picard(), stop=Stop(max_evals=60, atol=1e-5), gradient=Implicit()),
        context_channels=3,
        levels=2,
        radius=1,
    )
    image1, image2 = pair()
    output = estimator.eval()(image1, image2)
    context = problem_of(estimator, image1, image2).f.context
    assert output.solve.check().converged.all()
    torch.testing.assert_close(output.state.hidden, 2 * context, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.state.flow, 0.5 * context[:, :2], rtol=1e-3, atol=1e-3)
    assert estimator.config is None

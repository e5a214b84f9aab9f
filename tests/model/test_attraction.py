"""What draws the flow back before each evaluation."""

import pytest
import torch
from pairs import problem_of
from torch import nn

import deqflow
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.model.attraction import (
    ContextSmoothing,
    Leak,
    LearnedSmoothing,
    MeanSmoothing,
    make_attraction,
    mean_of_neighbours,
    neighbours,
)
from deqflow.model.state import FlowState, flow_residual
from deqflow.solvers import Picard, Stop, solve

HIDDEN = 6
MODULES = {
    "mean": lambda: MeanSmoothing(0.3),
    "context": lambda: ContextSmoothing(0.3, 1.0),
    "learned": lambda: LearnedSmoothing(HIDDEN, 0.3),
    "leak": lambda: Leak(HIDDEN, width=8),
}
SMOOTHING = ["mean", "context", "learned"]


@pytest.fixture
def inputs(generator):
    """Context, hidden state and flow of two samples."""
    shapes = (2, 5, 7, 9), (2, HIDDEN, 7, 9), (2, 2, 7, 9)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def randomised(module):
    """Weights that are not those it begins with."""
    torch.manual_seed(0)
    for parameter in module.parameters() if isinstance(module, nn.Module) else ():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("name", SMOOTHING)
def test_a_constant_flow_stays_as_it_is_up_to_the_border(inputs, name):
    context, hidden, _ = inputs
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(2, 2, 7, 9)
    drawn = randomised(MODULES[name]()).prepare(context)(hidden, flow)
    torch.testing.assert_close(drawn, flow)


def test_the_mean_is_over_what_lies_inside_the_image():
    flow = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 2, 3, 4)
    mean = mean_of_neighbours(flow)[0, 0]
    assert mean[0, 0] == (0 + 1 + 4 + 5) / 4
    assert mean[1, 1] == 5
    drawn = MeanSmoothing(0.25).prepare(flow)(flow, flow)[0, 0]
    assert drawn[0, 0] == 0.25 * mean[0, 0]


def test_context_weights_are_a_softmax_and_respect_edges(generator):
    context = torch.zeros(1, 3, 6, 8)
    context[..., 4:] = 5.0  # two regions that look apart
    flow = torch.zeros(1, 2, 6, 8)
    flow[..., 4:] = 1.0  # and move apart
    sharp = ContextSmoothing(0.9, temperature=0.1).prepare(context)(flow, flow)
    torch.testing.assert_close(sharp, flow, rtol=0, atol=1e-4)  # nothing crosses the edge
    blurred = ContextSmoothing(0.9, temperature=1e6).prepare(context)(flow, flow)
    torch.testing.assert_close(blurred, torch.lerp(flow, mean_of_neighbours(flow), 0.9), rtol=0, atol=1e-4)
    noise = torch.randn(1, 3, 6, 8, generator=generator)
    spike = torch.zeros(1, 2, 6, 8)
    spike[..., 2, 3] = 1.0
    spread = ContextSmoothing(0.5, 1.0).prepare(noise)(spike, spike)
    scaled = noise / noise.std()
    logits = -(neighbours(scaled)[:, :, :, 2, 2] - scaled[:, :, None, 2, 2]).square().sum(1)
    torch.testing.assert_close(spread[0, 0, 2, 2], 0.5 * logits.softmax(1)[0, 5])  # the neighbour on the right


def test_learned_smoothing_begins_as_the_mean(inputs):
    context, hidden, flow = inputs
    learned = LearnedSmoothing(HIDDEN, 0.3).prepare(context)(hidden, flow)
    torch.testing.assert_close(learned, MeanSmoothing(0.3).prepare(context)(hidden, flow))


def test_a_leak_begins_small(inputs):
    context, hidden, flow = inputs
    torch.manual_seed(0)
    torch.testing.assert_close(Leak(HIDDEN).prepare(context)(hidden, flow), 0.98 * flow)
    torch.testing.assert_close(Leak(HIDDEN, share=0.1).prepare(context)(hidden, flow), 0.9 * flow)


@pytest.mark.parametrize("module", [MeanSmoothing(0.0), ContextSmoothing(0.0, 1e3)])
def test_a_strength_of_zero_is_the_map_without(generator, module):
    torch.manual_seed(0)
    estimator = deqflow.build("mini").eval()
    images = 255 * torch.rand(2, 2, 3, 24, 40, generator=generator)
    stop = Stop(max_evals=4, atol=0.0)
    plain = estimator(*images, stop=stop)
    estimator.attraction = module
    assert torch.equal(estimator(*images, stop=stop).flow, plain.flow)
    module.strength = 0.3  # a number that may be set at any time
    assert not torch.equal(estimator(*images, stop=stop).flow, plain.flow)
    module.strength = 0.0
    estimator.attraction = None
    assert torch.equal(estimator(*images, stop=stop).flow, plain.flow)


@pytest.mark.parametrize("name", ["mean", "context", "learned", "leak"])
def test_some_of_the_samples_are_drawn_as_all_are(generator, name):
    torch.manual_seed(0)
    estimator = deqflow.build("mini", attraction=name, attraction_temperature=1e3).eval()
    images = 255 * torch.rand(2, 3, 3, 24, 40, generator=generator)
    with torch.no_grad():
        problem = problem_of(estimator, *images)
        z, rows = torch.randn(problem.z0.shape, generator=generator), torch.tensor([2, 0])
        torch.testing.assert_close(problem.f.subset(rows)(z[rows]), problem.f(z)[rows], rtol=1e-4, atol=1e-5)
        estimator.attraction = None
        assert not torch.allclose(problem_of(estimator, *images).f(z), problem.f(z), atol=1e-3)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_pass_gradcheck(generator, name):
    module = randomised(MODULES[name]())
    if isinstance(module, nn.Module):
        module.double()
    context, hidden, flow = (torch.randn(1, c, 3, 4, generator=generator, dtype=torch.float64) for c in (5, HIDDEN, 2))
    draw = module.prepare(context)
    # The smoothness weights are computed in float32: differences must be wide enough to be seen there.
    precise = name in ("mean", "leak")
    assert torch.autograd.gradcheck(
        draw,
        (hidden.requires_grad_(name in ("learned", "leak")), flow.requires_grad_()),
        eps=1e-6 if precise else 1e-3,
        atol=1e-5 if precise else 1e-3,
    )


@pytest.mark.parametrize("name", ["learned", "leak"])
def test_training_reaches_what_is_learned(generator, name):
    torch.manual_seed(0)
    estimator = deqflow.build("mini", attraction=name, all_gradients=True, train_evals=3)
    output = estimator(*(255 * torch.rand(2, 1, 3, 24, 40, generator=generator)))
    output.flow.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in estimator.attraction.parameters())


@pytest.mark.parametrize("name", ["mean", "context", "learned", "leak"])
def test_checkpoints_keep_it(tmp_path, generator, name):
    torch.manual_seed(0)
    estimator = deqflow.build("mini", attraction=name, attraction_strength=0.2, attraction_temperature=2.0).eval()
    randomised(estimator.attraction)
    loaded = deqflow.load(deqflow.save(estimator, tmp_path / "model.safetensors"))
    assert type(loaded.attraction) is type(estimator.attraction)
    assert loaded.config == estimator.config
    images = 255 * torch.rand(2, 1, 3, 24, 40, generator=generator)
    assert torch.equal(loaded(*images).flow, estimator(*images).flow)


def test_published_models_have_none():
    with torch.device("meta"):
        assert deqflow.build("small", recurrent=True).attraction is None
    torch.manual_seed(0)
    names = deqflow.build("small", recurrent=True).state_dict()
    assert not any("attraction" in name for name in names)


@pytest.fixture(scope="module")
def trained():
    scenes = SceneConfig(height=96, width=128, motion_scales=(0.3,))
    pairs = [SyntheticPairs(3, seed=11, config=scenes)[i] for i in range(3)]
    images = [torch.stack([getattr(pair, name) for pair in pairs]) for name in ("image1", "image2")]
    return deqflow.load("deqflow-small"), images


def ends_apart(trained, attraction, evals=64):
    """Distance, in px RMS, of the ends from a random start and from the model's own; the median of the pairs."""
    estimator, images = trained
    estimator.attraction = attraction
    with torch.no_grad():
        problem = problem_of(estimator, *images)
        noise = FlowState.unpack(torch.randn(problem.z0.shape, generator=torch.Generator().manual_seed(0)))
        start = FlowState(noise.hidden.tanh(), noise.flow).pack()
        ends = [solve(problem.f, z, Picard(), Stop(max_evals=evals, atol=0.0)).fz for z in (problem.z0, start)]
    estimator.attraction = None
    return float(flow_residual(ends[0] - ends[1]).median())


def test_random_starts_end_in_one_point_with_a_smoothness_term_and_not_without(trained):
    assert ends_apart(trained, MeanSmoothing(0.3)) < 0.2
    assert ends_apart(trained, None) > 1.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MeanSmoothing(1.0), "strength of at least 0 and less than 1, got 1.0"),
        (lambda: ContextSmoothing(-0.1), "strength of at least 0 and less than 1, got -0.1"),
        (lambda: LearnedSmoothing(4, 2.0), "strength of at least 0"),
        (lambda: Leak(4, share=1.5), "strength of at least 0"),
        (lambda: ContextSmoothing(0.3, 0.0), "temperature above 0, got 0.0"),
        (
            lambda: make_attraction("median", hidden=4, strength=0.3, temperature=1.0),
            "Unknown attraction 'median'",
        ),
        (lambda: deqflow.build("mini", attraction="median"), "expected one of none, mean, context, learned, leak"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

"""What must hold on a GPU, against the CPU: ``python -m pytest tests/test_gpu.py`` on a machine that has one."""

import copy
import dataclasses
from threading import Event

import pytest
import torch
from pairs import map_of
from training_runs import QUICK, fixed_batch, read_last, same

from deqflow import build
from deqflow.equilibrium import Implicit, Phantom
from deqflow.evidence.costs import step_cost
from deqflow.model import checkpoints
from deqflow.model.correlation import CorrelationPyramid, SampledCorrelation
from deqflow.model.encoders import InstanceNorm
from deqflow.solvers import Anderson, Broyden, Picard, Stop, solve
from deqflow.training import Trainer
from deqflow.training.losses import jacobian_penalty
from deqflow.training.states import random_state, set_random_state

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: run python -m pytest tests/test_gpu.py where there is one"
)

KINDS = pytest.mark.parametrize("kind", [CorrelationPyramid, SampledCorrelation])
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _float32_in_full():
    """Products of float32 as on a CPU: TF32, which GPUs convolve in by themselves, has ten bits of the 23."""
    kinds = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed


def images(generator, batch=2, height=72, width=104):
    """Two batches; a height and a width whose coarsest features are a pixel wide."""
    return (255 * torch.rand(2, batch, 3, height, width, generator=generator)).unbind()


def assert_near(ours, theirs, share, name=None):
    """Equal up to a share of the largest number; ``ours`` on any device, ``theirs`` on the CPU."""
    ours, theirs = ours.detach().cpu(), theirs.detach()
    assert ours.shape == theirs.shape
    largest = float(theirs.double().abs().max())
    worst = float((ours.double() - theirs.double()).abs().max())
    assert worst <= share * largest, f"{name or 'values'}: {worst:.3g} apart where the largest is {largest:.3g}"


# Both round half precision at the end, and in backward at each step; float32 only adds up in another order.
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_the_cpus_in_values_gradients_and_layout(generator, dtype, share, layout):
    x = (5 + 3 * torch.randn(2, 6, 9, 13, generator=generator)).to(dtype).contiguous(memory_format=layout)
    direction = torch.randn(2, 6, 9, 13, generator=generator).to(dtype)
    found = []
    for device in ("cpu", DEVICE):
        leaf = x.detach().to(device).requires_grad_()
        y = InstanceNorm()(leaf)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=layout)
        found.append((y, *torch.autograd.grad(y, leaf, direction.to(device))))
    for theirs, ours in zip(*found, strict=True):
        assert_near(ours, theirs, share)


def lookups(kind, generator, flow, **options):
    """A lookup on the CPU and on the device, and the gradients of its sum with random weights."""
    batch, _, height, width = flow.shape
    inputs = [*torch.randn(2, batch, 8, height, width, generator=generator), flow]
    direction = None
    for device in ("cpu", DEVICE):
        leaves = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
        found = kind(*leaves[:2], **options).lookup(leaves[2])
        if direction is None:
            direction = torch.randn(found.shape, generator=generator)
        yield found, *torch.autograd.grad(found, leaves, direction.to(device))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (9, 13), (17, 24)])
@pytest.mark.parametrize("scale", [0.5, 5.0, 100.0])
@KINDS
def test_a_lookup_is_the_cpus_in_values_and_gradients(generator, kind, height, width, scale):
    flow = scale * torch.randn(2, 2, height, width, generator=generator)
    flow = (8 * flow).floor() / 8 + 1 / 16  # away from whole pixels of any level, where the derivative jumps
    for name, theirs, ours in zip(("values", "first", "second", "flow"), *lookups(kind, generator, flow), strict=True):
        if theirs.any():
            assert_near(ours, theirs, 1e-4, name)
        else:
            assert not ours.any()


@pytest.mark.parametrize("graph", [False, True])
@KINDS
def test_a_lookup_by_fewer_operations_is_the_cpus(generator, kind, graph):
    """Without a graph to the flow: in solves, and in training but for ``all_gradients``."""
    first, second = torch.randn(2, 3, 8, 9, 13, generator=generator)
    flow = 4 * torch.randn(3, 2, 9, 13, generator=generator)
    flow[0, :, 2, 3], flow[1, 0, 0, 0], flow[2, 1, 4, 5] = 1e6, -torch.inf, 3e38
    rows = torch.tensor([2, 0])
    found = []
    for device in ("cpu", DEVICE):
        leaves = [tensor.detach().to(device).requires_grad_(graph) for tensor in (first, second)]
        whole = kind(*leaves)
        part = whole.subset(rows.to(device))
        values = whole.lookup(flow.to(device)), part.lookup(flow[rows].to(device))
        total = sum(value.square().sum() for value in values)
        found.append((*values, *(torch.autograd.grad(total, leaves) if graph else ())))
    for theirs, ours in zip(*found, strict=True):
        assert_near(ours, theirs, 1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -1e18])
@pytest.mark.parametrize("graph", [False, True])
@KINDS
def test_a_flow_that_is_far_or_unknown_shows_where_it_is_and_nowhere_else(generator, kind, graph, value):
    first, second = torch.randn(2, 2, 8, 4, 6, generator=generator).to(DEVICE)
    flow = torch.zeros(2, 2, 4, 6, device=DEVICE)
    flow[1, 0, 2, 3] = value
    pyramid = kind(first, second, levels=3, radius=2)
    before = pyramid.lookup(torch.zeros_like(flow))
    found = pyramid.lookup(flow.requires_grad_(graph)).detach()
    there = found[1, :, 2, 3]
    assert torch.isnan(there).all() if value != value else not there.any()
    found[1, :, 2, 3] = before[1, :, 2, 3]
    torch.testing.assert_close(found, before, rtol=0, atol=1e-5)


def test_more_pictures_than_cudnns_sampler_takes():
    features = torch.ones(2, 4100, 1, 4, 4, device=DEVICE)  # 65,600 pictures
    pyramid = CorrelationPyramid(*features, levels=1, radius=0)
    assert not pyramid.gathers
    found = pyramid.lookup(torch.zeros(4100, 2, 4, 4, device=DEVICE))
    torch.testing.assert_close(found, torch.ones_like(found))


def on_each(estimator, run):
    """What a function of an estimator and a device gives on the CPU and on the device."""
    elsewhere = copy.deepcopy(estimator).to(DEVICE)
    return run(estimator, "cpu"), run(elsewhere, DEVICE)


@pytest.mark.parametrize("rule", [Picard(), Anderson(), Broyden()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("correlation", ["volume", "sampled"])
@pytest.mark.parametrize("update", ["raft", "raft-small", "gma"])
def test_flow_is_the_cpus(generator, update, correlation, rule):
    torch.manual_seed(0)
    pair, stop = images(generator), Stop(max_evals=6, atol=0.0)

    @torch.no_grad()
    def run(estimator, device):
        return estimator(*(image.to(device) for image in pair), rule=rule, stop=stop)

    theirs, ours = on_each(build("tiny", update, correlation=correlation).eval(), run)
    assert_near(ours.flow, theirs.flow, 1e-4, "flow")
    assert_near(ours.state.hidden, theirs.state.hidden, 1e-4, "hidden state")
    assert_near(ours.solve.trace, theirs.solve.trace, 1e-4, "residuals")
    assert ours.solve.status.tolist() == theirs.solve.status.tolist()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "model in half precision"])
def test_flow_in_half_precision_is_near(generator, dtype, whole):
    torch.manual_seed(0)
    estimator, pair = build("tiny").eval(), images(generator)
    stop = Stop(max_evals=3, atol=0.0)
    with torch.no_grad():
        exact = estimator(*pair, stop=stop).flow
        estimator = estimator.to(DEVICE, dtype if whole else torch.float32)
        with torch.autocast(DEVICE, dtype, enabled=not whole):
            rough = estimator(*(image.to(DEVICE) for image in pair), stop=stop).flow
    assert_near(rough, exact, 0.05)


def test_samples_that_are_done_are_left_out_and_change_nothing(generator):
    torch.manual_seed(0)
    estimator = build("tiny").eval().to(DEVICE)
    pair = [image.to(DEVICE) for image in images(generator, batch=4)]
    with torch.no_grad():
        f, z0 = map_of(estimator, *pair)
        alone = solve(f, z0, Picard(), Stop(max_evals=4, atol=0.0))
        z0[:2] = torch.nan  # two samples fail at once, and the others go on in a map of their own
        result = solve(f, z0, Picard(), Stop(max_evals=4, atol=0.0))
    assert result.evals.tolist() == [1, 1, 4, 4]
    assert_near(result.fz[2:], alone.fz[2:].cpu(), 1e-4)


GRADIENTS = {
    "one step": {},
    "three steps": {"gradient": Phantom(steps=3, damping=0.9)},
    "implicit": {"gradient": Implicit(stop=Stop(max_evals=4, atol=0.0))},
    "unrolled": {"recurrent": True},
    "through the flow": {"recurrent": True, "all_gradients": True},
    "without the volume": {"correlation": "sampled", "all_gradients": True},
    "with attention": {"update": "gma"},
    "raft-small": {"size": "small"},
    "encoders twice": {"checkpoint_encoders": True},
}


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradients_of_a_step_are_the_cpus(generator, options):
    torch.manual_seed(0)
    pair = images(generator)

    def run(estimator, device):
        estimator(*(image.to(device) for image in pair)).flow.abs().mean().backward()
        return dict(estimator.named_parameters())

    theirs, ours = on_each(build(**{"size": "tiny", "train_evals": 4, **options}).train(), run)
    assert {name for name, p in ours.items() if p.grad is None} == {
        name for name, p in theirs.items() if p.grad is None
    }
    expected = {name: parameter.grad for name, parameter in theirs.items() if parameter.grad is not None}
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        apart = float((ours[name].grad.cpu() - gradient).norm())
        # Not entry by entry: rounding may bring a pixel to the other side of a ReLU's kink.
        assert apart <= 2e-2 * float(gradient.norm()) + 1e-5 * largest, name


@pytest.mark.parametrize("all_gradients", [False, True])
def test_the_jacobian_penalty_and_its_gradient_are_the_cpus(generator, all_gradients):
    torch.manual_seed(0)
    pair = images(generator, batch=1)

    def run(estimator, device):
        f, z0 = map_of(estimator, *(image.to(device) for image in pair))
        penalty = jacobian_penalty(f, z0 + 0.3, torch.Generator().manual_seed(1))
        penalty.backward()  # through a first derivative, of the lookup too where nothing is detached
        return penalty, estimator.update.units[0].gates.bias.grad, estimator.feature_encoder.head.weight.grad

    theirs, ours = on_each(build("tiny", all_gradients=all_gradients).train(), run)
    assert all(bool(value.any()) for value in theirs)
    for name, expected, got in zip(("penalty", "gates", "features"), theirs, ours, strict=True):
        assert_near(got, expected, 1e-2, name)


CONFIG = dataclasses.replace(QUICK, size="tiny", bfloat16=True, steps=4)


@pytest.mark.parametrize("change", [{}, {"size": "small", "recurrent": True}, {"bfloat16": False, "float16": True}])
def test_a_run_goes_on_from_its_state(tmp_path, change):
    config = dataclasses.replace(CONFIG, **change)
    whole = Trainer(config, tmp_path / "whole", device=DEVICE)
    whole.run(lambda _: None)
    stop = Event()
    Trainer(config, tmp_path / "resumed", device=DEVICE).run(lambda _: stop.set(), stop_event=stop)
    state = read_last(tmp_path / "resumed")
    assert state["step"] == 2
    resumed = Trainer(config, tmp_path / "resumed", device=DEVICE)
    assert same({name: value.cpu() for name, value in resumed.estimator.state_dict().items()}, state["model"])
    resumed.run(lambda _: None)
    assert resumed.finished
    # Not the same bits: a GPU adds gradients up in whatever order they come.
    torch.testing.assert_close(torch.tensor(resumed.recent), torch.tensor(whole.recent), rtol=0.02, atol=0)
    model = checkpoints.load(tmp_path / "resumed" / "model.safetensors")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_step_of_training_is_the_cpus(tmp_path):
    config = dataclasses.replace(CONFIG, bfloat16=False, jacobian_weight=0.1)
    losses = [
        [trainer.train_step(fixed_batch()) for _ in range(2)]
        for trainer in (Trainer(config, tmp_path / device, device=device) for device in ("cpu", DEVICE))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_generator_of_the_device_is_among_the_states():
    device = torch.device(DEVICE)
    state = random_state(device)
    drawn = torch.randn(3, device=device)
    set_random_state(state, device)
    assert torch.equal(torch.randn(3, device=device), drawn)


def test_memory_of_equilibrium_training_does_not_grow_with_evaluations(generator):
    pair = [image.to(DEVICE) for image in images(generator, 1, 128, 192)]
    growth = {}
    for recurrent in (False, True):
        torch.manual_seed(0)
        estimator = build("tiny", recurrent=recurrent, train_evals=4).to(DEVICE).train()
        step_cost(estimator, *pair)  # libraries allocate what they keep when they are first called
        few = step_cost(estimator, *pair).peak
        estimator.equilibrium.stop = dataclasses.replace(estimator.equilibrium.stop, max_evals=24)
        growth[recurrent] = step_cost(estimator, *pair).peak - few
    states = 20 * 24 * 16 * (32 + 2) * 4  # bytes: what twenty evaluations return, the least that a graph keeps of them
    assert growth[True] > 10 * states
    assert growth[False] < states

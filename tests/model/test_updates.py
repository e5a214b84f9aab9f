import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deqflow.model.updates
from deqflow.model.build import build
from deqflow.model.updates import ConvGRU, GmaUpdate, RaftUpdate, fixed

HIDDEN, CONTEXT, MOTION, CORRELATION = 6, 5, 8, 9
KINDS = [(True, True), (True, False), (False, True), (False, False)]
OPERATORS = pytest.mark.parametrize(("separable", "weight_norm"), KINDS)


def make(separable, weight_norm, seed=0):
    torch.manual_seed(seed)
    return RaftUpdate(
        hidden=HIDDEN,
        context=CONTEXT,
        motion=MOTION,
        correlation=CORRELATION,
        correlation_widths=(7, 6) if separable else (7,),
        flow_widths=(6, 4),
        head=7,
        separable=separable,
        weight_norm=weight_norm,
    )


def inputs(generator, *, batch=2, height=5, width=6, dtype=torch.float32):
    channels = (CONTEXT, HIDDEN, 2, CORRELATION)
    return [torch.randn(batch, c, height, width, generator=generator, dtype=dtype) for c in channels]


def conv(x, module):
    height, width = module.kernel_size
    return F.conv2d(x, module.weight, module.bias, padding=(height // 2, width // 2))


def direct(update, context, hidden, flow, correlation):
    """RAFT's update without any preparation: each gate convolves [hidden, context, motion] as a whole."""
    motion = flow
    for module in update.motion.correlation:
        correlation = conv(correlation, module).relu()
    for module in update.motion.flow:
        motion = conv(motion, module).relu()
    motion = torch.cat([conv(torch.cat([correlation, motion], 1), update.motion.merge).relu(), flow], 1)
    for unit in update.units:
        weights, biases = unit.gates.weight.chunk(3), unit.gates.bias.chunk(3)
        padding = tuple(side // 2 for side in unit.gates.kernel_size)
        z, r = (
            F.conv2d(torch.cat([hidden, context, motion], 1), weights[i], biases[i], padding=padding).sigmoid()
            for i in (0, 1)
        )
        q = F.conv2d(torch.cat([r * hidden, context, motion], 1), weights[2], biases[2], padding=padding).tanh()
        hidden = (1 - z) * hidden + z * q
    return hidden, conv(conv(hidden, update.head.conv1).relu(), update.head.conv2)


def prepared(update, context, hidden, flow, correlation):
    return update(hidden, flow, correlation, update.prepare(context))


def loss(outputs):
    """A sum that tells every element of the outputs from every other."""
    return sum((output.double() * torch.linspace(1, 2, output.numel()).view(output.shape)).sum() for output in outputs)


@OPERATORS
def test_the_prepared_update_equals_a_direct_transcription(generator, separable, weight_norm):
    update, tensors = make(separable, weight_norm).double(), inputs(generator, dtype=torch.float64)
    for got, expected in zip(prepared(update, *tensors), direct(update, *tensors), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@OPERATORS
def test_its_gradients_equal_those_of_the_transcription(generator, separable, weight_norm):
    update = make(separable, weight_norm).double()
    tensors = [tensor.requires_grad_() for tensor in inputs(generator, dtype=torch.float64)]
    wanted = {**dict(update.named_parameters()), **{str(i): tensor for i, tensor in enumerate(tensors)}}
    got = torch.autograd.grad(loss(prepared(update, *tensors)), list(wanted.values()))
    expected = torch.autograd.grad(loss(direct(update, *tensors)), list(wanted.values()))
    for name, one, other in zip(wanted, got, expected, strict=True):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@OPERATORS
def test_preparing_once_serves_many_steps_and_their_gradients(generator, separable, weight_norm):
    update = make(separable, weight_norm).double()
    context, hidden, flow, correlation = inputs(generator, dtype=torch.float64)
    ready = update.prepare(context)
    one, other = (hidden, flow), (hidden, flow)
    for _ in range(3):
        one = update(*one, correlation, ready)
        other = direct(update, context, *other, correlation)
    got = torch.autograd.grad(loss(one), list(update.parameters()))
    expected = torch.autograd.grad(loss(other), list(update.parameters()))
    for a, b in zip([*one, *got], [*other, *expected], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@OPERATORS
def test_the_contexts_share_is_convolved_once_and_not_again_in_a_step(generator, monkeypatch, separable, weight_norm):
    update = make(separable, weight_norm)
    context, hidden, flow, correlation = inputs(generator)
    widths = []

    def counting(x, weight, *args, **kwargs):
        widths.append(weight.shape[1])
        return F.conv2d(x, weight, *args, **kwargs)

    functional = type("Counted", (), {"conv2d": staticmethod(counting)})
    monkeypatch.setattr(deqflow.model.updates, "F", functional)
    ready = update.prepare(context)
    assert widths == [CONTEXT] * len(update.units)
    widths.clear()
    update(hidden, flow, correlation, ready)
    assert widths.count(HIDDEN + MOTION) == 2 * len(update.units)  # both gates at once, then the candidate
    assert max(widths) == HIDDEN + MOTION


@OPERATORS
def test_the_update_is_pure(generator, separable, weight_norm):
    update, tensors = make(separable, weight_norm), inputs(generator)
    kept = [tensor.clone() for tensor in tensors]
    context, hidden, flow, correlation = tensors
    ready = update.prepare(context)
    first = update(hidden, flow, correlation, ready)
    update(hidden + 1, flow - 1, correlation, ready)  # a call between leaves no trace
    second = update(hidden, flow, correlation, ready)
    in_evaluation = prepared(update.eval(), *tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, in_evaluation, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True))
    assert not list(update.buffers())


@OPERATORS
def test_a_sample_does_not_see_its_neighbours(generator, separable, weight_norm):
    update, tensors, others = make(separable, weight_norm), inputs(generator), inputs(generator)
    mixed = [torch.cat([ours[:1], theirs[1:]]) for ours, theirs in zip(tensors, others, strict=True)]
    for a, b in zip(prepared(update, *tensors), prepared(update, *mixed), strict=True):
        assert torch.equal(a[0], b[0])


@pytest.mark.parametrize("separable", [True, False])
def test_weight_norm_splits_every_convolution_into_length_and_direction(separable):
    plain, normed = make(separable, False), make(separable, True)
    convolutions = [name for name, module in plain.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == (9 if separable else 7)
    for name in convolutions:
        module, before = normed.get_submodule(name), plain.get_submodule(name)
        length, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
        assert length.shape == (module.out_channels, 1, 1, 1)
        norms = direction.flatten(1).norm(dim=1).view_as(length)
        torch.testing.assert_close(module.weight, length * direction / norms)
        torch.testing.assert_close(module.weight, before.weight)  # splitting changes no start


@pytest.mark.parametrize("separable", [True, False])
def test_the_flow_itself_is_the_last_of_the_motion_features(generator, separable):
    update = make(separable, False)
    _, _, flow, correlation = inputs(generator)
    motion = update.motion.prepare()(correlation, flow)
    assert motion.shape == (2, MOTION, 5, 6)
    assert torch.equal(motion[:, -2:], flow)
    assert motion[:, :-2].min() == 0


@OPERATORS
def test_in_bfloat16_gradients_reach_all_parameters(generator, separable, weight_norm):
    update, tensors = make(separable, weight_norm), inputs(generator)
    exact = torch.autograd.grad(loss(direct(update, *tensors)), list(update.parameters()))
    context, hidden, flow, correlation = tensors
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ready = update.prepare(context)
        with torch.no_grad():  # a solve before the step that is differentiated
            update(hidden, flow, correlation, ready)
        new_hidden, increment = update(hidden, flow, correlation, ready)
    assert new_hidden.dtype == torch.float32
    assert increment.dtype == torch.bfloat16
    loss((new_hidden, increment)).backward()
    for (name, parameter), expected in zip(update.named_parameters(), exact, strict=True):
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected).norm() <= 0.05 * expected.norm() + 1e-3, name


def test_in_bfloat16_weights_are_cast_where_they_are_fixed():
    update = make(True, True)
    assert fixed(update.head.conv1).weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fixed(update.head.conv1).weight.dtype == fixed(update.head.conv1).bias.dtype == torch.bfloat16


def test_a_part_of_a_convolution_leaves_out_the_bias(generator):
    module = nn.Conv2d(5, 4, 3, padding=1)
    x = torch.randn(1, 5, 4, 4, generator=generator)
    parts = fixed(module, inputs=slice(0, 2))(x[:, :2]) + fixed(module, inputs=slice(2, None))(x[:, 2:])
    torch.testing.assert_close(parts + module.bias.view(1, -1, 1, 1), module(x))
    torch.testing.assert_close(fixed(module)(x), module(x))
    torch.testing.assert_close(fixed(module, outputs=slice(1, 3))(x), module(x)[:, 1:3])
    no_bias = nn.Conv2d(5, 4, (1, 5), padding=(0, 2), bias=False)
    torch.testing.assert_close(fixed(no_bias)(x), no_bias(x))


def make_gma(weight_norm, context=CONTEXT):
    torch.manual_seed(0)
    update = GmaUpdate(
        hidden=HIDDEN,
        context=context,
        motion=MOTION,
        correlation=CORRELATION,
        correlation_widths=(7, 6),
        flow_widths=(6, 4),
        head=7,
        separable=True,
        weight_norm=weight_norm,
    ).double()
    nn.init.constant_(update.aggregation.gamma, 0.7)
    return update


def direct_gma(update, context, hidden, flow, correlation):
    """GMA's update pixel by pixel: attention of one head on the context, motion gathered and added."""
    motion = update.motion.prepare()(correlation, flow)
    queries, keys = conv(context, update.attention).chunk(2, 1)
    values = conv(motion, update.aggregation.values)
    batch, width, height, across = queries.shape
    gathered = torch.zeros_like(values)
    for b in range(batch):
        for y in range(height):
            for x in range(across):
                likeness = torch.einsum("c,chw->hw", queries[b, :, y, x], keys[b]) / width**0.5
                share = likeness.flatten().softmax(0).view(height, across)
                gathered[b, :, y, x] = torch.einsum("hw,chw->c", share, values[b])
    if update.aggregation.projection is not None:
        gathered = conv(gathered, update.aggregation.projection)
    motion = torch.cat([motion, motion + 0.7 * gathered], 1)
    for unit in update.units:
        hidden = unit.prepare(context)(hidden, motion)
    return hidden, update.head.prepare()(hidden)


@pytest.mark.parametrize("context", [MOTION, CONTEXT], ids=["plain", "projected"])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_gma_equals_attention_written_out_pixel_by_pixel(generator, weight_norm, context):
    update = make_gma(weight_norm, context)
    assert (update.aggregation.projection is None) == (context == MOTION)
    _, hidden, flow, correlation = inputs(generator, height=3, width=4, dtype=torch.float64)
    seen = torch.randn(2, context, 3, 4, generator=generator, dtype=torch.float64)
    for got, expected in zip(
        prepared(update, seen, hidden, flow, correlation),
        direct_gma(update, seen, hidden, flow, correlation),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gmas_attention_is_computed_once_a_solve_and_its_gradients_reach_all_parameters(generator, monkeypatch):
    update = make_gma(weight_norm=True)
    context, hidden, flow, correlation = inputs(generator, dtype=torch.float64)
    softmaxes = []
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: softmaxes.append(1) or torch.softmax(x, dim))
    ready = update.prepare(context)
    for _ in range(3):
        hidden, increment = update(hidden, flow, correlation, ready)
    assert len(softmaxes) == 1
    (hidden.square().sum() + increment.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in update.parameters())


def test_gma_without_its_gate_is_rafts_update_with_the_motion_twice(generator):
    update = make_gma(weight_norm=False)
    nn.init.zeros_(update.aggregation.gamma)
    context, _, flow, correlation = inputs(generator, dtype=torch.float64)
    motion = update.motion.prepare()(correlation, flow)
    twice = update.prepare(context).encode(correlation, flow)
    assert torch.equal(twice, torch.cat([motion, motion], 1))


def test_a_least_gate_keeps_fixed_points_and_brings_slow_channels_there_sooner(generator):
    torch.manual_seed(0)
    unit = ConvGRU(4, 2, 3, (3, 3)).double()
    with torch.no_grad():
        unit.gates.weight.mul_(0.3)
        unit.gates.bias[0] = -6.0  # the first channel's gate is nearly closed
    context, motion = (torch.randn(1, n, 5, 6, generator=generator, dtype=torch.float64) for n in (2, 3))
    ends, left = {}, {}
    for gate in (0.0, 0.4):
        unit.least_gate = gate
        step, hidden = unit.prepare(context), torch.zeros(1, 4, 5, 6, dtype=torch.float64)
        with torch.no_grad():
            path = [hidden := step(hidden, motion) for _ in range(8000)]
        ends[gate], left[gate] = hidden, (path[29] - hidden).abs().max()
    torch.testing.assert_close(ends[0.4], ends[0.0], atol=1e-7, rtol=0)
    assert left[0.0] > 0.1
    assert left[0.4] < 1e-4


def test_a_least_gate_is_a_share_and_needs_gates():
    with pytest.raises(ValueError, match="least_gate expects a share from 0 to 1, got 2"):
        build("mini", least_gate=2)
    for size, update in (("mini", "sea"), ("sea-s", None), ("mini", lambda size: None)):
        with pytest.raises(ValueError, match=r"least_gate=0.1 has no effect on an update operator without gates"):
            build(size, update, least_gate=0.1)
    made = build("tiny", "gma", least_gate=0.1)
    assert [unit.least_gate for unit in made.update.units] == [0.1, 0.1]

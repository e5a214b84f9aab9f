"""Reversible gradients: those of the iteration as it ran, at a memory that does not grow with depth."""

import contextlib
import dataclasses
import warnings

import pytest
import torch

import deqflow
from deqflow.equilibrium import Correction, Equilibrium, Implicit, Phantom, Reversible, Unrolled, dependencies
from deqflow.evidence.diagnostics import KeptForBackward
from deqflow.model.attraction import LearnedSmoothing
from deqflow.solvers import Anderson, Picard, Stop


def layer(evals=8, mixing=0.5, **options):
    stop, gradient = Stop(max_evals=evals, atol=0.0), Reversible(mixing=mixing)
    return Equilibrium(rule=Picard(), stop=stop, gradient=gradient, **options)


def unrolled(f, z0, evals, b, keep):
    """The same iteration written out, in float64 as the layer keeps its states."""
    y = z = z0.double()
    states = {}
    for k in range(1, evals + 1):
        if k % 2:
            y = (1 - b) * y + b * f(z.to(z0.dtype)).double()
        else:
            z = (1 - b) * z + b * f(y.to(z0.dtype)).double()
        states[k] = (y if k % 2 else z).to(z0.dtype)
    return [states[k] for k in keep]


def dense(dtype=torch.float64, size=5, gain=1.5, seed=0):
    """A map that does not contract, and what it depends on."""
    generator = torch.Generator().manual_seed(seed)
    weight = (gain * torch.randn(size, size, generator=generator, dtype=dtype) / size**0.5).requires_grad_()
    shift = torch.randn(3, size, generator=generator, dtype=dtype).requires_grad_()
    z0 = torch.randn(3, size, generator=generator, dtype=dtype).requires_grad_()
    return (lambda z: torch.tanh(z @ weight + shift)), z0, (weight, shift)


@pytest.mark.parametrize("evals", [1, 2, 7, 24])
@pytest.mark.parametrize("mixing", [0.3, 0.5])
def test_the_gradient_is_that_of_the_iteration_as_it_ran(evals, mixing):
    f, z0, given = dense()
    (state,), result = layer(evals, mixing)(f, z0)
    (expected,) = unrolled(f, z0, evals, mixing, [evals])
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)
    assert result.evals.tolist() == [evals] * 3
    ours = torch.autograd.grad(state.square().sum(), (z0, *given))
    theirs = torch.autograd.grad(expected.square().sum(), (z0, *given))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_corrections_at_chosen_evaluations_are_states_on_the_way():
    f, z0, given = dense()
    states, _ = layer(9, corrections=(2, 5))(f, z0)
    expected = unrolled(f, z0, 9, 0.5, [2, 5, 9])
    assert len(states) == 3

    def weigh(found):
        return sum((i + 1) * state.square().sum() for i, state in enumerate(found))

    for one, other in zip(
        torch.autograd.grad(weigh(states), given), torch.autograd.grad(weigh(expected), given), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    def run(weight, shift, z0):
        return layer(6, corrections=(3,))(lambda z: torch.tanh(z @ weight + shift), z0)[0]

    _, z0, (weight, shift) = dense(size=3)
    assert torch.autograd.gradcheck(run, (weight, shift, z0))


def test_what_is_computed_before_the_solve_gets_its_gradient_once():
    """A tensor made of a parameter, and the parameter itself, both used by f."""
    _, z0, (weight, shift) = dense()

    def gradients(run):
        gates = weight.sigmoid()

        def g(z):
            return torch.tanh(z @ gates + shift) + 0.1 * z @ weight

        return torch.autograd.grad(run(g).square().sum(), (weight, shift))

    ours = gradients(lambda g: layer(6)(g, z0)[0][0])
    theirs = gradients(lambda g: unrolled(g, z0, 6, 0.5, [6])[0])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def estimator_problem(correlation="volume"):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    estimator = deqflow.load("deqflow-small").train()
    estimator.correlation, estimator.all_gradients = correlation, True
    images = [255 * torch.rand(1, 3, 48, 64, generator=generator) for _ in range(2)]
    return estimator, estimator.problem(*(estimator.encode(image) for image in images))


@pytest.mark.parametrize("correlation", ["volume", "sampled"])
def test_a_float32_model_follows_its_own_iteration_for_24_evaluations(correlation):
    estimator, problem = estimator_problem(correlation)
    weights = [parameter for parameter in estimator.parameters() if parameter.requires_grad]
    (state,), _ = layer(24)(problem.f, problem.z0)
    (expected,) = unrolled(problem.f, problem.z0, 24, 0.5, [24])
    ours = torch.autograd.grad(problem.flow(state).abs().mean(), weights, retain_graph=True)
    theirs = torch.autograd.grad(problem.flow(expected).abs().mean(), weights)
    one, other = (torch.cat([gradient.flatten() for gradient in found]).double() for found in (ours, theirs))
    assert (one - other).norm() / other.norm() < 1e-5


def test_bytes_kept_do_not_grow_with_depth():
    kept = {}
    for evals in (4, 48):
        estimator, problem = estimator_problem()
        with KeptForBackward(apart_from=estimator.parameters()) as counted:
            (state,), _ = layer(evals)(problem.f, problem.z0)
            problem.flow(state).sum()
        kept[evals] = counted.bytes
    assert kept[48] <= 1.01 * kept[4]


def test_it_runs_under_saved_tensor_hooks():  # as torch.autograd.graph.save_on_cpu, and the audit's counting of bytes
    found = []
    for hooks in (KeptForBackward(), torch.autograd.graph.save_on_cpu(), contextlib.nullcontext()):
        estimator, problem = estimator_problem()
        weights = [p for name, p in estimator.named_parameters() if name.startswith("update.")]
        with hooks:
            (state,), _ = layer(4)(problem.f, problem.z0)
        gradients = torch.autograd.grad(problem.flow(state).sum(), weights, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert found[2].norm() > 0
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_it_supervises_an_estimator_with_learned_smoothing():
    torch.manual_seed(0)
    estimator = deqflow.build("mini", gradient=Reversible(), corrections=2, train_evals=6)
    estimator.attraction = LearnedSmoothing(64)
    generator = torch.Generator().manual_seed(0)
    output = estimator(*(255 * torch.rand(2, 3, 32, 40, generator=generator) for _ in range(2)))
    assert len(output.flows) == 2
    sum(flow.abs().mean() for flow in output.flows).backward()
    assert all(parameter.grad is not None for parameter in estimator.parameters())


def test_without_gradients_the_layers_own_rule_solves():
    f, z0, _ = dense(gain=0.3)
    layer_ = Equilibrium(rule=Anderson(), stop=Stop(max_evals=30, atol=1e-10), gradient=Reversible()).eval()
    with torch.no_grad():
        (state,), result = layer_(f, z0)
    assert result.converged.all()
    torch.testing.assert_close(state, f(state), atol=1e-9, rtol=0)


def test_what_it_cannot_invert_is_refused():
    f, z0, _ = dense()
    with pytest.raises(ValueError, match="Reversible expects 0 < mixing < 1, got 1"):
        Reversible(mixing=1)
    with pytest.raises(TypeError, match=r"its own iteration and expects the rule Picard\(\), got Anderson"):
        layer()(f, z0, rule=Anderson())
    with pytest.raises(TypeError, match=r"expects the rule Picard\(\), got Picard\(damping=0.5\)"):
        layer()(f, z0, rule=Picard(damping=0.5))
    with pytest.raises(ValueError, match=r"expects a fixed number of evaluations, Stop\(atol=0.0\)"):
        layer()(f, z0, stop=Stop(max_evals=4, atol=1e-3))
    with pytest.raises(ValueError, match=r"mixing=0\.8 can undo at most 24 evaluations, got max_evals=26"):
        layer(26, mixing=0.8)(f, z0)
    with pytest.raises(TypeError, match="such as Reversible, must be that of all corrections"):
        layer(4, corrections=(Correction(2, Phantom()),))(f, z0)
    with pytest.raises(RuntimeError, match="first derivatives only, got create_graph=True: use Unrolled"):
        torch.autograd.grad(layer(2)(f, z0)[0][0].sum(), z0, create_graph=True)


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.5, 3.0])
@pytest.mark.parametrize("evals", [12, 24, 36, 48])
@pytest.mark.parametrize("mixing", [0.3, 0.5])
def test_a_gradient_is_right_or_warned_of(mixing, evals, gain):
    f, z0, given = dense(gain=gain)
    (state,), _ = layer(evals, mixing)(f, z0)
    (expected,) = unrolled(f, z0, evals, mixing, [evals])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = torch.autograd.grad(state.sum(), given)
    for one, other in zip(ours, torch.autograd.grad(expected.sum(), given), strict=True):
        assert caught or (one - other).norm() / other.norm() < 1e-3
    if evals <= 24 and gain < 1:
        assert not caught


def test_a_path_that_could_not_be_rebuilt_is_warned_of():
    f, z0, _ = dense(gain=4.0)
    (state,), _ = layer(50)(f, z0)
    with pytest.warns(UserWarning, match=r"rebuilt a path to a start that is off by .*Lower max_evals or mixing"):
        state.sum().backward()


class Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, weight):
        ctx.save_for_backward(z, weight)
        return z * weight

    @staticmethod
    def backward(ctx, grad):
        z, weight = ctx.saved_tensors
        return grad * weight, grad * z


def test_a_tensor_that_is_out_of_sight_is_told():
    weight = torch.ones(3, 4, requires_grad=True)
    z0 = torch.ones(3, 4)
    assert dependencies(lambda z: 0.5 * z + weight, z0) == [weight]
    (state,), _ = layer(2)(lambda z: Direct.apply(z, weight) + 0 * weight, z0)
    with pytest.raises(RuntimeError, match=r"cannot see all tensors that f depends on.*view_as"):
        state.sum().backward()
    (state,), _ = layer(2)(lambda z: Direct.apply(z, weight.view_as(weight)), z0)
    state.sum().backward()
    assert weight.grad is not None


def test_a_sample_does_not_depend_on_its_neighbours():
    f, z0, (weight, shift) = dense()
    (together,), _ = layer(5)(f, z0)
    (alone,), _ = layer(5)(lambda z: torch.tanh(z @ weight + shift[:1]), z0[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-14)


def test_modes_are_frozen_and_keyword_only():
    for mode in (Reversible(), Unrolled(), Implicit(), Phantom()):
        assert dataclasses.is_dataclass(mode)
    with pytest.raises(TypeError):
        Reversible(0.5)  # pyright: ignore[reportCallIssue]


def test_a_start_at_the_fixed_point_is_not_taken_for_a_lost_path():
    f, z0, _ = dense(gain=0.5)
    with torch.no_grad():
        for _ in range(200):
            z0 = f(z0)
    end = z0.clone().requires_grad_()
    (state,), _ = layer(24)(f, end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = torch.autograd.grad(state.sum(), [end])
    assert torch.isfinite(gradient).all()

import dataclasses

import pytest
import torch

from deqflow.equilibrium import Correction, Equilibrium, Implicit, Phantom, Unrolled
from deqflow.solvers import Anderson, Picard, Stop, scipy_solver

STOP = Stop(max_evals=12, atol=0.0)
SLOW = 0.9  # rate of the linear map below


@pytest.fixture
def start(generator):
    return torch.randn(2, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def bias(generator):
    return torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()


def layer(corrections, *, gradient=None, stop=STOP):
    return Equilibrium(rule=Picard(), stop=stop, gradient=gradient or Phantom(), corrections=corrections)


def contraction(bias, rate=SLOW):
    return lambda z: rate * z + bias


def slope(state, bias):
    """d state / d bias, which is the same for each element of this map, for a row of the batch."""
    (gradient,) = torch.autograd.grad(state.sum(), bias, retain_graph=True)
    return float(gradient[0]) / len(state)


@pytest.mark.parametrize(
    ("corrections", "expected"),
    [(1, (12,)), (2, (6, 12)), (3, (4, 8, 12)), (5, (2, 5, 7, 10, 12)), (None, tuple(range(1, 13)))],
)
def test_a_number_of_corrections_is_spread_evenly(corrections, expected):
    assert layer(corrections).correction_points(12) == expected


@pytest.mark.parametrize(
    ("chosen", "budget", "expected"),
    [
        ((2, 3, 12), 12, (2, 3, 12)),
        ([2, 3], 12, (2, 3, 12)),  # the solution follows by itself
        ((Correction(2), 5), 12, (2, 5, 12)),
        ((2, 3, 8), 9, (2, 3, 8, 9)),
        ((2, 3, 8), 8, (2, 3, 8)),
        ((1,), 12, (1, 12)),
    ],
)
def test_corrections_may_be_chosen(chosen, budget, expected):
    assert layer(chosen).correction_points(budget) == expected


def test_in_evaluation_there_is_the_solution_alone(start, bias):
    equilibrium = layer((2, 3)).eval()
    assert equilibrium.correction_points(1) == (1,)
    states, _ = equilibrium(contraction(bias), start)
    assert len(states) == 1


@pytest.mark.parametrize("mode", [Phantom(), Implicit(), Unrolled()])
def test_a_chosen_state_is_the_one_after_so_many_evaluations(start, bias, mode):
    f = contraction(bias)
    states, result = layer((2, 7), gradient=mode)(f, start)
    assert len(states) == 3
    for state, evaluations in zip(states, (2, 7, 12), strict=True):
        z = start
        for _ in range(evaluations):
            z = f(z)
        torch.testing.assert_close(state, z)
    assert tuple(result.kept) == (2, 7, 12)


def test_each_correction_has_its_own_gradient(start, bias):
    calls = []
    f = contraction(bias)

    def counted(z):
        calls.append(torch.is_grad_enabled())
        return f(z)

    exact = Implicit(stop=Stop(max_evals=500, atol=0.0, rtol=1e-12))
    chosen = (2, Correction(4, Phantom(steps=3)), Correction(6, exact), 9)
    states, result = layer(chosen)(counted, start)
    assert int(result.evals.max()) == 12
    # One solve of 12 for all of them, then their own steps: 1, 3, 1, and 1 each for the two of the layer's mode.
    assert calls == [False] * 12 + [True] * (1 + 3 + 1 + 1 + 1)
    slopes = [slope(state, bias) for state in states]
    assert slopes == pytest.approx([1, 1 + SLOW + SLOW**2, 1 / (1 - SLOW), 1, 1])


def test_a_recorded_solve_serves_the_other_modes_too(start, bias):
    calls = []

    def counted(z):
        calls.append(torch.is_grad_enabled())
        return SLOW * z + bias

    states, _ = layer((Correction(3, Unrolled()), Correction(5, Phantom(steps=2)), 6))(counted, start)
    assert calls == [True] * (12 + 2 + 1 + 1)
    expected = [1 + SLOW + SLOW**2, 1 + SLOW, 1, 1]  # of the others, nothing before their own steps
    assert [slope(state, bias) for state in states] == pytest.approx(expected)


def test_modes_of_their_own_give_the_gradient_they_give_alone(start, bias):
    f = contraction(bias)
    modes = (Phantom(steps=2, damping=0.5), Implicit(stop=Stop(max_evals=400, atol=0.0, rtol=1e-5)), Unrolled())
    mixed = layer(tuple(Correction(at, mode) for at, mode in zip((3, 6, 12), modes, strict=True)))
    states, _ = mixed(f, start)
    for i, mode in enumerate(modes):
        alone, _ = layer((3, 6, 12), gradient=mode)(f, start)
        torch.testing.assert_close(states[i], alone[i])
        assert slope(states[i], bias) == pytest.approx(slope(alone[i], bias))


@pytest.mark.parametrize("rule", [Picard(), Anderson()])
@pytest.mark.parametrize(
    "corrections", [6, (2, 40, 60), (2, Correction(40, Unrolled()), Correction(50, Phantom(steps=3)))]
)
def test_no_correction_is_dropped_when_the_solve_stops_early(start, bias, rule, corrections):
    stop = Stop(max_evals=60, atol=1e-3)
    equilibrium = Equilibrium(rule=rule, stop=stop, gradient=Phantom(), corrections=corrections)
    states, result = equilibrium(contraction(bias, rate=0.5), start)
    points = equilibrium.correction_points(60)
    assert int(result.evals.max()) < 20
    assert len(states) == len(points)
    beyond = [state for state, at in zip(states, points, strict=True) if at > int(result.evals.max())]
    assert len(beyond) >= 2
    for state in beyond:  # each is the solution, with a gradient of its own
        torch.testing.assert_close(state, result.fz, rtol=0, atol=2e-3)
        assert slope(state, bias) >= 1


def test_without_a_graph_the_states_are_as_many(start, bias):
    chosen = (2, Correction(40, Phantom(steps=3)))
    equilibrium = layer(chosen, stop=Stop(max_evals=60, atol=1e-3))
    calls = []

    def counted(z):
        calls.append(1)
        return 0.5 * z + bias

    with torch.no_grad():
        states, result = equilibrium(counted, start)
    assert len(states) == 3
    assert len(calls) == int(result.evals.max())  # and no step for a gradient nobody asked for
    assert torch.equal(states[1], result.fz)
    assert torch.equal(states[2], result.fz)


def test_a_solver_from_outside_takes_chosen_corrections(start, bias):
    equilibrium = Equilibrium(
        rule=scipy_solver("krylov"), stop=STOP, gradient=Phantom(), corrections=(Correction(3, Implicit()), 5)
    )
    states, _ = equilibrium(contraction(bias, rate=0.5), start)
    assert len(states) == 3
    equilibrium.corrections = (Correction(3, Unrolled()),)
    with pytest.raises(TypeError, match="Unrolled expects a step rule"):
        equilibrium(contraction(bias), start)


def test_a_smaller_budget_than_a_chosen_evaluation_is_refused(start, bias):
    equilibrium = layer((2, 8))
    with pytest.raises(ValueError, match=r"chosen at evaluation 8, but the solve may take max_evals=7: raise Stop"):
        equilibrium(contraction(bias), start, stop=dataclasses.replace(STOP, max_evals=7))
    states, _ = equilibrium(contraction(bias), start, stop=dataclasses.replace(STOP, max_evals=8))
    assert len(states) == 2
    equilibrium.eval()
    assert len(equilibrium(contraction(bias), start, stop=dataclasses.replace(STOP, max_evals=7))[0]) == 1
    with pytest.raises(ValueError, match="chosen at evaluation 13, but the solve may take max_evals=12"):
        layer((2, 13))


@pytest.mark.parametrize("chosen", [(), (3, 3), (4, 3), (Correction(2), 2)])
def test_chosen_corrections_must_be_in_order(chosen):
    with pytest.raises(ValueError, match="numbers of evaluations in ascending order, each once, got"):
        layer(chosen)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "end"])
def test_a_correction_is_at_the_number_of_an_evaluation(number):
    with pytest.raises(ValueError, match="expects the number of an evaluation, from 1, got"):
        layer((number, 5))

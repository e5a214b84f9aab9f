from dataclasses import replace

import pytest
import torch
from test_solvers import problem
from test_solvers_maps import Offering

import deqflow
from deqflow.solvers import Picard, Status, Stop, diverged, rescue, solve


class Scaled:
    """f(z) = scale * z + 1, a scale a row: plain iteration diverges below -1, damped iteration only below -3."""

    def __init__(self, *scales):
        self.scales = torch.tensor(scales, dtype=torch.float64)[:, None]

    def __call__(self, z):
        return self.scales * z + 1

    def rows(self, rows):
        return Scaled(*self.scales[rows, 0].tolist())


STOP = Stop(max_evals=100, atol=1e-9)


@pytest.mark.parametrize("offers", [True, False])
def test_damping_saves_what_plain_iteration_lets_diverge(offers):
    f = Scaled(0.5, -1.5, -4.0)
    f, z0 = (Offering(f) if offers else f), torch.zeros(3, 1, dtype=torch.float64)
    first = solve(f, z0, Picard(), STOP)
    assert diverged(first).tolist() == [False, True, True]
    with torch.no_grad():
        result = rescue(f, z0, first)
    assert result.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.MAX_EVALS]
    torch.testing.assert_close(result.z[:2, 0], 1 / (1 - torch.tensor([0.5, -1.5], dtype=torch.float64)))
    assert result.evals[0] == first.evals[0]
    assert result.evals[2] == first.evals[2] + 100
    assert torch.equal(result.trace[:100].nan_to_num(), first.trace.nan_to_num())
    assert torch.isnan(result.trace[100:, 0]).all()
    residual = (f(result.z) - result.z).abs()[:, 0]
    torch.testing.assert_close(residual.float(), result.residual)  # of what is returned, whichever try it came from


def test_what_has_not_diverged_is_left_as_it_is():
    f, z0 = problem()
    result = solve(f, z0, Picard(), Stop(max_evals=3, atol=0.0))
    assert not diverged(result).any()
    assert rescue(f, z0, result) is result


def test_a_sample_that_fails_twice_keeps_its_best_finite_state_and_says_so():
    f, calls = Scaled(0.5), []

    def failing(z):
        calls.append(1)
        return f(z) if len(calls) in (1, 2, 4) else f(z) * torch.nan

    z0 = torch.zeros(1, 1, dtype=torch.float64)
    result = rescue(failing, z0, solve(failing, z0, Picard(), STOP))
    assert result.status.tolist() == [Status.NON_FINITE]
    assert result.z.tolist() == [[1.0]]  # from the first try, whose residual was smaller
    assert result.evals.tolist() == [5]


def test_an_estimator_tries_again_and_warns(generator):
    torch.manual_seed(0)
    estimator = deqflow.build("tiny", max_evals=12, atol=1e-3).eval()
    images = 255 * torch.rand(2, 2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        calm = estimator(*images)
        plain = estimator.problem

        def driven(*features, **options):
            problem = plain(*features, **options)
            return replace(problem, f=lambda z: problem.f(problem.z0) - 1.5 * z)

        estimator.problem = driven
        with pytest.warns(UserWarning, match="A solve diverged and was tried again with damping: .* samples") as caught:
            output = estimator(*images)
    assert caught[0].filename == __file__
    assert not diverged(calm.solve).any()
    assert output.solve.evals.max() > 12
    assert torch.isfinite(output.flow).all()
    assert torch.equal(output.state.pack(), output.solve.fz)

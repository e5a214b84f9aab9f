"""One solve for several budgets of evaluations: what a solve with each of these budgets would have returned."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deqflow.model.estimator import FlowEstimator
from deqflow.model.problem import FlowProblem
from deqflow.model.scales import stop_at_scale
from deqflow.model.state import FlowState
from deqflow.solvers import OnEval, SolverResult, Stop, solve


def solve_budgets(
    problem: FlowProblem,
    evals: Sequence[int],
    *,
    start: FlowState | None = None,
    scale: float = 1.0,
    on_eval: OnEval | None = None,
) -> SolverResult:
    """Solve by the estimator's own rule, without early stop, and keep what each budget would have returned.

    A diverging solve is not tried again with damping, as the estimator does, because that would exceed the budget. A
    solve that ends early, at an exact fixed point or because a sample is not finite, returns its last state for all
    larger budgets.

    Args:
        problem: what to solve.
        evals: budgets, numbers of evaluations from 1.
        start: the state to solve from; the problem's own if not given.
        scale: factor by which the images were resized; residuals are in pixels of the images before that.
        on_eval: called after each evaluation, see :func:`deqflow.solvers.solve`.

    Returns:
        The result of the largest budget; for each k of ``evals``, ``kept[k]`` has state and residual, in pixels.
    """
    stop = Stop(max_evals=max(evals), atol=0.0).measured_by(problem.residual)
    stop = stop_at_scale(stop, scale, problem.estimator.stride)
    z0 = problem.z0 if start is None else problem.start(start)
    return solve(problem.f, z0, problem.estimator.equilibrium.rule, stop, keep=evals, on_eval=on_eval)


@torch.no_grad()
def flows_after(
    estimator: FlowEstimator, image1: Tensor, image2: Tensor, evals: Sequence[int]
) -> tuple[dict[int, Tensor], SolverResult]:
    """The flow of a batch of pairs after each of several numbers of evaluations, from one solve.

    Args:
        estimator: in evaluation mode.
        image1, image2: (B, 3, H, W), as the estimator takes them.
        evals: numbers of evaluations from 1.

    Returns:
        The flows by number of evaluations, (B, 2, H, W) in pixels, and the result of :func:`solve_budgets`.
    """
    problem = estimator.problem(estimator.encode(image1), estimator.encode(image2))
    result = solve_budgets(problem, evals)
    return {k: problem.flow(result.kept[k].fz) for k in evals}, result

"""One solve seen after several numbers of evaluations: what a solve with each of these budgets would have returned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deqflow.model.estimator import STRIDE, FlowEstimator, FlowState, flow_residual
from deqflow.model.geometry import Padding
from deqflow.model.scales import stop_at_scale
from deqflow.solvers import FixedPointMap, OnEval, SolverResult, Stop, solve


@dataclass(frozen=True)
class PairProblem:
    """The fixed-point problem of a pair of images.

    Attributes:
        f: the map.
        z0: the packed state that its solve starts from, (B, Ch + 2, h, w).
        padding: how the images were padded.
    """

    f: FixedPointMap
    z0: Tensor
    padding: Padding


def pair_problem(
    estimator: FlowEstimator,
    image1: Tensor,
    image2: Tensor,
    *,
    start: FlowState | None = None,
    where: Literal["centre", "top"] = "centre",
) -> PairProblem:
    """Encode a pair, (B, 3, H, W) each as the estimator takes them.

    Args:
        estimator: in evaluation mode.
        image1, image2: the pair.
        start: the state to solve from; the estimator's own if not given.
        where: which place the images have in the padded ones, see :class:`deqflow.model.geometry.Padding`.
    """
    precision = next(estimator.parameters()).dtype
    padding = Padding(image1.shape[-2], image1.shape[-1], STRIDE, where)
    f, z0 = estimator.fixed_point_map(*(padding.pad(image.to(precision)) for image in (image1, image2)))
    if start is not None:
        z0 = torch.cat([start.hidden, start.flow], 1).to(z0)
    return PairProblem(f, z0, padding)


def flow_of(estimator: FlowEstimator, problem: PairProblem, z: Tensor) -> Tensor:
    """The flow of a packed state at full size, (B, Ch + 2, h, w) -> (B, 2, H, W), in pixels."""
    return problem.padding.crop(estimator.upsampler(FlowState(z[:, :-2], z[:, -2:])))


def solve_budgets(
    estimator: FlowEstimator,
    problem: PairProblem,
    evals: Sequence[int],
    *,
    scale: float = 1.0,
    on_eval: OnEval | None = None,
) -> SolverResult:
    """Solve by the estimator's own rule, without early stop, and keep what each budget would have returned.

    A diverging solve is not repeated with damping, as the estimator would: that would cost more than the budget. A
    solve that ends early, at an exact fixed point or because a sample is not finite, has its last state for all
    greater budgets.

    Args:
        estimator: whose rule solves.
        problem: what to solve.
        evals: budgets, numbers of evaluations from 1.
        scale: by which the images were resized; residuals are in pixels of the images before that.
        on_eval: called after each evaluation, see :func:`deqflow.solvers.solve`.

    Returns:
        The account of the largest budget; for each k of ``evals``, ``kept[k]`` has state and residual, in pixels.
    """
    stop = stop_at_scale(Stop(max_evals=max(evals), atol=0.0, norm=flow_residual), scale)
    return solve(problem.f, problem.z0, estimator.equilibrium.rule, stop, keep=evals, on_eval=on_eval)


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
        The flows by number of evaluations, (B, 2, H, W) in pixels, and the account of :func:`solve_budgets`.
    """
    problem = pair_problem(estimator, image1, image2)
    result = solve_budgets(estimator, problem, evals)
    return {k: flow_of(estimator, problem, result.kept[k].fz) for k in evals}, result

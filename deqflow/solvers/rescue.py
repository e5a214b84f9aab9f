"""A second try for samples whose solve diverged: damped iteration from the same start."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from deqflow.solvers.loop import Evaluation, OnEval, SolverResult, Status, per_sample, solve
from deqflow.solvers.maps import FixedPointMap, SubsetMap
from deqflow.solvers.rules import Picard

GROWTH = 10.0  # a sample whose residual is this many times its smallest one has diverged
DAMPING = 0.5


def diverged(result: SolverResult) -> Tensor:
    """Which samples, (B,), ended with a value that is not finite, or with a residual far above their smallest."""
    smallest = result.trace.nan_to_num(torch.inf).amin(0)
    return (result.status == Status.NON_FINITE) | (
        (result.status == Status.MAX_EVALS) & (result.residual > GROWTH * smallest)
    )


def rescue(
    f: FixedPointMap,
    z0: Tensor,
    result: SolverResult,
    *,
    on_eval: OnEval | None = None,
    max_seconds: float = math.inf,
) -> SolverResult:
    """Solve the diverged samples again with damping, and keep the try with the smaller residual.

    The evaluations of both tries count (``retry_evals`` says how many the second took), and the trace of the second
    follows that of the first. A sample that diverged twice keeps its best finite state and a status that says so. A
    solve that was interrupted is not tried again.

    Args:
        f, z0: map and start of the first try, which recorded no graph.
        result: result of the first try; it is returned unchanged if no sample diverged.
        on_eval: called after each evaluation of the second try with the samples that are in it, as
            :func:`~deqflow.solvers.solve` does; the numbers of evaluations continue those of the first try.
        max_seconds: what is left of the time budget; if nothing is left, there is no second try.
    """
    failed = diverged(result)
    interrupted = bool((result.status == Status.INTERRUPTED).any())
    if not bool(failed.any()) or interrupted or max_seconds <= 0:
        return result
    before = len(result.trace)

    def numbered(evaluation: Evaluation) -> object:
        return on_eval(replace(evaluation, number=before + evaluation.number)) if on_eval is not None else None

    rows = failed.nonzero().flatten()
    part = f.subset(rows) if isinstance(f, SubsetMap) else lambda z: f(z0.index_copy(0, rows, z))[rows]
    stop = replace(result.stop, max_seconds=max_seconds)
    again = solve(part, z0[rows], Picard(damping=DAMPING), stop, on_eval=numbered)
    better = torch.isfinite(again.fz).flatten(1).all(1) & ~(again.residual >= result.residual[rows])

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, torch.where(per_sample(better, new), new, old[rows]))

    trace = result.trace.new_full((len(again.trace), len(z0)), torch.nan).index_copy(1, rows, again.trace)
    return replace(
        result,
        z=merged(result.z, again.z),
        fz=merged(result.fz, again.fz),
        residual=merged(result.residual, again.residual),
        status=merged(result.status, again.status),
        evals=result.evals.index_add(0, rows, again.evals),
        trace=torch.cat([result.trace, trace]),
        retry_evals=torch.zeros_like(result.evals).index_copy(0, rows, again.evals),
    )

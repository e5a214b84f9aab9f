"""A second try for samples whose solve diverged: damped iteration from the same start."""

from dataclasses import replace

import torch
from torch import Tensor

from deqflow.solvers.loop import SolverResult, Status, per_sample, solve
from deqflow.solvers.maps import FixedPointMap, SubsetMap
from deqflow.solvers.rules import Picard

GROWTH = 10.0  # a residual so many times the smallest seen is no longer on its way to a fixed point
DAMPING = 0.5


def diverged(result: SolverResult) -> Tensor:
    """Which samples, (B,), ended with a value that is not finite, or far above their smallest residual."""
    smallest = result.trace.nan_to_num(torch.inf).amin(0)
    return (result.status == Status.NON_FINITE) | (
        (result.status == Status.MAX_EVALS) & (result.residual > GROWTH * smallest)
    )


def rescue(f: FixedPointMap, z0: Tensor, result: SolverResult) -> SolverResult:
    """Solve the diverged samples again, damped, and keep of both tries the one with the smaller residual.

    The evaluations of both count, and the trace of the second follows that of the first. A sample that diverged
    twice keeps its best finite state and a status that says so.

    Args:
        f, z0: as they were solved, without a graph.
        result: of that solve; returned itself if no sample diverged.
    """
    failed = diverged(result)
    if not bool(failed.any()):
        return result
    rows = failed.nonzero().flatten()
    part = f.subset(rows) if isinstance(f, SubsetMap) else lambda z: f(z0.index_copy(0, rows, z))[rows]
    again = solve(part, z0[rows], Picard(damping=DAMPING), result.stop)
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
    )

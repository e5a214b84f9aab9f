"""SciPy's root finders behind the interface of :func:`deqflow.solvers.solve`: any black-box solver works."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deqflow.solvers.loop import Iterate, OnEval, Record, SolverResult, Stop
from deqflow.solvers.maps import FixedPointMap, SubsetMap

METHODS = ("krylov", "anderson")


class _EnoughError(Exception):
    """Raised to leave SciPy's loop when our own stopping rule ends the solve."""


@dataclass(frozen=True, kw_only=True)
class ScipySolver:
    """See :func:`scipy_solver`."""

    method: Literal["krylov", "anderson"]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"scipy_solver expects a method of {', '.join(METHODS)}, got {self.method!r}.")

    def solve(
        self,
        f: FixedPointMap,
        z0: Tensor,
        stop: Stop,
        keep: tuple[int, ...],
        on_eval: OnEval | None,
    ) -> SolverResult:
        """Solve each sample by itself, so that none depends on its neighbours; then join the results."""
        deadline = time.monotonic() + stop.max_seconds  # one deadline for the whole batch
        singles = [self._solve_one(f, z0, row, stop, keep, on_eval, deadline) for row in range(len(z0))]
        length = max(len(r.trace) for r in singles)
        trace = torch.full((length, len(singles)), torch.nan, device=z0.device)
        for row, single in enumerate(singles):
            trace[: len(single.trace), row] = single.trace[:, 0]
        kept = {
            k: Iterate(*(torch.cat([getattr(r.kept[k], name) for r in singles]) for name in ("z", "fz", "residual")))
            for k in keep
        }
        joined = {
            name: torch.cat([getattr(r, name) for r in singles]) for name in ("z", "fz", "residual", "status", "evals")
        }
        return SolverResult(**joined, trace=trace, kept=kept, stop=stop)

    def _solve_one(
        self,
        f: FixedPointMap,
        z0: Tensor,
        row: int,
        stop: Stop,
        keep: tuple[int, ...],
        on_eval: OnEval | None,
        deadline: float,
    ) -> SolverResult:
        from scipy.optimize import root

        record = Record(z0[row : row + 1], stop, keep, reports_best=True, deadline=deadline)
        alone = f.subset(torch.tensor([row], device=z0.device)) if isinstance(f, SubsetMap) else None

        def g(x):  # the function that SciPy calls: it takes a flat float64 array and returns f(z) - z
            z = torch.as_tensor(x, dtype=z0.dtype, device=z0.device).view_as(z0[row : row + 1])
            # An f without subset needs the whole batch: the other rows are evaluated at their start.
            others = z0[:row], z0[row + 1 :]
            fz = alone(z) if alone else f(torch.cat([others[0], z, others[1]]))[row : row + 1]
            evaluation = record.add(z, fz)
            if record.ended(on_eval(evaluation) if on_eval is not None else None):
                raise _EnoughError
            return (fz - z).double().flatten().cpu().numpy()

        start = z0[row].double().flatten().cpu().numpy()
        # SciPy's own tolerance is set out of reach: the one stopping rule is ours.
        options: dict[str, Any] = {"fatol": 1e-300, "maxiter": stop.max_evals}
        if self.method == "krylov":  # its finite-difference step is chosen for float64 and vanishes in float32
            options["jac_options"] = {"rdiff": torch.finfo(z0.dtype).eps ** 0.5}
        try:
            with torch.no_grad(), contextlib.suppress(_EnoughError):
                root(g, start, method=self.method, options=options)
        except ValueError as error:  # SciPy gives up where f(z) - z does not change with z: report the best so far
            if "Jacobian inversion yielded zero vector" not in str(error):
                raise
        return record.result()


def scipy_solver(method: Literal["krylov", "anderson"] = "krylov") -> ScipySolver:
    """Return a solver that hands f to ``scipy.optimize.root``: it shows that any black-box solver works.

    Use it wherever a rule is expected. SciPy runs on the CPU in float64, one sample at a time (an f without ``subset``
    is evaluated on the whole batch, so that a batch of B costs B times as much), and cannot be unrolled. Budget,
    tolerance, best iterate and trace mean the same as in :func:`deqflow.solvers.solve`; the evaluations of SciPy's
    inner loops and line searches count like all others. ``on_eval`` gets one sample at a time; the evaluations of
    each sample are numbered from 1.

    Args:
        method: "krylov" (Newton-Krylov) or "anderson".

    Raises:
        ValueError: the method is neither of these.
    """
    return ScipySolver(method=method)

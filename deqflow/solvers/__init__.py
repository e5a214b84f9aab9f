"""Fixed-point solvers: one loop, three step rules, and an adapter for solvers from outside.

A fixed point of ``f`` is a state ``z`` with ``f(z) = z``. The loop (:func:`solve`) owns everything that
is the same for each method: counting evaluations, measuring residuals, stopping, freezing samples that
have converged, remembering the best iterate. A step rule only proposes where to evaluate ``f`` next.

Words used throughout: an *evaluation* is one call of ``f``; the *residual* of a state is
``norm(f(z) - z)``, one number a sample. States have shape (B, ...) with one sample a row.
"""

from deqflow.solvers.loop import (
    Evaluation,
    Iterate,
    OnEval,
    OutsideSolver,
    Rule,
    SolverError,
    SolverResult,
    Status,
    StepRule,
    Stop,
    rms,
    solve,
)
from deqflow.solvers.maps import FixedPointMap, SubsetMap
from deqflow.solvers.outside import ScipySolver, scipy_solver
from deqflow.solvers.rescue import diverged, rescue
from deqflow.solvers.rules import Anderson, Broyden, Picard

__all__ = [
    "Anderson",
    "Broyden",
    "Evaluation",
    "FixedPointMap",
    "Iterate",
    "OnEval",
    "OutsideSolver",
    "Picard",
    "Rule",
    "ScipySolver",
    "SolverError",
    "SolverResult",
    "Status",
    "StepRule",
    "Stop",
    "SubsetMap",
    "diverged",
    "rescue",
    "rms",
    "scipy_solver",
    "solve",
]

"""The choices of a run of the playground."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deqflow.model.state import flow_residual
from deqflow.solvers import Anderson, Broyden, Picard, Rule, Stop, scipy_solver

RULES: dict[str, Callable[[float, int], Rule]] = {
    "Picard": lambda damping, history: Picard(damping=damping),
    "Anderson": lambda damping, history: Anderson(mixing=damping, history=history),
    "Broyden": lambda damping, history: Broyden(damping=damping, history=history),
    "SciPy krylov": lambda damping, history: scipy_solver("krylov"),
    "SciPy anderson": lambda damping, history: scipy_solver("anderson"),
}
DAMPED = ("Picard", "Anderson", "Broyden")  # which of them have a damping
WITH_HISTORY = ("Anderson", "Broyden")  # and which a history
STARTS = ("zero", "random", "previous solution", "true flow")
PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The choices of a run.

    Attributes:
        pair, model: names of those that the bench has.
        solver: one of :data:`RULES`.
        damping: of the solver's steps, in (0, 1]; Anderson's mixing. SciPy's solvers take none.
        history: how many earlier steps Anderson and Broyden look at.
        tolerance: RMS movement of the flow in full-size pixels below which the solve is done.
        max_evals: budget in evaluations.
        start: one of :data:`STARTS`. "zero" is zero flow and the model's own hidden state, "random" a flow of 8 px
            RMS and a random hidden state, "true flow" the truth and the model's own hidden state; "previous
            solution" goes on from where the last run ended, be it on this pair or on the frame before.
        precision: float32, float64, or bfloat16 (encoders and update operator; the state stays float32).
        width: pictures wider than this are reduced to it, in pixels; None leaves them as they are.
        seed: of the random start.

    Raises:
        ValueError: a name is not known, or a number out of its range.
    """

    pair: str
    model: str
    solver: str = "Picard"
    damping: float = 1.0
    history: int = 5
    tolerance: float = 0.02
    max_evals: int = 40
    start: str = "zero"
    precision: str = "float32"
    width: int | None = 184
    seed: int = 0

    def __post_init__(self) -> None:
        require("solver", self.solver, RULES)
        require("start", self.start, STARTS)
        require("precision", self.precision, PRECISIONS)
        if self.width is not None and self.width < 16:
            raise ValueError(f"A run expects a width of at least 16 px, got {self.width}.")
        _ = self.rule, self.stop  # these check their own numbers

    @property
    def rule(self) -> Rule:
        """The solver with its settings."""
        return RULES[self.solver](self.damping, self.history)

    @property
    def stop(self) -> Stop:
        """Budget and tolerance, in full-size pixels."""
        return Stop(max_evals=self.max_evals, atol=self.tolerance, norm=flow_residual)

    @property
    def label(self) -> str:
        """The run in a few words: the solver, and what is not as usual."""
        words = [self.solver]
        if self.solver in DAMPED and self.damping != 1:
            words.append(f"damping {self.damping:g}")
        if self.solver in WITH_HISTORY:
            words.append(f"history {self.history}")
        if self.start != "zero":
            words.append(f"from {self.start if self.start != 'random' else 'a random start'}")
        if self.precision != "float32":
            words.append(self.precision)
        return ", ".join(words)


def require(what: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise ValueError unless the name is one of those known."""
    if name not in known:
        raise ValueError(f"No {what} {name!r}: expected one of {', '.join(known)}.")

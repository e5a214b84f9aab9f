"""The choices of a run of the playground."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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
DAMPED = ("Picard", "Anderson", "Broyden")  # the solvers that have a damping
WITH_HISTORY = ("Anderson", "Broyden")  # the solvers that have a history
STARTS = ("zero", "random", "previous solution", "true flow")
PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The choices of a run.

    Attributes:
        pair, model: names of a pair and a model of the bench.
        solver: one of :data:`RULES`.
        damping: damping of the solver's steps, in (0, 1]; Anderson's mixing. SciPy's solvers take none.
        history: number of earlier steps that Anderson and Broyden use.
        stretch: factor of each step: the solved map is z + stretch (f(z) - z), which has the fixed points of f. A large
            factor makes plain iteration diverge.
        tolerance: RMS movement of the flow by f, in full-size pixels, below which the solve is done.
        max_evals: budget in evaluations.
        start: one of :data:`STARTS`. "zero" is zero flow and the model's own hidden state, "random" a flow of 8 px
            RMS and a random hidden state, "true flow" the truth and the model's own hidden state; "previous
            solution" continues from the final state of the last run, on this pair or on the frame before.
        precision: float32, float64, or bfloat16 (encoders and update operator; the state stays float32).
        width: width in pixels to which wider images are reduced; None leaves them as they are.
        seed: seed of the random start.

    Raises:
        ValueError: a name is not known, or a number is out of its range.
    """

    pair: str
    model: str
    solver: str = "Picard"
    damping: float = 1.0
    history: int = 5
    stretch: float = 1.0
    tolerance: float = 0.01
    max_evals: int = 100
    start: str = "zero"
    precision: str = "float32"
    width: int | None = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require("solver", self.solver, RULES)
        require("start", self.start, STARTS)
        require("precision", self.precision, PRECISIONS)
        if self.width is not None and self.width < 16:
            raise ValueError(f"A run expects a width of at least 16 px, got {self.width}.")
        if not 1 <= self.stretch <= 4:
            raise ValueError(f"A run expects a stretch from 1 to 4, got {self.stretch!r}.")
        _ = self.rule, self.stop  # these check their own numbers

    @property
    def rule(self) -> Rule:
        """The solver with its settings."""
        return RULES[self.solver](self.damping, self.history)

    @property
    def stop(self) -> Stop:
        """Budget and tolerance, in full-size pixels of a step of f."""
        return Stop(max_evals=self.max_evals, atol=self.tolerance, norm=lambda step: flow_residual(step) / self.stretch)

    @property
    def label(self) -> str:
        """The run in a few words: the solver, and the settings that are not the defaults."""
        words = [self.solver]
        if self.solver in DAMPED and self.damping != 1:
            words.append(f"damping {self.damping:g}")
        if self.solver in WITH_HISTORY:
            words.append(f"history {self.history}")
        if self.stretch != 1:
            words.append(f"steps stretched {self.stretch:g} times")
        if self.start != "zero":
            words.append(f"from {self.start if self.start != 'random' else 'a random start'}")
        if self.precision != "float32":
            words.append(self.precision)
        return ", ".join(words)

    def as_python(self) -> str:
        """The call that makes these settings; defaults are left out."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        chosen = [f"{name}={value!r}" for name, value in named.items() if value != usual[name]]
        return f"RunSettings({', '.join(chosen)})"


def require(what: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise ValueError unless the name is one of those known."""
    if name not in known:
        raise ValueError(f"No {what} {name!r}: expected one of {', '.join(known)}.")

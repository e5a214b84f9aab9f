"""Equilibrium layers: how to differentiate through a fixed point (paper section 3).

For z = f(z, theta) the implicit function theorem gives dL/dtheta = v^T (I - J)^-1 df/dtheta, with v = dL/dz and
J = df/dz at the fixed point. :class:`Implicit` solves for v^T (I - J)^-1 exactly, :class:`Phantom` takes a few
terms of its Neumann series, :class:`Unrolled` differentiates every step of the solver (the recurrent way).
A gradient mode owns the whole run: what is solved without a graph, and where the graph begins.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from deqflow.solvers import (
    FixedPointMap,
    Iterate,
    OnEval,
    OutsideSolver,
    Picard,
    Rule,
    SolverError,
    SolverResult,
    Stop,
    rms,
    solve,
)
from deqflow.solvers.maps import active_transform

States = tuple[Tensor, ...]


class GradientMode(Protocol):
    """Runs the solver and returns the states at ``keep``, each with a graph to differentiate through.

    Where the corrections of one solve have several modes, one solve serves them all: it records a graph if any
    mode has ``records_solve``, and each mode's ``attach`` makes the state at its own corrections.
    """

    records_solve: ClassVar[bool]

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Return the (B, ...) state after an iterate's evaluation, with a graph to differentiate through."""
        ...

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Return (states, result): for each k of keep a (B, ...) state after k evaluations."""
        ...


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Back-propagation through every evaluation. What is kept for backward grows with each of them."""

    records_solve: ClassVar[bool] = True

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve with the graph on; the states are f(z) of the kept iterates."""
        return _run(f, z0, rule, stop, dict.fromkeys(keep, self))

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Return f(z) as the recorded solve left it."""
        return iterate.fz


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Inexact gradients (paper section 3.2): a few damped steps from the detached fixed point, differentiated.

    Each step is ``z <- (1 - damping) z + damping f(z)``; at a fixed point this is the Neumann series of
    ``(I - J)^-1`` cut after ``steps`` terms (with damping 1). ``steps=1`` is the one-step gradient. The value
    of the state for one undamped step is f(z) itself; without gradients the value is f(z), whatever ``steps`` is.
    """

    steps: int = 1
    damping: float = 1.0
    records_solve: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Phantom expects steps to be a whole number of at least 1, got {self.steps!r}.")
        if not 0 < self.damping <= 1:
            raise ValueError(f"Phantom expects 0 < damping <= 1, got {self.damping!r}.")

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve without a graph, then take the differentiated steps from each kept iterate."""
        return _run(f, z0, rule, stop, dict.fromkeys(keep, self))

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Take the differentiated steps from z."""
        z = iterate.z.detach()
        for _ in range(self.steps):
            z = f(z) if self.damping == 1.0 else torch.lerp(z, f(z), self.damping)
        return z


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Exact gradients by the implicit function theorem (paper eq. 4-5): solve g = v + J^T g with any rule.

    A backward solve that misses its tolerance gives an inexact gradient, with a warning; one without a tolerance
    (atol and rtol 0) is meant to spend its budget and gives none. ``torch.func`` transforms are not supported.

    Args:
        rule: solver of the backward fixed point.
        stop: its budget and tolerance; relative by default, since the scale of a gradient is arbitrary.
        check: raise :class:`deqflow.solvers.SolverError` in place of the warning.
        on_backward: called with the :class:`SolverResult` of each backward solve.
    """

    rule: Rule = field(default_factory=Picard)
    stop: Stop = field(default_factory=lambda: Stop(max_evals=50, atol=0.0, rtol=1e-5))
    check: bool = False
    on_backward: Callable[[SolverResult], None] | None = None
    records_solve: ClassVar[bool] = False

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve without a graph, then attach the exact gradient to one evaluation at each kept iterate."""
        return _run(f, z0, rule, stop, dict.fromkeys(keep, self))

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Evaluate f at z, detached, with the exact gradient around its output."""
        if not torch.is_grad_enabled():
            return f(iterate.z)
        if active_transform():
            raise RuntimeError(
                "Implicit does not support torch.func transforms such as grad and jacrev: use torch.autograd.grad or "
                "backward(), or differentiate with Phantom or Unrolled."
            )
        z = iterate.z.detach().requires_grad_()
        return _ImplicitGradient.apply(f(z), z, self)


class _ImplicitGradient(torch.autograd.Function):
    """Identity around the output of one evaluation at a detached leaf; backward solves (I - J^T) g = v."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, mode: Implicit) -> Tensor:
        ctx.fz, ctx.z, ctx.mode = fz, z, mode
        return fz.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # the solve leaves no graph: a second derivative would be wrong, silently
            raise RuntimeError("Implicit gives first derivatives only, got create_graph=True: use Unrolled for more.")
        (v,) = grad_outputs

        def backward_map(g: Tensor) -> Tensor:
            (vjp,) = torch.autograd.grad(ctx.fz, ctx.z, g, retain_graph=True, allow_unused=True)
            return v if vjp is None else v + vjp

        result = solve(backward_map, v, ctx.mode.rule, ctx.mode.stop)
        if ctx.mode.on_backward is not None:
            ctx.mode.on_backward(result)
        _report_inexact(result, ctx.mode)
        return result.fz, None, None


def _report_inexact(result: SolverResult, mode: Implicit) -> None:
    """Warn of a backward solve that missed its tolerance, if it has one; or raise if the mode checks."""
    if bool(result.converged.all()) or not (mode.stop.atol or mode.stop.rtol):
        return
    relative = float((result.residual / (mode.stop.norm or rms)(result.fz)).max())
    sentence = (
        f"The backward solve of Implicit has not converged after {int(result.evals.max())} evaluations: its residual "
        f"is {relative:.2g} of the gradient, which is inexact. Raise Implicit(stop=Stop(max_evals=...)), loosen its "
        "rtol, or try another rule such as Implicit(rule=Anderson())."
    )
    if mode.check:
        raise SolverError(sentence)
    warnings.warn(sentence, stacklevel=_level_outside_torch())


def _level_outside_torch() -> int:
    """The stack level, for a warning of this function's caller, of the first frame that is neither ours nor torch's."""
    level, frame = 0, inspect.currentframe()
    while frame and frame.f_back and frame.f_globals.get("__name__", "").startswith((__name__, "torch.")):
        level, frame = level + 1, frame.f_back
    return level


def _run(
    f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, modes: dict[int, GradientMode]
) -> tuple[States, SolverResult]:
    """Solve once and return the state after each evaluation that ``modes`` names, made by its mode."""
    records = any(mode.records_solve for mode in modes.values())
    if records and isinstance(rule, OutsideSolver):
        raise TypeError(f"Unrolled expects a step rule such as Picard, got {type(rule).__name__}: use Implicit.")
    with torch.set_grad_enabled(records and torch.is_grad_enabled()):
        result = solve(f, z0, rule, stop, keep=tuple(modes))
    return tuple(mode.attach(f, result.kept[at]) for at, mode in modes.items()), result


@dataclass(frozen=True)
class Correction:
    """A state to supervise: after which evaluation, and how it is differentiated.

    Attributes:
        at: number of the evaluation, from 1.
        gradient: Implicit, Phantom or Unrolled; the layer's own if not given.
    """

    at: int
    gradient: GradientMode | None = None

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 1:
            raise ValueError(f"A correction expects the number of an evaluation, from 1, got {self.at!r}.")


class Equilibrium(nn.Module):
    """An implicit layer: the fixed point of f, by any rule, with any gradient (paper section 3).

    In training, states along the way are returned to be supervised (sparse fixed-point correction, paper section
    3.3): ``corrections`` many, evenly placed over the budget, or those chosen. The last is always the solution.
    A solve that stops early returns as many: those beyond its end are the solution. In evaluation there is one
    state.

    Args:
        rule: solver of the forward fixed point.
        stop: budget and tolerance in training.
        gradient: Implicit, Phantom or Unrolled.
        corrections: how many states to return in training; None means every evaluation (recurrent training). Or
            which: numbers of evaluations, in order, or a :class:`Correction` where one has a gradient of its own.
            The solution, at the end of the budget, follows by itself where it is not among them.
        eval_stop: budget and tolerance in evaluation; as in training if not given.

    Raises:
        ValueError: corrections is less than 1, or more than the evaluations there are; chosen ones are none, not in
            order, or beyond the budget.
    """

    def __init__(
        self,
        *,
        rule: Rule,
        stop: Stop,
        gradient: GradientMode,
        corrections: int | Sequence[int | Correction] | None = 1,
        eval_stop: Stop | None = None,
    ) -> None:
        super().__init__()
        if isinstance(corrections, Sequence):
            corrections = _in_order(corrections)
            _require_budget(corrections, stop.max_evals)
        elif corrections is not None and not corrections >= 1:
            raise ValueError(f"Equilibrium expects corrections of at least 1 (or None for all), got {corrections!r}.")
        self.rule, self.stop, self.gradient = rule, stop, gradient
        self.corrections, self.eval_stop = corrections, eval_stop or stop

    def stop_in(self, training: bool) -> Stop:
        """Budget and tolerance in training, or in evaluation."""
        return self.stop if training else self.eval_stop

    def correction_points(self, max_evals: int) -> tuple[int, ...]:
        """After which evaluations the states are taken; the last at ``max_evals``."""
        return tuple(correction.at for correction in self.plan(max_evals))

    def plan(self, max_evals: int) -> tuple[Correction, ...]:
        """The corrections of a solve with this budget; the last at ``max_evals``.

        Raises:
            ValueError: the budget is too small for them.
        """
        solution = Correction(max_evals)
        if not self.training:
            return (solution,)
        if isinstance(self.corrections, tuple):
            _require_budget(self.corrections, max_evals)
            return self.corrections if self.corrections[-1].at == max_evals else (*self.corrections, solution)
        count = self.corrections or max_evals
        if count > max_evals:
            raise ValueError(f"{count} corrections need at least as many evaluations, got max_evals={max_evals}.")
        return tuple(Correction(round(max_evals * (i + 1) / count)) for i in range(count))

    def forward(
        self,
        f: FixedPointMap,
        z0: Tensor,
        *,
        rule: Rule | None = None,
        stop: Stop | None = None,
        on_eval: OnEval | None = None,
    ) -> tuple[States, SolverResult]:
        """Solve f(z) = z from z0, (B, ...); ``rule`` and ``stop`` replace the layer's own for this call.

        ``on_eval``, as in :func:`deqflow.solvers.solve`, is for solves without a graph.

        Returns:
            The states, oldest first, (B, ...) each, and the :class:`SolverResult`.

        Raises:
            ValueError: ``on_eval`` is given and a graph is recorded.
        """
        rule = rule or self.rule
        stop = stop or self.stop_in(self.training)
        modes = {correction.at: correction.gradient or self.gradient for correction in self.plan(stop.max_evals)}
        if not torch.is_grad_enabled():
            result = solve(f, z0, rule, stop, keep=tuple(modes), on_eval=on_eval)
            return tuple(iterate.fz for iterate in result.kept.values()), result
        if on_eval is not None:
            raise ValueError("on_eval expects a solve without a graph: call the model under torch.no_grad().")
        if all(mode is self.gradient for mode in modes.values()):
            return self.gradient.run(f, z0, rule, stop, tuple(modes))
        return _run(f, z0, rule, stop, modes)


def _in_order(chosen: Sequence[int | Correction]) -> tuple[Correction, ...]:
    """The chosen corrections as such.

    Raises:
        ValueError: there is none, or they are not in order.
    """
    corrections = tuple(item if isinstance(item, Correction) else Correction(item) for item in chosen)
    numbers = [correction.at for correction in corrections]
    if not numbers or numbers != sorted(set(numbers)):
        raise ValueError(
            f"Equilibrium expects chosen corrections as numbers of evaluations in ascending order, each once, got "
            f"{numbers}."
        )
    return corrections


def _require_budget(corrections: tuple[Correction, ...], max_evals: int) -> None:
    if corrections[-1].at > max_evals:
        raise ValueError(
            f"A correction is chosen at evaluation {corrections[-1].at}, but the solve may take max_evals={max_evals}: "
            "raise Stop(max_evals=...), or choose an earlier evaluation."
        )

"""Equilibrium layers: how to differentiate through a fixed point (paper section 3).

For z = f(z, theta) the implicit function theorem gives dL/dtheta = v^T (I - J)^-1 df/dtheta, with v = dL/dz and
J = df/dz at the fixed point. :class:`Implicit` solves for v^T (I - J)^-1 exactly, :class:`Phantom` takes a few
terms of its Neumann series, :class:`Unrolled` differentiates every step of the solver (the recurrent way).
A gradient mode owns the whole run: what is solved without a graph, and where the graph begins.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deqflow.solvers import FixedPointMap, OutsideSolver, Picard, Rule, SolverResult, Stop, solve

States = tuple[Tensor, ...]


class GradientMode(Protocol):
    """Runs the solver and returns the states at ``keep``, each with a graph to differentiate through."""

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Return (states, result): for each k of keep a (B, ...) state after k evaluations."""
        ...


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Back-propagation through every evaluation. What is kept for backward grows with each of them."""

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve with the graph on; the states are f(z) of the kept iterates."""
        if isinstance(rule, OutsideSolver):
            raise TypeError(f"Unrolled expects a step rule such as Picard, got {type(rule).__name__}: use Implicit.")
        result = solve(f, z0, rule, stop, keep=keep)
        return tuple(iterate.fz for iterate in result.kept.values()), result


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Inexact gradients (paper section 3.2): a few damped steps from the detached fixed point, differentiated.

    Each step is ``z <- (1 - damping) z + damping f(z)``; at a fixed point this is the Neumann series of
    ``(I - J)^-1`` cut after ``steps`` terms (with damping 1). ``steps=1`` is the one-step gradient. The value
    of the state for one undamped step is f(z) itself.
    """

    steps: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Phantom expects steps to be a whole number of at least 1, got {self.steps!r}.")
        if not 0 < self.damping <= 1:
            raise ValueError(f"Phantom expects 0 < damping <= 1, got {self.damping!r}.")

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve without a graph, then take the differentiated steps from each kept iterate."""
        with torch.no_grad():
            result = solve(f, z0, rule, stop, keep=keep)
        return tuple(self._steps(f, iterate.z.detach()) for iterate in result.kept.values()), result

    def _steps(self, f: FixedPointMap, z: Tensor) -> Tensor:
        for _ in range(self.steps):
            z = f(z) if self.damping == 1.0 else torch.lerp(z, f(z), self.damping)
        return z


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Exact gradients by the implicit function theorem (paper eq. 4-5): solve g = v + J^T g with any rule.

    Args:
        rule: solver of the backward fixed point.
        stop: its budget and tolerance; relative by default, since the scale of a gradient is arbitrary.
        on_backward: called with the :class:`SolverResult` of each backward solve.
    """

    rule: Rule = field(default_factory=Picard)
    stop: Stop = field(default_factory=lambda: Stop(max_evals=50, atol=0.0, rtol=1e-5))
    on_backward: Callable[[SolverResult], None] | None = None

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve without a graph, then attach the exact gradient to one evaluation at each kept iterate."""
        with torch.no_grad():
            result = solve(f, z0, rule, stop, keep=keep)
        return tuple(self._attach(f, iterate.z) for iterate in result.kept.values()), result

    def _attach(self, f: FixedPointMap, z: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return f(z)
        z = z.detach().requires_grad_()
        return _ImplicitGradient.apply(f(z), z, self)


class _ImplicitGradient(torch.autograd.Function):
    """Identity around the output of one evaluation at a detached leaf; backward solves (I - J^T) g = v."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, mode: Implicit) -> Tensor:
        ctx.fz, ctx.z, ctx.mode = fz, z, mode
        return fz.clone()

    @staticmethod
    @once_differentiable  # the solve leaves no graph: without this a second derivative would be wrong, silently
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (v,) = grad_outputs

        def backward_map(g: Tensor) -> Tensor:
            (vjp,) = torch.autograd.grad(ctx.fz, ctx.z, g, retain_graph=True, allow_unused=True)
            return v if vjp is None else v + vjp

        result = solve(backward_map, v, ctx.mode.rule, ctx.mode.stop)
        if ctx.mode.on_backward is not None:
            ctx.mode.on_backward(result)
        return result.fz, None, None


class Equilibrium(nn.Module):
    """An implicit layer: the fixed point of f, by any rule, with any gradient (paper section 3).

    In training, ``corrections`` states along the way are returned, evenly placed over the budget (sparse
    fixed-point correction, paper section 3.3); the last is the solution. In evaluation there is one state.

    Args:
        rule: solver of the forward fixed point.
        stop: budget and tolerance in training.
        gradient: Implicit, Phantom or Unrolled.
        corrections: how many states to return in training; None means every evaluation (recurrent training).
        eval_stop: budget and tolerance in evaluation; as in training if not given.

    Raises:
        ValueError: corrections is less than 1, or more than the evaluations there are.
    """

    def __init__(
        self,
        *,
        rule: Rule,
        stop: Stop,
        gradient: GradientMode,
        corrections: int | None = 1,
        eval_stop: Stop | None = None,
    ) -> None:
        super().__init__()
        if corrections is not None and not corrections >= 1:
            raise ValueError(f"Equilibrium expects corrections of at least 1 (or None for all), got {corrections!r}.")
        self.rule, self.stop, self.gradient = rule, stop, gradient
        self.corrections, self.eval_stop = corrections, eval_stop or stop

    def correction_points(self, max_evals: int) -> tuple[int, ...]:
        """After which evaluations the states are taken: evenly spaced, the last at ``max_evals``."""
        count = 1 if not self.training else self.corrections or max_evals
        if count > max_evals:
            raise ValueError(f"{count} corrections need at least as many evaluations, got max_evals={max_evals}.")
        return tuple(round(max_evals * (i + 1) / count) for i in range(count))

    def forward(
        self, f: FixedPointMap, z0: Tensor, *, rule: Rule | None = None, stop: Stop | None = None
    ) -> tuple[States, SolverResult]:
        """Solve f(z) = z from z0, (B, ...); ``rule`` and ``stop`` replace the layer's own for this call.

        Returns:
            The states, oldest first, (B, ...) each, and the :class:`SolverResult`.
        """
        rule = rule or self.rule
        stop = stop or (self.stop if self.training else self.eval_stop)
        if not torch.is_grad_enabled():
            result = solve(f, z0, rule, stop, keep=self.correction_points(stop.max_evals))
            return tuple(iterate.fz for iterate in result.kept.values()), result
        return self.gradient.run(f, z0, rule, stop, self.correction_points(stop.max_evals))

"""Gradient modes that attach a graph to an ordinary solve: unrolled, phantom and implicit (paper section 3.2)."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from deqflow.solvers import (
    FixedPointMap,
    Iterate,
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
    """Runs the solver and returns the states at ``keep``, each with a graph to differentiate through."""

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Return (states, result): for each k of keep a (B, ...) state after k evaluations."""
        ...


class Attached:
    """A mode that attaches a graph to the iterates of an ordinary solve.

    Where the corrections of one solve have several such modes, one solve serves them all: it records a graph if any
    mode has ``records_solve``, and each mode's ``attach`` makes the state at its own corrections.
    """

    records_solve: ClassVar[bool] = False

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Return the (B, ...) state after an iterate's evaluation, with a graph to differentiate through."""
        raise NotImplementedError

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Solve, then attach the graph to each kept iterate."""
        return run_attached(f, z0, rule, stop, dict.fromkeys(keep, self))


@dataclass(frozen=True, kw_only=True)
class Unrolled(Attached):
    """Back-propagation through every evaluation. The memory kept for backward grows with each of them."""

    records_solve: ClassVar[bool] = True

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Return f(z) as the recorded solve left it."""
        return iterate.fz


@dataclass(frozen=True, kw_only=True)
class Phantom(Attached):
    """Inexact gradients (paper section 3.2): a few damped steps from the detached fixed point, differentiated.

    Each step is ``z <- (1 - damping) z + damping f(z)``; at a fixed point this is the Neumann series of
    ``(I - J)^-1`` cut after ``steps`` terms (with damping 1). ``steps=1`` is the one-step gradient. With one
    undamped step the value of the state is f(z) itself; without gradients the value is f(z), whatever ``steps`` is.
    """

    steps: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Phantom expects steps to be a whole number of at least 1, got {self.steps!r}.")
        if not 0 < self.damping <= 1:
            raise ValueError(f"Phantom expects 0 < damping <= 1, got {self.damping!r}.")

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Take the differentiated steps from z."""
        z = iterate.z.detach()
        for _ in range(self.steps):
            z = f(z) if self.damping == 1.0 else torch.lerp(z, f(z), self.damping)
        return z


@dataclass(frozen=True, kw_only=True)
class Implicit(Attached):
    """Exact gradients by the implicit function theorem (paper eq. 4-5): solve g = v + J^T g with any rule.

    A backward solve that misses its tolerance gives an inexact gradient and a warning. A backward solve without a
    tolerance (atol and rtol 0) is meant to spend its budget and gives no warning. ``torch.func`` transforms are not
    supported.

    Args:
        rule: solver of the backward fixed point.
        stop: budget and tolerance of that solve; relative by default, since the scale of a gradient is arbitrary.
        check: raise :class:`deqflow.solvers.SolverError` in place of the warning.
        on_backward: called with the :class:`SolverResult` of each backward solve.
    """

    rule: Rule = field(default_factory=Picard)
    stop: Stop = field(default_factory=lambda: Stop(max_evals=50, atol=0.0, rtol=1e-5))
    check: bool = False
    on_backward: Callable[[SolverResult], None] | None = None

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Evaluate f at the detached z and attach the exact gradient to its output."""
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
    """Identity on the output of one evaluation at a detached leaf; its backward pass solves (I - J^T) g = v."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, mode: Implicit) -> Tensor:
        ctx.fz, ctx.z, ctx.mode = fz, z, mode
        return fz.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # the solve records no graph: a second derivative would be silently wrong
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
    """Warn of a backward solve that missed its tolerance, if it has one; raise instead if ``mode.check`` is set."""
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
    warnings.warn(sentence, stacklevel=2)


def run_attached(
    f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, modes: Mapping[int, GradientMode]
) -> tuple[States, SolverResult]:
    """Solve once and return the state after each evaluation that ``modes`` names, made by its mode."""
    attached = {at: mode for at, mode in modes.items() if isinstance(mode, Attached)}
    if len(attached) < len(modes):
        raise TypeError("A gradient mode that owns its iteration, such as Reversible, must be that of all corrections.")
    records = any(mode.records_solve for mode in attached.values())
    if records and isinstance(rule, OutsideSolver):
        raise TypeError(f"Unrolled expects a step rule such as Picard, got {type(rule).__name__}: use Implicit.")
    with torch.set_grad_enabled(records and torch.is_grad_enabled()):
        result = solve(f, z0, rule, stop, keep=tuple(modes))
    return tuple(mode.attach(f, result.kept[at]) for at, mode in attached.items()), result

"""Equilibrium layers: how to differentiate through a fixed point (paper section 3).

For z = f(z, theta) the implicit function theorem gives dL/dtheta = v^T (I - J)^-1 df/dtheta, with v = dL/dz and
J = df/dz at the fixed point. :class:`Implicit` solves for v^T (I - J)^-1 exactly, :class:`Phantom` takes a few
terms of its Neumann series, :class:`Unrolled` differentiates every step of the solver (the recurrent way).
A gradient mode owns the whole run: what is solved without a graph, and where the graph begins.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from deqflow.solvers import FixedPointMap, Iterate, OnEval, OutsideSolver, Picard, Rule, SolverResult, Stop, rms, solve
from deqflow.solvers.loop import Record

States = tuple[Tensor, ...]


class GradientMode(Protocol):
    """Runs the solver and returns the states at ``keep``, each with a graph to differentiate through."""

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Return (states, result): for each k of keep a (B, ...) state after k evaluations."""
        ...


class _Attached:
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
        return _run(f, z0, rule, stop, dict.fromkeys(keep, self))


@dataclass(frozen=True, kw_only=True)
class Unrolled(_Attached):
    """Back-propagation through every evaluation. What is kept for backward grows with each of them."""

    records_solve: ClassVar[bool] = True

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Return f(z) as the recorded solve left it."""
        return iterate.fz


@dataclass(frozen=True, kw_only=True)
class Phantom(_Attached):
    """Inexact gradients (paper section 3.2): a few damped steps from the detached fixed point, differentiated.

    Each step is ``z <- (1 - damping) z + damping f(z)``; at a fixed point this is the Neumann series of
    ``(I - J)^-1`` cut after ``steps`` terms (with damping 1). ``steps=1`` is the one-step gradient. The value
    of the state for one undamped step is f(z) itself; where no gradient is recorded, it is f(z) for any number.
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
class Implicit(_Attached):
    """Exact gradients by the implicit function theorem (paper eq. 4-5): solve g = v + J^T g with any rule.

    Args:
        rule: solver of the backward fixed point.
        stop: its budget and tolerance; relative by default, since the scale of a gradient is arbitrary.
        on_backward: called with the :class:`SolverResult` of each backward solve.
    """

    rule: Rule = field(default_factory=Picard)
    stop: Stop = field(default_factory=lambda: Stop(max_evals=50, atol=0.0, rtol=1e-5))
    on_backward: Callable[[SolverResult], None] | None = None

    def attach(self, f: FixedPointMap, iterate: Iterate) -> Tensor:
        """Evaluate f at z, detached, with the exact gradient around its output."""
        if not torch.is_grad_enabled():
            return f(iterate.z)
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
        return result.fz, None, None


@dataclass(frozen=True, kw_only=True)
class Reversible:
    """The exact gradient of the iteration as it ran, at a memory that does not grow with the number of evaluations.

    Two coupled states take turns, from y = z = z0 (McCallum, Arora and Foster 2025, Reversible Deep Equilibrium
    Models): y <- (1 - b) y + b f(z), then z <- (1 - b) z + b f(y), one evaluation each. Each step can be undone, so
    that the backward pass rebuilds the path from its end instead of remembering it. No contraction is needed. The
    state after an evaluation is the one of the two that it changed. In evaluation mode, the layer's own rule solves.

    What f depends on besides the state (parameters, features) is found by watching one evaluation. The two states are
    float64, whatever f computes in: undoing a step multiplies its rounding error by 1 / (1 - b), and by more where f
    expands. A path that could not be rebuilt is warned of: the backward pass must end at the start.

    Args:
        mixing: b, above 0 and less than 1.

    Raises:
        ValueError: ``mixing`` is out of its range.
    """

    mixing: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.mixing < 1:
            raise ValueError(f"Reversible expects 0 < mixing < 1, got {self.mixing!r}.")

    @property
    def most_evals(self) -> int:
        """Beyond so many evaluations a path is certainly lost; on the way there, a lost one is warned of."""
        return int(math.log(REBUILDING_GROWTH) / -math.log(1 - self.mixing))

    def run(
        self, f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, keep: Iterable[int]
    ) -> tuple[States, SolverResult]:
        """Run the coupled iteration for the whole budget; the states are those after the kept evaluations.

        Raises:
            TypeError: the rule is not plain iteration.
            ValueError: the stopping rule ends early, or allows more evaluations than can be undone.
        """
        if not (isinstance(rule, Picard) and rule.damping == 1.0):
            raise TypeError(f"Reversible brings its own iteration and expects the rule Picard(), got {rule!r}.")
        if stop.atol or stop.rtol or stop.max_seconds < math.inf:
            raise ValueError(f"Reversible expects a fixed number of evaluations, Stop(atol=0.0), got {stop!r}.")
        if stop.max_evals > self.most_evals:
            raise ValueError(
                f"Reversible with mixing={self.mixing} can undo at most {self.most_evals} evaluations, got max_evals="
                f"{stop.max_evals}: lower one of them."
            )
        keep, record = tuple(keep), []
        states = _ReversibleRun.apply(f, self.mixing, stop, keep, record, z0, *dependencies(f, z0))
        return states, record[0].result()


REBUILDING_GROWTH = 1e17  # of rounding errors, 1 / (1 - b) an evaluation: beyond it float64 holds nothing of a path
REBUILT_TO = 1e-3  # how far off the rebuilt start may be, relative to the path's length


class _ReversibleRun(torch.autograd.Function):
    """The coupled iteration as one operation, of its start and of what else f depends on."""

    @staticmethod
    def forward(ctx: Any, f: Any, b: float, stop: Stop, keep: Any, record: list, z0: Tensor, *given: Tensor) -> States:
        record.append(Record(z0, stop, keep, reports_best=False))
        device = z0.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        y, z, states = z0.double(), z0.double(), {}
        for k in range(1, stop.max_evals + 1):
            x = z.to(z0.dtype)
            fx = f(x)
            record[0].add(x, fx)
            # The state that was changed is the next one to be evaluated at: they change names.
            y, z = z, torch.lerp(y, fx.double(), b)
            if k in keep:
                states[k] = z.to(z0.dtype)
        ctx.f, ctx.b, ctx.evals, ctx.keep, ctx.dtype = f, b, stop.max_evals, keep, z0.dtype
        ctx.save_for_backward(y, z, z0, *given)
        return tuple(states[k] for k in keep)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Reversible gives first derivatives only, got create_graph=True: use Unrolled for more.")
        y, z, z0, *given = ctx.saved_tensors
        length = rms(z - z0)
        device, dtype, enabled = ctx.autocast
        b, grads = ctx.b, dict(zip(ctx.keep, grad_outputs, strict=True))
        grad_y, grad_z = torch.zeros_like(y), torch.zeros_like(z)
        totals: list[Tensor | None] = [None] * len(given)
        for k in range(ctx.evals, 0, -1):
            if k in grads:
                grad_z = grad_z + grads[k]
            x = y.to(ctx.dtype).requires_grad_()
            stand_ins = [tensor.detach().requires_grad_() for tensor in given]
            with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
                with _StandIns(given, stand_ins):
                    fx = ctx.f(x)
                if k == ctx.evals:
                    _require_known(fx, {id(x), *map(id, stand_ins)})
            v = (b * grad_z).to(fx.dtype)
            grad_x, *found = torch.autograd.grad(fx, [x, *stand_ins], v, allow_unused=True)
            totals = [_added(old, new) for old, new in zip(totals, found, strict=True)]
            y, z = (z - b * fx.detach().double()) / (1 - b), y
            grad_y, grad_z = (1 - b) * grad_z, grad_y if grad_x is None else grad_y + grad_x
        _warn_of_another_start(rms(torch.maximum((y - z0).abs(), (z - z0).abs())) / length.clamp_min(1e-12))
        return None, None, None, None, None, (grad_y + grad_z).to(ctx.dtype), *totals


def _warn_of_another_start(off: Tensor) -> None:
    """Warn where a path was rebuilt back to another start than it began at; (B,), relative to the path's length."""
    worst = float(off.max())
    if worst > REBUILT_TO:
        warnings.warn(
            f"Reversible rebuilt a path to a start that is off by {worst:.1e} of the path's length: its gradient is "
            "not exact. Lower max_evals or mixing.",
            stacklevel=2,
        )


def _added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return old if new is None else new if old is None else old + new


def dependencies(f: FixedPointMap, z0: Tensor) -> list[Tensor]:
    """What f(z) depends on besides the state, tensors that require gradients; found by watching one evaluation."""
    with torch.enable_grad(), _Watch(x := z0.detach().requires_grad_()) as watch:
        f(x)
    return list(watch.found.values())


class _Watch(TorchFunctionMode):
    """Collects the tensors that require gradients and come from outside."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {id(x): x}  # holds what was made, so that no number is given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.requires_grad and id(tensor) not in self.made:
                self.found[id(tensor)] = tensor
        self.made |= {id(tensor): tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        for number in self.found.keys() & self.made.keys():  # what is changed in place, or handed through
            del self.made[number]
        return result


class _StandIns(TorchFunctionMode):
    """Hands operations stand-ins of some tensors, so that a graph ends there."""

    def __init__(self, tensors: Sequence[Tensor], stand_ins: Sequence[Tensor]) -> None:
        super().__init__()
        self.table = {id(tensor): stand_in for tensor, stand_in in zip(tensors, stand_ins, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda leaf: self.table.get(id(leaf), leaf), (args, kwargs or {}))
        return func(*args, **kwargs)


def _require_known(fx: Tensor, known: set[int]) -> None:
    """Raise where a graph leads to a parameter that no stand-in stands for: its gradient would be lost."""
    nodes, seen = [fx.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise RuntimeError(
                "Reversible cannot see all tensors that f depends on: one goes to an autograd.Function directly. "
                "Pass it a view instead, tensor.view_as(tensor), or use Unrolled."
            )
        nodes.extend(edge for edge, _ in node.next_functions)


def _run(
    f: FixedPointMap, z0: Tensor, rule: Rule, stop: Stop, modes: Mapping[int, GradientMode]
) -> tuple[States, SolverResult]:
    """Solve once and return the state after each evaluation that ``modes`` names, made by its mode."""
    attached = {at: mode for at, mode in modes.items() if isinstance(mode, _Attached)}
    if len(attached) < len(modes):
        raise TypeError("A gradient mode that owns its iteration, such as Reversible, must be that of all corrections.")
    records = any(mode.records_solve for mode in attached.values())
    if records and isinstance(rule, OutsideSolver):
        raise TypeError(f"Unrolled expects a step rule such as Picard, got {type(rule).__name__}: use Implicit.")
    with torch.set_grad_enabled(records and torch.is_grad_enabled()):
        result = solve(f, z0, rule, stop, keep=tuple(modes))
    return tuple(mode.attach(f, result.kept[at]) for at, mode in attached.items()), result


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
        corrections_from: share of the evaluations before evenly placed corrections begin.

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
        corrections_from: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(corrections, Sequence):
            corrections = _in_order(corrections)
            _require_budget(corrections, stop.max_evals)
        elif corrections is not None and not corrections >= 1:
            raise ValueError(f"Equilibrium expects corrections of at least 1 (or None for all), got {corrections!r}.")
        self.rule, self.stop, self.gradient = rule, stop, gradient
        self.corrections, self.eval_stop = corrections, eval_stop or stop
        self.corrections_from = corrections_from

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
        first = min(int(self.corrections_from * max_evals), max_evals - count)
        if first < 0:
            raise ValueError(f"{count} corrections need at least as many evaluations, got max_evals={max_evals}.")
        return tuple(Correction(first + round((max_evals - first) * (i + 1) / count)) for i in range(count))

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

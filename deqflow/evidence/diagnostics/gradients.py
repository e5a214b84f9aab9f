"""The gradient audit: what each gradient mode is worth against the exact gradient, and what it costs."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deqflow.equilibrium import GradientMode, Implicit, Unrolled
from deqflow.evidence.diagnostics.memory import KeptForBackward
from deqflow.solvers import Anderson, FixedPointMap, Picard, Rule, SolverError, SolverResult, Stop, rms

MakeMap = Callable[[], FixedPointMap]
Loss = Callable[[Tensor], Tensor]
Groups = Mapping[str, Sequence[Tensor]]

EXACT = Stop(max_evals=2000, atol=0.0, rtol=1e-10)
ALL = "all parameters"


@dataclass(frozen=True)
class Gradient:
    """A gradient and what it cost.

    Attributes:
        groups: for each group of parameters one vector, all of its gradients end to end.
        seconds: from the fixed point on: differentiated evaluations, loss, backward.
        bytes: kept for backward by those evaluations, parameters apart; f's own making is not among them.
        backward: account of the backward solve, None where the mode has none.
    """

    groups: Mapping[str, Tensor]
    seconds: float
    bytes: int
    backward: SolverResult | None = None


@dataclass(frozen=True)
class Reference:
    """The exact gradient and how exact it is.

    Attributes:
        gradient: the :class:`Gradient`.
        residual: of the backward solve, relative to its solution, the worst sample.
        unrolled_error: per group, relative distance to the gradient of an unroll; empty if none was asked for.
    """

    gradient: Gradient
    residual: float
    unrolled_error: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One gradient mode against the exact gradient, on one group of parameters (no unit, all three).

    Attributes:
        mode, group: names.
        cosine: of the angle between the two; NaN if one of them is zero.
        length: ratio of lengths, 1 is right.
        error: length of the difference relative to the exact one.
    """

    mode: str
    group: str
    cosine: float
    length: float
    error: float


def measure_gradient(
    make_map: MakeMap,
    z: Tensor,
    mode: GradientMode,
    loss: Loss,
    groups: Groups,
    *,
    evals: int = 1,
    repeats: int = 1,
) -> Gradient:
    """Gradient of ``loss(state)`` by a mode that starts from z, (B, ...).

    Args:
        make_map: makes f, with whatever graph its constants need (features, context, weights).
        z: the fixed point; plain iteration goes on from it for ``evals - 1`` evaluations before the mode's own.
        mode: Implicit, Phantom or Unrolled.
        loss: state -> scalar.
        groups: named lists of parameters that require gradients.
        evals: 1, or for Unrolled the number of evaluations to differentiate.
        repeats: times it is done, to report the shortest.

    Raises:
        ValueError: a group has no parameters, or repeats is less than 1.
    """
    if empty := [name for name, parameters in groups.items() if not parameters]:
        raise ValueError(f"measure_gradient expects parameters in each group, got none in {', '.join(empty)}.")
    if repeats < 1:
        raise ValueError(f"measure_gradient expects repeats of at least 1, got {repeats!r}.")
    runs = [_measure_once(make_map, z.detach(), mode, loss, groups, evals) for _ in range(repeats)]
    return min(runs, key=lambda gradient: gradient.seconds)


def _measure_once(make_map: MakeMap, z: Tensor, mode: GradientMode, loss: Loss, groups: Groups, evals: int) -> Gradient:
    flat = [parameter for parameters in groups.values() for parameter in parameters]
    solves: list[SolverResult] = []
    if isinstance(mode, Implicit):
        tell = mode.on_backward or (lambda result: None)
        mode = dataclasses.replace(mode, on_backward=lambda result: (solves.append(result), tell(result)))
    f = make_map()
    started = time.perf_counter()
    with KeptForBackward(apart_from=flat) as kept:
        (state,), _ = mode.run(f, z, Picard(), Stop(max_evals=evals, atol=0.0, norm=_never_small), (evals,))
    size = kept.bytes
    found = torch.autograd.grad(loss(state), flat, allow_unused=True, materialize_grads=True)
    seconds = time.perf_counter() - started
    parts = iter(found)
    vectors = {name: torch.cat([next(parts).flatten() for _ in group]) for name, group in groups.items()}
    return Gradient(vectors, seconds, size, solves[0] if solves else None)


def _never_small(difference: Tensor) -> Tensor:
    """A norm that keeps a solve going even from an exact fixed point: 1 for each sample, (B, ...) -> (B,)."""
    return difference.new_ones(len(difference))


def exact_gradient(
    make_map: MakeMap,
    z: Tensor,
    loss: Loss,
    groups: Groups,
    *,
    rule: Rule | None = None,
    stop: Stop = EXACT,
    unroll: int = 0,
) -> Reference:
    """The gradient by the implicit function theorem, solved to 1e-10, and if asked for checked by unrolling.

    Args:
        make_map, z, loss, groups: as in :func:`measure_gradient`; z in float64.
        rule: of the backward solve; Anderson with a long history if not given.
        stop: of the backward solve.
        unroll: evaluations of plain iteration from z to differentiate as a check; 0 for none. It is one where z is
            a fixed point and the spectral radius is below 1.

    Raises:
        TypeError: z is not float64.
        SolverError: the backward solve did not reach its tolerance.
    """
    if z.dtype != torch.float64:
        raise TypeError(f"exact_gradient expects a float64 state, got {z.dtype}: convert the model with .double().")
    mode = Implicit(rule=rule or Anderson(history=30, ridge=1e-14), stop=stop, check=True)
    try:
        gradient = measure_gradient(make_map, z, mode, loss, groups)
    except SolverError as error:
        raise SolverError(f"The exact gradient: {error}") from error
    if gradient.backward is None:
        raise ValueError(
            "exact_gradient expects a loss that depends on the state, got one whose gradient is not asked."
        )
    backward = gradient.backward
    residual = float((backward.residual / (stop.norm or rms)(backward.fz)).max())
    if not unroll:
        return Reference(gradient, residual)
    unrolled = measure_gradient(make_map, z, Unrolled(), loss, groups, evals=unroll)
    errors = {row.group: row.error for row in compare("unrolled", unrolled, gradient)}
    return Reference(gradient, residual, errors)


def compare(mode: str, gradient: Gradient, exact: Gradient) -> tuple[Comparison, ...]:
    """Set a gradient beside the exact one: a :class:`Comparison` for each group, and one of all parameters."""
    pairs = {group: (gradient.groups[group], exact.groups[group]) for group in exact.groups}
    pairs[ALL] = (torch.cat([found for found, _ in pairs.values()]), torch.cat([true for _, true in pairs.values()]))
    rows = []
    for group, (found, true) in pairs.items():
        length, scale, off = float(found.norm()), float(true.norm()), float((found - true).norm())
        cosine = float(found @ true) / (length * scale) if length and scale else math.nan
        rows.append(Comparison(mode, group, cosine, *(x / scale if scale else math.nan for x in (length, off))))
    return tuple(rows)


@dataclass(frozen=True)
class Audit:
    """Gradient modes against the exact gradient, at one state.

    Attributes:
        reference: the exact gradient.
        gradients: what each mode found and cost, by name.
        rows: the comparisons, mode by mode, a row for each group and one for all parameters.
    """

    reference: Reference
    gradients: Mapping[str, Gradient]
    rows: tuple[Comparison, ...]

    def row(self, mode: str, group: str = ALL) -> Comparison:
        """The comparison of one mode on one group.

        Raises:
            KeyError: there is no such row.
        """
        for row in self.rows:
            if (row.mode, row.group) == (mode, group):
                return row
        modes, groups = (sorted({getattr(row, name) for row in self.rows}) for name in ("mode", "group"))
        raise KeyError(f"No row {mode!r}, {group!r}: expected a mode of {modes} and a group of {groups}.")


def audit(
    attempts: Mapping[str, tuple[MakeMap, GradientMode]],
    reference: Reference,
    z: Tensor,
    loss: Loss,
    groups: Groups,
    *,
    repeats: int = 1,
) -> Audit:
    """Measure gradient modes at z, (B, ...), against a reference made at the same z with the same loss and groups.

    Args:
        attempts: by name, how f is made and the mode; f may be another one than the reference's, such as one in
            which something is detached.
        reference: of :func:`exact_gradient`.
        z, loss, groups, repeats: as in :func:`measure_gradient`.
    """
    gradients = {
        name: measure_gradient(make_map, z, mode, loss, groups, repeats=repeats)
        for name, (make_map, mode) in attempts.items()
    }
    rows = [row for name, found in gradients.items() for row in compare(name, found, reference.gradient)]
    return Audit(reference, gradients, tuple(rows))

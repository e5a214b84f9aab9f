"""The gradient audit: accuracy of each gradient mode against the exact gradient, and its cost."""

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
    """A gradient and its cost.

    Attributes:
        groups: for each group of parameters one vector, the concatenation of all of its gradients.
        seconds: of differentiated evaluations, loss and backward; the solve before them is not included.
        bytes: kept for backward by those evaluations, without parameters and without the making of f.
        backward: account of the backward solve; None for a mode that has none.
    """

    groups: Mapping[str, Tensor]
    seconds: float
    bytes: int
    backward: SolverResult | None = None


@dataclass(frozen=True)
class Reference:
    """The exact gradient and its accuracy.

    Attributes:
        gradient: the :class:`Gradient`.
        residual: of the backward solve, relative to its solution, of the worst sample.
        unrolled_error: relative distance to the gradient of an unroll, by group; empty if ``unroll`` was 0.
    """

    gradient: Gradient
    residual: float
    unrolled_error: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One gradient mode against the exact gradient, for one group of parameters. The figures have no unit.

    Attributes:
        mode, group: names.
        cosine: of the angle between the two; NaN if one of them is zero.
        length: ratio of lengths; 1 is right.
        error: length of the difference, relative to the exact gradient.
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
    """Measure the gradient of ``loss(state)`` by a mode that starts from z, (B, ...).

    Args:
        make_map: makes f, with the graph of its constants (features, context, weights).
        z: the fixed point; ``evals - 1`` evaluations of plain iteration come before the mode's own.
        mode: Implicit, Phantom or Unrolled.
        loss: state -> scalar.
        groups: named lists of parameters that require gradients.
        evals: 1, or for Unrolled the number of evaluations to differentiate.
        repeats: number of measurements, of which the fastest is returned.

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
        own = mode.on_backward

        def on_backward(result: SolverResult) -> None:
            solves.append(result)
            if own is not None:
                own(result)

        mode = dataclasses.replace(mode, on_backward=on_backward)
    f = make_map()
    started = time.perf_counter()
    with KeptForBackward(apart_from=flat) as kept:
        (state,), _ = mode.run(f, z, Picard(), Stop(max_evals=evals, atol=0.0, norm=_always_one), (evals,))
    size = kept.bytes
    found = torch.autograd.grad(loss(state), flat, allow_unused=True, materialize_grads=True)
    seconds = time.perf_counter() - started
    parts = iter(found)
    vectors = {name: torch.cat([next(parts).flatten() for _ in group]) for name, group in groups.items()}
    return Gradient(vectors, seconds, size, solves[0] if solves else None)


def _always_one(difference: Tensor) -> Tensor:
    """A norm of 1 for each sample, (B, ...) -> (B,): the solve uses its whole budget even at an exact fixed point."""
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
    """The gradient by the implicit function theorem, solved to 1e-10; ``unroll`` also checks it by unrolling.

    Args:
        make_map, z, loss, groups: as in :func:`measure_gradient`; z in float64.
        rule: of the backward solve; Anderson with a long history if not given.
        stop: of the backward solve.
        unroll: evaluations of plain iteration from z to differentiate as a check; 0 for none. The check is valid
            if z is a fixed point and the spectral radius is below 1.

    Raises:
        TypeError: z is not float64.
        SolverError: the backward solve did not reach its tolerance.
    """
    if z.dtype != torch.float64:
        raise TypeError(f"exact_gradient expects a float64 state, got {z.dtype}: convert the model with .double().")
    mode = Implicit(rule=rule or Anderson(history=30, ridge=1e-14), stop=stop)
    gradient = measure_gradient(make_map, z, mode, loss, groups)
    if gradient.backward is None:
        raise ValueError(
            "exact_gradient expects a loss that depends on the state, got one whose gradient is not asked."
        )
    try:
        backward = gradient.backward.check()
    except SolverError as error:
        raise SolverError(f"The backward solve of the exact gradient: {error}") from error
    residual = float((backward.residual / (stop.norm or rms)(backward.fz)).max())
    if not unroll:
        return Reference(gradient, residual)
    unrolled = measure_gradient(make_map, z, Unrolled(), loss, groups, evals=unroll)
    errors = {row.group: row.error for row in compare("unrolled", unrolled, gradient)}
    return Reference(gradient, residual, errors)


def compare(mode: str, gradient: Gradient, exact: Gradient) -> tuple[Comparison, ...]:
    """Compare a gradient with the exact one: a :class:`Comparison` for each group, and one for all parameters."""
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
        gradients: the gradient of each mode and its cost, by name.
        rows: the comparisons, mode by mode, one for each group and one for all parameters.
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
    """Measure gradient modes at z, (B, ...), against a reference with the same z, loss and groups.

    Args:
        attempts: by name, a function that makes f, and the mode. f may differ from the reference's, for instance by
            a detached input.
        reference: of :func:`exact_gradient`.
        z, loss, groups, repeats: as in :func:`measure_gradient`.
    """
    gradients = {
        name: measure_gradient(make_map, z, mode, loss, groups, repeats=repeats)
        for name, (make_map, mode) in attempts.items()
    }
    rows = [row for name, found in gradients.items() for row in compare(name, found, reference.gradient)]
    return Audit(reference, gradients, tuple(rows))

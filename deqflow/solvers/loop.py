"""The loop that all step rules share: counting, measuring, stopping, freezing, remembering the best."""

import enum
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from deqflow.solvers.maps import ActiveRows, FixedPointMap, active_transform


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: (B, ...) -> (B,), float32 or better. Independent of the size of the state."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # a sum of squares soon leaves the range of float16
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=dtype) / max(1, x[0].numel()) ** 0.5


class SolverError(RuntimeError):
    """Raised by :meth:`SolverResult.check` when a sample has not converged."""


class Status(enum.IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    MAX_EVALS = 1
    NON_FINITE = 2
    INTERRUPTED = 3

    @property
    def advice(self) -> str:
        """What the user can do about it, in one sentence."""
        return {
            Status.CONVERGED: "Nothing to do.",
            Status.MAX_EVALS: "Raise Stop(max_evals=...), or loosen atol or rtol, or try another rule.",
            Status.NON_FINITE: "f returned NaN or infinity: check its inputs and weights, or damp the rule.",
            Status.INTERRUPTED: "The time was up, or on_eval ended the solve: raise Stop(max_seconds=...).",
        }[self]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When to stop: a sample has converged once ``norm(f(z) - z) <= atol + rtol * norm(f(z))``.

    If both tolerances are 0, a sample stops early only where f(z) = z in every element: no further evaluation would
    change its state.

    Args:
        max_evals: budget, in evaluations of ``f``; ``f`` is never called more often.
        atol: absolute tolerance, in the unit of ``norm``.
        rtol: tolerance relative to the size of ``f(z)``; 0 by default: a large flow does not excuse a large error.
        norm: per-sample norm, (B, ...) -> (B,). If None, the solver's own: :func:`rms` here, the RMS change of the
            flow in full-size pixels in a flow estimator.
        max_seconds: time budget, in addition to ``max_evals``; the evaluation that exceeds it is the last. With a
            time budget, how far a solve gets depends on the machine.
    """

    max_evals: int = 40
    atol: float = 1e-3
    rtol: float = 0.0
    norm: Callable[[Tensor], Tensor] | None = None
    max_seconds: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.max_evals, bool) or not isinstance(self.max_evals, Integral) or self.max_evals < 1:
            raise ValueError(f"Stop expects max_evals to be a whole number of at least 1, got {self.max_evals!r}.")
        object.__setattr__(self, "max_evals", int(self.max_evals))  # from NumPy's types
        if any(isinstance(value, str) or not value >= 0 for value in (self.atol, self.rtol)):
            raise ValueError(f"Stop expects tolerances of 0 or more, got atol={self.atol!r}, rtol={self.rtol!r}.")
        if not self.max_seconds > 0:
            raise ValueError(f"Stop expects max_seconds to be more than 0, got {self.max_seconds!r}.")

    def with_changes(self, *, max_evals: int | None = None, atol: float | None = None) -> "Stop":
        """The same stopping rule with another budget or tolerance; None changes nothing."""
        return replace(
            self,
            max_evals=self.max_evals if max_evals is None else max_evals,
            atol=self.atol if atol is None else atol,
        )

    def measured_by(self, norm: Callable[[Tensor], Tensor]) -> "Stop":
        """The same stopping rule, with this norm if it has none of its own."""
        return self if self.norm is not None else replace(self, norm=norm)


@dataclass(frozen=True)
class Iterate:
    """A pair (z, f(z)) of shape (B, ...) each, and the residual of z, (B,)."""

    z: Tensor
    fz: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Evaluation:
    """What ``on_eval`` is given after each evaluation.

    Attributes:
        number: number of the evaluation, from 1.
        z, fz: where f was evaluated and what it returned, (B, ...) each.
        residual: norm(f(z) - z), (B,).
        active: which samples are evaluated again after it, (B,) booleans; the others are frozen.
    """

    number: int
    z: Tensor
    fz: Tensor
    residual: Tensor
    active: Tensor


OnEval = Callable[[Evaluation], object]  # a true value (of Python, torch or NumPy) ends the solve


def _asks_to_end(answer: object) -> bool:
    """Whether what ``on_eval`` returned ends the solve."""
    try:
        return answer is not None and bool(answer)
    except (ValueError, RuntimeError) as error:  # NumPy's and torch's, of several values
        raise TypeError(
            "on_eval expects to return nothing, or one truth value that says whether to end the solve, got "
            f"{type(answer).__name__} with several: reduce it with .any() or .all()."
        ) from error


@dataclass(frozen=True)
class SolverResult:
    """The outcome of a solve of B samples.

    Attributes:
        z: the reported state, (B, ...): the newest finite one (Picard) or the best (Anderson, Broyden).
        fz: f(z), (B, ...), from the evaluation that was made at z.
        residual: norm(f(z) - z) of exactly that z, (B,).
        status: the :class:`Status` of each sample, (B,) integers.
        evals: evaluations spent on each sample, (B,) integers.
        trace: residual at each evaluation, (evaluations, B); NaN once a sample is frozen.
        retry_evals: how many of ``evals`` belong to a damped second try (:func:`deqflow.solvers.rescue`), (B,)
            integers; None if there was none.
        kept: for each k of ``keep``, what stopping at evaluation k would have returned.
        stop: the stopping rule that was used.
    """

    z: Tensor
    fz: Tensor
    residual: Tensor
    status: Tensor
    evals: Tensor
    trace: Tensor
    kept: Mapping[int, Iterate] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    retry_evals: Tensor | None = None

    @property
    def converged(self) -> Tensor:
        """Which samples met the tolerance, (B,) booleans."""
        return self.status == Status.CONVERGED

    def summary(self) -> str:
        """One sentence: how many samples converged, evaluations spent, worst residual."""
        ok, total = int(self.converged.sum()), len(self.status)
        retry = "" if self.retry_evals is None else f", {int(self.retry_evals.max())} of them in a damped second try"
        return (
            f"{ok} of {total} samples converged; {int(self.evals.max())} evaluations at most{retry}; worst residual "
            f"{float(self.residual.max()):.3g} (tolerance atol={self.stop.atol:g}, rtol={self.stop.rtol:g})."
        )

    def check(self) -> "SolverResult":
        """Return self if all samples converged, else raise :class:`SolverError` with what to change."""
        if bool(self.converged.all()):
            return self
        worst = Status(int(self.status.max()))
        raise SolverError(f"{self.summary()} {worst.advice}")


class StepRule(Protocol):
    """Proposes the next state to evaluate. Gets f(z), never calls f; all state is in ``memory``."""

    reports_best: ClassVar[bool]

    def init(self, z0: Tensor) -> Any:
        """Return the memory to begin with."""
        ...

    def step(self, z: Tensor, fz: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Return the next state and the new memory."""
        ...


@runtime_checkable
class OutsideSolver(Protocol):
    """A solver that owns its loop, such as :func:`deqflow.solvers.scipy_solver`'s."""

    def solve(
        self,
        f: FixedPointMap,
        z0: Tensor,
        stop: Stop,
        keep: tuple[int, ...],
        on_eval: OnEval | None,
    ) -> SolverResult:
        """Solve f(z) = z from z0, with the meaning of :func:`solve`."""
        ...


Rule = StepRule | OutsideSolver


def per_sample(flags: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts against ``like`` of shape (B, ...)."""
    return flags.view(-1, *[1] * (like.dim() - 1))


def select(flags: Tensor, count: int, yes: Tensor, no: Tensor) -> Tensor:
    """Rows of ``yes`` where flags (B,), else of ``no``; ``count`` flags are set. Never multiplies: 0 * NaN is NaN."""
    if count == len(flags):
        return yes
    return torch.where(per_sample(flags, yes), yes, no)


def finite(x: Tensor) -> Tensor:
    """Which samples are finite in every element, (B, ...) -> (B,). Few operations: 0 * NaN and 0 * infinity are NaN."""
    return (0 * x).flatten(1).sum(1) == 0


class Record:
    """The record of a solve so far, which gives a :class:`SolverResult` at any time."""

    def __init__(
        self, z0: Tensor, stop: Stop, keep: tuple[int, ...], reports_best: bool, deadline: float | None = None
    ) -> None:
        batch = len(z0)
        self.stop, self.keep, self.reports_best = stop, keep, reports_best
        self.norm = stop.norm or rms
        self.reported = Iterate(z0, z0, torch.full((batch,), torch.inf, device=z0.device))
        self.status = torch.full((batch,), int(Status.MAX_EVALS), device=z0.device)
        self.evals = torch.zeros(batch, dtype=torch.int64, device=z0.device)
        self.active = torch.ones(batch, dtype=torch.bool, device=z0.device)
        self.count = batch  # number of active samples
        self.trace: list[Tensor] = []
        self.kept: dict[int, Iterate] = {}
        self.deadline = time.monotonic() + stop.max_seconds if deadline is None else deadline

    def add(self, z: Tensor, fz: Tensor) -> Evaluation:
        """Record one evaluation of all samples; frozen samples keep what they had."""
        if fz.shape != z.shape or fz.dtype != z.dtype:
            raise ValueError(
                f"f must return the shape and dtype it was given: expected {tuple(z.shape)} {z.dtype}, "
                f"got {tuple(fz.shape)} {fz.dtype}."
            )
        with torch.no_grad():
            residual = self.norm(fz - z).float()
            good = self.active & finite(fz) & (residual < torch.inf)
            tolerance = self.stop.atol
            if self.stop.rtol:
                tolerance = tolerance + self.stop.rtol * self.norm(fz).float()
            done = good & (residual <= tolerance)
            if not (self.stop.atol or self.stop.rtol):  # the norm may measure only a part of the state
                done = done & (fz == z).flatten(1).all(1)
            # With rtol the tolerance changes: a state that meets it is reported even if an earlier one came closer.
            report = good & (done | (residual < self.reported.residual)) if self.reports_best else good
            active = good & ~done
        # Read both in one transfer: each read stalls the GPU.
        reported, count = (sum(flags) for flags in torch.stack([report, active]).tolist())
        self._report(z, fz, residual, report, reported)
        everything = self.count == len(z)
        self.trace.append(residual if everything else torch.where(self.active, residual, torch.nan))
        self.evals = self.evals + self.active
        if count < self.count:
            self.status = torch.where(done, int(Status.CONVERGED), self.status)
            self.status = torch.where(self.active & ~good, int(Status.NON_FINITE), self.status)
        self.active, self.count = active, count
        number = len(self.trace)
        if number in self.keep:
            self.kept[number] = self.reported
        return Evaluation(number, z, fz, residual, self.active)

    def _report(self, z: Tensor, fz: Tensor, residual: Tensor, report: Tensor, count: int) -> None:
        old = self.reported
        # The first evaluation has no earlier f(z) to fall back on: a sample that fails there reports what f returned.
        old_fz = old.fz if self.trace else fz
        self.reported = Iterate(
            select(report, count, z, old.z),
            select(report, count, fz, old_fz),
            select(report, count, residual, old.residual),
        )

    def ended(self, interrupted: object = None) -> bool:
        """Whether this evaluation was the last: no sample is active, a budget is spent, or ``interrupted`` is true."""
        if len(self.trace) == self.stop.max_evals or self.count == 0:
            return True
        if not _asks_to_end(interrupted) and time.monotonic() < self.deadline:
            return False
        self.status = torch.where(self.active, int(Status.INTERRUPTED), self.status)
        return True

    def result(self) -> SolverResult:
        """Return the result; an iterate of ``keep`` beyond the last evaluation is the final iterate."""
        kept = {k: self.kept.get(k, self.reported) for k in self.keep}
        last = self.reported
        return SolverResult(
            last.z, last.fz, last.residual, self.status, self.evals, torch.stack(self.trace), kept, self.stop
        )


def check_rule(rule: object) -> None:
    """Raise unless ``rule`` is a solver.

    Raises:
        TypeError: it is none.
    """
    if isinstance(rule, type) or not (hasattr(rule, "step") or hasattr(rule, "solve")):
        raise TypeError(f"rule expects a solver such as Picard() or Anderson(history=5), got {rule!r}.")


def check_stop(stop: object, name: str = "stop") -> None:
    """Raise unless ``stop`` is a :class:`Stop`; ``name`` is what the caller calls it.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(stop, Stop):
        raise TypeError(f"{name} expects a Stop(max_evals=..., atol=...), got {stop!r}.")


def solve(
    f: FixedPointMap,
    z0: Tensor,
    rule: Rule,
    stop: Stop,
    *,
    keep: Iterable[int] = (),
    on_eval: OnEval | None = None,
) -> SolverResult:
    """Solve ``f(z) = z`` for each sample, from ``z0``.

    Samples are independent: one that has converged, or whose f is not finite, is frozen while the others go
    on. The solve runs in the caller's gradient mode: use ``torch.no_grad()`` unless it is to be unrolled.

    Args:
        f: the map, (B, ...) -> (B, ...), each row a function of the same row alone. If it has a method
            ``subset(rows)`` (:class:`SubsetMap`) and no graph is recorded, frozen samples are not evaluated.
        z0: start, (B, ...), floating point.
        rule: Picard, Anderson, Broyden, or a solver from outside (:func:`deqflow.solvers.scipy_solver`).
        stop: budget and tolerance.
        keep: numbers of evaluations (1 .. max_evals) whose result is wanted as well.
        on_eval: called after each evaluation with an :class:`Evaluation`; if it returns a true value (a bool, or a
            tensor or NumPy array of one), the solve ends there.

    Raises:
        ValueError: the start, the kept numbers, or the shape or dtype of f(z) are not as described.
        TypeError: ``rule`` is not a solver, ``stop`` is not a :class:`Stop`, or ``on_eval`` is not a function or gives
            several values.
        RuntimeError: it is called under ``torch.func.vmap``.
    """
    check_stop(stop)
    keep = tuple(keep)
    if active_transform() == "Vmap":
        raise RuntimeError(
            "solve does not support torch.func.vmap, because it reads residuals to know when to stop: give the samples "
            "a batch dimension, (B, N, ...), instead."
        )
    if z0.dim() < 2 or len(z0) == 0 or not z0.is_floating_point():
        shape = tuple(z0.shape)
        raise ValueError(f"solve expects a floating-point start of shape (B, N, ...), got {z0.dtype} {shape}.")
    if any(k not in range(1, stop.max_evals + 1) for k in keep):
        raise ValueError(f"keep expects evaluation numbers from 1 to max_evals={stop.max_evals}, got {keep}.")
    check_rule(rule)
    if on_eval is not None and not callable(on_eval):
        raise TypeError(f"on_eval expects a function of an Evaluation, got {on_eval!r}.")
    if isinstance(rule, OutsideSolver):
        return rule.solve(f, z0, stop, keep, on_eval)
    record = Record(z0, stop, keep, rule.reports_best)
    z, memory = z0, rule.init(z0)
    evaluate = ActiveRows(f)
    while True:
        fz = evaluate(z, record.active, record.count, record.reported.fz)
        evaluation = record.add(z, fz)
        if record.ended(on_eval(evaluation) if on_eval is not None else None):
            return record.result()
        # A frozen sample's NaN must not enter the memory: backward would multiply it by zero, which is NaN again.
        proposal, memory = rule.step(z, select(record.active, record.count, fz, z), memory)
        z = select(record.active, record.count, proposal, record.reported.z)

"""The implicit layer, and the states of a solve that training supervises (paper section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deqflow.equilibrium.modes import GradientMode, States, run_attached
from deqflow.solvers import (
    FixedPointMap,
    OnEval,
    Rule,
    SolverResult,
    Stop,
    solve,
)
from deqflow.solvers.loop import check_rule, check_stop


@dataclass(frozen=True)
class Correction:
    """A state to supervise: the evaluation after which it is taken, and how it is differentiated.

    Attributes:
        at: number of the evaluation, from 1.
        gradient: Implicit, Phantom or Unrolled; the layer's own if not given.
    """

    at: int
    gradient: GradientMode | None = None

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 1:
            raise ValueError(f"A correction expects the number of an evaluation, from 1, got {self.at!r}.")
        if self.gradient is not None:
            _check_gradient(self.gradient)


class Equilibrium(nn.Module):
    """An implicit layer: the fixed point of f, by any rule, with any gradient (paper section 3).

    In training, several states of the solve are returned for supervision (sparse fixed-point correction, paper
    section 3.3): either ``corrections`` of them, evenly placed over the budget, or those that are chosen. The last
    is always the solution. A solve that stops early returns the same number of states: those after its end are the
    solution. In evaluation mode there is one state.

    Args:
        rule: solver of the forward fixed point.
        stop: budget and tolerance in training.
        gradient: Implicit, Phantom or Unrolled.
        corrections: how many states to return in training; None means every evaluation (recurrent training). Or
            the chosen ones: numbers of evaluations in ascending order, or a :class:`Correction` for one that has a
            gradient of its own. The solution, at the end of the budget, is appended if it is not among them.
        eval_stop: budget and tolerance in evaluation; as in training if not given.
        corrections_from: share of the evaluations before evenly placed corrections begin.

    Raises:
        ValueError: ``corrections`` is less than 1, or more than the evaluations; or the chosen ones are none, not in
            order, or beyond the budget.
        TypeError: the rule, the gradient or a stop is of another type.
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
        check_rule(rule)
        _check_gradient(gradient)
        check_stop(stop)
        check_stop(eval_stop or stop, "eval_stop")
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
        """The evaluations after which states are taken; the last is at ``max_evals``."""
        return tuple(correction.at for correction in self.plan(max_evals))

    def plan(self, max_evals: int) -> tuple[Correction, ...]:
        """The corrections of a solve with this budget; the last is at ``max_evals``.

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
        return run_attached(f, z0, rule, stop, modes)


def _check_gradient(gradient: object) -> None:
    if isinstance(gradient, type) or not hasattr(gradient, "run"):
        raise TypeError(f"gradient expects a mode such as Phantom(steps=3) or Implicit(), got {gradient!r}.")


def _in_order(chosen: Sequence[int | Correction]) -> tuple[Correction, ...]:
    """The chosen corrections, each as a :class:`Correction`.

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

"""To follow a solve from outside: what it would report, when it is to stop, what the step rule holds."""

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqflow.solvers import Evaluation, StepRule


class StoppedError(Exception):
    """Leaves the solver's loop."""


class Watch:
    """Follows the solve of one sample, as its ``on_eval``.

    Args:
        reports_best: whether the solver reports its best state instead of its newest.
        stop: once set, the solve is left by :class:`StoppedError`, unless it has ended by itself.
        on_eval: told the number and the residual of each evaluation.

    Attributes:
        trace: residual after each evaluation.
        best: f(z) of the state that would be reported.
    """

    def __init__(self, reports_best: bool, stop: threading.Event, on_eval: Callable[[int, float], None] | None) -> None:
        self.trace: list[float] = []
        self.best = torch.empty(0)
        self._newest = not reports_best
        self._least = torch.inf
        self._stop, self._on_eval = stop, on_eval

    def __call__(self, evaluation: Evaluation) -> None:
        """Take note of an evaluation."""
        residual = float(evaluation.residual[0])
        self.trace.append(residual)
        better = self._newest or residual < self._least
        if len(self.trace) == 1 or (better and math.isfinite(residual)):
            self.best, self._least = evaluation.fz, residual
        if self._on_eval is not None:
            self._on_eval(len(self.trace), residual)
        if self._stop.is_set() and bool(evaluation.active.any()):
            raise StoppedError


class Weighed:
    """A step rule on a scale: the most that is held between two evaluations, the states z and f(z) and the memory."""

    def __init__(self, rule: StepRule) -> None:
        self.rule, self.most = rule, 0

    @property
    def reports_best(self) -> bool:
        """The rule's own."""
        return self.rule.reports_best

    def init(self, z0: Tensor) -> Any:
        """The rule's own memory."""
        self.most = 2 * z0.nbytes
        return self.rule.init(z0)

    def step(self, z: Tensor, fz: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The rule's own step."""
        proposal, memory = self.rule.step(z, fz, memory)
        storages = [tensor.untyped_storage() for tensor in (z, fz, *(memory or ()))]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.most = max(self.most, sum(held.values()))
        return proposal, memory

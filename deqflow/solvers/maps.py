"""Maps to solve, and the evaluation of active samples alone: frozen ones cost no time, if f supports that."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

FixedPointMap = Callable[[Tensor], Tensor]
FROZEN_SHARE = 0.25  # once so many of f's samples are frozen, they are taken out of f, which costs a little too


def active_transform() -> str:
    """The innermost ``torch.func`` transform that runs now, such as "Vmap" or "Grad"; empty if there is none."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    interpreter = functorch.peek_interpreter_stack()
    return "" if interpreter is None else interpreter.key().name


@runtime_checkable
class SubsetMap(Protocol):
    """A map that can be restricted to some of the samples, such as :class:`deqflow.model.flow_map.FlowMap`."""

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), (B, ...) -> (B, ...)."""
        ...

    def subset(self, rows: Tensor) -> "SubsetMap":
        """The map of the samples ``rows``, (b,) integers: (b, ...) -> (b, ...)."""
        ...


class ActiveRows:
    """f on whole batches: once enough samples are frozen, only the active ones are evaluated.

    Args:
        f: the map. Without ``subset``, or where a graph is recorded, it is called on the whole batch.
    """

    def __init__(self, f: FixedPointMap) -> None:
        self.f = self.part = f
        self.rows: Tensor | None = None  # rows of the batch that ``part`` evaluates; None means all

    def __call__(self, z: Tensor, active: Tensor, count: int, frozen: Tensor) -> Tensor:
        """Return f(z), (B, ...), for the ``count`` active samples, (B,) booleans; others may get rows of ``frozen``."""
        if not torch.is_grad_enabled() and isinstance(self.part, SubsetMap):
            self._shrink(self.part, active, count)
        if self.rows is None:
            return self.part(z)
        return frozen.index_copy(0, self.rows, self.part(z[self.rows]))

    def _shrink(self, part: SubsetMap, active: Tensor, count: int) -> None:
        at_hand = len(active if self.rows is None else self.rows)
        if 0 < count <= (1 - FROZEN_SHARE) * at_hand:
            going_on = (active if self.rows is None else active[self.rows]).nonzero().flatten()
            self.part = part.subset(going_on)
            self.rows = going_on if self.rows is None else self.rows[going_on]

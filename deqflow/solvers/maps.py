"""Maps to solve, and how samples that are done stop costing time: f for those that go on, where f offers that."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

FixedPointMap = Callable[[Tensor], Tensor]
FROZEN_SHARE = 0.25  # of the samples at hand; taking them out of f costs a little too


def active_transform() -> str:
    """The innermost ``torch.func`` transform that runs now, such as "Vmap" or "Grad"; empty if there is none."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    interpreter = functorch.peek_interpreter_stack()
    return "" if interpreter is None else interpreter.key().name


@runtime_checkable
class SubsetMap(Protocol):
    """A map that offers itself for some of the samples alone, such as :class:`deqflow.model.flow_map.FlowMap`."""

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), (B, ...) -> (B, ...)."""
        ...

    def subset(self, rows: Tensor) -> "SubsetMap":
        """The map of the samples ``rows``, (b,) integers: (b, ...) -> (b, ...)."""
        ...


class ActiveRows:
    """f on whole batches, evaluated for the samples that are still active once enough of them are not.

    Args:
        f: the map. Without ``subset``, or where a graph is recorded, it is called on the whole batch.
    """

    def __init__(self, f: FixedPointMap) -> None:
        self.f = self.part = f
        self.rows: Tensor | None = None  # of the batch, that ``part`` is of; None: all

    def __call__(self, z: Tensor, active: Tensor, count: int, frozen: Tensor) -> Tensor:
        """Return f(z) for the ``count`` samples that are active, (B,) booleans; others may be ``frozen``, (B, ...)."""
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

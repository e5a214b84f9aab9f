"""What autograd keeps for backward, in bytes."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor


class _Held:
    """A saved tensor; lives as long as the graph that saved it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class KeptForBackward:
    """What autograd keeps for backward of the operations inside a ``with`` block.

    >>> with KeptForBackward(apart_from=model.parameters()) as kept:
    ...     loss = model(x).sum()
    >>> kept.bytes

    Each storage counts once, however many operations keep a view of it, and only while a graph holds it. Tensors
    that are attributes of a custom function (``Implicit`` holds two states) do not pass here and do not count.

    Args:
        apart_from: tensors whose storages do not count, such as parameters, which are there anyway.
    """

    def __init__(self, *, apart_from: Iterable[Tensor] = ()) -> None:
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._apart_from = list(apart_from)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> "KeptForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor)
        self._held.add(held)
        return held

    @property
    def bytes(self) -> int:
        """Bytes that graphs made in the block still hold."""
        not_ours = {tensor.untyped_storage().data_ptr() for tensor in self._apart_from}
        storages = [held.tensor.untyped_storage() for held in self._held]
        return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in not_ours}.values())

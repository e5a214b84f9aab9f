"""Bytes that autograd keeps for backward, and the greatest number of bytes that tensors take."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Held:
    """A saved tensor. It exists as long as the graph that saved it."""

    __slots__ = ("__weakref__", "label", "number", "tensor")

    def __init__(self, tensor: Tensor, number: int, label: str) -> None:
        self.tensor, self.number, self.label = tensor, number, label


class KeptForBackward:
    """The tensors that autograd keeps for backward of the operations inside a ``with`` block.

    >>> with KeptForBackward(apart_from=model.parameters()) as kept:
    ...     loss = model(x).sum()
    >>> kept.bytes

    Each storage counts once, even if several operations keep views of it, and only while a graph holds it. Tensors
    that are attributes of a custom function (``Implicit`` has two states) are not seen and do not count.

    Args:
        apart_from: tensors whose storages do not count, such as parameters, which exist in any case.
        label: called for each tensor that is kept; returns its label for :attr:`by_label`.
    """

    def __init__(self, *, apart_from: Iterable[Tensor] = (), label: Callable[[], str] = str) -> None:
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._apart_from, self._label, self._count = list(apart_from), label, 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> "KeptForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor, self._count, self._label())
        self._count += 1
        self._held.add(held)
        return held

    @property
    def bytes(self) -> int:
        """Bytes that graphs made in the block hold now."""
        return sum(self.by_label.values())

    @property
    def by_label(self) -> dict[str, int]:
        """The same by label. A storage that is kept several times counts for its first label."""
        seen = {tensor.untyped_storage().data_ptr() for tensor in self._apart_from}
        totals: dict[str, int] = {}
        for held in sorted(self._held, key=lambda held: held.number):
            storage = held.tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                totals[held.label] = totals.get(held.label, 0) + storage.nbytes()
        return totals


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that operations inside a ``with`` block make: now, and the greatest number so far.

    Tensors from outside the block do not count, nor an operation's temporary memory, nor the reserve of PyTorch's
    allocator. Works on any device and includes backward passes; slows operations down.

    Attributes:
        now: bytes of the tensors that are alive.
        peak: the greatest number of bytes since the block was entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # a new storage, not a view of an argument's
                self._see(storage)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]

"""Reversible gradients: exact, with memory that does not grow with depth (McCallum, Arora and Foster 2025)."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from deqflow.equilibrium.modes import States
from deqflow.solvers import (
    FixedPointMap,
    Picard,
    Rule,
    SolverResult,
    Stop,
    rms,
)
from deqflow.solvers.loop import Record


@dataclass(frozen=True, kw_only=True)
class Reversible:
    """The exact gradient of the iteration as it ran; its memory does not grow with the number of evaluations.

    Two coupled states take turns, from y = z = z0 (McCallum, Arora and Foster 2025, Reversible Deep Equilibrium
    Models): y <- (1 - b) y + b f(z), then z <- (1 - b) z + b f(y), one evaluation each. Each step can be undone, so
    that the backward pass rebuilds the path from its end instead of remembering it. No contraction is needed. The
    state after an evaluation is the one of the two that it changed. In evaluation mode, the layer's own rule solves.

    What f depends on besides the state (parameters, features) is found by watching one evaluation. The two states are
    float64, whatever f computes in: undoing a step multiplies its rounding error by 1 / (1 - b), and by more where f
    expands. The rebuilt path must end at the start; if it does not, a warning says that the gradient is not exact.

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
        """The most evaluations allowed: beyond them a path is always lost. A path lost before gives a warning."""
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


REBUILDING_GROWTH = 1e17  # rounding errors grow by 1 / (1 - b) an evaluation; so large, they leave nothing of a path
REBUILT_TO = 1e-3  # how far off the rebuilt start may be, relative to the path's length


class _ReversibleRun(torch.autograd.Function):
    """The coupled iteration as one operation: a function of its start and of the other tensors that f depends on."""

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
            # The next evaluation is made at the state that was changed: the two swap names.
            y, z = z, torch.lerp(y, fx.double(), b)
            if k in keep:
                states[k] = z.to(z0.dtype)
        ctx.f, ctx.b, ctx.evals, ctx.keep, ctx.dtype = f, b, stop.max_evals, keep, z0.dtype
        ctx.given = given  # the same objects that f holds; torch's saved-tensor hooks may unpack other objects
        ctx.save_for_backward(y, z, z0, *given)
        return tuple(states[k] for k in keep)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Reversible gives first derivatives only, got create_graph=True: use Unrolled for more.")
        y, z, z0, *_ = ctx.saved_tensors  # raises where one of them was changed in place
        given = ctx.given
        # A start at the fixed point has a path of no length: then the state's size says what is small.
        length = torch.maximum(rms(z - z0), 1e-3 * rms(z0.double()))
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
    """Warn if the rebuilt start differs from the real one by ``off``, (B,), relative to the path's length."""
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
    """The tensors requiring gradients that f(z) depends on besides the state, found by watching one evaluation."""
    with torch.enable_grad(), _Watch(x := z0.detach().requires_grad_()) as watch:
        f(x)
    return list(watch.found.values())


class _Watch(TorchFunctionMode):
    """Collects the tensors that require gradients and were not made by the operations watched."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {id(x): x}  # keeps these tensors alive, so that no id is given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.requires_grad and id(tensor) not in self.made:
                self.found[id(tensor)] = tensor
        self.made |= {id(tensor): tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        for number in self.found.keys() & self.made.keys():  # tensors changed in place or passed through
            del self.made[number]
        return result


class _StandIns(TorchFunctionMode):
    """Gives operations stand-ins for some tensors, so that the graph ends at the stand-ins."""

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

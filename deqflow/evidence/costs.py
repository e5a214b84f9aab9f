"""Time and memory of training steps. On a GPU, time comes from its own events and memory from its allocator."""

import dataclasses
import inspect
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqflow.evidence.diagnostics import KeptForBackward, LiveTensors
from deqflow.model import attraction, correlation, encoders, flow_map, updates, upsampling
from deqflow.model.estimator import FlowEstimator

MIB = 2**20


def seconds_of(function: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Seconds that one call takes; on a GPU by its own events."""
    if torch.device(device).type != "cuda":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize(device)
    events[0].record()
    function()
    events[1].record()
    torch.cuda.synchronize(device)
    return events[0].elapsed_time(events[1]) / 1000


@dataclass(frozen=True)
class StepCost:
    """The cost of one training step.

    Attributes:
        kept: bytes that the graph keeps alive at the end of forward: what autograd saved, and what a recomputation
            needs in addition.
        peak: greatest number of bytes of all tensors made since the step began, through backward. On a GPU, the
            greatest number of bytes that its allocator gave out, which includes the model.
        forward, backward: seconds of a run in which bytes are not counted.
    """

    kept: int
    peak: int
    forward: float
    backward: float


def step_cost(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> StepCost:
    """Measure forward and backward of a training step whose loss is the mean absolute flow. There is no optimiser.

    Args:
        estimator: in training mode; its gradients are set to None.
        image1, image2: (B, 3, H, W) on the estimator's device.
    """
    device = image1.device
    estimator.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with LiveTensors() as live:
        loss = _loss(estimator, image1, image2)
        kept = live.now
        loss.backward()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else live.peak
    estimator.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    forward = seconds_of(lambda: losses.append(_loss(estimator, image1, image2)), device)
    backward = seconds_of(losses[0].backward, device)
    estimator.zero_grad(set_to_none=True)
    return StepCost(kept, peak, forward, backward)


def costs_over_depth(
    estimator: FlowEstimator, image1: Tensor, image2: Tensor, depths: Sequence[int], *, limit: float = math.inf
) -> dict[int, StepCost]:
    """Measure training steps of several depths, as far as they fit into memory.

    Args:
        estimator: in training mode.
        image1, image2: (B, 3, H, W) on the estimator's device.
        depths: numbers of evaluations, ascending.
        limit: greatest number of bytes for the peak. A line through the two depths before predicts the peak of the
            next one; the first two depths are always run.

    Returns:
        The cost of a step, by depth.
    """
    before = estimator.equilibrium.stop
    costs: dict[int, StepCost] = {}
    try:
        for depth in depths:
            if len(costs) > 1 and at_depth({k: cost.peak for k, cost in costs.items()}, depth) > limit:
                break
            estimator.equilibrium.stop = dataclasses.replace(before, max_evals=depth)
            costs[depth] = step_cost(estimator, image1, image2)
    finally:
        estimator.equilibrium.stop = before
    return costs


def at_depth(values: Mapping[int, float], depth: int) -> float:
    """The value at a depth: the measured one, or the one on a line through the two greatest depths.

    Raises:
        ValueError: the depth was not measured, and fewer than two depths were.
    """
    if depth in values:
        return values[depth]
    if len(values) < 2:
        raise ValueError(
            f"at_depth expects {depth} among the depths, or two for a line, got {list(values)}: measure more."
        )
    (near, low), (far, high) = sorted(values.items())[-2:]
    return high + (high - low) * (depth - far) / (far - near)


PARTS = {  # by module or package: the part of the model that its code belongs to
    encoders.__name__: "encoders",
    correlation.__name__: "correlation",
    updates.__name__: "update",
    attraction.__name__: "update",
    flow_map.__name__: "update",
    upsampling.__name__: "upsampling",
}


def kept_by_part(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> dict[str, int]:
    """Bytes that autograd keeps at the end of forward, by part of the model. Each byte counts for its first keeper.

    Args:
        estimator: in training mode.
        image1, image2: (B, 3, H, W) on the estimator's device.

    Returns:
        The bytes of "encoders", "correlation", "update", "upsampling" and "rest": images, loss, code between the
        parts, and what a recomputation needs beside its inputs. Their sum is ``kept`` of :class:`StepCost`.
    """
    with LiveTensors() as live, KeptForBackward(apart_from=estimator.parameters(), label=_part) as kept:
        loss = _loss(estimator, image1, image2)
    parts = {part: kept.by_label.get(part, 0) for part in dict.fromkeys(PARTS.values())}
    rest = live.now - sum(parts.values())
    del loss  # until here it held the graph
    return parts | {"rest": rest}


def _part() -> str:
    """The part whose code is running: that of the innermost function on the stack that belongs to one."""
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        for module, part in PARTS.items():
            if f"{frame.f_globals.get('__name__')}.".startswith(f"{module}."):
                return part
    return "rest"


def _loss(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> Tensor:
    flows = estimator(image1, image2).flows
    return torch.stack([flow.abs().mean() for flow in flows]).mean()

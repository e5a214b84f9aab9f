"""Time, memory and work of models, measured side by side; on a GPU with its own clock and its own account.

Machines are shared and noisy. Quote ratios of what was timed in one call of :func:`alternate`, not lone times.
"""

import dataclasses
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deqflow.evidence.diagnostics import KeptForBackward, LiveTensors
from deqflow.model.estimator import FlowEstimator

MIB = 2**20


@dataclass(frozen=True)
class Timings:
    """Seconds of several functions, timed in turns: function by name -> one time a turn."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Median seconds of a function."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Median over the turns of how many times faster ``fast`` was than ``slow`` in the same turn."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(one / other for one, other in pairs)


def alternate(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 5, device: torch.device | str = "cpu"
) -> Timings:
    """Time functions in turns, after one turn that does not count.

    Args:
        functions: what to time, by name.
        repeats: turns.
        device: where they run; a GPU is timed by its own events.

    Raises:
        ValueError: there is no function, or no turn.
    """
    if not functions or repeats < 1:
        raise ValueError(f"alternate expects functions and at least 1 repeat, got {len(functions)} and {repeats}.")
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return Timings({name: tuple(values) for name, values in seconds.items()})


def seconds_of(function: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Seconds that one call takes, on a GPU by its own events."""
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
    """What one training step costs.

    Attributes:
        kept: bytes that the graph keeps alive at the end of forward: what autograd saved, and what recomputing
            needs besides.
        peak: bytes of all tensors made since the step began, at most, through backward; on a GPU what its
            allocator gave out at most, the model included.
        forward, backward: seconds, of a run without the counting of bytes.
    """

    kept: int
    peak: int
    forward: float
    backward: float


def step_cost(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> StepCost:
    """Measure a training step, mean absolute flow as its loss: forward and backward, no optimiser.

    Args:
        estimator: in training mode; its gradients are lost.
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
    """Measure training steps of several depths, and leave out those that would not fit.

    Args:
        estimator: in training mode.
        image1, image2: (B, 3, H, W) on the estimator's device.
        depths: evaluations, ascending.
        limit: bytes that the peak may take, as told by a line through the two depths before; these are always run.

    Returns:
        What a step costs, by depth.
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
    """The value at a depth: the one measured, or that of a line through the two deepest.

    Raises:
        ValueError: there is neither.
    """
    if depth in values:
        return values[depth]
    if len(values) < 2:
        raise ValueError(
            f"at_depth expects {depth} among the depths, or two for a line, got {list(values)}: measure more."
        )
    (near, low), (far, high) = sorted(values.items())[-2:]
    return high + (high - low) * (depth - far) / (far - near)


PARTS = {  # a module of the package, or a function -> the part of the model that its code belongs to
    "deqflow.model.encoders": "encoders",
    "deqflow.model.correlation": "correlation",
    "deqflow.model.updates": "update",
    "deqflow.model.flow_map": "update",
    "deqflow.model.estimator.FlowEstimator.upsample": "upsampling",
}


def kept_by_part(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> dict[str, int]:
    """Bytes that autograd keeps at the end of forward: by the part of the model that keeps them first.

    Args:
        estimator: in training mode.
        image1, image2: (B, 3, H, W) on the estimator's device.

    Returns:
        Of "encoders", "correlation", "update", "upsampling" and "rest" (images, loss, what lies between the parts,
        and what recomputing needs besides its inputs); their sum is what :class:`StepCost` calls kept.
    """
    with LiveTensors() as live, KeptForBackward(apart_from=estimator.parameters(), label=_part) as kept:
        loss = _loss(estimator, image1, image2)
    parts = {part: kept.by_label.get(part, 0) for part in dict.fromkeys(PARTS.values())}
    rest = live.now - sum(parts.values())
    del loss  # until here it held the graph
    return parts | {"rest": rest}


def _part() -> str:
    """The part whose code is running: of the innermost frame that belongs to one."""
    frame = sys._getframe(1)
    while frame is not None:
        name = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"
        for place, part in PARTS.items():
            if name == place or name.startswith(f"{place}."):
                return part
        frame = frame.f_back
    return "rest"


def _loss(estimator: FlowEstimator, image1: Tensor, image2: Tensor) -> Tensor:
    flows = estimator(image1, image2).flows
    return torch.stack([flow.abs().mean() for flow in flows]).mean()


def work(function: Callable[[], Any]) -> float:
    """Floating-point operations of the convolutions and matrix products in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def matrix_peak(dtype: torch.dtype, *, device: torch.device | str = "cpu", side: int = 2048) -> float:
    """Operations a second of a square matrix product, the best of five: what the machine can do at most."""
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
    timings = alternate({"product": lambda: left @ right}, device=device)
    return 2 * side**3 / min(timings.seconds["product"])


def peak_of_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Call a function in a process of its own; return the most memory that it had, in bytes, and the result.

    Args:
        function: of a module, so that the new process finds it.
        *arguments: and result: what pickle can carry.

    Raises:
        RuntimeError: the process died, as when memory is used up.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_report, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        peak, result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process ended with exit status {process.exitcode}: is there enough memory?") from None
    process.join()
    return peak, result


def _report(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    pipe.send((process_peak(), result))


def process_peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands the other figure on from the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fitted_exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of log(value) over log(size) by least squares: 1 is proportional, 2 quadratic."""
    x, y = torch.tensor(sizes).log(), torch.tensor(values).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())

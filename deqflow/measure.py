"""Time, memory and work of models, measured side by side; on a GPU with its own clock and its own account.

Machines are shared and noisy. Quote ratios of what was timed in one call of :func:`alternate`, not lone times.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deqflow.diagnostics import KeptForBackward, LiveTensors
from deqflow.estimator import FlowEstimator

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
        kept: bytes that autograd keeps at the end of forward.
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
        with KeptForBackward(apart_from=estimator.parameters()) as kept:
            loss = _loss(estimator, image1, image2)
        bytes_kept = kept.bytes
        loss.backward()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else live.peak
    estimator.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    forward = seconds_of(lambda: losses.append(_loss(estimator, image1, image2)), device)
    backward = seconds_of(losses[0].backward, device)
    estimator.zero_grad(set_to_none=True)
    return StepCost(bytes_kept, peak, forward, backward)


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

"""Times of functions in turns, floating-point operations, and the memory of a process.

Other work on a machine changes the times. Quote ratios of functions timed in one call of :func:`alternate`, not the
time of one function.
"""

import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from deqflow.evidence.costs import seconds_of


@dataclass(frozen=True)
class Timings:
    """Seconds of several functions, timed in turns: by the name of the function, one time a turn."""

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
    """Time functions in turns. One turn before them is not timed.

    Args:
        functions: the functions to time, by name.
        repeats: number of turns.
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


def work(function: Callable[[], Any]) -> float:
    """Floating-point operations of the convolutions and matrix products in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def matrix_peak(dtype: torch.dtype, *, device: torch.device | str = "cpu", side: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product, the fastest of five: the machine's peak."""
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
    timings = alternate({"product": lambda: left @ right}, device=device)
    return 2 * side**3 / min(timings.seconds["product"])


def peak_of_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Call a function in a new process; return the process's greatest memory in bytes, and the function's result.

    Args:
        function: defined in a module, so that the new process finds it.
        *arguments: of the function. Arguments and result are pickled.

    Raises:
        RuntimeError: the process died, for instance because memory was used up.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_result, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        peak, result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process ended with exit status {process.exitcode}: is there enough memory?") from None
    process.join()
    return peak, result


def _send_result(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    pipe.send((process_peak(), result))


def process_peak() -> int:
    """The greatest memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss includes that of the process which started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size) by least squares: 1 is proportional, 2 quadratic."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])

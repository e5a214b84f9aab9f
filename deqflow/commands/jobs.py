"""Many jobs, such as a folder of films, shared out among the processes of ``accelerate launch``."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqflow.training import Processes

# The errors that are explained by their own words; others are named with their kind.
PLAIN = (ValueError, OSError, FloatingPointError)
PATIENCE = timedelta(days=30)  # of a process that has finished its share


def join_processes(device: str) -> tuple["Processes", str]:
    """The processes that share the jobs, usually this one alone, and this one's device.

    Raises:
        ValueError: a device is named under ``accelerate launch``, which gives each process its own.
    """
    from deqflow.training import Processes

    processes = Processes(patience=PATIENCE)
    return (processes, device) if processes.count == 1 else (processes, str(Processes(device).device))


@dataclass(frozen=True)
class Job:
    """A piece of work that depends on no other.

    Attributes:
        name: in messages.
        run: does it. Its result, if it has one, can be pickled.
        is_done: whether an earlier run has done it, so that it is skipped.
    """

    name: str
    run: Callable[[], Any]
    is_done: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Outcome:
    """What became of jobs, the same in all processes.

    Attributes:
        results: of the jobs that were run, by their index.
        skipped: how many were done before.
        failed: why jobs failed, by their names.
    """

    results: dict[int, Any]
    skipped: int
    failed: dict[str, str]


def share_out(
    jobs: Sequence[Job], processes: "Processes", on_job: Callable[[int, int], object] = lambda done, total: None
) -> Outcome:
    """Run the jobs that are not done, each in one of the processes (collective).

    A job that fails does not keep the others from being run. Ctrl-C ends all.

    Args:
        jobs: the same in all processes.
        processes: that share them; each takes every n-th one.
        on_job: called in the first process with the number of its own jobs that are finished, and of all its jobs.
    """
    # One process looks: others may have begun to work when a slow one comes here.
    left = processes.from_first([i for i, job in enumerate(jobs) if not job.is_done()] if processes.is_first else [])
    mine = left[processes.index :: processes.count]
    results: dict[int, Any] = {}
    failed: dict[int, str] = {}
    for number, i in enumerate(mine, 1):
        try:
            results[i] = jobs[i].run()
        except Exception as error:
            failed[i] = str(error) if isinstance(error, PLAIN) else f"{type(error).__name__}: {error}"
        if processes.is_first:
            on_job(number, len(mine))
    gathered = processes.gather((results, failed))
    results = {i: result for part, _ in gathered for i, result in part.items()}
    reasons = {i: reason for _, part in gathered for i, reason in part.items()}
    return Outcome(results, len(jobs) - len(left), {jobs[i].name: reasons[i] for i in sorted(reasons)})


def name_failures(failed: dict[str, str], total: int) -> int:
    """Say on the error output what failed and why.

    Returns:
        The exit status: 1 if anything failed.
    """
    if failed:
        print(f"deqflow: {len(failed)} of {total} failed, the others are done:", file=sys.stderr)
        for name, reason in failed.items():
            print(f"  {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0

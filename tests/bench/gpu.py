"""What wants a GPU, in at most eight minutes: ``make bench-gpu``, or ``PYTHONPATH=tests python -m bench.gpu``.

The tests, the parts of the bench that say something there, and notebook 04. A step that takes too long is stopped, and
the next one follows; the exit status is 1 if a step failed.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from deqflow.evidence.results import published

# Command, and seconds that it may take.
STEPS: dict[str, tuple[Sequence[str], float]] = {
    "tests": (["-m", "pytest", "-q", "-rs", "tests/test_gpu.py"], 150),
    "bench": (["-m", "bench", "inference", "video", "training speed", "--out", str(published("bench-gpu"))], 200),
    "notebook 04": (["-m", "deqflow", "report", "--only", "04", "--out", "build/gpu"], 120),
}


def run_steps(steps: Mapping[str, tuple[Sequence[str], float]]) -> int:
    """Run Python with each step's arguments; return 1 if one of them failed or was stopped."""
    failed = 0
    for name, (arguments, limit) in steps.items():
        print(f"== {name}, at most {limit:g} s", flush=True)
        started = time.monotonic()
        try:
            status = subprocess.run([sys.executable, *arguments], timeout=limit, check=False).returncode
            outcome = "passed" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            status, outcome = 1, "stopped, it took too long"
        failed |= int(status != 0)
        print(f"== {name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
    return failed


def main() -> int:
    """Run all steps where there is a GPU."""
    if not torch.cuda.is_available():
        print("bench-gpu expects a GPU, torch finds none here: use make bench.", file=sys.stderr)
        return 1
    return run_steps(STEPS)


if __name__ == "__main__":
    sys.exit(main())

"""The differences between a run's numbers and the published ones, which are committed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.05  # relative; another processor or thread count may change a number by as much
TIMES = ("seconds", "_s", "_ms", "milliseconds")  # name endings of numbers that depend on the machine


@dataclass(frozen=True)
class Difference:
    """A number, its published value, and whether they differ by more than the tolerance."""

    name: str
    value: Any
    published: Any
    beyond: bool


def is_time(name: str) -> bool:
    """Whether a number is a time, by its name. Times differ from machine to machine and from run to run."""
    return name.endswith(TIMES)


def differences(
    numbers: Mapping[str, Any], published: Mapping[str, Any], *, tolerance: float = TOLERANCE
) -> dict[str, Difference]:
    """Compare the numbers of a run with the published ones, by name; times are never beyond the tolerance.

    Args:
        numbers: numbers of the run.
        published: the committed numbers; those that the run does not have are left out.
        tolerance: relative to the published number; words and truth values must be equal.
    """
    return {
        name: Difference(
            name, value, published[name], not is_time(name) and not _close(value, published[name], tolerance)
        )
        for name, value in numbers.items()
        if name in published
    }


def _close(value: Any, published: Any, tolerance: float) -> bool:
    exact = (bool, str)
    if isinstance(value, exact) or isinstance(published, exact):
        return value == published
    return math.isclose(value, published, rel_tol=tolerance, abs_tol=1e-9) or (
        value != value and published != published
    )

"""What a run's numbers differ in from those that are committed as published."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.05  # relative: what another processor or thread count may change
TIMES = ("seconds", "_s", "_ms", "milliseconds")  # endings of names whose numbers are the machine's


@dataclass(frozen=True)
class Difference:
    """A number, what was published for it, and whether they differ beyond the tolerance."""

    name: str
    value: Any
    published: Any
    beyond: bool


def is_time(name: str) -> bool:
    """Whether a number is a time, by its name: it differs from machine to machine and from run to run."""
    return name.endswith(TIMES)


def differences(
    numbers: Mapping[str, Any], published: Mapping[str, Any], *, tolerance: float = TOLERANCE
) -> dict[str, Difference]:
    """Compare the numbers of a run with the published ones, by name; times are never beyond the tolerance.

    Args:
        numbers: of the run.
        published: the numbers committed; those that the run does not have are left out.
        tolerance: relative to the published number; words and truth values must be the same.
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

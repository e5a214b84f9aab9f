"""What a notebook needs of its surroundings: whether to hurry, and where to leave its numbers."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from IPython.core.display import Markdown
from IPython.display import display

FAST = "DEQFLOW_FAST"
PROFILE = "DEQFLOW_PROFILE"
NUMBERS = "application/vnd.deqflow.numbers+json"

T = TypeVar("T")


def is_fast() -> bool:
    """Whether the environment asks for short runs (``DEQFLOW_FAST=1``), as the tests do."""
    return os.environ.get(FAST, "") not in ("", "0")


def profile() -> str:
    """Which values :func:`choose` returns: "fast" in tests; "full" where ``DEQFLOW_PROFILE=full``; else "short"."""
    if is_fast():
        return "fast"
    return "full" if os.environ.get(PROFILE) == "full" else "short"


def choose(short: T, fast: T, full: T | None = None) -> T:
    """Return the value of the :func:`profile`: the default of a parameter.

    Args:
        short: for a look: all notebooks together take minutes.
        fast: for tests: seconds.
        full: for the figures to quote, hours if need be; as ``short`` if not given.
    """
    values = {"fast": fast, "short": short, "full": short if full is None else full}
    return values[profile()]


def record(**numbers: float | int | str | bool) -> None:
    """Show results and leave them in the notebook, from where a report collects them.

    The names should carry the unit: ``epe_px=0.31``.

    Raises:
        TypeError: a value is no number, string or boolean (a tensor has ``.item()``).
    """
    for name, value in numbers.items():
        if not isinstance(value, float | int | str):
            raise TypeError(
                f"record expects numbers, strings or booleans, got {type(value).__name__} for {name}: use .item()."
            )
    lines = "\n".join(f"{name:<32} {as_text(value)}" for name, value in numbers.items())
    display({NUMBERS: numbers, "text/plain": lines}, raw=True)


def as_text(value: float | int | str) -> str:
    """A recorded value as shown: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, float | int | str | bool]]) -> Markdown:
    """Rows as a table to end a cell with; columns in the order of the first row, which each row must have.

    Raises:
        ValueError: there are no rows, or a row has other columns than the first.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(f"table expects rows with the same columns, got {[list(row) for row in rows]}.")
    lines = [[as_text(value) for value in row.values()] for row in rows]
    align = ["---:" if isinstance(value, float | int) else "---" for value in rows[0].values()]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in [list(rows[0]), align, *lines]))

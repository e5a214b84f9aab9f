"""The README's tables, made from the results files that are committed beside it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deqflow.results import load_results, published

Rows = list[list[str]]


def markdown(head: list[str], rows: Rows) -> str:
    """A markdown table; columns of numbers are set to the right."""
    numbers = [all(row[i][:1].isdigit() for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def estimators(results: dict[str, Any]) -> str:
    """Every estimator: its parameters, where published weights come from, and how loading was checked."""
    rows = []
    for row in sorted(results["rows"], key=lambda row: (row["model"].split()[0], row["parameters"])):
        checked = {"names": "names and shapes", "ours": "tests"}.get(row["checked"])
        checked = checked or f"outputs, within {row['largest_difference_px']:.0e} px"
        rows.append([row["name"], row["model"], f"{row['parameters'] / 1e6:.2f} M", row["source"], checked])
    return markdown(["weights", "model", "parameters", "from", "loading checked by"], rows)


def corrections(results: dict[str, Any]) -> str:
    """Error and residual after some evaluations, by the number of corrections: mean and spread over seeds."""
    return _curves(results, "corrections")


def gradients(results: dict[str, Any]) -> str:
    """The same by gradient mode, with the seconds that training took."""
    seconds: dict[str, list[float]] = {}
    for run in results["runs"]:
        seconds.setdefault(run["variant"], []).append(run["seconds"])
    return _curves(results, "gradient", {name: f"{np.mean(values):.0f} s" for name, values in seconds.items()})


def _curves(results: dict[str, Any], what: str, extra: dict[str, str] | None = None) -> str:
    runs = [run for run in results["runs"] if "curve" in run]
    at = [k for k in (12, 96) if k in runs[0]["curve"]["evals"]]
    head = [what, *(["training"] if extra else []), *(f"error at {k}" for k in at), *(f"residual at {k}" for k in at)]
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        row = [name, *([extra[name]] if extra else [])]
        for quantity, digits in (("error_px", 2), ("residual_px", 3)):
            for k in at:
                values = [r["curve"][quantity][r["curve"]["evals"].index(k)] for r in runs if r["variant"] == name]
                row.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f} px")
        rows.append(row)
    return markdown(head, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "estimators": estimators,
    "corrections": corrections,
    "gradients": gradients,
}


def fill(text: str) -> str:
    """Return a markdown text with each table between its two marks made anew.

    Raises:
        ValueError: a mark names no table.
        FileNotFoundError: a table's results file is missing.
    """

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"No table {name!r}: expected one of {', '.join(TABLES)}.")
        return f"<!-- table: {name} -->\n{TABLES[name](load_results(published(name)))}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def update(path: str | Path) -> bool:
    """Fill the tables of a file in; return whether that changed it."""
    path = Path(path)
    old = path.read_text()
    new = fill(old)
    if new != old:
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_text(new)
        unfinished.replace(path)
    return new != old

"""Results files: json with the provenance of its figures. Those in ``reports/published`` are committed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from deqflow.data.writing import write_whole


def published(name: str) -> Path:
    """The path of an experiment's committed results in the checkout."""
    return Path(__file__).parents[2] / "reports" / "published" / f"{name}.json"


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No results at {path}: reports/README.md says which command makes them.")
    return json.loads(path.read_text())


def save_results(results: dict[str, Any], path: str | Path) -> None:
    """Write a results file, whole or not at all."""
    write_whole(path, json.dumps(results, indent=1) + "\n")


def curves(results: dict[str, Any], quantity: str) -> dict[str, np.ndarray]:
    """One quantity of the error curves of all finished runs, by variant: (seeds, evals) each."""
    by_variant: dict[str, list[list[float]]] = {}
    for run in results["runs"]:
        if "curve" in run:
            by_variant.setdefault(run["variant"], []).append(run["curve"][quantity])
    return {variant: np.array(values) for variant, values in by_variant.items()}

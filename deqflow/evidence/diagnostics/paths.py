"""Path independence: whether solves from all starts and by all rules end in the same point."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deqflow.solvers import FixedPointMap, Rule, SolverResult, Stop, rms, solve


@dataclass(frozen=True)
class SolvePath:
    """One solve: the names of its start and rule, its :class:`SolverResult`, and the seconds it took."""

    start: str
    rule: str
    result: SolverResult
    seconds: float


@dataclass(frozen=True)
class PathIndependence:
    """Solves of one problem from several starts by several rules.

    Attributes:
        paths: the solves, start by start.
        distances: (paths, paths), the norm of the difference of two end points f(z), the largest over all samples.
    """

    paths: tuple[SolvePath, ...]
    distances: Tensor

    @property
    def spread(self) -> float:
        """The largest distance between two end points, in the unit of the norm."""
        return float(self.distances.max())

    def rows(self, unit: str) -> list[dict[str, float | int | str | bool]]:
        """A table row for each path: its cost, its residual, and the distance of its end from that of the first."""
        return [
            {
                "start": path.start,
                "rule": path.rule,
                "converged": bool(path.result.converged.all()),
                "evaluations": int(path.result.evals.max()),
                "seconds": path.seconds,
                f"residual ({unit})": float(path.result.residual.max()),
                f"from the first end ({unit})": float(distance),
            }
            for path, distance in zip(self.paths, self.distances[0], strict=True)
        ]


def path_independence(
    f: FixedPointMap, starts: Mapping[str, Tensor], rules: Mapping[str, Rule], stop: Stop
) -> PathIndependence:
    """Solve f(z) = z from each start, (B, ...), by each rule, and compare the end points in ``stop.norm``.

    Raises:
        ValueError: no start or no rule.
    """
    if not starts or not rules:
        raise ValueError(f"path_independence expects starts and rules, got {len(starts)} and {len(rules)} of them.")
    paths = []
    for start, z0 in starts.items():
        for rule in rules:
            started = time.perf_counter()
            with torch.no_grad():
                result = solve(f, z0, rules[rule], stop)
            paths.append(SolvePath(start, rule, result, time.perf_counter() - started))
    ends, norm = [path.result.fz for path in paths], stop.norm or rms
    distances = torch.stack([torch.stack([norm(a - b).max() for b in ends]) for a in ends])
    return PathIndependence(tuple(paths), distances)

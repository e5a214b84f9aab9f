"""Whether a model's fixed point attracts: other starts, disturbances, solvers and the spectral radius at the end.

An equilibrium profits from more evaluations as far as it ends in the same state from any start (Anil et al. 2022).
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqflow.data.synthetic import HELD_OUT_SEED, RICH_SCENES, SyntheticPairs
from deqflow.evidence.diagnostics import spectral_radius
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import save_results
from deqflow.model.estimator import FlowEstimator
from deqflow.model.problem import FlowProblem
from deqflow.model.state import FlowState
from deqflow.solvers import Anderson, Broyden, Picard, Stop, solve
from deqflow.training.starts import coarse_truth, disturbance, draw_starts

FAR = 96  # evaluations to where a solve ends
NOISE = 0.8  # px RMS, of the disturbances of the end
FOUND = 0.01  # px, when a solver has found the fixed point


def attraction_of(estimator: FlowEstimator, pairs: SyntheticPairs, radius_steps: int = 40) -> list[dict[str, float]]:
    """One row a pair: how far the ends of other starts lie apart, what is left of noise, and what solvers need.

    Args:
        estimator: in evaluation mode.
        pairs: with known flow.
        radius_steps: of the power iteration.
    """
    rows, before = [], None
    for i in range(len(pairs)):
        pair = pairs[i]
        with torch.no_grad():
            problem = estimator.problem(*(estimator.encode(image[None]) for image in (pair.image1, pair.image2)))
            own = _far(problem, problem.z0)
            truth, _ = coarse_truth(pair.flow[None], pair.valid[None], estimator.stride)
            starts = {
                name: draw_starts(problem, truth, 1.0, torch.Generator().manual_seed(i), (name,))
                for name in ("random", "truth")
            }
            if before is not None and before.shape == own.shape:
                starts["stale"] = before  # the last pair's end
            row = {f"{name}_apart_px": _apart(problem, _far(problem, start), own) for name, start in starts.items()}
            row |= _noise_left(problem, own, torch.Generator().manual_seed(i))
            row |= _evaluations(problem)
        problem.f.all_gradients = True  # or J lacks the flow's share
        generator = torch.Generator().manual_seed(i)
        found = spectral_radius(problem.f, own, generator=generator, steps=radius_steps)
        rows.append(row | {"spectral_radius": float(found.radius)})
        before = own
    return rows


def _far(problem: FlowProblem, z: Tensor) -> Tensor:
    for _ in range(FAR):
        z = problem.f(z)
    return z


def _apart(problem: FlowProblem, end: Tensor, other: Tensor) -> float:
    return float(problem.residual(end - other))


def _noise_left(problem: FlowProblem, end: Tensor, generator: torch.Generator) -> dict[str, float]:
    """What is left of white and of smooth noise of the flow after 1, 5 and 20 evaluations, in px."""
    flow, left = FlowState.unpack(end).flow, {}
    for kind in ("white", "smooth"):
        noise = disturbance(flow, problem.estimator.stride, generator, smooth=kind == "smooth", size=NOISE)
        undisturbed, z = end, FlowState(FlowState.unpack(end).hidden, flow + noise).pack()
        for k in range(1, 21):
            undisturbed, z = problem.f(undisturbed), problem.f(z)
            if k in (1, 5, 20):
                left[f"{kind}_after_{k}_px"] = _apart(problem, z, undisturbed)
    return left


def _evaluations(problem: FlowProblem) -> dict[str, float]:
    """Evaluations to ``FOUND`` by each rule, 100 allowed."""
    stop = Stop(max_evals=100, atol=FOUND, norm=problem.residual)
    rules = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}
    return {
        f"{name}_evaluations": float(solve(problem.f, problem.z0, rule, stop).evals) for name, rule in rules.items()
    }


def summarise_attraction(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and the value that nine of ten pairs do not exceed, of each quantity."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = sorted(row[name] for row in rows if name in row)
        found[name] = {
            "median": statistics.median(values),
            "nine_of_ten": values[-(-len(values) * 9 // 10) - 1],
        }
    return found


def run_attraction(
    models: Mapping[str, FlowEstimator], out: str | Path, pairs: int = 12, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure models on held-out procedural pairs and write a results file.

    Args:
        models: by name, in evaluation mode.
        out: results file (.json).
        pairs: how many.
        say: takes a line for each model.
    """
    held_out = SyntheticPairs(pairs, seed=HELD_OUT_SEED, config=RICH_SCENES)
    results: dict[str, Any] = {"experiment": "attraction", "pairs": pairs, "models": {}}
    results["provenance"] = provenance(Path(__file__).parent)
    for name, estimator in models.items():
        rows = attraction_of(estimator, held_out)
        results["models"][name] = {"summary": summarise_attraction(rows), "rows": rows}
        save_results(results, out)
        ends = results["models"][name]["summary"]["random_apart_px"]["median"]
        say(f"{name}: the ends of random starts lie {ends:.3g} px apart in the median pair")
    return results

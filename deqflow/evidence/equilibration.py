"""A recurrent model beside the equilibrium model made of it: convergence on pairs, warm starts on video."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import save_results
from deqflow.evidence.video_reuse import VideoSample, compare
from deqflow.model.estimator import FlowEstimator
from deqflow.training.equilibrating import TOLERANCE, Pairs, measure_convergence

WARM_TOLERANCE = 0.3  # px, at which warm starts are compared


def compare_convergence(
    models: Mapping[str, FlowEstimator],
    sets: Mapping[str, Pairs],
    clips: Mapping[str, Sequence[VideoSample]],
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure models on pairs with known flow and on videos. The results file is written after each set.

    Args:
        models: by name, in evaluation mode, solved as equilibrium models.
        sets: pairs by name.
        clips: videos by name.
        out: results file (.json); none is written if not given.
        say: takes a line for each set and model.
    """
    results: dict[str, Any] = {"experiment": "equilibration", "tolerance_px": TOLERANCE, "sets": {}, "video": {}}
    results |= {"warm_tolerance_px": WARM_TOLERANCE, "provenance": provenance(Path(__file__).parent)}

    def keep() -> None:
        if out is not None:
            save_results(results, out)

    for name, pairs in sets.items():
        results["sets"][name] = {"pairs": len(pairs)}
        for label, model in models.items():
            found = measure_convergence(model, pairs)
            say(f"{name}, {label}: {found}")
            row = asdict(found) | {"errors": {str(k): error for k, error in found.errors.items()}}
            results["sets"][name][label] = row
        keep()
    for name, group in clips.items():
        results["video"][name] = {}
        for label, model in models.items():
            rows = compare(model, group, atol=WARM_TOLERANCE)
            results["video"][name][label] = rows
            share = rows["warp"]["evaluations"] / rows["reset"]["evaluations"]
            say(f"{name}, {label}: warm starts take {share:.0%} of the evaluations to {WARM_TOLERANCE:g} px")
        keep()
    return results

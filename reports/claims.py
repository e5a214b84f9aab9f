"""The paper's claims (Bai, Geng, Savani and Kolter 2022), and what the committed results say about each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deqflow.evidence.results import curves

Results = dict[str, Any]
Finding = tuple[str, str]  # whether the claim holds (yes, in part or no), and the figures


@dataclass(frozen=True)
class Claim:
    """A claim, the notebook that measures it, and how its results become a sentence.

    Attributes:
        number: its name in the notebooks.
        says: the claim.
        notebook: the name of the notebook and of its published results.
        find: called with the results of the notebook and then with those of ``beside``.
        beside: names of further results files.
    """

    number: str
    says: str
    notebook: str
    find: Callable[..., Finding]
    beside: tuple[str, ...] = ()


def _verdict(whole: bool, part: bool) -> str:
    return "yes" if whole else "in part" if part else "no"


def _any_solver(results: Results) -> Finding:
    n = results["numbers"]
    one_point = n["contractive_spread_px"] < 0.01
    every = n["contractive_converged"] == n["contractive_solves"]
    stays = n["shipped_spread_px"] < 0.1
    return _verdict(one_point and every and stays, one_point), (
        f"a map with one fixed point: {n['contractive_converged']} of {n['contractive_solves']} solves, by six solvers "
        f"from three starts, end within {n['contractive_spread_px']:.1g} px; the trained model as it is: four rules "
        f"end within {n['shipped_own_start_spread_px']:.2g} px from its own start, all within "
        f"{n['shipped_spread_px']:.2g} px from any start"
    )


def _constant_memory(results: Results) -> Finding:
    n, depths, run = results["numbers"], *(results["parameters"][name] for name in ("depths", "recurrent_depths"))
    how = "" if run[-1] >= depths[-1] else f", by the line through what it was run with (up to {run[-1]})"
    return _verdict(n["c2_holds"], False), (
        f"from {depths[0]} to {depths[-1]} evaluations the bytes kept grow by a factor of "
        f"{n['growth_equilibrium']:.2f}; the recurrent model's by {n['growth_recurrent']:.1f}{how}"
    )


def _less_memory(results: Results) -> Finding:
    n = results["numbers"]
    plain, lean, peak = (
        n[f"ratio_{name}"] for name in ("kept_36_as_published", "kept_36_encoders_checkpointed", "peak_36_as_published")
    )
    return _verdict(plain >= 4, max(plain, lean) >= 4), (
        f"{results['parameters']['size']} size, 36 updates: {plain:.1f} times less kept ({peak:.1f} at the peak), "
        f"{lean:.0f} times where both checkpoint their encoders"
    )


def _cheap_gradients(results: Results, trained: Results) -> Finding:
    n = results["numbers"]
    means = {name: values.mean(0) for name, values in curves(trained, "error_px").items()}
    at = [trained["config"]["evals"].index(k) for k in (12, 96)]
    (near, far), (best, best_far) = ([float(means[name][i]) for i in at] for name in ("one-step", "unrolled"))
    good, cheap = near <= 1.1 * best, n["exact_seconds_ratio"] > 2
    return _verdict(good and cheap and far <= 1.1 * best_far, good and cheap), (
        f"cosine with the exact gradient {n['one_step_cosine_shipped']:.2f} for one-step, "
        f"{n['phantom_5_cosine_shipped']:.2f} for phantom 5; exact to 1e-4 takes {n['exact_seconds_ratio']:.1f} times "
        f"as long; short trainings with one-step end at {near:.2f} px after 12 evaluations (unrolled {best:.2f}), and "
        f"at {far:.2f} after 96 ({best_far:.2f})"
    )


def _reuse(results: Results) -> Finding:
    n = results["numbers"]
    shares = [n[f"{clip}_{stop}_share_of_evaluations"] for stop in ("loose", "tight") for clip in ("slow", "ordinary")]
    return _verdict(n["goal_reached"] == n["goal_cases"], n["goal_reached"] > 0 and max(shares) <= 1), (
        f"warm starts need {shares[0]:.0%} (slow) and {shares[1]:.0%} (ordinary motion) of the evaluations to a loose "
        f"tolerance, {shares[2]:.0%} and {shares[3]:.0%} to a tight one, at "
        f"{n['slow_tight_error_over_reset']:.2f} and {n['ordinary_tight_error_over_reset']:.2f} times the error; "
        f"the goal is reached in {n['goal_reached']} of {n['goal_cases']} cases"
    )


def _same_evaluations(results: Results, accuracy: Results) -> Finding:
    wins_there, sets_there = results["numbers"]["claim_c6_wins_at_12"], results["numbers"]["sets"]
    found = {}
    for k in ("12", "96"):
        sets = [figures["methods"] for figures in accuracy["sets"].values()]
        sets = [methods for methods in sets if methods["deqflow-small"]["at"][k]["error_px"] is not None]
        ratios = [
            methods["deqflow-small"]["at"][k]["error_px"] / methods["raft-small-twin"]["at"][k]["error_px"]
            for methods in sets
        ]
        found[k] = sum(ratio < 1 for ratio in ratios), len(ratios), float(np.exp(np.mean(np.log(ratios))))
    (wins, count, ratio), (late, _, far) = found["12"], found["96"]
    return _verdict(wins == count == late and wins_there == sets_there, wins + late > count), (
        f"against a recurrent twin of the same size, data and steps, with 12 evaluations each: smaller error on {wins} "
        f"of {count} sets, {ratio:.2f} times in the mean; with 96 each on {late}, {far:.2f} times; "
        f"of the notebook's own sets, with 12, on {wins_there} of {sets_there}"
    )


def _corrections(results: Results) -> Finding:
    n = results["numbers"]
    ratio = {k: n[f"epe_6_corrections_{k}_evals_px"] / n[f"epe_1_corrections_{k}_evals_px"] for k in (3, 12, 96)}
    moved = n["residual_6_corrections_3_evals_px"] / n["residual_1_corrections_3_evals_px"]
    return _verdict(max(ratio.values()) < 1, ratio[3] < 1), (
        f"short trainings, six corrections against one: {ratio[3]:.2f} times the error and {moved:.2f} times the "
        f"movement after 3 evaluations, {ratio[12]:.2f} times the error at 12, {ratio[96]:.2f} at 96"
    )


def _any_operator(results: Results) -> Finding:
    n = results["numbers"]
    good = n["epe_after_px"] < n["epe_still_px"] and n["gradient_disagreement"] < 1e-3
    return _verdict(good, False), (
        f"a new operator in some 20 lines: exact gradient right to {n['gradient_disagreement']:.0e}, "
        f"{n['epe_before_px']:.1f} px untrained, {n['epe_after_px']:.2f} px after {n['steps']} steps "
        f"(no flow: {n['epe_still_px']:.2f} px); "
        "the operators of RAFT, RAFT-small and GMA besides"
    )


def _convergence(results: Results) -> Finding:
    n = results["numbers"]
    return _verdict(n["claim_holds"], n["error_96_over_12"] < n["twin_error_96_over_12"]), (
        f"from 12 to 96 evaluations the error changes by a factor of {n['error_96_over_12']:.2f} (goal: 1.01), that of "
        f"the recurrent twin by {n['twin_error_96_over_12']:.2f}; an evaluation then moves the flow by "
        f"{n['movement_96_evals_px']:.2g} and {n['twin_movement_96_evals_px']:.2g} px"
    )


CLAIMS = (
    Claim("C1", "flow is a fixed point that any black-box solver finds", "02_solver_playground", _any_solver),
    Claim(
        "C2",
        "analytic gradients: training memory is constant in depth",
        "05_memory_recurrent_vs_deq",
        _constant_memory,
    ),
    Claim(
        "C3",
        "4 to 6 times less training memory than the recurrent model",
        "05_memory_recurrent_vs_deq",
        _less_memory,
    ),
    Claim("C4", "inexact gradients are nearly as good, and cheap", "03_gradients", _cheap_gradients, ("gradients",)),
    Claim("C5", "fixed-point reuse makes video faster", "10_fixed_point_reuse_on_video", _reuse),
    Claim("C6", "better results with the same computation", "09_evaluate", _same_evaluations, ("accuracy",)),
    Claim("C7", "sparse correction stabilises", "07_sparse_correction", _corrections),
    Claim("C8", "not tied to one model", "08_bring_your_own_update", _any_operator),
    Claim(
        "C9",
        "recurrent models converge poorly, equilibrium models do not",
        "06_convergence_trajectories",
        _convergence,
    ),
)


def claim_rows(load: Callable[[str], Results]) -> list[list[str]]:
    """A table row for each claim: the claim, whether it holds, the measured figures, and the notebook.

    Args:
        load: returns published results by name.

    Raises:
        ValueError: the results of a notebook are not from the full profile.
    """
    rows = []
    for claim in CLAIMS:
        results = load(claim.notebook)
        if results["profile"] != "full":
            raise ValueError(
                f"The claims expect results of the full profile, got {results['profile']} for {claim.notebook}: run "
                f"python -m deqflow report --profile full --publish --only {claim.notebook}"
            )
        verdict, figures = claim.find(results, *(load(name) for name in claim.beside))
        link = f"[{claim.notebook[:2]}](notebooks/{claim.notebook}.ipynb)"
        rows.append([f"**{claim.number}** {claim.says}", verdict, figures, link])
    return rows

"""The table of claims says what the numbers say, whichever way they fall."""

import pytest
from claims import CLAIMS, claim_rows

from deqflow.evidence.results import load_results, published

SOLVERS = {
    "contractive_spread_px": 0.0005,
    "contractive_converged": 18,
    "contractive_solves": 18,
    "shipped_own_start_spread_px": 0.02,
    "shipped_spread_px": 0.05,
}
MEMORY = {
    "c2_holds": True,
    "growth_equilibrium": 1.0,
    "growth_recurrent": 9.5,
    "ratio_kept_36_as_published": 4.25,
    "ratio_kept_36_encoders_checkpointed": 24.0,
    "ratio_peak_36_as_published": 4.0,
}
GRADIENTS = {"one_step_cosine_shipped": 0.95, "phantom_5_cosine_shipped": 0.99, "exact_seconds_ratio": 6.0}
VIDEO = {f"{clip}_{stop}_share_of_evaluations": 0.5 for clip in ("slow", "ordinary") for stop in ("loose", "tight")}
VIDEO |= {"slow_tight_error_over_reset": 1.0, "ordinary_tight_error_over_reset": 1.0}
VIDEO |= {"goal_cases": 6, "goal_reached": 6}
CORRECTIONS = {f"epe_6_corrections_{k}_evals_px": 0.9 for k in (3, 12, 96)}
CORRECTIONS |= {f"epe_1_corrections_{k}_evals_px": 1.0 for k in (3, 12, 96)}
CORRECTIONS |= {"residual_6_corrections_3_evals_px": 0.1, "residual_1_corrections_3_evals_px": 0.2}
OPERATOR = {"epe_before_px": 7.0, "epe_after_px": 1.0, "epe_still_px": 2.0, "gradient_disagreement": 1e-8, "steps": 400}
CONVERGENCE = {
    "claim_holds": True,
    "error_96_over_12": 1.0,
    "twin_error_96_over_12": 1.3,
    "movement_96_evals_px": 0.01,
    "twin_movement_96_evals_px": 0.05,
}


def trained(one_step, unrolled):
    """Short trainings with these errors after 12 and 96 evaluations."""
    errors = {"one-step": one_step, "unrolled": unrolled}
    return {"runs": [{"variant": name, "curve": {"error_px": values}} for name, values in errors.items()]}


def accuracy(own, twin):
    """Two sets with the same errors after 12 and 96 evaluations."""
    methods = {
        name: {"at": {k: {"error_px": error} for k, error in zip(("12", "96"), errors, strict=True)}}
        for name, errors in (("deqflow-small", own), ("raft-small-twin", twin))
    }
    return {"sets": {"a": {"methods": methods}, "b": {"methods": methods}}}


def results(**changes):
    """Published results in which every claim holds, but for the numbers given."""
    numbers = {
        "02_solver_playground": SOLVERS,
        "03_gradients": GRADIENTS,
        "05_memory_recurrent_vs_deq": MEMORY,
        "06_convergence_trajectories": CONVERGENCE,
        "07_sparse_correction": CORRECTIONS,
        "08_bring_your_own_update": OPERATOR,
        "09_evaluate": {"claim_c6_wins_at_12": 3, "sets": 3},
        "10_fixed_point_reuse_on_video": VIDEO,
    }
    files = {}
    for name, values in numbers.items():
        changed = {key: changes.get(key, value) for key, value in values.items()}
        files[name] = {
            "numbers": changed,
            "parameters": {"size": "base", "depths": [6, 96], "recurrent_depths": [6, 36]},
            "profile": "full",
        }
    short = changes.get("trained", trained([1.0, 1.1], [0.95, 1.1])) | {"config": {"evals": [12, 96]}}
    return files | {"gradients": short, "accuracy": changes.get("accuracy", accuracy((1.0, 1.0), (1.2, 1.5)))}


def verdicts(**changes):
    files = results(**changes)
    return {row[0][2:4]: row[1] for row in claim_rows(files.__getitem__)}


def test_where_all_is_well_every_claim_holds():
    assert verdicts() == {f"C{i}": "yes" for i in range(1, 10)}


@pytest.mark.parametrize(
    ("claim", "changes", "expected"),
    [
        ("C1", {"shipped_spread_px": 6.0}, "in part"),
        ("C1", {"contractive_spread_px": 1.0}, "no"),
        ("C2", {"c2_holds": False}, "no"),
        ("C3", {"ratio_kept_36_as_published": 3.9}, "in part"),
        ("C3", {"ratio_kept_36_as_published": 3.9, "ratio_kept_36_encoders_checkpointed": 3.9}, "no"),
        ("C1", {"contractive_converged": 17}, "in part"),
        ("C4", {"trained": trained([1.0, 1.9], [0.95, 1.1])}, "in part"),
        ("C4", {"trained": trained([1.9, 1.1], [0.95, 1.1])}, "no"),
        ("C4", {"exact_seconds_ratio": 1.0}, "no"),
        ("C5", {"goal_reached": 5}, "in part"),
        ("C5", {"goal_reached": 5, "slow_loose_share_of_evaluations": 1.0}, "in part"),  # one evaluation is the least
        ("C5", {"goal_reached": 0}, "no"),
        ("C5", {"goal_reached": 5, "slow_tight_share_of_evaluations": 1.1}, "no"),
        ("C6", {"accuracy": accuracy((1.3, 1.0), (1.2, 1.5))}, "no"),
        ("C6", {"accuracy": accuracy((1.3, 1.6), (1.2, 1.5))}, "no"),
        ("C6", {"claim_c6_wins_at_12": 2}, "in part"),
        ("C7", {"epe_6_corrections_96_evals_px": 1.1}, "in part"),
        ("C7", {"epe_6_corrections_3_evals_px": 1.1}, "no"),
        ("C8", {"epe_after_px": 2.5}, "no"),
        ("C9", {"claim_holds": False}, "in part"),
        ("C9", {"claim_holds": False, "error_96_over_12": 1.4}, "no"),
    ],
)
def test_a_verdict_follows_the_numbers(claim, changes, expected):
    found = verdicts(**changes)
    assert found.pop(claim) == expected
    assert set(found.values()) == {"yes"}, "no other claim changes with it"


def test_a_row_gives_the_figures_and_the_way_to_the_notebook():
    rows = dict(zip((claim.number for claim in CLAIMS), claim_rows(results().__getitem__), strict=True))
    assert rows["C3"] == [
        "**C3** 4 to 6 times less training memory than the recurrent model",
        "yes",
        "base size, 36 updates: 4.2 times less kept (4.0 at the peak), 24 times where both checkpoint their encoders",
        "[05](notebooks/05_memory_recurrent_vs_deq.ipynb)",
    ]
    assert rows["C2"][2].endswith("the recurrent model's by 9.5, by the line through what it was run with (up to 36)")
    assert "0.83 times in the mean; with 96 each on 2, 0.67 times" in rows["C6"][2]
    assert "the error changes by a factor of 1.00 (goal: 1.01), that of the recurrent twin by 1.30" in rows["C9"][2]


def test_sets_without_a_known_flow_do_not_count():
    files = accuracy((1.0, 1.0), (1.2, 1.5))
    unknown = accuracy((None, None), (None, None))["sets"]["a"]
    changed = {"sets": files["sets"] | {"unknown": unknown}}
    assert claim_rows(results(accuracy=changed).__getitem__) == claim_rows(results().__getitem__)


def test_results_of_a_short_run_are_refused():
    files = results()
    files["07_sparse_correction"]["profile"] = "short"
    with pytest.raises(
        ValueError, match="full profile, got short for 07_sparse_correction: run python -m deqflow report"
    ):
        claim_rows(files.__getitem__)


@pytest.mark.claims
def test_the_committed_results_have_all_that_is_asked():
    assert len(claim_rows(lambda name: load_results(published(name)))) == 9

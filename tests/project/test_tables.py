import re
from pathlib import Path

import fill_tables as tables
import pytest

ROOT = Path(__file__).parents[2]
RUNS = {
    "runs": [
        {"variant": v, "seed": s, "seconds": 2.0 + s, "curve": {"evals": [12, 96], "error_px": [e, e + 1],
         "residual_px": [0.5, 0.1]}}
        for v, e in (("one-step", 1.0), ("implicit", 2.0)) for s in (0, 1)
    ]
    + [{"variant": "one-step", "seed": 2, "seconds": 3.0, "failed": "not finite"}]
}  # fmt: skip


@pytest.mark.claims
def test_the_pages_say_what_the_results_files_say():
    texts = [(ROOT / page).read_text() for page in tables.PAGES]
    shown = [name for text in texts for name in re.findall(r"<!-- table: ([\w-]+) -->", text)]
    assert sorted(shown) == sorted(tables.TABLES), "each table is shown once"
    for text in texts:
        assert tables.fill(text) == text, "run make tables"


def test_a_table_is_filled_between_its_marks_and_nothing_else_is_touched(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: estimators -->\nold\n<!-- end -->\nafter\n")
    assert tables.update(path)
    text = path.read_text()
    assert text.startswith("before\n<!-- table: estimators -->\n| weights |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert not tables.update(path)
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_a_mark_without_a_table_is_refused():
    with pytest.raises(ValueError, match="No table 'fame': expected one of claims, estimators"):
        tables.fill("<!-- table: fame -->\n<!-- end -->")


def test_runs_are_summed_up_by_mean_and_spread_over_seeds():
    head, sides, first, second = tables.gradients(RUNS).splitlines()
    assert head == "| gradient | training | error at 12 | error at 96 | residual at 12 | residual at 96 |"
    assert sides == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert first == "| one-step | 3 s | 1.00 ± 0.00 px | 2.00 ± 0.00 px | 0.500 ± 0.000 px | 0.100 ± 0.000 px |"
    assert second.startswith("| implicit | 2 s | 2.00 ± 0.00 px |")
    assert tables.corrections(RUNS).splitlines()[2].startswith("| one-step | 1.00 ± 0.00 px |")


def test_the_bench_shows_what_had_a_target():
    row = {"quantity": "time", "value": 1.2345, "unit": "s", "at_least": None, "at_most": 2.0, "met": True}
    free = row | {"at_most": None, "met": None}
    speed = row | {"quantity": "ratio", "unit": "", "at_least": 4.0, "at_most": None, "met": False}
    lines = tables.bench({"parts": {"one": {"rows": [row, free]}, "two": {"rows": [speed]}}}).splitlines()
    assert lines[2:] == ["| time | at most 2 s | 1.23 s | yes |", "| ratio | at least 4 | 1.23 | no |"]


def test_the_accuracy_table_has_a_row_a_set_and_columns_for_each_model():
    errors = {"zero flow": {"error_px": 9.0}, "DIS": {"error_px": 2.345}}
    at = {"12": {"error_px": 1.5}, "24": {"error_px": 1.25}, "96": {"error_px": 1.0}}
    stopped = {"error_px": 1.125, "evaluations": 17.6}
    results = {
        "config": {"evals": [12, 24, 96]},
        "models": {"deq": {"recurrent": False}, "raft": {"recurrent": True}},
        "sets": {
            "kitti": {
                "pairs": 3,
                "methods": {**errors, **{name: {"at": at, "stopped": stopped} for name in ("deq", "raft")}},
            }
        },
    }
    head, _, row = tables.accuracy(results).splitlines()
    assert head == "| set | pairs | zero flow | DIS | deq at 12 | deq at 96 | stopped | raft at 12 | raft at 96 |"
    assert row == "| kitti | 3 | 9.00 | 2.35 | 1.50 | 1.00 | 1.12 after 18 | 1.50 | 1.00 |"


def test_accuracy_and_speed_beside_dis_are_said_in_a_sentence():
    def methods(error: float | None, dis: float | None, ms: float) -> dict:
        stopped = {"error_px": error, "ms": ms}
        return {"methods": {"DIS": {"error_px": dis, "ms": 10.0}, "deq": {"stopped": stopped}}}

    results = {
        "config": {"device": "cpu"},
        "models": {"deq": {"parameters": 1_078_000}},
        "sets": {"a": methods(1.0, 2.0, 100.0), "b": methods(4.0, 2.0, 1000.0), "no truth": methods(None, None, 1.0)},
    }
    text = tables.in_short(results)
    assert text.startswith(
        "`deq` (1.1 M parameters) beside DIS, a fast classical method, on 2 sets: a smaller error on 1"
    )
    assert text.endswith("of them, 1.00 times the error in the mean, at 32 times the time on a CPU.")


def test_the_table_by_evaluations_has_a_row_a_set_and_model():
    at = {"1": {"error_px": 1.5, "ms": 10.0}, "4": {"error_px": 1.25, "ms": 22.0}, "101": {"error_px": 1, "ms": 510.0}}
    methods = {"DIS": {"error_px": 2.345, "ms": 7.6}, "deq": {"at": at}}
    results = {"config": {"evals": [1, 4, 101]}, "models": {"deq": {}}, "sets": {"kitti": {"methods": methods}}}
    head, _, row = tables.accuracy_by_evaluations(results).splitlines()
    assert head == "| set | model | 1 | 4 | 101 | ms: for 1, each further |"
    assert row == "| kitti (DIS: 2.35 in 8 ms) | deq | 1.50 | 1.25 | 1.00 | 10 + 5.0 |"


def test_shares_within_1_3_and_5_px_have_a_table_of_their_own():
    known = {"error_px": 1.0, "within": {"1": 0.5, "3": 0.75, "5": 0.996}}
    unknown = {"error_px": None, "within": {"1": None, "3": None, "5": None}}
    results = {
        "config": {"evals": [12, 24]},
        "models": {"deq": {"recurrent": False}},
        "sets": {
            name: {"pairs": 1, "methods": {"zero flow": figures, "DIS": figures, "deq": {"at": at}}}
            for name, figures in (("kitti", known), ("test", unknown), ("old", {"error_px": 1.0}))
            for at in [{"12": figures, "24": figures}]
        },
    }
    lines = tables.accuracy_within(results).splitlines()
    assert lines[0] == "| set | zero flow | DIS | deq at 12 | deq at 24 |"
    assert lines[2] == "| kitti |" + 4 * " 50 / 75 / 100 % |"
    assert lines[3] == "| test |" + 4 * " not known |"
    assert lines[4] == "| old |" + 4 * " not measured |"


def test_sets_without_a_known_flow_have_their_row():
    figures = {"error_px": None, "ms": 8.0}
    methods = {"zero flow": figures, "DIS": figures, "deq": {"at": {"12": figures, "24": figures}}}
    methods["deq"]["stopped"] = figures | {"evaluations": 9.0}
    results = {
        "config": {"evals": [12, 24]},
        "models": {"deq": {"recurrent": False}},
        "sets": {"test": {"pairs": 3, "methods": methods}},
    }
    assert tables.accuracy(results).splitlines()[2] == (
        "| test | 3 | not known | not known | not known | not known | not known after 9 |"
    )
    assert "not known" in tables.accuracy_by_evaluations(results)


def test_policies_stand_side_by_side_to_a_loose_and_a_tight_tolerance():
    rows = [
        {"clip": "slow", "atol_px": atol, "policy": policy, "evaluations": cost + 1 / atol, "flicker_px": 0.25}
        for atol in (1.0, 0.5, 0.1)
        for policy, cost in (("reset", 2.0), ("warp", 1.0))
    ]
    head, _, loose, tight = tables.video({"rows": rows}).splitlines()
    assert head == "| clip | evaluations: reset / warp | error | flicker |"
    assert loose == "| slow, to 1 px | 3.00 / 2.00 | not known | 0.25 / 0.25 px |"
    assert tight == "| slow, to 0.1 px | 12.00 / 11.00 | not known | 0.25 / 0.25 px |"
    known = tables.video({"rows": [row | {"error_px": 1.5} for row in rows]}).splitlines()[2]
    assert known == "| slow, to 1 px | 3.00 / 2.00 | 1.50 / 1.50 px | 0.25 / 0.25 px |"


def test_the_confidence_table_has_a_row_a_set():
    ours = {"right": 0.5, "confidence": 0.526, "expected_calibration_error": 0.0312, "ause": 0.2}
    alone = ours | {"expected_calibration_error": 0.1, "ause": 0.3333}
    row = {"set": "motorcycle", "pairs": 1, "confidence": ours, "consistency": alone, "chance": {"ause": 0.5}}
    row["occlusion"] = None
    known = row | {"set": "known", "occlusion": {"share": 0.1, "precision": 0.625, "recall": 0.75}}
    lines = tables.confidence({"rows": [row, known]}).splitlines()
    assert lines[2] == "| motorcycle | 1 | 50 % | 53 % | 3.1 / 10.0 % | 0.200 / 0.333 / 0.500 | not known |"
    assert lines[3].endswith("| 10 / 62 / 75 % |")

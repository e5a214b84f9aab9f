from pathlib import Path

import pytest

from deqflow import tables

README = Path(__file__).parents[1] / "README.md"
RUNS = {
    "runs": [
        {"variant": v, "seed": s, "seconds": 2.0 + s, "curve": {"evals": [12, 96], "error_px": [e, e + 1],
         "residual_px": [0.5, 0.1]}}
        for v, e in (("one-step", 1.0), ("implicit", 2.0)) for s in (0, 1)
    ]
    + [{"variant": "one-step", "seed": 2, "seconds": 3.0, "failed": "not finite"}]
}  # fmt: skip


def test_the_readme_says_what_the_results_files_say():
    text = README.read_text()
    assert text.count("<!-- table: ") == len(tables.TABLES)
    assert tables.fill(text) == text, "run python -m deqflow tables"


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
    with pytest.raises(ValueError, match="No table 'fame': expected one of estimators"):
        tables.fill("<!-- table: fame -->\n<!-- end -->")


def test_runs_are_summed_up_by_mean_and_spread_over_seeds():
    head, sides, first, second = tables.gradients(RUNS).splitlines()
    assert head == "| gradient | training | error at 12 | error at 96 | residual at 12 | residual at 96 |"
    assert sides == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert first == "| one-step | 3 s | 1.00 ± 0.00 px | 2.00 ± 0.00 px | 0.500 ± 0.000 px | 0.100 ± 0.000 px |"
    assert second.startswith("| implicit | 2 s | 2.00 ± 0.00 px |")
    assert tables.corrections(RUNS).splitlines()[2].startswith("| one-step | 1.00 ± 0.00 px |")

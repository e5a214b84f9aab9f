"""The figure of README.md: a recurrent model made an equilibrium model."""

from pathlib import Path

import equilibration
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = {
    "sets": {
        "one": {"before": {"errors": {"12": 2.0, "96": 2.4}}, "after": {"errors": {"12": 2.2, "96": 2.1}}},
        "two": {"before": {"errors": {"12": 1.0, "96": 1.1}}, "after": {"errors": {"12": 1.0, "96": 1.0}}},
    }
}


def test_errors_are_drawn_relative_to_the_published_model_after_12():
    lines = [line.get_ydata() for line in equilibration.draw(RESULTS).axes[0].lines]
    assert [list(line) for line in lines[:4]] == [[1.0, 1.2], [1.0, 1.1], [1.1, 1.05], [1.0, 1.0]]


@pytest.mark.claims
def test_the_figure_on_the_page_is_of_the_published_results(tmp_path):
    equilibration.main(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_bytes() == equilibration.OUT.read_bytes(), "run reports/equilibration.py"
    assert f"]({equilibration.OUT.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text()

import base64
import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from deqflow import reports
from deqflow.reports.build import _value
from deqflow.reports.html import PLOTLY, plotly_call, to_html

PIXEL = base64.b64encode(b"not really a picture").decode()

SHOWS = f"""
from IPython.display import display
from deqflow.notebook import record
figure = {{"data": [{{"y": [1, 2]}}], "layout": {{"height": 300, "title": {{"text": "</script>"}}}}}}
display({{"application/vnd.plotly.v1+json": figure, "text/plain": "figure"}}, raw=True)
display({{"image/png": "{PIXEL}"}}, raw=True)
record(error_px=0.25 * size)
"""


def write(folder, name, *cells):
    notebook = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = list(cells)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A notebook that passes and one that fails, reported into a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a folder")
    settings = new_code_cell("size = 4\nseed = 7", metadata={"tags": ["parameters"]})
    write(
        folder,
        "00_good",
        new_markdown_cell("# A title\n\nthe root $\\sqrt{2}$, `$HOME`"),
        settings,
        new_code_cell(SHOWS),
    )
    write(folder, "01_bad", new_markdown_cell("no heading"), new_code_cell("print('so far')"), new_code_cell("1 / 0"))
    lines = []
    done = reports.build_reports(
        reports.find_notebooks(folder), folder / "out put", {"size": 8, "unknown": 1}, lines.append
    )
    return folder / "out put", done, lines


def test_each_notebook_leaves_a_notebook_a_page_and_numbers(built):
    folder, done, _ = built
    names = {f"{report.name}.{kind}" for report in done for kind in ("ipynb", "html", "json")}
    assert {path.name for path in folder.iterdir()} == names | {"index.html", "assets"}
    assert (folder / PLOTLY).stat().st_size > 1e6


def test_numbers_carry_their_provenance(built):
    folder, _, _ = built
    metrics = json.loads((folder / "00_good.json").read_text())
    assert metrics["numbers"] == {"error_px": 2.0}
    assert metrics["parameters"] == {"size": 8, "seed": 7}
    assert (metrics["seed"], metrics["passed"], metrics["error"]) == (7, True, "")
    assert metrics["seconds"] > 0
    assert {"commit", "versions", "hardware", "fast", "date"} <= metrics.keys()


def test_the_page_asks_for_nothing_but_its_own_assets(built):
    page = (built[0] / "00_good.html").read_text()
    loaded = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']([^"']+)["']""", page)
    assert {address for address in loaded if not address.startswith("data:")} == {PLOTLY}


def test_the_page_draws_plots_and_formulas(built):
    page = (built[0] / "00_good.html").read_text()
    assert page.count("Plotly.newPlot(") == 1
    assert "<msqrt>" in page
    assert "$HOME" in page


def test_a_failed_notebook_is_shown_as_far_as_it_got(built):
    folder, done, lines = built
    assert [bool(report.error) for report in done] == [False, True]
    assert "ZeroDivisionError" in done[1].error
    page = (folder / "01_bad.html").read_text()
    assert "so far" in page
    assert "ZeroDivisionError" in page
    assert json.loads((folder / "01_bad.json").read_text())["passed"] is False
    assert any("01_bad FAILED" in line for line in lines)


def test_the_index_has_a_card_for_each(built):
    page = (built[0] / "index.html").read_text()
    assert "1 of 2 failed" in page
    assert page.count("<article>") == 2
    assert 'href="00_good.html"' in page
    assert f"data:image/png;base64,{PIXEL}" in page
    assert "error_px" in page


def test_a_second_run_of_one_notebook_keeps_the_other_card(built, tmp_path):
    folder, _, _ = built
    again = reports.find_notebooks(folder.parent, ["00_good"])
    done = reports.build_reports(again, folder, {}, lambda line: None)
    assert len(done) == 1
    assert (folder / "index.html").read_text().count("<article>") == 2


def test_notebooks_are_found_in_order_and_by_name(tmp_path):
    for name in ("01_b", "00_a", "scratch"):
        write(tmp_path, name)
    assert [path.stem for path in reports.find_notebooks(tmp_path)] == ["00_a", "01_b"]
    assert [path.stem for path in reports.find_notebooks(tmp_path, ["01_b"])] == ["01_b"]
    with pytest.raises(FileNotFoundError, match=r"No notebook 'c' in .*: expected one of 00_a, 01_b"):
        reports.find_notebooks(tmp_path, ["c"])
    with pytest.raises(FileNotFoundError, match="No numbered notebooks"):
        reports.find_notebooks(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("(1, 2)", (1, 2)),
        ("'a'", "a"),
        ("choose(40, 8)", 8),
        ("len(x)", "len(x)"),
        ("choose(1)", "choose(1)"),
        ("(", "("),
    ],
)
def test_defaults_of_parameters_are_given_as_values_where_possible(monkeypatch, source, value):
    monkeypatch.setenv("DEQFLOW_FAST", "1")
    assert _value(source) == value


def test_a_figure_cannot_end_its_script():
    call = plotly_call({"data": [], "layout": {"title": {"text": "</script><b>"}}}, "plotly-1")
    assert call.count("</script>") == 1
    assert "height: 450px" in call


def test_exporting_leaves_the_notebook_as_it_is():
    notebook = new_notebook(cells=[new_markdown_cell("$a$ and $$b$$ and ```$c$```")])
    page = to_html(notebook, "title")
    assert notebook.cells[0].source == "$a$ and $$b$$ and ```$c$```"
    assert page.count("<math") == 2
    assert "$c$" in page

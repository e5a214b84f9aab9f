import base64
import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from deqflow.lab import reports
from deqflow.lab.reports.build import LONGEST_SOCKET, _all_reports, _kernels
from deqflow.lab.reports.html import PLOTLY, plotly_call, to_html
from deqflow.lab.reports.index import to_index

PIXEL = base64.b64encode(b"not really a picture").decode()

SHOWS = f"""
import time
import torch
from IPython.display import display
from deqflow.lab.notebook import record
from deqflow.solvers import Anderson, Stop, solve
figure = {{"data": [{{"y": [1, 2]}}], "layout": {{"height": 300, "title": {{"text": "</script>"}}}}}}
display({{"application/vnd.plotly.v1+json": figure, "text/plain": "figure"}}, raw=True)
display({{"image/png": "{PIXEL}"}}, raw=True)
started = time.perf_counter()
start = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
result = solve(lambda z: torch.cos(z), start, Anderson(), Stop(max_evals=6, atol=0.0))
record(error_px=0.25 * size, residual_px=result.residual.max().item(), solve_s=time.perf_counter() - started)
record(setting=setting)
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
    settings = new_code_cell("size = 4\nseed = 7\nsetting = 'short'", metadata={"tags": ["parameters"]})
    write(
        folder,
        "00_good",
        new_markdown_cell("# A title\n\nthe root $\\sqrt{2}$, `$HOME`"),
        settings,
        new_code_cell(SHOWS),
    )
    write(folder, "01_bad", new_markdown_cell("no heading"), new_code_cell("print('so far')"), new_code_cell("1 / 0"))
    (folder / "profiles").mkdir()
    (folder / "profiles" / "full.yaml").write_text("00_good: {setting: full, size: 5}")
    lines = []
    done = reports.build_reports(
        reports.find_notebooks(folder),
        folder / "out put",
        {"size": 8},
        lines.append,
        published=folder / "published",
        publish=True,
    )
    return folder / "out put", done, lines


@pytest.fixture(scope="module")
def again(built):
    """The first notebook once more, in the full profile, then with a parameter that makes it fail: two indexes."""
    folder, _, _ = built
    good = reports.find_notebooks(folder.parent, ["00"])
    pages, metrics = [], []
    for parameters in ({"size": 8}, {"size": "nonsense"}):
        options = {"profile": "full", "published": folder.parent / "published"}
        reports.build_reports(good, folder, parameters, lambda line: None, **options)
        pages.append((folder / "index.html").read_text())
        metrics.append(json.loads((folder / "00_good.json").read_text()))
    return pages, metrics


def test_each_notebook_leaves_a_notebook_a_page_and_numbers(built):
    folder, done, _ = built
    assert [report.file for report in done] == ["00_good", "01_bad.failed"]
    names = {f"{report.file}.{kind}" for report in done for kind in ("ipynb", "html", "json")}
    assert {path.name for path in folder.iterdir()} >= names | {"index.html", "assets"}
    assert not list(folder.glob("*.part*"))
    assert (folder / PLOTLY).stat().st_size > 1e6


def test_numbers_carry_their_provenance(built):
    folder, _, _ = built
    metrics = json.loads((folder.parent / "published" / "00_good.json").read_text())
    assert metrics["numbers"]["error_px"] == 2.0
    assert metrics["parameters"] == {"size": 8, "seed": 7, "setting": "short"}
    assert (metrics["seed"], metrics["passed"], metrics["error"]) == (7, True, "")
    assert metrics["seconds"] > 0
    assert {"commit", "versions", "hardware", "profile", "date"} <= metrics.keys()


def test_only_what_passed_is_published(built):
    assert [path.name for path in (built[0].parent / "published").iterdir()] == ["00_good.json"]


def test_two_runs_with_one_seed_give_the_same_numbers_times_aside(built, again):
    first = json.loads((built[0].parent / "published" / "00_good.json").read_text())["numbers"]
    second = again[1][0]["numbers"]
    same = [name for name in first if not reports.is_time(name) and name != "setting"]
    assert same == ["error_px", "residual_px"]
    assert [second[name] for name in same] == [first[name] for name in same]
    assert second["solve_s"] != first["solve_s"]


def test_the_profile_reaches_the_notebook(built, again):
    first = json.loads((built[0].parent / "published" / "00_good.json").read_text())
    assert (first["numbers"]["setting"], first["profile"]) == ("short", "short")
    assert (again[1][0]["numbers"]["setting"], again[1][0]["profile"]) == ("full", "full")
    assert again[1][0]["parameters"] == {"size": 8, "seed": 7, "setting": "full"}  # --set goes before the profile


@pytest.mark.parametrize(("profile", "marks"), [("full", 1), ("short", 0)])
def test_the_index_marks_what_differs_from_the_published_numbers_of_its_profile(built, again, profile, marks):
    facts = json.loads((built[0].parent / "published" / "00_good.json").read_text())
    numbers = again[1][0]["numbers"]
    report = reports.NotebookRun("00_good", "A title", 1.0, "", numbers, "full", "today", "")
    page = to_index([report], again[1][0], {"00_good": facts | {"profile": profile}})
    assert page.count('class="differs"') == marks  # the setting; times and equal numbers are not marked
    assert f"published ({profile} profile)" in page
    assert "more than 5%" in page
    assert "published (short profile)" in again[0][0]


@pytest.mark.parametrize(("count", "folded"), [(12, False), (13, True)])
def test_a_card_folds_many_numbers(again, count, folded):
    numbers = {f"n{i}_px": i for i in range(count)}
    report = reports.NotebookRun("00_good", "A title", 1.0, "", numbers, "full", "today", "")
    page = to_index([report], again[1][0], {})
    assert (f"<details><summary>{count} numbers</summary><table>" in page) == folded
    assert page.count("<tr>") == count


def test_a_failure_leaves_the_last_good_report_in_place(built, again):
    folder, _, _ = built
    assert again[1][1] == again[1][0]
    assert "<h2><a" in again[0][1]
    assert 'href="00_good.failed.html"' in again[0][1]
    assert '<a href="00_good.html">last good report</a>' in again[0][1]
    assert "TypeError" in (folder / "00_good.failed.html").read_text()
    assert "This run failed" in (folder / "00_good.failed.html").read_text()
    good = reports.find_notebooks(folder.parent, ["00_good"])
    reports.build_reports(good, folder, {}, lambda line: None)
    assert not list(folder.glob("00_good.failed.*"))
    assert "last good report" not in (folder / "index.html").read_text()
    assert (folder / "index.html").read_text().count("<article>") == 2


@pytest.mark.parametrize(
    ("value", "published", "beyond"),
    [(1.0, 1.04, False), (1.0, 1.06, True), (0.0, 0.0, False), (True, False, True), ("a", "a", False), (3, 4, True)],
)
def test_numbers_differ_beyond_a_tolerance(value, published, beyond):
    assert reports.differences({"n_px": value, "new": 1}, {"n_px": published})["n_px"].beyond is beyond
    assert not reports.differences({"n_ms": value}, {"n_ms": published})["n_ms"].beyond


def test_unknown_numbers_are_alike():
    assert not reports.differences({"n": float("nan")}, {"n": float("nan")})["n"].beyond
    assert reports.differences({"n": float("nan")}, {"n": 1.0})["n"].beyond


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
    page = (folder / "01_bad.failed.html").read_text()
    assert "so far" in page
    assert "ZeroDivisionError" in page
    assert json.loads((folder / "01_bad.failed.json").read_text())["passed"] is False
    assert any("01_bad FAILED" in line for line in lines)


def test_the_index_has_a_card_for_each(built, again):
    page = again[0][0]
    assert "1 of 2 failed" in page
    assert page.count("<article>") == 2
    assert 'href="00_good.html"' in page
    assert 'href="01_bad.failed.html"' in page
    assert f"data:image/png;base64,{PIXEL}" in page
    assert "error_px" in page
    assert f"torch {torch.__version__}" in page


def test_results_of_an_older_version_are_left_out_of_the_index(built, tmp_path):
    folder, _, _ = built
    for name in ("00_good.ipynb", "00_good.html"):
        shutil.copy(folder / name, tmp_path / name.replace("00_good", "09_old"))
    (tmp_path / "09_old.json").write_text(json.dumps({"notebook": "09_old", "numbers": {}}))
    assert _all_reports(tmp_path) == []


def test_two_reports_at_once_from_a_read_only_folder_both_pass(built, tmp_path):
    """Pitfall 31: kernels' sockets must not lie in the working folder."""
    here = tmp_path / "read-only"
    here.mkdir()
    write(tmp_path, "00_slow", new_code_cell("import os, time; time.sleep(1); print(os.listdir())"))
    command = [sys.executable, "-m", "deqflow", "report", "--notebooks", tmp_path, "--out", tmp_path / "out"]
    here.chmod(0o555)
    try:
        runs = [subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [run.communicate(timeout=120)[0] for run in runs]
    finally:
        here.chmod(0o755)
    assert [run.returncode for run in runs] == [0, 0], said
    assert list(here.iterdir()) == []
    executed = nbformat.read(tmp_path / "out" / "00_slow.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "[]\n"  # as a privileged user may write anywhere: nothing was
    assert not [path for path in (tmp_path / "out").rglob("*") if ".part" in path.name]


def test_sockets_whose_path_would_be_too_long_give_way_to_tcp(tmp_path):
    assert _kernels(tmp_path / "x")["KernelManager"] == {"transport": "ipc", "ip": str(tmp_path / "x" / "kernel")}
    assert "KernelManager" not in _kernels(tmp_path / ("x" * LONGEST_SOCKET))


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

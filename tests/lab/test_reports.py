import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from deqflow.lab import reports
from deqflow.lab.notebook import NUMBERS
from deqflow.lab.reports.build import LONGEST_SOCKET, _cover, _kernels, _verdict, all_runs
from deqflow.lab.reports.html import PLOTLY, PLOTLY_JSON, Page, plotly_call, to_html
from deqflow.lab.reports.index import readable, to_index

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
    report = reports.NotebookRun("00_good", "A title", 1.0, "", numbers, "full", "today")
    page = to_index([report], again[1][0], {"00_good": facts | {"profile": profile}})
    # The setting is marked; times and equal numbers are not.
    assert page.count(">differs</b>") == page.count("1 differ from the published ones") == marks
    assert f"published ({profile} profile)" in page
    assert "more than 5%" in page
    assert "published (short profile)" in again[0][0]


def test_a_card_folds_its_numbers_under_readable_names(again):
    numbers = {"epe_px": 0.5, "claim_holds": True, "solve_ms": 3.0}
    run = reports.NotebookRun("00_good", "A title", 1.0, "", numbers, "full", "today")
    page = to_index([run], again[1][0], {})
    assert "<details><summary>3 numbers</summary><div><table>" in page
    assert '<td title="epe_px">end-point error (px)</td><td>0.5</td>' in page
    assert "<td>yes</td>" in page
    assert "<td>solve (ms)</td>" in page.replace(' title="solve_ms"', "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epe_24_evals_px", "end-point error 24 evaluations (px)"),
        ("sets", "sets"),
        ("ms", "ms"),
        ("kept_mib", "kept (MiB)"),
    ],
)
def test_names_of_numbers_are_readable(name, text):
    assert readable(name) == text


def test_an_index_in_the_making_says_what_runs_and_loads_itself_again(again):
    run = reports.NotebookRun("00_good", "A title", 150.0, "", {}, "full", "today", None, "What was found.")
    waiting = [("00_good", "A title"), ("01_next", "The next"), ("02_last", "The last")]
    page = to_index([run], again[1][0], {}, waiting)
    assert "Running now: A title, then 2 more." in page
    assert 'http-equiv="refresh"' in page
    assert page.count("<article") == 3
    assert page.count("Waiting for its turn.") == 2
    assert "What was found." in page
    assert "in 2 minutes" in page
    done = to_index([run], again[1][0], {})
    assert "refresh" not in done
    assert "All 1 passed. Running them took 2 minutes." in done
    assert done.count("Start here") == 1


def test_the_index_is_written_before_each_notebook_and_at_the_end(tmp_path):
    for name in ("00_a", "01_b"):
        look = f"print(open({str(tmp_path / 'out' / 'index.html')!r}).read().count('Waiting for its turn'))"
        write(tmp_path, name, new_markdown_cell(f"# Title of {name}"), new_code_cell(look))
    reports.build_reports(reports.find_notebooks(tmp_path), tmp_path / "out", say=lambda line: None)
    waiting = [
        nbformat.read(path, as_version=4).cells[1].outputs[0].text for path in sorted(tmp_path.glob("out/*.ipynb"))
    ]
    assert waiting == ["1\n", "0\n"]
    assert "Running now" not in (tmp_path / "out" / "index.html").read_text()


def shown(markdown):
    cell = new_code_cell("...")
    cell.outputs = [new_output("display_data", {"text/markdown": markdown})]
    return cell


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        (
            [shown("**Found here: claim C9 holds**: the error is 1.03 px. More.")],
            "Claim C9 holds: the error is 1.03 px.",
        ),
        ([shown("**Found here: it saves.** To 1 px, half.")], "It saves."),
        ([shown("**Found here: it fell to 1.36 px** after 12. More.")], "It fell to 1.36 px after 12."),
        ([shown("**Found here: C2 holds**: a."), shown("**Found here: C3 does not**: b.")], "C2 holds. C3 does not."),
        ([new_markdown_cell("# T\n\nA [link](x.md), `f` and *more*. The rest.")], "A link, f and more."),
        ([], ""),
    ],
)
def test_the_verdict_is_what_was_found_or_what_it_is_about(cells, verdict):
    assert _verdict(new_notebook(cells=cells)) == verdict


def test_the_cover_is_the_tagged_cell_and_rather_an_image_than_a_figure():
    figure, image = new_code_cell("a"), new_code_cell("b", metadata={"tags": ["cover"]})
    figure.outputs = [new_output("display_data", {PLOTLY_JSON: {"data": []}, "image/png": "first"})]
    image.outputs = [new_output("display_data", {"image/png": "an\nimage"})]
    assert _cover(new_notebook(cells=[figure, image])) == ("image/png", "animage")
    assert _cover(new_notebook(cells=[figure])) == ("image/png", "first")
    del figure.outputs[0].data["image/png"]
    assert _cover(new_notebook(cells=[figure])) == (PLOTLY_JSON, {"data": []})
    assert _cover(new_notebook()) is None


def test_a_failure_leaves_the_last_good_report_in_place(built, again):
    folder, _, _ = built
    assert again[1][1] == again[1][0]
    assert "<h2><a" in again[0][1].replace("\n", "")
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


def test_a_page_says_when_on_what_and_from_which_commit_and_how_to_run_it(built):
    page = (built[0] / "00_good.html").read_text()
    facts = json.loads((built[0] / "00_good.json").read_text())
    assert f"Run on {facts['date'][:10]} in" in page
    assert (facts["commit"] or "unknown")[:10] in page
    assert facts["hardware"]["processor"] in page
    assert "python -m deqflow report --only 00</code>" in page


def test_a_page_leads_to_its_neighbours(built):
    assert '<a rel="next" href="01_bad.html" title="01_bad">Next →</a>' in (built[0] / "00_good.html").read_text()
    last = (built[0] / "01_bad.failed.html").read_text()
    assert '<a rel="prev" href="00_good.html" title="A title">← Previous: A title</a>' in last
    assert 'rel="next"' not in last


def test_links_to_notebooks_lead_to_their_pages():
    notebook = new_notebook(cells=[new_markdown_cell("[one](01_b.ipynb) [other](elsewhere.ipynb)")])
    page = to_html(notebook, Page("title", known=["01_b"]))
    assert 'href="01_b.html"' in page
    assert 'href="elsewhere.ipynb"' in page


def test_code_is_folded_but_where_it_is_shown_or_fails():
    cells = [new_code_cell("a\nb"), new_code_cell("c", metadata={"tags": ["show-code"]}), new_code_cell("d")]
    cells[2].outputs = [new_output("error", ename="E", evalue="v", traceback=["t"])]
    page = to_html(new_notebook(cells=cells), Page("title"))
    assert page.count('<details class="code">') == 1
    assert len(re.findall('<details class="code"[^>]* open', page)) == 2
    assert "Code (2 lines)" in page
    assert "<script src" not in page  # no figure: no plotly


def test_machinery_is_folded_whole_but_for_what_it_shows():
    record = new_output("display_data", {NUMBERS: {"a": 1}, "text/plain": "a  1"})
    text = new_output("display_data", {"text/markdown": "a finding"})
    books, mixed = (new_code_cell("record()", metadata={"tags": ["machinery"]}) for _ in range(2))
    books.outputs, mixed.outputs = [record], [record, text]
    page = to_html(new_notebook(cells=[books]), Page("title"))
    assert page.count('<details class="books">') == 1
    assert "a  1" in page
    page = to_html(new_notebook(cells=[mixed]), Page("title"))
    assert '<details class="books">' not in page
    assert "a finding" in page
    assert "a  1" not in page


def test_every_formula_of_the_notebooks_is_typeset():
    for path in reports.find_notebooks(Path(__file__).parents[2] / "notebooks"):
        page = to_html(nbformat.read(path, as_version=4), Page(path.stem))
        formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
        assert not [formula for formula in formulas if "\\" in formula], path.stem


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
    assert "error (px)" in page
    assert f"torch {torch.__version__}" in page


def test_results_of_an_older_version_are_left_out_of_the_index(built, tmp_path):
    folder, _, _ = built
    for name in ("00_good.ipynb", "00_good.html"):
        shutil.copy(folder / name, tmp_path / name.replace("00_good", "09_old"))
    (tmp_path / "09_old.json").write_text(json.dumps({"notebook": "09_old", "numbers": {}}))
    assert all_runs(tmp_path) == []


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
    assert "--height: 450px" in call


def test_a_cover_has_no_labels_and_images_get_less_high_on_a_narrow_page():
    curve = {"type": "scatter", "mode": "markers+text", "text": ["a"]}
    figure = {"data": [curve], "layout": {"title": {"text": "T"}, "annotations": [{"text": "a note"}]}}
    cover = plotly_call(figure, "cover", small=True)
    assert '"mode": "markers"' in cover
    assert "a note" not in cover
    whole = plotly_call(figure, "plot")
    assert '"mode": "markers+text"' in whole
    assert "a note" in whole
    assert '--narrow: 1"' in whole
    assert "--narrow: 0.75" in plotly_call({"data": [{"type": "image"}], "layout": {}}, "film")


def test_exporting_leaves_the_notebook_as_it_is():
    notebook = new_notebook(cells=[new_markdown_cell("$a$ and $$b$$ and ```$c$```")])
    page = to_html(notebook, Page("title"))
    assert notebook.cells[0].source == "$a$ and $$b$$ and ```$c$```"
    assert page.count("<math") == 2
    assert "$c$" in page


def test_a_progress_bar_is_not_on_the_page():
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "train:   0%| | 0/9"}
    panel = bar | {"text/html": "<p>a still</p>", "text/plain": "panel"}
    cell = new_code_cell("train()", outputs=[new_output("display_data", data=data) for data in (bar, panel)])
    page = to_html(new_notebook(cells=[cell]), Page("title"))
    assert "train:   0%" not in page
    assert "a still" in page

"""Run notebooks and collect what they show: executed notebook, page, numbers with provenance, index."""

import ast
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from deqflow.data.writing import unfinished_name, write_whole
from deqflow.evidence.provenance import provenance
from deqflow.lab.notebook import NUMBERS, PROFILE, choose, profile
from deqflow.lab.reports.html import PLOTLY, to_html
from deqflow.lab.reports.index import Report, to_index

_KEPT = ("title", "seconds", "error", "numbers", "profile", "date")  # what a card needs of NAME.json


def find_notebooks(folder: str | Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of a folder in order, or those of them that are named, by name or number.

    Raises:
        FileNotFoundError: there are none, or a name fits none.
    """
    found = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(f"No numbered notebooks in {folder}: run this from the project's folder.")
    names = [path.stem for path in found]
    for wanted in only:
        if not any(_is_called(name, wanted) for name in names):
            raise FileNotFoundError(f"No notebook {wanted!r} in {folder}: expected one of {', '.join(names)}.")
    return [path for path in found if not only or any(_is_called(path.stem, wanted) for wanted in only)]


def _is_called(name: str, wanted: str) -> bool:
    return wanted in (name, name.partition("_")[0])


def build_reports(
    notebooks: Sequence[Path],
    folder: str | Path,
    parameters: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    *,
    full: bool = False,
    published: str | Path = "reports/published",
    publish: bool = False,
) -> list[Report]:
    """Run each notebook and write its report; a line for each is handed to ``say``.

    For ``NAME.ipynb`` there will be ``NAME.ipynb`` (executed), ``NAME.html`` and ``NAME.json`` in the folder, and
    ``index.html``. A notebook that fails is reported as far as it got in ``NAME.failed.*``, and the last good report
    stays where it is.

    Args:
        notebooks: their paths.
        folder: where to, made if needed.
        parameters: values that replace those of the parameters cells.
        say: takes a line of progress.
        full: run them with the values for figures to quote, which may take hours.
        published: folder of committed results, ``NAME.json`` each; the index marks what differs from them.
        publish: write the numbers of what passes there.

    Raises:
        ValueError: none of the notebooks has a parameter of a given name.
    """
    folder, published = Path(folder), Path(published)
    parameters = parameters or {}
    defaults = {path: papermill.inspect_notebook(str(path)) for path in notebooks}
    known = sorted({name for entries in defaults.values() for name in entries})
    for name in parameters:
        if name not in known:
            raise ValueError(f"No parameter {name!r} in these notebooks: expected one of {', '.join(known)}.")
    (folder / PLOTLY).parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PLOTLY, get_plotlyjs())
    reports = []
    with _profile(full):
        for number, path in enumerate(notebooks, 1):
            say(f"[{number}/{len(notebooks)}] {path.stem} ...")
            report = run_notebook(path, folder, parameters)
            reports.append(report)
            outcome = f"FAILED: {report.error}" if report.error else "passed"
            say(f"[{number}/{len(notebooks)}] {path.stem} {outcome} ({report.seconds:.0f} s)")
            if publish and not report.error:
                write_whole(published / f"{path.stem}.json", (folder / f"{path.stem}.json").read_text())
    write_whole(folder / "index.html", to_index(_all_reports(folder), provenance(), _published(published)))
    return reports


@contextmanager
def _profile(full: bool) -> Iterator[None]:
    """Tell the kernels, which inherit the environment, which values to choose."""
    before = os.environ.get(PROFILE)
    os.environ[PROFILE] = "full" if full else "short"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PROFILE]
        else:
            os.environ[PROFILE] = before


def run_notebook(path: Path, folder: Path, parameters: Mapping[str, Any]) -> Report:
    """Run one notebook and write its three files."""
    known = {name: _value(entry["default"]) for name, entry in papermill.inspect_notebook(str(path)).items()}
    mine = {name: value for name, value in parameters.items() if name in known}
    unfinished = unfinished_name(folder / f"{path.stem}.ipynb")
    started, error = time.monotonic(), ""
    try:
        # Widget state would put megabytes into the notebook; panels add a still of themselves instead.
        options: dict[str, Any] = {
            "store_widget_state": False,
            "config": _kernels(),
            "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],  # errors of cells are in the notebook anyway
        }
        papermill.execute_notebook(
            str(path), str(unfinished), mine, kernel_name="python3", progress_bar=False, **options
        )
    except PapermillExecutionError as failure:
        error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    seconds = round(time.monotonic() - started, 1)
    notebook = nbformat.read(unfinished, as_version=4)
    facts = {
        "notebook": path.stem,
        "title": _title(notebook, path.stem),
        "passed": not error,
        "error": error,
        "numbers": _numbers(notebook),
        "parameters": known | mine,
        "seed": (known | mine).get("seed"),
        "profile": profile(),
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **provenance(),
    }
    report = _report(facts, notebook)
    unfinished.replace(folder / f"{report.file}.ipynb")
    write_whole(folder / f"{report.file}.html", to_html(notebook, report.title, error))
    write_whole(folder / f"{report.file}.json", json.dumps(facts, indent=2) + "\n")
    if not error:
        for suffix in ("html", "ipynb", "json"):
            (folder / f"{path.stem}.failed.{suffix}").unlink(missing_ok=True)
    return report


def _report(facts: Mapping[str, Any], notebook: nbformat.NotebookNode) -> Report:
    return Report(name=facts["notebook"], picture=_picture(notebook), **{name: facts[name] for name in _KEPT})


def _kernels() -> Config:
    """Where there are Unix sockets, talk to the kernel through one: over TCP, anyone on the machine could listen."""
    return Config({"KernelManager": {"transport": "ipc"}}) if os.name == "posix" else Config()


def _all_reports(folder: Path) -> list[Report]:
    """What became of each notebook when it was last run, by name."""
    reports = {}
    for path in sorted(folder.glob("[0-9]*.json")):  # NAME.failed.json, where there is one, comes before NAME.json
        notebook, facts = path.with_suffix(".ipynb"), json.loads(path.read_text())
        if notebook.exists() and facts.keys() >= {*_KEPT}:  # else it is of an older version
            report = _report(facts, nbformat.read(notebook, as_version=4))
            failed = reports.get(report.name)
            reports[report.name] = replace(failed, good=True) if failed else report
    return [reports[name] for name in sorted(reports)]


def _published(folder: Path) -> dict[str, dict[str, Any]]:
    """The committed results of notebooks, by name."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("[0-9]*.json")}


def _value(source: str) -> Any:
    """The value of a parameter's default, a literal or a ``choose(short, fast)``; else its source."""
    try:
        node = ast.parse(source, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == choose.__name__:
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
            return choose(*(ast.literal_eval(argument) for argument in node.args), **named)
        return ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError):
        return source


def _title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ").strip()
    return otherwise


def _outputs(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """What the cells displayed, as bundles by media type."""
    return [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result")
    ]


def _numbers(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for data in _outputs(notebook):
        numbers |= data.get(NUMBERS, {})
    return numbers


def _picture(notebook: nbformat.NotebookNode) -> str:
    """The first picture of the cell tagged ``cover``, or of the notebook."""
    cells = sorted(notebook.cells, key=lambda cell: "cover" not in cell.metadata.get("tags", []))
    pictures = [data["image/png"] for data in _outputs(nbformat.from_dict({"cells": cells})) if "image/png" in data]
    return "".join(pictures[0].split()) if pictures else ""

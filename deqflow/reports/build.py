"""Run notebooks and collect what they show: executed notebook, page, numbers with provenance, index."""

import ast
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from deqflow.notebook import NUMBERS, choose, is_fast
from deqflow.provenance import provenance
from deqflow.reports.html import PLOTLY, to_html
from deqflow.reports.index import Report, to_index


def find_notebooks(folder: str | Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of a folder in order, or those of them that are named.

    Raises:
        FileNotFoundError: there are none, or a name fits none.
    """
    found = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not found:
        raise FileNotFoundError(f"No numbered notebooks in {folder}: run this from the project's folder.")
    names = [path.stem for path in found]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise FileNotFoundError(f"No notebook {unknown[0]!r} in {folder}: expected one of {', '.join(names)}.")
    return [path for path in found if not only or path.stem in only]


def build_reports(
    notebooks: Sequence[Path],
    folder: str | Path,
    parameters: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> list[Report]:
    """Run each notebook and write its report; a line for each is handed to ``say``.

    For ``NAME.ipynb`` there will be ``NAME.ipynb`` (executed), ``NAME.html`` and ``NAME.json`` in the folder, and
    ``index.html``. A notebook that fails is reported like the others, as far as it got.

    Args:
        notebooks: their paths.
        folder: where to, made if needed.
        parameters: values that replace those of the parameters cells.
        say: takes a line of progress.
    """
    folder = Path(folder)
    (folder / PLOTLY).parent.mkdir(parents=True, exist_ok=True)
    _write(folder / PLOTLY, get_plotlyjs())
    reports = []
    for number, path in enumerate(notebooks, 1):
        say(f"[{number}/{len(notebooks)}] {path.stem} ...")
        report = run_notebook(path, folder, parameters or {})
        reports.append(report)
        outcome = f"FAILED: {report.error}" if report.error else "passed"
        say(f"[{number}/{len(notebooks)}] {path.stem} {outcome} ({report.seconds:.0f} s)")
    _write(folder / "index.html", to_index(_all_reports(folder, reports), provenance(folder)))
    return reports


def run_notebook(path: Path, folder: Path, parameters: Mapping[str, Any]) -> Report:
    """Run one notebook and write its three files."""
    known = {name: _value(entry["default"]) for name, entry in papermill.inspect_notebook(str(path)).items()}
    mine = {name: value for name, value in parameters.items() if name in known}
    unfinished = folder / f".{path.stem}.part.ipynb"
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
    seconds = time.monotonic() - started
    notebook = nbformat.read(unfinished, as_version=4)
    unfinished.replace(folder / path.name)
    report = Report(
        path.stem, _title(notebook, path.stem), round(seconds, 1), error, _numbers(notebook), _picture(notebook)
    )
    _write(folder / f"{path.stem}.html", to_html(notebook, report.title))
    _write(folder / f"{path.stem}.json", json.dumps(_metrics(report, known | mine), indent=2) + "\n")
    return report


def _kernels() -> Config:
    """Where there are Unix sockets, talk to the kernel through one: over TCP, anyone on the machine could listen."""
    return Config({"KernelManager": {"transport": "ipc"}}) if os.name == "posix" else Config()


def _metrics(report: Report, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "notebook": report.name,
        "title": report.title,
        "passed": not report.error,
        "error": report.error,
        "numbers": report.numbers,
        "parameters": parameters,
        "seed": parameters.get("seed"),
        "fast": is_fast(),
        "seconds": report.seconds,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **provenance(),
    }


def _all_reports(folder: Path, new: Sequence[Report]) -> list[Report]:
    """The new reports and those of earlier runs that still lie in the folder, by name."""
    reports = {report.name: report for report in new}
    for path in folder.glob("[0-9]*.json"):
        notebook = path.with_suffix(".ipynb")
        if path.stem in reports or not notebook.exists():
            continue
        old = json.loads(path.read_text())
        picture = _picture(nbformat.read(notebook, as_version=4))
        reports[path.stem] = Report(path.stem, old["title"], old["seconds"], old["error"], old["numbers"], picture)
    return [reports[name] for name in sorted(reports)]


def _value(source: str) -> Any:
    """The value of a parameter's default, a literal or a ``choose(full, fast)``; else its source."""
    try:
        node = ast.parse(source, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == choose.__name__:
            return choose(*(ast.literal_eval(argument) for argument in node.args))
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


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)

"""Run notebooks and collect what they show: executed notebook, page, numbers with provenance, index."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from deqflow.data.writing import write_whole
from deqflow.evidence.provenance import provenance
from deqflow.lab.notebook import NUMBERS
from deqflow.lab.reports.html import PLOTLY, to_html
from deqflow.lab.reports.index import NotebookRun, to_index
from deqflow.lab.reports.profiles import SHORT, default_parameters, parameters_of

LONGEST_SOCKET = 95  # characters of a path: systems allow 103 and more, of which the number of the port takes a few
_KEPT = ("title", "seconds", "error", "numbers", "profile", "date")  # what a card needs of NAME.json


def build_reports(
    notebooks: Sequence[Path],
    folder: str | Path,
    chosen: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    *,
    profile: str = SHORT,
    published: str | Path = "reports/published",
    publish: bool = False,
) -> list[NotebookRun]:
    """Run each notebook and write its report; a line for each is handed to ``say``.

    For ``NAME.ipynb`` there will be ``NAME.ipynb`` (executed), ``NAME.html`` and ``NAME.json`` in the folder, and
    ``index.html``, which is written again after each notebook. A notebook that fails is reported as far as it got in
    ``NAME.failed.*``, and the last good report stays where it is.

    Args:
        notebooks: their paths.
        folder: where to, made if needed.
        chosen: values that replace those of the parameters cells and of the profile.
        say: takes a line of progress.
        profile: "short", the values of the parameters cells, or the name of a file in ``profiles/`` beside them.
        published: folder of committed results, ``NAME.json`` each; the index marks what differs from them.
        publish: write the numbers of what passes there.

    Raises:
        FileNotFoundError, ValueError: as for :func:`deqflow.lab.reports.profiles.parameters_of`.
    """
    folder, published = Path(folder), Path(published)
    parameters = parameters_of(notebooks, profile, chosen)
    (folder / PLOTLY).parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PLOTLY, get_plotlyjs())
    reports = []
    for number, path in enumerate(notebooks, 1):
        say(f"[{number}/{len(notebooks)}] {path.stem} ...")
        report = run_notebook(path, folder, parameters[path.stem], profile)
        reports.append(report)
        outcome = f"FAILED: {report.error}" if report.error else "passed"
        say(f"[{number}/{len(notebooks)}] {path.stem} {outcome} ({report.seconds:.0f} s)")
        if publish and not report.error:
            write_whole(published / f"{path.stem}.json", (folder / f"{path.stem}.json").read_text())
    write_whole(folder / "index.html", to_index(_all_reports(folder), provenance(), _published(published)))
    return reports


def run_notebook(path: Path, folder: Path, parameters: Mapping[str, Any], profile: str = SHORT) -> NotebookRun:
    """Run one notebook with these parameters and write its three files; the profile is only noted."""
    with tempfile.TemporaryDirectory(prefix="deqflow-") as scratch:
        executed = Path(scratch) / path.name
        started = time.monotonic()
        error = _execute(path, executed, parameters)
        seconds = round(time.monotonic() - started, 1)
        content = executed.read_text()
    notebook = nbformat.reads(content, as_version=4)
    used = default_parameters(path) | dict(parameters)
    facts = {
        "notebook": path.stem,
        "title": _title(notebook, path.stem),
        "passed": not error,
        "error": error,
        "numbers": _numbers(notebook),
        "parameters": used,
        "seed": used.get("seed"),
        "profile": profile,
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **provenance(),
    }
    report = _report(facts, notebook)
    write_whole(folder / f"{report.file}.ipynb", content)
    write_whole(folder / f"{report.file}.html", to_html(notebook, report.title, error))
    write_whole(folder / f"{report.file}.json", json.dumps(facts, indent=2) + "\n")
    if not error:
        for suffix in ("html", "ipynb", "json"):
            (folder / f"{path.stem}.failed.{suffix}").unlink(missing_ok=True)
    return report


def _execute(path: Path, executed: Path, parameters: Mapping[str, Any]) -> str:
    """Run a notebook; return the error message that it failed with, or nothing."""
    # Widget state would put megabytes into the notebook; panels add a still of themselves instead.
    options: dict[str, Any] = {
        "store_widget_state": False,
        "config": _kernels(executed.parent),
        "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],  # errors of cells are in the notebook anyway
    }
    try:
        papermill.execute_notebook(
            str(path), str(executed), dict(parameters), kernel_name="python3", progress_bar=False, **options
        )
    except PapermillExecutionError as failure:
        return f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    return ""


def _report(facts: Mapping[str, Any], notebook: nbformat.NotebookNode) -> NotebookRun:
    return NotebookRun(name=facts["notebook"], picture=_picture(notebook), **{name: facts[name] for name in _KEPT})


def _kernels(folder: Path) -> Config:
    """Talk to the kernel through Unix sockets in ``folder``, where the system has them and the path is short enough.

    Over TCP, anyone on the machine could listen. Without a folder, the sockets would lie in the working folder, which
    may be read-only, and where two reports at once would take each other's.
    """
    sockets = folder / "kernel"
    if os.name != "posix" or len(str(sockets)) > LONGEST_SOCKET:
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": str(sockets)}})


def _all_reports(folder: Path) -> list[NotebookRun]:
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

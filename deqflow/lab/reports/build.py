"""Run notebooks and write their reports: executed notebook, page, numbers with provenance, and the index."""

import json
import os
import re
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
from deqflow.lab.reports.html import PLOTLY, PLOTLY_JSON, Page, to_html
from deqflow.lab.reports.index import NotebookRun, to_index
from deqflow.lab.reports.profiles import SHORT, default_parameters, find_notebooks, parameters_of

_FOUND = re.compile(r"\*\*Found here: (?P<bold>.+?)\*\*(?P<rest>.*?(?:\.(?=\s|$)|$))", re.DOTALL)
LONGEST_SOCKET = 95  # characters of a path: systems allow 103 or more, and the number of the port takes a few
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
    """Run each notebook and write its report; ``say`` gets a line for each.

    For ``NAME.ipynb`` the folder gets ``NAME.ipynb`` (executed), ``NAME.html`` and ``NAME.json``, and ``index.html``
    is written again after each notebook. A notebook that fails is reported as far as it got in ``NAME.failed.*``, and
    its last good report stays.

    Args:
        notebooks: paths of the notebooks.
        folder: folder for the reports, created if needed.
        chosen: values that replace those of the parameters cells and of the profile.
        say: called with a line of progress.
        profile: "short", the values of the parameters cells, or the name of a file in ``profiles/`` beside them.
        published: folder of committed results, ``NAME.json`` each; the index marks numbers that differ from them.
        publish: write the numbers of notebooks that pass to ``published``.

    Raises:
        FileNotFoundError, ValueError: as for :func:`deqflow.lab.reports.profiles.parameters_of`.
    """
    folder, published = Path(folder), Path(published)
    parameters = parameters_of(notebooks, profile, chosen)
    (folder / PLOTLY).parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PLOTLY, get_plotlyjs())
    runs = []
    for number, path in enumerate(notebooks, 1):
        write_index(folder, published, notebooks[number - 1 :])
        say(f"[{number}/{len(notebooks)}] {path.stem} ...")
        run = run_notebook(path, folder, parameters[path.stem], profile)
        runs.append(run)
        outcome = f"FAILED: {run.error}" if run.error else "passed"
        say(f"[{number}/{len(notebooks)}] {path.stem} {outcome} ({run.seconds:.0f} s)")
        if publish and not run.error:
            write_whole(published / f"{path.stem}.json", (folder / f"{path.stem}.json").read_text())
    write_index(folder, published)
    return runs


def write_index(folder: Path, published: Path, waiting: Sequence[Path] = ()) -> None:
    """Write the index of the reports in a folder; it also names the notebooks that wait to be run."""
    to_come = [_named(path) for path in waiting]
    write_whole(folder / "index.html", to_index(all_runs(folder), provenance(), _published(published), to_come))


def run_notebook(path: Path, folder: Path, parameters: Mapping[str, Any], profile: str = SHORT) -> NotebookRun:
    """Run one notebook with these parameters and write its three files; the profile is only recorded."""
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
    run = _run(facts, notebook)
    write_whole(folder / f"{run.file}.ipynb", content)
    write_whole(folder / f"{run.file}.html", to_html(notebook, _page(path, run, facts)))
    write_whole(folder / f"{run.file}.json", json.dumps(facts, indent=2) + "\n")
    if not error:
        for suffix in ("html", "ipynb", "json"):
            (folder / f"{path.stem}.failed.{suffix}").unlink(missing_ok=True)
    return run


def _page(path: Path, run: NotebookRun, facts: Mapping[str, Any]) -> Page:
    """The facts on the page of a notebook; its neighbours are those in the notebook's folder."""
    paths = find_notebooks(path.parent) if path.name[0].isdigit() else [path]
    names = [each.stem for each in paths]
    place = names.index(path.stem)
    before = _named(paths[place - 1]) if place > 0 else None
    after = _named(paths[place + 1]) if place + 1 < len(paths) else None
    return Page(run.title, run.error, facts, before, after, names)


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


def _run(facts: Mapping[str, Any], notebook: nbformat.NotebookNode) -> NotebookRun:
    kept = {name: facts[name] for name in _KEPT}
    return NotebookRun(name=facts["notebook"], cover=_cover(notebook), verdict=_verdict(notebook), **kept)


def _kernels(folder: Path) -> Config:
    """Talk to the kernel through Unix sockets in ``folder``, if the system has them and the path is short enough.

    Over TCP, anyone on the machine could listen. Without a folder, the sockets would lie in the working folder, which
    may be read-only, and in which two simultaneous reports would use each other's sockets.
    """
    sockets = folder / "kernel"
    if os.name != "posix" or len(str(sockets)) > LONGEST_SOCKET:
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": str(sockets)}})


def all_runs(folder: Path) -> list[NotebookRun]:
    """The last run of each notebook, sorted by name."""
    runs = {}
    for path in sorted(folder.glob("[0-9]*.json")):  # NAME.failed.json, where there is one, comes before NAME.json
        notebook, facts = path.with_suffix(".ipynb"), json.loads(path.read_text())
        if notebook.exists() and facts.keys() >= {*_KEPT}:  # otherwise an older version wrote it
            run = _run(facts, nbformat.read(notebook, as_version=4))
            failed = runs.get(run.name)
            runs[run.name] = replace(failed, good=True) if failed else run
    return [runs[name] for name in sorted(runs)]


def _published(folder: Path) -> dict[str, dict[str, Any]]:
    """The committed results of notebooks, by name."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("[0-9]*.json")}


def _named(path: Path) -> tuple[str, str]:
    """A notebook's name and title."""
    return path.stem, _title(nbformat.read(path, as_version=4), path.stem)


def _title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ").strip()
    return otherwise


def _outputs(cells: Sequence[nbformat.NotebookNode]) -> list[dict[str, Any]]:
    """The outputs that cells displayed, as bundles by media type."""
    return [
        output.data
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result")
    ]


def _numbers(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for data in _outputs(notebook.cells):
        numbers |= data.get(NUMBERS, {})
    return numbers


def _cover(notebook: nbformat.NotebookNode) -> tuple[str, Any] | None:
    """The first image, or else figure, of the cell tagged ``cover``, or of the whole notebook if there is none."""
    tagged = [cell for cell in notebook.cells if "cover" in cell.metadata.get("tags", [])]
    for cells in (tagged, notebook.cells):
        shown = _outputs(cells)
        for kind in ("image/png", PLOTLY_JSON):
            found = next((data[kind] for data in shown if kind in data), None)
            if found is not None:
                return kind, "".join(found.split()) if isinstance(found, str) else found
    return None


def _verdict(notebook: nbformat.NotebookNode) -> str:
    """One sentence: the finding that the notebook prints in bold as "Found here: ...", or else its topic."""
    found = [match for data in _outputs(notebook.cells) for match in _FOUND.finditer(data.get("text/markdown", ""))]
    if found:
        bold = [_plain(match["bold"]).rstrip(".") for match in found]
        rests = [match["rest"] if len(found) == 1 and not match["bold"].endswith(".") else "" for match in found]
        ends = [" " * rest[:1].isspace() + _plain(rest) if rest.strip() else "." for rest in rests]
        return " ".join(f"{text[:1].upper()}{text[1:]}{end}" for text, end in zip(bold, ends, strict=True))
    for cell in notebook.cells:
        paragraphs = [part for part in cell.source.split("\n\n") if part and not part.startswith(("#", "|", "<"))]
        if cell.cell_type == "markdown" and paragraphs:
            return re.split(r"(?<=[.?!])\s", _plain(paragraphs[0]), maxsplit=1)[0]
    return ""


def _plain(markdown: str) -> str:
    """Markdown as one line of plain text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[*`$]", "", text).split())

"""An executed notebook as a page: text, figures and tables first, code behind a switch, no network needed."""

import copy
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from deqflow.lab.notebook import CHOICES, NUMBERS
from deqflow.lab.plots.style import TEMPLATE

PLOTLY = "assets/plotly.min.js"
PLOTLY_JSON = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
BOOKS, SHOWN = "machinery", "show-code"  # tags of cells: fold the whole cell; show its code unfolded

# Display maths, inline maths, or code, in which a dollar is only a dollar.
_MATHS = re.compile(r"```.*?```|`[^`\n]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)
# Delimiters that latex2mathml does not know after \big, and the characters that replace them.
_LATEX = {r"\lVert": "‖", r"\rVert": "‖", r"\Vert": "‖", r"\|": "‖", r"\lvert": "|", r"\rvert": "|"}
_TOO_LARGE = ("title", "annotations", "sliders", "updatemenus")  # parts of a layout for which a cover has no room
_HEADING = re.compile(r'<h2 id="(?P<id>[^"]+)">(?P<text>.*?)(?:<a class="anchor-link".*?</a>)?</h2>', re.DOTALL)

_CELLS = """
{%- extends 'base.html.j2' -%}
{% block codecell %}
{%- if cell.metadata.deqflow_books -%}
<details class="books"><summary>Bookkeeping: checks, and the numbers for the report</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{% endblock codecell %}
{% block input_group %}
<details class="code"{% if cell.metadata.deqflow_open %} open data-shown{% endif %}>
<summary>{{ cell.metadata.deqflow_label }}</summary>{{ super() }}</details>
{% endblock input_group %}
"""


@dataclass(frozen=True)
class Page:
    """The facts that a page states about itself.

    Attributes:
        title: title of the window.
        error: the error message that the notebook failed with, if it did.
        facts: the content of NAME.json: notebook, profile, date, seconds, commit and so on; may be empty.
        before, after: name and title of the notebooks before and after this one; None if there is none.
        known: names of the notebooks that have pages; links to these notebooks lead to their pages.
    """

    title: str
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[str, str] | None = None
    after: tuple[str, str] | None = None
    known: Sequence[str] = ()


def to_html(notebook: nbformat.NotebookNode, page: Page) -> str:
    """Return the page of an executed notebook; it expects :data:`PLOTLY` and the index in the same folder."""
    notebook = copy.deepcopy(notebook)
    formulas: list[str] = []
    number = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATHS.sub(lambda match: _set_aside(match, formulas), cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if not _is_only_live(output)]
            _fold(cell)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = _MATHS.sub(lambda match: _set_aside(match, formulas), data["text/markdown"])
            shown = ""
            if PLOTLY_JSON in data:
                number += 1
                shown = plotly_call(data[PLOTLY_JSON], f"plotly-{number}")
            elif CHOICES in data:  # a panel, whose still is an image
                shown = f'<img alt="" src="data:image/png;base64,{data["image/png"]}">'
            if shown:
                output.data = {"text/html": _as_still(shown, data[CHOICES]) if CHOICES in data else shown}
    exporter = HTMLExporter(template_name="lab", raw_template=_CELLS)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(notebook)
    body = _with_formulas(body, formulas)
    for name in page.known:
        body = body.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    contents, made = _contents(body), _made(page)
    body = body.replace("</h1>", f"</h1>{made}", 1) if "</h1>" in body else made + body
    return _whole_page(page, body, contents, plots=number > 0)


def _fold(cell: nbformat.NotebookNode) -> None:
    """Tell the template which parts of a code cell are folded, and under which words."""
    tags = cell.metadata.get("tags", [])
    failed = any(output.output_type == "error" for output in cell.outputs)
    lines = len(cell.source.splitlines())
    label = f"Code ({lines} line{'s' if lines > 1 else ''})"
    if "parameters" in tags:
        label = "Settings: the notebook's own"
    elif "injected-parameters" in tags:
        label = "Settings: those of this run"
    cell.metadata.deqflow_label = label
    cell.metadata.deqflow_open = SHOWN in tags or failed
    if BOOKS in tags and not failed:
        rich = [output for output in cell.outputs if _is_rich(output)]
        cell.metadata.deqflow_books = not rich
        cell.outputs = rich or cell.outputs  # the numbers are in NAME.json and on the index


def _is_rich(output: nbformat.NotebookNode) -> bool:
    """Whether an output is for readers: neither a stream nor a record of numbers."""
    data = output.get("data", {})
    return bool(data) and NUMBERS not in data and bool(data.keys() - {"text/plain"})


def _is_only_live(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a widget without a still, such as a progress bar at its start: a page has nothing of it."""
    data = output.get("data", {})
    return WIDGET in data and not data.keys() - {WIDGET, "text/plain"}


def _contents(body: str) -> str:
    """The sections of a page as a list of links."""
    entries = [f'<li><a href="#{match["id"]}">{match["text"].strip()}</a></li>' for match in _HEADING.finditer(body)]
    if not entries:
        return ""
    return f"<details open><summary>On this page</summary><ul>{''.join(entries)}</ul></details>"


def _whole_page(page: Page, body: str, contents: str, *, plots: bool) -> str:
    here = Path(__file__).parent
    style = (here / "page.css").read_text() + code_colors()
    neighbours = [("prev", "← Previous{}", page.before), ("next", "Next{} →", page.after)]
    short = "".join(_link(rel, text.format(""), to) for rel, text, to in neighbours if to)
    long = "".join(_link(rel, text.format(f": {to[1]}"), to) for rel, text, to in neighbours if to)
    failed = f"<b>This run failed.</b> {html.escape(page.error)}" if page.error else ""
    head = f'<script src="{PLOTLY}"></script>' if plots else ""
    content = f"""<nav class="bar" aria-label="Pages"><a href="index.html">All notebooks</a>{short}
<button class="on" id="all-code" type="button" aria-pressed="false" hidden>Show code</button></nav>
<div class="page">
<nav class="contents" aria-label="Contents">{contents}</nav>
<main>
{f'<p class="failed" role="alert">{failed}</p>' if failed else ""}{body}
<nav class="ends" aria-label="Neighbours">{long}</nav>
</main>
</div>
<script>{(here / "page.js").read_text()}</script>"""
    return document(html.escape(page.title), style, content, head)


def document(title: str, style: str, content: str, head: str = "") -> str:
    """A whole page: its title and content, as HTML, its CSS, and what else its head holds."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
{head}
</head>
<body>
{content}
</body>
</html>
"""


def origin_texts(origin: Mapping[str, Any]) -> tuple[str, str, str]:
    """Commit, machine and versions of a provenance (:func:`deqflow.evidence.provenance.provenance`), in words."""
    commit = (origin["commit"] or "unknown")[:10] + (" with local changes" if origin["modified"] else "")
    hardware = origin["hardware"]
    machine = ", ".join([hardware["processor"], f"{hardware['threads']} threads", *hardware["gpus"]])
    return commit, machine, ", ".join(f"{name} {version}" for name, version in origin["versions"].items())


def _link(rel: str, text: str, to: tuple[str, str]) -> str:
    """A link to the page of a notebook, given by name and title."""
    name, title = (html.escape(part) for part in to)
    return f'<a rel="{rel}" href="{name}.html" title="{title}">{html.escape(text)}</a>'


def _made(page: Page) -> str:
    """When, on which machine and from which commit a page was made, and how readers run it themselves."""
    facts = page.facts
    if not facts:
        return ""
    name, (commit, machine, versions) = html.escape(facts["notebook"]), origin_texts(facts)
    profile = "" if facts["profile"] == "short" else f" --profile {facts['profile']}"
    summary = f"Run on {facts['date'][:10]} in {facts['seconds']:.0f} s ({facts['profile']} profile), commit {commit}"
    return f"""<details class="made facts"><summary>{html.escape(summary)}</summary>
<p>On {html.escape(machine)}, with {html.escape(versions)}.</p>
<p>To run it yourself: <code>python -m deqflow report --only {name.partition("_")[0]}{profile}</code>, or
<code>make lab</code> and open notebooks/{name}.ipynb. This run: <a href="{name}.ipynb">the notebook with its
outputs</a>, <a href="{name}.json">its numbers</a>.</p></details>"""


def code_colors() -> str:
    """Pygments' colours for code, for a light and a dark page."""
    light, dark = (HtmlFormatter(style=name, nobackground=True) for name in ("xcode", "github-dark"))
    rules = [formatter.get_style_defs(".highlight") for formatter in (light, dark)]
    return f"{rules[0]}\n@media (prefers-color-scheme: dark) {{ {rules[1]} }}"


def plotly_call(figure: Mapping[str, Any], name: str, *, small: bool = False) -> str:
    """A ``div`` and the one call that draws a figure, given as plotly's json, into it.

    Args:
        figure: a mapping with ``data`` and ``layout``.
        name: name of the ``div``.
        small: draw it as a cover: not interactive, no title, no legend.
    """
    data, layout = figure.get("data", []), dict(figure.get("layout", {}))
    if small:
        data = [{**curve, "mode": curve["mode"].replace("+text", "")} if "mode" in curve else curve for curve in data]
        layout = {key: value for key, value in layout.items() if key not in _TOO_LARGE}
        layout |= {"showlegend": False, "margin": {"l": 55, "r": 10, "t": 15, "b": 45}, "font": {"size": 10}}
    layout.setdefault("margin", {"l": 60, "r": 20, "t": 50, "b": 50})
    height = layout.pop("height", 450)  # the page sets it: a narrow page gives a long legend more height
    layout |= {"template": TEMPLATE.to_plotly_json(), "autosize": True}
    title = layout.get("title", {})
    label = html.escape(re.sub("<[^>]*>", " ", title.get("text", "")) if isinstance(title, dict) else str(title))
    entries = sum(curve.get("showlegend") is not False for curve in data)
    narrow = 0.75 if any(curve.get("type") == "image" for curve in data) else 1  # images get less high with the page
    # Plotly's buttons can't be reached from the keyboard, so there are none; the wheel scrolls the page (page.js).
    config = _as_json({"responsive": True, "displayModeBar": False, "scrollZoom": False, "staticPlot": small})
    # "</" would end the script early.
    parts = ", ".join(_as_json(part).replace("</", "<\\/") for part in (data, layout))
    return (
        f'<div class="plot" id="{name}" role="img" aria-label="{label or "plot"}" '
        f'style="--height: {height}px; --entries: {min(entries, 12)}; --narrow: {narrow}"></div>'
        f'<script>Plotly.newPlot("{name}", {parts}, {config})</script>'
    )


def _as_json(part: object) -> str:
    return json.dumps(part, default=lambda value: value.to_plotly_json())


def _as_still(figure: str, choices: Sequence[Mapping[str, Any]]) -> str:
    """A panel's figure, under its controls and their values."""
    shown = []
    if not choices:
        live = "A panel, as a still: in JupyterLab (<code>make lab</code>) it is live."
        return f'<div class="still"><p>{live}</p>{figure}</div>'
    for choice in choices:
        if choice["group"] not in {earlier["group"] for earlier in choices[: choices.index(choice)]}:
            shown.append(f"<b>{html.escape(choice['group'])}</b>")
        label, value = html.escape(choice["label"]), html.escape(str(choice["value"]))
        shown.append(f'<label title="{html.escape(choice["help"])}">{label} <output>{value}</output></label>')
    return (
        '<div class="still"><p>A panel, as a still. In JupyterLab (<code>make lab</code>) each of these is '
        "live, and the figure follows.</p>"
        f'<fieldset class="choices" disabled>{"".join(shown)}</fieldset>{figure}</div>'
    )


def typeset(text: str, to_body: Callable[[str], str]) -> str:
    """Return Markdown as HTML with its formulas as MathML; ``to_body`` converts the rest."""
    formulas: list[str] = []
    return _with_formulas(to_body(_MATHS.sub(lambda match: _set_aside(match, formulas), text)), formulas)


def _set_aside(match: re.Match[str], formulas: list[str]) -> str:
    """Replace a formula by a name that Markdown leaves unchanged; MathML would be damaged in Markdown."""
    block, inline = match["block"], match["inline"]
    if block is None and inline is None:
        return match[0]
    latex = html.unescape(block or inline)
    for known, simpler in _LATEX.items():
        latex = latex.replace(known, simpler)
    formulas.append(convert(latex, display="block" if block else "inline"))
    return f"deqflowformula{len(formulas) - 1}end"


def _with_formulas(body: str, formulas: Sequence[str]) -> str:
    return re.sub(r"deqflowformula(\d+)end", lambda match: formulas[int(match[1])], body)

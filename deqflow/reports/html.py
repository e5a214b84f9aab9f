"""An executed notebook as a page that shows its plots and formulas with no network."""

import copy
import html
import json
import re

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

PLOTLY = "assets/plotly.min.js"
PLOTLY_JSON = "application/vnd.plotly.v1+json"

# Display maths, inline maths, or code, in which a dollar is only a dollar.
_MATHS = re.compile(r"```.*?```|`[^`\n]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)


def to_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """Return the page of an executed notebook; it expects :data:`PLOTLY` beside itself."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title
    formulas: list[str] = []
    number = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATHS.sub(lambda match: _set_aside(match, formulas), cell.source)
        for output in cell.get("outputs", []):
            if PLOTLY_JSON in output.get("data", {}):
                number += 1
                output.data = {"text/html": plotly_call(output.data[PLOTLY_JSON], f"plotly-{number}")}
    # The template loads one script in its head; ours is plotly instead of RequireJS, which would hide it.
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url=PLOTLY)
    page, _ = exporter.from_notebook_node(notebook)
    for i, formula in enumerate(formulas):
        page = page.replace(_name(i), formula)
    return page


def plotly_call(figure: dict, name: str) -> str:
    """A ``div`` and the one call that draws a figure, given as plotly's json, into it."""
    # "</" would end the script early.
    data, layout = (json.dumps(figure.get(part, {})).replace("</", "<\\/") for part in ("data", "layout"))
    height = figure.get("layout", {}).get("height", 450)
    return (
        f'<div id="{name}" style="height: {height}px"></div>'
        f'<script>Plotly.newPlot("{name}", {data}, {layout}, {{"responsive": true}})</script>'
    )


def _set_aside(match: re.Match[str], formulas: list[str]) -> str:
    """Replace a formula by a name that markdown leaves alone: MathML in markdown would be mangled."""
    block, inline = match["block"], match["inline"]
    if block is None and inline is None:
        return match[0]
    formulas.append(convert(html.unescape(block or inline), display="block" if block else "inline"))
    return _name(len(formulas) - 1)


def _name(number: int) -> str:
    return f"deqflowformula{number}end"

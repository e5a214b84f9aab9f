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


_STYLE = """
body.jp-Notebook { max-width: 64rem; margin: 0 auto; box-sizing: border-box; }
.jp-OutputArea-output img { max-width: 100%; height: auto; }
.jp-RenderedMarkdown, .jp-RenderedText, .jp-InputArea-editor pre { overflow-x: auto; }
.jp-RenderedMarkdown { min-width: 0; overflow-wrap: anywhere; }
.jp-RenderedMarkdown table { display: block; width: max-content; max-width: 100%; overflow-x: auto; }
.jp-RenderedMarkdown :is(td, th) { overflow-wrap: normal; white-space: nowrap; }
math[display="block"] { overflow-x: auto; padding: .3rem 0; }
.deqflow-nav, .deqflow-failed { font: 1rem/1.5 system-ui, sans-serif; padding: .4rem .6rem; }
.deqflow-nav a { color: var(--jp-content-link-color, #0b57d0); }
.deqflow-failed { border: 2px solid #b3261e; border-radius: .4rem; overflow-wrap: anywhere; }
.deqflow-failed, .jp-RenderedText { color: var(--jp-content-font-color1); }
a:focus-visible, pre:focus-visible { outline: 3px solid; outline-offset: 2px; }
/* What JupyterLab, IPython and papermill write too faintly for their ground. */
:root { --jp-mirror-editor-operator-color: #7a1fcc; --jp-mirror-editor-number-color: #066b33; }
@media (prefers-color-scheme: light) {
  .ansi-red-fg, .ansi-red-intense-fg { color: #a11a12 !important; }
  .ansi-green-fg, .ansi-green-intense-fg { color: #00602e !important; }
  .ansi-cyan-fg, .ansi-cyan-intense-fg { color: #00575c !important; }
  .ansi-yellow-fg, .ansi-yellow-intense-fg { color: #5c4900 !important; }
  .ansi-blue-fg, .ansi-blue-intense-fg { color: #0a4bb3 !important; }
  .ansi-magenta-fg, .ansi-magenta-intense-fg { color: #8a1a7e !important; }
  .jp-RenderedMarkdown span[style*="color:red"] { color: #a11a12 !important; }
}
@media (max-width: 600px) {
  body.jp-Notebook { padding: .3rem; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none; }
  .jp-Cell { padding: .2rem; }
}
"""

_DARK = ":root { color-scheme: dark; --jp-mirror-editor-operator-color: #c99bff; }"


def to_html(notebook: nbformat.NotebookNode, title: str, error: str = "") -> str:
    """Return the page of an executed notebook; it expects :data:`PLOTLY` and the index beside itself.

    Args:
        notebook: as papermill left it.
        title: of the page.
        error: the sentence it failed with, if it did.
    """
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
    head = f"<style>{_STYLE}@media (prefers-color-scheme: dark) {{ {_dark_theme(exporter)} {_DARK} }}</style>"
    failed = f'<p class="deqflow-failed" role="alert"><b>This run failed.</b> {html.escape(error)}</p>' if error else ""
    top = f'<nav class="deqflow-nav"><a href="index.html">All reports</a></nav>{failed}'
    return page.replace("</head>", f"{head}</head>", 1).replace("<main>", f"<main>{top}", 1)


def _dark_theme(exporter: HTMLExporter) -> str:
    """JupyterLab's dark colours, as nbconvert has them."""
    environment = exporter.environment
    assert environment.loader is not None
    return environment.loader.get_source(environment, "static/theme-dark.css")[0]


def plotly_call(figure: dict, name: str) -> str:
    """A ``div`` and the one call that draws a figure, given as plotly's json, into it."""
    # "</" would end the script early.
    data, layout = (json.dumps(figure.get(part, {})).replace("</", "<\\/") for part in ("data", "layout"))
    height = figure.get("layout", {}).get("height", 450)
    title = figure.get("layout", {}).get("title", {})
    label = html.escape(re.sub("<[^>]*>", " ", title.get("text", "")) if isinstance(title, dict) else str(title))
    # Plotly's buttons can't be reached from the keyboard, so there are none; hovering needs no button.
    config = '{"responsive": true, "displayModeBar": false}'
    return (
        f'<div id="{name}" role="img" aria-label="{label or "plot"}" style="height: {height}px"></div>'
        f'<script>Plotly.newPlot("{name}", {data}, {layout}, {config})</script>'
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

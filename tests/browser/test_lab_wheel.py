"""Wide and deep outputs in a real JupyterLab: the wheel over them scrolls the notebook."""

import nbformat
import pytest
from chrome import Watch, open_page
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_lab import ERRORS, ready

FIGURE = """
import plotly.graph_objects as go
from deqflow.lab import plots
go.Figure(go.Scatter3d(x=[0, 1, 2], y=[0, 1, 0], z=[0, 0, 1]))
"""
TABLE = """
from deqflow.lab.notebook import table
table([{f"a column of numbers {i}": i / 3 for i in range(40)}] * 3)
"""
SCROLLED = "() => Math.max(...[...document.querySelectorAll('.jp-WindowedPanel-outer')].map(e => e.scrollTop))"


@pytest.fixture(scope="module")
def notebook(browser, lab_address, lab_folder):
    """The page of a notebook with a figure in space and a wide table, both run."""
    cells = [new_code_cell(FIGURE), new_code_cell(TABLE), new_markdown_cell("\n\n".join(["a line"] * 60))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), lab_folder / "wide.ipynb")
    watch = Watch((lab_address, lab_address.replace("http", "ws")))
    page = open_page(browser, watch, f"{lab_address}/lab/tree/wide.ipynb", viewport={"width": 1000, "height": 700})
    ready(page)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    ready(page)
    page.locator(".jp-OutputArea .gl-container canvas").first.wait_for()
    page.locator(".jp-OutputArea table").wait_for()
    assert page.evaluate(ERRORS) == []
    return page


@pytest.mark.parametrize("what", [".gl-container", "table"])
def test_the_wheel_over_it_scrolls_the_notebook(notebook, what):
    output = notebook.locator(f".jp-OutputArea {what}").first
    notebook.evaluate("() => document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTo(0, 0))")
    output.scroll_into_view_if_needed()
    notebook.wait_for_timeout(500)
    before, box = notebook.evaluate(SCROLLED), output.bounding_box()
    notebook.mouse.move(box["x"] + min(box["width"], 800) / 2, box["y"] + box["height"] / 2)
    notebook.mouse.wheel(0, 200)
    notebook.wait_for_timeout(500)
    assert notebook.evaluate(SCROLLED) > before + 100

"""The pages of reports in a real chromium: drawn, legible, narrow, dark, by keyboard, and without a network."""

import subprocess
import sys
import textwrap

import nbformat
import pytest
from chrome import Watch, open_page
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import expect

TEXT = """
# A page with everything

Inline $z^\\star = f(z^\\star)$, a [link](01_bad.ipynb), `code`, and a formula wider than a telephone:

$$ \\frac{\\partial L}{\\partial \\theta}
= \\frac{\\partial L}{\\partial z^\\star}
\\left(I - \\frac{\\partial f}{\\partial z^\\star}\\right)^{-1}
\\frac{\\partial f(z^\\star, \\theta)}{\\partial \\theta}
= \\sum_{k=0}^{\\infty} \\frac{\\partial L}{\\partial z^\\star}
\\left(\\frac{\\partial f}{\\partial z^\\star}\\right)^k \\frac{\\partial f(z^\\star, \\theta)}{\\partial \\theta} $$
"""
CODE = [
    """
    import sys
    import torch
    import deqflow
    from deqflow.lab import plots
    from deqflow.data.datasets import FlowSample
    from deqflow.lab.notebook import record, table
    from deqflow.solvers import Picard, Stop, solve
    from deqflow.data.synthetic import SceneConfig, SyntheticPairs
    from deqflow.lab.widgets import RunSettings, SolverPlayground
    """,
    "print('a long line of output, ' * 20); print('a warning', file=sys.stderr)",
    "table([{f'column {i}': i / 3 for i in range(14)}])",
    "plots.traces({'cosine': solve(torch.cos, torch.ones(1, 2), Picard(), Stop())}, title='A solve')",
    "plots.images({'noise': torch.rand(3, 40, 60) * 255, 'more': torch.rand(3, 40, 60) * 255})",
    """
    pairs = {"procedural": SyntheticPairs(1, config=SceneConfig(height=48, width=64))[0]}
    models = {"mini": deqflow.load("deqflow-small")}
    SolverPlayground(pairs, models, pinned=[RunSettings(pair="procedural", model="mini", solver=name)
                                            for name in ("Picard", "Anderson", "Broyden")])
    """,
    "record(error_px=0.5, a_name_that_is_rather_long_for_a_narrow_page_px=1.25)",
]
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Contrast of text against the ground it stands on (WCAG 2, relative luminance), for each element with text of its own.
FAINT = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const canvas = dark && getComputedStyle(document.documentElement).colorScheme.includes("dark") ? [18, 18, 18]
    : [255, 255, 255];
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0.5) return color;
    }
    return canvas;
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.body.querySelectorAll("*")]
    .filter(e => own(e) && e.checkVisibility() && !e.closest("svg, script, style, .js-plotly-plot"))
    .map(e => {
      const [a, b] = [luminance(channels(getComputedStyle(e).color)), luminance(ground(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + "." + e.className + ": " + e.textContent];
    })
    .filter(([ratio]) => ratio < 4.5).map(([ratio, text]) => ratio.toFixed(2) + " " + text.trim().slice(0, 80));
}"""
CONTROLS = """() => [...document.querySelectorAll("a[href], button, input, select, summary")]
  .filter(e => e.checkVisibility() && e.tabIndex >= 0)
  .map((e, i) => { e.dataset.stop = i; return i; })"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reports of a notebook with everything, and of one that fails."""
    folder = tmp_path_factory.mktemp("reports")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_markdown_cell(TEXT.strip()), *(new_code_cell(textwrap.dedent(source).strip()) for source in CODE)]
    bad = [new_markdown_cell("# One that fails"), new_code_cell("print('so far')"), new_code_cell("1 / 0")]
    for name, content in (("00_all", cells), ("01_bad", bad)):
        nbformat.write(new_notebook(cells=content, metadata=kernel), folder / f"{name}.ipynb")
    command = [sys.executable, "-m", "deqflow", "report", "--notebooks", folder, "--out", folder / "out"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "00_all passed" in run.stdout, run.stdout
    return folder / "out"


@pytest.fixture(scope="module")
def watch(folder):
    return Watch((folder.as_uri(),))


@pytest.fixture(autouse=True)
def _no_trouble(watch):
    yield
    watch.check()


@pytest.fixture(scope="module", params=["index", "00_all", "01_bad.failed"])
def page(request, browser, folder, watch):
    return open_page(browser, watch, (folder / f"{request.param}.html").as_uri())


@pytest.mark.parametrize("width", [400, 1100])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(200)  # plots follow
    assert page.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert page.evaluate(FAINT) == []


def test_every_control_is_reached_by_tab(page):
    wanted = set(page.evaluate(CONTROLS))
    reached = set()
    for _ in range(3 * len(wanted) + 20):
        page.keyboard.press("Tab")
        stop = page.evaluate("() => document.activeElement.dataset.stop ?? null")
        reached |= {int(stop)} if stop is not None else set()
    assert wanted
    assert reached == wanted


def test_plots_are_drawn_and_formulas_shown(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri())
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    assert page.locator(".js-plotly-plot").count() == 2  # a figure, and the still of the panel
    still = page.locator(".js-plotly-plot").nth(1)
    assert still.locator(".imagelayer image, .im image").count() == 3
    assert still.locator(".hm image, .heatmaplayer image").count() == 3
    assert page.locator("math").count() == 2
    for formula in page.locator("math").all():
        assert formula.bounding_box()["width"] > 20
    assert page.locator("math mfrac").count() == 7
    assert page.locator(".jp-OutputArea-output img").count() == 1


def test_pages_are_light(folder):
    for page in folder.glob("*.html"):
        assert page.stat().st_size < 3e6


def test_the_index_leads_to_each_page_and_back(browser, folder, watch):
    page = open_page(browser, watch, (folder / "index.html").as_uri())
    page.get_by_role("link", name="One that fails").click()
    expect(page.get_by_role("alert")).to_contain_text("ZeroDivisionError")
    page.get_by_role("link", name="All reports").click()
    page.get_by_role("link", name="A page with everything").click()
    expect(page.get_by_role("heading", name="A page with everything")).to_be_visible()

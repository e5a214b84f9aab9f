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

## Formulas

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
    "table([{f'rathermeasured {i}': i / 3 for i in range(14)}])",
    "plots.traces({'cosine': solve(torch.cos, torch.ones(1, 2), Picard(), Stop())}, title='A solve')",
    """
    import numpy as np
    import plotly.graph_objects as go
    walk = np.random.default_rng(0).normal(size=(3, 40)).cumsum(1)
    go.Figure(go.Scatter3d(x=walk[0], y=walk[1], z=walk[2], mode="lines"))
    """,
    "plots.images({'noise': torch.rand(3, 40, 60) * 255, 'more': torch.rand(3, 40, 60) * 255})",
    """
    pairs = {"procedural": SyntheticPairs(1, config=SceneConfig(height=48, width=64))[0]}
    models = {"mini": deqflow.load("deqflow-small")}
    SolverPlayground(pairs, models, pinned=[RunSettings(pair="procedural", model="mini", solver=name)
                                            for name in ("Picard", "Anderson", "Broyden")])
    """,
    "record(error_px=0.5, a_name_that_is_rather_long_for_a_narrow_page_px=1.25)",
]
CORNER = """image => {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(1, 1, 1, 1).data[3];
}"""
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
    cells[-1].metadata["tags"] = ["machinery"]
    cells.insert(-1, new_markdown_cell("## The end\n\n" + "A line of text. " * 400))
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
    assert page.locator(".js-plotly-plot").count() == 3  # a figure, one in space, and the still of the panel
    still = page.locator(".js-plotly-plot").nth(2)
    assert still.locator(".imagelayer image, .im image").count() == 3
    assert still.locator(".hm image, .heatmaplayer image").count() == 3
    assert page.locator("math").count() == 2
    for formula in page.locator("math").all():
        assert formula.bounding_box()["width"] > 20
    assert page.locator("math mfrac").count() == 7
    assert page.locator(".jp-OutputArea-output img").count() == 1


def test_one_switch_shows_the_code_of_the_page_and_is_remembered(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri())
    code = page.locator("details.code .highlight")
    assert code.count() == len(CODE)
    expect(code.first).to_be_hidden()
    page.locator("details.code summary").first.click()  # one cell alone
    expect(code.first).to_be_visible()
    expect(code.nth(1)).to_be_hidden()
    page.get_by_role("button", name="Show code").click()
    expect(code.nth(1)).to_be_visible()
    expect(code.last).to_be_hidden()  # in the machinery, which is folded whole
    page.reload()
    expect(code.nth(1)).to_be_visible()
    page.get_by_role("button", name="Hide code").click()
    expect(code.nth(1)).to_be_hidden()


def test_where_it_failed_the_code_is_open(browser, folder, watch):
    page = open_page(browser, watch, (folder / "01_bad.failed.html").as_uri())
    expect(page.get_by_text("1 / 0", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Show code").click()
    page.get_by_role("button", name="Hide code").click()
    expect(page.get_by_text("1 / 0", exact=True).first).to_be_visible()


def test_contents_stand_beside_a_wide_page_and_above_a_narrow_one(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": 1280, "height": 800})
    contents, text = page.locator(".contents"), page.locator("main")
    assert contents.bounding_box()["x"] + contents.bounding_box()["width"] < text.bounding_box()["x"]
    assert page.locator(".contents a").all_text_contents() == ["Formulas", "The end"]
    page.get_by_role("link", name="The end").click()
    expect(page.get_by_role("heading", name="The end")).to_be_in_viewport()
    assert page.locator(".contents a[aria-current]").text_content() == "The end"
    assert contents.bounding_box()["y"] >= 0  # it stays in view
    page.set_viewport_size({"width": 400, "height": 800})
    assert contents.bounding_box()["y"] + contents.bounding_box()["height"] <= text.bounding_box()["y"]


def test_wide_tables_scroll_inside_themselves(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": 900, "height": 800})
    table = page.locator("main table").first
    inside, outside = table.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert inside > outside
    assert page.evaluate(OVERFLOW) <= 0
    table.evaluate("e => e.scrollTo(1000, 0)")
    first = table.locator("th").first.bounding_box()
    assert first["x"] == pytest.approx(table.bounding_box()["x"], abs=1)  # the first column stays


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_has_the_ground_of_its_page_and_legible_text(browser, folder, watch, scheme):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), color_scheme=scheme)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[scheme]
    plot = page.locator(".js-plotly-plot").first
    assert plot.locator(".main-svg").first.evaluate("e => e.style.background") in ("rgba(0, 0, 0, 0)", "transparent")
    text = plot.locator("text").first.evaluate("e => getComputedStyle(e).fill")
    assert text == page.evaluate("() => getComputedStyle(document.body).color")
    image = page.locator(".jp-OutputArea-output img").first
    assert image.evaluate(CORNER) == 0  # transparent


def test_a_legend_leaves_room_for_the_plot_on_a_narrow_page(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": 400, "height": 800})
    page.wait_for_timeout(300)
    plots = page.locator(".js-plotly-plot")
    for plot in (plots.nth(i) for i in range(plots.count())):
        assert plot.bounding_box()["width"] <= 400
        assert plot.evaluate("e => e._fullLayout._size.w") > 250


def test_the_wheel_over_a_figure_in_space_scrolls_the_page(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": 900, "height": 800})
    scene = page.locator(".js-plotly-plot", has=page.locator(".gl-container canvas, canvas")).last
    scene.scroll_into_view_if_needed()
    box = scene.bounding_box()
    before = page.evaluate("() => scrollY")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(400)
    assert page.evaluate("() => scrollY") > before + 200


def test_a_narrow_page_shows_a_figure_in_space_from_farther_away(browser, folder, watch):
    far = """() => { const plot = [...document.querySelectorAll(".plot")].find(e => e._fullLayout.scene);
      const { x, y, z } = plot._fullLayout.scene.camera.eye; return Math.hypot(x, y, z); }"""
    away = {}
    for width in (400, 900):
        page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": width, "height": 800})
        page.wait_for_timeout(300)
        away[width] = page.evaluate(far)
    assert away[400] == pytest.approx(1.4 * away[900])


def test_words_in_the_head_of_a_table_stay_whole(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri(), viewport={"width": 400, "height": 800})
    broken = """e => { const range = document.createRange(), text = e.firstChild, word = text.data.split(" ")[0];
      range.setStart(text, 0); range.setEnd(text, word.length); return range.getClientRects().length > 1; }"""
    heads = page.locator("main th")
    assert heads.count() > 10
    assert not any(head.evaluate(broken) for head in heads.all())


def test_print_leaves_out_what_only_a_screen_needs(browser, folder, watch):
    page = open_page(browser, watch, (folder / "00_all.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    for away in (".bar", ".contents", "details.code >> nth=0", "details.books"):
        expect(page.locator(away)).to_be_hidden()
    assert page.evaluate("() => getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_pages_are_light(folder):
    for page in folder.glob("*.html"):
        assert page.stat().st_size < 3e6


def test_the_index_leads_to_each_page_and_back(browser, folder, watch):
    page = open_page(browser, watch, (folder / "index.html").as_uri())
    page.get_by_role("link", name="One that fails").click()
    expect(page.get_by_role("alert")).to_contain_text("ZeroDivisionError")
    page.get_by_role("link", name="All notebooks").click()
    page.get_by_role("link", name="A page with everything").click()
    expect(page.get_by_role("heading", name="A page with everything")).to_be_visible()

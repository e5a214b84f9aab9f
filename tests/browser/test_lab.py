"""Notebook 02 in a real JupyterLab: run, touched as a user would, and reloaded. The tests go in order, on one page."""

import cv2
import numpy as np
import pytest
from chrome import Watch, open_page
from playwright.sync_api import Locator, Page, expect

NOTEBOOK = "02_solver_playground.ipynb"
PINS = ["pin 1: Picard", "pin 2: Anderson, history 5", "pin 3: Broyden, history 5"]
READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  const kernel = session?.session?.kernel;
  return !!(session?.isReady && kernel?.connectionStatus === "connected" && kernel.status === "idle");
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
  .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === "error")
  .map(output => output.ename + ": " + output.evalue)"""

ASK = """async code => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false});
  let printed = "";
  future.onIOPub = message => { printed += message.content.text ?? ""; };
  await future.done;
  return JSON.parse(printed);
}"""


@pytest.fixture(scope="module")
def lab(browser, lab_address):
    """The page with all cells of the notebook run, and its watch."""
    watch = Watch((lab_address, lab_address.replace("http", "ws")))
    page = open_page(browser, watch, f"{lab_address}/lab/tree/{NOTEBOOK}", viewport={"width": 1280, "height": 900})
    ready(page)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    ready(page)
    return page, watch


@pytest.fixture(autouse=True)
def _no_trouble(lab):
    yield
    page, watch = lab
    watch.check()
    assert page.evaluate(ERRORS) == []


def ready(page: Page) -> None:
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.info")


def status(page: Page, text: str) -> None:
    expect(page.locator("[role=status]").first).to_contain_text(text)


def choose(page: Page, what: str, option: str) -> None:
    page.locator(".widget-dropdown", has_text=what).locator("select").first.select_option(option)


def press(page: Page, slider: str, key: str) -> None:
    handle = page.locator(".widget-slider", has_text=slider).locator(".noUi-handle").first
    handle.focus()
    handle.press(key)


def legend(page: Page) -> Locator:
    return page.locator(".js-plotly-plot").first.locator(".legendtext")


def test_it_runs_and_shows_the_panel(lab):
    page, _ = lab
    status(page, "Broyden, history 5: ")
    expect(legend(page)).to_have_text([*PINS, "Broyden, history 5"])


def test_a_slider_and_another_solver_run_again(lab):
    page, _ = lab
    press(page, "damping", "ArrowLeft")
    status(page, "Broyden, damping 0.95, history 5: ")
    choose(page, "solver", "Picard")
    status(page, "Picard, damping 0.95: ")
    expect(legend(page).last).to_have_text("Picard, damping 0.95")


def test_a_bad_choice_gets_a_sentence(lab):
    page, _ = lab
    choose(page, "pair", "your own two pictures")
    expect(page.locator("[role=alert]")).to_contain_text("Choose two pictures of one size first")


def test_two_pictures_of_ones_own(lab, tmp_path):
    page, _ = lab
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    for name, pixels in (("First", picture), ("Second", np.roll(picture, 2, 1))):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name=f"{name} picture").click()
        chooser.value.set_files(path)
    status(page, "Picard, damping 0.95: ")
    expect(page.locator(".widget-html", has_text="your own two pictures").first).to_be_visible()


def test_a_long_run_can_be_stopped(lab):
    page, _ = lab
    choose(page, "pair", "motorcycle")
    choose(page, "size", "368 px wide")
    press(page, "tolerance", "Home")
    press(page, "budget", "End")
    status(page, "Evaluation ")  # progress
    page.get_by_role("button", name="Stop").click()
    status(page, "Picard, damping 0.95: stopped after ")


def test_a_reload_keeps_the_panel(lab):
    page, _ = lab
    curves = page.evaluate(ASK, "import json; print(json.dumps([name for _, name, _ in panel._curves()]))")
    assert curves[-4:] == [*PINS, "Picard, damping 0.95"]
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    ready(page)
    page.get_by_role("button", name="Redraw").click()
    expect(legend(page)).to_have_text(curves)
    choose(page, "size", "184 px wide")  # and it is alive
    status(page, "Picard, damping 0.95: ")

"""A real chromium and a real JupyterLab."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from chrome import CHROMIUM, QUIET, REQUIRED
from playwright.sync_api import expect, sync_playwright

from deqflow.lab.reports import prepare_notebooks

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are drawn as well
}

expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong


def pytest_collection_modifyitems(items):
    """Without chromium, say how to get it."""
    if CHROMIUM or any(os.environ.get(name) for name in REQUIRED):
        return
    missing = pytest.mark.skip(reason="no chromium: install it (Debian: sudo apt-get install chromium) to run these")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(missing)


@pytest.fixture(scope="module")
def browser():
    """One chromium for a file of tests; it keeps an event loop running, which other files must not meet."""
    assert CHROMIUM, f"no chromium, and {' or '.join(REQUIRED)} asks for it: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab_address(tmp_path_factory):
    """A JupyterLab of its own, with notebook 02 of the fast profile in a folder of its own; its address."""
    folder = tmp_path_factory.mktemp("lab")
    prepare_notebooks([ROOT / "notebooks" / "02_solver_playground.ipynb"], folder, "fast")
    for name, values in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{kind}_DIR": str(folder / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", "--expose-app-in-browser"]
    environment = os.environ | places | {"PYTHONWARNINGS": "ignore"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(f"{address}/api", server, folder / "server.log")
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _wait_until_it_answers(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")

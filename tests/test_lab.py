"""A chapter in the real JupyterLab: its sliders move by arrow keys, and the pictures change."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from test_book import browser_path

from book.execute import read
from book.paths import ROOT, chapters

PICTURE = "() => document.querySelector('.jupyter-widgets img, img.widget-image')?.src"
CHANGED = f"before => ({PICTURE})() && ({PICTURE})() !== before"
ALIVE = """() => {
  const session = window.jupyterapp?.shell?.currentWidget?.context?.sessionContext;
  return session?.session?.kernel?.status === 'idle';
}"""
FLIP = "() => document.querySelector('.flipbook img')?.src"
FLIPPED = f"before => ({FLIP})() !== before"
ACTIVE = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"


def opening(folder):
    """A copy of chapter 01 up to its first live slider, which needs the renderer alone."""
    nb = read(chapters(["01"])[0])
    live = next(i for i, cell in enumerate(nb.cells) if "draw.live(" in cell.source)
    nb.cells = [c for c in nb.cells[: live + 1] if c.cell_type == "code"]
    nb.cells = [nbformat.v4.new_code_cell(c.source) for c in nb.cells]
    nbformat.write(nb, folder / "live.ipynb")


@contextlib.contextmanager
def lab(folder):
    """The address of a JupyterLab on `folder` that leaves no trace outside it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(folder / ".jupyter" / name.lower()) for name in names}
    root = [] if sys.platform == "win32" or os.geteuid() else ["--allow-root"]
    words = [
        "--no-browser",
        "--expose-app-in-browser",
        f"--port={port}",
        "--IdentityProvider.token=",
    ]
    words += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    words += ["--LabApp.news_url=None", f"--ServerApp.root_dir={folder}", *root]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *words],
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield wait(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait(30)


def wait(address, server, seconds=120):
    """The address, once the server answers there."""
    for _ in range(2 * seconds):
        assert server.poll() is None, "JupyterLab ended before it answered"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api"):
            return address
        time.sleep(0.5)
    raise TimeoutError(f"JupyterLab did not answer within {seconds} s")


@pytest.mark.browser
def test_a_slider_in_jupyterlab_moves_its_picture(tmp_path):
    executable = browser_path()
    playwright = pytest.importorskip("playwright.sync_api")
    opening(tmp_path)
    with lab(tmp_path) as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, args=["--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(180_000)  # a busy machine is no fault of the notebook
        tab.goto(f"{address}/lab/tree/live.ipynb")
        tab.wait_for_function(ALIVE)
        tab.evaluate(RUN)
        handle = tab.wait_for_selector(".noUi-handle")
        tab.wait_for_function(PICTURE)
        before = tab.evaluate(PICTURE)
        for _ in range(10):
            handle.press("ArrowRight")
        tab.wait_for_function(CHANGED, arg=before)
        flip = tab.locator(".flipbook input")
        flip.focus()
        picture, cell = tab.evaluate(FLIP), tab.evaluate(ACTIVE)
        flip.press("ArrowLeft")
        tab.wait_for_function(FLIPPED, arg=picture)
        assert tab.evaluate(ACTIVE) == cell, "the arrow key moved the notebook's own cursor"
        browser.close()

"""The explorer in JupyterLab: a user's loss by a live kernel, and the notebook opened again without one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import nbformat
import numpy as np
import pytest

from giou_repro.explorer import PRED, TARGET

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None or not find_spec("anywidget"), reason="needs a browser and anywidget")
CELL = """from giou_repro import boxes, explore, loss

@loss("mine")
def mine(pred, target):
    return (pred - target).pow(2).sum(-1) / 10

explore(["giou", "mine"], first="mine")"""


@pytest.fixture
def lab(tmp_path):
    """A server's address; its folder holds notebook.ipynb with CELL."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    book.metadata.kernelspec = dict(name="python3", display_name="Python 3")
    nbformat.write(book, tmp_path / "notebook.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={tmp_path}"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log)
    try:
        for _ in range(300):
            time.sleep(0.2)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api").close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_loss_of_ones_own_while_a_kernel_lives_and_after(lab):
    from playwright.sync_api import sync_playwright

    def opened():
        page.goto(f"{lab}/lab/tree/notebook.ipynb")
        page.get_by_text("(ipykernel) | Idle").first.wait_for(timeout=60_000)

    def after_a_step(found):
        """Press an arrow key on the prediction, wait for a text, and return value and gradient of the user's loss."""
        frame.locator("g.box").nth(1).press("ArrowLeft")
        frame.locator(".giou").get_by_text(found).wait_for()
        return row.inner_text().split()[-2:]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1200})
        opened()
        page.locator(".jp-Notebook .cm-content").first.press("Shift+Enter")
        frame = page.frame_locator("iframe[title^='The explorer']")
        row = frame.locator("tr", has_text="mine")
        row.wait_for(timeout=60_000)
        errors = np.subtract(PRED, TARGET) - (0.05, 0, 0.05, 0)
        expected = (errors**2).sum() / 10, np.linalg.norm(errors) / 5
        assert after_a_step("IoU at step 0: mine") == [f"{number:.3f}" for number in expected]
        page.locator(".jp-Notebook .cm-content").first.press("Control+s")
        page.locator(".jp-mod-dirty").first.wait_for(state="detached")
        (kernel,) = json.load(urllib.request.urlopen(f"{lab}/api/kernels"))
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/kernels/{kernel['id']}", method="DELETE"))
        opened()
        assert after_a_step("no kernel answers here") == ["–", "–"]
        assert "IoU 0.000" in frame.locator("[aria-live]").inner_text()
        browser.close()

"""JupyterLab in a browser, as `make lab` opens it: notebook 01 runs by Run All Cells; the explorer, a user's loss."""

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_server.serverapp import list_running_servers

from giou_repro.checkout import NOTEBOOKS
from giou_repro.explorer import PRED, TARGET
from giou_repro.runs import store

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def address(tmp_path):
    """The address of a server whose root is the folder tmp_path/root."""
    (tmp_path / "root").mkdir()
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("RUNTIME", "CONFIG")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command.append(f"--ServerApp.root_dir={tmp_path / 'root'}")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, env=os.environ | places, **quiet) as server:
        try:
            while not (running := list(list_running_servers(tmp_path / "RUNTIME"))):
                assert server.poll() is None
                time.sleep(0.1)
            yield "{url}lab/tree/{{}}?token={token}".format(**running[0])
        finally:
            server.terminate()


def test_outputs_stay_out_of_git(tmp_path):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    makefile = (NOTEBOOKS.parent / "Makefile").read_text()
    filtered = re.search(r"git (config filter\.nbstripout\.clean) \$\(BIN\)/(\w+)", makefile)
    git("init")
    git(*filtered[1].split(), str(Path(sys.executable).with_name(filtered[2])))
    shutil.copy(NOTEBOOKS.parent / ".gitattributes", tmp_path)
    path = tmp_path / "notebooks" / "02_loss_landscape.ipynb"
    path.parent.mkdir()
    book = nbformat.read(NOTEBOOKS / path.name, as_version=4)
    nbformat.write(book, path)
    git("add", ".")
    book.cells[1].outputs.append(nbformat.v4.new_output("stream", text="an output"))
    nbformat.write(book, path)
    assert git("diff") == "" and "an output" in path.read_text()
    book.cells[1].source += "\nchanged"
    nbformat.write(book, path)
    assert "changed" in git("diff")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_run_all_completes_a_run_and_shows_its_figures(address, tmp_path):
    from playwright.sync_api import sync_playwright

    book = nbformat.read(NOTEBOOKS / "01_metric.ipynb", as_version=4)
    given = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    given.source += f"\nn_pairs, losses, run_dir = 1000, ['giou'], {str(tmp_path / 'run')!r}"
    nbformat.write(book, tmp_path / "root" / "01_metric.ipynb")
    elsewhere = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(250_000)
        page.on("request", lambda request: None if "//localhost" in request.url else elsewhere.append(request.url))
        page.goto(address.format("01_metric.ipynb"))
        page.get_by_role("heading", name="Is a smaller distance a better box?").wait_for()
        page.get_by_text("(ipykernel) | Idle").first.wait_for()  # JupyterLab runs no cell before
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_text(f"results in {tmp_path / 'run'}").wait_for()
        assert page.locator(".jp-OutputArea-output img").count() >= 6
        browser.close()
    assert store.Run(tmp_path / "run").complete
    assert [url for url in elsewhere if url.startswith("http")] == []


MINE = """from giou_repro import explore, loss

@loss("mine")
def mine(pred, target):
    return (pred - target).pow(2).sum(-1) / 10

explore(["giou", "mine"], first="mine")"""


@pytest.mark.skipif(BROWSER is None or not find_spec("anywidget"), reason="needs a browser and anywidget")
def test_explorer_shows_a_users_loss_while_a_kernel_lives_and_after(address, tmp_path):
    from playwright.sync_api import sync_playwright

    def after_a_step(found, value):
        """Press an arrow key on the prediction, wait for a text and a user's loss; its value and gradient."""
        frame.locator("g.box").nth(1).press("ArrowLeft")
        frame.locator(".giou").get_by_text(found).wait_for()
        row.filter(has_text=value).wait_for()
        return row.inner_text().split()[-2:]

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MINE)])
    book.metadata.kernelspec = dict(name="python3", display_name="Python 3")  # or else JupyterLab asks
    nbformat.write(book, tmp_path / "root" / "mine.ipynb")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address.format("mine.ipynb"))
        frame = page.frame_locator("iframe[title^='The explorer']")
        row = frame.locator("tr", has_text="mine")
        page.get_by_text("(ipykernel) | Idle").first.wait_for()
        page.locator(".jp-Notebook .cm-content").first.press("Shift+Enter")
        row.wait_for()
        error = np.subtract(PRED, TARGET) - (0.05, 0, 0.05, 0)
        expected = [f"{number:.3f}" for number in ((error**2).sum() / 10, np.linalg.norm(error) / 5)]
        assert after_a_step("IoU at step 0: mine", expected[0]) == expected
        page.locator(".jp-Notebook .cm-content").first.press("Control+s")
        page.locator(".jp-mod-dirty").first.wait_for(state="detached")
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Shut Down Kernel", exact=True).click()
        page.get_by_text("No Kernel").first.wait_for()
        page.reload()
        assert after_a_step("no kernel answers here", "–") == ["–", "–"]
        assert "IoU 0.000" in frame.locator("[aria-live]").inner_text()
        browser.close()

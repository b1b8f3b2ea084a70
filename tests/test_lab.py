"""JupyterLab in a browser, as `make lab` opens it: notebook 01 runs by Run All Cells."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_server.serverapp import list_running_servers

from giou_repro.checkout import NOTEBOOKS
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
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_text(f"results in {tmp_path / 'run'}").wait_for()
        assert page.locator(".jp-OutputArea-output img").count() >= 6
        browser.close()
    assert store.Run(tmp_path / "run").complete
    assert [url for url in elsewhere if url.startswith("http")] == []

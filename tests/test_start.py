"""Runs that a notebook begins by itself: in JupyterLab, by plain papermill, in a folder of one's own."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from giou_repro.checkout import NOTEBOOKS
from giou_repro.runs import store


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run the text of a cell, as JupyterLab would, in a project of its own; errors are raised."""
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(store, "_begun", {})
    shell = InteractiveShell.instance()
    shell.user_ns["pd"] = pd
    yield lambda text: shell.run_cell(text).raise_error()
    InteractiveShell.clear_instance()


SET_UP = """
from giou_repro.runs import store
size = 10 if size is None else size
run = store.start("n", run_dir, dict(size=size, losses=losses))
"""


@pytest.mark.parametrize("change", ["size = 20", "losses.append('l2')"])
@pytest.mark.parametrize(
    "write", ["run.save_table('t', pd.DataFrame())", "run.log(step=1)", "run.finish()", "run.check()"]
)
def test_a_parameter_that_changed_since_the_set_up_cell_is_refused(cell, change, write):
    cell("size, losses, run_dir = None, ['l1'], None")
    cell(SET_UP)
    cell(write.replace("finish", "check"))
    cell(change)
    with pytest.raises(
        store.RecordError,
        match=r"parameter '(size' was 10|losses' was \['l1'\]).*, and is now .*2.*; run the set-up cell again",
    ):
        cell(write)
    cell(SET_UP)
    cell("run.finish()")


def _ends(folder):
    return [(run.record["status"], run.record.get("error")) for run in store.runs(folder / "results")]


def test_a_set_up_cell_that_is_run_again_ends_its_former_run(cell, tmp_path):
    cell("size, losses, run_dir = 1, [], None")
    cell(SET_UP)
    cell(SET_UP)
    assert _ends(tmp_path) == [("running", None)]
    cell("run.log(step=1)")
    cell(SET_UP)
    assert _ends(tmp_path) == [("failed", "its set-up cell was run again"), ("running", None)]
    cell("run.finish()")
    cell(SET_UP)
    assert [status for status, _ in _ends(tmp_path)] == ["failed", "complete", "running"]


def test_in_a_folder_of_ones_own_too(cell, tmp_path):
    cell(f"size, losses, run_dir = 1, [], {str(tmp_path / 'mine')!r}")
    cell(SET_UP)
    cell(SET_UP)
    cell("run.log(step=1)")
    with pytest.raises(FileExistsError, match="holds a failed run of n; name another folder"):
        cell(SET_UP)


def test_a_kernel_is_for_one_notebook(cell, tmp_path):
    cell("size, losses, run_dir = 1, [], None")
    cell(SET_UP)
    cell("run.finish()")
    with pytest.raises(store.RecordError, match="this kernel has begun a run of n; give m a kernel of its own"):
        cell(SET_UP.replace('"n"', '"m"'))
    assert _ends(tmp_path) == [("complete", None)]


def test_a_kernel_that_ends_says_so(tmp_path):
    code = "import sys; from giou_repro.runs import store; store.start('n', sys.argv[1], {})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    record = store.Run(tmp_path / "run").record
    assert (record["status"], record["error"]) == ("failed", "the kernel ended before the notebook")


def test_a_killed_run_in_a_folder_of_ones_own_is_resumed_with_the_same_parameters_only(tmp_path):
    code = "import os, sys; from giou_repro.runs import store; "
    code += "store.start('n', sys.argv[1], dict(a=1)).log(step=1); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")])
    with pytest.raises(FileExistsError, match="running run of n, with other parameters"):
        store.start("n", tmp_path / "run", dict(a=2))
    run = store.start("n", tmp_path / "run", dict(a=1))
    assert (run.record["status"], len(run.record["earlier"])) == ("running", 1)
    with pytest.raises(FileExistsError, match="running run of n;"):
        store._join(store.Run(run.folder), "n", dict(a=1))


@pytest.mark.parametrize("found", [True, False])
def test_the_install_cell_installs_where_the_package_is_missing_only(found, cell, monkeypatch):
    books = [json.loads(path.read_text())["cells"] for path in NOTEBOOKS.glob("*.ipynb")]
    (text,) = {
        "".join(part["source"]) for book in books for part in book if "install" in part["metadata"].get("tags", [])
    }
    installed = []
    InteractiveShell.instance().register_magic_function(installed.append, magic_name="pip")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found or None)
    monkeypatch.setattr("builtins.input", lambda prompt: "https://code.example/me/it")
    cell(text)
    wanted = 'install --quiet "giou-repro[notebooks,detection] @ git+https://code.example/me/it"'
    assert installed == ([] if found else [wanted])

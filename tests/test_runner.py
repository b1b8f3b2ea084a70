"""The strict runner and the command line, on small notebooks and on the project's own."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell

from giou_repro.__main__ import main
from giou_repro.runs import parameters, runner, store
from giou_repro.training import loop

PARAMETERS = """\
seed = 0  # type: NonNegativeInt the seed
size = None  # type: float a size
losses = ["l1"]  # type: list[str] losses
run_dir = None  # type: str folder
"""
START = (
    "from giou_repro.runs import store\nrun = store.start('small', run_dir, dict(seed=seed, size=size, losses=losses))"
)


def notebook(path, *cells):
    """Write a small notebook: the parameters, the start, then `cells`."""
    sources = [PARAMETERS, START, *cells]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.cells[0].metadata.tags = ["parameters"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return str(path)


@pytest.fixture
def small(tmp_path):
    return notebook(tmp_path / "small.ipynb", "run.log(size=size)\nrun.finish()")


def test_a_run_is_complete_with_its_page(small, tmp_path):
    run = runner.run_notebook(small, dict(size=2.5), tmp_path / "results", progress=False)
    record = run.record
    assert record["status"] == "complete"
    assert record["given"] == {"size": 2.5}
    assert record["parameters"] == {"seed": 0, "size": 2.5, "losses": ["l1"]}
    assert {"notebook.ipynb", "notebook.html", "metrics.jsonl"} <= set(record["outputs"])
    assert json.loads((run.folder / "metrics.jsonl").read_text()) == {"size": 2.5}


def test_declared_parameters(small):
    declared = parameters.declared(small)
    assert declared["seed"].help == "the seed"
    assert declared["losses"].default == ["l1"]
    assert declared["size"].help == "a size"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(sede=1), "unknown parameter 'sede'; did you mean 'seed'"),
        (dict(seed="1"), "'seed' is '1', but input should be a valid integer"),
        (dict(seed=1.5), "'seed' is 1.5, but"),
        (dict(seed=None), "'seed' is None, but"),
        (dict(seed=True), "'seed' is True, but"),
        (dict(size="big"), "'size' is 'big', but input should be a valid number"),
        (dict(losses="giou"), "'losses' is 'giou', but input should be a valid list"),
        (dict(seed=-1), "greater than or equal to 0"),
        (dict(run_dir="/tmp/x"), "--results FOLDER"),
        (dict(losses=["giuo"]), "unknown loss 'giuo'; did you mean 'giou'"),
        (dict(losses=["no_such:mine"]), "no module 'no_such'"),
        (dict(losses=[1]), r"'losses' is \[1\], but"),
        (dict(losses=["giou", "giou"]), "losses names one loss twice: giou, giou"),
        (dict(size="None"), r"a size; None is written null\)"),
    ],
)
def test_wrong_parameters_are_refused(small, given, message):
    with pytest.raises(parameters.ParameterError, match=message):
        parameters.check(parameters.declared(small), given)


def test_right_parameters_are_taken(small):
    given = dict(seed=3, size=2, losses=["iou", "giou"])
    assert parameters.check(parameters.declared(small), given) == given


def test_refused_before_anything_is_written(small, tmp_path, capsys):
    status = main(["run", small, "-p", "sedd", "1", "--results", str(tmp_path / "results")])
    assert status == 2
    assert "did you mean 'seed'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("written", "value"), [("None", None), ("null", None), ("1e-3", 1e-3), ("2", 2.0), (".5", 0.5), ("2_000", 2000.0)]
)
def test_values_on_the_command_line_are_jsons_or_pythons(small, tmp_path, monkeypatch, written, value):
    given = []
    monkeypatch.setattr(runner, "run_notebook", lambda path, values, results: given.append(values) or sys.exit())
    with pytest.raises(SystemExit):
        main(["run", small, "-p", "size", written, "-p", "losses", "['l1']"])
    assert given == [dict(size=value, losses=["l1"])]


def test_results_that_are_not_there_are_told_before_anything_is_written(tmp_path, capsys):
    command = ["run", "06_compare_losses", "-p", "results", str(tmp_path / "nowhere"), "--results", str(tmp_path / "r")]
    assert main(command) == 2
    assert f"parameter 'results': there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/results"])
def test_results_that_cannot_be_written_are_told(small, tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    (tmp_path / "s.yaml").write_text(f"jobs: [{{notebooks: {small}}}]")
    for command in (["run", small], ["sweep", str(tmp_path / "s.yaml"), "--workers", "1"]):
        assert main([*command, "--results", str(tmp_path / folder)]) == 2
        said = capsys.readouterr().err
        assert re.search(r"cannot be used \(.*\); results go elsewhere by --results FOLDER", said), said


def test_a_notebook_runs_without_the_extras(small, without_detection, tmp_path):
    command = [sys.executable, "-m", "giou_repro", "run", small, "--results", str(tmp_path / "results")]
    subprocess.run(command, env=without_detection, capture_output=True, check=True)
    assert [run.record["status"] for run in store.runs(tmp_path / "results")] == ["complete"]


def test_a_failing_notebook_leaves_its_copy(tmp_path, capsys):
    failing = notebook(tmp_path / "failing.ipynb", "run.log(step=1)", "print(1)\n1 / 0", "run.finish()")
    assert main(["run", failing, "--results", str(tmp_path / "results")]) == 1
    (folder,) = (tmp_path / "results" / "failing").glob("[0-9]*")
    record = store.Run(folder).record
    assert record["status"] == "failed"
    assert record["error"] == "cell 5: ZeroDivisionError: division by zero"
    assert runner.last_lines(folder, 1) == "ZeroDivisionError: division by zero"
    assert "metrics.jsonl" in record["outputs"]
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in book.cells)
    assert "ZeroDivisionError" in capsys.readouterr().err


def _check_full(folder, said):
    (run,) = store.runs(folder)
    assert run.record["status"] == "failed"
    assert (
        f"no space left on the disk of {run.folder}; what was complete is kept; "
        "free space and run the same command again" in said
    )
    assert "Traceback" not in said


def test_a_full_disk_is_one_message(tmp_path, capsys):
    full = notebook(tmp_path / "full.ipynb", "raise OSError(28, 'No space left on device')")
    assert main(["run", full, "--results", str(tmp_path / "results")]) == 1
    _check_full(tmp_path / "results", capsys.readouterr().err)


def test_a_full_disk_in_a_training_is_one_message(tmp_path, capsys, monkeypatch):
    def full(config, run, sets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "train", full)
    assert main(["train", "--scale", "smoke", "--results", str(tmp_path)]) == 1
    said = capsys.readouterr()
    _check_full(tmp_path, said.err)
    assert said.out.startswith(f"05_train_detector in {tmp_path}")


def test_a_disk_that_is_full_before_the_run_is_one_message_too(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["run", "01_metric", "--scale", "smoke", "--results", str(tmp_path)]) == 1
    assert "free space and run the same command again" in capsys.readouterr().err


def test_a_notebook_that_never_finishes_its_run_is_not_complete(tmp_path):
    forgetful = notebook(tmp_path / "forgetful.ipynb", "1")
    with pytest.raises(runner.RunFailed, match=r"without run\.finish"):
        runner.run_notebook(forgetful, {}, tmp_path / "results", progress=False)
    (folder,) = (tmp_path / "results" / "forgetful").glob("[0-9]*")
    assert store.Run(folder).record["status"] == "failed"


def _start_sleeper(tmp_path):
    sleeper = notebook(
        tmp_path / "sleeper.ipynb", "import os, time\nrun.log(pid=os.getpid())\ntime.sleep(120)", "run.finish()"
    )
    command = [sys.executable, "-m", "giou_repro", "run", sleeper, "--results", str(tmp_path / "results")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        logs = list((tmp_path / "results").glob("sleeper/*/metrics.jsonl"))
        if logs and logs[0].read_text():
            return process, store.Run(logs[0].parent), json.loads(logs[0].read_text())["pid"]
        time.sleep(0.1)
    raise AssertionError("the notebook did not start")


def _ends(pid):
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_killed_run_never_says_complete_and_leaves_no_kernel(tmp_path):
    process, run, kernel = _start_sleeper(tmp_path)
    process.kill()
    process.wait()
    assert run.record["status"] == "running"
    nbformat.read(run.folder / "notebook.ipynb", as_version=4)
    assert _ends(kernel)


def test_ended_run_says_failed(tmp_path):
    process, run, kernel = _start_sleeper(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert run.record["status"] == "failed"
    assert _ends(kernel)


def _execute(tmp_path, cell, **options):
    book = notebook(tmp_path / "ends.ipynb", "print('so far', flush=True)", cell, "run.finish()")
    run = store.open_run(book, tmp_path / "results", {}, runner=True)
    with pytest.raises(runner.RunFailed) as failure:
        runner.execute(run, Path(book), {}, **options)
    return run, failure


def test_a_dead_kernel_is_no_error_of_a_cell(tmp_path):
    run, failure = _execute(
        tmp_path, "import os, time; print('the end', flush=True); time.sleep(1); os.kill(os.getpid(), 9)"
    )
    assert failure.type is runner.KernelDied
    assert run.record["error"] == "kernel died in cell 5"
    assert runner.last_lines(run.folder) == "the end"


def test_a_run_that_takes_too_long_is_ended(tmp_path):
    run, failure = _execute(tmp_path, "import time; time.sleep(100)", timeout=5)
    assert failure.type is runner.RunFailed
    assert run.record["error"].startswith("timed out after 5 s")


def test_a_whole_number_for_a_float_is_one(small):
    assert repr(parameters.check(parameters.declared(small), dict(size=2))) == "{'size': 2.0}"


def test_unknown_notebook_is_named(capsys):
    assert main(["run", "03_simulatoin"]) == 2
    assert "did you mean '03_simulation'" in capsys.readouterr().err


def test_parameters_are_listed(capsys):
    assert main(["run", "03_simulation", "--parameters"]) == 0
    assert "anchor points, 343 cases each" in capsys.readouterr().out


def test_losses_are_listed(capsys):
    assert main(["losses"]) == 0
    assert "giou        boxes" in capsys.readouterr().out


MINE = """
from giou_repro import boxes, loss

@loss('mine', label='Mine')
def mine(p, t):
    return 1 - boxes.iou(p, t) ** 2
"""
NOTEBOOKS = ["01_metric", "02_loss_landscape", "03_simulation", "04_one_box"]
CONDITIONAL = {f"figures/{name}.png" for name in ("paired", "weights", "dial", "every_loss")} | {"every_loss.csv"}


def check_outputs(record):
    """What a notebook declares is what it saved, but for what depends on parameters."""
    rest = ("metrics.jsonl", "notebook.ipynb", "notebook.html", "checkpoint.pt")
    saved = {
        name
        for name in record["outputs"]
        if name not in rest and not name.endswith(".pdf") and not name.startswith("runs/")
    }
    assert record["declared_outputs"]
    assert saved - CONDITIONAL == set(record["declared_outputs"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_with_a_users_loss_and_without_the_extras(
    name, user_module, without_detection, tmp_path, monkeypatch
):
    user_module("scratch", MINE)
    monkeypatch.setenv("PYTHONPATH", without_detection["PYTHONPATH"])  # of the kernel
    assert main(["run", name, "--scale", "smoke", "--losses", "giou,scratch:mine", "--results", str(tmp_path)]) == 0
    (folder,) = (tmp_path / name).glob("[0-9]*")
    record = store.Run(folder).record
    assert record["status"] == "complete"
    check_outputs(record)
    assert record["parameters"]["losses"] == ["giou", "mine"]
    table = dict(zip(NOTEBOOKS, ("losses", "steepness", "standings", "runs"), strict=True))[name]
    assert "mine" in (folder / f"{table}.csv").read_text()
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    streams = [
        output.text for cell in book.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert not any("Warning" in text for text in streams), streams


def test_cells_in_another_order_never_make_a_false_record(tmp_path, monkeypatch):
    (tmp_path / "notebooks").symlink_to(store.project_folder() / "notebooks")
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(store, "_begun", {})
    book = json.loads((tmp_path / "notebooks" / "01_metric.ipynb").read_text())
    _, given, set_up, *cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    shell = InteractiveShell.instance()

    def run_cells(*texts):
        for text in texts:
            shell.run_cell(text, silent=True).raise_error()

    def refused(words, *texts):
        with pytest.raises(store.RecordError, match=words):
            run_cells(*texts)

    try:
        run_cells(given + "\nn_pairs = 1000\nlosses = ['giou']", set_up)
        refused("has no figure_1.csv, .*; run all cells from", cells[-1])
        refused(
            "parameter 'losses' was .*, and is now .*; run the set-up cell again", "losses = ['l1', 'giou']", cells[0]
        )
        run_cells(set_up, *cells, cells[-1])
        (run,) = store.runs(tmp_path / "results")
        assert run.complete
        refused("is complete, and never written to again", cells[0])
        for name, sha256 in run.record["outputs"].items():
            assert hashlib.sha256((run.folder / name).read_bytes()).hexdigest() == sha256
        run_cells(set_up)
        assert [run.record["status"] for run in store.runs(tmp_path / "results")] == ["complete", "running"]
    finally:
        InteractiveShell.clear_instance()


def test_plain_papermill_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = store.project_folder() / "notebooks" / "02_loss_landscape.ipynb"
    papermill.execute_notebook(
        path, tmp_path / "out.ipynb", dict(scale="smoke", grid=5, run_dir=str(tmp_path / "run")), progress_bar=False
    )
    record = store.Run(tmp_path / "run").record
    assert record["status"] == "complete"
    assert record["parameters"]["grid"] == 5


def test_detector_notebooks_train_compare_and_report_a_users_loss(user_module, tmp_path):
    user_module("scratch", MINE)
    small = ["--scale", "smoke", "-p", "images", "8", "-p", "val_images", "4", "-p", "epochs", "1"]
    small += ["--results", str(tmp_path)]
    assert main(["train", "--loss", "l2", *small]) == 0
    assert main(["run", "05_train_detector", "-p", "loss", "scratch:mine", *small]) == 0
    where = ["-p", "results", str(tmp_path), "--results", str(tmp_path)]
    assert main(["run", "06_compare_losses", "--scale", "smoke", *where]) == 0
    (table,) = tmp_path.glob("06_compare_losses/*/detectors.csv")
    assert pd.read_csv(table).loss.tolist() == ["l2", "mine"]
    for run in store.runs(tmp_path):
        check_outputs(run.record)
    assert main(["report", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    assert "not tested<" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", [*NOTEBOOKS, "05_train_detector", "06_compare_losses", "07_report"])
def test_sources_are_clean(name):
    book = nbformat.read(store.project_folder() / "notebooks" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["install", "parameters"]
    declared = parameters.declared(store.project_folder() / "notebooks" / f"{name}.ipynb")
    assert {"scale", "seed", "run_dir"} <= set(declared)
    assert all(parameter.help for parameter in declared.values())

"""Run folders: what they say, and what is left after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from giou_repro import store


def test_a_run_explains_itself(tmp_path):
    run = store.open_run("01_metric", tmp_path / "01_metric", dict(seed=7, scale="smoke"), given=dict(seed=7))
    assert run.record["status"] == "running"
    run.save_table("table", pd.DataFrame(dict(a=[1, 2])))
    run.save_arrays("arrays", x=np.arange(3))
    run.log(step=1, loss=0.5)
    run.log(step=2, loss=0.25)
    run.finish()
    record = run.record
    assert (record["status"], record["seed"], record["given"]) == ("complete", 7, {"seed": 7})
    assert set(record["outputs"]) == {"table.csv", "arrays.npz", "metrics.jsonl"}
    assert record["outputs"]["table.csv"] == hashlib.sha256(b"a\n1\n2\n").hexdigest()
    assert [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [0.5, 0.25]
    assert record["versions"]["torch"] and record["hardware"]["cores"] >= 1 and record["commit"]


def test_run_ids_sort_by_time_and_name_the_commit(tmp_path):
    runs = [store.open_run("n", tmp_path, {}) for _ in range(5)]
    names = [run.folder.name for run in runs]
    assert names == sorted(names)
    assert len(set(names)) == 5
    assert names[0].endswith(store.git_commit()[0][:7])


def test_a_finished_run_is_never_overwritten(tmp_path):
    store.start("n", tmp_path / "here", {}).finish()
    with pytest.raises(FileExistsError, match="holds a complete run of n"):
        store.start("n", tmp_path / "here", {})


def test_a_run_of_the_runner_is_completed_by_the_runner_only(tmp_path):
    opened = store.open_run("n", tmp_path, {}, runner=True)
    joined = store.start("n", str(opened.folder), dict(seed=1))
    joined.finish()
    assert joined.record["status"] == "running"
    assert joined.record["notebook_finished"]
    assert joined.record["parameters"] == {"seed": 1}


def test_equal_figures_are_equal_bytes(tmp_path):
    run = store.open_run("n", tmp_path, {})
    contents = []
    for name in ("first", "second"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4], label="ℓ1")
        run.save_figure(name, figure)
        contents.append([(run.folder / "figures" / f"{name}.{suffix}").read_bytes() for suffix in ("png", "pdf")])
    assert contents[0] == contents[1]


WRITER = """
import sys
from giou_repro import store
run = store.open_run("n", sys.argv[1], {})
print(run.folder, flush=True)
import pandas as pd
table = pd.DataFrame(dict(a=range(20000)))
while True:
    run.save_table("table", table)
    run.update(turn=run.record.get("turn", 0) + 1)
"""


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5])
def test_killed_at_any_moment_no_file_is_half_written(tmp_path, delay):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    folder = writer.stdout.readline().strip()
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    run = store.Run(folder)
    assert run.record["status"] == "running"
    table = run.folder / "table.csv"
    assert not table.exists() or len(pd.read_csv(table)) == 20000


def _resumable(tmp_path, **parameters):
    return store.resume_or_open("n", tmp_path / "n", dict(seed=0) | parameters)


def test_equal_runs_have_equal_addresses(tmp_path):
    one = store.address("n", dict(seed=0, size=2.5, run_dir=None))
    assert one == store.address("n", dict(size=2.5, seed=0, run_dir="/elsewhere"))
    others = [
        store.address("n", dict(seed=1, size=2.5)),
        store.address("m", dict(seed=0, size=2.5)),
        store.address("n", dict(seed=0, size=2.5), ["0"]),
    ]
    assert len({one, *others}) == 4
    assert len(one) == 16
    assert int(one, 16) >= 0


def _book(path, *cells):
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=source, outputs=[]) for source in cells])))
    return path


def test_the_notebooks_cells_are_part_of_the_address_and_its_outputs_are_not(tmp_path):
    path = _book(tmp_path / "n.ipynb", "a = 1", "b = 2")
    first = store.address(str(path), {})
    book = json.loads(path.read_text())
    book["cells"][0]["outputs"] = [dict(output_type="stream", text="1")]
    path.write_text(json.dumps(book))
    assert store.address(str(path), {}) == first
    assert store.address(str(_book(path, "a = 1", "b = 3")), {}) != first


def test_a_notebook_by_name_and_by_path_is_the_same():
    path = store.project_folder() / "notebooks" / "03_simulation.ipynb"
    assert store.address("03_simulation", dict(seed=1)) == store.address(path, dict(seed=1))
    assert store.address("03_simulation", dict(seed=1)) != store.address("no_such", dict(seed=1))


def test_changed_code_is_another_address(tmp_path, monkeypatch):
    package = tmp_path / "giou_repro"
    (package / "detectors").mkdir(parents=True)
    (package / "detectors" / "one.py").write_text("a = 1")
    monkeypatch.setattr(store, "__file__", str(package / "store.py"))
    first = store.address("n", {})
    (package / "detectors" / "one.pyc").write_text("compiled")
    assert store.address("n", {}) == first
    (package / "detectors" / "one.py").write_text("a = 2")
    assert store.address("n", {}) != first


@pytest.mark.parametrize("parameters", [dict(loss="scratch:mine"), dict(losses=["iou", "scratch:mine"])], ids=["loss", "losses"])
def test_the_users_own_loss_is_part_of_the_address(user_module, parameters):
    user_module("scratch", "def mine(p, t): return 1")
    first = store.address("n", parameters)
    assert store.address("n", parameters) == first
    user_module("scratch", "def mine(p, t): return 2")
    assert store.address("n", parameters) != first


def test_a_complete_run_is_returned_as_it_is(tmp_path):
    run = _resumable(tmp_path)
    assert not run.complete
    run.save_table("table", pd.DataFrame(dict(a=[1])))
    run.close("complete")
    before = (run.folder / "run.json").read_bytes()
    again = _resumable(tmp_path)
    assert (again.folder, again.complete) == (run.folder, True)
    assert (run.folder / "run.json").read_bytes() == before
    assert _resumable(tmp_path, seed=1).folder != run.folder


def test_a_run_of_the_runner_is_found_too(tmp_path):
    run = store.open_run("n", tmp_path / "n", dict(seed=0, run_dir=None))
    run.close("complete")
    assert _resumable(tmp_path).folder == run.folder


def test_a_failed_run_goes_on_in_its_folder(tmp_path):
    run = _resumable(tmp_path)
    (run.folder / "checkpoint.pt").write_text("half way")
    run.log(step=1)
    run.update(notebook_finished=True)
    started = run.record["started"]
    run.close("failed", error="cell 3")
    again = _resumable(tmp_path)
    assert again.folder == run.folder
    assert (again.record["status"], again.record["earlier"]) == ("running", [started])
    assert not {"error", "outputs", "wall_seconds", "notebook_finished"} & set(again.record)
    assert (again.folder / "checkpoint.pt").read_text() == "half way"
    assert (again.folder / "metrics.jsonl").exists()


def test_without_a_checkpoint_metrics_begin_anew(tmp_path):
    run = _resumable(tmp_path)
    run.log(step=1)
    run.close("failed")
    assert not (_resumable(tmp_path).folder / "metrics.jsonl").exists()


HOLDER = """
import sys, time
from giou_repro import store
run = store.resume_or_open("n", sys.argv[1] + "/n", dict(seed=0))
print(run.folder, flush=True)
sys.stdin.readline()
run.close("complete")
"""


@pytest.fixture
def holder(tmp_path):
    """A process at work on the run that `_resumable` asks for, until its input is closed, and its folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_run_that_is_worked_on_is_left_alone(tmp_path, holder):
    _, folder = holder
    assert _resumable(tmp_path).folder != folder
    assert store.Run(folder).record["status"] == "running"


def test_a_killed_run_is_free_at_once(tmp_path, holder):
    process, folder = holder
    process.kill()
    process.wait()
    run = _resumable(tmp_path)
    assert run.folder == folder
    assert len(run.record["earlier"]) == 1


def test_who_waits_gets_the_complete_run_of_the_other(tmp_path, holder, capsys):
    process, folder = holder
    Timer(1, process.stdin.close).start()
    run = store.resume_or_open("n", tmp_path / "n", dict(seed=0), wait=True)
    assert (run.folder, run.complete) == (folder, True)
    assert str(folder) in capsys.readouterr().err


def test_many_at_once_open_one_run(tmp_path):
    command = [sys.executable, "-c", HOLDER.replace("dict(seed=0)", "dict(seed=0), wait=True"), str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0].splitlines()[0] for process in processes}) == 1
    (folder,) = (path for path in (tmp_path / "n").iterdir() if path.is_dir())
    assert store.Run(folder).complete


def test_runs_are_those_of_a_notebook_oldest_first_without_published_and_damaged_ones(tmp_path):
    made = [store.open_run(name, tmp_path / name, dict(seed=seed)) for seed, name in enumerate(("b", "a", "b"))]
    made[0].save_table("table", pd.DataFrame(dict(a=[1, 2])))
    made[0].close("complete")
    store.open_run("b", tmp_path / "published", {})
    assert [run.parameters["seed"] for run in store.runs(tmp_path)] == [0, 1, 2]
    assert [run.parameters["seed"] for run in store.runs(tmp_path, "b")] == [0, 2]
    (run,) = store.runs(tmp_path, "b", "complete")
    assert run.table("table").a.tolist() == [1, 2]
    for name, text in (("cut", "{"), ("list", "[]"), ("foreign", '{"status": "complete"}')):
        (tmp_path / "b" / name).mkdir()
        (tmp_path / "b" / name / "run.json").write_text(text)
    with pytest.warns(UserWarning, match=r"b/cut/run.json") as warned:
        assert len(store.runs(tmp_path)) == 3
    assert len(warned) == 3

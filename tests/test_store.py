"""Run folders: what they say, and what is left after a kill."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from threading import Timer

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from giou_repro.runs import machine, store
from giou_repro.runs.machine import git_commit


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
    assert names[0].endswith(git_commit()[0][:7])


def test_a_run_stays_where_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = store.start("n", "relative", {})
    monkeypatch.chdir("/")
    run.finish()
    assert store.Run(tmp_path / "relative").complete


def test_the_commit_is_of_this_checkout_or_unknown(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "own"):
        subprocess.run(["git", "init", "-q", folder], check=True)
        commit = [
            "git",
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            folder.name,
        ]
        subprocess.run(commit, cwd=folder, check=True)
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path / "own")
    own, dirty = git_commit()
    assert (len(own), dirty) == (40, False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_commit()[0] == own
    shutil.rmtree(tmp_path / "own" / ".git")
    assert git_commit() == ("unknown", None)
    (tmp_path / "own" / ".git").mkdir()  # a broken one
    assert git_commit() == ("unknown", None)


def test_a_finished_run_is_never_overwritten(tmp_path):
    store.start("n", tmp_path / "here", {}).finish()
    with pytest.raises(FileExistsError, match="holds a complete run of n"):
        store.start("n", tmp_path / "here", {})


@pytest.mark.parametrize("name", ["notes.txt", ".env"])
def test_a_folder_with_files_of_ones_own_does_not_become_a_run(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds files that are no run's"):
        store.start("n", tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_without_a_declared_output_is_not_complete(tmp_path):
    run = store.start("n", tmp_path / "run", {}, ("one.csv", "figures/two.png"))
    run.save_table("one", pd.DataFrame())
    for ending in (run.finish, lambda: run.close("complete")):
        with pytest.raises(
            store.RecordError, match=r"has no figures/two\.png yet; run all cells from the set-up cell on"
        ):
            ending()
    assert run.record["status"] == "running"
    run.save_figure("two", Figure())
    run.finish()
    assert run.complete


@pytest.mark.parametrize("status", ["complete", "failed"])
@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.save_table("table", pd.DataFrame(dict(a=[2]))),
        lambda run: run.save_arrays("arrays", x=np.arange(3)),
        lambda run: run.save_figure("figure", Figure()),
        lambda run: run.log(step=1),
        lambda run: run.update(seed=1),
    ],
    ids=["table", "arrays", "figure", "log", "update"],
)
def test_a_run_that_has_ended_is_never_written_to_again(tmp_path, status, write):
    run = store.start("n", tmp_path / "run", {})
    run.save_table("table", pd.DataFrame(dict(a=[1])))
    run.close(status)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(store.RecordError, match=f"is {status}, and never written to again; run the set-up cell again"):
        write(run)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_to_finish_again_changes_nothing(tmp_path, capsys, monkeypatch):
    run = store.start("n", tmp_path / "run", {})
    run.finish()
    before = (run.folder / "run.json").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    run.finish()
    assert (run.folder / "run.json").read_bytes() == before
    assert capsys.readouterr().out == f"results in {run.folder}\n" * 2


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
from giou_repro.runs import store
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
    return store.open_run("n", tmp_path / "n", dict(seed=0) | parameters, resume=True)


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
    run.save_table("table", pd.DataFrame())
    run.update(notebook_finished=True)
    started = run.record["started"]
    run.close("failed", error="cell 3")
    again = _resumable(tmp_path)
    assert again.folder == run.folder
    assert (again.record["status"], again.record["earlier"][0]["started"]) == ("running", started)
    assert not {"error", "outputs", "wall_seconds", "notebook_finished"} & set(again.record)
    assert (again.folder / "checkpoint.pt").read_text() == "half way"
    assert (again.folder / "metrics.jsonl").exists()
    assert not (again.folder / "table.csv").exists()


def test_the_time_of_a_run_is_that_of_its_parts(tmp_path):
    def hours_ago(run, hours):
        record = run.record
        began = datetime.fromisoformat(record["started"]) - timedelta(hours=hours)
        store.write_atomic(run.folder / "run.json", json.dumps(record | dict(started=began.isoformat())))

    run = _resumable(tmp_path)
    hours_ago(run, 4)
    run.close("failed")  # after 4 h
    run = _resumable(tmp_path)
    hours_ago(run, 3)
    for path in run.folder.iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    run._release()  # killed, an hour after its start by its last write
    run = _resumable(tmp_path)
    hours_ago(run, 0.5)
    run.close("complete")
    assert [part["seconds"] for part in run.record["earlier"]] == pytest.approx([4 * 3600, 3600], abs=10)
    assert run.record["wall_seconds"] == pytest.approx(5.5 * 3600, abs=20)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    store.write_atomic(tmp_path / "file", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failure:
        store.write_atomic(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
    assert store.is_full(failure.value)
    assert "free space and run the same command again" in store.describe(failure.value, tmp_path)
    assert store.describe(ValueError("a"), tmp_path) == "ValueError: a"


def test_what_a_killed_process_had_begun_to_write_is_removed_when_its_run_goes_on(tmp_path):
    run = _resumable(tmp_path)
    (run.folder / "figures").mkdir()
    names = [".checkpoint.pt.123", "figures/.a.png.123", "checkpoint.pt", ".hidden"]
    for name in names:
        (run.folder / name).touch()
    run._release()
    assert _resumable(tmp_path).folder == run.folder
    assert [(run.folder / name).exists() for name in names] == [False, False, True, True]


def test_without_a_checkpoint_metrics_begin_anew(tmp_path):
    run = _resumable(tmp_path)
    run.log(step=1)
    run.close("failed")
    assert not (_resumable(tmp_path).folder / "metrics.jsonl").exists()


HOLDER = """
import sys, time
from giou_repro.runs import store
run = store.open_run("n", sys.argv[1] + "/n", dict(seed=0), resume=True)
print(run.folder, flush=True)
sys.stdin.readline()
run.close("complete")
"""


@pytest.fixture
def holder(tmp_path):
    """A process at work on the run that `_resumable` asks for, until its input is closed, and its folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_killed_run_is_free_at_once(tmp_path, holder):
    process, folder = holder
    process.kill()
    process.wait()
    run = _resumable(tmp_path)
    assert run.folder == folder
    assert len(run.record["earlier"]) == 1


def test_who_waits_gets_the_complete_run_of_the_other(tmp_path, holder, capsys):
    process, folder = holder
    record = (folder / "run.json").read_bytes()

    meanwhile = []

    def end():
        meanwhile.append((folder / "run.json").read_bytes())
        process.stdin.close()

    Timer(1, end).start()
    run = _resumable(tmp_path)
    assert meanwhile == [record]  # who waits leaves it alone
    assert (run.folder, run.complete) == (folder, True)
    assert str(folder) in capsys.readouterr().err


def test_many_at_once_open_one_run(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
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

"""Run folders: what they say, and what is left after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

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

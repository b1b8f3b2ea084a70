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
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure

from giou_repro.runs import address as addresses
from giou_repro.runs import store
from giou_repro.runs.address import address
from giou_repro.runs.files import project_folder
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


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run the text of a cell, as JupyterLab would, in a project of its own; errors are raised."""
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    shell = InteractiveShell.instance()
    shell.user_ns["pd"] = pd
    yield lambda text: shell.run_cell(text).raise_error()
    InteractiveShell.clear_instance()
    store._begun.clear()


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


def test_equal_runs_have_equal_addresses(tmp_path):
    one = address("n", dict(seed=0, size=2.5, run_dir=None))
    assert one == address("n", dict(size=2.5, seed=0, run_dir="/elsewhere"))
    others = [
        address("n", dict(seed=1, size=2.5)),
        address("m", dict(seed=0, size=2.5)),
        address("n", dict(seed=0, size=2.5), ["0"]),
    ]
    assert len({one, *others}) == 4
    assert len(one) == 16
    assert int(one, 16) >= 0


def _book(path, *cells):
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=source, outputs=[]) for source in cells])))
    return path


def test_the_notebooks_cells_are_part_of_the_address_and_its_outputs_are_not(tmp_path):
    path = _book(tmp_path / "n.ipynb", "a = 1", "b = 2")
    first = address(str(path), {})
    book = json.loads(path.read_text())
    book["cells"][0]["outputs"] = [dict(output_type="stream", text="1")]
    path.write_text(json.dumps(book))
    assert address(str(path), {}) == first
    assert address(str(_book(path, "a = 1", "b = 3")), {}) != first


def test_a_notebook_by_name_and_by_path_is_the_same():
    path = project_folder() / "notebooks" / "03_simulation.ipynb"
    assert address("03_simulation", dict(seed=1)) == address(path, dict(seed=1))
    assert address("03_simulation", dict(seed=1)) != address("no_such", dict(seed=1))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, whose sources addresses cover instead of the package's own."""
    copied = shutil.copytree(addresses.PACKAGE, tmp_path / "giou_repro", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(addresses, "PACKAGE", copied)
    return copied


NOTEBOOKS = [path.stem for path in sorted((project_folder() / "notebooks").glob("*.ipynb"))]


def _changed(package, file):
    """The notebooks whose address another line in a file of the package changes."""
    before = {name: address(name, {}) for name in NOTEBOOKS}
    (package / file).write_text((package / file).read_text() + "\n# another line")
    return {name for name in NOTEBOOKS if address(name, {}) != before[name]}


@pytest.mark.parametrize(
    ("file", "notebooks"),
    [
        ("boxes.py", set(NOTEBOOKS)),
        ("report/claims.py", {"07_report"}),
        ("report/claims.toml", {"07_report"}),
        ("simulation/compiled.py", {"03_simulation", "07_report"}),
        ("detectors/yolov3.py", {"05_train_detector"}),
        ("runs/doctor.py", {"07_report"}),  # which starts a run of its own where it has no executed copy
        ("runs/places.py", set()),
        ("__main__.py", set()),
    ],
)
def test_an_address_covers_the_code_that_the_notebook_imports_and_no_other(package, file, notebooks):
    changed = _changed(package, file)
    assert notebooks <= changed <= notebooks | {"04_one_box"}


def test_the_style_of_figures_counts_where_figures_are_drawn(package):
    style = next(package.rglob("*.mplstyle")).relative_to(package)
    assert {"01_metric", "02_loss_landscape", "03_simulation", "05_train_detector"} <= _changed(package, style)


def test_imports_in_functions_and_after_magics_count(package, tmp_path):
    path = _book(tmp_path / "n.ipynb", "%matplotlib inline\ndef f():\n    from giou_repro import polygons", "no Python")
    first = address(path, {})
    (package / "polygons.py").write_text("a = 2")
    assert address(path, {}) != first


@pytest.mark.parametrize(
    "parameters", [dict(loss="scratch:mine"), dict(losses=["iou", "scratch:mine"])], ids=["loss", "losses"]
)
def test_the_users_own_loss_is_part_of_the_address(user_module, parameters):
    user_module("scratch", "import helper\ndef mine(p, t): return 1")
    user_module("helper", "a = 1")
    user_module("unrelated", "a = 1")
    first = address("n", parameters)
    user_module("unrelated", "a = 2")
    assert address("n", parameters) == first
    user_module("helper", "a = 2")
    second = address("n", parameters)
    user_module("scratch", "import helper\ndef mine(p, t): return 2")
    assert len({first, second, address("n", parameters)}) == 3


def test_of_a_users_package_what_it_imports_counts(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("__init__", ""), ("losses", "from . import helper"), ("helper", "a = 1"), ("other", "a = 1")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    first = address("n", dict(loss="mine.losses:one"))
    (folder / "other.py").write_text("a = 2")
    assert address("n", dict(loss="mine.losses:one")) == first
    (folder / "helper.py").write_text("a = 2")
    assert address("n", dict(loss="mine.losses:one")) != first


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


def test_what_killed_processes_had_begun_to_write_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    killed, held = (store.open_run("n", tmp_path / "n", dict(seed=seed)) for seed in (0, 1))
    killed._release()
    names = [
        f".checkpoint.pt.{dead.pid}",
        f"figures/.a.png.{dead.pid}",
        f".table.csv.{os.getpid()}",
        ".hidden",
        ".notes.txt",
        "shown.csv.1",
    ]
    for run in (killed, held):
        (run.folder / "figures").mkdir()
        for name in names:
            (run.folder / name).touch()
    store.open_run("n", tmp_path / "n", {})
    assert [(killed.folder / name).exists() for name in names] == [False, False, False, True, True, True]
    assert all((held.folder / name).exists() for name in names)


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, their annotations and their list."""
    for name, text in (
        ("a.jpg", "ab"),
        ("b.PNG", "abc"),
        ("a.xml", "<x>1</x>"),
        ("train.txt", "a"),
        ("notes.csv", "1"),
    ):
        path = tmp_path / "data" / "bccd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path.parent


def _address(folder):
    return address("n", dict(dataset=str(folder)))


def test_results_within_the_data_set_are_not_its_contents(pictures):
    results = pictures / "results" / "n"
    run = store.open_run("n", results, dict(dataset=str(pictures)), resume=True)
    run.save_figure("figure", Figure())
    (results.parent / "report.html").touch()
    run.close("complete")
    assert store.open_run("n", results, dict(dataset=str(pictures)), resume=True).complete


def test_a_data_set_is_known_by_its_contents_wherever_and_since_when_it_is_there(pictures, tmp_path, monkeypatch):
    first = _address(pictures)
    copied = shutil.copytree(pictures, tmp_path / "elsewhere" / "bccd", copy_function=shutil.copyfile)
    os.utime(copied / "a.jpg", (0, 0))
    assert _address(copied) == first
    monkeypatch.chdir(copied.parent)
    assert _address("bccd") == first
    (copied / "a.xml").write_text("<x>2</x>")
    assert _address(copied) != first
    assert _address(shutil.copytree(pictures, tmp_path / "renamed")) != first


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [("a.jpg", "abcd", True), ("c.xml", "", True), ("notes.csv", "2", False), (".b.xml", "", False)],
)
def test_what_of_a_data_set_counts(pictures, name, text, counts):
    first = _address(pictures)
    (pictures / name).write_text(text)
    assert (_address(pictures) != first) == counts


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


def test_a_record_from_before_has_its_notebook_under_todays_name(tmp_path):
    run = store.open_run("04_train_detector", tmp_path / "04_train_detector", {})
    assert '"notebook": "04_train_detector"' in (run.folder / "run.json").read_text()
    assert [found.record["notebook"] for found in store.runs(tmp_path, "05_train_detector")] == ["05_train_detector"]

"""Sweeps: the file, the cells, what is skipped, what fails, and what any kill leaves over."""

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
import psutil
import pytest
import yaml

from giou_repro.__main__ import main
from giou_repro.registry import LOSSES
from giou_repro.runs import places, store, sweepfile
from giou_repro.runs.address import address

PARAMETERS = """\
scale = "laptop"  # type: str its size
seed = 0  # type: NonNegativeInt the seed
loss = "giou"  # type: str a loss
size = 1.0  # type: float a size
text = ""  # type: str a text
results = None  # type: str where runs are
run_dir = None  # type: str folder
"""
START = "import os, time\nfrom pathlib import Path\nfrom giou_repro.runs import store\nrun = store.Run(run_dir)"


def notebook(path, *cells):
    """Write a small notebook: parameters, then `cells`; it does without torch, so that a kernel starts fast."""
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in [PARAMETERS, START, *cells, "run.finish()"]]
    )
    book.cells[0].metadata.tags = ["parameters"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return str(path)


def sweep_file(path, *jobs, **entries):
    path.write_text(yaml.safe_dump(dict(jobs=list(jobs)) | entries, sort_keys=False))
    return str(path)


@pytest.fixture
def small(tmp_path):
    return notebook(tmp_path / "small.ipynb")


# ---- the file and its cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [", "while parsing"),
        ("- 1", "a sweep file has keys, at least jobs"),
        ("name: a", "jobs: Field required"),
        ("jobs: []", "jobs: List should have at least 1 item"),
        ("jobs: [{}]", r"jobs\[0\].notebooks: Field required"),
        ("jobs: [{notebooks: [a], sedes: [1]}]", r"jobs\[0\].sedes: unknown key 'sedes'; did you mean 'seeds'\?"),
        ("jobs: [{notebooks: a, seeds: [0, x]}]", r"jobs\[0\].seeds\[1\]: Input should be a valid integer"),
        ("jobs: [{notebooks: a, grid: {loss: giou}}]", r"jobs\[0\].grid.loss: Input should be a valid list"),
        ("jobs: [{notebooks: a, after: some}]", r"jobs\[0\].after: Input should be 'all'"),
        ("jobs: [{notebooks: a, gpus: 2}]", r"jobs\[0\].gpus: Input should be 0 or 1"),
        ("{jobs: [{notebooks: a}], timeout: soon}", "timeout: 'soon' is not a time; write 90s, 30m, 12h or 2d"),
        ("{jobs: [{notebooks: a}], retires: 1}", "retires: unknown key 'retires'; did you mean 'retries'"),
        ("{jobs: [{notebooks: a}], name: a/b}", "name: String should match"),
    ],
)
def test_a_wrong_file_is_told_by_its_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        sweepfile.read(path)


def test_a_wrong_file_ends_with_2(tmp_path, small, capsys):
    path = sweep_file(tmp_path / "s.yaml", dict(notebooks=small), dict(notebooks=small, grid=dict(los=["l1"])))
    assert main(["sweep", path, "--results", str(tmp_path / "results")]) == 2
    assert f"jobs[1], {small}: unknown parameter 'los'; did you mean 'loss'" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800)]
)
def test_times(tmp_path, small, written, seconds):
    assert sweepfile.read(sweep_file(tmp_path / "s.yaml", dict(notebooks=small), timeout=written)).timeout == seconds


def test_numbers_of_yaml_1_2(tmp_path, small):
    (tmp_path / "s.yaml").write_text(f"jobs: [{{notebooks: {small}, grid: {{size: [1e-3, -2E+2, .5e1, 1.5]}}}}]")
    cells = sweepfile.expand(sweepfile.read(tmp_path / "s.yaml"))
    assert [cell.given["size"] for cell in cells] == [1e-3, -200.0, 5.0, 1.5]


def cells_of(tmp_path, *jobs, **options):
    return sweepfile.expand(sweepfile.read(sweep_file(tmp_path / "s.yaml", *jobs)), **options)


def test_two_losses_and_two_sizes_on_two_seeds_are_eight_cells_paired(tmp_path, small):
    cells = cells_of(
        tmp_path,
        dict(notebooks=small, grid=dict(loss=["l1", "iou"], size=[1, 2]), seeds=[0, 1], parameters=dict(scale="smoke")),
    )
    assert [cell.given["seed"] for cell in cells] == [0] * 4 + [1] * 4
    pairs = [("l1", 1), ("l1", 2), ("iou", 1), ("iou", 2)]
    assert [(cell.given["loss"], cell.given["size"]) for cell in cells[:4]] == pairs
    assert len({address(cell.notebook, cell.parameters) for cell in cells}) == 8
    assert {cell.given["scale"] for cell in cells} == {"smoke"}


def test_parameters_may_be_a_list_of_settings(tmp_path, small):
    cells = cells_of(tmp_path, dict(notebooks=small, parameters=[dict(size=1, loss="l1"), dict(size=2, loss="iou")]))
    assert [cell.label for cell in cells] == ["size=1.0 loss=l1", "size=2.0 loss=iou"]


def test_the_same_cell_is_one_run(tmp_path, small):
    cells = cells_of(
        tmp_path,
        dict(notebooks=[small, small]),
        dict(notebooks=small, parameters=dict(size=1)),
        dict(notebooks=small, seeds=[0, 1]),
    )
    assert [cell.label for cell in cells] == ["", "seed=1"]


def test_a_parameter_set_twice_is_refused(tmp_path, small):
    with pytest.raises(ValueError, match="seed is set twice"):
        cells_of(tmp_path, dict(notebooks=small, seeds=[0], grid=dict(seed=[1, 2])))


def test_the_command_line_wins_over_the_file(tmp_path, small):
    jobs = [
        dict(notebooks=small, scale="paper", grid=dict(loss=["l1", "l2", "giou"])),
        dict(notebooks=small, after="all"),
    ]
    cells = cells_of(tmp_path, *jobs, scale="smoke", losses=["ciou"], results=tmp_path)
    assert [(cell.given["scale"], cell.given.get("loss"), cell.stage) for cell in cells] == [
        ("smoke", "ciou", 0),
        ("smoke", None, 1),
    ]
    assert {cell.given["results"] for cell in cells} == {str(tmp_path)}
    with pytest.raises(ValueError, match="no job of this sweep has a parameter loss"):
        cells_of(tmp_path, dict(notebooks=small), losses=["ciou"])


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_examples_are_right(path):
    file = sweepfile.read(path)
    assert sweepfile.expand(file)


# ---- running


LONG = "l" * 200_000  # more than a command line takes
FOUND_BY_VARIABLE = """
import os, sys
sys.path.insert(0, os.environ["LIBRARY"])
from beside import power

def mine(pred, target):
    return (pred - target).abs().sum(-1) ** power
"""
DIES_ONCE = """\
marker = Path(run_dir) / "checkpoint"
if not marker.exists():
    marker.touch()
    os.kill(os.getpid(), 9)"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that was run twice: (its table after the first time, after the second, exit statuses, results)."""
    folder = tmp_path_factory.mktemp("swept")
    good = notebook(
        folder / "good.ipynb",
        "run.log(threads=os.environ['OMP_NUM_THREADS'], gpu=os.environ.get('CUDA_VISIBLE_DEVICES'), n=len(text))",
    )
    bad = notebook(folder / "bad.ipynb", "print('so far')", "1 / 0")
    fragile = notebook(folder / "fragile.ipynb", DIES_ONCE)
    summary = notebook(folder / "summary.ipynb", "assert len(list(Path(results).glob('*/*/run.json'))) == 5")
    jobs = [
        dict(notebooks=good, parameters=dict(text=LONG), seeds=[0, 1], gpus=1),
        dict(notebooks=bad, parameters=dict(loss="found_by_variable:mine")),
        dict(notebooks=fragile),
        dict(notebooks=summary, after="all"),
    ]
    (folder / "library").mkdir()
    (folder / "library" / "beside.py").write_text("power = 2")
    (folder / "found_by_variable.py").write_text(FOUND_BY_VARIABLE)
    path = sweep_file(folder / "s.yaml", *jobs, retries=1)
    statuses, tables = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_devices", lambda: ["7"])
        patch.setenv("LIBRARY", str(folder / "library"))
        patch.syspath_prepend(folder)
        for _ in range(2):
            statuses.append(main(["sweep", path, "--results", str(folder / "results"), "--workers", "2"]))
            table = pd.read_csv(folder / "results" / "sweeps" / "s.csv", keep_default_na=False)
            tables.append(table.set_index(["notebook", "parameters"]))
    LOSSES.pop("mine")
    return *tables, statuses, folder / "results"


def test_good_cells_run_and_bad_ones_fail(swept):
    first, _, statuses, _ = swept
    assert first.status.droplevel(1).to_dict() == dict(good="ran", bad="failed", fragile="ran", summary="ran")
    assert len(first) == 5
    assert statuses == [1, 1]


def test_an_error_in_a_cell_is_told_and_not_tried_again(swept):
    bad = swept[0].loc["bad"].iloc[0]
    assert bad.error == "cell 5: ZeroDivisionError: division by zero"
    assert "1 / 0" in bad.last_lines
    assert bad.attempts == 1


def test_a_dead_kernel_is_tried_again_in_its_folder(swept):
    fragile = swept[0].loc["fragile"].iloc[0]
    assert fragile.attempts == 2
    record = store.Run(fragile.run).record
    assert (record["status"], len(record["earlier"])) == ("complete", 1)


def test_several_workers_have_one_thread_each_and_a_gpu_each_for_those_that_ask(swept):
    for folder in swept[0].loc["good"].run:
        logged = json.loads((Path(folder) / "metrics.jsonl").read_text())
        assert logged == {"threads": os.environ.get("OMP_NUM_THREADS", "1"), "gpu": "7", "n": 200_000}


def test_the_same_command_skips_what_is_complete(swept):
    first, second, _, results = swept
    assert second.status.droplevel(1).to_dict() == dict.fromkeys(
        ["good", "fragile", "summary"], "complete already"
    ) | dict(bad="failed")
    assert list(second.run) == list(first.run)
    assert len(list(results.glob("*/*/run.json"))) == 5


# ---- kills

WAIT = """\
run.log(pid=os.getpid(), parent=os.getppid())
while not (Path(run_dir).parents[2] / 'go').exists(): time.sleep(0.1)"""


class Sweep:
    """A sweep whose runs wait for a file, one worker at its first; its processes."""

    def __init__(self, folder, *options, seeds=(0,)):
        path = sweep_file(folder / "s.yaml", dict(notebooks=notebook(folder / "waits.ipynb", WAIT), seeds=list(seeds)))
        self.folder, self.runs = folder, folder / "results" / "waits"
        command = f"-m giou_repro sweep {path} --results {folder / 'results'} --workers 1"
        self.command = [sys.executable, *command.split(), *options]
        self.driver = self.start()
        logged = _until(
            lambda: [
                json.loads(line) for path in self.runs.glob("*/metrics.jsonl") for line in path.read_text().splitlines()
            ]
        )[0]
        self.kernel, self.child = psutil.Process(logged["pid"]), psutil.Process(logged["parent"])
        self.worker = self.child.parent()

    def start(self):
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, *drivers):
        """Let the run go on, and wait for the drivers."""
        (self.folder / "go").touch()
        return [(driver.communicate(timeout=120), driver.returncode)[1] for driver in drivers]

    def record(self):
        """run.json of the only run there is."""
        (path,) = self.runs.glob("*/run.json")
        return json.loads(path.read_text())


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def _ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def waiting(tmp_path):
    started = []

    def start(*options, **more):
        started.append(Sweep(tmp_path, *options, **more))
        return started[0]

    yield start
    for one in started:
        one.driver.kill()
        one.driver.communicate()


def test_killed_worker(waiting):
    one = waiting()
    one.worker.kill()
    _until(lambda: _ended(one.kernel) and _ended(one.child), 5)
    assert one.finish(one.driver) == [0]
    assert (one.record()["status"], len(one.record()["earlier"])) == ("complete", 1)


def test_killed_driver_and_two_that_finish_its_work(waiting):
    one = waiting()
    one.driver.send_signal(signal.SIGKILL)
    _until(lambda: all(_ended(process) for process in (one.worker, one.child, one.kernel)), 5)
    assert one.record()["status"] == "running"
    assert one.finish(one.start(), one.start()) == [0, 0]
    assert (one.record()["status"], len(one.record()["earlier"])) == ("complete", 1)


@pytest.fixture
def cluster(tmp_path):
    """A Dask cluster of one worker, started as its users would: (the scheduler's process, its address)."""
    dask = [sys.executable, "-m", "dask"]
    command = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as scheduler:
        address = next(found[0] for line in scheduler.stderr if (found := re.search(r"tcp://\S+", line)))
        command = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
            yield scheduler, address
            worker.kill()
        scheduler.kill()


def test_killed_scheduler(waiting, cluster):
    scheduler, address = cluster
    one = waiting("--scheduler", address, seeds=[0, 1])
    scheduler.kill()
    _until(lambda: _ended(one.kernel) and _ended(one.child), 5)
    assert "scheduler is gone" in one.driver.communicate(timeout=60)[1]
    assert one.driver.returncode == 1
    assert one.record()["status"] == "running"


def test_killed_driver_of_a_cluster_that_stays(waiting, cluster):
    one = waiting("--scheduler", cluster[1])
    one.driver.kill()
    _until(lambda: _ended(one.kernel) and _ended(one.child), 5)
    assert not _ended(one.worker)
    assert one.finish(one.start()) == [0]
    assert len(one.record()["earlier"]) == 1


def test_jobs_of_a_batch_system_are_one_run_each():
    pytest.importorskip("dask_jobqueue")
    file = sweepfile.read(Path(__file__).parents[1] / "sweeps" / "slurm.yaml")
    with places._jobs(file, "slurm", 8, wanted=True) as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert "export OMP_NUM_THREADS=4" in script
    assert "--nthreads 1 --resources gpus=1" in script


def test_a_wrong_option_for_the_batch_system_is_told(tmp_path, small, capsys):
    pytest.importorskip("dask_jobqueue")
    path = sweep_file(tmp_path / "s.yaml", dict(notebooks=small), cluster=dict(memory="1 GB", waltime="1:00"))
    assert main(["sweep", path, "--cluster", "slurm", "--results", str(tmp_path / "results")]) == 2
    assert "cluster: " in capsys.readouterr().err


def test_no_scheduler_is_told(tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(places, "GRACE", 1)
    path = sweep_file(tmp_path / "s.yaml", dict(notebooks=small))
    assert main(["sweep", path, "--scheduler", "tcp://127.0.0.1:9", "--results", str(tmp_path / "results")]) == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_time_is_over(tmp_path, capsys):
    slow = notebook(tmp_path / "slow.ipynb", "time.sleep(60)")
    path = sweep_file(tmp_path / "s.yaml", dict(notebooks=slow, seeds=[0, 1]), timeout="4s")
    began = time.monotonic()
    assert main(["sweep", path, "--results", str(tmp_path / "results"), "--workers", "1"]) == 1
    assert time.monotonic() - began < 30
    assert capsys.readouterr().out.splitlines()[-2] == "2 not reached"

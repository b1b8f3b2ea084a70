"""Many runs from one file: on local processes, or on any Dask cluster.

A sweep file lists jobs; each is notebooks × parameters × seeds. Every such cell is one run, in a process of its own
under a Dask worker. The store on disk is the truth and Dask only hands out work: a cell whose run is complete is
skipped, one that was killed goes on in its folder, so the same command finishes what any kill left over. Who dies takes
its children along: a worker its run, a run its kernel.
"""

import difflib
import functools
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import dask.config
import pandas as pd
import yaml
from distributed import Client, Nanny, Reschedule, Scheduler, SpecCluster, WorkerPlugin, get_worker
from distributed.core import Status
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from tqdm import tqdm

# runner where it is needed: a worker only starts processes, and starts faster without papermill
from giou_repro.runs import (
    doctor,
    parameters,
    store,
)
from giou_repro.runs.parameters import Seed

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# whose grammar takes a second to build
CHILD = "import sys; sys.modules['rfc3987_syntax'] = None; from giou_repro.runs.sweep import child; child()"
LOOK = 0.2  # seconds between looks at a process or at Dask
GRACE = 10  # seconds a scheduler may be out of reach
CLUSTERS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class SweepError(ValueError):
    """A sweep file or option that is wrong; the message names the key."""


class SchedulerLost(RuntimeError):
    """The Dask scheduler cannot be reached any more."""


# ---- the file


def _seconds(value):
    """The seconds in 90, "90s", "30m", "12h" or "2d"."""
    written = re.fullmatch(r"\s*([\d.]+)\s*([smhd]?)\s*", str(value))
    if not written or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a time; write 90s, 30m, 12h or 2d")
    return float(written[1]) * UNITS[written[2] or "s"]


def _listed(value):
    return [value] if isinstance(value, str | dict) else value


Seconds = Annotated[PositiveFloat, BeforeValidator(_seconds)]


class Job(BaseModel, extra="forbid", frozen=True):
    """Notebooks × parameters × grid × seeds. ``after: all`` starts when every run of the jobs above has ended, and
    reads their results."""

    notebooks: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]
    parameters: Annotated[list[dict[str, Any]], Field(min_length=1), BeforeValidator(_listed)] = [{}]
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    scale: str | None = None
    after: Literal["all"] | None = None
    gpus: Literal[0, 1] = 0


class SweepFile(BaseModel, extra="forbid", frozen=True):
    """A sweep file: its jobs in order, and what holds for all of them. `cluster` are options for dask-jobqueue."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    jobs: Annotated[list[Job], Field(min_length=1)]
    scale: str | None = None
    timeout: Seconds | None = None
    run_timeout: Seconds | None = None
    retries: NonNegativeInt = 2
    workers: PositiveInt | None = None
    cluster: dict[str, Any] = {}


def read(path):
    """The SweepFile at `path`, named after the file where it gives no name. Raises SweepError, naming the key that is
    wrong."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SweepError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SweepError(f"{path}: a sweep file has keys, at least jobs; see docs/sweeps.md")
    try:
        return SweepFile(**{"name": path.stem} | {str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise SweepError(f"{path}: " + "; ".join(_problem(problem) for problem in error.errors())) from None


def _problem(problem):
    """One of pydantic's errors, as "jobs[1].seeds: …"."""
    key = re.sub(r"\.?\[", "[", ".".join(f"[{part}]" if isinstance(part, int) else part for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = (Job if "jobs" in problem["loc"] else SweepFile).model_fields
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        return f"{key}: unknown key{f'; did you mean {close[0]!r}?' if close else ''} The keys are {', '.join(known)}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


# ---- its cells


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: the notebook's path, the caller's and all parameters, how many GPUs, and its stage (0, 1, … from
    ``after: all``)."""

    notebook: Path
    given: dict
    parameters: dict
    gpus: int
    stage: int

    def address(self, inputs):
        """The address of the cell's run, which from stage 1 on covers those of the runs before it."""
        return store.address(self.notebook, self.parameters, inputs if self.stage else ())

    @property
    def said(self):
        """The caller's parameters, for people."""
        return " ".join(f"{name}={value}" for name, value in self.given.items() if name != "results")


def expand(file, scale=None, losses=None, results=None):
    """The cells of a SweepFile in their order, seeds outermost, so that what is done early is paired; each only once.

    `scale` and `losses` (a list) replace the file's; a grid over ``loss`` runs over `losses`. Where a notebook has a
    parameter ``results``, it is the folder `results`. Raises SweepError, naming the job, where a notebook or parameter
    does not exist or has the wrong type.
    """
    cells, stage = [], 0
    overrides = dict(scale=scale, losses=losses)
    for number, job in enumerate(file.jobs):
        stage += bool(job.after)
        defaults = dict(scale=job.scale or file.scale, results=results and str(results))
        for name in job.notebooks:
            try:
                path = parameters.find_notebook(name)
                declared = parameters.declared(path)
                for wanted in _combinations(job, losses):
                    given = parameters.check(
                        declared, _known(declared, defaults) | wanted | _known(declared, overrides)
                    )
                    cells.append(Cell(path, given, parameters.resolved(declared, given), job.gpus, stage))
            except (FileNotFoundError, ValueError) as error:
                raise SweepError(f"jobs[{number}], {name}: {error}") from None
    if losses and not any({"loss", "losses"} & set(cell.given) for cell in cells):
        raise SweepError("losses were given, but no job of this sweep has a parameter loss or losses")
    return list(
        {(cell.stage, str(cell.notebook), json.dumps(cell.parameters)): cell for cell in reversed(cells)}.values()
    )[::-1]


def _known(declared, values):
    return {name: value for name, value in values.items() if name in declared and value is not None}


def _combinations(job, losses):
    grid = job.grid | ({"loss": losses} if losses and "loss" in job.grid else {})
    axes = [[{"seed": seed} for seed in job.seeds] if job.seeds else [{}], job.parameters]
    axes += [[{name: value} for value in values] for name, values in grid.items()]
    for parts in itertools.product(*axes):
        names = [name for part in parts for name in part]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is set twice, in two of parameters, grid and seeds")
        yield functools.reduce(lambda one, two: one | two, parts)


# ---- one run, in a process of its own


def work(order):
    """In a Dask worker: run one cell in a process of its own, again where its kernel died; return its outcome, a dict.

    The process ends with the worker, and when nobody wants its result any more. Raises Reschedule then.
    """
    worker = get_worker()
    key = worker.get_current_task()
    for attempt in range(1, order["retries"] + 2):
        outcome = _process(order, _environment(order, worker), lambda: _wanted(worker, key)) | dict(attempts=attempt)
        if outcome["status"] != "died":
            return outcome
    return outcome | dict(status="failed")


def _wanted(worker, key):
    task = worker.state.tasks.get(key)
    return (
        worker.status in (Status.running, Status.paused)
        and task is not None
        and task.state in ("executing", "long-running")
    )


def _environment(order, worker):
    """The worker's environment, without a GPU for a run that asks for none where the worker has one for those that
    do."""
    changed = {} if order["gpus"] or "gpus" not in worker.state.total_resources else {"CUDA_VISIBLE_DEVICES": ""}
    left_out = "MALLOC_TRIM_THRESHOLD_"  # Dask's, for its own memory; it slows torch's
    return {name: value for name, value in os.environ.items() if name != left_out} | changed


def _process(order, environment, wanted):
    """What `child` makes of an order, or status "died"; killed when it is not `wanted`."""
    folder = order["cwd"] if os.path.isdir(order["cwd"]) else None
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", CHILD, json.dumps(order)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if not wanted():
                    raise Reschedule  # on another worker, if this one is closing
                time.sleep(LOOK)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
        said.seek(0)
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode == 0:
        return json.loads(lines[-1]) | dict(address=order["address"])
    error = f"the run's process ended with status {process.returncode}"  # below 0 it was killed
    return _outcome("died" if process.returncode < 0 else "failed", error=error, last_lines="\n".join(lines[-5:]))


def child():
    """The process of one run: take the order from the command line, print its outcome as JSON; end when standard input
    does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome = _carry_out(json.loads(sys.argv[1]))
    print(f"\n{json.dumps(outcome)}", flush=True)


def _end_with_parent():
    os.read(0, 1)
    os._exit(1)


def _carry_out(order):
    from giou_repro.runs import runner

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    results = Path(order["results"])
    path = parameters.find_notebook(order["notebook"])
    all_given = parameters.resolved(parameters.declared(path), order["given"])
    problem = doctor.kernel_problem() or _mismatch(order, results, store.address(path, all_given, order["inputs"]))
    if problem:
        return _outcome("failed", error=problem)
    run = store.resume_or_open(
        path, results / path.stem, all_given, order["given"], runner=True, inputs=order["inputs"], wait=True
    )
    if run.complete:
        return _outcome("complete already", run)
    try:
        runner.execute(run, path, order["given"], timeout=order["run_timeout"])
    except runner.RunFailed as error:
        status = "died" if isinstance(error, runner.KernelDied) else "failed"
        return _outcome(status, run, error=run.record["error"], last_lines=runner.last_lines(run.folder))
    return _outcome("ran", run)


def _mismatch(order, results, address):
    """Why this machine cannot do the work, or None: it must see the sweep's results folder and the code that the sweep
    began with."""
    if not (results / "sweeps").is_dir():
        return f"{results} is not the sweep's results folder on this machine; put results and code on a file system that all machines share"
    if address != order["address"]:
        return "code, notebook or loss is not what the sweep began with: it was changed since, or differs on this machine; start the sweep again"
    return None


def _outcome(status, run=None, address=None, error="", last_lines=""):
    seconds, folder = (None, "") if run is None else (run.record.get("wall_seconds"), str(run.folder))
    return dict(
        status=status, address=address, seconds=seconds, attempts=0, run=folder, error=error, last_lines=last_lines
    )


# ---- all of them


def run(file, cells, results, place):
    """Run the cells of a SweepFile at a Place and return the table of `table`, which is on disk throughout.

    Cells whose runs are complete are skipped. What Dask loses, with a worker or otherwise, is asked for again,
    `retries` times. Ends early, with the rest "not reached", at the file's timeout. Raises SchedulerLost.
    """
    ends = time.monotonic() + file.timeout if file.timeout else float("inf")
    path, outcomes = table_path(file, results), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(cells), desc=file.name, unit="run", disable=None) as bar:
        for stage in range(cells[-1].stage + 1):
            for cell, outcome in _stage(
                file, [cell for cell in cells if cell.stage == stage], results, place, ends, _inputs(outcomes)
            ):
                outcomes[cell] = outcome
                store.write_atomic(path, table(cells, outcomes).to_csv(index=False))
                if bar.disable:  # without a terminal
                    print(_line(table([cell], outcomes).iloc[0]), flush=True)
                bar.update()
                bar.set_postfix(failed=sum(outcome["status"] == "failed" for outcome in outcomes.values()))
    return table(cells, outcomes)


def table_path(file, results):
    """Where the table of a sweep is kept."""
    return Path(results) / "sweeps" / f"{file.name}.csv"


def table(cells, outcomes, otherwise="not reached"):
    """One row a cell: notebook, parameters, status, seconds, attempts, run (its folder), error, last_lines.

    The status is "ran", "complete already", "failed" or `otherwise`; attempts count kernels.
    """
    rows = [
        dict(notebook=cell.notebook.stem, parameters=cell.said) | outcomes.get(cell, _outcome(otherwise))
        for cell in cells
    ]
    return pd.DataFrame(rows).drop(columns="address")


def planned(cells, results):
    """The table as it stands before anything is run: "complete already" or "to run"."""
    outcomes = {}
    for stage in range(cells[-1].stage + 1):
        inputs = _inputs(outcomes)
        outcomes |= dict(_complete([cell for cell in cells if cell.stage == stage], results, inputs))
        if any(cell.stage == stage and cell not in outcomes for cell in cells):
            break
    return table(cells, outcomes, "to run")


def report(rows):
    """The table `rows` as text: a line a run, with the error and last lines of those that failed, and the counts."""
    lines = []
    for row in rows.itertuples():
        lines.append(_line(row))
        details = [*row.error.splitlines(), *row.last_lines.splitlines(), row.run]
        lines += [f"{'':29}{line}" for line in details if row.status == "failed" and line]
    counts = rows.status.value_counts()
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])


def _line(row):
    """A row of the table as text."""
    seconds = "" if pd.isna(row.seconds) else f"{row.seconds:.1f} s"
    return f"{row.status:<17}{seconds:>10}  {row.notebook} {row.parameters}".rstrip()


def _inputs(outcomes):
    """The addresses of the complete runs among the outcomes."""
    return sorted(
        outcome["address"] for outcome in outcomes.values() if outcome["status"] in ("ran", "complete already")
    )


def _complete(cells, results, inputs):
    """(cell, outcome) of each cell whose run is complete on disk."""
    known = {stem: store.complete_runs(Path(results) / stem) for stem in {cell.notebook.stem for cell in cells}}
    for cell in cells:
        address = cell.address(inputs)
        if address in known[cell.notebook.stem]:
            yield cell, _outcome("complete already", known[cell.notebook.stem][address], address)


def _stage(file, cells, results, place, ends, inputs):
    """Yield (cell, outcome) of each cell of one stage as it ends, until the time `ends`."""
    done = dict(_complete(cells, results, inputs))
    yield from done.items()
    waiting = deque((cell, _order(file, cell, results, inputs, place.gpus), 0) for cell in cells if cell not in done)
    asked, looks = {}, _looks(place.client)
    while (waiting or asked) and time.monotonic() < ends:
        while (
            waiting and len(asked) < place.slots()
        ):  # no more, or one would wait behind another while a worker is free
            cell, order, losses = waiting.popleft()
            key = f"{cell.notebook.stem}-{order['address']}-{uuid.uuid4().hex}"
            future = place.client.submit(work, order, key=key, resources={"gpus": 1} if order["gpus"] else None)
            asked[future] = cell, order, losses
        for future in [future for future in asked if future.status != "pending"]:
            cell, order, losses = asked.pop(future)
            if future.status == "finished":
                yield cell, future.result()
            elif losses < file.retries:
                waiting.appendleft((cell, order, losses + 1))
            else:
                reason = future.exception() if future.status == "error" else future.status
                yield cell, _outcome("failed", error=f"lost {losses + 1} times by Dask: {reason}")
        next(looks)


def _order(file, cell, results, inputs, gpus):
    """What a worker needs to know, as JSON has it."""
    own = cell.notebook.parent == store.project_folder() / "notebooks"  # which may be elsewhere on another machine
    order = dict(
        notebook=cell.notebook.stem if own else str(cell.notebook), given=cell.given, address=cell.address(inputs)
    )
    order |= dict(
        inputs=inputs if cell.stage else [],
        results=str(Path(results).resolve()),
        cwd=os.getcwd(),
        gpus=cell.gpus if gpus else 0,
    )
    return order | dict(retries=file.retries, run_timeout=file.run_timeout)


def _looks(client):
    """Wait a moment at each step, while the scheduler is there; say once where there is no worker. Raises
    SchedulerLost."""
    began = time.monotonic()
    told = False
    while True:
        away = time.monotonic()
        while client.status != "running":
            if client.status == "closed" or time.monotonic() - away > 2 * GRACE:
                raise SchedulerLost(
                    "the Dask scheduler is gone; what is complete is kept, and the same command runs the rest"
                )
            time.sleep(LOOK)
        if not told and time.monotonic() - began > 10:
            told = True
            if not _threads(client):
                print("no worker has come yet; waiting for the cluster", file=sys.stderr)
        time.sleep(LOOK)
        yield


def _threads(client):
    """How many runs the workers can take at a time; 0 while the scheduler does not answer."""
    try:
        return sum(client.nthreads().values())
    except OSError:
        return 0


# ---- where they run


@dataclass(frozen=True)
class Place:
    """A Dask Client, how many runs go at a time (a function), and whether runs that ask for a GPU get a worker with
    one."""

    client: Client
    slots: Callable
    gpus: bool


@contextmanager
def connect(file, cells, workers=None, scheduler=None, system=None):
    """The Place for the cells; everything it started ends with it.

    `scheduler` is the address of a cluster that runs; `system` "slurm", "pbs" or "lsf", whose jobs dask-jobqueue starts
    as they are needed, `workers` at most, by the options of the file's `cluster`; otherwise processes of this machine.
    Raises SweepError, SchedulerLost.
    """
    for name in ("distributed", "distributed.client"):  # dead workers and schedulers are ours to tell
        logging.getLogger(name).setLevel(logging.CRITICAL)
    wanted = any(cell.gpus for cell in cells)
    if scheduler:
        with _client(scheduler) as client:
            gpus = wanted and any(
                "gpus" in worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()
            )
            if wanted and not gpus:
                print(
                    "no worker offers a GPU (dask worker … --resources gpus=1): runs that ask for one are run anywhere",
                    file=sys.stderr,
                )
            yield Place(client, lambda: min(workers or sys.maxsize, max(1, _threads(client))), gpus)
    else:
        count = workers or file.workers or (8 if system else _cores())
        devices = _devices() if wanted and not system else []
        with (
            _queue(file, system, count, wanted) if system else _processes(min(count, len(cells)), devices) as cluster,
            _client(cluster) as client,
        ):
            if not system:
                client.register_plugin(_LeaveInterrupts())
            yield Place(client, lambda: count, wanted and bool(system or devices))


class _LeaveInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal; the driver ends the workers in order."""

    def setup(self, worker):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _client(place):
    try:
        client = Client(place, timeout=GRACE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SchedulerLost(f"no Dask scheduler answers at {place} ({error})") from None
    try:
        yield client
    finally:
        client.close(timeout=5)  # which takes back what it asked for


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processes(count, devices):
    """A cluster of `count` worker processes on this machine, with one thread each where there are several, and one GPU
    while there are."""
    threads = dict.fromkeys(THREADS) if count == 1 else dict.fromkeys(THREADS, 1)
    common = dict(
        nthreads=1, host="127.0.0.1", protocol="tcp://", memory_limit=0, silence_logs=logging.CRITICAL, dashboard=False
    )
    pinned = [dict(resources={"gpus": 1}, env={"CUDA_VISIBLE_DEVICES": device}) for device in devices]
    options = [common | (pinned[n] if n < len(pinned) else {}) for n in range(count)]
    scheduler = {"cls": Scheduler, "options": dict(host="127.0.0.1", port=0, protocol="tcp://", dashboard=False)}
    with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in threads.items()}):
        workers = {n: {"cls": Nanny, "options": chosen} for n, chosen in enumerate(options)}
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _devices():
    """The names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them."""
    import torch  # here, because most sweeps need it only in their kernels

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (
        named.split(",")[: torch.cuda.device_count()] if named else [str(n) for n in range(torch.cuda.device_count())]
    )


def _queue(file, system, count, wanted):
    """A cluster of a batch system's jobs, one worker each, as many as are needed and at most `count`."""
    try:
        import dask_jobqueue
    except ImportError:
        raise SweepError("--cluster needs dask-jobqueue; run: pip install 'giou-repro[cluster]'") from None
    options = dict(cores=1, death_timeout=20) | file.cluster | dict(processes=1)
    threads = [f"export {name}={options['cores']}" for name in THREADS]  # a job is there for one run
    options["job_script_prologue"] = [*threads, *options.get("job_script_prologue", [])]
    options["worker_extra_args"] = [
        *options.get("worker_extra_args", []),
        "--nthreads",
        "1",
        *(["--resources", "gpus=1"] if wanted else []),
    ]
    try:
        cluster = getattr(dask_jobqueue, CLUSTERS[system])(**options)
    except (TypeError, ValueError) as error:
        raise SweepError(f"cluster: {error}") from None
    cluster.adapt(minimum=0, maximum=count)
    return cluster

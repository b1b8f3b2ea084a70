"""One run of a sweep, in a process of its own under a Dask worker. The process ends with the worker, and its kernel
with the process."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from distributed import Reschedule, get_worker
from distributed.core import Status

from giou_repro.runs import doctor, parameters, store
from giou_repro.runs.address import address

# the grammar of rfc3987_syntax takes a second to build
CHILD = "import sys; sys.modules['rfc3987_syntax'] = None; from giou_repro.runs.workers import child; child()"
POLL = 0.2  # seconds between two checks of a process
OTHER_FOLDER = "is not the sweep's results folder on this machine; put results and code on a file system that all share"
OTHER_CODE = "code, notebook, data or loss is not what the sweep began with, or not here; start the sweep again"


def outcome(status: str, run: store.Run | None = None, error: str = "", **entries) -> dict:
    """What became of one run: status "ran", "complete already", "failed", "died" (another try may go well), …"""
    made = dict(seconds=run.record.get("wall_seconds"), run=str(run.folder)) if run else dict(seconds=None, run="")
    return dict(status=status, attempts=0, error=error, last_lines="") | made | entries


def work(order: dict) -> dict:
    """In a Dask worker: run one cell in a process of its own, again where its kernel died; return its outcome.

    The process ends with the worker, and when nobody wants its result any more. Raises Reschedule then.
    """
    worker = get_worker()
    key = worker.get_current_task()
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}  # Dask's
    if not order["gpus"] and "gpus" in worker.state.total_resources:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for attempt in range(1, order["retries"] + 2):
        result = _process(order, environment, lambda: _is_wanted(worker, key)) | dict(attempts=attempt)
        if result["status"] != "died":
            return result
    return result | dict(status="failed")


def _is_wanted(worker, key):
    task = worker.state.tasks.get(key)
    running = worker.status in (Status.running, Status.paused)
    return running and task is not None and task.state in ("executing", "long-running")


def _process(order, environment, is_wanted):
    """The outcome of an order from `child`, or "died"; killed when it is not wanted any more."""
    folder = order["cwd"] if os.path.isdir(order["cwd"]) else None
    with tempfile.TemporaryFile() as output:
        streams = dict(stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
        command = [sys.executable, "-c", CHILD]
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)
        try:
            with suppress(BrokenPipeError):  # where the child ended before
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
            while process.poll() is None:
                if not is_wanted():
                    raise Reschedule  # on another worker, if this one is closing
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
        output.seek(0)
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode == 0:
        return json.loads(lines[-1])
    status = "died" if process.returncode < 0 else "failed"  # below 0 it was killed
    error = f"the run's process ended with status {process.returncode}"
    return outcome(status, error=error, last_lines="\n".join(lines[-5:]))


def child() -> None:
    """The process of one run: take the order from standard input, print its outcome as JSON; end when that does."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(f"\n{json.dumps(_carry_out(order))}", flush=True)


def _end_with_parent():
    os.read(0, 1)
    os._exit(1)


def _carry_out(order):
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    results, inputs, given = Path(order["results"]), order["inputs"], order["given"]
    path = parameters.find_notebook(order["notebook"])
    values = parameters.resolved(parameters.declared(path), given)
    problem = doctor.kernel_problem()
    if not (results / "sweeps").is_dir():
        problem = f"{results} {OTHER_FOLDER}"
    elif address(path, values, inputs) != order["address"]:
        problem = OTHER_CODE
    if problem:
        return outcome("failed", error=problem)
    run = store.open_run(path, results / path.stem, values, given, runner=True, inputs=inputs, resume=True)
    if run.complete:
        return outcome("complete already", run)
    from giou_repro.runs import runner  # in the function, because papermill takes long to import

    try:
        runner.execute(run, path, given, timeout=order["run_timeout"])
    except store.RunFailed as error:
        status = "died" if isinstance(error, runner.KernelDied) else "failed"
        return outcome(status, run, run.record["error"], last_lines=runner.last_lines(run.folder))
    return outcome("ran", run)

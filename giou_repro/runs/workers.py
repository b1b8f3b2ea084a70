"""The runs of a sweep under a Dask worker, one after the other in a process of its own. The process ends with the
worker, and its kernel with the process."""

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

from distributed import Reschedule, get_worker
from distributed.core import Status

from giou_repro.runs.child import outcome

CHILD = "from giou_repro.runs.child import main; main()"
POLL = 0.2  # seconds between two checks of a process
_last = threading.local()  # of each thread of the worker: its process, what that prints, and what it is fit for


def work(order: dict) -> dict:
    """In a Dask worker: carry out one cell in a process, in another where its kernel died; return its outcome.

    The process serves the next cell too. It ends with the worker, and when nobody wants its result any more. Raises
    Reschedule then.
    """
    worker = get_worker()
    key = worker.get_current_task()
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}  # Dask's
    if not order["gpus"] and "gpus" in worker.state.total_resources:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for attempt in range(1, order["retries"] + 2):
        result = _carried_out(order, environment, lambda: _is_wanted(worker, key)) | dict(attempts=attempt)
        if result["status"] != "died":
            return result
    return result | dict(status="failed")


def _is_wanted(worker, key):
    task = worker.state.tasks.get(key)
    running = worker.status in (Status.running, Status.paused)
    return running and task is not None and task.state in ("executing", "long-running")


def _carried_out(order, environment, is_wanted):
    """The outcome of an order from `child.main`, or "died"; its process is killed when it is not wanted any more."""
    process, printed = _process(order["cwd"], order["path"], environment)
    try:
        with suppress(BrokenPipeError):  # where the process ended before
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        while not select.select([process.stdout], [], [], POLL)[0]:
            if not is_wanted():
                raise Reschedule  # on another worker, if this one is closing
        if answer := process.stdout.readline():
            return json.loads(answer)
    except BaseException:
        process.kill()
        raise
    status = "died" if process.wait() < 0 else "failed"  # below 0 it was killed
    printed.seek(0)
    lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    error = f"the run's process ended with status {process.returncode}"
    return outcome(status, error=error, last_lines="\n".join(lines[-5:]))


def _process(folder, path, environment):
    """This thread's last process where it lives and is fit for the order, else a new one; and what it prints."""
    process, printed, fit_for = getattr(_last, "process", (None, None, None))
    if process and fit_for == (folder, path, environment) and process.poll() is None:
        return process, printed
    if process:
        process.kill()
        process.wait()
    printed = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True)
    place = dict(cwd=folder if os.path.isdir(folder) else None, env=environment, start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", CHILD], **place, **streams)
    _last.process = process, printed, (folder, path, environment)
    return process, printed

"""One run of a sweep, in a process of its own under a Dask worker. The process ends with the worker, and its kernel
with the process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from distributed import Reschedule, get_worker
from distributed.core import Status

from giou_repro.runs.child import outcome

# the grammar of rfc3987_syntax takes a second to build
CHILD = "import sys; sys.modules['rfc3987_syntax'] = None; from giou_repro.runs.child import main; main()"
POLL = 0.2  # seconds between two checks of a process


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
    """The outcome of an order from `child.main`, or "died"; killed when it is not wanted any more."""
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

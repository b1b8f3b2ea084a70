"""The process that carries out runs of a sweep, one after the other. It does without Dask, so that it starts faster."""

import json
import os
import queue
import sys
import threading
from pathlib import Path

from giou_repro.runs import doctor, parameters, store
from giou_repro.runs.address import address

OTHER_FOLDER = "is not the sweep's results folder on this machine; put results and code on a file system that all share"
OTHER_CODE = "code, notebook, data or loss is not what the sweep began with, or not here; start the sweep again"


def outcome(status: str, run: store.Run | None = None, error: str = "", **entries) -> dict:
    """What became of one run: status "ran", "complete already", "failed", "died" (another try may go well), …"""
    made = dict(seconds=run.record.get("wall_seconds"), run=str(run.folder)) if run else dict(seconds=None, run="")
    return dict(status=status, attempts=0, error=error, last_lines="") | made | entries


def main() -> None:
    """Take orders from standard input, a line of JSON each, and answer each with its outcome on standard output; end
    when that input does. What runs print goes to standard error."""
    orders, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    while True:
        print(json.dumps(_carry_out(orders.get())), file=answers, flush=True)


def _read(orders):
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(1)


def _carry_out(order):
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    sys.path += [folder for folder in order["path"] if folder not in sys.path]
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

"""Many runs from one file: on local processes, or on any Dask cluster.

The store on disk is the truth and Dask only hands out work: a cell whose run is complete is skipped, one that was
killed goes on in its folder, so the same command finishes what any kill left over.
"""

import functools
import hashlib
import itertools
import os
import sys
import time
import uuid
from collections import deque
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from giou_repro.checkout import NOTEBOOKS
from giou_repro.runs import store
from giou_repro.runs.address import address, contents
from giou_repro.runs.child import outcome
from giou_repro.runs.places import Place
from giou_repro.runs.sweepfile import Cell, SweepFile
from giou_repro.runs.workers import work

COLUMNS = ["notebook", "parameters", "status", "seconds", "attempts", "run", "error", "last_lines"]
DONE = ("ran", "complete already")


def run(file: SweepFile, cells: list[Cell], results: str | Path, place: Place) -> pd.DataFrame:
    """Run the cells of a SweepFile at a Place and return the table of `table`, which is on disk throughout.

    Cells whose runs are complete are skipped. What Dask loses, with a worker or otherwise, is submitted again,
    `retries` times. Ends early, with the rest "not reached", at the file's timeout. Raises RunFailed.
    """
    ends = time.monotonic() + file.timeout if file.timeout else float("inf")
    path, outcomes, due, failed = table_path(file, results), {}, 0, 0
    bar = tqdm(total=len(cells), desc=file.name, unit="run", disable=None)
    try:
        for stage in _stages(cells):
            for cell, result in _run_stage(file, stage, results, place, ends, _inputs(outcomes)):
                outcomes[cell] = result
                if time.monotonic() >= due:  # once a second: the table of many cells takes its time
                    store.write_atomic(path, table(cells, outcomes).to_csv(index=False))
                    due = time.monotonic() + 1
                if bar.disable:  # without a terminal
                    print(_line(table([cell], outcomes).iloc[0]), flush=True)
                bar.update()
                failed += result["status"] == "failed"
                bar.set_postfix(failed=failed)
    finally:
        bar.close()
        store.write_atomic(path, table(cells, outcomes).to_csv(index=False))
    return table(cells, outcomes)


def table_path(file: SweepFile, results: str | Path) -> Path:
    """Where the table of a sweep is kept, in a folder that is made."""
    path = Path(results) / "sweeps" / f"{file.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def table(cells: list[Cell], outcomes: dict, otherwise: str = "not reached") -> pd.DataFrame:
    """One row a cell: notebook, parameters, status, seconds, attempts, run (its folder), error, last_lines.

    The status is "ran", "complete already", "failed" or `otherwise`; attempts count kernels.
    """
    rows = [
        dict(notebook=cell.notebook.stem, parameters=cell.label) | outcomes.get(cell, outcome(otherwise))
        for cell in cells
    ]
    return pd.DataFrame(rows)[COLUMNS]


def planned(cells: list[Cell], results: str | Path) -> pd.DataFrame:
    """The table as it stands before anything is run: "complete already" or "to run"."""
    outcomes = {}
    for stage in _stages(cells):
        outcomes |= _complete(_addresses(stage, _inputs(outcomes)), results)
        if any(cell not in outcomes for cell in stage):
            break
    return table(cells, outcomes, "to run")


def report(rows: pd.DataFrame) -> str:
    """The table `rows` as text: a line a run, with the error and last lines of those that failed, and the counts."""
    lines = []
    for row in rows.itertuples():
        details = [*row.error.splitlines(), *row.last_lines.splitlines(), row.run] if row.status == "failed" else []
        lines += [_line(row), *(f"{'':29}{line}" for line in details if line)]
    counts = rows.status.value_counts()
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])


def _line(row):
    """A row of the table as text."""
    seconds = "" if pd.isna(row.seconds) else f"{row.seconds:.1f} s"
    return f"{row.status:<17}{seconds:>10}  {row.notebook} {row.parameters}".rstrip()


def _stages(cells):
    """The cells that may run at the same time, as lists, in the order of the stages."""
    return [list(stage) for _, stage in itertools.groupby(cells, key=lambda cell: cell.stage)]


def _inputs(outcomes):
    """What stands for the complete runs of the stages so far, which the next one reads; nothing for the first."""
    addresses = sorted(result["address"] for result in outcomes.values() if result["status"] in DONE)
    return hashlib.sha256(" ".join(addresses).encode()).hexdigest() if addresses else ""


def _addresses(cells, inputs):
    read = functools.cache(contents)
    return {cell: address(cell.notebook, cell.parameters, inputs, read) for cell in cells}


def _complete(addresses, results):
    """Cell → outcome, of each cell (→ its address) whose run is complete on disk."""
    runs = {run.record.get("address"): run for run in store.runs(results, status="complete")}
    cells = {cell: runs[code] for cell, code in addresses.items() if code in runs}
    return {cell: outcome("complete already", run, address=addresses[cell]) for cell, run in cells.items()}


def _run_stage(file, cells, results, place, ends, inputs):
    """Yield (cell, outcome) of each cell of one stage as it ends, until the time `ends`."""
    addresses = _addresses(cells, inputs)
    complete = _complete(addresses, results)
    yield from complete.items()
    waiting = deque((cell, file.retries) for cell in cells if cell not in complete)
    submitted = {}
    while (waiting or submitted) and time.monotonic() < ends:
        while waiting and len(submitted) < place.slots():  # with more, one could wait while another worker is free
            cell, retries = waiting.popleft()
            order = _order(file, cell, results, place.gpus) | dict(address=addresses[cell], inputs=inputs)
            key = f"{cell.notebook.stem}-{addresses[cell]}-{uuid.uuid4().hex}"
            resources = {"gpus": 1} if order["gpus"] else None
            submitted[place.client.submit(work, order, key=key, resources=resources)] = cell, retries
        for future in [future for future in submitted if future.status != "pending"]:
            cell, retries = submitted.pop(future)
            if future.status == "finished":
                yield cell, future.result() | dict(address=addresses[cell])
            elif retries:
                waiting.appendleft((cell, retries - 1))
            else:
                reason = future.exception() if future.status == "error" else future.status
                yield cell, outcome("failed", error=f"lost {file.retries + 1} times by Dask: {reason}")
        place.wait()


def _order(file, cell, results, gpus):
    """What a worker needs for one cell, as JSON has it, without what it reads."""
    in_project = cell.notebook.parent == NOTEBOOKS  # elsewhere on another machine
    return dict(
        notebook=cell.notebook.stem if in_project else str(cell.notebook),
        given=cell.given,
        results=str(Path(results).resolve()),
        cwd=os.getcwd(),
        path=sys.path,  # with what the user's loss has added
        gpus=cell.gpus if gpus else 0,
        retries=file.retries,
        run_timeout=file.run_timeout,
    )

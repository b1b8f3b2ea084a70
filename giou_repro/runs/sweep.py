"""Many runs from one file: on local processes, or on any Dask cluster.

The store on disk is the truth and Dask only hands out work: a cell whose run is complete is skipped, one that was
killed goes on in its folder, so the same command finishes what any kill left over.
"""

import itertools
import os
import time
import uuid
from collections import deque
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from giou_repro.runs import store
from giou_repro.runs.places import Place
from giou_repro.runs.sweepfile import Cell, SweepFile
from giou_repro.runs.workers import outcome, work


def run(file: SweepFile, cells: list[Cell], results: str | Path, place: Place) -> pd.DataFrame:
    """Run the cells of a SweepFile at a Place and return the table of `table`, which is on disk throughout.

    Cells whose runs are complete are skipped. What Dask loses, with a worker or otherwise, is submitted again,
    `retries` times. Ends early, with the rest "not reached", at the file's timeout. Raises SchedulerLost.
    """
    ends = time.monotonic() + file.timeout if file.timeout else float("inf")
    path, outcomes = table_path(file, results), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(cells), desc=file.name, unit="run", disable=None) as bar:
        for stage in _stages(cells):
            for cell, result in _run_stage(file, stage, results, place, ends, _inputs(outcomes)):
                outcomes[cell] = result
                store.write_atomic(path, table(cells, outcomes).to_csv(index=False))
                if bar.disable:  # without a terminal
                    print(_line(table([cell], outcomes).iloc[0]), flush=True)
                bar.update()
                bar.set_postfix(failed=sum(result["status"] == "failed" for result in outcomes.values()))
    return table(cells, outcomes)


def table_path(file: SweepFile, results: str | Path) -> Path:
    """Where the table of a sweep is kept."""
    return Path(results) / "sweeps" / f"{file.name}.csv"


def table(cells: list[Cell], outcomes: dict, otherwise: str = "not reached") -> pd.DataFrame:
    """One row a cell: notebook, parameters, status, seconds, attempts, run (its folder), error, last_lines.

    The status is "ran", "complete already", "failed" or `otherwise`; attempts count kernels.
    """
    rows = [
        dict(notebook=cell.notebook.stem, parameters=cell.label) | outcomes.get(cell, outcome(otherwise))
        for cell in cells
    ]
    return pd.DataFrame(rows).drop(columns="address")


def planned(cells: list[Cell], results: str | Path) -> pd.DataFrame:
    """The table as it stands before anything is run: "complete already" or "to run"."""
    outcomes = {}
    for stage in _stages(cells):
        outcomes |= _complete(stage, results, _inputs(outcomes))
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
    """The addresses of the complete runs among the outcomes."""
    complete = [result for result in outcomes.values() if result["status"] in ("ran", "complete already")]
    return sorted(result["address"] for result in complete)


def _complete(cells, results, inputs):
    """Cell → outcome, of each cell whose run is complete on disk."""
    runs = {run.record.get("address"): run for run in store.runs(results, status="complete")}
    addresses = {cell: cell.address(inputs) for cell in cells}
    return {
        cell: outcome("complete already", runs[address], address=address)
        for cell, address in addresses.items()
        if address in runs
    }


def _run_stage(file, cells, results, place, ends, inputs):
    """Yield (cell, outcome) of each cell of one stage as it ends, until the time `ends`."""
    complete = _complete(cells, results, inputs)
    yield from complete.items()
    rest = [cell for cell in cells if cell not in complete]
    waiting = deque((cell, _order(file, cell, results, inputs, place.gpus), file.retries) for cell in rest)
    submitted = {}
    while (waiting or submitted) and time.monotonic() < ends:
        while waiting and len(submitted) < place.slots():  # with more, one could wait while another worker is free
            cell, order, retries = waiting.popleft()
            key = f"{cell.notebook.stem}-{order['address']}-{uuid.uuid4().hex}"
            resources = {"gpus": 1} if order["gpus"] else None
            submitted[place.client.submit(work, order, key=key, resources=resources)] = cell, order, retries
        for future in [future for future in submitted if future.status != "pending"]:
            cell, order, retries = submitted.pop(future)
            if future.status == "finished":
                yield cell, future.result()
            elif retries:
                waiting.appendleft((cell, order, retries - 1))
            else:
                reason = future.exception() if future.status == "error" else future.status
                yield cell, outcome("failed", error=f"lost {file.retries + 1} times by Dask: {reason}")
        place.wait()


def _order(file, cell, results, inputs, gpus):
    """What a worker needs for one cell, as JSON has it."""
    in_project = cell.notebook.parent == store.project_folder() / "notebooks"  # elsewhere on another machine
    return dict(
        notebook=cell.notebook.stem if in_project else str(cell.notebook),
        given=cell.given,
        address=cell.address(inputs),
        inputs=inputs if cell.stage else [],
        results=str(Path(results).resolve()),
        cwd=os.getcwd(),
        gpus=cell.gpus if gpus else 0,
        retries=file.retries,
        run_timeout=file.run_timeout,
    )

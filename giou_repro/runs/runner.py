"""Run one notebook through papermill into a run folder, strictly: wrong parameters are refused before a kernel starts,
the kernel must be this interpreter's, and a run is complete only when its executed copy is on disk."""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from giou_repro.runs import doctor, pages, parameters, store
from giou_repro.runs.store import RunFailed

START_TIMEOUT = 300  # seconds for a kernel to start, on a busy machine with a slow disk


class KernelDied(RunFailed):
    """The kernel ended by no error of a cell: killed, out of memory, crashed. Another try may go well."""


def run_notebook(name: str, given: dict, results: str | Path | None = None, progress: bool = True) -> store.Run:
    """Execute a notebook with the parameters `given` (name → value) and return its Run, complete, in a new folder.

    The folder is <results>/<notebook>/<run-id>, `results` being the project's by default. Raises FileNotFoundError or
    ParameterError before anything is written, RunFailed after the partial copy and ``status: failed`` are on disk.
    """
    path = parameters.find_notebook(name)
    declared = parameters.declared(path)
    given = parameters.check(declared, given)
    if problem := doctor.kernel_problem():
        raise RunFailed(problem)
    folder = Path(results or store.project_folder() / "results") / path.stem
    run = store.open_run(path, folder, parameters.resolved(declared, given), given, runner=True)
    if progress:
        print(f"{path.stem} in {run.folder}", flush=True)
    execute(run, path, given, progress)
    return run


def execute(run: store.Run, path: Path, given: dict, progress: bool = False, timeout: float | None = None) -> None:
    """Execute the notebook at `path` with parameters that were checked into `run`'s folder, and close it as complete.

    The kernel dies with this process and, killed by its own clock, after `timeout` seconds. Raises RunFailed, or
    KernelDied where another try may go well, after the partial copy and ``status: failed`` are on disk.
    """
    papermill_io.register(str(run.folder), _AtomicHandler())
    copy, started = run.folder / "notebook.ipynb", time.monotonic()
    with store.ending(run):
        try:
            papermill.execute_notebook(
                str(path),
                str(copy),
                given | {"run_dir": str(run.folder)},
                kernel_name="python3",
                progress_bar=dict(desc=path.stem) if progress else False,
                start_timeout=START_TIMEOUT,
                shutdown_kernel="immediate",  # all is written, and Python's own end takes two seconds after torch
                extra_arguments=_kernel_arguments(timeout),
            )
        except PapermillExecutionError as error:
            reason = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
            raise RunFailed(store.describe(error, run.folder) if store.is_full(error) else reason) from error
        except RuntimeError as error:  # nbclient's and jupyter_client's
            cell = f"in cell {_last_cell(run.folder)[0]}"
            if timeout is not None and time.monotonic() - started >= timeout:
                raise RunFailed(f"timed out after {timeout:g} s {cell}") from error
            raise KernelDied(f"kernel died {cell}") from error
        if not run.record.get("notebook_finished"):
            raise RunFailed("the notebook ended without run.finish()")
        run.save("notebook.html", pages.exported(copy))


def _kernel_arguments(timeout):
    """The command line of an ipykernel that is quiet, dies with this process, and after `timeout` seconds."""
    lines = [f"__import__('os').getppid() == {os.getpid()} or __import__('os')._exit(1);"]
    if sys.platform == "linux":  # elsewhere ipykernel looks for its parent every second
        lines.insert(0, "__import__('ctypes').CDLL(None).prctl(1, 9);")  # PR_SET_PDEATHSIG, SIGKILL
    # torch makes so many objects as it is imported that the collector, as often as by default, takes a second of it
    lines.append("__import__('gc').set_threshold(50_000);")
    if timeout is not None:
        lines.append(f"__import__('signal').setitimer(0, {timeout});")
    return ["--log-level=ERROR", *(f"--IPKernelApp.exec_lines={line}" for line in lines)]


def last_lines(folder: Path, count: int = 5) -> str:
    """The last lines that the last cell to run in a folder's executed copy printed or raised."""
    lines = []
    for output in _last_cell(folder)[1]:
        text = "\n".join(output["traceback"]) if output["output_type"] == "error" else output.get("text", "")
        lines += [line for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _last_cell(folder):
    """The number, counting code cells as Jupyter does, and the outputs of the last cell that was started; (0, []) where
    none was."""
    copy = Path(folder) / "notebook.ipynb"
    cells = nbformat.read(copy, as_version=4).cells if copy.is_file() else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    started = [n for n, cell in enumerate(code, start=1) if cell.metadata.get("papermill", {}).get("start_time")]
    return (started[-1], code[started[-1] - 1].outputs) if started else (0, [])


class _AtomicHandler(LocalHandler):
    """Papermill's file access, but no reader ever sees half a notebook."""

    def write(self, buf, path):
        store.write_atomic(path, buf)

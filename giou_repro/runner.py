"""Run one notebook through papermill, strictly, into a fresh run folder.

Strictly: unknown parameters and wrong types are refused before a kernel starts, the kernel must be this interpreter's, and a run counts as
complete only when the notebook came to its end and its executed copy is on disk.
"""

import ast
import difflib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from giou_repro import doctor, store

TYPES = dict(Literal=Literal, NonNegativeInt=NonNegativeInt, PositiveInt=PositiveInt, PositiveFloat=PositiveFloat)  # beside Python's own
START_TIMEOUT = 300  # seconds for a kernel to start, on a busy machine with a slow disk


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or that has the wrong type."""


class RunFailed(RuntimeError):
    """The notebook did not come to its end; its run folder holds the partial copy."""


class KernelDied(RunFailed):
    """The kernel ended in the middle, by no error of a cell: killed, out of memory, crashed. Another try may go well."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: ``n_points = None  # type: int anchor points``."""

    name: str
    type: Any
    default: Any
    help: str


def find_notebook(name):
    """The path of a notebook given as a path, or by its name in the notebooks folder. Raises FileNotFoundError, naming the closest."""
    folder = store.project_folder() / "notebooks"
    known = sorted(path.stem for path in folder.glob("*.ipynb"))
    for path in (Path(name), folder / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    close = difflib.get_close_matches(name, known, n=1)
    raise FileNotFoundError(f"no notebook {name!r}{f'; did you mean {close[0]!r}?' if close else ''} The notebooks are {', '.join(known)}")


def declared_parameters(notebook):
    """The parameters of the notebook at a path: name → Parameter, from its cell tagged "parameters"."""
    found = {}
    for name, entry in papermill.inspect_notebook(str(notebook)).items():
        default = ast.literal_eval(entry["default"])
        written = entry["inferred_type_name"]
        kind = eval(written, TYPES) if written != "None" else type(default)  # the notebook is about to be run anyway
        found[name] = Parameter(name, kind | None if default is None else kind, default, entry["help"])
    return found


def check_parameters(declared, given):
    """Return `given` (name → value) where each is declared and of its type, and losses exist; else raise ParameterError with the remedy.

    A whole number given for a float becomes one, so that equal runs have equal parameters.
    """
    checked = {}
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ParameterError(f"unknown parameter {name!r}; {hint}The parameters are {', '.join(declared)}")
        try:
            checked[name] = TypeAdapter(declared[name].type).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ParameterError(f"parameter {name!r} is {value!r}, but {reason} ({declared[name].help})") from None
        if name == "run_dir":
            raise ParameterError("run_dir is made by the runner; --results FOLDER says where")
    _check_losses(given.get("losses"))
    _check_losses(given.get("loss"))
    return checked


def _check_losses(names):
    """Import what the notebook will import, so that a loss that is not there is told before a kernel starts."""
    if names is not None:
        from giou_repro.losses import select  # here, because it brings torch

        try:
            select(names)
        except ValueError as error:
            raise ParameterError(str(error)) from None


def run_notebook(name, given, results=None, progress=True):
    """Execute a notebook with the parameters `given` (name → value) and return its Run, complete, in a fresh folder.

    The folder is <results>/<notebook>/<run-id>, `results` being the project's by default. Raises FileNotFoundError or ParameterError
    before anything is written, RunFailed after the partial copy and ``status: failed`` are on disk.
    """
    path = find_notebook(name)
    declared = declared_parameters(path)
    given = check_parameters(declared, given)
    problem = doctor.kernel_problem()
    if problem:
        raise RuntimeError(problem)
    run = store.open_run(path, Path(results or store.project_folder() / "results") / path.stem, resolved(declared, given), given, runner=True)
    execute(run, path, given, progress)
    return run


def resolved(declared, given):
    """The parameters (name → value) that a notebook starts with: the caller's, and the defaults of the others."""
    return {parameter.name: parameter.default for parameter in declared.values()} | given


def execute(run, path, given, progress=False, timeout=None):
    """Execute the notebook at `path` with parameters that were checked into `run`'s folder, and close it as complete.

    The kernel dies with this process and, killed by its own clock, after `timeout` seconds. Raises RunFailed, or KernelDied where another
    try may go well, after the partial copy and ``status: failed`` are on disk.
    """
    folder = run.folder.resolve()
    papermill_io.register(str(folder), _AtomicHandler())
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            str(path),
            str(folder / "notebook.ipynb"),
            given | {"run_dir": str(folder)},
            kernel_name="python3",
            progress_bar=dict(desc=path.stem) if progress else False,
            start_timeout=START_TIMEOUT,
            extra_arguments=_kernel_arguments(timeout),
        )
        if not run.record.get("notebook_finished"):
            raise RunFailed("the notebook ended without run.finish()")
        page, _ = HTMLExporter().from_notebook_node(nbformat.read(folder / "notebook.ipynb", as_version=4))
        store.write_atomic(folder / "notebook.html", page)
    except BaseException as error:
        died = isinstance(error, RuntimeError) and not isinstance(error, RunFailed)  # nbclient's and jupyter_client's dead kernels
        late = died and timeout is not None and time.monotonic() - started >= timeout
        where = f" in cell {_last_cell(folder)[0]}" if died else ""
        reason = f"timed out after {timeout:g} s{where}" if late else f"kernel died{where}" if died else _describe(error)
        run.close("failed", error=reason)
        if isinstance(error, Exception):
            kind = KernelDied if died and not late else RunFailed
            raise kind(f"{path.stem} failed: {reason}\nits partial copy is in {folder}") from error
        raise
    run.close("complete")


def _kernel_arguments(timeout):
    """What an ipykernel is told on its command line: be quiet, die with the process that started it, and after `timeout` seconds."""
    lines = [f"__import__('os').getppid() == {os.getpid()} or __import__('os')._exit(1);"]
    if sys.platform == "linux":
        lines.insert(0, "__import__('ctypes').CDLL(None).prctl(1, 9);")  # PR_SET_PDEATHSIG, SIGKILL; elsewhere ipykernel looks every second
    if timeout is not None:
        lines.append(f"__import__('signal').setitimer(0, {timeout});")
    return ["--log-level=ERROR", *(f"--IPKernelApp.exec_lines={line}" for line in lines)]


def last_lines(folder, count=5):
    """The last lines that the last cell to run in a folder's executed copy printed or raised, as text."""
    lines = []
    for output in _last_cell(folder)[1]:
        text = "\n".join(output["traceback"]) if output["output_type"] == "error" else output.get("text", "")
        lines += [line for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _last_cell(folder):
    """The number, counting code cells as Jupyter does, and the outputs of the last cell that was started; (0, []) where none was."""
    copy = Path(folder) / "notebook.ipynb"
    cells = nbformat.read(copy, as_version=4).cells if copy.is_file() else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    started = [n for n, cell in enumerate(code, start=1) if cell.metadata.get("papermill", {}).get("start_time")]
    return (started[-1], code[started[-1] - 1].outputs) if started else (0, [])


class _AtomicHandler(LocalHandler):
    """Papermill's file access, but no reader ever sees half a notebook."""

    def write(self, buf, path):
        store.write_atomic(path, buf)


def _describe(error):
    if isinstance(error, PapermillExecutionError):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"

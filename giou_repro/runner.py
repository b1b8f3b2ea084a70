"""Run one notebook through papermill, strictly, into a fresh run folder.

Strictly: unknown parameters and wrong types are refused before a kernel starts, the kernel must be this interpreter's, and a run counts as
complete only when the notebook came to its end and its executed copy is on disk.
"""

import ast
import difflib
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
from giou_repro.losses import select

TYPES = dict(Literal=Literal, NonNegativeInt=NonNegativeInt, PositiveInt=PositiveInt, PositiveFloat=PositiveFloat)  # beside Python's own
QUIET = {"extra_arguments": ["--log-level=ERROR"]}  # a kernel says on every start that its loopback traffic is not encrypted


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or that has the wrong type."""


class RunFailed(RuntimeError):
    """The notebook did not come to its end; its run folder holds the partial copy."""


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
    """Return `given` (name → value) where each is declared and of its type, and losses exist; else raise ParameterError with the remedy."""
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ParameterError(f"unknown parameter {name!r}; {hint}The parameters are {', '.join(declared)}")
        try:
            TypeAdapter(declared[name].type).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ParameterError(f"parameter {name!r} is {value!r}, but {reason} ({declared[name].help})") from None
        if name == "run_dir":
            raise ParameterError("run_dir is made by the runner; --results FOLDER says where")
    _check_losses(given.get("losses"))
    return given


def _check_losses(names):
    """Import what the notebook will import, so that a loss that is not there is told before a kernel starts."""
    if names is not None:
        try:
            select(names)
        except ValueError as error:
            raise ParameterError(str(error)) from None


def run_notebook(name, given, results=None, progress=True):
    """Execute a notebook with the parameters `given` (name → value) and return its Run, complete.

    The folder is <results>/<notebook>/<run-id>, `results` being the project's by default. Raises FileNotFoundError or ParameterError
    before anything is written, RunFailed after the partial copy and ``status: failed`` are on disk.
    """
    path = find_notebook(name)
    declared = declared_parameters(path)
    check_parameters(declared, given)
    problem = doctor.kernel_problem()
    if problem:
        raise RuntimeError(problem)
    defaults = {parameter.name: parameter.default for parameter in declared.values()}
    run = store.open_run(path.stem, Path(results or store.project_folder() / "results") / path.stem, defaults | given, given, runner=True)
    folder = run.folder.resolve()
    papermill_io.register(str(folder), _AtomicHandler())
    try:
        papermill.execute_notebook(
            str(path),
            str(folder / "notebook.ipynb"),
            given | {"run_dir": str(folder)},
            kernel_name="python3",
            progress_bar=dict(desc=path.stem) if progress else False,
            **QUIET,
        )
        if not run.record.get("notebook_finished"):
            raise RunFailed("the notebook ended without run.finish()")
        page, _ = HTMLExporter().from_notebook_node(nbformat.read(folder / "notebook.ipynb", as_version=4))
        store.write_atomic(folder / "notebook.html", page)
    except BaseException as error:
        run.close("failed", error=_describe(error))
        if isinstance(error, Exception):
            raise RunFailed(f"{path.stem} failed: {_describe(error)}\nits partial copy is in {folder}") from error
        raise
    run.close("complete")
    return run


class _AtomicHandler(LocalHandler):
    """Papermill's file access, but no reader ever sees half a notebook."""

    def write(self, buf, path):
        store.write_atomic(path, buf)


def _describe(error):
    if isinstance(error, PapermillExecutionError):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"

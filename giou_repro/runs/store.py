"""Run folders: how they are written and read. All that is written to one goes through its Run.

    results/<notebook>/<run-id>/
        run.json          status, parameters, versions, hardware, every output with its sha256
        notebook.ipynb    the executed copy, and notebook.html, its page (written by the runner)
        metrics.jsonl     one JSON object a line
        *.csv, *.npz      tables and arrays
        figures/          *.png and *.pdf

``run.json`` says "running" from the first moment, then "complete" or "failed"; "complete" means that every output the
notebook declares is there, and that nothing is written to the run again. Every file is written beside its place and
moved into it, so that a kill at any moment leaves the old file or the new one. The process that works on a run holds a
lock on ``.lock`` in its folder, which the system takes back when that process ends, however it ends; so a "running" run
that nobody holds was killed, and can be resumed.
"""

import atexit
import copy
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from giou_repro.checkout import project_folder
from giou_repro.runs import latest, outputs
from giou_repro.runs.address import address, notebook_name
from giou_repro.runs.files import describe, is_full, lock, write_atomic
from giou_repro.runs.machine import git_commit, hardware, versions

__all__ = ["describe", "hardware", "is_full", "project_folder", "versions", "write_atomic"]  # those of other files

UNFINISHED = ".*.[0-9]*"  # what `write_atomic` names a file until it is whole
AGAIN = "run the set-up cell again: it begins a new run"


class RecordError(RuntimeError):
    """What would make the record of a run untrue; the message names the remedy."""


class RunFailed(RuntimeError):
    """A run did not come to its end; its folder holds what there is of it."""


class Run:
    """One run folder; `start` and `open_run` make it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        self._release = lambda: None
        self._began_with = {}

    @property
    def record(self) -> dict:
        """The contents of run.json."""
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @property
    def complete(self) -> bool:
        """Whether the run came to its end and everything it made is on disk."""
        return self.record["status"] == "complete"

    @property
    def parameters(self) -> dict:
        """The resolved parameters of the run, name → value."""
        return self.record["parameters"]

    def table(self, name: str):
        """The table <name>.csv, as pandas has it."""
        return outputs.read_csv(self.folder / f"{name}.csv")

    def hold(self) -> bool:
        """Take the run's lock for as long as this object lives or until `close`; False where another holder has it."""
        file = lock(self.folder / ".lock")
        if file is not None:
            self._release = weakref.finalize(self, os.close, file)
        return file is not None

    def check(self) -> None:
        """Raise RecordError where the run has ended, or the notebook's parameters are not those that it began with."""
        status = self.record["status"]
        if status != "running":
            raise RecordError(f"the run in {self.folder} is {status}, and never written to again; {AGAIN}")
        now = _notebook_globals()
        for name, value in self._began_with.items():
            if now.get(name, value) != value:
                change = f"was {value!r} when this run began, and is now {now[name]!r}"
                raise RecordError(f"parameter {name!r} {change}; {AGAIN}")

    def update(self, **entries) -> None:
        """Set entries of run.json."""
        self.check()
        self._write_record(self.record | entries)

    def save(self, name: str, content: bytes | str) -> Path:
        """Write the file `name` of the run, all of it or nothing."""
        self.check()
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
        return path

    def save_table(self, name: str, table) -> Path:
        """Write a pandas table as <name>.csv."""
        return self.save(f"{name}.csv", outputs.csv(table))

    def save_arrays(self, name: str, **arrays) -> Path:
        """Write arrays as <name>.npz."""
        return self.save(f"{name}.npz", outputs.npz(arrays))

    def save_figure(self, name: str, figure) -> Path:
        """Write a matplotlib figure as figures/<name>.png and .pdf, without dates: equal figures are equal bytes."""
        for suffix in ("pdf", "png"):
            path = self.save(f"figures/{name}.{suffix}", outputs.image(figure, suffix))
        return path

    def log(self, **metrics) -> None:
        """Append one line to metrics.jsonl, flushed."""
        self.check()
        with open(self.folder / "metrics.jsonl", "ab", buffering=0) as file:
            file.write((json.dumps(metrics) + "\n").encode())

    def finish(self) -> None:
        """Say that the notebook came to its end.

        Where the runner started this run, it alone says "complete", once its copy is saved. Raises RecordError where an
        output that the notebook declares is not there. A complete run stays as it is.
        """
        if not self.complete:
            self.check()
            self._check_outputs()
            if self.record["runner"]:
                self.update(notebook_finished=True)
            else:
                self.close("complete")
        print(f"results in {self.folder}")

    def close(self, status: str, **entries) -> None:
        """End the run as "complete" or "failed", with wall time and the sha256 of every output; an ended run stays as
        it is."""
        record = self.record
        if record["status"] != "running":
            return
        if status == "complete":
            self._check_outputs()
        hashes = {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._files()
        }
        seconds = sum(part["seconds"] for part in record.get("earlier", [])) + _seconds(record["started"], time.time())
        self._write_record(record | dict(status=status, wall_seconds=round(seconds, 1), outputs=hashes) | entries)
        self._release()
        if status == "complete" and self.folder.parent.name == record["notebook"]:
            with suppress(OSError):  # the run is complete all the same
                latest.write(self.folder.parents[1])

    def _check_outputs(self):
        missing = [name for name in self.record.get("declared_outputs", []) if not (self.folder / name).is_file()]
        if missing:
            raise RecordError(f"the run has no {', '.join(missing)} yet; run all cells from the set-up cell on")

    def _write_record(self, record):
        write_atomic(self.folder / "run.json", json.dumps(record, indent=2) + "\n")

    def _files(self):
        """What the run made."""
        shown = (path for path in self.folder.rglob("*") if path.name != "run.json" and path.name[0] != ".")
        return sorted(path for path in shown if path.is_file())


_begun = {}  # notebook → the Run that it began in this process


def start(notebook: str, run_dir: str | Path | None, parameters: dict, outputs: Iterable[str] = ()) -> Run:
    """Begin, or join, the run of a notebook; called by the notebook's set-up cell.

    `run_dir` None makes a new folder under results/<notebook>/; a folder given by the runner is joined; any other is
    made, or where the run in it was killed and had the same parameters, resumed. `parameters` are the resolved ones,
    after scale has set what the caller left open; `outputs` name the files without which the run is not complete.
    Raises FileExistsError where the folder has another run, RecordError where this kernel began another notebook's.

    Where the set-up cell was run before in this kernel, the run that it began then ends: see `_end_former`.
    """
    others = _begun.keys() - {notebook}
    if others and _notebook_globals():  # whose cells would write to whichever `run` is the last
        raise RecordError(f"this kernel has begun a run of {others.pop()}; give {notebook} a kernel of its own")
    _end_former(notebook)
    if run_dir is None:
        run = _begin(_new_run(project_folder() / "results" / notebook), notebook, parameters)
    else:
        run = _join(Run(run_dir), notebook, parameters)
    run.update(declared_outputs=list(outputs))
    now = _notebook_globals()
    run._began_with = {name: copy.deepcopy(now[name]) for name in (*parameters, "run_dir") if name in now}
    if not run.record["runner"]:
        _begun[notebook] = run
    return run


def _notebook_globals():
    """The global variables of the notebook that this process runs; none elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell.user_ns if shell else {}


def _end_former(notebook):
    """End the run that this process began for the notebook before: it is removed where it made nothing, else failed."""
    run = _begun.pop(notebook, None)
    made = run and (run.folder / "run.json").exists()
    if made and run.record["status"] == "running" and not run._files():
        run._release()
        shutil.rmtree(run.folder)
    elif made:
        run.close("failed", error="its set-up cell was run again")


@atexit.register
def _end_all():
    for run in _begun.values():
        if (run.folder / "run.json").exists():
            run.close("failed", error="the kernel ended before the notebook")


def _join(run, notebook, parameters):
    names = {path.name for path in run.folder.glob("*")} - {".lock"}
    if "run.json" not in names and any(not fnmatch(name, UNFINISHED) for name in names):  # resumed, it is emptied
        raise FileExistsError(f"run_dir {run.folder} holds files that are no run's; name a new folder, or none")
    free = run.hold()
    if "run.json" not in names:
        return _begin(run, notebook, parameters)
    record = run.record
    running = record["status"] == "running"
    if running and record["runner"] and not free:  # the runner's, whose kernel this is
        run.update(parameters=parameters, hardware=hardware())
        return run
    same = (record["notebook"], record["parameters"]) == (notebook, json.loads(json.dumps(parameters)))
    if running and free and same:
        return _begin(run, notebook, parameters)
    differs = "" if same else ", with other parameters"
    content = f"a {record['status']} run of {record['notebook']}{differs}"
    raise FileExistsError(f"run_dir {run.folder} holds {content}; name another folder, or none")


def open_run(
    notebook: str | Path,
    results: str | Path,
    parameters: dict,
    given: dict | None = None,
    runner: bool = False,
    inputs: str = "",
    resume: bool = False,
) -> Run:
    """A run in a new folder under the folder `results`, named by time and commit, or, with `resume`, the run with this
    address that is there.

    `notebook`, `parameters` and `inputs` are those of `address`; `given` are the parameters that the caller set;
    `runner` says that the runner, not the notebook, will call the run complete.

    With `resume`, a complete run is returned as it is (``run.complete`` is True). One that was killed or failed is
    "running" again in its old folder: it keeps its files and folders named checkpoint*, so that training goes on from
    there, and with them its metrics; the rest is made anew. Where a live process is at work on the run, its end is
    waited for.
    """
    about = notebook_name(notebook), parameters, given, runner, address(notebook, parameters, inputs)
    told = False
    while True:
        with os.fdopen(lock(Path(results) / ".lock", wait=True)):  # which run is whose is decided by one at a time
            records = _records(Path(results).glob("*/run.json")) if resume else ()
            alike = [run for run, record in records if record.get("address") == about[-1]]
            run = next((run for run in alike if run.complete), alike[-1] if alike else None)
            if run and run.complete:
                return run
            if run is None or run.hold():
                return _begin(run or _new_run(results), *about)
        if not told:
            print(f"waiting for the process that is at work on the same run in {run.folder}", file=sys.stderr)
        told = True
        time.sleep(0.5)


@contextmanager
def ending(run: Run | None) -> Iterator[None]:
    """Close `run` as complete after the block, or as failed where it raises; of None, of another rank, nothing is kept.
    Where the disk is too full even for that it stays "running", as after a kill.

    Raises RunFailed, or the block's own kind of it, with the reason, for every error that is not one of the program.
    """
    try:
        yield
        if run:
            run.close("complete")
    except BaseException as error:
        reason = str(error) if isinstance(error, RunFailed) else describe(error, run.folder if run else "the results")
        with suppress(OSError):
            if run:
                run.close("failed", error=reason)
        if isinstance(error, RuntimeError | ValueError | OSError):
            kind = type(error) if isinstance(error, RunFailed) else RunFailed
            raise kind(f"{reason}\nwhat there is of the run is in {run.folder}" if run else reason) from error
        raise


def runs(results: str | Path, notebook: str | None = None, status: str | None = None) -> list[Run]:
    """The Runs under the folder `results`, oldest first: of one notebook and with one status, or all. Published runs
    are not among them.

    A run.json that cannot be read, or is not a run's, is left out with a warning that names it.
    """
    paths = [path for path in Path(results).glob("*/*/run.json") if path.parents[1].name != "published"]
    wanted = {name: value for name, value in (("notebook", notebook), ("status", status)) if value}
    return [run for run, record in _records(paths) if wanted.items() <= {name: record[name] for name in wanted}.items()]


def _records(paths: Iterable[Path]) -> Iterator[tuple[Run, dict]]:
    """(Run, its record) of each run.json that is a run's, oldest first."""
    for path in sorted(paths, key=lambda path: path.parent.name):
        run = Run(path.parent)
        try:
            record = run.record
            record["status"], dict(record["parameters"])
        except (OSError, ValueError, TypeError, KeyError):
            warnings.warn(f"{path} is not the record of a run, or is damaged: its folder does not count", stacklevel=3)
        else:
            yield run, record


def _new_run(results):
    """A Run in a folder of its own, held before its run.json is there to be found."""
    commit = git_commit()[0]
    while True:
        now = datetime.now(UTC)
        run = Run(Path(results) / f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{commit[:7]}")
        with suppress(FileExistsError):
            run.folder.mkdir(parents=True)
            run.hold()
            return run


def _begin(run, notebook, parameters, given=None, runner=False, address=None):
    """Set a run that is held to "running", and return it; of one that was killed or failed the record's `earlier` has
    the parts so far."""
    earlier = _clear(run) if (run.folder / "run.json").exists() else []
    commit, dirty = git_commit()
    later = runner and "torch" not in sys.modules  # the kernel that joins the run says it
    record = dict(
        status="running",
        notebook=notebook,
        run=run.folder.name,
        address=address,
        runner=runner,
        parameters=parameters,
        given=given or {},
        seed=parameters.get("seed"),
        started=datetime.now(UTC).isoformat(),
        commit=commit,
        dirty=dirty,
        versions=versions(),
        hardware=None if later else hardware(),
    )
    run._write_record(record | ({"earlier": earlier} if earlier else {}))
    return run


def _clear(run):
    """Remove what an ended run made, except its checkpoints and with them its metrics; return when its parts started
    and how long they took."""
    before = run.record
    end = max(path.stat().st_mtime for path in run.folder.rglob("*") if path.is_file())
    kept = ("checkpoint", "metrics.jsonl") if any(run.folder.glob("checkpoint*")) else ()
    for path in [*run.folder.rglob(UNFINISHED), *run._files()]:
        if not path.relative_to(run.folder).as_posix().startswith(kept):
            path.unlink()
    part = dict(started=before["started"], seconds=round(_seconds(before["started"], end), 1))
    return [*before.get("earlier", []), part]


def _seconds(started, end):
    """From a time as run.json has it to a time stamp."""
    return max(0.0, end - datetime.fromisoformat(started).timestamp())

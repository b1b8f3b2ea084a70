"""Run folders: the only module that writes under results/.

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
import errno
import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

SOURCES = (".py", ".mplstyle", ".toml")  # what of the package decides about results
PACKAGES = ("giou-repro", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")
ANNOTATIONS = (
    ".xml",
    ".json",
    ".txt",
    ".yaml",
    ".yml",
)  # files of a data set whose content counts; of pictures the size
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AGAIN = "run the set-up cell again: it begins a new run"


class RecordError(RuntimeError):
    """What would make the record of a run untrue; the message names the remedy."""


# A notebook's name in older records → its name today
RENAMED = {"04_train_detector": "05_train_detector", "05_compare_losses": "06_compare_losses", "06_report": "07_report"}


def project_folder():
    """The checkout this package is installed from, or the current folder where it is installed without one."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def write_atomic(path, content):
    """Write bytes or text to `path` by way of a hidden file beside it, which an error removes."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def is_full(error):
    """Whether an error, or what a notebook says of one, is that the disk is full."""
    return any(f"[Errno {number}]" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def describe(error, folder):
    """What to say of an error while `folder` was written to; with the remedy where the disk is full."""
    if is_full(error):
        remedy = "free space and run the same command again"
        return f"no space left on the disk of {folder}; what was complete is kept; {remedy}"
    return f"{type(error).__name__}: {error}"


class Run:
    """One run folder; `start`, `open_run` and `resume_or_open` make it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._release = lambda: None
        self._began_with = {}

    @property
    def record(self):
        """The contents of run.json."""
        record = json.loads((self.folder / "run.json").read_text())
        return record | {"notebook": RENAMED.get(record["notebook"], record["notebook"])}

    @property
    def complete(self):
        """Whether the run came to its end and everything it made is on disk."""
        return self.record["status"] == "complete"

    @property
    def parameters(self):
        """The resolved parameters of the run, name → value."""
        return self.record["parameters"]

    def table(self, name):
        """The table <name>.csv, as pandas has it."""
        import pandas as pd  # here, so that the command line can answer without it

        return pd.read_csv(self.folder / f"{name}.csv")

    def hold(self):
        """Take the run's lock for as long as this object lives or until `close`; False where another holder has it."""
        file = _lock(self.folder / ".lock")
        if file is not None:
            self._release = weakref.finalize(self, os.close, file)
        return file is not None

    def check(self):
        """Raise RecordError where the run has ended, or the notebook's parameters are not those that it began with."""
        status = self.record["status"]
        if status != "running":
            raise RecordError(f"the run in {self.folder} is {status}, and never written to again; {AGAIN}")
        now = _notebook_globals()
        for name, value in self._began_with.items():
            if now.get(name, value) != value:
                change = f"was {value!r} when this run began, and is now {now[name]!r}"
                raise RecordError(f"parameter {name!r} {change}; {AGAIN}")

    def update(self, **entries):
        """Set entries of run.json."""
        self.check()
        self._write_record(self.record | entries)

    def save_table(self, name, table):
        """Write a pandas table as <name>.csv."""
        return self._save(f"{name}.csv", table.to_csv(index=False))

    def save_arrays(self, name, **arrays):
        """Write arrays as <name>.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return self._save(f"{name}.npz", buffer.getvalue())

    def save_figure(self, name, figure):
        """Write a matplotlib figure as figures/<name>.png and .pdf, without dates, so that equal figures are equal
        bytes."""
        for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            path = self._save(f"figures/{name}.{suffix}", buffer.getvalue())
        return path

    def log(self, **metrics):
        """Append one line to metrics.jsonl, flushed."""
        self.check()
        line = (json.dumps(metrics) + "\n").encode()
        file = os.open(self.folder / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def finish(self):
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

    def close(self, status, **entries):
        """End the run as "complete" or "failed", with wall time and the sha256 of every output; an ended one stays as
        it is."""
        if self.record["status"] != "running":
            return
        if status == "complete":
            self._check_outputs()
        hashes = {}
        for path in self._files():
            hashes[path.relative_to(self.folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        record = self.record
        seconds = sum(part["seconds"] for part in record.get("earlier", [])) + _seconds(record["started"], time.time())
        self._write_record(record | dict(status=status, wall_seconds=round(seconds, 1), outputs=hashes) | entries)
        self._release()

    def _check_outputs(self):
        missing = [name for name in self.record.get("declared_outputs", []) if not (self.folder / name).is_file()]
        if missing:
            raise RecordError(f"the run has no {', '.join(missing)} yet; run all cells from the set-up cell on")

    def _write_record(self, record):
        write_atomic(self.folder / "run.json", json.dumps(record, indent=2) + "\n")

    def _save(self, name, content):
        self.check()
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
        return path

    def _files(self):
        """What the run made."""
        shown = (path for path in self.folder.rglob("*") if path.name != "run.json" and path.name[0] != ".")
        return sorted(path for path in shown if path.is_file())


_begun = {}  # notebook → the Run that it began in this process


def start(notebook, run_dir, parameters, outputs=()):
    """Begin, or join, the run of a notebook and return its Run; called by the notebook's set-up cell.

    `run_dir` None makes a fresh folder under results/<notebook>/; a folder given by the runner is joined; any other is
    made, or where the run in it was killed and had the same parameters, resumed. `parameters` are the resolved ones,
    after scale has set what the caller left open; `outputs` name the files without which the run is not complete.
    Raises FileExistsError where the folder has another run.

    Where the set-up cell was run before in this kernel, the run that it began then ends: see `_end_former`.
    """
    _end_former(notebook)
    if run_dir is None:
        run = _open(project_folder() / "results" / notebook, notebook, parameters, {}, False)
    elif (Path(run_dir) / "run.json").exists():
        run = _join(Run(run_dir), notebook, parameters)
    else:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        run = _create(Path(run_dir), notebook, parameters, {}, False)
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
    if run is None or not (run.folder / "run.json").exists():
        return
    if run.record["status"] == "running" and not run._files():
        run._release()
        shutil.rmtree(run.folder)
    else:
        run.close("failed", error="its set-up cell was run again")


@atexit.register
def _end_all():
    for run in _begun.values():
        if (run.folder / "run.json").exists():
            run.close("failed", error="the kernel ended before the notebook")


def _join(run, notebook, parameters):
    record, free = run.record, run.hold()
    if record["status"] == "running" and record["runner"] and not free:
        run.update(parameters=parameters, hardware=hardware())
        return run
    same = (record["notebook"], record["parameters"]) == (notebook, json.loads(json.dumps(parameters)))
    if record["status"] == "running" and free and same:
        return _resume(run, notebook, parameters, {}, False, None)
    differs = "" if same else ", with other parameters"
    what = f"a {record['status']} run of {record['notebook']}{differs}"
    raise FileExistsError(f"run_dir {run.folder} holds {what}; name another folder, or none")


def open_run(notebook, results, parameters, given=None, runner=False, inputs=()):
    """Make a fresh run folder under the folder `results`, named by time and commit, with its run.json.

    `notebook`, `parameters` and `inputs` are those of `address`; `given` are the parameters that the caller set;
    `runner` says that the runner, not the notebook, will call the run complete.
    """
    return _open(results, _name(notebook), parameters, given, runner, address(notebook, parameters, inputs))


def _open(results, *about):
    with _decision(results):
        return _create(_fresh_folder(results), *about)


def resume_or_open(notebook, results, parameters, given=None, runner=False, inputs=(), wait=False):
    """The run with this address under the folder `results`: complete, resumed, or fresh. Arguments as of `open_run`.

    A complete run is returned as it is (``run.complete`` is True). One that was killed or failed, and that no live
    process holds, is "running" again in its old folder: it keeps its files and folders named checkpoint*, so that
    training goes on from there, and with them its metrics; the rest is made anew. Otherwise the folder is fresh. Where
    a live process is at work on the same run, `wait` says to wait for its end rather than to run it a second time.
    """
    wanted = address(notebook, parameters, inputs)
    told = False
    while True:
        with _decision(results):
            alike = find_runs(results, wanted)
            complete = [run for run in alike if run.complete]
            free = [] if complete else [run for run in alike[:1] if run.hold()]
            if complete or (free and free[0].complete):  # it may have come to its end between the two looks
                return (complete or free)[0]
            if free:
                return _resume(free[0], _name(notebook), parameters, given, runner, wanted)
            if not (alike and wait):
                return _create(_fresh_folder(results), _name(notebook), parameters, given, runner, wanted)
        if not told:
            print(f"waiting for the process that is at work on the same run in {alike[0].folder}", file=sys.stderr)
            told = True
        time.sleep(0.5)


def runs(results, notebook=None, status=None):
    """The Runs under the folder `results`, oldest first: of one notebook and with one status, or all. Published runs
    are not among them.

    A run.json that cannot be read, or is not a run's, is left out with a warning that names it.
    """
    paths = [path for path in Path(results).glob("*/*/run.json") if path.parents[1].name != "published"]
    found = []
    for path in sorted(paths, key=lambda path: path.parent.name):
        run = Run(path.parent)
        try:
            record = run.record
            alike = record["notebook"] == (notebook or record["notebook"]) and record["status"] == (
                status or record["status"]
            )
            dict(record["parameters"])
        except (OSError, ValueError, TypeError, KeyError):
            warnings.warn(f"{path} is not the record of a run, or is damaged: its folder does not count", stacklevel=2)
            continue
        if alike:
            found.append(run)
    return found


def find_runs(results, wanted):
    """The runs under the folder `results` that have the address `wanted`, newest first."""
    runs = [Run(path.parent) for path in sorted(Path(results).glob("*/run.json"), reverse=True)]
    return [run for run in runs if run.record.get("address") == wanted]


def complete_runs(results):
    """Address → the newest complete run with it, of the runs under the folder `results`."""
    runs = [Run(path.parent) for path in sorted(Path(results).glob("*/run.json"))]
    return {
        record["address"]: run
        for run in runs
        if (record := run.record)["status"] == "complete" and record.get("address")
    }


def address(notebook, parameters, inputs=()):
    """What makes a run what it is, in 16 hexadecimal digits: equal addresses, equal runs.

    It covers the notebook's name and cells (`notebook` is a path, or a name in the notebooks folder), the parameters
    (name → value, the declared defaults included; ``run_dir`` does not count), the package's sources, those of a user's
    loss named as ``my_module:mine``, and `inputs`, the addresses of runs whose results this one reads, and, where the
    parameter ``dataset`` is a path, its last name and the files there (see `_files`). Versions of other packages are
    not covered.
    """
    counted = {name: value for name, value in parameters.items() if name != "run_dir"}
    files = _files(counted.get("dataset"))
    if files:
        counted["dataset"] = Path(counted["dataset"]).resolve().name
    package = Path(__file__).parents[1]
    sources = {
        path.relative_to(package).as_posix(): path.read_text()
        for path in sorted(package.rglob("*"))
        if path.suffix in SOURCES
    }
    content = [_name(notebook), _cells(notebook), counted, sources, _users_sources(counted), sorted(inputs), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _files(dataset):
    """What a data set consists of: name and content of its annotations and lists, name and size of its pictures.

    None where it is not a path. Run folders, hidden files and files of other kinds do not count.
    """
    root, found = Path(dataset or "/nowhere"), []
    for folder, folders, names in os.walk(root):
        runs = {name for name in folders if Path(folder, name, "run.json").exists()}
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in runs)
        found += [Path(folder, name) for name in sorted(names) if name[0] != "."]
    entries = []
    for path in [root] if root.is_file() else found:
        kind = path.suffix.lower()
        if kind in ANNOTATIONS + PICTURES and path.is_file():
            state = path.stat()
            content = _sha256(path, state.st_size, state.st_mtime_ns) if kind in ANNOTATIONS else state.st_size
            entries.append([path.relative_to(root).as_posix(), content])
    return entries


@functools.cache
def _sha256(path, size, time):
    """Of the file's content, which is read again where size or time are others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _name(notebook):
    return Path(notebook).stem if Path(notebook).suffix == ".ipynb" else str(notebook)


def _cells(notebook):
    """Kind and text of each cell; none where there is no such notebook."""
    path = Path(notebook) if Path(notebook).suffix == ".ipynb" else project_folder() / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        return []
    return [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(path.read_text())["cells"]]


def _users_sources(parameters):
    """The text of the modules that are named as ``module:function`` in the parameters, a package's modules all."""
    named = set(re.findall(r'"(\w+)(?:\.\w+)*:[A-Za-z_]\w*"', json.dumps(parameters, ensure_ascii=False)))
    found = {}
    importlib.invalidate_caches()
    for module in sorted(named):
        spec = importlib.machinery.PathFinder.find_spec(module, [os.getcwd(), *sys.path])
        folders = list(spec.submodule_search_locations or []) if spec else []
        files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
        files = files or ([Path(spec.origin)] if spec and spec.origin and spec.origin.endswith(".py") else [])
        found[module] = [path.read_text() for path in files]
    return found


def _fresh_folder(results):
    commit = git_commit()[0]
    while True:
        now = datetime.now(UTC)
        folder = Path(results) / f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{commit[:7]}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def _create(folder, notebook, parameters, given, runner, found=None):
    run = Run(folder)
    run.hold()  # before run.json is there to be found
    run._write_record(_first_record(run, notebook, parameters, given, runner, found))
    return run


def _resume(run, notebook, parameters, given, runner, found):
    """Set a run that was killed or failed to "running" again; `earlier` in run.json has its parts so far."""
    before = run.record
    earlier = before.get("earlier", [])
    if "wall_seconds" in before:
        seconds = before["wall_seconds"] - sum(part["seconds"] for part in earlier)
    else:  # it was killed, after its last write
        written = [path.stat().st_mtime for path in run.folder.rglob("*") if path.is_file()]
        seconds = _seconds(before["started"], max(written))
    kept = ("checkpoint", "metrics.jsonl") if any(run.folder.glob("checkpoint*")) else ()
    for path in [*_leftovers(run.folder, "**"), *run._files()]:
        if not path.relative_to(run.folder).as_posix().startswith(kept):
            path.unlink()
    record = _first_record(run, notebook, parameters, given, runner, found)
    run._write_record(record | dict(earlier=[*earlier, dict(started=before["started"], seconds=round(seconds, 1))]))
    return run


def _seconds(started, end):
    """From a time as run.json has it to a time stamp."""
    return max(0.0, end - datetime.fromisoformat(started).timestamp())


def _first_record(run, notebook, parameters, given, runner, found):
    commit, dirty = git_commit()
    record = dict(
        status="running", notebook=notebook, run=run.folder.name, address=found, runner=runner, parameters=parameters
    )
    record |= dict(
        given=given or {},
        seed=parameters.get("seed"),
        started=datetime.now(UTC).isoformat(),
        commit=commit,
        dirty=dirty,
    )
    later = runner and "torch" not in sys.modules  # the kernel that joins the run says it
    return record | dict(versions=versions(), hardware=None if later else hardware())


@contextmanager
def _decision(results):
    """Which run is whose is decided by one process at a time; it also removes what killed ones had begun to write."""
    Path(results).mkdir(parents=True, exist_ok=True)
    file = _lock(Path(results) / ".lock", wait=True)
    try:
        for path in _leftovers(Path(results), "*/**"):
            run = Run(Path(results) / path.relative_to(results).parts[0])
            if run.hold():  # or its process may be alive, on another machine
                path.unlink(missing_ok=True)
                run._release()
        yield
    finally:
        os.close(file)


def _leftovers(folder, below):
    """The hidden files of `write_atomic` in the folders `below` a folder whose process is gone."""
    found = [(path, re.fullmatch(r"\..+\.(\d{1,9})", path.name)) for path in folder.glob(f"{below}/.*.*")]
    return [path for path, named in found if named and not _is_alive(int(named[1]))]


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lock(path, wait=False):
    """The descriptor of a file, locked, or None where it is locked already. The system unlocks it when the process
    ends, however it ends.

    On file systems without locks (some network ones, by their mount options) raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by programs that this process starts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(file)
        return None
    except OSError as error:
        os.close(file)
        raise OSError(
            error.errno,
            f"{path} cannot be locked ({error.strerror}); put the results on a file system with locks (flock)",
        ) from None
    return file


def git_commit():
    """(commit of the checkout, whether files differ from it); ("unknown", None) outside git."""
    folder = project_folder()
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    return sha, bool(changes.strip())


def versions():
    """Python's and each package's version, None where it is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware():
    """Processor, cores, memory and GPU, as torch and the system name them."""
    import torch  # here, so that the command line can answer without it

    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

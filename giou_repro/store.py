"""Run folders: the only module that writes under results/.

    results/<notebook>/<run-id>/
        run.json          status, parameters, versions, hardware, every output with its sha256
        notebook.ipynb    the executed copy, and notebook.html, its page (written by the runner)
        metrics.jsonl     one JSON object a line
        *.csv, *.npz      tables and arrays
        figures/          *.png and *.pdf

``run.json`` says "running" from the first moment, then "complete" or "failed". Every file is written beside its place and moved into it,
so that a kill at any moment leaves the old file or the new one.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

PACKAGES = ("giou-repro", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")


def project_folder():
    """The checkout this package is installed from, or the current folder where it is installed without one."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def write_atomic(path, content):
    """Write bytes or text to `path` by way of a hidden file beside it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


class Run:
    """One run folder; `start` and `open_run` make it."""

    def __init__(self, folder):
        self.folder = Path(folder)

    @property
    def record(self):
        """The contents of run.json."""
        return json.loads((self.folder / "run.json").read_text())

    def update(self, **entries):
        """Set entries of run.json."""
        write_atomic(self.folder / "run.json", json.dumps(self.record | entries, indent=2) + "\n")

    def save_table(self, name, table):
        """Write a pandas table as <name>.csv."""
        return self._save(f"{name}.csv", table.to_csv(index=False))

    def save_arrays(self, name, **arrays):
        """Write arrays as <name>.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return self._save(f"{name}.npz", buffer.getvalue())

    def save_figure(self, name, figure):
        """Write a matplotlib figure as figures/<name>.png and .pdf, without dates, so that equal figures are equal bytes."""
        for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            path = self._save(f"figures/{name}.{suffix}", buffer.getvalue())
        return path

    def log(self, **metrics):
        """Append one line to metrics.jsonl, flushed."""
        line = (json.dumps(metrics) + "\n").encode()
        file = os.open(self.folder / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def finish(self):
        """Say that the notebook came to its end. Where the runner started this run, it alone says "complete", once its copy is saved."""
        if self.record["runner"]:
            self.update(notebook_finished=True)
        else:
            self.close("complete")
        print(f"results in {self.folder}")

    def close(self, status, **entries):
        """End the run as "complete" or "failed", with its wall time and the sha256 of every output."""
        seconds = round(time.time() - datetime.fromisoformat(self.record["started"]).timestamp(), 1)
        self.update(status=status, wall_seconds=seconds, outputs=self._outputs(), **entries)

    def _save(self, name, content):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
        return path

    def _outputs(self):
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != "run.json" and path.name[0] != ".")
        return {path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(notebook, run_dir, parameters):
    """Begin, or join, the run of a notebook and return its Run; called by the notebook itself.

    `run_dir` None makes a fresh folder under results/<notebook>/; a folder given by the runner is joined; any other is made.
    `parameters` are the resolved ones, after scale has set what the caller left open. Raises FileExistsError where the folder has a
    finished run, which is never overwritten.
    """
    if run_dir is None:
        return open_run(notebook, project_folder() / "results" / notebook, parameters)
    run = Run(run_dir)
    if not (run.folder / "run.json").exists():
        return _create(run.folder, notebook, parameters, given={}, runner=False)
    record = run.record
    if record["status"] != "running":
        raise FileExistsError(f"run_dir {run_dir} holds a {record['status']} run of {record['notebook']}; name another folder, or none")
    run.update(parameters=parameters)
    return run


def open_run(notebook, results, parameters, given=None, runner=False):
    """Make a fresh run folder under the folder `results`, named by time and commit, with its run.json."""
    commit = git_commit()[0]
    while True:
        now = datetime.now(UTC)
        folder = Path(results) / f"{now:%Y%m%dT%H%M%S}-{now.microsecond // 1000:03d}-{commit[:7]}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return _create(folder, notebook, parameters, given or {}, runner)


def _create(folder, notebook, parameters, given, runner):
    folder.mkdir(parents=True, exist_ok=True)
    commit, dirty = git_commit()
    record = dict(status="running", notebook=notebook, run=folder.name, runner=runner, parameters=parameters, given=given)
    record |= dict(seed=parameters.get("seed"), started=datetime.now(UTC).isoformat(), commit=commit, dirty=dirty)
    record |= dict(versions=versions(), hardware=hardware())
    write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")
    return Run(folder)


def git_commit():
    """(commit of the checkout, whether files differ from it); ("unknown", None) outside git."""
    folder = project_folder()
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True).stdout
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

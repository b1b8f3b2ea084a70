"""The commit, the versions and the hardware of a run."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from giou_repro.runs.files import project_folder

PACKAGES = ("giou-repro", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")


def git_commit() -> tuple[str, bool | None]:
    """(commit of the checkout, whether files differ from it); ("unknown", None) outside git."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        answer = subprocess.run(command, cwd=project_folder(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    lines = answer.stdout.splitlines()
    return lines[0].split()[-1], any(not line.startswith("#") for line in lines)


def version(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict:
    """Python's and each package's version."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def hardware() -> dict:
    """Processor, cores, memory and GPU, as torch and the system name them."""
    import torch  # in the function, so that the command line can answer without it

    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }

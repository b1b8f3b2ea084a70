"""The commit, the versions and the hardware of a run."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("giou-repro", "torch", "torchvision", "numpy", "pandas", "scipy", "matplotlib", "papermill")


def git_commit() -> tuple[str, bool | None]:
    """(commit of this package's checkout, whether files differ from it); ("unknown", None) where it is in none of its
    own, as in an archive, and within another repository too."""
    own = ["git", "-C", str(CHECKOUT), "--git-dir=.git", "--work-tree=."]  # of nobody around it, whoever owns the files
    others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # GIT_DIR leads away
    try:
        answer = subprocess.run(
            [*own, "status", "--porcelain=v2", "--branch"], env=others, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    lines = answer.stdout.decode(errors="replace").splitlines()
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
    model = re.search(r"model name\s*: (.*)", info.read_text(errors="replace")) if info.exists() else None
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }

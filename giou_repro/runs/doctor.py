"""What is wrong with the environment, and the remedy."""

import importlib.metadata
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement

from giou_repro.runs.machine import version

REINSTALL = "run: pip install -r requirements.lock"


def kernel_problem() -> str | None:
    """What is wrong with the Jupyter kernel "python3", or None: it must start this very interpreter, and answer."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = f"run: {sys.executable} -m ipykernel install --sys-prefix"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return f"nothing answers at 127.0.0.1 ({error}), where kernels are; bring it up: ip link set lo up"
    try:
        command = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except NoSuchKernel:
        return f"there is no Jupyter kernel 'python3'; {remedy}"
    is_bare = command.name == str(command)  # "python": Jupyter starts the interpreter it runs under
    if is_bare or os.path.realpath(command.parent) == os.path.realpath(os.path.dirname(sys.executable)):
        return None
    return f"the Jupyter kernel 'python3' starts {command}, not this interpreter, {sys.executable}; {remedy}"


def pair_problem() -> str | None:
    """What is wrong between torch and torchvision, or None. Each torchvision is built for one torch, which it names in
    its metadata."""
    torch, torchvision = version("torch"), version("torchvision")
    if torch is None:
        return f"torch is not installed; {REINSTALL}"
    if torchvision is None:
        return None
    for requirement in map(Requirement, importlib.metadata.requires("torchvision") or []):
        if requirement.name == "torch" and not requirement.specifier.contains(torch, prereleases=True):
            wanted = str(requirement.specifier).removeprefix("==")
            return f"torchvision {torchvision} is built for torch {wanted}, not for {torch}; {REINSTALL}"
    code = "import torch, torchvision; torch.ops.torchvision.nms"
    trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if trial.returncode:
        reason = trial.stderr.strip().splitlines()[-1]
        return f"torch {torch} and torchvision {torchvision} do not load together ({reason}); {REINSTALL}"
    return None


def compiler_problem() -> str | None:
    """Why torch.compile cannot work, or None: it needs a C++ compiler and Python's headers."""
    remedy = (
        "install g++ and Python's headers (Debian: apt-get install g++ python3-dev); "
        "until then the simulation runs uncompiled"
    )
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return f"no C++ compiler was found; {remedy}"
    command = [*shlex.split(compiler), f"-I{sysconfig.get_path('include')}", "-fsyntax-only", "-x", "c++", "-"]
    try:
        trial = subprocess.run(command, input="#include <Python.h>", capture_output=True, text=True)
    except OSError as error:
        return f"the C++ compiler {compiler} does not start ({error}); {remedy}"
    if trial.returncode:
        return f"{compiler} cannot compile against Python's headers ({trial.stderr.strip().splitlines()[0]}); {remedy}"
    return None


def gpu_note() -> str | None:
    """Why no GPU is used, or None where one is."""
    import torch

    reason = "torch sees no NVIDIA GPU (none, or its driver is missing or too old: see nvidia-smi)"
    reason = reason if torch.version.cuda else "this torch is built without CUDA"
    return None if torch.cuda.is_available() else f"{reason}; everything runs on the CPU"


def lock_problem(lock: Path) -> str | None:
    """Which installed versions differ from those of the lock file, or None."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pins = [Requirement(line) for line in lines if line.strip() and line[0] != "#"]
    different = [
        f"{pin.name} {version(pin.name) or 'missing'} (tested: {str(pin.specifier).removeprefix('==')})"
        for pin in pins
        if (pin.marker is None or pin.marker.evaluate())
        and not pin.specifier.contains(version(pin.name) or "0", prereleases=True)
    ]
    listed = f"{', '.join(different[:5])}…; {REINSTALL}"
    return f"{len(different)} packages differ from the tested environment: {listed}" if different else None


def report(lock: Path) -> int:
    """Print a line for each check; return the number of problems. A missing GPU or another version is a note, not a
    problem."""
    problems = {"kernel": kernel_problem(), "torch and torchvision": pair_problem(), "compiler": compiler_problem()}
    for name, problem in (problems | {"gpu": gpu_note(), "versions": lock_problem(lock)}).items():
        print(f"{name:<24}{problem or 'ok'}")
    return sum(problem is not None for problem in problems.values())

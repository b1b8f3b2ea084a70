"""The simulation: a step on a case beside other ways to make it, a user's loss in the engine, and the whole four-loss
experiment."""

import os
import subprocess
import sys
import tempfile

import torch

from benchmarks import peers
from benchmarks.timing import device_seconds, faster, medians, within
from giou_repro import boxes, registry
from giou_repro.runs import store
from giou_repro.simulation import CASES_PER_POINT, cases, simulate

POINTS, STEPS, PEER_STEPS = 1000, 200, 5
EXPERIMENT = """
import sys, time
start = time.perf_counter()
from giou_repro import simulate
imported = time.perf_counter() - start
simulate(n_points=int(sys.argv[1]), compile=sys.argv[2] == "compiled", progress=False)
seconds = time.perf_counter() - start
from benchmarks.timing import peak
print(imported, seconds, peak())
"""


def measure():
    """Rows of the table, see `timing`."""
    return [*_steps(), *_experiment()]


def sliced(pred, target):
    """1 − IoU as a user writes it who never heard of columns."""
    low, high = torch.max(pred[..., :2], target[..., :2]), torch.min(pred[..., 2:], target[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (pred, target)]
    return 1 - width * height / (sum(areas) - width * height)


def squared(pred, target):
    """A user's loss on a function of the package."""
    return 1 - boxes.giou(pred, target) ** 2


def _steps():
    """Nanoseconds a case and step: the engine as a user calls it, tables included, beside the peers on the same
    cases."""
    known = dict(registry.LOSSES)
    for function in (sliced, squared):
        registry.loss(function.__name__)(function)
    start, target = cases.boxes_and_targets(cases.draw_points(POINTS, 0), "cxcywh", torch.float32, torch.device("cpu"))
    start, target = torch.stack(start).flatten(1), torch.stack(target).flatten(1)
    rows_of, columns_of = (start.t().contiguous(), target.t().contiguous()), (start.numpy(), target.numpy())
    functions = {name: _engine(name) for name in ("giou", "sliced", "squared")}
    functions["SGD, torchvision's loss"] = lambda: peers.sgd(*rows_of, PEER_STEPS)
    steps = dict.fromkeys(functions, STEPS) | {"SGD, torchvision's loss": PEER_STEPS}
    one_thread = {"NumPy, analytic gradient": lambda: peers.numpy(*columns_of, PEER_STEPS)}
    kernel = peers.c_kernel()
    if kernel:
        one_thread["C, all steps in registers"] = lambda: kernel(*columns_of, STEPS)
    steps |= {"NumPy, analytic gradient": PEER_STEPS, "C, all steps in registers": STEPS}
    count, rows = POINTS * CASES_PER_POINT, []
    for threads in (1, 2):
        if threads > (os.cpu_count() or 1):
            continue
        seconds = medians(functions | (one_thread if threads == 1 else {}), rounds=3, threads=threads)
        ns = {name: value / count / steps[name] * 1e9 for name, value in seconds.items()}
        what, unit = f"simulation, GIoU, {threads} thread{'s' * (threads > 1)}", "ns a case and step"
        rows.append(faster(what, unit, ns["giou"], "SGD, torchvision's loss", ns["SGD, torchvision's loss"], least=25))
        for name in one_thread.keys() & ns.keys():
            rows.append(faster(what, unit, ns["giou"], name, ns[name], most=4 if name.startswith("C,") else None))
        for name in ("sliced", "squared"):
            rows.append(
                faster(f"{what}, a user's loss, {name}", unit, ns[name], "the built-in loss", ns["giou"], most=3)
            )
    registry.LOSSES.clear()
    registry.LOSSES.update(known)
    return rows


def _engine(name):
    return lambda: simulate([name], n_points=POINTS, steps=STEPS, compile=True, progress=False)


def _experiment():
    """The four losses at the paper's size, each time in a process of its own: first with an empty compile cache, then
    with what it left."""
    with tempfile.TemporaryDirectory() as cache:
        _, cold, _ = _run(5000, "compiled", cache)
        _, warm, memory = _run(5000, "compiled", cache)
        imported, eager, _ = _run(1000, "eager", cache)
    what = "four losses, 1,715,000 cases, 200 steps"
    rows = [
        within(f"{what}, warm", "s", warm, 10),
        within(f"{what}, cold", "s", cold, 25),
        within(f"{what}, no compiler (5 × a fifth)", "s", imported + 5 * (eager - imported), 100),
    ]
    return [*rows, within(f"{what}, most memory", "GB", memory / 1e9, 1)] if memory else rows


def _run(points, how, cache):
    """(seconds of the import, of all, peak bytes or None) of the experiment in a fresh process."""
    command = [sys.executable, "-c", EXPERIMENT, str(points), how]
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TMPDIR": cache,
    }  # torch keeps its compiled headers in the latter
    answer = subprocess.run(
        command, env=environment, cwd=store.project_folder(), capture_output=True, text=True, check=True
    ).stdout
    imported, seconds, memory = answer.split()
    return float(imported), float(seconds), None if memory == "None" else int(memory)


def measure_on_gpu():
    """The four-loss experiment on a GPU, in device time, after a first run has compiled it."""
    names = ("iou", "giou", "diou", "ciou")
    seconds = device_seconds(lambda: simulate(names, device="cuda", progress=False), rounds=3)
    return [within("four losses, 1,715,000 cases, 200 steps, GPU", "ms", seconds * 1e3, 60)]

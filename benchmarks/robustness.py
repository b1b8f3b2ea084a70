"""What happens to each loss on ten million awkward boxes: ours, and torchvision's and transformers' functions where
they are installed.

    python benchmarks/robustness.py [--boxes 10000000] [--seed 0] [--output robustness.txt]

Half of the boxes are well-scaled; half have corners drawn from flipped, empty, touching, equal, contained, tiny
(1e-30), huge (1e15) and far-off (1e7) ones. Each loss is asked for value and gradient in float32; counted are the boxes
with a value or a gradient that is NaN or infinite, and, against the exact value in float64 (itself within 1e-14 of
rational arithmetic, tests/test_exactness.py), the worst error on well-scaled boxes and the relative error near equal
ones. Needs about 1 GB.
"""

import argparse
import importlib
import time

import pandas as pd
import torch

from giou_repro.experiments.loss_check import awkward, nearly_equal, well_scaled
from giou_repro.registry import LOSSES
from giou_repro.runs import store

CHUNK = 500_000


def peers():
    """Losses of other libraries, as functions of (pred, target) that return one value a box: name → (our loss,
    function)."""
    found = {}
    try:
        ops = importlib.import_module("torchvision.ops")
        found["torchvision giou"] = ("giou", ops.generalized_box_iou_loss)
        found["torchvision diou"] = ("diou", ops.distance_box_iou_loss)
        found["torchvision ciou"] = ("ciou", ops.complete_box_iou_loss)
    except ImportError:
        pass
    try:
        utils = importlib.import_module("transformers.loss.loss_for_object_detection")
        # their function makes all pairs, asserts valid corners, and has no aligned form: blocks of 50 and the diagonal
        found["transformers giou"] = ("giou", lambda p, t: _diagonal(utils.generalized_box_iou, p, t))
    except ImportError:
        pass
    return found


def _diagonal(pairwise, pred, target):
    return 1 - torch.cat([pairwise(a, b).diagonal() for a, b in zip(pred.split(50), target.split(50), strict=True)])


def examine(function, ours, n, seed):
    """One row of the table for one loss."""
    generator = torch.Generator().manual_seed(seed)
    counts = dict(boxes=0, bad_values=0, bad_gradients=0, raised=0)
    worst, relative, started = 0.0, 0.0, time.perf_counter()
    for make in [well_scaled, awkward] * max(1, n // (2 * CHUNK)):
        pred, target = make(min(CHUNK, n), generator)
        counts["boxes"] += len(pred)
        try:
            value, gradient = _value_and_gradient(function, pred, target)
        except (AssertionError, ValueError, RuntimeError):
            counts["raised"] += len(pred)
            continue
        counts["bad_values"] += int((~value.isfinite()).sum())
        counts["bad_gradients"] += int((~gradient.isfinite()).any(-1).sum())
        if make is well_scaled:
            truth = LOSSES[ours](pred.double(), target.double())
            worst = max(worst, ((value - truth).abs() / truth.clamp(min=1)).nan_to_num(float("inf")).max().item())
    pred, target = nearly_equal(min(CHUNK, n), generator)
    truth = LOSSES[ours](pred.double(), target.double())
    value = function(pred, target)
    relative = ((value - truth).abs() / truth)[truth > 0].max().item()
    return counts | dict(
        worst_error=worst, near_equal_relative=relative, seconds=round(time.perf_counter() - started, 1)
    )


def growth(n, seed):
    """Worst absolute error of any overlap loss of ours in float32 where scales part by a factor: in offset, in size, in
    aspect.

    Against float64 on the same float32 boxes; columns factor, offset (both boxes that many sides from the origin), size
    (the prediction that much larger), aspect (both boxes that much wider than high).
    """
    rows = []
    for factor in (1e0, 1e2, 1e4, 1e6, 1e8):
        row = dict(factor=factor)
        for kind in ("offset", "size", "aspect"):
            pred, target = well_scaled(n, torch.Generator().manual_seed(seed))
            stretch = torch.tensor([factor, 1, factor, 1]) if kind == "aspect" else 1
            shift = factor if kind == "offset" else 0
            pred, target = pred * stretch * (factor if kind == "size" else 1) + shift, target * stretch + shift
            errors = [
                (loss(pred, target) - loss(pred.double(), target.double())).abs().max().item()
                for loss in LOSSES.values()
                if loss.space == "boxes"
            ]
            row[kind] = max(errors)
        rows.append(row)
    return pd.DataFrame(rows)


def _value_and_gradient(function, pred, target):
    pred = pred.clone().requires_grad_()
    value = function(pred, target)
    return value.detach(), torch.autograd.grad(value.sum(), pred)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write what is printed to this file too")
    options = parser.parse_args()
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    say("{:<18}{:>10}{:>12}{:>15}{:>8}{:>13}{:>12}{:>9}".format(*HEADING))
    for name, (ours, function) in ({name: (name, loss) for name, loss in LOSSES.items()} | peers()).items():
        say(LINE.format(loss=name, **examine(function, ours, options.boxes, options.seed)))
    say("\nWorst error over all overlap losses of ours, as scales part by a factor:\n")
    say(growth(min(100_000, options.boxes), options.seed).to_string(index=False, float_format="{:.1e}".format))
    machine, versions = store.hardware(), store.versions()
    software = f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    say(f"\n{software}; {machine['processor']}, {machine['threads']} threads; float32")
    say(f"seed {options.seed}; commit {store.git_commit()[0][:7]}")
    if options.output:
        store.write_atomic(options.output, "\n".join(lines) + "\n")


HEADING = ("loss", "boxes", "bad values", "bad gradients", "raised", "worst error", "near equal", "seconds")
LINE = "{loss:<18}{boxes:>10}{bad_values:>12}{bad_gradients:>15}{raised:>8}{worst_error:>13.1e}"
LINE += "{near_equal_relative:>12.1e}{seconds:>9}"

if __name__ == "__main__":
    main()

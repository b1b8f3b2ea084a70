"""Notebook 01, the tables: the properties that the GIoU paper states, and those of every loss, on random boxes."""

import numpy as np
import pandas as pd
import torch

from giou_repro import boxes
from giou_repro.experiments import style
from giou_repro.experiments.metric import tensor
from giou_repro.registry import LOSSES

ROUNDING = 1e-12


def properties(n: int, seed: int) -> pd.DataFrame:
    """The properties the GIoU paper states (claims G2 to G5 and G8), each measured on `n` random boxes: claim,
    property, measured, holds."""
    rng = np.random.default_rng(seed)
    a, b, c = (_random_boxes(rng, n) for _ in range(3))
    inner, anywhere = _inside(rng, a), tensor(rng.normal(size=(n, 4)))
    iou, giou = boxes.iou(a, b), boxes.giou(a, b)
    far = boxes.giou(tensor([0, 0, 1, 1]), tensor([1e6, 1e6, 1e6 + 1, 1e6 + 1]))
    stretch = tensor([3.0, 0.2, 3.0, 0.2])
    ac_disjoint, disjoint = boxes.iou(a, c) == 0, iou == 0
    via_hull = _triangle(a, boxes.enclosing(a, c), c)[ac_disjoint]
    gradient_iou = _largest_gradient(LOSSES["iou"], a[disjoint], b[disjoint])
    gradient_giou = _largest_gradient(LOSSES["giou"], a[disjoint], b[disjoint])
    loss_iou, loss_giou = 1 - boxes.iou(anywhere, b), 1 - boxes.giou(anywhere, b)
    zero = (-1e-9, 1e-9)
    rows = [  # claim, property, measured, and the bounds within which it holds
        ("G2", "GIoU ≤ IoU: largest GIoU − IoU", (giou - iou).max(), (-np.inf, ROUNDING)),
        ("G2", "−1 ≤ GIoU ≤ 1: smallest", giou.min(), (-1, 1)),
        ("G2", "−1 ≤ GIoU ≤ 1: largest", giou.max(), (-1, 1)),
        (
            "G2",
            "equal when one box contains the other: largest |GIoU − IoU|",
            (boxes.giou(inner, a) - boxes.iou(inner, a)).abs().max(),
            zero,
        ),
        ("G2", "1 for equal boxes: largest |1 − GIoU|", (1 - boxes.giou(a, a)).abs().max(), zero),
        ("G2", "→ −1 as |A∪B|/|C| → 0: two unit squares a million apart, 1 + GIoU", 1 + far, zero),
        (
            "G3",
            "d = 1 − GIoU keeps the triangle inequality: smallest d(a, b) + d(b, c) − d(a, c)",
            _triangle(a, b, c).min(),
            (-ROUNDING, np.inf),
        ),
        ("G3", "equality for b the enclosing box of disjoint a, c: largest difference", via_hull.abs().max(), zero),
        (
            "G4",
            "scale invariance, each axis by its own factor: largest change",
            (boxes.giou(a * stretch, b * stretch) - giou).abs().max(),
            zero,
        ),
        ("G5", f"∂L_IoU = 0 on {int(disjoint.sum())} disjoint pairs: largest |∂L_IoU|", gradient_iou.max(), zero),
        ("G5", "∂L_GIoU ≠ 0 on them: smallest of the largest components", gradient_giou.min(), (ROUNDING, np.inf)),
        ("G8", "0 ≤ L_IoU ≤ 1 for predictions anywhere in R⁴: smallest", loss_iou.min(), (0, 1)),
        ("G8", "0 ≤ L_IoU ≤ 1: largest", loss_iou.max(), (0, 1)),
        ("G8", "0 ≤ L_GIoU ≤ 2 for predictions anywhere in R⁴: smallest", loss_giou.min(), (0, 2)),
        ("G8", "0 ≤ L_GIoU ≤ 2: largest", loss_giou.max(), (0, 2)),
    ]
    table = pd.DataFrame(rows, columns=["claim", "property", "measured", "bounds"]).astype({"measured": float})
    holds = [low <= value <= high for value, (low, high) in zip(table.measured, table.bounds, strict=True)]
    return table.drop(columns="bounds").assign(holds=holds)


def describe_properties(table: pd.DataFrame) -> str:
    broken = "; ".join(table.property[~table.holds])
    return f"**What we see.** {table.holds.sum()} of {len(table)} checks hold{f'; not: {broken}' if broken else ''}."


def loss_properties(losses: list[str], n: int, seed: int) -> pd.DataFrame:
    """The properties of each loss, on `n` random boxes.

    Columns: loss, lowest, highest (over predictions anywhere in R⁴), at_equal (largest value for equal boxes),
    asymmetry, scaling (largest change when both boxes double), triangle (largest L(a, c) − L(a, b) − L(b, c); above 0
    it is not a metric), and blind (share of disjoint pairs with zero gradient).
    """
    rng = np.random.default_rng(seed)
    a, b, c = (_random_boxes(rng, n) for _ in range(3))
    anywhere, disjoint = tensor(rng.normal(size=(n, 4))), boxes.iou(a, b) == 0
    rows = []
    for name in losses:
        loss = LOSSES[name]
        values, ab = loss(anywhere, b), loss(a, b)
        measures = dict(
            lowest=values.min(),
            highest=values.max(),
            at_equal=loss(a, a).abs().max(),
            asymmetry=(ab - loss(b, a)).abs().max(),
            scaling=(loss(2 * a, 2 * b) - ab).abs().max(),
            triangle=(loss(a, c) - ab - loss(b, c)).max(),
            blind=(_largest_gradient(loss, a[disjoint], b[disjoint]) < ROUNDING).double().mean(),
        )
        rows.append(dict(loss=name) | {measure: value.item() for measure, value in measures.items()})
    return pd.DataFrame(rows)


def describe_loss_properties(table: pd.DataFrame) -> str:
    blind, metrics = table.loss[table.blind > 0.99], table.loss[(table.triangle < 1e-9) & (table.asymmetry < 1e-9)]
    return (
        f"**What we see.** Zero gradient on disjoint boxes: {style.labels(blind)}. Symmetric, and no counterexample to "
        f"the triangle inequality: {style.labels(metrics)}."
    )


def _triangle(a, b, c):
    """d(a, b) + d(b, c) − d(a, c) for d = 1 − GIoU."""
    return 1 - boxes.giou(a, b) - boxes.giou(b, c) + boxes.giou(a, c)


def _largest_gradient(loss, pred, target):
    """The largest component of the gradient of each box."""
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(loss(pred, target).sum(), pred)[0].abs().amax(-1)


def _random_boxes(rng, n):
    """`n` boxes with centres uniform in a square of side 4 and sides log-uniform from 0.1 to 3."""
    centre, size = rng.uniform(-2, 2, (n, 2)), np.exp(rng.uniform(np.log(0.1), np.log(3), (n, 2)))
    return tensor(np.concatenate((centre - size / 2, centre + size / 2), 1))


def _inside(rng, outer):
    """A random box inside each of the outer ones."""
    shares = tensor(np.sort(rng.random((len(outer), 2, 2)), axis=1).reshape(-1, 4))
    low, size = outer[:, :2].repeat(1, 2), (outer[:, 2:] - outer[:, :2]).repeat(1, 2)
    return low + shares * size

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
    property, measured, holds.

    Random pairs seldom come near a bound, so G2 is measured on near-equal pairs too, and G3 where descent has made the
    triangle's slack least. "contained" is the DIoU paper's argument, "equal IoU" the GIoU paper's figure 2.
    """
    rng = np.random.default_rng(seed)
    a, b, c = (_random_boxes(rng, n) for _ in range(3))
    inner, anywhere = _inside(rng, a), tensor(rng.normal(size=(n, 4)))
    iou, giou, inner_gap = boxes.iou(a, b), boxes.giou(a, b), boxes.giou(inner, a) - boxes.iou(inner, a)
    far = boxes.giou(tensor([0, 0, 1, 1]), tensor([1e6, 1e6, 1e6 + 1, 1e6 + 1]))
    error = tensor(rng.normal(size=(n, 4)) * 10 ** rng.uniform(-9, -1, (n, 1)))  # in units of the sides
    near = a + error * (a[:, 2:] - a[:, :2]).repeat(1, 2)
    near_iou, near_giou = boxes.iou(near, a), boxes.giou(near, a)
    stretch = tensor(np.exp(rng.uniform(-7, 7, (n, 2)))).repeat(1, 2)
    ac_disjoint, disjoint = boxes.iou(a, c) == 0, iou == 0
    via_hull = _slack(a, boxes.enclosing(a, c), c)[ac_disjoint]
    of_disjoint, of_inner = (
        {name: _gradient(LOSSES[name], *pairs) for name in ("iou", "giou", "diou")}
        for pairs in ((a[disjoint], b[disjoint]), (inner, a))
    )
    by_centre = {name: (gradient[:, :2] + gradient[:, 2:]).abs().amax(-1) for name, gradient in of_inner.items()}
    along = tensor(rng.uniform(0, 0.5, n))  # a unit square moved so that half of it is common: IoU 1/3
    moved = tensor([0, 0, 1, 1]) + torch.stack((along, 1 - 0.5 / (1 - along)), -1).repeat(1, 2)
    third, spread = (measure(moved, tensor([0, 0, 1, 1])) for measure in (boxes.iou, boxes.giou))
    loss_iou, loss_giou = 1 - boxes.iou(anywhere, b), 1 - boxes.giou(anywhere, b)
    zero, positive, starts = (-1e-9, 1e-9), (ROUNDING, np.inf), min(n, 1_000)
    rows = [  # claim, property, measured, and the bounds within which it holds
        ("G2", "GIoU ≤ IoU: largest GIoU − IoU", (giou - iou).max(), (-np.inf, ROUNDING)),
        ("G2", "GIoU ≤ IoU, near-equal pairs: largest GIoU − IoU", (near_giou - near_iou).max(), (-np.inf, ROUNDING)),
        ("G2", "−1 ≤ GIoU ≤ 1: smallest", giou.min(), (-1, 1)),
        ("G2", "−1 ≤ GIoU ≤ 1: largest", giou.max(), (-1, 1)),
        ("G2", "equal when one box contains the other: largest |GIoU − IoU|", inner_gap.abs().max(), zero),
        ("G2", "1 for equal boxes: largest |1 − GIoU|", (1 - boxes.giou(a, a)).abs().max(), zero),
        (
            "G2",
            "1 only for equal boxes: smallest (1 − GIoU) / (largest error / side), errors 1e-9 to 1e-1",
            ((1 - near_giou) / error.abs().amax(-1)).min(),
            (0.5, np.inf),
        ),
        ("G2", "→ −1 as |A∪B|/|C| → 0: two unit squares a million apart, 1 + GIoU", 1 + far, zero),
        (
            "G3",
            "d = 1 − GIoU keeps the triangle inequality: smallest d(a, b) + d(b, c) − d(a, c)",
            _slack(a, b, c).min(),
            (-ROUNDING, np.inf),
        ),
        ("G3", f"the same, by descent from {starts} triples", _least_slack(a, b, c, starts), (-ROUNDING, np.inf)),
        ("G3", "equality for b the enclosing box of disjoint a, c: largest difference", via_hull.abs().max(), zero),
        (
            "G4",
            "scale invariance, each axis of each pair by its own factor of 1/1000 to 1000: largest change",
            (boxes.giou(a * stretch, b * stretch) - giou).abs().max(),
            zero,
        ),
        (
            "G5",
            f"∂L_IoU = 0 on {int(disjoint.sum())} disjoint pairs: largest |∂L_IoU|",
            of_disjoint["iou"].abs().max(),
            zero,
        ),
        (
            "G5",
            "∂L_GIoU ≠ 0 on them: smallest of the largest components",
            of_disjoint["giou"].abs().amax(-1).min(),
            positive,
        ),
        ("G8", "0 ≤ L_IoU ≤ 1 for predictions anywhere in R⁴: smallest", loss_iou.min(), (0, 1)),
        ("G8", "0 ≤ L_IoU ≤ 1: largest", loss_iou.max(), (0, 1)),
        ("G8", "0 ≤ L_GIoU ≤ 2 for predictions anywhere in R⁴: smallest", loss_giou.min(), (0, 2)),
        ("G8", "0 ≤ L_GIoU ≤ 2: largest", loss_giou.max(), (0, 2)),
        ("contained", "a box inside the target, ∂L_GIoU by its centre: largest", by_centre["giou"].max(), zero),
        ("contained", "∂L_DIoU by its centre: smallest", by_centre["diou"].min(), positive),
        ("equal IoU", "a unit square moved to IoU 1/3: largest |IoU − 1/3|", (third - 1 / 3).abs().max(), zero),
        ("equal IoU", "largest − smallest GIoU of them", spread.max() - spread.min(), positive),
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
            blind=(_gradient(loss, a[disjoint], b[disjoint]).abs().amax(-1) < ROUNDING).double().mean(),
        )
        rows.append(dict(loss=name) | {measure: value.item() for measure, value in measures.items()})
    return pd.DataFrame(rows)


def describe_loss_properties(table: pd.DataFrame) -> str:
    blind, metrics = table.loss[table.blind > 0.99], table.loss[(table.triangle < 1e-9) & (table.asymmetry < 1e-9)]
    return (
        f"**What we see.** Zero gradient on disjoint boxes: {style.labels(blind)}. Symmetric, and no counterexample to "
        f"the triangle inequality: {style.labels(metrics)}."
    )


def _slack(a, b, c):
    """d(a, b) + d(b, c) − d(a, c) for d = 1 − GIoU."""
    return 1 - boxes.giou(a, b) - boxes.giou(b, c) + boxes.giou(a, c)


def _least_slack(a, b, c, n, steps=200):
    """The least slack on the way of `n` triples that descend it, by Adam on centres and log-sizes."""
    triples = boxes.convert(torch.stack((a, b, c))[:, :n], "xyxy", "cxcywh")
    state, least = torch.cat((triples[..., :2], triples[..., 2:].log()), -1).requires_grad_(), []
    optimizer = torch.optim.Adam([state], lr=0.02)
    for _ in range(steps):
        slack = _slack(*boxes.convert(torch.cat((state[..., :2], state[..., 2:].exp()), -1), "cxcywh", "xyxy"))
        least.append(slack.min().item())
        optimizer.zero_grad()
        slack.sum().backward()
        optimizer.step()
    return min(least)


def _gradient(loss, pred, target):
    """The gradient (n, 4) of each box."""
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(loss(pred, target).sum(), pred)[0]


def _random_boxes(rng, n):
    """`n` boxes with centres uniform in a square of side 4 and sides log-uniform from 0.1 to 3."""
    centre, size = rng.uniform(-2, 2, (n, 2)), np.exp(rng.uniform(np.log(0.1), np.log(3), (n, 2)))
    return tensor(np.concatenate((centre - size / 2, centre + size / 2), 1))


def _inside(rng, outer):
    """A random box inside each of the outer ones."""
    shares = tensor(np.sort(rng.random((len(outer), 2, 2)), axis=1).reshape(-1, 4))
    low, size = outer[:, :2].repeat(1, 2), (outer[:, 2:] - outer[:, :2]).repeat(1, 2)
    return low + shares * size

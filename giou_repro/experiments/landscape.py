"""What notebook 02 measures: the value and the gradient of each loss as a box moves. Every function returns a pandas
table, in float64."""

import numpy as np
import pandas as pd
import torch

from giou_repro import boxes
from giou_repro.registry import LOSSES

OUTPUTS = (  # without which a run of the notebook is not complete
    *("profiles.csv", "flat_parts.csv", "field.csv", "steepness.csv"),
    *("figures/profiles.png", "figures/field.png", "figures/steepness.png"),
)
TARGET = (-0.5, -0.5, 0.5, 0.5)  # a unit square about the origin
FLAT = 1e-9  # a slope below this is none


def _square(x, y, side):
    return torch.stack((x - side / 2, y - side / 2, x + side / 2, y + side / 2), -1)


SCENARIOS = {  # name: (what t is, the prediction at t, the range of t)
    "slide": ("offset along x", lambda t: _square(t, 0 * t, 1 + 0 * t), (-3, 3)),
    "diagonal": ("offset along x and y", lambda t: _square(t, t, 1 + 0 * t), (-3, 3)),
    "scale": ("side of the prediction", lambda t: _square(0 * t, 0 * t, t), (0.05, 4)),
    "contained": ("offset of a box of side 0.4", lambda t: _square(t, 0 * t, 0.4 + 0 * t), (-1.2, 1.2)),
}


def profiles(losses, n):
    """Value and slope of each loss along each of SCENARIOS, at `n` places: scenario, loss, t, iou, value, slope
    (∂value/∂t)."""
    tables = []
    for scenario, (_, pred_at, (low, high)) in SCENARIOS.items():
        # an even number of places, so that none is exactly at the kink t = 0
        t = torch.linspace(low, high, n + n % 2, dtype=torch.float64, requires_grad=True)
        target = torch.tensor(TARGET, dtype=torch.float64).expand(len(t), 4)
        iou = boxes.iou(pred_at(t), target).detach()
        for name in losses:
            value = LOSSES[name](pred_at(t), target)
            (slope,) = torch.autograd.grad(value.sum(), t)
            tables.append(
                pd.DataFrame(
                    dict(scenario=scenario, loss=name, t=t.detach(), iou=iou, value=value.detach(), slope=slope)
                )
            )
    return pd.concat(tables, ignore_index=True)


def flat_parts(profiles):
    """Of each loss's profile: the share of the disjoint places, and of the places where one box contains the other,
    with no slope.

    Columns: scenario, loss, disjoint, contained; missing where the scenario has no such place.
    """
    rows = []
    for (scenario, loss), part in profiles.groupby(["scenario", "loss"], sort=False):
        flat = part.slope.abs() < FLAT
        within = (
            part.t.abs() <= 0.3 if scenario == "contained" else part.t > 0 if scenario == "scale" else part.t != part.t
        )
        apart = part.iou == 0
        rows.append(dict(scenario=scenario, loss=loss, disjoint=flat[apart].mean(), contained=flat[within].mean()))
    return pd.DataFrame(rows)


def field(losses, n, side=0.5):
    """The descent direction −∂loss/∂(x, y, w, h) with a square of `side` centred on an n x n grid: loss, x, y, iou, dx,
    dy, dw, dh."""
    grid = torch.linspace(-2, 2, n, dtype=torch.float64)
    y, x = (axis.reshape(-1) for axis in torch.meshgrid(grid, grid, indexing="ij"))
    state = torch.stack((x, y, torch.full_like(x, side), torch.full_like(x, side)), -1).requires_grad_()
    target = torch.tensor(TARGET, dtype=torch.float64)
    tables = []
    for name in losses:
        pred = boxes.convert(state, "cxcywh", "xyxy")
        (gradient,) = torch.autograd.grad(LOSSES[name](pred, target.expand_as(pred)).sum(), state)
        columns = dict(zip(("dx", "dy", "dw", "dh"), (-gradient).unbind(-1), strict=True))
        tables.append(pd.DataFrame(dict(loss=name, x=x, y=y, iou=boxes.iou(pred, target).detach()) | columns))
    return pd.concat(tables, ignore_index=True)


def steepness(losses, n, seed, bins=10):
    """Size of each loss's gradient against the overlap (claim G7): for predictions around unit squares, errors of every
    size.

    Columns: loss, iou_low, iou_high (the bin; the first row of each loss is the disjoint pairs, 0 to 0), pairs, q25,
    median, q75 of ‖∂loss/∂(x1, y1, x2, y2)‖, and correlation, Pearson's, of IoU and GIoU in the bin.
    """
    if n < 1_000:
        raise ValueError(f"n must be at least 1,000, so that every bin has pairs, got {n}")
    rng = np.random.default_rng(seed)
    target = torch.tensor(TARGET, dtype=torch.float64).expand(n, 4)
    error = rng.normal(size=(n, 4)) * np.exp(rng.uniform(np.log(0.01), np.log(1.5), (n, 1)))
    shift = np.tile(rng.normal(size=(n, 2)) * np.exp(rng.uniform(np.log(0.01), np.log(1.5), (n, 1))), 2)
    pred = (target + torch.from_numpy(error + shift)).requires_grad_()
    iou, giou = (measure(pred, target).detach().numpy() for measure in (boxes.iou, boxes.giou))
    edges = [(0.0, 0.0), *((k / bins, (k + 1) / bins) for k in range(bins))]
    rows = []
    for name in losses:
        (gradient,) = torch.autograd.grad(LOSSES[name](pred, target).sum(), pred)
        norm = gradient.norm(dim=-1).numpy()
        for low, high in edges:
            inside = iou == 0 if high == 0 else (iou > low) & (iou <= high)
            if inside.sum() < 10:
                continue
            q25, median, q75 = np.quantile(norm[inside], (0.25, 0.5, 0.75))
            correlation = np.corrcoef(iou[inside], giou[inside])[0, 1] if high else np.nan
            row = dict(loss=name, iou_low=low, iou_high=high, pairs=int(inside.sum()), q25=q25, median=median, q75=q75)
            rows.append(row | dict(correlation=correlation))
    return pd.DataFrame(rows)

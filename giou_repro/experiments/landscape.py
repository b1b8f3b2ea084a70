"""Notebook 02: the value and the gradient of each loss as a box moves. Everything is computed in float64."""

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm

from giou_repro import boxes, registry
from giou_repro.experiments import style
from giou_repro.registry import LOSSES

OUTPUTS = (  # without which a run of the notebook is not complete
    *("profiles.csv", "flat_parts.csv", "field.csv", "steepness.csv"),
    *("figures/profiles.png", "figures/field.png", "figures/steepness.png"),
)
TARGET = torch.tensor((-0.5, -0.5, 0.5, 0.5), dtype=torch.float64)  # a unit square about the origin
FLAT = 1e-9  # a slope or gradient below this counts as zero


def _square(x, y, side):
    return torch.stack((x - side / 2, y - side / 2, x + side / 2, y + side / 2), -1)


SCENARIOS = {  # name: what t is, the prediction at t, the range of t, and where one box contains the other
    "slide": ("offset along x", lambda t: _square(t, 0 * t, 1 + 0 * t), (-3, 3), (0, 0)),
    "diagonal": ("offset along x and y", lambda t: _square(t, t, 1 + 0 * t), (-3, 3), (0, 0)),
    "scale": ("side of the prediction", lambda t: _square(0 * t, 0 * t, t), (0.05, 4), (0.05, 4)),
    "contained": ("offset, side 0.4", lambda t: _square(t, 0 * t, 0.4 + 0 * t), (-1.2, 1.2), (-0.3, 0.3)),
}


def profiles(losses: list[str], n: int) -> pd.DataFrame:
    """Value and slope of each loss along each of SCENARIOS, at `n` places: scenario, loss, t, iou, value, slope
    (∂value/∂t)."""
    tables = []
    for scenario, (_, pred_at, (low, high), _) in SCENARIOS.items():
        # an even number of places, so that none is exactly at the kink t = 0
        t = torch.linspace(low, high, n + n % 2, dtype=torch.float64, requires_grad=True)
        target = TARGET.expand(len(t), 4)
        places = dict(scenario=scenario, t=t.detach(), iou=boxes.iou(pred_at(t), target).detach())
        for name in losses:
            value = LOSSES[name](pred_at(t), target)
            (slope,) = torch.autograd.grad(value.sum(), t)
            tables.append(pd.DataFrame(places | dict(loss=name, value=value.detach(), slope=slope)))
    return pd.concat(tables, ignore_index=True)[["scenario", "loss", "t", "iou", "value", "slope"]]


@style.styled
def plot_profiles(table: pd.DataFrame):
    """Value (top) and slope (bottom) of each loss along each scenario."""
    figure, axes = style.panels(2, len(SCENARIOS), 3.3, 3.6, sharex="col")
    jump = table.groupby(["scenario", "loss"]).slope.diff().abs() > 0.7
    table = table.assign(slope=table.slope.mask(jump))  # no upright line through a jump
    for (top, bottom), (scenario, (meaning, *_)) in zip(axes.T, SCENARIOS.items(), strict=True):
        part = table[table.scenario == scenario]
        style.draw_losses(top, part, "t", "value")
        style.draw_losses(bottom, part, "t", "slope")
        top.set(title=scenario, ylim=(-0.05, 2.6))
        bottom.set(xlabel=meaning, ylim=(-3.2, 3.2))
    axes[0, 0].set_ylabel("loss (cut at 2.6)")
    axes[1, 0].set_ylabel("slope (cut at ±3.2)")
    style.legend_below(figure, axes)
    return figure


def flat_parts(profiles: pd.DataFrame) -> pd.DataFrame:
    """Of each loss's profile: the share of the disjoint places, and of the places where one box contains the other,
    with zero slope.

    Columns: scenario, loss, disjoint, contained; missing where the scenario has no such place.
    """
    rows = []
    for (scenario, loss), part in profiles.groupby(["scenario", "loss"], sort=False):
        flat, contained = part.slope.abs() < FLAT, part.t.between(*SCENARIOS[scenario][-1])
        row = dict(scenario=scenario, loss=loss, disjoint=flat[part.iou == 0].mean(), contained=flat[contained].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def describe_flat_parts(table: pd.DataFrame) -> str:
    plateau = [name for name, part in table.groupby("loss", sort=False) if part.disjoint.min() == 1]
    constant = table.loss[(table.scenario == "contained") & (table.contained == 1)]
    inside = " There GIoU equals IoU, and both are constant; a loss on centres is not."
    return (
        f"**What we see.** Zero slope everywhere on disjoint boxes: {style.labels(plateau)} (claim G5). Zero slope as "
        f"a small box moves inside the target: {style.labels(constant)}.{inside if 'giou' in set(constant) else ''}"
    )


def far_slopes(shifts: list[float]) -> pd.DataFrame:
    """The slope of PIoU v2 as a unit square is shifted along x by `shifts` widths, above 0 where descent brings it
    back: its factor constant in the gradient, and as its authors have it. Columns: shift, constant, authors."""
    shift = torch.tensor(shifts, dtype=torch.float64, requires_grad=True)
    pairs = [(LOSSES["piou_v2"](_square(shift, 0 * shift, 1), TARGET, detached=detached)) for detached in (True, False)]
    slopes = (torch.autograd.grad(value.sum(), shift, retain_graph=True)[0].numpy() for value in pairs)
    return pd.DataFrame(dict(zip(("shift", "constant", "authors"), (shifts, *slopes), strict=True)))


def field(losses: list[str], n: int, side: float = 0.5) -> pd.DataFrame:
    """The descent direction −∂loss/∂(x, y, w, h) with a square of `side` centred on an n x n grid: loss, x, y, iou, dx,
    dy, dw, dh."""
    grid = torch.linspace(-2, 2, n, dtype=torch.float64)
    y, x = (axis.reshape(-1) for axis in torch.meshgrid(grid, grid, indexing="ij"))
    state = torch.stack((x, y, torch.full_like(x, side), torch.full_like(x, side)), -1).requires_grad_()
    tables = []
    for name in losses:
        pred = boxes.convert(state, "cxcywh", "xyxy")
        (gradient,) = torch.autograd.grad(LOSSES[name](pred, TARGET.expand_as(pred)).sum(), state)
        columns = dict(zip(("dx", "dy", "dw", "dh"), (-gradient).unbind(-1), strict=True))
        tables.append(pd.DataFrame(dict(loss=name, x=x, y=y, iou=boxes.iou(pred, TARGET).detach()) | columns))
    return pd.concat(tables, ignore_index=True)


@style.styled
def plot_field(table: pd.DataFrame):
    """Descent direction in the plane of centres, a panel a loss: arrows of one length, coloured by the gradient's size,
    and crosses where it is zero."""
    names = table.loss.unique()
    columns = min(4, len(names))
    figure, axes = style.panels(-(-len(names) // columns), columns, 3.0, 3.15, sharex=True, sharey=True)
    table = table.assign(size=np.hypot(table.dx, table.dy))
    sizes = table["size"][(table["size"] > FLAT) & np.isfinite(table["size"])]
    norm = LogNorm(sizes.quantile(0.02), sizes.max()) if len(sizes) else None
    for axis, name in zip(axes.flat, names, strict=False):
        colored = draw_field(axis, table[table.loss == name], norm)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.colorbar(colored, ax=axes, label="size of the gradient by x and y", shrink=0.8)
    return figure


def draw_field(axis, table: pd.DataFrame, norm=None):
    """The panel of one loss's field; `norm` maps the gradient's size to a colour. Returns the arrows."""
    size = np.hypot(table.dx, table.dy)
    moving = (size > FLAT) & np.isfinite(size)
    arrows, zero, size = table[moving], table[~moving], size[moving]
    look = dict(norm=norm, cmap="viridis_r", scale=22, width=0.006, pivot="mid")
    colored = axis.quiver(arrows.x, arrows.y, arrows.dx / size, arrows.dy / size, size, **look)
    axis.plot(zero.x, zero.y, "x", color=style.NO_GRADIENT, markersize=3.5, markeredgewidth=0.8)
    style.draw_box(axis, TARGET.tolist(), style.TRUE)
    axis.set_title(f"{registry.label(table.loss.iloc[0])}\nzero gradient: {100 * len(zero) / len(table):.1f} %")
    axis.set_aspect("equal")
    axis.grid(False)
    return colored


def describe_field(table: pd.DataFrame) -> str:
    zero = table.assign(zero=table[["dx", "dy"]].abs().max(axis=1) < FLAT, disjoint=table.iou < FLAT)
    shares = zero.pivot_table(index="loss", columns="disjoint", values="zero", sort=False)
    words = "; ".join(
        f"{registry.label(name)} at {100 * shares[True][name]:.0f} % of the disjoint positions and "
        f"{100 * shares[False][name]:.0f} % of the others"
        for name in table.loss.unique()
    )
    return f"**What we see.** Zero gradient by the centre: {words}."


def steepness(losses: list[str], n: int, seed: int, bins: int = 10) -> pd.DataFrame:
    """Size of each loss's gradient against the overlap (claim G7): for predictions around unit squares, errors of every
    size.

    Columns: loss, iou_low, iou_high (the bin; the first row of each loss is the disjoint pairs, 0 to 0), pairs, q25,
    median, q75 of ‖∂loss/∂(x1, y1, x2, y2)‖, and correlation, Pearson's, of IoU and GIoU in the bin.
    """
    rng = np.random.default_rng(seed)
    target = TARGET.expand(n, 4)
    error = rng.normal(size=(n, 4)) * np.exp(rng.uniform(np.log(0.01), np.log(1.5), (n, 1)))
    shift = np.tile(rng.normal(size=(n, 2)) * np.exp(rng.uniform(np.log(0.01), np.log(1.5), (n, 1))), 2)
    pred = (target + torch.from_numpy(error + shift)).requires_grad_()
    iou, giou = (measure(pred, target).detach().numpy() for measure in (boxes.iou, boxes.giou))
    edges = np.arange(bins + 1) / bins
    high = pd.cut(iou, [-1, *edges], labels=edges).astype(float)
    pairs = pd.DataFrame(dict(iou=iou, giou=giou, iou_low=np.maximum(high - 1 / bins, 0).round(9), iou_high=high))
    pairs = pairs.groupby("iou_high").filter(lambda part: len(part) >= 10)
    groups = pairs.groupby(["iou_low", "iou_high"])
    correlation = groups.apply(lambda part: part.iou.corr(part.giou) if part.iou.any() else np.nan)
    tables = []
    for name in losses:
        (gradient,) = torch.autograd.grad(LOSSES[name](pred, target).sum(), pred)
        norm = pairs.assign(norm=gradient.norm(dim=-1).numpy()[pairs.index]).groupby(["iou_low", "iou_high"]).norm
        quantiles = norm.quantile([0.25, 0.5, 0.75]).unstack().set_axis(["q25", "median", "q75"], axis=1)
        tables.append(quantiles.assign(loss=name, pairs=groups.size(), correlation=correlation).reset_index())
    columns = ["loss", "iou_low", "iou_high", "pairs", "q25", "median", "q75", "correlation"]
    return pd.concat(tables, ignore_index=True)[columns]


@style.styled
def plot_steepness(table: pd.DataFrame):
    """Size of the gradient against IoU, and the correlation of IoU and GIoU."""
    figure, ((left, right),) = style.panels(1, 2, 4.6, 4)
    table = table.assign(iou=(table.iou_low + table.iou_high) / 2)
    style.draw_losses(left, table, "iou", "median", band=("q25", "q75"), markevery=1)
    left.set(xlabel="IoU (0: disjoint)", ylabel="‖∂loss/∂corners‖, median and quartiles")
    left.set_ylim(0, np.nanmin([4, 1.1 * table.q75.max()]))
    left.legend(ncols=2)
    part = table[table.loss == table.loss.iloc[0]].dropna()
    right.plot(part.iou, part.correlation, marker="o", markersize=4, color="black")
    right.set(xlabel="IoU", ylabel="correlation of IoU and GIoU", xlim=(0, 1), ylim=(0, 1.03))
    return figure


def describe_steepness(table: pd.DataFrame) -> str:
    correlation = table[table.loss == table.loss.iloc[0]].set_index("iou_high").correlation
    steep = table.pivot(index="iou_high", columns="loss", values="median")
    words = ""
    if {"iou", "giou"} <= set(steep):
        low, high = (steep.giou / steep.iou)[[0.1, 1.0]]
        words = f"GIoU is {low:.1f} times as steep as IoU at IoU below 0.1, and {high:.2f} times above 0.9. "
    return (
        f"**What we see.** {words}IoU and GIoU correlate with {correlation[0.1]:.2f} at IoU below 0.1 and with "
        f"{correlation[1.0]:.4f} above 0.9 (claim G7)."
    )

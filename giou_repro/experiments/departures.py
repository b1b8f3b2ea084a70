"""Notebook 03: the gradients of the DIoU authors' code taken apart, one departure from the derivative at a time."""

import itertools

import numpy as np
import pandas as pd
import torch

from giou_repro import registry
from giou_repro.experiments import style
from giou_repro.experiments.convergence import by_point, standings
from giou_repro.simulation import cases, diou_code, simulate


def ends(n_points: int, losses=("giou", "diou"), **options) -> pd.DataFrame:
    """Where the published gradients end with each set of their departures corrected, from none to all of them.

    Columns: loss, corrected and left (names in diou_code.REPAIRS joined by " + ", or "none"), half_step, error (of a
    case), low, high (its 95 % over the anchor points), mean_iou. `options` are simulate's.
    """
    rows = []
    for loss in losses:
        names = diou_code.REPAIRS[loss]
        for repairs in itertools.chain(*(itertools.combinations(names, count) for count in range(len(names) + 1))):
            run = simulate([loss], n_points, gradients="published", repairs=repairs, **options)
            left = [name for name in names if name not in repairs]
            row = dict(loss=loss, corrected=" + ".join(repairs) or "none", left=" + ".join(left) or "none")
            spread = by_point(run.final)[["low", "high"]].iloc[0]
            rows.append(row | standings(run)[["half_step", "error", "mean_iou"]].iloc[0].to_dict() | spread.to_dict())
    return pd.DataFrame(rows)


@style.styled
def plot_ends(table: pd.DataFrame):
    """Final error, and steps to half the error, of each row of `ends`."""
    names = list(table.loss.unique())
    heights = [(table.loss == name).sum() + 1 for name in names]
    figure, axes = style.panels(len(names), 2, 3.4, 2.4, sharex="col", sharey="row", height_ratios=heights)
    for row, name in zip(axes, names, strict=True):
        part = table[table.loss == name].iloc[::-1]
        kinds = np.select([part.corrected == "none", part.left == "none"], ["as published", "exact"], "in between")
        for axis, measure in zip(row, ("error", "half_step"), strict=True):
            for kind, fill in (("as published", "black"), ("in between", "0.75"), ("exact", "white")):
                values = part[measure].where(kinds == kind)
                look = dict(markersize=6, linestyle="", color="black", markerfacecolor=fill)
                axis.plot(values, part.corrected, marker="o", label=kind, **look)
        row[0].hlines(part.corrected, part.low, part.high, color="black", linewidth=1)
        row[0].set(title=f"{registry.label(name)}: corrected", xscale="log")
    axes[-1, 0].set_xlabel("final error of a case, 95 % CI")
    axes[-1, 1].set_xlabel("steps to half the error")
    style.legend_below(figure, axes)
    return figure


def describe_ends(table: pd.DataFrame) -> str:
    rows = table.set_index(["loss", "corrected"])

    def said(loss, corrected):
        row = rows.loc[(loss, corrected)]
        half = "never reaches half" if np.isnan(row.half_step) else f"reaches half after {row.half_step:.0f} steps"
        millions = row.error * diou_code.CURVE_CASES / 1e6
        return f"{half} and ends at {row.error:.4f} ({millions:.4f} million for the paper's cases)"

    words = []
    for loss in table.loss.unique():
        single = [name for name in diou_code.REPAIRS[loss] if (loss, name) in rows.index]
        words.append(f"{registry.label(loss)} as published {said(loss, 'none')}.")
        words += [f"With {name} corrected alone it {said(loss, name)}." for name in single]
    for giou, diou in itertools.product((0, -1), repeat=2):  # the first row is as published, the last one corrected
        first, second = rows.loc["giou"].iloc[giou], rows.loc["diou"].iloc[diou]
        faster, lower = ("GIoU" if first[key] < second[key] else "DIoU" for key in ("half_step", "error"))
        ways = [("published", "corrected")[number] for number in (giou, diou)]
        words.append(
            f"GIoU {ways[0]} against DIoU {ways[1]}: {faster} is first at half the error, {lower} ends lower "
            f"({first.error:.4f} and {second.error:.4f})."
        )
    return f"**What we see.** {' '.join(words)}"


def pull(n_points: int, seed: int = 0) -> pd.DataFrame:
    """How strongly published GIoU pulls boxes that start apart from their target, with and without corrections.

    Columns: apart (along "one axis" or "both axes"), corrected, cases, low, median, high (5, 50 and 95 %), away. The
    ratio is of the moves along the axes that the boxes are apart on: the part that goes the derivative's way, over the
    derivative. `away` is the share where it is negative.
    """
    points = cases.draw_points(n_points, seed)
    box, target = cases.boxes_and_targets(points, "cxcywh", torch.float64, "cpu")
    gaps = torch.stack([(box[k] - target[k]).abs() > (box[k + 2] + target[k + 2]) / 2 for k in (0, 1)])
    right = torch.stack(diou_code.giou_ascent(box, target, diou_code.REPAIRS["giou"])[:2]) * gaps
    rows = []
    for repairs in ((), ("value",), ("derivative",)):
        move = torch.stack(diou_code.giou_ascent(box, target, repairs)[:2])
        ratio = (move * right).sum(0) / (right**2).sum(0)
        for where, chosen in (("one axis", gaps.sum(0) == 1), ("both axes", gaps.all(0))):
            values = ratio[chosen].numpy()
            quantiles = dict(zip(("low", "median", "high"), np.quantile(values, (0.05, 0.5, 0.95)), strict=True))
            row = dict(apart=where, corrected=" + ".join(repairs) or "none", cases=len(values))
            rows.append(row | quantiles | dict(away=(values < 0).mean()))
    return pd.DataFrame(rows)


def describe_pull(table: pd.DataFrame) -> str:
    words = "; ".join(
        f"apart along {row.apart}, {'as published' if row.corrected == 'none' else row.corrected + ' corrected'}, "
        f"{row.median:.2f} ({row.low:.2f} to {row.high:.2f}; {row.away:.0%} pulled away)"
        for row in table.itertuples()
    )
    return (
        "**What we see.** Boxes that start apart from their target: GIoU's move of their centre along the gap, over "
        f"the derivative's, median and 5 to 95 %: {words}."
    )

"""Notebook 06, the figures and what they show: every run, differences, curves, thresholds and weights."""

import textwrap
from itertools import combinations

import numpy as np
import pandas as pd

from giou_repro import registry
from giou_repro.experiments import detector, style
from giou_repro.experiments.comparison import baseline, measure_label


@style.styled
def plot_every_run(runs: pd.DataFrame):
    """AP, AP75 and AP by GIoU of every run as dots, by loss, their means as bars; a row a setting."""
    figure, rows = row_a_setting(runs, 3)
    for axes, part in rows:
        losses = list(part.loss.unique())
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(losses) > 4 else {}
        for axis, measure in zip(axes, ("AP", "AP75", "AP_giou"), strict=True):
            for place, loss in enumerate(losses):
                values = part[part.loss == loss][measure]
                places = place + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.06
                style.draw_loss(axis, loss, places, values, linestyle="none", markevery=1, alpha=0.75)
                axis.hlines(values.mean(), place - 0.3, place + 0.3, color=style.color(loss), linewidth=2.2)
            axis.set(ylabel=measure_label(measure))
            axis.set_xticks(range(len(losses)), map(registry.label, losses), **turned)
    return figure


def describe_every_run(runs: pd.DataFrame) -> str:
    """How far the means of losses and the runs of one loss are apart, and of how many pairs of losses the runs mix."""

    def words(part):
        of = part.groupby("loss", sort=False).AP.agg(["mean", "min", "max"])
        pairs = list(combinations(of.itertuples(), 2))
        mixed = sum(a.min <= b.max and b.min <= a.max for a, b in pairs)
        widest = (of["max"] - of["min"]).idxmax()
        return (
            f"mean AP is {of['mean'].min():.3f} ({registry.label(of['mean'].idxmin())}) to {of['mean'].max():.3f} "
            f"({registry.label(of['mean'].idxmax())}); runs of one loss differ by up to "
            f"{of['max'][widest] - of['min'][widest]:.3f} ({registry.label(widest)}); the ranges of the runs of "
            f"{mixed} of {len(pairs)} pairs of losses overlap"
        )

    return _told(runs, words)


def _told(table, words, least=2):
    """The sentences on a figure: `words` of the part of each setting that has at least so many losses."""
    lines = [
        f"- {setting}: {words(part) if part.loss.nunique() >= least else 'only one loss was run'}."
        for setting, part in table.groupby("setting", sort=False)
    ]
    return "\n".join(["**What we see.**\n", *lines])


def row_a_setting(table, columns, width=3.2, height=2.6, **options):
    """A figure with a row of panels, and its title, for each setting of a table: (figure, [(axes, part)])."""
    parts = [part for _, part in table.groupby("setting", sort=False)]
    figure, axes = style.panels(len(parts), columns, width, height, **options)
    for row, part in zip(axes, parts, strict=True):
        words = textwrap.wrap(part.setting.iloc[0], 100)
        row[0].set_title("\n".join(" " for _ in words))  # keeps the height of what may be wider than its panel
        title = row[0].text(0, 1.03, "\n".join(words), transform=row[0].transAxes, va="bottom")
        title.set_in_layout(False)
    return figure, list(zip(axes, parts, strict=True))


@style.styled
def plot_paired(table: pd.DataFrame):
    """Paired differences in points (hundredths) with 95 % CI, full dots where the verdict is better or worse.

    A row a setting, a panel a measure; a line parts what is against one loss from what is against another.
    """
    measures = table.measure.unique()
    heights = 0.9 + 0.2 * table[table.measure == measures[0]].groupby("setting", sort=False).size().to_numpy()
    figure, rows = row_a_setting(table, len(measures), 2.2, heights.mean(), sharey="row", height_ratios=heights)
    for axes, part in rows:
        for axis, measure in zip(axes, measures, strict=True):
            entries = part[part.measure == measure].reset_index()
            colors, decided = entries.loss.map(style.color), entries.verdict.isin(("better", "worse"))
            fill = colors.where(decided, "white")
            axis.hlines(entries.index, 100 * entries.low, 100 * entries.high, color=colors, linewidth=2)
            axis.scatter(100 * entries.difference, entries.index, 25, fill, edgecolors=colors, zorder=3)
            for place in np.flatnonzero(entries.against != entries.against.shift())[1:]:
                axis.axhline(place - 0.5, color="#999999", linewidth=0.6)
            axis.axvline(0, color="#999999", linewidth=1)
            pairs = entries.loss.map(registry.label) + " − " + entries.against.map(registry.label)
            axis.set(yticks=entries.index, yticklabels=pairs + " (n " + entries.n.astype(str) + ")")
            axis.set(xlabel=f"Δ {measure_label(measure)}, points", ylim=(len(entries) - 0.4, -0.6))
            axis.locator_params(axis="x", nbins=3)
            axis.grid(axis="y", visible=False)
    return figure


@style.styled
def plot_curves(table: pd.DataFrame):
    """Classification loss, mean IoU of positives and AP by epoch, mean over seeds; a row a setting."""
    labels = {"classification": "classification loss", "mean_iou": "mean IoU", "AP": "AP (validation)"}
    figure, rows = row_a_setting(table, len(labels))
    for axes, part in rows:
        means = part.groupby(["loss", "epoch"], sort=False, as_index=False)[list(labels)].mean()
        detector.draw_curves(axes, means, labels)
    style.legend_below(figure, figure.axes)
    return figure


def describe_curves(table: pd.DataFrame) -> str:
    """Which loss ends highest in mean IoU of the positives and in AP, and how far above the lowest."""

    def words(part):
        ends = part.sort_values("epoch").groupby(["run", "loss"])[["mean_iou", "AP"]].last().groupby("loss").mean()
        return "; ".join(
            f"{name} ends highest with {registry.label(values.idxmax())} ({values.max():.3f}) and lowest with "
            f"{registry.label(values.idxmin())} ({values.min():.3f})"
            for name, values in (("mean IoU of the positives", ends.mean_iou.dropna()), ("AP", ends.AP.dropna()))
            if len(values)
        )

    return _told(table, words)


@style.styled
def plot_thresholds(table: pd.DataFrame):
    """AP against the threshold of the match by IoU and by GIoU, mean over seeds, and the difference to the baseline."""
    figure, rows = row_a_setting(table, 3)
    for axes, part in rows:
        base = baseline(part.loss.unique())
        means = part.groupby(["criterion", "loss", "threshold"], sort=False, as_index=False).AP.mean()
        iou, giou = (means[means.criterion == criterion] for criterion in ("iou", "giou"))
        gain = iou.assign(AP=iou.AP - iou.threshold.map(iou[iou.loss == base].set_index("threshold").AP))
        for axis, lines, criterion in zip(axes, (iou, giou, gain), ("IoU", "GIoU", "IoU"), strict=True):
            style.draw_losses(axis, lines, "threshold", "AP")
            axis.set(xlabel=f"threshold of {criterion}", ylabel="AP", ylim=(None if lines is gain else 0, None))
        axes[2].set_ylabel(f"AP − AP of {registry.label(base)}")
    style.legend_below(figure, figure.axes)
    return figure


def describe_thresholds(table: pd.DataFrame) -> str:
    """The gain in AP of GIoU, or else of every loss, over the baseline at the lowest and highest threshold, and where
    it is largest."""

    def words(part):
        means = part[part.criterion == "iou"].pivot_table(index="threshold", columns="loss", values="AP")
        base = baseline(part.loss.unique())
        gains = means.drop(columns=base).sub(means[base], axis=0)
        shown = gains[["giou"]] if "giou" in gains else gains
        return "; ".join(
            f"{registry.label(loss)} − {registry.label(base)} is {gain.iloc[0]:+.3f} at {gain.index[0]:.2f}, "
            f"{gain.iloc[-1]:+.3f} at {gain.index[-1]:.2f}, and largest at {gain.idxmax():.2f} ({gain.max():+.3f})"
            for loss, gain in shown.items()
        )

    return _told(table, words)


@style.styled
def plot_weights(table: pd.DataFrame):
    """AP against the weight of the box loss, mean and 95 % CI; a row a setting."""
    figure, rows = row_a_setting(table, 1, style.WIDTH, 1.7)
    for (axis,), part in rows:
        style.draw_losses(axis, part, "weight", "mean", ("low", "high"), markevery=1)
        axis.set(xscale="log", xlabel="weight of the box loss", ylabel="AP")
        axis.set_xticks(part.weight.unique(), [f"{weight:g}" for weight in part.weight.unique()])
        axis.minorticks_off()
    style.legend_below(figure, figure.axes)
    return figure


def describe_weights(table: pd.DataFrame) -> str:
    """The weight of each loss's highest mean AP, and whether it is an end of its grid."""

    def words(part):
        best = part.loc[part.groupby("loss", sort=False)["mean"].idxmax()]
        ends = part.groupby("loss").weight.agg(["min", "max"])
        return "best weights are " + ", ".join(
            f"{row.weight:g} for {registry.label(row.loss)} (AP {row.AP:.3f}"
            f"{', the end of its grid' if row.weight in ends.loc[row.loss].tolist() else ''})"
            for row in best.rename(columns={"mean": "AP"}).itertuples()
        )

    return _told(table, words, least=1)

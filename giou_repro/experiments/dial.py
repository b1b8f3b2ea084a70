"""Notebook 06, the dial: what GIoU gains where a share of the positives is disjoint from their target, because YOLOv3
assigns them k cells away from the target's centre (`cells_away`). docs/protocol.md says what is decided, and how."""

import textwrap

import pandas as pd

from giou_repro import registry
from giou_repro.experiments import statistics, style
from giou_repro.experiments.comparison import AT_ONE_WEIGHT, AWAY, FIT, difference_label, measure_label
from giou_repro.experiments.comparison_figures import row_a_setting

AGAINST = ("iou", "l1", "l2")
COLUMNS = ["dial", "measure", "loss", "against", "n", "difference", "low", "high", "p", "p_signs", "verdict"]
MEASURES = (FIT, "mean_iou", "AP")  # the first decides


def dialled(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of settings that differ from another in cells_away alone; `dial` is what they share, in words. A
    measure that is not finite counts as 0."""
    if "cells_away" not in runs:
        return runs[:0].assign(dial="")
    runs = runs.assign(dial=runs.setting.str.replace(AWAY.format(r"\d+"), "", regex=True)).fillna(
        dict.fromkeys(MEASURES, 0)
    )
    return runs[runs.groupby("dial").cells_away.transform("nunique") > 1]


def others(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that are of no dial in `runs`; all where there are no others."""
    rest = table[~table.setting.isin(dialled(runs).setting)]
    return rest if len(rest) else table


def at_best_weights(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `gains` or `slopes` in which each loss has its own weight; all where there are no others."""
    rest = table[~table.dial.str.contains(AT_ONE_WEIGHT)]
    return rest if len(rest) else table


def gains(runs: pd.DataFrame, measures=MEASURES) -> pd.DataFrame:
    """GIoU − each loss of AGAINST in `dialled` runs, by measure and cells_away: `statistics.judged` rows, those of a
    measure one family, with dial, cells_away and disjoint (share of the positives, mean of both losses)."""
    families = []
    for (name, measure), by_cells in _by_dial(runs, measures):
        rows = []
        for cells, part in by_cells.groupby("cells_away"):
            pairs = [("giou", against) for against in AGAINST if {"giou", against} <= set(part.loss)]
            shares = part.groupby("loss").disjoint.mean()
            row = statistics.compare(part, measure, pairs).assign(dial=name, cells_away=cells)
            rows.append(row.assign(disjoint=[(shares[against] + shares["giou"]) / 2 for _, against in pairs]))
        families.append(statistics.judged(pd.concat(rows), unpaired=False))
    return (
        pd.concat(families, ignore_index=True)
        if families
        else pd.DataFrame(columns=[*COLUMNS, "cells_away", "disjoint"])
    )


def slopes(runs: pd.DataFrame, measures=MEASURES) -> pd.DataFrame:
    """How the gain of GIoU changes with the share of disjoint positives: `statistics.difference` of the slope and 0,
    with dial, measure, against and verdict ("better" where the gain grows).

    The slope of a seed is that of the least-squares line through its gains at all cells_away, for a share of 1.
    """
    rows = []
    for (name, measure), group in _by_dial(runs, measures):
        table = group.pivot(index="seed", columns=["loss", "cells_away"], values=[measure, "disjoint"])
        for against in AGAINST:
            if {"giou", against} <= set(group.loss):
                gain = (table[measure]["giou"] - table[measure][against]).dropna()
                share = ((table["disjoint"]["giou"] + table["disjoint"][against]) / 2).loc[gain.index]
                off = share.sub(share.mean(axis=1), axis=0)
                slope = (off * gain).sum(axis=1) / (off**2).sum(axis=1)
                found = statistics.difference(slope, 0 * slope)
                verdict = statistics.verdicts(found, found["p"]).item()
                rows.append(
                    dict(dial=name, measure=measure, loss="giou", against=against) | found | dict(verdict=verdict)
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_dial(runs, measures):
    return [
        ((name, key), part)
        for name, part in dialled(runs).groupby("dial", sort=False)
        for key in measures
        if key in part
    ]


@style.styled
def plot_gains(table: pd.DataFrame):
    """The gain of GIoU in points (hundredths) with 95 % CI against the share of disjoint positives: a row a dial, a
    panel a measure and a line a loss that it is held against; full markers where the verdict is better or worse."""
    measures = table.measure.unique()
    figure, rows = row_a_setting(table.assign(setting=table.dial), len(measures))
    for axes, of_dial in rows:
        for axis, measure in zip(axes, measures, strict=True):
            for against, part in of_dial[of_dial.measure == measure].groupby("against", sort=False):
                x, gain, color = 100 * part.disjoint, 100 * part.difference, style.color(against)
                label = f"against {registry.label(against)}"
                style.draw_loss(axis, against, x, gain, markevery=1, markerfacecolor="white", label=label)
                axis.vlines(x, 100 * part.low, 100 * part.high, color=color, linewidth=0.9)
                decided = part.verdict.isin(("better", "worse"))
                marker = style.color_line_marker(against)[2]
                axis.plot(x[decided], gain[decided], color=color, marker=marker, linestyle="")
            axis.axhline(0, color="#999999", linewidth=0.8)
            gained = textwrap.fill(f"Δ {measure_label(measure)}, points", 20)
            axis.set(xlabel="disjoint positives (%)", ylabel=gained)
    style.legend_below(figure, figure.axes)
    return figure


def describe_gains(gains: pd.DataFrame, slopes: pd.DataFrame) -> str:
    """The gain at the least and the greatest share, and whether it grows."""
    grows = dict(zip(statistics.VERDICTS, ("grows", "shrinks", "undecided", "too few seeds"), strict=True))
    primary = slopes[(slopes.measure == MEASURES[0]) & (slopes.against == AGAINST[0])].verdict.map(grows)
    lines = [
        "**What we see.** Whether GIoU's gain over IoU in the mean IoU of the positives grows with the share of "
        f"disjoint positives: {', '.join(primary) or 'not measured'}.\n"
    ]
    for row in slopes.itertuples():
        at = gains[(gains.dial == row.dial) & (gains.measure == row.measure) & (gains.against == row.against)]
        first, last = at.loc[at.disjoint.idxmin()], at.loc[at.disjoint.idxmax()]
        lines.append(
            f"- {row.dial}: {measure_label(row.measure)}, GIoU − {registry.label(row.against)}: "
            f"{difference_label(first)} where {first.disjoint:.0%} of the positives are disjoint, "
            f"{difference_label(last)} where {last.disjoint:.0%} are; slope {difference_label(row)}, n = {row.n}: "
            f"**{grows[row.verdict]}**"
        )
    return "\n".join(lines)

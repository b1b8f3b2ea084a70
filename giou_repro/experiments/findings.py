"""What we see, in words, written from the numbers of the run. Each function takes the tables of one figure and returns
Markdown."""

import pandas as pd

from giou_repro import registry
from giou_repro.experiments import statistics


def trained(row, curves):
    """What one training run came to."""
    if row.isna().AP:
        return "The validation images have no object that counts, so there is no AP."
    start, end = curves.mean_iou.iloc[0], curves.mean_iou.iloc[-1]
    return (
        f"**AP {row.AP:.3f}** (AP50 {row.AP50:.3f}, AP75 {row.AP75:.3f}; by GIoU {row.AP_giou:.3f}) after {int(curves.epoch.iloc[-1])} epochs. "
        f"The positives' mean IoU went from {start:.2f} in the first epoch to {end:.2f} in the last; {row.disjoint:.1%} of them were disjoint from "
        f"their target. {row.images_per_second:.0f} images a second. One run says nothing about which loss is better: that takes `06_compare_losses`."
    )


def paired(table):
    """What each setting's differences allow to say, all of them, by what they are against and by verdict."""
    if table.empty:
        return "No setting has two losses, so there is nothing to compare yet."
    lines = []
    for setting, part in table.groupby("setting", sort=False):
        lines.append(f"**{setting}** ({len(part)} differences)\n")
        part = part.assign(
            against=pd.Categorical(part.against, part.against.unique()),
            verdict=pd.Categorical(part.verdict, statistics.VERDICTS),
        )
        for (against, verdict), rows in part.groupby(["against", "verdict"], observed=True):
            seeds = " to ".join(f"{n}" for n in sorted({rows.n.min(), rows.n.max()}))
            measures = (
                f"{measure(name)}: {', '.join(map(_difference, these.itertuples()))}"
                for name, these in rows.groupby("measure", sort=False)
            )
            lines.append(f"- against {registry.label(against)} (n = {seeds}), **{verdict}**: {'; '.join(measures)}")
        if "mean_iou" not in set(part.measure):
            lines.append("- mean IoU is not compared: a training found no object")
        lines.append("")
    lines.append(
        "In brackets: the 95 % confidence interval of the mean difference, from three seeds on. There is no verdict below five seeds; verdicts"
    )
    lines.append("are corrected for the number of differences of their setting (Holm), intervals are not.")
    return "\n".join(lines)


def measure(name):
    """What tables and sentences call a measure."""
    return name.replace("mean_iou", "mean IoU").replace("_giou", " by GIoU")


def interval(row):
    """The mean difference and its interval, of a row of comparison.paired."""
    return f"{row.difference:+.3f}" + (f" ({row.low:+.3f} to {row.high:+.3f})" if row.n >= statistics.LEAST else "")


def _difference(row):
    return f"{registry.label(row.loss)} {interval(row)}"


def ledger(table):
    """From page.ledger: the verdicts, by whose runs they are."""
    words = []
    for whose, part in table.groupby("whose", sort=False):
        each = (f"{len(ids)} {verdict} ({', '.join(ids)})" for verdict, ids in part.groupby("verdict", sort=False).id)
        words.append(f"{whose.capitalize()}: {'; '.join(each)}.")
    return f"**What we see.** {' '.join(words)}"

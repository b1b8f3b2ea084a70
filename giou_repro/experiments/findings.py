"""What we see, in words, written from the numbers of the run. Each function takes the tables of one figure and returns
Markdown."""

import pandas as pd

from giou_repro import registry
from giou_repro.experiments import statistics
from giou_repro.experiments.landscape import FLAT


def ranking(table, measure):
    """The losses of a table in words, best first, by one of its columns: the least error, or the highest of anything
    else."""
    order = table.sort_values(measure, ascending=measure == "error")
    return ", ".join(f"{registry.label(row.loss)} ({getattr(row, measure):.3f})" for row in order.itertuples())


def _labels(names):
    return ", ".join(registry.label(name) for name in names) or "none"


def figure_1(table):
    same = all((table[key].round(2) == table[f"printed_{key}"]).all() for key in ("iou", "giou", "distance"))
    a, b = table[table.panel == "a"], table[table.panel == "b"]
    return (
        f"**What we see.** The printed values are {'all reproduced to their two digits' if same else '**not** all reproduced'}. "
        f"At one distance IoU runs from {a.iou.min():.2f} to {a.iou.max():.2f} in (a) and from {b.iou.min():.2f} to {b.iou.max():.2f} in (b).\n\n"
        "*A note on the 8.41.* The paper calls panel (a)'s distance ‖·‖₂ = 8.41. It is the sum of the two corners' distances, "
        f"7 + √2 = {a.distance.iloc[0]:.2f}; the ℓ2 norm of the four differences is √51 = {a.l2_of_corners.iloc[0]:.2f}. "
        "Either is the same for all three predictions, so the argument stands."
    )


def spread(circle, radius, table):
    at = table[table.measure == "iou"]
    at = at[at.distance == at.distance.iloc[(at.distance - 7).abs().argmin()]].set_index("norm")
    ranges = [
        f"at {norm.replace('l', 'ℓ')} distance {row.distance:g} from {row.low:.2f} to {row.high:.2f}"
        for norm, row in at.iterrows()
    ]
    return (
        f"**What we see.** With one corner {radius:g} away on a 10 × 20 box, IoU lies anywhere from {circle.iou.min():.2f} to "
        f"{circle.iou.max():.2f}; with all four coordinates wrong, {' and '.join(ranges)}. The distance alone does not say whether a detection "
        "at threshold 0.5 counts (claim G1)."
    )


def rank_correlation(table):
    one, many = (
        table[(table.targets == targets) & (table.norm == "l1")].sort_values("size") for targets in ("one", "many")
    )
    tiny, large = one.iloc[0], one.iloc[-1]
    better = "better" if tiny.low > large.high else "no better"
    return (
        f"**What we see.** For one target, ρ of ℓ1 distance and IoU is {tiny.spearman:.3f} (95 % range {tiny.low:.3f} to {tiny.high:.3f}) for errors "
        f"up to {tiny['size']:g} of the diagonal and {large.spearman:.3f} ({large.low:.3f} to {large.high:.3f}) for errors up to {large['size']:g}: "
        f"distance ranks {better} as errors shrink. Yet even then {tiny.wrong_pairs:.0%} of the pairs are ranked wrongly, because a pixel costs more "
        f"on a short side than on a long one; and over targets of many sizes ρ is {many.spearman.iloc[0]:.2f} for tiny errors and "
        f"{many.spearman.iloc[-1]:.2f} for large ones."
    )


def iou_against_giou(equal, corners):
    lowest = [table.giou[table.overlap].min() for table in (equal, corners)]
    return (
        f"**What we see.** Overlapping pairs go down to GIoU {lowest[0]:.2f} for equal squares (the bound is −1/2) and to {lowest[1]:.2f} for random "
        f"corners (the bound is −1), from {len(equal):,} pairs each (claim B2). Where IoU is 0, GIoU still tells near from far."
    )


def shorthand(table):
    gap = (table.shorthand - table.giou).groupby(table.overlap).max()
    return (
        f"**What we see.** For disjoint boxes the two agree (largest difference {abs(gap[False]):.0e}); for overlapping ones the shorthand is too "
        f"high by up to {gap[True]:.2f} and reaches {table.shorthand.max():.2f}, where no GIoU can be above 1. For identical boxes it gives 2."
    )


def rotation(table):
    best, most = table.loc[table.giou.idxmax()], table.loc[table.box_giou.idxmax()]
    return (
        f"**What we see.** As polygons, GIoU is highest ({best.giou:.2f}) at {best.angle:.0f}°; the upright boxes have theirs ({most.box_giou:.2f}) "
        f"at {most.angle:.0f}°. IoU is 0 at {(table.iou < 1e-12).mean():.0%} of the angles, where GIoU still runs from "
        f"{table.giou[table.iou < 1e-12].min():.2f} to {table.giou[table.iou < 1e-12].max():.2f}."
    )


def properties(table):
    broken = "; ".join(table.property[~table.holds])
    return f"**What we see.** {table.holds.sum()} of {len(table)} checks hold{f'; not: {broken}' if broken else ''}."


def compared(table):
    blind, metrics = table.loss[table.blind > 0.99], table.loss[(table.triangle < 1e-9) & (table.asymmetry < 1e-9)]
    return f"**What we see.** No gradient on disjoint boxes: {_labels(blind)}. Symmetric, with no triangle found broken: {_labels(metrics)}."


def flat_parts(table):
    plateau = [name for name, part in table.groupby("loss", sort=False) if part.disjoint.min() == 1]
    stuck = table.loss[(table.scenario == "contained") & (table.contained == 1)]
    inside = (
        " There GIoU equals IoU, and neither says where inside to go; a loss on centres does."
        if "giou" in set(stuck)
        else ""
    )
    return (
        f"**What we see.** No slope anywhere on disjoint boxes: {_labels(plateau)} (claim G5). No slope as a small box moves inside the target: "
        f"{_labels(stuck)}.{inside}"
    )


def field(table):
    still = table.assign(still=table[["dx", "dy"]].abs().max(axis=1) < FLAT, apart=table.iou < FLAT)
    shares = still.pivot_table(index="loss", columns="apart", values="still", sort=False).reindex(table.loss.unique())
    words = [
        f"{registry.label(name)} {row[True]:.0%} of the disjoint places and {row[False]:.0%} of the others"
        for name, row in shares.iterrows()
    ]
    return f"**What we see.** The centre is not pulled on: {'; '.join(words)}."


def steepness(table):
    correlation = table[table.loss == table.loss.iloc[0]].set_index("iou_high").correlation
    words = f"IoU and GIoU correlate with {correlation[0.1]:.2f} at IoU below 0.1 and with {correlation[1.0]:.4f} above 0.9 (claim G7)."
    steep = table.pivot(index="iou_high", columns="loss", values="median")
    if {"iou", "giou"} <= set(steep):
        ratio = steep.giou / steep.iou
        words = f"GIoU is {ratio[0.1]:.1f} times as steep as IoU at IoU below 0.1, and {ratio[1.0]:.2f} times above 0.9. {words}"
    return f"**What we see.** {words}"


def convergence(standings, against):
    """From standings with a column "run" ("published", "exact"), overlap losses only, and convergence.against_paper (or
    None)."""
    words = [
        f"With {run} gradients the final error orders them {ranking(part, 'error')}."
        for run, part in standings.groupby("run", sort=False)
    ]
    if against is not None and len(against):
        worst = against.loc[against.difference.abs().idxmax()]
        words.append(
            f"Our published curves differ from the paper's picture by {against.difference.abs().median():.3f} in the median and by "
            f"{abs(worst.difference):.3f} at most ({registry.label(worst.loss)}, step {worst.step}, where the paper has {worst.paper:.2f})."
        )
    return f"**What we see.** {' '.join(words)}"


def alignment(table):
    """From convergence.alignment with a column "run"."""
    worse = table[table.aligned > 1.5 * table.diagonal]
    words = [
        f"{registry.label(row.loss)} with {row.run} gradients ({row.aligned:.3f} against {row.diagonal:.3f})"
        for row in worse.itertuples()
    ]
    return (
        "**What we see.** Of the starts more than 2 from the targets' centre, those beside, above or below them end with at least half as much "
        f"error again as the diagonal ones for: {'; '.join(words) or 'none'} (claim Z3)."
    )


def step_sizes(table):
    orders = [f"at {size:g}: {ranking(part, 'error')}" for size, part in table.groupby("step_size")]
    found = table.dropna(subset="error")
    best = found.loc[found.groupby("loss", sort=False).error.idxmin()]
    lost = sorted(set(table.loss) - set(found.loss))
    diverged = f" Diverged at every rate: {_labels(lost)}." if lost else ""
    rates = ", ".join(f"{registry.label(row.loss)} at {row.step_size:g}" for row in best.itertuples())
    words = f"Final error, least first, {'; '.join(orders)}. Each at the best of these rates ({rates}): {ranking(best, 'error')}."
    return f"**What we see.** {words}{diverged}"


def every_loss(table, step_size):
    """From convergence.every_loss. Coordinate losses are left out: they regress the very coordinates that the error is
    measured in."""
    overlap = table[[registry.LOSSES[name].space == "boxes" for name in table.loss]]
    equal, best = overlap.dropna(subset="error"), overlap.assign(error=overlap.best_error).dropna(subset="error")
    return (
        f"**What we see.** Of the {len(overlap)} overlap losses, each at the best step size that was tried, least error: "
        f"{ranking(best.nsmallest(4, 'error'), 'error')}; most: {ranking(best.nlargest(3, 'error'), 'error')}. "
        f"With step size {step_size:g} for all the first four are {ranking(equal.nsmallest(4, 'error'), 'error')}."
    )


def encodings(early, final, step):
    """From curves at one early step and at the end, each with a column "run" (the encoding in words)."""
    words = []
    for run, start in early.groupby("run", sort=False):
        end = final[final.run == run]
        first = [ranking(part, measure).split(",")[0] for part in (start, end) for measure in ("error", "mean_iou")]
        words.append(
            f"Regressing {run}, after {step} steps the least error is that of {first[0]} and the highest mean IoU that of {first[1]}; "
            f"at the end {first[2]} and {first[3]}."
        )
    return (
        f"**What we see.** {' '.join(words)}\n\n"
        "The metric decides the winner here. The error this simulation sums *is* the ℓ1 loss of centre and size: a coordinate loss descends the "
        "very quantity it is judged by, each coordinate by itself, with no network in which the steps could get in each other's way, and on boxes "
        "that all have about the same size. Neither reading says how a detector would end, where weights share the errors and none reaches zero."
    )


def single_boxes(table):
    sizes = table.assign(area=(table.w * table.h).abs()).groupby(["gradients", "loss", "start"], sort=False).area.max()
    words = [
        f"{registry.label(loss)} {gradients}, {start}, {area:.1f}"
        for (gradients, loss, start), area in sizes.items()
        if area > 1.2
    ]
    return f"**What we see.** Boxes that grew to more than 1.2 times their area on the way, and to how many: {'; '.join(words) or 'none'}."


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


def apart(table):
    """From convergence.apart."""
    words = [
        f"{registry.label(row.loss)} {row.gradients} {row.solved / row.cases:.0%} ({row.grew / row.cases:.0%} grew, median {row.growth:.1f} times)"
        for row in table.itertuples()
    ]
    return f"**What we see.** Of the {table.cases.max()} boxes that start apart, these ended above IoU .5: {'; '.join(words)}."


def ledger(table):
    """From page.ledger: the verdicts, by whose runs they are."""
    words = []
    for whose, part in table.groupby("whose", sort=False):
        each = (f"{len(ids)} {verdict} ({', '.join(ids)})" for verdict, ids in part.groupby("verdict", sort=False).id)
        words.append(f"{whose.capitalize()}: {'; '.join(each)}.")
    return f"**What we see.** {' '.join(words)}"

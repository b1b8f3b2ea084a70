"""Notebook 03: what the simulation does with each loss. Errors are those of one case, in the boxes' unit."""

import itertools

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from scipy import stats

from giou_repro import boxes, registry
from giou_repro.experiments import statistics, style
from giou_repro.simulation import CASES_PER_POINT, COMPILE_FROM, Simulation, diou_code, simulate
from giou_repro.simulation.cases import CENTRE, SHAPES, case_number

STARTS = {"horizontal": (12.5, 10.0), "vertical": (10.0, 12.5), "diagonal": (12.0, 12.0)}  # centres of the single boxes
UNIT_SQUARE = (9.5, 9.5, 10.5, 10.5)  # their target
OUTPUTS = (  # without which a run of the notebook is not complete
    *(f"{table}_{run}.csv" for table in ("curves", "final") for run in ("published", "exact")),
    *(f"{table}{encoding}.csv" for table in ("step_sizes", "curves_best") for encoding in ("", "_corners")),
    *("standings.csv", "against_paper.csv", "alignment.csv", "points.csv", "differences.csv", "single_boxes.csv"),
    *("apart.csv", "more_steps.csv", "departures.csv", "pull.csv"),
    *(f"figures/{name}.png" for name in ("convergence", "surfaces", "departures", "step_sizes")),
    *("figures/encodings_error.png", "figures/encodings_mean_iou.png"),
    *(f"figures/filmstrip_{start}.png" for start in STARTS),
)


def curves(simulation: Simulation) -> pd.DataFrame:
    """The learning curves with errors for one case, so that simulations of different size compare."""
    cases = simulation.settings["n_points"] * CASES_PER_POINT
    errors = {name: simulation.curves[name] / cases for name in ("error", "error_x", "error_y", "error_w", "error_h")}
    return simulation.curves.assign(**errors)


def standings(simulation: Simulation) -> pd.DataFrame:
    """Where each loss ended: loss, half_step (the first step with half the error of the start), error, mean_iou,
    iou_50, iou_75, iou_90."""
    table = curves(simulation)
    start = table.loss.map(table[table.step == 0].set_index("loss").error)
    half = table[table.error <= start / 2].groupby("loss").step.min().rename("half_step")
    return table[table.step == table.step.max()].merge(half, how="left", on="loss")[
        ["loss", "half_step", "error", "mean_iou", "iou_50", "iou_75", "iou_90"]
    ]


def ranking(table: pd.DataFrame, measure: str) -> str:
    """The losses of a table with a column's value, best first: the least error, or the highest of any other column."""
    order = table.sort_values(measure, ascending=measure == "error")
    return ", ".join(f"{registry.label(row.loss)} ({getattr(row, measure):.3f})" for row in order.itertuples())


def paper_curves(losses: list[str]) -> pd.DataFrame:
    """The DIoU paper's convergence figure as read off the picture (to ± 0.009): loss, step, error."""
    table = pd.DataFrame(diou_code.CURVE).melt("step", var_name="loss", value_name="error").dropna()
    return table[table.loss.isin(losses)].assign(error=lambda t: t.error * 1e6 / diou_code.CURVE_CASES)


def against_paper(simulation: Simulation) -> pd.DataFrame:
    """The curves of a simulation with published gradients beside the paper's: loss, step, paper, ours, difference."""
    paper = paper_curves(simulation.settings["losses"]).rename(columns={"error": "paper"})
    ours = curves(simulation)[["loss", "step", "error"]].rename(columns={"error": "ours"})
    return paper.merge(ours, on=["loss", "step"]).assign(difference=lambda t: t.ours - t.paper)


@style.styled
def plot_convergence(panels: dict[str, pd.DataFrame], measure: str = "error", paper: pd.DataFrame | None = None):
    """`curves` against the step, a panel a title; circles in the first panel are `paper_curves`."""
    labels = {"error": "coordinate error of a case", "mean_iou": "mean IoU", "iou_75": "share above IoU .75"}
    figure, (axes,) = style.panels(1, len(panels), 4.4, 3.6, sharey=True)
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        style.draw_losses(axis, table, "step", measure)
        axis.set(title=title, xlabel="step")
    axes[0].set_ylabel(labels[measure])
    axes[0].set_ylim(bottom=0)
    if paper is not None:
        for line in axes[0].lines:
            line.set_marker("")  # the circles are the paper's
        circle = dict(linestyle="", marker="o", markersize=5, markerfacecolor="white")
        for name, dots in paper.groupby("loss", sort=False):
            axes[0].plot(dots.step, dots.error, color=style.color(name), **circle)
        axes[0].plot([], [], color="black", label="read off the paper", **circle)
    style.legend_below(figure, axes, 8)
    return figure


def describe_convergence(standings: pd.DataFrame, against: pd.DataFrame) -> str:
    """From `standings` with a column "run" ("published", "exact"), of overlap losses only, and `against_paper`."""
    words = [
        f"With {run} gradients the final error orders them {ranking(part, 'error')}."
        for run, part in standings.groupby("run", sort=False)
    ]
    if len(against):
        largest = against.loc[against.difference.abs().idxmax()]
        words.append(
            "Our published curves differ from the paper's picture by "
            f"{against.difference.abs().median():.3f} in the median and by {abs(largest.difference):.3f} at most "
            f"({registry.label(largest.loss)}, step {largest.step}, where the paper has {largest.paper:.2f})."
        )
    return f"**What we see.** {' '.join(words)}"


@style.styled
def plot_surfaces(panels: dict[str, pd.DataFrame]):
    """Mean final error of a case at each anchor point: a row a title, from Simulation.final."""
    columns = max(table.loss.nunique() for table in panels.values())
    figure, axes = style.panels(len(panels), columns, 2.7, 2.7, sharex=True, sharey=True)
    errors = pd.concat(panels.values()).error / CASES_PER_POINT
    norm = LogNorm(max(np.nanquantile(errors, 0.02), 1e-4), np.nanmax(errors))
    for row, (title, table) in zip(axes, panels.items(), strict=True):
        for axis in row[table.loss.nunique() :]:
            axis.set_visible(False)
        for axis, (name, part) in zip(row, table.groupby("loss", sort=False), strict=False):
            size = np.clip(9000 / len(part), 2.5, 60)
            look = dict(norm=norm, s=size, linewidth=0, rasterized=True)
            dots = axis.scatter(part.x, part.y, c=part.error / CASES_PER_POINT, **look)
            axis.set(title=f"{registry.label(name)}, {title}", aspect="equal", xlim=(6.8, 13.2), ylim=(6.8, 13.2))
            axis.grid(False)
    figure.colorbar(dots, ax=axes, label="mean final error of a case", shrink=0.8)
    return figure


def alignment(final: pd.DataFrame, beyond: float = 2.0) -> pd.DataFrame:
    """Final error of starts beside, above or below the targets, and of starts diagonally from them: loss, aligned,
    diagonal, low, high, points.

    Takes Simulation.final. Only anchor points further than `beyond` from the targets' centre count, where boxes start
    apart; aligned ones lie within 22.5° of an axis, diagonal ones within 22.5° of a diagonal. Missing where there is no
    such point. low, high: the 95 % interval of aligned − diagonal over the points (Welch), missing below 3 of either.
    """
    x, y = ((final[axis] - centre).abs() for axis, centre in zip(("x", "y"), CENTRE, strict=True))
    near_axis = np.minimum(x, y) < np.tan(np.pi / 8) * np.maximum(x, y)
    table = final.assign(error=final.error / CASES_PER_POINT, aligned=near_axis)[np.hypot(x, y) > beyond]
    rows = []
    for name in final.loss.unique():
        part = table[table.loss == name]
        aligned, diagonal = part.error[part.aligned], part.error[~part.aligned]
        low, high = np.nan, np.nan
        if min(len(aligned), len(diagonal)) >= statistics.LEAST:
            low, high = stats.ttest_ind(aligned, diagonal, equal_var=False).confidence_interval(statistics.LEVEL)
        means = dict(loss=name, aligned=aligned.mean(), diagonal=diagonal.mean())
        rows.append(means | dict(low=low, high=high, points=len(part)))
    return pd.DataFrame(rows)


def describe_alignment(table: pd.DataFrame) -> str:
    """From `alignment` with a column "run"."""
    words = "; ".join(
        f"{registry.label(row.loss)} with {row.run} gradients ({row.aligned:.3f} against {row.diagonal:.3f})"
        for row in table[table.aligned > 1.5 * table.diagonal].itertuples()
    )
    return (
        "**What we see.** Of the starts more than 2 from the targets' centre, those beside, above or below them end "
        f"with at least half as much error again as the diagonal ones for: {words or 'none'} (claim Z3)."
    )


def by_point(final: pd.DataFrame) -> pd.DataFrame:
    """The final error of a case, over the anchor points: loss, points, error, low, high (95 % of the mean), worst (the
    mean of the worst point)."""
    rows = []
    for name, part in final.groupby("loss", sort=False):
        error = part.error / CASES_PER_POINT
        low, high = statistics.mean_interval(error) if np.isfinite(error).all() else (np.nan, np.nan)
        rows.append(dict(loss=name, points=len(part), error=error.mean(), low=low, high=high, worst=error.max()))
    return pd.DataFrame(rows)


def differences(final: pd.DataFrame) -> pd.DataFrame:
    """The final error of a case under one loss less that under another, point by point: loss, against, points,
    difference, low, high (95 %)."""
    errors = final.pivot(index="point", columns="loss", values="error")[list(final.loss.unique())] / CASES_PER_POINT
    errors = errors.where(np.isfinite(errors))
    rows = []
    for against, loss in itertools.combinations(errors, 2):
        gap = (errors[loss] - errors[against]).dropna()
        low, high = statistics.mean_interval(gap)
        rows.append(dict(loss=loss, against=against, points=len(gap), difference=gap.mean(), low=low, high=high))
    return pd.DataFrame(rows)


def step_sizes(losses: list[str], sizes: list[float], n_points: int, extend: int = 0, **options) -> pd.DataFrame:
    """Where each loss ends for each step size: the columns of `standings` and step_size. `options` are simulate's.

    Where a loss is best at an end of its grid, the grid goes on there by half as much again, `extend` times at most.
    """
    work = len(sizes) * n_points * CASES_PER_POINT * options.get("steps", 200)  # one compiled step serves every size
    options = {"compile": True if work >= COMPILE_FROM else "auto"} | options

    table, todo = pd.DataFrame(), [(losses, size) for size in sizes]
    for _ in range(extend + 1):
        runs = [simulate(names, n_points, step_size=size, **options) for names, size in todo]
        ends = [standings(run).assign(step_size=run.settings["step_size"]) for run in runs]
        table = pd.concat([table, *ends], ignore_index=True)
        todo = [([row.loss], row.step_size * 1.5**row.edge) for row in at_best(table).query("edge != 0").itertuples()]
    return table


def at_best(sizes: pd.DataFrame) -> pd.DataFrame:
    """The rows of `step_sizes` where each loss has its least error, and edge: 1 where its grid ends there, −1 where it
    begins there, else 0. A loss that diverged at every size has none."""
    finite = sizes.dropna(subset="error")
    best = finite.loc[finite.groupby("loss", sort=False).error.idxmin()]
    grid = sizes.groupby("loss").step_size.agg(["min", "max"]).loc[best.loss].to_numpy()
    return best.assign(edge=np.select(grid.T[::-1] == best.step_size.to_numpy(), [1, -1], 0))


def best_runs(sizes: pd.DataFrame, n_points: int, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `curves`, with step_size, and Simulation.final of each loss at its best of `step_sizes`."""
    best = at_best(sizes)
    runs = [simulate([row.loss], n_points, step_size=row.step_size, **options) for row in best.itertuples()]
    paths = [curves(run).assign(step_size=size) for run, size in zip(runs, best.step_size, strict=True)]
    return pd.concat(paths, ignore_index=True), pd.concat([run.final for run in runs], ignore_index=True)


@style.styled
def plot_step_sizes(table: pd.DataFrame):
    """Final error and mean IoU against the step size."""
    figure, (axes,) = style.panels(1, 2, 4.4, 3.5)
    for axis, measure in zip(axes, ("error", "mean_iou"), strict=True):
        style.draw_losses(axis, table.sort_values("step_size", kind="stable"), "step_size", measure)
        axis.axvline(0.1, color="0.6", linewidth=0.9, linestyle="--")
        axis.set(xscale="log", xlabel="step size (dashed: the paper's)")
    axes[0].set(ylabel="final coordinate error of a case", yscale="log")
    axes[1].set(ylabel="final mean IoU")
    style.legend_below(figure, axes)
    return figure


def describe_step_sizes(table: pd.DataFrame) -> str:
    whole = table.groupby("step_size").filter(lambda part: len(part) == table.loss.nunique())
    orders = "; ".join(f"at {size:g}: {ranking(part, 'error')}" for size, part in whole.groupby("step_size"))
    best = at_best(table)
    rates = ", ".join(f"{registry.label(row.loss)} at {row.step_size:g}" for row in best.itertuples())
    return (
        f"**What we see.** Final error, least first, {orders}. Each at the best of these rates ({rates}; at the "
        f"edge of the grid: {style.labels(best.loss[best.edge != 0])}): {ranking(best, 'error')}. "
        f"Diverged at every rate: {style.labels(sorted(set(table.loss) - set(best.loss)))}."
    )


def every_loss(losses, n_points: int, step_size: float, sizes: list[float], sweep_points: int, extend=0, **options):
    """Each loss at one step size, and at the one of `sizes` that leaves it the least error, found on `sweep_points`
    anchor points.

    The columns of `standings`, seconds (of the run at `step_size`), and best_size, best_error, best_iou_75: missing
    where it diverged at every size. `options` are simulate's.
    """
    simulation = simulate(losses, n_points, step_size=step_size, **options)
    best = at_best(step_sizes(losses, sizes, sweep_points, extend, **options))
    best = best.rename(columns={"step_size": "best_size", "error": "best_error", "iou_75": "best_iou_75"})
    best = best[["loss", "best_size", "best_error", "best_iou_75"]]
    table = standings(simulation).merge(best, on="loss", how="left")
    return table.assign(seconds=table.loss.map(simulation.settings["seconds"]))


@style.styled
def plot_every_loss(table: pd.DataFrame, step_size: float, ax=None):
    """Final error of a case of each loss at one step size and at its own best, least on top."""
    table = table.sort_values("best_error", ascending=False, na_position="first")
    equal, best = table.error.clip(lower=1e-5), table.best_error.clip(lower=1e-5)
    axis, rows = style.one_panel(ax, 8.2, 0.9 + 0.26 * len(table)), range(len(table))
    axis.hlines(rows, best, equal, color="0.8", linewidth=1.5, zorder=1)
    axis.scatter(equal, rows, s=34, facecolor="white", edgecolor="black", label=f"at step size {step_size:g}")
    axis.scatter(best, rows, s=34, color="black", label="at its own best step size")
    sizes = ["" if np.isnan(size) else f" ({size:g})" for size in table.best_size]
    axis.set_yticks(rows, [registry.label(name) + size for name, size in zip(table.loss, sizes, strict=True)])
    axis.set(xscale="log", xlabel="final coordinate error of a case (0.00001 or less at the left edge)")
    axis.set_ylim(-0.7, len(table) - 0.3)
    axis.grid(axis="y", visible=False)
    style.legend_beside(axis)
    return axis.figure


def describe_every_loss(table: pd.DataFrame, step_size: float) -> str:
    """Coordinate losses are left out: they regress the very coordinates that the error is measured in."""
    overlap = table[[registry.LOSSES[name].space == "boxes" for name in table.loss]]
    equal, best = overlap.dropna(subset="error"), overlap.assign(error=overlap.best_error).dropna(subset="error")
    return (
        f"**What we see.** Of the {len(overlap)} overlap losses, each at the best step size that was tried, least "
        f"error: {ranking(best.nsmallest(4, 'error'), 'error')}; most: {ranking(best.nlargest(3, 'error'), 'error')}. "
        f"With step size {step_size:g} for all the first four are {ranking(equal.nsmallest(4, 'error'), 'error')}."
    )


def describe_encodings(panels: dict[str, pd.DataFrame], step: int) -> str:
    """From the curves of `best_runs` by encoding: which loss leads after `step` steps, and at the end."""
    words = []
    for encoding, table in panels.items():
        early, end = (table[table.step == at] for at in (step, table.step.max()))
        best = [ranking(part, measure).split(",")[0] for part in (early, end) for measure in ("error", "mean_iou")]
        rates = ", ".join(f"{registry.label(row.loss)} {row.step_size:g}" for row in end.itertuples())
        words.append(
            f"Regressing {encoding} (step sizes: {rates}), after {step} steps the least error is that of {best[0]} and "
            f"the highest mean IoU that of {best[1]}; at the end {best[2]} and {best[3]}."
        )
    return (
        f"**What we see.** {' '.join(words)}\n\n"
        "The metric decides the winner here: the error this simulation sums *is* the ℓ1 loss of centre and size, which "
        "a coordinate loss descends, each coordinate by itself. Neither reading says how a detector would end, where "
        "weights share the errors and none reaches zero."
    )


def single_boxes(losses: list[str], gradients: str, **options) -> pd.DataFrame:
    """A unit square from each of STARTS to a unit-square target: gradients, loss, start, step, x, y, w, h, iou."""
    cases = {case_number(point, target=4, area=4, shape=4): start for point, start in enumerate(STARTS, 1)}
    points = list(STARTS.values())
    ways = simulate(losses, points=points, trajectories=list(cases), gradients=gradients, **options).trajectories
    return ways.assign(gradients=gradients, start=ways.case.map(cases))


@style.styled
def plot_single_boxes(table: pd.DataFrame, frames=(0, 0.025, 0.1, 0.25, 0.5, 1)):
    """One start: a row for each loss and kind of gradients, a picture for each of `frames` (shares of the steps)."""
    rows = list(table.groupby(["gradients", "loss"], sort=False))
    shown = sorted({round(frame * table.step.max()) for frame in frames})
    centre, half = table[["x", "y"]].to_numpy(), table[["w", "h"]].abs().to_numpy() / 2
    edges = np.concatenate((centre - half, centre + half))
    edges = np.concatenate((edges[np.isfinite(edges).all(1)].clip(-20, 40), np.reshape(UNIT_SQUARE, (2, 2))))
    low, high = edges.min(0) - 0.25, edges.max(0) + 0.25
    height = 0.35 + 1.55 * min(np.divide(*(high - low)[::-1]), 1.3)
    figure, axes = style.panels(len(rows), len(shown), 1.75, height)
    for line, ((gradients, name), part) in zip(axes, rows, strict=True):
        for axis, row in zip(line, part[part.step.isin(shown)].itertuples(), strict=True):
            style.draw_box(axis, UNIT_SQUARE, style.TRUE, linewidth=3.5, label="target")
            corners = (row.x - row.w / 2, row.y - row.h / 2, row.x + row.w / 2, row.y + row.h / 2)
            style.draw_box(axis, corners, style.PREDICTED, linewidth=1.3, label="prediction")
            axis.set_title(f"step {row.step}, IoU {row.iou:.2f}", fontsize=8)
            axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
            style.hide_scales(axis)
        line[0].set_ylabel(f"{registry.label(name)},\n{gradients}", fontsize=9)
    style.legend_below(figure, axes)
    return figure


def describe_single_boxes(table: pd.DataFrame) -> str:
    areas = table.assign(area=(table.w * table.h).abs()).groupby(["gradients", "loss", "start"], sort=False).area.max()
    words = [f"{registry.label(way[1])} {way[0]}, {way[2]}, {area:.1f}" for way, area in areas[areas > 1.2].items()]
    listed = "; ".join(words) or "none"
    return f"**What we see.** Boxes that grew to more than 1.2 times their area on the way, and to how many: {listed}."


def apart(losses: list[str], n_points: int, gradients: str, seed: int = 0, **options) -> pd.DataFrame:
    """What becomes of boxes that start apart from their target: one case at random at each anchor point; those that
    overlap are left out.

    Columns: gradients, loss, cases, solved (how many end above IoU .5), grew (how many become a tenth larger on the way
    to the first overlap), hull_shrank (how many have met the target, or ended, with a smaller enclosing box than at the
    start), growth (the median of the largest area on that way over the area at the start), by_growing (how much of the
    gap, along the axes that have one, is closed by growing and not by moving: the median share of those that met the
    target). `options` are simulate's.
    """
    within = np.random.default_rng(seed).integers(1, CASES_PER_POINT + 1, n_points)
    cases = np.arange(n_points) * CASES_PER_POINT + within
    options = dict(trajectories=cases.tolist(), gradients=gradients, seed=seed) | options
    ways = simulate(losses, n_points, **options).trajectories
    size = ways[["w", "h"]].abs()
    pred = np.column_stack((ways[["x", "y"]], size))
    ways[["target_w", "target_h"]] = np.array(SHAPES)[(ways.case - 1) // 49 % 7]
    target = np.column_stack((np.tile(CENTRE, (len(ways), 1)), ways[["target_w", "target_h"]]))
    pred, target = (boxes.convert(torch.from_numpy(box), "cxcywh", "xyxy") for box in (pred, target))
    ways = ways.assign(area=size.w * size.h, hull=boxes.area(boxes.enclosing(pred, target)))
    rows = []
    for name, part in ways.groupby("loss", sort=False):
        part = part[part.case.isin(part.case[(part.step == 0) & (part.iou == 0)])]
        if part.empty:
            continue
        by_case = part.pivot(index="case", columns="step")
        iou, area, hull = (by_case[measure].to_numpy() for measure in ("iou", "area", "hull"))
        met = np.where((iou > 0).any(1), (iou > 0).argmax(1), iou.shape[1] - 1)
        largest = np.where(np.arange(iou.shape[1]) <= met[:, None], area, 0).max(1) / area[:, 0]
        shrank = hull[np.arange(len(hull)), met] < hull[:, 0]
        counts = dict(cases=len(iou), solved=(iou[:, -1] > 0.5).sum(), grew=(largest > 1.1).sum())
        counts |= dict(hull_shrank=shrank.sum(), growth=np.median(largest), by_growing=_by_growing(by_case, iou, met))
        rows.append(dict(gradients=gradients, loss=name) | counts)
    return pd.DataFrame(rows)


def _by_growing(by_case, iou, met):
    """From columns by (name, step), a row a case: the median of by_growing in `apart`."""
    met_at = np.arange(len(met)), met
    grown, closed = 0, 0
    for axis, side, centre in zip("xy", "wh", CENTRE, strict=True):
        distance = (by_case[axis] - centre).abs().to_numpy()
        reach = (by_case[side].abs() + by_case[f"target_{side}"]).to_numpy() / 2
        gap = distance[:, 0] > reach[:, 0]
        grown = grown + gap * (reach[met_at] - reach[:, 0])
        closed = closed + gap * (reach[met_at] - reach[:, 0] + distance[:, 0] - distance[met_at])
    meets = (iou > 0).any(1)
    return np.median(grown[meets] / closed[meets]) if meets.any() else np.nan


def describe_apart(table: pd.DataFrame) -> str:
    words = "; ".join(
        f"{registry.label(row.loss)} {row.gradients} {row.solved / row.cases:.0%} ({row.grew / row.cases:.0%} grew, "
        f"median {row.growth:.1f} times; {row.by_growing:.0%} of the gap closed by growing)"
        for row in table.itertuples()
    )
    return f"**What we see.** Of the {table.cases.max()} boxes that start apart, these ended above IoU .5: {words}."

"""What notebook 03 reads off simulations. Every function returns a pandas table; errors are those of one case, in the
boxes' unit."""

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from giou_repro.experiments import statistics
from giou_repro.simulation import CASES_PER_POINT, CENTRE, COMPILE_FROM, SHAPES, case_number, diou_code, simulate

STARTS = {"horizontal": (12.5, 10.0), "vertical": (10.0, 12.5), "diagonal": (12.0, 12.0)}  # centres of the single boxes
OUTPUTS = (  # without which a run of the notebook is not complete
    *(f"{table}_{run}.csv" for table in ("curves", "final") for run in ("published", "exact", "exact_corners")),
    *("standings.csv", "against_paper.csv", "alignment.csv", "points.csv", "differences.csv", "step_sizes.csv"),
    *("single_boxes.csv", "apart.csv", "figures/convergence.png", "figures/surfaces.png", "figures/step_sizes.png"),
    *("figures/encodings_error.png", "figures/encodings_mean_iou.png"),
    *(f"figures/filmstrip_{start}.png" for start in STARTS),
)


def curves(result):
    """The learning curves of a Simulation with errors for one case, so that runs of different size compare."""
    cases = result.settings["n_points"] * CASES_PER_POINT
    errors = {name: result.curves[name] / cases for name in ("error", "error_x", "error_y", "error_w", "error_h")}
    return result.curves.assign(**errors)


def standings(result):
    """Where each loss ended: loss, error, mean_iou, iou_50, iou_75, iou_90, and half_step, the first step with half the
    error of the start."""
    rows = []
    for name, curve in curves(result).groupby("loss", sort=False):
        half = curve.step[curve.error <= curve.error.iloc[0] / 2].min()
        rows.append(
            {"loss": name, "half_step": half}
            | curve.iloc[-1][["error", "mean_iou", "iou_50", "iou_75", "iou_90"]].to_dict()
        )
    return pd.DataFrame(rows)


def paper_curves(losses):
    """The DIoU paper's convergence figure as read off the picture (to ± 0.009): loss, step, error."""
    table = pd.DataFrame(diou_code.CURVE).melt("step", var_name="loss", value_name="error").dropna()
    return table[table.loss.isin(losses)].assign(error=lambda t: t.error * 1e6 / diou_code.CURVE_CASES)


def against_paper(result):
    """Our published-gradient curves beside the paper's: loss, step, paper, ours, difference."""
    paper = paper_curves(result.settings["losses"]).rename(columns={"error": "paper"})
    ours = curves(result)[["loss", "step", "error"]].rename(columns={"error": "ours"})
    return paper.merge(ours, on=["loss", "step"]).assign(difference=lambda t: t.ours - t.paper)


def alignment(final, beyond=2.0):
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
        rows.append(
            dict(loss=name, aligned=aligned.mean(), diagonal=diagonal.mean(), low=low, high=high, points=len(part))
        )
    return pd.DataFrame(rows)


def by_point(final):
    """The final error of a case, over the anchor points: loss, points, error, low, high (95 % of the mean), worst (the
    mean of the worst point)."""
    rows = []
    for name, part in final.groupby("loss", sort=False):
        error = part.error / CASES_PER_POINT
        low, high = statistics.mean_interval(error) if np.isfinite(error).all() else (np.nan, np.nan)
        rows.append(dict(loss=name, points=len(part), error=error.mean(), low=low, high=high, worst=error.max()))
    return pd.DataFrame(rows)


def differences(final):
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


def apart(losses, n_points, gradients, seed=0, **options):
    """What becomes of boxes that start apart from their target: one case at random at each anchor point; those that
    overlap are left out.

    Columns: gradients, loss, cases, solved (how many end above IoU .5), grew (how many become a tenth larger on the way
    to the first overlap), hull_shrank (how many have met the target, or ended, with a smaller enclosing box than at the
    start), growth (the median of the largest area on that way over the area at the start). `options` are simulate's.
    """
    within = np.random.default_rng(seed).integers(1, CASES_PER_POINT + 1, n_points)
    cases = np.arange(n_points) * CASES_PER_POINT + within
    paths = simulate(
        losses, n_points, trajectories=cases.tolist(), gradients=gradients, seed=seed, **options
    ).trajectories
    target = np.array(SHAPES)[(paths.case - 1) // 49 % 7]
    reach = [
        np.maximum(paths[c] + paths[s].abs() / 2, centre + side / 2)
        - np.minimum(paths[c] - paths[s].abs() / 2, centre - side / 2)
        for c, s, centre, side in zip("xy", "wh", CENTRE, target.T, strict=True)
    ]
    paths = paths.assign(area=(paths.w * paths.h).abs(), hull=reach[0] * reach[1])
    rows = []
    for name, part in paths.groupby("loss", sort=False):
        tables = {
            key: part.pivot(index="case", columns="step", values=key).to_numpy() for key in ("iou", "area", "hull")
        }
        iou, area, hull = (table[tables["iou"][:, 0] == 0] for table in tables.values())
        if not len(iou):
            continue
        met = np.where((iou > 0).any(1), (iou > 0).argmax(1), iou.shape[1] - 1)
        largest = np.where(np.arange(iou.shape[1]) <= met[:, None], area, 0).max(1) / area[:, 0]
        shrank = hull[np.arange(len(hull)), met] < hull[:, 0]
        counts = dict(
            cases=len(iou), solved=(iou[:, -1] > 0.5).sum(), grew=(largest > 1.1).sum(), hull_shrank=shrank.sum()
        )
        rows.append(dict(gradients=gradients, loss=name) | counts | dict(growth=np.median(largest)))
    return pd.DataFrame(rows)


def step_sizes(losses, sizes, n_points, **options):
    """Where each loss ends for each step size: step_size and the columns of `standings`. `options` are simulate's."""
    work = len(sizes) * n_points * CASES_PER_POINT * options.get("steps", 200)  # one compiled step serves every size
    options = {"compile": True if work >= COMPILE_FROM else "auto"} | options
    tables = [standings(simulate(losses, n_points, step_size=size, **options)).assign(step_size=size) for size in sizes]
    return pd.concat(tables, ignore_index=True)


def every_loss(losses, n_points, step_size, sizes, sweep_points, **options):
    """Each loss at one step size, and at the one of `sizes` that leaves it the least error, found on `sweep_points`
    anchor points.

    The columns of `standings`, seconds (of the run at `step_size`), and best_size, best_error, best_iou_75: missing
    where it diverged at every size. `options` are simulate's.
    """
    result = simulate(losses, n_points, step_size=step_size, **options)
    swept = step_sizes(losses, sizes, sweep_points, **options).dropna(subset="error")
    best = swept.loc[swept.groupby("loss").error.idxmin()]
    best = best.rename(columns={"step_size": "best_size", "error": "best_error", "iou_75": "best_iou_75"})
    table = standings(result).merge(best[["loss", "best_size", "best_error", "best_iou_75"]], on="loss", how="left")
    return table.assign(seconds=table.loss.map(result.settings["seconds"]))


def single_boxes(losses, gradients, **options):
    """A unit square from each of STARTS to a unit-square target: gradients, loss, start, step, x, y, w, h, iou."""
    cases = {case_number(point, target=4, area=4, shape=4): start for point, start in enumerate(STARTS, 1)}
    result = simulate(losses, points=list(STARTS.values()), trajectories=list(cases), gradients=gradients, **options)
    return result.trajectories.assign(gradients=gradients, start=result.trajectories.case.map(cases))

"""What notebook 03 reads off simulations. Every function returns a pandas table; errors are those of one case, in the boxes' unit."""

import numpy as np
import pandas as pd

from giou_repro import published
from giou_repro.simulation import CASES_PER_POINT, CENTRE, case_number, simulate

STARTS = {"horizontal": (12.5, 10.0), "vertical": (10.0, 12.5), "diagonal": (12.0, 12.0)}  # centres of the single boxes


def curves(result):
    """The learning curves of a Simulation with errors for one case, so that runs of different size compare."""
    cases = result.settings["n_points"] * CASES_PER_POINT
    errors = {name: result.curves[name] / cases for name in ("error", "error_x", "error_y", "error_w", "error_h")}
    return result.curves.assign(**errors)


def standings(result):
    """Where each loss ended: loss, error, mean_iou, iou_50, iou_75, iou_90, and half_step, the first step with half the error of the start."""
    rows = []
    for name, curve in curves(result).groupby("loss", sort=False):
        half = curve.step[curve.error <= curve.error.iloc[0] / 2].min()
        rows.append({"loss": name, "half_step": half} | curve.iloc[-1][["error", "mean_iou", "iou_50", "iou_75", "iou_90"]].to_dict())
    return pd.DataFrame(rows)


def paper_curves(losses):
    """The DIoU paper's convergence figure as read off the picture (to ± 0.009): loss, step, error."""
    table = pd.DataFrame(published.CURVE).melt("step", var_name="loss", value_name="error").dropna()
    return table[table.loss.isin(losses)].assign(error=lambda t: t.error * 1e6 / published.CURVE_CASES)


def against_paper(result):
    """Our published-gradient curves beside the paper's: loss, step, paper, ours, difference."""
    paper = paper_curves(result.settings["losses"]).rename(columns={"error": "paper"})
    ours = curves(result)[["loss", "step", "error"]].rename(columns={"error": "ours"})
    return paper.merge(ours, on=["loss", "step"]).assign(difference=lambda t: t.ours - t.paper)


def alignment(final, beyond=2.0):
    """Final error of starts beside, above or below the targets, and of starts diagonally from them: loss, aligned, diagonal.

    Takes Simulation.final. Only anchor points further than `beyond` from the targets' centre count, where boxes start apart; aligned ones
    lie within 22.5° of an axis, diagonal ones within 22.5° of a diagonal. Missing where there is no such point.
    """
    x, y = ((final[axis] - centre).abs() for axis, centre in zip(("x", "y"), CENTRE, strict=True))
    near_axis = np.minimum(x, y) < np.tan(np.pi / 8) * np.maximum(x, y)
    table = final.assign(error=final.error / CASES_PER_POINT, place=np.where(near_axis, "aligned", "diagonal"))[np.hypot(x, y) > beyond]
    means = table.pivot_table(index="loss", columns="place", values="error", sort=False)
    return means.reindex(final.loss.unique(), columns=["aligned", "diagonal"]).rename_axis(index="loss", columns=None).reset_index()


def step_sizes(losses, sizes, n_points, **options):
    """Where each loss ends for each step size: step_size and the columns of `standings`. `options` are simulate's."""
    tables = [standings(simulate(losses, n_points, step_size=size, **options)).assign(step_size=size) for size in sizes]
    return pd.concat(tables, ignore_index=True)


def single_boxes(losses, gradients, **options):
    """A unit square from each of STARTS to a unit-square target: gradients, loss, start, step, x, y, w, h, iou."""
    cases = {case_number(point, target=4, area=4, shape=4): start for point, start in enumerate(STARTS, 1)}
    result = simulate(losses, points=list(STARTS.values()), trajectories=list(cases), gradients=gradients, **options)
    return result.trajectories.assign(gradients=gradients, start=result.trajectories.case.map(cases))

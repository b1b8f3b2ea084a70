"""Notebook 01, the figures: how ℓn distance, IoU and GIoU of two boxes relate. Everything is computed in float64."""

import numpy as np
import pandas as pd
import torch
from matplotlib.patches import Circle
from scipy import stats
from scipy.spatial import ConvexHull

from giou_repro import boxes, polygons
from giou_repro.experiments import style
from giou_repro.registry import LOSSES

OUTPUTS = (  # without which a run of the notebook is not complete
    *("figure_1.csv", "circle.csv", "spread.csv", "rank_correlation.csv", "ranges.csv", "pairs.csv", "rotation.csv"),
    *("properties.csv", "losses.csv", "figures/figure_1.png", "figures/spread.png", "figures/spread_of_losses.png"),
    *("figures/rank_correlation.png", "figures/iou_against_giou.png", "figures/rotation.png"),
)
TARGET = (0.0, 0.0, 10.0, 20.0)  # of the paper's figure 1, panel (a), xyxy
RADIUS = 7.0  # of the circle in it
NORMS = {"l1": "ℓ1", "l2": "ℓ2", "l1_per_side": "ℓ1 in units of each side"}
QUANTILES = {"low": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "high": 1.0}


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def figure_1(losses: list[str]) -> pd.DataFrame:
    """The six pairs of the paper's figure 1: our and the printed IoU, GIoU and distance, and the value of each loss.

    Panel (a): the free corner keeps its distance of 7 from the target's, the other one is at (−1, −1). Panel (b):
    centre and size. The prediction's coordinates were fitted to the paper's picture.
    """
    angles = np.deg2rad([188.6, -44, 90])
    corners = tensor([(-1, -1, 10 + RADIUS * np.cos(a), 20 + RADIUS * np.sin(a)) for a in angles])
    centre_and_size = tensor([(1.0, 1.0, 2.93, 20.0), (1.0, 1.0, 7.8, 15.13), (1.0, 1.0, 7.9, 24.97)])
    targets = tensor([TARGET] * 3)
    target = torch.cat((targets, boxes.convert(targets, "cxcywh", "xyxy")))
    pred = torch.cat((corners, boxes.convert(centre_and_size, "cxcywh", "xyxy")))
    moved = (corners - targets).unflatten(-1, (2, 2)).norm(dim=-1)  # how far each of the two corners is off
    names = [f"{prefix}{key}" for prefix in ("", "target_") for key in ("x1", "y1", "x2", "y2")]
    coordinates = pd.DataFrame(torch.cat((pred, target), 1), columns=names)
    measures = dict(
        panel=list("aaabbb"),
        distance=torch.cat((moved.sum(-1), (centre_and_size - targets).abs().sum(-1))),
        printed_distance=[8.41] * 3 + [9.07] * 3,
        l2_of_corners=torch.cat((moved.norm(dim=-1), tensor([np.nan] * 3))),
        iou=boxes.iou(pred, target),
        printed_iou=[0.26, 0.49, 0.65, 0.27, 0.59, 0.66],
        giou=boxes.giou(pred, target),
        printed_giou=[0.23, 0.41, 0.65, 0.24, 0.59, 0.62],
    )
    measures |= {f"loss_{name}": LOSSES[name](pred, target) for name in losses}
    return coordinates.join(pd.DataFrame(measures))


@style.styled
def plot_figure_1(table: pd.DataFrame):
    figure, axes = style.panels(2, 3, 2.9, 3.1)
    norms = {"a": "sum of corner distances", "b": "ℓ1 of centre and size"}
    for axis, row in zip(axes.flat, table.to_dict("records"), strict=True):
        target, pred = ([row[f"{prefix}{key}"] for key in ("x1", "y1", "x2", "y2")] for prefix in ("target_", ""))
        if row["panel"] == "a":
            axis.add_patch(Circle(target[2:], RADIUS, fill=False, color="0.6", linestyle="--"))
            axis.plot(*pred[2:], "o", color=style.PREDICTED, markersize=4)
        style.draw_box(axis, target, style.TRUE, label="target", linewidth=3.5)
        style.draw_box(axis, pred, style.PREDICTED, label="prediction")
        overlaps = f"({row['panel']}) IoU {row['iou']:.2f}, GIoU {row['giou']:.2f}"
        axis.set_title(f"{overlaps}\n{norms[row['panel']]} {row['distance']:.2f}")
        axis.set(xlim=(target[0] - 4, target[2] + 8), ylim=(target[3] + 8, target[1] - 2))
        style.hide_scales(axis)
    style.legend_below(figure, axes)
    return figure


def describe_figure_1(table: pd.DataFrame) -> str:
    same = all((table[key].round(2) == table[f"printed_{key}"]).all() for key in ("iou", "giou", "distance"))
    a, b = table[table.panel == "a"], table[table.panel == "b"]
    return (
        f"**What we see.** The printed values are {'all' if same else '**not** all'} reproduced to their two digits. "
        f"At one distance IoU runs from {a.iou.min():.2f} to {a.iou.max():.2f} in (a) and from {b.iou.min():.2f} to "
        f"{b.iou.max():.2f} in (b).\n\n"
        "*A note on the 8.41.* The paper calls panel (a)'s distance ‖·‖₂ = 8.41. It is the sum of the two corners' "
        f"distances, 7 + √2 = {a.distance.iloc[0]:.2f}; the ℓ2 norm of the four differences is "
        f"√51 = {a.l2_of_corners.iloc[0]:.2f}. Either is the same for all three predictions, so the argument stands."
    )


def circle(n: int = 720) -> pd.DataFrame:
    """IoU and GIoU against the angle (degrees) of a free corner on the circle around its place; the other corner is
    right."""
    angle = np.linspace(0, 360, n, endpoint=False)
    turn = np.stack((np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))), 1)
    pred = tensor(np.concatenate((np.zeros((n, 2)), TARGET[2:] + RADIUS * turn), 1))
    return pd.DataFrame(dict(angle=angle, iou=boxes.iou(pred, tensor(TARGET)), giou=boxes.giou(pred, tensor(TARGET))))


def spread(losses: list[str], distances, n: int, seed: int) -> pd.DataFrame:
    """Quantiles of IoU, GIoU and each loss over `n` predictions at each ℓ1 and ℓ2 distance of their corners from the
    target's.

    Columns: norm, distance, measure ("iou", "giou", or the loss's name as "loss_…"), low, q05, median, q95, high.
    """
    rng, target, rows = np.random.default_rng(seed), tensor(TARGET), []
    for norm, order, draw in (("l1", 1, rng.laplace), ("l2", 2, rng.normal)):
        for distance in distances:
            direction = draw(size=(n, 4))
            pred = target + distance * tensor(direction / np.linalg.norm(direction, order, axis=1, keepdims=True))
            measures = {"iou": boxes.iou(pred, target), "giou": boxes.giou(pred, target)}
            measures |= {f"loss_{name}": LOSSES[name](pred, target) for name in losses}
            for measure, values in measures.items():
                quantiles = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True))
                rows.append(dict(norm=norm, distance=distance, measure=measure) | quantiles)
    return pd.DataFrame(rows)


@style.styled
def plot_spread(circle: pd.DataFrame, spread: pd.DataFrame):
    """Left: IoU and GIoU on the circle. Right: their medians at each distance, IoU's bands of all and of 90 %."""
    figure, (axes,) = style.panels(1, 3, 3.6, 3.3, sharey=True)
    style.draw_losses(axes[0], circle.melt("angle", var_name="loss"), "angle", "value")
    axes[0].set(xlabel="angle of the free corner (°)", ylabel="IoU, GIoU", xticks=range(0, 361, 90))
    axes[0].set_title(f"corner on a circle of radius {RADIUS:g}")
    overlap = spread[spread.measure.isin(["iou", "giou"])].rename(columns={"measure": "loss"})
    for axis, (norm, part) in zip(axes[1:], overlap.groupby("norm"), strict=True):
        style.draw_losses(axis, part, "distance", "median")
        iou, giou = (part[part.loss == loss] for loss in ("iou", "giou"))
        for low, high in (("low", "high"), ("q05", "q95")):
            axis.fill_between(iou.distance, iou[low], iou[high], color=style.color("iou"), alpha=0.13, linewidth=0)
        for edge in ("low", "high"):
            style.draw_losses(axis, giou, "distance", edge, linestyle=":", marker="", label="GIoU, lowest and highest")
        axis.set(xlabel=f"{NORMS[norm]} distance of the corners", title=f"at a fixed {NORMS[norm]} distance")
    style.legend_below(figure, axes[1])
    return figure


def describe_spread(circle: pd.DataFrame, spread: pd.DataFrame) -> str:
    at = spread[spread.measure == "iou"]
    at = at[at.distance == at.distance.iloc[(at.distance - RADIUS).abs().argmin()]]
    ranges = " and ".join(
        f"at {NORMS[row.norm]} distance {row.distance:g} from {row.low:.2f} to {row.high:.2f}"
        for row in at.itertuples()
    )
    return (
        f"**What we see.** With one corner {RADIUS:g} away on a 10 × 20 box, IoU lies anywhere from "
        f"{circle.iou.min():.2f} to {circle.iou.max():.2f}; with all four coordinates wrong, {ranges}. The distance "
        "alone does not say whether a detection at threshold 0.5 counts (claim G1)."
    )


@style.styled
def plot_spread_of_losses(spread: pd.DataFrame, ax=None):
    """The 90 % range of each loss over its median, at a fixed ℓ2 distance of the corners."""
    axis = style.one_panel(ax, 7.6, 3.8)
    table = spread[(spread.norm == "l2") & spread.measure.str.startswith("loss_")]
    table = table.assign(loss=table.measure.str.removeprefix("loss_"), spread=(table.q95 - table.q05) / table["median"])
    style.draw_losses(axis, table, "distance", "spread")
    axis.set(xlabel="ℓ2 distance of the corners", ylabel="90 % range over the median", ylim=(-0.05, None))
    style.legend_beside(axis)
    return axis.figure


def rank_correlation(sizes: list[float], n: int, repeats: int, seed: int) -> pd.DataFrame:
    """How well a distance ranks predictions by IoU, against the size of the error (claim B1).

    Errors of the corners have a random direction and a length uniform in [0, size], in units of the target's diagonal.
    `targets`: "one" (10 x 20), "square" (all of one square), "many" (of every size and shape). `norm`: "l1", "l2", or
    "l1_per_side", the ℓ1 distance of coordinates in units of the target's width and height. Columns: targets, norm,
    size, then mean and 95 % range over the repeats of Spearman's correlation of −distance and IoU, and the mean share
    of pairs of predictions in which the nearer one has the lower IoU (0 if distance decides, 0.5 if it says nothing).
    """
    rng, rows = np.random.default_rng(seed), []
    for targets, sides in (("one", [10.0, 20.0]), ("square", [15.0, 15.0]), ("many", None)):
        for size in sizes:
            ranked = [_rank_once(rng, sides, size, n) for _ in range(repeats)]
            for norm, (spearman, wrong) in zip(NORMS, np.moveaxis(ranked, 0, -1), strict=True):
                low, high = np.quantile(spearman, (0.025, 0.975))
                row = dict(targets=targets, norm=norm, size=size, spearman=spearman.mean(), low=low, high=high)
                rows.append(row | dict(wrong_pairs=wrong.mean()))
    return pd.DataFrame(rows)


def _rank_once(rng, sides, size, n):
    """Spearman's correlation and the share of pairs ranked wrongly, for each of NORMS: (3, 2)."""
    sides = np.exp(rng.uniform(np.log(5), np.log(100), (n, 2))) if sides is None else np.tile(sides, (n, 1))
    target = np.concatenate((np.zeros((n, 2)), sides), 1)
    error = rng.normal(size=(n, 4))
    length = rng.uniform(0, size, n) * np.linalg.norm(sides, axis=1) / np.linalg.norm(error, axis=1)
    error *= length[:, None]
    iou = boxes.iou(tensor(target + error), tensor(target)).numpy()
    other, found = rng.permutation(n), []
    for wrong_by, order in ((error, 1), (error, 2), (error / np.tile(sides, 2), 1)):
        distance = np.linalg.norm(wrong_by, order, axis=1)
        wrong = np.sign(distance - distance[other]) * np.sign(iou - iou[other]) > 0
        found.append((stats.spearmanr(-distance, iou).statistic, wrong.mean()))
    return found


@style.styled
def plot_rank_correlation(table: pd.DataFrame):
    """Share of pairs ranked wrongly by each distance against the size of the error, a panel a kind of targets."""
    titles = {"one": "one target, 10 × 20", "square": "one square target", "many": "targets of any size and shape"}
    figure, (axes,) = style.panels(1, 3, 3, 3, sharey=True)
    for axis, (targets, of_targets) in zip(axes, table.groupby("targets", sort=False), strict=True):
        for norm, part in of_targets.groupby("norm", sort=False):
            look = dict(color=style.PREDICTED, marker="x", linestyle="-") if norm == "l1_per_side" else {}
            style.draw_loss(axis, norm, part["size"], 100 * part.wrong_pairs, label=NORMS[norm], markevery=1, **look)
        axis.set(xscale="log", xlabel="largest error / diagonal", title=titles[targets])
    axes[0].set(ylabel="pairs ranked wrongly (%)", ylim=(-1, None))
    style.legend_below(figure, axes)
    return figure


def describe_rank_correlation(table: pd.DataFrame) -> str:
    by_size = table.sort_values("size").groupby(["targets", "norm"])
    smallest, large = by_size.first(), by_size.last().loc["one", "l1"]
    tiny, wrong = smallest.loc["one", "l1"], smallest.wrong_pairs
    return (
        f"**What we see.** For one 10 × 20 target, ρ of ℓ1 distance and IoU is {tiny.spearman:.3f} (95 % range "
        f"{tiny.low:.3f} to {tiny.high:.3f}) for errors up to {tiny['size']:g} of the diagonal, and "
        f"{large.spearman:.3f} ({large.low:.3f} to {large.high:.3f}) up to {large['size']:g}. ℓ1 ranks "
        f"{wrong['one', 'l1']:.1%} of the pairs wrongly even for the smallest errors, as a pixel costs more on a short "
        f"side than on a long one. Measured in units of each side it ranks {wrong['one', 'l1_per_side']:.2%} wrongly; "
        f"for a square, in pixels, {wrong['square', 'l1']:.2%}; over targets of many sizes {wrong['many', 'l1']:.0%}."
    )


def pairs(kind: str, n: int, seed: int) -> pd.DataFrame:
    """IoU, GIoU and the shorthand IoU − (C − (A + B))/C of `n` random pairs.

    kind "equal": two unit squares with random centres. "corners": both boxes with random corners in the unit square.
    """
    rng = np.random.default_rng(seed)
    if kind == "equal":
        first = np.tile([0.0, 0.0, 1.0, 1.0], (n, 1))
        second = first + np.tile(rng.uniform(-3, 3, (n, 2)), 2)
    elif kind == "corners":
        first, second = (np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) for _ in range(2))
    else:
        raise ValueError(f"kind must be 'equal' or 'corners', got {kind!r}")
    a, b = tensor(first), tensor(second)
    iou, hull = boxes.iou(a, b), boxes.area(boxes.enclosing(a, b))
    shorthand = iou - (hull - (boxes.area(a) + boxes.area(b))) / hull
    return pd.DataFrame(dict(kind=kind, iou=iou, giou=boxes.giou(a, b), shorthand=shorthand, overlap=iou > 0))


def ranges(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Between which values GIoU lies (claim B2), for overlapping and for disjoint pairs of each kind: kind, overlap,
    pairs, lowest, highest."""
    groups = pd.concat(tables).groupby(["kind", "overlap"], sort=False).giou
    return groups.agg(pairs="count", lowest="min", highest="max").reset_index()


@style.styled
def plot_pairs(equal: pd.DataFrame, corners: pd.DataFrame):
    """The paper's correlation figure of two tables of `pairs`, and the shorthand of the second against GIoU."""
    figure, (axes,) = style.panels(1, 3, 3.4, 3.4)
    shown = ("two equal squares, random centres", equal, "iou"), ("two boxes, random corners", corners, "iou")
    for axis, (title, table, y) in zip(axes, (*shown, ("a blog's shorthand", corners, "shorthand")), strict=True):
        for overlap, label, marker, color in (
            (True, "overlapping", "o", style.OVERLAPPING),
            (False, "disjoint", "x", style.DISJOINT),
        ):
            part = table[table.overlap == overlap]
            look = dict(marker=marker, color=color, linestyle="", markerfacecolor="none", markeredgewidth=0.4)
            axis.plot(part.giou, part[y], markersize=2.5, label=label, rasterized=True, **look)
        axis.axline((0, 0), slope=1, color="black", linewidth=1, linestyle="--", label="equal")
        axis.set(xlabel="GIoU", title=title, xlim=(-1.03, 1.03))
    axes[0].set(ylabel="IoU", ylim=(-0.03, 1.03))
    axes[1].set(ylabel="IoU", ylim=(-0.03, 1.03))
    axes[2].set_ylabel("IoU − (C − (A + B))/C")
    style.legend_below(figure, axes)
    return figure


def describe_pairs(equal: pd.DataFrame, corners: pd.DataFrame) -> str:
    lowest = [table.giou[table.overlap].min() for table in (equal, corners)]
    gap = (corners.shorthand - corners.giou).groupby(corners.overlap).max()
    return (
        f"**What we see.** Overlapping pairs go down to GIoU {lowest[0]:.2f} for equal squares (the bound is −1/2) and "
        f"to {lowest[1]:.2f} for random corners (the bound is −1), from {len(equal):,} pairs each (claim B2). Where "
        "IoU is 0, GIoU still decreases with distance.\n\n"
        f"The shorthand agrees for disjoint boxes (largest difference {abs(gap[False]):.0e}); for overlapping ones it "
        f"is too high by up to {gap[True]:.2f} and reaches {corners.shorthand.max():.2f}, where no GIoU can be above "
        "1. For identical boxes it gives 2."
    )


def rotated_pair(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A 4 x 1 rectangle turned by `angle` degrees, beside an upright 2 x 3 one: polygons (4, 2), (4, 2)."""
    return polygons.rotated(tensor([2.5, 0.5, 4, 1, np.deg2rad(angle)])), polygons.rotated(tensor([0, 0, 2, 3, 0]))


def rotation(n: int) -> pd.DataFrame:
    """IoU and GIoU of `rotated_pair` at `n` angles from 0° to 180°: as polygons with the convex hull as C, and by their
    bounding boxes.

    Columns: angle, iou, giou, box_iou, box_giou.
    """
    angles = np.linspace(0, 180, n)
    turned, upright = map(torch.stack, zip(*map(rotated_pair, angles), strict=True))
    bounds = [torch.cat((polygon.amin(-2), polygon.amax(-2)), -1) for polygon in (turned, upright)]
    columns = dict(iou=polygons.polygon_iou(turned, upright), giou=polygons.polygon_giou(turned, upright))
    return pd.DataFrame(dict(angle=angles) | columns | dict(box_iou=boxes.iou(*bounds), box_giou=boxes.giou(*bounds)))


@style.styled
def plot_rotation(table: pd.DataFrame, angles=(0, 45, 90, 135)):
    """The pair at four angles with its convex hull, and IoU and GIoU against the angle."""
    figure, (axes,) = style.panels(1, 5, 2.7, 4.6, width_ratios=(1, 1, 1, 1, 1.9))
    for axis, angle in zip(axes, angles, strict=False):
        shapes = [polygon.numpy() for polygon in rotated_pair(angle)]
        corners = np.concatenate(shapes)
        hull = corners[ConvexHull(corners).vertices]
        axis.fill(*hull.T, facecolor="0.93", edgecolor="0.4", linestyle=":", label="convex hull")
        for shape, color, label in zip(shapes, (style.PREDICTED, style.TRUE), ("turning", "upright"), strict=True):
            axis.fill(*shape.T, facecolor="none", edgecolor=color, linewidth=1.8, label=label)
        row = table.iloc[(table.angle - angle).abs().argmin()]
        axis.set(title=f"{angle}°: IoU {row.iou:.2f}\nGIoU {row.giou:.2f}", xlim=(-1.4, 4.7), ylim=(-1.8, 2.7))
        style.hide_scales(axis)
    for prefix, shape, line in (("", "polygons", "-"), ("box_", "bounding boxes", "--")):
        for loss, name in (("iou", "IoU"), ("giou", "GIoU")):
            style.draw_loss(axes[4], loss, table.angle, table[prefix + loss], linestyle=line, label=f"{name}, {shape}")
    axes[4].set(xlabel="angle (°)", xticks=range(0, 181, 45), ylabel="IoU, GIoU")
    style.legend_below(figure, axes[3:])
    return figure


def describe_rotation(table: pd.DataFrame) -> str:
    best, best_box = table.loc[table.giou.idxmax()], table.loc[table.box_giou.idxmax()]
    disjoint = table.iou < 1e-12
    giou = table.giou[disjoint]
    return (
        f"**What we see.** As polygons, GIoU is highest ({best.giou:.2f}) at {best.angle:.0f}°; the upright boxes have "
        f"theirs ({best_box.box_giou:.2f}) at {best_box.angle:.0f}°. IoU is 0 at {disjoint.mean():.0%} of the angles, "
        f"where GIoU still runs from {giou.min():.2f} to {giou.max():.2f}."
    )

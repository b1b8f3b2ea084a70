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
    *("figures/rank_correlation.png", "figures/iou_against_giou.png", "figures/shorthand.png", "figures/rotation.png"),
)
TARGET = (0.0, 0.0, 10.0, 20.0)  # of the paper's figure 1, panel (a), xyxy
RADIUS = 7.0  # of the circle in it
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
    target = torch.cat((tensor([TARGET] * 3), boxes.convert(tensor([TARGET] * 3), "cxcywh", "xyxy")))
    pred = torch.cat((corners, boxes.convert(centre_and_size, "cxcywh", "xyxy")))
    error_a, error_b = corners - target[:3], centre_and_size - tensor(TARGET)
    table = pd.DataFrame(pred.numpy(), columns=["x1", "y1", "x2", "y2"])
    table[["target_x1", "target_y1", "target_x2", "target_y2"]] = target.numpy()
    table.insert(0, "panel", list("aaabbb"))
    distance_a = error_a[:, :2].norm(dim=-1) + error_a[:, 2:].norm(dim=-1)
    table["distance"] = torch.cat((distance_a, error_b.abs().sum(-1))).numpy()
    table["printed_distance"] = [8.41] * 3 + [9.07] * 3
    table["l2_of_corners"] = [*error_a.norm(dim=-1).tolist(), *[np.nan] * 3]
    table["iou"], table["printed_iou"] = boxes.iou(pred, target).numpy(), [0.26, 0.49, 0.65, 0.27, 0.59, 0.66]
    table["giou"], table["printed_giou"] = boxes.giou(pred, target).numpy(), [0.23, 0.41, 0.65, 0.24, 0.59, 0.62]
    return table.assign(**{f"loss_{name}": LOSSES[name](pred, target).numpy() for name in losses})


@style.styled
def plot_figure_1(table: pd.DataFrame):
    figure, axes = style.panels(2, 3, 2.9, 3.3)
    norms = {"a": "sum of corner distances", "b": "ℓ1 of centre and size"}
    for axis, row in zip(axes.flat, table.to_dict("records"), strict=True):
        target, pred = ([row[f"{prefix}{key}"] for key in ("x1", "y1", "x2", "y2")] for prefix in ("target_", ""))
        if row["panel"] == "a":
            axis.add_patch(Circle(target[2:], RADIUS, fill=False, color="0.6", linestyle="--"))
            axis.plot(*pred[2:], "o", color=style.PREDICTED, markersize=4)
        style.draw_box(axis, target, style.TRUE, label="target", linewidth=3.5)
        style.draw_box(axis, pred, style.PREDICTED, label="prediction")
        overlaps = f"({row['panel']}) IoU {row['iou']:.2f}, GIoU {row['giou']:.2f}"
        axis.set_title(f"{overlaps}\n{norms[row['panel']]} {row['distance']:.2f}", fontsize=9)
        axis.set(xlim=(target[0] - 4, target[2] + 8), ylim=(target[3] + 8, target[1] - 4))
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
        iou, giou = (part[part.loss == loss] for loss in ("iou", "giou"))
        for band in (("low", "high"), ("q05", "q95")):
            style.draw_losses(axis, iou, "distance", "median", band)
        style.draw_losses(axis, giou, "distance", "median")
        for edge in ("low", "high"):
            style.draw_losses(axis, giou, "distance", edge, linestyle=":", marker="", label="GIoU, lowest and highest")
        norm = style.norm_label(norm)
        axis.set(xlabel=f"{norm} distance of the corners", title=f"at a fixed {norm} distance")
    style.legend_below(figure, axes[1])
    return figure


def describe_spread(circle: pd.DataFrame, spread: pd.DataFrame) -> str:
    at = spread[spread.measure == "iou"]
    at = at[at.distance == at.distance.iloc[(at.distance - RADIUS).abs().argmin()]]
    ranges = " and ".join(
        f"at {style.norm_label(row.norm)} distance {row.distance:g} from {row.low:.2f} to {row.high:.2f}"
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
    """How well the ℓ1 and ℓ2 distance ranks predictions by IoU, against the size of the error (claim B1).

    Errors of the corners have a random direction and a length uniform in [0, size], in units of the target's diagonal;
    `targets` is "one" (all predictions are of one 10 x 20 target) or "many" (targets of every size and shape). Columns:
    targets, norm, size, then mean and 95 % range over the repeats of Spearman's correlation of −distance and IoU, and
    the mean share of pairs of predictions in which the nearer one has the lower IoU (0 if distance decides, 0.5 if it
    says nothing).
    """
    rng, rows = np.random.default_rng(seed), []
    for targets in ("one", "many"):
        for size in sizes:
            for norm, order in (("l1", 1), ("l2", 2)):
                repeated = [_rank_once(rng, targets, size, order, n) for _ in range(repeats)]
                spearman, wrong_pairs = np.transpose(repeated)
                low, high = np.quantile(spearman, (0.025, 0.975))
                row = dict(targets=targets, norm=norm, size=size, spearman=spearman.mean(), low=low, high=high)
                rows.append(row | dict(wrong_pairs=wrong_pairs.mean()))
    return pd.DataFrame(rows)


def _rank_once(rng, targets, size, order, n):
    extent = np.full((n, 2), [10.0, 20.0]) if targets == "one" else np.exp(rng.uniform(np.log(5), np.log(100), (n, 2)))
    target = np.concatenate((np.zeros((n, 2)), extent), 1)
    direction = rng.normal(size=(n, 4))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    error = direction * rng.uniform(0, size, (n, 1)) * np.linalg.norm(extent, axis=1, keepdims=True)
    iou = boxes.iou(tensor(target + error), tensor(target)).numpy()
    distance = np.linalg.norm(error, order, axis=1)
    other = rng.permutation(n)
    wrong = np.sign(distance - distance[other]) * np.sign(iou - iou[other]) > 0
    return stats.spearmanr(-distance, iou).statistic, wrong.mean()


@style.styled
def plot_rank_correlation(table: pd.DataFrame):
    figure, (axes,) = style.panels(1, 2, 4.4, 3.3)
    for (targets, norm), part in table.groupby(["targets", "norm"]):
        label = f"{style.norm_label(norm)}, {'one target' if targets == 'one' else 'targets of any size'}"
        look = dict(linestyle={"one": "-", "many": "--"}[targets], markevery=1, label=label)
        style.draw_loss(axes[0], norm, part["size"], part.spearman, **look)
        axes[0].fill_between(part["size"], part.low, part.high, color=style.color(norm), alpha=0.15, linewidth=0)
        style.draw_loss(axes[1], norm, part["size"], 100 * part.wrong_pairs, **look)
    for axis in axes:
        axis.set(xscale="log", xlabel="largest error (of the box's diagonal)")
    axes[0].set(ylabel="Spearman's ρ of −distance and IoU", ylim=(None, 1.01))
    axes[1].set(ylabel="pairs ranked wrongly by distance (%)", ylim=(0, 50))
    style.legend_below(figure, axes)
    return figure


def describe_rank_correlation(table: pd.DataFrame) -> str:
    l1 = table[table.norm == "l1"].sort_values("size")
    one, many = (l1[l1.targets == targets] for targets in ("one", "many"))
    tiny, large = one.iloc[0], one.iloc[-1]
    better = "better" if tiny.low > large.high else "no better"
    return (
        f"**What we see.** For one target, ρ of ℓ1 distance and IoU is {tiny.spearman:.3f} (95 % range {tiny.low:.3f} "
        f"to {tiny.high:.3f}) for errors up to {tiny['size']:g} of the diagonal and {large.spearman:.3f} "
        f"({large.low:.3f} to {large.high:.3f}) for errors up to {large['size']:g}: distance ranks {better} as errors "
        f"shrink. Yet even then {tiny.wrong_pairs:.0%} of the pairs are ranked wrongly, because a pixel costs more on "
        f"a short side than on a long one; and over targets of many sizes ρ is {many.spearman.iloc[0]:.2f} for tiny "
        f"errors and {many.spearman.iloc[-1]:.2f} for large ones."
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


def _draw_pairs(axis, table, y):
    small = dict(linestyle="", markerfacecolor="none", markeredgewidth=0.6)
    for part, label, marker, color in (
        (table[table.overlap], "overlapping", "o", style.OVERLAPPING),
        (table[~table.overlap], "disjoint", "x", style.DISJOINT),
    ):
        axis.plot(part.giou, part[y], marker=marker, markersize=3.5, color=color, label=label, **small)


@style.styled
def plot_pairs(tables: list[pd.DataFrame]):
    """The paper's correlation figure, a panel for each table of `pairs`."""
    titles = {"equal": "two equal squares, random centres", "corners": "two boxes, random corners"}
    figure, (axes,) = style.panels(1, len(tables), 4.2, 3.9, sharey=True)
    for axis, table in zip(axes, tables, strict=True):
        _draw_pairs(axis, table, "iou")
        axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="IoU = GIoU")
        axis.set(xlabel="GIoU", title=titles[table.kind.iloc[0]], xlim=(-1.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("IoU")
    axes[0].legend(loc="upper left")
    return figure


def describe_pairs(equal: pd.DataFrame, corners: pd.DataFrame) -> str:
    lowest = [table.giou[table.overlap].min() for table in (equal, corners)]
    return (
        f"**What we see.** Overlapping pairs go down to GIoU {lowest[0]:.2f} for equal squares (the bound is −1/2) and "
        f"to {lowest[1]:.2f} for random corners (the bound is −1), from {len(equal):,} pairs each (claim B2). Where "
        "IoU is 0, GIoU still decreases with distance."
    )


@style.styled
def plot_shorthand(table: pd.DataFrame, ax=None):
    """The shorthand of a table of `pairs` against GIoU."""
    axis = style.one_panel(ax, 5, 4)
    _draw_pairs(axis, table, "shorthand")
    axis.plot([-1, 1], [-1, 1], color="black", linewidth=1, linestyle="--", label="equal")
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(xlabel="GIoU = IoU − (C − A∪B)/C", ylabel="shorthand, IoU − (C − (A + B))/C")
    axis.legend(loc="upper left")
    return axis.figure


def describe_shorthand(table: pd.DataFrame) -> str:
    gap = (table.shorthand - table.giou).groupby(table.overlap).max()
    return (
        f"**What we see.** For disjoint boxes the two agree (largest difference {abs(gap[False]):.0e}); for "
        f"overlapping ones the shorthand is too high by up to {gap[True]:.2f} and reaches {table.shorthand.max():.2f}, "
        "where no GIoU can be above 1. For identical boxes it gives 2."
    )


def rotated_pair(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A 4 x 1 rectangle turned by `angle` degrees, beside an upright 2 x 3 one: polygons (4, 2), (4, 2)."""
    turned = polygons.rotated(tensor([2.5, 0.5, 4, 1, np.deg2rad(angle)]))
    return turned, polygons.rotated(tensor([0, 0, 2, 3, 0]))


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
    figure, (axes,) = style.panels(1, 5, 2.7, 3.2, width_ratios=(1, 1, 1, 1, 1.6))
    for axis, angle in zip(axes, angles, strict=False):
        shapes = [polygon.numpy() for polygon in rotated_pair(angle)]
        corners = np.concatenate(shapes)
        hull = corners[ConvexHull(corners).vertices]
        axis.fill(*hull.T, facecolor="0.93", edgecolor="0.4", linestyle=":", label="convex hull")
        for shape, color, label in zip(shapes, (style.PREDICTED, style.TRUE), ("turning", "upright"), strict=True):
            axis.fill(*shape.T, facecolor="none", edgecolor=color, linewidth=1.8, label=label)
        row = table.iloc[(table.angle - angle).abs().argmin()]
        axis.set(title=f"{angle}°\nIoU {row.iou:.2f}, GIoU {row.giou:.2f}", xlim=(-1.4, 4.7), ylim=(-1.8, 2.7))
        style.hide_scales(axis)
    for prefix, shape, line in (("", "polygons", "-"), ("box_", "bounding boxes", "--")):
        for loss, name in (("iou", "IoU"), ("giou", "GIoU")):
            style.draw_loss(axes[4], loss, table.angle, table[prefix + loss], linestyle=line, label=f"{name}, {shape}")
    axes[4].set(xlabel="angle of the turning rectangle (°)", xticks=range(0, 181, 45), ylabel="IoU, GIoU")
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

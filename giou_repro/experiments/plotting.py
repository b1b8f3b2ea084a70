"""One function a figure: tables in, matplotlib figure out. Each loss has one colour and line style in every figure."""

import textwrap
import zlib
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle, Rectangle
from scipy.spatial import ConvexHull

from giou_repro import registry
from giou_repro.experiments.comparison import baseline
from giou_repro.experiments.landscape import FLAT, SCENARIOS

plt.style.use(Path(__file__).with_name("giou.mplstyle"))

STYLES = {  # after Okabe and Ito: told apart without colour vision, and by line style in grey
    "l1": ("#767676", "--"),
    "l2": ("#000000", ":"),
    "smooth_l1": ("#767676", "-."),
    "iou": ("#E69F00", "--"),
    "iou_log": ("#8C510A", ":"),
    "giou": ("#0072B2", "-"),
    "diou": ("#009E73", "-."),
    "ciou": ("#D55E00", (0, (4, 1, 1, 1, 1, 1))),
}
OTHERS = [
    (color, line)
    for line in ("-", "--", "-.", ":")
    for color in ("#CC79A7", "#56B4E9", "#882255", "#44AA99", "#332288", "#999933")
]
PREDICTED, TRUE = "#222222", "#2CA02C"


def style(name):
    """Keyword arguments of a line for a loss: colour, line style and label."""
    users = [other for other in registry.LOSSES if other not in STYLES]
    number = (
        users.index(name) if name in users else zlib.crc32(name.encode())
    )  # of a loss that is not registered, the same each time
    color, line = STYLES[name] if name in STYLES else OTHERS[number % len(OTHERS)]
    return dict(color=color, linestyle=line, label=registry.label(name))


def _panels(rows, columns, width=3.2, height=2.9, **options):
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    plt.close(figure)  # shown by the notebook's display of the returned figure, once
    return figure, axes


def _legend_below(figure, axis, columns=None):
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or min(len(labels), 7))


def _box(axis, corners, color, **options):
    x1, y1, x2, y2 = corners
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **{"linewidth": 1.8} | options))


def _picture(axis):
    """An axis without scales, for boxes drawn to shape."""
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def figure_1(table):
    """The paper's figure 1: equal distance, very different IoU and GIoU. Takes metric.figure_1."""
    figure, axes = _panels(2, 3, 2.9, 3.3)
    norms = {"a": "sum of corner distances", "b": "ℓ1 of centre and size"}
    for axis, row in zip(axes.flat, table.to_dict("records"), strict=True):
        target, pred = ([row[f"{prefix}{key}"] for key in ("x1", "y1", "x2", "y2")] for prefix in ("target_", ""))
        if row["panel"] == "a":
            axis.add_patch(Circle(target[2:], 7, fill=False, color="0.6", linestyle="--"))
            axis.plot(*pred[2:], "o", color=PREDICTED, markersize=4)
        _box(axis, target, TRUE, label="target", linewidth=3.5)
        _box(axis, pred, PREDICTED, label="prediction")
        axis.set_title(
            f"({row['panel']}) IoU {row['iou']:.2f}, GIoU {row['giou']:.2f}\n{norms[row['panel']]} {row['distance']:.2f}",
            fontsize=9,
        )
        axis.set(xlim=(target[0] - 4, target[2] + 8), ylim=(target[3] + 8, target[1] - 4))
        _picture(axis)
    _legend_below(figure, axes[0, 0])
    return figure


def spread(circle, radius, table):
    """IoU and GIoU of predictions that keep their distance: on the circle (metric.circle), and on ℓ1 and ℓ2 spheres
    (metric.spread)."""
    figure, (axes,) = _panels(1, 3, 3.6, 3.3, sharey=True)
    colors = {"iou": STYLES["iou"][0], "giou": STYLES["giou"][0]}
    for measure, label in (("iou", "IoU"), ("giou", "GIoU")):
        axes[0].plot(circle.angle, circle[measure], color=colors[measure], linestyle=STYLES[measure][1], label=label)
    axes[0].set(
        xlabel="angle of the free corner (°)",
        ylabel="IoU, GIoU",
        xticks=range(0, 361, 90),
        title=f"corner on a circle of radius {radius:g}",
    )
    for axis, norm in zip(axes[1:], ("l1", "l2"), strict=True):
        iou, giou = (table[(table.norm == norm) & (table.measure == measure)] for measure in ("iou", "giou"))
        axis.fill_between(
            iou.distance, iou.low, iou.high, color=colors["iou"], alpha=0.2, linewidth=0, label="IoU, all"
        )
        axis.fill_between(
            iou.distance, iou.q05, iou.q95, color=colors["iou"], alpha=0.35, linewidth=0, label="IoU, 90 %"
        )
        axis.plot(iou.distance, iou["median"], color=colors["iou"], linestyle="--", label="IoU, median")
        axis.plot(giou.distance, giou["median"], color=colors["giou"], label="GIoU, median")
        for edge, label in (("low", "GIoU, lowest and highest"), ("high", None)):
            axis.plot(giou.distance, giou[edge], color=colors["giou"], linewidth=1, linestyle=":", label=label)
        axis.set(
            xlabel=f"{norm.replace('l', 'ℓ')} distance of the corners",
            title=f"at a fixed {norm.replace('l', 'ℓ')} distance",
        )
    axes[0].legend(loc="lower right")
    _legend_below(figure, axes[1], 6)
    return figure


def spread_of_losses(table):
    """How much each loss varies at a fixed ℓ2 distance of the corners: its 90 % range over its median. Takes
    metric.spread."""
    figure, ((axis,),) = _panels(1, 1, 6.4, 3.8)
    for measure, part in table[(table.norm == "l2") & table.measure.str.startswith("loss_")].groupby(
        "measure", sort=False
    ):
        axis.plot(part.distance, (part.q95 - part.q05) / part["median"], **style(measure.removeprefix("loss_")))
    axis.set(xlabel="ℓ2 distance of the corners", ylabel="90 % range over the median", ylim=(-0.05, None))
    _legend_below(figure, axis, 4)
    return figure


def rank_correlation(table):
    """How well distance ranks boxes by IoU against the size of the error. Takes metric.rank_correlation."""
    figure, (axes,) = _panels(1, 2, 4.4, 3.3)
    for (targets, norm), part in table.groupby(["targets", "norm"]):
        look = dict(
            color={"l1": "#0072B2", "l2": "#D55E00"}[norm],
            linestyle={"one": "-", "many": "--"}[targets],
            marker="o",
            markersize=3,
        )
        look["label"] = f"{norm.replace('l', 'ℓ')}, {'one target' if targets == 'one' else 'targets of any size'}"
        axes[0].plot(part["size"], part.spearman, **look)
        axes[0].fill_between(part["size"], part.low, part.high, color=look["color"], alpha=0.15, linewidth=0)
        axes[1].plot(part["size"], 100 * part.wrong_pairs, **look)
    axes[0].set(
        xscale="log",
        xlabel="largest error (of the box's diagonal)",
        ylabel="Spearman's ρ of −distance and IoU",
        ylim=(None, 1.01),
    )
    axes[1].set(
        xscale="log",
        xlabel="largest error (of the box's diagonal)",
        ylabel="pairs ranked wrongly by distance (%)",
        ylim=(0, 50),
    )
    _legend_below(figure, axes[0])
    return figure


def iou_against_giou(tables):
    """The paper's correlation figure, a panel for each table of metric.pairs."""
    titles = {"equal": "two equal squares, random centres", "corners": "two boxes, random corners"}
    figure, (axes,) = _panels(1, len(tables), 4.2, 3.9, sharey=True)
    for axis, table in zip(axes, tables, strict=True):
        over, apart = table[table.overlap], table[~table.overlap]
        axis.plot(
            over.giou,
            over.iou,
            "o",
            markersize=3,
            markerfacecolor="none",
            markeredgewidth=0.5,
            color="#0072B2",
            label="overlapping",
        )
        axis.plot(apart.giou, apart.iou, "x", markersize=4, markeredgewidth=0.6, color="#D55E00", label="disjoint")
        axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="IoU = GIoU")
        axis.set(xlabel="GIoU", title=titles[table.kind.iloc[0]], xlim=(-1.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("IoU")
    axes[0].legend(loc="upper left")
    return figure


def shorthand(table):
    """The blog's shorthand against GIoU. Takes metric.pairs."""
    figure, ((axis,),) = _panels(1, 1, 5, 4)
    for part, label, marker, color in (
        (table[table.overlap], "overlapping", "o", "#0072B2"),
        (table[~table.overlap], "disjoint", "x", "#D55E00"),
    ):
        axis.plot(
            part.giou,
            part.shorthand,
            marker,
            markersize=3.5,
            markerfacecolor="none",
            markeredgewidth=0.6,
            color=color,
            label=label,
        )
    axis.plot([-1, 1], [-1, 1], color="black", linewidth=1, linestyle="--", label="right")
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(xlabel="GIoU = IoU − (C − A∪B)/C", ylabel="shorthand, IoU − (C − (A + B))/C")
    axis.legend(loc="upper left")
    return figure


def rotation(table, pair, angles=(0, 45, 90, 135)):
    """Polygons at some angles with their convex hull, and IoU and GIoU against the angle. Takes metric.rotation and
    metric.rotated_pair."""
    figure = plt.figure(figsize=(11.5, 4.6))
    plt.close(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    for axis, angle in zip(left.subplots(2, 2).flat, angles, strict=True):
        shapes = [polygon.numpy() for polygon in pair(angle)]
        corners = np.concatenate(shapes)
        hull = corners[ConvexHull(corners).vertices]
        axis.fill(*hull.T, facecolor="0.93", edgecolor="0.4", linestyle=":", label="convex hull")
        for shape, color, label in zip(shapes, (PREDICTED, TRUE), ("turning", "upright"), strict=True):
            axis.fill(*shape.T, facecolor="none", edgecolor=color, linewidth=1.8, label=label)
        row = table.iloc[(table.angle - angle).abs().argmin()]
        axis.set_title(f"{angle}°: IoU {row.iou:.2f}, GIoU {row.giou:.2f}", fontsize=9)
        axis.set(xlim=(-1.4, 4.7), ylim=(-1.8, 2.7))
        _picture(axis)
    left.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axis = right.subplots()
    for column, name, line, label in (
        ("iou", "iou", "-", "IoU, polygons"),
        ("giou", "giou", "-", "GIoU, polygons"),
        ("box_iou", "iou", "--", "IoU, bounding boxes"),
        ("box_giou", "giou", "--", "GIoU, bounding boxes"),
    ):
        axis.plot(table.angle, table[column], color=STYLES[name][0], linestyle=line, label=label)
    axis.set(xlabel="angle of the turning rectangle (°)", xticks=range(0, 181, 45), ylabel="IoU, GIoU")
    right.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def profiles(table):
    """Value (top) and slope (bottom) of each loss along each scenario. Takes landscape.profiles."""
    figure, axes = _panels(2, len(SCENARIOS), 3.3, 2.7, sharex="col")
    for column, (scenario, (meaning, _, _)) in enumerate(SCENARIOS.items()):
        part = table[table.scenario == scenario]
        for name, line in part.groupby("loss", sort=False):
            for axis, quantity in zip(axes[:, column], ("value", "slope"), strict=True):
                jump = (line.slope.diff().abs() > 0.7) & (quantity == "slope")  # no upright line through a jump
                axis.plot(line.t, line[quantity].mask(jump), **style(name))
        axes[0, column].set(title=scenario, ylim=(-0.05, 2.6))
        axes[1, column].set(xlabel=meaning, ylim=(-3.2, 3.2))
    axes[0, 0].set_ylabel("loss (cut at 2.6)")
    axes[1, 0].set_ylabel("slope (cut at ±3.2)")
    _legend_below(figure, axes[0, 0], 8)
    return figure


def field(table):
    """Descent direction in the plane of centres, a panel a loss. Arrows have one length, colour is their size; crosses
    have none."""
    names = list(table.loss.unique())
    columns = min(4, len(names))
    figure, axes = _panels(-(-len(names) // columns), columns, 3.0, 3.0, sharex=True, sharey=True)
    sizes = np.hypot(table.dx, table.dy)
    seen = sizes[(sizes > FLAT) & np.isfinite(sizes)]
    norm = LogNorm(np.quantile(seen, 0.02), seen.max()) if len(seen) else None
    for axis, name in zip(axes.flat, names, strict=False):
        part = table[table.loss == name]
        size = np.hypot(part.dx, part.dy)
        pulled = (size > FLAT) & np.isfinite(size)
        moving, still, size = part[pulled], part[~pulled], size[pulled]
        look = dict(norm=norm, cmap="viridis_r", scale=22, width=0.006, pivot="mid")
        arrows = axis.quiver(moving.x, moving.y, moving.dx / size, moving.dy / size, size, **look)
        axis.plot(still.x, still.y, "x", color="#D55E00", markersize=3.5, markeredgewidth=0.8)
        _box(axis, (-0.5, -0.5, 0.5, 0.5), TRUE)
        axis.set(title=f"{registry.label(name)}: no pull at {len(still) / len(part):.1%}", aspect="equal")
        axis.grid(False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.colorbar(arrows, ax=axes, label="size of the gradient by x and y", shrink=0.8)
    return figure


def steepness(table):
    """Size of the gradient against IoU, and the correlation of IoU and GIoU. Takes landscape.steepness."""
    figure, ((left, right),) = _panels(1, 2, 4.6, 3.4)
    for name, part in table.groupby("loss", sort=False):
        middle = (part.iou_low + part.iou_high) / 2
        left.plot(middle, part["median"], marker="o", markersize=3, **style(name))
        left.fill_between(middle, part.q25, part.q75, color=style(name)["color"], alpha=0.12, linewidth=0)
    left.set(
        xlabel="IoU (0: disjoint)",
        ylabel="‖∂loss/∂corners‖, median and quartiles",
        ylim=(0, np.nanmin([4, 1.1 * table.q75.max()])),
    )
    left.legend(ncols=2)
    part = table[table.loss == table.loss.iloc[0]].dropna()
    right.plot((part.iou_low + part.iou_high) / 2, part.correlation, marker="o", markersize=4, color="black")
    right.set(xlabel="IoU", ylabel="correlation of IoU and GIoU", xlim=(0, 1), ylim=(0, 1.03))
    return figure


def convergence(panels, measure="error", paper=None):
    """Curves against the step, a panel for each title of `panels` (title → convergence.curves).

    `paper` (convergence.paper_curves) is drawn as circles in the first panel.
    """
    labels = {"error": "coordinate error of a case", "mean_iou": "mean IoU", "iou_75": "share above IoU .75"}
    figure, (axes,) = _panels(1, len(panels), 4.4, 3.6, sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, line in curves.groupby("loss", sort=False):
            axis.plot(line.step, line[measure], **style(name))
        axis.set(title=title, xlabel="step")
    axes[0].set_ylabel(labels[measure])
    axes[0].set_ylim(bottom=0)
    if paper is not None:
        for name, dots in paper.groupby("loss", sort=False):
            axes[0].plot(dots.step, dots.error, "o", markersize=5, markerfacecolor="white", color=style(name)["color"])
        axes[0].plot([], [], "o", markersize=5, markerfacecolor="white", color="black", label="read off the paper")
    lines = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 8))
    return figure


def surfaces(panels):
    """Mean final error of a case at each anchor point, a row for each title of `panels` (title → Simulation.final)."""
    columns = max(table.loss.nunique() for table in panels.values())
    figure, axes = _panels(len(panels), columns, 2.7, 2.7, sharex=True, sharey=True)
    errors = np.concatenate([table.error / 343 for table in panels.values()])
    norm = LogNorm(max(np.nanquantile(errors, 0.02), 1e-4), np.nanmax(errors))
    for axis in axes.flat:
        axis.set_visible(False)
    for row, (title, table) in zip(axes, panels.items(), strict=True):
        for axis, (name, part) in zip(row, table.groupby("loss", sort=False), strict=False):
            axis.set_visible(True)
            dots = axis.scatter(
                part.x,
                part.y,
                c=part.error / 343,
                norm=norm,
                s=min(60, max(2.5, 9000 / len(part))),
                linewidth=0,
                rasterized=True,
            )
            axis.set(title=f"{registry.label(name)}, {title}", aspect="equal", xlim=(6.8, 13.2), ylim=(6.8, 13.2))
            axis.grid(False)
    figure.colorbar(dots, ax=axes, label="mean final error of a case", shrink=0.8)
    return figure


def step_sizes(table):
    """Final error and mean IoU against the step size. Takes rows loss, step_size, error (of a case), mean_iou."""
    figure, (axes,) = _panels(1, 2, 4.4, 3.5)
    for name, part in table.groupby("loss", sort=False):
        for axis, measure in zip(axes, ("error", "mean_iou"), strict=True):
            axis.plot(part.step_size, part[measure], marker="o", markersize=4, **style(name))
    for axis in axes:
        axis.axvline(0.1, color="0.6", linewidth=0.9, linestyle="--")
        axis.set(xscale="log", xlabel="step size (dashed: the paper's)")
    axes[0].set(ylabel="final coordinate error of a case", yscale="log")
    axes[1].set(ylabel="final mean IoU")
    _legend_below(figure, axes[0])
    return figure


def every_loss(table, step_size):
    """Final error of a case of each loss at one step size and at its own best, least first. Takes
    convergence.every_loss."""
    table = table.sort_values("best_error", ascending=False, na_position="first")
    table = table.assign(error=table.error.clip(lower=1e-5), best_error=table.best_error.clip(lower=1e-5))
    figure, ((axis,),) = _panels(1, 1, 6.4, 0.9 + 0.26 * len(table))
    rows = range(len(table))
    axis.hlines(rows, table.best_error, table.error, color="0.8", linewidth=1.5, zorder=1)
    axis.scatter(
        table.error,
        rows,
        s=34,
        facecolor="white",
        edgecolor="#0072B2",
        linewidth=1.4,
        label=f"at step size {step_size:g}",
    )
    axis.scatter(table.best_error, rows, s=34, color="#D55E00", label="at its own best step size")
    labels = [
        f"{registry.label(row.loss)}{'' if np.isnan(row.best_size) else f' ({row.best_size:g})'}"
        for row in table.itertuples()
    ]
    axis.set(
        xscale="log",
        xlabel="final coordinate error of a case (0.00001 or less at the left edge)",
        yticks=list(rows),
        yticklabels=labels,
        ylim=(-0.7, len(table) - 0.3),
    )
    axis.grid(axis="y", visible=False)
    _legend_below(figure, axis)
    return figure


def filmstrip(table, target, frames=(0, 0.025, 0.1, 0.25, 0.5, 1)):
    """One box on its way: a row for each loss and kind of gradients, a picture for each of `frames` (shares of the
    steps).

    Takes convergence.single_boxes for one start; `target` is (x, y, w, h).
    """
    rows = list(table.groupby(["gradients", "loss"], sort=False))
    shown = sorted({round(frame * table.step.max()) for frame in frames})
    reach = {
        axis: (table[axis] - table[size].abs() / 2, table[axis] + table[size].abs() / 2)
        for axis, size in (("x", "w"), ("y", "h"))
    }
    reach = {
        axis: [edge.replace([np.inf, -np.inf], np.nan).clip(-20, 40) for edge in edges] for axis, edges in reach.items()
    }
    limits = {axis: (min(low.min(), 9.5) - 0.25, max(high.max(), 10.5) + 0.25) for axis, (low, high) in reach.items()}
    shape = (limits["y"][1] - limits["y"][0]) / (limits["x"][1] - limits["x"][0])
    figure, axes = _panels(len(rows), len(shown), 1.75, 0.35 + 1.55 * min(shape, 1.3), sharex=True, sharey=True)
    x, y, w, h = target
    for line, ((gradients, name), part) in zip(axes, rows, strict=True):
        for axis, row in zip(line, part[part.step.isin(shown)].itertuples(), strict=True):
            _box(axis, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), TRUE, linewidth=3.5, label="target")
            moved = (row.x - row.w / 2, row.y - row.h / 2, row.x + row.w / 2, row.y + row.h / 2)
            _box(axis, moved, PREDICTED, linewidth=1.3, label="prediction")
            axis.set_title(f"step {row.step}, IoU {row.iou:.2f}", fontsize=8)
            axis.set(xlim=limits["x"], ylim=limits["y"][::-1])
            _picture(axis)
        line[0].set_ylabel(f"{registry.label(name)},\n{gradients}", fontsize=9)
    _legend_below(figure, axes[0, 0])
    return figure


def training_curves(table, loss):
    """Box loss, mean IoU of the positives and AP by epoch (loop.Trained.curves)."""
    figure, axes = _panels(1, 3)
    measures = (("box", "weighted box loss"), ("mean_iou", "mean IoU of positives"), ("AP", "AP (validation)"))
    for axis, (column, label) in zip(axes[0], measures, strict=True):
        shown = table.dropna(subset=column)
        axis.plot(shown.epoch, shown[column], **style(loss), marker="o", markersize=3)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(bottom=0)
    _legend_below(figure, axes[0][0])
    return figure


def thresholds(table):
    """AP against the threshold of the match, by IoU and by GIoU (columns criterion, threshold, AP)."""
    figure, axes = _panels(1, 1, width=4)
    for criterion, line in (("iou", "-"), ("giou", "--")):
        shown = table[table.criterion == criterion]
        axes[0][0].plot(
            shown.threshold,
            shown.AP,
            color="#222222",
            linestyle=line,
            marker="o",
            markersize=3,
            label=f"by {LABELS[criterion]}",
        )
    axes[0][0].set(xlabel="threshold of a match", ylabel="AP", ylim=(0, None))
    axes[0][0].legend()
    return figure


LABELS = {"iou": "IoU", "giou": "GIoU"}


def detections(packed, found, names, rows=2, columns=4, score=0.3):
    """Validation squares with their true boxes and the predicted ones above `score`, evenly drawn from the set, each
    once."""
    figure, axes = _panels(rows, columns, width=2.6, height=2.7)
    for axis in axes.flat:
        _picture(axis)
    for index, axis in zip(
        np.unique(np.linspace(0, len(packed) - 1, rows * columns).round().astype(int)), axes.flat, strict=False
    ):
        axis.imshow(packed.images[index].permute(1, 2, 0).cpu().numpy())
        for corners in packed.truths[index]["boxes"].tolist():
            _box(axis, corners, "#00E05A", linewidth=2.4)
        detection = found[index]
        for corners, label, value in zip(
            *(detection[key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        ):
            if value >= score:
                _box(axis, corners, "#FF3DBE", linewidth=1.1)
                axis.text(
                    corners[0],
                    corners[1] - 1,
                    f"{names[label]} {value:.2f}",
                    fontsize=5,
                    color="white",
                    backgroundcolor="#00000099",
                ).set_bbox({"facecolor": "#000000", "alpha": 0.55, "pad": 0.6, "linewidth": 0})
    return figure


def every_run(table):
    """AP, AP75 and AP by GIoU of every run as dots, by loss, their means as bars; a row a setting."""
    settings = table.setting.unique()
    measures = (("AP", "AP"), ("AP75", "AP75"), ("AP_giou", "AP by GIoU"))
    figure, axes = _panels(len(settings), len(measures), width=3.2, height=2.6)
    for row, setting in zip(axes, settings, strict=True):
        part = table[table.setting == setting]
        names = list(part.loss.unique())
        for axis, (column, label) in zip(row, measures, strict=True):
            for place, name in enumerate(names):
                values = part[part.loss == name][column]
                look = style(name)
                axis.plot(
                    place + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.06,
                    values,
                    "o",
                    color=look["color"],
                    markersize=4,
                    alpha=0.75,
                )
                axis.hlines(values.mean(), place - 0.3, place + 0.3, color=look["color"], linewidth=2.2)
            axis.set(ylabel=label, xticks=range(len(names)))
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
            axis.set_xticklabels([registry.label(name) for name in names], **turned)
        row[0].set_title(_wrapped(setting), fontsize=8, loc="left")
    return figure


def _wrapped(text, width=58):
    return "\n".join(textwrap.wrap(text, width))


def paired(table):
    """Paired differences in points (hundredths) with 95 % intervals, full dots where the verdict is better or worse
    (comparison.paired).

    A row a setting, a panel a measure; a line parts what is against one loss from what is against another.
    """
    groups = [part for _, part in table.groupby("setting", sort=False)]
    measures = table.measure.unique()
    lengths = [len(part.groupby(["loss", "against"])) for part in groups]
    heights = [0.9 + 0.2 * length for length in lengths]
    figure, axes = _panels(len(groups), len(measures), 2.2, np.mean(heights), sharey="row", height_ratios=heights)
    for row, part, length in zip(axes, groups, lengths, strict=True):
        for axis, measure in zip(row, measures, strict=True):
            entries = list(part[part.measure == measure].itertuples())
            for place, entry in enumerate(entries):
                color = style(entry.loss)["color"]
                axis.hlines(place, 100 * entry.low, 100 * entry.high, color=color, linewidth=2)
                fill = "full" if entry.verdict in ("better", "worse") else "none"
                axis.plot(100 * entry.difference, place, "o", color=color, markersize=5, fillstyle=fill)
                if place and entry.against != entries[place - 1].against:
                    axis.axhline(place - 0.5, color="#999999", linewidth=0.6)
            axis.axvline(0, color="#999999", linewidth=1)
            axis.set(xlabel=f"Δ {measure.replace('mean_iou', 'mean IoU')}, points", ylim=(length - 0.4, -0.6))
            axis.locator_params(axis="x", nbins=3)
            axis.grid(axis="y", visible=False)
        labels = [
            f"{registry.label(e.loss)} − {registry.label(e.against)} (n {e.n})"
            for e in part[part.measure == measures[0]].itertuples()
        ]
        row[0].set_yticks(range(length), labels)
        row[0].set_title(_wrapped(part.setting.iloc[0]), fontsize=8, loc="left")
    return figure


def curves_by_loss(table):
    """Box loss as share of its first value, mean IoU of positives and AP by epoch, mean over seeds; a row a setting."""
    settings = table.setting.unique()
    figure, axes = _panels(len(settings), 3, height=2.6)
    measures = (
        ("classification", "classification loss"),
        ("mean_iou", "mean IoU of positives"),
        ("AP", "AP (validation)"),
    )
    for row, setting in zip(axes, settings, strict=True):
        part = table[table.setting == setting]
        for name in part.loss.unique():
            runs = part[part.loss == name].groupby("epoch")
            for axis, (column, label) in zip(row, measures, strict=True):
                means = runs[column].mean().dropna()
                axis.plot(
                    means.index, means, **style(name) | ({"marker": "o", "markersize": 3} if column == "AP" else {})
                )
                axis.set(xlabel="epoch", ylabel=label)
                axis.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_title(_wrapped(setting), fontsize=8, loc="left")
    _legend_of_all(figure, axes[:, 0])
    return figure


def _legend_of_all(figure, axes):
    """One legend below for the lines of several axes, each label once."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 7))


def thresholds_by_loss(table):
    """AP against the threshold of the match, mean over seeds, by IoU and by GIoU, and the difference to the
    baseline."""
    settings = table.setting.unique()
    figure, axes = _panels(len(settings), 3, height=2.6)
    for row, setting in zip(axes, settings, strict=True):
        part = table[table.setting == setting]
        means = part.groupby(["loss", "criterion", "threshold"], sort=False).AP.mean()
        names = list(part.loss.unique())
        base = baseline(names)
        for name in names:
            for axis, criterion in zip(row, ("iou", "giou"), strict=False):
                axis.plot(means[name, criterion].index, means[name, criterion], **style(name))
                axis.set(xlabel=f"threshold of {LABELS[criterion]}", ylabel="AP")
            gain = means[name, "iou"] - means[base, "iou"]
            row[2].plot(gain.index, gain, **style(name))
        for axis in row[:2]:
            axis.set_ylim(bottom=0)
        row[2].set(xlabel="threshold of IoU", ylabel=f"AP − AP of {registry.label(base)}")
        row[0].set_title(_wrapped(setting), fontsize=8, loc="left")
    _legend_of_all(figure, axes[:, 0])
    return figure


def weights(table):
    """AP against the weight of the box loss, mean and 95 % interval, a panel a setting (comparison.weights)."""
    settings = table.setting.unique()
    figure, axes = _panels(1, len(settings), width=4)
    for axis, setting in zip(axes[0], settings, strict=True):
        part = table[table.setting == setting]
        for name in part.loss.unique():
            line = part[part.loss == name]
            axis.plot(line.weight, line["mean"], marker="o", **style(name))
            axis.fill_between(line.weight, line.low, line.high, color=style(name)["color"], alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="weight of the box loss", ylabel="AP")
        axis.set_xticks(sorted(part.weight.unique()), [f"{weight:g}" for weight in sorted(part.weight.unique())])
        axis.minorticks_off()
        axis.set_title(_wrapped(setting), fontsize=8, loc="left")
    _legend_of_all(figure, axes[0])
    return figure


def scaling(table):
    """Time (top) and memory (bottom) against the number of cases, steps, losses and pairs; grey: in proportion. Takes
    benchmarks.scaling's table."""
    against = list(table.against.unique())
    figure, axes = _panels(2, len(against), 2.7, 2.5, sharex="col", sharey="row")
    for column, name in zip(axes.T, against, strict=True):
        part = table[table.against == name]
        for axis, quantity in zip(column, ("seconds", "megabytes"), strict=True):
            axis.plot(
                part["size"],
                part[quantity].clip(lower=1e-3 if quantity == "seconds" else 1),
                color="#0072B2",
                marker="o",
                markersize=3,
            )
            last = part.iloc[-1]
            if quantity == "seconds":
                axis.plot(part["size"], last.seconds * part["size"] / last["size"], color="0.6", linestyle=":")
            axis.set(xscale="log", yscale="log")
        column[1].set_xlabel(name)
    axes[0, 0].set_ylabel("CPU time (s)")
    axes[1, 0].set_ylabel("memory beyond the start (MB)")
    return figure

"""One function a figure: tables in, matplotlib figure out. Each loss has one colour and line style in every figure."""

import textwrap
import zlib
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from giou_repro import registry
from giou_repro.experiments.comparison import baseline

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

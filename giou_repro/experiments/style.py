"""How every figure looks: one colour, marker and line style a loss, panels, legends and boxes.

A figure is drawn and saved with matplotlib's defaults and giou.mplstyle, whatever the user's matplotlibrc says.
"""

import zlib
from pathlib import Path

import numpy as np
from matplotlib import figure as matplotlib_figure
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from giou_repro import registry

styled = plt.style.context(Path(__file__).with_name("giou.mplstyle"), after_reset=True)  # the decorator of every plot_
STYLES = {  # colours after Okabe and Ito: told apart without colour vision, and by line and marker in grey
    "l1": ("#767676", "--", "s"),
    "l2": ("#000000", ":", "D"),
    "smooth_l1": ("#56B4E9", "-.", "P"),
    "iou": ("#E69F00", "--", "^"),
    "iou_log": ("#8C510A", ":", "v"),
    "giou": ("#0072B2", "-", "o"),
    "diou": ("#009E73", "-.", "X"),
    "ciou": ("#D55E00", (0, (4, 1, 1, 1, 1, 1)), "*"),
}
COLORS = ("#CC79A7", "#882255", "#44AA99", "#332288", "#999933")  # of the other losses, in their order in LOSSES;
LINES, MARKERS = ("-", "--", "-.", ":"), ("<", ">", "p", "h", "d", "8", "H")  # 5, 4 and 7 make 140 combinations
PREDICTED, TRUE = "#222222", "#2CA02C"
OVERLAPPING, DISJOINT, NO_GRADIENT = "#222222", "#CC3311", "#CC3311"  # no loss has these colours


class Figure(matplotlib_figure.Figure):
    """A figure that is drawn and saved in the package's style."""

    draw = styled(matplotlib_figure.Figure.draw)
    savefig = styled(matplotlib_figure.Figure.savefig)


def color_line_marker(loss: str) -> tuple:
    """The look of a loss in every figure."""
    if loss in STYLES:
        return STYLES[loss]
    others = [name for name in registry.LOSSES if name not in STYLES]
    number = others.index(loss) if loss in others else zlib.crc32(loss.encode())  # not registered: the same each time
    return COLORS[number % 5], LINES[number % 4], MARKERS[number % 7]


def color(loss: str) -> str:
    return color_line_marker(loss)[0]


def draw_loss(axis, loss: str, x, y, **options):
    """One line in the look of its loss, with about ten markers."""
    look = dict(zip(("color", "linestyle", "marker"), color_line_marker(loss), strict=True))
    axis.plot(x, y, **look | dict(markersize=4, markevery=max(1, len(x) // 10), label=registry.label(loss)) | options)


def draw_losses(axis, table, x: str, y: str, band: tuple[str, str] = (), **options):
    """A line for each loss of a table, of column `y` against column `x`, and the band between two other columns."""
    for loss, part in table.groupby("loss", sort=False):
        draw_loss(axis, loss, part[x], part[y], **options)
        if band:
            axis.fill_between(part[x], *(part[edge] for edge in band), color=color(loss), alpha=0.13, linewidth=0)


def panels(rows: int, columns: int, width: float = 3.2, height: float = 2.9, **options):
    """A figure and its (rows, columns) axes, each `width` x `height` inches."""
    figure = plt.figure(FigureClass=Figure, figsize=(width * columns, height * rows))
    plt.close(figure)  # a notebook shows the figure that its cell returns, once
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def one_panel(ax, width: float, height: float):
    """The given axes, or those of a new figure."""
    return panels(1, 1, width, height)[1].item() if ax is None else ax


def legend_below(figure, axes, columns: int = 7):
    """One legend below the figure for the lines of all `axes`, each label once."""
    pairs = [pair for axis in np.ravel(axes) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    lines = {label: handle for handle, label in pairs}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=max(1, min(len(lines), columns)))


def legend_beside(axis):
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_box(axis, corners, color: str, **options):
    x1, y1, x2, y2 = corners
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **{"linewidth": 1.8} | options))


def hide_scales(axis):
    """For boxes drawn to shape."""
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def labels(losses) -> str:
    """The losses of a sentence."""
    return ", ".join(registry.label(name) for name in losses) or "none"


def norm_label(norm: str) -> str:
    """ℓ1 for "l1"."""
    return norm.replace("l", "ℓ")

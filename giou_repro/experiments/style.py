"""How every figure looks: one colour, marker and line style a loss, panels, legends and boxes.

A figure is drawn and saved with matplotlib's defaults and giou.mplstyle, whatever the user's matplotlibrc says, and
without a backend of pyplot. It is at most as wide as a page's text, and its text is 7 pt or more there.
"""

import io
import zlib
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import figure as matplotlib_figure
from matplotlib.patches import Rectangle

from giou_repro import registry

styled = matplotlib.style.context(Path(__file__).with_name("giou.mplstyle"), after_reset=True)  # decorates every plot_
WIDTH = 6.875  # inches, of the text of a page
DASH_DOTS, LONG = (0, (4, 1, 1, 1, 1, 1)), (0, (7, 2))
LOOKS = {  # colour, line, marker: the first eight of unlike lightness, and told apart without colour vision
    "l1": ("#686868", "--", "s"),
    "l2": ("#000000", ":", "D"),
    "smooth_l1": ("#7CC4F0", "-.", "P"),
    "iou": ("#EBA80C", "--", "^"),
    "iou_log": ("#7A3E00", ":", "v"),
    "giou": ("#0060A0", "-", "o"),
    "diou": ("#00A67A", "-.", "X"),
    "ciou": ("#D5480A", DASH_DOTS, "*"),
    "balanced_l1": ("#A9A9A9", "-", "s"),
    "eiou": ("#882255", "-", "*"),
    "focal_eiou": ("#CC79A7", "--", "*"),
    "siou": ("#AA4499", ":", "*"),
    "alpha_iou": ("#C8B400", "-", "^"),
    "alpha_giou": ("#332288", "--", "o"),
    "alpha_diou": ("#44AA99", "-", "X"),
    "wiou": ("#117733", "--", "X"),
    "mpdiou": ("#66A61E", ":", "X"),
    "inner_iou": ("#B8860B", ":", "^"),
    "inner_giou": ("#4477AA", ":", "o"),
    "piou": ("#AA3377", "--", "D"),
    "iou_squared": ("#E0B84C", "-.", "^"),
    "piou_v2": ("#7B1FA2", "-", "D"),
    "shape_iou": ("#C2185B", "-.", "*"),
    "bounded_iou": ("#5F9EA0", "--", "P"),
    "nwd": ("#8C564B", "-", "v"),
    "mgiou": ("#17A2D6", "-.", "o"),
    "5l1 + 2giou": ("#D81B60", LONG, "P"),
}
COLORS = ("#E7298A", "#5D3A9B", "#1B9E77", "#A50026", "#80796B", "#3F6FD8", "#B35806", "#01665E")  # of a user's losses,
LINES, MARKERS = ("-", "--", "-.", ":", LONG), ("<", ">", "p", "h", "d", "8", "H")  # 280 looks, by the loss's name
PREDICTED, TRUE = "#222222", "#2CA02C"
OVERLAPPING, DISJOINT, NO_GRADIENT = "#222222", "#CC3311", "#CC3311"  # no loss has these colours


class Figure(matplotlib_figure.Figure):
    """A figure that is drawn, saved and shown by a notebook in the package's style. It is laid out once, for all
    formats: a layout takes as long as a drawing."""

    draw = styled(matplotlib_figure.Figure.draw)

    @styled
    def savefig(self, *arguments, **options):
        super().savefig(*arguments, **options)
        self.set_layout_engine("none")

    def _repr_png_(self):
        self.savefig(buffer := io.BytesIO(), dpi="figure")
        return buffer.getvalue()


def color_line_marker(loss: str) -> tuple:
    """The look of a loss in every figure; a user's is made of its name, whatever else is registered."""
    number = zlib.crc32(loss.encode())
    return LOOKS.get(loss) or (COLORS[number % 8], LINES[number // 8 % 5], MARKERS[number // 40 % 7])


def color(loss: str) -> str:
    return color_line_marker(loss)[0]


def draw_loss(axis, loss: str, x, y, **options):
    """One line in the look of its loss, with about ten markers."""
    look = dict(zip(("color", "linestyle", "marker"), color_line_marker(loss), strict=True))
    axis.plot(x, y, **look | dict(markevery=max(1, len(x) // 10), label=registry.label(loss)) | options)


def draw_losses(axis, table, x: str, y: str, band: tuple[str, str] = (), **options):
    """A line for each loss of a table, of column `y` against column `x`, and the band between two other columns."""
    for loss, part in table.groupby("loss", sort=False):
        draw_loss(axis, loss, part[x], part[y], **options)
        if band:
            axis.fill_between(part[x], *(part[edge] for edge in band), color=color(loss), alpha=0.13, linewidth=0)


@styled
def panels(rows: int, columns: int, width: float = 3.2, height: float = 2.9, **options):
    """A figure and its (rows, columns) axes, each `width` x `height` inches, or less so that the figure is no wider
    than WIDTH."""
    scale = min(1, WIDTH / (width * columns))
    figure = Figure(figsize=(min(width * columns, WIDTH), scale * height * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def one_panel(ax, width: float, height: float):
    """The given axes, or those of a new figure."""
    return panels(1, 1, width, height)[1].item() if ax is None else ax


def legend_below(figure, axes, columns: int = 8):
    """One legend below the figure for the lines of all `axes`, each label once, in as many columns as fit into its
    width."""
    pairs = [pair for axis in np.ravel(axes) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    lines = {label: handle for handle, label in pairs}
    most = figure.get_figwidth() / (0.42 + 0.048 * max(map(len, lines), default=0))  # inches of a handle, of a letter
    count = max(1, min(len(lines), columns, int(most)))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=count)


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

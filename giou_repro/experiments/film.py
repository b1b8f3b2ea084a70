"""The film of README and site: the same three boxes under five losses, by exact and by published gradients.

python -m giou_repro.experiments.film docs/film.gif
"""

import io
import sys

import pandas as pd
from PIL import Image

from giou_repro import registry
from giou_repro.experiments import convergence, style
from giou_repro.runs.files import write_atomic

LOSSES = ["l1", "iou", "giou", "diou", "ciou"]
STEPS = [*range(0, 40), *range(40, 80, 2), *range(80, 201, 8)]  # those shown: most of the way is at the beginning
MILLISECONDS, LAST = 90, 2500  # how long a picture stays, and the last one
COLORS = ("#222222", "#C2185B", "#1565C0")  # of the three boxes
VIEW = (8.6, 13.2)  # of both axes; the target is at 9.5 to 10.5


def boxes_on_their_way(shown=STEPS) -> pd.DataFrame:
    """convergence.single_boxes at the steps `shown`: of LOSSES with exact gradients, and of those that have them with
    published ones."""
    kinds = {"exact": LOSSES, "published": LOSSES[1:]}
    options = dict(steps=shown[-1], dtype="float64", device="cpu", compile=False, progress=False)
    table = pd.concat([convergence.single_boxes(losses, kind, **options) for kind, losses in kinds.items()])
    return table[table.step.isin(shown)]


@style.styled
def film(table: pd.DataFrame) -> bytes:
    """An animated GIF of the table of `boxes_on_their_way`: a column a loss, a row a kind of gradients."""
    kinds = list(table.gradients.unique())
    figure, axes = style.panels(len(kinds), len(LOSSES), 1.7, 1.95)
    cells = {(kind, loss): axes[i, j] for i, kind in enumerate(kinds) for j, loss in enumerate(LOSSES)}
    ways = {key: part for key, part in table.groupby(["gradients", "loss"], sort=False)}
    pictures = []
    for step in table.step.unique():
        for (kind, loss), axis in cells.items():
            axis.clear()
            style.hide_scales(axis)
            if (kind, loss) in ways:
                way = ways[kind, loss]
                _draw(axis, way, step)
                mean_iou = way[way.step == step].iou.mean()
                axis.set_title(f"{registry.label(loss)}, {kind}\nmean IoU {mean_iou:.2f}", fontsize=9)
        figure.suptitle(f"step {step}", fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        pictures.append(Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE))
    durations = [MILLISECONDS] * (len(pictures) - 1) + [LAST]
    gif = io.BytesIO()
    pictures[0].save(gif, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    return gif.getvalue()


def _draw(axis, ways, step):
    """The target, and each box at `step` with the way of its centre."""
    style.draw_box(axis, convergence.UNIT_SQUARE, style.TRUE, linewidth=3)
    for (_, way), color in zip(ways[ways.step <= step].groupby("start", sort=False), COLORS, strict=True):
        last = way.iloc[-1]
        corners = (last.x - last.w / 2, last.y - last.h / 2, last.x + last.w / 2, last.y + last.h / 2)
        style.draw_box(axis, corners, color, linewidth=1.4)
        axis.plot(way.x, way.y, color=color, linewidth=0.9, alpha=0.6)
    axis.set(xlim=VIEW, ylim=VIEW[::-1])


if __name__ == "__main__":
    write_atomic(sys.argv[1], film(boxes_on_their_way()))

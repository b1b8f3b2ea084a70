"""The explorer: two boxes to drag, the value of every loss and its gradient, and a box let go under a loss.

`explore` shows it in a notebook. It is a page of its own, explore.js with its options inlined in a frame, so that it
lives without a kernel and without a net, in an exported page too; a viewer without scripts shows a picture.
"""

import html
import json
from pathlib import Path

from giou_repro.experiments import style
from giou_repro.registry import LOSSES

SHOWN = ("l1", "l2", "smooth_l1", "iou", "giou", "diou", "ciou")  # those that explore.js has
PRED, TARGET = (5.0, 2.0, 6.0, 3.0), (2.5, 2.0, 3.5, 3.0)  # disjoint, in a plane of 8 x 5.2
HEIGHT = 760  # pixels of the frame


def explore(losses=SHOWN, pred=PRED, target=TARGET) -> "Explorer":
    """Show two boxes, xyxy in a plane of 8 x 5.2, and what each of `losses` says of them.

    Raises ValueError for a loss that the explorer does not have.
    """
    missing = [name for name in losses if name not in SHOWN]
    if missing or not losses:
        raise ValueError(f"the explorer has the losses {', '.join(SHOWN)}, not {', '.join(missing) or 'none'}")
    return Explorer([*losses], [float(x) for x in pred], [float(x) for x in target])


class Explorer:
    """What `explore` returns: `page` is the whole of it as HTML, `frame` an element that holds that page."""

    def __init__(self, losses, pred, target):
        named = [{"name": name, "label": LOSSES[name].label, "color": style.color(name)} for name in losses]
        self.options = {"losses": named, "pred": pred, "target": target}

    @property
    def page(self) -> str:
        module = Path(__file__).with_name("explore.js").read_text(encoding="utf-8")
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>The explorer</title>'
            '<meta name="viewport" content="width=device-width">'
            '<body style="margin: 0; background: Canvas; color-scheme: light dark">'
            f'<script type="module">{module}\nmount(document.body, {json.dumps(self.options)});</script></body></html>'
        )

    @property
    def frame(self) -> str:
        """In one line, as Markdown wants it."""
        source = html.escape(self.page).replace("\n", "&#10;")
        look = f"width: 100%; height: {HEIGHT}px; border: 0"
        return f'<iframe title="The explorer: boxes to drag" style="{look}" srcdoc="{source}"></iframe>'

    @style.styled
    def _repr_mimebundle_(self, include=None, exclude=None):
        figure, ((axis,),) = style.panels(1, 1, 4.6, 3)
        style.draw_box(axis, self.options["target"], style.TRUE, label="target")
        style.draw_box(axis, self.options["pred"], style.PREDICTED, label="prediction")
        axis.set(xlim=(0, 8), ylim=(5.2, 0))
        style.hide_scales(axis)
        return {"text/html": self.frame, "image/png": figure._repr_png_()}

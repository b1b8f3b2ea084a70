"""The explorer: two boxes to drag, the value of every loss and its gradient, and a box let go under a loss.

`explore` shows it in a notebook. It is a page of its own, explore.js with its options inlined in a frame, so that it
lives without a kernel and without a net, in an exported page too; a viewer without scripts shows a picture. A loss that
explore.js does not have, as a user's own, is computed by Python (answers.py), for as long as a kernel lives.
"""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from giou_repro import registry
from giou_repro.experiments import style
from giou_repro.explorer import answers

SHOWN = ("l1", "l2", "smooth_l1", "iou", "iou_log", "giou", "diou", "ciou")  # those that explore.js has
PRED, TARGET = (5.0, 2.0, 6.0, 3.0), (2.5, 2.0, 3.5, 3.0)  # disjoint, in a plane of 8 x 5.2
WIDE_BARS = ("l1", "l2", "smooth_l1", "iou_log")  # which end at 16, the others' at 2
GRADIENTS, ENCODINGS = ("exact", "published", "repaired"), ("cxcywh", "xyxy")
HEIGHT = 760  # pixels of the frame


def explore(
    losses: str | Sequence[str] = SHOWN,
    pred=PRED,
    target=TARGET,
    *,
    first=None,
    second="",
    gradients="exact",
    encoding="cxcywh",
    rate=0.1,
    surface=None,
) -> "Explorer":
    """Show two boxes, xyxy in a plane of 8 x 5.2, what each of `losses` says of them, and how the loss `first`, and
    `second` beside it, move the prediction by gradient steps of size `rate`.

    `losses` are as in `registry.select`; those that are not in SHOWN need a running kernel and anywidget. `surface`, of
    `experiments.surface.surface`, is drawn under the boxes, in a plane of 8 x 8. Raises ValueError for a loss that is
    not known, a box that is not four numbers, a rate that is not above 0, a choice that there is not.
    """
    losses = registry.select(list(losses) if not isinstance(losses, str) else losses)
    first = first or ("giou" if "giou" in losses else losses[0])
    view = dict(pred=_box("pred", pred), target=_box("target", target), first=first, second=second)
    view |= dict(gradients=gradients, encoding=encoding, rate=float(rate))
    if not 0 < view["rate"] < math.inf:
        raise ValueError(f"explore: rate must be above 0, got {rate!r}")
    known = dict(first=losses, second=["", *losses], gradients=GRADIENTS, encoding=ENCODINGS)
    for name, choices in known.items():
        if view[name] not in choices:
            raise ValueError(f"explore: {name} must be one of {', '.join(map(repr, choices))}, got {view[name]!r}")
    return Explorer(losses, view, surface)


class Explorer:
    """What `explore` returns: `page` is the whole of it as HTML, `frame` an element that holds that page, and `widget`
    that frame as an anywidget, for losses that Python computes where anywidget is installed, else None."""

    def __init__(self, losses, view, surface=None):
        tops = {name: 16 if name in WIDE_BARS or registry.LOSSES[name].space == "coordinates" else 2 for name in losses}
        named = [dict(name=n, label=registry.label(n), color=style.color(n), top=tops[n]) for n in losses]
        self.options, self.widget = {"losses": named, "view": view}, None
        if surface:
            self.options["surface"] = surface
        if distant := [name for name in losses if name not in SHOWN]:
            ways = [name for name in distant if name in (view["first"], view["second"])]
            question = {key: view[key] for key in ("pred", "target", "encoding", "rate")}
            self.options["answer"] = answers.answer(question | dict(names=distant, ways=ways))
            self.widget = answers.widget(self)

    @property
    def page(self) -> str:
        module = Path(__file__).with_name("explore.js").read_text(encoding="utf-8")
        options = json.dumps(self.options).replace("</", "<\\/")
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>The explorer</title>'
            '<meta name="viewport" content="width=device-width">'
            "<style>:root { color-scheme: light dark } body { margin: 0; background: Canvas }</style><body>"
            f'<script type="module">{module}\nmount(document.body, {options});</script></body></html>'
        )

    @property
    def frame(self) -> str:
        """In one line, as Markdown wants it. What stands in the element is shown where a notebook is not trusted."""
        source = html.escape(self.page).replace("\n", "&#10;")
        look = f"width: 100%; height: {HEIGHT}px; border: 0; color-scheme: normal"
        inside = "Boxes to drag: trust this notebook to see them."
        return f'<iframe title="The explorer: boxes to drag" style="{look}" srcdoc="{source}">{inside}</iframe>'

    @style.styled
    def _repr_mimebundle_(self, include=None, exclude=None):
        figure, ((axis,),) = style.panels(1, 1, 4.6, 3)
        view = self.options["view"]
        style.draw_box(axis, view["target"], style.TRUE, label="target")
        style.draw_box(axis, view["pred"], style.PREDICTED, label="prediction")
        axis.set(xlim=(0, 8), ylim=(8 if "surface" in self.options else 5.2, 0))
        style.hide_scales(axis)
        return {"text/html": self.frame, "image/png": figure._repr_png_()}


def _box(name, box):
    box = [float(x) for x in box]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"explore: {name} must be four numbers x1, y1, x2, y2, got {box}")
    return box

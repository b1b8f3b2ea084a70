"""What can be wrong with annotated images and what is done about each, and the repair of the objects of one image."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from giou_repro import boxes

ACTIONS = {
    # of one object
    "not a number": "dropped",
    "normalised box": "dropped",
    "not a share": "dropped",
    "missing tag": "dropped",
    "malformed entry": "dropped",
    "unknown class": "dropped",
    "unknown image": "dropped",
    "ambiguous category": "dropped",
    "annotated twice": "dropped",
    "zero area": "dropped",
    "wholly outside": "dropped",
    "inverted corners": "sorted",
    "partly outside": "clipped",
    "duplicate": "taken once",
    "repeated tag": "first one taken",
    "near-duplicate": "kept",
    "fractional coordinate": "kept",
    "repeated id": "kept",
    "area mismatch": "area of the box used",
    "area not of the mask": "area of the mask used",
    "missing mask": "its box is the mask",
    "malformed mask": "its box is the mask",
    "mask apart": "kept",
    # of one image
    "missing image": "image skipped",
    "missing annotation": "image skipped",
    "unreadable image": "image skipped",
    "malformed annotation": "image skipped",
    "hostile XML": "image skipped",
    "path out of the folder": "image skipped",
    "unnamed image": "image skipped",
    "ambiguous id": "image skipped",
    "several images": "first one taken",
    "misleading filename": "found by its id",
    "tag in another case": "read all the same",
    "listed twice": "taken once",
    "missing size": "size of the image used",
    "size mismatch": "size of the image used",
    "turned by EXIF": "turned",
    "EXIF not followed": "left as stored",
    "not RGB": "converted",
    "more than 8 bits": "scaled to 8",
    # of the set
    "encoding": "read as Latin-1",
    "similar classes": "kept apart",
    "repeated class": "taken as one",
    "corners in bbox": "read as corners",
    "boxes in one corner": "kept",
    "split in another": "kept",
    "smaller than a test split": "kept",
    "no object": "not opened",
    "empty list": "not opened",
    "missing folder": "not opened",
    "malformed JSON": "not opened",
    "another format": "not opened",
}
LOST = ("dropped", "image skipped", "not opened")  # actions after which something that was annotated is not there

REMEDIES = {"normalised box": ": multiply shares of the image by its width and height"}

NEAR_DUPLICATE_IOU = 0.9  # above it two boxes of a class are near-duplicates
ROUNDING = 0.01  # px out of the image that are clipped and not reported
SHARES_ROUNDING = 8e-7  # of the image's longer side, the same for shares of six digits
NORMALISED = 2  # px; boxes in shares of the image end before it, whatever pair of corners, centre and size they are
LARGEST_AREA = 1.1  # of the box's, for a mask drawn in whole pixels around it


@dataclass
class Defect:
    """One thing wrong in a data set: its kind (of `ACTIONS`), the file, details, the object ("" for the whole file).

    Characters that cannot be printed are escaped.
    """

    kind: str
    file: str
    detail: str = ""
    object: str = ""

    def __post_init__(self):
        for name, text in list(vars(self).items()):
            setattr(self, name, str(text).encode(errors="backslashreplace").decode())

    @property
    def action(self) -> str:
        return ACTIONS[self.kind]

    def __str__(self):
        place = f"{self.file}{self.object and ', '}{self.object}"
        return f"{place}: {self.kind}{self.detail and ' '}{self.detail}: {self.action}"


class Unreadable(ValueError):
    """A file or a whole data set cannot be used: `defects` are the reasons, `about` is a text to print before them."""

    def __init__(self, *defects, about=""):
        super().__init__(*defects)
        self.defects, self.about = list(defects), about

    def __str__(self):
        return self.about + summary(self.defects)


def summary(defects: list[Defect]) -> str:
    """A line for each kind of defect, most frequent first: how many, what is done, and the first one."""
    if len(defects) < 2:
        return str(defects[0]) if defects else "no defects"
    kinds = defaultdict(list)
    for defect in defects:
        kinds[defect.kind].append(defect)
    lines = [f"{len(defects)} defects"]
    for kind, (first, *others) in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        place = f"{first.file}{first.object and ', '}{first.object}{first.detail and ' '}{first.detail}"
        lines.append(f"  {1 + len(others)} {kind}: {first.action}; {'first: ' if others else ''}{place}")
    return "\n".join(lines)


def repair_objects(objects: list, width: int, height: int, file: str, unit: str = "pixels") -> tuple[list, list]:
    """(the usable objects of an image, their boxes within it in continuous pixels; the defects of all objects).

    unit: "pixels"; "shares" where they are made of shares of the image; or "inclusive", Pascal VOC's integers, pixels
    counted from 1 with the last one part of the box, so that (1, 1, w, h) is the whole image: (xmin, ymin, xmax, ymax)
    becomes (xmin − 1, ymin − 1, xmax, ymax). A box with xmin = xmax has no area in either convention.
    """
    usable, defects, firsts = [], [], {}
    for item in objects:
        box, kinds = _repaired(item.box, width, height, unit)
        corners = ", ".join(f"{value:.10g}" for value in item.box)
        defects += [Defect(kind, file, f"({corners}{REMEDIES.get(kind, '')})", item.title) for kind in kinds]
        if box and item.area is not None and not _can_be_area(item.area, *item.box):
            defects.append(Defect("area mismatch", file, f"({item.area:.10g} px², box {corners})", item.title))
            item = item._replace(area=None)
        first = firsts.setdefault((item.label, item.crowd, box), item)
        if box and first is not item:
            defects.append(Defect("duplicate", file, f"of {first.title}", item.title))
        elif box:
            usable.append(item._replace(box=box))
    return usable, defects + _near_duplicates(usable, file)


def _repaired(box, width, height, unit):
    """(the box within the image, or None where nothing of it is left; the kinds of its defects)."""
    with np.errstate(over="ignore"):
        x1, y1, x2, y2 = np.float32(box).tolist()  # the precision of the tensors
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return None, ["not a number"]
    kinds = ["inverted corners"] if x2 < x1 or y2 < y1 else []
    x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x1 == x2 or y1 == y2:
        return None, [*kinds, "zero area"]
    if unit != "shares" and min(x1, y1) >= 0 and max(x2, y2) <= NORMALISED < min(width, height) / 4:
        return None, [*kinds, "normalised box"]
    inclusive = unit == "inclusive"
    if inclusive and any(value % 1 for value in box):
        kinds.append("fractional coordinate")
    x1, y1 = x1 - inclusive, y1 - inclusive
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return None, [*kinds, "wholly outside"]
    rounding = SHARES_ROUNDING * max(width, height) if unit == "shares" else ROUNDING
    if min(x1, y1) < -rounding or x2 > width + rounding or y2 > height + rounding:
        kinds.append("partly outside")
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))), kinds


def _can_be_area(area, x1, y1, x2, y2):
    """Whether an object in this box can have this area in px²: neither more than the box, nor a share of an image."""
    w, h = abs(x2 - x1), abs(y2 - y1)
    return min(1, w * h / 16) <= area <= LARGEST_AREA * w * h + w + h + 1


def _near_duplicates(objects, file):
    """Defects of boxes that nearly equal an earlier one of their class; crowds are regions, and left out."""
    single = [item for item in objects if not item.crowd]
    labels = torch.tensor([item.label for item in single])
    if len(labels.unique()) == len(single):
        return []
    corners = torch.tensor([item.box for item in single])
    iou = boxes.iou(corners[:, None], corners)
    near = np.tril((iou > NEAR_DUPLICATE_IOU) & (labels[:, None] == labels), -1)
    return [
        Defect("near-duplicate", file, f"of {single[first].title}, IoU {iou[row, first]:.3f}", single[row].title)
        for row, first in enumerate(near.argmax(1))
        if near[row, first]
    ]

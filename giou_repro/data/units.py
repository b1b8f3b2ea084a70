"""Boxes that are right in another format or unit, told by all boxes of a set."""

import numpy as np

from giou_repro.data.annotations import Picture
from giou_repro.data.defects import Defect

ALL = 0.95  # the share of the boxes of a set that counts as all: files have errors
MANY = 0.1
CORNER_OBJECTS = 20  # from which on it says something that no box reaches the right or the lower half of its image
HALF = 0.51  # of the image, which boxes of copies of half its size reach where they are rounded


def read_corners(pictures: list[Picture], name: str) -> list[Defect]:
    """Read COCO's (x, y, w, h) as (x1, y1, x2, y2), in place, where all boxes can be that and many leave their image as
    what they should be; the defect that says so."""
    boxes, size = _boxes(pictures)
    with np.errstate(invalid="ignore", over="ignore"):
        last = boxes[:, 2:] - boxes[:, :2]  # what stands in the place of w, h
        possible = ((last > boxes[:, :2]) & (boxes[:, :2] >= 0) & (last <= 1.01 * size)).all(1)
        outside = (boxes[:, 2:] > 1.05 * size).any(1)
    if not len(boxes) or possible.mean() < ALL or outside.mean() < MANY:
        return []
    for picture in pictures:
        for index, item in enumerate(picture.objects):
            x1, y1, x2, y2 = item.box
            picture.objects[index] = item._replace(box=(x1, y1, x2 - x1, y2 - y1))
    detail = f"({outside.sum()} of {len(boxes)} boxes leave their image as x, y, w, h, none as x1, y1, x2, y2)"
    return [Defect("corners in bbox", name, detail)]


def boxes_in_one_corner(pictures: list[Picture], name: str) -> list[Defect]:
    """The defect of boxes none of which reaches half of its image: those of smaller copies, or in per cent."""
    boxes, size = _boxes(pictures)
    reach = (boxes[:, 2:] / size).max(0, initial=0)
    detail = "(no box reaches beyond {:.0%} of its image's width, {:.0%} of its height)".format(*reach)
    few = len(boxes) < CORNER_OBJECTS or reach.max() > HALF
    return [] if few else [Defect("boxes in one corner", name, detail)]


def _boxes(pictures):
    """(boxes (n, 4), width and height of their images (n, 2)), float64."""
    rows = [(*item.box, picture.width, picture.height) for picture in pictures for item in picture.objects]
    return np.split(np.array(rows, dtype=np.float64).reshape(-1, 6), [4], axis=1)

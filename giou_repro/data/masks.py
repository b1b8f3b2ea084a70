"""COCO's segmentations, polygons and run lengths: checked when a data set is opened, drawn when an image is read."""

import math

import numpy as np

from giou_repro.data.annotations import Object, number

APART = 0.25  # of the box's longer side, and 2 px: an edge of the mask is farther from the box's

OFF = 0.1  # of a mask's area: an annotated one is farther off, pixels on the outline left aside


def checked_segmentation(segmentation, width: int, height: int) -> list | dict | None:
    """A COCO segmentation as `mask` takes it: polygons, arrays (2k,) of x, y in turn, or compressed run lengths.

    None where there is none. Raises ValueError with the reason where it cannot be drawn.
    """
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, width, height)
    if not isinstance(segmentation, list | None):
        raise ValueError(f"neither polygons nor runs, but {type(segmentation).__name__}")
    for polygon in segmentation or ():
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is not a list of three or more x, y pairs")
    polygons = [np.array([number(value) for value in polygon]) for polygon in segmentation or ()]
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("a polygon's coordinate is not a number")
    side = max(width, height)
    return [polygon.clip(-side, 2 * side) for polygon in polygons] or None


def _checked_runs(runs, width, height):
    coco_mask, size, counts = _coco_mask(), [height, width], runs.get("counts")
    if runs.get("size") != size:
        raise ValueError(f"its runs are for size {runs.get('size')}, the image has {size}")
    try:
        if not isinstance(counts, list):
            runs = dict(size=size, counts=counts.encode())
        elif sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"its runs count {sum(counts)} pixels, the image has {height * width}")
        else:
            runs = coco_mask.frPyObjects(dict(size=size, counts=counts), height, width)
        coco_mask.decode(runs)
    except (TypeError, AttributeError, UnicodeError, RuntimeError) as error:
        raise ValueError(f"its runs cannot be read: {error}") from None
    return runs


def apart(item: Object, width: int, height: int) -> str:
    """The xyxy box of an object's checked segmentation, as text, where it lies apart from the object's box; else ""."""
    if isinstance(item.segmentation, list):
        points = np.concatenate(item.segmentation).reshape(-1, 2).clip(0, (width, height))
        extent = [*points.min(0), *points.max(0)]
    else:
        x, y, w, h = _coco_mask().toBbox(item.segmentation)
        extent = [x, y, x + w, y + h]
    x1, y1, x2, y2 = item.box
    distance = np.abs(np.subtract(item.box, extent)).max()
    return ", ".join(f"{value:.10g}" for value in extent) if distance > 2 + APART * max(x2 - x1, y2 - y1) else ""


def other_area(item: Object) -> float | None:
    """The area in px² of an object's checked segmentation, where the annotated area is another; polygons are added."""
    if isinstance(item.segmentation, dict):
        own = float(_coco_mask().area(item.segmentation))
    else:
        sides = [(polygon[::2], polygon[1::2]) for polygon in item.segmentation]
        own = sum(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 for x, y in sides)
    x1, y1, x2, y2 = item.box
    margin = OFF * own + x2 - x1 + y2 - y1  # the pixels on its outline
    return own if item.area is not None and abs(item.area - own) > margin else None


def mask(item: Object, width: int, height: int) -> np.ndarray:
    """The mask bool (H, W) of an object; its box filled where it has no segmentation."""
    runs = item.segmentation
    if runs is None:
        x1, y1, x2, y2 = item.box
        filled = np.zeros((height, width), dtype=bool)
        filled[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = True
        return filled
    coco_mask = _coco_mask()
    if isinstance(runs, list):
        runs = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in runs], height, width))
    return coco_mask.decode(runs).astype(bool)


def _coco_mask():
    try:
        import faster_coco_eval.core.mask  # an extra: boxes do without it
    except ImportError:
        raise ImportError("masks need faster-coco-eval: pip install 'giou-repro[detection]'") from None
    return faster_coco_eval.core.mask

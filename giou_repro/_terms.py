"""Terms that several losses are made of, and checks of a loss's own keywords."""

import math
import numbers

import torch
from torch import Tensor

from giou_repro import _fast, boxes


def distances(pred, target):
    """|pᵢ − tᵢ| of the four coordinates."""
    return [(p - t).abs() for p, t in zip(boxes.columns(pred), boxes.columns(target), strict=True)]


def side_changes(pred, target):
    """|w − w*| / max(w, w*) and the same of the heights, each in [0, 1]."""
    sides = zip(boxes.sides(pred), boxes.sides(target), strict=True)
    return [(w - wt).abs() / torch.maximum(w, wt).clamp(min=boxes.tiny(w)) for w, wt in sides]


def edge_distance(pred, target):
    """PIoU's P: the mean distance of the four edges in units of the target's sides, at most 200; 0 for equal
    boxes."""
    left, top, right, bottom = distances(boxes.corners(pred), boxes.corners(target))
    w, h = (side.clamp(min=boxes.tiny(side)) for side in boxes.sides(target))
    # at 400 sides exp(−P) is 0 to the last digit
    return (torch.minimum(left + right, 400 * w) / w + torch.minimum(top + bottom, 400 * h) / h) / 4


def length(parts):
    """√Σ parts², in units of the largest, so that no square over- or underflows; where it is 0 it has no gradient."""
    unit = torch.stack([part.detach().abs() for part in parts]).amax(0)
    zero = (unit == 0).to(unit.dtype)
    return unit * ((sum((part / (unit + zero)).square() for part in parts) + zero).sqrt())


def centre_distance(pred, target, enclosing):
    """ρ²/c², in [0, 1)."""
    return squared_ratio(boxes.centre_offset(pred, target), enclosing)


def squared_ratio(lengths, sides):
    """Σ lengths² / Σ sides², in units of the larger side, so that no square over- or underflows."""
    per_unit = torch.maximum(*sides).detach().reciprocal()
    squares = (sum((part * per_unit).square() for part in parts) for parts in (lengths, sides))
    return _fast.ratio(*squares)


def aspect_change(pred, target):
    """atan w*/h* − atan w/h of xyxy boxes, in [−π/2, π/2]: the angle between their diagonals. Of a point w/h is 0."""
    (w, h), (wt, ht) = (_diagonal(box) for box in (pred, target))
    return torch.atan2(wt * h - w * ht, w * wt + h * ht)


def _diagonal(box):
    """Width and height in units of the larger; (0, 1) for a point."""
    width, height = boxes.sides(box)
    per_unit, point = boxes.reciprocal(torch.maximum(width, height).detach())
    return width * per_unit, height * per_unit + point


def angle_cost(dx, dy):
    """SIoU's Λ = 2 |Δx Δy| / (Δx² + Δy²), in [0, 1]: 1 on the diagonals; 0 for equal centres."""
    unit = torch.maximum(dx.abs(), dy.abs()).detach().clamp(min=boxes.tiny(dx))
    dx, dy = dx / unit, dy / unit
    return 2 * (dx * dy).abs() / (dx.square() + dy.square()).clamp(min=boxes.tiny(dx))


def scaled(pred, target, ratio):
    """Columns of both boxes scaled by `ratio` about their centres, counted from the target's first corner and in
    float64: in float32 scaling would round some near-equal edges to equal ones."""
    pred, target = boxes.columns(pred), boxes.columns(target)
    x, y = (column.detach().double() for column in target[:2])
    for columns in (pred, target):
        x1, y1, x2, y2 = (column.double() - origin for column, origin in zip(columns, (x, y, x, y), strict=True))
        dx, dy = (1 - ratio) / 2 * (x2 - x1), (1 - ratio) / 2 * (y2 - y1)
        yield x1 + dx, y1 + dy, x2 - dx, y2 - dy


def power(share, alpha):
    """share^α of a number in [0, 1], with a finite slope at 0 for α below 1 too."""
    return torch.where(share > 0, share.clamp(min=boxes.tiny(share)) ** number("alpha", alpha), 0)


def image_sides(image_size, like):
    """Width and height of the image, in the type of `like`; tensors are looked at where they have values to look at."""
    if not hasattr(image_size, "__len__") or len(image_size) != 2:
        raise ValueError(f"image_size must be (width, height), got {image_size!r}")
    sides = []
    for side in image_size:
        if isinstance(side, numbers.Real):
            number("image_size", side)
        try:
            sides.append(torch.as_tensor(side, dtype=like.dtype, device=like.device))
        except (TypeError, ValueError):
            raise ValueError(f"image_size must be (width, height) in pixels, got {image_size!r}") from None
    if not isinstance(image_size, tuple) and all(side.shape == (2,) for side in sides):
        reason = "two rows of two may be two images' sizes, or widths and heights; give (widths, heights) as a tuple"
        raise ValueError(f"image_size must be (width, height): {reason}")
    hidden = type(like) is not Tensor or like.is_meta or _fast.is_traced()
    if not hidden and not all(((side > 0) & side.isfinite()).all() for side in sides):
        raise ValueError(f"image_size must be above 0, got {image_size!r}")
    return [side.clamp(min=boxes.SHORTEST * boxes.tiny(like)) for side in sides]  # so that one may divide by them


def number(keyword, value, least=None, most=math.inf):
    """A keyword's value as a float; ValueError naming it where it is not a number above 0, or from `least` to
    `most`."""
    low = isinstance(value, numbers.Real) and (value > 0 if least is None else value >= least)
    if not low or not (value < math.inf and value <= most):
        bounds = (
            "above 0" if least is None else f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        )
        raise ValueError(f"{keyword} must be a number {bounds}, got {value!r}")
    return float(value)

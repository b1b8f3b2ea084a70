"""Geometry of axis-aligned boxes.

A box is a (..., 4) tensor in one of three formats, continuous coordinates in any unit:

- ``xyxy``: left, top, right, bottom edge (x1, y1, x2, y2)
- ``xywh``: left, top, width, height
- ``cxcywh``: centre, width, height

Leading dimensions broadcast: ``iou(a, b)`` of (N, 4) and (N, 4) is (N,), and ``iou(a[:, None], b[None])`` of (N, 4) and (M, 4) is (N, M).
A flipped box (x2 < x1) means the box between its corners: corners are sorted, as in the GIoU paper's algorithm 2.
"""

import torch

FORMATS = ("xyxy", "xywh", "cxcywh")


def columns(box):
    """Split `box` (..., 4) into its four coordinates, each (...), in float32 or better.

    Four columns given as a tuple come back as they are: a formula that begins with ``x1, y1, x2, y2 = columns(box)`` therefore works on
    tensors of boxes and on separate coordinate arrays alike, and the simulation runs it on the latter, which is several times faster.

    Raises ValueError where the last dimension is not 4.
    """
    if isinstance(box, tuple):
        return box
    if box.ndim == 0 or box.shape[-1] != 4:
        raise ValueError(f"boxes need a last dimension of 4, got shape {tuple(box.shape)}")
    return at_least_float32(box).unbind(-1)


def at_least_float32(box):
    """`box` itself in float32 or float64; half precision and integers become float32, where areas neither overflow nor wrap."""
    return box if box.dtype in (torch.float32, torch.float64) else box.float()


def convert(box, source, target):
    """Convert boxes (..., 4), or four columns, between the formats ``xyxy``, ``xywh`` and ``cxcywh``.

    Returns the same kind it was given. Raises ValueError for an unknown format.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown box format {name!r}; the formats are {', '.join(FORMATS)}")
    if source == target:
        return box
    a, b, c, d = columns(box)
    if source == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif source == "xywh":
        c, d = a + c, b + d
    if target == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    elif target == "xywh":
        c, d = c - a, d - b
    return (a, b, c, d) if isinstance(box, tuple) else torch.stack((a, b, c, d), -1)


def area(box):
    """Area (...) of xyxy boxes (..., 4), never negative."""
    x1, y1, x2, y2 = columns(box)
    return (x2 - x1).abs() * (y2 - y1).abs()


def enclosing(a, b):
    """The smallest xyxy box (..., 4) around both of `a` and `b`."""
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    left = torch.minimum(torch.minimum(ax1, ax2), torch.minimum(bx1, bx2))
    top = torch.minimum(torch.minimum(ay1, ay2), torch.minimum(by1, by2))
    right = torch.maximum(torch.maximum(ax1, ax2), torch.maximum(bx1, bx2))
    bottom = torch.maximum(torch.maximum(ay1, ay2), torch.maximum(by1, by2))
    return torch.stack((left, top, right, bottom), -1)


def enclosing_size(a, b):
    """Width and height, each (...), of the smallest xyxy box around both of `a` and `b`."""
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    return _lengths(ax1, ax2, bx1, bx2)[3], _lengths(ay1, ay2, by1, by2)[3]


def iou(a, b):
    """Intersection over union (...) of xyxy boxes, in [0, 1]: |A∩B| / |A∪B|."""
    intersection, union = overlap(a, b)
    return intersection / union


def giou(a, b):
    """Generalized IoU (...) of xyxy boxes, in [-1, 1]: IoU − (C − U)/C, where C, the area of the enclosing box, is 1 here.

    Rezatofighi et al., CVPR 2019, algorithm 2.
    """
    intersection, union = overlap(a, b)
    return intersection / union - (1 - union)


def overlap(a, b):
    """Areas, each (...), of the intersection and the union of xyxy boxes, in units of the area of their enclosing box.

    Lengths are divided by the enclosing box's, axis by axis, before they are multiplied, so that boxes of any size give numbers in
    [0, 1]. An axis along which both boxes are one and the same point does not count: two equal segments have IoU 1. The union is
    kept above zero so that it can divide.
    """
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    wide, a_wide, b_wide = _shares(*_lengths(ax1, ax2, bx1, bx2))
    high, a_high, b_high = _shares(*_lengths(ay1, ay2, by1, by2))
    intersection = wide * high
    union = a_wide * a_high + b_wide * b_high - intersection
    return intersection, union.clamp(min=torch.finfo(union.dtype).tiny)


def _lengths(a1, a2, b1, b2):
    """Of two intervals: the length they have in common (negative: minus the gap), each one's, and that of the interval around both."""
    a_low, a_high = torch.minimum(a1, a2), torch.maximum(a1, a2)
    b_low, b_high = torch.minimum(b1, b2), torch.maximum(b1, b2)
    common = torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)
    a, b = a_high - a_low, b_high - b_low
    return common, a, b, a + b - common


def _shares(common, a, b, whole):
    """The lengths in common, of the first and of the second as shares of the whole; all 1 where the whole is a point."""
    point = (whole == 0).to(whole.dtype)
    whole = whole + point
    return (common.clamp(min=0) + point) / whole, (a + point) / whole, (b + point) / whole

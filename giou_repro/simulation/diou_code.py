"""The gradients of the DIoU paper's published simulation code, which are not the derivatives of its losses.

From github.com/Zzh-tju/DIoU, commit 391f42d. ``PUBLISHED[loss](box, target)`` takes the four (x, y, w, h) columns of
boxes and of targets (centre and size) and returns the direction each coordinate is moved in, (dx, dy, dw, dh), before
step size and (2 − IoU). With all of ``REPAIRS[loss]`` as `repairs` it is −∂loss/∂(x, y, w, h). Where it departs from
that, and the name by which `repairs` corrects one departure at a time:

GIoU, of disjoint boxes
    value: the intersection is a product of signed lengths; it is 0.
    derivative: that product is differentiated; the derivative is 0. Where boxes are apart along one axis only, the
        pull along it is weaker than the derivative, or none; where along both, it is stronger.
DIoU and CIoU, of the squared diagonal of the enclosing box
    sign: its derivative has the wrong sign in x and y.
    axes: the enclosing width is differentiated by y and h too, and the height by x and w.
    spanning: where the box spans the target, the enclosing width has derivative −1 by w; it is +1. So for the height.
All
    doubling: the IoU's derivative by w and h, in GIoU all of it, is taken twice (deliberate, the authors say).

CIoU's term for the aspect ratio is as its paper has it, whose derivative leaves out the factor 1 / (w² + h²).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

REPAIRS = {
    "iou": ("doubling",),
    "giou": ("value", "derivative", "doubling"),
    "diou": ("sign", "axes", "spanning", "doubling"),
    "ciou": ("sign", "axes", "spanning", "doubling"),
}


class _Axis(NamedTuple):
    """Along one axis: lengths of the box, the target, their intersection (negative where there is a gap) and the
    enclosing interval, and the derivatives of the latter two by the box's two edges."""

    box: Tensor
    target: Tensor
    common: Tensor
    hull: Tensor
    common_by: tuple[Tensor, Tensor]
    hull_by: tuple[Tensor, Tensor]


def _axes(box, target):
    """Along x and along y."""
    for centre, size, centre_, size_ in zip(box[:2], box[2:], target[:2], target[2:], strict=True):
        low, high, low_, high_ = centre - size / 2, centre + size / 2, centre_ - size_ / 2, centre_ + size_ / 2
        pairs = ((low, low_), (high_, high), (low_, low), (high, high_))
        inside_low, inside_high, outside_low, outside_high = ((a > b).to(a.dtype) for a, b in pairs)
        common = torch.minimum(high, high_) - torch.maximum(low, low_)
        hull = torch.maximum(high, high_) - torch.minimum(low, low_)
        yield _Axis(high - low, high_ - low_, common, hull, (-inside_low, inside_high), (-outside_low, outside_high))


def _product_by(x, y, x_by, y_by):
    """The derivative of x · y, a length along each axis, by the edges (left, right, top, bottom)."""
    return y * x_by[0], y * x_by[1], x * y_by[0], x * y_by[1]


def _union_by(x, y, intersection_by):
    """The derivative of w · h + w* · h* − I."""
    own_by = (-y.box, y.box, -x.box, x.box)
    return [own - i for own, i in zip(own_by, intersection_by, strict=True)]


def _ratio_by(a, b, a_by, b_by):
    """The derivative of a / b."""
    return [(b * da - a * db) / b**2 for da, db in zip(a_by, b_by, strict=True)]


def _overlap(x, y):
    """I and U of the boxes, I = 0 and U = 1 where they are disjoint or flipped, and 1 or 0 for whether they overlap."""
    i = torch.relu(x.common) * torch.relu(y.common)
    overlaps = torch.sign(i)  # numbers, as compiled code is several times slower with truth values to keep
    return i, (x.box * y.box + x.target * y.target - i) * overlaps + (1 - overlaps), overlaps


def iou(box, target):
    """IoU as the published code has it: 0 for disjoint and for flipped boxes."""
    i, u, _ = _overlap(*_axes(box, target))
    return i / u


def _iou_by(x, y):
    """The derivative of the IoU, 0 for disjoint and for flipped boxes."""
    i, u, overlaps = _overlap(x, y)
    i_by = _product_by(x.common, y.common, x.common_by, y.common_by)
    return [overlaps * d for d in _ratio_by(i, u, i_by, _union_by(x, y, i_by))]


def _by_centre(by_edges, repairs):
    """By (x, y, w, h): for w and h twice the chain rule, unless that is corrected."""
    left, right, top, bottom = by_edges
    times = 0.5 if "doubling" in repairs else 1
    return left + right, top + bottom, times * (right - left), times * (bottom - top)


def iou_ascent(box, target, repairs=()):
    return _by_centre(_iou_by(*_axes(box, target)), repairs)


def giou_ascent(box, target, repairs=()):
    """Of IoU + U / C."""
    x, y = _axes(box, target)
    right, _, overlaps = _overlap(x, y)
    i = right if "value" in repairs else x.common * y.common
    weight = overlaps if "derivative" in repairs else 1
    i_by = [weight * d for d in _product_by(x.common, y.common, x.common_by, y.common_by)]
    u, c = x.box * y.box + x.target * y.target - i, x.hull * y.hull
    filled_by = _ratio_by(u, c, _union_by(x, y, i_by), _product_by(x.hull, y.hull, x.hull_by, y.hull_by))
    return _by_centre([a + b for a, b in zip(_iou_by(x, y), filled_by, strict=True)], repairs)


def diou_ascent(box, target, repairs=()):
    """Of IoU − s / d, squared distance of the centres over squared diagonal of the enclosing box."""
    x, y = _axes(box, target)
    to_x, to_y = target[0] - box[0], target[1] - box[1]
    s, d = to_x**2 + to_y**2, x.hull**2 + y.hull**2
    sign = 1 if "sign" in repairs else -1
    other = 0 if "axes" in repairs else 1  # the weight of the other axis
    wrong = 0 if "spanning" in repairs else 2  # +1 − 2 is the −1
    by_x, by_y = (sum(axis.hull_by) for axis in (x, y))
    by_w, by_h = ((axis.hull_by[1] - axis.hull_by[0]) / 2 for axis in (x, y))
    own_w, own_h = (by + wrong * math.prod(axis.hull_by) for by, axis in ((by_w, x), (by_h, y)))
    ex, ey, ew, eh = _by_centre(_iou_by(x, y), repairs)
    return (
        ex + (2 * to_x * d + sign * 2 * (x.hull + other * y.hull) * by_x * s) / d**2,
        ey + (2 * to_y * d + sign * 2 * (other * x.hull + y.hull) * by_y * s) / d**2,
        ew + 2 * (x.hull * own_w + other * y.hull * by_w) * s / d**2,
        eh + 2 * (other * x.hull * by_h + y.hull * own_h) * s / d**2,
    )


def ciou_ascent(box, target, repairs=()):
    (_, _, w, h), (_, _, w_, h_) = box, target
    dx, dy, dw, dh = diou_ascent(box, target, repairs)
    q = torch.atan(w_ / h_) - torch.atan(w / h)
    v = 4 * q**2 / math.pi**2
    alpha = v / (1 - iou(box, target) + v + 1e-7)
    return dx, dy, dw + alpha * (8 / math.pi**2) * q * h, dh - alpha * (8 / math.pi**2) * q * w


PUBLISHED = {"iou": iou_ascent, "giou": giou_ascent, "diou": diou_ascent, "ciou": ciou_ascent}

# The paper's convergence figure: error summed over 1,715,000 cases, in millions, read off the picture to ± 0.015.
CURVE_CASES = 1_715_000
CURVE = {
    "step": (1, 10, 20, 50, 100, 150, 180, 200),
    "iou": (6.63, 6.42, 6.24, 6.03, 5.98, 5.98, 5.92, 5.91),
    "giou": (6.41, 5.02, 4.37, 3.35, 2.35, 1.93, 1.55, 1.512),
    "diou": (6.35, math.nan, 2.32, 0.53, 0.42, 0.41, 0.04, 0.0),
    "ciou": (6.26, math.nan, 1.78, 0.43, 0.40, 0.40, 0.04, 0.0),
}

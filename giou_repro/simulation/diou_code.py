"""The gradients of the DIoU paper's published simulation code, which are not the derivatives of its losses.

From github.com/Zzh-tju/DIoU, commit 391f42d. ``PUBLISHED[loss](box, target)`` takes the four (x, y, w, h) columns of
boxes and of targets (centre and size) and returns the direction each coordinate is moved in, (dx, dy, dw, dh), before
step size and (2 − IoU). Where it departs from −∂loss/∂(x, y, w, h), and the names by which ``repairs`` corrects one
departure at a time:

1. GIoU, of disjoint boxes: the intersection is a product of signed lengths ("value"), and has a derivative
   ("derivative"); both are 0. Where boxes are apart along one axis only, the pull along it is weaker than the
   derivative, or none; where along both, it is stronger. Only "derivative" repairs that: "value" alone leaves a larger
   error than the published code.
2. DIoU, CIoU: the enclosing-box term has the wrong sign in x and y ("sign"). This makes them fast;
3. it differentiates the enclosing width by y and h too, and the height by x and w ("axes"). Without "axes", "sign"
  keeps boxes apart;
4. where the box spans the target, it takes the derivative of the enclosing width by w as −1 (it is +1), and so for the
  height ("spanning").
5. All: twice the derivative of the IoU (in GIoU, of all) in w and h (deliberate, the authors say).
6. All: where edges are flipped, both take the second one's value.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class _Pair:
    """A box and its target by their edges (t, b, l, r), with the areas and derivatives that all four losses share."""

    t: torch.Tensor
    b: torch.Tensor
    l: torch.Tensor
    r: torch.Tensor
    t_: torch.Tensor
    b_: torch.Tensor
    l_: torch.Tensor
    r_: torch.Tensor

    @classmethod
    def of(cls, box, target):
        (x, y, w, h), (x_, y_, w_, h_) = box, target
        return cls(y - h / 2, y + h / 2, x - w / 2, x + w / 2, y_ - h_ / 2, y_ + h_ / 2, x_ - w_ / 2, x_ + w_ / 2)

    def intersection(self):
        """Iw, Ih, never clamped: for disjoint boxes their product is a signed, meaningless number."""
        return torch.minimum(self.r, self.r_) - torch.maximum(self.l, self.l_), torch.minimum(
            self.b, self.b_
        ) - torch.maximum(self.t, self.t_)

    def enclosing(self):
        """Cw, Ch."""
        return torch.maximum(self.r, self.r_) - torch.minimum(self.l, self.l_), torch.maximum(
            self.b, self.b_
        ) - torch.minimum(self.t, self.t_)

    def intersection_and_union(self, repairs=()):
        """I and U with their derivatives by (t, b, l, r)."""
        iw, ih = self.intersection()
        w, h = self.r - self.l, self.b - self.t
        i = iw * ih
        di = (-iw * (self.t > self.t_), iw * (self.b < self.b_), -ih * (self.l > self.l_), ih * (self.r < self.r_))
        apart = (iw <= 0) | (ih <= 0)
        if "value" in repairs:
            i = torch.where(apart, 0, i)
        if "derivative" in repairs:
            di = tuple(torch.where(apart, 0, d) for d in di)
        u = h * w + (self.b_ - self.t_) * (self.r_ - self.l_) - i
        dx = (-w, w, -h, h)
        du = tuple(x - y for x, y in zip(dx, di, strict=True))
        return i, u, di, du


def iou(box, target):
    """IoU as the published code has it: 0 for disjoint and for flipped boxes."""
    pair = _Pair.of(box, target)
    iw, ih = pair.intersection()
    i, u, _, _ = pair.intersection_and_union()
    overlap = (iw > 0) & (ih > 0)
    return torch.where(overlap, i / torch.where(overlap, u, 1), 0)


def _iou_by_edges(pair):
    """The IoU part e: zero for disjoint boxes; flipped edges (t ≥ b, l ≥ r) share the second one's value."""
    iw, ih = pair.intersection()
    i, u, di, du = pair.intersection_and_union()
    valid = (iw > 0) & (ih > 0) & (u > 0)
    square = torch.where(valid, u * u, 1)
    t, b, l, r = (torch.where(valid, (u * d - i * e) / square, 0) for d, e in zip(di, du, strict=True))
    return torch.where(pair.t >= pair.b, b, t), b, torch.where(pair.l >= pair.r, r, l), r


def _to_centre(t, b, l, r):
    """From edges to (x, y, w, h); w and h are twice the chain rule."""
    return l + r, t + b, r - l, b - t


def iou_ascent(box, target):
    return _to_centre(*_iou_by_edges(_Pair.of(box, target)))


def giou_ascent(box, target, repairs=()):
    pair = _Pair.of(box, target)
    cw, ch = pair.enclosing()
    dc = (-cw * (pair.t < pair.t_), cw * (pair.b > pair.b_), -ch * (pair.l < pair.l_), ch * (pair.r > pair.r_))
    _, u, _, du = pair.intersection_and_union(repairs)
    c = cw * ch
    edges = (e + (c * dv - u * dw) / (c * c) for e, dv, dw in zip(_iou_by_edges(pair), du, dc, strict=True))
    return _to_centre(*edges)


def diou_ascent(box, target, repairs=()):
    (x, y, _, _), (x_, y_, _, _) = box, target
    pair = _Pair.of(box, target)
    ex, ey, ew, eh = _to_centre(*_iou_by_edges(pair))
    cw, ch = pair.enclosing()
    s, d = (x - x_) ** 2 + (y - y_) ** 2, cw**2 + ch**2
    kx, kw, cww = _enclosing_derivative(pair.l < pair.l_, pair.r > pair.r_, s.dtype, repairs)
    ky, kh, chh = _enclosing_derivative(pair.t < pair.t_, pair.b > pair.b_, s.dtype, repairs)
    sign = 1 if "sign" in repairs else -1
    other = 0 if "axes" in repairs else 1  # the weight of the other axis
    return (
        ex + (2 * (x_ - x) * d + sign * 2 * (cw + other * ch) * kx * s) / d**2,
        ey + (2 * (y_ - y) * d + sign * 2 * (other * cw + ch) * ky * s) / d**2,
        ew + 2 * (cw * cww + other * ch * kw) * s / d**2,
        eh + 2 * (other * cw * kh + ch * chh) * s / d**2,
    )


def _enclosing_derivative(before, after, dtype, repairs):
    """Derivative of the enclosing length by centre and by size along one axis, and the latter with −1 where the box
    spans the target."""
    low, high = before.to(dtype), after.to(dtype)
    by_size = (high + low) / 2
    return high - low, by_size, by_size if "spanning" in repairs else torch.where(before & after, -1, by_size)


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

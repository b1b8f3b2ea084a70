"""Geometry of axis-aligned boxes.

A box is a (..., 4) tensor in one of three formats, continuous coordinates in any unit:

- ``xyxy``: left, top, right, bottom edge (x1, y1, x2, y2)
- ``xywh``: left, top, width, height
- ``cxcywh``: centre, width, height

Leading dimensions broadcast: ``iou(a, b)`` of (N, 4) and (N, 4) is (N,), and ``iou(a[:, None], b[None])`` of (N, 4) and (M, 4) is (N, M).
A flipped box (x2 < x1) means the box between its corners: corners are sorted, as in the GIoU paper's algorithm 2.

Two boxes are compared axis by axis, by how far their edges are apart in units of the interval around both. All areas follow from these
shares without a difference of nearly equal numbers, for boxes from 1e-30 to 1e37 in float32 and 1e-300 to 1e307 in float64: see `Axis`.
"""

from typing import NamedTuple

import torch

POLICIES = ("sort", "clamp", "raise")
FORMATS = ("xyxy", "xywh", "cxcywh")


def columns(box):
    """Split `box` (..., 4) into its four coordinates, each (...), in float32 or better.

    Four columns given as a tuple come back as they are: a formula that begins with ``x1, y1, x2, y2 = columns(box)`` therefore works on
    tensors of boxes and on separate coordinate arrays alike, and the simulation runs it on the latter, which is several times faster.

    Raises TypeError for anything but a tensor, ValueError where the last dimension is not 4.
    """
    if isinstance(box, tuple):
        return box
    if not isinstance(box, torch.Tensor):
        raise TypeError(f"boxes must be a torch tensor (..., 4), got {type(box).__name__}; see torch.as_tensor")
    if box.ndim == 0 or box.shape[-1] != 4:
        raise ValueError(f"boxes need a last dimension of 4, got shape {tuple(box.shape)}")
    return at_least_float32(box).unbind(-1)


def at_least_float32(box):
    """`box` in float32 or float64: half precision becomes float32 and integers float64, where areas neither overflow nor wrap."""
    if box.dtype in (torch.float32, torch.float64):
        return box
    return box.float() if box.is_floating_point() else box.double()


def convert(box, source, target):
    """Convert boxes (..., 4), or four columns, between the formats ``xyxy``, ``xywh`` and ``cxcywh``.

    Returns the same kind it was given. Raises ValueError for an unknown format.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown box format {name!r}; the formats are {', '.join(FORMATS)}")
    a, b, c, d = columns(box)
    if source == target:
        return box
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


def repair(box, policy="sort"):
    """Make flipped xyxy boxes (x2 < x1 or y2 < y1) valid; return the boxes (..., 4) and how many were flipped.

    policy "sort" exchanges the corners (the GIoU paper's algorithm 2, and what every loss here does by itself), "clamp" makes the box empty
    at its first corner, "raise" raises ValueError with the count. Gradients flow through both repairs.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    x1, y1, x2, y2 = columns(box)
    flipped = int(((x2 < x1) | (y2 < y1)).sum())
    if policy == "raise" and flipped:
        raise ValueError(f"{flipped} of {x1.numel()} boxes are flipped (x2 < x1 or y2 < y1); sort their corners, or use policy 'sort' or 'clamp'")
    if policy == "sort":
        valid = (torch.minimum(x1, x2), torch.minimum(y1, y2), torch.maximum(x1, x2), torch.maximum(y1, y2))
    elif policy == "clamp":
        valid = (x1, y1, torch.maximum(x1, x2), torch.maximum(y1, y2))
    else:
        valid = (x1, y1, x2, y2)
    return torch.stack(valid, -1), flipped


class Axis(NamedTuple):
    """Two intervals along one axis.

    low, high: how far the first one's lower and upper edge lie beyond the second's;  first, second: their lengths;
    hull: the length of the interval around both, kept above zero.
    """

    low: torch.Tensor
    high: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    hull: torch.Tensor

    @property
    def centre(self):
        """How far the first one's centre lies beyond the second's."""
        return (self.low + self.high) / 2

    @property
    def growth(self):
        """The first one's length less the second's."""
        return self.first - self.second

    def scaled(self, ratio):
        """The same intervals, each scaled about its own centre."""
        half = ratio * (self.high - self.low) / 2  # to the last digit near equal intervals, where growth has lost some
        return _axis(self.centre - half, self.centre + half, ratio * self.first, ratio * self.second)

    def shares(self):
        """Of the interval around both: the shares of what they have in common, of what only one of them has (once as the sum and once as
        the difference, first less second), and of the gap between them. Common, sum and gap add up to 1."""
        low, high = self.low / self.hull, self.high / self.hull
        apart = low.abs() + high.abs()  # 0: the same interval; 1: they touch; 2: two points
        common = torch.relu(1 - apart)  # where boxes touch, its slope is 0 and that of the gap 1: they are pulled as disjoint ones
        gap = apart - 1 + common
        return common, apart - 2 * gap, self.growth / self.hull, gap


def axes(a, b):
    """The x and the y `Axis` of xyxy boxes (..., 4)."""
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    return compare(ax1, ax2, bx1, bx2), compare(ay1, ay2, by1, by2)


def compare(a1, a2, b1, b2):
    """The `Axis` of the interval from a1 to a2 and that from b1 to b2, each (...). Flipped ones are sorted, without a branch."""
    a, b = a2 - a1, b2 - b1
    a_flip, b_flip = torch.relu(-a), torch.relu(-b)
    return _axis(a1 - b1 - a_flip + b_flip, a2 - b2 + a_flip - b_flip, a + 2 * a_flip, b + 2 * b_flip)


def _axis(low, high, first, second):
    hull = (first + second + low.abs() + high.abs()) / 2
    return Axis(low, high, first, second, hull.clamp(min=torch.finfo(hull.dtype).tiny))


class Areas(NamedTuple):
    """Areas (...) of two boxes in units of their enclosing box's: in both (A∩B), in one only, and in neither (C∖(A∪B)). They add up to 1."""

    both: torch.Tensor
    one: torch.Tensor
    neither: torch.Tensor

    @property
    def union(self):
        """|A∪B|, kept above zero so that it can divide."""
        return (self.both + self.one).clamp(min=torch.finfo(self.both.dtype).tiny)

    @property
    def missed(self):
        """1 − IoU = (|A∪B| − |A∩B|) / |A∪B|, and 1 where nothing is in both."""
        return torch.where(self.both > 0, self.one / self.union, 1)


def areas(x, y):
    """The `Areas` of two boxes from their x and y `Axis`: sums of positive terms, none a difference of nearly equal numbers.

    An axis along which both boxes are one and the same point does not count: two equal segments have IoU 1.
    """
    (x_common, x_one, x_difference, x_gap), (y_common, y_one, y_difference, y_gap) = x.shares(), y.shares()
    corners, crossed = x_one * y_one, x_difference * y_difference
    one = x_common * y_one + y_common * x_one + _not_negative(corners + crossed) / 2
    neither = _not_negative(corners - crossed) / 2 + x_gap + y_gap - x_gap * y_gap
    return Areas(x_common * y_common, one, neither)


def _not_negative(values):
    """Rounding noise below zero made zero; at zero itself the slope stays, which clamp and relu would take away."""
    return torch.where(values < 0, 0, values)


def iou(a, b):
    """Intersection over union (...) of xyxy boxes, in [0, 1]: |A∩B| / |A∪B|, right to the last digits however little they overlap."""
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    wide, a_wide, b_wide = _shares(ax1, ax2, bx1, bx2)
    high, a_high, b_high = _shares(ay1, ay2, by1, by2)
    both = wide * high
    union = a_wide * a_high + b_wide * b_high - both
    return both / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a, b):
    """Generalized IoU (...) of xyxy boxes, in [-1, 1]: IoU − |C∖(A∪B)| / |C|. Rezatofighi et al., CVPR 2019, algorithm 2."""
    return iou(a, b) - areas(*axes(a, b)).neither


def _shares(a1, a2, b1, b2):
    """Of the interval around two: the shares that lie in both, in the first and in the second, from the edges; 1 where all is one point."""
    a_low, a_high, b_low, b_high = torch.minimum(a1, a2), torch.maximum(a1, a2), torch.minimum(b1, b2), torch.maximum(b1, b2)
    common = torch.relu(torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low))
    hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
    point = hull == 0
    hull = torch.where(point, 1, hull)
    return tuple(torch.where(point, 1, length / hull) for length in (common, a_high - a_low, b_high - b_low))

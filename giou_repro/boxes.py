"""Geometry of axis-aligned boxes.

A box is a (..., 4) tensor in one of three formats, continuous coordinates in any unit:

- ``xyxy``: left, top, right, bottom edge (x1, y1, x2, y2)
- ``xywh``: left, top, width, height
- ``cxcywh``: centre, width, height

Leading dimensions broadcast: ``iou(a, b)`` of (N, 4) and (N, 4) is (N,), and ``iou(a[:, None], b[None])`` of (N, 4) and
(M, 4) is (N, M).
A flipped box (x2 < x1) means the box between its corners: corners are sorted, as in the GIoU paper's algorithm 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from giou_repro import _fast

POLICIES = ("sort", "clamp", "raise")
FORMATS = ("xyxy", "xywh", "cxcywh")
SHORTEST = 16  # times the tiniest number: a length whose reciprocal is finite, and a few multiples of it too


class Overlap(NamedTuple):
    """Areas (...) of the intersection and the union of two boxes in units of the box around both, and its two sides."""

    intersection: Tensor
    union: Tensor
    around: tuple[Tensor, Tensor]

    @property
    def iou(self) -> Tensor:
        return self.intersection / self.union

    @property
    def enclosing(self) -> tuple[Tensor, ...]:
        """Width and height (...) of the enclosing box, kept above 0 so that one may divide by them."""
        return tuple(side + SHORTEST * tiny(side) for side in self.around)


def overlap(a: Tensor, b: Tensor) -> Overlap:
    """How xyxy boxes, (..., 4) that broadcast, overlap: in units of the enclosing box no area over- or underflows."""
    common, first, second, around = along_axes(interval_overlap, a, b)
    intersection = common[0] * common[1]
    union = first[0] * first[1] + second[0] * second[1] - intersection
    return Overlap(intersection, union + tiny(union), around)


def interval_overlap(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """What two intervals have in common, and each of them, in units of the interval around both; and the length of
    that.

    |around| = |a| + |b| − common also holds for disjoint intervals, where `common` is minus the gap. Intervals that are
    one and the same point are all of what is around them, as if they were 1 long.
    """
    (a1, a2), (b1, b2) = _fast.in_order(a1, a2), _fast.in_order(b1, b2)
    first, second, common = a2 - a1, b2 - b1, _fast.lesser(a2, b2) - _fast.greater(a1, b1)
    around = first + second - common
    point = (around < SHORTEST * tiny(around)).to(around.dtype)
    unit = around + point
    return torch.relu(common + point) / unit, (first + point) / unit, (second + point) / unit, around


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (...) of xyxy boxes, in [0, 1]: |A∩B| / |A∪B|."""
    return _fast.in_blocks(lambda a, b: overlap(a, b).iou, *comparable(a, b))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) of xyxy boxes, in [-1, 1]: IoU − |C∖(A∪B)| / |C|. Rezatofighi et al., CVPR 2019, algorithm
    2."""
    return _fast.in_blocks(_giou, *comparable(a, b))


def _giou(a, b):
    o = overlap(a, b)  # in units of C, so that |C| = 1
    return o.iou - (1 - o.union)


def centre_offset(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How far the centre of `a` lies from that of `b` along x and y, (...) each. Far-off boxes lose no digits."""

    def offset(a1, a2, b1, b2):
        (a1, a2), (b1, b2) = _fast.in_order(a1, a2), _fast.in_order(b1, b2)
        return (((a1 - b1) + (a2 - b2)) / 2,)

    return along_axes(offset, a, b)[0]


def corners(box: Tensor) -> tuple[Tensor, ...]:
    """x1, y1, x2, y2 (...) of xyxy boxes (..., 4), sorted: x1 ≤ x2 and y1 ≤ y2."""
    x1, y1, x2, y2 = columns(box)
    (x1, x2), (y1, y2) = _fast.in_order(x1, x2), _fast.in_order(y1, y2)
    return x1, y1, x2, y2


def sides(box: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height (...) of xyxy boxes (..., 4), never negative."""
    x1, y1, x2, y2 = corners(box)
    return x2 - x1, y2 - y1


def area(box: Tensor) -> Tensor:
    """Area (...) of xyxy boxes (..., 4), never negative."""
    width, height = sides(box)
    return width * height


def enclosing(a: Tensor, b: Tensor) -> Tensor:
    """The smallest xyxy box (..., 4) around both of `a` and `b`."""
    pairs = tuple(zip(corners(a), corners(b), strict=True))
    first, second = (torch.minimum(*pair) for pair in pairs[:2]), (torch.maximum(*pair) for pair in pairs[2:])
    return torch.stack((*first, *second), -1)


def repair(box: Tensor, policy: str = "sort") -> tuple[Tensor, int]:
    """Make flipped xyxy boxes (x2 < x1 or y2 < y1) valid; return the boxes (..., 4) and how many were flipped.

    policy "sort" exchanges the corners (the GIoU paper's algorithm 2, and what every loss here does by itself), "clamp"
    makes the box empty at its first corner, "raise" raises ValueError with the count. Gradients flow through both
    repairs.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    x1, y1, x2, y2 = columns(box)
    flipped = int(((x2 < x1) | (y2 < y1)).sum())
    if policy == "raise" and flipped:
        found = f"{flipped} of {x1.numel()} boxes are flipped (x2 < x1 or y2 < y1)"
        raise ValueError(f"{found}; sort their corners, or use policy 'sort' or 'clamp'")
    valid = corners(box) if policy == "sort" else (x1, y1, torch.maximum(x1, x2), torch.maximum(y1, y2))
    return torch.stack(valid, -1), flipped


def tiny(values: Tensor) -> float:
    """The least number above 0 that the values' type holds with all its digits."""
    return torch.finfo(values.dtype).tiny


def convert(box, source: str, target: str):
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


def columns(box):
    """Split `box` (..., 4) into its four coordinates, each (...), in float32 or better.

    Four columns given as a tuple come back as they are: a formula that begins with ``x1, y1, x2, y2 = columns(box)``
    therefore works on tensors of boxes and on separate coordinate arrays alike, and the simulation runs it on the
    latter, which is several times faster.

    Raises TypeError for anything but a tensor, ValueError where the last dimension is not 4.
    """
    return box if isinstance(box, tuple) else _fast.unbind(at_least_float32(_checked(box)))


def along_axes(function, a, b):
    """The results of ``function(a1, a2, b1, b2)`` on the intervals of two boxes: each a pair, along x and along y."""
    return _fast.along_axes(function, *comparable(a, b))


def comparable(a, b):
    """Two boxes in one dtype, float32 or better; columns as they are. Raises as `columns` does."""
    if isinstance(a, tuple):
        return a, b
    a, b = at_least_float32(_checked(a)), at_least_float32(_checked(b))
    if a.dtype == b.dtype:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def at_least_float32(box: Tensor) -> Tensor:
    """`box` in float32 or better: half precision becomes float32, integers float64, where no area overflows or
    wraps."""
    if box.dtype in (torch.float32, torch.float64):
        return box
    return box.float() if box.is_floating_point() else box.double()


def _checked(box):
    if not isinstance(box, torch.Tensor):
        raise TypeError(f"boxes must be a torch tensor (..., 4), got {type(box).__name__}; see torch.as_tensor")
    if box.ndim == 0 or box.shape[-1] != 4:
        raise ValueError(f"boxes need a last dimension of 4, got shape {tuple(box.shape)}")
    return box

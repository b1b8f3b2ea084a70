"""Geometry of axis-aligned boxes.

A box is a (..., 4) tensor in one of three formats, continuous coordinates in any unit:

- ``xyxy``: left, top, right, bottom edge (x1, y1, x2, y2)
- ``xywh``: left, top, width, height
- ``cxcywh``: centre, width, height

Leading dimensions broadcast: ``iou(a, b)`` of (N, 4) and (N, 4) is (N,), and ``iou(a[:, None], b[None])`` of (N, 4) and
(M, 4) is (N, M).
A flipped box (x2 < x1) means the box between its corners: corners are sorted, as in the GIoU paper's algorithm 2.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from giou_repro import _fast

POLICIES = ("sort", "clamp", "raise")
FORMATS = ("xyxy", "xywh", "cxcywh")
SHORTEST = 16  # times the tiniest number: a length whose reciprocal is finite, and a few multiples of it too


class Overlap(NamedTuple):
    """Areas (...) of the intersection and the union of two boxes and of the box around both, C, in a unit that makes
    |C| 1 up to rounding; and the sides of C in the boxes' unit."""

    intersection: Tensor
    union: Tensor
    hull: Tensor
    around: tuple[Tensor, ...]

    @property
    def iou(self) -> Tensor:
        return _fast.ratio(self.intersection, self.union)

    @property
    def filled(self) -> Tensor:
        """|A∪B| / |C|"""
        return _fast.ratio(self.union, self.hull)

    @property
    def giou(self) -> Tensor:
        return self.iou - (1 - self.filled)

    @property
    def enclosing(self) -> tuple[Tensor, ...]:
        """Width and height (...) of the enclosing box, kept above 0 so that one may divide by them."""
        return tuple(side + SHORTEST * tiny(side) for side in self.around)


def overlap(a: Tensor, b: Tensor) -> Overlap:
    """How xyxy boxes, (..., 4) that broadcast, overlap: in units of the enclosing box no area over- or underflows."""
    *shares, around = _fast.along_axes(interval_overlap, *comparable(a, b))
    intersection, first, second, hull = _fast.unstacked(w * h for w, h in shares)
    union = first + second - intersection
    return Overlap(intersection, union + tiny(union), hull, around)


def interval_overlap(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """What two intervals have in common, each of them, and the interval around both, in units of the latter's length,
    `_fast.stacked`; and that length.

    |around| = |a| + |b| − common also holds for disjoint intervals, where `common` is minus the gap. Intervals that are
    one and the same point are all of what is around them, as if they were 1 long. The unit is a constant in every
    derivative: no ratio of areas depends on it.
    """
    first, second = a2 - a1, b2 - b1
    proper = _fast.least(first, second) >= SHORTEST * tiny(first)  # none is flipped or a point
    if not proper:
        (a1, a2), (b1, b2) = _fast.in_order(a1, a2), _fast.in_order(b1, b2)
        first, second = a2 - a1, b2 - b1
    common = _fast.shared_length(a1, a2, b1, b2)
    around = first + second - common
    unit, lengths = around.detach(), _fast.stacked(torch.relu(common), first, second, around)
    if proper:
        per_unit = unit.reciprocal()
        return *(length * per_unit for length in lengths), around
    per_unit, point = reciprocal(unit)
    return *(length * per_unit + point for length in lengths), around


def reciprocal(length: Tensor) -> tuple[Tensor, Tensor]:
    """1 / lengths (...) that are 0 or more, and 0; of those too short for it, as of points, 1 and 1."""
    point = (length < SHORTEST * tiny(length)).to(length.dtype)
    return (length + point).reciprocal(), point


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (...) of xyxy boxes, in [0, 1]: |A∩B| / |A∪B|."""
    return _fast.in_blocks(lambda a, b: overlap(a, b).iou, *comparable(a, b))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) of xyxy boxes, in [-1, 1]: IoU − |C∖(A∪B)| / |C|. Rezatofighi et al., CVPR 2019, algorithm
    2."""
    return _fast.in_blocks(lambda a, b: overlap(a, b).giou, *comparable(a, b))


def centre_offset(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """How far the centre of `a` lies from that of `b` along x and y, (...) each. Far-off boxes lose no digits."""
    left, top, right, bottom = (p - q for p, q in zip(corners(a), corners(b), strict=True))
    return (left + right) / 2, (top + bottom) / 2


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
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners(a), corners(b)
    first, second = (
        (torch.minimum(ax1, bx1), torch.minimum(ay1, by1)),
        (torch.maximum(ax2, bx2), torch.maximum(ay2, by2)),
    )
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
    return clamped(box) if policy == "clamp" else torch.stack(corners(box), -1), flipped


def clamped(box: Tensor) -> Tensor:
    """xyxy boxes (..., 4), those with flipped corners empty at the first one."""
    x1, y1, x2, y2 = columns(box)
    return torch.stack((x1, y1, torch.maximum(x1, x2), torch.maximum(y1, y2)), -1)


def tiny(values: Tensor) -> float:
    """The least number above 0 that the values' type holds with all its digits."""
    return torch.finfo(values.dtype).tiny


def convert(box, source: str, target: str):
    """Convert boxes (..., 4), or four columns, between the formats ``xyxy``, ``xywh`` and ``cxcywh``.

    Returns the same kind it was given, in float32 or better. Raises ValueError for an unknown format, or where the
    boxes name another one than `source`, as torchvision's BoundingBoxes do.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown box format {name!r}; the formats are {', '.join(FORMATS)}")
    named = _named_format(box)
    if named:
        if named != source:
            raise ValueError(f"source is {source!r}, but the boxes say that they are {named.upper()}")
        box = box.as_subclass(Tensor)
        box = box + 0 if _fast.is_transformed() else box  # else torch.func would find the name again
    a, b, c, d = columns(box)
    if source == target:  # digits would be lost on the way
        source = target = "xyxy"
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

    Four columns given as a tuple of tensors stay columns: a formula that begins with ``x1, y1, x2, y2 = columns(box)``
    therefore works on tensors of boxes and on separate coordinate arrays alike, and the simulation runs it on the
    latter, which is several times faster.

    Raises TypeError for anything but tensors, ValueError where the last dimension is not 4.
    """
    if not isinstance(box, tuple):
        return _fast.unbind(checked(box))
    if len(box) != 4 or not all(isinstance(column, Tensor) for column in box):
        kinds = ", ".join(type(column).__name__ for column in box)
        raise TypeError(f"boxes must be a torch tensor (..., 4) or a tuple of four, got a tuple of ({kinds})")
    return tuple(map(at_least_float32, box))


def comparable(a, b, names=("a", "b")):
    """Two boxes in one dtype, float32 or better: tensors (..., 4) that broadcast, or columns where either is columns.

    Raises as `columns` does, and ValueError where they do not broadcast, with their `names`.
    """
    if isinstance(a, tuple) or isinstance(b, tuple):
        parts = (*columns(a), *columns(b))
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
        parts = tuple(part.to(dtype) for part in parts)
        return parts[:4], parts[4:]
    a, b = checked(a, names[0]), checked(b, names[1])
    if a.shape != b.shape:
        try:
            torch.broadcast_shapes(a.shape, b.shape)
        except RuntimeError:
            shapes = f"{names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)}"
            raise ValueError(f"{shapes} do not broadcast") from None
    if a.dtype != b.dtype:
        a, b = a.double(), b.double()
    return a, b


def checked(box, name="boxes"):
    """A tensor of boxes (..., 4), `at_least_float32`; TypeError or ValueError, with its name, for anything else."""
    if not isinstance(box, Tensor):
        raise TypeError(f"{name} must be a torch tensor (..., 4), got {type(box).__name__}; see torch.as_tensor")
    if box.ndim == 0 or box.shape[-1] != 4:
        raise ValueError(f"{name} must have shape (..., 4), got {tuple(box.shape)}")
    return at_least_float32(box)


def at_least_float32(box: Tensor) -> Tensor:
    """`box` in float32 or better: half precision becomes float32, integers float64, where no area overflows or wraps.

    Boxes that name their format, as torchvision's BoundingBoxes do, become plain xyxy ones.
    """
    if type(box) is not Tensor or _fast.is_transformed():  # a plain tensor names none
        named = _named_format(box)
        if named:
            return convert(box, named, "xyxy")
    if box.dtype in (torch.float32, torch.float64):
        return box
    return box.float() if box.is_floating_point() else box.double()


def _named_format(box):
    """The format that boxes name, as "xywh", within a transform of torch.func too, which hides it; else None."""
    box = _fast.unwrapped(box) if isinstance(box, Tensor) and not hasattr(box, "format") else box
    named = getattr(box, "format", None)
    return None if named is None else getattr(named, "value", str(named)).lower()

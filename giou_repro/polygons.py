"""GIoU beyond boxes in the plane, as general as its definition: boxes in n dimensions, and convex polygons with their
convex hull as C.

Rezatofighi et al., CVPR 2019, algorithm 1: GIoU = IoU − |C∖(A∪B)| / |C| for convex A and B and the smallest convex C
around both. Pure torch: batched, broadcasting, differentiable in both arguments.
"""

import math

import torch
from torch import Tensor

from giou_repro import _fast
from giou_repro.boxes import Overlap, at_least_float32, interval_overlap, tiny


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of axis-aligned boxes in n dimensions, (..., 2n): n lower bounds, then n upper ones. For n = 2 this is
    `boxes.iou`.

    Raises ValueError where the last dimensions are not one and the same even number.
    """
    return _overlap(a, b).iou


def box_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) of axis-aligned boxes in n dimensions, (..., 2n), in [-1, 1]; C is the smallest such box
    around both.

    Raises ValueError where the last dimensions are not one and the same even number.
    """
    return _overlap(a, b).giou


def _overlap(a, b):
    """Volumes in units of the enclosing box; axis by axis, so that no product over- or underflows."""
    a, b = at_least_float32(a), at_least_float32(b)
    if a.shape[-1] != b.shape[-1] or a.shape[-1] % 2 or a.shape[-1] == 0:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"boxes in n dimensions need one last dimension of 2n, got shapes {shapes}")
    a, b = (box.to(torch.promote_types(a.dtype, b.dtype)) for box in (a, b))
    *shares, around = interval_overlap(*a.chunk(2, -1), *b.chunk(2, -1))
    both, first, second, hull = _fast.unstacked(share.prod(-1) for share in shares)
    return Overlap(both, first + second - both + tiny(both), hull, around.unbind(-1))


def rotated(box: Tensor) -> Tensor:
    """The corners (..., 4, 2) of rotated boxes (..., 5): centre, width, height, and angle in radians, counter-clockwise
    where y points up."""
    x, y, w, h, angle = at_least_float32(box).unbind(-1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    offsets = [(s * w / 2 * cos - t * h / 2 * sin, s * w / 2 * sin + t * h / 2 * cos) for s, t in signs]
    return torch.stack([torch.stack((x + dx, y + dy), -1) for dx, dy in offsets], -2)


def polygon_area(polygon: Tensor) -> Tensor:
    """Area (...) of polygons (..., k, 2), vertices in order round the boundary, either way; a vertex may be
    repeated."""
    return _signed_area(_vertices(polygon)).abs()


def polygon_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of convex polygons (..., k, 2) and (..., m, 2), vertices in order round the boundary; 0 where both have
    no area."""
    both, union, _ = _polygon_areas(a, b)
    return both / union


def polygon_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) of convex polygons (..., k, 2) and (..., m, 2), in [-1, 1]; C is the convex hull of
    both."""
    both, union, hull = _polygon_areas(a, b)
    return both / union - (hull - union) / hull


def polygon_mgiou(a: Tensor, b: Tensor) -> Tensor:
    """Marginalized generalized IoU (...) of convex polygons (..., k, 2) and (..., m, 2), in [-1, 1]: the mean of the
    generalized IoUs of their projections on the normals of all edges of both; half of 1 minus it is a loss.

    Le et al., Marginalized Generalized IoU, 2025. That of two intervals is what they share, or minus the gap, over the
    length around both. Edges without length do not count; of two points it is 1 or -1.
    """
    a, b, unit = comparable(a, b)
    x, y = torch.cat([polygon.roll(-1, -2) - polygon for polygon in (a, b)], -2).unbind(-1)
    return mean_overlap(a, b, torch.stack((y, -x), -1), torch.where(unit[..., 0, 0] > 0, -1, 1))


def mean_overlap(a, b, normals, without):
    """The mean generalized IoU (...) of the projections of `a` and `b` on `normals` (..., n, 2), leaving out those on
    which both are one point; `without` where that is all."""
    projected = [normals @ polygon.mT for polygon in (a, b)]
    (low, high), (other_low, other_high) = ((places.amin(-1), places.amax(-1)) for places in projected)
    around = torch.maximum(high, other_high) - torch.minimum(low, other_low)
    common = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    counted = around > 0
    overlap = torch.where(counted, common / torch.where(counted, around, 1), 0).sum(-1)
    return torch.where(counted.any(-1), overlap / counted.sum(-1).clamp(min=1), without)


def intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Area (...) of the intersection of convex polygons: `a` (..., k, 2) is cut along each edge of `b` (..., m, 2).

    Sutherland and Hodgman, 1974, with the vertices of every batch entry kept in k + m places.
    """
    a, b = _vertices(a), _vertices(b)
    b = torch.where((_signed_area(b) < 0)[..., None, None], b.flip(-2), b)
    for start, end in zip(b.unbind(-2), b.roll(-1, -2).unbind(-2), strict=True):
        a = _cut(a, start[..., None, :], (end - start)[..., None, :])
    return _signed_area(a).abs()


def hull_area(points: Tensor) -> Tensor:
    """Area (...) of the convex hull of points (..., n, 2).

    Over x, the hull's upper bound at each point is the highest of all chords between a point on its left and one on its
    right; between points it is straight. No vertex is ever declared to be on the hull or not, so nearly collinear
    points do no harm. O(n³) memory.
    """
    points = _vertices(points)
    order = points[..., 0].argsort(-1)
    x, y = (points[..., k].gather(-1, order) for k in (0, 1))
    n = x.shape[-1]
    left, at, right = x[..., :, None, None], x[..., None, :, None], x[..., None, None, :]
    span = right - left
    t = torch.where(span > 0, (at - left) / torch.where(span > 0, span, 1), 0)
    chord = y[..., :, None, None] * (1 - t) + y[..., None, None, :] * t  # (..., left, at, right)
    index = torch.arange(n, device=x.device)
    outside = (index[:, None, None] > index[:, None]) | (index[:, None] > index)
    upper = chord.masked_fill(outside, -math.inf).amax((-3, -1))
    lower = chord.masked_fill(outside, math.inf).amin((-3, -1))
    height, width = upper - lower, x.diff(dim=-1)
    return ((height[..., 1:] + height[..., :-1]) / 2 * width).sum(-1)


def _polygon_areas(a, b):
    a, b, _ = comparable(a, b)
    first, second, hull = polygon_area(a), polygon_area(b), hull_area(torch.cat((a, b), -2))
    # a point's or segment's edges cut nothing
    both = torch.minimum(intersection_area(a, b), torch.minimum(first, second))
    return both, (first + second - both).clamp(min=tiny(both)), hull.clamp(min=tiny(both))


def comparable(a, b):
    """Two polygons about one origin and in one unit, so that no area over- or underflows, and the unit (..., 1, 1)."""
    a, b = _vertices(a), _vertices(b)
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*shape, *a.shape[-2:]), b.expand(*shape, *b.shape[-2:])
    origin = torch.cat((a, b), -2).mean(-2, keepdim=True).detach()  # near both, so that far-off ones lose no digits
    a, b = a - origin, b - origin
    unit = torch.cat((a, b), -2).abs().amax((-2, -1), keepdim=True).detach()
    return *(polygon / torch.where(unit > 0, unit, 1) for polygon in (a, b)), unit


def _vertices(polygon):
    if polygon.ndim < 2 or polygon.shape[-1] != 2 or polygon.shape[-2] < 3:
        raise ValueError(f"polygons need shape (..., k, 2) with k of at least 3, got {tuple(polygon.shape)}")
    return at_least_float32(polygon)


def _signed_area(polygon):
    x, y = polygon.unbind(-1)
    return (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1) / 2


def _cut(polygon, start, direction):
    """The part of a convex polygon (..., k, 2) to the left of a line, in k + 1 places; all places at the origin where
    nothing is left."""
    x, y = (polygon - start).unbind(-1)
    side = direction[..., 0] * y - direction[..., 1] * x
    noise = 4 * torch.finfo(side.dtype).eps * ((direction[..., 0] * y).abs() + (direction[..., 1] * x).abs())
    side = torch.where(side.abs() <= noise, 0, side)  # or a vertex on the line would cross it back and forth
    inside, next_inside = side >= 0, side.roll(-1, -1) >= 0
    crossing = inside != next_inside
    share = side / torch.where(crossing, side - side.roll(-1, -1), 1)
    crossings = polygon + torch.where(crossing, share, 0)[..., None] * (polygon.roll(-1, -2) - polygon)
    places = torch.stack((polygon, crossings), -2).flatten(-3, -2)
    taken = torch.stack((inside, crossing), -1).flatten(-2)
    order = (~taken).to(torch.uint8).argsort(dim=-1, stable=True)[..., : polygon.shape[-2] + 1]
    kept = places.gather(-2, order[..., None].expand(*order.shape, 2))
    kept = torch.where(taken.gather(-1, order)[..., None], kept, kept[..., :1, :])
    return torch.where(taken.any(-1)[..., None, None], kept, 0)

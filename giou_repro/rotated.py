"""Losses of rotated boxes (..., 5): centre, width, height, and angle in radians, counter-clockwise where y points up.

Each takes a prediction and a target that broadcast and returns the loss of each box, (...), in float32 or better,
differentiable in both. What each does for equal boxes, squares and boxes far apart stands in docs/losses.md. Raises
ValueError where the last dimension is not 5.
"""

import torch
from torch import Tensor

from giou_repro import polygons
from giou_repro.boxes import at_least_float32

THINNEST = 1e-6  # a side, in units of the longest of both boxes, of the Gaussian that stands for a box


def iou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU of the rectangles, in [0, 1]. No gradient for disjoint boxes."""
    return 1 - polygons.polygon_iou(*_corners(pred, target))


def giou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − GIoU, in [0, 2]: C is the convex hull of both, as in the paper; other code takes a rectangle around both, and
    gets other values. Rezatofighi et al., CVPR 2019, algorithm 1."""
    return 1 - polygons.polygon_giou(*_corners(pred, target))


def mgiou(pred: Tensor, target: Tensor) -> Tensor:
    """½ − ½ mean GIoU of the projections on the sides' four directions, in [0, 1]. Le et al., Marginalized Generalized
    IoU, 2025, L_MGIoU."""
    a, b = _corners(pred, target)
    a, b, _ = polygons.comparable(a, b)
    angles = torch.broadcast_tensors(pred[..., 4].to(a.dtype), target[..., 4].to(a.dtype))
    normals = [torch.stack(pair, -1) for t in angles for pair in ((t.cos(), t.sin()), (-t.sin(), t.cos()))]
    return (1 - polygons.mean_overlap(a, b, torch.stack(normals, -2), 1)) / 2


def probiou(pred: Tensor, target: Tensor) -> Tensor:
    """√(1 − e^−B), in [0, 1]: B is Bhattacharyya's distance of two Gaussians with the boxes' centres and variances
    w²/12 and h²/12 along their sides.

    A square's Gaussian is round: its angle has no gradient. Boxes more than a few widths apart have none at all.
    Llerena et al., ProbIoU, 2021, L_1. Other code has 4.5e-4 for equal boxes; here it is 0, without a gradient.
    """
    (centre, first), (other, second) = _gaussians(pred, target)
    xx, xy, yy = ((a + b) / 2 for a, b in zip(first, second, strict=True))
    (dx, dy), determinant = (centre - other).unbind(-1), xx * yy - xy.square()
    apart = (yy * dx.square() - 2 * xy * dx * dy + xx * dy.square()) / determinant
    shape = (determinant.square() / (_determinant(first) * _determinant(second))).log()
    squared = -torch.expm1(-(3 / 2 * apart + shape / 4).clamp(0, 100))  # 3/2: covariances are in units of 1/12
    same = (squared == 0).to(squared.dtype)
    return ((squared + same).sqrt() - same).to(_dtype(pred, target))


def kfiou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − V/(V_p + V_t − V), in [2/3, 1): the areas of two Gaussians and of their product.

    Equal boxes have 2/3, as the product of two equal Gaussians has half of the area of each. The centres do not count:
    other code adds a smooth ℓ1 of them. Yang et al., KFIoU, ICLR 2023.
    """
    (_, first), (_, second) = _gaussians(pred, target)
    a, b = _determinant(first), _determinant(second)
    both = (a * b / _determinant([p + q for p, q in zip(first, second, strict=True)])).sqrt()
    return (1 - both / (a.sqrt() + b.sqrt() - both)).to(_dtype(pred, target))


LOSSES = {function.__name__: function for function in (iou, giou, mgiou, probiou, kfiou)}


def _checked(*pair):
    for box in pair:
        if box.ndim == 0 or box.shape[-1] != 5:
            raise ValueError(f"rotated boxes need shape (..., 5): x, y, width, height, angle; got {tuple(box.shape)}")
    return [at_least_float32(box) for box in pair]


def _dtype(pred, target):
    return torch.promote_types(at_least_float32(pred).dtype, at_least_float32(target).dtype)


def _corners(pred, target):
    return [polygons.rotated(box) for box in _checked(pred, target)]


def _gaussians(pred, target):
    """Of each box its centre (..., 2) about one origin and the covariance (xx, xy, yy) times 12, in units of the
    longest side and in float64, so that thin boxes lose no digits."""
    pair = torch.broadcast_tensors(*(box.double() for box in _checked(pred, target)))
    unit = torch.stack([box[..., 2:4].detach().abs().amax(-1) for box in pair]).amax(0)
    unit = unit + (unit == 0).to(unit.dtype)
    for box in pair:
        w, h = (box[..., k].abs().div(unit).clamp(min=THINNEST).square() for k in (2, 3))
        cos, sin = box[..., 4].cos(), box[..., 4].sin()
        centre = (box[..., :2] - pair[1][..., :2].detach()) / unit[..., None]
        yield centre, (w * cos**2 + h * sin**2, (w - h) * cos * sin, w * sin**2 + h * cos**2)


def _determinant(covariance):
    xx, xy, yy = covariance
    return xx * yy - xy.square()

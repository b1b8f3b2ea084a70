"""Box-regression losses, one short function each.

Each takes predicted and target boxes, (..., 4) xyxy tensors that broadcast, and returns the loss of each box, (...),
differentiable in the prediction. Its docstring is what the list of losses shows: the formula as the paper has it, then
label, range and paper, and ``space: coordinates`` for one of differences of whatever encoding the caller regresses;
others need decoded boxes. Every public function of this module is a loss.

In the formulae A is the prediction (x, y, w, h), B the target (marked *), C their enclosing box with sides w_c, h_c and
diagonal c, ρ the distance of the centres. `boxes.overlap` measures areas in units of C, so that |C| = 1.
"""

import math
import numbers

import torch
from torch import Tensor

from giou_repro import _fast, boxes


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Σ |pᵢ − tᵢ|

    label: ℓ1
    range: [0, ∞)
    space: coordinates
    """
    return sum(_distances(pred, target))


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Σ (pᵢ − tᵢ)²

    label: ℓ2
    range: [0, ∞)
    space: coordinates
    paper: the MSE of the GIoU paper's tables, up to a factor
    """
    return sum(d.square() for d in _distances(pred, target))


def smooth_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Σ dᵢ²/2 where dᵢ = |pᵢ − tᵢ| < 1, else dᵢ − 1/2

    label: smooth ℓ1
    range: [0, ∞)
    space: coordinates
    paper: Girshick, Fast R-CNN, ICCV 2015, eq. 3
    """
    return sum(torch.where(d < 1, d.clamp(max=1).square() / 2, d - 0.5) for d in _distances(pred, target))


def balanced_l1(pred: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Σ α/b (b dᵢ + 1) ln(b dᵢ + 1) − α dᵢ where dᵢ < 1, else γ dᵢ + γ/b − α; b = exp(γ/α) − 1

    label: balanced ℓ1
    range: [0, ∞)
    space: coordinates
    paper: Pang et al., Libra R-CNN, CVPR 2019, L_b; α = 0.5, γ = 1.5
    """
    gamma, alpha = _positive("gamma", gamma), _positive("alpha", alpha)
    b = math.expm1(gamma / alpha)
    distances = _distances(pred, target)
    near = [alpha / b * (b * d + 1) * torch.log1p(b * d) - alpha * d for d in (d.clamp(max=1) for d in distances)]
    far = [gamma * d + gamma / b - alpha for d in distances]
    return sum(map(torch.where, (d < 1 for d in distances), near, far))


def iou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU

    label: IoU
    range: [0, 1]
    paper: Rezatofighi et al., GIoU, CVPR 2019, algorithm 2
    """
    return 1 - boxes.overlap(pred, target).iou


def iou_log(pred: Tensor, target: Tensor) -> Tensor:
    """−ln IoU, IoU held at 1e-7 or more

    label: −ln IoU
    range: [0, 16.12]
    paper: Yu et al., UnitBox, ACM MM 2016, algorithm 1
    """
    return -boxes.overlap(pred, target).iou.clamp(min=1e-7).log()


def giou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + |C∖(A∪B)|/|C|

    label: GIoU
    range: [0, 2]
    paper: Rezatofighi et al., GIoU, CVPR 2019, algorithm 2
    """
    o = boxes.overlap(pred, target)
    return 1 - o.iou + (1 - o.union)


def diou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + ρ²/c²

    label: DIoU
    range: [0, 2]
    paper: Zheng et al., DIoU, AAAI 2020, eq. 7
    """
    o = boxes.overlap(pred, target)
    return 1 - o.iou + _centre_distance(pred, target, o.enclosing)


def ciou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + ρ²/c² + α v; v = 4/π² (atan w*/h* − atan w/h)², α = v / (1 − IoU + v + 1e-7),
    constant in the gradient

    label: CIoU
    range: [0, 3)
    paper: Zheng et al., DIoU, AAAI 2020, eqs. 8 to 11; the 1e-7 is that of the authors' simulation code
    """
    o = boxes.overlap(pred, target)
    v = 4 / math.pi**2 * (_aspect_angle(target) - _aspect_angle(pred)).square()
    alpha = (v / (torch.relu(1 - o.iou) + v + 1e-7)).detach()
    return 1 - o.iou + _centre_distance(pred, target, o.enclosing) + alpha * v


def eiou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + ρ²/c² + (w − w*)²/w_c² + (h − h*)²/h_c²

    label: EIoU
    range: [0, 4)
    paper: Zhang et al., Focal and Efficient IOU Loss, 2021, L_EIOU
    """
    o = boxes.overlap(pred, target)
    (w, h), (wt, ht), (wc, hc) = boxes.sides(pred), boxes.sides(target), o.enclosing
    return 1 - o.iou + _centre_distance(pred, target, o.enclosing) + ((w - wt) / wc).square() + ((h - ht) / hc).square()


def focal_eiou(pred: Tensor, target: Tensor, *, gamma: float = 0.5) -> Tensor:
    """IoU^γ · EIoU: 0 for disjoint boxes

    label: focal EIoU
    range: [0, 4)
    paper: Zhang et al., Focal and Efficient IOU Loss, 2021, L_Focal-EIOU; γ = 0.5; the weight held constant in the
        gradient is our choice
    """
    return boxes.overlap(pred, target).iou.detach() ** _positive("gamma", gamma) * eiou(pred, target)


def siou(pred: Tensor, target: Tensor, *, theta: float = 4) -> Tensor:
    """1 − IoU + (Δ + Ω)/2; Λ = 2|Δx Δy|/ρ², Δ = Σ 1 − exp((Λ − 2) Δ²/c²),
    Ω = Σ (1 − exp(−|w − w*|/max(w, w*)))^θ

    label: SIoU
    range: [0, 3)
    paper: Gevorgyan, SIoU, 2022, L_box; Λ is 1 − 2 sin²(arcsin(Δy/ρ) − π/4) without its arcsin; θ = 4
    """
    theta = _positive("theta", theta, least=1)
    o = boxes.overlap(pred, target)
    offset = boxes.centre_offset(pred, target)
    angle = _angle_cost(*offset)
    distance = sum(-torch.expm1((angle - 2) * (d / side).square()) for d, side in zip(offset, o.enclosing, strict=True))
    shape = 0
    for w, wt in zip(boxes.sides(pred), boxes.sides(target), strict=True):
        shape += (-torch.expm1(-(w - wt).abs() / torch.maximum(w, wt).clamp(min=boxes.tiny(w)))) ** theta
    return 1 - o.iou + (distance + shape) / 2


def alpha_iou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α

    label: α-IoU
    range: [0, 1]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-IoU; α = 3
    """
    return 1 - _power(boxes.overlap(pred, target).iou, alpha)


def alpha_giou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α + (|C∖(A∪B)|/|C|)^α

    label: α-GIoU
    range: [0, 2]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-GIoU; α = 3
    """
    o = boxes.overlap(pred, target)
    return 1 - _power(o.iou, alpha) + _power(1 - o.union, alpha)


def alpha_diou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α + (ρ²/c²)^α

    label: α-DIoU
    range: [0, 2]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-DIoU; α = 3
    """
    o = boxes.overlap(pred, target)
    return 1 - _power(o.iou, alpha) + _power(_centre_distance(pred, target, o.enclosing), alpha)


def wiou(pred: Tensor, target: Tensor) -> Tensor:
    """exp(ρ²/c²) · (1 − IoU), c² constant in the gradient

    label: WIoU v1
    range: [0, e]
    paper: Tong et al., Wise-IoU, 2023, L_WIoUv1 (v2 and v3 need a running mean over training and are left out)
    """
    o = boxes.overlap(pred, target)
    return torch.exp(_centre_distance(pred, target, [side.detach() for side in o.enclosing])) * (1 - o.iou)


def mpdiou(pred: Tensor, target: Tensor, *, image_size=None) -> Tensor:
    """1 − IoU + (d₁² + d₂²)/(w² + h²): distances of the two corners over the image's diagonal

    `image_size`: (width, height) above 0, numbers or tensors that broadcast against the boxes (...); ValueError else.

    label: MPDIoU
    range: [0, 3]
    paper: Ma and Xu, MPDIoU, 2023, algorithm 2; without image_size the enclosing box stands for the image
    """
    o = boxes.overlap(pred, target)
    offsets = _distances(boxes.corners(pred), boxes.corners(target))
    image = o.enclosing if image_size is None else _image_sides(image_size, o.union)
    return 1 - o.iou + _squared_ratio(offsets, image)


def inner_iou(pred: Tensor, target: Tensor, *, ratio: float = 0.75) -> Tensor:
    """1 − IoU of both boxes scaled by a ratio about their centres

    label: inner IoU
    range: [0, 1]
    paper: Zhang et al., Inner-IoU, 2023, L_Inner-IoU; ratio = 0.75
    """
    inner = boxes.overlap(*_scaled(pred, target, _positive("ratio", ratio)))
    return (1 - inner.iou).to(boxes.columns(pred)[0].dtype)


def inner_giou(pred: Tensor, target: Tensor, *, ratio: float = 0.75) -> Tensor:
    """1 − GIoU + IoU − inner IoU

    label: inner GIoU
    range: [0, 2]
    paper: Zhang et al., Inner-IoU, 2023, L_Inner-GIoU; ratio = 0.75
    """
    return inner_iou(pred, target, ratio=ratio) + (1 - boxes.overlap(pred, target).union)


def piou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + 1 − exp(−P²); P = mean distance of the four edges in units of the target's sides

    label: PIoU
    range: [0, 2]
    paper: Liu et al., Powerful-IoU, Neural Networks 2024, L_PIoU (v1)
    """
    left, top, right, bottom = _distances(boxes.corners(pred), boxes.corners(target))
    w, h = (side.clamp(min=boxes.tiny(side)) for side in boxes.sides(target))
    horizontal, vertical = torch.minimum(left + right, 40 * w), torch.minimum(top + bottom, 40 * h)
    p = (horizontal / w + vertical / h) / 4  # at 40 sides exp(−P²) is 0 to the last digit
    return 1 - boxes.overlap(pred, target).iou - torch.expm1(-p.square())


def _distances(pred, target):
    """|pᵢ − tᵢ| of the four coordinates."""
    return [(p - t).abs() for p, t in zip(boxes.columns(pred), boxes.columns(target), strict=True)]


def _centre_distance(pred, target, enclosing):
    """ρ²/c², in [0, 1)."""
    return _squared_ratio(boxes.centre_offset(pred, target), enclosing)


def _squared_ratio(lengths, sides):
    """Σ lengths² / Σ sides², in units of the larger side, so that no square over- or underflows."""
    unit = torch.maximum(*sides).detach()
    return sum((length / unit).square() for length in lengths) / sum((side / unit).square() for side in sides)


def _aspect_angle(box):
    """atan(width / height) of xyxy boxes, in [0, π/2]; 0 for a point."""
    width, height = boxes.sides(box)
    unit = torch.maximum(width, height).detach()
    point = (unit == 0).to(unit.dtype)
    return torch.atan2(width / (unit + point), height / (unit + point) + point)


def _angle_cost(dx, dy):
    """SIoU's Λ = 2 |Δx Δy| / (Δx² + Δy²), in [0, 1]: 1 on the diagonals; 0 for equal centres."""
    unit = torch.maximum(dx.abs(), dy.abs()).detach().clamp(min=boxes.tiny(dx))
    dx, dy = dx / unit, dy / unit
    return 2 * (dx * dy).abs() / (dx.square() + dy.square()).clamp(min=boxes.tiny(dx))


def _scaled(pred, target, ratio):
    """Columns of both boxes scaled by `ratio` about their centres, counted from the target's first corner and in
    float64: in float32 scaling would round some near-equal edges to equal ones."""
    pred, target = boxes.columns(pred), boxes.columns(target)
    x, y = (column.detach().double() for column in target[:2])
    for columns in (pred, target):
        x1, y1, x2, y2 = (column.double() - origin for column, origin in zip(columns, (x, y, x, y), strict=True))
        dx, dy = (1 - ratio) / 2 * (x2 - x1), (1 - ratio) / 2 * (y2 - y1)
        yield x1 + dx, y1 + dy, x2 - dx, y2 - dy


def _power(share, alpha):
    """share^α of a number in [0, 1], with a finite slope at 0 for α below 1 too."""
    return torch.where(share > 0, share.clamp(min=boxes.tiny(share)) ** _positive("alpha", alpha), 0)


def _image_sides(image_size, like):
    """Width and height of the image, in the type of `like`; tensors are looked at where they have values to look at."""
    if not hasattr(image_size, "__len__") or len(image_size) != 2:
        raise ValueError(f"image_size must be (width, height), got {image_size!r}")
    sides = []
    for side in image_size:
        if isinstance(side, numbers.Real):
            _positive("image_size", side)
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
    return sides


def _positive(keyword, value, least=0):
    """A keyword's value as a float; ValueError naming it where it is not a number above 0 (or of at least `least`)."""
    if not isinstance(value, numbers.Real) or not (0 < value < math.inf and value >= least):
        raise ValueError(f"{keyword} must be a number {f'of at least {least}' if least else 'above 0'}, got {value!r}")
    return float(value)

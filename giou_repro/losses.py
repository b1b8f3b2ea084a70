"""Box-regression losses, one short function each.

Each takes predicted and target boxes, (..., 4) xyxy tensors that broadcast, and returns the loss of each box, (...),
differentiable in the prediction. Its docstring is what the list of losses shows: the formula as the paper has it, then
label, range and paper, and ``space: coordinates`` for one of differences of whatever encoding the caller regresses;
others need decoded boxes. Every public function of this module is a loss.

In the formulae A is the prediction (x, y, w, h), B the target (marked *), C their enclosing box with sides w_c, h_c and
diagonal c, ρ the distance of the centres.
"""

import math

import torch
from torch import Tensor

from giou_repro import _fast, boxes
from giou_repro import _terms as terms


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Σ |pᵢ − tᵢ|

    label: ℓ1
    range: [0, ∞)
    space: coordinates
    """
    return sum(terms.distances(pred, target))


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Σ (pᵢ − tᵢ)²

    label: ℓ2
    range: [0, ∞)
    space: coordinates
    paper: the MSE of the GIoU paper's tables, up to a factor
    """
    return sum(d.square() for d in terms.distances(pred, target))


def smooth_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Σ dᵢ²/2 where dᵢ = |pᵢ − tᵢ| < 1, else dᵢ − 1/2

    label: smooth ℓ1
    range: [0, ∞)
    space: coordinates
    paper: Girshick, Fast R-CNN, ICCV 2015, eq. 3
    """
    return sum(torch.where(d < 1, d.clamp(max=1).square() / 2, d - 0.5) for d in terms.distances(pred, target))


def balanced_l1(pred: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Σ α/b (b dᵢ + 1) ln(b dᵢ + 1) − α dᵢ where dᵢ < 1, else γ dᵢ + γ/b − α; b = exp(γ/α) − 1

    label: balanced ℓ1
    range: [0, ∞)
    space: coordinates
    paper: Pang et al., Libra R-CNN, CVPR 2019, L_b; α = 0.5, γ = 1.5
    """
    gamma, alpha = terms.number("gamma", gamma), terms.number("alpha", alpha)
    b = math.expm1(gamma / alpha)
    distances = terms.distances(pred, target)
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
    return 2 - (o.iou + o.filled)  # |C∖(A∪B)|/|C| is 1 − |A∪B|/|C|


def diou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + ρ²/c²

    label: DIoU
    range: [0, 2]
    paper: Zheng et al., DIoU, AAAI 2020, eq. 7
    """
    o = boxes.overlap(pred, target)
    return 1 - o.iou + terms.centre_distance(pred, target, o.enclosing)


def ciou(pred: Tensor, target: Tensor, *, gate: float = 0) -> Tensor:
    """1 − IoU + ρ²/c² + α v; v = 4/π² (atan w*/h* − atan w/h)², α = v / (1 − IoU + v + 1e-7),
    constant in the gradient

    `gate`: α is 0 where IoU is below it, ValueError unless 0 to 1; 0.5 is the journal's form, which mmdetection has.

    label: CIoU
    range: [0, 3)
    paper: Zheng et al., DIoU, AAAI 2020, eqs. 8 to 11; the 1e-7 is that of the authors' simulation code
    """
    gate = terms.number("gate", gate, least=0, most=1)
    o = boxes.overlap(pred, target)
    v = 4 / math.pi**2 * terms.aspect_change(pred, target).square()
    alpha = (v / (torch.relu(1 - o.iou) + v + 1e-7)).detach()
    alpha = alpha * (o.iou >= gate) if gate else alpha
    return 1 - o.iou + terms.centre_distance(pred, target, o.enclosing) + alpha * v


def eiou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + ρ²/c² + (w − w*)²/w_c² + (h − h*)²/h_c²

    label: EIoU
    range: [0, 4)
    paper: Zhang et al., Focal and Efficient IOU Loss, 2021, L_EIOU
    """
    o = boxes.overlap(pred, target)
    (w, h), (wt, ht), (wc, hc) = boxes.sides(pred), boxes.sides(target), o.enclosing
    return (
        1
        - o.iou
        + terms.centre_distance(pred, target, o.enclosing)
        + ((w - wt) / wc).square()
        + ((h - ht) / hc).square()
    )


def focal_eiou(pred: Tensor, target: Tensor, *, gamma: float = 0.5) -> Tensor:
    """IoU^γ · EIoU: 0 for disjoint boxes

    label: focal EIoU
    range: [0, 4)
    paper: Zhang et al., Focal and Efficient IOU Loss, 2021, L_Focal-EIOU; γ = 0.5; the weight held constant in the
        gradient is our choice
    """
    return boxes.overlap(pred, target).iou.detach() ** terms.number("gamma", gamma) * eiou(pred, target)


def siou(pred: Tensor, target: Tensor, *, theta: float = 4) -> Tensor:
    """1 − IoU + (Δ + Ω)/2; Λ = 2|Δx Δy|/ρ², Δ = Σ 1 − exp((Λ − 2) Δ²/c²),
    Ω = Σ (1 − exp(−|w − w*|/max(w, w*)))^θ

    label: SIoU
    range: [0, 3)
    paper: Gevorgyan, SIoU, 2022, L_box; Λ is 1 − 2 sin²(arcsin(Δy/ρ) − π/4) without its arcsin; θ = 4
    """
    theta = terms.number("theta", theta, least=1)
    o = boxes.overlap(pred, target)
    offset = boxes.centre_offset(pred, target)
    angle = terms.angle_cost(*offset)
    distance = sum(-torch.expm1((angle - 2) * (d / side).square()) for d, side in zip(offset, o.enclosing, strict=True))
    shape = sum((-torch.expm1(-change)) ** theta for change in terms.side_changes(pred, target))
    return 1 - o.iou + (distance + shape) / 2


def alpha_iou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α

    label: α-IoU
    range: [0, 1]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-IoU; α = 3
    """
    return 1 - terms.power(boxes.overlap(pred, target).iou, alpha)


def iou_squared(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU²

    Without a gradient for disjoint boxes, as IoU; it is alpha_iou with α = 2.

    label: IoU²
    range: [0, 1]
    paper: the box loss of YOLOX, Ge et al., 2021, and of PP-YOLO
    """
    return 1 - boxes.overlap(pred, target).iou.square()


def alpha_giou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α + (|C∖(A∪B)|/|C|)^α

    label: α-GIoU
    range: [0, 2]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-GIoU; α = 3
    """
    o = boxes.overlap(pred, target)
    return 1 - terms.power(o.iou, alpha) + terms.power(1 - o.filled, alpha)


def alpha_diou(pred: Tensor, target: Tensor, *, alpha: float = 3) -> Tensor:
    """1 − IoU^α + (ρ²/c²)^α

    label: α-DIoU
    range: [0, 2]
    paper: He et al., Alpha-IoU, NeurIPS 2021, L_α-DIoU; α = 3
    """
    o = boxes.overlap(pred, target)
    return 1 - terms.power(o.iou, alpha) + terms.power(terms.centre_distance(pred, target, o.enclosing), alpha)


def wiou(pred: Tensor, target: Tensor) -> Tensor:
    """exp(ρ²/c²) · (1 − IoU), c² constant in the gradient

    label: WIoU v1
    range: [0, e]
    paper: Tong et al., Wise-IoU, 2023, L_WIoUv1; v2 and v3 are wrappers.wise of it
    """
    o = boxes.overlap(pred, target)
    return torch.exp(terms.centre_distance(pred, target, [side.detach() for side in o.enclosing])) * (1 - o.iou)


def mpdiou(pred: Tensor, target: Tensor, *, image_size=None) -> Tensor:
    """1 − IoU + (d₁² + d₂²)/(w² + h²): distances of the two corners over the image's diagonal

    `image_size`: (width, height) above 0, numbers or tensors that broadcast against the boxes (...); ValueError else.

    label: MPDIoU
    range: [0, 3]
    paper: Ma and Xu, MPDIoU, 2023, algorithm 2; without image_size the enclosing box stands for the image
    """
    o = boxes.overlap(pred, target)
    offsets = terms.distances(boxes.corners(pred), boxes.corners(target))
    image = o.enclosing if image_size is None else terms.image_sides(image_size, o.union)
    return 1 - o.iou + terms.squared_ratio(offsets, image)


def inner_iou(pred: Tensor, target: Tensor, *, ratio: float = 0.75) -> Tensor:
    """1 − IoU of both boxes scaled by a ratio about their centres

    label: inner IoU
    range: [0, 1]
    paper: Zhang et al., Inner-IoU, 2023, L_Inner-IoU; ratio = 0.75
    """
    inner = boxes.overlap(*terms.scaled(pred, target, terms.number("ratio", ratio)))
    return (1 - inner.iou).to(boxes.columns(pred)[0].dtype)


def inner_giou(pred: Tensor, target: Tensor, *, ratio: float = 0.75) -> Tensor:
    """1 − GIoU + IoU − inner IoU

    label: inner GIoU
    range: [0, 2]
    paper: Zhang et al., Inner-IoU, 2023, L_Inner-GIoU; ratio = 0.75
    """
    return inner_iou(pred, target, ratio=ratio) + (1 - boxes.overlap(pred, target).filled)


def piou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − IoU + 1 − exp(−P²); P = mean distance of the four edges in units of the target's sides

    label: PIoU
    range: [0, 2]
    paper: Liu et al., Powerful-IoU, Neural Networks 2024, L_PIoU (v1)
    """
    return 1 - boxes.overlap(pred, target).iou - torch.expm1(-terms.edge_distance(pred, target).square())


def piou_v2(pred: Tensor, target: Tensor, *, lambda_: float = 1.3, detached: bool = True) -> Tensor:
    """3 x exp(−x²) · PIoU; x = λ exp(−P), constant in the gradient

    `detached` False gives the authors' gradient, in which x is not constant: it pushes far boxes away. For a unit
    square shifted along x the slope is then −0.09 at two widths and −0.50 at three, though the loss should fall
    towards the target.

    label: PIoU v2
    range: [0, 1.9)
    paper: Liu et al., Powerful-IoU, Neural Networks 2024, L_PIoU v2; λ = 1.3
    """
    x = terms.number("lambda_", lambda_) * torch.exp(-terms.edge_distance(pred, target))
    x = x.detach() if detached else x
    return 3 * x * torch.exp(-x.square()) * piou(pred, target)


def shape_iou(pred: Tensor, target: Tensor, *, scale: float = 0) -> Tensor:
    """1 − IoU + (η_h Δx² + η_w Δy²)/c² + ½ Σ (1 − exp(−ω))⁴; η_w = 2/(1 + (h*/w*)^s), η_h = 2 − η_w,
    ω = η_h |w − w*|/max(w, w*) and η_w |h − h*|/max(h, h*)

    `scale` is s of at least 0. With its default, 0, both η are 1 and no shape is weighed. The authors' function takes
    boxes as xywh, whatever its keyword says; this one takes xyxy.

    label: Shape-IoU
    range: [0, 2.2)
    paper: Zhang and Zhang, Shape-IoU, 2023, L_Shape-IoU; s = 0, where the authors choose it by data set
    """
    o, scale = boxes.overlap(pred, target), terms.number("scale", scale, least=0)
    wt, ht = (side.clamp(min=boxes.tiny(side)).log() for side in boxes.sides(target))
    weights = [2 * torch.sigmoid(scale * difference) for difference in (ht - wt, wt - ht)]  # η_h, η_w
    offset = [eta.sqrt() * d for eta, d in zip(weights, boxes.centre_offset(pred, target), strict=True)]
    changes = zip(weights, terms.side_changes(pred, target), strict=True)
    shape = sum(torch.expm1(-eta * change) ** 4 for eta, change in changes)
    return 1 - o.iou + terms.squared_ratio(offset, o.enclosing) + shape / 2


def bounded_iou(pred: Tensor, target: Tensor, *, beta: float = 0.2) -> Tensor:
    """Σ d²/2β where d < β, else d − β/2; d = min(1, 4|Δx|/(w* + 2|Δx|)), 1 − min(w/w*, w*/w), the same for y and h

    Each d is 1 minus the largest IoU that the box can have whose one coordinate is as wrong. One value a box, where
    mmdetection has four, and no constant in the divisors, which there biases boxes in units of the image.

    label: bounded IoU
    range: [0, 4)
    paper: Tychsen-Smith and Petersson, CVPR 2018, L_BIoU; β = 0.2 as in mmdetection
    """
    beta, dtype, total = terms.number("beta", beta), boxes.columns(pred)[0].dtype, 0
    # in float64: near equal boxes the gradient is as small as the differences of their sides
    pred, target = (tuple(column.double() for column in boxes.columns(box)) for box in (pred, target))
    offset, sides = boxes.centre_offset(pred, target), boxes.sides(target)
    shifts = [
        4 * d.abs() / (w + 2 * d.abs() + boxes.SHORTEST * boxes.tiny(w)) for d, w in zip(offset, sides, strict=True)
    ]
    for d in (*(shift.clamp(max=1) for shift in shifts), *terms.side_changes(pred, target)):
        total = total + torch.where(d < beta, d.square() / (2 * beta), d - beta / 2)
    return total.to(dtype)


def nwd(pred: Tensor, target: Tensor, *, constant: float | str = 12.8) -> Tensor:
    """1 − exp(−W/C); W² = ρ² + ((w − w*)² + (h − h*)²)/4

    W is Wasserstein's distance of the boxes as Gaussians, also that of the corners over √2. `constant`, C, is in the
    unit of the boxes, and 12.8 px of the training size is the mean size of AI-TOD's objects: for boxes in units of
    the image the loss is then near 0 everywhere, and 100 px away it is flat. "auto" takes the targets' mean √(w h).

    label: NWD
    range: [0, 1]
    paper: Wang et al., A Normalized Gaussian Wasserstein Distance for Tiny Object Detection, 2021, L_NWD; C = 12.8 px
    """
    if constant == "auto":
        w, h = (side.detach() for side in boxes.sides(target))
        constant = (w.sqrt() * h.sqrt()).mean().clamp(min=boxes.tiny(w))
    else:
        constant = terms.number("constant", constant)
    return -torch.expm1(-terms.length(terms.distances(boxes.corners(pred), boxes.corners(target))) / 2**0.5 / constant)


def mgiou(pred: Tensor, target: Tensor) -> Tensor:
    """1 − ((w + w*)/w_c + (h + h*)/h_c)/4

    Half of 1 minus the mean GIoU of the boxes' projections on x and y: that of two intervals is what they share, or
    minus the gap, over the length around both, and what they share is |a| + |b| − |c|. `polygons.polygon_mgiou` is that
    of convex polygons.

    label: MGIoU
    range: [0, 1]
    paper: Le et al., Marginalized Generalized IoU, 2025, L_MGIoU
    """
    *shares, _ = _fast.along_axes(boxes.interval_overlap, *boxes.comparable(pred, target))
    axes = (_fast.unstacked(share[axis] for share in shares) for axis in (0, 1))
    return 1 - sum((first + second) / around for _, first, second, around in axes) / 4

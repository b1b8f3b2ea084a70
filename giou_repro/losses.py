"""Box-regression losses: one short function each, and LOSSES, the table every experiment walks over.

Each function takes predicted and target boxes, (..., 4) xyxy tensors that broadcast, and returns the loss of each box, (...),
differentiable in the prediction. Integer and half-precision boxes are computed in float32. A loss of your own:

    @loss("mine", label="Mine")
    def mine(pred, target):
        return 1 - boxes.iou(pred, target) ** 2

and it is in LOSSES, hence in every notebook, figure and simulation. On a command line it is ``my_module:mine``.
"""

import difflib
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from giou_repro import boxes
from giou_repro.boxes import columns

SPACES = ("boxes", "coordinates")
BLOCK = 48_000  # boxes at a time at most, see _InBlocks


@dataclass(frozen=True)
class Loss:
    """A registered loss; call it as ``LOSSES["giou"](pred, target)``.

    ``space`` is "boxes" for a loss about overlap, which needs decoded xyxy boxes, and "coordinates" for one that takes differences of
    whatever encoding the caller regresses. ``formula``, ``range`` and ``paper`` are what ``giou-repro losses`` prints.
    """

    name: str
    label: str
    function: Callable
    space: str
    formula: str = ""
    range: str = ""
    paper: str = ""

    def __call__(self, pred, target, *, invalid="sort", **options):
        """The loss (...) of each predicted box (..., 4), in the prediction's dtype (the default one for integers).

        Half precision is computed in float32, and a value or gradient beyond the half's range becomes its largest number. `invalid` says
        what is done with flipped predictions, see `boxes.repair`; coordinate losses take them as they are. `options` are the loss's own
        keywords, as ``image_size`` of mpdiou. Raises TypeError where an argument is not a tensor, ValueError where shapes are not (..., 4)
        or do not broadcast, or where a user's function does not return one value a box.
        """
        shape = self._checked_shape(pred, target)
        box, goal = boxes.at_least_float32(pred), boxes.at_least_float32(target)
        for wide, given in ((box, pred), (goal, target)):
            if wide is not given and wide.requires_grad:
                wide.register_hook(lambda gradient, dtype=given.dtype: _within(gradient, dtype))
        if invalid not in boxes.POLICIES:
            raise ValueError(f"{self.name}: invalid must be one of {', '.join(boxes.POLICIES)}, got {invalid!r}")
        if invalid != "sort" and self.space == "boxes":
            box, _ = boxes.repair(box, invalid)
        value = self._of_the_package(box, goal, options) if self.function.__module__ == __name__ else self._of_a_user(box, goal, options)
        self._check_value(value, shape, box)
        dtype = pred.dtype if pred.is_floating_point() else torch.get_default_dtype()
        return value if value.dtype == dtype else (_within(value, dtype).detach() + (value - value.detach())).to(dtype)

    def _of_a_user(self, box, goal, options):
        before = _versions(box, goal)
        value = self.function(box, goal, **options)
        if _versions(box, goal) != before:
            raise ValueError(f"{self.name}: the function changes its arguments in place; work on copies, as in pred - target")
        return value

    def _of_the_package(self, box, goal, options):
        """The package's functions treat each box on its own: large batches take them a block at a time."""
        if options or (box.shape == goal.shape and box.numel() <= 8 * BLOCK):
            return self.function(box, goal, **options)
        tracked = torch.is_grad_enabled() and box.requires_grad and not goal.requires_grad
        if tracked and box.shape == goal.shape and box.device.type == goal.device.type == "cpu" and not boxes.is_transformed():
            return _InBlocks.apply(self.function, box, goal)
        return boxes.tiled(self.function, box, goal)

    def _check_value(self, value, shape, box):
        if not isinstance(value, torch.Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: expected one loss a box, a tensor of shape {tuple(shape)}, but the function returned {got}")
        if box.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            raise ValueError(f"{self.name}: the result does not depend on pred by torch operations (detach, item or numpy?): it has no gradient")

    def _checked_shape(self, pred, target):
        for name, box in (("pred", pred), ("target", target)):
            if not isinstance(box, torch.Tensor):
                raise TypeError(f"{self.name}: {name} must be a torch tensor of boxes (..., 4), got {type(box).__name__}")
            if box.ndim == 0 or box.shape[-1] != 4:
                raise ValueError(f"{self.name}: {name} must have shape (..., 4), got {tuple(box.shape)}")
        if pred.shape == target.shape:
            return pred.shape[:-1]
        try:
            return torch.broadcast_shapes(pred.shape, target.shape)[:-1]
        except RuntimeError:
            raise ValueError(f"{self.name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} do not broadcast") from None


class _InBlocks(torch.autograd.Function):
    """A loss of many boxes (..., 4), one block of rows after the other: each is differentiated while it is in the cache, and of what that
    needs only the gradient is kept. Of any function that treats each box on its own, by its ordinary derivative."""

    @staticmethod
    def forward(ctx, function, pred, target):
        boxes.keep_freed_memory()
        value, gradient = torch.empty(pred.shape[:-1], dtype=torch.result_type(pred, target)), torch.empty(pred.shape, dtype=pred.dtype)
        rows = (pred.detach().reshape(-1, 4), target.detach().reshape(-1, 4), value.view(-1), gradient.view(-1, 4))
        blocks = math.ceil(value.numel() / BLOCK)
        for p, t, v, g in zip(*(part.chunk(blocks) for part in rows), strict=True):
            with torch.enable_grad():
                block = function(p.requires_grad_(), t)
                g.copy_(torch.autograd.grad(block.sum(), p)[0])
            v.copy_(block.detach())
        ctx.function = function
        ctx.save_for_backward(pred, target, gradient)
        return value

    @staticmethod
    def backward(ctx, outer):
        pred, target, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of the derivative is asked for: the ordinary way
            return None, torch.autograd.grad(ctx.function(pred, target), pred, outer, create_graph=True)[0], None
        return None, outer.unsqueeze(-1).to(gradient) * gradient, None


def _versions(*tensors):
    """How often each tensor was changed in place; None where torch does not count."""
    counted = not torch.compiler.is_compiling() and not any(tensor.is_inference() for tensor in tensors)
    return [tensor._version for tensor in tensors] if counted else None


def _within(values, dtype):
    """`values` held within the range of a narrower dtype."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else math.inf
    return values.clamp(-largest, largest)


LOSSES: dict[str, Loss] = {}


def loss(name, *, label=None, space="boxes", formula="", range="", paper=""):
    """Register the decorated function in LOSSES under `name` and return it unchanged.

    `label` is what figures show, by default the name. `space` is "boxes" (the function is about overlap) or "coordinates". `formula`,
    `range` and `paper` are for the list of losses.
    Registering a name again replaces it, so that a notebook cell can be run twice; the names that come with the package are kept.
    Raises ValueError for a name of the package, a name that is not an identifier, or an unknown space.
    """
    if not isinstance(name, str):
        raise TypeError('write @loss("name") above the function, with a name')
    if not name.isidentifier():
        raise ValueError(f"a loss name must be an identifier such as 'my_loss', got {name!r}")
    if space not in SPACES:
        raise ValueError(f"loss {name!r}: space must be one of {SPACES}, got {space!r}")

    def register(function):
        if name in LOSSES and LOSSES[name].function.__module__ == __name__ != function.__module__:
            raise ValueError(f"{name!r} is a loss of the package; give yours another name")
        LOSSES[name] = Loss(name, label or name, function, space, formula, range, paper)
        return function

    return register


def select(losses):
    """The registered names of `losses`: a list, or comma-separated text, of names and ``module:function`` pairs.

    A module is imported from the current folder or the Python path; a function in it without ``@loss`` is registered under its own name.
    Raises ValueError for a name that is not known, and names the closest one.
    """
    names = losses.split(",") if isinstance(losses, str) else losses
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"losses must be a list of names or comma-separated text, got {losses!r}")
    selected = [_import_loss(name.strip()) if ":" in name else _known(name.strip()) for name in names]
    if not selected:
        raise ValueError(f"no loss given; the losses are {', '.join(LOSSES)}")
    return list(dict.fromkeys(selected))


def label(name):
    """What figures and sentences call a loss: its label, or its name where no such loss is registered, as in a table made elsewhere."""
    return LOSSES[name].label if name in LOSSES else name


def table(markdown=False):
    """The registered losses with formula, range, space and paper, as text or as a Markdown table."""
    if markdown:
        cells = [(f"`{e.name}`", e.formula, e.range, e.space, e.paper) for e in LOSSES.values()]
        rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in cells]
        return "\n".join(["| loss | formula | range | space | paper |", "|---|---|---|---|---|", *rows]) + "\n"
    return "".join(f"{e.name:<12}{e.space:<13}{e.range:<11}{e.formula}\n{'':<36}{e.paper}\n" for e in LOSSES.values())


def _known(name):
    if name in LOSSES:
        return name
    close = difflib.get_close_matches(name, LOSSES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown loss {name!r}; {hint}The losses are {', '.join(LOSSES)}; your own is my_module:my_function")


def _import_loss(reference):
    """Import ``module:function`` and return the name its loss has in LOSSES."""
    module_name, _, attribute = reference.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise ValueError(f"loss {reference!r}: no module {module_name!r} in the current folder or on the Python path") from None
    function = getattr(module, attribute, None)
    for name, entry in LOSSES.items():
        if entry.function is function or (name == attribute and entry.function.__module__ == module_name):
            return name
    if not callable(function):
        raise ValueError(f"loss {reference!r}: module {module_name!r} has no function {attribute!r}")
    loss(attribute)(function)
    return attribute


@loss("l1", label="ℓ1", space="coordinates", formula="Σ |pᵢ − tᵢ|", range="[0, ∞)", paper="")
def l1(pred, target):
    return sum((p - t).abs() for p, t in _coordinates(pred, target))


@loss("l2", label="ℓ2", space="coordinates", formula="Σ (pᵢ − tᵢ)²", range="[0, ∞)", paper="the MSE of the GIoU paper's tables, up to a factor")
def l2(pred, target):
    return sum((p - t).square() for p, t in _coordinates(pred, target))


@loss(
    "smooth_l1",
    label="smooth ℓ1",
    space="coordinates",
    formula="Σ dᵢ²/2 where dᵢ = |pᵢ − tᵢ| < 1, else dᵢ − 1/2",
    range="[0, ∞)",
    paper="Girshick, Fast R-CNN, ICCV 2015, eq. 3",
)
def smooth_l1(pred, target):
    distances = [(p - t).abs() for p, t in _coordinates(pred, target)]
    return sum(torch.where(d < 1, d.clamp(max=1).square() / 2, d - 0.5) for d in distances)


@loss(
    "balanced_l1",
    label="balanced ℓ1",
    space="coordinates",
    formula="Σ α/b (b dᵢ + 1) ln(b dᵢ + 1) − α dᵢ where dᵢ < 1, else γ dᵢ + γ/b − α; b = exp(γ/α) − 1",
    range="[0, ∞)",
    paper="Pang et al., Libra R-CNN, CVPR 2019, L_b; α = 0.5, γ = 1.5",
)
def balanced_l1(pred, target, *, alpha=0.5, gamma=1.5):
    b = math.expm1(_positive("gamma", gamma) / _positive("alpha", alpha))
    distances = [(p - t).abs() for p, t in _coordinates(pred, target)]
    near = [alpha / b * (b * d + 1) * torch.log1p(b * d) - alpha * d for d in (d.clamp(max=1) for d in distances)]
    return sum(torch.where(d < 1, close, gamma * d + gamma / b - alpha) for d, close in zip(distances, near, strict=True))


@loss("iou", label="IoU", formula="1 − IoU", range="[0, 1]", paper="Rezatofighi et al., GIoU, CVPR 2019, algorithm 2")
def iou(pred, target):
    return boxes.areas(boxes.axes(pred, target)).missed


@loss(
    "iou_log",
    label="−ln IoU",
    formula="−ln IoU, IoU held at 1e-7 or more",
    range="[0, 16.12]",
    paper="Yu et al., UnitBox, ACM MM 2016, algorithm 1",
)
def iou_log(pred, target):
    missed = iou(pred, target).clamp(max=0.5)
    return torch.where(missed < 0.5, -torch.log1p(-missed), -boxes.iou(pred, target).clamp(1e-7, 1).log())


@loss("giou", label="GIoU", formula="1 − IoU + |C∖(A∪B)|/|C|", range="[0, 2]", paper="Rezatofighi et al., GIoU, CVPR 2019, algorithm 2")
def giou(pred, target):
    areas = boxes.areas(boxes.axes(pred, target))
    return areas.missed + areas.neither


@loss("diou", label="DIoU", formula="1 − IoU + ρ²/c²", range="[0, 2]", paper="Zheng et al., DIoU, AAAI 2020, eq. 7")
def diou(pred, target):
    axes = boxes.axes(pred, target)
    return boxes.areas(axes).missed + _centre_distance(*axes.split())


@loss(
    "ciou",
    label="CIoU",
    formula="1 − IoU + ρ²/c² + α v; v = 4/π² (atan w*/h* − atan w/h)², α = v / (1 − IoU + v + 1e-7), constant in the gradient",
    range="[0, 3)",
    paper="Zheng et al., DIoU, AAAI 2020, eqs. 8 to 11; the 1e-7 is that of the authors' simulation code",
)
def ciou(pred, target):
    axes = boxes.axes(pred, target)
    missed = boxes.areas(axes).missed
    v = 4 / math.pi**2 * (_aspect_angle(target) - _aspect_angle(pred)).square()
    alpha = (v / (missed + v + 1e-7)).detach()
    return missed + _centre_distance(*axes.split()) + alpha * v


@loss(
    "eiou",
    label="EIoU",
    formula="1 − IoU + ρ²/c² + (w − w*)²/w_c² + (h − h*)²/h_c²",
    range="[0, 4)",
    paper="Zhang et al., Focal and Efficient IOU Loss, 2021, L_EIOU",
)
def eiou(pred, target):
    axes = boxes.axes(pred, target)
    x, y = axes.split()
    return boxes.areas(axes).missed + _centre_distance(x, y) + (x.growth / x.hull).square() + (y.growth / y.hull).square()


@loss(
    "focal_eiou",
    label="focal EIoU",
    formula="IoU^γ · EIoU: 0 for disjoint boxes",
    range="[0, 4)",
    paper="Zhang et al., Focal and Efficient IOU Loss, 2021, L_Focal-EIOU; γ = 0.5; the weight held constant in the gradient is our choice",
)
def focal_eiou(pred, target, *, gamma=0.5):
    return boxes.iou(pred, target).detach() ** _positive("gamma", gamma) * eiou(pred, target)


@loss(
    "siou",
    label="SIoU",
    formula="1 − IoU + (Δ + Ω)/2; Λ = 2|Δx Δy|/ρ², Δ = Σ 1 − exp((Λ − 2) Δ²/c²), Ω = Σ (1 − exp(−|w − w*|/max(w, w*)))^θ",
    range="[0, 3)",
    paper="Gevorgyan, SIoU, 2022, L_box; Λ is 1 − 2 sin²(arcsin(Δy/ρ) − π/4) without its arcsin; θ = 4",
)
def siou(pred, target, *, theta=4):
    axes = boxes.axes(pred, target)
    x, y = axes.split()
    _positive("theta", theta, least=1)
    angle = _angle_cost(x, y)
    distance = sum(-torch.expm1((angle - 2) * (axis.centre / axis.hull).square()) for axis in (x, y))
    shape = sum((-torch.expm1(-_relative_growth(axis))) ** theta for axis in (x, y))
    return boxes.areas(axes).missed + (distance + shape) / 2


@loss("alpha_iou", label="α-IoU", formula="1 − IoU^α", range="[0, 1]", paper="He et al., Alpha-IoU, NeurIPS 2021, L_α-IoU; α = 3")
def alpha_iou(pred, target, *, alpha=3):
    return _one_minus_power(boxes.areas(boxes.axes(pred, target)).missed, alpha)


@loss(
    "alpha_giou",
    label="α-GIoU",
    formula="1 − IoU^α + (|C∖(A∪B)|/|C|)^α",
    range="[0, 2]",
    paper="He et al., Alpha-IoU, NeurIPS 2021, L_α-GIoU; α = 3",
)
def alpha_giou(pred, target, *, alpha=3):
    areas = boxes.areas(boxes.axes(pred, target))
    return _one_minus_power(areas.missed, alpha) + _power(areas.neither, alpha)


@loss(
    "alpha_diou",
    label="α-DIoU",
    formula="1 − IoU^α + (ρ²/c²)^α",
    range="[0, 2]",
    paper="He et al., Alpha-IoU, NeurIPS 2021, L_α-DIoU; α = 3",
)
def alpha_diou(pred, target, *, alpha=3):
    axes = boxes.axes(pred, target)
    return _one_minus_power(boxes.areas(axes).missed, alpha) + _power(_centre_distance(*axes.split()), alpha)


@loss(
    "wiou",
    label="WIoU v1",
    formula="exp(ρ²/c²) · (1 − IoU), c² constant in the gradient",
    range="[0, e]",
    paper="Tong et al., Wise-IoU, 2023, L_WIoUv1 (v2 and v3 need a running mean over training and are left out)",
)
def wiou(pred, target):
    axes = boxes.axes(pred, target)
    x, y = (axis._replace(hull=axis.hull.detach()) for axis in axes.split())
    return torch.exp(_centre_distance(x, y)) * boxes.areas(axes).missed


@loss(
    "mpdiou",
    label="MPDIoU",
    formula="1 − IoU + (d₁² + d₂²)/(w² + h²): distances of the two corners over the image's diagonal",
    range="[0, 3]",
    paper="Ma and Xu, MPDIoU, 2023, algorithm 2; without image_size the enclosing box stands for the image",
)
def mpdiou(pred, target, *, image_size=None):
    """`image_size`: (width, height) above 0, numbers or tensors that broadcast against the boxes (...)."""
    axes = boxes.axes(pred, target)
    x, y = axes.split()
    width, height = (x.hull, y.hull) if image_size is None else (torch.as_tensor(side).to(x.hull).expand_as(x.hull) for side in image_size)
    unit = torch.maximum(width, height).detach()
    corners = sum((side / unit).square() for side in (x.low, y.low, x.high, y.high))
    return boxes.areas(axes).missed + corners / ((width / unit).square() + (height / unit).square())


@loss(
    "inner_iou",
    label="inner IoU",
    formula="1 − IoU of both boxes scaled by a ratio about their centres",
    range="[0, 1]",
    paper="Zhang et al., Inner-IoU, 2023, L_Inner-IoU; ratio = 0.75",
)
def inner_iou(pred, target, *, ratio=0.75):
    _positive("ratio", ratio)
    return boxes.areas(boxes.joined(*(axis.scaled(ratio) for axis in boxes.axes(pred, target).split()))).missed


@loss(
    "inner_giou",
    label="inner GIoU",
    formula="1 − GIoU + IoU − inner IoU",
    range="[0, 2]",
    paper="Zhang et al., Inner-IoU, 2023, L_Inner-GIoU; ratio = 0.75",
)
def inner_giou(pred, target, *, ratio=0.75):
    return inner_iou(pred, target, ratio=ratio) + boxes.areas(boxes.axes(pred, target)).neither


@loss(
    "piou",
    label="PIoU",
    formula="1 − IoU + 1 − exp(−P²); P = mean distance of the four edges in units of the target's sides",
    range="[0, 2]",
    paper="Liu et al., Powerful-IoU, Neural Networks 2024, L_PIoU (v1)",
)
def piou(pred, target):
    axes = boxes.axes(pred, target)
    p = sum(_in_units_of_the_target(axis) for axis in axes.split()) / 4
    return boxes.areas(axes).missed - torch.expm1(-p.square())


def _coordinates(pred, target):
    return zip(columns(pred), columns(target), strict=True)


def _positive(keyword, value, least=0):
    """A keyword's value; ValueError naming it where it is not a number above 0 (or of at least `least`)."""
    if not isinstance(value, int | float) or not (value > 0 and value >= least and math.isfinite(value)):
        raise ValueError(f"{keyword} must be a number {f'of at least {least}' if least else 'above 0'}, got {value!r}")
    return value


def _tiny(values):
    return torch.finfo(values.dtype).tiny


def _centre_distance(x, y):
    """ρ²/c²: the squared distance of the centres over the squared diagonal of the enclosing box, in [0, 1)."""
    unit = torch.maximum(x.hull, y.hull).detach()  # of the size of both, so that no square over- or underflows
    diagonal = (x.hull / unit).square() + (y.hull / unit).square()
    return ((x.centre / unit).square() + (y.centre / unit).square()) / diagonal


def _aspect_angle(box):
    """atan(width / height) of xyxy boxes, in [0, π/2]; 0 for a point."""
    x1, y1, x2, y2 = columns(box)
    width, height = (x2 - x1).abs(), (y2 - y1).abs()
    unit = torch.maximum(width, height).detach()
    point = (unit == 0).to(unit.dtype)
    return torch.atan2(width / (unit + point), height / (unit + point) + point)


def _angle_cost(x, y):
    """SIoU's Λ = 2 |Δx Δy| / (Δx² + Δy²), in [0, 1]: 1 on the diagonals; 0 for equal centres."""
    width, height = x.centre.abs(), y.centre.abs()
    unit = torch.maximum(width, height).detach().clamp(min=_tiny(width))
    width, height = width / unit, height / unit
    return 2 * width * height / (width.square() + height.square()).clamp(min=_tiny(width))


def _relative_growth(axis):
    """|w − w*| / max(w, w*), in [0, 1]; 0 where both are 0."""
    growth = axis.growth.abs()
    return growth / torch.maximum(axis.first, axis.second).clamp(min=_tiny(growth))


def _power(share, alpha):
    """share^α of a number in [0, 1], with a finite slope at 0 for α below 1 too."""
    return torch.where(share > 0, share.clamp(min=_tiny(share)) ** _positive("alpha", alpha), 0)


def _one_minus_power(missed, alpha):
    """1 − (1 − missed)^α without loss of digits near missed = 0."""
    return -torch.expm1(_positive("alpha", alpha) * torch.log1p(-missed.clamp(max=1 - torch.finfo(missed.dtype).eps)))


def _in_units_of_the_target(axis):
    """The distances of both edges over the target's length, held at 40: further away exp(−P²) is 0 to the last digit."""
    length = axis.second.clamp(min=_tiny(axis.second))
    return torch.minimum(axis.low.abs() + axis.high.abs(), 40 * length) / length

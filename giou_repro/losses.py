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


@dataclass(frozen=True)
class Loss:
    """A registered loss; call it as ``LOSSES["giou"](pred, target)``.

    ``space`` is "boxes" for a loss about overlap, which needs decoded xyxy boxes, and "coordinates" for one that takes differences of
    whatever encoding the caller regresses.
    """

    name: str
    label: str
    function: Callable
    space: str

    def __call__(self, pred, target):
        """The loss (...) of each predicted box (..., 4), in the prediction's dtype (float32 for integers).

        Raises TypeError where an argument is not a tensor, ValueError where shapes are not (..., 4) or do not broadcast, or where a
        user's function does not return one value a box.
        """
        for name, box in (("pred", pred), ("target", target)):
            if not isinstance(box, torch.Tensor):
                raise TypeError(f"{self.name}: {name} must be a torch tensor of boxes (..., 4), got {type(box).__name__}")
            if box.ndim == 0 or box.shape[-1] != 4:
                raise ValueError(f"{self.name}: {name} must have shape (..., 4), got {tuple(box.shape)}")
        try:
            shape = torch.broadcast_shapes(pred.shape, target.shape)[:-1]
        except RuntimeError:
            raise ValueError(f"{self.name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} do not broadcast") from None
        value = self.function(boxes.at_least_float32(pred), boxes.at_least_float32(target))
        if value.shape != shape:
            raise ValueError(f"{self.name}: expected one loss a box, shape {tuple(shape)}, but the function returned {tuple(value.shape)}")
        return value.to(pred.dtype) if pred.is_floating_point() else value


LOSSES: dict[str, Loss] = {}


def loss(name, *, label=None, space="boxes"):
    """Register the decorated function in LOSSES under `name` and return it unchanged.

    `label` is what figures show, by default the name. `space` is "boxes" (the function is about overlap) or "coordinates".
    Registering a name again replaces it, so that a notebook cell can be run twice; the names that come with the package are kept.
    Raises ValueError for a name of the package, a name that is not an identifier, or an unknown space.
    """
    if not name.isidentifier():
        raise ValueError(f"a loss name must be an identifier such as 'my_loss', got {name!r}")
    if space not in SPACES:
        raise ValueError(f"loss {name!r}: space must be one of {SPACES}, got {space!r}")

    def register(function):
        if name in LOSSES and LOSSES[name].function.__module__ == __name__ != function.__module__:
            raise ValueError(f"{name!r} is a loss of the package; give yours another name")
        LOSSES[name] = Loss(name, label or name, function, space)
        return function

    return register


def select(losses):
    """The registered names of `losses`: a list, or comma-separated text, of names and ``module:function`` pairs.

    A module is imported from the current folder or the Python path; a function in it without ``@loss`` is registered under its own name.
    Raises ValueError for a name that is not known, and names the closest one.
    """
    names = losses.split(",") if isinstance(losses, str) else losses
    selected = [_import_loss(name.strip()) if ":" in name else _known(name.strip()) for name in names]
    if not selected:
        raise ValueError(f"no loss given; the losses are {', '.join(LOSSES)}")
    return list(dict.fromkeys(selected))


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


@loss("l1", label="ℓ1", space="coordinates")
def l1(pred, target):
    """Sum of absolute differences, Σ|pᵢ − tᵢ|, in [0, ∞)."""
    return sum((p - t).abs() for p, t in zip(columns(pred), columns(target), strict=True))


@loss("l2", label="ℓ2", space="coordinates")
def l2(pred, target):
    """Sum of squared differences, Σ(pᵢ − tᵢ)², in [0, ∞): the MSE of the paper's tables, up to its factor."""
    return sum((p - t).square() for p, t in zip(columns(pred), columns(target), strict=True))


@loss("smooth_l1", label="smooth ℓ1", space="coordinates")
def smooth_l1(pred, target):
    """Σ dᵢ²/2 where |dᵢ| < 1, else |dᵢ| − 1/2, in [0, ∞). Girshick, Fast R-CNN, ICCV 2015, equation 3."""
    distances = [(p - t).abs() for p, t in zip(columns(pred), columns(target), strict=True)]
    return sum(torch.where(d < 1, d.square() / 2, d - 0.5) for d in distances)


@loss("iou", label="IoU")
def iou(pred, target):
    """1 − IoU, in [0, 1]. Rezatofighi et al., CVPR 2019, algorithm 2."""
    return 1 - boxes.iou(pred, target)


@loss("iou_log", label="−ln IoU")
def iou_log(pred, target):
    """−ln IoU, in [0, −ln 1e-7 ≈ 16.1]: IoU is held at 1e-7 or more. Yu et al., UnitBox, ACM MM 2016, equation 2."""
    return -boxes.iou(pred, target).clamp(min=1e-7).log()


@loss("giou", label="GIoU")
def giou(pred, target):
    """1 − GIoU, in [0, 2]. Rezatofighi et al., CVPR 2019, algorithm 2."""
    return 1 - boxes.giou(pred, target)


@loss("diou", label="DIoU")
def diou(pred, target):
    """1 − IoU + ρ²/c², in [0, 2]: centre distance over the enclosing box's diagonal. Zheng et al., AAAI 2020, equation 7."""
    return 1 - boxes.iou(pred, target) + _centre_distance(pred, target)


@loss("ciou", label="CIoU")
def ciou(pred, target):
    """DIoU + α·v, with v = 4/π² (atan(w*/h*) − atan(w/h))² and α = v / (1 − IoU + v + 1e-7) held constant in the gradient.

    Zheng et al., AAAI 2020, equations 8 to 11; α's 1e-7 is that of the authors' code.
    """
    overlap = boxes.iou(pred, target)
    v = 4 / math.pi**2 * (_aspect_angle(target) - _aspect_angle(pred)).square()
    alpha = (v / (1 - overlap + v + 1e-7)).detach()
    return 1 - overlap + _centre_distance(pred, target) + alpha * v


def _centre_distance(pred, target):
    """Squared distance of the centres over the squared diagonal of the enclosing box, in [0, 1); 0 for one and the same point."""
    px1, py1, px2, py2 = columns(pred)
    tx1, ty1, tx2, ty2 = columns(target)
    width, height = boxes.enclosing_size(pred, target)
    unit = torch.maximum(width, height).detach()
    unit = unit + (unit == 0).to(unit.dtype)
    x, y = (px1 - tx1 + px2 - tx2) / 2 / unit, (py1 - ty1 + py2 - ty2) / 2 / unit
    diagonal = (width / unit).square() + (height / unit).square()
    return (x.square() + y.square()) / diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny)


def _aspect_angle(box):
    """atan(width / height) of xyxy boxes, in [0, π/2]; 0 for a point."""
    x1, y1, x2, y2 = columns(box)
    width, height = (x2 - x1).abs(), (y2 - y1).abs()
    unit = torch.maximum(width, height).detach()
    point = (unit == 0).to(unit.dtype)
    return torch.atan2(width / (unit + point), height / (unit + point) + point)

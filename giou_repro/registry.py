"""LOSSES, the table of losses that every experiment walks over: the functions of `losses`, and a user's own.

    @loss("mine", label="Mine")
    def mine(pred, target):
        return 1 - boxes.iou(pred, target) ** 2

and it is in LOSSES, hence in every notebook, figure and simulation. On a command line it is ``my_module:mine``.
"""

import importlib
import inspect
import math
import numbers
import re
import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from giou_repro import _fast, boxes, losses
from giou_repro.spelling import unknown

SPACES = ("boxes", "coordinates")
REDUCTIONS = ("none", "mean", "sum")
KEPT = (torch.float64, torch.float32, torch.bfloat16)  # the predictions' dtypes that can hold any loss


@dataclass(frozen=True)
class Loss:
    """A registered loss; call it as ``LOSSES["giou"](pred, target)``.

    ``space`` is "boxes" for a loss about overlap, which needs decoded xyxy boxes, and "coordinates" for one that takes
    differences of whatever encoding the caller regresses. ``formula``, ``range`` and ``paper`` are what ``giou-repro
    losses`` prints.
    """

    name: str
    label: str
    function: Callable
    space: str
    formula: str = ""
    range: str = ""
    paper: str = ""

    @property
    def __name__(self):  # by which torch calls a function
        return self.name

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: str = "none",
        avg_factor: float | Tensor | None = None,
        box_format: str = "xyxy",
        *,
        invalid: str = "sort",
        **options,
    ) -> Tensor:
        """The loss (...) of each predicted box (..., 4), in the prediction's dtype; for integers and for float16, whose
        numbers end at 65,504, in the default one, or float32 where that is shorter.

        `weight` multiplies it: one a box (...), or one a coordinate (..., 4), of which an overlap loss takes the mean.
        `reduction` is "none", "sum", or "mean", which divides the sum by `avg_factor`, by default the number of boxes,
        whatever they weigh; the sum and the mean of no boxes are 0, with a gradient. `box_format` is "xyxy", "xywh" or
        "cxcywh"; a coordinate loss compares boxes as they are given. Targets (n, 4) that look like another format are
        told of, once.

        Half precision is computed in float32. A gradient beyond the range of the prediction's dtype is infinite, as
        everywhere in torch, so that a GradScaler sees it. torchvision's BoundingBoxes are compared as xyxy, whatever
        format they name. `invalid` says what is done with flipped predictions, see `boxes.repair`; coordinate losses
        take them as they are. "raise" looks at the values, so it cannot be traced; all else can. `options` are the
        loss's own keywords, as ``image_size`` of mpdiou.

        Raises TypeError where an argument is not a tensor, ValueError where shapes are not (..., 4) or do not
        broadcast, where a keyword's value is not one of the above, or where a user's function does not return one value
        a box.
        """
        if (invalid, reduction, box_format) != ("sort", "none", "xyxy"):
            self._check_keywords(invalid=invalid, reduction=reduction, box_format=box_format)
        dtype = getattr(pred, "dtype", None)
        if self.space == "boxes":
            _compare_with_format(target, box_format)
            if box_format != "xyxy":
                pred, target = (boxes.convert(box, box_format, "xyxy") for box in (pred, target))
        names = f"{self.name}: pred", f"{self.name}: target"
        if isinstance(pred, tuple) or isinstance(target, tuple):  # columns are for functions of a loss
            pred, target = map(boxes.checked, (pred, target), names)
        box, goal = boxes.comparable(pred, target, names)
        if invalid != "sort" and self.space == "boxes":
            box = boxes.clamped(box) if invalid == "clamp" else boxes.repair(box, invalid)[0]
        value = self._of_each(box, goal, options)
        self._check_value(value, box, goal)
        if weight is not None:
            value = self._weighted(value, weight, box, goal, options)
        if reduction != "none" or avg_factor is not None:
            value = _reduced(value, reduction, avg_factor)
        return value.to(dtype if dtype in KEPT else torch.promote_types(torch.get_default_dtype(), torch.float32))

    def _check_keywords(self, **given):
        for keyword, value in given.items():
            if value not in KEYWORDS[keyword]:
                raise ValueError(f"{self.name}: {keyword} must be one of {', '.join(KEYWORDS[keyword])}, got {value!r}")

    def _weighted(self, value, weight, box, goal, options):
        if isinstance(weight, Tensor) and weight.shape == value.shape:
            return value * weight
        if not isinstance(weight, Tensor) or weight.shape != (*value.shape, 4):
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            expected = f"a tensor of shape {tuple(value.shape)} or {(*value.shape, 4)}"
            raise ValueError(f"{self.name}: weight must be {expected}, got {got}")
        if self.space == "boxes":
            return value * weight.mean(-1)
        alone = torch.eye(4, dtype=torch.bool, device=box.device)  # the loss of each coordinate where the others agree
        each = (self._of_each(torch.where(one, box, goal), goal, options) for one in alone)
        return sum(part * factor for part, factor in zip(each, weight.unbind(-1), strict=True))

    def _of_each(self, box, goal, options):
        if _is_packaged(self.function) and not options:  # treats each box on its own, hence blocks of them too
            return _fast.in_blocks(self.function, box, goal)
        before = _versions(box, goal)
        value = self.function(box, goal, **options)
        if _versions(box, goal) != before:
            remedy = "work on copies, as in pred - target"
            raise ValueError(f"{self.name}: the function changes its arguments in place; {remedy}")
        return value

    def _check_value(self, value, box, goal):
        shape = box.shape[:-1] if box.shape == goal.shape else torch.broadcast_shapes(box.shape, goal.shape)[:-1]
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = f"one loss a box, a tensor of shape {tuple(shape)}"
            raise ValueError(f"{self.name}: expected {expected}, but the function returned {got}")
        if box.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            reason = "the result does not depend on pred by torch operations (detach, item or numpy?)"
            raise ValueError(f"{self.name}: {reason}: it has no gradient")


KEYWORDS = {"invalid": boxes.POLICIES, "reduction": REDUCTIONS, "box_format": boxes.FORMATS}
TOLD = set()  # the formats of boxes whose targets need not be looked at any more

LOSSES: dict[str, Loss] = {}


def loss(name: str, *, label=None, space="boxes", formula="", range="", paper="") -> Callable[[Callable], Callable]:
    """Register the decorated function in LOSSES under `name` and return it unchanged.

    `label` is what figures show, by default the name. `space` is "boxes" (the function is about overlap) or
    "coordinates". `formula`, `range` and `paper` are for the list of losses. Registering a name again replaces it, so
    that a notebook cell can be run twice; the names that come with the package are kept. Raises ValueError for a name
    of the package, a name that is not an identifier, or an unknown space.
    """
    if not isinstance(name, str):
        raise TypeError('write @loss("name") above the function, with a name')
    if not name.isidentifier():
        raise ValueError(f"a loss name must be an identifier such as 'my_loss', got {name!r}")
    if space not in SPACES:
        raise ValueError(f"loss {name!r}: space must be one of {SPACES}, got {space!r}")

    def register(function):
        if not callable(function) or not isinstance(function, Hashable):
            remedy = "a function, or an object with __call__ that can be hashed, such as a @dataclass(frozen=True)"
            raise TypeError(f"loss {name!r} must be {remedy}, got {type(function).__name__}")
        if name in LOSSES and _is_packaged(LOSSES[name].function) and not _is_packaged(function):
            raise ValueError(f"{name!r} is a loss of the package; give yours another name")
        shown = str(label or name)
        shown = f"loss {shown}" if shown.startswith("_") else shown  # legends leave out what begins with _
        LOSSES[name] = Loss(name, shown, function, space, formula, range, paper)
        return function

    return register


def select(losses: str | Sequence[str]) -> list[str]:
    """The registered names of `losses`: a list, or comma-separated text, of names and ``module:function`` pairs.

    A module is imported from the current folder or the Python path; a function in it without ``@loss`` is registered
    under its own name. Raises ValueError for a name that is not known, and names the closest one.
    """
    names = losses.split(",") if isinstance(losses, str) else losses
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"losses must be a list of names or comma-separated text, got {losses!r}")
    selected = [_import_loss(name) if ":" in name else name for name in map(str.strip, names)]
    if not selected:
        raise ValueError(f"no loss given; the losses are {', '.join(LOSSES)}")
    for name in selected:
        if name not in LOSSES:
            raise ValueError(f"{unknown('loss', name, LOSSES)}; your own is my_module:my_function")
    return list(dict.fromkeys(selected))


def label(name: str) -> str:
    """What figures and sentences call a loss, or a sum such as "5l1 + 2giou": its label, or its name where no such loss
    is registered, as in a table made elsewhere."""
    if name in LOSSES:
        return LOSSES[name].label
    parts = [re.fullmatch(r"([\d.]+)(\D\w*)", part) for part in name.split(" + ")]
    return " + ".join(f"{part[1]} {label(part[2])}" for part in parts) if all(parts) else name


def table(markdown: bool = False) -> str:
    """The registered losses with formula, range, space and paper, as text or as a Markdown table."""
    if markdown:
        cells = [(f"`{e.name}`", e.formula, e.range, e.space, e.paper) for e in LOSSES.values()]
        rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in cells]
        return "\n".join(["| loss | formula | range | space | paper |", "|---|---|---|---|---|", *rows]) + "\n"
    return "".join(f"{e.name:<12}{e.space:<13}{e.range:<11}{e.formula}\n{'':<36}{e.paper}\n" for e in LOSSES.values())


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
        where = "in the current folder or on the Python path"
        raise ValueError(f"loss {reference!r}: no module {module_name!r} {where}") from None
    function = getattr(module, attribute, None)
    for name, entry in LOSSES.items():
        if entry.function is function or (name == attribute and entry.function.__module__ == module_name):
            return name
    if not callable(function):
        raise ValueError(f"loss {reference!r}: module {module_name!r} has no function {attribute!r}")
    loss(attribute)(function)
    return attribute


def _compare_with_format(target, box_format):
    """Warn, once, where the first targets look like another format than `box_format`: many of xyxy are flipped, or none
    of eight or more others is. Beyond the CPU, where a look has to wait for the device, one call is looked at."""
    if box_format in TOLD or type(target) is not Tensor or target.ndim != 2 or target.shape[1] != 4:
        return
    if target.is_meta or not len(target) or _fast.is_traced():
        return
    if not target.is_cpu:
        TOLD.add(box_format)
    few = target[:12].tolist()
    ordered = sum([(x2 >= x1) + (y2 >= y1) for x1, y1, x2, y2 in few])
    if ordered <= 1.5 * len(few) if box_format == "xyxy" else len(few) >= 8 and ordered == 2 * len(few):
        TOLD.add(box_format)
        other = ("xywh or cxcywh", 'box_format="cxcywh"') if box_format == "xyxy" else ("xyxy", 'box_format="xyxy"')
        warnings.warn(f"targets read as {box_format} look like {other[0]}: name it, as {other[1]}", stacklevel=3)


def _reduced(value, reduction, avg_factor):
    if avg_factor is None:
        return value.sum() / max(value.numel(), 1) if reduction == "mean" else value.sum()
    if reduction != "mean":
        raise ValueError(f'avg_factor divides where reduction is "mean", not {reduction!r}')
    if isinstance(avg_factor, Tensor):
        return value.sum() / avg_factor.clamp(min=boxes.tiny(value))
    if not isinstance(avg_factor, numbers.Real) or not 0 <= avg_factor < math.inf:
        raise ValueError(f"avg_factor must be a number of at least 0, got {avg_factor!r}")
    return value.sum() / max(avg_factor, boxes.tiny(value))


def _versions(*tensors):
    """How often each tensor was changed in place; None where torch does not count."""
    counted = not torch.compiler.is_compiling() and not any(tensor.is_inference() for tensor in tensors)
    return [tensor._version for tensor in tensors] if counted else None


def _is_packaged(function):
    return function.__module__ == losses.__name__


def _described(function):
    """What the docstring of a loss says: the formula, its first paragraph, and ``label: …``, ``range: …`` and so on."""
    text = inspect.getdoc(function) or ""
    fields = dict(re.findall(r"^(label|range|space|paper): (.+(?:\n +.+)*)", text, re.MULTILINE))
    return {key: " ".join(value.split()) for key, value in (fields | {"formula": text.partition("\n\n")[0]}).items()}


for _name, _function in vars(losses).items():
    if inspect.isfunction(_function) and _is_packaged(_function) and not _name.startswith("_"):
        loss(_name, **_described(_function))(_function)

"""LOSSES, the table of losses that every experiment walks over: the functions of `losses`, and a user's own.

    @loss("mine", label="Mine")
    def mine(pred, target):
        return 1 - boxes.iou(pred, target) ** 2

and it is in LOSSES, hence in every notebook, figure and simulation. On a command line it is ``my_module:mine``.
"""

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from giou_repro import _fast, boxes, losses
from giou_repro.spelling import unknown

SPACES = ("boxes", "coordinates")


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

    def __call__(self, pred: Tensor, target: Tensor, *, invalid: str = "sort", **options) -> Tensor:
        """The loss (...) of each predicted box (..., 4), in the prediction's dtype (the default one for integers).

        Half precision is computed in float32, and a value or gradient beyond the half's range becomes its largest
        number. `invalid` says what is done with flipped predictions, see `boxes.repair`; coordinate losses take them as
        they are. `options` are the loss's own keywords, as ``image_size`` of mpdiou. Raises TypeError where an argument
        is not a tensor, ValueError where shapes are not (..., 4) or do not broadcast, or where a user's function does
        not return one value a box.
        """
        shape = self._checked_shape(pred, target)
        if invalid not in boxes.POLICIES:
            raise ValueError(f"{self.name}: invalid must be one of {', '.join(boxes.POLICIES)}, got {invalid!r}")
        box, goal = boxes.comparable(pred, target)
        for wide, given in ((box, pred), (goal, target)):
            if wide is not given and wide.requires_grad:
                wide.register_hook(lambda gradient, dtype=given.dtype: _within(gradient, dtype))
        if invalid != "sort" and self.space == "boxes":
            box, _ = boxes.repair(box, invalid)
        value = self._of_each(box, goal, options)
        self._check_value(value, shape, box)
        dtype = pred.dtype if pred.is_floating_point() else torch.get_default_dtype()
        return value if value.dtype == dtype else (_within(value, dtype).detach() + (value - value.detach())).to(dtype)

    def _of_each(self, box, goal, options):
        if _is_packaged(self.function) and not options:  # treats each box on its own, hence blocks of them too
            return _fast.in_blocks(self.function, box, goal)
        before = _versions(box, goal)
        value = self.function(box, goal, **options)
        if _versions(box, goal) != before:
            remedy = "work on copies, as in pred - target"
            raise ValueError(f"{self.name}: the function changes its arguments in place; {remedy}")
        return value

    def _check_value(self, value, shape, box):
        if not isinstance(value, torch.Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            expected = f"one loss a box, a tensor of shape {tuple(shape)}"
            raise ValueError(f"{self.name}: expected {expected}, but the function returned {got}")
        if box.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            reason = "the result does not depend on pred by torch operations (detach, item or numpy?)"
            raise ValueError(f"{self.name}: {reason}: it has no gradient")

    def _checked_shape(self, pred, target):
        for name, box in (("pred", pred), ("target", target)):
            if not isinstance(box, torch.Tensor):
                raise TypeError(f"{self.name}: {name} must be a torch tensor (..., 4), got {type(box).__name__}")
            if box.ndim == 0 or box.shape[-1] != 4:
                raise ValueError(f"{self.name}: {name} must have shape (..., 4), got {tuple(box.shape)}")
        if pred.shape == target.shape:
            return pred.shape[:-1]
        try:
            return torch.broadcast_shapes(pred.shape, target.shape)[:-1]
        except RuntimeError:
            shapes = f"pred {tuple(pred.shape)} and target {tuple(target.shape)}"
            raise ValueError(f"{self.name}: {shapes} do not broadcast") from None


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
        if name in LOSSES and _is_packaged(LOSSES[name].function) and not _is_packaged(function):
            raise ValueError(f"{name!r} is a loss of the package; give yours another name")
        LOSSES[name] = Loss(name, label or name, function, space, formula, range, paper)
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
    selected = [_import_loss(name.strip()) if ":" in name else _known(name.strip()) for name in names]
    if not selected:
        raise ValueError(f"no loss given; the losses are {', '.join(LOSSES)}")
    return list(dict.fromkeys(selected))


def label(name: str) -> str:
    """What figures and sentences call a loss: its label, or its name where no such loss is registered, as in a table
    made elsewhere."""
    return LOSSES[name].label if name in LOSSES else name


def table(markdown: bool = False) -> str:
    """The registered losses with formula, range, space and paper, as text or as a Markdown table."""
    if markdown:
        cells = [(f"`{e.name}`", e.formula, e.range, e.space, e.paper) for e in LOSSES.values()]
        rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in cells]
        return "\n".join(["| loss | formula | range | space | paper |", "|---|---|---|---|---|", *rows]) + "\n"
    return "".join(f"{e.name:<12}{e.space:<13}{e.range:<11}{e.formula}\n{'':<36}{e.paper}\n" for e in LOSSES.values())


def _known(name):
    if name in LOSSES:
        return name
    raise ValueError(f"{unknown('loss', name, LOSSES)}; your own is my_module:my_function")


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


def _versions(*tensors):
    """How often each tensor was changed in place; None where torch does not count."""
    counted = not torch.compiler.is_compiling() and not any(tensor.is_inference() for tensor in tensors)
    return [tensor._version for tensor in tensors] if counted else None


def _within(values, dtype):
    """`values` held within the range of a narrower dtype."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else math.inf
    return values.clamp(-largest, largest)


def _is_packaged(function):
    return function.__module__ == losses.__name__


def _described(function):
    """What the docstring of a loss says: the formula, its first paragraph, and ``label: …``, ``range: …``, ``paper:
    …``."""
    text = inspect.getdoc(function) or ""
    fields = dict(re.findall(r"^(label|range|paper): (.+(?:\n +.+)*)", text, re.MULTILINE))
    return {key: " ".join(value.split()) for key, value in (fields | {"formula": text.partition("\n\n")[0]}).items()}


for _name, _function in vars(losses).items():
    if inspect.isfunction(_function) and _is_packaged(_function) and not _name.startswith("_"):
        loss(_name, space=getattr(_function, "space", "boxes"), **_described(_function))(_function)

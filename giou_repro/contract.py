"""What a call of any loss takes and checks: boxes, weights, a reduction, the boxes' format."""

import collections
import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from giou_repro import _fast, boxes, losses

REDUCTIONS = ("none", "mean", "sum")
KEPT = (torch.float64, torch.float32, torch.bfloat16)  # the predictions' dtypes that can hold any loss
KEYWORDS = {"invalid": boxes.POLICIES, "reduction": REDUCTIONS, "box_format": boxes.FORMATS}
LOOKS = 100  # calls whose targets are looked at, of each format
LOOKED = collections.Counter()


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

    @property
    def parts(self) -> tuple:
        """(weight, loss) of each term of a sum; (1, itself) of any other loss."""
        return ((1, self),)

    @property
    def keywords(self) -> set[str]:
        """The names of the loss's own keywords."""
        return set(getattr(self.function, "__kwdefaults__", None) or {})

    def of(self, encoded: tuple, decoded: tuple, **options) -> Tensor:
        """The loss (...) of each box where the caller regresses an encoding: `encoded` and `decoded` are (pred, target)
        each, and each term of a sum takes those of its own space."""
        return self(*(encoded if self.space == "coordinates" else decoded), **options)

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
        "cxcywh"; a coordinate loss compares boxes as they are given. Where targets (n, 4) of the first 100 calls look
        like another format, a warning says so, once.

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
        if weight is not None:
            value = self._weighted(value, weight, box, goal, options)
        if reduction != "none" or avg_factor is not None:
            value = _reduced(value, reduction, avg_factor)
        kept = dtype if dtype in KEPT else torch.promote_types(torch.get_default_dtype(), torch.float32)
        return value if value.dtype == kept else value.to(kept)  # where it is, .to takes a microsecond

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
        if is_packaged(self.function) and not options:  # treats each box on its own, hence blocks of them too
            return _fast.in_blocks(self.function, box, goal)
        before = _versions(box, goal)
        value = self.function(box, goal, **options)
        if _versions(box, goal) != before:
            remedy = "work on copies, as in pred - target"
            raise ValueError(f"{self.name}: the function changes its arguments in place; {remedy}")
        self._check_value(value, box, goal)
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


@dataclass(frozen=True)
class Sum:
    """The function of a weighted sum: each term on the same boxes."""

    parts: tuple[tuple[float, Loss], ...]

    def __call__(self, pred, target):
        return sum(weight * part.function(pred, target) for weight, part in self.parts)


@dataclass(frozen=True)
class SumLoss(Loss):
    """A weighted sum of losses, called as any. Its space is "both" where its terms are of both: "boxes" terms take
    boxes as xyxy, "coordinates" terms compare them as they are given."""

    @property
    def parts(self):
        return self.function.parts

    @property
    def keywords(self):
        return set().union(*(part.keywords for _, part in self.parts))

    def of(self, encoded, decoded, **options):
        return self._sum(lambda part, own: part.of(encoded, decoded, **own), options)

    def __call__(self, pred, target, weight=None, reduction="none", avg_factor=None, box_format="xyxy", **options):
        self._check_keywords(reduction=reduction)
        value = self._sum(lambda part, own: part(pred, target, weight, box_format=box_format, **own), options)
        return value if reduction == "none" and avg_factor is None else _reduced(value, reduction, avg_factor)

    def _sum(self, value, options):
        """The terms' values, each with the options that it takes; of unknown ones each term complains."""
        known = self.keywords
        own = ({k: v for k, v in options.items() if k in part.keywords or k not in known} for _, part in self.parts)
        return sum(weight * value(part, each) for (weight, part), each in zip(self.parts, own, strict=True))


def _compare_with_format(target, box_format):
    """Warn, once, where the first targets look like another format than `box_format`: many of xyxy are flipped, or none
    of eight or more others is. A look takes as long as several operations, so only the first calls are looked at, and
    one beyond the CPU, where it has to wait for the device."""
    if torch.compiler.is_compiling() or LOOKED[box_format] >= LOOKS:  # compiled code must not depend on the count
        return
    if type(target) is not Tensor or target.ndim != 2 or target.shape[1] != 4 or not len(target):
        return
    if target.is_meta or _fast.is_traced():
        return
    LOOKED[box_format] += 1 if target.is_cpu else LOOKS
    few = target[:12].tolist()
    ordered = sum([(x2 >= x1) + (y2 >= y1) for x1, y1, x2, y2 in few])
    if ordered <= 1.5 * len(few) if box_format == "xyxy" else len(few) >= 8 and ordered == 2 * len(few):
        LOOKED[box_format] = LOOKS
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


def is_packaged(function) -> bool:
    """Whether a function is a loss of the package."""
    return function.__module__ == losses.__name__

"""What makes the geometry fast: layouts for processor and compiler, and blocks that stay in the caches.

Nothing here changes a value by more than rounding, and nothing looks at one where a tracer looks on: all of it can be
traced.
"""

import functools
import math

import torch

PAIRS_PER_TILE = 2**16  # without a gradient: what one operation reads and writes stays in the caches
FEW_BOXES = 1_000  # up to which time goes by the number of operations, not of boxes
BOXES_PER_BLOCK = 32_000  # with one, where much more is kept


def along_axes(function, a, b):
    """The results of ``function(a1, a2, b1, b2)`` on the intervals of two boxes (..., 4) or of their columns: each a
    pair, along x and along y. With both in one tensor there are half as many operations, which takes half as long for
    few boxes; compiled code, which fuses them, is faster without.
    """
    if isinstance(a, tuple) or torch.compiler.is_compiling():
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = unbind(a), unbind(b)
        return tuple(zip(function(ax1, ax2, bx1, bx2), function(ay1, ay2, by1, by2), strict=True))
    if a.shape == b.shape and a.numel() <= 4 * FEW_BOXES:
        return [result.unbind(-1) for result in function(*a.chunk(2, -1), *b.chunk(2, -1))]
    rank = max(a.ndim, b.ndim)
    ranked = (box if box.ndim == rank else box[(None,) * (rank - box.ndim)] for box in (a, b))
    # far faster than to transpose by contiguous()
    (a1, a2), (b1, b2) = (torch.stack(box.unbind(-1)).chunk(2) for box in ranked)
    return [result.unbind(-rank) for result in function(a1, a2, b1, b2)]


def stacked(*parts):
    """Tensors (...) as one, (parts, ...), in a list: one operation then serves all. They themselves where their shapes
    differ, and where code is compiled."""
    if torch.compiler.is_compiling() or len({part.shape for part in parts}) > 1:
        return parts
    return [torch.stack(parts)]


def unstacked(results):
    """What was made of each of the parts that `stacked` took."""
    first, *others = results
    return (first, *others) if others else first.unbind(0)


def unbind(box):
    """The four columns (...) of boxes (..., 4); columns as they are."""
    if isinstance(box, tuple):
        return box
    # an export runs without this package, and torch.func knows no derivative of _to_rows
    plainly = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not is_transformed()
    if plainly and box.device.type == "cpu" and box.stride(-1) == 1:
        return _to_rows(box).unbind(0)
    return box.unbind(-1)


@torch.library.custom_op("giou_repro::to_rows", mutates_args=())
def _to_rows(box: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) as (4, ...), contiguous. A compiler would merge this into what follows, and then read every fourth
    number in a loop without vectors: several times slower than the copy that an operation of its own makes."""
    return torch.stack(box.unbind(-1))


@torch.library.custom_op("giou_repro::from_rows", mutates_args=())
def _from_rows(rows: torch.Tensor) -> torch.Tensor:
    box = rows.new_empty((*rows.shape[1:], 4))
    for k, row in enumerate(rows):  # far faster than to stack them
        box[..., k] = row
    return box


_to_rows.register_fake(lambda box: torch.stack(box.unbind(-1)))
_from_rows.register_fake(lambda rows: torch.stack(rows.unbind(0), -1))
_to_rows.register_autograd(lambda ctx, gradient: _from_rows(gradient))


def in_order(low, high):
    """The two ends of an interval, the lesser first. Equal ones keep each its own gradient: a box without width can
    grow. On a CPU a look at whether any is flipped takes less time than to sort them."""
    if torch.compiler.is_compiling():  # twice as fast without truth values to keep; rounds flipped ends once more
        excess = torch.relu(low - high)
        return low - excess, high + excess
    if least(high - low) >= 0:
        return low, high
    flipped = torch.sign((low - high).detach()).relu_()  # faster than truth values and torch.where
    return torch.lerp(low, high, flipped), torch.lerp(high, low, flipped)


def least(*parts):
    """The least number in all tensors, where a look does not wait for a device and nothing traces; else −∞."""
    seen = all(type(part) is torch.Tensor and part.is_cpu and part.numel() for part in parts) and not is_traced()
    return min(part.detach().min().item() for part in parts) if seen else -math.inf


def ratio(a, b):
    """a / b. Compiled as a · (1 / b), whose derivative needs no further division, where that of a / b needs two."""
    return a * b.reciprocal() if torch.compiler.is_compiling() else a / b


def shared_length(a1, a2, b1, b2):
    """min(a2, b2) − max(a1, b1), below 0 where there is a gap.

    Of equal ends each gets half of the gradient. Where one of many boxes is asked for, interpolation by 0, ½ or 1 takes
    fewer passes than torch.minimum and its derivative, and gives the same.
    """
    if torch.compiler.is_compiling() or a1.numel() <= FEW_BOXES or not _is_tracked(a1, b1):
        return torch.minimum(a2, b2) - torch.maximum(a1, b1)
    lower, upper = (torch.sign((a - b).detach()).add_(1).mul_(0.5) for a, b in ((b1, a1), (a2, b2)))
    return torch.lerp(a2, b2, upper) - torch.lerp(a1, b1, lower)


def _is_tracked(a, b):
    return torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)


def in_blocks(function, a, b):
    """``function(a, b)`` of boxes (..., 4) that broadcast, one number a pair, where `function` treats each pair on its
    own.

    On a CPU large results are made a part at a time, so that little is held beside them; any other is computed at once.
    """
    if isinstance(a, tuple) or torch.compiler.is_compiling():
        return function(a, b)
    if a.shape == b.shape and a.numel() <= 8 * BOXES_PER_BLOCK:
        return function(a, b)
    shape = torch.broadcast_shapes(a.shape, b.shape)[:-1]
    if shape.numel() <= 2 * BOXES_PER_BLOCK or is_traced() or not a.device.type == b.device.type == "cpu":
        return function(a, b)
    keep_freed_memory()
    if _is_tracked(a, b):
        return _InBlocks.apply(function, a, b) if a.shape == b.shape and not b.requires_grad else function(a, b)
    result = a.new_empty(shape)
    _fill(result, function, *(box[(None,) * (len(shape) + 1 - box.ndim)] for box in (a, b)))
    return result


def is_traced():
    """Whether a compiler, a tracer, a transform of torch.func or forward differentiation is looking on.

    The last and make_fx are known by private names of torch alone; where these are gone, see `is_transformed`.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
        or getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0
        or getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)() > 0
    )


def is_transformed():
    """Whether a transform of torch.func is looking on, which only a private function of torch knows.

    Where that is gone every call counts as transformed: all stays right, and large batches, made at once, get slower
    and larger. Then look for its successor in ``torch.func``.
    """
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: True)()


def unwrapped(tensor):
    """What transforms of torch.func have wrapped in `tensor`; itself where nothing has."""
    functorch = torch._C._functorch
    while not torch.compiler.is_compiling() and is_transformed() and functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _fill(result, function, a, b):
    """Write function(a, b) into `result`, along its first dimension."""
    size = result[0].numel()
    rows = max(1, PAIRS_PER_TILE // size)
    for k in range(0, len(result), rows):
        parts = [box if len(box) == 1 else box[k : k + rows] for box in (a, b)]
        if size > 2 * PAIRS_PER_TILE:
            _fill(result[k], function, *(part[0] for part in parts))
        else:
            result[k : k + rows] = function(*parts)


class _InBlocks(torch.autograd.Function):
    """A loss of many boxes (..., 4), one block of rows after the other: each is differentiated while it is in the
    cache, and of what that needs only the gradient is kept. Of any function that treats each box on its own, by its
    ordinary derivative."""

    @staticmethod
    def forward(ctx, function, pred, target):
        values, gradients = [], []
        blocks = math.ceil(pred.numel() / 4 / BOXES_PER_BLOCK)
        for p, t in zip(*(box.detach().reshape(-1, 4).chunk(blocks) for box in (pred, target)), strict=True):
            with torch.enable_grad():
                value = function(p.requires_grad_(), t)
                gradients += torch.autograd.grad(value.sum(), p)
            values.append(value.detach())
        ctx.function = function
        ctx.save_for_backward(pred, target, torch.cat(gradients).view(pred.shape))
        return torch.cat(values).view(pred.shape[:-1])

    @staticmethod
    def backward(ctx, outer):
        pred, target, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a derivative of the derivative: the ordinary way
            return None, torch.autograd.grad(ctx.function(pred, target), pred, outer, create_graph=True)[0], None
        return None, outer.unsqueeze(-1) * gradient, None


@functools.cache
def keep_freed_memory():
    """Have the C library keep what is freed for the next operation.

    At first it hands every piece of more than 128 kB back to the system, and a loop that needs one again in each
    operation spends most of its time there. Once one large piece has been freed, which need not have been used, it does
    so only beyond that size.
    """
    torch.empty(30_000_000, dtype=torch.uint8, device="cpu")

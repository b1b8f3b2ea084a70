"""Geometry of axis-aligned boxes.

A box is a (..., 4) tensor in one of three formats, continuous coordinates in any unit:

- ``xyxy``: left, top, right, bottom edge (x1, y1, x2, y2)
- ``xywh``: left, top, width, height
- ``cxcywh``: centre, width, height

Leading dimensions broadcast: ``iou(a, b)`` of (N, 4) and (N, 4) is (N,), and ``iou(a[:, None], b[None])`` of (N, 4) and (M, 4) is (N, M).
A flipped box (x2 < x1) means the box between its corners: corners are sorted, as in the GIoU paper's algorithm 2.

Two boxes are compared axis by axis, by how far their edges are apart in units of the interval around both. All areas follow from these
shares without a difference of nearly equal numbers, for boxes from 1e-30 to 1e37 in float32 and 1e-300 to 1e307 in float64: see `Axis`.
"""

import functools
from typing import NamedTuple

import torch

POLICIES = ("sort", "clamp", "raise")
FORMATS = ("xyxy", "xywh", "cxcywh")


def columns(box):
    """Split `box` (..., 4) into its four coordinates, each (...), in float32 or better.

    Four columns given as a tuple come back as they are: a formula that begins with ``x1, y1, x2, y2 = columns(box)`` therefore works on
    tensors of boxes and on separate coordinate arrays alike, and the simulation runs it on the latter, which is several times faster.

    Raises TypeError for anything but a tensor, ValueError where the last dimension is not 4.
    """
    if isinstance(box, tuple):
        return box
    _check(box)
    box = at_least_float32(box)
    if torch.compiler.is_compiling() and box.device.type == "cpu" and box.stride(-1) == 1:
        return _Transposed.apply(box).unbind(0)
    return box.unbind(-1)


def _check(box):
    if not isinstance(box, torch.Tensor):
        raise TypeError(f"boxes must be a torch tensor (..., 4), got {type(box).__name__}; see torch.as_tensor")
    if box.ndim == 0 or box.shape[-1] != 4:
        raise ValueError(f"boxes need a last dimension of 4, got shape {tuple(box.shape)}")


class _Transposed(torch.autograd.Function):
    """Boxes (..., 4) as (4, ...), contiguous. A compiler would merge this into what follows, and then read every fourth number in a loop
    without vectors: several times slower than the copy that an operation of its own makes."""

    @staticmethod
    def forward(box):
        return _to_rows(box)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return _from_rows(gradient)


@torch.library.custom_op("giou_repro::to_rows", mutates_args=())
def _to_rows(box: torch.Tensor) -> torch.Tensor:
    return torch.stack(box.unbind(-1))


@torch.library.custom_op("giou_repro::from_rows", mutates_args=())
def _from_rows(rows: torch.Tensor) -> torch.Tensor:
    box = torch.empty((*rows.shape[1:], 4), dtype=rows.dtype)
    for k, row in enumerate(rows):  # far faster than to stack them
        box[..., k] = row
    return box


_to_rows.register_fake(lambda box: torch.stack(box.unbind(-1)))
_from_rows.register_fake(lambda rows: torch.stack(rows.unbind(0), -1))


def at_least_float32(box):
    """`box` in float32 or float64: half precision becomes float32 and integers float64, where areas neither overflow nor wrap."""
    if box.dtype in (torch.float32, torch.float64):
        return box
    return box.float() if box.is_floating_point() else box.double()


def convert(box, source, target):
    """Convert boxes (..., 4), or four columns, between the formats ``xyxy``, ``xywh`` and ``cxcywh``.

    Returns the same kind it was given. Raises ValueError for an unknown format.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown box format {name!r}; the formats are {', '.join(FORMATS)}")
    a, b, c, d = columns(box)
    if source == target:
        return box
    if source == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif source == "xywh":
        c, d = a + c, b + d
    if target == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    elif target == "xywh":
        c, d = c - a, d - b
    return (a, b, c, d) if isinstance(box, tuple) else torch.stack((a, b, c, d), -1)


def area(box):
    """Area (...) of xyxy boxes (..., 4), never negative."""
    x1, y1, x2, y2 = columns(box)
    return (x2 - x1).abs() * (y2 - y1).abs()


def enclosing(a, b):
    """The smallest xyxy box (..., 4) around both of `a` and `b`."""
    ax1, ay1, ax2, ay2 = columns(a)
    bx1, by1, bx2, by2 = columns(b)
    left = torch.minimum(torch.minimum(ax1, ax2), torch.minimum(bx1, bx2))
    top = torch.minimum(torch.minimum(ay1, ay2), torch.minimum(by1, by2))
    right = torch.maximum(torch.maximum(ax1, ax2), torch.maximum(bx1, bx2))
    bottom = torch.maximum(torch.maximum(ay1, ay2), torch.maximum(by1, by2))
    return torch.stack((left, top, right, bottom), -1)


def repair(box, policy="sort"):
    """Make flipped xyxy boxes (x2 < x1 or y2 < y1) valid; return the boxes (..., 4) and how many were flipped.

    policy "sort" exchanges the corners (the GIoU paper's algorithm 2, and what every loss here does by itself), "clamp" makes the box empty
    at its first corner, "raise" raises ValueError with the count. Gradients flow through both repairs.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    x1, y1, x2, y2 = columns(box)
    flipped = int(((x2 < x1) | (y2 < y1)).sum())
    if policy == "raise" and flipped:
        raise ValueError(f"{flipped} of {x1.numel()} boxes are flipped (x2 < x1 or y2 < y1); sort their corners, or use policy 'sort' or 'clamp'")
    if policy == "sort":
        valid = (torch.minimum(x1, x2), torch.minimum(y1, y2), torch.maximum(x1, x2), torch.maximum(y1, y2))
    elif policy == "clamp":
        valid = (x1, y1, torch.maximum(x1, x2), torch.maximum(y1, y2))
    else:
        valid = (x1, y1, x2, y2)
    return torch.stack(valid, -1), flipped


class Axis(NamedTuple):
    """Two intervals along one axis, or along both: each field is then a pair, an (x, y) tuple or a (2, ...) tensor.

    low, high: how far the first one's lower and upper edge lie beyond the second's;  first, second: their lengths;
    hull: the length of the interval around both, kept above zero;
    one, difference: of the hull, the shares of what only one of the two has (and, where they are disjoint, of the gap twice over), once as
    the sum and once as first less second;  clear: 1 − one, the share of what they have in common, and less than zero where there is a gap.
    """

    low: torch.Tensor
    high: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    hull: torch.Tensor
    one: torch.Tensor
    difference: torch.Tensor
    clear: torch.Tensor

    @property
    def centre(self):
        """How far the first one's centre lies beyond the second's."""
        return (self.low + self.high) / 2

    @property
    def growth(self):
        """The first one's length less the second's."""
        return self.first - self.second

    def split(self):
        """The x and the y `Axis` of one along both."""
        return tuple(Axis(*fields) for fields in zip(*map(_pair, self), strict=True))

    def scaled(self, ratio):
        """The same intervals, each scaled about its own centre."""
        half = ratio * (self.high - self.low) / 2  # to the last digit near equal intervals, where growth has lost some
        return _axis(self.centre - half, self.centre + half, ratio * self.first, ratio * self.second)

    def shares(self):
        """Of the interval around both: the shares of what they have in common, of what only one of them has (once as the sum and once as
        the difference, first less second), and of the gap between them. Common, sum and gap add up to 1."""
        common = torch.relu(self.clear)  # where boxes touch, its slope is 0 and that of the gap 1: they are pulled as disjoint ones
        gap = common - self.clear
        return common, self.one - 2 * gap, self.difference, gap


def axes(a, b):
    """The `Axis` along x and y of xyxy boxes (..., 4); see `Axis.split`."""
    if isinstance(a, tuple) or torch.compiler.is_compiling():
        a, b = columns(a), columns(b)
        return joined(compare(a[0], a[2], b[0], b[2]), compare(a[1], a[3], b[1], b[3]))
    rank = max(a.ndim, b.ndim)
    return compare(*_corners(a, rank), *_corners(b, rank))  # both axes in one tensor: half as many operations


def joined(x, y):
    """The `Axis` along both of one along x and one along y."""
    return Axis(*zip(x, y, strict=True))


def _pair(field):
    return field if isinstance(field, tuple) else field.unbind(0)


def _corners(box, rank):
    """The first and the second corner of boxes (..., 4), each (2, ...) of `rank` dimensions in all, contiguous."""
    if box.ndim < rank:
        box = box[(None,) * (rank - box.ndim)]
    return torch.stack(at_least_float32(box).unbind(-1)).chunk(2)  # far faster than to transpose by contiguous()


def compare(a1, a2, b1, b2):
    """The `Axis` of the interval from a1 to a2 and that from b1 to b2, each (...). Flipped ones are sorted, without a branch."""
    (a1, a2), (b1, b2) = _sorted(a1, a2), _sorted(b1, b2)
    return _axis(a1 - b1, a2 - b2, a2 - a1, b2 - b1)


def _ranked(a, b):
    """The lesser and the greater of both. Where they are equal each is half of either, and so is the gradient: as with torch's own minimum
    and maximum, which are as fast without a gradient, but compiled ones with it are several times slower."""
    if not (is_transformed() or (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))):
        return torch.minimum(a, b), torch.maximum(a, b)
    weight = (torch.sign(a - b).detach() + 1) / 2
    return torch.lerp(a, b, weight), torch.lerp(b, a, weight)


def _sorted(low, high):
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        # the same by numbers: truth values that compiled code keeps for its backward pass double its time
        flipped = torch.relu(torch.sign(low.detach() - high.detach()))
        kept = 1 - flipped
        return low * kept + high * flipped, high * kept + low * flipped
    flipped = high < low
    if not is_transformed() and flipped.device.type == "cpu" and not flipped.any():  # elsewhere a look at the values would cost more
        return low, high
    return torch.where(flipped, high, low), torch.where(flipped, low, high)


def _axis(low, high, first, second):
    apart, growth = low.abs() + high.abs(), high - low  # |growth| ≤ apart to the last digit
    hull = torch.add(second + torch.finfo(second.dtype).tiny, apart + growth, alpha=0.5)
    one = apart / hull
    return Axis(low, high, first, second, hull, one, growth / hull, 1 - one)


class Areas(NamedTuple):
    """Areas (...) of two boxes in units of their enclosing box's: in both (A∩B), in one only, and in neither (C∖(A∪B)). They add up to 1.

    For boxes `apart`, which have no area in common, `one` is no area, only positive: all that matters there is that nothing is in both.
    """

    both: torch.Tensor
    one: torch.Tensor
    neither: torch.Tensor
    apart: torch.Tensor

    @property
    def missed(self):
        """1 − IoU = (|A∪B| − |A∩B|) / |A∪B|, and 1 where nothing is in both."""
        union = self.both + self.one + torch.finfo(self.both.dtype).tiny
        return (self.one / union).masked_fill(self.apart, 1)


def areas(axes):
    """The `Areas` of two boxes from their `Axis` along x and y: sums of positive terms, none a difference of nearly equal numbers.

    An axis along which both boxes are one and the same point does not count: two equal segments have IoU 1.
    """
    common = tuple(map(torch.relu, axes.clear)) if isinstance(axes.clear, tuple) else torch.relu(axes.clear)
    pairs = map(_pair, (axes.one, axes.difference, axes.clear, common))
    (x_one, y_one), (x_difference, y_difference), (x_clear, y_clear), (x_common, y_common) = pairs
    both, corners, crossed = x_common * y_common, x_one * y_one, x_difference * y_difference
    one = torch.add(x_common * y_one + y_common * x_one, corners + crossed, alpha=0.5)
    apart = both == 0
    gaps = x_clear * y_clear * apart  # of disjoint boxes, for which the term beside it is too much by as much
    return Areas(both, one, torch.add(-gaps, corners - crossed, alpha=0.5), apart)


def iou(a, b):
    """Intersection over union (...) of xyxy boxes, in [0, 1]: |A∩B| / |A∪B|, right to the last digits however little they overlap."""
    return tiled(_iou, a, b)


def giou(a, b):
    """Generalized IoU (...) of xyxy boxes, in [-1, 1]: IoU − |C∖(A∪B)| / |C|. Rezatofighi et al., CVPR 2019, algorithm 2."""
    return tiled(_giou, a, b)


def _iou(a, b):
    both, union = _overlap(a, b)
    return both / union


def _giou(a, b):
    both, union = _overlap(a, b)
    return both / union - (1 - union)


def _overlap(a, b):
    """|A∩B| and |A∪B| (...), kept above zero, in units of the enclosing box."""
    if isinstance(a, tuple) or torch.compiler.is_compiling():
        a, b = columns(a), columns(b)
        shares = zip(_shares(a[0], a[2], b[0], b[2]), _shares(a[1], a[3], b[1], b[3]), strict=True)
    else:
        rank = max(a.ndim, b.ndim)
        shares = map(_pair, _shares(*_corners(a, rank), *_corners(b, rank)))
    both, first, second = (x * y for x, y in shares)
    return both, first + second - both + torch.finfo(both.dtype).tiny


def _shares(a1, a2, b1, b2):
    """Of the interval around two: the shares that lie in both, in the first and in the second, from the edges; 1 where all is one point."""
    (a1, a2), (b1, b2) = _sorted(a1, a2), _sorted(b1, b2)
    (left, inner_left), (inner_right, right) = _ranked(a1, b1), _ranked(a2, b2)
    common = torch.relu(inner_right - inner_left)
    hull, tiny = right - left, torch.finfo(a1.dtype).tiny
    common, whole = torch.where(hull == 0, tiny, common), hull + tiny
    return common / whole, (a2 - a1 + tiny) / whole, (b2 - b1 + tiny) / whole


TILE = 2**17  # pairs at a time: what one operation reads and writes stays in the caches


def tiled(function, a, b):
    """`function` of boxes (..., 4) that broadcast, one number a pair; large results a tile at a time, so that little is held beside them.

    That is for results without a gradient, on a CPU; any other is computed at once. `function` must treat each pair on its own.
    """
    if isinstance(a, tuple):
        return function(a, b)
    _check(a), _check(b)
    if a.dtype != b.dtype:
        a, b = at_least_float32(a), at_least_float32(b)
        a, b = (box.to(torch.promote_types(a.dtype, b.dtype)) for box in (a, b))
    shape = torch.broadcast_shapes(a.shape, b.shape)[:-1] if a.shape != b.shape else a.shape[:-1]
    tracked = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if shape.numel() <= 2 * TILE or tracked or not a.device.type == b.device.type == "cpu" or is_transformed():
        return function(a, b)
    keep_freed_memory()
    result = torch.empty(shape, dtype=at_least_float32(a[:0]).dtype)
    _fill(result, function, *(box[(None,) * (len(shape) + 1 - box.ndim)] for box in (a, b)))
    return result


@functools.cache
def keep_freed_memory():
    """Have the C library keep what is freed for the next operation.

    At first it hands every piece of more than 128 kB back to the system, and a loop that needs one again in each operation spends most of
    its time there. Once one large piece has been freed, which need not have been used, it does so only beyond that size.
    """
    torch.empty(30_000_000, dtype=torch.uint8)


def is_transformed():
    """Whether a compiler or a transform of torch.func is looking on."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _fill(result, function, a, b):
    """Write function(a, b) into `result`, along its first dimension."""
    size = result[0].numel()
    rows = max(1, TILE // size)
    for k in range(0, len(result), rows):
        parts = [box if len(box) == 1 else box[k : k + rows] for box in (a, b)]
        if size > 2 * TILE:
            _fill(result[k], function, *(part[0] for part in parts))
        else:
            result[k : k + rows] = function(*parts)

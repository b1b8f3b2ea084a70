"""Every loss against exact arithmetic (tests/oracle.py), on boxes of every kind and size, and its properties on boxes
hypothesis invents."""

import math
from fractions import Fraction

import pytest
import torch
import torchvision.ops
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mpf
from oracle import ORACLE, Pair, exact, mpdiou
from torch import tensor

from giou_repro import boxes
from giou_repro.registry import LOSSES

every_loss = pytest.mark.parametrize("name", LOSSES)
# of others a factor is held constant, by their papers' definition: test_what_the_papers_hold_constant_has_no_gradient
derivative_losses = pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("ciou", "wiou", "focal_eiou", "piou_v2")]
)
both_dtypes = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["float32", "float64"]
)


def kinds(dtype, n=25):
    """Pairs of well-scaled boxes of every kind: name → (pred, target), (n, 4) each."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high, size):
        return low + (high - low) * torch.rand(n, size, generator=generator, dtype=torch.float64)

    def drawn():
        centre, size = uniform(0, 4, 2), uniform(0.1, 3, 2)
        return torch.cat((centre - size / 2, centre + size / 2), -1)

    a, b = drawn(), drawn()
    size = (b[:, 2:] - b[:, :2]).repeat(1, 2)
    inner = torch.cat((b[:, :2] + 0.2 * size[:, :2], b[:, 2:] - 0.3 * size[:, 2:]), -1)
    point = torch.cat((a[:, :2], a[:, :2]), -1)
    pairs = {
        "random": (a, b),
        "flipped": (a[:, [2, 1, 0, 3]], b),
        "overlapping": (b + 0.2 * size * uniform(-1, 1, 4), b),
        "inside": (inner, b),
        "around": (b, inner),
        "touching": (b + size * tensor([1, 0, 1, 0]), b),
        "barely overlapping": (b + size * tensor([0.9999, 0, 0.9999, 0]), b),
        "equal": (b, b),
        "a point": (point, b),
        "of a point": (b, point),
        "two points": (point, point.flip(0)),
        "segments": (torch.cat((a[:, :3], a[:, 1:2]), -1), torch.cat((a[:, :2], a[:, :1], b[:, 3:] + 5), -1)),
    }
    return {kind: tuple(box.to(dtype) for box in pair) for kind, pair in pairs.items()}


def near(dtype, size):
    """Predictions that differ from their target by about `size` of its sides."""
    pred, target = kinds(torch.float64)["overlapping"]
    return (target + size * 5 * (pred - target)).to(dtype), target.to(dtype)


def error(name, pred, target):
    """The absolute errors of one loss and its exact values, as floats."""
    values, truths = (
        LOSSES[name](pred, target).tolist(),
        [exact(name, *pair) for pair in zip(pred.tolist(), target.tolist(), strict=True)],
    )
    return [float(abs(value - truth)) for value, truth in zip(values, truths, strict=True)], [
        float(truth) for truth in truths
    ]


def test_the_oracle_has_every_loss():
    assert set(ORACLE) == set(LOSSES)


@every_loss
@both_dtypes
def test_well_scaled_boxes_are_exact(name, dtype, bound):
    for kind, (pred, target) in kinds(dtype).items():
        errors, truths = error(name, pred, target)
        worst = max(e / max(1, truth) for e, truth in zip(errors, truths, strict=True))
        assert worst < bound, f"{kind}: {worst:.1e}"


@every_loss
@both_dtypes
def test_near_equal_boxes_are_exact(name, dtype, bound):
    for size in (1e-3, 1e-5, 1e-11):
        errors, _ = error(name, *near(dtype, size))
        assert max(errors) < bound


def exact_gradient(name, pred, target):
    """The derivative of one loss in the prediction, by central differences of the exact loss, as floats."""
    step, slopes = Fraction(1, 10**18), []
    for k in range(4):
        ahead, behind = ([Fraction(v) + sign * step * (i == k) for i, v in enumerate(pred)] for sign in (1, -1))
        slopes.append(
            float(
                (exact(name, ahead, target) - exact(name, behind, target))
                / (2 * mpf(step.numerator) / step.denominator)
            )
        )
    return slopes


@derivative_losses
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("flipped", [False, True])
def test_gradients_are_exact_near_equal_boxes_too(name, dtype, bound, flipped):
    pairs = [near(dtype, size) for size in (1e-1, 1e-2, 1e-3, 1e-4)]
    for pred, target in [*pairs, kinds(dtype)["overlapping"]]:
        moving = (pred[:, [2, 3, 0, 1]] if flipped else pred).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[name](moving, target).sum(), moving)
        truth = [exact_gradient(name, *pair) for pair in zip(moving.tolist(), target.tolist(), strict=True)]
        truth = tensor(truth, dtype=torch.float64)
        assert ((gradient - truth).abs().amax(-1) / truth.abs().amax(-1)).max() < bound


AWKWARD = [0.0, 1.0, -1.0, 2.0, 1e-30, 1e15, -1e15, 1e7, 1e7 + 1, 0.5, 3.0]


def awkward_boxes(dtype):
    """All boxes whose corners come from a few awkward coordinates (flipped, empty, huge, tiny), and 1e100 where the
    dtype has it."""
    values = [*AWKWARD, 1e100, -1e100] if dtype == torch.float64 else AWKWARD
    values = tensor(values, dtype=torch.float64)
    values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    x = torch.cartesian_prod(values, values)
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(x), (2, 20_000), generator=generator)
    return torch.stack((x[picked[0], 0], x[picked[1], 0], x[picked[0], 1], x[picked[1], 1]), -1)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_finite_input_gives_a_finite_value_and_gradient(name, dtype):
    pred = awkward_boxes(dtype)
    target = pred.flip(0)
    for other in (target, pred.clone(), target.roll(1, 0)):  # random pairs, equal ones, others
        moving = pred.clone().requires_grad_()
        value = LOSSES[name](moving, other)
        (gradient,) = torch.autograd.grad(value.double().sum(), moving)
        assert value.isfinite().all()
        assert (value >= -1e-6).all()
        if dtype == torch.float16:  # a gradient that it cannot hold is infinite, and only such a one
            wide = moving.detach().float().requires_grad_()
            expected = torch.autograd.grad(LOSSES[name](wide, other.float()).sum(), wide)[0].half()
            assert torch.equal(gradient, expected) and not gradient.isnan().any()
        else:
            assert gradient.isfinite().all()


PAIRS_MET = [  # boxes that have once broken a loss
    ([0.35027379, 0, 0.35225365, 103186.664], [-100512.828, 7135.45898, 1000, 7135.46094]),
    ([1e7, 0.1, 1, -1e5], [1e15, 0, 0.5, 2e-30]),
    ([1e15, 9.999999e-31, 1e5, 1.0000001e-30], [1, 640, 3e14, 640]),
    ([1e6, 1e6, 1e6 + 1, 1e6 + 2], [0, 0, 2, 1]),
    ([1.0000001e7, 0, -9e6, 1], [-9e6, 0.5, 1e7, 1.5]),  # flipped, and all but level
]


@every_loss
@pytest.mark.parametrize(("pred", "target"), PAIRS_MET)
def test_pairs_that_have_once_broken_a_loss(name, pred, target):
    pred, target = tensor([pred], requires_grad=True), tensor([target])
    value = LOSSES[name](pred, target)
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    assert gradient.isfinite().all()
    (worst,), (truth,) = error(name, pred.detach(), target)
    assert worst < 2e-6 * max(1, truth)


@every_loss
def test_half_precision_targets_get_gradients_too(name):
    for dtype in (torch.bfloat16, torch.float16):
        pred, target = awkward_boxes(dtype)[:4000], awkward_boxes(dtype)[4000:8000].requires_grad_()
        gradient = torch.autograd.grad(LOSSES[name](pred, target).float().sum(), target)[0]
        assert not gradient.isnan().any()
        assert dtype == torch.float16 or gradient.isfinite().all()


@every_loss
def test_integer_boxes_of_every_type(name):
    pred, target = [[3, 1, 250, 200]], [[3, 1, 250, 100]]
    expected = LOSSES[name](tensor(pred).float(), tensor(target).float())
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        value = LOSSES[name](tensor(pred, dtype=dtype), tensor(target, dtype=dtype))
        assert value.dtype == torch.get_default_dtype()
        torch.testing.assert_close(value, expected)


@every_loss
def test_half_precision_is_the_float32_value(name):
    for dtype, rounded in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        pred, target = kinds(dtype)["random"]
        assert torch.equal(LOSSES[name](pred, target), LOSSES[name](pred.float(), target.float()).to(rounded))


@derivative_losses
def test_gradient_is_the_derivative(name):
    pred, target = kinds(torch.float64)["overlapping"]
    assert torch.autograd.gradcheck(LOSSES[name], (pred.requires_grad_(), target))
    pred, target = kinds(torch.float64)["random"]
    assert torch.autograd.gradcheck(LOSSES[name], (pred.requires_grad_(), target))


def test_what_the_papers_hold_constant_has_no_gradient():
    pred, target = kinds(torch.float64)["overlapping"]
    pred.requires_grad_()
    iou, hull = boxes.iou(pred, target), boxes.enclosing(pred, target)
    diagonal = (hull[:, 2:] - hull[:, :2]).square().sum(-1)
    centre = ((pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]) / 2).square().sum(-1)
    ratio = [torch.atan((box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1])) for box in (target, pred)]
    v = 4 / math.pi**2 * (ratio[0] - ratio[1]) ** 2
    alpha = v / (1 - iou + v + 1e-7)
    size = (target[:, 2:] - target[:, :2]).repeat(1, 2)
    x = 1.3 * torch.exp(-((pred - target).abs() / size).sum(-1) / 4)
    written = {
        "ciou": LOSSES["diou"](pred, target) + alpha.detach() * v,
        "wiou": torch.exp(centre / diagonal.detach()) * (1 - iou),
        "piou_v2": 3 * x.detach() * torch.exp(-(x.detach() ** 2)) * LOSSES["piou"](pred, target),
        "focal_eiou": iou.detach().sqrt() * LOSSES["eiou"](pred, target),
    }
    for name, value in written.items():
        ours, theirs = (
            torch.autograd.grad(v.sum(), pred, retain_graph=True)[0] for v in (LOSSES[name](pred, target), value)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


coordinate = st.floats(-1e6, 1e6, allow_nan=False, width=32)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)
BOUNDS = {
    "iou": 1,
    "giou": 2,
    "diou": 2,
    "ciou": 3,
    "eiou": 4,
    "focal_eiou": 4,
    "siou": 3,
    "alpha_iou": 1,
    "alpha_giou": 2,
    "alpha_diou": 2,
}
BOUNDS |= {"iou_squared": 1, "piou_v2": 1.9, "shape_iou": 2.2, "bounded_iou": 4, "nwd": 1, "mgiou": 1}
BOUNDS |= {"wiou": math.e, "mpdiou": 3, "inner_iou": 1, "inner_giou": 2, "piou": 2, "iou_log": -math.log(1e-7)}


@given(box, box)
@settings(max_examples=300, deadline=None)
@example((0, 0, 0, 0), (0, 0, 0, 0))
@example((0, 0, 1, 1), (1, 1, 2, 2))
def test_bounds_hold_for_any_boxes(a, b):
    a, b = tensor(a, dtype=torch.float64), tensor(b, dtype=torch.float64)
    for name, highest in BOUNDS.items():
        assert -1e-12 <= LOSSES[name](a, b).item() <= highest + 1e-12, name


@given(box, box)
@settings(max_examples=200, deadline=None)
def test_symmetry_and_scale(a, b):
    a, b = tensor(a, dtype=torch.float64), tensor(b, dtype=torch.float64)
    for name in ("iou", "giou", "diou", "eiou", "siou", "inner_iou", "alpha_giou", "mgiou", "iou_squared"):
        value = LOSSES[name](a, b)
        torch.testing.assert_close(value, LOSSES[name](b, a), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(value, LOSSES[name](4 * a, 4 * b), rtol=1e-9, atol=1e-12)


@given(box, box, box)
@settings(max_examples=300, deadline=None)
def test_iou_and_giou_keep_the_triangle_inequality(a, b, c):
    a, b, c = (tensor(x, dtype=torch.float64) for x in (a, b, c))
    for name in ("iou", "giou"):
        loss = LOSSES[name]
        assert (loss(a, c) <= loss(a, b) + loss(b, c) + 1e-9).item(), name
    assert (LOSSES["giou"](a, b) >= LOSSES["iou"](a, b) - 1e-12).item()


def test_mpdiou_takes_the_images_size():
    pred, target = tensor([0.0, 0, 10, 10]), tensor([3.0, 4, 13, 14])  # both corners (3, 4) away: 2 · 25 over 30² + 40²
    iou = 42 / 158
    assert LOSSES["mpdiou"](pred, target, image_size=(30, 40)).item() == pytest.approx(1 - iou + 50 / 2500)
    assert float(mpdiou(Pair(pred.tolist(), target.tolist()), (30, 40))) == pytest.approx(1 - iou + 50 / 2500)
    many = LOSSES["mpdiou"](pred.expand(2, 4), target, image_size=(tensor([30.0, 300]), tensor([40.0, 400])))
    assert many.tolist() == pytest.approx([1 - iou + 0.02, 1 - iou + 0.0002])


def test_keywords_change_the_loss():
    pred, target = tensor([0.0, 0, 1, 1]), tensor([0.5, 0.0, 1.5, 1])  # IoU 1/3
    assert LOSSES["alpha_iou"](pred, target, alpha=2).item() == pytest.approx(1 - 1 / 9)
    assert LOSSES["alpha_iou"](pred, target, alpha=0.5).item() == pytest.approx(1 - 3**-0.5)
    assert LOSSES["inner_iou"](pred, target, ratio=1).item() == pytest.approx(2 / 3)
    assert LOSSES["inner_iou"](pred, target, ratio=0.5).item() == 1  # halved about their centres they only touch


def test_invalid_predictions_by_policy():
    flipped, target = tensor([1.0, 0, 0, 1]), tensor([0.0, 0, 1, 1])
    assert LOSSES["giou"](flipped, target).item() == 0
    assert (
        LOSSES["giou"](flipped, target, invalid="clamp").item() == 1
    )  # the empty box at x = 1: IoU 0, nothing between
    with pytest.raises(ValueError, match="1 of 1 boxes are flipped"):
        LOSSES["giou"](flipped, target, invalid="raise")


@pytest.mark.parametrize("shift", [1e7, -1e7])
def test_far_offsets_change_nothing(shift):
    pred, target = tensor([0.0, 0, 1, 1]), tensor([0.0, 0, 2, 1])
    for name in LOSSES:
        assert LOSSES[name](pred + shift, target + shift).item() == pytest.approx(
            LOSSES[name](pred, target).item(), rel=1e-6
        ), name


def test_ciou_gradient_agrees_with_torchvision():
    pred, target = kinds(torch.float64)["overlapping"]
    pred.requires_grad_()
    values = LOSSES["ciou"](pred, target), torchvision.ops.complete_box_iou_loss(pred, target)
    ours, theirs = (torch.autograd.grad(value.sum(), pred)[0] for value in values)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_list_of_losses_is_up_to_date():
    from giou_repro.registry import table
    from giou_repro.runs.store import project_folder

    assert table(markdown=True) in (project_folder() / "LOSSES.md").read_text()
    assert all(
        loss.formula and loss.range for loss in LOSSES.values() if loss.function.__module__ == "giou_repro.losses"
    )

"""Every loss in LOSSES, then each by hand."""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
import torchvision.ops
from torch import tensor
from torchvision.tv_tensors import BoundingBoxes

from giou_repro import _fast, boxes
from giou_repro.registry import LOSSES, label, loss, select

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_identical_boxes_cost_nothing(loss):
    same = tensor([[0.0, 0, 1, 2], [5, 5, 5, 5], [0, 0, 0, 3]], requires_grad=True)
    value = loss(same, same.detach())
    value.sum().backward()
    assert value.abs().max() < 1e-6
    assert same.grad.isfinite().all()


@every_loss
def test_one_value_a_box_and_a_gradient(loss, random_boxes):
    pred, target = random_boxes(50, seed=1).requires_grad_(), random_boxes(50, seed=2)
    value = loss(pred, target)
    value.sum().backward()
    assert value.shape == (50,)
    assert (value > 0).all() or loss.name == "focal_eiou"  # its weight is the IoU: disjoint boxes cost nothing
    assert pred.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_dtype_of_the_prediction(loss, dtype):
    pred, target = tensor([[0, 0, 300, 300]], dtype=dtype), tensor([[0, 0, 300, 600]], dtype=dtype)
    value = loss(pred, target)
    assert value.dtype == (torch.float32 if dtype == torch.float16 else dtype)  # 300² is beyond float16
    torch.testing.assert_close(value.double(), loss(pred.double(), target.double()), rtol=4e-3, atol=1e-6)


def test_a_half_precision_gradient_overflows_to_infinity():
    pred = tensor([[0.0, 0, 200, 1000]], dtype=torch.float16, requires_grad=True)
    value = LOSSES["l2"](pred, torch.zeros_like(pred))
    assert value.item() == 1_040_000
    assert torch.autograd.grad(64 * value.sum(), pred)[0].tolist() == [[0, 0, 25600, math.inf]]


@pytest.mark.parametrize("name", ["giou", "l2", "inner_iou"])
def test_a_grad_scaler_finds_the_largest_scale(name):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(8, 4, generator=generator).cumsum(-1)
    weight = target.clone().requires_grad_()  # as boxes that a network predicts in half precision
    optimizer, scaler = torch.optim.SGD([weight], lr=0), torch.amp.GradScaler("cpu", growth_interval=2)
    offset = 0.1 * torch.rand(8, 4, generator=generator)
    for _ in range(30):
        optimizer.zero_grad()
        scaler.scale(LOSSES[name]((weight + offset).half(), target).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() <= 2**20
    optimizer.zero_grad()
    LOSSES[name]((weight + offset).half(), target).sum().backward()
    right = torch.autograd.grad(LOSSES[name](weight + offset, target).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, right, rtol=0, atol=0.02 * right.abs().max().item())


@every_loss
def test_integers_do_not_wrap(loss):
    pred, target = tensor([[0, 0, 200, 200]], dtype=torch.uint8), tensor([[0, 0, 200, 100]], dtype=torch.uint8)
    torch.testing.assert_close(loss(pred, target), loss(pred.float(), target.float()))


@every_loss
def test_no_boxes_no_loss(loss):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss(pred, torch.zeros(0, 4)).sum().backward()
    assert pred.grad.shape == (0, 4)


@every_loss
def test_pairwise_by_broadcasting(loss, random_boxes):
    a, b = random_boxes(4, seed=1), random_boxes(6, seed=2)
    matrix = loss(a[:, None], b[None])
    assert matrix.shape == (4, 6)
    torch.testing.assert_close(matrix[2, 3], loss(a[2], b[3]))


@every_loss
def test_columns_give_the_same(loss, random_boxes):
    a, b = random_boxes(10, seed=1), random_boxes(10, seed=2)
    assert torch.equal(loss.function(a.unbind(-1), b.unbind(-1)), loss(a, b))


@every_loss
def test_wrong_input_is_named(loss):
    with pytest.raises(ValueError, match=rf"{loss.name}: target must have shape"):
        loss(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="do not broadcast"):
        loss(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="pred must be a torch tensor"):
        loss([0, 0, 1, 1], torch.zeros(4))


# the unit square and one a quarter inside it: I = 1/4, U = 7/4, C = 9/4, centres (1/2, 1/2) apart, diagonal² 9/2
QUARTER = tensor([0.0, 0, 1, 1]), tensor([0.5, 0.5, 1.5, 1.5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("l1", 2),
        ("l2", 1),
        ("smooth_l1", 0.5),
        ("iou", 1 - 1 / 7),
        ("iou_log", math.log(7)),
        ("giou", 1 - 1 / 7 + 0.5 / 2.25),
        ("diou", 1 - 1 / 7 + 0.5 / 4.5),
        ("ciou", 1 - 1 / 7 + 0.5 / 4.5),  # equal shapes: v = 0
    ],
)
def test_by_hand(name, value):
    assert LOSSES[name](*QUARTER).item() == pytest.approx(value)


def test_smooth_l1_is_linear_far_away():
    assert LOSSES["smooth_l1"](tensor([0.0, 0, 0, 3]), torch.zeros(4)).item() == 2.5


def test_ciou_adds_the_aspect_term():
    pred, target = tensor([0.0, 0, 1, 1]), tensor([0.0, 0, 1, 2])  # IoU 1/2, centres 1/2 apart, diagonal² 5
    v = 4 / math.pi**2 * (math.atan(1 / 2) - math.pi / 4) ** 2
    assert LOSSES["ciou"](pred, target).item() == pytest.approx(0.5 + 0.25 / 5 + v * v / (0.5 + v), rel=1e-5)


def test_balanced_l1_pulls_at_a_distance_of_one():
    pred = tensor([1.0, 0, 5, 5], requires_grad=True)
    assert torch.autograd.grad(LOSSES["balanced_l1"](pred, tensor([0.0, 0, 4, 5])), pred)[0].tolist() == [
        1.5,
        0,
        1.5,
        0,
    ]


@every_loss
def test_inference_mode(loss):
    expected = loss(*QUARTER)
    with torch.inference_mode():
        assert torch.equal(loss(QUARTER[0] + 0, QUARTER[1] + 0), expected)


@pytest.mark.parametrize("name", ["giou", "ciou", "l1"])
def test_large_batches_are_made_a_block_at_a_time(name, random_boxes, monkeypatch):
    pred, target = (
        random_boxes(90, seed=1).reshape(9, 10, 4).requires_grad_(),
        random_boxes(90, seed=2).reshape(9, 10, 4),
    )
    loss, outer = LOSSES[name], torch.rand(9, 10, dtype=torch.float64)
    expected = loss.function(pred, target)
    monkeypatch.setattr(_fast, "BOXES_PER_BLOCK", 20)
    value = loss(pred, target)
    assert torch.equal(value, expected)
    gradients = [torch.autograd.grad(v, pred, outer, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    first = torch.autograd.grad(value.sum(), pred, create_graph=True)[0]
    if name != "l1":  # whose second derivative is zero
        expected_first = torch.autograd.grad(expected.sum(), pred, create_graph=True)[0]
        seconds = [torch.autograd.grad(g.square().sum(), pred)[0] for g in (first, expected_first)]
        torch.testing.assert_close(*seconds)


def test_value_and_gradient_compiled_and_transformed(random_boxes):
    pred, target = random_boxes(40, seed=1).requires_grad_(), random_boxes(40, seed=2)
    gradient = torch.autograd.grad(LOSSES["giou"](pred, target).sum(), pred)[0]
    for backend in ("eager", "aot_eager"):
        torch.compiler.reset()
        compiled = torch.compile(lambda p, t: LOSSES["giou"](p, t), fullgraph=True, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(compiled(pred, target).sum(), pred)[0], gradient)
    transformed = torch.func.grad(lambda p: LOSSES["giou"](p, target).sum())
    torch.testing.assert_close(transformed(pred.detach()), gradient)
    torch.testing.assert_close(torch.compile(transformed, backend="aot_eager")(pred.detach()), gradient)


@every_loss
@pytest.mark.parametrize("format", ["XYXY", "XYWH", "CXCYWH"])
def test_boxes_that_name_their_format_are_taken_at_their_word(loss, format, random_boxes):
    pred, target = random_boxes(5, seed=1), random_boxes(5, seed=2)
    named = [
        BoundingBoxes(boxes.convert(box, "xyxy", format.lower()), format=format, canvas_size=(9, 9))
        for box in (pred, target)
    ]
    expected = loss(pred, target)
    for given in (named, (pred, named[1]), (named[0], target)):
        value = loss(*given)
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    moving = named[0].requires_grad_()
    slope = torch.autograd.grad(loss(moving, named[1]).sum(), moving)[0]
    assert slope.isfinite().all() and (slope != 0).any()
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    close(torch.vmap(loss)(*named), expected)
    close(torch.vmap(torch.func.grad(loss))(*named), slope.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("giou", torchvision.ops.generalized_box_iou_loss), ("diou", torchvision.ops.distance_box_iou_loss)],
)
def test_agrees_with_torchvision(name, oracle, random_boxes):
    pred, target = random_boxes(500, seed=1).requires_grad_(), random_boxes(500, seed=2)
    ours, theirs = LOSSES[name](pred, target), oracle(pred, target, eps=0)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    gradients = (torch.autograd.grad(value.sum(), pred)[0] for value in (ours, theirs))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_ciou_agrees_with_torchvision(random_boxes):
    pred, target = random_boxes(500, seed=1), random_boxes(500, seed=2)
    torch.testing.assert_close(
        LOSSES["ciou"](pred, target), torchvision.ops.complete_box_iou_loss(pred, target), atol=2e-6, rtol=0
    )


def test_disjoint_boxes_iou_has_no_gradient_giou_grows_the_box_towards_it():
    target = tensor([0.0, 0, 1, 1])
    pred = tensor([3.0, 0, 4, 1], requires_grad=True)
    assert torch.autograd.grad(LOSSES["iou"](pred, target), pred)[0].abs().max() == 0
    left, _, right, _ = torch.autograd.grad(LOSSES["giou"](pred, target), pred)[0]
    assert left > 0  # descent moves the near edge towards the target
    assert right < 0  # and the far edge away: the box grows first (claim G6)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou", "eiou", "siou", "inner_giou", "mpdiou"])
@pytest.mark.parametrize("place", [[1.0, 0, 2, 1], [1.0, 1, 2, 2], [0.2, 0, 0.2, 1]])  # beside, at a corner, a segment
def test_boxes_that_touch_or_have_no_width_are_pulled_too(name, place):
    pred = tensor(place, requires_grad=True)
    gradient = torch.autograd.grad(LOSSES[name](pred, tensor([0.0, 0, 1, 1])), pred)[0]
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("name", ["eiou", "siou", "mpdiou", "piou"])
def test_a_point_in_the_middle_of_its_target_grows(name):
    pred = tensor([1.0, 1, 1, 1], requires_grad=True)
    left, top, right, bottom = torch.autograd.grad(LOSSES[name](pred, tensor([0.0, 0, 2, 2])), pred)[0].tolist()
    assert min(left, top) > 0 > max(right, bottom)  # descent moves each edge outwards


def test_flipped_corners_are_sorted_and_gradient_flows():
    target = tensor([0.0, 0, 1, 1])
    flipped = tensor([2.0, 2, 0.5, 0.5], requires_grad=True)
    value = LOSSES["giou"](flipped, target)
    assert value == LOSSES["giou"](tensor([0.5, 0.5, 2, 2]), target)
    assert (torch.autograd.grad(value, flipped)[0] != 0).all()


def test_a_flipped_box_changes_nothing_for_its_neighbours(random_boxes):
    pred, target = random_boxes(5, seed=1), random_boxes(5, seed=2)
    pred[0, 2] = pred[0, 0]  # equal ends
    flipped = torch.cat((pred, pred[:1].roll(2, -1)))
    values, gradients = [], []
    for box, goal in ((pred, target), (flipped, torch.cat((target, target[:1])))):
        box.requires_grad_()
        values.append(LOSSES["ciou"](box, goal))
        gradients.append(torch.autograd.grad(values[-1].sum(), box)[0])
    assert torch.equal(values[0], values[1][:5]) and values[1][5] == values[0][0]
    torch.testing.assert_close(gradients[0], gradients[1][:5], rtol=1e-6, atol=0)


def test_a_users_loss_joins_and_comes_back_unchanged(user_module):
    def half(pred, target):
        return boxes.iou(pred, target) / 2

    assert loss("half", label="Half")(half) is half
    assert LOSSES["half"](*QUARTER).item() == pytest.approx(1 / 14)
    assert (LOSSES["half"].label, LOSSES["half"].space) == ("Half", "boxes")


def test_a_loss_that_reduces_is_named(user_module):
    loss("summed")(lambda pred, target: (pred - target).sum())
    with pytest.raises(ValueError, match=r"summed: expected one loss a box, a tensor of shape \(3,\)"):
        LOSSES["summed"](torch.zeros(3, 4), torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda pred, target: None, "returned NoneType"),
        (lambda pred, target: (pred - target).detach().abs().sum(-1), "has no gradient"),
        (lambda pred, target: (pred - target.add_(1)).abs().sum(-1), "changes its arguments in place"),
    ],
)
def test_a_loss_that_cannot_work_is_named(user_module, function, message):
    loss("broken")(function)
    with pytest.raises(ValueError, match=f"broken: .*{message}"):
        LOSSES["broken"](torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4))


class Power:
    exponent: float = 2

    def __call__(self, pred, target):
        return 1 - boxes.iou(pred, target) ** self.exponent


def test_an_object_can_be_a_loss_where_it_can_be_hashed(user_module):
    for options in ({"frozen": True}, {"eq": False}):
        power = dataclass(**options)(type("Power", (Power,), {"__annotations__": {"exponent": float}}))()
        assert loss("power")(power) is power
        assert LOSSES["power"](*QUARTER).item() == pytest.approx(1 - 1 / 49)
    with pytest.raises(TypeError, match=r"loss 'power' must be .*@dataclass\(frozen=True\), got Power"):
        loss("power")(dataclass(Power)())
    with pytest.raises(TypeError, match="loss 'three' must be a function"):
        loss("three")(3)


def test_every_label_can_stand_in_a_legend(user_module):
    for name, options, shown in (("_mine", {}, "loss _mine"), ("mine", {"label": "_M"}, "loss _M"), ("m", {}, "m")):
        loss(name, **options)(lambda pred, target: (pred - target).abs().sum(-1))
        assert label(name) == shown


def test_names_of_the_package_are_kept():
    with pytest.raises(ValueError, match="'giou' is a loss of the package"):
        loss("giou")(lambda pred, target: pred)
    with pytest.raises(TypeError, match="with a name"):
        loss(lambda pred, target: pred)
    with pytest.raises(ValueError, match="identifier"):
        loss("my loss")
    with pytest.raises(ValueError, match="space must be one of"):
        loss("mine", space="pixels")


def test_a_loss_from_a_module(user_module):
    decorated = "from giou_repro import loss\n\n@loss('mine')\ndef mine(p, t):\n    return (p - t).abs().sum(-1)\n"
    bare = "\ndef bare(p, t):\n    return (p - t).square().sum(-1)\n"
    user_module("scratch_losses", decorated + bare)
    assert select("giou,scratch_losses:mine,scratch_losses:bare,giou") == ["giou", "mine", "bare"]
    assert LOSSES["bare"](*QUARTER).item() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("gious", "did you mean 'giou'"),
        ("no_such_module:mine", "no module 'no_such_module'"),
        ("math:mine", "has no function 'mine'"),
        ("", "unknown loss"),
    ],
)
def test_unknown_losses_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        select(wrong)

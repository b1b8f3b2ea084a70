"""Every loss in LOSSES, then each by hand."""

import math

import pytest
import torch
import torchvision.ops
from torch import tensor
from torch.fx.experimental.proxy_tensor import make_fx

from giou_repro import _fast, boxes
from giou_repro.registry import LOSSES, loss, select

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
    assert value.dtype == dtype
    if loss.name != "l2":  # 300² is beyond float16
        assert value.isfinite().all()


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
def test_inference_mode_and_compilation(loss):
    pred, target = tensor([[0.0, 0, 1, 1]]), tensor([[0.5, 0.5, 1.5, 1.5]])
    expected = loss(pred, target)
    with torch.inference_mode():
        assert torch.equal(loss(pred + 0, target + 0), expected)
    torch.compiler.reset()  # or the ninth loss here would exceed the versions kept of one function
    compiled = torch.compile(lambda p, t: loss(p, t), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pred, target), expected)


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


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("alpha_giou", "alpha"),
        ("alpha_iou", "alpha"),
        ("inner_giou", "ratio"),
        ("focal_eiou", "gamma"),
        ("siou", "theta"),
        ("balanced_l1", "alpha"),
    ],
)
def test_keywords_out_of_range_are_named(name, keyword):
    for wrong in (0, -1, math.nan, "3"):
        with pytest.raises(ValueError, match=f"{keyword} must be a number"):
            LOSSES[name](*QUARTER, **{keyword: wrong})


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


@pytest.mark.parametrize("name", ["giou", "ciou"])
def test_a_loss_can_be_traced(name, random_boxes):
    a, b, c, d = (random_boxes(5, seed=seed) for seed in range(4))
    expected = LOSSES[name](c.flip(-1), d)

    def public(pred, target):
        return LOSSES[name](pred, target)

    for trace in (torch.jit.trace, lambda function, example: make_fx(function)(*example)):
        assert torch.equal(trace(public, (a, b))(c.flip(-1), d), expected)  # flipped, where the example was not
    assert public(a.to("meta"), b.to("meta")).shape == (5,)  # shapes alone, without values


def test_flipped_corners_are_sorted_and_gradient_flows():
    target = tensor([0.0, 0, 1, 1])
    flipped = tensor([2.0, 2, 0.5, 0.5], requires_grad=True)
    value = LOSSES["giou"](flipped, target)
    assert value == LOSSES["giou"](tensor([0.5, 0.5, 2, 2]), target)
    assert (torch.autograd.grad(value, flipped)[0] != 0).all()


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

"""Every loss inside what torch does with a function: transforms, compilers, tracers, fake devices, checkpoints."""

import functools

import pytest
import torch
from torch import tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from giou_repro import _fast, boxes
from giou_repro.registry import LOSSES, Loss

# README's own loss too
README = Loss("readme", "README", lambda pred, target: 1 - boxes.iou(pred, target) ** 2, "boxes")
every_loss = pytest.mark.parametrize("loss", [*LOSSES.values(), README], ids=lambda loss: loss.name)
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


@pytest.fixture
def pair(random_boxes):
    return random_boxes(6, seed=1), random_boxes(6, seed=2)


@pytest.fixture
def others(random_boxes):
    """Another number of boxes, half of them flipped, which those of `pair` are not."""
    pred = random_boxes(9, seed=3)
    return torch.where(torch.arange(9)[:, None] % 2 == 0, pred, pred.flip(-1)), random_boxes(9, seed=4)


def gradient(function, pred, target):
    pred = pred.detach().clone().requires_grad_()
    return torch.autograd.grad(function(pred, target).sum(), pred)[0]


@every_loss
def test_transforms_of_torch_func(loss, pair):
    pred, target = pair
    value, slope = loss(pred, target), gradient(loss, pred, target)
    close(torch.vmap(loss)(pred, target), value)
    close(torch.vmap(loss, in_dims=1)(pred.T, target.T), value)
    close(torch.func.grad(lambda box: loss(box, target).sum())(pred), slope)
    close(torch.vmap(torch.func.grad(loss))(pred, target), slope)
    close(torch.func.jacrev(loss)(pred, target).diagonal().T, slope)


@every_loss
def test_checkpoint_and_second_derivative(loss, pair, monkeypatch):
    pred, target = pair[0].clone().requires_grad_(), pair[1]
    checkpointed = functools.partial(checkpoint, loss, use_reentrant=False)
    close(gradient(checkpointed, pred, target), gradient(loss, pred, target))
    hessian = torch.func.hessian(lambda box: loss.function(box, target).sum())(pred.detach())
    for block in (_fast.BOXES_PER_BLOCK, 2):
        monkeypatch.setattr(_fast, "BOXES_PER_BLOCK", block)
        close(torch.autograd.functional.hessian(lambda box: loss(box, target).sum(), pred), hessian)
    if loss.name not in ("ciou", "wiou", "focal_eiou", "piou_v2"):  # which hold a factor constant
        assert torch.autograd.gradgradcheck(loss, (pred, target), atol=1e-4, fast_mode=True)


@every_loss
def test_forward_derivatives(loss, pair, monkeypatch):
    monkeypatch.setattr(_fast, "BOXES_PER_BLOCK", 2)
    pred, target = pair
    step = pred.flip(0)
    slope = (gradient(loss, pred, target) * step).sum(-1)
    close(torch.func.jvp(lambda box: loss(box, target), (pred,), (step,))[1], slope)
    with forward_ad.dual_level():
        for box in (pred, pred.clone().requires_grad_()):
            value = loss(forward_ad.make_dual(box, step), target)
            close(forward_ad.unpack_dual(value).tangent, slope)
    if loss is README:  # seconds
        close(torch.func.linearize(lambda box: loss(box, target), pred)[1](step), slope)


@every_loss
def test_compiled_whole_for_any_number_of_boxes(loss, pair, others):
    torch.compiler.reset()
    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend="eager")
    for pred, target in (pair, others):
        moving = pred.clone().requires_grad_()
        value = compiled(moving, target)
        close(value, loss(moving, target))
        close(torch.autograd.grad(value.sum(), moving)[0], gradient(loss, pred, target))


@pytest.mark.parametrize(
    "transform",
    [torch.vmap, torch.func.grad, torch.func.hessian],  # the last is jacfwd of jacrev
)
def test_compiled_transforms(transform, pair):
    torch.compiler.reset()
    loss = LOSSES["giou"]
    if transform is not torch.vmap:
        loss = functools.partial(lambda function, *boxes: function(*boxes).sum(), loss)
    compiled = torch.compile(transform(loss), fullgraph=True, backend="aot_eager")
    close(compiled(*pair), transform(loss)(*pair))


@every_loss
def test_exported_for_any_number_of_boxes(loss, pair, others):
    class Module(torch.nn.Module):
        def forward(self, pred, target):
            return loss(pred, target)

    number = {0: torch.export.Dim("number")}
    program = torch.export.export(Module(), pair, dynamic_shapes=(number, number))
    assert "giou_repro" not in str(program.graph)  # it runs where this package is not installed
    close(program.module()(*others), loss(*others))


@every_loss
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_keeps_no_decision_on_its_example(loss, pair, others, monkeypatch):
    monkeypatch.setattr(_fast, "BOXES_PER_BLOCK", 2)
    traced = torch.jit.trace(
        lambda pred, target: loss(pred, target), (pair[0].clone().requires_grad_(), pair[1]), check_trace=False
    )
    close(traced(*others), loss(*others))
    close(gradient(traced, *others), gradient(loss, *others))
    close(make_fx(loss)(*pair)(*others), loss(*others))
    others = others[0][:6], others[1][:6]
    slope = make_fx(torch.func.grad(lambda pred, target: loss(pred, target).sum()))(*pair)
    close(slope(*others), gradient(loss, *others))


@every_loss
def test_every_tensor_stays_on_its_device(loss):
    with FakeTensorMode():  # a CUDA device simulated on a CPU refuses tensors of two devices
        pred, target = (torch.empty((300_000, 4), dtype=torch.float16, device="cuda") for _ in range(2))
        value = loss(pred.requires_grad_(), target)
        assert (value.device.type, value.shape) == ("cuda", (300_000,))
        matrix = loss(pred[:5, None].long(), target[None, :7])
        assert (matrix.device.type, matrix.shape) == ("cuda", (5, 7))


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_default_device_moves_no_result(random_boxes, monkeypatch, needs_gradient):
    monkeypatch.setattr(_fast, "BOXES_PER_BLOCK", 2)
    pred, target = random_boxes(9, seed=1).requires_grad_(needs_gradient), random_boxes(9, seed=2)
    size = (tensor([640.0] * 9), 480)
    expected = LOSSES["giou"](pred, target), LOSSES["mpdiou"](pred, target, image_size=size), boxes.giou(pred, target)
    with torch.device("meta"):  # whose tensors have no values
        values = LOSSES["giou"](pred, target), LOSSES["mpdiou"](pred, target, image_size=size), boxes.giou(pred, target)
    for value, other in zip(values, expected, strict=True):
        close(value, other)


def test_changing_numbers_of_boxes_compile_twice(random_boxes):
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(LOSSES["giou"], backend=counter)
    for n in (100, 300, 1000, 77, 200_000, 5):
        pred, target = random_boxes(n, seed=1).requires_grad_(), random_boxes(n, seed=2)
        compiled(pred, target).sum().backward()
    assert counter.frame_count == 2


def test_clamped_predictions_and_options_can_be_traced(pair, others):
    def clamped(pred, target):
        return LOSSES["mpdiou"](pred, target, image_size=(640, 480), invalid="clamp")

    close(make_fx(clamped)(*pair)(others[0][:6], others[1][:6]), clamped(*others)[:6])
    torch.compiler.reset()
    close(torch.compile(clamped, fullgraph=True, dynamic=True, backend="eager")(*others), clamped(*others))
    sizes = tensor([[640.0, 480]] * 6)
    close(
        torch.vmap(lambda p, t, s: LOSSES["mpdiou"](p, t, image_size=tuple(s.unbind())))(*pair, sizes),
        LOSSES["mpdiou"](*pair, image_size=(640, 480)),
    )

"""Losses made of losses: weighted sums, focaler and wise, by hand, by name, in a simulation and in a detector."""

import types

import pytest
import torch
from test_exactness import awkward_boxes
from torch import tensor

from giou_repro import boxes, detectors, losses, simulate
from giou_repro.experiments import one_box_training
from giou_repro.registry import LOSSES, label, select
from giou_repro.simulation import step
from giou_repro.training.checkpoint import Training
from giou_repro.wrappers import focaler, wise

SQUARE = tensor([0.0, 0, 1, 1])
HALF, NEAR = tensor([0.0, 0, 1, 2]), tensor([0.0, 0, 1, 1.02])  # IoU 1/2 and 0.98


def gradient(loss, pred, target):
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(loss(pred, target).sum(), pred)[0]


def test_focaler_stretches_the_iou():
    assert focaler(losses.iou)(HALF, SQUARE).item() == pytest.approx(1 - 0.5 / 0.95)
    assert focaler(losses.giou, d=0.25, u=0.75)(HALF, SQUARE).item() == pytest.approx(0.5 + 0.5 - 0.5)
    assert focaler(losses.iou)(NEAR, SQUARE) == 0 and not gradient(focaler(losses.iou), NEAR, SQUARE).any()
    assert gradient(focaler(losses.iou), HALF, SQUARE).any()


def test_wise_follows_its_paper():
    pair, mean = (torch.stack((HALF, NEAR)), SQUARE.expand(2, 4)), 1.0
    three, two = wise(losses.wiou, steps=4), wise(losses.giou, version=2, steps=4)
    for _ in range(3):
        mean += (1 - 0.05**0.25) * ((0.5 + 1 - 1 / 1.02) / 2 - mean)
        for k, missed in enumerate((0.5, 1 - 1 / 1.02)):
            beta = missed / mean
            of_three, of_two = beta / (3 * 1.9 ** (beta - 3)), beta**0.5
            values = (loss(*(box[k] for box in pair)) for loss in (losses.wiou, losses.giou))
            expected = [factor * value.item() for factor, value in zip((of_three, of_two), values, strict=True)]
            if k == 0:
                seen = three(*pair), two(*pair)
            assert [value[k].item() for value in seen] == pytest.approx(expected, rel=1e-5)
    factor = (three(*pair) / losses.wiou(*pair)).detach()  # constant in the gradient
    three.eval()
    torch.testing.assert_close(gradient(three, *pair), factor[:, None] * gradient(losses.wiou, *pair))


def test_each_wise_remembers_on_its_own_and_is_restored():
    first, second = LOSSES["wise(giou, steps=10)"].function, LOSSES["wise(giou, steps=10)"].function
    first(torch.zeros(0, 4), torch.zeros(0, 4))
    assert first.mean == 1  # no boxes, no mean
    first(HALF, SQUARE)
    assert first.mean < 1 and second.mean == 1
    second.load_state_dict(first.state_dict())
    assert second(NEAR, SQUARE) == first(NEAR, SQUARE)
    kept = first.eval().mean.clone()
    with torch.inference_mode():
        second(HALF, SQUARE)
    assert first(HALF, SQUARE) == first(HALF, SQUARE) and first.mean == kept == second.mean


@pytest.mark.filterwarnings("ignore:targets read as")
@pytest.mark.parametrize("name", ["focaler(giou)", "wise(wiou, steps=1)", "wise(giou, version=2)", "5*l1 + 2*giou"])
def test_finite_for_awkward_boxes(name):
    pred = awkward_boxes(torch.float32)
    for target in (pred.clone(), pred.flip(0)):  # all equal first: a running mean of 0
        moving = pred.clone().requires_grad_()
        value = LOSSES[name](moving, target)
        assert value.isfinite().all() and torch.autograd.grad(value.sum(), moving)[0].isfinite().all()


@pytest.mark.parametrize(
    ("text", "name", "shown"),
    [
        ("5*l1 + 2*giou", "5l1 + 2giou", "5 ℓ1 + 2 GIoU"),
        ("5l1+2giou", "5l1 + 2giou", "5 ℓ1 + 2 GIoU"),
        ("l1 + 0.5 * focaler(giou, u=0.9)", "l1 + 0.5focaler(giou, u=0.9)", "ℓ1 + 0.5 Focaler GIoU, u=0.9"),
        ("1.5*wise(wiou)", "1.5wise(wiou)", "1.5 Wise WIoU v1"),
    ],
)
def test_names_of_sums_and_wrapped_losses(text, name, shown):
    assert select(f"iou, {text}") == ["iou", name] == select(["iou", name])
    assert label(name) == shown and name not in LOSSES


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("5*l1 + 2*gious", "unknown loss 'gious'; did you mean 'giou'"),
        ("giou - iou", "a sum such as 5"),
        ("-2*giou", "a sum such as 5"),
        ("focaler(l1)", "focaler takes a loss about overlap, not l1"),
        ("wise(iou + giou)", r"not iou \+ giou"),
        ("focaler(giou, q=2)", "unexpected keyword argument 'q'"),
        ("focaler(giou, d=0.96)", "d must be below u"),
        ("wise(giou, version=1)", "version must be 2 or 3"),
    ],
)
def test_what_is_no_sum_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        select(wrong)
    with pytest.raises(KeyError, match=message):
        LOSSES[wrong]


def test_each_term_of_a_sum_is_in_its_own_space(random_boxes, user_module):
    user_module("scratch_sum", "def mine(p, t):\n    return (p - t).square().sum(-1)\n")
    assert select("2*scratch_sum:mine + giou") == ["2mine + giou"]
    pred, target = random_boxes(5, seed=1), random_boxes(5, seed=2)
    given = [boxes.convert(box, "xyxy", "cxcywh") for box in (pred, target)]
    expected = 5 * losses.l1(*given) + 2 * losses.giou(pred, target)
    value = LOSSES["5*l1 + 2*giou"](*given, box_format="cxcywh")
    torch.testing.assert_close(value, expected)
    weight = torch.arange(5.0)
    reduced = LOSSES["5*l1 + 2*giou"](*given, weight, "mean", 2, box_format="cxcywh")
    torch.testing.assert_close(reduced, (weight * expected).sum() / 2)
    torch.testing.assert_close(one_box_training.of_code("5l1 + 2giou", "linear", *given), expected)
    term = detectors.BoxLoss("5*l1 + 2*giou", 3.0)
    torch.testing.assert_close(term(*given, pred, target)[0], 3 * expected.float())
    options = dict(image_size=(10, 20))
    value = LOSSES["l1 + mpdiou"](pred, target, **options)
    torch.testing.assert_close(value, losses.l1(pred, target) + losses.mpdiou(pred, target, **options))


def test_a_sum_is_simulated_and_its_direction_is_the_sum(random_boxes):
    state, goal = (
        boxes.convert(random_boxes(6, seed=k), "xyxy", "cxcywh")[:, None].unbind(-1) for k in (1, 2)
    )  # columns (rows, n)
    l1, giou, both = (step._exact(LOSSES[name], "cxcywh")[0](state, goal)[0] for name in ("l1", "giou", "5l1 + 2giou"))
    for k in range(4):
        torch.testing.assert_close(both[k], 5 * l1[k] + 2 * giou[k])
    assert set(simulate("5*l1 + 2*giou, focaler(giou)", n_points=1, steps=2, progress=False).curves.loss) == {
        "5l1 + 2giou",
        "focaler(giou)",
    }


def test_what_a_wise_loss_remembers_is_saved_with_a_training(tmp_path):
    config = types.SimpleNamespace(optimizer="adamw", learning_rate=0.1, model_dump=lambda: dict(loss="wise(giou)"))
    run = types.SimpleNamespace(save=lambda name, content: (tmp_path / name).write_bytes(content))
    means = []
    for train in (True, False):
        model = torch.nn.Linear(2, 2)
        model.box_loss = detectors.BoxLoss("wise(giou, steps=10)")
        training = Training(model, config)
        if train:
            model.box_loss(*[torch.stack((HALF, NEAR)), SQUARE.expand(2, 4)] * 2)
            training.save(run)
        training.resume(tmp_path, "cpu")
        means.append(model.box_loss.memory[0].mean.item())
    assert means[0] == means[1] < 1

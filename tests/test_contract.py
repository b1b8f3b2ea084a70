"""What a call of any loss takes beside boxes: weights, a reduction, a divisor, the boxes' format."""

import collections
import warnings

import pytest
import torch
from torch import tensor

from giou_repro import boxes, contract
from giou_repro.registry import LOSSES

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
THREE = tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]), tensor([[0.0, 0, 1, 2], [0, 0, 1, 4], [0, 0, 1, 1]])
HALVES = [0.5, 0.75, 0]  # 1 − IoU of THREE


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(contract, "LOOKED", collections.Counter())


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (dict(), HALVES),
        (dict(reduction="sum"), 1.25),
        (dict(reduction="mean"), 1.25 / 3),
        (dict(reduction="mean", avg_factor=5), 0.25),
        (dict(reduction="mean", avg_factor=tensor(5)), 0.25),
        (dict(weight=tensor([2.0, 0, 1])), [1, 0, 0]),
        (dict(weight=tensor([2.0, 0, 1]), reduction="mean"), 1 / 3),
        (dict(weight=tensor([[4.0, 0, 4, 0], [0, 0, 0, 0], [1, 1, 1, 1]]), reduction="sum"), 1),
    ],
)
def test_weights_and_reductions(options, value):
    assert LOSSES["iou"](*THREE, **options).tolist() == pytest.approx(value)


def test_weights_of_coordinates():
    weight = tensor([[1.0, 2, 3, 4]]).expand(3, 4)
    assert LOSSES["l1"](*THREE, weight).tolist() == [4, 12, 0]  # only y2 differs, by 1, 3 and 0
    assert LOSSES["l2"](*THREE, weight, "sum").item() == 4 + 36


@every_loss
def test_no_boxes_cost_nothing_and_have_a_gradient(loss):
    for options in (dict(reduction="sum"), dict(reduction="mean"), dict(reduction="mean", avg_factor=0)):
        pred = torch.zeros(0, 4, requires_grad=True)
        value = loss(pred, torch.zeros(0, 4), weight=torch.ones(0), **options)
        value.backward()
        assert value.item() == 0 and pred.grad.shape == (0, 4)


@every_loss
@pytest.mark.parametrize("box_format", boxes.FORMATS)
def test_boxes_of_every_format(loss, box_format, random_boxes):
    pair = random_boxes(5, seed=1), random_boxes(5, seed=2)
    given = [boxes.convert(box, "xyxy", box_format) for box in pair]
    compared = given if loss.space == "coordinates" else pair  # coordinates are compared as they are
    torch.testing.assert_close(loss(*given, box_format=box_format), loss(*compared), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reduction="average"), "giou: reduction must be one of none, mean, sum, got 'average'"),
        (dict(box_format="yxyx"), "giou: box_format must be one of xyxy, xywh, cxcywh"),
        (dict(weight=torch.ones(3, 1)), r"weight must be a tensor of shape \(3,\) or \(3, 4\), got \(3, 1\)"),
        (dict(weight=2), "got int"),
        (dict(avg_factor=2), 'divides where reduction is "mean"'),
        (dict(reduction="sum", avg_factor=2), 'divides where reduction is "mean"'),
        (dict(reduction="mean", avg_factor=-1), "avg_factor must be a number of at least 0, got -1"),
    ],
)
def test_wrong_keywords_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES["giou"](*THREE, **options)


def test_half_precision_is_reduced_in_float32():
    pred = torch.zeros(3, 4, dtype=torch.bfloat16)
    value = LOSSES["l1"](pred, tensor([255.0, 2, 0, 0], dtype=torch.bfloat16).expand(3, 4), reduction="sum")
    assert value.dtype == torch.bfloat16 and value.item() == 772  # nearest to 3 · 257; each alone rounds to 256


@pytest.mark.parametrize("named", boxes.FORMATS)
@pytest.mark.parametrize("real", boxes.FORMATS)
def test_targets_that_look_like_another_format_are_told_of_once(named, real, random_boxes):
    target = boxes.convert(random_boxes(50, seed=1) / 20 + 0.5, "xyxy", real)  # small boxes about an image's middle
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            LOSSES["giou"](target, target, box_format=named)
            LOSSES["l1"](target, target, box_format=named)
    assert len(told) == (named != real and "xyxy" in (named, real))  # xywh and cxcywh cannot be told apart
    assert not told or (f"targets read as {named} look like" in str(told[0].message) and told[0].filename == __file__)

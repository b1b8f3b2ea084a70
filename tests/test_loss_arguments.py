"""What a loss is given beside boxes: its own keywords, the image's size, torch's default dtype."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import Pair, shape_iou
from torch import tensor

from giou_repro.registry import LOSSES

QUARTER = tensor([0.0, 0, 1, 1]), tensor([0.5, 0.5, 1.5, 1.5])


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("alpha_giou", "alpha"),
        ("alpha_iou", "alpha"),
        ("inner_giou", "ratio"),
        ("focal_eiou", "gamma"),
        ("siou", "theta"),
        ("balanced_l1", "alpha"),
        ("piou_v2", "lambda_"),
        ("bounded_iou", "beta"),
        ("nwd", "constant"),
    ],
)
def test_keywords_out_of_range_are_named(name, keyword):
    for wrong in (0, -1, math.nan, math.inf, "3", None, np.float32(0)):
        with pytest.raises(ValueError, match=f"{keyword} must be a number"):
            LOSSES[name](*QUARTER, **{keyword: wrong})
    for number in (np.float32(2), np.float16(2), np.int64(2), Fraction(2)):
        moving = QUARTER[0].clone().requires_grad_()
        value = LOSSES[name](moving, QUARTER[1], **{keyword: number})
        assert value == LOSSES[name](*QUARTER, **{keyword: 2})
        assert torch.autograd.grad(value, moving)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ciou", dict(gate=2), "gate must be a number from 0 to 1"),
        ("shape_iou", dict(scale=-1), "scale must be a number of at least 0"),
        ("nwd", dict(constant="mean"), "constant must be a number above 0, got 'mean'"),
    ],
)
def test_keywords_with_bounds_of_their_own_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](*QUARTER, **options)


def test_ciou_without_its_aspect_term_below_the_gate():
    square, tall = tensor([0.0, 0, 1, 1]), tensor([0.0, 0, 1, 3])  # IoU 1/3
    assert LOSSES["ciou"](square, tall, gate=0.5) == LOSSES["diou"](square, tall) < LOSSES["ciou"](square, tall)
    assert LOSSES["ciou"](square, tall, gate=0.3) == LOSSES["ciou"](square, tall)


def test_the_constant_of_nwd_is_in_the_boxes_unit():
    pred, target = tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), tensor([[3.0, 4, 7, 8], [0, 0, 8, 8]])  # sizes 4 and 8
    assert LOSSES["nwd"](pred, target)[0].item() == pytest.approx(1 - math.exp(-5 / 12.8))
    assert LOSSES["nwd"](pred, target, constant="auto")[0].item() == pytest.approx(1 - math.exp(-5 / 6))
    scaled = (LOSSES["nwd"](pred * s, target * s, constant="auto") for s in (1, 640))
    torch.testing.assert_close(*scaled)


def test_shape_iou_with_a_scale_agrees_with_its_paper(random_boxes):
    pred, target = random_boxes(20, seed=1), random_boxes(20, seed=2)
    pairs = zip(pred.tolist(), target.tolist(), strict=True)
    truth = [float(shape_iou(Pair(*pair), scale=1)) for pair in pairs]
    assert LOSSES["shape_iou"](pred, target, scale=1).tolist() == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("given", [tuple, list, tensor, np.array])
def test_an_image_without_size_is_named(given):
    for wrong in ((0, 480), (640, 0), (-640, 480), (640, math.nan), (math.inf, 480)):
        with pytest.raises(ValueError, match="image_size must be"):
            LOSSES["mpdiou"](*QUARTER, image_size=given(wrong))
    assert LOSSES["mpdiou"](*QUARTER, image_size=given((640, 480))) == LOSSES["mpdiou"](*QUARTER, image_size=(640, 480))


def test_an_image_size_of_another_shape_is_named():
    for wrong in (640, (640,), (640, 480, 3), "64", ("640", "480"), (None, 480), dict(w=640, h=480), (640j, 480)):
        with pytest.raises(ValueError, match=r"image_size must be \(width, height\)"):
            LOSSES["mpdiou"](*QUARTER, image_size=wrong)


def test_two_rows_of_two_are_no_image_size(random_boxes):
    pair, rows = (random_boxes(2, seed=1), random_boxes(2, seed=2)), [[640.0, 480], [64, 48]]
    for wrong in (rows, tensor(rows), np.array(rows)):
        with pytest.raises(ValueError, match="as a tuple"):
            LOSSES["mpdiou"](*pair, image_size=wrong)
    value = LOSSES["mpdiou"](*pair, image_size=tuple(tensor(rows).T))
    assert value.tolist() == [LOSSES["mpdiou"](*pair, image_size=size)[k].item() for k, size in enumerate(rows)]


def test_equal_boxes_cost_nothing_in_the_smallest_image():
    box = tensor([[1.0, 2, 4, 6]], requires_grad=True)
    value = LOSSES["mpdiou"](box, box.detach(), image_size=(1e-40, 1e-40))
    value.sum().backward()
    assert value.item() == 0 and box.grad.isfinite().all()


def test_tensors_without_values_take_an_image_size():
    pred, target = (box.to("meta") for box in QUARTER)
    assert LOSSES["mpdiou"](pred, target, image_size=(640, 480)).shape == QUARTER[0].shape[:-1]


@pytest.mark.parametrize(
    ("default", "kept"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_a_short_default_dtype_holds_no_loss(default, kept):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        value = LOSSES["l2"](tensor([[0, 0, 300, 300]], dtype=torch.float16), tensor([[0, 0, 0, 0]]))
    finally:
        torch.set_default_dtype(before)
    assert (value.dtype, value.item()) == (kept, 180_000)

"""What a loss is given beside boxes: its own keywords, the image's size, torch's default dtype."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
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

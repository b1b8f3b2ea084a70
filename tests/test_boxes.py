"""Geometry, with numbers a reader can check in the head, then an independent oracle."""

import math

import pytest
import torch
import torchvision.ops
from torch import tensor
from torchvision.tv_tensors import BoundingBoxes

from giou_repro import _fast, boxes, polygons
from giou_repro.registry import LOSSES

UNIT = tensor([0.0, 0, 1, 1])


@pytest.mark.parametrize(
    ("other", "iou", "giou"),
    [
        ([0, 0, 1, 1], 1, 1),  # identical
        ([1, 0, 2, 1], 0, 0),  # side by side: nothing in common, nothing between
        ([1, 1, 2, 2], 0, -0.5),  # diagonal neighbours: half of the enclosing square is empty
        ([0.5, 0, 1.5, 1], 1 / 3, 1 / 3),  # half a box further
        ([0, 0, 2, 2], 1 / 4, 1 / 4),  # contained: GIoU is IoU
        ([0.5, 0.5, 1.5, 1.5], 1 / 7, 1 / 7 - 0.5 / 2.25),  # a quarter in common
        ([3, 0, 4, 1], 0, -0.5),  # two apart: half of the enclosing box is empty
        ([1, 1, 0, 0], 1, 1),  # corners the other way round are the same box
    ],
)
def test_overlap_of_the_unit_square_with(other, iou, giou):
    other = tensor(other).float()
    assert boxes.iou(UNIT, other).item() == pytest.approx(iou)
    assert boxes.giou(UNIT, other).item() == pytest.approx(giou)
    assert boxes.giou(other, UNIT).item() == pytest.approx(giou)


def test_boxes_without_area():
    point, segment = tensor([1.0, 1, 1, 1]), tensor([0.0, 0, 0, 2])
    assert boxes.iou(point, point) == 1  # the same point
    assert boxes.iou(point, tensor([2.0, 2, 2, 2])) == 0  # another point
    assert boxes.giou(point, tensor([2.0, 2, 2, 2])) == -1  # all of the enclosing box is empty
    assert boxes.iou(segment, segment) == 1
    assert boxes.iou(segment, tensor([0.0, 1, 0, 3])).item() == pytest.approx(
        1 / 3
    )  # segments on one line: half of each in common
    assert boxes.iou(segment, tensor([-1.0, 1, 1, 1])) == 0  # crossing segments share no area


def test_a_long_flat_and_a_long_upright_box():
    flat, upright = tensor([-5e7, -0.5, 5e7, 0.5]), tensor([-0.5, -5e7, 0.5, 5e7])  # 1 in common, 2e8 − 1 in either
    assert boxes.iou(flat, upright).item() == pytest.approx(5e-9, rel=1e-6)


def test_iou_of_crossing_thin_boxes_stays_below_one():
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(2, 20_000, 4, generator=generator) * 12 * 2.3 - 13.8).exp() * (
        torch.rand(2, 20_000, 4, generator=generator) - 0.5
    ).sign()
    overlap = boxes.iou(*corners)  # coordinates from 1e-6 to 1e6, either sign
    assert (overlap.min() >= 0) and (overlap.max() <= 1 + 1e-6)
    torch.testing.assert_close(overlap.double(), boxes.iou(*corners.double()), rtol=2e-6, atol=0)


def test_pairs_come_from_broadcasting(random_boxes):
    a, b = random_boxes(5, seed=1), random_boxes(7, seed=2)
    assert boxes.iou(a[:, None], b[None]).shape == (5, 7)
    assert torch.equal(boxes.giou(a[:, None], b[None]).diagonal(), boxes.giou(a[:5], b[:5]))


def test_agrees_with_torchvision(random_boxes):
    a, b = random_boxes(300, seed=1), random_boxes(300, seed=2)
    torch.testing.assert_close(boxes.iou(a[:, None], b[None]), torchvision.ops.box_iou(a, b), atol=1e-14, rtol=0)
    torch.testing.assert_close(
        boxes.giou(a[:, None], b[None]), torchvision.ops.generalized_box_iou(a, b), atol=1e-14, rtol=0
    )
    torch.testing.assert_close(boxes.area(a), torchvision.ops.box_area(a))


def test_size_does_not_matter():
    a, b = tensor([0.0, 0, 1, 1]), tensor([0.5, 0.5, 1.5, 1.5])
    for scale in (1e-30, 1e15):  # areas would underflow to 0 and reach 1e30
        assert boxes.giou(a * scale, b * scale).item() == pytest.approx(1 / 7 - 0.5 / 2.25, abs=1e-6)


@pytest.mark.parametrize("source", boxes.FORMATS)
@pytest.mark.parametrize("target", boxes.FORMATS)
def test_formats_convert_there_and_back(source, target):
    known = {"xyxy": [1.0, 2, 5, 8], "xywh": [1.0, 2, 4, 6], "cxcywh": [3.0, 5, 4, 6]}
    assert torch.equal(boxes.convert(tensor(known[source]), source, target), tensor(known[target]))


@pytest.mark.parametrize("name", boxes.FORMATS)
def test_converting_to_the_same_format_changes_no_digit(name, random_boxes):
    box = random_boxes(100).float() / 3
    assert torch.equal(boxes.convert(box, name, name), box)


def test_unknown_format_is_named():
    with pytest.raises(ValueError, match=r"xyhw.*xyxy, xywh, cxcywh"):
        boxes.convert(UNIT, "xyxy", "xyhw")


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"a must have shape \(..., 4\), got \(3, 5\)"):
        boxes.iou(torch.zeros(3, 5), UNIT)
    with pytest.raises(ValueError, match=r"a \(3, 4\) and b \(2, 4\) do not broadcast"):
        boxes.giou(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="got list"):
        boxes.iou([0, 0, 1, 1], UNIT)


@pytest.mark.parametrize("wrong", [(0.0, 0.0, 1.0, 1.0), (UNIT,), (), (UNIT[0], UNIT[0], UNIT[0], 1), (UNIT,) * 5])
def test_a_tuple_that_is_not_four_tensors_is_named(wrong):
    message = r"boxes must be .* or a tuple of four, got a tuple of \("
    for function in (boxes.iou, boxes.giou, boxes.overlap, boxes.centre_offset, boxes.enclosing):
        for pair in ((wrong, UNIT), (UNIT, wrong)):
            with pytest.raises(TypeError, match=message):
                function(*pair)
    for function in (boxes.area, boxes.sides, boxes.corners, boxes.repair, boxes.columns):
        with pytest.raises(TypeError, match=message):
            function(wrong)
    with pytest.raises(TypeError, match=message):
        boxes.convert(wrong, "xyxy", "xyxy")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_columns_of_any_kind_beside_boxes(random_boxes, dtype):
    a, b = (10 * random_boxes(20, seed=1) + 20).to(dtype), 10 * random_boxes(20, seed=2).float() + 20
    for function in (boxes.iou, boxes.giou):
        expected = function(a.double(), b.double())
        for pair in ((a.unbind(-1), b), (a, b.unbind(-1)), (a.unbind(-1), b.unbind(-1))):
            torch.testing.assert_close(function(*pair).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("source", boxes.FORMATS)
@pytest.mark.parametrize("target", boxes.FORMATS)
def test_every_conversion_gives_floats(dtype, source, target):
    box = tensor([[3, 4, 5, 7]], dtype=dtype)
    wide = torch.float32 if dtype.is_floating_point else torch.float64
    expected = boxes.convert(box.to(wide), source, target)
    for given in (box, box.unbind(-1)):
        converted = boxes.convert(given, source, target)
        whole = torch.stack(converted, -1) if isinstance(given, tuple) else converted
        assert isinstance(converted, type(given)) and whole.dtype == wide
        assert torch.equal(whole, expected)


def test_boxes_that_name_their_format():
    named = BoundingBoxes([[1.0, 2, 4, 6]], format="XYWH", canvas_size=(9, 9))  # corners (1, 2) and (5, 8)
    plain = tensor([[1.0, 2, 5, 8]])
    assert boxes.iou(named, plain) == boxes.giou(plain, named) == 1
    assert boxes.area(named) == 24
    assert polygons.box_giou(named, plain) == 1
    assert torch.equal(torch.stack(boxes.columns(named), -1), plain)
    for target, right in {"xyxy": plain, "xywh": tensor([[1.0, 2, 4, 6]]), "cxcywh": tensor([[3.0, 5, 4, 6]])}.items():
        converted = boxes.convert(named, "xywh", target)
        assert type(converted) is torch.Tensor and torch.equal(converted, right)
    with pytest.raises(ValueError, match="source is 'xyxy', but the boxes say that they are XYWH"):
        boxes.convert(named, "xyxy", "cxcywh")


def test_enclosing_box():
    assert torch.equal(boxes.enclosing(UNIT, tensor([3.0, -1, 4, 0.5])), tensor([0.0, -1, 4, 1]))


def test_intervals_by_hand():
    def shares(*ends):
        *shares, around = boxes.interval_overlap(*tensor(ends))
        return [round(around.item() * share.item(), 5) for share in _fast.unstacked(shares)], around

    assert shares(1.0, 4, 2, 8) == ([2, 3, 6, 7], 7)  # 2 in common, 7 around both
    assert shares(4.0, 3, 5, 6) == ([0, 1, 1, 3], 3)  # flipped, and a gap of 1
    *same_point, _ = boxes.interval_overlap(*tensor([5.0, 5, 5, 5]))
    assert [share.item() for share in _fast.unstacked(same_point)] == [1, 1, 1, 1]


def test_overlap_is_in_units_of_the_enclosing_box():
    o = boxes.overlap(UNIT, tensor([0.5, 0.5, 1.5, 1.5]))  # a quarter in common, 7/4 in either, 3/2 × 3/2 around both
    assert (o.intersection.item(), o.union.item(), o.hull.item()) == pytest.approx((1 / 9, 7 / 9, 1))
    assert [side.item() for side in o.enclosing] == [1.5, 1.5]


def test_a_flipped_box_or_a_point_changes_no_other_pair(random_boxes):  # which are sorted only where one is there
    a, b, strange = random_boxes(20, seed=1), random_boxes(20, seed=2), tensor([[3.0, 0, 1, 2], [5, 5, 5, 5]])

    def values_and_gradients(a, b):
        a = a.clone().requires_grad_()
        value = boxes.giou(a, b)
        return value.detach(), torch.autograd.grad(value.sum(), a)[0]

    among = values_and_gradients(torch.cat((a, strange)), torch.cat((b, strange)))
    assert torch.equal(among[0][20:], torch.ones(2))
    for of_all, alone in zip(among, values_and_gradients(a, b), strict=True):
        assert torch.equal(of_all[:20], alone)


def test_overlap_of_columns_is_that_of_boxes(random_boxes):
    a, b = random_boxes(20, seed=1), random_boxes(20, seed=2)
    for field, of_columns in zip(boxes.overlap(a, b)[:3], boxes.overlap(a.unbind(-1), b.unbind(-1))[:3], strict=True):
        assert torch.equal(field, of_columns)


def test_centres_corners_and_sides_by_hand():
    a, b = tensor([4.0, 1, 1, 3]), tensor([0.0, 0, 4, 2])  # the first flipped: 1 to 4, 1 to 3
    assert boxes.centre_offset(a, b) == (0.5, 1)
    assert boxes.corners(a) == (1, 1, 4, 3)
    assert boxes.sides(a) == (3, 2)


def test_large_results_are_made_a_tile_at_a_time(random_boxes, monkeypatch):
    a, b = random_boxes(30, seed=1), random_boxes(40, seed=2)
    for shapes in (((30, 1, 4), (40, 4)), ((2, 15, 1, 4), (1, 1, 40, 4)), ((30, 4), (4,))):
        pair = a.reshape(shapes[0]), b[: math.prod(shapes[1]) // 4].reshape(shapes[1])
        whole = boxes.giou(*pair)
        for tile in (1, 7, 50, 300):
            with monkeypatch.context() as patch:
                patch.setattr(_fast, "PAIRS_PER_TILE", tile)
                patch.setattr(_fast, "BOXES_PER_BLOCK", 1)
                assert torch.equal(boxes.giou(*pair), whole)
                assert torch.equal(LOSSES["giou"](*pair), LOSSES["giou"].function(*pair))


def test_iou_of_boxes_of_two_precisions(random_boxes):
    a, b = random_boxes(20, seed=1).requires_grad_(), random_boxes(20, seed=2).float()
    assert boxes.iou(a, b).dtype == torch.float64
    torch.testing.assert_close(boxes.iou(a, b), boxes.iou(a, b.double()))


def test_the_gradient_of_iou_is_the_derivative_and_zero_at_a_match(random_boxes):
    a, b = random_boxes(20, seed=1).requires_grad_(), random_boxes(20, seed=2)
    for function in (boxes.iou, boxes.giou):
        assert torch.autograd.gradcheck(function, (a, b))
        assert torch.autograd.grad(function(a, a.detach()).sum(), a)[0].abs().max() < 1e-12


def test_repair_counts_the_flipped():
    mixed = tensor([[0.0, 0, 1, 1], [3, 0, 1, 2]])
    assert boxes.repair(mixed)[0].tolist() == [[0, 0, 1, 1], [1, 0, 3, 2]]
    assert boxes.repair(mixed, "clamp")[0].tolist() == [[0, 0, 1, 1], [3, 0, 3, 2]]
    assert boxes.repair(mixed)[1] == boxes.repair(mixed, "clamp")[1] == 1
    with pytest.raises(ValueError, match="1 of 2 boxes are flipped"):
        boxes.repair(mixed, "raise")
    with pytest.raises(ValueError, match="policy must be"):
        boxes.repair(mixed, "drop")

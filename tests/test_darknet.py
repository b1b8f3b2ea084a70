"""The gradients of the GIoU authors' Darknet, by hand from its source, and YOLOv3 trained with them."""

import pytest
import torch

from giou_repro import detectors, losses
from giou_repro.detectors import darknet


def gradient(loss, target, pred=(0.0, 0, 1, 1)):
    pred = torch.tensor([pred], requires_grad=True)
    value = loss(pred, torch.tensor([target]))
    value.sum().backward()
    return value.item(), pred.grad[0].tolist()


@pytest.mark.parametrize("name", ["iou", "giou"])
@pytest.mark.parametrize("target", [(0.5, 0.5, 1.5, 1.5), (-0.5, 0.25, 2, 0.75), (0.25, 0.25, 0.5, 0.5)])
def test_of_boxes_that_overlap_it_is_the_losss(name, target):
    value, by_edges = gradient(getattr(losses, name), target)
    assert gradient(getattr(darknet, f"darknet_{name}"), target) == (value, pytest.approx(by_edges, abs=1e-6))


def test_boxes_apart_along_one_axis_have_a_gradient_of_the_iou():
    # I_w = 1 - 2, I_h = 1: I = -1, U = 3. By the right edge dI = 1, dU = 1 - 1; by the left one dI = 0, dU = -1
    value, (left, _, right, _) = gradient(darknet.darknet_iou, (2.0, 0, 3, 1))
    assert value == 1 and (left, right) == pytest.approx((1 / 9, -1 / 3))


def test_boxes_apart_along_both_axes_are_pushed_away():
    # I = (-1)(-1) = 1, U = 1, C = 9. By the right edge dI = -1, dU = 2: IoU' = -1 - 2, and dU/C = 2/9
    value, (left, top, right, bottom) = gradient(darknet.darknet_giou, (2.0, 2, 3, 3))
    assert value == pytest.approx(2 - 2 / 9) and right == bottom == pytest.approx(3 - 2 / 9)
    assert left + right > 0 and top + bottom > 0  # descent moves the box to the left and up
    assert gradient(losses.giou, (2.0, 2, 3, 3))[1][2] == pytest.approx(-1 / 9)


def test_where_the_union_is_negative_the_iou_has_no_gradient():
    assert gradient(darknet.darknet_iou, (4.0, 4, 5, 5)) == (1, [0, 0, 0, 0])  # I = 9, U = -7


@pytest.mark.parametrize("loss", ["l2", "giou"])
def test_the_chain_leaves_out_sigmoid_cell_and_anchor(loss):
    values, gradients = [], []
    for chain in (False, True):
        model = detectors.build("yolov3", 2, loss, 1.0, image_size=64, darknet_chain=chain)
        raw = torch.zeros(1, len(model.cells), 7, requires_grad=True)
        target = {"boxes": torch.tensor([[20.0, 17, 47, 51]]), "labels": torch.tensor([1])}
        values.append(model._losses(raw, [target])[0]["box"])
        gradients.append(torch.autograd.grad(values[-1], raw)[0][0])
    exact, passed_on = gradients
    index = exact.abs().sum(1).argmax()  # of the one prediction that answers
    _, _, stride, width, height = model.cells[index].tolist()
    # the sigmoid's derivative is 1/4 at 0; by the encoding, which ℓ2 takes, nothing else is left out
    times = (4, 4, 1, 1) if loss == "l2" else (4 * 64 / stride, 4 * 64 / stride, 64 / width, 64 / height)
    assert values[0] == values[1]
    assert (passed_on[index, :4] / exact[index, :4]).tolist() == pytest.approx(times, rel=1e-4)

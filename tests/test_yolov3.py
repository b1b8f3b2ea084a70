"""YOLOv3: the anchor and cell that answer for a box, the encoding and its inverse, and what each loss compares."""

import pytest
import torch

from giou_repro import LOSSES, boxes, detectors
from giou_repro.detectors.yolov3 import ANCHORS


def answering(model, *truth):
    """The index of the prediction that answers for each true box, and its cell."""
    index = model._assign(*boxes.convert(torch.tensor(truth), "xyxy", "cxcywh").split(2, -1))
    return index, model.cells[index]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return detectors.build("yolov3", 2, "giou", image_size=416)


def test_there_are_10647_predictions_at_416_pixels(model):
    assert len(model.cells) == 3 * (52**2 + 26**2 + 13**2) == 10647


@pytest.mark.parametrize(("anchor", "stride"), [(0, 8), (2, 8), (3, 16), (5, 16), (6, 32), (8, 32)])
def test_a_box_shaped_as_an_anchor_is_answered_by_it_in_the_cell_of_its_centre(model, anchor, stride):
    width, height = ANCHORS[anchor]
    _, [cell] = answering(model, [200.0 - width / 2, 100 - height / 2, 200 + width / 2, 100 + height / 2])
    assert cell.tolist() == [200 // stride, 100 // stride, stride, width, height]


def test_a_centre_on_the_far_edge_belongs_to_the_last_cell(model):
    _, [cell] = answering(model, [406.0, 409.5, 426, 422.5])
    assert cell[:3].tolist() == [51, 51, 8]


def scattered(count, image_size):
    """(count, 4) boxes of all sizes, their centres anywhere in the image."""
    generator = torch.Generator().manual_seed(0)
    centre, size = (torch.rand(count, 2, generator=generator) for _ in range(2))
    return boxes.convert(torch.cat([centre, 0.02 + 0.7 * size**2], 1) * image_size, "cxcywh", "xyxy")


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_cell_k_away_answers_for_a_box_and_can_reach_it(k):
    model = detectors.build("yolov3", 2, "giou", image_size=416, cells_away=k)
    truth = scattered(500, 416)
    _, cells = answering(model, *truth.tolist())
    offset = (truth[:, :2] + truth[:, 2:]) / 2 / cells[:, 2:3] - cells[:, :2]
    assert (offset[:, 0].floor().abs() == k).all() and (offset[:, 1].floor() == 0).all()
    sigma = (offset + k) / (1 + 2 * k)
    assert ((sigma >= 0) & (sigma <= 1)).all()
    log_size = ((truth[:, 2:] - truth[:, :2]) / cells[:, 3:]).log()
    raw = torch.cat([sigma.logit(eps=1e-6), log_size, torch.zeros(500, 3)], 1)
    torch.testing.assert_close(model.decode(model.encoding(raw), cells), truth, rtol=1e-3, atol=1e-2)
    start = model.decode(model.encoding(torch.zeros_like(raw)), cells)  # whatever k is: the middle of the cell
    torch.testing.assert_close((start[:, :2] + start[:, 2:]) / 2, (cells[:, :2] + 0.5) * cells[:, 2:3])


def test_the_share_of_positives_that_begin_disjoint_rises_with_k():
    truth, shares = scattered(500, 128), []
    for k in (0, 1, 2, 4):
        model = detectors.build("yolov3", 2, "giou", image_size=128, cells_away=k)
        _, cells = answering(model, *truth.tolist())
        shares.append((boxes.iou(model.decode(model.encoding(torch.zeros(500, 7)), cells), truth) == 0).float().mean())
    assert shares == sorted(shares) and shares[0] < 0.05 and shares[3] > 0.5


def test_where_no_column_is_k_away_the_farthest_answers():
    model = detectors.build("yolov3", 2, "giou", image_size=128, cells_away=4)
    _, cells = answering(model, *([x - 57.0, 14.0, x + 57.0, 114.0] for x in (16.0, 48.0, 80.0, 112.0)))
    assert cells[:, 0].tolist() == [3, 3, 0, 0] and (cells[:, 2] == 32).all()  # of columns 0 to 3


def test_zero_raw_outputs_decode_to_the_anchor_in_the_middle_of_its_cell(model):
    decoded = model.decode(model.encoding(torch.zeros(10647, 7)), model.cells)
    assert decoded[0].tolist() == [4 - 5, 4 - 6.5, 4 + 5, 4 + 6.5]


@pytest.mark.parametrize("loss", ["l2", "giou"])
def test_a_perfect_prediction_costs_the_box_loss_nothing(loss):
    model = detectors.build("yolov3", 2, loss, image_size=96)
    truth = torch.tensor([[20.0, 30, 44, 62]])
    index, cells = answering(model, *truth.tolist())
    column, row, stride, width, height = cells[0].tolist()
    raw = torch.zeros(1, len(model.cells), 7)
    offset = torch.tensor([32 / stride - column, 46 / stride - row])
    raw[0, index[0], :2], raw[0, index[0], 2:4] = offset.logit(), torch.tensor([24 / width, 32 / height]).log()
    losses, positives = model._losses(raw, [{"boxes": truth, "labels": torch.tensor([1])}])
    assert losses["box"] == pytest.approx(0, abs=1e-5)
    assert (positives["count"], positives["disjoint"]) == (1, 0) and positives["iou"] == pytest.approx(1, abs=1e-5)


def test_background_is_what_overlaps_no_truth_by_more_than_half(model):
    raw = torch.zeros(2, len(model.cells), 7)
    truth = model.decode(model.encoding(raw[0]), model.cells)[:1]
    background = model._background(raw, truth, torch.tensor([0]))
    assert not background[0, 0] and background[0, 1]  # itself; its neighbour, 8 of 10 pixels further: IoU 2/18
    assert background.sum(1).tolist() == [len(model.cells) - 1, len(model.cells)]  # the second image has no true box


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_it_and_empty_images_are_background(name):
    torch.manual_seed(0)
    model = detectors.build("yolov3", 2, name, image_size=64).train()
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
    ]
    losses, positives = model(torch.rand(2, 3, 64, 64), targets)
    sum(losses.values()).backward()
    assert positives["count"] == 1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.neck.heads[1][-1].weight.grad.abs().sum() > 0
    assert set(losses) == {"box", "objectness", "classification"}


def test_detections_are_sorted_and_inside_the_image():
    model = detectors.build("yolov3", 2, "giou", image_size=64).eval()
    for head in model.neck.heads:
        torch.nn.init.zeros_(head[-1].bias)  # an object everywhere
    [found] = model(torch.rand(1, 3, 64, 64))
    assert found["boxes"].shape == (len(found["scores"]), 4) and 0 < len(found["scores"]) <= 100
    assert (found["scores"].diff() <= 0).all()
    assert found["boxes"].min() >= 0 and found["boxes"].max() <= 64 and set(found["labels"].tolist()) <= {0, 1}


def test_a_size_that_strides_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        detectors.build("yolov3", 2, "giou", image_size=100)

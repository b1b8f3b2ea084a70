"""`giou-repro check`: what is planted in a loss is found, and nothing of ours fails."""

import pytest
import torch

from giou_repro import LOSSES, boxes
from giou_repro.__main__ import main
from giou_repro.experiments import loss_check

NAIVE = """
import torch
from giou_repro import boxes, loss

def naive(pred, target):  # 0/0 where both boxes are points
    size = (torch.minimum(pred[..., 2:], target[..., 2:]) - torch.maximum(pred[..., :2], target[..., :2])).clamp(min=0)
    area, other = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (pred, target))
    both = size.prod(-1)
    return 1 - both / (area + other - both)

def root(pred, target):  # its slope at 0 is infinite
    return (1 - boxes.iou(pred, target)).sqrt()

def asymmetric(pred, target):
    return (pred - target).abs().sum(-1) / (target[..., 2:] - target[..., :2]).abs().sum(-1).clamp(min=1e-6)

def upside_down(pred, target):
    return boxes.iou(pred, target)

def held(pred, target):
    return (1 - boxes.giou(pred, target)) * (2 - boxes.iou(pred, target).detach())

def repels(pred, target):
    offset = (pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]).abs().sum(-1)
    return torch.where(boxes.iou(pred, target) > 0, 0 * offset, 10 - offset)

def stays(pred, target):
    raise RuntimeError("no boxes today")
"""


@pytest.fixture
def verdicts(user_module, capsys):
    """(exit status, check → its verdict and words) of a loss of the module above."""
    user_module("naive_losses", NAIVE)

    def run(loss):
        status = main(["check", f"naive_losses:{loss}" if loss not in LOSSES else loss])
        lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
        return status, {line[7:67].strip(): (line[:7].strip(), line[67:]) for line in lines}

    return run


def test_a_planted_nan_is_found_with_the_boxes_that_give_it(verdicts):
    status, found = verdicts("naive")
    verdict, words = found["finite value, awkward boxes too"]
    assert (status, verdict) == (1, "fails")
    pred, target = (
        torch.tensor(eval(words.partition(name)[2].partition("]")[0] + "]")) for name in ("pred ", "target ")
    )
    from naive_losses import naive

    assert not naive(pred, target).isfinite()


def test_a_slope_that_is_infinite_at_equal_boxes_is_found(verdicts):
    status, found = verdicts("root")
    assert status == 1
    assert found["finite value, awkward boxes too"][0] == "ok"
    assert found["finite gradient, awkward boxes too"][0] == "fails"


def test_what_one_has_to_know_is_noted_and_fails_nothing(verdicts):
    status, found = verdicts("asymmetric")
    assert status == 0
    assert {name.partition(":")[0] for name, (verdict, _) in found.items() if verdict == "note"} >= {"symmetry"}
    assert found["scale: largest change, both boxes doubled"][0] == "ok"
    status, found = verdicts("l1")
    assert found["scale: largest change, both boxes doubled"][0] == "note"
    assert found["symmetry: largest |L(a, b) − L(b, a)|"][0] == "ok"
    assert found["median gradient of unit boxes at IoU 0, .5 to .6, .9 to 1"][1].startswith("ℓ1 2, 2, 2; GIoU ")
    status, found = verdicts("iou")
    assert found["zero gradient disjoint from the target"] == ("note", "100.0% of the boxes: such boxes are not moved")


def test_a_loss_that_pushes_far_boxes_away_is_noted(verdicts):
    title = "moved away from the target, disjoint boxes"
    assert verdicts("repels")[1][title] == ("note", "100.0% of the boxes: their centre goes farther off")
    assert verdicts("giou")[1][title] == ("ok", "0.0% of the boxes")


def test_a_loss_that_is_not_least_at_its_target_fails(verdicts):
    status, found = verdicts("upside_down")
    assert status == 1 and found["least at equal boxes"][0] == "fails"
    assert found["cost at equal boxes"] == ("note", "1: it is not 0 where the prediction is right")


def test_a_factor_held_constant_is_seen_by_finite_differences(verdicts):
    _, found = verdicts("held")
    assert found["gradient against finite differences"][0] == "note"
    _, found = verdicts("giou")
    assert found["gradient against finite differences"] == ("ok", "another for 0.0% of the boxes")


def test_a_loss_that_raises_fails_every_check_in_words(verdicts):
    status, found = verdicts("stays")
    assert status == 1
    assert set(found.values()) == {("fails", "raised RuntimeError: no boxes today")}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_of_ours_fails(name):
    assert "fails" not in loss_check.check(name, n=300).verdict.tolist()


def test_a_weight_needs_a_run(capsys):
    assert main(["check", "giou", "--like", "ciou"]) == 2
    assert "--like LOSS and --run RUN go together" in capsys.readouterr().err


def test_half_of_the_pairs_overlap_and_awkward_ones_are_flipped_empty_and_equal():
    generator = torch.Generator().manual_seed(0)
    assert (boxes.iou(*loss_check.well_scaled(1000, generator)) > 0).float().mean() > 0.5
    pred, target = loss_check.awkward(1000, generator)
    assert (pred[:, 2] < pred[:, 0]).any() and (pred[:, 2] == pred[:, 0]).any() and (pred == target).all(1).any()

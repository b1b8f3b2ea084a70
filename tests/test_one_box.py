"""One box a picture: many networks train as one does alone, rates are searched beyond an edge, and why a box grows."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from giou_repro import boxes, losses
from giou_repro.experiments import one_box
from giou_repro.experiments import one_box_training as training
from giou_repro.experiments.one_box_training import ENCODINGS, FIRST_BOXES, WEIGHTED

SMALL = dict(n_images=200, n_measured=100)


def box(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_network_among_many_is_the_one_that_torch_trains_alone():
    """The same pictures, initial weights and batches, by nn.Sequential, Adam and a scheduler."""
    steps, seed = 12, 1
    arms = one_box.arms(["l1", "giou"], ["linear", "sigmoid"], [40, 97], learning_rate=[0.003, 0.01])
    many = training.train(arms, [0, seed], steps, **SMALL).query("seed == 1 and step == @steps")
    pixels, targets = training.pictures(SMALL["n_images"], seed, "train")
    for (at, arm), (_, row) in zip(arms.iterrows(), many.iterrows(), strict=True):
        model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), training._initial(arms[at : at + 1], [seed]), strict=True):
                parameter.copy_(value.view_as(parameter))
        adam = torch.optim.Adam(model.parameters(), lr=arm.learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        draw = training._generator(seed, "order")
        for _ in range(steps):
            batch = draw.integers(len(pixels), size=training.BATCH)
            adam.zero_grad()
            training.of_code(arm.loss, arm.encoding, model(pixels[batch]), targets[batch]).mean().backward()
            adam.step()
            scheduler.step()
        shown, wanted = training.pictures(SMALL["n_measured"], seed, "test")
        predicted = training.decode(arm.encoding, model(shown)).detach()
        overlap = boxes.iou(training.corners(predicted), training.corners(wanted))
        assert row.mean_iou == pytest.approx(overlap.mean().item(), abs=2e-5)
        assert row[["x", "y", "w", "h"]].tolist() == pytest.approx(predicted.median(0).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("normalise", [False, True])
def test_results_do_not_depend_on_what_is_trained_beside(normalise):
    arms = one_box.arms(["iou", WEIGHTED], ENCODINGS, [80], learning_rate=[0.01])
    options = dict(normalise=normalise, **SMALL)
    together = training.train(arms, [3, 4], 5, **options)
    alone = training.train(arms[2:3], [4], 5, **options)
    both = together.merge(alone, on=["loss", "encoding", "first_box", "seed", "step"])
    assert len(both) == len(alone) > 2
    np.testing.assert_allclose(both.mean_iou_x, both.mean_iou_y, atol=1e-5)


def test_the_number_of_threads_changes_no_digit(monkeypatch):
    monkeypatch.setattr(training, "AT_ONCE", 2)
    arms = one_box.arms(["l1", "giou"], ["linear"], [0, 97], learning_rate=[0.01])
    tables = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        tables.append(training.train(arms, [0, 1], 5, **SMALL))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_every_picture_gets_the_first_box_and_its_share_disjoint_is_measured():
    arms = one_box.arms(["giou"], ENCODINGS, learning_rate=[0.01])
    start = training.train(arms, [0], 1).query("step == 0")
    first = np.array([FIRST_BOXES[name] for name in start.first_box])
    np.testing.assert_allclose(start[["x", "y", "w", "h"]], first, atol=1e-6)
    target = training.pictures(1000, 0, "test")[1].numpy()
    apart = np.abs(first[:, None, :2] - target[:, :2]) >= (first[:, None, 2:] + target[:, 2:]) / 2
    np.testing.assert_allclose(start.disjoint, apart.any(2).mean(1), atol=2e-3)
    shares = start.groupby("first_box").disjoint.mean()
    assert shares[0] == 0 and shares[100] == 1
    assert [shares[name] for name in (40, 80, 97)] == pytest.approx([0.4, 0.8, 0.97], abs=0.03)


def test_streams_and_seeds_have_pictures_of_their_own():
    drawn = [training.pictures(50, seed, stream)[1] for seed in (0, 1) for stream in ("train", "test", "search")]
    assert len(torch.unique(torch.cat(drawn), dim=0)) == 300
    corners = training.corners(torch.cat(drawn))
    assert corners.min() >= training.MARGIN - 1e-6 and corners.max() <= 1 - training.MARGIN + 1e-6


def test_encodings_and_what_a_loss_is_given():
    one, other = box(0.3, 0.4, 0.2, 0.1), box(0.5, 0.5, 0.4, 0.3)
    for encoding in ENCODINGS:
        code = training.encode(encoding, one)
        torch.testing.assert_close(training.decode(encoding, code), one)
        giou = training.of_code("giou", encoding, code, other)
        torch.testing.assert_close(giou, losses.giou(training.corners(one), training.corners(other)))
        l1 = 0.5 + 0.1 if encoding != "log-size" else 0.3 + math.log(2) + math.log(3)
        l1 = l1 + 0.1 if encoding != "log-size" else l1
        assert training.of_code("l1", encoding, code, other).item() == pytest.approx(l1)
        weighted = training.of_code(WEIGHTED, encoding, code, other)
        torch.testing.assert_close(weighted, 5 * box(0.7).squeeze() + 2 * giou)


def searched(values):
    return pd.DataFrame(
        [
            dict(loss=loss, encoding="linear", first_box=97, learning_rate=rate, mean_iou=iou)
            for loss, ious in values.items()
            for rate, iou in zip((0.01, 0.1, 1.0), ious, strict=True)
        ]
    )


def test_best_rate_and_whether_it_lies_at_an_edge():
    table = searched(dict(low=(0.5, 0.4, 0.1), inside=(0.1, 0.4, 0.3), high=(0.1, 0.2, 0.3), dead=(0.0, 0.0, 0.0)))
    best = one_box.best_rates(table).set_index("loss")
    assert best.learning_rate[["low", "inside", "high"]].tolist() == [0.01, 0.1, 1.0]
    assert best.edge.to_dict() == dict(low=-1, inside=0, high=1, dead=0)
    assert "2 of 4 (low, linear, 97 %; high, linear, 97 %)" in one_box.describe_search(best.reset_index(), table)


def test_search_goes_on_beyond_the_edge_of_its_grid():
    arms = one_box.arms(["l1"], ["linear"], [40])
    table = one_box.search(arms, [1e-5, 3e-5], [100], 20, **SMALL)
    assert table.learning_rate.tolist() == pytest.approx([3.0**power * 1e-5 for power in range(2 + one_box.EXTENSIONS)])
    assert table.mean_iou.is_monotonic_increasing


def ended(**means):
    """Runs of five seeds that end with a loss's mean, everywhere the same but for a little that differs by seed."""
    arms = one_box.arms(list(means), ENCODINGS, [0, 97]).merge(pd.DataFrame(dict(seed=range(5))), how="cross")
    return arms.assign(mean_iou=arms.loss.map(means) + 1e-3 * (arms.seed * (1 + arms.loss.map(list(means).index)) % 5))


def test_primary_outcome_is_a_family_of_its_own():
    table = one_box.differences(ended(l1=0.6, iou=0.5, giou=0.4))
    assert table.primary.sum() == 3 and set(table[table.primary].first_box) == {97}
    assert len(table) == 3 * 2 * 3  # encodings, first boxes, pairs
    row = table[table.primary].iloc[0]
    assert row.p_holm == pytest.approx(3 * row.p) and row.verdict == "worse"
    words = one_box.describe_answer(table)
    assert "own rate: worse with linear, log-size, sigmoid." in words and "5 paired seeds" in words
    few = one_box.describe_answer(one_box.differences(ended(l1=0.6, iou=0.5, giou=0.4).query("seed < 3")))
    assert "too few seeds with linear" in few
    assert "takes the losses giou and iou" in one_box.describe_answer(one_box.differences(ended(l1=0.6, iou=0.5)))


def test_why_a_shared_box_grows_and_why_it_may_stay_large():
    names = ["l1", "iou", "giou", "diou"]
    table = one_box.pull(names).query("first_box == 97")
    growth = table.pivot(index="side", columns="loss", values="growth")
    _, target = training.pictures(1000, 0, "search")
    huge = growth.index[-1]  # over every target: IoU = GIoU = w h / side², hence −d loss / d ln side = −2 w h / side²
    fading = -2 * target[:, 2:].prod(1).mean().item() / huge**2
    assert growth.loc[huge, ["iou", "giou"]].tolist() == pytest.approx([fading] * 2, rel=1e-3)
    assert growth.l1[huge] == pytest.approx(-2 * huge, rel=1e-4)  # which does not fade
    assert (growth.diou > 0).all()  # it shortens ρ/c, however large the square is
    near_one = growth[(growth.index > 0.3) & (growth.index < 1)]
    assert (near_one.giou > 10 * near_one.iou).all() and (near_one.l1 < 0.1).all()
    assert (growth.giou[growth.index < 0.08] < 0).all()  # and a small one shrinks: C grows faster than the union
    assert "GIoU 0.1" in one_box.describe_pull(table) and "DIoU 0.03 to 10.00" in one_box.describe_pull(table)


def test_a_disjoint_square_under_giou_is_pulled_as_its_formula_says():
    """C grows on the far side too: for a square of side s at 0, target beyond it, d ln(union / C) decides."""
    s = torch.tensor(0.1, requires_grad=True)
    target = torch.tensor([0.5, 0.5, 0.3, 0.3])
    square = torch.stack((torch.tensor(0.1), torch.tensor(0.1), s, s))
    (slope,) = torch.autograd.grad(training.of_code("giou", "linear", square, target), s)
    side = 0.65 - 0.1 + s.item() / 2  # of C
    area, grown = s.item() ** 2 + 0.09, 2 * s.item()
    assert slope.item() == pytest.approx(-(grown / side**2 - 2 * area / side**3 / 2), rel=1e-4)


def test_a_rate_too_high_and_a_bounded_box_make_giou_collapse_and_not_the_weighted_sum():
    table = one_box.factors(["giou", WEIGHTED], [60], [0.1], [100], n_images=1000, n_measured=100)
    kept = table[(table.encoding == "sigmoid") & ~table.normalise].groupby("loss").collapsed.all()
    assert kept["giou"] and not kept[WEIGHTED]
    shares = one_box.effects(table)
    assert set(shares.factor) == set(one_box.FACTORS) and (shares.grew >= shares.stayed).all()
    whole = shares[shares.factor == "learning_rate"].set_index("loss")
    assert whole.stayed["giou"] == pytest.approx(table[table.loss == "giou"].collapsed.mean())
    assert "GIoU" in one_box.describe_factors(shares)


def test_a_users_loss_is_told_of_by_its_label():
    from giou_repro.registry import LOSSES, loss

    loss("mine_of_one_box", label="Mine")(lambda pred, target: 1 - boxes.iou(pred, target) ** 2)
    try:
        arms = one_box.arms(["l1", "giou", "mine_of_one_box"], ["linear", "sigmoid"], learning_rate=[0.01])
        history = training.train(arms, [0, 1, 2], 3, **SMALL)
        curves, differences = one_box.curves(history), one_box.differences(one_box.runs(history))
        assert "Mine" in one_box.describe_dose(curves, differences.assign(verdict="better"))
        assert "of 18 runs" in one_box.describe_curves(one_box.runs(history), curves)
        assert "none is better or worse" in one_box.describe_dose(curves, differences)
    finally:
        del LOSSES["mine_of_one_box"]

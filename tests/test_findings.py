"""Notebooks' measurements by numbers known beforehand, and that the words follow the numbers."""

import numpy as np
import pandas as pd
import pytest

from giou_repro.experiments import convergence, findings, landscape, metric
from giou_repro.simulation import simulate


def test_figure_1_prints_the_papers_values():
    table = metric.figure_1(["l1"])
    for key in ("iou", "giou", "distance"):
        assert (table[key].round(2) == table[f"printed_{key}"]).all()
    assert table.l2_of_corners[:3].tolist() == pytest.approx([51**0.5] * 3)
    assert "all reproduced" in findings.figure_1(table)
    assert "**not** all reproduced" in findings.figure_1(table.assign(printed_iou=0.5))


def test_spread_shrinks_to_nothing_with_the_distance():
    table = metric.spread(["giou"], [0.01, 8], 500, seed=0)
    iou = table[table.measure == "iou"].assign(range=lambda t: t.high - t.low).set_index(["norm", "distance"]).range
    assert (iou[:, 0.01] < 0.01).all()
    assert (iou[:, 8] > 0.3).all()


def test_all_of_the_papers_properties_hold():
    table = metric.properties(2_000, seed=1)
    assert table.holds.all(), table[~table.holds]


def test_compared_knows_metrics_from_others():
    table = metric.compared(["l1", "l2", "iou", "giou"], 2_000, seed=0).set_index("loss")
    assert table.blind.to_dict() == {"l1": 0, "l2": 0, "iou": 1, "giou": 0}
    assert (table.triangle[["l1", "iou", "giou"]] < 1e-9).all()
    assert table.triangle.l2 > 1  # squares break the triangle
    assert table.scaling[["iou", "giou"]].max() < 1e-12


def test_pairs_of_equal_squares_stay_above_minus_a_half():
    equal, corners = metric.pairs("equal", 20_000, 0), metric.pairs("corners", 20_000, 0)
    assert -0.5 <= equal.giou[equal.overlap].min() < -0.45
    assert corners.giou[corners.overlap].min() < -0.9
    assert (corners.shorthand - corners.giou)[~corners.overlap].abs().max() < 1e-12
    with pytest.raises(ValueError, match="'equal' or 'corners'"):
        metric.pairs("squares", 10, 0)


def test_flat_parts():
    table = landscape.flat_parts(landscape.profiles(["iou", "giou", "diou"], 400)).set_index(["scenario", "loss"])
    assert table.disjoint["slide"].to_dict() == {"iou": 1, "giou": 0, "diou": 0}
    assert table.contained["contained"].to_dict() == {"iou": 1, "giou": 1, "diou": 0}
    words = findings.flat_parts(table.reset_index())
    assert "disjoint boxes: IoU (claim" in words
    assert "inside the target: IoU, GIoU." in words


def test_slope_is_the_difference_quotient():
    table = landscape.profiles(["giou"], 2_000)
    for _, part in table.groupby("scenario"):
        quotient = np.gradient(part.value, part.t)
        assert np.median(np.abs(quotient - part.slope)) < 1e-3


def test_field_points_at_the_target_from_afar():
    table = landscape.field(["giou"], 5)
    left = table[(table.x == -2) & (table.y == 0)].iloc[0]
    assert left.dx > 0
    assert left.dy == 0


def test_giou_is_steeper_at_low_overlap_and_alike_at_high():
    words = findings.steepness(landscape.steepness(["iou", "giou"], 20_000, seed=0))
    assert "2.1 times as steep as IoU at IoU below 0.1, and 1.02 times above 0.9" in words


def test_ranking_puts_the_least_error_and_the_highest_iou_first():
    table = pd.DataFrame(dict(loss=["iou", "giou"], error=[2.0, 1.0], mean_iou=[0.4, 0.3]))
    assert findings.ranking(table, "error") == "GIoU (1.000), IoU (2.000)"
    assert findings.ranking(table, "mean_iou") == "IoU (0.400), GIoU (0.300)"


def test_every_difference_is_told_with_its_verdict():
    rows = [
        ("AP", "giou", 0.008, "better"),
        ("AP50", "giou", -0.009, "worse"),
        ("AP", "ciou", 0.001, "undecided"),
        ("mean_iou", "ciou", 0.002, "undecided"),
    ]
    table = pd.DataFrame(rows, columns=["measure", "loss", "difference", "verdict"])
    table = table.assign(
        setting="cells", against="l2", n=10, low=table.difference - 0.001, high=table.difference + 0.001
    )
    words = findings.paired(table)
    assert "**cells** (4 differences)" in words
    assert (
        "- against ℓ2 (n = 10), **better**: AP: GIoU +0.008 (+0.007 to +0.009)\n- against ℓ2 (n = 10), **worse**: AP50: GIoU -0.009"
        in words
    )
    assert "**undecided**: AP: CIoU +0.001 (+0.000 to +0.002); mean IoU: CIoU +0.002 (+0.001 to +0.003)\n" in words
    few = findings.paired(table[:1].assign(n=2, low=np.nan, high=np.nan, verdict="too few seeds"))
    assert (
        "- against ℓ2 (n = 2), **too few seeds**: AP: GIoU +0.008\n- mean IoU is not compared: a training found no object"
        in few
    )


@pytest.fixture(scope="module")
def result():
    return simulate(["iou", "giou"], n_points=30, steps=20, gradients="published", progress=False)


def test_errors_are_per_case(result):
    assert convergence.curves(result).error.iloc[0] == pytest.approx(result.curves.error.iloc[0] / (30 * 343))
    table = convergence.standings(result).set_index("loss")
    assert table.half_step.isna().iou  # the IoU loss never halves the error
    assert table.error.giou == pytest.approx(result.final[result.final.loss == "giou"].error.mean() / 343, rel=1e-5)


def test_against_paper_is_close_from_the_first_step(result):
    table = convergence.against_paper(result).set_index(["loss", "step"])
    assert table.paper["iou", 1] == pytest.approx(6.63e6 / 1_715_000)
    assert (table.difference.abs() < 0.6).all()  # 30 points only


def test_alignment_splits_the_disc():
    final = pd.DataFrame(
        dict(loss="iou", x=[12.5, 12, 10, 10.0], y=[10, 12, 12.5, 10.0], error=[343.0, 686, 343, 34300])
    )
    table = convergence.alignment(final)  # beside, diagonal, above, and on the target, which does not count
    assert table.aligned.tolist() == [1]
    assert table.diagonal.tolist() == [2]
    assert "for: none" in findings.alignment(table.assign(run="exact"))
    assert "IoU with exact gradients (4.000 against 2.000)" in findings.alignment(
        table.assign(run="exact", aligned=4.0)
    )


def test_single_boxes_start_where_they_say():
    table = convergence.single_boxes(["giou"], "exact", steps=3, progress=False)
    start = table[table.step == 0].set_index("start")
    assert start.loc["diagonal", ["x", "y", "w", "h"]].tolist() == [12, 12, 1, 1]
    assert start.loc["horizontal", ["x", "y", "w", "h"]].tolist() == [12.5, 10, 1, 1]


def test_every_loss_has_its_best_step_size():
    table = convergence.every_loss(["l2", "giou"], 2, 0.1, [0.001, 0.1], 2, steps=50, seed=0, progress=False).set_index(
        "loss"
    )
    assert table.best_size["giou"] == 0.1
    assert table.best_error["giou"] == pytest.approx(table.error["giou"])
    words = findings.every_loss(table.reset_index(), 0.1)
    assert "Of the 1 overlap losses" in words and "ℓ2" not in words

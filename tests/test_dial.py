"""The dial: the gain of GIoU against the share of disjoint positives, by hand."""

import io

import numpy as np
import pandas as pd
import pytest

from giou_repro.experiments import comparison, dial


@pytest.fixture
def runs():
    """Four k, five seeds; at share s GIoU leads IoU by s / 10 and ℓ1 by .02, with little noise."""
    rng, rows = np.random.default_rng(0), []
    for cells, share in ((0, 0.0), (1, 0.2), (2, 0.5), (4, 0.8)):
        setting = "shapes train → val, yolov3, 128 px, 5 epochs" + (comparison.AWAY.format(cells) if cells else "")
        for seed in range(5):
            for loss, behind in (("iou", share / 10), ("l1", 0.02), ("giou", 0)):
                value = 0.6 + seed / 10 - behind + rng.normal(0, 0.0005)
                rows.append(dict(setting=setting, loss=loss, seed=seed, cells_away=cells, disjoint=share, AP=value))
    return pd.DataFrame(rows).assign(mean_iou=lambda table: table.AP)


def test_gains_are_a_family_of_all_cells_and_losses(runs):
    table = dial.gains(runs)
    assert len(table) == 2 * 4 * 2 and table.dial.unique().tolist() == ["shapes train → val, yolov3, 128 px, 5 epochs"]
    iou = table[(table.measure == "AP") & (table.against == "iou")]
    assert iou.difference.round(2).tolist() == [0, 0.02, 0.05, 0.08] and iou.disjoint.tolist() == [0, 0.2, 0.5, 0.8]
    assert iou.verdict.tolist() == ["undecided", "better", "better", "better"]
    smallest = table[table.measure == "AP"].nsmallest(1, "p").iloc[0]
    assert smallest.p_holm == pytest.approx(8 * smallest.p)


def test_the_slope_says_whether_the_gain_grows(runs):
    table = dial.slopes(runs).set_index(["measure", "against"])
    assert table.difference["mean_iou", "iou"] == pytest.approx(0.1, abs=0.003)
    assert table.verdict["mean_iou"].to_dict() == {"iou": "better", "l1": "undecided"}
    words = dial.describe_gains(dial.gains(runs), table.reset_index())
    assert "**grows**" in words and "where 80% are; slope +0.1" in words
    flipped = dial.slopes(runs.assign(disjoint=1 - runs.disjoint)).set_index(["measure", "against"])
    assert flipped.verdict["AP", "iou"] == "worse"


def test_without_a_dial_there_is_nothing_to_say(runs):
    for none in (runs[runs.cells_away == 0], runs.drop(columns="cells_away")):
        for table in (dial.gains(none), dial.slopes(none)):
            read = pd.read_csv(io.StringIO(table.to_csv(index=False)))
            assert read.empty and {"measure", "against", "verdict"} <= set(read), "its file can be read"


def test_a_run_that_found_nothing_counts_as_0(runs):
    runs.loc[0, "mean_iou"] = np.nan  # of IoU, seed 0, no cell away
    at = dial.gains(runs, ["mean_iou"]).set_index(["cells_away", "against"])
    others = runs.AP[(runs.loss == "iou") & (runs.cells_away == 0) & (runs.seed > 0)]
    assert at.mean_against[0, "iou"] == pytest.approx(others.sum() / 5)


def test_the_figure_marks_what_is_decided(runs):
    figure = dial.plot_gains(dial.gains(runs))
    assert [axis.get_ylabel() for axis in figure.axes] == ["Δ mean IoU, points", "Δ AP, points"]
    dots = [len(line.get_xdata()) for line in figure.axes[1].lines if line.get_linestyle() == "None"]
    assert dots == [3, 4]


def test_each_dial_has_a_row_and_other_figures_leave_it_out(runs):
    table = dial.gains(runs)
    both = pd.concat([table, table.assign(dial="the same, weight 10")])
    assert len(dial.plot_gains(both).axes) == 2 * len(dial.plot_gains(table).axes)
    plain = runs[runs.cells_away == 0].assign(setting="bccd")
    assert set(dial.others(pd.concat([runs, plain]), runs).setting) == {"bccd"}
    assert len(dial.others(runs, runs)) == len(runs)

"""The comparison: differences between losses, their weights, what is said of them and the figures."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from giou_repro.experiments import comparison, comparison_figures, style

FAMILY = [("l1", "l2"), ("iou", "l2"), ("giou", "l2"), ("iou", "l1"), ("giou", "l1"), ("giou", "iou")]


def family(losses, n=5, gain=0.05, **changed):
    """Runs of `losses` on `n` seeds: the first at AP .3, every other `gain` above, with noise of .001."""
    rng, rows = np.random.default_rng(0), []
    for loss in losses:
        for seed in range(n):
            ap = 0.3 + gain * (loss != losses[0]) + rng.normal(0, 0.001)
            rows.append(
                dict(
                    setting="one",
                    loss=loss,
                    weight=1.0,
                    seed=seed,
                    AP=ap,
                    AP50=ap,
                    AP75=ap,
                    mean_iou=0.7 + rng.normal(0, 0.001),
                )
                | changed
            )
    return pd.DataFrame(rows)


def test_every_loss_is_held_against_the_detectors_own_and_l1_in_one_family():
    table = comparison.paired(family(["l1", "l2", "iou", "giou"]))
    assert [pair for pair in zip(table.loss, table.against, strict=True)] == 4 * FAMILY
    assert table.measure.unique().tolist() == ["AP", "AP50", "AP75", "mean_iou"]
    assert table.p_holm.min() == pytest.approx(24 * table.p.min())  # 4 measures of 6 pairs
    assert comparison.paired(family(["l1", "giou"])).against.unique().tolist() == ["l1"]
    two = pd.concat([family(["l2", "giou"]), family(["l2", "giou"]).assign(setting="two")])
    assert comparison.paired(two).groupby("setting").p_holm.min().nunique() == 1, "another setting is another family"
    assert comparison.paired(family(["l2"])).empty


def test_verdicts_from_five_seeds_and_intervals_from_three():
    clear = comparison.paired(family(["l2", "giou"]))
    assert clear.set_index("measure").verdict.to_dict() == {
        "AP": "better",
        "AP50": "better",
        "AP75": "better",
        "mean_iou": "undecided",
    }
    few = comparison.paired(family(["l2", "giou"], n=4))
    assert set(few.verdict) == {"too few seeds"} and few.low.notna().all()


def test_where_nothing_was_found_there_is_no_mean_iou_to_compare():
    table = comparison.paired(family(["l2", "giou"], mean_iou=np.nan))
    assert table.measure.tolist() == ["AP", "AP50", "AP75"]


def test_each_loss_is_compared_at_the_weight_that_its_search_found_on_all_seeds():
    rows = [
        ("search", loss, weight, seed, ap)
        for seed in (100, 101, 102)
        for loss, weight, ap in (("l2", 1, 0.1), ("l2", 3, 0.3), ("l2", 9, 0.2), ("giou", 3, 0.3), ("giou", 9, 0.4))
    ]
    rows += [
        ("final", loss, weight, seed, 0.4)
        for seed in range(5)
        for loss, weight in (("l2", 3), ("giou", 3), ("giou", 9))
    ]
    runs = pd.DataFrame(rows, columns=["setting", "loss", "weight", "seed", "AP"])
    runs = runs.assign(dataset="bccd", detector="yolov3", trained_as="yolov3")
    runs = runs.assign(AP50=0.5, AP75=0.3, mean_iou=0.7, AP_giou=0.3, AP75_giou=0.2)
    chosen = comparison.at_one_weight(runs.assign(disjoint=0.0))
    of = chosen.groupby(["setting", "loss"]).agg(n=("AP", "size"), weight=("weight", "max"), search=("search", "first"))
    assert [(*name, *row) for name, row in of.iterrows()] == [
        ("final, best weights", "giou", 5, 9, "3, 9: at the edge"),
        ("final, best weights", "l2", 5, 3, "1, 3, 9"),
        ("final, weight 3", "giou", 5, 3, ""),
        ("final, weight 3", "l2", 5, 3, ""),
    ]
    best = chosen[chosen.setting == "final, best weights"]
    words = comparison.describe_paired(comparison.paired(best))
    assert "- the weight of GIoU is 9, at the edge of 3, 9" in words and "weight of ℓ2" not in words
    assert comparison.paper_table(best).set_index("loss").search.to_dict() == {
        "l2": "1, 3, 9",
        "giou": "3, 9: at the edge",
    }


def test_where_positives_are_moved_away_their_fit_chooses_the_weight():
    rows = []
    for away, (part, seeds) in itertools.product(
        ("", ", positives 4 cells away"), (("val", [100]), ("test", range(5)))
    ):
        for seed in seeds:
            runs = [("iou", 1, 0.3, 0.4), ("giou", 1, 0.3, 0.4), ("giou", 5, 0.2, 0.5), ("giou", 9, 0.1, 0.1)]
            rows += [(part + away, seed, *run) for run in runs[: 4 if part == "val" else 3]]
    table = pd.DataFrame(rows, columns=["setting", "seed", "loss", "weight", "AP", comparison.FIT])
    chosen = comparison.at_one_weight(table.assign(dataset="shapes", trained_as="yolov3"))
    chosen = chosen[chosen.loss == "giou"].groupby("setting", sort=False).weight.unique().map(list).to_dict()
    assert chosen == {
        "test, weight 1": [1],
        "test, best weights": [5],
        "test, positives 4 cells away, weight 1": [1],
        "test, positives 4 cells away, best weights": [5],
    }


def test_the_shares_stand_beside_every_difference():
    table = family(["l2", "l1", "giou"], disjoint=0.25, clipped=0.5)
    paired = comparison.paired(table.assign(disjoint=table.loss.map(dict(l2=0, l1=0.5, giou=0.25))))
    row = paired[(paired.loss == "giou") & (paired.against == "l1")].iloc[0]
    assert (row.disjoint, row.disjoint_against, row.clipped) == (0.25, 0.5, 0.5)
    words = comparison.describe_paired(paired)
    assert "- positives disjoint from their target: ℓ2 0.00%, ℓ1 50.00%, GIoU 25.00%" in words
    assert "- steps clipped: ℓ2 50.00%" in words


def test_where_the_test_images_are_common_the_unpaired_test_has_to_agree():
    table = family(["l2", "giou"])
    table[comparison.TESTED] += table[["seed"]].to_numpy()  # the seed moves both alike, by 20 times the gain
    assert set(comparison.paired(table.assign(dataset="bccd")).verdict) == {"undecided"}
    assert "better" in set(comparison.paired(table.assign(dataset="shapes")).verdict)


def test_every_difference_is_described_with_its_verdict():
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
    words = comparison.describe_paired(table)
    assert words.startswith(
        "**What we see.** Of 4 differences between losses: 1 better, 1 worse, 2 undecided.\n\n**cells** (4"
    )
    assert (
        "- against ℓ2 (n = 10), **better**: AP: GIoU +0.008 (+0.007 to +0.009)\n"
        "- against ℓ2 (n = 10), **worse**: AP50: GIoU -0.009" in words
    )
    assert "**undecided**: AP: CIoU +0.001 (+0.000 to +0.002); mean IoU: CIoU +0.002 (+0.001 to +0.003)\n" in words
    few = comparison.describe_paired(table[:1].assign(n=2, low=np.nan, high=np.nan, verdict="too few seeds"))
    assert (
        "- against ℓ2 (n = 2), **too few seeds**: AP: GIoU +0.008\n"
        "- mean IoU is not compared: a training found no object" in few
    )


@pytest.fixture
def swept():
    """Two losses at three weights, six seeds; l2 has one weight the other lacks. Seeds 0 and 1 like weight 2 of giou,
    the others weight 1."""
    rows = [
        ("giou", weight, seed, (0.5 if seed < 2 else 0.1) if weight == 2 else 0.3)
        for weight in (1, 2, 4)
        for seed in range(6)
    ]
    rows += [("l2", weight, seed, 0.2 + weight / 100) for weight in (1, 2, 8) for seed in range(6)]
    table = pd.DataFrame(rows, columns=["loss", "weight", "seed", "AP"])
    return table.assign(setting="cells", dataset="bccd", detector="yolov3", trained_as="yolov3")


def test_the_best_weight_is_chosen_on_other_seeds(swept):
    best = comparison.at_best_weight(swept)
    assert sorted(best.seed.unique()) == [2, 3, 4, 5]
    assert best.groupby("loss").weight.unique().map(list).to_dict() == {"giou": [2], "l2": [8]}
    assert best.AP[best.loss == "giou"].tolist() == [0.1] * 4  # the price of an honest selection, shown


def test_no_best_weight_without_a_seed_left_or_a_seed_of_all_weights(swept):
    assert comparison.at_best_weight(swept[swept.seed == 0]).empty
    assert comparison.at_best_weight(swept[(swept.weight == 1) == (swept.seed < 3)]).empty


def test_a_single_weight_keeps_all_seeds(swept):
    assert len(comparison.at_one_weight(swept[swept.weight == 1])) == 12


def test_equal_weights_are_those_of_two_losses(swept):
    chosen = comparison.at_one_weight(swept)
    assert chosen.groupby("setting", sort=False).size().to_dict() == {
        "cells, weight 1": 12,
        "cells, weight 2": 12,
        "cells, best weights": 8,
    }


def test_without_a_shared_weight_or_seeds_nothing_can_be_compared(swept):
    apart = swept[(swept.weight == swept.loss.map({"giou": 4, "l2": 8})) | (swept.weight == 2) & (swept.loss == "l2")]
    with pytest.raises(ValueError, match="no weight is shared by two losses"):
        comparison.at_one_weight(apart[apart.seed == 0])


def test_weights_have_n_and_an_interval_from_three(swept):
    table = comparison.weights(swept[swept.seed < 2]).set_index(["loss", "weight"])
    assert table.loc[("giou", 2), "mean"] == 0.5
    assert (table.n == 2).all()
    assert table.low.isna().all()
    assert comparison.weights(swept).low.notna().all()
    assert comparison.weights(swept[swept.weight == 1]).empty
    two = swept[swept.weight < 3]
    assert comparison.weights(two).empty and len(comparison.weights(two[two.seed < 3])) == 4


def test_every_figure_of_the_comparison_is_drawn_twice_alike(swept):
    losses = swept[swept.weight == 1].assign(weight=1.0)
    table = family(["l1", "l2", "iou", "giou"])
    paired = comparison.paired(table)
    epochs = pd.concat(losses.assign(epoch=e, classification=1 / e, mean_iou=losses.AP) for e in (1, 2, 3))
    matches = pd.concat(losses.assign(criterion=c, threshold=t) for c in ("iou", "giou") for t in (0.5, 0.75))
    drawings = [
        lambda: comparison_figures.plot_every_run(table.assign(AP_giou=table.AP)),
        lambda: comparison_figures.plot_paired(paired),
        lambda: comparison_figures.plot_curves(epochs),
        lambda: comparison_figures.plot_thresholds(matches),
        lambda: comparison_figures.plot_weights(comparison.weights(swept)),
    ]
    for draw in drawings:
        figure = draw()
        assert png(figure) == png(draw())
        assert figure.get_figwidth() <= style.WIDTH
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def test_a_full_dot_is_a_difference_beyond_chance():
    table = comparison.paired(family(["l2", "giou"]))
    axes = comparison_figures.plot_paired(table).axes
    fills = [axis.collections[1].get_facecolor()[0].tolist()[:3] for axis in axes]
    assert [fill == [1, 1, 1] for fill in fills] == [False, False, False, True]  # AP, AP50, AP75; mean IoU is undecided


def test_thresholds_show_the_gain_over_the_baseline():
    table = pd.DataFrame(
        dict(setting="one", loss=["l2", "giou"] * 2, criterion=["iou"] * 2 + ["giou"] * 2, threshold=0.5)
    ).assign(AP=[0.3, 0.35, 0.2, 0.2])
    gains = comparison_figures.plot_thresholds(table).axes[2].lines
    assert [line.get_ydata().round(6).tolist() for line in gains] == [[0], [0.05]]

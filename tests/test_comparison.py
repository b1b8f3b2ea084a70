"""The comparison: which runs are found, which belong together, and the paper's tables made of them."""

import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from giou_repro.__main__ import main
from giou_repro.experiments import comparison, comparison_figures, style
from giou_repro.runs import store
from giou_repro.training.loop import configure


def finished(results, ap, **given):
    """A complete detector run with a made-up AP, as training leaves it."""
    config = configure(scale="smoke", **given)
    run = store.open_run("05_train_detector", results / "05_train_detector", config.model_dump())
    head = {
        "dataset": "shapes",
        "detector": config.detector,
        "loss": config.loss,
        "weight": config.weight or 5.0,
        "seed": config.seed,
    }
    numbers = {
        "AP": ap,
        "AP50": 2 * ap,
        "AP75": ap / 2,
        "AP_giou": ap,
        "AP50_giou": ap,
        "AP75_giou": ap / 2,
        "mean_iou": 0.7,
        "disjoint": 0.1,
    }
    run.save_table("evaluation", pd.DataFrame([head | numbers]))
    run.save_table("curves", pd.DataFrame({"epoch": [1], "step": [4], "loss": [3.0], "box": [1.0], "AP": [ap]}))
    run.save_table("thresholds", pd.DataFrame({"criterion": ["iou"], "threshold": [0.5], "AP": [2 * ap]}))
    run.close("complete")
    return run


def test_runs_of_one_setting_differ_by_loss_weight_and_seed_only(tmp_path):
    finished(tmp_path, 0.2, loss="l2", seed=0)
    finished(tmp_path, 0.3, loss="giou", seed=1, weight=2.0)
    finished(tmp_path, 0.4, loss="giou", seed=0, epochs=5)
    runs, curves, thresholds = comparison.gather(tmp_path)
    assert runs.groupby("setting", sort=False).size().sort_values().tolist() == [1, 2]
    assert set(curves.total) == {3.0} and set(curves.loss) == {"l2", "giou"} and len(thresholds) == 3


def test_of_equal_runs_the_newest_counts_and_unfinished_ones_do_not(tmp_path):
    finished(tmp_path, 0.2)
    finished(tmp_path, 0.3)
    store.open_run("05_train_detector", tmp_path / "05_train_detector", {"loss": "l1"})
    runs, _, _ = comparison.gather(tmp_path)
    assert runs.AP.tolist() == [0.3]


@pytest.mark.parametrize("break_it", [lambda path: path.unlink(), lambda path: path.write_text("")])
def test_a_run_with_a_table_missing_or_damaged_stops_no_other(tmp_path, break_it):
    finished(tmp_path, 0.2, seed=0)
    break_it(finished(tmp_path, 0.3, seed=1).folder / "curves.csv")
    with pytest.warns(UserWarning, match="does not count, as a table of it cannot be read"):
        runs, _, _ = comparison.gather(tmp_path)
    assert runs.AP.tolist() == [0.2]


def test_where_there_is_no_run_the_message_has_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="giou-repro train"):
        comparison.gather(tmp_path)


def test_a_training_of_a_smaller_scale_does_not_count(tmp_path):
    finished(tmp_path, 0.2)
    with pytest.raises(
        FileNotFoundError, match="1 of a smaller scale do not count at scale laptop, but at --scale smoke"
    ):
        comparison.gather(tmp_path, scale="laptop")
    assert len(comparison.gather(tmp_path, scale="smoke")[0]) == 1


def test_a_published_record_is_no_training(tmp_path):
    finished(tmp_path, 0.2)
    store.open_run("06_compare_losses", tmp_path / "published", {"dataset": None})
    assert len(comparison.gather(tmp_path, "shapes")[0]) == 1


def with_data(run, checksum, **entries):
    run._write_record(run.record | {"data": {"train": {"checksum": checksum} | entries}})


def test_generated_data_of_another_seed_is_the_same_setting_and_seeds_are_paired(tmp_path):
    for loss in ("l2", "giou"):
        for seed in range(3):
            with_data(finished(tmp_path, 0.2, loss=loss, seed=seed), f"of seed {seed}", recipe="shapes")
    runs, _, _ = comparison.gather(tmp_path)
    assert runs.setting.nunique() == 1
    assert comparison.paired(runs).n.unique().tolist() == [3]
    with_data(finished(tmp_path, 0.2, loss="iou", seed=2), "others", recipe="shapes")
    runs, _, _ = comparison.gather(tmp_path)
    assert runs.groupby("setting").size().sort_values().tolist() == [1, 6], (
        "equal seeds without equal images are not paired"
    )
    with_data(finished(tmp_path, 0.2, loss="iou", seed=1), "of seed 1")  # a record from before there were recipes
    assert comparison.gather(tmp_path)[0].setting.nunique() == 3


def test_two_losses_trained_on_two_seeds_are_compared_as_one_setting_of_two(tmp_path):
    small = {"images": 8, "val_images": 2, "image_size": 64, "epochs": 1, "evaluations": 0}
    place = ["--scale", "smoke", "--results", str(tmp_path)]
    words = [part for name, value in small.items() for part in ("-p", name, str(value))]
    for loss, seed in itertools.product(("l2", "giou"), range(2)):
        assert main(["train", "--loss", loss, "--seed", str(seed), *words, *place]) == 0
    assert main(["run", "06_compare_losses", "-p", "results", str(tmp_path), *place]) == 0
    (path,) = tmp_path.glob("06_compare_losses/*/paired.csv")
    table = pd.read_csv(path)
    assert table.setting.nunique() == 1
    assert set(zip(table.loss, table.against, table.n, strict=True)) == {("giou", "l2", 2)}
    data = [run.record["data"]["train"] for run in store.runs(tmp_path, "05_train_detector")]
    assert (len({part["checksum"] for part in data}), len({part["recipe"] for part in data})) == (2, 1)


def test_a_loss_of_a_module_that_is_gone_keeps_its_numbers_and_name(tmp_path, capsys):
    finished(tmp_path, 0.2, loss="l2")
    for name in ("gone:mine", "gone:giou"):
        run = finished(tmp_path, 0.3, loss="iou")
        run.table("evaluation").assign(loss=name).to_csv(run.folder / "evaluation.csv", index=False)
    runs, _, _ = comparison.gather(tmp_path)
    assert runs.loss.tolist() == ["l2", "gone:giou", "mine"]  # the package's giou is another
    assert f"{runs.run[2]}: its loss gone:mine could not be imported" in capsys.readouterr().out
    paired = comparison.paired(runs)
    assert "mine +0.100" in comparison.describe_paired(paired)
    assert "mine" in [text.get_text() for text in comparison_figures.plot_every_run(runs).axes[0].get_xticklabels()]
    assert "mine − ℓ2 (n 1)" in [
        text.get_text() for text in comparison_figures.plot_paired(paired).axes[0].get_yticklabels()
    ]


def test_a_kept_comparison_is_gathered_as_its_trainings_were(tmp_path):
    for loss in ("l2", "giou"):
        for weight in (1.0, 10.0):
            for seed in range(3):
                finished(tmp_path / "results", 0.3 + seed / 100, loss=loss, weight=weight, seed=seed)
    first = runs, curves, thresholds = comparison.gather(tmp_path / "results")
    kept = store.start("06_compare_losses", tmp_path / "published" / "06_compare_losses", {})
    comparison.keep_records(runs, tmp_path / "results", kept)
    chosen = comparison.at_one_weight(runs)  # where a run is in two settings
    for name, table in (
        ("detectors", runs),
        ("curves", comparison.of_chosen(curves, chosen)),
        ("thresholds", comparison.of_chosen(thresholds, chosen)),
    ):
        kept.save_table(name, table)
    again = comparison.gather(tmp_path / "published")
    pd.testing.assert_frame_equal(runs, again[0])
    for ours, theirs in zip(first[1:], again[1:], strict=True):
        pd.testing.assert_frame_equal(
            ours[ours.seed > 0].reset_index(drop=True), theirs[theirs.seed > 0].reset_index(drop=True), check_like=True
        )
    copy = store.open_run("06_compare_losses", tmp_path / "06_compare_losses", {})
    comparison.keep_records(again[0], tmp_path / "published", copy)
    assert len(list((copy.folder / "runs").glob("*.json"))) == 12


def test_gains_are_relative_to_the_detectors_own_loss(tmp_path):
    for seed in range(3):
        finished(tmp_path, 0.2 + 0.01 * seed, loss="l2", seed=seed)
        finished(tmp_path, 0.22 + 0.01 * seed, loss="giou", seed=seed)
    runs, _, _ = comparison.gather(tmp_path)
    table = comparison.paper_table(runs).set_index("loss")
    assert table.AP.round(6).to_dict() == {"l2": 0.21, "giou": 0.23} and table.n.tolist() == [3, 3]
    assert table["AP gain %"].round(3).to_dict() == {"l2": 0, "giou": 9.524}
    paired = comparison.paired(runs).set_index("measure").loc["AP"]
    assert (paired.loss, paired.against, paired.n, round(paired.difference, 6)) == ("giou", "l2", 3, 0.02)


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


def test_several_weights_are_compared_at_equal_and_at_best_weight(tmp_path):
    for seed in range(4):
        for weight, l2, giou in ((1.0, 0.3, 0.2), (10.0, 0.1, 0.4)):
            finished(tmp_path, l2, loss="l2", seed=seed, weight=weight)
            finished(tmp_path, giou, loss="giou", seed=seed, weight=weight)
    runs, _, _ = comparison.gather(tmp_path)
    chosen = comparison.at_one_weight(runs)
    best = chosen[chosen.setting.str.endswith("best weights")]
    assert sorted(name.rsplit(", ", 1)[1] for name in chosen.setting.unique()) == [
        "best weights",
        "weight 1",
        "weight 10",
    ]
    assert best.groupby("loss").weight.unique().map(list).to_dict() == {"giou": [10.0], "l2": [1.0]}
    assert 0 not in best.seed.tolist(), "the seed that chose is left out"
    assert comparison.weights(runs).set_index(["loss", "weight"])["mean"].round(6).to_dict()["giou", 10.0] == 0.4


def test_a_search_of_the_weight_stands_beside_the_comparison_and_not_in_it(tmp_path):
    for weight in (1.0, 10.0):
        finished(tmp_path, 0.3, loss="l2", weight=weight, epochs=5)
        finished(tmp_path, 0.4, loss="giou", weight=weight, epochs=5)
    runs, _, _ = comparison.gather(tmp_path)
    assert comparison.at_one_weight(runs).setting.nunique() == 2
    finished(tmp_path, 0.5, loss="giou", weight=10.0)
    runs, _, _ = comparison.gather(tmp_path)
    assert comparison.at_one_weight(runs).AP.tolist() == [0.5]
    assert comparison.weights(runs).weight.tolist() == [1, 10, 1, 10]


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
    runs = runs.assign(dataset="bccd", detector="yolov3", AP50=0.5, AP75=0.3, mean_iou=0.7, AP_giou=0.3, AP75_giou=0.2)
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


def test_seeds_added_after_a_look_are_told_in_the_row(tmp_path):
    def train(seeds):
        for loss, seed in itertools.product(("l2", "giou"), seeds):
            finished(tmp_path, 0.4 + seed / 100, loss=loss, seed=seed)

    train(range(3))
    look = store.open_run("06_compare_losses", tmp_path / "06_compare_losses", {})
    runs, curves, thresholds = comparison.gather(tmp_path)
    for name, table in dict(detectors=runs, curves=curves, thresholds=thresholds).items():
        look.save_table(name, table)
    assert not runs.after_look.any()
    look.close("complete")
    train(range(3, 5))
    runs, _, _ = comparison.gather(tmp_path)
    assert sorted(runs.seed[runs.after_look].unique()) == [3, 4]
    paired = comparison.paired(runs)
    assert set(paired.note) == {"seeds 3, 4 were added after a look"}
    assert "- seeds 3, 4 were added after a look" in comparison.describe_paired(paired)


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
    assert "**cells** (4 differences)" in words
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
    return table.assign(setting="cells", dataset="bccd", detector="yolov3")


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


def test_equal_weights_are_those_all_losses_have(swept):
    chosen = comparison.at_one_weight(swept)
    assert chosen.groupby("setting", sort=False).size().to_dict() == {
        "cells, weight 1": 12,
        "cells, weight 2": 12,
        "cells, best weights": 8,
    }


def test_without_a_shared_weight_or_seeds_nothing_can_be_compared(swept):
    apart = swept[(swept.weight == swept.loss.map({"giou": 4, "l2": 8})) | (swept.weight == 2) & (swept.loss == "l2")]
    with pytest.raises(ValueError, match="no weight is shared by all losses"):
        comparison.at_one_weight(apart[apart.seed == 0])


def test_weights_have_n_and_an_interval_from_three(swept):
    table = comparison.weights(swept[swept.seed < 2]).set_index(["loss", "weight"])
    assert table.loc[("giou", 2), "mean"] == 0.5
    assert (table.n == 2).all()
    assert table.low.isna().all()
    assert comparison.weights(swept).low.notna().all()
    assert comparison.weights(swept[swept.weight == 1]).empty


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


def test_the_evidence_travels_with_the_table(tmp_path):
    finished(tmp_path, 0.2)
    runs, _, _ = comparison.gather(tmp_path)
    target = store.open_run("06_compare_losses", tmp_path / "06_compare_losses", {})
    comparison.keep_records(runs, tmp_path, target)
    [copy] = (target.folder / "runs").glob("*.json")
    assert json.loads(copy.read_text())["run"] == copy.stem == runs.run[0]

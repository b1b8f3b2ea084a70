"""The comparison: which runs are found, which belong together, and the paper's tables made of them."""

import itertools
import json

import pandas as pd
import pytest

from giou_repro.__main__ import main
from giou_repro.experiments import comparison, comparison_figures
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
    table = comparison.paired(comparison.gather(tmp_path)[0])
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
    for weight in (1.0, 3.0, 10.0):
        finished(tmp_path, 0.4 if weight == 3 else 0.3, loss="l2", weight=weight, epochs=5)
        finished(tmp_path, weight / 100, loss="giou", weight=weight, epochs=5)
    runs, _, _ = comparison.gather(tmp_path)
    assert comparison.at_one_weight(runs).setting.nunique() == 3
    finished(tmp_path, 0.5, loss="giou", weight=10.0)
    finished(tmp_path, 0.4, loss="giou", weight=3.0)  # at equal weight: two are no search, whatever the seeds
    finished(tmp_path, 0.3, loss="l2", weight=3.0)
    chosen = comparison.at_one_weight(comparison.gather(tmp_path)[0])
    of = dict(iter(chosen.groupby(chosen.setting.str.rpartition(", ")[2]).AP))
    assert {name: sorted(values) for name, values in of.items()} == {"best weights": [0.3, 0.5], "weight 3": [0.3, 0.4]}
    assert comparison.weights(runs).weight.tolist() == [1, 3, 10, 1, 3, 10]


@pytest.mark.parametrize("other", [{"backbone": "mobilenet_v3_small"}, {"learning_rate": 0.5}, {"ema": 0.5}])
def test_the_search_of_another_network_or_training_chooses_no_weight(tmp_path, other):
    for weight in (1.0, 3.0, 10.0):
        finished(tmp_path, weight / 100, loss="giou", weight=weight, epochs=5, **other)
    for weight, loss in itertools.product((3.0, 10.0), ("l2", "giou")):
        finished(tmp_path, weight / 100, loss=loss, weight=weight)
    chosen = comparison.at_one_weight(comparison.gather(tmp_path)[0])
    assert set(chosen.search) == {""} and not chosen.setting.str.contains("best weights").any()


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


def test_the_evidence_travels_with_the_table(tmp_path):
    finished(tmp_path, 0.2)
    runs, _, _ = comparison.gather(tmp_path)
    target = store.open_run("06_compare_losses", tmp_path / "06_compare_losses", {})
    comparison.keep_records(runs, tmp_path, target)
    [copy] = (target.folder / "runs").glob("*.json")
    assert json.loads(copy.read_text())["run"] == copy.stem == runs.run[0]

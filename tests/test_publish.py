"""Only complete runs of committed code are published, whole; what is made of them is what they say."""

import hashlib
import json

import pandas as pd
import pytest
from test_detector_claims import detectors

from giou_repro.experiments import comparison, dial
from giou_repro.report import findings, publish
from giou_repro.report.publish import BEGIN, END, published_runs
from giou_repro.runs import store


@pytest.fixture
def finished(tmp_path):
    run = store.open_run("02_loss_landscape", tmp_path / "runs", dict(seed=0, scale="paper"), runner=True)
    run.save_table("small", pd.DataFrame(dict(a=[1])))
    run.save_table("large", pd.DataFrame(dict(a=range(publish.LARGEST // 4))))
    run.close("complete")
    run._write_record(run.record | dict(dirty=False))
    (tmp_path / "README.md").write_text(f"first\n{BEGIN}stale\n{END}other table\n{END}last\n")
    (tmp_path / "docs").mkdir()
    return run


def another_small_table(run):
    (run.folder / "small.csv").write_text("a\n2\n")
    outputs = run.record["outputs"] | {"small.csv": hashlib.sha256(b"a\n2\n").hexdigest()}
    run._write_record(run.record | dict(outputs=outputs))


def test_small_tables_are_copied(finished, tmp_path):
    place = publish.add(finished.folder, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["run.json", "small.csv"]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("first\n") and readme.endswith(f"other table\n{END}last\n") and "stale" not in readme


def test_publish_again_replaces(finished, tmp_path):
    publish.add(finished.folder, tmp_path)
    another_small_table(finished)
    assert (publish.add(finished.folder, tmp_path) / "small.csv").read_text() == "a\n2\n"
    assert sorted(path.name for path in (tmp_path / "results" / "published").iterdir()) == [
        "02_loss_landscape",
        "README.md",
        "claims.csv",
    ]


REFUSED = [
    (dict(status="failed"), "it is failed"),
    (dict(dirty=True), "not committed"),
    (dict(dirty=None), "not committed"),
    (dict(runner=False), "not made by giou-repro run"),
    (dict(given=dict(losses=["giou", "scratch:mine"])), "not part of the package: loss scratch:mine of run 2"),
    (dict(parameters=dict(scale="paper", loss="scratch:mine")), "loss scratch:mine of run 2"),
    (dict(parameters=dict(scale="paper", losses=["mine"])), "loss mine of run 2"),  # registered in a cell
    (dict(parameters=dict(scale="paper", losses=["2*l1 + mine"])), r"loss 2\*l1 \+ mine of run 2"),
    (dict(parameters=dict(scale="smoke")), 'scale is not "paper"'),
]


@pytest.mark.parametrize(("entries", "message"), REFUSED)
def test_others_are_refused(finished, tmp_path, entries, message):
    finished._write_record(finished.record | entries)
    with pytest.raises(ValueError, match=message):
        publish.add(finished.folder, tmp_path)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("change", [lambda path: path.write_text("a\n2\n"), lambda path: path.unlink()])
def test_a_table_that_is_not_the_runs_any_more_is_refused(finished, tmp_path, change):
    change(finished.folder / "small.csv")
    with pytest.raises(ValueError, match=r"not as the run left them: small.csv$"):
        publish.add(finished.folder, tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_comparison_that_holds_a_users_loss_is_refused(finished, tmp_path):
    (finished.folder / "runs").mkdir()
    compared = finished.record | dict(run="b-run", parameters=dict(loss="scratch:mine"))
    (finished.folder / "runs" / "b-run.json").write_text(json.dumps(compared))
    (finished.folder / "detectors.csv").write_text("loss,run\ngiou,a-run\nother,c-run\n")
    with pytest.raises(ValueError, match=r"package: loss scratch:mine of run b-run, loss other of run c-run$"):
        publish.add(finished.folder, tmp_path)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("moment", ["before the exchange", "after it"])
def test_a_kill_leaves_the_old_folder_or_the_new_whole(finished, tmp_path, monkeypatch, moment):
    place, exchange = publish.add(finished.folder, tmp_path), publish._exchange
    another_small_table(finished)

    def killed(*folders):
        if moment == "after it":
            exchange(*folders)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_exchange", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.add(finished.folder, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["run.json", "small.csv"]
    assert (place / "small.csv").read_text() == ("a\n1\n" if moment == "before the exchange" else "a\n2\n")
    assert place.with_name(".02_loss_landscape.new").is_dir()
    publish.renew(tmp_path)
    assert sorted(path.name for path in place.parent.iterdir()) == ["02_loss_landscape", "README.md", "claims.csv"]


def test_a_system_without_an_exchange_names_the_remedy(finished, tmp_path, monkeypatch):
    place = publish.add(finished.folder, tmp_path)
    monkeypatch.setattr(publish.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="move it away and publish again"):
        publish.add(finished.folder, tmp_path)
    assert (place / "small.csv").read_text() == "a\n1\n"


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"run\.json is missing, .*; name results/<notebook>/<run-id>"):
        publish.add(tmp_path, tmp_path)


def test_what_cannot_be_tabled_leaves_all_as_it_was(finished, tmp_path):
    finished._write_record(finished.record | dict(notebook="03_simulation"))  # without the tables of one
    readme = (tmp_path / "README.md").read_text()
    with pytest.raises(OSError):
        publish.add(finished.folder, tmp_path)
    assert (tmp_path / "README.md").read_text() == readme
    assert not (tmp_path / "results" / "published" / "03_simulation").exists()


def test_what_is_made_of_the_published_runs_is_what_they_say():
    project = store.project_folder()
    texts = publish._texts(project, published_runs(project))
    texts.pop(project / "results" / "published" / "claims.csv")  # its last digits are the machine's
    assert all(path.read_text() == text for path, text in texts.items())


def detector_runs(place, runs):
    """A run of 06 with only detectors and their differences: notebook → Run."""
    runs.to_csv(place / "detectors.csv", index=False)
    comparison.paired(runs).to_csv(place / "paired.csv", index=False)
    dial.gains(runs).to_csv(place / "dial.csv", index=False)
    return {"06_compare_losses": store.Run(place)}


def test_the_pages_take_their_verdicts_from_one_family(tmp_path):
    runs = pd.concat([detectors(0.05, ap50=-0.05), detectors(0.05, n=3, detector="fcos")]).assign(run="a")
    found = detector_runs(tmp_path, runs)
    tested = comparison.paired(runs)
    tables = findings.setting_tables(found)
    for name in ("voc, yolov3", "voc, fcos"):
        means, differences = tables[name]
        assert means.loss.tolist() == ["ℓ2", "IoU", "GIoU"]
        shown = differences.set_index(["loss", "against"]).loc[("GIoU", "ℓ2")]
        (row,) = tested.query(
            "setting == @name and measure == 'AP50' and loss == 'giou' and against == 'l2'"
        ).itertuples()
        assert shown["AP50"] == f"{comparison.difference_label(row)} {row.verdict}" and shown.n == row.n
        assert row.verdict == ("worse" if row.n == 5 else "too few seeds")
    text = publish.runs_page(found)
    assert shown["AP50"] in text and "### voc, fcos" in text and "### voc, yolov3" in text


def test_a_note_on_seeds_or_weights_stands_in_its_row(tmp_path):
    found = detector_runs(tmp_path, detectors(0.05).assign(run="20261126T000000"))
    table = found["06_compare_losses"].table("paired").assign(note="seeds 3, 4 were added after a look")
    table.to_csv(tmp_path / "paired.csv", index=False)
    assert "| seeds 3, 4 were added after a look |" in publish.runs_page(found)


def test_the_answer_follows_the_verdicts(tmp_path):
    table = findings.answer(detector_runs(tmp_path, detectors(0.05, ap50=-0.05))).set_index("situation")
    one, two = "Anchors that overlap their target, one stage", "Anchors that overlap their target, two stages"
    assert (table.use[one], table.n[one]) == ("GIoU", 5)
    assert table.measured[one].startswith("GIoU − ℓ2: AP +0.049 (")
    assert table.measured[one].endswith("voc, yolov3. Weights were not searched.")
    assert table.use["Low thresholds"] == "ℓ2"
    assert table.use["Fit of the objects found (mean IoU)"] == "GIoU or ℓ2: undecided"
    assert table.use[two] == "not measured" and "Fewer than 5 paired seeds of GIoU" in table.measured[two]
    assert len(table) == 11 and set(table.use[-5:]) == {"not measured"}
    runs = detectors(0.05)
    table = findings.answer(detector_runs(tmp_path, runs.assign(mean_iou=runs.mean_iou.where(runs.index > 0))))
    assert table.set_index("situation").measured["Fit of the objects found (mean IoU)"] == "A run found no object."


def test_positives_moved_away_are_answered_by_all_cells(tmp_path):
    found = detector_runs(tmp_path, detectors(0.05))

    def answered(*rows):
        table = pd.DataFrame(rows, columns=["against", "cells_away", "difference", "verdict"])
        table = table.assign(dial="shapes", measure=dial.MEASURES[0], n=5, low=0.0, high=0.2)
        at_one_weight = table.assign(dial="shapes, weight 10", verdict="worse")  # does not decide
        pd.concat([at_one_weight, table]).to_csv(tmp_path / "dial.csv", index=False)
        return findings.answer(found).set_index("situation").loc[findings.MOVED]

    iou = ("iou", 1, 0.01, "undecided"), ("iou", 4, 0.16, "better")
    row = answered(*iou, ("l1", 0, 0.02, "better"), ("l1", 1, 0.01, "undecided"))
    assert (row.use, row.n) == ("GIoU or ℓ1", 5)
    assert row.measured.endswith(
        "1, 4 cells away: GIoU − IoU +0.010 (+0.000 to +0.200), +0.160 (+0.000 to +0.200); "
        "GIoU − ℓ1 +0.010 (+0.000 to +0.200)."
    )
    assert answered(*iou, ("l1", 1, -0.1, "worse"), ("l1", 4, 0.01, "undecided")).use == "ℓ1"
    assert answered(*iou).use == "GIoU"


def test_one_box_answers_where_boxes_start_disjoint(tmp_path):
    rows = [
        ("5l1 + 2giou", "l1", 97, 0.02, "better", False),
        ("giou", "l1", 97, -0.10, "worse", False),
        ("iou", "l1", 97, 0.0, "undecided", False),
        ("giou", "iou", 97, -0.1, "worse", True),
        ("giou", "iou", 100, 0.3, "better", False),
        ("giou", "l1", 0, 0.3, "better", False),
    ]
    table = pd.DataFrame(rows, columns=["loss", "against", "first_box", "difference", "verdict", "primary"])
    table = table.assign(n=10, low=table.difference - 0.01, high=table.difference + 0.01)
    pd.concat([table.assign(encoding="linear"), table[1:].assign(encoding="sigmoid")]).to_csv(
        tmp_path / "differences.csv", index=False
    )
    table = findings.answer({"04_one_box": store.Run(tmp_path)}).set_index("situation")
    row = table.loc[findings.DISJOINT]
    assert (row.use, row.n) == ("5 ℓ1 + 2 GIoU", 10)
    assert "GIoU − ℓ1 -0.100 (-0.110 to -0.090), GIoU − IoU -0.100" in row.measured
    assert row.measured.endswith("GIoU − IoU +0.300 (+0.290 to +0.310) with 100 % disjoint.")
    assert table.use[findings.ENCODINGS[1][0]] == "ℓ1 or IoU"


def test_readmes_answer_is_what_the_published_tables_say():
    """README's first sentences, which are written by hand: no gain in AP over ℓ1, ℓ2 or IoU where all boxes overlap and
    each loss has its best weight, at one weight over ℓ1 on one of two data sets; over IoU a gain in fit that grows with
    the share of disjoint positives; in a small network, a gain over IoU where all first boxes are disjoint, but not
    where 97 % are."""
    published = published_runs(store.project_folder())
    assert not findings.answer(published).measured.str.contains("not searched").any()
    run = published["06_compare_losses"]
    detectors, table = run.table("detectors"), run.table("paired").query("loss == 'giou' and measure == 'AP'")
    table = table[~table.setting.str.startswith("shapes")]
    best = table.setting.str.endswith("best weights")
    assert set(table.against[best]) >= {"l1", "l2", "iou"} and not (table.verdict[best] == "better").any()
    ahead = table[~best & table.setting.str.contains("yolov3")].query("against == 'l1'").verdict == "better"
    assert ahead.tolist() == [False, True]
    assert detectors.disjoint[detectors.dataset != "shapes"].max() < 0.001
    slopes = run.table("dial_slopes").query("measure == @dial.MEASURES[0] and against == 'iou'")
    assert len(slopes) and set(slopes.verdict) == {"better"}
    one_box = published["04_one_box"].table("differences")
    one_box = one_box[(one_box.loss == "giou") & (one_box.against == "iou")].set_index("first_box")
    assert not (one_box.verdict[97] == "better").any()
    assert (one_box.verdict[100] == "better").all() and (one_box.mean_against[100] < 0.01).all()


@pytest.mark.parametrize("run", published_runs(store.project_folder()).values(), ids=lambda run: run.folder.name)
def test_published_runs_are_complete_and_of_committed_code(run):
    entries = run.record
    assert (entries["status"], entries["dirty"]) == ("complete", False)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_is_refused_by_name(tmp_path, content):
    folder = tmp_path / "results" / "01_metric" / "one"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    with pytest.warns(UserWarning, match="run.json"), pytest.raises(ValueError, match="one is not a run folder"):
        publish.add(folder, tmp_path)


def test_the_published_differences_are_those_of_the_published_runs():
    run = published_runs(store.project_folder())["06_compare_losses"]
    made = comparison.paired(comparison.at_one_weight(run.table("detectors")), run.parameters["seed"])
    shown = ["setting", "measure", "loss", "against", "n", "verdict"]
    assert made[shown].values.tolist() == run.table("paired")[shown].values.tolist()
    assert made.difference.to_numpy() == pytest.approx(run.table("paired").difference.to_numpy())
